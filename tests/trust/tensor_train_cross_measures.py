"""Promises of cross interpolation and of the optimizers on tensor trains."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import tensor_train
from jaxnm.tensor_train import ChebyshevResult, CrossResult, OptimizeResult
from tests.tensor_train.reference import full_of
from tests.trust.measure import Measure

_KEY = jax.random.key(0)
_SHAPE = (8,) * 6
_ALL = np.indices(_SHAPE).reshape(6, -1).T


def _tolerance(dtype: Any) -> float:
    return 1e-4 if dtype == jnp.float32 else 1e-9


# ------------------------------------------------------------------------------------------------ cross interpolation


def _values(xp: Any, x: Any, unit: Any) -> list[Any]:
    """Of low ranks, of thin support or none, of high ranks, and not finite somewhere, at x [..., 6] from 0 to 7."""
    total, square = x.sum(-1), lambda center: ((x - center) ** 2).sum(-1)
    scalar = lambda value: xp.where(value, unit, 0 * unit)
    return [
        unit / (1 + total),
        unit * (xp.exp(-total / 9) + xp.cos(total)),
        unit * xp.exp(-square(2.0) / 5),
        0 * unit * total,
        scalar((x == xp.asarray([3.0, 1, 4, 1, 5, 2], dtype=x.dtype)).all(-1)),
        unit * (xp.exp(-50 * square(1.3)) + xp.exp(-50 * square(5.7))),
        # the bits of a congruence, a constraint that few fulfil, and one whose ranks are high
        scalar(total % 5 == 0),
        scalar(total == 38),
        scalar((x * xp.asarray([2.0, 3, 5, 7, 11, 13], dtype=x.dtype)).sum(-1) % 97 < 40),
        xp.where(total % 7 == 5, xp.nan, unit / (1 + total)),
    ]


_FUNCTIONS = 10


def _cases(dtype: Any) -> Iterator[tuple[Any, ...]]:
    largest = float(jnp.finfo(dtype).max)
    for which in range(_FUNCTIONS):
        for unit in (1.0, largest**0.8, largest**-0.8) if which < 3 else (1.0,):
            yield np.int32(which), jnp.asarray(unit, dtype)


def _entry(x: jax.Array, which: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.stack(_values(jnp, x.astype(unit.dtype), unit))[which]


@jax.jit
def _from_function(which: jax.Array, unit: jax.Array) -> CrossResult:
    tol = _tolerance(unit.dtype)
    return tensor_train.from_function(_entry, _SHAPE, max_rank=8, tol=tol, key=_KEY, args=(which, unit), max_sweeps=4)


@jax.jit
def _from_function_on(which: jax.Array, unit: jax.Array) -> CrossResult:
    grids = [jnp.arange(n, dtype=unit.dtype) for n in _SHAPE]
    tol = _tolerance(unit.dtype)
    return tensor_train.from_function_on(
        _entry, grids, max_rank=8, tol=tol, key=_KEY, args=(which, unit), max_sweeps=4, search="rook"
    )


def _truth(which: Any, unit: Any, points: np.ndarray) -> np.ndarray:
    """Over the unit, so that nothing under- or overflows."""
    return _values(np, points.astype(float), 1.0)[int(which)]


def _table_error(inputs: tuple[Any, ...], result: CrossResult) -> float:
    """At all entries, and of the best one."""
    truth = _truth(*inputs, _ALL)
    largest = np.abs(truth).max()
    error = np.abs(full_of(result.tt).ravel() / float(inputs[1]) - truth).max() / largest
    best = _truth(*inputs, np.asarray(result.best_index)[None])[0]
    tol = _tolerance(result.tt.dtype)
    seen = abs(float(result.best_value) / float(inputs[1]) - best) / abs(best)
    return max(error / (10 * tol), seen / (100 * float(jnp.finfo(result.tt.dtype).eps)))


def _black_box(which: Any, unit: Any) -> CrossResult:
    f = lambda index: np.asarray(_values(np, index.astype(unit.dtype), np.asarray(unit))[which], unit.dtype)
    return tensor_train.from_black_box(f, _SHAPE, max_rank=8, tol=_tolerance(unit.dtype), key=_KEY, max_sweeps=4)


# ------------------------------------------------------------------------------------------------ Chebyshev


_RATES = np.random.default_rng(0).uniform(0.5, 1.5, 3)


def _surfaces(xp: Any, x: Any, a: Any) -> list[Any]:
    rates = xp.asarray(_RATES, dtype=x.dtype)
    total = (x * rates).sum(-1)
    return [
        xp.cos(a * total),
        1 / (2 + a * total),
        xp.exp(-(a**2) * ((x - 0.4) ** 2).sum(-1)),
        xp.abs(total - a),
        xp.where(total > a, xp.nan, total),
    ]


def _boxes(dtype: Any) -> Iterator[tuple[Any, ...]]:
    """Smooth, steeper than the degree resolves, kinks, zero almost everywhere, not finite."""
    for which, a in ((0, 0.5), (0, 3.0), (0, 40.0), (1, 0.5), (1, 100.0), (2, 1.0), (2, 300.0), (3, 1.0), (4, 1.0)):
        yield np.int32(which), jnp.asarray(a, dtype)


def _surface(x: jax.Array, which: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.stack(_surfaces(jnp, x, a))[which]


@jax.jit
def _chebyshev(which: jax.Array, a: jax.Array) -> ChebyshevResult:
    box = jnp.asarray([[0.0, 1.0]] * 3, a.dtype)
    tol = _tolerance(a.dtype)
    return tensor_train.chebyshev(_surface, box, 13, max_rank=8, tol=tol, key=_KEY, args=(which, a), max_sweeps=4)


def _fresh_error(inputs: tuple[Any, ...], result: ChebyshevResult) -> float:
    points = np.random.default_rng(5).uniform(size=(1000, 3)).astype(inputs[1].dtype)
    truth = _surfaces(np, points.astype(float), float(inputs[1]))[int(inputs[0])]
    error = np.abs(tensor_train.evaluate(result.interpolant, points) - truth)
    # the check was made at 512 points, which says this much about 99 of 100 others
    return np.quantile(error, 0.99) / (10 * _tolerance(inputs[1].dtype) * np.abs(truth).max())


# ------------------------------------------------------------------------------------------------ optimizers


_GRID = (4, 3, 5, 2)


def _tables(dtype: Any) -> Iterator[tuple[Any]]:
    """In several units, with holes that are infeasible, minus infinity, ties, NaN, and nothing feasible."""
    table = np.random.default_rng(0).normal(size=_GRID)
    for unit in (1.0, 1e-30, 1e30):
        yield (jnp.asarray(unit * table, dtype),)
    yield (jnp.asarray(np.where(table > -1, np.inf, table), dtype),)
    yield (jnp.asarray(np.where(table > 1, -np.inf, table), dtype),)
    yield (jnp.zeros(_GRID, dtype),)
    yield (jnp.asarray(np.where(table < 0, np.nan, table), dtype),)
    yield (jnp.full(_GRID, jnp.inf, dtype),)


def _looked_up(index: jax.Array, table: jax.Array) -> jax.Array:
    return table[tuple(index)]


def _at_node(point: jax.Array, table: jax.Array) -> jax.Array:
    """The table's entry at a point of a grid of integers."""
    return table[tuple(point.astype(jnp.int32))]


