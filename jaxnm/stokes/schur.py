"""The Schur complement S = nu B A^-1 B^T of the pressure, and its spectrum.

S is the identity on mean-zero pressures, but for as many eigenvalues as `count_nonunit_eigenvalues` says. Its smallest
one is the square of the discrete inf-sup constant and decides how many steps an iteration takes.
"""

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
from jaxnm.stokes import direct, preconditioners
from jaxnm.stokes.counting import count_nonunit_eigenvalues
from jaxnm.stokes.grid import Velocity, is_concrete
from jaxnm.stokes.operators import StokesOperators, dense
from jaxnm.stokes.spectral import solve_laplacian

_LARGEST_DENSE = 5_000


@flax.struct.dataclass
class SchurComplement:
    """`p -> S p`, symmetric positive semidefinite on the cells; zero in solids."""

    operators: StokesOperators

    def __call__(self, pressure: Float[Array, "*cells"]) -> Float[Array, "*cells"]:
        """S p: on a box by fast diagonalization of A, elsewhere by conjugate gradients with multigrid."""
        return self.operators.divergence(_inverse_laplacian(self.operators, self.operators.gradient(pressure)))

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
    return SchurComplement(operators)


def _inverse_laplacian(operators: StokesOperators, right: Velocity) -> Velocity:
    if operators.solid is None and operators.inverse_permeability is None:
        return solve_laplacian(operators, right)
    levels = preconditioners.velocity_levels(jax.lax.stop_gradient(operators), right.u.dtype)
    cycle = partial(preconditioners.velocity_cycle, levels)
    rtol = 1e-13 if right.u.dtype == jnp.float64 else 1e-6
    return conjugate_gradient(operators.laplacian, right, preconditioner=cycle, rtol=rtol, max_steps=200).x


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
    Not differentiable.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> schur_eigenvalues(discretize(Grid((4, 4)), Boundary("periodic", "no_slip"))).shape
      (6,)
    """
    if operators.inverse_permeability is not None:
        arguments.refuse("schur_eigenvalues", "operators", "with drag", "none", "eigenvalues cannot be counted then")
    if not is_concrete(operators.solid):
        arguments.refuse("schur_eigenvalues", "operators", "with a traced mask", "a known one", "call it outside jit")
    count = count_nonunit_eigenvalues(operators.grid, operators.boundary, operators.solid)
    if operators.solid is None and operators.grid.dim == 2:
        return _box_eigenvalues(operators, count)
    shifts = _dense_shifts(operators)
    return jnp.sort(1 - shifts[jnp.argsort(-jnp.abs(shifts))[:count]])


@partial(jax.jit, static_argnums=1)
def _box_eigenvalues(operators: StokesOperators, count: int) -> Array:
    """S = I - Y C^-1 Y^T, Y = B A_0^-1 E, C = W^-1 + E^T A_0^-1 E, A_0 the base operator: eigenvalues of C^-1 Y^T Y.

    In modes A_0 is diagonal, so that C couples nothing but the sides of one mode.
    """
    blocks = direct.trace_blocks(operators.grid, operators.boundary, jnp.result_type(float))
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

    Status: that of `extreme_eigenvalues`.

    Cost: num_steps times one A^-1.
    Differentiable as `extreme_eigenvalues`, where the ends are simple.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> operators = discretize(Grid((8, 8)), Boundary())
      >>> round(float(schur_extremes(operators, key=jax.random.key(0)).smallest[0]), 4)
      0.3098
    """
    arguments.check_key("schur_extremes", key)
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

    Args:
      operators: from `discretize`.
      key: of the random start of Lanczos' method.
      num_steps: its most steps.

    Returns:
      a scalar.

    Cost: num_steps times one A^-1.
    Differentiable as `schur_extremes`.

    Example:
      >>> from jaxnm.stokes import Boundary, Grid, discretize
      >>> operators = discretize(Grid((8, 8)), Boundary())
      >>> round(float(inf_sup_constant(operators, key=jax.random.key(0))), 4)
      0.5566
    """
    return jnp.sqrt(schur_extremes(operators, key=key, num_steps=num_steps).smallest[0])
