"""PROTES: search by sampling from a tensor train that is trained, in the same loop, on the best of its samples."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int32, Key

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.status import Status
from jaxnm.tensor_train.optimize import (
    REMEDY,
    AskTell,
    Objective,
    OptimizeResult,
    Record,
    check_budget,
    checked_answer,
    empty_record,
    evaluated,
    result_of,
    told_dtype,
    updated,
    usable,
    value_dtype,
)
from jaxnm.tensor_train.trains import TT, bounded_rank, check_train, checked_shape, core_mask

_LONGEST = 8
"""The most grid spacings that one gradient step moves a coordinate."""


@flax.struct.dataclass
class ProtesState:
    """A distribution over indices, and what its samples were worth."""

    cores: Float[Array, "d R n R"]
    """Of the train whose entries, up to a factor, are the probabilities."""
    support: Any
    """[d, R, n, R], true where a core may differ from zero."""
    moments: Any
    """Of Adam."""
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    usable: Bool[Array, ""]
    """Whether the initial cores are probabilities; if not, nothing is recorded."""
    record: Record


def protes(
    f: Objective,
    shape: Sequence[int],
    *,
    key: Key[Array, ""],
    budget: int,
    args: tuple = (),
    batch: int = 100,
    elite: int = 10,
    steps: int = 1,
    learning_rate: Float[ArrayLike, ""] = 0.05,
    rank: int = 5,
    initial: TT | None = None,
) -> OptimizeResult:
    """Minimize a function of d integers by sampling from a tensor train of probabilities.

    Unlike in the source the best index ever seen competes with every batch for a place in the elite. On the hardest row
    of the source's analytic table (Qing) 570 of 600 searches in float64 then hit the minimum, and 526 without it.

    Args:
      f: f(index [d] int32, *args) -> scalar; mapped over batches inside. A new function object compiles anew: what
        changes from call to call belongs in args.
      shape: d mode sizes; index k runs from 0 to shape[k] - 1.
      key: of `jax.random.key`.
      budget: calls of f (static); the whole batches in it are used, so that never more are made.
      args: further arguments of f; arrays may be traced.
      batch: samples a step (static).
      elite: how many best ones of a batch and the best index so far the train is moved towards (static), at most
        batch.
      steps: of Adam for every batch (static).
      learning_rate: of Adam. May be traced.
      rank: of the train (static); clipped to what the shape can need. That of `initial`, if there is one.
      initial: a train of the given shape with cores that are not negative: the probabilities, up to a factor, of the
        first batch. A zero in its cores stays zero, so an index of probability zero is never proposed: this is how to
        state constraints. Multiply it with a random train by `hadamard` to give it more freedom to learn.

    Returns:
      `OptimizeResult`, with a history of budget // batch entries.

    Raises:
      ValueError: budget below one batch, an empty shape, elite above batch, f that is not scalar, another shape of
      initial. TypeError: complex values, a raw key.

    Status:
      UNEXPLORED: f was infinite wherever it was seen: no index is feasible as far as is known.
      NONFINITE_RESULT: f was NaN somewhere; the best is that of its other values. Infinity is no failure: it says that
      an index is infeasible, and minus infinity is the best value there is.
      OUT_OF_RANGE: `initial` has negative or non-finite cores, or no probability anywhere; nothing is reported. Or
      learning_rate is not positive.

    Cost: a step takes batch calls of f and about 5 batch d n R^2 multiplications; compile time does not grow with d.
    Not differentiable. vmap over keys or args runs searches side by side.
    Source: A. Batsheva, A. Chertkov, G. Ryzhakov, I. Oseledets, NeurIPS 2023, arXiv 2301.12162, algorithm 1.

    Example:
      >>> result = protes(lambda i: jnp.sum((i - 3) ** 2), (8,) * 5, key=jax.random.key(0), budget=3000)
      >>> result.best_index.tolist(), float(result.best_value), int(result.num_evaluations)
      ([3, 3, 3, 3, 3], 0.0, 3000)
    """
    name = "protes"
    arguments.check_key(name, key)
    shape = checked_shape(name, shape)
    _check_options(name, batch, elite, steps)
    check_budget(name, budget, batch, "one batch")
    dtype = value_dtype(name, f, jax.ShapeDtypeStruct((len(shape),), jnp.int32), args)
    start = _start(name, shape, rank, initial, dtype, learning_rate)
    start, args = arguments.without_derivative(name, "an argument", (start, args), remedy=REMEDY)
    return _protes(f, shape, (int(budget // batch), int(batch), int(elite), int(steps)), key, start, args)


def protes_ask_tell(
    shape: Sequence[int],
    *,
    batch: int = 100,
    elite: int = 10,
    steps: int = 1,
    learning_rate: Float[ArrayLike, ""] = 0.05,
    rank: int = 5,
    initial: TT | None = None,
    dtype: Any = None,
) -> AskTell:
    """`protes` for functions that cannot be traced: ask for a batch, evaluate it anywhere, tell the values.

    Args:
      shape: as in `protes`, like all that is not listed here.
      batch: samples that ask returns.
      elite: as in `protes`.
      steps: as in `protes`.
      learning_rate: as in `protes`.
      rank: as in `protes`.
      initial: as in `protes`.
      dtype: of the values; the default floating dtype if None.

    Returns:
      `AskTell(init, ask, tell)`. With the key of `protes` the same batches are asked for. tell takes other indices and
      another number of them too, if these were improved outside; at least `elite`.

    Raises:
      ValueError, TypeError: as `protes`; tell refuses indices and values of other shapes.

    Status:
      as `protes`, in state.record, and OUT_OF_RANGE: tell was given an index that the shape does not have; its value
      is ignored.

    Cost: as `protes`, and one dispatch a call.
    Not differentiable.
    Source: as `protes`.

    Example:
      >>> optimizer = protes_ask_tell((8,) * 5)
      >>> state = optimizer.init(jax.random.key(0))
      >>> for _ in range(30):
      ...     indices, state = optimizer.ask(state)
      ...     state = optimizer.tell(state, indices, ((indices - 3) ** 2).sum(1))
      >>> state.record.best_index.tolist()
      [3, 3, 3, 3, 3]
    """
    name = "protes_ask_tell"
    shape = checked_shape(name, shape)
    _check_options(name, batch, elite, steps)
    dtype = told_dtype(name, dtype)
    start = _start(name, shape, rank, initial, dtype, learning_rate)

    def init(key: Array) -> ProtesState:
        arguments.check_key(name, key)
        return _init(key, start)

    def ask(state: ProtesState) -> tuple[Array, ProtesState]:
        return _ask(state, int(batch))

    def tell(state: ProtesState, indices: ArrayLike, values: ArrayLike) -> ProtesState:
        indices, values = checked_answer(f"{name}: tell", indices, values, len(shape), dtype)
        arguments.check_count(f"{name}: tell", "the number of values", values.shape[0], minimum=elite)
        return _tell(state, indices, values, shape, int(elite), int(steps))

    return AskTell(init, ask, tell)


def protes_with_gradients(
    f: Objective,
    grids: Sequence[Float[ArrayLike, "n"]],
    *,
    key: Key[Array, ""],
    budget: int,
    args: tuple = (),
    batch: int = 100,
    elite: int = 10,
    steps: int = 1,
    learning_rate: Float[ArrayLike, ""] = 0.05,
    rank: int = 5,
    initial: TT | None = None,
    descents: int = 5,
    descent_steps: int = 20,
) -> OptimizeResult:
    """`protes` on the nodes of a grid, with gradient steps between the nodes from the best samples of every batch.

    Every step starts `descents` descents at the best of its samples and the best index so far, where values are
    different: each of `descent_steps` projected gradients with the step lengths of Barzilai and Borwein (the first goes
    a grid spacing). The ends are rounded to the nearest node. These nodes join the batch: they may become its best and
    train the distribution.

    Args:
      f: f(point [d], *args) -> scalar, differentiable.
      grids: d arrays [n_k] of nodes, in order.
      key: as in `protes`, like all that is not listed here.
      budget: calls of f; a gradient counts as one.
      args: as in `protes`.
      batch: as in `protes`.
      elite: as in `protes`.
      steps: as in `protes`.
      learning_rate: as in `protes`.
      rank: as in `protes`.
      initial: as in `protes`. The descents do not know the constraints that it states: let f be infinite there.
      descents: how many a step (static), at most batch.
      descent_steps: how many gradients a descent (static).

    Returns:
      `OptimizeResult`; best_index is a node.

    Raises:
      ValueError: as `protes`, and a budget below batch + descents (descent_steps + 1). TypeError: as `protes`.

    Status:
      as `protes`.

    Cost: batch + descents (descent_steps + 1) evaluations a step.
    Not differentiable.
    Source: the idea is that of arXiv 2505.12383 (TESALOCS); J. Barzilai, J. M. Borwein, IMA J. Numer. Anal. 8 (1988),
    141-148, equation 5.

    Example:
      >>> grids = [jnp.linspace(-1.0, 1.0, 101)] * 6
      >>> result = protes_with_gradients(lambda x: jnp.sum((x - 0.3) ** 2), grids, key=jax.random.key(0), budget=390)
      >>> result.best_index.tolist()
      [65, 65, 65, 65, 65, 65]
    """
    name = "protes_with_gradients"
    arguments.check_key(name, key)
    arguments.check_list(name, "grids", grids, "one grid a mode")
    nodes = list(arguments.to_arrays(name, **{f"grids[{k}]": grid for k, grid in enumerate(grids)}))
    for k, grid in enumerate(nodes):
        arguments.check_shape(name, f"grids[{k}]", grid, "[n] with n >= 1", lambda s: len(s) == 1 and s[0] >= 1)
        arguments.check_real(name, f"grids[{k}]", grid)
    shape = checked_shape(name, [grid.shape[0] for grid in nodes])
    _check_options(name, batch, elite, steps)
    arguments.check_count(name, "descents", descents, minimum=1)
    arguments.check_count(name, "descent_steps", descent_steps, minimum=1)
    if descents > batch:
        arguments.refuse(name, "descents", repr(descents), f"at most batch = {batch}", "start fewer")
    each = batch + descents * (descent_steps + 1)
    check_budget(name, budget, each, "batch + descents (descent_steps + 1)")
    dtype = value_dtype(name, f, jax.ShapeDtypeStruct((len(shape),), nodes[0].dtype), args)
    start = _start(name, shape, rank, initial, dtype, learning_rate)
    nodes, start, args = arguments.without_derivative(name, "an argument", (nodes, start, args), remedy=REMEDY)
    # beyond its last node a grid repeats it, where the cores are zero
    padded = jnp.stack([jnp.pad(grid, (0, max(shape) - grid.shape[0]), mode="edge") for grid in nodes])
    counts = (int(budget // each), int(batch), int(elite), int(steps), int(descents), int(descent_steps))
    return _protes_with_gradients(f, shape, counts, key, start, padded, args)


# ------------------------------------------------------------------------------------------------ checks


def _check_options(name: str, batch: int, elite: int, steps: int) -> None:
    for argument, value in (("batch", batch), ("elite", elite), ("steps", steps)):
        arguments.check_count(name, argument, value, minimum=1)
    if elite > batch:
        arguments.refuse(name, "elite", repr(elite), f"at most batch = {batch}", "take fewer of the samples")


def _start(name: str, shape: tuple, rank: int, initial: TT | None, dtype: Any, rate: Any) -> tuple[Any, Any, Any]:
    """(cores of `initial` or None, where cores may differ from zero, learning rate)."""
    arguments.check_count(name, "rank", rank, minimum=1)
    arguments.check_number(name, "learning_rate", rate, "> 0", lambda value: value > 0, "0.05 is usual")
    (rate,) = arguments.to_arrays(name, learning_rate=rate)
    arguments.check_shape(name, "learning_rate", rate, "a scalar", lambda shape: shape == (), "one for all cores")
    rate = rate.astype(dtype)
    if initial is None:
        size = bounded_rank(shape, rank)
        return None, _whole_cores(shape, size), rate
    check_train(name, initial=initial)
    arguments.check_real(name, "initial.cores", initial.cores)
    if initial.shape != shape:
        arguments.refuse(
            name, "initial", f"of shape {initial.shape}", f"a train of shape {shape}", "it is over indices"
        )
    cores = initial.cores.astype(dtype)
    return cores, cores != 0, rate


@partial(jax.jit, static_argnums=(0, 1))
def _whole_cores(shape: tuple[int, ...], size: int) -> Array:
    """Where cores of one rank may differ from zero."""
    ranks = jnp.full(len(shape) + 1, size, jnp.int32).at[0].set(1).at[-1].set(1)
    return core_mask(ranks, shape, size)


# ------------------------------------------------------------------------------------------------ the distribution


def _unit(x: Array) -> Array:
    """Rows over their largest entries, which are constants for a derivative; a zero row stays as it is."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), -1, keepdims=True))
    return x / jnp.where(largest > 0, largest, jnp.ones_like(largest))


