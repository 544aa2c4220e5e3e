"""Pictures of particle filters: clouds on a map, effective sample sizes and evidence, errors, bands of a state."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib import pyplot as plt
from matplotlib.animation import PillowWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from jaxnm import arguments
from jaxnm.filtering import FilterResult, World

_Style = dict[str, Any]
_PARTICLE: _Style = {"linestyle": "", "marker": "o", "color": "C0", "markersize": 4, "markeredgewidth": 0}
_POSE: _Style = {"linestyle": "", "marker": "o", "color": "C1", "markersize": 11, "markeredgewidth": 2}
_POSE |= {"fillstyle": "none"}  # the cloud is inside
_WAY: _Style = {"color": "C1", "linewidth": 1.2, "alpha": 0.6}
_MEAN: _Style = {"linestyle": "", "marker": "X", "color": "k", "markersize": 5.5, "markeredgewidth": 0.6}
_MEAN |= {"markeredgecolor": "w"}
_BEACON: _Style = {"linestyle": "", "marker": "^", "color": "0.35", "markersize": 3.5, "markeredgewidth": 0}
_BLOCKED = "0.85"
_PANELS = 6

# ------------------------------------------------------------------------------------------------ clouds on a map


def world_map(world: World, *, ax: Axes | None = None) -> Axes:
    """A map: blocked cells in grey, beacons as triangles.

    Args:
      world: of `maze10`, `world_from_map` and the like.
      ax: axes to draw into.

    Returns:
      the axes; x and y in cells, their limits the walls around the world.

    Raises:
      TypeError: something else than a world.

    Cost: none to speak of.
    """
    _check_world("world_map", world)
    ax = ax or _axes()
    blocked = np.asarray(world.blocked)
    nx, ny = blocked.shape
    shown = np.ma.masked_where(~blocked, blocked).T
    ax.pcolormesh(np.arange(nx + 1), np.arange(ny + 1), shown, cmap=ListedColormap([_BLOCKED]), zorder=0.5)
    ax.plot(*np.asarray(world.beacons).T, label="beacons", zorder=1.5, **_BEACON)
    ax.set(xlim=(0, nx), ylim=(0, ny), aspect="equal", xlabel="x (cells)", ylabel="y (cells)", title=world.name)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    return ax


def cloud(
    world: World,
    particles: Float[ArrayLike, "N 2"],
    log_weights: Float[ArrayLike, "N"],
    *,
    pose: Float[ArrayLike, "coordinates"] | None = None,
    mean: Float[ArrayLike, "2"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Weighted particles on the map at one time, with their mean and the true position.

    A dot has an area in proportion to its weight, from a fifth of that of an average particle to six times as much, and
    is fainter where its weight is below the average; the heaviest lie on top.

    Args:
      world: the map.
      particles: [N, 2], x and y in cells.
      log_weights: [N], need not be normalized; -inf is weight zero.
      pose: where the robot is: x and y, and what may follow (as the heading), which is not shown.
      mean: [2], what to mark as the mean; default that of the weighted particles.
      ax: axes to draw into.

    Returns:
      the axes; the number of particles and their effective sample size are in the title, and so is the share of the
      weight outside of the map where it is half a percent or more.

    Raises:
      ValueError: other shapes, no particle, positions that are not finite, log-weights that are NaN, +inf or all -inf.
      TypeError: something else than a world.

    Cost: none to speak of.
    """
    name = "cloud"
    _check_world(name, world)
    positions = _finite(name, "particles", particles, "[N, 2] with N >= 1", lambda s: len(s) == 2 and s[1] == 2)
    weights = _weights(name, log_weights, positions.shape[:1])
    way = None
    if pose is not None:
        way = _finite(name, "pose", pose, "[2] or longer", lambda s: len(s) == 1 and s[0] >= 2)[None, :2]
    centre = weights @ positions if mean is None else _finite(name, "mean", mean, "[2]", lambda s: s == (2,))
    ax = world_map(world, ax=ax)
    _draw_cloud(ax, positions, weights, centre, way)
    size = 1 / np.sum(weights**2)
    title = f"{weights.size:,} particles, effective sample size {size:,.0f}"
    ax.set_title(title + _outside(world, positions, weights))
    ax.legend(handles=_handles(way), loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, fontsize="small")
    return ax


