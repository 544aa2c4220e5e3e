"""Functions of users, known by what they do instead of by which object they are.

A compiled program is found again by its static arguments, among them the functions of a model. Were these compared by
identity, a method of an object whose parameter has changed, or a function that reads a global that has, would run the
program made for the old value, and a lambda made anew for every call would be compiled anew. So a function is taken
apart: the arrays in its closure, or in the object whose method it is, become arguments of the program; its code and
whatever else it reads are compared by value.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

_SHIM = type(Partial(functools.partial(int)).func)
# packages whose globals do not change
_STABLE = ("jax", "jaxlib", "jaxnm", "numpy", "scipy", "flax", "optax", "functools", "builtins")


def known(function: Callable[..., Any]) -> Partial:
    """The function as a pytree whose leaves are the arrays it has captured, and whose structure is all else it reads.

    What is compared by value: numbers, strings, NumPy arrays and containers of them in closures, defaults, attributes
    of the object of a method, and globals of the function and of the functions of the same package that it calls. All
    else is compared by identity, among it classes, compiled functions, and what functions of other packages read.
    """
    outer = function if isinstance(function, Partial) else Partial(function)
    if isinstance(outer.func, _Known):
        return outer
    reader = _Reader()
    part = reader.read(outer.func, examined=True)
    return Partial(_Known(part.key, part.build), reader.arrays, *outer.args, **outer.keywords)


class _Known:
    """A function without the arrays it captured, equal to every other one that does the same with them."""

    def __init__(self, key: Hashable, build: Callable[[Sequence[Any]], Callable[..., Any]]):
        self._key, self._build = key, build
        self._hash = hash(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __call__(self, arrays: Sequence[Any], *args: Any, **keywords: Any) -> Any:
        return self._build(arrays)(*args, **keywords)


class _Same:
    """An object that equals itself alone."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


class _Part(NamedTuple):
    """What was read of a value."""

    key: Hashable
    build: Callable[[Sequence[Any]], Any]
    """The value, from the arrays that were taken out. It holds none of them: it outlives the call."""
    taken: bool
    """Whether an array was taken out."""


def _whole(key: Hashable, value: Any) -> _Part:
    return _Part(key, lambda arrays: value, False)


