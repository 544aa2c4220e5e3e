"""What rate will my optimizer have? Predictions from the Hessian beside runs of the optax optimizers on real data.

The loss is an l2-regularized logistic regression. `analyze` predicts from the Hessian at its minimizer; then the same
optax optimizer runs on the loss itself, from zero, and everything that was predicted is measured on that run or on one
that starts near the minimizer.
"""

import textwrap
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import jaxnm.first_order as fo
from examples.problems import REGULARIZATION, Problem, breast_cancer, handwritten_digits, minimize
from jaxnm.plot.first_order import eigenvalue_disc, error_envelope, rate_map

NEAR = 1e-6
"""Distance from the minimizer at which runs start that test the linear theory."""
WINDOW = (1e-7, 3e-13)
"""The rate is fitted where the distance to the minimizer, relative to its norm, is between these two."""
MARGIN = 0.02
"""How far below and above the learning-rate limit it is tested."""
NUM_SECTIONS = 14
HOW_TO_READ = """\
Near its minimizer a smooth loss is a quadratic, and an optimizer that is affine in the gradient is a small matrix for
each curvature (eigenvalue of the Hessian). Each card first says what `analyze` predicts from these matrices; below
"observed" stands what the optax optimizer did on the loss itself.
  rate           factor of |x_k - x*| an iterate; observed: fitted to the run from w = 0 before it reaches rounding
  less predicted the difference in iterates a digit (a factor ten)
  blocks there   the same difference when the matrices are stepped over the same iterates: how far the slope there is
                 from its limit, whatever the loss"""

Factory = Callable[[Any], optax.GradientTransformation]
Section = tuple[str, dict[str, bool]]


class Comparison(NamedTuple):
    """What was predicted for an optimizer, and what its runs showed."""

    analysis: fo.Analysis
    deviations: Array
    """[num_steps + 1, n, d]: parameters and optimizer state of the run from zero, less their limit."""
    window: slice
    """The iterates over which the rates are fitted."""
    observed: float
    """Rate of the run in that window."""
    blocks: float
    """Rate of the iteration blocks in that window, from the same state: not yet asymptotic, but linear."""
    growth: float
    """Largest growth from the start for which the theory predicts the most."""
    kreiss: fo.CertifiedMaximum
    """Kreiss constant of the block with the largest predicted growth."""
    limit: float
    """Predicted learning-rate limit."""
    below: tuple[float, float]
    """Just below the limit: the predicted rate, and the last distance of a run in units of its first."""
    above: tuple[float, float]
    """The same just above the limit."""
    casoratian: Array
    """[steps]: the Lyapunov function V in the window; empty unless n = 2."""


def sections(folder: Path) -> Iterator[Section]:
    """The parts of the chapter, one at a time: a text and the checks made on the way. Pictures go to `folder`."""
    problem = main_problem()
    text, held = introduction(problem)
    yield f"{HOW_TO_READ}\n\n{text}", held
    comparisons = {}
    for name in tuned_to(problem.spectrum):
        comparisons[name] = main_comparison(name)
        yield card(comparisons[name]), checks(comparisons[name])
    yield without_rate()
    yield learning_rates(problem, folder / "learning_rates.png")
    digits = minimize(*handwritten_digits(), num_steps=500)
    yield introduction(digits)
    factory, learning_rate = tuned_to(digits.spectrum)["Nesterov, tuned"]
    on_digits = compare(digits, "digits, Nesterov, tuned", factory, learning_rate)
    yield card(on_digits), checks(on_digits)
    yield pictures(problem, comparisons, folder), {}
    yield summary(comparisons | {"digits, Nesterov, tuned": on_digits}), {}


@cache
def main_problem() -> Problem:
    """The problem on which all optimizers run; the next chapter has it too."""
    return minimize(*breast_cancer(), num_steps=1500)


@cache
def main_comparison(name: str) -> Comparison:
    """One of the optimizers on it."""
    return compare(main_problem(), name, *tuned_to(main_problem().spectrum)[name])


