"""Is that rate proved for every such function? Certified rates of the optimizers of chapter one, checked exactly.

The rates of chapter one hold near the minimizer, where the loss is a quadratic. Here each optimizer gets a rate that
holds from every start and on every function that is as smooth and as strongly convex as the loss, with a Lyapunov
function that proves it; the proof is checked with fractions, and the Lyapunov function is followed along a run.
"""

import textwrap
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

import jaxnm.first_order as fo
from examples.optimizer_rates import (
    Factory,
    Section,
    fitted_rate,
    iterates_a_digit,
    late_window,
    main_comparison,
    main_problem,
    optimizers,
    runner,
    tuned_to,
)
from examples.problems import REGULARIZATION, Problem
from jaxnm.status import Status

NUM_SECTIONS = 4
LOWERED = 1e-6
"""A certificate whose rate is lowered by this much must be refused."""
LAST_VALUE = 1e-9
"""V is followed until it is this fraction of its first value: then rounding of the loss shows."""
HOW_TO_READ = """\
F(mu, L) are all functions, in any number of dimensions, with curvatures between mu and L everywhere. `certify_rate`
finds the smallest rate that a Lyapunov function of its form proves on all of them at once; `verify` checks that proof
in exact arithmetic.
  quadratic      worst rate on quadratics with curvatures in the interval: no rate on the class can be smaller
  certified      proved on the whole class, with a Lyapunov function of memory 0 (which sees the current iterate), or
                 of memory 1 (one more); memory 1 is tried where there are two states and memory 0 leaves a gap
  observed       fitted to the run on the loss from w = 0
  V on the run   square root of the largest factor of the Lyapunov function in one step of that run"""


class Row(NamedTuple):
    """An optimizer at one learning rate: what is proved, and what was observed."""

    learning_rate: float
    method: fo.StateSpace
    near: float
    """Rate on quadratics with the curvatures of the Hessian at the minimizer."""
    certificate: fo.RateCertificate
    """On the class, with memory 0."""
    longer: fo.RateCertificate | None
    """With memory 1, where it was tried."""
    observed: float
    deviations: Array
    """[num_steps + 1, n, d]: parameters and optimizer state of the run, less their limit."""


def sections(folder: Path) -> Iterator[Section]:
    """The parts of the chapter, one at a time: a text and the checks made on the way. Pictures go to `folder`."""
    problem = main_problem()
    mu, L = curvature_bounds()
    yield introduction(problem)
    rows = {}
    for name, (_, learning_rate) in tuned_to(problem.spectrum).items():
        comparison = main_comparison(name)
        rows[name] = prove(
            problem, learning_rate, comparison.analysis.method, comparison.observed, comparison.deviations
        )
    about = "the learning rates of chapter one, tuned to the Hessian at the minimizer"
    text, held = report(about, rows)
    yield f"{text}\n{too_large(rows)}", held
    for name, (factory, learning_rate) in optimizers(mu, L).items():
        if learning_rate != rows[name].learning_rate:
            rows[name] = prove(problem, learning_rate, *run(problem, factory, learning_rate))
    yield report("the same optimizers, tuned to the curvatures of the class", rows)
    yield conclusion(rows, folder / "certified_rates.png")


# ------------------------------------------------------------------------------------------------ rates and proofs


@cache
def curvature_bounds() -> tuple[float, float]:
    """(mu, L) between which all curvatures of the loss lie, wherever they are taken.

    The curvature of the logistic function is largest at zero, so that of the loss is largest at w = 0, where it is the
    largest eigenvalue of X^T X / (4 m) plus the regularization; the smallest is at least the regularization.
    """
    return REGULARIZATION, main_problem().curvature_at_zero * (1 + 1e-12)


def run(problem: Problem, factory: Factory, learning_rate: float) -> tuple[fo.StateSpace, float, Array]:
    """Method, observed rate and deviations, in its units, of a run from zero that is long enough to see the rate."""
    found = fo.from_optax(factory(learning_rate))
    method = found.method
    rate = float(fo.quadratic_rate(method, problem.spectrum.mu, problem.spectrum.L))
    start = jnp.zeros_like(problem.solution)
    longer = problem._replace(num_steps=int(np.ceil(np.log(1e-15) / np.log(rate))))
    limit = jnp.zeros((method.num_states, start.size)).at[0].set(problem.solution.ravel())
    states = runner(longer, factory)(learning_rate, start, factory(learning_rate).init(start))
    deviations = (states - limit) * found.state_units[:, None]
    distances = np.linalg.norm(deviations[:, 0], axis=-1)
    return method, fitted_rate(distances[late_window(distances, float(jnp.linalg.norm(start - limit[0])))]), deviations


