"""Steps of an optax transformation on a small tree of parameters, and the derivatives of these steps."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxnm import trees
from jaxnm.first_order.state_space import responses

# Steps really taken after the warm-up in the search for time variation, and how far ahead the integer counters are then
# moved: each about twice the last, with mixed residues, so that no period divides them all.
_STEPS = 24
_JUMPS = (50, 101, 203, 401, 809, 1_601, 3_203, 6_421, 12_807, 25_603, 51_203, 102_407, 204_803, 409_609, 819_203)

SHAPES = {"matrix": (2, 3), "scalar": (), "vector": (3,)}
"""The leaves of the tree on which steps are taken."""
_SIZES = [int(np.prod(shape)) for shape in SHAPES.values()]
_ENDS = np.cumsum(_SIZES)
LEAF_OF_ENTRY = np.repeat(np.arange(len(SHAPES), dtype=np.int32), _SIZES)
_FIRST_ENTRIES = (_ENDS - _SIZES)[LEAF_OF_ENTRY].astype(np.int32)  # of the leaf of each entry
_SCALAR_ENTRY = int(_ENDS[0])
_NUM_ENTRIES = int(_ENDS[-1])
_STRUCTURE = jax.tree.structure(dict.fromkeys(SHAPES, 0))


def scales(dtype: Any) -> np.ndarray:
    """The sizes of the values tried: ordinary ones, and the cube roots of the smallest and the largest number."""
    extreme = float(jnp.finfo(dtype).max) ** (1 / 3)
    return np.array([1 / extreme, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9, extreme])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an optimizer's state splits into coordinates and context.

    The state of a single scalar parameter is a pattern that the state on every other tree follows. Its floating leaves
    in whose place a tree of parameters has a tree of the same shapes are coordinates. Everything else (counters,
    flags, keys, numbers for a leaf or for all) is context, and is held fixed within a step.
    """

    pattern: Any
    paths: tuple[str, ...]
    is_coordinate: tuple[bool, ...]
    dtypes: tuple[Any, ...]
    parts: tuple[str, ...]
    """Names of the classes that the state is made of."""
    flattened: tuple[str, ...]
    """Paths of the floating leaves that are one vector of all parameters."""

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

    def coordinate_dtypes(self) -> list[tuple[str, Any]]:
        """(path, dtype) of each coordinate."""
        everything = zip(self.paths, self.dtypes, self.is_coordinate, strict=True)
        return [(path, dtype) for path, dtype, is_one in everything if is_one]


def find_layout(tx: optax.GradientTransformation) -> Layout:
    """From the shapes of an optimizer's states on a scalar and on the tree; nothing is computed."""
    number = jax.ShapeDtypeStruct((), jnp.result_type(float))
    tree = {name: jax.ShapeDtypeStruct(shape, number.dtype) for name, shape in SHAPES.items()}
    several = jax.eval_shape(tx.init, tree)
    parts = tuple(_class_names(several))
    single = jax.eval_shape(tx.init, number)
    pattern = jax.tree.structure(single)
    pieces, leaves = _pieces(pattern, several, parts), jax.tree_util.tree_leaves_with_path(single)

    def follows(leaf: Any, piece: Any) -> bool:
        if not trees.is_floating(leaf) or jax.tree.structure(piece) != _STRUCTURE:
            return False
        return [one.shape for one in jax.tree.leaves(piece)] == list(SHAPES.values())

    def is_flat(leaf: Any, piece: Any) -> bool:
        return trees.is_floating(leaf) and leaf.shape == (1,) and getattr(piece, "shape", None) == (_NUM_ENTRIES,)

    return Layout(
        pattern,
        tuple(jax.tree_util.keystr(path) for path, _ in leaves),
        tuple(follows(leaf, piece) for (_, leaf), piece in zip(leaves, pieces, strict=True)),
        tuple(leaf.dtype for _, leaf in leaves),
        parts,
        tuple(
            jax.tree_util.keystr(path)
            for (path, leaf), piece in zip(leaves, pieces, strict=True)
            if is_flat(leaf, piece)
        ),
    )


