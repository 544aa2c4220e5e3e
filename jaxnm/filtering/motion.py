"""The motion of particle cells by itself: what odometry teaches them before anything is localized."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Key

from jaxnm import arguments
from jaxnm.filtering.cells import ParticleCell
from jaxnm.filtering.particle_steps import linear

# particles from one start
_COPIES = 4


def motion_loss(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: Float[ArrayLike, "time batch features"],
    key: Key[Array, ""],
    *,
    size: Float[ArrayLike, "2"],
    beacons: Float[ArrayLike, "m 2"] | None = None,
    num_starts: int = 2,
    jitter: float | Float[Array, ""] = 0.05,
) -> Float[Array, ""]:
    """How badly the particles of a cell follow the odometry and spread, when they are neither weighed nor resampled.

    Hidden states start at random, four particles from each. After t steps the mean position of the four should be the
    start plus the displacements so far, and their standard deviation jitter sqrt(t) in x and in y, as of a random walk:

        mean of  |mean position - goal_t|^2 + (deviation - jitter sqrt(2 t))^2,

    in cells, over the starts and times whose goal is inside the world, with the root of the summed variances of x and y
    as the deviation. It needs no poses. It teaches a cell in a few thousand steps to carry positions along, which the
    error of localization teaches it hardly at all as long as nothing is localized; and the spread is what lets
    particles that resampling made equal part again. The head, which says where a hidden state is, is held fixed: it
    could make the loss small by placing all starts where moves are easy, and particles would not start everywhere.

    Args:
      graphdef: of a particle cell whose inputs begin with the displacement in cells, such as `MePFRNN`.
      params: of the same; the pytree to differentiate.
      inputs: [T, B, features], as of `network_inputs`; a displacement that is NaN is zero.
      key: typed key.
      size: [2], (nx, ny) in cells.
      beacons: [m, 2], for `MePFRNN`.
      num_starts: of each sequence, with four particles each (static).
      jitter: standard deviation of a move in x and in y, in cells.

    Returns:
      the loss, a scalar; zero if no goal is inside.

    Raises:
      TypeError: a cell without particles, a raw key. ValueError: a wrong shape, num_starts < 1, jitter < 0.

    Cost: T steps of 4 num_starts particles, without resampling. Differentiable in params; zero in
    those of the head.
    Source: the motion model is trained by itself first in R. Jonschkowski, D. Rastogi, O. Brock, RSS 2018,
    arXiv:1805.11122; here it is a term of the loss, for hidden states.

    Example:
      >>> from jaxnm.filtering.cells import PFGRUCell
      >>> model = nnx.split(PFGRUCell(9, rngs=nnx.Rngs(0)))
      >>> loss = motion_loss(*model, jnp.zeros((5, 2, 9)), jax.random.key(0), size=jnp.array([10.0, 10.0]))
      >>> bool(loss > 0)
      True
    """
    arguments.check_key("motion_loss", key)
    arguments.check_count("motion_loss", "num_starts", num_starts, minimum=1)
    arguments.check_number("motion_loss", "jitter", jitter, ">= 0", lambda value: value >= 0, "try 0.05")
    inputs, size = arguments.to_arrays("motion_loss", inputs=inputs, size=size)
    arguments.check_shape("motion_loss", "inputs", inputs, "[T, B, features]", lambda shape: len(shape) == 3)
    arguments.check_shape("motion_loss", "size", size, "[2]", lambda shape: shape == (2,), "give (nx, ny)")
    beacons = None if beacons is None else jnp.asarray(beacons, inputs.dtype)
    return _motion_loss(
        graphdef, params, inputs, key, size, beacons, jnp.asarray(jitter, inputs.dtype), int(num_starts)
    )


@partial(jax.jit, static_argnums=(0, 7))
def _motion_loss(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: Array,
    key: Array,
    size: Array,
    beacons: Array | None,
    jitter: Array,
    num_starts: int,
) -> Array:
    cell = nnx.merge(graphdef, params)
    if not isinstance(cell, ParticleCell):
        got = f"a {type(cell).__name__}"
        arguments.refuse("motion_loss", "the cell", got, "a particle cell", "use motion_weight=0", error=TypeError)
    start_key, step_key = jax.random.split(key)
    times, batch = inputs.shape[:2]
    start = cell.initial_carry(start_key, batch, num_starts)
    head = nnx.merge(graphdef, jax.lax.stop_gradient(params)).head
    # in cells
    positions = lambda carry: jax.nn.sigmoid(linear(head, carry.hidden))[..., :2] * size[None, None]
    displacements = jnp.nan_to_num(inputs[:, :, None, :2])
    goals = jax.lax.stop_gradient(positions(start))[None] + jnp.cumsum(displacements, 0)
    carry = jax.tree.map(lambda x: jnp.repeat(x, _COPIES, 1), start)

    def step(carry: Any, xs: tuple[Array, Array, Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        row, goal, spread, key = xs
        noise = jax.random.normal(key, carry.hidden.shape, carry.hidden.dtype)
        carry = cell.propagate(carry, row, noise, beacons, size)
        inside = jnp.all((goal > 0) & (goal < size[None, None]), -1).astype(goal.dtype)
        errors = positions(carry).reshape(batch, num_starts, _COPIES, 2) - goal[:, :, None]
        variance = jnp.sum(jnp.var(errors, 2, ddof=1), -1)
        # the small number bounds the derivative of the root
        squares = jnp.sum(jnp.mean(errors, 2) ** 2, -1) + (jnp.sqrt(variance + 1e-6) - spread) ** 2
        return carry, (jnp.sum(squares * inside), jnp.sum(inside))

    spreads = jitter * jnp.sqrt(2 * jnp.arange(1, times + 1).astype(inputs.dtype))
    _, (squares, inside) = jax.lax.scan(step, carry, (inputs, goals, spreads, jax.random.split(step_key, times)))
    return jnp.sum(squares) / jnp.maximum(jnp.sum(inside), 1)
