"""What can be known of a domain before any number is computed: which cells the flow reaches, what is left undetermined.

These functions run on the host, in NumPy and scipy, on masks that are known while tracing.
"""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool

from jaxnm import arguments
from jaxnm.stokes.grid import Boundary, Grid, is_concrete


def largest_component(solid: Bool[ArrayLike, "*cells"], boundary: Boundary) -> np.ndarray:
    """The mask with every part of the fluid filled but the largest that hangs together, through faces.

    Args:
      solid: [*cells] booleans, True in the solid.
      boundary: its periodic axes join the two sides of the picture.

    Returns:
      [*cells] booleans.

    Raises:
      TypeError: not boolean. ValueError: a mask without fluid.

    Cost: one pass on the host; not for traced masks. Not differentiable.

    Example:
      >>> largest_component(np.array([[False, True, False], [False, True, True]]), Boundary()).tolist()
      [[False, True, True], [False, True, True]]
    """
    mask = np.asarray(solid)
    if mask.dtype != bool:
        got = f"of dtype {mask.dtype}"
        arguments.refuse("largest_component", "solid", got, "booleans", "threshold the picture", error=TypeError)
    labels, count = _components(mask, boundary)
    if count == 0:
        arguments.refuse("largest_component", "solid", "True everywhere", "some fluid", "check the threshold")
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels != np.argmax(sizes)


def _components(solid: np.ndarray, boundary: Boundary) -> tuple[np.ndarray, int]:
    """Labels 1..count of the parts of the fluid that hang together through faces, 0 in the solid."""
    from scipy import ndimage
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels, count = ndimage.label(~solid)
    pairs = []
    for axis in range(solid.ndim):
        if boundary.is_periodic(axis):
            first, last = np.take(labels, 0, axis).ravel(), np.take(labels, -1, axis).ravel()
            both = (first > 0) & (last > 0)
            pairs.append(np.stack([first[both], last[both]]))
    if not pairs or count == 0:
        return labels, count
    rows, columns = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(rows.size), (rows, columns)), shape=(count + 1, count + 1))
    merged = connected_components(graph, directed=False)[1]
    _, merged = np.unique(np.where(labels > 0, merged[labels] + 1, 0), return_inverse=True)
    merged = merged.reshape(labels.shape) + (0 if np.any(labels == 0) else 1)
    return merged, int(merged.max())


def check_fluid(function: str, solid: np.ndarray, boundary: Boundary) -> None:
    """Refuse a mask without fluid, and one whose fluid does not hang together, naming a cell that is cut off."""
    labels, count = _components(solid, boundary)
    if count == 0:
        arguments.refuse(function, "solid", "True everywhere", "some fluid", "check the threshold")
    if count > 1:
        sizes = np.bincount(labels.ravel())[1:]
        smallest = int(np.argmin(sizes)) + 1
        cell = tuple(int(i) for i in np.argwhere(labels == smallest)[0])
        got = f"such that the fluid falls into {count} parts, one of {sizes.min()} cell(s) at {cell}"
        arguments.refuse(function, "solid", got, "fluid that hangs together", "use largest_component(solid, boundary)")


def has_pressure_null_space(grid: Grid, boundary: Boundary, solid: Any) -> bool:
    """Whether no fluid cell lies at an open side, so that the pressure is fixed up to a constant only."""
    opened = False
    for axis in range(grid.dim):
        for side in (0, 1):
            if boundary.is_open(axis)[side]:
                known = solid is not None and is_concrete(solid)
                opened |= not known or not np.all(np.take(np.asarray(solid), -side, axis))
    return not opened


def has_velocity_null_space(grid: Grid, boundary: Boundary, solid: Any, drag: Any) -> tuple[bool, ...]:
    """An axis: whether nothing resists a constant velocity along it: no wall across or along it, no solid, no drag."""
    free = ("free_slip", "periodic", "do_nothing")
    if drag is not None or (solid is not None and (not is_concrete(solid) or np.any(np.asarray(solid)))):
        return (False,) * grid.dim
    return tuple(
        all(
            boundary.is_periodic(other) or all(boundary.is_open(other))
            if other == axis
            else set(boundary[other]) <= set(free)
            for other in range(grid.dim)
        )
        for axis in range(grid.dim)
    )
