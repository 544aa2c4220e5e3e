"""Linear systems whose solver also reports figures, differentiated by the equation and not through the solver."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _first_entry(leaf: Array) -> Array:
    return leaf.reshape(-1)[0]


def solve_implicitly(
    system: Callable[[Any], Any],
    right: Any,
    solve: Callable[..., tuple[Any, Array]],
    *,
    figures: Array,
    transpose_solve: Callable[..., tuple[Any, Array]] | None = None,
    symmetric: bool = False,
    marked: bool = False,
    member: Callable[[Array], Array] = _first_entry,
) -> tuple[Any, Array]:
    """`x` with `system(x) = right`, and the figures (steps, flags) that the solver returns beside it.

    `jax.lax.custom_linear_solve` batches auxiliary output wherever tangents are batched, which `jax.jacfwd` refuses,
    and has no rule for trees of which only some leaves carry a tangent. So the figures travel as unknowns of an
    identity, and every leaf gets a tangent, or a cotangent, where one has it, by zero times an entry of each.

    Args:
      system: linear, from a tree of arrays to its like.
      right: the right-hand side.
      solve: from a right-hand side, and where `marked` a number, to (x, figures).
      figures: zeros, of the shape and dtype of the figures (floating).
      transpose_solve: the same for the transposed system; not needed where it is symmetric.
      symmetric: whether the system is its own transpose.
      marked: whether the solvers take a second argument, a number that is one for the equation itself and zero for the
        equations of its derivatives, which have no status and answer a failure with NaN.
      member: from a leaf to what of it may touch every other leaf: one entry, or one entry a member where arrays hold a
        batch whose members must not touch each other. Broadcast against the trailing axes of the leaves.

    Returns:
      x, and the figures without a derivative.
    """

    def linked(tree: Any, *, guarded: bool = True) -> Any:
        entries = [member(leaf) for leaf in jax.tree.leaves(tree)]
        if guarded:  # a result that is not finite spoils no figure
            entries = [jnp.where(jnp.isfinite(entry), entry, jnp.zeros_like(entry)) for entry in entries]
        total = sum((0 * entry for entry in entries[1:]), 0 * entries[0])
        spread = lambda leaf: total.reshape((1,) * (leaf.ndim - total.ndim) + total.shape)
        return jax.tree.map(lambda leaf: leaf + spread(leaf), tree)

    def extended(pair: Any) -> Any:
        x, found = linked(pair, guarded=False)  # on both sides, so that the transposed system is linked as well
        return linked((system(x), found), guarded=False)

    def lifted(function: Callable[..., tuple[Any, Array]] | None) -> Any:
        if function is None:
            return None
        # the right-hand side of the identity is a constant, so that of its derivatives is zero
        return lambda _, pair: function(pair[0], pair[1].real.reshape(-1)[0]) if marked else function(pair[0])

    given = linked((right, jnp.ones_like(figures) if marked else figures))
    x, found = linked(
        jax.lax.custom_linear_solve(extended, given, lifted(solve), lifted(transpose_solve), symmetric=symmetric)
    )
    return x, jax.lax.stop_gradient(found)
