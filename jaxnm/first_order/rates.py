"""Worst-case rate over an interval of curvatures, and the stability limit.

With characteristic polynomials d(z) = det(zI - A) and n(z) = C adj(zI - A) B the block of curvature lam has
det(zI - A - lam B C) = d(z) - lam n(z). So an eigenvalue has modulus r exactly at the curvatures lam = d(z) / n(z)
that are real with |z| = r. There, Im(d conj(n)) = sin(theta) U(cos theta) with a polynomial U of degree n - 1, whose
real roots are found with certainty. Everything below reads off these *crossings*.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxnm import arguments, trees
from jaxnm.first_order.methods import check_curvatures, curvatures_valid
from jaxnm.first_order.spectral import spectral_radius
from jaxnm.first_order.state_space import StateSpace, check_method, iteration_matrix
from jaxnm.linalg import matmul

_MAX_LEVELS = 64
_LEVEL_MARGIN = 1000  # in units of eps: how closely two levels are told apart


def quadratic_rate(method: StateSpace, mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> Float[Array, ""]:
    """Worst asymptotic rate per iterate over all quadratics with curvatures in [mu, L].

    Args:
      method: state-space form.
      mu: smallest curvature, >= 0. At 0 most methods keep an eigenvalue 1, and the rate is then 1: none.
      L: largest curvature, >= mu.

    Returns:
      scalar: the largest spectral radius of `iteration_matrix(method, lam)` over mu <= lam <= L. Below 1: linear
      convergence. The error shrinks by this factor an iterate (not its square) after the transient.

    Raises:
      ValueError: Python numbers outside 0 <= mu <= L. Traced ones give NaN.
      TypeError: a method of another type.

    Cost: n <= 2: three closed forms. n >= 3: a search over crossings, typically 3 to 6 rounds of n + 2 eigenvalue
    problems.
    Accuracy: n <= 2: rounding, as the worst curvature is an end of the interval (the trace and the determinant are
    affine in lam, so Jury's conditions at every radius cut out an interval). n >= 3: no curvature of the interval
    exceeds the returned rate by more than a factor 1 + 1000 eps where the dominant eigenvalues are well conditioned; at
    a multiple root of order p a peak narrower than eps^(1/p) can be missed.
    Differentiable where the worst curvature is unique (one-sided elsewhere) and `spectral_radius` is; n >= 3: a second
    derivative raises TypeError.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> float(quadratic_rate(gradient_descent(0.5), 1.0, 3.0))
      0.5
    """
    return _quadratic_rate(*_interval("quadratic_rate", method, mu, L))


def worst_curvature(method: StateSpace, mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> Float[Array, ""]:
    """The curvature in [mu, L] at which `quadratic_rate` is attained.

    Args:
      method: state-space form.
      mu: smallest curvature, >= 0.
      L: largest curvature, >= mu.

    Returns:
      scalar in [mu, L]; where both ends tie exactly, L.

    Raises:
      ValueError: Python numbers outside 0 <= mu <= L. Traced ones give NaN.
      TypeError: a method of another type.

    Cost: that of `quadratic_rate`. n <= 2: differentiable, as it is an end of the interval. n >= 3: not differentiable
    (TypeError), as it can be inside.

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> float(worst_curvature(gradient_descent(0.5), 1.0, 3.5))
      3.5
    """
    operands = _interval("worst_curvature", method, mu, L)
    if method.num_states > 2:
        remedy = "differentiate quadratic_rate: how an interior worst curvature moves is not known"
        operands = arguments.without_derivative("worst_curvature", "an argument", operands, remedy=remedy)
    return worst_or_fixed(*operands)


def is_stable(method: StateSpace, mu: Float[ArrayLike, ""], L: Float[ArrayLike, ""]) -> Bool[Array, ""]:
    """Whether the method converges linearly on every quadratic with curvatures in [mu, L].

    Args:
      method: state-space form.
      mu: smallest curvature, >= 0.
      L: largest curvature, >= mu.

    Returns:
      bool scalar: `quadratic_rate(method, mu, L)` is below 1 by more than its accuracy (8 n eps for n <= 2, else
      1000 eps); False for bad traced input, and where mu = 0 keeps an eigenvalue 1.

    Raises:
      ValueError: Python numbers outside 0 <= mu <= L. TypeError: a method of another type.

    Cost: that of `quadratic_rate`. Not differentiable (a truth value).

    Example:
      >>> from jaxnm.first_order import gradient_descent
      >>> bool(is_stable(gradient_descent(0.5), 1.0, 3.9)), bool(is_stable(gradient_descent(0.5), 1.0, 4.0))
      (True, False)
    """
    return _is_stable(*_interval("is_stable", method, mu, L))


@jax.jit
def _is_stable(method: StateSpace, mu: Array, L: Array) -> Array:
    rate = _quadratic_rate(method, mu, L)
    return rate < 1 - (_LEVEL_MARGIN if method.num_states > 2 else 8 * method.num_states) * jnp.finfo(rate.dtype).eps


def stability_limit(method: StateSpace) -> Float[Array, ""]:
    """The largest lam such that the method is stable on every curvature in (0, lam).

    Args:
      method: state-space form.

    Returns:
      scalar >= 0: 0 if small curvatures are unstable already, inf if every positive curvature is stable. NaN if the
      method is not finite, or (n >= 3) if the dtype cannot decide whether the curvatures below are stable. Divide by L
      for the factor by which the step may grow, for methods where only the product of step and curvature counts.

    Raises:
      TypeError: a method of another type.

    Cost: n <= 2: Jury's three affine conditions. n >= 3: the crossings of the unit circle.
    Accuracy: n <= 2: rounding. n >= 3: that of a root of the characteristic polynomial on the circle, eps times its
    condition: poor where eigenvalues meet there.
    Differentiable where the limit is positive and finite; for n >= 3 a second derivative raises TypeError.

    Example:
      >>> from jaxnm.first_order import heavy_ball
      >>> round(float(stability_limit(heavy_ball(0.1, 0.9))), 4)
      38.0
    """
    check_method("stability_limit", method)
    return _stability_limit(StateSpace(*arguments.to_arrays("stability_limit", A=method.A, B=method.B, C=method.C)))


def _interval(function: str, method: StateSpace, mu: ArrayLike, L: ArrayLike) -> tuple[StateSpace, Array, Array]:
    check_method(function, method)
    check_curvatures(function, mu, L, positive=False)
    A, B, C, mu, L = arguments.to_arrays(function, A=method.A, B=method.B, C=method.C, mu=mu, L=L)
    for name, array in (("mu", mu), ("L", L)):
        arguments.check_real(function, name, array)
        arguments.check_shape(function, name, array, "a scalar, shape ()", lambda shape: shape == ())
    return StateSpace(A, B, C), mu, L


def once_differentiable(name: str, function: Callable[..., Any], *operands: Any) -> Any:
    """A function of which a second derivative raises TypeError: its first one holds something fixed that moves."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        remedy = "use differences of the gradient: only the first derivative is known"
        fixed = arguments.without_derivative(name, "the gradient", primals, remedy=remedy)
        return guarded(*primals), jax.jvp(function, fixed, tangents)[1]

    return guarded(*operands)


@jax.jit
def worst_or_fixed(method: StateSpace, mu: Array, L: Array) -> Array:
    """The worst curvature; it moves with an end of the interval, and not inside it, where the rate does not feel it."""
    if method.num_states > 2:
        curvature = _highest(*jax.lax.stop_gradient((method, mu, L)))
        worst = jnp.where(curvature == mu, mu, jnp.where(curvature == L, L, curvature))
    else:
        worst = jnp.where(_rate_at(method, L) >= _rate_at(method, mu), L, mu)
    return arguments.nan_unless(worst, curvatures_valid(mu, L, positive=False) & trees.all_finite(method))


@jax.jit
def _quadratic_rate(method: StateSpace, mu: Array, L: Array) -> Array:
    worst_rate = lambda method, mu, L: _rate_at(method, worst_or_fixed(method, mu, L))
    if method.num_states > 2:
        return once_differentiable("quadratic_rate", worst_rate, method, mu, L)
    return worst_rate(method, mu, L)


def _rate_at(method: StateSpace, curvature: Array) -> Array:
    return spectral_radius(iteration_matrix(method, curvature))


def _highest(method: StateSpace, mu: Array, L: Array) -> Array:
    """The curvature in [mu, L] at which the rate is highest.

    The rate is raised until no eigenvalue crosses that modulus inside the interval: between two neighbouring
    crossings the rate is above or below the level throughout, so one look at each midpoint tells, and the level can
    be raised to the highest. Convergence is quadratic (as for the H-infinity norm: Boyd, Balakrishnan 1990).
    """
    margin = _LEVEL_MARGIN * jnp.finfo(mu.dtype).eps

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        rate, curvature, _, rounds = state
        level = jnp.maximum(rate * (1 + margin), jnp.finfo(rate.dtype).tiny ** 0.25)
        crossings, _ = _crossings(method, level)
        inside = (crossings > mu) & (crossings < L)
        nodes = jnp.sort(jnp.concatenate([mu[None], jnp.where(inside, crossings, L), L[None]]))
        # the ends matter in the first round, where the level is still far below the rate there
        candidates = jnp.concatenate([L[None], mu[None], (nodes[:-1] + nodes[1:]) / 2])
        rates = _rate_at(method, candidates)
        best = jnp.argmax(rates)
        higher = rates[best] > level
        rate, curvature = jnp.where(higher, rates[best], rate), jnp.where(higher, candidates[best], curvature)
        return rate, curvature, ~higher, rounds + 1

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        return ~state[2] & (state[3] < _MAX_LEVELS)

    start = (jnp.zeros_like(L), L, jnp.array(False), jnp.int32(0))
    return jax.lax.while_loop(unfinished, step, start)[1]


def _characteristic_polynomials(method: StateSpace) -> tuple[Array, Array]:
    """Ascending coefficients of d(z) [n + 1] and n(z) [n], by Faddeev and LeVerrier."""
    A, n = method.A, method.num_states
    identity = jnp.eye(n, dtype=A.dtype)
    adjugate = identity
    denominator, numerator = [jnp.ones((), A.dtype)], []
    for k in range(1, n + 1):
        numerator.append(matmul(method.C, matmul(adjugate, method.B)))
        product = matmul(A, adjugate)
        denominator.append(-jnp.trace(product) / k)
        adjugate = product + denominator[-1] * identity
    return jnp.stack(denominator[::-1]), jnp.stack(numerator[::-1])


def _crossings(method: StateSpace, radius: Array) -> tuple[Array, Array]:
    """The curvatures [n + 1] at which an eigenvalue has modulus `radius` (NaN pads), and the noise [n + 1] in each."""
    n = method.num_states
    d, numerator = _characteristic_polynomials(method)
    powers = radius ** jnp.arange(n + 1, dtype=d.dtype)
    d, numerator = d * powers, jnp.append(numerator, jnp.zeros((), d.dtype)) * powers
    products = d[:, None] * numerator[None, :]
    # Im(d conj(n)) = sum over m of s_m sin(m theta), and sin(m theta) = sin(theta) U_{m-1}(cos theta)
    sines = jnp.stack([jnp.trace(products, offset=-m) - jnp.trace(products, offset=m) for m in range(1, n + 1)])
    cosines = _real_roots(matmul(sines, jnp.asarray(_second_kind_chebyshev(n), d.dtype)))
    end = jnp.ones((1,), d.dtype)
    theta = jnp.arccos(jnp.clip(jnp.concatenate([cosines, end, -end]), -1, 1))
    angles = jnp.arange(n + 1, dtype=d.dtype)[:, None] * theta[None, :]
    d_values = jnp.stack([matmul(d, jnp.cos(angles)), matmul(d, jnp.sin(angles))])
    n_values = jnp.stack([matmul(numerator, jnp.cos(angles)), matmul(numerator, jnp.sin(angles))])
    squares = jnp.sum(n_values**2, 0)
    usable = squares > 0
    squares = jnp.where(usable, squares, jnp.ones_like(squares))
    crossings = jnp.where(usable, jnp.sum(d_values * n_values, 0) / squares, jnp.nan)
    noise = 10 * (n + 1) * jnp.finfo(d.dtype).eps * jnp.sum(jnp.abs(d)) / jnp.sqrt(squares)
    return crossings, noise


def _second_kind_chebyshev(count: int) -> np.ndarray:
    """Ascending monomial coefficients of U_0..U_{count-1} as rows [count, count]."""
    rows = np.zeros((count, count))
    rows[0, 0] = 1
    if count > 1:
        rows[1, 1] = 2
    for m in range(2, count):
        rows[m, 1:] = 2 * rows[m - 1, :-1]
        rows[m] -= rows[m - 2]
    return rows


def _real_roots(coefficients: Array) -> Array:
    """The roots in [-1, 1] of a polynomial (ascending coefficients [m + 1]) as [m], NaN where there are fewer.

    Between neighbouring roots of its derivative a polynomial is monotone, so it has at most one root there, which
    bisection finds from the signs at both ends. A double root that rounding lifts off the axis may be missed.
    """
    degree = coefficients.shape[0] - 1
    one = jnp.ones((1,), coefficients.dtype)
    if degree == 0:
        return jnp.zeros((0,), coefficients.dtype)
    extrema = _real_roots(coefficients[1:] * jnp.arange(1, degree + 1, dtype=coefficients.dtype))
    nodes = jnp.sort(jnp.concatenate([-one, jnp.where(jnp.isnan(extrema), one, extrema), one]))
    evaluate = partial(jnp.polyval, coefficients[::-1])
    low, high = nodes[:-1], nodes[1:]
    rising = evaluate(low) <= 0
    exists = (evaluate(low) <= 0) != (evaluate(high) <= 0)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        left = (evaluate(middle) <= 0) == rising
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    low, high = jax.lax.fori_loop(0, jnp.finfo(coefficients.dtype).nmant + 4, halve, (low, high))
    return jnp.where(exists, (low + high) / 2, jnp.nan)


@jax.jit
def _stability_limit(method: StateSpace) -> Array:
    if method.num_states <= 2:
        limit = _limit_by_jury(method)
    else:
        limit = once_differentiable("stability_limit", _limit_by_crossings, method)
    return arguments.nan_unless(limit, trees.all_finite(method))


def _limit_by_jury(method: StateSpace) -> Array:
    """Each of Jury's conditions is affine in the curvature: constant + slope lam > 0."""
    A, B, C = method.A, method.B, method.C
    eps = jnp.finfo(A.dtype).eps
    if method.num_states == 1:
        one = jnp.ones_like(A[0, 0])
        constants = [(one, -A[0, 0]), (one, A[0, 0])]
        slopes = [-B[0] * C[0], B[0] * C[0]]
    else:
        products = A[0, 0] * A[1, 1], -A[0, 1] * A[1, 0]
        one = jnp.ones_like(A[0, 0])
        constants = [
            (one, -A[0, 0], -A[1, 1], *products),
            (one, A[0, 0], A[1, 1], *products),
            (one, -products[0], -products[1]),
        ]
        # det(A + lam B C) = det(A) + lam C adj(A) B
        slope = C[0] * (A[1, 1] * B[0] - A[0, 1] * B[1]) + C[1] * (A[0, 0] * B[1] - A[1, 0] * B[0])
        trace = B[0] * C[0] + B[1] * C[1]
        slopes = [slope - trace, slope + trace, -slope]
    limit = jnp.full_like(A[0, 0], jnp.inf)
    for terms, slope in zip(constants, slopes, strict=True):
        constant = sum(terms[1:], terms[0])
        at_zero = jnp.abs(constant) <= 4 * eps * sum(map(jnp.abs, terms[1:]), jnp.abs(terms[0]))
        falling = slope < 0
        bound = -constant / jnp.where(falling, slope, -jnp.ones_like(slope))
        bound = jnp.where(falling, bound, jnp.inf)
        # an eigenvalue on the circle at curvature zero, as every method has, must move inwards
        bound = jnp.where(at_zero, jnp.where(slope > 0, jnp.inf, jnp.zeros_like(slope)), bound)
        bound = jnp.where(~at_zero & (constant < 0), jnp.zeros_like(bound), bound)
        limit = jnp.minimum(limit, bound)
    return limit


def _limit_by_crossings(method: StateSpace) -> Array:
    frozen = jax.lax.stop_gradient(method)
    crossings, noise = _crossings(frozen, jnp.ones((), method.A.dtype))
    first = jnp.min(jnp.where(crossings > noise, crossings, jnp.inf))  # NaN compares false
    crosses = jnp.isfinite(first)
    at = jnp.where(crosses, first, jnp.ones_like(first))
    both = jnp.stack([at / 2, at])
    rates, slopes = jax.jvp(lambda curvatures: _rate_at(method, curvatures), (both,), (jnp.ones_like(both),))
    # the limit moves so that the spectral radius there stays 1: d lam = -d rho / (d rho / d lam)
    slope = jax.lax.stop_gradient(jnp.where(crosses & (slopes[1] != 0), slopes[1], jnp.ones_like(first)))
    moved = jnp.where(crosses, -rates[1] / slope, jnp.zeros_like(first))
    value = jnp.where(crosses, at + (moved - jax.lax.stop_gradient(moved)), jnp.inf)
    noise = 8 * method.num_states * jnp.finfo(first.dtype).eps
    value = jnp.where(rates[0] < 1 - noise, value, jnp.zeros_like(value))
    # on the circle within rounding at half a crossing: stable or not cannot be decided
    return arguments.nan_unless(value, ~crosses | (jnp.abs(rates[0] - 1) > noise))