def introduction(problem: Problem) -> Section:
    """What is minimized, how well, and its curvatures."""
    p, mu, L = problem, float(problem.spectrum.mu), float(problem.spectrum.L)
    lines = [
        f"Logistic regression on {p.data}, {p.solution.size} parameters, l2 regularization {REGULARIZATION}",
        f"  minimizer by Newton's method, gradient {p.gradient:.1e}",
        f"  curvatures there: mu = {mu:.6g}, L = {L:.4g}, kappa = {L / mu:.4g}",
        f"  the runs start at w = 0, where the largest curvature is {p.curvature_at_zero:.4g}",
    ]
    return "\n".join(lines), {
        f"{p.data}: the gradient vanishes": p.gradient < 1e-14,
        f"{p.data}: mu is at least the regularization": mu >= REGULARIZATION * (1 - 1e-12),
    }


def tuned_to(spectrum: fo.Spectrum) -> dict[str, tuple[Factory, float]]:
    """The optimizers for these curvatures."""
    return optimizers(float(spectrum.mu), float(spectrum.L))


def optimizers(mu: float, L: float) -> dict[str, tuple[Factory, float]]:
    """Name to (learning rate to optax transformation, learning rate), for curvatures from mu to L."""
    momentum = (L**0.5 - mu**0.5) / (L**0.5 + mu**0.5)
    chain = lambda rate: optax.chain(optax.trace(0.5), optax.trace(0.3), optax.scale(-rate))
    average = lambda rate: optax.chain(optax.ema(0.7, debias=False), optax.scale(-rate))
    return {
        "gradient descent": (optax.sgd, 2 / (mu + L)),
        "heavy ball, tuned": (partial(optax.sgd, momentum=momentum**2), 4 / (mu**0.5 + L**0.5) ** 2),
        "heavy ball, momentum 0.9": (partial(optax.sgd, momentum=0.9), 1.0),
        "Nesterov, tuned": (partial(optax.sgd, momentum=momentum, nesterov=True), 1 / L),
        "averaged gradient, 0.7": (average, 3 / L),
        "optimistic gradient": (optax.optimistic_gradient_descent, 0.5 / L),
        "two traces, 0.5 and 0.3": (chain, 0.5 / L),
    }


# ---------------------------------------------------------------------------------------------------- runs


def runner(problem: Problem, factory: Factory) -> Callable[..., Array]:
    """(learning rate, parameters, optimizer state) to [num_steps + 1, n, d]: the run of an optax optimizer.

    The first of the n states are the parameters, the others those of the optimizer, in the order of `from_optax`.
    """

    def states(params: Any, state: Any) -> Array:
        others = [leaf for leaf in jax.tree.leaves(state) if jnp.shape(leaf) == params.shape]
        return jnp.stack([leaf.ravel() for leaf in (params, *others)])

    @jax.jit
    def run(learning_rate: Array, params: Array, state: Any) -> Array:
        optimizer = factory(learning_rate)

        def step(carry: Any, _: None) -> tuple[Any, Array]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(problem.loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), states(params, state)

        _, history = jax.lax.scan(step, (params, state), length=problem.num_steps)
        return jnp.concatenate([states(params, state)[None], history])

    return run


def optimizer_state(optimizer: optax.GradientTransformation, params: Array, states: Array) -> Any:
    """The optimizer's state after its first step, which some treat apart, with `states` [n - 1, d] put into it."""
    _, state = optimizer.update(jnp.zeros_like(params), optimizer.init(params), params)
    values = iter(states)
    put = lambda leaf: next(values).reshape(params.shape) if jnp.shape(leaf) == params.shape else leaf
    return jax.tree.map(put, state)


@partial(jax.jit, static_argnames="num_steps")
def follow(blocks: Array, deviation: Array, num_steps: int) -> Array:
    """[num_steps + 1, n, d]: powers of the blocks [d, n, n] on a deviation [n, d] in the modes of the Hessian."""

    def step(z: Array, _: None) -> tuple[Array, Array]:
        return jnp.einsum("dij,jd->id", blocks, z), z

    return jax.lax.scan(step, deviation, length=num_steps + 1)[1]


def late_window(distances: np.ndarray, scale: float) -> slice:
    """From the last distance above the first bound of WINDOW to the first below the second."""
    relative = distances / scale
    first = np.flatnonzero(relative > WINDOW[0])[-1]
    below = np.flatnonzero(relative[first:] < WINDOW[1])
    return slice(first, first + below[0] if below.size else relative.size)


