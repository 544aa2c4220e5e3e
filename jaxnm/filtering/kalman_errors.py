"""What is measured of a Kalman filter's rounding, in standard deviations of the states.

Every operation of a step may be wrong by its rounding. For the covariances that is bounded by a semidefinite matrix,
for the means by the second moments of their errors, and both go through the record as the filter's own errors do:
X_t = A_t X_t-1 A_t^T + L_t with A_t = (1 - K_t H) F. All measures are ratios, so that no unit changes them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from jaxnm.filtering.linear_gaussian import Gain, LinearGaussianModel, observed_part, residual_of, symmetric
from jaxnm.linalg.factorizations import matmul

# up to which measured error, in standard deviations, a result is OK: eps to this power (1e-6 and 3e-3)
_POWER = 0.375


class Rounding(NamedTuple):
    """What rounding did to filtered moments."""

    covariances: Float[Array, "T d d"]
    """The errors of the covariances lie between this and its negative."""
    means: Float[Array, "T d d"]
    """Second moments of the errors of the means."""
    error: Float[Array, ""]
    """The largest: of means in standard deviations, of variances relative to themselves, of the log-evidence."""


class _Local(NamedTuple):
    """Of one update."""

    kept: Float[Array, "d d"]
    covariance: Float[Array, "d d"]
    mean: Float[Array, "d d"]
    observe: Float[Array, "m d"]
    innovation: Float[Array, "m"]
    """Of the variances of the residual."""
    residual: Float[Array, "m"]
    inverse: Float[Array, "m m"]
    weighted: Float[Array, "m"]
    """The residual divided by its covariance."""


def tolerance(dtype: jnp.dtype) -> float:
    """The largest measured error of a result that is OK."""
    return float(jnp.finfo(dtype).eps) ** _POWER


def filter_rounding(
    model: LinearGaussianModel,
    observations: Array,
    means: Array,
    covariances: Array,
    predicted_means: Array,
    predicted_covariances: Array,
    increments: Array,
    gains: Gain,
    method: str,
    apart: tuple[Array, Array] | None = None,
) -> Rounding:
    """Of filtered moments [T, ...] with their gains; `apart` are other means and covariances of the same."""
    args = (model, observations, means, covariances, predicted_means, predicted_covariances, increments, gains, apart)
    args = jax.lax.stop_gradient(args)
    model, observations, means, covariances, predicted_means, predicted_covariances, increments, gains, apart = args
    if len(observations) == 0:
        return Rounding(covariances, covariances, jnp.zeros((), means.dtype))
    u, F = _unit(means), model.transition
    variances, before = _diagonals(covariances), _diagonals(predicted_covariances)
    largest = jnp.max(jnp.maximum(variances, before), 0)
    sizes = jnp.max(jnp.maximum(jnp.abs(means), jnp.abs(predicted_means)), 0)
    of_update = partial(_local, model)
    local = jax.vmap(of_update)(observations, predicted_means, predicted_covariances, means, covariances, gains)
    own_covariance, own_mean = local.covariance, local.mean
    error = jnp.zeros((), means.dtype)
    if apart is not None:
        spread = _relative(jnp.abs(_diagonals(apart[1]) - variances), variances, largest)
        worst = jnp.max(spread, 1)
        error = jnp.max(worst)
        own_covariance = own_covariance + worst[:, None, None] * covariances
        own_mean = own_mean + _diagonal((apart[0] - means) ** 2)

    # what the prediction adds, nothing to the first row
    earlier = lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    is_first = (jnp.arange(len(means)) == 0)[:, None]
    reach = matmul(_root(earlier(variances)), jnp.abs(F).T)
    moved_variances = jnp.where(is_first, 0, u * (reach**2 + jnp.diagonal(model.transition_covariance)[None]))
    moved_size = matmul(jnp.abs(earlier(means)), jnp.abs(F).T) + jnp.abs(model.transition_offset)[None]
    moved_means = jnp.where(is_first, 0, (u * moved_size) ** 2)

    through = matmul(local.kept, F)
    total = accumulated(through, _sandwich(local.kept, _diagonal(moved_variances)) + own_covariance, method)
    total_before = _sandwich(F, earlier(total)) + _diagonal(moved_variances)
    # an error dP of the covariance moves the mean by (1 - K H) dP H^T S^-1 v
    pulled = matmul(local.weighted[:, None], local.observe)[:, 0]
    by_gain = _sandwich(local.kept, total_before) * _quadratic(pulled, total_before)[:, None, None]
    shifts = accumulated(through, _sandwich(local.kept, _diagonal(moved_means)) + own_mean + by_gain, method)
    shifts_before = _sandwich(F, earlier(shifts)) + _diagonal(moved_means)

    of_residual = _sandwich(local.observe, total_before) + _diagonal(local.innovation)
    ratio = jnp.sum(local.inverse * of_residual, (1, 2))
    shift = _sandwich(local.observe, shifts_before) + _diagonal(local.residual**2)
    of_evidence = 0.5 * (ratio + _quadratic(local.weighted, of_residual)) + _root(_quadratic(local.weighted, shift))
    evidence = jnp.sum(of_evidence) / (1 + jnp.sum(jnp.abs(increments)))
    errors = [
        _relative(_diagonals(total), variances, largest),
        _relative(_diagonals(total_before), before, largest),
        _relative(_root(_diagonals(shifts)), _root(variances), sizes),
        _relative(_root(_diagonals(shifts_before)), _root(before), sizes),
        ratio,
        evidence,
    ]
    return Rounding(total, shifts, jnp.maximum(error, jnp.max(jnp.stack([jnp.max(part) for part in errors]))))


def _local(
    model: LinearGaussianModel,
    observation: Array,
    predicted_mean: Array,
    predicted: Array,
    mean: Array,
    covariance: Array,
    update: Gain,
) -> _Local:
    u = _unit(mean)
    seen, observe, noise = observed_part(model, observation)
    gain, kept = jnp.abs(update.gain), jnp.abs(update.kept)
    noises = jnp.where(seen, jnp.diagonal(noise), 0)
    residual = residual_of(model, observation, predicted_mean)
    size = jnp.where(seen, jnp.abs(observation) + jnp.abs(model.observation_offset), 0)
    size = u * (size + matmul(jnp.abs(observe), jnp.abs(predicted_mean)))
    weighted = cho_solve((update.factor, True), residual)
    inverse = cho_solve((update.factor, True), jnp.eye(len(residual), dtype=mean.dtype))
    before, after = _root(jnp.diagonal(predicted)), _root(jnp.diagonal(covariance))
    reach = matmul(jnp.abs(observe), before)
    innovation = u * (reach**2 + noises)
    by_innovation = _sandwich(update.gain, jnp.diag(innovation))
    ratio = jnp.sum(jnp.diagonal(inverse) * innovation)
    # of 1 - K H, whose entries are differences
    of_kept = u * (jnp.diagonal(kept) * before + matmul(gain, reach))
    share = jnp.max(jnp.where(after > 0, _share(of_kept, after), 0))
    sums = u * (matmul(kept, before) ** 2 + matmul(gain**2, noises))
    # Joseph's form is stationary in the gain: the square of the gain's error is left
    squares = ratio * (u * len(residual) * before**2 + jnp.diagonal(by_innovation))
    rounded = u * (jnp.where(jnp.any(seen), jnp.abs(mean), 0) + matmul(gain, jnp.abs(residual)))
    crossed = u * before * matmul(reach, jnp.abs(weighted))
    return _Local(
        kept=update.kept,
        covariance=share * (covariance + jnp.diag(after**2)) + jnp.diag(sums + squares),
        mean=_sandwich(update.gain, jnp.diag(size**2))
        + by_innovation * _quadratic(weighted, jnp.diag(innovation))
        + jnp.diag(rounded**2 + crossed**2),
        observe=observe,
        innovation=innovation,
        residual=size,
        inverse=inverse,
        weighted=weighted,
    )


def smoother_error(
    model: LinearGaussianModel,
    filtered: tuple[Array, Array, Array, Array],
    rounding: Rounding,
    kernel: Array,
    inverses: Array,
    means: Array,
    covariances: Array,
    again: tuple[Array, Array],
    method: str,
) -> Float[Array, ""]:
    """Of smoothed moments [T, ...], T > 0.

    Args:
      model: see there.
      filtered: means and covariances, predicted means and covariances.
      rounding: of the filtered moments.
      kernel: [T - 1, d, d], E in x_t = E x_t+1 + g + noise.
      inverses: [T - 1, d, d], of the predicted covariances from the second on.
      means: smoothed.
      covariances: smoothed.
      again: [T - 1, ...], smoothed means and covariances by one more step back from the later ones.
      method: see `kalman_filter`.
    """
    args = (model, filtered, rounding, kernel, inverses, means, covariances, again)
    model, filtered, rounding, kernel, inverses, means, covariances, again = jax.lax.stop_gradient(args)
    u, F = _unit(means), model.transition
    before, spread = filtered[0][:-1], filtered[1][:-1]
    predicted, predicted_covariances = filtered[2][1:], filtered[3][1:]
    variances = _diagonals(covariances)
    largest, sizes = jnp.max(variances, 0), jnp.max(jnp.abs(means), 0)
    kept = jnp.eye(means.shape[1], dtype=means.dtype)[None] - matmul(kernel, F)
    total, shifts = rounding.covariances[:-1], rounding.means[:-1]
    reach = matmul(_root(_diagonals(spread)), jnp.abs(F).T)
    noises = jnp.diagonal(model.transition_covariance)
    moved = _diagonal(u * (reach**2 + noises[None]))
    by_total, by_moved = _sandwich(kept, total), _sandwich(kernel, moved)
    ahead = _sandwich(F, total)
    weighted = _times(inverses, means[1:] - predicted)

    residual = jnp.abs(matmul(kernel, predicted_covariances) - matmul(spread, F.T))
    scale = _root(variances[:-1])[:, :, None] * _root(_diagonals(predicted_covariances))[:, None, :]
    of_kernel = jnp.max(_share(residual, scale), initial=0)
    size = jnp.abs(before) + _times(jnp.abs(kernel), jnp.abs(predicted) + jnp.abs(means[1:]))
    own_mean = (
        _sandwich(kept, shifts)
        + by_total * _quadratic(weighted, ahead)[:, None, None]
        + by_moved * _quadratic(weighted, moved)[:, None, None]
        + _diagonal(_times(residual, jnp.abs(weighted)) ** 2 + (u * size) ** 2 + (again[0] - means[:-1]) ** 2)
    )
    # an error of the kernel times what the later covariance is, at most the predicted one
    squared = _diagonals(by_total) * jnp.sum(inverses * ahead, (1, 2))[:, None]
    squared = squared + _diagonals(by_moved) * jnp.sum(inverses * moved, (1, 2))[:, None]
    after = _root(variances[:-1])
    share = jnp.max(jnp.where(after > 0, _share(_root(squared), after), 0), 1, initial=0)
    apart = _relative(jnp.abs(_diagonals(again[1]) - variances[:-1]), variances[:-1], largest)
    share = share + jnp.max(apart, 1, initial=0)
    sums = _times(jnp.abs(kept), _root(_diagonals(spread))) ** 2 + matmul(kernel**2, noises)
    doubled = covariances[:-1] + _diagonal(variances[:-1])
    own_covariance = by_total + share[:, None, None] * doubled + _diagonal(u * sums)

    # backwards, from the filtered moments of the last row
    backwards = lambda local, last: accumulated(
        jnp.concatenate([kernel, jnp.zeros_like(last)])[::-1], jnp.concatenate([local, last])[::-1], method
    )[::-1]
    own_mean = backwards(own_mean, rounding.means[-1:])
    own_covariance = backwards(own_covariance, rounding.covariances[-1:])
    errors = [
        _relative(_diagonals(own_covariance), variances, largest),
        _relative(_root(_diagonals(own_mean)), _root(variances), sizes),
        of_kernel,
    ]
    return jnp.max(jnp.stack([jnp.max(part) for part in errors]))


def accumulated(through: Array, local: Array, method: str) -> Float[Array, "T d d"]:
    """X_t = A_t X_t-1 A_t^T + L_t from X_-1 = 0, for A and L [T, d, d]."""
    if method == "associative":

        def join(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
            return matmul(second[0], first[0]), _sandwich(second[0], first[1]) + second[1]

        return jax.lax.associative_scan(join, (through, local))[1]

    def step(before: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        after = _sandwich(row[0], before) + row[1]
        return after, after

    return jax.lax.scan(step, jnp.zeros_like(local[0]), (through, local))[1]


def _unit(like: Array) -> float:
    """The largest relative error of one rounding."""
    return float(jnp.finfo(like.dtype).eps) / 2


def _sandwich(factor: Array, covariance: Array) -> Array:
    return symmetric(matmul(matmul(factor, covariance), factor.mT))


def _quadratic(vectors: Array, matrices: Array) -> Array:
    return jnp.sum(_times(matrices, vectors) * vectors, -1)


def _times(matrices: Array, vectors: Array) -> Array:
    return matmul(matrices, vectors[..., None])[..., 0]


def _diagonals(matrices: Array) -> Array:
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def _diagonal(vectors: Array) -> Array:
    return vectors[:, :, None] * jnp.eye(vectors.shape[1], dtype=vectors.dtype)[None]


def _root(variances: Array) -> Array:
    return jnp.sqrt(jnp.maximum(variances, jnp.zeros_like(variances)))


def _relative(part: Array, whole: Array, largest: Array) -> Array:
    """Part / whole for [T, d]; where a state is known there is no whole, and the largest [d] of the record counts."""
    return _share(part, jnp.where(whole > 0, whole, largest[None]))


def _share(part: Array, whole: Array) -> Array:
    """Part / whole; zero where there is no part, infinite where there is no whole, NaN where the part is."""
    nothing, positive = part <= 0, whole > 0
    ratio = part / jnp.where(positive, whole, jnp.ones_like(whole))
    ratio = jnp.where(positive, ratio, jnp.full_like(ratio, jnp.inf))
    return jnp.where(nothing, jnp.zeros_like(ratio), ratio)
