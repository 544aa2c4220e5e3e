"""How does a slow fluid pass these obstacles? Stokes flow past the coins of a photograph, and in a driven cavity.

The obstacles are a picture: the coins photograph that scikit-image ships, thresholded to a mask of cells. The lattice
of such pictures is pushed through by a uniform force; the drag on each coin must add up to that force, and the
derivative of the flux by the place of each coin must agree with moved coins. Beside it the lid-driven cavity, whose
vortices have reference values.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage
from skimage import data

import jaxnm.stokes as st
from jaxnm.plot import stokes as plot

NUM_SECTIONS = 3
PIXELS = 2
"""Pixels of the photograph along the side of a cell."""
DRAG = 50.0
"""Inverse permeability of the coins that can be moved, in units of one over the area of a cell."""
RIM = 0.5
"""Width of their rims, in cells: on the outline the drag is twice one over the area of a cell; outside it falls by e
every width."""
STEP = 0.02
"""Of the central differences, in pixels."""
CAVITY = 512
CAVITY_MINIMUM, CAVITY_CENTRE, CORNER_EDDY = -0.1000763, (0.5, 0.7650), 2.2276e-6
"""Of the stream function as the cells shrink: extrapolated from the same discretization with up to 2048^2 cells."""
HOW_TO_READ = """\
Stationary Stokes flow, -nu lap u + grad p = f, div u = 0, on a staggered grid. The Schur complement of the pressure,
S = nu B A^-1 B^T, has the eigenvalue 1 but for a number of others that `count_nonunit_eigenvalues` finds on graphs.
  residual       largest entry of the momentum equation that is not met, over the largest force
  divergence     largest divergence times the size of a cell, over the largest velocity"""

Section = tuple[str, dict[str, bool]]
Experiment = tuple[Figure, str, dict[str, bool]]
"""A figure, text, and checks that must hold."""


class Coins(NamedTuple):
    """The photograph as a domain."""

    photograph: np.ndarray
    """[304, 384] grey values, rows from the top."""
    outlines: np.ndarray
    """[304, 384], True on coins."""
    labels: np.ndarray
    """[192, 152] cells, x and y from the lower left corner: 0 in the fluid, 1..count on the coins."""
    count: int
    grid: st.Grid
    """In pixels."""


class Flow(NamedTuple):
    """A flow along x through the periodic lattice of the photograph."""

    operators: st.StokesOperators
    force: st.Velocity
    solution: st.StokesSolution


def sections(folder: Path) -> Iterator[Section]:
    """The parts of the chapter, one at a time: a text and the checks made on the way. Pictures go to `folder`."""
    for number, (name, part) in enumerate({"coins": past_coins, "moved_coins": moved_coins, "cavity": cavity}.items()):
        figure, text, held = part()
        path = folder / f"stokes_{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        yield "\n".join([*([] if number else [HOW_TO_READ, ""]), text, f"  picture: {path}"]), held


# ------------------------------------------------------------------------------------------------------- the coins


@cache
def coins() -> Coins:
    """Threshold the photograph above its uneven background, tidy up, number the coins."""
    photograph = np.pad(data.coins(), ((0, 1), (0, 0)), mode="edge")
    background = ndimage.gaussian_filter(ndimage.percentile_filter(photograph.astype(float), 25, size=75), 20)
    bright = ndimage.binary_closing(photograph - background > 30, iterations=2)
    outlines = ndimage.binary_opening(ndimage.binary_fill_holes(bright), iterations=3)
    rows, columns = (n // PIXELS for n in photograph.shape)
    share = outlines.reshape(rows, PIXELS, columns, PIXELS).mean((1, 3))
    labels, count = ndimage.label((share >= 0.5)[::-1].T)
    size = tuple(float(PIXELS * n) for n in labels.shape)
    return Coins(photograph, outlines, labels, count, st.Grid(labels.shape, (0.0, 0.0), size))


@cache
def flow() -> Flow:
    """Unit viscosity, a unit force along x on every unknown face, pictures side by side without end."""
    c = coins()
    boundary = st.Boundary("periodic", "periodic")
    operators = st.discretize(c.grid, boundary, solid=c.labels > 0)
    force = unit_force(c.grid, boundary)
    return Flow(operators, force, st.solve(operators, force))


def unit_force(grid: st.Grid, boundary: st.Boundary) -> st.Velocity:
    """One along x on every unknown face."""
    zero = st.zero_velocity(grid, boundary)
    return replace(zero, u=jnp.ones_like(zero.u))


def past_coins(tensor: bool = True) -> Experiment:
    """Count, solve, drag on each coin; the permeability, which takes a solution along and one across, if asked for."""
    c, (operators, force, solution) = coins(), flow()
    cells, (columns, rows) = int(np.sum(c.labels == 0)), c.grid.shape
    count = st.count_nonunit_eigenvalues(c.grid, operators.boundary, c.labels > 0)
    flux = st.flux(operators, solution.velocity, 0)
    drag = st.force_on_solid(
        operators, solution.velocity, solution.pressure, labels=jnp.asarray(c.labels), num_labels=c.count
    )
    total = jnp.sum(operators.active_faces().u * force.u) * PIXELS**2
    largest, smallest = (int(pick(drag[:, 0])) for pick in (jnp.argmax, jnp.argmin))
    areas = np.bincount(c.labels.ravel())[1:] * PIXELS**2
    stats = solution.stats
    lines = [
        f"Flow past {c.count} coins: the photograph of scikit-image, periodic, a unit force along x, lengths in pixels",
        f"  cells                {columns} x {rows}, of which {cells:,} fluid ({cells / c.labels.size:.1%})",
        f"  eigenvalues not 1    {count:,}, {count / cells:.1%} of the fluid cells",
        f"  solved by minres     {stats.iterations} steps, residual {stats.momentum_residual:.0e}, "
        f"divergence {stats.divergence:.0e}",
        f"  flux                 {flux[0]:.2f}, the same through all planes to {jnp.ptp(flux) / flux[0]:.0e}",
        f"  drag on a coin       from {drag[smallest, 0]:.0f} (area {areas[smallest]} px^2) to {drag[largest, 0]:.0f} "
        f"(area {areas[largest]} px^2)",
        f"  sum of all           {jnp.sum(drag[:, 0]):.4f} along, {jnp.sum(drag[:, 1]):.4f} across; "
        f"the force on the unknown faces is {total:.4f}",
    ]
    held = {
        "coins: 24 are found": c.count == 24,
        "coins: solved": int(solution.status) == 0,
        "coins: the flux is the same through all planes": float(jnp.ptp(flux) / flux[0]) < 1e-7,
        "coins: the drags add up to the force": bool(
            jnp.allclose(jnp.sum(drag, 0), jnp.stack([total, 0 * total]), atol=1e-6 * float(total))
        ),
    }
    if tensor:
        K = st.permeability(c.labels > 0, spacing=float(PIXELS)).tensor
        lines.append(
            f"  permeability         along {K[0, 0]:.3f}, across {K[1, 1]:.3f}, off the diagonal {K[0, 1]:.3f} (px^2)"
        )
        held |= {
            "coins: the permeability is the flux a height": bool(
                jnp.isclose(K[0, 0], flux[0] / c.grid.upper[1], rtol=1e-7)
            ),
            "coins: the permeability is symmetric": bool(jnp.isclose(K[0, 1], K[1, 0], rtol=1e-6)),
        }
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    plot.streamlines(operators, solution, density=2.0, label="speed, f px$^2$ / nu", ax=left)
    left.set_title("streamlines past the coins, flow to the right")
    plot.pressure(operators, solution, label="pressure, f px", ax=right)
    for ax in (left, right):
        on_top(ax, c)
        ax.set(xlabel="x, pixels", ylabel="y, pixels")
    style = {"color": "w", "ha": "center", "va": "center", "fontsize": 7, "weight": "bold", "zorder": 6}
    outline = [withStroke(linewidth=1.5, foreground="k")]
    for number, (x, y) in enumerate(centres(c)):
        right.text(x, y, f"{drag[number, 0]:.0f}", path_effects=outline, **style)
    right.set_title("pressure, and on each coin its drag along x, f px$^2$")
    return figure, "\n".join(lines), held


def on_top(ax: plt.Axes, c: Coins) -> None:
    """The coins of the photograph over a picture."""
    picture = np.dstack([c.photograph / 255.0] * 3 + [c.outlines])
    ax.imshow(picture, extent=(0, c.grid.upper[0], 0, c.grid.upper[1]), zorder=5, interpolation="nearest")


def centres(c: Coins) -> np.ndarray:
    """[count, 2] in pixels."""
    found = ndimage.center_of_mass(c.labels > 0, c.labels, range(1, c.count + 1))
    return (np.asarray(found) + 0.5) * PIXELS


# ---------------------------------------------------------------------------------------------------- moved coins


@cache
def ellipses() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The coins as ellipses of the same second moments: centres [count, 2], inverse shapes [count, 2, 2], radii."""
    c = coins()
    shapes = []
    for number in range(1, c.count + 1):
        inside = np.argwhere(c.labels == number) * float(PIXELS)
        shapes.append(4 * np.cov(inside.T))
    shapes = np.asarray(shapes)
    return centres(c), np.linalg.inv(shapes), np.linalg.det(shapes) ** 0.25


