"""Powers of two: they keep products of hundreds of cores within the range of a dtype, and cost no rounding.

A kernel that multiplies cores takes each of them in units of its largest entry (`unit_cores`), and what it carries from
site to site likewise (`rescaled`). The exponents are added as integers, and go into log_scale at the end. A log_scale
that is an integer times log 2, up to its rounding, is read as exactly that (`split_scale`), so that the powers of two
which are put into it come out again as they were.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int32

from jaxnm.linalg import einsum
from jaxnm.linalg.scaling import rescaled, times_power_of_two

_FURTHEST = 2**30
"""No exponent is larger, so that sums of two are int32."""


def unit_cores(cores: Inexact[Array, "d *core"]) -> tuple[Array, Int32[Array, "d"]]:
    """Every core over a power of two near its largest entry, and the exponents."""
    return jax.vmap(rescaled)(cores)


def balanced_cores(cores: Inexact[Array, "d R n R"]) -> tuple[Array, Int32[Array, ""], Array]:
    """Cores over powers of two, the sum of the exponents, and whether the train is zero.

    The largest row of the product of the first k cores is near one then, for every k, so that two trains whose entries
    are of one size are so at every bond, and not only after the last core.
    """

    def step(row: Array, core: Array) -> tuple[Array, Array]:
        # by moduli, so that nothing cancels
        row, exponent = rescaled(jnp.max(einsum("r,ris->is", row, jnp.abs(core)), 0))
        return row, exponent

    unit, first = unit_cores(cores)
    dtype = jnp.finfo(cores.dtype).dtype
    start = jnp.zeros(cores.shape[-1], dtype).at[0].set(1)
    row, more = jax.lax.scan(step, start, jax.lax.stop_gradient(unit))
    return jax.vmap(times_power_of_two)(unit, -more), jnp.sum(first + more, dtype=jnp.int32), ~jnp.any(row != 0)


def spread(exponent: Int32[Array, ""], d: int) -> Int32[Array, "d"]:
    """As d integers of nearly one size that sum to it."""
    share = exponent // d
    rest = exponent - d * share
    # in floats, as a product of integers might be too large; differences of integers sum to the last one in any case
    sums = jnp.floor(jnp.arange(d + 1, dtype=jnp.float32) * (rest.astype(jnp.float32) / d)).astype(jnp.int32)
    return share + jnp.diff(sums.at[d].set(rest))


# ------------------------------------------------------------------------------------------------ logarithms of factors


def split_scale(log_scale: Float[Array, "..."]) -> tuple[Int32[Array, "..."], Float[Array, "..."]]:
    """(k, r) with log_scale = k log 2 + r and |r| < log 2, the derivative being that of r; r = 0 for mere rounding."""
    log_two = jnp.asarray(math.log(2), log_scale.dtype)
    fixed = jax.lax.stop_gradient(log_scale)
    binary = jnp.clip(jnp.round(fixed / log_two), -_FURTHEST, _FURTHEST)
    rest = fixed - binary * log_two
    rest = jnp.where(jnp.abs(rest) <= jnp.finfo(fixed.dtype).eps * jnp.abs(fixed), jnp.zeros_like(rest), rest)
    return jnp.nan_to_num(binary).astype(jnp.int32), rest + (log_scale - fixed)


def joined_scale(exponent: Int32[Array, "..."], rest: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logarithm k log 2 + r."""
    return exponent.astype(rest.dtype) * jnp.asarray(math.log(2), rest.dtype) + rest


def shifted_scale(log_scale: Float[Array, ""], exponent: Int32[Array, ""]) -> Float[Array, ""]:
    """The logarithm of a factor that is 2^exponent times as large."""
    binary, rest = split_scale(log_scale)
    return joined_scale(binary + exponent, rest)


def summed_scales(first: Float[Array, ""], second: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of the product of two factors."""
    (binary, rest), (more, other) = split_scale(first), split_scale(second)
    return joined_scale(binary + more, rest + other)


def converted_scale(log_scale: Float[Array, ""], dtype: Any) -> Float[Array, ""]:
    """In another dtype, powers of two staying what they are."""
    real = jnp.finfo(dtype).dtype
    if log_scale.dtype == real:
        return log_scale
    binary, rest = split_scale(log_scale)
    return joined_scale(binary, rest.astype(real))


def scaled_back(value: Array, exponent: Array, log_scale: Array) -> Array:
    """The number value 2^exponent e^log_scale, without overflow on the way."""
    binary, rest = split_scale(log_scale)
    return times_power_of_two(value * jnp.exp(rest).astype(value.dtype), exponent + binary)
