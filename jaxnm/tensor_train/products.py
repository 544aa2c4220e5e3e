"""What a train is asked for: entries, inner products, norms, sums and integrals over some or all of its modes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Inexact, Int, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum, matmul, qr
from jaxnm.tensor_train.trains import TT, check_same_shape, check_train, rescaled, subtract, times_power_of_two


def gather(tt: TT, indices: Int[ArrayLike, "m d"]) -> Inexact[Array, "m"]:
    """Entries of a train.

    Args:
      tt: of d modes.
      indices: [m, d], from 0 to n_k - 1.

    Returns:
      [m]; NaN for an index that its mode does not have.

    Raises:
      ValueError: another shape. TypeError: indices that are not integers, no train.

    Cost: m d R^2 multiplications, and m R^2 numbers at a time. Differentiable in the train.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> tt = from_cores([jnp.array([[[1.0], [2.0]]]), jnp.array([[[3.0], [5.0]]])])
      >>> gather(tt, jnp.array([[0, 1], [1, 0], [2, 0]])).tolist()
      [5.0, 6.0, nan]
    """
    check_train("gather", tt=tt)
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        got = f"of dtype {indices.dtype}"
        arguments.refuse("gather", "indices", got, "integers", "see `evaluate` for points", error=TypeError)
    d = tt.ndim
    arguments.check_shape("gather", "indices", indices, f"[m, {d}]", lambda shape: len(shape) == 2 and shape[1] == d)
    # wide integers keep their place outside of the modes
    limits = jnp.iinfo(indices.dtype)
    indices = jnp.clip(indices, max(limits.min, -1), min(limits.max, max(tt.shape)))
    return _gather(tt, indices.astype(jnp.int32))


def dot(a: TT, b: TT) -> Inexact[Array, ""]:
    """The sum over all entries of conj(a) b.

    Args:
      a: of any ranks.
      b: of the shape of a.

    Returns:
      a scalar, infinite where it is too large for its dtype.

    Raises:
      ValueError: different shapes. TypeError: no train.

    Cost: d n R_a R_b (R_a + R_b) multiplications. Differentiable. The square root of dot(a, a) has half the digits that
    `norm` has.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> float(dot(ones, ones))
      81.0
    """
    check_same_shape("dot", a, b)
    value, exponent = _dot(a, b)
    return _scaled_back(value, exponent, a.log_scale + b.log_scale)


def norm(tt: TT) -> Float[Array, ""]:
    """The Frobenius norm, by orthogonal factorizations, to full accuracy.

    Args:
      tt: of any ranks.

    Returns:
      a scalar, infinite where it is too large for its dtype.

    Raises:
      TypeError: no train.

    Cost: d factorizations QR of [n R, R] matrices. Differentiable, by an inner product; the derivative at zero is zero.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> round(float(norm(from_cores([jnp.ones((1, 3, 1))] * 4))), 4)
      9.0
    """
    check_train("norm", tt=tt)
    return _norm(tt)


def distance(a: TT, b: TT) -> Float[Array, ""]:
    """The Frobenius norm of a - b, to the accuracy of the entries.

    Args:
      a: of any ranks.
      b: of the shape of a.

    Returns:
      a scalar: absolute, not relative.

    Raises:
      ValueError: different shapes. TypeError: no train.

    Cost: as `norm` of a train of ranks R_a + R_b. Differentiable, as `norm`.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> round(float(distance(ones, ones)), 4)
      0.0
    """
    check_same_shape("distance", a, b)
    return _norm(subtract(a, b))


def integrate(tt: TT, weights: Sequence[Inexact[ArrayLike, "n"]]) -> Inexact[Array, ""]:
    """The sum of all entries times weights of their indices: a quadrature in d dimensions.

    Args:
      tt: of d modes.
      weights: d arrays [n_k].

    Returns:
      a scalar.

    Raises:
      ValueError: another number of weights, or of other lengths. TypeError: no train.

    Cost: d n R^2 multiplications. Differentiable.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 100)
      >>> round(float(integrate(ones, [jnp.array([1.0, 4.0, 1.0]) / 6] * 100)), 5)
      1.0
    """
    check_train("integrate", tt=tt)
    rows = _weight_rows("integrate", tt, weights)
    value, exponent = _contract(tt, rows)
    return _scaled_back(value, exponent, tt.log_scale)


def marginal(tt: TT, modes: Sequence[int], weights: Sequence[Inexact[ArrayLike, "n"]] | None = None) -> TT:
    """The sum over all modes but some.

    Args:
      tt: of d modes.
      modes: those that remain, ascending (static); negative ones count from the end.
      weights: d arrays [n_k], with which the others are summed; ones by default.

    Returns:
      `TT` of the remaining modes, in their order.

    Raises:
      ValueError: no mode, one that is not there or comes twice, other weights. TypeError: no train.

    Cost: d n R^2 multiplications, and a product of two [R, R] matrices a summed mode. Differentiable.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> marginal(ones, [1, 3]).shape, float(gather(marginal(ones, [1, 3]), jnp.array([[0, 0]]))[0])
      ((3, 3), 9.0)
    """
    check_train("marginal", tt=tt)
    d = tt.ndim
    for mode in modes:
        arguments.check_count("marginal", "a mode", mode, minimum=-d)
    kept = [mode % d if -d <= mode < d else mode for mode in modes]
    if not kept or kept != sorted(set(kept)) or kept[-1] >= d:
        expected = f"one or more of 0 to {d - 1}, ascending"
        arguments.refuse("marginal", "modes", repr(list(modes)), expected, "permute afterwards")
    rows = _weight_rows("marginal", tt, [jnp.ones(n, tt.dtype) for n in tt.shape] if weights is None else weights)
    return _marginal(tt, rows, tuple(kept))


def _weight_rows(function: str, tt: TT, weights: Sequence[Any]) -> Array:
    """[d, n], zero beyond the mode sizes."""
    if len(weights) != tt.ndim:
        arguments.refuse(function, "weights", f"of length {len(weights)}", f"{tt.ndim} arrays", "one array a mode")
    arrays = arguments.to_arrays(function, cores=tt.cores, **{f"weights[{k}]": w for k, w in enumerate(weights)})[1:]
    for k, (array, n) in enumerate(zip(arrays, tt.shape, strict=True)):
        arguments.check_shape(function, f"weights[{k}]", array, f"[{n}]", lambda shape, n=n: shape == (n,))
    n = max(tt.shape)
    return jnp.stack([jnp.pad(array, (0, n - array.shape[0])) for array in arrays])


def _scaled_back(value: Array, exponent: Array, log_scale: Array) -> Array:
    """The number value 2^exponent e^log_scale, without overflow on the way."""
    dtype = jnp.finfo(value.dtype).dtype
    binary = jax.lax.stop_gradient(jnp.round(log_scale / jnp.log(jnp.asarray(2, dtype))))
    rest = jnp.exp(log_scale - binary * jnp.log(jnp.asarray(2, dtype)))
    return times_power_of_two(value * rest.astype(value.dtype), exponent + binary.astype(jnp.int32))


def first_row(tt: TT) -> Array:
    """[R], one and zeros."""
    return jnp.zeros(tt.max_rank, tt.dtype).at[0].set(1)


@jax.jit
def _gather(tt: TT, indices: Array) -> Array:
    inside = jnp.all((indices >= 0) & (indices < jnp.array(tt.shape, jnp.int32)[None]), 1)
    values = jax.vmap(_scaled_back, (0, 0, None))(*entries_and_exponents(tt.cores, indices), tt.log_scale)
    return jnp.where(inside, values, jnp.full_like(values, jnp.nan))


def entries_and_exponents(cores: Array, indices: Int32[Array, "m d"]) -> tuple[Array, Array]:
    """(v [m], e [m]) with entries v 2^e, |v| below two, for indices that exist: neither overflows nor vanishes."""
    rows = jnp.zeros((indices.shape[0], cores.shape[-1]), cores.dtype).at[:, 0].set(1)

    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (rows, exponents), (core, index) = carry, site
        rows, more = jax.vmap(rescaled)(einsum("mr,mrs->ms", rows, jnp.swapaxes(core, 0, 1)[index]))
        return (rows, exponents + more), None

    start = (rows, jnp.zeros(indices.shape[0], jnp.int32))
    (rows, exponents), _ = jax.lax.scan(step, start, (cores, indices.T))
    return rows[:, 0], exponents


@jax.jit
def _dot(a: TT, b: TT) -> tuple[Array, Array]:
    start = first_row(a)[:, None] * first_row(b)[None]

    def step(carry: tuple[Array, Array], cores: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (between, exponent), (left, right) = carry, cores
        half = einsum("ab,bic->aic", between, right)
        between, more = rescaled(einsum("aid,aic->dc", left.conj(), half))
        return (between, exponent + more), None

    (between, exponent), _ = jax.lax.scan(step, (start, jnp.int32(0)), (a.cores, b.cores))
    return between[0, 0], exponent


@jax.jit
def _contract(tt: TT, rows: Array) -> tuple[Array, Array]:
    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (row, exponent), (core, weight) = carry, site
        row, more = rescaled(matmul(row, einsum("ris,i->rs", core, weight)))
        return (row, exponent + more), None

    (row, exponent), _ = jax.lax.scan(step, (first_row(tt), jnp.int32(0)), (tt.cores, rows))
    return row[0], exponent


def right_factors(cores: Array) -> tuple[Array, Array]:
    """(T [d, R, R], exponents [d]): T[k] T[k]^H times 4^exponents[k] are the inner products of the rows behind bond k.

    They come from factorizations QR, without squares, so that no digit is lost.
    """
    size = cores.shape[-1]

    def step(carry: tuple[Array, Array], core: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        behind, exponent = carry
        product = einsum("ris,st->rit", core, behind).reshape(size, -1)
        triangular = qr(product.conj().T).triangular
        factor, more = rescaled(jnp.pad(triangular.conj().T, ((0, 0), (0, size - triangular.shape[0]))))
        return (factor, exponent + more), (factor, exponent + more)

    last = jnp.zeros((size, size), cores.dtype).at[0, 0].set(1)
    return jax.lax.scan(step, (last, jnp.int32(0)), cores, reverse=True)[1]


@jax.jit
def _norm(tt: TT) -> Array:
    return _norm_of(tt.cores, tt.log_scale)


@jax.custom_jvp
def _norm_of(cores: Array, log_scale: Array) -> Array:
    factors, exponents = right_factors(cores)
    return _scaled_back(jnp.sqrt(jnp.sum(jnp.abs(factors[0, 0]) ** 2)), exponents[0], log_scale)


@_norm_of.defjvp
def _norm_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    cores, log_scale = primals
    value = _norm_of(cores, log_scale)
    usable = value > 0
    unit = log_scale - jnp.log(jnp.where(usable, value, jnp.ones_like(value)))
    shape = (cores.shape[2],) * cores.shape[0]
    ranks = jnp.ones(cores.shape[0] + 1, jnp.int32)

    def inner(cores_: Array, log_scale_: Array) -> Array:
        fixed, moving = TT(cores, ranks, unit, shape), TT(cores_, ranks, unit + (log_scale_ - log_scale), shape)
        product, exponent = _dot(fixed, moving)
        return _scaled_back(product, exponent, fixed.log_scale + moving.log_scale).real

    _, slope = jax.jvp(inner, primals, tangents)
    return value, jnp.where(usable, value * slope, jnp.zeros_like(slope))


@jax.jit(static_argnums=2)
def _marginal(tt: TT, rows: Array, kept: tuple[int, ...]) -> TT:
    cores, before = [], None
    exponent = jnp.int32(0)
    for k in range(tt.ndim):
        core = tt.cores[k]
        if k in kept:
            core = core if before is None else einsum("rt,tis->ris", before, core)
            cores, before = [*cores, core], None
            continue
        summed = einsum("ris,i->rs", core, rows[k])
        before, more = rescaled(summed if before is None else matmul(before, summed))
        exponent = exponent + more
    if before is not None:
        cores[-1] = einsum("ris,st->rit", cores[-1], before)
    log_scale = tt.log_scale + exponent.astype(tt.log_scale.dtype) * jnp.log(jnp.asarray(2, tt.log_scale.dtype))
    shape = tuple(tt.shape[k] for k in kept)
    stacked = jnp.stack(cores)[:, :, : max(shape)]
    one = jnp.int32(1)
    return TT(stacked, jnp.stack([one, *(tt.ranks[k + 1] for k in kept[:-1]), one]), log_scale, shape)
