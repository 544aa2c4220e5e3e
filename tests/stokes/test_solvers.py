"""`solve`: manufactured solutions, the lid-driven cavity, agreement of the methods, boundary values, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status, stokes
from jaxnm.stokes import Boundary, Grid, Velocity
from tests.compilation import QUICK
from tests.stokes.test_counting import _boundary

_solve = jax.jit(stokes.solve, static_argnames=("method", "refinements"))
_solve_once = jax.jit(stokes.solve, static_argnames="method", compiler_options=QUICK)
_UNIT = ((0.0, 0.0), (1.0, 1.0))


def _square(n, letters="NN|NN", **options):
    return stokes.discretize(Grid((n, n), *_UNIT), _boundary(letters), **options)


def _random(operators, seed=0):
    random = np.random.default_rng(seed)
    shapes = stokes.face_shapes(operators.grid, operators.boundary)
    return Velocity(*(jnp.asarray(random.normal(size=shape)) for shape in shapes))


def _zero(operators):
    return stokes.zero_velocity(operators.grid, operators.boundary)


def _manufactured(n):
    """psi = 100 x^2 (1-x)^2 y^2 (1-y)^2, p = cos(pi x) cos(pi y): errors of u and of p (largest, and in the mean)."""
    q = np.polynomial.Polynomial([0, 0, 1, -2, 1])  # t^2 (1-t)^2
    operators = _square(n)
    u = lambda x, y: 100 * q(x) * q.deriv()(y)
    v = lambda x, y: -100 * q.deriv()(x) * q(y)
    minus_lap_u = lambda x, y: -100 * (q.deriv(2)(x) * q.deriv()(y) + q(x) * q.deriv(3)(y))
    minus_lap_v = lambda x, y: 100 * (q.deriv(3)(x) * q(y) + q.deriv()(x) * q.deriv(2)(y))
    at_u, at_v = (tuple(map(np.asarray, stokes.positions(operators.grid, operators.boundary, c))) for c in (0, 1))
    force = Velocity(
        jnp.asarray(minus_lap_u(*at_u) - np.pi * np.sin(np.pi * at_u[0]) * np.cos(np.pi * at_u[1])),
        jnp.asarray(minus_lap_v(*at_v) - np.pi * np.cos(np.pi * at_v[0]) * np.sin(np.pi * at_v[1])),
    )
    solution = _solve(operators, force)
    assert int(solution.status) == 0
    centres = (np.arange(n) + 0.5) / n
    p = np.asarray(solution.pressure) - np.cos(np.pi * centres)[:, None] * np.cos(np.pi * centres)
    error_v = np.abs(np.asarray(solution.velocity.v) - v(*at_v)).max()
    error_u = np.abs(np.asarray(solution.velocity.u) - u(*at_u)).max()
    assert error_v == pytest.approx(error_u, rel=1e-8)
    return error_u, np.abs(p).max(), np.sqrt(np.mean(p**2))


@pytest.mark.exhaustive
def test_second_order_of_a_manufactured_solution():
    """The published errors to three digits."""
    errors = {n: _manufactured(n) for n in (64, 128, 1024)}
    np.testing.assert_allclose(errors[64], [2.203e-3, 8.490e-3, 2.769e-3], rtol=5e-4)
    np.testing.assert_allclose(errors[128], [5.615e-4, 2.199e-3, 6.950e-4], rtol=5e-4)
    orders = np.log2(np.divide(errors[64], errors[128])), np.log2(np.divide(errors[128], errors[1024])) / 3
    assert np.all(np.asarray(orders) > 1.9)
    assert np.all(np.asarray(orders) < 2.05)


@pytest.mark.exhaustive
def test_the_lid_driven_cavity():
    """The primary vortex to nine digits by extrapolation, and the first corner eddy."""
    found = []
    for n in (64, 128, 256):
        operators = _square(n)
        lid = stokes.boundary_values(operators.grid, operators.boundary).set("y", "upper", tangential=1.0)
        velocity = _solve(operators, _zero(operators), boundary_values=lid).velocity
        psi = stokes.stream_function(operators, velocity, lid)
        extrema = stokes.stream_extrema(operators.grid, psi)
        found.append((float(extrema.minimum), float(extrema.maximum)))
        if n == 256:
            np.testing.assert_allclose(extrema.minimum_position, [0.5, 0.7650], rtol=0, atol=2e-4)
    minima, eddies = np.transpose(found)
    # the error of the parabola falls faster than h^2
    published = np.array([-0.10002103, -0.10006188, -0.10007257])
    assert np.all(np.abs(minima - published) <= [6e-7, 1.2e-7, 3e-8])
    assert (4 * minima[2] - minima[1]) / 3 == pytest.approx(-0.1000763, abs=2e-7)
    np.testing.assert_allclose(eddies[2], 2.2276e-6, rtol=0.04)
    assert (4 * eddies[2] - eddies[1]) / 3 == pytest.approx(2.2276e-6, rel=0.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("n", "limit"), [(64, 24), (256, 24)])
def test_steps_of_conjugate_gradients(n, limit):
    operators = _square(n)
    solution = _solve(operators, _random(operators), method="schur_cg", rtol=1e-10)
    assert int(solution.status) == 0
    assert 5 < int(solution.stats.iterations) <= limit


def _agree(operators, methods, letters=None):
    force = jax.tree.map(lambda f, a: f * a.astype(float), _random(operators), operators.active_faces())
    solutions = [_solve_once(operators, force, method=method, rtol=1e-12) for method in methods]
    for solution in solutions:
        assert int(solution.status) == 0
        assert float(solution.stats.momentum_residual) <= 1e-9
        for ours, theirs in zip(
            jax.tree.leaves((solution.velocity, solution.pressure)),
            jax.tree.leaves((solutions[0].velocity, solutions[0].pressure)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(theirs))))
    return solutions


def test_the_methods_agree_on_a_box():
    _agree(_square(12, "IO|NN", viscosity=0.3), ("direct", "schur_cg", "simple_cg", "minres"))


@pytest.mark.exhaustive
def test_the_methods_agree_around_a_solid():
    solid = np.zeros((12, 12), bool)
    solid[4:7, 5:9], solid[9:, :2] = True, True
    _agree(_square(12, "IT|NN", viscosity=0.3, solid=solid), ("minres", "schur_cg", "simple_cg"))


def test_the_methods_agree_in_three_dimensions():
    grid = Grid((16, 16, 16), (0.0,) * 3, (1.0,) * 3)
    cg, _ = _agree(stokes.discretize(grid, Boundary()), ("schur_cg", "minres"))
    assert int(cg.stats.iterations) <= 30


@pytest.mark.exhaustive
def test_prescribed_profiles_and_pressures():
    """A parabola stays one to the outlet; a pressure drop drives Poiseuille's flow."""
    n, length = 16, 6.0
    for outlet in "TO":
        grid, boundary = Grid((48, n), (0.0, 0.0), (length, 1.0)), _boundary(f"I{outlet}|NN")
        values = stokes.boundary_values(grid, boundary).set("x", "lower", normal=lambda x, y: y * (1 - y) + x)
        operators = stokes.discretize(grid, boundary, viscosity=0.3)
        solution = _solve(operators, _zero(operators), boundary_values=values)
        y = (np.arange(n) + 0.5) / n
        flux = stokes.flux(operators, solution.velocity, 0, values)
        np.testing.assert_allclose(flux, flux[0], rtol=1e-12)
        profile = (y * (1 - y) / 2 + 1 / (8 * n**2)) / (1 / 12 + 1 / (6 * n**2)) * float(flux[0])
        np.testing.assert_allclose(solution.velocity.u[24], profile, rtol=1e-5)
    grid, boundary = Grid((6, n), (0.0, 0.0), (2.0, 1.0)), _boundary("TT|NN")
    values = stokes.boundary_values(grid, boundary).set("x", "lower", pressure=3.0).set("x", "upper", pressure=1.0)
    operators = stokes.discretize(grid, boundary, viscosity=0.5)
    solution = _solve(operators, _zero(operators), boundary_values=values)
    profile = (y * (1 - y) / 2 + 1 / (8 * n**2)) / 0.5
    np.testing.assert_allclose(solution.velocity.u, np.broadcast_to(profile, (7, n)), rtol=1e-11)
    line = 3 - (np.arange(6) + 0.5) / 3
    np.testing.assert_allclose(solution.pressure, np.broadcast_to(line[:, None], (6, n)), rtol=1e-11)


