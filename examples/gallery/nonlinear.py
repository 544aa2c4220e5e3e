"""Functions that are quadratics only near their minimizer: Rosenbrock's, and the exponential of the squared norm."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from matplotlib import pyplot as plt

import jaxnm.first_order as fo
from examples.gallery import runs
from examples.gallery.report import Experiment, Part, assemble, finish, plot_signed


class Descent(NamedTuple):
    """A run, where its errors are between 1e-5 and 1e-11, and the errors of the blocks of the Hessian from there on."""

    run: runs.Run
    window: slice
    linear: np.ndarray


def descend(
    function: Callable[[Array], Array], minimizer: np.ndarray, methods: runs.Methods, start: np.ndarray, steps: int
) -> dict[str, Descent]:
    """Run the methods from rest, and their linearizations from the first iterates within 1e-5 of the minimizer."""
    found = runs.run(methods, Partial(jax.grad(function)), start, steps, x_star=minimizer)
    windows = {name: between(run.errors, 1e-11, 1e-5) for name, run in found.items()}
    before, first = (np.stack([run.x[windows[name].start - i] for name, run in found.items()]) for i in (1, 0))
    gradient = Partial(runs.full_gradient, jax.jit(jax.hessian(function))(minimizer), minimizer)
    linear = runs.run(methods, gradient, first, steps, before=before, x_star=minimizer)
    return {name: Descent(run, windows[name], linear[name].errors[1:]) for name, run in found.items()}


def between(errors: np.ndarray, low: float, high: float) -> slice:
    """From the first to the last of the errors between the two bounds."""
    inside = np.flatnonzero((errors < high) & (errors > low))
    return slice(inside[0], inside[-1])


def local_rates(head: str, descents: dict[str, Descent], mu: float, L: float) -> Part:
    """Predicted and observed rates, and what V does close to the minimizer."""
    lines = [
        head,
        "                             rate an iterate              pairs complex   V falls at",
        "                         predicted observed   blocks*     at mu   at L       steps**",
    ]
    checks = {}
    for name, (run, window, linear) in descents.items():
        rate, V = float(fo.quadratic_rate(run.method, mu, L)), run.V[between(run.errors, 1e-8, 1e-5)]
        observed, blocks = (runs.fitted_rate(e) for e in (run.errors[window], linear[: window.stop - window.start]))
        at_mu, at_L = (bool(fo.schur_lyapunov(run.method, curvature).valid) for curvature in (mu, L))
        words, steps = ("yes" if each else "no" for each in (at_mu, at_L)), f"{runs.falls(V)} of {V.size - 1}"
        lines.append(
            "{:<25}{:9.6f}{:9.6f}{:10.6f}{:>10}{:>7}{:>15}".format(name, rate, observed, blocks, *words, steps)
        )
        near = runs.is_rate(observed, blocks, within=0.005) and runs.is_rate(observed, rate, within=0.1)
        checks[f"{name}, L = {L:.0f}: rate of the blocks, nearly the predicted one"] = near
        if at_mu and at_L:
            checks[f"{name}, L = {L:.0f}: V falls at every step near the minimizer"] = runs.falls(V) == V.size - 1
    lines += ["  * the matrices of the Hessian over the same window: errors 1e-5 to 1e-11", "  ** errors 1e-5 to 1e-8"]
    return Part("", "", checks, "\n".join(lines))


def draw_descents(error: plt.Axes, V: plt.Axes, descents: dict[str, Descent], num_steps: int) -> None:
    """Errors beside their linear predictions, and V."""
    for i, (name, (run, window, linear)) in enumerate(descents.items()):
        error.semilogy(run.errors[1 : num_steps + 1], label=name, linewidth=2.5, alpha=0.6)
        ahead = linear[: max(num_steps - window.start, 0)]
        error.semilogy(window.start - 1 + np.arange(ahead.size), ahead, "k--", linewidth=0.8)
        plot_signed(V, run.V[:num_steps], color=f"C{i}", linewidth=1)
    finish(error, "error; dashed: the blocks of the Hessian", ylabel="|x_k - x*|", ylim=(1e-13, 1e2))
    finish(V, "V (dotted: negative)", ylabel="|V_k|", ylim=(1e-26, 1e3))


def rosenbrock_function(w: Array) -> Array:
    """(1 - w_1)^2 + 100 (w_2 - w_1^2)^2."""
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def rosenbrock() -> Experiment:
    """Rosenbrock's function from the paper's start: the rates of the curvatures at the minimizer are met at the end."""
    spectrum = fo.hessian_spectrum(rosenbrock_function, jnp.ones(2))
    mu, L, start = float(spectrum.mu), float(spectrum.L), np.array([0.1, 3.0])
    methods = {
        "heavy ball (1e-4, 0.9)": fo.heavy_ball(1e-4, 0.9),
        "heavy ball (1e-4, 0.99)": fo.heavy_ball(1e-4, 0.99),
        "Nesterov, tuned": fo.optimal_nesterov(mu, L),
        "triple momentum, tuned": fo.triple_momentum(mu, L),
    }
    descents = descend(rosenbrock_function, np.ones(2), methods, start, 40_000)
    figure, axes = plt.subplot_mosaic([["path", "path"], ["error", "V"]], figsize=(9.5, 8), layout="constrained")
    draw_paths(axes["path"], descents)
    draw_descents(axes["error"], axes["V"], descents, 2500)
    head = f"curvatures at the minimizer: mu = {mu:.6g}, L = {L:.6g}, kappa = {L / mu:.4g}; start (0.1, 3) at rest"
    return assemble(figure, local_rates(head, descents, mu, L), *remarks(descents, mu, L, start))


def remarks(descents: dict[str, Descent], mu: float, L: float, start: np.ndarray) -> list[Part]:
    """The paper's step and momentum, the same step with a larger momentum, and the optimal parameters."""
    run, other = descents["heavy ball (1e-4, 0.9)"].run, descents["heavy ball (1e-4, 0.99)"].run
    rate, negative = float(fo.quadratic_rate(run.method, mu, L)), np.mean(run.V < 0)
    rising = np.flatnonzero(np.diff(other.V[: between(other.errors, 1e-8, 1e-5).stop]) >= 0)
    tuned = fo.optimal_heavy_ball(mu, L)
    far = runs.run({"": tuned}, Partial(jax.grad(rosenbrock_function)), start, 500)[""]
    peak = float(fo.transient_growth(fo.iteration_matrix(tuned, mu), 200).peak)
    return [
        Part(
            "Appendix: figure with (1e-4, 0.9), 500 iterations, no statement.",
            f"Converges at {rate:.6f} an iterate, {np.log(0.1) / np.log(rate):.0f} iterates a digit: after 500 the "
            f"distance is {run.errors[501]:.2g}, after 40000 {run.errors[-1]:.0e}. At mu the pair is real: no "
            f"certificate, and V is negative at {100 * negative:.0f} % of the iterates. With momentum 0.99 both pairs "
            f"are complex: V rises and falls on the way, and from iterate {rising[-1] + 1} on it falls at every step.",
            {"Rosenbrock: (1e-4, 0.9) is slow, V mostly negative": run.errors[501] > 0.1 and negative > 0.5},
        ),
        Part(
            "(optimal parameters for mu and L at the minimizer)",
            "Nesterov and triple momentum come in at their rates. The heavy ball overflows from this start; on the "
            f"quadratic alone its error can grow {peak:.0f}-fold at curvature mu.",
            {"Rosenbrock: the tuned heavy ball leaves": not np.all(np.isfinite(far.x))},
        ),
    ]


