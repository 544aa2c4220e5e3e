"""Mazes with beacons: a robot knows how it moves and hears how far the nearest beacons are, but not which they are.

The unit of length is a cell: cell (i, j) is [i, i + 1) x [j, j + 1), x runs over [0, nx] and y over [0, ny]. The mazes
are symmetric on purpose, so that one observation fits several places and only the way on tells them apart.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxnm import arguments
from jaxnm.filtering.models import StateSpaceModel

_CANDIDATES = 16  # headings tried where the way is blocked: with half the circle free, all fail once in 65,536 times

_THREE_DEGREES = float(np.deg2rad(3))


@flax.struct.dataclass
class World:
    """A rectangle of cells, some of them blocked, and the positions of beacons."""

    name: str = flax.struct.field(pytree_node=False)
    blocked: Bool[Array, "nx ny"]
    """Which cells nobody can be in."""
    beacons: Float[Array, "m 2"]
    """All distinct, sorted by x and then by y. Walls do not hide them."""


@flax.struct.dataclass
class Trajectories:
    """Where robots went, how they moved, and what they heard."""

    poses: Float[Array, "n T 3"]
    """x, y and the heading in radians, in [-pi, pi]."""
    actions: Float[Array, "n T 4"]
    """The move into each row: dx, dy, and cosine and sine of the heading, without noise. dx = dy = 0 in row 0."""
    ranges: Float[Array, "n T k"]
    """Distances to the k nearest beacons, the nearest first, and noise on each (which can upset that order)."""


# ------------------------------------------------------------------------------------------------ geometry

_MAZE10 = """
..........
.BB....BB.
.B..##..B.
..........
..#.BB.#..
..#.BB.#..
..........
.B..##..B.
.BB....BB.
..........
"""

# tiles in the corners, along the sides and in the middle of a maze of 3 x 3 tiles
_TILES6 = """
......  ......  ......
.B..B.  ..BB..  ......
......  .B##B.  ..BB..
......  .B##B.  ..BB..
.B..B.  ..BB..  ......
......  ......  ......
"""

_TILES9 = """
.........  .........  .........
.BB...BB.  .........  .#.....#.
.B..#..B.  ..BB.BB..  .........
.........  ..B...B..  ...BBB...
..#.B.#..  ....#....  ...B#B...
.........  ..B...B..  ...BBB...
.B..#..B.  ..BB.BB..  .........
.BB...BB.  .........  .#.....#.
.........  .........  .........
"""

_HALF_LABYRINTH = """
..............
..............
####B###......
..............
..............
......###B####
..............
..............
####B###......
..............
..............
......###B####
..............
..............
.B##..B..##.B.
..............
..............
"""


def maze10(*, dtype: Any = float) -> World:
    """A 10 x 10 maze: 24 blocked cells, 16 of them beacon blocks, which have 41 distinct corners.

    Blocked cells and beacons have the whole symmetry group of the square (order 8): an observation fits eight places.
    Nothing in the map breaks it, and nothing has to: a displacement is known in the axes of the world, so that of eight
    places that look alike at first, all but one contradict the ranges once the robot has moved along both axes.
    `histogram_filter` localizes all of 60 robots to half a cell within 100 steps, half of them within 10.

    Args:
      dtype: of the beacons, float32 or float64 (static).

    Returns:
      `World`. Not differentiable: a map is static, only its beacons are numbers.

    Example:
      >>> world = maze10()
      >>> world.blocked.shape, int(world.blocked.sum()), world.beacons.shape
      ((10, 10), 24, (41, 2))
    """
    return world_from_map("maze10", _MAZE10.split(), dtype=dtype)


def maze18(*, dtype: Any = float) -> World:
    """An 18 x 18 maze of 3 x 3 tiles: 68 blocked cells, 52 of them beacon blocks, with 153 distinct corners.

    The symmetry group is that of the square (order 8), and so is that of each tile: the four tiles in the corners are
    equal, and so are the four along the sides. Well inside one of these an observation fits 32 places, and the way on
    fits four until it comes to the border of the tile. `histogram_filter` localizes 56 of 60 robots within 100 steps.

    Args:
      dtype: of the beacons, float32 or float64 (static).

    Returns:
      `World`. Not differentiable: a map is static, only its beacons are numbers.

    Example:
      >>> world = maze18()
      >>> world.blocked.shape, int(world.blocked.sum()), world.beacons.shape
      ((18, 18), 68, (153, 2))
    """
    return world_from_map("maze18", _tiled(_TILES6), dtype=dtype)


def maze27(*, dtype: Any = float) -> World:
    """A 27 x 27 maze of 3 x 3 tiles: 133 blocked cells, 108 of them beacon blocks, with 288 distinct corners.

    The symmetries are those of `maze18`, with tiles of 9 x 9 cells: 100 steps of 0.2 often stay within two of them, and
    `histogram_filter` localizes only 30 of 60 robots in that time.

    Args:
      dtype: of the beacons, float32 or float64 (static).

    Returns:
      `World`. Not differentiable: a map is static, only its beacons are numbers.

    Example:
      >>> world = maze27()
      >>> world.blocked.shape, int(world.blocked.sum()), world.beacons.shape
      ((27, 27), 133, (288, 2))
    """
    return world_from_map("maze27", _tiled(_TILES9), dtype=dtype)


def labyrinth(*, dtype: Any = float) -> World:
    """A 14 x 34 labyrinth: 78 blocked cells, 14 of them with a beacon in the centre; a corridor that winds through it.

    A turn by 180 degrees about the centre maps it to itself (order 2). In each half, walls and beacons repeat once,
    six cells further in y.

    Args:
      dtype: of the beacons, float32 or float64 (static).

    Returns:
      `World`. Not differentiable: a map is static, only its beacons are numbers.

    Example:
      >>> world = labyrinth()
      >>> world.blocked.shape, int(world.blocked.sum()), world.beacons.shape
      ((14, 34), 78, (14, 2))
    """
    half = _HALF_LABYRINTH.split()
    rows = half + [row[::-1] for row in reversed(half)]
    return world_from_map("labyrinth", rows, beacons_at="centers", dtype=dtype)


def _tiled(tiles: str) -> list[str]:
    """The map of 3 x 3 tiles, from those for corners, sides and middle side by side."""
    rows = [row.split() for row in tiles.strip().splitlines()]
    outer = [corner + side + corner for corner, side, _ in rows]
    return outer + [side + middle + side for _, side, middle in rows] + outer


def world_from_map(
    name: str, rows: Sequence[str], *, beacons_at: Literal["corners", "centers"] = "corners", dtype: Any = float
) -> World:
    """A world from a picture of it.

    Args:
      name: of the world (static).
      rows: strings of equal length, the topmost (largest y) first; "." is a free cell, "#" a blocked cell, "B" a
        blocked cell with beacons.
      beacons_at: "corners" puts a beacon into each corner of a beacon cell (one where cells share a corner), "centers"
        one into its centre.
      dtype: of the beacons, float32 or float64 (static).

    Returns:
      `World`, its `blocked` of shape [length of a row, number of rows].

    Raises:
      ValueError: rows of different lengths, an unknown character, no beacon, no free cell, free cells that cannot be
        reached from each other by sides, an unknown beacons_at. TypeError: rows that are one string.

    Cost: at once (on the host).

    Not differentiable.

    Example:
      >>> world = world_from_map("yard", ["...", ".B.", "..."])
      >>> world.beacons.tolist()
      [[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]
    """
    function = "world_from_map"
    if isinstance(rows, str):
        arguments.refuse(function, "rows", "one string", "a list of strings", "pass rows.split()", error=TypeError)
    if beacons_at not in ("corners", "centers"):
        arguments.refuse(function, "beacons_at", repr(beacons_at), "'corners' or 'centers'", "choose one")
    rows = list(rows)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths[0] == 0:
        got = f"of lengths {lengths}" if rows else "empty"
        arguments.refuse(function, "rows", got, "rows of one length, at least 1", "fill up the short rows")
    unknown = sorted(set("".join(rows)) - set(".#B"))
    if unknown:
        arguments.refuse(function, "rows", f"with {unknown}", "the characters '.', '#' and 'B'", "replace the others")
    cells = np.array([list(row) for row in reversed(rows)]).T
    if not (cells == "B").any():
        arguments.refuse(function, "rows", "without a beacon", "at least one 'B'", "mark a cell by 'B'")
    blocked = cells != "."
    unreached = _unreached(blocked)
    if blocked.all() or unreached.any():
        got = "without a free cell" if blocked.all() else f"with {unreached.sum()} free cells apart from the others"
        arguments.refuse(function, "rows", got, "free cells connected by their sides", "open a wall, or fill them")
    corners = np.argwhere(cells == "B")[:, None]
    offsets = [[0, 0], [0, 1], [1, 0], [1, 1]] if beacons_at == "corners" else [[0.5, 0.5]]
    beacons = np.unique((corners + np.array(offsets)).reshape(-1, 2), axis=0)
    return World(name, jnp.asarray(blocked), jnp.asarray(beacons, jnp.result_type(dtype)))


def _unreached(blocked: np.ndarray) -> np.ndarray:
    """The free cells that a walk from the first free cell does not come to."""
    free = ~blocked
    reached = np.zeros_like(free)
    reached.flat[np.argmax(free)] = free.any()
    while True:
        grown = np.pad(reached, 1)
        grown = (reached | grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]) & free
        if (grown == reached).all():
            return free & ~reached
        reached = grown


def is_free(world: World, positions: Float[ArrayLike, "*batch 2"]) -> Bool[Array, "*batch"]:
    """Whether positions are inside the world and in no blocked cell; False for NaN.

    Args:
      world: the cells.
      positions: [..., 2].

    Returns:
      [...] bool.

    Not differentiable.

    Example:
      >>> is_free(maze10(), jnp.array([[0.5, 0.5], [1.5, 1.5], [-0.1, 5.0]])).tolist()
      [True, False, False]
    """
    check_is_world("is_free", world)
    (positions,) = arguments.to_arrays("is_free", positions=positions)
    _check_points("is_free", positions)
    return _is_free(world.blocked, positions)


@jax.jit
def _is_free(blocked: Array, positions: Array) -> Array:
    size = jnp.array(blocked.shape, positions.dtype)
    size = size.reshape((1,) * (positions.ndim - 1) + (2,))
    inside = jnp.all((positions >= 0) & (positions < size), axis=-1)
    cells = jnp.where(inside[..., None], positions, 0).astype(jnp.int32)
    return inside & ~blocked[cells[..., 0], cells[..., 1]]


def _check_points(function: str, positions: Array) -> None:
    arguments.check_shape(
        function, "positions", positions, "[..., 2]", lambda shape: len(shape) >= 1 and shape[-1] == 2, "pass x and y"
    )


# ------------------------------------------------------------------------------------------------ ranges


def nearest_ranges(
    positions: Float[ArrayLike, "*batch 2"], beacons: Float[ArrayLike, "m 2"], num_ranges: int
) -> Float[Array, "*batch {num_ranges}"]:
    """Distances to the nearest beacons, the nearest first.

    Args:
      positions: [..., 2].
      beacons: [m, 2], of the same dtype.
      num_ranges: k, how many distances (static), at most m.

    Returns:
      [..., k], ascending.

    Raises:
      ValueError: other shapes, num_ranges < 1 or > m.

    Cost: m distances and a partial sort a position; memory for m numbers a position.
    Differentiable where the k-th nearest beacon is nearer than the next one; the gradient at a beacon itself is zero.

    Example:
      >>> nearest_ranges(jnp.array([3.0, 0.0]), jnp.array([[0.0, 4.0], [3.0, 1.0], [9.0, 9.0]]), 2)
      Array([1., 5.], dtype=float32)
    """
    function = "nearest_ranges"
    positions, beacons = arguments.to_arrays(function, positions=positions, beacons=beacons)
    _check_points(function, positions)
    arguments.check_shape(
        function, "beacons", beacons, "[m, 2]", lambda shape: len(shape) == 2 and shape[1] == 2, "pass x and y of each"
    )
    _check_num_ranges(function, num_ranges, len(beacons))
    return _nearest_ranges(positions, beacons, int(num_ranges))


@partial(jax.jit, static_argnums=2)
def _nearest_ranges(positions: Array, beacons: Array, num_ranges: int) -> Array:
    beacons = beacons.reshape((1,) * (positions.ndim - 1) + beacons.shape)
    squared = jnp.sum((positions[..., None, :] - beacons) ** 2, axis=-1)
    squared = -jax.lax.top_k(-squared, num_ranges)[0]
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _check_num_ranges(function: str, num_ranges: Any, num_beacons: int) -> None:
    arguments.check_count(function, "num_ranges", num_ranges, minimum=1)
    if num_ranges > num_beacons:
        arguments.refuse(
            function, "num_ranges", str(num_ranges), f"at most the number of beacons, {num_beacons}", "ask for fewer"
        )


# ------------------------------------------------------------------------------------------------ simulation


def simulate(
    key: Array,
    world: World,
    num_trajectories: int,
    num_steps: int,
    *,
    num_ranges: int = 5,
    speed: float | Float[Array, ""] = 0.2,
    speed_noise: float | Float[Array, ""] = 0.02,
    heading_noise: float | Float[Array, ""] = _THREE_DEGREES,
    range_noise: float | Float[Array, ""] = 0.1,
) -> Trajectories:
    """Robots that go straight on until something is in the way, and hear the nearest beacons.

    A robot starts anywhere in the free cells with any heading. In each step its heading and its speed get noise. Where
    the move would end, or be half-way, in a blocked cell or outside, it takes the first of 16 random headings that does
    not, and stays in place if there is none. All noise is uniform in [-a, a].

    Args:
      key: typed key.
      world: where; its beacons fix the dtype.
      num_trajectories: n (static).
      num_steps: T, rows of a trajectory, the start among them (static).
      num_ranges: k, how many beacons are heard, at most m (static).
      speed: cells a step. The labyrinth wants 0.5.
      speed_noise: a of the speed.
      heading_noise: a of the heading, in radians.
      range_noise: a of the ranges.

    Returns:
      `Trajectories(poses [n, T, 3], actions [n, T, 4], ranges [n, T, k])`.

    Raises:
      TypeError: a raw key. ValueError: num_trajectories or num_steps < 1, num_ranges > m, a negative number.

    Cost: n T m distances, half of it all; memory is the result.
    Not differentiable, which raises TypeError: where robots turn is a jump.

    Example:
      >>> tracks = simulate(jax.random.key(0), maze10(), 100, 50)
      >>> tracks.poses.shape, tracks.actions.shape, tracks.ranges.shape
      ((100, 50, 3), (100, 50, 4), (100, 50, 5))
    """
    arguments.check_key("simulate", key)
    arguments.check_count("simulate", "num_trajectories", num_trajectories, minimum=1)
    arguments.check_count("simulate", "num_steps", num_steps, minimum=1)
    check_is_world("simulate", world)
    _check_num_ranges("simulate", num_ranges, len(world.beacons))
    noise = {"speed": speed, "speed_noise": speed_noise, "heading_noise": heading_noise, "range_noise": range_noise}
    for name, value in noise.items():
        arguments.check_number("simulate", name, value, ">= 0", lambda number: number >= 0, "pass its size")
    noise = [arguments.constant(value, world.beacons.dtype) for value in noise.values()]
    remedy = "differentiate the evidence of localization_model by its parameters instead"
    beacons, noise = arguments.without_derivative("simulate", "an argument", (world.beacons, noise), remedy=remedy)
    world = dataclasses.replace(world, beacons=beacons)
    return _simulate(key, world, *noise, int(num_trajectories), int(num_steps), int(num_ranges))


@partial(jax.jit, static_argnums=(6, 7, 8))
def _simulate(
    key: Array,
    world: World,
    speed: Array,
    speed_noise: Array,
    heading_noise: Array,
    range_noise: Array,
    num_trajectories: int,
    num_steps: int,
    num_ranges: int,
) -> Trajectories:
    dtype = world.beacons.dtype
    shape = (num_trajectories,)
    symmetric = lambda key, shape: jax.random.uniform(key, shape, dtype, -1, 1)

    def observe(key: Array, position: Array, heading: Array, move: Array) -> tuple[Array, Array, Array]:
        ranges = _nearest_ranges(position, world.beacons, num_ranges)
        ranges = ranges + range_noise * symmetric(key, ranges.shape)
        direction = jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=-1)
        pose = jnp.concatenate([position, heading[:, None]], axis=-1)
        return pose, jnp.concatenate([move, direction], axis=-1), ranges

    def step(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        position, heading = carry
        straight_key, speed_key, turn_key, range_key = jax.random.split(key, 4)
        straight = _wrapped(heading + heading_noise * symmetric(straight_key, shape))
        turns = np.pi * symmetric(turn_key, (num_trajectories, _CANDIDATES))
        candidates = jnp.concatenate([straight[:, None], turns], axis=1)
        length = speed + speed_noise * symmetric(speed_key, shape)
        moves = jnp.stack([jnp.cos(candidates), jnp.sin(candidates)], axis=-1) * length[:, None, None]
        start = position[:, None]
        free = is_free(world, start + moves) & is_free(world, start + moves / 2)
        first = jnp.argmax(free, axis=1)[:, None]
        can_move = jnp.any(free, axis=1)
        move = jnp.take_along_axis(moves, first[..., None], axis=1)[:, 0]
        move = jnp.where(can_move[:, None], move, 0)
        heading = jnp.where(can_move, jnp.take_along_axis(candidates, first, axis=1)[:, 0], heading)
        position = position + move
        return (position, heading), observe(range_key, position, heading, move)

    position_key, heading_key, range_key, key = jax.random.split(key, 4)
    position = _anywhere(position_key, world, num_trajectories)
    heading = np.pi * symmetric(heading_key, shape)
    first_row = observe(range_key, position, heading, jnp.zeros((*shape, 2), dtype))
    _, rows = jax.lax.scan(step, (position, heading), jax.random.split(key, num_steps - 1))
    joined = jax.tree.map(lambda first, rest: jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1), first_row, rows)
    return Trajectories(*joined)


def _wrapped(angle: Array) -> Array:
    """The angle in [-pi, pi], from one within a turn of it."""
    return angle - 2 * np.pi * jnp.round(angle / (2 * np.pi))


def _anywhere(key: Array, world: World, num: int) -> Array:
    """Positions [num, 2], uniformly distributed over the free cells."""
    dtype = world.beacons.dtype
    cell_key, offset_key = jax.random.split(key)
    nx, ny = world.blocked.shape
    counts = jnp.cumsum((~world.blocked).ravel(), dtype=jnp.int32)
    cell = jnp.searchsorted(counts, jax.random.randint(cell_key, (num,), 0, counts[-1], jnp.int32), side="right")
    corner = jnp.stack([cell // ny, cell % ny], axis=-1).astype(dtype)
    # the sum rounds to less than the next cell's edge
    return corner + jax.random.uniform(offset_key, (num, 2), dtype, 0, 1 - max(nx, ny) * float(jnp.finfo(dtype).eps))


# ------------------------------------------------------------------------------------------------ the model


def localization_model(
    world: World,
    *,
    num_ranges: int = 5,
    range_scale: float | Float[Array, ""] = 0.15,
    jitter: float | Float[Array, ""] = 0.03,
) -> StateSpaceModel:
    """Where the robot is, from the ranges it hears and the moves it knows: a controlled state-space model.

    The state is the position, [num, 2]: uniform over the free cells at first, then moved by the displacement in the
    action and normal noise. Range j is normal about the distance to the j-th nearest beacon. Blocked cells and the
    outside have likelihood zero, so that the evidence is that of `histogram_filter` and a lost filter says so; a finite
    penalty localizes no better. Observations are pairs (ranges [T, k], actions [T, 4]), as `simulate` makes them; a
    range that is NaN is missing and counts for nothing.

    Args:
      world: where; its beacons fix the dtype.
      num_ranges: k (static), at most m.
      range_scale: standard deviation of a range. By default above that of the noise, for the sake of few particles.
      jitter: standard deviation of the noise of a move, in cells, in each of x and y.

    Returns:
      `StateSpaceModel` with `controlled=True`, and a transition density for smoothing.

    Raises:
      ValueError: num_ranges < 1 or > m; a scale that is not positive.

    Cost: m distances a particle and step.
    Differentiable in range_scale, jitter, beacons and particles; where the likelihood is zero, so are its gradients.

    Example:
      >>> model = localization_model(maze10())
      >>> particles = model.sample_initial(jax.random.key(0), 1000)
      >>> ranges, action = jnp.full(5, jnp.nan), jnp.array([0.2, 0.0, 1.0, 0.0])
      >>> particles = model.sample_transition(jax.random.key(1), particles, 1, action)
      >>> log_weights = model.log_likelihood(particles, ranges, 1)
      >>> float(log_weights.max()), float(log_weights.min())
      (0.0, -inf)
    """
    function = "localization_model"
    check_is_world(function, world)
    _check_num_ranges(function, num_ranges, len(world.beacons))
    range_scale, jitter = check_scales(function, world, range_scale, jitter)
    return StateSpaceModel(
        sample_initial=Partial(_sample_initial, world),
        sample_transition=Partial(_sample_transition, jitter),
        log_likelihood=Partial(_LogLikelihood(int(num_ranges)), world, range_scale),
        transition_log_density=Partial(_transition_log_density, jitter),
        controlled=True,
    )


def check_is_world(function: str, world: Any) -> None:
    """Refuse what is no `World`."""
    if not isinstance(world, World):
        got = f"of type {type(world).__name__}"
        arguments.refuse(function, "world", got, "a World", "use maze10(), or world_from_map(...)", error=TypeError)


def check_scales(function: str, world: World, range_scale: Any, jitter: Any) -> tuple[Array, Array]:
    """Both as scalars of the dtype of the beacons; refused where they are known and not positive."""
    scalars = []
    for name, value in (("range_scale", range_scale), ("jitter", jitter)):
        arguments.check_number(function, name, value, "> 0", lambda number: number > 0, "pass a standard deviation")
        scalars.append(arguments.constant(value, world.beacons.dtype))
    return scalars[0], scalars[1]


def log_likelihood_of_ranges(expected: Array, ranges: Array, range_scale: Array) -> Array:
    """Normal log-density of ranges [k] about those expected [..., k]; NaN components are missing."""
    heard = ~jnp.isnan(ranges)
    shape = (1,) * (expected.ndim - 1) + ranges.shape
    residual = (jnp.where(heard, ranges, 0).reshape(shape) - expected) / range_scale
    terms = -0.5 * residual**2 - jnp.log(range_scale) - 0.5 * np.log(2 * np.pi).item()
    return jnp.sum(jnp.where(heard.reshape(shape), terms, 0), axis=-1)


def _sample_initial(world: World, key: Array, num: int) -> Array:
    return _anywhere(key, world, num)


@dataclasses.dataclass(frozen=True)
class _LogLikelihood:
    """A function known by its value, so that models of the same kind share their programs."""

    num_ranges: int

    def __call__(self, world: World, range_scale: Array, particles: Array, observation: Array, time: Any) -> Array:
        arguments.check_shape(
            "localization_model",
            "observation",
            observation,
            f"[{self.num_ranges}], num_ranges",
            lambda shape: shape == (self.num_ranges,),
            "observations are pairs (ranges [T, k], actions [T, 4])",
        )
        expected = _nearest_ranges(particles, world.beacons, self.num_ranges)
        log_likelihood = log_likelihood_of_ranges(expected, observation, range_scale)
        return jnp.where(is_free(world, particles), log_likelihood, -jnp.inf)


def _sample_transition(jitter: Array, key: Array, particles: Array, time: Any, control: Array) -> Array:
    return particles + control[None, :2] + jitter * jax.random.normal(key, particles.shape, particles.dtype)


def _transition_log_density(jitter: Array, new: Array, old: Array, time: Any, control: Array) -> Array:
    residual = (new - old - control[None, :2]) / jitter
    return jnp.sum(-0.5 * residual**2 - jnp.log(jitter) - 0.5 * np.log(2 * np.pi).item(), axis=-1)
