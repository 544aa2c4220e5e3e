"""The train through the pivots of a cross interpolation, which is differentiated at fixed pivots."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.linalg import matmul
from jaxnm.tensor_train import cross_sweeps as sweeps
from jaxnm.tensor_train.cross_sweeps import Indices, Oriented
from jaxnm.tensor_train.trains import TT, core_mask, within


def through(
    f: Callable[..., Any], shape: tuple[int, ...], indices: Indices, unit: Array, args: tuple[Any, ...]
) -> tuple[TT, Array]:
    """(the train through pivots, whether a value was not finite); differentiable in args.

    Its entries are those of f over the unit.
    """
    function, (pivots, ranks, turned) = Oriented(f, shape, args, unit), indices
    d, size, n = len(shape), pivots.shape[1], max(shape)
    places = jnp.arange(d, dtype=jnp.int32)

    @jax.checkpoint
    def core(xs: Any) -> tuple[Array, Array]:
        site, left, rank, right, right_rank, extent = xs
        rows, valid_rows = sweeps.with_mode(left, rank, site, extent, n)
        last = site == d - 1
        there = within(right_rank, size)
        # the pivots of the bond stand below
        rows = jnp.concatenate([rows, right])
        valid = jnp.concatenate([valid_rows, there & ~last])[:, None] & there[None]
        values = function.between(places <= site, rows, right, turned)
        finite = jnp.isfinite(values)
        factors = _eliminated(jax.lax.stop_gradient(values), valid & finite, ~last)
        # what an interpolation through the other entries gives there
        values = jnp.where(finite, values, matmul(factors.lower, factors.upper))
        values = jnp.where(valid, values, jnp.zeros_like(values))
        quotient = _divided(values[:-size], values[-size:], factors)
        core = jnp.where(last, values[:-size], quotient)
        return core.reshape(size, n, size), jnp.any(valid & ~finite)

    extents = function.extents(turned)
    cores, broken = jax.lax.map(core, (places, pivots[:-1], ranks[:-1], pivots[1:], ranks[1:], extents))
    cores = jnp.where(turned, cores[::-1].transpose(0, 3, 2, 1), cores)
    ranks = jnp.where(turned, ranks[::-1], ranks)
    cores = jnp.where(core_mask(ranks, shape, size), cores, jnp.zeros_like(cores))
    return TT(cores, ranks, jnp.zeros((), jnp.finfo(cores.dtype).dtype), shape), jnp.any(broken)


class _Factors(NamedTuple):
    """L U of a matrix whose last R rows are the pivots, in their order."""

    lower: Array
    """[m, R]"""
    upper: Array
    """[R, R]"""


def _eliminated(matrix: Array, allowed: Array, usable: Array) -> _Factors:
    """Where the pivots are not zero and usable; zero columns elsewhere."""
    m, size = matrix.shape
    above, row, slot = m - size, jnp.arange(m, dtype=jnp.int32)[:, None], jnp.arange(size, dtype=jnp.int32)

    def body(k: Array, carry: Any) -> Any:
        rest, (lower, upper) = carry
        pivot = rest[above + k, k]
        good = (pivot != 0) & usable
        across = jnp.where(good, rest[above + k], jnp.zeros_like(pivot))
        down = rest[:, k] / jnp.where(good, pivot, jnp.ones_like(pivot))
        down = jnp.where(good, down, jnp.zeros_like(down))
        down, own = down[:, None], slot == k
        keep = allowed & (row != above + k) & ~own[None]
        rest = jnp.where(keep, rest - down * across[None], jnp.zeros_like(rest))
        lower = jnp.where(own[None], down, lower)
        return rest, _Factors(lower, jnp.where(own[:, None], across[None], upper))

    rest = jnp.where(allowed, matrix, jnp.zeros_like(matrix))
    start = (rest, _Factors(jnp.zeros_like(rest), jnp.zeros((size, size), rest.dtype)))
    return jax.lax.fori_loop(0, size, body, start)[1]


def _divided(matrix: Array, pivots: Array, factors: _Factors) -> Array:
    """Matrix pivots^-1, differentiable in both to any order; zero columns where there are no pivots."""
    upper = factors.upper
    size = upper.shape[0]
    there = jnp.diagonal(upper) != 0
    one = jnp.eye(size, dtype=upper.dtype)
    corner = jnp.where(there[:, None], factors.lower[-size:], one)
    upper = jnp.where(there[:, None], upper, one)
    by_lower = partial(jax.lax.linalg.triangular_solve, corner, left_side=False, lower=True, unit_diagonal=True)
    by_upper = partial(jax.lax.linalg.triangular_solve, upper, left_side=False, lower=False)
    known = lambda matrix: jnp.where(there[None], matrix, jnp.zeros_like(matrix))
    return jax.lax.custom_linear_solve(
        lambda x: matmul(x, pivots),
        known(matrix),
        lambda _, right: by_lower(by_upper(known(right))),
        transpose_solve=lambda _, right: known(by_upper(by_lower(known(right), transpose_a=True), transpose_a=True)),
    )
