"""From an optax transformation to its state-space form.

One step of the optimizer is a function of its state z and of the gradient g. On a scalar parameter the derivative of
that function with respect to (z, g) is (A, B). Whether the step really *is* that affine function is then decided by
values, not by derivatives: the step is taken on a tree of several leaves, at several scales, and compared with what
(A, B) predicts. A constant Jacobian alone would pass `sign_sgd` and `lion`.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxnm import arguments, trees
from jaxnm.first_order.state_space import StateSpace
from jaxnm.linalg import matmul

_SCALES = (1e-3, 1.0, 1e3, 1e6, 1e9)
_TEMPLATE = {"matrix": (2, 3), "scalar": (), "vector": (3,)}
# Steps really taken after the warm-up in the search for time variation, and how far ahead the integer counters are then
# moved: each about twice the last, with mixed residues, so that no period divides them all.
_STEPS = 24
_JUMPS = (50, 101, 203, 401, 809, 1_601, 3_203, 6_421, 12_807, 25_603, 51_203, 102_407, 204_803, 409_609, 819_203)


@flax.struct.dataclass
class Linearization:
    """An optax transformation as a linear system, with what was found while testing that it is one."""

    method: StateSpace
    """The state-space form after the warm-up; exact if `time_varying` is False."""
    offset: Float[Array, "n"]
    """Constant part of one step, zero for all deterministic methods in common use."""
    time_varying: Bool[Array, ""]
    """Whether A or B change with the step count (schedules, debiased averages): `method` is a snapshot then."""
    stochastic: Bool[Array, ""]
    """Whether the offset changes from step to step (injected noise): `method` describes the mean then."""
    residual: Float[Array, ""]
    """Largest relative difference between a step and its affine prediction, over all scales and leaves."""
    state_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    """What each of the n states is: the parameter first, then the floating leaves of the optimizer's state."""
    failing: str = flax.struct.field(pytree_node=False, default="")
    """Where the residual is largest: the words of the error message."""


def from_optax(tx: optax.GradientTransformation, *, warmup_steps: int = 3) -> Linearization:
    """The state-space form of an optax transformation, if it is affine in its state and the gradient.

    Args:
      tx: any optax transformation or chain, with concrete hyperparameters.
      warmup_steps: steps taken before the linearization, a Python int >= 1: first-step flags are then over.

    Returns:
      `Linearization`; `.method` has n = 1 + (floating state leaves a parameter has). sgd, momentum, Nesterov momentum,
      traces, weight decay, scaling and averages without debiasing come out exactly. Schedules and debiased averages
      come back with `time_varying=True`, frozen at step `warmup_steps`. Seen are changes within 24 steps after the
      warm-up and at 15 later counts up to 8e5; a nonlinearity that sets in only beyond values of 1e9 is not.

    Raises:
      ValueError: the transformation is not affine (the adam family, sign_sgd, lion, clipping, ...), mixes coordinates
        (centralize), or cannot run on gradients alone (line searches and others that need `value`). The message says
        which test failed. TypeError: `tx` is no optax transformation.

    Cost: some tens of small steps, not jitted. Host side: whether `tx` qualifies is decided by values. Differentiable
    in hyperparameters through `analyze_learning_rates`, not here.

    Example:
      >>> import optax
      >>> from_optax(optax.sgd(0.5, momentum=0.25)).method.B
      Array([-0.5,  1. ], dtype=float32)
    """
    if not isinstance(tx, optax.GradientTransformation):
        arguments.refuse(
            "from_optax",
            "tx",
            f"of type {type(tx).__name__}",
            "an optax.GradientTransformation",
            "call the factory first, as in optax.sgd(0.1)",
            error=TypeError,
        )
    arguments.check_count("from_optax", "warmup_steps", warmup_steps, minimum=1)
    linearization = linearize(tx, warmup_steps)
    if isinstance(linearization.residual, jax.core.Tracer):
        arguments.refuse(
            "from_optax",
            "tx",
            "traced inside a transformation",
            "a transformation with concrete hyperparameters",
            "use analyze_learning_rates for a batch, or call from_optax outside jit",
            error=TypeError,
        )
    check_affine("from_optax", linearization)
    return linearization


def is_affine(linearization: Linearization) -> Bool[Array, "..."]:
    """Whether the residual is rounding."""
    return linearization.residual <= 100 * jnp.finfo(linearization.residual.dtype).eps


def check_affine(function: str, linearization: Linearization) -> None:
    """Refuse a linearization, or a batch of which no member is affine."""
    if not np.any(is_affine(linearization)):
        residual = np.min(np.asarray(linearization.residual))
        tolerance = 100 * jnp.finfo(linearization.residual.dtype).eps
        arguments.refuse(
            function,
            "tx",
            f"not affine in its state and the gradient: {linearization.failing}: "
            + (f"off the prediction by {residual:.2g}" if np.isfinite(residual) else "the step is not finite there"),
            f"a step that (A, B) predict (relative difference <= {tolerance:.1g})",
            "rates of adaptive, clipped or sign-based methods depend on the path and have no iteration matrix",
        )


