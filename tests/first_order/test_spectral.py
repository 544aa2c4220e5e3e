import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxnm.first_order import (
    heavy_ball,
    is_stable,
    iteration_matrix,
    optimal_heavy_ball,
    optimal_nesterov,
    spectral_radius,
    state_space,
    transient_growth,
    triple_momentum,
)

_random = np.random.default_rng(0)
_radius = jax.jit(spectral_radius)


def _companion(a, b):
    a, b = np.broadcast_arrays(a, b)
    return np.stack([np.stack([a, b], -1), np.stack([np.ones_like(a), np.zeros_like(a)], -1)], -2)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_agrees_with_lapack(n):
    matrix = _random.normal(size=(500, n, n))
    expected = np.abs(np.linalg.eigvals(matrix)).max(-1)
    np.testing.assert_allclose(_radius(jnp.asarray(matrix)), expected, rtol=1e-11)
    complex_matrix = matrix + 1j * _random.normal(size=matrix.shape)
    expected = np.abs(np.linalg.eigvals(complex_matrix)).max(-1)
    np.testing.assert_allclose(_radius(jnp.asarray(complex_matrix)), expected, rtol=1e-11)


def test_jury_agrees_with_eigenvalues_on_20000_pairs():
    """1 - a - b > 0, 1 + a - b > 0, 1 + b > 0 if and only if the companion block is stable."""
    a, b = _random.uniform(-3, 3, 20_000), _random.uniform(-2, 2, 20_000)
    jury = (1 - a - b > 0) & (1 + a - b > 0) & (1 + b > 0)
    radius = np.asarray(_radius(jnp.asarray(_companion(a, b))))
    np.testing.assert_array_equal(radius < 1, jury)
    np.testing.assert_allclose(radius, np.abs(np.linalg.eigvals(_companion(a, b))).max(-1), rtol=1e-7)
    some = slice(0, 200)
    methods = jax.vmap(
        lambda a, b: state_space(jnp.stack([jnp.stack([a, b]), jnp.array([1.0, 0])]), jnp.zeros(2), jnp.zeros(2))
    )
    stable = jax.vmap(lambda method: is_stable(method, 1.0, 1.0))(methods(jnp.asarray(a[some]), jnp.asarray(b[some])))
    np.testing.assert_array_equal(stable, jury[some])


@settings(max_examples=200, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([1e-250, 1.0, 1e250]))
def test_scaling_and_roots_of_the_characteristic_polynomial(a, b, scale):
    """rho(s M) = s rho(M), and the largest |root| of z^2 - a z - b, to sqrt(eps) at double roots."""
    roots = np.roots([1, -a, -b]) if b or a else np.zeros(2)
    size = 1 + abs(a) + abs(b)
    radius = float(_radius(scale * jnp.asarray(_companion(a, b)))) / scale
    assert abs(radius - np.abs(roots).max(initial=0)) <= 1e-7 * size


@pytest.mark.parametrize("kappa", [2.0, 20.0, 1e4])
def test_double_roots_are_decided_as_double(kappa):
    """The optimal heavy ball has discriminant zero at both ends: its rate is sqrt(momentum), to sqrt(eps)."""
    method = optimal_heavy_ball(1 / kappa, 1.0)
    radii = _radius(iteration_matrix(method, jnp.array([1 / kappa, 1.0])))
    np.testing.assert_allclose(radii, (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1), rtol=1e-7)


@pytest.mark.parametrize(
    "matrix",
    [np.eye(2), np.zeros((2, 2)), np.array([[2.0, -1.0], [1.0, 0.0]]), np.eye(2, k=1), np.eye(3), np.zeros((3, 3))],
)
def test_gradients_are_finite_at_double_roots(matrix):
    assert bool(jnp.all(jnp.isfinite(jax.grad(spectral_radius)(jnp.asarray(matrix)))))


def test_gradient_at_a_double_root_is_that_of_the_complex_side():
    """rho = sqrt(det) there, so d rho / d det = 1 / (2 rho)."""
    gradient = jax.grad(spectral_radius)(jnp.array([[1.0, -0.25], [1.0, 0.0]]))
    np.testing.assert_allclose(gradient, [[0, -1], [0.25, 1]], atol=1e-15)


