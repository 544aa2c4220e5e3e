"""From an optax transformation to its state-space form.

One step of the optimizer is a function of its state z and of the gradient g. The derivative of that function with
respect to (z, g) is (A, B). Whether the step really *is* that affine function is then decided by values, not by
derivatives: the step is taken on a tree of several leaves, at scales over half the range of the dtype, at many step
counts, and compared with what (A, B) predicts. A constant Jacobian alone would pass `sign_sgd` and `lion`.

`probes` takes the steps, `refusals` finds the words for what it found.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxnm import arguments
from jaxnm.first_order.probes import Layout, Measurement, find_layout, measure
from jaxnm.first_order.refusals import refuse_failure, refuse_flattened, refuse_part, refuse_precision, refuse_step
from jaxnm.first_order.state_space import StateSpace, parameter_units

_Result = TypeVar("_Result")

# Of XLA, for a program that takes longer to compile than to run.
_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@flax.struct.dataclass
class Linearization:
    """An optax transformation as a linear system, with what was found while testing that it is one."""

    method: StateSpace
    """The state-space form after the warm-up; exact if `time_varying` is False."""
    state_units: Float[Array, "n"]
    """Factor from each floating state of optax to the state of `method`: a power of two that brings it to the size of
    the parameters, so that nothing in `method` depends on the units of the gradient. 1 for the parameter."""
    offset: Float[Array, "n"]
    """Constant part of one step, zero for all deterministic methods in common use."""
    time_varying: Bool[Array, ""]
    """Whether A or B change with the step count (schedules, debiased averages): `method` is a snapshot then."""
    stochastic: Bool[Array, ""]
    """Whether the offset changes from step to step (injected noise): `method` describes the mean then."""
    residual: Float[Array, ""]
    """Largest relative difference between a step and its affine prediction, over all scales, leaves and counts."""
    state_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    """What each of the n states is: the parameter first, then the floating leaves of the optimizer's state."""


def from_optax(tx: optax.GradientTransformation, *, warmup_steps: int = 3) -> Linearization:
    """The state-space form of an optax transformation, if it is affine in its state and the gradient.

    Args:
      tx: any optax transformation or chain, with concrete hyperparameters.
      warmup_steps: steps taken before the linearization, a Python int >= 1: first-step flags are then over.

    Returns:
      `Linearization`; `.method` has n = 1 + (floating state leaves a parameter has). sgd, momentum, Nesterov momentum,
      traces, weight decay, scaling and averages without debiasing come out exactly, whatever the learning rate: the
      states of `.method` are those of optax times `.state_units`, powers of two. Schedules and debiased averages
      come back with `time_varying=True`, frozen at step `warmup_steps`. Changes are detected within 24 steps after
      the warm-up and at 15 later counts up to 8e5. Values between the cube roots of the smallest and the largest
      number of the dtype are tried; a nonlinearity that sets in only outside of them is not detected.

    Raises:
      ValueError: the transformation has no state-space form: it is adaptive, normalized, clipped or sign-based, mixes
        coordinates, treats leaves differently (a mask), rounds its state to another dtype, or needs more than
        gradients (line searches). The message says which, and what can be analyzed instead.
      TypeError: `tx` is no optax transformation, or is traced.

    Cost: one compilation of some two steps. Host side: whether `tx` qualifies is decided by values. Differentiable
    in hyperparameters through `analyze_learning_rates`, not here.

    Example:
      >>> import optax
      >>> linearization = from_optax(optax.sgd(0.5, momentum=0.25))
      >>> linearization.method.B
      Array([-0.5,  0.5], dtype=float32)
      >>> linearization.state_units
      Array([1. , 0.5], dtype=float32)
    """
    if isinstance(tx, optax.MultiSteps):
        refuse_part("from_optax", "MultiStepsState")
    if not isinstance(tx, optax.GradientTransformation):
        arguments.refuse(
            "from_optax",
            "tx",
            f"of type {type(tx).__name__}",
            "an optax.GradientTransformation",
            "call the factory first, as in optax.sgd(0.1)",
            error=TypeError,
        )
    arguments.check_count("from_optax", "warmup_steps", warmup_steps, minimum=1)
    linearization, measurement = linearize("from_optax", tx, warmup_steps, alone=True)
    if isinstance(linearization.residual, jax.core.Tracer):
        arguments.refuse(
            "from_optax",
            "tx",
            "traced inside a transformation",
            "a transformation with concrete hyperparameters",
            "use analyze_learning_rates for a batch, or call from_optax outside jit",
            error=TypeError,
        )
    check_affine("from_optax", linearization, measurement)
    return linearization