def draw_paths(ax: plt.Axes, descents: dict[str, Descent]) -> None:
    """The iterates in the plane over level lines."""
    grid = np.meshgrid(np.linspace(-2.2, 3.2, 300), np.linspace(-1.5, 9, 300))
    levels = ax.contour(*grid, np.log10(rosenbrock_function(jnp.stack(grid))), 12, colors="0.8", linewidths=0.7)
    ax.clabel(levels, fontsize=7, fmt="%.1f")
    for name, descent in descents.items():
        ax.plot(*descent.run.x[1:2501].T, ".-", markersize=2, linewidth=0.6, label=name)
    ax.plot(0.1, 3.0, "ko", label="start")
    ax.plot(1, 1, "k*", markersize=12, label="minimizer")
    labels = {"xlabel": "w_1", "ylabel": "w_2", "xlim": (-1.7, 3.2), "ylim": (-1.5, 9)}
    finish(ax, "Rosenbrock's function: level lines of log10 f", legend="upper left", **labels)


def exponential_function(x: Array) -> Array:
    """exp(|x|^2)."""
    return jnp.exp(x @ x)


def exponential() -> Experiment:
    """exp(|x|^2), whose curvatures have no bound: local rates, and from how far they are reached."""
    direction = np.array([2.0, 1.0]) / 5**0.5
    methods = {
        "heavy ball (0.01, 0.59)": fo.heavy_ball(0.01, 0.59),
        "Nesterov (0.01, 0.59)": fo.nesterov(0.01, 0.59),
        "heavy ball (0.01, 0.9)": fo.heavy_ball(0.01, 0.9),
        "heavy ball (0.1, 0.59)": fo.heavy_ball(0.1, 0.59),
    }
    spectrum = fo.hessian_spectrum(exponential_function, jnp.zeros(2))
    descents = descend(exponential_function, np.zeros(2), methods, direction, 1500)
    figure, axes = plt.subplot_mosaic([["error", "V"], ["reach", "reach"]], figsize=(9.5, 7), layout="constrained")
    draw_descents(axes["error"], axes["V"], descents, 600)
    axes["error"].legend(fontsize="small", loc="upper right")
    head = f"exp(|x|^2), d = 2: both curvatures at the minimizer are {spectrum.mu:g}; start at distance 1, at rest"
    negative = np.mean(descents["heavy ball (0.01, 0.59)"].run.V[:400] < 0)
    paper = Part(
        "Appendix: figure with (0.01, 0.59) for three methods, no statement.",
        "Converges at the predicted rate. The pair at the minimizer is real: V certifies nothing, and is negative at "
        f"{100 * negative:.0f} % of the first 400 iterates. The third method, triple momentum with beta = gamma, is "
        "Nesterov's. With momentum 0.9, or step 0.1, the pair is complex, and V falls at every step close by.",
        {"exp: with (0.01, 0.59) V is negative on the way": negative > 0.5},
    )
    rates = local_rates(head, descents, float(spectrum.mu), float(spectrum.L))
    return assemble(figure, rates, paper, reach(axes["reach"], methods, direction))


