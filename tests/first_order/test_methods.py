"""Each method against its recursion, written out by hand, and against published rates."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import first_order

CURVATURES = np.array([0.1, 0.4, 1.0])
MU, L = 0.1, 1.0


def _run(method, steps):
    """x_k of the state-space form on the quadratic with the curvatures above, from state (1, 1, ...) or (1, 0)."""
    A, B, C = (np.asarray(x) for x in (method.A, method.B, method.C))
    return lambda z0: _iterate(A, B, C, z0, steps)


def _iterate(A, B, C, z0, steps):
    z, xs = np.array(z0, float), []
    for _ in range(steps):
        g = CURVATURES * (C @ z)
        z = A @ z + np.outer(B, g)
        xs.append(z[0])
    return np.array(xs)


def _two_step(next_x, steps=12):
    before = now = np.ones(3)
    xs = []
    for _ in range(steps):
        before, now = now, next_x(now, before)
        xs.append(now)
    return np.array(xs)


def _gradient(x):
    return CURVATURES * x


a, b, c = 0.5, 0.3, 0.2
TWO_STEP = {
    "gradient_descent": (first_order.gradient_descent(a), lambda x, w: x - a * _gradient(x)),
    "heavy_ball": (first_order.heavy_ball(a, b), lambda x, w: x - a * _gradient(x) + b * (x - w)),
    "nesterov": (
        first_order.nesterov(a, b),
        lambda x, w: (x + b * (x - w)) - a * _gradient(x + b * (x - w)),
    ),
    "three_parameter": (
        first_order.three_parameter(a, b, c),
        lambda x, w: x + b * (x - w) - a * _gradient(x + c * (x - w)),
    ),
}


@pytest.mark.parametrize("name", TWO_STEP)
def test_two_step_methods_are_their_recursions(name):
    method, recursion = TWO_STEP[name]
    ones = np.ones((method.num_states, 3))
    np.testing.assert_allclose(_run(method, 12)(ones), _two_step(recursion), rtol=1e-13)


def test_quasi_hyperbolic_is_its_recursion():
    step, momentum, nu = 0.5, 0.9, 0.7
    x, average, xs = np.ones(3), np.zeros(3), []
    for _ in range(12):
        g = _gradient(x)
        average = momentum * average + (1 - momentum) * g
        x = x - step * ((1 - nu) * g + nu * average)
        xs.append(x)
    method = first_order.quasi_hyperbolic(step, momentum, nu)
    np.testing.assert_allclose(_run(method, 12)([np.ones(3), np.zeros(3)]), xs, rtol=1e-13)


def test_optimistic_gradient_is_its_recursion_and_has_its_closed_form_rate():
    x, before, xs = np.ones(3), np.zeros(3), []
    for _ in range(12):
        g = _gradient(x)
        x, before = x - 2 * a * g + a * before, g
        xs.append(x)
    method = first_order.optimistic_gradient(a)
    np.testing.assert_allclose(_run(method, 12)([np.ones(3), np.zeros(3)]), xs, rtol=1e-13)
    s = a * CURVATURES
    radii = first_order.spectral_radius(first_order.iteration_matrix(method, jnp.asarray(CURVATURES)))
    np.testing.assert_allclose(radii, (np.abs(1 - 2 * s) + np.sqrt(1 + 4 * s**2)) / 2, rtol=1e-14)


@pytest.mark.parametrize("kappa", [2.0, 10.0, 100.0, 1e4])
def test_optimal_parameters_reach_their_published_rates(kappa):
    mu, root = 1 / kappa, np.sqrt(kappa)
    published = {
        first_order.optimal_gradient_descent: (kappa - 1) / (kappa + 1),
        first_order.optimal_heavy_ball: (root - 1) / (root + 1),
        first_order.optimal_gauss_seidel_nesterov: (root - 1) / (root + 1),
        first_order.optimal_nesterov: 1 - 1 / root,
        first_order.triple_momentum: 1 - 1 / root,
    }
    for build, rate in published.items():
        # at the ends of the interval the optimal blocks have double roots, known to sqrt(eps) and no better
        assert float(first_order.quadratic_rate(build(mu, 1.0), mu, 1.0)) == pytest.approx(rate, rel=1e-7)


def test_gauss_seidel_at_its_optimum_is_the_optimal_heavy_ball():
    for kappa in (2.0, 20.0, 1e4):
        ours = first_order.optimal_gauss_seidel_nesterov(1 / kappa, 1.0)
        theirs = first_order.optimal_heavy_ball(1 / kappa, 1.0)
        np.testing.assert_allclose(ours.A, theirs.A, atol=1e-14)
        np.testing.assert_allclose(ours.B, theirs.B, rtol=1e-13, atol=0)


def test_robust_momentum_ends_at_triple_momentum_and_holds_its_rate_on_quadratics():
    lower = 1 - np.sqrt(MU / L)
    robust, triple = first_order.robust_momentum(lower, MU, L), first_order.triple_momentum(MU, L)
    for ours, theirs in zip((robust.A, robust.B, robust.C), (triple.A, triple.B, triple.C), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    for rho in (0.7, 0.8, 0.9):
        assert float(first_order.quadratic_rate(first_order.robust_momentum(rho, MU, L), MU, L)) <= rho * (1 + 1e-8)


def test_equal_curvatures_are_no_special_case():
    for build in (
        first_order.optimal_gradient_descent,
        first_order.optimal_heavy_ball,
        first_order.optimal_nesterov,
        first_order.triple_momentum,
        first_order.optimal_gauss_seidel_nesterov,
        lambda mu, L: first_order.robust_momentum(0.0, mu, L),
    ):
        assert float(first_order.quadratic_rate(build(2.0, 2.0), 2.0, 2.0)) == pytest.approx(0, abs=1e-7)


def test_chebyshev_of_the_second_kind_is_right():
    """The table used for crossings, against sin(k theta) / sin(theta)."""
    from jaxnm.first_order.rates import _second_kind_chebyshev

    theta = np.linspace(0.1, 3.0, 9)
    for k, row in enumerate(_second_kind_chebyshev(5), start=1):
        values = np.polyval(row[::-1], np.cos(theta))
        np.testing.assert_allclose(values, np.sin(k * theta) / np.sin(theta), atol=1e-13)
