"""Whether a certificate is a proof, decided in floating-point arithmetic, with a bound on all that rounding can do.

The same expressions are evaluated twice: as they are, and with every term replaced by its modulus and every minus by a
plus. The second times eps and the number of operations bounds the rounding error of the first, entry by entry. If the
matrix, scaled to a unit diagonal, less that bound and less the error of the factorization itself, has positive pivots,
then the exact one is positive definite. The scaling makes the decision one and the same in all units.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxnm.first_order.function_classes import pairs_of
from jaxnm.first_order.lyapunov_inequalities import (
    LyapunovSystem,
    balanced,
    lyapunov_system,
    num_unknowns,
    rows_of,
    times_power,
)
from jaxnm.first_order.rate_certificate import RateCertificate, check_certificate
from jaxnm.first_order.state_space import StateSpace
from jaxnm.linalg import lmi
from jaxnm.status import Status


def is_proved(certificate: RateCertificate) -> Bool[Array, "*batch"]:
    """Whether a certificate is a proof, decided under `jit` and `vmap` by floating-point numbers with an error bound.

    Args:
      certificate: from `certify_rate` or `check_lyapunov`, of any batch shape.

    Returns:
      [...]: true only where rounding cannot have faked it, barring underflow. False where the margin is too near to
      rounding to tell, where `verify` may still accept.

    Raises:
      TypeError: not a certificate.

    Cost: two evaluations of the matrices and two factorizations a member: far less than finding it. Not differentiable.
    Source: Rump, "Verification of positive definiteness", BIT 46 (2006), 433-452, corollary 2.4 for the factorization.

    Example:
      >>> import jax
      >>> from jaxnm.first_order import certify_rate, gradient_descent
      >>> with jax.enable_x64(True):
      ...     bool(jax.jit(lambda mu: is_proved(certify_rate(gradient_descent(1.0), mu, 1.0)))(0.1))
      True
    """
    check_certificate("is_proved", certificate)
    leaves = (
        certificate.method, certificate.mu, certificate.L, certificate.rate,
        certificate.Q, certificate.q, certificate.multipliers, certificate.status,
    )  # fmt: skip
    return _are_proved(certificate.memory, *jax.lax.stop_gradient(leaves))


@partial(jax.jit, static_argnums=0)
def _are_proved(memory: int, *numbers: Any) -> Array:
    member = partial(_is_proved, memory)
    for _ in range(jnp.ndim(numbers[-1])):
        member = jax.vmap(member)
    return member(*numbers)


def _is_proved(
    memory: int, method: StateSpace, mu: Array, L: Array, rate: Array, Q: Array, q: Array, given: Array, status: Array
) -> Array:
    n = method.num_states
    units = balanced(method, mu, L)
    exponents = jnp.pad(units.exponents, (0, memory + 1))
    entries = times_power(Q, -exponents[:, None] - exponents[None])[jnp.tril_indices(n + memory + 1)]
    free = np.concatenate([pairs_of(points + 1)[:, 1] != points for points in (memory + 2, memory + 1)])
    v = jnp.concatenate([entries, q, given[np.flatnonzero(free)]])
    holds = (status == jnp.int32(Status.OK)) | (status == jnp.int32(Status.INACCURATE))
    holds &= (mu >= 0) & (mu <= L) & jnp.all(Q == Q.T)
    systems = systems_of(units.method, units.mu, units.L, memory)
    system, moduli = (jax.tree.map(lambda array: array[..., None], part) for part in systems)
    return holds & proves(system, moduli, v[:, None], rate[None], n, memory)[0]


def systems_of(method: StateSpace, mu: Array, L: Array, memory: int) -> tuple[LyapunovSystem, LyapunovSystem]:
    """The inequalities of a balanced method, and their moduli."""
    n = method.num_states
    system = lyapunov_system(rows_of(method, mu, L, memory), n, memory)
    return system, lyapunov_system(rows_of(method, mu, L, memory, moduli=True), n, memory, moduli=True)


def proves(
    system: LyapunovSystem, moduli: LyapunovSystem, v: Array, rate: Array, num_states: int, memory: int
) -> Array:
    """[N]: whether v [m, N] proves the rate [N], rounding included; the batch is last everywhere."""
    eps = jnp.finfo(rate.dtype).eps
    steps, rows = memory + 1, system.blocks.shape[1]
    # sums over states, coordinates, forms and unknowns, one after the other, and some single operations
    operations = steps * (num_states + 4) + 4 * (num_states + steps + 1) + sum(num_unknowns(num_states, memory)) + 20
    relative = 2 * operations * eps
    shortfall = (1 - rate) * (1 + rate)  # from one, of the square of the rate
    sizes = jnp.abs(v)
    weighted = lambda factors, array: jnp.sum(lmi.spread_over(factors, array) * array, 0)
    matrices, numbers = (weighted(v, array) for array in system.at(shortfall))
    errors, number_errors = (relative * weighted(sizes, array) for array in moduli.at(-shortfall))
    diagonal = jnp.stack([matrices[k, k] for k in range(rows)])
    positive = diagonal > 0
    scale = jax.lax.rsqrt(jnp.where(positive, diagonal, 1))
    scale = scale[:, None] * scale[None]
    # errors of at most e_ij are below the diagonal matrix of the sums over j
    noise = jnp.sum(errors * scale, 1) + 8 * (rows + 3) * rows * eps
    unit = jnp.eye(rows, dtype=rate.dtype)[..., None, None]
    pivots = lmi.smallest_pivot(matrices * scale - noise[:, None] * unit)
    definite = jnp.all(positive, (0, 1)) & jnp.all(pivots > 0, 0)
    return definite & jnp.all(numbers >= number_errors, 0) & (rate < 1) & (rate >= 0)
