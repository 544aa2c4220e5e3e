"""Strongly convex functions on which the heavy ball with optimal parameters cycles."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from matplotlib import pyplot as plt

import jaxnm.first_order as fo
from examples.gallery import runs
from examples.gallery.report import Experiment, Part, assemble, finish, plot_signed

MU, L = 0.01, 3.99
"""Curvatures of x^2 + (1.99 / 400) cos 20 x."""


def cosine_gradient(x: Array) -> Array:
    """Of x^2 + (1.99 / 400) cos 20 x."""
    return 2 * x - 1.99 / 20 * jnp.sin(20 * x)


def piecewise_gradient(x: Array) -> Array:
    """The piecewise linear gradient of Lessard, Recht and Packard, curvatures 1 and 25."""
    return jnp.where(x < 1, 25 * x, jnp.where(x < 2, x + 24, 25 * x - 24))


def cycles() -> Experiment:
    """Strongly convex functions on which the tuned heavy ball cycles, and what V does there."""
    methods = {
        "heavy ball, tuned": fo.optimal_heavy_ball(MU, L),
        "heavy ball (0.1, 0.9)": fo.heavy_ball(0.1, 0.9),
        "heavy ball (1/L, 0.5)": fo.heavy_ball(1 / L, 0.5),
        "Nesterov, tuned": fo.optimal_nesterov(MU, L),
        "triple momentum, tuned": fo.triple_momentum(MU, L),
    }
    far, near = (runs.run(methods, Partial(cosine_gradient), np.array([start]), 2000) for start in (3.3, 0.5))
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.5), layout="constrained")
    for name in list(methods)[:3]:
        axes[0, 0].semilogy(far[name].errors[1:401], label=name, linewidth=1)
        plot_signed(axes[0, 1], far[name].V[:400], linewidth=1)
    title = "x^2 + (1.99/400) cos 20x from 3.3"
    finish(axes[0, 0], title, legend="upper right", ylabel="|x_k|", ylim=(1e-4, 10))
    finish(axes[0, 1], "V (dotted: negative)", ylabel="|V_k|", ylim=(1e-10, 100))
    cycle = four_cycle(far["heavy ball, tuned"], near["heavy ball, tuned"], axes[1, 0])
    return assemble(figure, cycle, *convergent(far, near), three_cycle(axes[1, 1]))


def four_cycle(far: runs.Run, near: runs.Run, ax: plt.Axes) -> Part:
    """The cycle p, q, -p, -q of the tuned heavy ball: two equations, x_{k+2} = -x_k and x_{k+3} = -x_{k+1}."""
    ends = np.stack([far.x[-4:, 0], near.x[-4:, 0]])
    residual, points = np.max(np.abs(ends[:, 2:] + ends[:, :2])), np.sort(np.abs(ends[:, 2:]), axis=1)
    p, q = points[0]
    around = np.linalg.multi_dot(fo.iteration_matrix(far.method, 2 - 1.99 * np.cos(20 * ends[0]))[::-1])
    contraction, constant = float(fo.spectral_radius(around)), np.ptp(far.V[-400:]) < 1e-12
    ax.plot(far.x[20:-1, 0], far.x[21:, 0], ".", color="0.6", markersize=4, label="iterates from 20 on")
    ax.plot([p, q, -p, -q, p], [q, -p, -q, p, q], "C3o-", markersize=6, linewidth=0.8, label="the cycle")
    labels = {"xlabel": "x_k-1", "ylabel": "x_k", "xlim": (-0.35, 0.35), "ylim": (-0.35, 0.45)}
    finish(ax, "heavy ball, tuned: the cycle", legend="upper right", **labels)
    return Part(
        "The heavy ball with optimal parameters fails to converge.",
        f"From both starts it ends on the 4-cycle +-{p:.4f}, +-{q:.4f}, and solves its equations to {residual:.0e}; "
        f"once around contracts by {contraction:.3f} (momentum^2), so it attracts. There V stays {far.V[-1]:.4f}.",
        {
            "cosine: both runs end on one cycle": np.all(np.ptp(points, axis=0) < 1e-12) and residual < 1e-12,
            "cosine: it attracts, V is constant": constant and np.isclose(contraction, float(far.method.A[0, 1]) ** 2),
        },
    )


def convergent(far: runs.Runs, near: runs.Runs) -> list[Part]:
    """V where the iterates converge."""
    slow, other, triple = far["heavy ball (1/L, 0.5)"], near["heavy ball (0.1, 0.9)"], far["triple momentum, tuned"]
    V = other.V[:100]
    return [
        Part(
            "V is not a general-purpose Lyapunov function.",
            f"True. With step 1/L and momentum 0.5 the iterates converge and V is negative at {np.sum(slow.V < 0)} of "
            "2000 iterates: at x* the pair is real, the quadratic part of V vanishes along the way in, and terms of "
            f"higher order give the sign. Nesterov, tuned, ends at |x| = {far['Nesterov, tuned'].errors[-1]:.0e}, "
            f"triple momentum at {triple.errors[-1]:.0e} with V < 0 at {np.sum(triple.V < 0)} iterates.",
            {"cosine: (1/L, 0.5) converges, V < 0": slow.errors[-1] < 1e-6 and np.mean(slow.V < 0) > 0.9},
        ),
        Part(
            "With (0.1, 0.9): a figure, no statement.",
            f"It converges; V, plotted as max(V, 1e-9), rises at {99 - runs.falls(V)} of the first 99 steps from 0.5 "
            f"and is negative at {np.sum(V < 0)} of 100 iterates.",
            {"cosine: (0.1, 0.9) converges, V rises": other.errors[-1] < 1e-9 and runs.falls(V) < 99},
        ),
    ]


def three_cycle(ax: plt.Axes) -> Part:
    """The counterexample of Lessard, Recht and Packard: kappa = 25, step 1/9, momentum 4/9."""
    starts = np.array([3.07, 3.3, 3.46, 3.0, 3.5])
    methods = dict.fromkeys(starts, fo.optimal_heavy_ball(1.0, 25.0))
    found = runs.run(methods, Partial(piecewise_gradient), starts[:, None], 600)
    cycle = np.array([-2208, 792, 2592]) / 1225
    gap = max(np.max(np.abs(np.sort(found[start].x[-3:, 0]) - cycle)) for start in starts[:3])
    end = max(found[start].errors[-1] for start in starts[3:])
    rises = 1 - runs.falls(found[3.3].V[-301:]) / 300
    for start, style in ((3.3, "C0o-"), (3.0, "C2s-")):
        ax.plot(found[start].x[1:41, 0], style, markersize=3, linewidth=0.8, label=f"from {start:g}")
    for value, label in zip(cycle, ("792/1225, -2208/1225, 2592/1225", None, None), strict=True):
        ax.axhline(value, color="C3", linestyle="--", linewidth=0.8, label=label)
    title = "piecewise linear gradient, kappa = 25"
    finish(ax, title, legend="upper right", ylabel="x_k", ylim=(-4, 6))
    return Part(
        "(Lessard, Recht, Packard 2016: a 3-cycle of the tuned heavy ball, kappa = 25)",
        f"From 3.07, 3.3 and 3.46 the cycle is met to {gap:.0e}; from 3 and 3.5 the iterates end at {end:.0e}. On the "
        f"cycle V takes three values and rises at {100 * rises:.0f} % of the steps.",
        {"piecewise: three starts end on the 3-cycle, two at the minimizer": gap < 1e-12 and end < 1e-12},
    )
