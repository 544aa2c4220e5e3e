"""What every public function promises: dtypes, transformations, one trace, export. See table.py for the rows."""

import importlib
import inspect
import pkgutil
import re
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
from tests.contracts.row import expected, factor
from tests.contracts.table import LARGER, ROWS, Row

TRANSFORMABLE = [row for row in ROWS + LARGER if row.transformable is True]
# with x64 on, where a silent promotion shows; exported is float32 with x64 off
DTYPES = ["float64", pytest.param("float32", marks=pytest.mark.exhaustive)]


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


def _name(row):
    return f"{row.name}{'-larger' if row in LARGER else ''}"


def _allowed(row, dtype):
    tolerance = row.tolerance.get(str(jnp.dtype(dtype))) if isinstance(row.tolerance, dict) else row.tolerance
    return max(200 * float(jnp.finfo(dtype).eps), tolerance or 0.0)


def _laws_and_scales(row, dtype):
    scales = (1e-8, 1e8) if dtype == jnp.float64 else (1e-4, 1e4)
    return [(law, s) for law in row.scaling for s in scales] if not isinstance(row.scaling, str) else []


def _compared(row, tree, without=()):
    """For each floating leaf of a result whether it is more than rounding, and none of `without`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return [not any(part in name for part in (*row.rounding, *without)) for name in names]


def _worst(pairs):
    """The largest difference of two lists of leaves, relative to the largest modulus of each leaf."""
    worst = 0.0
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        finite = np.isfinite(one) & np.isfinite(other)
        size = np.max(np.abs(other), where=finite, initial=0.0)
        error = np.max(np.abs(np.where(finite, one, 0) - np.where(finite, other, 0)), initial=0.0)
        worst = max(worst, float(error / size) if size > 0 else float(error))
        if not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return np.inf
    return worst


def _times_sizes(args, gradients):
    """One vector of all gradients, each times the size of its argument, so that they have one unit."""
    pairs = zip(jax.tree.leaves(args), jax.tree.leaves(gradients), strict=True)
    return np.concatenate([np.max(np.abs(x), initial=0.0) * np.ravel(gradient) for x, gradient in pairs])


def _noise(tree, seed):
    """Normal random numbers like a tree, complex where it is; of a seed that no row draws its arguments with."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        real = generator.normal(size=leaf.shape)
        imaginary = 1j * generator.normal(size=leaf.shape) if jnp.iscomplexobj(leaf) else 0
        return jnp.asarray(real + imaginary, leaf.dtype)

    return jax.tree.map(draw, tree)


