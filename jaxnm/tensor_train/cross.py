"""Trains of functions that can only be asked for entries: tensor cross interpolation with a search for what it missed.

Sweeps choose pivots (see `cross_sweeps`, and `cross_search` for those that no sweep would see). Then the train is
evaluated once more at the final ones, and only that is differentiated. A function with so few entries that sweeps would
ask for all of them is a table (see `cross_table`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int, Int32, Key

from jaxnm import arguments
from jaxnm.linalg import matmul
from jaxnm.status import Status, first_failing
from jaxnm.tensor_train import cross_search, cross_table, cross_train
from jaxnm.tensor_train import cross_sweeps as sweeps
from jaxnm.tensor_train.cross_sweeps import ROOM, Best, Indices, Oriented
from jaxnm.tensor_train.dense import to_dense
from jaxnm.tensor_train.trains import (
    TT,
    bounded_rank,
    checked_shape,
    rescaled,
    times_power_of_two,
)

Search = Literal["auto", "full", "rook"]
SEARCHES = ("auto", "full", "rook")
_LARGE_BLOCK = 2**15
"""Entries of a two-site block from which on "auto" evaluates some rows and columns only."""
_GLOBAL = 8
"""Global pivots that are looked for after a sweep."""
_BATCHES = 64
"""Times that random indices are drawn for a start while f is zero, at most."""
MARGIN = 10
"""Errors at random indices may be this many tolerances."""
VISIBLE = 8
"""So many values of the check must be above the tolerance; a support half of which was missed then shows in 98 of 100
cases."""
FLOOR = 8
"""No pivot is below this many machine epsilons of the largest entry."""


@flax.struct.dataclass
class CrossResult:
    """A train through entries of a function, and what is known about its error."""

    tt: TT
    ranks: Int32[Array, "d+1"]
    pivot_error: Float[Array, ""]
    """The largest entry that the last factorizations left over, relative to |best_value|."""
    check_error: Float[Array, ""]
    """The largest error at random indices that gave no pivots, and where searches along coordinates led from them,
    relative to |best_value|; of all entries where `num_evaluations` is the number of entries."""
    mean_error: Float[Array, ""]
    """The error of the mean of all entries, and so of their sum and integral, relative to the modulus of that mean, if
    no error is above check_error; the error itself where all entries are known. Infinite for a mean of zero."""
    num_evaluations: Int32[Array, ""]
    """How often the function was called, padding included; at most 2^31 - 1."""
    saturated: Bool[Array, ""]
    """Whether some bond has max_rank pivots and wants more."""
    best_index: Int32[Array, "d"]
    """Where the largest absolute value was seen."""
    best_value: Inexact[Array, ""]
    """The value there, with its sign."""
    status: Int32[Array, ""]


def from_function(
    f: Callable[..., Any],
    shape: Sequence[int],
    *,
    max_rank: int,
    tol: Float[ArrayLike, ""],
    key: Key[Array, ""],
    initial: Int[ArrayLike, "m d"] | None = None,
    args: tuple[Any, ...] = (),
    max_sweeps: int = 8,
    search: Search = "auto",
) -> CrossResult:
    """The train of a function of an index, from few of its entries, by tensor cross interpolation.

    Args:
      f: `f(index [d] int32, *args)` gives a real or complex scalar; it is vmapped inside. Static: what changes, and
        what is to be differentiated, goes into `args`.
      shape: the mode sizes, d of them (static).
      max_rank: R (static); clipped to what the shape can have.
      tol: the error asked for in an entry, relative to the largest |f| that was seen, and to nothing else: what this
        means for the sum of all entries is `mean_error`. Pivots are above tol / sqrt(d - 1), and above less where
        errors add up, but not below 8 machine epsilons. May be traced.
      key: of `jax.random.key`, for the start, the search for global pivots, and the check.
      initial: multi-indices where f is known to matter, such as a narrow peak.
      args: pytrees of arrays.
      max_sweeps: sweeps over all bonds, in alternating direction, before the last one (static); fewer are made if one
        finds no more pivots, and a search after it no error above tol.
      search: of pivots in a block of two modes (static). "full" looks at all of its (n R)^2 entries, "rook" at about
        3 n R^2, in rows and columns in turn; "auto" is "full" below 2^15 entries.

    Returns:
      `CrossResult`. An entry of f that is NaN or infinite is no pivot; the train interpolates there. If f was zero
      wherever it was seen, the train is zero, of rank one.

      Where two sweeps would ask for as many entries as there are, each entry is evaluated once instead, the table is
      decomposed by TT-SVD, and the check is exact. Where more sweeps would, as many are made as ask for no more; if the
      check is not passed then, all entries are evaluated as above, so that there are never more than two evaluations
      an entry.

    Raises:
      ValueError: an empty shape or mode, max_rank < 1, tol < 0, initial of another shape or outside. TypeError: f does
        not give a floating or complex scalar, a raw key.

    Status:
      NONFINITE_INPUT: f was NaN or infinite somewhere.
      OUT_OF_RANGE: a traced `initial` has an index that the shape does not have; it was moved to the nearest one.
      NOT_CONVERGED: check_error is above 10 tol, because max_rank is too small (`saturated`), or the sweeps too few, or
      the function too rough.
      UNEXPLORED: of 384 uniform indices that gave no pivots, fewer than 8 have a value above tol |best_value|, so that
      the check says next to nothing of where f is large. All sweeps were made then, for the searches between them.

    After every sweep 512 indices are looked at, 128 of them continuations and changes of pivots; coordinate searches
    start from the largest errors and values. What none of these meets, such as a peak of a single entry, no method can
    know of: pass it as `initial`.

    Cost: (d - 1) (n R)^2 evaluations and n^2 R^3 d multiplications a sweep with "full". The compilation does not
    depend on d.
    Differentiable in `args` to any order, at fixed pivots: the train, what is made from it, and best_value. The errors
    are measurements, of derivative zero. Where f was not finite, the derivative may be NaN. A derivative in tol raises
    TypeError.
    Source: Y. Nunez Fernandez, M. K. Ritter, et al., SciPost Phys. 18 (2025), 104, sections 3 and 4 (two-site tensor
    cross interpolation, rank-revealing LU, rook search, global pivots).

    Example:
      >>> f = lambda index: jnp.sum(index.astype(float))
      >>> result = from_function(f, (4,) * 6, max_rank=5, tol=1e-5, key=jax.random.key(0))
      >>> result.ranks.tolist(), result.best_index.tolist(), float(result.best_value)
      ([1, 2, 2, 2, 2, 2, 1], [3, 3, 3, 3, 3, 3], 18.0)
    """
    name = "from_function"
    sizes = checked_shape(name, shape)
    index = jax.ShapeDtypeStruct((len(sizes),), jnp.int32)
    arguments.check_tuple(name, "args", args)
    out = arguments.shape_of_value(name, "f", f, index, *args, remedy="use from_black_box for a function of the host")
    found = f"{out.shape} of {out.dtype}" if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
    if not (isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.inexact)):
        arguments.refuse(
            name, "the value of f", found, "a floating scalar", "sum floats: i.astype(float)", error=TypeError
        )
    arguments.check_dtype(name, "the value of f", out.dtype)
    arguments.check_count(name, "max_rank", max_rank, minimum=1)
    arguments.check_count(name, "max_sweeps", max_sweeps, minimum=1)
    arguments.check_number(name, "tol", tol, ">= 0", lambda value: value >= 0, "0 is as good as 8 machine epsilons")
    arguments.check_key(name, key)
    arguments.check_option(name, "search", search, SEARCHES, "use 'auto'")
    size = bounded_rank(sizes, int(max_rank))
    if search == "auto":
        search = "rook" if ((size + ROOM) * max(sizes)) ** 2 >= _LARGE_BLOCK else "full"
    start, outside = check_initial(name, initial, sizes)
    (threshold,) = arguments.to_arrays(name, tol=tol)
    arguments.check_real(name, "tol", threshold)
    arguments.check_shape(name, "tol", threshold, "a scalar", lambda shape: shape == (), "one for all bonds")
    threshold = threshold.astype(jnp.finfo(out.dtype).dtype)
    threshold = arguments.without_derivative(name, "tol", threshold, remedy="differentiate in args, at a fixed tol")
    rook, sweeps_at_most = search == "rook", int(max_sweeps)
    plan = _Plan(f, sizes, size, sweeps_at_most, rook)
    given = (threshold, key, start, outside, tuple(args))
    entries, (draw, a_sweep, rest) = math.prod(sizes), _calls(sizes, size, rook, start.shape[0])
    beside = _batches(sizes) * draw + rest
    if beside + (sweeps_at_most + 1) * a_sweep < entries or entries >= 2**31:
        return _cross(plan, *given)[0]
    if entries <= beside + 2 * a_sweep:
        return _from_table(plan, *given)
    # as many sweeps as ask for no more entries than there are; what they do not settle, the table does
    capped = min(sweeps_at_most, (entries - beside) // a_sweep - 1)
    result, settled = _cross(plan._replace(max_sweeps=capped), *given)
    return _either(settled, result, lambda: _instead(plan, result, *given))


def from_function_on(
    f: Callable[..., Any],
    grids: Sequence[Float[ArrayLike, "n"]],
    *,
    max_rank: int,
    tol: Float[ArrayLike, ""],
    key: Key[Array, ""],
    initial: Int[ArrayLike, "m d"] | None = None,
    args: tuple[Any, ...] = (),
    max_sweeps: int = 8,
    search: Search = "auto",
) -> CrossResult:
    """The train of a function of a point, on the product of d grids.

    Args:
      f: `f(point [d], *args)` gives a real or complex scalar; as in `from_function`.
      grids: d arrays [n_k]; may be traced.
      max_rank: as in `from_function`, as are tol, key, initial (indices, not points), args, max_sweeps and search.
      tol: see there.
      key: see there.
      initial: see there.
      args: see there.
      max_sweeps: see there.
      search: see there.

    Returns:
      `CrossResult`, whose train has the shape (n_1, ..., n_d).

    Raises:
      ValueError, TypeError: as `from_function`; grids that are no vectors of floats.

    Status: as `from_function`.
    Cost: as `from_function`. Differentiable in args and grids.

    Example:
      >>> grid = jnp.linspace(0.0, 1.0, 9)
      >>> f = lambda x, a: jnp.exp(-a * jnp.sum(x))
      >>> result = from_function_on(f, [grid] * 20, max_rank=4, tol=1e-5, key=jax.random.key(0), args=(0.5,))
      >>> int(result.ranks.max()), int(result.status)
      (1, 0)
    """
    name = "from_function_on"
    arguments.check_list(name, "grids", grids, "one grid a mode")
    arguments.check_tuple(name, "args", args)
    arguments.check_callable(name, "f", f, "pass a function of a point")
    arrays = arguments.to_arrays(name, **{f"grids[{k}]": grid for k, grid in enumerate(grids)})
    for k, array in enumerate(arrays):
        condition = lambda shape: len(shape) == 1 and shape[0] >= 1
        arguments.check_shape(name, f"grids[{k}]", array, "[n], n >= 1", condition)
    shape = tuple(array.shape[0] for array in arrays)
    padded = jnp.stack([jnp.pad(array, (0, max(shape) - array.shape[0]), mode="edge") for array in arrays])
    return from_function(
        _AtPoint(f), shape, max_rank=max_rank, tol=tol, key=key, initial=initial, args=(padded, *args),
        max_sweeps=max_sweeps, search=search,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _AtPoint:
    """Equal for equal functions, so that a second call finds the compiled program."""

    f: Callable[..., Any]

    def __call__(self, index: Array, grids: Array, *args: Any) -> Any:
        return self.f(jnp.take_along_axis(grids, index[:, None], 1)[:, 0], *args)


# ------------------------------------------------------------------------------------------------ checks


def check_initial(function: str, initial: Any, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """([m, d] int32, m = 0 without any, each moved to the nearest index that there is; whether one had to be)."""
    d = len(sizes)
    if initial is None:
        return arguments.constant(np.zeros((0, d)), jnp.int32), arguments.constant(False, bool)
    if not all(isinstance(size, int) for size in np.shape(initial)):
        arguments.refuse(
            function, "initial", f"of shape {np.shape(initial)}", "a known number", "export one program each"
        )
    start = arguments.to_integers(function, "initial", initial, "give indices, not points")
    condition = lambda shape: len(shape) == 2 and shape[1] == d
    arguments.check_shape(function, "initial", start, f"[m, {d}]", condition, "one row a multi-index")
    # unsigned indices have no negative ones to compare with
    inside, outside = _moved_inside(start, sizes)
    if not isinstance(outside, jax.core.Tracer) and bool(outside):
        arguments.refuse(function, "initial", "outside", f"indices below {sizes}", "count from 0")
    return inside, outside


@partial(jax.jit, static_argnums=1)
def _moved_inside(indices: Array, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    inside = jnp.clip(indices, 0, jnp.array(sizes, indices.dtype)[None] - 1)
    return inside.astype(jnp.int32), jnp.any(inside != indices)


# ------------------------------------------------------------------------------------------------ cross or table


class _Plan(NamedTuple):
    """What is static."""

    f: Callable[..., Any]
    shape: tuple[int, ...]
    size: int
    max_sweeps: int
    rook: bool


def _calls(shape: tuple[int, ...], size: int, rook: bool, given: int) -> tuple[int, int, int]:
    """(evaluations of a draw, of a sweep with the search after it, of the last train)."""
    d, n, draw, number = len(shape), max(shape), cross_search.SAMPLES, _chains(size, given)
    a_sweep = (d - 1) * sweeps.block_evaluations(size, n, rook) + size * n + draw + cross_search.PASSES * number * d * n
    return draw + given, a_sweep, d * size * size * (n + 1) + 1


def _batches(shape: tuple[int, ...]) -> int:
    """Times that random indices are drawn for a start while f is zero: an eighth of all entries at most, or once."""
    return min(_BATCHES, 1 + math.prod(shape) // (8 * cross_search.SAMPLES))


def _either(good: Array, result: CrossResult, other: Callable[[], CrossResult]) -> CrossResult:
    """A result if it is good, or another one; outside of a trace, the program of the other one only if it is wanted."""
    if isinstance(good, jax.core.Tracer):
        return jax.lax.cond(good, lambda: result, other)
    return result if bool(good) else other()


def _from_table(
    plan: _Plan, tol: Array, key: Array, initial: Array, outside: Array, args: tuple[Any, ...]
) -> CrossResult:
    """From all entries; where some are not finite, by a cross that interpolates there."""
    table, finite, result = _whole(plan.f, plan.shape, plan.size, tol, outside, args)

    def interpolated() -> CrossResult:
        through, _ = _cross(plan._replace(f=_looked_up), tol, key, initial, outside, (table,))
        return dataclasses.replace(through, num_evaluations=result.num_evaluations, status=result.status)

    return _either(finite, result, interpolated)


def _instead(
    plan: _Plan, result: CrossResult, tol: Array, _key: Array, _initial: Array, outside: Array, args: tuple[Any, ...]
) -> CrossResult:
    """From all entries, after a cross that did not settle; where some are not finite, that of the cross is flagged."""
    _, finite, whole = _whole(plan.f, plan.shape, plan.size, tol, outside, args)
    flagged = dataclasses.replace(result, status=whole.status)
    chosen = jax.tree.map(partial(jnp.where, finite), whole, flagged)
    return dataclasses.replace(
        chosen, num_evaluations=_added(0, (result.num_evaluations, 1), (whole.num_evaluations, 1))
    )


def _looked_up(index: Array, table: Array) -> Array:
    return table[tuple(index)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _whole(
    f: Callable[..., Any], shape: tuple[int, ...], size: int, tol: Array, outside: Array, args: tuple[Any, ...]
) -> tuple[Array, Array, CrossResult]:
    """(all entries, whether they are finite, the result for them)."""
    table = cross_table.entries(f, shape, args)
    return table, jnp.all(jnp.isfinite(table)), of_table(table, size, tol, outside)


@partial(jax.jit, static_argnums=1)
def of_table(table: Array, size: int, tol: Array, outside: Array) -> CrossResult:
    """The result for a table, checked at all entries; of use where they are finite, its status in any case."""
    shape, dtype = table.shape, tol.dtype
    tol = jnp.maximum(tol, FLOOR * jnp.finfo(dtype).eps)
    finite = jnp.isfinite(table)
    scaled, exponent = rescaled(jnp.where(finite, table, jnp.zeros_like(table)))
    tt, full = cross_table.decomposed(scaled, tol, size)
    difference = jax.lax.stop_gradient(to_dense(tt, max_size=scaled.size) - scaled)
    fixed = jax.lax.stop_gradient(scaled)
    at = jnp.argmax(jnp.abs(fixed)).astype(jnp.int32)
    best_value, largest = table.reshape(-1)[at], jnp.abs(fixed.reshape(-1)[at])
    unit = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    broken, nothing = ~jnp.all(finite), ~jnp.any(finite)
    error = jnp.max(jnp.abs(difference)) / unit
    error = jnp.where(nothing, jnp.full_like(error, jnp.nan), error)
    mean_error = _ratio(jnp.abs(jnp.sum(difference)), jnp.abs(jnp.sum(fixed)))
    status = first_failing(
        (broken, Status.NONFINITE_INPUT), (outside, Status.OUT_OF_RANGE),
        (~(error <= MARGIN * tol), Status.NOT_CONVERGED),
    )  # fmt: skip
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    index = at // jnp.asarray(strides, jnp.int32) % jnp.asarray(shape, jnp.int32)
    best_value = jnp.where(nothing, jnp.zeros_like(best_value), best_value)
    return CrossResult(
        _in_unit(tt, exponent), tt.ranks, error, error, mean_error, jnp.int32(min(scaled.size, 2**31 - 1)), full, index,
        best_value, status,
    )  # fmt: skip


def _in_unit(tt: TT, exponent: Array) -> TT:
    """Times a power of two, exactly."""
    return dataclasses.replace(tt, cores=tt.cores.at[-1].set(times_power_of_two(tt.cores[-1], exponent)))


def _ratio(error: Array, mean: Array) -> Array:
    """Error / mean; zero for no error."""
    some = jnp.where(mean > 0, mean, jnp.ones_like(mean))
    return jnp.where(mean > 0, error / some, jnp.where(error > 0, jnp.full_like(error, jnp.inf), jnp.zeros_like(error)))


# ------------------------------------------------------------------------------------------------ the iteration


class _Progress(NamedTuple):
    """After a sweep."""

    count: Array
    indices: Indices
    """In the orientation of the next sweep."""
    left_over: Array
    """[d - 1], the largest entry that the factorization of each bond left."""
    missed: Array
    """The largest error that a search found."""
    local: Array
    """Pivots are above this, relative to the largest entry."""
    calm: Array
    done: Array


@partial(jax.jit, static_argnums=0)
def _cross(
    plan: _Plan, tol: Array, key: Array, initial: Array, outside: Array, args: tuple[Any, ...]
) -> tuple[CrossResult, Array]:
    """(the result, whether its errors are small and enough was seen, or an entry was not finite)."""
    f, shape, size, max_sweeps, rook = plan
    d = len(shape)
    dtype, value_dtype = tol.dtype, jax.eval_shape(f, jax.ShapeDtypeStruct((d,), jnp.int32), *args).dtype
    sizes = jnp.array(shape, jnp.int32)
    floor = jnp.asarray(FLOOR * jnp.finfo(dtype).eps, dtype)
    tol = jnp.maximum(tol, floor)
    words = cross_search.words_of(key, d)
    fixed = jax.lax.stop_gradient(args)
    raw = Oriented(f, shape, fixed, jnp.ones((), dtype))
    number = _chains(size, initial.shape[0])

    # the start: the largest of the given and of random entries, of more of them while all are zero
    begin = jnp.zeros(d, jnp.int32) if initial.shape[0] == 0 else initial[0]
    indices = Indices(
        jnp.broadcast_to(begin[None, None], (d + 1, size, d)), jnp.ones(d + 1, jnp.int32), jnp.bool_(False)
    )

    def look(carry: Any) -> Any:
        count, _, _, best = carry
        drawn = jnp.concatenate([initial, cross_search.draw(words, count, sizes, indices)])
        values = raw.at(jnp.bool_(False), drawn)
        return count + 1, drawn, values, best.seen(drawn, values, jnp.bool_(True))

    drawn = jnp.zeros((cross_search.SAMPLES + initial.shape[0], d), jnp.int32)
    values = jnp.zeros(drawn.shape[0], value_dtype)
    best = Best(begin, values[0], jnp.bool_(False))
    unseen = lambda carry: (carry[0] < _batches(shape)) & (carry[3].value == 0)
    batches, drawn, values, best = jax.lax.while_loop(unseen, look, (jnp.int32(0), drawn, values, best))
    unit = _unit(jnp.abs(best.value))
    function = Oriented(f, shape, fixed, unit)
    best = best._replace(value=best.value / unit.astype(value_dtype))
    values = values / unit.astype(value_dtype)
    weight = jnp.abs(values) / jnp.where(best.value == 0, jnp.ones((), dtype), jnp.abs(best.value))
    weight = jnp.where(jnp.isfinite(values), weight, jnp.zeros_like(weight))
    # those that were given come before all others
    weight = weight + jnp.where((jnp.arange(drawn.shape[0]) < initial.shape[0]) & (weight > 0), 2, 0).astype(dtype)
    _, chosen = jax.lax.top_k(weight, number)
    additions = sweeps.Additions(drawn[chosen], jnp.minimum(jnp.sum(weight > 0, dtype=jnp.int32), number))
    indices = indices._replace(pivots=jnp.broadcast_to(best.index[None, None], indices.pivots.shape))

    def body(carry: Any) -> Any:
        progress, additions, _, _, best = carry
        # without additions the left indices are nested, so that the train takes on the values at the pivots
        last = (progress.count == max_sweeps) | progress.calm
        additions = additions._replace(wanted=jnp.where(last, jnp.int32(0), additions.wanted))
        before, local, number_of_draw = progress.indices, progress.local, _BATCHES + progress.count
        word = words[0, 0] + number_of_draw.astype(jnp.uint32)
        after, left_over, cores, best = sweeps.sweep(function, rook, local, word, before, additions, best)
        points = cross_search.draw(words, number_of_draw, function.extents(after.turned), after)
        more, missed, values, best = cross_search.look_around(function, number, tol, points, after, cores, best)
        steady = jnp.max(after.ranks) <= jnp.max(before.ranks)
        small = missed <= tol * jnp.abs(best.value)
        # where little was seen, all sweeps are made, for the searches between them
        calm = steady & small & (_visible(values, tol * jnp.abs(best.value)) >= VISIBLE)
        # errors of the bonds add up: where the ranks do not grow any more, smaller pivots are the way on
        local = jnp.where(steady & ~small, jnp.maximum(local / 4, floor), local)
        done = last | (calm & (additions.wanted == 0))
        progress = _Progress(progress.count + 1, after.turn(), left_over, missed, local, calm, done)
        return progress, more, sweeps.turn_if(after.turned, points), values, best

    no = jnp.bool_(False)
    local = jnp.maximum(tol / max(d - 1, 1) ** 0.5, floor)
    start = _Progress(jnp.int32(0), indices, jnp.zeros(d - 1, dtype), jnp.zeros((), dtype), local, no, no)
    start = (start, additions, drawn[: cross_search.SAMPLES], values[: cross_search.SAMPLES], best)
    # the points after the last sweep gave no pivots: they are the check
    progress, _, check, values, best = jax.lax.while_loop(lambda carry: ~carry[0].done, body, start)
    count, indices, left_over, missed = progress[:4]
    scale = jnp.abs(best.value)
    largest = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    tt, broken = cross_train.through(f, shape, indices.turn(), unit, args)
    broken |= best.broken

    cores = jax.lax.stop_gradient(tt.cores)
    tt = dataclasses.replace(tt, cores=tt.cores.at[-1].multiply(unit.astype(value_dtype)))
    train, _ = cross_search.behind(cores, check)
    difference = jnp.where(jnp.isfinite(values), jnp.abs(values - train), jnp.zeros((), dtype))
    error = jnp.maximum(jnp.max(difference), missed) / largest
    check_error = jnp.where(broken & (scale == 0), jnp.full((), jnp.nan, dtype), error)
    pivot_error = jnp.max(left_over, initial=0) / largest
    full = (left_over > progress.local * scale) & (indices.ranks[1:-1] == size)
    draw, a_sweep, rest = _calls(shape, size, rook, initial.shape[0])
    evaluations = _added(rest, (count, a_sweep), (batches, draw))
    inaccurate, unexplored = ~(check_error <= MARGIN * tol), _visible(values, tol * scale) < VISIBLE
    status = first_failing(
        (broken, Status.NONFINITE_INPUT), (outside, Status.OUT_OF_RANGE), (inaccurate, Status.NOT_CONVERGED),
        (unexplored, Status.UNEXPLORED),
    )  # fmt: skip
    best_value = jnp.where(best.value == 0, best.value, f(best.index, *args))
    result = CrossResult(
        tt, tt.ranks, pivot_error, check_error, _ratio(check_error, _mean_of(cores, shape) / largest), evaluations,
        jnp.any(full), best.index, best_value, status,
    )  # fmt: skip
    return result, broken | ~(inaccurate | unexplored)


def _unit(largest: Array) -> Array:
    """A power of two near a number, but never so small or large that what is found later could overflow."""
    info = jnp.finfo(largest.dtype)
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, jnp.ones_like(largest)))
    return jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, info.minexp // 2, info.maxexp // 2))


def _visible(values: Array, least: Array) -> Array:
    """How many values at the uniform indices of a draw are above the least that counts."""
    values = values[: cross_search.UNIFORM]
    return jnp.sum(jnp.isfinite(values) & (jnp.abs(values) > least), dtype=jnp.int32)


def _chains(size: int, given: int) -> int:
    """Global pivots that are looked for after a sweep."""
    number = min(size + ROOM, max(_GLOBAL, given))
    # half of the chains climb by errors, half by values
    return number + number % 2


def _mean_of(cores: Array, shape: tuple[int, ...]) -> Array:
    """The modulus of the mean of all entries of a train."""
    sizes = jnp.asarray(shape, jnp.finfo(cores.dtype).dtype).astype(cores.dtype)
    first = jnp.zeros(cores.shape[1], cores.dtype).at[0].set(1)
    step = lambda row, core: (matmul(row[None], core)[0], None)
    return jnp.abs(jax.lax.scan(step, first, jnp.sum(cores, 2) / sizes[:, None, None])[0][0])


def _added(start: int, *terms: tuple[Array, int]) -> Array:
    """Start + the sum of counts times numbers, or the largest int32."""
    largest = 2**31 - 1
    total = jnp.int32(min(start, largest))
    for count, each in terms:
        more = jnp.minimum(count, largest // each) * min(each, largest)
        total = total + jnp.minimum(jnp.where(count > largest // each, largest, more), largest - total)
    return total
