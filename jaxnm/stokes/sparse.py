"""The saddle-point matrix as a scipy sparse array, assembled on the host."""

from typing import Any

import numpy as np

from jaxnm import arguments
from jaxnm.stokes.grid import face_shapes, is_concrete
from jaxnm.stokes.operators import StokesOperators, along, diagonal, drag_on_faces, mass_line


def saddle_matrix(operators: StokesOperators, dtype: Any) -> Any:
    """See `StokesOperators.to_sparse`."""
    from scipy import sparse

    if not is_concrete(operators):
        arguments.refuse("to_sparse", "operators", "traced", "concrete arrays", "call it outside of jit, vmap and grad")
    grid, boundary = operators.grid, operators.boundary
    shapes = face_shapes(grid, boundary)
    sizes = [int(np.prod(shape)) for shape in (*shapes, grid.shape)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    active = [np.asarray(part) for part in operators.active_faces().components]
    fluid = np.asarray(operators.fluid_cells())
    cells = np.arange(sizes[-1]).reshape(grid.shape) + starts[-2]
    rows, columns, entries = [], [], []

    def add(row: np.ndarray, column: np.ndarray, entry: Any, where: Any) -> None:
        where = np.broadcast_to(where, row.shape)
        rows.append(row[where])
        columns.append(column[where])
        entries.append(np.broadcast_to(entry, row.shape)[where])

    nu = float(operators.viscosity)
    for c, shape in enumerate(shapes):
        faces = np.arange(sizes[c]).reshape(shape) + starts[c]
        mass = along(c, grid.dim, mass_line(operators, c))
        total = np.zeros(shape)
        for axis in range(grid.dim):
            scale = np.broadcast_to((1 if axis == c else mass) / float(grid.spacing[axis]) ** 2, shape)
            for side in (0, 1):
                total = total + scale * np.asarray(diagonal(operators, c, axis, side))
                step = 1 if side == 0 else -1
                both = active[c] & np.roll(active[c], step, axis)
                if not boundary.is_periodic(axis):
                    edge = np.ones(shape[axis], bool)
                    edge[0 if side == 0 else -1] = False
                    both = both & along(axis, grid.dim, edge)
                add(faces, np.roll(faces, step, axis), -nu * scale, both)
        if operators.inverse_permeability is not None:
            total = total + np.asarray(drag_on_faces(operators, c, float))
        add(faces, faces, nu * total, active[c])
        add(faces, faces, 1.0, ~active[c])
        first = 0 if boundary.is_open(c)[0] or boundary.is_periodic(c) else 1
        for side, sign in ((0, -1.0), (1, 1.0)):
            # the cell below or above each face, where there is one
            position = np.arange(shape[c]) + first - (1 - side)
            inside = (position >= 0) & (position < grid.shape[c])
            position = position % grid.shape[c]
            inside |= boundary.is_periodic(c)
            where = active[c] & along(c, grid.dim, inside)
            cell = np.take(cells, position, axis=c)
            add(faces, cell, sign / float(grid.spacing[c]), where)
            add(cell, faces, sign / float(grid.spacing[c]), where)
    add(cells, cells, 1.0, ~fluid)
    size = int(starts[-1])
    data = np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))
    matrix = sparse.csr_array(sparse.coo_array(data, shape=(size, size)))
    pinned = [starts[c] for c, free in enumerate(operators.velocity_null_space) if free]
    if operators.pressure_null_space:
        pinned.append(cells[fluid][0])
    if pinned:
        keep = np.ones(size)
        keep[pinned] = 0
        matrix = sparse.csr_array(
            sparse.diags_array(keep) @ matrix @ sparse.diags_array(keep) + sparse.diags_array(1 - keep)
        )
    matrix.eliminate_zeros()
    return matrix.astype(np.dtype(dtype))
