"""The saddle-point system in cells of unit size: its inverse by each method, measured, and its derivative.

The unknowns are w = nu u and p, so that the viscosity multiplies data and results and enters no iteration:

    A w + B^T p = F,      B w = nu H.

Where the system is singular it is completed by the projections on its null space, and by the identity on what is no
unknown, so that it has an inverse to differentiate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxnm import arguments
from jaxnm.linalg.implicit import solve_implicitly
from jaxnm.linalg.krylov import conjugate_gradient_loop, minres_loop
from jaxnm.status import Status
from jaxnm.stokes import connectivity, preconditioners, units
from jaxnm.stokes.direct import solve_box
from jaxnm.stokes.domain import has_velocity_null_space
from jaxnm.stokes.grid import Velocity
from jaxnm.stokes.operators import StokesOperators
from jaxnm.stokes.spectral import solve_laplacian

_INNER_TOLERANCE = 1e-2  # of A^-1 by an inner iteration, relative to that of the outer one
_ROUNDING = 16  # eps |A| |w|: a residual of that size is rounding
_LARGEST_ROUNDING = 0.1  # of the data: above it no digit of the answer is right, whatever the reason

_UNSEEN = 10  # a solution for a derivative may be above what was asked for by this factor; beyond, it is NaN

Unknowns = tuple[Velocity, Array]


class NullSpace(NamedTuple):
    """What the equations leave undetermined, known when the mask and the drag are."""

    labels: Array | None
    """[*cells], equal in the parts of the fluid that hang together; None where there is one part."""
    closed: Array | None
    """[*cells], one in the fluid that no open side fixes the pressure of, else zero; None where there is no such."""
    free: tuple[Array | None, ...]
    """Per axis one where nothing holds the fluid and zero where something does; None where a side does in any case."""


def null_space(operators: StokesOperators, dtype: Any) -> NullSpace:
    """Look at the mask and the drag; parts of the fluid are told apart where `discretize` did not see the mask."""
    grid, boundary, solid = operators.grid, operators.boundary, operators.solid
    labels, closed = None, None
    if solid is None or operators.connected:
        if operators.pressure_null_space:
            closed = operators.fluid_cells().astype(dtype)
    else:
        labels = connectivity.components(solid, boundary).labels
        opened = jnp.zeros(solid.size, bool)
        for axis in range(grid.dim):
            for side in (0, 1):
                if boundary.is_open(axis)[side]:
                    opened = opened.at[jnp.take(labels, -side, axis)].set(True)
        closed = (~solid & ~opened[labels]).astype(dtype)
    held = [jnp.any(part) for part in (solid, operators.inverse_permeability) if part is not None]
    holds = jnp.any(jnp.stack(held)) if held else jnp.array(False)
    free = tuple(
        (~holds).astype(dtype) if possible else None for possible in has_velocity_null_space(grid, boundary, None, None)
    )
    return NullSpace(labels, closed, free)


def constant_part(null: NullSpace, cells: Array) -> Array:
    """The mean over each part of the fluid in which the pressure is free, zero elsewhere."""
    if null.closed is None:
        return jnp.zeros_like(cells)
    inside = cells * null.closed
    if null.labels is None:
        return null.closed * (jnp.sum(inside) / jnp.maximum(jnp.sum(null.closed), 1))
    return null.closed * _mean_of_parts(null.labels, null.closed, inside)[null.labels]


def _mean_of_parts(labels: Array, closed: Array, cells: Array) -> Array:
    sums = _sum_of_parts(labels, cells)
    return sums / jnp.maximum(_sum_of_parts(labels, closed), 1)


def _sum_of_parts(labels: Array, cells: Array) -> Array:
    return jnp.zeros(cells.size, cells.dtype).at[labels.reshape(-1)].add(cells.reshape(-1))


def balanced_mass(null: NullSpace, mass: Array) -> tuple[Array, Array]:
    """Without what no flow can take up, and the share of that."""
    if null.closed is None:
        return mass, jnp.zeros((), mass.dtype)
    inside, size = mass * null.closed, jnp.sum(jnp.abs(mass))
    total = jnp.sum(inside)[None] if null.labels is None else _sum_of_parts(null.labels, inside)
    return mass - constant_part(null, mass), _share(jnp.sum(jnp.abs(total)), size)


def balanced_force(null: NullSpace, force: Velocity) -> tuple[Velocity, Array]:
    """Without the mean along axes on which nothing holds the fluid, and the share of that."""
    parts, defect = [], jnp.zeros((), force.u.dtype)
    for part, free in zip(force.components, null.free, strict=True):
        if free is not None:
            defect = jnp.maximum(defect, free * _share(jnp.abs(jnp.sum(part)), jnp.sum(jnp.abs(part))))
            part = part - free * jnp.mean(part)
        parts.append(part)
    return Velocity(*parts), defect


def _share(part: Array, whole: Array) -> Array:
    return part / jnp.where(whole > 0, whole, jnp.ones_like(whole))


# ------------------------------------------------------------------------------------------------- the regular system


@flax.struct.dataclass
class Figures:
    """What was measured of a solution; of data of size one unless they are zero."""

    steps: Array
    code: Array
    momentum: Array
    """Largest |A w + B^T p - F|."""
    flux: Array
    """Largest |B w - nu H|."""
    velocity: Array
    """Largest |w|."""
    data: Array
    """Largest |F| and |nu H|."""
    excess: Array
    """By what factor the worse of the two residuals is above what was asked for, or above rounding."""


def solve_saddle(
    operators: StokesOperators,
    null: NullSpace,
    factor: Any,
    right: Unknowns,
    rtol: Array,
    max_steps: Array,
    refinements: int,
) -> tuple[Unknowns, Figures]:
    """(w, p) with A w + B^T p = F and B w = mass, and its figures; the derivative is that of the equations.

    A solution for a derivative that is not as accurate as asked for is NaN, as nobody would see its figures.
    """
    frozen, factor = jax.lax.stop_gradient((operators, factor))

    def inverse(right: Unknowns, first: Array) -> tuple[Unknowns, Array]:
        (w, p), figures = _measured(frozen, null, factor, right, rtol, max_steps, refinements)
        visible = (first > 0) | (figures.excess <= _UNSEEN)
        w, p = jax.tree.map(lambda part: arguments.nan_unless(part, visible, part.ndim), (w, p))
        return (w, p), jnp.stack([x.astype(p.dtype) for x in jax.tree.leaves(figures)])

    like = Figures(*(jnp.zeros((), rtol.dtype) for _ in range(7)))
    (w, p), found = solve_implicitly(
        lambda unknowns: _regular(operators, null, *unknowns), right, inverse,
        figures=jnp.zeros(7, rtol.dtype), symmetric=True, marked=True,
    )  # fmt: skip
    figures = jax.tree.unflatten(jax.tree.structure(like), list(found))
    return (w, p), figures.replace(steps=figures.steps.astype(jnp.int32), code=figures.code.astype(jnp.int32))


def _regular(operators: StokesOperators, null: NullSpace, w: Velocity, p: Array) -> Unknowns:
    """The saddle-point matrix of unit viscosity, made regular."""
    momentum = jax.tree.map(jnp.add, operators.laplacian(w), operators.gradient(p))
    mass = operators.divergence(w)
    if null.closed is not None:
        mass = mass + constant_part(null, p)
    if operators.solid is not None:
        mass = mass + p * operators.solid.astype(p.dtype)
        idle = jax.tree.map(lambda active: (~active).astype(p.dtype), operators.active_faces())
        momentum = jax.tree.map(lambda image, part, rest: image + part * rest, momentum, w, idle)
    parts = [
        image if free is None else image + free * jnp.mean(part)
        for image, part, free in zip(momentum.components, w.components, null.free, strict=True)
    ]
    return Velocity(*parts), mass


def invert(
    operators: StokesOperators, null: NullSpace, factor: Any, right: Unknowns, rtol: Array, max_steps: Array
) -> tuple[Velocity, Array, Array, Array]:
    """The inverse of `_regular`: what lies in its added part is its own image."""
    force, mass = right
    constant = None if null.closed is None else constant_part(null, mass)
    if constant is not None:
        mass = mass - constant
    idle = None
    if operators.solid is not None:
        solid = operators.solid.astype(mass.dtype)
        in_solid, mass = mass * solid, mass * (1 - solid)
        constant = in_solid if constant is None else constant + in_solid
        active = jax.tree.map(lambda active: active.astype(mass.dtype), operators.active_faces())
        idle = jax.tree.map(lambda part, a: part * (1 - a), force, active)
        force = jax.tree.map(jnp.multiply, force, active)
    means = [
        None if free is None else free * jnp.mean(part) for part, free in zip(force.components, null.free, strict=True)
    ]
    with_mean = lambda part, mean: part if mean is None else part + mean
    force = Velocity(
        *(with_mean(part, m if m is None else -m) for part, m in zip(force.components, means, strict=True))
    )
    w, p, steps, code = _METHOD[factor.method](operators, factor, force, mass, rtol, max_steps)
    if idle is not None:
        w = jax.tree.map(jnp.add, w, idle)
    parts = []
    for part, mean, free in zip(w.components, means, null.free, strict=True):
        parts.append(part if mean is None or free is None else part - free * jnp.mean(part) + mean)
    if null.closed is not None:
        p = p - constant_part(null, p)
    return Velocity(*parts), p if constant is None else p + constant, steps, code


# ---------------------------------------------------------------------------------------------- passes and what is left


class _Pass(NamedTuple):
    unknowns: Unknowns
    rest: Unknowns
    """What is left of the right-hand side, which was scaled to size one."""
    figures: Figures
    count: Array
    more: Array


def _measured(
    operators: StokesOperators,
    null: NullSpace,
    factor: Any,
    right: Unknowns,
    rtol: Array,
    max_steps: Array,
    refinements: int,
) -> tuple[Unknowns, Figures]:
    """Solve, again from the true residual while that is above what was asked for and falls, and measure it.

    An iteration stops by its own norm and by a recurrence, which on fine grids and in long domains are far from it.
    """
    dtype, iterative = rtol.dtype, factor.method != "direct"
    exponent = units.known_or_zero(units.exponent_of(right))
    into, back = units.powers(dtype, -exponent, exponent)
    right = units.times(right, into)
    force, mass = _sizes(right)
    largest = jnp.maximum(force, mass)
    spacing = jnp.stack([jnp.asarray(h).astype(dtype) for h in operators.grid.spacing])
    rounding = _ROUNDING * jnp.finfo(dtype).eps
    size_of_a, size_of_b = jnp.sum(4 / spacing**2), jnp.sum(2 / spacing)
    mobility = _mobility(operators, dtype)

    # the mean of the pressure completes the equations exactly, and its rounding would hide a small flux
    seen = right if null.closed is None else (right[0], right[1] - constant_part(null, right[1]))

    def measure(unknowns: Unknowns, steps: Array, code: Array) -> tuple[Unknowns, Figures]:
        rest = jax.tree.map(jnp.subtract, seen, _regular(operators, null._replace(closed=None), *unknowns))
        # a branch gets arrays, so that the residuals are computed once and not in the middle of each reduction
        nothing = lambda parts: jnp.full(len(parts), jnp.nan, dtype)
        parts = (*rest, *unknowns)
        momentum, flux, velocity, pressure = jax.lax.cond(jnp.isfinite(largest), _sizes, nothing, parts)
        floor = rounding * (size_of_a * velocity + size_of_b * pressure + largest)
        allowed = jnp.maximum(rtol * largest, jnp.minimum(floor, _LARGEST_ROUNDING * largest))
        # a velocity is small beside that of other forces only; beside a strong drag all are
        allowed_flux = jnp.maximum(rtol, rounding * size_of_b) * jnp.maximum(velocity, mass)
        allowed_flux = jnp.maximum(allowed_flux, rounding * size_of_b * force * mobility)
        excess = jnp.maximum(_share(momentum, allowed), _share(flux, allowed_flux))
        return rest, Figures(steps, code, momentum, flux, velocity, largest, excess)

    def again(state: _Pass) -> _Pass:
        before = state.figures
        first = state.count == 0
        share = jnp.where(
            first,
            rtol,
            jax.lax.clamp(jnp.asarray(jnp.finfo(dtype).eps, dtype), 0.3 / before.excess, jnp.asarray(0.1, dtype)),
        )
        share = jnp.where(state.count <= refinements, jnp.minimum(share, rtol), share)
        *step, steps, code = invert(operators, null, factor, state.rest, share, max_steps - before.steps)
        unknowns = jax.tree.map(jnp.add, state.unknowns, tuple(step))
        rest, figures = measure(unknowns, before.steps + steps, code)
        better = first | (figures.excess < before.excess)
        keep = lambda new, old: jax.tree.map(lambda new, old: jnp.where(better, new, old), new, old)
        able = ((code == Status.OK) | (code == Status.INACCURATE)) & (figures.steps < max_steps)
        falls = first | (figures.excess < before.excess / 2)
        more = able & falls & (figures.excess > 1) if iterative else jnp.array(False)
        more = more | (state.count < refinements)
        kept = keep(figures, before).replace(steps=figures.steps, code=code)
        return _Pass(keep(unknowns, state.unknowns), keep(rest, state.rest), kept, state.count + 1, more)

    zero = optax.tree.zeros_like(right)
    nothing = Figures(jnp.int32(0), jnp.int32(0), *(jnp.zeros((), dtype) for _ in range(5)))
    state = _Pass(zero, right, nothing, jnp.int32(0), jnp.array(True))
    if iterative or refinements:
        state = jax.lax.while_loop(lambda state: state.more, again, state)
    else:
        velocity, pressure, steps, code = invert(operators, null, factor, right, rtol, max_steps)
        unknowns = velocity, pressure
        state = state._replace(unknowns=unknowns, figures=measure(unknowns, steps, code)[1])
    return units.times(state.unknowns, back), state.figures


def _mobility(operators: StokesOperators, dtype: Any) -> Array:
    """Mean of 1 / (1 + drag) over the fluid, in cells of unit size."""
    if operators.inverse_permeability is None:
        return jnp.ones((), dtype)
    fluid = operators.fluid_cells().astype(dtype)
    share = fluid / (1 + operators.inverse_permeability.astype(dtype))
    return jnp.sum(share) / jnp.maximum(jnp.sum(fluid), 1)


def _sizes(parts: tuple[Any, ...]) -> Array:
    """The largest absolute value in each tree; reduced first along the axis along which a CPU does many at a time."""
    largest = lambda tree: jnp.max(jnp.stack([jnp.max(jnp.max(jnp.abs(x), 0)) for x in jax.tree.leaves(tree)]))
    return jnp.stack([largest(part) for part in parts])


# --------------------------------------------------------------------------------------------------------- the methods

_Result = tuple[Velocity, Array, Array, Array]


def _direct(
    operators: StokesOperators, factor: Any, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    w, p = solve_box(factor.direct, force, mass)
    return w, p, jnp.int32(0), jnp.int32(Status.OK)


def _projection(operators: StokesOperators) -> Callable[[Array], Array]:
    """Without the mean over the fluid, where no side is open."""
    if not operators.pressure_null_space:
        return lambda cells: cells
    if operators.solid is None:
        return lambda cells: cells - jnp.mean(cells)
    fluid = operators.fluid_cells()

    def project(cells: Array) -> Array:
        inside = fluid.astype(cells.dtype)
        return (cells - jnp.sum(cells * inside) / jnp.maximum(jnp.sum(inside), 1)) * inside

    return project


def _schur_cg(
    operators: StokesOperators, factor: Any, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    inverse = partial(solve_laplacian, operators)
    if factor.velocity_levels is not None:
        inverse = partial(
            _inner_solve, operators, factor, jnp.maximum(rtol * _INNER_TOLERANCE, jnp.finfo(rtol.dtype).eps)
        )
    project = _projection(operators)
    precondition = project
    if factor.pressure_levels is not None:
        precondition = lambda p: project(preconditioners.cycle(factor.pressure_levels, (p,))[0])
    first = inverse(force)
    product = lambda p: project(operators.divergence(inverse(operators.gradient(p))))
    right = project(operators.divergence(first) - mass)
    p, steps, code = conjugate_gradient_loop(product, precondition, right, rtol, max_steps)
    return optax.tree.sub(first, inverse(operators.gradient(p))), p, steps, code


def _inner_solve(operators: StokesOperators, factor: Any, rtol: Array, right: Velocity) -> Velocity:
    """A^-1 by conjugate gradients with one multigrid cycle a step."""
    cycle = partial(preconditioners.velocity_cycle, factor.velocity_levels)
    return conjugate_gradient_loop(operators.laplacian, cycle, right, rtol, jnp.int32(200))[0]


def _minres(
    operators: StokesOperators, factor: Any, force: Velocity, mass: Array, rtol: Array, max_steps: Array
) -> _Result:
    project = _projection(operators)
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
