"""Kalman filter and smoother against the joint normal distribution, and the model that a particle filter gets."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from scipy.stats import multivariate_normal

from jaxnm import Status
from jaxnm.filtering.kalman import kalman_filter, kalman_smoother
from jaxnm.filtering.linear_gaussian import (
    LinearGaussianModel,
    as_state_space_model,
    optimal_proposal,
    semidefinite_root,
    simulate_linear_gaussian,
)
from tests.compilation import QUICK

EPS = np.finfo(np.float64).eps
METHODS = ("sequential", "associative")
NILE = np.loadtxt(Path(__file__).parent.parent / "references" / "nile.csv", delimiter=",")[:, 1:]


def _covariance(seed, n, rank):
    factor = np.random.default_rng(seed).normal(size=(n, rank))
    return factor @ factor.T


def _model(initial_rank=3, transition_rank=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=3),
        _covariance(1, 3, initial_rank),
        0.5 * rng.normal(size=(3, 3)),
        _covariance(2, 3, transition_rank),
        rng.normal(size=(2, 3)),
        _covariance(3, 2, 2) + 0.1 * np.eye(2),
        rng.normal(size=3),
        rng.normal(size=2),
    )
    return LinearGaussianModel(*(jnp.asarray(array, dtype) for array in arrays))


REGULAR, SINGULAR = _model(), _model(0, 1)
OBSERVATIONS = np.random.default_rng(4).normal(size=(7, 2))
WITH_GAPS = OBSERVATIONS.copy()
WITH_GAPS[0, 1], WITH_GAPS[3], WITH_GAPS[5, 0] = np.nan, np.nan, np.nan


def _joint(model, num):
    """Mean and covariance of all states, and the map to all observations: [T d], [T d, T d], [T m, T d], ..."""
    m = {field.name: np.asarray(getattr(model, field.name)) for field in dataclasses.fields(model)}
    d = len(m["initial_mean"])
    means, noise = [m["initial_mean"]], [m["initial_covariance"]]
    for _ in range(num - 1):
        means.append(m["transition"] @ means[-1] + m["transition_offset"])
        noise.append(m["transition_covariance"])
    # x = lower @ noises
    lower, sources = np.zeros((num * d, num * d)), np.zeros((num * d, num * d))
    for i in range(num):
        sources[i * d : (i + 1) * d, i * d : (i + 1) * d] = noise[i]
        for j in range(i + 1):
            block = np.linalg.matrix_power(m["transition"], i - j)
            lower[i * d : (i + 1) * d, j * d : (j + 1) * d] = block
    observe = np.kron(np.eye(num), m["observation"])
    return (
        np.concatenate(means),
        lower @ sources @ lower.T,
        observe,
        np.tile(m["observation_offset"], num),
        np.kron(np.eye(num), m["observation_covariance"]),
    )


def _conditional(model, observations, upto):
    """Of all states given the first `upto` rows: mean, covariance and the log-density of these rows."""
    mean, covariance, observe, offset, noise = _joint(model, len(observations))
    y = observations.ravel()
    seen = ~np.isnan(y) & (np.arange(len(y)) < upto * observations.shape[1])
    observe, y = observe[seen], y[seen]
    expected = observe @ mean + offset[seen]
    innovation = observe @ covariance @ observe.T + noise[np.ix_(seen, seen)]
    gain = np.linalg.solve(innovation, observe @ covariance).T
    log_density = multivariate_normal(expected, innovation).logpdf(y) if seen.any() else 0.0
    return mean + gain @ (y - expected), covariance - gain @ observe @ covariance, log_density


def _blocks(mean, covariance, d=3):
    num = len(mean) // d
    return mean.reshape(num, d), covariance.reshape(num, d, num, d).transpose(0, 2, 1, 3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [REGULAR, SINGULAR], ids=["regular", "singular"])
@pytest.mark.parametrize("observations", [OBSERVATIONS, WITH_GAPS], ids=["complete", "gaps"])
def test_against_the_joint_normal_distribution(model, observations, method):
    """All moments, evidences and cross-covariances; numbers are of order one to ten, the conditions of 1e3."""
    close = partial(np.testing.assert_allclose, rtol=1e4 * EPS, atol=1e5 * EPS)
    filtered = kalman_filter(model, observations, method=method)
    evidence_before = 0.0
    for t in range(len(observations)):
        means, covariances = _blocks(*_conditional(model, observations, t)[:2])
        close(filtered.predicted_means[t], means[t])
        close(filtered.predicted_covariances[t], covariances[t, t])
        mean, covariance, evidence = _conditional(model, observations, t + 1)
        means, covariances = _blocks(mean, covariance)
        close(filtered.means[t], means[t])
        close(filtered.covariances[t], covariances[t, t])
        close(filtered.log_evidence_increments[t], evidence - evidence_before)
        evidence_before = evidence
    close(filtered.log_evidence, evidence_before)
    if np.isnan(observations).any():
        assert float(filtered.log_evidence_increments[3]) == 0

    smoothed = kalman_smoother(model, observations, method=method)
    assert int(filtered.status) == int(smoothed.status) == Status.OK
    close(smoothed.means, means)
    index = np.arange(len(observations))
    close(smoothed.covariances, covariances[index, index])
    close(smoothed.cross_covariances, covariances[index[:-1], index[1:]])
    close(smoothed.log_evidence, evidence)


def _level(observation_variance, level_variance):
    square = lambda x: jnp.asarray(x, jnp.float64).reshape(1, 1)
    one = square(1.0)
    return LinearGaussianModel(
        jnp.array([1000.0]), square(1e5), one, square(level_variance), one, square(observation_variance)
    )


# statsmodels 0.15.0, UnobservedComponents(flow, "local level") with ssm.initialize_known([1000.], [[1e5]]) and
# ssm.loglikelihood_burn = 0: llf; smoothed states and their variances in the years 1871, 1899 and 1970. In the last
# row the years 1891 to 1910 are missing.
STATSMODELS = [
    (
        (15099.0, 1469.1, False, -639.3007238141726),
        [1107.3401930096065, 950.9293649437176, 798.370292608358],
        [3875.8764804858847, 2326.756912897881, 4032.1579418087554],
    ),
    (
        (10000.0, 5000.0, False, -641.0945550098344),
        [1110.7546927118328, 907.4397535848466, 749.5313635046828],
        [4761.904761904756, 3333.3333333333744, 5000.0000000000455],
    ),
    (
        (15099.0, 1469.1, True, -509.65574287616823),
        [1107.0062707408467, 913.0541576829669, 798.3702918317027],
        [3875.9031426420897, 9604.079389113704, 4032.1579418087085],
    ),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", STATSMODELS, ids=["estimate", "other", "gaps"])
def test_nile_against_statsmodels(case):
    (observation_variance, level_variance, gaps, log_likelihood), states, variances = case
    flows = np.where(np.arange(100)[:, None] // 20 == 1, np.nan, NILE) if gaps else NILE
    assert flows.shape == (100, 1)
    level = _level(observation_variance, level_variance)
    smoothed = kalman_smoother(level, flows)
    years = np.array([0, 28, 99])
    np.testing.assert_allclose(np.asarray(smoothed.means)[years, 0], states, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(smoothed.covariances)[years, 0, 0], variances, rtol=1e-10)
    for result in (smoothed, kalman_filter(level, flows, method="associative")):
        assert float(result.log_evidence) == pytest.approx(log_likelihood, abs=1e-8)


def _objective(model, observations, method):
    smoothed = kalman_smoother(model, observations, method=method)
    return smoothed.log_evidence + jnp.sum(jnp.sin(smoothed.means))


_value_and_gradient = jax.jit(jax.value_and_grad(_objective, (0, 1)), static_argnums=2, compiler_options=QUICK)


@pytest.mark.exhaustive
def test_gradients_of_first_and_second_order():
    """With gaps, against central differences along a direction in all arrays; the smoother's means too."""
    start = (REGULAR, jnp.asarray(WITH_GAPS[:4]))
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), start)
    along = lambda h: jax.tree.map(lambda x, v: x + h * v, start, direction)
    inner = lambda a, b: sum(float(jnp.sum(x * y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    gradient = _value_and_gradient(*start, "sequential")[1]
    for leaf, parallel in zip(
        *(jax.tree.leaves(_value_and_gradient(*start, name)[1]) for name in METHODS), strict=True
    ):
        np.testing.assert_allclose(leaf, parallel, rtol=1e5 * EPS, atol=1e6 * EPS)
    np.testing.assert_array_equal(gradient[1][3], 0)
    assert float(gradient[1][0, 1]) == 0
    h = 1e-5
    up, down = (float(_value_and_gradient(*along(sign * h), "sequential")[0]) for sign in (1, -1))
    assert inner(gradient, direction) == pytest.approx((up - down) / (2 * h), rel=1e-6)

    @partial(jax.jit, compiler_options=QUICK)
    def curvature(at, v):
        return jax.jvp(jax.grad(lambda at: kalman_filter(*at).log_evidence), (at,), (v,))

    slopes = [inner(curvature(along(sign * h), direction)[0], direction) for sign in (1, -1)]
    second = inner(curvature(start, direction)[1], direction)
    assert second == pytest.approx((slopes[0] - slopes[1]) / (2 * h), rel=1e-5)


def test_gradients_where_covariances_are_singular():
    """A known start and noise of rank one, by its size: the derivative against central differences."""

    @partial(jax.jit, compiler_options=QUICK)
    @jax.value_and_grad
    def objective(log_size):
        scaled = dataclasses.replace(SINGULAR, transition_covariance=jnp.exp(log_size) * SINGULAR.transition_covariance)
        smoothed = kalman_smoother(scaled, WITH_GAPS)
        return smoothed.log_evidence + jnp.sum(smoothed.means) + jnp.sum(smoothed.covariances)

    h = 1e-5
    difference = (objective(h)[0] - objective(-h)[0]) / (2 * h)
    assert float(objective(0.0)[1]) == pytest.approx(float(difference), rel=1e-6)


def test_float32_keeps_covariances_semidefinite():
    """1000 steps of a target seen clearly, whose start is unknown: the first covariances have a condition of 1e6."""
    arrays = (
        np.zeros(2),
        1e4 * np.eye(2),
        np.array([[1.0, 1.0], [0.0, 0.95]]),
        1e-3 * np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]]),
        np.array([[1.0, 0.0]]),
        np.array([[1e-2]]),
    )
    exact_model, model = (LinearGaussianModel(*(jnp.asarray(a, t) for a in arrays)) for t in (np.float64, np.float32))
    known = dataclasses.replace(exact_model, initial_covariance=jnp.eye(2))
    _, observations = simulate_linear_gaussian(jax.random.key(1), known, 1000)
    observations = observations.at[100:120].set(jnp.nan).astype(jnp.float32)
    result, filtered = kalman_smoother(model, observations), kalman_filter(model, observations)
    # the first variances are several per cent off, as the last lines show
    assert int(result.status) == int(filtered.status) == Status.INACCURATE
    for covariances in (result.covariances, filtered.covariances, filtered.predicted_covariances):
        assert covariances.dtype == jnp.float32
        np.testing.assert_array_equal(covariances, covariances.mT)
        values = np.linalg.eigvalsh(np.asarray(covariances, np.float64))
        assert np.all(values[:, 0] >= -4 * np.finfo(np.float32).eps * values[:, 1])
    exact = kalman_smoother(exact_model, observations.astype(jnp.float64))
    ours, wanted = np.asarray(result.covariances, np.float64), np.asarray(exact.covariances)
    deviation = np.sqrt(wanted[:, [0, 1], [0, 1]])
    error = np.abs(np.asarray(result.means, np.float64) - np.asarray(exact.means)) / deviation
    spread_error = np.abs(ours - wanted) / (deviation[:, :, None] * deviation[:, None, :])
    # in units of the smoothed deviation; the first rows feel the condition times rounding
    assert error.max() < 0.25
    assert error[5:].max() < 0.02
    assert spread_error[5:].max() < 5e-3
    assert float(result.log_evidence) == pytest.approx(float(exact.log_evidence), abs=0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_digits_that_a_vague_prior_costs_the_parallel_scan(dtype):
    """Position, speed and acceleration from positions; the sequential smoother in float64 is exact to 1e-15 here."""
    variances = np.array([1.0, 1e2, 1e5, 1e6, 1e8, 1e11])
    move = np.array([[1.0, 1.0, 0.5], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    observations = np.random.default_rng(0).normal(size=(30, 1)).cumsum(0)

    def run(method, dtype):
        def smooth(variance):
            eye = jnp.eye(3, dtype=dtype)
            start = jnp.zeros(3, dtype), variance * eye
            seen = eye[:1], jnp.ones((1, 1), dtype)
            model = LinearGaussianModel(*start, jnp.asarray(move, dtype), 0.01 * eye, *seen)
            return kalman_smoother(model, jnp.asarray(observations, dtype), method=method)

        return jax.jit(jax.vmap(smooth), compiler_options=QUICK)(jnp.asarray(variances, dtype))

    found, exact = run("associative", dtype), run("sequential", np.float64)
    spread = np.diagonal(exact.covariances, axis1=2, axis2=3)
    shift = np.abs(np.asarray(found.means, float) - exact.means) / np.sqrt(spread)
    share = np.abs(np.diagonal(np.asarray(found.covariances, float), axis1=2, axis2=3) / spread - 1)
    error = np.maximum(shift, share).max((1, 2))
    good = np.asarray(found.status) == Status.OK
    allowed = float(np.finfo(dtype).eps) ** 0.375
    assert np.all(error[good] <= allowed)
    assert good[:2].all()
    assert not good[-1]
    # neither is it said for nothing, and it is said too where all digits are lost
    assert np.all(np.asarray(found.status)[~good] == Status.INACCURATE)
    assert np.all(np.nan_to_num(error, nan=np.inf)[~good] >= allowed / 100)


def test_observations_without_noise():
    """The second one of a state that stands still is known before: its covariance is zero, or rounding."""
    one = jnp.ones((1, 1))
    still = LinearGaussianModel(jnp.zeros(1), 3 * one, one, 0 * one, one, 0 * one)
    assert int(kalman_filter(still, jnp.array([[1.0], [1.0]])).status) == Status.OUT_OF_RANGE
    pair = LinearGaussianModel(
        jnp.zeros(2),
        jnp.array([[1.0, 0.3], [0.3, 2.0]]),
        jnp.eye(2),
        jnp.zeros((2, 2)),
        jnp.array([[1.1, 0.7]]),
        0 * one,
    )
    assert int(kalman_filter(pair, jnp.array([[1.0], [1.0]])).status) in (Status.OUT_OF_RANGE, Status.INACCURATE)
    assert int(kalman_filter(pair, jnp.array([[1.0]])).status) == Status.OK


def test_simulated_moments():
    """Mean and covariance of all states and observations over 20,000 runs, within five standard errors."""
    num_runs, num = 20_000, 3
    states, observations = jax.vmap(lambda key: simulate_linear_gaussian(key, SINGULAR, num))(
        jax.random.split(jax.random.key(0), num_runs)
    )
    mean, covariance, observe, offset, noise = _joint(SINGULAR, num)
    whole = np.concatenate([np.eye(len(mean)), observe])
    expected = whole @ mean + np.concatenate([np.zeros(len(mean)), offset])
    spread = whole @ covariance @ whole.T
    spread[len(mean) :, len(mean) :] += noise
    sample = np.concatenate([states.reshape(num_runs, -1), observations.reshape(num_runs, -1)], 1)
    variance = np.diag(spread)
    np.testing.assert_array_less(np.abs(sample.mean(0) - expected), 5 * np.sqrt(variance / num_runs) + 1e-12)
    error = np.sqrt((np.outer(variance, variance) + spread**2) / num_runs)
    np.testing.assert_array_less(np.abs(np.cov(sample.T) - spread), 5 * error + 1e-12)


_root = jax.jit(semidefinite_root)


def test_root_of_a_covariance():
    """Singular and with repeated eigenvalues: its square, and derivatives of two orders without NaN."""
    for covariance in (np.eye(3), np.zeros((3, 3)), _covariance(1, 3, 1), _covariance(1, 3, 2), _covariance(1, 3, 3)):
        root = np.asarray(_root(jnp.asarray(covariance)))
        np.testing.assert_allclose(root @ root.T, covariance, atol=50 * EPS)
        np.testing.assert_array_equal(root, np.tril(root))
    square = lambda size: jnp.sum(jnp.sin(semidefinite_root(jnp.exp(size) * jnp.eye(3))))
    first, second = jax.jit(lambda size: (jax.grad(square)(size), jax.grad(jax.grad(square))(size)))(0.0)
    assert float(first) == pytest.approx(1.5 * np.cos(1))
    assert float(second) == pytest.approx(0.75 * (np.cos(1) - np.sin(1)))
    for covariance in (jnp.diag(jnp.array([1.0, -0.1, 1.0])), jnp.ones((3, 3)) - jnp.eye(3), jnp.eye(3) * jnp.nan):
        assert bool(jnp.all(jnp.isnan(_root(covariance))))


# the functions of a model are pytrees: they pass through jit
_call = jax.jit(lambda function, *args: function(*args))


def test_densities_of_the_state_space_model():
    """Against SciPy, with a missing component and with all missing."""
    model = as_state_space_model(REGULAR)
    particles = model.sample_initial(jax.random.key(0), 50)
    new = _call(model.sample_transition, jax.random.key(1), particles, 1)
    m = REGULAR
    expected_state = np.asarray(particles @ m.transition.T + m.transition_offset[None])
    density = multivariate_normal(np.zeros(3), np.asarray(m.transition_covariance))
    np.testing.assert_allclose(
        _call(model.transition_log_density, new, particles, 1), density.logpdf(new - expected_state), rtol=1e4 * EPS
    )
    expected = np.asarray(particles @ m.observation.T + m.observation_offset[None])
    both = multivariate_normal(np.zeros(2), np.asarray(m.observation_covariance)).logpdf(OBSERVATIONS[0] - expected)
    one = multivariate_normal(0, float(m.observation_covariance[0, 0])).logpdf(OBSERVATIONS[0, 0] - expected[:, 0])
    gap = jnp.asarray(WITH_GAPS[0])
    np.testing.assert_allclose(_call(model.log_likelihood, particles, OBSERVATIONS[0], 0), both, rtol=1e3 * EPS)
    np.testing.assert_allclose(_call(model.log_likelihood, particles, gap, 0), one, rtol=1e3 * EPS)
    np.testing.assert_array_equal(_call(model.log_likelihood, particles, gap * jnp.nan, 0), 0)
    gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(model.log_likelihood(x, y, 0)), (0, 1)))(particles, gap)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in gradient)


