"""Cases: stationary Stokes flow on boxes and in a porous medium, and its derivative."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender

_METRIC = "the larger of |momentum residual| / |force| and |divergence| h / |velocity|, maximum norms, by the matrix"


@dataclass(frozen=True)
class _Problem:
    """A force, and the saddle-point matrix that belongs to what is unknown, on the host."""

    operators: Any
    force: Any
    matrix: Any
    """Symmetric, rows u, v[, w], p of the fluid; singular, since p is fixed up to a constant only."""
    right: np.ndarray
    sizes: tuple[int, ...]
    """Unknowns of u, v[, w], p."""
    error: Callable[[Any], float]


def _problem(shape: tuple[int, ...], kind: Any = "no_slip", solid: np.ndarray | None = None) -> _Problem:
    from scipy import sparse

    from jaxnm.stokes import Boundary, Grid, discretize

    grid = Grid(shape, (0.0,) * len(shape), (1.0,) * len(shape))
    operators = discretize(grid, Boundary(kind, kind, kind), solid=solid)
    active = [np.asarray(part) for part in operators.active_faces().components]
    fluid = np.asarray(operators.fluid_cells())
    force = [np.random.default_rng(c).normal(size=part.shape) * part for c, part in enumerate(active)]
    # The peers need no rows of the solid, and fare better with the pressure's constant than with a pinned cell.
    unknown = np.concatenate([part.ravel() for part in (*active, fluid)])
    sizes = tuple(int(part.sum()) for part in (*active, fluid))
    pinned: Any = operators.to_sparse(np.float64)[unknown][:, unknown]
    count = sum(sizes[:-1])
    divergence = pinned[count:, :count][1:]  # of all fluid cells but the first; the sum over all is zero
    divergence = sparse.vstack([sparse.csr_matrix(-divergence.sum(axis=0)), divergence])
    matrix = sparse.csr_matrix(sparse.bmat([[pinned[:count, :count], divergence.T], [divergence, None]]))
    right = np.concatenate([*(part.ravel() for part in force), np.zeros(fluid.size)])[unknown]

    def error(answer: Any) -> float:
        if hasattr(answer, "velocity"):
            if answer.status != 0:
                return float("inf")
            parts = [*answer.velocity.components, answer.pressure]
            answer = np.concatenate([part.ravel() for part in parts])[unknown]
        residual = np.abs(matrix @ answer - right)
        momentum = residual[:count].max() / np.abs(right).max()
        return float(max(momentum, residual[count:].max() / max(shape) / np.abs(answer[:count]).max()))

    force = type(operators.active_faces())(*map(jnp.asarray, force))
    return _Problem(operators, force, matrix, right, sizes, error)


def _scipy_direct(problem: _Problem) -> tuple[Contender, Contender]:
    """Sparse LU factorization without the last pressure, made anew and kept."""
    from scipy.sparse.linalg import splu, spsolve

    matrix, right = problem.matrix[:-1, :-1].tocsc(), (problem.right[:-1],)
    factor = cache(lambda: splu(matrix))
    return (
        Contender("scipy spsolve", lambda right: np.append(spsolve(matrix, right), 0), right),
        Contender("scipy splu, factor kept", lambda right: np.append(factor().solve(right), 0), right),
    )


def _amg_minres(problem: _Problem, rtol: float, simple: bool = False) -> tuple[Contender, Contender]:
    """MINRES of scipy; a V-cycle of smoothed aggregation a velocity component, the identity (or SIMPLE) for p."""
    from scipy import sparse
    from scipy.sparse.linalg import aslinearoperator, minres

    parts = [slice(low, high) for low, high in pairwise([0, *np.cumsum(problem.sizes)])]
    count, matrix = sum(problem.sizes[:-1]), problem.matrix
    blocks = [sparse.csr_matrix(matrix[part, part]) for part in parts[:-1]]
    if simple:
        divergence, diagonal = matrix[count:, :count], matrix.diagonal()[:count]
        blocks.append(sparse.csr_matrix(divergence @ sparse.diags(1 / diagonal) @ divergence.T))

    def setup() -> Any:
        from pyamg import smoothed_aggregation_solver

        cycles = [smoothed_aggregation_solver(block).aspreconditioner().matvec for block in blocks]
        cycles += [] if simple else [lambda residual: residual]

        def precondition(residual: np.ndarray) -> np.ndarray:
            return np.concatenate([cycle(residual[part]) for cycle, part in zip(cycles, parts, strict=True)])

        return aslinearoperator(SimpleNamespace(shape=matrix.shape, dtype=matrix.dtype, matvec=precondition))

    def solve(setup: Callable[[], Any], right: np.ndarray) -> np.ndarray:
        return minres(matrix, right, rtol=rtol, maxiter=2000, M=setup())[0]

    name, right = "pyamg SA (SIMPLE) + scipy MINRES" if simple else "pyamg SA + scipy MINRES", (problem.right,)
    return (
        Contender(name, partial(solve, setup), right, module="pyamg"),
        Contender(f"{name}, setup kept", partial(solve, cache(setup)), right, module="pyamg"),
    )


def _with_factor(operators: Any, factor: Any, force: Any) -> Any:
    from jaxnm.stokes import solve

    return solve(operators, force, factor=factor)


def direct(n: int, kept: bool) -> Case:
    """The exact solver of boxes against a sparse LU factorization."""
    from jaxnm.stokes import factorize, solve

    problem = _problem((n, n))
    operators, force = problem.operators, problem.force
    anew, triangular = _scipy_direct(problem)
    ours = Contender("ours", solve, (operators, force), jitted=True)
    if kept:
        ours = Contender("ours", _with_factor, (operators, factorize(operators, dtype=float), force), jitted=True)
    return Case(
        name=f"stokes-direct-{n}" if kept else f"stokes-direct-{n}-with-factor",
        description=f"Stokes flow in a no-slip square of {n} x {n} cells, N(0, 1) force; our factor is "
        f"{'kept' if kept else 'made anew'}, spsolve factors its matrix, assembled before, each time",
        ours=ours,
        peers=(anew, triangular) if kept else (anew,),
        error=problem.error,
        metric=_METRIC,
        tolerance=1e-10,
        target_ratios={anew.name: 300} if kept else {},
        rounds=3,
    )


def _box_error(force: Any, answer: Any) -> float:
    """The usual error of a solution in a no-slip unit square, with the stencils written out, without a matrix."""
    if answer.status != 0:
        return float("inf")
    u, v, p = answer.velocity.u, answer.velocity.v, answer.pressure
    n = len(p)

    def negative_laplacian(w: np.ndarray) -> np.ndarray:
        """Zero beyond both ends of the first axis, reflected at those of the second."""
        wide = np.pad(w, 1)
        wide[1:-1, 0], wide[1:-1, -1] = -w[:, 0], -w[:, -1]
        return n**2 * (4 * w - wide[:-2, 1:-1] - wide[2:, 1:-1] - wide[1:-1, :-2] - wide[1:-1, 2:])

    forces = np.asarray(force.u), np.asarray(force.v)
    in_x = negative_laplacian(u) + n * np.diff(p, axis=0) - forces[0]
    in_y = negative_laplacian(v.T).T + n * np.diff(p, axis=1) - forces[1]
    net = np.diff(np.pad(u, ((1, 1), (0, 0))), axis=0) + np.diff(np.pad(v, ((0, 0), (1, 1))), axis=1)
    largest = lambda *arrays: max(np.abs(array).max() for array in arrays)
    return float(max(largest(in_x, in_y) / largest(*forces), largest(net) / largest(u, v)))


def direct_in_transforms(n: int) -> Case:
    """The exact solver beside one fast Fourier transform of the grid, which solves nothing."""
    from scipy.fft import rfft2

    from jaxnm.stokes import Boundary, Grid, Velocity, discretize, face_shapes, factorize

    grid, boundary, random = Grid((n, n), (0.0, 0.0), (1.0, 1.0)), Boundary(), np.random.default_rng(0)
    operators = discretize(grid, boundary)
    force = Velocity(*(jnp.asarray(random.normal(size=shape)) for shape in face_shapes(grid, boundary)))
    cells = random.normal(size=(n, n))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def error(answer: Any) -> float:
        if hasattr(answer, "velocity"):
            return _box_error(force, answer)
        twice = np.full(n // 2 + 1, 2.0)  # the half that is not stored; n is even
        twice[[0, -1]] = 1
        return float(abs(np.sum(twice * np.abs(answer) ** 2) / (n**2 * np.sum(cells**2)) - 1))

    yardstick = "yardstick: one scipy rfft2"
    return Case(
        name=f"stokes-direct-{n}",
        description=f"Stokes flow in a no-slip square of {n} x {n} cells, N(0, 1) force, factor kept; beside it no "
        f"peer, but a yardstick: the fastest of the real transforms of {n} x {n} numbers ({threads} threads) called "
        "alone, so that ours costs 1 / ratio transforms; at most 25 are wanted at 2048",
        ours=Contender("ours", _with_factor, (operators, factorize(operators, dtype=float), force), jitted=True),
        peers=(
            Contender(yardstick, partial(rfft2, workers=threads), (cells,), apart=True),
            Contender("yardstick: one jnp rfft2", jnp.fft.rfft2, (jnp.asarray(cells),), jitted=True, apart=True),
        ),
        error=error,
        metric="of ours, the larger of |momentum residual| / |force| and |divergence| h / |velocity|, maximum norms, "
        "with the stencils in NumPy; of the yardstick, the relative defect in Parseval's identity",
        tolerance=1e-11,
        target_ratios={yardstick: 1 / 25} if n == 2048 else {},
        rounds=5,
    )


def schur_cg(shape: tuple[int, ...], rtol: float, peer_rtol: float, target: float | None, rounds: int) -> Case:
    """Conjugate gradients on the Schur complement of a box against preconditioned MINRES."""
    from jaxnm.stokes import solve

    problem = _problem(shape)
    anew, kept = _amg_minres(problem, peer_rtol)
    cells, ours = " x ".join(map(str, shape)), partial(solve, method="schur_cg", rtol=rtol)
    return Case(
        name=f"stokes-schur-cg-{shape[0]}" if len(shape) == 2 else f"stokes-3d-{shape[0]}",
        description=f"Stokes flow in a no-slip box of {cells} cells, N(0, 1) force, by conjugate gradients on the "
        f"Schur complement, which need no setup; rtol {rtol:g} (ours) and {peer_rtol:g} (peers), in norms of their "
        "own, chosen to bring every true residual below the tolerance"
        + ("" if len(shape) == 2 else "; a sparse LU factorization is hopeless here"),
        ours=Contender("ours", ours, (problem.operators, problem.force), jitted=True),
        peers=(anew, kept),
        error=problem.error,
        metric=_METRIC,
        tolerance=1e-8,
        target_ratios={} if target is None else {anew.name: target},
        rounds=rounds,
    )


def porous(n: int, iterative: bool, rtol: float = 1e-9, peer_rtol: float = 2e-12) -> Case:
    """MINRES with multigrid in a porous medium."""
    from scipy.ndimage import gaussian_filter

    from jaxnm.stokes import Boundary, largest_component, solve

    field = gaussian_filter(np.random.default_rng(0).normal(size=(n, n)), 4, mode="wrap")
    solid = largest_component(field > np.quantile(field, 0.6), Boundary("periodic", "periodic"))
    problem = _problem((n, n), "periodic", solid)
    return Case(
        name=f"stokes-minres-mask-{n}",
        description=f"Stokes flow in a periodic porous medium of {n} x {n} cells, {solid.mean():.0%} solid, N(0, 1) "
        "force, by MINRES with multigrid, whose setup is part of our time; the peers' matrix, without the rows of the "
        f"solid, is assembled before; rtol {rtol:g} (ours) and {peer_rtol:g} (MINRES of scipy), in norms of their own",
        ours=Contender("ours", partial(solve, rtol=rtol), (problem.operators, problem.force), jitted=True),
        peers=(*(_amg_minres(problem, peer_rtol, simple=True) if iterative else ()), *_scipy_direct(problem)),
        error=problem.error,
        metric=_METRIC,
        tolerance=1e-8,
        rounds=3,
    )


def gradient(n: int) -> Case:
    """Value and gradient of a function of the flow with respect to the force."""
    from jaxnm.stokes import factorize, solve

    problem = _problem((n, n))
    operators, force, count = problem.operators, problem.force, sum(problem.sizes[:-1])
    triangular = _scipy_direct(problem)[1]

    def energy(force: Any, operators: Any, factor: Any) -> Any:
        velocity = solve(operators, force, factor=factor).velocity
        return sum(jnp.sum(part**2) for part in velocity.components)

    def by_hand(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flow = triangular.function(right)[:-1]
        flow[count:] = 0
        return np.sum(flow**2), triangular.function(2 * flow)[:count]

    value, slope = by_hand(*triangular.arguments)

    def error(answer: Any) -> float:
        first, *rest = jax.tree.leaves(answer)
        flat = np.concatenate([part.ravel() for part in rest]) if rest else slope
        return float(max(abs(first / value - 1), np.abs(flat - slope).max() / np.abs(slope).max()))

    arguments = force, operators, factorize(operators, dtype=float)
    alone = "ours, the value alone"
    return Case(
        name=f"stokes-gradient-{n}",
        description=f"sum of u^2 and its gradient with respect to the force in a no-slip square of {n} x {n} cells, "
        "factors kept; 1 / ratio to the value alone is the cost of both in forward solutions",
        ours=Contender("ours", jax.value_and_grad(energy), arguments, jitted=True),
        peers=(
            Contender(alone, energy, arguments, jitted=True),
            Contender("scipy splu, adjoint by hand", by_hand, triangular.arguments),
        ),
        error=error,
        metric="relative error of the value and, where there is one, the gradient (maximum norm), against sparse LU",
        tolerance=1e-9,
        target_ratios={alone: 0.4},
    )


CASES: dict[str, Callable[[], Case]] = {
    "stokes-direct-256": partial(direct, 256, True),
    "stokes-direct-256-with-factor": partial(direct, 256, False),
    **{f"stokes-direct-{n}": partial(direct_in_transforms, n) for n in (512, 1024, 2048)},
    "stokes-schur-cg-512": partial(schur_cg, (512, 512), 2e-9, 2e-11, 5, 2),
    "stokes-minres-mask-128": partial(porous, 128, True),
    "stokes-minres-mask-256": partial(porous, 256, False),
    "stokes-3d-32": partial(schur_cg, (32, 32, 32), 1e-9, 5e-11, None, 3),
    "stokes-gradient-128": partial(gradient, 128),
}
