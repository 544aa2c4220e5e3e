"""Trains of functions that can only be asked for entries: tensor cross interpolation with a search for what it missed.

Sweeps choose pivots (see `cross_sweeps`). Then the train is evaluated once more at the final ones, and only that is
differentiated.
"""

import dataclasses
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
from jaxnm.tensor_train import cross_sweeps as sweeps
from jaxnm.tensor_train.cross_sweeps import ROOM, SAMPLES, Best, Indices, Oriented
from jaxnm.tensor_train.products import gather
from jaxnm.tensor_train.trains import TT, bounded_rank, checked_shape, core_mask, within

Search = Literal["auto", "full", "rook"]
SEARCHES = ("auto", "full", "rook")
_LARGE_BLOCK = 2**15
"""Entries of a two-site block from which on "auto" evaluates some rows and columns only."""
_GLOBAL = 8
"""Global pivots that are looked for after a sweep."""
_BATCHES = 64
"""Times that random indices are drawn for a start while f is zero."""
MARGIN = 10
"""Errors at random indices may be this many tolerances."""
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
    """The largest error at random indices that were used for nothing else, and where a search along coordinates led
    from the worst of others, relative to |best_value|."""
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
      tol: the error asked for, relative to the largest |f| that was seen. Pivots are above tol / sqrt(d - 1), and above
        less where errors add up, but not below 8 machine epsilons. May be traced.
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

    Raises:
      ValueError: an empty shape or mode, max_rank < 1, tol < 0, initial of another shape or outside. TypeError: f does
        not give a floating or complex scalar, a raw key.

    Status: NONFINITE_INPUT: f was NaN or infinite somewhere. NOT_CONVERGED: check_error is above 10 tol, because
    max_rank is too small (`saturated`), or the sweeps too few, or the function too rough. 512 random indices are looked
    at after every sweep and in the check, and coordinate searches start from the worst of them. What none of these
    meets, such as a peak of a single entry, no method can know of: pass it as `initial`.

    Cost: (d - 1) (n R)^2 evaluations and n^2 R^3 d multiplications a sweep with "full". The compilation does not
    depend on d.
    Differentiable in `args`, at fixed pivots: the train and what is made from it. All else has derivative zero. Where f
    was not finite, the derivative may be NaN.
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
    out = jax.eval_shape(f, index, *args)
    found = f"{out.shape} of {out.dtype}" if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
    if not (isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.inexact)):
        arguments.refuse(
            name, "the value of f", found, "a floating scalar", "sum floats: i.astype(float)", error=TypeError
        )
    arguments.check_count(name, "max_rank", max_rank, minimum=1)
    arguments.check_count(name, "max_sweeps", max_sweeps, minimum=1)
    arguments.check_number(name, "tol", tol, ">= 0", lambda value: value >= 0, "0 is as good as 8 machine epsilons")
    arguments.check_key(name, key)
    if search not in SEARCHES:
        arguments.refuse(name, "search", repr(search), f"one of {SEARCHES}", "use 'auto'")
    size = bounded_rank(sizes, int(max_rank))
    if search == "auto":
        search = "rook" if ((size + ROOM) * max(sizes)) ** 2 >= _LARGE_BLOCK else "full"
    start = check_initial(name, initial, sizes)
    threshold = jnp.asarray(tol, jnp.finfo(out.dtype).dtype)
    arguments.check_shape(name, "tol", threshold, "a scalar", lambda shape: shape == (), "one for all bonds")
    return _cross(f, sizes, size, int(max_sweeps), search == "rook", threshold, key, start, tuple(args))


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
      >>> result = from_function_on(f, [grid] * 20, max_rank=4, tol=1e-5, key=jax.random.key(0), args=(2.0,))
      >>> int(result.ranks.max()), int(result.status)
      (1, 0)
    """
    name = "from_function_on"
    if len(grids) == 0:
        arguments.refuse(name, "grids", "empty", "at least one", "give one grid a mode")
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


def check_initial(function: str, initial: Any, sizes: tuple[int, ...]) -> Array:
    """[m, d] int32, m = 0 without any."""
    d = len(sizes)
    if initial is None:
        return jnp.zeros((0, d), jnp.int32)
    start = jnp.asarray(initial)
    if not jnp.issubdtype(start.dtype, jnp.integer):
        got = f"of dtype {start.dtype}"
        arguments.refuse(function, "initial", got, "integers", "give indices, not points", error=TypeError)
    condition = lambda shape: len(shape) == 2 and shape[1] == d
    arguments.check_shape(function, "initial", start, f"[m, {d}]", condition, "one row a multi-index")
    if not isinstance(start, jax.core.Tracer):
        known = np.asarray(start)
        if ((known < 0) | (known >= np.array(sizes))).any():
            arguments.refuse(function, "initial", "outside", f"indices below {sizes}", "count from 0")
    return jnp.clip(start.astype(jnp.int32), jnp.int32(0), jnp.array(sizes, jnp.int32)[None] - 1)


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


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _cross(
    f: Callable[..., Any], shape: tuple[int, ...], size: int, max_sweeps: int, rook: bool,
    tol: Array, key: Array, initial: Array, args: tuple[Any, ...],
) -> CrossResult:  # fmt: skip
    d, n = len(shape), max(shape)
    dtype, value_dtype = tol.dtype, jax.eval_shape(f, jax.ShapeDtypeStruct((d,), jnp.int32), *args).dtype
    sizes = jnp.array(shape, jnp.int32)
    fixed = jax.lax.stop_gradient(args)
    floor = jnp.asarray(FLOOR * jnp.finfo(dtype).eps, dtype)
    tol = jnp.maximum(jax.lax.stop_gradient(tol), floor)
    key_start, key_sweeps, key_check = jax.random.split(key, 3)
    function = Oriented(f, shape, fixed)

    # the start: the largest of the given and of random entries, of more of them while all are zero
    def draw(carry: Any) -> Any:
        count, _, _, best = carry
        batch_key = jax.random.fold_in(key_start, count)
        drawn = jnp.concatenate([initial, sweeps.random_indices(batch_key, SAMPLES, sizes)])
        values = function.at(jnp.bool_(False), drawn)
        return count + 1, drawn, values, best.seen(drawn, values, jnp.bool_(True))

    drawn = jnp.zeros((SAMPLES + initial.shape[0], d), jnp.int32)
    values = jnp.zeros(drawn.shape[0], value_dtype)
    best = Best(drawn[0], values[0], jnp.bool_(False))
    nonzero = lambda carry: (carry[0] < _BATCHES) & (carry[3].value == 0)
    batches, drawn, values, best = jax.lax.while_loop(nonzero, draw, (jnp.int32(0), drawn, values, best))
    number = min(size + ROOM, max(_GLOBAL, initial.shape[0]))
    weight = jnp.abs(values) / jnp.where(best.value == 0, jnp.ones((), dtype), jnp.abs(best.value))
    weight = jnp.where(jnp.isfinite(values), weight, jnp.zeros_like(weight))
    # those that were given come before all others
    weight = weight + jnp.where((jnp.arange(drawn.shape[0]) < initial.shape[0]) & (weight > 0), 2, 0).astype(dtype)
    _, chosen = jax.lax.top_k(weight, number)
    wanted = jnp.minimum(jnp.sum(weight > 0, dtype=jnp.int32), number)
    additions = sweeps.Additions(drawn[chosen], wanted)
    indices = Indices(
        jnp.broadcast_to(best.index[None, None], (d + 1, size, d)), jnp.ones(d + 1, jnp.int32), jnp.bool_(False)
    )

    def body(carry: Any) -> Any:
        progress, additions, best = carry
        sweep_key, search_key = jax.random.split(jax.random.fold_in(key_sweeps, progress.count))
        # without additions the left indices are nested, so that the train takes on the values at the pivots
        last = (progress.count == max_sweeps) | progress.calm
        additions = additions._replace(wanted=jnp.where(last, jnp.int32(0), additions.wanted))
        before, local = progress.indices, progress.local
        after, left_over, cores, best = sweeps.sweep(function, rook, local, sweep_key, before, additions, best)
        more, missed, best = sweeps.look_around(function, number, tol, search_key, cores, after.turned, best)
        steady = jnp.max(after.ranks) <= jnp.max(before.ranks)
        calm = steady & (missed <= tol * jnp.abs(best.value)) & (best.value != 0)
        # errors of the bonds add up: where the ranks do not grow any more, smaller pivots are the way on
        local = jnp.where(steady & ~calm, jnp.maximum(local / 4, floor), local)
        done = last | (calm & (additions.wanted == 0))
        progress = _Progress(progress.count + 1, after.turn(), left_over, missed, local, calm, done)
        return progress, more, best

    no = jnp.bool_(False)
    local = jnp.maximum(tol / max(d - 1, 1) ** 0.5, floor)
    start = _Progress(jnp.int32(0), indices, jnp.zeros(d - 1, dtype), jnp.zeros((), dtype), local, no, no)
    progress, _, best = jax.lax.while_loop(lambda carry: ~carry[0].done, body, (start, additions, best))
    count, indices, left_over, missed = progress[:4]
    indices = indices.turn()
    tt, broken = _train(f, shape, indices, args)

    check = sweeps.random_indices(key_check, SAMPLES, sizes)
    values = function.at(jnp.bool_(False), check)
    best = best.seen(check, values, jnp.bool_(True))
    broken = broken | best.broken
    scale = jnp.abs(best.value)
    unit = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    difference = jnp.abs(values - jax.lax.stop_gradient(gather(tt, check)))
    difference = jnp.where(jnp.isfinite(values), difference, jnp.zeros_like(difference))
    difference = jnp.maximum(jnp.max(difference), missed)
    check_error = jnp.where(broken & (scale == 0), jnp.full((), jnp.nan, dtype), difference / unit)
    pivot_error = jnp.max(left_over, initial=0) / unit
    full = (left_over > progress.local * scale) & (indices.ranks[1:-1] == size)
    block = sweeps.block_evaluations(size, n, rook)
    a_sweep = (d - 1) * block + size * n + SAMPLES + sweeps.PASSES * number * d * n
    rest = d * size * size * (n + 1) + SAMPLES
    evaluations = _added(rest, (count, a_sweep), (batches, SAMPLES + initial.shape[0]))
    status = first_failing((broken, Status.NONFINITE_INPUT), (~(check_error <= MARGIN * tol), Status.NOT_CONVERGED))
    return CrossResult(
        tt, tt.ranks, pivot_error, check_error, evaluations, jnp.any(full), best.index,
        best.value, status,
    )  # fmt: skip


def _added(start: int, *terms: tuple[Array, int]) -> Array:
    """Start + the sum of counts times numbers, or the largest int32."""
    largest = 2**31 - 1
    total = jnp.int32(min(start, largest))
    for count, each in terms:
        more = jnp.minimum(count, largest // each) * min(each, largest)
        total = total + jnp.minimum(jnp.where(count > largest // each, largest, more), largest - total)
    return total


# ------------------------------------------------------------------------------------------------ the train


def _train(f: Callable[..., Any], shape: tuple[int, ...], indices: Indices, args: tuple[Any, ...]) -> tuple[TT, Array]:
    """(the train through pivots, whether a value was not finite); differentiable in args."""
    function, (pivots, ranks, turned) = Oriented(f, shape, args), indices
    d, size, n = len(shape), pivots.shape[1], max(shape)

    @jax.checkpoint
    def core(xs: Any) -> tuple[Array, Array]:
        site, left, rank, right, right_rank, extent = xs
        rows, valid_rows = sweeps.with_mode(left, rank, site, extent, n)
        last = site == d - 1
        there = within(right_rank, size)
        # the pivots of the bond stand below
        rows = jnp.concatenate([rows, right])
        valid = jnp.concatenate([valid_rows, there & ~last])[:, None] & there[None]
        values = function.between(turned, site + 1, rows, right)
        finite = jnp.isfinite(values)
        lower, upper = _eliminated(jax.lax.stop_gradient(values), valid & finite, valid_rows.shape[0], ~last)
        # what an interpolation through the other entries gives there
        values = jnp.where(finite, values, matmul(lower, upper))
        values = jnp.where(valid, values, jnp.zeros_like(values))
        above, below = values[:-size], values[-size:]
        quotient = _over_pivots(above, below, lower, upper)
        return jnp.where(last, above, quotient).reshape(size, n, size), jnp.any(valid & ~finite)

    extents = function.extents(turned)
    sites = jnp.arange(d, dtype=jnp.int32)
    cores, broken = jax.lax.map(core, (sites, pivots[:-1], ranks[:-1], pivots[1:], ranks[1:], extents))
    cores = jnp.where(turned, cores[::-1].transpose(0, 3, 2, 1), cores)
    ranks = jnp.where(turned, ranks[::-1], ranks)
    cores = jnp.where(core_mask(ranks, shape, size), cores, jnp.zeros_like(cores))
    return TT(cores, ranks, jnp.zeros((), jnp.finfo(cores.dtype).dtype), shape), jnp.any(broken)


def _eliminated(matrix: Array, allowed: Array, above: int, usable: Array) -> tuple[Array, Array]:
    """(L [m, R], U [R, R]) with L U = matrix where allowed; its last R rows give the pivots, in their order."""
    size = matrix.shape[1]

    def body(k: Array, carry: Any) -> Any:
        rest, lower, upper = carry
        pivot = rest[above + k, k]
        good = (pivot != 0) & usable
        across = jnp.where(good, rest[above + k], jnp.zeros_like(pivot))
        down = rest[:, k] / jnp.where(good, pivot, jnp.ones_like(pivot))
        down = jnp.where(good, down, jnp.zeros_like(down))
        rest = jnp.where(allowed, rest - down[:, None] * across[None], jnp.zeros_like(rest))
        return rest.at[above + k].set(0).at[:, k].set(0), lower.at[:, k].set(down), upper.at[k].set(across)

    rest = jnp.where(allowed, matrix, jnp.zeros_like(matrix))
    start = (rest, jnp.zeros_like(rest), jnp.zeros((size, size), rest.dtype))
    return jax.lax.fori_loop(0, size, body, start)[1:]


def _divided(matrix: Array, lower: Array, upper: Array) -> Array:
    """Matrix (L U)^-1, where the pivots are; zero columns elsewhere."""
    size = upper.shape[0]
    there = jnp.diagonal(upper) != 0
    one = jnp.eye(size, dtype=upper.dtype)
    corner = jnp.where(there[:, None], lower[-size:], one)
    upper = jnp.where(there[:, None], upper, one)
    solve = partial(jax.lax.linalg.triangular_solve, left_side=False)
    matrix = jnp.where(there[None], matrix, jnp.zeros_like(matrix))
    return solve(corner, solve(upper, matrix, lower=False), lower=True, unit_diagonal=True)


@jax.custom_jvp
def _over_pivots(matrix: Array, pivots: Array, lower: Array, upper: Array) -> Array:
    """Matrix pivots^-1, by triangular factors of the pivots."""
    return _divided(matrix, lower, upper)


@_over_pivots.defjvp
def _over_pivots_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    matrix, pivots, lower, upper = primals
    quotient = _over_pivots(matrix, pivots, lower, upper)
    return quotient, _divided(tangents[0] - matmul(quotient, tangents[1]), lower, upper)
