"""A status follows from what was measured: OK is never given where the promise, recomputed from outside, is broken."""

import importlib
import inspect
import typing

import jax
import jax.numpy as jnp
import pytest

from tests.trust.measure import Measure

MODULES = ("linalg", "first_order", "stokes", "filtering", "tensor_train")
MEASURES = [m for name in MODULES for m in importlib.import_module(f"tests.trust.{name}_measures").MEASURES]
EXEMPT: dict[str, str] = {
    "first_order.read_certificate": "the status that was written into the file",
    "filtering.train": "runs on the host for minutes; see tests/filtering/test_training.py",
}


def _carries_a_status(annotation):
    if hasattr(annotation, "__dataclass_fields__"):
        return "status" in annotation.__dataclass_fields__
    return any(_carries_a_status(part) for part in typing.get_args(annotation))


def test_every_result_with_a_status_is_measured():
    functions = {
        f"{name}.{attribute}"
        for name in MODULES
        for attribute, value in vars(importlib.import_module(f"jaxnm.{name}")).items()
        if inspect.isfunction(value) and not attribute.startswith("_")
        if _carries_a_status(value.__annotations__.get("return"))
    }
    assert functions == {measure.name for measure in MEASURES} | set(EXEMPT)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "measure", [pytest.param(m, marks=[pytest.mark.exhaustive] if m.heavy else [], id=m.name) for m in MEASURES]
)
def test_ok_is_what_was_measured(measure: Measure, dtype, record_figure):
    with jax.enable_x64(dtype == jnp.float64):
        results = [(inputs, measure.run(*inputs)) for inputs in measure.inputs(dtype)]
        good = [(inputs, result) for inputs, result in results if int(result.status) == 0]
        assert 0 < len(good) < len(results)
        worst = max(measure.error(inputs, result) for inputs, result in good)
    record_figure("status", measure.name, worst)
    assert worst <= 1
