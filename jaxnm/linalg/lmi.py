"""Small linear matrix inequalities in large batches: a primal-dual interior-point method in plain array operations.

Given symmetric matrices F_i in several blocks, and scalars, find v such that every block of sum_i v_i F_i is positive
definite and every scalar positive, by as large a margin as there is. Members of a batch lie along the last, contiguous
axis, so that the work on many tiny matrices is arithmetic on long vectors; nothing here calls LAPACK. Blocks of one
size can go side by side in a group, [m, n, n, G, N] for G blocks and N members, so that one program serves them all.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.linalg.blocks import map_blocks
from jaxnm.linalg.scaling import exponent_of, times_power_of_two
from jaxnm.status import Status, first_failing

_BISECTIONS = 10  # of a step length
_TO_BOUNDARY = 0.95
_CPU_BYTES = 100_000  # of constraint matrices that are worked on side by side
_BYTES = 100_000_000  # on other devices


@flax.struct.dataclass
class MarginSolution:
    """The largest margin of a system of linear matrix inequalities, from both sides."""

    v: Float[Array, "*batch m"]
    """The point found; the sum of all traces and scalars is one there."""
    margin: Float[Array, "*batch"]
    """Attained at v: a lower bound of all eigenvalues and scalars. Positive: strictly feasible."""
    upper_bound: Float[Array, "*batch"]
    """No v has a larger margin, up to rounding. Negative: infeasible."""
    duals: tuple[Float[Array, "*batch n n"], ...]
    """Positive semidefinite, with traces that sum with `scalar_duals` to one: where the margin is lost."""
    scalar_duals: Float[Array, "*batch p"]
    """Nonnegative."""
    num_steps: Int32[Array, "*batch"]
    """Newton steps taken."""
    status: Int32[Array, "*batch"]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE (no v has a positive sum of traces), NOT_CONVERGED or INACCURATE."""


class Point(NamedTuple):
    """A primal and a dual point; the batch is last."""

    v: Array
    """[m, N]"""
    margin: Array
    """[N]"""
    bound: Array
    """[N], the dual objective."""
    duals: tuple[Array, ...]
    """[n, n, G, N] for each group."""
    scalar_duals: Array
    """[p, N]"""
    infeasibility: Array
    """[N]: what is left of the residual of the dual start, from 1 down to 0."""
    num_steps: Array
    done: Array


