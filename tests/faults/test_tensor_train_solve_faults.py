"""Bad linear systems in train form end soon with the documented error, status or NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm.status import Status
from jaxnm.tensor_train import from_cores, matrix_from_cores, to_cores
from jaxnm.tensor_train.laplace import (
    kronecker_sum,
    laplace_inverse,
    laplace_inverse_factors,
    laplace_inverse_matrix,
)
from jaxnm.tensor_train.solve import solve

_key, _raw = jax.random.key(0), jnp.zeros(2, jnp.uint32)
_second = 2 * jnp.eye(3) - jnp.eye(3, k=1) - jnp.eye(3, k=-1)
_operator = kronecker_sum([_second] * 2)
_tt = from_cores([jnp.ones((1, 3, 1))] * 2)
_other = from_cores([jnp.ones((1, 4, 1))] * 2)
_batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), _tt)
_complex = from_cores([jnp.ones((1, 3, 1), complex)] * 2)
_wide = matrix_from_cores([jnp.ones((1, 2, 3, 1))] * 2)
_solve = partial(solve, _operator, _tt)
_good = {"max_rank": 2, "key": _key}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: solve(_tt, _tt, **_good), TypeError, "solve: matrix is of type TT, expected a TTMatrix"),
        (lambda: solve(_operator, _operator, **_good), TypeError, "solve: right is of type TTMatrix, expected a TT"),
        (lambda: solve(_wide, _tt, **_good), ValueError, "expected a square one; give as many equations as unknowns"),
        (lambda: solve(_operator, _other, **_good), ValueError, r"right is of shape \(4, 4\), expected \(3, 3\)"),
        (lambda: _solve(**_good, initial=_other), ValueError, r"initial is of shape \(4, 4\), expected \(3, 3\)"),
        (lambda: _solve(**_good, initial=jnp.ones(3)), TypeError, "initial is of type"),
        (lambda: solve(_operator, _batch, **_good), ValueError, "use jax.vmap for a batch of trains"),
        (lambda: _solve(max_rank=0, key=_key), ValueError, "max_rank is 0, expected an int >= 1"),
        (lambda: _solve(max_rank=2.0, key=_key), TypeError, "max_rank is of type float"),
        (lambda: _solve(**_good, max_sweeps=0), ValueError, "max_sweeps is 0"),
        (lambda: _solve(**_good, enrichment=0), ValueError, "enrichment is 0"),
        (lambda: _solve(**_good, tol=0.0), ValueError, "tol is 0.0, expected > 0"),
        (lambda: _solve(**_good, tol=float("nan")), ValueError, "tol is nan"),
        (lambda: _solve(**_good, tol=jnp.ones(2)), ValueError, r"tol is of shape \(2,\), expected a scalar"),
        (lambda: _solve(max_rank=2, key=_raw), TypeError, "expected a typed key"),
        (
            lambda: jax.grad(lambda t: solve(_operator, t * _tt, **_good).residual)(1.0),
            TypeError,
            "solve: an argument is differentiated, expected no derivative; solve the adjoint system",
        ),
        # sums of operators
        (lambda: kronecker_sum([]), ValueError, "kronecker_sum: matrices is empty"),
        (lambda: kronecker_sum([jnp.ones((2, 3))]), ValueError, r"matrices\[0\] is of shape \(2, 3\)"),
        (lambda: kronecker_sum([jnp.ones((0, 0))]), ValueError, r"matrices\[0\] is of shape \(0, 0\)"),
        (lambda: kronecker_sum([jnp.ones((2, 2), int)]), TypeError, r"matrices\[0\] is of dtype int64"),
        # their inverses
        (lambda: laplace_inverse(jnp.ones(3)), TypeError, "laplace_inverse: right is of type"),
        (lambda: laplace_inverse(_complex), TypeError, "expected a real dtype"),
        *(
            (partial(function, argument, **options), error, words)
            for function, argument in (
                (laplace_inverse, _tt),
                (laplace_inverse_factors, [jnp.ones(3)] * 2),
                (laplace_inverse_matrix, (3, 3)),
            )
            for options, error, words in (
                ({"eps": 0.0}, ValueError, "eps is 0.0, expected a Python number between 0 and 1"),
                ({"eps": 1.0}, ValueError, "eps is 1.0"),
                ({"eps": jnp.asarray(1e-3)}, ValueError, "it is static"),
                ({"condition": 0.5}, ValueError, "condition is 0.5, expected a Python number >= 1"),
                ({"condition": float("inf")}, ValueError, "condition is inf"),
                ({"spacing": 0.0}, ValueError, "spacing is 0.0, expected > 0"),
                ({"spacing": jnp.ones(3)}, ValueError, r"spacing is of shape \(3,\), expected a scalar or \[2\]"),
                ({"spacing": jnp.ones(2, int)}, TypeError, "spacing is of dtype int64"),
                ({"matrices": []}, ValueError, "matrices is empty"),
                ({"matrices": [_second]}, ValueError, r"matrices is of sizes \(3,\), expected \(3, 3\)"),
                ({"matrices": [jnp.eye(4)] * 2}, ValueError, r"of sizes \(4, 4\), expected \(3, 3\)"),
                ({"matrices": [jnp.ones((3, 2))] * 2}, ValueError, r"matrices\[0\] is of shape \(3, 2\)"),
            )
        ),
        (lambda: laplace_inverse_factors([]), ValueError, "rows is empty, expected at least one"),
        (lambda: laplace_inverse_factors([jnp.ones(0)]), ValueError, r"rows\[0\] is of shape \(0,\)"),
        (lambda: laplace_inverse_factors([jnp.ones(3, int)]), TypeError, r"rows\[0\] is of dtype int64"),
        (lambda: laplace_inverse_matrix(()), ValueError, "shape is empty"),
        (lambda: laplace_inverse_matrix((3, 0)), ValueError, r"shape\[1\] is 0"),
    ],
)  # fmt: skip
def test_what_is_known_while_tracing_raises(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_at_once_and_harm_no_other_member(bad):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), _tt)
    batch = batch.replace(cores=batch.cores.at[1, 0, 0, 0, 0].set(bad))
    result = jax.vmap(lambda b: solve(_operator, b, max_rank=3, tol=1e-9, key=_key))(batch)
    assert np.asarray(result.status).tolist() == [Status.OK, Status.NONFINITE_INPUT, Status.OK]
    assert np.isnan(np.asarray(result.tt.cores[1])).any()
    assert np.isnan(result.residual[1])
    for k in (0, 2):
        cores = to_cores(jax.tree.map(lambda leaf, k=k: leaf[k], result.tt))
        found = np.einsum("aib,bjc->ij", *map(np.asarray, cores))
        whole = np.kron(_second, np.eye(3)) + np.kron(np.eye(3), _second)
        np.testing.assert_allclose(found.ravel(), np.linalg.solve(whole, np.ones(9)), rtol=1e-8)


def test_a_singular_operator_is_no_success():
    """With zero for A nothing solves the system, and with a projection only its range is solved."""
    zero = _operator.replace(cores=jnp.zeros_like(_operator.cores))
    result = solve(zero, _tt, max_rank=3, max_sweeps=2, key=_key)
    assert int(result.status) in (Status.NOT_CONVERGED, Status.NONFINITE_RESULT)
    half = matrix_from_cores([jnp.diag(jnp.array([1.0, 1.0, 0.0]))[None, :, :, None]] * 2, max_rank=2)
    result = solve(half, _tt, max_rank=3, max_sweeps=2, key=_key)
    assert int(result.status) != Status.OK
    assert not float(result.residual) < 0.7  # sqrt(5) / 3 is out of reach


def test_operators_that_are_not_positive_or_beyond_the_bound_give_nan():
    for matrices in ([-_second] * 2, [0 * _second] * 2, [jnp.diag(jnp.array([1.0, 2.0, 1e9]))] * 2):
        assert np.isnan(laplace_inverse(_tt, matrices=matrices).cores).any()
        assert np.isnan(laplace_inverse_factors([jnp.ones(3)] * 2, matrices=matrices)[0]).all()
    enough = laplace_inverse_factors([jnp.ones(3)] * 2, matrices=matrices, condition=1e10, eps=1e-6)
    np.testing.assert_allclose(float((enough[0] * enough[1])[:, 0].sum()), 0.5, rtol=1e-6)


def test_a_tolerance_out_of_reach_says_what_was_reached():
    result = solve(_operator, _tt, max_rank=3, tol=1e-30, max_sweeps=3, key=_key)
    assert int(result.status) == Status.NOT_CONVERGED
    assert float(result.residual) < 1e-13


def test_a_rank_too_small_ends_before_the_sweeps_do():
    """The solution has rank 2."""
    right = from_cores([jnp.ones((1, 3, 1))] * 2)
    result = solve(_operator, right, max_rank=1, tol=1e-9, max_sweeps=1000, key=_key)
    assert int(result.status) == Status.NOT_CONVERGED
    assert bool(result.saturated)
    assert int(result.num_sweeps) <= 4