class UnknownStructureError(ValueError):
    """The optimizer's state does not follow the parameters leaf by leaf."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts


def _pieces(pattern: Any, several: Any, parts: tuple[str, ...]) -> list[Any]:
    try:
        return pattern.flatten_up_to(several)
    except (ValueError, TypeError):
        raise UnknownStructureError(parts) from None


def _class_names(state: Any) -> list[str]:
    """Names of the classes of all nodes of a pytree, outermost first."""
    children = jax.tree_util.default_registry.flatten_one_level(state)
    below = [] if children is None else [name for child in children[0] for name in _class_names(child)]
    return [type(state).__name__, *below]


@flax.struct.dataclass
class Measurement:
    """Steps and their derivatives, at the counts and the values tried."""

    matrices: Float[Array, "counts n n+1"]
    """Derivative of (update, new state) by (z, g) on the scalar leaf."""
    offsets: Float[Array, "counts n"]
    """The step from zero with a zero gradient, on the scalar leaf."""
    residual: Float[Array, ""]
    """Largest of all that follow, relative to their sizes."""
    differences: Float[Array, "points"]
    """Of each step from its prediction by the scalar leaf's matrix."""
    leafwise: Float[Array, "points"]
    """Of each step from its prediction by each leaf's own matrix."""
    leaf_matrices: Float[Array, "n n+1 leaves"]
    """The matrices of the leaves."""
    by_count: Float[Array, "counts"]
    """Largest difference among the steps of each count."""
    context_changes: Float[Array, "context"]
    """By how much a number that is not a coordinate's depends on the values."""
    by_gradient: Float[Array, "scales n entries"]
    """Steps with a gradient of each scale, from a state of zeros, less that with none."""
    mixing: Bool[Array, "leaves entries"]
    """Where a step depends on the first entry of the gradient of a leaf."""
    context_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    """What each number of the context is."""
    state_names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    """What each coordinate is."""


def measure(tx: optax.GradientTransformation, layout: Layout, warmup_steps: int) -> Measurement:
    """Steps of `tx` at many counts and values; to be jitted."""
    names = ("parameter", *layout.names(of_coordinates=True))
    n, dtype = len(names), jnp.result_type(float)
    contexts = _contexts(layout, _run(tx, warmup_steps + _STEPS), warmup_steps)
    num_counts = _STEPS + 1 + len(_JUMPS)
    inputs, count_of_point = _points(n, num_counts, dtype)

    def step(context: list[Any], inputs: Array) -> tuple[Array, list[Any]]:
        """From [n + 1, entries] of z and g to [n, entries] of (update, new z), and the context after."""
        *z, g = (_unravel(row) for row in inputs)
        update, state = tx.update(g, layout.join(z[1:], context), z[0])
        coordinates, context_after = layout.split(state)
        return jnp.stack([_ravel(tree) for tree in (update, *coordinates)]), context_after

    def point(context: list[Any], inputs: Array) -> tuple[Array, list[Any], Array]:
        """The step, the context after it, and its derivative [n, n + 1, entries] along each input in all entries."""
        directions = jnp.broadcast_to(jnp.eye(n + 1, dtype=dtype)[:, :, None], (n + 1, n + 1, _NUM_ENTRIES))
        here = lambda inputs: step(context, inputs)
        along = lambda direction: jax.jvp(here, (inputs,), (direction,), has_aux=True)
        after, slopes, context_after = jax.vmap(along, out_axes=(0, 1, 0))(directions)
        return after[0], jax.tree.map(lambda leaf: leaf[0], context_after), slopes

    at = jax.tree.map(lambda leaf: leaf[count_of_point], contexts)
    after, contexts_after, slopes = jax.vmap(point)(at, jnp.asarray(inputs))
    return _compare(layout, names, inputs, count_of_point, after, contexts_after, slopes)


def _run(tx: optax.GradientTransformation, steps: int) -> Any:
    """The states after 1 to `steps` updates with random gradients, stacked."""
    dtype = jnp.result_type(float)
    gradients = jnp.asarray(np.random.default_rng(1).normal(size=(steps, _NUM_ENTRIES)), dtype)
    params = _unravel(jnp.zeros(_NUM_ENTRIES, dtype))

    def update(carry: tuple[Any, Any], gradient: Array) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        change, state = tx.update(_unravel(gradient), state, params)
        return (optax.apply_updates(params, change), state), state

    # the first state may hold Python numbers or narrower ones than those after it
    first = (params, tx.init(params))
    like, _ = jax.eval_shape(update, first, gradients[0])
    first = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), first, like)
    return jax.lax.scan(update, first, gradients)[1]


def _contexts(layout: Layout, states: Any, warmup_steps: int) -> list[Any]:
    """The context after the warm-up, in the steps after it, and with its integer counters moved far ahead, stacked."""
    context = layout.split(states)[1]

    def extended(leaf: Array) -> Array:
        taken = leaf[warmup_steps - 1 :]
        now, later = taken[:1], taken[1:2]
        is_counter = jnp.issubdtype(leaf.dtype, jnp.integer)
        jumps = np.array(_JUMPS).reshape(-1, *[1] * (leaf.ndim - 1))
        moved = (
            now + jnp.asarray(jumps, leaf.dtype) * (later - now) if is_counter else now[np.zeros(len(_JUMPS), np.int32)]
        )
        return jnp.concatenate([taken, moved])

    return jax.tree.map(extended, context)


