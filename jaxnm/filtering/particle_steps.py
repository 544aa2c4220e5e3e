"""The pure functions that particle cells are made of: gated moves, weights, the choice of ancestors, distances.

They keep the leading axes [batch, particles], compute once what the particles of a member share, and name what a
rematerialized step keeps.
"""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int32, Key

from jaxnm import arguments
from jaxnm.filtering.resampling import Method, resample
from jaxnm.filtering.weights import normalize
from jaxnm.linalg.factorizations import matmul

# what a rematerialized step keeps, as it is dearer to compute than to keep
KEPT = "jaxnm_particle_cell"
_FEW_OUTPUTS = 8


@flax.struct.dataclass
class ParticleCarry:
    """The state of a particle cell between two steps, for a batch of sequences."""

    hidden: Float[Array, "batch particles hidden"]
    log_weights: Float[Array, "batch particles"]
    """Normalized over the particles."""
    memory: Float[Array, "batch particles hidden"] | None = None
    """The long-term state of an LSTM, else None."""


def draw_ancestors(
    key: Key[Array, ""], log_weights: Float[Array, "batch particles"], alpha: float, method: Method
) -> Int32[Array, "batch particles"]:
    """Ancestors of every member of the batch, from q = alpha w + (1 - alpha) / K; the log-weights are normalized."""
    mixture = jax.lax.stop_gradient(_mixture(log_weights, alpha))
    keys = jax.random.split(key, log_weights.shape[0])
    return checkpoint_name(jax.vmap(partial(resample, method=method))(keys, mixture), KEPT)


def select(carry: ParticleCarry, ancestors: Int32[Array, "batch particles"], alpha: float) -> ParticleCarry:
    """The chosen particles with the weights w_A / q_A, normalized; the log-weights of the carry are normalized."""
    batch, particles, hidden = carry.hidden.shape
    log_ratio = carry.log_weights - _mixture(carry.log_weights, alpha)
    log_weights, _ = normalize(jnp.take_along_axis(log_ratio, ancestors, 1))
    rows = (ancestors + jnp.arange(0, batch * particles, particles, dtype=jnp.int32)[:, None]).reshape(-1)

    def take(x: Array) -> Array:
        chosen = x.reshape(-1, hidden).at[rows].get(mode="promise_in_bounds", indices_are_sorted=True)
        return chosen.reshape(x.shape)

    memory = None if carry.memory is None else take(carry.memory)
    return ParticleCarry(take(carry.hidden), log_weights, memory)


def nearest_distances(
    positions: Float[Array, "*batch 2"], beacons: Float[Array, "m 2"], num: int
) -> Float[Array, "*batch num"]:
    """The `num` smallest distances to the beacons, ascending; the derivative is zero on top of a beacon."""

    def squares(points: Array, x: Array, y: Array) -> Array:
        return (points[..., :1] - x) ** 2 + (points[..., 1:] - y) ** 2

    spread = (1,) * (positions.ndim - 1) + (-1,)
    fixed = jax.lax.stop_gradient(squares(positions, beacons[:, 0].reshape(spread), beacons[:, 1].reshape(spread)))
    nearest = beacons[jax.lax.top_k(-fixed, num)[1]]
    chosen = squares(positions, nearest[..., 0], nearest[..., 1])
    apart = chosen > 0
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, chosen, jnp.ones_like(chosen))), jnp.zeros_like(chosen))


def _mixture(log_weights: Array, alpha: float) -> Array:
    """log(alpha w + (1 - alpha) / K)."""
    if alpha == 1:
        return log_weights
    return jnp.log(alpha * jnp.exp(log_weights) + (1 - alpha) / log_weights.shape[-1])


def even(batch: int, num_particles: int, dtype: Any) -> Array:
    """Log-weights [B, K], all equal."""
    return arguments.constant(np.full((batch, num_particles), -np.log(num_particles)), dtype)


