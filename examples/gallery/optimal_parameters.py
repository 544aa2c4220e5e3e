"""The paper's quadratics with optimal parameters: where V has the rate of the error, and where it is blind."""

import numpy as np
from matplotlib import pyplot as plt

import jaxnm.first_order as fo
from examples.gallery import runs
from examples.gallery.report import Experiment, Part, assemble, finish, plot_slope

TEN = np.linspace(1.0, 20.0, 10)
"""The curvatures with kappa = 20 on which triple momentum is looked at closely."""
Q = 1 - 20.0**-0.5


def quadratics() -> Experiment:
    """The paper's quadratics with optimal parameters: the rates of the error and of V."""
    curvatures = np.linspace(0.01, 100.0, 107)
    methods = runs.tuned(0.01, 100.0) | {"gradient descent": fo.heavy_ball(2 / (0.01 + 100.0), 0.0)}
    found = runs.run_quadratic(methods, curvatures, 15_000)
    blind = runs.run_quadratic(runs.tuned(1.0, 20.0), TEN, 250)["triple momentum"]
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.5), layout="constrained")
    draw_errors_and_V(axes[0], found, curvatures)
    draw_V_of_triple_momentum(axes[1, 0], blind)
    draw_rates_of_triple_momentum(axes[1, 1], blind.method)
    parts = (other_quadratics(), starts(blind), blind_V(blind), same_method(found, curvatures), semidefinite_V())
    return assemble(figure, runs.rate_table(found, curvatures), *parts)


def other_quadratics() -> Part:
    """Whether V falls on the paper's other quadratics."""
    held = []
    for d, mu, L in ((100, 1, 20), (100, 1, 100), (200, 10, 20), (200, 1, 100), (500, 10, 20), (500, 1, 100)):
        found = runs.run_quadratic(runs.tuned(float(mu), float(L)), np.linspace(mu, L, d), 150)
        V = {name: runs.clear_V(run) for name, run in found.items()}
        held += [runs.falls(each) == each.size - 1 for each in V.values()]
        held += [each.size == 150 for name, each in V.items() if name != "triple momentum"]
    return Part(
        "Optimal parameters: V decreases monotonically for the heavy ball, Nesterov and NAG-GS.",
        "True above, and at each of 150 steps on the paper's quadratics of dimension 100 to 500. There V of triple "
        "momentum falls too, until it comes near its rounding.",
        {"other quadratics: V falls at every step": all(held)},
    )


def starts(blind: runs.Run) -> Part:
    """V of triple momentum from rest, and from a start between two real eigendirections."""
    a, b = np.asarray(fo.iteration_matrix(blind.method, TEN))[:, 0].T
    real = a**2 + 4 * b > 0
    start = np.where(real, runs.paper_start(10), 0.0)
    V = runs.run_quadratic({"": blind.method}, TEN, 12, start=start, before=2 * start / a)[""].V
    at_rest = -float(blind.method.B[0]) * TEN * runs.paper_start(10) ** 2
    return Part(
        "V works for triple momentum too (Figure 1), without a guarantee; it need not fall at every step.",
        "From rest it falls, down to rounding, and cannot do otherwise: every mode contributes alpha lambda x^2 > 0, "
        "and 0 <= det M < 1 whatever the eigenvalues. From a start between two real eigendirections (kappa = 20, "
        f"{np.sum(real)} of 10 modes) V starts at {V[0]:.3g} and rises at {11 - runs.falls(V)} of 11 steps.",
        {
            "triple momentum: at rest modes add alpha lambda x^2": np.allclose(runs.summands(blind.x)[0], at_rest),
            "triple momentum: from another start V is negative and rises": np.all(V < 0) and runs.falls(V) == 0,
        },
    )


def blind_V(blind: runs.Run) -> Part:
    """The rate of triple momentum, and the other one of V."""
    exact, noise = runs.exact_V(blind, TEN), runs.noise(blind)
    radii = np.asarray(fo.spectral_radius(fo.iteration_matrix(blind.method, TEN)))[[0, -1]]
    rate, rate_V = runs.fitted_rate(blind.errors[125:]), runs.fitted_rate(exact[125:]) ** 0.5
    return Part(
        "Rate of triple momentum: rho(M) = (1 - sqrt(mu/L))^(3/2) (Table 1).",
        f"At kappa = 20 that is {Q**1.5:.4f}, the rate of V^(1/2), here {rate_V:.4f}. The error has the rate "
        f"{rate:.4f} = 1 - sqrt(mu/L): the pairs at mu and L are real, of radius {radii[0]:.4f} and {radii[1]:.4f}; V "
        f"takes the geometric mean of a pair. From iterate {np.argmax(noise > blind.V)} on V is below eps |x_k|^2, "
        f"and the computed V is noise, negative at {np.sum(blind.V < 0)} of 250 iterates.",
        {
            "triple momentum: error 1 - sqrt(mu/L)": runs.is_rate(rate, Q) and np.allclose(radii, Q, rtol=1e-12),
            "triple momentum: V^(1/2) has the rate (1 - sqrt(mu/L))^(3/2)": runs.is_rate(rate_V, Q**1.5),
            "triple momentum: V obeys the identity until rounding": np.all(np.abs(blind.V - exact) < 10 * noise),
        },
    )