@pytest.mark.parametrize("model", [REGULAR, SINGULAR], ids=["regular", "singular"])
@pytest.mark.parametrize("row", [0, 1, 3], ids=["component", "complete", "nothing"])
def test_the_optimal_proposal_has_constant_weights(model, row):
    """p(new | old) p(y | new) / q(new | old, y) is p(y | old), whatever new is; and it is what the filter says."""
    system, observation = as_state_space_model(model), jnp.asarray(WITH_GAPS[row])
    start = jnp.asarray(np.random.default_rng(6).normal(size=3))
    old = jnp.tile(start, (200, 1))
    new, log_density = _call(optimal_proposal(model), jax.random.key(0), old, observation, 1)
    weights = _call(system.transition_log_density, new, old, 1) + _call(system.log_likelihood, new, observation, 1)
    weights = weights - log_density
    known = dataclasses.replace(model, initial_mean=start, initial_covariance=jnp.zeros((3, 3)))
    two_rows = kalman_filter(known, jnp.stack([jnp.full(2, jnp.nan), observation]))
    np.testing.assert_allclose(weights, float(two_rows.log_evidence), atol=1e6 * EPS)
    np.testing.assert_array_less(
        np.abs(new.mean(0) - two_rows.means[1]), 5 * np.sqrt(np.diag(two_rows.covariances[1]) / 200) + 1e-12
    )
    elsewhere = _call(system.transition_log_density, new + jnp.array([[0.0, 0.1, 0.0]]), old, 1)
    assert bool(jnp.all(jnp.isfinite(elsewhere))) if model is REGULAR else bool(jnp.all(elsewhere == -jnp.inf))