@dataclasses.dataclass
class _Reader:
    """Takes values apart; `arrays` are those taken out so far."""

    arrays: list[Any] = dataclasses.field(default_factory=list)
    seen: dict[int, int] = dataclasses.field(default_factory=dict)

    def read(self, value: Any, *, examined: bool = False, fixed: bool = False) -> _Part:
        """`examined`: an object is looked into, whatever its class. `fixed`: arrays stay where they are (globals)."""
        if isinstance(value, jax.Array):
            return _whole(_Same(value), value) if fixed else self._take(value)
        key = _key_of_constant(value)
        if key is not None:
            return _whole(key, value)
        if id(value) in self.seen:
            return _whole(("again", self.seen[id(value)]), value)
        self.seen[id(value)] = len(self.seen)
        if isinstance(value, _SHIM):  # a partial inside a Partial
            return self.read(value.fun, fixed=fixed)
        if isinstance(value, types.FunctionType):
            return self._function(value, fixed)
        if isinstance(value, types.MethodType):
            owner = self.read(value.__self__, examined=True, fixed=fixed)
            function = self.read(value.__func__, fixed=fixed)
            return self._joined("method", value, [function, owner], lambda parts: types.MethodType(*parts))
        if isinstance(value, functools.partial):
            kind, names = type(value), tuple(value.keywords)
            parts = [self.read(x, fixed=fixed) for x in (value.func, *value.args, *value.keywords.values())]
            split = len(parts) - len(names)
            make = lambda parts: kind(*parts[:split], **dict(zip(names, parts[split:], strict=True)))
            return self._joined(("partial", kind, names), value, parts, make)
        leaves, structure = jax.tree.flatten(value)
        if not jax.tree_util.treedef_is_leaf(structure):
            parts = [self.read(leaf, fixed=fixed) for leaf in leaves]
            return self._joined(("tree", structure), value, parts, structure.unflatten)
        return self._object(value, examined, fixed)

    def _take(self, array: Any) -> _Part:
        index = len(self.arrays)
        self.arrays.append(array)
        return _Part(("array", index), lambda arrays: arrays[index], True)

    def _joined(self, kind: Hashable, value: Any, parts: list[_Part], make: Callable[[list[Any]], Any]) -> _Part:
        key = (kind, *(part.key for part in parts))
        try:
            hash(key)
        except TypeError:
            key = _Same(value)
        if not any(part.taken for part in parts):
            return _whole(key, value)
        return _Part(key, lambda arrays: make([part.build(arrays) for part in parts]), True)

    def _function(self, function: types.FunctionType, fixed: bool) -> _Part:
        code, namespace, name = function.__code__, function.__globals__, function.__name__
        keywords = tuple(function.__kwdefaults__ or ())
        defaults = function.__defaults__ or ()
        cells = [cell for cell in function.__closure__ or () if not _is_empty(cell)]
        if len(cells) < len(function.__closure__ or ()):
            return _whole(_Same(function), function)
        captured = [*(cell.cell_contents for cell in cells), *defaults, *(function.__kwdefaults__ or {}).values()]
        parts = [self.read(value, fixed=fixed) for value in captured]

        def make(values: list[Any]) -> types.FunctionType:
            closure = tuple(map(types.CellType, values[: len(cells)]))
            given = tuple(values[len(cells) : len(cells) + len(defaults)])
            made = types.FunctionType(code, namespace, name, given, closure)
            made.__kwdefaults__ = dict(zip(keywords, values[len(cells) + len(defaults) :], strict=True))
            return made

        kind = ("function", code, keywords, self._globals(code, namespace))
        return self._joined(kind, function, parts, make)

    def _globals(self, code: types.CodeType, namespace: dict[str, Any]) -> Hashable:
        """What the names of a function mean, and of a module those of its numbers that the function names."""
        package = _package(namespace.get("__name__"))
        if package in _STABLE:
            return None
        names = _names(code)
        keys: list[Hashable] = []
        for name in names:
            if name not in namespace:
                continue
            value = namespace[name]
            if isinstance(value, types.ModuleType):
                keys += () if _package(value.__name__) in _STABLE else self._module(name, value, names)
            elif isinstance(value, types.FunctionType) and _package(value.__globals__.get("__name__")) != package:
                keys.append((name, _Same(value)))
            else:
                keys.append((name, self.read(value, fixed=True).key))
        return tuple(keys)

    def _module(self, name: str, module: types.ModuleType, names: tuple[str, ...]) -> list[Hashable]:
        constants = ((other, _key_of_constant(vars(module).get(other))) for other in names if other in vars(module))
        return [(name, other, key) for other, key in constants if key is not None]

    def _object(self, value: Any, examined: bool, fixed: bool) -> _Part:
        kind = type(value)
        if kind.__hash__ is not object.__hash__ and kind.__hash__ is not None:
            try:
                hash(value)
            except TypeError:  # frozen, and holds an array
                pass
            else:
                return _whole((kind, value), value)
        attributes = getattr(value, "__dict__", None)
        if attributes is None or isinstance(value, type) or (_package(kind.__module__) in _STABLE and not examined):
            return _whole(_Same(value), value)
        names = tuple(attributes)
        parts = [self.read(attribute, fixed=fixed) for attribute in attributes.values()]

        def make(values: list[Any]) -> Any:
            made = object.__new__(kind)
            made.__dict__.update(zip(names, values, strict=True))
            return made

        return self._joined(("object", kind, names), value, parts, make)


def _key_of_constant(value: Any) -> Hashable | None:
    """A key of a number, a text or a NumPy array, that tells -0.0 from 0.0 and 1 from True; None of all else."""
    if value is None or isinstance(value, bool | int | str | bytes | np.dtype):
        return (type(value), value)
    if isinstance(value, float):
        return (float, value.hex())
    if isinstance(value, complex):
        return (complex, value.real.hex(), value.imag.hex())
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return (type(value), value.dtype, value.shape, value.tobytes())
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(value))
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return _Same(value)
    return None


@lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function, and the functions inside it, look up."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return tuple(dict.fromkeys([*code.co_names, *(name for constant in inner for name in _names(constant))]))


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
