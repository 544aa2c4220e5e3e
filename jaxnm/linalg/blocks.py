"""A large batch worked through in blocks: each stays in the cache of a CPU, and the memory between steps is bounded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def map_blocks(function: Callable[..., Any], operands: tuple[Any, ...], *, cpu: int, other: int | None = None) -> Any:
    """`function(*operands)` for operands whose leaves are [size, ...], in blocks of members that go one after another.

    Args:
      function: batched, [members, ...] to leaves [members, ...]; what it does for one member must not depend on others.
      operands: pytrees of arrays with the batch first.
      cpu: members a block on a CPU.
      other: members a block on another platform; all at once where None.

    Returns:
      the leaves of all blocks, [size, ...]. The last block is filled up with copies of the last member.
    """
    size = jax.tree.leaves(operands)[0].shape[0]
    if not isinstance(size, int):  # a symbolic dimension of `jax.export`: how many blocks there are is not known
        return function(*operands)
    few = partial(_in_blocks, function, members=min(size, cpu))
    many = partial(_in_blocks, function, members=min(size, other or size))
    if size <= cpu and size <= (other or size):
        return function(*operands)
    return jax.lax.platform_dependent(*operands, cpu=few, default=many)


def _in_blocks(function: Callable[..., Any], *operands: Any, members: int) -> Any:
    size = jax.tree.leaves(operands)[0].shape[0]
    if members == size:
        return function(*operands)
    count = -(-size // members)

    def split(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, count * members - size), *((0, 0),) * (array.ndim - 1)), mode="edge")
        return padded.reshape(count, members, *array.shape[1:])

    mapped = jax.lax.map(lambda block: function(*block), jax.tree.map(split, operands))
    return jax.tree.map(lambda leaf: leaf.reshape(count * members, *leaf.shape[2:])[:size], mapped)
