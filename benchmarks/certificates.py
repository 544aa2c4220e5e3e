"""Cases: certified rates on smooth strongly convex functions."""

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender

_MU, _LARGEST = 0.1, 1.0
_NUM_SAMPLED = 100
_PEP_STEPS = 2
_AUTOLYAP, _PEPIT = "AutoLyap loop, CLARABEL", f"PEPit, {_PEP_STEPS} steps, fixed norm (a weaker question)"


def certificate_map() -> Case:
    """`certify_rate` of heavy ball on a 100 x 100 grid of (step, momentum)."""
    steps, momenta, sampled = _grid(100)
    some = steps[sampled], momenta[sampled]
    reference, lowest, certified = _references(*some)

    def error(answer: Any) -> float:
        rates = np.minimum(answer[sampled] if answer.size == steps.size else answer, 1)
        return float(max(np.abs(rates - reference).max(), np.abs(rates - lowest).max()))

    return Case(
        name="certificate-map",
        description=f"certified rates of heavy ball for 100 x 100 (step, momentum), steps .05 to 3.8, momenta 0 to .95,"
        f" mu = .1, L = 1, memory 0, in one jitted call; the peer, by bisection to 1e-6, for a random {_NUM_SAMPLED} of"
        f" all of them, stable or not, of which {certified} have a certificate; our answer is held to the same sample,"
        " and includes the Lyapunov function and its multipliers",
        ours=Contender("ours", _our_rates, (jnp.asarray(steps), jnp.asarray(momenta)), jitted=True),
        peers=(Contender(_AUTOLYAP, _autolyap, some, module="autolyap", subset=(_NUM_SAMPLED, steps.size)),),
        error=error,
        metric="largest |rate - reference| over the sample, with 1 for a point without a certificate; two references,"
        " and both count: ours verified in exact arithmetic, which is an upper bound, and the closed form of the rate"
        " on quadratics where that is within 1e-7 of it (a lower bound), elsewhere AutoLyap's bisection to 1e-9",
        tolerance=3e-6,
        target_ratios={_AUTOLYAP: 20},
        rounds=3,
    )


def certificate_map_steps() -> Case:
    """The same map, coarser, beside what a worst-case analysis of a few steps proves."""
    steps, momenta, sampled = _grid(50)
    some = steps[sampled], momenta[sampled]
    lower = _quadratic_rate(steps, momenta)
    proved = ""
    if importlib.util.find_spec("PEPit") is not None:
        ours, theirs = np.asarray(jax.jit(_our_rates)(*map(jnp.asarray, some))), _pepit(*some)
        proved = f"; of the sample ours proves a rate below 1 for {np.sum(ours < 1)}, the peer for {np.sum(theirs < 1)}"

    def error(answer: Any) -> float:
        bound = lower if answer.size == lower.size else lower[sampled]
        return float(np.max(bound - answer))

    return Case(
        name="certificate-map-steps",
        description="certified rates of heavy ball for 50 x 50 (step, momentum) on the same ranges; the peer bounds"
        f" |(x_k, x_(k-1))| after {_PEP_STEPS} steps by that before, exactly, and its answer is the bound for one step:"
        f" another, weaker question, above 1 for many stable methods{proved}",
        ours=Contender("ours", _our_rates, (jnp.asarray(steps), jnp.asarray(momenta)), jitted=True),
        peers=(Contender(_PEPIT, _pepit, some, module="PEPit", subset=(_NUM_SAMPLED, steps.size)),),
        error=error,
        metric="largest amount by which an answer is below the rate on quadratics, closed form: no valid bound is;"
        " negative if all are above. It says nothing about how tight an answer is",
        tolerance=1e-6,
        rounds=3,
    )


CASES: dict[str, Callable[[], Case]] = {
    "certificate-map": certificate_map,
    "certificate-map-steps": certificate_map_steps,
}


