"""Pictures of Stokes flows in two dimensions: streamlines, pressure, solids, spectra of the Schur complement."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from jaxnm import arguments
from jaxnm.stokes import BoundaryValues, StokesOperators, StokesSolution, at_centres


def streamlines(
    operators: StokesOperators,
    solution: StokesSolution,
    values: BoundaryValues | None = None,
    *,
    density: float = 1.0,
    colour: str | None = "white",
    label: str = "speed",
    ax: Axes | None = None,
) -> Axes:
    """Streamlines over the speed, and the solid in grey.

    Args:
      operators: of the flow, in two dimensions.
      solution: from `solve`.
      values: what was prescribed on the sides; zero without.
      density: of the lines; 1 is about 30 of them across the picture.
      colour: of the lines; None draws the speed alone.
      label: of the colour bar, with the unit where there is one.
      ax: axes to draw into.

    Returns:
      the axes; x and y are the coordinates of the grid.

    Raises:
      ValueError: three dimensions, a solution that is not finite, a density that is not positive. TypeError: something
        else than operators.

    Cost: none to speak of; the lines take seconds at a density of 5.
    """
    _check("streamlines", operators)
    arguments.check_number("streamlines", "density", density, "> 0", lambda value: value > 0, "try 1.0")
    u, v = (np.asarray(part) for part in at_centres(operators, solution.velocity, values).components)
    speed = np.hypot(u, v)
    _check_finite("streamlines", "solution", speed)
    ax = ax or _axes()
    solid = _solid(operators)
    mesh = ax.pcolormesh(*_corners(operators), np.ma.masked_where(solid, speed).T, cmap="viridis")
    ax.figure.colorbar(mesh, ax=ax, label=label)
    mask(operators, ax=ax)
    if colour is not None and speed.max() > 0:
        x, y = (_line(operators, axis) for axis in (0, 1))
        # a velocity of zero ends the lines at the solid
        ax.streamplot(
            x, y, np.where(solid, 0, u).T, np.where(solid, 0, v).T,
            density=density, color=colour, linewidth=0.6, arrowsize=0.6,
        )  # fmt: skip
    _limits(operators, ax)
    ax.set_title("streamlines and speed" if colour is not None else "speed")
    return ax


def pressure(
    operators: StokesOperators, solution: StokesSolution, *, label: str = "pressure", ax: Axes | None = None
) -> Axes:
    """The pressure in the cells, and the solid in grey.

    Args:
      operators: of the flow, in two dimensions.
      solution: from `solve`.
      label: of the colour bar, with the unit where there is one.
      ax: axes to draw into.

    Returns:
      the axes. The colours leave out the most extreme hundredth of the cells at either end: beside corners and lids
      the pressure grows without bound as cells shrink.

    Raises:
      ValueError: three dimensions, or a solution that is not finite. TypeError: something else than operators.

    Cost: none to speak of.
    """
    _check("pressure", operators)
    cells = np.asarray(solution.pressure)
    _check_finite("pressure", "solution", cells)
    ax = ax or _axes()
    solid = _solid(operators)
    low, high = np.percentile(cells[~solid], [1, 99])
    shown = np.ma.masked_where(solid, cells).T
    mesh = ax.pcolormesh(
        *_corners(operators), shown, cmap="RdBu_r", vmin=low, vmax=max(high, np.nextafter(low, np.inf))
    )
    ax.figure.colorbar(mesh, ax=ax, label=label, extend="both")
    mask(operators, ax=ax)
    _limits(operators, ax)
    ax.set_title("pressure")
    return ax


def mask(operators: StokesOperators, *, colour: Any = "0.6", ax: Axes | None = None) -> Axes:
    """The solid cells in one colour; what lies below shows through elsewhere.

    Args:
      operators: in two dimensions; without a solid nothing is painted.
      colour: of the solid.
      ax: axes to draw into.

    Returns:
      the axes.

    Raises:
      ValueError: three dimensions. TypeError: something else than operators.

    Cost: none to speak of.
    """
    _check("mask", operators)
    ax = ax or _axes()
    solid = _solid(operators)
    if solid.any():
        shown = np.ma.masked_where(~solid, solid).T
        # above lines, which end between the last fluid centre and the first solid one
        ax.pcolormesh(*_corners(operators), shown, cmap=ListedColormap([colour]), zorder=2.5)
    _limits(operators, ax)
    return ax


def schur_spectrum(
    eigenvalues: Float[ArrayLike, "count"], *, num_cells: int | None = None, label: str = "", ax: Axes | None = None
) -> Axes:
    """The eigenvalues of the Schur complement that are not one, in order, with the line at one.

    Args:
      eigenvalues: from `schur_eigenvalues`; may be empty.
      num_cells: fluid cells, to say in the title which share of the eigenvalues that is.
      label: first line of the title.
      ax: axes to draw into.

    Returns:
      the axes; their number is in the title.

    Raises:
      ValueError: not one dimension, or not finite. TypeError: integer arrays.

    Cost: none to speak of.
    """
    (eigenvalues,) = arguments.to_arrays("schur_spectrum", eigenvalues=eigenvalues)
    arguments.check_shape("schur_spectrum", "eigenvalues", eigenvalues, "[count]", lambda shape: len(shape) == 1)
    values = np.sort(np.asarray(eigenvalues))
    _check_finite("schur_spectrum", "eigenvalues", values)
    ax = ax or _axes()
    ax.axhline(1, color="k", linewidth=0.8, linestyle="--", label="1, all the others")
    ax.plot(np.arange(1, values.size + 1), values, ".", markersize=3, label="not 1")
    share = "" if num_cells is None else f" of {num_cells:,} ({values.size / num_cells:.1%})"
    counted = f"{values.size:,}{share} eigenvalues are not 1"
    ax.set_ylim(0, 1.05 * float(np.max(values, initial=1.0)))
    ax.set(xlabel="number", ylabel="eigenvalue of S", title="\n".join([*([label] if label else []), counted]))
    ax.legend(loc="lower right")
    return ax


def _check(function: str, operators: Any) -> None:
    if not isinstance(operators, StokesOperators):
        got = f"of type {type(operators).__name__}"
        arguments.refuse(function, "operators", got, "StokesOperators", "use discretize(...)", error=TypeError)
    if operators.grid.dim != 2:
        arguments.refuse(function, "operators", "in 3 dimensions", "2", "draw a slice of the arrays with matplotlib")


def _check_finite(function: str, argument: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        arguments.refuse(function, argument, "not finite", "finite numbers", "see its status")


def _solid(operators: StokesOperators) -> np.ndarray:
    return ~np.asarray(operators.fluid_cells())


def _corners(operators: StokesOperators) -> list[np.ndarray]:
    return [np.asarray(operators.grid.faces(axis)) for axis in (0, 1)]


def _line(operators: StokesOperators, axis: int) -> np.ndarray:
    """Centres of the cells, evenly spaced to the last bit of what streamplot asks for."""
    faces = _corners(operators)[axis].astype(float)
    n = faces.size - 1
    step = (faces[-1] - faces[0]) / n
    return np.linspace(faces[0] + step / 2, faces[-1] - step / 2, n)


def _limits(operators: StokesOperators, ax: Axes) -> None:
    (left, *_, right), (bottom, *_, top) = _corners(operators)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="x", ylabel="y")


def _axes() -> Axes:
    return plt.subplots(layout="constrained")[1]
