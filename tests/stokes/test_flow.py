"""What is computed from flows: forces, permeability, stream functions, vorticity, fluxes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status, stokes
from jaxnm.stokes import Boundary, Grid, Velocity
from tests.stokes.test_counting import _boundary

_TORUS = Boundary("periodic", "periodic", "periodic")


def _random(operators, seed=0):
    random = np.random.default_rng(seed)
    shapes = stokes.face_shapes(operators.grid, operators.boundary)
    return Velocity(*(jnp.asarray(random.normal(size=shape)) for shape in shapes))


def _field(grid, boundary, *functions):
    return Velocity(*(f(*stokes.positions(grid, boundary, c)) for c, f in enumerate(functions)))


_SOLVE = jax.jit(partial(stokes.solve, rtol=1e-12))


@pytest.mark.exhaustive
@pytest.mark.parametrize("viscosity", [0.3])
def test_the_force_on_obstacles_is_the_force_on_the_fluid(viscosity):
    """In a periodic cell, to rounding times what the solver leaves; two obstacles share it."""
    solid = np.zeros((12, 10), bool)
    solid[2:4, 3:6], solid[8, 1], solid[7:9, 7:9] = True, True, True
    grid = Grid(solid.shape, None, (1.2, 0.8))
    operators = stokes.discretize(grid, _TORUS, viscosity=viscosity, solid=solid)
    force = jax.tree.map(lambda part, active: part * active.astype(float), _random(operators), operators.active_faces())
    force = force.replace(u=force.u + operators.active_faces().u.astype(float))
    solution = _SOLVE(operators, force)
    assert int(solution.status) == 0
    volume = 0.1 * 0.08
    total = volume * jnp.stack([jnp.sum(part) for part in force.components])
    found = stokes.force_on_solid(operators, solution.velocity, solution.pressure)
    np.testing.assert_allclose(found[0], total, rtol=0, atol=1e-10 * volume * float(jnp.sum(jnp.abs(force.u))))
    labels = np.zeros(solid.shape, np.int32)
    labels[2:4, 3:6], labels[8, 1], labels[7:9, 7:9] = 1, 2, 3
    each = stokes.force_on_solid(operators, solution.velocity, solution.pressure, labels=labels, num_labels=3)
    np.testing.assert_allclose(each.sum(0), found[0], rtol=0, atol=1e-13)
    two = stokes.force_on_solid(operators, solution.velocity, solution.pressure, labels=labels, num_labels=2)
    np.testing.assert_allclose(two, each[:2], rtol=0, atol=1e-15)


def _cylinder(n, phi):
    squares = ((np.arange(n) + 0.5) / n - 0.5) ** 2
    return squares[:, None] + squares < phi / np.pi


@jax.jit
def _drag(solid):
    return stokes.permeability(solid, spacing=1 / 128, rtol=1e-7).tensor


@pytest.mark.exhaustive
@pytest.mark.parametrize(("phi", "published"), [(0.1, 24.83), (0.2, 51.53), (0.3, 102.90)])
def test_the_drag_of_square_arrays_of_cylinders(phi, published):
    """Sangani and Acrivos 1982; a staircase of 128 cells."""
    tensor = np.asarray(_drag(_cylinder(128, phi)))
    assert 1 / tensor[0, 0] == pytest.approx(published, rel=0.01)
    np.testing.assert_allclose(tensor, tensor.T, rtol=0, atol=1e-6 * tensor[0, 0])
    assert tensor[0, 0] == pytest.approx(tensor[1, 1], rel=1e-6)


@pytest.mark.exhaustive
def test_permeability_of_a_slit():
    """h^3 / 12 and the discrete h / 8 term, over the width of the cell."""
    solid = np.zeros((4, 8), bool)
    solid[:, 0] = True
    tensor = stokes.permeability(solid, spacing=(0.5, 0.25), rtol=1e-12).tensor
    width, h = 7 * 0.25, 0.25
    flux = width**3 / 12 + width * h**2 / 6
    np.testing.assert_allclose(tensor, [[flux / 2.0, 0], [0, 0]], rtol=0, atol=1e-10)
    assert np.isnan(stokes.permeability(np.zeros((4, 4), bool)).tensor).all()


@pytest.mark.exhaustive
def test_permeability_of_a_uniform_medium():
    uniform = stokes.permeability(spacing=0.5, inverse_permeability=jnp.full((4, 4), 3.0), rtol=1e-12).tensor
    np.testing.assert_allclose(uniform, np.eye(2) / 3, rtol=0, atol=1e-10)


@pytest.mark.exhaustive
def test_permeability_is_a_symmetric_positive_tensor():
    solid = np.zeros((12, 12), bool)
    for i in range(7):
        solid[i + 2 : i + 4, i + 1] = True
    tensor = np.asarray(stokes.permeability(solid, rtol=1e-12).tensor)
    assert abs(tensor[0, 1]) > 1e-2 * tensor[0, 0]
    np.testing.assert_allclose(tensor, tensor.T, rtol=0, atol=1e-10 * tensor[0, 0])
    assert np.linalg.eigvalsh(tensor)[0] > 0


def test_the_stream_function_gives_the_velocity_back():
    """Of a flow from a random stream function, through sides that are open or prescribed."""
    random = np.random.default_rng(0)
    psi = random.normal(size=(7, 6))
    psi -= psi[0, 0]
    grid = Grid((6, 5), (0.0, 0.0), (1.5, 0.8))
    u, v = np.diff(psi, axis=1) / 0.16, -np.diff(psi, axis=0) / 0.25
    boundary = _boundary("IO|NT")
    operators = stokes.discretize(grid, boundary)
    values = stokes.boundary_values(grid, boundary).set("x", "lower", normal=jnp.asarray(u[0]))
    values = values.set("y", "lower", normal=jnp.asarray(v[:, 0]))
    velocity = Velocity(jnp.asarray(u[1:]), jnp.asarray(v[:, 1:]))
    np.testing.assert_allclose(stokes.stream_function(operators, velocity, values), psi, rtol=0, atol=1e-14)
    full = stokes.full_faces(operators, velocity, values)
    np.testing.assert_array_equal(full.u, u)
    np.testing.assert_array_equal(full.v, v)
    centres = stokes.at_centres(operators, velocity, values)
    np.testing.assert_allclose(centres.u, (u[1:] + u[:-1]) / 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(centres.v, (v[:, 1:] + v[:, :-1]) / 2, rtol=0, atol=1e-15)
    # what enters leaves
    right, top = (stokes.flux(operators, velocity, axis, values) for axis in (0, 1))
    np.testing.assert_allclose(right, psi[:, -1] - psi[:, 0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(right[-1] - right[0] + top[-1] - top[0], 0, rtol=0, atol=1e-14)


def test_extrema_between_the_vertices():
    grid = Grid((10, 8), (0.0, 0.0), (1.0, 1.0))
    x, y = jnp.meshgrid(grid.faces(0), grid.faces(1), indexing="ij")
    extrema = stokes.stream_extrema(grid, 2 - (x - 0.43) ** 2 - 3 * (y - 0.57) ** 2)
    assert float(extrema.maximum) == pytest.approx(2, abs=1e-13)
    np.testing.assert_allclose(extrema.maximum_position, [0.43, 0.57], rtol=0, atol=1e-13)
    np.testing.assert_allclose(extrema.minimum_position, [1.0, 0.0], rtol=0, atol=1e-13)
    assert float(extrema.minimum) == pytest.approx(2 - 0.57**2 - 3 * 0.57**2)


def test_the_vorticity_of_a_rigid_rotation():
    """Two where the sides move along, exactly."""
    grid, boundary = Grid((5, 4), (-0.3, 0.1), (0.7, 1.3)), _boundary("II|NN")
    velocity = _field(grid, boundary, lambda x, y: -y, lambda x, y: x)
    values = stokes.boundary_values(grid, boundary)
    for axis in "xy":
        for side in ("lower", "upper"):
            turn = {"x": (lambda x, y: -y, lambda x, y: x), "y": (lambda x, y: x, lambda x, y: -y)}[axis]
            values = values.set(axis, side, normal=turn[0], tangential=turn[1])
    (found,) = stokes.vorticity(stokes.discretize(grid, boundary), velocity, values)
    inner = np.asarray(found)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 2, rtol=0, atol=1e-13)
    sides = np.concatenate([found[1:-1, 0], found[1:-1, -1], found[0, 1:-1], found[-1, 1:-1]])
    np.testing.assert_allclose(sides, 2, rtol=0, atol=1e-13)


def test_the_vorticity_of_waves_in_three_dimensions():
    """On a periodic box against the symbols of the differences; no divergence of a curl."""
    grid = Grid((4, 6, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    k = 2 * np.pi
    wave = [lambda x, y, z: jnp.sin(k * z), lambda x, y, z: jnp.sin(k * x), lambda x, y, z: jnp.sin(k * y)]
    operators = stokes.discretize(grid, _TORUS)
    found = stokes.vorticity(operators, _field(grid, _TORUS, *wave))
    shapes = [(4, 7, 9), (5, 6, 9), (5, 7, 8)]
    # (dw/dy, du/dz, dv/dx)
    for part, shape, axis, n in zip(found, shapes, (1, 2, 0), (6, 8, 4), strict=True):
        assert part.shape == shape
        line = 2 * n * np.sin(k / (2 * n)) * np.cos(k * np.asarray(grid.faces(axis)))
        wanted = np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(3)]), shape)
        np.testing.assert_allclose(part, wanted, rtol=0, atol=1e-12)
    curl = stokes.vorticity(operators, _random(operators))
    inner = lambda axis: tuple(slice(None) if a == axis else slice(1, -1) for a in range(3))
    divergence = sum(np.diff(part[inner(axis)], axis=axis) * grid.shape[axis] for axis, part in enumerate(curl))
    np.testing.assert_allclose(divergence, 0, rtol=0, atol=1e-11)


def test_what_is_refused():
    three = stokes.discretize(Grid((3, 3, 3)), Boundary())
    flat = stokes.discretize(Grid((4, 4)), Boundary())
    zero = stokes.zero_velocity(flat.grid, flat.boundary)
    with pytest.raises(ValueError, match="stream_function: operators is in 3 dimensions"):
        stokes.stream_function(three, stokes.zero_velocity(three.grid, three.boundary))
    with pytest.raises(ValueError, match="flux: axis is 2"):
        stokes.flux(flat, zero, 2)
    with pytest.raises(ValueError, match="force_on_solid: operators is"):
        stokes.force_on_solid(flat, zero, jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match="permeability: solid is None"):
        stokes.permeability()
    masked = flat.replace(solid=jnp.zeros((4, 4), bool).at[1, 1].set(True))
    with pytest.raises(TypeError, match="labels is of dtype float64, expected integers"):
        stokes.force_on_solid(masked, zero, jnp.zeros((4, 4)), labels=jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="psi is of shape"):
        stokes.stream_extrema(flat.grid, jnp.zeros((4, 4)))


def test_the_permeability_of_a_weak_drag_is_right_or_said_to_be_inaccurate():
    """K d = 1 in a uniform medium (Darcy); of a drag that is rounding beside 1 / h^2 the digits are lost."""
    drags = jnp.asarray([1e-8, 1e-10, 1e-12, 1e-15, 1e3])
    of = jax.jit(jax.vmap(lambda d: stokes.permeability(inverse_permeability=jnp.full((6, 6), d))))
    weak = of(drags)
    error = np.abs(np.asarray(weak.tensor)[:, 0, 0] * np.asarray(drags) - 1)
    ok = np.asarray(weak.status[:, 0]) == 0
    assert np.all(error[ok] <= np.sqrt(np.finfo(float).eps))
    # by luck of the rounding, those between may have their digits
    np.testing.assert_array_equal(ok[[0, 2, 3, 4]], [True, False, False, True])
    assert np.all(np.isin(weak.status[:, 0], [0, Status.INACCURATE]))
