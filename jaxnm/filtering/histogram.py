"""The exact Bayes filter on a grid of points in a world: what a particle filter approaches with many particles."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.filtering.worlds import (
    World,
    check_is_world,
    check_scales,
    is_free,
    log_likelihood_of_ranges,
    nearest_ranges,
)
from jaxnm.linalg.factorizations import einsum
from jaxnm.status import Status, first_failing


@flax.struct.dataclass
class HistogramResult:
    """What the observations say about the position, with resolution r."""

    log_probabilities: Float[Array, "nx*r ny*r"]
    """Of the points ((i + 1/2) / r, (j + 1/2) / r) given all observations; -inf where it is impossible. Their
    exponentials sum to one."""
    means: Float[Array, "T 2"]
    """Of the position given the observations so far."""
    log_evidence: Float[Array, ""]
    """Log-density of all ranges, times the probability that no move ended in a blocked cell."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT or DEGENERATE."""


def histogram_filter(
    world: World,
    observations: tuple[Float[ArrayLike, "T k"], Float[ArrayLike, "T 4"]],
    *,
    resolution: int = 8,
    range_scale: float | Float[Array, ""] = 0.15,
    jitter: float | Float[Array, ""] = 0.03,
) -> HistogramResult:
    """Bayes' rule for `localization_model` on a grid of points, without sampling.

    A move is an interpolation that keeps mass and mean: a point's mass goes to where the displacement takes it, spread
    by the jitter and shared linearly among the grid points around. This sharing has a variance of 1/6 of the squared
    spacing on average, which is taken off that of the jitter; where the jitter has less (below 0.41 / resolution), the
    interpolation is all there is, and it spreads more than the jitter would: up to 1/4 of the squared spacing a step.
    Mass that lands in a blocked cell or outside is lost, and the evidence with it.

    Args:
      world: where; its beacons fix the dtype.
      observations: ranges [T, k], NaN where missing, and actions [T, 4], as `simulate` makes them for one trajectory.
        `jax.vmap` over this argument filters many.
      resolution: r, points a cell in each direction (static).
      range_scale: standard deviation of a range. The grid needs spacings 1 / r not much above it.
      jitter: standard deviation of the noise of a move, in cells, in each of x and y.

    Returns:
      `HistogramResult(log_probabilities [nx r, ny r], means [T, 2], log_evidence, status)`.

    Raises:
      ValueError: T = 0, other shapes, more ranges than beacons, resolution < 1, a scale that is not positive.

    Status:
      NONFINITE_INPUT: an infinite range, or an action that is not finite; all figures are NaN. DEGENERATE: at some time
        no point could explain the ranges, which then count as missing; or the move left no point, and is not made. The
        evidence is -inf, and its derivative that of the other rows.

    Cost: nx ny r^2 distances to m beacons, once; then 2 nx ny (nx + ny) r^3 flops a step, as products of matrices.
    Differentiable in range_scale, jitter, the actions and the ranges.

    Example:
      >>> from jaxnm.filtering.worlds import maze10, simulate
      >>> tracks = simulate(jax.random.key(0), maze10(), 1, 40)
      >>> result = histogram_filter(maze10(), (tracks.ranges[0], tracks.actions[0]))
      >>> bool(jnp.linalg.norm(result.means[-1] - tracks.poses[0, -1, :2]) < 0.2)
      True
    """
    function = "histogram_filter"
    check_is_world(function, world)
    if not isinstance(observations, tuple | list) or len(observations) != 2:
        arguments.refuse(
            function, "observations", f"a {type(observations).__name__}", "a pair", "pass (ranges, actions)"
        )
    _, ranges, actions = arguments.to_arrays(
        function, beacons=world.beacons, ranges=observations[0], actions=observations[1]
    )
    arguments.check_shape(
        function,
        "ranges",
        ranges,
        f"[T, k] with T >= 1 and k from 1 to {len(world.beacons)}, the number of beacons",
        lambda shape: len(shape) == 2 and shape[0] >= 1 and 1 <= shape[1] <= len(world.beacons),
    )
    arguments.check_shape(function, "actions", actions, f"[{len(ranges)}, 4]", lambda shape: shape == (len(ranges), 4))
    arguments.check_count(function, "resolution", resolution, minimum=1)
    range_scale, jitter = check_scales(function, world, range_scale, jitter)
    return _histogram_filter(world, ranges, actions, range_scale, jitter, int(resolution))


