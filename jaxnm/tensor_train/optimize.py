"""What the optimizers over grids share: their result, their ask and tell form, the best so far, and binary grids."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.status import Status, first_failing, merge

REMEDY = "the best of a set of values has none; differentiate f at best_index"
Objective = Callable[..., Any]
"""f(index [d] int32, *args) -> scalar, to be minimized; real, and traced unless it is called between ask and tell."""


@flax.struct.dataclass
class OptimizeResult:
    """The smallest value that a search has seen."""

    best_index: Int32[Array, "d"]
    """-1 everywhere if every value was infinite (infeasible) or NaN."""
    best_value: Float[Array, ""]
    """Infinite if every value was infinite or NaN."""
    num_evaluations: Int32[Array, ""]
    """Calls of the function, repeated indices included."""
    history: Float[Array, "steps"]
    """The best value so far after every step; all steps make the same number of calls."""
    status: Int32[Array, ""]


@flax.struct.dataclass
class Record:
    """What an optimizer has seen so far; the fields are those of `OptimizeResult`."""

    best_index: Int32[Array, "d"]
    best_value: Float[Array, ""]
    num_evaluations: Int32[Array, ""]
    status: Int32[Array, ""]


class AskTell(NamedTuple):
    """An optimizer as three pure functions, for objectives that cannot be traced or that run elsewhere.

    The state is a pytree: it can be saved, mapped and branched off. Its `record` is a `Record`.
    """

    init: Callable[..., Any]
    """init(key) -> state."""
    ask: Callable[[Any], tuple[Array, Any]]
    """ask(state) -> (indices [m, d] int32, state)."""
    tell: Callable[[Any, ArrayLike, ArrayLike], Any]
    """tell(state, indices [m, d], values [m]) -> state. Infinite values are infeasible; NaN and indices that the shape
    does not have are ignored, and the status says so."""


def grid_point(
    index: Int[ArrayLike, "... d*bits"],
    lower: Float[ArrayLike, "..."],
    upper: Float[ArrayLike, "..."],
    bits: int,
) -> Float[Array, "... d"]:
    """The point of a uniform grid of 2^bits nodes a dimension that an index of binary digits stands for.

    Args:
      index: [..., d bits], of zeros and ones: `bits` digits a dimension, the most significant one first.
      lower: scalar or [d], where all digits of a dimension are zero.
      upper: scalar or [d], where all digits of a dimension are one.
      bits: static, at least 1. The distance of a node from the middle is correct to rounding, so next to the middle
        nodes are told apart at any number of bits; elsewhere at up to 23 bits in float32 and 52 in float64.

    Returns:
      [..., d], of the dtype of lower and upper.

    Raises:
      ValueError: a last axis that bits does not divide, bits < 1, other shapes. TypeError: an index of floats.

    Cost: two multiplications a digit. Differentiable in lower and upper.

    Example:
      >>> grid_point(jnp.array([0, 0, 1, 0, 1, 1]), 0.0, 7.0, 3).tolist()
      [1.0, 3.0]
    """
    name = "grid_point"
    arguments.check_count(name, "bits", bits, minimum=1)
    index = arguments.to_integers(name, "index", index, "pass binary digits")
    condition = lambda shape: len(shape) >= 1 and shape[-1] >= bits and shape[-1] % bits == 0
    arguments.check_shape(name, "index", index, f"[..., d * {bits}]", condition, "give `bits` digits a dimension")
    d = index.shape[-1] // bits
    low, high = arguments.to_arrays(name, lower=lower, upper=upper)
    for side, array in (("lower", low), ("upper", high)):
        arguments.check_shape(name, side, array, f"a scalar or [{d}]", lambda shape: shape in ((), (d,)))
    return _grid_point(index, low, high, int(bits))


@partial(jax.jit, static_argnums=3)
def _grid_point(index: Array, low: Array, high: Array, bits: int) -> Array:
    d = index.shape[-1] // bits
    # -1 and 1 instead of 0 and 1, so that the middle is zero; sums of half of the digits are exact in any order
    signs = (2 * index - 1).reshape(-1, bits).astype(low.dtype)
    places = np.arange(1, bits + 1)
    weights = np.where((places <= (bits + 1) // 2) == np.array([[True], [False]]), 0.5**places, 0)
    part = jnp.sum(einsum("db,hb->dh", signs, jnp.asarray(weights, low.dtype)), -1).reshape(*index.shape[:-1], d)
    middle, half = (high + low) / 2, (high - low) / 2 / (1 - 0.5**bits)
    middle, half = (jnp.broadcast_to(side, (d,)).reshape((1,) * (part.ndim - 1) + (d,)) for side in (middle, half))
    return middle + half * part


# ------------------------------------------------------------------------------------------------ checks


def check_budget(function: str, budget: int, least: int, what: str) -> None:
    """Refuse a budget that does not pay for `least` evaluations, or that int32 cannot count."""
    arguments.check_count(function, "budget", budget, minimum=1)
    if budget < least:
        arguments.refuse(function, "budget", repr(budget), f"at least {least}, {what}", "allow more, or search smaller")
    if budget >= 2**31:
        arguments.refuse(function, "budget", repr(budget), "below 2^31", "go on from the best index instead")


def value_dtype(function: str, f: Objective, point: jax.ShapeDtypeStruct, args: tuple) -> Any:
    """The floating dtype in which values of f are kept: its own, float32 at least, the default one for integers."""
    arguments.check_tuple(function, "args", args)
    remedy = f"use {function.partition('_')[0]}_ask_tell for a function of the host"
    value = arguments.shape_of_value(function, "f", f, point, *args, remedy=remedy)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        got = f"with values of shape {value.shape}" if hasattr(value, "shape") else f"with values {value}"
        arguments.refuse(function, "f", got, "a scalar for one index", "f is mapped over batches inside")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        got = f"with values of dtype {value.dtype}"
        arguments.refuse(function, "f", got, "real values", "minimize the modulus or a part", error=TypeError)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.result_type(float)
    return value.dtype if jnp.finfo(value.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def checked_answer(function: str, indices: ArrayLike, values: ArrayLike, d: int, dtype: Any) -> tuple[Array, Array]:
    """What `tell` was told: indices [m, d] as int32, values [m] of a dtype."""
    indices = arguments.to_integers(function, "indices", indices, "pass what ask returned")
    if not arguments.is_numeric(values) and not isinstance(values, list | tuple):
        got = f"a {type(values).__name__}"
        arguments.refuse(function, "values", got, "an array", "one value an index", error=TypeError)
    values = jnp.asarray(values)
    condition = lambda shape: len(shape) == 2 and shape[1] == d and shape[0] >= 1
    arguments.check_shape(function, "indices", indices, f"[m, {d}]", condition, "pass what ask returned")
    m = indices.shape[0]
    arguments.check_shape(function, "values", values, f"[{m}]", lambda shape: shape == (m,), "one value an index")
    arguments.check_real(function, "values", values)
    operands = arguments.without_derivative(function, "an argument", values.astype(dtype), remedy=REMEDY)
    # beyond what int32 holds there is no index either
    largest = jnp.iinfo(jnp.int32).max
    if jnp.iinfo(indices.dtype).max > largest:
        indices = jnp.where(indices > jnp.asarray(largest, indices.dtype), jnp.zeros_like(indices) - 1, indices)
    return jnp.maximum(indices.astype(jnp.int32), -1), operands


def told_dtype(function: str, dtype: Any) -> Any:
    """The real floating dtype in which `tell` keeps values, the default one for None."""
    return arguments.float_dtype(function, float if dtype is None else dtype)


# ------------------------------------------------------------------------------------------------ the best so far


def empty_record(d: int, dtype: Any) -> Record:
    """Before anything was evaluated."""
    return Record(jnp.full(d, -1, jnp.int32), jnp.full((), jnp.inf, dtype), jnp.int32(0), jnp.int32(Status.UNEXPLORED))


def usable(values: Float[Array, "m"]) -> Float[Array, "m"]:
    """Values by which indices are compared: NaN is as bad as infinity, and minus infinity is the best there is."""
    return jnp.where(jnp.isnan(values), jnp.full_like(values, jnp.inf), values)


def updated(record: Record, indices: Int32[Array, "m d"], values: Float[Array, "m"], shape: tuple[int, ...]) -> Record:
    """The record after m more values; NaN and indices outside are counted and flagged, and are never the best."""
    inside = jnp.all((indices >= 0) & (indices < jnp.array(shape, jnp.int32)[None]), 1)
    compared = jnp.where(inside, usable(values), jnp.full_like(values, jnp.inf))
    at = jnp.argmin(compared)
    better = compared[at] < record.best_value
    index = jnp.where(better, indices[at], record.best_index)
    # that nothing feasible was seen is no longer so as soon as something is
    lasting = jnp.where(record.status == jnp.int32(Status.UNEXPLORED), jnp.int32(Status.OK), record.status)
    flag = first_failing(
        (jnp.any(jnp.isnan(values)), Status.NONFINITE_RESULT),
        (~jnp.all(inside), Status.OUT_OF_RANGE),
        (index[0] < 0, Status.UNEXPLORED),
    )
    return Record(
        index,
        jnp.where(better, compared[at], record.best_value),
        record.num_evaluations + jnp.int32(values.shape[0]),
        merge(lasting, flag),
    )


def result_of(record: Record, history: Float[Array, "steps"]) -> OptimizeResult:
    """A record and its history as a result."""
    return OptimizeResult(record.best_index, record.best_value, record.num_evaluations, history, record.status)


def evaluated(f: Objective, points: Array, args: tuple, dtype: Any) -> Float[Array, "m"]:
    """F at each of m points [m, d]."""
    return jnp.asarray(jax.vmap(lambda point: f(point, *args))(points)).astype(dtype)
