"""Promises of jaxnm.first_order."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import first_order
from tests.trust.measure import Measure
from tests.trust.optimizer_measures import OPTIMIZER_MEASURES


def _methods(dtype: Any) -> list[tuple[Any, ...]]:
    """Momentum methods at and beside their optimum, condition numbers 1.1 to 1e8, in several units; some diverge."""
    generator = np.random.default_rng(0)
    inputs = []
    for kappa in np.geomspace(1.1, 1e8, 10):
        for unit in (1e-4, 1.0, 1e4):
            step, momentum, gamma = generator.uniform(0.05, 2.2), generator.uniform(0, 0.95), generator.uniform(0, 0.6)
            random = first_order.three_parameter(step, momentum, gamma)
            for method in (random, first_order.triple_momentum(1 / kappa, 1.0)):
                # the second state and the curvatures in other units
                A = method.A * jnp.asarray([[1.0, 1 / unit], [unit, 1.0]])
                B, C = method.B * jnp.asarray([1.0, unit]) / unit, method.C * jnp.asarray([1.0, 1 / unit])
                method = first_order.StateSpace(A, B, C)
                numbers = (method, jnp.asarray(unit / kappa), jnp.asarray(unit))
                inputs.append(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numbers))
    return inputs


@jax.jit
def _certify(method: first_order.StateSpace, mu: jax.Array, L: jax.Array) -> first_order.RateCertificate:
    return first_order.certify_rate(method, mu, L)


def _descents(dtype: Any) -> list[tuple[Any, ...]]:
    """Gradient descent with steps up to 2.2 / L, condition numbers 1.1 to 1e4, in several units; some diverge."""
    generator = np.random.default_rng(1)
    inputs = []
    for kappa in np.geomspace(1.1, 1e4, 6):
        for unit in (1e-4, 1.0, 1e4):
            for step in generator.uniform(0.2, 2.2, 3):
                numbers = (step / unit, unit / kappa, unit)
                inputs.append(tuple(jnp.asarray(number, dtype) for number in numbers))
    return inputs


@jax.jit
def _check(step: jax.Array, mu: jax.Array, L: jax.Array) -> first_order.RateCertificate:
    # |x_k|^2, and a little of |x_{k-1}|^2, as the previous iterate is a state too
    P = jnp.diag(jnp.stack([jnp.ones_like(mu), 0.1 * mu / L]))
    return first_order.check_lyapunov(first_order.heavy_ball(step, jnp.zeros_like(step)), P, mu, L)


def _exactly(inputs: tuple[Any, ...], certificate: first_order.RateCertificate) -> float:
    proved = first_order.verify(certificate).valid and float(certificate.rate) < 1
    return 0.0 if proved else np.inf


MEASURES: list[Measure] = [
    *OPTIMIZER_MEASURES,
    Measure("first_order.certify_rate", "a proof in exact arithmetic, of a rate below 1", _methods, _certify, _exactly),
    Measure(
        "first_order.check_lyapunov", "a proof in exact arithmetic, of a rate below 1", _descents, _check, _exactly,
        heavy=True,
    ),
]  # fmt: skip