def prove(problem: Problem, learning_rate: float, method: fo.StateSpace, observed: float, deviations: Array) -> Row:
    """Certify an optimizer on the class."""
    mu, L = curvature_bounds()
    certificate = fo.certify_rate(method, mu, L)
    # one state needs no memory, and three take long to compile
    gap = float(certificate.quadratic_rate) < 1 and float(certificate.rate - certificate.quadratic_rate) > 1e-6
    return Row(
        learning_rate=learning_rate,
        method=method,
        near=float(fo.quadratic_rate(method, problem.spectrum.mu, problem.spectrum.L)),
        certificate=certificate,
        longer=fo.certify_rate(method, mu, L, memory=1) if gap and method.num_states == 2 else None,
        observed=observed,
        deviations=deviations,
    )


def lyapunov_values(problem: Problem, row: Row) -> np.ndarray:
    """V at the iterates of the run, by its definition in `RateCertificate`, for memory 0."""
    c = row.certificate
    solution = problem.solution
    smallest = problem.loss(solution)

    @jax.jit
    @jax.vmap
    def value(states: Array) -> Array:
        position = c.method.C @ states
        loss, gradient = jax.value_and_grad(problem.loss)(solution + position.reshape(solution.shape))
        h = (loss - smallest - c.mu / 2 * position @ position) / (c.L - c.mu)
        e = jnp.concatenate([states, ((gradient.ravel() - c.mu * position) / (c.L - c.mu))[None]])
        return jnp.sum(e * (c.Q @ e)) + c.q[0] * h

    return np.asarray(value(row.deviations))


def largest_factor(problem: Problem, row: Row) -> float:
    """Square root of the largest V_{k+1} / V_k of the run, after the first step, which some optimizers treat apart."""
    V = lyapunov_values(problem, row)[1:]
    end = np.flatnonzero(LAST_VALUE * V[0] > V)[0]
    return float(np.sqrt(np.max(V[1:end] / V[: end - 1])))


# ------------------------------------------------------------------------------------------------- reports


def introduction(problem: Problem) -> Section:
    """The class of functions to which the loss belongs."""
    mu, L = curvature_bounds()
    s = problem.spectrum
    lines = [
        HOW_TO_READ,
        "",
        f"The class of the loss of chapter one ({problem.data})",
        f"  curvatures at the minimizer:  from {s.mu:.6g} to {s.L:.4g}",
        f"  curvatures anywhere:          from {mu:.6g} (the regularization) to {L:.4g} (the largest at w = 0, where",
        "                                every logistic function curves most: X^T X / (4 m) plus the regularization)",
        "  The loss must belong to the class at every point, not only at the minimizer, so rates are certified on the",
        "  second interval; the first gives the rate on quadratics near the minimizer, and only there.",
    ]
    return "\n".join(lines), {
        "the curvatures at the minimizer lie in the class": mu <= float(s.mu) * (1 + 1e-12) and float(s.L) <= L
    }


def report(title: str, rows: dict[str, Row]) -> Section:
    """The table, and the checks of each of its certificates."""
    problem = main_problem()
    mu, L = curvature_bounds()
    lines = [
        f"Rates for {title}",
        f"{'':<26}{'learning':>9}{'quadratic rate':^22}{'certified, F(mu, L)':^22}{'':>10}{'V on':>9}",
        f"{'':<26}{'rate':>9}{'near x*':>11}{'on class':>11}{'memory 0':>11}{'memory 1':>11}{'observed':>10}"
        f"{'the run':>9}  exact check",
    ]
    held = {}
    for name, row in rows.items():
        c = row.certificate
        status = Status(int(c.status))
        proved = status == Status.OK
        factor = largest_factor(problem, row) if proved else np.nan
        lines.append(
            f"{name:<26}{row.learning_rate:>9.4g}{row.near:>11.6f}{short(c.quadratic_rate)}{shown(c)}{shown(row.longer)}"
            f"{row.observed:>10.6f}{'-' if np.isnan(factor) else f'{factor:.6f}':>9}  {verdict(c)}"
        )
        held |= certificate_checks(f"{name}, learning rate {row.learning_rate:.4g}", row)
        if proved:
            held[f"{name}, learning rate {row.learning_rate:.4g}: V falls as proved at every step of the run"] = (
                factor <= float(c.rate) + 1e-9
            )
    lines.append(
        f"  mu = {mu:g}, L = {L:.4f}; near x*: curvatures {problem.spectrum.mu:.4g} to {problem.spectrum.L:.4g}"
    )
    return "\n".join(lines), held


