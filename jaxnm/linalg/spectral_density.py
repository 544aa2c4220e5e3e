"""How the eigenvalues of a large symmetric operator are distributed: stochastic Lanczos quadrature."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int32, Key

from jaxnm import arguments
from jaxnm.linalg.factorizations import safe_norm
from jaxnm.linalg.lanczos import (
    Operator,
    advance,
    checked_operator,
    dimension_of,
    initial_state,
    random_start,
    relative_asymmetry,
    ritz_pairs,
    shapes_of,
    status_of,
)
from jaxnm.status import Status


@flax.struct.dataclass
class SpectralMeasure:
    """Gauss quadratures of the spectral measures of random vectors; their mean estimates the spectral density."""

    nodes: Float[Array, "probes m"]
    """Ritz values, ascending."""
    weights: Float[Array, "probes m"]
    """Nonnegative, with sum 1 over each probe."""
    asymmetry: Float[Array, ""]
    """As in `Tridiagonalization`, over all probes."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT or NOT_SYMMETRIC."""
    dimension: int = flax.struct.field(pytree_node=False)
    """Of the space on which the operator acts."""


class TraceEstimate(NamedTuple):
    """An average over random probes."""

    value: Float[Array, "*values"]
    """The estimate."""
    standard_error: Float[Array, "*values"]
    """Standard deviation of the probes over the root of their number; NaN for one probe."""


