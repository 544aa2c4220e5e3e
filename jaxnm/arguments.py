"""Checks made while tracing: shapes, dtypes, and the ranges of Python numbers.

Every message reads the same way: function, argument, what was got, what was expected, and the remedy. A traced value
cannot be checked here; what the functions do with a bad one is in their docstrings (NaN, or a status).
"""

import contextlib
import math
import numbers
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NoReturn, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool

_Tree = TypeVar("_Tree")


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
      **arguments: arrays, Python numbers, or lists of numbers or arrays. NumPy integer scalars count as Python numbers,
        and so do lists that hold nothing else.

    Returns:
      the arguments in order, of a common real or complex dtype (the default float dtype if all are Python numbers).

    Raises:
      TypeError: an integer or boolean array, which would truncate silently; float16 or bfloat16, whose rounding is
        above the tolerances here; or something that is no array.
    """
    weak, strong, values = [], [], []
    for name, value in arguments.items():
        if isinstance(value, list | tuple):
            value = _stacked(function, name, value)
        values.append(value)
        if not is_numeric(value):
            got = f"a {type(value).__name__}" + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
            refuse(function, name, got, "an array of numbers", "use jnp.asarray(...)", error=TypeError)
        if isinstance(value, _Weak) or _is_python_number(value):
            weak.append(value)
            continue
        dtype = jnp.result_type(value)
        check_dtype(function, name, dtype)
        strong.append(dtype)
    # NumPy arrays and scalars take part with the dtype that JAX gives them (float64 becomes float32 without x64).
    dtype = jnp.result_type(*strong) if strong else jnp.result_type(float)
    if any(np.iscomplexobj(value) for value in weak):
        dtype = complex_dtype(dtype)
    return [constant(value, dtype) for value in values]


def constant(value: ArrayLike, dtype: Any) -> Array:
    """An argument as an array of the dtype; from the host by an explicit transfer, which a transfer guard allows."""
    if isinstance(value, jax.Array) or hasattr(value, "__jax_array__"):
        return jnp.asarray(value, dtype)
    return jax.device_put(np.asarray(value, dtype))


class _Weak(np.ndarray):
    """Made of Python numbers alone, so that its dtype is nobody's choice."""


def is_numeric(value: Any) -> bool:
    """Whether JAX can make an array of it without losing anything: no strings and objects, no mask."""
    if isinstance(value, np.ma.MaskedArray):
        return False
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc" or jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(value, jax.Array | int | float | complex) or hasattr(value, "__jax_array__")


def _is_python_number(value: Any) -> bool:
    """Whether it has a value but no dtype of its own: a Python number that is no truth value, or a NumPy integer."""
    number = isinstance(value, int | float | complex) and not isinstance(value, np.generic | bool)
    return number or isinstance(value, np.integer)


def _stacked(function: str, name: str, value: list[Any] | tuple[Any, ...]) -> Any:
    """A list as an array; one of Python numbers is NumPy's and adapts to the other arguments."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: not isinstance(leaf, list | tuple))
    try:
        if all(_is_python_number(leaf) for leaf in leaves):
            wide = complex if any(isinstance(leaf, complex) for leaf in leaves) else float
            return np.asarray(value, wide).view(_Weak)
        if all(is_numeric(leaf) for leaf in leaves):
            return jnp.asarray(value)
    except (TypeError, ValueError):
        pass
    refuse(
        function, name, f"a {type(value).__name__} that is no array", "numbers or arrays of one shape",
        "use jnp.stack(...)", error=TypeError,
    )  # fmt: skip


def check_dtype(function: str, argument: str, dtype: Any) -> None:
    """Refuse a dtype that is no real or complex floating one, and the halves, which have three digits and no LAPACK."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        remedy = f"pass {argument}.astype(float)"
        refuse(function, argument, f"of dtype {dtype}", "a floating dtype", remedy, error=TypeError)
    if jnp.finfo(dtype).bits < 32:
        refuse(
            function, argument, f"of dtype {dtype}", "float32 or float64: its rounding is above all tolerances here",
            f"pass {argument}.astype(jnp.float32)", error=TypeError,
        )  # fmt: skip


