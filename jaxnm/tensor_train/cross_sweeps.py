"""Sweeps of a cross interpolation.

At each bond the matrix of two neighbouring modes, between the left indices of the bond before and the right indices of
the bond behind, is factorized with full pivoting; the pivots are the new indices of the bond. What no sweep would see
comes from `cross_search`.

A sweep from right to left is one from left to right of the function with its modes in reverse, so that one program does
both; `turned` says which one it is. The indices of one bond are rows of full multi-indices [R, d]: what stands before
the bond is a left index, the rest is a right one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.tensor_train.trains import within

EXTRA = 4
"""Random rows and columns that a rook search adds to those it has."""
ROOM = 2
"""Places at every bond for global pivots beside max_rank others; without them a full bond would take none."""


class Best(NamedTuple):
    """The largest value seen, and whether one was not finite."""

    index: Array
    value: Array
    broken: Array

    def seen(self, indices: Array, values: Array, valid: Array) -> "Best":
        """With values [m] at indices [m, d]."""
        finite = jnp.isfinite(values)
        size = jnp.where(finite & valid, jnp.abs(values), -jnp.ones((), jnp.abs(self.value).dtype))
        k = jax.lax.argmax(size, 0, jnp.int32)
        larger = self._replace(broken=self.broken | jnp.any(~finite & valid)).or_larger(indices[k], values[k])
        # of values none of which is valid the first may be anything
        return jax.tree.map(partial(jnp.where, size[k] > 0), larger, self._replace(broken=larger.broken))

    def or_larger(self, index: Array, value: Array) -> "Best":
        """With one finite value more."""
        larger = jnp.abs(value) > jnp.abs(self.value)
        return Best(jnp.where(larger, index, self.index), jnp.where(larger, value, self.value), self.broken)


class Indices(NamedTuple):
    """Multi-indices of all bonds, those at both ends among them, with the modes as they are or turned."""

    pivots: Array
    """[d + 1, R, d]"""
    ranks: Array
    """[d + 1]"""
    turned: Array

    def turn(self) -> "Indices":
        """The same with the modes in the other order."""
        return Indices(self.pivots[::-1, :, ::-1], self.ranks[::-1], ~self.turned)


class Additions(NamedTuple):
    """Multi-indices that are offered as pivots, the most wanted first, and how many of them are wanted."""

    indices: Array
    """[G, d]"""
    wanted: Array

    def to(self, pivots: Array, rank: Array) -> tuple[Array, Array]:
        """(indices [R + 2, d] of a bond and these in what room there is, how many)."""
        size = pivots.shape[0] + ROOM
        slot = jnp.arange(size, dtype=jnp.int32)
        offered = self.indices[jnp.clip(slot - rank, 0, self.indices.shape[0] - 1)]
        pivots = jnp.pad(pivots, ((0, ROOM), (0, 0)), mode="edge")
        return jnp.where((slot < rank)[:, None], pivots, offered), jnp.minimum(rank + self.wanted, size)


def block_evaluations(size: int, n: int, rook: bool) -> int:
    """How often one block asks for an entry."""
    most = size + ROOM
    return 3 * (size + EXTRA) * most * n if rook else (most * n) ** 2


@dataclasses.dataclass(frozen=True)
class Oriented:
    """The function with its modes as they are or turned."""

    f: Callable[..., Any]
    shape: tuple[int, ...]
    args: tuple[Any, ...]
    unit: Array
    """A power of two that values are divided by."""

    def at(self, turned: Array, indices: Array) -> Array:
        """[m] at indices [m, d]."""
        values = jax.vmap(lambda index: self.f(index, *self.args))(turn_if(turned, indices))
        return values / self.unit.astype(values.dtype)

    def between(self, before: Array, rows: Array, columns: Array, turned: Array) -> Array:
        """[m, k] for what rows [m, d] have in the modes `before` [d] and columns [k, d] in the others."""
        rows, columns = _written_out((rows, columns))
        before, rows, columns = turn_if(turned, before), turn_if(turned, rows), turn_if(turned, columns)
        at = lambda row: jax.vmap(lambda column: self.f(jnp.where(before, row, column), *self.args))(columns)
        values = jax.vmap(at)(rows)
        return values / self.unit.astype(values.dtype)

    def extents(self, turned: Array) -> Array:
        """[d], the mode sizes."""
        return turn_if(turned, jnp.array(self.shape, jnp.int32))


def turn_if(turned: Array, indices: Array) -> Array:
    """The last axis in reverse, or not."""
    return jnp.where(turned, indices[..., ::-1], indices)


def _written_out(arrays: Any) -> Any:
    """The same. On the CPU, XLA would compute rows again for every entry of a block, if they came from no branch."""
    known = lambda arrays: jax.lax.cond(
        jax.lax.optimization_barrier(jnp.bool_(True)), lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), arrays
    )
    return jax.lax.platform_dependent(arrays, cpu=known, default=lambda arrays: arrays)


def mixed(words: Array) -> Array:
    """Words of 32 bits, each replaced by another one that looks unrelated: a bijection, at a few operations a word."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return words ^ (words >> 16)


