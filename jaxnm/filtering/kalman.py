"""Kalman filter and smoother with log-evidence and missing data, step by step or by a parallel scan."""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Bool, Float, Int32

from jaxnm import arguments
from jaxnm.filtering.kalman_errors import Rounding, filter_rounding, smoother_error, tolerance
from jaxnm.filtering.linear_gaussian import (
    Gain,
    LinearGaussianModel,
    check_model_and_observations,
    gain_of,
    is_semidefinite,
    log_density_of_residual,
    observed_part,
    residual_of,
    symmetric,
)
from jaxnm.linalg.factorizations import cholesky, matmul, solve
from jaxnm.status import Status, first_failing
from jaxnm.trees import all_finite

Method = Literal["sequential", "associative"]
_METHODS = ("sequential", "associative")


@flax.struct.dataclass
class KalmanResult:
    """The normal distributions of every state given the observations so far, and before its own."""

    means: Float[Array, "T d"]
    covariances: Float[Array, "T d d"]
    predicted_means: Float[Array, "T d"]
    """Given the observations before; row 0 is the initial distribution."""
    predicted_covariances: Float[Array, "T d d"]
    log_evidence: Float[Array, ""]
    """Log-density of all that was observed."""
    log_evidence_increments: Float[Array, "T"]
    """Log-density of each observation given those before; zero where all of it is missing."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, NONFINITE_RESULT or INACCURATE."""


@flax.struct.dataclass
class KalmanSmoothing:
    """The normal distributions of every state, and of neighbours, given all observations."""

    means: Float[Array, "T d"]
    covariances: Float[Array, "T d d"]
    cross_covariances: Float[Array, "T-1 d d"]
    """Of x_t (rows) and x_t+1 (columns)."""
    log_evidence: Float[Array, ""]
    """Log-density of all that was observed."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, NONFINITE_RESULT or INACCURATE."""


_Result = TypeVar("_Result", KalmanResult, KalmanSmoothing)


def kalman_filter(
    model: LinearGaussianModel, observations: Float[ArrayLike, "T m"], *, method: Method = "sequential"
) -> KalmanResult:
    """Exact filtering of a linear-Gaussian model.

    Covariances are updated in Joseph's form, so that they stay symmetric and positive semidefinite in float32 too.

    Args:
      model: d states, m observed components; covariances may be singular.
      observations: [T, m], the first of them of the initial state. NaN is missing, a component or a whole row.
      method: "sequential" (static) or "associative", which takes O(log T) steps where there are processors for it.

    Returns:
      `KalmanResult(means [T, d], covariances [T, d, d], predicted_means, predicted_covariances, log_evidence,
      log_evidence_increments [T], status)`, of the common dtype of model and observations. With T = 0 the evidence
      is one, its logarithm 0.

    Raises:
      ValueError: shapes that do not fit, an unknown method. TypeError: integer or complex arrays.

    Status:
      NONFINITE_INPUT: a model with inf or NaN, or an infinite observation. OUT_OF_RANGE: a covariance that is not
      symmetric and positive semidefinite, or R is singular and so is the covariance of an observation given those
      before (H P H^T + R); "associative" wants H Q H^T + R positive definite besides. NONFINITE_RESULT: overflow. All
      is NaN then. INACCURATE: digits are lost, because a prior variance is far above that of the observations, an
      offset is common to all observations, or an outlier multiplies the rounding of a gain. Measured is what the
      rounding of each operation does to the result, carried along the record as the filter carries its errors, and of
      "associative" how far its result is from one more step of the filter. OK where that is below eps^(3/8), 1e-6 in
      float64 and 3e-3 in float32: for means in standard deviations (where that is zero, in their largest size), for
      variances relative to themselves, for the log-evidence relative to one and the sizes of its increments. The
      result is that of the arithmetic, and NaN where a covariance lost its definiteness.

    Cost: T steps of 6 d^3 + O(m d^2 + m^3) multiplications and 13 d^3 for the measure; "associative" does about three
    times the work.
    Differentiable in model and observations, in every order, wherever the status is OK.
    Source: S. Sarkka, A. F. Garcia-Fernandez, IEEE Trans. Automat. Control 66 (2021), 299-306, Lemmas 7 and 8
    ("associative"); P. D. Joseph's form: e.g. A. Gelb, Applied Optimal Estimation (1974), equation 8.2-9.

    Example:
      >>> one = jnp.eye(1)
      >>> level = LinearGaussianModel(jnp.zeros(1), one, one, one, one, 3 * one)
      >>> result = kalman_filter(level, jnp.array([[4.0], [jnp.nan]]))
      >>> result.means[:, 0], result.covariances[:, 0, 0]
      (Array([1., 1.], dtype=float32), Array([0.75, 1.75], dtype=float32))
    """
    checked, array = check_model_and_observations("kalman_filter", model, observations)
    return _kalman_filter(checked, array, _checked_method("kalman_filter", method, array))


