"""Entries, inner products, norms, integrals and marginals, against arrays and closed forms; hundreds of sites."""

from math import erf, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from tests.tensor_train.reference import DTYPES, SHAPES, assert_well_formed, full, full_of, random_cores, tolerance

every_kind = pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((SHAPES["unequal"], dtype) for dtype in DTYPES),
        (SHAPES["one mode"], "float32"),
        (SHAPES["one mode"], "complex128"),
    ],
)
EPS = np.finfo(np.float64).eps


def _train(shape, rank, dtype="float64", seed=0, log_scale=0.0):
    tt = tensor_train.from_cores(random_cores(shape, rank, dtype, seed), max_rank=rank + 1)
    return tt.replace(log_scale=jnp.asarray(log_scale, np.finfo(dtype).dtype))


@every_kind
def test_entries_products_norms_and_sums_are_those_of_arrays(shape, dtype):
    a, b = _train(shape, 3, dtype, log_scale=0.75), _train(shape, 2, dtype, 1, log_scale=-0.5)
    dense_a, dense_b = full_of(a), full_of(b)
    size = np.linalg.norm(dense_a.ravel())
    close = lambda result, expected, scale: np.testing.assert_allclose(
        result, expected, rtol=0, atol=tolerance(dtype) * scale
    )

    indices = np.random.default_rng(2).integers(0, shape, (7, len(shape)), dtype=np.int32)
    entries = tensor_train.gather(a, indices)
    assert entries.dtype == dtype
    close(entries, dense_a[tuple(indices.T)], np.abs(dense_a).max())

    product = tensor_train.dot(a, b)
    assert product.dtype == dtype
    close(product, np.vdot(dense_a, dense_b), size * np.linalg.norm(dense_b.ravel()))

    distance = np.linalg.norm((dense_a - dense_b).ravel())
    for result, expected in ((tensor_train.norm(a), size), (tensor_train.distance(a, b), distance)):
        assert result.dtype == np.finfo(dtype).dtype
        close(result, expected, size)

    weights = [np.random.default_rng(k).normal(size=n).astype(dtype) for k, n in enumerate(shape)]
    total = dense_a
    for weight in weights:
        total = np.tensordot(weight.astype(dense_a.dtype), total, 1)
    result = tensor_train.integrate(a, weights)
    assert result.dtype == dtype
    close(result, total, np.abs(dense_a).sum())


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_marginals_are_those_of_arrays(dtype):
    shape = SHAPES["unequal"]
    tt = _train(shape, 3, dtype, log_scale=0.75)
    dense = full_of(tt)
    weights = [np.random.default_rng(k).normal(size=n).astype(dtype) for k, n in enumerate(shape)]
    close = lambda result, expected: np.testing.assert_allclose(
        full_of(result), expected, rtol=0, atol=tolerance(dtype) * np.abs(dense).sum()
    )
    for modes in ([0], [3], [-1], [1, 2], [0, 3], [0, 1, 2, 3]):
        kept = [mode % 4 for mode in modes]
        result = tensor_train.marginal(tt, modes)
        assert_well_formed(result, dtype)
        assert result.shape == tuple(shape[k] for k in kept)
        others = tuple(k for k in range(4) if k not in kept)
        close(result, dense.sum(others))
    double = [weight.astype(dense.dtype) for weight in weights]
    close(tensor_train.marginal(tt, [1, 3], weights), np.einsum("ijkl,i,k->jl", dense, double[0], double[2]))


def test_indices_that_are_not_there_give_nan():
    tt = _train((3, 5, 2), 2)
    bad = np.array([[3, 0, 0], [0, 5, 0], [0, 0, 2], [-1, 0, 0], [2**32, 0, 0], [0, -(2**32), 0]])
    assert np.isnan(tensor_train.gather(tt, bad)).all()
    for dtype in (np.int8, np.uint8, np.uint32, np.int64):
        last = tensor_train.gather(tt, np.array([[2, 4, 1]], dtype))
        np.testing.assert_allclose(last, full_of(tt)[2, 4, 1], rtol=1e-13)


