"""What is measured of a Kalman filter's rounding: how much of its numbers cancels, and how far two ways disagree.

All measures are relative errors of variances, or errors of means in standard deviations, so that no unit of states or
observations changes them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnm.linalg.factorizations import matmul

# up to which measured error, in standard deviations, a result is OK: eps to this power (1e-6 and 3e-3)
_POWER = 0.375
# how many eps of the largest value of a component are rounding of its means
_ROUNDING = 100


def tolerance(dtype: jnp.dtype) -> float:
    """The largest measured error of a result that is OK."""
    return float(jnp.finfo(dtype).eps) ** _POWER


def quadratic_terms(factor: Array, covariance: Array) -> Float[Array, "n"]:
    """The size of the terms whose sum is the diagonal of factor @ covariance @ factor^T."""
    factor, covariance = jnp.abs(jax.lax.stop_gradient(factor)), jnp.abs(jax.lax.stop_gradient(covariance))
    return jnp.sum(matmul(factor, covariance) * factor, -1)


def cancellation(terms: Array, variances: Array) -> Float[Array, ""]:
    """The relative error of variances [n] from rounding the terms that they are the sums of."""
    eps = float(jnp.finfo(terms.dtype).eps)
    return jnp.max(_share(eps * terms, jax.lax.stop_gradient(variances)), initial=0)


def disagreement(
    means: Array, covariances: Array, other_means: Array, other_covariances: Array, before: Array
) -> Float[Array, ""]:
    """How far two computations of means [T, d] and covariances [T, d, d] are apart, beyond the rounding of each.

    Rounding is that of the largest mean of a component, and of the variances [T, d] of before the observation.
    """
    args = (means, covariances, other_means, other_covariances, before)
    means, covariances, other_means, other_covariances, before = jax.lax.stop_gradient(args)
    eps = float(jnp.finfo(means.dtype).eps)
    variances, others = (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (covariances, other_covariances))
    spread = jnp.abs(variances - others) - 16 * eps * before
    rounding = _ROUNDING * eps * jnp.max(jnp.abs(means), axis=0, keepdims=True, initial=0)
    shift = jnp.abs(means - other_means) - rounding
    largest = lambda x: jnp.max(x, initial=0)
    return jnp.maximum(largest(_share(spread, variances)), largest(_share(shift, _root(variances))))


def gain_error(product: Array, wanted: Array, variances: Array, later: Array) -> Float[Array, ""]:
    """The error of a gain E with E @ S = wanted, by its residual; variances [n] are of the rows, later [m] of S."""
    residual, variances, later = jax.lax.stop_gradient((jnp.abs(product - wanted), variances, later))
    scale = _root(variances)[:, None] * _root(later)[None, :]
    return jnp.max(_share(residual, scale), initial=0)


def _root(variances: Array) -> Array:
    return jnp.sqrt(jnp.maximum(variances, jnp.zeros_like(variances)))


def _share(part: Array, whole: Array) -> Array:
    """Part / whole; zero where there is no part, infinite where there is no whole."""
    nothing, positive = ~(part > 0), whole > 0
    ratio = part / jnp.where(positive, whole, jnp.ones_like(whole))
    ratio = jnp.where(positive, ratio, jnp.full_like(ratio, jnp.inf))
    return jnp.where(nothing, jnp.zeros_like(ratio), ratio)