def fitted_rate(distances: np.ndarray) -> float:
    """Factor an iterate: the slope of the logarithm over all the distances given; NaN if they are too few."""
    if distances.size < 10 or not np.all(distances > 0):
        return np.nan
    return float(np.exp(np.polyfit(np.arange(distances.size), np.log(distances), 1)[0]))


def compare(problem: Problem, name: str, factory: Factory, learning_rate: float) -> Comparison:
    """Predict, run, measure."""
    analysis = fo.analyze(factory(learning_rate), problem.spectrum, name=f"{name}: learning rate {learning_rate:.4g}")
    n, solution = analysis.method.num_states, problem.solution
    limit_point = jnp.zeros((n, solution.size)).at[0].set(solution.ravel())
    run = runner(problem, factory)

    # the run that counts: from zero, as optax starts it
    start = jnp.zeros_like(solution)
    # the method has the states of optax times these factors
    to_method = np.asarray(fo.from_optax(factory(learning_rate)).state_units)
    deviations = run(learning_rate, start, factory(learning_rate).init(start)) - limit_point
    deviations = to_method[:, None] * deviations
    distances = np.linalg.norm(deviations[:, 0], axis=-1)
    window = late_window(distances, float(jnp.linalg.norm(solution)))
    blocks = fo.iteration_matrix(analysis.method, problem.spectrum.eigenvalues)
    linear = follow(blocks, deviations[window.start] @ problem.modes, problem.num_steps)
    linear_distances = np.linalg.norm(linear[: window.stop - window.start, 0], axis=-1)

    # near the minimizer, in the direction and with the optimizer state that grow most
    worst = int(jnp.argmin(jnp.abs(problem.spectrum.eigenvalues - analysis.transient_curvature)))
    units = np.asarray(analysis.state_units)  # states that hold gradients, in units of the parameters
    block = np.asarray(blocks[worst]) * units[:, None] / units
    from_run = units * to_method
    largest_growth = np.linalg.svd(np.linalg.matrix_power(block, int(analysis.transient_index)))[2][0]

    # and along the largest curvature, at learning rates on both sides of the limit
    limit = learning_rate * float(analysis.stability_limit / problem.spectrum.L)
    at_rest = np.eye(n)[0]

    def run_near(learning_rate: float, states: np.ndarray, mode: int) -> np.ndarray:
        """Norms of the deviation, in units of the first, from `states` [n] along an eigenvector of the Hessian."""
        deviation = NEAR * jnp.outer(states / from_run, problem.modes[:, mode])
        params = solution + deviation[0].reshape(solution.shape)
        state = optimizer_state(factory(learning_rate), params, deviation[1:])
        deviations = from_run[:, None] * (run(learning_rate, params, state) - limit_point)
        return np.linalg.norm(deviations, axis=(-2, -1)) / NEAR

    def rate_at(share: float) -> float:
        """Predicted rate at this share of the limit: only learning rate times curvature counts."""
        return float(fo.spectral_radius(fo.iteration_matrix(analysis.method, share * analysis.stability_limit)))

    x = deviations[window, 0]
    casoratian = jax.vmap(fo.casoratian, (0, 0, 0, None))(x[:-2], x[1:-1], x[2:], jnp.zeros_like(x[0]))
    return Comparison(
        analysis=analysis,
        deviations=jnp.asarray(deviations),
        window=window,
        observed=fitted_rate(distances[window]),
        blocks=fitted_rate(linear_distances),
        growth=float(run_near(learning_rate, largest_growth, worst).max()),
        kreiss=fo.kreiss_constant(block),
        limit=limit,
        below=(rate_at(1 - MARGIN), float(run_near((1 - MARGIN) * limit, at_rest, -1)[-1])),
        above=(rate_at(1 + MARGIN), float(run_near((1 + MARGIN) * limit, at_rest, -1)[-1])),
        casoratian=casoratian if n == 2 else casoratian[:0],
    )


# ------------------------------------------------------------------------------------------------- reports


def iterates_a_digit(rate: Any) -> Any:
    """How many iterates divide the error by ten."""
    return np.log(0.1) / np.log(rate)


