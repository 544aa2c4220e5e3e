"""Linear systems in train form, one core at a time: an alternating linear scheme whose bases are enriched.

A half-sweep goes from left to right: the system projected onto the orthonormal bases on both sides of a site is solved
there, the core is cut as far as the projected residual allows, and its basis is enriched by a random sketch of the
residual, by which ranks grow. One from right to left is the same program, without the sketch, on the trains with their
modes in reverse, so that the interfaces that one leaves behind are those that the next one needs.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int32, Key

from jaxnm import arguments
from jaxnm.status import Status, first_failing
from jaxnm.tensor_train.matrices import TTMatrix, matvec
from jaxnm.tensor_train.products import norm
from jaxnm.tensor_train.rounding import round
from jaxnm.tensor_train.scaling import converted_scale, joined_scale, shifted_scale, summed_scales, unit_cores
from jaxnm.tensor_train.solve_sites import half_sweep, interfaces_behind, reversed_cores, size_of
from jaxnm.tensor_train.trains import TT, bounded_rank, check_train, mode_mask, rank_bounds, subtract


@flax.struct.dataclass
class SolveResult:
    """The solution of a linear system, and how well it solves it."""

    tt: TT
    residual: Float[Array, ""]
    """|A x - b| / |b| of the train that is returned, from the product and factorizations QR; zero for b = 0."""
    ranks: Int32[Array, "d+1"]
    num_sweeps: Int32[Array, ""]
    """In both directions."""
    saturated: Bool[Array, ""]
    """Whether some bond has max_rank and the tolerance wants more."""
    status: Int32[Array, ""]


def solve(
    matrix: TTMatrix,
    right: TT,
    *,
    max_rank: int,
    key: Key[Array, ""],
    tol: Float[ArrayLike, ""] = 1e-6,
    initial: TT | None = None,
    max_sweeps: int = 20,
    enrichment: int = 4,
) -> SolveResult:
    """Solve A x = b by an alternating linear scheme with enrichment by a random sketch of the residual.

    Args:
      matrix: A, square. Projected systems are sure to be regular where its Hermitian part is positive definite; others,
        if they are well conditioned, work as a rule.
      right: b, of the shape of the columns of A.
      max_rank: R of the solution (static); clipped to what the shape can have.
      key: of `jax.random.key`, for the sketches of the residual.
      tol: of the residual, relative to b. May be traced. See below for what it cannot be.
      initial: where to start, like x; a train of zeros by default, and where it is larger than x by the root of the
        machine epsilon.
      max_sweeps: sweeps in both directions (static). The iteration ends before, when the residual is below tol, or when
        two sweeps have taken less than a tenth off it.
      enrichment: columns that are added to a basis in a sweep (static); ranks grow by as much in each.

    Returns:
      `SolveResult`.

    Raises:
      ValueError: A that is not square, b or initial of another shape, max_rank < 1, max_sweeps < 1, enrichment < 1,
        tol <= 0. TypeError: no operator, no train, a raw key.

    Status: NONFINITE_INPUT: a core is not finite; x is NaN. NONFINITE_RESULT: x is not finite. NOT_CONVERGED: the
    residual is above tol, since max_rank (`saturated`) or max_sweeps are too small, or tol is below what rounding
    errors allow, machine epsilon times the condition number of A at worst: the residual says what was reached.

    Cost: a sweep of d sites with n R^3 P + n^2 R^2 P^2 multiplications a step for an operator of ranks P and up to 40
    steps a site, then one product with A and its norm; R is max_rank + enrichment here. The iteration is preconditioned
    by blocks of order n, in the eigenvectors of the partial traces of the projected operator: exact where A is a sum of
    operators of one mode each. Compilation does not grow with d.
    Not differentiable: it raises. For a derivative of l(x) see the adjoint in the guide, one more system.
    Source: after the alternating minimal energy method of S. V. Dolgov, D. V. Savostyanov, SIAM J. Sci. Comput. 36
    (2014), A2248-A2271, which enriches by a low-rank approximation of the residual.

    Example:
      >>> from jaxnm.tensor_train import from_cores, matrix_from_cores
      >>> twice = matrix_from_cores([2 * jnp.eye(3)[None, :, :, None]] * 4)
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> result = solve(twice, ones, max_rank=2, key=jax.random.key(0))
      >>> result.ranks.tolist(), bool(result.residual < 1e-6)
      ([1, 1, 1, 1, 1], True)
    """
    name = "solve"
    if not isinstance(matrix, TTMatrix):
        got = f"of type {type(matrix).__name__}"
        arguments.refuse(name, "matrix", got, "a TTMatrix", "see matrix_from_cores", error=TypeError)
    check_train(name, right=right)
    trains = {"right": right} if initial is None else {"right": right, "initial": initial}
    if matrix.rows != matrix.columns:
        got = f"of rows {matrix.rows} and columns {matrix.columns}"
        arguments.refuse(name, "matrix", got, "a square one", "give as many equations as unknowns")
    for argument, tt in trains.items():
        check_train(name, **{argument: tt})
        if tt.shape != matrix.columns:
            expected = f"{matrix.columns}, the columns of the matrix"
            arguments.refuse(name, argument, f"of shape {tt.shape}", expected, "see `matvec`")
    cores = {"matrix": matrix.cores, **{argument: tt.cores for argument, tt in trains.items()}}
    arrays = arguments.to_arrays(name, **cores)
    for argument, count in (("max_rank", max_rank), ("max_sweeps", max_sweeps), ("enrichment", enrichment)):
        arguments.check_count(name, argument, count, minimum=1)
    arguments.check_number(name, "tol", tol, "> 0", lambda value: value > 0, "it is relative to b")
    arguments.check_key(name, key)
    (threshold,) = arguments.to_arrays(name, tol=tol)
    arguments.check_shape(name, "tol", threshold, "a scalar", lambda shape: shape == (), "use jax.vmap for several")
    dtype = jnp.finfo(arrays[0].dtype).dtype
    log = lambda x: converted_scale(x.log_scale, dtype)
    matrix = replace(matrix, cores=arrays[0], log_scale=log(matrix))
    right, *start = (replace(tt, cores=x, log_scale=log(tt)) for tt, x in zip(trains.values(), arrays[1:], strict=True))
    limits = (bounded_rank(right.shape, int(max_rank)), int(enrichment), int(max_sweeps))
    return _solve(matrix, right, start[0] if start else None, threshold.astype(dtype), key, limits)


@partial(jax.jit, static_argnums=5)
def _solve(
    matrix: TTMatrix, right: TT, initial: TT | None, tol: Array, key: Array, limits: tuple[int, int, int]
) -> SolveResult:
    size, enrichment, max_sweeps = limits
    matrix, right, initial = arguments.without_derivative(
        "solve", "an argument", (matrix, right, initial), remedy="solve the adjoint system, as its guide shows"
    )
    d, dtype, shape = right.ndim, tol.dtype, right.shape
    bounds = np.array(rank_bounds(shape, size + enrichment), np.int32)
    room = int(bounds.max())
    given = (matrix, right) if initial is None else (matrix, right, initial)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x.cores)) & jnp.isfinite(x.log_scale) for x in given]))
    safe = lambda x: jnp.where(finite, x, jnp.zeros_like(x))
    matrix = replace(matrix, cores=safe(matrix.cores), log_scale=safe(matrix.log_scale))
    right = replace(right, cores=safe(right.cores), log_scale=safe(right.log_scale))
    # every core in units of its largest entry
    cores, exponents = unit_cores(matrix.cores)
    log_scale = shifted_scale(matrix.log_scale, jnp.sum(exponents, dtype=jnp.int32))
    matrix = replace(matrix, cores=cores, log_scale=log_scale)

    # all but the last core orthonormal, and of norm one: so that no interface with it can be above one
    unit = round(right, method="qr_svd")
    length = size_of(unit.cores[-1])
    zero = ~(length > 0)
    divisor = jnp.where(zero, jnp.ones_like(length), length)
    log_right = unit.log_scale
    unit = replace(
        unit, cores=unit.cores.at[-1].divide(divisor.astype(unit.dtype)), log_scale=jnp.zeros_like(log_right)
    )

    start = unit if initial is None else replace(initial, cores=safe(initial.cores), log_scale=safe(initial.log_scale))
    mirrored = replace(start, cores=reversed_cores(start.cores), ranks=start.ranks[::-1], shape=shape[::-1])
    start = round(mirrored, max_rank=size, method="qr_svd")
    cores = reversed_cores(jnp.pad(start.cores, [(0, 0), (0, room - size), (0, 0), (0, room - size)]))
    ranks = start.ranks[::-1]
    length = size_of(cores[0])
    cores = cores.at[0].divide(jnp.where(length > 0, length, jnp.ones_like(length)).astype(cores.dtype))
    (_, whole, _), behind = interfaces_behind(cores, cores, matrix.cores, unit.cores)
    # A is taken in units in which x^H A x of the start is about one
    log_matrix = shifted_scale(matrix.log_scale, whole)
    log_solution = summed_scales(log_right, -log_matrix)
    ratio = jnp.exp(summed_scales(start.log_scale, -log_solution))
    amount = jnp.zeros((), dtype) if initial is None else length * ratio / divisor
    # a start in other units than the solution would only add its rounding errors
    amount = jnp.where(amount < jnp.finfo(dtype).eps ** -0.5, amount, jnp.zeros_like(amount))
    cores = cores.at[0].multiply(amount.astype(cores.dtype))

    directions = [jnp.stack([x, reversed_cores(x)]) for x in (matrix.cores, unit.cores)]
    modes = jnp.asarray(np.stack([mode_mask(shape), mode_mask(shape)[::-1]]))
    bounds = jnp.asarray(np.stack([bounds[1:], bounds[::-1][1:]]))
    goal = tol / jnp.sqrt(jnp.asarray(4 * d, dtype))
    operator = replace(matrix, log_scale=joined_scale(-whole, jnp.zeros((), dtype)))

    def solution(cores: Array, ranks: Array, log_scale: Array) -> TT:
        return TT(cores[:, :size, :, :size], ranks, log_scale, shape)

    def residual_of(cores: Array, ranks: Array) -> Array:
        return norm(subtract(matvec(operator, solution(cores, ranks, jnp.zeros_like(log_right))), unit))

    def half(state: Any, direction: Any) -> Any:
        cores, ranks, behind, _ = state
        a, b, mode, bound, enriched, key = direction
        system = (a, b, mode, bound)
        cores, ranks, before, saturated = half_sweep(
            (cores, ranks, behind), system, whole, goal, enriched, key, size, enrichment
        )
        return (reversed_cores(cores), ranks[::-1], jax.tree.map(lambda x: x[::-1], before), saturated), None

    def sweep(state: Any) -> Any:
        inner, count, residuals, key = state
        key, *keys = jax.random.split(key, 3)
        xs = (*directions, modes, bounds, jnp.array([True, False]), jnp.stack(keys))
        inner, _ = jax.lax.scan(half, inner, xs)
        return inner, count + jnp.int32(1), jnp.stack([*residuals[1:], residual_of(*inner[:2])]), key

    def unfinished(state: Any) -> Array:
        _, count, residuals, _ = state
        falls = (residuals[-1] < 0.9 * residuals[0]) | (count < 3)
        return (count < max_sweeps) & (residuals[-1] > tol) & falls & ~zero & finite

    state = ((cores, ranks, behind, jnp.bool_(False)), jnp.int32(0), jnp.full(3, jnp.inf, dtype), key)
    (cores, ranks, _, saturated), count, residuals, _ = jax.lax.while_loop(unfinished, sweep, state)
    residual = residuals[-1]
    nothing = zero | ~finite
    one = jnp.ones_like(ranks)
    ranks = jnp.where(nothing, one, ranks)
    # back in the units of b, which are a power of two but for this factor
    cores = cores.at[0].multiply(divisor.astype(cores.dtype))
    cores = jnp.where(nothing, jnp.zeros_like(cores), cores)
    cores = arguments.nan_unless(cores, finite, 4)
    residual = arguments.nan_unless(jnp.where(zero, jnp.zeros_like(residual), residual), finite)
    good = jnp.isfinite(residual) & jnp.isfinite(log_solution)
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT), (~good, Status.NONFINITE_RESULT), (residual > tol, Status.NOT_CONVERGED)
    )
    tt = solution(cores, ranks, jnp.where(nothing, jnp.zeros_like(log_solution), log_solution))
    return SolveResult(tt, residual, ranks, count, saturated & ~nothing, status)
