"""Log-weights: normalization, effective sample size, and sums that stay accurate over ten million terms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments

_BLOCK = 1024


def normalize(
    log_weights: Float[ArrayLike, "*batch particles"],
) -> tuple[Float[Array, "*batch particles"], Float[Array, "*batch"]]:
    """Log-weights of total one, and the logarithm of the total they had.

    Args:
      log_weights: [..., N], unnormalized; -inf is a weight of zero. NaN and +inf count as zero (`particle_filter`
        reports them by its status).

    Returns:
      log_weights [..., N] with `sum(exp(log_weights)) = 1`, and log_total [...]. Where every weight is zero: -log N
      each, and -inf. Of the dtype of the input.

    Raises:
      ValueError: no particles. TypeError: complex log-weights, or half precision.

    Cost: three passes. Differentiable wherever the total is positive; the derivative is zero where it is not.

    Example:
      >>> log_weights, log_total = normalize(jnp.log(jnp.array([1.0, 3.0])))
      >>> float(log_total), [round(float(w), 4) for w in jnp.exp(log_weights)]
      (1.3862943649291992, [0.25, 0.75])
    """
    return _normalize(check_log_weights("normalize", log_weights))


def effective_sample_size(log_weights: Float[ArrayLike, "*batch particles"]) -> Float[Array, "*batch"]:
    """How many equally weighted particles are worth as much: (sum w)^2 / sum w^2, between 1 and N.

    Args:
      log_weights: [..., N], not necessarily normalized.

    Returns:
      [...], of the dtype of the input; N where every weight is zero, as `normalize` takes them for uniform.

    Raises:
      ValueError: no particles. TypeError: complex log-weights.

    Cost: three passes. Differentiable wherever some weight is positive.
    Source: A. Kong, J. S. Liu, W. H. Wong, J. Amer. Statist. Assoc. 89 (1994), 278-288.

    Example:
      >>> float(effective_sample_size(jnp.zeros(4)))
      4.0
    """
    return _effective_sample_size(check_log_weights("effective_sample_size", log_weights))


def check_log_weights(function: str, log_weights: ArrayLike) -> Array:
    """The log-weights as an array [..., N] with N >= 1."""
    (array,) = arguments.to_arrays(function, log_weights=log_weights)
    arguments.check_real(function, "log_weights", array)
    arguments.check_shape(
        function,
        "log_weights",
        array,
        "[..., N] with N >= 1",
        lambda shape: len(shape) >= 1 and shape[-1] >= 1,
        "give one log-weight a particle",
    )
    return array


def total(x: Array) -> Array:
    """Sum over the last axis in blocks, whose rounding grows with the logarithm of the number of terms."""
    n = x.shape[-1]
    if n <= _BLOCK:
        return jnp.sum(x, -1)
    whole = n // _BLOCK * _BLOCK
    blocks = x[..., :whole].reshape(*x.shape[:-1], whole // _BLOCK, _BLOCK)
    return total(jnp.sum(blocks, -1)) + jnp.sum(x[..., whole:], -1)


def relative_weights(log_weights: Array) -> tuple[Array, Array, Array]:
    """(weights over the largest, the log of the largest, whether any is positive); what is not finite is zero."""
    usable = log_weights < jnp.inf  # False for NaN
    x = jnp.where(usable, log_weights, jnp.full_like(log_weights, -jnp.inf))
    largest = jax.lax.stop_gradient(jnp.max(x, -1))
    alive = largest > -jnp.inf
    largest = jnp.where(alive, largest, jnp.zeros_like(largest))
    return jnp.exp(x - largest[..., None]), largest, alive


@jax.jit
def _normalize(log_weights: Array) -> tuple[Array, Array]:
    weights, largest, alive = relative_weights(log_weights)
    summed = total(weights)
    log_sum = jnp.log(jnp.where(alive, summed, jnp.ones_like(summed)))
    log_total = largest + log_sum
    usable = log_weights < jnp.inf
    # selected before the subtraction, so that what is not used has no derivative; not less log_total, which is rounded
    x = jnp.where(usable, log_weights, jnp.full_like(log_weights, -jnp.inf)) - largest[..., None] - log_sum[..., None]
    even = jnp.full_like(x, -jnp.log(jnp.asarray(x.shape[-1], x.dtype)))
    normalized = jnp.where(alive[..., None], x, even)
    return normalized, jnp.where(alive, log_total, jnp.full_like(log_total, -jnp.inf))


@jax.jit
def _effective_sample_size(log_weights: Array) -> Array:
    weights, _, alive = relative_weights(log_weights)
    first, second = total(weights), total(weights**2)
    one = jnp.ones_like(first)
    ratio = jnp.where(alive, first, one) ** 2 / jnp.where(alive, second, one)
    number = jnp.full_like(ratio, weights.shape[-1])
    return jnp.where(alive, ratio, number)