def difference(comparison: Comparison) -> float:
    """Iterates a digit, observed against predicted, as a fraction."""
    return float(iterates_a_digit(comparison.observed) / iterates_a_digit(comparison.analysis.rate) - 1)


def checks(comparison: Comparison) -> dict[str, bool]:
    """Whether what was predicted was observed."""
    c, a = comparison, comparison.analysis
    digits = iterates_a_digit(np.array([c.observed, c.blocks]))
    held = {
        "observed rate = predicted rate within 5 % of the iterates a digit": abs(difference(c)) < 0.05,
        "observed rate = rate of the blocks in the same window within 0.5 %": abs(digits[0] / digits[1] - 1) < 0.005,
        "observed growth = predicted growth within 0.5 %": abs(c.growth / float(a.transient_peak) - 1) < 0.005,
        "growth lies between the Kreiss constant and its bound": float(c.kreiss.value) * (1 - 1e-6)
        <= float(a.transient_peak)
        <= kreiss_bound(c),
        "approaches just below the learning-rate limit": c.below[1] < 0.1,
        "leaves just above the learning-rate limit": c.above[1] > 10,
    }
    if a.schur_valid and c.casoratian.size:
        held["the Casoratian falls at every iterate"] = bool(jnp.all(jnp.diff(c.casoratian) < 0))
    return {f"{a.name}: {what}": bool(holds) for what, holds in held.items()}


def kreiss_bound(comparison: Comparison) -> float:
    """Upper bound of the growth by the Kreiss matrix theorem, e n K."""
    return float(np.e * comparison.analysis.method.num_states * comparison.kreiss.upper_bound)


def card(comparison: Comparison) -> str:
    """The card of `analyze`, then what was observed."""
    c, a = comparison, comparison.analysis
    first, last = c.window.start, c.window.stop - 1
    blocks = iterates_a_digit(c.blocks) / iterates_a_digit(a.rate) - 1
    lines = [
        ("observed rate", f"{c.observed:.6f} ({iterates_a_digit(c.observed):.4g} iterates a digit)"),
        (
            "  less predicted",
            f"{100 * difference(c):+.2f} % in iterates a digit, fitted over iterates {first} to {last}",
        ),
        ("  blocks there", f"{100 * blocks:+.2f} %{explanation(c)}"),
        ("observed growth", f"{c.growth:.4g} from the worst state {NEAR:g} away (predicted {a.transient_peak:.4g})"),
        ("Kreiss constant", f"K = {c.kreiss.value:.4g}, so the growth is between K and e n K = {kreiss_bound(c):.4g}"),
        ("observed Lyapunov", lyapunov(c)),
        ("learning-rate limit", f"{c.limit:.4g}; {c.deviations.shape[0] - 1} steps from {NEAR:g} away:"),
        (f"  at {1 - MARGIN:g} of it", f"predicted rate {c.below[0]:.4f}, observed distance {c.below[1] * NEAR:.1e}"),
        (f"  at {1 + MARGIN:g} of it", f"predicted rate {c.above[0]:.4f}, observed distance {c.above[1] * NEAR:.1e}"),
    ]
    return "\n".join([str(a), *(f"  {label:<21}{text}" for label, text in lines)])


def explanation(comparison: Comparison) -> str:
    """Why the slope in the window is not yet the asymptotic one: the linear blocks have the same slope there."""
    if abs(difference(comparison)) < 0.01:
        return ""
    if difference(comparison) > 0 and comparison.analysis.eigen_slack > 0:
        return ": a double eigenvalue, so the error goes like k rate^k"
    return ": modes of nearly the worst curvature still fade"


def lyapunov(comparison: Comparison) -> str:
    """What the Lyapunov function V of the Schur form does on the run."""
    a, V = comparison.analysis, np.asarray(comparison.casoratian)
    if a.method.num_states == 1:
        return "one state: it is the squared distance"
    if V.size == 0:
        return "none of this kind for three states"
    falls = f"V falls at {int(np.sum(np.diff(V) < 0))} of {V.size - 1} iterates"
    if a.schur_fraction == 0:
        return f"{falls}: none, as predicted"
    return f"{falls}, by {np.exp(np.mean(np.diff(np.log(np.abs(V))))):.4f} each (rate^2 = {a.rate**2:.4f})"


