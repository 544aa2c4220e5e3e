"""Operators on vectors of 2^q numbers, as trains of q modes of size 2, the most significant bit first."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.tensor_train.matrices import TTMatrix
from jaxnm.tensor_train.quantics.digits import check_bits

Boundary = Literal["dirichlet", "periodic"]
BOUNDARIES = ("dirichlet", "periodic")
_NODES = 22
"""Chebyshev nodes on which exp(-2 pi i x y), with x and y in [0, 1], is known to the accuracy of float64."""


def shift(bits: int, by: int = 1, *, periodic: bool = False, dtype: Any = None) -> TTMatrix:
    """The operator that moves entry i to i + by, of rank 2.

    Args:
      bits: q (static).
      by: how far, of either sign (static), less than 2^q.
      periodic: whether what leaves at one end enters at the other; zeros enter otherwise (static).
      dtype: floating; the default one of JAX unless it is given.

    Returns:
      `TTMatrix` on the shape (2,) * q.

    Raises:
      ValueError: bits < 1, a shift of 2^q or more. TypeError: a shift that is no Python integer.

    Cost: q small operations. Not differentiable.
    Source: V. Kazeev, B. Khoromskij, E. Tyrtyshnikov, SIAM J. Sci. Comput. 35 (2013), A1511-A1536.

    Example:
      >>> shift(30).ranks.tolist()[:4]
      [1, 2, 2, 2]
    """
    check_bits("shift", bits)
    if isinstance(by, bool) or not isinstance(by, int | np.integer):
        got = f"of type {type(by).__name__}"
        arguments.refuse("shift", "by", got, "a Python int (it is static)", "pass an int", error=TypeError)
    by = int(by)
    if abs(by) >= 1 << bits:
        arguments.refuse("shift", "by", repr(by), f"less than 2^{bits} in size", "nothing would remain")
    digits = [(abs(by) >> place) & 1 for place in range(bits - 1, -1, -1)]
    cores = []
    for digit in digits:
        core = np.zeros((2, 2, 2, 2))
        for carried in range(2):
            for j in range(2):
                total = j + digit + carried
                core[total // 2, total % 2, j, carried] = 1
        cores.append(core)
    arguments.check_flag("shift", "periodic", periodic)
    begin = np.ones(2) if periodic else np.array([1.0, 0.0])
    cores = _closed(cores, begin, np.array([1.0, 0.0]))
    cores = [core if by >= 0 else core.swapaxes(1, 2) for core in cores]
    return _operator(_reachable(cores), checked_dtype("shift", dtype), 0.0)


def laplacian(
    bits: int, *, spacing: Float[ArrayLike, ""] = 1.0, boundary: Boundary = "dirichlet", dtype: Any = None
) -> TTMatrix:
    """The negative second difference, tridiagonal with (-1, 2, -1) / spacing^2, of rank 3.

    Args:
      bits: q (static).
      spacing: between neighbours.
      boundary: static. "dirichlet": zero at the positions -1 and 2^q. "periodic": the ends are neighbours.
      dtype: floating; that of spacing, or the default one of JAX, unless it is given.

    Returns:
      `TTMatrix` on the shape (2,) * q; positive definite with "dirichlet". The factor spacing^-2 is in its log_scale.

    Raises:
      ValueError: bits < 1, spacing <= 0, another boundary.

    Cost: q small operations. Differentiable in spacing.
    Source: V. Kazeev, B. Khoromskij, SIAM J. Matrix Anal. Appl. 33 (2012), 742-758.

    Example:
      >>> laplacian(30).ranks.tolist()[:4]
      [1, 3, 3, 3]
    """
    name = "laplacian"
    check_bits(name, bits)
    if boundary not in BOUNDARIES:
        arguments.refuse(name, "boundary", repr(boundary), f"one of {BOUNDARIES}", "use 'dirichlet'")
    dtype, log_scale = _log_factor(name, spacing, dtype, -2)
    same, up, down = np.eye(2), np.eye(2, k=-1), np.eye(2, k=1)
    # the states: the same index, and one that is larger or smaller by one when all bits behind wrap around
    core = np.zeros((3, 2, 2, 3))
    core[0, :, :, 0], core[0, :, :, 1], core[0, :, :, 2] = same, up, down
    core[1, :, :, 1], core[2, :, :, 2] = down, up
    begin = np.array([1.0, 0.0, 0.0]) if boundary == "dirichlet" else np.ones(3)
    cores = _closed([core] * bits, begin, np.array([2.0, -1.0, -1.0]))
    if boundary == "periodic" and bits > 1:
        # both neighbours have the other first bit
        cores[1] = np.stack([cores[1][0], cores[1][1] + cores[1][2]])
        cores[0] = cores[0][..., :2]
    return _operator(cores, dtype, log_scale)


def inverse_laplacian(bits: int, *, spacing: Float[ArrayLike, ""] = 1.0, dtype: Any = None) -> TTMatrix:
    """The inverse of `laplacian` with "dirichlet", of the ranks 4, 5, ..., 5, 4.

    Entry (i, j) is spacing^2 (min(i, j) + 1 - (i + 1)(j + 1) / (2^q + 1)).

    Args:
      bits: q (static).
      spacing: between neighbours.
      dtype: floating; that of spacing, or the default one of JAX, unless it is given.

    Returns:
      `TTMatrix` on the shape (2,) * q; its entries are accurate to some machine epsilons of the largest one. The factor
      2^q spacing^2 is in its log_scale.

    Raises:
      ValueError: bits < 1, spacing <= 0.

    Cost: q small operations. Differentiable in spacing.
    Source: V. Kazeev, B. Khoromskij, SIAM J. Matrix Anal. Appl. 33 (2012), 742-758, for the ranks.

    Example:
      >>> inverse_laplacian(6).ranks.tolist()
      [1, 4, 5, 5, 5, 4, 1]
    """
    name = "inverse_laplacian"
    check_bits(name, bits)
    dtype, log_scale = _log_factor(name, spacing, dtype, 2, bits)
    # with u and v the parts of i and j that are still to come, in [0, 1), the states are 1, u, v, u v and min(u, v)
    core = np.zeros((5, 2, 2, 5))
    core[0, :, :, 0] = 1
    for i in range(2):
        for j in range(2):
            core[1, i, j, :2] = i / 2, 1 / 2
            core[2, i, j, [0, 2]] = j / 2, 1 / 2
            core[3, i, j, :4] = i * j / 4, j / 4, i / 4, 1 / 4
            core[4, i, j, [0, 4] if i == j else [0, 1 if i < j else 2]] = (i if i == j else 0) / 2, 1 / 2
    size = 2.0**-bits
    begin = np.array([size, -size, -size, -1.0, 1 + size]) / (1 + size)
    cores = _closed([core] * bits, begin, np.array([1.0, 0, 0, 0, 0]))
    if bits > 1:
        # on one bit min(u, v) is 2 u v
        cores[-2] = cores[-2] @ np.array([*np.eye(4), [0, 0, 0, 2]])
        cores[-1] = cores[-1][:4]
    if bits > 2:
        # of pairs of first bits there are four
        cores[1] = np.tensordot(cores[0].reshape(4, 5), cores[1], 1)
        cores[0] = np.eye(4).reshape(1, 2, 2, 4)
    return _operator(cores, dtype, log_scale)


def fourier(bits: int, *, eps: float = 1e-10, inverse: bool = False, dtype: Any = None) -> TTMatrix:
    """The unitary discrete Fourier transform, whose output has its bits in the opposite order.

    The entry of frequency k and index i is exp(-2 pi sqrt(-1) k i / 2^q) / 2^(q / 2). Mode m of the result is the
    bit of k that has the value 2^m, so that ranks are bounded for all q; `reverse_bits` brings it into order.

    Args:
      bits: q (static).
      eps: relative error in the Frobenius norm (static); for many bits ranks are 8 at 1e-6 and 11 at 1e-10.
      inverse: the inverse instead, which takes frequencies in the order in which the transform leaves them (static).
      dtype: complex; the default one of JAX unless it is given.

    Returns:
      `TTMatrix` on the shape (2,) * q, complex.

    Raises:
      ValueError: bits < 1, an eps that is not between 0 and 1.

    Cost: q factorizations of [88, 22] matrices on the host, while tracing. Not differentiable.
    Source: J. Chen, M. Lindsey, Direct interpolative construction of the discrete Fourier transform as a matrix product
    operator, arXiv:2404.03182.

    Example:
      >>> fourier(30).max_rank
      11
    """
    name = "fourier"
    check_bits(name, bits)
    inside = arguments.is_number(eps) and 0 <= eps < 1
    if not inside:
        arguments.refuse(name, "eps", repr(eps), "a Python number from 0 to 1", "it is static")
    dtype = jnp.dtype(checked_dtype(name, arguments.complex_dtype(jnp.result_type(float)) if dtype is None else dtype))
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        arguments.refuse(name, "dtype", str(dtype), "a complex one", "the operator is complex", error=TypeError)
    nodes = chebyshev_nodes(_NODES)
    # x is the part of the frequency so far, over its range: every bit k of it takes x to (x + k) / 2
    core = np.zeros((_NODES, 2, 2, _NODES), complex)
    for k in range(2):
        moved = (nodes + k) / 2
        for i in range(2):
            core[:, k, i] = np.exp(-2j * np.pi * i * moved)[:, None] * lagrange(nodes, moved) / 2
    cores = _closed([core] * bits, lagrange(nodes, np.zeros(1))[0], np.ones(_NODES))
    cores = _rounded(cores, eps)
    arguments.check_flag(name, "inverse", inverse)
    if inverse:
        cores = [core.conj().swapaxes(1, 2) for core in cores]
    return _operator(cores, dtype, bits * math.log(2) / 2)


# ------------------------------------------------------------------------------------------------ parts of operators


def _closed(cores: Sequence[np.ndarray], begin: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Cores whose first and last rank are one, by a row before and a column behind."""
    first = np.tensordot(begin[None], cores[0], 1)
    cores = [first, *cores[1:]]
    return [*cores[:-1], np.tensordot(cores[-1], end[:, None], 1)]


