"""Bad input of every kind ends soon with the documented error, status or NaN, and harms no neighbour."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnm import Status, first_order, linalg

MU_L = [
    first_order.optimal_gradient_descent,
    first_order.optimal_heavy_ball,
    first_order.optimal_nesterov,
    first_order.triple_momentum,
    first_order.optimal_gauss_seidel_nesterov,
    lambda mu, L: first_order.robust_momentum(0.9, mu, L),
]
STEPS = [
    first_order.gradient_descent,
    first_order.optimistic_gradient,
    lambda a: first_order.heavy_ball(a, 0.5),
    lambda a: first_order.nesterov(a, 0.5),
    lambda a: first_order.three_parameter(a, 0.5, 0.1),
    lambda a: first_order.gauss_seidel_nesterov(a, 0.5),
    lambda a: first_order.quasi_hyperbolic(a, 0.9, 0.7),
]
_method = first_order.heavy_ball(0.5, 0.5)
_measure = linalg.SpectralMeasure(jnp.full((1, 2), 2.0), jnp.full((1, 2), 0.5), jnp.zeros(()), jnp.int32(0), 9)
_nan = float("nan")
_inf = float("inf")


@pytest.mark.parametrize("build", MU_L)
@pytest.mark.parametrize(
    "mu_L", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (_nan, 1.0), (0.1, _inf), (-2.0, -1.0), (0.1, _nan)]
)
def test_curvatures_out_of_range(build, mu_L):
    with pytest.raises(ValueError, match=r"(mu|L) is .*expected"):
        build(*mu_L)
    method = build(*map(jnp.asarray, mu_L))
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(method))


@pytest.mark.parametrize("build", STEPS)
@pytest.mark.parametrize("step", [-0.1, _nan, _inf])
def test_steps_out_of_range(build, step):
    with pytest.raises(ValueError, match=r"(step_size|alpha) is .*expected a finite number >= 0"):
        build(step)
    assert bool(jnp.all(jnp.isnan(build(jnp.asarray(step)).A)))
    assert bool(jnp.isnan(first_order.quadratic_rate(build(jnp.asarray(step)), 0.1, 1.0)))


@pytest.mark.parametrize("rho", [0.1, 0.95, 1.5, _nan])
def test_robust_rates_out_of_their_interval(rho):
    with pytest.raises(ValueError, match=r"robust_momentum: rho is .*expected"):
        first_order.robust_momentum(rho, 0.1, 1.0)
    assert bool(jnp.all(jnp.isnan(first_order.robust_momentum(jnp.asarray(rho), 0.1, 1.0).B)))


@pytest.mark.parametrize("function", [first_order.quadratic_rate, first_order.worst_curvature])
@pytest.mark.parametrize("mu_L", [(2.0, 1.0), (-1.0, 1.0), (_nan, 1.0), (0.1, _inf)])
def test_rates_over_an_impossible_interval(function, mu_L):
    with pytest.raises(ValueError, match=r"(mu|L) is .*expected"):
        function(_method, *mu_L)
    assert bool(jnp.isnan(function(_method, *map(jnp.asarray, mu_L))))
    assert not bool(first_order.is_stable(_method, *map(jnp.asarray, mu_L)))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "figure",
    [
        lambda method: first_order.quadratic_rate(method, 0.1, 1.0),
        lambda method: first_order.worst_curvature(method, 0.1, 1.0),
        first_order.stability_limit,
    ],
)
def test_rates_of_a_method_that_is_not_finite(figure, n):
    bad = first_order.state_space(jnp.full((n, n), jnp.nan), jnp.ones(n), jnp.ones(n))
    assert bool(jnp.isnan(figure(bad)))


def test_equal_ends_zero_curvature_and_an_empty_gradient():
    assert float(first_order.quadratic_rate(_method, 0.5, 0.5)) == pytest.approx(np.sqrt(0.5))
    assert float(first_order.quadratic_rate(_method, 0.0, 0.0 + 1e-300)) == pytest.approx(1)
    idle = first_order.state_space(jnp.eye(2), jnp.zeros(2), jnp.zeros(2))
    assert float(first_order.quadratic_rate(idle, 0.1, 1.0)) == 1
    assert float(first_order.stability_limit(idle)) == 0


def test_a_batch_of_good_and_bad_methods():
    """Values and gradients of the good members are what they are alone; those of the bad ones are NaN."""
    steps = jnp.array([0.5, -1.0, jnp.nan, 0.9])
    rate = lambda step: first_order.quadratic_rate(first_order.nesterov(step, 0.4), 0.1, 1.0)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(rate)))(steps)
    np.testing.assert_array_equal(np.isnan(values), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(slopes), [False, True, True, False])
    alone = jax.jit(jax.value_and_grad(rate))
    for i in (0, 3):
        np.testing.assert_allclose((values[i], slopes[i]), alone(steps[i]), rtol=1e-14)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: first_order.spectral_radius(x),
        lambda x: first_order.transient_growth(x, 3),
        lambda x: first_order.eigen_lyapunov(x),
        lambda x: first_order.lyapunov_decrease(x, x, 1.0),
        lambda x: linalg.schur(x),
        lambda x: linalg.eigenvalues(x),
        lambda x: linalg.eigh(x),
        lambda x: linalg.cholesky(x),
        lambda x: linalg.solve(x, x),
        lambda x: linalg.solve_discrete_lyapunov(x, x),
    ],
)
def test_square_matrices_only(call):
    for bad, error in (
        (jnp.ones((2, 3)), ValueError),
        (jnp.ones(3), ValueError),
        (jnp.zeros((0, 0)), ValueError),
        (jnp.ones((2, 2), jnp.int32), TypeError),
        ([[1.0], [2.0, 3.0]], TypeError),
    ):
        with pytest.raises(error, match="expected"):
            call(bad)
    assert call(jnp.array([[0.5]])) is not None


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_matrices_that_are_not_finite(bad):
    matrix = jnp.eye(2).at[1, 1].set(bad)
    assert bool(jnp.isnan(first_order.spectral_radius(matrix)))
    assert bool(jnp.all(jnp.isnan(linalg.eigenvalues(matrix))))
    assert not bool(linalg.schur(matrix).converged)
    assert bool(jnp.isnan(first_order.transient_growth(matrix, 3).peak))
    assert bool(jnp.all(jnp.isnan(first_order.eigen_lyapunov(matrix))))
    assert bool(jnp.isnan(first_order.lyapunov_decrease(jnp.eye(2), matrix, 1.0)))
    assert int(linalg.solve_discrete_lyapunov(matrix, jnp.eye(2)).status) == Status.NONFINITE_INPUT


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("call", [linalg.eigenvalues, lambda matrix: linalg.schur(matrix).T])
def test_larger_matrices_that_are_not_finite(call, bad):
    """The QR iteration, where a NaN could keep a loop from ending."""
    assert bool(jnp.all(jnp.isnan(call(jnp.eye(4).at[1, 1].set(bad)))))


def test_extreme_but_finite_matrices():
    """Numbers below the smallest normal one count as zero, as XLA flushes them."""
    matrix = jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    for scale in (1e-320, 1e-300, 1.0, 1e300):
        radius = float(first_order.spectral_radius(scale * matrix))
        assert radius == pytest.approx(scale * np.sqrt(2.5), rel=1e-12, abs=np.finfo(float).tiny)
        assert np.isfinite(float(first_order.transient_growth(scale * matrix, 1).peak))


def test_empty_batches_pass_through():
    assert first_order.spectral_radius(jnp.zeros((0, 2, 2))).shape == (0,)
    assert linalg.eigenvalues(jnp.zeros((0, 3, 3))).shape == (0, 3)
    assert linalg.solve_discrete_lyapunov(jnp.zeros((0, 2, 2)), jnp.zeros((0, 2, 2))).status.shape == (0,)
    assert first_order.iteration_matrix(_method, jnp.zeros(0)).shape == (0, 2, 2)
    assert first_order.schur_lyapunov(_method, jnp.zeros(0)).valid.shape == (0,)


def test_wrong_shapes_and_dtypes_of_methods():
    with pytest.raises(ValueError, match=r"state_space: B is of shape \(3,\), expected \[2\]"):
        first_order.state_space(jnp.eye(2), jnp.ones(3), jnp.ones(2))
    with pytest.raises(ValueError, match=r"state_space: A is of shape \(1, 2, 2\)"):
        first_order.state_space(jnp.ones((1, 2, 2)), jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="real dtype"):
        first_order.state_space(jnp.eye(2, dtype=complex), jnp.ones(2, complex), jnp.ones(2, complex))
    with pytest.raises(ValueError, match=r"heavy_ball: step_size is of shape \(2,\), expected a scalar"):
        first_order.heavy_ball(jnp.ones(2), 0.5)
    with pytest.raises(TypeError, match="iteration_matrix: eigenvalue is of dtype int"):
        first_order.iteration_matrix(_method, jnp.array([1, 2]))
    with pytest.raises(TypeError, match="num_steps is of type float"):
        first_order.transient_growth(jnp.eye(2), 3.0)
    with pytest.raises(ValueError, match=r"slack is -0\.1"):
        first_order.eigen_lyapunov(jnp.eye(2), slack=-0.1)
    with pytest.raises(ValueError, match="casoratian: x_star is of shape"):
        first_order.casoratian(jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match="casoratian: x is of dtype int"):
        first_order.casoratian(*(jnp.arange(2) for _ in range(4)))
    with pytest.raises(ValueError, match="solve: right"):
        linalg.solve(jnp.eye(2), jnp.ones(2))


def test_python_integers_are_welcome_where_numbers_are_meant():
    assert float(first_order.quadratic_rate(first_order.gradient_descent(1), 1, 1)) == 0
    assert first_order.optimal_heavy_ball(1, 4).A.dtype == jnp.float64


def test_robust_momentum_takes_a_rounded_end_of_its_interval():
    for slip in (-5e-7, -1e-9, 1e-9):
        method = first_order.robust_momentum(1 - 0.1**0.5 + slip, 0.1, 1.0)
        assert bool(jnp.all(jnp.isfinite(method.B)))


def test_equal_curvatures_everywhere():
    for build in MU_L[:-1]:
        assert float(first_order.quadratic_rate(build(1.0, 1.0), 1.0, 1.0)) == pytest.approx(0, abs=1e-7)


def test_optimizers_that_need_more_than_gradients():
    for tx in (optax.polyak_sgd(), optax.lbfgs()):
        with pytest.raises(ValueError, match=r"in need of .*value"):
            first_order.analyze(tx, (0.1, 1.0))


def test_a_hessian_that_is_not_symmetric_and_one_of_half_precision():
    @jax.custom_jvp
    def product(v):
        return v[0] * v[1]

    product.defjvp(lambda primals, tangents: (product(*primals), primals[0][1] * tangents[0][0]))
    assert int(first_order.hessian_spectrum(product, jnp.ones(2)).status) == Status.NOT_SYMMETRIC
    with pytest.raises(TypeError, match="float32 or float64"):
        first_order.hessian_spectrum(lambda x: jnp.sum(x**2), jnp.ones(2, jnp.bfloat16))


def test_a_batch_of_stable_and_unstable_stein_equations():
    a = jnp.stack([0.5 * jnp.eye(2), jnp.eye(2), 1.1 * jnp.eye(2), 0.9 * jnp.eye(2)])
    solution = linalg.solve_discrete_lyapunov(a, jnp.eye(2))
    np.testing.assert_array_equal(solution.status, [0, Status.NOT_STABLE, Status.NOT_STABLE, 0])
    np.testing.assert_allclose(solution.x[0], np.eye(2) / 0.75, rtol=1e-14)
    np.testing.assert_array_equal(np.isnan(solution.x).all((1, 2)), [False, True, True, False])


def test_stability_is_not_claimed_within_the_accuracy_of_the_search():
    """Three states with a worst rate of 1.00002 in float32, found by search; the returned rate is below one."""
    A = [[-0.06398601, 0.07073736, 0.99652535], [1.00327671, 0, 0], [0, 1.00327671, 0]]
    B, C = [-1.0032767, 0, 0], [0.50785339, 0.17155544, 0.32059115]
    method = first_order.state_space(*(jnp.asarray(x, jnp.float32) for x in (A, B, C)))
    assert not bool(first_order.is_stable(method, 0.05, 2.0))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("iteration_matrix", lambda method: first_order.iteration_matrix(method, 1.0)),
        ("quadratic_rate", lambda method: first_order.quadratic_rate(method, 0.1, 1.0)),
        ("worst_curvature", lambda method: first_order.worst_curvature(method, 0.1, 1.0)),
        ("is_stable", lambda method: first_order.is_stable(method, 0.1, 1.0)),
        ("stability_limit", first_order.stability_limit),
        ("time_varying_rate", lambda method: first_order.time_varying_rate(method, 1.0)),
        ("schur_lyapunov", lambda method: first_order.schur_lyapunov(method, 1.0)),
        ("certify_rate", lambda method: first_order.certify_rate(method, 0.1, 1.0)),
        ("check_lyapunov", lambda method: first_order.check_lyapunov(method, jnp.eye(1), 0.1, 1.0)),
    ],
)
def test_what_is_no_method(name, call):
    linearization = first_order.Linearization(_method, *[jnp.zeros(())] * 5, state_names=("parameter",))
    for method, remedy in (
        (None, "state_space"),
        ([1.0, 2.0], "state_space"),
        (optax.sgd(0.1), r"from_optax\(tx\)\.method"),
        (linearization, r"\.method of the Linearization"),
    ):
        kind = type(method).__name__
        with pytest.raises(TypeError, match=rf"{name}: method is of type {kind}, expected a StateSpace; .*{remedy}"):
            call(method)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: first_order.analyze(None, (0.1, 1.0)), TypeError, "analyze: method is of type NoneType"),
        (lambda: first_order.analyze(_method, (1j, 1.0)), TypeError, "analyze: mu of spectrum is of dtype complex"),
        (lambda: first_order.analyze(_method, (jnp.ones(3), 1.0)), ValueError, "mu of spectrum is of shape"),
        (lambda: first_order.lyapunov_decrease(jnp.eye(2), jnp.eye(2), 1j), TypeError, "rate is of dtype complex"),
        (lambda: first_order.is_proved(None), TypeError, "is_proved: certificate is of type NoneType"),
        (lambda: first_order.read_certificate(None), TypeError, "read_certificate: path is of type NoneType"),
        (
            lambda: first_order.hessian_spectrum(lambda x: x @ x, jnp.ones(2), method="lanczos", key=0),
            TypeError, "hessian_spectrum: key is of type int",
        ),
        (lambda: linalg.trace_of_function(_measure, lambda x: x * 1j), TypeError, "function is of dtype complex"),
        (lambda: linalg.trace_of_function(_measure, 2.0), TypeError, "function is a float"),
        (lambda: linalg.trace_of_function(None, jnp.log), TypeError, "trace_of_function: measure is a NoneType"),
        (lambda: linalg.smoothed_density(None, 1.0, 0.1), TypeError, "smoothed_density: measure is a NoneType"),
        (lambda: linalg.smoothed_density(_measure, jnp.ones(2, complex), 0.1), TypeError, "smoothed_density: points"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind(call, error, message):
    with pytest.raises(error, match=message):
        call()
