"""The rows of linear systems in train form: solutions as arrays, which do not depend on the signs of bases."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnm import linalg
from jaxnm.tensor_train import from_cores, to_dense
from jaxnm.tensor_train.laplace import (
    kronecker_sum,
    laplace_inverse,
    laplace_inverse_factors,
    laplace_inverse_matrix,
)
from jaxnm.tensor_train.solve import solve
from tests.contracts.row import Row, law, matrix, number, of
from tests.contracts.tensor_train_rows import dense

_KEY = jax.random.key(0)
_SIZES = (3, 4, 2)


def _blocks(dtype: Any) -> list[jax.Array]:
    """Symmetric, with eigenvalues from two to eight that are apart."""
    shift = lambda n: jnp.diag(jnp.linspace(3.0, 7.0, n, dtype=dtype))
    noise = [0.2 * matrix(dtype, n, n, seed=n) for n in _SIZES]
    return [shift(n) + other + other.T for n, other in zip(_SIZES, noise, strict=True)]


def _rows(dtype: Any) -> list[jax.Array]:
    return [matrix(dtype, n, seed=n + 10) for n in _SIZES]


def _cores(dtype: Any) -> list[jax.Array]:
    sizes = zip((1, 2, 2), _SIZES, (2, 2, 1), strict=True)
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(sizes, 60)]


def _solved(blocks: list[jax.Array], cores: list[jax.Array]) -> Any:
    tol = 1e-4 if blocks[0].dtype == jnp.float32 else 1e-10
    result = solve(kronecker_sum(blocks), from_cores(cores), max_rank=6, tol=tol, key=_KEY)
    return to_dense(result.tt), result.status


def _inverted(blocks: list[jax.Array], cores: list[jax.Array]) -> jax.Array:
    return to_dense(laplace_inverse(from_cores(cores), matrices=blocks, eps=1e-3, condition=10.0))


def _summed(rows: list[jax.Array], spacing: jax.Array) -> jax.Array:
    """Of the factors alone, where the sum is cut into products is no function of the spacing."""
    factors = laplace_inverse_factors(rows, spacing=spacing, eps=1e-9 if spacing.dtype == jnp.float64 else 1e-2)
    return linalg.einsum("ta,tb,tc->abc", *factors)


def _applied(cores: list[jax.Array], spacing: jax.Array) -> jax.Array:
    return to_dense(laplace_inverse_matrix(_SIZES, spacing=spacing, eps=1e-2) @ from_cores(cores))


TENSOR_TRAIN_SOLVE_ROWS = [
    Row(
        "tensor_train.solve",
        of(_solved, _blocks, _cores),
        "a system has one derivative more than its train; the guide shows the adjoint",
        order=0,
        heavy=True,
        tolerance=1e-8,
        scaling=law(1, 0, result=(-1, 0)) + law(0, 1, result=(3, 0)),
    ),
    Row(
        "tensor_train.kronecker_sum",
        of(lambda blocks: dense(kronecker_sum(blocks)), _blocks),
        scaling=law(1, result=1),
    ),
    Row(
        "tensor_train.laplace_inverse",
        of(_inverted, _blocks, _cores),
        "once in matrices, whose eigenvalues may repeat",
        order=1,
        difference_tolerance=0.03,  # 30 eps
        scaling=law(1, 0, result=-1) + law(0, 1, result=3),
    ),
    Row(
        "tensor_train.laplace_inverse_factors",
        of(_summed, _rows, number(0.3)),
        scaling=law(1, 0, result=3) + law(0, 1, result=2),
    ),
    Row(
        "tensor_train.laplace_inverse_matrix",
        of(_applied, _cores, number(0.3)),
        difference_tolerance=0.3,  # 30 eps
        scaling=law(1, 0, result=3) + law(0, 1, result=2),
    ),
]
