"""Singular values of every bond are those of the unfolded array, by `numpy.linalg.svd`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.tensor_train.spectra import singular_values
from tests.tensor_train.reference import DTYPES, SHAPES, full_of, random_cores, tolerance


def _expected(array, size):
    """[d - 1, size], over the norm."""
    rows = []
    for k in range(1, array.ndim):
        values = np.linalg.svd(array.reshape(int(np.prod(array.shape[:k])), -1), compute_uv=False)[:size]
        rows.append(np.pad(values, (0, size - len(values))))
    return np.array(rows) / np.linalg.norm(array.ravel())


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_those_of_the_unfolded_array(dtype):
    """Cores that are not orthogonal, padding, a factor of 1e300 outside of them."""
    tt = tensor_train.from_cores(random_cores(SHAPES["unequal"], 4, dtype), max_rank=6)
    found = singular_values(tt.replace(log_scale=jnp.asarray(690.0, tt.log_scale.dtype)))
    assert found.shape == (3, 6)
    assert found.dtype == np.finfo(dtype).dtype
    np.testing.assert_allclose(found, _expected(full_of(tt), 6), rtol=0, atol=tolerance(dtype))


def test_small_ones_are_right_to_rounding_and_not_to_its_root():
    """Exactly known: a sum of rank-one trains of orthogonal vectors has its weights as singular values."""
    weights = 10.0 ** -np.arange(0, 13, 3)
    cores = [np.zeros((5, 6, 5)) for _ in range(4)]
    for core in cores:
        core[range(5), range(5), range(5)] = 1
    cores = [cores[0].sum(0, keepdims=True), *cores[1:-1], (cores[-1] * weights).sum(2, keepdims=True)]
    found = singular_values(tensor_train.from_cores(cores))
    np.testing.assert_allclose(found, np.tile(weights / np.linalg.norm(weights), (3, 1)), rtol=1e-3, atol=1e-15)


def test_a_hundred_modes_one_mode_and_nothing():
    """In a hundred modes of cores near 1e-30 no entry is a number; one mode has no bond; zero has zeros."""
    cores = [core * 1e-30 for core in random_cores((3,) * 100, 3)]
    found = singular_values(tensor_train.from_cores(cores))
    assert found.shape == (99, 3)
    np.testing.assert_allclose(np.sum(np.asarray(found) ** 2, 1), 1, rtol=1e-14)
    assert np.all(np.diff(found, axis=1) <= 0)
    same = singular_values(tensor_train.from_cores([core * 1e30 for core in cores]))
    np.testing.assert_allclose(found, same, rtol=1e-12)
    assert singular_values(tensor_train.from_cores(random_cores((4,), 1))).shape == (0, 1)
    zero = tensor_train.from_cores([np.zeros((1, 3, 2)), np.zeros((2, 3, 1))])
    np.testing.assert_array_equal(singular_values(zero), 0)


def test_rounding_drops_what_they_say():
    """At two of three bonds, so that the bounds are apart; under vmap."""
    tt = tensor_train.from_cores(random_cores((3, 4, 4, 3), 3))
    dropped = jax.vmap(singular_values)(jax.tree.map(lambda leaf: leaf[None], tt))[0, :, 2]
    assert np.count_nonzero(dropped) == 2
    error = float(tensor_train.distance(tt, tensor_train.round(tt, max_rank=2)) / tensor_train.norm(tt))
    assert float(jnp.max(dropped)) <= error <= float(jnp.linalg.norm(dropped))


def test_what_is_no_train_is_refused():
    with pytest.raises(TypeError, match="singular_values: tt is of type ndarray, expected a TT"):
        singular_values(np.ones((2, 2)))
