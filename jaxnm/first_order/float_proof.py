"""A proof without exact arithmetic: floating-point matrices, a bound on all that rounding can have done, and Cholesky.

The same expressions are evaluated twice: as they are, and with every term replaced by its modulus and every minus by a
plus. The second times eps and the number of operations bounds the rounding error of the first, entry by entry. If the
matrix less that bound, and less the error of the factorization itself, has a Cholesky factor, then the exact one is
positive definite.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxnm.first_order.certificates import RateCertificate
from jaxnm.first_order.function_classes import pairs_of, with_minimizer
from jaxnm.linalg import cholesky, einsum
from jaxnm.status import Status


def is_proved(certificate: RateCertificate) -> Bool[Array, "*batch"]:
    """Whether a certificate is a proof, decided under `jit` and `vmap` by floating-point numbers with an error bound.

    Args:
      certificate: from `certify_rate` or `check_lyapunov`, of any batch shape.

    Returns:
      [...]: true only where rounding cannot have faked it, barring underflow. False where the margin is too near to
      rounding to tell, where `verify` may still accept.

    Cost: two evaluations of the matrices and two Cholesky factorizations a member: far less than finding it. Not
    differentiable.
    Source: Rump, "Verification of positive definiteness", BIT 46 (2006), 433-452, corollary 2.4 for the factorization.

    Example:
      >>> import jax
      >>> from jaxnm.first_order import certify_rate, gradient_descent
      >>> with jax.enable_x64(True):
      ...     bool(jax.jit(lambda mu: is_proved(certify_rate(gradient_descent(1.0), mu, 1.0)))(0.1))
      True
    """
    leaves = (
        certificate.method.A, certificate.method.B, certificate.method.C, certificate.mu, certificate.L,
        certificate.rate, certificate.Q, certificate.q, certificate.multipliers, certificate.status,
    )  # fmt: skip
    return _are_proved(certificate.memory, *jax.lax.stop_gradient(leaves))


@partial(jax.jit, static_argnums=0)
def _are_proved(memory: int, *numbers: Array) -> Array:
    member = partial(_is_proved, memory)
    for _ in range(jnp.ndim(numbers[-1])):
        member = jax.vmap(member)
    return member(*numbers)


def _is_proved(memory: int, *numbers: Array) -> Array:
    *values, status = numbers
    _, B, _, mu, L, rate, Q, _, multipliers = values
    computed = _evaluate(memory, -1, *values)
    moduli = _evaluate(memory, 1, *map(jnp.abs, values))
    n, d = B.shape[0], B.shape[0] + memory + 2
    eps = jnp.finfo(rate.dtype).eps
    # sums over states, coordinates and pairs, one after the other, and some single operations
    operations = (memory + 2) * (n + 4) + 2 * d + len(pairs_of(memory + 3)) + 20
    relative = 2 * operations * eps
    holds = (status == jnp.int32(Status.OK)) & (rate < 1) & (mu >= 0) & (mu <= L) & jnp.all(Q == Q.T)
    for (matrix, to_minimizer), (size, size_to_minimizer) in zip(computed, moduli, strict=True):
        rows = matrix.shape[0]
        error = relative * jnp.sqrt(jnp.sum(size**2)) + 4 * (rows + 2) * eps * jnp.sum(jnp.diag(size))
        shifted = matrix - error * jnp.eye(rows, dtype=matrix.dtype)
        holds &= jnp.all(jnp.isfinite(cholesky((shifted + shifted.T) / 2)))
        holds &= jnp.all(to_minimizer - relative * size_to_minimizer >= 0)
    return holds & jnp.all(multipliers >= 0)


def _evaluate(memory: int, sign: int, *values: Array) -> list[tuple[Array, Array]]:
    """(matrix, multipliers towards the minimizer) of the decrease and of the positivity.

    With sign = -1 as they are; with sign = 1, on moduli, every minus is a plus.
    """
    A, B, C, mu, L, rate, Q, q, given = values
    n, steps, dtype = B.shape[0], memory + 1, rate.dtype
    gradients = jnp.eye(n + steps + 1, dtype=dtype)[n:]
    reduced = A + mu * B[:, None] * C[None]
    states = [jnp.eye(n + steps + 1, dtype=dtype)[:n]]
    for k in range(steps):
        states.append(einsum("ij,jd->id", reduced, states[k]) + ((L + sign * mu) * B)[:, None] * gradients[k][None])
    positions = jnp.stack([einsum("i,id->d", C, state) for state in states])
    square = rate * rate
    form = lambda state, slopes: _form(Q, jnp.concatenate([state, slopes]))
    padded = jnp.pad(q, 1)
    falls = square * form(states[0], gradients[:-1]) + sign * form(states[1], gradients[1:])
    bounds = form(states[0], gradients[:-1])
    decrease_values = square * padded[1:] + sign * padded[:-1]
    split = len(pairs_of(steps + 2))
    decrease = _less(falls, decrease_values, given[:split], positions, gradients, sign)
    positivity = _less(bounds, q, given[split:], positions[:-1], gradients[:-1], sign)
    return [decrease, (positivity[0][:-1, :-1], positivity[1])]


def _less(
    matrix: Array, values: Array, given: Array, positions: Array, gradients: Array, sign: int
) -> tuple[Array, Array]:
    """The matrix less the inequalities, with multipliers towards the minimizer that cancel `values`, and these."""
    points = positions.shape[0]
    pairs = pairs_of(points + 1)
    first, second = pairs.T
    free = second != points
    leaving = jnp.asarray((first[:, None] == range(points)) & free[:, None], given.dtype)
    arriving = jnp.asarray(second[:, None] == range(points), given.dtype)
    to_minimizer = values + sign * einsum("p,pk->k", given, leaving) + einsum("p,pk->k", given, arriving)
    factors = given.at[np.flatnonzero(~free)].set(to_minimizer)
    y, g = with_minimizer(positions), with_minimizer(gradients)
    between, jump, slope = y[first] + sign * y[second], g[first] + sign * g[second], g[second]
    product = einsum("p,pa,pb->ab", factors, slope, between)
    inequalities = sign * ((product + product.T) / 2 + einsum("p,pa,pb->ab", factors, jump, jump) / 2)
    return matrix + sign * inequalities, to_minimizer


def _form(Q: Array, rows: Array) -> Array:
    return einsum("ia,ij,jb->ab", rows, Q, rows)
