"""Sums of operators of one mode each, and their inverses by sums of exponentials, which are products over the modes.

With x = lambda_1 + ... + lambda_d the integral 1 / x = int exp(t - x e^t) dt over the real line, by the trapezoidal
rule with step h, is a sum of w_j exp(-s_j lambda_1) ... exp(-s_j lambda_d), whose error falls like exp(-pi^2 / h).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.linalg import eigh, einsum, matmul
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from jaxnm.tensor_train.matrices import TTMatrix, matrix_from_cores
from jaxnm.tensor_train.scaling import converted_scale, joined_scale, shifted_scale, unit_cores
from jaxnm.tensor_train.trains import TT, check_train, checked_shape, mode_mask, stacked

_CONDITION = 1e8


def kronecker_sum(matrices: Sequence[ArrayLike]) -> TTMatrix:
    """The operator L_1 x I x ... x I + I x L_2 x I ... + I x ... x I x L_d, of rank 2.

    Args:
      matrices: L_k [n_k, n_k], one a mode, real or complex.

    Returns:
      `TTMatrix` on the shape (n_1, ..., n_d).

    Raises:
      ValueError: no matrix, one that is not square. TypeError: integers.

    Cost: a copy. Differentiable.

    Example:
      >>> kronecker_sum([2 * jnp.eye(3) - jnp.eye(3, k=1) - jnp.eye(3, k=-1)] * 10).ranks.tolist()
      [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]
    """
    return matrix_from_cores(_kronecker_cores(_checked_matrices("kronecker_sum", matrices)))


@jax.jit
def _kronecker_cores(matrices: list[Array]) -> list[Array]:
    cores = []
    for matrix in matrices:
        eye, zero = jnp.eye(matrix.shape[0], dtype=matrix.dtype), jnp.zeros_like(matrix)
        cores.append(jnp.stack([jnp.stack([eye, zero], -1), jnp.stack([matrix, eye], -1)]))
    cores[0] = cores[0][1:]
    cores[-1] = cores[-1][..., :1]
    return cores


def laplace_inverse(
    right: TT,
    *,
    spacing: Float[ArrayLike, "..."] = 1.0,
    matrices: Sequence[ArrayLike] | None = None,
    eps: float = 1e-8,
    condition: float | None = None,
) -> TT:
    """Solve A x = b for a sum A of positive definite operators of one mode each, by a sum of exponentials.

    Args:
      right: b, real.
      spacing: h or [h_1, ..., h_d], for the default L_k: tridiagonal with (-1, 2, -1) / h_k^2, which is the negative
        second difference with zeros at both ends.
      matrices: L_k [n_k, n_k], symmetric, instead of those.
      eps: the relative error of the inverse on every eigenvector, before rounding errors (static).
      condition: a bound of the condition number of A (static). That of the default is known; with matrices it is 1e8
        unless it is given. The number of terms grows like its logarithm.

    Returns:
      `TT` of T times the ranks of b, for T terms: 52 for eps = 1e-8 and a condition of 1e4; see `round`.

    Raises:
      ValueError: an eps that is not between 0 and 1, a condition below 1, another number of matrices, other sizes.
        TypeError: no train, integers, complex numbers.

    Status: there is none; the numbers are NaN where A is not positive definite, or its condition is above the bound.
    Cost: d T n^2 R^2 multiplications for ranks R of b, and d n (T R)^2 numbers; with matrices d eigenvalue problems.
    Differentiable; once in matrices, whose eigenvalues may repeat.
    Source: W. Hackbusch, B. N. Khoromskij, Computing 76 (2006), 177-202; D. Braess, W. Hackbusch, IMA J. Numer. Anal.
    25 (2005), 685-697, for sums with fewer terms.

    Example:
      >>> from jaxnm.tensor_train import distance, from_cores
      >>> b = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> second = 2 * jnp.eye(3) - jnp.eye(3, k=1) - jnp.eye(3, k=-1)
      >>> bool(distance(kronecker_sum([second] * 4) @ laplace_inverse(b), b) < 1e-4)
      True
    """
    name = "laplace_inverse"
    check_train(name, right=right)
    operator = _checked(name, right.shape, spacing, matrices, eps, condition, right.cores)
    right = TT(operator.like, right.ranks, converted_scale(right.log_scale, operator.like.dtype), right.shape)
    return _inverse(right, operator.spacing, operator.matrices, *operator.options)


def laplace_inverse_factors(
    rows: Sequence[ArrayLike],
    *,
    spacing: Float[ArrayLike, "..."] = 1.0,
    matrices: Sequence[ArrayLike] | None = None,
    eps: float = 1e-8,
    condition: float | None = None,
) -> list[Float[Array, "T n"]]:
    """`laplace_inverse` of a product b_1(i_1) ... b_d(i_d), as a sum of products.

    Args:
      rows: b_k [n_k], one a mode.
      spacing: as in `laplace_inverse`.
      matrices: as in `laplace_inverse`.
      eps: as in `laplace_inverse`.
      condition: as in `laplace_inverse`.

    Returns:
      d arrays F_k [T, n_k]: x(i) is the sum over j of F_1[j, i_1] ... F_d[j, i_d].

    Raises:
      ValueError, TypeError: as `laplace_inverse`.

    Cost: d T n^2 multiplications. Differentiable as `laplace_inverse`.
    Source: as `laplace_inverse`.

    Example:
      >>> factors = laplace_inverse_factors([jnp.ones(1)] * 3)
      >>> total = jnp.sum(factors[0] * factors[1] * factors[2])
      >>> bool(jnp.abs(total - 1 / (2 + 2 + 2)) < 1e-5)
      True
    """
    name = "laplace_inverse_factors"
    arguments.check_list(name, "rows", rows, "one row a mode")
    arrays = arguments.to_arrays(name, **{f"rows[{k}]": row for k, row in enumerate(rows)})
    for k, array in enumerate(arrays):
        condition_of = lambda shape: len(shape) == 1 and shape[0] > 0
        arguments.check_shape(name, f"rows[{k}]", array, "[n], not empty", condition_of)
    shape = tuple(array.shape[0] for array in arrays)
    operator = _checked(name, shape, spacing, matrices, eps, condition, stacked(arrays, (max(shape),)))
    return _factors(operator.like, operator.spacing, operator.matrices, *operator.options)


def laplace_inverse_matrix(
    shape: Sequence[int],
    *,
    spacing: Float[ArrayLike, "..."] = 1.0,
    matrices: Sequence[ArrayLike] | None = None,
    eps: float = 1e-8,
    condition: float | None = None,
) -> TTMatrix:
    """The inverse that `laplace_inverse` applies, as an operator; to apply it, that function is cheaper.

    It is not rounded: rounding is relative to the Frobenius norm, which in ten dimensions is thousands of times the
    largest eigenvalue of the inverse, and would spoil what it does to smooth right-hand sides.

    Args:
      shape: the mode sizes (static).
      spacing: as in `laplace_inverse`.
      matrices: as in `laplace_inverse`.
      eps: as in `laplace_inverse`.
      condition: as in `laplace_inverse`.

    Returns:
      `TTMatrix` of T terms with cores [d, T, n, n, T], symmetric.

    Raises:
      ValueError, TypeError: as `laplace_inverse`; ValueError: an empty shape.

    Status: as `laplace_inverse`.
    Cost: d n^2 T^2 numbers. Differentiable as `laplace_inverse`.
    Source: as `laplace_inverse`.

    Example:
      >>> laplace_inverse_matrix((8,) * 10, eps=0.1).rows
      (8, 8, 8, 8, 8, 8, 8, 8, 8, 8)
    """
    name = "laplace_inverse_matrix"
    shape = checked_shape(name, shape)
    operator = _checked(name, shape, spacing, matrices, eps, condition, None)
    return _inverse_matrix(operator.spacing, operator.matrices, *operator.options)


# ------------------------------------------------------------------------------------------------ checks


class _Operator(NamedTuple):
    """Arguments of one dtype, and what is static."""

    spacing: Array
    matrices: Array | None
    like: Array
    options: tuple[tuple[int, ...], float, float]


def _checked_matrices(name: str, matrices: Sequence[Any]) -> list[Array]:
    arguments.check_list(name, "matrices", matrices, "one matrix a mode")
    arrays = arguments.to_arrays(name, **{f"matrices[{k}]": matrix for k, matrix in enumerate(matrices)})
    for k, array in enumerate(arrays):
        condition = lambda shape: len(shape) == 2 and shape[0] == shape[1] >= 1
        arguments.check_shape(name, f"matrices[{k}]", array, "[n, n] with n >= 1", condition)
    return arrays


def _checked(
    name: str, shape: tuple[int, ...], spacing: Any, matrices: Any, eps: Any, condition: Any, like: Array | None
) -> _Operator:
    d, n = len(shape), max(shape)
    is_share = arguments.is_number(eps) and 0 < eps < 1
    if not is_share:
        arguments.refuse(name, "eps", repr(eps), "a Python number between 0 and 1", "it is static")
    if condition is not None and not (arguments.is_number(condition) and 1 <= condition < math.inf):
        arguments.refuse(name, "condition", repr(condition), "a Python number >= 1", "it is static")
    arguments.check_number(name, "spacing", spacing, "> 0", lambda h: h > 0, "it is a distance", scalar=False)
    blocks = []
    if matrices is None:
        condition = max(1 / math.tan(math.pi / (2 * n + 2)) ** 2, 1) if condition is None else condition
    else:
        condition = _CONDITION if condition is None else condition
        blocks = _checked_matrices(name, matrices)
        sizes = tuple(block.shape[0] for block in blocks)
        if sizes != shape:
            arguments.refuse(name, "matrices", f"of sizes {sizes}", f"{shape}, one a mode", "see `kronecker_sum`")
    given = {f"matrices[{k}]": block for k, block in enumerate(blocks)} | ({} if like is None else {"right": like})
    for argument, array in given.items():
        arguments.check_real(name, argument, array)
    scale, *arrays = arguments.to_arrays(name, spacing=spacing, **given)
    arguments.check_real(name, "spacing", scale)
    arguments.check_shape(name, "spacing", scale, f"a scalar or [{d}]", lambda shape: shape in ((), (d,)))
    options = (shape, float(eps), float(condition))
    whole = stacked(arrays[: len(blocks)], (n, n)) if blocks else None
    return _Operator(jnp.broadcast_to(scale, (d,)), whole, arrays[-1] if arrays else scale, options)


# ------------------------------------------------------------------------------------------------ exponentials


def exponential_sum(condition: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(times s [T], weights w [T]) with |sum_j w_j exp(-s_j x) - 1 / x| < eps / x for x from 1 to `condition`.

    A third of eps each is for the step, by the Fourier transform Gamma(1 + i y) of exp(t - e^t), whose square is
    pi y / sinh(pi y); for what is left out on the right, exp(-s_T); and for what is left out on the left, which the
    first weight stands for, so that the error there is of second order.
    """
    share = eps / 3
    step = 0.5
    for _ in range(50):
        step = math.pi**2 / math.log(4.2 * math.pi / (math.sqrt(step) * share))
    tail = step / (1 - math.exp(-step))
    first = -math.log(condition) - math.log(tail / share) / 2
    last = math.log(math.log(1 / share))
    nodes = first + step * np.arange(math.ceil((last - first) / step) + 1)
    weights = step * np.exp(nodes)
    weights[0] *= tail / step
    return np.exp(nodes), weights


