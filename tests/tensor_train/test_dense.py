"""TT-SVD of arrays whose ranks are known, against truncated SVDs in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from tests.tensor_train.reference import DTYPES, SHAPES, assert_well_formed, full_of, random_cores, tolerance, tt_svd

METHODS = ("exact", "gram", "randomized")
KEY = jax.random.key(0)
HILBERT = 1 / (1.0 + np.indices((8,) * 6).sum(0))
# of the unfoldings, at these distances from the best approximation relative to the norm
HILBERT_RANKS = {1e-4: (4, 5, 5, 5, 4), 1e-6: (6, 7, 7, 7, 6), 1e-8: (7, 8, 9, 8, 7), 1e-10: (8, 10, 10, 10, 8)}


def _unfoldings(array):
    """Singular values of all unfoldings."""
    return [
        np.linalg.svd(array.reshape(int(np.prod(array.shape[:k])), -1), compute_uv=False) for k in range(1, array.ndim)
    ]


HILBERT_VALUES = _unfoldings(HILBERT)


def _size(array):
    return np.linalg.norm(np.ravel(array))


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 1, 3), (1,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_comes_back(shape, dtype):
    rng = np.random.default_rng(0)
    array = (rng.normal(size=shape) + (1j * rng.normal(size=shape) if np.dtype(dtype).kind == "c" else 0)).astype(dtype)
    tt = tensor_train.from_dense(array, max_rank=100)
    assert_well_formed(tt, dtype)
    assert tt.shape == shape
    # clipped to what the shape can have: a random array has all of it
    bounds = [int(min(np.prod(shape[:k]), np.prod(shape[k:]))) for k in range(len(shape) + 1)]
    assert np.asarray(tt.ranks).tolist() == bounds
    assert tt.max_rank == max(bounds)
    np.testing.assert_allclose(full_of(tt), array, rtol=0, atol=tolerance(dtype) * _size(array))
    dense = tensor_train.to_dense(tt)
    assert dense.dtype == dtype
    np.testing.assert_allclose(dense, array, rtol=0, atol=tolerance(dtype) * _size(array))


@pytest.mark.exhaustive
@pytest.mark.parametrize("eps", HILBERT_RANKS)
def test_ranks_and_errors_of_the_hilbert_tensor(eps):
    """No train within eps has smaller ranks than the unfoldings at eps; TT-SVD has none above that at eps / sqrt(5)."""
    size = _size(HILBERT)
    tails = [np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) for values in HILBERT_VALUES]
    least = tuple(int(np.sum(tail > eps * size)) for tail in tails)
    most = [int(np.sum(tail > eps * size / np.sqrt(5))) for tail in tails]
    assert least == HILBERT_RANKS[eps]
    tt = _hilbert(eps, "exact", 12)
    assert_well_formed(tt)
    ranks = np.asarray(tt.ranks)[1:-1]
    assert np.all(ranks >= least)
    assert np.all(ranks <= most)
    assert _size(np.asarray(tensor_train.to_dense(tt)) - HILBERT) <= eps * size
    for method in ("gram", "randomized"):
        if method == "randomized" or eps > 1e-7:
            other = _hilbert(eps, method, 12)
            assert np.all(np.abs(np.asarray(other.ranks)[1:-1] - ranks) <= 1)
            assert _size(np.asarray(tensor_train.to_dense(other)) - HILBERT) <= 2 * eps * size


@partial(jax.jit, static_argnums=(1, 2))
def _hilbert(eps, method, max_rank):
    return tensor_train.from_dense(jnp.asarray(HILBERT), max_rank=max_rank, eps=eps, method=method, key=KEY)


@pytest.mark.parametrize("max_rank", [1, 3, 5])
def test_the_error_at_a_rank_is_below_that_of_all_unfoldings_together(max_rank):
    """sqrt(sum e_k^2), with e_k what the best approximations of the unfoldings leave; never below the largest e_k."""
    rng = np.random.default_rng(0)
    for array in (rng.normal(size=(4, 4, 4, 4, 4)), rng.normal(size=(3, 5, 2, 6))):
        errors = [_size(values[max_rank:]) for values in _unfoldings(array)]
        tt = tensor_train.from_dense(array, max_rank=max_rank)
        assert tt.max_rank == max_rank
        error = _size(full_of(tt) - array)
        assert max(errors) * (1 - 1e-12) <= error <= np.sqrt(np.sum(np.square(errors))) * (1 + 1e-12)
        np.testing.assert_allclose(full_of(tt), tt_svd(array, max_rank)[0], rtol=0, atol=1e-12 * _size(array))


GRID = np.linspace(-1.7, 1.3, 6)
X = np.meshgrid(*[GRID] * 5, indexing="ij")
EXACT = {
    "product": (np.prod([np.cos(k + x) for k, x in enumerate(X)], 0), 1),
    "sum": (sum(np.exp(k * x / 3) for k, x in enumerate(X, 1)), 2),
    "sin of a sum": (np.sin(sum(X)), 2),
    "cube of a sum": (sum(X) ** 3, 4),
    "Rosenbrock": (sum(100 * (X[k + 1] - X[k] ** 2) ** 2 + (1 - X[k]) ** 2 for k in range(4)), 3),
    "Rastrigin": (sum(x**2 - 10 * np.cos(2 * np.pi * x) + 10 for x in X), 2),
    "Griewank": (
        sum(x**2 for x in X) / 4000 - np.prod([np.cos(x / np.sqrt(k)) for k, x in enumerate(X, 1)], 0) + 1, 3
    ),
    "largest": (np.max(X, 0), 6),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_ranks_of_functions_are_exact(name):
    """Sums have 2, powers p + 1, Rosenbrock and Griewank 3; the largest of numbers on 6 nodes has 6, all of them."""
    array, rank = EXACT[name]
    tt = tensor_train.from_dense(array, max_rank=20, eps=1e-12, method="exact")
    assert np.asarray(tt.ranks).tolist() == [1, rank, rank, rank, rank, 1]
    assert _size(full_of(tt) - array) < 1e-12 * _size(array)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_an_exact_rank_is_found_by_every_method(method, dtype):
    cores = random_cores((5, 6, 4, 7), 3, dtype)
    array = full_of(tensor_train.from_cores(cores)).astype(dtype)
    floor = 1e-2 if dtype == "float32" and method == "gram" else 1e-5 if dtype == "float32" else 1e-7
    tt = tensor_train.from_dense(array, max_rank=6, eps=floor, method=method, key=KEY)
    assert_well_formed(tt, dtype)
    if floor < 1e-2:
        assert np.asarray(tt.ranks).tolist() == [1, 3, 2, 3, 1]
    assert _size(full_of(tt) - array) <= floor * _size(array)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_constants_and_extreme_scales(method):
    for value in (0.0, 1.0, 1e300, 1e-300):
        tt = tensor_train.from_dense(jnp.full((3, 4, 5), value), max_rank=4, method=method, key=KEY)
        assert_well_formed(tt)
        assert np.asarray(tt.ranks).tolist() == [1, 1, 1, 1]
        np.testing.assert_allclose(tensor_train.to_dense(tt), value, rtol=1e-12)


def test_scales_that_float32_squares_do_not_hold():
    array = (1e-30 * HILBERT[:, :, :, 0, 0, 0]).astype(np.float32)
    tt = tensor_train.from_dense(array, max_rank=8, eps=1e-5)
    assert _size(full_of(tt) - array) < 2e-5 * _size(array.astype(np.float64))


def test_automatic_is_gram_for_a_loose_eps_and_exact_otherwise():
    array = HILBERT[:, :, :, 0, 0, 0]
    same = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b))
    run = partial(tensor_train.from_dense, array, max_rank=5)
    assert same(run(eps=1e-6), run(eps=1e-6, method="gram"))
    assert same(run(eps=1e-9), run(eps=1e-9, method="exact"))
    assert same(run(eps=jnp.asarray(1e-6)), run(eps=1e-6, method="exact"))


def test_the_gradient_through_an_exact_train_is_that_of_the_array():
    """Of full rank, with singular values that differ: the train is the array, whatever its bases are."""
    array = np.random.default_rng(0).normal(size=(3, 4, 3))
    weights = np.random.default_rng(1).normal(size=(3, 4, 3))
    run = lambda x: jnp.sum(tensor_train.to_dense(tensor_train.from_dense(x, max_rank=9)) * weights)
    np.testing.assert_allclose(jax.grad(run)(jnp.asarray(array)), weights, rtol=0, atol=1e-12)


def test_a_batch_of_arrays():
    arrays = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 3, 5)))
    tt = jax.vmap(lambda x: tensor_train.from_dense(x, max_rank=2))(arrays)
    dense = jax.vmap(tensor_train.to_dense)(tt)
    for k, array in enumerate(np.asarray(arrays)):
        np.testing.assert_allclose(dense[k], tt_svd(array, 2)[0], rtol=0, atol=1e-12)
