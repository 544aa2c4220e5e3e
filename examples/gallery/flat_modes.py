"""Flat modes of a quadratic, and what float32 can see of V."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from matplotlib import pyplot as plt

import jaxnm.first_order as fo
from examples.gallery import runs
from examples.gallery.report import Experiment, Part, assemble, finish, plot_signed

FLAT = np.linspace(0.0, 1.0, 5)
WIDE = np.linspace(0.01, 100.0, 107)


def flat_modes_and_precision() -> Experiment:
    """A quadratic with mu = 0, where V vanishes and x* is not reached, and what float32 can see of V."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.5), layout="constrained")
    methods = {
        "heavy ball": fo.heavy_ball(0.1, 0.95),
        "Nesterov": fo.nesterov(0.1, 0.95),
        "triple momentum": fo.three_parameter(0.1, 0.95, 0.95),
        "NAG-GS": fo.gauss_seidel_nesterov(0.2, 0.95),
    }
    parts = (levels_with_flat_mode(methods, axes[0]), levels_at_optimum(axes[1, 0]), without_cancellation(axes[1, 1]))
    return assemble(figure, flat_summands(methods), *parts)


def flat_summands(methods: runs.Methods) -> Part:
    """The summand of V in the flat mode from a start that moves."""
    moving = runs.run_quadratic(methods, FLAT, 400, before=2 * runs.paper_start(5))
    factors = np.array([runs.fitted_rate(np.abs(runs.summands(run.x)[:60, 0])) for run in moving.values()])
    determinants = np.array([-float(method.A[0, 1]) for method in methods.values()])
    x = moving["heavy ball"].x[:, 0]
    return Part(
        "mu = 0: the summands of V in the flat modes do not decrease.",
        f"From rest they are 0: x does not move there. Otherwise the determinant is the factor: {factors[0]:.4f} "
        f"(momentum {determinants[0]:.4f}) for the heavy ball, started with x_-1 = 2 x_0, while x ends at "
        f"{abs(x[-1] / x[1]):.3g} |x_0|.",
        {"mu = 0: the determinant is the factor of the flat summand": np.allclose(factors, determinants, rtol=1e-6)},
    )


def run_full(methods: runs.Methods, curvatures: np.ndarray, dtype: Any) -> runs.Runs:
    """2000 iterates with a full Hessian and a random minimizer, as in the paper; x holds deviations in the modes."""
    d, random = curvatures.size, np.random.default_rng(1)
    basis, minimizer = np.linalg.qr(random.standard_normal((d, d)))[0], random.standard_normal(d)
    gradient = Partial(runs.full_gradient, (basis * curvatures) @ basis.T, minimizer)
    found = runs.run(methods, gradient, runs.paper_start(d), 2000, x_star=minimizer, dtype=dtype)
    minimizer = minimizer.astype(dtype).astype(np.float64)
    return {name: run._replace(x=(run.x - minimizer) @ basis) for name, run in found.items()}


def levels(methods: runs.Methods, curvatures: np.ndarray, first: int) -> tuple[runs.Runs, runs.Runs, np.ndarray, str]:
    """Runs in float64, runs in float32, the levels of V [3, methods] from iterate `first` on, and a table of them."""
    found, found32 = (run_full(methods, curvatures, dtype) for dtype in (np.float64, np.float32))
    V = [(found[name].V, run.V, runs.casoratians(run.x, 0 * curvatures)) for name, run in found32.items()]
    level = np.sqrt(np.mean(np.array(V)[..., first : first + 500] ** 2, axis=-1))
    lines = [
        f"d = {curvatures.size}, mu = {curvatures[0]:g}, L = {curvatures[-1]:g}, full Hessian, minimizer N(0, 1):",
        f"root mean square of V over iterates {first} to {first + 500}",
        "                  in float64 in float32   its iterates, V in float64   V < 0 in float32",
    ]
    for i, (name, run) in enumerate(found32.items()):
        row, negative = "{:9.0e}{:11.0e}{:20.0e}".format(*level[i]), 100 * np.mean(run.V < 0)
        lines.append(f"{name:<18}{row}{negative:20.0f} %")
    return found, found32, level.T, "\n".join(lines)


