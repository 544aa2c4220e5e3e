"""Tensor trains as arrays of one shape: zero-padded cores, traced ranks, and the logarithm of a common factor.

Entry (i_1, ..., i_d) of a train is exp(log_scale) times the product of the matrices cores[k, :, i_k, :], from the first
row of the first to the first column of the last. All cores have the shape [R, n, R] of the largest, so that programs
scan over sites and compile once, however many there are. What lies beyond a rank or a mode size is exactly zero.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from jaxnm.tensor_train.scaling import (
    balanced_cores,
    converted_scale,
    joined_scale,
    shifted_scale,
    split_scale,
    spread,
    summed_scales,
    unit_cores,
)


@flax.struct.dataclass
class TT:
    """A tensor train; `+`, `-` and `*` with trains and numbers are `add`, `subtract`, `hadamard` and `scale`."""

    cores: Inexact[Array, "d R n R"]
    """Core k is cores[k, :ranks[k], :shape[k], :ranks[k + 1]]; all else is zero. n is the largest of the mode sizes."""
    ranks: Int32[Array, "d+1"]
    """First and last are one."""
    log_scale: Float[Array, ""]
    """The natural logarithm of a factor, so that products of hundreds of cores neither overflow nor vanish.

    What functions add to it are whole multiples of log 2, and such a multiple is read as exactly that power of two.
    """
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def ndim(self) -> int:
        """The number of modes."""
        return len(self.shape)

    @property
    def max_rank(self) -> int:
        """R, which no rank exceeds."""
        return self.cores.shape[-1]

    @property
    def dtype(self) -> Any:
        """Of the cores."""
        return self.cores.dtype

    def __add__(self, other: "TT") -> "TT":
        return add(self, other) if isinstance(other, TT) else NotImplemented

    def __sub__(self, other: "TT") -> "TT":
        return subtract(self, other) if isinstance(other, TT) else NotImplemented

    def __mul__(self, other: Any) -> "TT":
        return hadamard(self, other) if isinstance(other, TT) else scale(self, other)

    def __rmul__(self, other: Any) -> "TT":
        return scale(self, other)

    def __neg__(self) -> "TT":
        return scale(self, -1.0)


def from_cores(cores: Sequence[ArrayLike], *, max_rank: int | None = None) -> TT:
    """The train of cores [r, n, r'], as teneva, torchTT, ttax and others keep them.

    Args:
      cores: one array a mode, of a common dtype; first and last rank are one, neighbours agree.
      max_rank: R of the result (static); the largest rank by default.

    Returns:
      `TT` with the same numbers, and log_scale zero.

    Raises:
      ValueError: no cores, an empty one, ranks that do not agree, a max_rank below one of them. TypeError: integers.

    Cost: a copy. Differentiable.

    Example:
      >>> tt = from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))])
      >>> tt.shape, tt.ranks.tolist(), tt.cores.shape
      ((3, 4), [1, 2, 1], (2, 2, 4, 2))
    """
    name = "from_cores"
    arguments.check_list(name, "cores", cores, "one core a mode")
    arrays = arguments.to_arrays(name, **{f"cores[{k}]": core for k, core in enumerate(cores)})
    for k, core in enumerate(arrays):
        condition = lambda shape: len(shape) == 3 and min(shape) >= 1
        arguments.check_shape(name, f"cores[{k}]", core, "[r, n, r'], none of them 0", condition)
    sizes = [core.shape for core in arrays]
    ranks = [1, *(size[2] for size in sizes)]
    found = [*(size[0] for size in sizes), 1]
    if found != ranks:
        k = next(k for k in range(len(ranks)) if found[k] != ranks[k])
        got = f"{found[k]} before and {ranks[k]} behind bond {k}"
        arguments.refuse(name, "the rank", got, "the same, and one at both ends", "see `TT`")
    largest = max(ranks)
    bound = largest if max_rank is None else max_rank
    arguments.check_count(name, "max_rank", bound, minimum=largest)
    shape = tuple(size[1] for size in sizes)
    return _of_cores(arrays, tuple(ranks), int(bound), shape)


@jax.jit(static_argnums=1)
def stacked(arrays: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """[d, *shape], zeros behind arrays that are smaller."""
    room = lambda array: [(0, most - size) for most, size in zip(shape, array.shape, strict=True)]
    return jnp.stack([jnp.pad(array, room(array)) for array in arrays])


@jax.jit(static_argnums=(1, 2, 3))
def _of_cores(arrays: list[Array], ranks: tuple[int, ...], bound: int, shape: tuple[int, ...]) -> TT:
    dtype = jnp.finfo(arrays[0].dtype).dtype
    cores = stacked(arrays, (bound, max(shape), bound))
    return TT(cores, jnp.array(ranks, jnp.int32), jnp.zeros((), dtype), shape)


def to_cores(tt: TT) -> list[Inexact[Array, "r n r'"]]:
    """The cores of a train at their true ranks, for other packages.

    Args:
      tt: not traced, since its ranks become shapes.

    Returns:
      d arrays [r, n, r'], over which the power of two in exp(log_scale) is spread evenly; what is left of that factor,
      nothing for a log_scale of this package's own making, is in the first. `from_cores` makes the same entries of
      them, to the last bit.

    Raises:
      ValueError: under `jit`, or with numbers beyond the ranks or the modes. TypeError: no train.

    Cost: a copy. Differentiable.

    Example:
      >>> cores = to_cores(from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))], max_rank=5))
      >>> [core.shape for core in cores]
      [(1, 3, 2), (2, 4, 1)]
    """
    check_train("to_cores", tt=tt)
    if isinstance(tt.ranks, jax.core.Tracer):
        arguments.refuse("to_cores", "tt", "traced", "a train with known ranks", "call it outside of jit")
    inside = core_mask(tt.ranks, tt.shape, tt.max_rank)
    wrong = ~inside & (tt.cores != 0) & ~jnp.isnan(tt.cores)
    if not isinstance(tt.cores, jax.core.Tracer) and bool(jnp.any(wrong)):
        got = "with numbers beyond its ranks or modes"
        arguments.refuse("to_cores", "tt", got, "zeros there", "build trains by from_cores")
    ranks = np.asarray(tt.ranks).tolist()
    cores = [tt.cores[k, : ranks[k], :n, : ranks[k + 1]] for k, n in enumerate(tt.shape)]
    return with_scale(cores, tt.log_scale)


# ------------------------------------------------------------------------------------------------ checks and masks


def checked_shape(function: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The mode sizes as a tuple of Python integers, at least one of them and none below one."""
    if arguments.is_number(shape):
        remedy = "pass (n,) * d"
        arguments.refuse(function, "shape", repr(shape), "a sequence of d >= 1 mode sizes", remedy)
    arguments.check_list(function, "shape", shape, "one size a mode")
    for k, size in enumerate(shape):
        arguments.check_count(function, f"shape[{k}]", size, minimum=1)
    return tuple(int(size) for size in shape)