def reach(ax: plt.Axes, methods: dict[str, fo.StateSpace], direction: np.ndarray) -> Part:
    """From how far the iterates converge, and where the curvature passes the stability limit."""
    radii = np.linspace(0.02, 2.5, 249)
    largest_curvature = (2 + 4 * radii**2) * np.exp(radii**2)
    lines = ["                         curvature limit  exceeded from |x|  converges from |x_0| up to"]
    held = []
    for i, (name, method) in enumerate(methods.items()):
        many = dict.fromkeys(radii, method)
        found = runs.run(many, Partial(jax.grad(exponential_function)), radii[:, None] * direction, 600)
        errors = np.stack([run.errors[1:] for run in found.values()])
        arrived, limit = errors[:, -1] < 1e-6, float(fo.stability_limit(method))
        unstable = radii[np.argmax(largest_curvature > limit)]
        lines.append(f"{name:<25}{limit:15.1f}{unstable:19.2f}{radii[np.argmin(arrived) - 1]:16.2f}")
        held += [np.all(arrived[radii < unstable]), not arrived[-1]]
        needed = np.where(arrived, np.argmax(errors < 1e-6, axis=1), np.nan)
        ax.plot(radii, needed, ".-", markersize=3, linewidth=1, label=name)
        ax.axvline(unstable, color=f"C{i}", linestyle=":")
    labels = {"xlabel": "distance of the start |x_0|", "ylabel": "iterates", "xlim": (0, 2.7)}
    title = "iterates to |x_k| < 1e-6; dotted: where the curvature passes the stability limit"
    finish(ax, title, legend="center right", **labels)
    return Part(
        "(from how far)",
        "No step is stable on all of it: curvatures have no bound. Starts converge up to about the distance where the "
        "curvature passes the stability limit.",
        {"exp: starts within the stability limit converge, far ones do not": all(held)},
        "\n".join(lines),
    )
