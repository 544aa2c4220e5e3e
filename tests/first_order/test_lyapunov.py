"""The identities of the paper, to rounding, and where they do not certify anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import first_order
from jaxnm.first_order import (
    casoratian,
    eigen_lyapunov,
    iteration_matrix,
    lyapunov_decrease,
    schur_lyapunov,
    spectral_radius,
    state_space,
)
from tests.compilation import QUICK

_random = np.random.default_rng(0)


def _companions(a, b):
    one, zero = np.ones_like(a), np.zeros_like(a)
    return np.stack([np.stack([a, b], -1), np.stack([one, zero], -1)], -2)


def _as_methods(blocks):
    n = blocks.shape[-1]
    zero = jnp.zeros((len(blocks), n))
    return first_order.StateSpace(jnp.asarray(blocks), zero, zero)


_schur = jax.jit(jax.vmap(lambda method: schur_lyapunov(method, 0.0)))


def test_casoratian_identity_on_random_recurrences():
    """V_{k+1} = -b V_k for every two-term recurrence x+ = a x - b... with any a, b: complex and real pairs alike."""
    a, b = _random.uniform(-2, 2, 1000), _random.uniform(-1, 1, 1000)
    xs = [_random.normal(size=1000), _random.normal(size=1000)]
    for _ in range(2):
        xs.append(a * xs[-1] + b * xs[-2])
    star = jnp.zeros(1)
    value = jax.vmap(lambda before, x, after: casoratian(before[None], x[None], after[None], star))
    now, later = (np.asarray(value(*map(jnp.asarray, xs[k : k + 3]))) for k in range(2))
    size = sum(np.square(x) for x in xs)
    assert (np.abs(later + b * now) <= 50 * np.finfo(float).eps * size).all()


def test_casoratian_takes_pytrees_and_subtracts_the_minimizer():
    tree = lambda *values: {"a": jnp.array([values[0]]), "b": (jnp.array(values[1]),)}
    value = casoratian(tree(4.0, 3.0), tree(2.0, 5.0), tree(1.0, 7.0), tree(1.0, 1.0))
    assert float(value) == (1**2 + 4**2) - (0 * 3 + 6 * 2)


def test_p_is_an_exact_eigenform_of_any_real_block():
    """M^T P M = det(M) P, in companion form with the P of the paper, and for any 2 x 2 block."""
    companions = _companions(_random.uniform(-2, 2, 200), _random.uniform(-1, 1, 200))
    for blocks in (companions, _random.normal(size=(200, 2, 2))):
        P = np.asarray(_schur(_as_methods(blocks)).P)
        image = blocks.swapaxes(-1, -2) @ P @ blocks
        scale = np.abs(blocks).max((-2, -1)) ** 2 * np.abs(P).max((-2, -1))
        difference = np.abs(image - np.linalg.det(blocks)[:, None, None] * P).max((-2, -1))
        assert (difference <= 50 * np.finfo(float).eps * scale).all()
    a, b = companions[:, 0, 0], companions[:, 0, 1]
    expected = np.stack([np.stack([np.ones_like(a), -a / 2], -1), np.stack([-a / 2, -b], -1)], -2)
    np.testing.assert_allclose(_schur(_as_methods(companions)).P, expected, rtol=1e-15, atol=1e-16)


def test_valid_means_positive_definite_and_the_squared_radius():
    blocks = _random.normal(size=(500, 2, 2))
    result = _schur(_as_methods(blocks))
    valid = np.asarray(result.valid)
    pairs = np.abs(np.linalg.eigvals(blocks).imag).max(-1) > 1e-7
    np.testing.assert_array_equal(valid, pairs)
    definite = np.linalg.eigvalsh(np.asarray(result.P)).min(-1) > 0
    np.testing.assert_array_equal(definite[np.abs(np.linalg.eigvals(blocks).imag).max(-1) > 1e-3], True)
    assert not definite[~valid].any()
    radius = np.abs(np.linalg.eigvals(blocks)).max(-1)
    np.testing.assert_allclose(np.asarray(result.rate)[valid], radius[valid], rtol=1e-13)


def test_at_equality_the_form_is_only_semidefinite_and_not_valid():
    """The optimal heavy ball at mu and L: V = 0 on the eigendirection x_k = lam x_{k-1}, which is not zero."""
    mu, L = 0.01, 1.0
    method = first_order.optimal_heavy_ball(mu, L)
    result = schur_lyapunov(method, jnp.array([mu, 0.3, L]))
    np.testing.assert_array_equal(result.valid, [False, True, False])
    root = np.sqrt(float(-method.A[0, 1]))
    direction = np.array([root, 1.0])
    assert abs(direction @ np.asarray(result.P[0]) @ direction) < 1e-14


def test_triple_momentum_is_not_certified_by_the_schur_function():
    """kappa = 20: V decays like .6841^2 an iterate, the paper's figure, while the error decays like .7764."""
    kappa = 20.0
    method = first_order.triple_momentum(1 / kappa, 1.0)
    curvatures = jnp.linspace(1 / kappa, 1, 107)
    result = schur_lyapunov(method, curvatures)
    assert not bool(jnp.all(result.valid))
    assert float(jnp.mean(result.valid)) > 0.8
    assert float(jnp.max(result.rate)) == pytest.approx((1 - kappa**-0.5) ** 1.5, rel=1e-9)
    radius = spectral_radius(iteration_matrix(method, curvatures))
    assert float(jnp.max(radius)) == pytest.approx(1 - kappa**-0.5, rel=1e-6)


