"""Pictures of first-order methods: rate maps, eigenvalues, errors and envelopes, spectral densities, pseudospectra."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Num
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from jaxnm import arguments
from jaxnm.first_order import Spectrum, StateSpace, iteration_matrix, quadratic_rate
from jaxnm.first_order import pseudospectrum as resolvent_levels
from jaxnm.linalg import eigenvalues as matrix_eigenvalues


def rate_map(
    family: Callable[[Any, Any], StateSpace],
    first: Float[ArrayLike, "columns"],
    second: Float[ArrayLike, "rows"],
    mu: float,
    L: float,
    *,
    labels: tuple[str, str] = ("step size", "momentum"),
    ax: Axes | None = None,
) -> Axes:
    """Worst rate on [mu, L] over two parameters of a family of methods; what does not converge is left grey.

    Args:
      family: (first, second) to a `StateSpace`, as `heavy_ball`.
      first: [columns] values of the first parameter, along x.
      second: [rows] values of the second parameter, along y.
      mu: smallest curvature.
      L: largest curvature.
      labels: names of the parameters, with units where they have any.
      ax: axes to draw into.

    Returns:
      the axes; the best point of the map is marked.

    Raises:
      ValueError: as `quadratic_rate`. TypeError: integer arrays.

    Cost: columns x rows rates in one call.
    """
    first, second = arguments.to_arrays("rate_map", first=first, second=second)
    ax = ax or _axes()
    one = lambda a, b: quadratic_rate(family(a, b), mu, L)
    rates = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(first, second))
    shown = np.ma.masked_where(~(rates < 1), rates)
    ax.set_facecolor("0.85")
    mesh = ax.pcolormesh(
        first, second, shown, cmap="viridis_r", norm=Normalize(float(np.nanmin(rates)), 1), shading="nearest"
    )
    ax.figure.colorbar(mesh, ax=ax, label="rate per iterate (grey: not below 1)")
    row, column = np.unravel_index(np.nanargmin(rates), rates.shape)
    ax.plot(
        first[column],
        second[row],
        "w*",
        markeredgecolor="k",
        markersize=12,
        label=f"best here: {rates[row, column]:.4f}",
    )
    ax.legend(loc="lower right")
    ax.set(xlabel=labels[0], ylabel=labels[1], title=f"worst rate on curvatures {mu:.4g} to {L:.4g}")
    return ax


def eigenvalue_disc(
    method: StateSpace, curvatures: Float[ArrayLike, "m"], *, ax: Axes | None = None, label: str = ""
) -> Axes:
    """Eigenvalues of the iteration blocks in the complex plane, coloured by curvature, with the unit circle.

    Args:
      method: state-space form.
      curvatures: [m].
      ax: axes to draw into.
      label: first line of the title.

    Returns:
      the axes; the dashed circle has the spectral radius.

    Raises:
      TypeError: integer arrays.

    Cost: m small eigenvalue problems.
    """
    (curvatures,) = arguments.to_arrays("eigenvalue_disc", curvatures=curvatures)
    ax = ax or _axes()
    values = np.asarray(matrix_eigenvalues(iteration_matrix(method, curvatures)))
    angle = np.linspace(0, 2 * np.pi, 400)
    radius = np.max(np.abs(values))
    ax.plot(np.cos(angle), np.sin(angle), "k-", linewidth=0.8)
    ax.plot(radius * np.cos(angle), radius * np.sin(angle), "k--", linewidth=0.8)
    colour = np.repeat(np.asarray(curvatures), values.shape[-1])
    dots = ax.scatter(values.real.ravel(), values.imag.ravel(), c=colour, s=14, cmap="viridis", zorder=2)
    ax.figure.colorbar(dots, ax=ax, label="curvature", shrink=0.8)
    # in the title, since eigenvalues may lie anywhere in the disc
    title = "\n".join([*([label] if label else []), f"dashed: spectral radius {radius:.4f}"])
    ax.set(xlabel="real part", ylabel="imaginary part", title=title, aspect="equal")
    return ax


def error_envelope(
    errors: Float[ArrayLike, "steps"] | Mapping[str, ArrayLike],
    rate: float | Mapping[str, float],
    *,
    peak: float | Mapping[str, float] = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Errors over the iterations beside the envelope `peak * errors[0] * rate^k`.

    Args:
      errors: [steps] distances to the solution, or a mapping of such by name.
      rate: asymptotic rate per iterate, or a mapping with the same names.
      peak: factor on the envelope, or a mapping with the same names. With sqrt(cond(P)) of a Lyapunov function P that
        certifies the rate, the envelope is a bound. With the transient growth it need not be one: a double eigenvalue
        decays like k rate^k.
      ax: axes to draw into.

    Returns:
      the axes: solid lines are errors, dashed ones of the same colour their envelopes.

    Raises:
      KeyError: a name in `errors` that `rate` or `peak` lacks.

    Cost: none to speak of.
    """
    ax = ax or _axes()
    several = errors if isinstance(errors, Mapping) else {"": errors}
    for name, one in several.items():
        values = np.asarray(one)
        own_rate = rate[name] if isinstance(rate, Mapping) else rate
        own_peak = peak[name] if isinstance(peak, Mapping) else peak
        steps = np.arange(values.size)
        (line,) = ax.semilogy(steps, values, label=f"{name} (rate {float(own_rate):.4f})".strip())
        envelope = float(own_peak) * values[0] * float(own_rate) ** steps
        visible = envelope >= np.min(values[values > 0], initial=np.inf) / 10
        ax.semilogy(steps[visible], envelope[visible], "--", color=line.get_color(), linewidth=0.9)
    ax.legend(fontsize="small")
    ax.set(xlabel="iteration k", ylabel="|x_k - x*|", title="error (solid) and envelope peak * rate^k (dashed)")
    return ax


