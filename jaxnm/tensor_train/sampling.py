"""Trains as probabilities of multi-indices: samples, also conditional ones, and logarithms of probabilities.

A train whose entries are not negative, or the squares of the entries of any train, give a distribution once they are
divided by their sum. Sums over the modes behind a bond are one vector there, or one factor of a Gram matrix for
squares, so that a sample is drawn mode by mode, exactly, without the constant.
"""

from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Int32, Key

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.linalg.scaling import rescaled
from jaxnm.status import Status, first_failing
from jaxnm.tensor_train.products import entries_and_exponents, right_factors
from jaxnm.tensor_train.trains import TT, check_train, mode_mask

Kind = Literal["nonnegative", "square"]
KINDS = ("nonnegative", "square")


@flax.struct.dataclass
class Samples:
    """Independent samples, and how well the train was a distribution."""

    indices: Int32[Array, "num d"]
    """-1 from the first mode on at which nothing had a positive probability."""
    log_prob: Float[Array, "num"]
    """The logarithm of the probability with which each was drawn; of the free modes given the others."""
    clipped: Float[Array, "num"]
    """The largest share of negative numbers in the conditional distributions that each was drawn from."""
    status: Int32[Array, ""]


def sample(
    key: Key[Array, ""],
    tt: TT,
    num: int,
    *,
    kind: Kind = "nonnegative",
    given: Int[ArrayLike, "d"] | None = None,
) -> Samples:
    """Multi-indices drawn with probabilities proportional to the entries of a train, or to their squares.

    Args:
      key: of `jax.random.key`.
      tt: real for "nonnegative".
      num: how many (static).
      kind: static. "nonnegative": proportional to the entries, negative numbers in the conditional distribution of a
        mode being taken for zero. "square": proportional to |entry|^2, which is never negative.
      given: [d], the indices of some modes, and -1 for those to be drawn given them; by default all are drawn.

    Returns:
      `Samples`.

    Raises:
      ValueError: num < 1, an unknown kind, `given` of another shape. TypeError: no train, no typed key, complex cores
        for "nonnegative", indices that are not integers.

    Status: NONFINITE_INPUT: cores that are not finite. OUT_OF_RANGE: `given` holds an index that its mode does not
      have, nothing has a positive probability, or more than the root of the machine epsilon of a conditional
      distribution was negative.

    Cost: d n R^2 multiplications a sample, twice that for "square". Not differentiable: it raises;
    see `log_prob`.
    Source: S. Dolgov, K. Anaya-Izquierdo, C. Fox, R. Scheichl, Stat. Comput. 30 (2020), 603-625, algorithm 2; squares:
    T. Cui, S. Dolgov, Found. Comput. Math. 22 (2022), 1863-1922.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> tt = from_cores([jnp.array([[[0.0], [1.0]]]), jnp.array([[[1.0], [0.0], [0.0]]])])
      >>> sample(jax.random.key(0), tt, 2).indices.tolist()
      [[1, 0], [1, 0]]
    """
    arguments.check_key("sample", key)
    arguments.check_count("sample", "num", num, minimum=1)
    _check("sample", tt, kind)
    remedy = "what is drawn has no derivative; differentiate `log_prob` at the indices"
    tt = arguments.without_derivative("sample", "tt", tt, remedy=remedy)
    return _sample(key, tt, _given("sample", tt, given), int(num), kind)


def log_prob(
    tt: TT,
    indices: Int[ArrayLike, "m d"],
    *,
    kind: Kind = "nonnegative",
    given: Int[ArrayLike, "d"] | None = None,
) -> Float[Array, "m"]:
    """The logarithms of the probabilities that a train gives to multi-indices.

    Args:
      tt: real for "nonnegative".
      indices: [m, d].
      kind: static. "nonnegative": entry over the sum of all; "square": |entry|^2 over that of all.
      given: [d], indices of some modes, and -1 for the others: the distribution is that of the others given them.

    Returns:
      [m]; minus infinity where the entry is zero, is negative for "nonnegative", or differs from `given`; NaN for an
      index that its mode does not have, and throughout where the sum is not positive or not finite.

    Raises:
      ValueError: an unknown kind, other shapes. TypeError: as `sample`.

    Cost: m d R^2 multiplications, and d n R^2 (R^3 for "square") for the sum. Differentiable in the train; the
    derivative of minus infinity is zero.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> tt = from_cores([jnp.array([[[1.0], [3.0]]])])
      >>> jnp.exp(log_prob(tt, jnp.array([[0], [1]]))).tolist()
      [0.25, 0.75]
    """
    name = "log_prob"
    _check(name, tt, kind)
    indices = _narrowed(arguments.to_integers(name, "indices", indices, "round it"))
    condition = lambda shape: len(shape) == 2 and shape[1] == tt.ndim
    arguments.check_shape(name, "indices", indices, f"[m, {tt.ndim}]", condition)
    return _log_prob(tt, indices, _given(name, tt, given), kind)