@partial(jax.jit, static_argnums=5)
def _histogram_filter(
    world: World, ranges: Array, actions: Array, range_scale: Array, jitter: Array, resolution: int
) -> HistogramResult:
    dtype = ranges.dtype
    shape = tuple(n * resolution for n in world.blocked.shape)
    axes = [(jnp.arange(n, dtype=dtype) + 0.5) / resolution for n in shape]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    free = is_free(world, points)
    expected = nearest_ranges(points, world.beacons, ranges.shape[1])

    def update(moved: Array, before: Array, observation: Array) -> tuple[Array, Array, Array]:
        """Bayes' rule: the new belief, its mean, and the log-density of the observation."""
        positive = free & (moved > 0)
        log_joint = jnp.log(jnp.where(positive, moved, 1)) + log_likelihood_of_ranges(
            expected, observation, range_scale
        )
        log_joint = jnp.where(positive, log_joint, -jnp.inf)
        largest = jax.lax.stop_gradient(jnp.max(log_joint))
        possible = largest > -jnp.inf
        joint = jnp.where(positive, jnp.exp(log_joint - jnp.where(possible, largest, 0)), 0)
        total = jnp.where(possible, jnp.sum(joint), 1)
        # an impossible observation is as if it were missing; a move that leaves no point is not made
        inside = jnp.where(free, moved, 0)
        mass = jnp.sum(inside)
        unseen = jnp.where(mass > 0, inside / jnp.where(mass > 0, mass, 1), before)
        belief = jnp.where(possible, joint / total, unseen)
        mean = jnp.stack([jnp.sum(belief.sum(1 - axis) * axes[axis]) for axis in (0, 1)])
        return belief, mean, jnp.where(possible, jnp.log(total) + largest, -jnp.inf)

    def step(belief: Array, row: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        observation, action = row
        along_x, along_y = (_kernel(n, action[axis] * resolution, jitter * resolution) for axis, n in enumerate(shape))
        moved = einsum("ai,ij,bj->ab", along_x, belief, along_y)
        belief, mean, log_density = update(moved, belief, observation)
        return belief, (mean, log_density)

    uniform = free.astype(dtype) / jnp.sum(free, dtype=dtype)
    belief, mean, log_density = update(uniform, uniform, ranges[0])
    belief, (means, log_densities) = jax.lax.scan(step, belief, (ranges[1:], actions[1:]))
    log_densities = jnp.concatenate([log_density[None], log_densities])
    bad = jnp.any(jnp.isinf(ranges)) | ~jnp.all(jnp.isfinite(actions))
    status = first_failing((bad, Status.NONFINITE_INPUT), (jnp.any(log_densities == -jnp.inf), Status.DEGENERATE))
    log_probabilities = jnp.where(belief > 0, jnp.log(jnp.where(belief > 0, belief, 1)), -jnp.inf)
    means = jnp.concatenate([mean[None], means])
    return HistogramResult(
        arguments.nan_unless(log_probabilities, ~bad, 2),
        arguments.nan_unless(means, ~bad, 2),
        arguments.nan_unless(jnp.sum(log_densities), ~bad),
        status,
    )


def _kernel(num: int, shift: Array, scale: Array) -> Array:
    """[num, num]: the share of point j's mass that goes to point i, in units of the spacing.

    That is the mean of max(0, 1 - |u - s Z|) over normal Z, u = i - j - shift: a second difference of the function
    v Phi(v) + phi(v) = max(v, 0) + _tail(|v|), of which the first part gives the linear interpolation itself.
    """
    index = jnp.arange(num, dtype=shift.dtype)
    offset = index[:, None] - index[None, :] - shift
    # what the linear interpolation adds to the variance is taken off
    variance = scale**2 - 1 / 6
    narrow = variance < 1e-6
    spread = jnp.sqrt(jnp.where(narrow, 1, variance))
    tails = _tail(offset + 1, spread) - 2 * _tail(offset, spread) + _tail(offset - 1, spread)
    hat = jnp.maximum(1 - jnp.abs(offset), 0)
    return jnp.maximum(hat + jnp.where(narrow, 0, spread * tails), 0)


def _tail(offset: Array, spread: Array) -> Array:
    """phi(v) - v Phi(-v) at v = |offset| / spread."""
    v = jnp.abs(offset) / spread
    density = jnp.exp(-0.5 * v**2) / np.sqrt(2 * np.pi).item()
    return density - 0.5 * v * jax.lax.erfc(v / np.sqrt(2).item())
