"""What an experiment returns, the comparison with the paper as text, and strokes of the figures."""

import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Experiment(NamedTuple):
    """What an experiment showed."""

    figure: Figure
    text: str
    """Tables, then what the paper says beside what was measured."""
    checks: dict[str, bool]


class Part(NamedTuple):
    """What one part of an experiment contributes to it."""

    paper: str
    """What the paper says; in parentheses where it says nothing; empty for a part that is a table only."""
    measured: str
    checks: dict[str, Any]
    table: str = ""


def assemble(figure: Figure, *parts: Part) -> Experiment:
    """The parts as one experiment: the tables, then two columns with the paper and what was measured."""
    left, right = 35, 58
    lines = [f"{'the paper':<{left}} | measured here", f"{'-' * left} | {'-' * right}"]
    for part in parts:
        cells = textwrap.wrap(part.paper, left), textwrap.wrap(part.measured, right)
        for i in range(max(map(len, cells))):
            said, measured = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append(f"{said:<{left}} | {measured}".rstrip())
        lines += [f"{'':<{left}} |"] * bool(part.paper)
    text = "\n\n".join([part.table for part in parts if part.table] + ["\n".join(lines[:-1])])
    return Experiment(figure, text, {name: bool(held) for part in parts for name, held in part.checks.items()})


def finish(ax: Axes, title: str, *, legend: Any = None, **properties: Any) -> None:
    """Title, labels and limits of a plot over the iterates, and its legend if a place is given."""
    ax.set(**{"title": title, "xlabel": "iteration k"} | properties)
    if legend:
        ax.legend(fontsize="small", loc=legend)


def plot_signed(ax: Axes, values: np.ndarray, **style: Any) -> None:
    """Moduli on a logarithmic axis, dotted where the values are negative."""
    (line,) = ax.semilogy(np.where(values > 0, values, np.nan), **style)
    ax.semilogy(np.where(values < 0, -values, np.nan), ":", color=line.get_color(), linewidth=1)


def plot_slope(ax: Axes, value: float, rate: float, first: int, last: int, color: str) -> None:
    """A dashed line that falls by `rate` a step from `value` at `first`."""
    steps = np.array([first, last])
    ax.semilogy(steps, value * rate ** (steps - first), "--", color=color, linewidth=1)