def _behind(cores: Array) -> Array:
    """[d, R]: for every site the sums over all that follows it, up to a factor."""
    last = jnp.zeros(cores.shape[-1], cores.dtype).at[0].set(1)
    step = lambda vector, core: (_unit(einsum("ris,s->r", core, vector)), vector)
    return jax.lax.scan(step, last, cores, reverse=True)[1]


def _first(cores: Array, num: int) -> Array:
    return jnp.zeros((num, cores.shape[-1]), cores.dtype).at[:, 0].set(1)


def _follow(rows: Array, core: Array, digits: Array) -> Array:
    """Rows [m, R] times the slices of a core [R, n, R] at digits [m]."""
    return _unit(einsum("kr,krs->ks", rows, core.transpose(1, 0, 2)[digits]))


def _sampled(cores: Array, key: Array, num: int) -> Int32[Array, "num d"]:
    """Indices, digit after digit; one of weight zero is never drawn."""
    draws = jax.random.uniform(key, (cores.shape[0], num), cores.dtype)

    def site(rows: Array, inputs: Any) -> tuple[Array, Array]:
        core, vector, draw = inputs
        weights = jnp.abs(einsum("kr,ri->ki", rows, einsum("ris,s->ri", core, vector)))
        sums = jnp.cumsum(weights, 1)
        passed = (sums > (draw * sums[:, -1])[:, None]) & (weights > 0)
        digits = jnp.where(jnp.any(passed, 1), jnp.argmax(passed, 1), jnp.argmax(weights, 1)).astype(jnp.int32)
        return _follow(rows, core, digits), digits

    return jax.lax.scan(site, _first(cores, num), (cores, _behind(cores), draws))[1].T


