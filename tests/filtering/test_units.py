"""Rows that are missing or impossible, auxiliary weights of zero, and log-weights shifted by a million."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxnm import Status, filtering
from tests.compilation import QUICK
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