def _reachable(cores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cores without the states to or from which nothing leads."""
    cores = list(cores)
    for k in [*range(len(cores) - 1), *range(len(cores) - 2, -1, -1)]:
        kept = np.any(cores[k] != 0, (0, 1, 2)) & np.any(cores[k + 1] != 0, (1, 2, 3))
        cores[k], cores[k + 1] = cores[k][..., kept], cores[k + 1][kept]
    return cores


def _rounded(cores: Sequence[np.ndarray], eps: float) -> list[np.ndarray]:
    """Cores of smaller ranks, by QR from the right and SVD from the left; they keep their norm, which is near one."""
    cores = list(cores)
    for k in range(len(cores) - 1, 0, -1):
        rank = cores[k].shape[0]
        basis, triangular = np.linalg.qr(cores[k].reshape(rank, -1).T)
        cores[k] = basis.T.reshape(-1, 2, 2, cores[k].shape[3])
        cores[k - 1] = np.tensordot(cores[k - 1], triangular.T, 1)
    limit = max(eps / math.sqrt(max(len(cores) - 1, 1)), 1e-15) * np.linalg.norm(cores[0])
    for k in range(len(cores) - 1):
        left, singular, right = np.linalg.svd(cores[k].reshape(-1, cores[k].shape[3]), full_matrices=False)
        tails = np.sqrt(np.cumsum(singular[::-1] ** 2)[::-1])
        kept = max(int(np.sum(tails > limit)), 1)
        cores[k] = left[:, :kept].reshape(-1, 2, 2, kept)
        cores[k + 1] = np.tensordot(singular[:kept, None] * right[:kept], cores[k + 1], 1)
    return cores


def _operator(cores: Sequence[np.ndarray], dtype: Any, log_scale: Any) -> TTMatrix:
    ranks = [1, *(core.shape[3] for core in cores)]
    size, bits = max(ranks), len(cores)
    padded = np.zeros((bits, size, 2, 2, size), cores[0].dtype)
    for k, core in enumerate(cores):
        padded[k, : ranks[k], :, :, : ranks[k + 1]] = core
    scale = arguments.constant(log_scale, jnp.finfo(dtype).dtype)
    modes = (2,) * bits
    return TTMatrix(
        arguments.constant(padded, dtype), arguments.constant(np.asarray(ranks), jnp.int32), scale, modes, modes
    )


# ------------------------------------------------------------------------------------------------ for functions too


def chebyshev_nodes(count: int) -> np.ndarray:
    """Those of the first kind, on [0, 1]."""
    return (1 + np.cos(np.pi * (2 * np.arange(count) + 1) / (2 * count))) / 2


def lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[m, p + 1], the cardinal polynomials of the nodes at m points."""
    apart = nodes[:, None] - nodes[None] + np.eye(nodes.size)
    ratios = (at[:, None, None] - nodes[None, None]) / apart[None]
    ratios[:, np.arange(nodes.size), np.arange(nodes.size)] = 1
    return np.prod(ratios, 2)


def checked_dtype(function: str, dtype: Any) -> Any:
    """A floating dtype, the default one for None."""
    return arguments.float_dtype(function, float if dtype is None else dtype, real=False)


def _log_factor(function: str, spacing: Any, dtype: Any, power: int, binary: int = 0) -> tuple[Any, Array]:
    """(the dtype of an operator, the logarithm of 2^binary spacing^power)."""
    arguments.check_number(function, "spacing", spacing, "> 0", lambda value: value > 0, "it is a distance")
    (spacing,) = arguments.to_arrays(function, spacing=spacing)
    arguments.check_real(function, "spacing", spacing)
    arguments.check_shape(function, "spacing", spacing, "a scalar", lambda shape: shape == (), "use jax.vmap")
    return spacing.dtype if dtype is None else checked_dtype(function, dtype), _logarithm(spacing, power, binary)


@partial(jax.jit, static_argnums=(1, 2))
def _logarithm(spacing: Array, power: int, binary: int) -> Array:
    return power * jnp.log(spacing) + binary * math.log(2)
