"""The grid filter against a dense hidden Markov model and a particle filter, both in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status
from jaxnm.filtering.histogram import histogram_filter
from jaxnm.filtering.worlds import simulate, world_from_map

WORLD = world_from_map("tiny", ["....", ".B..", "...#"])
TRACKS = simulate(jax.random.key(3), WORLD, 4, 12, num_ranges=3)
RANGES, ACTIONS = (np.asarray(leaf) for leaf in (TRACKS.ranges[0], TRACKS.actions[0]))


def _share(num, shift, spread):
    """[num, num]: the mean of max(0, 1 - |i - j - shift - spread Z|), Z normal, by a sum over many values of Z."""
    z, step = np.linspace(-9, 9, 4001, retstep=True)
    offset = np.subtract.outer(np.arange(num), np.arange(num)) - shift
    values = np.maximum(1 - np.abs(offset[..., None] - spread * z), 0)
    return values @ (step * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))


def _log_density(ranges, positions, scale):
    exact = np.sort(np.linalg.norm(positions[:, None] - np.asarray(WORLD.beacons), axis=-1))[:, : len(ranges)]
    heard = ~np.isnan(ranges)
    z = ((ranges - exact) / scale)[:, heard]
    return (-0.5 * z**2 - np.log(scale * np.sqrt(2 * np.pi))).sum(-1)


def _dense(ranges, actions, resolution, scale, jitter):
    """Forward recursion with the whole transition matrix."""
    nx, ny = (n * resolution for n in WORLD.blocked.shape)
    index = np.stack(np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij"), -1).reshape(-1, 2)
    points = (index + 0.5) / resolution
    free = ~np.asarray(WORLD.blocked)[tuple((index // resolution).T)]
    belief, log_evidence, means = free / free.sum(), 0.0, []
    spread = np.sqrt(max((jitter * resolution) ** 2 - 1 / 6, 0))
    for t in range(len(ranges)):
        if t:
            dx, dy = actions[t, :2] * resolution
            belief = np.kron(_share(nx, dx, spread), _share(ny, dy, spread)) @ belief * free
        joint = belief * np.exp(_log_density(ranges[t], points, scale))
        log_evidence += np.log(joint.sum())
        belief = joint / joint.sum()
        means.append(belief @ points)
    return belief.reshape(nx, ny), np.array(means), log_evidence


@pytest.mark.parametrize(("jitter", "tolerance"), [(0.05, 1e-11), (0.3, 1e-6)], ids=["interpolated", "spread"])
def test_against_a_dense_hidden_markov_model(jitter, tolerance):
    """With missing ranges, one row of them and single ones; the sum over a kink limits the second."""
    ranges = RANGES.copy()
    ranges[4], ranges[7, 1], ranges[0, 0] = np.nan, np.nan, np.nan
    result = histogram_filter(WORLD, (ranges, ACTIONS), resolution=4, range_scale=0.3, jitter=jitter)
    belief, means, log_evidence = _dense(ranges, ACTIONS, 4, 0.3, jitter)
    assert int(result.status) == Status.OK
    np.testing.assert_allclose(np.exp(result.log_probabilities), belief, atol=tolerance)
    np.testing.assert_allclose(result.means, means, atol=10 * tolerance)
    assert float(result.log_evidence) == pytest.approx(log_evidence, abs=10 * tolerance)


def test_evidence_against_a_particle_filter():
    """A plain bootstrap filter in NumPy, 20 times: they agree within four standard errors and the grid's own."""
    scale, jitter, num = 0.3, 0.15, 4000
    rng = np.random.default_rng(0)
    blocked = np.asarray(WORLD.blocked)
    cells = np.argwhere(~blocked)
    estimates = []
    for _ in range(20):
        x = cells[rng.integers(len(cells), size=num)] + rng.uniform(size=(num, 2))
        total = 0.0
        for t in range(len(RANGES)):
            if t:
                x = x + ACTIONS[t, :2] + jitter * rng.normal(size=x.shape)
            inside = ((x >= 0) & (x < blocked.shape)).all(-1)
            place = np.where(inside[:, None], x, 0).astype(int)
            weight = np.exp(_log_density(RANGES[t], x, scale)) * (inside & ~blocked[tuple(place.T)])
            total += np.log(weight.mean())
            edges = np.cumsum(weight) / weight.sum()
            x = x[np.minimum(np.searchsorted(edges, (np.arange(num) + rng.uniform()) / num), num - 1)]
        estimates.append(total)
    estimates = np.array(estimates)
    log_mean = np.log(np.mean(np.exp(estimates - estimates.max()))) + estimates.max()
    result = {
        r: float(
            histogram_filter(WORLD, (RANGES, ACTIONS), resolution=r, range_scale=scale, jitter=jitter).log_evidence
        )
        for r in (8, 16)
    }
    grid_error = abs(result[16] - result[8])
    assert grid_error < 0.05
    assert abs(log_mean - result[16]) < 4 * estimates.std() / np.sqrt(20) + grid_error


