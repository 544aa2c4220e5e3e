"""Functions on 2^q points as trains of q modes of size 2, of the smallest ranks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int32

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.tensor_train.quantics.digits import check_real, digits_of, grid
from jaxnm.tensor_train.quantics.operators import chebyshev_nodes, checked_dtype, lagrange
from jaxnm.tensor_train.trains import TT


def exp(
    rate: Inexact[ArrayLike, ""],
    bits: int,
    *,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> TT:
    """The exponential function of rate x, a train of rank 1.

    Args:
      rate: real or complex.
      bits: q (static).
      start: position of the first point.
      spacing: between neighbours; 2^-q by default.

    Returns:
      `TT` of shape (2,) * q. What is too large for the dtype is in its log_scale.

    Raises:
      ValueError: bits < 1, arguments that are not scalars.

    Cost: q exponentials. Differentiable.

    Example:
      >>> exp(1.0, 30).max_rank
      1
    """
    name = "exp"
    first, offsets = grid(name, bits, start, spacing, rate=rate)
    return _exp(*arguments.to_arrays(name, rate=rate, start=first, offsets=offsets))


def sin(
    frequency: Float[ArrayLike, ""],
    bits: int,
    *,
    phase: Float[ArrayLike, ""] = 0.0,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> TT:
    """The sine of frequency x + phase, a train of rank 2.

    Args:
      frequency: angular, in radians a unit of x.
      bits: q (static).
      phase: radians.
      start: position of the first point.
      spacing: between neighbours; 2^-q by default.

    Returns:
      `TT` of shape (2,) * q; the entries are as accurate as the sine of a rounded argument.

    Raises:
      ValueError: bits < 1, arguments that are not scalars. TypeError: complex ones.

    Cost: 2 q sines. Differentiable.

    Example:
      >>> sin(100.0, 30).ranks.tolist()[:4]
      [1, 2, 2, 2]
    """
    return _wave("sin", frequency, bits, phase, start, spacing)


def cos(
    frequency: Float[ArrayLike, ""],
    bits: int,
    *,
    phase: Float[ArrayLike, ""] = 0.0,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> TT:
    """The cosine of frequency x + phase, a train of rank 2; see `sin`.

    Args:
      frequency: angular, in radians a unit of x.
      bits: q (static).
      phase: radians.
      start: position of the first point.
      spacing: between neighbours; 2^-q by default.

    Returns:
      `TT` of shape (2,) * q.

    Raises:
      ValueError: bits < 1, arguments that are not scalars. TypeError: complex ones.

    Cost: 2 q sines. Differentiable.

    Example:
      >>> cos(0.0, 3).shape
      (2, 2, 2)
    """
    return _wave("cos", frequency, bits, phase, start, spacing)


def polynomial(
    coefficients: Inexact[ArrayLike, "p+1"],
    bits: int,
    *,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> TT:
    """The train of sum_j coefficients[j] x^j, of ranks p + 1 at most.

    Args:
      coefficients: that of the lowest power first; degree p.
      bits: q (static).
      start: position of the first point.
      spacing: between neighbours; 2^-q by default.

    Returns:
      `TT` of shape (2,) * q with the ranks min(p + 1, 2^k, 2^(q - k)); the error is some machine epsilons of the
      largest entry, as the polynomial is carried by its values at Chebyshev nodes and not by its coefficients.

    Raises:
      ValueError: bits < 1, no coefficient, arguments of other shapes.

    Cost: as `interpolant`. Differentiable.

    Example:
      >>> polynomial(jnp.array([0.0, 0.0, 1.0]), 30).ranks.tolist()[:4]
      [1, 2, 3, 3]
    """
    name = "polynomial"
    check_real(name, "start", start)
    coefficients, start = arguments.to_arrays(name, coefficients=coefficients, start=start)
    condition = lambda shape: len(shape) == 1 and shape[0] >= 1
    arguments.check_shape(name, "coefficients", coefficients, "[p + 1], one or more", condition)
    value = lambda x: jnp.polyval(coefficients[::-1], x.astype(coefficients.dtype))
    return _interpolant(name, value, bits, coefficients.shape[0], start.real, spacing)


def interpolant(
    f: Callable[[Float[Array, ""]], Inexact[Array, ""]],
    bits: int,
    *,
    degree: int,
    start: Float[ArrayLike, ""] = 0.0,
    spacing: Float[ArrayLike, ""] | None = None,
) -> TT:
    """The train of a smooth function, by polynomials on the dyadic parts of the interval.

    Args:
      f: a function of a scalar, of the dtype of start and spacing; it is called under `jax.vmap`, at 2 (p + 1)^2 points
        at most.
      bits: q (static).
      degree: p of the polynomials (static).
      start: position of the first point.
      spacing: between neighbours; 2^-q by default.

    Returns:
      `TT` of shape (2,) * q with the ranks min(p + 1, 2^k, 2^(q - k)). It is exact to rounding where f is a polynomial
      of degree p on each of the parts that the first bits make, 2 to 2 (p + 1) in number; otherwise the error is that
      of interpolation at Chebyshev nodes on them. See `round` for smaller ranks.

    Raises:
      ValueError: bits < 1, degree < 0.

    Cost: the values of f, and q (p + 1)^2 numbers that do not depend on f. Differentiable in what f depends on.
    Source: M. Lindsey, Multiscale interpolative construction of quantized tensor trains, arXiv:2311.12554, section 3.

    Example:
      >>> interpolant(jnp.exp, 30, degree=9).max_rank
      10
    """
    arguments.check_count("interpolant", "degree", degree, minimum=0)
    return _interpolant("interpolant", f, bits, degree + 1, start, spacing)


def step(first: int | Int32[Array, ""], bits: int, *, dtype: Any = None) -> TT:
    """The train of a step: 1 at the indices i >= first and 0 before, of rank 2.

    Args:
      first: a Python integer of any size, or an int32 that may be traced. All is 1 for first <= 0, and 0 for
        first >= 2^q. The step of x at a threshold t has first = ceil((t - start) / spacing).
      bits: q (static).
      dtype: floating; the default one of JAX unless it is given.

    Returns:
      `TT` of shape (2,) * q.

    Raises:
      ValueError: bits < 1, an array that is no scalar. TypeError: no integer.

    Cost: q small operations. Not differentiable.

    Example:
      >>> from jaxnm.tensor_train import to_dense
      >>> to_dense(step(3, 3)).ravel().tolist()
      [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    dtype = checked_dtype("step", dtype)
    return _step(*digits_of("step", "first", first, bits), dtype)


@partial(jax.jit, static_argnums=3)
def _step(digits: Array, below: Array, above: Array, dtype: Any) -> TT:
    same = (jnp.arange(2, dtype=jnp.int32)[None] == digits[:, None]).astype(dtype)
    larger = (jnp.arange(2, dtype=jnp.int32)[None] > digits[:, None]).astype(dtype)
    matrices = jnp.stack([jnp.stack([same, larger], 2), jnp.stack([jnp.zeros_like(same), jnp.ones_like(same)], 2)], 1)
    begin = jnp.stack([~below & ~above, below]).astype(dtype)
    return _automaton(begin, matrices, jnp.ones(2, dtype))


def delta(index: int | Int32[Array, ""], bits: int, *, dtype: Any = None) -> TT:
    """The train that is 1 at one index and 0 elsewhere, of rank 1.

    Args:
      index: a Python integer of any size, or an int32 that may be traced; all is 0 where it is out of range.
      bits: q (static).
      dtype: floating; the default one of JAX unless it is given.

    Returns:
      `TT` of shape (2,) * q.

    Raises:
      ValueError: bits < 1, an array that is no scalar. TypeError: no integer.

    Cost: q small operations. Not differentiable.

    Example:
      >>> from jaxnm.tensor_train import to_dense
      >>> to_dense(delta(2, 2)).ravel().tolist()
      [0.0, 0.0, 1.0, 0.0]
    """
    dtype = checked_dtype("delta", dtype)
    return _delta(*digits_of("delta", "index", index, bits), dtype)


@partial(jax.jit, static_argnums=3)
def _delta(digits: Array, below: Array, above: Array, dtype: Any) -> TT:
    same = (jnp.arange(2, dtype=jnp.int32)[None] == digits[:, None]).astype(dtype)
    # an index below the range stands for the digits -1, which no mode has
    inside = (~below & ~above & (digits[0] >= 0)).astype(dtype)
    return _automaton(inside[None], same[:, None, :, None], jnp.ones(1, dtype))


# ------------------------------------------------------------------------------------------------ parts of functions


def _wave(function: str, frequency: Any, bits: int, phase: Any, start: Any, spacing: Any) -> TT:
    first, offsets = grid(function, bits, start, spacing, frequency=frequency, phase=phase)
    frequency, phase, first, offsets = arguments.to_arrays(
        function, frequency=frequency, phase=phase, start=first, offsets=offsets
    )
    arguments.check_real(function, "frequency or phase", frequency)
    return _turns(frequency, phase, first, offsets, function == "sin")


@jax.jit
def _exp(rate: Array, first: Array, offsets: Array) -> TT:
    bits = offsets.size
    exponents = jnp.stack([jnp.zeros_like(offsets), rate * offsets], 1)
    largest = jnp.max(exponents.real, 1)
    cores = jnp.exp(exponents - largest[:, None].astype(exponents.dtype))
    if jnp.iscomplexobj(rate):
        angle = (rate * first).imag
        cores = cores.at[0].multiply(jax.lax.complex(jnp.cos(angle), jnp.sin(angle)))
    log_scale = (rate * first).real + jnp.sum(largest)
    return TT(cores[:, None, :, None], jnp.ones(bits + 1, jnp.int32), log_scale, (2,) * bits)


@jax.jit(static_argnums=4)
def _turns(frequency: Array, phase: Array, first: Array, offsets: Array, sine_first: bool) -> TT:
    angles, angle = frequency * offsets, frequency * first + phase
    turned = jnp.stack([jnp.zeros_like(angles), angles], 1)
    cosine, sine = jnp.cos(turned), jnp.sin(turned)
    # (sin a, cos a) times a rotation by b is (sin(a + b), cos(a + b))
    matrices = jnp.stack([jnp.stack([cosine, -sine], 2), jnp.stack([sine, cosine], 2)], 1)
    begin = jnp.stack([jnp.sin(angle), jnp.cos(angle)] if sine_first else [jnp.cos(angle), -jnp.sin(angle)])
    return _automaton(begin, matrices, jnp.zeros(2, begin.dtype).at[0].set(1))


@jax.jit
def _automaton(begin: Array, matrices: Array, end: Array) -> TT:
    """The train whose entries are begin matrices[0, :, i_1] ... matrices[q - 1, :, i_q] end."""
    bits, size = matrices.shape[:2]
    empty = jnp.zeros_like(matrices[0])
    cores = matrices.at[0].set(empty.at[0].set(einsum("r,ris->is", begin, matrices[0])))
    cores = cores.at[-1].set(empty.at[:, :, 0].set(einsum("ris,s->ri", cores[-1], end)))
    ranks = jnp.full(bits + 1, size, jnp.int32).at[0].set(1).at[bits].set(1)
    return TT(cores, ranks, jnp.zeros((), jnp.finfo(cores.dtype).dtype), (2,) * bits)


def _interpolant(function: str, f: Callable, bits: int, count: int, start: Any, spacing: Any) -> TT:
    arguments.check_callable(function, "f", f, "pass a function of a point")
    first, offsets = grid(function, bits, start, spacing)
    nodes = chebyshev_nodes(count)
    # a bond stands for the intervals before it, for values at the nodes, or for the points behind it: what is fewest
    before = [2**k <= min(count, 2 ** (bits - k)) for k in range(bits + 1)]
    behind = [2 ** (bits - k) <= count for k in range(bits + 1)]
    ranks = [min(count, 2 ** min(k, bits - k)) for k in range(bits + 1)]
    size = max(ranks)
    cores, site, places = np.zeros((bits, size, 2, size)), 0, np.zeros(())
    for k in range(bits):
        here, there = ranks[k], ranks[k + 1]
        inside = cores[k, :here, :, :there]
        target = np.arange(there) / there if behind[k + 1] else nodes
        halves = (np.arange(2)[:, None] + target[None]) / 2
        if before[k + 1]:
            inside[...] = np.eye(there).reshape(here, 2, there)
        elif before[k]:
            site, places = k, (np.arange(here)[:, None, None] + halves[None]) / here
        elif behind[k]:
            inside[...] = np.eye(here).reshape(here, 2, there)
        else:
            inside[...] = lagrange(nodes, halves.reshape(-1)).T.reshape(here, 2, there)
    at = _positions(first, offsets, arguments.constant(places, first.dtype))
    values = jax.vmap(f)(at)
    if not jnp.issubdtype(values.dtype, jnp.inexact) or values.shape != (at.size,):
        got = f"{values.dtype}{list(values.shape[1:])}"
        arguments.refuse(function, "what f returns", got, "a floating scalar", "see its arguments", error=TypeError)
    return _filled(arguments.constant(cores, values.dtype), values, tuple(ranks), site)


@jax.jit
def _positions(first: Array, offsets: Array, places: Array) -> Array:
    """In a row, those of places from 0 to 1 in the interval."""
    return (first + 2 * offsets[0] * places).reshape(-1)


@partial(jax.jit, static_argnums=(2, 3))
def _filled(cores: Array, values: Array, ranks: tuple[int, ...], site: int) -> TT:
    """The train of these cores with the values in the core of one site."""
    before, behind = ranks[site : site + 2]
    cores = cores.at[site, :before, :, :behind].set(values.reshape(before, 2, behind))
    log_scale = jnp.zeros((), jnp.finfo(cores.dtype).dtype)
    return TT(cores, jnp.array(ranks, jnp.int32), log_scale, (2,) * cores.shape[0])
