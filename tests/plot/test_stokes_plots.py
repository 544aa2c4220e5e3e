"""What the pictures of flows show is what was computed: data, labels and titles, read back from the axes."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

from jaxnm import stokes
from jaxnm.plot.stokes import mask, pressure, schur_spectrum, streamlines


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _flow():
    """A channel of 12 x 8 cells of different sizes with an obstacle of 2 x 3."""
    solid = np.zeros((12, 8), bool)
    solid[4:6, 2:5] = True
    grid, boundary = stokes.Grid((12, 8), (1.0, -1.0), (4.0, 3.0)), stokes.Boundary("periodic", "no_slip")
    operators = stokes.discretize(grid, boundary, solid=solid)
    zero = stokes.zero_velocity(grid, boundary)
    return operators, stokes.solve(operators, zero.replace(u=jnp.ones_like(zero.u))), solid


@pytest.mark.exhaustive
def test_streamlines_lie_over_the_speed_and_the_mask_is_drawn():
    operators, solution, solid = _flow()
    ax = streamlines(operators, solution)
    speed, solids = ax.collections[0].get_array(), ax.collections[1].get_array()
    u, v = (np.asarray(part) for part in stokes.at_centres(operators, solution.velocity).components)
    np.testing.assert_array_equal(np.ma.getmaskarray(speed).reshape(8, 12).T, solid)
    np.testing.assert_allclose(speed.reshape(8, 12).T[~solid], np.hypot(u, v)[~solid])
    np.testing.assert_array_equal(~np.ma.getmaskarray(solids).reshape(8, 12).T, solid)
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    assert lines.get_zorder() < ax.collections[1].get_zorder()
    x, y = np.concatenate(lines.get_segments()).T
    assert x.size > 100
    inner = (x > 2.125) & (x < 2.375) & (y > 0.25) & (y < 1.25)  # between the centres of solid cells
    assert not inner.any()
    assert (ax.get_xlim(), ax.get_ylim()) == ((1, 4), (-1, 3))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.figure.axes[1].get_ylabel() == "speed"


@pytest.mark.exhaustive
def test_the_lid_shows_in_the_speed_and_lines_can_be_left_out():
    grid, boundary = stokes.Grid((6, 6)), stokes.Boundary()
    lid = stokes.boundary_values(grid, boundary).set("y", "upper", normal=jnp.array([1.0, -1, 1, -1, 1, -1]))
    operators = stokes.discretize(grid, boundary)
    solution = stokes.solve(operators, stokes.zero_velocity(grid, boundary), boundary_values=lid)
    with_lid, without = (streamlines(operators, solution, values, colour=None) for values in (lid, None))
    assert len(with_lid.collections) == 1
    top = [ax.collections[0].get_array().reshape(6, 6)[-1] for ax in (with_lid, without)]
    assert np.all(top[0] > top[1])
    assert with_lid.get_title() == "speed"


def test_a_fluid_at_rest_has_no_streamlines():
    grid, boundary = stokes.Grid((4, 4)), stokes.Boundary()
    operators = stokes.discretize(grid, boundary)
    solution = stokes.solve(operators, stokes.zero_velocity(grid, boundary))
    assert len(streamlines(operators, solution).collections) == 1
    assert len(pressure(operators, solution).collections) == 1


def test_pressure_is_drawn_in_the_fluid():
    operators, solution, solid = _flow()
    axes = plt.subplots()[1]
    ax = pressure(operators, solution, label="pressure, Pa", ax=axes)
    assert ax is axes
    shown = ax.collections[0].get_array().reshape(8, 12).T
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), solid)
    np.testing.assert_allclose(shown[~solid], np.asarray(solution.pressure)[~solid])
    assert ax.figure.axes[1].get_ylabel() == "pressure, Pa"


def test_the_mask_alone():
    operators, _, solid = _flow()
    ax = mask(operators, colour="red")
    np.testing.assert_array_equal(~np.ma.getmaskarray(ax.collections[0].get_array()).reshape(8, 12).T, solid)
    box = stokes.discretize(stokes.Grid((4, 4)), stokes.Boundary())
    assert not mask(box).collections


def test_the_spectrum_is_in_order_with_its_number_in_the_title():
    ax = schur_spectrum(jnp.array([1.4, 0.25, 0.5]), num_cells=16, label="box")
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.25, 0.5, 1.4])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 1])
    assert ax.get_title() == "box\n3 of 16 (18.8%) eigenvalues are not 1"
    assert ax.get_ylim()[1] > 1.4
    assert schur_spectrum(jnp.zeros(0)).get_title() == "0 eigenvalues are not 1"


def test_what_cannot_be_drawn_is_refused():
    operators, solution, _ = _flow()
    broken = solution.replace(
        velocity=solution.velocity.replace(u=solution.velocity.u * jnp.nan), pressure=solution.pressure * jnp.nan
    )
    for draw in (streamlines, pressure):
        with pytest.raises(ValueError, match="solution is not finite"):
            draw(operators, broken)
        with pytest.raises(TypeError, match="operators is of type Grid"):
            draw(operators.grid, solution)
    with pytest.raises(ValueError, match="in 3 dimensions"):
        mask(stokes.discretize(stokes.Grid((2, 2, 2)), stokes.Boundary()))
    with pytest.raises(ValueError, match="density"):
        streamlines(operators, solution, density=0.0)
    with pytest.raises(ValueError, match="eigenvalues is not finite"):
        schur_spectrum(jnp.array([0.5, jnp.nan]))
    with pytest.raises(ValueError, match=r"of shape \(1, 2\)"):
        schur_spectrum(jnp.array([[0.5, 0.6]]))
