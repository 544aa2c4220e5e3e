"""Steps of the iterative Stokes solvers on domains of eight kinds, and of two preconditioners of A on masks.

Run it with `python -m examples.stokes_preconditioners`. Every step of `minres` is one product and one multigrid cycle a
component; every step of the other two holds an inner iteration for A^-1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from tqdm import tqdm

import jaxnm.stokes as st
from jaxnm.linalg import conjugate_gradient
from jaxnm.stokes import preconditioners
from jaxnm.stokes.spectral import solve_laplacian

RTOL = 1e-8
METHODS = ("minres", "simple_cg", "schur_cg")
PERIODIC = st.Boundary("periodic", "periodic")
TITLE = f"Steps at rtol {RTOL:g}, random force, square domains of side 1"


def porous(n: int, fluid: float, size: float) -> np.ndarray:
    """[n, n] mask: smoothed noise above its quantile; `size` is the width of the smoothing in cells."""
    noise = np.random.default_rng(0).normal(size=(n, n))
    smooth = ndimage.gaussian_filter(noise, size, mode="wrap") if size else noise
    return st.largest_component(smooth > np.quantile(smooth, fluid), PERIODIC)


def domains(n: int) -> dict[str, st.StokesOperators]:
    """Operators on n x n cells."""
    grid = st.Grid((n, n), (0.0, 0.0), (1.0, 1.0))
    x, y = (np.asarray(grid.centres(axis)) - 0.5 for axis in (0, 1))
    disc = x[:, None] ** 2 + y[None] ** 2 < 0.25**2
    masks = {
        "porosity 0.9": porous(n, 0.9, 1.5),
        "porosity 0.6, coarse pores": porous(n, 0.6, 3.0),
        "porosity 0.6, fine pores": porous(n, 0.6, 1.0),
        "20 % of the cells at random": porous(n, 0.8, 0.0),
    }
    found = {
        "box": st.discretize(grid, st.Boundary()),
        "channel": st.discretize(grid, st.Boundary("periodic")),
        "cylinder in a periodic cell": st.discretize(grid, PERIODIC, solid=disc),
    }
    found |= {name: st.discretize(grid, PERIODIC, solid=mask) for name, mask in masks.items()}
    for drag in (1e2, 1e6):
        half = jnp.asarray(np.where(masks["porosity 0.6, coarse pores"], drag, 0.0))
        found[f"drag {drag:g} on half of a box"] = st.discretize(grid, st.Boundary(), inverse_permeability=half)
    return found


def random_force(operators: st.StokesOperators) -> st.Velocity:
    """Normal entries on the unknown faces."""
    like, _ = operators.structure()
    keys = dict(zip("uv", jax.random.split(jax.random.key(0)), strict=True))
    return st.Velocity(*(jax.random.normal(keys[name], getattr(like, name).shape) for name in "uv"))


def solver_steps(n: int = 64) -> tuple[str, dict[str, bool]]:
    """The table of steps, and whether every run met its tolerance."""
    lines = [f"{TITLE}, {n} x {n} cells", f"{'':<30}{'not 1':>8}" + "".join(f"{method:>11}" for method in METHODS)]
    held = {}
    for name, operators in tqdm(domains(n).items(), desc="domains", leave=False, disable=None):
        share = "-"
        if operators.inverse_permeability is None:
            count = st.count_nonunit_eigenvalues(operators.grid, operators.boundary, operators.solid)
            share = f"{count / int(jnp.sum(operators.fluid_cells())):.1%}"
        steps = []
        for method in METHODS:
            solution = st.solve(operators, random_force(operators), method=method, rtol=RTOL, max_steps=2000)
            steps.append(int(solution.stats.iterations))
            held[f"{name}, {method}"] = int(solution.status) == 0
        lines.append(f"{name:<30}{share:>8}" + "".join(f"{count:>11}" for count in steps))
    lines.append("not 1: share of the eigenvalues of S, of the fluid cells")
    return "\n".join(lines), held


def velocity_steps(sizes: tuple[int, ...] = (32, 64, 128)) -> str:
    """Steps of conjugate gradients on A, on a porous mask that is refined, with either preconditioner."""
    coarse = st.largest_component(porous(min(sizes), 0.6, 1.5), st.Boundary())
    lines = [
        f"Steps of conjugate gradients on A at rtol {RTOL:g}, one porous mask refined",
        f"{'cells':<14}{'multigrid':>12}{'A^-1 of the box':>18}",
    ]
    for n in sizes:
        mask = np.kron(coarse, np.ones((n // min(sizes),) * 2, bool))
        grid = st.Grid((n, n), (0.0, 0.0), (1.0, 1.0))
        operators, box = st.discretize(grid, st.Boundary(), solid=mask), st.discretize(grid, st.Boundary())
        force = jax.tree.map(lambda f, active: f * active, random_force(operators), operators.active_faces())
        levels = preconditioners.velocity_levels(operators, force.u.dtype)
        inside = lambda w, operators=operators: jax.tree.map(lambda f, active: f * active, w, operators.active_faces())
        steps = [
            int(conjugate_gradient(operators.laplacian, force, preconditioner=cycle, rtol=RTOL).num_steps)
            for cycle in (
                lambda right, levels=levels: preconditioners.velocity_cycle(levels, right),
                lambda right, box=box, inside=inside: inside(solve_laplacian(box, inside(right))),
            )
        ]
        lines.append(f"{f'{n} x {n}':<14}{steps[0]:>12}{steps[1]:>18}")
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    text, held = solver_steps()
    print(text, [name for name, good in held.items() if not good] or "\nall met their tolerance", sep="\n")
    print(velocity_steps())
