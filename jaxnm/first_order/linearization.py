"""From an optax transformation to its state-space form.

One step of the optimizer is a function of its state z and of the gradient g. On a scalar parameter the derivative of
that function with respect to (z, g) is (A, B). Whether the step really *is* that affine function is then decided by
values, not by derivatives: the step is taken on a tree of several leaves, at several scales, and compared with what
(A, B) predicts. A constant Jacobian alone would pass `sign_sgd` and `lion`.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxnm import arguments, trees
from jaxnm.first_order.state_space import StateSpace

_SCALES = (1e-3, 1.0, 1e3, 1e6)
_TEMPLATE = {"matrix": (2, 3), "scalar": (), "vector": (3,)}
# how far ahead the integer counters are moved in the search for schedules
_JUMPS = (1, 9, 99, 999, 9_999, 99_999, 999_999)


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


def from_optax(tx: optax.GradientTransformation, *, warmup_steps: int = 3) -> Linearization:
    """The state-space form of an optax transformation, if it is affine in its state and the gradient.

    Args:
      tx: any optax transformation or chain; hyperparameters may be traced.
      warmup_steps: steps taken before the linearization, a Python int >= 1: first-step flags are then over.

    Returns:
      `Linearization`; `.method` has n = 1 + (floating state leaves a parameter has). sgd, momentum, Nesterov momentum,
      traces, weight decay, scaling and averages without debiasing come out exactly. Schedules and debiased averages
      come back with `time_varying=True`, frozen at step `warmup_steps`.

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


def check_affine(function: str, linearization: Linearization) -> None:
    """Refuse a linearization whose residual (a scalar or a batch) is above rounding."""
    residual = np.max(np.asarray(linearization.residual))
    tolerance = 100 * jnp.finfo(linearization.residual.dtype).eps
    if not residual <= tolerance:
        arguments.refuse(
            function,
            "tx",
            f"not affine in its state and the gradient: {linearization.failing}; the largest relative difference is "
            f"{residual:.3g}",
            f"an affine step (difference <= {tolerance:.1g})",
            "rates of adaptive, clipped or sign-based methods depend on the path and have no iteration matrix",
        )


def linearize(tx: optax.GradientTransformation, warmup_steps: int) -> Linearization:
    """`from_optax` without the verdict: traceable, so that a batch of hyperparameters can be mapped over."""
    # optax is not clean under strict promotion, so the standard rules hold for the calls into it
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            single = _Coordinates(tx, (), warmup_steps)
            several = _Coordinates(tx, _TEMPLATE, warmup_steps)
            single.match(several)
            return _linearize(single, several)
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


def _linearize(single: "_Coordinates", several: "_Coordinates") -> Linearization:
    n = len(single.coordinate_leaves)
    generator = np.random.default_rng(0)
    dtype = jnp.result_type(float)
    base = jnp.asarray(generator.normal(size=n + 1), dtype)

    def jacobian(context: list[Any]) -> tuple[Array, Array]:
        """[A B] and the offset of the scalar step, for one setting of the counters and flags."""
        step = lambda zg: jnp.stack(single.step(list(zg[:n]), zg[n], context)[0])  # noqa: E731
        value, derivative = step(base), jax.jacfwd(step)(base)
        return derivative, value - jnp.matmul(derivative, base, precision="highest")

    contexts = single.contexts()
    matrix, offset = jacobian(contexts[0])
    others = [jacobian(context) for context in contexts[1:]]
    size = jnp.maximum(jnp.max(jnp.abs(matrix)), 1)
    noise = 1e3 * jnp.finfo(dtype).eps
    time_varying = jnp.any(jnp.stack([jnp.max(jnp.abs(other - matrix)) > noise * size for other, _ in others]))
    # only the steps really taken say whether the offset is noise: a moved counter changes no key
    stochastic = jnp.max(jnp.abs(others[0][1] - offset)) > noise * size

    residual, failing = _value_test(several, matrix, generator)
    C = jnp.zeros(n, dtype).at[0].set(1.0)
    return Linearization(
        method=StateSpace(matrix[:, :n], matrix[:, n], C),
        offset=offset,
        time_varying=time_varying,
        stochastic=stochastic,
        residual=residual,
        state_names=tuple(single.names),
        failing=failing,
    )


def _value_test(several: "_Coordinates", matrix: Array, generator: np.random.Generator) -> tuple[Array, str]:
    """Largest relative difference between a step on the tree and the prediction of [A B], and a word on it."""
    n = matrix.shape[0]
    context = several.contexts()[0]
    zeros = [[jnp.zeros(shape, matrix.dtype) for shape in several.shapes] for _ in range(n)]
    # a deterministic constant, or this step's noise; a transformation with 0 / 0 here fails the comparison below
    constant, frozen = several.step_trees(zeros, zeros[0], context)
    worst, place = jnp.zeros((), matrix.dtype), "the step differs from its affine prediction"
    for scale in _SCALES:
        draw = lambda: [jnp.asarray(scale * generator.normal(size=shape), matrix.dtype) for shape in several.shapes]  # noqa: B023, E731
        z, g = [draw() for _ in range(n)], draw()
        after, context_after = several.step_trees(z, g, context)
        for leaf, shape in enumerate(several.shapes):
            inputs = jnp.stack([*(z[i][leaf] for i in range(n)), g[leaf]])
            predicted = jnp.tensordot(matrix, inputs, 1, precision="highest")
            actual = jnp.stack([after[i][leaf] for i in range(n)])
            base = jnp.stack([constant[i][leaf] for i in range(n)])
            size = scale * jnp.maximum(jnp.max(jnp.abs(matrix)), 1) + jnp.max(jnp.abs(base))
            difference = jnp.max(jnp.abs(actual - predicted - base)) / size
            difference = jnp.where(jnp.isfinite(difference), difference, jnp.inf)
            worst, place = _note(worst, place, difference, f"values of size {scale:g} on a leaf of shape {shape}")
        for name, before, now in zip(several.context_names, frozen, context_after, strict=True):
            if trees.is_floating(now):
                changed = jnp.max(jnp.abs(jnp.asarray(now) - jnp.asarray(before))) / (1 + jnp.max(jnp.abs(before)))
                changed = jnp.where(jnp.isfinite(changed), changed, jnp.inf)
                worst, place = _note(worst, place, changed, f"state {name} depends on the gradient")
    return worst, place


