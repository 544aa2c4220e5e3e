"""Solve Stokes flow: the public functions, which bring any units to those of `units` and back (see `saddle`)."""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.status import Status, first_failing
from jaxnm.stokes import preconditioners, saddle, units
from jaxnm.stokes.boundary_values import PRESSURE, BoundaryValues, check_values, right_hand_side
from jaxnm.stokes.direct import factorize_box
from jaxnm.stokes.grid import Boundary, Velocity, check_velocity
from jaxnm.stokes.operators import StokesOperators, check_operators
from jaxnm.trees import all_finite

Method = Literal["auto", "direct", "schur_cg", "simple_cg", "minres"]
_METHODS = ("auto", "direct", "schur_cg", "simple_cg", "minres")


@flax.struct.dataclass
class SolveStats:
    """How well the discrete equations are satisfied, measured on what is returned."""

    iterations: Int32[Array, ""]
    """Steps of the outer iteration; 0 for the direct solver."""
    momentum_residual: Float[Array, ""]
    """Largest |nu A u + B^T p - F| over the size D of the data, the larger of |F| and nu |H| / h; h is the smallest
    spacing, rounded down to a power of two."""
    divergence: Float[Array, ""]
    """Largest |B u - H| h over the larger of |u| and D h^2 / nu, the velocity that the data would cause in one cell."""
    compatibility_defect: Float[Array, ""]
    """|sum of H| over the sum of |H|: what of the divergence data the net flux through the sides contradicts, summed
    over the parts of the fluid that no open side belongs to. It was taken out evenly."""
    force_defect: Float[Array, ""]
    """The same of the force along axes on which nothing holds the fluid."""


@flax.struct.dataclass
class StokesSolution:
    """Velocity and pressure, and how they were reached."""

    velocity: Velocity
    """On the unknown faces; zero on solids, of zero mean along axes on which nothing holds the fluid."""
    pressure: Float[Array, "*cells"]
    """Zero in solids; of zero mean over the fluid unless a side is open."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, INCOMPATIBLE_DATA, NOT_CONVERGED, NONFINITE_RESULT, INACCURATE."""
    stats: SolveStats


@flax.struct.dataclass
class StokesFactor:
    """What a method computes once for given operators, to be used for many right-hand sides."""

    method: str = flax.struct.field(pytree_node=False)
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    """Of the grid."""
    boundary: Boundary = flax.struct.field(pytree_node=False)
    direct: Any
    """`DirectFactor` for "direct", else None."""
    velocity_levels: Any
    """Multigrid for A, None where it is inverted exactly."""
    pressure_levels: Any
    """Multigrid for the preconditioner of the pressure, if it has one."""


