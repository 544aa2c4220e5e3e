"""Binary digits of indices, the most significant one first, and the points that they stand for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Int32

from jaxnm import arguments
from jaxnm.tensor_train.trains import TT, check_train

_MOST_BITS = 1000


def encode(indices: Int[ArrayLike, "..."], bits: int) -> Int32[Array, "... q"]:
    """The binary digits of indices, the most significant one first.

    Args:
      indices: from 0 to 2^bits - 1.
      bits: q (static).

    Returns:
      [..., q], zeros and ones; -1 throughout for an index that is out of range.

    Raises:
      ValueError: bits < 1. TypeError: indices that are not integers.

    Cost: q operations an index. Not differentiable.

    Example:
      >>> encode(6, 4).tolist()
      [0, 1, 1, 0]
    """
    check_bits("encode", bits)
    return _encode(_integers("encode", "indices", indices), bits)


@partial(jax.jit, static_argnums=1)
def _encode(indices: Array, bits: int) -> Array:
    width = 8 * indices.dtype.itemsize - 1
    powers = np.minimum(np.arange(bits - 1, -1, -1), width)
    apart = indices[..., None]
    digits = jnp.right_shift(apart, _aligned(jnp.asarray(powers, indices.dtype), apart)) & jnp.ones((), indices.dtype)
    inside = indices >= 0
    if bits < width:
        inside &= indices < jnp.asarray(1 << bits, indices.dtype)
    return jnp.where(inside[..., None], digits.astype(jnp.int32), jnp.int32(-1))


def decode(digits: Int[ArrayLike, "... q"]) -> Int32[Array, "..."]:
    """The indices that have given binary digits.

    Args:
      digits: the most significant one first, 31 at most.

    Returns:
      [...]; -1 where a digit is neither 0 nor 1.

    Raises:
      ValueError: no digit, or more than 31, for which `points` gives the positions. TypeError: no integers.

    Cost: q operations an index. Not differentiable.

    Example:
      >>> decode(jnp.array([0, 1, 1, 0])).tolist()
      6
    """
    digits = _integers("decode", "digits", digits)
    condition = lambda shape: len(shape) >= 1 and 1 <= shape[-1] <= 31
    arguments.check_shape("decode", "digits", digits, "[..., q] with q from 1 to 31", condition, "see points")
    return _decode(digits)


@jax.jit
def _decode(digits: Array) -> Array:
    weights = jnp.asarray(2 ** np.arange(digits.shape[-1] - 1, -1, -1), jnp.int32)
    binary = (digits == 0) | (digits == 1)
    values = jnp.sum(jnp.where(binary, digits, 0).astype(jnp.int32) * _aligned(weights, digits), -1, dtype=jnp.int32)
    return jnp.where(jnp.all(binary, -1), values, jnp.int32(-1))


def points(
    digits: Int[ArrayLike, "... q"],
    *,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> Float[Array, "..."]:
    """The positions start + spacing i of the points that have given binary digits.

    Args:
      digits: the most significant one first, as many as there are.
      start: position of the first point.
      spacing: between neighbours; 2^-q by default, so that the points are in [start, start + 1).

    Returns:
      [...], of the dtype of start and spacing; NaN where a digit is neither 0 nor 1.

    Raises:
      ValueError: no digit. TypeError: digits that are not integers.

    Cost: 2 q operations a point. Differentiable in start and spacing.

    Example:
      >>> points(jnp.array([0, 1, 1, 0])).tolist()
      0.375
    """
    name = "points"
    digits = _integers(name, "digits", digits)
    arguments.check_shape(name, "digits", digits, "[..., q], q >= 1", lambda shape: len(shape) >= 1 and shape[-1] >= 1)
    return _points(digits, *grid(name, digits.shape[-1], start, spacing))


@jax.jit
def _points(digits: Array, first: Array, offsets: Array) -> Array:
    binary = jnp.all((digits == 0) | (digits == 1), -1)
    shifted = first + jnp.sum(digits.astype(offsets.dtype) * _aligned(offsets, digits), -1)
    return jnp.where(binary, shifted, jnp.full_like(shifted, jnp.nan))


def reverse_bits(tt: TT) -> TT:
    """The same train with its modes in the opposite order; entry (i_1, ..., i_q) becomes entry (i_q, ..., i_1).

    Args:
      tt: of any modes.

    Returns:
      `TT` of the same ranks, in the opposite order.

    Raises:
      TypeError: no train.

    Cost: a copy. Differentiable.

    Example:
      >>> from jaxnm.tensor_train.quantics import delta
      >>> reverse_bits(delta(6, 4)).cores[:, 0, :, 0].argmax(1).tolist()
      [0, 1, 1, 0]
    """
    check_train("reverse_bits", tt=tt)
    return TT(jnp.swapaxes(tt.cores[::-1], 1, 3), tt.ranks[::-1], tt.log_scale, tt.shape[::-1])


# ------------------------------------------------------------------------------------------------ for the other files


def check_bits(function: str, bits: Any) -> None:
    """Refuse what is no number of bits."""
    arguments.check_count(function, "bits", bits, minimum=1)
    if bits > _MOST_BITS:
        arguments.refuse(function, "bits", repr(bits), f"at most {_MOST_BITS}", "a spacing of 2^-bits must be a number")


def grid(function: str, bits: int, start: Any, spacing: Any, **others: Any) -> tuple[Array, Array]:
    """(start, what every bit adds [q]), real and of the dtype of all arguments."""
    check_bits(function, bits)
    step = 1.0 if spacing is None else spacing
    for argument, value in (("start", start), ("spacing", step)):
        check_real(function, argument, value)
    arrays = arguments.to_arrays(function, start=start, spacing=step, **others)
    for name, array in zip(("start", "spacing", *others), arrays, strict=True):
        arguments.check_shape(function, name, array, "a scalar", lambda shape: shape == (), "use jax.vmap for several")
    first, gap = (array.real for array in arrays[:2])
    powers = np.ldexp(1.0, np.arange(bits - 1, -1, -1) - (bits if spacing is None else 0))
    return first, gap * arguments.constant(powers, gap.dtype)


def check_real(function: str, argument: str, value: Any) -> None:
    """Refuse a complex number or array, before it makes all arguments complex."""
    arguments.check_real(function, argument, *arguments.to_arrays(function, **{argument: value}))


def _integers(function: str, argument: str, values: Any) -> Array:
    array = arguments.to_integers(function, argument, values, "see `points`")
    return array.astype(jnp.int32) if array.dtype.itemsize < 4 else array


def _aligned(values: Array, array: Array) -> Array:
    """Values [q] as [1, ..., 1, q], for the last axis of an array."""
    return values.reshape((1,) * (array.ndim - 1) + values.shape)


def digits_of(function: str, argument: str, index: Any, bits: int) -> tuple[Array, Array, Array]:
    """(digits [q], whether the index is negative, whether it is 2^q or more); the digits are -1 in both cases."""
    check_bits(function, bits)
    if isinstance(index, int) and not isinstance(index, bool):
        inside = 0 <= index < 1 << bits
        digits = [(index >> place) & 1 if inside else -1 for place in range(bits - 1, -1, -1)]
        return (
            arguments.constant(np.asarray(digits), jnp.int32),
            arguments.constant(index < 0, bool),
            arguments.constant(index >= 1 << bits, bool),
        )
    array = _integers(function, argument, index)
    arguments.check_shape(function, argument, array, "a scalar", lambda shape: shape == (), "use jax.vmap for several")
    return _digits_of(array, bits)


@partial(jax.jit, static_argnums=1)
def _digits_of(index: Array, bits: int) -> tuple[Array, Array, Array]:
    digits, below = _encode(index, bits), index < 0
    return digits, below, ~below & (digits[0] < 0)