def _note(worst: Array, place: str, difference: Array, where: str) -> tuple[Array, str]:
    if not isinstance(difference, jax.core.Tracer) and difference > worst:
        place = where
    return jnp.maximum(worst, difference), place


class _NotCoordinatewise(ValueError):
    """The optimizer's state does not follow the parameters leaf by leaf."""


class _Coordinates:
    """A warmed-up optimizer on one tree of parameters, its state split into coordinates and context.

    Coordinates are the floating leaves that follow the parameters' structure; everything else (counters, flags, keys,
    global numbers) is context and is held fixed within a step.
    """

    def __init__(self, tx: optax.GradientTransformation, shapes: Any, warmup_steps: int):
        self.tx = tx
        dtype = jnp.result_type(float)
        is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
        self.shapes = jax.tree.leaves(shapes, is_leaf=is_shape)
        self.template = jax.tree.structure(shapes, is_leaf=is_shape)
        generator = np.random.default_rng(1)
        params = self._tree([jnp.zeros(shape, dtype) for shape in self.shapes])
        state = tx.init(params)
        self.states = []
        for _ in range(warmup_steps + 1):
            gradient = self._tree([jnp.asarray(generator.normal(size=shape), dtype) for shape in self.shapes])
            update, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, update)
            self.states.append(state)
        self.states = self.states[-2:]
        # the state of a single scalar is the pattern that the state of every other tree follows
        self.pattern = jax.tree.structure(state)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        self.paths = [jax.tree_util.keystr(path) for path, _ in leaves]

    def match(self, several: "_Coordinates") -> None:
        """Find out, from the same optimizer on a larger tree, which leaves of the scalar state are coordinates."""
        single_leaves = jax.tree.leaves(self.states[0])
        try:
            subtrees = self.pattern.flatten_up_to(several.states[0])
        except (ValueError, TypeError) as error:
            arguments.refuse(
                "from_optax",
                "tx",
                "a transformation whose state changes its structure with that of the parameters in an unknown way",
                "state that follows the parameters leaf by leaf",
                f"use a transformation without labels or masks ({error})",
                error=_NotCoordinatewise,
            )
        coordinate = [
            trees.is_floating(leaf) and jax.tree.structure(subtree) == several.template and subtree is not leaf
            for leaf, subtree in zip(single_leaves, subtrees, strict=True)
        ]
        for owner, pieces in ((self, single_leaves), (several, subtrees)):
            owner.prefix = self.pattern
            owner.is_coordinate = coordinate
            owner.context_names = [
                path
                for path, is_one, piece in zip(self.paths, coordinate, pieces, strict=True)
                if not is_one
                for _ in jax.tree.leaves(piece)
            ]
        self.coordinate_leaves = [None] + [
            leaf for leaf, is_one in zip(single_leaves, coordinate, strict=True) if is_one
        ]
        self.names = ["parameter"] + [path for path, is_one in zip(self.paths, coordinate, strict=True) if is_one]

    def contexts(self) -> list[list[Any]]:
        """The context after the warm-up, one step later, and with its integer counters moved far ahead."""
        now, later = (self._split(state)[1] for state in self.states)

        def moved(jump: int) -> list[Any]:
            is_counter = [jnp.issubdtype(jnp.result_type(leaf), jnp.integer) for leaf in jax.tree.leaves(now)]
            leaves = [
                before + jump * (after - before) if counter else before
                for before, after, counter in zip(jax.tree.leaves(now), jax.tree.leaves(later), is_counter, strict=True)
            ]
            return jax.tree.unflatten(jax.tree.structure(now), leaves)

        return [now, later, *(moved(jump) for jump in _JUMPS)]

    def step(self, z: list[Any], g: Any, context: list[Any]) -> tuple[list[Any], list[Any]]:
        """One update: (new states, new context). z[0] is the parameter tree, z[1:] the coordinates of the state."""
        coordinates, others = iter(z[1:]), iter(context)
        pieces = [next(coordinates) if is_one else next(others) for is_one in self.is_coordinate]
        update, state = self.tx.update(g, jax.tree.unflatten(self.prefix, pieces), z[0])
        new, context = self._split(state)
        return [optax.apply_updates(z[0], update), *new], context

    def step_trees(self, z: list[Any], g: Any, context: list[Any]) -> tuple[list[list[Array]], list[Any]]:
        """`step` with each tree given, and returned, as the list of its leaves."""
        new, context = self.step([self._tree(leaves) for leaves in z], self._tree(g), context)
        return [jax.tree.leaves(tree) for tree in new], jax.tree.leaves(context)

    def _tree(self, leaves: list[Any]) -> Any:
        return jax.tree.unflatten(self.template, leaves)

    def _split(self, state: Any) -> tuple[list[Any], list[Any]]:
        pieces = self.prefix.flatten_up_to(state)
        coordinates = [piece for piece, is_one in zip(pieces, self.is_coordinate, strict=True) if is_one]
        return coordinates, [piece for piece, is_one in zip(pieces, self.is_coordinate, strict=True) if not is_one]
