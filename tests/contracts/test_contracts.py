"""What every public function promises: dtypes, transformations, one trace, export. See table.py for the rows."""

import importlib
import inspect
import pkgutil
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import jaxtyped

import jaxnm
from tests.compilation import QUICK
from tests.contracts.table import LARGER, ROWS, Row

TRANSFORMABLE = [row for row in ROWS + LARGER if row.transformable is True]
_ids = [f"{row.name}{'-larger' if row in LARGER else ''}" for row in TRANSFORMABLE]
# (dtype, whether x64 is on): float32 with x64 on is where a silent promotion shows
MODES = {"float32": (jnp.float32, False), "float32-in-x64": (jnp.float32, True), "float64": (jnp.float64, True)}


def public_functions() -> set[str]:
    """Names of all public functions: those that a package lists, and those of the modules that list none."""
    names = {"raise_if_failed"}
    for module_name in ("linalg", "first_order", "stokes", "filtering", "tensor_train", "tensor_train.quantics"):
        module = importlib.import_module(f"jaxnm.{module_name}")
        names |= {f"{module_name}.{name}" for name, value in vars(module).items() if _is_public_function(name, value)}
    for module_name in (
        "trees",
        "status",
        "arguments",
        "plot.first_order",
        "plot.stokes",
        "plot.filtering",
        "plot.tensor_train",
    ):
        module = importlib.import_module(f"jaxnm.{module_name}")
        own = {
            name
            for name, value in vars(module).items()
            if _is_public_function(name, value) and value.__module__ == module.__name__
        }
        names |= {f"{module_name}.{name}" for name in own if (module_name, name) != ("status", "raise_if_failed")}
    return names


def _is_public_function(name, value):
    return not name.startswith("_") and inspect.isfunction(value)


def test_every_public_function_has_a_row():
    assert {row.name for row in ROWS} == public_functions()


def test_every_public_function_documents_itself():
    """Args, Returns, and for numerical functions cost, differentiability and an example that runs."""
    missing = []
    for name in public_functions():
        owner, _, function_name = f"jaxnm.{name}".rpartition(".")
        doc = inspect.getdoc(getattr(importlib.import_module(owner), function_name)) or ""
        numerical = name.startswith(("linalg.", "first_order.", "stokes.", "filtering.", "tensor_train."))
        wanted = ["Args:", "Returns:", ">>>"] if numerical else []
        if numerical and name.split(".")[1] not in ("matmul", "einsum"):
            wanted += ["ifferentiable"]
        elif numerical:
            wanted = [">>>"]
        missing += [f"{name} lacks {part!r}" for part in wanted if part not in doc]
        missing += [f"{name} lacks a docstring"] if not doc else []
    assert not missing


def test_no_subpackage_escapes_the_table():
    found = {module.name for module in pkgutil.iter_modules(jaxnm.__path__)}
    modules = {"filtering", "first_order", "stokes", "tensor_train"}
    assert found == {"arguments", "linalg", "plot", "status", "trees"} | modules


def _floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]


def _arguments(row: Row, dtype):
    function, args = row.build(dtype)
    # another value of everything, by an amount that leaves a spectrum, a rate or a step in its range
    return function, args, jax.tree.map(lambda x: x * jnp.asarray(0.97, dtype), args)


def _cases(rows, modes):
    """Rows x modes; heavy rows compile in float64 only, and are exported in float32."""
    return [
        pytest.param(row, mode, id=f"{row.name}{'-larger' if row in LARGER else ''}-{mode}")
        for row in rows
        for mode in modes
        if mode == "float64" or not row.heavy
    ]


