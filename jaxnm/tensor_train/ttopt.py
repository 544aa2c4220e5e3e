"""TTOpt: search by cross approximation, whose pivots are drawn to the minimum by a change of the values."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Int32, Key

from jaxnm import arguments
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
from jaxnm.tensor_train.trains import bounded_rank, checked_shape

Sites = Literal["auto", 1, 2]
_FEW = 128
"""Numbers up to which comparing all pairs is faster than sorting."""


@flax.struct.dataclass
class TTOptState:
    """R multi-indices a bond: the digits before it are rows of the next block, those behind it columns of the last."""

    indices: Int32[Array, "d+1 R d"]
    """In the direction of the sweep: bonds and digits run backwards in every other one."""
    site: Int32[Array, ""]
    """Where the next block begins."""
    backwards: Bool[Array, ""]
    scale: Float[Array, ""]
    key: Key[Array, ""]
    stale: Int32[Array, ""]
    """Blocks since the best value was last improved, or pivots were last drawn."""
    record: Record


def ttopt(
    f: Objective,
    shape: Sequence[int],
    *,
    key: Key[Array, ""],
    budget: int,
    args: tuple = (),
    rank: int = 4,
    sites: Sites = "auto",
    scale: Float[ArrayLike, ""] = 0.1,
    initial: Int[ArrayLike, "m d"] | None = None,
) -> OptimizeResult:
    """Minimize a function of d integers by sweeps of cross approximation, back and forth.

    A step evaluates f at all digits of one site, or of two, together with R known beginnings and R known ends of
    multi-indices. The values are mapped to arctan(scale / (y - y_best)), so that the minimum has the largest modulus,
    and R pivots of an LU factorization of the block with complete pivoting are the beginnings, for two sites also the
    ends, of the next steps. The best index is the first pivot, so it is never lost. After two sweeps without a better
    value the other pivots are drawn at random for one sweep.

    Args:
      f: f(index [d] int32, *args) -> scalar; mapped over blocks inside. A new function object compiles anew: what
        changes from call to call belongs in args.
      shape: d mode sizes; index k runs from 0 to shape[k] - 1. Large modes are best cut into bits: see `grid_point`.
        The blocks have the size of the largest mode; smaller modes repeat their last index.
      key: of `jax.random.key`.
      budget: calls of f (static); the whole blocks in it are used, so that never more are made.
      args: further arguments of f; arrays may be traced.
      rank: R (static), at least 2; clipped to what the shape can need.
      sites: 1 or 2 (static). Blocks of one take R n R calls, those of two (R n)^2; those choose beginnings and
        ends together, and pay off where n is 2. "auto": 2 where the largest n is 2, else 1.
      scale: in the unit of f: differences above it count alike; where an eighth of a block is closer to the best than
        this, the distance of that eighth stands for it. May be traced.
      initial: [m, d], known good indices, of which the first R are used; the others are drawn.

    Returns:
      `OptimizeResult`, with one entry of history a block.

    Raises:
      ValueError: budget below one sweep, rank below 2, an empty shape, f that is not scalar, initial of another shape.
      TypeError: complex values, a raw key.

    Status:
      UNEXPLORED: f was infinite wherever it was seen: no index is feasible as far as is known.
      NONFINITE_RESULT: f was NaN somewhere; the best is that of its other values. Infinity is no failure: it says that
      an index is infeasible, and minus infinity is the best value there is.
      OUT_OF_RANGE: `initial` has an index that its mode does not have; it was moved to the nearest one. Or scale is not
      positive.

    Cost: a sweep is d - 1 blocks; compile time does not grow with d; (d + 1) R d integers are kept.
    Not differentiable. vmap over keys or args runs searches side by side.
    Source: K. Sozykin, A. Chertkov, R. Schutski, A.-H. Phan, A. Cichocki, I. Oseledets, NeurIPS 2022, arXiv 2205.00293,
    algorithm 1, with LU instead of its maximum-volume principle.

    Example:
      >>> from jaxnm.tensor_train.optimize import grid_point
      >>> def f(index):
      ...     return jnp.sum((grid_point(index, -4.0, 4.0, 10) - 1.0) ** 2)
      >>> result = ttopt(f, (2,) * 30, key=jax.random.key(0), budget=4000)
      >>> grid_point(result.best_index, -4.0, 4.0, 10).round(2).tolist()
      [1.0, 1.0, 1.0]
    """
    name = "ttopt"
    arguments.check_key(name, key)
    shape = checked_shape(name, shape)
    dtype = value_dtype(name, f, jax.ShapeDtypeStruct((len(shape),), jnp.int32), args)
    layout, start = _start(name, shape, rank, sites, scale, initial, dtype)
    num, sweep = layout.block, layout.steps * layout.block
    check_budget(name, budget, sweep, f"one sweep of {layout.steps} blocks of {num}")
    start, args = arguments.without_derivative(name, "an argument", (start, args), remedy=REMEDY)
    return _ttopt(f, layout, int(budget // num), key, start, args)


def ttopt_ask_tell(
    shape: Sequence[int],
    *,
    rank: int = 4,
    sites: Sites = "auto",
    scale: Float[ArrayLike, ""] = 0.1,
    initial: Int[ArrayLike, "m d"] | None = None,
    dtype: Any = None,
) -> AskTell:
    """`ttopt` for functions that cannot be traced: ask for a block, evaluate it anywhere, tell the values.

    Args:
      shape: as in `ttopt`, like all that is not listed here.
      rank: as in `ttopt`.
      sites: as in `ttopt`.
      scale: as in `ttopt`.
      initial: as in `ttopt`.
      dtype: of the values; the default floating dtype if None.

    Returns:
      `AskTell(init, ask, tell)`. With the key of `ttopt` the same blocks are asked for. Blocks at the ends repeat some
      of their indices: for an expensive function evaluate the unique ones.

    Raises:
      ValueError, TypeError: as `ttopt`; tell refuses anything but a whole block and its values.

    Status:
      as `ttopt`, in state.record, and OUT_OF_RANGE: tell was given an index that the shape does not have; its value
      is ignored.

    Cost: as `ttopt`, one dispatch a call, and a copy of the (d + 1) R d integers of the state.
    Not differentiable.
    Source: as `ttopt`.

    Example:
      >>> optimizer = ttopt_ask_tell((8,) * 5)
      >>> state = optimizer.init(jax.random.key(0))
      >>> for _ in range(8):
      ...     indices, state = optimizer.ask(state)
      ...     state = optimizer.tell(state, indices, ((indices - 3) ** 2).sum(1))
      >>> state.record.best_index.tolist()
      [3, 3, 3, 3, 3]
    """
    name = "ttopt_ask_tell"
    shape = checked_shape(name, shape)
    dtype = told_dtype(name, dtype)
    layout, start = _start(name, shape, rank, sites, scale, initial, dtype)

    def init(key: Array) -> TTOptState:
        arguments.check_key(name, key)
        return _init(key, layout, start)

    def ask(state: TTOptState) -> tuple[Array, TTOptState]:
        return _ask(state, layout), state

    def tell(state: TTOptState, indices: ArrayLike, values: ArrayLike) -> TTOptState:
        indices, values = checked_answer(f"{name}: tell", indices, values, len(shape), dtype)
        if values.shape[0] != layout.block:
            got, expected = f"{values.shape[0]} values", f"a block of {layout.block}"
            arguments.refuse(f"{name}: tell", "the block", got, expected, "tell all that ask returned, in its order")
        return _tell(state, indices, values, layout)

    return AskTell(init, ask, tell)


# ------------------------------------------------------------------------------------------------ checks


@flax.struct.dataclass
class _Layout:
    """What is static."""

    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    rank: int = flax.struct.field(pytree_node=False)
    sites: int = flax.struct.field(pytree_node=False)

    @property
    def steps(self) -> int:
        """Of a sweep: one for every bond."""
        return max(len(self.shape) - 1, 1)

    @property
    def rows(self) -> int:
        return self.rank * max(self.shape)

    @property
    def columns(self) -> int:
        return self.rank if self.sites == 1 else self.rows

    @property
    def block(self) -> int:
        """Evaluations a step."""
        return self.rows * self.columns


def _start(
    name: str, shape: tuple[int, ...], rank: int, sites: Any, scale: Any, initial: Any, dtype: Any
) -> tuple[_Layout, tuple[Any, Array]]:
    """(the layout, (initial indices or None, scale))."""
    arguments.check_count(name, "rank", rank, minimum=1)
    if rank < 2:
        arguments.refuse(name, "rank", repr(rank), "at least 2", "one beginning and one end see one mode at a time")
    if not isinstance(sites, int | str) or sites not in ("auto", 1, 2):
        arguments.refuse(name, "sites", repr(sites), "1, 2 or 'auto'", "1 is for large modes, 2 for bits")
    if sites == "auto":
        sites = 2 if max(shape) == 2 else 1
    arguments.check_number(name, "scale", scale, "> 0", lambda value: value > 0, "0.1 is usual")
    (scale,) = arguments.to_arrays(name, scale=scale)
    arguments.check_shape(name, "scale", scale, "a scalar", lambda s: s == (), "one for all values")
    layout = _Layout(shape, bounded_rank(shape, int(rank)), 1 if len(shape) == 1 else int(sites))
    if initial is not None:
        initial, d = arguments.to_integers(name, "initial", initial, "pass multi-indices"), len(shape)
        condition = lambda s: len(s) == 2 and s[0] >= 1 and s[1] == d
        arguments.check_shape(name, "initial", initial, f"[m, {d}] with m >= 1", condition, "one row an index")
        initial = initial[: layout.rank].astype(jnp.int32)
    return layout, (initial, scale.astype(dtype))


# ------------------------------------------------------------------------------------------------ one block


def _reversed_if(backwards: Array, indices: Array) -> Array:
    return jnp.where(backwards, indices[..., ::-1], indices)


def _block(layout: _Layout, before: Array, behind: Array, site: Array, backwards: Array) -> Int32[Array, "m d"]:
    """All digits at a site (and the next) between the beginnings [R, d] and the ends [R, d], in forward direction."""
    d, n, size = len(layout.shape), max(layout.shape), layout.rank
    shape = _reversed_if(backwards, jnp.array(layout.shape, jnp.int32))
    places = _reversed_if(backwards, jnp.arange(d, dtype=jnp.int32))
    before, behind = _reversed_if(backwards, before), _reversed_if(backwards, behind)
    digits = jnp.arange(n, dtype=jnp.int32)
    own = jnp.minimum(digits, shape[site] - 1)
    rows = jnp.where((places == site)[None, None], own[None, :, None], before[:, None]).reshape(size * n, d)
    columns = behind
    if layout.sites == 2:
        following = jnp.minimum(digits, shape[site + 1] - 1)
        at = (places == site + 1)[None, None]
        columns = jnp.where(at, following[:, None, None], behind[None]).reshape(n * size, d)
    return jnp.where((places <= site)[None, None], rows[:, None], columns[None]).reshape(-1, d)


def _pivots(
    values: Float[Array, "m n"], best: Array, scale: Array, key: Array, drawn: Bool[Array, ""], num: int
) -> Int32[Array, "num"]:
    """Flat positions of pivots in different rows and columns, the smallest value first.

    The others are random if these are to be drawn, and where nothing is left to eliminate.
    """
    rows, columns = values.shape
    lowest = jnp.where(jnp.isfinite(best), best, jnp.zeros_like(best))
    compared = usable(values)
    # minus infinity is at the bottom, whatever the best is
    above = jnp.where(compared == -jnp.inf, jnp.zeros_like(compared), compared - lowest)
    above = jnp.where((best == -jnp.inf) & (compared > best), jnp.full_like(above, jnp.inf), above)
    near = _in_order(above.reshape(-1), above.size // 8)
    scale = jnp.where((near > 0) & (near < scale), near, scale)
    heights = jnp.arctan2(scale, above)
    smallest = jnp.argmin(above).astype(jnp.int32)
    noise = jax.random.uniform(key, values.shape, values.dtype)

    def eliminate(carry: Any, number: Array) -> tuple[Any, Array]:
        rest, free = carry
        sizes = jnp.where(free, jnp.abs(rest), -jnp.ones_like(rest))
        largest = jnp.argmax(sizes).astype(jnp.int32)
        other = jnp.argmax(jnp.where(free, noise, -noise)).astype(jnp.int32)
        at = jnp.where((sizes.reshape(-1)[largest] > 0) & ~drawn, largest, other)
        at = jnp.where(number == 0, smallest, at)
        row, column = at // columns, at % columns
        pivot = rest[row, column]
        safe = jnp.where(pivot == 0, jnp.ones_like(pivot), pivot)
        rest = rest - (rest[:, column] / safe)[:, None] * rest[row][None]
        apart = (jnp.arange(rows, dtype=jnp.int32) != row)[:, None] & (jnp.arange(columns, dtype=jnp.int32) != column)[
            None
        ]
        return (rest, free & apart), at

    start = (heights, jnp.ones(values.shape, bool))
    return jax.lax.scan(eliminate, start, jnp.arange(num, dtype=jnp.int32))[1]


def _in_order(values: Float[Array, "m"], place: int) -> Array:
    """The value that sorting would put at a place."""
    if values.size > _FEW:
        return jnp.sort(values)[place]
    smaller = jnp.sum(values[:, None] > values[None], 1, dtype=jnp.int32)
    return jnp.max(jnp.where(smaller <= place, values, -jnp.inf))


_Progress = tuple[Record, Array, Array]
"""(record, key, stale), as in the state."""


def _choose(
    layout: _Layout, progress: _Progress, scale: Array, indices: Array, values: Array
) -> tuple[Int32[Array, "R d"], _Progress]:
    """(multi-indices of the pivots, progress) from the values of a block."""
    record, key, stale = progress
    before = record.best_value
    inside = jnp.all((indices >= 0) & (indices < jnp.array(layout.shape, jnp.int32)[None]), 1)
    record = updated(record, indices, values, layout.shape)
    values = jnp.where(inside, values, jnp.full_like(values, jnp.inf))
    stale = jnp.where(record.best_value < before, jnp.int32(0), (stale + 1) % (3 * layout.steps))
    drawn = stale >= 2 * layout.steps
    key, draw = jax.random.split(key)
    at = _pivots(values.reshape(layout.rows, layout.columns), record.best_value, scale, draw, drawn, layout.rank)
    return indices[at], (record, key, stale)


# ------------------------------------------------------------------------------------------------ init, ask, tell


@partial(jax.jit, static_argnums=1)
def _init(key: Array, layout: _Layout, start: tuple[Any, Array]) -> TTOptState:
    initial, scale = start
    d = len(layout.shape)
    sizes = jnp.array(layout.shape, jnp.int32)
    key, draw = jax.random.split(key)
    points = jax.random.randint(draw, (layout.rank, d), 0, sizes[None], jnp.int32)
    record = empty_record(d, scale.dtype)
    bad = ~(scale > 0)
    if initial is not None:
        inside = jnp.clip(initial, 0, sizes[None] - 1)
        points = points.at[: len(initial)].set(inside)
        bad |= jnp.any(inside != initial)
    record = replace(record, status=jnp.where(bad, jnp.int32(Status.OUT_OF_RANGE), record.status))
    indices = jnp.broadcast_to(points[None], (d + 1, layout.rank, d))
    return TTOptState(indices, jnp.int32(0), jnp.zeros((), bool), scale, key, jnp.int32(0), record)


@partial(jax.jit, static_argnums=1)
def _ask(state: TTOptState, layout: _Layout) -> Int32[Array, "m d"]:
    before, behind = state.indices[state.site], state.indices[state.site + layout.sites]
    return _block(layout, before, behind, state.site, state.backwards)


@partial(jax.jit, static_argnums=3)
def _tell(state: TTOptState, indices: Array, values: Array, layout: _Layout) -> TTOptState:
    progress = state.record, state.key, state.stale
    chosen, (record, key, stale) = _choose(layout, progress, state.scale, indices, values)
    kept = state.indices.at[state.site + 1].set(_reversed_if(state.backwards, chosen))
    over = state.site + 1 == layout.steps
    kept = jnp.where(over, kept[::-1, :, ::-1], kept)
    site = jnp.where(over, jnp.int32(0), state.site + 1)
    backwards = state.backwards ^ over
    return replace(state, indices=kept, site=site, backwards=backwards, key=key, stale=stale, record=record)


# ------------------------------------------------------------------------------------------------ whole runs


@partial(jax.jit, static_argnums=(0, 1, 2))
def _ttopt(f: Objective, layout: _Layout, num: int, key: Array, start: Any, args: tuple) -> OptimizeResult:
    state, steps = _init(key, layout, start), layout.steps

    def sweep(carry: Any, number: Array) -> tuple[Any, Array]:
        kept, progress = carry
        backwards = number % 2 == 1

        def step(carry: Any, inputs: Any) -> tuple[Any, tuple[Array, Array]]:
            site, behind, own = inputs

            def evaluate(carry: Any) -> tuple[Any, Array]:
                before, progress = carry
                indices = _block(layout, before, behind, site, backwards)
                values = evaluated(f, indices, args, state.scale.dtype)
                chosen, progress = _choose(layout, progress, state.scale, indices, values)
                chosen = _reversed_if(backwards, chosen)
                return (chosen, progress), chosen

            # the budget may end within a sweep; the condition does not depend on what vmap maps over
            carry, chosen = jax.lax.cond(number * steps + site < num, evaluate, lambda carry: (carry, own), carry)
            return carry, (chosen, carry[1][0].best_value)

        inputs = (jnp.arange(steps, dtype=jnp.int32), kept[layout.sites : layout.sites + steps], kept[1 : steps + 1])
        (_, progress), (chosen, history) = jax.lax.scan(step, (kept[0], progress), inputs)
        kept = jnp.concatenate([kept[:1], chosen, kept[steps + 1 :]])
        return (kept[::-1, :, ::-1], progress), history

    sweeps = jnp.arange(-(-num // steps), dtype=jnp.int32)
    begin = (state.indices, (state.record, state.key, state.stale))
    (_, (record, _, _)), history = jax.lax.scan(sweep, begin, sweeps)
    return result_of(record, history.reshape(-1)[:num])
