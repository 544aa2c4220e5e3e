"""The rows of jaxnm.filtering: weights, observations, models and parameters are arguments, keys are fixed."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from jaxnm import filtering
from tests.contracts.row import Row, Shift, law, matrix, number, of


def _key(seed: int) -> jax.Array:
    """A fixed key; made by the row and not by what it calls, so that it may be transferred."""
    with jax.transfer_guard("allow"):
        return jax.random.key(seed)


_INTEGER = "integers"
_LOGARITHMS = "log-weights have no unit; their shifts are in tests/filtering/test_units.py"
_CELLS = "cells are the unit of a world, and its map is static"
_NETWORK = "a network has no units"
_HOST = "made on the host from a static map or module; see tests/filtering"
_TRAINING = "takes a module or a file, and runs on the host; see tests/filtering/test_training.py"
_MAP = ("..B.", "....", ".#..")


def _log_weights(dtype: Any) -> jax.Array:
    return matrix(dtype, 6)


def _vector(dtype: Any) -> jax.Array:
    return jnp.asarray([0.7, 1.0, 0.6], dtype)


def _theta(dtype: Any) -> tuple[jax.Array, ...]:
    """A share, and standard deviations of moves and observations, in units of the state."""
    return tuple(jnp.asarray(value, dtype) for value in (0.7, 1.0, 0.6))


def _initial(theta: tuple[jax.Array, ...], key: jax.Array, num: int) -> jax.Array:
    return theta[1] * jax.random.normal(key, (num,), theta[1].dtype)


def _transition(theta: tuple[jax.Array, ...], key: jax.Array, x: jax.Array, time: Any) -> jax.Array:
    return theta[0] * x + theta[1] * jax.random.normal(key, x.shape, x.dtype)


def _log_likelihood(theta: tuple[jax.Array, ...], x: jax.Array, y: jax.Array, time: Any) -> jax.Array:
    return -0.5 * ((y - x) / theta[2]) ** 2 - jnp.log(theta[2])


def _log_transition(theta: tuple[jax.Array, ...], new: jax.Array, old: jax.Array, time: Any) -> jax.Array:
    return -0.5 * ((new - theta[0] * old) / theta[1]) ** 2 - jnp.log(theta[1])


def _model(theta: tuple[jax.Array, ...]) -> filtering.StateSpaceModel:
    functions = (_initial, _transition, _log_likelihood, _log_transition)
    return filtering.StateSpaceModel(*(Partial(function, theta) for function in functions))


def _filter(theta: tuple[jax.Array, ...], observations: jax.Array, **options: Any) -> filtering.FilterResult:
    # with ancestors held fixed a second derivative is that of the first
    options = {"num_particles": 8, "gradient": "plain"} | options
    return filtering.particle_filter(_key(0), _model(theta), observations, **options)


def _full(theta: tuple[jax.Array, ...], observations: jax.Array) -> filtering.FilterResult:
    return _filter(theta, observations, history="full")


def _first(theta: tuple[jax.Array, ...], observation: jax.Array) -> Any:
    return filtering.filter_init(_key(0), _model(theta), observation, num_particles=8)


def _next(theta: tuple[jax.Array, ...], observation: jax.Array) -> Any:
    state, _ = _first(theta, observation)
    return filtering.filter_step(_key(1), _model(theta), state, observation, gradient="plain")


def _sharded(theta: tuple[jax.Array, ...], observations: jax.Array) -> filtering.FilterResult:
    mesh = jax.make_mesh((1,), ("particles",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"num_particles": 8, "mesh": mesh, "ess_threshold": 0.0}
    return filtering.sharded_particle_filter(_key(0), _model(theta), observations, **options)


def _backward(theta: tuple[jax.Array, ...], observations: jax.Array) -> filtering.SampledPaths:
    return filtering.backward_sample(_key(2), _model(theta), _full(theta, observations), 3)


def _world(dtype: Any) -> filtering.World:
    with jax.transfer_guard("allow"):
        return filtering.world_from_map("small", _MAP, dtype=dtype)


def _simulate(speed: jax.Array) -> filtering.Trajectories:
    return filtering.simulate(_key(0), _world(speed.dtype), 2, 4, num_ranges=2, speed=speed)


def _histogram(ranges: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Without the log-probabilities, which are -inf where cells are blocked."""
    result = filtering.histogram_filter(_world(ranges.dtype), (ranges, actions), resolution=2, jitter=0.3)
    return result.means, result.log_evidence


