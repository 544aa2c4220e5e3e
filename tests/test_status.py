import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnm
from jaxnm import Status
from jaxnm.linalg import solve_discrete_lyapunov
from jaxnm.status import first_failing, merge


def test_codes_are_distinct_and_each_says_meaning_and_cure():
    assert Status.OK == 0
    assert len({code.value for code in Status}) == len(Status)
    for code in Status:
        assert len(code.meaning) > 20
        assert code.cure


def test_statuses_are_int32_under_both_settings():
    for x64 in (False, True):
        with jax.enable_x64(x64):
            one = first_failing((jnp.array(True), Status.NOT_STABLE))
            assert one.dtype == jnp.int32
            assert merge(one, jnp.int32(0)).dtype == jnp.int32


def test_the_first_failure_wins():
    later, sooner = jnp.array([True, True, False]), jnp.array([True, False, False])
    status = first_failing((sooner, Status.NONFINITE_INPUT), (later, Status.NOT_STABLE))
    np.testing.assert_array_equal(status, [Status.NONFINITE_INPUT, Status.NOT_STABLE, Status.OK])
    np.testing.assert_array_equal(merge(jnp.int32([0, 3]), jnp.int32([2, 1])), [2, 3])


def test_raise_if_failed_names_members_cause_and_cure():
    a = jnp.stack([0.5 * jnp.eye(2), 2 * jnp.eye(2), jnp.full((2, 2), jnp.nan), 3 * jnp.eye(2)])
    with pytest.raises(jaxnm.NumericalFailure) as raised:
        jaxnm.raise_if_failed(solve_discrete_lyapunov(a, jnp.eye(2)))
    text = str(raised.value)
    assert "SteinSolution: NOT_STABLE in 2 of 4 members (1, 3)" in text
    assert "NONFINITE_INPUT in 1 of 4 members (2)" in text
    assert Status.NOT_STABLE.cure in text


def test_raise_if_failed_returns_a_good_result_and_shortens_long_lists():
    result = solve_discrete_lyapunov(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    assert jaxnm.raise_if_failed(result) is result
    many = solve_discrete_lyapunov(jnp.full((25, 1, 1), 2.0), jnp.ones((1, 1)))
    with pytest.raises(jaxnm.NumericalFailure, match=r"25 of 25 members \(0, 1, .*, 9 and 15 more\)"):
        jaxnm.raise_if_failed(many)


def test_raise_if_failed_inside_jit_says_what_to_do():
    with pytest.raises(TypeError, match=r"inside jit, vmap or scan use result\.status as data"):
        jax.jit(lambda a: jaxnm.raise_if_failed(solve_discrete_lyapunov(a, a)).x)(jnp.zeros((1, 1)))
