"""A certified rate and what proves it."""

from typing import Any

import flax.struct
from jaxtyping import Array, Float, Int32

from jaxnm import arguments
from jaxnm.first_order.state_space import StateSpace


@flax.struct.dataclass
class RateCertificate:
    """A rate and its proof: V falls by rate^2 at every step, on every function of the class, and bounds the state.

    With the function h = (f - mu |y|^2 / 2) / (L - mu), and everything relative to the minimizer,
    V_k = e^T Q e + q . h, e = (state, gradients of h at the points of steps k to k + memory), h the values there.
    """

    rate: Float[Array, "*batch"]
    """Per iterate of the error, not of its square: |state_k| <= constant * rate^k. At least 1 where there is none."""
    Q: Float[Array, "*batch e e"]
    """Symmetric, e = states + memory + 1."""
    q: Float[Array, "*batch memory+1"]
    """Factors of the function values."""
    multipliers: Float[Array, "*batch p"]
    """Of the inequalities between points: of the decrease, then of the positivity, as `function_classes.pairs_of`."""
    margin: Float[Array, "*batch"]
    """A lower bound of the eigenvalues of the two matrices and of the multipliers, where their traces and sum are one.

    Measured by the matrices of the proof before, and as the solver found it: near zero its sign means nothing. The
    proof does not rest on it; means nothing where there is none."""
    quadratic_rate: Float[Array, "*batch"]
    """The rate on quadratics: a lower bound."""
    status: Int32[Array, "*batch"]
    """OK, INACCURATE, NONFINITE_INPUT, OUT_OF_RANGE, NOT_STABLE or NOT_CERTIFIED."""
    method: StateSpace
    """The method."""
    mu: Float[Array, "*batch"]
    """Smallest curvature."""
    L: Float[Array, "*batch"]
    """Largest curvature."""
    memory: int = flax.struct.field(pytree_node=False)
    """How many steps beyond the current one V looks at."""


def check_certificate(function: str, certificate: Any) -> None:
    """Refuse anything but a `RateCertificate`."""
    if not isinstance(certificate, RateCertificate):
        arguments.refuse(
            function, "certificate", f"of type {type(certificate).__name__}", "a RateCertificate",
            "pass what certify_rate returns", error=TypeError,
        )  # fmt: skip
