"""Numerical radius, resolvents and pseudospectra against closed forms and dense scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm.first_order import (
    iteration_matrix,
    kreiss_constant,
    numerical_radius,
    optimal_heavy_ball,
    pseudospectrum,
    resolvent_norm,
    transient_growth,
)

_random = np.random.default_rng(0)
_radius = jax.jit(numerical_radius)


def _scan(matrix):
    angles = np.exp(1j * np.linspace(0, 2 * np.pi, 4001))[:, None, None]
    hermitian = (angles * matrix + (angles * matrix).conj().swapaxes(-1, -2)) / 2
    return np.linalg.eigvalsh(hermitian)[:, -1].max()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_numerical_radius_encloses_a_scan(n):
    for kind in range(2):
        matrix = _random.normal(size=(10, n, n)) + (1j * _random.normal(size=(10, n, n)) if kind else 0)
        value, above = (np.asarray(x) for x in _radius(jnp.asarray(matrix)))
        scan = np.array([_scan(one) for one in matrix])
        # a scan of 4001 angles is below the maximum by at most half a squared angle
        assert (value >= scan * (1 - 1e-12)).all()
        assert (scan >= value * (1 - 2e-6)).all()
        assert (above >= value).all()
        assert (above <= value * (1 + 8e-5)).all()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_jordan_blocks_at_zero_have_a_disc_of_known_radius(n):
    """cos(pi / (n + 1)): every direction ties, the worst case for the upper bound."""
    value, above = numerical_radius(jnp.eye(n, k=1))
    assert float(value) == pytest.approx(np.cos(np.pi / (n + 1)), rel=1e-12)
    assert float(value) <= float(above) <= float(value) * (1 + 8e-5)


def test_units_change_no_numerical_radius():
    for dtype, sizes in (("float64", [1.0, 1e160, 1e-160, 1e300]), ("float32", [1.0, 1e25, 1e-22, 1e37])):
        sizes = np.asarray(sizes)
        value, above = numerical_radius(jnp.asarray(sizes[:, None, None] * np.eye(2, k=1), dtype))
        np.testing.assert_allclose(value, sizes / 2, rtol=20 * np.finfo(dtype).eps)
        np.testing.assert_allclose(above, sizes / 2, rtol=8e-5)


def test_two_by_two_ranges_are_ellipses():
    """[[a, c], [0, b]] has foci a, b and minor axis |c|; on a positive real axis w = (a + b) / 2 + half major axis."""
    for a, b, c in [(0.5, 0.2, 1.0), (1.0, 1.0, 3.0), (0.9, 0.1, 0.0)]:
        value = float(numerical_radius(jnp.array([[a, c], [0.0, b]])).value)
        assert value == pytest.approx((a + b) / 2 + np.hypot(a - b, c) / 2, rel=1e-12)


def test_normal_matrices_have_their_spectral_radius():
    rotation = np.linalg.qr(_random.normal(size=(4, 4)))[0]
    normal = rotation @ np.diag([0.3, -0.8, 0.5, 0.1]) @ rotation.T
    value, above = numerical_radius(jnp.asarray(normal))
    assert float(value) == pytest.approx(0.8, rel=1e-12)
    assert float(above) == pytest.approx(0.8, rel=1e-9)


def test_numerical_radius_is_differentiable_and_flags_what_is_not_finite():
    matrix = jnp.asarray(_random.normal(size=(2, 2)))
    check_grads(lambda m: numerical_radius(m).value, (matrix,), order=1)
    batch = jnp.stack([matrix, jnp.full((2, 2), jnp.inf)])
    value, above = _radius(batch)
    np.testing.assert_array_equal(np.isnan(value), [False, True])
    np.testing.assert_array_equal(np.isnan(above), [False, True])


def test_resolvent_and_pseudospectrum_in_closed_form():
    """Of a normal matrix: the distance to the spectrum. Of [[0, c], [0, 0]]: the norm of I / z + N / z^2."""
    normal = jnp.diag(jnp.array([1.0, -0.5]))
    z = _random.normal(size=(3, 5)) + 1j * _random.normal(size=(3, 5))
    distance = np.minimum(abs(z - 1), abs(z + 0.5))
    np.testing.assert_allclose(pseudospectrum(normal, jnp.asarray(z)), distance, rtol=1e-12)
    np.testing.assert_allclose(resolvent_norm(normal, jnp.asarray(z)), 1 / distance, rtol=1e-12)
    c, r = 3.0, 0.7
    expected = c / (2 * r**2) + np.sqrt(c**2 / (4 * r**4) + 1 / r**2)
    assert float(resolvent_norm(jnp.array([[0.0, c], [0.0, 0.0]]), r)) == pytest.approx(expected, rel=1e-12)
    assert float(resolvent_norm(normal, 1.0)) == np.inf


def test_resolvent_arguments():
    with pytest.raises(ValueError, match=r"pseudospectrum: matrix is of shape \(2, 2, 2\)"):
        pseudospectrum(jnp.ones((2, 2, 2)), jnp.ones(1))
    with pytest.raises(TypeError, match="grid is of dtype int"):
        pseudospectrum(jnp.eye(2), jnp.arange(3))
    assert bool(jnp.all(jnp.isnan(pseudospectrum(jnp.full((2, 2), jnp.nan), jnp.ones(3)))))
    np.testing.assert_array_equal(jnp.isnan(pseudospectrum(jnp.eye(2), jnp.array([jnp.nan, 0.5]))), [True, False])


_kreiss = jax.jit(kreiss_constant)


@pytest.mark.parametrize("c", [1.0, 10.0, 1e3, 1e6])
def test_kreiss_constant_of_a_nilpotent_block(c):
    """[[0, c], [0, 0]]: sup (r - 1) (c / (2 r^2) + sqrt(c^2 / (4 r^4) + 1 / r^2)), a maximum in one variable."""
    term = lambda r: (r - 1) * (c / (2 * r**2) + np.sqrt(c**2 / (4 * r**4) + 1 / r**2))
    r = 1 + np.geomspace(1e-3, 1e9, 400_001)
    expected = max(1.0, term(r).max())
    value, above = _kreiss(jnp.array([[0.0, c], [0.0, 0.0]]))
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(value) <= float(above) <= float(value) * (1 + 1e-6)
    assert float(above) >= expected * (1 - 1e-9)


@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [2, 3])
def test_kreiss_constant_encloses_a_dense_scan_and_obeys_the_matrix_theorem(n):
    """K <= sup_k |M^k| <= e n K, and no point of a fine polar grid is above the upper bound."""
    matrices = _random.normal(size=(8, n, n))
    matrices *= (0.95 / np.abs(np.linalg.eigvals(matrices)).max(-1))[:, None, None]
    matrices[4:, 0, 1] += 5.0
    matrices[4:] *= (0.95 / np.abs(np.linalg.eigvals(matrices[4:])).max(-1))[:, None, None]
    value, above = (np.asarray(x) for x in _kreiss(jnp.asarray(matrices)))
    growth = np.asarray(transient_growth(jnp.asarray(matrices), 300).peak)
    assert (above <= value * (1 + 1e-5)).all()
    assert (value <= growth * (1 + 1e-6)).all()
    assert (growth <= np.e * n * above).all()
    assert value.max() > 1.2
    radii = 1 + np.geomspace(1e-4, 1e2, 120)
    z = (radii[:, None] * np.exp(1j * np.linspace(-np.pi, np.pi, 401))).ravel()
    for matrix, lower, upper in zip(matrices, value, above, strict=True):
        smallest = np.linalg.svd(z[:, None, None] * np.eye(n) - matrix, compute_uv=False)[:, -1]
        scan = max(1, ((np.abs(z) - 1) / smallest).max())
        assert scan <= upper * (1 + 1e-9)
        assert scan >= lower * (1 - 2e-2)


@pytest.mark.exhaustive
def test_kreiss_constant_of_normal_unbounded_and_bad_matrices():
    batch = jnp.stack([jnp.diag(jnp.array([0.5, -0.9])), 2 * jnp.eye(2), jnp.full((2, 2), jnp.nan), jnp.eye(2)])
    value, above = _kreiss(batch)
    assert float(value[0]) == pytest.approx(1, rel=1e-6)
    assert float(above[0]) == pytest.approx(1, rel=1e-6)
    np.testing.assert_array_equal(value[1:3], [np.inf, np.nan])
    np.testing.assert_array_equal(above[1:], [np.inf, np.nan, np.inf])
    assert float(value[3]) == pytest.approx(1, rel=1e-6)


def test_kreiss_constant_grows_like_the_transient_of_heavy_ball():
    """Condition 10^2 and 10^4: the transient is between K and 2 e K, and both grow by the square root of 100."""
    constants, peaks = [], []
    for kappa in (1e2, 1e4):
        block = iteration_matrix(optimal_heavy_ball(1 / kappa, 1.0), 1 / kappa)
        constants.append(float(_kreiss(block).value))
        peaks.append(float(transient_growth(block, 300).peak))
        assert constants[-1] <= peaks[-1] <= 2 * np.e * constants[-1]
    assert constants[1] / constants[0] == pytest.approx(10, rel=0.05)
    assert peaks[1] / peaks[0] == pytest.approx(10, rel=0.05)


def test_derivatives_that_do_not_exist_raise():
    matrix = jnp.array([[0.5, 0.3], [0.0, 0.4]])
    with pytest.raises(TypeError, match="kreiss_constant: the matrix is differentiated"):
        jax.make_jaxpr(jax.grad(lambda m: kreiss_constant(m).value))(matrix)
    with pytest.raises(TypeError, match="numerical_radius: the gradient is differentiated"):
        jax.make_jaxpr(jax.hessian(lambda m: numerical_radius(m).value))(matrix)


def test_the_upper_bound_moves_with_the_value():
    matrix = jnp.array([[0.5, 0.3], [-0.1, 0.4]])
    value, bound = jax.jacobian(numerical_radius)(matrix)
    np.testing.assert_allclose(bound, value, rtol=1e-12)


def test_kreiss_constant_in_float32():
    value, above = kreiss_constant(jnp.array([[0.0, 10.0], [0.0, 0.0]], jnp.float32))
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(2.6, rel=1e-3)
    assert float(value) <= float(above) <= 2.6 * (1 + 5e-3)
