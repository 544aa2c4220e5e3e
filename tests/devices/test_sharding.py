"""Batches split over devices give the numbers of one device, and stay split."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxnm import first_order, linalg, stokes


def _mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))


def _split(mesh, array):
    return jax.device_put(array, jax.sharding.NamedSharding(mesh, PartitionSpec("batch")))


def test_stein_equations_over_devices():
    a = 0.3 * np.random.default_rng(0).normal(size=(64, 2, 2))
    expected = linalg.solve_discrete_lyapunov(jnp.asarray(a), jnp.eye(2))
    solved = jax.jit(linalg.solve_discrete_lyapunov)(_split(_mesh(), a), jnp.eye(2))
    np.testing.assert_allclose(solved.x, expected.x, rtol=1e-13)
    mesh = _mesh()
    each = jax.shard_map(
        lambda a: linalg.solve_discrete_lyapunov(a, jnp.eye(2)).x,
        mesh=mesh,
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec("batch"),
        check_vma=False,
    )
    result = jax.jit(each)(_split(mesh, a))
    np.testing.assert_allclose(result, expected.x, rtol=1e-13)
    assert len(result.sharding.device_set) == 8


def test_a_rate_map_and_its_gradient_over_devices():
    steps = np.linspace(0.1, 3.5, 64)
    rate = lambda step: first_order.quadratic_rate(first_order.heavy_ball(step, 0.5), 0.1, 1.0)
    batched = jax.jit(jax.vmap(jax.value_and_grad(rate)))
    expected = batched(jnp.asarray(steps))
    result = batched(_split(_mesh(), steps))
    assert len(result[0].sharding.device_set) == 8
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_eigenvalues_over_devices():
    matrices = np.random.default_rng(0).normal(size=(32, 3, 3))
    expected = jax.jit(linalg.eigenvalues)(jnp.asarray(matrices))
    result = jax.jit(linalg.eigenvalues)(_split(_mesh(), matrices))
    np.testing.assert_allclose(jnp.abs(result), jnp.abs(expected), rtol=1e-12)


def test_certified_rates_over_devices():
    steps = np.linspace(0.2, 1.6, 16)
    certify = jax.vmap(lambda step: first_order.certify_rate(first_order.gradient_descent(step), 0.1, 1.0).rate)
    expected = jax.jit(certify)(jnp.asarray(steps))
    np.testing.assert_allclose(expected, np.maximum(np.abs(1 - 0.1 * steps), np.abs(1 - steps)), atol=1e-6)
    mesh = _mesh()
    spec = PartitionSpec("batch")
    each = jax.shard_map(certify, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    result = jax.jit(each)(_split(mesh, steps))
    assert len(result.sharding.device_set) == 8
    np.testing.assert_allclose(result, expected, atol=1e-7)


def test_one_flow_in_three_dimensions_over_devices():
    """A single solution whose force lies on eight devices, split along an axis."""
    grid = stokes.Grid((8, 8, 8), (0.0,) * 3, (1.0,) * 3)
    boundary = stokes.Boundary("periodic")
    operators = stokes.discretize(grid, boundary)
    random = np.random.default_rng(0)
    force = stokes.Velocity(*(random.normal(size=shape) for shape in stokes.face_shapes(grid, boundary)))
    solve = jax.jit(lambda force: stokes.solve(operators, force, method="schur_cg", rtol=1e-12))
    expected = solve(jax.tree.map(jnp.asarray, force))
    result = solve(jax.tree.map(lambda part: _split(_mesh(), part), force))
    assert int(result.status) == 0
    for ours, theirs in zip(
        jax.tree.leaves((result.velocity, result.pressure)),
        jax.tree.leaves((expected.velocity, expected.pressure)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
        assert len(ours.sharding.device_set) == 8
        assert not ours.sharding.is_fully_replicated
