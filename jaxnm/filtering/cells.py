"""Recurrent cells whose hidden state is a cloud of weighted particles.

A cell (flax.nnx) holds parameters only. What happens is in pure functions of a carry, an input and a key: a step moves
every particle by a gated recurrence with learned noise, weighs it against the observation, and resamples softly, so
that the weights carry a gradient. Norms act on the features of one particle, so that the number of particles is free,
also after training. `unrolling` runs sequences through a cell.
"""

from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Key

from jaxnm import arguments
from jaxnm.filtering.particle_steps import (
    ParticleCarry,
    draw_ancestors,
    even,
    gated_step,
    joint_linear,
    layer_norm,
    leaky_relu,
    linear,
    nearest_distances,
    select,
    spread_noise,
    weigh,
    zero_where_missing,
)
from jaxnm.filtering.resampling import Method, check_alpha, check_method

Likelihood = Literal["predicted_distances", "observation_only"]
_LIKELIHOODS = ("predicted_distances", "observation_only")
# displacements enter in tenths of the side of the world, which is of the order of one
_TENTHS = 10.0


@flax.struct.dataclass
class CellOutput:
    """What a cell says after a step; `unroll` puts the axis of time first."""

    predictions: Float[Array, "*time batch particles outputs"]
    """Of every particle, in (0, 1)."""
    log_weights: Float[Array, "*time batch particles"]
    """Normalized over the particles."""
    mean: Float[Array, "*time batch outputs"]
    """The prediction of the weighted mean hidden state."""


class ParticleCell(nnx.Module):
    """What particle cells share: a step, the choice of ancestors, and the head. Subclasses define `propagate`."""

    in_features: int
    hidden: int
    alpha: float
    resampling: Method
    head: nnx.Linear

    def propagate(
        self,
        carry: ParticleCarry,
        inputs: Float[Array, "batch features"],
        noise: Float[Array, "batch particles hidden"],
        beacons: Float[Array, "m 2"] | None,
        size: Float[Array, "2"] | None,
    ) -> ParticleCarry:
        """Move the particles with the given standard normal noise and weigh them; no resampling."""
        raise NotImplementedError

    def initial_carry(self, key: Key[Array, ""], batch: int, num_particles: int) -> ParticleCarry:
        """Standard normal particles of equal weights; see `initial_particles`."""
        dtype = self.head.kernel[...].dtype
        hidden = jax.random.normal(key, (batch, num_particles, self.hidden), dtype)
        return ParticleCarry(hidden, even(batch, num_particles, dtype))

    def __call__(
        self,
        carry: ParticleCarry,
        inputs: Float[ArrayLike, "batch features"],
        key: Key[Array, ""],
        *,
        beacons: Float[ArrayLike, "m 2"] | None = None,
        size: Float[ArrayLike, "2"] | None = None,
    ) -> tuple[ParticleCarry, CellOutput]:
        """One step.

        Args:
          carry: of the last step, or of `initial_particles`.
          inputs: [B, in_features]; cast to the dtype of the parameters. NaN is missing: see the class.
          key: of this step.
          beacons: [m, 2], in cells. Only `MePFRNN` looks at it.
          size: [2], the sides of the world, in cells. Only `MePFRNN` looks at it.

        Returns:
          the next carry and the `CellOutput` after resampling.

        Raises:
          ValueError: inputs, carry or world of a wrong shape. TypeError: a key that is not typed.
        """
        name = type(self).__name__
        arguments.check_key(name, key)
        inputs, beacons, size = self._check(carry, inputs, beacons, size)
        noise_key, ancestor_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, carry.hidden.shape, carry.hidden.dtype)
        carry = self.propagate(carry, inputs, noise, beacons, size)
        carry = select(carry, draw_ancestors(ancestor_key, carry.log_weights, self.alpha, self.resampling), self.alpha)
        return carry, self.read(carry)

    def read(self, carry: ParticleCarry) -> CellOutput:
        """The predictions of a carry: the head on every particle, and on their weighted mean."""
        mean = jnp.sum(jnp.exp(carry.log_weights)[..., None] * carry.hidden, -2)
        return CellOutput(
            jax.nn.sigmoid(linear(self.head, carry.hidden)),
            carry.log_weights,
            jax.nn.sigmoid(linear(self.head, mean)),
        )

    def _check(
        self, carry: ParticleCarry, inputs: Any, beacons: Any, size: Any
    ) -> tuple[Array, Array | None, Array | None]:
        name, dtype = type(self).__name__, self.head.kernel[...].dtype
        batch, particles = carry.log_weights.shape
        arguments.check_shape(
            name,
            "carry.hidden",
            carry.hidden,
            f"[{batch}, {particles}, {self.hidden}]",
            lambda shape: shape == (batch, particles, self.hidden),
            "make it by initial_particles(key, cell, batch, num_particles)",
        )
        inputs = check_inputs(name, inputs, (batch, self.in_features), dtype)
        return inputs, *check_world(name, beacons, size, dtype)


