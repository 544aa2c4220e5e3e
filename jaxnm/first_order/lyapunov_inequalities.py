"""The matrix inequalities whose solutions are Lyapunov functions of a method on a class of functions.

V_k = e^T Q e + q f, with e = (state, gradients of steps k to k + memory) and f the function values there, proves the
rate rho if with nonnegative multipliers

    rho^2 V_k - V_{k+1} - sum multipliers * inequalities  is positive semidefinite, without function values, and
    V_k - sum multipliers * inequalities                  is positive definite, without function values.

The first is over the points of steps k to k + memory + 1 and the minimizer, the second over one step less. That
function values cancel determines the multipliers between each point and the minimizer; they are affine in the others,
and must be nonnegative as well. Everything is linear in the unknowns v, and affine in rho^2.

The inequalities are forms in the states, positions and gradients, with coefficients that are known beforehand
(`forms_of`); a method says only how these depend on the state and the gradients (`rows_of`).
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxnm.first_order.function_classes import pairs_of, smooth_convex
from jaxnm.first_order.state_space import StateSpace
from jaxnm.linalg import einsum

_NO_EXPONENT = -(2**20)  # of zero


class Forms(NamedTuple):
    """Quadratic forms in the R vectors (states now, states later, positions, gradients), one for each unknown."""

    decrease: Float[np.ndarray, "m R R"]
    """V_k - V_{k+1} less what the inequalities allow: the decrease at rate one."""
    per_square: Float[np.ndarray, "m R R"]
    """What is subtracted (1 - rho^2) times."""
    positivity: Float[np.ndarray, "m R R"]
    """V_k less what the inequalities allow."""
    multipliers: tuple[Float[np.ndarray, "m p"], Float[np.ndarray, "m p"]]
    """All multipliers, at rate one and what is subtracted (1 - rho^2) times: those of the decrease in the order of
    `pairs_of`, then those of the positivity."""


class LyapunovSystem(NamedTuple):
    """Two blocks of d rows and p - 1 scalars, linear in v; the second holds the positivity and the last scalar."""

    blocks: Float[Array, "m d d 2"]
    """At rate one."""
    blocks_per_square: Float[Array, "m d d 2"]
    """What is subtracted (1 - rho^2) times."""
    scalars: Float[Array, "m p-1"]
    scalars_per_square: Float[Array, "m p-1"]

    def at(self, shortfall: Array) -> tuple[Array, Array]:
        """Blocks and scalars where rho^2 is that much below one, [], or [N] if a batch is last everywhere."""
        spread = lambda array: jnp.expand_dims(shortfall, tuple(range(array.ndim - shortfall.ndim)))
        less = lambda array, subtracted: array - spread(array) * subtracted
        return less(self.blocks, self.blocks_per_square), less(self.scalars, self.scalars_per_square)


def num_unknowns(num_states: int, memory: int) -> tuple[int, int, int, int]:
    """How many entries of Q, of q, free multipliers of the decrease and of the positivity v holds, in this order."""
    size, points = num_states + memory + 1, memory + 2
    return size * (size + 1) // 2, memory + 1, points * points, (points - 1) * (points - 1)


# ------------------------------------------------------------------------------------------------------------- units


class Balanced(NamedTuple):
    """A method on functions of curvatures in [0, 1] less a quadratic, in units of the state that suit it."""

    method: StateSpace
    mu: Array
    L: Array
    """mu and L times a power of two; L is in [1/2, 1)."""
    exponents: Int[Array, "n"]
    """Of the powers of two by which the states were multiplied."""


def balanced(method: StateSpace, mu: Array, L: Array) -> Balanced:
    """The same method in other units, by powers of two, so that nothing is rounded.

    The rows and columns of [[A, L B], [C, 0]] get entries of like size (Osborne's balancing, in exponents); the units
    of the position and the gradient, its last column and row, stay.
    """
    n = method.num_states
    exponent_of = lambda array: jnp.where(
        array != 0, jnp.frexp(jax.lax.stop_gradient(array))[1].astype(jnp.int32), jnp.int32(_NO_EXPONENT)
    )
    of_L = jnp.where(L > 0, exponent_of(L), 0)
    top = jnp.concatenate([exponent_of(method.A), exponent_of(method.B)[:, None] + of_L], 1)
    bottom = jnp.append(exponent_of(method.C), jnp.int32(_NO_EXPONENT))[None]
    sizes = jnp.where(jnp.eye(n + 1, dtype=bool), _NO_EXPONENT, jnp.concatenate([top, bottom]))

    def balance(step: Array, exponents: Array) -> Array:
        k = step % (n + 1)
        row = jnp.max(sizes[k] - exponents) + exponents[k]
        column = jnp.max(sizes[:, k] + exponents) - exponents[k]
        known = (row > _NO_EXPONENT // 2) & (column > _NO_EXPONENT // 2)
        # truncated, not floored, so that nothing goes back and forth between neighbours
        change = jnp.sign(column - row) * (jnp.abs(column - row) // 2)
        return exponents.at[k].add(jnp.where(known, change, 0))

    exponents = jax.lax.fori_loop(0, 6 * (n + 1), balance, jnp.zeros(n + 1, jnp.int32))
    exponents = exponents[:n] - exponents[n]
    scaled = StateSpace(
        times_power(method.A, exponents[:, None] - exponents[None]),
        times_power(method.B, exponents + of_L),
        times_power(method.C, -exponents),
    )
    return Balanced(scaled, times_power(mu, -of_L), times_power(L, -of_L), exponents)


def times_power(array: Array, exponent: Array) -> Array:
    """Array times 2^exponent, in two steps, since 2^exponent itself may overflow."""
    one = jnp.ones((), array.dtype)
    half = exponent // 2
    return array * jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)


# -------------------------------------------------------------------------------------------------------- inequalities


def rows_of(method: StateSpace, mu: Array, L: Array, memory: int, *, moduli: bool = False) -> Array:
    """[R, d]: states now and later, positions and gradients, by d = n + memory + 2 coordinates: state and gradients.

    For the function (f - mu |y|^2 / 2) / (L - mu), convex with a 1-Lipschitz gradient. With `moduli` every number is
    replaced by its modulus and every minus by a plus: times eps and the number of operations, a bound on the rounding.
    """
    n, dtype = method.num_states, method.A.dtype
    if moduli:
        method, difference = jax.tree.map(jnp.abs, method), L + mu
    else:
        difference = L - mu
    transition = method.A + mu * method.B[:, None] * method.C[None]
    coordinates = jnp.eye(n + memory + 2, dtype=dtype)
    states = [coordinates[:n]]
    for k in range(memory + 1):
        gradient = coordinates[n + k]
        states.append(einsum("ij,jd->id", transition, states[k]) + (difference * method.B)[:, None] * gradient[None])
    positions = [einsum("i,id->d", method.C, state)[None] for state in states]
    return jnp.concatenate([states[0], states[1], *positions, coordinates[n:]])


def lyapunov_system(rows: Array, num_states: int, memory: int, *, moduli: bool = False) -> LyapunovSystem:
    """From `rows_of` a method, or from those of moduli."""
    forms, dtype = forms_of(num_states, memory), rows.dtype
    number = lambda array: jnp.asarray(np.abs(array) if moduli else array, dtype)
    constants = number(np.stack([forms.decrease, forms.per_square, forms.positivity]))
    decrease, per_square, positivity = einsum("ra,kmrs,sb->kmab", rows, constants, rows)
    at_one, subtracted = map(number, forms.multipliers)
    last = lambda scalars: jnp.zeros_like(decrease).at[:, -1, -1].set(scalars[:, -1])
    # no form of the positivity has the last gradient, so its last row and column are free
    return LyapunovSystem(
        blocks=jnp.stack([decrease, positivity + last(at_one)], -1),
        blocks_per_square=jnp.stack([per_square, last(subtracted)], -1),
        scalars=at_one[:, :-1],
        scalars_per_square=subtracted[:, :-1],
    )


@lru_cache
def forms_of(num_states: int, memory: int) -> Forms:
    """The forms and the multipliers of all unknowns."""
    n, steps = num_states, memory + 1
    R = 2 * n + 2 * (steps + 1)
    unit = np.eye(R)
    now, later, positions, gradients = np.split(unit, [n, 2 * n, 2 * n + steps + 1])
    now, later = np.concatenate([now, gradients[:-1]]), np.concatenate([later, gradients[1:]])
    symmetric = _symmetric_basis(n + steps)
    at = lambda rows: np.einsum("ka,mkl,lb->mab", rows, symmetric, rows)
    decrease, positivity = _eliminated(positions, gradients), _eliminated(positions[:-1], gradients[:-1])
    # q_k multiplies f_k in V_k, and f_{k+1} in V_{k+1}
    values_now, values_later = np.eye(steps, steps + 1), np.eye(steps, steps + 1, 1)
    no_forms = lambda rows: np.zeros((rows, R, R))
    free, positive_free = len(decrease.free), len(positivity.free)
    per_square = [at(now), -decrease.of_values(values_now), no_forms(free + positive_free)]
    constant = [-at(later), decrease.of_values(values_later), -decrease.free, no_forms(positive_free)]
    positive = [at(now), -positivity.of_values(np.eye(steps)), no_forms(free), -positivity.free]
    none = lambda rows, other: np.zeros((rows, other.multipliers.shape[1]))
    entries = len(symmetric)
    of_constant = np.block(
        [
            [none(entries, decrease), none(entries, positivity)],
            [decrease.multipliers_of(-values_later), positivity.multipliers_of(np.eye(steps))],
            [decrease.multipliers, none(free, positivity)],
            [none(positive_free, decrease), positivity.multipliers],
        ]
    )
    of_square = np.zeros_like(of_constant)
    of_square[entries : entries + steps, : decrease.multipliers.shape[1]] = decrease.multipliers_of(values_now)
    squares = np.concatenate(per_square)
    return Forms(
        decrease=np.concatenate(constant) + squares,
        per_square=squares,
        positivity=np.concatenate(positive),
        multipliers=(of_constant + of_square, of_square),
    )


class _Eliminated(NamedTuple):
    """Inequalities with the multipliers (k, minimizer) determined by the function values that must cancel."""

    free: np.ndarray
    """[free, R, R]: an inequality and those that cancel its function values."""
    multipliers: np.ndarray
    """[free, k]: what the free multipliers make of all."""
    to_minimizer: np.ndarray
    """[points, R, R]: the inequality (k, minimizer), with the value f_k."""
    at_minimizer: np.ndarray
    """[points, k]: its place among all."""

    def of_values(self, coefficients: np.ndarray) -> np.ndarray:
        """[r, R, R]: inequalities whose function values are the given combinations [r, points]."""
        return np.einsum("rp,pab->rab", coefficients, self.to_minimizer)

    def multipliers_of(self, coefficients: np.ndarray) -> np.ndarray:
        """[r, k]: their multipliers."""
        return coefficients @ self.at_minimizer


def _eliminated(positions: np.ndarray, gradients: np.ndarray) -> _Eliminated:
    """Between the points and the minimizer, which is the origin, with gradient and value zero, and the last point."""
    points = len(positions)
    with_minimizer = lambda rows: np.concatenate([rows, np.zeros_like(rows[:1])])
    table = smooth_convex(with_minimizer(positions), with_minimizer(gradients))
    pairs = pairs_of(points + 1)
    last = np.array([np.flatnonzero((pairs[:, 0] == k) & (pairs[:, 1] == points))[0] for k in range(points)])
    free = np.flatnonzero(pairs[:, 1] != points)
    at_minimizer = np.eye(len(pairs))[last]
    multipliers = np.eye(len(pairs))[free] - table.values[free, :points] @ at_minimizer
    return _Eliminated(
        np.einsum("fk,kab->fab", multipliers, table.quadratic), multipliers, table.quadratic[last], at_minimizer
    )


def _symmetric_basis(size: int) -> np.ndarray:
    """[size (size + 1) / 2, size, size]: the lower triangle row by row."""
    rows, columns = np.tril_indices(size)
    basis = np.zeros((len(rows), size, size))
    basis[np.arange(len(rows)), rows, columns] = 1
    basis[np.arange(len(rows)), columns, rows] = 1
    return basis
