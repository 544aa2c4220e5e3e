"""Sampling against exact probabilities, extremes against brute force, and files of trains."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm.status import Status
from jaxnm.tensor_train import TT, from_cores, gather, marginal, scale
from jaxnm.tensor_train import quantics as qt
from jaxnm.tensor_train.extremes import argmax, argmin
from jaxnm.tensor_train.sampling import log_prob, sample
from jaxnm.tensor_train.storage import load, save
from tests.tensor_train.reference import full_of

SHAPE = (3, 2, 4, 3)
ALL = np.argwhere(np.ones(SHAPE))
NUM = 20000
GIVEN = np.array([-1, 1, -1, 2])
KINDS = ("nonnegative", "square")
extremes_of_many = jax.jit(jax.vmap(lambda tt: (argmax(tt, beam=20), argmin(tt, beam=20))))


def random_train(seed, shape, rank, kind="square", max_rank=None):
    rng = np.random.default_rng(seed)
    ranks = [1, *[rank] * (len(shape) - 1), 1]
    draw = rng.uniform if kind == "nonnegative" else rng.normal
    return from_cores([draw(size=(ranks[k], n, ranks[k + 1])) for k, n in enumerate(shape)], max_rank=max_rank)


def rank_one(vectors):
    return from_cores([np.asarray(vector)[None, :, None] for vector in vectors])


def probabilities(tt, kind, given=None):
    whole = full_of(tt) if kind == "nonnegative" else full_of(tt) ** 2
    for mode, index in enumerate([] if given is None else given):
        if index >= 0:
            others = np.arange(whole.shape[mode]) != index
            whole[(slice(None),) * mode + (others,)] = 0
    return whole / whole.sum()


def follows(indices, wanted):
    """Pearson's chi-square is below its mean plus six standard deviations; keys are fixed, so that it stays so."""
    counts = np.zeros(wanted.shape)
    np.add.at(counts, tuple(np.asarray(indices).T), 1)
    expected, possible = len(indices) * wanted, wanted > 0
    if counts[~possible].any():
        return False
    freedom = possible.sum() - 1
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    return statistic < freedom + 6 * math.sqrt(2 * freedom)


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_train(kind):
    tt = random_train(0, SHAPE, 3, kind)
    wanted = probabilities(tt, kind)
    samples = sample(jax.random.key(0), tt, NUM, kind=kind)
    assert samples.indices.shape == (NUM, 4)
    assert samples.indices.dtype == samples.status.dtype == jnp.int32
    assert int(samples.status) == Status.OK
    assert float(jnp.max(samples.clipped)) == 0
    assert follows(samples.indices, wanted)
    # the test can tell: the law of another train is refused
    assert not follows(samples.indices, probabilities(random_train(1, SHAPE, 3, kind), kind))
    exact = np.log(wanted[tuple(np.asarray(samples.indices).T)])
    np.testing.assert_allclose(samples.log_prob, exact, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_conditional_samples(kind):
    tt = random_train(0, SHAPE, 3, kind)
    wanted = probabilities(tt, kind, GIVEN)
    samples = sample(jax.random.key(1), tt, NUM, kind=kind, given=GIVEN)
    assert np.all(samples.indices[:, 1] == 1)
    assert np.all(samples.indices[:, 3] == 2)
    assert follows(samples.indices, wanted)
    np.testing.assert_allclose(samples.log_prob, log_prob(tt, samples.indices, kind=kind, given=GIVEN), atol=1e-10)
    np.testing.assert_allclose(jnp.exp(log_prob(tt, ALL, kind=kind, given=GIVEN)), wanted.ravel(), atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_exact_and_sum_to_one(kind):
    tt = random_train(2, SHAPE, 3, kind).replace(log_scale=jnp.array(2000.0))
    found = jnp.exp(log_prob(tt, ALL, kind=kind))
    np.testing.assert_allclose(found, probabilities(tt.replace(log_scale=jnp.zeros(())), kind).ravel(), rtol=1e-10)
    assert float(jnp.sum(found)) == pytest.approx(1, abs=1e-13)


def test_a_marginal_law_is_that_of_the_marginal_train():
    tt = random_train(3, SHAPE, 3, "nonnegative")
    samples = sample(jax.random.key(2), tt, NUM)
    wanted = full_of(marginal(tt, [1, 2]))
    assert follows(samples.indices[:, 1:3], wanted / wanted.sum())


def test_samples_of_two_to_the_thirty_points():
    # the density exp(-8 x) on [0, 1): its mean and its variance are those of a truncated exponential
    samples = sample(jax.random.key(3), qt.exp(-8.0, 30), NUM)
    x = np.asarray(qt.points(samples.indices))
    mean = 1 / 8 - 1 / (math.exp(8) - 1)
    variance = 1 / 64 - math.exp(8) / (math.exp(8) - 1) ** 2
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / NUM)
    assert x.var() == pytest.approx(variance, rel=0.06)
    # and |sin|^2 has no mass at its zeros
    assert float(jnp.max(log_prob(qt.sin(math.pi, 30), jnp.zeros((1, 30), jnp.int32), kind="square"))) == -math.inf


def test_hundreds_of_modes_neither_overflow_nor_vanish():
    rng = np.random.default_rng(4)
    vectors = 1e30 * rng.uniform(0.1, 1, (300, 5)).astype(np.float32)
    tt = rank_one(vectors)
    samples = sample(jax.random.key(4), tt, 50)
    assert samples.log_prob.dtype == jnp.float32
    laws = np.log(vectors.astype(float) / vectors.astype(float).sum(1, keepdims=True))
    exact = np.take_along_axis(laws, np.asarray(samples.indices).T, 1).sum(0)
    # 300 numbers near -1.7 are added in float32
    np.testing.assert_allclose(samples.log_prob, exact, rtol=1e-4)
    np.testing.assert_allclose(log_prob(tt, samples.indices), exact, rtol=1e-4)
    squared = np.log(vectors.astype(float) ** 2 / (vectors.astype(float) ** 2).sum(1, keepdims=True))
    exact = np.take_along_axis(squared, np.asarray(samples.indices).T, 1).sum(0)
    np.testing.assert_allclose(log_prob(tt, samples.indices, kind="square"), exact, rtol=1e-4)


def test_zeros_are_never_drawn_and_their_logarithm_is_minus_infinity():
    tt = rank_one([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    samples = sample(jax.random.key(5), tt, 200)
    assert np.all(np.asarray(samples.indices) == np.array([1, 0, 2]))
    assert log_prob(tt, jnp.array([[1, 0, 2], [0, 0, 2]])).tolist() == [0.0, -math.inf]
    assert np.isnan(log_prob(tt, jnp.array([[1, 0, 3], [-1, 0, 2], [1, 2**32, 2]]))).all()


def test_negative_numbers_are_clipped_and_reported():
    tt = rank_one([[3.0, -1.0, 1.0]])
    samples = sample(jax.random.key(6), tt, NUM)
    assert int(samples.status) == Status.OUT_OF_RANGE
    np.testing.assert_allclose(samples.clipped, 0.2, rtol=1e-12)
    assert follows(samples.indices, np.array([0.75, 0, 0.25]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_distribution_is_flagged(kind):
    tt = random_train(0, SHAPE, 2, "nonnegative")
    for bad, status in ((0.0 * tt, Status.OUT_OF_RANGE), (math.nan * tt, Status.NONFINITE_INPUT)):
        samples = sample(jax.random.key(0), bad, 3, kind=kind)
        assert int(samples.status) == status
        assert np.all(np.asarray(samples.indices) == -1)
        assert np.isnan(samples.log_prob).all()
        assert np.isnan(log_prob(bad, ALL[:2], kind=kind)).all()
    nowhere = sample(jax.random.key(0), tt, 3, kind=kind, given=jnp.array([-1, 2, -1, -1]))
    assert int(nowhere.status) == Status.OUT_OF_RANGE


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_log_prob(kind):
    tt = random_train(5, (3, 2, 3), 2, kind)
    indices = jnp.array([[0, 1, 2], [2, 0, 1]])
    mean = jax.jit(lambda cores: jnp.mean(log_prob(tt.replace(cores=cores), indices, kind=kind)))
    direction = jnp.asarray(np.random.default_rng(0).normal(size=tt.cores.shape)) * (tt.cores != 0).astype(float)
    step = 1e-6
    difference = (mean(tt.cores + step * direction) - mean(tt.cores - step * direction)) / (2 * step)
    slope = jnp.sum(jax.grad(mean)(tt.cores) * direction)
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)


def test_batches_of_trains_and_keys():
    trains = [random_train(seed, (3, 4), 2, "nonnegative") for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains)
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key, tt: sample(key, tt, 5))(keys, batch)
    for k, tt in enumerate(trains):
        assert np.array_equal(together.indices[k], sample(keys[k], tt, 5).indices)


def test_small_probabilities_of_what_is_given_in_single_precision():
    """Given its first index, all entries are 1e-25, whose square is no number of float32."""
    first = np.array([[[1.0, 0.0], [0.0, 1e-25]]], np.float32)
    middle = np.stack([np.eye(2, dtype=np.float32)] * 3, 1)
    tt = from_cores([first, middle, np.ones((2, 2, 1), np.float32)])
    samples = sample(jax.random.key(7), tt, 300, kind="square", given=jnp.array([1, -1, -1]))
    assert int(samples.status) == Status.OK
    assert follows(samples.indices[:, 1:], np.full((3, 2), 1 / 6))
    np.testing.assert_allclose(samples.log_prob, -math.log(6), rtol=1e-5)


def test_complex_trains_have_squares():
    tt = random_train(0, SHAPE, 3)
    tt = tt.replace(cores=jax.lax.complex(tt.cores, random_train(1, SHAPE, 3).cores))
    wanted = np.abs(full_of(tt)) ** 2 / np.sum(np.abs(full_of(tt)) ** 2)
    np.testing.assert_allclose(jnp.exp(log_prob(tt, ALL, kind="square")), wanted.ravel(), atol=1e-14)
    assert follows(sample(jax.random.key(8), tt, NUM, kind="square").indices, wanted)


# ------------------------------------------------------------------------------------------------ extremes


@pytest.mark.exhaustive
@pytest.mark.parametrize("rank", [1, 3])
def test_extremes_of_random_trains(rank):
    trains = [random_train(seed, (4, 3, 2, 4, 3), rank, max_rank=3) for seed in range(20)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains)
    large, small = extremes_of_many(batch)
    for k, tt in enumerate(trains):
        whole = full_of(tt)
        assert tuple(np.asarray(large.index[k])) == np.unravel_index(whole.argmax(), whole.shape)
        assert tuple(np.asarray(small.index[k])) == np.unravel_index(whole.argmin(), whole.shape)
        np.testing.assert_allclose([large.value[k], small.value[k]], [whole.max(), whole.min()], rtol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_in_a_hundred_modes(dtype):
    """Both extremes of a product of factors of both signs, by dynamic programming over the pair of them."""
    vectors = np.random.default_rng(0).normal(size=(3, 100, 4)).astype(dtype)
    trains = [from_cores(list(factors[:, None, :, None]), max_rank=2) for factors in vectors]
    large, small = extremes_of_many(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains))
    for k, factors in enumerate(vectors.astype(float)):
        largest = smallest = 1.0
        for factor in factors:
            reached = np.outer([largest, smallest], factor)
            largest, smallest = reached.max(), reached.min()
        found = np.array([large.value[k], small.value[k]], float)
        np.testing.assert_allclose(found, [largest, smallest], rtol=200 * float(np.finfo(dtype).eps))


def test_sums_in_a_hundred_modes():
    """Of entries sum_k g_k(i_k), of both signs and of ranks 2, each mode has its own part in both extremes."""
    parts = np.random.default_rng(2).normal(size=(3, 100, 4))
    ones = np.ones((3, 100, 4))
    inner = np.stack([np.stack([ones, parts], -1), np.stack([0 * ones, ones], -1)], 2)
    trains = [from_cores([c[0, :1], *c[1:-1], c[-1, :, :, 1:]]) for c in inner]
    large, small = extremes_of_many(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains))
    assert np.array_equal(large.index, parts.argmax(2))
    assert np.array_equal(small.index, parts.argmin(2))
    np.testing.assert_allclose(large.value, parts.max(2).sum(1), rtol=1e-12)


@pytest.mark.exhaustive
def test_extremes_beyond_the_range_of_the_dtype():
    vectors = 1e20 * np.random.default_rng(1).uniform(size=(50, 4))
    tt = rank_one(vectors)
    largest, smallest = argmax(tt, beam=30), argmin(-tt, beam=30)
    assert largest.index.tolist() == smallest.index.tolist() == vectors.argmax(1).tolist()
    assert float(largest.value) == math.inf
    assert float(smallest.value) == -math.inf


def test_extremes_of_a_wave_at_two_to_the_thirty_points():
    found = argmax(qt.exp(-1.0, 30) * qt.sin(20.0, 30), beam=30)
    # the derivative vanishes where tan(20 x) = 20; the nearest points differ by h^2
    top = math.atan(20) / 20
    assert float(found.value) == pytest.approx(math.exp(-top) * math.sin(20 * top), rel=1e-13)
    # 400 (x - top)^2 / 2 is lost in some 100 epsilons
    assert float(qt.points(found.index)) == pytest.approx(top, abs=1e-7)


def test_flat_zero_negative_and_broken_trains():
    ones = rank_one([[1.0, 1.0, 1.0]] * 6)
    for factor in (1.0, 0.0, -2.5):
        assert float(argmax(factor * ones, beam=5).value) == pytest.approx(factor, abs=1e-14)
        assert float(argmin(factor * ones, beam=5).value) == pytest.approx(factor, abs=1e-14)
    others = [[1.0, 1.0, 1.0]] * 5
    assert float(argmin(rank_one([[2.0, -3.0, 4.0], *others]), beam=5).value) == -3
    assert float(argmax(rank_one([[-2.0, -3.0, -4.0], *others]), beam=5).value) == -2
    broken = argmax(math.nan * ones, beam=5)
    assert broken.index.tolist() == [-1] * 6
    assert np.isnan(broken.value)


def test_the_derivative_of_an_extreme_is_that_of_its_entry():
    tt = random_train(6, (3, 4, 2), 2)
    index = argmax(tt, beam=10).index
    slope = jax.grad(lambda cores: argmax(tt.replace(cores=cores), beam=10).value)(tt.cores)
    wanted = jax.grad(lambda cores: gather(tt.replace(cores=cores), index[None])[0])(tt.cores)
    np.testing.assert_allclose(slope, wanted)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda tt: sample(jax.random.key(0), tt, 3),
        lambda tt: sample(jax.random.key(0), tt, 3, kind="square"),
        lambda tt: log_prob(tt, jnp.zeros((1, tt.ndim), jnp.int32), kind="square"),
        argmax,
    ],
    ids=["sample", "sample squares", "log_prob", "argmax"],
)
def test_programs_do_not_grow_with_the_number_of_modes(function):
    lines = lambda d: len(jax.jit(function).lower(rank_one([[1.0, 2.0]] * d)).as_text().splitlines())
    few, many = lines(20), lines(200)
    # parts that are lowered a second time are shared
    assert many <= few


