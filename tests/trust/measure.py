"""What status OK promises, measured from outside."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One public function whose result has a status, and the promise of OK recomputed by other means.

    `inputs(dtype)` are what `run` is called with, of one shape, and hard ones are among them: at least one must come
    back OK and one must not. `error(inputs, result)` is what was measured, by NumPy or by exact arithmetic and not by
    the figures in the result, divided by what OK promises: at most 1 wherever the status is OK.
    """

    name: str
    promise: str
    inputs: Callable[[Any], Iterable[tuple[Any, ...]]]
    run: Callable[..., Any]
    error: Callable[[tuple[Any, ...], Any], float]
    heavy: bool = False
    """In `make exhaustive`, not in `make test`."""
