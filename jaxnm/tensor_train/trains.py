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


@flax.struct.dataclass
class TT:
    """A tensor train; `+`, `-` and `*` with trains and numbers are `add`, `subtract`, `hadamard` and `scale`."""

    cores: Inexact[Array, "d R n R"]
    """Core k is cores[k, :ranks[k], :shape[k], :ranks[k + 1]]; all else is zero. n is the largest of the mode sizes."""
    ranks: Int32[Array, "d+1"]
    """First and last are one."""
    log_scale: Float[Array, ""]
    """The natural logarithm of a factor, so that products of hundreds of cores neither overflow nor vanish."""
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
    if len(cores) == 0:
        arguments.refuse(name, "cores", "empty", "at least one", "give one core a mode")
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
    n = max(shape)
    padded = [jnp.pad(core, [(0, most - size) for most, size in zip((bound, n, bound), core.shape, strict=True)])
              for core in arrays]  # fmt: skip
    dtype = jnp.finfo(arrays[0].dtype).dtype
    return TT(jnp.stack(padded), jnp.array(ranks, jnp.int32), jnp.zeros((), dtype), shape)


def to_cores(tt: TT) -> list[Inexact[Array, "r n r'"]]:
    """The cores of a train at their true ranks, for other packages.

    Args:
      tt: not traced, since its ranks become shapes.

    Returns:
      d arrays [r, n, r']; the first one is multiplied by exp(log_scale).

    Raises:
      ValueError: under `jit`, or with numbers beyond the ranks or the modes. TypeError: no train.

    Cost: a copy. Differentiable in nothing that is traced.

    Example:
      >>> cores = to_cores(from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))], max_rank=5))
      >>> [core.shape for core in cores]
      [(1, 3, 2), (2, 4, 1)]
    """
    check_train("to_cores", tt=tt)
    if isinstance(tt.ranks, jax.core.Tracer):
        arguments.refuse("to_cores", "tt", "traced", "a train with known ranks", "call it outside of jit")
    inside = core_mask(tt.ranks, tt.shape, tt.max_rank)
    if not isinstance(tt.cores, jax.core.Tracer) and bool(jnp.any(~inside & (tt.cores != 0))):
        got = "with numbers beyond its ranks or modes"
        arguments.refuse("to_cores", "tt", got, "zeros there", "build trains by from_cores")
    ranks = np.asarray(tt.ranks).tolist()
    cores = [tt.cores[k, : ranks[k], :n, : ranks[k + 1]] for k, n in enumerate(tt.shape)]
    return [cores[0] * jnp.exp(tt.log_scale).astype(tt.dtype), *cores[1:]]


# ------------------------------------------------------------------------------------------------ checks and masks