def kalman_smoother(
    model: LinearGaussianModel, observations: Float[ArrayLike, "T m"], *, method: Method = "sequential"
) -> KalmanSmoothing:
    """Exact smoothing of a linear-Gaussian model: Rauch, Tung and Striebel's backward pass after the filter.

    Args:
      model: as in `kalman_filter`.
      observations: [T, m], NaN where missing.
      method: as in `kalman_filter`, for both passes.

    Returns:
      `KalmanSmoothing(means [T, d], covariances [T, d, d], cross_covariances [T - 1, d, d], log_evidence, status)`.
      Covariances are sums of semidefinite products. Predicted covariances may be singular: no weight is given to
      directions in which they vanish.

    Raises:
      ValueError: shapes that do not fit, an unknown method. TypeError: integer or complex arrays.

    Status: as `kalman_filter`.
    Cost: about twice that of `kalman_filter`.
    Differentiable in model and observations wherever the status is OK; where predicted covariances are singular, only
    in parameters that leave their range as it is.
    Source: H. E. Rauch, F. Tung, C. T. Striebel, AIAA J. 3 (1965), 1445-1450; Sarkka and Garcia-Fernandez (2021),
    Lemmas 9 and 10 ("associative").

    Example:
      >>> one = jnp.eye(1)
      >>> level = LinearGaussianModel(jnp.zeros(1), 3 * one, one, one, one, 12 * one)
      >>> kalman_smoother(level, jnp.array([[jnp.nan], [4.0]])).means[:, 0]
      Array([0.75, 1.  ], dtype=float32)
    """
    checked, array = check_model_and_observations("kalman_smoother", model, observations)
    return _kalman_smoother(checked, array, _checked_method("kalman_smoother", method, array))


def _checked_method(function: str, method: str, observations: Array) -> str:
    """The method; nothing is to be joined in a series of one."""
    if method not in _METHODS:
        arguments.refuse(function, "method", repr(method), f"one of {', '.join(_METHODS)}", "see the docstring")
    return method if len(observations) > 1 else "sequential"


# ------------------------------------------------------------------------------------------------------------- filter


@partial(jax.jit, static_argnums=2)
def _kalman_filter(model: LinearGaussianModel, observations: Array, method: str) -> KalmanResult:
    result, measured, _ = _filter(model, observations, method)
    return _with_status(result, measured, model, observations)


class _Measured(NamedTuple):
    """What was seen on the way."""

    singular: Bool[Array, "..."]
    """Whether the covariance of a residual was not positive definite."""
    collapsed: Bool[Array, "..."]
    """Whether stretches of time in range were joined to one that is not finite: a matrix to divide by was singular."""
    error: Float[Array, "..."]
    """Of means in standard deviations, of variances relative to themselves, and of the log-evidence."""


def _filter(model: LinearGaussianModel, observations: Array, method: str) -> tuple[KalmanResult, _Measured, Rounding]:
    """Without the NaN and the status of a failure."""
    singular = collapsed = jnp.bool_(False)
    apart = None
    if method == "sequential":

        def step(predicted: tuple[Array, Array], observation: Array) -> tuple[tuple[Array, Array], Any]:
            result, gain = _update(model, *predicted, observation)
            return _predict(model, result.means, result.covariances), (result, gain)

        _, (result, gains) = jax.lax.scan(step, (model.initial_mean, model.initial_covariance), observations)
    else:
        means, covariances, singular, collapsed = _filtered_in_parallel(model, observations)
        # the update is done once more from the predicted moments: evidence, and covariances in Joseph's form
        later = jax.vmap(partial(_predict, model))(means[:-1], covariances[:-1])
        first = (model.initial_mean[None], model.initial_covariance[None])
        predicted = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, later)
        result, gains = jax.vmap(partial(_update, model))(predicted[0], predicted[1], observations)
        apart = means, covariances
    moments = (result.means, result.covariances, result.predicted_means, result.predicted_covariances)
    rounding = filter_rounding(model, observations, *moments, result.log_evidence_increments, gains, method, apart)
    measured = _Measured(jnp.any(gains.singular) | singular, collapsed, rounding.error)
    return dataclasses.replace(result, log_evidence=jnp.sum(result.log_evidence_increments)), measured, rounding


def _predict(model: LinearGaussianModel, mean: Array, covariance: Array) -> tuple[Array, Array]:
    moved = matmul(matmul(model.transition, covariance), model.transition.T)
    return (
        matmul(model.transition, mean) + model.transition_offset,
        symmetric(moved) + model.transition_covariance,
    )


