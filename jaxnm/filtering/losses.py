"""What learned localization is trained on: the error of the mean prediction, and a bound from the particles."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.filtering.weights import normalize

Heading = Literal["circle", "turns"]
_HEADINGS = ("circle", "turns")


def localization_loss(
    prediction: Float[ArrayLike, "time batch 3"],
    poses: Float[ArrayLike, "time batch 3"],
    size: Float[ArrayLike, "2"],
    *,
    decay: Float[ArrayLike, ""] = 0.001,
    heading_weight: Float[ArrayLike, ""] = 0.1,
    heading: Heading = "circle",
) -> Float[Array, ""]:
    """The squared error of a predicted pose, weighted towards the end of the sequence.

    The mean over the batch of sum_t b_t (|xy error|^2 + heading_weight * heading error^2), with b_t proportional to
    exp(decay t) and of total one; positions are relative to the sides of the world.

    Args:
      prediction: [T, B, 3], (x / nx, y / ny, heading / 2 pi), as `CellOutput.mean`.
      poses: [T, B, 3], (x, y, heading), in cells and radians.
      size: [2], (nx, ny) in cells.
      decay: 0.1 in the particle-filter RNN, 0.001 in the memory-efficient one. May be traced.
      heading_weight: may be traced.
      heading: "circle", |(cos, sin) error|^2, which knows that a full turn is none; "turns", the squared difference in
        turns, as published for the particle-filter RNN.

    Returns:
      the loss, a scalar of the dtype of the predictions; zero for T = 0.

    Raises:
      ValueError: a wrong shape, an unknown heading, a negative weight.

    Differentiable in the prediction, to any order.
    Source: X. Ma, P. Karkus, D. Hsu, W. S. Lee, AAAI 2020, section 4.3, and its program; R. Korkin, I. Oseledets,
    A. Katrutsa, arXiv:2310.01595, its program (the circle).

    Example:
      >>> poses = jnp.array([[[5.0, 5.0, 0.0]]])
      >>> prediction = jnp.array([[[0.5, 0.7, 1.0]]])
      >>> round(float(localization_loss(prediction, poses, jnp.array([10.0, 10.0]))), 5)
      0.04
    """
    prediction, poses, size, decay, heading_weight = _checked(
        "localization_loss", 3, prediction, poses, size, decay, heading_weight, heading
    )
    return _localization_loss(prediction, poses, size, decay, heading_weight, heading)


def elbo_loss(
    predictions: Float[ArrayLike, "time batch particles 3"],
    poses: Float[ArrayLike, "time batch 3"],
    size: Float[ArrayLike, "2"],
    log_weights: Float[ArrayLike, "time batch particles"] | None = None,
    *,
    weighted: bool = False,
    scale: Float[ArrayLike, ""] = 1.0,
    decay: Float[ArrayLike, ""] = 0.001,
    heading_weight: Float[ArrayLike, ""] = 0.1,
    heading: Heading = "circle",
) -> Float[Array, ""]:
    """The negative logarithm of how likely the particles make the true pose, an evidence lower bound of training.

    With e_i the error of particle i, as in `localization_loss`, b_t of total one:

        as published:  mean over t and the batch of  -log (1/K) sum_i exp(-b_t e_i^2 / scale^2), for x, y and the
                       heading each; the mean of the first two and heading_weight times the last are added,
        weighted:      mean over the batch of  -sum_t b_t log sum_i w_i exp(-|e_i|^2 / scale^2), with
                       |e|^2 = |xy error|^2 + heading_weight * heading error^2.

    The published form has b_t inside the exponent, which makes every Gaussian about T times wider than it says, and
    does not use the weights; the weighted form is what the derivation of the bound gives.

    Args:
      predictions: [T, B, K, 3], as `CellOutput.predictions`.
      poses: [T, B, 3], (x, y, heading), in cells and radians.
      size: [2], (nx, ny) in cells.
      log_weights: [T, B, K], as `CellOutput.log_weights`; needed by the weighted form and by no other.
      weighted: which form (static).
      scale: of the Gaussian, relative to the sides of the world; positive, may be traced.
      decay: as in `localization_loss`.
      heading_weight: as in `localization_loss`.
      heading: as in `localization_loss`.

    Returns:
      the loss, a scalar of the dtype of the predictions; zero for T = 0.

    Raises:
      ValueError: a wrong shape, an unknown heading, a scale that is not positive, weighted without log_weights.

    Differentiable in predictions and log_weights.
    Source: X. Ma, P. Karkus, D. Hsu, W. S. Lee, AAAI 2020, section 4.3, and its program.

    Example:
      >>> poses = jnp.array([[[5.0, 5.0, 0.0]]])
      >>> predictions = jnp.array([[[[0.5, 0.7, 0.0], [0.5, 0.5, 0.0]]]])
      >>> log_weights = jnp.log(jnp.array([[[0.25, 0.75]]]))
      >>> round(float(elbo_loss(predictions, poses, jnp.array([10.0, 10.0]), log_weights, weighted=True)), 5)
      0.00985
    """
    predictions, poses, size, decay, heading_weight = _checked(
        "elbo_loss", 4, predictions, poses, size, decay, heading_weight, heading
    )
    positive = lambda value: value > 0
    arguments.check_number("elbo_loss", "scale", scale, "positive", positive, "1 is the published one")
    scale = arguments.constant(scale, predictions.dtype)
    arguments.check_flag("elbo_loss", "weighted", weighted)
    if not weighted:
        return _published_elbo(predictions, poses, size, scale, decay, heading_weight, heading)
    if log_weights is None:
        arguments.refuse("elbo_loss", "log_weights", "None", "[T, B, K] for weighted=True", "pass output.log_weights")
    (log_weights,) = arguments.to_arrays("elbo_loss", log_weights=log_weights)
    expected = predictions.shape[:3]
    arguments.check_shape(
        "elbo_loss", "log_weights", log_weights, f"{expected} (T, B, K)", lambda shape: shape == expected
    )
    log_weights = log_weights.astype(predictions.dtype)
    return _weighted_elbo(predictions, poses, size, log_weights, scale, decay, heading_weight, heading)


def _checked(
    function: str,
    ndim: int,
    predictions: ArrayLike,
    poses: ArrayLike,
    size: ArrayLike,
    decay: ArrayLike,
    heading_weight: ArrayLike,
    heading: str,
) -> list[Array]:
    name = "prediction" if ndim == 3 else "predictions"
    (predictions,) = arguments.to_arrays(function, **{name: predictions})
    dtype = predictions.dtype
    poses, size = arguments.to_arrays(function, poses=poses, size=size)
    arguments.check_real(function, "poses or size", poses)
    poses, size = poses.astype(dtype), size.astype(dtype)
    arguments.check_shape(
        function,
        name,
        predictions,
        "[T, B, 3]" if ndim == 3 else "[T, B, K, 3] with K >= 1",
        lambda shape: len(shape) == ndim and shape[-1] == 3 and (ndim == 3 or shape[2] >= 1),
    )
    expected = (*predictions.shape[:2], 3)
    arguments.check_shape(function, "poses", poses, f"{expected} (T, B, 3)", lambda shape: shape == expected)
    arguments.check_shape(function, "size", size, "[2]", lambda shape: shape == (2,), "give (nx, ny)")
    arguments.check_number(function, "decay", decay, "finite", lambda value: True, "0 weighs all times equally")
    arguments.check_number(function, "heading_weight", heading_weight, ">= 0", lambda value: value >= 0, "try 0.1")
    arguments.check_option(function, "heading", heading, _HEADINGS, "use 'circle'")
    return [predictions, poses, size, *(arguments.constant(value, dtype) for value in (decay, heading_weight))]


def _time_weights(num: int, decay: Array) -> Array:
    """b_t [T]; the exponent is taken from the larger end, so that no decay overflows."""
    return jnp.exp(normalize(decay * jnp.arange(num, dtype=decay.dtype))[0]) if num else jnp.zeros(0, decay.dtype)


def _squared_errors(predictions: Array, poses: Array, size: Array, heading: str) -> Array:
    """[..., 3], of x and y relative to the sides of the world, and of the heading."""
    positions = (predictions[..., :2] - poses[..., :2] / size.reshape((1,) * (poses.ndim - 1) + (2,))) ** 2
    if heading == "turns":
        turned = (predictions[..., 2:] - poses[..., 2:] / (2 * np.pi)) ** 2
    else:
        # |(cos a, sin a) - (cos b, sin b)|^2 without cancellation
        turned = 4 * jnp.sin(np.pi * predictions[..., 2:] - poses[..., 2:] / 2) ** 2
    return jnp.concatenate([positions, turned], -1)


def _combined(errors: Array, heading_weight: Array) -> Array:
    return errors[..., 0] + errors[..., 1] + heading_weight * errors[..., 2]


@partial(jax.jit, static_argnums=5)
def _localization_loss(
    prediction: Array, poses: Array, size: Array, decay: Array, heading_weight: Array, heading: str
) -> Array:
    errors = _combined(_squared_errors(prediction, poses, size, heading), heading_weight)
    return jnp.sum(_time_weights(errors.shape[0], decay)[:, None] * errors) / max(errors.shape[1], 1)


@partial(jax.jit, static_argnums=6)
def _published_elbo(
    predictions: Array, poses: Array, size: Array, scale: Array, decay: Array, heading_weight: Array, heading: str
) -> Array:
    errors = _squared_errors(predictions, poses[:, :, None], size, heading)
    times, batch, particles, _ = errors.shape
    weights = _time_weights(times, decay)[:, None, None, None]
    parts = -jax.nn.logsumexp(-weights * errors / scale**2, axis=2) + math.log(particles)
    positions, turned = jnp.sum(parts[..., :2]) / 2, jnp.sum(parts[..., 2])
    return (positions + heading_weight * turned) / max(times * batch, 1)


@partial(jax.jit, static_argnums=7)
def _weighted_elbo(
    predictions: Array,
    poses: Array,
    size: Array,
    log_weights: Array,
    scale: Array,
    decay: Array,
    heading_weight: Array,
    heading: str,
) -> Array:
    errors = _combined(_squared_errors(predictions, poses[:, :, None], size, heading), heading_weight)
    log_likelihood = jax.nn.logsumexp(normalize(log_weights)[0] - errors / scale**2, axis=2)
    return -jnp.sum(_time_weights(errors.shape[0], decay)[:, None] * log_likelihood) / max(errors.shape[1], 1)
