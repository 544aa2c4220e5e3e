"""Cosine and sine transforms over several axes; two axes of type 2 or 3 go through one two-dimensional real FFT.

Makhoul's permutation (even entries, then odd ones backwards) of both axes turns the two cosine transforms into one FFT
of real data and one pass that combines each entry with the entry of the opposite row. Line by line there would be four
more passes over the array, and a transposition.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from jaxnm import arguments
from jaxnm.linalg.transforms import Method, Norm, check_options, dct, dst, idct, idst

Kind = Literal["cosine", "sine"]


def dctn(
    x: Num[ArrayLike, "*shape"],
    type: int = 2,
    *,
    axes: Sequence[int] | None = None,
    norm: Norm = None,
    method: Method = "fft",
) -> Float[Array, "*shape"]:
    """Discrete cosine transform over several axes, as `scipy.fft.dctn`.

    Args:
      x: float32 or float64.
      type: 1, 2, 3 or 4, the same on every axis (static, as all that follow).
      axes: distinct axes; all by default.
      norm: None or "ortho", as in `dct`.
      method: "fft" or "matmul", as in `dct`.

    Returns:
      the transform, of the shape and dtype of x.

    Raises:
      As `dct`; ValueError: an axis named twice.

    Cost: types 2 and 3: for each pair of axes one real FFT over both. Linear, so differentiable to every order.
    Source: J. Makhoul, IEEE Trans. Acoust. Speech Signal Process. 28 (1980), 27-34.

    Example:
      >>> float(dctn(jnp.ones((2, 2)))[0, 0])
      16.0
    """
    return _checked("dctn", x, "cosine", type, axes, norm, method, False)


def idctn(
    x: Num[ArrayLike, "*shape"],
    type: int = 2,
    *,
    axes: Sequence[int] | None = None,
    norm: Norm = None,
    method: Method = "fft",
) -> Float[Array, "*shape"]:
    """Inverse of `dctn` with the same arguments, as `scipy.fft.idctn`.

    Args:
      x: float32 or float64.
      type: 1, 2, 3 or 4 (static, as all that follow).
      axes: distinct axes; all by default.
      norm: None or "ortho".
      method: "fft" or "matmul".

    Returns:
      the transform, of the shape and dtype of x. Linear, so differentiable to every order.

    Example:
      >>> float(idctn(dctn(jnp.ones((2, 2))))[0, 0])
      1.0
    """
    return _checked("idctn", x, "cosine", type, axes, norm, method, True)


def dstn(
    x: Num[ArrayLike, "*shape"],
    type: int = 2,
    *,
    axes: Sequence[int] | None = None,
    norm: Norm = None,
    method: Method = "fft",
) -> Float[Array, "*shape"]:
    """Discrete sine transform over several axes, as `scipy.fft.dstn`; see `dctn`.

    Args:
      x: float32 or float64.
      type: 1, 2, 3 or 4 (static, as all that follow).
      axes: distinct axes; all by default.
      norm: None or "ortho".
      method: "fft" or "matmul".

    Returns:
      the transform, of the shape and dtype of x. Linear, so differentiable to every order.

    Example:
      >>> float(dstn(jnp.ones((2, 2)))[1, 1])
      0.0
    """
    return _checked("dstn", x, "sine", type, axes, norm, method, False)


def idstn(
    x: Num[ArrayLike, "*shape"],
    type: int = 2,
    *,
    axes: Sequence[int] | None = None,
    norm: Norm = None,
    method: Method = "fft",
) -> Float[Array, "*shape"]:
    """Inverse of `dstn` with the same arguments, as `scipy.fft.idstn`.

    Args:
      x: float32 or float64.
      type: 1, 2, 3 or 4 (static, as all that follow).
      axes: distinct axes; all by default.
      norm: None or "ortho".
      method: "fft" or "matmul".

    Returns:
      the transform, of the shape and dtype of x. Linear, so differentiable to every order.

    Example:
      >>> bool(jnp.allclose(idstn(dstn(jnp.ones((2, 2)))), 1.0))
      True
    """
    return _checked("idstn", x, "sine", type, axes, norm, method, True)


def _checked(
    name: str,
    x: ArrayLike,
    kind: Kind,
    type: int,
    axes: Sequence[int] | None,
    norm: Norm,
    method: Method,
    inverse: bool,
) -> Array:
    array = check_options(name, x, type, norm, method)
    if not isinstance(axes, list | tuple | range | None):
        got = f"a {axes.__class__.__name__}"
        arguments.refuse(name, "axes", got, "a tuple of ints", "None transforms all", error=TypeError)
    chosen = tuple(range(array.ndim)) if axes is None else tuple(axes)
    for axis in chosen:
        arguments.check_axis(name, "axes", axis, array.ndim)
    chosen = tuple(int(axis) % array.ndim for axis in chosen)
    if len(set(chosen)) < len(chosen):
        arguments.refuse(name, "axes", repr(axes), "distinct axes", "name each once")
    one = {("cosine", False): dct, ("cosine", True): idct, ("sine", False): dst, ("sine", True): idst}[kind, inverse]
    while method == "fft" and type in (2, 3) and len(chosen) > 1 and array.size:
        array = _over_pair(array, kind, int(type), chosen[:2], norm == "ortho", inverse)
        chosen = chosen[2:]
    for axis in chosen:
        array = one(array, type, axis=axis, norm=norm, method=method)
    return array


@partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _over_pair(x: Array, kind: Kind, type: int, axes: tuple[int, int], ortho: bool, inverse: bool) -> Array:
    moved = jnp.moveaxis(x, axes, (-2, -1))
    moved = transform_pair(moved, (kind, kind), inverse == (type == 2), ortho)
    if type == 3 and not ortho:  # type 3 is 2 n times the inverse of type 2, on each axis
        scale = 4 * moved.shape[-2] * moved.shape[-1]
        moved = moved / scale if inverse else moved * scale
    return jnp.moveaxis(moved, (-2, -1), axes)


def transform_pair(x: Array, kinds: tuple[str, str], inverse: bool, ortho: bool = True) -> Array:
    """The transform of type 2, cosine or sine, over the last two axes together, or its inverse."""
    flipped = tuple(axis for axis, kind in zip((-2, -1), kinds, strict=True) if kind == "sine")

    # a sine transform is the cosine transform of the data with alternating signs, backwards
    def alternate(values: Array) -> Array:
        for axis in flipped:
            sign = np.where(np.arange(values.shape[axis]) % 2 == 0, 1.0, -1.0)
            values = values * _table(sign[:, None] if axis == -2 else sign[None], values)
        return values

    if inverse:
        return alternate(_backward(jnp.flip(x, flipped), ortho))
    return jnp.flip(_forward(alternate(x), ortho), flipped)


# Along the last axis slices, not index arrays: a gather there would come out transposed.


def _placed(blocks: Sequence[Sequence[Array]]) -> Array:
    """Blocks side by side on the last two axes, written into place: on a CPU twice as fast as to concatenate them."""
    rows = sum(row[0].shape[-2] for row in blocks)
    columns = sum(block.shape[-1] for block in blocks[0])
    batch, dtype = blocks[0][0].shape[:-2], blocks[0][0].dtype
    whole, top = jnp.zeros((*batch, rows, columns), dtype), 0
    for row in blocks:
        left = 0
        for block in row:
            whole = jax.lax.dynamic_update_slice(whole, block, (*(0 for _ in batch), top, left))
            left += block.shape[-1]
        top += row[0].shape[-2]
    return whole


def _evens_then_odds(x: Array) -> Array:
    """Even entries, then the odd ones backwards, on the last two axes."""
    evens, odds = x[..., ::2, :], x[..., 1::2, :]
    upper = evens[..., ::2], jnp.flip(evens[..., 1::2], -1)
    return _placed([upper, (jnp.flip(odds[..., ::2], -2), jnp.flip(odds[..., 1::2], (-2, -1)))])


def _interleaved(x: Array) -> Array:
    """The inverse of `_evens_then_odds`."""
    rows, columns = x.shape[-2:]
    x = x[..., np.argsort(np.concatenate([np.arange(0, rows, 2), np.arange(1, rows, 2)[::-1]])), :]
    half = (columns + 1) // 2
    evens, odds = x[..., :half], jnp.flip(x[..., half:], -1)
    odds = jnp.pad(odds, [(0, 0)] * (x.ndim - 1) + [(0, columns % 2)])
    return jnp.stack([evens, odds], -1).reshape(*x.shape[:-1], 2 * half)[..., :columns]


def _weight(n: int) -> np.ndarray:
    """Length of the rows of the unnormalized transform of type 2, inverted."""
    weight = np.full(n, math.sqrt(1 / (2 * n)))
    weight[0] = math.sqrt(1 / (4 * n))
    return weight


def _table(values: np.ndarray, like: Array) -> Array:
    """Values over the last two axes, to broadcast against `like`; of its dtype unless they are flags."""
    values = values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
    return jnp.asarray(values, bool if values.dtype == bool else like.dtype)


def _forward(x: Array, ortho: bool) -> Array:
    rows, columns = x.shape[-2:]
    spectrum = jnp.fft.rfft2(_evens_then_odds(x))
    k, m = np.arange(rows)[:, None], np.arange(columns // 2 + 1)[None]
    first, second = np.pi * k / (2 * rows), np.pi * m / (2 * columns)
    a, b = spectrum, spectrum[..., -np.arange(rows) % rows, :]
    # with z = e^-i(first) (e^-i(second) a + conj(e^-i(second) b)) the first half is 2 Re z, the second, by z', -2 Im z'
    c, s = _table(np.cos(second), x), _table(np.sin(second), x)
    a_real, a_imag = a.real * c + a.imag * s, a.imag * c - a.real * s
    b_real, b_imag = b.real * c + b.imag * s, b.imag * c - b.real * s
    c, s = _table(np.cos(first), x), _table(np.sin(first), x)
    low = c * (a_real + b_real) + s * (a_imag - b_imag)
    high = s * (a_real - b_real) - c * (a_imag + b_imag)
    values = 2 * _placed([(low, jnp.flip(high[..., 1 : (columns + 1) // 2], -1))])
    if not ortho:
        return values
    return values * _table(_weight(rows)[:, None], x) * _table(_weight(columns)[None], x)


def _backward(x: Array, ortho: bool) -> Array:
    rows, columns = x.shape[-2:]
    if ortho:
        x = x * _table(1 / _weight(rows)[:, None], x) * _table(1 / _weight(columns)[None], x)
    k, m = np.arange(rows), np.arange(columns // 2 + 1)
    row_exists = _table(np.sign(k[:, None]) * 1.0, x)
    a = x[..., : m.size]
    c = _placed([(jnp.zeros_like(x[..., :1]), jnp.flip(x[..., columns - m.size + 1 :], -1))])
    b, d = (part[..., -k % rows, :] * row_exists for part in (a, c))
    real, imag = a - d, -(b + c)
    for angle in (np.pi * k[:, None] / (2 * rows), np.pi * m[None] / (2 * columns)):
        cosine, sine = _table(np.cos(angle), x), _table(np.sin(angle), x)
        real, imag = real * cosine - imag * sine, real * sine + imag * cosine
    return _interleaved(jnp.fft.irfft2(jax.lax.complex(real / 4, imag / 4), s=(rows, columns)))
