import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import arguments, trees


def test_every_message_names_function_argument_got_expected_and_remedy():
    with pytest.raises(ValueError, match=r"^f: x is 3, expected 4; add one$"):
        arguments.refuse("f", "x", "3", "4", "add one")
    with pytest.raises(TypeError):
        arguments.refuse("f", "x", "3", "4", "add one", error=TypeError)


def test_python_numbers_adapt_and_arrays_decide():
    single, number = arguments.to_arrays("f", x=jnp.ones(2, jnp.float32), y=2)
    assert single.dtype == number.dtype == jnp.float32
    (double,) = arguments.to_arrays("f", x=1.0)
    assert double.dtype == jnp.float64
    _, z = arguments.to_arrays("f", x=jnp.ones(2, jnp.float32), z=1j)
    assert z.dtype == jnp.complex64
    (numpy,) = arguments.to_arrays("f", x=np.float32(1))
    assert numpy.dtype == jnp.float32
    with jax.enable_x64(False):
        assert arguments.to_arrays("f", x=np.ones(2))[0].dtype == jnp.float32


@pytest.mark.parametrize("value", [jnp.arange(3), np.arange(3), jnp.array([True]), np.bool_(True), True])
def test_integer_arrays_and_flags_are_refused(value):
    with pytest.raises(TypeError, match=r"f: x is of dtype .*expected a floating dtype"):
        arguments.to_arrays("f", x=value)


def test_lists_and_numpy_integers_are_numbers_that_adapt():
    single, listed, integer = arguments.to_arrays("f", x=jnp.ones(2, jnp.float32), y=[1, 2.0], n=np.int64(3))
    assert single.dtype == listed.dtype == integer.dtype == jnp.float32
    assert arguments.to_arrays("f", x=[[1, 2], (3, 4j)])[0].dtype == jnp.complex128
    assert arguments.to_arrays("f", x=[jnp.float32(1), jnp.float32(2)])[0].dtype == jnp.float32
    np.testing.assert_array_equal(jax.jit(lambda x: arguments.to_arrays("f", x=[x, 2 * x])[0])(1.5), [1.5, 3.0])


@pytest.mark.parametrize("value", [[1.0, [2.0]], [jnp.ones(2), jnp.ones(3)], ["a"], [None, 1.0]])
def test_lists_that_are_no_array_are_refused(value):
    with pytest.raises(TypeError, match=r"f: x is .*use jnp\."):
        arguments.to_arrays("f", x=value)


@pytest.mark.parametrize("value", [None, "one", {"a": 1.0}, object()])
def test_what_is_no_array_is_refused_with_the_remedy(value):
    with pytest.raises(TypeError, match=r"use jnp\.asarray"):
        arguments.to_arrays("f", x=value)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_halves_are_refused_with_the_reason(dtype):
    with pytest.raises(TypeError, match=r"f: x is of dtype b?float16, expected float32 or float64: its rounding"):
        arguments.to_arrays("f", x=jnp.ones(2, dtype))


def test_what_has_no_derivative_raises_in_both_modes_and_inside_transformations():
    function = lambda x: jnp.sum(arguments.without_derivative("f", "x", {"x": x}, remedy="none")["x"])
    x = jnp.ones(3)
    np.testing.assert_array_equal(jax.jit(jax.vmap(function))(jnp.ones((2, 3))), [3.0, 3.0])
    for derivative in (jax.grad(function), jax.jit(jax.jacfwd(function)), lambda x: jax.jvp(function, (x,), (x,))):
        with pytest.raises(TypeError, match="f: x is differentiated, expected no derivative; none"):
            derivative(x)


def test_shapes_numbers_counts_and_reals():
    with pytest.raises(ValueError, match=r"f: a is of shape \(2, 3\), expected \[..., n, n\]"):
        arguments.check_square("f", "a", jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="n >= 1"):
        arguments.check_square("f", "a", jnp.ones((0, 0)))
    with pytest.raises(TypeError, match="pass its real part"):
        arguments.check_real("f", "a", jnp.ones(2, complex))
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="f: tol is"):
            arguments.check_number("f", "tol", bad, "a number > 0", lambda x: x > 0, "raise it")
    arguments.check_number("f", "tol", jnp.array(-1.0), "a number > 0", lambda x: x > 0, "traced values pass")
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="f: steps is"):
            arguments.check_count("f", "steps", bad)


def test_complex_dtypes_keep_the_precision():
    assert arguments.complex_dtype(jnp.float32) == jnp.complex64
    assert arguments.complex_dtype(jnp.complex64) == jnp.complex64
    assert arguments.complex_dtype(jnp.float64) == jnp.complex128


def test_nan_unless_reaches_value_and_both_derivatives():
    good = jnp.array([True, False])
    value = lambda x: arguments.nan_unless(x, good, 1)
    x = jnp.ones((2, 3))
    reverse = jax.vjp(value, x)[1](x)[0]
    for result in (value(x), jax.jvp(value, (x,), (x,))[1], reverse):
        np.testing.assert_array_equal(np.isnan(result), [[False] * 3, [True] * 3])


def test_all_finite_looks_at_floating_leaves_only():
    tree = {"x": jnp.ones(2), "key": jax.random.key(0), "count": 3, "flag": jnp.array(True), "none": None}
    assert bool(trees.all_finite(tree))
    for bad in (jnp.nan, -jnp.inf, jnp.array([0j, complex(0, jnp.inf)])):
        assert not bool(trees.all_finite({**tree, "y": bad}))
    assert bool(trees.all_finite({}))


def test_check_same_structure_names_the_first_difference():
    good = {"a": jnp.ones(2), "b": (jnp.ones(3),)}
    trees.check_same_structure("f", x=good, y=good)
    with pytest.raises(ValueError, match=r"f: y\['b'\]\[0\] is of shape \(4,\), expected .* \(3,\) of x\['b'\]\[0\]"):
        trees.check_same_structure("f", x=good, y={"a": jnp.ones(2), "b": (jnp.ones(4),)})
    with pytest.raises(ValueError, match="f: y is a tree of structure"):
        trees.check_same_structure("f", x=good, y={"a": jnp.ones(2)})
