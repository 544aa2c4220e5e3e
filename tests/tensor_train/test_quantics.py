"""Quantics trains and operators against dense vectors and matrices, exact ranks, and functions at 2^30 points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm.tensor_train import from_cores, from_dense, gather, integrate, to_cores
from jaxnm.tensor_train import quantics as qt
from tests.tensor_train.reference import full_of

EPS = np.finfo(np.float64).eps
POSITIONS = np.random.default_rng(0).integers(0, 2**30, 40)
X30 = POSITIONS / 2.0**30
encode_jitted = jax.jit(qt.encode, static_argnums=1)


def matrix(operator):
    """Dense, by the definition: cores are zero beyond their ranks."""
    whole = np.ones((1, 1, 1))
    for core in np.asarray(operator.cores):
        joined = np.einsum("ijr,rkls->ikjls", whole, core[: whole.shape[2]], optimize=True)
        rows, bits, columns, other, rank = joined.shape
        whole = joined.reshape(rows * bits, columns * other, rank)
    return whole[:, :, 0] * np.exp(float(operator.log_scale))


def vector(tt):
    return full_of(tt).ravel()


def close(found, wanted, many=16):
    """Within some epsilons of the largest entry, which is what a product of q cores of norm near one keeps."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=many * EPS * np.abs(wanted).max())


def second_difference(size, periodic=False):
    whole = 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    if periodic:
        whole[0, -1] -= 1
        whole[-1, 0] -= 1
    return whole


# ------------------------------------------------------------------------------------------------ indices


def test_digits_are_those_of_binary_numbers():
    digits = np.asarray(encode_jitted(jnp.arange(32), 5))
    assert ["".join(map(str, row)) for row in digits] == [format(i, "05b") for i in range(32)]
    assert digits.dtype == np.int32
    assert np.array_equal(qt.decode(digits), np.arange(32))
    assert np.array_equal(qt.decode(qt.encode(POSITIONS.reshape(4, 10), 30)), POSITIONS.reshape(4, 10))


def test_more_bits_than_an_int32_has():
    assert qt.encode(2**40 + 5, 44).tolist() == [int(bit) for bit in format(2**40 + 5, "044b")]
    assert qt.encode(jnp.int32(5), 40).tolist() == [0] * 37 + [1, 0, 1]
    assert float(qt.points(qt.encode(2**40 + 5, 44), start=1.0, spacing=2.0)) == 1 + 2.0 * (2**40 + 5)


def test_what_is_out_of_range_says_so():
    assert qt.encode(jnp.array([-1, 16]), 4).tolist() == [[-1] * 4] * 2
    assert int(qt.decode(jnp.array([2, 0]))) == -1
    assert np.isnan(qt.points(jnp.array([2, 0])))


def test_reversed_bits():
    tt = qt.polynomial(jnp.array([0.0, 1.0, 2.0]), 5)
    order = [int(format(i, "05b")[::-1], 2) for i in range(32)]
    close(vector(qt.reverse_bits(tt)), vector(tt)[order])


def test_functions_of_two_variables():
    """One group of modes a variable: [m, 2] indices become [m, 2 q] digits, and back."""
    indices = POSITIONS.reshape(20, 2)
    digits = qt.encode(indices, 30)
    assert digits.shape == (20, 2, 30)
    assert np.array_equal(qt.decode(digits), indices)
    product = from_cores(to_cores(qt.exp(-1.0, 30)) + to_cores(qt.sin(3.0, 30)))
    x, y = (indices / 2.0**30).T
    close(gather(product, digits.reshape(20, 60)), np.exp(-x) * np.sin(3 * y), 300)


