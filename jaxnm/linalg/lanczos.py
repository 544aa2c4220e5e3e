"""Lanczos' method: eigenvalues at both ends, and the spectral density, of a symmetric operator known by its products.

The operator acts on a pytree, as a Hessian acts on the parameters of a network. m steps from a start vector give a
tridiagonal matrix T of size m and, with reorthogonalization, the orthonormal vectors Q with `Q^T A Q = T`. Everything
else is read off T: its eigenvalues (the Ritz values) approach the ends of the spectrum first, the squared first
components of its eigenvectors are the weights of a Gauss quadrature for the spectral measure of the start vector, and
its characteristic polynomial bounds what a random start can have missed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int32

from jaxnm import arguments
from jaxnm.linalg.factorizations import eigh, einsum
from jaxnm.linalg.scaling import power_of_two
from jaxnm.status import Status, first_failing
from jaxnm.trees import all_finite, check_same_structure

Operator = Callable[[Any], Any]

_BLOCKS = 8  # of the basis; those that are still empty are not read
_ORTHOGONAL_STEPS = 8  # that are trusted to be so without reorthogonalization
_BREAKDOWN = 100  # eps |T|: a new direction shorter than this is rounding


@flax.struct.dataclass
class Tridiagonalization:
    """`A Q = Q T + residual`, Q orthonormal and T symmetric tridiagonal."""

    diagonal: Float[Array, "m"]
    """Of T; zero beyond `num_steps`."""
    off_diagonal: Float[Array, "m"]
    """[j] couples steps j and j + 1; the last one that is not zero is the norm of the residual."""
    basis: Any
    """Tree of [m, ...], the columns of Q; zero beyond `num_steps`. None without reorthogonalization."""
    num_steps: Int32[Array, ""]
    """Steps taken: m, or fewer where the vectors span an invariant subspace to rounding."""
    asymmetry: Float[Array, ""]
    """Largest part of a product that a symmetric operator does not have, over the largest entry of T."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE (a zero start) or NOT_SYMMETRIC."""


def lanczos(operator: Operator, start: Any, *, num_steps: int, reorthogonalize: bool = True) -> Tridiagonalization:
    """Tridiagonal form of a symmetric operator on the Krylov space of a start vector.

    Args:
      operator: product with the operator, from a pytree to one of the same structure, linear and symmetric.
      start: pytree of float32 arrays, or of float64 arrays, not all zero; d numbers in all.
      num_steps: how many steps (static); the result has m = min(num_steps, d).
      reorthogonalize: against all earlier vectors, so that eigenvalues have no ghost copies (static). Without it the
        memory is three vectors, and Ritz values repeat once they have converged.

    Returns:
      `Tridiagonalization(diagonal [m], off_diagonal [m], basis, num_steps, asymmetry, status)`.

    Raises:
      TypeError: leaves that are not all float32 or all float64, or a product of another dtype. ValueError: a product
        of another structure, an empty start, or num_steps < 1.

    Status:
      NONFINITE_INPUT: the start or a product is not finite. OUT_OF_RANGE: the start is zero. (Figures are NaN in both.)
      NOT_SYMMETRIC: beyond sqrt(eps); T is then not what the operator does.

    Cost: m products, and with reorthogonalization two passes over the basis a step (four where a new direction is
    small); memory m d. Not differentiable.
    Source: C. Lanczos, J. Res. Nat. Bur. Standards 45 (1950), 255-282; Golub, Van Loan, "Matrix Computations",
    section 10.3.

    Example:
      >>> T = lanczos(lambda v: jnp.array([1.0, 2.0, 3.0]) * v, jnp.ones(3), num_steps=3)
      >>> T.diagonal.round(4), int(T.num_steps)
      (Array([2., 2., 2.], dtype=float32), 3)
    """
    like = shapes_of("lanczos", "start", start)
    arguments.check_count("lanczos", "num_steps", num_steps, minimum=1)
    arguments.check_flag("lanczos", "reorthogonalize", reorthogonalize)
    start = jax.tree.map(jnp.asarray, start)
    operator = checked_operator("lanczos", operator, like)
    return _lanczos(operator, start, min(num_steps, dimension_of(like)), bool(reorthogonalize))