def factorize(operators: StokesOperators, *, method: Method = "auto", dtype: Any = float) -> StokesFactor:
    """The part of a solution that does not depend on the right-hand side.

    Args:
      operators: from `discretize`.
      method: as in `solve`.
      dtype: of the right-hand sides to come.

    Returns:
      `StokesFactor`, a pytree to pass to `solve(..., factor=...)`, also under `vmap` over right-hand sides.

    Raises:
      ValueError: an unknown method, or `direct` for other than a two-dimensional box without solid and drag.

    Cost: `direct`, about 9 (n/2)^3 multiplications for n x n cells; `minres`, ten multigrid cycles.
    Not differentiable (and need not be: `solve` differentiates the equations).

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> factorize(discretize(Grid((4, 4)), Boundary())).method
      'direct'
    """
    check_operators("factorize", operators)
    dtype = arguments.float_dtype("factorize", dtype)
    operators = _as_arrays(operators, dtype)
    return _factorize(operators, choose_method("factorize", operators, method), dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _factorize(operators: StokesOperators, method: str, dtype: Any) -> StokesFactor:
    operators = units.in_unit_cells(jax.lax.stop_gradient(operators), dtype)
    new = partial(StokesFactor, method, operators.grid.shape, operators.boundary)
    if method == "direct":
        return new(factorize_box(operators.grid, operators.boundary, dtype), None, None)
    if method == "schur_cg" and _is_plain_box(operators):
        return new(None, None, None)
    velocity_levels = preconditioners.velocity_levels(operators, dtype)
    pressure_levels = None
    if method == "simple_cg":
        pressure_levels = preconditioners.simple_levels(operators, dtype)
    elif method == "minres":
        pressure_levels = preconditioners.mobility_levels(operators, velocity_levels, dtype)
    return new(None, velocity_levels, pressure_levels)


def solve(
    operators: StokesOperators,
    force: Velocity,
    *,
    divergence: Float[ArrayLike, "*cells"] | None = None,
    boundary_values: BoundaryValues | None = None,
    method: Method = "auto",
    factor: StokesFactor | None = None,
    rtol: float | None = None,
    max_steps: int = 1000,
    refinements: int = 0,
) -> StokesSolution:
    """Velocity and pressure of `-nu lap u + grad p = force`, `div u = divergence`.

    Args:
      operators: from `discretize`.
      force: per volume, on the unknown faces (see `face_shapes`; on a box of nx x ny cells between walls u is
        [nx - 1, ny], v [nx, ny - 1]). Its dtype is that of the solution.
      divergence: [*grid.shape]; zero by default.
      boundary_values: from `boundary_values(grid, boundary).set(...)`; zero by default.
      method: "direct" (two-dimensional boxes), "schur_cg" (conjugate gradients on the Schur complement, with A^-1 exact
        on boxes and by multigrid else), "simple_cg" (the same with the SIMPLE preconditioner, for porous domains),
        "minres" (on velocity and pressure together, multigrid for A, and for the pressure the identity plus the inverse
        of a Darcy operator). "auto": direct on two-dimensional boxes, schur_cg on three-dimensional ones, else minres.
      factor: from `factorize`, to save its cost; it decides the method. One of another grid or boundary is refused;
        one of another mask, viscosity or size is not seen, but its solution is measured with these operators.
      rtol: what `momentum_residual` and `divergence` of the result have to be, measured on the result; iterations
        start again from the true residual until they are, or until that is rounding (16 eps |A| |u| and the like). The
        direct solver leaves rounding. 1e-10 in float64, 1e-5 in float32. May be traced.
      max_steps: of the iterations. May be traced.
      refinements: steps of iterative refinement with the true residual (static).

    Returns:
      `StokesSolution(velocity, pressure, status, stats)`.

    Raises:
      ValueError: shapes that do not fit, an unknown method, data of another grid. TypeError: integer data.

    Status:
      NONFINITE_INPUT: inf or NaN in the data; all NaN. OUT_OF_RANGE: a viscosity or a spacing that is not positive, or
      a negative drag; all NaN. NONFINITE_RESULT: overflow. INCOMPATIBLE_DATA: `compatibility_defect` or `force_defect`
      above sqrt(eps), so that nothing holds the fluid, or more flows into a part of it than out; the data without that
      were solved. NOT_CONVERGED: too few steps; the best iterate (of schur_cg, `divergence` shows how far, since it
      satisfies the momentum equation at every step). INACCURATE: the residual is above both rtol and rounding, as of a
      factor of other operators, or the velocity is below the smallest number of its dtype.

    Data, viscosity and cells may have any size: the system is solved in units in which they are of size one.
    Cost: direct, five scalar transforms of the grid; schur_cg about 20 steps of one A^-1 each.
    Differentiable (every order, forward and reverse) in force, divergence, boundary values, viscosity, the corners of
    the grid and the inverse permeability, by one more solution with the same operators, not through the iterations. If
    that is not accurate, the derivative is NaN.

    Source: see `jaxnm.stokes.direct` and arXiv:2309.01255.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4), (0.0, 0.0), (1.0, 1.0)), Boundary()
      >>> solution = solve(discretize(grid, boundary), zero_velocity(grid, boundary))
      >>> int(solution.status), float(solution.stats.momentum_residual)
      (0, 0.0)
    """
    check_operators("solve", operators)
    force = check_velocity("solve", "force", force, operators.grid, operators.boundary)
    dtype = force.u.dtype
    operators = _as_arrays(operators, dtype)
    if divergence is not None:
        (divergence,) = arguments.to_arrays("solve", divergence=divergence)
        shape = operators.grid.shape
        arguments.check_shape("solve", "divergence", divergence, f"{shape}", lambda s: s == shape)
        divergence = divergence.astype(dtype)
    check_values("solve", "boundary_values", boundary_values, operators)
    if factor is None:
        factor = _factorize(operators, choose_method("solve", operators, method), dtype)
    _check_factor(operators, factor, dtype)
    rtol = (1e-10 if dtype == jnp.float64 else 1e-5) if rtol is None else rtol
    arguments.check_number("solve", "rtol", rtol, "in (0, 1)", lambda value: 0 < value < 1, "try 1e-8")
    arguments.check_cap("solve", "max_steps", max_steps)
    arguments.check_count("solve", "refinements", refinements)
    limits = arguments.constant(rtol, dtype), arguments.constant(max_steps, jnp.int32)
    return _solve(operators, factor, force, divergence, boundary_values, *limits, refinements)


def _as_arrays(operators: StokesOperators, dtype: Any) -> StokesOperators:
    """With Python numbers of the grid and the viscosity moved to the device, which a transfer guard allows."""
    to_device = lambda leaf: arguments.constant(leaf, dtype) if arguments.is_number(leaf) else leaf
    return jax.tree.map(to_device, operators)


def _check_factor(operators: StokesOperators, factor: StokesFactor, dtype: Any) -> None:
    """Refuse a factor that is seen to be of other operators; of one that is not seen the residual will tell."""
    if not isinstance(factor, StokesFactor):
        got = f"of type {type(factor).__name__}"
        arguments.refuse("solve", "factor", got, "a StokesFactor", "use factorize(...)", error=TypeError)
    if (factor.shape, factor.boundary) != (operators.grid.shape, operators.boundary):
        arguments.refuse("solve", "factor", "of another grid or boundary", "that of the operators", "make it anew")
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(factor) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    if not dtypes <= {jnp.dtype(dtype)}:
        got = f"of dtype {', '.join(map(str, dtypes))}"
        arguments.refuse("solve", "factor", got, f"{dtype}, that of the force", "pass dtype=... to factorize")
    if factor.method == "direct" and not _is_plain_box(operators):
        got = "of 'direct' for a domain with solid or drag"
        arguments.refuse("solve", "factor", got, "one of these operators", "make it anew")


def choose_method(function: str, operators: StokesOperators, method: Method) -> str:
    """The method meant by "auto", or the one given if it fits the domain."""
    arguments.check_option(function, "method", method, _METHODS, "use 'auto'")
    box, dim = _is_plain_box(operators), operators.grid.dim
    if method == "direct" and not (box and dim == 2):
        got = "'direct' for " + ("three dimensions" if dim == 3 else "a domain with solid or drag")
        arguments.refuse(function, "method", got, "a two-dimensional box", "use 'auto'")
    if method != "auto":
        return method
    return ("direct" if dim == 2 else "schur_cg") if box else "minres"


def _is_plain_box(operators: StokesOperators) -> bool:
    return operators.solid is None and operators.inverse_permeability is None


@partial(jax.jit, static_argnums=7)
def _solve(
    operators: StokesOperators,
    factor: StokesFactor,
    force: Velocity,
    divergence: Array | None,
    values: BoundaryValues | None,
    rtol: Array,
    max_steps: Array,
    refinements: int,
) -> StokesSolution:
    dtype = force.u.dtype
    data = (force, divergence, None if values is None else values.values, operators)
    finite, in_range = all_finite(data), _in_range(operators)
    scaled, unit, back = _in_units(operators, force, divergence, values)
    cells, force, divergence, values = scaled
    null = saddle.null_space(cells, dtype)
    right, mass = right_hand_side(cells, force, divergence, values)
    right, force_defect = saddle.balanced_force(null, right)
    compatibility = jnp.zeros((), dtype)
    if mass is None:
        mass = jnp.zeros(cells.grid.shape, dtype)
    else:
        mass, compatibility = saddle.balanced_mass(null, mass)
    nu = cells.viscosity
    (w, pressure), figures = saddle.solve_saddle(cells, null, factor, (right, nu * mass), rtol, max_steps, refinements)
    guard = jnp.where(finite & in_range, jnp.ones((), dtype), jnp.asarray(jnp.nan, dtype))
    velocity = units.times(jax.tree.map(lambda part: part * (guard / nu), w), back[1])
    pressure = units.times(pressure * guard, back[0])

    detached = jax.lax.stop_gradient
    ratio = lambda a, b: guard * a / jnp.where(b > 0, b, jnp.ones_like(b))
    stats = SolveStats(
        iterations=figures.steps,
        momentum_residual=detached(ratio(figures.momentum, figures.data)),
        divergence=detached(ratio(figures.flux, jnp.maximum(figures.velocity, figures.data))),
        compatibility_defect=detached(guard * compatibility),
        force_defect=detached(guard * force_defect),
    )
    conflict = jnp.maximum(stats.compatibility_defect, stats.force_defect) > jnp.sqrt(jnp.finfo(dtype).eps)
    # of a velocity below the smallest number nothing is left
    size = unit.velocity + units.exponent_of(figures.velocity)
    vanished = (figures.velocity > 0) & (size < int(jnp.finfo(dtype).minexp))
    accurate = (figures.excess <= 1) & ~vanished
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~in_range, Status.OUT_OF_RANGE),
        (~all_finite(detached((velocity, pressure))), Status.NONFINITE_RESULT),
        (conflict, Status.INCOMPATIBLE_DATA),
        (~accurate & (figures.code == Status.NOT_CONVERGED), Status.NOT_CONVERGED),
        (~accurate, Status.INACCURATE),
    )
    return StokesSolution(velocity, pressure, status, stats)