def maximize_margin(
    blocks: Sequence[Float[ArrayLike, "*batch m n n"]],
    scalars: Float[ArrayLike, "*batch m p"] | None = None,
    *,
    tolerance: ArrayLike | None = None,
    max_steps: int = 50,
) -> MarginSolution:
    """Maximize t over v and t, subject to `sum_i v_i F_i - t I >= 0` in every block and every scalar, normalized.

    The normalization is that the traces of all blocks and the scalars at v sum to one; so the margin is at most
    one over the number of rows of all blocks and scalars. Inequalities with a constant part, `F_0 + sum_i v_i F_i`, are
    brought to this form with a further variable v_0 for F_0 that is a scalar inequality itself: the answer is v / v_0.
    The units of the unknowns do not count: each F_i is first brought to size one by a power of two.

    Args:
      blocks: matrices [..., m, n_b, n_b] for each block b, symmetric, up to about 12 x 12; m up to about 60.
      scalars: [..., m, p]: the scalar inequalities `sum_i v_i scalars_i >= t`.
      tolerance: of the gap between the two bounds, relative to the largest margin possible; default 1e-9 in float64,
        1e-4 in float32.
      max_steps: the most Newton steps (static).

    Returns:
      `MarginSolution(v [..., m], margin [...], upper_bound [...], duals, scalar_duals [..., p], num_steps, status)`.

    Raises:
      TypeError: integer or complex dtypes, blocks that are no list, or a derivative. ValueError: no block and no
      scalar, or shapes that do not fit.

    Status:
      NONFINITE_INPUT: NaN. OUT_OF_RANGE: all traces are zero, so no matrix of the family is positive definite (NaN).
      NOT_CONVERGED: the gap is above the tolerance after max_steps or where rounding stops progress, or the bounds
      cross by more than the tolerance or sqrt(eps); the margin is a lower bound all the same. INACCURATE: v, in its
      units, is beyond the range of the dtype.

    Cost: about 12 steps, each sum_b (2 m n_b^3 + m^2 n_b^2) + m^3 / 3 multiplications a member; the slowest member of a
    chunk sets the number. Not differentiable (TypeError). By the envelope theorem the
    derivative of the margin is sum_b <duals_b, d(sum_i v_i F_i)> + <scalar_duals, d(...)> less margin d(normalization).
    Source: Helmberg, Rendl, Vanderbei, Wolkowicz, SIAM J. Optim. 6 (1996), 342-361 (the direction); Mehrotra's
    predictor and corrector.

    Example:
      >>> F = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
      >>> maximize_margin([F]).v.round(3) + 0
      Array([0.5, 0. , 0.5], dtype=float32)
    """
    name = "maximize_margin"
    if not isinstance(blocks, list | tuple):
        got, expected = f"a {type(blocks).__name__}", "a list of arrays [..., m, n, n]"
        arguments.refuse(name, "blocks", got, expected, "pass [block], or [] beside scalars", error=TypeError)
    given = {f"blocks[{i}]": block for i, block in enumerate(blocks)}
    if scalars is not None:
        given["scalars"] = scalars
    if not given:
        arguments.refuse(name, "blocks", "empty", "at least one block or scalar", "pass the inequalities")
    arrays = arguments.to_arrays(name, **given)
    ranks = [2 if label == "scalars" else 3 for label in given]
    for label, array in zip(given, arrays, strict=True):
        arguments.check_real(name, label, array)
        if label != "scalars":
            arguments.check_square(name, label, array)
    num_blocks = len(given) - (scalars is not None)
    m = next((array.shape[-axis] for array, axis in zip(arrays, ranks, strict=True) if array.ndim >= axis), 1)
    for label, array, axis in zip(given, arrays, ranks, strict=True):
        arguments.check_shape(
            name,
            label,
            array,
            f"[..., {m}, {'n, n' if axis == 3 else 'p'}]: one {'matrix' if axis == 3 else 'row'} a variable",
            lambda shape, axis=axis: len(shape) >= axis and shape[-axis] == m > 0,
        )
    arguments.check_count(name, "max_steps", max_steps, minimum=1)
    batch = jnp.broadcast_shapes(*(array.shape[:-axis] for array, axis in zip(arrays, ranks, strict=True)))
    dtype = arrays[0].dtype
    if tolerance is None:
        tolerance = 1e-9 if dtype == jnp.float64 else 1e-4
    arguments.check_number(name, "tolerance", tolerance, "> 0", lambda value: value > 0, "pass a small share")
    members = lambda array, rank: jnp.broadcast_to(array, batch + array.shape[-rank:]).reshape(-1, *array.shape[-rank:])
    flat_blocks = tuple(members(array, 3) for array in arrays[:num_blocks])
    flat_scalars = (
        members(arrays[-1], 2) if scalars is not None else arguments.constant(np.zeros((math.prod(batch), m, 0)), dtype)
    )
    flat_blocks, flat_scalars = arguments.without_derivative(
        name, "an inequality", (flat_blocks, flat_scalars), remedy="use the duals, as its docstring says"
    )
    solution = _solve(flat_blocks, flat_scalars, arguments.constant(tolerance, dtype), max_steps)
    return jax.tree.map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), solution)