# ------------------------------------------------------------------------------------------------ arguments


def shapes_of(function: str, argument: str, tree: Any) -> Any:
    """The tree with shapes and dtypes in place of arrays; refused if it is not a vector of float32 or of float64."""
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "shape"):
            got = f"a tree with a {type(leaf).__name__}"
            arguments.refuse(function, argument, got, "a tree of arrays", "pass jnp.asarray(...)", error=TypeError)
    shapes = jax.eval_shape(lambda tree: tree, tree)
    if dimension_of(shapes) == 0:
        arguments.refuse(function, argument, "a tree without numbers", "at least one", "pass a vector")
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes)}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}:
        arguments.refuse(
            function,
            argument,
            f"of dtypes {sorted(map(str, dtypes))}",
            "float32 or float64 arrays, all of one dtype",
            "cast them, and keep integers out of the tree",
            error=TypeError,
        )
    return shapes


def dimension_of(tree: Any) -> int:
    """How many numbers a vector holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def checked_operator(function: str, operator: Operator, like: Any, *, argument: str = "operator") -> Partial:
    """The operator as a pytree that holds the tracers it closes over, after a look at what it returns."""
    checked, product = arguments.hoist_tracers(function, argument, operator, like)
    check_same_structure(function, vector=like, product=product)
    for before, after in zip(jax.tree.leaves(like), jax.tree.leaves(product), strict=True):
        if before.dtype != after.dtype:
            arguments.refuse(
                function,
                f"the product of {argument}",
                f"of dtype {after.dtype}",
                f"{before.dtype}, that of the vector",
                "cast inside the operator",
                error=TypeError,
            )
    return checked


def random_start(key: Any, like: Any) -> Any:
    """Normal numbers: the direction is uniformly distributed."""
    return optax.tree.random_like(key, like)


def divide(tree: Any, number: Array) -> Any:
    """The tree over a number."""
    return jax.tree.map(lambda leaf: leaf / number, tree)


def norm(tree: Any) -> Array:
    """2-norm; squares do not under- or overflow."""
    scale = power_of_two(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree)]).max())
    return scale * optax.tree.norm(divide(tree, scale))


# --------------------------------------------------------------------------------------------- the recurrence


class State(NamedTuple):
    """The recurrence after some steps."""

    diagonal: Array
    off_diagonal: Array
    basis: tuple[Any, ...] | None
    """Blocks of rows: trees of [m / 8, ...]."""
    before: Any
    """The vector before the current one."""
    vector: Any
    """The next vector to multiply, a unit vector; zero after a breakdown."""
    num_steps: Array
    running: Array
    asymmetry: Array
    """Absolute."""


def initial_state(start: Any, num_steps: int, reorthogonalize: bool) -> State:
    """Before the first of at most `num_steps` steps; it does not run if the start is zero or not finite."""
    dtype = jax.tree.leaves(start)[0].dtype
    length = norm(start)
    usable = (length > 0) & jnp.isfinite(length)
    vector = divide(start, jnp.where(usable, length, 1))
    zero = jnp.zeros(num_steps, dtype)
    basis = None
    if reorthogonalize:
        rows = -(-num_steps // _BLOCKS)
        empty = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), dtype), start)
        basis = (empty,) * -(-num_steps // rows)
    return State(zero, zero, basis, optax.tree.zeros_like(vector), vector, jnp.int32(0), usable, jnp.zeros((), dtype))


def _step(operator: Operator, state: State) -> State:
    """One product: a row of T, and the next vector."""
    j, vector = state.num_steps, state.vector
    previous = jnp.where(j > 0, state.off_diagonal[j - 1], 0)
    product = operator(vector)
    backward, forward = optax.tree.vdot(state.before, product), optax.tree.vdot(vector, product)
    asymmetry = jnp.abs(backward - previous)
    residual = jax.tree.map(
        lambda product, before, vector: product - previous * before - forward * vector, product, state.before, vector
    )
    basis = state.basis
    if basis is None:
        # once orthogonality is lost, what is left of it between neighbors says nothing about the operator
        asymmetry = jnp.where(j < _ORTHOGONAL_STEPS, asymmetry, 0)
    else:
        basis = tuple(_with_row(block, vector, j - first) for first, block in _blocks(basis))
        residual, overlap = _orthogonalize(basis, residual, j)
        # the vector and the one before are in the recurrence; a product of a symmetric operator has no part in the rest
        index = jnp.arange(overlap.shape[0], dtype=jnp.int32)
        asymmetry = jnp.maximum(asymmetry, jnp.max(jnp.where(index < j - 1, jnp.abs(overlap), 0)))
    length = norm(residual)
    scale = jnp.maximum(jnp.max(jnp.abs(state.diagonal)), jnp.max(state.off_diagonal))
    scale = jnp.maximum(scale, jnp.abs(forward))
    running = length > _BREAKDOWN * jnp.finfo(length.dtype).eps * scale  # False for NaN
    return State(
        diagonal=state.diagonal.at[j].set(forward),
        off_diagonal=state.off_diagonal.at[j].set(length),
        basis=basis,
        before=vector,
        vector=divide(residual, jnp.where(running, length, 1)),
        num_steps=j + 1,
        running=running,
        asymmetry=jnp.maximum(state.asymmetry, asymmetry),
    )


def _blocks(basis: tuple[Any, ...]) -> list[tuple[int, Any]]:
    """The blocks, each with the number of its first row."""
    rows = jax.tree.leaves(basis[0])[0].shape[0]
    return [(rows * number, block) for number, block in enumerate(basis)]


def _with_row(block: Any, vector: Any, index: Array) -> Any:
    """The block with the vector as one of its rows; as it is if it has no such row."""

    def write(rows: Array, row: Array) -> Array:
        inside = (index >= 0) & (index < rows.shape[0])
        at = jnp.clip(index, 0, rows.shape[0] - 1)
        old = jax.lax.dynamic_index_in_dim(rows, at, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(rows, jnp.where(inside, row, old), at, 0)

    return jax.tree.map(write, block, vector)


def _orthogonalize(basis: tuple[Any, ...], vector: Any, last: Array) -> tuple[Any, Array]:
    """The vector without its part in the span of the rows up to `last`, and its products with all rows."""

    def remove(vector: Any) -> tuple[Any, Array]:
        nothing = lambda block, _: jnp.zeros_like(_products(block, vector))
        overlaps = [jax.lax.cond(first <= last, _products, nothing, block, vector) for first, block in _blocks(basis)]
        for (first, block), overlap in zip(_blocks(basis), overlaps, strict=True):
            vector = jax.lax.cond(first <= last, _subtract, lambda vector, *_: vector, vector, overlap, block)
        return vector, jnp.concatenate(overlaps)

    once, overlap = remove(vector)
    # where little is left of the vector, rounding of what was removed is left too
    cancelled = norm(once) < norm(vector) / 2
    return jax.lax.cond(cancelled, lambda v: remove(v)[0], lambda v: v, once), overlap


def _products(block: Any, vector: Any) -> Array:
    """Inner products of the rows of a block with a vector."""
    products = jax.tree.map(
        lambda rows, leaf: einsum("md,d->m", rows.reshape(rows.shape[0], -1), leaf.reshape(-1)), block, vector
    )
    return sum(jax.tree.leaves(products)[1:], jax.tree.leaves(products)[0])


def _subtract(vector: Any, coefficients: Array, block: Any) -> Any:
    """The vector less a combination of the rows of a block."""
    return jax.tree.map(lambda leaf, rows: leaf - einsum("m,m...->...", coefficients, rows), vector, block)


def combine(basis: tuple[Any, ...], coefficients: Array) -> Any:
    """Combinations of the rows of a basis: coefficients [m, k] give a tree of [k, ...]."""
    rows = jax.tree.leaves(basis[0])[0].shape[0]
    padding = ((0, rows * len(basis) - coefficients.shape[0]), (0, 0))
    shares = jnp.pad(coefficients, padding).reshape(len(basis), rows, -1)
    parts = [
        jax.tree.map(partial(einsum, "mk,m...->k...", share), block) for share, block in zip(shares, basis, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)


def advance(operator: Operator, state: State, until: Array) -> State:
    """Steps until there are so many, or until the vectors span an invariant subspace."""
    return jax.lax.while_loop(lambda state: state.running & (state.num_steps < until), partial(_step, operator), state)


def restarted(state: State, key: Any) -> State:
    """After an invariant subspace: a random direction orthogonal to it, not coupled to what was found; with a basis."""
    if state.basis is None:
        return state
    last = state.num_steps - 1
    vector = random_start(jax.random.fold_in(key, state.num_steps), state.vector)
    for _ in range(2):
        vector, _ = _orthogonalize(state.basis, divide(vector, norm(vector)), last)
    return state._replace(
        off_diagonal=state.off_diagonal.at[last].set(0),
        before=optax.tree.zeros_like(vector),
        vector=divide(vector, norm(vector)),
        running=jnp.array(True),
    )


def frozen_operator(operator: Partial) -> Operator:
    """The operator of `checked_operator` without derivatives: loops over it are then not differentiated."""
    return jax.lax.stop_gradient(operator)


def relative_asymmetry(state: State) -> Array:
    """Largest part of a product that a symmetric operator does not have, over the largest entry of T."""
    scale = jnp.maximum(jnp.max(jnp.abs(state.diagonal)), jnp.max(state.off_diagonal))
    return state.asymmetry / jnp.where(scale > 0, scale, 1)


def status_of(start: Any, state: State) -> Array:
    """What can be wrong with the recurrence: input, start, symmetry."""
    asymmetry = relative_asymmetry(state)
    finite = all_finite(start) & jnp.all(jnp.isfinite(state.diagonal)) & jnp.all(jnp.isfinite(state.off_diagonal))
    return first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (state.num_steps == 0, Status.OUT_OF_RANGE),
        (asymmetry > jnp.sqrt(jnp.finfo(asymmetry.dtype).eps), Status.NOT_SYMMETRIC),
    )


@partial(jax.jit, static_argnums=(2, 3))
def _lanczos(operator: Partial, start: Any, num_steps: int, reorthogonalize: bool) -> Tridiagonalization:
    remedy = "differentiate extreme_eigenvalues, or apply jax.lax.stop_gradient to what it depends on"
    operator, start = arguments.without_derivative("lanczos", "an argument", (operator, start), remedy=remedy)
    state = initial_state(start, num_steps, reorthogonalize)
    state = advance(operator, state, jnp.int32(num_steps))
    status = status_of(start, state)
    usable = (status != jnp.int32(Status.NONFINITE_INPUT)) & (status != jnp.int32(Status.OUT_OF_RANGE))
    basis = state.basis
    if basis is not None:
        together = lambda *blocks: arguments.nan_unless(jnp.concatenate(blocks)[:num_steps], usable)
        basis = jax.tree.map(together, *basis)
    return Tridiagonalization(
        diagonal=arguments.nan_unless(state.diagonal, usable),
        off_diagonal=arguments.nan_unless(state.off_diagonal, usable),
        basis=basis,
        num_steps=state.num_steps,
        asymmetry=relative_asymmetry(state),
        status=status,
    )


# ---------------------------------------------------------------------------------- what is read off the matrix


class Ritz(NamedTuple):
    """Eigenvalues and eigenvectors of T."""

    values: Array
    """[m], ascending; those beyond the size come last and mean nothing."""
    vectors: Array
    """[m, m], in columns."""
    size: Array
    """How many there are."""
    residual_norm: Array
    """Of `A Q - Q T`."""


def ritz_pairs(state: State) -> Ritz:
    """Eigenvalues of T; the rows that were not computed are replaced by eigenvalues far above all others."""
    size, index = state.num_steps, jnp.arange(state.diagonal.shape[0], dtype=jnp.int32)
    coupled = jnp.where(index < size - 1, state.off_diagonal, 0)
    radius = jnp.max(jnp.abs(state.diagonal)) + 2 * jnp.max(coupled)
    outside = jnp.where(radius > 0, 2 * radius, 1)
    diagonal = jnp.where(index < size, state.diagonal, outside)

    coupled = coupled[:-1]
    values, vectors = eigh(jnp.diag(diagonal) + jnp.diag(coupled, 1) + jnp.diag(coupled, -1))
    return Ritz(values, vectors, size, jnp.where(size > 0, state.off_diagonal[size - 1], 0))
