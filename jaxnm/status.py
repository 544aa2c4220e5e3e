"""Status codes: what went wrong at run time, and how to cure it.

A result that can fail carries `status`, an int32 scalar (batched by `vmap` like any other leaf). Zero is success.
Codes are never reused. Inside a transformation a status is data; outside, `raise_if_failed` turns it into an error.
"""

import enum
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int32


class Status(enum.IntEnum):
    """What can be wrong with a result; `Status.X.meaning` and `Status.X.cure` say it in words."""

    OK = 0
    NONFINITE_INPUT = 1
    NONFINITE_RESULT = 2
    NOT_STABLE = 3
    NOT_SYMMETRIC = 4
    INACCURATE = 5
    OUT_OF_RANGE = 6
    NOT_AFFINE = 7
    NOT_CONVERGED = 8
    NOT_CERTIFIED = 9
    INCOMPATIBLE_DATA = 10
    DEGENERATE = 11
    UNEXPLORED = 12
    NOT_PERCOLATING = 13

    @property
    def meaning(self) -> str:
        """One sentence: what the code says about the result."""
        return _EXPLANATIONS[self][0]

    @property
    def cure(self) -> str:
        """One sentence: what the caller can do about it."""
        return _EXPLANATIONS[self][1]


_EXPLANATIONS = {
    Status.OK: ("the result meets its tolerance", "nothing to do"),
    Status.NONFINITE_INPUT: ("an input holds inf or NaN", "find the first non-finite value upstream"),
    Status.NONFINITE_RESULT: (
        "finite input led to inf or NaN: the computation overflowed",
        "scale the problem, or use float64",
    ),
    Status.NOT_STABLE: (
        "the spectral radius is one or above, so a series or a method with it does not converge",
        "use parameters inside the stability region (for a first-order method: a smaller step)",
    ),
    Status.NOT_SYMMETRIC: (
        "a matrix that must be symmetric is not, beyond rounding",
        "pass its symmetric part (a + a.T) / 2 if that is what is meant; a Hessian that is not symmetric "
        "has a wrong custom derivative or second derivatives that do not exist",
    ),
    Status.INACCURATE: (
        "the residual is far above rounding, so few digits of the result are right",
        "use float64, or scale the problem so that it is better conditioned",
    ),
    Status.OUT_OF_RANGE: (
        "a traced argument lies outside the range that the docstring states",
        "check the ranges in the docstring of the function",
    ),
    Status.NOT_AFFINE: (
        "a step of the optimizer is not an affine function of its state and the gradient",
        "use an optimizer without adaptive, clipped or sign-based steps, and finite hyperparameters",
    ),
    Status.NOT_CONVERGED: (
        "an iteration took all the steps it was allowed before it met its tolerance",
        "allow more steps, or ask for less accuracy: the result comes with a bound on its error",
    ),
    Status.NOT_CERTIFIED: (
        "no Lyapunov function of the form looked for proves a rate below one; there may be one of another form",
        "use more memory, a smaller step or less momentum",
    ),
    Status.INCOMPATIBLE_DATA: (
        "the data contradict each other where the equations leave no freedom; the rest of them was solved",
        "balance the divergence against the flux through the sides, or the force where nothing holds the fluid",
    ),
    Status.DEGENERATE: (
        "an observation is impossible for every state the filter has; it was treated as missing",
        "use more particles, a wider likelihood or a better proposal, or check the observation",
    ),
    Status.UNEXPLORED: (
        "a search saw little or nothing but zeros or infeasible points, so what it has not seen may be anything",
        "start it where the values count, allow more evaluations, or search the logarithm of the values",
    ),
    Status.NOT_PERCOLATING: (
        "no path through the fluid crosses the sample along the axis that drives the flow, so nothing flows",
        "drive it along another axis, or check which value of the mask means solid",
    ),
}


class NumericalFailure(ArithmeticError):
    """At least one member of a result has a status other than OK."""


class _HasStatus(Protocol):
    @property
    def status(self) -> Int32[Array, "..."]: ...


_Result = TypeVar("_Result", bound=_HasStatus)


def first_failing(*conditions: tuple[Bool[ArrayLike, "..."], Status]) -> Int32[Array, "..."]:
    """The status of the first condition that holds, elementwise; OK where none does.

    Args:
      *conditions: pairs (condition, status), in order of precedence; the conditions broadcast together.

    Returns:
      int32 array of the broadcast shape, whatever the x64 setting is.

    Example:
      >>> int(first_failing((False, Status.NONFINITE_INPUT), (True, Status.NOT_STABLE)))
      3
    """
    return _first(tuple(condition for condition, _ in conditions), tuple(int(code) for _, code in conditions))


@partial(jax.jit, static_argnums=1, inline=True)
def _first(conditions: tuple[Any, ...], codes: tuple[int, ...]) -> Array:
    status = jnp.int32(Status.OK)
    for condition, code in zip(reversed(conditions), reversed(codes), strict=True):
        status = jnp.where(condition, jnp.int32(code), status)
    return status


def merge(*statuses: Int32[ArrayLike, "..."]) -> Int32[Array, "..."]:
    """The first status that is not OK, elementwise: how a result reports a failure of the layers below it.

    Example:
      >>> int(merge(jnp.int32(Status.OK), jnp.int32(Status.NOT_STABLE), jnp.int32(Status.NONFINITE_INPUT)))
      3
    """
    return _merged(statuses)


@partial(jax.jit, inline=True)
def _merged(statuses: tuple[Any, ...]) -> Array:
    merged = jnp.int32(Status.OK)
    for status in reversed(statuses):
        merged = jnp.where(jnp.asarray(status) != jnp.int32(Status.OK), status, merged)
    return merged


def raise_if_failed(result: _Result) -> _Result:
    """Return `result` if every member of it is OK, and raise otherwise. For use outside `jit`.

    Args:
      result: anything with an int32 `status`, a scalar or a batch of any shape.

    Returns:
      `result` itself, so that the call can be chained.

    Raises:
      NumericalFailure: names the failing batch members (the first ten), the cause and the cure.
      TypeError: called under a transformation, where the status is not yet known.

    Example:
      >>> import jaxnm
      >>> jaxnm.raise_if_failed(jaxnm.linalg.solve_discrete_lyapunov(2 * jnp.eye(2), jnp.eye(2)))
      Traceback (most recent call last):
      ...
      jaxnm.status.NumericalFailure: SteinSolution: NOT_STABLE: the spectral radius is one or above, ...
    """
    if isinstance(result.status, jax.core.Tracer):
        raise TypeError(
            "raise_if_failed: got a traced status, expected a concrete one; "
            "inside jit, vmap or scan use result.status as data, and call raise_if_failed outside"
        )
    status = np.asarray(result.status)
    if not status.any():
        return result
    lines = []
    for code in np.unique(status[status != 0]):
        known = Status(int(code))
        where = ""
        if status.ndim:
            members = [tuple(int(i) for i in index) for index in np.argwhere(status == code)]
            shown = ", ".join(str(index[0] if len(index) == 1 else index) for index in members[:10])
            more = f" and {len(members) - 10} more" if len(members) > 10 else ""
            where = f" in {len(members)} of {status.size} members ({shown}{more})"
        lines.append(f"{type(result).__name__}: {known.name}{where}: {known.meaning}; {known.cure}")
    raise NumericalFailure("\n".join(lines))
