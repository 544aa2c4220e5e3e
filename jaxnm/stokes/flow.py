"""What one wants to know of a flow: velocities at centres, vorticity, stream function, fluxes, forces."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxnm import arguments
from jaxnm.stokes.boundary_values import BoundaryValues, faces_of
from jaxnm.stokes.grid import REFLECTED, Boundary, Grid, Velocity, check_component, check_velocity
from jaxnm.stokes.operators import StokesOperators, along, at_open_side, beside, check_operators, diagonal, shift


def at_centres(operators: StokesOperators, velocity: Velocity, values: BoundaryValues | None = None) -> Velocity:
    """The velocity in the centres of the cells: means of the two faces of each cell.

    Args:
      operators: from `discretize`.
      velocity: unknown faces.
      values: what was prescribed on the sides; zero without.

    Returns:
      `Velocity` whose components all have the shape of the grid.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4)), Boundary()
      >>> at_centres(discretize(grid, boundary), zero_velocity(grid, boundary)).v.shape
      (4, 4)
    """
    return _at_centres(faces_of("at_centres", operators, velocity, values), operators.grid.shape)


@partial(jax.jit, static_argnums=1)
def _at_centres(faces: Velocity, shape: tuple[int, ...]) -> Velocity:
    means = []
    for c, face in enumerate(faces.components):
        n = shape[c]
        lower, upper = (jax.lax.slice_in_dim(face, i, n + i, axis=c) for i in (0, 1))
        means.append((lower + upper) / 2)
    return Velocity(*means)


def vorticity(
    operators: StokesOperators, velocity: Velocity, values: BoundaryValues | None = None
) -> tuple[Float[Array, "..."], ...]:
    """Components of curl u on the edges of the cells: in two dimensions one, dv/dx - du/dy on the vertices.

    Args:
      operators: from `discretize`.
      velocity: unknown faces.
      values: what was prescribed on the sides; zero without.

    Returns:
      one array [nx + 1, ny + 1] in two dimensions; in three (x, y, z), each with n + 1 points on the two axes across.
      On no-slip, inflow and outflow sides the difference to the prescribed tangential velocity over half a cell; on
      free-slip and do-nothing sides no shear. Inside solids zero; beside them the velocities in the solid are zero.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4)), Boundary()
      >>> vorticity(discretize(grid, boundary), zero_velocity(grid, boundary))[0].shape
      (5, 5)
    """
    return _vorticity(operators, faces_of("vorticity", operators, velocity, values), values)


@jax.jit
def _vorticity(operators: StokesOperators, faces: Velocity, values: BoundaryValues | None) -> tuple[Array, ...]:
    pairs = [(0, 1)] if operators.grid.dim == 2 else [(1, 2), (2, 0), (0, 1)]
    return tuple(
        _derivative(operators, faces, values, second, first) - _derivative(operators, faces, values, first, second)
        for first, second in pairs
    )


def _derivative(
    operators: StokesOperators, faces: Velocity, values: BoundaryValues | None, component: int, axis: int
) -> Array:
    """Derivative of a component along an axis across it, on the edges."""
    grid, boundary, full = operators.grid, operators.boundary, faces.components[component]
    h = jnp.asarray(grid.spacing[axis]).astype(full.dtype)
    first, last = (jax.lax.slice_in_dim(full, i, i + 1, axis=axis) for i in (0, grid.shape[axis] - 1))
    if boundary.is_periodic(axis):
        ghosts = [last, first]
    else:
        ghosts = []
        for side, inner in enumerate((first, last)):
            given = jnp.zeros_like(inner)
            if values is not None and (axis, side, component) in values.values:
                value = jnp.expand_dims(values.values[axis, side, component].astype(full.dtype), axis)
                given = given.at[_unknown(boundary, component, full.ndim)].set(value)
            ghosts.append(2 * given - inner if boundary[axis][side] in REFLECTED else inner)
    extended = jnp.concatenate([ghosts[0], full, ghosts[1]], axis)
    return jnp.diff(extended, axis=axis) / h


def _unknown(boundary: Boundary, component: int, dim: int) -> tuple[slice, ...]:
    low, high = boundary.is_open(component)
    periodic = boundary.is_periodic(component)
    own = slice(0 if low or periodic else 1, None if high else -1)
    return tuple(own if axis == component else slice(None) for axis in range(dim))


def stream_function(
    operators: StokesOperators, velocity: Velocity, values: BoundaryValues | None = None
) -> Float[Array, "nx_plus_1 ny_plus_1"]:
    """Stream function on the vertices: u = d psi / dy, v = -d psi / dx, zero in the lower left corner. Two dimensions.

    Args:
      operators: from `discretize`.
      velocity: unknown faces of a flow without divergence.
      values: what was prescribed on the sides; zero without.

    Returns:
      [nx + 1, ny + 1]; exact for the discrete velocity. On a periodic axis psi grows by the flux.

    Raises:
      ValueError: three dimensions.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4)), Boundary()
      >>> stream_function(discretize(grid, boundary), zero_velocity(grid, boundary)).shape
      (5, 5)
    """
    check_operators("stream_function", operators)
    if operators.grid.dim != 2:
        arguments.refuse("stream_function", "operators", "in 3 dimensions", "2", "look at vorticity(...)")
    return _stream_function(operators.grid, faces_of("stream_function", operators, velocity, values))


@jax.jit
def _stream_function(grid: Grid, faces: Velocity) -> Array:
    hx, hy = (jnp.asarray(h).astype(faces.u.dtype) for h in grid.spacing)
    bottom = jnp.pad(-jnp.cumsum(faces.v[:, 0]) * hx, (1, 0))
    return bottom[:, None] + jnp.pad(jnp.cumsum(faces.u, 1) * hy, ((0, 0), (1, 0)))


@flax.struct.dataclass
class StreamExtrema:
    """The largest and smallest stream function, between the vertices by parabolas, and where."""

    minimum: Float[Array, ""]
    minimum_position: Float[Array, "2"]
    maximum: Float[Array, ""]
    maximum_position: Float[Array, "2"]


def stream_extrema(grid: Grid, psi: Float[ArrayLike, "nx_plus_1 ny_plus_1"]) -> StreamExtrema:
    """Extrema of a stream function (centres of vortices), refined by a parabola through three vertices an axis.

    Args:
      grid: of the flow.
      psi: from `stream_function`.

    Returns:
      `StreamExtrema`; on the rim of the box the vertex itself.

    Raises:
      ValueError: another shape.

    Differentiable where the extreme vertex is unique.

    Example:
      >>> psi = jnp.array([[0.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
      >>> float(stream_extrema(Grid((2, 2)), psi).minimum)
      -1.0
    """
    if not isinstance(grid, Grid):
        got = f"of type {type(grid).__name__}"
        arguments.refuse("stream_extrema", "grid", got, "a Grid", "use Grid(...)", error=TypeError)
    (psi,) = arguments.to_arrays("stream_extrema", psi=psi)
    wanted = tuple(n + 1 for n in grid.shape)
    arguments.check_shape("stream_extrema", "psi", psi, f"{wanted}", lambda shape: shape == wanted)
    return _stream_extrema(grid, psi)


@jax.jit
def _stream_extrema(grid: Grid, psi: Array) -> StreamExtrema:
    low, low_position = _smallest(grid, psi)
    high, high_position = _smallest(grid, -psi)
    return StreamExtrema(low, low_position, -high, high_position)


def _smallest(grid: Grid, psi: Array) -> tuple[Array, Array]:
    index = jnp.unravel_index(jnp.argmin(psi), psi.shape)
    value, position = psi[index], []
    for axis, i in enumerate(index):
        line = psi[:, index[1]] if axis == 0 else psi[index[0]]
        inside = (i > 0) & (i < line.size - 1)
        i = jnp.clip(i, 1, line.size - 2)
        below, here, above = line[i - 1], line[i], line[i + 1]
        slope, bend = (above - below) / 2, above - 2 * here + below
        usable = inside & (bend > 0)
        offset = jnp.where(usable, -slope / jnp.where(usable, bend, jnp.ones_like(bend)), jnp.zeros_like(bend))
        value = value + slope * offset / 2
        faces = grid.faces(axis, psi.dtype)
        position.append(faces[index[axis]] + offset * jnp.asarray(grid.spacing[axis]).astype(psi.dtype))
    return value, jnp.stack(position)


def flux(
    operators: StokesOperators, velocity: Velocity, axis: int, values: BoundaryValues | None = None
) -> Float[Array, "n_plus_1"]:
    """Volume per time through each of the n + 1 planes of faces across an axis (in 2-D: area per time).

    Args:
      operators: from `discretize`.
      velocity: unknown faces.
      axis: 0, 1 or 2 (static).
      values: what was prescribed on the sides; zero without.

    Returns:
      [n + 1]; equal numbers where nothing enters through the other sides.

    Raises:
      ValueError: an axis that the grid has not.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4)), Boundary("periodic")
      >>> flux(discretize(grid, boundary), zero_velocity(grid, boundary), 0).shape
      (5,)
    """
    check_operators("flux", operators)
    grid = operators.grid
    check_component("flux", "axis", axis, grid)
    return _flux(grid, faces_of("flux", operators, velocity, values).components[axis], int(axis))


@partial(jax.jit, static_argnums=2)
def _flux(grid: Grid, face: Array, axis: int) -> Array:
    others = tuple(other for other in range(grid.dim) if other != axis)
    area = jnp.prod(jnp.stack([jnp.asarray(grid.spacing[other]).astype(face.dtype) for other in others]))
    return jnp.sum(face, others) * area


def force_on_solid(
    operators: StokesOperators,
    velocity: Velocity,
    pressure: Float[Array, "*cells"],
    *,
    labels: Int[ArrayLike, "*cells"] | None = None,
    num_labels: int = 1,
) -> Float[Array, "num_labels dim"]:
    """The force of the fluid on solid obstacles: pressure and shear on their surfaces, from the discrete balance.

    Args:
      operators: from `discretize`, with a mask.
      velocity: unknown faces.
      pressure: of the same solution.
      labels: [*grid.shape] integers, 1..num_labels in the obstacles to be told apart (others are not counted); the
        whole solid is one obstacle without.
      num_labels: how many (static).

    Returns:
      [num_labels, dim]. Summed over the solid of a periodic cell it equals the force on all unknown faces to rounding
      (faces on the solid carry none: the half cells beside it are not counted).

    Raises:
      ValueError: operators without a mask, labels of another shape. TypeError: labels that are not integers.

    Differentiable everywhere (linear).

    Example:
      >>> from jaxnm.stokes import discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4)), Boundary("periodic", "periodic")
      >>> operators = discretize(grid, boundary, solid=jnp.zeros((4, 4), bool).at[1, 1].set(True))
      >>> force_on_solid(operators, zero_velocity(grid, boundary), jnp.zeros((4, 4))).shape
      (1, 2)
    """
    check_operators("force_on_solid", operators)
    if operators.solid is None:
        arguments.refuse("force_on_solid", "operators", "without a solid", "a mask", "pass solid=... to discretize")
    shape = operators.grid.shape
    velocity = check_velocity("force_on_solid", "velocity", velocity, operators.grid, operators.boundary)
    (pressure,) = arguments.to_arrays("force_on_solid", pressure=pressure)
    arguments.check_shape("force_on_solid", "pressure", pressure, f"{shape}", lambda s: s == shape)
    pressure = pressure.astype(velocity.u.dtype)
    if labels is not None:
        labels = arguments.to_integers("force_on_solid", "labels", labels, "label the obstacles")
        arguments.check_shape("force_on_solid", "labels", labels, f"{shape}", lambda s: s == shape)
    arguments.check_count("force_on_solid", "num_labels", num_labels, minimum=1)
    return _force_on_solid(operators, velocity, pressure, labels, num_labels)


@partial(jax.jit, static_argnums=4)
def _force_on_solid(
    operators: StokesOperators, velocity: Velocity, pressure: Array, labels: Array | None, num_labels: int
) -> Array:
    solid: Any = operators.solid
    marks = solid.astype(jnp.int32) if labels is None else jnp.where(solid, labels.astype(jnp.int32), 0)
    grid, boundary, dtype = operators.grid, operators.boundary, pressure.dtype
    spacing = [jnp.asarray(h).astype(dtype) for h in grid.spacing]
    nu = jnp.asarray(operators.viscosity).astype(dtype)
    active = operators.active_faces().components
    columns = []
    for c, u in enumerate(velocity.components):
        areas = [_product(h for other, h in enumerate(spacing) if other != axis) for axis in range(grid.dim)]
        below, above = (beside(marks, boundary, c, side) for side in (0, 1))
        mark = jnp.maximum(below, above)
        lower_fluid, upper_fluid = (beside(operators.fluid_cells(), boundary, c, side) for side in (0, 1))
        p_below, p_above = (beside(pressure, boundary, c, side) for side in (0, 1))
        push = jnp.where(lower_fluid, p_below, jnp.zeros_like(u)) - jnp.where(upper_fluid, p_above, jnp.zeros_like(u))
        total = _by_label(jnp.where(active[c], jnp.zeros_like(u), push) * areas[c], mark, num_labels)
        lower, upper = at_open_side(grid.shape[c], boundary, c)
        mass = jnp.asarray(along(c, grid.dim, (1 - 0.5 * (lower | upper))), dtype)
        for axis in range(grid.dim):
            wrap = boundary.is_periodic(axis)
            for side in (0, 1):
                step = -1 if side else 1
                wall = active[c] & (shift(mark, axis, step, wrap) > 0) & ~shift(active[c], axis, step, wrap)
                weight = jnp.asarray(diagonal(operators, c, axis, side)).astype(dtype)
                drag = jnp.where(wall, u, jnp.zeros_like(u)) * (weight * nu * (areas[axis] / spacing[axis]))
                drag = drag if axis == c else drag * mass
                total = total + _by_label(drag, shift(mark, axis, step, wrap), num_labels)
        columns.append(total)
    return jnp.stack(columns, -1)


def _product(numbers: Iterable[Array]) -> Array:
    return jnp.prod(jnp.stack(list(numbers)))


def _by_label(values: Array, marks: Array, num_labels: int) -> Array:
    """Sums [num_labels] over the places with mark 1, 2, ..."""
    inside = (marks >= 1) & (marks <= num_labels)
    slots = jnp.where(inside, marks - 1, num_labels)
    return jnp.zeros(num_labels + 1, values.dtype).at[slots.reshape(-1)].add(values.reshape(-1))[:num_labels]