@pytest.mark.exhaustive
def test_distances_of_nearly_equal_trains_keep_their_digits():
    """b = a + 1e-9 |a| e with |e| = 1: dot needs the difference of numbers that agree to 18 digits."""
    a, e = _train((6,) * 8, 4), _train((6,) * 8, 1, seed=1)
    size = tensor_train.norm(a)
    wanted = 1e-9 * size
    b = a + tensor_train.scale(e, wanted / tensor_train.norm(e))
    assert abs(tensor_train.distance(a, b) - wanted) < 100 * EPS * size
    squares = tensor_train.dot(a, a) - 2 * tensor_train.dot(a, b) + tensor_train.dot(b, b)
    assert abs(jnp.sqrt(jnp.maximum(squares, 0)) - wanted) > 0.1 * wanted
    assert tensor_train.distance(a, a) < 100 * EPS * size


def _log_norm(cores):
    """ln of the norm of a train, by inner products in double precision that are scaled at every site."""
    between, logarithm = np.ones((1, 1)), 0.0
    for core in cores:
        core = np.asarray(core, np.float64)
        between = np.einsum("ab,aic,bid->cd", between, core, core, optimize=True)
        size = np.abs(between).max()
        between, logarithm = between / size, logarithm + np.log(size)
    return 0.5 * (logarithm + np.log(between[0, 0]))


def _log_entry(cores, index):
    """(sign, ln of the absolute value) of an entry."""
    row, logarithm = np.ones(1), 0.0
    for core, i in zip(cores, index, strict=True):
        row = row @ np.asarray(core[:, i], np.float64)
        size = np.abs(row).max()
        row, logarithm = row / size, logarithm + np.log(size)
    return np.sign(row[0]), logarithm + np.log(abs(row[0]))


@pytest.mark.exhaustive
def test_five_hundred_sites_in_float32():
    """The norm of the train is e^1200 or so, its entries are e^800: no float32 number is either."""
    d, n = 500, 3
    cores = random_cores((n,) * d, 8, "float32")
    tt = tensor_train.from_cores(cores)
    log_norm = _log_norm(cores)
    assert log_norm > 2 * np.log(np.finfo(np.float32).max)
    # not NaN where it is too large
    assert np.isinf(tensor_train.norm(tt))
    assert np.isinf(tensor_train.dot(tt, tt))
    # 500 products round, and a scale of 1000 has an error of 1000 eps
    allowed = 2000 * np.finfo(np.float32).eps
    unit = tt.replace(log_scale=jnp.float32(-log_norm))
    np.testing.assert_allclose(tensor_train.norm(unit), 1, rtol=allowed)
    np.testing.assert_allclose(tensor_train.dot(unit, unit), 1, rtol=2 * allowed)
    rounded = tensor_train.round(unit)
    assert np.isfinite(rounded.cores).all()
    np.testing.assert_allclose(tensor_train.norm(rounded), 1, rtol=allowed)

    indices = np.random.default_rng(1).integers(0, n, (5, d))
    signs, logarithms = np.array([_log_entry(cores, index) for index in indices]).T
    middle = np.mean(logarithms)
    entries = tensor_train.gather(tt.replace(log_scale=jnp.float32(-middle)), indices)
    np.testing.assert_allclose(np.sign(entries), signs)
    np.testing.assert_allclose(np.log(np.abs(entries)), logarithms - middle, atol=2 * allowed * np.exp(1))
    # of the train of norm one the entries vanish, and nothing is NaN
    assert np.isfinite(tensor_train.gather(unit, indices)).all()


def test_the_zero_train_has_norm_zero_and_a_finite_gradient():
    tt = _train((3, 4, 2), 2)
    zero = 0.0 * tt
    assert float(tensor_train.norm(zero)) == 0
    assert float(tensor_train.dot(zero, tt)) == 0
    assert not np.asarray(tensor_train.gather(zero, jnp.zeros((2, 3), jnp.int32))).any()
    gradient = jax.grad(lambda cores: tensor_train.norm(zero.replace(cores=cores)))(zero.cores)
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_gradient_of_the_norm_is_that_of_the_array(dtype):
    cores = [jnp.asarray(core) for core in random_cores((3, 4, 2), 2, dtype)]

    def of_array(cores):
        array = jnp.einsum("ria,asb,btq->ristq", *cores)
        return jnp.sqrt(jnp.sum(array.real**2 + array.imag**2))

    of_train = lambda cores: tensor_train.norm(tensor_train.from_cores(cores, max_rank=4))
    expected = jax.grad(of_array)(cores)
    for found, wanted in zip(jax.grad(of_train)(cores), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)
    slope = jax.grad(lambda scale: tensor_train.norm(tensor_train.from_cores(cores).replace(log_scale=scale)))(0.0)
    np.testing.assert_allclose(slope, of_array(cores), rtol=1e-13)


