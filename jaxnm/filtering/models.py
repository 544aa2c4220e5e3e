"""What a filter needs to know of a system: how its state begins, moves and shows itself."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments


@flax.struct.dataclass
class StateSpaceModel:
    """A hidden Markov model by its functions, each for all particles at once.

    Particles are a pytree of arrays [num, ...] of real or complex numbers, integers or flags, whose shapes and dtypes
    a move leaves as they are. The first observation belongs to the initial state.

    A function is known by its code and by what it reads: numbers and NumPy arrays in its closure, in the object whose
    method it is, and in globals are compared by value at every call, and a new value compiles a new program. JAX arrays
    in closures and objects are arguments of the program, so that a lambda made anew in every call of a loss compiles
    once. A Python number that changes at every call compiles at every call, about a second each: make it an array, or
    put it into `jax.tree_util.Partial(function, parameters)`, whose arguments are leaves. Not seen are attributes of
    classes and globals of other packages. In a function that you compile yourself, `jax.jit` looks at them once.

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, observation, time: -0.5 * (observation - x) ** 2,
      ... )
    """

    sample_initial: Any
    """`(key, num) -> particles`."""
    sample_transition: Any
    """`(key, particles, time) -> particles` at `time`, an int32 scalar, from those at time - 1; controlled models get
    the control of that move as a fourth argument."""
    log_likelihood: Any
    """`(particles, observation, time) -> [num]`."""
    transition_log_density: Any = None
    """`(new, old, time) -> [num]`, and the control as a fourth argument; guided filters and backward sampling need
    it."""
    proposal: Any = None
    """`(key, particles, observation, time) -> (new, log_density [num])`, and the control as a fifth argument: where a
    guided filter moves the particles, and with which density."""
    controlled: bool = flax.struct.field(pytree_node=False, default=False)
    """Whether observations are pairs (values, controls). The control at a time is that of the move into it."""

    def __post_init__(self) -> None:
        for name in ("sample_initial", "sample_transition", "log_likelihood", "transition_log_density", "proposal"):
            value = getattr(self, name)
            if callable(value) and not isinstance(value, Partial):
                object.__setattr__(self, name, Partial(value))  # a pytree without leaves, known by its function
            elif value is None and name in ("sample_initial", "sample_transition", "log_likelihood"):
                arguments.refuse("StateSpaceModel", name, "None", "a function", "see the class", error=TypeError)


def observed_log_density(
    log_density: Callable[[Array], Array], observation: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Sum of the log-densities of the components of an observation that are not NaN.

    Args:
      log_density: from the observation, with zero for what is missing, to log-densities [..., components].
      observation: [components], NaN where missing.

    Returns:
      [...]: summed over the last axis. Derivatives are finite, and zero for what is missing.

    Raises:
      TypeError: an observation that is not floating.

    Cost: none beside the log-densities. Differentiable wherever they are.

    Example:
      >>> float(observed_log_density(lambda y: -0.5 * (y - 1.0) ** 2, jnp.array([2.0, jnp.nan])))
      -0.5
    """
    arguments.check_callable("observed_log_density", "log_density", log_density, "pass a function of the observation")
    (values,) = arguments.to_arrays("observed_log_density", observation=observation)
    arguments.check_real("observed_log_density", "observation", values)
    present, filled = _filled(values)
    return _sum_of_present(log_density(filled), present)


@jax.jit
def _filled(values: Array) -> tuple[Array, Array]:
    """(which are no NaN, the values with zeros for those)."""
    present = ~jnp.isnan(values)
    return present, jnp.where(present, values, 0)


@jax.jit
def _sum_of_present(densities: Array, present: Array) -> Array:
    present = present.reshape((1,) * (densities.ndim - present.ndim) + present.shape)
    return jnp.sum(jnp.where(present, densities, 0), -1)
