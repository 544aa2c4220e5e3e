"""Cards and tables: what they say is what the functions behind them say, checked against independent figures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnm import Status, first_order
from jaxnm.first_order import analyze, analyze_learning_rates, from_optax

_CURVATURES = jnp.linspace(0.05, 1.0, 20)
_analyze = jax.jit(analyze)


def test_a_damped_heavy_ball_is_certified_by_both_functions():
    analysis = analyze(first_order.heavy_ball(1.0, 0.81), _CURVATURES, name="heavy ball")
    assert float(analysis.rate) == pytest.approx(0.9, rel=1e-12)
    assert bool(analysis.schur_valid)
    assert bool(analysis.eigen_valid)
    assert float(analysis.eigen_slack) == 0
    assert float(analysis.stability_limit) == pytest.approx(2 * 1.81, rel=1e-12)
    card = str(analysis)
    for words in ("heavy ball", "kappa = 20", "0.900000", "100 % of the curvatures: certifies the rate", "3.62 L"):
        assert words in card


def test_transient_growth_on_the_card_is_the_largest_of_all_blocks():
    method = first_order.optimal_nesterov(0.01, 1.0)
    analysis = _analyze(method, jnp.linspace(0.01, 1.0, 107))
    assert f"{float(analysis.transient_peak):.4g}" == "7.034"
    assert int(analysis.transient_index) == 9


def test_an_interval_is_every_curvature_between():
    method = first_order.triple_momentum(0.01, 1.0)
    analysis = analyze(method, (0.01, 1.0))
    assert float(analysis.rate) == pytest.approx(0.9, rel=1e-7)
    assert not bool(analysis.schur_valid)
    assert "every curvature between" in str(analysis)
    assert "no certificate" in str(analysis)


def test_defective_blocks_get_a_slack_and_say_it():
    """A double root away from the spectrum's ends: heavy ball with one curvature, critically damped."""
    analysis = analyze(first_order.optimal_heavy_ball(0.01, 1.0), jnp.array([0.01, 0.5]))
    rate = 9 / 11
    assert float(analysis.rate) == pytest.approx(rate, rel=1e-7)
    assert float(analysis.eigen_slack) == pytest.approx((1 - rate) / 100, rel=1e-5)
    assert bool(analysis.eigen_valid)


def test_flat_and_negative_directions_are_reported():
    analysis = analyze(first_order.gradient_descent(0.5), jnp.array([0.0, 1e-18, 0.5, 1.0]))
    assert int(analysis.flat_directions) == 2
    assert float(analysis.rate) == 1
    assert float(analysis.curved_rate) == 0.75
    assert "2 (eigenvalue 1); rate of the rest 0.750000" in str(analysis)
    assert "no convergence" in str(analysis)
    leaving = analyze(first_order.gradient_descent(0.5), jnp.array([-0.5, 0.5, 0.5, 1.0]))
    assert int(leaving.negative_directions) == 1
    assert float(leaving.rate) == 1.25
    assert "not convex" in str(leaving)


def test_optax_and_state_space_give_one_card():
    ours = analyze(first_order.nesterov(0.7, 0.35), _CURVATURES)
    theirs = analyze(optax.sgd(0.7, momentum=0.35, nesterov=True), _CURVATURES)
    assert float(ours.rate) == pytest.approx(float(theirs.rate), rel=1e-12)
    assert float(ours.stability_limit) == pytest.approx(float(theirs.stability_limit), rel=1e-12)
    snapshot = analyze(optax.sgd(optax.cosine_decay_schedule(0.1, 100)), _CURVATURES)
    assert bool(snapshot.time_varying)
    assert "snapshot" in str(snapshot)


@pytest.mark.exhaustive
def test_three_states_are_analyzed_too():
    chain = optax.chain(optax.trace(0.3), optax.trace(0.2), optax.scale(-0.4))
    analysis = analyze(chain, _CURVATURES)
    A = np.array([[1, -0.12, -0.08], [0, 0.3, 0], [0, 0.3, 0.2]])
    blocks = A + np.asarray(_CURVATURES)[:, None, None] * np.outer([-0.4, 1, 1], [1, 0, 0])
    assert float(analysis.rate) == pytest.approx(np.abs(np.linalg.eigvals(blocks)).max(), rel=1e-10)
    assert bool(analysis.eigen_valid)
    assert float(analysis.schur_fraction) == 0
    # 2 (1 + .3) (1 + .2) / .4: the root z = -1 of the characteristic polynomial
    assert float(analysis.stability_limit) == pytest.approx(7.8, rel=1e-10)


def test_a_spectrum_brings_its_status():
    spectrum = first_order.hessian_spectrum(lambda v: jnp.sum(jnp.sqrt(v)), jnp.zeros(2))
    analysis = analyze(first_order.gradient_descent(0.1), spectrum)
    assert int(analysis.status) == Status.NONFINITE_INPUT
    assert "NONFINITE_INPUT" in str(analysis)


def test_a_grid_of_learning_rates_is_a_row_each():
    rates = jnp.array([0.5, 1.0, 2.5])
    grid = analyze_learning_rates(lambda rate: optax.sgd(rate, momentum=0.2), rates, _CURVATURES, name="sgd")
    for i, rate in enumerate(rates):
        one = analyze(first_order.heavy_ball(rate, 0.2), _CURVATURES)
        assert float(grid.rate[i]) == pytest.approx(float(one.rate), rel=1e-12)
    table = str(grid).splitlines()
    assert len(table) == 5
    assert "learning rate" in table[1]
    assert table[-1].split()[0] == "2.5"