@partial(jax.jit, static_argnums=3)
def _solve(blocks: tuple[Array, ...], scalars: Array, tolerance: Array, max_steps: int) -> MarginSolution:
    """Members [N, ...]; on a CPU in chunks that stay in the cache of a core."""
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in (*blocks, scalars))
    bytes_a_member = max(1, total // max(scalars.shape[0], 1))
    cpu, other = (max(1, num_bytes // bytes_a_member) for num_bytes in (_CPU_BYTES, _BYTES))
    solve_chunk = lambda blocks, scalars: _chunk(blocks, scalars, tolerance, max_steps)
    return map_blocks(solve_chunk, (blocks, scalars), cpu=cpu, other=other)


def _chunk(blocks: tuple[Array, ...], scalars: Array, tolerance: Array, max_steps: int) -> MarginSolution:
    finite = jnp.all(jnp.isfinite(scalars), (1, 2))
    for block in blocks:
        finite &= jnp.all(jnp.isfinite(block), (1, 2, 3))
    last = lambda array: jnp.moveaxis(
        jnp.where(jnp.expand_dims(finite, tuple(range(1, array.ndim))), array, jnp.zeros_like(array)), 0, -1
    )
    symmetric = lambda block: (block + block.swapaxes(1, 2)) / 2
    blocks, scalars = tuple(symmetric(last(block))[:, :, :, None] for block in blocks), last(scalars)
    # powers of two that bring each F_i to about one: v in other units is another answer to the same question
    largest = jnp.max(jnp.abs(scalars), 1, initial=0)
    for block in blocks:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(block), (1, 2, 3)))
    exponent = exponent_of(largest)
    scaled = lambda array: times_power_of_two(array, spread_over(-exponent, array))
    blocks, scalars = tuple(map(scaled, blocks)), scaled(scalars)
    traces = trace_of(blocks, scalars)
    possible = jnp.sum(traces**2, 0) > 0
    rows = sum(block.shape[1] for block in blocks) + scalars.shape[1]

    rounding = math.sqrt(jnp.finfo(scalars.dtype).eps)

    def converged(point: Point) -> Array:
        gap = rows * (point.bound - point.margin)
        return (point.infeasibility < 1e-8) & (gap <= tolerance) & (gap >= -jnp.minimum(tolerance, rounding))

    point = solve(blocks, scalars, start_of(blocks, scalars), converged, max_steps)
    v = scaled(point.v)
    lost = jnp.abs(times_power_of_two(v, exponent) - point.v) > rounding * jnp.max(jnp.abs(point.v), 0)[None]
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~possible, Status.OUT_OF_RANGE),
        (~converged(point), Status.NOT_CONVERGED),
        (jnp.any(lost, 0), Status.INACCURATE),
    )
    usable = finite & possible
    first = lambda array: arguments.nan_unless(jnp.moveaxis(array, -1, 0), usable, array.ndim - 1)
    return MarginSolution(
        v=first(v),
        margin=first(point.margin),
        upper_bound=first(point.bound),
        duals=tuple(first(dual[:, :, 0]) for dual in point.duals),
        scalar_duals=first(point.scalar_duals),
        num_steps=point.num_steps,
        status=status,
    )


# ------------------------------------------------------------------------------------------ the iteration, batch last


def trace_of(blocks: tuple[Array, ...], scalars: Array) -> Array:
    """[m, N]: the sum of the traces of all blocks and of the scalars, for each variable."""
    traces = jnp.sum(scalars, 1)
    for block in blocks:
        traces = traces + jnp.sum(_sum([block[:, i, i] for i in range(block.shape[1])]), 1)
    return traces


def start_of(blocks: tuple[Array, ...], scalars: Array, v: Array | None = None) -> Point:
    """Strictly feasible on the primal side, at v if its traces are positive; multiples of the identity on the dual."""
    size, dtype = scalars.shape[-1], scalars.dtype
    traces = trace_of(blocks, scalars)
    squared = jnp.sum(traces**2, 0)
    by_traces = traces / jnp.where(squared > 0, squared, 1)[None]
    if v is None:
        v = by_traces
    else:
        total = jnp.sum(traces * v, 0)
        v = jnp.where(total > 0, v / jnp.where(total > 0, total, 1)[None], by_traces)
    matrices, numbers = combine(blocks, scalars, v)
    # by the norm: no eigenvalue is below
    lowest = jnp.min(numbers, 0, initial=0)
    for matrix in matrices:
        lowest = jnp.minimum(lowest, -jnp.sqrt(jnp.sum(matrix**2, (0, 1, 2))))
    share = jnp.asarray(1 / _num_rows(blocks, scalars), dtype)
    return Point(
        v=v,
        margin=2 * lowest - share,
        bound=jnp.full(size, share),
        duals=tuple(share * _identity(block) for block in blocks),
        scalar_duals=jnp.full((scalars.shape[1], size), share),
        infeasibility=jnp.ones(size, dtype),
        num_steps=jnp.zeros(size, jnp.int32),
        done=jnp.zeros(size, bool),
    )


