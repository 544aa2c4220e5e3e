"""Checks made while tracing: shapes, dtypes, and the ranges of Python numbers.

Every message reads the same way: function, argument, what was got, what was expected, and the remedy. A traced value
cannot be checked here; what the functions do with a bad one is in their docstrings (NaN, or a status).
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool


def refuse(function: str, argument: str, got: str, expected: str, remedy: str, *, error: type = ValueError) -> NoReturn:
    """Raise `error` with the one style of message that jaxnm uses."""
    raise error(f"{function}: {argument} is {got}, expected {expected}; {remedy}")


def is_number(value: Any) -> TypeGuard[float]:
    """True for a Python or NumPy real number, whose value is known while tracing; False for an array or a tracer."""
    return isinstance(value, numbers.Real | np.number) and not isinstance(value, jax.Array)


def to_arrays(function: str, **arguments: ArrayLike) -> list[Array]:
    """The arguments as arrays of one inexact dtype: that of the arrays among them, Python numbers adapting to it.

    Args:
      function: name for the messages.
      **arguments: arrays or Python numbers.

    Returns:
      the arguments in order, of a common real or complex dtype (the default float dtype if all are Python numbers).

    Raises:
      TypeError: an integer or boolean array, which would truncate silently, or something that is no array.
    """
    weak, strong = [], []
    for name, value in arguments.items():
        if isinstance(value, list | tuple) or value is None:
            refuse(function, name, f"a {type(value).__name__}", "an array", "use jnp.asarray(...)", error=TypeError)
        dtype = jnp.result_type(value)
        is_python_number = isinstance(value, int | float | complex) and not isinstance(value, np.generic | bool)
        if not is_python_number and not jnp.issubdtype(dtype, jnp.inexact):
            refuse(
                function, name, f"of dtype {dtype}", "a floating dtype", f"pass {name}.astype(float)", error=TypeError
            )
        (weak if is_python_number else strong).append(value)
    if strong:
        # NumPy arrays and scalars take part with the dtype that JAX gives them (float64 becomes float32 without x64).
        dtype = jnp.result_type(*(jnp.result_type(value) for value in strong))
    else:
        dtype = jnp.result_type(float)
    if any(isinstance(value, complex) for value in weak):
        dtype = complex_dtype(dtype)
    return [jnp.asarray(value, dtype) for value in arguments.values()]


def complex_dtype(dtype: Any) -> Any:
    """The complex dtype of the same precision: complex128 for float64, complex64 below."""
    return np.result_type(dtype, np.complex64)


def check_shape(
    function: str,
    argument: str,
    array: Array,
    expected: str,
    condition: Callable[[tuple[int, ...]], bool],
    remedy: str = "see the shapes in its docstring; jax.vmap adds batch axes",
) -> None:
    """Refuse an array whose shape does not satisfy `condition`; `expected` says the shape in words."""
    if not condition(array.shape):
        refuse(function, argument, f"of shape {array.shape}", expected, remedy)


def check_square(function: str, argument: str, array: Array) -> None:
    """Refuse an array whose last two axes are not equal and at least one."""
    check_shape(
        function,
        argument,
        array,
        "[..., n, n] with n >= 1",
        lambda shape: len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] > 0,
    )


def check_real(function: str, argument: str, array: Array) -> None:
    """Refuse a complex array."""
    if jnp.iscomplexobj(array):
        refuse(function, argument, f"of dtype {array.dtype}", "a real dtype", "pass its real part", error=TypeError)


def check_number(
    function: str, argument: str, value: Any, expected: str, condition: Callable[[float], bool], remedy: str
) -> None:
    """Refuse a Python number outside its range, or not finite; arrays and tracers pass."""
    if is_number(value) and not (math.isfinite(value) and condition(float(value))):
        refuse(function, argument, repr(value), expected, remedy)


def check_count(function: str, argument: str, value: Any, *, minimum: int = 0) -> None:
    """Refuse a static count that is not a Python integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        refuse(
            function,
            argument,
            f"of type {type(value).__name__}",
            "a Python int (it is static)",
            "pass an int, and mark it static where you jit",
            error=TypeError,
        )
    if value < minimum:
        refuse(function, argument, repr(value), f"an int >= {minimum}", "pass a larger count")


def check_key(function: str, key: Any, *, argument: str = "key") -> None:
    """Refuse anything but one typed key: `jax.random.key(0)`, not `jax.random.PRNGKey(0)`, and not a batch of keys."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        got = f"of type {type(key).__name__}" if dtype is None else f"of dtype {dtype}"
        refuse(function, argument, got, "a typed key", "pass jax.random.key(0)", error=TypeError)
    if key.shape != ():
        refuse(function, argument, f"a batch of keys {key.shape}", "one key", "use jax.vmap for several")


def nan_unless(array: Array, good: Bool[Array, "..."], axes: int = 0) -> Array:
    """NaN in the members that are not good: in value, tangent and cotangent, and in no other member.

    Args:
      array: [..., *member], inexact.
      good: [...], which members to keep.
      axes: how many trailing axes make up a member.
    """
    factor = jnp.where(good, jnp.ones((), array.dtype), jnp.full((), jnp.nan, array.dtype))
    return array * jnp.expand_dims(factor, tuple(range(-axes, 0)))
