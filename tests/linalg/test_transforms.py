"""Transforms against scipy, against their definitions, and as orthogonal matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from jax.test_util import check_grads

from jaxnm import linalg

LENGTHS = (1, 2, 3, 8, 9, 16, 30, 31, 64, 127)
_random = np.random.default_rng(0)


def _allowed(n, dtype, expected):
    """Rounding of log2(n) stages, relative to the norm of a line."""
    return 4 * np.finfo(dtype).eps * (1 + np.log2(n)) * np.linalg.norm(expected, axis=-1).max()


def _lengths(name, type):
    return LENGTHS[1:] if (name[-2:], type) == ("ct", 1) else LENGTHS


@pytest.mark.parametrize("type", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["dct", "dst", "idct", "idst"])
def test_agrees_with_scipy(name, type):
    """Both norms and methods, at lengths with and without a factor of two."""
    ours, theirs = getattr(linalg, name), getattr(scipy.fft, name)
    for n in _lengths(name, type):
        x = _random.normal(size=(2, n))
        for norm in (None, "ortho"):
            expected = theirs(x, type, norm=norm)
            for method in ("fft", "matmul"):
                with jax.disable_jit():
                    found = ours(jnp.asarray(x), type, norm=norm, method=method)
                np.testing.assert_allclose(found, expected, rtol=0, atol=_allowed(n, float, expected))


@pytest.mark.parametrize("type", [1, 2, 3, 4])
def test_float32_stays_float32(type):
    for name in ("dct", "dst"):
        for n in (2, 9, 34, 64):
            x = _random.normal(size=(3, n)).astype(np.float32)
            for norm, method in ((None, "fft"), ("ortho", "fft"), ("ortho", "matmul")):
                expected = getattr(scipy.fft, name)(x.astype(float), type, norm=norm)
                with jax.disable_jit():
                    found = getattr(linalg, name)(jnp.asarray(x), type, norm=norm, method=method)
                    back = getattr(linalg, "i" + name)(found, type, norm=norm, method=method)
                assert found.dtype == back.dtype == jnp.float32
                np.testing.assert_allclose(found, expected, rtol=0, atol=_allowed(n, np.float32, expected))
                np.testing.assert_allclose(back, x, rtol=0, atol=2 * _allowed(n, np.float32, x))


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_any_axis(axis):
    x = _random.normal(size=(4, 5, 6))
    for method in ("fft", "matmul"):
        found = linalg.dst(jnp.asarray(x), 3, axis=axis, method=method)
        np.testing.assert_allclose(found, scipy.fft.dst(x, 3, axis=axis), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [33, 34, 65, 67, 95, 129])
def test_the_splitting_of_type_1(n):
    """n - 1 and n + 1 with several factors of two, with one, and with none, above the size that is multiplied out."""
    x = _random.normal(size=(3, n))
    for name in ("dct", "dst"):
        expected = getattr(scipy.fft, name)(x, 1)
        found = getattr(linalg, name)(jnp.asarray(x), 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=_allowed(n, float, expected))


@pytest.mark.parametrize("method", ["fft", "matmul"])
def test_ortho_is_orthogonal_and_inverts(method):
    for n in (2, 9, 16, 40):
        identity = jnp.eye(n)
        with jax.disable_jit():
            matrices = [linalg.hartley(identity, norm="ortho", method=method)]
            for type in (1, 2, 3, 4):
                for forward, inverse in ((linalg.dct, linalg.idct), (linalg.dst, linalg.idst)):
                    matrix = forward(identity, type, norm="ortho", method=method)
                    matrices.append(matrix)
                    back = inverse(matrix, type, norm="ortho", method=method)
                    np.testing.assert_allclose(back, identity, rtol=0, atol=4 * _allowed(n, float, identity))
        for matrix in matrices:
            np.testing.assert_allclose(matrix @ matrix.T, identity, rtol=0, atol=4 * _allowed(n, float, identity))


def test_hartley_is_its_definition_and_diagonalizes_periodic_operators():
    for n in LENGTHS:
        x = _random.normal(size=(2, n))
        angle = 2 * np.pi * (np.outer(np.arange(n), np.arange(n)) % n) / n
        expected = x @ (np.cos(angle) + np.sin(angle))
        for method in ("fft", "matmul"):
            with jax.disable_jit():
                found = linalg.hartley(jnp.asarray(x), method=method)
                back = linalg.hartley(found, method=method) / n
            np.testing.assert_allclose(found, expected, rtol=0, atol=_allowed(n, float, expected))
            np.testing.assert_allclose(back, x, rtol=0, atol=2 * _allowed(n, float, x))
    difference = 2 * jnp.eye(9) - jnp.roll(jnp.eye(9), 1, 0) - jnp.roll(jnp.eye(9), -1, 0)
    both_sides = linalg.hartley(linalg.hartley(difference, norm="ortho"), axis=0, norm="ortho")
    np.testing.assert_allclose(both_sides, np.diag(4 * np.sin(np.pi * np.arange(9) / 9) ** 2), rtol=0, atol=1e-14)


def test_many_lines_go_through_in_blocks():
    """More lines than a block, not a multiple of it; a line that is not finite harms no other."""
    x = _random.normal(size=(3, 700, 100))
    x[1, 3, 5] = np.nan
    found = np.array(linalg.dct(jnp.asarray(x), 2))
    assert np.isnan(found[1, 3]).all()
    found[1, 3], x[1, 3] = 0, 0
    np.testing.assert_allclose(found, scipy.fft.dct(x, 2), rtol=0, atol=_allowed(100, float, 20 * np.ones(100)))
    slope = jax.grad(lambda x: jnp.sum(linalg.dct(x, 2)[..., 1]))(jnp.asarray(x))
    np.testing.assert_allclose(slope[2, 699], 2 * np.cos(np.pi * (2 * np.arange(100) + 1) / 200), rtol=0, atol=1e-13)


def test_derivatives_and_batches():
    """The derivative of a linear map is the map, its transpose the transposed matrix."""
    x = jnp.asarray(_random.normal(size=(2, 6)))
    for transform in (
        lambda x: linalg.dct(x, 1),
        lambda x: linalg.idct(x, 3, norm="ortho"),
        lambda x: linalg.dst(x, 4),
        linalg.hartley,
    ):
        check_grads(lambda x, f=transform: jnp.sum(f(x) ** 3), (x,), order=2)
        matrix = transform(jnp.eye(6))
        cotangent = jax.vjp(transform, x)[1](x)[0]
        np.testing.assert_allclose(cotangent, x @ matrix.T, rtol=0, atol=1e-13)
        np.testing.assert_allclose(jax.vmap(transform)(x), transform(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linalg.dct(jnp.arange(3)), TypeError, "dct: x is of dtype int"),
        (lambda: linalg.dst(jnp.ones(3, complex)), TypeError, "dst: x is of dtype complex"),
        (lambda: linalg.hartley(jnp.ones(3, jnp.float16)), TypeError, "hartley: x is of dtype float16"),
        (lambda: linalg.dct(jnp.ones(3), 5), ValueError, "dct: type is 5, expected 1, 2, 3, 4"),
        (lambda: linalg.idct(jnp.ones(3), norm="forward"), ValueError, "idct: norm is 'forward', expected None"),
        (lambda: linalg.idst(jnp.ones(3), method="dense"), ValueError, "idst: method is 'dense', expected 'fft'"),
        (lambda: linalg.dct(jnp.ones(3), axis=1), ValueError, "dct: axis is 1, expected -1, 0"),
        (lambda: linalg.dct(jnp.ones(())), ValueError, "dct: axis is -1, expected an axis of an array that has one"),
        (lambda: linalg.dct(jnp.ones((3, 1)), 1), ValueError, r"dct: x is of shape \(3, 1\), expected at least 2"),
        (lambda: linalg.dst(jnp.ones((3, 0)), 1), ValueError, r"dst: x is of shape \(3, 0\), expected at least 1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_lines_give_none():
    assert linalg.dct(jnp.zeros((0, 4))).shape == (0, 4)