def test_grids_refuse_what_is_not_affine():
    with pytest.raises(ValueError, match="analyze_learning_rates: tx is not affine"):
        analyze_learning_rates(optax.adam, jnp.array([0.1, 0.2]), (0.1, 1.0))


def test_grids_are_differentiable():
    """The best learning rate by gradient: d rate / d step of gradient descent is -mu below 2 / (mu + L)."""
    best = lambda rates: jnp.sum(analyze_learning_rates(optax.sgd, rates, jnp.array([0.1, 1.0])).rate)
    np.testing.assert_allclose(jax.jit(jax.grad(best))(jnp.array([0.5, 1.9])), [-0.1, 1.0], rtol=1e-12)


def test_the_transient_peak_is_differentiated_with_the_units_of_its_states():
    """Those of momentum follow the learning rate; the derivative by the rate was 4.22 where it is -.619."""
    peak = jax.jit(
        lambda rate: analyze_learning_rates(
            lambda rate: optax.sgd(rate, momentum=0.5), rate[None], jnp.array([0.1, 0.5, 1.0])
        ).transient_peak[0]
    )
    for rate in (0.13, 0.45, 0.9):
        rate, h = jnp.array(rate), 1e-5
        difference = (peak(rate + h) - peak(rate - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(peak)(rate), difference, rtol=1e-8)


@pytest.mark.parametrize(
    ("method", "spectrum", "error", "message"),
    [
        ("sgd", (0.1, 1.0), TypeError, "method is of type str"),
        (optax.adam(0.1), (0.1, 1.0), ValueError, "not affine"),
        (None, (1.0, 0.1), ValueError, "mu is 1.0 > L = 0.1"),
        (None, (0.1, 0.5, 1.0), ValueError, "a tuple of 3"),
        (None, jnp.array([1, 2]), TypeError, "integer|int64"),
        (None, jnp.zeros(0), ValueError, r"\[m\] with m >= 1"),
        (None, jnp.ones((2, 2)), ValueError, r"\[m\] with m >= 1"),
    ],
)
def test_wrong_arguments(method, spectrum, error, message):
    method = first_order.gradient_descent(0.1) if method is None else method
    with pytest.raises(error, match=message):
        analyze(method, spectrum)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_nothing_on_the_card_depends_on_the_units_of_the_loss(unit):
    """A loss in other units has other curvatures and step sizes, and the same iterates."""
    plain = analyze(optax.sgd(1.0, momentum=0.9), (0.01, 1.0))
    tx = optax.sgd(1 / unit, momentum=0.9)
    scaled = analyze(tx, (0.01 * unit, unit))
    for name in ("rate", "transient_peak", "transient_index", "schur_fraction", "eigen_slack"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-10)
    np.testing.assert_allclose(scaled.stability_limit, unit * plain.stability_limit, rtol=1e-12)
    np.testing.assert_allclose(from_optax(tx).state_units * scaled.state_units, [1, 1 / unit])


def test_long_transients_and_noise_are_said():
    assert "or later" in str(analyze(first_order.optimal_nesterov(1e-6, 1.0), jnp.array([1e-6, 1.0])))
    noisy = analyze(optax.noisy_sgd(0.1, key=jax.random.key(0)), _CURVATURES)
    assert bool(noisy.stochastic)
    assert "mean over the injected noise" in str(noisy)


def test_bad_members_of_a_grid_are_flagged_and_alone_also_under_jit():
    grid = analyze_learning_rates(optax.sgd, jnp.array([0.1, jnp.nan, 0.3]), _CURVATURES)
    np.testing.assert_array_equal(grid.status, [0, Status.NOT_AFFINE, 0])
    np.testing.assert_allclose(grid.rate, [1 - 0.1 * 0.05, np.nan, 1 - 0.3 * 0.05])
    under_jit = jax.jit(lambda rates: analyze_learning_rates(optax.sign_sgd, rates, _CURVATURES))(jnp.array([0.1, 0.2]))
    np.testing.assert_array_equal(under_jit.status, Status.NOT_AFFINE)
    assert bool(jnp.all(jnp.isnan(under_jit.rate)))
    with pytest.raises(ValueError, match="batch >= 1"):
        analyze_learning_rates(optax.sgd, jnp.zeros(0), _CURVATURES)


def test_a_traced_interval_out_of_range_has_its_own_status():
    analysis = jax.jit(lambda mu, L: analyze(first_order.heavy_ball(0.1, 0.5), (mu, L)))(2.0, 1.0)
    assert int(analysis.status) == Status.OUT_OF_RANGE
    assert not bool(analysis.schur_valid)
    assert not bool(analysis.eigen_valid)


def test_an_optimizer_takes_the_dtype_of_the_spectrum():
    analysis = analyze(optax.sgd(0.1, momentum=0.9), jnp.array([0.1, 1.0], jnp.float32))
    assert analysis.rate.dtype == analysis.method.A.dtype == jnp.float32
    grid = analyze_learning_rates(optax.sgd, jnp.array([0.1, 0.2]), jnp.array([0.1, 1.0], jnp.float32))
    assert grid.rate.dtype == grid.method.A.dtype == jnp.float32