def without_rate() -> Section:
    """What `from_optax` says to methods that have no iteration matrix, or not always the same one."""
    try:
        fo.from_optax(optax.adam(0.01))
        message = ""
    except ValueError as error:
        message = str(error)
    scheduled = fo.from_optax(optax.sgd(optax.cosine_decay_schedule(1.0, 1000)))
    lines = [
        "Not every optimizer has such a rate",
        "  optax.adam(0.01) is refused, ValueError:",
        textwrap.fill(message, 96, initial_indent="    ", subsequent_indent="    "),
        f"  optax.sgd(cosine_decay_schedule(1.0, 1000)) comes back with time_varying = {scheduled.time_varying}",
    ]
    return "\n".join(lines), {
        "adam is refused": "not affine" in message,
        "a schedule is time-varying": bool(scheduled.time_varying),
    }


def learning_rates(problem: Problem, path: Path) -> Section:
    """A grid of learning rates in one call, and as many runs in another."""
    factory = partial(optax.sgd, momentum=0.5)
    mu, L = problem.spectrum.mu, problem.spectrum.L
    limit = float(fo.stability_limit(fo.heavy_ball(1.0, 0.5)) / L)
    grid = limit * jnp.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.96, 0.99, 1.01, 1.03])
    analyses = fo.analyze_learning_rates(factory, grid, problem.spectrum, name="heavy ball, momentum 0.5, a grid")
    start = jnp.zeros_like(problem.solution)
    runs = jax.vmap(runner(problem, factory), (0, None, None))(grid, start, factory(1.0).init(start))
    distances = np.linalg.norm(runs[:, :, 0] - problem.solution, axis=-1)
    scale = float(jnp.linalg.norm(problem.solution))
    observed = np.array([fitted_rate(row[late_window(row, scale)]) for row in distances])
    converged = distances[:, -1] < WINDOW[0] * scale

    fine = jnp.linspace(0.01, 1.05, 500) * limit
    figure, ax = plt.subplots(layout="constrained")
    rates = jax.vmap(lambda rate: fo.quadratic_rate(fo.heavy_ball(rate, 0.5), mu, L))(fine)
    ax.plot(fine, rates, label="predicted, every curvature in [mu, L]")
    ax.plot(grid[converged], observed[converged], "o", color="C1", label="observed, runs from w = 0")
    ax.plot(grid[~converged], analyses.rate[~converged], "rx", label="runs that do not converge")
    ax.axvline(limit, color="k", linestyle=":", label=f"learning-rate limit {limit:.4g}")
    ax.axhline(1, color="k", linewidth=0.8)
    ax.set(xlabel="learning rate", ylabel="rate per iterate", title="optax.sgd, momentum 0.5, on breast cancer")
    ax.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)

    digits = iterates_a_digit(observed[converged]) / iterates_a_digit(np.asarray(analyses.rate)[converged])
    error = float(np.max(np.abs(digits - 1)))
    text = (
        f"{analyses}\n  OBSERVED: converges at {converged.sum()} of {grid.size}; there, iterates a digit within "
        f"{100 * error:.1f} % of the prediction"
    )
    return text, {
        "learning rates: convergence exactly where predicted": bool(np.all(converged == (analyses.rate < 1))),
        "learning rates: observed = predicted within 10 % of the iterates a digit": error < 0.1,
    }