# ------------------------------------------------------------------------------------------------ kernels


def _restricted(tt: TT, given: Array) -> Array:
    """The cores with zeros at the indices that are not the given ones, each over a power of two near its largest."""
    places = jnp.arange(max(tt.shape), dtype=jnp.int32)
    allowed = (given[:, None] < 0) | (given[:, None] == places[None])
    return jax.vmap(rescaled)(jnp.where(allowed[:, None, :, None], tt.cores, jnp.zeros_like(tt.cores)))[0]


def _sums(cores: Array) -> tuple[Array, Array]:
    """(s [d, R, 1], e [d]), the sums s 2^e over all modes from a site on."""

    def step(carry: tuple[Array, Array], core: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        behind, more = rescaled(einsum("ris,sc->rc", core, carry[0]))
        carry = (behind, carry[1] + more)
        return carry, carry

    last = jnp.zeros((cores.shape[-1], 1), cores.dtype).at[0].set(1)
    return jax.lax.scan(step, (last, jnp.int32(0)), cores, reverse=True)[1]


def _square_sum(cores: Array) -> tuple[Array, Array]:
    """(v, e), the sum of the squares of all entries being v 2^e; by inner products, which can be differentiated."""

    def step(carry: tuple[Array, Array], core: Array) -> tuple[tuple[Array, Array], None]:
        half = einsum("ab,bic->aic", carry[0], core)
        between, more = rescaled(einsum("aid,aic->dc", core.conj(), half))
        return (between, carry[1] + more), None

    size = cores.shape[-1]
    start = jnp.zeros((size, size), cores.dtype).at[0, 0].set(1)
    (between, exponent), _ = jax.lax.scan(step, (start, jnp.int32(0)), cores)
    return between[0, 0].real, exponent


@jax.jit(static_argnums=(3, 4))
def _sample(key: Array, tt: TT, given: Array, num: int, kind: str) -> Samples:
    size, shape = tt.max_rank, jnp.asarray(tt.shape, jnp.int32)
    real = jnp.finfo(tt.dtype).dtype
    finite = jnp.all(jnp.isfinite(tt.cores)) & jnp.isfinite(tt.log_scale)
    cores = _restricted(tt, given)
    factors = (right_factors if kind == "square" else _sums)(cores)[0]
    end = jnp.zeros((1, *factors.shape[1:]), tt.dtype).at[0, 0, 0].set(1)
    behind = jnp.concatenate([factors[1:], end])
    uniform = jax.random.uniform(key, (tt.ndim, num), real)
    modes = jnp.asarray(mode_mask(tt.shape))

    def step(carry: Any, site: Any) -> Any:
        (rows, log_prob, alive, clipped), (core, factor, draw, mode) = carry, site
        ahead = einsum("mr,ris->mis", rows, core)
        # in units of the largest, whose square is a number
        amplitudes = jax.vmap(rescaled)(einsum("mis,sc->mic", ahead, factor))[0]
        weights = jnp.sum(jnp.abs(amplitudes) ** 2, 2) if kind == "square" else amplitudes[:, :, 0]
        weights = jnp.where(mode[None], weights, jnp.zeros_like(weights))
        positive = jnp.maximum(weights, jnp.zeros_like(weights))
        total, whole = jnp.sum(positive, 1), jnp.sum(jnp.abs(weights), 1)
        alive &= (total > 0) & jnp.isfinite(total)
        share = (whole - total) / jnp.where(whole > 0, whole, jnp.ones_like(whole))
        # the first index whose cumulative sum is above the threshold has a positive weight
        index = jnp.sum(jnp.cumsum(positive, 1) <= (draw * total)[:, None], 1, dtype=jnp.int32)
        last = positive.shape[1] - 1 - jnp.argmax(positive[:, ::-1] > 0, 1).astype(jnp.int32)
        index = jnp.minimum(index, last)
        chosen = jnp.take_along_axis(positive, index[:, None], 1)[:, 0]
        one = jnp.ones_like(total)
        log_prob += jnp.log(jnp.where(alive, chosen, one)) - jnp.log(jnp.where(alive, total, one))
        rows = jax.vmap(rescaled)(jnp.take_along_axis(ahead, index[:, None, None], 1)[:, 0])[0]
        carry = (rows, log_prob, alive, jnp.maximum(clipped, share))
        return carry, jnp.where(alive, index, jnp.int32(-1))

    zeros = jnp.zeros(num, real)
    rows = jnp.zeros((num, size), tt.dtype).at[:, 0].set(1)
    start = (rows, zeros, jnp.ones(num, bool), zeros)
    (_, log_prob, alive, clipped), indices = jax.lax.scan(step, start, (cores, behind, uniform, modes))
    log_prob = jnp.where(alive, log_prob, jnp.full_like(log_prob, jnp.nan))
    negative = jnp.max(clipped) > jnp.sqrt(jnp.finfo(real).eps)
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (jnp.any(given >= shape) | ~jnp.all(alive) | negative, Status.OUT_OF_RANGE),
    )
    return Samples(indices.T, log_prob, clipped, status)