@jax.jit
def _protes(table: jax.Array) -> OptimizeResult:
    return tensor_train.protes(_looked_up, _GRID, key=_KEY, budget=200, batch=20, elite=5, args=(table,))


@jax.jit
def _with_gradients(table: jax.Array) -> OptimizeResult:
    grids = [jnp.arange(n, dtype=table.dtype) for n in _GRID]
    options = {"key": _KEY, "budget": 200, "batch": 20, "elite": 5, "descents": 2, "descent_steps": 2}
    return tensor_train.protes_with_gradients(_at_node, grids, args=(table,), **options)


@jax.jit
def _ttopt(table: jax.Array) -> OptimizeResult:
    return tensor_train.ttopt(_looked_up, _GRID, key=_KEY, budget=400, rank=2, args=(table,))


def _best_error(inputs: tuple[Any, ...], result: OptimizeResult) -> float:
    """Whether the best value is that at the best index and the last of the history, none of which is smaller."""
    index, value, history = (np.asarray(part) for part in (result.best_index, result.best_value, result.history))
    inside = np.all((index >= 0) & (index < np.array(_GRID)))
    found = inside and np.asarray(inputs[0])[tuple(index)] == value
    return 0.0 if found and history[-1] == value == history.min() else np.inf


_ENTRIES = "every entry to 10 tol of the largest one, and best_value is the one at best_index"
_BEST = "best_value is f(best_index), and no smaller value was seen"

CROSS_MEASURES = [
    Measure("tensor_train.from_function", _ENTRIES, _cases, _from_function, _table_error, heavy=True),
    Measure("tensor_train.from_function_on", _ENTRIES, _cases, _from_function_on, _table_error, heavy=True),
    Measure("tensor_train.from_black_box", _ENTRIES, _cases, _black_box, _table_error, heavy=True),
    Measure(
        "tensor_train.chebyshev",
        "99 of 100 values in the box to 10 tol of the largest one",
        _boxes,
        _chebyshev,
        _fresh_error,
        heavy=True,
    ),
    Measure("tensor_train.protes", _BEST, _tables, _protes, _best_error, heavy=True),
    Measure("tensor_train.protes_with_gradients", _BEST, _tables, _with_gradients, _best_error, heavy=True),
    Measure("tensor_train.ttopt", _BEST, _tables, _ttopt, _best_error),
]