# ------------------------------------------------------------------------------------------------ files


def test_a_file_gives_back_every_bit(tmp_path):
    trains = [
        random_train(0, SHAPE, 3).replace(log_scale=jnp.array(-7.25)),
        rank_one([np.array([1.0, 2.0], np.float32)]),
        rank_one([[1j, 2.0], [3.0 + 0j, 1.0]]),
        qt.inverse_laplacian(5),
    ]
    for k, train in enumerate(trains):
        path = save(tmp_path / f"train{k}", train)
        assert path.name == f"train{k}.npz"
        again = load(path)
        assert type(again) is type(train)
        assert jax.tree.structure(again) == jax.tree.structure(train)
        for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(train), strict=True):
            assert new.dtype == old.dtype
            assert np.array_equal(new, old)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"train{k}.npz" for k in range(4)]
    with np.load(tmp_path / "train0.npz") as archive:
        assert json.loads(str(archive["description"]))["sizes"] == [list(SHAPE)]


def test_double_precision_is_read_where_there_is_none(tmp_path):
    tt = random_train(0, SHAPE, 3)
    path = save(tmp_path / "a", tt)
    with jax.enable_x64(False):
        again = load(path)
        assert again.cores.dtype == again.log_scale.dtype == jnp.float32
        assert again.ranks.dtype == jnp.int32
        np.testing.assert_array_equal(again.cores, np.asarray(tt.cores, np.float32))