# ------------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize("bits", [1, 2, 7])
def test_functions_against_dense_vectors(bits):
    x = -1 + np.arange(2**bits) * (3.0 / 2**bits)
    grid = {"start": -1.0, "spacing": 3.0 / 2**bits}
    close(vector(qt.exp(2.5, bits, **grid)), np.exp(2.5 * x))
    close(vector(qt.exp(-2.0 + 9.0j, bits, **grid)), np.exp((-2 + 9j) * x), 32)
    close(vector(qt.sin(20.0, bits, phase=0.3, **grid)), np.sin(20 * x + 0.3), 64)
    close(vector(qt.cos(20.0, bits, phase=0.3, **grid)), np.cos(20 * x + 0.3), 64)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("degree", [0, 1, 3, 6])
def test_polynomials_have_the_smallest_ranks(bits, degree):
    coefficients = np.random.default_rng(degree).normal(size=degree + 1)
    tt = qt.polynomial(jnp.asarray(coefficients), bits, start=-1.0, spacing=2.0 / 2**bits)
    wanted = np.polynomial.polynomial.polyval(-1 + np.arange(2**bits) * (2.0 / 2**bits), coefficients)
    close(vector(tt), wanted, 100)
    assert tt.ranks.tolist() == [min(degree + 1, 2**k, 2 ** (bits - k)) for k in range(bits + 1)]


def test_ranks_of_the_note():
    assert set(qt.exp(1.0, 12).ranks.tolist()) == {1}
    assert qt.sin(1.0, 12).ranks.tolist() == [1, *[2] * 11, 1]
    assert qt.step(1365, 12).ranks.tolist() == [1, *[2] * 11, 1]
    assert set(qt.delta(5, 12).ranks.tolist()) == {1}
    assert qt.polynomial(jnp.array([0.0, 1.0]), 12).ranks.tolist() == [1, *[2] * 11, 1]


@pytest.mark.parametrize(
    ("f", "eps", "rank"),
    [
        (np.sqrt, 1e-10, 7),
        (lambda x: 1 / (x + 0.01), 1e-9, 7),
        (lambda x: np.exp(-((x - 0.5) ** 2) / (2 * 0.05**2)), 1e-10, 9),
    ],
    ids=["sqrt", "pole", "gaussian"],
)
def test_functions_without_exact_ranks_are_compressed(f, eps, rank):
    """The singular values of their unfoldings, which NumPy gives, decide."""
    values = f(np.arange(4096) / 4096)
    tails = [np.linalg.svd(values.reshape(2**k, -1), compute_uv=False)[::-1] for k in range(1, 12)]
    needed = [int(np.sum(np.sqrt(np.cumsum(t**2)) > eps / np.sqrt(11) * np.linalg.norm(values))) for t in tails]
    tt = from_dense(jnp.asarray(values.reshape((2,) * 12)), max_rank=16, eps=eps, method="exact")
    assert tt.ranks.tolist() == [1, *needed, 1]
    assert max(needed) == rank


def test_integrals_are_sums_of_a_geometric_and_a_trigonometric_series():
    h = 2.0**-30
    found = [float(integrate(tt, [jnp.ones(2) / 2] * 30)) for tt in (qt.exp(-3.0, 30), qt.sin(5.0, 30))]
    # h sum r^i = h (1 - r^n) / (1 - r), with r = exp(-3 h) or exp(5 i h)
    wave = h * (np.exp(5j) - 1) * np.exp(-2.5j * h) / (2j * np.sin(2.5 * h))
    wanted = [h * math.expm1(-3) / math.expm1(-3 * h), wave.imag]
    np.testing.assert_allclose(found, wanted, rtol=100 * EPS)


@pytest.mark.parametrize("first", [-3, 0, 1, 21, 63, 64, 100])
def test_steps_and_single_ones(first):
    index = np.arange(64)
    for value in (first, jnp.int32(first)):
        assert np.array_equal(vector(qt.step(value, 6)), (index >= first).astype(float))
        assert np.array_equal(vector(qt.delta(value, 6)), (index == first).astype(float))


