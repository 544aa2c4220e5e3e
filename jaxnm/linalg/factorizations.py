"""Guarded dense factorizations, precision-explicit products, and a norm with a gradient at zero.

LAPACK's `svd` does not return on some small matrices that hold a single `inf`, and one such member hangs a whole
batch. Every factorization here looks at its input first: a matrix that is not finite is replaced by the identity
before LAPACK sees it, and the result (and its derivative) is NaN for that member and for no other.

The default float32 product is TF32 on recent GPUs and bfloat16 on TPUs; `matmul` and `einsum` ask for full precision.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Inexact, Num

from jaxnm import arguments
from jaxnm.linalg.scaling import power_of_two, quotient
from jaxnm.linalg.spectral_derivatives import hermitian_eigen, singular


class SVD(NamedTuple):
    """`matrix = left * singular_values @ right`; `right` is the conjugate transpose of the right vectors."""

    left: Inexact[Array, "*batch m k"]
    singular_values: Inexact[Array, "*batch k"]
    right: Inexact[Array, "*batch k n"]


class QR(NamedTuple):
    """`matrix = orthogonal @ triangular`."""

    orthogonal: Inexact[Array, "*batch m k"]
    triangular: Inexact[Array, "*batch k n"]


class Eigh(NamedTuple):
    """`matrix @ vectors = vectors * values`, values ascending."""

    values: Inexact[Array, "*batch n"]
    vectors: Inexact[Array, "*batch n n"]


def matmul(
    a: Inexact[ArrayLike, "..."],
    b: Inexact[ArrayLike, "..."],
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Inexact[Array, "..."]:
    """Matrix product as `jnp.matmul`, in full precision on every device unless `precision` relaxes it.

    Example:
      >>> float(matmul(jnp.ones(3), jnp.ones(3)))
      3.0
    """
    return jnp.matmul(a, b, precision=precision)


def einsum(
    subscripts: str,
    *operands: Inexact[ArrayLike, "..."],
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Inexact[Array, "..."]:
    """Contraction as `jnp.einsum`, in full precision on every device unless `precision` relaxes it.

    Example:
      >>> float(einsum("i,i->", jnp.ones(3), jnp.ones(3)))
      3.0
    """
    return jnp.einsum(subscripts, *operands, precision=precision)


@jax.custom_jvp
def _identity_if_not_finite(matrix: Array) -> Array:
    """The matrix where all of it is finite, else an identity; the derivative of the latter is NaN."""
    return jnp.where(_member_finite(matrix)[..., None, None], matrix, jnp.eye(*matrix.shape[-2:], dtype=matrix.dtype))


@_identity_if_not_finite.defjvp
def _identity_if_not_finite_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    return _identity_if_not_finite(matrix), arguments.nan_unless(tangent, _member_finite(matrix), 2)


def _member_finite(matrix: Array) -> Bool[Array, "..."]:
    return jnp.all(jnp.isfinite(matrix), axis=(-2, -1))


def _checked(function: str, matrix: ArrayLike, *, square: bool = False) -> Array:
    (matrix,) = arguments.to_arrays(function, matrix=matrix)
    if square:
        arguments.check_square(function, "matrix", matrix)
    else:
        arguments.check_shape(function, "matrix", matrix, "[..., m, n]", lambda shape: len(shape) >= 2)
    return matrix


def svd(matrix: Num[ArrayLike, "*batch m n"]) -> SVD:
    """Thin singular value decomposition; NaN for a member that is not finite, never a hang.

    Args:
      matrix: [..., m, n], real or complex.

    Returns:
      `SVD(left [..., m, k], singular_values [..., k] descending, right [..., k, n])`, k = min(m, n).

    Cost: O(m n k) a member. Entries may be of any size. Differentiable where the singular values are distinct and, for
    the vectors, positive. The values alone also where they repeat, and smooth symmetric functions of them twice: there
    the second derivative is that of a matrix within k sqrt(eps) |matrix|, so right to about half the digits.

    Example:
      >>> svd(jnp.diag(jnp.array([jnp.inf, 1.0, 1.0]))).singular_values
      Array([nan, nan, nan], dtype=float32)
    """
    return _svd(_checked("svd", matrix))


@jax.jit
def _svd(matrix: Array) -> SVD:
    good = _member_finite(matrix)
    left, values, right = singular(_identity_if_not_finite(matrix))
    right = right.conj().swapaxes(-1, -2)
    return SVD(
        arguments.nan_unless(left, good, 2), arguments.nan_unless(values, good, 1), arguments.nan_unless(right, good, 2)
    )


def qr(matrix: Num[ArrayLike, "*batch m n"]) -> QR:
    """Thin QR factorization; NaN for a member that is not finite.

    Args:
      matrix: [..., m, n], real or complex.

    Returns:
      `QR(orthogonal [..., m, k], triangular [..., k, n])`, k = min(m, n).

    Cost: O(m n k) a member. Differentiable for m >= n and full column rank.

    Example:
      >>> q, r = qr(jnp.eye(2))
      >>> bool(jnp.all(jnp.abs(q @ r - jnp.eye(2)) < 1e-6))
      True
    """
    return _qr(_checked("qr", matrix))


@jax.jit
def _qr(matrix: Array) -> QR:
    good = _member_finite(matrix)
    orthogonal, triangular = jnp.linalg.qr(_identity_if_not_finite(matrix))
    return QR(arguments.nan_unless(orthogonal, good, 2), arguments.nan_unless(triangular, good, 2))


def eigh(matrix: Num[ArrayLike, "*batch n n"]) -> Eigh:
    """Eigenvalues and vectors of the Hermitian part (a + a^H) / 2; NaN for a member that is not finite.

    Args:
      matrix: [..., n, n], real symmetric or complex Hermitian.

    Returns:
      `Eigh(values [..., n] real ascending, vectors [..., n, n])`.

    Cost: O(n^3) a member. Entries may be of any size. Differentiable where the values are distinct; the values alone
    also where they repeat, and smooth symmetric functions of them twice: there the second derivative is that of a
    matrix within n sqrt(eps) |matrix|, so right to about half the digits.

    Example:
      >>> eigh(jnp.diag(jnp.array([3.0, 1.0]))).values
      Array([1., 3.], dtype=float32)
    """
    return _eigh(_checked("eigh", matrix, square=True))


@jax.jit
def _eigh(matrix: Array) -> Eigh:
    good = _member_finite(matrix)
    safe = _identity_if_not_finite(matrix)
    # halves first: the sum may overflow
    values, vectors = hermitian_eigen(safe / 2 + safe.conj().swapaxes(-1, -2) / 2)
    return Eigh(arguments.nan_unless(values, good, 1), arguments.nan_unless(vectors, good, 2))


def cholesky(matrix: Num[ArrayLike, "*batch n n"]) -> Inexact[Array, "*batch n n"]:
    """Lower Cholesky factor of the Hermitian part; NaN where the member is not finite or not positive definite.

    Args:
      matrix: [..., n, n], real symmetric or complex Hermitian.

    Returns:
      [..., n, n] lower triangular, `matrix = factor @ factor^H`.

    Cost: n^3 / 3 flops a member. Differentiable where the matrix is positive definite.

    Example:
      >>> float(cholesky(jnp.array([[4.0]]))[0, 0])
      2.0
    """
    return _cholesky(_checked("cholesky", matrix, square=True))


@jax.jit
def _cholesky(matrix: Array) -> Array:
    good = _member_finite(matrix)
    factor = jnp.linalg.cholesky(_identity_if_not_finite(matrix), symmetrize_input=True)
    return arguments.nan_unless(factor, good & _member_finite(factor), 2)


def solve(matrix: Num[ArrayLike, "*#batch n n"], right: Num[ArrayLike, "*#batch n k"]) -> Inexact[Array, "*#batch n k"]:
    """Solve `matrix @ x = right` by LU with partial pivoting; all NaN for a member that failed, others unharmed.

    Args:
      matrix: [..., n, n].
      right: [..., n, k], with the same batch axes or axes that broadcast against them.

    Returns:
      x [..., n, k]; NaN throughout where an input is not finite, a pivot is exactly zero, or the result overflows.
      A matrix that is singular only to rounding gives large finite numbers, as every LU solver does.

    Cost: 2 n^3 / 3 + 2 n^2 k flops a member. Differentiable where the matrix is not singular.

    Example:
      >>> solve(jnp.zeros((2, 2)), jnp.ones((2, 1)))[:, 0]
      Array([nan, nan], dtype=float32)
    """
    matrix, right = arguments.to_arrays("solve", matrix=matrix, right=right)
    arguments.check_square("solve", "matrix", matrix)
    arguments.check_shape(
        "solve",
        "right",
        right,
        f"[..., {matrix.shape[-1]}, k]",
        lambda shape: len(shape) >= 2 and shape[-2] == matrix.shape[-1],
    )
    return _solve(matrix, right)


@jax.jit
def _solve(matrix: Array, right: Array) -> Array:
    batch = jnp.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    matrix = jnp.broadcast_to(matrix, batch + matrix.shape[-2:])
    right = jnp.broadcast_to(right, batch + right.shape[-2:])
    good = _member_finite(matrix)
    x = jnp.linalg.solve(_identity_if_not_finite(matrix), right)
    return arguments.nan_unless(x, good & _member_finite(x), 2)


def safe_norm(x: Num[ArrayLike, "..."], axis: int | None = None) -> Inexact[Array, "..."]:
    """Euclidean norm that neither overflows nor underflows inside, with gradient zero (not NaN) at zero.

    Args:
      x: any shape, real or complex.
      axis: axis to reduce; all of them by default.

    Returns:
      the norm, with `axis` removed, of the real dtype that belongs to x.

    Differentiable everywhere, with the subgradient 0 at x = 0.

    Example:
      >>> float(jax.grad(safe_norm)(jnp.zeros(3)).sum())
      0.0
    """
    (x,) = arguments.to_arrays("safe_norm", x=x)
    if axis is not None:
        arguments.check_axis("safe_norm", "axis", axis, x.ndim)
    if x.size == 0:
        return jnp.sum(jnp.abs(x), axis=axis)
    norm = _norm(x, axis)
    return jnp.squeeze(norm) if axis is None else jnp.squeeze(norm, axis=axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def _norm(x: Array, axis: int | None) -> Array:
    """With the axis kept."""
    scale = power_of_two(jnp.max(jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)), axis=axis, keepdims=True))
    return scale * jnp.sqrt(jnp.sum((x.real / scale) ** 2 + (x.imag / scale) ** 2, axis=axis, keepdims=True))


@_norm.defjvp
def _norm_jvp(axis: int | None, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    norm = _norm(x, axis)
    zero = norm == 0
    divisor = jnp.where(zero, jnp.ones_like(norm), norm)
    # the unit vector keeps all orders of derivatives in the units of x
    real, imag = (jnp.where(zero, jnp.zeros_like(part), quotient(part, divisor)) for part in (x.real, x.imag))
    return norm, jnp.sum(real * tangent.real + imag * tangent.imag, axis=axis, keepdims=True)
