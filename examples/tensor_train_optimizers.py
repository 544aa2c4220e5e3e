"""How good are the optimizers on tensor trains? The tables of two papers, beside scipy's differential evolution.

    python -m examples.tensor_train_optimizers [protes] [ttopt] [gradients] [--write docs/tensor_train_optimization.md]

prints (1) PROTES on nine functions on grids of 16^7 nodes, with minima that are proven by separability or by dynamic
programming; (2) TTOpt on ten functions at 2^25 nodes an axis in 10, 50 and 100 dimensions; (3) PROTES with and without
gradient steps. All in float64, at equal numbers of evaluations. --write puts what was printed between the marks of a
page.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import optimize

from jaxnm.tensor_train import grid_point, protes, protes_with_gradients, ttopt

BITS = 25
"""2^25 nodes an axis for TTOpt."""

# ------------------------------------------------------------------------------------------------ functions


def _places(x: Array) -> Array:
    return jnp.arange(1, x.size + 1).astype(x.dtype)


def ackley(x: Array) -> Array:
    """Ackley's function: many waves in a funnel, minimum 0 at 0."""
    distance, waves = jnp.sqrt(jnp.mean(x**2)), jnp.mean(jnp.cos(2 * np.pi * x))
    return 20 + np.e - 20 * jnp.exp(-0.2 * distance) - jnp.exp(waves)


def alpine(x: Array) -> Array:
    """Alpine's function: not smooth, minimum 0 at 0."""
    return jnp.sum(jnp.abs(x * jnp.sin(x) + 0.1 * x))


def brown(x: Array) -> Array:
    """Brown's function: neighbours coupled by powers, minimum 0 at 0."""
    squares = x**2
    return jnp.sum(squares[:-1] ** (squares[1:] + 1) + squares[1:] ** (squares[:-1] + 1))


def exponential(x: Array) -> Array:
    """Minus a bell, minimum -1 at 0."""
    return -jnp.exp(-0.5 * jnp.sum(x**2))


def griewank(x: Array) -> Array:
    """Griewank's function: a bowl with a product of waves, minimum 0 at 0."""
    return 1 + jnp.sum(x**2) / 4000 - jnp.prod(jnp.cos(x / jnp.sqrt(_places(x))))


def michalewicz(x: Array) -> Array:
    """Michalewicz's function with m = 10: narrow valleys."""
    return -jnp.sum(jnp.sin(x) * jnp.sin(_places(x) * x**2 / np.pi) ** 20)


def qing(x: Array) -> Array:
    """Qing's function: minimum 0 at the roots of 1, 2, ..."""
    return jnp.sum((x**2 - _places(x)) ** 2)


def rastrigin(x: Array) -> Array:
    """Rastrigin's function: a bowl with waves, minimum 0 at 0."""
    return jnp.sum(10 + x**2 - 10 * jnp.cos(2 * np.pi * x))


def schaffer(x: Array) -> Array:
    """Schaffer's function F6 summed over neighbours: rings, minimum 0 at 0."""
    squares = x[:-1] ** 2 + x[1:] ** 2
    return jnp.sum(0.5 + (jnp.sin(jnp.sqrt(squares)) ** 2 - 0.5) / (1 + 0.001 * squares) ** 2)


def schwefel(x: Array) -> Array:
    """Schwefel's function: minimum 0 near the ends, at 420.97."""
    return jnp.sum(418.982887272433706 - x * jnp.sin(jnp.sqrt(jnp.abs(x))))


class Problem(NamedTuple):
    """A function on a cube, and what TTOpt is published to reach in 10 dimensions."""

    function: Callable[[Array], Array]
    lower: float
    upper: float
    published: float
    """Residual of TTOpt, arXiv 2205.00293."""