def _update(
    model: LinearGaussianModel, mean: Array, covariance: Array, observation: Array
) -> tuple[KalmanResult, Gain]:
    """Bayes' rule for one row."""
    seen, observe, noise = observed_part(model, observation)
    update = gain_of(covariance, observe, noise)
    residual = residual_of(model, observation, mean)
    increment = log_density_of_residual(residual, update.factor, seen)
    result = KalmanResult(
        means=mean + matmul(update.gain, residual),
        covariances=update.covariance,
        predicted_means=mean,
        predicted_covariances=covariance,
        log_evidence=increment,
        log_evidence_increments=increment,
        status=jnp.int32(Status.OK),
    )
    return result, update


@flax.struct.dataclass
class _Element:
    """p(x_j | y_i..j, x_i-1) = N(A x + b, C) and p(y_i..j | x_i-1) ~ exp(eta x - x J x / 2) as functions of x_i-1."""

    A: Array
    b: Array
    C: Array
    eta: Array
    J: Array


def _filtered_in_parallel(
    model: LinearGaussianModel, observations: Array
) -> tuple[Array, Array, Bool[Array, ""], Bool[Array, ""]]:
    """Filtered means and covariances, whether an element had a singular innovation, and whether joining collapsed."""

    def element(is_first: Array, observation: Array) -> tuple[_Element, Array]:
        # the initial state comes from anywhere
        transition = jnp.where(is_first, 0, model.transition)
        offset = jnp.where(is_first, model.initial_mean, model.transition_offset)
        covariance = jnp.where(is_first, model.initial_covariance, model.transition_covariance)
        _, observe, noise = observed_part(model, observation)
        update = gain_of(covariance, observe, noise)
        residual = residual_of(model, observation, offset)
        seen_transition = matmul(observe, transition)
        weighted = cho_solve((update.factor, True), seen_transition)
        return (
            _Element(
                A=transition - matmul(update.gain, seen_transition),
                b=offset + matmul(update.gain, residual),
                C=update.covariance,
                eta=matmul(weighted.T, residual),
                J=symmetric(matmul(seen_transition.T, weighted)),
            ),
            update.singular,
        )

    elements, singular = jax.vmap(element)(jnp.arange(len(observations)) == 0, observations)
    joined = jax.lax.associative_scan(jax.vmap(_join), elements)
    collapsed = all_finite(elements) & ~all_finite(joined)
    return joined.b, joined.C, jnp.any(singular), collapsed


def _join(first: _Element, second: _Element) -> _Element:
    """Both stretches of time; (I + J C)^-1 is the transpose of (I + C J)^-1, so that one solve is enough."""
    d = first.b.shape[0]
    start = (first.b + matmul(first.C, second.eta))[:, None]
    right = jnp.concatenate([first.A, first.C, start], axis=1)
    solved = solve(jnp.eye(d, dtype=right.dtype) + matmul(first.C, second.J), right)
    through, spread, centre = solved[:, :d], solved[:, d : 2 * d], solved[:, 2 * d]
    return _Element(
        A=matmul(second.A, through),
        b=matmul(second.A, centre) + second.b,
        C=symmetric(matmul(matmul(second.A, spread), second.A.T)) + second.C,
        eta=matmul(through.T, second.eta - matmul(second.J, first.b)) + first.eta,
        J=symmetric(matmul(matmul(through.T, second.J), first.A)) + first.J,
    )


# ----------------------------------------------------------------------------------------------------------- smoother


@partial(jax.jit, static_argnums=2)
def _kalman_smoother(model: LinearGaussianModel, observations: Array, method: str) -> KalmanSmoothing:
    filtered, measured, rounding = _filter(model, observations, method)
    means, covariances = filtered.means, filtered.covariances
    backward = partial(_backward_kernel, model)
    kernels = jax.vmap(backward)(
        means[:-1], covariances[:-1], filtered.predicted_means[1:], filtered.predicted_covariances[1:]
    )
    if len(observations) == 0:
        cross = covariances
    else:
        last = (jnp.zeros_like(covariances[-1:]), means[-1:], covariances[-1:])
        means, covariances = _backward(kernels, last, method)
        cross = matmul(kernels[0], covariances[1:])
        inverses = jax.vmap(partial(_divided, jnp.eye(model.initial_mean.shape[0], dtype=means.dtype)))(
            jax.lax.stop_gradient(filtered.predicted_covariances[1:])
        )
        known = (filtered.means, filtered.covariances, filtered.predicted_means, filtered.predicted_covariances)
        _, *again = jax.vmap(_through)((jnp.zeros_like(kernels[0]), means[1:], covariances[1:]), kernels)
        apart = smoother_error(
            model, known, rounding, kernels[0], inverses, means, covariances, (again[0], again[1]), method
        )
        measured = measured._replace(error=jnp.maximum(measured.error, apart))
    result = KalmanSmoothing(means, covariances, cross, filtered.log_evidence, filtered.status)
    return _with_status(result, measured, model, observations)


