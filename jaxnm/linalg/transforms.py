"""Discrete cosine, sine and Hartley transforms, which diagonalize difference operators on an interval or a circle.

Conventions are those of `scipy.fft`. Each transform goes through one real FFT of the line or, for type 4, through one
complex FFT of half its length; nothing is extended to twice the length where symmetry can be used instead.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from jaxnm import arguments
from jaxnm.linalg.blocks import map_blocks
from jaxnm.linalg.factorizations import einsum

Norm = Literal["ortho"] | None
Method = Literal["fft", "matmul"]

# Type 1 is split in halves down to lines of this many intervals, then multiplied by a dense matrix.
_SMALLEST_SPLIT = 32
# A CPU works through many lines in blocks of this size: half the time, as what lies between the steps stays in cache.
_BLOCK_BYTES = 500_000


def dct(
    x: Num[ArrayLike, "*shape"], type: int = 2, *, axis: int = -1, norm: Norm = None, method: Method = "fft"
) -> Float[Array, "*shape"]:
    """Discrete cosine transform of type 1, 2, 3 or 4, as `scipy.fft.dct`.

    Type 2 is `2 sum_j x_j cos(pi k (2 j + 1) / (2 n))`, the eigenvectors of the second difference with zero slope half
    a step beyond the ends; type 3 is its inverse times 2 n. Type 1 is
    `x_0 + (-1)^k x_{n-1} + 2 sum_{0<j<n-1} x_j cos(pi j k / (n - 1))` (zero slope at the ends), type 4 is
    `2 sum_j x_j cos(pi (2 j + 1) (2 k + 1) / (4 n))`.

    Args:
      x: float32 or float64, of any shape with n >= 1 numbers along `axis` (n >= 2 for type 1).
      type: 1, 2, 3 or 4 (static, as all that follow).
      axis: of the lines that are transformed.
      norm: None for the sums above, "ortho" for an orthogonal matrix.
      method: "fft", or "matmul" for the product with the dense matrix, which suits TPUs and small n.

    Returns:
      the transform, of the shape and dtype of x.

    Raises:
      TypeError: an integer or complex dtype, or one of half precision. ValueError: a type, norm, method or axis other
      than these, or lines that are too short.

    Cost: one FFT of n real numbers a line (type 4: of n / 2 complex ones for even n, 2 n for odd n), or n^2
    multiplications a line and n^2 numbers in the program. Linear, so differentiable to every order. A line with inf or
    NaN gives NaN, and harms no other line with method "fft".
    Source: J. Makhoul, IEEE Trans. Acoust. Speech Signal Process. 28 (1980), 27-34 (types 2 and 3).

    Example:
      >>> dct(jnp.array([1.0, 1.0]))
      Array([4., 0.], dtype=float32)
    """
    return _checked("dct", x, "cosine", type, axis, norm, method)


def idct(
    x: Num[ArrayLike, "*shape"], type: int = 2, *, axis: int = -1, norm: Norm = None, method: Method = "fft"
) -> Float[Array, "*shape"]:
    """Inverse of `dct` with the same type and norm, as `scipy.fft.idct`.

    Args:
      x: the transform, as in `dct`.
      type: of the transform that is inverted.
      axis: as in `dct`.
      norm: as in `dct`.
      method: as in `dct`.

    Returns:
      x with `dct(x)` the argument, of its shape and dtype.

    Raises:
      TypeError, ValueError: as `dct`.

    Cost: that of `dct`. Linear, so differentiable to every order.

    Example:
      >>> idct(dct(jnp.array([1.0, 2.0]))).round(5)
      Array([1., 2.], dtype=float32)
    """
    return _checked("idct", x, "cosine", type, axis, norm, method, inverse=True)


def dst(
    x: Num[ArrayLike, "*shape"], type: int = 2, *, axis: int = -1, norm: Norm = None, method: Method = "fft"
) -> Float[Array, "*shape"]:
    """Discrete sine transform of type 1, 2, 3 or 4, as `scipy.fft.dst`.

    Type 1 is `2 sum_j x_j sin(pi (j + 1) (k + 1) / (n + 1))`, the eigenvectors of the second difference with zeros one
    step beyond the ends; type 2 is `2 sum_j x_j sin(pi (k + 1) (2 j + 1) / (2 n))` (zeros half a step beyond), type 3
    is its inverse times 2 n, type 4 is `2 sum_j x_j sin(pi (2 j + 1) (2 k + 1) / (4 n))`.

    Args:
      x: float32 or float64, of any shape with n >= 1 numbers along `axis`.
      type: 1, 2, 3 or 4 (static, as all that follow).
      axis: of the lines that are transformed.
      norm: None for the sums above, "ortho" for an orthogonal matrix.
      method: "fft", or "matmul" for the product with the dense matrix, which suits TPUs and small n.

    Returns:
      the transform, of the shape and dtype of x.

    Raises:
      TypeError, ValueError: as `dct`.

    Cost: that of `dct`. Linear, so differentiable to every order. Type 1 is fastest where n + 1 is a power of two.

    Example:
      >>> dst(jnp.array([1.0]), 1)
      Array([2.], dtype=float32)
    """
    return _checked("dst", x, "sine", type, axis, norm, method)


def idst(
    x: Num[ArrayLike, "*shape"], type: int = 2, *, axis: int = -1, norm: Norm = None, method: Method = "fft"
) -> Float[Array, "*shape"]:
    """Inverse of `dst` with the same type and norm, as `scipy.fft.idst`.

    Args:
      x: the transform, as in `dst`.
      type: of the transform that is inverted.
      axis: as in `dst`.
      norm: as in `dst`.
      method: as in `dst`.

    Returns:
      x with `dst(x)` the argument, of its shape and dtype.

    Raises:
      TypeError, ValueError: as `dct`.

    Cost: that of `dct`. Linear, so differentiable to every order.

    Example:
      >>> idst(dst(jnp.array([1.0, 2.0]))).round(5)
      Array([1., 2.], dtype=float32)
    """
    return _checked("idst", x, "sine", type, axis, norm, method, inverse=True)


def hartley(
    x: Num[ArrayLike, "*shape"], *, axis: int = -1, norm: Norm = None, method: Method = "fft"
) -> Float[Array, "*shape"]:
    """Discrete Hartley transform `sum_j x_j (cos + sin)(2 pi j k / n)`: the Fourier transform in real arithmetic.

    It diagonalizes the operators that are symmetric and periodic, and is its own inverse up to the factor n.

    Args:
      x: float32 or float64, of any shape with n >= 1 numbers along `axis`.
      axis: of the lines that are transformed (static, as all that follow).
      norm: None for the sum above, "ortho" for an orthogonal matrix, which is its own inverse.
      method: as in `dct`.

    Returns:
      the transform, of the shape and dtype of x.

    Raises:
      TypeError, ValueError: as `dct`.

    Cost: one FFT of n real numbers a line. Linear, so differentiable to every order.
    Source: R. N. Bracewell, J. Opt. Soc. Am. 73 (1983), 1832-1835.

    Example:
      >>> hartley(jnp.array([1.0, 2.0]))
      Array([ 3., -1.], dtype=float32)
    """
    return _checked("hartley", x, "hartley", 1, axis, norm, method)


def _checked(
    name: str, x: ArrayLike, kind: str, type: int, axis: int, norm: Norm, method: Method, inverse: bool = False
) -> Array:
    x = check_options(name, x, type, norm, method)
    arguments.check_axis(name, "axis", axis, x.ndim)
    shortest = 2 if (kind, type) == ("cosine", 1) else 1
    arguments.check_shape(
        name,
        "x",
        x,
        f"at least {shortest} along axis {axis}",
        lambda shape: shape[axis] >= shortest,
        "pass longer lines",
    )
    return _transform(x, kind, int(type), int(axis) % x.ndim, norm, method, inverse)


def check_options(name: str, x: ArrayLike, type: int, norm: Norm, method: Method) -> Array:
    """The array, of a dtype that can be transformed, or an error about it or an option."""
    (x,) = arguments.to_arrays(name, x=x)
    arguments.check_real(name, "x", x)
    if x.dtype not in (jnp.float32, jnp.float64):
        got, remedy = f"of dtype {x.dtype}", "pass x.astype(jnp.float32)"
        arguments.refuse(name, "x", got, "float32 or float64", remedy, error=TypeError)
    for argument, value, allowed in (
        ("type", type, (1, 2, 3, 4)),
        ("norm", norm, (None, "ortho")),
        ("method", method, ("fft", "matmul")),
    ):
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer | None) or value not in allowed:
            got = repr(value) if isinstance(value, str | int | float | None) else f"a {value.__class__.__name__}"
            arguments.refuse(name, argument, got, ", ".join(map(repr, allowed)), "see its docstring")
    return x


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _transform(x: Array, kind: str, type: int, axis: int, norm: Norm, method: Method, inverse: bool) -> Array:
    n = x.shape[axis]
    if inverse:
        type = {1: 1, 2: 3, 3: 2, 4: 4}[type]
    before, after = _weights(kind, type, n, norm, inverse)
    lines = jnp.moveaxis(x, axis, -1)
    if method == "matmul":
        matrix = jnp.asarray(after[:, None] * _matrix(kind, type, n) * before, x.dtype)
        lines = einsum("...j,kj->...k", lines, matrix)
    else:
        fast = lambda block: _scaled(_FAST[kind, type](_scaled(block, before)), after)
        flat = lines.reshape(math.prod(lines.shape[:-1]), n)
        members = max(1, _BLOCK_BYTES // (n * x.dtype.itemsize))
        lines = map_blocks(fast, (flat,), cpu=members).reshape(lines.shape)
    return jnp.moveaxis(lines, -1, axis)


def _weights(kind: str, type: int, n: int, norm: Norm, inverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Factors [n] of the inputs and of the outputs, for an orthogonal or an inverse transform."""
    before, after = np.ones(n), np.ones(n)
    if kind == "hartley":
        return before, after / math.sqrt(n) if norm == "ortho" else after
    # the square of the unnormalized transform and its inverse is this times the identity
    square = 2 * {("cosine", 1): n - 1, ("sine", 1): n + 1}.get((kind, type), n)
    if norm is None:
        return before, after / square if inverse else after
    after /= math.sqrt(square)
    # lines of constant modulus (constant, or alternating) are sqrt(2) times as long as the others
    if kind == "cosine" and type == 1:
        before[[0, -1]] *= math.sqrt(2)
        after[[0, -1]] /= math.sqrt(2)
    elif type in (2, 3):
        end = 0 if kind == "cosine" else -1
        if type == 2:
            after[end] /= math.sqrt(2)
        else:
            before[end] *= math.sqrt(2)
    return before, after