def test_batches_precisions_and_gradients():
    """Members of a batch agree with single calls; float32 agrees with float64; the gradient with differences."""
    filter_all = jax.jit(jax.vmap(lambda ranges, actions: histogram_filter(WORLD, (ranges, actions), resolution=4)))
    batch = filter_all(TRACKS.ranges, TRACKS.actions)
    one = histogram_filter(WORLD, (RANGES, ACTIONS), resolution=4)
    np.testing.assert_allclose(batch.means[0], one.means, rtol=1e-12)
    np.testing.assert_allclose(np.exp(batch.log_probabilities).sum((1, 2)), 1, rtol=1e-12)
    world = WORLD.replace(beacons=WORLD.beacons.astype(jnp.float32))
    single = histogram_filter(world, (RANGES.astype(np.float32), ACTIONS.astype(np.float32)), resolution=4)
    assert single.means.dtype == single.log_evidence.dtype == single.log_probabilities.dtype == jnp.float32
    np.testing.assert_allclose(single.means, one.means, atol=1e-4)
    assert float(single.log_evidence) == pytest.approx(float(one.log_evidence), rel=1e-4)

    def evidence(scale, jitter):
        observations = (RANGES, ACTIONS)
        return histogram_filter(WORLD, observations, resolution=4, range_scale=scale, jitter=jitter).log_evidence

    gradient = jax.jit(jax.grad(evidence, (0, 1)))(0.3, 0.2)
    h = 1e-5
    by_scale = (evidence(0.3 + h, 0.2) - evidence(0.3 - h, 0.2)) / (2 * h)
    by_jitter = (evidence(0.3, 0.2 + h) - evidence(0.3, 0.2 - h)) / (2 * h)
    np.testing.assert_allclose(gradient, [by_scale, by_jitter], rtol=1e-6)


def test_what_goes_wrong_is_told():
    filtered = lambda ranges, actions: histogram_filter(WORLD, (ranges, actions), resolution=4)
    out_of_the_world = ACTIONS.copy()
    out_of_the_world[5, 0] = 9.0
    result = filtered(RANGES, out_of_the_world)
    assert int(result.status) == Status.DEGENERATE
    assert float(result.log_evidence) == -np.inf
    np.testing.assert_array_equal(result.means[5], result.means[4])
    assert bool(jnp.isfinite(result.means).all())
    for ranges, actions in ((np.where(RANGES[3, 0] == RANGES, np.inf, RANGES), ACTIONS), (RANGES, ACTIONS * np.nan)):
        result = filtered(ranges, actions)
        assert int(result.status) == Status.NONFINITE_INPUT
        assert np.isnan(result.log_evidence)
        assert np.isnan(result.means).all()
    for observations, message in [
        (RANGES, "pair"),
        ((RANGES, ACTIONS[:-1]), "actions"),
        ((RANGES[:0], ACTIONS[:0]), "ranges"),
        ((np.ones((12, 5)), ACTIONS), "number of beacons"),
    ]:
        with pytest.raises(ValueError, match=message):
            histogram_filter(WORLD, observations)
    for options in ({"resolution": 0}, {"jitter": 0.0}, {"range_scale": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            histogram_filter(WORLD, (RANGES, ACTIONS), **options)