def combine(blocks: tuple[Array, ...], scalars: Array, v: Array) -> tuple[tuple[Array, ...], Array]:
    """sum_i v_i F_i in every block [n, n, G, N] and scalar [p, N]."""
    m = v.shape[0]
    return (
        tuple(_sum([v[i, None, None, None] * block[i] for i in range(m)]) for block in blocks),
        _sum([v[i, None] * scalars[i] for i in range(m)]),
    )


def _num_rows(blocks: tuple[Array, ...], scalars: Array) -> int:
    return sum(block.shape[1] * block.shape[3] for block in blocks) + scalars.shape[1]


def solve(
    blocks: tuple[Array, ...], scalars: Array, start: Point, finished: Callable[[Point], Array], max_steps: int
) -> Point:
    """Steps until `finished(point)` [N] holds or nothing moves; a member that is done stays as it is."""
    size, dtype = scalars.shape[-1], scalars.dtype
    # the margin is one more variable, with the matrix -I
    with_margin = lambda array, minus: jnp.concatenate([array, minus[None]], 0)
    extended = tuple(with_margin(block, -_identity(block)) for block in blocks)
    extended_scalars = with_margin(scalars, -jnp.ones(scalars.shape[1:], dtype))
    traces = jnp.concatenate([trace_of(blocks, scalars), jnp.zeros((1, size), dtype)], 0)

    def step(point: Point) -> Point:
        new = _newton_step(extended, extended_scalars, traces, point)
        # where rounding has taken over, the two bounds cross
        crossed = (new.infeasibility < 1e-6) & (new.bound < new.margin - jnp.abs(point.bound - point.margin))
        stuck = ~jnp.isfinite(new.margin) | ~jnp.isfinite(new.bound) | crossed
        keep = point.done | stuck
        new = jax.tree.map(lambda old, new: jnp.where(spread(keep, old), old, new), point, new)
        return new._replace(
            num_steps=point.num_steps + (~point.done).astype(jnp.int32),
            done=keep | finished(new) | (new.num_steps >= max_steps),
        )

    start = start._replace(done=finished(start))
    return jax.lax.while_loop(lambda point: ~jnp.all(point.done), step, start)


class _Direction(NamedTuple):
    """A step, and what the next one corrects by."""

    step: Array
    bound: Array
    dual_steps: tuple[Array, ...]
    scalar_steps: Array
    lengths: tuple[Array, Array]
    """How far the primal and the dual step can go."""
    target: Array
    """What all products of eigenvalues are to become."""
    second: tuple[Array, ...]
    """The product of the changes, which the linear equations leave out."""
    second_scalars: Array


