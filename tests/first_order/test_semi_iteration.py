"""Chebyshev's semi-iteration against Chebyshev polynomials, and its norm against products of matrices."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm import first_order
from jaxnm.first_order import chebyshev, time_varying_rate


@pytest.mark.parametrize(("mu", "L", "steps"), [(0.1, 2.0, 1), (0.1, 2.0, 9), (1.0, 1.0, 3), (1e-3, 1.0, 40)])
def test_the_error_is_the_chebyshev_polynomial(mu, L, steps):
    """T_k((c - lam) / d) / T_k(c / d) on every curvature, inside the interval and outside."""
    method = chebyshev(mu, L, steps)
    A, B, C = (np.asarray(x) for x in (method.A, method.B, method.C))
    curvatures = np.linspace(0, 1.2 * L, 25) if mu < L else np.array([mu])
    z = np.ones((2, curvatures.size))
    for k in range(steps):
        z = A[k] @ z + np.outer(B[k], curvatures * (C[k] @ z))
    if mu == L:
        np.testing.assert_allclose(z[0], 0, atol=1e-15)
        return
    center, half = (L + mu) / 2, (L - mu) / 2
    T = np.polynomial.chebyshev.Chebyshev.basis(steps)
    np.testing.assert_allclose(z[0], T((center - curvatures) / half) / T(center / half), atol=1e-12)


def test_later_steps_are_the_optimal_heavy_ball():
    method, limit = chebyshev(0.1, 1.0, 200), first_order.optimal_heavy_ball(0.1, 1.0)
    np.testing.assert_allclose(method.A[-1], limit.A, rtol=1e-12)
    np.testing.assert_allclose(method.B[-1], limit.B, rtol=1e-12)


def test_no_fixed_method_is_better_at_its_last_step():
    """From x_{-1} = x_0 the worst |x_12| / |x_0| is 1 / T_12(c / d), below that of every constant heavy ball."""
    mu, L, steps = 0.1, 1.0, 12
    best = 1 / np.polynomial.chebyshev.Chebyshev.basis(steps)((L + mu) / (L - mu))
    curvatures = np.linspace(mu, L, 101)
    for step_size in np.linspace(0.5, 3, 11):
        for momentum in np.linspace(0, 0.8, 9):
            before = now = np.ones_like(curvatures)
            for _ in range(steps):
                before, now = now, now + momentum * (now - before) - step_size * curvatures * now
            assert np.abs(now).max() > best


def test_time_varying_rate_is_the_norm_of_the_product():
    method = chebyshev(0.1, 1.0, 7)
    curvatures = np.array([0.1, 0.37, 1.0])
    blocks = np.asarray(method.A)[None] + curvatures[:, None, None, None] * (
        np.asarray(method.B)[:, :, None] * np.asarray(method.C)[:, None, :]
    )
    expected = [np.linalg.norm(np.linalg.multi_dot(list(one[::-1])), 2) for one in blocks]
    np.testing.assert_allclose(time_varying_rate(method, jnp.asarray(curvatures)), expected, rtol=1e-13)
    assert float(time_varying_rate(method, 0.37)) == pytest.approx(expected[1], rel=1e-13)


def test_derivatives():
    rate = lambda mu, L: time_varying_rate(chebyshev(mu, L, 5), jnp.array([0.2]))
    check_grads(rate, (0.1, 1.0), order=2)


def test_bad_input():
    for mu, L in ((0.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=r"chebyshev: mu is"):
            chebyshev(mu, L, 3)
        assert bool(jnp.all(jnp.isnan(chebyshev(jnp.asarray(mu), jnp.asarray(L), 3).A)))
    with pytest.raises(ValueError, match=r"chebyshev: num_steps is 0"):
        chebyshev(0.1, 1.0, 0)
    with pytest.raises(ValueError, match=r"time_varying_rate: method\.A"):
        time_varying_rate(first_order.heavy_ball(0.1, 0.5), 1.0)
    assert bool(jnp.isnan(time_varying_rate(chebyshev(0.1, 1.0, 3), jnp.array([jnp.inf]))[0]))
