"""Cross interpolation against full arrays, closed forms, and tables of exact ranks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm.status import Status
from jaxnm.tensor_train import gather, integrate, to_dense
from jaxnm.tensor_train.black_box import from_black_box
from jaxnm.tensor_train.chebyshev import chebyshev, evaluate
from jaxnm.tensor_train.cross import from_function, from_function_on

KEY = jax.random.key(0)
SHAPE = (5, 6, 1, 4, 6, 5, 3)
GRID = np.indices(SHAPE).astype(float)


def _rosenbrock(x, xp):
    return xp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2, axis=0)


def _remainder(x, xp):
    return xp.tensordot(xp.array([2.0, 3, 5, 7, 11, 13, 17]), x, 1) % 97


# name: (function of x [7, ...] and of a module, the largest rank at any bond of SHAPE)
FUNCTIONS = {
    "sum": (lambda x, xp: xp.sum(xp.exp(x / 3), axis=0), 2),
    "sine of the sum": (lambda x, xp: xp.sin(0.3 * xp.sum(x, axis=0)), 2),
    "product": (lambda x, xp: xp.prod(1 + x / 3, axis=0), 1),
    "rosenbrock": (_rosenbrock, 3),
    "square of the sum": (lambda x, xp: xp.sum(x, axis=0) ** 2, 3),
    "cube of the sum": (lambda x, xp: xp.sum(x, axis=0) ** 3, 4),
    "zero": (lambda x, xp: 0 * xp.sum(x, axis=0), 1),
    "constant": (lambda x, xp: 2.5 + 0 * xp.sum(x, axis=0), 1),
    "rarely not zero": (lambda x, xp: xp.where(xp.min(x[:2], axis=0) > 3, 1.0, 0) * xp.where(x[5] > 3, 1 + x[0], 0), 1),
    "maximum": (lambda x, xp: xp.max(x, axis=0), 6),
    "holes": (lambda x, xp: xp.where(_remainder(x, xp) == 5, xp.nan, xp.exp(-xp.sum(x, axis=0) / 9)), 1),
    "nothing finite": (lambda x, xp: xp.nan * xp.sum(x, axis=0), 1),
}  # fmt: skip
NAMES = list(FUNCTIONS)


def _maximum(index):
    return jnp.max(index.astype(float))


def _any_function(index, which):
    return jax.lax.switch(which, [lambda x, f=f: f(x, jnp) for f, _ in FUNCTIONS.values()], index.astype(float))


@jax.jit
def _all_of_them(key):
    run = lambda which: from_function(_any_function, SHAPE, max_rank=6, tol=1e-11, key=key, args=(which,))
    return jax.vmap(run)(jnp.arange(len(FUNCTIONS), dtype=jnp.int32))


@pytest.fixture(scope="module")
def results():
    together = _all_of_them(KEY)
    return {name: jax.tree.map(lambda x, k=k: x[k], together) for k, name in enumerate(NAMES)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES[:8])
def test_exact_ranks_and_all_entries(results, name):
    f, rank = FUNCTIONS[name]
    truth, result = f(GRID, np), results[name]
    largest = np.abs(truth).max()
    # tol 1e-11; the interpolation of an exact rank amplifies rounding by little
    assert np.abs(np.asarray(to_dense(result.tt)) - truth).max() <= 1e-10 * largest
    assert int(result.ranks.max()) == rank
    assert int(result.status) == Status.OK
    assert not bool(result.saturated)
    assert result.ranks.dtype == result.best_index.dtype == result.num_evaluations.dtype == jnp.int32
    assert np.isclose(abs(float(result.best_value)), largest, rtol=1e-14)
    assert np.isclose(truth[tuple(result.best_index)], result.best_value, rtol=1e-14)
    assert float(result.check_error) <= 1e-10


def test_a_start_is_found_where_f_is_rarely_not_zero(results):
    truth, result = FUNCTIONS["rarely not zero"][0](GRID, np), results["rarely not zero"]
    assert 0 < np.mean(truth != 0) < 0.02
    assert np.abs(np.asarray(to_dense(result.tt)) - truth).max() <= 1e-9 * truth.max()
    assert int(result.status) == Status.OK
    assert float(result.best_value) == truth.max()


def test_full_rank_fits_and_one_less_is_reported_as_saturated(results):
    result = results["maximum"]
    # its levels 0 to 5 are linearly independent on either side of a bond in the middle
    assert np.abs(np.asarray(to_dense(result.tt)) - GRID.max(0)).max() <= 1e-10
    assert int(result.status) == Status.OK
    assert result.ranks[2:5].tolist() == [6, 6, 6]
    short = from_function(_maximum, (5,) * 4, max_rank=4, tol=1e-11, key=KEY, max_sweeps=3)
    assert bool(short.saturated)
    assert int(short.status) == Status.NOT_CONVERGED
    assert float(short.check_error) > 1e-3


def test_entries_that_are_not_finite_are_flagged_and_interpolated(results):
    result = results["holes"]
    with np.errstate(invalid="ignore"):
        assert np.isnan(FUNCTIONS["holes"][0](GRID, np)).any()
    assert int(result.status) == Status.NONFINITE_INPUT
    # from the whole table, or by sweeps alone: the completion that has rank one
    assert np.abs(np.asarray(to_dense(result.tt)) - np.exp(-GRID.sum(0) / 9)).max() <= 1e-10
    assert int(result.num_evaluations) == GRID[0].size
    nothing = results["nothing finite"]
    assert int(nothing.status) == Status.NONFINITE_INPUT
    assert np.isnan(nothing.check_error)
    larger = from_function(_with_holes, (11,) * 7, max_rank=4, tol=1e-11, key=KEY)
    assert int(larger.status) == Status.NONFINITE_INPUT
    index = np.random.default_rng(0).integers(0, 11, (2000, 7))
    assert np.any(index @ [2, 3, 5, 7, 11, 13, 17] % 97 == 5)
    assert np.abs(gather(larger.tt, jnp.asarray(index)) - np.exp(-index.sum(1) / 9)).max() <= 1e-10


def _with_holes(index):
    x = index.astype(float)
    return jnp.where(jnp.dot(jnp.array([2.0, 3, 5, 7, 11, 13, 17]), x) % 97 == 5, jnp.nan, jnp.exp(-jnp.sum(x) / 9))


def test_another_key_gives_the_same_tensors(results):
    other = _all_of_them(jax.random.key(5))
    for k in range(6):
        result = results[NAMES[k]]
        second = jax.tree.map(lambda x, k=k: x[k], other).tt
        largest = abs(float(result.best_value))
        assert np.abs(np.asarray(to_dense(result.tt)) - np.asarray(to_dense(second))).max() <= 1e-10 * largest


# ------------------------------------------------------------------------------------------------ Hilbert tensors


def _hilbert(index):
    return 1 / (1 + jnp.sum(index.astype(float)))


def _hilbert32(index):
    return 1 / (1 + jnp.sum(index.astype(jnp.float32)))


def test_hilbert_tensor_has_the_ranks_of_its_singular_values():
    truth = 1 / (1 + np.indices((8,) * 6).sum(0))
    # by singular values; pivots need no fewer for about the same error, and here no more than two more
    for tol, ranks in ((1e-4, [4, 5, 5, 5, 4]), (1e-6, [6, 7, 7, 7, 6]), (1e-8, [7, 8, 9, 8, 7])):
        result = from_function(_hilbert, (8,) * 6, max_rank=12, tol=jnp.float64(tol), key=KEY)
        assert np.abs(np.asarray(to_dense(result.tt)) - truth).max() <= 10 * tol
        assert np.all(np.abs(np.asarray(result.ranks[1:-1]) - ranks) <= 2)
        assert int(result.status) == Status.OK


def test_rook_search_in_ten_dimensions():
    result = from_function(_hilbert, (8,) * 10, max_rank=16, tol=1e-10, key=KEY, search="rook")
    index = np.random.default_rng(0).integers(0, 8, (300, 10))
    error = np.abs(gather(result.tt, jnp.asarray(index)) - 1 / (1 + index.sum(1))).max()
    assert error <= 1e-9
    assert int(result.status) == Status.OK
    # less than three sweeps that look at whole blocks, with room for two pivots more than asked
    assert int(result.num_evaluations) < 3 * 9 * (18 * 8) ** 2


def test_float32():
    result = from_function(_hilbert32, (8,) * 6, max_rank=10, tol=1e-6, key=KEY)
    assert result.tt.dtype == result.check_error.dtype == result.best_value.dtype == jnp.float32
    # 8 eps = 1e-6 is the floor of a pivot
    assert np.abs(np.asarray(to_dense(result.tt)) - 1 / (1 + np.indices((8,) * 6).sum(0))).max() <= 1e-5
    assert int(result.status) == Status.OK


# ------------------------------------------------------------------------------------------------ Genz integrals

NODES, WEIGHTS = (np.polynomial.legendre.leggauss(8)[k] / 2 + (0.5 if k == 0 else 0) for k in (0, 1))


def _genz(x, family, a):
    families = [
        lambda x, a: jnp.cos(0.6 + a * jnp.sum(x)),
        lambda x, a: (1 + a * jnp.sum(x)) ** (-x.shape[0] - 1.0),
        lambda x, a: jnp.exp(-(a**2) * jnp.sum((x - 0.5) ** 2)),
        lambda x, a: jnp.prod(1 / (a**-2 + (x - 0.5) ** 2)),
    ]
    return jax.lax.switch(family, families, x, a)


def _genz_integral(family, d, a):
    return [
        lambda a: jnp.cos(0.6 + d * a / 2) * (jnp.sin(a / 2) / (a / 2)) ** d,
        lambda a: 1 / jnp.prod(1 + a * jnp.arange(1.0, d + 1)),
        lambda a: (jnp.sqrt(jnp.pi) / a * jax.scipy.special.erf(a / 2)) ** d,
        lambda a: (2 * a * jnp.atan(a / 2)) ** d,
    ][family](a)


@partial(jax.value_and_grad, argnums=1, has_aux=True)
def _integral(family, a, d, search):
    result = from_function_on(_genz, [NODES] * d, max_rank=8, tol=1e-10, key=KEY, args=(family, a), search=search)
    return integrate(result.tt, [WEIGHTS] * d), result


_in_ten_dimensions = jax.jit(jax.vmap(partial(_integral, d=10, search="full")))
_in_a_hundred_dimensions = jax.jit(partial(_integral, d=100, search="rook"))


def _check_integrals(d, family, a, tolerance, values, slopes):
    truth, slope = jax.value_and_grad(partial(_genz_integral, family, d))(a)
    assert np.isclose(values, truth, rtol=tolerance), (family, values / truth - 1)
    assert np.isclose(slopes, slope, rtol=100 * tolerance), (family, slopes / slope - 1)


@pytest.mark.exhaustive
def test_genz_integrals_and_their_derivatives_in_one_batch():
    family = np.array([0, 0, 1, 1, 2, 2, 3, 3, 2], np.int32)
    a = np.array([0.4, 0.7, 0.15, 0.25, 0.5, 0.9, 0.5, 0.8, np.nan])
    (values, results), slopes = _in_ten_dimensions(jnp.asarray(family), jnp.asarray(a))
    for k in range(8):
        # eight nodes integrate these to 1e-12; a corner peak is interpolated to tol, relative to a largest value that
        # is up to 300 times the integral
        _check_integrals(10, family[k], a[k], 1e-7 if family[k] == 1 else 1e-10, values[k], slopes[k])
    assert np.asarray(results.status).tolist() == [0] * 8 + [Status.NONFINITE_INPUT]
    assert np.asarray(results.ranks[:2, 1:-1] == 2).all()
    assert np.asarray(results.ranks[4:8] == 1).all()
    # what is said of the mean of all entries: it is in closed form where it is that of a product
    means = np.asarray(jax.vmap(lambda tt: integrate(tt, [np.full(8, 1 / 8)] * 10))(results.tt))
    largest = np.abs(np.asarray(results.best_value))
    assert np.allclose(results.mean_error[:8], (results.check_error * largest / np.abs(means))[:8], rtol=1e-6)
    for k in (0, 1, 4, 5, 6, 7):
        squares = (NODES - 0.5) ** 2
        one = [np.exp(1j * a[k] * NODES + 0.06j), None, np.exp(-(a[k] ** 2) * squares), 1 / (a[k] ** -2 + squares)]
        mean = np.real(np.mean(one[family[k]]) ** 10)
        # a few roundings a mode, of the largest value
        rounding = 100 * np.finfo(float).eps * largest[k]
        assert abs(means[k] - mean) <= float(results.mean_error[k]) * abs(mean) + rounding


@pytest.mark.exhaustive
def test_genz_integrals_in_a_hundred_dimensions():
    # the largest value of the oscillating one is 1e3, of the corner peak 1e2 times its integral
    for family, a, tolerance in ((0, 0.3, 1e-7), (1, 0.001, 1e-7), (2, 0.4, 1e-10), (3, 0.9, 1e-10)):
        (value, _), slope = _in_a_hundred_dimensions(jnp.int32(family), jnp.float64(a))
        _check_integrals(100, family, a, tolerance, value, slope)


def test_programs_do_not_grow_with_the_number_of_sites():
    def instructions(d):
        run = lambda key: from_function(_hilbert, (2,) * d, max_rank=2, tol=1e-9, key=key)
        return len(jax.jit(run).lower(KEY).as_text().splitlines())

    # with ten modes of two there is a table
    assert instructions(20) == instructions(300)


# ------------------------------------------------------------------------------------------------ peaks

PEAK = (3, 1, 4, 1, 5, 9, 2, 6)


def _peak(index, sharpness):
    x = index.astype(float)
    distance = jnp.sum((x - jnp.array(PEAK, float)) ** 2)
    return jnp.exp(-sharpness * distance) + 0.1 * jnp.cos(0.1 * jnp.sum(x))


def test_a_narrow_peak_is_found_by_global_pivots_or_given():
    run = lambda sharpness, start: from_function(
        _peak, (16,) * 8, max_rank=5, tol=1e-9, key=KEY, args=(jnp.float64(sharpness),), initial=jnp.array([start])
    )
    nowhere = (0,) * 8
    top = 1 + 0.1 * np.cos(0.1 * sum(PEAK))
    for sharpness, start in ((0.5, nowhere), (50.0, PEAK)):
        result = run(sharpness, start)
        assert result.best_index.tolist() == list(PEAK)
        assert np.isclose(gather(result.tt, jnp.array([PEAK]))[0], top, rtol=1e-8)
        assert int(result.ranks.max()) == 3
        assert int(result.status) == Status.OK


# ------------------------------------------------------------------------------------------------ small and complex


def test_one_mode():
    result = from_function(lambda i, a: a * i[0].astype(float) ** 2, (7,), max_rank=4, tol=0.0, key=KEY, args=(2.0,))
    assert to_dense(result.tt).tolist() == (2.0 * np.arange(7) ** 2).tolist()
    assert int(result.status) == Status.OK
    assert result.tt.max_rank == 1


def test_complex_values():
    phase = np.exp((0.3j - 0.1) * GRID[:4].sum(0)[:, :, :, :, 0, 0, 0]) + 1j
    f = lambda i: jnp.exp((0.3j - 0.1) * jnp.sum(i).astype(complex)) + 1j
    result = from_function(f, SHAPE[:4], max_rank=3, tol=1e-12, key=KEY)
    assert np.abs(np.asarray(to_dense(result.tt)) - phase).max() <= 1e-11
    assert int(result.ranks.max()) == 2


# ------------------------------------------------------------------------------------------------ Chebyshev


def _on_a_box(x, a):
    return jnp.exp(-a * jnp.sum(x**2)) / (2 + jnp.sum(x))


@pytest.mark.exhaustive
def test_chebyshev_interpolation_and_its_gradient():
    box = jnp.array([[0.0, 1.0], [0.5, 2.0], [-0.5, 0.5]])
    result = chebyshev(_on_a_box, box, [11, 15, 11], max_rank=8, tol=1e-9, key=KEY, args=(0.5,))
    assert int(result.status) == Status.OK
    points = jnp.asarray(np.random.default_rng(1).uniform(box[:, 0], box[:, 1], (50, 3)))
    # corners and an end of the box are points as others
    points = points.at[0].set(box[:, 0]).at[1].set(box[:, 1])
    value = lambda point: evaluate(result.interpolant, point[None])[0]
    truth, slopes = jax.vmap(jax.value_and_grad(partial(_on_a_box, a=0.5)))(points)
    found, gradients = jax.vmap(jax.value_and_grad(value))(points)
    assert np.abs(found - truth).max() <= 1e-8
    # at a corner, a derivative of degree n amplifies by n^2
    assert np.abs(gradients - slopes).max() <= 1e-6
    assert np.isnan(evaluate(result.interpolant, points[:1] - 1)[0])


# ------------------------------------------------------------------------------------------------ black boxes


class _Once:
    """A function on the host that minds being asked twice."""

    def __init__(self, f):
        self.f, self.seen = f, set()

    def __call__(self, indices):
        rows = [tuple(row) for row in indices.tolist()]
        assert len(set(rows)) == len(rows)
        assert not self.seen & set(rows)
        self.seen |= set(rows)
        return self.f(indices)


@pytest.mark.parametrize("search", ["rook", "full"])
def test_black_box_is_asked_once_for_an_index(search):
    f = _Once(lambda i: 1 / (1.0 + i.sum(1)))
    result = from_black_box(f, (8,) * 6, max_rank=12, tol=1e-8, key=KEY, search=search)
    truth = 1 / (1 + np.indices((8,) * 6).sum(0))
    assert np.abs(np.asarray(to_dense(result.tt)) - truth).max() <= 1e-7
    assert int(result.num_evaluations) == len(f.seen) < 8**6 / 10
    assert int(result.status) == Status.OK


@pytest.mark.exhaustive
def test_black_box_ranks_holes_zero_and_one_mode():
    shape = (5, 1, 6, 4)
    grid = np.indices(shape)
    result = from_black_box(_Once(lambda i: i.sum(1) ** 2.0), shape, max_rank=9, tol=1e-12, key=KEY)
    assert np.abs(np.asarray(to_dense(result.tt)) - grid.sum(0) ** 2).max() <= 1e-10
    assert int(result.ranks.max()) == 3
    holes = lambda i: np.where(i @ [1, 5, 5, 30, 9, 2] == 74, np.inf, np.exp(-i.sum(1) / 5))
    few = lambda i: np.where(i @ [1, 5, 5, 30] == 74, np.inf, np.exp(-i.sum(1) / 5))
    # of the second one all entries are asked for
    for f, sizes in ((holes, (6,) * 6), (few, shape)):
        result = from_black_box(_Once(f), sizes, max_rank=9, tol=1e-12, key=KEY)
        assert int(result.status) == Status.NONFINITE_INPUT
        truth = np.exp(-np.indices(sizes).sum(0) / 5)
        assert np.abs(np.asarray(to_dense(result.tt)) - truth).max() <= 1e-10
    result = from_black_box(lambda i: 0.0 * i[:, 0], shape, max_rank=9, tol=0.0, key=KEY)
    assert result.ranks.tolist() == [1] * 5
    assert float(result.check_error) == 0
    assert int(result.status) == Status.OK
    result = from_black_box(lambda i: 1j * i[:, 0], (4,), max_rank=9, tol=0.0, key=KEY)
    assert to_dense(result.tt).tolist() == [0, 1j, 2j, 3j]


def test_black_box_that_is_complex_in_later_batches_only():
    f = lambda i: i.sum(1) + (1j * i[:, 0] if len(i) < 64 else 0.0)
    result = from_black_box(f, (4,) * 8, max_rank=3, tol=1e-8, key=KEY, max_sweeps=1)
    assert result.tt.dtype == jnp.complex128
    assert np.asarray(to_dense(result.tt)).imag.any()


# ------------------------------------------------------------------------------------------------ trust

WEIGHTS_OF_ITEMS = np.random.default_rng(7).integers(1, 20, 16)
CAPACITY = float(WEIGHTS_OF_ITEMS.sum() // 3)


@pytest.mark.exhaustive
def test_a_cross_never_asks_for_more_entries_than_there_are():
    fits = lambda i: (jnp.dot(i.astype(float), jnp.asarray(WEIGHTS_OF_ITEMS, float)) <= CAPACITY).astype(float)
    result = from_function(fits, (2,) * 16, max_rank=64, tol=1e-8, key=KEY)
    total = integrate(result.tt, [jnp.ones(2)] * 16)
    assert int(result.num_evaluations) == 2**16
    assert int(result.status) == Status.OK
    # counted over all 2^16 selections; their moduli add up to 7864, each to rounding
    assert abs(float(total) - 7864) <= 7864 * 2**8 * np.finfo(float).eps
    assert float(result.mean_error) <= 2**8 * np.finfo(float).eps


def _thin(index, which, unit):
    """A single entry, nothing, a narrow Gaussian, and something everywhere."""
    x = index.astype(unit.dtype)
    needle = jnp.all(index == jnp.arange(10, dtype=jnp.int32)).astype(unit.dtype)
    values = [needle, 0 * needle, jnp.exp(-50 * jnp.sum((x - 7.3) ** 2)), 1 / (1 + jnp.sum(x))]
    return unit * jnp.stack(values)[which]


@pytest.fixture(scope="module")
def thin():
    run = lambda which, unit: from_function(_thin, (16,) * 10, max_rank=6, tol=1e-4, key=KEY, args=(which, unit))
    which, units = [0, 1, 2, 3, 3, 3, 3], [1, 1, 1, 1, 1e200, 1e-200, 3.0]
    return jax.jit(jax.vmap(run))(jnp.array(which, jnp.int32), jnp.array(units)), jax.jit(run)


@pytest.mark.exhaustive
def test_unseen_is_not_zero(thin):
    assert thin[0].status.tolist() == [Status.UNEXPLORED] * 3 + [Status.OK] * 4
    rows = np.random.default_rng(1).integers(0, 2, (30, 20))
    single = lambda i: (i[:, None] == rows[None]).all(2).any(1).astype(float)
    assert int(from_black_box(single, (2,) * 20, max_rank=8, tol=1e-8, key=KEY).status) == Status.UNEXPLORED
    assert int(from_black_box(lambda i: 0.0 * i[:, 0], (2,) * 30, max_rank=8, tol=0.0, key=KEY).status) == (
        Status.UNEXPLORED
    )


def _sparse(bits):
    """Functions of [..., bits] that are zero nearly everywhere: narrow peaks, clauses, an equality, entries."""
    rng = np.random.default_rng(7)
    variables = np.stack([rng.choice(bits, 3, replace=False) for _ in range(84)])
    signs, weights, entries = rng.integers(0, 2, (84, 3)), rng.integers(1, 1000, bits), rng.integers(0, 2, (30, bits))
    places, target = 2.0 ** -np.arange(1, bits + 1), weights[::2].sum()

    def two_peaks(i, xp):
        x = (i * places).sum(-1)
        return xp.exp(-(((x - 0.3) / 1e-5) ** 2)) + xp.exp(-(((x - 0.7) / 1e-5) ** 2))

    return [
        two_peaks,
        lambda i, xp: 1.0 * (i[..., variables] == signs).any(-1).all(-1),
        lambda i, xp: 1.0 * ((i * weights).sum(-1) == target),
        lambda i, xp: 1.0 * (i[..., None, :] == entries).all(-1).any(-1),
    ]


@pytest.mark.exhaustive
def test_sparse_functions_have_all_of_their_sum_or_are_not_ok():
    bits = 20
    functions, options = _sparse(bits), {"max_rank": 16, "tol": 1e-8, "max_sweeps": 6}
    every = (np.arange(2**bits)[:, None] >> np.arange(bits)[::-1]) & 1
    total = lambda tt: float(integrate(tt, [jnp.ones(2)] * bits))

    @jax.jit
    def run(which, key):
        f = lambda index, which: jnp.stack([f(index.astype(float), jnp) for f in functions])[which]
        return from_function(f, (2,) * bits, key=key, args=(which,), **options)

    for which, f in enumerate(functions):
        truth = sum(f(part, np).sum() for part in np.split(every, 64))
        assert truth > 0
        for seed in range(3):
            key = jax.random.key(seed)
            for result in (run(which, key), from_black_box(partial(f, xp=np), (2,) * bits, key=key, **options)):
                assert int(result.status) in (Status.UNEXPLORED, Status.NOT_CONVERGED) or (
                    abs(total(result.tt) / truth - 1) <= 1e-6
                )


def test_units_change_neither_ranks_nor_pivots_and_members_are_alone(thin):
    results, run = thin
    for k in (4, 5, 6):
        assert results.ranks[k].tolist() == results.ranks[3].tolist()
        assert results.best_index[k].tolist() == results.best_index[3].tolist()
        assert results.num_evaluations[k] == results.num_evaluations[3]
    indices = jnp.asarray(np.random.default_rng(3).integers(0, 16, (500, 10)))
    for k, unit in ((3, 1.0), (4, 1e200), (5, 1e-200)):
        tt = jax.tree.map(lambda x, k=k: x[k], results.tt)
        # at most 10 tol, as the status says
        assert np.abs(gather(tt, indices) / unit - 1 / (1 + indices.sum(1))).max() <= 1e-3
    alone = run(jnp.int32(3), jnp.float64(1))
    assert alone.ranks.tolist() == results.ranks[3].tolist()
    assert np.allclose(alone.tt.cores, results.tt.cores[3], rtol=1e-9, atol=1e-9)


def _sum_of_powers(index, a):
    return jnp.exp(-a * jnp.sum(index.astype(float))) + a**3 * index[0].astype(float)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(3, 4, 3), (9,) * 7])
def test_first_and_second_derivatives_of_the_train_and_of_the_largest_value(shape):
    def values(a):
        result = from_function(_sum_of_powers, shape, max_rank=3, tol=1e-11, key=KEY, args=(a,), max_sweeps=3)
        return gather(result.tt, indices), result.best_value

    indices = jnp.asarray(np.random.default_rng(0).integers(0, shape, (40, len(shape))))
    truth = lambda a: (jax.vmap(lambda i: _sum_of_powers(i, a))(indices), _sum_of_powers(jnp.array(best), a))
    a = 0.3
    # the largest value: exp(0) = 1, or a^3 times the last index
    grid = np.indices(shape)
    full = np.exp(-a * grid.sum(0)) + a**3 * grid[0]
    best = np.unravel_index(full.argmax(), shape)
    for derivative in (jax.jacfwd, lambda f: jax.jacfwd(jax.jacrev(f))):
        found, expected = jax.jit(derivative(values))(a), derivative(truth)(a)
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one - other).max() <= 1e-6 * np.abs(expected[0]).max()
    with pytest.raises(TypeError, match="no derivative"):
        jax.grad(lambda tol: from_function(_sum_of_powers, shape, max_rank=2, tol=tol, key=KEY, args=(a,)).best_value)(
            0.1
        )