def _log_probabilities(cores: Array, indices: Int32[Array, "m d"]) -> Float[Array, "m"]:
    """Of indices, as `_sampled` draws them."""
    tiny = jnp.finfo(cores.dtype).tiny

    def site(rows: Array, inputs: Any) -> tuple[Array, Array]:
        core, vector, digits = inputs
        weights = jnp.abs(einsum("kr,ri->ki", rows, einsum("ris,s->ri", core, vector)))
        own = jnp.take_along_axis(weights, digits[:, None], 1)[:, 0]
        logarithm = jnp.log(jnp.maximum(own, tiny)) - jnp.log(jnp.maximum(jnp.sum(weights, 1), tiny))
        return _follow(rows, core, digits), logarithm

    return jnp.sum(jax.lax.scan(site, _first(cores, len(indices)), (cores, _behind(cores), indices.T))[1], 0)


# ------------------------------------------------------------------------------------------------ init, ask, tell


@jax.jit
def _init(key: Array, start: tuple[Any, Any, Any]) -> ProtesState:
    cores, support, rate = start
    record = empty_record(support.shape[0], rate.dtype)
    good = rate > 0
    if cores is None:
        key, draw = jax.random.split(key)
        # above zero, so that only what lies outside the cores is zero
        drawn = 1 - jax.random.uniform(draw, support.shape, rate.dtype)
        cores = jnp.where(support, drawn, jnp.zeros_like(drawn))
    else:
        whole = _unit(einsum("ris,s->r", cores[0], _behind(cores)[0]))[0]
        good &= jnp.all(jnp.isfinite(cores)) & (jnp.min(cores) >= 0) & (whole > 0)
    record = replace(record, status=jnp.where(good, record.status, jnp.int32(Status.OUT_OF_RANGE)))
    return ProtesState(cores, support, optax.adam(rate).init(cores), rate, key, good, record)


