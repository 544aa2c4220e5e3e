"""A symmetric multigrid cycle for five- and seven-point operators with any coefficients, the preconditioner of masks.

A level holds the couplings of neighbours along each axis and the diagonal. Blocks of two cells an axis become one cell
of the next level, on which corrections are constant: the coarse operator is half of P^T L P (the finite volumes of
twice the size; P^T L P itself is twice too stiff), so it has the same few neighbours, and where nothing couples nothing
will: solids, slits and walls need no special care.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_SMALLEST = 4
_SWEEPS = 2
_SWEEPS_AT_THE_END = 8


class Level(NamedTuple):
    """One operator: (L x)_i = (stiffness_i + drag_i) x_i - sum of coupling times neighbour."""

    couplings: tuple[Array, ...]
    """An axis: between i and i + 1, the last entry between the last and the first; zero where nothing couples."""
    stiffness: Array
    """The diagonal without drag; zero where there is no unknown."""
    drag: Array
    """Terms of order zero."""


def apply(level: Level, x: Array) -> Array:
    """L x."""
    total = (level.stiffness + level.drag) * x
    for axis, coupling in enumerate(level.couplings):
        total = total - coupling * jnp.roll(x, -1, axis) - jnp.roll(coupling * x, 1, axis)
    return total


def hierarchy(finest: Level) -> list[Level]:
    """The operator and all coarser ones, until all axes are short; an axis of one cell stays one."""
    levels = [finest]
    while max(levels[-1].stiffness.shape) > _SMALLEST:
        levels.append(_coarser(levels[-1]))
    return levels


def _coarser(level: Level) -> Level:
    dim = level.stiffness.ndim
    stiffness, drag, couplings = level.stiffness, level.drag, list(level.couplings)
    inside = jnp.zeros_like(stiffness)
    for axis in range(dim):
        # the coupling from the first to the second cell of a block lies inside it
        positions = np.arange(stiffness.shape[axis])
        first = (positions % 2 == 0) & (positions < positions.size - 1)
        inside = inside + 2 * couplings[axis] * _line(first, axis, stiffness)
    stiffness = _block_sum((stiffness - inside) / 2)
    crossing = []
    for axis in range(dim):
        n = couplings[axis].shape[axis]
        coupling = couplings[axis]
        if n % 2:  # a last block of one cell: what leaves it leaves the block
            last = jax.lax.slice_in_dim(coupling, n - 1, n, axis=axis)
            coupling = jnp.concatenate(
                [jax.lax.slice_in_dim(coupling, 0, n - 1, axis=axis), jnp.zeros_like(last), last], axis
            )
        odd = np.arange(coupling.shape[axis]) % 2 == 1
        crossing.append(_block_sum(coupling * _line(odd, axis, coupling) / 2))
    return Level(tuple(crossing), stiffness, _block_sum(drag))


def _line(values: np.ndarray, axis: int, like: Array) -> Array:
    return jnp.asarray(values, like.dtype).reshape([-1 if a == axis else 1 for a in range(like.ndim)])


def _block_sum(x: Array) -> Array:
    """Sums over blocks of two an axis; a last one may be smaller."""
    padded = jnp.pad(x, [(0, n % 2) for n in x.shape])
    pairs = padded.reshape([size for n in padded.shape for size in (n // 2, 2)])
    return jnp.sum(pairs, tuple(range(1, 2 * x.ndim, 2)))


def _repeat(x: Array, shape: tuple[int, ...]) -> Array:
    for axis, n in enumerate(shape):
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, n, axis=axis)
    return x


def cycle(levels: list[Level], right: Array) -> Array:
    """One V-cycle from zero: a fixed symmetric positive (semi)definite approximation of the inverse."""
    level = levels[0]
    if len(levels) == 1:
        return _relax(level, jnp.zeros_like(right), right, (0, 1, 1, 0) * _SWEEPS_AT_THE_END)
    x = _relax(level, jnp.zeros_like(right), right, (0, 1) * _SWEEPS)
    residual = right - apply(level, x)
    x = x + _prolong(cycle(levels[1:], _restrict(residual, level)), level)
    return _relax(level, x, right, (1, 0) * _SWEEPS)


def _prolong(coarse: Array, level: Level) -> Array:
    return _repeat(coarse, level.stiffness.shape) * (level.stiffness > 0).astype(coarse.dtype)


def _restrict(fine: Array, level: Level) -> Array:
    return _block_sum(fine * (level.stiffness > 0).astype(fine.dtype))


def _relax(level: Level, x: Array, right: Array, colours: tuple[int, ...]) -> Array:
    """Gauss-Seidel, all cells of one colour of the chequerboard at once."""
    diagonal = level.stiffness + level.drag
    exists = diagonal > 0
    inverse = jnp.where(exists, 1 / jnp.where(exists, diagonal, jnp.ones_like(diagonal)), jnp.zeros_like(diagonal))
    parity = np.indices(x.shape, sparse=True)
    parity = np.asarray(sum(parity[1:], parity[0]) % 2, np.int32)

    def sweep(x: Array, colour: Array) -> tuple[Array, None]:
        step = (right - apply(level, x)) * inverse
        return x + jnp.where(parity == colour, step, jnp.zeros_like(step)), None

    return jax.lax.scan(sweep, x, jnp.asarray(colours, jnp.int32))[0]