def is_affine(linearization: Linearization) -> Bool[Array, "..."]:
    """Whether the residual is rounding."""
    return linearization.residual <= _tolerance(linearization.residual.dtype)


def check_affine(function: str, linearization: Linearization, measurement: Measurement) -> None:
    """Refuse a linearization, or a batch of which no member is affine."""
    residuals = np.ravel(linearization.residual)
    if not np.any(np.asarray(is_affine(linearization))):
        member = int(np.argmin(residuals))
        numbers = jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[linearization.residual.ndim :])[member], measurement
        )
        refuse_step(function, numbers, _tolerance(residuals.dtype))


def _tolerance(dtype: Any) -> float:
    return 100 * float(jnp.finfo(dtype).eps)


def linearize(
    function: str, tx: optax.GradientTransformation, warmup_steps: int, *, alone: bool = False
) -> tuple[Linearization, Measurement]:
    """`from_optax` without the verdict: traceable, so that a batch of hyperparameters can be mapped over."""
    layout = _attempt(function, lambda: find_layout(tx))
    _check_layout(function, layout)
    return _attempt(function, _compiled(lambda: _measured(tx, layout, warmup_steps), alone))


def _attempt(function: str, calls_optax: Callable[[], _Result]) -> _Result:
    """The result, or a refusal that says which part of optax failed on a plain tree, without its traceback."""
    # optax is not clean under strict promotion, so the standard rules hold for the calls into it; values that are not
    # finite are an outcome of the test, not a fault
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
        try:
            return calls_optax()
        except Exception as error:
            failure = error
    refuse_failure(function, failure)


def _compiled(function: Callable[[], Any], alone: bool) -> Callable[[], Any]:
    """Jitted; compiled fast if it is a program of its own, which runs once, on a CPU."""
    is_staged = isinstance(jnp.zeros(()), jax.core.Tracer)
    options = _QUICK if alone and not is_staged and jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)


def _measured(tx: optax.GradientTransformation, layout: Layout, warmup_steps: int) -> tuple[Linearization, Measurement]:
    measurement = measure(tx, layout, warmup_steps)
    return _linearization(layout, measurement), measurement


def _check_layout(function: str, layout: Layout) -> None:
    for name in layout.parts:
        refuse_part(function, name)
    for name in layout.flattened:
        refuse_flattened(function, name)
    dtype = jnp.result_type(float)
    for name, state_dtype in layout.coordinate_dtypes():
        if state_dtype != dtype:
            refuse_precision(function, name, state_dtype, dtype)


def _linearization(layout: Layout, measurement: Measurement) -> Linearization:
    matrices, offsets = measurement.matrices, measurement.offsets
    matrix, offset = matrices[0], offsets[0]
    n, dtype = matrix.shape[0], matrix.dtype
    # entry by entry, since a learning rate may be tiny beside the entries of the other states
    noise = 1e3 * jnp.finfo(dtype).eps
    parameter = jnp.zeros(n, dtype).at[0].set(1.0)
    method = StateSpace(matrix[:, :n] + parameter[:, None] * parameter[None, :], matrix[:, n], parameter)
    units = parameter_units(method, powers_of_two=True)
    return Linearization(
        method=method.rescaled(units),
        state_units=units,
        offset=offset * units,
        time_varying=jnp.any(jnp.abs(matrices - matrix[None]) > noise * jnp.abs(matrix)[None]),
        # only a step really taken says whether the offset is noise: a moved counter changes no key
        stochastic=jnp.any(jnp.abs(offsets[1] - offset) > noise * jnp.abs(offset)),
        residual=measurement.residual,
        state_names=("parameter", *layout.names(of_coordinates=True)),
    )