_small = partial(jax.jit, static_argnames="method")(
    lambda operators, force, divergence, **options: stokes.solve(operators, force, divergence=divergence, **options)
)


def test_status_codes_and_a_batch_with_bad_members():
    operators = _square(8)
    force, nothing = _random(operators), jnp.zeros((8, 8))
    batch = jax.vmap(lambda nu, f, g: _small(operators.replace(viscosity=nu), f, g))
    nan = force.replace(u=force.u.at[2, 3].set(jnp.nan))
    forces = jax.tree.map(lambda *leaves: jnp.stack(leaves), force, nan, force, force)
    divergences = jnp.stack([nothing, nothing, nothing, nothing.at[1, 1].set(1.0)])
    found = batch(jnp.array([0.5, 0.5, -1.0, 0.5]), forces, divergences)
    expected = [Status.OK, Status.NONFINITE_INPUT, Status.OUT_OF_RANGE, Status.INCOMPATIBLE_DATA]
    np.testing.assert_array_equal(found.status, expected)
    for leaf in jax.tree.leaves((found.velocity, found.pressure)):
        np.testing.assert_array_equal(np.isnan(leaf).all((1, 2)), [False, True, True, False])
    assert float(found.stats.compatibility_defect[3]) == pytest.approx(1)
    # the rest of the data was solved
    balanced = _small(operators.replace(viscosity=jnp.asarray(0.5)), force, nothing.at[1, 1].set(1.0) - 1 / 64)
    np.testing.assert_allclose(found.velocity.u[3], balanced.velocity.u, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        operators.divergence(balanced.velocity), 1 / 64 - nothing.at[1, 1].set(1.0), rtol=0, atol=1e-12
    )
    short = _small(operators, force, nothing, method="schur_cg", max_steps=2)
    assert (int(short.status), int(short.stats.iterations)) == (Status.NOT_CONVERGED, 2)
    exact = _small(operators, force, nothing).velocity.u
    assert float(jnp.linalg.norm(short.velocity.u - exact)) < 0.5 * float(jnp.linalg.norm(exact))