def _newton_step(blocks: tuple[Array, ...], scalars: Array, traces: Array, point: Point) -> Point:
    """One predictor and corrector along the direction of Helmberg, Rendl, Vanderbei and Wolkowicz.

    Both come from one loop body: the predictor is the corrector with nothing to correct yet. That halves the program.
    """
    once = jax.lax.optimization_barrier
    x = jnp.concatenate([point.v, point.margin[None]], 0)
    slacks, numbers = once(combine(blocks, scalars, x))
    inverses = once(tuple(_inverse(slack) for slack in slacks))
    duals, scalar_duals = point.duals, point.scalar_duals
    rows = _num_rows(blocks, scalars)

    ratios = scalar_duals / numbers
    weighted = scalars * ratios[None]
    matrix = jnp.sum(scalars[:, None] * weighted[None], 2)
    gradient = jnp.sum(scalars / numbers[None], 1)
    for block, dual, inverse in zip(blocks, duals, inverses, strict=True):
        image = once(sandwich(dual, block, inverse))
        matrix = matrix + _pairings(block, image)
        gradient = gradient + _inner(block, inverse)
    # steps are orthogonal to the traces, so this changes none; without it I among the F_i makes the matrix singular
    largest = jnp.max(jnp.stack([matrix[k, k] for k in range(matrix.shape[0])]), 0)
    matrix = matrix + (largest / jnp.sum(traces**2, 0))[None, None] * traces[:, None] * traces[None]
    factor = once(_cholesky(matrix))
    unit = jnp.zeros_like(x).at[-1].set(1)
    mean = (
        sum((jnp.sum(dual * slack, (0, 1, 2)) for dual, slack in zip(duals, slacks, strict=True)), jnp.zeros_like(x[0]))
        + jnp.sum(scalar_duals * numbers, 0)
    ) / rows

    def direction(_: Array, before: _Direction) -> _Direction:
        target, second, second_scalars = before.target, before.second, before.second_scalars
        right = unit + target[None] * gradient - jnp.sum(scalars * second_scalars[None], 1)
        for block, extra, inverse in zip(blocks, second, inverses, strict=True):
            product = multiply(extra, inverse)
            right = right - _inner(block, (product + product.swapaxes(0, 1)) / 2)
        solutions = once(_solve_factored(factor, jnp.stack([right, traces], 1)))
        solution, by_traces = solutions[:, 0], solutions[:, 1]
        bound = jnp.sum(traces * solution, 0) / jnp.sum(traces * by_traces, 0)
        step = solution - bound[None] * by_traces
        changes, number_changes = once(combine(blocks, scalars, step))
        dual_steps = []
        for dual, inverse, change, extra in zip(duals, inverses, changes, second, strict=True):
            product = multiply(multiply(dual, change) + extra, inverse)
            dual_steps.append(spread(target, inverse) * inverse - dual - (product + product.swapaxes(0, 1)) / 2)
        dual_steps = once(tuple(dual_steps))
        scalar_steps = target[None] / numbers - scalar_duals - ratios * number_changes - second_scalars
        # the primal and the dual side by side, as twice as many members
        both = lambda primal, dual: jnp.concatenate([primal, dual], -1)
        lengths = _step_length(
            tuple(map(both, slacks, duals)), tuple(map(both, changes, dual_steps)),
            both(numbers, scalar_duals), both(number_changes, scalar_steps),
        )  # fmt: skip
        primal_length, dual_length = jnp.split(lengths, 2)
        after = jnp.sum(
            (scalar_duals + dual_length[None] * scalar_steps) * (numbers + primal_length[None] * number_changes), 0
        )
        for dual, dual_step, slack, change in zip(duals, dual_steps, slacks, changes, strict=True):
            dual, slack = dual + spread(dual_length, dual) * dual_step, slack + spread(primal_length, slack) * change
            after = after + jnp.sum(dual * slack, (0, 1, 2))
        after = jnp.clip(after / rows / mean, 1e-6, 1)
        return _Direction(
            step=step,
            bound=bound,
            dual_steps=dual_steps,
            scalar_steps=scalar_steps,
            lengths=(primal_length, dual_length),
            target=jnp.maximum(after**3, 1e-6) * mean,
            second=tuple(multiply(dual_step, change) for dual_step, change in zip(dual_steps, changes, strict=True)),
            second_scalars=scalar_steps * number_changes / numbers,
        )

    nothing = _Direction(
        step=x,
        bound=point.bound,
        dual_steps=duals,
        scalar_steps=scalar_duals,
        lengths=(mean, mean),
        target=jnp.zeros_like(mean),
        second=tuple(jnp.zeros_like(slack) for slack in slacks),
        second_scalars=jnp.zeros_like(numbers),
    )
    final = jax.lax.fori_loop(0, 2, direction, nothing)
    primal_length, dual_length = (jnp.minimum(_TO_BOUNDARY * length, 1) for length in final.lengths)
    return Point(
        v=point.v + primal_length[None] * final.step[:-1],
        margin=point.margin + primal_length * final.step[-1],
        bound=point.bound + dual_length * (final.bound - point.bound),
        duals=tuple(
            dual + spread(dual_length, dual) * change for dual, change in zip(duals, final.dual_steps, strict=True)
        ),
        scalar_duals=scalar_duals + dual_length[None] * final.scalar_steps,
        infeasibility=point.infeasibility * (1 - dual_length),
        num_steps=point.num_steps,
        done=point.done,
    )


