"""Transforms over several axes against scipy's; pairs of axes of mixed kinds against one axis after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from jaxnm import linalg
from jaxnm.linalg.transforms_nd import transform_pair

EPS = {np.float32: 1.2e-7, np.float64: 2.2e-16}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["dctn", "idctn", "dstn", "idstn"])
def test_all_types_are_those_of_scipy(name, dtype):
    ours, theirs = getattr(linalg, name), getattr(scipy.fft, name)
    shapes = {2: [(8, 6), (7, 5), (5, 8), (2, 3, 4)], 3: [(6, 9), (3, 5, 4)], 1: [(4, 5)], 4: [(4, 5)]}
    for type, cases in shapes.items():
        for shape in cases:
            x = np.random.default_rng(0).normal(size=shape).astype(dtype)
            for norm in (None, "ortho"):
                expected = theirs(x.astype(float), type, norm=norm)
                found = ours(jnp.asarray(x), type, norm=norm)
                assert found.dtype == dtype
                bound = 10 * EPS[dtype] * np.log2(x.size) * np.linalg.norm(expected)
                assert np.linalg.norm(np.asarray(found, float) - expected) <= bound


def test_chosen_axes_and_matmul():
    x = np.random.default_rng(1).normal(size=(3, 4, 5))
    for axes in ((0, 2), (2, 0), (-1,), (1, 2, 0)):
        expected = scipy.fft.dctn(x, 2, axes=axes)
        for method in ("fft", "matmul"):
            found = linalg.dctn(jnp.asarray(x), 2, axes=axes, method=method)
            np.testing.assert_allclose(found, expected, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("kinds", [("cosine", "sine"), ("sine", "cosine")])
def test_pairs_of_mixed_kinds(kinds):
    one = {"cosine": scipy.fft.dct, "sine": scipy.fft.dst}
    x = np.random.default_rng(2).normal(size=(6, 7))
    expected = one[kinds[1]](one[kinds[0]](x, 2, axis=0, norm="ortho"), 2, axis=1, norm="ortho")
    modes = transform_pair(jnp.asarray(x), kinds, inverse=False)
    np.testing.assert_allclose(modes, expected, atol=1e-14)
    np.testing.assert_allclose(transform_pair(modes, kinds, inverse=True), x, atol=1e-14)


def test_the_derivative_is_the_transform_and_its_adjoint():
    x, y = np.random.default_rng(3).normal(size=(2, 4, 6))
    transform = lambda x: linalg.dctn(x, 2, norm="ortho")
    tangent = jax.jvp(transform, (jnp.asarray(x),), (jnp.asarray(y),))[1]
    np.testing.assert_allclose(tangent, scipy.fft.dctn(y, norm="ortho"), atol=1e-14)
    (cotangent,) = jax.vjp(transform, jnp.asarray(x))[1](jnp.asarray(y))
    np.testing.assert_allclose(cotangent, scipy.fft.idctn(y, norm="ortho"), atol=1e-14)


def test_bad_arguments():
    with pytest.raises(ValueError, match="distinct"):
        linalg.dctn(jnp.ones((2, 2)), axes=(0, -2))
    with pytest.raises(ValueError, match="axes is"):
        linalg.dctn(jnp.ones((2, 2)), axes=(0, 2))
    with pytest.raises(ValueError, match="type"):
        linalg.idstn(jnp.ones((2, 2)), 5)
    with pytest.raises(TypeError, match="float"):
        linalg.dctn(jnp.ones((2, 2), int))
