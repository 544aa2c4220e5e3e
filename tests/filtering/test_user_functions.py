"""The functions of a model: known by what they do, and what they return is checked."""

import functools
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxnm import Status, filtering
from jaxnm.filtering.known_functions import known

_KEY = jax.random.key(0)
_scale = 1.0


def _initial(key, num):
    return jax.random.normal(key, (num,))


def _move(key, x, time):
    return x + jax.random.normal(key, x.shape)


def _likelihood(x, y, time):
    return -0.5 * ((y - x) / _scale) ** 2 - jnp.log(_scale)


def _by_helper(x, y, time):
    return _likelihood(x, y, time)


class _System:
    """An object whose parameter changes."""

    def __init__(self, scale):
        self.scale, self.parts = scale, {"shift": np.zeros(1)}

    def likelihood(self, x, y, time):
        return -0.5 * ((y - x - self.parts["shift"][0]) / self.scale) ** 2 - jnp.log(self.scale)

    def __call__(self, x, y, time):
        return self.likelihood(x, y, time)


def _filter(likelihood, observations=(0.5, 1.0, -0.3), **options):
    model = filtering.StateSpaceModel(_initial, _move, likelihood)
    return filtering.particle_filter(_KEY, model, jnp.asarray(observations), num_particles=20, **options)


def _expected(scale, shift=0.0):
    """By parameters that are leaves, which are never stale."""
    density = lambda args, x, y, time: -0.5 * ((y - x - args[1]) / args[0]) ** 2 - jnp.log(args[0])
    return float(_filter(Partial(density, (jnp.asarray(scale), jnp.asarray(shift)))).log_evidence)


def test_parameters_that_change_between_calls(monkeypatch):
    """Of an object whose method it is, in a global, in a global of another function, in a closure."""
    system, cell = _System(1.0), [1.0]
    functions = {
        "callable": system,
        "partial": functools.partial(_System.likelihood, system),
        "global": _likelihood,
        "helper": _by_helper,
        "closure": lambda x, y, time: -0.5 * ((y - x) / cell[0]) ** 2 - jnp.log(cell[0]),
        "method": system.likelihood,
    }
    meanings = lambda: {name: jax.tree.structure(known(function)) for name, function in functions.items()}
    before, one = meanings(), _expected(1.0)
    for name in ("helper", "method"):
        assert float(_filter(functions[name]).log_evidence) == pytest.approx(one, rel=1e-12), name
    assert meanings() == before
    system.scale = cell[0] = 2.0
    monkeypatch.setitem(globals(), "_scale", 2.0)
    after, two = meanings(), _expected(2.0)
    for name, function in functions.items():
        assert before[name] != after[name], name
        assert float(known(function)(0.0, 2.0, 0)) == pytest.approx(-0.5 - np.log(2), rel=1e-12), name
    for name in ("helper", "method"):
        assert float(_filter(functions[name]).log_evidence) == pytest.approx(two, rel=1e-12), name
    system.parts["shift"][0] = 0.3  # a NumPy array that is changed in place
    assert float(_filter(functions["method"]).log_evidence) == pytest.approx(_expected(2.0, 0.3), rel=1e-12)
    system.scale = jnp.asarray(1.0)
    assert float(_filter(functions["method"]).log_evidence) == pytest.approx(_expected(1.0, 0.3), rel=1e-12)


def test_functions_that_are_made_anew_compile_once():
    """Arrays in closures are arguments of the program: other values neither trace nor leak."""
    traces = deque()  # a list would be compared by what is in it

    def loss(theta):
        def likelihood(x, y, time):
            traces.append(1)
            return -0.5 * (y - theta * x) ** 2

        return _filter(likelihood).log_evidence

    values = [float(loss(jnp.asarray(value))) for value in (0.5, 0.6, 0.7)]
    assert len(set(values)) == 3
    assert len(traces) == 2  # at time 0, and in the scan
    gradient = jax.grad(loss)(jnp.asarray(0.6))
    assert float(gradient) == pytest.approx((values[2] - values[0]) / 0.2, rel=0.2)
    with jax.checking_leaks():
        jax.jit(jax.grad(loss)).trace(jnp.asarray(0.6))


