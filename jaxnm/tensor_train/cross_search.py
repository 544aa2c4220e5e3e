"""What sweeps of a cross interpolation would never see: random indices, guided ones, and searches along coordinates.

Random words are drawn once; those of later draws are their images under `mixed`. Three of four indices are uniform, and
measure what the train misses. The others continue prefixes of pivots at random, or change some coordinates of a pivot,
so that a support that is thin but connected is found from any part of it. From the indices with the largest errors, and
from those with the largest values, one mode after the other is set to what makes the error, or the value, largest: a
peak far below the rounding errors of the train is climbed by its values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnm.linalg import einsum
from jaxnm.tensor_train.cross_sweeps import Additions, Best, Indices, Oriented, mixed, turn_if

UNIFORM = 384
"""Uniform indices in a draw."""
_GUIDED = 128
"""Indices from pivots in a draw."""
SAMPLES = UNIFORM + _GUIDED
"""Indices in a draw: one at the start, more of them while all values are zero, and one after each sweep."""
PASSES = 2
"""Coordinate searches through all modes after a sweep."""


def words_of(key: Array, d: int) -> Array:
    """[SAMPLES, d] words of 32 bits; drawn flat, since a matrix takes three times as long to compile."""
    return jax.random.bits(key, (SAMPLES * d,), jnp.uint32).reshape(SAMPLES, d)


def draw(words: Array, count: Array, sizes: Array, indices: Indices) -> Array:
    """[SAMPLES, d], the uniform ones first; the pivots [d + 1, R, d] are those of `indices`, in its orientation."""
    d = sizes.shape[0]
    words = mixed(words + mixed(count.astype(jnp.uint32) + 1))
    share = (words >> 8).astype(jnp.float32) * 2**-24
    uniform = jnp.minimum((share * sizes[None].astype(jnp.float32)).astype(jnp.int32), sizes[None] - 1)
    # other bits say which pivot of which bond a guided index comes from, and what it keeps
    choice = mixed(words[UNIFORM:, :1])[:, 0]
    bond = (choice % (d + 1)).astype(jnp.int32)
    slot = ((choice >> 16) % indices.ranks[bond].astype(jnp.uint32)).astype(jnp.int32)
    pivots = indices.pivots[bond, slot]
    number = jnp.arange(_GUIDED, dtype=jnp.int32)
    # from all coordinates that change to one on the average
    rate = jnp.exp(-jnp.log(jnp.float32(d)) * (number // 2 % 8).astype(jnp.float32) / 7)
    changes = (words[UNIFORM:] & 255).astype(jnp.float32) < 256 * rate[:, None]
    continued = jnp.arange(d, dtype=jnp.int32)[None] >= bond[:, None]
    guided = jnp.where(jnp.where((number % 2 == 0)[:, None], changes, continued), uniform[UNIFORM:], pivots)
    return uniform.at[UNIFORM:].set(guided)


def behind(cores: Array, indices: Array) -> tuple[Array, Array]:
    """(entries [m] of a train at indices [m, d], what stands behind each site [d, m, R])."""
    start = jnp.zeros((indices.shape[0], cores.shape[1]), cores.dtype).at[:, 0].set(1)

    def step(carry: Array, xs: Any) -> tuple[Array, Array]:
        core, index = xs
        return einsum("mrs,ms->mr", jnp.swapaxes(core, 0, 1)[index], carry), carry

    first, rests = jax.lax.scan(step, start, (cores, indices.T), reverse=True)
    return first[:, 0], rests


def _apart(values: Array, others: Array) -> Array:
    return jnp.where(jnp.isfinite(values), jnp.abs(values - others), jnp.zeros_like(jnp.abs(values)))


def look_around(
    function: Oriented, number: int, tol: Array, points: Array, swept: Indices, cores: Array, best: Best
) -> tuple[Additions, Array, Array, Best]:
    """(indices where the train is most in error, the largest such error, values at the points, best).

    `points` [m, d] are in the orientation of the sweep.
    """
    d, size, n = cores.shape[:3]
    turned = swept.turned
    extents = function.extents(turned)
    values = function.at(turned, points)
    entries, _ = behind(cores, points)
    errors = _apart(values, entries)
    missed = jnp.max(errors)
    # half of the chains climb by errors, half by values
    half = number // 2
    goals = jnp.stack([errors, _apart(values, jnp.zeros_like(values))])
    chosen = jax.lax.top_k(goals, min(half, points.shape[0]))[1]
    chosen = jnp.pad(chosen, ((0, 0), (0, half - chosen.shape[1])), mode="edge").reshape(-1)
    by_value = jnp.arange(2 * half, dtype=jnp.int32) >= half
    chains = points[chosen]
    start = jnp.zeros((2 * half, size), cores.dtype).at[:, 0].set(1)
    mode = jnp.arange(n, dtype=jnp.int32)

    def along(carry: Any, xs: Any) -> tuple[Any, None]:
        chains, reached, left, broken = carry
        site, core, right, extent = xs
        here = jnp.arange(d, dtype=jnp.int32) == site
        every = jnp.where(here[None, None], jnp.minimum(mode, extent - 1)[None, :, None], chains[:, None])
        values = function.at(turned, every.reshape(-1, d))
        values = values.reshape(-1, n)
        moved = einsum("mr,ris->mis", left, core)
        errors = _apart(values, einsum("mis,ms->mi", moved, right))
        goal = jnp.where(by_value[:, None], _apart(values, jnp.zeros_like(values)), errors)
        goal = jnp.where((mode < extent)[None], goal, -jnp.ones_like(goal))
        pick = lambda array, choice: jnp.take_along_axis(array, choice[:, None], 1)[:, 0]
        choice, now = jax.lax.argmax(goal, 1, jnp.int32), jnp.sum(jnp.where(here[None], chains, 0), 1, dtype=jnp.int32)
        # among equal ones a chain stays
        choice = jnp.where(pick(goal, choice) > pick(goal, now), choice, now)
        chains = jnp.where(here[None], choice[:, None], chains)
        left = jnp.take_along_axis(moved, choice[:, None, None], 1)[:, 0]
        reached = (pick(values, choice), pick(errors, choice))
        return (chains, reached, left, broken | ~jnp.all(jnp.isfinite(values))), None

    def climb(carry: Any, _: Any) -> tuple[Any, None]:
        chains, reached, broken = carry
        _, right = behind(cores, chains)
        sites = (jnp.arange(d, dtype=jnp.int32), cores, right, extents)
        (chains, reached, _, broken), _ = jax.lax.scan(along, (chains, reached, start, broken), sites)
        return (chains, reached, broken), None

    reached = (jnp.zeros(2 * half, values.dtype), jnp.zeros(2 * half, tol.dtype))
    (chains, (tops, errors), broken), _ = jax.lax.scan(climb, (chains, reached, best.broken), None, length=PASSES)
    seen = jnp.concatenate([points, chains])
    best = best._replace(broken=broken).seen(turn_if(turned, seen), jnp.concatenate([values, tops]), jnp.bool_(True))
    same = jnp.all(chains[:, None] == chains[None], 2)
    again = jnp.any(jnp.tril(same, -1), 1)
    errors, order = jax.lax.top_k(jnp.where(again, -jnp.ones_like(errors), errors), 2 * half)
    wanted = jnp.sum(errors > tol * jnp.abs(best.value), dtype=jnp.int32)
    return Additions(turn_if(turned, chains[order]), wanted), jnp.maximum(errors[0], missed), values, best
