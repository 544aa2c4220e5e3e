"""The direct solver of boxes: all kinds of axes against dense matrices, residuals, and exact discrete flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import stokes
from jaxnm.stokes import Grid, Velocity
from jaxnm.stokes.direct import factorize_box, solve_box
from tests.compilation import QUICK
from tests.stokes.test_counting import _boundary, _dense

EPS = float(np.finfo(float).eps)
AXES = ["PP"] + [a + b for a in "NFTO" for b in "NFTO"]
# each kind of axis twice as x and as y, with partners that differ, and the symmetric mixes
PAIRS = [(AXES[i], AXES[(i * m + s) % 17]) for m, s in ((1, 3), (3, 5)) for i in range(17)]
PAIRS += [("NN", "NN"), ("OO", "OO"), ("NN", "OO"), ("PP", "OO"), ("PP", "PP"), ("TT", "TT"), ("TT", "NN")]


def _random(grid, boundary, seed=0, dtype=float):
    random = np.random.default_rng(seed)
    return Velocity(*(jnp.asarray(random.normal(size=shape), dtype) for shape in stokes.face_shapes(grid, boundary)))


def test_the_pairs_cover_all_kinds_of_axes():
    assert {x for x, _ in PAIRS} == {y for _, y in PAIRS} == set(AXES)


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_every_kind_of_axis_against_dense_matrices(x, y):
    check_against_dense_matrices(x, y)


def check_against_dense_matrices(x, y):
    """One pair of kinds of axes; test_exhaustive.py has all of them."""
    shape, spacing = (5, 6), (0.26, 0.15)
    grid, boundary = Grid(shape, None, (5 * 0.26, 6 * 0.15)), _boundary(f"{x}|{y}")
    a, b = _dense(shape, boundary, np.zeros(shape, bool), spacing)
    matrix = np.block([[a, b.T], [b, np.zeros((30, 30))]])
    force = _random(grid, boundary, 1)
    divergence = jnp.asarray(np.random.default_rng(2).normal(size=shape))
    operators = stokes.discretize(grid, boundary)
    if operators.pressure_null_space:
        divergence = divergence - jnp.mean(divergence)
    force = Velocity(
        *(
            c - jnp.mean(c) if free else c
            for c, free in zip(force.components, operators.velocity_null_space, strict=True)
        )
    )
    solve = jax.jit(
        lambda f, d: solve_box(factorize_box(grid, boundary, jnp.float64), f, d),
        compiler_options=QUICK,
    )
    velocity, pressure = solve(force, divergence)
    found = np.concatenate([np.ravel(part) for part in (*velocity.components, pressure)])
    right = np.concatenate([np.ravel(part) for part in (*force.components, divergence)])
    inverse = np.linalg.pinv(matrix, rcond=1e-11, hermitian=True)
    condition = np.linalg.norm(matrix, 2) * np.linalg.norm(inverse, 2)
    wanted = inverse @ right
    assert np.linalg.norm(matrix @ found - right) <= 100 * EPS * np.linalg.norm(matrix, 2) * np.linalg.norm(wanted)
    if not any(operators.velocity_null_space):  # else a constant velocity is free
        assert np.linalg.norm(found - wanted) <= 10 * EPS * condition * np.linalg.norm(wanted)


_solve = jax.jit(
    lambda operators, force, refinements: stokes.solve(operators, force, method="direct", refinements=refinements),
    static_argnums=2,
)


@pytest.mark.parametrize(
    ("n", "letters"), [(256, "NN|NN"), (256, "IO|NN"), (256, "PP|NT"), (1024, "NN|NN")]
)  # fmt: skip
def test_residuals_at_full_size(n, letters):
    grid, boundary = Grid((n, n), (0.0, 0.0), (1.0, 1.0)), _boundary(letters)
    operators, force = stokes.discretize(grid, boundary), _random(grid, boundary)
    solution = _solve(operators, force, 0)
    assert int(solution.status) == 0
    assert float(solution.stats.momentum_residual) <= 1e-11
    assert float(solution.stats.divergence) <= 1e-14
    # the figures are what they say
    momentum, divergence = operators.saddle((solution.velocity, solution.pressure))
    largest = lambda tree: max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
    wanted = operators.mass()
    right = jax.tree.map(jnp.multiply, wanted, force)
    assert largest(jax.tree.map(jnp.subtract, momentum, right)) <= 2e-11 * largest(right)
    assert largest(divergence) / n <= 2e-14 * largest(solution.velocity)


def test_float32_stays_float32_and_one_refinement_reaches_its_rounding():
    n = 64
    grid, boundary = Grid((n, n), (0.0, 0.0), (1.0, 1.0)), _boundary("IO|NN")
    operators = stokes.discretize(grid, boundary)
    exact = _solve(operators, _random(grid, boundary), 0)
    force = _random(grid, boundary, dtype=jnp.float32)
    lowered = _solve.lower(operators.replace(grid=_in_float32(grid), viscosity=jnp.float32(1)), force, 1)
    assert "f64" not in lowered.as_text()
    plain, refined = (_solve(operators, force, count) for count in (0, 1))
    eps = float(np.finfo(np.float32).eps)
    for solution, multiple in ((plain, 100), (refined, 100)):
        assert solution.pressure.dtype == jnp.float32
        for ours, theirs in zip(jax.tree.leaves(solution.velocity), jax.tree.leaves(exact.velocity), strict=True):
            assert float(jnp.max(jnp.abs(ours - theirs.astype(ours.dtype)))) <= multiple * eps * float(
                jnp.max(jnp.abs(theirs))
            )
    assert float(refined.stats.momentum_residual) <= float(plain.stats.momentum_residual)


def _in_float32(grid):
    return jax.tree.map(jnp.float32, grid)


def _flow(shape, letters, upper, force, **sides):
    grid, boundary = Grid(shape, None, upper), _boundary(letters)
    operators = stokes.discretize(grid, boundary)
    force = Velocity(
        *(jnp.broadcast_to(f(*stokes.positions(grid, boundary, c)), stokes.face_shapes(grid, boundary)[c])
          for c, f in enumerate(force))
    )  # fmt: skip
    values = stokes.boundary_values(grid, boundary)
    for side, value in sides.items():
        axis, end, name = side.split("_")
        values = values.set(axis, end, **{name: value})
    solution = stokes.solve(operators, force, boundary_values=values, method="direct")
    assert int(solution.status) == 0
    return operators, solution, values


_zero = lambda x, y: 0 * x
_one = lambda x, y: 0 * x + 1


@pytest.mark.parametrize("n", [8, 32])
def test_poiseuille_flow_in_a_periodic_channel(n):
    """The parabola plus h^2 / 8, and a flux of 1/12 + h^2 / 6."""
    operators, solution, _ = _flow((6, n), "PP|NN", (0.7, 1.0), (_one, _zero))
    y = (np.arange(n) + 0.5) / n
    np.testing.assert_allclose(
        solution.velocity.u, np.broadcast_to(y * (1 - y) / 2 + 1 / (8 * n**2), (6, n)), rtol=100 * EPS
    )
    np.testing.assert_allclose(solution.velocity.v, 0, rtol=0, atol=10 * EPS)
    np.testing.assert_allclose(solution.pressure, 0, rtol=0, atol=100 * EPS)
    flux = stokes.flux(operators, solution.velocity, 0)
    np.testing.assert_allclose(flux, 1 / 12 + 1 / (6 * n**2), rtol=100 * EPS)


def test_couette_flow():
    _, solution, _ = _flow((5, 9), "PP|NN", (0.7, 1.0), (_zero, _zero), y_upper_tangential=2.0)
    np.testing.assert_allclose(
        solution.velocity.u, np.broadcast_to(2 * (np.arange(9) + 0.5) / 9, (5, 9)), rtol=100 * EPS
    )
    np.testing.assert_allclose(solution.velocity.v, 0, rtol=0, atol=10 * EPS)


@pytest.mark.parametrize("letters", ["NN|NN", "NF|FN"])
def test_a_gradient_moves_nothing(letters):
    """The pressure is the discrete potential: that of a force a x + b y exactly."""
    operators, solution, _ = _flow((6, 7), letters, (1.2, 0.7), (_one, lambda x, y: -2 * _one(x, y)))
    x, y = jnp.meshgrid(operators.grid.centres(0), operators.grid.centres(1), indexing="ij")
    wanted = x - 2 * y
    np.testing.assert_allclose(solution.pressure, wanted - wanted.mean(), rtol=0, atol=50 * EPS)
    for part in solution.velocity.components:
        np.testing.assert_allclose(part, 0, rtol=0, atol=10 * EPS)


@pytest.mark.parametrize("letters", ["PP|PP", "FF|FF"])
def test_taylor_green_vortices_have_the_discrete_symbol(letters):
    shape, k = (12, 16), 2 * np.pi
    u = lambda x, y: jnp.sin(k * x) * jnp.cos(k * y)
    v = lambda x, y: -jnp.cos(k * x) * jnp.sin(k * y)
    hx, hy = 1 / shape[0], 1 / shape[1]
    symbol = 4 * np.sin(k * hx / 2) ** 2 / hx**2 + 4 * np.sin(k * hy / 2) ** 2 / hy**2
    operators, solution, _ = _flow(shape, letters, (1.0, 1.0), (u, v))
    # the part of the force that is a discrete gradient goes into the pressure
    a, b = 2 * np.sin(k * hx / 2) / hx, 2 * np.sin(k * hy / 2) / hy
    for c, (function, factor) in enumerate(((u, b / (a * a + b * b) * (a + b)), (v, a / (a * a + b * b) * (a + b)))):
        at = stokes.positions(operators.grid, operators.boundary, c)
        scale = factor / symbol
        np.testing.assert_allclose(solution.velocity.components[c], function(*at) * scale, rtol=0, atol=100 * EPS)


def test_rigid_flow_through_an_open_duct():
    """A uniform inflow between walls free of shear leaves as it came, and needs no pressure."""
    for outlet in "TO":
        operators, solution, values = _flow((7, 5), f"I{outlet}|FF", (1.3, 0.8), (_zero, _zero), x_lower_normal=1.5)
        np.testing.assert_allclose(stokes.full_faces(operators, solution.velocity, values).u, 1.5, rtol=20 * EPS)
        np.testing.assert_allclose(solution.velocity.v, 0, rtol=0, atol=20 * EPS)
        np.testing.assert_allclose(solution.pressure, 0, rtol=0, atol=200 * EPS)