def same_method(found: runs.Runs, curvatures: np.ndarray) -> Part:
    """NAG-GS at its optimum is the optimal heavy ball."""
    one, other = found["NAG-GS"], found["heavy ball"]
    blocks = runs.block_gap(one.method, other.method, curvatures)
    V, squared_rate = np.stack([one.V, other.V])[:, :401], -float(other.method.A[0, 1])
    off_factor = np.max(np.abs(V[:, 1:] / V[:, :-1] / squared_rate - 1))
    return Part(
        "NAG-GS stands beside the heavy ball in the table of methods.",
        f"At its optimum it is the optimal heavy ball: at kappa = 1e4 the blocks agree to {blocks:.0e}. All blocks "
        f"have the same determinant: V_k+1 / V_k = rho^2 to {off_factor:.0e}.",
        {
            "NAG-GS is the optimal heavy ball": blocks < 1e-12,
            "V of the heavy ball and NAG-GS falls by exactly rho^2": off_factor < 1e-9,
        },
    )


def semidefinite_V() -> Part:
    """V along the eigendirection of the double eigenvalue of the heavy ball at mu."""
    method, start = fo.optimal_heavy_ball(1.0, 20.0), np.eye(10)[0]
    before = start / (float(fo.iteration_matrix(method, 1.0)[0, 0]) / 2)
    along = runs.run_quadratic({"": method}, TEN, 250, start=start, before=before)[""]
    largest = np.max(np.abs(along.V) / along.errors[1:-1] ** 2)
    return Part(
        "a^2 + 4b <= 0 makes V a Lyapunov function (Theorem 1).",
        "At equality, as at lambda = mu for the heavy ball, V is only semidefinite: along the eigendirection "
        f"|V_k| <= {largest:.0e} |x_k|^2 for all k, with x_k not zero.",
        {"V is zero along the eigendirection at equality": largest < 1e-14},
    )


def draw_errors_and_V(axes: np.ndarray, found: runs.Runs, curvatures: np.ndarray) -> None:
    """Errors and V on the first quadratic, with the predicted slopes."""
    dots = {"linestyle": "", "marker": "o", "markersize": 3, "markevery": 75}
    for i, (name, run) in enumerate(found.items()):
        style = {"label": name, "color": f"C{i}", "linewidth": 1.3} | (dots if name == "NAG-GS" else {})
        rate, rate_V = runs.predicted_rates(run.method, curvatures)
        for ax, k, values, shift, slope in ((axes[0], 0, run.errors[1:], 4, rate), (axes[1], 1, run.V, 30, rate_V**2)):
            if slope > 0:
                ax.semilogy(np.arange(k, 1500 + k), values[:1500], **style)
            if slope > 0 and name != "NAG-GS":
                plot_slope(ax, shift * values[600], slope, 600, 1500, f"C{i}")
    finish(axes[0], "error, d = 107, kappa = 10000", ylabel="|x_k - x*|", legend="lower left")
    finish(axes[1], "V; dashed: predicted slopes, shifted up", ylabel="V_k")


def draw_V_of_triple_momentum(ax: plt.Axes, blind: runs.Run) -> None:
    """Error and V, computed and without rounding."""
    ax.semilogy(blind.errors[1:-1] ** 2, label="|x_k - x*|^2", color="C2")
    ax.semilogy(runs.noise(blind), color="0.6", label="eps |x_k - x*|^2", linewidth=1)
    for sign, marker, name in ((1, "C3.", "V, computed"), (-1, "C1.", "-V where it is negative")):
        ax.semilogy(np.where(sign * blind.V > 0, sign * blind.V, np.nan), marker, markersize=4, label=name)
    ax.semilogy(runs.exact_V(blind, TEN), "k--", label="V by the identity", linewidth=1)
    finish(ax, "triple momentum, kappa = 20: V is blind", legend="upper right", xlim=(0, 200), ylim=(1e-60, 1e6))


def draw_rates_of_triple_momentum(ax: plt.Axes, method: fo.StateSpace) -> None:
    """Which rates the error and V have at each curvature."""
    curvatures = np.linspace(1.0, 20.0, 400)
    certificate = fo.schur_lyapunov(method, curvatures)
    ax.plot(curvatures, fo.spectral_radius(fo.iteration_matrix(method, curvatures)), "C2", label="spectral radius")
    ax.plot(curvatures, certificate.rate, "k--", label="sqrt(det M), the rate of V")
    for rate, name, place in ((Q, "1 - sqrt(mu/L)", 2), (Q**1.5, "(1 - sqrt(mu/L))^(3/2)", 4)):
        ax.axhline(rate, color="0.5", linewidth=0.8)
        ax.annotate(name, (place, rate), (0, 3), textcoords="offset points")
    ax.fill_between(curvatures, 0, 1, where=~np.asarray(certificate.valid), color="0.88", label="real pairs")
    labels = {"xlabel": "curvature", "ylabel": "rate an iterate", "ylim": (0, 0.95)}
    finish(ax, "triple momentum, kappa = 20", legend="lower left", **labels)
