"""Operators in train form, their products with trains, and sums of many trains."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int32, Key

from jaxnm import arguments
from jaxnm.tensor_train.rounding import Method, round
from jaxnm.tensor_train.scaling import converted_scale, shifted_scale, summed_scales
from jaxnm.tensor_train.trains import TT, add, check_same_shape, check_train, from_cores, product_cores, with_scale


@flax.struct.dataclass
class TTMatrix:
    """A linear map between trains; entry (i, j) is the product of the matrices cores[k, :, i_k, j_k, :]."""

    cores: Inexact[Array, "d R m n R"]
    """Zero beyond ranks and mode sizes, as those of `TT`."""
    ranks: Int32[Array, "d+1"]
    log_scale: Float[Array, ""]
    rows: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """The shape of what comes out."""
    columns: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """The shape of what goes in."""

    @property
    def max_rank(self) -> int:
        """R, which no rank exceeds."""
        return self.cores.shape[-1]

    @property
    def dtype(self) -> Any:
        """Of the cores."""
        return self.cores.dtype

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, TT):
            return matvec(self, other)
        return matmat(self, other) if isinstance(other, TTMatrix) else NotImplemented


def matrix_from_cores(cores: Sequence[ArrayLike], *, max_rank: int | None = None) -> TTMatrix:
    """The operator of cores [r, m, n, r'].

    Args:
      cores: one array a mode, of a common dtype; first and last rank are one, neighbours agree.
      max_rank: R of the result (static); the largest rank by default.

    Returns:
      `TTMatrix` with the same numbers.

    Raises:
      ValueError: as `from_cores`. TypeError: integers.

    Cost: a copy. Differentiable.

    Example:
      >>> matrix_from_cores([jnp.eye(3)[None, :, :, None]] * 4).rows
      (3, 3, 3, 3)
    """
    name = "matrix_from_cores"
    arguments.check_list(name, "cores", cores, "one core a mode")
    arrays = arguments.to_arrays(name, **{f"cores[{k}]": core for k, core in enumerate(cores)})
    for k, core in enumerate(arrays):
        condition = lambda shape: len(shape) == 4 and min(shape) >= 1
        arguments.check_shape(name, f"cores[{k}]", core, "[r, m, n, r'], none of them 0", condition)
    rows, columns = (tuple(core.shape[axis] for core in arrays) for axis in (1, 2))
    m, n = max(rows, default=1), max(columns, default=1)
    flat = from_cores(_flat(arrays, m, n), max_rank=max_rank)
    size = flat.max_rank
    return TTMatrix(flat.cores.reshape(-1, size, m, n, size), flat.ranks, flat.log_scale, rows, columns)


@jax.jit(static_argnums=(1, 2))
def _flat(arrays: list[Array], m: int, n: int) -> list[Array]:
    """Cores [r, m n, r'] of a train."""
    padded = [jnp.pad(core, [(0, 0), (0, m - core.shape[1]), (0, n - core.shape[2]), (0, 0)]) for core in arrays]
    return [core.reshape(core.shape[0], m * n, -1) for core in padded]


def matrix_to_cores(matrix: TTMatrix) -> list[Inexact[Array, "r m n r'"]]:
    """The cores of an operator at their true ranks, for other packages.

    Args:
      matrix: not traced.

    Returns:
      d arrays [r, m, n, r'], times exp(log_scale) as by `to_cores`.

    Raises:
      ValueError: under `jit`. TypeError: no operator.

    Cost: a copy. Differentiable.

    Example:
      >>> [core.shape for core in matrix_to_cores(matrix_from_cores([jnp.eye(3)[None, :, :, None]] * 2))]
      [(1, 3, 3, 1), (1, 3, 3, 1)]
    """
    _check_matrix("matrix_to_cores", matrix)
    if isinstance(matrix.ranks, jax.core.Tracer):
        arguments.refuse("matrix_to_cores", "matrix", "traced", "known ranks", "call it outside of jit")
    ranks = np.asarray(matrix.ranks).tolist()
    sizes = zip(matrix.rows, matrix.columns, strict=True)
    cores = [matrix.cores[k, : ranks[k], :m, :n, : ranks[k + 1]] for k, (m, n) in enumerate(sizes)]
    return with_scale(cores, matrix.log_scale)


def matvec(matrix: TTMatrix, tt: TT) -> TT:
    """An operator applied to a train; its ranks are the products of theirs.

    Args:
      matrix: of any ranks.
      tt: of the shape of the columns of matrix.

    Returns:
      `TT` of the shape of the rows of matrix, with max_rank R_matrix R_tt; see `round`.

    Raises:
      ValueError: other shapes. TypeError: no operator, no train.

    Cost: d m n (R_matrix R_tt)^2 multiplications. Differentiable.

    Example:
      >>> identity = matrix_from_cores([jnp.eye(3)[None, :, :, None]] * 2)
      >>> (identity @ from_cores([jnp.ones((1, 3, 1))] * 2)).shape
      (3, 3)
    """
    _check_matrix("matvec", matrix)
    check_train("matvec", tt=tt)
    if matrix.columns != tt.shape:
        got = f"of shape {tt.shape}"
        expected = f"{matrix.columns}, the columns of the matrix"
        arguments.refuse("matvec", "tt", got, expected, "give a train that the operator acts on")
    matrix_cores, cores = arguments.to_arrays("matvec", matrix=matrix.cores, tt=tt.cores)
    cores, ranks, log_scale = _product(
        replace(matrix, cores=matrix_cores), replace(tt, cores=cores), ("ij,rjk->rik", "j,rijk->rik")
    )
    return TT(cores, ranks, log_scale, matrix.rows)


def matmat(a: TTMatrix, b: TTMatrix) -> TTMatrix:
    """The product of two operators; its ranks are the products of theirs.

    Args:
      a: of any ranks.
      b: whose rows are the columns of a.

    Returns:
      `TTMatrix` with max_rank R_a R_b.

    Raises:
      ValueError: other shapes. TypeError: no operator.

    Cost: d m n p (R_a R_b)^2 multiplications. Differentiable.

    Example:
      >>> identity = matrix_from_cores([jnp.eye(3)[None, :, :, None]] * 2)
      >>> (identity @ identity).ranks.tolist()
      [1, 1, 1]
    """
    _check_matrix("matmat", a)
    _check_matrix("matmat", b)
    if a.columns != b.rows:
        expected = f"{a.columns}, the columns of a"
        arguments.refuse("matmat", "b", f"with rows {b.rows}", expected, "what comes out of b goes into a")
    first, second = arguments.to_arrays("matmat", a=a.cores, b=b.cores)
    cores, ranks, log_scale = _product(
        replace(a, cores=first), replace(b, cores=second), ("ij,rjlk->rilk", "jl,rijk->rilk")
    )
    return TTMatrix(cores, ranks, log_scale, a.rows, b.columns)


def sum_many(
    trains: Sequence[TT], *, max_rank: int, eps: Float[Array, ""] | float = 0.0, method: Method = "randomized",
    key: Key[Array, ""] | None = None,
) -> TT:  # fmt: skip
    """The sum of many trains, rounded once.

    Args:
      trains: of one shape, one or more.
      max_rank: as in `round`.
      eps: as in `round`.
      method: as in `round`; "randomized" needs no factorization of the sum of all ranks.
      key: as in `round`.

    Returns:
      `TT` with max_rank as given.

    Raises:
      ValueError: no train, different shapes, and as `round`. TypeError: something else than trains.

    Cost: as `round` of a train whose ranks are the sum of all. Differentiable as `round`.

    Example:
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> sum_many([ones] * 5, max_rank=2, key=jax.random.key(0)).ranks.tolist()
      [1, 1, 1, 1, 1]
    """
    arguments.check_list("sum_many", "trains", trains, "trains")
    for other in trains:
        check_same_shape("sum_many", trains[0], other)
    return round(reduce(add, trains), max_rank=max_rank, eps=eps, method=method, key=key)


def _check_matrix(function: str, matrix: Any) -> None:
    if not isinstance(matrix, TTMatrix):
        got = f"of type {type(matrix).__name__}"
        arguments.refuse(function, "matrix", got, "a TTMatrix", "see matrix_from_cores", error=TypeError)
    arguments.check_dtype(function, "matrix.cores", jnp.result_type(matrix.cores))


@jax.jit(static_argnums=2)
def _product(a: Any, b: Any, subscripts: tuple[str, str]) -> tuple[Array, Array, Array]:
    """Cores, ranks and log_scale of a product: a block of the larger ranks for every pair of the smaller ones."""
    if a.max_rank <= b.max_rank:
        cores, exponent = product_cores(a.cores, b.cores, b.ranks, subscripts[0])
    else:
        cores, exponent = product_cores(b.cores, a.cores, a.ranks, subscripts[1])
    log_scale = summed_scales(*(converted_scale(x.log_scale, cores.dtype) for x in (a, b)))
    return cores, a.ranks * b.ranks, shifted_scale(log_scale, exponent)