def checked_shape(function: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The mode sizes as a tuple of Python integers, at least one of them and none below one."""
    if isinstance(shape, int | np.integer) or len(shape) == 0:
        got = repr(shape) if isinstance(shape, int | np.integer) else "empty"
        arguments.refuse(function, "shape", got, "a sequence of d >= 1 mode sizes", "pass (n,) * d")
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


def check_train(function: str, **trains: Any) -> None:
    """Refuse what is no train, and a batch of them."""
    for name, tt in trains.items():
        if not isinstance(tt, TT):
            arguments.refuse(function, name, f"of type {type(tt).__name__}", "a TT", "see from_cores", error=TypeError)
        d, n = len(tt.shape), max(tt.shape, default=0)
        shape = jnp.shape(tt.cores)
        if len(shape) != 4 or shape != (d, shape[-1], n, shape[-1]) or jnp.shape(tt.ranks) != (d + 1,):
            got = f"with cores of shape {shape} and ranks of shape {jnp.shape(tt.ranks)}"
            expected = f"[{d}, R, {n}, R] and [{d + 1}] for modes {tt.shape}"
            arguments.refuse(function, name, got, expected, "use jax.vmap for a batch of trains")


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


def rescaled(x: Array) -> tuple[Array, Array]:
    """(x over a power of two, that power's exponent), the largest entry between one and two; zero stays as it is."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    usable = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(usable, largest, jnp.ones_like(largest)))
    exponent = exponent.astype(jnp.int32) - 1
    return times_power_of_two(x, -exponent), exponent


def times_power_of_two(x: Array, exponent: Array) -> Array:
    """The array x 2^exponent, exactly; in two factors, either of which is a normal number wherever the result is."""
    dtype = jnp.finfo(x.dtype).dtype
    half = exponent // 2
    first, second = (_power_of_two(part, dtype) for part in (half, exponent - half))
    return x * first.astype(x.dtype) * second.astype(x.dtype)


def _power_of_two(exponent: Array, dtype: Any) -> Array:
    info = jnp.finfo(dtype)
    limited = jnp.clip(exponent, info.minexp, info.maxexp - 1)
    return jax.lax.stop_gradient(jnp.ldexp(jnp.ones(jnp.shape(exponent), dtype), limited))


# ------------------------------------------------------------------------------------------------ arithmetic


def add(a: TT, b: TT) -> TT:
    """The sum of two trains; its ranks are the sums of theirs, and `round` brings them down.

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
      >>> scale(from_cores([jnp.ones((1, 3, 1))]), 2.0).cores[0, 0, :, 0].tolist()
      [2.0, 2.0, 2.0]
    """
    check_train("scale", tt=tt)
    cores, factor = arguments.to_arrays("scale", cores=tt.cores, factor=factor)
    arguments.check_shape("scale", "factor", factor, "a scalar", lambda shape: shape == (), "use hadamard for trains")
    log_scale = tt.log_scale.astype(jnp.finfo(cores.dtype).dtype)
    return TT(cores.at[0].multiply(factor), tt.ranks, log_scale, tt.shape)


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
      >>> (two * two).cores[:, 0, 0, 0].tolist()
      [4.0, 1.0]
    """
    check_same_shape("hadamard", a, b)
    return _hadamard(*_of_one_dtype("hadamard", a, b))


def _of_one_dtype(function: str, a: TT, b: TT) -> tuple[TT, TT]:
    first, second = arguments.to_arrays(function, a=a.cores, b=b.cores)
    real = jnp.finfo(first.dtype).dtype
    convert = lambda tt, cores: TT(cores, tt.ranks, tt.log_scale.astype(real), tt.shape)
    return convert(a, first), convert(b, second)


@jax.jit
def _add(a: TT, b: TT) -> TT:
    first, second = a.max_rank, b.max_rank
    size, n, d = first + second, max(a.shape), len(a.shape)
    log_scale = jnp.maximum(a.log_scale, b.log_scale)
    scaled = lambda tt: tt.cores.at[0].multiply(jnp.exp(tt.log_scale - log_scale).astype(tt.dtype))
    # b stands behind a, but in the first row of the first core and the first column of the last
    behind = a.ranks.at[0].set(0).at[d].set(0)

    def place(core_a: Array, core_b: Array, row: Array, column: Array) -> Array:
        empty = jnp.zeros((size, n, size), core_a.dtype)
        moved = jax.lax.dynamic_update_slice(empty, core_b, (row, jnp.int32(0), column))
        return empty.at[:first, :, :first].set(core_a) + moved

    cores = jax.vmap(place)(scaled(a), scaled(b), behind[:-1], behind[1:])
    ranks = (a.ranks + b.ranks).at[0].set(1).at[d].set(1)
    return TT(cores, ranks, log_scale, a.shape)


@jax.jit
def _hadamard(a: TT, b: TT) -> TT:
    size = a.max_rank * b.max_rank
    index = jnp.arange(size, dtype=jnp.int32)[None]
    ranks = a.ranks * b.ranks
    of_a = jnp.minimum(index // b.ranks[:, None], a.max_rank - 1)
    of_b = index % b.ranks[:, None]

    def pick(core: Array, rows: Array, columns: Array) -> Array:
        return core[rows][:, :, columns]

    factors = (jax.vmap(pick)(tt.cores, which[:-1], which[1:]) for tt, which in ((a, of_a), (b, of_b)))
    first, second = factors
    product = first * second
    cores = jnp.where(core_mask(ranks, a.shape, size), product, jnp.zeros_like(product))
    return TT(cores, ranks, a.log_scale + b.log_scale, a.shape)
