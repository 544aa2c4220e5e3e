"""The functions of a model, called and checked: what they return has the shapes and dtypes that a filter relies on."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm import arguments
from jaxnm.filtering.models import StateSpaceModel


def sample_initial(model: StateSpaceModel, key: Array, num: int) -> Any:
    """The first particles, leaves [num, ...]."""
    particles = jax.tree.map(_as_array("sample_initial"), model.sample_initial(key, num))
    leaves = jax.tree.leaves(particles)
    shapes = [leaf.shape for leaf in leaves]
    if not shapes or any(shape[:1] != (num,) for shape in shapes):
        got = f"with leaves of shapes {shapes}"
        arguments.refuse("sample_initial", "its value", got, f"leaves [{num}, ...]", "draw as many as it is asked for")
    return particles


def sample_transition(model: StateSpaceModel, key: Array, old: Any, time: Array, control: tuple[Any, ...]) -> Any:
    """The particles after a move."""
    return _like_before("sample_transition", model.sample_transition(key, old, time, *control), old)


def transition_log_density(
    model: StateSpaceModel, new: Any, old: Any, time: Array, control: tuple[Any, ...], num: int
) -> Array:
    """[num]."""
    return _density("transition_log_density", model.transition_log_density(new, old, time, *control), num)


def log_likelihood(model: StateSpaceModel, particles: Any, values: Any, time: Array, num: int) -> Array:
    """[num]."""
    return _density("log_likelihood", model.log_likelihood(particles, values, time), num)


def propose(
    proposal: Any, key: Array, old: Any, values: Any, time: Array, control: tuple[Any, ...], num: int
) -> tuple[Any, Array]:
    """The particles after a guided move, and the log-density [num] of that move."""
    pair = proposal(key, old, values, time, *control)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        got = f"a {type(pair).__name__}"
        arguments.refuse("proposal", "its value", got, "a pair (new, log_density)", "return both", error=TypeError)
    return _like_before("proposal", pair[0], old), _density("proposal", pair[1], num)


def look_ahead(auxiliary: Any, particles: Any, values: Any, time: Array, num: int) -> Array:
    """[num]."""
    return _density("auxiliary", auxiliary(particles, values, time), num)


def _as_array(function: str) -> Any:
    def convert(leaf: Any) -> Array:
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            remedy = "every function that draws gets a key of its own"
            arguments.refuse(function, "its value", "with a key among its leaves", "numbers", remedy, error=TypeError)
        try:
            return jnp.asarray(leaf)
        except (TypeError, ValueError):
            got = f"with a {type(leaf).__name__} among its leaves"
            arguments.refuse(function, "its value", got, "arrays", "return a pytree of arrays", error=TypeError)

    return convert


def _like_before(function: str, new: Any, old: Any) -> Any:
    """The new particles, refused where they are not of the structure, shapes and dtypes of the old ones."""
    new = jax.tree.map(_as_array(function), new)
    before, after = jax.tree.structure(old), jax.tree.structure(new)
    if before != after:
        remedy = "a move changes the values of a state, not what it is made of"
        arguments.refuse(function, "its value", f"of structure {after}", f"that of the particles, {before}", remedy)
    for (path, leaf), moved in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if leaf.shape != moved.shape or leaf.dtype != moved.dtype:
            arguments.refuse(
                function,
                f"its value{jax.tree_util.keystr(path)}",
                f"of shape {moved.shape} and dtype {moved.dtype}",
                f"shape {leaf.shape} and dtype {leaf.dtype}, as of the particles it moves",
                "return the same shape and dtype, or let sample_initial begin with these",
            )  # fmt: skip
    return new


def _density(function: str, value: Any, num: int) -> Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        array = None
    expected, remedy = f"[{num}] floating", "give one number a particle"
    if array is None:
        arguments.refuse(function, "its value", f"a {type(value).__name__}", expected, remedy)
    if array.shape != (num,) or not jnp.issubdtype(array.dtype, jnp.floating):
        arguments.refuse(function, "its value", f"of shape {array.shape} and dtype {array.dtype}", expected, remedy)
    arguments.check_dtype(function, "its value", array.dtype)
    return array
