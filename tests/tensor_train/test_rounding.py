"""Rounding: errors that are what they are said to be, ranks that come back, derivatives where QR and SVD have none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from tests.tensor_train.reference import (
    DTYPES,
    SHAPES,
    assert_well_formed,
    full,
    full_of,
    random_cores,
    tolerance,
    tt_svd,
)

EPS = np.finfo(np.float64).eps
SHAPE = SHAPES["unequal"]
METHODS = ("qr_svd", "gram")


def _decaying(shape=SHAPE, dtype="float64", seed=0, decay=0.1, max_rank=None):
    """A train of rank 4 whose singular values fall by `decay`, more or less; not orthogonal."""
    cores = random_cores(shape, 4, dtype, seed)
    weights = lambda r: (decay ** np.arange(r)).astype(dtype)
    return tensor_train.from_cores([core * weights(core.shape[2])[None, None] for core in cores], max_rank=max_rank)


def _size(array):
    return np.linalg.norm(np.ravel(array))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_that_of_truncated_svds_of_the_array(method, dtype):
    tt = _decaying(dtype=dtype).replace(log_scale=jnp.asarray(0.75, np.finfo(dtype).dtype))
    dense = full_of(tt)
    # inner products see singular values to the root of eps
    floor = tolerance(dtype) if method == "qr_svd" else 10 * float(np.finfo(dtype).eps) ** 0.5
    for max_rank in (2, 6):
        rounded, error = tensor_train.round(tt, max_rank=max_rank, method=method, return_error=True)
        expected, ranks = tt_svd(dense, max_rank, 0 if max_rank < 6 else 8 * float(np.finfo(dtype).eps))
        assert_well_formed(rounded, dtype)
        assert rounded.max_rank == max_rank
        if max_rank < 6 or method == "qr_svd":
            assert np.asarray(rounded.ranks).tolist() == ranks
        np.testing.assert_allclose(full_of(rounded), expected, rtol=0, atol=floor * _size(dense))
        assert error.dtype == np.finfo(dtype).dtype
        np.testing.assert_allclose(error, _size(full_of(rounded) - dense), rtol=1e-3, atol=floor * _size(dense))


@pytest.mark.parametrize("method", METHODS)
def test_eps_bounds_the_distance_and_the_ranks_are_the_smallest(method):
    """One program for all eps; the error that is returned is the distance, to all its digits."""
    tt = _decaying((5, 4, 6, 5), decay=0.03)
    dense = full_of(tt)
    run = jax.jit(lambda tt, eps: tensor_train.round(tt, eps=eps, method=method, return_error=True))
    for eps in (0.5, 1e-1, 1e-2, 1e-3, 1e-4):
        rounded, error = run(tt, eps)
        _, ranks = tt_svd(dense, 9, eps)
        assert np.asarray(rounded.ranks).tolist() == ranks
        distance = _size(full_of(rounded) - dense)
        assert distance <= eps * _size(dense)
        np.testing.assert_allclose(error, distance, rtol=1e-7, atol=1e-12 * _size(dense))
    assert run._cache_size() == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"eps": 1e-3}, {"max_rank": 2}], ids=str)
def test_rounding_twice_is_rounding_once(method, options):
    tt = _decaying()
    once = tensor_train.round(tt, method=method, **options)
    twice, error = tensor_train.round(once, method=method, return_error=True, **options)
    assert np.asarray(once.ranks).tolist() == np.asarray(twice.ranks).tolist()
    size = _size(full_of(tt))
    assert _size(full_of(once) - full_of(twice)) < 100 * EPS * size
    assert error < (1e-7 if method == "gram" else 100 * EPS) * size


@pytest.mark.parametrize(("d", "rank", "seed"), [(4, 3, 0), (10, 5, 1), (20, 8, 2)])
def test_twice_a_train_comes_back_to_its_ranks(d, rank, seed):
    cores = random_cores((4,) * d, rank, seed=seed)
    tt = tensor_train.from_cores(cores)
    bounds = [min(4 ** min(k, d - k), 4**9) for k in range(d + 1)]
    for options in ({"eps": 1e-14}, {"eps": 0.0}, {"eps": 1e-7, "method": "gram"}):
        rounded = tensor_train.round(tt + tt, **options)
        assert_well_formed(rounded)
        assert np.asarray(rounded.ranks).tolist() == np.minimum(tt.ranks, bounds).tolist()
        assert tensor_train.distance(rounded, 2.0 * tt) < 1e-13 * d * tensor_train.norm(tt)


def test_cores_are_left_orthogonal():
    rounded = tensor_train.round(_decaying(dtype="complex128"), max_rank=3)
    for core in np.asarray(rounded.cores)[:-1]:
        gram = np.einsum("ris,rit->st", core.conj(), core)
        rank = int(np.sum(np.diag(gram).real > 0.5))
        np.testing.assert_allclose(gram, np.diag((np.arange(3) < rank).astype(float)), atol=1e-14)


# ------------------------------------------------------------------------------------------------ randomized


@pytest.mark.exhaustive
def test_randomized_rounding_of_a_sum_is_exact_at_its_rank():
    """Six trains, of which two differ: the rank is 2 + 3, and five padded ranks of eighteen are found."""
    key = jax.random.key(0)
    for dtype in ("float32", "complex128"):
        a, b = (tensor_train.from_cores(random_cores((6, 5, 7, 6), rank, dtype, seed=rank)) for rank in (2, 3))
        total = a + b + a + b + a + a
        rounded = tensor_train.round(total, max_rank=5, eps=tolerance(dtype), method="randomized", key=key)
        assert_well_formed(rounded, dtype)
        assert (
            np.asarray(rounded.ranks).tolist() == (np.asarray(a.ranks) + np.asarray(b.ranks) - [1, 0, 0, 0, 1]).tolist()
        )
        expected = 4 * full_of(a) + 2 * full_of(b)
        assert _size(full_of(rounded) - expected) < tolerance(dtype, 1000) * _size(expected)


def test_randomized_rounding_is_near_the_best():
    """Halko, Martinsson, Tropp: with eight probes more than the rank the error is a small multiple of the best one."""
    tt = _decaying((6, 6, 6, 6), decay=0.3)
    tt = tt + _decaying((6, 6, 6, 6), seed=1, decay=0.3)
    best = _size(tt_svd(full_of(tt), 3)[0] - full_of(tt))
    for seed in range(3):
        rounded = tensor_train.round(tt, max_rank=3, method="randomized", key=jax.random.key(seed))
        assert best * 0.99 < _size(full_of(rounded) - full_of(tt)) < 3 * best


def test_randomized_rounding_refuses_a_derivative():
    tt = _decaying()
    function = lambda tt: tensor_train.round(tt, max_rank=2, method="randomized", key=jax.random.key(0)).cores.sum()
    with pytest.raises(TypeError, match="round: method 'randomized' is differentiated"):
        jax.grad(lambda cores: function(tt.replace(cores=cores)))(tt.cores)


# ------------------------------------------------------------------------------------------------ derivatives


@partial(jax.jit, static_argnums=(2, 3, 4))
def _gradient(tt, weights, method, max_rank, pad=0):
    """Of a linear function of the rounded array and of its norm, by the cores, which are padded first."""

    def function(cores):
        padded = tt.replace(cores=jnp.pad(cores, ((0, 0), (0, pad), (0, 0), (0, pad))))
        rounded = tensor_train.round(padded, max_rank=max_rank, method=method)
        return tensor_train.dot(weights, rounded) + tensor_train.norm(rounded)

    return jax.value_and_grad(function)(tt.cores)


def _reference_slope(tt, weights, max_rank, direction, step=1e-6):
    """The same function of truncated SVDs in NumPy, by central differences along a direction in the cores."""

    def function(cores):
        array = tt_svd(full_of(tt.replace(cores=jnp.asarray(cores))), max_rank)[0]
        return np.vdot(weights, array) + _size(array)

    cores = np.asarray(tt.cores)
    return (function(cores + step * direction) - function(cores - step * direction)) / (2 * step)


def _inside(tt, seed):
    """A random direction that respects the padding."""
    rng = np.random.default_rng(seed)
    cores = [rng.normal(size=core.shape) for core in tensor_train.to_cores(tt)]
    return np.asarray(tensor_train.from_cores(cores, max_rank=tt.max_rank).cores)


def _repeated(shape, weights=None, max_rank=None):
    """One where all indices agree: singular values that are all one at every bond; or `weights`."""
    n = min(shape)
    eye = np.eye(n)[:, :, None] * np.eye(n)[:, None]
    first = eye.sum(0)[None] if weights is None else np.einsum("ris,s->is", eye, weights)[None]
    cores = [first, *[eye] * (len(shape) - 2), eye.sum(2)[:, :, None]]
    padded = [np.pad(core, ((0, 0), (0, size - n), (0, 0))) for core, size in zip(cores, shape, strict=True)]
    return tensor_train.from_cores(padded, max_rank=max_rank)


def _twice(tt):
    return tt + tt


# of one shape and padding, so that they share programs
MODES, PADDED = (3, 4, 3, 3), 6
CASES = {
    "truncated": (lambda: _decaying(MODES, decay=0.5, max_rank=PADDED), 2),
    "exact, in a sum": (lambda: _twice(tensor_train.from_cores(random_cores(MODES, 2), max_rank=3)), 2),
    "equal ones, all kept": (lambda: _repeated(MODES, max_rank=PADDED), 3),
    "equal ones in a sum": (lambda: _twice(_repeated(MODES)), 3),
    "equal ones kept, others dropped": (lambda: _repeated(MODES, np.array([2.0, 2.0, 0.5]), PADDED), 2),
    "equal ones dropped": (lambda: _repeated(MODES, np.array([2.0, 0.5, 0.5]), PADDED), 1),
    "padding alone": (lambda: tensor_train.from_cores(random_cores(MODES, 2), max_rank=PADDED), 3),
    "one mode": (lambda: tensor_train.from_cores(random_cores((4,), 1), max_rank=2), 2),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_differences_and_do_not_see_padding(method, case):
    make, max_rank = CASES[case]
    tt = make()
    weights = tensor_train.from_cores(random_cores(tt.shape, 2, seed=5))
    value, gradient = _gradient(tt, weights, method, max_rank)
    array = tt_svd(full_of(tt), max_rank)[0]
    np.testing.assert_allclose(value, np.vdot(full_of(weights), array) + _size(array), rtol=1e-7)
    assert np.isfinite(gradient).all()
    direction = _inside(tt, 7)
    slope = _reference_slope(tt, full_of(weights), max_rank, direction)
    # rounding of values over the step, and the step squared
    size = _size(gradient) * _size(direction)
    np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=0, atol=1e-7 * size)
    if max_rank > 1:
        _, padded = _gradient(tt, weights, method, max_rank, 3)
        np.testing.assert_allclose(padded, gradient, rtol=0, atol=1e-9 * _size(gradient))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_at_the_zero_train_and_at_ties_are_finite(method, dtype):
    tie = _repeated((3, 3, 3))
    tie = tie.replace(cores=tie.cores.astype(dtype), log_scale=tie.log_scale.astype(dtype))
    weights = tensor_train.from_cores(random_cores((3, 3, 3), 2, dtype, seed=5))
    for tt, max_rank in ((0.0 * tie, 2), (tie, 2)):
        value, gradient = _gradient(tt, weights, method, max_rank)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_gradients_of_complex_trains_are_those_of_differences():
    cores, direction = (np.asarray(_decaying(dtype="complex128", seed=seed, decay=0.5).cores) for seed in (0, 1))
    tt = _decaying(dtype="complex128", decay=0.5)
    weights = tensor_train.from_cores(random_cores(SHAPE, 2, "complex128", seed=5))

    def function(step):
        moved = tt.replace(cores=cores + step * direction)
        return tensor_train.dot(weights, tensor_train.round(moved, max_rank=2)).real

    def reference(step):
        array = tt_svd(full_of(tt.replace(cores=cores + step * direction)), 2)[0]
        return np.vdot(full_of(weights), array).real

    slope = jax.jvp(function, (0.0,), (1.0,))[1]
    np.testing.assert_allclose(slope, (reference(1e-6) - reference(-1e-6)) / 2e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_rounded_as_its_members_and_a_bad_one_harms_no_other(method):
    members = [_decaying(seed=seed) for seed in range(3)]
    broken = members[1].replace(cores=members[1].cores.at[2, 0, 0, 0].set(jnp.nan))
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), members[0], broken, members[2])
    rounded, errors = jax.vmap(lambda tt: tensor_train.round(tt, max_rank=2, method=method, return_error=True))(batch)
    for k in (0, 2):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], rounded)
        expected = tt_svd(full_of(members[k]), 2)[0]
        np.testing.assert_allclose(full_of(one), expected, rtol=0, atol=1e-7 * _size(expected))
    assert np.isnan(np.asarray(errors)).tolist() == [False, True, False]


@pytest.mark.exhaustive
def test_ranks_of_sums_of_functions():
    """sum x has rank 2 and sin(sum x) too, built as sums and products of trains of rank 1."""
    d, x = 5, np.linspace(0.1, 1, 4)
    one = np.ones((1, 4, 1))
    alone = lambda k: tensor_train.from_cores([x[None, :, None] if j == k else one for j in range(d)])
    total = alone(0)
    for k in range(1, d):
        total = total + alone(k)
    assert np.asarray(tensor_train.round(total).ranks).tolist() == [1, 2, 2, 2, 2, 1]
    power = total * total
    assert np.asarray(tensor_train.round(power, eps=1e-13).ranks).tolist() == [1, 3, 3, 3, 3, 1]
    wave = tensor_train.from_cores([np.exp(1j * x)[None, :, None]] * d)
    sine = tensor_train.add(wave, tensor_train.scale(wave.replace(cores=wave.cores.conj()), -1.0 + 0j))
    assert np.asarray(tensor_train.round(sine).ranks).tolist() == [1, 2, 2, 2, 2, 1]
    sums = x[:, None, None, None, None] + x[:, None, None, None] + x[:, None, None] + x[:, None] + x
    np.testing.assert_allclose(full(tensor_train.to_cores(tensor_train.round(sine))) / 2j, np.sin(sums), atol=1e-13)
