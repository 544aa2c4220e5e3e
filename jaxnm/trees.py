"""Pytree utilities that `jax.tree` and `optax.tree` lack. The vector-space operations are `optax.tree`'s."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxnm import arguments


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every floating leaf of the tree is finite everywhere; True for a tree without floating leaves.

    Example:
      >>> bool(all_finite({"a": jnp.ones(3), "count": 7, "b": jnp.array(jnp.inf)}))
      False
    """
    return _all_finite([leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)])


@partial(jax.jit, inline=True)
def _all_finite(leaves: list[Any]) -> Array:
    finite = jnp.array(True)
    for leaf in leaves:
        finite = finite & jnp.all(jnp.isfinite(leaf))
    return finite


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array or number of real or complex floating dtype (typed keys, integers, flags are not)."""
    dtype = getattr(leaf, "dtype", None)
    return jnp.issubdtype(jnp.result_type(leaf) if dtype is None else dtype, jnp.inexact)


def check_same_structure(function: str, **trees: Any) -> None:
    """Refuse trees whose structure or leaf shapes differ from the first one's, naming the first place that differs.

    Raises:
      ValueError: names the function, the two arguments and the path of the first leaf that differs.
    """
    (first_name, first), *others = trees.items()
    reference = jax.tree_util.tree_leaves_with_path(first)
    for name, tree in others:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        for (path, leaf), (other_path, other) in zip(reference, leaves, strict=False):
            if path != other_path or np.shape(leaf) != np.shape(other):
                arguments.refuse(
                    function,
                    name + jax.tree_util.keystr(other_path),
                    f"of shape {np.shape(other)}",
                    f"the shape {np.shape(leaf)} of {first_name}{jax.tree_util.keystr(path)}",
                    "pass trees of one structure",
                )
        if jax.tree.structure(first) != jax.tree.structure(tree):
            arguments.refuse(
                function,
                name,
                f"a tree of structure {jax.tree.structure(tree)}",
                f"that of {first_name}, {jax.tree.structure(first)}",
                "pass trees of one structure",
            )