def test_what_makes_functions_equal():
    make = lambda value: lambda x: x * value
    same = lambda f, g: jax.tree.structure(known(f)) == jax.tree.structure(known(g))
    assert same(make(jnp.ones(2)), make(jnp.zeros(2)))
    assert same(make(2.0), make(2.0))
    assert same(make({"a": np.ones(2)}), make({"a": np.ones(2)}))
    for one, other in ((2.0, 3.0), (1, 1.0), (True, 1), (0.0, -0.0), ({"a": 1}, {"a": 2}), (np.ones(2), np.zeros(2))):
        assert not same(make(one), make(other))
    assert same(jax.vmap(make(jnp.ones(()))), jax.vmap(make(jnp.zeros(()))))
    assert not same(lambda x: x + 1, lambda x: x + 2)
    assert float(known(make(jnp.asarray(3.0)))(2.0)) == 6
    assert float(known(_System(jnp.asarray(2.0)).likelihood)(0.0, 2.0, 0)) == pytest.approx(-0.5 - np.log(2))

    def countdown(x):
        return x if x <= 0 else countdown(x - 1)

    assert known(countdown)(3) == 0


_CLOUD = {"a": jnp.zeros(4), "n": jnp.zeros(4, int)}
_zeros = lambda x, y, time: jnp.zeros(4)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"sample_initial": lambda key, num: 3.0}, ValueError, r"sample_initial: its value .* expected leaves \[4, "),
        ({"sample_initial": lambda key, num: ()}, ValueError, "sample_initial: its value is with leaves"),
        ({"sample_initial": jax.random.split}, TypeError, "with a key among its leaves"),
        ({"sample_initial": lambda key, num: "x"}, TypeError, "with a str among its leaves"),
        ({"sample_transition": lambda key, x, time: {"a": x["a"]}}, ValueError, "sample_transition: .* of structure"),
        (
            {"sample_transition": lambda key, x, time: x | {"n": x["n"].astype(float)}},
            ValueError,
            r"its value\['n'\] is of shape \(4,\) and dtype float64, expected shape \(4,\) and dtype int64",
        ),
        ({"sample_transition": lambda key, x, time: x | {"a": x["a"][:2]}}, ValueError, r"value\['a'\] is of shape"),
        ({"log_likelihood": lambda x, y, time: jnp.zeros((4, 1))}, ValueError, "log_likelihood: its value is of shape"),
        ({"log_likelihood": lambda x, y, time: None}, ValueError, "log_likelihood: its value is a NoneType"),
        ({"log_likelihood": lambda x, y, time: jnp.zeros(4, jnp.float16)}, TypeError, "of dtype float16"),
        ({"proposal": lambda key, x, y, time: x}, TypeError, "proposal: its value is a dict, expected a pair"),
        ({"proposal": lambda key, x, y, time: (x, 0.0)}, ValueError, r"proposal: its value is of shape \(\)"),
        ({"proposal": lambda key, x, y, time: ({}, jnp.zeros(4))}, ValueError, "proposal: its value is of structure"),
        (
            {"proposal": lambda key, x, y, time: (x, jnp.zeros(4)), "transition_log_density": lambda *_: 0.0},
            ValueError,
            r"transition_log_density: its value is of shape \(\)",
        ),
        ({"auxiliary": lambda x, y, time: jnp.zeros((4, 1))}, ValueError, "auxiliary: its value is of shape"),
    ],
)
def test_what_a_function_returns_is_checked(changed, error, words):
    auxiliary = changed.pop("auxiliary", None) if "auxiliary" in changed else None
    functions = {
        "sample_initial": lambda key, num: _CLOUD,
        "sample_transition": lambda key, x, time: x,
        "log_likelihood": _zeros,
        "transition_log_density": lambda new, old, time: jnp.zeros(4),
    } | changed
    model = filtering.StateSpaceModel(**functions)
    with pytest.raises(error, match=words):
        filtering.particle_filter(_KEY, model, jnp.zeros(3), num_particles=4, auxiliary=auxiliary)


@pytest.mark.parametrize(
    ("observations", "options", "words"),
    [
        (["a", "b"], {}, "observations is with a list that is no array"),
        ([0.0, [1.0]], {}, "observations is with a list that is no array"),
        ([0.0, None], {}, "observations is with a list that is no array"),
        (jax.random.split(_KEY), {}, "observations is with a key"),
        (jnp.zeros(2), {"checkpoint": 1}, r"checkpoint is of type int, expected a Python bool"),
        (jnp.zeros(2), {"auxiliary": 3}, "auxiliary is of type int, expected a function"),
        (jnp.zeros(2), {"ess_threshold": jnp.float16(0.5)}, "ess_threshold is of dtype float16"),
    ],
)
def test_arguments_of_a_wrong_kind(observations, options, words):
    model = filtering.StateSpaceModel(_initial, _move, _zeros)
    with pytest.raises(TypeError, match=f"particle_filter: {words}"):
        filtering.particle_filter(_KEY, model, observations, num_particles=4, **options)


