"""What is of the wrong kind is refused by the house, in every argument of every public function."""

import importlib
import inspect
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.table import ROWS, Row

_WRONG = {
    "None": None,
    "a text": "text",
    "an object": object(),
    "a dict": {},
    "an empty list": [],
    "a complex number": 1j,
    "a vector": jnp.ones(7),
    "a half": jnp.ones((), jnp.float16),
}
# messages of jax.numpy, whose arguments they pass on; an operator or a model of the caller meets a vector by itself
_OTHERS = {"linalg.matmul", "linalg.einsum"}
_OF_THE_CALLER = (
    "operator", "like", "start", "right", "params", "observation", "observations", "args", "log_density", "x0",
)  # fmt: skip
_MODULES = ("linalg.", "first_order.", "stokes.", "filtering.", "tensor_train.")


class _CalledError(Exception):
    pass


def _recorded(row: Row) -> Any:
    """The function, and the arguments that its row calls it with; None where it does not."""
    owner, _, name = f"jaxnm.{row.name}".rpartition(".")
    module = importlib.import_module(owner)
    function, calls = getattr(module, name), []

    def record(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))
        raise _CalledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, record)
        # rows that import the function by its name
        for rows in [rows for path, rows in sys.modules.items() if path.startswith("tests.contracts.")]:
            for own in [own for own, value in vars(rows).items() if value is function]:
                patch.setattr(rows, own, record)
        try:
            called, args = row.build(jnp.float64)
            # and those that hold it in a closure
            for cell in getattr(called, "__closure__", None) or ():
                if cell.cell_contents is function:
                    patch.setattr(cell, "cell_contents", record)
            if called is function:
                calls.append((args, {}))
            else:
                called(*args)
        except _CalledError:
            pass
    # what was traced stands for numbers of its shape
    generator = np.random.default_rng(0)
    concrete = lambda x: (
        jnp.asarray(generator.uniform(0.2, 0.8, x.shape), x.dtype) if isinstance(x, jax.core.Tracer) else x
    )
    return function, (jax.tree.map(concrete, calls[0]) if calls else None)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name.startswith(_MODULES) and row.name not in _OTHERS],
    ids=lambda row: row.name,
)
def test_no_error_is_raw(row: Row):
    """A TypeError or ValueError that names function and argument, or a result: never one of JAX, NumPy or Python."""
    function, call = _recorded(row)
    if call is None:  # only a row without arrays, which has its reason
        assert isinstance(row.transformable, str)
        pytest.skip(row.transformable)
    signature = inspect.signature(function)
    bound = signature.bind(*call[0], **call[1])
    bound.apply_defaults()
    raw = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for label, wrong in _WRONG.items():
            if parameter.name in _OF_THE_CALLER and label not in ("None", "a text", "an object"):
                continue
            given = inspect.BoundArguments(signature, {**bound.arguments, parameter.name: wrong})
            try:
                jax.eval_shape(lambda given=given: (function(*given.args, **given.kwargs), None)[1])
            except (TypeError, ValueError) as error:
                if not re.match(r"[\w.]+(: \w+)?: .+, expected .+; ", str(error), re.DOTALL):
                    raw.append(f"{parameter.name} = {label}: {type(error).__name__}: {error}")
            except Exception as error:  # what it is, is the finding
                raw.append(f"{parameter.name} = {label}: {type(error).__name__}: {error}")
    assert not raw, "\n".join(raw)