def certificate_checks(label: str, row: Row) -> dict[str, bool]:
    """What must hold for every certificate of a row."""
    held = {}
    for c in (row.certificate, row.longer):
        if c is None:
            continue
        of = f"{label}, memory {c.memory}"
        held[f"{of}: the quadratic rate is not above the certified one"] = float(c.quadratic_rate) <= float(c.rate)
        if int(c.status) == Status.OK:
            held[f"{of}: the proof is exact"] = bool(fo.verify(c))
            held[f"{of}: a rate lower by {LOWERED:g} is refused"] = not fo.verify(replace(c, rate=c.rate - LOWERED))
            held[f"{of}: the observed rate is not above the certified one"] = row.observed <= float(c.rate)
        else:
            held[f"{of}: without a proof the rate is not below one, and is refused"] = float(
                c.rate
            ) >= 1 and not fo.verify(c)
    return held


def short(rate: Array) -> str:
    """A rate in a column; above one its digits do not matter."""
    return f"{float(rate):>11.6f}" if float(rate) < 1 else f"{float(rate):>11.4g}"


def shown(certificate: fo.RateCertificate | None) -> str:
    """The certified rate in a column."""
    if certificate is None:
        return f"{'-':>11}"
    return short(certificate.rate) if int(certificate.status) == Status.OK else f"{'none':>11}"


def verdict(certificate: fo.RateCertificate) -> str:
    """Of the exact check."""
    status = Status(int(certificate.status))
    if fo.verify(certificate):
        return "proved"
    return "REFUSED" if status == Status.OK else f"no proof below 1: {status.name}"


def too_large(rows: dict[str, Row]) -> str:
    """Why the learning rates of chapter one have no proof."""
    unstable = sum(int(row.certificate.status) == Status.NOT_STABLE for row in rows.values())
    text = (
        f"{unstable} of {len(rows)} learning rates are too large for the class: it has quadratics with the curvature "
        f"{curvature_bounds()[1]:.4g} on which they diverge. That they converge on this loss is no contradiction: its "
        "curvature is that large only where the runs start."
    )
    return textwrap.fill(text, 112, initial_indent="  ", subsequent_indent="  ")


def conclusion(rows: dict[str, Row], path: Path) -> Section:
    """What the tables say, and the picture."""
    figure = draw(rows)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    tight = [name for name, row in rows.items() if gap_of(row) < 1e-6]
    above = [name for name, row in rows.items() if 1e-6 <= gap_of(row) < np.inf]
    none = [name for name, row in rows.items() if gap_of(row) == np.inf]
    closer = sum(
        float(row.certificate.rate - row.longer.rate) > 1e-6 for row in rows.values() if row.longer is not None
    )
    lines = [
        "At the learning rates tuned to the class",
        f"  the quadratic rate is proved for the whole class:  {'; '.join(tight)}",
        f"  a larger rate is proved:                           {'; '.join(above)}",
        f"  no rate below one is proved:                       {'; '.join(none)}",
        f"  memory 1 proves a smaller rate for {closer} of {sum(row.longer is not None for row in rows.values())}"
        " optimizers that memory 0 leaves a gap for",
        f"  picture: {path}",
    ]
    return "\n".join(lines), {
        "gradient descent has its quadratic rate on the whole class": "gradient descent" in tight,
        "tuned heavy ball has no certified rate": "heavy ball, tuned" in none,
    }


def gap_of(row: Row) -> float:
    """Certified less quadratic rate on the class; infinite without a proof."""
    c = row.certificate
    return float(c.rate - c.quadratic_rate) if int(c.status) == Status.OK else np.inf


def draw(rows: dict[str, Row]) -> Figure:
    """Iterates a digit of each optimizer: observed, on quadratics, certified."""
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    x = np.arange(len(rows))
    proved = np.array([gap_of(row) < np.inf for row in rows.values()])
    certified = np.array([float(row.certificate.rate) for row in rows.values()])
    bars = {
        "observed on the loss": np.array([row.observed for row in rows.values()]),
        "worst quadratic of the class": np.array([float(row.certificate.quadratic_rate) for row in rows.values()]),
        "certified on the class, memory 0": np.where(proved, certified, np.nan),
    }
    for number, (label, rates) in enumerate(bars.items()):
        ax.bar(x + 0.27 * (number - 1), iterates_a_digit(rates), 0.25, label=label)
    ax.set_yscale("log")
    ax.set_ylim(bottom=10)
    for place in x[~proved]:
        ax.text(place + 0.27, 10.5, "no proof", rotation=90, ha="center", va="bottom", color="C2")
    labels = [f"{textwrap.fill(name, 15)}\n{row.learning_rate:.3g}" for name, row in rows.items()]
    ax.set_xticks(x, labels, fontsize="small")
    ax.set(xlabel="optimizer and its learning rate", ylabel="iterates that divide the error by ten")
    mu, L = curvature_bounds()
    ax.set_title(f"observed and proved on the functions with curvatures {mu:g} to {L:.3g}")
    ax.legend()
    return figure
