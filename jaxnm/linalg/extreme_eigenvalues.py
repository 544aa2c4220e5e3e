"""Both ends of the spectrum of a large symmetric operator, with bounds on the errors and on what was missed."""

import math
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int32, Key

from jaxnm import arguments
from jaxnm.linalg.lanczos import (
    Operator,
    Ritz,
    State,
    advance,
    checked_operator,
    combine,
    dimension_of,
    frozen_operator,
    initial_state,
    norm,
    random_start,
    relative_asymmetry,
    restarted,
    ritz_pairs,
    shapes_of,
    status_of,
)
from jaxnm.status import Status

_FIRST_CHECK = 8  # steps before the first look at convergence; then every quarter more
_BISECTIONS = 60


@flax.struct.dataclass
class ExtremeEigenvalues:
    """Eigenvalues at both ends of a spectrum, from the end inwards, with what is known about their errors."""

    smallest: Float[Array, "p"]
    """Ascending; NaN where so many were not found, which the status says."""
    largest: Float[Array, "q"]
    """Descending."""
    smallest_error_bounds: Float[Array, "p"]
    """|A v - value v|: an eigenvalue lies within this distance of the value."""
    largest_error_bounds: Float[Array, "q"]
    """The same for `largest`."""
    smallest_vectors: Any
    """Tree of [p, ...], unit vectors. None without reorthogonalization."""
    largest_vectors: Any
    """Tree of [q, ...]."""
    lower_bound: Float[Array, ""]
    """No eigenvalue is below, but for the failure probability asked for."""
    upper_bound: Float[Array, ""]
    """No eigenvalue is above, but for the failure probability asked for."""
    num_steps: Int32[Array, ""]
    """Products with the operator that were needed, those for the residuals not counted."""
    asymmetry: Float[Array, ""]
    """As in `Tridiagonalization`."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, NOT_SYMMETRIC or NOT_CONVERGED."""


def extreme_eigenvalues(
    operator: Operator,
    like: Any,
    *,
    key: Key[ArrayLike, ""],
    num_steps: int = 100,
    num_smallest: int = 1,
    num_largest: int = 1,
    tolerance: ArrayLike | None = None,
    failure_probability: ArrayLike = 1e-6,
    reorthogonalize: bool = True,
) -> ExtremeEigenvalues:
    """Smallest and largest eigenvalues of a symmetric operator, with bounds on their errors and on what was missed.

    Args:
      operator: product with the operator, from a pytree to one of the same structure, linear and symmetric. A
        `jax.tree_util.Partial` carries data as traced leaves, so that new data do not recompile.
      like: pytree with the structure, shapes and dtype of the vectors; its values are not read.
      key: for the random start.
      num_steps: the most steps (static); at most d are taken.
      num_smallest: p, how many at the lower end (static).
      num_largest: q, how many at the upper end (static).
      tolerance: stop when every error bound is below this share of the largest modulus of a Ritz value; default
        sqrt(eps). The error of an isolated eigenvalue is about the square of it.
      failure_probability: for `lower_bound` and `upper_bound` together, over the random start.
      reorthogonalize: against all earlier vectors (static). Without it the memory is three vectors, there are no
        eigenvectors, the error bounds are those of the recurrence, and copies of converged eigenvalues take the places
        of the next ones.

    Returns:
      `ExtremeEigenvalues(smallest [p], largest [q], their error bounds and vectors, lower_bound, upper_bound,
      num_steps, asymmetry, status)`, in the dtype of `like`.

    Raises:
      TypeError: leaves that are not all float32 or all float64, a product of another dtype, or a key that is not a
        typed one. ValueError: a product of another structure, an empty tree, counts below 0 or more than num_steps, a
        tolerance that is not positive, or a probability outside (0, 1).

    Status:
      NONFINITE_INPUT: a product is not finite (the figures are NaN). NOT_SYMMETRIC: beyond sqrt(eps). NOT_CONVERGED: a
      bound is above the tolerance after num_steps or, without reorthogonalization, fewer distinct eigenvalues exist
      than were asked for.

    A multiple eigenvalue is found once, as long as there are others: only where there are fewer distinct ones than were
    asked for, it starts again with a random vector orthogonal to what it has, and finds copies. `lower_bound` and
    `upper_bound` fail only where the component of the start in the direction of an extreme eigenvector is tiny, which
    has at most the probability given. That is so in exact arithmetic; for rounding 8 num_steps eps times the largest
    modulus is added.

    Cost: at most num_steps + p + q products, and two passes over a basis of num_steps vectors a step; convergence is
    looked at after 8 steps, then each quarter more. Differentiable in what the operator depends on, where the
    eigenvalues are simple and converged, once: the derivative is v^T (dA) v, and the next raises TypeError, as the
    first does without reorthogonalization. Vectors and bounds are constants for it.
    Source: Golub, Van Loan, "Matrix Computations", section 10.3; the two bounds: van Dorsselaer, Hochstenbach,
    van der Vorst, SIAM J. Matrix Anal. Appl. 22 (2000), 837-852, Lanczos polynomials.

    Example:
      >>> ends = extreme_eigenvalues(lambda v: jnp.arange(50.0) * v, jnp.zeros(50), key=jax.random.key(0))
      >>> ends.largest.round(4), ends.smallest.round(4) + 0
      (Array([49.], dtype=float32), Array([0.], dtype=float32))
    """
    name = "extreme_eigenvalues"
    like = shapes_of(name, "like", like)
    dtype = jax.tree.leaves(like)[0].dtype
    arguments.check_key(name, key)
    for argument, count, minimum in (
        ("num_steps", num_steps, 1),
        ("num_smallest", num_smallest, 0),
        ("num_largest", num_largest, 0),
    ):
        arguments.check_count(name, argument, count, minimum=minimum)
    steps = min(num_steps, dimension_of(like))
    for argument, count in (("num_smallest", num_smallest), ("num_largest", num_largest)):
        if count > steps:
            arguments.refuse(
                name, argument, str(count), f"at most {steps}, the steps that can be taken", "ask for fewer eigenvalues"
            )
    if num_smallest + num_largest == 0:
        arguments.refuse(name, "num_smallest + num_largest", "0", "at least 1", "ask for an eigenvalue")
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(dtype).eps)
    arguments.check_number(name, "tolerance", tolerance, "> 0", lambda value: value > 0, "pass a small share")
    arguments.check_number(
        name, "failure_probability", failure_probability, "in (0, 1)", lambda value: 0 < value < 1, "try 1e-6"
    )
    arguments.check_flag(name, "reorthogonalize", reorthogonalize)
    return _extreme_eigenvalues(
        checked_operator(name, operator, like),
        random_start(key, like),
        key,
        arguments.constant(tolerance, dtype),
        arguments.constant(failure_probability, dtype),
        steps,
        num_smallest,
        num_largest,
        bool(reorthogonalize),
    )