def weigh(log_weights: Array, increment: Array, missing: Array) -> Array:
    """The weights times exp(increment), normalized; as they were for the members whose observation is missing."""
    increment = jnp.where(missing[:, None], jnp.zeros_like(increment), increment)
    return normalize(log_weights + increment)[0]


def zero_where_missing(inputs: Array) -> tuple[Array, Array]:
    """Zeros for NaN [B, features], and which members had one [B]."""
    nan = jnp.isnan(inputs)
    return jnp.where(nan, jnp.zeros_like(inputs), inputs), jnp.any(nan, -1)


def gated_step(
    gates: nnx.Linear, candidate: nnx.Linear, norm: nnx.LayerNorm, hidden: Array, drive: Array, noise: Array
) -> Array:
    """(1 - z) n + z h with z, r from [h, drive] and n = LReLU(norm(mu + softplus(s) noise)) from [r h, drive]."""
    update, reset = jnp.split(jax.nn.sigmoid(joint_linear(gates, hidden, drive)), 2, -1)
    mean, spread = jnp.split(joint_linear(candidate, reset * hidden, drive), 2, -1)
    proposal = leaky_relu(layer_norm(norm, mean + spread_noise(spread, noise)))
    return proposal + update * (hidden - proposal)


def value(parameter: Any) -> Array:
    """The array of a parameter of flax."""
    return parameter[...]


def linear(layer: nnx.Linear, x: Array) -> Array:
    """The layer on the last axis, in full precision."""
    kernel = value(layer.kernel)
    flat = x.reshape(-1, x.shape[-1])
    # for a few outputs the derivative in the kernel is several times faster from the transposed product
    product = matmul(flat, kernel) if kernel.shape[-1] > _FEW_OUTPUTS else matmul(kernel.T, flat.T).T
    product = product.reshape(*x.shape[:-1], kernel.shape[-1])
    if layer.bias is None:
        return product
    return product + value(layer.bias).reshape((1,) * (x.ndim - 1) + (-1,))


def joint_linear(layer: nnx.Linear, particles: Array, member: Array) -> Array:
    """The layer on [particles [B K h], member [B f]], of which the second part is computed once a member."""
    batch, num, hidden = particles.shape
    kernel = value(layer.kernel)
    shared = matmul(member, kernel[hidden:]) + value(layer.bias)[None]
    return matmul(particles.reshape(-1, hidden), kernel[:hidden]).reshape(batch, num, -1) + shared[:, None]


@jax.custom_jvp
def spread_noise(spread: Array, noise: Array) -> Array:
    """softplus(spread) * noise, with one product kept for the derivative."""
    return _softplus(spread) * noise


def _softplus(x: Array) -> Array:
    # to an absolute error of eps; with log1p it would take twice the time on a CPU
    return jnp.maximum(x, jnp.zeros_like(x)) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


@spread_noise.defjvp
def _spread_noise_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (spread, noise), (spread_tangent, noise_tangent) = primals, tangents
    slope = checkpoint_name(jax.nn.sigmoid(spread) * noise, KEPT)
    deviation = _softplus(spread)
    return deviation * noise, slope * spread_tangent + deviation * noise_tangent


def layer_norm(norm: nnx.LayerNorm, x: Array) -> Array:
    """The norm over the features of every particle."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    return _standardize(norm.epsilon, x) * value(norm.scale).reshape(shape) + value(norm.bias).reshape(shape)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize(epsilon: float, x: Array) -> Array:
    """Features of mean zero and variance one."""
    return _standardized(epsilon, x)[0]


def _standardized(epsilon: float, x: Array) -> tuple[Array, Array]:
    centered = x - jnp.mean(x, -1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + epsilon)
    return centered * scale, scale


@_standardize.defjvp
def _standardize_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    standard, scale = (checkpoint_name(part, KEPT) for part in _standardized(epsilon, x))
    along = standard * jnp.mean(standard * tangent, -1, keepdims=True)
    return standard, scale * (tangent - jnp.mean(tangent, -1, keepdims=True) - along)


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """The identity, with a slope of `slope` below zero."""
    return jnp.where(x >= 0, x, slope * x)
