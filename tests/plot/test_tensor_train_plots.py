"""What the pictures of tensor trains show is what was passed: data, labels and titles, read back from the axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot as plt

from jaxnm import tensor_train
from jaxnm.plot.tensor_train import convergence, rank_profile, singular_values, slice_map
from tests.tensor_train.reference import full_of, random_cores

SHAPE = (3, 4, 2, 5)
INF = float("inf")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def _train(max_rank=6, shape=SHAPE):
    return tensor_train.from_cores(random_cores(shape, 3), max_rank=max_rank)


def _labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _result(history, num_evaluations):
    history = jnp.asarray(history)
    batch = history.shape[:-1]
    return tensor_train.OptimizeResult(
        best_index=jnp.zeros((*batch, 2), jnp.int32),
        best_value=history[..., -1],
        num_evaluations=jnp.full(batch, num_evaluations, jnp.int32),
        history=history,
        status=jnp.zeros(batch, jnp.int32),
    )


# ------------------------------------------------------------------------------------------------ bonds


def test_ranks_over_the_bonds_with_max_rank_and_what_no_train_has():
    axes = plt.subplots()[1]
    tt = _train()
    assert rank_profile(tt, ax=axes) is axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 3]])
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), 6)
    assert _labels(axes) == ["rank, largest 3", "max_rank = 6", "no train of this shape"]
    # min(3, 40), min(12, 10), min(24, 5); nothing is shown above the axes
    top = axes.get_ylim()[1]
    np.testing.assert_allclose([bar.get_y() for bar in axes.patches], np.minimum([3, 10, 5], top))
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in axes.patches], top)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bond", "rank")


def test_profiles_of_several_trains_of_a_hundred_modes():
    """4^100 is no int64; each max_rank has one line."""
    trains = {name: _train(size, (4,) * 100) for name, size in {"a": 3, "b": 3, "c": 7}.items()}
    ax = rank_profile(trains, logarithmic=True)
    assert _labels(ax) == [
        "a, largest 3", "b, largest 3", "c, largest 3", "max_rank = 3", "max_rank = 7", "no train of this shape"
    ]  # fmt: skip
    assert [bar.get_y() for bar in ax.patches][:3] == [4, pytest.approx(10.5), pytest.approx(10.5)]
    assert ax.get_yscale() == "log"


def test_trains_of_different_shapes_have_no_common_bound():
    ax = rank_profile({"a": _train(3, (4, 4, 4)), "b": _train(3)})
    assert not ax.patches
    assert [len(line.get_xdata()) for line in ax.lines[:2]] == [2, 3]


def test_singular_values_of_every_bond():
    tt = _train()
    array = full_of(tt)
    ax = singular_values(tt, threshold=1e-3)
    for k, line in zip((1, 2, 3), ax.lines, strict=False):
        expected = np.linalg.svd(array.reshape(int(np.prod(SHAPE[:k])), -1), compute_uv=False)
        rank = int(tt.ranks[k])
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, rank + 1))
        np.testing.assert_allclose(line.get_ydata(), expected[:rank] / np.linalg.norm(array), rtol=1e-10)
    assert len({line.get_color() for line in ax.lines[:3]}) == 3
    assert _labels(ax) == ["threshold 0.001"]
    assert ax.figure.axes[1].get_ylabel() == "bond"


def test_values_near_rounding_come_with_the_machine_epsilon():
    """A sum of a train with itself has ranks twice as large as needed."""
    tt = _train()
    ax = singular_values(tt + tt)
    assert _labels(ax) == ["machine epsilon, 2.2e-16"]
    assert len(ax.lines) == 4
    zero = singular_values(tt * 0.0)
    assert all(np.isnan(line.get_ydata()).all() for line in zero.lines)
    assert zero.get_legend() is None


# ------------------------------------------------------------------------------------------------ entries


def test_a_slice_shows_the_entries_with_the_others_fixed():
    tt = _train()
    index = jnp.array([2, 1, 1, 3])
    ax = slice_map(tt, (3, 0), index)
    shown = ax.collections[0].get_array().reshape(3, 5)
    np.testing.assert_allclose(shown, full_of(tt)[:, 1, 1, :], rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[3, 2]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mode 3", "mode 0")
    assert ax.figure.axes[1].get_ylabel() == "value"


def test_a_slice_on_grids_of_points():
    tt = _train()
    grids = np.array([0.0, 1.0, 4.0]), np.array([-1.0, 2.0])
    ax = slice_map(tt, (0, 2), [2, 0, 1, 0], grids=grids, labels=("x (m)", "z (m)", "height (m)"))
    shown = ax.collections[0].get_array().reshape(2, 3)
    np.testing.assert_allclose(shown, full_of(tt)[:, 0, :, 0].T, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[4, 2]])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.figure.axes[1].get_ylabel()) == ("x (m)", "z (m)", "height (m)")


# ------------------------------------------------------------------------------------------------ optimizers


def test_medians_and_bands_over_evaluations():
    """Three seeds, two steps of 50 calls each, beside a random search of two seeds and the proven optimum."""
    seeds = np.array([[4.0, 1.0], [5.0, 2.0], [9.0, 6.0]])
    search = np.array([[7.0, 5.0, 3.0], [9.0, 9.0, 1.0]])
    ax = convergence({"ours": _result(seeds, 100), "random": search}, optimum=1.0, labels=("calls", "cost"))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[50, 5], [100, 2]])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [4, 1])
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [9, 6])
    np.testing.assert_array_equal(ax.lines[3].get_xydata(), [[1, 8], [2, 7], [3, 2]])
    assert {line.get_drawstyle() for line in ax.lines[:6]} == {"steps-post"}
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), 1)
    assert _labels(ax) == ["ours, median of 3", "random, median of 2", "optimum 1"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("calls", "cost")
    assert ax.get_title() == "median over seeds; band: best to worst"


def test_distances_above_the_optimum_and_other_quantiles():
    ax = convergence(_result([[4.0, 1.0], [2.0, 2.0], [3.0, 1.0]], 20), optimum=1, gap=True, quantiles=(0.5, 0.5))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, np.nan])
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "best value so far, above 1"
    assert ax.get_title() == "median over seeds; band: quantiles 0.5 to 0.5"
    # below by rounding is no distance
    np.testing.assert_array_equal(
        convergence(np.array([[1.0, -1e-7]]), optimum=0, gap=True).lines[0].get_ydata(), [1, np.nan]
    )


def test_one_seed_and_values_that_are_not_finite_yet():
    ax = convergence(_result([INF, 3.0, 2.0], 30))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [np.nan, 3, 2])
    assert _labels(ax) == ["one seed"]
    assert ax.get_title() == ""
    several = convergence(_result([[INF, 3.0], [INF, 1.0], [5.0, 5.0], [4.0, 4.0]], 20))
    np.testing.assert_array_equal(several.lines[0].get_ydata(), [np.nan, 3.5])
    np.testing.assert_array_equal(several.lines[1].get_ydata(), [4, 1])
    np.testing.assert_array_equal(several.lines[2].get_ydata(), [np.nan, 5])


def test_results_of_the_optimizers_themselves():
    run = lambda key: tensor_train.protes(lambda i: jnp.sum((i - 1) ** 2), (4, 4), key=key, budget=60, batch=20)
    results = jax.vmap(run)(jax.random.split(jax.random.key(0), 2))
    ax = convergence(results, optimum=0.0)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [20, 40, 60])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.median(results.history, 0))


# ------------------------------------------------------------------------------------------------ refusals


BATCH = jax.tree.map(lambda leaf: leaf[None], _train())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_profile({}), "rank_profile: trains is empty"),
        (lambda: rank_profile(_train(shape=(4,))), "trains is of one mode"),
        (lambda: rank_profile({"a": BATCH}), r"trains\['a'\] is with cores of shape \(1, 4, 6, 5, 6\)"),
        (lambda: singular_values(BATCH), "expected one train; take one of a batch"),
        (lambda: singular_values(_train(), threshold=0.0), "threshold is 0.0, expected > 0"),
        (lambda: singular_values(_train() * float("nan")), "tt is with numbers that are not finite"),
        (lambda: slice_map(_train(), (0, 0), [0] * 4), r"modes is \(0, 0\), expected two different modes"),
        (lambda: slice_map(_train(), (0, 4), [0] * 4), "modes is with 4, expected below d = 4"),
        (lambda: slice_map(_train(), (0, 1), [0, 0, 2, 0]), "index is"),
        (lambda: slice_map(_train(), (0, 1), [0, 0, 0]), "expected 4 indices"),
        (lambda: slice_map(_train(), (0, 1), [0] * 4, grids=(np.arange(3), np.zeros(4))), r"grids\[1\]"),
        (lambda: slice_map(_train() * float("nan"), (0, 1), [0] * 4), "the slice is not finite"),
        (lambda: convergence({}), "results is empty"),
        (lambda: convergence(np.zeros(3)), r"results is of shape \(3,\)"),
        (lambda: convergence({"a": np.zeros((0, 3))}), r"results\['a'\] is of shape \(0, 3\)"),
        (lambda: convergence(np.array([[1.0, 2.0]])), "NaN or increasing"),
        (lambda: convergence(np.array([[np.nan, 2.0]])), "NaN or increasing"),
        (lambda: convergence(np.zeros((2, 3)), quantiles=(0.6, 0.5)), "quantiles is"),
        (lambda: convergence(np.zeros((2, 3)), gap=True), "optimum is None"),
        (lambda: convergence(np.zeros((2, 3)), gap=True, optimum=1.0), "optimum is 1, above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_profile(np.zeros(3)), "trains is of type ndarray, expected a TT"),
        (lambda: slice_map(_train() * 1j, (0, 1), [0] * 4), "expected a real dtype"),
        (lambda: slice_map(_train(), (0, 1), [0.5] * 4), "expected integers"),
    ],
)
def test_what_is_of_another_type_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
