"""What a row of the table is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Build = Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]


@dataclass(frozen=True)
class Row:
    """A public function under contract.

    `build(dtype)` returns a function of arrays and its arguments. A reason instead of True says why a promise does not
    apply: `differentiable`, `transformable` (jit, vmap, export: host-side functions have a reason here). `heavy` rows
    compile in float64 and are exported in float32, so that the table stays affordable.
    """

    name: str
    build: Build
    differentiable: bool | str = True
    transformable: bool | str = True
    heavy: bool = False
    tolerance: float | None = None
    """How far two ways of calling may differ, where an iteration stops by a tolerance; None for 200 eps."""


def matrix(dtype: Any, *shape: int, seed: int = 0) -> jax.Array:
    """Normal random numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def number(value: float) -> Callable[[Any], jax.Array]:
    """A scalar of any dtype."""
    return lambda dtype: jnp.asarray(value, dtype)


def of(function: Callable[..., Any], *makers: Callable[[Any], Any]) -> Build:
    """A row's `build` from a function and makers of its arguments."""
    return lambda dtype: (function, tuple(make(dtype) for make in makers))
