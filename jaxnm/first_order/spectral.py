"""Spectral radius and transient growth of small iteration matrices."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int32, Num

from jaxnm import arguments
from jaxnm.linalg import eigenvalues, eigh, matmul, safe_norm
from jaxnm.linalg.scaling import exponent_of, power_of_two, times_power_of_two


class TransientGrowth(NamedTuple):
    """The largest 2-norm among the powers of a matrix, and the first power that has it."""

    peak: Float[Array, "*batch"]
    index: Int32[Array, "*batch"]


def spectral_radius(matrix: Num[ArrayLike, "*batch n n"]) -> Float[Array, "*batch"]:
    """Largest modulus of an eigenvalue: the asymptotic rate per iterate of `z -> matrix z`.

    Args:
      matrix: [..., n, n], real or complex, n up to about 16.

    Returns:
      [...], NaN where the matrix is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not square.

    Cost: closed form for real n <= 2 (about 20 flops); else that of `jaxnm.linalg.eigenvalues`.
    Accuracy: eps times the condition of the eigenvalue. At a double root that is sqrt(eps), and nothing better can be
    decided in floating point: a discriminant within rounding of zero counts as zero.
    The units of the states do not count: off-diagonal entries may be far apart, as only their product matters.
    Differentiable where the dominant modulus is simple. At a double root of a real 2 x 2 matrix the gradient is that
    of the complex side, sqrt(det), and finite; where two moduli tie it is that of one of them; at 0 it is a
    subgradient. For n >= 3 the gradient at a double root is finite, but only bounded by 1 / sqrt(eps).

    Example:
      >>> float(spectral_radius(jnp.array([[0.0, -0.25], [1.0, 0.0]])))
      0.5
    """
    (matrix,) = arguments.to_arrays("spectral_radius", matrix=matrix)
    arguments.check_square("spectral_radius", "matrix", matrix)
    return _spectral_radius(matrix)


@jax.jit
def _spectral_radius(matrix: Array) -> Array:
    n = matrix.shape[-1]
    if n == 1:
        return arguments.nan_unless(jnp.abs(matrix[..., 0, 0]), jnp.isfinite(matrix[..., 0, 0]))
    if n > 2 or jnp.iscomplexobj(matrix):
        return jnp.abs(eigenvalues(matrix)[..., -1])
    return _spectral_radius_two(matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1])


def _spectral_radius_two(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Of [[a, b], [c, d]], in units of the states and of the result where squares neither overflow nor vanish."""
    good = jnp.isfinite(a) & jnp.isfinite(b) & jnp.isfinite(c) & jnp.isfinite(d)
    on_diagonal, of_b, of_c = (
        exponent_of(jax.lax.stop_gradient(size))
        for size in (jnp.maximum(jnp.abs(a), jnp.abs(d)), jnp.abs(b), jnp.abs(c))
    )
    # only their product counts: both get one size, or one that is alone that of the diagonal
    of_b, of_c = jnp.where(b == 0, 2 * on_diagonal - of_c, of_b), jnp.where(c == 0, 2 * on_diagonal - of_b, of_c)
    shift = (of_c - of_b) // 2
    b, c = times_power_of_two(b, shift), times_power_of_two(c, -shift)
    size = power_of_two(jnp.maximum(jnp.maximum(jnp.abs(a), jnp.abs(b)), jnp.maximum(jnp.abs(c), jnp.abs(d))))
    a, b, c, d = a / size, b / size, c / size, d / size
    half, mean = (a - d) / 2, (a + d) / 2
    discriminant = half * half + b * c
    determinant = a * d - b * c
    noise = 4 * jnp.finfo(a.dtype).eps * (half * half + jnp.abs(b * c))
    is_pair = (discriminant <= noise) & (determinant > 0)
    # each root is taken of 1 where it is not used, so that its slope there is finite
    pair = jnp.sqrt(jnp.where(is_pair, determinant, jnp.ones_like(determinant)))
    has_root = ~is_pair & (discriminant > 0)
    root = jnp.where(has_root, jnp.sqrt(jnp.where(has_root, discriminant, jnp.ones_like(discriminant))), 0)
    return arguments.nan_unless(size * jnp.where(is_pair, pair, jnp.abs(mean) + root), good)


