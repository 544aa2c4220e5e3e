"""What a train is asked for: entries, inner products, norms, sums and integrals over some or all of its modes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum, matmul, qr
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from jaxnm.tensor_train.scaling import converted_scale, scaled_back, shifted_scale, summed_scales, unit_cores
from jaxnm.tensor_train.trains import TT, check_same_shape, check_train, mode_mask, stacked, subtract


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
    indices = arguments.to_integers("gather", "indices", indices, "see `evaluate` for points")
    d = tt.ndim
    arguments.check_shape("gather", "indices", indices, f"[m, {d}]", lambda shape: len(shape) == 2 and shape[1] == d)
    return _gather(tt, indices)


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
    first, second = arguments.to_arrays("dot", a=a.cores, b=b.cores)
    return _dot(first, second, a.log_scale, b.log_scale)


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

    Cost: as `norm` of a train of ranks R_a + R_b. Differentiable, as `norm`, where a and b differ by more than
    rounding; the derivative of a distance that is rounding is rounding over rounding.

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
    return _integrate(tt, rows)


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

    Cost: d n R^2 multiplications, and a product of two [R, R] matrices a mode, n for each that remains; compilation
    does not grow with d. Differentiable.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> marginal(ones, [1, 3]).shape, float(gather(marginal(ones, [1, 3]), jnp.array([[0, 0]]))[0])
      ((3, 3), 9.0)
    """
    check_train("marginal", tt=tt)
    d = tt.ndim
    arguments.check_list("marginal", "modes", modes, "the modes that remain")
    for mode in modes:
        arguments.check_count("marginal", "a mode", mode, minimum=-d)
    kept = [int(mode) % d if -d <= mode < d else int(mode) for mode in modes]
    if not kept or kept != sorted(set(kept)) or kept[-1] >= d:
        expected = f"one or more of 0 to {d - 1}, ascending"
        arguments.refuse("marginal", "modes", repr(list(modes)), expected, "give them in their order")
    return _marginal(tt, None if weights is None else _weight_rows("marginal", tt, weights), tuple(kept))


def _weight_rows(function: str, tt: TT, weights: Sequence[Any]) -> Array:
    """[d, n], zero beyond the mode sizes."""
    arguments.check_list(function, "weights", weights, "one array a mode")
    if len(weights) != tt.ndim:
        arguments.refuse(function, "weights", f"of length {len(weights)}", f"{tt.ndim} arrays", "one array a mode")
    arrays = arguments.to_arrays(function, cores=tt.cores, **{f"weights[{k}]": w for k, w in enumerate(weights)})[1:]
    for k, (array, n) in enumerate(zip(arrays, tt.shape, strict=True)):
        arguments.check_shape(function, f"weights[{k}]", array, f"[{n}]", lambda shape, n=n: shape == (n,))
    return stacked(arrays, (max(tt.shape),))


def first_row(tt: TT) -> Array:
    """[R], one and zeros."""
    return jnp.zeros(tt.max_rank, tt.dtype).at[0].set(1)


@jax.jit
def _gather(tt: TT, indices: Array) -> Array:
    # wide integers keep their place outside of the modes
    limits = jnp.iinfo(indices.dtype)
    indices = jnp.clip(indices, max(limits.min, -1), min(limits.max, max(tt.shape))).astype(jnp.int32)
    inside = jnp.all((indices >= 0) & (indices < jnp.array(tt.shape, jnp.int32)[None]), 1)
    values = scaled_back(*entries_and_exponents(tt.cores, indices), tt.log_scale)
    return jnp.where(inside, values, jnp.full_like(values, jnp.nan))


def entries_and_exponents(cores: Array, indices: Int32[Array, "m d"]) -> tuple[Array, Array]:
    """(v [m], e [m]) with entries v 2^e, |v| below two, for indices that exist: neither overflows nor vanishes."""
    rows = jnp.zeros((indices.shape[0], cores.shape[-1]), cores.dtype).at[:, 0].set(1)

    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (rows, exponents), (core, index) = carry, site
        rows, more = jax.vmap(rescaled)(einsum("mr,mrs->ms", rows, jnp.swapaxes(core, 0, 1)[index]))
        return (rows, exponents + more), None

    cores, exponents = unit_cores(cores)
    start = (rows, jnp.full(indices.shape[0], jnp.sum(exponents, dtype=jnp.int32)))
    (rows, exponents), _ = jax.lax.scan(step, start, (cores, indices.T))
    return rows[:, 0], exponents


