"""Cases: the smallest value of a function on a grid, by sampling from trains and by cross approximation."""

import importlib.util
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender

Function = Callable[[Any, Any], Any]
"""f(numpy or jax.numpy, points [..., d]) -> [...]."""


def _ackley(xp: Any, x: Any) -> Any:
    first, second = xp.sqrt((x * x).mean(-1)), xp.cos(2 * np.pi * x).mean(-1)
    return 20 + np.e - 20 * xp.exp(-0.2 * first) - xp.exp(second)


def _rastrigin(xp: Any, x: Any) -> Any:
    return (10 + x * x - 10 * xp.cos(2 * np.pi * x)).sum(-1)


def _alpine(xp: Any, x: Any) -> Any:
    return xp.abs(x * xp.sin(x) + 0.1 * x).sum(-1)


def _schwefel(xp: Any, x: Any) -> Any:
    return (418.9829 - x * xp.sin(xp.sqrt(xp.abs(x)))).sum(-1)


def _griewank(xp: Any, x: Any) -> Any:
    numbers = np.sqrt(np.arange(1, x.shape[-1] + 1))
    return (x * x).sum(-1) / 4000 - xp.cos(x / numbers).prod(-1) + 1


def _schaffer(xp: Any, x: Any) -> Any:
    squares = x[..., :-1] ** 2 + x[..., 1:] ** 2
    return (0.5 + (xp.sin(xp.sqrt(squares)) ** 2 - 0.5) / (1 + 0.001 * squares) ** 2).sum(-1)


_FUNCTIONS: dict[str, tuple[Function, float]] = {
    "ackley": (_ackley, 32.768),
    "rastrigin": (_rastrigin, 5.12),
    "alpine": (_alpine, 10.0),
    "schwefel": (_schwefel, 500.0),
    "griewank": (_griewank, 100.0),
    "schaffer": (_schaffer, 100.0),
}


def _evolution(f: Callable[[np.ndarray], np.ndarray], limits: tuple, budget: int, whole: bool, seeds: int) -> Any:
    """Differential evolution of scipy on boxes, or on their whole numbers, with all of the budget, for each seed."""
    from scipy.optimize import differential_evolution

    population, d = 15, len(limits)
    results = [
        differential_evolution(
            lambda x: f(x.T), limits, popsize=population, maxiter=budget // (population * d) - 1, tol=0, atol=-1,
            polish=False, vectorized=True, updating="deferred", integrality=np.full(d, whole), seed=seed,
        )
        for seed in range(seeds)
    ]  # fmt: skip
    return np.array([result.fun for result in results])