def _scaled(lines: Array, factors: np.ndarray) -> Array:
    if np.all(factors == 1):
        return lines
    return lines * jnp.asarray(factors, lines.dtype).reshape((1,) * (lines.ndim - 1) + (-1,))


def _matrix(kind: str, type: int, n: int) -> np.ndarray:
    """The unnormalized transform [k, j], in float64."""
    j, k = np.arange(n), np.arange(n)[:, None]
    if kind == "hartley":
        angle = _angle(2 * j * k, n)
        return np.cos(angle) + np.sin(angle)
    first = 0 if kind == "cosine" else 1
    if type == 1:
        angle = _angle((j + first) * (k + first), n - 1 + 2 * first)
    elif type == 4:
        angle = _angle((2 * j + 1) * (2 * k + 1), 4 * n)
    else:
        whole, half = (k, j) if type == 2 else (j, k)
        angle = _angle((whole + first) * (2 * half + 1), 2 * n)
    matrix = 2 * (np.cos(angle) if kind == "cosine" else np.sin(angle))
    counted_once = {("cosine", 1): [0, -1], ("cosine", 3): [0], ("sine", 3): [-1]}.get((kind, type), [])
    matrix[:, counted_once] /= 2
    return matrix


def _angle(numerator: np.ndarray, denominator: int) -> np.ndarray:
    """The angle pi numerator / denominator, reduced in integers: large angles have no rounding errors."""
    return np.pi * (numerator % (2 * denominator)) / denominator


