"""The rows of jaxnm.tensor_train: cores are arguments, ranks are theirs, modes have different sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnm import tensor_train
from jaxnm.tensor_train import TT, TTMatrix
from tests.contracts.row import Row, matrix, number, of

_HOST = "ranks become shapes, outside of any transformation; see tests/tensor_train"
_KEY = jax.random.key(0)
_INDICES = jnp.asarray([[0, 1, 0], [2, 3, 1]], jnp.int32)
_SIZES = ((1, 3, 2), (2, 4, 2), (2, 2, 1))


def _cores(dtype: Any) -> list[jax.Array]:
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(_SIZES)]


def _others(dtype: Any) -> list[jax.Array]:
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(((1, 3, 1), (1, 4, 2), (2, 2, 1)), 10)]


def _operator(dtype: Any) -> list[jax.Array]:
    sizes = ((1, 2, 3, 2), (2, 2, 4, 1), (1, 3, 2, 1))
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(sizes, 20)]


def _second_operator(dtype: Any) -> list[jax.Array]:
    sizes = ((1, 3, 2, 1), (1, 4, 1, 2), (2, 2, 2, 1))
    return [matrix(dtype, *size, seed=seed) for seed, size in enumerate(sizes, 30)]


def _weights(dtype: Any) -> list[jax.Array]:
    return [matrix(dtype, size[1], seed=seed) for seed, size in enumerate(_SIZES, 40)]


def _array(dtype: Any) -> jax.Array:
    return matrix(dtype, 3, 4, 2)


def _train(cores: list[jax.Array]) -> TT:
    return tensor_train.from_cores(cores, max_rank=3)


def _two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(_train(a), tensor_train.from_cores(b))


def _rounded(method: Any, max_rank: int) -> Callable[..., Any]:
    """The array, which unlike the cores does not depend on the signs of bases."""

    def run(a: list[jax.Array], b: list[jax.Array]) -> Any:
        total = tensor_train.add(_train(a), tensor_train.from_cores(b))
        rounded, error = tensor_train.round(total, max_rank=max_rank, method=method, key=_KEY, return_error=True)
        # the error of a rounding to full rank is rounding itself
        return tensor_train.to_dense(rounded), rounded.ranks, error if max_rank == 1 else jnp.zeros_like(error)

    return run


def _summed(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    trains = [_train(a), tensor_train.from_cores(b), _train(a)]
    return tensor_train.to_dense(tensor_train.sum_many(trains, max_rank=4, key=_KEY))


def _of_array(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    tt = tensor_train.from_dense(array, max_rank=2)
    return tensor_train.to_dense(tt), tt.ranks


def _operated(cores: list[jax.Array]) -> TTMatrix:
    return tensor_train.matrix_from_cores(cores)


TENSOR_TRAIN_ROWS = [
    Row("tensor_train.from_cores", of(_train, _cores)),
    *(
        Row(f"tensor_train.{name}", of(lambda x: None, number(1.0)), _HOST, _HOST)
        for name in ("to_cores", "matrix_to_cores")
    ),
    *(
        Row(f"tensor_train.{name}", of(_two(getattr(tensor_train, name)), _cores, _others))
        for name in ("add", "subtract", "hadamard", "dot", "distance")
    ),
    Row("tensor_train.scale", of(lambda a, x: tensor_train.scale(_train(a), x), _cores, number(0.7))),
    Row("tensor_train.gather", of(lambda a: tensor_train.gather(_train(a), _INDICES), _cores)),
    Row("tensor_train.norm", of(lambda a: tensor_train.norm(_train(a)), _cores)),
    Row("tensor_train.integrate", of(lambda a, w: tensor_train.integrate(_train(a), w), _cores, _weights)),
    Row("tensor_train.marginal", of(lambda a, w: tensor_train.marginal(_train(a), [0, 2], w), _cores, _weights)),
    Row("tensor_train.round", of(_rounded("qr_svd", 1), _cores, _others)),
    Row("tensor_train.from_dense", of(_of_array, _array)),
    Row("tensor_train.to_dense", of(lambda a: tensor_train.to_dense(_train(a)), _cores)),
    Row("tensor_train.matrix_from_cores", of(_operated, _operator)),
    Row(
        "tensor_train.matvec", of(lambda m, a: tensor_train.matvec(_operated(m), _train(a)), _operator, _cores)
    ),
    Row(
        "tensor_train.matmat",
        of(lambda m, k: tensor_train.matmat(_operated(m), _operated(k)), _operator, _second_operator),
    ),
    Row(
        "tensor_train.sum_many",
        of(_summed, _cores, _others),
        "its subspaces are drawn; round by the other methods is, as its row shows",
        heavy=True,
    ),
]  # fmt: skip

# rounding by the other method, and at full rank; randomized has its row in sum_many
TENSOR_TRAIN_LARGER = [
    Row("tensor_train.round", of(_rounded("gram", 1), _cores, _others), heavy=True, tolerance=1e-9),
    Row("tensor_train.round", of(_rounded("qr_svd", 4), _cores, _others), heavy=True),
]
