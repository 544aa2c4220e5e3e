"""Chebyshev's semi-iteration: the best that a fixed number of gradients can do on a known interval of curvatures."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments, trees
from jaxnm.first_order.methods import check_curvatures, curvatures_valid, three_parameter
from jaxnm.first_order.spectral import spectral_norm
from jaxnm.first_order.state_space import StateSpace, check_method, curvatures_of, iteration_matrix
from jaxnm.linalg import matmul


def chebyshev(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""], num_steps: int) -> StateSpace:
    """Chebyshev's two-term semi-iteration, a time-varying heavy ball: one `StateSpace` a step.

    With c = (L + mu) / 2 and d = (L - mu) / 2 the error after k steps is T_k((c - lam) / d) / T_k(c / d) times the
    initial one, on every curvature lam; no method of gradients has a smaller worst case at step k.

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.
      num_steps: number of steps, a Python int >= 1 (static).

    Returns:
      `StateSpace` with a leading axis [num_steps] on each of A, B, C; start it from x_{-1} = x_0. Step k is heavy ball
      with step size omega / c and momentum omega - 1, omega_1 = 1, omega_2 = 2 c^2 / (2 c^2 - d^2),
      omega_{k+1} = 1 / (1 - omega_k d^2 / (4 c^2)).

    Raises:
      ValueError: Python numbers outside 0 < mu <= L, or no steps. TypeError: a count that is not a Python int. Traced
        curvatures out of range give NaN.

    Cost: a scan of num_steps. Differentiable for mu > 0.
    Source: Golub, Varga, "Chebyshev semi-iterative methods", Numer. Math. 3 (1961), equations (2.9) to (2.12).

    Example:
      >>> chebyshev(1.0, 3.0, 2).B[:, 0]
      Array([-0.5      , -0.5714286], dtype=float32)
    """
    check_curvatures("chebyshev", mu, L)
    arguments.check_count("chebyshev", "num_steps", num_steps, minimum=1)
    mu, L = arguments.to_arrays("chebyshev", mu=mu, L=L)
    for name, array in (("mu", mu), ("L", L)):
        arguments.check_real("chebyshev", name, array)
        arguments.check_shape("chebyshev", name, array, "a scalar, shape ()", lambda shape: shape == ())
    return _chebyshev(mu, L, int(num_steps))


@partial(jax.jit, static_argnames="num_steps")
def _chebyshev(mu: Array, L: Array, num_steps: int) -> StateSpace:
    center, ratio = (L + mu) / 2, ((L - mu) / (L + mu)) ** 2

    def step(omega: Array, k: Array) -> tuple[Array, Array]:
        following = 1 / (1 - omega * ratio / jnp.where(k == 0, 2, 4).astype(omega.dtype))
        return following, omega

    _, omegas = jax.lax.scan(step, jnp.ones_like(center), jnp.arange(num_steps))
    methods = jax.vmap(lambda omega: three_parameter(omega / center, omega - 1, jnp.zeros_like(omega)))(omegas)
    good = curvatures_valid(mu, L)
    return jax.tree.map(lambda leaf: arguments.nan_unless(leaf, good), methods)


def time_varying_rate(method: StateSpace, eigenvalues: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """2-norm of the product of all blocks of a time-varying method: how much of the state is left after all steps.

    Args:
      method: state-space form with a leading axis [num_steps] on A, B and C, as from `chebyshev`.
      eigenvalues: [...] curvatures.

    Returns:
      [...] norms of `M_{K-1} ... M_1 M_0`; the K-th root is a rate per iterate. inf where the product overflows, NaN
      where an input is not finite.

    Raises:
      ValueError: a method without a leading axis. TypeError: an integer array, or a method of another type.

    Cost: num_steps products a curvature. Differentiable where the largest singular value is simple.
    Source: the definition; for Chebyshev's closed form see `chebyshev`.

    Example:
      >>> rates = time_varying_rate(chebyshev(1.0, 3.0, 10), jnp.array([1.0, 2.0, 3.0]))
      >>> bool(jnp.all(rates < 0.01))
      True
    """
    check_method("time_varying_rate", method)
    eigenvalues = curvatures_of("time_varying_rate", "eigenvalues", eigenvalues, method)
    arguments.check_shape("time_varying_rate", "method.A", method.A, "[num_steps, n, n]", lambda shape: len(shape) == 3)
    return _time_varying_rate(method, eigenvalues)


@jax.jit
def _time_varying_rate(method: StateSpace, eigenvalues: Array) -> Array:
    identity = jnp.eye(method.A.shape[-1], dtype=method.A.dtype)

    def step(product: Array, one: StateSpace) -> tuple[Array, None]:
        return matmul(iteration_matrix(one, eigenvalues), product), None

    start = jnp.broadcast_to(identity[(None,) * eigenvalues.ndim], (*eigenvalues.shape, *identity.shape))
    product, _ = jax.lax.scan(step, start, method)
    finite = jnp.isfinite(eigenvalues) & trees.all_finite(method)
    return arguments.nan_unless(spectral_norm(product), finite)
