"""Promises of jaxnm.tensor_train."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import tensor_train
from jaxnm.tensor_train import TT, Samples, SolveResult, TTMatrix
from tests.tensor_train.reference import full_of
from tests.trust.measure import Measure
from tests.trust.tensor_train_cross_measures import CROSS_MEASURES

_KEY = jax.random.key(0)
_SIZES = (3, 4, 2)
_RANKS = ((1, 2), (2, 2), (2, 1))


# ------------------------------------------------------------------------------------------------ linear systems


def _systems(dtype: Any) -> Iterator[tuple[TTMatrix, TT, TT]]:
    """Sums over the modes of conditions 1 to 1e12, of a sign or none, in many units; a singular one; bad starts."""
    rng = np.random.default_rng(0)
    cores = lambda: [rng.normal(size=(a, n, b)) for (a, b), n in zip(_RANKS, _SIZES, strict=True)]
    for smallest in (1.0, 1e-2, 1e-6, 1e-12, -0.3, 0.0):
        blocks = []
        for n in _SIZES:
            basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
            blocks.append(basis * np.linspace(smallest, 1, n) @ basis.T)
        for unit, other, start in ((1.0, 1.0, 1.0), (1e-8, 1e8, 1e17), (1e8, 1e-8, 1e-17)):
            matrix = tensor_train.kronecker_sum([jnp.asarray(unit * block, dtype) for block in blocks])
            right, initial = (
                tensor_train.from_cores([jnp.asarray(c, dtype) for c in cores()]) * np.asarray(times, dtype)
                for times in (other, start)
            )
            yield matrix, right, initial


@jax.jit
def _solved(matrix: TTMatrix, right: TT, initial: TT) -> SolveResult:
    tol = _tolerance(right.dtype)
    return tensor_train.solve(matrix, right, initial=initial, max_rank=8, tol=tol, key=_KEY, max_sweeps=8)


def _tolerance(dtype: Any) -> float:
    return 1e-4 if dtype == jnp.float32 else 1e-9


def _residual(inputs: tuple[TTMatrix, TT, TT], result: SolveResult) -> float:
    matrix, right, _ = inputs
    blocks = [np.asarray(core, np.float64) for core in tensor_train.matrix_to_cores(matrix)]
    join = lambda a, b: np.einsum("...ijr,rklq->...ikjlq", a, b).reshape(a.shape[-3] * b.shape[1], -1, b.shape[-1])
    whole = reduce(join, blocks[1:], blocks[0][0])[..., 0]
    b, x = full_of(right).ravel(), full_of(result.tt).ravel()
    # the rounding of the product by which the residual was measured is its own
    noise = 100 * float(jnp.finfo(right.dtype).eps) * np.linalg.norm(whole, 2) * np.linalg.norm(x)
    return float(np.linalg.norm(whole @ x - b) / (1.01 * _tolerance(right.dtype) * np.linalg.norm(b) + noise))


# ------------------------------------------------------------------------------------------------ samples


def _distributions(dtype: Any) -> Iterator[tuple[TT]]:
    """Positive trains in units that squares do not hold, with zeros, of both signs, and zero."""
    rng = np.random.default_rng(1)
    largest = float(jnp.finfo(dtype).max)
    train = lambda cores: (tensor_train.from_cores([jnp.asarray(core, dtype) for core in cores]),)
    for unit in (1.0, largest**-0.8, largest**0.8):
        for power in (1, 30):
            cores = [rng.uniform(size=(a, n, b)) ** power for (a, b), n in zip(_RANKS, _SIZES, strict=True)]
            yield train([cores[0] * unit, cores[1] / unit, cores[2]])
    cores[0][:, 1:] = 0
    yield train(cores)
    cores[0][:, 0] *= -1
    yield train(cores)
    yield train([0 * core for core in cores])


@jax.jit
def _drawn(tt: TT) -> Samples:
    return tensor_train.sample(_KEY, tt, 64)


def _log_error(inputs: tuple[TT], result: Samples) -> float:
    array, indices = full_of(*inputs), np.asarray(result.indices)
    with np.errstate(divide="ignore"):
        expected = np.log(array[tuple(indices.T)] / array.sum())
    # entries are sums of positive numbers, so that each keeps its digits
    error = np.abs(np.asarray(result.log_prob) - expected) / np.maximum(np.abs(expected), 1)
    return float(np.max(error) / (200 * float(jnp.finfo(inputs[0].dtype).eps)))


MEASURES: list[Measure] = [
    *CROSS_MEASURES,
    Measure("tensor_train.solve", "|A x - b| <= tol |b|", _systems, _solved, _residual, heavy=True),
    Measure("tensor_train.sample", "log_prob is log(entry / sum), up to rounding", _distributions, _drawn, _log_error),
]