# --------------------------------------------------------------------------------- small matrices [n, n, N], batch last
#
# Sums over a short axis are written out: XLA then makes one loop along the batch, where a reduction would be a loop of
# its own for every element.


def _identity(block: Array) -> Array:
    """[n, n, G, N], as many as the matrices of the block [m, n, n, G, N]."""
    return jnp.broadcast_to(jnp.eye(block.shape[1], dtype=block.dtype)[..., None, None], block.shape[1:])


def spread(numbers: Array, like: Array) -> Array:
    """[N] with leading axes, so that it multiplies or selects members of `like`."""
    return jnp.expand_dims(numbers, tuple(range(like.ndim - 1)))


def _sum(terms: Sequence[Array]) -> Array:
    return reduce(jnp.add, terms)


def spread_over(factors: Array, array: Array) -> Array:
    """[m, N] with axes between, so that it multiplies each of the matrices or numbers [m, ..., N]."""
    return factors.reshape(factors.shape[0], *(1,) * (array.ndim - 2), factors.shape[-1])


def multiply(a: Array, b: Array) -> Array:
    """`a @ b` for each member, [n, n, G, N]."""
    return _sum([a[:, k, None] * b[None, k] for k in range(a.shape[1])])


def sandwich(left: Array, matrices: Array, right: Array) -> Array:
    """`left @ matrices[i] @ right` for each i, [m, n, n, G, N]."""
    n = left.shape[0]
    half = jax.lax.optimization_barrier(_sum([left[None, :, k, None] * matrices[:, k, None] for k in range(n)]))
    return _sum([half[:, :, k, None] * right[None, k, None] for k in range(n)])


def _pairings(matrices: Array, images: Array) -> Array:
    """Sums over the group of the traces of `matrices[i] @ images[j]`, [m, m, N]."""
    n, groups = matrices.shape[1], matrices.shape[3]

    def row(a: Array, total: Array) -> Array:
        ours, theirs = (
            jax.lax.dynamic_index_in_dim(array, a, axis, False) for array, axis in ((matrices, 1), (images, 2))
        )
        return total + _sum([ours[:, None, b, g] * theirs[None, :, b, g] for b in range(n) for g in range(groups)])

    start = jnp.zeros((matrices.shape[0], *matrices.shape[:1], matrices.shape[-1]), matrices.dtype)
    return jax.lax.fori_loop(0, n, row, start)


def _inner(matrices: Array, matrix: Array) -> Array:
    """Sums over the group of the traces of `matrices[i] @ matrix`, [m, N]; matrix symmetric."""
    n = matrix.shape[0]
    return jnp.sum(_sum([matrices[:, a, b] * matrix[None, a, b] for a in range(n) for b in range(n)]), 1)