def test_one_state_and_three_states():
    one = schur_lyapunov(first_order.gradient_descent(0.5), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(one.valid, True)
    np.testing.assert_allclose(one.rate, 0.5)
    three = schur_lyapunov(state_space(0.5 * jnp.eye(3), jnp.zeros(3), jnp.ones(3)), jnp.array([1.0]))
    assert not bool(three.valid[0])
    assert bool(jnp.all(jnp.isnan(three.P)))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_eigen_lyapunov_certifies_the_spectral_radius_exactly(n, kind):
    """Diagonalizable, so no slack is needed: P > 0 and M^H P M <= rho^2 P to rounding."""
    blocks = _random.normal(size=(30, n, n)) + (1j * _random.normal(size=(30, n, n)) if kind == "complex" else 0)
    P = eigen_lyapunov(jnp.asarray(blocks))
    assert P.dtype == blocks.dtype
    assert np.linalg.eigvalsh(np.asarray(P)).min() > 0
    radius = np.abs(np.linalg.eigvals(blocks)).max(-1)
    decrease = lyapunov_decrease(P, jnp.asarray(blocks), jnp.asarray(radius))
    size = np.linalg.norm(blocks, axis=(-2, -1)) ** 2
    assert (np.asarray(decrease) >= -200 * np.finfo(float).eps * size).all()
    # and it is the best possible: a rate one percent smaller is not certified
    assert (np.asarray(lyapunov_decrease(P, jnp.asarray(blocks), jnp.asarray(0.99 * radius))) < 0).all()


@pytest.mark.parametrize("n", [2, 3])
def test_defective_blocks_need_a_slack(n):
    rotation = np.linalg.qr(_random.normal(size=(n, n)))[0]
    block = jnp.asarray(rotation @ (0.8 * np.eye(n) + np.eye(n, k=1)) @ rotation.T)
    assert bool(jnp.all(jnp.isnan(eigen_lyapunov(block))))
    for slack in (0.1, 0.01):
        P = eigen_lyapunov(block, slack=slack)
        assert np.linalg.eigvalsh(np.asarray(P)).min() > 0
        assert float(lyapunov_decrease(P, block, 0.8 + slack)) >= 0


def test_a_derivative_of_eigenvectors_raises():
    with pytest.raises(TypeError, match="eigen_lyapunov: an argument is differentiated"):
        jax.make_jaxpr(jax.jacfwd(eigen_lyapunov))(jnp.eye(2))


def test_lyapunov_decrease_in_closed_form():
    blocks, P = _random.normal(size=(20, 3, 3)), np.broadcast_to(np.diag([1.0, 2.0, 3.0]), (20, 3, 3))
    expected = np.linalg.eigvalsh(0.81 * P - blocks.swapaxes(-1, -2) @ P @ blocks).min(-1)
    ours = lyapunov_decrease(jnp.asarray(P), jnp.asarray(blocks), jnp.full(20, 0.9))
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)


def test_the_casoratian_fails_where_the_function_is_not_quadratic():
    """x^2 + (1.99/400) cos 20x: optimal heavy ball cycles, and V increases now and then."""
    mu, L = 0.01, 3.99
    method = first_order.optimal_heavy_ball(mu, L)
    gradient = lambda x: 2 * x - 1.99 / 20 * jnp.sin(20 * x)

    def step(z, _):
        z = method.A @ z + method.B * gradient(method.C @ z)
        return z, z[0]

    xs = np.asarray(jax.lax.scan(step, jnp.array([3.3, 3.3]), None, length=2000)[1])
    assert set(np.round(np.unique(np.abs(np.round(xs[-40:], 4))), 4)) == {0.1395, 0.1713}
    values = xs[1:-1] ** 2 - xs[2:] * xs[:-2]
    assert (np.diff(values[:200]) > 0).any()


def test_a_conjugate_pair_is_turned_in_one_order_everywhere():
    """Equal moduli differ by rounding; a swap that only some copies of the number ask for would mix the vectors."""
    alone = jax.jit(eigen_lyapunov, compiler_options=QUICK)
    found = [[0.12578967451288317, -0.13216733105589823], [0.6407254838922055, 0.10494972074567957]]
    turned = lambda a, b, c: [[a, -b], [c, a * 0.97]]
    for matrix in [found, *(turned(*x) for x in np.random.default_rng(3).uniform(0.1, 0.9, (40, 3)))]:
        _, vectors = np.linalg.eig(np.asarray(matrix).T)
        P = (vectors.conj() @ vectors.T).real
        np.testing.assert_allclose(alone(jnp.asarray(matrix)), P / np.linalg.eigvalsh(P)[-1], rtol=1e-9)
