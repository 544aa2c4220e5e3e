import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import first_order
from jaxnm.first_order import StateSpace, is_stable, quadratic_rate, stability_limit, worst_curvature
from tests.compilation import QUICK

_random = np.random.default_rng(1)
_rates = jax.jit(jax.vmap(quadratic_rate))
_worst = jax.jit(jax.vmap(worst_curvature))
_limits = jax.jit(jax.vmap(stability_limit))
_MU, _L = 0.1, 2.0


def _methods(batch, n):
    A = _random.normal(size=(batch, n, n)) * 0.4
    return A, _random.normal(size=(batch, n)), _random.normal(size=(batch, n))


def _dense_rates(A, B, C, curvatures):
    blocks = A[:, None] + curvatures[:, None, None] * (B[:, :, None] * C[:, None, :])[:, None]
    return np.abs(np.linalg.eigvals(blocks)).max(-1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_curvature_of_a_fine_grid_is_worse(n):
    """Certified from above: the grid never exceeds the rate; attained: the rate occurs at the curvature returned."""
    A, B, C = _methods(100, n)
    method = StateSpace(*map(jnp.asarray, (A, B, C)))
    mu, L = jnp.full(100, _MU), jnp.full(100, _L)
    rate, worst = np.asarray(_rates(method, mu, L)), np.asarray(_worst(method, mu, L))
    grid = _dense_rates(A, B, C, np.linspace(_MU, _L, 2001)).max(1)
    assert (rate >= grid * (1 - 1e-9)).all()
    attained = np.array(
        [_dense_rates(A[i : i + 1], B[i : i + 1], C[i : i + 1], worst[i : i + 1])[0, 0] for i in range(100)]
    )
    np.testing.assert_allclose(attained, rate, rtol=1e-7)
    assert ((worst >= _MU) & (worst <= _L)).all()
    if n <= 2:
        assert np.isin(worst, [_MU, _L]).all()


def _with_interior_maximum():
    """Three states whose worst curvature lies inside (0.1, 2): found by a search, kept as numbers."""
    for seed in range(2000):
        random = np.random.default_rng(seed)
        A, B, C = random.normal(size=(1, 3, 3)) * 0.4, random.normal(size=(1, 3)), random.normal(size=(1, 3))
        values = _dense_rates(A, B, C, np.linspace(_MU, _L, 41))[0]
        if values[1:-1].max() > 1.02 * max(values[0], values[-1]):
            return A[0], B[0], C[0]
    raise AssertionError("no example found")


_slopes = jax.jit(jax.grad(quadratic_rate, argnums=(0, 1, 2)), compiler_options=QUICK)


def test_interior_maximum_of_three_states():
    A, B, C = _with_interior_maximum()
    method = first_order.state_space(*map(jnp.asarray, (A, B, C)))
    slopes = _slopes(method, jnp.asarray(_MU), jnp.asarray(_L))
    # in a batch of the size of the tests above, which is compiled
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], 100, 0), (method, _MU, _L))
    rate, worst = float(_rates(*batch)[0]), float(_worst(*batch)[0])
    curvatures = np.linspace(_MU, _L, 20_001)
    values = _dense_rates(A[None], B[None], C[None], curvatures)[0]
    assert _MU < worst < _L
    assert rate >= values.max()
    assert rate == pytest.approx(values.max(), rel=1e-6)
    # a smooth interior maximum: moving the ends of the interval changes nothing
    assert slopes[1:] == (0, 0)


@pytest.mark.parametrize(
    ("function", "order", "name"),
    [
        (lambda method: quadratic_rate(method, _MU, _L), 2, "quadratic_rate"),
        (lambda method: worst_curvature(method, _MU, _L), 1, "worst_curvature"),
        (stability_limit, 2, "stability_limit"),
    ],
)
def test_derivatives_of_three_states_end_where_they_are_not_known(function, order, name):
    method = first_order.state_space(*map(jnp.asarray, _with_interior_maximum()))
    for _ in range(order):
        function = jax.jacfwd(function)
    with pytest.raises(TypeError, match=f"{name}: .* is differentiated"):
        jax.make_jaxpr(function)(method)


def test_heavy_ball_has_rate_sqrt_momentum_exactly_where_theory_says():
    """(1 - sqrt(a mu))^2 <= b and (1 - sqrt(a L))^2 <= b if and only if every curvature gives a complex pair."""
    a, b = (x.ravel() for x in np.meshgrid(np.linspace(0.05, 3.5, 25), np.linspace(0.02, 0.98, 25)))
    method = jax.vmap(first_order.heavy_ball)(jnp.asarray(a), jnp.asarray(b))
    rate = np.asarray(_rates(method, jnp.full(a.shape, 0.1), jnp.full(a.shape, 1.0)))
    complex_pairs = ((1 - np.sqrt(a * 0.1)) ** 2 <= b) & ((1 - np.sqrt(a)) ** 2 <= b)
    assert 0 < complex_pairs.sum() < complex_pairs.size
    np.testing.assert_allclose(rate[complex_pairs], np.sqrt(b[complex_pairs]), rtol=1e-7)
    assert (rate[~complex_pairs] > np.sqrt(b[~complex_pairs]) * (1 + 1e-9)).all()


def test_stability_limits_in_closed_form():
    """2 / a; 2 (1 + b) / a; 2 (1 + b) / (a (1 + 2 b)) below the determinant's bound; 2 / (3 a) for optimistic steps."""
    for a, b in [(0.1, 0.0), (0.1, 0.5), (2.0, 0.9)]:
        assert float(stability_limit(first_order.gradient_descent(a))) == pytest.approx(2 / a, rel=1e-14)
        assert float(stability_limit(first_order.heavy_ball(a, b))) == pytest.approx(2 * (1 + b) / a, rel=1e-13)
        expected = 2 * (1 + b) / (a * (1 + 2 * b))
        assert float(stability_limit(first_order.nesterov(a, b))) == pytest.approx(expected, rel=1e-13)
        assert float(stability_limit(first_order.optimistic_gradient(a))) == pytest.approx(2 / (3 * a), rel=1e-13)