def _grid(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, momenta, which of them the peers get)."""
    steps, momenta = (axis.ravel() for axis in np.meshgrid(np.linspace(0.05, 3.8, size), np.linspace(0, 0.95, size)))
    return steps, momenta, np.random.default_rng(0).choice(steps.size, _NUM_SAMPLED, replace=False)


def _certificates(steps: jax.Array, momenta: jax.Array) -> Any:
    from jaxnm.first_order import certify_rate, heavy_ball

    return jax.vmap(lambda step, momentum: certify_rate(heavy_ball(step, momentum), _MU, _LARGEST))(steps, momenta)


def _our_rates(steps: jax.Array, momenta: jax.Array) -> jax.Array:
    return _certificates(steps, momenta).rate


def _autolyap(steps: np.ndarray, momenta: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """Rates per iterate, 1 where it finds no certificate; its own rho is the factor of V, the square."""
    from autolyap import IterationIndependent, SolverOptions
    from autolyap.algorithms import HeavyBallMethod
    from autolyap.problemclass import InclusionProblem, SmoothStronglyConvex

    problem = InclusionProblem([SmoothStronglyConvex(_MU, _LARGEST)])
    options = SolverOptions(backend="cvxpy", cvxpy_solver="CLARABEL")
    linear = IterationIndependent.LinearConvergence

    def rate(step: float, momentum: float) -> float:
        method = HeavyBallMethod(gamma=step, delta=momentum)
        parameters: Any = linear.get_parameters_distance_to_solution(method)
        P, p, T, t = parameters
        answer = linear.bisection_search_rho(
            problem, method, P, T, p=p, t=t, tol=tolerance, solver_options=options, verbosity=0
        )
        return 1.0 if answer["rho"] is None else math.sqrt(answer["rho"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver's, about trial rates that are hardly feasible
        return np.array([rate(float(step), float(momentum)) for step, momentum in zip(steps, momenta, strict=True)])


def _pepit(steps: np.ndarray, momenta: np.ndarray) -> np.ndarray:
    """Bounds for one step: the root of the worst |z|^2 after some steps, over that before."""
    from PEPit import PEP
    from PEPit.functions import SmoothStronglyConvexFunction

    def bound(step: float, momentum: float) -> float:
        problem = PEP()
        function = problem.declare_function(SmoothStronglyConvexFunction, mu=_MU, L=_LARGEST)
        solution = function.stationary_point()
        current, previous = problem.set_initial_point(), problem.set_initial_point()
        problem.set_initial_condition((current - solution) ** 2 + (previous - solution) ** 2 <= 1)
        for _ in range(_PEP_STEPS):
            change = momentum * (current - previous) - step * function.gradient(current)
            current, previous = current + change, current
        problem.set_performance_metric((current - solution) ** 2 + (previous - solution) ** 2)
        worst: Any = problem.solve(verbose=0)
        return float(worst) ** (0.5 / _PEP_STEPS)

    return np.array([bound(float(step), float(momentum)) for step, momentum in zip(steps, momenta, strict=True)])


def _references(steps: np.ndarray, momenta: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(ours verified, the other reference, how many points have a certificate); 1 where there is none."""
    from jaxnm.first_order import verify

    certificates = jax.jit(_certificates)(jnp.asarray(steps), jnp.asarray(momenta))
    valid = np.array([bool(member) for member in verify(certificates).members])
    verified = np.where(valid, np.asarray(certificates.rate), 1)
    closed = np.minimum(_quadratic_rate(steps, momenta), 1)
    tight = valid & (verified - closed < 1e-7)
    other = verified.copy()
    if importlib.util.find_spec("autolyap") is not None:
        other = _autolyap(steps, momenta, 1e-9)
    return verified, np.where(tight, closed, other), int(valid.sum())


def _quadratic_rate(steps: np.ndarray, momenta: np.ndarray) -> np.ndarray:
    """Of heavy ball, by the closed form."""
    traces = 1 + momenta - steps * np.array([[_MU], [_LARGEST]])
    discriminants = traces**2 - 4 * momenta
    real = (np.abs(traces) + np.sqrt(np.maximum(discriminants, 0))) / 2
    return np.where(discriminants > 0, real, np.sqrt(momenta)).max(0)
