"""Promises of jaxnm.linalg."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxnm import linalg
from tests.trust.measure import Measure


def _systems(dtype: Any) -> list[tuple[Any, ...]]:
    """Definite systems of conditions 1 to 1e12, in units of 1e-8 and 1e8, a singular one, and bad starts."""
    generator = np.random.default_rng(0)
    basis = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    inputs = []
    for condition in (1, 1e2, 1e4, 1e8, 1e12):
        for unit in (1e-8, 1.0, 1e8):
            matrix = basis * np.geomspace(1, 1 / condition, 12) @ basis.T * unit
            for start in (0.0, 1.0, 1e17):
                b, initial = generator.normal(size=12) / unit, start * generator.normal(size=12)
                inputs.append((jnp.asarray(matrix, dtype), jnp.asarray(b, dtype), jnp.asarray(initial, dtype)))
    singular = np.diag(np.arange(12.0))
    inputs.append(tuple(jnp.asarray(x, dtype) for x in (singular, np.ones(12), np.zeros(12))))
    return inputs


def _product(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    return linalg.matmul(matrix, vector)


@partial(jax.jit, static_argnums=0)
def _solve(name: str, matrix: jax.Array, b: jax.Array, initial: jax.Array) -> linalg.KrylovSolution:
    return getattr(linalg, name)(Partial(_product, matrix), b, initial=initial)


def _residual(inputs: tuple[Any, ...], result: linalg.KrylovSolution) -> float:
    matrix, b, x = (np.asarray(part, np.float64) for part in (*inputs[:2], result.x))
    rtol = 1e-10 if inputs[0].dtype == jnp.float64 else 1e-5
    allowed = max(10 * rtol, float(jnp.finfo(inputs[0].dtype).eps) ** 0.5)
    return float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)) / allowed


def _operators(dtype: Any) -> list[tuple[Any, ...]]:
    """Symmetric matrices of many spectra in three units, some with an asymmetry below or above sqrt(eps), and a NaN."""
    generator = np.random.default_rng(1)
    basis = np.linalg.qr(generator.normal(size=(24, 24)))[0]
    skew = generator.normal(size=(24, 24))
    small = float(jnp.finfo(dtype).eps) ** 0.5
    spectra = (
        np.linspace(-1, 2, 24),
        np.geomspace(1e-12, 1, 24),
        np.repeat([-3.0, 0.0, 1.0, 1.0 + 1e-9], 6),
        np.r_[np.zeros(23), 1],
        2 - 2 * np.cos(np.pi * np.arange(1, 25) / 25),
    )
    inputs = []
    for values in spectra:
        for unit in (1e-8, 1.0, 1e8):
            for asymmetry in (0.0, small / 1e3, 10 * small):
                matrix = unit * (basis * values @ basis.T + asymmetry * (skew - skew.T))
                inputs.append((jnp.asarray(matrix, dtype), jnp.asarray(generator.normal(size=24), dtype)))
    inputs.append((jnp.full((24, 24), jnp.nan, dtype), jnp.ones(24, dtype)))
    inputs.append((jnp.eye(24, dtype=dtype), jnp.zeros(24, dtype)))
    return inputs


def _symmetric(matrix: jax.Array) -> tuple[np.ndarray, float, float]:
    """The matrix in float64, its size, and sqrt(eps) of its own dtype."""
    exact = np.asarray(matrix, np.float64)
    return exact, float(np.linalg.norm(exact, 2)), float(jnp.finfo(matrix.dtype).eps) ** 0.5


@jax.jit
def _lanczos(matrix: jax.Array, start: jax.Array) -> linalg.Tridiagonalization:
    return linalg.lanczos(Partial(_product, matrix), start, num_steps=24)


def _recurrence(inputs: tuple[Any, ...], result: linalg.Tridiagonalization) -> float:
    matrix, size, small = _symmetric(inputs[0])
    steps = int(result.num_steps)
    Q = np.asarray(result.basis, np.float64)[:steps].T
    diagonal, coupling = (np.asarray(x, np.float64)[:steps] for x in (result.diagonal, result.off_diagonal))
    T = np.diag(diagonal) + np.diag(coupling[:-1], 1) + np.diag(coupling[:-1], -1)
    rest = matrix @ Q - Q @ T
    rest[:, -1] *= max(0.0, 1 - coupling[-1] / max(float(np.linalg.norm(rest[:, -1])), 1e-300))
    return max(
        float(np.linalg.norm(rest)) / (10 * small * size), float(np.linalg.norm(Q.T @ Q - np.eye(steps))) / small
    )


@jax.jit
def _ends(matrix: jax.Array, start: jax.Array) -> linalg.ExtremeEigenvalues:
    return linalg.extreme_eigenvalues(Partial(_product, matrix), start, key=jax.random.key(3), num_steps=16)


def _outside(inputs: tuple[Any, ...], result: linalg.ExtremeEigenvalues) -> float:
    matrix, size, small = _symmetric(inputs[0])
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    excess = [float(result.lower_bound) - values[0], values[-1] - float(result.upper_bound)]
    for ends, vectors in ((result.smallest, result.smallest_vectors), (result.largest, result.largest_vectors)):
        for value, vector in zip(np.asarray(ends, np.float64), np.asarray(vectors, np.float64), strict=True):
            excess.append(float(np.linalg.norm(matrix @ vector - value * vector) / np.linalg.norm(vector)))
    return max(excess) / (1.01 * small * size)


@jax.jit
def _measure(matrix: jax.Array, start: jax.Array) -> linalg.SpectralMeasure:
    return linalg.spectral_density(Partial(_product, matrix), start, key=jax.random.key(3), num_steps=24, num_probes=2)


def _distance_of_nodes(inputs: tuple[Any, ...], result: linalg.SpectralMeasure) -> float:
    """With as many nodes as dimensions, each that has a weight is an eigenvalue."""
    matrix, size, small = _symmetric(inputs[0])
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    nodes, weights = (np.asarray(x, np.float64) for x in (result.nodes, result.weights))
    far = np.abs(nodes[..., None] - values).min(-1)[weights > 0].max() / (10 * small * size)
    return max(float(far), float(np.abs(weights.sum(-1) - 1).max()) / small, float(-weights.min()))


def _stein_equations(dtype: Any) -> list[tuple[Any, ...]]:
    """Spectral radii on both sides of one, normal and far from it, in three units of q and of the variables."""
    generator = np.random.default_rng(2)
    inputs = []
    for radius in (0.0, 0.5, 0.99, 1 - 1e-5, 1.0, 1.1):
        for departure in (0.0, 1.0, 1e3, 1e8):
            for unit in (1e-8, 1.0, 1e8):
                triangular = radius * np.diag([1, -1, 0.5, 0.9]) + departure * np.triu(generator.normal(size=(4, 4)), 1)
                basis = np.linalg.qr(generator.normal(size=(4, 4)))[0]
                q = generator.normal(size=(4, 4))
                inputs.append((jnp.asarray(basis @ triangular @ basis.T, dtype), jnp.asarray(q @ q.T * unit, dtype)))
    return inputs


@jax.jit
def _stein(a: jax.Array, q: jax.Array) -> linalg.SteinSolution:
    return linalg.solve_discrete_lyapunov(a, q)


def _stein_residual(inputs: tuple[Any, ...], result: linalg.SteinSolution) -> float:
    a, q, x = (np.asarray(part, np.longdouble) for part in (*inputs, result.x))
    image = a @ x @ a.T
    size = sum(np.sqrt((part**2).sum()) for part in (image, x, q))
    residual = np.sqrt(((image - x + q) ** 2).sum()) / size
    return float(residual) / (1.01 * float(jnp.finfo(inputs[0].dtype).eps) ** 0.5)


def _inequalities(dtype: Any) -> list[tuple[Any, ...]]:
    """Feasible and infeasible systems, some on the boundary, in units of their own, and a family of no trace."""
    generator = np.random.default_rng(3)
    inputs = []
    for kind in ("random", "identity", "boundary", "infeasible", "traceless"):
        for spread in (0.0, 4.0, 8.0):
            block = generator.normal(size=(4, 3, 3))
            block = block + block.swapaxes(-1, -2)
            scalars = generator.normal(size=(4, 2))
            if kind == "identity":
                block[0], scalars[0] = np.eye(3), 1
            elif kind == "boundary":  # a positive semidefinite family whose members share a null vector
                block[:, :, 2] = block[:, 2, :] = 0
            elif kind == "infeasible":
                block[:, 2, 2], scalars[:, 1] = -np.trace(block[:, :2, :2], axis1=1, axis2=2), 0.1 * scalars[:, 0]
            elif kind == "traceless":
                block -= np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(3) / 3
                scalars[:, 1] = -scalars[:, 0]
            units = 10.0 ** (spread * np.linspace(-1, 1, 4))
            block, scalars = block * units[:, None, None], scalars * units[:, None]
            inputs.append((jnp.asarray(block, dtype), jnp.asarray(scalars, dtype)))
    return inputs


@jax.jit
def _margin(block: jax.Array, scalars: jax.Array) -> linalg.MarginSolution:
    return linalg.maximize_margin([block], scalars)


def _gap(inputs: tuple[Any, ...], result: linalg.MarginSolution) -> float:
    block, scalars, v = (np.asarray(part, np.float64) for part in (*inputs, result.v))
    matrix, row = np.einsum("i,ijk->jk", v, block), v @ scalars
    rows, total = len(matrix) + len(row), np.trace(matrix) + row.sum()
    attained = min(np.linalg.eigvalsh(matrix)[0], row.min()) / total
    size = np.abs(v) @ (np.abs(block).sum((-1, -2)) + np.abs(scalars).sum(-1))
    tolerance = 1e-9 if inputs[0].dtype == jnp.float64 else 1e-4
    allowed = 1.01 * tolerance / rows + 100 * float(jnp.finfo(inputs[0].dtype).eps) * size
    return max(float(result.upper_bound) - attained, float(result.margin) - attained, abs(total - 1)) / allowed


MEASURES = [
    Measure(f"linalg.{name}", "|b - A x| <= max(10 rtol, sqrt(eps)) |b|", _systems, partial(_solve, name), _residual)
    for name in ("minres", "conjugate_gradient")
]
MEASURES += [
    Measure(
        "linalg.lanczos", "|A Q - Q T - residual| <= 10 sqrt(eps) |A|, |Q^T Q - I| <= sqrt(eps)",
        _operators, _lanczos, _recurrence,
    ),
    Measure(
        "linalg.extreme_eigenvalues", "|A v - value v| <= sqrt(eps) |A|, and the spectrum lies within the bounds",
        _operators, _ends, _outside,
    ),
    Measure(
        "linalg.spectral_density", "d nodes: eigenvalues within 10 sqrt(eps) |A|, weights that sum to one",
        _operators, _measure, _distance_of_nodes,
    ),
    Measure(
        "linalg.solve_discrete_lyapunov", "|a x a^T - x + q| <= sqrt(eps) (|a x a^T| + |x| + |q|)",
        _stein_equations, _stein, _stein_residual,
    ),
    Measure(
        "linalg.maximize_margin", "the upper bound is within the tolerance of the margin that v attains",
        _inequalities, _margin, _gap,
    ),
]  # fmt: skip
