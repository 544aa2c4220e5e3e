"""Weights and resampling against exact arithmetic and the laws of the number of offspring."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import chi2

from jaxnm.filtering import effective_sample_size, normalize, resample, soft_resample
from jaxnm.filtering.resampling import METHODS
from tests.compilation import QUICK

_WEIGHTS = np.array([0.02, 0.0, 0.25, 0.08, 0.4, 0.11, 0.14])
_SEEDS = 20_000


def _counts(ancestors, num):
    return np.stack([np.bincount(row, minlength=num) for row in np.asarray(ancestors)])


@partial(jax.jit, static_argnums=(1, 2), compiler_options=QUICK)
def _many(log_weights, num, method):
    keys = jax.random.split(jax.random.key(0), _SEEDS)
    return jax.vmap(lambda key: resample(key, log_weights, num, method=method))(keys)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_against_scipy(dtype):
    x = np.random.default_rng(0).normal(size=(3, 5000)).astype(dtype) * 30
    x[0, :10] = -np.inf
    log_weights, log_total = normalize(x)
    exact = logsumexp(x.astype(np.float64), axis=1)
    eps = np.finfo(dtype).eps
    assert log_weights.dtype == log_total.dtype == dtype
    assert np.all(np.abs(np.asarray(log_total, float) - exact) <= 8 * eps * np.abs(exact))
    w = np.exp(x.astype(np.float64) - exact[:, None])
    size = 1 / np.sum(w**2, 1)
    assert np.all(np.abs(np.asarray(effective_sample_size(x), float) - size) <= 200 * eps * size)


def test_weights_far_from_zero_add_up_to_one():
    """Log-weights of -3e7 are exact in float32, their logarithms of sums are not."""
    x = np.float32(-3e7) + 2 * np.arange(-10, 1, dtype=np.float32)
    log_weights = np.asarray(normalize(x)[0], float)
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1, rtol=4 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(log_weights, x.astype(float) - logsumexp(x.astype(float)), atol=3e-6)


def test_weights_that_are_not_finite():
    inf, nan = np.inf, np.nan
    log_weights, log_total = normalize(np.array([[0.0, nan, inf, -inf], [-inf] * 4, [nan] * 4]))
    assert np.array_equal(np.exp(log_weights[0]), [1.0, 0.0, 0.0, 0.0])
    assert np.allclose(log_weights[1:], -np.log(4.0), rtol=1e-15)
    assert np.array_equal(log_total, [0.0, -inf, -inf])
    assert np.array_equal(effective_sample_size(np.array([[0.0, nan], [-inf, -inf]])), [1.0, 2.0])
    gradient = jax.grad(lambda x: jnp.sum(jnp.exp(normalize(x)[0]) * jnp.arange(3.0)) + effective_sample_size(x))
    for x in ([0.0, -inf, 1.0], [-inf, -inf, -inf], [nan, 0.0, inf]):
        assert np.all(np.isfinite(gradient(jnp.array(x))))


def test_sums_of_ten_million_float32_weights():
    """A plain float32 sum in order is off by some 1e-2 here; the total must be right to a few eps."""
    x = np.random.default_rng(0).exponential(size=10_000_000).astype(np.float32)
    exact = np.log(np.sum(np.exp(x, dtype=np.float64)))
    assert abs(float(normalize(jnp.asarray(x))[1]) - exact) <= 8 * np.finfo(np.float32).eps * exact


@pytest.mark.parametrize("method", METHODS)
def test_offspring_are_sorted_and_right_on_average(method):
    """sum_i (mean N_i - N w_i)^2 / variance of the mean is chi-squared; tested at a level of 1e-6 for each particle."""
    num = 7 if method == "killing" else 10
    with np.errstate(divide="ignore"):
        ancestors = _many(jnp.log(_WEIGHTS), num, method)
    assert ancestors.dtype == jnp.int32
    assert np.all(np.diff(ancestors, axis=1) >= 0)
    counts = _counts(ancestors, 7)
    assert np.all(counts.sum(1) == num)
    assert np.all(counts[:, 1] == 0)
    expected, spread = num * _WEIGHTS, counts.std(0)
    scored = spread > 0
    assert np.allclose(counts.mean(0)[~scored], expected[~scored], atol=1e-12)
    deviation = (counts.mean(0) - expected)[scored] / (spread[scored] / np.sqrt(_SEEDS))
    assert np.all(deviation**2 <= chi2.isf(1e-6, 1))


def test_laws_of_the_number_of_offspring():
    """Multinomial counts are binomial; residual keeps whole parts; killing keeps the best."""
    n, expected = 10, 10 * _WEIGHTS
    log_weights = jnp.where(_WEIGHTS > 0, jnp.log(jnp.maximum(_WEIGHTS, 1e-9)), -jnp.inf)
    multinomial = _counts(_many(log_weights, n, "multinomial"), 7)
    covariance = n * (np.diag(_WEIGHTS) - np.outer(_WEIGHTS, _WEIGHTS))
    # the standard error of an empirical covariance is about its scale / sqrt(seeds)
    assert np.all(np.abs(np.cov(multinomial.T) - covariance) <= 6 * np.max(covariance) / np.sqrt(_SEEDS))
    systematic = _counts(_many(log_weights, n, "systematic"), 7)
    assert np.all(np.abs(systematic - expected) < 1)
    stratified = _counts(_many(log_weights, n, "stratified"), 7)
    assert np.all(np.abs(stratified - expected) < 2)
    residual = _counts(_many(log_weights, n, "residual"), 7)
    assert np.all(residual >= np.floor(expected + 1e-9))
    killing = _counts(_many(log_weights, 7, "killing"), 7)
    assert np.all(killing[:, np.argmax(_WEIGHTS)] >= 1)
    # survival by its weight over the largest, or a draw of one's own: at least the former
    survived = np.mean(killing > 0, 0)
    bound = _WEIGHTS / _WEIGHTS.max()
    assert np.all(survived >= bound - 6 * np.sqrt(bound * (1 - bound) / _SEEDS) - 1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_systematic_counts_stay_within_one_at_any_number(dtype):
    """|N_i - N w_i| <= 1 to 1e-3, where a float32 cumulative sum is wrong by 2 and more at 1e7."""
    rng = np.random.default_rng(1)
    for num in (5, 1000, 1_000_000) + ((10_000_000,) if dtype == jnp.float32 else ()):
        log_weights = jnp.asarray(4 * np.log(rng.exponential(size=num)), dtype)
        log_weights = jnp.where(jnp.arange(num) % 9 == 3, -jnp.inf, log_weights)
        ancestors = np.asarray(resample(jax.random.key(num), log_weights))
        w = np.exp(np.asarray(log_weights, np.float64))
        counts = np.bincount(ancestors, minlength=num)
        assert len(counts) == num
        assert not np.any(counts[w == 0])
        assert np.max(np.abs(counts - num * (w / w.sum()))) <= 1 + 1e-3


def test_other_numbers_of_offspring_than_of_particles():
    log_weights = jnp.log(jnp.asarray(np.random.default_rng(0).exponential(size=200)))
    w = np.exp(np.asarray(log_weights)) / np.exp(np.asarray(log_weights)).sum()
    for num in (3, 5000):
        for method in ("systematic", "multinomial"):
            ancestors = np.asarray(resample(jax.random.key(3), log_weights, num, method=method))
            assert ancestors.shape == (num,)
            assert np.all((ancestors >= 0) & (ancestors < 200))
        counts = np.bincount(np.asarray(resample(jax.random.key(4), log_weights, num)), minlength=200)
        assert np.max(np.abs(counts - num * w)) <= 1 + 1e-9


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
def test_weights_without_choice(method):
    """Uniform weights give each particle one, by all methods but the random ones; one particle alone gives all."""
    own = np.arange(100)
    if method in ("systematic", "stratified", "residual", "killing"):
        assert np.array_equal(resample(jax.random.key(0), jnp.zeros(100, jnp.float32), method=method), own)
    alone = jnp.where(jnp.arange(100) == 17, 0.0, -jnp.inf)
    assert np.all(np.asarray(resample(jax.random.key(0), alone, method=method)) == 17)
    nothing = resample(jax.random.key(0), jnp.full(100, -jnp.inf), method=method)
    assert np.all((nothing >= 0) & (nothing < 100))
    assert resample(jax.random.key(0), jnp.zeros(1), method=method).tolist() == [0]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_soft_resampling_is_unbiased_before_it_is_normalized(alpha):
    values = jnp.arange(7.0) ** 2
    keys = jax.random.split(jax.random.key(2), _SEEDS)

    def estimate(key):
        ancestors, log_weights = soft_resample(key, jnp.log(jnp.asarray(_WEIGHTS)), alpha, method="multinomial")
        return jnp.sum(jnp.exp(log_weights) * values[ancestors])

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(keys))
    exact = float(np.sum(_WEIGHTS * np.arange(7.0) ** 2))
    assert abs(estimates.mean() - exact) <= 5 * estimates.std() / np.sqrt(_SEEDS)


def test_soft_weights_are_differentiable():
    """d/dw of log w_A - log q_A by hand, at fixed ancestors."""
    alpha, w = 0.6, _WEIGHTS[_WEIGHTS > 0]
    ancestors, _ = soft_resample(jax.random.key(0), jnp.log(w), alpha)
    jacobian = jax.jacobian(lambda x: soft_resample(jax.random.key(0), x, alpha)[1])(jnp.log(w))
    a = np.asarray(ancestors)
    mixture = alpha * w + (1 - alpha) / w.size
    own = 1 - alpha * w / mixture  # d(log w - log q) / d log w
    softmax = np.eye(w.size) - w[None]  # d log w_i / d x_j
    assert np.allclose(jacobian, (own[:, None] * softmax)[a], atol=1e-14)
    assert np.allclose(jax.jacobian(lambda x: soft_resample(jax.random.key(0), x, 1.0)[1])(jnp.log(w)), 0, atol=1e-15)


def test_bad_arguments():
    key, x = jax.random.key(0), jnp.zeros(4)
    for arguments, options in (
        ((key, x, 0), {}), ((key, x), {"method": "fair"}), ((key, x, 3), {"method": "killing"}),
        ((key, jnp.zeros((2, 4))), {}), ((key, jnp.zeros(0)), {}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="resample:"):
            resample(*arguments, **options)
    with pytest.raises(TypeError, match="typed key"):
        resample(jax.random.key_data(key), x)
    for alpha in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            soft_resample(key, x, alpha)
