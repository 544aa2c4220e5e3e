"""Promises of the parts of jaxnm.first_order that analyze optimizers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxnm import first_order
from tests.trust.measure import Measure


def _quadratics(dtype: Any) -> list[tuple[Any, ...]]:
    """Matrices with eigenvalues of both signs and of very different sizes, in other units; asymmetric; not finite."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    inputs = []
    for smallest in (1.0, 1e-4, -1e-2, 1e-12):
        for unit in (1e-8, 1.0, 1e8):
            matrix = basis * np.append(smallest, np.linspace(0.5, 1, 5)) @ basis.T * unit
            inputs.append((jnp.asarray((matrix + matrix.T) / 2, dtype),))
    return [*inputs, (jnp.full((6, 6), jnp.nan, dtype),), (jnp.asarray(np.diag([np.inf] * 6), dtype),)]


@jax.jit
def _spectrum(matrix: jax.Array) -> first_order.Spectrum:
    loss = lambda matrix, x: 0.5 * jnp.sum(x[:, None] * matrix * x[None, :])
    return first_order.hessian_spectrum(Partial(loss, matrix), jnp.ones(6, matrix.dtype))


def _spectrum_error(inputs: tuple[Any, ...], result: first_order.Spectrum) -> float:
    exact = np.linalg.eigvalsh(np.asarray(inputs[0], np.float64))
    allowed = 20 * 6 * float(jnp.finfo(inputs[0].dtype).eps) * np.max(np.abs(exact))
    outside = max(float(result.lower_bound) - exact[0], exact[-1] - float(result.upper_bound))
    return max(np.max(np.abs(np.asarray(result.eigenvalues) - exact)), outside) / allowed


def _blocks(A: np.ndarray, B: np.ndarray, C: np.ndarray, curvatures: Any) -> np.ndarray:
    return A + np.asarray(curvatures, np.float64)[:, None, None] * np.outer(B, C)


def _methods(dtype: Any) -> list[tuple[Any, ...]]:
    """Heavy balls with double roots, three states, in units of 1e-8 and 1e8; a curvature that is not finite."""
    chain = np.array([[1, -0.12, -0.08], [0, 0.3, 0], [0, 0.3, 0.2]]), np.array([-0.4, 1, 1]), np.array([1.0, 0, 0])
    inputs = []
    for unit in (1e-8, 1.0, 1e8):
        for momentum, curvatures in ((0.81, [0.01, 0.5, 1.0]), (0.0, [1e-6, 0.3, 1.0]), (0.25, [0.25, 1.0, 2.0])):
            A, B, C = np.array([[1 + momentum, -momentum], [1, 0]]), np.array([-1 / unit, 0]), np.array([1.0, 0])
            inputs.append((A, B, C, np.array(curvatures) * unit))
        inputs.append((chain[0], chain[1] / unit, chain[2], np.array([0.1, 0.5, 1.0]) * unit))
    inputs.append((*chain, np.array([0.1, np.inf, 1.0])))
    return [tuple(jnp.asarray(part, dtype) for part in one) for one in inputs]


@jax.jit
def _analysis(A: jax.Array, B: jax.Array, C: jax.Array, curvatures: jax.Array) -> first_order.Analysis:
    return first_order.analyze(first_order.state_space(A, B, C), curvatures)


def _rate_error(rate: Any, blocks: np.ndarray, dtype: Any) -> float:
    """Roots of blocks that may have double ones are known to the root of eps."""
    exact = np.max(np.abs(np.linalg.eigvals(blocks)))
    return abs(float(rate) - exact) / (10 * float(jnp.finfo(dtype).eps) ** 0.5 * exact)


def _analysis_error(inputs: tuple[Any, ...], result: first_order.Analysis) -> float:
    return _rate_error(result.rate, _blocks(*(np.asarray(part, np.float64) for part in inputs)), inputs[0].dtype)


def _learning_rates(dtype: Any) -> list[tuple[Any, ...]]:
    """Steps over sixteen orders of magnitude in float64; one that is not a number."""
    power = 8 if dtype == jnp.float64 else 5
    rates = [10.0**-power, 1e-2, 1.0, 10.0**power]
    curvatures = np.array([0.1, 0.5, 1.0])
    inputs = [(np.array([rate, 0.1]), curvatures / rate) for rate in rates]
    inputs.append((np.array([np.nan, 0.1]), curvatures))
    return [tuple(jnp.asarray(part, dtype) for part in one) for one in inputs]


@jax.jit
def _first_of_grid(rates: jax.Array, curvatures: jax.Array) -> first_order.Analysis:
    grid = first_order.analyze_learning_rates(partial(optax.sgd, momentum=0.3), rates, curvatures)
    return jax.tree.map(lambda leaf: leaf[0], grid)


def _grid_error(inputs: tuple[Any, ...], result: first_order.Analysis) -> float:
    rate, curvatures = (np.asarray(part, np.float64) for part in inputs)
    A, B = np.array([[1, -0.3 * rate[0]], [0, 0.3]]), np.array([-rate[0], 1])
    return _rate_error(result.rate, _blocks(A, B, np.array([1.0, 0]), curvatures), inputs[0].dtype)


OPTIMIZER_MEASURES = [
    Measure(
        "first_order.hessian_spectrum",
        "every eigenvalue to 120 eps of the largest, and none outside of the bounds by more",
        _quadratics,
        _spectrum,
        _spectrum_error,
    ),
    Measure(
        "first_order.analyze",
        "the rate is the largest modulus of an eigenvalue to 10 sqrt(eps)",
        _methods,
        _analysis,
        _analysis_error,
        heavy=True,
    ),
    Measure(
        "first_order.analyze_learning_rates",
        "the rate is the largest modulus of an eigenvalue to 10 sqrt(eps)",
        _learning_rates,
        _first_of_grid,
        _grid_error,
        heavy=True,
    ),
]