def test_a_factor_serves_many_right_hand_sides_and_viscosities():
    operators = _square(8)
    factor = stokes.factorize(operators)
    forces = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(_random(operators, seed) for seed in range(3)))
    many = jax.jit(jax.vmap(lambda force: stokes.solve(operators, force, factor=factor)))(forces)
    for seed in range(3):
        alone = _small(operators, _random(operators, seed), jnp.zeros((8, 8)))
        np.testing.assert_allclose(many.velocity.v[seed], alone.velocity.v, rtol=0, atol=1e-14)
    viscosities = jnp.array([0.01, 1.0, 30.0])
    scaled = jax.vmap(lambda nu: _small(operators.replace(viscosity=nu), _random(operators), jnp.zeros((8, 8))))
    products = scaled(viscosities).velocity.u * viscosities[:, None, None]
    np.testing.assert_allclose(products, np.broadcast_to(products[1], products.shape), rtol=1e-12)


def _objective(parameters):
    """Of a scale of the force, the speed of the lid, the viscosity, the drag and the height of the box."""
    scale, lid, nu, drag, height = parameters
    grid, boundary = Grid((4, 4), (0.0, 0.0), (1.0, height)), Boundary()
    porous = drag * jnp.asarray(np.random.default_rng(1).uniform(size=(4, 4)))
    operators = stokes.discretize(grid, boundary, viscosity=nu, inverse_permeability=porous)
    values = stokes.boundary_values(grid, boundary).set("y", "upper", tangential=lid)
    force = jax.tree.map(lambda part: scale * part, _random(operators))
    solution = stokes.solve(operators, force, boundary_values=values, rtol=1e-13)
    return jnp.sum(solution.velocity.u**3) + jnp.sum(solution.pressure**2) + jnp.sum(solution.velocity.v)


def test_first_and_second_derivatives_against_differences():
    at, step = jnp.array([1.0, 1.3, 0.7, 2.0, 0.9]), 1e-4
    gradient = jax.jit(jax.value_and_grad(_objective), compiler_options=QUICK)
    slopes = gradient(at)[1]
    sides = [[gradient(at + sign * step * unit) for sign in (1, -1)] for unit in jnp.eye(5)]
    differences = jnp.stack([(up[0] - down[0]) / (2 * step) for up, down in sides])
    np.testing.assert_allclose(slopes, differences, rtol=1e-5)
    hessian = jax.jit(jax.jacfwd(jax.grad(_objective)), compiler_options=QUICK)(at)
    differences = jnp.stack([(up[1] - down[1]) / (2 * step) for up, down in sides])
    np.testing.assert_allclose(hessian, differences, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(hessian))))
    np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-8 * float(jnp.max(jnp.abs(hessian))))
