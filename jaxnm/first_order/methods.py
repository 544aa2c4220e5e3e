"""The named first-order methods as state-space systems.

Step sizes are in units of 1 / curvature; `mu` and `L` are the smallest and largest curvature. Python numbers are
checked when the function is called; a traced value outside its range gives a method of NaNs.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxnm import arguments
from jaxnm.first_order.state_space import StateSpace

_ROUNDED = 1e-6  # how far outside its interval a rate given to a few digits may lie


def three_parameter(alpha: Float[ArrayLike, ""], beta: Float[ArrayLike, ""], gamma: Float[ArrayLike, ""]) -> StateSpace:
    """`x_{k+1} = x_k + beta (x_k - x_{k-1}) - alpha grad f(x_k + gamma (x_k - x_{k-1}))`, state (x_k, x_{k-1}).

    Args:
      alpha: step size, >= 0.
      beta: momentum.
      gamma: extrapolation of the point where the gradient is taken.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: a Python number that is not finite, or alpha < 0. Traced ones give NaN.

    Differentiable everywhere. Source: Lessard, Recht, Packard, SIAM J. Optim. 26 (2016), section 4.

    Example:
      >>> three_parameter(0.5, 0.25, 0.0).A
      Array([[ 1.25, -0.25],
             [ 1.  ,  0.  ]], dtype=float32)
    """
    return _build("three_parameter", _three_parameter, alpha=alpha, beta=beta, gamma=gamma)


def gradient_descent(step_size: Float[ArrayLike, ""]) -> StateSpace:
    """`x_{k+1} = x_k - step_size grad f(x_k)`, one state.

    Args:
      step_size: >= 0.

    Returns:
      `StateSpace` with n = 1.

    Raises:
      ValueError: a Python number that is negative or not finite. Traced ones give NaN.

    Differentiable everywhere.

    Example:
      >>> gradient_descent(0.1).B
      Array([-0.1], dtype=float32)
    """
    return _build("gradient_descent", _gradient_descent, step_size=step_size)


def heavy_ball(step_size: Float[ArrayLike, ""], momentum: Float[ArrayLike, ""]) -> StateSpace:
    """Polyak's heavy ball: `three_parameter` with gamma = 0.

    Args:
      step_size: >= 0.
      momentum: stable on curvatures below 2 (1 + momentum) / step_size if |momentum| < 1.

    Returns:
      `StateSpace` with n = 2, state (x_k, x_{k-1}).

    Raises:
      ValueError: a Python number that is not finite, or a negative step. Traced ones give NaN.

    Differentiable everywhere.

    Example:
      >>> heavy_ball(0.1, 0.9).A
      Array([[ 1.9, -0.9],
             [ 1. ,  0. ]], dtype=float32)
    """
    return _build("heavy_ball", _heavy_ball, step_size=step_size, momentum=momentum)


def nesterov(step_size: Float[ArrayLike, ""], momentum: Float[ArrayLike, ""]) -> StateSpace:
    """Nesterov's method with constant momentum: `three_parameter` with gamma = beta.

    Args:
      step_size: >= 0.
      momentum: any finite number.

    Returns:
      `StateSpace` with n = 2, state (x_k, x_{k-1}).

    Raises:
      ValueError: a Python number that is not finite, or a negative step. Traced ones give NaN.

    Differentiable everywhere.

    Example:
      >>> nesterov(0.1, 0.5).C
      Array([ 1.5, -0.5], dtype=float32)
    """
    return _build("nesterov", _nesterov, step_size=step_size, momentum=momentum)


def optimal_gradient_descent(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """Gradient descent with step 2 / (mu + L): rate (kappa - 1) / (kappa + 1), kappa = L / mu.

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 1.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L. Traced ones give NaN.

    Differentiable everywhere.

    Example:
      >>> optimal_gradient_descent(1.0, 3.0).B
      Array([-0.5], dtype=float32)
    """
    return _build("optimal_gradient_descent", _optimal_gradient_descent, mu=mu, L=L)


def optimal_heavy_ball(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """Heavy ball with Polyak's parameters: rate (sqrt(kappa) - 1) / (sqrt(kappa) + 1) on quadratics.

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 2. Not convergent on all smooth strongly convex functions.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L. Traced ones give NaN.

    Differentiable for mu > 0. Source: arXiv:2310.15880, Table 1.

    Example:
      >>> float(optimal_heavy_ball(1.0, 9.0).B[0])
      -0.25
    """
    return _build("optimal_heavy_ball", _optimal_heavy_ball, mu=mu, L=L)


def optimal_nesterov(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """Nesterov's method with step 1 / L and momentum (sqrt(kappa) - 1) / (sqrt(kappa) + 1): rate 1 - 1 / sqrt(kappa).

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L. Traced ones give NaN.

    Differentiable for mu > 0. Source: arXiv:2310.15880, Table 1.

    Example:
      >>> float(optimal_nesterov(1.0, 4.0).B[0])
      -0.25
    """
    return _build("optimal_nesterov", _optimal_nesterov, mu=mu, L=L)


def triple_momentum(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """The triple momentum method: rate 1 - 1 / sqrt(kappa), on quadratics and on smooth strongly convex functions.

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L. Traced ones give NaN.

    Differentiable for mu > 0. Source: Van Scoy, Freeman, Lynch, IEEE Control Systems Letters 2 (2018), Theorem 1.

    Example:
      >>> triple_momentum(1.0, 4.0).B
      Array([-0.375,  0.   ], dtype=float32)
    """
    return _build("triple_momentum", _triple_momentum, mu=mu, L=L)


def robust_momentum(rho: Float[ArrayLike, ""], mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """The robust momentum method, tuned by its rate: fast and fragile at the lower end, gradient descent at the upper.

    Args:
      rho: rate per iterate, in [1 - 1/sqrt(kappa), 1 - 1/kappa]; the lower end is `triple_momentum`. Up to 1e-6
        outside counts as the end, so that a rounded number may be passed.
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L, or rho outside its interval. Traced ones give NaN.

    Differentiable for mu < L and rho inside its interval.
    Source: Cyrus, Hu, Van Scoy, Lessard, American Control Conference 2018, equation (5).

    Example:
      >>> robust_momentum(0.5, 1.0, 4.0).B
      Array([-0.375,  0.   ], dtype=float32)
    """
    check_curvatures("robust_momentum", mu, L)
    if arguments.is_number(mu) and arguments.is_number(L):
        lower, upper = 1 - (mu / L) ** 0.5, 1 - mu / L
        arguments.check_number(
            "robust_momentum",
            "rho",
            rho,
            f"a number in [1 - sqrt(mu/L), 1 - mu/L] = [{lower:.6g}, {upper:.6g}]",
            lambda value: lower - _ROUNDED <= value <= upper + _ROUNDED,
            "choose a rate inside the interval",
        )
    return _build("robust_momentum", _robust_momentum, rho=rho, mu=mu, L=L)


def gauss_seidel_nesterov(step_size: Float[ArrayLike, ""], momentum: Float[ArrayLike, ""]) -> StateSpace:
    """NAG-GS, the Gauss-Seidel splitting of the accelerated gradient flow, state (x_k, x_{k-1}).

    Args:
      step_size: a >= 0.
      momentum: b.

    Returns:
      `StateSpace` with A = [[2b + (1-b)^2, -b^2], [1, 0]], B = [-a (1-b), 0], C = [1, 0].

    Raises:
      ValueError: a Python number that is not finite, or a negative step. Traced ones give NaN.

    Differentiable everywhere. Source: arXiv:2310.15880, Table 1 (Leplat, Merkulov, Katrutsa, Bershatsky, Oseledets).

    Example:
      >>> gauss_seidel_nesterov(0.5, 0.5).B
      Array([-0.25,  0.  ], dtype=float32)
    """
    return _build("gauss_seidel_nesterov", _gauss_seidel_nesterov, step_size=step_size, momentum=momentum)


def optimal_gauss_seidel_nesterov(mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> StateSpace:
    """NAG-GS at its optimum, which is the optimal heavy ball: the same matrices, the same rate.

    Args:
      mu: smallest curvature, > 0.
      L: largest curvature, >= mu.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: Python numbers outside 0 < mu <= L. Traced ones give NaN.

    Differentiable for mu > 0. Source: arXiv:2310.15880, Table 1.

    Example:
      >>> bool(jnp.allclose(optimal_gauss_seidel_nesterov(1.0, 9.0).A, optimal_heavy_ball(1.0, 9.0).A))
      True
    """
    return _build("optimal_gauss_seidel_nesterov", _optimal_gauss_seidel_nesterov, mu=mu, L=L)


def optimistic_gradient(step_size: Float[ArrayLike, ""]) -> StateSpace:
    """`x_{k+1} = x_k - 2 a g_k + a g_{k-1}`, state (x_k, g_{k-1}).

    Args:
      step_size: a >= 0.

    Returns:
      `StateSpace` with n = 2; with s = a lam the spectral radius is (|1 - 2s| + sqrt(1 + 4 s^2)) / 2.

    Raises:
      ValueError: a Python number that is negative or not finite. Traced ones give NaN.

    Differentiable everywhere. Source: Daskalakis, Ilyas, Syrgkanis, Zeng, arXiv:1711.00141, equation (2).

    Example:
      >>> optimistic_gradient(0.5).B
      Array([-1.,  1.], dtype=float32)
    """
    return _build("optimistic_gradient", _optimistic_gradient, step_size=step_size)


def quasi_hyperbolic(
    step_size: Float[ArrayLike, ""], momentum: Float[ArrayLike, ""], nu: Float[ArrayLike, ""]
) -> StateSpace:
    """Quasi-hyperbolic momentum with a damped average, state (x_k, average_k).

    `average+ = momentum average + (1 - momentum) g`, `x+ = x - step_size ((1 - nu) g + nu average+)`.

    Args:
      step_size: >= 0.
      momentum: decay of the average.
      nu: weight of the average; 0 is gradient descent, 1 is momentum with damping.

    Returns:
      `StateSpace` with n = 2.

    Raises:
      ValueError: a Python number that is not finite, or a negative step. Traced ones give NaN.

    Differentiable everywhere. Source: Ma, Yarats, arXiv:1810.06801, equations (3) and (4).

    Example:
      >>> quasi_hyperbolic(1.0, 0.5, 0.5).B
      Array([-0.75,  0.5 ], dtype=float32)
    """
    return _build("quasi_hyperbolic", _quasi_hyperbolic, step_size=step_size, momentum=momentum, nu=nu)


def check_curvatures(function: str, mu: object, L: object, *, positive: bool = True) -> None:
    """Refuse Python numbers outside 0 < mu <= L (0 <= mu unless `positive`)."""
    bound = "> 0" if positive else ">= 0"
    remedy = (
        "a strongly convex function has mu > 0: add l2 regularization" if positive else "negative curvature has no rate"
    )
    in_range = lambda mu: mu > 0 or (mu == 0 and not positive)
    check = partial(arguments.check_number, function, scalar=False)  # arrays are looked at where they are converted
    check("mu", mu, f"a finite number {bound}", in_range, remedy)
    check("L", L, "a finite number > 0", lambda L: L > 0, "pass the largest curvature")
    if arguments.is_number(mu) and arguments.is_number(L) and mu > L:
        arguments.refuse(
            function, "mu", f"{mu!r} > L = {L!r}", "mu <= L", "mu is the smallest curvature, L the largest"
        )


def curvatures_valid(mu: Array, L: Array, *, positive: bool = True) -> Array:
    """The traced counterpart of `check_curvatures`."""
    return (mu > 0 if positive else mu >= 0) & (mu <= L) & (L > 0) & jnp.isfinite(L)


def _build(function: str, build: Callable[..., StateSpace], **parameters: ArrayLike) -> StateSpace:
    """Check the parameters, convert them to one dtype, and mark the method NaN where a traced one is out of range."""
    if "mu" in parameters:
        check_curvatures(function, parameters["mu"], parameters["L"])
    for name, value in parameters.items():
        if name in ("step_size", "alpha"):
            arguments.check_number(
                function, name, value, "a finite number >= 0", lambda step: step >= 0, "a step goes down the gradient"
            )
        elif name not in ("mu", "L"):
            arguments.check_number(function, name, value, "a finite number", lambda _: True, "pass a finite number")
    arrays = arguments.to_arrays(function, **parameters)
    for name, array in zip(parameters, arrays, strict=True):
        arguments.check_real(function, name, array)
        arguments.check_shape(function, name, array, "a scalar, shape ()", lambda shape: shape == ())
    return _built(build, tuple(parameters), *arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _built(build: Callable[..., StateSpace], names: tuple[str, ...], *arrays: Array) -> StateSpace:
    good = jnp.array(True)
    named = dict(zip(names, arrays, strict=True))
    for name, array in named.items():
        good &= jnp.isfinite(array) & ((array >= 0) | (name not in ("step_size", "alpha")))
    if "mu" in named:
        good &= curvatures_valid(named["mu"], named["L"])
    return _nan_unless(build(*arrays), good)


def _nan_unless(method: StateSpace, good: Array) -> StateSpace:
    return jax.tree.map(lambda leaf: arguments.nan_unless(leaf, good), method)


def _optimal_heavy_ball(mu: Array, L: Array) -> StateSpace:
    total = jnp.sqrt(L) + jnp.sqrt(mu)
    return _heavy_ball((2 / total) ** 2, _momentum(mu, L) ** 2)


def _triple_momentum(mu: Array, L: Array) -> StateSpace:
    rho = 1 - jnp.sqrt(mu / L)
    return _three_parameter((1 + rho) / L, rho**2 / (2 - rho), rho**2 / ((1 + rho) * (2 - rho)))


def _robust_momentum(rho: Array, mu: Array, L: Array) -> StateSpace:
    kappa = L / mu
    lower, upper = 1 - jnp.sqrt(mu / L), 1 - mu / L
    inside = (rho >= lower - _ROUNDED) & (rho <= upper + _ROUNDED)
    rho = jnp.clip(rho, lower, upper)
    excess = jnp.where(kappa > 1, kappa - 1, jnp.ones_like(kappa))
    # at mu = L the interval is the point rho = 0: gradient descent
    cube = jnp.where(kappa > 1, rho**3, jnp.zeros_like(rho))
    below = (1 - rho) ** 2 * (1 + rho)
    method = _three_parameter(kappa * below / L, kappa * cube / excess, cube / (excess * below))
    return _nan_unless(method, inside)


def _optimal_gauss_seidel_nesterov(mu: Array, L: Array) -> StateSpace:
    total = jnp.sqrt(L) + jnp.sqrt(mu)
    return _gauss_seidel_nesterov(2 * (1 + jnp.sqrt(L / mu)) / total**2, _momentum(mu, L))


def _optimistic_gradient(step_size: Array) -> StateSpace:
    zero, one = jnp.zeros_like(step_size), jnp.ones_like(step_size)
    return _assemble([[one, step_size], [zero, zero]], [-2 * step_size, one], [one, zero])


def _quasi_hyperbolic(step_size: Array, momentum: Array, nu: Array) -> StateSpace:
    zero, one = jnp.zeros_like(step_size), jnp.ones_like(step_size)
    A = [[one, -step_size * nu * momentum], [zero, momentum]]
    return _assemble(A, [-step_size * (1 - nu * momentum), 1 - momentum], [one, zero])


def _optimal_gradient_descent(mu: Array, L: Array) -> StateSpace:
    return _gradient_descent(2 / (mu + L))


def _optimal_nesterov(mu: Array, L: Array) -> StateSpace:
    return _nesterov(1 / L, _momentum(mu, L))


def _momentum(mu: Array, L: Array) -> Array:
    """(sqrt(L) - sqrt(mu)) / (sqrt(L) + sqrt(mu))."""
    return (jnp.sqrt(L) - jnp.sqrt(mu)) / (jnp.sqrt(L) + jnp.sqrt(mu))


def _assemble(A: list[list[Array]], B: list[Array], C: list[Array]) -> StateSpace:
    return StateSpace(jnp.stack([jnp.stack(row) for row in A]), jnp.stack(B), jnp.stack(C))


@jax.jit
def _gradient_descent(step_size: Array) -> StateSpace:
    one = jnp.ones_like(step_size)
    return _assemble([[one]], [-step_size], [one])


@jax.jit
def _three_parameter(alpha: Array, beta: Array, gamma: Array) -> StateSpace:
    zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
    return _assemble([[1 + beta, -beta], [one, zero]], [-alpha, zero], [1 + gamma, -gamma])


@jax.jit
def _heavy_ball(step_size: Array, momentum: Array) -> StateSpace:
    return _three_parameter(step_size, momentum, jnp.zeros_like(momentum))


@jax.jit
def _nesterov(step_size: Array, momentum: Array) -> StateSpace:
    return _three_parameter(step_size, momentum, momentum)


@jax.jit
def _gauss_seidel_nesterov(step_size: Array, momentum: Array) -> StateSpace:
    zero, one = jnp.zeros_like(step_size), jnp.ones_like(step_size)
    A = [[2 * momentum + (1 - momentum) ** 2, -(momentum**2)], [one, zero]]
    return _assemble(A, [-step_size * (1 - momentum), zero], [one, zero])