# ------------------------------------------------------------------------------------------------ one sweep


def with_mode(indices: Array, rank: Array, site: Array, extent: Array, n: int) -> tuple[Array, Array]:
    """(indices [R n, d] with every value of one mode, which of them are there)."""
    size, d = indices.shape
    mode = jnp.arange(n, dtype=jnp.int32)
    here = jnp.arange(d, dtype=jnp.int32) == site
    value = jnp.minimum(mode, extent - 1)
    every = jnp.where(here[None, None], value[None, :, None], indices[:, None])
    valid = within(rank, size)[:, None] & (mode < extent)[None]
    return every.reshape(-1, d), valid.reshape(-1)


class _Side(NamedTuple):
    """Rows or columns of a block."""

    indices: Array
    """[m, d]"""
    valid: Array


def sweep(
    function: Oriented, rook: bool, tol: Array, word: Array, indices: Indices, additions: Additions, best: Best
) -> tuple[Indices, Array, Array, Best]:
    """(new indices, what is left over at each bond [d - 1], cores, best), from left to right.

    In a turned sweep all indices are turned, but for that of the best value. `word` is random.
    """
    pivots, ranks, turned = indices
    additions = additions._replace(indices=turn_if(turned, additions.indices))
    d, size = pivots.shape[0] - 1, pivots.shape[1]
    n = max(function.shape)
    extents = function.extents(turned)
    places = jnp.arange(d, dtype=jnp.int32)

    def step(carry: Any, xs: Any) -> Any:
        left, rank, filled, best = carry
        site, middle, middle_rank, right, right_rank, extent, next_extent = xs
        right, right_filled = additions.to(right, right_rank)
        # the last bond has one right index, which is empty
        right_filled = jnp.where(site + 2 == d, 1, right_filled)
        rows = _Side(*with_mode(left, filled, site, extent, n))
        columns = _Side(*with_mode(right, right_filled, site + 1, next_extent, n))
        before = places <= site
        evaluate = partial(function.between, turned=turned)
        if rook:
            middle, middle_filled = additions.to(middle, middle_rank)
            known = _Side(middle, within(middle_filled, size + ROOM))
            found = _rook(
                evaluate, tol, size, mixed(word + site.astype(jnp.uint32)), before, rows, columns, known, best
            )
        else:
            found = _factorized(evaluate(before, *_both(rows, columns)), rows, columns, tol, jnp.abs(best.value), size)
        new = jnp.where(before[None], found.rows, found.columns)
        best = best._replace(broken=best.broken | found.broken)
        best = best.or_larger(turn_if(turned, new[0]), found.value)
        count = jnp.maximum(found.count, 1)
        core = found.core.reshape(-1, n, size)[:size]
        core = jnp.where(within(rank, size)[:, None, None], core, jnp.zeros_like(core))
        left, filled = additions.to(new, count)
        return (left, count, filled, best), (new, count, found.error, core)

    start = (additions.to(pivots[0], jnp.int32(1))[0], jnp.int32(1), jnp.int32(1), best)
    xs = (places[:-1], pivots[1:-1], ranks[1:-1], pivots[2:], ranks[2:], extents[:-1], extents[1:])
    (_, rank, _, best), (new, counts, errors, cores) = jax.lax.scan(step, start, xs)
    ends = jnp.ones(1, jnp.int32)
    swept = Indices(jnp.concatenate([pivots[:1], new, pivots[-1:]]), jnp.concatenate([ends, counts, ends]), turned)
    # these entries were in the last block
    rows, valid = with_mode(swept.pivots[-2], rank, jnp.int32(d - 1), extents[-1], n)
    values = function.at(turned, rows)
    values = jnp.where(valid & jnp.isfinite(values), values, jnp.zeros_like(values)).reshape(size, n)
    last = jnp.zeros((1, size, n, size), values.dtype).at[0, :, :, 0].set(values)
    return swept, errors, jnp.concatenate([cores, last]), best


