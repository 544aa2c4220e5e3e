"""The permeability of a sample of a porous medium, repeated periodically."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int32

from jaxnm import arguments
from jaxnm.status import Status
from jaxnm.stokes import units
from jaxnm.stokes.connectivity import components
from jaxnm.stokes.counting import percolating_axes
from jaxnm.stokes.grid import Boundary, Grid, Velocity, as_solid, face_shapes, is_concrete
from jaxnm.stokes.operators import StokesOperators, discretize
from jaxnm.stokes.solvers import Method, SolveStats, StokesSolution, solve

_TORUS = Boundary("periodic", "periodic", "periodic")


@flax.struct.dataclass
class Permeability:
    """The tensor, and for each axis how well the flow that is driven along it was computed."""

    tensor: Float[Array, "dim dim"]
    """K in `mean u = -K grad p / nu`, symmetric; zero in the rows and columns of axes that no path through the fluid
    leads along. Column d comes from the flow driven along axis d."""
    status: Int32[Array, "dim"]
    """Of the flow along each axis: those of `solve`, and NOT_PERCOLATING."""
    stats: SolveStats
    """Of the same flows, each field [dim]."""


def permeability(
    solid: Bool[ArrayLike, "*cells"] | None = None,
    *,
    spacing: ArrayLike | tuple[ArrayLike, ...] | list[ArrayLike] = 1.0,
    inverse_permeability: Float[ArrayLike, "*cells"] | None = None,
    method: Method = "auto",
    rtol: float | None = None,
    dtype: Any = float,
) -> Permeability:
    """The permeability tensor of a periodic cell: mean velocities (over the whole cell) of unit pressure gradients.

    Args:
      solid: [*cells] booleans in two or three dimensions, True in the solid. One that is traced may have fluid that
        does not hang together: a closed pore adds nothing.
      spacing: size of a cell, one number or one for each axis; K has its unit squared.
      inverse_permeability: [*cells] in 1 / spacing^2, for porous or partial solids; differentiable.
      method: as in `solve`.
      rtol: as in `solve`.
      dtype: float32 or float64.

    Returns:
      `Permeability(tensor, status, stats)`.

    Raises:
      ValueError: neither mask nor drag, a spacing of another length, or fluid that does not hang together in a mask
        that is known while tracing. TypeError: a mask that is not boolean.

    Status:
      For each axis that of `solve`, whose INCOMPATIBLE_DATA means here that nothing resists the flow (the column is
      NaN). NOT_PERCOLATING: no path through the fluid leads along the axis, so that its rows and columns are zero.
      INACCURATE: also where the residual does more than sqrt(eps) of the work of the driving force, which is the
      relative error of K, as at a uniform drag that is tiny beside 1 / spacing^2.

    Cost: one solution for each axis, together under `vmap`.
    Differentiable in the spacing and the inverse permeability.

    Example:
      >>> solid = jnp.zeros((4, 8), bool).at[:, 0].set(True)
      >>> slit = permeability(solid)
      >>> round(float(slit.tensor[0, 0]), 4), slit.status.tolist()
      (3.7188, [0, 13])
    """
    cells = solid if solid is not None else inverse_permeability
    if cells is None:
        arguments.refuse("permeability", "solid", "None", "a mask, or inverse_permeability", "pass one of them")
    name = "solid" if solid is not None else "inverse_permeability"
    numeric = arguments.is_numeric(cells) or isinstance(cells, list)
    if not numeric or np.ndim(cells) not in (2, 3):
        got = f"of shape {np.shape(cells)}" if numeric else f"a {type(cells).__name__}"
        arguments.refuse("permeability", name, got, "an array in two or three dimensions", "pass a picture of the cell")
    shape = np.shape(cells)
    several: Any = spacing
    for size in several if isinstance(several, tuple | list) else (several,):
        arguments.check_number("permeability", "spacing", size, "> 0", lambda h: h > 0, "it is a length", scalar=False)
        if not arguments.is_numeric(size) or jnp.iscomplexobj(size):
            got, expected = f"a {type(size).__name__}", "one real number, or one for each axis"
            arguments.refuse("permeability", "spacing", got, expected, "it is a length", error=TypeError)
    sizes = tuple(several) if isinstance(several, tuple | list) or jnp.ndim(several) else (several,) * len(shape)
    if len(sizes) != len(shape):
        arguments.refuse(
            "permeability", "spacing", f"of {len(sizes)} numbers", f"one number or {len(shape)}", "one for each axis"
        )
    dtype = arguments.float_dtype("permeability", dtype)
    # arrays of one dtype, which a transfer guard allows
    number = lambda value: arguments.constant(value, dtype)
    corners = tuple(number(0.0) for _ in shape), tuple(number(n) * number(h) for n, h in zip(shape, sizes, strict=True))
    grid = Grid(shape, *corners)
    operators = discretize(grid, _TORUS, viscosity=number(1.0), solid=solid, inverse_permeability=inverse_permeability)
    # [driven, ...]: one along the axis that drives, zero along the others
    unit = lambda c, faces: np.broadcast_to(np.eye(grid.dim)[c].reshape(-1, *[1] * grid.dim), (grid.dim, *faces))
    shapes = face_shapes(grid, _TORUS)
    forces = Velocity(*(arguments.constant(unit(c, faces), dtype) for c, faces in enumerate(shapes)))
    solution = jax.vmap(lambda force: solve(operators, force, method=method, rtol=rtol))(forces)
    if solid is None:
        percolates = arguments.constant(np.ones(grid.dim), bool)
    else:
        mask = as_solid("permeability", solid, grid)
        winds = percolating_axes(np.asarray(mask), _TORUS) if is_concrete(mask) else None
        percolates = jnp.any(components(mask, _TORUS).winds, 0) if winds is None else arguments.constant(winds, bool)
    return _permeability(operators, forces, solution, percolates)


@jax.jit
def _permeability(
    operators: StokesOperators, forces: Velocity, solution: StokesSolution, percolates: Array
) -> Permeability:
    dim, dtype = operators.grid.dim, forces.u.dtype
    axes = tuple(range(1, dim + 1))
    means = jnp.stack([jnp.mean(part, axes) for part in solution.velocity.components])
    among = lambda *codes: jnp.any(jnp.stack([solution.status == jnp.int32(code) for code in codes]), 0)
    invalid = among(Status.NONFINITE_INPUT, Status.OUT_OF_RANGE)
    status = jnp.where(percolates | invalid, solution.status, jnp.int32(Status.NOT_PERCOLATING))
    exact = jax.vmap(partial(_work_of_residual, operators))(forces, solution) <= jnp.sqrt(jnp.finfo(dtype).eps)
    status = jnp.where((status == jnp.int32(Status.OK)) & ~exact, jnp.int32(Status.INACCURATE), status)
    tensor = jnp.where(percolates[:, None] & percolates[None], means, jnp.zeros_like(means))
    usable = ~(invalid | (percolates & among(Status.INCOMPATIBLE_DATA)))
    return Permeability(arguments.nan_unless(tensor.T, usable, 1).T, status, solution.stats)


def _work_of_residual(operators: StokesOperators, force: Velocity, solution: StokesSolution) -> Array:
    """|sum of r u| / |sum of f u|, r = f - A u - B^T p: to first order the relative error of the mean velocity."""
    operators, u, p = jax.lax.stop_gradient((operators, solution.velocity, solution.pressure))
    dtype = force.u.dtype
    length = units.length_of(operators, dtype)
    velocity_into, pressure_into = units.powers(dtype, -2 * length, -length)
    u, p = units.times(u, velocity_into), units.times(p, pressure_into)
    cells = units.in_unit_cells(operators, dtype)
    left = jax.tree.map(lambda f, a, b: f - a - b, force, cells.laplacian(u), cells.gradient(p))
    work = lambda one: sum(jnp.sum(a * b) for a, b in zip(one.components, u.components, strict=True))
    return jnp.abs(work(left)) / jnp.abs(work(force))