class _Spectrum(NamedTuple):
    """Eigenvectors in columns, zero on padding, and eigenvalues, in units of a power of two."""

    vectors: Array
    """[d, n, n], or [1, n, n] where all modes are the same."""
    values: Array
    """[d, n]."""
    exponent: Array


def _of_second_differences(spacing: Array, shape: tuple[int, ...]) -> _Spectrum:
    n, modes = max(shape), mode_mask(shape)
    spacing, exponent = rescaled(spacing)
    sizes = np.array(shape)[:, None]
    index = np.arange(1, n + 1)[None]
    values = jnp.asarray(2 * np.sin(np.pi * index / (2 * sizes + 2)), spacing.dtype)
    table = np.stack([
        np.sqrt(2 / (m + 1)) * np.sin(np.pi * (index * index.T % (2 * m + 2)) / (m + 1)) * np.outer(mode, mode)
        for m, mode in zip(shape, modes, strict=True)
    ][: 1 if len(set(shape)) == 1 else None])  # fmt: skip
    return _Spectrum(jnp.asarray(table, spacing.dtype), (values / spacing[:, None]) ** 2, -2 * exponent)


def _of_matrices(matrices: Array, shape: tuple[int, ...]) -> _Spectrum:
    n, modes = max(shape), mode_mask(shape)
    matrices, exponent = rescaled(matrices)
    whole = jnp.sum(jnp.abs(matrices), (1, 2))
    above = jnp.where(whole > 0, 2 * whole, jnp.ones_like(whole))
    # the eigenvalues of padding come last
    padding = above[:, None] * jnp.where(modes, 0, np.arange(1, n + 1)).astype(above.dtype)
    values, vectors = eigh(matrices + jax.vmap(jnp.diag)(padding))
    vectors = jnp.where(jnp.asarray(modes[:, :, None] & modes[:, None]), vectors, jnp.zeros_like(vectors))
    return _Spectrum(vectors, values, exponent)


