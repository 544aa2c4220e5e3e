"""Pictures of tensor trains: ranks and singular values of the bonds, slices, and how the optimizers converge."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike, Float, Int
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from jaxnm import arguments
from jaxnm.tensor_train import TT, OptimizeResult, gather
from jaxnm.tensor_train.spectra import singular_values as bond_spectra

_STYLES = ("-", "--", "-.", ":")
_ROUNDING = 1e-5
"""How far values in float32 may lie below an optimum."""

# ------------------------------------------------------------------------------------------------ bonds


def rank_profile(trains: TT | Mapping[str, TT], *, logarithmic: bool = False, ax: Axes | None = None) -> Axes:
    """Ranks of a train over its bonds, the max_rank that it was built with, and what its shape can need at most.

    Args:
      trains: a train, or a mapping of such by name.
      logarithmic: whether ranks have a logarithmic axis, as suits those that double from bond to bond.
      ax: axes to draw into.

    Returns:
      the axes; bond k lies between modes k and k + 1, counted from 1. A dashed line is max_rank; no train of that shape
      has ranks in the grey area.

    Raises:
      ValueError: no train, or a batch of them; a train of one mode, which has no bond. TypeError: no train.

    Cost: none to speak of.
    """
    name = "rank_profile"
    several = trains if isinstance(trains, Mapping) else {"": trains}
    if not several:
        arguments.refuse(name, "trains", "empty", "at least one name", "pass {name: train}")
    for key, tt in several.items():
        _check_bonds(name, f"trains[{key!r}]" if key else "trains", tt)
    ax = ax or _axes()
    for key, tt in several.items():
        ranks = np.asarray(tt.ranks)[1:-1]
        label = f"{key}, largest {ranks.max()}" if key else f"rank, largest {ranks.max()}"
        ax.plot(np.arange(1, tt.ndim), ranks, "o-", markersize=4, label=label)
    bounds = sorted({tt.max_rank for tt in several.values()})
    for bound, style in zip(bounds, cycle(("--", "-.", ":")), strict=False):
        ax.axhline(bound, color="0.3", linewidth=0.9, linestyle=style, label=f"max_rank = {bound}")
    top = bounds[-1] * (1.5 if logarithmic else 1.1)
    if len({tt.shape for tt in several.values()}) == 1:
        shape = next(iter(several.values())).shape
        # floats, since the products of a hundred mode sizes are no int64
        before = np.cumprod(np.array(shape[:-1], float))
        most = np.minimum(before, np.cumprod(np.array(shape[:0:-1], float))[::-1])
        if most.min() < top:
            grey: dict[str, Any] = {"color": "0.9", "linewidth": 0, "width": 1, "zorder": 0}
            shown = np.minimum(most, top)
            ax.bar(np.arange(1, len(shape)), top - shown, bottom=shown, label="no train of this shape", **grey)
    ax.set_ylim(0.9 if logarithmic else 0, top)
    if logarithmic:
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="bond", ylabel="rank")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend_below(ax, 2)
    return ax


def singular_values(tt: TT, *, threshold: float | None = None, ax: Axes | None = None) -> Axes:
    """Singular values of every bond of a train, relative to its norm: how much a smaller rank would lose.

    Args:
      tt: not batched.
      threshold: a relative tolerance, drawn as a line.
      ax: axes to draw into.

    Returns:
      the axes; a line a bond, coloured from the first to the last. Where values come near the machine epsilon of the
      cores, a dotted line shows it: what is below is rounding.

    Raises:
      ValueError: a batch of trains, one mode, numbers that are not finite, a threshold <= 0. TypeError: no train.

    Cost: two QR factorizations a site and an SVD a bond, as `jaxnm.tensor_train.singular_values`.
    """
    name = "singular_values"
    _check_bonds(name, "tt", tt)
    if threshold is not None:
        arguments.check_number(name, "threshold", threshold, "> 0", lambda x: x > 0, "try 1e-6")
    values, ranks = np.asarray(bond_spectra(tt), float), np.asarray(tt.ranks)[1:-1]
    if not np.isfinite(values).all():
        arguments.refuse(name, "tt", "with numbers that are not finite", "finite cores", "see the status it came with")
    ax = ax or _axes()
    colors = mpl.colormaps["viridis"]
    num = len(values)
    norm = BoundaryNorm(np.arange(0.5, num + 1), colors.N) if num > 1 else BoundaryNorm([0.5, 1.5], colors.N)
    for bond, (row, rank) in enumerate(zip(values, ranks, strict=True), 1):
        kept = np.where(row[:rank] > 0, row[:rank], np.nan)
        ax.semilogy(np.arange(1, rank + 1), kept, ".-", color=colors(norm(bond)), linewidth=0.9, markersize=4)
    machine = float(np.finfo(np.asarray(tt.cores).dtype).eps)
    if values.min(initial=1, where=values > 0) < 100 * machine:
        ax.axhline(machine, color="0.4", linewidth=0.9, linestyle=":", label=f"machine epsilon, {machine:.1e}")
    if threshold is not None:
        ax.axhline(threshold, color="k", linewidth=0.9, linestyle="--", label=f"threshold {threshold:g}")
    mapped = mpl.cm.ScalarMappable(norm, colors)
    bar = ax.figure.colorbar(mapped, ax=ax, label="bond")
    bar.set_ticks([int(tick) for tick in np.unique(np.linspace(1, num, min(num, 6)).round())])
    bar.minorticks_off()
    ax.set(xlabel="number of the singular value", ylabel="singular value over the norm")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if ax.get_legend_handles_labels()[0]:
        _legend_below(ax, 2)
    return ax


# ------------------------------------------------------------------------------------------------ entries


def slice_map(
    tt: TT,
    modes: tuple[int, int],
    index: Int[ArrayLike, "d"],
    *,
    grids: tuple[Float[ArrayLike, "n"], Float[ArrayLike, "m"]] | None = None,
    labels: tuple[str, str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Entries of a train over two of its modes, the others fixed.

    Args:
      tt: real, not batched.
      modes: those along x and y, counted from 0; they differ.
      index: [d], where the other modes are held; a mark shows its own two entries.
      grids: nodes of the two modes, ascending, along the axes; by default the indices themselves.
      labels: of x, y and the values, with units where they have any.
      ax: axes to draw into.

    Returns:
      the axes.

    Raises:
      ValueError: a batch of trains, modes or an index that are not there, other grids, values that are not finite.
      TypeError: no train, a complex one, an index that is not integer.

    Cost: an entry of the train a cell.
    """
    name = "slice_map"
    _check_bonds(name, "tt", tt)
    arguments.check_real(name, "tt", tt.cores)
    d = tt.ndim
    if len(modes) != 2 or modes[0] == modes[1]:
        arguments.refuse(name, "modes", repr(modes), "two different modes", "try (0, 1)")
    for mode in modes:
        arguments.check_count(name, "modes", mode)
        if mode >= d:
            arguments.refuse(name, "modes", f"with {mode}", f"below d = {d}", "modes are counted from 0")
    fixed = np.asarray(index)
    if not np.issubdtype(fixed.dtype, np.integer):
        got = f"of dtype {fixed.dtype}"
        arguments.refuse(name, "index", got, "integers", "give an index, not a point", error=TypeError)
    if fixed.shape != (d,) or (fixed < 0).any() or (fixed >= np.array(tt.shape)).any():
        arguments.refuse(name, "index", f"{fixed.tolist()}", f"{d} indices below {tt.shape}", "count from 0")
    across, up = modes
    sizes = tt.shape[across], tt.shape[up]
    x, y = (np.arange(size) for size in sizes) if grids is None else (np.asarray(grid, float) for grid in grids)
    for which, (grid, size) in enumerate(zip((x, y), sizes, strict=True)):
        if grid.shape != (size,) or not np.all(np.diff(grid) > 0):
            expected = f"[{size}], ascending"
            arguments.refuse(name, f"grids[{which}]", f"of shape {grid.shape} or not so", expected, "one node an index")
    rows = np.tile(fixed.astype(np.int32), (sizes[1], sizes[0], 1))
    rows[..., across], rows[..., up] = np.arange(sizes[0])[None], np.arange(sizes[1])[:, None]
    values = np.asarray(gather(tt, rows.reshape(-1, d)), float).reshape(sizes[1], sizes[0])
    if not np.isfinite(values).all():
        arguments.refuse(name, "the slice", "not finite", "finite entries", "see the status the train came with")
    if labels is None:
        labels = (f"mode {across}", f"mode {up}", "value")
    ax = ax or _axes()
    mesh = ax.pcolormesh(x, y, values, shading="nearest")
    ax.plot(x[fixed[across]], y[fixed[up]], "o", fillstyle="none", color="w", markersize=9, markeredgewidth=2.5)
    ax.plot(x[fixed[across]], y[fixed[up]], "o", fillstyle="none", color="C1", markersize=9, markeredgewidth=1.2)
    ax.figure.colorbar(mesh, ax=ax, label=labels[2])
    ax.set(xlabel=labels[0], ylabel=labels[1])
    if grids is None:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return ax


