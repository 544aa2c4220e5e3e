"""The rows of the optimizers on tensor trains: what they choose from is an argument, their indices are integers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import tensor_train
from jaxnm.arguments import constant
from tests.contracts.row import Row, law, matrix, number, of

_KEY = jax.random.key(0)
_SEARCH = "the best of a set of values: the index is an integer, and f is evaluated nowhere else"
_HOST = "an optimizer is three functions, not arrays; ask and tell are run by tests/tensor_train/test_optimizers.py"
_VALUES = law(1, result={"best_value": 1, "history": 1})
_NO_UNIT = "its grid is fixed, and the centre of the parabola is a point of it"
_DIGITS = jnp.asarray([[0, 1, 1, 0], [1, 1, 0, 1]], jnp.int32)
_SHAPE = (3, 4, 2)


def _table(dtype: Any) -> jax.Array:
    return matrix(dtype, *_SHAPE)


def _limits(dtype: Any) -> jax.Array:
    return matrix(dtype, 2)


def _entry(index: jax.Array, table: jax.Array) -> jax.Array:
    return table[tuple(index)]


def _square(x: jax.Array, centre: jax.Array) -> jax.Array:
    return jnp.sum((x - centre) ** 2)


def _protes(table: jax.Array) -> Any:
    return tensor_train.protes(_entry, _SHAPE, key=_KEY, budget=60, batch=20, elite=5, args=(table,))


def _ttopt(table: jax.Array, scale: jax.Array) -> Any:
    return tensor_train.ttopt(_entry, _SHAPE, key=_KEY, budget=200, rank=2, args=(table,), scale=scale)


def _with_gradients(centre: jax.Array) -> Any:
    grids = [constant(np.linspace(-1.0, 1.0, 9), centre.dtype)] * 2
    options = {"key": _KEY, "budget": 60, "batch": 20, "elite": 5, "descents": 2, "descent_steps": 3}
    return tensor_train.protes_with_gradients(_square, grids, args=(centre,), **options)


TENSOR_TRAIN_OPTIMIZER_ROWS = [
    Row(
        "tensor_train.grid_point",
        of(lambda a, b: tensor_train.grid_point(_DIGITS, a, b, 2), _limits, _limits),
        scaling=law(1, 1, result=1),
    ),
    Row("tensor_train.protes", of(_protes, _table), _SEARCH, heavy=True, order=0, scaling=_VALUES),
    Row(
        "tensor_train.protes_with_gradients",
        of(_with_gradients, _limits),
        _SEARCH,
        heavy=True,
        order=0,
        scaling=_NO_UNIT,
    ),
    Row(
        "tensor_train.ttopt",
        of(_ttopt, _table, number(0.1)),
        _SEARCH,
        heavy=True,
        order=0,
        scaling=law(1, 1, result={"best_value": 1, "history": 1}),
    ),
    *(
        Row(f"tensor_train.{name}", of(lambda x: None, _limits), _HOST, _HOST, order=None, scaling=_HOST)
        for name in ("protes_ask_tell", "ttopt_ask_tell")
    ),
]
