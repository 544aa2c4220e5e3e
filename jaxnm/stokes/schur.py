"""The Schur complement S = nu B A^-1 B^T of the pressure, and its spectrum.

S is the identity on mean-zero pressures, but for as many eigenvalues as `count_nonunit_eigenvalues` says. Its smallest
one is the square of the discrete inf-sup constant and decides how many steps an iteration takes.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxnm import arguments
from jaxnm.linalg import ExtremeEigenvalues, eigh, extreme_eigenvalues, matmul
from jaxnm.linalg.krylov import conjugate_gradient
from jaxnm.status import Status
from jaxnm.stokes import direct, preconditioners, saddle, units
from jaxnm.stokes.counting import count_nonunit_eigenvalues
from jaxnm.stokes.grid import Velocity, is_concrete
from jaxnm.stokes.operators import StokesOperators, check_operators, dense
from jaxnm.stokes.solvers import StokesFactor, factorize
from jaxnm.stokes.spectral import solve_laplacian

_LARGEST_DENSE = 5_000


@flax.struct.dataclass
class SchurComplement:
    """`p -> S p`, symmetric positive semidefinite on the cells; zero in solids."""

    operators: StokesOperators

    def __call__(self, pressure: Float[Array, "*cells"]) -> Float[Array, "*cells"]:
        """S p: on a box by fast diagonalization of A, elsewhere by conjugate gradients with multigrid.

        NaN where those do not converge.
        """
        return _product(self.operators, pressure)

    @property
    def null_space(self) -> list[Array]:
        """The constant over the fluid where no side is open, else nothing."""
        if not self.operators.pressure_null_space:
            return []
        return [self.operators.fluid_cells().astype(jnp.result_type(float))]

    def as_linear_operator(self, dtype: Any = float) -> lineax.AbstractLinearOperator:
        """As an operator of lineax, tagged positive semidefinite."""
        structure = self.operators.structure(dtype)[1]
        return lineax.FunctionLinearOperator(self.__call__, structure, lineax.positive_semidefinite_tag)

    def to_dense(self, dtype: Any = float) -> Float[Array, "cells cells"]:
        """The matrix on raveled cells, solid ones included; for small grids.

        Raises:
          ValueError: more than 5,000 cells.
        """
        structure = self.operators.structure(dtype)[1]
        if structure.size > _LARGEST_DENSE:
            got = f"of {structure.size} cells"
            arguments.refuse("to_dense", "grid", got, f"at most {_LARGEST_DENSE}", "use schur_extremes or fewer cells")
        return dense(self.__call__, structure)


def schur_complement(operators: StokesOperators) -> SchurComplement:
    """The operator S = nu B A^-1 B^T, whose unit eigenvalue is one whatever the viscosity.

    Args:
      operators: from `discretize`.

    Returns:
      `SchurComplement`, a callable pytree.

    Cost: none; a product costs one A^-1.
    Differentiable in the pressure, the corners of the grid and the inverse permeability.

    Source: S. Pimanov, I. Oseledets, arXiv:2309.01255.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> S = schur_complement(discretize(Grid((4, 4)), Boundary("free_slip", "free_slip")))
      >>> p = jnp.zeros((4, 4)).at[1, 2].set(1.0)
      >>> bool(jnp.allclose(S(p), p - p.mean(), atol=1e-5))
      True
    """
    check_operators("schur_complement", operators)
    return SchurComplement(operators)


@jax.jit
def _product(operators: StokesOperators, pressure: Array) -> Array:
    cells = units.in_unit_cells(operators, pressure.dtype)  # S has no unit
    return cells.divergence(_inverse_laplacian(cells, cells.gradient(pressure)))


def _inverse_laplacian(operators: StokesOperators, right: Velocity) -> Velocity:
    if operators.solid is None and operators.inverse_permeability is None:
        return solve_laplacian(operators, right)
    levels = preconditioners.velocity_levels(jax.lax.stop_gradient(operators), right.u.dtype)
    cycle = partial(preconditioners.velocity_cycle, levels)
    rtol = 1e-13 if right.u.dtype == jnp.float64 else 1e-6
    solution = conjugate_gradient(operators.laplacian, right, preconditioner=cycle, rtol=rtol, max_steps=200)
    converged = solution.status == jnp.int32(Status.OK)
    return jax.tree.map(lambda part: arguments.nan_unless(part, converged, part.ndim), solution.x)


def schur_eigenvalues(operators: StokesOperators) -> Float[Array, "count"]:
    """All eigenvalues of S that are neither one nor the zero of a constant pressure, ascending.

    Args:
      operators: from `discretize`, without drag; the mask must not be traced, since their number is counted.

    Returns:
      [K], K = `count_nonunit_eigenvalues(...)`, of the default float dtype.

    Raises:
      ValueError: a domain with drag, a traced mask, or more than 5,000 cells where the domain is no box in 2-D.

    Cost: on a box of n x n cells four symmetric eigenvalue problems of size about n, on the traces on the walls; else
    one of the size of the number of cells.
    Not differentiable: a derivative raises TypeError.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> schur_eigenvalues(discretize(Grid((4, 4)), Boundary("periodic", "no_slip"))).shape
      (6,)
    """
    check_operators("schur_eigenvalues", operators)
    if operators.inverse_permeability is not None:
        arguments.refuse("schur_eigenvalues", "operators", "with drag", "none", "eigenvalues cannot be counted then")
    if not is_concrete(operators.solid):
        arguments.refuse("schur_eigenvalues", "operators", "with a traced mask", "a known one", "call it outside jit")
    count = count_nonunit_eigenvalues(operators.grid, operators.boundary, operators.solid)
    grid = arguments.without_derivative(
        "schur_eigenvalues", "an argument", operators.grid, remedy="inf_sup_constant and schur_extremes have one"
    )
    operators = dataclasses.replace(operators, grid=grid)
    if operators.solid is None and operators.grid.dim == 2:
        return _box_eigenvalues(operators, count)
    shifts = _dense_shifts(operators)
    return jnp.sort(1 - shifts[jnp.argsort(-jnp.abs(shifts))[:count]])


@partial(jax.jit, static_argnums=1)
def _box_eigenvalues(operators: StokesOperators, count: int) -> Array:
    """S = I - Y C^-1 Y^T, Y = B A_0^-1 E, C = W^-1 + E^T A_0^-1 E, A_0 the base operator: eigenvalues of C^-1 Y^T Y.

    In modes A_0 is diagonal, so that C couples nothing but the sides of one mode.
    """
    dtype = jnp.result_type(float)
    cells = units.in_unit_cells(operators, dtype)
    blocks = direct.trace_blocks(cells.grid, operators.boundary, dtype)
    found = []
    for u_flexibility, v_flexibility, squares in blocks:
        size = squares.shape[0]
        if size == 0:
            continue
        values, vectors = eigh(squares)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
        inverse = jnp.zeros((size, size), squares.dtype)
        split = u_flexibility.shape[0] * u_flexibility.shape[1]
        for start, flexibility in ((0, u_flexibility), (split, v_flexibility)):
            modes, t, _ = flexibility.shape
            if modes * t:
                positions = start + jnp.arange(modes * t).reshape(modes, t)
                inverted = jnp.linalg.inv(flexibility) if t > 1 else 1 / flexibility
                inverse = inverse.at[positions[:, :, None], positions[:, None, :]].set(inverted)
        found.append(eigh(matmul(root.T, matmul(inverse, root))).values)
    shifts = jnp.concatenate(found) if found else jnp.zeros(0)
    return jnp.sort(1 - shifts[jnp.argsort(-jnp.abs(shifts))[:count]])


@jax.jit
def _dense_shifts(operators: StokesOperators) -> Array:
    """Distances of all eigenvalues from one; the number of those that count is not static here, to compile once."""
    matrix = SchurComplement(operators).to_dense()
    idle = ~operators.fluid_cells().reshape(-1)
    for vector in SchurComplement(operators).null_space:  # the zero becomes a one
        unit = vector.reshape(-1) / jnp.sqrt(jnp.sum(vector))
        matrix = matrix + jnp.outer(unit, unit)
    return 1 - eigh(matrix + jnp.diag(idle.astype(matrix.dtype))).values


def schur_extremes(
    operators: StokesOperators, *, key: PRNGKeyArray, num_steps: int = 60, tolerance: float | None = None
) -> ExtremeEigenvalues:
    """The smallest eigenvalue of S apart from the zero of a constant pressure, and the largest, by Lanczos.

    Args:
      operators: from `discretize`.
      key: of the random start.
      num_steps: the most steps, one A^-1 each.
      tolerance: as in `extreme_eigenvalues`.

    Returns:
      `ExtremeEigenvalues` with `smallest[0]` and `largest[0]` (one where no eigenvalue is above one).

    Status: that of `extreme_eigenvalues`: NOT_CONVERGED says that more steps are needed, as in long channels, whose
    smallest eigenvalues lie close together (`inf_sup_constant` takes few).

    Cost: num_steps times one A^-1.
    Differentiable as `extreme_eigenvalues`, where the ends are simple.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> operators = discretize(Grid((8, 8)), Boundary())
      >>> round(float(schur_extremes(operators, key=jax.random.key(0)).smallest[0]), 4)
      0.3098
    """
    check_operators("schur_extremes", operators)
    arguments.check_key("schur_extremes", key)
    arguments.check_count("schur_extremes", "num_steps", num_steps, minimum=1)
    if tolerance is not None:
        arguments.check_number("schur_extremes", "tolerance", tolerance, "> 0", lambda value: value > 0, "try 1e-6")
    like = operators.structure(float)[1]
    product = jax.tree_util.Partial(_completed, SchurComplement(operators))
    return extreme_eigenvalues(product, like, key=key, num_steps=num_steps, tolerance=tolerance)


def _completed(S: SchurComplement, pressure: Array) -> Array:
    """S, and the identity on constants and in solids."""
    operators = S.operators
    image = S(pressure)
    fluid = operators.fluid_cells().astype(pressure.dtype)
    if operators.pressure_null_space:
        image = image + fluid * (jnp.sum(fluid * pressure) / jnp.sum(fluid))
    return image + (1 - fluid) * pressure


def inf_sup_constant(operators: StokesOperators, *, key: PRNGKeyArray, num_steps: int = 60) -> Float[Array, ""]:
    """The discrete inf-sup (Ladyzhenskaya-Babuska-Brezzi) constant, the square root of the smallest eigenvalue of S.

    Lanczos' method on the inverse of S, one solution of the Stokes system for each step, until it has converged: in
    long channels the smallest eigenvalues of S lie so close together that on S itself it takes hundreds of steps.

    Args:
      operators: from `discretize`.
      key: of the random start of Lanczos' method.
      num_steps: its most steps.

    Returns:
      a scalar. NaN where Lanczos' method has not converged, or S times the vector that it found is not the square of
      the constant times that vector, to 16 sqrt(eps) of itself.

    Cost: about ten solutions, and one A^-1.
    Differentiable once in the corners of the grid and the inverse permeability, where the smallest eigenvalue is
    simple; a second derivative raises TypeError.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> operators = discretize(Grid((8, 8)), Boundary())
      >>> round(float(inf_sup_constant(operators, key=jax.random.key(0))), 4)
      0.5566
    """
    check_operators("inf_sup_constant", operators)
    arguments.check_key("inf_sup_constant", key)
    arguments.check_count("inf_sup_constant", "num_steps", num_steps, minimum=1)
    like = operators.structure(float)[1]
    frozen = _in_unit_cells(jax.lax.stop_gradient(operators), like.dtype)
    inverse = jax.tree_util.Partial(_completed_inverse, frozen, factorize(frozen, dtype=like.dtype))
    # the largest of the inverse is what is wanted; a number of steps beyond the number of cells is cut off
    ends = extreme_eigenvalues(inverse, like, key=key, num_steps=num_steps, num_smallest=0)
    vector = jax.lax.stop_gradient(ends.largest_vectors)[0]
    return _root_of_quotient(operators, vector, ends.status)


@jax.jit
def _root_of_quotient(operators: StokesOperators, vector: Array, status: Array) -> Array:
    """NaN where the vector is none of an eigenvalue."""
    value, residual = _quotient(operators, vector)
    limit = 16 * math.sqrt(jnp.finfo(value.dtype).eps)
    good = (status == jnp.int32(Status.OK)) & (residual <= limit * value)
    return jnp.sqrt(arguments.nan_unless(value, good))


_in_unit_cells = jax.jit(units.in_unit_cells, static_argnums=1)


def _completed_inverse(operators: StokesOperators, factor: StokesFactor, pressure: Array) -> Array:
    """The inverse of `_completed`: where A w + B^T p = 0 and B w = -g, S p = g. What it is worth is measured by S."""
    fluid = operators.fluid_cells().astype(pressure.dtype)
    right = fluid * pressure
    zero = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), operators.structure(pressure.dtype)[0])
    image = (1 - fluid) * pressure
    if operators.pressure_null_space:
        mean = fluid * (jnp.sum(right) / jnp.sum(fluid))
        right, image = right - mean, image + mean
    rtol = jnp.asarray(1e-10 if pressure.dtype == jnp.float64 else 1e-5, pressure.dtype)
    null = saddle.null_space(operators, pressure.dtype)
    return image + saddle.invert(operators, null, factor, (zero, -right), rtol, jnp.int32(1000))[1]


@jax.custom_jvp
def _quotient(operators: StokesOperators, vector: Array) -> tuple[Array, Array]:
    """The Rayleigh quotient of S and the norm of its residual, of a unit vector."""
    image = _completed(SchurComplement(operators), vector)
    value = jnp.sum(vector * image)
    return value, jnp.sqrt(jnp.sum((image - value * vector) ** 2))


@_quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    operators, vector = primals
    only_once = arguments.without_derivative(
        "inf_sup_constant", "the gradient", operators, remedy="take differences of first derivatives"
    )
    quotient = lambda operators: jnp.sum(vector * _completed(SchurComplement(operators), vector))
    _, slope = jax.jvp(quotient, (only_once,), (tangents[0],))
    value, residual = _quotient(operators, vector)
    return (value, residual), (slope, jnp.zeros_like(residual))