def cloud_strip(
    world: World,
    particles: Float[ArrayLike, "T N 2"],
    log_weights: Float[ArrayLike, "T N"],
    *,
    poses: Float[ArrayLike, "T coordinates"] | None = None,
    means: Float[ArrayLike, "T 2"] | None = None,
    times: Sequence[int] | None = None,
    columns: int | None = None,
) -> Figure:
    """Clouds at several times side by side, dots as in `cloud`.

    Args:
      world: the map.
      particles: [T, N, 2], as `result.history.particles` of `particle_filter(..., history="full")`.
      log_weights: [T, N], as `result.history.log_weights`.
      poses: [T, 2] or more columns, where the robot is, as `truth.poses[0]` of `simulate`; the line is its way so far.
      means: [T, 2], what to mark as the means; default those of the weighted particles.
      times: rows to show; default up to six, at equal ratios, the first and the last among them.
      columns: panels in a row; default all up to four, and half of them above.

    Returns:
      the figure, one panel a time, in order.

    Raises:
      ValueError: as `cloud`; T = 0, no time or one outside of [0, T). TypeError: times that are no integers.

    Cost: one drawing a panel.
    """
    name = "cloud_strip"
    history = _History(name, world, particles, log_weights, poses, means)
    length = len(history.positions)
    if times is None:
        times = np.unique(np.round(np.geomspace(1, length, _PANELS)).astype(int) - 1).tolist()
    if len(times) == 0:
        arguments.refuse(name, "times", "empty", "at least one time", "leave it out for six of them")
    for time in times:
        arguments.check_count(name, "times", time)
        if time >= length:
            arguments.refuse(name, "times", f"with {time}", f"below T = {length}", "rows are counted from 0")
    if columns is None:
        columns = len(times) if len(times) <= 4 else -(-len(times) // 2)
    arguments.check_count(name, "columns", columns, minimum=1)
    columns = min(columns, len(times))
    rows = -(-len(times) // columns)
    width, height = _panel_size(world, 2.4)
    handles = _handles(history.poses)
    across = columns * (width + 0.1) + 0.5
    entries, below = _legend_columns(across, handles)
    # where the last row is shorter, a panel above it has labels too
    size = (across, rows * (height + 0.3) + 0.5 + below + (0.4 if rows * columns > len(times) else 0))
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(times) :]:
        ax.remove()
    for place, (time, ax) in enumerate(zip(times, axes.flat, strict=False)):
        world_map(world, ax=ax)
        history.draw(ax, time)
        lowest, leftmost = place + columns >= len(times), place % columns == 0
        ax.tick_params(labelbottom=lowest, labelleft=leftmost)
        ax.set(xlabel="x (cells)" if lowest else "", ylabel="y (cells)" if leftmost else "")
        ax.title.set_fontsize("medium")
    figure.legend(handles=handles, loc="outside lower center", ncols=entries, fontsize="small")
    return figure


def cloud_animation(
    world: World,
    particles: Float[ArrayLike, "T N 2"],
    log_weights: Float[ArrayLike, "T N"],
    path: str | os.PathLike,
    *,
    poses: Float[ArrayLike, "T coordinates"] | None = None,
    means: Float[ArrayLike, "T 2"] | None = None,
    every: int = 1,
    frames_per_second: int = 10,
    dpi: float = 100,
) -> Path:
    """Clouds over time as an animated GIF that repeats, dots as in `cloud`.

    It is written beside its place and then moved there: an interruption leaves what was there before.

    Args:
      world: the map.
      particles: [T, N, 2], as `result.history.particles` of `particle_filter(..., history="full")`.
      log_weights: [T, N], as `result.history.log_weights`.
      path: of the file, which ends in .gif, in a folder that exists.
      poses: [T, 2] or more columns, where the robot is, as `truth.poses[0]` of `simulate`; the line is its way so far.
      means: [T, 2], what to mark as the means; default those of the weighted particles.
      every: a frame for the times 0, every, 2 every, ...
      frames_per_second: from 1 to 50, above which viewers go slower.
      dpi: dots an inch; the side of a square map has 3.6 inches.

    Returns:
      the path.

    Raises:
      ValueError: as `cloud_strip`; another ending, every < 1, numbers out of range. FileNotFoundError: no such folder.

    Cost: one drawing a frame, and memory for all frames at 3 bytes a pixel; `every` makes them fewer.
    """
    name = "cloud_animation"
    path = Path(path)
    if path.suffix.lower() != ".gif":
        arguments.refuse(name, "path", repr(str(path)), "a name that ends in .gif", "only GIF is written")
    if not path.parent.is_dir():
        expected, remedy = "in a folder that exists", "make it first"
        arguments.refuse(name, "path", repr(str(path)), expected, remedy, error=FileNotFoundError)
    arguments.check_count(name, "every", every, minimum=1)
    arguments.check_count(name, "frames_per_second", frames_per_second, minimum=1)
    if frames_per_second > 50:
        arguments.refuse(name, "frames_per_second", repr(frames_per_second), "at most 50", "viewers go slower above it")
    arguments.check_number(name, "dpi", dpi, "> 0", lambda x: x > 0, "try 100")
    history = _History(name, world, particles, log_weights, poses, means)
    width, height = _panel_size(world, 3.6)
    handles = _handles(history.poses)
    entries, below = _legend_columns(width + 0.7, handles)
    figure = Figure(figsize=(width + 0.7, height + 0.8 + below), layout="constrained")
    ax = world_map(world, ax=figure.add_subplot())
    figure.legend(handles=handles, loc="outside lower center", ncols=entries, fontsize="small")
    beside = path.with_name(f".{path.stem}.{os.getpid()}.gif")
    writer = PillowWriter(fps=int(frames_per_second))
    try:
        # `writer.saving` would finish the file of an interrupted run
        with mpl.rc_context({"savefig.bbox": None, "savefig.transparent": False}):
            writer.setup(figure, str(beside), dpi=float(dpi))
            for time in range(0, len(history.positions), int(every)):
                drawn = history.draw(ax, time)
                writer.grab_frame()
                figure.set_layout_engine("none")  # the layout of the first frame is that of all
                for artist in drawn:
                    artist.remove()
            writer.finish()
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


class _History:
    """Checked clouds over time, and how one of them is drawn."""

    def __init__(self, function: str, world: Any, particles: Any, log_weights: Any, poses: Any, means: Any):
        _check_world(function, world)
        self.world = world
        self.positions = _finite(
            function, "particles", particles, "[T, N, 2] with T, N >= 1", lambda s: len(s) == 3 and s[2] == 2
        )
        length, num, _ = self.positions.shape
        self.weights = _weights(function, log_weights, (length, num))
        if means is None:
            self.means = (self.weights[:, None] @ self.positions)[:, 0]
        else:
            self.means = _finite(function, "means", means, f"[{length}, 2]", lambda s: s == (length, 2))
        self.poses = None
        if poses is not None:
            fits = lambda s: len(s) == 2 and s[0] == length and s[1] >= 2
            self.poses = _finite(function, "poses", poses, f"[{length}, 2] or more columns", fits)[:, :2]

    def draw(self, ax: Axes, time: int) -> list[Artist]:
        """The cloud, and a title that says how many moves came before."""
        positions, weights = self.positions[time], self.weights[time]
        way = None if self.poses is None else self.poses[: time + 1]
        moves = f"after {time} {'move' if time == 1 else 'moves'}"
        ax.set_title(moves + _outside(self.world, positions, weights))
        return _draw_cloud(ax, positions, weights, self.means[time], way)


def _draw_cloud(
    ax: Axes, positions: np.ndarray, weights: np.ndarray, mean: np.ndarray, way: np.ndarray | None
) -> list[Artist]:
    """Particles, mean, and the way to the true pose, which is its last row."""
    order = np.argsort(weights, kind="stable")
    relative = weights[order] * weights.size
    area = np.clip(3000 / weights.size, 2, 25)
    opacity = np.clip(200 / weights.size, 0.25, 0.7)
    # edges would add the same width to every dot
    drawn: list[Artist] = [
        ax.scatter(
            *positions[order].T,
            s=area * np.clip(relative, 0.2, 6),
            alpha=np.clip(opacity * np.sqrt(relative), 0.15, 0.9),
            color="C0",
            linewidths=0,
            zorder=2,
        )
    ]
    if way is not None:
        drawn += ax.plot(*way.T, zorder=3, **_WAY)
        drawn += ax.plot(*way[-1], zorder=4, **_POSE)
    drawn += ax.plot(*mean, zorder=5, **_MEAN)
    return drawn


def _handles(way: np.ndarray | None) -> list[Line2D]:
    """What the legend shows; those of the scatter itself would have its smallest size."""
    marks: dict[str, _Style] = {"particles": _PARTICLE, "weighted mean": _MEAN}
    if way is not None and len(way) > 1:
        marks |= {"true position and path": _POSE | {"linestyle": "-", "linewidth": 1.2}}
    elif way is not None:
        marks |= {"true position": _POSE}
    return [Line2D([], [], label=label, **mark) for label, mark in (marks | {"beacons": _BEACON}).items()]


def _legend_columns(width: float, handles: list[Line2D]) -> tuple[int, float]:
    """How many entries of the legend fit side by side, and the height of all of them, in inches."""
    columns = 4 if width >= 5.5 else 2 if width >= 3.6 else 1
    return columns, 0.2 * -(-len(handles) // columns) + 0.1


def _outside(world: World, positions: np.ndarray, weights: np.ndarray) -> str:
    inside = np.all((positions >= 0) & (positions <= world.blocked.shape), axis=-1)
    share = 1 - weights[inside].sum()
    return f", {share:.0%} outside" if share >= 0.005 else ""


def _panel_size(world: World, side: float) -> tuple[float, float]:
    """Width and height in inches of a map of the area of a square of this side, or less where it is long."""
    nx, ny = world.blocked.shape
    cell = side * min(1.5 / nx, 1.75 / ny, 1 / np.sqrt(nx * ny).item())
    return max(cell * nx, 1.0), max(cell * ny, 1.0)


# ------------------------------------------------------------------------------------------------ traces over time


def filter_traces(result: FilterResult, *, ess_threshold: float | None = None) -> Figure:
    """Effective sample size, increments of the log-evidence, and their sum, over time.

    Args:
      result: of `particle_filter`, one record of one or more observations.
      ess_threshold: as passed to `particle_filter`, to be drawn as a line.

    Returns:
      the figure. Ticks at the top of its first axes mark the times before which the cloud was resampled. Triangles at
      the bottom of the second mark observations that no particle explained, whose increment is -inf; from the first of
      them on the evidence is zero and the last axes are shaded.

    Raises:
      ValueError: a batch of results, no observation, NaN, a threshold outside [0, 1]. TypeError: something else.

    Cost: none to speak of.
    """
    name = "filter_traces"
    if not isinstance(result, FilterResult):
        got = f"of type {type(result).__name__}"
        arguments.refuse(name, "result", got, "FilterResult", "use particle_filter(...)", error=TypeError)
    if ess_threshold is not None:
        arguments.check_number(name, "ess_threshold", ess_threshold, "in [0, 1]", lambda x: 0 <= x <= 1, "try 0.5")
    size, increments = (np.asarray(x, float) for x in (result.effective_sample_size, result.log_evidence_increments))
    if size.ndim != 1:
        remedy = "take one: jax.tree.map(lambda leaf: leaf[0], result)"
        arguments.refuse(name, "result", f"a batch of shape {size.shape[:-1]}", "one record", remedy)
    if size.size == 0:
        arguments.refuse(name, "result", "without an observation", "T >= 1", "there is nothing to draw")
    if not (np.isfinite(size) & (size > 0)).all() or np.isnan(increments).any() or (increments == np.inf).any():
        arguments.refuse(name, "result", "NaN or +inf in places", "numbers, or -inf in the evidence", "see its status")
    resampled, num = np.flatnonzero(np.asarray(result.resampled)), result.log_weights.shape[-1]
    times, impossible = np.arange(size.size), np.flatnonzero(increments == -np.inf)
    total = np.cumsum(increments)
    figure, (top, middle, bottom) = plt.subplots(3, sharex=True, figsize=(6.4, 6.4), layout="constrained")
    figure.suptitle(f"{size.size:,} observation{'s' * (size.size > 1)}, log-evidence {total[-1]:,.2f}")
    line: _Style = {"color": "C0", "marker": ".", "markersize": 3, "linewidth": 1.0}

    lowest = size.min()
    top.semilogy(times, size, **line)
    top.axhline(num, color="k", linewidth=0.8, linestyle="--", label=f"{num:,} particles")
    if ess_threshold:
        level = ess_threshold * num
        top.axhline(level, color="0.4", linewidth=1.0, linestyle=":", label=f"threshold {level:,g}")
    top.plot(
        resampled, np.full(resampled.size, 0.94), "|", color="C1", markersize=9, transform=top.get_xaxis_transform(),
        label=f"resampled before, {resampled.size} of {size.size} times",
    )  # fmt: skip
    top.set(ylim=(0.7 * lowest, 2 * num * (num / lowest) ** 0.15), ylabel="effective\nsample size")
    top.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > num / 100 else (1,)))
    top.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    top.yaxis.set_minor_formatter(NullFormatter())

    middle.axhline(0, color="0.8", linewidth=0.8)
    middle.plot(times, np.where(np.isfinite(increments), increments, np.nan), **line)
    middle.set(ylabel="increment of\nthe log-evidence")
    bottom.plot(times, np.where(np.isfinite(total), total, np.nan), **line)
    bottom.set(ylabel="log-evidence so far", xlabel="time")
    if impossible.size:
        middle.plot(
            impossible, np.full(impossible.size, 0.06), "v", color="C3", transform=middle.get_xaxis_transform(),
            label=f"-inf: no particle explains the observation, {impossible.size} of {size.size} times",
        )  # fmt: skip
        bottom.axvspan(
            impossible[0] - 0.5, times[-1] + 0.5, color="C3", alpha=0.15, linewidth=0,
            label=f"-inf from time {impossible[0]} on",
        )  # fmt: skip
    for ax in (top, middle, bottom) if impossible.size else (top,):
        # above, where it hides nothing
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small", borderaxespad=0.1)
    margin = 0.5 + 0.01 * times[-1]
    bottom.set_xlim(-margin, times[-1] + margin)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return figure


