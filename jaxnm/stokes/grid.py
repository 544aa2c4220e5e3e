"""Where the unknowns live: boxes of cells, the kinds of their six sides, velocities on the faces.

Pressure lives in the centres of the cells, each velocity component in the middle of the faces across its own axis
(marker and cell, Harlow and Welch 1965). On its own axis a component has one unknown for every face that is neither
on a wall nor on an inflow side; on the other axes one for every cell.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments

Kind = Literal["no_slip", "free_slip", "periodic", "inflow", "outflow", "do_nothing"]
KINDS = ("no_slip", "free_slip", "periodic", "inflow", "outflow", "do_nothing")
OPEN = ("outflow", "do_nothing")
REFLECTED = ("no_slip", "inflow", "outflow")  # sides where the tangential velocity is given
AXES = ("x", "y", "z")
SIDES = ("lower", "upper")


@flax.struct.dataclass
class Grid:
    """A box of equal cells, in two or three dimensions: `Grid((64, 64), (0.0, 0.0), (1.0, 1.0))`.

    The number of cells an axis is static; the corners of the box are leaves, so that they may be traced, mapped over
    and differentiated. Corners that are Python numbers take the dtype of the data they meet.
    """

    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """Cells an axis, two or three numbers."""
    lower: Any = None
    """Lower corner, a number an axis; the origin by default."""
    upper: Any = None
    """Upper corner, a number an axis; by default such that the cells have unit size."""

    def __post_init__(self) -> None:
        # also called where a transformation rebuilds the tree, with any leaves: `check_grid` looks at the numbers
        shape = tuple(self.shape) if isinstance(self.shape, list | tuple | np.ndarray) else ()
        if len(shape) not in (2, 3):
            got = repr(self.shape)
            arguments.refuse("Grid", "shape", got, "two or three numbers of cells", "pass (nx, ny) or more")
        for count in shape:
            arguments.check_count("Grid", "shape", count, minimum=1)
        object.__setattr__(self, "shape", tuple(int(count) for count in shape))
        default = {"lower": (0.0,) * len(shape), "upper": tuple(float(count) for count in shape)}
        for name in ("lower", "upper"):
            corner = default[name] if getattr(self, name) is None else getattr(self, name)
            corner = tuple(corner) if isinstance(corner, list) else corner
            if isinstance(corner, tuple) and len(corner) != len(shape):
                arguments.refuse("Grid", name, repr(corner), f"{len(shape)} numbers", "give one number an axis")
            object.__setattr__(self, name, corner)

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[Any, ...]:
        """Size of a cell an axis."""
        return tuple((self.upper[a] - self.lower[a]) / n for a, n in enumerate(self.shape))

    def faces(self, axis: int, dtype: Any = float) -> Float[Array, "n_plus_1"]:
        """Coordinates of the faces across an axis, the two sides of the box among them."""
        steps = jnp.arange(self.shape[axis] + 1, dtype=jnp.result_type(dtype))
        return _number(self.lower[axis], steps.dtype) + steps * _number(self.spacing[axis], steps.dtype)

    def centres(self, axis: int, dtype: Any = float) -> Float[Array, "n"]:
        """Coordinates of the centres of the cells along an axis."""
        steps = jnp.arange(self.shape[axis], dtype=jnp.result_type(dtype)) + 0.5
        return _number(self.lower[axis], steps.dtype) + steps * _number(self.spacing[axis], steps.dtype)


def _number(value: Any, dtype: Any) -> Array:
    return jnp.asarray(value).astype(dtype)


@dataclass(frozen=True)
class Boundary:
    """The kind of each side: `Boundary(x=("inflow", "outflow"), y="no_slip")`, one name for both sides of an axis.

    `no_slip` and `inflow`: the velocity is given (zero unless `boundary_values` says otherwise). `free_slip`: the
    normal velocity is given, no shear. `periodic`: on both sides of an axis or on none. `outflow`: developed flow, the
    tangential velocity and the pressure are given (zero by default). `do_nothing`: the normal stress p - nu du/dn is
    given (zero by default), no shear. In two dimensions z is not used.
    """

    x: tuple[Kind, Kind] | Kind = "no_slip"
    y: tuple[Kind, Kind] | Kind = "no_slip"
    z: tuple[Kind, Kind] | Kind = "no_slip"

    def __post_init__(self) -> None:
        for axis in AXES:
            value = getattr(self, axis)
            pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
            if len(pair) != 2 or not all(isinstance(kind, str) and kind in KINDS for kind in pair):
                arguments.refuse("Boundary", axis, repr(value), f"a pair from {KINDS}", "name the lower side first")
            if (pair[0] == "periodic") != (pair[1] == "periodic"):
                arguments.refuse("Boundary", axis, repr(value), "periodic on both sides or none", "pass 'periodic'")
            object.__setattr__(self, axis, pair)

    def __getitem__(self, axis: int) -> tuple[Kind, Kind]:
        """The kinds of the lower and the upper side of an axis."""
        return getattr(self, AXES[axis])

    def is_periodic(self, axis: int) -> bool:
        """Whether the two sides of the axis are one."""
        return self[axis][0] == "periodic"

    def is_open(self, axis: int) -> tuple[bool, bool]:
        """Whether the pressure, not the normal velocity, is given on the lower and the upper side."""
        lower, upper = self[axis]
        return lower in OPEN, upper in OPEN


@flax.struct.dataclass
class Velocity:
    """Velocity components on their faces: `u` across x, `v` across y, `w` across z (None in two dimensions)."""

    u: Any
    v: Any
    w: Any = None

    @property
    def components(self) -> tuple[Any, ...]:
        """(u, v) or (u, v, w)."""
        return (self.u, self.v) if self.w is None else (self.u, self.v, self.w)


def face_shapes(grid: Grid, boundary: Boundary) -> tuple[tuple[int, ...], ...]:
    """Shapes of the unknown velocity components on a grid, in the order of the axes.

    On its own axis a component has n - 1 unknown faces between two walls (or inflow sides), n where periodic, and one
    more for each open side; on the other axes n.

    Args:
      grid: the cells.
      boundary: the kinds of the sides.

    Returns:
      a shape a component.

    Not differentiable: static numbers.

    Example:
      >>> face_shapes(Grid((4, 8)), Boundary(x=("inflow", "outflow")))
      ((4, 8), (4, 7))
    """
    return tuple(
        tuple(num_faces(n, boundary, axis) if axis == c else n for axis, n in enumerate(grid.shape))
        for c in range(grid.dim)
    )


def num_faces(n: int, boundary: Boundary, axis: int) -> int:
    """Unknown faces across an axis with n cells."""
    return n if boundary.is_periodic(axis) else n - 1 + sum(boundary.is_open(axis))


def zero_velocity(grid: Grid, boundary: Boundary, dtype: Any = float) -> Velocity:
    """Zeros on every unknown face: a force to start from.

    Args:
      grid: the cells.
      boundary: the kinds of the sides.
      dtype: of the zeros.

    Returns:
      `Velocity`.

    Differentiable (a constant).

    Example:
      >>> zero_velocity(Grid((4, 4)), Boundary()).u.shape
      (3, 4)
    """
    check_grid("zero_velocity", grid, boundary)
    dtype = arguments.float_dtype("zero_velocity", dtype)
    return Velocity(*(arguments.constant(np.zeros(shape), dtype) for shape in face_shapes(grid, boundary)))


def positions(grid: Grid, boundary: Boundary, component: int, dtype: Any = float) -> tuple[Array, ...]:
    """Coordinates (x, y[, z]) of the unknown faces of a component, each of the component's shape.

    Args:
      grid: the cells.
      boundary: the kinds of the sides.
      component: 0, 1 or 2 (static).
      dtype: of the coordinates.

    Returns:
      an array an axis.

    Differentiable in the corners of the grid.

    Example:
      >>> positions(Grid((2, 2)), Boundary(), 0)[0]
      Array([[1., 1.]], dtype=float32)
    """
    check_grid("positions", grid, boundary)
    dtype = arguments.float_dtype("positions", dtype)
    check_component("positions", "component", component, grid)
    return _positions(grid, boundary, int(component), dtype)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _positions(grid: Grid, boundary: Boundary, component: int, dtype: Any) -> tuple[Array, ...]:
    lines = [grid.centres(axis, dtype) for axis in range(grid.dim)]
    lines[component] = grid.faces(component, dtype)[unknown_slice(boundary, component)]
    return tuple(jnp.meshgrid(*lines, indexing="ij"))


def unknown_slice(boundary: Boundary, axis: int) -> slice:
    """Which of the n + 1 faces across an axis are unknown."""
    low, high = boundary.is_open(axis)
    if boundary.is_periodic(axis):
        return slice(0, -1)
    return slice(0 if low else 1, None if high else -1)


def check_grid(function: str, grid: Grid, boundary: Boundary) -> None:
    """Refuse a grid or boundary that is none, and axes that are too short for their kinds."""
    if not isinstance(grid, Grid):
        arguments.refuse(function, "grid", f"of type {type(grid).__name__}", "a Grid", "use Grid(...)", error=TypeError)
    if not isinstance(boundary, Boundary):
        got = f"of type {type(boundary).__name__}"
        arguments.refuse(function, "boundary", got, "a Boundary", "use Boundary(...)", error=TypeError)
    for axis, n in enumerate(grid.shape):
        if n < 2 and not boundary.is_periodic(axis):
            got = f"of {n} cell on axis {AXES[axis]}"
            arguments.refuse(function, "grid", got, "two or more", "refine the axis, or make it periodic (a slab)")
        low, high = grid.lower[axis], grid.upper[axis]
        if arguments.is_number(low) and arguments.is_number(high) and not (math.isfinite(high - low) and low < high):
            got = f"{high!r} on axis {AXES[axis]}"
            arguments.refuse(function, "grid.upper", got, f"finite and above {low!r}", "give the cells a size")


def check_component(function: str, argument: str, axis: Any, grid: Grid) -> None:
    """Refuse what is no axis of the grid."""
    arguments.check_count(function, argument, axis)
    if axis >= grid.dim:
        arguments.refuse(function, argument, repr(axis), f"one of {tuple(range(grid.dim))}", "count axes from 0")


def check_velocity(function: str, argument: str, value: Any, grid: Grid, boundary: Boundary) -> Velocity:
    """The velocity as arrays of one real dtype, or an error that names the component and its right shape."""
    if not isinstance(value, Velocity):
        got = f"of type {type(value).__name__}"
        arguments.refuse(function, argument, got, "a Velocity", "pass Velocity(u, v[, w])", error=TypeError)
    shapes = face_shapes(grid, boundary)
    if len(value.components) != grid.dim:
        got = f"of {len(value.components)} components"
        arguments.refuse(function, argument, got, f"of {grid.dim}", "pass Velocity(u, v[, w])")
    names = [f"{argument}.{name}" for name in "uvw"[: grid.dim]]
    arrays = arguments.to_arrays(function, **dict(zip(names, value.components, strict=True)))
    for name, array, shape in zip(names, arrays, shapes, strict=True):
        arguments.check_real(function, name, array)
        if array.shape != shape:
            arguments.refuse(
                function, name, f"of shape {array.shape}", f"{shape}, the unknown faces", "see face_shapes(...)"
            )
    return Velocity(*arrays)


def as_solid(function: str, solid: ArrayLike, grid: Grid) -> Array:
    """The mask as a boolean array of the grid's shape."""
    mask: Any = solid if isinstance(solid, jax.Array) else np.asarray(solid)
    if mask.dtype != bool:
        arguments.refuse(
            function, "solid", f"of dtype {mask.dtype}", "booleans, True in the solid",
            "threshold the picture, or pass inverse_permeability for a partial solid", error=TypeError,
        )  # fmt: skip
    arguments.check_shape(function, "solid", mask, f"{grid.shape}", lambda shape: shape == grid.shape)
    return arguments.constant(mask, bool)


def is_concrete(*values: Any) -> bool:
    """Whether all values are known while tracing."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
