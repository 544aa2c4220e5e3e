"""Bad input to the optimizers on tensor trains ends soon with the documented error or status."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.status import Status
from jaxnm.tensor_train import grid_point, protes, protes_ask_tell, protes_with_gradients, ttopt, ttopt_ask_tell

_key = jax.random.key(0)
_shape = (4,) * 5
_f = lambda index: jnp.sum(index)
_digits = jnp.zeros(4, jnp.int32)
_complex = lambda index: jax.lax.complex(*[index[0].astype(float)] * 2)
_three = tensor_train.from_cores([jnp.ones((1, 3, 1))] * 3)
_hybrid = partial(protes_with_gradients, jnp.sum, key=_key, budget=5000)


def _tell(make, change):
    """Tells what ask returned, changed."""
    init, ask, tell = make(_shape)
    indices, state = ask(init(_key))
    return tell(state, *change(indices))


@pytest.mark.parametrize("optimizer", [protes, ttopt])
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"budget": 10}, ValueError, "budget is 10, expected at least"),
        ({"budget": 0}, ValueError, "budget is 0, expected an int >= 1"),
        ({"budget": 5000.0}, TypeError, "budget is of type float"),
        ({"budget": 2**31}, ValueError, "below 2"),
        ({"shape": ()}, ValueError, "shape is empty"),
        ({"shape": (2, 0)}, ValueError, r"shape\[1\] is 0"),
        ({"shape": 4}, ValueError, "a sequence"),
        ({"f": lambda index: index}, ValueError, "a scalar for one index"),
        ({"f": _complex}, TypeError, "real values"),
        ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, "typed key"),
        ({"key": jax.random.split(_key)}, ValueError, "a batch of keys"),
        ({"args": 1.0}, TypeError, "a tuple"),
        ({"rank": 0}, ValueError, "rank is 0"),
    ],
)
def test_both_refuse(optimizer, changes, error, words):
    call = {"f": _f, "shape": _shape, "key": _key, "budget": 5000, **changes}
    with pytest.raises(error, match=words):
        optimizer(call.pop("f"), call.pop("shape"), **call)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ttopt(_f, _shape, key=_key, budget=5000, rank=1), ValueError, "rank is 1, expected at least 2"),
        (lambda: ttopt(_f, _shape, key=_key, budget=5000, sites=3), ValueError, "sites is 3"),
        (lambda: ttopt(_f, _shape, key=_key, budget=5000, scale=0.0), ValueError, "scale is 0.0"),
        (lambda: ttopt(_f, _shape, key=_key, budget=5000, initial=jnp.ones((1, 5))), TypeError, "initial is of dtype"),
        (lambda: ttopt(_f, _shape, key=_key, budget=5000, initial=_digits), ValueError, "one row an index"),
        (lambda: protes(_f, _shape, key=_key, budget=5000, elite=200), ValueError, "elite is 200"),
        (lambda: protes(_f, _shape, key=_key, budget=5000, learning_rate=-1.0), ValueError, "learning_rate is -1"),
        (lambda: protes(_f, _shape, key=_key, budget=5000, initial=_three), ValueError, r"initial is of shape \(3, 3"),
        (lambda: protes(_f, _shape, key=_key, budget=5000, initial=1.0), TypeError, "expected a TT"),
        (lambda: _hybrid([]), ValueError, "grids is empty"),
        (lambda: _hybrid([jnp.ones((2, 2))]), ValueError, r"grids\[0\] is of shape"),
        (lambda: _hybrid([jnp.ones(3)], descents=101), ValueError, "descents is 101"),
        (lambda: _hybrid([jnp.ones(3)], budget=150), ValueError, "budget is 150, expected at least 205"),
        *(
            (partial(_tell, make, change), error, words)
            for make in (protes_ask_tell, ttopt_ask_tell)
            for change, error, words in (
                (lambda indices: (indices, jnp.ones(3)), ValueError, "values is of shape"),
                (lambda indices: (indices[:2], jnp.ones(2)), ValueError, "the "),
                (lambda indices: (indices[:, :3], jnp.ones(len(indices))), ValueError, "indices is of shape"),
                (lambda indices: (indices.astype(float), jnp.ones(len(indices))), TypeError, "indices is of dtype"),
            )
        ),
        (lambda: protes_ask_tell(_shape).init(0), TypeError, "typed key"),
        (lambda: grid_point(_digits, 0.0, 1.0, 3), ValueError, r"index is of shape \(4,\)"),
        (lambda: grid_point(_digits.astype(float), 0.0, 1.0, 2), TypeError, "integers"),
        (lambda: grid_point(_digits, jnp.zeros(3), 1.0, 2), ValueError, "lower is of shape"),
        (lambda: grid_point(_digits, 0.0, 1.0, 0), ValueError, "bits is 0"),
    ],
)
def test_what_is_known_while_tracing_raises(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("optimizer", [protes, ttopt])
def test_values_that_are_never_finite_are_said_and_end(optimizer):
    run = jax.jit(lambda bad: optimizer(lambda index: bad + index[0].astype(float), (3,) * 4, key=_key, budget=1000))
    for bad, status in ((jnp.nan, Status.NONFINITE_RESULT), (jnp.inf, Status.UNEXPLORED)):
        result = run(bad)
        assert int(result.status) == int(status)
        assert (float(result.best_value), result.best_index.tolist()) == (np.inf, [-1] * 4)


@pytest.mark.parametrize("optimizer", [protes, ttopt])
@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (5,)])
def test_degenerate_shapes_are_searched(optimizer, shape):
    result = optimizer(_f, shape, key=_key, budget=1000, rank=3)
    assert (float(result.best_value), int(result.status)) == (0, 0)


def test_more_nodes_than_an_integer_counts():
    """10^20 of them: a multi-index is all that is ever used."""
    result = ttopt(lambda index: jnp.sum((index - 7) ** 2), (10,) * 20, key=_key, budget=20_000)
    assert result.best_index.tolist() == [7] * 20