def spectral_density(
    operator: Operator,
    like: Any,
    *,
    key: Key[ArrayLike, ""],
    num_steps: int = 64,
    num_probes: int = 8,
    reorthogonalize: bool = True,
    batch_size: int = 1,
) -> SpectralMeasure:
    """Stochastic Lanczos quadrature: how the eigenvalues of a symmetric operator are distributed.

    Args:
      operator: product with the operator, from a pytree to one of the same structure, linear and symmetric.
      like: pytree with the structure, shapes and dtype of the vectors; its values are not read.
      key: for the random probes.
      num_steps: m, nodes a probe (static); at most d.
      num_probes: random probes (static).
      reorthogonalize: as in `lanczos` (static); the weights of ghost copies add up to the right one without it.
      batch_size: how many probes run side by side (static): memory for a basis each.

    Returns:
      `SpectralMeasure(nodes [probes, m], weights [probes, m], asymmetry, status, dimension)`. Pass it to
      `smoothed_density` or `trace_of_function`.

    Raises:
      TypeError and ValueError as `extreme_eigenvalues`.

    Status:
      NONFINITE_INPUT: a product is not finite (the figures are NaN). NOT_SYMMETRIC: beyond sqrt(eps).

    Cost: num_probes times `lanczos`. Not differentiable: a derivative raises TypeError.
    Source: Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017), 1075-1099, algorithm 1; Golub, Meurant,
    "Matrices, Moments and Quadrature" (2010).

    Example:
      >>> measure = spectral_density(lambda v: 2 * v, jnp.zeros(9), key=jax.random.key(0), num_probes=2)
      >>> measure.nodes[:, 0].round(4), measure.weights[:, 0]
      (Array([2., 2.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    name = "spectral_density"
    like = shapes_of(name, "like", like)
    arguments.check_key(name, key)
    for argument, count in (("num_steps", num_steps), ("num_probes", num_probes), ("batch_size", batch_size)):
        arguments.check_count(name, argument, count, minimum=1)
    arguments.check_flag(name, "reorthogonalize", reorthogonalize)
    steps = min(num_steps, dimension_of(like))
    starts = jax.vmap(partial(random_start, like=like))(jax.random.split(key, num_probes))
    nodes, weights, asymmetry, status = _spectral_density(
        checked_operator(name, operator, like), starts, steps, bool(reorthogonalize), batch_size
    )
    return SpectralMeasure(nodes, weights, asymmetry, status, dimension_of(like))


def trace_of_function(measure: SpectralMeasure, function: Callable[[Array], Array]) -> TraceEstimate:
    """Estimate of the trace of f(A), A the operator of a spectral measure: d times the mean of its quadratures.

    Args:
      measure: from `spectral_density`.
      function: f, elementwise on an array of eigenvalues [probes, m]; it may return [..., probes, m].

    Returns:
      `TraceEstimate(value [...], standard_error [...])`: the log-determinant for f = log, the number of eigenvalues
      below c for f = (x < c), and so on. The standard error is that of the random probes; that of the quadrature is
      zero for polynomials f of degree up to 2 m - 1.

    Raises:
      TypeError: no measure, no function, or complex values of f. ValueError: values of another shape.

    Cost: one evaluation of f a node. Differentiable in what f depends on.
    Source: Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017), 1075-1099.

    Example:
      >>> measure = spectral_density(lambda v: 2 * v, jnp.zeros(9), key=jax.random.key(0), num_probes=2)
      >>> round(float(trace_of_function(measure, jnp.square).value), 3)
      36.0
    """
    name = "trace_of_function"
    _check_measure(name, measure)
    if not callable(function):
        got = f"a {type(function).__name__}"
        arguments.refuse(
            name, "function", got, "a function", "pass one of the eigenvalues, as jnp.log", error=TypeError
        )
    values = jnp.asarray(function(measure.nodes))
    arguments.check_real(name, "the value of function", values)
    if values.shape[-2:] != measure.nodes.shape:
        arguments.refuse(
            name,
            "the value of function",
            f"of shape {values.shape}",
            f"[..., {measure.nodes.shape[0]}, {measure.nodes.shape[1]}], as its argument",
            "use elementwise operations",
        )
    return _trace(values, measure.weights, measure.dimension)


def smoothed_density(measure: SpectralMeasure, points: Float[ArrayLike, "*points"], width: ArrayLike) -> TraceEstimate:
    """Spectral density at some points, each eigenvalue smeared out to a Gaussian: the integral over the line is 1.

    Args:
      measure: from `spectral_density`.
      points: [...] where to evaluate.
      width: standard deviation of the Gaussian, > 0; structure finer than that is not seen, and structure finer than
        the distance of the nodes is not known.

    Returns:
      `TraceEstimate(value [...], standard_error [...])`, per unit of eigenvalue; NaN for a traced width <= 0.

    Raises:
      ValueError: a width that is not positive. TypeError: an integer or complex dtype, or no measure.

    Cost: one Gaussian a point and node. Differentiable in points and width.
    Source: Lin, Saad, Yang, SIAM Review 58 (2016), 34-65, section 3.2.

    Example:
      >>> measure = spectral_density(lambda v: 2 * v, jnp.zeros(9), key=jax.random.key(0), num_probes=2)
      >>> smoothed_density(measure, jnp.array([2.0, 3.0]), 1.0).value.round(4)
      Array([0.3989, 0.242 ], dtype=float32)
    """
    _check_measure("smoothed_density", measure)
    arguments.check_number("smoothed_density", "width", width, "> 0", lambda value: value > 0, "try the grid spacing")
    dtype = measure.nodes.dtype
    points, width = arguments.to_arrays("smoothed_density", points=points, width=width)
    arguments.check_real("smoothed_density", "points or width", points)
    return _smoothed_density(measure, points.astype(dtype), width.astype(dtype))


def _check_measure(function: str, measure: Any) -> None:
    if not isinstance(measure, SpectralMeasure):
        got = f"a {type(measure).__name__}"
        remedy = "pass what spectral_density returns"
        arguments.refuse(function, "measure", got, "a SpectralMeasure", remedy, error=TypeError)


@jax.jit
def _smoothed_density(measure: SpectralMeasure, points: Array, width: Array) -> TraceEstimate:
    distance = (jnp.expand_dims(points, (-2, -1)) - measure.nodes[(None,) * points.ndim]) / width
    height = 1 / (width * jnp.sqrt(2 * jnp.asarray(math.pi, width.dtype)))
    gaussians = height * jnp.exp(-(distance**2) / 2)
    density = jnp.sum(gaussians * measure.weights[(None,) * points.ndim], -1)
    return _mean_over_probes(arguments.nan_unless(density, width > 0), jnp.ones((), width.dtype))


@partial(jax.jit, static_argnums=2)
def _trace(values: Array, weights: Array, dimension: int) -> TraceEstimate:
    weights = jnp.broadcast_to(weights, values.shape)
    # a node without weight may be one where f is not finite
    weighted = jnp.where(weights > 0, values.astype(weights.dtype), 0) * weights
    return _mean_over_probes(jnp.sum(weighted, -1), jnp.asarray(dimension, weights.dtype))


def _mean_over_probes(values: Array, scale: Array) -> TraceEstimate:
    """Mean over the last axis, times `scale`."""
    probes = values.shape[-1]
    if probes == 1:
        return TraceEstimate(scale * values[..., 0], jnp.full(values.shape[:-1], jnp.nan, values.dtype))
    mean = jnp.mean(values, -1)
    deviation = safe_norm(values - mean[..., None], -1)  # with a derivative where all probes say the same
    return TraceEstimate(scale * mean, scale * deviation / jnp.sqrt(jnp.asarray(probes * (probes - 1), values.dtype)))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _spectral_density(
    operator: Partial, starts: Any, num_steps: int, reorthogonalize: bool, batch_size: int
) -> tuple[Array, Array, Array, Array]:
    remedy = "differentiate extreme_eigenvalues, or apply jax.lax.stop_gradient to what the operator depends on"
    frozen = arguments.without_derivative("spectral_density", "operator", operator, remedy=remedy)

    def probe(start: Any) -> tuple[Array, Array, Array, Array]:
        state = advance(frozen, initial_state(start, num_steps, reorthogonalize), jnp.int32(num_steps))
        ritz, status = ritz_pairs(state), status_of(start, state)
        finite = status != jnp.int32(Status.NONFINITE_INPUT)
        used = jnp.arange(num_steps, dtype=jnp.int32) < ritz.size
        nodes = jnp.where(used, ritz.values, ritz.values[ritz.size - 1])
        weights = jnp.where(used, ritz.vectors[0] ** 2, 0)
        return (
            arguments.nan_unless(nodes, finite),
            arguments.nan_unless(weights, finite),
            relative_asymmetry(state),
            status,
        )

    nodes, weights, asymmetry, status = jax.lax.map(probe, starts, batch_size=batch_size)
    failing = jnp.argmax(status != jnp.int32(Status.OK))
    return nodes, weights, jnp.max(asymmetry), status[failing]
