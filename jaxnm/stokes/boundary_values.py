"""What is prescribed on the sides of the box: velocities on walls and inflow sides, pressures on open ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxnm import arguments
from jaxnm.stokes.grid import (
    AXES,
    OPEN,
    REFLECTED,
    SIDES,
    Boundary,
    Grid,
    Velocity,
    check_grid,
    check_velocity,
    face_shapes,
    unknown_slice,
)
from jaxnm.stokes.operators import StokesOperators, all_faces, along, check_operators, mass_line, outflux

PRESSURE = -1  # the place of a component in a key

Value = ArrayLike | Callable[..., ArrayLike]


@flax.struct.dataclass
class BoundaryValues:
    """Values on the sides; what was not set is zero. Immutable: `set` returns a new one."""

    grid: Grid
    boundary: Boundary = flax.struct.field(pytree_node=False)
    values: dict[tuple[int, int, int], Any]
    """(axis, side, component) to an array over the side; component -1 is the pressure."""

    def set(
        self,
        axis: str,
        side: str,
        *,
        normal: Value | None = None,
        tangential: Value | tuple[Value, ...] | None = None,
        pressure: Value | None = None,
    ) -> "BoundaryValues":
        """The same with new values on one side.

        Args:
          axis: "x", "y" or "z".
          side: "lower" or "upper".
          normal: velocity along the axis (not outward: along it), on walls and inflow sides.
          tangential: velocity along the side, on no-slip, inflow and outflow sides; in three dimensions a pair, in the
            order of the axes.
          pressure: on outflow (p) and do-nothing (p - nu du/dn) sides.
          Each a number, an array over the side (normal and pressure: the cells of the side; tangential: the unknown
          faces of that component), or a function of (x, y[, z]).

        Raises:
          ValueError: a side that does not take the value, or an array of another shape.
        """
        if axis not in AXES[: self.grid.dim]:
            arguments.refuse("set", "axis", repr(axis), f"one of {AXES[: self.grid.dim]}", "name an axis of the grid")
        if side not in SIDES:
            arguments.refuse("set", "side", repr(side), f"one of {SIDES}", "name a side")
        a, s = AXES.index(axis), SIDES.index(side)
        kind, values = self.boundary[a][s], dict(self.values)
        allowed = {
            "normal": kind in ("no_slip", "free_slip", "inflow"),
            "tangential": kind in REFLECTED,
            "pressure": kind in OPEN,
        }
        given = {"normal": normal, "tangential": tangential, "pressure": pressure}
        for name, value in given.items():
            if value is not None and not allowed[name]:
                arguments.refuse("set", name, f"given on a {kind} side", "a side that takes it", "see Boundary")
        if normal is not None:
            values[a, s, a] = self._on_side("normal", normal, a, s, a)
        if pressure is not None:
            values[a, s, PRESSURE] = self._on_side("pressure", pressure, a, s, PRESSURE)
        if tangential is not None:
            others = [c for c in range(self.grid.dim) if c != a]
            parts = tangential if isinstance(tangential, tuple) else (tangential,)
            if len(parts) != len(others):
                got = f"of {len(parts)} component(s)"
                arguments.refuse("set", "tangential", got, f"a tuple of {len(others)}", "give both, zero if need be")
            for c, part in zip(others, parts, strict=True):
                values[a, s, c] = self._on_side("tangential", part, a, s, c)
        return dataclasses.replace(self, values=values)

    def _on_side(self, name: str, value: Value, axis: int, side: int, component: int) -> Array:
        grid = self.grid
        shape = grid.shape if component in (axis, PRESSURE) else face_shapes(grid, self.boundary)[component]
        shape = shape[:axis] + shape[axis + 1 :]
        if callable(value):
            value = value(*self._coordinates(axis, side, component))
        (array,) = arguments.to_arrays("set", **{name: value})
        arguments.check_real("set", name, array)
        if array.shape not in ((), shape):
            arguments.refuse("set", name, f"of shape {array.shape}", f"a number or {shape}", "see the unknown faces")
        return jnp.broadcast_to(array, shape)

    def _coordinates(self, axis: int, side: int, component: int) -> tuple[Array, ...]:
        grid = self.grid
        dtype = jnp.result_type(0.0, *grid.lower, *grid.upper)  # Python numbers among the corners adapt
        lines = [grid.centres(other, dtype) for other in range(grid.dim)]
        if component not in (axis, PRESSURE):
            lines[component] = grid.faces(component, dtype)[unknown_slice(self.boundary, component)]
        lines[axis] = grid.faces(axis, dtype)[-side][None]
        return tuple(jnp.squeeze(x, axis) for x in jnp.meshgrid(*lines, indexing="ij"))


def boundary_values(grid: Grid, boundary: Boundary) -> BoundaryValues:
    """Zero on every side, to be changed by `set`.

    Args:
      grid: that of the operators.
      boundary: the same.

    Returns:
      `BoundaryValues`, whose arrays are leaves: they may be traced and mapped over.

    Differentiable in the values.

    Example:
      >>> lid = boundary_values(Grid((4, 4)), Boundary()).set("y", "upper", tangential=1.0)
      >>> lid.values[1, 1, 0].shape
      (3,)
    """
    check_grid("boundary_values", grid, boundary)
    return BoundaryValues(grid, boundary, {})


def check_values(function: str, argument: str, values: Any, operators: StokesOperators) -> None:
    """Refuse what is neither None nor values on the sides of these operators."""
    if values is None:
        return
    if not isinstance(values, BoundaryValues):
        got = f"of type {type(values).__name__}"
        arguments.refuse(
            function, argument, got, "BoundaryValues", "use boundary_values(...).set(...)", error=TypeError
        )
    if (values.grid.shape, values.boundary) != (operators.grid.shape, operators.boundary):
        got, expected = "of another grid or boundary", "that of the operators"
        arguments.refuse(function, argument, got, expected, "make them anew")


def right_hand_side(
    operators: StokesOperators, force: Velocity, divergence: Array | None, values: BoundaryValues | None
) -> tuple[Velocity, Array | None]:
    """(F, H) of nu A u + B^T p = F, B u = H; H None where it is known to be zero."""
    dtype = force.u.dtype
    momentum = list(jax.tree.map(jnp.multiply, force, operators.mass(dtype)).components)
    mass = None if divergence is None else -divergence
    if values is not None:
        grid, nu = operators.grid, jnp.asarray(operators.viscosity).astype(dtype)
        for (axis, side, component), value in values.values.items():
            value = value.astype(dtype)
            h = jnp.asarray(grid.spacing[axis]).astype(dtype)
            c = axis if component == PRESSURE else component
            if component == PRESSURE:
                part = value * (1 / h if side == 0 else -1 / h)
            elif component == axis:
                part = value * (nu / h**2)
            else:
                weights = jnp.asarray(mass_line(operators, c), dtype)
                others = [other for other in range(grid.dim) if other != axis]
                part = 2 * value * (nu / h**2) * along(others.index(c), grid.dim - 1, weights)
            index = tuple(-side if other == axis else slice(None) for other in range(grid.dim))
            momentum[c] = momentum[c].at[index].add(part)
        if any(component == axis for axis, _, component in values.values):
            inflow = outflux(prescribed_faces(operators, values, dtype), grid)
            mass = inflow if mass is None else mass + inflow
    if operators.solid is not None:
        active = operators.active_faces().components
        momentum = [part * a.astype(dtype) for part, a in zip(momentum, active, strict=True)]
        mass = None if mass is None else mass * operators.fluid_cells().astype(dtype)
    return Velocity(*momentum), mass


def prescribed_faces(operators: StokesOperators, values: BoundaryValues | None, dtype: Any) -> Velocity:
    """The prescribed normal velocities, on all n + 1 faces of each component; zero elsewhere and on solids."""
    grid, faces = operators.grid, []
    fluid = operators.fluid_cells().astype(dtype)
    for c in range(grid.dim):
        full = jnp.zeros([n + 1 if axis == c else n for axis, n in enumerate(grid.shape)], dtype)
        for (axis, side, component), value in ({} if values is None else values.values).items():
            if axis == c == component:
                index = tuple(-side if other == c else slice(None) for other in range(grid.dim))
                full = full.at[index].set(value.astype(dtype) * fluid[index])
        faces.append(full)
    return Velocity(*faces)


def full_faces(operators: StokesOperators, velocity: Velocity, values: BoundaryValues | None = None) -> Velocity:
    """The velocity on all faces: the unknown ones, the prescribed ones, and periodic ones on both sides.

    Args:
      operators: from `discretize`.
      velocity: unknown faces.
      values: what was prescribed; zero without.

    Returns:
      `Velocity` with n + 1 faces across its own axis in every component.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid = Grid((4, 4))
      >>> full_faces(discretize(grid, Boundary()), zero_velocity(grid, Boundary())).u.shape
      (5, 4)
    """
    return faces_of("full_faces", operators, velocity, values)


def faces_of(function: str, operators: Any, velocity: Any, values: Any) -> Velocity:
    """`full_faces` for another function, in whose name it refuses."""
    check_operators(function, operators)
    velocity = check_velocity(function, "velocity", velocity, operators.grid, operators.boundary)
    check_values(function, "values", values, operators)
    return _faces(operators, velocity, values)


@jax.jit
def _faces(operators: StokesOperators, velocity: Velocity, values: BoundaryValues | None) -> Velocity:
    prescribed = prescribed_faces(operators, values, velocity.u.dtype)
    return jax.tree.map(jnp.add, all_faces(velocity, operators.boundary), prescribed)
