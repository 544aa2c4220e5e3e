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


@jax.jit
def _check(method: first_order.StateSpace, mu: jax.Array, L: jax.Array) -> first_order.RateCertificate:
    # |x_k|^2 + |x_k - x_{k-1}|^2
    P = jnp.asarray([[2.0, -1.0], [-1.0, 1.0]], mu.dtype)
    units = jnp.stack([jnp.ones_like(mu), method.A[1, 0]])
    return first_order.check_lyapunov(method, P / units[:, None] / units[None], mu, L)


def _exactly(inputs: tuple[Any, ...], certificate: first_order.RateCertificate) -> float:
    proved = first_order.verify(certificate).valid and float(certificate.rate) < 1
    return 0.0 if proved else np.inf


MEASURES: list[Measure] = [
    *OPTIMIZER_MEASURES,
    Measure("first_order.certify_rate", "a proof in exact arithmetic, of a rate below 1", _methods, _certify, _exactly),
    Measure(
        "first_order.check_lyapunov", "a proof in exact arithmetic, of a rate below 1", _methods, _check, _exactly,
        heavy=True,
    ),
]  # fmt: skip