def _linear(dtype: Any) -> filtering.LinearGaussianModel:
    one = lambda value, n: jnp.asarray(value, dtype) * jnp.eye(n, dtype=dtype)
    return filtering.LinearGaussianModel(
        initial_mean=matrix(dtype, 2),
        initial_covariance=one(1.5, 2),
        transition=matrix(dtype, 2, 2) / 2,
        transition_covariance=one(0.3, 2),
        observation=matrix(dtype, 1, 2, seed=1),
        observation_covariance=one(0.2, 1),
    )


def _simulate_linear(model: filtering.LinearGaussianModel) -> Any:
    return filtering.simulate_linear_gaussian(_key(0), model, 3)


def _with_symmetric_covariances(args: Any, tangents: Any) -> Any:
    """Other matrices are none."""
    model, *rest = tangents
    names = ("initial_covariance", "transition_covariance", "observation_covariance")
    symmetric = {name: (getattr(model, name) + getattr(model, name).T) / 2 for name in names}
    return (model.replace(**symmetric), *rest)


_CLOUD = {
    ".particles": 1, ".mean": 1, ".log_evidence": Shift(-4), ".log_evidence_increment": Shift(-1),
}  # fmt: skip
_FILTER_LAW = law((0, 1, 1), 1, result=_CLOUD)
_KALMAN_UNITS = filtering.LinearGaussianModel(1, 2, 0, 2, 0, 2)
_KALMAN = {".means": 1, ".covariances": 2, ".log_evidence": Shift(-4)}
_FILTERED = {".predicted_means": 1, ".predicted_covariances": 2, ".log_evidence_increments": Shift(-1)}


