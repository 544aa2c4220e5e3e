"""Solve the saddle-point system: directly on boxes, by Krylov methods elsewhere; differentiable without the iterations.

The unknowns are w = nu u and p, so that the viscosity multiplies data and results and enters no iteration:

    A w + B^T p = F,      B w = nu H.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.linalg.implicit import solve_implicitly
from jaxnm.linalg.krylov import conjugate_gradient_loop, minres_loop
from jaxnm.status import Status, first_failing
from jaxnm.stokes import preconditioners
from jaxnm.stokes.boundary_values import BoundaryValues, right_hand_side
from jaxnm.stokes.direct import factorize_box, solve_box
from jaxnm.stokes.grid import Velocity, check_velocity
from jaxnm.stokes.operators import StokesOperators
from jaxnm.stokes.spectral import solve_laplacian
from jaxnm.trees import all_finite

Method = Literal["auto", "direct", "schur_cg", "simple_cg", "minres"]
_METHODS = ("auto", "direct", "schur_cg", "simple_cg", "minres")
_INNER_TOLERANCE = 1e-2  # of A^-1 by an inner iteration, relative to that of the outer one


@flax.struct.dataclass
class SolveStats:
    """How well the discrete equations are satisfied, measured on what is returned."""

    iterations: Int32[Array, ""]
    """Steps of the outer iteration; 0 for the direct solver."""
    momentum_residual: Float[Array, ""]
    """Largest |nu A u + B^T p - F| over the largest |F|."""
    divergence: Float[Array, ""]
    """Largest |B u - H| h over the largest |u|, h the smallest spacing."""
    compatibility_defect: Float[Array, ""]
    """|sum of H| over the sum of |H|: what of the divergence data the net flux through the sides contradicts. It was
    taken out evenly. Zero where there is an open side."""
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
    chosen = choose_method(operators, method)
    return _factorize(operators, chosen, jnp.result_type(dtype))


@partial(jax.jit, static_argnums=(1, 2))
def _factorize(operators: StokesOperators, method: str, dtype: Any) -> StokesFactor:
    operators = jax.lax.stop_gradient(operators)
    if method == "direct":
        return StokesFactor(method, factorize_box(operators.grid, operators.boundary, dtype), None, None)
    if method == "schur_cg" and _is_plain_box(operators):
        return StokesFactor(method, None, None, None)
    velocity_levels = preconditioners.velocity_levels(operators, dtype)
    pressure_levels = None
    if method == "simple_cg":
        pressure_levels = preconditioners.simple_levels(operators, dtype)
    elif method == "minres":
        pressure_levels = preconditioners.mobility_levels(operators, velocity_levels, dtype)
    return StokesFactor(method, None, velocity_levels, pressure_levels)


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
      factor: from `factorize`, to save its cost; it decides the method.
      rtol: of the iterations, in the norm of the preconditioner (`stats` has the true residuals); 1e-10 in float64,
        1e-5 in float32. May be traced.
      max_steps: of the iterations. May be traced.
      refinements: steps of iterative refinement with the true residual (static).

    Returns:
      `StokesSolution(velocity, pressure, status, stats)`.

    Raises:
      ValueError: shapes that do not fit, an unknown method, data of another grid. TypeError: integer data.

    Status:
      NONFINITE_INPUT: inf or NaN in the data; all NaN. OUT_OF_RANGE: a viscosity that is not positive, or a negative
      drag; all NaN. INCOMPATIBLE_DATA: `compatibility_defect` or `force_defect` above sqrt(eps): the data without
      that part were solved. NOT_CONVERGED: too few steps; the best iterate (of schur_cg, `divergence` shows how far,
      since it satisfies the momentum equation at every step). INACCURATE: an iteration stagnated.

    Cost: direct, five scalar transforms of the grid; schur_cg about 20 steps of one A^-1 each.
    Differentiable (every order, forward and reverse) in force, divergence, boundary values, viscosity, the corners of
    the grid and the inverse permeability, by one more solution with the same operators, not through the iterations.

    Source: see `jaxnm.stokes.direct` and arXiv:2309.01255.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize, zero_velocity
      >>> grid, boundary = Grid((4, 4), (0.0, 0.0), (1.0, 1.0)), Boundary()
      >>> solution = solve(discretize(grid, boundary), zero_velocity(grid, boundary))
      >>> int(solution.status), float(solution.stats.momentum_residual)
      (0, 0.0)
    """
    if not isinstance(operators, StokesOperators):
        got = f"of type {type(operators).__name__}"
        arguments.refuse("solve", "operators", got, "StokesOperators", "use discretize(...)", error=TypeError)
    force = check_velocity("solve", "force", force, operators.grid, operators.boundary)
    dtype = force.u.dtype
    if divergence is not None:
        (divergence,) = arguments.to_arrays("solve", divergence=divergence)
        shape = operators.grid.shape
        arguments.check_shape("solve", "divergence", divergence, f"{shape}", lambda s: s == shape)
        divergence = divergence.astype(dtype)
    if boundary_values is not None:
        theirs = boundary_values.grid.shape, boundary_values.boundary
        same = theirs == (operators.grid.shape, operators.boundary)
        if not same:
            arguments.refuse(
                "solve", "boundary_values", "of another grid or boundary", "that of the operators", "make them anew"
            )
    if factor is None:
        factor = factorize(operators, method=method, dtype=dtype)
    rtol = (1e-10 if dtype == jnp.float64 else 1e-5) if rtol is None else rtol
    arguments.check_number("solve", "rtol", rtol, "in (0, 1)", lambda value: 0 < value < 1, "try 1e-8")
    if not isinstance(max_steps, jax.Array):
        arguments.check_count("solve", "max_steps", max_steps)
    arguments.check_count("solve", "refinements", refinements)
    steps = jnp.asarray(max_steps, jnp.int32)
    return _solve(operators, factor, force, divergence, boundary_values, jnp.asarray(rtol, dtype), steps, refinements)