# ------------------------------------------------------------------------------------------------ optimizers


def convergence(
    results: OptimizeResult | Float[ArrayLike, "seeds evaluations"] | Mapping[str, Any],
    *,
    optimum: float | None = None,
    gap: bool = False,
    quantiles: tuple[float, float] = (0.0, 1.0),
    labels: tuple[str, str] = ("evaluations", "best value so far"),
    ax: Axes | None = None,
) -> Axes:
    """Best values of searches with several seeds over the evaluations they made: medians, in bands of quantiles.

    Args:
      results: of `protes`, `ttopt` and the like under `vmap` over seeds, or of one seed; or the best values so far as
        an array [seeds, evaluations], as `np.minimum.accumulate(values, 1)` of a random search; or a mapping of either
        by name.
      optimum: the proven one, drawn as a line.
      gap: whether to draw the distances above the optimum instead, on a logarithmic axis, on which zeros fall below the
        picture.
      quantiles: lower and upper end of the bands; by default the best and the worst seed.
      labels: of evaluations and values, with units where they have any.
      ax: axes to draw into.

    Returns:
      the axes. Nothing is drawn where a quantile is infinite, since no value was finite yet.

    Raises:
      ValueError: nothing to draw, other shapes, NaN, values that increase, quantiles not in order; `gap` without an
      optimum, or with one above a value that was found, beyond rounding.

    Cost: a sort of the values.
    """
    name = "convergence"
    is_array = lambda value: not isinstance(value, OptimizeResult | Mapping)
    several = results if isinstance(results, Mapping) else {"": results}
    if not several:
        arguments.refuse(name, "results", "empty", "at least one name", "pass {name: result}")
    if len(quantiles) != 2 or not 0 <= quantiles[0] <= quantiles[1] <= 1:
        arguments.refuse(name, "quantiles", repr(quantiles), "0 <= lower <= upper <= 1", "try (0.25, 0.75)")
    if optimum is not None:
        arguments.check_number(name, "optimum", optimum, "finite", lambda x: True, "leave it out if it is not known")
    if gap and optimum is None:
        arguments.refuse(name, "optimum", "None", "a number where gap is True", "give the proven optimum")
    zero = optimum if gap else None
    curves = {}
    for key, one in several.items():
        argument = f"results[{key!r}]" if key else "results"
        found = np.asarray(one if is_array(one) else one.history, float)
        found = found[None] if found.ndim == 1 and not is_array(one) else found
        if found.ndim != 2 or found.size == 0:
            expected = "a result of one seed or [seeds], or an array [seeds, evaluations]"
            arguments.refuse(name, argument, f"of shape {found.shape}", expected, "none of them 0")
        if np.isnan(found).any() or (found[:, 1:] > found[:, :-1]).any():
            remedy = "np.minimum.accumulate(values, 1) makes them so"
            arguments.refuse(name, argument, "NaN or increasing", "the best values so far", remedy)
        if zero is not None and found.min() < zero - _ROUNDING * max(1, abs(zero)):
            expected = "the smallest of all values"
            arguments.refuse(name, "optimum", f"{zero:g}, above {found.min():g}", expected, "see the function")
        calls = 1 if is_array(one) else int(np.max(np.asarray(one.num_evaluations))) / found.shape[1]
        curves[key] = (calls * np.arange(1, found.shape[1] + 1), found if zero is None else np.maximum(found - zero, 0))
    ax = ax or _axes()
    for (key, (evaluations, found)), style in zip(curves.items(), cycle(_STYLES), strict=False):
        # of infinite numbers, the nearest ones are quantiles and no mean of two
        lower, upper = (np.quantile(found, q, axis=0, method="nearest") for q in quantiles)
        middle = _median(found)
        label = f"{key}, " if key else ""
        label += f"median of {len(found)}" if len(found) > 1 else "one seed"
        step: dict[str, Any] = {"linestyle": style, "drawstyle": "steps-post"}
        dot = "." if found.shape[1] == 1 else ""
        (line,) = ax.plot(evaluations, _shown(middle, gap), marker=dot, label=label, **step)
        if len(found) > 1:
            color, inside = line.get_color(), np.isfinite(upper)
            band: dict[str, Any] = {"step": "post", "color": color, "alpha": 0.15, "linewidth": 0}
            ax.fill_between(evaluations, lower, upper, where=inside, **band)
            for edge in (lower, upper):
                ax.plot(evaluations, _shown(edge, gap), color=color, linewidth=0.6, alpha=0.5, **step)
    if optimum is not None and not gap:
        ax.axhline(optimum, color="k", linewidth=0.9, linestyle="--", label=f"optimum {optimum:.4g}")
    if gap:
        ax.set_yscale("log")
    value = f"{labels[1]}, above {optimum:.4g}" if gap else labels[1]
    ax.set(xlabel=labels[0], ylabel=value)
    if any(len(found) > 1 for _, found in curves.values()):
        ends = tuple(quantiles)
        said = "best to worst" if ends == (0, 1) else f"quantiles {ends[0]:g} to {ends[1]:g}"
        ax.set_title(f"median over seeds; band: {said}", fontsize="medium")
    _legend_below(ax, 2)
    return ax


