import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm import linalg
from tests.compilation import QUICK

EPS = np.finfo(float).eps

FACTORIZATIONS = {
    "svd": lambda a: linalg.svd(a).singular_values,
    "svd_vectors": lambda a: linalg.svd(a).left,
    "qr": lambda a: linalg.qr(a).triangular,
    "eigh": lambda a: linalg.eigh(a).values,
    "cholesky": linalg.cholesky,
    "solve": lambda a: linalg.solve(a, jnp.ones((*a.shape[:-1], 1), a.dtype)),
}
_jitted = {name: jax.jit(function) for name, function in FACTORIZATIONS.items()}


def _positive(n, dtype=np.float64, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return jnp.asarray(a @ a.T + n * np.eye(n) + np.diag(np.arange(n)), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_residuals_are_rounding(n, dtype):
    """LAPACK's testing ratios, |A - factors| / (n eps |A|), below 10."""
    a = np.asarray(_positive(n, dtype), np.float64)
    u, s, vh = (np.asarray(x, np.float64) for x in linalg.svd(jnp.asarray(a, dtype)))
    q, r = (np.asarray(x, np.float64) for x in linalg.qr(jnp.asarray(a, dtype)))
    values, vectors = (np.asarray(x, np.float64) for x in linalg.eigh(jnp.asarray(a, dtype)))
    lower = np.asarray(linalg.cholesky(jnp.asarray(a, dtype)), np.float64)
    x = np.asarray(linalg.solve(jnp.asarray(a, dtype), jnp.eye(n, dtype=dtype)), np.float64)
    unit = 10 * n * np.finfo(dtype).eps * np.linalg.norm(a)
    for product in (u * s @ vh, q @ r, vectors * values @ vectors.T, lower @ lower.T):
        assert np.linalg.norm(product - a) < unit
    assert np.linalg.norm(a @ x - np.eye(n)) < unit * np.linalg.norm(x)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_one_bad_member_is_nan_and_alone(name, bad):
    """An inf on the diagonal of a 3 x 3 matrix is what plain svd never returns from."""
    good = np.stack([_positive(3, seed=seed) for seed in range(3)])
    batch = good.copy()
    batch[1, 0, 0] = bad
    result = np.asarray(_jitted[name](jnp.asarray(batch)))
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[[0, 2]], np.asarray(_jitted[name](jnp.asarray(good)))[[0, 2]])


@pytest.mark.parametrize("name", ["svd", "qr", "eigh", "cholesky", "solve"])
def test_gradient_of_a_bad_member_is_nan_and_stays_there(name):
    batch = np.stack([_positive(3, seed=seed) for seed in range(3)])
    batch[1, 2, 2] = np.inf
    total = lambda a: jnp.sum(jnp.ravel(FACTORIZATIONS[name](a)))
    reverse = np.asarray(jax.grad(total)(jnp.asarray(batch)))
    forward = jax.jvp(FACTORIZATIONS[name], (jnp.asarray(batch),), (jnp.ones_like(batch),))[1]
    for derivative in (reverse, np.asarray(forward)):
        assert np.isnan(derivative[1]).all()
        assert np.isfinite(derivative[[0, 2]]).all()


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_derivatives_agree_with_differences(name):
    check_grads(FACTORIZATIONS[name], (_positive(3),), order=2, atol=1e-5, rtol=1e-5)


def test_solve_with_a_zero_pivot_is_nan_for_that_member_only():
    batch = jnp.stack([jnp.eye(2), jnp.zeros((2, 2)), 2 * jnp.eye(2)])
    x = linalg.solve(batch, jnp.ones((2, 1)))
    assert bool(jnp.all(jnp.isnan(x[1])))
    np.testing.assert_array_equal(x[0], 1)
    np.testing.assert_array_equal(x[2], 0.5)


def test_cholesky_of_an_indefinite_matrix_is_nan():
    assert bool(jnp.all(jnp.isnan(linalg.cholesky(jnp.diag(jnp.array([1.0, -1.0]))))))


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_safe_norm_neither_overflows_nor_underflows(scale):
    x = scale * jnp.array([3.0, -4.0])
    assert float(linalg.safe_norm(x)) == pytest.approx(5 * scale, rel=1e-15)
    np.testing.assert_allclose(jax.grad(linalg.safe_norm)(x), [0.6, -0.8], rtol=1e-15)


@pytest.mark.exhaustive
def test_safe_norm_at_zero_complex_empty_and_along_an_axis():
    np.testing.assert_array_equal(jax.grad(linalg.safe_norm)(jnp.zeros(3)), 0)
    np.testing.assert_array_equal(jax.hessian(linalg.safe_norm)(jnp.zeros(2)), 0)
    assert float(linalg.safe_norm(jnp.array([3j, 4.0 + 0j]))) == 5
    assert float(linalg.safe_norm(jnp.zeros(0))) == 0
    np.testing.assert_allclose(linalg.safe_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]]), axis=0), [5, 0])
    check_grads(linalg.safe_norm, (jnp.array([0.3, -2.0, 1.0]),), order=2)


