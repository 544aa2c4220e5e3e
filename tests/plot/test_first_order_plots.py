"""What the pictures show is what was computed: data, labels and legends, read back from the axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot as plt

from jaxnm import first_order
from jaxnm.plot.first_order import eigenvalue_disc, error_envelope, pseudospectrum, rate_map, spectral_density


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_rate_map_marks_the_best_point_and_masks_divergence():
    # no pair is on the limit itself, where rounding would decide
    steps, momenta = jnp.linspace(0.15, 4.55, 23), jnp.linspace(0, 0.95, 20)
    ax = rate_map(first_order.heavy_ball, steps, momenta, 0.1, 1.0)
    shown = np.ma.getmaskarray(ax.collections[0].get_array()).reshape(20, 23)
    unstable = np.asarray(steps)[None, :] >= 2 * (1 + np.asarray(momenta)[:, None])
    np.testing.assert_array_equal(shown, unstable)
    x, y = (float(value[0]) for value in ax.lines[0].get_data())
    rate = lambda a, b: max(np.abs(np.roots([1, -(1 + b - a * c), b])).max() for c in (0.1, 1.0))
    assert rate(x, y) == pytest.approx(min(rate(a, b) for a in np.asarray(steps) for b in np.asarray(momenta)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step size", "momentum")


def test_rate_map_of_nothing_that_converges_is_empty_and_no_error():
    ax = rate_map(first_order.heavy_ball, jnp.array([5.0, 6.0]), jnp.array([0.0, 0.1]), 0.1, 1.0)
    assert np.ma.getmaskarray(ax.collections[0].get_array()).all()


def test_eigenvalue_disc_draws_all_eigenvalues_and_the_radius():
    method, curvatures = first_order.heavy_ball(1.0, 0.81), jnp.linspace(0.05, 1, 7)
    ax = eigenvalue_disc(method, curvatures)
    points = ax.collections[0].get_offsets()
    assert points.shape == (14, 2)
    np.testing.assert_allclose(np.hypot(*points.T), 0.9, rtol=1e-12)
    np.testing.assert_allclose(np.hypot(*ax.lines[1].get_data()), 0.9, rtol=1e-12)
    assert "spectral radius 0.9000" in ax.get_title()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("real part", "imaginary part")


def test_error_envelope_draws_errors_and_their_envelope():
    errors = 2.0 * 0.5 ** np.arange(10)
    ax = error_envelope({"halving": errors}, {"halving": 0.5}, peak={"halving": 3.0})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), errors)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 3 * errors)
    assert "halving" in ax.lines[0].get_label()
    single = error_envelope(jnp.asarray(errors), 0.5)
    assert len(single.lines) == 2


def test_the_area_under_a_spectral_density_is_the_number_of_parameters():
    loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 1.0, 4.0, 9.0]) * x**2)
    for options in ({}, {"method": "lanczos", "key": jax.random.key(0)}):
        ax = spectral_density(first_order.hessian_spectrum(loss, jnp.zeros(4), **options), width=0.1)
        x, y = ax.lines[0].get_data()
        assert np.trapezoid(y, x) == pytest.approx(4, rel=1e-5)
        assert y[np.argmin(np.abs(x - 2.5))] < 1e-20
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mu = 1", "L = 9"]
        assert ax.get_title().startswith("4 curvatures")
    bad = first_order.hessian_spectrum(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(2))
    with pytest.raises(ValueError, match="spectrum is not finite"):
        spectral_density(bad)


def test_pseudospectra_of_a_normal_matrix_are_discs_around_its_eigenvalues():
    ax = pseudospectrum(jnp.diag(jnp.array([0.5, -0.5])), points=101)
    np.testing.assert_allclose(np.sort(ax.lines[1].get_xdata()), [-0.5, 0.5], atol=1e-12)
    contours = ax.collections[0]
    # the first region lies below all levels
    boundary = contours.get_paths()[1 + list(contours.levels).index(-1.0)].vertices
    distance = np.min([np.hypot(boundary[:, 0] - x, boundary[:, 1]) for x in (0.5, -0.5)], axis=0)
    assert distance.min() == pytest.approx(0.1, abs=2e-3)
    with pytest.raises(ValueError, match="matrix is not finite"):
        pseudospectrum(jnp.full((2, 2), jnp.nan))
