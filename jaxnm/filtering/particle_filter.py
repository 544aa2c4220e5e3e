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
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Key

from jaxnm import arguments
from jaxnm.filtering.clouds import FilterHistory, FilterResult, FilterState, FilterStep
from jaxnm.filtering.filter_steps import Dials, Gradient, Options, advance, begin, dtype_of_mean
from jaxnm.filtering.known_functions import known
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
        is controlled. A list of numbers is an array. A row of nothing but NaN is missing: the cloud moves and is not
        weighed. Integers and flags are observed (`mask` says otherwise). Rows with some NaN go to the likelihood, which
        leaves these components out (as `observed_log_density` does).
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
        -inf is a weight of zero; where it is that for every particle, it is left out.
      mask: [T], False where an observation is missing, whatever it holds.
      history: "none" (means and effective sample sizes are there anyway), "moments" (covariances too), "ancestors"
        (4 bytes a particle and step more), "full" (every cloud). Static.
      checkpoint: whether reverse-mode derivatives compute each step again and keep one cloud a step (static).

    Returns:
      `FilterResult`.

    Raises:
      ValueError: num_particles < 1, an unknown option, numbers out of range, leaves of different length, a proposal
        without `transition_log_density`, a function of the model whose value has a wrong shape, dtype or structure.
      TypeError: a key that is not typed, a model that is none, observations that are no arrays.

    Status:
      NONFINITE_INPUT: an observation is infinite. NONFINITE_RESULT: a likelihood, an auxiliary weight or a ratio of
      densities was NaN or +inf; such particles got weight zero. DEGENERATE: at some time no particle could explain the
      observation. The cloud moved on as if that row were missing (particles whose move is not finite stayed); the
      logarithm of the evidence is -inf, and its derivative that of the other rows. `degeneracy` says when. Never NaN.

    Cost: O(N) a step. Memory does not grow with T unless `history` asks for it; "moments" T d^2 numbers.
    Differentiable in all that the model's functions depend on, see `gradient`; set `checkpoint` for long records. With
    "stop" a second derivative is that of the evidence on average, not the derivative of the first.
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
    model, dials = check_options(
        name, model, num_particles, resampling, ess_threshold, gradient, alpha, proposal, auxiliary
    )
    if history not in _HISTORIES:
        arguments.refuse(name, "history", repr(history), f"one of {_HISTORIES}", "use 'none'")
    arguments.check_flag(name, "checkpoint", checkpoint)
    observations, observed = check_observations(name, model, observations, mask)
    options = Options(resampling, gradient)
    return _particle_filter(
        key, model, observations, observed, dials, int(num_particles), options, history, bool(checkpoint)
    )


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
    name = "filter_init"
    arguments.check_key(name, key)
    model = known_model(name, model)
    arguments.check_count(name, "num_particles", num_particles, minimum=1)
    observation = _as_arrays(name, model, observation)
    begun = begin(key, model, observation, _check_mask(name, mask, ()), int(num_particles))
    return begun.state, begun.step


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
    if not isinstance(state, FilterState):
        got = f"of type {type(state).__name__}"
        arguments.refuse(name, "state", got, "FilterState", "begin with filter_init", error=TypeError)
    num = state.log_weights.shape[0]
    model, dials = check_options(name, model, num, resampling, ess_threshold, gradient, alpha, proposal, auxiliary)
    observation, observed = _as_arrays(name, model, observation), _check_mask(name, mask, ())
    advanced = advance(key, model, state, observation, observed, dials, Options(resampling, gradient))
    return advanced.state, advanced.step


def known_model(name: str, model: Any) -> StateSpaceModel:
    """The model with functions that are known by what they do."""
    if not isinstance(model, StateSpaceModel):
        got = f"of type {type(model).__name__}"
        arguments.refuse(name, "model", got, "StateSpaceModel", "see the class", error=TypeError)
    functions: dict[str, Any] = {}
    for field in ("sample_initial", "sample_transition", "log_likelihood", "transition_log_density", "proposal"):
        value = getattr(model, field)
        if value is not None:
            functions[field] = _known_function(name, field, value)
    return dataclasses.replace(model, **functions)


def _known_function(name: str, argument: str, value: Any) -> Partial:
    arguments.check_callable(name, argument, value, "see StateSpaceModel")
    return known(value)


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
) -> tuple[StateSpaceModel, Dials]:
    """The model, its functions known by what they do, and what is traced of a step, from arguments that make sense."""
    model = known_model(name, model)
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
    proposal = None if proposal is None else _known_function(name, "proposal", proposal)
    auxiliary = None if auxiliary is None else _known_function(name, "auxiliary", auxiliary)
    ess_threshold, alpha = arguments.to_arrays(name, ess_threshold=ess_threshold, alpha=alpha)
    for argument, value in (("ess_threshold", ess_threshold), ("alpha", alpha)):
        arguments.check_shape(name, argument, value, "a scalar", lambda shape: shape == (), "use jax.vmap for several")
    for argument, value in (("ess_threshold", ess_threshold), ("alpha", alpha)):
        arguments.check_real(name, argument, value)
    return model, Dials(proposal, auxiliary, ess_threshold, alpha)