def _nevergrad(f: Callable[[np.ndarray], np.ndarray], d: int, n: int, budget: int) -> np.ndarray:
    import warnings

    import nevergrad

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = nevergrad.p.Array(init=np.full(d, n // 2), lower=0, upper=n - 1).set_integer_casting()
        space.random_state.seed(0)
        best = nevergrad.optimizers.NGOpt(space, budget=budget).minimize(lambda index: float(f(index)))
    return np.array([f(best.value)])


# ------------------------------------------------------------------------------------------------ PROTES

_D, _N, _BUDGET = 7, 16, 10_000


def _grid(limit: float) -> np.ndarray:
    """[7, 16]: Chebyshev nodes between the shifted limits of arXiv 2301.12162."""
    shift = 2 * limit * np.random.RandomState(0).randn(_D) / 10
    lower, upper = -limit - shift, limit + shift
    nodes = np.cos(np.pi * np.arange(_N) / (_N - 1))
    return (upper + lower)[:, None] / 2 + (upper - lower)[:, None] / 2 * nodes


def _smallest(name: str, grid: np.ndarray) -> float:
    """The smallest value on the grid, by the structure of the function."""
    if name != "ackley":
        return float(sum(_FUNCTIONS[name][0](np, row[:, None]).min() for row in grid))
    # grows with the sum of squares, falls with that of cosines: only pairs that no other one beats in both matter
    pairs = np.zeros((1, 2))
    for row in grid:
        more = np.stack([row**2, -np.cos(2 * np.pi * row)], 1)
        pairs = (pairs[:, None] + more[None]).reshape(-1, 2)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        least = np.minimum.accumulate(pairs[:, 1])
        pairs = pairs[np.append(True, pairs[1:, 1] < least[:-1])]
    squares, cosines = pairs.T / _D
    return float((20 + np.e - 20 * np.exp(-0.2 * np.sqrt(squares)) - np.exp(-cosines)).min())


def sampling(name: str, seeds: int) -> Case:
    """PROTES on the grid of its publication."""
    from jaxnm.tensor_train import protes

    f, limit = _FUNCTIONS[name]
    grid = _grid(limit)
    truth, spread = _smallest(name, grid), float(np.ptp(f(np, np.random.default_rng(0).permuted(grid, axis=1).T)))
    places = np.arange(_D)
    on_grid = lambda index: f(np, grid[places, np.asarray(index, int)])
    value = lambda index, grid: f(jnp, grid[jnp.asarray(places, jnp.int32), index])

    def ours(seeds: jax.Array, grid: jax.Array) -> jax.Array:
        run = lambda seed: protes(value, (_N,) * _D, key=jax.random.key(seed), budget=_BUDGET, args=(grid,)).best_value
        return jax.vmap(run)(seeds) if seeds.shape else run(seeds)[None]

    many = jax.jit(jax.vmap(value, (0, None)))

    def package(budget: int = _BUDGET) -> np.ndarray:
        from protes import protes

        with jax.enable_x64(False):
            values = lambda indices: many(indices, jnp.asarray(grid))
            index, _ = protes(values, _D, _N, budget, seed=0, info={})
        return np.array([on_grid(index)])

    def error(answer: Any) -> float:
        return float(np.median(answer) - truth) / spread

    arguments = (jnp.arange(seeds, dtype=jnp.uint32) if seeds > 1 else jnp.uint32(0)), jnp.asarray(grid)
    subset = (1, seeds) if seeds > 1 else None
    peers, remark = [], ""
    if name != "alpine":
        peers.append(Contender("protes", package, (), module="protes", subset=subset))
        remark = "; protes works in float32 and compiles in every call, which its time contains"
        if importlib.util.find_spec("protes") is not None and seeds == 1:
            seconds = [timeit.timeit(partial(package, times * _BUDGET), number=1) for times in (1, 1, 11)]
            remark += f" (every further {_BUDGET:,} evaluations in a call take {(seconds[2] - seconds[1]) / 10:.2g} s)"
    if seeds == 1:
        peers += [
            Contender("scipy differential evolution", _evolution, (on_grid, [(0, _N - 1)] * _D, _BUDGET, True, 1)),
            Contender("nevergrad NGOpt", _nevergrad, (on_grid, _D, _N, _BUDGET), module="nevergrad"),
        ]
    runs = "one run" if seeds == 1 else f"{seeds} seeds in one vmap"
    return Case(
        name=f"protes-{name}" if seeds == 1 else f"protes-{name}-{seeds}",
        description=f"PROTES, {runs} with {_BUDGET:,} evaluations each of {name.capitalize()} on {_N}^{_D} Chebyshev "
        f"nodes{remark}; the errors are part of the result, and refuse no row",
        ours=Contender("ours, vmap" if seeds > 1 else "ours", ours, arguments, jitted=True),
        peers=tuple(peers),
        error=error,
        metric=f"median over seeds of (best value - {truth:.6g}, the proven minimum on the grid), over the spread of "
        f"{_N} values, {spread:.3g}",
        tolerance=1e3,
        target_ratios={"protes": 40} if remark else {},
        rounds=1,
    )


# ------------------------------------------------------------------------------------------------ TTOpt

_BITS, _DIMENSIONS, _EVALUATIONS = 25, 10, 100_000


def crossing(name: str, seeds: int) -> Case:
    """TTOpt on fine grids."""
    from jaxnm.tensor_train import grid_point, ttopt

    f, limit = _FUNCTIONS[name]
    on_box = lambda x: f(np, x)

    def ours(seeds: jax.Array, limits: jax.Array) -> jax.Array:
        value = lambda index, limits: f(jnp, grid_point(index, limits[0], limits[1], _BITS))
        run = lambda seed: (
            ttopt(
                value, (2,) * (_BITS * _DIMENSIONS), key=jax.random.key(seed), budget=_EVALUATIONS, args=(limits,)
            ).best_value
        )
        return jax.vmap(run)(seeds) if seeds.shape else run(seeds)[None]

    def package() -> np.ndarray:
        from ttopt import TTOpt

        np.random.seed(0)  # noqa: NPY002, from which it draws
        search = TTOpt(on_box, _DIMENSIONS, -limit, limit, p=2, q=_BITS, evals=_EVALUATIONS)
        search.optimize(rank=4)
        return np.array([search.y_opt])

    limits = [(-limit, limit)] * _DIMENSIONS
    evolution = Contender("scipy differential evolution", _evolution, (on_box, limits, _EVALUATIONS, False, seeds))
    peers = (evolution,)
    if seeds == 1:
        peers = (Contender("ttopt", package, (), module="ttopt"), evolution)
    seed = jnp.arange(seeds, dtype=jnp.uint32) if seeds > 1 else jnp.uint32(0)
    runs = "one run" if seeds == 1 else f"{seeds} seeds, ours in one vmap"
    return Case(
        name=f"ttopt-{name}",
        description=f"TTOpt, {runs} with {_EVALUATIONS:,} evaluations each of {name.capitalize()} in {_DIMENSIONS} "
        f"dimensions, 2^{_BITS} nodes in each; differential evolution works "
        "on the box, which no grid limits; the errors are part of the result, and refuse no row",
        ours=Contender("ours", ours, (seed, jnp.array([-limit, limit])), jitted=True),
        peers=peers,
        error=lambda answer: float(abs(np.median(answer))),
        metric="modulus of the median of best values over seeds; the smallest value on the box is 0 (Schwefel: 1.3e-4)",
        tolerance=1e3,
        target_ratios={"ttopt": 20},
        rounds=1,
    )


CASES: dict[str, Callable[[], Case]] = {
    "protes-ackley": partial(sampling, "ackley", 1),
    "protes-alpine": partial(sampling, "alpine", 1),
    "protes-rastrigin-32": partial(sampling, "rastrigin", 32),
    "ttopt-ackley": partial(crossing, "ackley", 1),
    "ttopt-rastrigin": partial(crossing, "rastrigin", 1),
    "ttopt-griewank": partial(crossing, "griewank", 5),
    "ttopt-schaffer": partial(crossing, "schaffer", 5),
}
