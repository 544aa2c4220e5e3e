"""Approximate inverses for domains with solids or drag: multigrid on the Laplacian and on the SIMPLE operator."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.stokes import multigrid
from jaxnm.stokes.grid import Velocity
from jaxnm.stokes.operators import StokesOperators, all_faces, along, diagonal, drag_on_faces, mass_line


def velocity_levels(operators: StokesOperators, dtype: Any) -> list[list[multigrid.Level]]:
    """A, one component after the other, and its coarser versions."""
    return [multigrid.hierarchy(_velocity_level(operators, c, dtype)) for c in range(operators.grid.dim)]


def _velocity_level(operators: StokesOperators, c: int, dtype: Any) -> multigrid.Level:
    grid, boundary = operators.grid, operators.boundary
    active = operators.active_faces().components[c].astype(dtype)
    mass = jnp.asarray(along(c, grid.dim, mass_line(operators, c)), dtype)
    stiffness, couplings = jnp.zeros_like(active), []
    for axis in range(grid.dim):
        scale = (1 / jnp.asarray(grid.spacing[axis]).astype(dtype) ** 2) * (jnp.ones_like(mass) if axis == c else mass)
        weight = sum(jnp.asarray(diagonal(operators, c, axis, side)).astype(dtype) for side in (0, 1))
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


def pressure_levels(operators: StokesOperators, dtype: Any) -> list[multigrid.Level]:
    """SIMPLE, B diag(A)^-1 B^T: Darcy flow through the faces, and its coarser versions."""
    grid, boundary = operators.grid, operators.boundary
    active = operators.active_faces().components
    conductances = []
    for c in range(grid.dim):
        level = _velocity_level(operators, c, dtype)
        entries = level.stiffness + level.drag
        exists = active[c] & (entries > 0)
        inverse = jnp.where(exists, 1 / jnp.where(exists, entries, jnp.ones_like(entries)), jnp.zeros_like(entries))
        conductances.append(inverse / jnp.asarray(grid.spacing[c]).astype(dtype) ** 2)
    faces = all_faces(Velocity(*conductances), boundary)
    stiffness, couplings = jnp.zeros(grid.shape, dtype), []
    for axis, face in enumerate(faces.components):
        n = grid.shape[axis]
        lower, upper = (jnp.take(face, np.arange(i, n + i), axis=axis) for i in (0, 1))
        stiffness = stiffness + lower + upper
        couplings.append(upper * _inner(grid.shape, boundary, axis, dtype))
    return multigrid.hierarchy(multigrid.Level(tuple(couplings), stiffness, jnp.zeros_like(stiffness)))
