"""Particle filters: bootstrap, guided and auxiliary, over a whole record or one observation at a time.

A step resamples the cloud where its effective sample size is low, moves it, and weighs it with the observation; so what
comes out of a step is weighted. Weights are normalized, their total goes into the evidence.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Key

from jaxnm import arguments
from jaxnm.filtering.clouds import FilterHistory, FilterResult, FilterState, FilterStep
from jaxnm.filtering.filter_steps import Dials, Gradient, Options, advance, begin
from jaxnm.filtering.models import StateSpaceModel
from jaxnm.filtering.resampling import Method, check_alpha, check_method
from jaxnm.linalg.factorizations import einsum

History = Literal["none", "moments", "ancestors", "full"]
_GRADIENTS = get_args(Gradient)
_HISTORIES = get_args(History)


def particle_filter(
    key: Key[Array, ""],
    model: StateSpaceModel,
    observations: Any,
    *,
    num_particles: int,
    resampling: Method = "systematic",
    ess_threshold: float = 0.5,
    gradient: Gradient = "stop",
    alpha: float = 0.5,
    proposal: Callable[..., Any] | None = None,
    auxiliary: Callable[..., Any] | None = None,
    mask: Bool[ArrayLike, "time"] | None = None,
    history: History = "none",
    checkpoint: bool = False,
) -> FilterResult:
    """Weighted particles for the state at every time, and the evidence of the observations.

    Args:
      key: of `jax.random.key`. The step at time t uses `jax.random.fold_in(key, t)`.
      model: see `StateSpaceModel`.
      observations: pytree with leaves [T, ...], the first one of the initial state; (values, controls) where the model
        is controlled. A row whose floating values are all NaN is missing: the cloud moves and is not weighed. Rows with
        some NaN go to the likelihood, which leaves these components out (as `observed_log_density` does).
      num_particles: N (static).
      resampling: a method of `resample` (static).
      ess_threshold: the cloud is resampled before it moves where its effective sample size is below this share of N.
        1: at every step; 0: never. May be traced.
      gradient: what `jax.grad` of the result means (static). "stop": weights after resampling carry the derivative of
        the weight of their ancestor, which makes the score of the evidence consistent, with a bias of order 1/N.
        "plain": resampling is held fixed; of low variance and wrong, by half and more in the guide's table. "soft":
        `soft_resample` with `alpha`; biased too, as no derivative passes through the choice itself.
      alpha: of "soft", in (0, 1]. May be traced.
      proposal: instead of that of the model: a guided filter.
      auxiliary: `(particles, observation, time) -> [N]`, log-weights for the choice of ancestors by the observation to
        come, as its likelihood at the predicted mean: an auxiliary filter. It acts only where the cloud is resampled.
      mask: [T], False where an observation is missing, whatever it holds.
      history: "none" (means and effective sample sizes are there anyway), "moments" (covariances too), "ancestors"
        (4 bytes a particle and step more), "full" (every cloud). Static.
      checkpoint: whether reverse-mode derivatives compute each step again and keep one cloud a step (static).

    Returns:
      `FilterResult`.

    Raises:
      ValueError: num_particles < 1, an unknown option, numbers out of range, leaves of different length, a proposal
        without `transition_log_density`. TypeError: a key that is not typed, a model that is none.

    Status:
      NONFINITE_INPUT: an observation is infinite. NONFINITE_RESULT: a likelihood was NaN or +inf; such particles got
      weight zero. DEGENERATE: at some time no particle could explain the observation; the cloud of the step before was
      kept with uniform weights, the evidence is zero from there on. `degeneracy` says when. Never NaN.

    Cost: O(N) a step. Memory does not grow with T unless `history` asks for it; "moments" T d^2 numbers.
    Differentiable in all that the model's functions depend on, see `gradient`; set `checkpoint` for long records.
    Source: N. J. Gordon, D. J. Salmond, A. F. M. Smith, IEE Proc. F 140 (1993), 107-113; M. K. Pitt, N. Shephard,
    J. Amer. Statist. Assoc. 94 (1999), 590-599 (auxiliary); A. Scibior, F. Wood, arXiv:2106.10314 ("stop").

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> result = particle_filter(jax.random.key(0), walk, jnp.array([0.0, 1.0, jnp.nan]), num_particles=100)
      >>> result.mean.shape, int(result.status)
      ((3,), 0)
    """
    name = "particle_filter"
    arguments.check_key(name, key)
    dials = check_options(name, model, num_particles, resampling, ess_threshold, gradient, alpha, proposal, auxiliary)
    if history not in _HISTORIES:
        arguments.refuse(name, "history", repr(history), f"one of {_HISTORIES}", "use 'none'")
    observations = jax.tree.map(jnp.asarray, observations)
    observed = check_observations(name, model, observations, mask)
    options = Options(resampling, gradient)
    return _particle_filter(key, model, observations, observed, dials, int(num_particles), options, history, checkpoint)


def filter_init(
    key: Key[Array, ""], model: StateSpaceModel, observation: Any, *, num_particles: int, mask: Any = True
) -> tuple[FilterState, FilterStep]:
    """The cloud after the first observation, at time 0.

    Args:
      key: of `jax.random.key`; `jax.random.fold_in(key, 0)` gives what `particle_filter(key, ...)` gives.
      model: see `StateSpaceModel`.
      observation: of the initial state, a row of the observations of `particle_filter`.
      num_particles: N (static).
      mask: False where the observation is missing.

    Returns:
      `FilterState` for `filter_step`, and the `FilterStep` of this observation.

    Raises:
      As `particle_filter`.

    Status: as `particle_filter`. Cost: O(N). Differentiable as `particle_filter`.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> state, step = filter_init(jax.random.key(0), walk, 0.0, num_particles=10)
      >>> state, step = filter_step(jax.random.key(1), walk, state, 0.5)
      >>> int(state.time)
      1
    """
    arguments.check_key("filter_init", key)
    _check_model("filter_init", model)
    arguments.check_count("filter_init", "num_particles", num_particles, minimum=1)
    observation = jax.tree.map(jnp.asarray, observation)
    _check_pair("filter_init", model, observation)
    return begin(key, model, observation, jnp.asarray(mask, bool), int(num_particles))


def filter_step(
    key: Key[Array, ""],
    model: StateSpaceModel,
    state: FilterState,
    observation: Any,
    *,
    resampling: Method = "systematic",
    ess_threshold: float = 0.5,
    gradient: Gradient = "stop",
    alpha: float = 0.5,
    proposal: Callable[..., Any] | None = None,
    auxiliary: Callable[..., Any] | None = None,
    mask: Any = True,
) -> tuple[FilterState, FilterStep]:
    """The cloud after one more observation: the step that `particle_filter` scans.

    Args:
      key: of `jax.random.key`; `jax.random.fold_in(key, t)` at time t gives what `particle_filter(key, ...)` gives.
      model: see `StateSpaceModel`.
      state: of `filter_init` or of the step before.
      observation: a row of the observations of `particle_filter`.
      resampling: as all that follow, as in `particle_filter`.
      ess_threshold: see there.
      gradient: see there.
      alpha: see there.
      proposal: see there.
      auxiliary: see there.
      mask: False where the observation is missing.

    Returns:
      the next `FilterState`, and the `FilterStep` of this observation.

    Raises:
      As `particle_filter`.

    Status: as `particle_filter`. Cost: O(N). Differentiable as `particle_filter`.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> state, _ = filter_init(jax.random.key(0), walk, 0.0, num_particles=10)
      >>> for time, y in enumerate([0.5, 1.0], start=1):
      ...     state, step = filter_step(jax.random.fold_in(jax.random.key(0), time), walk, state, y)
      >>> int(state.time), bool(step.effective_sample_size <= 10)
      (2, True)
    """
    name = "filter_step"
    arguments.check_key(name, key)
    num = state.log_weights.shape[0]
    dials = check_options(name, model, num, resampling, ess_threshold, gradient, alpha, proposal, auxiliary)
    observation = jax.tree.map(jnp.asarray, observation)
    _check_pair(name, model, observation)
    return advance(key, model, state, observation, jnp.asarray(mask, bool), dials, Options(resampling, gradient))


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, StateSpaceModel):
        got = f"of type {type(model).__name__}"
        arguments.refuse(name, "model", got, "StateSpaceModel", "see the class", error=TypeError)


def check_options(
    name: str,
    model: Any,
    num_particles: Any,
    resampling: Any,
    ess_threshold: Any,
    gradient: Any,
    alpha: Any,
    proposal: Any,
    auxiliary: Any,
) -> Dials:
    """What is traced of a step, from arguments that make sense."""
    _check_model(name, model)
    arguments.check_count(name, "num_particles", num_particles, minimum=1)
    check_method(name, resampling)
    arguments.check_number(name, "ess_threshold", ess_threshold, "in [0, 1]", lambda x: 0 <= x <= 1, "try 0.5")
    if gradient not in _GRADIENTS:
        arguments.refuse(name, "gradient", repr(gradient), f"one of {_GRADIENTS}", "use 'stop'")
    check_alpha(name, alpha)
    proposal = model.proposal if proposal is None else proposal
    if proposal is not None and model.transition_log_density is None:
        got = "None beside a proposal"
        arguments.refuse(name, "transition_log_density", got, "a function", "guided filters weigh with it")
    wrap = lambda f: f if f is None or isinstance(f, Partial) else Partial(f)
    ess_threshold, alpha = arguments.to_arrays(name, ess_threshold=ess_threshold, alpha=alpha)
    for argument, value in (("ess_threshold", ess_threshold), ("alpha", alpha)):
        arguments.check_shape(name, argument, value, "a scalar", lambda shape: shape == (), "use jax.vmap for several")
    return Dials(wrap(proposal), wrap(auxiliary), ess_threshold, alpha)


def _check_pair(name: str, model: StateSpaceModel, observations: Any) -> None:
    if model.controlled and not (isinstance(observations, tuple | list) and len(observations) == 2):
        got = f"of type {type(observations).__name__}"
        arguments.refuse(name, "observations", got, "a pair (values, controls)", "the model is controlled")


def check_observations(name: str, model: StateSpaceModel, observations: Any, mask: Any) -> Array:
    """Which observations are there [T], as far as the mask says."""
    _check_pair(name, model, observations)
    leaves = jax.tree.leaves(observations)
    lengths = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(lengths) != 1 or -1 in lengths:
        got = f"with leaves of shapes {[leaf.shape for leaf in leaves]}"
        arguments.refuse(name, "observations", got, "leaves [T, ...] of one length", "time comes first")
    (length,) = lengths
    observed = jnp.ones(length, bool) if mask is None else jnp.asarray(mask)
    if observed.shape != (length,) or observed.dtype != bool:
        got = f"of shape {observed.shape} and dtype {observed.dtype}"
        arguments.refuse(name, "mask", got, f"[{length}] booleans", "give one flag an observation")
    return observed


@partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _particle_filter(
    key: Array,
    model: StateSpaceModel,
    observations: Any,
    observed: Array,
    dials: Dials,
    num: int,
    options: Options,
    history: str,
    checkpoint: bool,
) -> FilterResult:
    length = observed.shape[0]
    row = lambda t: jax.tree.map(lambda leaf: leaf[t], observations)

    def kept(state: FilterState, step: FilterStep) -> Any:
        with_covariance = None if history == "none" else _covariance(state, step.mean)
        cloud = FilterHistory(
            ancestors=step.ancestors if history in ("ancestors", "full") else None,
            particles=state.particles if history == "full" else None,
            log_weights=state.log_weights if history == "full" else None,
        )
        return dataclasses.replace(step, ancestors=None), with_covariance, cloud

    if length == 0:
        return _empty(key, model, observations, num, kept, history)
    state, step = begin(jax.random.fold_in(key, 0), model, row(0), observed[0], num)
    first = kept(state, step)

    def body(state: FilterState, inputs: Any) -> tuple[FilterState, Any]:
        time, present = inputs
        state, step = advance(jax.random.fold_in(key, time), model, state, row(time), present, dials, options)
        return state, kept(state, step)

    body = jax.checkpoint(body) if checkpoint else body
    times = jnp.arange(1, length, dtype=jnp.int32)
    state, rest = jax.lax.scan(body, state, (times, observed[1:]))
    steps, covariance, cloud = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return _result(state, steps, covariance, cloud, history)


def _result(state: FilterState, steps: FilterStep, covariance: Any, cloud: FilterHistory, history: str) -> FilterResult:
    return FilterResult(
        particles=state.particles,
        log_weights=state.log_weights,
        log_evidence=state.log_evidence,
        log_evidence_increments=steps.log_evidence_increment,
        effective_sample_size=steps.effective_sample_size,
        resampled=steps.resampled,
        mean=steps.mean,
        covariance=covariance,
        history=cloud if history in ("ancestors", "full") else None,
        status=state.status,
    )


def _empty(
    key: Array, model: StateSpaceModel, observations: Any, num: int, kept: Callable[..., Any], history: str
) -> FilterResult:
    """No observation: the initial cloud."""
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), observations)
    state, step = begin(jax.random.fold_in(key, 0), model, blank, jnp.bool(False), num)
    steps, covariance, cloud = jax.tree.map(lambda leaf: leaf[None][:0], kept(state, step))
    return _result(state, steps, covariance, cloud, history)


def _covariance(state: FilterState, mean: Any) -> Any:
    weights = jnp.exp(state.log_weights)

    def of_leaf(leaf: Array, centre: Array) -> Array:
        deviation = (leaf.astype(weights.dtype) - centre[None]).reshape(weights.shape[0], -1)
        return einsum("ni,nj->ij", weights[:, None] * deviation, deviation).reshape(centre.shape * 2)

    return jax.tree.map(of_leaf, state.particles, mean)