def _median(found: np.ndarray) -> np.ndarray:
    """Over seeds; infinite where half of them are."""
    ordered = np.sort(found, axis=0)
    half = len(found) // 2
    return ordered[half] if len(found) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _shown(values: np.ndarray, positive: bool) -> np.ndarray:
    """NaN, which leaves a gap, where a number has no place in the picture."""
    return np.where(np.isfinite(values) & ((values > 0) | (not positive)), values, np.nan)


# ------------------------------------------------------------------------------------------------ checks


def _check_bonds(function: str, argument: str, tt: Any) -> None:
    """A train of two modes or more, not a batch."""
    if not isinstance(tt, TT):
        arguments.refuse(function, argument, f"of type {type(tt).__name__}", "a TT", "see from_cores", error=TypeError)
    if np.ndim(tt.cores) != 4 or np.ndim(tt.ranks) != 1:
        got = f"with cores of shape {np.shape(tt.cores)}"
        arguments.refuse(function, argument, got, "one train", "take one of a batch")
    if tt.ndim < 2:
        arguments.refuse(function, argument, "of one mode", "two modes or more", "draw its entries")


def _legend_below(ax: Axes, columns: int) -> None:
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize="small", ncols=columns)


def _axes() -> Axes:
    return plt.subplots(layout="constrained")[1]