# ------------------------------------------------------------------------------------ fast algorithms, on the last axis


def _turned(lines: Array, numerator: np.ndarray, denominator: int) -> Array:
    """Complex lines times exp(i pi numerator / denominator)."""
    factors = jnp.asarray(np.exp(1j * _angle(numerator, denominator)), lines.dtype)
    return lines * factors.reshape((1,) * (lines.ndim - 1) + (-1,))


def _flip(lines: Array) -> Array:
    return jnp.flip(lines, -1)


def _interleave(even: Array, odd: Array) -> Array:
    """[e_0, o_0, e_1, o_1, ...]; `even` is as long as `odd` or longer by one."""
    pairs = jnp.stack([even[..., : odd.shape[-1]], odd], -1)
    pairs = pairs.reshape(*odd.shape[:-1], 2 * odd.shape[-1])
    return jnp.concatenate([pairs, even[..., odd.shape[-1] :]], -1)


def _alternating(lines: Array) -> Array:
    return _scaled(lines, 1.0 - 2 * (np.arange(lines.shape[-1]) % 2))


def _cosine_2(x: Array) -> Array:
    """Even entries, then the odd ones backwards: their FFT, turned, holds entry k and entry n - k."""
    n = x.shape[-1]
    half = jnp.fft.rfft(jnp.concatenate([x[..., ::2], _flip(x[..., 1::2])], -1))
    half = _turned(2 * half, -np.arange(half.shape[-1]), 2 * n)
    return jnp.concatenate([half.real, -_flip(half.imag[..., 1 : (n + 1) // 2])], -1)


def _cosine_3(x: Array) -> Array:
    n = x.shape[-1]
    low = x[..., : n // 2 + 1]
    high = jnp.concatenate([jnp.zeros_like(x[..., :1]), _flip(x[..., n - n // 2 :])], -1)
    half = _turned(jax.lax.complex(low, -high), np.arange(n // 2 + 1), 2 * n)
    permuted = jnp.fft.irfft(half, n, norm="forward")
    middle = (n + 1) // 2
    return _interleave(permuted[..., :middle], _flip(permuted[..., middle:]))


def _cosine_4(x: Array) -> Array:
    n = x.shape[-1]
    if n % 2:
        turned = _turned(jax.lax.complex(x, jnp.zeros_like(x)), -np.arange(n), 2 * n)
        return 2 * _turned(jnp.fft.fft(turned, 2 * n)[..., :n], -(2 * np.arange(n) + 1), 4 * n).real
    position = 8 * np.arange(n // 2) + 1  # half of the angle between entries 2 j and 2 k that does not factor
    pairs = _turned(jax.lax.complex(x[..., ::2], _flip(x)[..., ::2]), -position, 8 * n)
    turned = _turned(2 * jnp.fft.fft(pairs), -position, 8 * n)
    return _interleave(turned.real, -_flip(turned.imag))


def _cosine_1(x: Array) -> Array:
    """Even outputs are type 1 of the symmetric half, odd ones type 3 of the antisymmetric half."""
    intervals = x.shape[-1] - 1
    if intervals <= _SMALLEST_SPLIT:
        return _dense("cosine", x)
    if intervals % 2:
        return jnp.fft.rfft(jnp.concatenate([x, _flip(x[..., 1:-1])], -1)).real
    first, last = x[..., : intervals // 2 + 1], _flip(x[..., intervals // 2 :])
    return _interleave(_cosine_1(first + last), _cosine_3((first - last)[..., :-1]))


def _sine_1(x: Array) -> Array:
    """Even outputs are type 1 of the antisymmetric half, odd ones type 3 of the symmetric half."""
    intervals = x.shape[-1] + 1
    if intervals <= _SMALLEST_SPLIT:
        return _dense("sine", x)
    if intervals % 2:
        zero = jnp.zeros_like(x[..., :1])
        return -jnp.fft.rfft(jnp.concatenate([zero, x, zero, -_flip(x)], -1)).imag[..., 1:-1]
    first, last = x[..., : intervals // 2], _flip(x[..., intervals // 2 - 1 :])
    return _interleave(_sine_3(first + last), _sine_1((first - last)[..., :-1]))


def _sine_3(x: Array) -> Array:
    return _alternating(_cosine_3(_flip(x)))


def _hartley(x: Array) -> Array:
    half = jnp.fft.rfft(x)
    return jnp.concatenate([half.real - half.imag, _flip((half.real + half.imag)[..., 1 : (x.shape[-1] + 1) // 2])], -1)


def _dense(kind: str, x: Array) -> Array:
    return einsum("...j,kj->...k", x, jnp.asarray(_matrix(kind, 1, x.shape[-1]), x.dtype))


_FAST: dict[tuple[str, int], Callable[[Array], Array]] = {
    ("cosine", 1): _cosine_1,
    ("cosine", 2): _cosine_2,
    ("cosine", 3): _cosine_3,
    ("cosine", 4): _cosine_4,
    ("sine", 1): _sine_1,
    ("sine", 2): lambda x: _flip(_cosine_2(_alternating(x))),
    ("sine", 3): _sine_3,
    ("sine", 4): lambda x: _alternating(_cosine_4(_flip(x))),
    ("hartley", 1): _hartley,
}
