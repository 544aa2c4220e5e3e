"""Sequences through recurrent cells, and the recurrent cells of flax as a yardstick."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Key

from jaxnm import arguments
from jaxnm.filtering.cells import CellOutput, ParticleCell, check_counts, check_inputs, check_precision, check_world
from jaxnm.filtering.particle_steps import KEPT, linear, zero_where_missing

_KINDS = ("gru", "lstm")


class RecurrentBaseline(nnx.Module):
    """The GRU or LSTM cell of flax with the same head and the same call as the particle cells, as a yardstick.

    It has one particle of weight one, no noise, and no use for the world; NaN in the input enters as zero.

    Args:
      in_features: of the input (static).
      hidden: of the state (static).
      kind: "gru" or "lstm".
      out_features: of the prediction sigmoid(W_y h).
      dtype: of the parameters and of all that is computed with them.
      rngs: of flax, for the initial parameters only.

    Raises:
      ValueError: an unknown kind, a width below one.

    Cost: that of flax.nnx.GRUCell or OptimizedLSTMCell. Differentiable.

    Example:
      >>> graphdef, params = nnx.split(RecurrentBaseline(9, rngs=nnx.Rngs(0)))
      >>> unroll(graphdef, params, jnp.ones((5, 2, 9)), jax.random.key(0)).mean.shape
      (5, 2, 3)
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 64,
        *,
        kind: Literal["gru", "lstm"] = "gru",
        out_features: int = 3,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_counts("RecurrentBaseline", in_features=in_features, hidden=hidden, out_features=out_features)
        check_precision("RecurrentBaseline", dtype)
        if kind not in _KINDS:
            arguments.refuse("RecurrentBaseline", "kind", repr(kind), f"one of {_KINDS}", "use 'gru'")
        self.in_features, self.hidden, self.kind = in_features, hidden, kind
        make = nnx.GRUCell if kind == "gru" else nnx.OptimizedLSTMCell
        with jax.numpy_dtype_promotion("standard"):
            self.cell = make(in_features, hidden, param_dtype=dtype, rngs=rngs)
            self.head = nnx.Linear(hidden, out_features, param_dtype=dtype, rngs=rngs)

    def initial_carry(self, key: Key[Array, ""], batch: int, num_particles: int) -> Any:
        """Zeros; the key and the number of particles are not used."""
        zeros = jnp.zeros((batch, self.hidden), self.head.kernel[...].dtype)
        return zeros if self.kind == "gru" else (zeros, zeros)

    def __call__(
        self,
        carry: Any,
        inputs: Float[ArrayLike, "batch features"],
        key: Key[Array, ""] | None = None,
        *,
        beacons: Float[ArrayLike, "m 2"] | None = None,
        size: Float[ArrayLike, "2"] | None = None,
    ) -> tuple[Any, CellOutput]:
        """One step, as of a particle cell with one particle; key, beacons and size are not used."""
        batch = jax.tree.leaves(carry)[0].shape[0]
        dtype = self.head.kernel[...].dtype
        inputs = check_inputs("RecurrentBaseline", inputs, (batch, self.in_features), dtype)
        inputs, _ = zero_where_missing(inputs)
        # the layers of flax promote dtypes
        with jax.numpy_dtype_promotion("standard"):
            carry, state = self.cell(carry, inputs)
        mean = jax.nn.sigmoid(linear(self.head, state))
        return carry, CellOutput(mean[:, None], jnp.zeros((batch, 1), dtype), mean)


Cell = ParticleCell | RecurrentBaseline


def initial_particles(key: Key[Array, ""], cell: Cell, batch: int, num_particles: int) -> Any:
    """The carry before the first step: standard normal hidden states of equal weights.

    Args:
      key: of `jax.random.key`.
      cell: a particle cell, or a `RecurrentBaseline`, which starts from zero.
      batch: number of sequences (static).
      num_particles: K of each (static).

    Returns:
      `ParticleCarry` with hidden [B, K, hidden] and log_weights [B, K], of the dtype of the parameters; for a baseline
      the carry of its flax cell.

    Raises:
      ValueError: num_particles < 1, batch < 0. TypeError: a key that is not typed.

    Not differentiable.

    Example:
      >>> from jaxnm.filtering.cells import PFGRUCell
      >>> initial_particles(jax.random.key(0), PFGRUCell(9, rngs=nnx.Rngs(0)), 2, 30).hidden.shape
      (2, 30, 64)
    """
    arguments.check_key("initial_particles", key)
    arguments.check_count("initial_particles", "batch", batch)
    arguments.check_count("initial_particles", "num_particles", num_particles, minimum=1)
    if not hasattr(cell, "initial_carry"):
        got = f"of type {type(cell).__name__}"
        arguments.refuse("initial_particles", "cell", got, "a cell", "make a PFGRUCell or MePFRNN", error=TypeError)
    return cell.initial_carry(key, int(batch), int(num_particles))


