"""Bad input to jaxnm.tensor_train ends soon with the documented error or NaN, and harms nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import tensor_train

_key, _raw = jax.random.key(0), jnp.zeros(2, jnp.uint32)
_ones = lambda *sizes: [jnp.ones(size) for size in sizes]
_tt = tensor_train.from_cores(_ones((1, 3, 2), (2, 4, 1)))
_other = tensor_train.from_cores(_ones((1, 4, 2), (2, 3, 1)))
_batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _tt)
_matrix = tensor_train.matrix_from_cores(_ones((1, 2, 3, 2), (2, 2, 4, 1)))
_array = jnp.ones((3, 4))
_from_dense = partial(tensor_train.from_dense, max_rank=2)
_large = tensor_train.from_cores(_ones(*[(1, 10, 1)] * 20))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        # cores
        (lambda: tensor_train.from_cores([]), ValueError, "from_cores: cores is empty, expected at least one"),
        (lambda: tensor_train.from_cores(_ones((1, 0, 1))), ValueError, r"cores\[0\] is of shape \(1, 0, 1\)"),
        (lambda: tensor_train.from_cores(_ones((1, 3, 2), (2, 3))), ValueError, r"cores\[1\] is of shape \(2, 3\)"),
        (lambda: tensor_train.from_cores(_ones((1, 3, 2), (3, 4, 1))), ValueError, "3 before and 2 behind bond 1"),
        (lambda: tensor_train.from_cores(_ones((2, 3, 1))), ValueError, "the rank is 2 before and 1 behind bond 0"),
        (lambda: tensor_train.from_cores(_ones((1, 3, 2))), ValueError, "the rank is 1 before and 2 behind bond 1"),
        (lambda: tensor_train.from_cores(_ones((1, 3, 2), (2, 3, 1)), max_rank=1), ValueError, "expected an int >= 2"),
        (lambda: tensor_train.from_cores([jnp.ones((1, 3, 1), int)]), TypeError, r"cores\[0\] is of dtype int64"),
        (lambda: tensor_train.from_cores([[[["a"]]]]), TypeError, r"cores\[0\] is a list that is no array"),
        (lambda: jax.jit(tensor_train.to_cores)(_tt), ValueError, "to_cores: tt is traced, expected"),
        (lambda: tensor_train.to_cores(_array), TypeError, "to_cores: tt is of type .*, expected a TT"),
        # trains that are none, or do not go together
        (lambda: tensor_train.norm(_array), TypeError, "norm: tt is of type .*, expected a TT; see from_cores"),
        (lambda: tensor_train.norm(_batch), ValueError, "use jax.vmap for a batch of trains"),
        (lambda: tensor_train.norm(_tt.replace(shape=(3, 5))), ValueError, r"with cores of shape \(2, 2, 4, 2\)"),
        (lambda: tensor_train.norm(_tt.replace(shape=())), ValueError, r"for modes \(\)"),
        (lambda: tensor_train.norm(_tt.replace(ranks=jnp.ones(2, jnp.int32))), ValueError, r"ranks of shape \(2,\)"),
        *(
            (partial(getattr(tensor_train, name), _tt, _other), ValueError, rf"{name}: b is of shape \(4, 3\), exp")
            for name in ("add", "subtract", "hadamard", "dot", "distance")
        ),
        (lambda: _tt + 1.0, TypeError, "unsupported operand"),
        (lambda: tensor_train.add(_tt, 1.0), TypeError, "add: b is of type float"),
        (lambda: tensor_train.scale(_tt, jnp.ones(3)), ValueError, "scale: factor is of shape"),
        (lambda: _tt * "two", TypeError, None),
        # what is asked of a train
        (lambda: tensor_train.gather(_tt, jnp.zeros((1, 2))), TypeError, "gather: indices is of dtype float64"),
        (lambda: tensor_train.gather(_tt, jnp.zeros((1, 3), int)), ValueError, r"expected \[m, 2\]"),
        (lambda: tensor_train.gather(_tt, jnp.zeros(2, int)), ValueError, r"expected \[m, 2\]"),
        (lambda: tensor_train.integrate(_tt, _ones((3,))), ValueError, "weights is of length 1, expected 2 arrays"),
        (lambda: tensor_train.integrate(_tt, _ones((3,), (3,))), ValueError, r"weights\[1\] is of shape \(3,\), exp"),
        (lambda: tensor_train.integrate(_tt, [jnp.ones(3, int)] * 2), TypeError, r"weights\[0\] is of dtype int64"),
        *(
            (partial(tensor_train.marginal, _tt, modes), ValueError, "marginal: ")
            for modes in ([], [2], [-3], [1, 0], [0, 0], [0, -2])
        ),
        (lambda: tensor_train.marginal(_tt, [0.5]), TypeError, "a mode is of type float"),
        (lambda: tensor_train.to_dense(_large), ValueError, "to_dense: tt is of 100000000000000000000 entries"),
        (lambda: tensor_train.to_dense(_tt, max_size=11), ValueError, "at most max_size = 11"),
        # rounding
        *(
            (partial(function, argument, **options), error, words)
            for function, argument in ((tensor_train.round, _tt), (_from_dense, _array))
            for options, error, words in (
                ({"max_rank": 0}, ValueError, "max_rank is 0, expected an int >= 1"),
                ({"max_rank": 2.0}, TypeError, "max_rank is of type float"),
                ({"eps": -1e-3}, ValueError, "eps is -0.001, expected >= 0"),
                ({"eps": float("nan")}, ValueError, "eps is nan"),
                ({"eps": jnp.ones(2)}, ValueError, r"eps is of shape \(2,\), expected a scalar"),
                ({"method": "best"}, ValueError, "method is 'best', expected one of"),
                ({"method": "randomized"}, ValueError, "key is None, expected a key for 'randomized'"),
                ({"method": "randomized", "key": _raw}, TypeError, "expected a typed key"),
            )
        ),
        (lambda: tensor_train.round(_array), TypeError, "round: tt is of type"),
        # arrays
        (lambda: _from_dense(jnp.ones(())), ValueError, "array is of shape"),
        (lambda: _from_dense(jnp.ones((3, 0, 2))), ValueError, r"array is of shape \(3, 0, 2\)"),
        (lambda: _from_dense(jnp.ones((3, 4), int)), TypeError, "array is of dtype int64"),
        (lambda: _from_dense([["a"]]), TypeError, "array is a list"),
        # operators
        (lambda: tensor_train.matrix_from_cores([]), ValueError, "cores is empty"),
        (lambda: tensor_train.matrix_from_cores(_ones((1, 3, 1))), ValueError, r"cores\[0\] is of shape \(1, 3, 1\)"),
        (lambda: tensor_train.matrix_from_cores(_ones((1, 2, 2, 2))), ValueError, "1 before and 2 behind bond 1"),
        (lambda: tensor_train.matrix_from_cores([jnp.ones((1, 2, 2, 1), int)]), TypeError, "of dtype int64"),
        (lambda: jax.jit(tensor_train.matrix_to_cores)(_matrix), ValueError, "matrix is traced"),
        (lambda: tensor_train.matrix_to_cores(_tt), TypeError, "expected a TTMatrix"),
        (lambda: tensor_train.matvec(_tt, _tt), TypeError, "expected a TTMatrix"),
        (lambda: tensor_train.matvec(_matrix, _matrix), TypeError, "expected a TT"),
        (lambda: _matrix @ _other, ValueError, r"tt is of shape \(4, 3\), expected \(3, 4\)"),
        (lambda: _matrix @ _matrix, ValueError, r"b is with rows \(2, 2\), expected \(3, 4\)"),
        (lambda: _matrix @ 2.0, TypeError, "unsupported operand"),
        # sums
        (lambda: tensor_train.sum_many([], max_rank=2, key=_key), ValueError, "sum_many: trains is empty"),
        (lambda: tensor_train.sum_many([_tt, _other], max_rank=2, key=_key), ValueError, "sum_many: b is of shape"),
        (lambda: tensor_train.sum_many([_tt, _tt], max_rank=2), ValueError, "expected a key for 'randomized'"),
    ],
)  # fmt: skip
def test_what_is_known_while_tracing_raises(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("change", ["rank", "mode"])
def test_cores_with_numbers_beyond_ranks_or_modes_are_refused(change):
    """They were not made by this package; in a program they would be read as they are."""
    place = (0, 1, 0, 0) if change == "rank" else (0, 0, 3, 0)
    broken = _tt.replace(cores=_tt.cores.at[place].set(1.0))
    with pytest.raises(ValueError, match="to_cores: tt is with numbers beyond its ranks or modes"):
        tensor_train.to_cores(broken)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_give_nan_and_no_hang(bad):
    broken = _tt.replace(cores=_tt.cores.at[1, 0, 2, 0].set(bad))
    for method in ("qr_svd", "gram", "randomized"):
        rounded, error = tensor_train.round(broken, max_rank=1, method=method, key=_key, return_error=True)
        assert np.isnan(error)
        assert np.isnan(rounded.cores).any()
        assert 1 <= int(rounded.ranks[1]) <= 1
    assert np.isnan(tensor_train.norm(broken))
    assert np.isnan(tensor_train.distance(broken, _tt))
    assert not np.isfinite(tensor_train.dot(broken, broken))
    # entries elsewhere are not touched
    entries = np.asarray(tensor_train.gather(broken, jnp.asarray([[0, 0], [0, 2]], jnp.int32)))
    assert entries[0] == 2
    assert not np.isfinite(entries[1])
    for method in ("exact", "gram", "randomized"):
        tt = _from_dense(_array.at[1, 2].set(bad), method=method, key=_key)
        assert np.isnan(tt.cores).any()
        assert np.asarray(tt.ranks).tolist() == [1, 1, 1]


def test_a_rank_above_the_bound_is_clipped_and_one_mode_works():
    assert tensor_train.from_dense(_array, max_rank=1000).max_rank == 3
    assert np.asarray(tensor_train.round(_tt, max_rank=1000).ranks).tolist() == [1, 1, 1]
    vector = tensor_train.from_dense(jnp.arange(4.0), max_rank=7)
    assert np.asarray(tensor_train.round(vector + vector).ranks).tolist() == [1, 1]
    np.testing.assert_allclose(tensor_train.to_dense(tensor_train.round(vector + vector)), 2 * np.arange(4))


def test_a_bad_member_of_a_batch_harms_no_other():
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), _tt)
    batch = batch.replace(cores=batch.cores.at[1, 0, 0, 0, 0].set(jnp.nan))
    norms = jax.vmap(tensor_train.norm)(batch)
    np.testing.assert_allclose(np.asarray(norms)[[0, 2]], 2 * np.sqrt(12), rtol=1e-14)
    assert np.isnan(norms[1])
    gradients = jax.vmap(jax.grad(lambda cores: tensor_train.norm(_tt.replace(cores=cores))))(batch.cores)
    assert np.isfinite(np.asarray(gradients)[[0, 2]]).all()
    assert np.isnan(gradients[1]).any()


def test_more_entries_than_an_integer_counts():
    """10^20 entries: multi-indices are all that is ever used."""
    index = jnp.full((1, 20), 9, jnp.int32)
    assert float(tensor_train.gather(_large, index)[0]) == 1
    np.testing.assert_allclose(tensor_train.norm(_large), 1e10, rtol=1e-14)
    np.testing.assert_allclose(tensor_train.integrate(_large, [jnp.ones(10)] * 20), 1e20, rtol=1e-13)