def float_dtype(function: str, dtype: Any, *, real: bool = True) -> Any:
    """The dtype meant by an argument `dtype`: `float` is the default one, and what is no floating one is refused."""
    found = None
    if isinstance(dtype, type | np.dtype | str):
        with contextlib.suppress(TypeError):
            found = jax.dtypes.canonicalize_dtype(dtype)
    if found is None:
        got = repr(dtype) if isinstance(dtype, str) else f"a {type(dtype).__name__}"
        refuse(function, "dtype", got, "a floating dtype", "pass jnp.float32 or jnp.float64", error=TypeError)
    if real and jnp.issubdtype(found, jnp.complexfloating):
        refuse(function, "dtype", str(found), "a real dtype", "pass jnp.float32 or jnp.float64", error=TypeError)
    check_dtype(function, "dtype", found)
    return found


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


def check_batch(function: str, argument: str, array: Array, expected: str, *batches: tuple[int, ...]) -> None:
    """Refuse an array whose batch shape, the first of `batches`, does not broadcast with the others."""
    try:
        np.broadcast_shapes(*batches)
    except ValueError:
        refuse(function, argument, f"of shape {array.shape}", expected, "see the shapes in its docstring")


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
    function: str,
    argument: str,
    value: Any,
    expected: str,
    condition: Callable[[float], bool],
    remedy: str,
    *,
    scalar: bool = True,
) -> None:
    """Refuse what is no real scalar, and a Python number outside its range or not finite; `scalar=False` for arrays.

    With `scalar=False` everything but text and Python numbers passes, as `to_arrays` looks at it next.
    """
    if isinstance(value, str | bytes) or (scalar and not is_numeric(value)):
        refuse(function, argument, f"of type {type(value).__name__}", expected, remedy, error=TypeError)
    if is_number(value) and not (math.isfinite(value) and condition(float(value))):
        refuse(function, argument, repr(value), expected, remedy)
    if scalar and np.iscomplexobj(value):
        refuse(function, argument, f"of dtype {jnp.result_type(value)}", expected, remedy, error=TypeError)
    if scalar and np.shape(value) != ():
        refuse(function, argument, f"of shape {np.shape(value)}", f"a scalar {expected}", "use jax.vmap for several")


def check_option(function: str, argument: str, value: Any, options: Collection[str], remedy: str) -> None:
    """Refuse what is none of the strings."""
    if not isinstance(value, str) or value not in options:
        got = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        refuse(function, argument, got, f"one of {tuple(options)}", remedy)


def check_flag(function: str, argument: str, value: Any) -> None:
    """Refuse what is no Python or NumPy truth value: it decides which program is traced."""
    if not isinstance(value, bool | np.bool_):
        got, remedy = f"of type {type(value).__name__}", "pass True or False, and mark it static where you jit"
        refuse(function, argument, got, "a Python bool (it is static)", remedy, error=TypeError)