@pytest.mark.parametrize(("row", "mode"), _cases(TRANSFORMABLE, MODES))
def test_values(row: Row, mode: str):
    """Called outside jit, annotations checked: output of the input's precision, int32 status, finite numbers."""
    dtype, x64 = MODES[mode]
    with jax.enable_x64(x64):
        function, args, other = _arguments(row, dtype)
        if inspect.isfunction(function) and function.__module__.startswith("jaxnm"):
            function = jaxtyped(typechecker=beartype)(function)
        eager = function(*args)
        assert all(jnp.finfo(x.dtype).dtype == dtype for x in _floats(eager))
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in _floats(eager))
        for leaf in jax.tree.leaves(eager):
            assert not jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == jnp.int32

        function = row.build(dtype)[0]
        chex.clear_trace_counter()
        traced_once = chex.assert_max_traces(lambda *args: function(*args), 1)  # a second trace would raise
        allowed = 200 * float(jnp.finfo(dtype).eps) if row.tolerance is None else row.tolerance
        tolerance = {"rtol": allowed, "atol": allowed}
        pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), args, other)
        if row.heavy:
            # called plainly, the kernel is compiled already; once more under vmap is what a heavy row can afford
            batch = jax.jit(jax.vmap(traced_once), compiler_options=QUICK)
            reverse = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)
            batched, changed = batch(*pair), function(*other)
            chex.assert_trees_all_close(reverse(batch(*reverse(pair))), batched, **tolerance)
        else:
            jitted = jax.jit(traced_once, compiler_options=QUICK)
            batched = jax.jit(jax.vmap(function), compiler_options=QUICK)(*pair)
            chex.assert_trees_all_close(jitted(*args), eager, **tolerance)
            changed = jitted(*other)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], batched), eager, **tolerance)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], batched), changed, **tolerance)


@pytest.mark.parametrize(
    ("row", "mode"), _cases([row for row in TRANSFORMABLE if row.differentiable is True], ["float32", "float64"])
)
def test_derivatives(row: Row, mode: str):
    """jvp and vjp have the input's dtype, are finite, and are each other's transpose."""
    dtype, x64 = MODES[mode]
    with jax.enable_x64(x64):
        function, args, _ = _arguments(row, dtype)
        generator = np.random.default_rng(0)
        tangents = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape), x.dtype), args)

        def real_outputs(*args):
            parts = []
            for leaf in _floats(function(*args)):
                parts += [jnp.ravel(leaf.real)] + ([jnp.ravel(leaf.imag)] if jnp.iscomplexobj(leaf) else [])
            return jnp.concatenate(parts)

        @partial(jax.jit, compiler_options=QUICK)
        def both(args, tangents, key):
            _, tangent = jax.jvp(real_outputs, args, tangents)
            cotangent = jax.random.normal(key, tangent.shape, dtype)
            gradients = jax.vjp(real_outputs, *args)[1](cotangent)
            products = [
                jnp.vdot(g, t, precision="highest")
                for g, t in zip(jax.tree.leaves(gradients), jax.tree.leaves(tangents), strict=True)
            ]
            size = jnp.linalg.norm(cotangent) * jnp.linalg.norm(tangent) + sum(jnp.abs(p) for p in products)
            return tangent, gradients, jnp.vdot(cotangent, tangent, precision="highest") - sum(products), size

        tangent, gradients, difference, size = both(args, tangents, jax.random.key(0))
        for leaf in [tangent, *jax.tree.leaves(gradients)]:
            assert leaf.dtype == dtype
            assert bool(jnp.all(jnp.isfinite(leaf)))
        assert abs(float(difference)) <= 1000 * float(jnp.finfo(dtype).eps) * float(size)


@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_ids)
def test_export(row: Row):
    """Lowers to each platform separately, in float32 with x64 off, with outputs of the input's precision.

    No product is left at the default precision, which is TF32 on a GPU and bfloat16 on a TPU.
    """
    with jax.enable_x64(False):
        function, args = row.build(jnp.float32)
        jitted = jax.jit(lambda *args: jax.tree.leaves(function(*args)))  # one, so that it is traced once
        for platform in ("cpu", "cuda", "tpu"):
            exported = jax.export.export(jitted, platforms=(platform,))(*args)
            assert exported.platforms == (platform,)
            assert all(x.dtype in (jnp.float32, jnp.complex64, jnp.int32, jnp.bool_) for x in exported.out_avals)
        for line in exported.mlir_module().splitlines():
            if "stablehlo.dot_general" in line or "stablehlo.convolution" in line:
                assert "HIGHEST" in line, line


@pytest.mark.parametrize("row", [row for row in ROWS if row.transformable is not True], ids=lambda row: row.name)
def test_rows_without_transformations_say_why(row: Row):
    assert isinstance(row.transformable, str)
    assert len(row.transformable) > 20
