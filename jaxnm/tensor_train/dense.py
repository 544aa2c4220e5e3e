"""Full arrays: into trains, by a sequence of truncated factorizations, and out of them."""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Key

from jaxnm import arguments
from jaxnm.linalg import eigh, matmul, qr, svd
from jaxnm.tensor_train.rounding import kept_count
from jaxnm.tensor_train.trains import TT, check_train, core_mask

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
    Differentiable only where all singular values are distinct and positive; `round` is differentiable elsewhere too.
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
    if method not in METHODS:
        arguments.refuse(name, "method", repr(method), f"one of {METHODS}", "use 'auto'")
    dtype = jnp.finfo(array.dtype).dtype
    if method == "auto":
        safe = 1e-7 if dtype.itemsize == 8 else 1e-3
        method = "gram" if arguments.is_number(eps) and eps >= safe else "exact"
    if method == "randomized":
        if key is None:
            arguments.refuse(name, "key", "None", "a key for 'randomized'", "pass jax.random.key(0)")
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
      >>> to_dense(from_dense(jnp.arange(6.0).reshape(2, 3), max_rank=2)).round(5).tolist()
      [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    check_train("to_dense", tt=tt)
    size = math.prod(tt.shape)
    if size > max_size:
        got = f"of {size} entries"
        arguments.refuse("to_dense", "tt", got, f"at most max_size = {max_size}", "use gather, or a larger max_size")
    return _to_dense(tt)


@partial(jax.jit, static_argnums=(3, 4))
def _from_dense(array: Array, eps: Array, key: Array | None, bounds: tuple[int, ...], method: str) -> TT:
    d, dtype, machine = array.ndim, eps.dtype, jnp.finfo(eps.dtype).eps
    nothing = 4 * (machine**0.5 if method == "gram" else machine)
    largest = jnp.max(jnp.abs(array))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    rest = array / unit.astype(array.dtype)
    whole = jnp.sqrt(jnp.sum(jnp.abs(rest) ** 2))
    limit = whole * jnp.maximum(eps / jnp.sqrt(jnp.asarray(max(d - 1, 1), dtype)), nothing)
    cores, ranks = [], [jnp.int32(1)]
    for k, n in enumerate(array.shape[:-1]):
        matrix = rest.reshape(bounds[k] * n, -1)
        left, singular = _left(matrix, bounds[k + 1], method, None if key is None else jax.random.fold_in(key, k))
        count = kept_count(singular, limit, bounds[k + 1])
        kept = jnp.arange(bounds[k + 1], dtype=jnp.int32) < count
        left = jnp.where(kept[None], left, jnp.zeros_like(left))
        cores.append(left.reshape(bounds[k], n, -1))
        ranks.append(count)
        rest = matmul(left.conj().T, matrix)
    cores.append(rest.reshape(bounds[-2], array.shape[-1], 1))
    size, n = max(bounds), max(array.shape)
    pad = lambda core: [(0, most - part) for most, part in zip((size, n, size), core.shape, strict=True)]
    stacked = jnp.stack([jnp.pad(core, pad(core)) for core in cores])
    ranks = jnp.stack([*ranks, jnp.int32(1)])
    stacked = jnp.where(core_mask(ranks, array.shape, size), stacked, jnp.zeros_like(stacked))
    return TT(stacked, ranks, jnp.log(unit).astype(dtype), array.shape)


def _left(matrix: Array, size: int, method: str, key: Any) -> tuple[Array, Array]:
    """(orthonormal columns [rows, size], singular values)."""
    rows, columns = matrix.shape
    if method == "gram" and rows <= columns:
        values, vectors = eigh(matmul(matrix, matrix.conj().T))
        return vectors[:, ::-1][:, :size], jnp.sqrt(jnp.maximum(values[::-1], jnp.zeros_like(values)))
    if method == "randomized" and size + _OVERSAMPLING < min(rows, columns):
        probes = jax.random.normal(key, (columns, size + _OVERSAMPLING), matrix.dtype)
        basis = qr(matmul(matrix, probes)).orthogonal
        left, singular = _left(matmul(basis.conj().T, matrix), size, "exact", None)
        return matmul(basis, left), singular
    if rows < columns:
        # the triangular factor has the same left vectors
        matrix = qr(matrix.conj().T).triangular.conj().T
    left, singular, _ = svd(matrix)
    return left[:, :size], singular


@jax.jit
def _to_dense(tt: TT) -> Array:
    rest = tt.cores[0, :1, : tt.shape[0]].reshape(tt.shape[0], -1)
    for core, n in zip(tt.cores[1:], tt.shape[1:], strict=True):
        rest = matmul(rest, core[:, :n].reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
    return (rest[:, 0] * jnp.exp(tt.log_scale).astype(tt.dtype)).reshape(tt.shape)
