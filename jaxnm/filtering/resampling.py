"""Resampling in linear time: which particle each new particle descends from.

Positions are compared with cumulative weights in fixed point: a cumulative sum is a pair (int32, uint32), the whole
part and the fraction in units of 2^-32. Sums of such pairs are exact and associative (the fraction wraps around, and a
wrap is seen by comparison), so that ten million float32 weights keep the property |N_i - N w_i| <= 1 which a cumulative
sum in float32 loses from one million on. What every method computes is the cumulative number of offspring E_i;
ancestors follow by counting, a_j = #{i: E_i <= j}, so that they come sorted and a weight of zero has no offspring.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int32, Key

from jaxnm import arguments
from jaxnm.filtering.weights import check_log_weights, relative_weights, total

Method = Literal["systematic", "stratified", "multinomial", "residual", "killing"]
METHODS = ("systematic", "stratified", "multinomial", "residual", "killing")
# up to this many comparisons a table of all of them is faster than a scatter
_LARGEST_TABLE = 64 * 64
# beyond it the memory of a branch counts more than its time
_LARGEST_BRANCH = 2**22


def resample(
    key: Key[Array, ""],
    log_weights: Float[ArrayLike, "particles"],
    num: int | None = None,
    *,
    method: Method = "systematic",
) -> Int32[Array, "num"]:
    """Ancestors of `num` new particles, drawn such that particle i has num w_i offspring on average.

    Args:
      key: of `jax.random.key`.
      log_weights: [N], not necessarily normalized; -inf is a weight of zero, as are NaN and +inf.
      num: how many to draw (static); N by default.
      method: "systematic" (one random offset for all strata: |N_i - num w_i| <= 1, the least variance in practice),
        "stratified" (one offset a stratum), "multinomial" (independent draws), "residual" (floor(num w_i) copies, the
        rest multinomial), "killing" (i survives with probability w_i / max w, who does not is replaced by a draw; needs
        num = N).

    Returns:
      the ancestors [num], int32, sorted. Where all weights are zero they are drawn as from uniform weights.

    Raises:
      ValueError: an unknown method, num < 1, killing with num != N. TypeError: a key that is not typed.

    Cost: O(N + num): three cumulative sums and one scatter (up to 64 x 64 a table of comparisons). Not differentiable:
    the result is integer; see `soft_resample` and the `gradient` of `particle_filter`.
    Source: R. Douc, O. Cappe, E. Moulines, ISPA 2005, 64-69 (multinomial, stratified, systematic, residual);
    P. Del Moral, Feynman-Kac Formulae, Springer 2004, section 2.5.3 (killing).

    Example:
      >>> resample(jax.random.key(0), jnp.log(jnp.array([0.5, 0.0, 0.25, 0.25]))).tolist()
      [0, 0, 2, 3]
    """
    arguments.check_key("resample", key)
    array = _check_one_cloud("resample", log_weights)
    num = array.shape[0] if num is None else num
    arguments.check_count("resample", "num", num, minimum=1)
    check_method("resample", method)
    if method == "killing" and num != array.shape[0]:
        got = f"{num} for {array.shape[0]} particles"
        arguments.refuse("resample", "num", got, "the number of particles for 'killing'", "use another method")
    return _resample(key, array, int(num), method)


def soft_resample(
    key: Key[Array, ""],
    log_weights: Float[ArrayLike, "particles"],
    alpha: Float[ArrayLike, ""] = 0.5,
    *,
    method: Method = "systematic",
) -> tuple[Int32[Array, "particles"], Float[Array, "particles"]]:
    """Resampling from a mixture with the uniform distribution, whose new weights carry a gradient.

    Ancestors are drawn from q = alpha w + (1 - alpha) / N; their weights are w_A / (N q_A), so that sums over the new
    particles, before the weights are normalized again, are unbiased.

    Args:
      key: of `jax.random.key`.
      log_weights: [N], normalized or not (they are normalized first).
      alpha: in (0, 1]; 1 is ordinary resampling, whose weights have no gradient. May be traced.
      method: as in `resample`.

    Returns:
      ancestors [N], int32, sorted; log_weights [N], whose total is one on average only.

    Raises:
      ValueError: alpha outside (0, 1], an unknown method. TypeError: a key that is not typed.

    Cost: as `resample`. The log-weights are differentiable in log_weights and alpha, with the ancestors held fixed.
    Source: P. Karkus, D. Hsu, W. S. Lee, CoRL 2018 (PF-net), eq. (7) to (9).

    Example:
      >>> ancestors, log_weights = soft_resample(jax.random.key(0), jnp.log(jnp.array([0.5, 0.5])))
      >>> ancestors.tolist(), jnp.exp(log_weights).tolist()
      ([0, 1], [0.5, 0.5])
    """
    arguments.check_key("soft_resample", key)
    array = _check_one_cloud("soft_resample", log_weights)
    check_alpha("soft_resample", alpha)
    (alpha,) = arguments.to_arrays("soft_resample", alpha=alpha)
    arguments.check_real("soft_resample", "alpha", alpha)
    alpha = alpha.astype(array.dtype)
    arguments.check_shape("soft_resample", "alpha", alpha, "a scalar", lambda shape: shape == (), "use jax.vmap")
    check_method("soft_resample", method)
    return _soft_resample(key, array, alpha, method)


def check_method(function: str, method: Any) -> None:
    """Refuse an unknown way of resampling."""
    if method not in METHODS:
        arguments.refuse(function, "method", repr(method), f"one of {METHODS}", "use 'systematic'")


def check_alpha(function: str, alpha: Any) -> None:
    """Refuse a mixture outside (0, 1]."""
    arguments.check_number(function, "alpha", alpha, "in (0, 1]", lambda value: 0 < value <= 1, "try 0.5")


def _check_one_cloud(function: str, log_weights: ArrayLike) -> Array:
    array = check_log_weights(function, log_weights)
    arguments.check_shape(
        function, "log_weights", array, "[N]", lambda shape: len(shape) == 1, "use jax.vmap for several clouds"
    )
    return array


class _Fixed(NamedTuple):
    """A number that is not negative: `whole + fraction / 2^32`."""

    whole: Array
    fraction: Array

    def less(self, other: "_Fixed") -> Array:
        return (self.whole < other.whole) | ((self.whole == other.whole) & (self.fraction < other.fraction))

    def at(self, index: Any) -> "_Fixed":
        return _Fixed(self.whole[index], self.fraction[index])

    def part(self, dtype: Any) -> Array:
        """The fraction as a floating number."""
        return self.fraction.astype(dtype) * jnp.asarray(2.0**-32, dtype)


def _fixed(x: Array) -> _Fixed:
    whole = jnp.floor(x)
    return _Fixed(whole.astype(jnp.int32), ((x - whole) * jnp.asarray(2.0**32, x.dtype)).astype(jnp.uint32))


def _cumulative(x: Array) -> _Fixed:
    """The cumulative sums of numbers that are not negative, exact up to the last place of 2^-32 of each."""
    if x.shape[0] > _LARGEST_BRANCH:
        return _cumulative_sums(x)
    return jax.lax.platform_dependent(x, cpu=_cumulative_apart, default=_cumulative_sums)


def _cumulative_sums(x: Array) -> _Fixed:
    terms = _fixed(x)
    fraction = jnp.cumsum(terms.fraction, dtype=jnp.uint32)
    carry = (fraction < terms.fraction).astype(jnp.int32)
    return _Fixed(jnp.cumsum(terms.whole + carry, dtype=jnp.int32), fraction)


def _cumulative_apart(x: Array) -> _Fixed:
    # XLA adds up again wherever the sums are read, unless they come out of a branch
    unknown = jax.lax.optimization_barrier(jnp.bool(True))
    zeros = lambda x: _Fixed(jnp.zeros(x.shape, jnp.int32), jnp.zeros(x.shape, jnp.uint32))
    return jax.lax.cond(unknown, _cumulative_sums, zeros, x)


def ancestors_from(cumulative: Array, num: int) -> Array:
    """Sorted ancestors [num] of the cumulative numbers of offspring [N]."""
    if cumulative.shape[0] * num <= _LARGEST_TABLE:
        positions = jnp.arange(num, dtype=jnp.int32)
        counts = jnp.sum(cumulative[None] <= positions[:, None], 1, dtype=jnp.int32)
    else:
        ends = jnp.zeros(num + 1, jnp.int32).at[cumulative].add(1, indices_are_sorted=True, mode="drop")
        counts = jnp.cumsum(ends[:num], dtype=jnp.int32)
    return jnp.minimum(counts, jnp.int32(cumulative.shape[0] - 1))


@partial(jax.jit, static_argnums=(2, 3))
def _resample(key: Array, log_weights: Array, num: int, method: str) -> Array:
    weights, _, alive = relative_weights(jax.lax.stop_gradient(log_weights))
    weights = jnp.where(alive, weights, jnp.ones_like(weights))
    expected = weights * (jnp.asarray(num, weights.dtype) / total(weights))
    return ancestors_from(_OFFSPRING[method](key, expected, num), num)


@partial(jax.jit, static_argnums=3)
def _soft_resample(key: Array, log_weights: Array, alpha: Array, method: str) -> tuple[Array, Array]:
    num = log_weights.shape[0]
    weights, _, alive = relative_weights(log_weights)
    weights = jnp.where(alive, weights, jnp.ones_like(weights))
    weights = weights / total(weights)
    mixture = alpha * weights + (1 - alpha) / num
    ancestors = _resample(key, jnp.log(jax.lax.stop_gradient(mixture)), num, method)
    chosen = weights[ancestors] / (mixture[ancestors] * num)
    positive = chosen > 0
    log_chosen = jnp.where(positive, jnp.log(jnp.where(positive, chosen, jnp.ones_like(chosen))), -jnp.inf)
    return ancestors, log_chosen


def _comb(expected: Array, num: int, offset: Callable[[Array], Array]) -> Array:
    """E_i for one position in each of `num` strata: `offset(j)` in [0, 1) says where.

    The expected numbers add up to num + drift, by rounding; positions are stretched by that much. A first guess in
    floating point is corrected by exact comparison, so that E never decreases.
    """
    sums = _cumulative(expected)
    dtype = expected.dtype
    last = sums.at(-1)
    drift = (last.whole - num).astype(dtype) + last.part(dtype)
    stretch = drift / num

    def position(j: Array) -> _Fixed:
        inside = offset(j)
        moved = inside + (j.astype(dtype) + inside) * stretch
        whole = jnp.floor(moved)
        shifted = _fixed(moved - whole)
        return _Fixed(j + whole.astype(jnp.int32) + shifted.whole, shifted.fraction)

    part = sums.part(dtype)
    nearest = jnp.clip(sums.whole, 0, num - 1)
    behind = part - offset(nearest) - (sums.whole.astype(dtype) + part) * stretch
    guess = sums.whole + jnp.ceil(behind).astype(jnp.int32)
    behind_both = (position(j).less(sums).astype(jnp.int32) for j in (guess - 1, guess))
    found = guess - 1 + sum(behind_both, jnp.int32(0))
    whole = (sums.whole == last.whole) & (sums.fraction == last.fraction)
    return jnp.where(whole, jnp.int32(num), jnp.clip(found, 0, num))


def _systematic(key: Array, expected: Array, num: int) -> Array:
    offset = jax.random.uniform(key, (), expected.dtype)
    return _comb(expected, num, lambda j: offset)


def _stratified(key: Array, expected: Array, num: int) -> Array:
    offsets = jax.random.uniform(key, (num,), expected.dtype)
    return _comb(expected, num, lambda j: offsets[jnp.clip(j, 0, num - 1)])


def _draws(key: Array, expected: Array, num: int, draws: Array) -> Array:
    """E_i for `draws` <= num independent draws.

    Sorted uniform numbers are cumulative sums of exponential gaps. Each cumulative weight is found among them from the
    first position with the same whole part on; about as many steps as positions share one, ten or so for a million.
    """
    dtype = expected.dtype
    index = jnp.arange(num + 1, dtype=jnp.int32)
    gaps = jnp.where(index <= draws, jax.random.exponential(key, (num + 1,), dtype), jnp.zeros((), dtype))
    sums = _cumulative(expected)
    last = sums.at(-1)
    mass = last.whole.astype(dtype) + last.part(dtype)
    positions = _cumulative(gaps * (mass / total(gaps)))
    beyond = index[:num] >= draws
    whole = jnp.where(beyond, jnp.int32(num + 1), jnp.minimum(positions.whole[:num], num))
    positions = _Fixed(jnp.append(whole, jnp.int32(num + 1)), jnp.append(positions.fraction[:num], jnp.uint32(0)))
    per_cell = jnp.zeros(num + 2, jnp.int32).at[whole].add(1, indices_are_sorted=True)
    first = jnp.cumsum(per_cell, dtype=jnp.int32) - per_cell
    start = first[jnp.minimum(sums.whole, num)]

    def advance(state: tuple[Array, Array]) -> tuple[Array, Array]:
        found, _ = state
        step = positions.at(found).less(sums)
        return found + step.astype(jnp.int32), jnp.any(step)

    found, _ = jax.lax.while_loop(lambda state: state[1], advance, (start, jnp.bool(True)))
    whole = (sums.whole == last.whole) & (sums.fraction == last.fraction)
    return jnp.where(whole, draws, jnp.minimum(found, draws))


def _multinomial(key: Array, expected: Array, num: int) -> Array:
    return _draws(key, expected, num, jnp.int32(num))


def _residual(key: Array, expected: Array, num: int) -> Array:
    # a number that rounding put just below a whole one is that one
    copies = jnp.floor(expected * (1 + 8 * jnp.finfo(expected.dtype).eps))
    kept = jnp.cumsum(copies.astype(jnp.int32), dtype=jnp.int32)
    rest = jnp.maximum(expected - copies, jnp.zeros_like(expected))
    return jnp.minimum(kept + _draws(key, rest, num, num - kept[-1]), num)


def _killing(key: Array, expected: Array, num: int) -> Array:
    survival, draws = jax.random.split(key)
    uniform = jax.random.uniform(survival, (num,), expected.dtype)
    survivors = jnp.cumsum((uniform * jnp.max(expected) < expected).astype(jnp.int32), dtype=jnp.int32)
    return survivors + _draws(draws, expected, num, num - survivors[-1])


_OFFSPRING: dict[str, Callable[[Array, Array, int], Array]] = {
    "systematic": _systematic,
    "stratified": _stratified,
    "multinomial": _multinomial,
    "residual": _residual,
    "killing": _killing,
}