def choose_method(operators: StokesOperators, method: Method) -> str:
    """The method meant by "auto", or the one given if it fits the domain."""
    if method not in _METHODS:
        arguments.refuse("solve", "method", repr(method), f"one of {_METHODS}", "use 'auto'")
    box, dim = _is_plain_box(operators), operators.grid.dim
    if method == "direct" and not (box and dim == 2):
        got = "'direct' for " + ("three dimensions" if dim == 3 else "a domain with solid or drag")
        arguments.refuse("solve", "method", got, "a two-dimensional box", "use 'auto'")
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
    detached = jax.lax.stop_gradient
    nu = jnp.asarray(operators.viscosity).astype(dtype)
    right, mass = right_hand_side(operators, force, divergence, values)
    right, force_defect = _balanced_force(operators, right)
    compatibility = jnp.zeros((), dtype)
    if mass is not None:
        mass, compatibility = _balanced_mass(operators, mass)
    w, pressure, figures = _linear_solve(
        operators, factor, right, None if mass is None else nu * mass, rtol, max_steps, refinements
    )
    data = (force, divergence, None if values is None else values.values, operators)
    drag = operators.inverse_permeability
    finite, in_range = all_finite(data), (nu > 0) if drag is None else (nu > 0) & jnp.all(drag >= 0)
    guard = jnp.where(finite & in_range, jnp.ones((), dtype), jnp.asarray(jnp.nan, dtype))
    velocity, pressure = jax.tree.map(lambda part: part * (guard / nu), w), pressure * guard

    frozen, found = detached(operators), detached((velocity, pressure))
    momentum, flux = frozen.saddle(found)
    momentum = jax.tree.map(jnp.subtract, momentum, detached(right))
    if mass is not None:
        flux = flux - detached(mass)
    # a branch gets arrays, so that the residuals are computed once and not in the middle of each reduction
    parts = (momentum, flux, detached(right), *found)
    sizes = jax.lax.cond(finite, _sizes, lambda parts: jnp.full(len(parts), jnp.nan, dtype), parts)
    size_of_momentum, size_of_flux, size_of_force, size_of_velocity, size_of_pressure = sizes
    ratio = lambda a, b: a / jnp.where(b > 0, b, jnp.ones_like(b))
    spacing = jnp.min(jnp.stack([jnp.asarray(h).astype(dtype) for h in frozen.grid.spacing]))
    stats = SolveStats(
        iterations=figures[0],
        momentum_residual=ratio(size_of_momentum, size_of_force),
        divergence=ratio(size_of_flux * spacing, size_of_velocity),
        compatibility_defect=detached(compatibility),
        force_defect=detached(force_defect),
    )
    solved = jnp.isfinite(size_of_velocity) & jnp.isfinite(size_of_pressure)
    conflict = jnp.maximum(stats.compatibility_defect, stats.force_defect) > jnp.sqrt(jnp.finfo(dtype).eps)
    code, worst = figures[1], jnp.maximum(stats.momentum_residual, stats.divergence)
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~in_range, Status.OUT_OF_RANGE),
        (~solved, Status.NONFINITE_RESULT),
        (conflict, Status.INCOMPATIBLE_DATA),
        (code == Status.NOT_CONVERGED, Status.NOT_CONVERGED),
        # an iteration that ends since nothing is left to do says the same as one that stagnates
        ((code != Status.OK) & (worst > jnp.maximum(100 * rtol, 1000 * jnp.finfo(dtype).eps)), Status.INACCURATE),
    )
    return StokesSolution(velocity, pressure, status, stats)


