"""The rate of a method on every smooth strongly convex function, with the Lyapunov function that proves it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.first_order.float_proof import proves, systems_of
from jaxnm.first_order.lyapunov_inequalities import (
    balanced,
    forms_of,
    lyapunov_system,
    num_unknowns,
    rows_of,
    times_power,
)
from jaxnm.first_order.methods import check_curvatures, curvatures_valid
from jaxnm.first_order.rate_certificate import RateCertificate as RateCertificate
from jaxnm.first_order.rates import quadratic_rate
from jaxnm.first_order.state_space import StateSpace, check_method
from jaxnm.linalg import einsum, lmi
from jaxnm.linalg.blocks import map_blocks
from jaxnm.status import Status, first_failing

_SOLVES = 24  # the most trial rates
_CPU_MEMBERS = 24  # worked on side by side: few, as the slowest of them sets the number of steps
_LANES = 24  # a chunk has a multiple of it: one program for a member alone and beside others, so one answer
_MEMBERS = 4096  # on other devices
_SHARE = 0.005  # of 1 - rate: how close to it its bound must be; the bound is as wrong as this again
_ROUNDING = 16  # of a margin, in machine epsilons of its terms
_CLEAR = 0.01  # of 1 - rate: how far above the root the first proof is looked for


class _Certified(NamedTuple):
    """A batch of proofs, [N, ...]."""

    rate: Array
    v: Array
    """In balanced units."""
    margin: Array
    duals: Array
    scalar_duals: Array
    feasible: Array
    accurate: Array
    """Whether 1 - rate is known to a per cent."""


def certify_rate(
    method: StateSpace, mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""], *, memory: int = 0
) -> RateCertificate:
    """Smallest rate for which a quadratic-plus-function-values Lyapunov function exists on all f of the class F(mu, L).

    F(mu, L) are the differentiable functions, in any number of dimensions, that are mu-strongly convex and have an
    L-Lipschitz gradient. The rate is per iterate of the error: some tools report its square, the rate of V.

    Args:
      method: state-space form with n states; `vmap` adds batch axes.
      mu: smallest curvature, >= 0. With mu = 0 no linear rate exists.
      L: largest curvature, >= mu.
      memory: how many steps beyond the current one the Lyapunov function sees, 0, 1 or 2 (static). More memory can
        prove a smaller rate and costs more.

    Returns:
      `RateCertificate(rate, Q, q, multipliers, margin, quadratic_rate, status, method, mu, L, memory)`. A rate below 1
      is accepted only with a proof in floating-point numbers, rounding included (`is_proved`), so that `verify` makes
      it an exact one. It is above the best one by at most about 1e-7 where the problem is well conditioned. Neither
      the units of single states nor those of the function count: the method is balanced by powers of two first. That
      is diagonal: a change of basis that mixes states is not undone, and an ill-conditioned one costs digits.

    Raises:
      ValueError: Python numbers outside 0 <= mu <= L, a memory other than 0, 1, 2, a batch of symbolic size in
      `jax.export`. TypeError: integer arrays, halves, a method of another type, a memory that is no Python int, a
      second derivative.

    Status:
      NONFINITE_INPUT: NaN. OUT_OF_RANGE: traced mu, L outside 0 <= mu <= L (NaN). NOT_STABLE: the method does not even
      converge on quadratics; the rate is that on quadratics, 1 or above. NOT_CERTIFIED: no Lyapunov function of this
      memory proves a rate below 1, or rounding hides it; the rate is 1. In both the gradient is zero. INACCURATE: the
      rate is proved, but 1 - rate may be more than a per cent below its best value, as far as the dual bound of the
      margin says (in float64 at condition numbers above 1e5).

    Cost: about 6 systems of linear matrix inequalities, each some 14 Newton steps on 12 unknowns (n = 2, memory 0) to
    56 (n = 4, memory 2); batches are worked through in chunks.
    Only `rate` and `quadratic_rate` have derivatives. Those of `Q`, `q`, `multipliers` and `margin` are zero by
    construction: these are returned as constants. `rate` is differentiable in the method, mu and L where the optimal
    multipliers are unique, by the envelope theorem, at the cost of a few products; one-sided at kinks, such as the
    optimal step of gradient descent; to some four digits. First order only: a second derivative raises TypeError.
    In float32 the rate is above by a per cent of 1 - rate at a condition number of 10 and a fifth at 100, INACCURATE;
    claims need float64.
    Source: Taylor, Van Scoy, Lessard, ICML 2018 (arXiv:1803.06073), theorem 3; the inequalities: Taylor, Hendrickx,
    Glineur, Math. Program. 161 (2017), theorem 4.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> bool(certify_rate(gradient_descent(1.0), 0.1, 1.0).rate < 0.905)
      True
    """
    name = "certify_rate"
    check_method(name, method)
    check_curvatures(name, mu, L, positive=False)
    arguments.check_count(name, "memory", memory)
    if memory > 2:
        arguments.refuse(name, "memory", repr(memory), "0, 1 or 2", "choose one of them; it is static")
    A, B, C, mu, L = arguments.to_arrays(name, A=method.A, B=method.B, C=method.C, mu=mu, L=L)
    for label, value in (("mu", mu), ("L", L)):
        arguments.check_real(name, label, value)
        arguments.check_shape(name, label, value, "a number", lambda shape: shape == ())
    return _certify(StateSpace(A, B, C), mu, L, (), int(memory))


def check_lyapunov(
    method: StateSpace, P: Float[ArrayLike, "n n"], mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]
) -> RateCertificate:
    """Smallest rate that a given function V = state^T P state proves on all f of the class F(mu, L).

    Args:
      method: state-space form with n states; `vmap` adds batch axes.
      P: [n, n], its symmetric part counts; any positive multiple proves the same. The state is taken relative to its
        limit.
      mu: smallest curvature, >= 0.
      L: largest curvature, >= mu.

    Returns:
      `RateCertificate` of memory 0 with Q = [[P, 0], [0, 0]] up to scale and q = 0, so that `verify` makes it a proof.
      Its rate is that of the given P; the best P of all, with function values, is what `certify_rate` finds.

    Raises:
      As `certify_rate`; ValueError: P of another shape.

    Status:
      As `certify_rate`. NOT_CERTIFIED: this P proves no rate below 1, for one because it is not positive definite.

    Cost: as `certify_rate`, with 6 unknowns. `rate` is differentiable in the method, mu and L, as in `certify_rate`;
    not in P (TypeError).
    Source: as `certify_rate`.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> bool(check_lyapunov(gradient_descent(1.0), jnp.eye(1), 0.1, 1.0).rate < 0.905)
      True
    """
    name = "check_lyapunov"
    check_method(name, method)
    check_curvatures(name, mu, L, positive=False)
    A, B, C, P, mu, L = arguments.to_arrays(name, A=method.A, B=method.B, C=method.C, P=P, mu=mu, L=L)
    (P,) = arguments.without_derivative(
        name, "P", (P,), remedy="differentiate in the method, mu or L; certify_rate finds the best P"
    )
    arguments.check_shape(name, "P", P, f"{list(A.shape)}, one row a state", lambda shape: shape == A.shape)
    for label, value in (("mu", mu), ("L", L)):
        arguments.check_real(name, label, value)
        arguments.check_shape(name, label, value, "a number", lambda shape: shape == ())
    return _certify(StateSpace(A, B, C), mu, L, (P,), 0)


def _own_function(P: Array) -> Array:
    """[6, m]: the unknowns of `certify_rate` with memory 0 as combinations of P and the free multipliers."""
    entries, values, decrease, positivity = num_unknowns(P.shape[0], 0)
    free = decrease + positivity
    padded = jnp.pad((P + P.T) / 2, ((0, 1), (0, 1)))
    of_P = jnp.concatenate([padded[jnp.tril_indices(P.shape[0] + 1)], jnp.zeros(values + free, P.dtype)])
    return jnp.concatenate([of_P[None], jnp.eye(free, entries + values + free, entries + values, dtype=P.dtype)])


@partial(jax.jit, static_argnums=4)
def _certify(method: StateSpace, mu: Array, L: Array, own: tuple[Array, ...], memory: int) -> RateCertificate:
    n, dtype = method.A.shape[0], mu.dtype
    finite = jnp.isfinite(mu) & jnp.isfinite(L)
    for leaf in jax.tree.leaves((method, own)):
        finite &= jnp.all(jnp.isfinite(leaf))
    in_range = curvatures_valid(mu, L, positive=False)
    usable = finite & in_range
    calm = lambda array, other: jnp.where(usable, array, jnp.asarray(other, dtype))
    units = balanced(jax.tree.map(lambda leaf: calm(leaf, 0), method), calm(mu, 0.5), calm(L, 1))
    on_quadratics = quadratic_rate(units.method, units.mu, units.L)
    exponents = jnp.pad(units.exponents, (0, memory + 1))
    back = exponents[:, None] + exponents[None]  # of the entries of Q
    basis = tuple(_own_function(times_power(_normalized(calm(P, 0)), -back[:n, :n])) for P in own)
    certified = _with_derivative(memory, (units.method, units.mu, units.L, jax.lax.stop_gradient(on_quadratics), basis))
    rate = jnp.where(certified.feasible, certified.rate, jax.lax.stop_gradient(jnp.maximum(on_quadratics, 1)))
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~in_range, Status.OUT_OF_RANGE),
        (~(on_quadratics < 1), Status.NOT_STABLE),
        (~certified.feasible, Status.NOT_CERTIFIED),
        (~certified.accurate, Status.INACCURATE),
    )
    entries, values, _, _ = num_unknowns(n, memory)
    size = n + memory + 1
    lower = jnp.zeros((size, size), dtype).at[jnp.tril_indices(size)].set(certified.v[:entries])
    Q = times_power(lower + jnp.tril(lower, -1).T, back)
    return RateCertificate(
        rate=arguments.nan_unless(rate, usable),
        Q=arguments.nan_unless(Q, usable, 2),
        q=arguments.nan_unless(certified.v[entries : entries + values], usable, 1),
        multipliers=arguments.nan_unless(_multipliers(n, memory, certified.v, rate), usable, 1),
        margin=arguments.nan_unless(certified.margin, usable),
        quadratic_rate=arguments.nan_unless(on_quadratics, usable),
        status=status,
        method=method,
        mu=mu,
        L=L,
        memory=memory,
    )


def _normalized(P: Array) -> Array:
    """With a largest entry of about one, by a power of two."""
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(P)))
    return times_power(P, -jnp.where(size > 0, jnp.frexp(size)[1], 0))


def _multipliers(n: int, memory: int, v: Array, rate: Array) -> Array:
    at_one, per_square = (jnp.asarray(table, v.dtype) for table in forms_of(n, memory).multipliers)
    return jax.lax.stop_gradient(einsum("m,mp->p", v, at_one - (1 - rate) * (1 + rate) * per_square))


# ----------------------------------------------------------------------------------------------- derivative and batches


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(memory: int, problem: Any) -> _Certified:
    """One member; the batches of `vmap` are solved together."""
    return _batchable(memory)(*problem)


@_with_derivative.defjvp
def _with_derivative_jvp(memory: int, primals: tuple[Any], tangents: tuple[Any]) -> tuple[_Certified, _Certified]:
    (problem,), (change,) = primals, tangents
    certified = _with_derivative(memory, problem)
    # the multipliers move with the problem, and nothing here says how
    fixed, problem = arguments.without_derivative(
        "certify_rate", "the gradient of the rate", (certified, problem),
        remedy="use central differences of the gradient: only the first derivative is known",
    )  # fmt: skip

    def lagrangian(problem: Any, rate: Array) -> Array:
        method, mu, L, _, _ = problem
        system = lyapunov_system(rows_of(method, mu, L, memory), method.num_states, memory)
        blocks, scalars = system.at((1 - rate) * (1 + rate))
        paired = einsum("mabg,abg->m", blocks, fixed.duals) + einsum("mp,p->m", scalars, fixed.scalar_duals)
        return jnp.sum(fixed.v * paired)

    _, slope = jax.jvp(partial(lagrangian, problem), (fixed.rate,), (jnp.ones_like(fixed.rate),))
    _, shift = jax.jvp(lambda problem: lagrangian(problem, fixed.rate), (problem,), (change,))
    good = fixed.feasible & (slope > 0)
    tangent = jnp.where(good, -shift / jnp.where(good, slope, 1), 0)
    return certified, jax.tree.map(_zero_tangent, certified)._replace(rate=tangent)


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return jnp.zeros(leaf.shape, jax.dtypes.float0)


def _batchable(memory: int) -> Any:
    """One member as a batch of one, and under `vmap`, nested or not, one batch of all."""

    @jax.custom_batching.custom_vmap
    def batch(method: StateSpace, mu: Array, L: Array, lowest: Array, basis: tuple[Array, ...]) -> _Certified:
        operands = (method, mu, L, lowest, basis)
        return map_blocks(partial(_filled_up, memory), operands, cpu=_CPU_MEMBERS, other=_MEMBERS)

    @batch.def_vmap
    def rule(axis_size: int, in_batched: Any, *problem: Any) -> tuple[_Certified, Any]:
        if not isinstance(axis_size, int):
            arguments.refuse(
                "certify_rate", "the batch", f"of the symbolic size {axis_size}", "a size known while tracing",
                "export one program for each size",
            )  # fmt: skip
        spread = lambda leaf, batched: leaf if batched else jnp.broadcast_to(leaf[None], (axis_size, *leaf.shape))
        problem = jax.tree.map(spread, problem, tuple(in_batched))
        together = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), problem)
        certified = batch(*together)
        apart = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), certified)
        return apart, jax.tree.map(lambda _: True, apart)

    def one(*problem: Any) -> _Certified:
        certified = batch(*jax.tree.map(lambda leaf: leaf[None], problem))
        return jax.tree.map(lambda leaf: leaf[0], certified)

    return one


def _filled_up(memory: int, *problem: Any) -> _Certified:
    """`_chunk` of a multiple of `_LANES` members, the last one repeated."""
    size = problem[1].shape[0]
    more = -size % _LANES
    fill = lambda leaf: jnp.pad(leaf, ((0, more), *((0, 0),) * (leaf.ndim - 1)), mode="edge")
    return jax.tree.map(lambda leaf: leaf[:size], _chunk(*jax.tree.map(fill, problem), memory=memory))


# ----------------------------------------------------------------------------------------------------- the search


class _Best(NamedTuple):
    """The proof for the smallest rate so far; the batch is last."""

    v: Array
    margin: Array
    duals: Array
    scalar_duals: Array


class _Search(NamedTuple):
    """Trial rates of a chunk; the batch is last."""

    metric: Array
    """[d, d, 2, N]: the matrices that blocks are measured by, at first the identity, later those at `inside`, and"""
    weights: Array
    """[p, N]: the numbers that scalars are measured by."""
    inside: Array
    """[m, N]: unknowns of the best proof, or of the best trial before; zeros at first."""
    floor: Array
    """Where tangents of the margin vanish, by its dual bounds: no proof is below, up to rounding."""
    low: Array
    """No proof, or no convergence on quadratics."""
    high: Array
    """A proof, or 1."""
    trial: Array
    aim: Array
    """The root as far as tangents from below tell, and"""
    below: Array
    """the largest rate without a proof in whatever units."""
    best: _Best
    """The proof for `high`."""
    found: Array
    done: Array
    solves: Array
    nudge: Array
    """How far above a predicted root a proof is looked for."""


def _chunk(method: StateSpace, mu: Array, L: Array, lowest: Array, basis: tuple[Array, ...], memory: int) -> _Certified:
    """Newton's method on the largest margin as a function of the rate, between bounds.

    The margin rises with the rate and is nearly concave, so Newton's step from either side ends at or below the root.
    A rate counts when its Lyapunov function is a proof in floating-point numbers, error bounds included. The first is
    looked for clearly above the root. Its matrices are what later margins are measured by: so however flat the
    feasible set is, it is round to the solver, and a margin means as much at a condition number of 1e5 as at 10. Those
    of a proof next to the root are nearly singular and would bend the margin, and the multipliers with it.
    """
    n, dtype = method.A.shape[-1], mu.dtype
    double = dtype == jnp.float64
    precision = 2e-8 if double else 1e-4  # of a rate far from one
    last = partial(jax.tree.map, lambda array: jnp.moveaxis(array, 0, -1))
    whole, moduli = last(jax.vmap(partial(systems_of, memory=memory))(method, mu, L))
    system, basis = whole, last(basis)
    for ours in basis:
        restrict = lambda array, ours=ours: einsum("wmN,m...N->w...N", ours, array)
        system = jax.tree.map(restrict, system)
    num_rows = 2 * whole.blocks.shape[1] + whole.scalars.shape[1]
    noise = 1e3 * jnp.finfo(dtype).eps  # of a matrix, relative to its terms: what lies below is not resolved
    smallest_nudge = precision * jnp.clip(1e4 * (1 - lowest), 1e-6, 1)

    def unknowns(v: Array) -> Array:
        for ours in basis:
            v = jnp.sum(v[:, None] * ours, 0)
        return v

    def evaluate(search: _Search) -> tuple[lmi.Point, Array, Array, tuple[Array, Array, Array, Array]]:
        """The largest margin, its derivative by the square of the rate, its rounding, (duals, metric to come).

        The duals are in the units of the blocks, less what normalizes; members that are done are not waited for.
        """
        rate, weights = search.trial, 1 / search.weights
        roots = lmi.inverse_root(search.metric)
        plain, plain_scalars = system.at((1 - rate) * (1 + rate))
        block, scalars = plain, plain_scalars
        m = block.shape[0]
        both = lmi.sandwich(roots, jnp.concatenate([block, system.blocks_per_square]), roots.swapaxes(0, 1))
        both = (both + both.swapaxes(1, 2)) / 2
        block, subtracted = both[:m], both[m:]
        scalars, scalars_subtracted = scalars * weights[None], system.scalars_per_square * weights[None]

        def settled(point: lmi.Point) -> Array:
            gap = point.bound - point.margin
            small = jnp.maximum((1e-12 if double else 3e-7) / num_rows, 0.02 * jnp.abs(point.margin))
            return search.done | ((point.infeasibility < 1e-6) & (gap <= small))

        point = lmi.solve((block,), scalars, lmi.start_of((block,), scalars, search.inside), settled, 40)
        unit = jnp.eye(block.shape[1], dtype=dtype)[..., None, None]
        dual = point.duals[0] - lmi.spread(point.margin, unit) * unit
        scalar_dual = point.scalar_duals - point.margin[None]
        slope = jnp.sum(subtracted * dual[None], (1, 2, 3)) + jnp.sum(scalars_subtracted * scalar_dual[None], 1)
        slope = jnp.sum(point.v * slope, 0)
        dual = lmi.multiply(lmi.multiply(roots.swapaxes(0, 1), dual), roots)
        v = unknowns(point.v)
        (slack,), numbers = lmi.combine((plain,), plain_scalars, point.v)
        (sizes,), number_sizes = lmi.combine((moduli.blocks,), moduli.scalars, jnp.abs(v))
        shift = jnp.maximum(-2 * point.margin, 0)
        metric = num_rows * (slack + lmi.spread(shift, slack) * search.metric + noise * sizes * unit)
        new_weights = num_rows * (numbers + shift[None] * search.weights + noise * number_sizes)
        measured = lmi.multiply(lmi.multiply(jnp.abs(roots), sizes), jnp.abs(roots).swapaxes(0, 1))
        blur = jnp.maximum(jnp.max(measured, (0, 1, 2)), jnp.max(number_sizes * weights, 0))
        return point, slope, _ROUNDING * jnp.finfo(dtype).eps * blur, (dual, scalar_dual * weights, metric, new_weights)

    def step(search: _Search) -> _Search:
        trial, active, nudge = search.trial, ~search.done, search.nudge
        point, slope, blur, (dual, scalar_dual, new_metric, new_weights) = evaluate(search)
        v = unknowns(point.v)
        # at one itself there is nothing to prove, but a positive margin says that there is a proof below
        proved = proves(whole, moduli, v, trial, n, memory)
        positive = proved | ((trial >= 1) & (point.margin > 0))
        rising = slope > 0

        def root_of(margin: Array) -> Array:
            shortfall = (1 - trial) * (1 + trial) + margin / jnp.where(rising, slope, 1)
            return 1 - shortfall / (1 + jnp.sqrt(jnp.maximum(1 - shortfall, 0)))

        # a solve that rounding broke off says nothing
        sound = jnp.abs(point.bound - point.margin) < 0.1
        root = root_of(point.margin)
        # next to the largest margin that there can be, it no longer depends on the rate alone
        telling = sound & rising & (point.margin < 0.25 / num_rows)
        # nearly concave: a tangent's root is below the true one, if the bounds are right to their difference
        bound = jnp.maximum(point.margin, point.bound) + jnp.abs(point.bound - point.margin) + blur
        better = proved & active & (trial <= search.high)
        safe_root = jnp.where(telling & active, root_of(bound), 0)
        floor = jnp.where(better & (search.floor > trial), safe_root, jnp.maximum(search.floor, safe_root))
        new = _Best(v, point.margin, dual, scalar_dual)
        best = jax.tree.map(lambda old, new: jnp.where(lmi.spread(better, old), new, old), search.best, new)
        high = jnp.where(better, trial, search.high)
        low = jnp.where(~positive & sound & active, trial, search.low)
        # what was seen before in units that did not suit counts no more
        low = jnp.where(better & ~search.found, lowest, low)
        middle = (jnp.where(positive, low, trial) + high) / 2
        inside = telling & (root > low) & (root < high)
        close = jnp.abs(root - trial) < 1e3 * nudge
        found = search.found | better
        clear = _CLEAR * (1 - root)
        step_up = jnp.where(found, jnp.where(close, nudge, 0), jnp.where(root - trial < clear, clear, 0))
        aim = jnp.where(inside & ~positive, root, search.aim)
        below = jnp.where(~positive & active, jnp.maximum(search.below, trial), search.below)
        from_above = low + (trial - low) / 8
        from_above = jnp.where(below < trial - 2 * nudge, below + (trial - below) / 4, from_above)
        from_above = jnp.where((aim > low) & (aim < trial - 2 * nudge), aim + nudge, from_above)
        following = jnp.where(inside, root + step_up, jnp.where(positive, from_above, middle))
        # after some trials, halve every other time
        following = jnp.where((search.solves > 8) & (search.solves % 2 == 0), middle, following)
        # a root beyond 1: look at 1 itself
        beyond = ~positive & ~found & rising & (root >= 1)
        following = jnp.where(beyond, 1, jnp.minimum(following, 1))
        hopeless = ~found & ~positive & (trial >= 1)
        tight = better & telling & (trial - root < 4 * nudge)
        narrow = found & (high - low < nudge / 2)
        done = search.done | hopeless | tight | narrow | (search.solves + 1 >= _SOLVES)
        usable = jnp.all(jnp.isfinite(new_metric), (0, 1, 2)) & jnp.all(new_weights > 0, 0)
        # in float32 the change of units rounds away more than it gains
        apart = trial - root > 0.1 * _CLEAR * (1 - trial)
        usable &= double & ((better & (apart | ~search.found)) | (~found & (point.margin > -0.01)))
        choose = lambda new, old: jnp.where(lmi.spread(usable, new), new, old)
        metric, weights = choose(new_metric, search.metric), choose(new_weights, search.weights)
        start = choose(point.v, search.inside)
        largest_nudge = (16 if double else 1) * smallest_nudge
        missed = search.found & ~positive & telling & (root - trial < 4 * nudge)
        nudge = jnp.where(missed, jnp.minimum(4 * nudge, largest_nudge), nudge)
        solves = search.solves + 1
        return _Search(
            metric, weights, start, floor, low, high, following, aim, below, best, found, done, solves, nudge
        )

    size, m, rows = mu.shape[0], whole.blocks.shape[0], whole.blocks.shape[1]
    zeros = lambda *shape: jnp.zeros((*shape, size), dtype)
    nothing = _Best(zeros(m), zeros(), zeros(rows, rows, 2), zeros(whole.scalars.shape[1]))
    hopeless = ~(lowest < 1)
    search = _Search(
        metric=jnp.broadcast_to(jnp.eye(rows, dtype=dtype)[..., None, None], (rows, rows, 2, size)),
        weights=jnp.ones((whole.scalars.shape[1], size), dtype),
        inside=jnp.zeros(system.blocks.shape[:1] + mu.shape, dtype),
        floor=lowest,
        low=lowest,
        high=jnp.ones_like(lowest),
        trial=jnp.minimum(lowest + smallest_nudge, 1),
        aim=jnp.zeros_like(lowest),
        below=lowest,
        best=nothing,
        found=jnp.zeros_like(hopeless),
        done=hopeless,
        solves=jnp.int32(0),
        nudge=smallest_nudge,
    )
    search = jax.lax.while_loop(lambda search: ~jnp.all(search.done), step, search)
    best = jax.tree.map(lambda array: jnp.moveaxis(array, -1, 0), search.best)
    return _Certified(
        rate=search.high,
        v=best.v,
        margin=best.margin,
        duals=best.duals,
        scalar_duals=best.scalar_duals,
        feasible=search.found,
        accurate=search.high - search.floor <= _SHARE * (1 - search.high),
    )