@jax.jit
@jax.value_and_grad
def flux_and_slopes(positions: Array) -> Array:
    """The flux past coins at these places [count, 2], ellipses of a porous solid with smooth rims; and its slopes."""
    grid, boundary = coins().grid, st.Boundary("periodic", "periodic")
    _, inverses, radii = ellipses()
    x, y = jnp.meshgrid(grid.centres(0), grid.centres(1), indexing="ij")
    size = jnp.asarray(grid.upper)

    def cover(position: Array, inverse: Array, radius: Array) -> Array:
        away = jnp.stack([x, y], -1) - position
        away = away - size * jnp.round(away / size)  # the nearest of the periodic images
        distance = jnp.sqrt(jnp.sum((away @ inverse) * away, -1) + 1e-12) - 1
        return jax.nn.sigmoid(-distance * radius / (RIM * PIXELS) - np.log(DRAG / 2))

    solid = jnp.sum(jax.vmap(cover)(positions, jnp.asarray(inverses), jnp.asarray(radii)), 0)
    operators = st.discretize(grid, boundary, inverse_permeability=DRAG / PIXELS**2 * solid)
    return st.flux(operators, st.solve(operators, unit_force(grid, boundary)).velocity, 0)[0]


def moved_coins() -> Experiment:
    """The derivative of the flux by the place of every coin, from one more solution."""
    c = coins()
    places = jnp.asarray(ellipses()[0])
    flux, slopes = flux_and_slopes(places)
    sizes = jnp.linalg.norm(slopes, axis=1)
    most = int(jnp.argmax(sizes))
    directions = {
        f"coin {most + 1} along its slope": jnp.zeros_like(places).at[most].set(slopes[most] / sizes[most]),
        "all coins at random": jax.random.normal(jax.random.key(0), places.shape),
        "every second coin up": jnp.zeros_like(places).at[::2, 1].set(1.0),
    }
    solid = st.flux(flow().operators, flow().solution.velocity, 0)[0]
    lines = [
        "The same coins as ellipses of a porous solid with smooth rims, so that they can be moved by parts of a pixel",
        f"  flux                 {flux:.2f}; past the mask {solid:.2f}",
        "  d flux / d place     " + f"{places.size} derivatives by one solution more; the largest for coin {most + 1}:",
        f"                       ({slopes[most, 0]:+.2f}, {slopes[most, 1]:+.2f}) a pixel, "
        f"{sizes[most] / flux:.2%} of the flux",
        f"  {'direction':<35}{'derivative':>14}{'difference':>14}{'relative':>10}",
    ]
    held = {"moved coins: the flux is that past the mask within a tenth": abs(float(flux / solid) - 1) < 0.1}
    for name, direction in directions.items():
        predicted = float(jnp.sum(slopes * direction))
        beside = [float(flux_and_slopes(places + sign * STEP * direction)[0]) for sign in (1, -1)]
        observed = (beside[0] - beside[1]) / (2 * STEP)
        error = abs(observed - predicted) / abs(predicted)
        lines.append(f"  {name:<35}{predicted:>14.6f}{observed:>14.6f}{error:>10.0e}")
        held[f"moved coins, {name}: derivative and difference agree"] = error < 1e-4
    together = jnp.abs(jnp.sum(slopes, 0)) / jnp.max(sizes)
    lines.append(f"  all together         ({together[0]:.0e}, {together[1]:.0e}) of the largest: nothing changes")
    held["moved coins: moving all together changes nothing"] = float(jnp.max(together)) < 0.05

    figure, ax = plt.subplots(figsize=(7.5, 5.4), layout="constrained")
    extent = (0, c.grid.upper[0], 0, c.grid.upper[1])
    ax.imshow(c.photograph, cmap="gray", extent=extent)
    arrows = ax.quiver(*places.T, *slopes.T, sizes / flux * 100, cmap="autumn_r", width=0.006)
    figure.colorbar(arrows, ax=ax, label="flux gained, per cent a pixel")
    ax.set(xlabel="x, pixels", ylabel="y, pixels", title="where to move each coin for more flux to the right")
    return figure, "\n".join(lines), held