def levels_with_flat_mode(methods: runs.Methods, axes: np.ndarray) -> Part:
    """The paper's convex quadratic with its parameters, longer, in both dtypes."""
    found, found32, (in64, in32, _), table = levels(methods, FLAT, 700)
    run, run32 = found["heavy ball"], found32["heavy ball"]
    draw_distances(axes[0], run)
    draw_level(axes[1], run, run32)
    units = np.array([in64 / runs.noise(run)[-1], in32 / runs.noise(run32)[-1]])
    ends = np.stack([each.x[-1] for each in found.values()])
    return Part(
        "V decreases almost linearly to some level, then oscillates.",
        "The level is rounding: V is a difference of numbers of size |x_k - x*|^2, which stays at "
        f"{run.errors[-1] ** 2:.3g}, and the level is {units.min():.1f} to {units.max():.1f} eps times that; in exact "
        "arithmetic there is none. V -> 0 says that the iterates come to rest, not that they are at x*.",
        {
            "mu = 0: the flat part of the error stays": np.allclose(ends[:, 0], run.x[0, 0], rtol=1e-9),
            "mu = 0: the distance to the minimizers vanishes": np.all(np.abs(ends[:, 1:]) < 1e-10),
            "mu = 0: V stays at 0.1 to 10 eps |x_k - x*|^2": np.all((units > 0.1) & (units < 10)),
            "mu = 0: V in float32 is negative at some iterates": all(np.any(each.V < 0) for each in found32.values()),
        },
        table,
    )


def draw_distances(ax: plt.Axes, run: runs.Run) -> None:
    """Distances of the heavy ball."""
    ax.semilogy(run.errors, label="|x_k - x*|")
    ax.semilogy(np.abs(run.x[:, 0]), "--", label="  its part in the flat mode")
    ax.semilogy(np.linalg.norm(run.x[:, 1:], axis=1), label="distance to the minimizers")
    finish(ax, "heavy ball (0.1, 0.95), mu = 0", legend="lower left", ylabel="distance", xlim=(0, 1200))


def draw_level(ax: plt.Axes, run: runs.Run, run32: runs.Run) -> None:
    """V of the heavy ball in two dtypes down to its noise."""
    for each, color, label in ((run32, "C1.", None), (run, "C0.", "V < 0, modulus")):
        V, noise, style = each.V, runs.noise(each)[-1], {"fontsize": "small", "ha": "right"}
        ax.semilogy(np.where(V > 0, V, np.nan), color, markersize=3, label=f"V in {V.dtype}")
        ax.semilogy(np.where(V < 0, -V, np.nan), "C3.", markersize=3, label=label)
        ax.axhline(noise, color="0.6", linewidth=0.8, zorder=0)
        ax.annotate("eps |x_k - x*|^2", (1190, noise), (0, 10), textcoords="offset points", **style)
    ax.semilogy(runs.exact_V(run, FLAT), "k--", linewidth=1, label="V by the identity")
    limits = {"xlim": (0, 1200), "ylim": (1e-18, 1e5)}
    finish(ax, "V falls to eps |x_k - x*|^2, and is noise there", legend="upper right", ylabel="|V_k|", **limits)