def _rates(spectrum: _Spectrum, shape: tuple[int, ...], eps: float, condition: float) -> tuple[Array, Array]:
    """(times s [T], weights [T]) for the operator in its units; they need no derivative, as any unit serves."""
    values = jax.lax.stop_gradient(spectrum.values)
    modes = jnp.asarray(mode_mask(shape))
    least = jnp.sum(jnp.min(jnp.where(modes, values, jnp.full_like(values, jnp.inf)), 1))
    most = jnp.sum(jnp.max(jnp.where(modes, values, jnp.full_like(values, -jnp.inf)), 1))
    # the bound of the default operator is met but for rounding
    good = (least > 0) & (most <= condition * 1.01 * least)
    times, weights = (jnp.asarray(part, values.dtype) for part in exponential_sum(condition * 1.01, eps))
    return times / least, arguments.nan_unless(weights / least, good)


def _decayed(
    right: Array, spacing: Array, matrices: Array | None, shape: tuple[int, ...], eps: float, condition: float
) -> tuple[Array, Array, Array]:
    """(exp(-s_j L_k) b_k [d, T, n, c] of columns b_k [d, n, c], weights [T], exponent of a power of two for these)."""
    if matrices is None:
        spectrum = _of_second_differences(spacing, shape)
        times, weights = _rates(spectrum, shape, eps, condition)
        decays = jnp.exp(-times[None, :, None] * spectrum.values[:, None])
        parts = decays[..., None] * matmul(jnp.swapaxes(spectrum.vectors, 1, 2), right)[:, None]
        return matmul(spectrum.vectors[:, None], parts), weights, -spectrum.exponent
    spectrum = _of_matrices(jax.lax.stop_gradient(matrices), shape)
    times, weights = _rates(spectrum, shape, eps, condition)
    matrices = times_power_of_two(matrices, -spectrum.exponent)
    return _exponentials(shape, matrices, times, right), weights, -spectrum.exponent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _exponentials(shape: tuple[int, ...], matrices: Array, times: Array, right: Array) -> Array:
    """exp(-s_j L_k) b_k for symmetric L_k of size one; the derivative needs no difference of eigenvalues."""
    vectors, values, _ = _of_matrices(matrices, shape)
    return _of_eigenpairs(vectors, values, times, right)


