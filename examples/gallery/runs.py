"""What the experiments share: methods, quadratics, runs of several methods at once, V and rates."""

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import ArrayLike

import jaxnm.first_order as fo
from examples.gallery.report import Part

Methods = Mapping[Any, fo.StateSpace]
"""By name, each with the two states (x_k, x_{k-1})."""


class Run(NamedTuple):
    """One method on one function: x_{-1}, x_0, x_1, ... [steps + 2, d], their errors |x_k - x*|, and V_1, V_2, ..."""

    method: fo.StateSpace
    x: np.ndarray
    errors: np.ndarray
    V: np.ndarray


Runs = dict[Any, Run]
"""The runs of several methods, by name."""


def tuned(mu: float, L: float) -> dict[str, fo.StateSpace]:
    """The methods at their optimal parameters."""
    return {
        "heavy ball": fo.optimal_heavy_ball(mu, L),
        "Nesterov": fo.optimal_nesterov(mu, L),
        "triple momentum": fo.triple_momentum(mu, L),
        "NAG-GS": fo.optimal_gauss_seidel_nesterov(mu, L),
    }


def paper_start(d: int) -> np.ndarray:
    """10 + N(0, 1) in each coordinate, as all quadratic experiments of the paper start, at rest: x_{-1} = x_0."""
    return 10 + np.random.default_rng(0).standard_normal(d)


def run(
    methods: Methods,
    gradient: Partial,
    start: Any,
    steps: int,
    *,
    before: Any = None,
    x_star: Any = 0,
    dtype: Any = float,
) -> Runs:
    """Run methods in one compiled loop and one dtype, from x_0 = `start` and x_{-1} = `before`, at rest by default.

    The starts are [d], or [methods, d].
    """
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *methods.values())
    arguments = (stacked, gradient, start, start if before is None else before, x_star)
    x, errors, V = map(np.asarray, _run(*jax.tree.map(lambda leaf: np.asarray(leaf, dtype), arguments), steps))
    return {name: Run(method, x[i], errors[i], V[i]) for i, (name, method) in enumerate(methods.items())}


@partial(jax.jit, static_argnames="steps")
def _run(
    methods: fo.StateSpace, gradient: Partial, start: Array, before: Array, x_star: Array, steps: int
) -> tuple[Array, Array, Array]:
    def step(z: Array, _: None) -> tuple[Array, Array]:
        slopes = jax.vmap(gradient)(jnp.einsum("mi,mid->md", methods.C, z))
        z = methods.A @ z + methods.B[..., None] * slopes[:, None]
        return z, z[:, 0]

    shape = (methods.A.shape[0], start.shape[-1])
    first = jnp.stack([jnp.broadcast_to(each, shape) for each in (start, before)], axis=1)
    _, x = jax.lax.scan(step, first, length=steps)
    x = jnp.concatenate([first[:, ::-1], jnp.swapaxes(x, 0, 1)], axis=1)
    return x, jnp.linalg.norm(x - x_star, axis=-1), casoratians(x, jnp.broadcast_to(x_star, shape[1:]))


def run_quadratic(methods: Methods, curvatures: np.ndarray, steps: int, **options: Any) -> Runs:
    """`run` in the modes of a quadratic with x* = 0, from the paper's start unless `start` is given."""
    options = {"start": paper_start(curvatures.size)} | options
    return run(methods, Partial(operator.mul, curvatures), steps=steps, **options)


def full_gradient(hessian: Array, x_star: Array, x: Array) -> Array:
    """Gradient H x - H x* of a quadratic with a full Hessian."""
    return hessian @ x - hessian @ x_star


@jax.jit
def casoratians(x: ArrayLike, x_star: ArrayLike) -> Array:
    """[..., steps]: the paper's V along iterates [..., steps + 2, d]."""
    x, V = jnp.asarray(x), jnp.vectorize(fo.casoratian, signature="(d),(d),(d),(d)->()")
    return V(x[..., :-2, :], x[..., 1:-1, :], x[..., 2:, :], x_star)