def rank_bounds(shape: tuple[int, ...], rank: int) -> list[int]:
    """[d + 1], the ranks that a train of this shape can need, but none above a given one."""
    grow = lambda bound, size: min(bound * size, rank)
    before = itertools.accumulate(shape, grow, initial=1)
    behind = list(itertools.accumulate(shape[::-1], grow, initial=1))
    return [min(pair) for pair in zip(before, reversed(behind), strict=True)]


def bounded_rank(shape: tuple[int, ...], rank: int) -> int:
    """The largest of these."""
    return max(rank_bounds(shape, rank))


def with_scale(cores: list[Array], log_scale: Array) -> list[Array]:
    """Cores [r, ..., r'] times the factor, as evenly as powers of two allow."""
    if not isinstance(log_scale, jax.core.Tracer) and float(log_scale) == 0:
        return cores
    return _with_scale(cores, log_scale)


@jax.jit
def _with_scale(cores: list[Array], log_scale: Array) -> list[Array]:
    exponent, rest = split_scale(log_scale)
    first, *others = map(times_power_of_two, cores, spread(exponent, len(cores)))
    return [first * jnp.exp(rest).astype(first.dtype), *others]


def check_train(function: str, **trains: Any) -> None:
    """Refuse what is no train, a batch of them, and half precision."""
    for name, tt in trains.items():
        if not isinstance(tt, TT):
            arguments.refuse(function, name, f"of type {type(tt).__name__}", "a TT", "see from_cores", error=TypeError)
        d, n = len(tt.shape), max(tt.shape, default=0)
        shape = jnp.shape(tt.cores)
        if len(shape) != 4 or shape != (d, shape[-1], n, shape[-1]) or jnp.shape(tt.ranks) != (d + 1,):
            got = f"with cores of shape {shape} and ranks of shape {jnp.shape(tt.ranks)}"
            expected = f"[{d}, R, {n}, R] and [{d + 1}] for modes {tt.shape}"
            arguments.refuse(function, name, got, expected, "use jax.vmap for a batch of trains")
        arguments.check_dtype(function, f"{name}.cores", jnp.result_type(tt.cores))


def check_same_shape(function: str, a: TT, b: TT) -> None:
    """Refuse two trains of different modes."""
    check_train(function, a=a, b=b)
    if a.shape != b.shape:
        arguments.refuse(function, "b", f"of shape {b.shape}", f"{a.shape}, that of a", "only equal shapes go together")