def unroll(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: Float[ArrayLike, "time batch features"],
    key: Key[Array, ""],
    *,
    num_particles: int = 30,
    beacons: Float[ArrayLike, "m 2"] | None = None,
    size: Float[ArrayLike, "2"] | None = None,
    checkpoint: bool = False,
) -> CellOutput:
    """A batch of sequences through a cell.

    Args:
      graphdef: of `graphdef, params = nnx.split(cell)` (static).
      params: of the same; the pytree to differentiate, to optimize, or to vmap over.
      inputs: [T, B, features]. NaN is missing.
      key: of `jax.random.key`: the initial particles and one key a step come from it.
      num_particles: K (static), free of the K of the training.
      beacons: [m, 2], for `MePFRNN`.
      size: [2], for `MePFRNN`.
      checkpoint: compute a step again for its gradient instead of keeping it (static): of a step only the carry, the
        ancestors, and what is dearer to compute than to keep remain.

    Returns:
      `CellOutput` with predictions [T, B, K, outputs], log_weights [T, B, K], mean [T, B, outputs].

    Raises:
      ValueError: num_particles < 1, or a wrong shape. TypeError: a key that is not typed.

    Cost: T steps; with `checkpoint`, the gradient takes less than one more forward pass
    and less than a quarter of the memory.
    Differentiable in the parameters, with the ancestors held fixed.

    Example:
      >>> from jaxnm.filtering.cells import PFGRUCell
      >>> graphdef, params = nnx.split(PFGRUCell(9, rngs=nnx.Rngs(0)))
      >>> output = unroll(graphdef, params, jnp.ones((5, 2, 9)), jax.random.key(0), num_particles=30)
      >>> output.predictions.shape, output.log_weights.shape, output.mean.shape
      ((5, 2, 30, 3), (5, 2, 30), (5, 2, 3))
    """
    arguments.check_key("unroll", key)
    arguments.check_count("unroll", "num_particles", num_particles, minimum=1)
    if not isinstance(graphdef, nnx.GraphDef):
        got = f"of type {type(graphdef).__name__}"
        arguments.refuse("unroll", "graphdef", got, "a GraphDef", "use nnx.split(cell)", error=TypeError)
    leaves = jax.tree.leaves(params)
    if not leaves or not all(map(arguments.is_numeric, leaves)):
        arguments.refuse(
            "unroll", "params", f"a {type(params).__name__}", "a tree of arrays", "use nnx.split(cell)", error=TypeError
        )
    (inputs,) = arguments.to_arrays("unroll", inputs=inputs)
    arguments.check_shape("unroll", "inputs", inputs, "[T, B, features]", lambda shape: len(shape) == 3)
    beacons, size = check_world("unroll", beacons, size, inputs.dtype)
    arguments.check_flag("unroll", "checkpoint", checkpoint)
    return _unroll(graphdef, params, inputs, key, beacons, size, int(num_particles), bool(checkpoint))


@partial(jax.jit, static_argnums=(0, 6, 7))
def _unroll(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: Array,
    key: Array,
    beacons: Array | None,
    size: Array | None,
    num_particles: int,
    checkpoint: bool,
) -> CellOutput:
    first, rest = jax.random.split(key)
    start = initial_particles(first, nnx.merge(graphdef, params), inputs.shape[1], num_particles)

    def step(params: Any, carry: Any, inputs: Array, key: Array) -> tuple[Any, CellOutput]:
        return nnx.merge(graphdef, params)(carry, inputs, key, beacons=beacons, size=size)

    if checkpoint:
        step = jax.checkpoint(step, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
    xs = (inputs, jax.random.split(rest, inputs.shape[0]))
    return jax.lax.scan(lambda carry, x: step(params, carry, *x), start, xs)[1]