def spectral_density(spectrum: Spectrum, *, width: float | None = None, ax: Axes | None = None) -> Axes:
    """How many curvatures lie where: each smeared to a Gaussian, on a logarithmic axis, with mu and L marked.

    Args:
      spectrum: of `hessian_spectrum`, by either method.
      width: standard deviation of the Gaussians; default a hundredth of L - mu.
      ax: axes to draw into.

    Returns:
      the axes: curvatures per unit of curvature, so that the area is the number of parameters.

    Raises:
      ValueError: a width that is not positive, or a spectrum that is not finite.

    Cost: none to speak of.
    """
    mu, L = float(spectrum.mu), float(spectrum.L)
    if not np.isfinite([mu, L]).all():
        arguments.refuse("spectral_density", "spectrum", "not finite", "finite curvatures", "see its status")
    if width is not None:
        remedy = "try a hundredth of L - mu"
        arguments.check_number("spectral_density", "width", width, "> 0", lambda value: value > 0, remedy)
    ax = ax or _axes()
    spread = max(L - mu, 1e-3 * abs(L), np.finfo(float).tiny)
    width = spread / 100 if width is None else float(width)
    points = np.linspace(mu - 5 * width, L + 5 * width, 1000)
    nodes, weights = np.asarray(spectrum.eigenvalues), np.asarray(spectrum.weights)
    gaussians = np.exp(-(((points[:, None] - nodes) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    density = spectrum.dimension * gaussians @ weights
    ax.semilogy(points, density, color="C0")
    ax.axvline(mu, color="C2", linestyle=":", label=f"mu = {mu:.4g}")
    ax.axvline(L, color="C3", linestyle=":", label=f"L = {L:.4g}")
    # one curvature alone has the height of one Gaussian
    alone = 1 / (width * np.sqrt(2 * np.pi))
    ax.set_ylim(alone / 30, 2 * np.max(density))
    ax.legend()
    ax.set(
        xlabel="curvature",
        ylabel="curvatures per unit of curvature",
        title=f"{spectrum.dimension:,} curvatures, smeared by {width:.2g}",
    )
    return ax


def pseudospectrum(
    matrix: Num[ArrayLike, "n n"], *, radius: float | None = None, points: int = 200, ax: Axes | None = None
) -> Axes:
    """Boundaries of the pseudospectra of a matrix: how far its eigenvalues move under perturbations of a given norm.

    Args:
      matrix: [n, n], real or complex.
      radius: half the side of the square around zero; default large enough for the unit circle and the eigenvalues.
      points: of the grid, along each side.
      ax: axes to draw into.

    Returns:
      the axes: at each z, in steps of half a power of ten, the norm of the smallest perturbation of the matrix that has
      the eigenvalue z; the eigenvalues of the matrix itself, and the unit circle.

    Raises:
      ValueError: not one square matrix, or not finite. TypeError: an integer dtype.

    Cost: points^2 `svd`.
    """
    (matrix,) = arguments.to_arrays("pseudospectrum", matrix=matrix)
    eigenvalues = np.asarray(matrix_eigenvalues(matrix))
    if not np.isfinite(eigenvalues).all():
        arguments.refuse("pseudospectrum", "matrix", "not finite", "a finite matrix", "find the first inf or NaN")
    ax = ax or _axes()
    radius = radius or 1.25 * max(1.0, float(np.abs(eigenvalues).max()))
    side = np.linspace(-radius, radius, points)
    levels = np.asarray(resolvent_levels(matrix, side[None, :] + 1j * side[:, None]))
    with np.errstate(divide="ignore"):
        exponents = np.log10(levels)
    lowest, highest = np.percentile(exponents[np.isfinite(exponents)], 0.1), exponents.max()
    lines = np.arange(np.floor(2 * lowest), np.ceil(2 * highest) + 1) / 2
    contours = ax.contourf(side, side, exponents, lines, cmap="viridis_r", extend="min")
    ax.figure.colorbar(contours, ax=ax, label="log10 of the norm of a perturbation", ticks=lines)
    angle = np.linspace(0, 2 * np.pi, 400)
    ax.plot(np.cos(angle), np.sin(angle), "k-", linewidth=0.8)
    ax.plot(eigenvalues.real, eigenvalues.imag, "r.", label="eigenvalues")
    ax.legend(loc="lower right")
    ax.set(xlabel="real part of z", ylabel="imaginary part of z", title="pseudospectra", aspect="equal")
    return ax


def _axes() -> Axes:
    return plt.subplots(layout="constrained")[1]