def _of_eigenpairs(vectors: Array, values: Array, times: Array, right: Array) -> Array:
    decays = jnp.exp(-times[None, :, None] * values[:, None])
    turned = matmul(jnp.swapaxes(vectors, 1, 2), right)
    return matmul(vectors[:, None], decays[..., None] * turned[:, None])


@_exponentials.defjvp
def _exponentials_jvp(shape: tuple[int, ...], primals: Any, tangents: Any) -> tuple[Array, Array]:
    (matrices, times, right), (moved, _, right_moved) = primals, tangents
    remedy = "they have a first derivative only, as eigenvalues may repeat"
    fixed = arguments.without_derivative("laplace_inverse", "the gradient by matrices", matrices, remedy=remedy)
    vectors, values, _ = _of_matrices(fixed, shape)
    moved = (moved + jnp.swapaxes(moved, 1, 2)) / 2
    slopes = matmul(jnp.swapaxes(vectors, 1, 2), matmul(moved, vectors))
    # divided differences of exp(-s x): their middle times sinh(y) / y, which is smooth
    sums = (values[:, :, None] + values[:, None]) / 2
    gaps = jnp.abs(values[:, :, None] - values[:, None])
    exponents = times[None, :, None, None] * gaps[:, None]
    shares = jnp.where(exponents > 0, -jnp.expm1(-exponents) / jnp.where(exponents > 0, exponents, 1), 1)
    lower = jnp.exp(-times[None, :, None, None] * (sums - gaps / 2)[:, None])
    weights = -times[None, :, None, None] * lower * shares
    turned = matmul(jnp.swapaxes(vectors, 1, 2), right)
    change = matmul(vectors[:, None], matmul(weights * slopes[:, None], turned[:, None]))
    return _of_eigenpairs(vectors, values, times, right), change + _of_eigenpairs(vectors, values, times, right_moved)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _factors(
    rows: Array, spacing: Array, matrices: Array | None, shape: tuple[int, ...], eps: float, condition: float
) -> list[Array]:
    decayed, weights, exponent = _decayed(rows[..., None], spacing, matrices, shape, eps, condition)
    factors = decayed[..., 0].at[0].multiply(times_power_of_two(weights, exponent)[:, None])
    return [factor[:, :n] for factor, n in zip(factors, shape, strict=True)]