def _unroll(kind: str) -> Any:
    def build(dtype: Any) -> Any:
        # the network is float32, whatever x64 is: its parameters are arguments
        cell = filtering.PFGRUCell(3, 4, observation_features=4, input_features=4, dtype=dtype, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(cell)

        def run(params: Any, inputs: jax.Array) -> Any:
            return filtering.unroll(graphdef, params, inputs, _key(0), num_particles=3)

        def start(params: Any, inputs: jax.Array) -> Any:
            return filtering.initial_particles(_key(0), nnx.merge(graphdef, params), 2, 3)

        leaves, structure = jax.tree.flatten(params)
        function = {"unroll": run, "initial_particles": start}[kind]
        return lambda leaves, inputs: function(jax.tree.unflatten(structure, leaves), inputs), (
            leaves,
            matrix(dtype, 2, 2, 3),
        )

    return build


def _poses(dtype: Any) -> jax.Array:
    return 1 + matrix(dtype, 3, 2, 3) ** 2


_size = lambda dtype: jnp.asarray([4.0, 5.0], dtype)

_rows = lambda dtype: matrix(dtype, 4)

FILTERING_ROWS = [
    Row("filtering.normalize", of(filtering.normalize, _log_weights), scaling=_LOGARITHMS),
    Row("filtering.effective_sample_size", of(filtering.effective_sample_size, _log_weights), scaling=_LOGARITHMS),
    Row(
        "filtering.resample",
        of(lambda x: filtering.resample(_key(0), x), _log_weights),
        _INTEGER,
        order=None,
        scaling=_LOGARITHMS,
    ),
    Row(
        "filtering.soft_resample",
        of(lambda x: filtering.soft_resample(_key(0), x)[1], _log_weights),
        scaling=_LOGARITHMS,
    ),
    Row(
        "filtering.observed_log_density",
        of(lambda y, x: filtering.observed_log_density(lambda y: -((y - x) ** 2), y), _vector, _vector),
        scaling=law(1, 1, result=2),
    ),
    Row("filtering.particle_filter", of(_filter, _theta, _rows), heavy=True, scaling=_FILTER_LAW),
    Row("filtering.sharded_particle_filter", of(_sharded, _theta, _rows), heavy=True, scaling=_FILTER_LAW),
    Row(
        "filtering.filter_init",
        of(_first, _theta, number(0.3)),
        scaling=law((0, 1, 1), 1, result=_CLOUD | {".log_evidence": Shift(-1)}),
    ),
    Row(
        "filtering.filter_step",
        of(_next, _theta, number(0.3)),
        heavy=True,
        scaling=law((0, 1, 1), 1, result=_CLOUD | {".log_evidence": Shift(-2)}),
    ),
    Row(
        "filtering.genealogy",
        of(lambda *args: filtering.genealogy(_full(*args)), _theta, _rows),
        _INTEGER,
        heavy=True,
        order=None,
        scaling=law((0, 1, 1), 1, result=0),
    ),
    Row(
        "filtering.smoothed_mean",
        of(lambda *args: filtering.smoothed_mean(_full(*args)), _theta, _rows),
        heavy=True,
        scaling=law((0, 1, 1), 1, result=1),
    ),
    Row(
        "filtering.backward_sample",
        of(_backward, _theta, _rows),
        heavy=True,
        scaling=law((0, 1, 1), 1, result=1),
    ),
    Row(
        "filtering.degeneracy",
        of(lambda *args: filtering.degeneracy(_full(*args)), _theta, _rows),
        heavy=True,
        scaling=law((0, 1, 1), 1, result=0),
    ),
    Row(
        "filtering.kalman_filter",
        of(filtering.kalman_filter, _linear, lambda d: matrix(d, 4, 1)),
        smooth=_with_symmetric_covariances,
        heavy=True,
        scaling=law(_KALMAN_UNITS, 1, result=_KALMAN | _FILTERED),
    ),
    Row(
        "filtering.kalman_smoother",
        of(filtering.kalman_smoother, _linear, lambda d: matrix(d, 4, 1)),
        smooth=_with_symmetric_covariances,
        heavy=True,
        scaling=law(_KALMAN_UNITS, 1, result=_KALMAN | {".cross_covariances": 2}),
    ),
    Row(
        "filtering.simulate_linear_gaussian",
        of(_simulate_linear, _linear),
        smooth=_with_symmetric_covariances,
        heavy=True,
        scaling=law(_KALMAN_UNITS, result=1),
    ),
    *(
        Row(f"filtering.{name}", of(lambda x: None, number(1.0)), _HOST, "makes functions, not arrays; see its tests")
        for name in ("as_state_space_model", "optimal_proposal", "localization_model")
    ),
    *(
        Row(f"filtering.{name}", of(lambda x: None, number(1.0)), _HOST, _HOST)
        for name in ("maze10", "maze18", "maze27", "labyrinth", "world_from_map")
    ),
    Row(
        "filtering.is_free",
        of(lambda x: filtering.is_free(_world(x.dtype), x), lambda d: 1 + matrix(d, 3, 2) ** 2),
        "booleans",
        order=None,
        scaling=_CELLS,
    ),
    Row(
        "filtering.nearest_ranges",
        of(
            lambda x, b: filtering.nearest_ranges(x, b, 2), lambda d: matrix(d, 3, 2), lambda d: matrix(d, 4, 2, seed=1)
        ),
        scaling=law(1, 1, result=1),
    ),
    Row(
        "filtering.simulate",
        of(_simulate, number(0.3)),
        "it chooses among free moves",
        heavy=True,
        order=0,
        scaling=_CELLS,
    ),
    Row(
        "filtering.histogram_filter",
        of(_histogram, lambda d: 1 + matrix(d, 3, 2) ** 2, lambda d: matrix(d, 3, 4) / 4),
        heavy=True,
        scaling=_CELLS,
    ),
    Row("filtering.unroll", _unroll("unroll"), heavy=True, tolerance=1e-9, scaling=_NETWORK),
    Row("filtering.initial_particles", _unroll("initial_particles"), scaling=_NETWORK),
    *(
        Row(f"filtering.{name}", of(lambda x: None, number(1.0)), _TRAINING, _TRAINING)
        for name in ("train", "evaluate", "network_inputs", "motion_loss", "save_parameters", "load_parameters")
    ),
    Row(
        "filtering.localization_loss",
        of(filtering.localization_loss, lambda d: matrix(d, 3, 2, 3), _poses, _size),
        scaling="positions are relative to the sides of the world, headings in turns",
    ),
    Row(
        "filtering.elbo_loss",
        of(filtering.elbo_loss, lambda d: matrix(d, 3, 2, 4, 3), _poses, _size),
        scaling="positions are relative to the sides of the world, headings in turns",
    ),
]