PROBLEMS = {
    "Ackley": Problem(ackley, -32.768, 32.768, 3.9e-6),
    "Alpine": Problem(alpine, -10.0, 10.0, 2.9e-7),
    "Brown": Problem(brown, -1.0, 4.0, 1.8e-12),
    "Exp": Problem(exponential, -1.0, 1.0, 4.4e-15),
    "Griewank": Problem(griewank, -100.0, 100.0, 2.8e-2),
    "Michalewicz": Problem(michalewicz, 0.0, np.pi, 0.12),
    "Qing": Problem(qing, 0.0, 500.0, 5.5e-9),
    "Rastrigin": Problem(rastrigin, -5.12, 5.12, 4.6e-11),
    "Schaffer": Problem(schaffer, -100.0, 100.0, 0.19),
    "Schwefel": Problem(schwefel, -500.0, 500.0, 1.3e-4),
}
SLOW = ("Ackley", "Griewank", "Rastrigin", "Schaffer", "Schwefel")
"""Where differential evolution is run in 100 dimensions too, a quarter of a minute each."""
PUBLISHED_SCHAFFER = {10: 0.19, 50: 0.93, 100: 2.2}
FUNCTIONS = [problem.function for problem in PROBLEMS.values()]

# ------------------------------------------------------------------------------------------------ PROTES, 16^7 nodes

ROWS = [name for name in PROBLEMS if name != "Brown"]
"""Of the table in arXiv 2301.12162 that this page has formulas for."""


