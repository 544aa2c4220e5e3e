"""Powers of two near a number: dividing by one is exact, so what is scaled by them answers alike in all units."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int32


def power_of_two(size: Float[Array, "..."]) -> Float[Array, "..."]:
    """The power of two next above `size`, elementwise and without a derivative; 1 where it is zero or not finite.

    It is kept where it and its inverse are normal numbers.

    Args:
      size: not negative.
    """
    size = jax.lax.stop_gradient(size)
    limits = jnp.finfo(size.dtype)
    exponent = jnp.clip(exponent_of(size) + 1, limits.minexp + 1, limits.maxexp - 2)
    return jnp.where(_usable(size), _normal_power(exponent, size.dtype), jnp.ones_like(size))


def exponent_of(size: Float[Array, "..."]) -> Int32[Array, "..."]:
    """K with 2^k <= size < 2^(k + 1), elementwise; 0 where it is zero or not finite, the least one of a subnormal.

    Args:
      size: not negative.
    """
    integer, digits, bias = _layout(size.dtype)
    one_for_none = jnp.where(_usable(size), size, jnp.ones_like(size))
    return (jax.lax.bitcast_convert_type(one_for_none, integer) >> digits).astype(jnp.int32) - bias


def times_power_of_two(x: Inexact[Array, "..."], exponent: Int32[Array, "..."]) -> Inexact[Array, "..."]:
    """X 2^exponent, exactly where that is a normal number, as the power itself need not be.

    Args:
      x: real or complex.
      exponent: of the shape of x, or a scalar.
    """
    return _times(x, exponent, 3)


def rescaled(x: Inexact[Array, "..."]) -> tuple[Inexact[Array, "..."], Int32[Array, ""]]:
    """(x over a power of two, that power's exponent), the largest entry between one and two; zero stays as it is."""
    exponent = exponent_of(jax.lax.stop_gradient(jnp.max(jnp.abs(x))))
    return _times(x, -exponent, 2), exponent


def _times(x: Array, exponent: Array, factors: int) -> Array:
    """By so many factors, each a normal number, and all above one or all below: none overflows before the result."""
    dtype = jnp.finfo(x.dtype).dtype
    _, _, bias = _layout(dtype)
    for _ in range(factors):
        part = jnp.clip(exponent, 1 - bias, bias)
        x, exponent = x * _normal_power(part, dtype).astype(x.dtype), exponent - part
    return x


def _normal_power(exponent: Array, dtype: Any) -> Array:
    """2^exponent, which is a normal number."""
    integer, digits, bias = _layout(dtype)
    return jax.lax.bitcast_convert_type((exponent + bias).astype(integer) << digits, dtype)


def _usable(size: Array) -> Array:
    return (size > 0) & jnp.isfinite(size)


def _layout(dtype: Any) -> tuple[Any, Any, int]:
    """(the integers of its size, the digits behind the point, what is added to exponents) of a floating dtype."""
    info = jnp.finfo(dtype)
    integer = np.int32 if info.bits == 32 else np.int64
    return integer, integer(info.nmant), info.maxexp - 1


@jax.custom_jvp
def quotient(numerator: Array, divisor: Array) -> Array:
    """Real or complex over real, with derivatives that do not square the divisor: they stay in range where they can."""
    return _by_parts(lambda part: part / divisor, numerator)


@quotient.defjvp
def _quotient_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    numerator, divisor = primals
    ratio = quotient(numerator, divisor)
    return ratio, quotient(tangents[0] - _by_parts(lambda part: part * tangents[1], ratio), divisor)


def _by_parts(function: Callable[[Array], Array], z: Array) -> Array:
    return jax.lax.complex(function(z.real), function(z.imag)) if jnp.iscomplexobj(z) else function(z)
