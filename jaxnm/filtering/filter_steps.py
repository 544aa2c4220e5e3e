"""One step of a particle filter: choose ancestors where the cloud is poor, move, weigh."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.arguments import complex_dtype
from jaxnm.filtering import user_functions
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


class Advanced(NamedTuple):
    """A cloud after an observation, and what the groups of a sharded cloud need to know besides."""

    state: FilterState
    step: FilterStep
    log_total: Array
    """The increment of the evidence; where the observation is impossible, that of a missing one."""
    possible: Array
    """Whether any particle explains the observation."""


class _Moved(NamedTuple):
    """Particles between two observations."""

    particles: Any
    log_weights: Array
    """Not necessarily of total one."""
    resampled: Array
    ancestors: Array


class _Weighed(NamedTuple):
    """Particles and what an observation says of them."""

    moved: _Moved
    log_weights: Array
    """Normalized."""
    log_total: Array
    spoiled: Array
    """Whether a number that a function gave was NaN or +inf."""


@partial(jax.jit, static_argnums=4)
def begin(key: Array, model: StateSpaceModel, observation: Any, present: Array, num: int) -> Advanced:
    """The initial cloud, weighed with the first observation."""
    particles = user_functions.sample_initial(model, key, num)
    values, _, present = _row(model, observation, present)
    time = jnp.int32(0)
    increments = user_functions.log_likelihood(model, particles, values, time, num)
    even = jnp.full_like(increments, -jnp.log(jnp.asarray(num, increments.dtype)))
    moved = _Moved(particles, even, jnp.bool(False), jnp.arange(num, dtype=jnp.int32))
    zero = jnp.zeros((), increments.dtype)
    tried = _weigh(moved, jnp.where(present, increments, jnp.zeros_like(increments)))
    possible = tried.log_total > -jnp.inf
    return _told(zero, jnp.int32(Status.OK), time, _or_unweighed(possible, tried, moved), possible, _infinite(values))


@partial(jax.jit, static_argnums=6)
def advance(
    key: Array,
    model: StateSpaceModel,
    state: FilterState,
    observation: Any,
    present: Array,
    dials: Dials,
    options: Options,
) -> Advanced:
    """The cloud after one more observation."""
    time, num, dtype = state.time + 1, state.log_weights.shape[0], state.log_weights.dtype
    choice, move = jax.random.split(key)
    values, control, present = _row(model, observation, present)

    def blind() -> tuple[_Moved, _Moved]:
        """The cloud before and after a move without a look at the observation."""
        old = _select(choice, state, None, dials, options)
        moved = user_functions.sample_transition(model, move, old.particles, time, control)
        return old, old._replace(particles=moved)

    def likelihoods(particles: Any) -> Array:
        increments = user_functions.log_likelihood(model, particles, values, time, num).astype(dtype)
        return jnp.where(present, increments, jnp.zeros_like(increments))

    def guided() -> _Weighed:
        ahead = None
        if dials.auxiliary is not None:
            ahead = user_functions.look_ahead(dials.auxiliary, state.particles, values, time, num).astype(dtype)
        old = _select(choice, state, ahead, dials, options)
        if dials.proposal is None:
            new = user_functions.sample_transition(model, move, old.particles, time, control)
            ratio = jnp.zeros_like(old.log_weights)
        else:
            new, density = user_functions.propose(dials.proposal, move, old.particles, values, time, control, num)
            ratio = user_functions.transition_log_density(model, new, old.particles, time, control, num)
            ratio = ratio.astype(dtype) - density.astype(dtype)
        weighed = _weigh(old._replace(particles=new), likelihoods(new) + ratio)
        spoiled = weighed.spoiled if ahead is None else weighed.spoiled | jnp.any(~(ahead < jnp.inf))
        return weighed._replace(spoiled=spoiled)

    if dials.proposal is None and dials.auxiliary is None:
        old, moved = blind()
        tried = _weigh(moved, likelihoods(moved.particles))
        possible = tried.log_total > -jnp.inf
        found = _or_unweighed(possible, tried, old)
    else:
        tried = guided()
        possible = ~present | (tried.log_total > -jnp.inf)

        def unseen() -> _Weighed:
            old, moved = blind()
            return _or_unweighed(possible, _weigh(moved, jnp.zeros_like(moved.log_weights)), old)

        spoiled = present & tried.spoiled
        found = jax.lax.cond(present & possible, lambda: tried, unseen)._replace(spoiled=spoiled)
    return _told(state.log_evidence, state.status, time, found, possible, _infinite(values))


def _row(model: StateSpaceModel, observation: Any, present: Array) -> tuple[Any, tuple[Any, ...], Array]:
    """(values, (control,) or (), whether the values are there).

    Zeros stand instead of a missing row, so that nothing computed with it, or its derivative, is NaN.
    """
    values, *control = observation if model.controlled else (observation,)
    present = present & ~_is_missing(values)
    values = jax.tree.map(lambda leaf: jnp.where(present, leaf, jnp.zeros_like(leaf)), values)
    return values, tuple(control), present


def _is_missing(values: Any) -> Array:
    """Whether a row holds NaN and nothing else; integers and flags are observed."""
    leaves = [leaf for leaf in jax.tree.leaves(values) if leaf.size]
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        return jnp.bool(False)
    return jnp.all(jnp.stack([jnp.all(jnp.isnan(leaf)) for leaf in leaves]))


def _infinite(values: Any) -> Array:
    floating = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.any(jnp.stack([jnp.any(jnp.isinf(leaf)) for leaf in floating])) if floating else jnp.bool(False)


def _select(key: Array, state: FilterState, ahead: Array | None, dials: Dials, options: Options) -> _Moved:
    """The cloud, resampled where it is poor: by its weights, times exp(ahead) if given, of which NaN and inf are zero.

    Where all these products are zero, `ahead` says nothing about the choice and is left out.
    """
    num, dtype = state.log_weights.shape[0], state.log_weights.dtype
    if ahead is not None:
        ahead = jnp.where(ahead < jnp.inf, ahead, jnp.full_like(ahead, -jnp.inf))
        useful = jnp.any(state.log_weights + ahead > -jnp.inf)
        ahead = jnp.where(useful, ahead, jnp.zeros_like(ahead))
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
            # soft resampling chooses some of weight zero, whose weight stays zero
            chosen = ahead[ancestors]
            chosen = jnp.where(chosen > -jnp.inf, chosen, jnp.zeros_like(chosen))
            log_weights = log_weights + log_total - chosen
        return jax.tree.map(lambda leaf: leaf[ancestors], state.particles), log_weights, ancestors

    def keep(_: Array) -> tuple[Any, Array, Array]:
        return state.particles, state.log_weights, jnp.arange(num, dtype=jnp.int32)

    particles, log_weights, ancestors = jax.lax.cond(needed, take, keep, key)
    return _Moved(particles, log_weights, needed, ancestors)


def _weigh(moved: _Moved, increments: Array) -> _Weighed:
    usable = increments < jnp.inf  # False for NaN
    increments = jnp.where(usable, increments, jnp.full_like(increments, -jnp.inf))
    log_weights, log_total = normalize(moved.log_weights + increments)
    return _Weighed(moved, log_weights, log_total, jnp.any(~usable))


def _or_unweighed(possible: Array, tried: _Weighed, old: _Moved) -> _Weighed:
    """What was tried, or the same particles without the observation where that is impossible.

    It is impossible also where a move made NaN; what cannot be moved stays.
    """
    log_weights, log_total = normalize(old.log_weights)
    new = tried.moved.particles
    moved = jnp.ones(log_weights.shape, bool)
    for leaf in jax.tree.leaves(new):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            moved = moved & jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), 1)
    kept = possible | moved
    choose = lambda new, old: jnp.where(kept.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return tried._replace(
        moved=tried.moved._replace(particles=jax.tree.map(choose, new, old.particles)),
        log_weights=jnp.where(possible, tried.log_weights, log_weights),
        log_total=jnp.where(possible, tried.log_total, log_total),
    )


def _told(
    log_evidence: Array, before: Array, time: Array, found: _Weighed, possible: Array, infinite: Array
) -> Advanced:
    # added to what has a derivative, which is thereby that of the other observations
    zero = jnp.zeros_like(found.log_total)
    increment = found.log_total + jnp.where(possible, zero, jnp.full_like(zero, -jnp.inf))
    status = first_failing(
        (infinite, Status.NONFINITE_INPUT),
        (found.spoiled, Status.NONFINITE_RESULT),
        (~possible, Status.DEGENERATE),
    )
    particles = found.moved.particles
    state = FilterState(
        particles=particles,
        log_weights=found.log_weights,
        log_evidence=log_evidence + increment,
        time=time,
        status=merge(before, status),
    )
    step = FilterStep(
        mean=weighted_mean(particles, found.log_weights),
        effective_sample_size=effective_sample_size(found.log_weights),
        resampled=found.moved.resampled,
        log_evidence_increment=increment,
        ancestors=found.moved.ancestors,
    )
    return Advanced(state, step, found.log_total, possible)


def weighted_mean(particles: Any, log_weights: Array) -> Any:
    """Means of leaves [N, ...], real or complex."""
    weights = jnp.exp(log_weights)

    def of_leaf(leaf: Array) -> Array:
        dtype = dtype_of_mean(leaf, weights)
        return einsum("n,n...->...", weights.astype(dtype), leaf.astype(dtype))

    return jax.tree.map(of_leaf, particles)


def dtype_of_mean(leaf: Array, weights: Array) -> Any:
    """The dtype of the weights, complex where the leaf is."""
    return complex_dtype(weights.dtype) if jnp.iscomplexobj(leaf) else weights.dtype
