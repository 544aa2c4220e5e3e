"""The matrix inequalities whose solutions are Lyapunov functions of a method on a class of functions.

V_k = e^T Q e + q f, with e = (state, gradients of steps k to k + memory) and f the function values there, proves the
rate rho if with nonnegative multipliers

    rho^2 V_k - V_{k+1} - sum multipliers * inequalities  is positive semidefinite, without function values, and
    V_k - sum multipliers * inequalities                  is positive definite, without function values.

The first is over the points of steps k to k + memory + 1 and the minimizer, the second over one step less. That
function values cancel determines the multipliers between each point and the minimizer; they are affine in the others,
and must be nonnegative as well. Everything is linear in the unknowns v, and affine in rho^2.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxnm.first_order.function_classes import Inequalities, pairs_of, smooth_convex, with_minimizer
from jaxnm.first_order.state_space import StateSpace
from jaxnm.linalg import einsum


class LyapunovSystem(NamedTuple):
    """Linear in v [m], affine in rho^2: the coefficients of 1 and of rho^2."""

    decrease: tuple[Float[Array, "m d d"], Float[Array, "m d d"]]
    """rho^2 V_k - V_{k+1} less what the inequalities allow."""
    positivity: Float[Array, "m d-1 d-1"]
    """V_k less what the inequalities allow."""
    multipliers: tuple[Float[np.ndarray, "m p"], Float[np.ndarray, "m p"]]
    """All multipliers: those of the decrease in the order of `pairs_of`, then those of the positivity."""


def reduced(method: StateSpace, mu: Array, L: Array) -> StateSpace:
    """The method on (f - mu |y|^2 / 2) / (L - mu), convex with a 1-Lipschitz gradient: A + mu B C, (L - mu) B, C."""
    return StateSpace(method.A + mu * method.B[:, None] * method.C[None], (L - mu) * method.B, method.C)


def num_unknowns(num_states: int, memory: int) -> tuple[int, int, int, int]:
    """How many entries of Q, of q, free multipliers of the decrease and of the positivity v holds, in this order."""
    size, points = num_states + memory + 1, memory + 2
    return size * (size + 1) // 2, memory + 1, points * points, (points - 1) * (points - 1)


def lyapunov_system(method: StateSpace, memory: int) -> LyapunovSystem:
    """For a method on convex functions with a 1-Lipschitz gradient."""
    n, dtype = method.A.shape[0], method.A.dtype
    d = n + memory + 2  # the state, and gradients of memory + 2 steps
    gradients = jnp.eye(d, dtype=dtype)[n:]
    states = [jnp.eye(d, dtype=dtype)[:n]]
    for k in range(memory + 1):
        states.append(einsum("ij,jd->id", method.A, states[k]) + method.B[:, None] * gradients[k][None])
    positions = jnp.stack([einsum("i,id->d", method.C, state) for state in states])
    now = jnp.concatenate([states[0], gradients[:-1]])  # [d - 1, d]
    later = jnp.concatenate([states[1], gradients[1:]])
    symmetric = _symmetric_basis(d - 1, dtype)
    at = lambda rows: einsum("ka,mkl,lb->mab", rows, symmetric, rows)

    table = smooth_convex(with_minimizer(positions), with_minimizer(gradients))
    decrease = _eliminated(table, memory + 2)
    small = slice(None, -1)
    # without the last step, and without its gradient, the last coordinate
    table = smooth_convex(with_minimizer(positions[:-1, small]), with_minimizer(gradients[:-1, small]))
    positivity = _eliminated(table, memory + 1)

    values_now = np.eye(memory + 1, memory + 2)  # q_k multiplies f_k in V_k, and f_{k+1} in V_{k+1}
    values_later = np.eye(memory + 1, memory + 2, 1)
    constant = jnp.concatenate(
        [
            -at(later),
            -decrease.of_values(-values_later),
            -decrease.free,
            jnp.zeros((len(positivity.free_index), d, d), dtype),
        ]
    )
    per_square = jnp.concatenate(
        [
            at(now),
            -decrease.of_values(values_now),
            jnp.zeros((constant.shape[0] - len(symmetric) - memory - 1, d, d), dtype),
        ]
    )
    positive = jnp.concatenate(
        [
            symmetric,
            -positivity.of_values(np.eye(memory + 1)),
            jnp.zeros((len(decrease.free_index), d - 1, d - 1), dtype),
            -positivity.free,
        ]
    )
    none = lambda rows, other: np.zeros((rows, other.shape[1]))
    q_rows, free_decrease, free_positivity = memory + 1, len(decrease.free_index), len(positivity.free_index)
    constant_multipliers = np.block(
        [
            [none(len(symmetric), decrease.multipliers), none(len(symmetric), positivity.multipliers)],
            [decrease.multipliers_of(-values_later), positivity.multipliers_of(np.eye(q_rows))],
            [decrease.multipliers, none(free_decrease, positivity.multipliers)],
            [none(free_positivity, decrease.multipliers), positivity.multipliers],
        ]
    )
    square_multipliers = np.zeros_like(constant_multipliers)
    square_multipliers[len(symmetric) : len(symmetric) + q_rows, : decrease.multipliers.shape[1]] = (
        decrease.multipliers_of(values_now)
    )
    return LyapunovSystem(
        decrease=(constant, per_square), positivity=positive, multipliers=(constant_multipliers, square_multipliers)
    )


class _Eliminated(NamedTuple):
    """Inequalities with the multipliers (k, minimizer) determined by the function values that must cancel."""

    free_index: np.ndarray
    free: Array
    """[free, d, d]: an inequality and those that cancel its function values."""
    multipliers: np.ndarray
    """[free, k]: what the free multipliers make of all."""
    to_minimizer: Array
    """[points, d, d]: the inequality (k, minimizer), with the value f_k."""
    at_minimizer: np.ndarray
    """[points, k]: its place among all."""

    def of_values(self, coefficients: np.ndarray) -> Array:
        """[r, d, d]: inequalities whose function values are the given combinations [r, points]."""
        return einsum("rp,pab->rab", jnp.asarray(coefficients, self.free.dtype), self.to_minimizer)

    def multipliers_of(self, coefficients: np.ndarray) -> np.ndarray:
        """[r, k]: their multipliers."""
        return coefficients @ self.at_minimizer


def _eliminated(table: Inequalities, points: int) -> _Eliminated:
    """The minimizer is the last of the points + 1."""
    pairs = pairs_of(points + 1)
    last = np.array([np.flatnonzero((pairs[:, 0] == k) & (pairs[:, 1] == points))[0] for k in range(points)])
    free = np.flatnonzero(pairs[:, 1] != points)
    at_minimizer = np.eye(len(pairs))[last]
    values = table.values[:, :points]
    multipliers = np.eye(len(pairs))[free] - values[free] @ at_minimizer
    quadratic = einsum("fk,kab->fab", jnp.asarray(multipliers, table.quadratic.dtype), table.quadratic)
    return _Eliminated(free, quadratic, multipliers, table.quadratic[last], at_minimizer)


def _symmetric_basis(size: int, dtype: jnp.dtype) -> Array:
    """[size (size + 1) / 2, size, size]: the lower triangle row by row."""
    rows, columns = np.tril_indices(size)
    basis = np.zeros((len(rows), size, size))
    basis[np.arange(len(rows)), rows, columns] = 1
    basis[np.arange(len(rows)), columns, rows] = 1
    return jnp.asarray(basis, dtype)