def _sizes(parts: tuple[Any, ...]) -> Array:
    """The largest absolute value in each tree; reduced first along the axis along which a CPU does many at a time."""
    largest = lambda tree: jnp.max(jnp.stack([jnp.max(jnp.max(jnp.abs(x), 0)) for x in jax.tree.leaves(tree)]))
    return jnp.stack([largest(part) for part in parts])


def _balanced_mass(operators: StokesOperators, mass: Array) -> tuple[Array, Array]:
    """Without its mean over the fluid where no side is open, and how large that was."""
    if not operators.pressure_null_space:
        return mass, jnp.zeros((), mass.dtype)
    total, size = jnp.sum(mass), jnp.sum(jnp.abs(mass))
    defect = jnp.abs(total) / jnp.where(size > 0, size, jnp.ones_like(size))
    return _without_mean(operators, mass), defect


def _without_mean(operators: StokesOperators, cells: Array) -> Array:
    if operators.solid is None:
        return cells - jnp.mean(cells)
    fluid = operators.fluid_cells().astype(cells.dtype)
    return (cells - jnp.sum(cells * fluid) / jnp.sum(fluid)) * fluid


def _balanced_force(operators: StokesOperators, force: Velocity) -> tuple[Velocity, Array]:
    parts, defect = [], jnp.zeros((), force.u.dtype)
    for part, free in zip(force.components, operators.velocity_null_space, strict=True):
        if free:
            size = jnp.sum(jnp.abs(part))
            share = jnp.abs(jnp.sum(part)) / jnp.where(size > 0, size, jnp.ones_like(size))
            part, defect = part - jnp.mean(part), jnp.maximum(defect, share)
        parts.append(part)
    return Velocity(*parts), defect


def _linear_solve(
    operators: StokesOperators,
    factor: StokesFactor,
    force: Velocity,
    mass: Array | None,
    rtol: Array,
    max_steps: Array,
    refinements: int,
) -> tuple[Velocity, Array, Array]:
    """(w, p, [steps, code]) of A w + B^T p = force, B w = mass, with a derivative of its own.

    Where the system is singular it is completed by the projections on its null space, and by the identity on what is
    no unknown, so that it has an inverse to differentiate.
    """
    cells = jnp.zeros(operators.grid.shape, force.u.dtype) if mass is None else mass

    frozen, factor = jax.lax.stop_gradient((operators, factor))

    def inverse(right: Any) -> tuple[Any, Array]:
        w, p, steps, code = _invert(frozen, factor, right, rtol, max_steps)
        for _ in range(refinements):
            rest = jax.tree.map(jnp.subtract, right, _regular(frozen, w, p))
            dw, dp, more, code = _invert(frozen, factor, rest, rtol, max_steps)
            w, p, steps = optax.tree.add(w, dw), p + dp, steps + more
        return (w, p), jnp.stack([steps, code]).astype(p.dtype)

    system = lambda unknowns: _regular(operators, *unknowns)
    figures = jnp.zeros(2, cells.dtype)
    (w, p), figures = solve_implicitly(system, (force, cells), inverse, figures=figures, symmetric=True)
    return w, p, figures.astype(jnp.int32)


def _regular(operators: StokesOperators, w: Velocity, p: Array) -> tuple[Velocity, Array]:
    """The saddle-point matrix of unit viscosity, made regular."""
    momentum = jax.tree.map(jnp.add, operators.laplacian(w), operators.gradient(p))
    mass = operators.divergence(w)
    if operators.pressure_null_space:
        mass = mass + (p - _without_mean(operators, p))
    elif operators.solid is not None:
        mass = mass + p * operators.solid.astype(p.dtype)
    if operators.solid is not None:
        idle = jax.tree.map(lambda active: (~active).astype(p.dtype), operators.active_faces())
        momentum = jax.tree.map(lambda image, part, rest: image + part * rest, momentum, w, idle)
    parts = [
        image + jnp.mean(part) if free else image
        for image, part, free in zip(momentum.components, w.components, operators.velocity_null_space, strict=True)
    ]
    return Velocity(*parts), mass