def _cholesky(matrix: Array) -> tuple[Array, Array]:
    """(L, one over its diagonal); a variable whose pivot is rounding is held at zero."""
    m = matrix.shape[0]
    index = jnp.arange(m, dtype=jnp.int32)
    smallest = jnp.finfo(matrix.dtype).eps ** 2 * jnp.stack([matrix[k, k] for k in range(m)])

    def column(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, reciprocals = state
        pivot = matrix[k, k]
        good = pivot > smallest[k]
        reciprocal = jnp.where(good, jax.lax.rsqrt(jnp.where(good, pivot, 1)), 0)
        below = jnp.where(index[:, None] >= k, matrix[:, k], 0) * reciprocal[None]
        below = jax.lax.optimization_barrier(below)
        matrix = matrix - below[:, None] * below[None]
        return matrix.at[:, k].set(below), reciprocals.at[k].set(reciprocal)

    return jax.lax.fori_loop(0, m, column, (matrix, jnp.zeros(matrix.shape[1:], matrix.dtype)))


def _solve_factored(factor: tuple[Array, Array], right: Array) -> Array:
    """Solution [m, r, N] of `L L^T x = right`."""
    L, reciprocals = factor
    m = L.shape[0]

    def forward(k: Array, y: Array) -> Array:
        found = y[k] * reciprocals[k][None]
        return (y - L[:, k, None] * found[None]).at[k].set(found)

    def backward(i: Array, x: Array) -> Array:
        k = m - 1 - i
        found = x[k] * reciprocals[k][None]
        return (x - L[k, :, None] * found[None]).at[k].set(found)

    return jax.lax.fori_loop(0, m, backward, jax.lax.fori_loop(0, m, forward, right))


def _inverse(matrix: Array) -> Array:
    """Of a positive definite matrix, by Gauss and Jordan without pivots."""
    n = matrix.shape[0]
    unit = jnp.eye(n, dtype=matrix.dtype)

    def eliminate(k: Array, matrix: Array) -> Array:
        # the column of the pivot becomes that of the identity, its image that of the inverse
        here = jnp.expand_dims(unit[k], tuple(range(1, matrix.ndim - 1)))
        column = matrix[:, k] - here
        row = (matrix[k] + here) / matrix[k, k][None]
        return jax.lax.optimization_barrier(matrix - column[:, None] * row[None])

    matrix = jax.lax.fori_loop(0, n, eliminate, matrix)
    return (matrix + matrix.swapaxes(0, 1)) / 2


def inverse_root(matrix: Array) -> Array:
    """The inverse of the Cholesky factor, [n, n, G, N]; regular, if not that, where there is no such factor."""
    n = matrix.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    beside = jnp.concatenate([matrix, _identity(matrix[None])], 1)

    def eliminate(k: Array, rows: Array) -> Array:
        scale = jax.lax.rsqrt(jnp.where(rows[k, k] > 0, rows[k, k], 1))
        row = rows[k] * scale[None]
        below = jnp.where(index[:, None, None] > k, rows[:, k], 0) * scale[None]
        return (rows - below[:, None] * row[None]).at[k].set(row)

    return jax.lax.fori_loop(0, n, eliminate, beside)[:, n:]


def smallest_pivot(matrix: Array) -> Array:
    """[G, N], positive exactly where the matrix is positive definite to rounding; NaN or not positive elsewhere."""
    n = matrix.shape[0]
    rows = [[matrix[i, j] for j in range(i + 1)] for i in range(n)]
    pivots = []
    for k in range(n):
        pivots.append(rows[k][k])
        for i in range(k + 1, n):
            ratio = rows[i][k] / rows[k][k]
            for j in range(k + 1, i + 1):
                rows[i][j] = rows[i][j] - ratio * rows[j][k]
    return reduce(lambda a, b: jnp.where(a > 0, b, a), pivots)


def _step_length(
    matrices: tuple[Array, ...], changes: tuple[Array, ...], numbers: Array, number_changes: Array
) -> Array:
    """[N]: the longest step, up to 1 / 0.95, on which all matrices stay positive definite and all numbers positive."""
    longest = jnp.asarray(1 / _TO_BOUNDARY, numbers.dtype)
    falling = number_changes < 0
    ratios = jnp.where(falling, numbers / jnp.where(falling, -number_changes, 1), longest)
    high = jnp.min(ratios, 0, initial=1 / _TO_BOUNDARY)

    def inside(length: Array) -> Array:
        return reduce(
            jnp.logical_and,
            [
                jnp.all(smallest_pivot(a + spread(length, a) * change) > 0, 0)
                for a, change in zip(matrices, changes, strict=True)
            ],
            jnp.ones(length.shape, bool),
        )

    def halve(_: Array, ends: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, middle = ends
        good = inside(middle)
        low, high = jnp.where(good, middle, low), jnp.where(good, high, middle)
        return low, high, (low + high) / 2

    # the longest is tried first
    return jax.lax.fori_loop(0, _BISECTIONS + 1, halve, (jnp.zeros_like(high), high, high))[0]
