"""Full arrays: into trains, by a sequence of truncated factorizations, and out of them."""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Key

from jaxnm import arguments
from jaxnm.linalg import eigh, matmul, qr, svd
from jaxnm.linalg.scaling import rescaled
from jaxnm.tensor_train.rounding import SECOND, gram_suffices, kept_count, relative_limit, turned_basis
from jaxnm.tensor_train.scaling import joined_scale, scaled_back, unit_cores
from jaxnm.tensor_train.trains import TT, check_train, core_mask, within

Method = Literal["auto", "exact", "gram", "randomized"]
METHODS = ("auto", "exact", "gram", "randomized")
_OVERSAMPLING = 8
_LARGEST = 2**28
"""Entries that `to_dense` makes without being told."""


def from_dense(
    array: Inexact[Array, "..."],
    *,
    max_rank: int,
    eps: Float[Array, ""] | float = 0.0,
    method: Method = "auto",
    key: Key[Array, ""] | None = None,
) -> TT:
    """The train of an array, by TT-SVD.

    Args:
      array: of any number of modes, at least one.
      max_rank: R (static); clipped to what the shape can have.
      eps: relative to the norm: the distance is below eps |array|, as far as max_rank lets it. Singular values below 4
        machine epsilons of the norm (of its root with "gram") are dropped in any case. May be traced.
      method: static. "exact": QR of the long side, then SVD. "gram": the eigenvalues of inner products, the fastest, to
        the root of the machine epsilon. "randomized": the range is found by random vectors of `key`, for arrays with
        small ranks. "auto": "gram" where eps is a Python number of at least 1e-7 (1e-3 in float32), else "exact".
      key: of `jax.random.key`, for "randomized".

    Returns:
      `TT`, left-orthogonal but for the last core.

    Raises:
      ValueError: no mode, an empty one, max_rank < 1, eps < 0, an unknown method, no key for "randomized". TypeError:
        integers.

    Cost: "exact" about 2 N n R multiplications for N entries in the first step, less in later ones.
    Differentiable once, but for "randomized", as `round`: in the ranks that it chose, equal singular values doing no
    harm; where a kept one equals a dropped one, the derivative leaves that pair out.
    Source: I. V. Oseledets, SIAM J. Sci. Comput. 33 (2011), 2295-2317, algorithm 1.

    Example:
      >>> from_dense(jnp.ones((2, 3, 4)), max_rank=4).ranks.tolist()
      [1, 1, 1, 1]
    """
    name = "from_dense"
    (array,) = arguments.to_arrays(name, array=array)
    condition = lambda shape: len(shape) >= 1 and min(shape) >= 1
    arguments.check_shape(name, "array", array, "one mode or more, none of them empty", condition)
    arguments.check_count(name, "max_rank", max_rank, minimum=1)
    arguments.check_number(name, "eps", eps, ">= 0", lambda value: value >= 0, "0 drops only what is nothing")
    arguments.check_option(name, "method", method, METHODS, "use 'auto'")
    dtype = jnp.finfo(array.dtype).dtype
    if method == "auto":
        method = "gram" if gram_suffices(eps, array.ndim, dtype) else "exact"
    if key is None and method == "randomized":
        arguments.refuse(name, "key", "None", "a key for 'randomized'", "pass jax.random.key(0)")
    if key is not None:
        arguments.check_key(name, key)
    (threshold,) = arguments.to_arrays(name, eps=eps)
    arguments.check_shape(name, "eps", threshold, "a scalar", lambda shape: shape == (), "one for all bonds")
    sides = [math.prod(array.shape[:k]) for k in range(array.ndim + 1)]
    bounds = tuple(min(max_rank, side, array.size // side) for side in sides)
    return _from_dense(array, threshold.astype(dtype), key, bounds, method)


def to_dense(tt: TT, *, max_size: int = _LARGEST) -> Inexact[Array, "..."]:
    """All entries of a train.

    Args:
      tt: of any ranks.
      max_size: how many entries are not too many (static).

    Returns:
      an array of the shape of the train.

    Raises:
      ValueError: more than max_size entries. TypeError: no train.

    Cost: R multiplications an entry. Differentiable.

    Example:
      >>> to_dense(from_dense(jnp.arange(1.0, 7.0).reshape(2, 3), max_rank=2)).round(5).tolist()
      [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    """
    check_train("to_dense", tt=tt)
    arguments.check_count("to_dense", "max_size", max_size)
    size = math.prod(tt.shape)
    if size > max_size:
        got = f"of {size} entries"
        arguments.refuse("to_dense", "tt", got, f"at most max_size = {max_size}", "use gather, or a larger max_size")
    return _to_dense(tt)


@partial(jax.jit, static_argnums=(3, 4))
def _from_dense(array: Array, eps: Array, key: Array | None, bounds: tuple[int, ...], method: str) -> TT:
    if method == "randomized":
        remedy = "its subspaces are drawn; use 'exact' or 'gram'"
        array = arguments.without_derivative("from_dense", "method 'randomized'", array, remedy=remedy)
    rest, exponent = rescaled(array)
    whole = jnp.sqrt(jnp.sum(jnp.abs(rest) ** 2))
    limit = whole * relative_limit(eps, array.ndim, method == "gram")
    cores, ranks = [], [jnp.int32(1)]
    for k, n in enumerate(array.shape[:-1]):
        matrix = rest.reshape(bounds[k] * n, -1)
        subkey = None if key is None else jax.random.fold_in(key, k)
        left, count = _leading_columns(bounds[k + 1], method, matrix, limit, subkey)
        left = jnp.where(within(count, bounds[k + 1])[None], left, jnp.zeros_like(left))
        cores.append(left.reshape(bounds[k], n, -1))
        ranks.append(count)
        rest = matmul(left.conj().T, matrix)
    # the last core has the norm, which belongs into the factor
    last, more = rescaled(rest.reshape(bounds[-2], array.shape[-1], 1))
    cores.append(last)
    size, n = max(bounds), max(array.shape)
    pad = lambda core: [(0, most - part) for most, part in zip((size, n, size), core.shape, strict=True)]
    stacked = jnp.stack([jnp.pad(core, pad(core)) for core in cores])
    ranks = jnp.stack([*ranks, jnp.int32(1)])
    stacked = jnp.where(core_mask(ranks, array.shape, size), stacked, jnp.zeros_like(stacked))
    return TT(stacked, ranks, joined_scale(exponent + more, jnp.zeros_like(eps)), array.shape)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _leading_columns(size: int, method: str, matrix: Array, limit: Array, key: Array | None) -> tuple[Array, Array]:
    """(orthonormal columns [rows, size], how many are kept); the derivative turns kept ones to dropped ones only."""
    left, singular = _left(matrix, size, method, key)
    return left[:, :size], kept_count(singular, limit, size)


@_leading_columns.defjvp
def _leading_columns_jvp(size: int, method: str, primals: Any, tangents: Any) -> Any:
    matrix, limit, key = arguments.without_derivative("from_dense", "the gradient", primals, remedy=SECOND)
    moved = tangents[0]
    basis, count = _leading_columns(size, method, matrix, limit, key)
    left, singular = _left(matrix, min(matrix.shape), "exact", None)
    back = matmul(matrix.conj().T, basis)
    turned = matmul(moved, back) + matmul(matrix, matmul(moved.conj().T, basis))
    energies = jnp.sum(jnp.abs(back) ** 2, 0)
    change = turned_basis(left, singular**2, energies, count, turned)
    return (basis, count), (change, np.zeros((), jax.dtypes.float0))


def _left(matrix: Array, size: int, method: str, key: Any) -> tuple[Array, Array]:
    """(orthonormal columns [rows, size or more], singular values)."""
    rows, columns = matrix.shape
    if method == "gram" and rows <= columns:
        values, vectors = eigh(matmul(matrix, matrix.conj().T))
        return vectors[:, ::-1], jnp.sqrt(jnp.maximum(values[::-1], jnp.zeros_like(values)))
    if method == "randomized" and size + _OVERSAMPLING < min(rows, columns):
        probes = jax.random.normal(key, (columns, size + _OVERSAMPLING), matrix.dtype)
        basis = qr(matmul(matrix, probes)).orthogonal
        left, singular = _left(matmul(basis.conj().T, matrix), size, "exact", None)
        return matmul(basis, left), singular
    if rows < columns:
        # the triangular factor has the same left vectors
        matrix = qr(matrix.conj().T).triangular.conj().T
    left, singular, _ = svd(matrix)
    return left, singular


@jax.jit
def _to_dense(tt: TT) -> Array:
    # every prefix of a multi-index has a unit of its own, as in `gather`
    cores, exponents = unit_cores(tt.cores)
    rows = jnp.zeros((1, tt.max_rank), tt.dtype).at[0, 0].set(1)
    units = jnp.sum(exponents, dtype=jnp.int32)[None]
    for core, n in zip(cores, tt.shape, strict=True):
        rows = matmul(rows, core[:, :n].reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
        rows, more = jax.vmap(rescaled)(rows)
        units = jnp.repeat(units, n) + more
    return scaled_back(rows[:, 0], units, tt.log_scale).reshape(tt.shape)