def _invert(
    operators: StokesOperators, factor: StokesFactor, right: tuple[Velocity, Array], rtol: Array, max_steps: Array
) -> tuple[Velocity, Array, Array, Array]:
    """The inverse of `_regular`: what lies in its added part is its own image."""
    force, mass = right
    free = [
        jnp.mean(part) if null else None
        for part, null in zip(force.components, operators.velocity_null_space, strict=True)
    ]
    constant = None
    if operators.pressure_null_space:
        balanced = _without_mean(operators, mass)
        constant, mass = mass - balanced, balanced
    elif operators.solid is not None:
        solid = operators.solid.astype(mass.dtype)
        constant, mass = mass * solid, mass * (1 - solid)
    idle = None
    if operators.solid is not None:
        active = jax.tree.map(lambda active: active.astype(mass.dtype), operators.active_faces())
        idle = jax.tree.map(lambda part, a: part * (1 - a), force, active)
        force = jax.tree.map(jnp.multiply, force, active)
    force = Velocity(
        *(part if mean is None else part - mean for part, mean in zip(force.components, free, strict=True))
    )
    w, p, steps, code = _METHOD[factor.method](operators, factor, force, mass, rtol, max_steps)
    if idle is not None:
        w = jax.tree.map(jnp.add, w, idle)
    w = Velocity(
        *(part if mean is None else part - jnp.mean(part) + mean for part, mean in zip(w.components, free, strict=True))
    )
    if operators.pressure_null_space:
        p = _without_mean(operators, p)
    return w, p if constant is None else p + constant, steps, code


_Result = tuple[Velocity, Array, Array, Array]


def _direct(
    operators: StokesOperators, factor: StokesFactor, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    w, p = solve_box(factor.direct, force, mass)
    return w, p, jnp.int32(0), jnp.int32(Status.OK)


def _schur_cg(
    operators: StokesOperators, factor: StokesFactor, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    inverse = partial(solve_laplacian, operators)
    if factor.velocity_levels is not None:
        inverse = partial(
            _inner_solve, operators, factor, jnp.maximum(rtol * _INNER_TOLERANCE, jnp.finfo(rtol.dtype).eps)
        )
    project = partial(_without_mean, operators) if operators.pressure_null_space else lambda p: p
    precondition = project
    if factor.pressure_levels is not None:
        precondition = lambda p: project(preconditioners.cycle(factor.pressure_levels, (p,))[0])
    first = inverse(force)
    product = lambda p: project(operators.divergence(inverse(operators.gradient(p))))
    right = project(operators.divergence(first) - mass)
    p, steps, code = conjugate_gradient_loop(product, precondition, right, rtol, max_steps)
    return optax.tree.sub(first, inverse(operators.gradient(p))), p, steps, code


def _inner_solve(operators: StokesOperators, factor: StokesFactor, rtol: Array, right: Velocity) -> Velocity:
    """A^-1 by conjugate gradients with one multigrid cycle a step."""
    cycle = partial(preconditioners.velocity_cycle, factor.velocity_levels)
    return conjugate_gradient_loop(operators.laplacian, cycle, right, rtol, jnp.int32(200))[0]


def _minres(
    operators: StokesOperators, factor: StokesFactor, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    project = partial(_without_mean, operators) if operators.pressure_null_space else lambda p: p

    levels = preconditioners.joined(factor.velocity_levels, factor.pressure_levels)

    def product(unknowns: Any) -> Any:
        w, p = unknowns
        return jax.tree.map(jnp.add, operators.laplacian(w), operators.gradient(p)), project(operators.divergence(w))

    def precondition(residual: Any) -> Any:
        r, s = residual
        *parts, darcy = preconditioners.cycle(levels, (*r.components, s))
        return Velocity(*parts), project(s + darcy)

    (w, p), steps, code = minres_loop(product, precondition, (force, project(mass)), rtol, max_steps)
    return w, p, steps, code


_METHOD: dict[str, Callable[..., _Result]] = {
    "direct": _direct,
    "schur_cg": _schur_cg,
    "simple_cg": _schur_cg,
    "minres": _minres,
}