def summary(comparisons: dict[str, Comparison]) -> str:
    """One row an optimizer."""
    pair = f"{'predicted':>11} {'observed':>9}"
    lines = [
        f"{'Summary':<25}{'rate per iterate':>21}{'iterates a digit':>21}{'':9}{'transient growth':>21}",
        f"{'':<25}{pair}{pair}{'':9}{pair}",
    ]
    for name, c in comparisons.items():
        a = c.analysis
        lines.append(
            f"{name:<25}{a.rate:>11.5f} {c.observed:>9.5f}"
            f"{iterates_a_digit(a.rate):>11.2f} {iterates_a_digit(c.observed):>9.2f} {100 * difference(c):>+6.2f} %"
            f"{a.transient_peak:>11.3f} {c.growth:>9.3f}"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ pictures


def pictures(problem: Problem, comparisons: dict[str, Comparison], folder: Path) -> str:
    """Draw them; the text says where they are."""
    mu, L = float(problem.spectrum.mu), float(problem.spectrum.L)
    drawn = {
        "runs.png": draw_runs(comparisons),
        "rate_map.png": draw_rate_map(mu, L, comparisons),
        "eigenvalues.png": draw_eigenvalues(problem, comparisons),
        "envelope.png": draw_envelopes(problem, comparisons),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)
    return "\n".join(["Pictures", *(f"  {folder / name}" for name in ("learning_rates.png", *drawn))])


def draw_runs(comparisons: dict[str, Comparison]) -> Figure:
    """Distances of the runs from zero, and the predicted slopes."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, c in comparisons.items():
        distances = np.linalg.norm(c.deviations[:, 0], axis=-1)[: c.window.stop + 1]
        (line,) = ax.semilogy(distances, linewidth=1.2, label=f"{name}: {c.observed:.4f} ({c.analysis.rate:.4f})")
        k = np.arange(c.window.start, c.window.stop)
        ax.semilogy(k, 3 * distances[k[0]] * float(c.analysis.rate) ** (k - k[0]), "--", color=line.get_color())
    ax.set(xlabel="iteration k", ylabel="|x_k - x*|", title="runs from w = 0; dashed: predicted slope (shifted up)")
    ax.legend(title="rate per iterate: observed (predicted)", fontsize="small")
    return figure


def draw_rate_map(mu: float, L: float, comparisons: dict[str, Comparison]) -> Figure:
    """Where the heavy-ball runs lie among all step sizes and momenta."""
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    rate_map(fo.heavy_ball, jnp.linspace(0.1, 27, 300), jnp.linspace(0, 0.99, 250), mu, L, ax=ax)
    for name, marker in (("heavy ball, tuned", "x"), ("heavy ball, momentum 0.9", "o")):
        method, rate = comparisons[name].analysis.method, comparisons[name].analysis.rate
        ax.plot(-method.B[0], method.A[1, 1], marker, color="r", linestyle="", label=f"{name}: {rate:.4f}")
    ax.axhline(0.5, color="r", linestyle=":", label="momentum 0.5: the grid")
    ax.legend(loc="lower right", fontsize="small")
    ax.set(xlabel="learning rate", title=f"heavy ball, worst rate on curvatures {mu:.4g} to {L:.4g}")
    return figure


def draw_eigenvalues(problem: Problem, comparisons: dict[str, Comparison]) -> Figure:
    """Eigenvalues of the blocks of four optimizers."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 8), layout="constrained")
    names = ("heavy ball, tuned", "heavy ball, momentum 0.9", "Nesterov, tuned", "two traces, 0.5 and 0.3")
    for ax, name in zip(axes.flat, names, strict=True):
        eigenvalue_disc(comparisons[name].analysis.method, problem.spectrum.eigenvalues, ax=ax, label=name)
    return figure


def draw_envelopes(problem: Problem, comparisons: dict[str, Comparison]) -> Figure:
    """Runs, once they are close to the minimizer, under the bounds that their Lyapunov functions prove."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    errors, rates, factors = {}, {}, {}
    for name in ("gradient descent", "heavy ball, momentum 0.9", "averaged gradient, 0.7"):
        c = comparisons[name]
        norms = np.linalg.norm(c.deviations, axis=(-2, -1))
        first = np.flatnonzero(norms > 1e-2)[-1] + 1
        errors[name], rates[name] = norms[first : c.window.stop], float(c.analysis.rate)
        P = fo.schur_lyapunov(c.analysis.method, problem.spectrum.eigenvalues).P
        factors[name] = float(np.sqrt(np.max(np.linalg.cond(P))))
    error_envelope(errors, rates, peak=factors, ax=ax)
    ax.set(
        xlabel="iterations after the state is within 0.01 of its limit",
        ylabel="|z_k - z*|, parameters and optimizer state",
        title="error (solid) and Lyapunov bound sqrt(cond P) rate^k (dashed)",
    )
    return figure