# ------------------------------------------------------------------------------------------------ pivots of a block


class _Found(NamedTuple):
    """Pivots of a block."""

    rows: Array
    """[R, d]"""
    columns: Array
    count: Array
    core: Array
    """[m, R], which takes values at the pivot rows to those at all rows."""
    value: Array
    """The first pivot, zero without any."""
    error: Array
    """The largest entry that is left."""
    broken: Array
    """Whether a valid entry is not finite."""


class _Elimination(NamedTuple):
    rest: Array
    pivot: Array
    """[2], row and column of the next one."""
    error: Array
    """Its size."""
    count: Array
    """-1 before the first one is known."""
    pivots: Array
    """[R, 2]"""
    core: Array


def _both(rows: _Side, columns: _Side) -> tuple[Array, Array]:
    return rows.indices, columns.indices


def _factorized(matrix: Array, rows: _Side, columns: _Side, tol: Array, largest: Array, size: int) -> _Found:
    """LU with full pivoting, up to `size` pivots above tol times the largest entry known.

    Pivots come from rows and columns without entries that are not finite while there are any, and these are
    interpolated then.
    """
    m, n = matrix.shape
    valid = rows.valid[:, None] & columns.valid[None]
    missing = valid & ~jnp.isfinite(matrix)
    allowed = valid & ~missing
    whole = ~jnp.any(missing, 1)[:, None] & ~jnp.any(missing, 0)[None]
    rest = jnp.where(allowed, matrix, jnp.zeros_like(matrix))
    peak = jnp.max(jnp.abs(rest))
    threshold = tol * jnp.maximum(peak, largest)
    # this much smaller than any pivot, the other rows and columns come last
    discount = threshold / jnp.where(peak > 0, 1000 * peak, jnp.ones_like(peak))

    place, slot = jnp.arange(n, dtype=jnp.int32)[None], jnp.arange(size, dtype=jnp.int32)

    def body(state: _Elimination) -> _Elimination:
        row, column = state.pivot
        across, known = state.rest[row], state.count >= 0
        down = state.rest[:, column] / jnp.where(known, across[column], jnp.ones((), matrix.dtype))
        # in the first pass there is no pivot yet
        down = jnp.where(known, down, jnp.zeros_like(down))[:, None]
        rest = jnp.where(allowed & (~known | (place != column)), state.rest - down * across[None], jnp.zeros_like(down))
        own = slot == state.count
        core = jnp.where(own[None], down, state.core - down * state.core[row][None])
        pivots = jnp.where(own[:, None], state.pivot[None], state.pivots)
        sizes = jnp.abs(rest)
        order = jnp.where(whole & (sizes > threshold), sizes, sizes * discount)
        row = jax.lax.argmax(jnp.max(order, 1), 0, jnp.int32)
        column = jax.lax.argmax(order[row], 0, jnp.int32)
        return _Elimination(rest, jnp.stack([row, column]), sizes[row, column], state.count + 1, pivots, core)

    none = jnp.zeros((size, 2), jnp.int32)
    start = _Elimination(
        rest, none[0], jnp.full_like(peak, jnp.inf), jnp.int32(-1), none, jnp.zeros((m, size), matrix.dtype)
    )
    go_on = lambda state: (state.count < min(size, m, n)) & (state.error > threshold)
    end = jax.lax.while_loop(go_on, body, start)
    chosen_rows, chosen_columns = end.pivots.T
    value = jnp.where(end.count > 0, matrix[end.pivots[0, 0], end.pivots[0, 1]], jnp.zeros((), matrix.dtype))
    return _Found(
        rows.indices[chosen_rows], columns.indices[chosen_columns], end.count, end.core, value, end.error,
        jnp.any(missing),
    )  # fmt: skip