def _points(n: int, num_counts: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where steps are taken: inputs [points, n + 1, entries], and at which count each.

    First zero at every count, then random numbers at every count; then, at the first count, each input alone and all
    together at every scale; then a parameter and a large gradient, plain and with one entry of a leaf changed.
    """
    random = np.random.default_rng(0)
    draw = lambda: random.normal(size=(n + 1, _NUM_ENTRIES))
    base = draw()
    inputs = [np.zeros_like(base)] * num_counts + [base] * num_counts
    counts = list(range(num_counts)) * 2
    alone, together = np.eye(n + 1)[:, :, None] * draw()[None], draw()
    for scale in scales(dtype):
        inputs += [*(scale * alone), scale * together]
    # the state is zero here, since squares that it collects are not negative
    plain = alone[0] + 1e6 * alone[n]
    inputs.append(plain)
    for entry in np.unique(_FIRST_ENTRIES):
        changed = plain.copy()
        changed[n, entry] *= -2
        inputs.append(changed)
    counts += [0] * (len(inputs) - len(counts))
    return np.asarray(inputs, dtype), np.array(counts, np.int32)


def _compare(
    layout: Layout,
    names: tuple[str, ...],
    inputs: np.ndarray,
    count_of_point: np.ndarray,
    after: Array,
    contexts_after: list[Any],
    slopes: Array,
) -> Measurement:
    """Steps [points, n, entries] against what the derivatives [points, n, n + 1, entries] predict."""
    n, dtype = len(names), after.dtype
    num_counts, num_scales = int(count_of_point.max()) + 1, len(scales(dtype))
    slopes = slopes[num_counts : 2 * num_counts]
    constant = after[:num_counts][count_of_point]
    common = jnp.broadcast_to(slopes[..., _SCALAR_ENTRY, None], slopes.shape)
    matrices = common[..., 0]
    # A step that is a difference of two values of the size of the parameters has their rounding, however small it is.
    response = responses(
        matrices[0, :, :n] + jnp.eye(n, 1, dtype=dtype) * jnp.eye(1, n, dtype=dtype), matrices[0, :, n]
    )
    ratios = jnp.where(response[None] > 0, response[:, None] / jnp.where(response > 0, response, 1)[None], 0)
    rounding = jnp.append(ratios, jnp.zeros((n, 1), dtype), axis=1)
    least = jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps

    def differences(matrices: Array) -> Array:
        """[points]: the largest relative difference, with the matrices [counts, n, n + 1, entries] of each entry."""
        terms = matrices[count_of_point] * inputs[:, None]
        difference = jnp.abs(after - constant - jnp.sum(terms, 2))
        bound = jnp.abs(terms) + rounding[None, :, :, None] * jnp.abs(inputs)[:, None]
        size = jnp.sum(bound, 2) + jnp.abs(constant)
        # a value that should be zero and is not is off by any measure
        relative = jnp.where(difference == 0, 0, difference / jnp.maximum(size, least))
        return jnp.max(jnp.where(jnp.isfinite(relative), relative, jnp.inf), (1, 2))

    off = differences(common)
    changes = [jnp.zeros(())]
    context_names = [""]
    at_first_count = np.flatnonzero(count_of_point == 0).astype(np.int32)
    for name, piece in zip(layout.names(of_coordinates=False), contexts_after, strict=True):
        for leaf in jax.tree.leaves(piece):
            if jnp.issubdtype(leaf.dtype, jnp.number):
                context_names.append(name)
                changes.append(_largest_change(leaf[at_first_count]))
    alone = after[2 * num_counts :][: num_scales * (n + 2)].reshape(num_scales, n + 2, *after.shape[1:])
    context_changes = jnp.stack([change.astype(dtype) for change in changes])
    return Measurement(
        matrices=matrices,
        offsets=after[:num_counts, :, _SCALAR_ENTRY],
        residual=jnp.maximum(jnp.max(off), jnp.max(context_changes)),
        differences=off,
        leafwise=differences(slopes[..., _FIRST_ENTRIES]),
        leaf_matrices=slopes[0][..., np.unique(_FIRST_ENTRIES)],
        by_count=jax.ops.segment_max(off, count_of_point, num_counts),
        context_changes=context_changes,
        by_gradient=alone[:, n] - jnp.where(jnp.isfinite(constant[:1]), constant[:1], 0),
        mixing=jnp.any(after[-len(SHAPES) :] != after[-len(SHAPES) - 1 : -len(SHAPES)], 1),
        context_names=tuple(context_names),
        state_names=names,
    )


def _largest_change(values: Array) -> Array:
    """Of numbers [points, ...] from those of the first point, relative to their sizes."""
    first, values = jnp.asarray(values[:1], jnp.result_type(float)), jnp.asarray(values, jnp.result_type(float))
    size = jnp.maximum(jnp.abs(first), jnp.abs(values))
    change = jnp.where(values == first, 0, jnp.abs(values - first) / jnp.where(size > 0, size, 1))
    return jnp.max(jnp.where(jnp.isfinite(change), change, jnp.inf), initial=0.0)


def _ravel(tree: Any) -> Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _unravel(entries: Array) -> Any:
    pieces = jnp.split(entries, _ENDS[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(SHAPES.items(), pieces, strict=True)}
