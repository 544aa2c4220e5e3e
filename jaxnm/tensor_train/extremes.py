"""The largest and the smallest entry of a train, by beam search over prefixes of multi-indices."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from jaxnm.tensor_train.products import entries_and_exponents, gather, right_factors
from jaxnm.tensor_train.rounding import round
from jaxnm.tensor_train.trains import TT, add, check_train, mode_mask, scale


class Extreme(NamedTuple):
    """An entry of a train and where it is; index -1 and value NaN for a train that is not finite."""

    index: Int32[Array, "d"]
    value: Inexact[Array, ""]


def argmax(tt: TT, *, beam: int = 100) -> Extreme:
    """The largest entry of a train and its multi-index, as far as a beam search finds it.

    Of all prefixes of a multi-index, the `beam` are kept that have the largest norm of the entries that begin so. This
    is done from both ends, for the train, and for the train less its entry of largest modulus that was found; the
    largest of all entries that come out is the result. It is an entry of the train in any case. It is the largest one
    if there are at most `beam` prefixes of d - 1 modes, and for trains of rank 1 whose entries are not negative;
    otherwise the largest may be missed.

    Args:
      tt: real.
      beam: how many prefixes are kept (static).

    Returns:
      `Extreme(index [d], value)`.

    Raises:
      ValueError: beam < 1. TypeError: no train, a complex one.

    Cost: about 8 d n R^2 (beam + R) multiplications, and sorting beam n numbers 4 d times. The value is differentiable
    in the train, at the index that is found.
    Source: A. Chertkov, G. Ryzhakov, G. Novikov, I. Oseledets, arXiv:2209.14808, algorithms 1 and 2.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> tt = from_cores([jnp.array([[[-1.0], [2.0]]]), jnp.array([[[3.0], [-5.0], [1.0]]])])
      >>> index, value = argmax(tt)
      >>> index.tolist(), f"{value:.4f}"
      ([1, 0], '6.0000')
    """
    return _checked("argmax", tt, beam, 1.0)


def argmin(tt: TT, *, beam: int = 100) -> Extreme:
    """The smallest entry of a train and its multi-index, as far as a beam search finds it: `argmax` of the negative.

    Args:
      tt: real.
      beam: how many prefixes are kept (static).

    Returns:
      `Extreme(index [d], value)`.

    Raises:
      ValueError: beam < 1. TypeError: no train, a complex one.

    Cost: as `argmax`. The value is differentiable in the train, at the index that is found.

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> tt = from_cores([jnp.array([[[-1.0], [2.0]]]), jnp.array([[[3.0], [-5.0], [1.0]]])])
      >>> index, value = argmin(tt)
      >>> index.tolist(), f"{value:.4f}"
      ([1, 1], '-10.0000')
    """
    return _checked("argmin", tt, beam, -1.0)


def _checked(function: str, tt: Any, beam: int, sign: float) -> Extreme:
    check_train(function, tt=tt)
    arguments.check_real(function, "tt", tt.cores)
    arguments.check_count(function, "beam", beam, minimum=1)
    index = _argmax(jax.lax.stop_gradient(scale(tt, sign)), int(beam))
    return Extreme(index, gather(tt, index[None])[0])


@jax.jit(static_argnums=1)
def _argmax(tt: TT, beam: int) -> Array:
    finite = jnp.all(jnp.isfinite(tt.cores)) & jnp.isfinite(tt.log_scale)
    # left-orthogonal cores and a norm near one, so that a constant can be added in their units
    tt = replace(tt, cores=jax.vmap(rescaled)(tt.cores)[0], log_scale=jnp.zeros_like(tt.log_scale))
    unit = round(tt, method="qr_svd")
    unit = replace(unit, log_scale=jnp.zeros_like(unit.log_scale))

    def less(constant: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        """The candidates of a search in the train less a constant, and their entry of largest modulus."""
        shifted = add(unit, _constant(-constant[0], constant[1], tt))
        indices = _both_ends(shifted.cores, tt.shape, beam)
        values, exponents = entries_and_exponents(unit.cores, indices)
        best = _largest(jnp.abs(values), exponents)
        return (values[best], exponents[best]), (indices, values, exponents)

    # first the train itself, then without its entry of largest modulus
    nothing = (jnp.zeros((), tt.dtype), jnp.int32(0))
    _, found = jax.lax.scan(less, nothing, None, length=2)
    indices, values, exponents = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in found)
    return jnp.where(finite, indices[_largest(values, exponents)], jnp.int32(-1))


def _largest(values: Array, exponents: Array) -> Array:
    """The place of the largest values 2^exponents, though they may not be numbers of the dtype."""
    low = jnp.iinfo(jnp.int32).min // 2
    positive, some = values > 0, values != 0
    unit = jnp.where(
        jnp.any(positive),
        jnp.max(jnp.where(positive, exponents, low)),
        jnp.min(jnp.where(some, exponents, -low)),
    )
    # in the unit of the largest; if all are negative, then of the one nearest to zero
    return jnp.argmax(times_power_of_two(values, jnp.where(some, exponents - unit, 0)))


def _constant(value: Array, exponent: Array, tt: TT) -> TT:
    """All entries value 2^exponent, the modulus being spread over the cores, none of which is too large or small."""
    d = tt.ndim
    largest = jnp.where(value != 0, jnp.abs(value), jnp.ones_like(value))
    total = jnp.log(largest) + exponent.astype(value.dtype) * jnp.log(jnp.asarray(2, value.dtype))
    each = jnp.exp(total / jnp.asarray(d, value.dtype))
    modes = jnp.asarray(mode_mask(tt.shape))[:, None, :, None]
    cores = jnp.where(modes, each, jnp.zeros_like(each)).at[0].multiply(jnp.sign(value))
    return TT(cores, jnp.ones(d + 1, jnp.int32), jnp.zeros_like(tt.log_scale), tt.shape)


def _both_ends(cores: Array, shape: tuple[int, ...], beam: int) -> Array:
    """[2 beam, d], the multi-indices that searches from both ends keep."""
    modes = jnp.asarray(mode_mask(shape))
    turned = jnp.swapaxes(cores[::-1], 1, 3)
    indices = jax.vmap(lambda c, m: _search(c, m, beam))(jnp.stack([cores, turned]), jnp.stack([modes, modes[::-1]]))
    return jnp.concatenate([indices[0], indices[1, :, ::-1]])


def _search(cores: Array, modes: Array, beam: int) -> Array:
    """[beam, d], multi-indices whose prefixes have the largest norms, some of them repeated where there are few."""
    _, size, n, _ = cores.shape
    end = jnp.zeros((1, size, size), cores.dtype).at[0, 0, 0].set(1)
    behind = jnp.concatenate([right_factors(cores)[0][1:], end])

    def extend(carry: tuple[Array, Array], site: Any) -> tuple[Any, tuple[Array, Array]]:
        (rows, alive), (core, factor, mode) = carry, site
        ahead = einsum("br,ris->bis", rows, core)
        norms = jnp.sqrt(jnp.sum(einsum("bis,sc->bic", ahead, factor) ** 2, 2))
        scores = jnp.where(alive[:, None] & mode[None], norms, -jnp.ones_like(norms))
        best, place = jax.lax.top_k(scores.reshape(-1), beam)
        parent, digit = (place // n).astype(jnp.int32), (place % n).astype(jnp.int32)
        rows, _ = rescaled(ahead[parent, digit])
        return (rows, best >= 0), (parent, digit)

    rows = jnp.zeros((beam, size), cores.dtype).at[0, 0].set(1)
    (_, alive), (parents, digits) = jax.lax.scan(extend, (rows, jnp.arange(beam) == 0), (cores, behind, modes))

    def trace(place: Array, site: tuple[Array, Array]) -> tuple[Array, Array]:
        parent, digit = site
        return parent[place], digit[place]

    # those that do not exist are replaced by the best one
    last = jnp.where(alive, jnp.arange(beam, dtype=jnp.int32), jnp.int32(0))
    return jax.lax.scan(trace, last, (parents, digits), reverse=True)[1].T
