"""The rows of quantics, of sampling, of the extremes of a train and of its files."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnm import arguments, tensor_train
from jaxnm.tensor_train import TT, quantics
from tests.contracts.row import Build, Row, Shift, law, matrix, number, of
from tests.contracts.tensor_train_rows import dense

_HOST = "reads or writes a file, outside of any transformation; see tests/tensor_train"
_BITS = "its results are integers"
_DRAWN = "samples are drawn; log_prob is differentiable, as its row shows"
_KEY = jax.random.key(0)
_INDICES = jnp.asarray([[0, 1, 0], [2, 3, 1]], jnp.int32)
_GIVEN = jnp.asarray([-1, 3, -1], jnp.int32)
_DIGITS = _INDICES % 2
_SIZES = ((1, 3, 2), (2, 4, 2), (2, 2, 1))


def _cores(dtype: Any) -> list[jax.Array]:
    return [jnp.abs(matrix(dtype, *size, seed=seed)) for seed, size in enumerate(_SIZES)]


def _train(cores: list[jax.Array]) -> TT:
    return tensor_train.from_cores(cores, max_rank=3)


def _sampled(cores: list[jax.Array]) -> list[Any]:
    return [
        tensor_train.sample(_KEY, _train(cores), 4),
        tensor_train.sample(_KEY, _train(cores), 4, kind="square", given=_GIVEN),
    ]


def _probabilities(cores: list[jax.Array]) -> list[jax.Array]:
    return [tensor_train.log_prob(_train(cores), _INDICES, kind=kind) for kind in ("nonnegative", "square")]


def _function(name: str) -> Callable[..., Any]:
    return lambda w, x: getattr(quantics, name)(w, 4, start=x, spacing=x)


def _operator(name: str) -> Callable[..., Any]:
    return lambda spacing: getattr(quantics, name)(4, spacing=spacing)


def _at_five(name: str) -> Callable[..., Any]:
    return lambda dtype: getattr(quantics, name)(5, 4, dtype=dtype)


def _of_dtype(make: Callable[[Any], Any]) -> Build:
    """A row of something that is made of a dtype alone, times a factor."""

    def multiply(dtype: Any, x: jax.Array) -> Any:
        made = make(dtype)
        return made.replace(cores=made.cores * x.astype(made.dtype))

    return lambda dtype: (lambda x: multiply(dtype, x), (jnp.asarray(0.7, dtype),))


TENSOR_TRAIN_QUANTICS_ROWS = [
    Row("tensor_train.sample", of(_sampled, _cores), _DRAWN, order=0, heavy=True, scaling=law(1, result=0)),
    Row("tensor_train.log_prob", of(_probabilities, _cores), heavy=True, scaling=law(1, result=0)),
    *(
        Row(
            f"tensor_train.{name}",
            of(lambda a, name=name: getattr(tensor_train, name)(_train(a), beam=3), _cores),
            heavy=True,
            scaling=law(1, result={".value": 3}),
        )
        for name in ("argmax", "argmin")
    ),
    *(Row(f"tensor_train.{name}", of(lambda x: None, number(1.0)), _HOST, _HOST) for name in ("save", "load")),
    *(
        Row(
            f"tensor_train.quantics.{name}",
            of(lambda x, call=call: call(), number(1.0)),
            _BITS,
            order=None,
            scaling="its arguments and results are integers",
        )
        for name, call in (
            ("encode", lambda: quantics.encode(_INDICES, 3)),
            ("decode", lambda: quantics.decode(_INDICES)),
        )
    ),
    Row(
        "tensor_train.quantics.points",
        of(lambda x, h: quantics.points(_DIGITS, start=x, spacing=h), number(0.3), number(0.1)),
        scaling=law(1, 1, result=1),
    ),
    Row(
        "tensor_train.quantics.reverse_bits",
        of(lambda a: quantics.reverse_bits(_train(a)), _cores),
        scaling=law(1, result=1),
    ),
    *(
        Row(
            f"tensor_train.quantics.{name}",
            of(_function(name), number(1.3), number(0.2)),
            scaling=law(-1, 1, result=0),
        )
        for name in ("exp", "sin", "cos")
    ),
    Row(
        "tensor_train.quantics.polynomial",
        of(lambda c, x: dense(quantics.polynomial(c, 4, start=x)), lambda dtype: matrix(dtype, 3), number(0.2)),
        scaling=law(1, 0, result=1),
    ),
    Row(
        "tensor_train.quantics.interpolant",
        of(
            lambda w, x: quantics.interpolant(lambda y: jnp.exp(w * y), 4, degree=2, start=x, spacing=x),
            *[number(0.4)] * 2,
        ),
        scaling=law(-1, 1, result=0),
    ),
    *(
        Row(f"tensor_train.quantics.{name}", _of_dtype(make), scaling=law(1, result=1))
        for name, make in (
            ("step", _at_five("step")),
            ("delta", _at_five("delta")),
            ("shift", lambda dtype: quantics.shift(4, 3, dtype=dtype)),
        )
    ),
    *(
        Row(
            f"tensor_train.quantics.{name}",
            of(_operator(name), number(0.25)),
            scaling=law(1, result={".log_scale": Shift(times)}),
        )
        for name, times in (("laplacian", -2.0), ("inverse_laplacian", 2.0))
    ),
    Row(
        "tensor_train.quantics.fourier",
        _of_dtype(lambda dtype: quantics.fourier(4, dtype=arguments.complex_dtype(dtype))),
        scaling=law(1, result={".cores": 1}),
    ),
]