def test_thresholds_are_traced_under_vmap():
    firsts = jnp.array([-1, 5, 99], jnp.int32)
    values = jax.jit(jax.vmap(lambda first: gather(qt.step(first, 4), qt.encode(jnp.arange(16), 4))))(firsts)
    assert np.array_equal(values, np.arange(16)[None] >= np.asarray(firsts)[:, None])


def test_functions_at_two_to_the_thirty_points():
    digits = qt.encode(POSITIONS, 30)
    assert np.array_equal(qt.points(digits), X30)
    trains = [
        (qt.exp(-5.0, 30), np.exp(-5 * X30)),
        (qt.polynomial(jnp.array([0.5, -2.0, 3.0, 1.0]), 30), 0.5 - 2 * X30 + 3 * X30**2 + X30**3),
        (qt.step(357913942, 30), (POSITIONS >= 357913942).astype(float)),
        (qt.exp(-1.0, 30) * qt.sin(100.0, 30), np.sin(100 * X30) * np.exp(-X30)),
        # the nearest poles are 0.25 from parts of length 1/16: the Bernstein ellipse of 14 nodes is far inside
        (qt.interpolant(lambda x: 1 / (x + 0.25), 30, degree=13), 1 / (X30 + 0.25)),
    ]
    for tt, wanted in trains:
        # 30 products of numbers below one, and an argument of 100 rounded to its last bit
        close(gather(tt, digits), wanted, 300)


def test_a_wave_of_many_periods_is_as_accurate_as_its_argument():
    found = gather(qt.sin(1e6, 30), qt.encode(POSITIONS, 30))
    np.testing.assert_allclose(found, np.sin(1e6 * X30), rtol=0, atol=4e6 * EPS)


def test_large_exponentials_go_into_the_scale():
    tt = qt.exp(1e4, 20)
    assert np.isfinite(tt.cores).all()
    assert float(tt.log_scale) == pytest.approx(1e4 * (1 - 2.0**-20), rel=8 * EPS)


def test_derivatives_in_the_parameters():
    digits = qt.encode(jnp.array([3, 200]), 8)
    x = np.array([3, 200]) / 256

    @jax.jit
    def values(rate, frequency):
        return gather(qt.exp(rate, 8), digits) + gather(qt.sin(frequency, 8), digits)

    by_rate, by_frequency = jax.jacfwd(values, (0, 1))(1.5, 4.0)
    np.testing.assert_allclose(by_rate, x * np.exp(1.5 * x), rtol=1e-12)
    np.testing.assert_allclose(by_frequency, x * np.cos(4 * x), rtol=1e-12)


def test_single_precision_stays_single():
    start = jnp.float32(0)
    for tt in (
        qt.exp(1.0, 20, start=start),
        qt.sin(3.0, 20, start=start),
        qt.polynomial(jnp.array([0.0, 1.0], jnp.float32), 20),
        qt.step(5, 20, dtype=jnp.float32),
    ):
        assert tt.cores.dtype == tt.log_scale.dtype == jnp.float32
    index = POSITIONS[:20] // 2**10
    found = gather(qt.exp(1.0, 20, start=start), qt.encode(index, 20))
    np.testing.assert_allclose(found, np.exp(index / 2.0**20), rtol=30 * np.finfo(np.float32).eps)


# ------------------------------------------------------------------------------------------------ operators


