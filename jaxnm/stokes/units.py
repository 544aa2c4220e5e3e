"""Units in which cells, viscosity and data are of size one, so that no scale of theirs over- or underflows.

Units of length, viscosity and velocity are powers of two, 2^L, 2^N and 2^U, so that a change of units costs no
accuracy. In them a force has the unit 2^(N + U - 2 L), a pressure 2^(N + U - L), a divergence 2^(U - L) and an
inverse permeability 2^(-2 L). The exponents are integers and carry no derivative: a derivative by what they were
taken from is the one in the new units, times a power of two.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.stokes.grid import Grid
from jaxnm.stokes.operators import StokesOperators

_NOTHING = -(10**6)  # the exponent of zero


class Units(NamedTuple):
    """Exponents of two, int32 scalars."""

    length: Array
    viscosity: Array
    velocity: Array

    @property
    def force(self) -> Array:
        """Per volume and density."""
        return self.viscosity + self.velocity - 2 * self.length

    @property
    def pressure(self) -> Array:
        """That of the force times that of length."""
        return self.viscosity + self.velocity - self.length

    @property
    def divergence(self) -> Array:
        """That of velocity over that of length."""
        return self.velocity - self.length


def exponent_of(tree: Any) -> Array:
    """The e with 2^e <= |x| < 2^(e + 1) for the largest entry, int32; far below all others for zeros or no entry."""
    leaves = jax.lax.stop_gradient(jax.tree.leaves(tree))
    if not leaves:
        return jnp.int32(_NOTHING)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    integer, mantissa, bias = _layout(largest.dtype)
    biased = jax.lax.bitcast_convert_type(largest, integer) >> mantissa
    # what is below the normal numbers counts as zero
    return jnp.where(biased > 0, biased.astype(jnp.int32) - bias, jnp.int32(_NOTHING))


def known_or_zero(exponent: Array) -> Array:
    """The exponent, and 0 for that of zeros."""
    return jnp.where(exponent > _NOTHING // 2, exponent, jnp.int32(0))


def powers(dtype: Any, *exponents: Array) -> list[Array]:
    """For each exponent two factors whose product is the power of two; that itself may lie outside the dtype.

    A loop over the two keeps a compiler from computing them again at each place of use, which takes it minutes.
    """
    integer, mantissa, bias = _layout(dtype)
    whole = jnp.stack(exponents)
    half = whole >> 1

    def power(exponent: Array) -> Array:
        biased = jnp.clip(exponent, 1 - bias, bias) + bias  # exponents beyond the normal numbers are cut off
        return jax.lax.bitcast_convert_type(biased.astype(integer) << mantissa, jnp.dtype(dtype))

    factors = jax.lax.stop_gradient(jax.lax.map(power, jnp.stack([half, whole - half])))
    return [factors[:, i] for i in range(len(exponents))]


def times(tree: Any, factors: Array) -> Any:
    """The tree times a power of two, exactly unless the result over- or underflows."""
    return jax.tree.map(lambda leaf: leaf * factors[0] * factors[1], tree)


def _layout(dtype: Any) -> tuple[Any, int, int]:
    """(integer dtype of the same size, bits of the mantissa, bias of the exponent).

    Powers of two are read and written as bits, which is exact on every device and takes few operations.
    """
    info = jnp.finfo(dtype)
    return jnp.dtype(f"int{info.bits}"), info.nmant, info.maxexp - 1


def length_of(operators: StokesOperators, dtype: Any) -> Array:
    """The exponent of the unit of length: in it the smallest side of a cell lies in [1, 2)."""
    return known_or_zero(exponent_of(jnp.min(jnp.abs(_spacing(operators, dtype)))))


def on_cells(operators: StokesOperators, into: Array, drag_into: Array) -> StokesOperators:
    """The operators in another unit of length, from its inverse and its square as two factors each."""
    spacing, shape = times(_spacing(operators, into.dtype), into), operators.grid.shape
    corners = tuple(jnp.zeros((), into.dtype) for _ in shape), tuple(n * spacing[axis] for axis, n in enumerate(shape))
    drag = operators.inverse_permeability
    if drag is not None:
        drag = times(jnp.asarray(drag).astype(into.dtype), drag_into)
    return dataclasses.replace(operators, grid=Grid(shape, *corners), inverse_permeability=drag)


def in_unit_cells(operators: StokesOperators, dtype: Any) -> StokesOperators:
    """The operators on cells whose smallest side lies in [1, 2), in a given dtype."""
    length = length_of(operators, dtype)
    return on_cells(operators, *powers(dtype, -length, 2 * length))


def _spacing(operators: StokesOperators, dtype: Any) -> Array:
    return jnp.stack([jnp.asarray(h).astype(dtype) for h in operators.grid.spacing])
