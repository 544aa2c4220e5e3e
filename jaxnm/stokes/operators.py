"""The discrete operators: Laplacian A, divergence B, its exact adjoint, and the saddle-point matrix of both.

Stationary Stokes flow, `-nu lap u + grad p = f`, `div u = g`, reads

    [ nu A   B^T ] [ u ]   [ M f ]
    [  B      0  ] [ p ] = [ -g  ]

with A = -lap symmetric positive (semi)definite, B = -div, and M one except on the faces of open sides, whose control
volume is half a cell and whose equation carries the weight one half, so that A stays symmetric.

Stencils. Beside a flat wall the tangential velocity is reflected (2 / h^2 on the diagonal); beyond a re-entrant corner
of a solid the neighbour is a face on the wall, where the velocity vanishes (1 / h^2). With this pair of rules
`A = B^T B + C^T C + E W E^T` holds on every voxel domain, and the number of eigenvalues of the Schur complement that
are not one can be counted (see `count_nonunit_eigenvalues`).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxnm import arguments
from jaxnm.stokes.domain import check_fluid, has_pressure_null_space, has_velocity_null_space
from jaxnm.stokes.grid import REFLECTED, Boundary, Grid, Velocity, as_solid, check_grid, face_shapes, is_concrete

_LARGEST_DENSE = 20_000


@flax.struct.dataclass
class StokesOperators:
    """The operators of one grid, boundary, viscosity and solid; a pytree whose leaves may be traced."""

    grid: Grid
    boundary: Boundary = flax.struct.field(pytree_node=False)
    viscosity: Any
    """nu > 0, a scalar."""
    solid: Any
    """[*grid.shape] booleans, True in the solid; None without obstacles."""
    inverse_permeability: Any
    """[*grid.shape], 1 / length^2, not negative: adds the drag nu / K u of a porous solid; None without."""
    pressure_null_space: bool = flax.struct.field(pytree_node=False)
    """Whether the pressure is fixed up to a constant only: no open side."""
    velocity_null_space: tuple[bool, ...] = flax.struct.field(pytree_node=False)
    """An axis: whether a constant velocity along it meets no resistance."""
    connected: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether the mask was known, and its fluid hangs together."""

    def laplacian(self, velocity: Velocity) -> Velocity:
        """A u = -M lap u with zero boundary values, plus the porous drag over nu. Symmetric, positive semidefinite."""
        return _laplacian(self, velocity)

    def divergence(self, velocity: Velocity) -> Float[Array, "*cells"]:
        """B u = -div u with zero boundary values, zero in solid cells."""
        return _divergence(self, velocity)

    def gradient(self, pressure: Float[Array, "*cells"]) -> Velocity:
        """B^T p, the exact adjoint of `divergence`: M grad p, with p = 0 beyond open sides."""
        return _gradient(self, pressure)

    def saddle(self, unknowns: tuple[Velocity, Array]) -> tuple[Velocity, Array]:
        """(u, p) to (nu A u + B^T p, B u)."""
        velocity, pressure = unknowns
        nu = jnp.asarray(self.viscosity, pressure.dtype)
        momentum = jax.tree.map(lambda au, bp: nu * au + bp, self.laplacian(velocity), self.gradient(pressure))
        return momentum, self.divergence(velocity)

    def as_linear_operator(self, name: str, dtype: Any = float) -> lineax.AbstractLinearOperator:
        """`laplacian`, `divergence`, `gradient` or `saddle` as an operator of lineax."""
        velocity, pressure = self.structure(dtype)
        structures = {
            "laplacian": (velocity, lineax.positive_semidefinite_tag), "divergence": (velocity, ()),
            "gradient": (pressure, ()), "saddle": ((velocity, pressure), lineax.symmetric_tag),
        }  # fmt: skip
        if name not in structures:
            arguments.refuse("as_linear_operator", "name", repr(name), f"one of {sorted(structures)}", "see the class")
        structure, tags = structures[name]
        return lineax.FunctionLinearOperator(getattr(self, name), structure, tags)

    def structure(self, dtype: Any = float) -> tuple[Velocity, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a velocity and a pressure."""
        dtype = jnp.result_type(dtype)
        faces = [jax.ShapeDtypeStruct(shape, dtype) for shape in face_shapes(self.grid, self.boundary)]
        return Velocity(*faces), jax.ShapeDtypeStruct(self.grid.shape, dtype)

    def to_dense(self, name: str = "saddle", dtype: Any = float) -> Float[Array, "rows columns"]:
        """One of the four operators as a matrix, unknowns raveled in the order u, v[, w], p; for small grids.

        Raises:
          ValueError: more than 20,000 unknowns.
        """
        operator = self.as_linear_operator(name, dtype)
        if operator.in_size() > _LARGEST_DENSE:
            got = f"on {operator.in_size()} unknowns"
            arguments.refuse("to_dense", "name", got, f"at most {_LARGEST_DENSE}", "use to_sparse() or fewer cells")
        return dense(operator.mv, operator.in_structure())

    def to_sparse(self, dtype: Any = float) -> Any:
        """The saddle-point matrix as a scipy CSR array, for reference and for direct solvers on the host.

        Unknowns are raveled in the order u, v[, w], p. Rows of unknowns inside the solid are those of the identity.
        Where the matrix is singular, the first pressure (and first velocity component) of the null space is pinned:
        its row and column are those of the identity.
        """
        from jaxnm.stokes.sparse import saddle_matrix

        return saddle_matrix(self, dtype)

    def fluid_cells(self) -> Bool[Array, "*cells"]:
        """True in the fluid."""
        return jnp.ones(self.grid.shape, bool) if self.solid is None else ~self.solid

    def active_faces(self) -> Velocity:
        """Booleans on the unknown faces, False inside and on the solid, where the velocity is zero and no unknown."""
        return Velocity(*(_active(self, c) for c in range(self.grid.dim)))

    def mass(self, dtype: Any = float) -> Velocity:
        """M on the unknown faces: 1, and 1/2 on open sides."""
        dtype = jnp.result_type(dtype)
        shapes = face_shapes(self.grid, self.boundary)
        lines = [along(c, self.grid.dim, mass_line(self, c)) for c in range(self.grid.dim)]
        return Velocity(
            *(jnp.broadcast_to(jnp.asarray(m, dtype), shape) for m, shape in zip(lines, shapes, strict=True))
        )


def discretize(
    grid: Grid,
    boundary: Boundary,
    *,
    viscosity: Float[ArrayLike, ""] = 1.0,
    solid: Bool[ArrayLike, "*cells"] | None = None,
    inverse_permeability: Float[ArrayLike, "*cells"] | None = None,
) -> StokesOperators:
    """The staggered discretization of stationary Stokes flow.

    Args:
      grid: the cells.
      boundary: the kinds of the sides.
      viscosity: nu > 0, a scalar. May be traced.
      solid: [*grid.shape] booleans, True in the solid, whose surface is a no-slip wall.
      inverse_permeability: [*grid.shape], >= 0, in 1 / length^2: the drag of a porous or partial solid (Brinkman), the
        differentiable way to describe a geometry. Averaged from cells to faces.

    Returns:
      `StokesOperators`.

    Raises:
      ValueError: an axis of one cell that is not periodic (a periodic one is a slab), a viscosity that is not positive,
        a mask of the wrong shape or without fluid, fluid cells that no flow can reach (named with their position;
        `largest_component` fills them), when the mask is known while tracing. TypeError: a mask that is not boolean.

    Cost: none on a box; some passes over the mask.
    Differentiable in the corners of the grid, the viscosity and the inverse permeability.

    Source: F. H. Harlow, J. E. Welch, Phys. Fluids 8 (1965), 2182-2189 (the grid); S. Pimanov, I. Oseledets,
    arXiv:2309.01255 (the Schur complement).

    Example:
      >>> operators = discretize(Grid((4, 4), (0.0, 0.0), (1.0, 1.0)), Boundary())
      >>> float(operators.divergence(Velocity(jnp.ones((3, 4)), jnp.zeros((4, 3))))[3, 0])
      4.0
    """
    check_grid("discretize", grid, boundary)
    arguments.check_number(
        "discretize", "viscosity", viscosity, "a positive number", lambda nu: nu > 0, "scale the problem"
    )
    if isinstance(viscosity, jax.Array):
        arguments.check_dtype("discretize", "viscosity", viscosity.dtype)
    if inverse_permeability is not None:
        (inverse_permeability,) = arguments.to_arrays("discretize", inverse_permeability=inverse_permeability)
        arguments.check_shape(
            "discretize", "inverse_permeability", inverse_permeability, f"{grid.shape}", lambda s: s == grid.shape
        )
    if solid is not None:
        solid = as_solid("discretize", solid, grid)
        if is_concrete(solid):
            check_fluid("discretize", np.asarray(solid), boundary)
    return StokesOperators(
        grid=grid,
        boundary=boundary,
        viscosity=viscosity,
        solid=solid,
        inverse_permeability=inverse_permeability,
        pressure_null_space=has_pressure_null_space(grid, boundary, solid),
        velocity_null_space=has_velocity_null_space(grid, boundary, solid, inverse_permeability),
        connected=solid is not None and is_concrete(solid),
    )


def check_operators(function: str, operators: Any) -> None:
    """Refuse what is no `StokesOperators`."""
    if not isinstance(operators, StokesOperators):
        got = f"of type {type(operators).__name__}"
        arguments.refuse(function, "operators", got, "StokesOperators", "use discretize(...)", error=TypeError)


# ------------------------------------------------------------------------------------------------- parts of a stencil


def shift(array: Array, axis: int, step: int, wrap: bool) -> Array:
    """`array` moved by `step` (1 or -1) along an axis: entry i holds what was at i - step; zero where nothing was."""
    if wrap:
        return jnp.roll(array, step, axis)
    n = array.shape[axis]
    edge = jnp.zeros_like(jax.lax.slice_in_dim(array, 0, 1, axis=axis))
    parts = [edge, jax.lax.slice_in_dim(array, 0, n - 1, axis=axis)]
    if step < 0:
        parts = [jax.lax.slice_in_dim(array, 1, n, axis=axis), edge]
    return jnp.concatenate(parts, axis)


def beside(cells: Array, boundary: Boundary, component: int, side: int) -> Array:
    """What the cell below (side 0) or above (side 1) each unknown face holds; zero (False) beyond an open side."""
    low, high = boundary.is_open(component)
    n = cells.shape[component]
    if boundary.is_periodic(component):
        return jnp.roll(cells, 1, component) if side == 0 else cells
    keep = slice(0, n if high else n - 1) if side == 0 else slice(0 if low else 1, n)
    kept = jax.lax.slice_in_dim(cells, keep.start, keep.stop, axis=component)
    edge = jnp.zeros_like(jax.lax.slice_in_dim(cells, 0, 1, axis=component))
    if side == 0 and low:
        return jnp.concatenate([edge, kept], component)
    if side == 1 and high:
        return jnp.concatenate([kept, edge], component)
    return kept


def at_open_side(n: int, boundary: Boundary, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Which unknown faces across an axis with n cells lie on its lower and its upper open side."""
    low, high = boundary.is_open(axis)
    count = n if boundary.is_periodic(axis) else n - 1 + low + high
    lower, upper = np.zeros(count, bool), np.zeros(count, bool)
    lower[:1], upper[-1:] = low, high
    return lower, upper


def along(axis: int, dim: int, line: Any) -> Any:
    """A vector along one axis of `dim`, to broadcast."""
    return line.reshape([-1 if a == axis else 1 for a in range(dim)])


def mass_line(operators: StokesOperators, component: int) -> np.ndarray:
    """M along the own axis of a component."""
    lower, upper = at_open_side(operators.grid.shape[component], operators.boundary, component)
    return np.where(lower | upper, 0.5, 1.0)


def _active(operators: StokesOperators, component: int) -> Array:
    """Fluid on both sides; beyond an open side there is fluid."""
    shape = face_shapes(operators.grid, operators.boundary)[component]
    if operators.solid is None:
        return jnp.ones(shape, bool)
    return ~(
        beside(operators.solid, operators.boundary, component, 0)
        | beside(operators.solid, operators.boundary, component, 1)
    )


def diagonal(operators: StokesOperators, component: int, axis: int, side: int) -> Any:
    """h^2 times what the neighbour of a face on one side of one axis adds to the diagonal of A, without the mass.

    1 for another unknown and for a face on a wall, where the velocity is zero; 2 beside a flat wall, by reflection; 0
    where there is no shear. Broadcastable to the component.
    """
    boundary, grid = operators.boundary, operators.grid
    n = face_shapes(grid, boundary)[component][axis]
    at_side = np.zeros(n, bool)
    at_side[-1 if side else 0] = True
    if boundary.is_periodic(axis):
        line = np.ones(n)
    elif axis == component:
        line = np.where(at_side & boundary.is_open(axis)[side], 0.0, 1.0)
    else:
        line = np.where(at_side, 2.0 if boundary[axis][side] in REFLECTED else 0.0, 1.0)
    line = along(axis, grid.dim, line.astype(np.float32))  # small integers, exact in every dtype
    if operators.solid is None or axis == component:
        return line
    # A neighbour with solid on both sides lies inside a flat wall.
    step, wrap = -1 if side else 1, boundary.is_periodic(axis)
    behind = [shift(beside(operators.solid, boundary, component, s), axis, step, wrap) for s in (0, 1)]
    # beyond an open side the solid goes on as a wall does
    lower, upper = (
        along(component, grid.dim, edge) for edge in at_open_side(grid.shape[component], boundary, component)
    )
    flat = (behind[0] | lower) & (behind[1] | upper) & (behind[0] | behind[1])
    return jnp.where(flat, 2.0, line)


def _laplacian(operators: StokesOperators, velocity: Velocity) -> Velocity:
    grid, boundary = operators.grid, operators.boundary
    results = []
    for c, u in enumerate(velocity.components):
        number = lambda value, dtype=u.dtype: jnp.asarray(value, dtype)
        active = None if operators.solid is None else number(_active(operators, c))
        u = u if active is None else u * active
        mass = number(along(c, grid.dim, mass_line(operators, c)))
        total = jnp.zeros_like(u)
        for axis in range(grid.dim):
            wrap = boundary.is_periodic(axis)
            weight = sum(diagonal(operators, c, axis, side) for side in (0, 1))
            second = number(weight) * u - shift(u, axis, 1, wrap) - shift(u, axis, -1, wrap)
            inverse_square = number(1 / operators.grid.spacing[axis] ** 2)
            total = total + second * (inverse_square if axis == c else inverse_square * mass)
        if operators.inverse_permeability is not None:
            total = total + drag_on_faces(operators, c, u.dtype) * u
        results.append(total if active is None else total * active)
    return Velocity(*results)


def drag_on_faces(operators: StokesOperators, component: int, dtype: Any) -> Array:
    """M / K on the faces: the mean of the two cells beside a face, half the one cell at an open side."""
    cells = jnp.asarray(operators.inverse_permeability).astype(dtype)
    return (beside(cells, operators.boundary, component, 0) + beside(cells, operators.boundary, component, 1)) / 2


def all_faces(velocity: Velocity, boundary: Boundary) -> Velocity:
    """Each component on all n + 1 faces across its axis: zero on walls and inflow sides, periodic ones repeated."""
    full = []
    for c, u in enumerate(velocity.components):
        if boundary.is_periodic(c):
            full.append(jnp.concatenate([u, jax.lax.slice_in_dim(u, 0, 1, axis=c)], c))
        else:
            ends = tuple(0 if opened else 1 for opened in boundary.is_open(c))
            full.append(jnp.pad(u, [ends if axis == c else (0, 0) for axis in range(u.ndim)]))
    return Velocity(*full)


def outflux(faces: Velocity, grid: Grid) -> Array:
    """Divergence [*cells] of a velocity given on all faces."""
    parts = [
        jnp.diff(face, axis=axis) / jnp.asarray(grid.spacing[axis]).astype(face.dtype)
        for axis, face in enumerate(faces.components)
    ]
    return sum(parts[1:], parts[0])


def _divergence(operators: StokesOperators, velocity: Velocity) -> Array:
    if operators.solid is not None:
        active = operators.active_faces()
        velocity = jax.tree.map(lambda u, a: u * a.astype(u.dtype), velocity, active)
    return -outflux(all_faces(velocity, operators.boundary), operators.grid)


def _gradient(operators: StokesOperators, pressure: Array) -> Velocity:
    boundary, grid = operators.boundary, operators.grid
    if operators.solid is not None:
        pressure = pressure * operators.fluid_cells().astype(pressure.dtype)
    results = []
    for c in range(grid.dim):
        jump = beside(pressure, boundary, c, 1) - beside(pressure, boundary, c, 0)
        slope = jump / jnp.asarray(grid.spacing[c]).astype(pressure.dtype)
        results.append(slope if operators.solid is None else slope * _active(operators, c).astype(slope.dtype))
    return Velocity(*results)


def dense(function: Callable[[Any], Any], structure: Any) -> Array:
    """The matrix of a linear function of pytrees of one dtype, by its columns."""
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    flat, unravel = jax.flatten_util.ravel_pytree(zero)
    column = lambda unit: jax.flatten_util.ravel_pytree(function(unravel(unit)))[0]
    return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