def test_a_file_replaces_another(tmp_path):
    first, second = random_train(0, SHAPE, 3), random_train(1, SHAPE, 2)
    save(tmp_path / "a.npz", first)
    assert np.array_equal(load(save(tmp_path / "a.npz", second)).cores, second.cores)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damaged_files_are_refused(tmp_path, place):
    path = save(tmp_path / "a", random_train(0, (8,) * 6, 8))
    whole = path.read_bytes()
    at = int(place * len(whole))
    for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="load: "):
            load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    tt = random_train(0, SHAPE, 3)
    parts = {name: np.asarray(getattr(tt, name)) for name in ("cores", "ranks", "log_scale")}
    good = {"format": "jaxnm tensor train, format 1", "kind": "TT", "sizes": [SHAPE]}
    outside = parts["cores"].copy()
    outside[0, 2, 0, 0] = 1
    cases = [
        ({}, {"x": np.ones(3)}),
        ({**good, "format": "another"}, parts),
        ({**good, "kind": "MPS"}, parts),
        ({**good, "sizes": [[3, 2, 5, 3]]}, parts),
        ({**good, "sizes": [[3, 1, 4, 3]]}, parts),
        ({**good, "sizes": [[]]}, parts),
        (good, {**parts, "ranks": np.array([1, 3, 9, 3, 1], np.int32)}),
        (good, {**parts, "ranks": np.array([1, 3, 3, 1], np.int32)}),
        (good, {**parts, "log_scale": np.zeros(2)}),
        (good, {**parts, "log_scale": np.float32(0)}),
        (good, {**parts, "cores": parts["cores"].astype(int)}),
        (good, {**parts, "cores": outside}),
        (good, {**parts, "more": np.ones(2)}),
    ]
    for description, arrays in cases:
        np.savez(path, description=np.array(json.dumps(description)), **arrays)
        with pytest.raises(ValueError, match="load: "):
            load(path)
    np.savez(path, description=np.array(json.dumps(good)), **parts)
    assert load(path).shape == SHAPE
    path.write_text("no archive")
    with pytest.raises(ValueError, match="load: "):
        load(path)
    np.save(tmp_path / "b.npy", np.ones(3))
    with pytest.raises(ValueError, match="load: "):
        load(tmp_path / "b.npy")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "c.npz")


def test_what_cannot_be_saved(tmp_path):
    tt = random_train(0, SHAPE, 3)
    with pytest.raises(TypeError, match="TTMatrix"):
        save(tmp_path / "a", np.ones(3))
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda x: save(tmp_path / "a", x))(tt)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tt)
    with pytest.raises(ValueError, match="one by one"):
        save(tmp_path / "a", batch)
    with pytest.raises(TypeError, match="dtype"):
        save(tmp_path / "a", TT(tt.cores.astype(jnp.bfloat16), tt.ranks, tt.log_scale, tt.shape))
    assert not list(tmp_path.iterdir())


def test_a_log_probability_that_is_not_a_number_has_no_derivative_either():
    negative = scale(from_cores([jnp.ones((1, 3, 1))] * 2), -1.0)
    of = lambda cores: log_prob(dataclasses.replace(negative, cores=cores), jnp.array([[0, 0]]), kind="nonnegative")[0]
    value, gradient = jax.value_and_grad(of)(negative.cores)
    assert np.isnan(value)
    assert np.all(np.isnan(gradient))