def within(ranks: Int32[Array, "..."], size: int) -> Array:
    """[..., size], true below the ranks."""
    return jax.lax.broadcasted_iota(jnp.int32, (*ranks.shape, size), ranks.ndim) < ranks[..., None]


def mode_mask(shape: tuple[int, ...]) -> np.ndarray:
    """[d, n], true for indices that a mode has."""
    return np.arange(max(shape)) < np.array(shape)[:, None]


def core_mask(ranks: Int32[Array, "d+1"], shape: tuple[int, ...], max_rank: int) -> Array:
    """[d, R, n, R], true inside the cores."""
    rows, columns = within(ranks[:-1], max_rank), within(ranks[1:], max_rank)
    return rows[:, :, None, None] & jnp.asarray(mode_mask(shape))[:, None, :, None] & columns[:, None, None, :]


# ------------------------------------------------------------------------------------------------ arithmetic


def add(a: TT, b: TT) -> TT:
    """The sum of two trains; its ranks are the sums of theirs, and `round` brings them down.

    Their factors may be as far apart as they like: cores are brought to one size by powers of two, site by site.

    Args:
      a: of any ranks.
      b: of the shape of a.

    Returns:
      `TT` with max_rank R_a + R_b, of their common dtype.

    Raises:
      ValueError: different shapes. TypeError: no train.

    Cost: d n (R_a + R_b)^2 numbers are written. Differentiable.

    Example:
      >>> one = from_cores([jnp.ones((1, 3, 1)), jnp.ones((1, 4, 1))])
      >>> (one + one).ranks.tolist()
      [1, 2, 1]
    """
    check_same_shape("add", a, b)
    return _add(*_of_one_dtype("add", a, b))


def subtract(a: TT, b: TT) -> TT:
    """The difference of two trains, as `add`; for its norm see `distance`.

    Args:
      a: of any ranks.
      b: of the shape of a.

    Returns:
      `TT` with max_rank R_a + R_b, of their common dtype.

    Raises:
      ValueError: different shapes. TypeError: no train.

    Cost: as `add`. Differentiable.

    Example:
      >>> one = from_cores([jnp.ones((1, 3, 1)), jnp.ones((1, 4, 1))])
      >>> subtract(one, one).ranks.tolist()
      [1, 2, 1]
    """
    check_same_shape("subtract", a, b)
    a, b = _of_one_dtype("subtract", a, b)
    return _add(a, scale(b, -1.0))


def scale(tt: TT, factor: Inexact[ArrayLike, ""]) -> TT:
    """A train times a number.

    Args:
      tt: of any ranks.
      factor: scalar; may be traced.

    Returns:
      `TT` of the ranks of tt.

    Raises:
      ValueError: a factor that is not a scalar. TypeError: no train.

    Cost: a copy. Differentiable, at a factor of zero too.

    Example:
      >>> to_cores(scale(from_cores([jnp.ones((1, 3, 1))]), 2.5))[0].ravel().tolist()
      [2.5, 2.5, 2.5]
    """
    check_train("scale", tt=tt)
    cores, factor = arguments.to_arrays("scale", cores=tt.cores, factor=factor)
    arguments.check_shape("scale", "factor", factor, "a scalar", lambda shape: shape == (), "use hadamard for trains")
    return _scale(TT(cores, tt.ranks, converted_scale(tt.log_scale, cores.dtype), tt.shape), factor)


def hadamard(a: TT, b: TT) -> TT:
    """The product of two trains entry by entry; its ranks are the products of theirs.

    Args:
      a: of any ranks.
      b: of the shape of a.

    Returns:
      `TT` with max_rank R_a R_b, of their common dtype.

    Raises:
      ValueError: different shapes. TypeError: no train.

    Cost: d n (R_a R_b)^2 numbers are written. Differentiable.

    Example:
      >>> two = from_cores([2 * jnp.ones((1, 3, 1)), jnp.ones((1, 4, 1))])
      >>> [core[0, 0, 0].item() for core in to_cores(two * two)]
      [2.0, 2.0]
    """
    check_same_shape("hadamard", a, b)
    return _hadamard(*_of_one_dtype("hadamard", a, b))


def _of_one_dtype(function: str, a: TT, b: TT) -> tuple[TT, TT]:
    first, second = arguments.to_arrays(function, a=a.cores, b=b.cores)
    convert = lambda tt, cores: TT(cores, tt.ranks, converted_scale(tt.log_scale, cores.dtype), tt.shape)
    return convert(a, first), convert(b, second)


