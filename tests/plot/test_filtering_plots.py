"""What the pictures of particle filters show is what was passed: data, labels and titles, read back from the axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.animation import PillowWriter
from PIL import Image

from jaxnm import filtering as pf
from jaxnm.plot.filtering import (
    cloud,
    cloud_animation,
    cloud_strip,
    error_curves,
    filter_traces,
    state_band,
    world_map,
)

YARD = pf.world_from_map("yard", ["....", ".B#.", "...."])
LENGTH, NUM = 7, 20


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _clouds():
    """Positions in the free left column, log-weights that are not normalized, and poses with a heading."""
    rng = np.random.default_rng(0)
    particles = rng.uniform(0.1, 0.9, (LENGTH, NUM, 2))
    log_weights = rng.normal(size=(LENGTH, NUM)) + 100
    return particles, log_weights, rng.uniform(0.1, 0.9, (LENGTH, 3))


def _mean(particles, log_weights):
    return np.average(particles, axis=0, weights=np.exp(log_weights - 100))


def _dots(ax):
    """Positions and areas of the particles: the collection after the map."""
    return ax.collections[1].get_offsets(), ax.collections[1].get_sizes()


def _points(ax):
    """Lines of the axes that are one point."""
    return [np.ravel(line.get_xydata()) for line in ax.lines if line.get_xydata().shape == (1, 2)]


def _labels(legend):
    return [text.get_text() for text in legend.get_texts()]


def _result(increments, *, size=None, resampled=(), num=10, batch=()):
    length = len(increments)
    flags = np.isin(np.arange(length), resampled)
    return pf.FilterResult(
        particles=jnp.zeros((num, 2)),
        log_weights=jnp.full(num, -np.log(num)),
        log_evidence=jnp.sum(jnp.asarray(increments)),
        log_evidence_increments=jnp.broadcast_to(jnp.asarray(increments, float), (*batch, length)),
        effective_sample_size=jnp.broadcast_to(jnp.full(length, 4.0) if size is None else size, (*batch, length)),
        resampled=jnp.asarray(flags),
        mean=jnp.zeros((length, 2)),
        covariance=None,
        history=None,
        status=jnp.int32(0),
    )


# ------------------------------------------------------------------------------------------------ clouds on a map


def test_the_map_shows_blocked_cells_and_beacons():
    axes = plt.subplots()[1]
    ax = world_map(YARD, ax=axes)
    assert ax is axes
    shown = ax.collections[0].get_array().reshape(3, 4)
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown).T, YARD.blocked)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), YARD.beacons)
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_aspect()) == ((0, 4), (0, 3), 1)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("x (cells)", "y (cells)", "yard")


def test_dots_have_areas_by_weight_and_the_heaviest_lie_on_top():
    particles, log_weights, poses = _clouds()
    ax = cloud(YARD, particles[0], jnp.asarray(log_weights[0], jnp.float32), pose=poses[0])
    offsets, areas = _dots(ax)
    order = np.argsort(log_weights[0])
    np.testing.assert_allclose(offsets, particles[0][order])
    weights = np.exp(log_weights[0] - 100)[order]
    inner = (weights > 0.2 * weights.mean()) & (weights < 6 * weights.mean())
    assert inner.sum() > NUM / 2
    # float32 log-weights of about 100 have an error of 4e-6
    np.testing.assert_allclose(areas[inner] / areas[inner][0], weights[inner] / weights[inner][0], rtol=2e-5)
    points = _points(ax)
    assert any(np.array_equal(point, poses[0, :2]) for point in points)
    assert any(np.allclose(point, _mean(particles[0], log_weights[0]), rtol=1e-5) for point in points)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert ax.get_title() == f"{NUM} particles, effective sample size {size:.0f}"
    assert _labels(ax.get_legend()) == ["particles", "weighted mean", "true position", "beacons"]


def test_weight_zero_another_mean_and_weight_outside():
    positions, log_weights = jnp.array([[0.5, 0.5], [0.5, 2.5], [9.0, 9.0]]), jnp.log(jnp.array([0.75, 0.0, 0.25]))
    ax = cloud(YARD, positions, log_weights, mean=jnp.array([3.5, 1.5]))
    assert [tuple(point) for point in _points(ax)] == [(3.5, 1.5)]
    assert ax.get_title() == "3 particles, effective sample size 2, 25% outside"
    assert _labels(ax.get_legend()) == ["particles", "weighted mean", "beacons"]
    assert cloud(YARD, positions[:1], log_weights[:1]).get_title() == "1 particles, effective sample size 1"


@pytest.mark.parametrize("num", [30, 10_000])
def test_few_dots_are_large_and_many_are_small(num):
    ax = cloud(YARD, np.full((num, 2), 0.5), np.zeros(num))
    (area,) = set(_dots(ax)[1])
    assert area == {30: 25, 10_000: 2}[num]
    assert 0 < np.min(ax.collections[1].get_alpha()) <= 0.7


def test_the_strip_shows_the_times_asked_for():
    particles, log_weights, poses = _clouds()
    figure = cloud_strip(YARD, particles, log_weights, poses=poses, times=[0, 1, 6])
    assert [ax.get_title() for ax in figure.axes] == ["after 0 moves", "after 1 move", "after 6 moves"]
    for time, ax in zip([0, 1, 6], figure.axes, strict=True):
        offsets, _ = _dots(ax)
        np.testing.assert_array_equal(offsets, particles[time][np.argsort(log_weights[time])])
        np.testing.assert_array_equal(ax.lines[1].get_xydata(), poses[: time + 1, :2])
        assert any(np.allclose(point, _mean(particles[time], log_weights[time])) for point in _points(ax))
    assert [ax.get_ylabel() for ax in figure.axes] == ["y (cells)", "", ""]
    assert _labels(figure.legends[0]) == ["particles", "weighted mean", "true position and path", "beacons"]


def test_the_strip_chooses_times_by_equal_ratios():
    ones = np.full((100, 2, 2), 0.5)
    figure = cloud_strip(YARD, ones, np.zeros((100, 2)), means=np.full((100, 2), 3.5))
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"after {t} moves" for t in (0, 2, 5, 15, 39, 99)]
    assert [ax.get_xlabel() for ax in figure.axes] == [""] * 3 + ["x (cells)"] * 3
    assert all(any(np.array_equal(point, [3.5, 3.5]) for point in _points(ax)) for ax in figure.axes)
    assert len(cloud_strip(YARD, ones[:1], np.zeros((1, 2))).axes) == 1
    assert len(cloud_strip(YARD, ones, np.zeros((100, 2)), times=range(3), columns=2).axes) == 3


@pytest.mark.parametrize("world", [pf.maze10(), pf.labyrinth()], ids=["square", "tall"])
def test_nothing_is_cut_off_by_the_edge_of_the_figure(world):
    for times, poses in (([0], np.full((5, 2), 0.5)), (range(5), None)):
        figure = cloud_strip(world, np.full((5, 2, 2), 0.5), np.zeros((5, 2)), times=times, poses=poses)
        figure.draw_without_rendering()
        for artist in (*figure.legends, *(ax.title for ax in figure.axes), *(ax.yaxis.label for ax in figure.axes)):
            box = artist.get_window_extent()
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0
            assert box.y1 <= figure.bbox.y1


# ------------------------------------------------------------------------------------------------ animation


def test_the_animation_has_a_frame_a_time(tmp_path):
    particles, log_weights, poses = _clouds()
    opened = plt.get_fignums()
    path = cloud_animation(
        YARD, particles, log_weights, tmp_path / "clouds.gif", poses=poses, every=3, frames_per_second=5, dpi=40
    )
    assert path == tmp_path / "clouds.gif"
    assert plt.get_fignums() == opened
    assert [entry.name for entry in tmp_path.iterdir()] == ["clouds.gif"]
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("GIF", 3, 0)
        frames = []
        for frame in range(3):
            image.seek(frame)
            assert image.info["duration"] == 200
            frames.append(np.asarray(image.convert("RGB")))
    # titles differ, the right spine, which is the darkest column there, stays
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    assert len({int(np.argmin(frame[:, -40:].sum((0, 2)))) for frame in frames}) == 1


@pytest.mark.parametrize("method", ["grab_frame", "finish"])
def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch, method):
    particles, log_weights, _ = _clouds()
    old = tmp_path / "old.gif"
    old.write_bytes(b"as it was")
    original, calls = getattr(PillowWriter, method), []

    def interrupted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls.append(None)
        if len(calls) == {"grab_frame": 2, "finish": 1}[method]:
            raise KeyboardInterrupt

    monkeypatch.setattr(PillowWriter, method, interrupted)
    for path in (old, tmp_path / "new.gif"):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            cloud_animation(YARD, particles, log_weights, path, every=6, dpi=20)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.gif"]
    assert old.read_bytes() == b"as it was"


def test_animations_that_cannot_be_written_are_refused(tmp_path):
    particles, log_weights, _ = _clouds()
    for name in ("clouds.mp4", "clouds", ".gif"):
        with pytest.raises(ValueError, match=r"ends in \.gif"):
            cloud_animation(YARD, particles, log_weights, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        cloud_animation(YARD, particles, log_weights, tmp_path / "nowhere" / "clouds.gif")
    path = tmp_path / "clouds.gif"
    with pytest.raises(ValueError, match=r"particles is of shape \(0, 20, 2\)"):
        cloud_animation(YARD, particles[:0], log_weights[:0], path)
    for option, error in (
        ({"every": 0}, ValueError),
        ({"every": 1.5}, TypeError),
        ({"frames_per_second": 51}, ValueError),
        ({"dpi": 0}, ValueError),
    ):
        with pytest.raises(error, match=next(iter(option))):
            cloud_animation(YARD, particles, log_weights, path, **option)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ traces over time


def test_traces_are_those_of_the_result():
    increments, size = [-1.0, -2.0, -0.5, 0.25], jnp.array([9.0, 4.0, 10.0, 2.5])
    figure = filter_traces(_result(increments, size=size, resampled=[2, 3]), ess_threshold=0.5)
    top, middle, bottom = figure.axes
    np.testing.assert_array_equal(top.lines[0].get_xydata(), np.transpose([range(4), size]))
    assert [line.get_ydata()[0] for line in top.lines[1:3]] == [10, 5]
    np.testing.assert_array_equal(top.lines[3].get_xdata(), [2, 3])
    np.testing.assert_array_equal(middle.lines[1].get_ydata(), increments)
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), [-1, -3, -3.5, -3.25])
    assert figure.get_suptitle() == "4 observations, log-evidence -3.25"
    assert _labels(top.get_legend()) == ["10 particles", "threshold 5", "resampled before, 2 of 4 times"]
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["effective\nsample size", "increment of\nthe log-evidence", "log-evidence so far"]
    assert bottom.get_xlabel() == "time"


def test_impossible_observations_are_marked():
    figure = filter_traces(_result([-1.0, -np.inf, -2.0, -np.inf, -1.0]))
    _, middle, bottom = figure.axes
    np.testing.assert_array_equal(middle.lines[1].get_ydata(), [-1, np.nan, -2, np.nan, -1])
    np.testing.assert_array_equal(middle.lines[2].get_xdata(), [1, 3])
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), [-1] + [np.nan] * 4)
    (shade,) = bottom.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (0.5, 4.5)
    assert "2 of 5 times" in _labels(middle.get_legend())[0]
    assert _labels(bottom.get_legend()) == ["-inf from time 1 on"]
    assert figure.get_suptitle().endswith("log-evidence -inf")


def test_traces_of_a_real_filter_and_of_one_observation():
    walk = pf.as_state_space_model(
        pf.LinearGaussianModel(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1))
    )
    key = jax.random.key(0)
    result = pf.particle_filter(key, walk, jnp.array([[0.3]]), num_particles=50)
    figure = filter_traces(result)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), result.effective_sample_size)
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), [result.log_evidence])
    assert figure.get_suptitle().startswith("1 observation, ")
    figure.draw_without_rendering()
    filter_traces(_result([-np.inf], num=1, size=jnp.ones(1))).draw_without_rendering()


def test_errors_are_medians_in_bands():
    rng = np.random.default_rng(1)
    errors = {"few": rng.exponential(size=(9, 5)), "many": rng.exponential(size=(5, 3))}
    ax = error_curves(errors, quantiles=(0.25, 0.75), threshold=0.5)
    for number, one in enumerate(errors.values()):
        ordered = np.sort(one, axis=0)  # n = 9 and 5: the quartiles are entries
        quarter = (len(one) - 1) // 4
        median, lower, upper = (line.get_ydata() for line in ax.lines[3 * number : 3 * number + 3])
        np.testing.assert_allclose(median, ordered[2 * quarter])
        np.testing.assert_allclose(lower, ordered[quarter])
        np.testing.assert_allclose(upper, ordered[3 * quarter])
    assert ax.lines[-1].get_ydata()[0] == 0.5
    shares = [f"{np.mean(one[:, -1] < 0.5):.0%}" for one in errors.values()]
    expected = [f"{name}, {share} below 0.5 at the end" for name, share in zip(errors, shares, strict=True)]
    assert _labels(ax.get_legend()) == expected
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("moves", "error (cells)", "log")
    assert ax.get_title() == "median, and quantiles 0.25 to 0.75"
    plain = error_curves(errors["few"], logarithmic=False, labels=("step", "error (m)"))
    assert (plain.get_xlabel(), plain.get_ylabel(), plain.get_yscale()) == ("step", "error (m)", "linear")


def test_a_band_of_a_state():
    years, mean, deviation = np.arange(1871, 1875), np.array([1.0, 2.0, 3.0, 2.0]), np.array([0.5, 0.0, 1.0, 0.25])
    seen = jnp.array([1.5, jnp.nan, 2.0, jnp.nan])
    ax = state_band(years, mean, deviation, observations=seen, label="level", labels=("year", "flow (m³/s)"))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1871, 1.5], [1873, 2.0]])
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), np.transpose([years, mean]))
    corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices}
    assert {*zip(years, mean - 2 * deviation, strict=True), *zip(years, mean + 2 * deviation, strict=True)} <= corners
    assert _labels(ax.get_legend()) == ["observations (2 missing)", "level", "± 2 standard deviations"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("year", "flow (m³/s)")
    again = state_band(years, mean, deviation, deviations=1, ax=ax)
    assert again is ax
    assert ax.lines[2].get_color() != ax.lines[1].get_color()


def test_a_band_over_dates():
    dates = np.array(["2008-09-12", "2008-09-15", "2008-09-16"], "datetime64[D]")
    ax = state_band(dates, np.zeros(3), np.ones(3), observations=np.array([0.2, -4.7, 1.7]))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), dates)
    assert _labels(ax.get_legend())[0] == "observations"


# ------------------------------------------------------------------------------------------------ bad input


def test_clouds_that_cannot_be_drawn_are_refused():
    particles, log_weights, poses = _clouds()
    with pytest.raises(TypeError, match="world_map: world is of type str"):
        world_map("maze10")
    for draw in (cloud, cloud_strip):
        with pytest.raises(TypeError, match="world is of type ndarray"):
            draw(particles, particles, log_weights)
    one, weight = particles[0], log_weights[0]
    bad = one.copy()
    bad[3, 1] = np.nan
    minus = np.full(NUM, -np.inf)
    for arguments, message in (
        ((one[:, :1], weight), r"particles is of shape \(20, 1\)"),
        ((particles, log_weights), r"particles is of shape \(7, 20, 2\)"),
        ((one[:0], weight[:0]), r"particles is of shape \(0, 2\)"),
        ((bad, weight), "particles is not finite in 1 of 40"),
        ((one, weight[:5]), r"log_weights is of shape \(5,\), expected \[20\]"),
        ((one, minus), "all -inf"),
        ((one, np.where(np.arange(NUM) == 2, np.nan, weight)), "log_weights is NaN"),
        ((one, -minus), "log_weights is NaN, \\+inf"),
    ):
        with pytest.raises(ValueError, match=message):
            cloud(YARD, *arguments)
    with pytest.raises(ValueError, match=r"pose is of shape \(7, 3\)"):
        cloud(YARD, one, weight, pose=poses)
    with pytest.raises(ValueError, match="mean is not finite"):
        cloud(YARD, one, weight, mean=np.full(2, np.nan))
    with pytest.raises(ValueError, match="poses is of shape"):
        cloud_strip(YARD, particles, log_weights, poses=poses[:3])
    with pytest.raises(ValueError, match="means is of shape"):
        cloud_strip(YARD, particles, log_weights, means=poses)
    with pytest.raises(ValueError, match="times is empty"):
        cloud_strip(YARD, particles, log_weights, times=[])
    with pytest.raises(ValueError, match="times is with 7, expected below T = 7"):
        cloud_strip(YARD, particles, log_weights, times=[0, 7])
    with pytest.raises(ValueError, match="times is -1"):
        cloud_strip(YARD, particles, log_weights, times=[-1])
    with pytest.raises(TypeError, match="times is of type float"):
        cloud_strip(YARD, particles, log_weights, times=[0.5])
    with pytest.raises(ValueError, match="columns"):
        cloud_strip(YARD, particles, log_weights, columns=0)


def test_traces_that_cannot_be_drawn_are_refused():
    with pytest.raises(TypeError, match="result is of type dict"):
        filter_traces({})
    with pytest.raises(ValueError, match=r"a batch of shape \(2,\).*jax.tree.map"):
        filter_traces(_result([0.0, 1.0], batch=(2,)))
    with pytest.raises(ValueError, match="without an observation"):
        filter_traces(_result([]))
    for increments in ([0.0, np.nan], [0.0, np.inf]):
        with pytest.raises(ValueError, match="see its status"):
            filter_traces(_result(increments))
    with pytest.raises(ValueError, match="ess_threshold"):
        filter_traces(_result([0.0]), ess_threshold=1.5)


def test_errors_and_bands_that_cannot_be_drawn_are_refused():
    ones = np.ones((3, 4))
    for errors, message in (
        ({}, "errors is empty"),
        (ones[0], r"errors\[''\] is of shape \(4,\)"),
        ({"filter": ones[:0]}, r"errors\['filter'\] is of shape \(0, 4\)"),
        ({"filter": ones * np.nan}, "not finite in 12 of 12"),
        ({"filter": -ones}, "with -1, expected distances"),
    ):
        with pytest.raises(ValueError, match=message):
            error_curves(errors)
    with pytest.raises(ValueError, match="quantiles"):
        error_curves(ones, quantiles=(0.75, 0.25))
    with pytest.raises(ValueError, match="threshold"):
        error_curves(ones, threshold=0.0)
    times, row = np.arange(4), ones[0]
    for arguments, message in (
        ((times[:0], row[:0], row[:0]), "times is of shape"),
        ((times[::-1], row, row), "times is not ascending"),
        ((times, row[:3], row), "mean is of shape"),
        ((times, row * np.inf, row), "mean is not finite"),
        ((times, row, -row), "standard_deviation is with -1"),
    ):
        with pytest.raises(ValueError, match=message):
            state_band(*arguments)
    with pytest.raises(ValueError, match="observations is infinite"):
        state_band(times, row, row, observations=row * np.inf)
    with pytest.raises(ValueError, match="deviations"):
        state_band(times, row, row, deviations=-1.0)