class PFGRUCell(ParticleCell):
    """The particle-filter GRU.

    With x the input, i the particle, o and u of 32 features each by default,

        o = LReLU(W_o x),  u = LReLU(W_u x),  z, r = sigmoid(W [h_i, u]),  (mu, s) = W_n [r * h_i, u],
        n = LReLU(norm(mu + softplus(s) * eps)),  h_i' = (1 - z) * n + z * h_i,  log w_i' = log w_i + W_p [h_i', o],

    then the weights are normalized and the particles resampled softly: ancestors A from q = alpha w' + (1 - alpha) / K,
    weights w'_A / q_A. The published norm ties the parameters to K; this one is a layer norm over the features of a
    particle. A NaN in a member's input enters as zero, and the weights of that member stay as they are in that step.

    Args:
      in_features: of the input (static).
      hidden: of a particle (static).
      out_features: of the prediction sigmoid(W_y h), read from the particles and from their weighted mean.
      observation_features: width of o, which weighs the particles.
      input_features: width of u, which moves them.
      alpha: in (0, 1]; 1 is ordinary resampling, after which the weights have no gradient.
      resampling: as `method` of `resample`; "multinomial" is the published one, with a larger variance.
      dtype: of the parameters and of all that is computed with them.
      rngs: of flax, for the initial parameters only.

    Raises:
      ValueError: alpha outside (0, 1], an unknown way of resampling, a width below one.

    Cost: a step is two products of [B K, hidden] with [hidden, 2 hidden]. Differentiable, the ancestors held fixed.
    Source: X. Ma, P. Karkus, D. Hsu, W. S. Lee, AAAI 2020, arXiv:1905.12885, section 4.

    Example:
      >>> cell = PFGRUCell(9, rngs=nnx.Rngs(0))
      >>> carry = cell.initial_carry(jax.random.key(0), 2, 30)
      >>> carry, output = jax.jit(lambda *step: cell(*step))(carry, jnp.ones((2, 9)), jax.random.key(1))
      >>> output.predictions.shape, output.mean.shape
      ((2, 30, 3), (2, 3))
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 64,
        *,
        out_features: int = 3,
        observation_features: int = 32,
        input_features: int = 32,
        alpha: float = 0.5,
        resampling: Method = "systematic",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options("PFGRUCell", alpha, resampling)
        check_precision("PFGRUCell", dtype)
        check_counts("PFGRUCell", in_features=in_features, hidden=hidden, out_features=out_features)
        check_counts("PFGRUCell", observation_features=observation_features, input_features=input_features)
        self.in_features, self.hidden, self.alpha, self.resampling = in_features, hidden, alpha, resampling
        layer = partial(nnx.Linear, param_dtype=dtype, rngs=rngs)
        self.observation = layer(in_features, observation_features)
        self.input = layer(in_features, input_features)
        self.gates = layer(hidden + input_features, 2 * hidden)
        self.candidate = layer(hidden + input_features, 2 * hidden)
        self.norm = nnx.LayerNorm(hidden, param_dtype=dtype, rngs=rngs)
        self.weight = layer(hidden + observation_features, 1)
        self.head = layer(hidden, out_features)

    def propagate(
        self,
        carry: ParticleCarry,
        inputs: Float[Array, "batch features"],
        noise: Float[Array, "batch particles hidden"],
        beacons: Float[Array, "m 2"] | None = None,
        size: Float[Array, "2"] | None = None,
    ) -> ParticleCarry:
        """Move the particles with the given standard normal noise and weigh them; no resampling."""
        inputs, missing = zero_where_missing(inputs)
        drive = leaky_relu(linear(self.input, inputs))
        hidden = gated_step(self.gates, self.candidate, self.norm, carry.hidden, drive, noise)
        observed = leaky_relu(linear(self.observation, inputs))
        increment = joint_linear(self.weight, hidden, observed)[..., 0]
        return ParticleCarry(hidden, weigh(carry.log_weights, increment, missing))


class PFLSTMCell(ParticleCell):
    """The particle-filter LSTM.

    With o and u as in `PFGRUCell`, and c_i the memory of a particle,

        (f, i, o, mu, s) = W_h h_i + W_u u,  g = norm(mu + softplus(s) * eps),
        c_i' = sigmoid(f) * c_i + sigmoid(i) * LReLU(g),  h_i' = sigmoid(o) * tanh(c_i'),

    then weights and resampling as in `PFGRUCell`, hidden state and memory together.

    Args:
      in_features: as in `PFGRUCell`, like all the others.
      hidden: of a particle (static).
      out_features: of the prediction.
      observation_features: width of o, which weighs the particles.
      input_features: width of u, which moves them.
      alpha: in (0, 1].
      resampling: as `method` of `resample`; "multinomial" is the published one, with a larger variance.
      dtype: of the parameters and of all that is computed with them.
      rngs: of flax, for the initial parameters only.

    Raises:
      ValueError: alpha outside (0, 1], an unknown way of resampling, a width below one.

    Cost: a step is one product of [B K, hidden] with [hidden, 5 hidden]. Differentiable, with the ancestors held fixed.
    Source: X. Ma, P. Karkus, D. Hsu, W. S. Lee, AAAI 2020, arXiv:1905.12885, section 4.

    Example:
      >>> cell = PFLSTMCell(9, rngs=nnx.Rngs(0))
      >>> carry = cell.initial_carry(jax.random.key(0), 2, 30)
      >>> carry.memory.shape
      (2, 30, 64)
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 64,
        *,
        out_features: int = 3,
        observation_features: int = 32,
        input_features: int = 32,
        alpha: float = 0.5,
        resampling: Method = "systematic",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options("PFLSTMCell", alpha, resampling)
        check_precision("PFLSTMCell", dtype)
        check_counts("PFLSTMCell", in_features=in_features, hidden=hidden, out_features=out_features)
        check_counts("PFLSTMCell", observation_features=observation_features, input_features=input_features)
        self.in_features, self.hidden, self.alpha, self.resampling = in_features, hidden, alpha, resampling
        layer = partial(nnx.Linear, param_dtype=dtype, rngs=rngs)
        self.observation = layer(in_features, observation_features)
        self.input = layer(in_features, input_features)
        self.from_input = layer(input_features, 5 * hidden)
        self.from_hidden = layer(hidden, 5 * hidden)
        self.norm = nnx.LayerNorm(hidden, param_dtype=dtype, rngs=rngs)
        self.weight = layer(hidden + observation_features, 1)
        self.head = layer(hidden, out_features)

    def initial_carry(self, key: Key[Array, ""], batch: int, num_particles: int) -> ParticleCarry:
        """Standard normal particles and memories of equal weights; see `initial_particles`."""
        dtype = self.head.kernel[...].dtype
        both = jax.random.normal(key, (2, batch, num_particles, self.hidden), dtype)
        return ParticleCarry(both[0], even(batch, num_particles, dtype), both[1])

    def propagate(
        self,
        carry: ParticleCarry,
        inputs: Float[Array, "batch features"],
        noise: Float[Array, "batch particles hidden"],
        beacons: Float[Array, "m 2"] | None = None,
        size: Float[Array, "2"] | None = None,
    ) -> ParticleCarry:
        """Move the particles with the given standard normal noise and weigh them; no resampling."""
        inputs, missing = zero_where_missing(inputs)
        drive = leaky_relu(linear(self.input, inputs))
        if carry.memory is None:
            arguments.refuse("PFLSTMCell", "carry.memory", "None", "[B, K, hidden]", "start from initial_particles")
        total = linear(self.from_hidden, carry.hidden) + linear(self.from_input, drive)[:, None]
        forget, take, give, mean, spread = jnp.split(total, 5, -1)
        proposal = leaky_relu(layer_norm(self.norm, mean + spread_noise(spread, noise)))
        memory = jax.nn.sigmoid(forget) * carry.memory + jax.nn.sigmoid(take) * proposal
        hidden = jax.nn.sigmoid(give) * jnp.tanh(memory)
        observed = leaky_relu(linear(self.observation, inputs))
        increment = joint_linear(self.weight, hidden, observed)[..., 0]
        return ParticleCarry(hidden, weigh(carry.log_weights, increment, missing), memory)


class MePFRNN(ParticleCell):
    """The memory-efficient particle-filter GRU, which sees the world only through the coordinates of its beacons.

    A particle moves as in `PFGRUCell`, driven by u = [embedded action, ranges]. Its head says where it is,
    (x, y, heading) = sigmoid(W_y h) in units of (nx, ny, one turn), and

        "predicted_distances":  d = distances from (x, y) to the k nearest beacons,  log w += f((d - ranges)^2),
        "observation_only":     log w += f(ranges^2), the released form, in which the weights stay exactly uniform,

    with f = W_2 LReLU(W_1 . + b_1). The published text of the method is short of a formula here: the first form is what
    the comments and the unused parts of the released program intend, the second is what it does.

    No array depends on the size of the world, so that the same parameters run everywhere. Units are chosen to transfer:
    positions and displacements are relative to the sides of the world (displacements in tenths of them), ranges and
    their differences are in cells, as the errors of a sensor and the gaps between beacons do not grow with the world.

    f starts as a decreasing function of every squared difference (W_1 positive, W_2 negative), about that of normal
    ranges with a standard deviation of `range_scale`, so that the first observation already favours the particles that
    explain it; learning may change all of it. The head starts with a spread that puts standard normal particles all
    over the world.

    A range that is NaN is missing, and left out: it enters as zero, and so does its squared difference, for every
    particle. Where all of a member's ranges are missing, its weights stay as they are.

    Args:
      num_ranges: k, how many ranges are observed (static).
      hidden: of a particle (static).
      action_features: of an action (static), at least two; the first two are the displacement in cells.
      alpha: in (0, 1]; 1 is ordinary resampling.
      likelihood: "predicted_distances" or "observation_only".
      range_scale: in cells, what f starts from (static).
      resampling: as `method` of `resample`; "multinomial" is the published one, with a larger variance.
      dtype: of the parameters and of all that is computed with them.
      rngs: of flax, for the initial parameters only.

    The call takes inputs [B, action_features + num_ranges], actions first, and `beacons=` [m, 2] and `size=` [2]. By
    default there are 28,742 parameters and 128 of the norm.

    Raises:
      ValueError: alpha outside (0, 1], an unknown likelihood or way of resampling, a width below one, a
        range_scale that is not positive; at the call, no beacons or fewer than num_ranges, no size, or a wrong shape.

    Cost: as `PFGRUCell`, and B K m distances a step. Differentiable, with the ancestors and the choice of the nearest
    beacons held fixed.
    Source: R. Korkin, I. Oseledets, A. Katrutsa, arXiv:2310.01595; see above for what is read into it.

    Example:
      >>> cell = MePFRNN(2, rngs=nnx.Rngs(0))
      >>> carry = cell.initial_carry(jax.random.key(0), 1, 30)
      >>> world = {"beacons": jnp.array([[0.0, 0.0], [0.0, 9.0], [9.0, 9.0]]), "size": jnp.array([10.0, 10.0])}
      >>> inputs = jnp.array([[0.1, 0.0, 1.0, 0.0, 2.0, 5.0]])
      >>> carry, output = jax.jit(lambda *step: cell(*step, **world))(carry, inputs, jax.random.key(1))
      >>> output.mean.shape
      (1, 3)
    """

    def __init__(
        self,
        num_ranges: int = 5,
        *,
        hidden: int = 64,
        action_features: int = 4,
        alpha: float = 0.5,
        likelihood: Likelihood = "predicted_distances",
        range_scale: float = 0.5,
        resampling: Method = "systematic",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options("MePFRNN", alpha, resampling)
        check_precision("MePFRNN", dtype)
        check_counts("MePFRNN", num_ranges=num_ranges, hidden=hidden)
        arguments.check_count("MePFRNN", "action_features", action_features, minimum=2)
        if likelihood not in _LIKELIHOODS:
            remedy = "use 'predicted_distances'"
            arguments.refuse("MePFRNN", "likelihood", repr(likelihood), f"one of {_LIKELIHOODS}", remedy)
        positive = lambda value: value > 0
        arguments.check_number("MePFRNN", "range_scale", range_scale, "positive", positive, "try 0.5")
        self.num_ranges, self.action_features = num_ranges, action_features
        self.in_features, self.hidden, self.alpha, self.resampling = (
            action_features + num_ranges,
            hidden,
            alpha,
            resampling,
        )
        self.likelihood = likelihood
        layer = partial(nnx.Linear, param_dtype=dtype, rngs=rngs)
        self.action_first = layer(action_features, 64)
        self.action_second = layer(64, 32)
        self.gates = layer(hidden + 32 + num_ranges, 2 * hidden)
        self.candidate = layer(hidden + 32 + num_ranges, 2 * hidden)
        self.norm = nnx.LayerNorm(hidden, param_dtype=dtype, rngs=rngs)
        # the logistic function of a normal number of standard deviation 1.7 is nearly uniform
        self.head = layer(hidden, 3, kernel_init=nnx.initializers.variance_scaling(1.7**2, "fan_in", "normal"))
        self.misfit_first = layer(num_ranges, num_ranges, kernel_init=nnx.initializers.uniform(2 / num_ranges))
        fall = nnx.initializers.constant(-0.5 / range_scale**2)
        self.misfit_second = layer(num_ranges, 1, use_bias=False, kernel_init=fall)

    def propagate(
        self,
        carry: ParticleCarry,
        inputs: Float[Array, "batch features"],
        noise: Float[Array, "batch particles hidden"],
        beacons: Float[Array, "m 2"] | None = None,
        size: Float[Array, "2"] | None = None,
    ) -> ParticleCarry:
        """Move the particles with the given standard normal noise and weigh them; no resampling."""
        if beacons is None or size is None:
            arguments.refuse("MePFRNN", "beacons or size", "None", "both", "pass beacons=[m, 2] and size=[nx, ny]")
        arguments.check_shape(
            "MePFRNN",
            "beacons",
            beacons,
            f"[m, 2] with m >= {self.num_ranges}",
            lambda shape: shape[0] >= self.num_ranges,
            "use a smaller num_ranges",
        )
        actions, ranges = inputs[:, : self.action_features], inputs[:, self.action_features :]
        unheard = jnp.isnan(ranges)
        ranges = jnp.where(unheard, jnp.zeros_like(ranges), ranges)
        actions, _ = zero_where_missing(actions)
        actions = jnp.concatenate([actions[:, :2] / size[None] * _TENTHS, actions[:, 2:]], -1)
        embedded = linear(self.action_second, leaky_relu(linear(self.action_first, actions)))
        drive = jnp.concatenate([embedded, ranges], -1)
        hidden = gated_step(self.gates, self.candidate, self.norm, carry.hidden, drive, noise)
        if self.likelihood == "observation_only":
            increment = jnp.broadcast_to(self._misfit(ranges**2), carry.log_weights.shape)
        else:
            positions = jax.nn.sigmoid(linear(self.head, hidden))[..., :2] * size[None, None]
            distances = nearest_distances(positions, beacons, self.num_ranges)
            differences = distances - ranges[:, None]
            differences = jnp.where(unheard[:, None], jnp.zeros_like(differences), differences)
            increment = self._misfit(differences**2)[..., 0]
        return ParticleCarry(hidden, weigh(carry.log_weights, increment, jnp.all(unheard, -1)))

    def _misfit(self, squares: Array) -> Array:
        return linear(self.misfit_second, leaky_relu(linear(self.misfit_first, squares), 0.1))


def _check_options(function: str, alpha: Any, resampling: Any) -> None:
    if not arguments.is_number(alpha):
        got = f"of type {type(alpha).__name__}"
        arguments.refuse(function, "alpha", got, "a number (it is static)", "try 0.5", error=TypeError)
    check_alpha(function, alpha)
    check_method(function, resampling)


def check_precision(function: str, dtype: Any) -> None:
    """Refuse parameters that are not float32 or float64."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        remedy = "sums over particles want more digits than half precision has"
        arguments.refuse(function, "dtype", str(jnp.dtype(dtype)), "float32 or float64", remedy, error=TypeError)


def check_counts(function: str, **counts: Any) -> None:
    """Refuse widths below one."""
    for name, value in counts.items():
        arguments.check_count(function, name, value, minimum=1)


def check_inputs(function: str, inputs: Any, shape: tuple[int, int], dtype: Any) -> Array:
    """The inputs as an array [B, features] of `dtype`."""
    (array,) = arguments.to_arrays(function, inputs=inputs)
    arguments.check_shape(
        function,
        "inputs",
        array,
        f"[{shape[0]}, {shape[1]}] (batch, features)",
        lambda got: got == shape,
        "the batch is that of the carry, the features are those the cell was made for",
    )
    return array.astype(dtype)


def check_world(function: str, beacons: Any, size: Any, dtype: Any) -> tuple[Array | None, Array | None]:
    """Beacons [m, 2] and size [2] as arrays of `dtype`, where they are given."""
    if beacons is not None:
        (beacons,) = arguments.to_arrays(function, beacons=beacons)
        condition = lambda shape: len(shape) == 2 and shape[1] == 2
        arguments.check_shape(function, "beacons", beacons, "[m, 2]", condition, "give one row (x, y) a beacon")
        beacons = beacons.astype(dtype)
    if size is not None:
        (size,) = arguments.to_arrays(function, size=size)
        arguments.check_shape(function, "size", size, "[2]", lambda shape: shape == (2,), "give (nx, ny)")
        size = size.astype(dtype)
    return beacons, size