SCALES = jnp.asarray([1e-160, 1.0, 1e160])


def test_second_derivatives_in_any_units():
    """The Hessian of a value of degree one is of degree minus one (jax #40185: NaN by plain svd)."""
    a = np.random.default_rng(0).normal(size=(3, 3))
    x = jnp.asarray([3.0, -4.0])

    def hessians(scale):
        largest = lambda a: linalg.svd(a).singular_values[0] + linalg.eigh(a).values[0]
        return scale * jax.hessian(largest)(scale * a), scale * jax.hessian(linalg.safe_norm)(scale * x)

    found = jax.jit(jax.vmap(hessians), compiler_options=QUICK)(SCALES)
    largest = lambda a: jnp.linalg.svd(a, full_matrices=False)[1][0] + jnp.linalg.eigh(a)[0][0]
    np.testing.assert_allclose(found[0][1], jax.jit(jax.hessian(largest))(a), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[1][1], np.array([[16, 12], [12, 9]]) / 125, rtol=1e-14)
    for hessian in found:
        np.testing.assert_allclose(hessian, np.broadcast_to(hessian[1], hessian.shape), rtol=0, atol=1e-14)


@pytest.mark.parametrize("values", [[0.7, 0.7, 0.7], [1.0, 1.0, 2.0], [1.0, 1 + 1e-9, 2.0], [0.5, 1.0, 2.0]])
def test_smooth_symmetric_functions_have_two_derivatives_where_values_repeat(values):
    """Sum of square roots by its closed form (jax #21896), and the squares of singular values."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a = (q * values) @ q.T
    total = lambda a: jnp.sum(jnp.sqrt(linalg.eigh(a).values))
    squares = lambda a: jnp.sum(linalg.svd(a).singular_values ** 2)
    both = lambda a: (jax.hessian(total)(a), jax.hessian(squares)(a), jax.grad(total)(a))
    ours, of_squares, first = jax.jit(both, compiler_options=QUICK)(jnp.asarray(a))
    # in the basis of the vectors, the first divided differences of the derivative 1 / (2 sqrt(x))
    root = np.sqrt(values)
    slopes = -1 / (2 * root * root[:, None] * (root + root[:, None]))
    one = np.einsum("ai,bj,ij,ci,dj->abcd", q, q, slopes, q, q)
    np.testing.assert_allclose(ours, (one + one.swapaxes(2, 3)) / 2, rtol=0, atol=10 * np.sqrt(EPS))
    np.testing.assert_allclose(of_squares.reshape(9, 9), 2 * np.eye(9), rtol=0, atol=10 * np.sqrt(EPS))
    np.testing.assert_allclose(first, (q / (2 * root)) @ q.T, rtol=0, atol=100 * EPS)


@pytest.mark.exhaustive
def test_derivatives_of_factors_of_rectangular_and_complex_matrices():
    """Gauge-free functions of the factors, against differences; entries of size 1e-160 as those of size one."""
    random = np.random.default_rng(2)
    for shape in ((4, 2), (2, 4)):
        a = jnp.asarray(random.normal(size=shape) + 1j * random.normal(size=shape))
        weights = jnp.asarray(random.normal(size=(2, *shape)))

        def projected(a, weights=weights):
            left, values, right = linalg.svd(a)
            return (
                jnp.sum(weights[0] * jnp.abs(left[:, :1] * values[0].astype(left.dtype) @ right[:1]) ** 2) + values[1]
            )

        check_grads(projected, (a,), order=1, atol=1e-6, rtol=1e-6)


def test_precision_can_be_relaxed():
    text = jax.jit(lambda a: linalg.matmul(a, a, precision="default")).lower(jnp.ones((2, 2), jnp.float32)).as_text()
    assert "HIGHEST" not in text
