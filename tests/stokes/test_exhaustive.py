"""What takes minutes, run by `make exhaustive`: all pairs of axes, the cube with a moving lid, nested corner eddies."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from jaxnm import stokes
from jaxnm.stokes import Boundary, Grid
from tests.stokes.test_direct import AXES, check_against_dense_matrices

pytestmark = pytest.mark.exhaustive
_solve = jax.jit(stokes.solve, static_argnames="method")

# Moffatt 1964, 90 degrees: sin(z pi / 2) = -z at z = 2.739593 + 1.119025 i
EXPONENT = 2.7395933563 + 1.1190245340j
SIZE_RATIO = np.exp(np.pi / EXPONENT.imag)
INTENSITY_RATIO = np.exp(np.pi * (1 + EXPONENT.real) / EXPONENT.imag)


@pytest.mark.parametrize(("x", "y"), list(itertools.product(AXES, AXES)))
def test_all_pairs_of_axes_against_dense_matrices(x, y):
    check_against_dense_matrices(x, y)


# ------------------------------------------------------------------------------------------- the cube with a moving lid


def _between(lower, upper, below, above):
    """Halfway between two lines, from these and the next ones: fourth order."""
    return (9 * (lower + upper) - (below + above)) / 16


def _smallest(line):
    """The least value of a line of cells near its least cell, by a polynomial through five."""
    at = np.arange(-2, 3)
    fit = np.polynomial.Polynomial.fit(at, line[np.argmin(line) + at], 4)
    return fit(np.linspace(-1, 1, 2001)).min()


def _cube(n):
    """Centre-line velocities of the cube whose lid z = 1 moves along x: in the centre, and their extremes."""
    grid, boundary = Grid((n,) * 3, (0.0,) * 3, (1.0,) * 3), Boundary()
    operators = stokes.discretize(grid, boundary)
    lid = stokes.boundary_values(grid, boundary).set("z", "upper", tangential=(1.0, 0.0))
    zero = stokes.zero_velocity(grid, boundary)
    solution = _solve(operators, zero, boundary_values=lid, method="schur_cg")
    assert int(solution.status) == 0
    assert int(solution.stats.iterations) <= 30
    assert float(solution.stats.divergence) <= 1e-9
    for axis in range(3):
        assert float(jnp.max(jnp.abs(stokes.flux(operators, solution.velocity, axis, lid)))) <= 1e-10
    u, v, w = (np.asarray(part) for part in solution.velocity.components)
    p = np.asarray(solution.pressure)
    # mirrored in x with the flow turned round, mirrored in y
    for field, sign_x, sign_y in ((u, 1, 1), (v, -1, -1), (w, -1, 1), (p, -1, 1)):
        allowed = 1e-9 * np.abs(field).max()
        np.testing.assert_allclose(field, sign_x * field[::-1], rtol=0, atol=allowed)
        np.testing.assert_allclose(field, sign_y * field[:, ::-1], rtol=0, atol=allowed)
    m = n // 2
    along_z = _between(*(u[m - 1, j] for j in (m - 1, m, m - 2, m + 1)))
    along_x = _between(*(w[:, j, m - 1] for j in (m - 1, m, m - 2, m + 1)))
    return _between(*(along_z[k] for k in (m - 1, m, m - 2, m + 1))), _smallest(along_z), _smallest(along_x)


def test_the_cube_with_a_moving_lid():
    """Symmetry, balance, and second order. No published extremes of the Stokes limit were at hand to compare with."""
    coarse, middle, fine = (np.array(_cube(n)) for n in (16, 32, 64))
    orders = np.log2((coarse - middle) / (middle - fine))
    print(f"u in the centre, least u, least w: {fine}, extrapolated {(4 * fine - middle) / 3}, orders {orders}")
    assert np.all(orders > 1.8)
    assert np.all(orders < 2.2)
    # the side walls hold the fluid back in the centre, and the return flow is faster below: -0.2078 in the plane
    assert -0.2276 < (4 * fine[1] - middle[1]) / 3 < -0.2271


# -------------------------------------------------------------------------------------------------- eddies in a corner


@partial(jax.jit, static_argnums=0)
def _corner(n, size, right, top):
    """Stream function on [0, size]^2 between walls, from its values and normal derivatives on the other two sides."""
    grid, boundary = Grid((n, n), (0.0, 0.0), (size, size)), Boundary()
    h = size / n
    sides = stokes.boundary_values(grid, boundary)
    sides = sides.set("x", "upper", normal=jnp.diff(right[0]) / h, tangential=-right[1][1:-1])
    sides = sides.set("y", "upper", normal=-jnp.diff(top[0]) / h, tangential=top[1][1:-1])
    operators = stokes.discretize(grid, boundary)
    solution = stokes.solve(operators, stokes.zero_velocity(grid, boundary), boundary_values=sides, method="direct")
    return stokes.stream_function(operators, solution.velocity, sides), solution.status


def _eddy(psi, size, sign):
    """The strongest eddy of one sense of rotation: its stream function and its distance from the corner."""
    extrema = stokes.stream_extrema(Grid(tuple(m - 1 for m in psi.shape), None, (size, size)), jnp.asarray(psi))
    value, at = (extrema.maximum, extrema.maximum_position) if sign > 0 else (extrema.minimum, extrema.minimum_position)
    return float(value), float(np.hypot(*at))


def _cavity(n):
    lines = jnp.zeros((2, n + 1))
    psi, status = _corner(n, 1.0, lines, lines.at[1].set(1.0))
    assert int(status) == 0
    return np.asarray(psi)


def test_corner_eddies_of_the_cavity_at_1024():
    """The second eddy is three cells from the corner: it is there, turns the other way, and its strength is a guess."""
    psi = _cavity(1024)[:129, :129]
    first, distance = _eddy(psi, 0.125, 1)
    second, second_distance = _eddy(psi[:9, :9], 8 / 1024, -1)
    print(f"eddies {first:.5e} at {distance:.5f}, {second:.3e} at {second_distance:.5f}; ratio {-first / second:.0f}")
    assert first == pytest.approx(2.2276e-6, rel=2e-3)
    assert second < 0
    assert -first / second == pytest.approx(INTENSITY_RATIO, rel=0.4)
    assert distance / second_distance == pytest.approx(SIZE_RATIO, rel=0.25)


def test_successive_corner_eddies_by_nested_boxes():
    """Boxes sixteen times smaller each, from the one before by splines: four eddies, two ratios a box."""
    n, shrink, size = 512, 16, 1.0
    psi = _cavity(n)
    ratios, sizes = [], []
    for level in range(1, 4):
        part = np.linspace(0, size / 4, n // 4 + 1)
        spline = RectBivariateSpline(part, part, psi[: n // 4 + 1, : n // 4 + 1], s=0)
        size = size / shrink
        edge = np.linspace(0, size, n + 1)
        right = np.stack([spline(size, edge)[0], spline(size, edge, dx=1)[0]])
        top = np.stack([spline(edge, size)[:, 0], spline(edge, size, dy=1)[:, 0]])
        psi, status = _corner(n, size, jnp.asarray(right), jnp.asarray(top))
        psi, sign = np.asarray(psi), (-1) ** (level + 1)
        assert int(status) == 0
        (outer, far), (inner, near) = _eddy(psi, size, sign), _eddy(psi[:65, :65], size / 8, -sign)
        print(f"box {size:.1e}: eddies {outer:.5e} and {inner:.5e}, ratio {-outer / inner:.0f}, sizes {far / near:.3f}")
        ratios.append(-outer / inner)
        sizes.append(far / near)
    np.testing.assert_allclose(ratios, INTENSITY_RATIO, rtol=0.015)
    np.testing.assert_allclose(sizes, SIZE_RATIO, rtol=0.01)