def shifted_nodes(name: str) -> np.ndarray:
    """[7, 16] Chebyshev nodes between shifted limits, those of teneva_bm 0.1.0."""
    _, lower, upper, _ = PROBLEMS[name]
    shift = (upper - lower) * np.random.RandomState(0).randn(7) / 10
    low, high = lower - shift, upper + shift
    return (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * np.cos(np.pi * np.arange(16) / 15)


def proven_minimum(name: str) -> float:
    """The least of the 16^7 values, without looking at all of them."""
    x = shifted_nodes(name)
    place = np.arange(1, 8)[:, None]
    if name == "Schaffer":
        best = np.zeros(16)
        for one, two in pairwise(x):
            squares = one[:, None] ** 2 + two**2
            best = (best[:, None] + 0.5 + (np.sin(np.sqrt(squares)) ** 2 - 0.5) / (1 + 0.001 * squares) ** 2).min(0)
        return best.min()
    if name == "Ackley":
        squares, waves = _trade_offs(x**2, np.cos(2 * np.pi * x), np.add, 0.0)
        return (20 + np.e - 20 * np.exp(-0.2 * np.sqrt(squares / 7)) - np.exp(waves / 7)).min()
    if name == "Griewank":
        squares, waves = _trade_offs(x**2, np.cos(x / np.sqrt(place)), np.multiply, 1.0)
        return (1 + squares / 4000 - waves).min()
    if name == "Exp":
        return -np.exp(-0.5 * (x**2).min(1).sum())
    terms = {
        "Alpine": lambda: np.abs(x * np.sin(x) + 0.1 * x),
        "Michalewicz": lambda: -np.sin(x) * np.sin(place * x**2 / np.pi) ** 20,
        "Qing": lambda: (x**2 - place) ** 2,
        "Rastrigin": lambda: 10 + x**2 - 10 * np.cos(2 * np.pi * x),
        "Schwefel": lambda: 418.982887272433706 - x * np.sin(np.sqrt(np.abs(x))),
    }[name]()
    return terms.min(1).sum()


def _trade_offs(costs: np.ndarray, gains: np.ndarray, combine: Any, neutral: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums of costs and sums (products) of gains that no other choice beats in one and equals or beats in the other.

    A gain that is beaten at less cost stays beaten whatever is added, or multiplied by a positive number; the smallest
    gains are kept too, for multiplications by negative ones.
    """
    cost, gain = np.zeros(1), np.full(1, neutral)
    for more_cost, more_gain in zip(costs, gains, strict=True):
        cost, gain = np.add.outer(cost, more_cost).ravel(), combine.outer(gain, more_gain).ravel()
        order = np.lexsort((-gain, cost))
        cost, gain = cost[order], gain[order]
        most, least = np.maximum.accumulate(gain), np.minimum.accumulate(gain)
        kept = np.r_[True, (gain[1:] > most[:-1]) | (gain[1:] < least[:-1])]
        cost, gain = cost[kept], gain[kept]
    return cost, gain


def at_node(index: Array, which: Array, nodes: Array) -> Array:
    """The value of function number `which` at a node; one program serves all functions."""
    return jax.lax.switch(which, FUNCTIONS, nodes[jnp.arange(nodes.shape[0], dtype=jnp.int32), index])


@partial(jax.jit, static_argnames="budget")
def protes_runs(keys: Array, which: Array, nodes: Array, budget: int = 10_000) -> Any:
    """PROTES with its defaults, once for every key."""
    run = lambda key: protes(at_node, (16,) * 7, key=key, budget=budget, args=(which, nodes))
    return jax.vmap(run)(keys)


# ------------------------------------------------------------------------------------------------ TTOpt, 2^25 nodes


def true_minimum(name: str, d: int) -> tuple[float, float]:
    """(least value of the function, residual at the node next to where it is taken)."""
    function, lower, upper, _ = PROBLEMS[name]
    place = np.arange(1.0, d + 1)
    at = {"Qing": np.sqrt(place), "Schwefel": np.full(d, 420.968746227503)}.get(name, np.zeros(d))
    if name == "Michalewicz":
        at = np.array([_peak(k) for k in range(1, d + 1)])
    least = {"Exp": -1.0, "Michalewicz": float(function(jnp.asarray(at)))}.get(name, 0.0)
    spacing = (upper - lower) / (2**BITS - 1)
    # half a spacing above the lower neighbour lies the middle: rint alone would be right but for ties
    below = lower + spacing * np.floor((at - lower) / spacing)
    nearest = np.where(at - below <= spacing / 2, below, below + spacing)
    return least, float(function(jnp.asarray(nearest))) - least


def _peak(k: int) -> float:
    term = lambda x: -np.sin(x) * np.sin(k * x**2 / np.pi) ** 20
    x = np.linspace(0, np.pi, 100_001)
    middle, width = x[np.argmin(term(x))], x[1]
    bounds = (middle - width, min(middle + width, np.pi))
    return optimize.minimize_scalar(term, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x


def at_digits(index: Array, which: Array, lower: Array, upper: Array) -> Array:
    """The value of function number `which` at the node with these binary digits."""
    return jax.lax.switch(which, FUNCTIONS, grid_point(index, lower, upper, BITS))


@partial(jax.jit, static_argnames=("d", "budget"))
def ttopt_run(key: Array, which: Array, lower: Array, upper: Array, *, d: int, budget: int) -> Any:
    """TTOpt with its defaults."""
    return ttopt(at_digits, (2,) * (d * BITS), key=key, budget=budget, args=(which, lower, upper))


def evolution(function: Any, bounds: Any, budget: int, seed: int, integrality: Any = None) -> float:
    """Least value by scipy's differential evolution with 10 members a dimension, polished at the end.

    Else it has its default strategy, but whole generations are evaluated at once, and it goes on until the generations
    have taken `budget` evaluations; those of polishing (by L-BFGS-B) are a gift.
    """
    values, members = jax.jit(jax.vmap(function)), 10 * len(bounds)
    result = optimize.differential_evolution(
        lambda x: np.asarray(values(jnp.asarray(x.T))), bounds, popsize=10, maxiter=budget // members - 1, rng=seed,
        tol=0, polish=True, updating="deferred", vectorized=True, integrality=integrality,
    )  # fmt: skip
    return float(result.fun)


# ------------------------------------------------------------------------------------------------ gradients


def rosenbrock(x: Array) -> Array:
    """Rosenbrock's function: a curved valley, minimum 0 at 1."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


SMOOTH = {
    "Rosenbrock": (rosenbrock, 2.0),
    "Griewank": (griewank, 100.0),
    "Rastrigin": (rastrigin, 5.12),
    "Ackley": (ackley, 32.768),
    "Schwefel": (schwefel, 500.0),
}


@partial(jax.jit, static_argnames=("d", "budget", "gradients"))
def smooth_runs(keys: Array, which: Array, limit: Array, *, d: int, budget: int, gradients: bool) -> Any:
    """PROTES on 101 uniform nodes an axis, with or without gradient steps, once for every key."""
    function = lambda x, which: jax.lax.switch(which, [function for function, _ in SMOOTH.values()], x)
    nodes = limit * jnp.linspace(-1.0, 1.0, 101)
    at_index = lambda index, which, nodes: function(nodes[index], which)
    if gradients:
        run = lambda key: protes_with_gradients(function, [nodes] * d, key=key, budget=budget, args=(which,))
    else:
        run = lambda key: protes(at_index, (101,) * d, key=key, budget=budget, args=(which, nodes))
    return jax.vmap(run)(keys)


# ------------------------------------------------------------------------------------------------ the tables


def protes_table(num_seeds: int = 10) -> Iterator[str]:
    """Hits of the proven minimum in 10^4 evaluations."""
    yield f"| 16^7 nodes, 10^4 evaluations | proven minimum | hits of {num_seeds} | median calls to it | hits of DE |"
    yield "|---|---|---|---|---|"
    keys = jax.random.split(jax.random.key(1), num_seeds)
    sites = jnp.arange(7, dtype=jnp.int32)
    for name in ROWS:
        nodes, least = jnp.asarray(shifted_nodes(name)), proven_minimum(name)
        hit = lambda values, least=least: np.asarray(values) <= least + 1e-12 * abs(least)
        result = protes_runs(keys, jnp.int32(list(PROBLEMS).index(name)), nodes)
        found = hit(result.best_value)
        calls = 100 * np.median(1 + np.argmax(hit(result.history), 1)[found])
        f = lambda i, nodes=nodes, f=PROBLEMS[name].function: f(nodes[sites, i.astype(jnp.int32)])
        peer = [evolution(f, [(0, 15)] * 7, 10_000, seed, [True] * 7) for seed in range(num_seeds)]
        yield f"| {name} | {least:.6g} | {found.sum()} | {calls:.0f} | {hit(peer).sum()} |"


def ttopt_table() -> Iterator[str]:
    """Residuals at 2^25 nodes an axis: value less the true minimum."""
    yield "| 2^25 nodes an axis | d | TTOpt | best | worst | next node | published | DE | lower |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for d, budget, num_seeds in ((10, 100_000, 9), (50, 500_000, 2), (100, 1_000_000, 1)):
        for k, (name, problem) in enumerate(PROBLEMS.items()):
            least, resolution = true_minimum(name, d)
            limits = jnp.asarray(problem.lower), jnp.asarray(problem.upper)
            runs = [
                ttopt_run(jax.random.key(seed), jnp.int32(k), *limits, d=d, budget=budget).best_value
                for seed in range(1, num_seeds + 1)
            ]
            residuals = np.array(runs) - least
            ours = np.median(residuals)
            numbers = " | ".join(f"{x:.1e}" for x in (ours, residuals.min(), residuals.max(), resolution))
            published = PUBLISHED_SCHAFFER[d] if name == "Schaffer" else problem.published if d == 10 else None
            beside = "" if published is None else f"{published:.1e}"
            peer, lower = "", ""
            if d < 100 or name in SLOW:
                value = evolution(problem.function, [(problem.lower, problem.upper)] * d, budget, 0) - least
                peer, lower = f"{value:.1e}", "DE" if value < ours else "TTOpt"
            yield f"| {name} | {d} | {numbers} | {beside} | {peer} | {lower} |"


def gradients_table(budget: int = 10_000, num_seeds: int = 3, sizes: tuple[int, ...] = (20, 50, 100)) -> Iterator[str]:
    """PROTES with and without gradient steps at equal budgets."""
    yield f"| 101 nodes an axis, {budget} evaluations | d | PROTES | with gradients | lower |"
    yield "|---|---|---|---|---|"
    keys = jax.random.split(jax.random.key(2), num_seeds)
    for d in sizes:
        for k, (name, (_, limit)) in enumerate(SMOOTH.items()):
            plain, hybrid = (
                np.median(
                    smooth_runs(keys, jnp.int32(k), jnp.asarray(limit), d=d, budget=budget, gradients=on).best_value
                )
                for on in (False, True)
            )
            yield f"| {name} | {d} | {plain:.3g} | {hybrid:.3g} | {'gradients' if hybrid < plain else 'PROTES'} |"


TABLES = {"protes": protes_table, "gradients": gradients_table, "ttopt": ttopt_table}


def main() -> None:
    """All tables, or those that are named."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES), help="all, if none is named")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between their marks in FILE")
    arguments = parser.parse_args()
    for name in arguments.tables or TABLES:
        start, lines = time.perf_counter(), []
        for line in TABLES[name]():
            print(line, flush=True)
            lines.append(line)
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
        if arguments.write is not None:
            first, last = f"<!-- table: {name} -->", f"<!-- end of table: {name} -->"
            text = arguments.write.read_text()
            head, rest = text.split(first)
            content = "\n".join(lines)
            arguments.write.write_text(f"{head}{first}\n\n{content}\n\n{last}{rest.split(last)[1]}")


if __name__ == "__main__":
    main()
