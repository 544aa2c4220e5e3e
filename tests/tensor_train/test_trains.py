"""Storage and arithmetic of trains, against the arrays that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.linalg.scaling import rescaled, times_power_of_two
from tests.tensor_train.reference import DTYPES, SHAPES, assert_well_formed, full, full_of, random_cores, tolerance

every_kind = pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((SHAPES["unequal"], dtype) for dtype in DTYPES),
        (SHAPES["one mode"], "float32"),
        (SHAPES["one mode"], "complex128"),
    ],
)


def _pair(shape, dtype):
    """Two trains of different ranks and scales, and their arrays."""
    cores = random_cores(shape, 3, dtype), random_cores(shape, 2, dtype, seed=1)
    scales = 0.75, -0.5
    trains = [
        tensor_train.from_cores(part).replace(log_scale=jnp.asarray(scale, np.finfo(dtype).dtype))
        for part, scale in zip(cores, scales, strict=True)
    ]
    return *trains, *(np.exp(scale) * full(part) for part, scale in zip(cores, scales, strict=True))


@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 1), (2,) * 40], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cores_come_back_bit_for_bit(shape, dtype):
    cores = random_cores(shape, 3, dtype)
    for max_rank in (None, 5):
        tt = tensor_train.from_cores(cores, max_rank=max_rank)
        assert_well_formed(tt, dtype)
        assert tt.shape == shape
        assert tt.ndim == len(shape)
        assert tt.max_rank == (max_rank or max(max(core.shape[0], core.shape[2]) for core in cores))
        back = tensor_train.to_cores(tt)
        for core, again in zip(cores, back, strict=True):
            assert again.dtype == dtype
            np.testing.assert_array_equal(again, core)


@every_kind
def test_arithmetic_is_that_of_arrays(shape, dtype):
    a, b, dense_a, dense_b = _pair(shape, dtype)
    inner = np.asarray(a.ranks)[1:-1], np.asarray(b.ranks)[1:-1]
    sums, products = inner[0] + inner[1], inner[0] * inner[1]
    factor = np.asarray(2.5 - 1j if np.dtype(dtype).kind == "c" else 2.5, dtype)
    for result, expected, ranks in (
        (a + b, dense_a + dense_b, sums),
        (a - b, dense_a - dense_b, sums),
        (a * b, dense_a * dense_b, products),
        (-a, -dense_a, inner[0]),
        (jnp.asarray(factor) * a, factor * dense_a, inner[0]),
        (a * 3, 3 * dense_a, inner[0]),
    ):
        assert_well_formed(result, dtype)
        assert np.asarray(result.ranks)[1:-1].tolist() == ranks.tolist()
        # products and sums of a few numbers an entry, of the size of the largest
        np.testing.assert_allclose(full_of(result), expected, rtol=0, atol=tolerance(dtype) * np.abs(expected).max())
    assert (a + b).max_rank == a.max_rank + b.max_rank
    assert (a * b).max_rank == a.max_rank * b.max_rank


def test_a_sum_of_a_difference_and_a_product_keeps_its_padding():
    """Operations on the results of operations, whose ranks are below their padding."""
    a, b, dense_a, dense_b = _pair(SHAPES["unequal"], "float64")
    result = (a - b) * (b + a * b) - a
    assert_well_formed(result)
    expected = (dense_a - dense_b) * (dense_b + dense_a * dense_b) - dense_a
    np.testing.assert_allclose(full_of(result), expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_arithmetic_of_a_batch_is_that_of_its_members():
    stack = lambda *leaves: jnp.stack(leaves)
    members = [tensor_train.from_cores(random_cores((3, 4, 2), 2, seed=seed)) for seed in range(4)]
    batch = jax.tree.map(stack, *members)
    function = jax.jit(jax.vmap(lambda a, b: (a + b) * a))
    result = function(batch, jax.tree.map(lambda leaf: leaf[::-1], batch))
    for k, member in enumerate(members):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], result)
        assert_well_formed(one)
        dense = full_of(member)
        np.testing.assert_allclose(full_of(one), (dense + full_of(members[3 - k])) * dense, rtol=1e-12, atol=1e-12)


def test_a_real_and_a_complex_train_make_a_complex_one():
    a = tensor_train.from_cores(random_cores((3, 2), 2, "float32"))
    b = tensor_train.from_cores(random_cores((3, 2), 2, "complex64"))
    with jax.numpy_dtype_promotion("standard"):
        for result, expected in ((a + b, full_of(a) + full_of(b)), (b * a, full_of(a) * full_of(b))):
            assert_well_formed(result, "complex64")
            np.testing.assert_allclose(full_of(result), expected, atol=tolerance("float32"))


def test_scales_that_are_far_apart_neither_overflow_nor_vanish():
    """e^1000 and e^-1000 are no float32 numbers; the sum is the larger, the product as if there were no scales."""
    cores = random_cores((3, 2, 4), 2, "float32")
    one = tensor_train.from_cores(cores)
    large, small = (one.replace(log_scale=jnp.float32(value)) for value in (1000.0, -1000.0))
    added = large + small
    # the logarithm has the digits of float32
    np.testing.assert_allclose(
        full_of(added.replace(log_scale=added.log_scale - 1000)), full(cores), rtol=2e-4, atol=1e-6
    )
    np.testing.assert_allclose(full_of(large * small), full(cores) ** 2, rtol=1e-5, atol=1e-6)


def test_the_derivative_by_a_factor_of_zero_is_the_train():
    tt = tensor_train.from_cores(random_cores((3, 4), 2))
    weights = [jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.3, 1.0, 2.0, -1.0])]
    slope = jax.grad(lambda factor: tensor_train.integrate(tensor_train.scale(tt, factor), weights))(0.0)
    np.testing.assert_allclose(slope, weights[0] @ full_of(tt) @ weights[1], rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_of_two_are_exact(dtype):
    info = np.finfo(dtype)
    value = np.asarray([1.5, -0.7, 0.0, 1.99], dtype)
    for exponent in (0, 1, -1, info.maxexp - 1, info.minexp + 1):
        scaled = times_power_of_two(jnp.asarray(value), jnp.int32(exponent))
        np.testing.assert_array_equal(scaled, np.ldexp(value, exponent))
    # there and back over more than the whole range
    tiny = np.asarray([1.5, -1.25], dtype) * info.tiny
    far = -2 * info.minexp
    np.testing.assert_array_equal(times_power_of_two(jnp.asarray(tiny), jnp.int32(far)), np.ldexp(tiny, far))
    for x in (value, value * (4 * info.tiny), value * (info.max / 4), np.zeros(3, dtype)):
        mantissa, exponent = rescaled(jnp.asarray(x))
        assert not x.any() or 1 <= np.abs(mantissa).max() < 2
        assert exponent.dtype == np.int32
        np.testing.assert_array_equal(times_power_of_two(mantissa, exponent), x)
