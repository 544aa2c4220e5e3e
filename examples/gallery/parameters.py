"""Parameters that are not optimal: the region of step sizes and momenta where V certifies the rate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib import pyplot as plt

import jaxnm.first_order as fo
from examples.gallery import runs
from examples.gallery.report import Experiment, Part, assemble, finish, plot_signed, plot_slope
from jaxnm.plot.first_order import rate_map

L = 100.0
SPECTRA = {mu: np.linspace(mu, L, 5) for mu in (1.0, 0.1)}


def other_parameters() -> Experiment:
    """Parameters that are not optimal: where V certifies the rate, and where it falls and certifies nothing."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.8), layout="constrained")
    methods = {
        "heavy ball (0.01, 0.9)": fo.heavy_ball(0.01, 0.9),
        "Nesterov (0.01, 0.9)": fo.nesterov(0.01, 0.9),
        "triple (0.01, 0.89, 0.89)": fo.three_parameter(0.01, 0.89, 0.89),
        "NAG-GS (0.08, 0.94)": fo.gauss_seidel_nesterov(0.08, 0.94),
    }
    found = {mu: runs.run_quadratic(methods, curvatures, 2000) for mu, curvatures in SPECTRA.items()}
    for ax, mu in zip(axes[1], SPECTRA, strict=True):
        draw_heavy_ball(ax, found[mu]["heavy ball (0.01, 0.9)"], mu)
    tables = (runs.rate_table(found[mu], curvatures) for mu, curvatures in SPECTRA.items())
    parts = (two_methods(methods), no_certificate(found[0.1]["heavy ball (0.01, 0.9)"]), region(axes[0]))
    return assemble(figure, *tables, *parts)


def two_methods(methods: runs.Methods) -> Part:
    """Which of the methods are the same, and the block of Nesterov's at lambda = L, where alpha L = 1."""
    heavy_ball = fo.heavy_ball(0.08 * (1 - 0.94), 0.94**2)
    gap = runs.block_gap(methods["NAG-GS (0.08, 0.94)"], heavy_ball, np.linspace(0.0, L, 101))
    nilpotent = float(jnp.max(jnp.abs(fo.iteration_matrix(methods["Nesterov (0.01, 0.9)"], L)[0])))
    return Part(
        "Non-optimal parameters, mu = 1, L = 100: all four methods meet the condition of Theorem 2.",
        "They are two: triple momentum with gamma = beta is Nesterov's, and NAG-GS (a, b) is the heavy ball "
        f"(a (1 - b), b^2), here to {gap:.0e}. The heavy ball meets it strictly, Nesterov's only with equality at "
        f"lambda = L: with alpha L = 1 the block there is [[0, 0], [1, 0]] to {nilpotent:.0e}, which leaves what "
        "`valid` says to rounding, and V is semidefinite.",
        {"NAG-GS (a, b) is a heavy ball": gap < 1e-14, "Nesterov: equality at lambda = L": nilpotent < 1e-15},
    )


def no_certificate(run: runs.Run) -> Part:
    """The heavy ball with mu = 0.1: V falls, and says nothing on the error."""
    rate, rate_V = runs.predicted_rates(run.method, SPECTRA[0.1])
    certified = [bool(jnp.all(fo.schur_lyapunov(run.method, each).valid)) for each in SPECTRA.values()]
    return Part(
        "(the same parameters elsewhere)",
        "With mu = 0.1 the heavy ball has a real pair there. V still falls by the momentum 0.9 at all "
        f"{runs.falls(runs.clear_V(run))} steps, but the error has the rate {rate:.4f}, not {rate_V:.4f}: no "
        "certificate.",
        {"heavy ball: a certificate with mu = 1, none with mu = 0.1": certified == [True, False]},
    )


def region(axes: np.ndarray) -> Part:
    """Which parameters of the heavy ball meet the condition."""
    shares, agree = zip(*(map_of_certificates(ax, mu) for ax, mu in zip(axes, SPECTRA, strict=True)), strict=True)
    corner = [jnp.abs(margins(fo.optimal_heavy_ball(mu, L), np.array([mu, L]))) for mu in SPECTRA]
    return Part(
        "(which parameters meet the condition)",
        "For the heavy ball: |1 - sqrt(alpha lambda)| < sqrt(beta) at lambda = mu and L (hatched). Of the step sizes "
        f"and momenta of the maps that converge, {100 * shares[0]:.0f} % meet it with mu = 1 and "
        f"{100 * shares[1]:.0f} % with mu = 0.1; the optimum is the corner, where both hold with equality.",
        {
            "maps: the closed form is where schur_lyapunov is valid": all(agree),
            "the optimum is the corner of the region": np.max(corner) < 1e-12,
        },
    )


def margins(method: fo.StateSpace, ends: np.ndarray | Array) -> Array:
    """How far |1 - sqrt(alpha lambda)| is below sqrt(beta) for a heavy ball."""
    return jnp.sqrt(-method.A[0, 1]) - jnp.abs(1 - jnp.sqrt(-method.B[0] * ends))


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, None))
@partial(jax.vmap, in_axes=(0, None, None))
def on_grid(step: Array, momentum: Array, ends: Array) -> tuple[Array, Array, Array]:
    """Of a heavy ball on [mu, L]: whether V certifies its rate, whether it is stable, and the smaller margin."""
    method = fo.heavy_ball(step, momentum)
    valid = jnp.all(fo.schur_lyapunov(method, ends).valid)
    return valid, fo.is_stable(method, ends[0], ends[1]), jnp.min(margins(method, ends))


def map_of_certificates(ax: plt.Axes, mu: float) -> tuple[float, bool]:
    """Rate map of the heavy ball with the region of certificates; its share, and whether the closed form is right."""
    steps, momenta = np.geomspace(1e-3, 0.045, 150), np.linspace(0.3, 0.995, 120)
    valid, stable, margin = map(np.asarray, on_grid(steps, momenta, np.array([mu, L])))
    rate_map(fo.heavy_ball, steps, momenta, mu, L, ax=ax)
    with plt.rc_context({"hatch.color": "w", "hatch.linewidth": 0.6}):
        ax.contourf(steps, momenta, margin > 0, levels=[0.5, 1.5], colors="none", hatches=["//"])
    ax.contour(steps, momenta, margin, levels=[0.0], colors="w", linewidths=1)
    ax.plot(0.01, 0.9, "ro", markeredgecolor="k", label="(0.01, 0.9)")
    title = f"mu = {mu:g}, L = {L:g}; hatched: V certifies"
    finish(ax, title, legend="lower left", xlabel="step size", xscale="log")
    return float(np.sum(valid) / np.sum(stable)), bool(np.all(valid == (margin > 0)))


def draw_heavy_ball(ax: plt.Axes, run: runs.Run, mu: float) -> None:
    """Error and V of the heavy ball beside their predicted slopes."""
    squared, V, (rate, rate_V) = run.errors[1:-1] ** 2, run.V, runs.predicted_rates(run.method, SPECTRA[mu])
    ax.semilogy(squared, label="|x_k - x*|^2")
    plot_signed(ax, V, label="V_k")
    plot_slope(ax, 20 * squared[99], rate**2, 100, 300, "C0")
    plot_slope(ax, 0.05 * V[100], rate_V**2, 100, 300, "C1")
    finish(ax, f"heavy ball (0.01, 0.9), mu = {mu:g}, L = {L:g}", xlim=(0, 300), ylim=(1e-12, 1e6))
    ax.legend(fontsize="small", loc="lower left", title="dashed: predicted")