def _rook(
    evaluate: Callable[..., Array], tol: Array, size: int, word: Array, before: Array, rows: _Side, columns: _Side,
    known: _Side, best: Best,
) -> _Found:  # fmt: skip
    """The columns that are known and random ones give rows, these and random ones give columns, these give pivots.

    One body does the three factorizations, of which the second has rows and columns exchanged.
    """
    number = size + EXTRA

    def extended(side: _Side, source: _Side, word: Array) -> _Side:
        """To `number` indices, by random ones of a source where there are none."""
        order = mixed(word + jnp.arange(source.valid.shape[0], dtype=jnp.uint32)) >> 1
        order = jnp.where(source.valid, order.astype(jnp.int32), -1)
        more = jax.lax.top_k(order, min(number, source.valid.shape[0]))[1]
        more = jnp.pad(more, (0, number - more.shape[0]), mode="edge")
        there = jnp.pad(side.valid, (0, number - side.valid.shape[0]))
        own = jnp.pad(side.indices, ((0, number - side.indices.shape[0]), (0, 0)), mode="edge")
        return _Side(jnp.where(there[:, None], own, source.indices[more]), there | source.valid[more])

    def stage(carry: Any, number_of_stage: Array) -> tuple[Any, None]:
        few, found = carry
        turned = number_of_stage == 1
        choose = lambda yes, no: jax.tree.map(partial(jnp.where, turned), yes, no)
        long, other = choose(columns, rows), choose(rows, columns)
        # the last factorization has no other columns than those found
        mixed_in = extended(few, other, word + number_of_stage.astype(jnp.uint32))
        few = jax.tree.map(partial(jnp.where, number_of_stage == 2), few, mixed_in)
        matrix = evaluate(before ^ turned, *_both(long, few))
        new = _factorized(matrix, long, few, tol, jnp.abs(best.value), size)
        new = new._replace(
            error=jnp.where(number_of_stage == 2, jnp.maximum(new.error, found.error), new.error),
            broken=new.broken | found.broken,
        )  # fmt: skip
        there = jnp.pad(within(new.count, size), (0, EXTRA))
        return (_Side(jnp.pad(new.rows, ((0, EXTRA), (0, 0)), mode="edge"), there), new), None

    few = _Side(
        jnp.pad(known.indices, ((0, EXTRA - ROOM), (0, 0)), mode="edge"), jnp.pad(known.valid, (0, EXTRA - ROOM))
    )  # fmt: skip
    d = before.shape[0]
    none, zero = jnp.zeros((size, d), jnp.int32), jnp.zeros((), jnp.abs(best.value).dtype)
    core = jnp.zeros((rows.valid.shape[0], size), best.value.dtype)
    found = _Found(none, none, jnp.int32(0), core, jnp.zeros_like(best.value), zero, jnp.bool_(False))
    (_, found), _ = jax.lax.scan(stage, (few, found), jnp.arange(3, dtype=jnp.int32))
    return found
