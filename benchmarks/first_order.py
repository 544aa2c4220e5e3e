"""Cases: the Stein equation, and the rates and Lyapunov functions of first-order methods."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender


def stein(n: int, target_ratio: float | None = None) -> Case:
    """10,000 Stein equations with n x n matrices of spectral radius .95."""
    from jaxnm.linalg import solve_discrete_lyapunov

    batch = 10_000
    random = np.random.default_rng(n)
    a = random.normal(size=(batch, n, n))
    a *= 0.95 / np.abs(np.linalg.eigvals(a)).max(-1)[:, None, None]
    root = random.normal(size=(batch, n, n))
    q = root @ root.swapaxes(-1, -2)
    reference = _stein_in_long_double(a, q)

    def scipy_loop(a: np.ndarray, q: np.ndarray) -> np.ndarray:
        from scipy.linalg import solve_discrete_lyapunov as scipy_solve

        return np.stack([scipy_solve(a_member, q_member) for a_member, q_member in zip(a, q, strict=True)])

    def kronecker(a: jax.Array, q: jax.Array) -> jax.Array:
        squares = jnp.einsum("bij,bkl->bikjl", a, a).reshape(batch, n * n, n * n)
        return jnp.linalg.solve(jnp.eye(n * n, dtype=a.dtype) - squares, q.reshape(batch, n * n, 1)).reshape(q.shape)

    def error(answer: Any) -> float:
        deviation = _size(getattr(answer, "x", answer) - reference) / _size(reference)
        return float(deviation.max())

    on_device = jnp.asarray(a), jnp.asarray(q)
    return Case(
        name=f"stein-{n}",
        description=f"{batch:,} Stein equations a x a^T - x + q = 0, {n} x {n}, spectral radius .95; our time includes"
        " the residual, the status and the test of stability, which the peers do not give",
        ours=Contender("ours", solve_discrete_lyapunov, on_device, jitted=True),
        peers=(
            Contender("scipy loop", scipy_loop, (a, q), module="scipy"),
            Contender("jnp Kronecker", kronecker, on_device, jitted=True),
        ),
        error=error,
        metric="largest |x - reference| / |reference| of the batch, reference summed in long double",
        tolerance=1e-9,
        target_ratios={} if target_ratio is None else {"scipy loop": target_ratio},
        # log2(36 / (1 - .95)) = 9.5 doublings, three products each
        flops=10 * 6 * n**3 * batch,
    )


def rate_map() -> Case:
    """`quadratic_rate` of heavy ball with its gradient on a 1000 x 1000 grid of (step, momentum)."""
    from jaxnm.first_order import heavy_ball, quadratic_rate

    mu, largest = 0.01, 1.0
    steps, momenta = (
        axis.ravel() for axis in np.meshgrid(np.linspace(0.004, 3.996, 1000), np.linspace(0.0005, 0.9995, 1000))
    )
    random = np.random.default_rng(0)
    subset = random.choice(steps.size, 20_000, replace=False)

    def rate(step: jax.Array, momentum: jax.Array, mu: jax.Array, largest: jax.Array) -> jax.Array:
        return quadratic_rate(heavy_ball(step, momentum), mu, largest)

    def eigenvalue_rate(step: jax.Array, momentum: jax.Array, mu: jax.Array, largest: jax.Array) -> jax.Array:
        trace = 1 + momentum - step * jnp.stack([mu, largest])
        blocks = _companion(trace, jnp.broadcast_to(momentum, trace.shape), jnp)
        return jnp.max(jnp.abs(jnp.linalg.eigvals(blocks)))

    def with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        return jax.vmap(jax.value_and_grad(function, argnums=(0, 1)), in_axes=(0, 0, None, None))

    def numpy_rate(steps: np.ndarray, momenta: np.ndarray) -> np.ndarray:
        trace = 1 + momenta - np.stack([mu * steps, largest * steps])
        blocks = _companion(trace, np.broadcast_to(momenta, trace.shape), np)
        return np.abs(np.linalg.eigvals(blocks)).max(axis=(0, -1))

    def error(answer: Any) -> float:
        values, gradients = answer if isinstance(answer, tuple) else (answer, None)
        rows = slice(None) if values.size == steps.size else subset
        reference, reference_gradients, distance = _heavy_ball_in_long_double(steps[rows], momenta[rows], mu, largest)
        deviations = [np.abs(values - reference).max()]
        if gradients is not None:
            plain = distance > 1e-3
            deviations += [
                np.abs(ours - right)[plain].max() for ours, right in zip(gradients, reference_gradients, strict=True)
            ]
        return float(np.max(deviations))

    ends = jnp.asarray(mu), jnp.asarray(largest)
    count = (subset.size, steps.size)
    peers = [Contender("numpy eigvals, values only", numpy_rate, (steps[subset], momenta[subset]), subset=count)]
    if jax.default_backend() == "cpu":  # elsewhere JAX has no eigenvalues with derivatives to compare with
        arguments = jnp.asarray(steps[subset]), jnp.asarray(momenta[subset]), *ends
        slow = with_gradient(eigenvalue_rate)
        peers.append(Contender("jnp eigvals, with gradient", slow, arguments, jitted=True, subset=count))
    return Case(
        name="rate-map",
        description="quadratic_rate of heavy ball and its gradient for 1000 x 1000 (step, momentum), mu = .01, L = 1,"
        " in one jitted call",
        ours=Contender("ours", with_gradient(rate), (jnp.asarray(steps), jnp.asarray(momenta), *ends), jitted=True),
        peers=tuple(peers),
        error=error,
        metric="largest |rate - reference|, and |gradient - reference| where a gradient is given and neither the"
        " discriminants nor the gap between the two ends are below 1e-3; closed form in long double",
        # sqrt(eps) is all that floating point decides beside a double root
        tolerance=1e-7,
        cpu_limit=1.5,
    )


def hessian_rate() -> Case:
    """The worst rate of optimal Nesterov over 100,000 Hessian eigenvalues."""
    from jaxnm.first_order import iteration_matrix, optimal_nesterov, spectral_radius

    mu, largest, eigenvalues, blocks = _nesterov_problem()
    reference = np.sqrt(_determinant(eigenvalues, mu, largest)).max()
    return Case(
        name="hessian-rate",
        description="the largest spectral radius of 100,000 iteration matrices of optimal Nesterov, from the Hessian"
        " eigenvalues, condition number 10^4; the peer is given the matrices",
        ours=Contender(
            "ours",
            lambda method, eigenvalues: jnp.max(spectral_radius(iteration_matrix(method, eigenvalues))),
            (optimal_nesterov(mu, largest), jnp.asarray(eigenvalues)),
            jitted=True,
        ),
        peers=(Contender("numpy eigvals", lambda blocks: np.abs(np.linalg.eigvals(blocks)).max(), (blocks,)),),
        error=lambda answer: float(abs(answer - reference) / reference),
        metric="|rate - reference| / reference, closed form in long double",
        tolerance=1e-10,
        flops=10 * eigenvalues.size,
    )


def hessian_lyapunov() -> Case:
    """A quadratic Lyapunov function for each of 100,000 Hessian eigenvalues."""
    from jaxnm.first_order import optimal_nesterov, schur_lyapunov

    mu, largest, eigenvalues, blocks = _nesterov_problem()
    reference = np.sqrt(_determinant(eigenvalues, mu, largest)).astype(float)

    def ours(method: Any, eigenvalues: jax.Array) -> Any:
        result = schur_lyapunov(method, eigenvalues)
        return result.P, result.rate, result.valid

    def eigenvectors(blocks: np.ndarray) -> Any:
        values, vectors = np.linalg.eig(blocks)
        inverses = np.linalg.inv(vectors)
        forms = inverses.conj().swapaxes(-1, -2) @ inverses
        return forms.real, np.abs(values).max(-1), np.ones(len(blocks), bool)

    def error(answer: Any) -> float:
        forms, rate, valid = answer
        forms = forms / np.linalg.norm(forms, axis=(-2, -1), keepdims=True)
        drift = rate[:, None, None] ** 2 * forms - blocks.swapaxes(-1, -2) @ forms @ blocks
        if not (valid.all() and (np.linalg.eigvalsh(forms) > 0).all()):
            return float("inf")
        return float(max(np.linalg.norm(drift, axis=(-2, -1)).max(), np.abs(rate - reference).max()))

    return Case(
        name="hessian-lyapunov",
        description="a Lyapunov function of each of 100,000 blocks of optimal Nesterov, condition number 10^4; the peer"
        " is given the matrices and builds it from eigenvectors",
        ours=Contender("ours", ours, (optimal_nesterov(mu, largest), jnp.asarray(eigenvalues)), jitted=True),
        peers=(Contender("numpy eig", eigenvectors, (blocks,)),),
        error=error,
        metric="largest of |rate^2 P - M^T P M| / |P| and |rate - reference|; infinite unless P is positive definite",
        tolerance=1e-9,
        flops=10 * eigenvalues.size,
    )


CASES: dict[str, Callable[[], Case]] = {
    "stein-2": partial(stein, 2, 100),
    "stein-3": partial(stein, 3),
    "stein-4": partial(stein, 4, 50),
    "stein-6": partial(stein, 6),
    "rate-map": rate_map,
    "hessian-rate": hessian_rate,
    "hessian-lyapunov": hessian_lyapunov,
}


def _stein_in_long_double(a: np.ndarray, q: np.ndarray) -> np.ndarray:
    power, x = a.astype(np.longdouble), q.astype(np.longdouble)
    for _ in range(14):  # .95^(2^14) is far below the last digit of any format
        x = x + power @ x @ power.swapaxes(-1, -2)
        power = power @ power
    return x


def _size(matrices: np.ndarray) -> np.ndarray:
    return np.sqrt((matrices**2).sum((-2, -1)))


def _companion(trace: Any, determinant: Any, numpy: Any) -> Any:
    """[[trace, -determinant], [1, 0]], stacked on the last two axes."""
    first = numpy.stack([trace, -determinant], -1)
    second = numpy.stack([numpy.ones_like(trace), numpy.zeros_like(trace)], -1)
    return numpy.stack([first, second], -2)


def _heavy_ball_in_long_double(steps: np.ndarray, momenta: np.ndarray, mu: float, largest: float) -> tuple[Any, ...]:
    """(rate, its two derivatives, its distance from a kink), by the closed form in long double."""
    step, momentum = steps.astype(np.longdouble), momenta.astype(np.longdouble)
    rates, by_step, by_momentum, discriminants = [], [], [], []
    for curvature in (mu, largest):
        trace = 1 + momentum - step * curvature
        discriminant = trace**2 - 4 * momentum
        root = np.sqrt(np.abs(discriminant))
        safe = np.where(root > 0, root, 1)
        is_real, sign = discriminant > 0, np.sign(trace)
        rates.append(np.where(is_real, (np.abs(trace) + root) / 2, np.sqrt(momentum)))
        by_step.append(np.where(is_real, -curvature * (sign + trace / safe) / 2, 0))
        by_momentum.append(np.where(is_real, (sign + (trace - 2) / safe) / 2, 0.5 / np.sqrt(momentum)))
        discriminants.append(np.abs(discriminant))
    gap = np.where(rates[0] == rates[1], 1, np.abs(rates[0] - rates[1]))  # equal: both complex, and no kink
    distance = np.minimum(np.minimum(*discriminants), gap)
    worst = rates[1] > rates[0]
    return (
        np.where(worst, rates[1], rates[0]),
        (np.where(worst, by_step[1], by_step[0]), np.where(worst, by_momentum[1], by_momentum[0])),
        distance,
    )


def _determinant(eigenvalues: np.ndarray, mu: float, largest: float) -> np.ndarray:
    """Of the blocks of optimal Nesterov, in long double; their eigenvalues are complex, so the rate is its root."""
    condition = np.sqrt(np.longdouble(largest) / np.longdouble(mu))
    return (condition - 1) / (condition + 1) * (1 - eigenvalues.astype(np.longdouble) / np.longdouble(largest))


def _nesterov_problem() -> tuple[float, float, np.ndarray, np.ndarray]:
    """(mu, L, eigenvalues, blocks): away from both ends, where the roots are double and zero."""
    mu, largest = 1e-4, 1.0
    eigenvalues = np.exp(np.random.default_rng(0).uniform(np.log(1.01 * mu), np.log(0.99 * largest), 100_000))
    momentum = (np.sqrt(largest / mu) - 1) / (np.sqrt(largest / mu) + 1)
    factor = 1 - eigenvalues / largest
    return mu, largest, eigenvalues, _companion((1 + momentum) * factor, momentum * factor, np)
