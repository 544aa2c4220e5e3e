import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm import Status
from jaxnm.first_order import hessian_spectrum
from jaxnm.first_order.hessian import _hessian_spectrum


def test_a_quadratic_gives_its_matrix():
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    hessian = jnp.asarray(root @ root.T)

    def loss(params):
        vector = jnp.concatenate([params["a"], params["b"].ravel()])
        return 0.5 * vector @ hessian @ vector

    spectrum = hessian_spectrum(loss, {"a": jnp.ones(1), "b": jnp.ones((2, 2))})
    np.testing.assert_allclose(spectrum.eigenvalues, np.linalg.eigvalsh(hessian), rtol=1e-10, atol=1e-13)
    assert float(spectrum.mu) == float(spectrum.eigenvalues[0])
    assert float(spectrum.L) == float(spectrum.eigenvalues[-1])
    assert int(spectrum.status) == Status.OK


def test_logistic_regression_against_its_closed_form():
    """X^T diag(p (1 - p)) X / m + regularization."""
    random = np.random.default_rng(0)
    X, y, w = random.normal(size=(40, 3)), random.integers(0, 2, 40) * 1.0, random.normal(size=3)
    loss = lambda w: jnp.mean(jnp.logaddexp(0, X @ w) - y * (X @ w)) + 0.005 * w @ w
    p = 1 / (1 + np.exp(-X @ w))
    expected = np.linalg.eigvalsh(X.T * (p * (1 - p)) @ X / 40 + 0.01 * np.eye(3))
    np.testing.assert_allclose(hessian_spectrum(loss, jnp.asarray(w)).eigenvalues, expected, rtol=1e-10)


def test_an_asymmetric_hessian_is_said():
    """A wrong custom derivative: grad f = (y, 0) instead of (y, x)."""

    @jax.custom_jvp
    def product(v):
        return v[0] * v[1]

    product.defjvp(lambda primals, tangents: (product(*primals), primals[0][1] * tangents[0][0]))
    spectrum = hessian_spectrum(lambda v: product(v) + v @ v, jnp.ones(2))
    assert int(spectrum.status) == Status.NOT_SYMMETRIC
    assert float(spectrum.asymmetry) > 0.1


def test_a_hessian_that_is_not_finite_is_said():
    spectrum = hessian_spectrum(lambda v: jnp.sum(jnp.sqrt(v)), jnp.zeros(3))
    assert int(spectrum.status) == Status.NONFINITE_INPUT
    assert bool(jnp.all(jnp.isnan(spectrum.eigenvalues)))


def test_new_data_in_a_partial_do_not_recompile():
    loss = lambda scale, x: scale * x @ x
    before = _hessian_spectrum._cache_size()
    for scale in (1.0, 2.0, 3.0):
        spectrum = hessian_spectrum(jax.tree_util.Partial(loss, jnp.asarray(scale)), jnp.ones(2))
        assert float(spectrum.L) == 2 * scale
    assert _hessian_spectrum._cache_size() == before + 1


def test_differentiable_in_the_data():
    loss = lambda scale, x: scale * x[0] ** 2 + x[1] ** 4
    check_grads(
        lambda scale: hessian_spectrum(jax.tree_util.Partial(loss, scale), jnp.ones(2)).L, (jnp.asarray(8.0),), order=1
    )


@pytest.mark.parametrize(
    ("loss", "params", "error", "message"),
    [
        (lambda x: jnp.sum(x), jnp.arange(3), TypeError, "params is of dtypes"),
        (lambda x: x, jnp.ones(3), TypeError, "the value of loss"),
        (lambda x: jnp.sum(x), jnp.zeros(0), ValueError, "without parameters"),
        (lambda x: 0.0, {}, ValueError, "without parameters"),
        (lambda x: jnp.sum(x.real), jnp.ones(3, complex), TypeError, "float32 or float64"),
        (lambda x: jnp.sum(x > 0), jnp.ones(3), TypeError, "the value of loss"),
    ],
)
def test_wrong_arguments(loss, params, error, message):
    with pytest.raises(error, match=f"hessian_spectrum: .*{message}"):
        hessian_spectrum(loss, params)