# ------------------------------------------------------------------------------------------------------- a cavity


def lid_driven(n: int) -> tuple[st.StokesOperators, st.BoundaryValues, st.StokesSolution, Array]:
    """The unit square with a lid of unit velocity: operators, boundary values, solution, stream function."""
    grid, boundary = st.Grid((n, n), (0.0, 0.0), (1.0, 1.0)), st.Boundary()
    lid = st.boundary_values(grid, boundary).set("y", "upper", tangential=1.0)
    operators = st.discretize(grid, boundary)
    solution = st.solve(operators, st.zero_velocity(grid, boundary), boundary_values=lid)
    return operators, lid, solution, st.stream_function(operators, solution.velocity, lid)


def cavity() -> Experiment:
    """The cavity against its reference values, with the error extrapolated away from two grids."""
    coarse = lid_driven(CAVITY // 2)
    operators, lid, solution, psi = lid_driven(CAVITY)
    before, found = (st.stream_extrema(run[0].grid, run[3]) for run in (coarse, (operators, lid, solution, psi)))
    limit = lambda name: (4 * float(getattr(found, name)) - float(getattr(before, name))) / 3
    x, y = (float(value) for value in found.minimum_position)
    stats = solution.stats
    lines = [
        f"Lid-driven cavity, {CAVITY} x {CAVITY} cells, by the direct solver",
        f"  residual {stats.momentum_residual:.0e}, divergence {stats.divergence:.0e}",
        f"  {'':<32}{'here':>14}{'extrapolated':>16}{'reference':>14}",
        f"  {'smallest stream function':<32}{found.minimum:>14.8f}{limit('minimum'):>16.8f}{CAVITY_MINIMUM:>14.7f}",
        f"  {'where':<32}{f'({x:.4f}, {y:.4f})':>14}{'':>16}{'({:.4f}, {:.4f})'.format(*CAVITY_CENTRE):>14}",
        f"  {'largest, in the corner eddies':<32}{found.maximum:>14.4e}{limit('maximum'):>16.4e}{CORNER_EDDY:>14.4e}",
        "  extrapolated: from this grid and the one of twice the cell size, errors of second order taken out",
    ]
    held = {
        "cavity: solved": int(solution.status) == 0,
        "cavity: residual and divergence are rounding": float(stats.momentum_residual) < 1e-10
        and float(stats.divergence) < 1e-12,
        "cavity: the smallest stream function": abs(limit("minimum") - CAVITY_MINIMUM) < 3e-7,
        "cavity: its place": max(abs(x - CAVITY_CENTRE[0]), abs(y - CAVITY_CENTRE[1])) < 2e-4,
        "cavity: the corner eddy": abs(limit("maximum") / CORNER_EDDY - 1) < 2e-3,
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    plot.streamlines(operators, solution, lid, density=1.4, label="speed, in units of the lid", ax=left)
    left.plot(x, y, "r+", markersize=10)
    left.set_title("streamlines and speed; red: the centre of the vortex")
    part = slice(0, CAVITY // 10 + 1)
    line = np.asarray(operators.grid.faces(0))[part]
    values = np.asarray(psi)[part, part].T
    levels = np.linspace(0, float(found.maximum), 8)[1:]
    contours = right.contour(line, line, values * 1e6, levels * 1e6, cmap="autumn")
    right.contour(line, line, values, [-1e-3, -3e-4, -1e-4, -3e-5, -1e-5, 0], colors="0.4", linewidths=0.8)
    figure.colorbar(contours, ax=right, label="stream function in the eddy, 1e-6", format="%.2f")
    title = "the lower left corner; grey: the main vortex"
    right.set(xlabel="x", ylabel="y", title=title, aspect="equal")
    return figure, "\n".join(lines), held