@partial(jax.jit, static_argnums=1)
def _ask(state: ProtesState, batch: int) -> tuple[Array, ProtesState]:
    key, draw = jax.random.split(state.key)
    return _sampled(state.cores, draw, batch), replace(state, key=key)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _tell(
    state: ProtesState, indices: Array, values: Array, shape: tuple[int, ...], elite: int, steps: int
) -> ProtesState:
    infinite, before = jnp.full_like(values, jnp.inf), state.record
    # from a bad start no sample means anything
    record = updated(before, indices, jnp.where(state.usable, values, infinite), shape)
    inside = jnp.all((indices >= 0) & (indices < jnp.array(shape, jnp.int32)[None]), 1)
    compared = jnp.where(inside, usable(values), infinite)
    # the best index ever seen competes with the batch
    worths, order = jax.lax.top_k(-jnp.concatenate([before.best_value[None], compared]), elite)
    chosen = jnp.concatenate([before.best_index[None], indices])[order]
    # infeasible ones teach nothing
    weights = (worths > -jnp.inf).astype(values.dtype)
    weights = weights / jnp.maximum(jnp.sum(weights), jnp.ones_like(weights[0]))
    loss = lambda cores: -jnp.sum(weights * _log_probabilities(cores, chosen))
    optimizer = optax.adam(state.learning_rate)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        cores, moments = carry
        slope = jnp.where(state.support, jax.grad(loss)(cores), jnp.zeros_like(cores))
        # a slope of zero moves nothing, so that what is impossible stays so
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(slope, moments)
        return (cores + jnp.asarray(updates), moments), None

    (cores, moments), _ = jax.lax.scan(step, (state.cores, state.moments), None, length=steps)
    return replace(state, cores=cores, moments=moments, record=record)