def test_gradients_flow_through_samples():
    """The mean of moved particles has the derivative of F m + c; and nothing is traced again for other values."""
    traces = []

    @jax.jit
    @jax.grad
    def gradient(model):
        traces.append(1)
        system = as_state_space_model(model)
        particles = system.sample_transition(jax.random.key(1), system.sample_initial(jax.random.key(0), 20_000), 1)
        return jnp.mean(particles[:, 0])

    result = gradient(REGULAR)
    gradient(SINGULAR)
    assert len(traces) == 1
    np.testing.assert_allclose(result.initial_mean, REGULAR.transition[0], rtol=1e-12)
    error = 5 * np.sqrt(np.diag(REGULAR.initial_covariance) / 20_000)
    np.testing.assert_array_less(np.abs(result.transition[0] - REGULAR.initial_mean), error)


@pytest.mark.parametrize("method", METHODS)
def test_failures_are_told_and_stay_where_they_are(method):
    """A batch with every kind of failure: NaN throughout, also for the gradient, and the first member unharmed."""
    change = lambda **fields: dataclasses.replace(REGULAR, **fields)
    members = [
        (REGULAR, OBSERVATIONS, Status.OK),
        (change(transition=REGULAR.transition.at[0, 0].set(jnp.inf)), OBSERVATIONS, Status.NONFINITE_INPUT),
        (change(initial_mean=REGULAR.initial_mean * jnp.nan), OBSERVATIONS, Status.NONFINITE_INPUT),
        (REGULAR, np.where(OBSERVATIONS > 1, np.inf, OBSERVATIONS), Status.NONFINITE_INPUT),
        (change(initial_covariance=-jnp.eye(3)), OBSERVATIONS, Status.OUT_OF_RANGE),
        (change(observation_covariance=jnp.ones((2, 2)) - jnp.eye(2)), OBSERVATIONS, Status.OUT_OF_RANGE),
        (
            change(observation_covariance=jnp.zeros((2, 2)), observation=jnp.zeros((2, 3))),
            OBSERVATIONS,
            Status.OUT_OF_RANGE,
        ),
        (change(transition=1e200 * REGULAR.transition), OBSERVATIONS, Status.NONFINITE_RESULT),
    ]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(model for model, _, _ in members))
    observations = jnp.stack([jnp.asarray(rows) for _, rows, _ in members])

    @jax.jit
    @jax.vmap
    def smooth(model, observations):
        return kalman_smoother(model, observations, method=method)

    batch = smooth(models, observations)
    np.testing.assert_array_equal(batch.status, [int(status) for _, _, status in members])
    alone = kalman_smoother(REGULAR, OBSERVATIONS, method=method)
    for name in ("means", "covariances", "cross_covariances", "log_evidence"):
        np.testing.assert_allclose(getattr(batch, name)[0], getattr(alone, name), rtol=1e3 * EPS, atol=1e3 * EPS)
        assert bool(jnp.all(jnp.isnan(getattr(batch, name)[1:])))
    if method == "sequential":
        gradient = jax.jit(jax.vmap(jax.grad(lambda model, rows: kalman_filter(model, rows).log_evidence)))
        for leaf in jax.tree.leaves(gradient(models, observations)):
            assert bool(jnp.all(jnp.isfinite(leaf[0])))
            assert bool(jnp.all(jnp.isnan(leaf[1:])))
    filtered = kalman_filter(members[4][0], OBSERVATIONS, method=method)
    assert int(filtered.status) == Status.OUT_OF_RANGE
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(filtered.replace(status=None)))


