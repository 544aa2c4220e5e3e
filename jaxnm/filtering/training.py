"""Training of recurrent cells that localize a robot: one function from a cell and trajectories to parameters.

Steps run on the device, in one program for all of them; the host hears of them now and then, and keeps checkpoints. A
step depends on the parameters, the state of the optimizer, the key of the run and its own number, and on nothing else,
so that a run that was resumed ends bit for bit where one without a break would.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int32, Key

from jaxnm import arguments
from jaxnm.filtering.cells import CellOutput
from jaxnm.filtering.checkpoints import RunFolder, describe_cell, digest, signature
from jaxnm.filtering.losses import elbo_loss, localization_loss
from jaxnm.filtering.motion import motion_loss
from jaxnm.filtering.unrolling import unroll
from jaxnm.filtering.worlds import Trajectories, World
from jaxnm.status import Status, first_failing, merge

Loss = Literal["localization", "elbo"] | Callable[[CellOutput, Array, Array], Array]
Report = Callable[[int, dict[str, np.ndarray]], Any]
# the most steps between two looks of the host, and the length of the buffer of their metrics
_CHUNK = 128
_METRICS = ("loss", "gradient_norm", "final_error", "motion_error")


@flax.struct.dataclass
class TrainingResult:
    """What came of a training; with `num_seeds` every array has the seeds first."""

    params: Any
    """As in `graphdef, params = nnx.split(cell)`; the last finite ones."""
    optimizer_state: Any
    history: dict[str, Float[np.ndarray, "*seeds steps"]]
    """Of every step: "loss" (the total), "gradient_norm" (before clipping), "final_error" (mean distance in cells at
    the end of the sequences of the batch; NaN with loss_weight=0), "motion_error" (root mean square, in cells; zero
    without motion_weight). NaN in the steps that were not taken."""
    steps: Int32[Array, "*seeds"]
    """How many were taken."""
    status: Int32[Array, "*seeds"]
    """NONFINITE_RESULT where the loss or the parameters became inf or NaN; training stopped there."""


@flax.struct.dataclass
class LocalizationErrors:
    """How far predicted positions are from the true ones, in cells."""

    mean_squared: Float[Array, ""]
    """Over all times and trajectories."""
    final_mean_squared: Float[Array, ""]
    """At the last time, as are all the following."""
    final_mean: Float[Array, ""]
    final_median: Float[Array, ""]
    within_half: Float[Array, ""]
    """The share of trajectories with an error below half a cell."""
    distances: Float[Array, "n T"]
    """Of every trajectory and time."""


@flax.struct.dataclass
class _Program:
    """What is static in a step."""

    graphdef: Any = flax.struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    loss: Any = flax.struct.field(pytree_node=False)
    batch_size: int = flax.struct.field(pytree_node=False)
    num_particles: int = flax.struct.field(pytree_node=False)
    motion: bool = flax.struct.field(pytree_node=False)
    checkpoint: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class _Data:
    inputs: Array
    poses: Array
    beacons: Array
    size: Array
    weights: Array
    """[2], of the loss and of the motion."""


@flax.struct.dataclass
class _State:
    params: Any
    optimizer_state: Any
    steps: Array
    status: Array


# ------------------------------------------------------------------------------------------------ data and errors


def network_inputs(trajectories: Trajectories) -> Float[Array, "T n {4+k}"]:
    """Trajectories as the inputs of a cell: actions and then ranges, time first.

    Args:
      trajectories: of `worlds.simulate`, n of T steps with k ranges.

    Returns:
      [T, n, 4 + k]. Differentiable.

    Example:
      >>> from jaxnm.filtering import worlds
      >>> network_inputs(worlds.simulate(jax.random.key(0), worlds.maze10(), 100, 50)).shape
      (50, 100, 9)
    """
    return jnp.moveaxis(jnp.concatenate([trajectories.actions, trajectories.ranges], -1), 0, 1)


def evaluate(
    graphdef: nnx.GraphDef,
    params: Any,
    trajectories: Trajectories | tuple[ArrayLike, ArrayLike],
    world: World,
    *,
    key: Key[Array, ""],
    num_particles: int = 30,
) -> LocalizationErrors:
    """Run a cell on trajectories and measure how far its predictions are from the truth.

    The prediction is the weighted mean of those of the particles.

    Args:
      graphdef: of `graphdef, params = nnx.split(cell)`.
      params: of the same, or of a `TrainingResult` of one seed; `jax.vmap` over several.
      trajectories: `Trajectories`, or a pair (inputs [T, n, features], poses [T, n, 3]).
      world: where; it may be another one than that of the training, also of another size.
      key: typed key.
      num_particles: K (static), free of that of the training.

    Returns:
      `LocalizationErrors`, in cells, of the dtype of the parameters.

    Raises:
      ValueError: num_particles < 1, shapes that do not fit. TypeError: a raw key.

    Cost: one forward pass. Not differentiable (a median).

    Example:
      >>> from jaxnm.filtering import worlds
      >>> from jaxnm.filtering.unrolling import RecurrentBaseline
      >>> tracks = worlds.simulate(jax.random.key(0), worlds.maze10(), 20, 10)
      >>> model = nnx.split(RecurrentBaseline(9, rngs=nnx.Rngs(0)))
      >>> evaluate(*model, tracks, worlds.maze10(), key=jax.random.key(1)).distances.shape
      (20, 10)
    """
    arguments.check_key("evaluate", key)
    arguments.check_count("evaluate", "num_particles", num_particles, minimum=1)
    data = _data("evaluate", trajectories, world, params)
    return _evaluate(graphdef, params, data, key, int(num_particles))


@partial(jax.jit, static_argnums=(0, 4))
def _evaluate(graphdef: nnx.GraphDef, params: Any, data: _Data, key: Array, num_particles: int) -> LocalizationErrors:
    world = {"beacons": data.beacons, "size": data.size}
    output = unroll(graphdef, params, data.inputs, key, num_particles=num_particles, **world)
    squares = _squared_distances(_mean_position(output), data).T
    distances = jnp.sqrt(squares)
    final = distances[:, -1]
    within = jnp.mean((final < 0.5).astype(final.dtype))
    return LocalizationErrors(
        jnp.mean(squares), jnp.mean(squares[:, -1]), jnp.mean(final), jnp.median(final), within, distances
    )


def _mean_position(output: CellOutput) -> Array:
    return jnp.sum(jnp.exp(output.log_weights)[..., None] * output.predictions[..., :2], -2)


def _squared_distances(positions: Array, data: _Data) -> Array:
    return jnp.sum((positions * data.size[None, None] - data.poses[..., :2]) ** 2, -1)


def _data(function: str, trajectories: Any, world: World, params: Any) -> _Data:
    dtype = jax.tree.leaves(params)[0].dtype
    if isinstance(trajectories, Trajectories):
        inputs, poses = network_inputs(trajectories), jnp.moveaxis(trajectories.poses, 0, 1)
    elif isinstance(trajectories, tuple) and len(trajectories) == 2:
        inputs, poses = arguments.to_arrays(function, inputs=trajectories[0], poses=trajectories[1])
    else:
        got = f"of type {type(trajectories).__name__}"
        expected = "Trajectories, or a pair (inputs, poses)"
        arguments.refuse(function, "trajectories", got, expected, "see worlds.simulate", error=TypeError)
    condition = lambda shape: len(shape) == 3 and shape[0] >= 1 and shape[1] >= 1
    arguments.check_shape(function, "inputs", inputs, "[T, n, features] with T, n >= 1", condition)
    expected = (*inputs.shape[:2], 3)
    arguments.check_shape(function, "poses", poses, f"{expected} (T, n, 3)", lambda shape: shape == expected)
    size = jnp.array(world.blocked.shape, dtype)
    return _Data(inputs.astype(dtype), poses.astype(dtype), world.beacons.astype(dtype), size, jnp.ones(2, dtype))


# ------------------------------------------------------------------------------------------------ losses


def _localization(output: CellOutput, poses: Array, size: Array) -> Array:
    return localization_loss(output.mean, poses, size)


def _elbo(output: CellOutput, poses: Array, size: Array) -> Array:
    options = {"weighted": True, "scale": 0.03, "heading_weight": 0.02}
    return elbo_loss(output.predictions, poses, size, output.log_weights, **options)


_LOSSES = {"localization": _localization, "elbo": _elbo}


def _total_loss(program: _Program, params: Any, data: _Data, key: Array) -> tuple[Array, tuple[Array, Array]]:
    """The loss of a batch; and the mean final error and the motion error, in cells."""
    unroll_key, motion_key = jax.random.split(key)
    world = {"beacons": data.beacons, "size": data.size}
    loss = jnp.zeros((), data.size.dtype)
    final = jnp.full_like(loss, jnp.nan)
    if program.loss is not None:
        options = {"num_particles": program.num_particles, "checkpoint": program.checkpoint}
        output = unroll(program.graphdef, params, data.inputs, unroll_key, **options, **world)
        loss = jnp.asarray(_LOSSES.get(program.loss, program.loss)(output, data.poses, data.size))
        arguments.check_shape("train", "the value of loss", loss, "a scalar", lambda shape: shape == ())
        last, poses = jax.tree.map(lambda x: x[-1:], (_mean_position(output), data.poses))
        final = jnp.mean(jnp.sqrt(_squared_distances(last, dataclasses.replace(data, poses=poses))))
    motion = jnp.zeros_like(loss)
    if program.motion:
        motion = motion_loss(program.graphdef, params, data.inputs, motion_key, **world)
    total = data.weights[0] * loss + data.weights[1] * motion
    return total, jax.lax.stop_gradient((final, jnp.sqrt(motion)))


# ------------------------------------------------------------------------------------------------ training


def train(
    key: Key[Array, ""],
    model: Any,
    trajectories: Trajectories | tuple[ArrayLike, ArrayLike],
    world: World,
    *,
    steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    num_particles: int = 30,
    loss: Loss = "localization",
    loss_weight: float | Float[Array, ""] = 1.0,
    motion_weight: float | Float[Array, ""] = 0.0,
    num_seeds: int | None = None,
    checkpoint: bool = True,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    report: Report | None = None,
    report_every: int = 100,
) -> TrainingResult:
    """Train a recurrent cell to say where a robot is.

    Args:
      key: typed key. Step i draws its batch, with replacement, and its noise from fold_in(key, i); with `num_seeds`,
        seed s is the run of jax.random.split(key, num_seeds)[s].
      model: a cell of `cells` or `unrolling`; or a pair (graphdef, params), where params have a leading axis of
        num_seeds if that is given; or a function of `nnx.Rngs` that makes a cell, with other parameters for each seed.
      trajectories: `Trajectories`, or a pair (inputs [T, n, features], poses [T, n, 3]).
      world: where they are.
      steps: of the optimizer, those before a resumption among them (static, like all that is not an array).
      batch_size: B, sequences of a step.
      optimizer: of optax, with the schedule and the clipping that are wanted.
      num_particles: K.
      loss: "localization", `localization_loss` of the mean prediction; "elbo", the weighted `elbo_loss` with a scale of
        0.03, which is a mixture of Gaussians; or a function of (output, poses [T, B, 3], size [2]) with a scalar value.
      loss_weight: of this loss; 0 trains the motion alone, which can go first.
      motion_weight: of `motion_loss`, which is added where it is positive; for particle cells only.
      num_seeds: how many runs side by side, with `vmap`; None is one run without the axis of seeds.
      checkpoint: compute steps of the cell again for the gradient, instead of keeping them; see `unroll`.
      checkpoint_dir: a folder for checkpoints, or None. A run goes on from the last checkpoint in it, which is that of
        the same run with fewer steps, or is refused.
      checkpoint_every: steps from one checkpoint to the next; there is one at the end too. The last two are kept.
      report: called as report(step, metrics) after every `report_every` steps, at the end, and where a run is resumed,
        with metrics as in `TrainingResult.history`, averaged over the steps since the last report, [num_seeds] or
        scalars. What it raises ends the training; checkpoints stay, and the one of that step is written before.
      report_every: steps between two reports.

    Returns:
      `TrainingResult`. Its parameters, history and state after an interruption and a resumption equal those of a run
      without them bit for bit, on the same device and with the same versions.

    Raises:
      ValueError: a wrong count or shape, an unknown loss; a checkpoint_dir that holds something else, or a checkpoint
        that is damaged, of more steps than asked for, or of another run: other parameters or kind of cell at the start,
        data, world, key, batch, particles, losses, state of the optimizer. Nothing is overwritten. The numbers in an
        optimizer, and what a loss of one's own does, cannot be seen and are not compared. TypeError: a raw key, a model
        or trajectories of another kind.

    Status: NONFINITE_RESULT where the loss or the new parameters are inf or NaN; the seed keeps parameters and state
    of before that step and takes no more steps, while others go on.

    Cost: for particle cells, a step is about four times the forward pass of B K particles (five with `checkpoint`).
    Not differentiable, and not to be called under `jit` or `vmap`.

    Example:
      >>> from jaxnm.filtering import worlds
      >>> from jaxnm.filtering.cells import MePFRNN
      >>> world = worlds.maze10()
      >>> tracks = worlds.simulate(jax.random.key(0), world, 50, 5)
      >>> make = lambda rngs: MePFRNN(5, hidden=8, rngs=rngs)
      >>> options = {"steps": 4, "batch_size": 2, "num_particles": 3, "optimizer": optax.adam(1e-3)}
      >>> result = train(jax.random.key(1), make, tracks, world, num_seeds=2, checkpoint=False, **options)
      >>> result.history["loss"].shape, result.status.tolist()
      ((2, 4), [0, 0])
    """
    function = "train"
    arguments.check_key(function, key)
    counts = {"batch_size": batch_size, "num_particles": num_particles, "checkpoint_every": checkpoint_every}
    counts |= {"report_every": report_every}
    counts |= {} if num_seeds is None else {"num_seeds": num_seeds}
    for name, value in counts.items():
        arguments.check_count(function, name, value, minimum=1)
    arguments.check_count(function, "steps", steps)
    if not callable(loss) and loss not in _LOSSES:
        remedy = "use 'localization'"
        arguments.refuse(function, "loss", repr(loss), f"one of {list(_LOSSES)} or a function", remedy)
    for name, value in {"loss_weight": loss_weight, "motion_weight": motion_weight}.items():
        arguments.check_number(function, name, value, ">= 0", lambda number: number >= 0, "0 leaves that loss out")

    graphdef, params, seed_keys = _models(key, model, num_seeds)
    data = _data(function, trajectories, world, params)
    data = dataclasses.replace(data, weights=jnp.array([loss_weight, motion_weight], data.size.dtype))
    motion = float(motion_weight) > 0
    kept = loss if float(loss_weight) > 0 else None
    program = _Program(graphdef, optimizer, kept, int(batch_size), int(num_particles), motion, bool(checkpoint))
    state = _start(optimizer, params, num_seeds is not None)
    record = {name: np.zeros((*seed_keys.shape, 0), data.size.dtype) for name in _METRICS}
    with contextlib.ExitStack() as stack:
        folder = None
        if checkpoint_dir is not None:
            configuration = _configuration(program, params, data, world, key, num_seeds)
            folder = RunFolder(function, checkpoint_dir, configuration)
            stack.callback(folder.close)
            state, record = _resume(folder, state, record, steps)
        return _loop(program, state, record, data, seed_keys, steps, folder, checkpoint_every, report, report_every)


def _loop(
    program: _Program,
    state: _State,
    record: dict[str, np.ndarray],
    data: _Data,
    keys: Array,
    steps: int,
    folder: RunFolder | None,
    checkpoint_every: int,
    report: Report | None,
    report_every: int,
) -> TrainingResult:
    start = reported = record["loss"].shape[-1]
    # the first report of a resumed run tells where it is
    if report is not None and start:
        since = (start - 1) // report_every * report_every
        report(start, _averages(record, since))
    step = start
    while step < steps:
        stop = min(steps, step + _CHUNK, *(step - step % every + every for every in (checkpoint_every, report_every)))
        state, metrics = _advance(program, state, data, keys, jnp.int32(step), jnp.int32(stop - step))
        added = {name: np.asarray(metrics[name])[..., : stop - step] for name in record}
        record = {name: np.concatenate([values, added[name]], -1) for name, values in record.items()}
        step = stop
        if folder is not None and (step % checkpoint_every == 0 or step == steps):
            folder.save(step, (state, record))
        if report is not None and (step % report_every == 0 or step == steps):
            report(step, _averages(record, reported))
            reported = step
    return TrainingResult(state.params, state.optimizer_state, record, state.steps, state.status)


def _averages(record: dict[str, np.ndarray], since: int) -> dict[str, np.ndarray]:
    return {name: values[..., since:].mean(-1) for name, values in record.items()}


@partial(jax.jit, static_argnums=0)
def _advance(
    program: _Program, state: _State, data: _Data, keys: Array, first: Array, count: Array
) -> tuple[_State, dict[str, Array]]:
    """`count` steps from step `first`; their number is traced, so that one program takes any number of steps."""

    def advance(state: _State, key: Array) -> tuple[_State, dict[str, Array]]:
        blank = {name: jnp.full(_CHUNK, jnp.nan, data.size.dtype) for name in _METRICS}

        def body(i: Array, carry: tuple[_State, dict[str, Array]]) -> tuple[_State, dict[str, Array]]:
            state, record = carry
            state, metrics = _step(program, state, data, jax.random.fold_in(key, first + i))
            return state, {name: record[name].at[i].set(metrics[name]) for name in _METRICS}

        return jax.lax.fori_loop(0, count, body, (state, blank))

    return (jax.vmap(advance) if keys.ndim else advance)(state, keys)


def _step(program: _Program, state: _State, data: _Data, key: Array) -> tuple[_State, dict[str, Array]]:
    batch_key, loss_key = jax.random.split(key)
    chosen = jax.random.randint(batch_key, (program.batch_size,), 0, data.inputs.shape[1], jnp.int32)
    batch = dataclasses.replace(data, inputs=data.inputs[:, chosen], poses=data.poses[:, chosen])
    differentiate = jax.value_and_grad(_total_loss, argnums=1, has_aux=True)
    (loss, (final_error, motion_error)), gradient = differentiate(program, state.params, batch, loss_key)
    # optimizers promote dtypes, and some add scalars to arrays
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, optimizer_state = program.optimizer.update(gradient, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(gradient)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((params, loss))]))
    goes_on = state.status == jnp.int32(Status.OK)
    good = finite & goes_on
    keep = lambda new, old: jnp.where(good, new, old)
    status = merge(state.status, first_failing((~finite, Status.NONFINITE_RESULT)))
    params, optimizer_state = jax.tree.map(keep, (params, optimizer_state), (state.params, state.optimizer_state))
    metrics = dict(zip(_METRICS, (loss, norm, final_error, motion_error), strict=True))
    metrics = {name: jnp.where(good, value, jnp.nan).astype(data.size.dtype) for name, value in metrics.items()}
    return _State(params, optimizer_state, state.steps + good.astype(jnp.int32), status), metrics


def _models(key: Array, model: Any, num_seeds: int | None) -> tuple[nnx.GraphDef, Any, Array]:
    """The graph definition, params (of all seeds), and the key of each seed."""
    keys = key if num_seeds is None else jax.random.split(key, num_seeds)
    if isinstance(model, tuple) and len(model) == 2:
        graphdef, params = model
        if num_seeds is not None:
            condition = lambda shape: shape[:1] == (num_seeds,)
            for leaf in jax.tree.leaves(params):
                expected = f"[{num_seeds}, ...], one for each seed"
                arguments.check_shape(
                    "train", "a leaf of params", leaf, expected, condition, "stack them, or pass a cell"
                )
        return graphdef, params, keys
    if isinstance(model, nnx.Module):
        graphdef, params = nnx.split(model)
        if num_seeds is not None:
            params = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_seeds, *leaf.shape)), params)
        return graphdef, params, keys
    if not callable(model):
        got, expected = f"of type {type(model).__name__}", "a cell, (graphdef, params), or a function that makes a cell"
        arguments.refuse("train", "model", got, expected, "pass nnx.split(cell)", error=TypeError)
    # no step has the number 2^32 - 1
    made = [nnx.split(model(nnx.Rngs(jax.random.fold_in(k, np.uint32(2**32 - 1))))) for k in keys.reshape(-1)]
    params = made[0][1] if num_seeds is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p for _, p in made))
    return made[0][0], params, keys


def _start(optimizer: optax.GradientTransformation, params: Any, several: bool) -> _State:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer_state = jax.vmap(optimizer.init)(params) if several else optimizer.init(params)
    # leaves of a state may be Python numbers
    optimizer_state = jax.tree.map(jnp.asarray, optimizer_state)
    shape = jax.tree.leaves(params)[0].shape[:1] if several else ()
    return _State(params, optimizer_state, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def _configuration(
    program: _Program, params: Any, data: _Data, world: World, key: Array, num_seeds: int | None
) -> dict[str, Any]:
    """What a checkpoint has to agree on."""
    one = params if num_seeds is None else jax.tree.map(lambda leaf: leaf[0], params)
    loss = program.loss
    name = (
        loss
        if loss is None or isinstance(loss, str)
        else f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', '')}"
    )
    return {
        **{f"model.{name}": value for name, value in describe_cell(nnx.merge(program.graphdef, one)).items()},
        "world": world.name,
        "world (checksum)": digest(world.blocked, world.beacons),
        "parameters": signature(one),
        "parameters at the start (checksum)": digest(*jax.tree.leaves(params)),
        "data": list(data.inputs.shape),
        "data (checksum)": digest(data.inputs, data.poses),
        "batch_size": program.batch_size,
        "num_particles": program.num_particles,
        "loss": name,
        "weights of the losses": np.asarray(data.weights).tolist(),
        "num_seeds": num_seeds,
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "checkpoint": program.checkpoint,
    }


def _resume(
    folder: RunFolder, state: _State, record: dict[str, np.ndarray], steps: int
) -> tuple[_State, dict[str, np.ndarray]]:
    if folder.step is None:
        return state, record
    if folder.step > steps:
        got, expected = f"at step {folder.step}", f"at most steps = {steps}"
        arguments.refuse("train", "checkpoint_dir", got, expected, "ask for more steps, or choose another folder")
    like = {name: np.zeros((*values.shape[:-1], folder.step), values.dtype) for name, values in record.items()}
    state, record = folder.restore((state, like))
    return state, {name: np.asarray(values) for name, values in record.items()}
