"""The Stein equation against scipy, against 50 digits, and against its own definition."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from jaxnm import Status, linalg
from jaxnm.linalg import solve_discrete_lyapunov

_random = np.random.default_rng(0)


def _stable(batch, n, radius):
    a = _random.normal(size=(batch, n, n))
    return a * (radius / np.abs(np.linalg.eigvals(a)).max(-1))[:, None, None]


def _fifty_digits(a, q):
    """The Kronecker system in 50 decimal digits."""
    n = len(a)
    with mpmath.workdps(50):
        system = mpmath.matrix(n * n)
        for i, j, k, m in np.ndindex(n, n, n, n):
            system[i * n + j, k * n + m] = mpmath.mpf(i == k and j == m) - mpmath.mpf(a[i, k]) * mpmath.mpf(a[j, m])
        right = mpmath.matrix([mpmath.mpf(x) for x in q.ravel()])
        return np.array([float(x) for x in mpmath.lu_solve(system, right)]).reshape(n, n)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 18])
def test_agrees_with_scipy(n):
    a, q = _stable(10, n, 0.9), _random.normal(size=(10, n, n))
    solution = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
    expected = np.stack([scipy.linalg.solve_discrete_lyapunov(*pair) for pair in zip(a, q, strict=True)])
    np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert float(jnp.max(solution.residual)) < 1e-13
    assert bool(jnp.all(solution.stable & (solution.status == Status.OK)))


@pytest.mark.parametrize(("radius", "tolerance"), [(0.9, 1e-14), (0.999, 1e-12), (0.99999, 1e-10)])
def test_accuracy_against_fifty_digits(radius, tolerance):
    """Relative error near eps / (1 - radius), which is the condition of the problem."""
    (a,) = _stable(1, 2, radius)
    q = np.eye(2)
    exact = _fifty_digits(a, q)
    x = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q)).x
    assert np.abs(x - exact).max() / np.abs(exact).max() < tolerance


def test_complex_and_float32():
    a = (_random.normal(size=(3, 3)) + 1j * _random.normal(size=(3, 3))) / 4
    q = np.eye(3) + 0j
    solution = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
    np.testing.assert_allclose(solution.x, scipy.linalg.solve_discrete_lyapunov(a, q), rtol=1e-12, atol=1e-14)
    single = solve_discrete_lyapunov(jnp.asarray(a, np.complex64), jnp.asarray(q, np.complex64))
    assert single.x.dtype == jnp.complex64
    np.testing.assert_allclose(single.x, solution.x, rtol=1e-5, atol=1e-6)


def test_large_batches_go_through_the_same_arithmetic():
    """4,001 members are more than one block; padding members are never seen."""
    a, q = _stable(4001, 2, 0.95), _random.normal(size=(4001, 2, 2))
    whole = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
    part = solve_discrete_lyapunov(jnp.asarray(a[-3:]), jnp.asarray(q[-3:]))
    assert whole.x.shape == (4001, 2, 2)
    np.testing.assert_allclose(whole.x[-3:], part.x, rtol=1e-12)
    gradient = jax.grad(lambda a: jnp.sum(solve_discrete_lyapunov(a, jnp.asarray(q)).x))(jnp.asarray(a))
    alone = jax.grad(lambda a: jnp.sum(solve_discrete_lyapunov(a, jnp.asarray(q[-1])).x))(jnp.asarray(a[-1]))
    np.testing.assert_allclose(gradient[-1], alone, rtol=1e-10)


def test_derivatives_to_second_order():
    a, q = jnp.asarray(_stable(1, 3, 0.7)[0]), jnp.asarray(_random.normal(size=(3, 3)))
    solve = lambda a, q: solve_discrete_lyapunov(a, q).x
    check_grads(solve, (a, q), order=2)
    to_complex = lambda x, y: jax.lax.complex(x, y)
    check_grads(solve, (to_complex(a / 2, q / 9), to_complex(q, a)), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize(
    "a", [np.eye(2), 1.5 * np.eye(2), np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])]
)
def test_spectral_radius_of_one_or_more_is_said(a):
    """Also where q = 0 or the unstable direction is not in q, where a solution exists but is not the limit."""
    for q in (np.eye(2), np.zeros((2, 2)), np.diag([1.0, 0.0])):
        solution = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
        assert int(solution.status) == Status.NOT_STABLE
        assert not bool(solution.stable)
        assert bool(jnp.all(jnp.isnan(solution.x)))


def test_radius_just_below_one_is_solved():
    for gap in (1e-3, 1e-8, 1e-14):
        solution = solve_discrete_lyapunov(jnp.array([[1 - gap]]), jnp.array([[1.0]]))
        assert int(solution.status) == Status.OK
        radius = 1 - gap
        exact = 1 / ((1 - radius) * (1 + radius))
        # rounding of a squared is amplified by the condition 1 / gap
        assert float(solution.x[0, 0]) == pytest.approx(exact, rel=8 * np.finfo(float).eps / gap)


def test_strong_transients_are_no_instability():
    a = jnp.array([[0.5, 1e8], [0.0, 0.5]])
    solution = solve_discrete_lyapunov(a, jnp.eye(2))
    assert bool(solution.stable)
    assert float(solution.residual) < 1e-13


def test_good_members_are_unharmed_by_bad_ones():
    a, q = _stable(4, 2, 0.9), np.broadcast_to(np.eye(2), (4, 2, 2))
    clean = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
    a[1, 0, 0], a[2] = np.nan, 2 * np.eye(2)
    mixed = solve_discrete_lyapunov(jnp.asarray(a), jnp.asarray(q))
    np.testing.assert_array_equal(mixed.status, [0, Status.NONFINITE_INPUT, Status.NOT_STABLE, 0])
    np.testing.assert_allclose(mixed.x[::3], clean.x[::3], rtol=1e-14)
    gradient = jax.grad(lambda a: jnp.sum(solve_discrete_lyapunov(a, jnp.asarray(q)).x))(jnp.asarray(a))
    assert bool(jnp.all(jnp.isnan(gradient[1:3])))
    assert bool(jnp.all(jnp.isfinite(gradient[::3])))


def test_overflow_is_reported():
    solution = solve_discrete_lyapunov(jnp.array([[0.99]]), jnp.array([[1e308]]))
    assert int(solution.status) == Status.NONFINITE_RESULT


def test_positive_definite_right_hand_side_gives_a_lyapunov_function():
    a = jnp.asarray(_stable(20, 3, 0.95))
    x = solve_discrete_lyapunov(a.mT, jnp.broadcast_to(jnp.eye(3), a.shape)).x
    assert float(jnp.min(linalg.eigh(x).values)) >= 1 - 1e-12


def test_failed_members_are_nan_in_value_and_gradient():
    a = jnp.full((4, 1, 1), 0.5).at[3].set(1.5)
    q = jnp.array([1.0, np.inf, 1.7e308, 1.0])[:, None, None]
    solution = solve_discrete_lyapunov(a, q)
    np.testing.assert_array_equal(
        solution.status, [0, Status.NONFINITE_INPUT, Status.NONFINITE_RESULT, Status.NOT_STABLE]
    )
    gradient = jax.grad(lambda q: jnp.sum(solve_discrete_lyapunov(a, q).x))(q)
    np.testing.assert_array_equal(np.isnan(solution.x[:, 0, 0]), [False, True, True, True])
    np.testing.assert_array_equal(np.isnan(gradient[:, 0, 0]), [False, True, True, True])


def test_cancellation_in_float32_is_reported():
    """Eigenvectors of condition 1e4 and radius 0.9999: powers cancel to few digits, and the residual shows it."""
    random = np.random.default_rng(5)
    found = 0
    for _ in range(40):
        left, _ = np.linalg.qr(random.normal(size=(4, 4)))
        right, _ = np.linalg.qr(random.normal(size=(4, 4)))
        vectors = left @ np.diag([1.0, 1e-1, 1e-3, 1e-4]) @ right
        a = vectors @ np.diag([0.9999, -0.9, 0.5, 0.1]) @ np.linalg.inv(vectors)
        solution = solve_discrete_lyapunov(jnp.asarray(a, np.float32), jnp.eye(4, dtype=np.float32))
        if int(solution.status) == Status.OK:
            assert float(solution.residual) <= np.sqrt(np.finfo(np.float32).eps)
        found += int(solution.status) != Status.OK
    assert found > 0


@pytest.mark.exhaustive
def test_every_composition_of_forward_and_reverse_agrees():
    a, q = jnp.asarray([[0.3, 0.2], [-0.1, 0.4]]), jnp.eye(2)
    entry = lambda a: solve_discrete_lyapunov(a, q).x[0, 1]
    second = [outer(inner(entry))(a) for outer in (jax.jacfwd, jax.jacrev) for inner in (jax.jacfwd, jax.jacrev)]
    for found in second[1:]:
        np.testing.assert_allclose(found, second[0], rtol=1e-12, atol=1e-12)
