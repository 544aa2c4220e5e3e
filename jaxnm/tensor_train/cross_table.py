"""The whole table of a function that has no more entries than a cross interpolation might ask for.

It is decomposed by TT-SVD and checked at every entry. With the singular vectors fixed, the train is made of products of
the table with them, so that it is differentiable to any order, also where singular values are equal.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.linalg import matmul, svd
from jaxnm.tensor_train.rounding import kept_count
from jaxnm.tensor_train.trains import TT, core_mask, rank_bounds, within

_AT_ONCE = 2**15
"""Entries that are evaluated at once."""
_ROUNDING = 4
"""Singular values of so many machine epsilons of the norm are rounding. None moves by more than the norm of the error,
which is 2 epsilons of that of the table if the values of f are right to these, and that of the SVD is as large, or the
root of the longer side, as sums of so many terms round."""


def entries(f: Callable[..., Any], shape: tuple[int, ...], args: tuple[Any, ...]) -> Array:
    """[*shape], all entries of a function of an index, each of them evaluated once."""
    # mapped over the first modes, at once over the others
    cut = next(k for k in range(len(shape)) if math.prod(shape[k:]) <= _AT_ONCE or k == len(shape) - 1)
    many, few = math.prod(shape[cut:]), math.prod(shape[:cut])

    def at(linear: Array) -> Array:
        strides = np.cumprod([1, *shape[:0:-1]])[::-1]
        index = linear // jnp.asarray(strides, jnp.int32) % jnp.asarray(shape, jnp.int32)
        return f(index, *args)

    numbers = jnp.arange(many, dtype=jnp.int32)
    if few == 1:
        return jax.vmap(at)(numbers).reshape(shape)
    rows = jax.lax.map(jax.checkpoint(lambda k: jax.vmap(at)(k * many + numbers)), jnp.arange(few, dtype=jnp.int32))
    return rows.reshape(shape)


def decomposed(table: Array, tol: Array, size: int) -> tuple[TT, Array]:
    """(the train of a finite table of entries near one, whether some bond has R singular vectors and wants more).

    What is dropped has a norm of at most tol times the largest entry, but for rounding, as far as the ranks let it.
    """
    shape, dtype = table.shape, tol.dtype
    bounds = rank_bounds(shape, size)
    fixed = jnp.abs(jax.lax.stop_gradient(table))
    limit = jnp.max(fixed) * tol / max(len(shape) - 1, 1) ** 0.5
    rounding = _ROUNDING * jnp.finfo(dtype).eps * jnp.sqrt(jnp.sum(fixed**2))
    rest, cores, ranks, full = table, [], [jnp.int32(1)], jnp.bool_(False)
    for k, n in enumerate(shape[:-1]):
        matrix = rest.reshape(bounds[k] * n, -1)
        left, singular, right = svd(jax.lax.stop_gradient(matrix))
        wanted = kept_count(singular, limit, len(singular))
        wanted = jnp.minimum(
            wanted,
            jnp.maximum(
                jnp.sum(singular > rounding * max(1.0, max(matrix.shape) ** 0.5 / _ROUNDING), dtype=jnp.int32), 1
            ),
        )
        count = jnp.minimum(wanted, bounds[k + 1])
        full |= wanted > bounds[k + 1]
        there = within(count, bounds[k + 1])
        left = jnp.where(there[None], left[:, : bounds[k + 1]], jnp.zeros((), table.dtype))
        right = jnp.where(there[None], right[: bounds[k + 1]].conj().T, jnp.zeros((), table.dtype))
        singular = singular[: bounds[k + 1]]
        singular = jnp.where(there & (singular > 0), singular, jnp.ones_like(singular))
        moved = matmul(matrix, right)
        back = left.conj().T
        core = _over(moved, matmul(back, moved), left, singular.astype(table.dtype))
        cores.append(core.reshape(bounds[k], n, -1))
        ranks.append(count)
        rest = matmul(back, matrix)
    cores.append(rest.reshape(bounds[-2], shape[-1], 1))
    n, size = max(shape), max(bounds)
    pad = lambda core: [(0, most - part) for most, part in zip((size, n, size), core.shape, strict=True)]
    stacked = jnp.stack([jnp.pad(core, pad(core)) for core in cores])
    ranks = jnp.stack([*ranks, jnp.int32(1)])
    stacked = jnp.where(core_mask(ranks, shape, size), stacked, jnp.zeros_like(stacked))
    return TT(stacked, ranks, jnp.zeros((), dtype), shape), full


@jax.custom_jvp
def _over(moved: Array, small: Array, left: Array, singular: Array) -> Array:
    """Moved small^-1, which is `left` where small is the diagonal of the singular values."""
    return left


@_over.defjvp
def _over_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    moved, small, left, singular = primals
    quotient = _over(moved, small, left, singular)
    return quotient, _divided(tangents[0] - matmul(quotient, tangents[1]), small, singular)


def _divided(matrix: Array, small: Array, singular: Array) -> Array:
    """Matrix small^-1, differentiable in both to any order."""
    solve = lambda _, right: right / singular[None]
    return jax.lax.custom_linear_solve(lambda x: matmul(x, small), matrix, solve, transpose_solve=solve)
