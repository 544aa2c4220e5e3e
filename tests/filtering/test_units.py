"""Rows that are missing or impossible, weights of zero, log-weights far from zero, digits that Kalman filters lose."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxnm import Status, filtering
from tests.compilation import QUICK
from tests.filtering.test_kalman import METHODS, NILE
from tests.filtering.test_particle_filter import _THETA, _ahead, _model, _optimal, _record

_KEY = jax.random.key(0)


def _poisson(x, y, time):
    counts = jnp.asarray(y["count"], x.dtype)
    seen = filtering.observed_log_density(lambda value: -0.5 * (value[None] - x[:, None]) ** 2, y["temp"][None])
    return counts * x - jnp.exp(x) - jax.scipy.special.gammaln(counts + 1) + seen


def _poisson_evidence(counts):
    """On a grid of 2001 states, by the trapezoidal rule."""
    x = np.linspace(-6, 6, 2001)
    deviation = 0.5 / np.sqrt(1 - 0.81)
    normal = lambda z, s: np.exp(-0.5 * (z / s) ** 2) / (s * np.sqrt(2 * np.pi))
    belief, evidence = normal(x, deviation) * (x[1] - x[0]), 0.0
    move = normal(x[:, None] - 0.9 * x[None], 0.5) * (x[1] - x[0])
    for t, count in enumerate(counts):
        belief = move @ belief if t else belief
        joint = belief * np.exp(count * x - np.exp(x)) / np.prod(np.arange(1, count + 1))
        evidence += np.log(joint.sum())
        belief = joint / joint.sum()
    return evidence


@pytest.mark.exhaustive
def test_integers_are_observed():
    """Counts beside a sensor that failed: the evidence is that of the counts, whatever their dtype."""
    counts = np.array([3, 5, 4, 6, 2])
    model = filtering.StateSpaceModel(
        lambda key, num: 0.5 / np.sqrt(0.19).item() * jax.random.normal(key, (num,)),
        lambda key, x, time: 0.9 * x + 0.5 * jax.random.normal(key, x.shape),
        _poisson,
    )

    @partial(jax.jit, compiler_options=QUICK)
    def run(values, mask):
        one = lambda key: filtering.particle_filter(
            key, model, {"count": values, "temp": jnp.full(5, jnp.nan)}, num_particles=500, mask=mask
        )
        return jax.vmap(one)(jax.random.split(_KEY, 64))

    exact = _poisson_evidence(counts)
    # by Gauss and Legendre's rule on 30 panels of 8 nodes, the same to 14 digits with 60 panels of 10
    assert exact == pytest.approx(-12.235703291945, abs=1e-6)
    whole, fractions = (run(jnp.asarray(counts, dtype), jnp.ones(5, bool)) for dtype in (int, float))
    assert np.array_equal(whole.log_evidence, fractions.log_evidence)
    assert np.all(np.asarray(whole.status) == Status.OK)
    # the evidence itself, not its logarithm, is estimated without bias
    ratios = np.exp(np.asarray(whole.log_evidence) - exact)
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    assert error < 0.05
    assert np.mean(ratios) == pytest.approx(1, abs=4 * error)
    assert not np.any(run(jnp.asarray(counts), jnp.zeros(5, bool)).log_evidence)
    flags = filtering.StateSpaceModel(
        model.sample_initial, model.sample_transition, lambda x, y, t: jnp.where(y, x, -x)
    )
    assert float(filtering.particle_filter(_KEY, flags, jnp.ones(3, bool), num_particles=9).log_evidence) != 0


@pytest.mark.parametrize("gradient", ["stop", "soft"])
def test_an_auxiliary_weight_of_zero_chooses_nobody(gradient):
    """Half of the particles are impossible: log(1/2) - 100 at first, -100 then; whatever is added to `auxiliary`."""

    def step(edge, above, below):
        edge, above, below = map(jnp.asarray, (edge, above, below))  # arguments of one program
        return lambda x, y, time: jnp.where(x > edge, above, below)

    likelihood = step(0.0, -100.0, -jnp.inf)
    model = filtering.StateSpaceModel(lambda key, num: jnp.linspace(-1, 1, num), lambda key, x, time: x, likelihood)
    run = partial(filtering.particle_filter, _KEY, model, jnp.zeros(2), num_particles=100, gradient=gradient)
    for shift, threshold in itertools.product((0.0, 1e6, -1e6), (0.0, 1.0)):
        result = run(auxiliary=step(0.0, -100.0 + shift, -jnp.inf), ess_threshold=threshold)
        if gradient == "stop" or threshold == 0:
            assert float(result.log_evidence) == pytest.approx(-200 - np.log(2), rel=1e-9)
        assert np.isfinite(result.log_evidence)
        assert float(result.mean[-1]) > 0
        assert int(result.status) == Status.OK
    # what is zero for all says nothing, what is NaN is reported
    useless = run(auxiliary=step(0.0, -jnp.inf, -jnp.inf), ess_threshold=1.0)
    assert np.isfinite(useless.log_evidence)
    assert int(useless.status) == Status.OK
    spoiled = run(auxiliary=step(0.5, jnp.nan, 0.0), ess_threshold=1.0)
    assert int(spoiled.status) == Status.NONFINITE_RESULT
    assert not np.isnan(spoiled.log_evidence)


@pytest.mark.parametrize("options", [{}, {"guided": True}, {"auxiliary": True}, {"ess_threshold": 0.0}], ids=str)
def test_an_impossible_row_is_as_if_it_were_missing(options):
    """The cloud, the evidence of the other rows and its gradient are those with the row masked; the status tells."""
    observations = jnp.asarray(_record(8)).at[4].set(1e200)
    options = dict(options)
    guided, auxiliary = options.pop("guided", False), options.pop("auxiliary", False)

    @partial(jax.jit, compiler_options=QUICK)
    def run(theta, mask):
        extra = {"proposal": Partial(_optimal, theta)} if guided else {}
        extra |= {"auxiliary": Partial(_ahead, theta), "ess_threshold": 1.0} if auxiliary else {}

        def evidence(theta):
            result = filtering.particle_filter(
                _KEY, _model(theta), observations, num_particles=50, mask=mask, **(extra | options)
            )
            return result.log_evidence, result

        (_, result), slope = jax.value_and_grad(evidence, has_aux=True)(theta)
        return result, slope

    dead, slope = run(jnp.asarray(_THETA), jnp.ones(8, bool))
    masked, expected = run(jnp.asarray(_THETA), jnp.arange(8) != 4)
    assert int(dead.status) == Status.DEGENERATE
    assert float(dead.log_evidence) == -np.inf
    assert np.flatnonzero(np.isneginf(dead.log_evidence_increments)).tolist() == [4]
    for name in ("particles", "log_weights", "mean", "effective_sample_size", "resampled"):
        np.testing.assert_allclose(getattr(dead, name), getattr(masked, name), rtol=1e-12)
    others = np.arange(8) != 4
    np.testing.assert_allclose(
        np.asarray(dead.log_evidence_increments)[others], np.asarray(masked.log_evidence_increments)[others], rtol=1e-9
    )
    assert np.all(np.abs(slope) > 0)
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_a_drifting_walk_recovers_from_one_outlier():
    """In float32, where the square of 1e25 overflows: the kept cloud of before would be left behind for good."""
    time = jnp.arange(20, dtype=jnp.float32)
    walk = filtering.StateSpaceModel(
        lambda key, num: jax.random.normal(key, (num,), jnp.float32),
        lambda key, x, time: x + 10 + 0.1 * jax.random.normal(key, x.shape, x.dtype),
        lambda x, y, time: -0.5 * (y - x) ** 2,
    )
    result = filtering.particle_filter(_KEY, walk, (10 * time).at[7].set(1e25), num_particles=500)
    assert int(result.status) == Status.DEGENERATE
    assert np.all(np.abs(result.mean - 10 * time) < 1)


@pytest.mark.parametrize("shift", [1e6, -1e6])
def test_log_weights_have_no_unit(shift):
    """A constant beside a likelihood changes the evidence and nothing else, and beside log-weights only their total."""
    log_weights = jnp.asarray(np.random.default_rng(0).normal(size=9))
    rounding = abs(shift) * 4 * np.finfo(float).eps
    normalized, total = filtering.normalize(log_weights)
    shifted, other = filtering.normalize(log_weights + shift)
    np.testing.assert_allclose(shifted, normalized, atol=rounding)
    assert float(other - shift) == pytest.approx(float(total), abs=rounding)
    for function in (filtering.effective_sample_size, partial(filtering.resample, _KEY)):
        np.testing.assert_allclose(function(log_weights + shift), function(log_weights), rtol=rounding)
    ancestors, weights = filtering.soft_resample(_KEY, log_weights)
    again, shifted = filtering.soft_resample(_KEY, log_weights + shift)
    assert np.array_equal(ancestors, again)
    np.testing.assert_allclose(shifted, weights, atol=rounding)


def test_a_simulation_has_no_derivative():
    world = filtering.world_from_map("small", ("..B.", "....", ".#.."))
    run = lambda speed: jnp.sum(filtering.simulate(_KEY, world, 2, 4, num_ranges=2, speed=speed).ranges)
    with pytest.raises(TypeError, match="simulate: an argument is differentiated, expected no derivative"):
        jax.grad(run)(0.3)


def _one_level(mean, observe, level_variance, noise_variance, dtype):
    arrays = ([mean], [[1.0]], [[1.0]], [[level_variance]], [[observe]], [[noise_variance]])
    return filtering.LinearGaussianModel(*(jnp.asarray(array, dtype) for array in arrays))


def _allowed(dtype):
    return float(np.finfo(dtype).eps) ** 0.375


def _shift(ours, exact):
    """The largest error of means in standard deviations."""
    deviation = np.sqrt(np.diagonal(exact.covariances, axis1=-2, axis2=-1))
    return np.abs(np.asarray(ours.means, float) - np.asarray(exact.means)) / deviation


_both = jax.jit(
    lambda model, rows, method: (
        filtering.kalman_filter(model, rows, method=method),
        filtering.kalman_smoother(model, rows, method=method),
    ),
    static_argnums=2,
    compiler_options=QUICK,
)


@pytest.mark.parametrize("method", METHODS)
def test_an_offset_that_eats_the_digits_of_a_level_is_told(method):
    """Deviations of 0.07 beside 1e5 in float32: OK without the offset only, and then right."""
    rng = np.random.default_rng(0)
    level = 0.1 * rng.normal(size=50).cumsum()
    rows = (level / 3 + 0.03 * rng.normal(size=50))[:, None]
    for offset, status in ((0.0, Status.OK), (1.0, Status.OK), (1e5, Status.INACCURATE)):
        single = jnp.asarray(rows + offset / 3, jnp.float32)
        found = _both(_one_level(offset, 1 / 3, 0.01, 9e-4, np.float32), single, method)
        exact_model = _one_level(offset, np.float32(1 / 3), np.float32(0.01), np.float32(9e-4), np.float64)
        exact = _both(exact_model, jnp.asarray(single, jnp.float64), "sequential")
        for ours, wanted in zip(found, exact, strict=True):
            assert int(wanted.status) == Status.OK
            assert int(ours.status) == status
            if status == Status.OK:
                assert _shift(ours, wanted).max() < _allowed(np.float32)
                assert float(ours.log_evidence) == pytest.approx(float(wanted.log_evidence), rel=1e-4)
            else:
                assert _shift(ours, wanted).max() > 0.03
    far = 1e10 + 1e-6 * rows
    assert int(_both(_one_level(3e10, 1 / 3, 1e-12, 1e-12, np.float64), far, method)[0].status) == Status.INACCURATE


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_that_multiplies_the_rounding_of_the_gain_is_told(method):
    """A trend in float32: an outlier of a million costs 0.06 standard deviations, one of ten nothing."""
    rows = np.random.default_rng(0).normal(size=(20, 1))
    arrays = (np.zeros(2), 100 * np.eye(2), [[1.0, 1.0], [0.0, 1.0]], 0.01 * np.eye(2), [[1.0, 0.0]], [[1.0]])
    model = filtering.LinearGaussianModel(*(jnp.asarray(array, jnp.float32) for array in arrays))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    for size, status in ((1.0, Status.OK), (10.0, Status.OK), (1e6, Status.INACCURATE)):
        rows[10] = size
        single = jnp.asarray(rows, jnp.float32)
        found = _both(model, single, method)
        for ours, wanted in zip(found, _both(wide, single.astype(jnp.float64), "sequential"), strict=True):
            assert int(wanted.status) == Status.OK
            assert int(ours.status) == status
            assert (_shift(ours, wanted).max() < _allowed(np.float32)) == (status == Status.OK)


def test_ordinary_models_are_ok():
    """The Nile by a trend and by a level, which is a trend that is known to stay zero; in float32, by both methods."""
    for slope, slope_noise in ((1e3, 10.0), (0.0, 0.0)):
        arrays = (
            [1000.0, 0.0],
            np.diag([1e5, slope]),
            [[1.0, 1.0], [0.0, 1.0]],
            np.diag([1469.1, slope_noise]),
            [[1.0, 0.0]],
            [[15099.0]],
        )
        model = filtering.LinearGaussianModel(*(jnp.asarray(array, jnp.float32) for array in arrays))
        for method in METHODS:
            for result in _both(model, jnp.asarray(NILE, jnp.float32), method):
                assert int(result.status) == Status.OK


@pytest.mark.parametrize("method", METHODS)
def test_ok_in_single_precision_is_what_double_precision_says(method):
    """400 models of three states whose numbers spread over up to eight orders, some singular, with gaps."""
    rng = np.random.default_rng(0)

    def spread(width, *shape):
        return 10.0 ** rng.uniform(-width, width, shape)

    def covariance(n, width):
        root = np.tril(rng.normal(size=(n, n))) * spread(width, n)[:, None]
        root[:, rng.integers(n)] *= rng.random() < 0.75
        return root @ root.T

    def draw():
        width = rng.uniform(0, 4)
        arrays = (
            rng.normal(size=3) * spread(width, 3),
            covariance(3, width),
            rng.normal(size=(3, 3)) * spread(width / 2, 1),
            covariance(3, width),
            rng.normal(size=(2, 3)) * spread(width / 2, 1),
            covariance(2, width) + np.diag(spread(width, 2)),
            np.zeros(3),
            np.zeros(2),
        )
        rows = rng.normal(size=(6, 2)) * spread(width, 2)
        rows[rng.random((6, 2)) < 0.2] = np.nan
        return filtering.LinearGaussianModel(*(jnp.asarray(a, jnp.float32) for a in arrays)), rows.astype(np.float32)

    drawn = [draw() for _ in range(400)]
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(model for model, _ in drawn))
    rows = jnp.stack([jnp.asarray(rows) for _, rows in drawn])
    run = jax.jit(jax.vmap(partial(filtering.kalman_filter, method=method)), compiler_options=QUICK)
    found = run(models, rows)
    exact = run(*jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (models, rows)))
    good = (np.asarray(found.status) == Status.OK) & (np.asarray(exact.status) == Status.OK)
    assert good.sum() > 200
    allowed = 2 * _allowed(np.float32)
    variances = [np.diagonal(np.asarray(x.covariances, float), axis1=2, axis2=3) for x in (found, exact)]
    assert np.all(np.abs(variances[0] - variances[1])[good] <= allowed * variances[1][good])
    # a state that is known has no deviation, and is right to rounding
    unit = np.where(variances[1] > 0, np.sqrt(variances[1]), np.abs(exact.means))
    assert np.all(np.abs(np.asarray(found.means, float) - exact.means)[good] <= allowed * unit[good])
    evidence = np.abs(np.asarray(found.log_evidence, float) - exact.log_evidence)
    scale = 1 + np.sum(np.abs(exact.log_evidence_increments), 1)
    assert np.all((evidence / scale)[good] < allowed)


@pytest.mark.parametrize("size", [1.0, 1e16, 1e-16])
def test_a_negative_variance_is_seen_beside_any_other(size):
    """OUT_OF_RANGE, or NaN, wherever it stands; and variances that are as far apart and positive are fine."""
    eye = jnp.eye(2)
    good = filtering.LinearGaussianModel(jnp.zeros(2), jnp.diag(jnp.array([1.0, 100.0])), eye, eye, eye, eye)
    run = lambda model: filtering.kalman_filter(model, jnp.zeros((2, 2))).status
    for name in ("initial_covariance", "transition_covariance", "observation_covariance"):
        for sign, status in ((1.0, Status.OK), (-1.0, Status.OUT_OF_RANGE)):
            model = good.replace(**{name: jnp.diag(jnp.array([size, sign]))})
            assert int(run(model)) == status
            drawn = filtering.simulate_linear_gaussian(_KEY, model, 2)[1]
            assert bool(jnp.all(jnp.isfinite(drawn[1]))) == (sign > 0)
    # what does not vary has no covariance
    lonely = good.replace(initial_covariance=jnp.array([[size, 1e-3], [1e-3, 0.0]]))
    assert int(run(lonely)) == Status.OUT_OF_RANGE


@pytest.mark.parametrize("name", ["initial_covariance", "transition_covariance", "observation_covariance"])
def test_a_covariance_that_is_not_symmetric_is_none(name):
    """In deviations and not in units; what rounding leaves is taken for symmetric."""
    eye, unit = jnp.eye(2), jnp.array([[1.0, 1e8], [1e8, 1e16]])
    good = filtering.LinearGaussianModel(jnp.zeros(2), eye, eye, eye, eye, eye)
    for scale in (1.0, unit):
        skew, rounded = (jnp.array([[1.0, 0.5 + size], [0.5, 1.0]]) * scale for size in (0.4, 1e-12))
        for covariance, status in ((skew, Status.OUT_OF_RANGE), (rounded, Status.OK)):
            model = good.replace(**{name: covariance})
            assert int(filtering.kalman_filter(model, jnp.zeros((2, 2))).status) == status
            drawn = filtering.simulate_linear_gaussian(_KEY, model, 2)[1]
            assert bool(jnp.all(jnp.isfinite(drawn[1]))) == (status == Status.OK)
