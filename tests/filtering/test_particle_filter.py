"""Particle filters against an exact Kalman filter in NumPy: evidence, score, means, missing data, failures."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxnm import Status
from jaxnm.filtering import (
    StateSpaceModel,
    backward_sample,
    degeneracy,
    filter_init,
    filter_step,
    genealogy,
    observed_log_density,
    particle_filter,
    smoothed_mean,
)  # fmt: skip
from tests.compilation import QUICK

_THETA = np.array([0.7, 1.0, 0.6])  # rho, sx, sy


def _initial(theta, key, num):
    return theta[1] * jax.random.normal(key, (num,), theta.dtype)


def _transition(theta, key, x, time):
    return theta[0] * x + theta[1] * jax.random.normal(key, x.shape, x.dtype)


def _log_normal(residual, scale):
    return -0.5 * (residual / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi).astype(residual.dtype)


def _log_likelihood(theta, x, y, time):
    return _log_normal(y - x, theta[2])


def _log_transition(theta, new, old, time):
    return _log_normal(new - theta[0] * old, theta[1])


def _optimal(theta, key, x, y, time):
    """x_t given x_t-1 and y_t."""
    precision = 1 / theta[1] ** 2 + 1 / theta[2] ** 2
    mean, scale = (theta[0] * x / theta[1] ** 2 + y / theta[2] ** 2) / precision, 1 / jnp.sqrt(precision)
    new = mean + scale * jax.random.normal(key, x.shape, x.dtype)
    return new, _log_normal(new - mean, scale)


def _ahead(theta, x, y, time):
    """The likelihood of y_t given x_t-1."""
    return _log_normal(y - theta[0] * x, jnp.sqrt(theta[1] ** 2 + theta[2] ** 2))


def _model(theta):
    functions = (_initial, _transition, _log_likelihood, _log_transition)
    return StateSpaceModel(*(Partial(function, theta) for function in functions))


def _kalman(theta, observations):
    """(log-evidence, filtered means, filtered variances, smoothed means), one step at a time in NumPy."""
    rho, sx, sy = theta
    mean, variance, evidence = 0.0, sx**2, 0.0
    means, variances = [], []
    for t, y in enumerate(observations):
        if t:
            mean, variance = rho * mean, rho**2 * variance + sx**2
        if not np.isnan(y):
            total = variance + sy**2
            evidence -= 0.5 * ((y - mean) ** 2 / total + np.log(2 * np.pi * total))
            gain = variance / total
            mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        means.append(mean)
        variances.append(variance)
    smooth = [means[-1]]
    for m, p in zip(means[-2::-1], variances[-2::-1], strict=True):
        smooth.append(m + p * rho / (rho**2 * p + sx**2) * (smooth[-1] - rho * m))
    return evidence, np.array(means), np.array(variances), np.array(smooth[::-1])


def _score(theta, observations):
    """The gradient of the exact log-evidence, by central differences of sixth order."""
    steps, weights = np.array([1, 2, 3]), np.array([45, -9, 1]) / 30
    h, gradient = 1e-3, []
    for axis in np.eye(3):
        slopes = [
            _kalman(theta + s * h * axis, observations)[0] - _kalman(theta - s * h * axis, observations)[0]
            for s in steps
        ]
        gradient.append(np.dot(weights, slopes) / (2 * h))
    return np.array(gradient)


def _record(length, seed=0):
    rng = np.random.default_rng(seed)
    x, values = 0.0, []
    for _ in range(length):
        x = 0.8 * x + rng.normal()
        values.append(x + 0.5 * rng.normal())
    return np.array(values)


def _log_evidence(theta, observations, key, num, kind, options):
    extra = {"guided": {"proposal": Partial(_optimal, theta)}, "auxiliary": {"auxiliary": Partial(_ahead, theta)}}
    options = dict(options) | extra.get(kind, {})
    return particle_filter(key, _model(theta), observations, num_particles=num, **options).log_evidence


@partial(jax.jit, static_argnames=("num", "kind", "options"), compiler_options=QUICK)
def _evidences(theta, observations, keys, num, kind="bootstrap", options=()):
    return jax.vmap(lambda key: _log_evidence(theta, observations, key, num, kind, options))(keys)


@partial(jax.jit, static_argnames=("num", "options"), compiler_options=QUICK)
def _scores(theta, observations, keys, num, options):
    one = lambda theta, key: _log_evidence(theta, observations, key, num, "bootstrap", options)
    return jax.vmap(jax.grad(one), (None, 0))(theta, keys)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bootstrap", {}),
        ("bootstrap", {"ess_threshold": 1.0, "resampling": "multinomial"}),
        ("bootstrap", {"gradient": "soft"}),
        ("guided", {}),
        ("auxiliary", {"ess_threshold": 1.0}),
    ],
)
def test_the_evidence_is_unbiased_and_its_logarithm_low_by_half_the_variance(kind, options):
    observations = _record(20)
    exact = _kalman(_THETA, observations)[0]
    keys = jax.random.split(jax.random.key(0), 400)
    values = _evidences(jnp.asarray(_THETA), jnp.asarray(observations), keys, 200, kind, tuple(options.items()))
    error = np.asarray(values) - exact
    ratio = np.exp(error)
    assert abs(ratio.mean() - 1) <= 4 * ratio.std() / 20
    # the next term of the logarithm is of the order of the square of the variance
    assert abs(error.mean() + error.var() / 2) <= 4 * error.std() / 20 + error.var() ** 2
    assert error.std() < 1


def test_the_score_by_stopped_gradients_is_right_and_plain_autodiff_is_not():
    observations, theta = _record(30), np.array([0.5, 1.2, 0.6])
    exact = _score(theta, observations)
    keys = jax.random.split(jax.random.key(1), 100)
    for gradient in ("stop", "plain"):
        options = (("gradient", gradient),)
        scores = np.asarray(_scores(jnp.asarray(theta), jnp.asarray(observations), keys, 1000, options))
        deviation = np.abs(scores.mean(0) - exact) / (scores.std(0) / 10)
        if gradient == "stop":  # its bias, of order 1 / N, is below the standard error of 100 seeds here
            assert np.all(deviation <= 4)
        else:
            assert np.max(deviation) > 30


def test_means_variances_and_smoothing():
    observations = _record(30)
    observations[[5, 17]] = np.nan
    _, means, variances, smooth = _kalman(_THETA, observations)
    num = 20_000
    result = particle_filter(
        jax.random.key(0), _model(jnp.asarray(_THETA)), jnp.asarray(observations), num_particles=num, history="full"
    )
    # the error of a mean over N weighted particles, with room for what resampling adds
    standard_error = np.sqrt(variances / np.asarray(result.effective_sample_size))
    assert np.all(np.abs(result.mean - means) <= 6 * standard_error)
    assert np.all(np.abs(result.covariance - variances) <= 10 * variances / np.sqrt(result.effective_sample_size))
    assert np.array_equal(result.log_evidence_increments[np.array([5, 17])], [0.0, 0.0])
    assert int(result.status) == Status.OK

    lines = np.asarray(genealogy(result))
    assert np.array_equal(lines[-1], np.arange(num))
    parents = np.asarray(result.history.ancestors)
    assert all(np.array_equal(lines[t], parents[t + 1][lines[t + 1]]) for t in range(29))
    summary = degeneracy(result)
    distinct = [len(np.unique(row)) for row in lines]
    assert np.array_equal(summary.lineages, distinct)
    assert int(summary.lowest_at) == int(np.argmin(result.effective_sample_size))
    # few lines of descent are left at early times, and they set the error there
    error = np.abs(np.asarray(smoothed_mean(result)) - smooth)
    assert np.all(error <= 6 * np.sqrt(variances / np.array(distinct)))

    draws = 400
    few = particle_filter(
        jax.random.key(2), _model(jnp.asarray(_THETA)), jnp.asarray(observations), num_particles=1000, history="full"
    )
    sampled = backward_sample(jax.random.key(3), _model(jnp.asarray(_THETA)), few, draws)
    assert np.all(sampled.status == Status.OK)
    paths = np.asarray(sampled.states)
    assert paths.shape == (draws, 30)
    assert np.all(np.abs(paths.mean(0) - smooth) <= 6 * np.sqrt(variances * (1 / draws + 1 / 200)))


def test_one_observation_at_a_time_is_the_scan():
    observations, key = jnp.asarray(_record(6)), jax.random.key(4)
    model = _model(jnp.asarray(_THETA))
    result = particle_filter(key, model, observations, num_particles=50, history="ancestors")
    state, step = filter_init(jax.random.fold_in(key, 0), model, observations[0], num_particles=50)
    for t in range(1, 6):
        state, step = filter_step(jax.random.fold_in(key, t), model, state, observations[t])
        assert np.allclose(step.mean, result.mean[t], rtol=1e-13)
        assert np.array_equal(step.ancestors, result.history.ancestors[t])
    assert np.allclose(state.log_evidence, result.log_evidence, rtol=1e-13)


def test_missing_observations_by_nan_by_mask_and_by_component():
    observations = jnp.asarray(_record(8))
    mask = jnp.arange(8) != 3
    model, run = _model(jnp.asarray(_THETA)), partial(particle_filter, jax.random.key(0), num_particles=60)
    by_nan = run(model, observations.at[3].set(jnp.nan))
    by_mask = run(model, observations, mask=mask)
    assert np.array_equal(by_nan.mean, by_mask.mean)
    assert by_nan.log_evidence == by_mask.log_evidence
    none = run(model, jnp.full(8, jnp.nan))
    assert none.log_evidence == 0
    assert np.all(none.effective_sample_size > 59.99)
    guided = run(model, observations.at[3].set(jnp.nan), proposal=Partial(_optimal, jnp.asarray(_THETA)))
    assert np.isfinite(guided.log_evidence)

    # two sensors, one of which fails: the same as one sensor alone
    def pair(x, y, time):
        return observed_log_density(lambda y: _log_normal(y[None] - x[:, None], jnp.asarray([[0.6, 0.9]])), y)

    double = StateSpaceModel(Partial(_initial, jnp.asarray(_THETA)), Partial(_transition, jnp.asarray(_THETA)), pair)
    both = jnp.stack([observations, jnp.full(8, jnp.nan)], 1)
    assert np.allclose(run(double, both).mean, run(model, observations).mean, rtol=1e-12)


def test_controls_move_the_cloud():
    """With controls of the size of the world and no noise the particles are where the controls put them."""
    controls = jnp.array([[7.0], [1.0], [2.0], [4.0]])
    model = StateSpaceModel(
        lambda key, num: jnp.zeros((num, 1)),
        lambda key, x, time, control: x + control[None],
        lambda x, y, time: jnp.zeros(x.shape[0]),
        transition_log_density=lambda new, old, time, control: -jnp.sum((new - old - control[None]) ** 2, 1),
        controlled=True,
    )
    result = particle_filter(jax.random.key(0), model, (jnp.zeros(4), controls), num_particles=5, history="full")
    assert np.allclose(result.mean[:, 0], [0.0, 1.0, 3.0, 7.0], rtol=1e-14)
    paths = backward_sample(jax.random.key(1), model, result, 3, controls=controls).states
    assert np.array_equal(paths[..., 0], np.tile([0.0, 1.0, 3.0, 7.0], (3, 1)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("resampled", [0.0, 1.0])
def test_an_impossible_observation_leaves_a_cloud_that_moved(resampled):
    theta, observations = jnp.asarray(_THETA), jnp.asarray(_record(6)).at[3].set(1e300)

    def run(theta):
        return particle_filter(
            jax.random.key(0), _model(theta), observations, num_particles=40, ess_threshold=resampled, history="full"
        )

    result = run(theta)
    assert int(result.status) == Status.DEGENERATE
    masked = particle_filter(
        jax.random.key(0),
        _model(theta),
        observations,
        num_particles=40,
        ess_threshold=resampled,
        history="full",
        mask=jnp.arange(6) != 3,
    )
    assert np.array_equal(result.history.particles, masked.history.particles)
    assert np.allclose(result.history.log_weights, masked.history.log_weights, rtol=1e-12)
    assert result.log_evidence == -np.inf
    assert int(degeneracy(result).impossible_at) == 3
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves((result.mean, result.log_evidence_increments)))
    for value in (lambda theta: run(theta).mean[-1], lambda theta: run(theta).log_evidence_increments[5]):
        assert np.all(np.isfinite(jax.grad(value)(theta)))


def test_likelihoods_that_are_not_finite_are_weights_of_zero():
    def spoiled(x, y, time):
        return jnp.where(jnp.arange(x.shape[0]) == 2, jnp.nan, jnp.where(jnp.arange(x.shape[0]) == 4, jnp.inf, y - x))

    model = StateSpaceModel(Partial(_initial, jnp.asarray(_THETA)), Partial(_transition, jnp.asarray(_THETA)), spoiled)
    result = particle_filter(jax.random.key(0), model, jnp.zeros(1), num_particles=6)
    assert int(result.status) == Status.NONFINITE_RESULT
    assert np.array_equal(np.isneginf(result.log_weights), np.isin(np.arange(6), [2, 4]))
    infinite = particle_filter(jax.random.key(0), _model(jnp.asarray(_THETA)), jnp.array([jnp.inf]), num_particles=6)
    assert int(infinite.status) == Status.NONFINITE_INPUT
    assert np.isfinite(infinite.mean).all()


@pytest.mark.parametrize("history", ["none", "moments", "ancestors", "full"])
def test_no_observations(history):
    result = particle_filter(
        jax.random.key(0), _model(jnp.asarray(_THETA)), jnp.zeros(0), num_particles=5, history=history
    )
    assert result.log_evidence == 0
    assert result.mean.shape == result.effective_sample_size.shape == (0,)
    assert result.particles.shape == (5,)
    assert int(result.status) == Status.OK
    if history == "full":
        assert backward_sample(jax.random.key(0), _model(jnp.asarray(_THETA)), result, 3).states.shape == (3, 0)


def test_checkpoints_change_no_gradient_and_save_memory():
    theta, observations = jnp.asarray(_THETA), jnp.asarray(_record(50))

    def evidence(checkpoint, theta):
        return particle_filter(
            jax.random.key(0), _model(theta), observations, num_particles=2000, checkpoint=checkpoint
        ).log_evidence

    compiled = [jax.jit(jax.grad(partial(evidence, flag))).lower(theta).compile() for flag in (False, True)]
    plain, saved = (program(theta) for program in compiled)
    assert np.allclose(plain, saved, rtol=1e-10)
    sizes = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    assert sizes[1] <= sizes[0] / 2


def test_float32_stays_float32():
    model = _model(jnp.asarray(_THETA, jnp.float32))
    observations = jnp.asarray(_record(5), jnp.float32)
    result = particle_filter(jax.random.key(0), model, observations, num_particles=50, history="full")
    floating = [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == jnp.float32 for leaf in floating)


def test_bad_arguments():
    model, y, key = _model(jnp.asarray(_THETA)), jnp.zeros(3), jax.random.key(0)
    run = partial(particle_filter, key, model, y)
    for options in (
        {"num_particles": 0}, {"num_particles": 2, "resampling": "fair"}, {"num_particles": 2, "ess_threshold": 1.5},
        {"num_particles": 2, "gradient": "exact"}, {"num_particles": 2, "history": "all"},
        {"num_particles": 2, "gradient": "soft", "alpha": 0.0}, {"num_particles": 2, "mask": jnp.ones(2, bool)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="particle_filter:"):
            run(**options)
    with pytest.raises(ValueError, match="one length"):
        particle_filter(key, model, {"a": y, "b": jnp.zeros(2)}, num_particles=2)
    with pytest.raises(TypeError, match="typed key"), warnings.catch_warnings():
        particle_filter(jax.random.key_data(key), model, y, num_particles=2)
    with pytest.raises(TypeError, match="StateSpaceModel"):
        particle_filter(key, None, y, num_particles=2)
    guided = StateSpaceModel(model.sample_initial, model.sample_transition, model.log_likelihood)
    with pytest.raises(ValueError, match="transition_log_density"):
        particle_filter(key, guided, y, num_particles=2, proposal=Partial(_optimal, jnp.asarray(_THETA)))
    wrong = StateSpaceModel(model.sample_initial, model.sample_transition, lambda x, y, time: jnp.sum(x))
    with pytest.raises(ValueError, match="one number a particle"):
        particle_filter(key, wrong, y, num_particles=2)
    result = particle_filter(key, model, y, num_particles=2)
    for function in (genealogy, smoothed_mean, partial(backward_sample, key, model, num=1)):
        with pytest.raises(ValueError, match="history="):
            function(result=result)


def test_ten_million_particles_need_half_a_gigabyte_for_any_length():
    """Temporary bytes of the compiled program, beside the 80 MB of the last cloud; nothing is run."""

    def bytes_for(length):
        arguments = jnp.asarray(_THETA, jnp.float32), jnp.zeros(length, jnp.float32)
        run = lambda theta, y: particle_filter(jax.random.key(0), _model(theta), y, num_particles=10_000_000)
        return jax.jit(run).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    short, long = bytes_for(3), bytes_for(30)
    assert short <= 0.5e9
    assert long <= 1.01 * short
