"""Operators in train form against matrices, and sums of many trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from tests.tensor_train.reference import DTYPES, assert_well_formed, full, full_of, random_cores, tolerance

ROWS, COLUMNS = (2, 3, 4), (3, 2, 2)


def _matrix_cores(rows, columns, rank, dtype="float64", seed=0):
    flat = random_cores(tuple(m * n for m, n in zip(rows, columns, strict=True)), rank, dtype, seed)
    return [core.reshape(core.shape[0], m, n, -1) for core, m, n in zip(flat, rows, columns, strict=True)]


def _full_matrix(cores):
    """[rows, columns] of cores [r, m, n, r']."""
    d = len(cores)
    tensor = full([core.reshape(core.shape[0], -1, core.shape[3]) for core in cores])
    tensor = tensor.reshape([size for core in cores for size in core.shape[1:3]])
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return tensor.transpose(order).reshape(int(np.prod([core.shape[1] for core in cores])), -1)


def _assert_padded(matrix):
    beyond = np.ones(matrix.cores.shape, bool)
    ranks = np.asarray(matrix.ranks)
    for k, (m, n) in enumerate(zip(matrix.rows, matrix.columns, strict=True)):
        beyond[k, : ranks[k], :m, :n, : ranks[k + 1]] = False
    assert not np.asarray(matrix.cores)[beyond].any()
    assert matrix.ranks.dtype == np.int32


def _of(matrix):
    return _full_matrix([np.asarray(core) for core in tensor_train.matrix_to_cores(matrix)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cores_come_back_bit_for_bit(dtype):
    cores = _matrix_cores(ROWS, COLUMNS, 3, dtype)
    for max_rank in (None, 5):
        matrix = tensor_train.matrix_from_cores(cores, max_rank=max_rank)
        _assert_padded(matrix)
        assert (matrix.rows, matrix.columns, matrix.max_rank) == (ROWS, COLUMNS, max_rank or 3)
        for core, again in zip(cores, tensor_train.matrix_to_cores(matrix), strict=True):
            assert again.dtype == dtype
            np.testing.assert_array_equal(again, core)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_those_of_matrices(dtype):
    first, second = _matrix_cores(ROWS, COLUMNS, 3, dtype), _matrix_cores(COLUMNS, (2, 2, 3), 2, dtype, seed=1)
    a, b = (tensor_train.matrix_from_cores(cores) for cores in (first, second))
    a = a.replace(log_scale=jnp.asarray(0.75, np.finfo(dtype).dtype))
    tt = tensor_train.from_cores(random_cores(COLUMNS, 2, dtype, seed=2), max_rank=3)
    dense, other = _of(a), _full_matrix(second)
    vector = full_of(tt).ravel()

    result = a @ tt
    assert_well_formed(result, dtype)
    assert result.shape == ROWS
    assert np.asarray(result.ranks).tolist() == (np.asarray(a.ranks) * np.asarray(tt.ranks)).tolist()
    expected = dense @ vector
    np.testing.assert_allclose(
        full_of(result).ravel(), expected, rtol=0, atol=tolerance(dtype) * np.abs(expected).max()
    )

    product = a @ b
    _assert_padded(product)
    assert product.cores.dtype == dtype
    assert (product.rows, product.columns) == (ROWS, (2, 2, 3))
    expected = dense @ other
    np.testing.assert_allclose(_of(product), expected, rtol=0, atol=tolerance(dtype) * np.abs(expected).max())


def test_one_mode():
    matrix = tensor_train.matrix_from_cores(_matrix_cores((3,), (4,), 1))
    tt = tensor_train.from_cores(random_cores((4,), 1))
    np.testing.assert_allclose(full_of(matrix @ tt), _of(matrix) @ full_of(tt), rtol=1e-14)


@pytest.mark.exhaustive
def test_the_laplacian_in_many_dimensions():
    """Rank 2; a product of sines is its eigenvector, in 2 dimensions and in 50, by the residual in the norm by QR."""
    n = 5
    second = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    for d in (2, 50):
        first = np.stack([second, np.eye(n)], -1)[None]
        inner = np.zeros((2, n, n, 2))
        inner[0, :, :, 0], inner[1, :, :, 0], inner[1, :, :, 1] = np.eye(n), second, np.eye(n)
        last = np.stack([np.eye(n), second])[..., None]
        laplacian = tensor_train.matrix_from_cores([first, *[inner] * (d - 2), last])
        sine = np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.arange(1, n + 1) / (n + 1))
        vector = tensor_train.from_cores([sine[None, :, None]] * d)
        value = d * 4 * np.sin(np.pi / (2 * (n + 1))) ** 2
        assert float(tensor_train.distance(laplacian @ vector, value * vector)) < 1e-13 * d * value
        assert np.asarray(tensor_train.round(laplacian @ vector).ranks).max() == 1
    np.testing.assert_allclose(
        _of(tensor_train.matrix_from_cores([first, last])), np.kron(second, np.eye(n)) + np.kron(np.eye(n), second)
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["randomized", "qr_svd", "gram"])
def test_a_sum_of_many_trains_of_few_kinds(method):
    kinds = [tensor_train.from_cores(random_cores((4, 5, 3, 4), rank, seed=rank)) for rank in (1, 2)]
    trains = [kinds[k % 2] for k in range(7)]
    total = tensor_train.sum_many(trains, max_rank=3, method=method, eps=1e-9, key=jax.random.key(0))
    assert_well_formed(total)
    assert total.max_rank == 3
    assert np.asarray(total.ranks).tolist() == [1, 3, 2, 3, 1]
    expected = 4 * full_of(kinds[0]) + 3 * full_of(kinds[1])
    floor = 1e-7 if method == "gram" else 1e-13
    assert np.linalg.norm(full_of(total) - expected) < floor * np.linalg.norm(expected)


def test_products_of_a_batch_and_their_derivatives():
    matrices = jnp.stack(
        [tensor_train.matrix_from_cores(_matrix_cores(ROWS, COLUMNS, 2, seed=k)).cores for k in range(3)]
    )
    matrix = tensor_train.matrix_from_cores(_matrix_cores(ROWS, COLUMNS, 2))
    tt = tensor_train.from_cores(random_cores(COLUMNS, 2, seed=2))
    ones = [jnp.ones(n) for n in ROWS]
    total = lambda cores: tensor_train.integrate(matrix.replace(cores=cores) @ tt, ones)
    totals = jax.vmap(total)(matrices)
    for k in range(3):
        expected = (_full_matrix(_matrix_cores(ROWS, COLUMNS, 2, seed=k)) @ full_of(tt).ravel()).sum()
        np.testing.assert_allclose(totals[k], expected, rtol=1e-12)
    # linear in one core: a difference is exact
    change = jnp.zeros_like(matrix.cores).at[1, 0, 2, 1, 1].set(1.0)
    slope = jnp.vdot(jax.grad(total)(matrix.cores), change)
    np.testing.assert_allclose(slope, total(matrix.cores + change) - total(matrix.cores), rtol=1e-11, atol=1e-11)
