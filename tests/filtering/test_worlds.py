"""Worlds: their geometry as it is claimed, and a simulator that keeps its promises, by brute force in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm.filtering import worlds
from jaxnm.filtering.worlds import is_free, localization_model, nearest_ranges, simulate, world_from_map

KEY = jax.random.key(0)
SIZES = {  # size, blocked cells, beacons
    "maze10": ((10, 10), 24, 41),
    "maze18": ((18, 18), 68, 153),
    "maze27": ((27, 27), 133, 288),
    "labyrinth": ((14, 34), 78, 14),
}


def _free(blocked, positions):
    """By a loop over the blocked cells."""
    free = ((positions >= 0) & (positions < blocked.shape)).all(-1)
    for i, j in np.argwhere(blocked):
        x, y = positions[..., 0], positions[..., 1]
        free &= ~((x >= i) & (x < i + 1) & (y >= j) & (y < j + 1))
    return free


def _symmetric(world, turn):
    """Whether a map of the rectangle to itself, given for points about the centre, keeps cells and beacons."""
    blocked, size = np.asarray(world.blocked), np.array(world.blocked.shape)
    cells = np.argwhere(blocked) + 0.5
    same = lambda points: set(map(tuple, turn(points - size / 2) + size / 2)) == set(map(tuple, points))
    return same(cells) and same(np.asarray(world.beacons))


@pytest.mark.parametrize("name", SIZES)
def test_geometry_is_as_claimed(name):
    world = getattr(worlds, name)()
    shape, num_blocked, num_beacons = SIZES[name]
    assert world.name == name
    assert world.blocked.shape == shape
    assert int(world.blocked.sum()) == num_blocked
    assert world.beacons.shape == (num_beacons, 2)
    assert len(np.unique(np.asarray(world.beacons), axis=0)) == num_beacons
    free = {tuple(cell) for cell in np.argwhere(~np.asarray(world.blocked))}
    todo, seen = [min(free)], {min(free)}
    while todo:
        i, j = todo.pop()
        new = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free - seen
        seen |= new
        todo += new
    assert seen == free
    assert _symmetric(world, lambda points: -points)
    mirrored = [_symmetric(world, lambda points: points * [-1, 1]), shape[0] == shape[1]]
    assert mirrored == [name != "labyrinth"] * 2
    if shape[0] == shape[1]:
        assert _symmetric(world, lambda points: points[:, ::-1])


def test_pictures_are_seen_with_y_upwards_and_wrong_ones_refused():
    world = world_from_map("corner", ["..B", "...", "#.."], beacons_at="centers", dtype=jnp.float32)
    assert world.beacons.tolist() == [[2.5, 2.5]]
    assert world.beacons.dtype == jnp.float32
    assert np.argwhere(world.blocked).tolist() == [[0, 0], [2, 2]]
    for rows, message in [
        (["..B", ".."], "lengths"),
        ([], "empty"),
        ([""], "lengths"),
        (["..B", ".x."], "'x'"),
        (["..#", "..."], "beacon"),
        (["B#"], "free cell"),
        ([".B.", ".#."], "apart"),
        ([".B", "B."], "apart"),
    ]:
        with pytest.raises(ValueError, match=message):
            world_from_map("wrong", rows)
    with pytest.raises(ValueError, match="corners"):
        world_from_map("wrong", [".B"], beacons_at="edges")
    with pytest.raises(TypeError, match="one string"):
        world_from_map("wrong", ".B")


def test_free_positions_against_a_loop():
    world = worlds.maze10()
    positions = np.random.default_rng(0).uniform(-1, 11, (2000, 2))
    positions[:200] = np.round(positions[:200])
    np.testing.assert_array_equal(is_free(world, positions), _free(np.asarray(world.blocked), positions))
    assert not is_free(world, jnp.array([jnp.nan, 1.0]))


@pytest.mark.parametrize(
    ("name", "speed", "dtype"),
    [("maze10", 0.2, jnp.float32), ("labyrinth", 0.5, jnp.float64)],
    ids=["maze", "labyrinth"],
)
def test_robots_do_as_they_should(name, speed, dtype):
    world = getattr(worlds, name)(dtype=dtype)
    tracks = simulate(KEY, world, 300, 60, speed=speed)
    assert {leaf.dtype for leaf in jax.tree.leaves(tracks)} == {jnp.dtype(dtype)}
    poses, actions, ranges = (np.asarray(leaf, float) for leaf in (tracks.poses, tracks.actions, tracks.ranges))
    assert poses.shape == (300, 60, 3)
    eps = 40 * float(jnp.finfo(dtype).eps)
    positions, headings, moves = poses[..., :2], poses[..., 2], actions[..., :2]
    blocked = np.asarray(world.blocked)
    assert _free(blocked, positions).all()
    assert _free(blocked, (positions[:, 1:] + positions[:, :-1]) / 2).all()
    assert (moves[:, 0] == 0).all()
    np.testing.assert_allclose(np.diff(positions, axis=1), moves[:, 1:], atol=2 * eps)
    length = np.linalg.norm(moves[:, 1:], axis=-1)
    moved = length > 0
    assert moved.mean() > 0.99
    assert np.abs(length[moved] - speed).max() <= 0.02 + eps
    assert np.abs(headings).max() <= np.pi + eps
    np.testing.assert_allclose(actions[..., 2], np.cos(headings), atol=eps)
    np.testing.assert_allclose(actions[..., 3], np.sin(headings), atol=eps)
    np.testing.assert_allclose(moves[:, 1:][moved], (length[..., None] * actions[:, 1:, 2:])[moved], atol=eps)
    turns = np.abs((np.diff(headings, axis=1) + np.pi) % (2 * np.pi) - np.pi)
    straight = turns <= np.deg2rad(3) + 4 * eps
    assert 0.5 < straight.mean() < 1
    # whoever turned had something in the way, seen from within the noise of a step
    onward = headings[:, :-1, None] + np.deg2rad(np.linspace(-3, 3, 7))
    ahead = np.stack([np.cos(onward), np.sin(onward)], -1)[..., None, :] * (
        speed + 0.02 * np.array([-1, -0.5, 0, 0.5, 1])[:, None]
    )
    here = positions[:, :-1, None, None, :]
    open_way = _free(blocked, here + ahead).all((2, 3)) & _free(blocked, here + ahead / 2).all((2, 3))
    assert (open_way & ~straight).mean() < 1e-3
    exact = np.linalg.norm(positions[:, :, None] - np.asarray(world.beacons, float), axis=-1)
    noise = ranges - np.sort(exact, axis=-1)[..., :5]
    assert np.abs(noise).max() <= 0.1 + eps
    assert abs(noise.mean()) < 5 * 0.1 / np.sqrt(3 * noise.size)
    again = simulate(KEY, world, 300, 60, speed=speed)
    other = simulate(jax.random.key(1), world, 300, 60, speed=speed)
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(tracks), jax.tree.leaves(again), strict=True))
    assert not bool((tracks.poses == other.poses).any())


def test_starts_are_uniform_over_the_free_cells():
    world = worlds.maze10()
    model = localization_model(world)
    particles = np.asarray(model.sample_initial(KEY, 76_000))
    counts = np.zeros(world.blocked.shape)
    np.add.at(counts, tuple(particles.astype(int).T), 1)
    assert (counts[np.asarray(world.blocked)] == 0).all()
    chi_square = ((counts[~np.asarray(world.blocked)] - 1000) ** 2 / 1000).sum()
    assert abs(chi_square - 75) < 5 * np.sqrt(150)
    offsets = particles % 1
    np.testing.assert_allclose(offsets.mean(0), 0.5, atol=5 / np.sqrt(12 * 76_000))


def test_a_robot_that_cannot_move_stays():
    world = world_from_map("cell", ["B.B"])
    tracks = simulate(KEY, world, 3, 4, speed=2.5, num_ranges=8)
    assert bool((tracks.actions[..., :2] == 0).all())
    assert bool((tracks.poses == tracks.poses[:, :1]).all())


def test_nearest_ranges_and_their_gradients():
    beacons = jnp.asarray(np.random.default_rng(1).uniform(0, 5, (9, 2)))
    positions = jnp.asarray(np.random.default_rng(2).uniform(0, 5, (3, 4, 2)))
    ranges = nearest_ranges(positions, beacons, 4)
    exact = np.sort(np.linalg.norm(np.asarray(positions)[..., None, :] - np.asarray(beacons), axis=-1), axis=-1)
    np.testing.assert_allclose(ranges, exact[..., :4], rtol=1e-14)
    check_grads(lambda p, b: nearest_ranges(p, b, 4), (positions, beacons), order=2, modes=("rev",), rtol=1e-4)
    at_beacon = jax.jacobian(lambda p: nearest_ranges(p, beacons, 4))(beacons[3])
    assert bool(jnp.isfinite(at_beacon).all())
    assert bool((at_beacon[0] == 0).all())
    for wrong in (0, 10):
        with pytest.raises(ValueError, match="num_ranges"):
            nearest_ranges(positions, beacons, wrong)
    with pytest.raises(ValueError, match="positions"):
        nearest_ranges(positions[..., :1], beacons, 1)


def test_the_model_and_its_missing_ranges():
    """Closed forms; -inf in walls and outside; a NaN component counts for nothing and has no gradient."""
    world = worlds.maze10()
    particles = jnp.array([[0.5, 0.5], [3.4, 3.6], [1.5, 1.5], [-0.1, 3.0], [3.0, 10.0]])
    ranges = jnp.array([0.8, jnp.nan, 1.6, 1.7, jnp.nan])

    def log_likelihood(scale, particles):
        return localization_model(world, range_scale=scale).log_likelihood(particles, ranges, 3)

    exact = np.sort(np.linalg.norm(np.asarray(particles)[:, None] - np.asarray(world.beacons), axis=-1))[:, [0, 2, 3]]
    z = (np.array([0.8, 1.6, 1.7]) - exact) / 0.2
    expected = (-0.5 * z**2 - np.log(0.2 * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(log_likelihood(0.2, particles)[:2], expected[:2], rtol=1e-13)
    assert bool((log_likelihood(0.2, particles)[2:] == -jnp.inf).all())
    by_scale, by_place = jax.jacobian(log_likelihood, (0, 1))(0.2, particles)
    np.testing.assert_allclose(by_scale[:2], ((z**2 - 1) / 0.2).sum(-1)[:2], rtol=1e-12)
    assert bool((by_scale[2:] == 0).all())
    assert bool(jnp.isfinite(by_place).all())

    model = localization_model(world, jitter=0.1)
    control = jnp.array([0.2, -0.1, 1.0, 0.0])
    many = jnp.broadcast_to(particles[0], (40_000, 2))
    moved = model.sample_transition(KEY, many, 1, control) - many
    np.testing.assert_allclose(moved.mean(0), control[:2], atol=5 * 0.1 / 200)
    np.testing.assert_allclose(moved.std(0), 0.1, rtol=5 / np.sqrt(2 * 40_000))
    density = model.transition_log_density(particles[:1] + control[None, :2] + 0.1, particles[:1], 1, control)
    np.testing.assert_allclose(density, -1 - 2 * np.log(0.1 * np.sqrt(2 * np.pi)), rtol=1e-12)
    # models of one kind share their programs
    assert jax.tree.structure(model) == jax.tree.structure(localization_model(worlds.maze10()))


def test_wrong_arguments_are_refused():
    world = worlds.maze10()
    for arguments, options, message in [
        ((0, 5), {}, "num_trajectories"),
        ((5, 0), {}, "num_steps"),
        ((5, 5), {"num_ranges": 42}, "number of beacons, 41"),
        ((5, 5), {"speed": -1.0}, "speed"),
        ((5, 5), {"range_noise": float("nan")}, "range_noise"),
    ]:
        with pytest.raises(ValueError, match=message):
            simulate(KEY, world, *arguments, **options)
    for key in (jnp.zeros(2, jnp.uint32), 0):
        with pytest.raises(TypeError, match="typed key"):
            simulate(key, world, 5, 5)
    for options in ({"num_ranges": 42}, {"num_ranges": 0}, {"range_scale": 0.0}, {"jitter": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            localization_model(world, **options)
    with pytest.raises(ValueError, match="observation"):
        localization_model(world).log_likelihood(jnp.ones((3, 2)), jnp.ones(4), 0)