def linearize(tx: optax.GradientTransformation, warmup_steps: int) -> Linearization:
    """`from_optax` without the verdict: traceable, so that a batch of hyperparameters can be mapped over."""
    # optax is not clean under strict promotion, so the standard rules hold for the calls into it
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            single = _run(tx, (), warmup_steps + _STEPS)[warmup_steps:]
            several = _run(tx, _TEMPLATE, warmup_steps)[-1]
            return _linearize(tx, _find_layout(single[0], several), single, several)
        except _NotCoordinatewise:
            raise
        except Exception as error:
            arguments.refuse(
                "from_optax",
                "tx",
                f"a transformation whose update failed on gradients alone ({type(error).__name__}: {error})",
                "one that needs only gradients, state and parameters, leaf by leaf",
                "those that need the loss value, the shape of a leaf or a special container have no state-space form",
            )


_IS_SHAPE = lambda node: isinstance(node, tuple)
_SHAPES = jax.tree.leaves(_TEMPLATE, is_leaf=_IS_SHAPE)
_STRUCTURE = jax.tree.structure(_TEMPLATE, is_leaf=_IS_SHAPE)


def _run(tx: optax.GradientTransformation, template: Any, steps: int) -> list[Any]:
    """The states after 0 to `steps` updates with random gradients on a tree of the template's shapes."""
    generator = np.random.default_rng(1)
    draw = lambda shape: jnp.asarray(generator.normal(size=shape), jnp.result_type(float))
    params = jax.tree.map(lambda shape: jnp.zeros(shape, jnp.result_type(float)), template, is_leaf=_IS_SHAPE)
    states = [tx.init(params)]
    for _ in range(steps):
        gradient = jax.tree.map(draw, template, is_leaf=_IS_SHAPE)
        update, state = tx.update(gradient, states[-1], params)
        params = optax.apply_updates(params, update)
        states.append(state)
    return states


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How an optimizer's state splits into coordinates and context.

    The state of a single scalar parameter is a pattern that the state on every other tree follows. Its floating leaves
    in whose place a tree of parameters has a tree are coordinates. Everything else (counters, flags, keys, global
    numbers) is context, and is held fixed within a step.
    """

    pattern: Any
    paths: tuple[str, ...]
    is_coordinate: tuple[bool, ...]

    def split(self, state: Any) -> tuple[list[Any], list[Any]]:
        """(coordinates, context) of a state on any tree."""
        pieces = self.pattern.flatten_up_to(state)
        coordinates = [piece for piece, is_one in zip(pieces, self.is_coordinate, strict=True) if is_one]
        return coordinates, [piece for piece, is_one in zip(pieces, self.is_coordinate, strict=True) if not is_one]

    def join(self, coordinates: list[Any], context: list[Any]) -> Any:
        """The inverse of `split`."""
        coordinate, other = iter(coordinates), iter(context)
        return jax.tree.unflatten(
            self.pattern, [next(coordinate if is_one else other) for is_one in self.is_coordinate]
        )

    def names(self, *, of_coordinates: bool) -> list[str]:
        """The paths of the coordinates, or of the context."""
        return [path for path, is_one in zip(self.paths, self.is_coordinate, strict=True) if is_one == of_coordinates]


def _find_layout(single: Any, several: Any) -> _Layout:
    """From the states of one optimizer on a scalar and on the template."""
    leaves = jax.tree_util.tree_leaves_with_path(single)
    pattern = jax.tree.structure(single)
    try:
        pieces = pattern.flatten_up_to(several)
    except (ValueError, TypeError) as error:
        arguments.refuse(
            "from_optax",
            "tx",
            "a transformation whose state changes its structure with that of the parameters in an unknown way",
            "state that follows the parameters leaf by leaf",
            f"use a transformation without labels or masks ({error})",
            error=_NotCoordinatewise,
        )
    is_coordinate = tuple(
        trees.is_floating(leaf) and jax.tree.structure(piece) == _STRUCTURE
        for (_, leaf), piece in zip(leaves, pieces, strict=True)
    )
    return _Layout(pattern, tuple(jax.tree_util.keystr(path) for path, _ in leaves), is_coordinate)


def _step(tx: optax.GradientTransformation, layout: _Layout, z: list[Any], g: Any, context: list[Any]) -> Any:
    """(update of the parameters, new coordinates of the state, new context) from z = (parameters, coordinates)."""
    update, state = tx.update(g, layout.join(z[1:], context), z[0])
    coordinates, context = layout.split(state)
    return [update, *coordinates], context


def _contexts(layout: _Layout, states: list[Any]) -> list[Any]:
    """The context after the warm-up, in the steps after it, and with its integer counters moved far ahead."""
    contexts = [layout.split(state)[1] for state in states]
    now, later = contexts[:2]

    def moved(jump: int) -> list[Any]:
        is_counter = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        move = lambda before, after: before + jump * (after - before) if is_counter(before) else before
        return jax.tree.map(move, now, later)

    return [*contexts, *map(moved, _JUMPS)]


def _linearize(tx: optax.GradientTransformation, layout: _Layout, single: list[Any], several: Any) -> Linearization:
    names = ("parameter", *layout.names(of_coordinates=True))
    n, dtype = len(names), jnp.result_type(float)
    generator = np.random.default_rng(0)
    base = jnp.asarray(generator.normal(size=n + 1), dtype)

    def jacobian(context: list[Any]) -> tuple[Array, Array]:
        """Derivative [n, n + 1] of (update, new state) by (z, g) and the offset, for one setting of the context."""
        step = lambda zg: jnp.stack(_step(tx, layout, list(zg[:n]), zg[n], context)[0])
        derivative = jax.jacfwd(step)(base)
        return derivative, step(base) - matmul(derivative, base)

    contexts = _contexts(layout, single)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *contexts)
    # the counter is there for optimizers without any context, which would leave nothing to map over
    matrices, offsets = jax.vmap(lambda context, _: jacobian(context))(stacked, jnp.arange(len(contexts)))
    matrix, offset = matrices[0], offsets[0]
    # entry by entry, since a learning rate may be tiny beside the entries of the other states
    noise = 1e3 * jnp.finfo(dtype).eps
    residual, failing = _value_test(tx, layout, layout.split(several)[1], matrix, generator)
    parameter = jnp.zeros(n, dtype).at[0].set(1.0)
    return Linearization(
        method=StateSpace(matrix[:, :n] + parameter[:, None] * parameter[None, :], matrix[:, n], parameter),
        offset=offset,
        time_varying=jnp.any(jnp.abs(matrices - matrix[None]) > noise * jnp.abs(matrix)[None]),
        # only a step really taken says whether the offset is noise: a moved counter changes no key
        stochastic=jnp.any(jnp.abs(offsets[1] - offset) > noise * (jnp.max(jnp.abs(matrix), 1) + jnp.abs(offset))),
        residual=residual,
        state_names=names,
        failing=failing,
    )


def _value_test(
    tx: optax.GradientTransformation,
    layout: _Layout,
    context: list[Any],
    matrix: Array,
    generator: np.random.Generator,
) -> tuple[Array, str]:
    """Largest relative difference between a step on the template and the prediction, and where it is.

    Each row (the update, a state) is judged by its own size, so that a small learning rate hides nothing.
    """
    n = matrix.shape[0]
    sizes = jnp.max(jnp.abs(matrix), 1)

    def step(inputs: list[list[Array]]) -> tuple[list[Array], list[Any]]:
        """From the leaves of z_1..z_n and g to those of the result, stacked [n, *shape] leaf by leaf."""
        *z, g = (jax.tree.unflatten(_STRUCTURE, leaves) for leaves in inputs)
        new, context_after = _step(tx, layout, z, g, context)
        return [jnp.stack(leaf) for leaf in zip(*map(jax.tree.leaves, new), strict=True)], context_after

    def draw(scale: float) -> list[list[Array]]:
        normal = lambda shape: jnp.asarray(scale * generator.normal(size=shape), matrix.dtype)
        return [[normal(shape) for shape in _SHAPES] for _ in range(n + 1)]

    # a deterministic constant, or this step's noise; a transformation with 0 / 0 here fails the comparison below
    constant, frozen = step(draw(0.0))
    worst, place = jnp.zeros((), matrix.dtype), "the step differs from its affine prediction"

    def note(worst: Array, place: str, difference: Array, where: str) -> tuple[Array, str]:
        difference = jnp.where(jnp.isfinite(difference), difference, jnp.inf)
        if not isinstance(difference, jax.core.Tracer) and difference > worst:
            place = where
        return jnp.maximum(worst, difference), place

    for scale in _SCALES:
        inputs = draw(scale)
        after, context_after = step(inputs)
        for shape, leaf, base, actual in zip(_SHAPES, zip(*inputs, strict=True), constant, after, strict=True):
            predicted = base + jnp.tensordot(matrix, jnp.stack(leaf), 1, precision="highest")
            differences = jnp.max(jnp.abs(actual - predicted).reshape(n, -1), 1)
            size = scale * sizes + jnp.max(jnp.abs(base).reshape(n, -1), 1)
            # a row that should be zero and is not is off by any measure
            relative = jnp.where(differences == 0, 0, differences / jnp.where(size > 0, size, 1e-30))
            where = f"values of size {scale:g} on a leaf of shape {shape}"
            worst, place = note(worst, place, jnp.max(relative), where)
        for name, before, now in zip(layout.names(of_coordinates=False), frozen, context_after, strict=True):
            for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True):
                if trees.is_floating(other):
                    changed = jnp.max(jnp.abs(jnp.asarray(other) - jnp.asarray(one))) / (1 + jnp.max(jnp.abs(one)))
                    worst, place = note(worst, place, changed, f"state {name} depends on the gradient")
    return worst, place


class _NotCoordinatewise(ValueError):
    """The optimizer's state does not follow the parameters leaf by leaf."""
