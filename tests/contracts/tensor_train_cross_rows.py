"""The rows of cross approximation: what f depends on is an argument, its indices are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import tensor_train
from jaxnm.arguments import constant
from jaxnm.tensor_train import TT
from tests.contracts.row import Row, law, number, of

_KEY = jax.random.key(0)
_BOX = "the function of this row has no unit; from_function_on, which does the work, has its law"
_UNIT_CUBE = ((0.0, 1.0),) * 3
_POINTS = ((0.1, 0.7, 0.4), (0.9, 0.2, 0.5))


def _tol(dtype: Any) -> float:
    return 100 * float(jnp.finfo(dtype).eps)


def _entry(index: jax.Array, a: jax.Array) -> jax.Array:
    return 1 / (1 + a * jnp.sum(index.astype(a.dtype)))


def _value(point: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.exp(-a * jnp.sum(point)) + point[0]


def _options(a: jax.Array) -> dict[str, Any]:
    return {"max_rank": 3, "tol": _tol(a.dtype), "key": _KEY, "args": (a,), "max_sweeps": 2}


def _of_index(a: jax.Array, unit: jax.Array) -> jax.Array:
    f = lambda index, a, unit: unit * _entry(index, a)
    return tensor_train.to_dense(tensor_train.from_function(f, (3, 4, 2), **_options(a) | {"args": (a, unit)}).tt)


def _of_point(a: jax.Array, unit: jax.Array) -> jax.Array:
    f = lambda point, a, unit: unit * _value(point, a)
    grids = [constant(np.linspace(0, 1, n), a.dtype) for n in (4, 3)]
    return tensor_train.to_dense(tensor_train.from_function_on(f, grids, **_options(a) | {"args": (a, unit)}).tt)


def _interpolated(a: jax.Array) -> jax.Array:
    result = tensor_train.chebyshev(_value, constant(_UNIT_CUBE, a.dtype), 2, **_options(a))
    return tensor_train.evaluate(result.interpolant, constant(_POINTS, a.dtype))


def _evaluated(a: jax.Array) -> jax.Array:
    cores = a * constant(np.ones((3, 1, 4, 1)), a.dtype)
    coefficients = TT(cores, constant(np.ones(4), jnp.int32), constant(0, a.dtype), (4,) * 3)
    train = tensor_train.ChebyshevTrain(coefficients, constant(_UNIT_CUBE, a.dtype))
    return tensor_train.evaluate(train, constant(_POINTS, a.dtype))


TENSOR_TRAIN_CROSS_ROWS = [
    Row(
        "tensor_train.from_function",
        of(_of_index, number(0.7), number(1.3)),
        heavy=True,
        tolerance=1e-8,
        scaling=law(0, 1, result=1),
    ),
    Row(
        "tensor_train.from_function_on",
        of(_of_point, number(0.7), number(1.3)),
        heavy=True,
        tolerance=1e-8,
        scaling=law(0, 1, result=1),
    ),
    Row("tensor_train.chebyshev", of(_interpolated, number(0.7)), heavy=True, tolerance=1e-8, scaling=_BOX),
    # `a` is a factor of each of three cores
    Row("tensor_train.evaluate", of(_evaluated, number(0.7)), scaling=law(1, result=3)),
    Row(
        "tensor_train.from_black_box",
        of(lambda x: None, number(1.0)),
        "asks a function on the host; see tests/tensor_train/test_cross.py",
        "asks a function on the host; see tests/tensor_train/test_cross.py",
        order=None,
        scaling="asks a function on the host; its kernel is that of from_function",
    ),
]