def check_callable(function: str, argument: str, value: Any, remedy: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        refuse(function, argument, f"of type {type(value).__name__}", "a function", remedy, error=TypeError)


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


def check_axis(function: str, argument: str, axis: Any, ndim: int) -> None:
    """Refuse what is no axis of an array of `ndim` axes."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis not in range(-ndim, ndim):
        got = repr(axis) if is_number(axis) else f"a {type(axis).__name__}"
        choices = ", ".join(map(repr, range(-ndim, ndim))) or "an axis of an array that has one"
        refuse(function, argument, got, choices, "see its docstring")


def check_cap(function: str, argument: str, value: Any, *, minimum: int = 0) -> None:
    """Refuse a cap on a number of steps that is no integer, or below `minimum`; it may be a traced scalar."""
    if not isinstance(value, jax.Array):
        check_count(function, argument, value, minimum=minimum)
    elif value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        got = f"of dtype {value.dtype} and shape {value.shape}"
        refuse(function, argument, got, "an integer scalar", "use jax.vmap for several", error=TypeError)
    elif not isinstance(value, jax.core.Tracer):
        check_count(function, argument, int(value), minimum=minimum)


def to_integers(function: str, argument: str, value: Any, remedy: str) -> Array:
    """An array of integers, of the dtype that it has; a list of them too."""
    if isinstance(value, list | tuple):
        leaves = jax.tree.leaves(value)
        whole = bool(leaves) and all(isinstance(leaf, int | np.integer) for leaf in leaves)
        value = _stacked(function, argument, value)
        value = value.astype(int) if whole else value
    if not is_numeric(value):
        refuse(function, argument, f"a {type(value).__name__}", "an array of integers", remedy, error=TypeError)
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        refuse(function, argument, f"of dtype {array.dtype}", "integers", remedy, error=TypeError)
    return array


def check_list(function: str, argument: str, value: Any, one: str) -> None:
    """Refuse what is no sequence of at least one; `one` says of what, and how many."""
    is_array = isinstance(value, np.ndarray | jax.Array) and value.ndim > 0
    if isinstance(value, str) or not (is_array or isinstance(value, Sequence)):
        got = repr(value) if is_number(value) else f"a {type(value).__name__}"
        refuse(function, argument, got, f"a sequence: {one}", "put it into a list", error=TypeError)
    if len(value) == 0:
        refuse(function, argument, "empty", "at least one", f"give {one}")


def check_tuple(function: str, argument: str, value: Any) -> None:
    """Refuse what is no tuple of further arguments."""
    if not isinstance(value, tuple | list):
        remedy = f"write ({argument},)"
        refuse(function, argument, f"a {type(value).__name__}", "a tuple", remedy, error=TypeError)


def shape_of_value(function: str, argument: str, f: Any, *operands: Any, remedy: str) -> Any:
    """Shapes and dtypes of what a user's function returns; refused if it is none, or needs numbers that are known."""
    check_callable(function, argument, f, "pass a function")
    try:
        return jax.eval_shape(f, *operands)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as found:
        reason = str(found).partition("\n")[0]
        message = f"{function}: {argument} needs values while it is traced, expected jax.numpy throughout; {remedy}"
        raise TypeError(f"{message} ({reason})") from found


def check_key(function: str, key: Any, *, argument: str = "key") -> None:
    """Refuse anything but one typed key: `jax.random.key(0)`, not `jax.random.PRNGKey(0)`, and not a batch of keys."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        got = f"of type {type(key).__name__}" if dtype is None else f"of dtype {dtype}"
        refuse(function, argument, got, "a typed key", "pass jax.random.key(0)", error=TypeError)
    if key.shape != ():
        refuse(function, argument, f"a batch of keys {key.shape}", "one key", "use jax.vmap for several")


def hoist_tracers(name: str, argument: str, function: Callable[..., Any], *like: Any) -> tuple[Partial, Any]:
    """A user's function as a pytree whose leaves hold every tracer it closes over, and the shapes of its value.

    What is no leaf is part of the key under which `jax.jit` keeps a program, and a tracer there outlives its trace.
    A function that closes over no tracer is kept as it is, so that a second call finds its program.

    Args:
      name: of the function of jaxnm, for the message.
      argument: name of the argument, for the message.
      function: of the arguments `like`; its data may be the leaves of a `Partial`.
      *like: pytrees of arrays or of their shapes.

    Returns:
      the function as a `Partial`, and its value with shapes and dtypes in place of arrays.

    Raises:
      TypeError: something that cannot be called.
    """
    check_callable(name, argument, function, "pass lambda v: matrix @ v for a matrix")
    leaves = jax.tree.leaves(function) if isinstance(function, Partial) else []
    # a function made here, for which no cache outlives this call
    program, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*like)
    closed_over = [constant for constant in program.consts if not any(constant is leaf for leaf in leaves)]
    if not any(isinstance(constant, jax.core.Tracer) for constant in closed_over):
        return function if isinstance(function, Partial) else Partial(function), shapes
    jaxpr, structure = program.jaxpr, jax.tree.structure(shapes)

    def evaluate(constants: list[Any], *args: Any) -> Any:
        return jax.tree.unflatten(structure, jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*jax.tree.leaves(args)))

    return Partial(evaluate, program.consts), shapes


def nan_unless(array: Array, good: Bool[Array, "..."], axes: int = 0) -> Array:
    """NaN in the members that are not good: in value, tangent and cotangent, and in no other member.

    Args:
      array: [..., *member], inexact.
      good: [...], which members to keep.
      axes: how many trailing axes make up a member.
    """
    factor = jnp.where(good, jnp.ones((), array.dtype), jnp.full((), jnp.nan, array.dtype))
    return array * jnp.expand_dims(factor, tuple(range(-axes, 0)))


def without_derivative(function: str, argument: str, operands: _Tree, *, remedy: str) -> _Tree:
    """The operands, of which a derivative raises TypeError while it is traced, instead of being zero or wrong.

    For a function that has no derivative, its operands; for one that has a first derivative only, what its rule for
    that derivative is made of.

    Args:
      function: name for the message.
      argument: what is differentiated, such as "an argument" or "the gradient".
      operands: pytree.
      remedy: what to do instead.
    """
    return _without_derivative(function, argument, remedy, operands)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _without_derivative(function: str, argument: str, remedy: str, operands: Any) -> Any:
    return operands


@_without_derivative.defjvp
def _no_derivative(function: str, argument: str, remedy: str, primals: Any, tangents: Any) -> NoReturn:
    refuse(function, argument, "differentiated", "no derivative", remedy, error=TypeError)