def transient_growth(matrix: Num[ArrayLike, "*batch n n"], num_steps: int) -> TransientGrowth:
    """Largest 2-norm of the powers k = 0..num_steps: how far an iteration can overshoot before its rate shows.

    Args:
      matrix: [..., n, n], real or complex.
      num_steps: largest power, a Python int >= 0 (static).

    Returns:
      `TransientGrowth(peak [...], index [...] int32)`: the largest norm, at least 1 since power 0 counts, and the
      first power that has it. inf where the powers overflow; peak NaN and index 0 where the matrix is not finite.

    Raises:
      ValueError: not square, or a negative count. TypeError: an integer dtype, or a count that is not a Python int.

    Cost: num_steps products and norms, about 20 flops each for real n = 2, an `eigh` each otherwise.
    Differentiable where the largest singular value is simple and the maximal power unique.

    Example:
      >>> growth = transient_growth(jnp.array([[0.5, 2.0], [0.0, 0.5]]), 10)
      >>> float(growth.peak), int(growth.index)
      (2.11803388..., 1)
    """
    (matrix,) = arguments.to_arrays("transient_growth", matrix=matrix)
    arguments.check_square("transient_growth", "matrix", matrix)
    arguments.check_count("transient_growth", "num_steps", num_steps)
    return _transient_growth(matrix, int(num_steps))


@partial(jax.jit, static_argnames="num_steps")
def _transient_growth(matrix: Array, num_steps: int) -> TransientGrowth:
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    batch = matrix.shape[:-2]
    real = jnp.finfo(matrix.dtype).dtype

    def step(carry: tuple[Array, Array, Array], k: Array) -> tuple[tuple[Array, Array, Array], None]:
        power, peak, index = carry
        power = matmul(power, matrix)
        norm = spectral_norm(power)
        larger = norm > peak
        return (power, jnp.where(larger, norm, peak), jnp.where(larger, k, index)), None

    start = (identity, jnp.ones(batch, real), jnp.zeros(batch, jnp.int32))
    (_, peak, index), _ = jax.lax.scan(step, start, jnp.arange(1, num_steps + 1, dtype=jnp.int32))
    finite = jnp.all(jnp.isfinite(matrix), (-2, -1))
    return TransientGrowth(arguments.nan_unless(peak, finite), jnp.where(finite, index, 0))


def spectral_norm(matrix: Array) -> Array:
    """2-norm of each member; inf where a finite iteration overflowed."""
    finite = jnp.all(jnp.isfinite(matrix), (-2, -1))
    matrix = jnp.where(finite[..., None, None], matrix, jnp.zeros_like(matrix))
    if matrix.shape[-1] == 1:
        norm = jnp.abs(matrix[..., 0, 0])
    elif matrix.shape[-1] == 2 and not jnp.iscomplexobj(matrix):
        a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
        # the sum and the difference of the singular values, each without cancellation
        norm = (safe_norm(jnp.stack([a + d, b - c]), 0) + safe_norm(jnp.stack([a - d, b + c]), 0)) / 2
    else:
        size = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix), (-2, -1)))
        size = jnp.where(size > 0, size, jnp.ones_like(size))
        scaled = matrix / jnp.expand_dims(size, (-2, -1)).astype(matrix.dtype)
        largest = eigh(matmul(scaled.conj().mT, scaled)).values[..., -1]
        positive = largest > 0
        norm = size * jnp.where(positive, jnp.sqrt(jnp.where(positive, largest, jnp.ones_like(largest))), 0)
    return jnp.where(finite, norm, jnp.inf)