@pytest.mark.parametrize("method", METHODS)
def test_short_series(method):
    for num in (0, 1):
        filtered = kalman_filter(REGULAR, OBSERVATIONS[:num], method=method)
        smoothed = kalman_smoother(REGULAR, OBSERVATIONS[:num], method=method)
        assert smoothed.means.shape == filtered.means.shape == (num, 3)
        assert smoothed.covariances.shape == filtered.predicted_covariances.shape == (num, 3, 3)
        assert smoothed.cross_covariances.shape == (0, 3, 3)
        assert int(filtered.status) == int(smoothed.status) == Status.OK
        np.testing.assert_array_equal(smoothed.means, filtered.means)
        expected = _conditional(REGULAR, OBSERVATIONS[:1], num)[2]
        assert float(filtered.log_evidence) == pytest.approx(expected, rel=1e-12)
    states, observations = simulate_linear_gaussian(jax.random.key(0), REGULAR, 0)
    assert states.shape == (0, 3)
    assert observations.shape == (0, 2)


@pytest.mark.parametrize("method", METHODS)
def test_export(method):
    """The gradient too, in float32."""
    model = _model(dtype=np.float32)
    observations = jnp.asarray(OBSERVATIONS, jnp.float32)

    def evidence(model, observations):
        smoothed = kalman_smoother(model, observations, method=method)
        return smoothed.log_evidence + jnp.sum(smoothed.means)

    platforms = ["cpu", "cuda", "tpu"]
    # a pytree of a class that export does not know travels as its leaves
    leaves, structure = jax.tree.flatten(model)
    flat = lambda leaves, rows: jax.tree.leaves(jax.grad(evidence)(jax.tree.unflatten(structure, leaves), rows))
    exported = export.export(jax.jit(flat), platforms=platforms)(leaves, observations)
    assert all(leaf.dtype == jnp.float32 for leaf in exported.out_avals)