def _selected(ritz: Ritz, num_smallest: int, num_largest: int) -> tuple[Array, Array, Array]:
    """(index into the Ritz values, whether there is one, bound on its residual), smallest then largest."""
    index = jnp.concatenate(
        [jnp.arange(num_smallest, dtype=jnp.int32), ritz.size - 1 - jnp.arange(num_largest, dtype=jnp.int32)]
    )
    exists = (index >= 0) & (index < ritz.size)
    index = jnp.clip(index, 0, ritz.values.shape[0] - 1)
    bounds = ritz.residual_norm * jnp.abs(ritz.vectors[ritz.size - 1, index])
    return index, exists, bounds


@partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _extreme_eigenvalues(
    operator: Partial,
    start: Any,
    key: Array,
    tolerance: Array,
    failure_probability: Array,
    num_steps: int,
    num_smallest: int,
    num_largest: int,
    reorthogonalize: bool,
) -> ExtremeEigenvalues:
    frozen = frozen_operator(operator)
    select = partial(_selected, num_smallest=num_smallest, num_largest=num_largest)

    def more(carry: tuple[State, Array]) -> tuple[State, Array]:
        state, until = carry
        # what is left to find is orthogonal to an invariant subspace that is too small
        state = jax.lax.cond(ended(state), lambda state: restarted(state, key), lambda state: state, state)
        return advance(frozen, state, until), jnp.maximum(until + 4, until + until // 4)

    def ended(state: State) -> Array:
        return ~state.running & (state.num_steps > 0) & jnp.all(jnp.isfinite(state.off_diagonal))

    def complete(state: State, exists: Array) -> Array:
        """Whether there are enough values; after a restart also whether they are those at the ends."""
        before = jnp.arange(num_steps, dtype=jnp.int32) < state.num_steps - 1
        restarts = jnp.sum(before & (state.off_diagonal == 0), dtype=jnp.int32)
        # each invariant subspace holds the ends of what the earlier ones left
        enough = (restarts == 0) | (~state.running & (restarts + 1 >= max(num_smallest, num_largest)))
        return jnp.all(exists) & (enough | (state.num_steps == dimension_of(start)))

    def unfinished(carry: tuple[State, Array]) -> Array:
        state, _ = carry
        ritz = ritz_pairs(state)
        _, exists, bounds = select(ritz)
        enough = complete(state, exists)
        converged = enough & jnp.all(bounds <= tolerance * _modulus(ritz))
        possible = state.running | (ended(state) & ~enough & reorthogonalize)
        return possible & (state.num_steps < num_steps) & ~converged

    first = jnp.int32(min(_FIRST_CHECK, num_steps))
    state, until = more((initial_state(start, num_steps, reorthogonalize), first))
    state, _ = jax.lax.while_loop(
        unfinished, lambda carry: more((carry[0], jnp.minimum(carry[1], num_steps))), (state, until)
    )

    ritz = ritz_pairs(state)
    index, exists, bounds = select(ritz)
    values, vectors = ritz.values[index], None
    if state.basis is not None:
        vectors = jax.lax.stop_gradient(combine(state.basis, ritz.vectors[:, index]))
        bounds = jax.lax.map(partial(_residual_norm, frozen), (vectors, jax.lax.stop_gradient(values)))
        values = _with_derivatives(operator, vectors, values)
    else:
        remedy = "pass reorthogonalize=True"
        values, _ = arguments.without_derivative("extreme_eigenvalues", "operator", (values, operator), remedy=remedy)
    status = status_of(start, state)
    finite = status != jnp.int32(Status.NONFINITE_INPUT)
    converged = complete(state, exists) & jnp.all(bounds <= tolerance * _modulus(ritz))
    status = jnp.where((status == jnp.int32(Status.OK)) & ~converged, jnp.int32(Status.NOT_CONVERGED), status)
    known = exists & finite
    values, bounds = arguments.nan_unless(values, known), arguments.nan_unless(bounds, known)
    vectors = jax.tree.map(lambda leaf: arguments.nan_unless(leaf, known, leaf.ndim - 1), vectors)
    missed_above = _missed(ritz, state.off_diagonal, failure_probability, dimension_of(start))
    mirrored = ritz._replace(values=-ritz.values)
    missed_below = _missed(mirrored, state.off_diagonal, failure_probability, dimension_of(start))
    lower, upper = slice(num_smallest), slice(num_smallest, None)
    return ExtremeEigenvalues(
        smallest=values[lower],
        largest=values[upper],
        smallest_error_bounds=bounds[lower],
        largest_error_bounds=bounds[upper],
        smallest_vectors=jax.tree.map(lambda leaf: leaf[lower], vectors),
        largest_vectors=jax.tree.map(lambda leaf: leaf[upper], vectors),
        lower_bound=arguments.nan_unless(ritz.values[0] - missed_below, finite),
        upper_bound=arguments.nan_unless(ritz.values[ritz.size - 1] + missed_above, finite),
        num_steps=state.num_steps,
        asymmetry=relative_asymmetry(state),
        status=status,
    )


def _modulus(ritz: Ritz) -> Array:
    return jnp.maximum(jnp.abs(ritz.values[0]), jnp.abs(ritz.values[ritz.size - 1]))


def _residual_norm(operator: Operator, pair: tuple[Any, Array]) -> Array:
    vector, value = pair
    return norm(jax.tree.map(lambda product, vector: product - value * vector, operator(vector), vector))


@jax.custom_jvp
def _with_derivatives(operator: Partial, vectors: Any, values: Array) -> Array:
    """The values, with the derivatives of the Rayleigh quotients of fixed vectors [k, ...]."""
    return values


@_with_derivatives.defjvp
def _first_derivatives(primals: tuple[Any, Any, Array], tangents: tuple[Any, Any, Array]) -> tuple[Array, Array]:
    operator, vectors, values = primals
    remedy = "take the second derivative of jaxnm.linalg.eigh(matrix).values"
    # The vectors move with the operator, and how is not known. They are tied to it here, as a quotient alone is linear
    # in the operator, so that its next derivative would be zero; outside a loop, where JAX would drop the rule.
    tied = jax.tree.map(lambda leaf, image: leaf + 0 * image, vectors, jax.lax.map(operator, vectors))
    vectors = arguments.without_derivative("extreme_eigenvalues", "the first derivative", tied, remedy=remedy)

    def derivative(vector: Any) -> Array:
        quotient = lambda operator: jnp.asarray(optax.tree.vdot(vector, operator(vector)))
        return jax.jvp(quotient, (operator,), tangents[:1])[1]

    return values, jax.lax.map(derivative, vectors)


def _missed(ritz: Ritz, off_diagonal: Array, failure_probability: Array, dimension: int) -> Array:
    """How far above the largest Ritz value an eigenvalue may be, but for half of the failure probability.

    With b the component of the start in the eigenvector of the largest eigenvalue x, the last residual vector has the
    component b p(x), p(x) = prod (x - ritz value) / prod (off-diagonal entry), at most 1 in modulus. For a uniformly
    distributed unit vector |b| < t has at most the probability t sqrt(2 d / pi). So log p(x) <= -log t.
    """
    used = jnp.arange(ritz.values.shape[0], dtype=jnp.int32) < ritz.size
    top = jnp.max(jnp.where(used, ritz.values, -jnp.inf))
    gaps = jnp.where(used, top - ritz.values, 0)
    log_couplings = jnp.sum(jnp.where(used, jnp.log(off_diagonal), 0))
    largest = -jnp.log(failure_probability / 2) + math.log(2 * dimension / math.pi) / 2
    target = log_couplings + largest.astype(gaps.dtype)
    high = target / ritz.size.astype(gaps.dtype)  # all gaps zero

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        above = jnp.sum(jnp.where(used, jnp.log(gaps + jnp.exp(middle)), 0)) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    lowest = jnp.log(jnp.finfo(gaps.dtype).eps * jnp.maximum(_modulus(ritz), jnp.finfo(gaps.dtype).tiny))
    _, distance = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.minimum(lowest, high), high))
    rounding = 8 * used.shape[0] * jnp.finfo(gaps.dtype).eps * _modulus(ritz)
    return jax.lax.stop_gradient(jnp.exp(distance) + rounding)