@pytest.mark.parametrize("n", [2, 3])
def test_derivatives_where_the_dominant_eigenvalue_is_simple(n):
    matrix = jnp.asarray(_random.normal(size=(n, n)))
    check_grads(_radius, (matrix,), order=2, modes=("rev",), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "factors"), [("float64", [1.0, 1e100, 1e160, 1e-160, 1e300]), ("float32", [1.0, 1e18, 1e20, 1e-20, 1e35])]
)
def test_units_of_the_states_change_nothing(dtype, factors):
    """[[.5, 1 / d], [d, .3]] has trace .8 and determinant -.85; alone, beside a third state, and with 1 / d = 0."""
    d = np.asarray(factors)
    blocks = np.zeros((2, len(d), 3, 3))
    blocks[:, :, 0, 0], blocks[:, :, 1, 1], blocks[:, :, 2, 2], blocks[:, :, 1, 0] = 0.5, 0.3, 0.1, d
    blocks[0, :, 0, 1] = 1 / d
    expected = np.broadcast_to([[0.4 + np.sqrt(1.01)], [0.5]], (2, len(d)))
    tolerance = 20 * np.finfo(dtype).eps
    for n in (2, 3):
        matrix = jnp.asarray(blocks[:, :, :n, :n], dtype)
        np.testing.assert_allclose(spectral_radius(matrix), expected, rtol=tolerance)
    slopes = jax.grad(lambda m: jnp.sum(spectral_radius(m)))(jnp.asarray(blocks[0, :, :2, :2], dtype))
    root = np.sqrt(1.01)
    np.testing.assert_allclose(slopes[:, 0, 0], 0.5 + 0.05 / root, rtol=tolerance)
    np.testing.assert_allclose(np.asarray(slopes)[:, 1, 0] * d, 0.5 / root, rtol=tolerance)


def test_non_finite_matrices_are_nan():
    for n in (1, 2, 3):
        matrix = np.stack([np.eye(n), np.full((n, n), np.inf), np.full((n, n), np.nan)])
        np.testing.assert_array_equal(_radius(jnp.asarray(matrix)), [1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("build", "table"),
    [
        (optimal_heavy_ball, {10: (1.455, 1), 100: (3.776, 5), 1e4: (36.80, 50)}),
        (optimal_nesterov, {10: (2.111, 2), 100: (7.034, 9), 1e4: (73.21, 99)}),
        (triple_momentum, {10: (1.603, 2), 100: (4.823, 7), 1e4: (49.76, 69)}),
    ],
)
def test_transient_growth_table(build, table):
    """sup over 107 curvatures and all powers; values computed independently, to four digits."""
    for kappa, (peak, index) in table.items():
        curvatures = jnp.linspace(1 / kappa, 1, 107)
        growth = transient_growth(iteration_matrix(build(1 / kappa, 1.0), curvatures), 200)
        top = int(jnp.argmax(growth.peak))
        assert f"{float(growth.peak[top]):.4g}" == f"{peak:.4g}"
        assert int(growth.index[top]) == index


@pytest.mark.parametrize("n", [1, 2, 3])
def test_transient_growth_against_powers(n):
    matrix = _random.normal(size=(20, n, n)) * 0.6
    growth = transient_growth(jnp.asarray(matrix), 12)
    norms = np.stack([np.linalg.norm(np.linalg.matrix_power(matrix, k), 2, (-2, -1)) for k in range(13)])
    np.testing.assert_allclose(growth.peak, norms.max(0), rtol=1e-12)
    np.testing.assert_array_equal(growth.index, norms.argmax(0))


def test_transient_growth_of_a_jordan_block_and_of_what_overflows():
    """|J^k| with J = [[r, 1], [0, r]] peaks near k = -1 / log r."""
    growth = transient_growth(jnp.array([[0.9, 1.0], [0.0, 0.9]]), 100)
    norms = [np.linalg.norm(np.array([[0.9**k, k * 0.9 ** (k - 1)], [0, 0.9**k]]), 2) for k in range(1, 101)]
    assert float(growth.peak) == pytest.approx(max(norms), rel=1e-12)
    assert int(growth.index) == 1 + int(np.argmax(norms))
    assert float(transient_growth(1e200 * jnp.eye(2), 5).peak) == np.inf
    for bad in (jnp.nan, jnp.inf):
        spoiled = transient_growth(jnp.array([[0.5, bad], [0.0, 0.5]]), 5)
        assert np.isnan(spoiled.peak)
        assert int(spoiled.index) == 0
    still = transient_growth(0.5 * jnp.eye(3), 0)
    assert (float(still.peak), int(still.index)) == (1, 0)


@pytest.mark.exhaustive
def test_transient_growth_is_differentiable():
    check_grads(lambda m: transient_growth(m, 6).peak, (jnp.array([[0.9, 0.7], [-0.1, 0.8]]),), order=2)
    check_grads(lambda a: transient_growth(iteration_matrix(heavy_ball(a, 0.8), 1.0), 6).peak, (0.3,), order=2)