def summands(x: np.ndarray) -> np.ndarray:
    """[steps, d]: what each mode contributes to V along deviations [steps + 2, d]."""
    return x[1:-1] ** 2 - x[:-2] * x[2:]


def exact_V(run: Run, curvatures: np.ndarray) -> np.ndarray:
    """V without rounding in the modes of a quadratic: each summand of V_1 times powers of its determinant."""
    determinants = -np.asarray(fo.iteration_matrix(run.method, curvatures))[:, 0, 1]
    return determinants ** np.arange(run.V.size)[:, None] @ summands(run.x[:3])[0]


def falls(V: np.ndarray) -> int:
    """At how many steps V falls."""
    return int(np.sum(np.diff(V) < 0))


def noise(run: Run) -> np.ndarray:
    """[steps]: eps |x_k - x*|^2, the rounding of a difference like V."""
    return np.finfo(run.V.dtype).eps * run.errors[1:-1] ** 2


def clear_V(run: Run) -> np.ndarray:
    """The first values of V, as long as they are well above their rounding."""
    return run.V[: np.argmin(np.append(noise(run) * 1e5 < run.V, False))]


def fitted_rate(values: np.ndarray) -> float:
    """Factor a step: the slope of the logarithm over all the values."""
    return float(np.exp(np.polyfit(np.arange(values.size), np.log(values), 1)[0]))


def is_rate(observed: float, predicted: float, *, within: float = 0.01) -> bool:
    """Whether a digit takes as many steps as predicted, but for this fraction."""
    return bool(abs(np.log(predicted) / np.log(observed) - 1) < within)


def predicted_rates(method: fo.StateSpace, curvatures: np.ndarray) -> tuple[float, float]:
    """Rates of the error (over the interval) and of the square root of V."""
    rate = fo.quadratic_rate(method, float(curvatures[0]), float(curvatures[-1]))
    return float(rate), float(jnp.max(fo.schur_lyapunov(method, curvatures).rate))


def block_gap(one: fo.StateSpace, other: fo.StateSpace, curvatures: np.ndarray) -> float:
    """Largest difference of the blocks of two methods."""
    return float(jnp.max(jnp.abs(fo.iteration_matrix(one, curvatures) - fo.iteration_matrix(other, curvatures))))


def rate_table(found: Runs, curvatures: np.ndarray) -> Part:
    """Predicted and observed rates of runs on one quadratic, and whether V falls before its rounding."""
    d, mu, L = curvatures.size, curvatures[0], curvatures[-1]
    lines = [
        f"d = {d}, mu = {mu:g}, L = {L:g}, start 10 + N(0, 1) at rest; observed: slope over the second half",
        "of the iterates, of V before its rounding; certificate: on how many curvatures V is one",
        "                                error           square root of V   certificate   V falls",
        "                          predicted observed  predicted observed                    at",
    ]
    checks = {}
    for name, run in found.items():
        (rate, rate_V), observed = predicted_rates(run.method, curvatures), fitted_rate(run.errors[run.V.size // 2 :])
        held, line = is_rate(observed, rate), f"{name:<26}{rate:9.6f} {observed:8.6f}"
        if rate_V > 0:
            V, valid = clear_V(run), jnp.sum(fo.schur_lyapunov(run.method, curvatures).valid)
            observed_V = fitted_rate(V[V.size // 2 :]) ** 0.5
            held = held and is_rate(observed_V, rate_V) and falls(V) == V.size - 1
            line += f"  {rate_V:9.6f} {observed_V:8.6f}{valid:6} of {d:<3}{falls(V):8} of {V.size - 1}"
        checks[f"{name}, mu = {mu:g}: error and V have their rates, V falls"] = held
        lines.append(line)
    return Part("", "", checks, "\n".join(lines))