def _backward(
    kernels: tuple[Array, Array, Array], last: tuple[Array, Array, Array], method: str
) -> tuple[Array, Array]:
    """Means and covariances [T, ...] from kernels [T - 1, ...] and the last of them, which comes from nowhere."""
    if method == "associative":
        elements = jax.tree.map(lambda *parts: jnp.concatenate(parts), kernels, last)
        _, means, covariances = jax.lax.associative_scan(jax.vmap(_through), elements, reverse=True)
        return means, covariances

    def step(later: tuple[Array, Array, Array], kernel: tuple[Array, Array, Array]) -> tuple:
        smoothed = _through(later, kernel)
        return smoothed, smoothed[1:]

    end = jax.tree.map(lambda leaf: leaf[0], last)
    _, (means, covariances) = jax.lax.scan(step, end, kernels, reverse=True)
    return jnp.concatenate([means, last[1]]), jnp.concatenate([covariances, last[2]])


def _through(later: tuple[Array, Array, Array], earlier: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """The kernel (E, g, L), x_t = E x_s + g + N(0, L), by way of the state in between."""
    (E_later, g_later, L_later), (E, g, L) = later, earlier
    return matmul(E, E_later), matmul(E, g_later) + g, symmetric(matmul(matmul(E, L_later), E.T)) + L


def _backward_kernel(
    model: LinearGaussianModel, mean: Array, covariance: Array, predicted_mean: Array, predicted_covariance: Array
) -> tuple[Array, Array, Array]:
    """The state given the next one and the observations so far, as (E, g, L); L in Joseph's form."""
    E = _divided(matmul(model.transition, covariance), predicted_covariance).T
    kept = jnp.eye(len(mean), dtype=mean.dtype) - matmul(E, model.transition)
    spread = matmul(matmul(kept, covariance), kept.T) + matmul(matmul(E, model.transition_covariance), E.T)
    return E, mean - matmul(E, predicted_mean), symmetric(spread)


def _divided(right: Array, covariance: Array) -> Array:
    """covariance^-1 @ right, for columns of right in its range if it is singular.

    Components are scaled to unit variance. If that is singular to rounding, it is loaded with as much as rounding; what
    enters the directions without variance is multiplied by zero where it is used.
    """
    d, eps = len(covariance), float(jnp.finfo(covariance.dtype).eps)
    variance = jnp.diagonal(covariance)
    positive = variance > 0
    scale = jnp.sqrt(jnp.where(positive, variance, 1))
    eye = jnp.eye(d, dtype=covariance.dtype)
    correlation = covariance / (scale[:, None] * scale[None, :]) + jnp.diag(jnp.where(positive, 0, 1).astype(eye.dtype))
    regular = jnp.all(jnp.isfinite(cholesky(jax.lax.stop_gradient(correlation))))
    factor = cholesky(correlation + jnp.where(regular, 0, 16 * d * eps) * eye)
    return cho_solve((factor, True), right / scale[:, None]) / scale[:, None]


# ------------------------------------------------------------------------------------------------------------ failures


def _with_status(result: _Result, measured: _Measured, model: LinearGaussianModel, observations: Array) -> _Result:
    """With the status, and NaN throughout where there is no result."""
    model, observations = jax.lax.stop_gradient((model, observations))
    not_finite = ~all_finite(model) | jnp.any(jnp.isinf(observations))
    covariances = (model.initial_covariance, model.transition_covariance, model.observation_covariance)
    indefinite = ~jnp.all(jnp.stack([is_semidefinite(covariance) for covariance in covariances]))
    # beside noise in every direction a singular covariance is one that rounding made so
    noisy = jnp.all(jnp.isfinite(cholesky(model.observation_covariance)))
    lost = (measured.singular & noisy) | measured.collapsed
    status = first_failing(
        (not_finite, Status.NONFINITE_INPUT),
        (indefinite | (measured.singular & ~noisy), Status.OUT_OF_RANGE),
        (lost, Status.INACCURATE),
        (~all_finite(result), Status.NONFINITE_RESULT),
        (~(measured.error <= tolerance(observations.dtype)), Status.INACCURATE),
    )
    good = (status == Status.OK) | ((status == Status.INACCURATE) & ~lost)
    spoil = lambda leaf: (
        arguments.nan_unless(leaf, good, leaf.ndim) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
    )
    return jax.tree.map(spoil, result).replace(status=status)
