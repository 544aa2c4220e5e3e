import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm import Status
from jaxnm.first_order import analyze, hessian_spectrum, optimal_heavy_ball
from jaxnm.first_order.hessian import _dense
from tests.compilation import QUICK


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
    before = _dense._cache_size()
    for scale in (1.0, 2.0, 3.0):
        spectrum = hessian_spectrum(jax.tree_util.Partial(loss, jnp.asarray(scale)), jnp.ones(2))
        assert float(spectrum.L) == 2 * scale
    assert _dense._cache_size() == before + 1


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


def _network_loss(inputs, targets, params):
    """Mean square error of a network with one hidden layer, and a little regularization."""
    outputs = jnp.tanh(inputs @ params["in"] + params["bias"][None]) @ params["out"]
    return jnp.mean((outputs - targets) ** 2) + 0.005 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def _network():
    keys = jax.random.split(jax.random.key(1), 5)
    params = {
        "in": jax.random.normal(keys[0], (6, 10)) / 2,
        "bias": jax.random.normal(keys[1], (10,)),
        "out": jax.random.normal(keys[2], (10, 1)) / 3,
    }
    data = jax.random.normal(keys[3], (60, 6)), jax.random.normal(keys[4], (60, 1))
    return jax.tree_util.Partial(_network_loss, *data), params


@functools.cache
def _both_spectra():
    loss, params = _network()
    options = {"method": "lanczos", "key": jax.random.key(0), "num_steps": 40, "num_probes": 30}
    lanczos = jax.jit(lambda params: hessian_spectrum(loss, params, **options), compiler_options=QUICK)
    return hessian_spectrum(loss, params), lanczos(params)


@pytest.mark.exhaustive
def test_lanczos_on_a_network_against_its_dense_hessian():
    dense, ours = _both_spectra()
    assert dense.dimension == ours.dimension == 80
    assert int(ours.status) == Status.OK
    np.testing.assert_allclose([ours.mu, ours.L], [dense.mu, dense.L], rtol=1e-10)
    assert float(ours.lower_bound) <= float(dense.mu) * (1 + 1e-12)
    assert float(ours.upper_bound) >= float(dense.L) * (1 - 1e-12)
    assert ours.eigenvalues.shape == ours.weights.shape == (30 * 40 + 2,)
    assert bool(jnp.all(jnp.diff(ours.eigenvalues) >= 0))
    for spectrum in (dense, ours):
        assert float(jnp.sum(spectrum.weights)) == pytest.approx(1, rel=1e-12)
    for power in (1, 2):
        exact = float(jnp.mean(dense.eigenvalues**power))
        deviation = float(jnp.std(dense.eigenvalues**power)) * np.sqrt(2 / 80 / 30)
        assert float(jnp.sum(ours.weights * ours.eigenvalues**power)) == pytest.approx(exact, abs=4 * deviation)


@pytest.mark.exhaustive
def test_a_card_from_ritz_values_is_the_card_of_all_curvatures():
    dense, ours = _both_spectra()
    method = optimal_heavy_ball(0.5 * float(dense.L), float(dense.L))
    exact, estimated = analyze(method, dense), analyze(method, ours)
    assert float(estimated.rate) == pytest.approx(float(exact.rate), rel=1e-8)
    assert float(estimated.schur_fraction) == pytest.approx(float(exact.schur_fraction), abs=0.05)
    # nodes are some (L - mu) / num_steps apart, and curvatures nearer to zero than that may be counted on either side
    spacing = float(dense.L - dense.mu) / 40
    below = [int(jnp.sum(dense.eigenvalues < side * spacing)) for side in (-1, 1)]
    assert below[0] - 4 <= int(estimated.negative_directions) <= below[1] + 4
    assert "80 curvatures, known by 1,202 Ritz values" in str(estimated)


@pytest.mark.exhaustive
def test_the_ends_are_differentiable_by_lanczos():
    inputs = _network()[0].args
    params = _network()[1]

    def largest(scale, **options):
        return hessian_spectrum(jax.tree_util.Partial(_network_loss, scale * inputs[0], inputs[1]), params, **options).L

    lanczos = {"method": "lanczos", "key": jax.random.key(0), "num_probes": 1}
    slope = jax.jit(jax.grad(lambda scale: largest(scale, **lanczos)), compiler_options=QUICK)
    np.testing.assert_allclose(slope(1.0), jax.grad(largest)(1.0), rtol=1e-6)


def test_lanczos_wants_a_key_and_a_known_method():
    with pytest.raises(ValueError, match=r"hessian_spectrum: key is None"):
        hessian_spectrum(lambda x: x @ x, jnp.ones(3), method="lanczos")
    with pytest.raises(ValueError, match=r"hessian_spectrum: method is 'power'"):
        hessian_spectrum(lambda x: x @ x, jnp.ones(3), method="power")
