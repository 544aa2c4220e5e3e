"""Bad input to cross approximation ends soon with the documented error or status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train
from jaxnm.status import Status

_key, _raw = jax.random.key(0), jnp.zeros(2, jnp.uint32)
_options = {"max_rank": 2, "tol": 1e-6, "key": _key}
_sum = lambda index: jnp.sum(index.astype(float))
_host_sum = lambda indices: indices.sum(1).astype(float)
_grids = [jnp.linspace(0.0, 1.0, 3)] * 2
_box = jnp.array([[0.0, 1.0]] * 2)


def _from_function(f=_sum, shape=(3, 4), **changes):
    return tensor_train.from_function(f, shape, **_options | changes)


def _from_black_box(f=_host_sum, shape=(3, 4), **changes):
    return tensor_train.from_black_box(f, shape, **_options | changes)


def _from_function_on(grids, f=jnp.sum, **changes):
    return tensor_train.from_function_on(f, grids, **_options | changes)


def _chebyshev(box, degree, f=jnp.sum, **changes):
    return tensor_train.chebyshev(f, box, degree, **_options | changes)


_both = [
    ({"shape": ()}, ValueError, "shape is empty"),
    ({"shape": 3}, ValueError, "shape is 3, expected a sequence"),
    ({"shape": (3, 0)}, ValueError, r"shape\[1\] is 0"),
    ({"shape": (3, 2.0)}, TypeError, r"shape\[1\] is of type float"),
    ({"max_rank": 0}, ValueError, "max_rank is 0"),
    ({"max_sweeps": 0}, ValueError, "max_sweeps is 0"),
    ({"tol": -1.0}, ValueError, "tol is -1.0"),
    ({"tol": float("nan")}, ValueError, "tol is nan"),
    ({"initial": jnp.zeros((2, 3), jnp.int32)}, ValueError, "initial is of shape"),
    ({"initial": jnp.full((2, 2), 9)}, ValueError, "initial is outside"),
    ({"initial": jnp.full((2, 2), -1)}, ValueError, "initial is outside"),
    ({"initial": jnp.zeros((2, 2))}, TypeError, "initial is of dtype"),
    ({"key": _raw}, TypeError, "key is of dtype"),
    ({"search": "maxvol"}, ValueError, "search is 'maxvol'"),
]


@pytest.mark.parametrize("call", [_from_function, _from_black_box])
@pytest.mark.parametrize(("changes", "error", "words"), _both)
def test_bad_arguments(call, changes, error, words):
    with pytest.raises(error, match=words):
        call(**changes)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: _from_function(jnp.sum), TypeError, "the value of f is .* of int"),
        (lambda: _from_function(lambda i: 1.0 * i.astype(float)), TypeError, r"the value of f is \(2,\)"),
        (lambda: _from_function(lambda i: None), TypeError, "the value of f is NoneType"),
        (lambda: _from_function(tol=jnp.ones(2)), ValueError, r"tol is of shape \(2,\)"),
        (lambda: _from_function_on([]), ValueError, "grids is empty"),
        (lambda: _from_function_on([jnp.ones((2, 2))]), ValueError, r"grids\[0\] is of shape \(2, 2\)"),
        (lambda: _from_function_on([jnp.ones(0)]), ValueError, r"grids\[0\] is of shape \(0,\)"),
        (lambda: _from_function_on([jnp.arange(3)]), TypeError, r"grids\[0\] is of dtype int64"),
        (lambda: _from_black_box(lambda i: i.sum(1)), TypeError, "the value of f is of dtype int"),
        (lambda: _from_black_box(lambda i: 1.0), ValueError, r"the value of f is of shape \(\)"),
        (lambda: _from_black_box(samples=0), ValueError, "samples is 0"),
        (lambda: jax.jit(lambda t: _from_black_box(tol=t))(1e-3), ValueError, "is traced"),
        (lambda: _chebyshev(jnp.ones(2), 3), ValueError, r"box is of shape \(2,\)"),
        (lambda: _chebyshev(_box, [3, 3, 3]), ValueError, "degree is of length 3, expected one number or 2"),
        (lambda: _chebyshev(_box, -1), ValueError, r"degree\[0\] is -1"),
        (lambda: _chebyshev(_box, 1.5), TypeError, r"degree\[0\] is of type float"),
        (
            lambda: _chebyshev(jnp.array([[1.0, 0.0]]), 3),
            ValueError,
            "box is empty in a variable, expected lower < upper",
        ),
        (lambda: tensor_train.evaluate(_grids, jnp.ones((1, 2))), TypeError, "train is of type list"),
    ],
)
def test_what_is_known_while_tracing_raises(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_one_bad_member_of_a_batch_harms_no_other():
    """f that is NaN, infinite, zero or constant; flagged where it is not a number, and never a pivot."""
    # jitted once for all of them
    run = lambda a: tensor_train.from_function(lambda i, a: a * (1 + _sum(i)), (3, 4, 2), **_options, args=(a,))
    results = jax.vmap(run)(jnp.array([1.0, jnp.nan, jnp.inf, 0.0, 1e-300, 1e300]))
    bad = Status.NONFINITE_INPUT
    assert results.status.tolist() == [0, bad, bad, 0, 0, 0]
    assert results.best_value.tolist() == [7.0, 0.0, 0.0, 0.0, 7e-300, 7e300]
    assert np.isfinite(results.tt.cores).all()
    truth = 1 + np.indices((3, 4, 2)).sum(0)
    for k, factor in ((0, 1.0), (4, 1e-300), (5, 1e300)):
        tt = jax.tree.map(lambda x, k=k: x[k], results.tt)
        np.testing.assert_allclose(tensor_train.to_dense(tt) / factor, truth, rtol=1e-12)


def test_more_entries_than_an_integer_counts():
    """The linear index of 10^40 entries overflows; multi-indices do not. A rank above the bound is clipped."""
    result = tensor_train.from_function(_sum, (10,) * 40, max_rank=2, tol=1e-10, key=_key)
    assert int(result.status) == 0
    np.testing.assert_allclose(tensor_train.gather(result.tt, jnp.full((1, 40), 9, jnp.int32)), 360.0, rtol=1e-12)
    small = _from_function(max_rank=1000)
    assert small.tt.max_rank == 3
