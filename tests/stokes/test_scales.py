"""Answers and statuses in any unit: cells of any size, data of any size, factors of other operators, what fluid does
not hang together or is not held."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxnm import Status, stokes
from jaxnm.stokes import Boundary, Grid
from jaxnm.stokes.connectivity import components
from jaxnm.stokes.counting import percolating_axes
from jaxnm.stokes.domain import _components

_TORUS = Boundary("periodic", "periodic", "periodic")
_permeability = jax.jit(stokes.permeability, static_argnames=("dtype", "method"))


def _blob(n=16, porosity=0.65):
    picture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(n, n)), 2 * n / 48, mode="wrap")
    return stokes.largest_component(picture < np.quantile(picture, 1 - porosity), _TORUS)


_BLOB = _blob()


def _random(operators, scale=1.0):
    random = np.random.default_rng(0)
    shapes = stokes.face_shapes(operators.grid, operators.boundary)
    return stokes.Velocity(*(jnp.asarray(scale * random.normal(size=shape)) for shape in shapes))


# ---------- units


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (jnp.float32, (1e-3, 1e-6, 1e-9)),
        pytest.param(jnp.float64, (1e-9, 1e-100, 1e100), marks=pytest.mark.exhaustive),
    ],
)
def test_permeability_in_metres(dtype, sizes):
    """h^2 times that at h = 1."""
    reference = jax.jit(partial(stokes.permeability, _BLOB, dtype=dtype))
    unit = reference(spacing=jnp.asarray(1.0, dtype))
    for h in sizes:
        found = reference(spacing=jnp.asarray(h, dtype))
        np.testing.assert_array_equal(found.status, 0)
        scaled = np.asarray(found.tensor, np.float64) / h**2
        allowed = 2e-4 if dtype == jnp.float32 else 2e-9  # rtol of both, times the steps across the sample
        np.testing.assert_allclose(scaled, unit.tensor, rtol=0, atol=allowed * float(unit.tensor[0, 0]))


def test_the_solution_is_linear_in_data_of_any_size():
    grid, boundary = Grid((8, 8)), Boundary()
    solve = jax.jit(stokes.solve)
    operators = stokes.discretize(grid, boundary, viscosity=jnp.asarray(0.3))
    reference = solve(operators, _random(operators))
    # powers of two cost no accuracy
    for scale in (2.0**-660, 2.0**660):
        found = solve(operators, _random(operators, scale))
        assert int(found.status) == 0
        np.testing.assert_array_equal(found.velocity.u, reference.velocity.u * scale)
        np.testing.assert_array_equal(found.pressure, reference.pressure * scale)
        assert float(found.stats.momentum_residual) == float(reference.stats.momentum_residual)
        found = solve(operators.replace(viscosity=jnp.asarray(0.3 * scale)), _random(operators))
        np.testing.assert_array_equal(found.velocity.u, reference.velocity.u / scale)
    tiny = solve(operators.replace(viscosity=jnp.asarray(1e300)), _random(operators, 1e-20))
    assert int(tiny.status) == Status.INACCURATE  # the velocity is below the smallest number


@pytest.mark.exhaustive
def test_gradients_of_any_size_in_float32():
    """s times the gradient at s = 1."""
    drag = jnp.where(_BLOB, 10.0, 0.0).astype(jnp.float32)
    value = lambda drag, s: s * stokes.permeability(inverse_permeability=drag, dtype=jnp.float32).tensor[0, 0]
    gradient = jax.jit(jax.grad(value))
    reference = np.asarray(gradient(drag, jnp.float32(1.0)))
    assert np.abs(reference).max() > 0
    found = np.asarray(gradient(drag, jnp.float32(1e-18)), np.float64) * 1e18
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.exhaustive
def test_a_derivative_that_does_not_converge_is_nan():
    operators = stokes.discretize(Grid(_BLOB.shape), _TORUS, solid=_BLOB)
    force = _random(operators)

    @partial(jax.jit, static_argnums=1)
    def value(scale, max_steps):
        solution = stokes.solve(
            operators, jax.tree.map(lambda part: scale * part, force), max_steps=max_steps, rtol=1e-8
        )
        return jnp.sum(solution.velocity.u**2), solution.status

    slope, status = jax.jit(jax.grad(value, has_aux=True), static_argnums=1)(1.0, 3)
    assert int(status) == Status.NOT_CONVERGED
    assert np.isnan(slope)
    (size, _), (slope, status) = value(1.0, 1000), jax.jit(jax.grad(value, has_aux=True), static_argnums=1)(1.0, 1000)
    assert int(status) == 0
    np.testing.assert_allclose(slope, 2 * size, rtol=1e-6)


# ---------- what status follows from


def test_a_factor_of_other_operators_is_refused_or_seen():
    boundary, other = Boundary(), Boundary("no_slip", "free_slip")
    operators, longer = (stokes.discretize(Grid((8, 8), None, (8.0, top)), boundary) for top in (8.0, 9.0))
    force, factor = _random(operators), stokes.factorize(operators)
    solve = jax.jit(stokes.solve)
    assert int(solve(operators, force, factor=factor).status) == 0
    found = solve(longer, force, factor=factor)
    assert int(found.status) == Status.INACCURATE
    assert float(found.stats.momentum_residual) > 1e-3
    sides = stokes.discretize(operators.grid, other)
    with pytest.raises(ValueError, match="factor is of another grid or boundary"):
        stokes.solve(sides, _random(sides), factor=factor)
    with pytest.raises(ValueError, match="factor is of dtype float64, expected float32"):
        stokes.solve(operators, jax.tree.map(lambda part: part.astype(jnp.float32), force), factor=factor)
    with pytest.raises(TypeError, match="factor is of type int"):
        stokes.solve(operators, force, factor=1)
    porous = stokes.discretize(operators.grid, boundary, inverse_permeability=jnp.ones((8, 8)))
    with pytest.raises(ValueError, match="factor is of 'direct' for a domain with solid or drag"):
        stokes.solve(porous, force, factor=factor)


@pytest.mark.exhaustive
def test_a_factor_of_another_mask_costs_steps_and_not_digits():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4], masks[1, 5:7, 2:4] = True, True
    ours, theirs = (stokes.discretize(Grid((8, 8)), Boundary(), solid=mask) for mask in masks)
    found = jax.jit(stokes.solve)(ours, _random(ours), factor=stokes.factorize(theirs), rtol=1e-8)
    if int(found.status) == 0:
        assert float(found.stats.momentum_residual) <= 1e-8


@pytest.mark.parametrize("n", [16, pytest.param(128, marks=pytest.mark.exhaustive)])
def test_the_residual_is_what_was_asked_for(n):
    mask = _blob(n)
    operators = stokes.discretize(Grid(mask.shape), _TORUS, solid=mask)
    force = jax.tree.map(lambda f, a: f * a.astype(float), _random(operators), operators.active_faces())
    solution = jax.jit(stokes.solve)(operators, force, rtol=1e-8)
    assert int(solution.status) == 0
    momentum, flux = operators.saddle((solution.velocity, solution.pressure))
    rest = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(momentum.components, force.components, strict=True))
    largest = max(float(jnp.max(jnp.abs(part))) for part in force.components)
    assert rest <= 1.01e-8 * largest
    speed = max(float(jnp.max(jnp.abs(part))) for part in solution.velocity.components)
    assert float(jnp.max(jnp.abs(flux))) <= 1.01e-8 * max(speed, largest)


# ---------- parts of the fluid


@pytest.mark.parametrize("shape", [(6, 7), (1, 5), (4, 3, 5)])
def test_parts_of_the_fluid_against_the_host(shape):
    random, label = np.random.default_rng(0), jax.jit(components, static_argnums=1)
    for boundary in (_TORUS, Boundary(x="periodic")):
        for share in (0.3, 0.45, 0.6, 0.3, 0.45, 0.6):
            solid = random.random(shape) < share
            expected, count = _components(solid, boundary)
            found = label(solid, boundary)
            labels = np.asarray(found.labels)
            pairs = set(zip(expected[~solid].tolist(), labels[~solid].tolist(), strict=True))
            assert len(pairs) == count == len(set(labels[~solid].tolist()))
            for part, root in pairs:
                wound = percolating_axes(expected != part, boundary)
                np.testing.assert_array_equal(found.winds[root], wound)


@pytest.mark.exhaustive
def test_a_blocked_sample_says_so():
    wall = np.zeros((8, 8), bool)
    wall[:, 5] = True
    for found in (stokes.permeability(wall, rtol=1e-12), _permeability(jnp.asarray(wall), rtol=1e-12)):
        np.testing.assert_array_equal(found.status, [Status.OK, Status.NOT_PERCOLATING])
        np.testing.assert_allclose(found.tensor, [[(7**3 / 12 + 7 / 6) / 8, 0], [0, 0]], rtol=1e-10)
        np.testing.assert_array_equal(found.tensor[1], 0)


@pytest.mark.exhaustive
def test_pores_that_nothing_flows_through():
    """Two cells in a solid; a slit of one cell beside a closed pore, in a batch with an empty and a full sample."""
    pore = np.ones((8, 8), bool)
    pore[3, 3:5] = False
    found = stokes.permeability(pore)
    np.testing.assert_array_equal(found.tensor, 0)
    np.testing.assert_array_equal(found.status, Status.NOT_PERCOLATING)
    slit = np.ones((8, 8), bool)
    slit[:, 6], slit[2:4, 2] = False, False
    batch = jnp.asarray([slit, np.zeros_like(slit), np.ones_like(slit), slit.T])
    found = jax.jit(jax.vmap(lambda solid: stokes.permeability(solid, rtol=1e-10)))(batch)
    blocked, free = Status.NOT_PERCOLATING, Status.INCOMPATIBLE_DATA
    np.testing.assert_array_equal(found.status, [[0, blocked], [free, free], [blocked, blocked], [blocked, 0]])
    np.testing.assert_allclose(found.tensor[0], [[1 / 32, 0], [0, 0]], rtol=1e-9)
    assert np.isnan(found.tensor[1]).all()
    np.testing.assert_array_equal(found.tensor[2], 0)
    np.testing.assert_allclose(found.tensor[3], [[0, 0], [0, 1 / 32]], rtol=1e-9)


@pytest.mark.exhaustive
def test_what_nothing_holds_and_what_cannot_leave():
    grid = Grid((6, 6))
    drag = stokes.discretize(grid, _TORUS, inverse_permeability=jnp.zeros((6, 6)))
    zero = stokes.zero_velocity(grid, _TORUS)
    found = jax.jit(stokes.solve)(drag, zero.replace(u=zero.u + 1))
    assert int(found.status) == Status.INCOMPATIBLE_DATA
    assert float(found.stats.force_defect) == pytest.approx(1)
    np.testing.assert_allclose(found.velocity.u, 0, rtol=0, atol=1e-12)
    channel = Boundary(("inflow", "outflow"), "no_slip")
    inflow = stokes.boundary_values(grid, channel).set("x", "lower", normal=1.0)
    wall = np.zeros((6, 6), bool)
    wall[3] = True

    @jax.jit
    def solve(solid):
        operators = stokes.discretize(grid, channel, solid=solid)
        return stokes.solve(operators, stokes.zero_velocity(grid, channel), boundary_values=inflow)

    found = solve(wall)
    assert int(found.status) == Status.INCOMPATIBLE_DATA
    assert float(found.stats.compatibility_defect) == pytest.approx(1)
    assert float(jnp.max(jnp.abs(found.pressure))) < 100
    np.testing.assert_array_equal(found.pressure[4:], 0)
    wall[3, 2] = False
    assert int(solve(wall).status) == 0


# ---------- slabs, long boxes


@pytest.mark.exhaustive
def test_a_picture_as_a_slab():
    """One periodic cell across: the answer in three dimensions is that in two."""
    flat = stokes.permeability(_BLOB, spacing=(0.5, 0.25), rtol=1e-10)
    slab = stokes.permeability(_BLOB[:, :, None], spacing=[0.5, 0.25, 7.0], rtol=1e-10)
    np.testing.assert_array_equal(slab.status[:2], 0)
    np.testing.assert_allclose(slab.tensor[:2, :2], flat.tensor, rtol=0, atol=1e-8 * float(flat.tensor[0, 0]))
    np.testing.assert_allclose(slab.tensor[2, :2], 0, rtol=0, atol=1e-10)


@pytest.mark.exhaustive
def test_counts_and_solutions_of_slabs():
    for letters, boundary in (("NN", Boundary("periodic", "no_slip")), ("FF", Boundary("periodic", "free_slip"))):
        grid = Grid((1, 6), None, (0.5, 1.0))
        operators = stokes.discretize(grid, boundary)
        dense = np.linalg.eigvalsh(np.asarray(stokes.schur_complement(operators).to_dense()))
        count = int(np.sum((np.abs(dense - 1) > 1e-8) & (np.abs(dense) > 1e-9)))
        assert stokes.count_nonunit_eigenvalues(grid, boundary) == count, letters
    grid, boundary = Grid((1, 6), None, (0.5, 1.0)), Boundary("periodic", "no_slip")
    operators = stokes.discretize(grid, boundary)
    force = _random(operators)
    direct, cg, minres = (stokes.solve(operators, force, method=m) for m in ("direct", "schur_cg", "minres"))
    for solution in (direct, cg, minres):
        assert int(solution.status) == 0
        np.testing.assert_allclose(solution.velocity.u, direct.velocity.u, rtol=0, atol=1e-9)
        np.testing.assert_allclose(solution.pressure, direct.pressure, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [16, pytest.param(512, marks=pytest.mark.exhaustive)])
def test_the_inf_sup_constant_of_long_boxes(length):
    operators = stokes.discretize(Grid((length, 8)), Boundary())
    found = float(stokes.inf_sup_constant(operators, key=jax.random.key(0)))
    assert found == pytest.approx(float(stokes.schur_eigenvalues(operators)[0]) ** 0.5, rel=1e-8)
    assert np.isnan(stokes.inf_sup_constant(operators, key=jax.random.key(0), num_steps=2))


def test_beside_a_strong_drag_the_flow_is_darcys():
    """From a drag of 1e8 / h^2 on: against a dense solution of D u + grad p = f, div u = 0, which has no viscosity."""
    drag = 1 + np.random.default_rng(0).normal(size=(4, 5)) ** 2
    grid, boundary = stokes.Grid((4, 5)), stokes.Boundary("periodic", "periodic")
    dense = lambda d: np.asarray(stokes.discretize(grid, boundary, inverse_permeability=jnp.asarray(d)).to_dense())
    viscous = dense(np.zeros((4, 5)))
    matrix = dense(drag) - viscous
    matrix[40:, :40], matrix[:40, 40:] = viscous[40:, :40], viscous[:40, 40:]
    forces = np.kron(np.eye(3)[:, :2], np.ones((20, 1)))
    flows = np.linalg.lstsq(matrix, forces, rcond=1e-12)[0]
    wanted = flows[:40].reshape(2, 20, 2).mean(1)
    of = jax.jit(jax.vmap(lambda s: stokes.permeability(inverse_permeability=s * jnp.asarray(drag), rtol=1e-12)))
    strengths = jnp.asarray([1e12, 1e16, 1e30])
    found = of(strengths)
    np.testing.assert_array_equal(found.status, np.zeros((3, 2)))
    for s, tensor in zip(strengths, found.tensor, strict=True):
        np.testing.assert_allclose(tensor * s, wanted, rtol=1e-10, atol=1e-12)