def test_what_is_refused():
    change = lambda **fields: dataclasses.replace(REGULAR, **fields)
    for model, rows, message in [
        (change(transition=jnp.eye(2)), OBSERVATIONS, "transition"),
        (change(initial_mean=jnp.zeros((3, 1))), OBSERVATIONS, "initial_mean"),
        (change(observation=jnp.ones((2, 4))), OBSERVATIONS, "observation"),
        (change(observation_offset=jnp.zeros(3)), OBSERVATIONS, "observation_offset"),
        (REGULAR, OBSERVATIONS[:, :1], "observations"),
        (REGULAR, OBSERVATIONS[0], "observations"),
    ]:
        for function in (kalman_filter, kalman_smoother):
            with pytest.raises(ValueError, match=f"{function.__name__}: {message} is"):
                function(model, rows)
    with pytest.raises(ValueError, match="method"):
        kalman_filter(REGULAR, OBSERVATIONS, method="parallel")
    with pytest.raises(TypeError, match="LinearGaussianModel"):
        kalman_filter({}, OBSERVATIONS)
    with pytest.raises(TypeError, match="dtype"):
        kalman_filter(REGULAR, np.ones((7, 2), int))
    with pytest.raises(TypeError, match="real"):
        kalman_filter(jax.tree.map(lambda leaf: leaf.astype(complex), REGULAR), OBSERVATIONS.astype(complex))
    with pytest.raises(TypeError, match="key"):
        simulate_linear_gaussian(3, REGULAR, 4)
    with pytest.raises(ValueError, match="num_steps"):
        simulate_linear_gaussian(jax.random.key(0), REGULAR, -1)
    with pytest.raises(ValueError, match="observation is"):
        as_state_space_model(REGULAR).log_likelihood(jnp.zeros((4, 3)), jnp.zeros(3), 0)