def error_curves(
    errors: Float[ArrayLike, "n T"] | Mapping[str, ArrayLike],
    *,
    quantiles: tuple[float, float] = (0.25, 0.75),
    threshold: float | None = None,
    logarithmic: bool = True,
    labels: tuple[str, str] = ("moves", "error (cells)"),
    ax: Axes | None = None,
) -> Axes:
    """Median errors of many trajectories over time, in a band between two quantiles.

    Args:
      errors: [n, T], of n trajectories at T times; or a mapping of such by name.
      quantiles: lower and upper end of the bands.
      threshold: an error that is good enough, drawn as a line; the legend says which share is below it at the end.
      logarithmic: whether the errors have a logarithmic axis, on which zeros fall below the picture.
      labels: of time and error, with units.
      ax: axes to draw into.

    Returns:
      the axes.

    Raises:
      ValueError: other shapes, no trajectory, errors that are negative or not finite, quantiles not in order.

    Cost: a sort of the errors.
    """
    name = "error_curves"
    several = errors if isinstance(errors, Mapping) else {"": errors}
    if not several:
        arguments.refuse(name, "errors", "empty", "at least one name", "pass {name: errors}")
    if len(quantiles) != 2 or not 0 <= quantiles[0] <= quantiles[1] <= 1:
        arguments.refuse(name, "quantiles", repr(quantiles), "0 <= lower <= upper <= 1", "try (0.25, 0.75)")
    if threshold is not None:
        arguments.check_number(name, "threshold", threshold, "> 0", lambda x: x > 0, "try 0.5")
    arrays = {
        key: _finite(name, f"errors[{key!r}]", one, "[n, T] with n, T >= 1", lambda s: len(s) == 2)
        for key, one in several.items()
    }
    for key, one in arrays.items():
        if one.min() < 0:
            arguments.refuse(name, f"errors[{key!r}]", f"with {one.min():g}", "distances, >= 0", "pass absolute values")
    ax = ax or _axes()
    for (key, one), style in zip(arrays.items(), cycle(("-", "--", "-.", ":")), strict=False):
        lower, median, upper = np.quantile(one, [quantiles[0], 0.5, quantiles[1]], axis=0)
        share = "" if threshold is None else f"{np.mean(one[:, -1] < threshold):.0%} below {threshold:g} at the end"
        label = ", ".join(part for part in (key, share) if part)
        times, dot = np.arange(one.shape[1]), "." if one.shape[1] == 1 else None
        (line,) = ax.plot(times, median, style, marker=dot, label=label or "median")
        ax.fill_between(times, lower, upper, color=line.get_color(), alpha=0.15, linewidth=0)
        for edge in (lower, upper):
            ax.plot(times, edge, style, color=line.get_color(), linewidth=0.6, alpha=0.5)
    if threshold is not None:
        ax.axhline(threshold, color="k", linewidth=0.8, linestyle="--")
    if logarithmic:
        ax.set_yscale("log")
    # below, since bands may fill the axes
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize="small")
    ax.set(xlabel=labels[0], ylabel=labels[1], title=f"median, and quantiles {quantiles[0]:g} to {quantiles[1]:g}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    return ax


def state_band(
    times: Any,
    mean: Float[ArrayLike, "T"],
    standard_deviation: Float[ArrayLike, "T"],
    *,
    observations: Float[ArrayLike, "T"] | None = None,
    deviations: float = 2.0,
    label: str = "mean",
    labels: tuple[str, str] = ("time", "state"),
    ax: Axes | None = None,
) -> Axes:
    """A scalar state over time: its mean in a band of standard deviations, and the observations as dots.

    Args:
      times: [T], ascending numbers, or dates as numpy and pandas have them.
      mean: [T], filtered or smoothed.
      standard_deviation: [T].
      observations: [T], in the unit of the state; those that are NaN are missing, and counted in the legend.
      deviations: half the width of the band, in standard deviations.
      label: of the mean, in the legend. Called again with the same axes, a second band gets the next colour.
      labels: of time and state, with units.
      ax: axes to draw into.

    Returns:
      the axes.

    Raises:
      ValueError: other shapes, T = 0, numbers that are not finite or, for deviations, negative; times out of order.

    Cost: none to speak of.
    """
    name = "state_band"
    times = np.asarray(times)
    _check_shape(name, "times", times, "[T] with T >= 1", lambda s: len(s) == 1 and s[0] > 0)
    if not np.all(times[1:] > times[:-1]):
        arguments.refuse(name, "times", "not ascending", "ascending times", "sort all by time")
    expected, same = f"[{times.size}], one number a time", lambda shape: shape == times.shape
    middle = _finite(name, "mean", mean, expected, same)
    width = _finite(name, "standard_deviation", standard_deviation, expected, same)
    if width.min() < 0:
        arguments.refuse(name, "standard_deviation", f"with {width.min():g}", ">= 0", "take the root of variances")
    arguments.check_number(name, "deviations", deviations, "> 0", lambda x: x > 0, "try 2.0")
    ax = ax or _axes()
    if observations is not None:
        seen = np.asarray(observations, float)
        _check_shape(name, "observations", seen, expected, same)
        if np.isinf(seen).any():
            arguments.refuse(name, "observations", "infinite", "finite numbers, or NaN", "NaN means missing")
        here = ~np.isnan(seen)
        missing = "" if here.all() else f" ({times.size - here.sum()} missing)"
        dot = float(np.clip(60 / np.sqrt(times.size), 1.5, 5))
        ax.plot(times[here], seen[here], ".", color="0.35", markersize=dot, label=f"observations{missing}", zorder=2.5)
    (line,) = ax.plot(times, middle, marker="." if times.size == 1 else None, label=label)
    band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
    ax.fill_between(
        times, middle - deviations * width, middle + deviations * width,
        label=f"± {deviations:g} standard deviations", **band,
    )  # fmt: skip
    ax.legend(fontsize="small")
    ax.set(xlabel=labels[0], ylabel=labels[1])
    return ax


# ------------------------------------------------------------------------------------------------ checks


def _check_world(function: str, world: Any) -> None:
    if not isinstance(world, World):
        got = f"of type {type(world).__name__}"
        arguments.refuse(function, "world", got, "World", "use maze10() or world_from_map(...)", error=TypeError)


def _check_shape(
    function: str, argument: str, array: np.ndarray, expected: str, condition: Callable[[tuple[int, ...]], bool]
) -> None:
    if not condition(array.shape):
        remedy = "take one of a batch, and see its docstring"
        arguments.refuse(function, argument, f"of shape {array.shape}", expected, remedy)


def _finite(
    function: str, argument: str, value: Any, expected: str, condition: Callable[[tuple[int, ...]], bool]
) -> np.ndarray:
    """As a NumPy array of float64, of that shape, not empty, all finite."""
    array = np.asarray(value, float)
    _check_shape(function, argument, array, expected, lambda shape: condition(shape) and array.size > 0)
    if not np.isfinite(array).all():
        count = array.size - np.isfinite(array).sum()
        arguments.refuse(
            function, argument, f"not finite in {count:,} of {array.size:,}", "finite numbers", "see where"
        )
    return array


def _weights(function: str, log_weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Normalized over the last axis."""
    array = np.asarray(log_weights, float)
    _check_shape(function, "log_weights", array, f"{list(shape)} as the particles", lambda s: s == shape)
    highest = array.max(axis=-1, keepdims=True)  # NaN where there is one
    if not np.isfinite(highest).all():
        arguments.refuse(function, "log_weights", "NaN, +inf or all -inf", "some finite, the others -inf", "see status")
    weights = np.exp(array - highest)
    return weights / weights.sum(axis=-1, keepdims=True)


def _axes() -> Axes:
    return plt.subplots(layout="constrained")[1]