@jax.jit
def _scale(tt: TT, factor: Array) -> TT:
    # neither the core nor the product need have room for the other
    (first, exponent), (factor, more) = (rescaled(x) for x in (tt.cores[0], factor))
    log_scale = shifted_scale(tt.log_scale, exponent + more)
    return TT(tt.cores.at[0].set(first * factor), tt.ranks, log_scale, tt.shape)


@jax.jit
def _add(a: TT, b: TT) -> TT:
    first, second = a.max_rank, b.max_rank
    size, n, d = first + second, max(a.shape), len(a.shape)
    (cores_a, sum_a, zero_a), (cores_b, sum_b, zero_b) = balanced_cores(a.cores), balanced_cores(b.cores)
    (binary_a, rest_a), (binary_b, rest_b) = split_scale(a.log_scale), split_scale(b.log_scale)
    total_a, total_b = binary_a + sum_a, binary_b + sum_b
    # the unit is the larger one's, but a train of zeros has no size
    unit = jnp.where(zero_a, total_b, jnp.where(zero_b, total_a, jnp.maximum(total_a, total_b)))

    def in_unit(cores: Array, total: Array, rest: Array) -> Array:
        cores = jax.vmap(times_power_of_two)(cores, spread(total - unit, d))
        return cores.at[0].multiply(jnp.exp(rest).astype(cores.dtype))

    cores_a, cores_b = in_unit(cores_a, total_a, rest_a), in_unit(cores_b, total_b, rest_b)
    log_scale = joined_scale(unit, jnp.zeros_like(rest_a))
    ranks = (a.ranks + b.ranks).at[0].set(1).at[d].set(1)
    pad = lambda cores, more: jnp.pad(cores, [(0, 0), (0, more), (0, 0), (0, more)])
    if d == 1:
        return TT(pad(cores_a, second) + pad(cores_b, first), ranks, log_scale, a.shape)
    # b stands behind a, but in the first row of the first core and the first column of the last
    behind = a.ranks.at[0].set(0).at[d].set(0)

    def place(_: None, site: Any) -> tuple[None, Array]:
        core_a, core_b, row, column = site
        core = jnp.zeros((size, n, size), core_a.dtype).at[:first, :, :first].set(core_a)
        return None, jax.lax.dynamic_update_slice(core, core_b, (row, jnp.int32(0), column))

    _, cores = jax.lax.scan(place, None, (cores_a, cores_b, behind[:-1], behind[1:]))
    return TT(cores, ranks, log_scale, a.shape)


@jax.jit
def _hadamard(a: TT, b: TT) -> TT:
    outer, inner = (a, b) if a.max_rank <= b.max_rank else (b, a)
    cores, exponent = product_cores(outer.cores, inner.cores, inner.ranks, "i,rik->rik")
    log_scale = shifted_scale(summed_scales(a.log_scale, b.log_scale), exponent)
    return TT(cores, a.ranks * b.ranks, log_scale, a.shape)


def product_cores(
    outer: Inexact[Array, "d P *modes P"],
    inner: Inexact[Array, "d R *others R"],
    inner_ranks: Int32[Array, "d+1"],
    subscripts: str,
) -> tuple[Array, Array]:
    """Cores [d, P R, ..., P R] of a product, and the sum of the exponents of powers of two that they lack.

    Block (p, q) is what `subscripts` says of outer[p, ..., q] and the whole inner core. Blocks stand as close as the
    inner ranks allow: each is written over the padding of those before it. The outer ranks should be the smaller ones.
    """
    (outer, exponents), (inner, others) = unit_cores(outer), unit_cores(inner)
    count, size = outer.shape[-1], inner.shape[-1]
    blocks = jnp.moveaxis(outer, -1, 2).reshape(outer.shape[0], count**2, *outer.shape[2:-1])
    places = jnp.arange(count**2, dtype=jnp.int32)
    shape = jax.eval_shape(lambda x, y: einsum(subscripts, x, y), blocks[0, 0], inner[0]).shape
    whole = (count * size, *shape[1:-1], count * size)

    def site(_: None, xs: Any) -> tuple[None, Array]:
        blocks, core, before, behind = xs

        def place(cores: Array, x: tuple[Array, Array]) -> tuple[Array, None]:
            block, number = x
            start = (number // count * before, *[jnp.int32(0)] * (len(whole) - 2), number % count * behind)
            return jax.lax.dynamic_update_slice(cores, einsum(subscripts, block, core), start), None

        return None, jax.lax.scan(place, jnp.zeros(whole, core.dtype), (blocks, places))[0]

    _, cores = jax.lax.scan(site, None, (blocks, inner, inner_ranks[:-1], inner_ranks[1:]))
    return cores, jnp.sum(exponents + others, dtype=jnp.int32)
