"""Sweeps of a cross interpolation, and the search between them for what they miss.

At each bond the matrix of two neighbouring modes, between the left indices of the bond before and the right indices of
the bond behind, is factorized with full pivoting; the pivots are the new indices of the bond. Random indices and
coordinate searches on the error deliver pivots that no sweep would see.

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

from jaxnm.linalg import einsum
from jaxnm.tensor_train.trains import within

EXTRA = 4
"""Random rows and columns that a rook search adds to those it has."""
ROOM = 2
"""Places at every bond for global pivots beside max_rank others; without them a full bond would take none."""
SAMPLES = 512
"""Random indices at the start, after each sweep, and in the final check."""
PASSES = 2
"""Coordinate searches through all modes after a sweep."""


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
        better = size[k] > jnp.abs(self.value)
        return Best(
            jnp.where(better, indices[k], self.index),
            jnp.where(better, values[k], self.value),
            self.broken | jnp.any(~finite & valid),
        )


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
    return (most + EXTRA + size + EXTRA + size) * most * n if rook else (most * n) ** 2


@dataclasses.dataclass(frozen=True)
class Oriented:
    """The function with its modes as they are or turned."""

    f: Callable[..., Any]
    shape: tuple[int, ...]
    args: tuple[Any, ...]

    def at(self, turned: Array, indices: Array) -> Array:
        """[m] at indices [m, d]."""
        return jax.vmap(lambda index: self.f(index, *self.args))(turn_if(turned, indices))

    def between(self, turned: Array, bond: Array, rows: Array, columns: Array) -> Array:
        """[m, k] for what rows [m, d] have before a bond and columns [k, d] have behind it."""
        rows, columns = _written_out((rows, columns))
        places = jnp.arange(rows.shape[1], dtype=jnp.int32)
        before = turn_if(turned, places) < bond
        rows, columns = turn_if(turned, rows), turn_if(turned, columns)
        at = lambda row: jax.vmap(lambda column: self.f(jnp.where(before, row, column), *self.args))(columns)
        return jax.vmap(at)(rows)

    def extents(self, turned: Array) -> Array:
        """[d], the mode sizes."""
        return turn_if(turned, jnp.array(self.shape, jnp.int32))


def turn_if(turned: Array, indices: Array) -> Array:
    """The last axis in reverse, or not."""
    return jnp.where(turned, indices[..., ::-1], indices)


def random_indices(key: Array, number: int, sizes: Array) -> Array:
    """[number, d]; floats, since `jax.random.randint` takes five times as long to compile."""
    share = jax.random.uniform(key, (number, sizes.shape[0]), jnp.float32)
    index = (share * sizes[None].astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(index, sizes[None] - 1)


def _written_out(arrays: Any) -> Any:
    """The same. On the CPU, XLA would compute rows again for every entry of a block, if they came from no branch."""
    known = lambda arrays: jax.lax.cond(
        jax.lax.optimization_barrier(jnp.bool_(True)), lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), arrays
    )
    return jax.lax.platform_dependent(arrays, cpu=known, default=lambda arrays: arrays)


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


def sweep(
    function: Oriented, rook: bool, tol: Array, key: Array, indices: Indices, additions: Additions, best: Best
) -> tuple[Indices, Array, Array, Best]:
    """(new indices, what is left over at each bond [d - 1], cores, best), from left to right.

    In a turned sweep all indices are turned, but for that of the best value.
    """
    pivots, ranks, turned = indices
    additions = additions._replace(indices=turn_if(turned, additions.indices))
    d, size = pivots.shape[0] - 1, pivots.shape[1]
    n = max(function.shape)
    extents = function.extents(turned)

    def step(carry: Any, xs: Any) -> Any:
        left, rank, filled, best = carry
        site, middle, middle_rank, right, right_rank, extent, next_extent, key = xs
        right, right_filled = additions.to(right, right_rank)
        # the last bond has one right index, which is empty
        right_filled = jnp.where(site + 2 == d, 1, right_filled)
        rows, valid_rows = with_mode(left, filled, site, extent, n)
        columns, valid_columns = with_mode(right, right_filled, site + 1, next_extent, n)
        evaluate = partial(function.between, turned, site + 1)
        if rook:
            middle, middle_filled = additions.to(middle, middle_rank)
            known = (middle, within(middle_filled, size + ROOM))
            found = _rook(evaluate, tol, size, key, rows, valid_rows, columns, valid_columns, known, best)
        else:
            found = _full(evaluate, tol, size, rows, valid_rows, columns, valid_columns, best)
        new = jnp.where((jnp.arange(d, dtype=jnp.int32) <= site)[None], found.rows, found.columns)
        best = best._replace(broken=best.broken | found.broken)
        best = best.seen(turn_if(turned, new[:1]), found.value[None], jnp.bool_(True))
        count = jnp.maximum(found.count, 1)
        core = found.core.reshape(-1, n, size)[:size]
        core = jnp.where(within(rank, size)[:, None, None], core, jnp.zeros_like(core))
        left, filled = additions.to(new, count)
        return (left, count, filled, best), (new, count, found.error, core)

    sites = jnp.arange(d - 1, dtype=jnp.int32)
    keys = jax.random.split(key, d)[: d - 1] if rook else None
    start = (additions.to(pivots[0], jnp.int32(1))[0], jnp.int32(1), jnp.int32(1), best)
    xs = (sites, pivots[1:-1], ranks[1:-1], pivots[2:], ranks[2:], extents[:-1], extents[1:], keys)
    (_, rank, _, best), (new, counts, errors, cores) = jax.lax.scan(step, start, xs)
    ends = jnp.ones(1, jnp.int32)
    swept = Indices(jnp.concatenate([pivots[:1], new, pivots[-1:]]), jnp.concatenate([ends, counts, ends]), turned)
    rows, valid = with_mode(swept.pivots[-2], rank, jnp.int32(d - 1), extents[-1], n)
    values = function.at(turned, rows)
    best = best.seen(turn_if(turned, rows), values, valid)
    values = jnp.where(valid & jnp.isfinite(values), values, jnp.zeros_like(values)).reshape(size, n)
    last = jnp.zeros((1, size, n, size), values.dtype).at[0, :, :, 0].set(values)
    return swept, errors, jnp.concatenate([cores, last]), best


class _Found(NamedTuple):
    """Pivots of a block."""

    rows: Array
    """[R, d]"""
    columns: Array
    count: Array
    core: Array
    """[R n, R], which takes values at the pivot rows to those at all rows."""
    value: Array
    """The largest entry."""
    error: Array
    broken: Array


class _Factors(NamedTuple):
    rows: Array
    columns: Array
    count: Array
    lower: Array
    """[m, R], one in the pivot rows."""
    error: Array
    """The largest entry that is left."""


def _rank_revealing(matrix: Array, valid: Array, tol: Array, largest: Array, size: int) -> tuple[_Factors, Array]:
    """(LU with full pivoting, up to `size` pivots above tol; whether a valid entry is not finite).

    Pivots come from rows and columns without such entries while there are any, and these are interpolated then.
    """
    m, n = matrix.shape
    missing = valid & ~jnp.isfinite(matrix)
    allowed = valid & ~missing
    whole = ~jnp.any(missing, 1)[:, None] & ~jnp.any(missing, 0)[None]
    rest = jnp.where(allowed, matrix, jnp.zeros_like(matrix))
    peak = jnp.max(jnp.abs(rest))
    threshold = tol * jnp.maximum(peak, largest)
    # this much smaller than any pivot, the other rows and columns come last
    discount = threshold / jnp.where(peak > 0, 1000 * peak, jnp.ones_like(peak))

    def pick(rest: Array) -> tuple[Array, Array, Array]:
        sizes = jnp.abs(rest)
        rank = jnp.where(whole & (sizes > threshold), sizes, sizes * discount)
        row = jax.lax.argmax(jnp.max(rank, 1), 0, jnp.int32)
        column = jax.lax.argmax(rank[row], 0, jnp.int32)
        return row, column, sizes[row, column]

    def body(carry: Any) -> Any:
        factors, rest, row, column = carry
        across = rest[row]
        down = rest[:, column] / across[column]
        rest = jnp.where(allowed, rest - down[:, None] * across[None], jnp.zeros_like(rest))
        rest = rest.at[:, column].set(0)
        k = factors.count
        rows, columns = factors.rows.at[k].set(row), factors.columns.at[k].set(column)
        row, column, error = pick(rest)
        return _Factors(rows, columns, k + 1, factors.lower.at[:, k].set(down), error), rest, row, column

    row, column, error = pick(rest)
    start = jnp.zeros(size, jnp.int32)
    lower = jnp.zeros((m, size), matrix.dtype)
    factors = _Factors(start.at[0].set(row), start.at[0].set(column), jnp.int32(0), lower, error)
    go_on = lambda carry: (carry[0].count < min(size, m, n)) & (carry[0].error > threshold)
    factors = jax.lax.while_loop(go_on, body, (factors, rest, row, column))[0]
    return factors, jnp.any(missing)


def _core(factors: _Factors) -> Array:
    """The triangle over its pivot rows."""
    size = factors.rows.shape[0]
    there = within(factors.count, size)
    corner = jnp.where(there[:, None], factors.lower[factors.rows], jnp.eye(size, dtype=factors.lower.dtype))
    return jax.lax.linalg.triangular_solve(corner, factors.lower, left_side=False, lower=True, unit_diagonal=True)


def _full(
    evaluate: Callable[[Array, Array], Array], tol: Array, size: int, rows: Array, valid_rows: Array, columns: Array,
    valid_columns: Array, best: Best,
) -> _Found:  # fmt: skip
    matrix = evaluate(rows, columns)
    factors, broken = _rank_revealing(matrix, valid_rows[:, None] & valid_columns[None], tol, jnp.abs(best.value), size)
    value = jnp.where(factors.count > 0, matrix[factors.rows[0], factors.columns[0]], 0)
    return _Found(
        rows[factors.rows], columns[factors.columns], factors.count, _core(factors), value, factors.error,
        broken,
    )  # fmt: skip


def _rook(
    evaluate: Callable[[Array, Array], Array], tol: Array, size: int, key: Array, rows: Array, valid_rows: Array,
    columns: Array, valid_columns: Array, known: tuple[Array, Array], best: Best,
) -> _Found:  # fmt: skip
    """The columns that are known and random ones give rows, these and random ones give columns, these give pivots."""
    pivots, there = known
    most = pivots.shape[0]
    row_key, column_key = jax.random.split(key)

    def random(key: Array, valid: Array, number: int) -> Array:
        order = jax.random.uniform(key, valid.shape)
        return jax.lax.top_k(jnp.where(valid, order, order - 2), min(number, valid.shape[0]))[1]

    def factorize(
        rows: Array, valid_rows: Array, columns: Array, valid_columns: Array
    ) -> tuple[_Factors, Array, Array]:
        matrix = evaluate(rows, columns)
        valid = valid_rows[:, None] & valid_columns[None]
        factors, broken = _rank_revealing(matrix, valid, tol, jnp.abs(best.value), size)
        return factors, matrix, broken

    extra = random(column_key, valid_columns, most + EXTRA)
    few = jnp.where(there[:, None], pivots, columns[extra[:most]])
    few = jnp.concatenate([few, columns[extra[most:]]])
    valid_few = jnp.concatenate([there | valid_columns[extra[:most]], valid_columns[extra[most:]]])
    first, _, broken = factorize(rows, valid_rows, few, valid_few)

    extra = random(row_key, valid_rows, size + EXTRA)
    chosen = jnp.where(within(first.count, size), first.rows, extra[:size])
    chosen = jnp.concatenate([chosen, extra[size:]])
    second, _, more = factorize(rows[chosen], valid_rows[chosen], columns, valid_columns)
    chosen = second.columns
    # where nothing was found, one column stays, with a factorization of zeros
    there = within(second.count, size)
    third, matrix, last = factorize(rows, valid_rows, columns[chosen], there)
    value = jnp.where(third.count > 0, matrix[third.rows[0], third.columns[0]], 0)
    error = jnp.maximum(second.error, third.error)
    return _Found(
        rows[third.rows], columns[chosen][third.columns], third.count, _core(third), value, error, broken | more | last
    )


# ------------------------------------------------------------------------------------------------ global pivots


def look_around(
    function: Oriented, number: int, tol: Array, key: Array, cores: Array, turned: Array, best: Best
) -> tuple[Additions, Array, Best]:
    """(indices where the train is most in error, the largest such error, best).

    From the worst of random indices, one mode after the other is set to what makes the error largest.
    """
    d, size, n = cores.shape[:3]
    extents = function.extents(turned)
    draw = random_indices(key, SAMPLES, extents)
    values = function.at(turned, draw)
    best = best.seen(turn_if(turned, draw), values, jnp.bool_(True))

    def error_of(values: Array, others: Array) -> Array:
        return jnp.where(jnp.isfinite(values), jnp.abs(values - others), jnp.zeros((), tol.dtype))

    def behind(carry: Array, xs: Any) -> tuple[Array, Array]:
        core, index = xs
        return einsum("mrs,ms->mr", jnp.swapaxes(core, 0, 1)[index], carry), carry

    first = jnp.zeros(size, cores.dtype).at[0].set(1)
    start = jnp.broadcast_to(first[None], (SAMPLES, size))
    train = jax.lax.scan(behind, start, (cores, draw.T), reverse=True)[0][:, 0]
    errors, chosen = jax.lax.top_k(error_of(values, train), min(number, SAMPLES))
    points = draw[jnp.concatenate([chosen, jnp.zeros(number - chosen.shape[0], jnp.int32)])]
    start = start[:1].repeat(number, 0)
    mode = jnp.arange(n, dtype=jnp.int32)

    def along(carry: Any, xs: Any) -> tuple[Any, None]:
        points, _, left, best = carry
        site, core, right, extent = xs
        here = jnp.arange(d, dtype=jnp.int32) == site
        every = jnp.where(here[None, None], jnp.minimum(mode, extent - 1)[None, :, None], points[:, None])
        values = function.at(turned, every.reshape(-1, d))
        best = best.seen(turn_if(turned, every.reshape(-1, d)), values, jnp.bool_(True))
        moved = einsum("mr,ris->mis", left, core)
        errors = error_of(values.reshape(number, n), einsum("mis,ms->mi", moved, right))
        errors = jnp.where((mode < extent)[None], errors, -jnp.ones_like(errors))
        choice = jax.lax.argmax(errors, 1, jnp.int32)
        pick = lambda array: jnp.take_along_axis(array, choice[:, None, None], 1)[:, 0]
        return (pick(every), jnp.max(errors, 1), pick(moved), best), None

    def search(carry: Any, count: Any) -> tuple[Any, None]:
        points, errors, best = carry
        right = jax.lax.scan(behind, start, (cores, points.T), reverse=True)[1]
        sites = (jnp.arange(d, dtype=jnp.int32), cores, right, extents)
        (points, errors, _, best), _ = jax.lax.scan(along, (points, errors, start, best), sites)
        return (points, errors, best), None

    errors = jnp.zeros(number, tol.dtype)
    (points, errors, best), _ = jax.lax.scan(search, (points, errors, best), None, length=PASSES)
    same = jnp.all(points[:, None] == points[None], 2)
    again = jnp.any(jnp.tril(same, -1), 1)
    errors, order = jax.lax.top_k(jnp.where(again, -jnp.ones_like(errors), errors), number)
    wanted = jnp.sum(errors > tol * jnp.abs(best.value), dtype=jnp.int32)
    return Additions(turn_if(turned, points[order]), wanted), errors[0], best
