"""The rate of a method on every smooth strongly convex function, with the Lyapunov function that proves it."""

from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.first_order.lyapunov_inequalities import LyapunovSystem, lyapunov_system, num_unknowns, reduced
from jaxnm.first_order.methods import check_curvatures, curvatures_valid
from jaxnm.first_order.rates import quadratic_rate
from jaxnm.first_order.state_space import StateSpace
from jaxnm.linalg import einsum, lmi
from jaxnm.linalg.blocks import map_blocks
from jaxnm.status import Status, first_failing

_SOLVES = 24  # the most trial rates
_CPU_MEMBERS = 24  # worked on side by side: few, as the slowest of them sets the number of steps
_MEMBERS = 4096  # on other devices
_MARGIN = 1e-13  # that counts as positive in float64: some hundred times the rounding of the blocks
_MARGIN_SINGLE = 1e-6


@flax.struct.dataclass
class RateCertificate:
    """A rate and its proof: V falls by rate^2 at every step, on every function of the class, and bounds the state.

    With the function h = (f - mu |y|^2 / 2) / (L - mu), and everything relative to the minimizer,
    V_k = e^T Q e + q . h, e = (state, gradients of h at the points of steps k to k + memory), h the values there.
    """

    rate: Float[Array, "*batch"]
    """Per iterate of the error, not of its square: |state_k| <= constant * rate^k. At least 1 where there is none."""
    Q: Float[Array, "*batch e e"]
    """Symmetric, e = states + memory + 1."""
    q: Float[Array, "*batch memory+1"]
    """Factors of the function values."""
    multipliers: Float[Array, "*batch p"]
    """Of the inequalities between points: of the decrease, then of the positivity, as `function_classes.pairs_of`."""
    margin: Float[Array, "*batch"]
    """A lower bound of the eigenvalues of the two matrices and of the multipliers, where their traces and sum are one.

    Positive for a proof; means nothing where there is none."""
    quadratic_rate: Float[Array, "*batch"]
    """The rate on quadratics: a lower bound."""
    status: Int32[Array, "*batch"]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, NOT_STABLE or NOT_CERTIFIED."""
    method: StateSpace
    """The method."""
    mu: Float[Array, "*batch"]
    """Smallest curvature."""
    L: Float[Array, "*batch"]
    """Largest curvature."""
    memory: int = flax.struct.field(pytree_node=False)
    """How many steps beyond the current one V looks at."""


class _Certified(NamedTuple):
    """A batch of proofs, [N, ...]."""

    rate: Array
    v: Array
    margin: Array
    duals: tuple[Array, ...]
    scalar_duals: Array
    feasible: Array


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
      `RateCertificate(rate, Q, q, multipliers, margin, quadratic_rate, status, method, mu, L, memory)`. The rate is
      accepted only with a positive margin, so it is never below the best one beyond rounding; it is above it by at most
      about 1e-7 where the problem is well conditioned. `verify` turns it into an exact proof.

    Raises:
      ValueError: Python numbers outside 0 <= mu <= L, a memory other than 0, 1, 2. TypeError: integer arrays.

    Status:
      NONFINITE_INPUT: NaN. OUT_OF_RANGE: traced mu, L outside 0 <= mu <= L (NaN). NOT_STABLE: the method does not even
      converge on quadratics; the rate is that on quadratics, 1 or above. NOT_CERTIFIED: no Lyapunov function of this
      memory proves a rate below 1; the rate is 1. In both the gradient is zero.

    Cost: about 6 systems of linear matrix inequalities, each some 14 Newton steps on 12 unknowns (n = 2, memory 0) to
    56 (n = 4, memory 2); batches are worked through in chunks.
    Differentiable in the method, mu and L where the optimal multipliers are unique, by the envelope theorem, at the
    cost of a few products; one-sided at kinks, such as the optimal step of gradient descent. First order only.
    In float32 the rate is above by some 1e-3; claims need float64.
    Source: Taylor, Van Scoy, Lessard, ICML 2018 (arXiv:1803.06073), theorem 3; the inequalities: Taylor, Hendrickx,
    Glineur, Math. Program. 161 (2017), theorem 4.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> bool(certify_rate(gradient_descent(1.0), 0.1, 1.0).rate < 0.905)
      True
    """
    name = "certify_rate"
    check_curvatures(name, mu, L, positive=False)
    if memory not in (0, 1, 2) or isinstance(memory, bool):
        arguments.refuse(name, "memory", repr(memory), "0, 1 or 2", "choose one of them; it is static")
    A, B, C, mu, L = arguments.to_arrays(name, A=method.A, B=method.B, C=method.C, mu=mu, L=L)
    for label, value in (("mu", mu), ("L", L)):
        arguments.check_shape(name, label, value, "a number", lambda shape: shape == ())
    return _certify(StateSpace(A, B, C), mu, L, (), memory)


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

    Cost: as `certify_rate`, with 6 unknowns. Differentiable in the method, mu and L, as `certify_rate`; the derivative
    in P is 0, which is right only where P is optimal.
    Source: as `certify_rate`.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> bool(check_lyapunov(gradient_descent(1.0), jnp.eye(1), 0.1, 1.0).rate < 0.905)
      True
    """
    name = "check_lyapunov"
    check_curvatures(name, mu, L, positive=False)
    A, B, C, P, mu, L = arguments.to_arrays(name, A=method.A, B=method.B, C=method.C, P=P, mu=mu, L=L)
    arguments.check_shape(name, "P", P, f"{list(A.shape)}, one row a state", lambda shape: shape == A.shape)
    for label, value in (("mu", mu), ("L", L)):
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
    method_ = jax.tree.map(lambda leaf: calm(leaf, 0), method)
    mu_, L_ = calm(mu, 0.5), calm(L, 1)
    on_quadratics = quadratic_rate(method_, mu_, L_)
    basis = tuple(jax.lax.stop_gradient(_own_function(calm(P, 0))) for P in own)
    certified = _with_derivative(memory, (method_, mu_, L_, jax.lax.stop_gradient(on_quadratics), basis))
    unstable = ~(on_quadratics < 1)
    rate = jnp.where(certified.feasible, certified.rate, jax.lax.stop_gradient(jnp.maximum(on_quadratics, 1)))
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~in_range, Status.OUT_OF_RANGE),
        (unstable, Status.NOT_STABLE),
        (~certified.feasible, Status.NOT_CERTIFIED),
    )
    entries, values, _, _ = num_unknowns(n, memory)
    size = n + memory + 1
    lower = jnp.zeros((size, size), dtype).at[jnp.tril_indices(size)].set(certified.v[:entries])
    return RateCertificate(
        rate=arguments.nan_unless(rate, usable),
        Q=arguments.nan_unless(lower + jnp.tril(lower, -1).T, usable, 2),
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


def _multipliers(n: int, memory: int, v: Array, rate: Array) -> Array:
    constant, per_square = lyapunov_system(_idle(n, v.dtype), memory).multipliers
    table = jnp.asarray(constant, v.dtype) + rate**2 * jnp.asarray(per_square, v.dtype)
    return jax.lax.stop_gradient(einsum("m,mp->p", v, table))


def _idle(n: int, dtype: jnp.dtype) -> StateSpace:
    """Any method: the multipliers do not depend on it."""
    return StateSpace(jnp.zeros((n, n), dtype), jnp.zeros(n, dtype), jnp.zeros(n, dtype))


# ----------------------------------------------------------------------------------------------- derivative and batches


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_derivative(memory: int, problem: Any) -> _Certified:
    """One member; the batches of `vmap` are solved together."""
    return _batchable(memory)(*problem)


@_with_derivative.defjvp
def _with_derivative_jvp(memory: int, primals: tuple[Any], tangents: tuple[Any]) -> tuple[_Certified, _Certified]:
    (problem,), (change,) = primals, tangents
    certified = _with_derivative(memory, problem)

    def lagrangian(problem: Any, rate: Array) -> Array:
        method, mu, L, _, _ = problem
        system = lyapunov_system(reduced(method, mu, L), memory)
        blocks, scalars = _at_rate(system, rate)
        pairing = lambda dual, block: einsum("m,mab,ab->", certified.v, block, dual)
        total = sum(map(pairing, certified.duals, blocks), jnp.zeros((), rate.dtype))
        return total + einsum("m,mp,p->", certified.v, scalars, certified.scalar_duals)

    _, slope = jax.jvp(partial(lagrangian, problem), (certified.rate,), (jnp.ones_like(certified.rate),))
    _, shift = jax.jvp(lambda problem: lagrangian(problem, certified.rate), (problem,), (change,))
    good = certified.feasible & (slope > 0)
    tangent = jnp.where(good, -shift / jnp.where(good, slope, 1), 0)
    return certified, jax.tree.map(_zero_tangent, certified)._replace(rate=tangent)


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return jnp.zeros(leaf.shape, jax.dtypes.float0)


def _at_rate(system: LyapunovSystem, rate: Array) -> tuple[tuple[Array, Array], Array]:
    """The blocks [m, d, d], [m, d - 1, d - 1] and the scalars [m, p] for one member."""
    square, dtype = rate**2, rate.dtype
    constant, per_square = (jnp.asarray(part, dtype) for part in system.multipliers)
    return (system.decrease[0] + square * system.decrease[1], system.positivity), constant + square * per_square


def _batchable(memory: int) -> Any:
    """One member as a batch of one, and under `vmap`, nested or not, one batch of all."""

    @jax.custom_batching.custom_vmap
    def batch(method: StateSpace, mu: Array, L: Array, lowest: Array, basis: tuple[Array, ...]) -> _Certified:
        operands = (method, mu, L, lowest, basis)
        return map_blocks(partial(_chunk, memory=memory), operands, cpu=_CPU_MEMBERS, other=_MEMBERS)

    @batch.def_vmap
    def rule(axis_size: int, in_batched: Any, *problem: Any) -> tuple[_Certified, Any]:
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


# ----------------------------------------------------------------------------------------------------- the search


class _Search(NamedTuple):
    """Trial rates of a chunk; the batch is last."""

    low: Array
    """No proof, or no convergence on quadratics."""
    high: Array
    """A proof, or 1."""
    trial: Array
    best: lmi.Point
    """The proof for `high`."""
    found: Array
    done: Array
    solves: Array


def _chunk(method: StateSpace, mu: Array, L: Array, lowest: Array, basis: tuple[Array, ...], memory: int) -> _Certified:
    """Newton's method on the largest margin as a function of the rate, between bounds.

    The margin rises with the rate and is nearly concave, so Newton's step from either side ends at or below the root.
    """
    dtype = mu.dtype
    double = dtype == jnp.float64
    smallest_margin, tolerance = (_MARGIN, 1e-8) if double else (_MARGIN_SINGLE, 1e-4)
    nudge = jnp.asarray(2e-8 if double else 1e-4, dtype)
    blocks_of = lambda method, mu, L: lyapunov_system(reduced(method, mu, L), memory)[:2]
    decrease, positivity = jax.vmap(blocks_of)(method, mu, L)
    tables = [jnp.asarray(part, dtype) for part in lyapunov_system(_idle(method.B.shape[1], dtype), memory).multipliers]
    multipliers = [jnp.broadcast_to(table[None], (mu.shape[0], *table.shape)) for table in tables]
    for ours in basis:
        decrease = [einsum("cwm,cmab->cwab", ours, part) for part in decrease]
        positivity = einsum("cwm,cmab->cwab", ours, positivity)
        multipliers = [einsum("cwm,cmp->cwp", ours, part) for part in multipliers]
    last = lambda array: jnp.moveaxis(array, 0, -1)
    constant, per_square, positivity = last(decrease[0]), last(decrease[1]), last(positivity)
    fixed, fixed_per_square = map(last, multipliers)

    def evaluate(rate: Array, idle: Array) -> tuple[lmi.Point, Array]:
        """The largest margin, and its derivative by the square of the rate; idle members are not waited for."""
        square = rate**2
        blocks = (constant + square[None, None, None] * per_square, positivity)
        scalars = fixed + square[None, None] * fixed_per_square
        rows = blocks[0].shape[1] + blocks[1].shape[1] + scalars.shape[1]

        def settled(point: lmi.Point) -> Array:
            gap = point.bound - point.margin
            small = jnp.maximum((1e-12 if double else 3e-7) / rows, 0.02 * jnp.abs(point.margin))
            return idle | ((point.infeasibility < 1e-6) & (gap <= small))

        point = lmi.solve(blocks, scalars, lmi.start_of(blocks, scalars), settled, 40)
        (change,), numbers = lmi.combine((per_square,), fixed_per_square, point.v)
        slope = jnp.sum(point.duals[0] * change, (0, 1)) + jnp.sum(point.scalar_duals * numbers, 0)
        traces = lmi.trace_of((per_square,), fixed_per_square)
        return point, slope - point.margin * jnp.sum(traces * point.v, 0)

    def step(search: _Search) -> _Search:
        point, slope = evaluate(search.trial, search.done)
        proved = point.margin > smallest_margin
        better = proved & ~search.done & (search.trial <= search.high)
        best = jax.tree.map(
            lambda old, new: jnp.where(jnp.expand_dims(better, tuple(range(old.ndim - 1))), new, old),
            search.best,
            point,
        )
        high = jnp.where(better, search.trial, search.high)
        low = jnp.where(~proved & ~search.done, search.trial, search.low)
        square = search.trial**2 - point.margin / jnp.where(slope > 0, slope, 1)
        root = jnp.sqrt(jnp.maximum(square, 0))
        inside = (slope > 0) & (root > low) & (root < high)
        close = jnp.abs(root - search.trial) < 1e3 * nudge
        trial = jnp.where(inside, root + jnp.where(close, nudge, 0), (low + high) / 2)
        # after some trials, halve every other time
        trial = jnp.where((search.solves > 8) & (search.solves % 2 == 0), (low + high) / 2, trial)
        # a root beyond 1: look at 1 itself
        beyond = ~proved & ~(search.found | proved) & (slope > 0) & (root >= 1)
        trial = jnp.where(beyond, 1, jnp.minimum(trial, 1))
        found = search.found | better
        hopeless = ~found & (search.trial >= 1)
        tight = better & (slope > 0) & (search.trial - root < 4 * nudge)
        done = search.done | hopeless | tight | (found & (high - low < tolerance)) | (search.solves + 1 >= _SOLVES)
        return _Search(low, high, trial, best, found, done, search.solves + 1)

    start_blocks = (constant + per_square, positivity)
    start = lmi.start_of(start_blocks, fixed + fixed_per_square)
    hopeless = ~(lowest < 1)
    search = _Search(
        low=lowest,
        high=jnp.ones_like(lowest),
        trial=jnp.minimum(lowest + nudge, 1),
        best=start,
        found=jnp.zeros_like(hopeless),
        done=hopeless,
        solves=jnp.int32(0),
    )
    search = jax.lax.while_loop(lambda search: ~jnp.all(search.done), step, search)
    first = lambda array: jnp.moveaxis(array, -1, 0)
    v = first(search.best.v)
    for ours in basis:
        v = einsum("cw,cwm->cm", v, ours)
    return _Certified(
        rate=search.high,
        v=v,
        margin=search.best.margin,
        duals=tuple(first(dual) for dual in search.best.duals),
        scalar_duals=first(search.best.scalar_duals),
        feasible=search.found,
    )