# ------------------------------------------------------------------------------------------------ whole runs


@partial(jax.jit, static_argnums=(0, 1, 2))
def _protes(
    f: Objective, shape: tuple[int, ...], counts: tuple[int, ...], key: Array, start: Any, args: tuple
) -> OptimizeResult:
    num, batch, elite, steps = counts

    def step(state: ProtesState, _: Any) -> tuple[ProtesState, Array]:
        indices, state = _ask(state, batch)
        state = _tell(state, indices, evaluated(f, indices, args, state.cores.dtype), shape, elite, steps)
        return state, state.record.best_value

    state, history = jax.lax.scan(step, _init(key, start), None, length=num)
    return result_of(state.record, history)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _protes_with_gradients(
    f: Objective, shape: tuple[int, ...], counts: tuple[int, ...], key: Array, start: Any,
    nodes: Float[Array, "d n"], args: tuple,
) -> OptimizeResult:  # fmt: skip
    num, batch, elite, steps, descents, descent_steps = counts
    d = nodes.shape[0]
    sites = jnp.arange(d, dtype=jnp.int32)
    at = lambda indices: nodes[sites[None], indices]
    slope = jax.vmap(jax.grad(lambda point: jnp.asarray(f(point, *args)).astype(nodes.dtype)))

    def step(state: ProtesState, _: Any) -> tuple[ProtesState, Array]:
        indices, state = _ask(state, batch)
        values = evaluated(f, at(indices), args, state.cores.dtype)
        pool = jnp.concatenate([state.record.best_index[None], indices])
        worth = jnp.concatenate([state.record.best_value[None], values])
        worth = usable(worth)
        # equal values are taken for the same index
        starts = jnp.unique(worth, return_index=True, size=descents)[1]
        ends = _descend(slope, at(pool[starts]), nodes, descent_steps)
        nearest = lambda grid, x: jnp.argmin(jnp.abs(grid[None] - x[:, None]), 1).astype(jnp.int32)
        rounded = jax.vmap(nearest, (0, 1), 1)(nodes, ends)
        more = evaluated(f, at(rounded), args, state.cores.dtype)
        state = _tell(state, jnp.concatenate([indices, rounded]), jnp.concatenate([values, more]), shape, elite, steps)
        return state, state.record.best_value

    state, history = jax.lax.scan(step, _init(key, start), None, length=num)
    more = jnp.int32(num * descents * descent_steps)
    record = replace(state.record, num_evaluations=state.record.num_evaluations + more)
    return result_of(record, history)


def _descend(slope: Any, points: Float[Array, "m d"], nodes: Float[Array, "d n"], steps: int) -> Float[Array, "m d"]:
    """Where projected gradients lead, in units of the mean grid spacing; a gradient that is not finite stops."""
    lower, upper = jnp.min(nodes, 1)[None], jnp.max(nodes, 1)[None]
    gaps = jnp.sum(nodes[:, 1:] != nodes[:, :-1], axis=1, dtype=jnp.int32)
    unit = (upper - lower) / jnp.maximum(gaps, 1).astype(nodes.dtype)[None]

    def gradient(x: Array) -> Array:
        raw = slope(x) * unit
        return jnp.where(jnp.isfinite(raw), raw, jnp.zeros_like(raw))

    # in units of the first gradients, so that their products neither overflow nor vanish
    first = gradient(points)
    size = jnp.max(jnp.abs(first), 1, keepdims=True)
    size = jnp.where(size > 0, size, jnp.ones_like(size))

    def move(carry: Any, _: Any) -> tuple[Any, None]:
        x, g, rate = carry
        step = jnp.clip(-rate[:, None] * g, -_LONGEST, _LONGEST)
        new = jnp.clip(x + step * unit, lower, upper)
        after = gradient(new) / size
        s, y = (new - x) / jnp.where(unit > 0, unit, jnp.ones_like(unit)), after - g
        curvature = jnp.abs(jnp.sum(s * y, 1))
        secant = jnp.sum(s * s, 1) / jnp.where(curvature > 0, curvature, jnp.ones_like(curvature))
        return (new, after, jnp.where(curvature > 0, secant, rate)), None

    start = first / size
    rate = jnp.ones_like(size[:, 0])
    (x, g, rate), _ = jax.lax.scan(move, (points, start, rate), None, length=steps - 1)
    step = jnp.clip(-rate[:, None] * g, -_LONGEST, _LONGEST)
    return jnp.clip(x + step * unit, lower, upper)