@pytest.mark.parametrize("bits", [1, 2, 6])
def test_shifts(bits):
    size = 2**bits
    for by in {0, 1, -1, size - 1, -(size // 2)}:
        assert np.array_equal(matrix(qt.shift(bits, by)), np.eye(size, k=-by))
        assert np.array_equal(matrix(qt.shift(bits, by, periodic=True)), np.roll(np.eye(size), by, 0))
    assert qt.shift(bits).ranks.tolist() == qt.shift(bits, periodic=True).ranks.tolist() == [1, *[2] * (bits - 1), 1]


@pytest.mark.parametrize("bits", [1, 2, 6])
def test_laplacians(bits):
    size = 2**bits
    operator, ring = qt.laplacian(bits, spacing=0.5), qt.laplacian(bits, boundary="periodic")
    close(matrix(operator), second_difference(size) * 4)
    close(matrix(ring), second_difference(size, periodic=True))
    assert operator.ranks.tolist() == [1, *[3] * (bits - 1), 1]
    assert ring.ranks.tolist() == [1, *[2, *[3] * (bits - 2)][: bits - 1], 1]


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
def test_inverse_laplacian(bits):
    operator = qt.inverse_laplacian(bits, spacing=0.5)
    size = 2**bits
    found = matrix(operator)
    # the closed form that is also the one of Green's function
    i, j = np.indices((size, size))
    close(found, (np.minimum(i, j) + 1) * (size - np.maximum(i, j)) / (4 * (size + 1)))
    np.testing.assert_allclose(found @ second_difference(size) * 4, np.eye(size), atol=16 * EPS * size**2)
    inner = {1: [], 2: [4], 3: [4, 4]}.get(bits, [4, *[5] * (bits - 3), 4])
    assert operator.ranks.tolist() == [1, *inner, 1]


def test_inverse_laplacian_at_two_to_the_thirty_points():
    # the load is 1, so that the solution is (i + 1)(n - i) / 2 exactly
    ones = qt.exp(0.0, 30)
    found = gather(qt.inverse_laplacian(30) @ ones, qt.encode(POSITIONS, 30))
    wanted = (POSITIONS + 1.0) * (2.0**30 - POSITIONS) / 2
    close(found, wanted, 300)


@pytest.mark.parametrize("bits", [1, 2, 7])
def test_fourier_transform(bits):
    size = 2**bits
    turned = [int(format(k, f"0{bits}b")[::-1], 2) for k in range(size)]
    k, i = np.indices((size, size))
    wanted = np.exp(-2j * np.pi * (k * i % size) / size) / np.sqrt(size)
    exact = {"eps": 1e-14}
    # 22 nodes leave 1e-16, their products 7 bits of rounding; in the Frobenius norm, which is the root of size
    found, back = matrix(qt.fourier(bits, **exact)), matrix(qt.fourier(bits, inverse=True, **exact))
    assert np.linalg.norm(found - wanted[turned]) <= 1e-13 * np.sqrt(size)
    np.testing.assert_allclose(back @ found, np.eye(size), atol=1e-13)
    rounded = matrix(qt.fourier(bits, eps=1e-4))
    assert np.linalg.norm(rounded - wanted[turned]) <= 1e-4 * np.sqrt(size)


@pytest.mark.parametrize("eps", [1e-6, 1e-10])
def test_ranks_of_the_fourier_transform_are_the_best(eps):
    # far from the ends an unfolding is exp(-2 pi i x y) on the unit square, whose singular values a quadrature gives
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    kernel = np.exp(-2j * np.pi * np.outer(nodes, nodes)) * np.sqrt(np.outer(weights, weights))
    singular = np.linalg.svd(kernel, compute_uv=False)
    tails = np.sqrt(np.cumsum(singular[::-1] ** 2)[::-1]) / np.linalg.norm(singular)
    best = int(np.sum(tails > eps / np.sqrt(29)))
    assert qt.fourier(30, eps=eps).max_rank == best


def test_ranks_of_a_short_fourier_transform():
    assert qt.fourier(6, eps=1e-6).max_rank == 7
    assert qt.fourier(6, eps=1e-10).max_rank == 8


def test_fourier_transform_of_a_wave():
    # exp(2 pi i 5 x) has one frequency only
    wave = qt.exp(2j * np.pi * 5, 20)
    spectrum = qt.reverse_bits(qt.fourier(20) @ wave)
    found = gather(spectrum, qt.encode(jnp.array([0, 4, 5, 6, 77777]), 20))
    np.testing.assert_allclose(found, np.array([0, 0, 1, 0, 0]) * 2.0**10, atol=1e-9 * 2**10)
