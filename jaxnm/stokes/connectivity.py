"""Which cells of the fluid hang together, and which parts of it go round a periodic box, for masks that are traced.

Trees of cells are hooked onto each other along the faces between them, and then flattened (Shiloach and Vishkin 1982):
a number of rounds that grows as the logarithm of the number of cells, whatever the shape of the fluid. Each cell also
knows how often the way to the root of its tree crosses the periodic sides. Where two neighbours of one tree do not
agree on that, the way from one to the other and back through the root winds round the box.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.stokes.grid import Boundary


class Components(NamedTuple):
    """The parts of the fluid that hang together through faces."""

    labels: Array
    """[*cells] int32: the first cell of the part, counted in row-major order; each solid cell is a part."""
    winds: Array
    """[number of cells, dim] booleans: whether the part with that label leads round the box along an axis."""


class _Forest(NamedTuple):
    parent: Array
    offset: Array
    """[cells, dim]: by how many periods a cell lies above its parent when one walks there through the fluid."""
    more: Array


def components(solid: Array, boundary: Boundary) -> Components:
    """Label the fluid. Cost: some ten passes over the cells."""
    size, dim = solid.size, solid.ndim
    lower, upper, crossed, joined = _faces(solid, boundary)
    nowhere, faces = jnp.int32(size), jnp.arange(lower.size, dtype=jnp.int32)

    def hook(forest: _Forest) -> _Forest:
        parent, offset, _ = forest
        ends = parent[lower], parent[upper]
        small, large = jnp.minimum(*ends), jnp.maximum(*ends)
        apart = joined & (small < large)
        into = jnp.where(apart, large, nowhere)
        least = jnp.full(size, nowhere).at[into].min(small, mode="drop")
        chosen = apart & (least.at[into].get(mode="fill", fill_value=-1) == small)
        into = jnp.where(chosen, large, nowhere)
        face = jnp.full(size, faces.size, jnp.int32).at[into].min(faces, mode="drop")
        moved = face < faces.size
        face = jnp.where(moved, face, 0)
        # the root of the upper end above the root of the lower one
        rise = offset[lower[face]] + crossed[face] - offset[upper[face]]
        rise = jnp.where((ends[1][face] > ends[0][face])[:, None], rise, -rise)
        parent = jnp.where(moved, least, parent)
        offset = jnp.where(moved[:, None], rise, offset)
        return _flattened(_Forest(parent, offset, jnp.any(moved)))

    start = _Forest(jnp.arange(size, dtype=jnp.int32), jnp.zeros((size, dim), jnp.int32), jnp.array(True))
    parent, offset, _ = jax.lax.while_loop(lambda forest: forest.more, hook, start)
    mismatch = (offset[lower] + crossed - offset[upper] != 0) & joined[:, None]
    winds = jnp.zeros((size, dim), bool).at[parent[lower]].max(mismatch)
    return Components(parent.reshape(solid.shape), winds)


def _flattened(forest: _Forest) -> _Forest:
    """Every cell a child of its root."""

    def jump(state: _Forest) -> _Forest:
        parent, offset, _ = state
        above = parent[parent]
        # the offset of a root is zero
        step = jnp.where((parent == above)[:, None], 0, offset[parent])
        return _Forest(above, offset + step, jnp.any(above != parent))

    parent, offset, _ = jax.lax.while_loop(lambda state: state.more, jump, forest)
    return _Forest(parent, offset, forest.more)


def _faces(solid: Array, boundary: Boundary) -> tuple[Array, Array, Array, Array]:
    """All faces between cells: both cells, [faces, dim] periods crossed upwards, and whether both are fluid."""
    # behind a barrier, so that a compiler computes them when it runs and not when it compiles
    line = jax.lax.optimization_barrier(jnp.arange(solid.size, dtype=jnp.int32))
    cells = line.reshape(solid.shape)
    lower, upper, crossed = [], [], []
    for axis, n in enumerate(solid.shape):
        count = n if boundary.is_periodic(axis) else n - 1
        cut = lambda x, axis=axis, count=count: jax.lax.slice_in_dim(x, 0, count, axis=axis).reshape(-1)
        below, above = cut(cells), cut(jnp.roll(cells, -1, axis))
        lower.append(below)
        upper.append(above)
        stride = math.prod(solid.shape[axis + 1 :])
        last = (below // stride) % n == n - 1
        crossed.append(last[:, None] & jnp.asarray(np.arange(solid.ndim) == axis)[None])
    lower, upper = jnp.concatenate(lower), jnp.concatenate(upper)
    fluid = ~solid.reshape(-1)
    return lower, upper, jnp.concatenate(crossed).astype(jnp.int32), fluid[lower] & fluid[upper]