def levels_at_optimum(ax: plt.Axes) -> Part:
    """How far V falls on the paper's first quadratic in each dtype, and where the paper's plots end."""
    found, found32, (in64, in32, same_iterates), table = levels(runs.tuned(0.01, 100.0), WIDE, 1500)
    plot_signed(ax, found32["heavy ball"].V, label="heavy ball, float32", color="C1", linewidth=1)
    plot_signed(ax, found32["Nesterov"].V, label="Nesterov, float32", color="C2", linewidth=1)
    ax.semilogy(found["heavy ball"].V, color="C0", label="heavy ball, float64", linewidth=1)
    ax.axhline(1e-9, color="k", linestyle="--", linewidth=1, label="the notebook's max(V, 1e-9)")
    finish(ax, "d = 107, kappa = 10000, full Hessian", legend="upper right", ylabel="V_k (dotted: negative)")
    return Part(
        "The tolerance of measuring V is 1e-9, hence the plateau there.",
        "The published notebook plots max(V, 1e-9): that is the plateau, and it hides negative values. Without it "
        f"float32 reaches {in32.min():.0e} to {in32.max():.0e}, where the rounding of the iterates stops it: V of the "
        f"same iterates in float64 is as large. Float64 reaches {in64.max():.0e} or less.",
        {
            "kappa = 1e4: float32 falls below the paper's 1e-9": np.all(in32 < 1e-9),
            "kappa = 1e4: the iterates set the level in float32": np.allclose(same_iterates, in32, rtol=0.1, atol=0),
        },
        table,
    )


def without_cancellation(ax: plt.Axes) -> Part:
    """Two formulas for V in float32 along the same iterates."""
    V, errors = two_formulas(fo.optimal_nesterov(0.01, 100.0), WIDE)
    rises, medians = [1499 - runs.falls(each) for each in V], np.median(errors, axis=1)
    _, flat_errors = two_formulas(fo.heavy_ball(0.1, 0.95), FLAT)
    lost, kept = np.argmax(flat_errors[0] > 0.1), np.max(flat_errors[1])
    ax.semilogy(errors[0], color="C1", linewidth=0.8, label="|x_{k-1}|^2 - <x_k, x_{k-2}>")
    ax.semilogy(errors[1], color="C0", linewidth=0.8, label="sums of squares, mode by mode")
    labels = {"ylabel": "relative error", "ylim": (1e-7, 10)}
    finish(ax, "Nesterov, kappa = 10000, V in float32", legend="upper left", **labels)
    return Part(
        "(nothing on the formula in floating point)",
        "Where the spectrum is known, |x_{k-1} - s x_{k-2}|^2 per mode is V without the difference. In float32, "
        f"Nesterov, kappa = 1e4: the difference rises at {rises[0]} of 1499 steps, the squares at {rises[1]}; median "
        f"relative error {medians[0]:.0e} and {medians[1]:.0e}. With mu = 0 (heavy ball 0.1, 0.95) the difference is "
        f"wrong by 10 % at iterate {lost}; the squares are right to {kept:.0e} at all 1500.",
        {
            "float32: the difference rises, the sum of squares never": rises[0] > 100 and rises[1] == 0,
            "mu = 0, float32: V is right without the difference": lost < 500 and kept < 0.01,
        },
    )


def two_formulas(method: fo.StateSpace, curvatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V of 1500 iterates in float32 by the difference and by the squares, and relative errors, both [2, steps]."""
    run = runs.run_quadratic({"": method}, curvatures, 1500)[""]
    run32 = runs.run_quadratic({"": method}, curvatures, 1500, dtype=np.float32)[""]
    V = np.stack([run32.V, factored_casoratian(run32.x, method, curvatures)])
    return V, np.abs(V / runs.exact_V(run, curvatures) - 1)


@jax.jit
def factored_casoratian(x: Array, method: fo.StateSpace, curvatures: Array) -> Array:
    """[steps]: V of deviations [steps + 2, d] in the modes of the Hessian, without the difference.

    With the eigenvalues s and t of its block a mode contributes (x_{k-1} - s x_{k-2}) (x_{k-1} - t x_{k-2}).
    """
    a, b = fo.iteration_matrix(method, curvatures)[:, 0].T
    far = 1 - a / 2 + jnp.sqrt((a / 2) ** 2 + b + 0j)
    # (1 - s) (1 - t) = 1 - a - b is proportional to the curvature, since A alone has the eigenvalue 1
    near = -curvatures * method.B[0] * (method.C[0] + method.C[1]) / far
    far, near, change, last = far.astype(jnp.complex64), near.astype(jnp.complex64), x[1:-1] - x[:-2], x[:-2]
    return jnp.sum(((change + near * last) * (change + far * last)).real, axis=-1)