def test_integrals_in_a_hundred_dimensions_and_their_derivatives():
    """Genz: exp(-a^2 sum (x - 1/2)^2) is of rank one, cos(2 pi u + a sum x) of rank two; both have closed integrals."""
    d, u = 100, 0.3
    nodes, weights = np.polynomial.legendre.leggauss(20)
    x, weights = jnp.asarray((nodes + 1) / 2), [jnp.asarray(weights / 2)] * d

    def gaussian(a):
        return tensor_train.integrate(
            tensor_train.from_cores([jnp.exp(-((a * (x - 0.5)) ** 2))[None, :, None]] * d), weights
        )

    def oscillatory(a):
        c, s = jnp.cos(a * x), jnp.sin(a * x)
        turn = jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]).swapaxes(1, 2)
        first = jnp.asarray([np.cos(2 * pi * u), -np.sin(2 * pi * u)])[:, None, None] * turn
        cores = [jnp.sum(first, 0)[None], *[turn] * (d - 2), turn[:, :, :1]]
        return tensor_train.integrate(tensor_train.from_cores(cores), weights)

    a = 0.4
    wanted = (sqrt(pi) / a * erf(a / 2)) ** d
    one = sqrt(pi) / a * erf(a / 2)
    slope = d * wanted / one * (np.exp(-(a**2) / 4) / a - one / a)
    value, derivative = jax.jit(jax.value_and_grad(gaussian))(a)
    # a power of a hundred has a hundred times the rounding of its base
    np.testing.assert_allclose([value, derivative], [wanted, slope], rtol=1e-12)

    factor = lambda a: (np.exp(1j * a) - 1) / (1j * a)
    wanted = np.real(np.exp(2j * pi * u) * factor(a) ** d)
    step = (np.exp(1j * a) - factor(a)) / a
    slope = np.real(np.exp(2j * pi * u) * d * factor(a) ** (d - 1) * step)
    value, derivative = jax.jit(jax.value_and_grad(oscillatory))(a)
    np.testing.assert_allclose([value, derivative], [wanted, slope], rtol=1e-11)


def test_a_batch_of_trains_has_the_products_of_its_members():
    members = [_train((3, 4, 2), 2, seed=seed) for seed in range(4)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    indices = jnp.asarray([[0, 1, 1], [2, 3, 0]], jnp.int32)
    both = jax.jit(jax.vmap(lambda tt: (tensor_train.gather(tt, indices), tensor_train.norm(tt))))
    entries, norms = both(batch)
    for k, member in enumerate(members):
        dense = full_of(member)
        np.testing.assert_allclose(entries[k], dense[tuple(np.asarray(indices).T)], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(norms[k], np.linalg.norm(dense.ravel()), rtol=1e-13)


@pytest.mark.parametrize("name", ["dot", "norm", "distance", "gather", "add", "hadamard", "round", "marginal"])
def test_programs_do_not_grow_with_the_number_of_sites(name):
    """So that they take as long to compile for two hundred sites as for ten."""

    def instructions(d):
        tt = _train((2,) * d, 2)
        if name in ("norm", "round"):
            function = lambda cores: getattr(tensor_train, name)(tt.replace(cores=cores))
        elif name == "marginal":
            function = lambda cores: tensor_train.marginal(tt.replace(cores=cores), [1, d - 1])
        elif name == "gather":
            function = lambda cores: tensor_train.gather(tt.replace(cores=cores), np.zeros((3, d), np.int32))
        else:
            function = lambda cores: getattr(tensor_train, name)(tt.replace(cores=cores), tt)
        return len(jax.jit(function).lower(tt.cores).as_text().splitlines())

    assert instructions(10) == instructions(200)


def test_a_train_of_one_entry_a_mode():
    cores = random_cores((1, 1, 1), 2)
    tt = tensor_train.from_cores(cores)
    np.testing.assert_allclose(tensor_train.norm(tt), abs(full(cores)[0, 0, 0]), rtol=1e-14)
