"""One step of a particle filter: choose ancestors where the cloud is poor, move, weigh."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm import arguments
from jaxnm.filtering.clouds import FilterState, FilterStep
from jaxnm.filtering.models import StateSpaceModel
from jaxnm.filtering.resampling import Method, resample, soft_resample
from jaxnm.filtering.weights import effective_sample_size, normalize
from jaxnm.linalg.factorizations import einsum
from jaxnm.status import Status, first_failing, merge

Gradient = Literal["stop", "plain", "soft"]


class Options(NamedTuple):
    """What is static of a step."""

    resampling: Method
    gradient: Gradient


class Dials(NamedTuple):
    """What is traced of a step beside the state."""

    proposal: Any
    auxiliary: Any
    ess_threshold: Array
    alpha: Array


@partial(jax.jit, static_argnums=4)
def begin(
    key: Array, model: StateSpaceModel, observation: Any, present: Array, num: int
) -> tuple[FilterState, FilterStep]:
    """The initial cloud, weighed with the first observation."""
    particles = model.sample_initial(key, num)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(particles)]
    if any(shape[:1] != (num,) for shape in shapes):
        got = f"with leaves of shapes {shapes}"
        arguments.refuse("sample_initial", "its value", got, f"leaves [{num}, ...]", "draw as many as it is asked for")
    time = jnp.int32(0)
    increments, infinite = _log_likelihood(model, particles, observation, time, present)
    even = jnp.full_like(increments, -jnp.log(jnp.asarray(num, increments.dtype)))
    zero = jnp.zeros((), increments.dtype)
    before = FilterState(particles, even, zero, time, jnp.int32(Status.OK))
    own = jnp.arange(num, dtype=jnp.int32)
    return _weigh(before, particles, even, increments, time, infinite, jnp.bool(False), own)


@partial(jax.jit, static_argnums=6)
def advance(
    key: Array,
    model: StateSpaceModel,
    state: FilterState,
    observation: Any,
    present: Array,
    dials: Dials,
    options: Options,
) -> tuple[FilterState, FilterStep]:
    """The cloud after one more observation."""
    time = state.time + 1
    choice, move = jax.random.split(key)
    values, control = observation if model.controlled else (observation, None)
    present = present & ~_is_missing(values)
    values = _without_missing_row(values, present)

    ahead = None
    if dials.auxiliary is not None:
        ahead = dials.auxiliary(state.particles, values, time).astype(state.log_weights.dtype)
        ahead = jnp.where(present & jnp.isfinite(ahead), ahead, jnp.zeros_like(ahead))
    old, log_weights, resampled, ancestors = _select(choice, state, ahead, dials, options)

    extra = () if control is None else (control,)

    def follow(key: Array) -> tuple[Any, Array]:
        return model.sample_transition(key, old, time, *extra), jnp.zeros_like(log_weights)

    def guide(key: Array) -> tuple[Any, Array]:
        new, density = dials.proposal(key, old, values, time, *extra)
        ratio = model.transition_log_density(new, old, time, *extra) - density
        return new, ratio.astype(log_weights.dtype)

    new, ratio = follow(move) if dials.proposal is None else jax.lax.cond(present, guide, follow, move)
    increments, infinite = _log_likelihood(model, new, (values, control) if model.controlled else values, time, present)
    return _weigh(state, new, log_weights, increments + ratio, time, infinite, resampled, ancestors)


def _select(
    key: Array, state: FilterState, ahead: Array | None, dials: Dials, options: Options
) -> tuple[Any, Array, Array, Array]:
    """(particles, log-weights not necessarily of total one, whether resampled, ancestors)."""
    num, dtype = state.log_weights.shape[0], state.log_weights.dtype
    chances, log_total = normalize(state.log_weights if ahead is None else state.log_weights + ahead)
    low = effective_sample_size(jax.lax.stop_gradient(chances)) < dials.ess_threshold.astype(dtype) * num
    needed = low | (dials.ess_threshold >= 1)

    def take(key: Array) -> tuple[Any, Array, Array]:
        if options.gradient == "soft":
            alpha = dials.alpha.astype(dtype)
            ancestors, log_weights = soft_resample(key, chances, alpha, method=options.resampling)
        else:
            ancestors = resample(key, chances, method=options.resampling)
            log_weights = jnp.full_like(chances, -jnp.log(jnp.asarray(num, dtype)))
        if options.gradient == "stop":
            own = chances[ancestors]
            own = jnp.where(jnp.isfinite(own), own, jnp.zeros_like(own))
            log_weights = log_weights + (own - jax.lax.stop_gradient(own))
        if ahead is not None:
            log_weights = log_weights + log_total - ahead[ancestors]
        return jax.tree.map(lambda leaf: leaf[ancestors], state.particles), log_weights, ancestors

    def keep(_: Array) -> tuple[Any, Array, Array]:
        return state.particles, state.log_weights, jnp.arange(num, dtype=jnp.int32)

    particles, log_weights, ancestors = jax.lax.cond(needed, take, keep, key)
    return particles, log_weights, needed, ancestors


def _is_missing(values: Any) -> Array:
    """Whether all floating values of a row are NaN."""
    floating = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    missing = [jnp.all(jnp.isnan(leaf)) for leaf in floating if leaf.size]
    return jnp.all(jnp.stack(missing)) if missing else jnp.bool(False)


def _without_missing_row(values: Any, present: Array) -> Any:
    """Zeros instead of a missing row, so that nothing computed with it, or its derivative, is NaN."""
    return jax.tree.map(lambda leaf: jnp.where(present, leaf, jnp.zeros_like(leaf)), values)


def _log_likelihood(
    model: StateSpaceModel, particles: Any, observation: Any, time: Array, present: Array
) -> tuple[Array, Array]:
    """(log-likelihoods, zero where the observation is missing; whether the observation is infinite)."""
    values = observation[0] if model.controlled else observation
    present = present & ~_is_missing(values)
    values = _without_missing_row(values, present)
    increments = jnp.asarray(model.log_likelihood(particles, values, time))
    num = jax.tree.leaves(particles)[0].shape[0]
    if increments.shape != (num,) or not jnp.issubdtype(increments.dtype, jnp.floating):
        got = f"of shape {increments.shape} and dtype {increments.dtype}"
        arguments.refuse("log_likelihood", "its value", got, f"[{num}] floating", "give one number a particle")
    floating = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    infinite = [jnp.any(jnp.isinf(leaf)) for leaf in floating]
    flag = jnp.any(jnp.stack(infinite)) if infinite else jnp.bool(False)
    return jnp.where(present, increments, jnp.zeros_like(increments)), flag


def _weigh(
    before: FilterState,
    particles: Any,
    log_weights: Array,
    increments: Array,
    time: Array,
    infinite: Array,
    resampled: Array,
    ancestors: Array,
) -> tuple[FilterState, FilterStep]:
    usable = increments < jnp.inf  # False for NaN
    increments = jnp.where(usable, increments, jnp.full_like(increments, -jnp.inf))
    weighed, log_total = normalize(log_weights + increments.astype(log_weights.dtype))
    dead = log_total == -jnp.inf
    kept = lambda new, old: jnp.where(dead, old, new)
    particles = jax.tree.map(kept, particles, before.particles)
    status = first_failing(
        (infinite, Status.NONFINITE_INPUT),
        (jnp.any(~usable), Status.NONFINITE_RESULT),
        (dead, Status.DEGENERATE),
    )
    state = FilterState(
        particles=particles,
        log_weights=weighed,
        log_evidence=before.log_evidence + log_total,
        time=time,
        status=merge(before.status, status),
    )
    step = FilterStep(
        mean=_mean(particles, weighed),
        effective_sample_size=effective_sample_size(weighed),
        resampled=resampled,
        log_evidence_increment=log_total,
        ancestors=jnp.where(dead, jnp.arange(ancestors.shape[0], dtype=jnp.int32), ancestors),
    )
    return state, step


def _mean(particles: Any, log_weights: Array) -> Any:
    weights = jnp.exp(log_weights)
    return jax.tree.map(lambda leaf: einsum("n,n...->...", weights, leaf.astype(weights.dtype)), particles)
