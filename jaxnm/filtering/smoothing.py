"""Looking back: lines of descent, trajectories drawn from the smoothing distribution, and how a cloud degenerates."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from jaxnm import arguments
from jaxnm.filtering import user_functions
from jaxnm.filtering.clouds import FilterHistory, FilterResult
from jaxnm.filtering.filter_steps import dtype_of_mean
from jaxnm.filtering.models import StateSpaceModel
from jaxnm.filtering.particle_filter import known_model
from jaxnm.filtering.weights import normalize
from jaxnm.linalg.factorizations import einsum
from jaxnm.status import Status, first_failing, merge


@flax.struct.dataclass
class SampledPaths:
    """Trajectories drawn from the distribution of all states given all observations."""

    states: Any
    """Leaves [num, T, ...]; floating ones are NaN at and before the time at which there was nothing to draw from."""
    status: Int32[Array, "num"]
    """Of each trajectory: OK, DEGENERATE, NONFINITE_RESULT, or that of the filter."""


@flax.struct.dataclass
class Degeneracy:
    """When and how a cloud collapsed."""

    lowest_effective_sample_size: Float[Array, ""]
    lowest_at: Int32[Array, ""]
    impossible_at: Int32[Array, ""]
    """The first time whose observation no particle could explain; -1 if there is none."""
    resamplings: Int32[Array, ""]
    lineages: Int32[Array, "time"] | None
    """How many particles of each time have a descendant in the last cloud; None without the ancestors."""
    coalesced_at: Int32[Array, ""] | None
    """The last time of which a single particle is the ancestor of the whole last cloud; -1 if there is none."""


def genealogy(result: FilterResult) -> Int32[Array, "time particles"]:
    """For every particle of the last cloud the index of its ancestor at each time.

    Args:
      result: of `particle_filter(..., history="ancestors" or "full")`.

    Returns:
      [T, N]: entry (t, i) is the ancestor at time t of particle i of the last cloud; the last row is 0, 1, ..., N - 1.

    Raises:
      ValueError: a result without ancestors. TypeError: something that is no result.

    Cost: O(T N). Not differentiable (integers).
    Source: G. Kitagawa, J. Comput. Graph. Statist. 5 (1996), 1-25.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> from jaxnm.filtering.particle_filter import particle_filter
      >>> result = particle_filter(jax.random.key(0), walk, jnp.zeros(3), num_particles=4, history="ancestors")
      >>> genealogy(result)[-1].tolist()
      [0, 1, 2, 3]
    """
    return _genealogy(_history("genealogy", result, "ancestors").ancestors)


def smoothed_mean(result: FilterResult) -> Any:
    """Means of the states given all observations, along the lines of descent of the last cloud.

    Early times rest on few distinct ancestors (`degeneracy` counts them); `backward_sample` does not.

    Args:
      result: of `particle_filter(..., history="full")`.

    Returns:
      leaves [T, ...].

    Raises:
      ValueError: a result without the clouds. TypeError: something that is no result.

    Cost: O(T N). Differentiable with the ancestors held fixed.
    Source: G. Kitagawa, J. Comput. Graph. Statist. 5 (1996), 1-25.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> from jaxnm.filtering.particle_filter import particle_filter
      >>> result = particle_filter(jax.random.key(0), walk, jnp.zeros(3), num_particles=4, history="full")
      >>> smoothed_mean(result).shape
      (3,)
    """
    history = _history("smoothed_mean", result, "particles")
    return _smoothed_mean(history, result.log_weights)


def backward_sample(
    key: Key[Array, ""],
    model: StateSpaceModel,
    result: FilterResult,
    num: int,
    *,
    controls: Any = None,
    batch_size: int = 64,
) -> SampledPaths:
    """Trajectories from the distribution of all states given all observations (forward filtering, backward sampling).

    Args:
      key: of `jax.random.key`.
      model: with `transition_log_density`.
      result: of `particle_filter(..., history="full")` with this model.
      num: how many trajectories (static).
      controls: [T, ...], where the model is controlled.
      batch_size: how many trajectories go together, which bounds the memory to batch_size x N weights (static).

    Returns:
      `SampledPaths(states, status)`, with leaves [num, T, ...] and [num].

    Raises:
      ValueError: a result without the clouds, a model without a transition density or one that does not return [N],
        num < 1, missing controls or as many as there are not times.

    Status:
      That of the filter where it is not OK: the trajectories are those given the observations that it could use. Else,
      for each trajectory, DEGENERATE: at some time the transition density from every particle to the state drawn after
      it was zero; NONFINITE_RESULT: it was NaN or +inf for some particle, which counts as zero. Where no particle was
      left to draw, floating leaves are NaN from there back to time 0.

    Cost: O(T N) a trajectory. Differentiable in the states of the clouds, with the chosen indices held fixed.
    Source: S. J. Godsill, A. Doucet, M. West, J. Amer. Statist. Assoc. 99 (2004), 156-168, algorithm 1.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ...     transition_log_density=lambda new, old, time: -0.5 * (new - old) ** 2,
      ... )
      >>> from jaxnm.filtering.particle_filter import particle_filter
      >>> result = particle_filter(jax.random.key(0), walk, jnp.zeros(3), num_particles=4, history="full")
      >>> backward_sample(jax.random.key(1), walk, result, 5).states.shape
      (5, 3)
    """
    name = "backward_sample"
    arguments.check_key(name, key)
    arguments.check_count(name, "num", num, minimum=1)
    arguments.check_count(name, "batch_size", batch_size, minimum=1)
    history = _history(name, result, "particles")
    model = known_model(name, model)
    if model.transition_log_density is None:
        arguments.refuse(name, "transition_log_density", "None", "a function", "give it to StateSpaceModel")
    if model.controlled and controls is None:
        arguments.refuse(name, "controls", "None", "[T, ...]", "the model is controlled")
    length = result.effective_sample_size.shape[0]
    controls = jax.tree.map(jnp.asarray, controls) if model.controlled else None
    if any(leaf.shape[:1] != (length,) for leaf in jax.tree.leaves(controls)):
        got = f"with leaves of shapes {[leaf.shape for leaf in jax.tree.leaves(controls)]}"
        arguments.refuse(name, "controls", got, f"leaves [{length}, ...]", "pass those that the filter had")
    if length == 0:
        states = jax.tree.map(lambda leaf: jnp.zeros((num, 0, *leaf.shape[2:]), leaf.dtype), history.particles)
        return SampledPaths(states, jnp.broadcast_to(result.status, (num,)))
    return _backward_sample(key, model, history, result.status, controls, int(num), int(batch_size))


def degeneracy(result: FilterResult) -> Degeneracy:
    """When and how the cloud of a filter collapsed.

    Args:
      result: of `particle_filter`; with `history="ancestors"` or "full" the lines of descent are counted too.

    Returns:
      `Degeneracy`.

    Raises:
      ValueError: a result without observations. TypeError: something that is no result.

    Cost: O(T), and O(T N) with ancestors. Of its fields only the effective sample size is differentiable.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> from jaxnm.filtering.particle_filter import particle_filter
      >>> result = particle_filter(jax.random.key(0), walk, jnp.array([0.0, 1e30]), num_particles=4)
      >>> int(degeneracy(result).impossible_at)
      1
    """
    _check_result("degeneracy", result)
    if result.effective_sample_size.shape[0] == 0:
        arguments.refuse("degeneracy", "result", "without observations", "at least one", "there is nothing to say")
    return _degeneracy(result)


def _check_result(name: str, result: Any) -> None:
    if not isinstance(result, FilterResult):
        got, remedy = f"a {type(result).__name__}", "pass what particle_filter returns"
        arguments.refuse(name, "result", got, "a FilterResult", remedy, error=TypeError)


def _history(name: str, result: FilterResult, needed: str) -> FilterHistory:
    _check_result(name, result)
    if result.history is None or getattr(result.history, needed) is None:
        kind = "ancestors" if needed == "ancestors" else "full"
        arguments.refuse(name, "result", f"without {needed}", "one that has them", f"filter with history={kind!r}")
    return result.history


@jax.jit
def _genealogy(ancestors: Array) -> Array:
    def back(index: Array, parents: Array) -> tuple[Array, Array]:
        return parents[index], index

    last = jnp.arange(ancestors.shape[1], dtype=jnp.int32)
    _, lines = jax.lax.scan(back, last, ancestors, reverse=True)
    return lines


@jax.jit
def _smoothed_mean(history: FilterHistory, log_weights: Array) -> Any:
    lines, weights = _genealogy(history.ancestors), jnp.exp(log_weights)

    def of_leaf(leaf: Array) -> Array:
        chosen = jax.vmap(lambda cloud, line: cloud[line])(leaf, lines)
        dtype = dtype_of_mean(leaf, weights)
        return einsum("n,tn...->t...", weights.astype(dtype), chosen.astype(dtype))

    return jax.tree.map(of_leaf, history.particles)


@partial(jax.jit, static_argnums=(5, 6))
def _backward_sample(
    key: Array,
    model: StateSpaceModel,
    history: FilterHistory,
    status: Array,
    controls: Any,
    num: int,
    batch_size: int,
) -> SampledPaths:
    particles, log_weights = history.particles, jnp.asarray(history.log_weights)
    length, count = log_weights.shape
    at = lambda tree, t: jax.tree.map(lambda leaf: leaf[t], tree)

    def one(key: Array) -> SampledPaths:
        first, rest = jax.random.split(key)
        index = jax.random.categorical(first, log_weights[-1])
        last = at(at(particles, length - 1), index)

        def back(later: tuple[Any, Array], time: Array) -> tuple[tuple[Any, Array], tuple[Any, Array]]:
            after, code = later
            cloud = at(particles, time)
            repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (count, *leaf.shape)), after)
            control = () if controls is None else (at(controls, time + 1),)
            density = user_functions.transition_log_density(model, repeated, cloud, time + 1, control, count)
            density = jax.lax.stop_gradient(density).astype(log_weights.dtype)
            usable = density < jnp.inf  # False for NaN
            chances, total = normalize(log_weights[time] + jnp.where(usable, density, -jnp.inf))
            dead = total == -jnp.inf
            told = first_failing((jnp.any(~usable), Status.NONFINITE_RESULT), (dead, Status.DEGENERATE))
            chosen = at(cloud, jax.random.categorical(jax.random.fold_in(rest, time), chances))
            return (chosen, merge(code, told)), (chosen, dead)

        times = jnp.arange(length - 1, dtype=jnp.int32)
        (_, code), (earlier, dead) = jax.lax.scan(back, (last, jnp.int32(Status.OK)), times, reverse=True)
        states = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, last)
        # whatever comes before a time without a choice continues nothing
        lost = jnp.append(jax.lax.cumsum(dead.astype(jnp.int32), reverse=True) > 0, jnp.bool(False))
        return SampledPaths(jax.tree.map(partial(_nan_where, lost), states), merge(status, code))

    return jax.lax.map(one, jax.random.split(key, num), batch_size=min(batch_size, num))


def _nan_where(lost: Array, leaf: Array) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return arguments.nan_unless(leaf, ~lost, leaf.ndim - 1)


@jax.jit
def _degeneracy(result: FilterResult) -> Degeneracy:
    sizes = result.effective_sample_size
    impossible = result.log_evidence_increments == -jnp.inf
    first = jnp.where(jnp.any(impossible), jnp.argmax(impossible).astype(jnp.int32), jnp.int32(-1))
    lineages = coalesced = None
    if result.history is not None:
        lines = _genealogy(result.history.ancestors)
        number = lines.shape[1]
        alive = jax.vmap(lambda line: jnp.zeros(number, bool).at[line].set(True))(lines)
        lineages = jnp.sum(alive, 1, dtype=jnp.int32)
        coalesced = jnp.sum(lineages == 1, dtype=jnp.int32) - 1  # descent only narrows backwards
    return Degeneracy(
        lowest_effective_sample_size=jnp.min(sizes),
        lowest_at=jnp.argmin(sizes).astype(jnp.int32),
        impossible_at=first,
        resamplings=jnp.sum(result.resampled, dtype=jnp.int32),
        lineages=lineages,
        coalesced_at=coalesced,
    )