@partial(jax.jit, static_argnums=(3, 4, 5))
def _inverse(
    right: TT, spacing: Array, matrices: Array | None, shape: tuple[int, ...], eps: float, condition: float
) -> TT:
    cores, exponents = unit_cores(right.cores)
    d, size, n, _ = cores.shape
    columns = jnp.swapaxes(cores, 1, 2).reshape(d, n, size * size)
    decayed, weights, exponent = _decayed(columns, spacing, matrices, shape, eps, condition)
    blocks = decayed.reshape(d, -1, n, size, size).transpose(0, 1, 3, 2, 4)
    log_scale = shifted_scale(right.log_scale, exponent + jnp.sum(exponents, dtype=jnp.int32))
    return _diagonal(blocks, weights, right.ranks, log_scale, shape)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _inverse_matrix(
    spacing: Array, matrices: Array | None, shape: tuple[int, ...], eps: float, condition: float
) -> TTMatrix:
    d, n = len(shape), max(shape)
    modes = jnp.asarray(mode_mask(shape), spacing.dtype)
    decayed, weights, exponent = _decayed(jax.vmap(jnp.diag)(modes), spacing, matrices, shape, eps, condition)
    blocks = decayed.reshape(d, -1, 1, n * n, 1)
    log_scale = joined_scale(exponent, jnp.zeros((), spacing.dtype))
    flat = _diagonal(blocks, weights, jnp.ones(d + 1, jnp.int32), log_scale, shape)
    cores = flat.cores.reshape(d, flat.max_rank, n, n, flat.max_rank)
    return TTMatrix(cores, flat.ranks, flat.log_scale, shape, shape)


def _diagonal(blocks: Array, weights: Array, ranks: Array, log_scale: Array, shape: tuple[int, ...]) -> TT:
    """The sum over j of weights[j] times the trains of cores blocks[:, j] [d, R, n, R]."""
    d, terms, size, n, _ = blocks.shape
    if d == 1:
        return TT(einsum("j,jris->ris", weights, blocks[0])[None], ranks, log_scale, shape)
    cores = einsum("kjris,jl->krjisl", blocks, jnp.eye(terms, dtype=blocks.dtype))
    first = jnp.zeros_like(cores[0]).at[0, 0].set(einsum("jis,j->isj", blocks[0, :, 0], weights))
    last = jnp.zeros_like(cores[0]).at[..., 0, 0].set(einsum("jri->rji", blocks[-1, ..., 0]))
    cores = cores.at[0].set(first).at[-1].set(last).reshape(d, size * terms, n, size * terms)
    return TT(cores, (terms * ranks).at[jnp.array([0, d])].set(1), log_scale, shape)