def test_lists_are_arrays():
    ours, theirs = (
        _filter(_likelihood, y) if isinstance(y, tuple) else _filter_list(y) for y in ((0.5, 1.0), [0.5, np.float64(1)])
    )
    assert float(ours.log_evidence) == float(theirs.log_evidence)
    nested = filtering.StateSpaceModel(
        _initial, lambda key, x, time, control: x + control[0], lambda x, y, time: y[1] * x, controlled=True
    )
    result = filtering.particle_filter(_KEY, nested, [[[0.0, 1.0], [2.0, 3.0]], [[1.0], [2.0]]], num_particles=4)
    assert result.mean.shape == (2,)


def _filter_list(values):
    model = filtering.StateSpaceModel(_initial, _move, _likelihood)
    return filtering.particle_filter(_KEY, model, values, num_particles=20)


def test_complex_states_are_carried():
    """A rotation seen in both parts: the filter of the two parts by themselves, and moments with their phases."""
    turn = np.exp(0.3j)
    observations = jnp.asarray([1.0 + 0.5j, 0.8 + 0.9j, 0.3 + 1.1j])

    def initial(key, num):
        parts = jax.random.normal(key, (2, num))
        return jax.lax.complex(parts[0], parts[1])

    def initial_parts(key, num):
        return jax.random.normal(key, (2, num)).T

    rotation = jnp.asarray([[turn.real, turn.imag], [-turn.imag, turn.real]])
    both = filtering.StateSpaceModel(
        initial, lambda key, x, time: x * turn, lambda x, y, time: -0.5 * jnp.abs(y - x) ** 2
    )
    parts = filtering.StateSpaceModel(
        initial_parts,
        lambda key, x, time: x @ rotation,
        lambda x, y, time: -0.5 * ((y.real - x[:, 0]) ** 2 + (y.imag - x[:, 1]) ** 2),
    )
    ours, theirs = (
        filtering.particle_filter(_KEY, model, observations, num_particles=60, history="full", ess_threshold=0.0)
        for model in (both, parts)
    )
    as_complex = lambda x: np.asarray(x)[..., 0] + 1j * np.asarray(x)[..., 1]
    assert int(ours.status) == Status.OK
    np.testing.assert_allclose(ours.log_evidence, theirs.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(ours.mean, as_complex(theirs.mean), rtol=1e-12)
    np.testing.assert_allclose(filtering.smoothed_mean(ours), as_complex(filtering.smoothed_mean(theirs)), rtol=1e-12)
    spread = filtering.particle_filter(_KEY, both, observations, num_particles=60, history="moments", ess_threshold=0.0)
    clouds, weights = np.asarray(ours.history.particles), np.exp(np.asarray(ours.history.log_weights))
    expected = np.sum(weights * np.abs(clouds - np.asarray(ours.mean)[:, None]) ** 2, 1)
    np.testing.assert_allclose(spread.covariance, expected, rtol=1e-12)


# ---------------------------------------------------------------------------------------------- backward sampling


def _paths(density, status=0):
    clouds = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    history = filtering.FilterHistory(jnp.zeros((4, 6), jnp.int32), clouds, jnp.full((4, 6), -np.log(6)))
    result = filtering.FilterResult(*[jnp.zeros(4)] * 7, None, history, jnp.int32(status))
    model = filtering.StateSpaceModel(_initial, _move, _likelihood, transition_log_density=density)
    return filtering.backward_sample(_KEY, model, result, 5)


def test_trajectories_that_cannot_be_drawn():
    good = lambda new, old, time: -0.5 * (new - old) ** 2
    assert np.asarray(_paths(good).status).tolist() == [Status.OK] * 5
    assert np.asarray(_paths(good, Status.DEGENERATE).status).tolist() == [Status.DEGENERATE] * 5
    for value, status in ((-np.inf, Status.DEGENERATE), (np.nan, Status.NONFINITE_RESULT)):
        # at the move into time 2 nothing is possible: times 0 and 1 are lost
        paths = _paths(lambda new, old, time, value=value: jnp.where(time == 2, value, good(new, old, time)))
        assert np.asarray(paths.status).tolist() == [status] * 5
        assert np.array_equal(np.isnan(paths.states), np.tile([True, True, False, False], (5, 1)))
    spoiled = _paths(lambda new, old, time: jnp.where(jnp.arange(6) == 0, jnp.nan, good(new, old, time)))
    assert np.asarray(spoiled.status).tolist() == [Status.NONFINITE_RESULT] * 5
    assert np.isfinite(spoiled.states).all()
    for wrong in (lambda new, old, time: jnp.zeros(()), lambda new, old, time: jnp.zeros((6, 1))):
        with pytest.raises(ValueError, match="transition_log_density: its value is of shape"):
            _paths(wrong)
