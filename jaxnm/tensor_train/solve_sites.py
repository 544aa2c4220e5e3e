"""The half-sweep of `solve`: interfaces, projected systems, and bases enriched by the residual."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.linalg import eigh, einsum, matmul, qr, svd
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from jaxnm.tensor_train.trains import within

_STEPS = 40
"""Of the iteration for the projected system of a site."""
_SLACK = 1.5
"""By how much cutting a core may raise a projected residual that is above its tolerance anyway."""

Interface = tuple[Array, Array, Array]
"""(y^H A x [Y, P, X], the exponent of a power of two that belongs to it, y^H b [Y, B]) of all sites on one side."""


def reversed_cores(cores: Array) -> Array:
    """Cores of the train, or of the operator, with its modes in reverse."""
    return jnp.swapaxes(cores[::-1], 1, -1)


def interfaces_behind(test: Array, x: Array, a: Array, b: Array) -> tuple[Interface, Interface]:
    """The interface of all sites, and for every site that of the ones behind it, stacked."""
    corner = lambda *sizes: jnp.zeros(sizes, x.dtype).at[(0,) * len(sizes)].set(1)
    ranks = (part.shape[-1] for part in (test, a, x, b))
    rows, middle, columns, right = ranks
    start = corner(rows, middle, columns), jnp.int32(0), corner(rows, right)

    def step(interface: Interface, site: Any) -> tuple[Interface, Interface]:
        return _extended(interface, *site), interface

    whole, behind = jax.lax.scan(step, start, tuple(reversed_cores(part) for part in (test, x, a, b)))
    return whole, jax.tree.map(lambda part: part[::-1], behind)


def half_sweep(
    state: Any, system: Any, whole: Array, goal: Array, enriched: Array, key: Array, size: int, enrichment: int
) -> Any:
    """From left to right once.

    Args:
      state: cores [d, R, n, R] of x, of orthonormal rows but for the first, ranks [d + 1], interfaces behind sites.
      system: cores of A and b, [d, n] whether a mode has an index, [d] the most that the rank behind a site can be.
      whole: exponent of the power of two that A is divided by.
      goal: of the projected residual of a site; b has norm one.
      enriched: whether bases are enriched.
      key: for sketches.
      size: of ranks before the enrichment.
      enrichment: columns.

    Returns:
      cores with orthonormal columns but for the last, ranks, interfaces before all sites, whether `size` was too small.
    """
    x, ranks, behind = state
    a, b, modes, bounds = system
    d, room, n, _ = x.shape
    dtype, width = x.dtype, min(enrichment, room * n)
    keys = jax.random.split(key)
    sketches = jax.random.normal(keys[0], (d, width, n, width), dtype) / math.sqrt(width)
    _, seen = interfaces_behind(sketches, x, a, b)
    noise = jax.random.normal(keys[1], (d, room * n, width), dtype)

    def step(carry: Any, site: Any) -> Any:
        interface, between, rank = carry
        core, a, b, behind, seen, noise, mode, right_rank, bound = site
        (left, exponent, left_b), (right, more, right_b), (look, others, look_b) = interface, behind, seen
        guess = einsum("rs,sit->rit", between, core)
        valid = within(rank, room)[:, None, None] & mode[None, :, None] & within(right_rank, room)[None, None]
        scaled = times_power_of_two(right, exponent + more - whole)
        target = _of_right(left_b, b, right_b)
        system = _Projected(left, a, scaled, valid)
        found = system.solved(target, guess, goal)
        error = target - system.product(found)

        # the smallest rank that keeps the projected residual
        basis, values, rest = svd(found.reshape(room * n, room))
        rows = valid[:, :, 0].reshape(-1)
        basis = jnp.where(rows[:, None], basis[:, :room], jnp.zeros_like(basis[:, :room]))
        values = values[:room]
        rest = values[:, None].astype(dtype) * rest[:room]
        rest = jnp.where(within(right_rank, room)[None], rest, jnp.zeros_like(rest))
        allowed = jnp.maximum(goal, _SLACK * size_of(error))
        cut = lambda count: jnp.where(within(count, basis.shape[1])[None], basis, jnp.zeros_like(basis))
        after = lambda count: target - system.product(matmul(cut(count), rest).reshape(found.shape))
        limit = jnp.sum(values > 4 * jnp.finfo(dtype).eps * values[0], dtype=jnp.int32)
        limit = jnp.clip(limit, 1, size)

        def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            enough = size_of(after(middle)) <= allowed
            return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

        _, count = jax.lax.fori_loop(0, math.ceil(math.log2(size)), bisect, (jnp.int32(1), limit))
        count = jnp.minimum(count, limit)
        short = (count == size) & (size_of(after(count)) > 2 * allowed)
        basis = cut(count)
        kept = matmul(basis, rest)

        sketch = _of_right(left_b, b, look_b) - _product(left, a, times_power_of_two(look, exponent + others - whole),
                                                         kept.reshape(found.shape))  # fmt: skip
        extra = jnp.minimum(bound - count, jnp.sum(rows, dtype=jnp.int32) - count)
        extra = jnp.where(enriched, jnp.minimum(extra, width), 0)
        more_columns = _complement(basis, sketch.reshape(room * n, width), jnp.where(rows[:, None], noise, 0))
        more_columns = jnp.where(within(extra, width)[None] & rows[:, None], more_columns, jnp.zeros_like(more_columns))
        place = jnp.zeros((room * n, room + width), dtype)
        place = jax.lax.dynamic_update_slice(place, more_columns, (jnp.int32(0), count))
        core = (jnp.pad(basis, ((0, 0), (0, room - basis.shape[1]))) + place[:, :room]).reshape(found.shape)
        between = jnp.pad(rest, ((0, room - rest.shape[0]), (0, 0)))
        between = jnp.where(within(count, room)[:, None], between, jnp.zeros_like(between))
        rank = count + extra
        return (_extended(interface, core, core, a, b), between, rank), (core, rank, interface, short)

    corner = lambda *sizes: jnp.zeros(sizes, dtype).at[(0,) * len(sizes)].set(1)
    before = corner(room, a.shape[-1], room), jnp.int32(0), corner(room, b.shape[-1])
    sites = (x, a, b, behind, seen, noise, modes, ranks[1:], bounds)
    start = (before, corner(room, room), jnp.int32(1))
    (_, between, _), (cores, counts, before, short) = jax.lax.scan(step, start, sites)
    cores = cores.at[-1].set(einsum("ris,st->rit", cores[-1], between))
    return cores, jnp.concatenate([jnp.ones(1, jnp.int32), counts]), before, jnp.any(short)


def _complement(basis: Array, sketch: Array, noise: Array) -> Array:
    """Orthonormal columns that with the basis span the sketch; some noise stands for what the sketch lacks."""
    largest = jnp.max(jnp.abs(sketch))
    unit = sketch / jnp.where(largest > 0, largest, jnp.ones_like(largest)).astype(sketch.dtype)
    columns = unit + math.sqrt(jnp.finfo(sketch.dtype).eps) * noise
    for _ in range(2):
        columns = qr(columns - matmul(basis, matmul(basis.conj().T, columns))).orthogonal
    return columns


# ------------------------------------------------------------------------------------------------ one site


class _Projected:
    """The system of one site: A projected onto the bases on both sides, and the identity on padding."""

    def __init__(self, left: Array, a: Array, right: Array, valid: Array) -> None:
        self.left, self.a, self.right, self.valid = left, a, right, valid

    def product(self, u: Array) -> Array:
        """Zero on padding where u is."""
        return _product(self.left, self.a, self.right, u)

    def solved(self, target: Array, guess: Array, goal: Array) -> Array:
        return _conjugate_residuals(self.product, self._inverse_blocks(), target, guess, goal)

    def _inverse_blocks(self) -> Callable[[Array], Array]:
        """Division by the blocks [n, n] on the diagonal, in the eigenvectors of the partial traces of both sides."""
        trace = einsum("piiq->pq", self.a)
        before, behind = einsum("apa->p", self.left), einsum("bqb->q", self.right)
        turn_left = _eigenvectors(einsum("apx,p->ax", self.left, matmul(trace, behind)), self.valid[:, 0, 0])
        turn_right = _eigenvectors(einsum("bqy,q->by", self.right, matmul(before, trace)), self.valid[0, 0])
        rows = einsum("apx,ak,xk->kp", self.left, turn_left.conj(), turn_left)
        columns = einsum("bqy,bl,yl->lq", self.right, turn_right.conj(), turn_right)
        blocks = einsum("kp,pijq,lq->klij", rows, self.a, columns)
        padding = (~self.valid).astype(blocks.dtype).transpose(0, 2, 1)
        blocks = blocks + padding[..., None] * jnp.eye(blocks.shape[-1], dtype=blocks.dtype)[None, None]
        inverse = jnp.linalg.inv(blocks)
        inverse = jnp.where(jnp.isfinite(inverse), inverse, jnp.zeros_like(inverse))

        def apply(r: Array) -> Array:
            turned = einsum("aib,ak,bl->kil", r, turn_left.conj(), turn_right.conj())
            return einsum("kil,ak,bl->aib", einsum("klij,kjl->kil", inverse, turned), turn_left, turn_right)

        return apply


def _eigenvectors(matrix: Array, valid: Array) -> Array:
    """Those of the Hermitian part, the ones of padding last."""
    whole = jnp.sum(jnp.abs(matrix))
    above = jnp.where(whole > 0, 2 * whole, jnp.ones_like(whole))
    padding = jnp.where(valid, jnp.zeros_like(above), above).astype(matrix.dtype)
    return eigh(matrix + jnp.diag(padding)).vectors


def _conjugate_residuals(
    product: Callable[[Array], Array], precondition: Callable[[Array], Array], target: Array, guess: Array, goal: Array
) -> Array:
    """The generalized conjugate residual method, preconditioned from the right, until the residual is below goal."""
    eps = jnp.finfo(target.dtype).eps
    empty = jnp.zeros((_STEPS, *target.shape), target.dtype)

    def step(state: Any) -> Any:
        count, u, r, searches, products, _ = state
        search = precondition(r)
        moved = product(search)
        whole = size_of(moved)
        for _ in range(2):
            along = einsum("maib,aib->m", products.conj(), moved)
            moved = moved - einsum("m,maib->aib", along, products)
            search = search - einsum("m,maib->aib", along, searches)
        length = size_of(moved)
        usable = length > eps * whole
        factor = jnp.where(usable, 1 / jnp.where(usable, length, jnp.ones_like(length)), jnp.zeros_like(length))
        factor = factor.astype(target.dtype)
        search, moved = search * factor, moved * factor
        amount = jnp.sum(moved.conj() * r)
        searches, products = searches.at[count].set(search), products.at[count].set(moved)
        return count + jnp.int32(1), u + amount * search, r - amount * moved, searches, products, usable

    def unfinished(state: Any) -> Array:
        count, _, r, _, _, usable = state
        return (count < _STEPS) & (size_of(r) > goal) & usable

    start = (jnp.int32(0), guess, target - product(guess), empty, empty, jnp.bool_(True))
    return jax.lax.while_loop(unfinished, step, start)[1]


def size_of(x: Array) -> Array:
    """The Euclidean norm, of all entries."""
    return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2))


def _product(left: Array, a: Array, right: Array, u: Array) -> Array:
    """[A, n, B] from u [X, n, Y], through interfaces [A, P, X] and [B, Q, Y]."""
    behind = einsum("xjy,bqy->xjbq", u, right)
    middle = einsum("pijq,xjbq->pixb", a, behind)
    return einsum("apx,pixb->aib", left, middle)


def _of_right(left: Array, b: Array, right: Array) -> Array:
    """The core of b through interfaces [A, C] and [B, D]."""
    return einsum("ac,cid,bd->aib", left, b, right)


def _extended(interface: Interface, test: Array, x: Array, a: Array, b: Array) -> Interface:
    """The interface with one more site, from left to right."""
    projected, exponent, right = interface
    half = einsum("pijq,tpjy->tiyq", a, einsum("tpx,xjy->tpjy", projected, x))
    projected, more = rescaled(einsum("tiyq,tis->sqy", half, test.conj()))
    right = einsum("tic,tis->sc", einsum("tb,bic->tic", right, b), test.conj())
    return projected, exponent + more, right