@jax.jit
def _dot(a: Array, b: Array, log_scale: Array, other: Array) -> Array:
    real = jnp.finfo(a.dtype).dtype
    scales = (converted_scale(x, real) for x in (log_scale, other))
    return scaled_back(*inner_product(a, b), summed_scales(*scales))


def inner_product(a: Array, b: Array) -> tuple[Array, Array]:
    """(v, e) with the sum over all entries of conj(a) b being v 2^e, of trains without their factors."""
    (a, exponents), (b, others) = unit_cores(a), unit_cores(b)

    def step(carry: tuple[Array, Array], cores: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (between, exponent), (left, right) = carry, cores
        half = einsum("ab,bic->aic", between, right)
        between, more = rescaled(einsum("aid,aic->dc", left.conj(), half))
        return (between, exponent + more), None

    start = jnp.zeros((a.shape[-1], b.shape[-1]), a.dtype).at[0, 0].set(1)
    (between, exponent), _ = jax.lax.scan(step, (start, jnp.sum(exponents + others, dtype=jnp.int32)), (a, b))
    return between[0, 0], exponent


@jax.jit
def _integrate(tt: TT, rows: Array) -> Array:
    (cores, exponents), (rows, others) = unit_cores(tt.cores), unit_cores(rows)

    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (row, exponent), (core, weight) = carry, site
        row, more = rescaled(matmul(row, einsum("ris,i->rs", core, weight)))
        return (row, exponent + more), None

    start = (first_row(tt), jnp.sum(exponents + others, dtype=jnp.int32))
    (row, exponent), _ = jax.lax.scan(step, start, (cores, rows))
    return scaled_back(row[0], exponent, tt.log_scale)


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
    cores, exponents = unit_cores(cores)
    factors, more = jax.lax.scan(step, (last, jnp.int32(0)), cores, reverse=True)[1]
    return factors, more + jnp.cumsum(exponents[::-1], dtype=jnp.int32)[::-1]


@jax.jit
def _norm(tt: TT) -> Array:
    return scaled_back(*norm_parts(tt.cores), tt.log_scale)


@jax.custom_jvp
def norm_parts(cores: Array) -> tuple[Array, Array]:
    """(v, e), the norm of a train without its factor being v 2^e; its derivative is that of an inner product."""
    factors, exponents = right_factors(cores)
    return jnp.sqrt(jnp.sum(jnp.abs(factors[0, 0]) ** 2)), exponents[0]


@norm_parts.defjvp
def _norm_parts_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (cores,), (moved,) = primals, tangents
    value, exponent = norm_parts(cores)
    with_fixed = lambda other: inner_product(cores, other)
    (_, more), (slope, _) = jax.jvp(with_fixed, (cores,), (moved,))
    slope = times_power_of_two(slope.real, more - 2 * exponent)
    zero = value == 0
    slope = jnp.where(zero, jnp.zeros_like(slope), slope / jnp.where(zero, jnp.ones_like(value), value))
    return (value, exponent), (slope, np.zeros((), jax.dtypes.float0))


@jax.jit(static_argnums=2)
def _marginal(tt: TT, rows: Array | None, kept: tuple[int, ...]) -> TT:
    rows = jnp.asarray(mode_mask(tt.shape), tt.dtype) if rows is None else rows
    (cores, exponents), (rows, others) = unit_cores(tt.cores), unit_cores(rows)
    is_kept = np.isin(np.arange(tt.ndim), kept)
    matrices, eye = einsum("kris,ki->krs", cores, rows), jnp.eye(tt.max_rank, dtype=tt.dtype)

    # what is summed since the last mode that remains, before every site
    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (before, exponent), (matrix, keep) = carry, site
        product, more = rescaled(matmul(before, matrix))
        after = jnp.where(keep, eye, product), exponent + jnp.where(keep, jnp.int32(0), more)
        return after, before

    start = jnp.sum(exponents + jnp.where(is_kept, jnp.int32(0), others), dtype=jnp.int32)
    (behind, exponent), before = jax.lax.scan(step, (eye, start), (matrices, jnp.asarray(is_kept)))
    places, shape = np.array(kept), tuple(tt.shape[k] for k in kept)
    cores = einsum("krt,ktis->kris", before[places], cores[places][:, :, : max(shape)])
    cores = cores.at[-1].set(einsum("ris,st->rit", cores[-1], behind))
    one = jnp.ones(1, jnp.int32)
    ranks = jnp.concatenate([one, tt.ranks[places[:-1] + 1], one])
    return TT(cores, ranks, shifted_scale(tt.log_scale, exponent), shape)
