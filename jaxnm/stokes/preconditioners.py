"""Approximate inverses for domains with solids or drag: multigrid on the Laplacian and on Darcy operators.

Several fields (the velocity components, the pressure) go through one cycle together, stacked and padded to one shape.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.linalg.krylov import conjugate_gradient_loop
from jaxnm.stokes import multigrid
from jaxnm.stokes.grid import Velocity, face_shapes
from jaxnm.stokes.operators import StokesOperators, all_faces, along, diagonal, drag_on_faces, mass_line

_MOBILITY_STEPS = 10


def velocity_levels(operators: StokesOperators, dtype: Any) -> list[multigrid.Level]:
    """A and its coarser versions, [dim, ...]."""
    return _hierarchy(operators, [_velocity_level(operators, c, dtype) for c in range(operators.grid.dim)])


def cycle(levels: list[multigrid.Level], fields: tuple[Array, ...]) -> tuple[Array, ...]:
    """One multigrid cycle for each field of a hierarchy."""
    shape = levels[0].stiffness.shape[1:]
    padded = jnp.stack([_padded(field, shape) for field in fields])
    results = jax.vmap(multigrid.cycle)(levels, padded)
    return tuple(
        jax.lax.slice(result, (0,) * field.ndim, field.shape) for result, field in zip(results, fields, strict=True)
    )


def velocity_cycle(levels: list[multigrid.Level], right: Velocity) -> Velocity:
    """One multigrid cycle for A."""
    return Velocity(*cycle(levels, right.components))


def joined(first: list[multigrid.Level], second: list[multigrid.Level]) -> list[multigrid.Level]:
    """The hierarchies of more fields as one."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _padded(field: Array, shape: tuple[int, ...]) -> Array:
    return jnp.pad(field, [(0, wanted - n) for wanted, n in zip(shape, field.shape, strict=True)])


def _hierarchy(operators: StokesOperators, levels: list[multigrid.Level]) -> list[multigrid.Level]:
    """Operators of several fields, padded by places without an unknown, and their coarser versions, stacked."""
    shapes = (*face_shapes(operators.grid, operators.boundary), operators.grid.shape)
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    stacked = jax.tree.map(lambda *arrays: jnp.stack([_padded(array, shape) for array in arrays]), *levels)
    return jax.vmap(multigrid.hierarchy)(stacked)


def _velocity_level(operators: StokesOperators, c: int, dtype: Any) -> multigrid.Level:
    grid, boundary = operators.grid, operators.boundary
    active = operators.active_faces().components[c].astype(dtype)
    mass = jnp.asarray(along(c, grid.dim, mass_line(operators, c)), dtype)
    stiffness, couplings = jnp.zeros_like(active), []
    for axis in range(grid.dim):
        scale = (1 / jnp.asarray(grid.spacing[axis]).astype(dtype) ** 2) * (jnp.ones_like(mass) if axis == c else mass)
        weight = sum(jnp.asarray(diagonal(operators, c, axis, side)).astype(dtype) for side in (0, 1))
        # the one cell of a slab is its own neighbour: it adds to the diagonal what its coupling takes away
        scale = scale if grid.shape[axis] > 1 else 0 * scale
        stiffness = stiffness + active * weight * scale
        couplings.append(active * jnp.roll(active, -1, axis) * scale * _inner(active.shape, boundary, axis, dtype))
    drag = jnp.zeros_like(active)
    if operators.inverse_permeability is not None:
        drag = drag_on_faces(operators, c, dtype) * active
    return multigrid.Level(tuple(couplings), stiffness, drag)


def _inner(shape: tuple[int, ...], boundary: Any, axis: int, dtype: Any) -> Array:
    """1, and 0 for what would couple the last to the first where the axis is not periodic."""
    line = np.ones(shape[axis])
    line[-1] = float(boundary.is_periodic(axis))
    return jnp.asarray(along(axis, len(shape), line), dtype)


def simple_levels(operators: StokesOperators, dtype: Any) -> list[multigrid.Level]:
    """SIMPLE, B diag(A)^-1 B^T: Darcy flow with the mobility that a face has alone."""
    diagonals = []
    for c in range(operators.grid.dim):
        level = _velocity_level(operators, c, dtype)
        entries = level.stiffness + level.drag
        exists = entries > 0
        diagonals.append(jnp.where(exists, 1 / jnp.where(exists, entries, jnp.ones_like(entries)), 0 * entries))
    return _darcy_levels(operators, Velocity(*diagonals), dtype)


def mobility_levels(operators: StokesOperators, levels: list[multigrid.Level], dtype: Any) -> list[multigrid.Level]:
    """Darcy flow B diag(k) B^T with the mobility k = A^-1 1 that a face has in the domain.

    k is the velocity that a unit force would give without pressure: Poiseuille's profile in a channel, 1 / drag in a
    porous solid. S^-1 is then near to the identity plus the inverse of this operator: exactly so in a channel one cell
    wide, where S = L (L + 4)^-1, and in the open, where k is large.
    """
    ones = jax.tree.map(lambda active: active.astype(dtype), operators.active_faces())
    tolerance = jnp.asarray(1e-3, dtype)
    mobility = conjugate_gradient_loop(
        operators.laplacian, lambda right: velocity_cycle(levels, right), ones, tolerance, jnp.int32(_MOBILITY_STEPS)
    )[0]
    return _darcy_levels(operators, jax.tree.map(lambda k: jnp.maximum(k, 0), mobility), dtype)


def _darcy_levels(operators: StokesOperators, mobility: Velocity, dtype: Any) -> list[multigrid.Level]:
    grid, boundary = operators.grid, operators.boundary
    conductances = [
        jnp.where(active, k, jnp.zeros_like(k)) / jnp.asarray(grid.spacing[c]).astype(dtype) ** 2
        for c, (k, active) in enumerate(zip(mobility.components, operators.active_faces().components, strict=True))
    ]
    faces = all_faces(Velocity(*conductances), boundary)
    stiffness, couplings = jnp.zeros(grid.shape, dtype), []
    for axis, face in enumerate(faces.components):
        n = grid.shape[axis]
        face = face if n > 1 else 0 * face  # as above
        lower, upper = (jax.lax.slice_in_dim(face, i, n + i, axis=axis) for i in (0, 1))
        stiffness = stiffness + lower + upper
        couplings.append(upper * _inner(grid.shape, boundary, axis, dtype))
    return _hierarchy(operators, [multigrid.Level(tuple(couplings), stiffness, jnp.zeros_like(stiffness))])
