"""Promises of jaxnm.filtering."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import filtering
from jaxnm.filtering.kalman_errors import tolerance
from tests.trust.measure import Measure

_KEY = jax.random.key(0)
_OBSERVATIONS = np.random.default_rng(0).normal(size=8).cumsum()


# ------------------------------------------------------------------------------------------------- exact filters


def _tracks(dtype: Any) -> list[tuple[Any, ...]]:
    """A target by its position and speed, of which the prior variance is 1 to 1e14 times that of an observation."""
    inputs = []
    for variance in (1.0, 1e3, 1e5, 1e6, 1e8, 1e11, 1e14):
        for unit in (1e-4, 1.0, 1e4):
            arrays = (
                np.zeros(2),
                variance * np.eye(2) * unit**2,
                np.array([[1.0, 1.0], [0.0, 1.0]]),
                0.01 * np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]]) * unit**2,
                np.array([[1.0, 0.0]]),
                np.array([[1.0]]) * unit**2,
            )
            model = filtering.LinearGaussianModel(*(jnp.asarray(array, dtype) for array in arrays))
            inputs.append((model, jnp.asarray(_OBSERVATIONS[:, None] * unit, dtype)))
    return inputs


def _exact(model: filtering.LinearGaussianModel, observations: Any) -> tuple[Any, ...]:
    """Means and covariances, filtered and smoothed, in extended precision."""
    exact = np.longdouble
    names = ("initial_mean", "initial_covariance", "transition", "transition_covariance", "observation")
    mean, covariance, F, Q, H = (np.asarray(getattr(model, name)).astype(exact) for name in names)
    R = np.asarray(model.observation_covariance).astype(exact)
    filtered, predicted = [], []
    for t, y in enumerate(np.asarray(observations).astype(exact)):
        if t:
            mean, covariance = F @ mean, F @ covariance @ F.T + Q
        predicted.append((mean, covariance))
        gain = covariance @ H.T / (H @ covariance @ H.T + R)
        kept = np.eye(2, dtype=exact) - gain @ H
        mean, covariance = mean + gain @ (y - H @ mean), kept @ covariance @ kept.T + gain @ R @ gain.T
        filtered.append((mean, covariance))
    smoothed = [filtered[-1]]
    for (mean, covariance), (ahead, spread) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        (a, b), (_, d) = spread
        inverse = np.array([[d, -b], [-b, a]]) / (a * d - b * b)
        E = covariance @ F.T @ inverse
        kept = np.eye(2, dtype=exact) - E @ F
        later_mean, later = smoothed[0]
        spread = kept @ covariance @ kept.T + E @ Q @ E.T
        smoothed.insert(0, (mean + E @ (later_mean - ahead), E @ later @ E.T + spread))
    stack = lambda pairs: (np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]))
    return stack(filtered), stack(smoothed)


def _kalman_error(which: int, inputs: tuple[Any, ...], result: Any) -> float:
    means, covariances = _exact(*inputs)[which]
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    found = np.diagonal(np.asarray(result.covariances, np.float64), axis1=1, axis2=2)
    shift = np.max(np.abs(np.asarray(result.means, np.float64) - means) / np.sqrt(variances))
    return float(max(shift, np.max(np.abs(found / variances - 1)))) / (10 * tolerance(inputs[1].dtype))


# ---------------------------------------------------------------------------------------------- particle filters


def _model(unit: Any) -> filtering.StateSpaceModel:
    return filtering.StateSpaceModel(
        sample_initial=lambda key, num: unit * jax.random.normal(key, (num,), unit.dtype),
        sample_transition=lambda key, x, time: x + unit * jax.random.uniform(key, x.shape, x.dtype, -1, 1),
        log_likelihood=lambda x, y, time: -0.5 * ((y - x) / unit) ** 2 - jnp.log(unit),
        transition_log_density=lambda new, old, time: jnp.where(
            jnp.abs(new - old) <= 1.001 * unit, -jnp.log(2 * unit), -jnp.inf
        ),
    )


def _records(dtype: Any) -> list[tuple[Any, ...]]:
    """A walk in several units, and one observation that nothing explains."""
    records = [_OBSERVATIONS, np.where(np.arange(8) == 4, np.nan, _OBSERVATIONS), _OBSERVATIONS.copy()]
    records[2][4] = np.finfo(dtype).max / 1e6
    return [
        (jnp.asarray(unit, dtype), jnp.asarray(record * unit, dtype)) for unit in (1e-6, 1.0, 1e5) for record in records
    ]


@jax.jit
def _filter(unit: Any, record: Any) -> filtering.FilterResult:
    return filtering.particle_filter(_KEY, _model(unit), record, num_particles=100, history="full")


@jax.jit
def _sharded(unit: Any, record: Any) -> filtering.FilterResult:
    mesh = jax.make_mesh((1,), ("particles",), axis_types=(jax.sharding.AxisType.Auto,))
    return filtering.sharded_particle_filter(_KEY, _model(unit), record, num_particles=100, mesh=mesh)


@jax.jit
def _begin(unit: Any, record: Any) -> filtering.FilterState:
    return filtering.filter_init(_KEY, _model(unit), record[4], num_particles=100)[0]


@jax.jit
def _advance(unit: Any, record: Any) -> filtering.FilterState:
    state, _ = filtering.filter_init(_KEY, _model(unit), record[3], num_particles=100)
    return filtering.filter_step(jax.random.key(1), _model(unit), state, record[4])[0]


@jax.jit
def _trajectories(unit: Any, record: Any) -> filtering.SampledPaths:
    paths = filtering.backward_sample(jax.random.key(1), _model(unit), _filter(unit, record), 20)
    return paths.replace(status=jnp.max(paths.status))


def _evidence_error(inputs: tuple[Any, ...], result: filtering.FilterResult) -> float:
    """The increments by the clouds that are kept: the mean likelihood under the weights before the observation."""
    unit, record = (np.asarray(part, np.float64) for part in inputs)
    clouds, log_weights = (np.asarray(x, np.float64) for x in (result.history.particles, result.history.log_weights))
    worst = abs(np.exp(np.asarray(result.log_weights, np.float64)).sum() - 1)
    for t, y in enumerate(record):
        even = t == 0 or result.resampled[t]
        before = np.full(100, 0.01) if even else np.exp(log_weights[t - 1])
        density = 1.0 if np.isnan(y) else np.exp(-0.5 * ((y - clouds[t]) / unit) ** 2) / unit
        wanted = np.log(np.sum(before * density))
        error = abs(float(result.log_evidence_increments[t]) - wanted)
        worst = max(worst, error / (1 + abs(wanted)))
    return float(worst) / (1000 * float(jnp.finfo(inputs[0].dtype).eps))


def _weights_error(inputs: tuple[Any, ...], result: Any) -> float:
    weights = np.exp(np.asarray(result.log_weights, np.float64))
    finite = np.isfinite(np.asarray(result.log_evidence)) and np.all(np.isfinite(np.asarray(result.particles)))
    return float(abs(weights.sum() - 1) / (1000 * float(jnp.finfo(inputs[0].dtype).eps))) if finite else np.inf


def _path_error(inputs: tuple[Any, ...], result: filtering.SampledPaths) -> float:
    """How far the longest move of a trajectory is, in units of the longest that the model can make."""
    moves = np.diff(np.asarray(result.states, np.float64), axis=1) / float(inputs[0])
    return float(np.max(np.abs(moves))) / 1.01


# ------------------------------------------------------------------------------------------------- grid filter


def _world(dtype: Any) -> filtering.World:
    return filtering.world_from_map("small", ("..B.", "....", ".#.."), dtype=dtype)


def _tours(dtype: Any) -> list[tuple[Any, ...]]:
    """Three robots, one whose moves lead out of the world, and one that hears what it cannot."""
    tracks = filtering.simulate(_KEY, _world(dtype), 3, 6, num_ranges=2)
    tours = [(tracks.ranges[i], tracks.actions[i]) for i in range(3)]
    tours.append((tours[0][0], tours[0][1].at[2, 0].set(50.0)))
    tours.append((tours[0][0].at[2].set(1e30), tours[0][1]))
    return tours


@jax.jit
def _grid(ranges: Any, actions: Any) -> filtering.HistogramResult:
    return filtering.histogram_filter(_world(ranges.dtype), (ranges, actions), resolution=4, range_scale=0.3)


def _grid_error(inputs: tuple[Any, ...], result: filtering.HistogramResult) -> float:
    probabilities = np.exp(np.asarray(result.log_probabilities, np.float64))
    axes = [(np.arange(n) + 0.5) / 4 for n in probabilities.shape]
    mean = [np.sum(probabilities.sum(1 - axis) * axes[axis]) for axis in (0, 1)]
    error = max(abs(probabilities.sum() - 1), np.max(np.abs(np.asarray(result.means[-1], np.float64) - mean)))
    return float(error) / (1000 * float(jnp.finfo(inputs[0].dtype).eps))


_kalman = {name: jax.jit(getattr(filtering, name)) for name in ("kalman_filter", "kalman_smoother")}
_DEVIATIONS = "means within 10 eps^(3/8) standard deviations, variances within as much of themselves"
MEASURES = [
    *(
        Measure(f"filtering.{name}", _DEVIATIONS, _tracks, run, partial(_kalman_error, which))
        for which, (name, run) in enumerate(_kalman.items())
    ),
    Measure("filtering.particle_filter", "increments by the clouds that are kept", _records, _filter, _evidence_error),
    Measure(
        "filtering.sharded_particle_filter", "weights of total one", _records, _sharded, _weights_error, heavy=True
    ),
    Measure("filtering.filter_init", "weights of total one", _records, _begin, _weights_error),
    Measure("filtering.filter_step", "weights of total one", _records, _advance, _weights_error),
    Measure("filtering.backward_sample", "every move is possible", _records, _trajectories, _path_error),
    Measure("filtering.histogram_filter", "a total of one and its mean", _tours, _grid, _grid_error, heavy=True),
]