def _products(one, other):
    """Of leaves, without conjugation, as jvp and vjp are transposes of each other; in double precision on the host."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [float(np.sum(np.asarray(a, complex) * np.asarray(b, complex)).real) for a, b in pairs]


def _norm(tree):
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, complex)) ** 2) for leaf in jax.tree.leaves(tree))))


def _forward(function):
    return lambda *args: jax.jvp(function, args, jax.tree.map(jnp.ones_like, args))[1]


def _reverse(function):
    total = lambda *args: sum(jnp.sum(leaf.real) for leaf in jax.tree.leaves(function(*args)))
    return lambda *args: sum(jnp.sum(leaf.real) for leaf in jax.tree.leaves(jax.grad(total, range(len(args)))(*args)))


def _members(row, args):
    """(48 members, the indices of the ordinary ones): the arguments changed a little, and hard ones among them."""
    generator = np.random.default_rng(1)
    times = lambda f: jax.tree.map(lambda x: x * jnp.asarray(f(), x.dtype), args)
    hard = {3: lambda: np.nan, 11: lambda: 0.0, 17: lambda: 1e12, 23: lambda: 1e-12, 31: lambda: np.inf}
    members = [times(hard.get(i, lambda: 1 + 0.02 * generator.uniform(-1, 1))) for i in range(48)]
    own = row.members(jnp.float64) if row.members else []
    members[48 - len(own) :] = own
    return members, set(range(48 - len(own))) - set(hard)


@pytest.fixture
def precision(request: pytest.FixtureRequest):
    """x64 off for float32 where the result has the default dtype."""
    row, dtype = (request.node.callspec.params[name] for name in ("row", "dtype"))
    with jax.enable_x64(dtype == "float64" or not row.default_dtype):
        yield


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_name)
def test_values(row: Row, dtype: str, record_figure):
    """Called outside jit, annotations checked: output of the input's precision, int32 status, finite numbers.

    The same under jit and vmap, with one trace over changed values; scaled by its laws in other units.
    """
    dtype = jnp.dtype(dtype)
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
    allowed = _allowed(row, dtype)
    tolerance = {"rtol": allowed, "atol": allowed}
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), args, other)
    if row.heavy:
        # called plainly, the kernel is compiled already; once more under vmap is what a heavy row can afford
        batch, call = jax.jit(jax.vmap(traced_once), compiler_options=QUICK), function
        reverse = lambda tree: jax.tree.map(lambda leaf: leaf[::-1], tree)
        batched, changed = batch(*pair), function(*other)
        chex.assert_trees_all_close(reverse(batch(*reverse(pair))), batched, **tolerance)
    else:
        call = jax.jit(traced_once, compiler_options=QUICK)
        batched = jax.jit(jax.vmap(function), compiler_options=QUICK)(*pair)
        chex.assert_trees_all_close(call(*args), eager, **tolerance)
        changed = call(*other)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], batched), eager, **tolerance)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], batched), changed, **tolerance)

    for law, s in _laws_and_scales(row, dtype):
        scaled = call(*law.scaled(args, s))
        powers = law.powers(eager)
        leaves = zip(_compared(row, eager), powers, _floats(scaled), _floats(eager), strict=True)
        error = _worst(
            [(leaf, expected(power, old, s)) for counts, power, leaf, old in leaves if counts and power is not None]
        )
        record_figure("units", row.name, error / _allowed(row, dtype))
        assert error <= allowed, f"times {s} by {law}: {error}"
        statuses = lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.int32]
        if not any(power is None for power in powers):
            chex.assert_trees_all_equal(statuses(scaled), statuses(eager))


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [row for row in TRANSFORMABLE if row.order in (1, 2)], ids=_name)
def test_derivatives(row: Row, dtype: str, record_figure):
    """jvp and vjp have the input's dtype, are finite, are each other's transpose, and scale with the units."""
    dtype = jnp.dtype(dtype)
    function, args, _ = _arguments(row, dtype)
    tangents = _noise(args, 100)
    outputs = lambda *args: _floats(function(*args))
    cotangents = _noise(jax.eval_shape(outputs, *args), 101)

    @partial(jax.jit, compiler_options=QUICK)
    def both(args, tangents, cotangents):
        tangent = jax.jvp(outputs, args, tangents)[1]
        return tangent, jax.vjp(outputs, *args)[1](cotangents)

    tangent, gradients = both(args, tangents, cotangents)
    for leaf in jax.tree.leaves((tangent, gradients)):
        assert jnp.finfo(leaf.dtype).dtype == dtype
        assert bool(jnp.all(jnp.isfinite(leaf)))
    forwards, backwards = _products(cotangents, tangent), _products(gradients, tangents)
    size = sum(map(abs, forwards)) + sum(map(abs, backwards)) + _norm(cotangents) * _norm(tangent)
    assert abs(sum(forwards) - sum(backwards)) <= 1000 * float(jnp.finfo(dtype).eps) * size

    for law, s in _laws_and_scales(row, dtype):
        shapes = jax.eval_shape(function, *args)
        named = zip(law.powers(shapes), _compared(row, shapes), strict=True)
        powers = [power if counts else None for power, counts in named]
        weights = [factor(power, 1.0) for power in powers]  # of what is compared
        multiplied = lambda factors, leaves: [
            jnp.asarray(f, leaf.dtype) * leaf for f, leaf in zip(factors, leaves, strict=True)
        ]
        in_units = [1 / factor(power, s) if weight else 0.0 for power, weight in zip(powers, weights, strict=True)]
        new = both(law.scaled(args, s), law.scaled(tangents, s), multiplied(in_units, cotangents))
        # back in the old units; gradients go by the inverse powers
        forwards = multiplied(in_units, new[0]), multiplied(weights, tangent)
        reference = both(args, tangents, multiplied(weights, cotangents))[1]
        backwards = [_times_sizes(args, gradients) for gradients in (law.scaled(new[1], s), reference)]
        error = max(_worst([*zip(*forwards, strict=True)]), _worst([tuple(backwards)]))
        allowed = max(10 * _allowed(row, dtype), row.derivative_tolerance)
        record_figure("units of derivatives", row.name, error / allowed)
        assert error <= allowed, f"times {s} by {law}: {error}"


@pytest.mark.parametrize("row", [row for row in TRANSFORMABLE if row.order in (0, 1)], ids=lambda row: row.name)
def test_the_next_derivative_raises(row: Row):
    """Traced only: a TypeError of the house, by both modes, where a derivative is not supported."""
    function, args, _ = _arguments(row, jnp.float64)
    total = lambda *args: sum(jnp.sum(leaf.real) for leaf in _floats(function(*args)))
    for transform in (_forward, _reverse):
        derivative = total
        for _ in range(row.order):
            derivative = transform(derivative)
            jax.eval_shape(derivative, *args)
        for last in (_forward, _reverse):
            with pytest.raises(TypeError, match=r"differentiated, expected no"):
                jax.eval_shape(last(derivative), *args)


def test_rows_say_their_order_and_their_units():
    """What is not smooth has its reason and its order; what has no scaling law has its reason."""
    wrong = []
    for row in TRANSFORMABLE:
        if (row.order == 2) != (row.differentiable is True):
            wrong.append(f"{row.name}: order {row.order}, but differentiable={row.differentiable!r}")
        if not row.scaling or (isinstance(row.scaling, str) and len(row.scaling) < 10):
            wrong.append(f"{row.name}: no scaling law and no reason")
    assert not wrong


# -------------------------------------------------------------------------------------------- the second, slower tier


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", [row for row in TRANSFORMABLE if row.order in (1, 2)], ids=_name)
def test_first_derivatives_agree_with_differences(row: Row, record_figure):
    """The derivative of a random combination of the results along a random direction, against differences of it."""
    function, args, _ = _arguments(row, jnp.float64)
    tangents = jax.tree.map(lambda x, t: t * jnp.maximum(jnp.max(jnp.abs(x)), 1e-3), args, _noise(args, 100))
    tangents = row.smooth(args, tangents)
    shapes = jax.eval_shape(function, *args)
    cotangents = [
        weight if counts else 0 * weight
        for counts, weight in zip(
            _compared(row, shapes, without=row.constants), _noise(_floats(shapes), 101), strict=True
        )
    ]
    total = lambda args: sum(
        jnp.sum((weight * leaf).real) for weight, leaf in zip(cotangents, _floats(function(*args)), strict=True)
    )
    value = jax.jit(total, compiler_options=QUICK)
    h = 1e-4
    moved = lambda d: float(value(jax.tree.map(lambda x, t: x + d * t, args, tangents)))
    difference = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    slope = float(jax.jit(lambda args, t: jax.jvp(total, (args,), (t,))[1], compiler_options=QUICK)(args, tangents))
    noise = max(_allowed(row, jnp.float64), 1e3 * float(jnp.finfo(jnp.float64).eps)) * abs(moved(0.0)) / h + 1e-12
    allowed = max(row.difference_tolerance, row.derivative_tolerance) * abs(difference) + noise
    record_figure("first derivatives", row.name, abs(slope - difference) / allowed if allowed else 0.0)
    assert abs(slope - difference) <= allowed


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", [row for row in TRANSFORMABLE if row.order == 2], ids=_name)
def test_second_derivatives_agree_with_differences(row: Row, record_figure):
    """A product with the Hessian of a random combination of the results, against differences of its gradient."""
    function, args, _ = _arguments(row, jnp.float64)
    tangents = jax.tree.map(lambda x, t: t * jnp.maximum(jnp.max(jnp.abs(x)), 1e-3), args, _noise(args, 100))
    tangents = row.smooth(args, tangents)
    outputs = lambda *args: _floats(function(*args))
    cotangents = _noise(jax.eval_shape(outputs, *args), 101)
    gradient = lambda *args: jax.vjp(outputs, *args)[1](cotangents)
    both = jax.jit(lambda args, tangents: jax.jvp(gradient, args, tangents), compiler_options=QUICK)
    h = 1e-5
    moved = lambda d: both(jax.tree.map(lambda x, t: x + d * t, args, tangents), tangents)[0]
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * h), moved(h), moved(-h))
    first, second = both(args, tangents)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(second))
    error, size = _norm(jax.tree.map(jnp.subtract, second, differences)), _norm(differences)
    allowed = row.difference_tolerance * size + 1e-6 * _norm(first)
    record_figure("second derivatives", row.name, error / allowed if allowed else 0.0)
    assert error <= allowed


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_name)
def test_no_tracer_leaks_no_transfer_is_implicit_and_no_nan_is_made(row: Row):
    """Under JAX's own three watches; the last two together, since each compiles everything anew."""
    function, args, _ = _arguments(row, jnp.float64)
    with jax.checking_leaks():
        jax.jit(function).trace(*args)
    with jax.transfer_guard("disallow"), jax.debug_nans(True):
        jax.block_until_ready(function(*args))


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_name)
def test_a_member_is_the_same_alone_in_a_batch_and_in_another_order(row: Row, record_figure):
    """48 members, of which some are not finite, zero, huge, tiny, or hard by the row itself."""
    function, args, _ = _arguments(row, jnp.float64)
    members, ordinary = _members(row, args)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    alone = jax.jit(function, compiler_options=QUICK)
    batch = jax.jit(jax.vmap(function), compiler_options=QUICK)
    order = np.random.default_rng(2).permutation(len(members))
    together, shuffled = batch(*stack(members)), batch(*stack([members[i] for i in order]))
    take = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)
    integers = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype in (jnp.int32, jnp.bool_)]
    finite = lambda tree: [np.isfinite(leaf) for leaf in _floats(tree)]
    worst = 0.0
    for position, i in enumerate(order):
        single = alone(*members[i])
        for other in (take(together, i), take(shuffled, position)):
            chex.assert_trees_all_equal(finite(other), finite(single))
            chex.assert_trees_all_equal(getattr(other, "status", None), getattr(single, "status", None))
            if i in ordinary or row.order is None:
                chex.assert_trees_all_equal(integers(other), integers(single))
            if np.any(getattr(single, "status", 0)):
                continue  # nothing is promised of its figures
            leaves = zip(_compared(row, other), _floats(other), _floats(single), strict=True)
            error = _worst([(a, b) for counts, a, b in leaves if counts])
            assert error <= (_allowed(row, jnp.float64) if i in ordinary else 1e-6), f"member {i}: {error}"
            worst = max(worst, error if i in ordinary else 0.0)
    record_figure("neighbours", row.name, worst / _allowed(row, jnp.float64))


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_name)
def test_a_batch_of_symbolic_size_is_exported_or_refused_by_the_house(row: Row):
    function, args, _ = _arguments(row, jnp.float64)
    (size,) = jax.export.symbolic_shape("b")
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), args)
    try:
        jax.export.export(jax.jit(jax.vmap(lambda *args: jax.tree.leaves(function(*args)))))(*batch)
    except (TypeError, ValueError) as refusal:
        # a collective with a batch of symbolic size is refused by the lowering of JAX, as the docstring says
        collective = row.name == "filtering.sharded_particle_filter" and "Cannot lower jaxpr" in str(refusal)
        if not collective and not re.search(r"^\w+: .* expected .*(concrete|known).*; ", str(refusal)):
            raise


@pytest.mark.parametrize("platforms", [["tpu"], pytest.param(["cpu", "cuda"], marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize("row", TRANSFORMABLE, ids=_name)
def test_export(row: Row, platforms: list[str]):
    """Lowers to each platform separately, in float32 with x64 off, with outputs of the input's precision.

    No product is left at the default precision, which is TF32 on a GPU and bfloat16 on a TPU.
    """
    with jax.enable_x64(False):
        function, args = row.build(jnp.float32)
        jitted = jax.jit(lambda *args: jax.tree.leaves(function(*args)))  # one, so that it is traced once
        for platform in platforms:
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
