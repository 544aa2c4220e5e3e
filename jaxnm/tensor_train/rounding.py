"""Rounding: a train of smaller ranks that is near, with a derivative where that of QR or SVD would be NaN.

Going from left to right, the matrix whose rows are the left indices of a bond is projected onto its leading left
singular vectors. What lies behind the bond enters by a factor T of its Gram matrix W = T T^H only, which comes from a
sweep from right to left. A projection does not depend on how its basis is turned, so that its derivative needs no
differences of singular values but those of a kept and a dropped one, which are as far apart as the rounding is well
posed.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxnm import arguments
from jaxnm.linalg import eigh, einsum, matmul, qr, svd
from jaxnm.linalg.scaling import rescaled
from jaxnm.tensor_train.products import norm, right_factors
from jaxnm.tensor_train.scaling import shifted_scale, unit_cores
from jaxnm.tensor_train.trains import TT, check_train, core_mask, mode_mask, within

Method = Literal["auto", "qr_svd", "gram", "randomized"]
METHODS = ("auto", "qr_svd", "gram", "randomized")
_OVERSAMPLING = 8
# relative to the norm, a singular value of this many eps is nothing
_NOTHING = 4
# relative to the norm, inner products see a singular value to about this many roots of eps
_GRAM = 8
SECOND = "it has a first derivative only, as it is in the ranks that were chosen"
"""What to say of a second derivative."""


def round(
    tt: TT,
    *,
    max_rank: int | None = None,
    eps: Float[Array, ""] | float = 0.0,
    method: Method = "auto",
    key: Key[Array, ""] | None = None,
    return_error: bool = False,
) -> Any:
    """A train of smaller ranks near a given one.

    Args:
      tt: of any ranks.
      max_rank: R of the result (static); that of tt by default.
      eps: relative to the norm: ranks are the smallest that keep the error of each bond below eps |tt| / sqrt(d - 1),
        so that the distance is below eps |tt|, as far as max_rank lets them. What is below 4 machine epsilons of the
        norm (4 of their roots with "gram") is dropped in any case. May be traced.
      method: static. "qr_svd": QR from right to left, SVD from left to right, to full accuracy. "gram": inner products
        and symmetric eigenvalue problems, products of matrices above all, to the root of the machine epsilon.
        "randomized": a random train finds the subspaces, then "qr_svd" on the small result; for trains of large ranks
        that are a sum of many. "auto": "gram" where it keeps the bound: eps / sqrt(d - 1), a Python number, is 16 roots
        of the machine epsilon or more (2.4e-7, in float32 5.5e-3); else "qr_svd".
      key: of `jax.random.key`, for "randomized".
      return_error: whether the distance is returned too (static): the root of the summed squares of dropped singular
        values, for "randomized" that of the second step; a constant for derivatives.

    Returns:
      `TT` with cores [d, max_rank, n, max_rank], left-orthogonal but for the last, whose largest entry is between one
      and two, all else being in log_scale; with return_error a pair of it and a scalar.

    Raises:
      ValueError: max_rank < 1, eps < 0, an unknown method, no key for "randomized". TypeError: no train.

    Cost: d times a QR of [n R, R] and an SVD of [n R', R]; "gram" d eigenvalue problems of order n R'.
    Differentiable once, but for "randomized", in the ranks that the rounding chose: padding and equal singular values
    do no harm; where a kept singular value equals a dropped one, the rounding jumps and its derivative leaves that pair
    out. A second derivative raises.
    Source: I. V. Oseledets, SIAM J. Sci. Comput. 33 (2011), 2295-2317, algorithm 2; H. Al Daas, G. Ballard, P. Benner,
    SIAM J. Sci. Comput. 44 (2022) (Gram matrices); H. Al Daas et al., SIAM J. Sci. Comput. 45 (2023) (randomized).

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 4)
      >>> round(ones + ones).ranks.tolist()
      [1, 1, 1, 1, 1]
    """
    name = "round"
    check_train(name, tt=tt)
    size = tt.max_rank if max_rank is None else max_rank
    arguments.check_count(name, "max_rank", size, minimum=1)
    arguments.check_number(name, "eps", eps, ">= 0", lambda value: value >= 0, "0 drops only what is nothing")
    arguments.check_option(name, "method", method, METHODS, "use 'auto'")
    arguments.check_flag(name, "return_error", return_error)
    dtype = jnp.finfo(tt.dtype).dtype
    if method == "auto":
        method = "gram" if gram_suffices(eps, tt.ndim, dtype) else "qr_svd"
    (threshold,) = arguments.to_arrays(name, eps=eps)
    arguments.check_shape(name, "eps", threshold, "a scalar", lambda shape: shape == (), "one for all bonds")
    if method == "randomized":
        if key is None:
            arguments.refuse(name, "key", "None", "a key for 'randomized'", "pass jax.random.key(0)")
        arguments.check_key(name, key)
        tt = _randomized(key, tt, int(size) + _OVERSAMPLING)
    rounded, error = _round(tt, threshold.astype(dtype), int(size), method == "gram")
    return (rounded, error) if return_error else rounded


def gram_suffices(eps: Any, d: int, dtype: Any) -> bool:
    """Whether inner products see what a tolerance of eps, over all bonds, allows to drop at one of them."""
    least = 2 * _GRAM * float(jnp.finfo(dtype).eps) ** 0.5
    return arguments.is_number(eps) and bool(eps >= least * max(d - 1, 1) ** 0.5)


def relative_limit(eps: Array, d: int, gram: bool) -> Array:
    """What may be dropped at a bond, relative to the norm."""
    machine = jnp.finfo(eps.dtype).eps
    limit = eps / jnp.sqrt(jnp.asarray(max(d - 1, 1), eps.dtype))
    if gram:
        # the error of what is measured is not to be added to what is allowed
        limit = jnp.sqrt(jnp.maximum(limit**2 - _GRAM**2 * machine, jnp.zeros_like(limit)))
    return jnp.maximum(limit, _NOTHING * (machine**0.5 if gram else machine))


@partial(jax.jit, static_argnums=(2, 3))
def _round(tt: TT, eps: Array, size: int, gram: bool) -> tuple[TT, Array]:
    return _round_once(size, gram, tt, eps)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _round_once(size: int, gram: bool, tt: TT, eps: Array) -> tuple[TT, Array]:
    return _round_by_sweeps(size, gram, tt, eps)


@_round_once.defjvp
def _round_once_jvp(size: int, gram: bool, primals: Any, tangents: Any) -> Any:
    # said here, as reverse mode drops rules that are inside of a scan
    primals = arguments.without_derivative("round", "the gradient", primals, remedy=SECOND)
    return jax.jvp(partial(_round_by_sweeps, size, gram), primals, tangents)


def _round_by_sweeps(size: int, gram: bool, tt: TT, eps: Array) -> tuple[TT, Array]:
    large, n, d = tt.max_rank, max(tt.shape), tt.ndim
    dtype = eps.dtype
    cores, exponents = unit_cores(tt.cores)
    inner = _inner_products(cores)
    factors = _roots(inner) if gram else right_factors(jax.lax.stop_gradient(cores))[0]
    relative = relative_limit(eps, d, gram)
    modes = jnp.asarray(mode_mask(tt.shape))

    def step(carry: tuple[Array, Array, Array], site: Any) -> tuple[Any, Any]:
        left, rank, exponent = carry
        core, factor, product, mode = site
        matrix = einsum("ar,ris->ais", left, core).reshape(size * n, large)
        basis, singular, count = leading_subspace(size, gram, matrix, factor, product, relative)
        valid = (within(rank, size)[:, None] & mode[None]).reshape(-1, 1) & within(count, size)[None]
        basis = jnp.where(valid, basis, jnp.zeros_like(basis))
        squares = singular**2
        dropped = jnp.sum(jnp.where(within(count, squares.shape[0]), jnp.zeros_like(squares), squares))
        share = dropped / jnp.maximum(jnp.sum(squares), jnp.finfo(dtype).tiny)
        left, more = rescaled(matmul(basis.conj().T, matrix))
        return (left, count, exponent + more), (basis.reshape(size, n, size), count, share)

    start = jnp.zeros((size, large), tt.dtype).at[0, 0].set(1)
    sites = (cores[:-1], factors[1:], inner[1:], modes[:-1])
    total = jnp.sum(exponents, dtype=jnp.int32)
    (left, _, total), (bases, counts, shares) = jax.lax.scan(step, (start, jnp.int32(1), total), sites)
    last, more = rescaled(einsum("ar,ri->ai", left, cores[-1, :, :, 0]))
    last = jnp.zeros((size, n, size), tt.dtype).at[:, :, 0].set(last)
    one = jnp.ones(1, jnp.int32)
    ranks = jnp.concatenate([one, counts, one])
    cores = jnp.concatenate([bases, last[None]])
    cores = jnp.where(core_mask(ranks, tt.shape, size), cores, jnp.zeros_like(cores))
    rounded = TT(cores, ranks, shifted_scale(tt.log_scale, total + more), tt.shape)
    # of what is left at a bond a share is dropped; errors at different bonds are orthogonal
    remaining = jnp.concatenate([jnp.ones(1, dtype), jnp.cumprod(1 - shares)[:-1]]) if d > 1 else jnp.ones(0, dtype)
    error = norm(jax.lax.stop_gradient(tt)) * jnp.sqrt(jnp.sum(shares * remaining))
    return rounded, error


def _inner_products(cores: Array) -> Array:
    """W [d, R, R], of the rows behind every bond, each over its largest entry."""

    def step(behind: Array, core: Array) -> tuple[Array, Array]:
        half = einsum("ris,st->rit", core, behind)
        product, _ = rescaled(einsum("rit,qit->rq", half, core.conj()))
        return product, product

    last = jnp.zeros(cores.shape[-1:] * 2, cores.dtype).at[0, 0].set(1)
    return jax.lax.scan(step, last, cores, reverse=True)[1]


def _roots(inner: Array) -> Array:
    """T with T T^H = W for every bond."""
    values, vectors = eigh(jax.lax.stop_gradient(inner))
    return vectors * jnp.sqrt(jnp.maximum(values, jnp.zeros_like(values)))[:, None].astype(vectors.dtype)


# ------------------------------------------------------------------------------------------------ one bond


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def leading_subspace(
    size: int, gram: bool, matrix: Array, factor: Array, inner: Array, relative: Array
) -> tuple[Array, Array, Array]:
    """Leading left singular vectors of matrix T [m, R], all singular values, and how many of them are kept.

    The vectors are [m, size], orthonormal; more are kept the smaller `relative` is, at least one. The derivative takes
    T T^H for the inner products `inner`, up to a factor, and turns kept vectors towards dropped ones only.
    """
    product = matmul(matrix, factor)
    if gram:
        values, vectors = eigh(matmul(product.conj().T, product))
        singular = jnp.sqrt(jnp.maximum(values[::-1], jnp.zeros_like(values)))
        # already orthogonal but for rounding
        basis = qr(matmul(product, vectors[:, ::-1][:, :size])).orthogonal
    else:
        basis, singular, _ = svd(product)
        basis = basis[:, :size]
    limit = relative * jnp.sqrt(jnp.sum(singular**2))
    return jnp.pad(basis, ((0, 0), (0, size - basis.shape[1]))), singular, kept_count(singular, limit, size)


def kept_count(singular: Array, limit: Array, most: int) -> Array:
    """How many singular values are needed, of one at least, so that the others have a norm of at most `limit`."""
    tails = jnp.sqrt(jnp.cumsum(singular[::-1] ** 2)[::-1])
    return jnp.clip(jnp.sum(tails > limit, dtype=jnp.int32), 1, most)


@leading_subspace.defjvp
def _leading_subspace_jvp(size: int, gram: bool, primals: Any, tangents: Any) -> Any:
    matrix, factor, inner, relative = arguments.without_derivative("round", "the gradient", primals, remedy=SECOND)
    moved, _, inner_moved, _ = tangents
    basis, found, count = leading_subspace(size, gram, matrix, factor, inner, relative)
    whole = matmul(factor, factor.conj().T)
    # both are the same inner products, in different units
    unit = jnp.sum(jnp.abs(whole)) / jnp.maximum(jnp.sum(jnp.abs(inner)), jnp.finfo(relative.dtype).tiny)
    unit = unit.astype(matrix.dtype)
    back = matmul(matrix.conj().T, basis)
    turned = matmul(moved, matmul(whole, back)) + unit * matmul(matrix, matmul(inner_moved, back))
    turned += matmul(matrix, matmul(whole, matmul(moved.conj().T, basis)))
    left, singular, _ = svd(matmul(matrix, factor))
    energies = jnp.diagonal(matmul(basis.conj().T, matmul(matrix, matmul(whole, back)))).real
    change = turned_basis(left, singular**2, energies, count, turned)
    return (basis, found, count), (change, jnp.zeros_like(found), np.zeros((), jax.dtypes.float0))


def turned_basis(left: Array, energies: Array, kept: Array, count: Array, turned: Array) -> Array:
    """How leading eigenvectors of a Gram matrix move with it, but for turns among themselves.

    Args:
      left: [m, k], its eigenvectors.
      energies: [k], its eigenvalues.
      kept: [r], those of the leading ones, of which `count` are in use.
      count: how many.
      turned: [m, r], the derivative of the matrix times the leading eigenvectors.
    """
    size = kept.shape[0]
    parts = matmul(left.conj().T, turned)
    gaps = kept[None] - energies[:, None]
    dropped = ~within(count, energies.shape[0])[:, None] & within(count, size)[None]
    small = 16 * jnp.finfo(energies.dtype).eps ** 2 * energies[0]
    apart = dropped & (gaps > small)
    divisors = jnp.where(apart, gaps, jnp.ones_like(gaps)).astype(parts.dtype)
    towards = jnp.where(apart, parts / divisors, jnp.zeros_like(parts))
    outside = turned - matmul(left, parts)
    usable = within(count, size) & (kept > small)
    divisors = jnp.where(usable, kept, jnp.ones_like(kept)).astype(parts.dtype)
    outside = jnp.where(usable[None], outside / divisors[None], jnp.zeros_like(outside))
    return matmul(left, towards) + outside


def _randomized(key: Array, tt: TT, size: int) -> TT:
    return _randomized_of(tt.cores, key, tt.ranks, tt.log_scale, tt.shape, size)


@partial(jax.jit, static_argnums=(4, 5))
def _randomized_of(cores: Array, key: Array, ranks: Array, log_scale: Array, shape: tuple[int, ...], size: int) -> TT:
    """Projected from the left onto what a random train of ranks `size` sees of it."""
    cores = arguments.without_derivative(
        "round", "method 'randomized'", cores, remedy="its subspaces are drawn; use 'qr_svd' or 'gram'"
    )
    d, large, n, _ = cores.shape
    cores, exponents = unit_cores(cores)
    modes = jnp.asarray(mode_mask(shape))
    random = jax.random.normal(key, (d, size, n, size), cores.dtype)

    def look(behind: Array, site: Any) -> tuple[Array, Array]:
        core, other = site
        seen, _ = rescaled(einsum("rit,qit->rq", einsum("ris,st->rit", core, behind), other))
        return seen, seen

    last = jnp.zeros((large, size), cores.dtype).at[0].set(1)
    seen = jax.lax.scan(look, last, (cores, random), reverse=True)[1]

    def step(carry: Any, site: Any) -> Any:
        left, rank, exponent = carry
        core, behind, mode, bond = site
        matrix = einsum("ar,ris->ais", left, core).reshape(size * n, large)
        # rows that are not there come last, so that no vector of the basis needs them
        valid = (within(rank, size)[:, None] & mode[None]).reshape(-1)
        order = jnp.argsort(~valid, stable=True)
        basis = qr(matmul(matrix, behind)[order]).orthogonal
        basis = jnp.pad(basis, ((0, 0), (0, size - basis.shape[1])))[jnp.argsort(order)]
        count = jnp.minimum(jnp.minimum(jnp.sum(valid, dtype=jnp.int32), bond), size)
        basis = jnp.where(valid[:, None] & within(count, size)[None], basis, jnp.zeros_like(basis))
        left, more = rescaled(matmul(basis.conj().T, matrix))
        return (left, count, exponent + more), (basis.reshape(size, n, size), count)

    start = jnp.zeros((size, large), cores.dtype).at[0, 0].set(1)
    sites = (cores[:-1], seen[1:], modes[:-1], ranks[1:-1])
    (left, _, exponent), (bases, counts) = jax.lax.scan(step, (start, jnp.int32(1), jnp.int32(0)), sites)
    end = jnp.zeros((size, n, size), cores.dtype).at[:, :, 0].set(einsum("ar,ri->ai", left, cores[-1, :, :, 0]))
    one = jnp.ones(1, jnp.int32)
    log_scale = shifted_scale(log_scale, exponent + jnp.sum(exponents, dtype=jnp.int32))
    return TT(jnp.concatenate([bases, end[None]]), jnp.concatenate([one, counts, one]), log_scale, shape)