@jax.jit(static_argnums=3)
def _log_prob(tt: TT, indices: Array, given: Array, kind: str) -> Array:
    real = jnp.finfo(tt.dtype).dtype
    cores = _restricted(tt, given)
    inside = jnp.all((indices >= 0) & (indices < jnp.asarray(tt.shape, jnp.int32)[None]), 1)
    values, exponents = entries_and_exponents(cores, jnp.where(inside[:, None], indices, jnp.int32(0)))
    powers = 2 if kind == "square" else 1
    sizes = jnp.abs(values) if kind == "square" else values
    some = sizes > 0
    log_values = jnp.log(jnp.where(some, sizes, jnp.ones_like(sizes)))
    if kind == "square":
        total, exponent = _square_sum(cores)
    else:
        sums, sum_exponents = _sums(cores)
        total, exponent = sums[0, 0, 0], sum_exponents[0]
    usable = (total > 0) & jnp.isfinite(total)
    log_total = jnp.log(jnp.where(usable, total, jnp.ones_like(total)))
    binary = (powers * exponents - exponent[None]).astype(real) * jnp.log(jnp.asarray(2, real))
    result = jnp.asarray(powers, real) * log_values - log_total[None] + binary
    result = jnp.where(some | jnp.isnan(sizes), result, jnp.full_like(result, -jnp.inf))
    # NaN in the derivative by the cores too
    nothing = jnp.where(inside & usable, jnp.zeros((), real), jnp.full((), jnp.nan, real))
    return result + nothing * total[None]


# ------------------------------------------------------------------------------------------------ checks


def _check(function: str, tt: Any, kind: Any) -> None:
    check_train(function, tt=tt)
    arguments.check_option(function, "kind", kind, KINDS, "use 'square' for trains of either sign")
    if kind == "nonnegative":
        arguments.check_real(function, "tt", tt.cores)


@jax.jit
def _narrowed(array: Array) -> Array:
    """As int32; wide integers keep their place outside of the modes."""
    limits, places = jnp.iinfo(array.dtype), jnp.iinfo(jnp.int32)
    return jnp.clip(array, max(limits.min, places.min), min(limits.max, places.max)).astype(jnp.int32)


def _given(function: str, tt: TT, given: Any) -> Array:
    if given is None:
        return arguments.constant(np.full(tt.ndim, -1), jnp.int32)
    given = _narrowed(arguments.to_integers(function, "given", given, "round it"))
    expected = f"[{tt.ndim}], -1 for free modes"
    arguments.check_shape(function, "given", given, expected, lambda shape: shape == (tt.ndim,))
    return given
