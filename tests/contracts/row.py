"""What a row of the table is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Build = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


@dataclass(frozen=True)
class Shift:
    """A logarithm: where arguments are scaled by s, `times * log(s)` is added to it."""

    times: float


@dataclass(frozen=True)
class Law:
    """With each argument times its power of s, the result is times its power of s.

    `arguments`: for each argument a power, or a pytree prefix of powers. `result`: a power for every floating leaf; or
    a tuple with one for each part of a tuple; or a dict from a part of a leaf's path (".x") to its power, 0 for the
    rest. `Shift` stands for the logarithm of something that scales, None for a leaf that is not to be compared.
    """

    arguments: tuple[Any, ...]
    result: Any

    def scaled(self, args: tuple[Any, ...], s: float) -> tuple[Any, ...]:
        """The arguments in other units."""
        times = lambda power, part: (
            jax.tree.map(lambda leaf: leaf * jnp.asarray(s**power, leaf.dtype), part) if power else part
        )
        return tuple(jax.tree.map(times, power, arg) for power, arg in zip(self.arguments, args, strict=True))

    def powers(self, result: Any) -> list[Any]:
        """One for each floating leaf of the result."""
        leaves = jax.tree_util.tree_leaves_with_path(result)
        names = " ".join(jax.tree_util.keystr(path) for path, _ in leaves)
        for key in self.result if isinstance(self.result, dict) else ():
            if key not in names:
                raise KeyError(f"no leaf {key} among {names}")
        return [self._power(self.result, path) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def _power(self, powers: Any, path: Any) -> Any:
        if isinstance(powers, tuple):
            return self._power(powers[path[0].idx], path[1:])
        if isinstance(powers, dict):
            found = [key for key in powers if key in jax.tree_util.keystr(path)]
            return powers[max(found, key=len)] if found else 0
        return powers


def factor(power: Any, s: float) -> float:
    """What a tangent of a leaf is multiplied by; 0 for one that is not compared."""
    return 0.0 if power is None else 1.0 if isinstance(power, Shift) else s**power


def expected(power: Any, leaf: Any, s: float) -> Any:
    """A leaf in other units."""
    leaf = np.asarray(leaf)
    return leaf + power.times * math.log(s) if isinstance(power, Shift) else leaf * factor(power, s)


@dataclass(frozen=True)
class Row:
    """A public function under contract.

    `build(dtype)` returns a function of arrays and its arguments. A reason instead of True says why a promise does not
    apply: `differentiable` (to every order), `transformable` (jit, vmap, export: host-side functions have a reason
    here). `heavy` rows are compiled fewer times. `make test` runs float64; `make exhaustive` runs the rest.
    """

    name: str
    build: Build
    differentiable: bool | str = True
    transformable: bool | str = True
    heavy: bool = False
    tolerance: float | dict[str, float] | None = None
    """How far two ways of calling may differ, where an iteration stops by a tolerance; None for 200 eps.

    Never below 200 eps; one for each dtype where the tolerance of single precision is above that."""
    derivative_tolerance: float = 0.0
    """The same for derivatives, where it is above ten times that of values."""
    difference_tolerance: float = 1e-5
    """How far second derivatives may be from differences, where a derivative is itself an approximation."""
    constants: tuple[str, ...] = ()
    """Parts of the paths of leaves that are constants for derivatives, as the docstring says."""
    smooth: Callable[[Any, Any], Any] = lambda args, tangents: tangents
    """From arguments and tangents to directions in which the function is smooth, where it is not in all."""
    order: int | None = 2
    """Derivatives up to which order: 2 stands for all, at 1 and 0 the next one raises, None has no floating result."""
    rounding: tuple[str, ...] = ()
    """Parts of the paths of leaves that are nothing but rounding errors (".residual_norm"), so that no digit agrees."""
    scaling: tuple[Law, ...] | str = ()
    """The laws by which the result scales with the units of the arguments, or why there is none."""
    default_dtype: bool = False
    """Whether the result has the default dtype, whatever that of the arguments."""
    members: Callable[[Any], list[tuple[Any, ...]]] | None = None
    """Arguments of hard members of a batch, from a dtype; besides those that every row gets."""


def law(*arguments: Any, result: Any) -> tuple[Law, ...]:
    """One law; several are added."""
    return (Law(arguments, result),)


def matrix(dtype: Any, *shape: int, seed: int = 0) -> jax.Array:
    """Normal random numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def number(value: float) -> Callable[[Any], jax.Array]:
    """A scalar of any dtype."""
    return lambda dtype: jnp.asarray(value, dtype)


def of(function: Callable[..., Any], *makers: Callable[[Any], Any]) -> Build:
    """A row's `build` from a function and makers of its arguments."""
    return lambda dtype: (function, tuple(make(dtype) for make in makers))
