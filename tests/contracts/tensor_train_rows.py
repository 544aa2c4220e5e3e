"""The rows of jaxnm.tensor_train: cores are arguments, ranks are theirs, modes have different sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnm import tensor_train
from jaxnm.tensor_train import TT, TTMatrix
from tests.contracts.row import Row, law, matrix, number, of

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


def dense(result: Any) -> Any:
    """A train or an operator as an array: how a number is shared between cores and factor is nobody's promise."""
    if isinstance(result, TTMatrix):
        cores = result.cores.reshape(*result.cores.shape[:2], -1, result.max_rank)
        result = TT(cores, result.ranks, result.log_scale, (cores.shape[2],) * cores.shape[0])
    return tensor_train.to_dense(result) if isinstance(result, TT) else result


def _two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: dense(function(_train(a), tensor_train.from_cores(b)))


def _rounded(method: Any, max_rank: int) -> Callable[..., Any]:
    """The array, which unlike the cores does not depend on the signs of bases."""

    def run(a: list[jax.Array], b: list[jax.Array]) -> Any:
        total = tensor_train.add(_train(a), tensor_train.from_cores(b))
        rounded, error = tensor_train.round(total, max_rank=max_rank, method=method, key=_KEY, return_error=True)
        # the error of a rounding to full rank is rounding itself, and has no derivative
        return tensor_train.to_dense(rounded), rounded.ranks, error if max_rank == 1 else jax.lax.stop_gradient(error)

    return run


def _summed(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    trains = [_train(a), tensor_train.from_cores(b), _train(a)]
    return tensor_train.to_dense(tensor_train.sum_many(trains, max_rank=4, key=_KEY))


def _of_array(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    tt = tensor_train.from_dense(array, max_rank=2)
    return tensor_train.to_dense(tt), tt.ranks


def _operated(cores: list[jax.Array]) -> TTMatrix:
    return tensor_train.matrix_from_cores(cores)


_ONCE = "once, as it is in the ranks that were chosen"
_UNITS = {"add": 3, "subtract": 3, "hadamard": 6, "dot": 6, "distance": 3}

TENSOR_TRAIN_ROWS = [
    Row("tensor_train.from_cores", of(_train, _cores), scaling=law(1, result=1)),
    *(
        Row(f"tensor_train.{name}", of(lambda x: None, number(1.0)), _HOST, _HOST)
        for name in ("to_cores", "matrix_to_cores")
    ),
    *(
        Row(
            f"tensor_train.{name}",
            of(_two(getattr(tensor_train, name)), _cores, _others),
            scaling=law(1, 1, result=power),
        )
        for name, power in _UNITS.items()
    ),
    Row(
        "tensor_train.scale",
        of(lambda a, x: dense(tensor_train.scale(_train(a), x)), _cores, number(0.7)),
        scaling=law(1, 1, result=4),
    ),
    Row(
        "tensor_train.gather", of(lambda a: tensor_train.gather(_train(a), _INDICES), _cores), scaling=law(1, result=3)
    ),
    Row("tensor_train.norm", of(lambda a: tensor_train.norm(_train(a)), _cores), scaling=law(1, result=3)),
    Row(
        "tensor_train.integrate",
        of(lambda a, w: tensor_train.integrate(_train(a), w), _cores, _weights),
        scaling=law(1, 1, result=6),
    ),
    Row(
        "tensor_train.marginal",
        of(lambda a, w: dense(tensor_train.marginal(_train(a), [0, 2], w)), _cores, _weights),
        scaling=law(1, 1, result=4),
    ),
    Row(
        "tensor_train.round",
        of(_rounded("qr_svd", 1), _cores, _others),
        _ONCE,
        order=1,
        constants=("[2]",),
        scaling=law(1, 1, result=(3, 0, 3)),
    ),
    Row("tensor_train.from_dense", of(_of_array, _array), _ONCE, order=1, scaling=law(1, result=1)),
    Row("tensor_train.to_dense", of(lambda a: dense(_train(a)), _cores), scaling=law(1, result=3)),
    Row("tensor_train.matrix_from_cores", of(_operated, _operator), scaling=law(1, result=1)),
    Row(
        "tensor_train.matvec",
        of(lambda m, a: dense(tensor_train.matvec(_operated(m), _train(a))), _operator, _cores),
        scaling=law(1, 1, result=6),
    ),
    Row(
        "tensor_train.matmat",
        of(lambda m, k: dense(tensor_train.matmat(_operated(m), _operated(k))), _operator, _second_operator),
        scaling=law(1, 1, result=6),
    ),
    Row(
        "tensor_train.sum_many",
        of(_summed, _cores, _others),
        "its subspaces are drawn; round by the other methods is, as its row shows",
        order=0,
        heavy=True,
        scaling=law(1, 1, result=3),
    ),
]

# rounding by the other method, and at full rank; randomized has its row in sum_many
TENSOR_TRAIN_LARGER = [
    Row(
        "tensor_train.round",
        of(_rounded("gram", 1), _cores, _others),
        _ONCE,
        order=1,
        constants=("[2]",),
        heavy=True,
        tolerance=1e-9,
        scaling=law(1, 1, result=(3, 0, 3)),
    ),
    Row(
        "tensor_train.round",
        of(_rounded("qr_svd", 4), _cores, _others),
        _ONCE,
        order=1,
        heavy=True,
        # nothing is dropped at full rank
        rounding=("[2]",),
        scaling=law(1, 1, result=(3, 0, 3)),
    ),
]
