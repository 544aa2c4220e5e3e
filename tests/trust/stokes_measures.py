"""Promises of jaxnm.stokes, recomputed with matrices that are assembled without it."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import stokes
from jaxnm.status import merge
from tests.stokes.test_counting import _dense
from tests.trust.measure import Measure

_SHAPE = (6, 5)
_MASK = np.zeros(_SHAPE, bool)
_MASK[2:4, 2] = True
_TORUS = stokes.Boundary("periodic", "periodic")


def _rtol(dtype: Any) -> float:
    return 1e-10 if dtype == jnp.float64 else 1e-5


def _flows(method: str, dtype: Any) -> list[tuple[Any, ...]]:
    """Cells from 1e-8 to 1e8 and ten times longer than high, a factor of cells of another size, and too few steps."""
    random = np.random.default_rng(0)
    boundary, mask = stokes.Boundary(x=("inflow", "outflow")), None if method == "direct" else _MASK
    inputs = []
    for unit in (1e-8, 1.0, 1e8):
        for stretch, steps, other in ((1, 1000, 1.0), (10, 1000, 1.0), (1, 2, 1.5)):
            corner = jnp.asarray([6 * unit * stretch, 5 * unit], dtype)
            operators, theirs = (
                stokes.discretize(
                    stokes.Grid(_SHAPE, (0.0, 0.0), (corner[0] * factor, corner[1])), boundary,
                    viscosity=jnp.asarray(0.3 * unit, dtype), solid=mask,
                )
                for factor in (1.0, other)
            )  # fmt: skip
            shapes = stokes.face_shapes(operators.grid, boundary)
            force = stokes.Velocity(*(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes))
            active = operators.active_faces()
            force = jax.tree.map(lambda part, a: part * a.astype(dtype), force, active)
            inputs.append((operators, force, stokes.factorize(theirs, dtype=dtype), steps))
    return inputs


@jax.jit
def _solve(operators: Any, force: Any, factor: Any, steps: Any) -> stokes.StokesSolution:
    return stokes.solve(operators, force, factor=factor, max_steps=jnp.asarray(steps, jnp.int32))


def _residual(inputs: tuple[Any, ...], result: stokes.StokesSolution) -> float:
    """Of the matrices in double precision, over rtol, or over rounding where that is more."""
    operators, force, *_ = inputs
    double = lambda tree: np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
    solid = np.zeros(_SHAPE, bool) if operators.solid is None else np.asarray(operators.solid)
    spacing = [float(h) for h in operators.grid.spacing]
    a, b = _dense(_SHAPE, operators.boundary, solid, spacing)
    faces, cells = double(operators.active_faces()) > 0, ~solid.ravel()
    u, p = double(result.velocity)[faces], double(result.pressure)[cells]
    f = double(jax.tree.map(jnp.multiply, force, operators.mass(force.u.dtype)))[faces]
    nu, smallest, eps = float(operators.viscosity), min(spacing), float(jnp.finfo(force.u.dtype).eps)
    momentum, flux = nu * a @ u + b.T @ p - f, b @ u
    size = nu * np.abs(a).sum(1).max() * np.abs(u).max() + np.abs(b).sum(0).max() * np.abs(p).max() + np.abs(f).max()
    allowed = max(_rtol(force.u.dtype) * np.abs(f).max(), 32 * eps * size)
    speed = max(np.abs(u).max(), np.abs(f).max() * smallest**2 / nu)
    # the smallest spacing is rounded down to a power of two
    divergence = np.abs(flux).max() * smallest / (2 * _rtol(force.u.dtype) * speed)
    return float(max(np.abs(momentum).max() / allowed, divergence))


@flax.struct.dataclass
class _Whole:
    tensor: Any
    status: Any


def _samples(dtype: Any) -> list[tuple[Any, ...]]:
    """A sample in units of 1e-8, 1 and 1e8, and one that nothing flows through along one axis."""
    blocked = _MASK | np.array([False, False, False, True, False])[None]
    return [(mask, jnp.asarray(h, dtype)) for mask in (_MASK, blocked) for h in (1e-8, 1.0, 1e8)]


@jax.jit
def _permeability(mask: Any, spacing: Any) -> _Whole:
    found = stokes.permeability(mask, spacing=spacing, dtype=spacing.dtype)
    return _Whole(found.tensor, merge(found.status[0], found.status[1]))


def _dissipation(inputs: tuple[Any, ...], result: _Whole) -> float:
    """Against the pseudo-inverse of the dense matrix; the error of the velocity is A^-1 times the residual."""
    solid = np.asarray(inputs[0])
    a, b = _dense(_SHAPE, _TORUS, solid, (1.0, 1.0))
    matrix = np.block([[a, b.T], [b, np.zeros((b.shape[0],) * 2)]])
    inverse = np.linalg.pinv(matrix, rcond=1e-10, hermitian=True)
    joined = [~(solid | np.roll(solid, 1, axis)) for axis in range(2)]
    drive = np.zeros((matrix.shape[0], 2))
    first = int(joined[0].sum())
    drive[:first, 0] = drive[first : first + int(joined[1].sum()), 1] = 1
    expected = (drive.T @ inverse @ drive / solid.size) * float(inputs[1]) ** 2
    error = np.abs(np.asarray(result.tensor, np.float64) - expected).max() / np.abs(expected).max()
    return error / (_rtol(inputs[1].dtype) * np.linalg.norm(inverse, np.inf) * 2)


def _boxes(dtype: Any) -> list[tuple[Any, ...]]:
    """Boxes of ratio 1.2 and 12, and too few steps."""
    return [
        (stokes.discretize(stokes.Grid(_SHAPE, (0.0, 0.0), (jnp.asarray(6 * r, dtype), 5.0)), stokes.Boundary()), steps)
        for r in (1.0, 10.0)
        for steps in (29, 3)
    ]


@partial(jax.jit, static_argnums=1)
def _extremes(operators: Any, steps: int) -> Any:
    return stokes.schur_extremes(operators, key=jax.random.key(0), num_steps=steps)


def _distance(inputs: tuple[Any, ...], result: Any) -> float:
    a, b = _dense(_SHAPE, stokes.Boundary(), np.zeros(_SHAPE, bool), [float(h) for h in inputs[0].grid.spacing])
    values = np.linalg.eigvalsh(b @ np.linalg.solve(a, b.T))
    found = float(result.smallest[0])
    return float(np.abs(values - found).min() / np.sqrt(float(jnp.finfo(result.smallest.dtype).eps)))


MEASURES = [
    Measure(
        "stokes.solve",
        "both residuals <= rtol, or rounding, 32 eps (|A| |u| + |B| |p| + |F|)",
        lambda dtype: [*_flows("direct", dtype), *_flows("minres", dtype)],
        _solve,
        _residual,
    ),
    Measure("stokes.permeability", "as of A^-1 and a residual of rtol", _samples, _permeability, _dissipation),
    Measure("stokes.schur_extremes", "within sqrt(eps) of an eigenvalue", _boxes, _extremes, _distance),
]