def _as_arrays(name: str, model: StateSpaceModel, observations: Any) -> Any:
    """The observations as a pytree of arrays, of which a list of numbers is one."""
    if not model.controlled:
        return _tree_of_arrays(name, observations)
    if not isinstance(observations, tuple | list) or len(observations) != 2:
        got = f"of type {type(observations).__name__}"
        arguments.refuse(name, "observations", got, "a pair (values, controls)", "the model is controlled")
    return tuple(_tree_of_arrays(name, part) for part in observations)


def _tree_of_arrays(name: str, tree: Any) -> Any:
    def convert(leaf: Any) -> Array:
        expected, remedy = "numbers or arrays of one shape", "pass arrays; NaN is missing"
        try:
            texts = [part for part in jax.tree.leaves(leaf) if isinstance(part, str | bytes)]
            array = None if texts else jnp.asarray(leaf)
        except (TypeError, ValueError):
            array = None
        if array is None:
            got = f"with a {type(leaf).__name__} that is no array"
            arguments.refuse(name, "observations", got, expected, remedy, error=TypeError)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            arguments.refuse(name, "observations", "with a key", expected, remedy, error=TypeError)
        return array

    def is_leaf(part: Any) -> bool:
        leaves = jax.tree.leaves(part)
        is_array = isinstance(part, list) and not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        return part is None or (is_array and len(leaves) > 0)

    if not jax.tree.leaves(tree, is_leaf=is_leaf):
        got = "with leaves of shapes []"
        arguments.refuse(name, "observations", got, "leaves of numbers", "NaN is missing")
    return jax.tree.map(convert, tree, is_leaf=is_leaf)


def _check_mask(name: str, mask: Any, shape: tuple[int, ...]) -> Array:
    on_host = isinstance(mask, bool | np.bool_ | np.ndarray)
    try:
        observed = jax.device_put(np.asarray(mask)) if on_host else jnp.asarray(mask)
    except (TypeError, ValueError):
        got, remedy = f"a {type(mask).__name__}", "give one flag an observation"
        arguments.refuse(name, "mask", got, f"{list(shape)} booleans", remedy, error=TypeError)
    if observed.shape != shape or observed.dtype != bool:
        got = f"of shape {observed.shape} and dtype {observed.dtype}"
        arguments.refuse(name, "mask", got, f"{list(shape)} booleans", "give one flag an observation")
    return observed


def check_observations(name: str, model: StateSpaceModel, observations: Any, mask: Any) -> tuple[Any, Array]:
    """The observations as arrays, and which of them are there [T], as far as the mask says."""
    observations = _as_arrays(name, model, observations)
    leaves = jax.tree.leaves(observations)
    lengths = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves}
    if len(lengths) != 1 or -1 in lengths:
        got = f"with leaves of shapes {[leaf.shape for leaf in leaves]}"
        arguments.refuse(name, "observations", got, "leaves [T, ...] of one length", "time comes first")
    (length,) = lengths
    return observations, _check_mask(name, np.ones(length, bool) if mask is None else mask, (length,))


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
    begun = begin(jax.random.fold_in(key, 0), model, row(0), observed[0], num)
    first = kept(begun.state, begun.step)

    def body(state: FilterState, inputs: Any) -> tuple[FilterState, Any]:
        time, present = inputs
        advanced = advance(jax.random.fold_in(key, time), model, state, row(time), present, dials, options)
        return advanced.state, kept(advanced.state, advanced.step)

    body = jax.checkpoint(body) if checkpoint else body
    times = jnp.arange(1, length, dtype=jnp.int32)
    state, rest = jax.lax.scan(body, begun.state, (times, observed[1:]))
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
    begun = begin(jax.random.fold_in(key, 0), model, blank, jnp.bool(False), num)
    steps, covariance, cloud = jax.tree.map(lambda leaf: leaf[None][:0], kept(begun.state, begun.step))
    return _result(begun.state, steps, covariance, cloud, history)


def _covariance(state: FilterState, mean: Any) -> Any:
    weights = jnp.exp(state.log_weights)

    def of_leaf(leaf: Array, centre: Array) -> Array:
        dtype = dtype_of_mean(leaf, weights)
        deviation = (leaf.astype(dtype) - centre[None]).reshape(weights.shape[0], -1)
        weighted = weights.astype(dtype)[:, None] * deviation
        return einsum("ni,nj->ij", weighted, deviation.conj()).reshape(centre.shape * 2)

    return jax.tree.map(of_leaf, state.particles, mean)
