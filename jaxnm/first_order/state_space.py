"""A first-order method as a linear system driven by the gradient, and its blocks on a quadratic."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.linalg import matmul


@flax.struct.dataclass
class StateSpace:
    """`z_{k+1} = A z_k + B g_k`, `g_k = grad f(C z_k)`, the same realization on every coordinate.

    On a quadratic whose Hessian has the eigenvalue lam, the state of that eigendirection obeys
    `z_{k+1} = (A + lam B C) z_k`: one n x n block an eigenvalue, never the whole matrix.
    """

    A: Float[Array, "n n"]
    """State transition."""
    B: Float[Array, "n"]
    """How the gradient enters the state."""
    C: Float[Array, "n"]
    """Where the gradient is taken."""

    @property
    def num_states(self) -> int:
        """Number n of states a coordinate has: 1 for gradient descent, 2 with momentum."""
        return self.A.shape[-1]

    def rescaled(self, units: Float[Array, "n"]) -> "StateSpace":
        """The same method with state i multiplied by units[i] > 0."""
        return StateSpace(self.A * (units[:, None] / units[None, :]), self.B * units, self.C / units)


def state_space(A: Float[ArrayLike, "n n"], B: Float[ArrayLike, "n"], C: Float[ArrayLike, "n"]) -> StateSpace:
    """A method of your own from its matrices.

    Args:
      A: [n, n] state transition.
      B: [n] gradient input.
      C: [n] point at which the gradient is taken.

    Returns:
      `StateSpace(A, B, C)` of the common dtype. Non-finite entries stay as they are and make every rate NaN.

    Raises:
      ValueError: shapes that do not fit. TypeError: integer or complex entries.

    Differentiable everywhere.

    Example:
      >>> method = state_space(jnp.array([[1.0]]), jnp.array([-0.5]), jnp.array([1.0]))
      >>> float(iteration_matrix(method, 1.0)[0, 0])
      0.5
    """
    A, B, C = arguments.to_arrays("state_space", A=A, B=B, C=C)
    arguments.check_square("state_space", "A", A)
    arguments.check_shape("state_space", "A", A, "[n, n]", lambda shape: len(shape) == 2)
    for name, vector in (("A", A), ("B", B), ("C", C)):
        arguments.check_real("state_space", name, vector)
        if name != "A":
            arguments.check_shape("state_space", name, vector, f"[{A.shape[0]}]", lambda shape: shape == A.shape[:1])
    return StateSpace(A, B, C)


def iteration_matrix(method: StateSpace, eigenvalue: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch n n"]:
    """The blocks `A + lam B C` of a method on a quadratic, one an eigenvalue of the Hessian.

    Args:
      method: state-space form with n states.
      eigenvalue: [...] eigenvalues of the Hessian (curvatures), in units of 1 / step size.

    Returns:
      [..., n, n].

    Raises:
      TypeError: an integer array, or a method of another type.

    Cost: 2 n^2 flops a block. Differentiable everywhere. Source: arXiv:2310.15880, the permuted matrix of section 3.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> iteration_matrix(gradient_descent(0.5), jnp.array([1.0, 2.0]))[:, 0, 0]
      Array([0.5, 0. ], dtype=float32)
    """
    check_method("iteration_matrix", method)
    return _iteration_matrix(method, curvatures_of("iteration_matrix", "eigenvalue", eigenvalue, method))


def curvatures_of(function: str, argument: str, eigenvalues: Any, method: StateSpace) -> Array:
    """Eigenvalues of a Hessian, which are real, as an array."""
    (eigenvalues,) = arguments.to_arrays(function, **{argument: _like(eigenvalues, method.A)})
    arguments.check_real(function, argument, eigenvalues)
    return eigenvalues


def check_method(function: str, method: Any, *, expected: str = "a StateSpace") -> None:
    """Refuse anything but a `StateSpace`, and say where one is found."""
    if isinstance(method, StateSpace):
        return
    kind = type(method).__name__
    if isinstance(getattr(method, "method", None), StateSpace):
        remedy = f"pass .method of the {kind}"
    elif isinstance(method, optax.GradientTransformation):
        remedy = "use jaxnm.first_order.from_optax(tx).method"
    else:
        remedy = "build one with jaxnm.first_order.state_space(A, B, C)"
    arguments.refuse(function, "method", f"of type {kind}", expected, remedy, error=TypeError)


def responses(A: Float[Array, "n n"], B: Float[Array, "n"]) -> Float[Array, "n"]:
    """The size of the first change of each state after a unit gradient; zero where no gradient gets to it.

    A change of the units of the states multiplies the result by the factors between the units, and nothing else does.
    """
    state, found = B, jnp.abs(B)
    for _ in range(A.shape[-1] - 1):
        state = matmul(A, state)
        found = jnp.where(found > 0, found, jnp.abs(state))
    return found


def parameter_units(method: StateSpace, *, powers_of_two: bool = False) -> Float[Array, "n"]:
    """The factors that bring the states to the size of the first one, which is the parameters.

    In these units a gradient first changes all states by the same amount. States that no gradient gets to keep theirs.
    They are differentiable, as what is measured in them is; powers of two are constant in between.

    Args:
      method: its first state is the parameters.
      powers_of_two: round the factors, so that `method.rescaled(units)` has no rounding.
    """
    size = responses(method.A, method.B)
    known = (size > 0) & (size[:1] > 0) & jnp.isfinite(size)
    units = jnp.where(known, size[:1] / jnp.where(known, size, jnp.ones_like(size)), jnp.ones_like(size))
    usable = jnp.isfinite(units) & (units > 0)
    units = jnp.where(usable, units, jnp.ones_like(units))
    if not powers_of_two:
        return units
    fraction, exponent = jnp.frexp(units)
    # the power of two at or below, so that a unit that is one stays
    return jnp.ldexp(jnp.ones_like(fraction), exponent - 1)


def _like(value: ArrayLike, reference: Array) -> ArrayLike:
    """A Python number takes the dtype of the method; an array keeps its own."""
    return jnp.asarray(value, reference.dtype) if arguments.is_number(value) else value


@jax.jit
def _iteration_matrix(method: StateSpace, eigenvalue: Array) -> Array:
    n = method.A.shape[-1]
    rank_one = method.B[:, None] * method.C[None, :]
    blocks = jnp.expand_dims(eigenvalue, (-2, -1)) * jnp.broadcast_to(rank_one, (*eigenvalue.shape, n, n))
    return jnp.broadcast_to(method.A, blocks.shape) + blocks
