"""Trains whose factors, cores and units are far apart: every function gives what it gives for ordinary ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.tensor_train.scaling import joined_scale, split_scale, spread
from tests.tensor_train.reference import full, random_cores

_MODES = {"float32": 100, "float64": 700}


def _ones(dtype):
    """(ones by cores of ones, the same rounded: its factor alone is more than the dtype holds), of that many modes."""
    with jax.enable_x64(dtype == "float64"):
        ones = tensor_train.from_cores([jnp.ones((1, 10, 1), dtype)] * _MODES[dtype])
        rounded = tensor_train.round(ones)
        assert float(rounded.log_scale) > math.log(np.finfo(dtype).max)
        return ones, rounded


def _first_entry(tt):
    return float(tensor_train.gather(tt, jnp.zeros((1, tt.ndim), jnp.int32))[0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", _MODES)
def test_sums_of_trains_whose_factors_no_number_holds(dtype):
    ones, rounded = _ones(dtype)
    with jax.enable_x64(dtype == "float64"):
        zero = jnp.zeros((), dtype)
        of_two = {"max_rank": 2, "method": "qr_svd"}
        for tt, expected in (
            (ones + rounded, 2),
            (rounded + ones, 2),
            (ones - rounded, 0),
            (tensor_train.sum_many([ones, rounded], **of_two), 2),
            (tensor_train.sum_many([ones, rounded], max_rank=2, key=jax.random.key(0)), 2),
            (zero * rounded + ones, 1),
            (ones + zero * rounded, 1),
            (zero * ones + zero * rounded, 0),
        ):
            # a rounding a mode, of factors that are no powers of two
            assert abs(_first_entry(tt) - expected) <= 4 * _MODES[dtype] * np.finfo(dtype).eps
        slope = jax.grad(lambda x: tensor_train.gather(x * rounded + ones, jnp.zeros((1, ones.ndim), jnp.int32))[0])(
            zero
        )
        assert abs(slope - 1) <= 4 * _MODES[dtype] * np.finfo(dtype).eps


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", _MODES)
def test_a_factor_is_handed_over_in_the_cores_to_the_last_bit(dtype):
    _, rounded = _ones(dtype)
    with jax.enable_x64(dtype == "float64"):
        cores = tensor_train.to_cores(rounded)
        assert max(float(jnp.max(jnp.abs(core))) for core in cores) < 10
        assert _first_entry(tensor_train.from_cores(cores)) == _first_entry(rounded)
        product = np.prod([np.asarray(core, np.longdouble).ravel()[0] for core in cores])
        assert abs(product - 1) <= 2 * _MODES[dtype] * np.finfo(dtype).eps
        operator = tensor_train.matrix_from_cores([jnp.full((1, 2, 2, 1), 3.0, dtype)] * 3)
        operator = operator @ operator
        back = tensor_train.matrix_from_cores(tensor_train.matrix_to_cores(operator)) @ operator
        square = operator @ operator
        np.testing.assert_array_equal([back.log_scale, back.cores[0, 0, 0, 0, 0]],
                                      [square.log_scale, square.cores[0, 0, 0, 0, 0]])  # fmt: skip


@pytest.mark.parametrize("dtype", _MODES)
def test_a_thousand_doublings_are_a_power_of_two(dtype):
    """Each with a rounding, in a loop; and squares in a loop."""
    with jax.enable_x64(dtype == "float64"):
        tt = tensor_train.from_cores([jnp.asarray(core) for core in random_cores((3, 4), 2, dtype)])
        double = jax.jit(lambda tt: jax.lax.fori_loop(0, 1000, lambda _, x: tensor_train.round(x + x, max_rank=2), tt))
        result = double(tt)
        exponent, rest = split_scale(result.log_scale)
        assert rest == 0
        back = result.replace(log_scale=joined_scale(exponent - 1000, rest))
        expected = tensor_train.to_dense(tt)
        error = jnp.linalg.norm(tensor_train.to_dense(back) - expected) / jnp.linalg.norm(expected)
        assert error <= 20 * 1000**0.5 * np.finfo(dtype).eps
        two = tensor_train.from_cores([jnp.full((1, 2, 1), 2, dtype)] * 3)
        squares = jax.lax.fori_loop(0, 12, lambda _, x: x * x, two)
        exponent, rest = split_scale(squares.log_scale)
        assert (int(exponent), float(rest)) == (3 * 2**12, 0)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float64", 1e200)])
def test_cores_that_are_huge_and_tiny_cancel_everywhere(dtype, size):
    """Three by `size` and three by its inverse: all entries are one, and no product on the way overflows."""
    eps = np.finfo(dtype).eps
    with jax.enable_x64(dtype == "float64"):
        h = tensor_train.from_cores([jnp.full((1, 2, 1), x, dtype) for x in [size] * 3 + [1 / size] * 3])
        weights = [jnp.full(2, x, dtype) for x in [size, 1 / size] * 3]
        eye = jnp.eye(2, dtype=dtype)[None, ..., None]
        operator = tensor_train.matrix_from_cores([x * eye for x in [size] * 3 + [1 / size] * 3])
        for found, expected in (
            (tensor_train.to_dense(h), 1),
            (tensor_train.to_dense(h * h), 1),
            (tensor_train.to_dense(h + h), 2),
            (tensor_train.to_dense(operator @ h), 1),
            (tensor_train.to_dense(tensor_train.round(h)), 1),
            (tensor_train.to_dense(tensor_train.round(h, method="gram")), 1),
            (tensor_train.to_dense(tensor_train.marginal(h, [1, 4])), 16),
            (tensor_train.dot(h, h), 64),
            (tensor_train.norm(h), 8),
            (tensor_train.distance(h, jnp.asarray(3.0, dtype) * h), 16),
            (tensor_train.gather(h, jnp.zeros((1, 6), jnp.int32)), 1),
            (tensor_train.integrate(h, weights), 64),
            (tensor_train.singular_values(h)[:, 0], 1),
            (tensor_train.argmax(h).value, 1),
            (tensor_train.log_prob(h, jnp.zeros((1, 6), jnp.int32)), -6 * math.log(2)),
        ):
            np.testing.assert_allclose(found, expected, rtol=100 * eps)
        slope = jax.grad(lambda x: tensor_train.norm(x * h))(jnp.ones((), dtype))
        np.testing.assert_allclose(slope, 8, rtol=100 * eps)


@pytest.mark.parametrize("exponent", [0, 1, -1, 699, -700, 2**29 + 7])
@pytest.mark.parametrize("d", [1, 3, 700, 50_000])
def test_exponents_are_spread_evenly(exponent, d):
    shares = np.asarray(spread(jnp.int32(exponent), d), np.int64)
    assert shares.sum() == exponent
    # at no site is the sum so far off by more than the digits of float32
    assert np.abs(np.cumsum(shares) - np.arange(1, d + 1) / d * exponent).max() <= 2 + 2e-7 * d


def test_the_order_of_blocks_does_not_matter_to_a_product():
    """The operand of smaller ranks makes the blocks, whichever it is."""
    a, b = (random_cores((3, 2, 4), rank, seed=rank) for rank in (2, 5))
    for first, second in ((a, b), (b, a)):
        tt = tensor_train.from_cores(first) * tensor_train.from_cores(second, max_rank=6)
        np.testing.assert_allclose(tensor_train.to_dense(tt), full(a) * full(b), atol=1e-12)


# ------------------------------------------------------------------------------------------------ errors of truncation


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [2, 50])
def test_no_tolerance_is_exceeded_by_the_default_method(dtype, d):
    """The same singular value at every bond, just below and above what may be dropped there."""
    machine = float(np.finfo(dtype).eps)
    with jax.enable_x64(dtype == "float64"):
        for eps in (30 * machine, machine**0.5, 10 * machine**0.5, 100 * machine**0.5):
            for share in (0.9, 1.2, 0.1):
                small = share * eps / (d - 1) ** 0.5
                # |0...0> plus small multiples of trains that differ from it in two neighbours
                core = np.zeros((3, 2, 3))
                core[0, 0, 0] = core[2, 0, 2] = core[1, 1, 2] = 1
                core[0, 1, 1] = small
                cores = [core[:1], *[core] * (d - 2), core[..., [0]] + core[..., [2]]]
                tt = tensor_train.from_cores([jnp.asarray(c, dtype) for c in cores])
                rounded = tensor_train.round(tt, eps=eps)
                error = tensor_train.distance(rounded, tt) / tensor_train.norm(tt)
                assert error <= eps * 1.0001 + 8 * machine * d**0.5
                if d == 2:
                    array = jnp.diag(jnp.asarray([1, small], dtype))
                    again = tensor_train.to_dense(tensor_train.from_dense(array, max_rank=2, eps=eps))
                    assert jnp.linalg.norm(again - array) <= eps * 1.0001 + 8 * machine


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("method", ["exact", "gram"])
def test_from_dense_has_a_derivative_where_singular_values_repeat(method):
    """At full rank it is the identity, whatever the singular values; below, that of the projection."""
    array = jnp.eye(4).reshape(4, 2, 2)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=array.shape))
    of = lambda array, rank: tensor_train.to_dense(tensor_train.from_dense(array, max_rank=rank, method=method))
    slope = jax.jit(jax.grad(lambda array: jnp.sum(weights * of(array, 4))))(array)
    np.testing.assert_allclose(slope, weights, atol=1e-12)
    # two equal ones are kept, two are dropped
    matrix = jnp.diag(jnp.asarray([3.0, 3.0, 1.0, 1.0]))
    turn = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)))
    found = jax.jit(lambda: jax.jvp(lambda x: of(x, 2), (matrix,), (turn,))[1])()

    def cut(x):
        left, values, right = np.linalg.svd(x)
        return left[:, :2] * values[:2] @ right[:2]

    h = 1e-6
    np.testing.assert_allclose(found, (cut(matrix + h * turn) - cut(matrix - h * turn)) / (2 * h), atol=1e-8)


@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("singular_values", lambda tt: jnp.sum(tensor_train.singular_values(tt))),
        ("sample", lambda tt: jnp.sum(tensor_train.sample(jax.random.key(0), tt, 3).log_prob)),
        ("from_dense", lambda tt: jax.grad(lambda x: tensor_train.norm(
            tensor_train.from_dense(x * jnp.eye(3), max_rank=2)))(jnp.sum(tt.cores))),
        ("from_dense", lambda tt: tensor_train.norm(tensor_train.from_dense(
            tensor_train.to_dense(tt), max_rank=2, method="randomized", key=jax.random.key(0)))),
        ("round", lambda tt: jax.grad(lambda x: tensor_train.norm(
            tensor_train.round(x * tt, max_rank=1)))(jnp.sum(tt.cores))),
    ],
)  # fmt: skip
def test_derivatives_that_are_not_supported_raise(name, derivative):
    tt = tensor_train.from_cores([jnp.ones((1, 3, 2)), jnp.ones((2, 4, 1))])
    with pytest.raises(TypeError, match=rf"^{name}: .* differentiated, expected no derivative; "):
        jax.eval_shape(jax.grad(lambda cores: derivative(tt.replace(cores=cores))), tt.cores)


def test_inverses_have_derivatives_where_eigenvalues_repeat():
    """A multiple of the identity on each mode: the derivative by c of b / (c_1 + c_2 + c_3) is -b / (sum)^2."""
    b = tensor_train.from_cores(random_cores((3, 4, 2), 2))
    matrices = [c * jnp.eye(n) for c, n in zip((1.0, 2.0, 3.0), b.shape, strict=True)]
    rng = np.random.default_rng(0)
    weights, turn = rng.normal(size=b.shape), [rng.normal(size=matrix.shape) for matrix in matrices]
    turn = [jnp.asarray(part + part.T) for part in turn]

    @jax.jit
    def slope(matrices):
        of = lambda matrices: tensor_train.laplace_inverse(b, matrices=matrices, eps=1e-12, condition=2.0)
        return jax.jvp(lambda m: jnp.sum(weights * tensor_train.to_dense(of(m))), (matrices,), (turn,))[1]

    x = np.asarray(tensor_train.to_dense(b))
    moved = np.einsum("ai,ijk->ajk", turn[0], x) + np.einsum("aj,ijk->iak", turn[1], x) + x @ turn[2]
    np.testing.assert_allclose(slope(matrices), -np.sum(weights * moved) / 36, rtol=1e-9)


def test_bfloat16_is_refused_with_the_reason():
    half = tensor_train.from_cores([jnp.ones((1, 3, 1))] * 2)
    half = half.replace(cores=half.cores.astype(jnp.bfloat16))
    for call in (
        lambda: tensor_train.from_cores([jnp.ones((1, 3, 1), jnp.bfloat16)]),
        lambda: tensor_train.matrix_from_cores([jnp.ones((1, 3, 3, 1), jnp.bfloat16)]),
        lambda: tensor_train.from_dense(jnp.ones((3, 4), jnp.bfloat16), max_rank=2),
        lambda: tensor_train.round(half),
        lambda: tensor_train.norm(half),
        lambda: tensor_train.quantics.step(2, 3, dtype=jnp.bfloat16),
        lambda: tensor_train.quantics.laplacian(3, dtype=jnp.float16),
    ):
        with pytest.raises(TypeError, match="expected float32 or float64"):
            call()