def _in_range(operators: StokesOperators) -> Array:
    positive = [jnp.asarray(operators.viscosity) > 0, *(jnp.asarray(h) > 0 for h in operators.grid.spacing)]
    in_range = jnp.all(jnp.stack(positive))
    if operators.inverse_permeability is not None:
        in_range &= jnp.all(operators.inverse_permeability >= 0)
    return in_range


def _in_units(
    operators: StokesOperators, force: Velocity, divergence: Array | None, values: BoundaryValues | None
) -> tuple[tuple[StokesOperators, Velocity, Array | None, BoundaryValues | None], units.Units, tuple[Array, ...]]:
    """The problem in units in which cells, viscosity and the largest of the data are of size one.

    Then those units, and the factors that lead back from them for a pressure and a velocity.
    """
    dtype = force.u.dtype
    length = units.length_of(operators, dtype)
    nu = jnp.asarray(operators.viscosity).astype(dtype)
    viscosity = units.known_or_zero(units.exponent_of(nu))
    prescribed = {} if values is None else {key: value.astype(dtype) for key, value in values.values.items()}
    pressures = {key: value for key, value in prescribed.items() if key[2] == PRESSURE}
    velocities = {key: value for key, value in prescribed.items() if key[2] != PRESSURE}
    # the velocity that each of the data would cause in one cell
    sizes = [
        units.exponent_of(force) + 2 * length - viscosity,
        units.exponent_of(divergence) + length,
        units.exponent_of(pressures) + length - viscosity,
        units.exponent_of(velocities),
    ]
    unit = units.Units(length, viscosity, units.known_or_zero(jnp.max(jnp.stack(sizes))))
    into, drag_into, nu_into, force_into, divergence_into, pressure_into, velocity_into, *back = units.powers(
        dtype, -length, 2 * length, -viscosity, -unit.force, -unit.divergence, -unit.pressure, -unit.velocity,
        unit.pressure, unit.velocity,
    )  # fmt: skip
    if values is not None:
        values = dataclasses.replace(
            values, values={**units.times(pressures, pressure_into), **units.times(velocities, velocity_into)}
        )
    cells = dataclasses.replace(units.on_cells(operators, into, drag_into), viscosity=units.times(nu, nu_into))
    scaled = cells, units.times(force, force_into), units.times(divergence, divergence_into), values
    return scaled, unit, tuple(back)
