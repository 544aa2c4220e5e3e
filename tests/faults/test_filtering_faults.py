"""Bad input to jaxnm.filtering ends soon with the documented error, status or NaN, and harms nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

from jaxnm import Status, filtering
from jaxnm.filtering.resampling import METHODS

_inf, _nan = float("inf"), float("nan")
_key = jax.random.key(0)
_raw = jnp.zeros(2, jnp.uint32)
_clouds, _rows = jnp.zeros((2, 4)), jnp.zeros(3)


def _initial(scale, key, num):
    return scale * jax.random.normal(key, (num,))


def _transition(scale, key, x, time):
    return x + scale * jax.random.normal(key, x.shape)


def _log_likelihood(scale, x, y, time):
    return -0.5 * ((y - x) / scale) ** 2 - jnp.log(scale)


def _walk(scale=1.0, **changed):
    functions = {
        "sample_initial": _initial,
        "sample_transition": _transition,
        "log_likelihood": _log_likelihood,
        "transition_log_density": lambda scale, new, old, time: -0.5 * ((new - old) / scale) ** 2,
    } | changed
    controlled = functions.pop("controlled", False)
    bound = {name: f and Partial(f, jnp.asarray(scale)) for name, f in functions.items()}
    return filtering.StateSpaceModel(**bound, controlled=controlled)


_model, _controlled = _walk(), _walk(controlled=True)
_world = filtering.world_from_map("tiny", ["....", ".B..", "...#"])
_tracks = filtering.simulate(_key, _world, 4, 3, num_ranges=2)
_gru, _lstm = filtering.PFGRUCell(6, 4, rngs=nnx.Rngs(0)), filtering.PFLSTMCell(6, 4, rngs=nnx.Rngs(0))
_pair = nnx.split(_gru)
_level = filtering.LinearGaussianModel(*(jnp.ones((1,) * rank) for rank in (1, 2, 2, 2, 2, 2)))
_poses, _size = jnp.ones((3, 2, 3)), jnp.ones(2)


def _filter(model=_model, observations=_rows, key=_key, **options):
    return filtering.particle_filter(key, model, observations, **{"num_particles": 4} | options)


def _train(trajectories=_tracks, model=_gru, key=_key, **options):
    options = {"steps": 1, "batch_size": 2, "num_particles": 2, "optimizer": optax.sgd(0.1)} | options
    return filtering.train(key, model, trajectories, _world, **options)


def _ranges(changed=None, actions=None, **options):
    ranges = jnp.ones((2, 2)) if changed is None else changed
    actions = jnp.zeros((2, 4)) if actions is None else actions
    return filtering.histogram_filter(_world, (ranges, actions), **options)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        # log-weights and resampling
        (lambda: filtering.normalize(jnp.zeros((3, 0))), ValueError, r"normalize: log_weights is of shape \(3, 0\)"),
        (lambda: filtering.normalize(0.0), ValueError, r"expected \[\.\.\., N\] with N >= 1"),
        (lambda: filtering.normalize([0.0, "a"]), TypeError, "log_weights is a list that is no array"),
        (lambda: filtering.normalize(jnp.zeros(3, int)), TypeError, "log_weights is of dtype int64"),
        (lambda: filtering.effective_sample_size(jnp.zeros(2, complex)), TypeError, "expected a real dtype"),
        (lambda: filtering.resample(_key, _clouds[0], -1), ValueError, "num is -1, expected an int >= 1"),
        (lambda: filtering.resample(_key, _clouds[0], 2.0), TypeError, "num is of type float"),
        (lambda: filtering.resample(_key, _clouds[0], 5, method="killing"), ValueError, "num is 5 for 4 particles"),
        (lambda: filtering.resample(jax.random.split(_key), _clouds[0]), ValueError, "key is a batch of keys"),
        (lambda: filtering.resample(_key, None), TypeError, "log_weights is a NoneType"),
        (lambda: filtering.soft_resample(_raw, _clouds[0]), TypeError, "soft_resample: key is of dtype uint32"),
        (lambda: filtering.soft_resample(_key, _clouds), ValueError, r"of shape \(2, 4\), expected \[N\]"),
        (lambda: filtering.soft_resample(_key, _clouds[0], -0.1), ValueError, r"alpha is -0\.1, expected in \(0, 1\]"),
        (lambda: filtering.soft_resample(_key, _clouds[0], _inf), ValueError, "alpha is inf"),
        (lambda: filtering.soft_resample(_key, _clouds[0], method="all"), ValueError, "method is 'all', expected one"),
        # the filter
        (lambda: _filter(num_particles=-1), ValueError, "num_particles is -1, expected an int >= 1"),
        (lambda: _filter(num_particles=jnp.asarray(4)), TypeError, "num_particles is of type ArrayImpl"),
        (lambda: _filter(resampling=["systematic"]), ValueError, "method is .'systematic'., expected one of"),
        (lambda: _filter(ess_threshold=_nan), ValueError, r"ess_threshold is nan, expected in \[0, 1\]"),
        (lambda: _filter(gradient=None), ValueError, "gradient is None, expected one of"),
        (lambda: _filter(gradient="soft", alpha=_nan), ValueError, r"particle_filter: alpha is nan"),
        (lambda: _filter(history=2), ValueError, "history is 2, expected one of"),
        (lambda: _filter(mask=jnp.ones(3)), ValueError, "dtype float64, expected .3. booleans"),
        (lambda: _filter(mask="x"), TypeError, "particle_filter: mask is a str, expected .3. booleans"),
        (lambda: _filter(mask=[True, None, True]), TypeError, "particle_filter: mask is a list, expected .3. booleans"),
        (lambda: filtering.soft_resample(_key, _clouds[0], "x"), TypeError, "soft_resample: alpha is of type str"),
        (lambda: filtering.soft_resample(_key, _clouds[0], jnp.asarray(0.5j)), TypeError, "alpha is of dtype complex"),
        (lambda: filtering.genealogy(None), TypeError, "genealogy: result is a NoneType, expected a FilterResult"),
        (lambda: filtering.smoothed_mean(None), TypeError, "smoothed_mean: result is a NoneType"),
        (lambda: filtering.degeneracy(None), TypeError, "degeneracy: result is a NoneType"),
        (lambda: filtering.backward_sample(_key, _model, None, 2), TypeError, "backward_sample: result is a NoneType"),
        (lambda: _filter(observations=0.0), ValueError, r"leaves of shapes \[\(\)\], expected leaves \[T, \.\.\.\]"),
        (lambda: _filter(observations=()), ValueError, r"leaves of shapes \[\], expected leaves"),
        (lambda: _filter(observations=jnp.zeros((3, 2))), TypeError, "incompatible shapes"),
        (lambda: _filter(_controlled), ValueError, r"expected a pair \(values, controls\)"),
        (lambda: _filter(key=_raw), TypeError, "particle_filter: key is of dtype uint32, expected a typed key"),
        (lambda: _filter(key=jax.random.split(_key)), ValueError, r"key is a batch of keys \(2,\), expected one key"),
        (
            lambda: _filter(_walk(log_likelihood=lambda scale, x, y, time: jnp.zeros(x.shape, int))),
            ValueError,
            r"log_likelihood: its value is of shape \(4,\) and dtype int64, expected \[4\] floating",
        ),
        (
            lambda: _filter(_walk(sample_initial=lambda scale, key, num: jnp.zeros(2))),
            ValueError,
            r"sample_initial: its value is with leaves of shapes \[\(2,\)\], expected leaves \[4, \.\.\.\]",
        ),
        (
            lambda: _filter(ess_threshold=jnp.ones(3)),
            ValueError,
            r"ess_threshold is of shape \(3,\), expected a scalar",
        ),
        (lambda: _filter(gradient="soft", alpha=jnp.ones(3)), ValueError, "alpha is of shape"),
        (lambda: filtering.soft_resample(_key, _clouds[0], jnp.ones(3)), ValueError, "alpha is of shape"),
        (lambda: filtering.MePFRNN(2, alpha="x", rngs=nnx.Rngs(0)), TypeError, "alpha is of type str"),
        (
            lambda: filtering.MePFRNN(2, range_scale=0, rngs=nnx.Rngs(0)),
            ValueError,
            "range_scale is 0, expected positive",
        ),
        (
            lambda: filtering.save_parameters("nowhere", _gru, nnx.split(_lstm)[1]),
            ValueError,
            "save_parameters: params is with",
        ),
        (
            lambda: _filter(_walk(sample_transition=lambda s, key, x, time: x[:2])),
            ValueError,
            r"sample_transition: its value is of shape \(2,\) and dtype float64, expected shape \(4,\)",
        ),
        (lambda: _walk(log_likelihood=None), TypeError, "StateSpaceModel: log_likelihood is None, expected a function"),
        (lambda: filtering.filter_init(_key, _model, 0.0, num_particles=0), ValueError, "filter_init: num_particles"),
        (lambda: filtering.filter_init(_key, None, 0.0, num_particles=2), TypeError, "model is of type NoneType"),
        (lambda: filtering.filter_init(_raw, _model, 0.0, num_particles=2), TypeError, "filter_init: key is of dtype"),
        (lambda: filtering.filter_init(_key, _controlled, 0.0, num_particles=2), ValueError, "expected a pair"),
        (lambda: filtering.filter_step(_raw, _model, None, 0.0), TypeError, "filter_step: key is of dtype uint32"),
        (lambda: filtering.observed_log_density(abs, jnp.ones(2, int)), TypeError, "observation is of dtype int64"),
        # exact filters
        (lambda: filtering.kalman_smoother(_level, jnp.ones((2, 1)), method=""), ValueError, "smoother: method is ''"),
        (lambda: filtering.kalman_smoother(None, jnp.ones((2, 1))), TypeError, "smoother: model is a NoneType"),
        (
            lambda: filtering.kalman_filter(_level, jnp.ones((2, 1), complex)),
            TypeError,
            "filter: observations is complex",
        ),
        (lambda: filtering.kalman_filter(_level, [[1.0], [1j]]), TypeError, "filter: observations is complex"),
        (
            lambda: filtering.kalman_filter(_level.replace(transition=jnp.ones((1, 1), complex)), jnp.ones((2, 1))),
            TypeError,
            "kalman_filter: transition is complex, expected a real dtype",
        ),
        (
            lambda: filtering.kalman_filter(_level.replace(transition=None), jnp.ones((2, 1))),
            TypeError,
            "kalman_filter: transition is None, expected an array",
        ),
        (
            lambda: _filter(filtering.as_state_space_model(_level), jnp.ones((3, 1), complex)),
            TypeError,
            "as_state_space_model: observation is of dtype complex128, expected a real dtype",
        ),
        (
            lambda: filtering.optimal_proposal(_level)(_key, jnp.ones((4, 1)), jnp.ones(1, complex), 1),
            TypeError,
            "optimal_proposal: observation is of dtype complex128, expected a real dtype",
        ),
        (lambda: filtering.simulate_linear_gaussian(_raw, _level, 2), TypeError, "key is of dtype uint32"),
        (lambda: filtering.simulate_linear_gaussian(_key, _level, 2.0), TypeError, "num_steps is of type float"),
        (lambda: filtering.optimal_proposal(_model), TypeError, "optimal_proposal: model is a StateSpaceModel"),
        (
            lambda: filtering.as_state_space_model(_level.replace(transition=jnp.eye(2))),
            ValueError,
            r"transition is of shape \(2, 2\), expected \[1, 1\]",
        ),
        (
            lambda: _filter(filtering.as_state_space_model(_level), jnp.zeros((3, 2))),
            ValueError,
            r"observation is of shape \(2,\), expected \[1\]",
        ),
        (lambda: _ranges(resolution=1.5), TypeError, "histogram_filter: resolution is of type float"),
        (lambda: _ranges(jnp.ones((2, 2), int)), TypeError, "ranges is of dtype int64"),
        (lambda: _ranges(jnp.ones((2, 5))), ValueError, r"k from 1 to 4, the number of beacons"),
        (lambda: _ranges(jitter=_inf), ValueError, "histogram_filter: jitter is inf, expected > 0"),
        # worlds
        (lambda: filtering.world_from_map("walls", ["##", "##"]), ValueError, "rows is without a beacon"),
        (lambda: filtering.world_from_map("walls", ["#B", "BB"]), ValueError, "rows is without a free cell"),
        (lambda: filtering.is_free(_world, jnp.ones((2, 3))), ValueError, r"is_free: positions is of shape \(2, 3\)"),
        (lambda: filtering.is_free(_world, jnp.ones(2, int)), TypeError, "positions is of dtype int64"),
        (lambda: filtering.nearest_ranges(_size, _poses, 1), ValueError, r"beacons is of shape \(3, 2, 3\), expected"),
        (lambda: filtering.simulate(_key, _world, 2, 3.0, num_ranges=2), TypeError, "num_steps is of type float"),
        (lambda: filtering.simulate(jax.random.split(_key), _world, 2, 3), ValueError, "simulate: key is a batch of"),
        (
            lambda: filtering.localization_model(_world, num_ranges=2, range_scale=jnp.ones(2)),
            ValueError,
            r"range_scale is of shape \(2,\), expected a scalar",
        ),
        (lambda: filtering.localization_model(_world, num_ranges=2, jitter=_nan), ValueError, "jitter is nan"),
        # learned cells and their training
        (lambda: filtering.PFGRUCell(6, alpha=_nan, rngs=nnx.Rngs(0)), ValueError, "PFGRUCell: alpha is nan"),
        (
            lambda: filtering.PFGRUCell(6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
            TypeError,
            "PFGRUCell: dtype is bfloat16, expected float32 or float64",
        ),
        (lambda: filtering.unroll(*_pair, jnp.ones((3, 2, 6)), _key, checkpoint=1), TypeError, "checkpoint is of type"),
        (lambda: filtering.normalize(jnp.zeros(3, jnp.float16)), TypeError, "log_weights is of dtype float16"),
        (lambda: filtering.filter_step(_key, _model, None, 0.0), TypeError, "state is of type NoneType"),
        (lambda: filtering.filter_init(_key, _model, 0.0, num_particles=2, mask=1), ValueError, "mask is of shape"),
        (lambda: filtering.PFLSTMCell(6, 2.0, rngs=nnx.Rngs(0)), TypeError, "PFLSTMCell: hidden is of type float"),
        (lambda: filtering.MePFRNN(action_features=1, rngs=nnx.Rngs(0)), ValueError, "action_features is 1, expected"),
        (lambda: filtering.initial_particles(_key, _gru, -1, 3), ValueError, "batch is -1, expected an int >= 0"),
        (lambda: filtering.initial_particles(_raw, _gru, 2, 3), TypeError, "initial_particles: key is of dtype uint32"),
        (
            lambda: _lstm(filtering.initial_particles(_key, _gru, 2, 3), jnp.zeros((2, 6)), _key),
            ValueError,
            r"PFLSTMCell: carry\.memory is None",
        ),
        (lambda: filtering.unroll(*_pair, jnp.ones((3, 2, 6), int), _key), TypeError, "inputs is of dtype int64"),
        (
            lambda: filtering.elbo_loss(_poses[:, :, None], _poses, _size, jnp.ones((3, 2)), weighted=True),
            ValueError,
            r"log_weights is of shape \(3, 2\), expected \(3, 2, 1\)",
        ),
        (lambda: filtering.localization_loss(_poses, _poses, _size, decay=_nan), ValueError, "decay is nan, expected"),
        (lambda: filtering.localization_loss(_poses, _poses, jnp.ones(3)), ValueError, r"size is of shape \(3,\)"),
        (lambda: filtering.motion_loss(*_pair, _poses, _raw, size=_size), TypeError, "motion_loss: key is of dtype"),
        (lambda: filtering.motion_loss(*_pair, _poses, _key, size=_poses), ValueError, r"size is of shape \(3, 2, 3\)"),
        (lambda: filtering.motion_loss(*_pair, _poses, _key, size=_size, num_starts=0), ValueError, "num_starts is 0"),
        (lambda: filtering.motion_loss(*_pair, _poses, _key, size=_size, jitter=-1.0), ValueError, r"jitter is -1\.0"),
        (lambda: _train(steps=-1), ValueError, "train: steps is -1, expected an int >= 0"),
        (lambda: _train(loss_weight=-1.0), ValueError, r"loss_weight is -1\.0, expected >= 0"),
        (lambda: _train(motion_weight=_nan), ValueError, "motion_weight is nan"),
        (lambda: _train(3), TypeError, "trajectories is of type int, expected Trajectories, or a pair"),
        (lambda: _train((jnp.ones((3, 0, 6)), jnp.ones((3, 0, 3)))), ValueError, r"inputs is of shape \(3, 0, 6\)"),
        (lambda: _train((jnp.ones((3, 2, 5)), _poses)), ValueError, r"inputs is of shape \(2, 5\), expected \[2, 6\]"),
        (lambda: _train(loss=lambda *_: jnp.ones(2)), ValueError, r"value of loss is of shape \(2,\), expected a scal"),
        (lambda: filtering.evaluate(*_pair, _tracks, _world, key=_raw), TypeError, "evaluate: key is of dtype uint32"),
        (lambda: filtering.evaluate(*_pair, None, _world, key=_key), TypeError, "trajectories is of type NoneType"),
        (
            lambda: filtering.evaluate(*_pair, _tracks, _world, key=_key, num_particles=0),
            ValueError,
            "evaluate: num_particles is 0, expected an int >= 1",
        ),
        (lambda: filtering.load_parameters("cell.npz", 3), TypeError, "model is of type int, expected a cell"),
        (lambda: filtering.save_parameters("cell.npz", None), TypeError, "model is of type NoneType, expected a cell"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_results_without_what_is_asked_of_them():
    nothing, means = _filter(observations=jnp.zeros(0)), _filter()
    clouds = filtering.FilterHistory(jnp.zeros((3, 4), jnp.int32), jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    whole = means.replace(history=clouds)
    draw = partial(filtering.backward_sample, _key)
    for call, error, words in [
        (lambda: filtering.degeneracy(nothing), ValueError, "result is without observations"),
        (lambda: filtering.genealogy(means), ValueError, "genealogy: result is without ancestors"),
        (lambda: filtering.smoothed_mean(means), ValueError, "filter with history='full'"),
        (lambda: draw(_model, means.replace(history=clouds.replace(particles=None)), 2), ValueError, "without particl"),
        (lambda: draw(_model, whole, 0), ValueError, "backward_sample: num is 0"),
        (lambda: draw(_model, whole, 2, batch_size=0), ValueError, "batch_size is 0"),
        (lambda: draw(_walk(transition_log_density=None), whole, 2), ValueError, "transition_log_density is None"),
        (lambda: draw(_controlled, whole, 2), ValueError, r"controls is None, expected \[T, \.\.\.\]"),
        (lambda: filtering.backward_sample(_raw, _model, whole, 2), TypeError, "backward_sample: key is of dtype"),
        (
            lambda: filtering.filter_step(_key, _model, filtering.FilterState(*_clouds, 0.0, 0, 0), 0.0, alpha=0.0),
            ValueError,
            r"filter_step: alpha is 0\.0",
        ),
    ]:
        with pytest.raises(error, match=words):
            call()


def test_files_that_are_no_parameters(tmp_path):
    """Each is refused and left as it was; a folder that is not there is named, and nothing is made."""
    text, numbers = tmp_path / "notes.npz", tmp_path / "numbers.npz"
    text.write_text("do not lose this")
    np.savez(numbers, description=np.array('{"format": "another", "model": {}, "meta": {}}'))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path, words in [(text, "cannot be read"), (tmp_path, "IsADirectory"), (numbers, "in the format 'another'")]:
        with pytest.raises(ValueError, match=words):
            filtering.load_parameters(path, _gru)
    with pytest.raises(TypeError, match="JSON"):
        filtering.save_parameters(text, _gru, meta={"key": _key})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        filtering.save_parameters(tmp_path / "nowhere" / "cell.npz", _gru)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


_GOOD = np.array([0.2, -0.4, 0.1, 0.3])
_NEVER = 1e200  # its squared distance overflows: no particle can explain it
_RECORDS = {
    "good": (_GOOD, Status.OK),
    "nothing seen": (_GOOD * _nan, Status.OK),
    "impossible at first": (np.array([_NEVER, *_GOOD[1:]]), Status.DEGENERATE),
    "impossible later": (np.array([*_GOOD[:2], _NEVER, _GOOD[3]]), Status.DEGENERATE),
    "impossible always": (np.full(4, _NEVER), Status.DEGENERATE),
    "missing, then impossible": (np.array([_nan, _NEVER, _nan, _GOOD[3]]), Status.DEGENERATE),
    "infinite": (np.array([*_GOOD[:3], -_inf]), Status.NONFINITE_INPUT),
}


@pytest.mark.parametrize("options", [{}, {"gradient": "soft", "resampling": "killing"}], ids=["stop", "soft"])
def test_records_that_cannot_be_explained_harm_no_neighbour(options):
    """One batch of all kinds: statuses, evidence, no NaN; derivatives are finite but for the record that is not."""

    def run(scale, observations):
        result = _filter(_walk(scale), observations, ess_threshold=1.0, history="full", **options)
        finite = jnp.where(result.log_evidence_increments > -jnp.inf, result.log_evidence_increments, 0.0)
        return jnp.sum(finite) + jnp.sum(result.mean), result

    program = jax.jit(jax.vmap(jax.value_and_grad(run, has_aux=True)))
    rows = np.stack([rows for rows, _ in _RECORDS.values()])
    (_, result), slopes = program(jnp.ones(len(rows)), jnp.asarray(rows))
    assert result.status.tolist() == [int(status) for _, status in _RECORDS.values()]
    dead = (np.abs(rows) >= _NEVER) & ~np.isnan(rows)
    assert np.array_equal(np.isneginf(result.log_evidence_increments), dead)
    assert np.array_equal(np.isneginf(result.log_evidence), dead.any(1))
    assert float(result.log_evidence[1]) == 0
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(result) if leaf.dtype == np.float64)
    assert np.isfinite(slopes[:-1]).all()
    assert np.isfinite(result.mean).all()
    # the cloud is that of a record in which these rows are missing
    (_, unseen), _ = program(jnp.ones(len(rows)), jnp.asarray(np.where(dead, _nan, rows)))
    for name in ("particles", "log_weights"):
        np.testing.assert_array_equal(getattr(result.history, name), getattr(unseen.history, name))
    np.testing.assert_array_equal(result.history.particles[2, 0], result.history.particles[0, 0])
    # beside seven good ones it is the same
    (_, neighbours), theirs = program(jnp.ones(len(rows)), jnp.asarray(np.tile(_GOOD, (len(rows), 1))))
    for one, other in zip(jax.tree.leaves((result, slopes)), jax.tree.leaves((neighbours, theirs)), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_likelihoods_of_every_kind_of_number():
    """One a particle, as parameters of the model: what is not finite is a weight of zero, in its own member."""
    rows = np.array(
        [
            [0.0, 1.0, 2.0, 3.0],
            [0.0, -_inf, 2.0, -_inf],
            [0.0, _nan, 2.0, _inf],
            [_inf, _inf, _inf, _nan],
            [-_inf, -_inf, -_inf, -_inf],
            [-1e300, -1e300, 1e300, -1e300],
        ]
    )

    @jax.jit
    @jax.vmap
    def run(row):
        model = _model.replace(log_likelihood=Partial(lambda row, x, y, time: row, row))
        return _filter(model, jnp.zeros(1))

    result = run(jnp.asarray(rows))
    bad, dead = Status.NONFINITE_RESULT, Status.DEGENERATE
    assert result.status.tolist() == [0, 0, int(bad), int(bad), int(dead), 0]
    largest = np.array([3.0, 2, 2, 0, 0, 1e300])
    weights = np.where(np.isfinite(rows), np.exp(rows - largest[:, None]), 0)
    with np.errstate(divide="ignore"):
        expected = np.log(weights.mean(1)) + largest
    np.testing.assert_allclose(result.log_evidence, expected, rtol=1e-14)
    weights[3:5] = 1
    np.testing.assert_allclose(np.exp(result.log_weights), weights / weights.sum(1, keepdims=True), rtol=1e-14)
    assert np.isfinite(result.mean).all()


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_every_kind_choose_ancestors_that_exist(method):
    clouds = np.array(
        [
            [0.0, -1.0, -2.0, 0.5],
            [_nan, 0.0, _inf, -_inf],
            [-_inf] * 4,
            [_nan] * 4,
            [_inf] * 4,
            [-1e308, -1e308, 1e308, -1e308],
        ]
    )
    choose = jax.jit(jax.vmap(lambda key, x: filtering.resample(key, x, method=method)))
    keys = jax.random.split(_key, len(clouds))
    ancestors = np.asarray(choose(keys, jnp.asarray(clouds)))
    assert ((ancestors >= 0) & (ancestors < 4)).all()
    assert (ancestors[1] == 1).all()
    assert (ancestors[5] == 2).all()
    np.testing.assert_array_equal(ancestors[0], choose(keys, jnp.asarray(np.tile(clouds[0], (6, 1))))[0])


def test_linear_gaussian_models_that_are_none():
    """Samples and densities of a model with an indefinite covariance are NaN, and a filter of it finds nothing."""
    bad = _level.replace(transition_covariance=-jnp.ones((1, 1)))
    models = jax.tree.map(lambda *leaves: jnp.stack(leaves), _level, bad)

    @jax.jit
    @jax.vmap
    def run(model):
        states, observations = filtering.simulate_linear_gaussian(_key, model, 3)
        system = filtering.as_state_space_model(model)
        proposal = filtering.optimal_proposal(model)
        return (
            states,
            observations,
            _filter(system, jnp.zeros((3, 1))),
            _filter(system, jnp.zeros((3, 1)), proposal=proposal),
        )

    states, observations, *results = run(models)
    assert np.isfinite(states[0]).all()
    assert np.isfinite(observations[0]).all()
    assert np.isnan(states[1, 1:]).all()
    assert np.isnan(observations[1, 1:]).all()
    for result in results:
        assert result.status.tolist() == [Status.OK, Status.NONFINITE_RESULT]
        assert np.isfinite(result.log_evidence[0])
        assert float(result.log_evidence[1]) == -_inf
        assert np.isfinite(result.mean).all()


def test_numbers_that_are_not_finite_in_worlds():
    """Traced scales, ranges and moves: NaN or a status in that member, and the first as if alone."""
    ranges, actions = np.asarray(_tracks.ranges[0]), np.asarray(_tracks.actions[0])
    lost = actions.copy()
    lost[1, 0] = 50.0
    members = [
        (ranges, actions, 0.3, Status.OK),
        (ranges * _nan, actions, 0.3, Status.OK),
        (np.where(ranges == ranges[1, 0], _inf, ranges), actions, 0.3, Status.NONFINITE_INPUT),
        (ranges, actions * _nan, 0.3, Status.NONFINITE_INPUT),
        (ranges, lost, 0.3, Status.DEGENERATE),
    ]
    arrays = [jnp.asarray(np.stack(column)) for column in list(zip(*members, strict=True))[:3]]

    @jax.jit
    @jax.vmap
    def run(ranges, actions, scale):
        model = filtering.localization_model(_world, num_ranges=2, range_scale=scale)
        cloud = filtering.particle_filter(_key, model, (ranges, actions), num_particles=50)
        grid = filtering.histogram_filter(_world, (ranges, actions), resolution=2, range_scale=scale)
        return cloud, grid

    cloud, grid = run(*arrays)
    assert grid.status.tolist() == [int(member[3]) for member in members]
    assert np.isnan(grid.means[2:4]).all()
    assert np.isnan(grid.log_evidence[2:4]).all()
    assert np.isfinite(grid.means[jnp.array([0, 1, 4])]).all()
    assert cloud.status.tolist() == [0, 0, Status.NONFINITE_INPUT, Status.DEGENERATE, Status.DEGENERATE]
    assert not np.isnan(cloud.log_evidence).any()
    assert np.isfinite(cloud.mean).all()
    same = run(*(jnp.broadcast_to(array[:1], array.shape) for array in arrays))
    for ours, theirs in zip(jax.tree.leaves((cloud, grid)), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


def test_inputs_of_a_cell_that_are_not_finite_stay_in_their_sequence():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 6)))
    run = partial(filtering.unroll, *_pair, key=_key, num_particles=3)
    good = run(inputs)
    for bad in (_nan, _inf, 1e300):
        output = run(inputs.at[1, 2, 0].set(bad))
        np.testing.assert_array_equal(output.mean[:, :2], good.mean[:, :2])
        np.testing.assert_array_equal(output.log_weights[:, :2], good.log_weights[:, :2])
        assert not np.isnan(output.log_weights).any()
    assert run(inputs[:0]).mean.shape == (0, 3, 3)
