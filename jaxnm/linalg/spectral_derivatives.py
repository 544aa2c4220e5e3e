"""Eigenvalues and singular values with derivatives of two orders, also where they repeat, in any units.

The first derivative of the values is that of first-order perturbation theory and needs no gaps. The second divides by
the gaps between the values. A smooth symmetric function of the values has a second derivative where they repeat, but
the chain rule cannot give it there: it sees n numbers where the function depends on all n (n + 1) / 2 entries of a
block. It can give it at a matrix nearby: for second derivatives, and for those alone, values that agree to sqrt(eps)
are moved apart by that much, consistently in everything that is computed from them.

All is in the units of the matrix, no squares are taken, and what LAPACK sees has size one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.linalg.scaling import power_of_two, quotient

_NOISE = 100  # eps |A|: values below this are rounding

_Eigen, _Singular = tuple[Array, Array], tuple[Array, Array, Array]


def _chain(*factors: Array) -> Array:
    product = factors[0]
    for factor in factors[1:]:
        product = jnp.matmul(product, factor, precision=jax.lax.Precision.HIGHEST)
    return product


def _adjoint(matrix: Array) -> Array:
    return matrix.conj().swapaxes(-1, -2)


def _diagonal(matrix: Array) -> Array:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def _size(matrix: Array) -> Array:
    """A power of two near the largest entry, [..., 1, 1]."""
    return power_of_two(jnp.max(jnp.abs(matrix), (-2, -1), keepdims=True))


def _apart(values: Array, *, above_zero: bool = False) -> Array:
    """Ascending values, those that agree to sqrt(eps) moved up so that they do not; the others as they are.

    Beside what is rounding, relative to the values; rounding itself relative to the largest. With `above_zero` the
    first is kept off zero as well.
    """
    fixed = jax.lax.stop_gradient(values)
    eps = jnp.finfo(fixed.dtype).eps
    largest = jnp.max(jnp.abs(fixed), -1, keepdims=True)
    modulus = jnp.abs(fixed)
    below = jnp.concatenate([jnp.zeros_like(modulus[..., :1]), modulus[..., :-1]], -1)
    pair = jnp.maximum(modulus, below)
    distance = jnp.sqrt(eps) * jnp.where(pair <= _NOISE * eps * largest, largest, pair)
    if not above_zero:
        distance = distance.at[..., 0].set(0)
    floors = jnp.cumsum(distance, -1)
    first = jnp.zeros_like(largest) if above_zero else fixed[..., :1]
    highest = jax.lax.cummax(jnp.concatenate([first, fixed - floors], -1), axis=fixed.ndim - 1)[..., 1:]
    moved = jnp.where(fixed - floors >= highest, fixed, highest + floors)
    return values + (moved - fixed)


def _over_gaps(numerator: Array, values: Array) -> Array:
    """Entry i, j over values_j - values_i, zero on the diagonal; NaN where two values are the same."""
    gaps = values[..., None, :] - values[..., :, None]
    diagonal = jnp.broadcast_to(jnp.eye(values.shape[-1], dtype=bool), gaps.shape)
    gaps = jnp.where(diagonal, jnp.ones_like(gaps), jnp.where(gaps == 0, jnp.full_like(gaps, jnp.nan), gaps))
    return jnp.where(diagonal, jnp.zeros_like(numerator), quotient(numerator, gaps))


# ------------------------------------------------------------------------------------------------------- Hermitian


@jax.custom_jvp
def hermitian_eigen(matrix: Array) -> tuple[Array, Array]:
    """(values ascending, vectors) of Hermitian matrices [..., n, n]."""
    size = _size(matrix)
    values, vectors = jnp.linalg.eigh(quotient(matrix, size), symmetrize_input=False)
    return values * size[..., 0], vectors


@hermitian_eigen.defjvp
def _hermitian_eigen_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Eigen, _Eigen]:
    values, vectors = _eigen_apart(*primals)
    return (values, vectors), _eigen_tangents(values, vectors, *tangents)


@jax.custom_jvp
def _eigen_apart(matrix: Array) -> tuple[Array, Array]:
    """As `hermitian_eigen`, but what its derivative is made of belongs to a matrix with distinct values."""
    return hermitian_eigen(matrix)


@_eigen_apart.defjvp
def _eigen_apart_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Eigen, _Eigen]:
    values, vectors = _eigen_apart(*primals)
    values = _apart(values)
    return (values, vectors), _eigen_tangents(values, vectors, *tangents)


def _eigen_tangents(values: Array, vectors: Array, tangent: Array) -> tuple[Array, Array]:
    inner = _chain(_adjoint(vectors), tangent, vectors)
    return _diagonal(inner).real, _chain(vectors, _over_gaps(inner, values))


# ------------------------------------------------------------------------------------------------- singular values


@jax.custom_jvp
def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """(left vectors in columns, values descending, right vectors in columns) of matrices [..., m, n]."""
    size = _size(matrix)
    left, values, right = jnp.linalg.svd(quotient(matrix, size), full_matrices=False)
    return left, values * size[..., 0], _adjoint(right)


@singular.defjvp
def _singular_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Singular, _Singular]:
    left, values, right = _singular_apart(*primals)
    return (left, values, right), _singular_tangents(left, values, right, *tangents)


@jax.custom_jvp
def _singular_apart(matrix: Array) -> tuple[Array, Array, Array]:
    """As `singular`, but what its derivative is made of belongs to a matrix with distinct positive values."""
    return singular(matrix)


@_singular_apart.defjvp
def _singular_apart_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Singular, _Singular]:
    left, values, right = _singular_apart(*primals)
    values = jnp.flip(_apart(jnp.flip(values, -1), above_zero=True), -1)
    return (left, values, right), _singular_tangents(left, values, right, *tangents)


def _singular_tangents(left: Array, values: Array, right: Array, tangent: Array) -> tuple[Array, Array, Array]:
    inner = _chain(_adjoint(left), tangent, right)
    symmetric = _over_gaps(inner + _adjoint(inner), values) / 2
    sums = values[..., None, :] + values[..., :, None]
    skew = inner - _adjoint(inner)
    if not jnp.iscomplexobj(inner):  # zero on the diagonal, whatever is divided by
        diagonal = jnp.broadcast_to(jnp.eye(values.shape[-1], dtype=bool), sums.shape)
        sums = jnp.where(diagonal, jnp.ones_like(sums), sums)
    skew = quotient(skew, sums) / 2
    left_tangent = _chain(left, symmetric + skew) + _outside(left, values, _chain(tangent, right))
    right_tangent = _chain(right, symmetric - skew) + _outside(right, values, _chain(_adjoint(tangent), left))
    return left_tangent, _diagonal(inner).real, right_tangent


def _outside(vectors: Array, values: Array, image: Array) -> Array:
    """What turns the vectors out of their span: nothing where they span the space."""
    if vectors.shape[-2] == vectors.shape[-1]:
        return jnp.zeros_like(image)
    return quotient(image - _chain(vectors, _adjoint(vectors), image), values[..., None, :])