def test_stability_limit_extremes():
    assert float(stability_limit(first_order.heavy_ball(0.1, 1.5))) == 0
    assert float(stability_limit(first_order.gradient_descent(0.0))) == 0  # the eigenvalue 1 never moves
    damped = first_order.state_space(jnp.diag(jnp.array([0.5, 0.2])), jnp.zeros(2), jnp.ones(2))
    assert float(stability_limit(damped)) == np.inf
    # three states, stable and unstable, in a batch of the size of the next test, so that it compiles once
    A = jnp.concatenate([jnp.tile(factor * jnp.eye(3), (30, 1, 1)) for factor in (0.5, 2.0)])
    limits = _limits(StateSpace(A, jnp.zeros((60, 3)), jnp.ones((60, 3))))
    np.testing.assert_array_equal(limits, np.repeat([np.inf, 0], 30))


@pytest.mark.parametrize("n", [2, 3])
def test_stability_limit_is_where_stability_ends(n):
    """Methods with an eigenvalue 1 at curvature zero, as optimizers have; compared with a scan of eigenvalues."""
    batch = 60
    A, B, C = _methods(batch, n)
    A[:, :, 0], C = 0, np.zeros((batch, n))
    A[:, 0, 0], C[:, 0], B[:, 0] = 1, 1, -np.abs(B[:, 0])
    limits = np.asarray(_limits(StateSpace(*map(jnp.asarray, (A, B, C)))))
    curvatures = np.geomspace(1e-6, 1e4, 4001)
    stable = _dense_rates(A, B, C, curvatures) < 1
    first_unstable = np.where(stable.all(1), np.inf, curvatures[np.argmin(stable, 1)])
    finite = np.isfinite(first_unstable) & (first_unstable > 2e-6)
    assert finite.sum() > 20
    np.testing.assert_allclose(limits[finite], first_unstable[finite], rtol=6e-3)
    assert (limits[first_unstable <= 1e-6] == 0).all()


def test_is_stable_agrees_with_the_rate_and_is_false_at_one():
    method = first_order.heavy_ball(0.1, 0.9)
    limit = float(stability_limit(method))
    assert bool(is_stable(method, 0.01, 0.999 * limit))
    assert not bool(is_stable(method, 0.01, 1.001 * limit))
    assert not bool(is_stable(method, 0.0, 1.0))


def test_zero_curvature_has_rate_one():
    for method in (first_order.heavy_ball(0.1, 0.5), first_order.optimistic_gradient(0.1)):
        assert float(quadratic_rate(method, 0.0, 1.0)) == pytest.approx(1, abs=1e-15)


def test_derivatives_of_two_states():
    """Away from ties and double roots, to second order: by reverse mode, and by forward over reverse."""

    def both(x):
        method = first_order.nesterov(x[0], x[1])
        return jnp.stack([quadratic_rate(method, x[2], x[3]), stability_limit(method)])

    orders = lambda x: (both(x), jax.jacrev(both)(x), jax.jacfwd(jax.jacrev(both))(x))
    compiled = jax.jit(jax.vmap(orders), compiler_options=QUICK)
    point, shifts = np.array([[0.7, 0.4, 0.1, 1.0]]), 1e-5 * np.eye(4)
    values, gradients, hessians = compiled(jnp.asarray(np.concatenate([point, point + shifts, point - shifts])))
    for lower, higher in ((values, gradients), (gradients, hessians)):
        differences = np.moveaxis(np.asarray(lower[1:5] - lower[5:]) / 2e-5, 0, -1)
        assert (np.abs(differences).max(tuple(range(1, differences.ndim))) > 0.1).all()
        np.testing.assert_allclose(higher[0], differences, rtol=1e-6, atol=1e-6)


def test_derivatives_of_three_states():
    """By implicit differentiation, to first order."""

    def both(a):
        A = jnp.stack([jnp.stack([1.0, -0.3 * a, -0.2 * a]), jnp.array([0, 0.3, 0]), jnp.array([0, 0.3, 0.2])])
        chain = first_order.state_space(A, jnp.stack([-a, 1.0, 1.0]), jnp.array([1.0, 0, 0]))
        return jnp.stack([quadratic_rate(chain, 0.1, 1.0), stability_limit(chain)])

    def values_and_slopes(a):
        values, pullback = jax.vjp(both, a)
        return values, jax.vmap(pullback)(jnp.eye(2))[0]

    compiled = jax.jit(jax.vmap(values_and_slopes), compiler_options=QUICK)
    values, slopes = compiled(0.4 + 1e-6 * jnp.array([-1.0, 0, 1]))
    np.testing.assert_allclose(slopes[1], (values[2] - values[0]) / 2e-6, rtol=1e-6)


def test_the_two_realizations_of_momentum_have_one_rate():
    """Heavy ball in (x_k, x_{k-1}) and in (x, trace): similar matrices, the same answers."""
    a, b = 0.7, 0.35
    trace = first_order.state_space(jnp.array([[1.0, -a * b], [0.0, b]]), jnp.array([-a, 1.0]), jnp.array([1.0, 0.0]))
    ball = first_order.heavy_ball(a, b)
    assert float(quadratic_rate(trace, 0.03, 1.0)) == pytest.approx(float(quadratic_rate(ball, 0.03, 1.0)), rel=1e-13)
    assert float(stability_limit(trace)) == pytest.approx(float(stability_limit(ball)), rel=1e-13)
