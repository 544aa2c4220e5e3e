"""One row for every public function: how to call it, and which promises do not apply to it, with the reason."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnm
from jaxnm import arguments, first_order, linalg, status, trees
from tests.contracts.filtering_rows import FILTERING_ROWS
from tests.contracts.row import Law, Row, law, matrix, number, of
from tests.contracts.stokes_rows import STOKES_LARGER, STOKES_ROWS
from tests.contracts.tensor_train_cross_rows import TENSOR_TRAIN_CROSS_ROWS
from tests.contracts.tensor_train_optimizer_rows import TENSOR_TRAIN_OPTIMIZER_ROWS
from tests.contracts.tensor_train_quantics_rows import TENSOR_TRAIN_QUANTICS_ROWS
from tests.contracts.tensor_train_rows import TENSOR_TRAIN_LARGER, TENSOR_TRAIN_ROWS
from tests.contracts.tensor_train_solve_rows import TENSOR_TRAIN_SOLVE_ROWS
from tests.contracts.tensor_train_spectra_rows import TENSOR_TRAIN_SPECTRA_ROWS

_KEY = jax.random.key(0)


def _vector(seed: int, dtype: Any) -> jax.Array:
    return matrix(dtype, 3, seed=seed)


def _positive(dtype: Any, n: int) -> jax.Array:
    a = np.random.default_rng(0).normal(size=(n, n))
    return jnp.asarray(a @ a.T + n * np.eye(n), dtype)


def _method(dtype: Any, n: int = 2) -> first_order.StateSpace:
    number = lambda value: jnp.asarray(value, dtype)
    if n == 2:
        return first_order.nesterov(number(0.5), number(0.4))
    A = np.array([[1.0, -0.12, -0.08], [0.0, 0.3, 0.0], [0.0, 0.3, 0.2]])
    return first_order.state_space(
        jnp.asarray(A, dtype), jnp.asarray([-0.4, 1.0, 1.0], dtype), jnp.asarray([1.0, 0, 0], dtype)
    )


# learning rates are in units of 1 / curvature, and a state in any unit
_RATE, _STATE = first_order.StateSpace(0, -1, 0), first_order.StateSpace(0, 1, -1)


def _curvatures(dtype: Any) -> jax.Array:
    return jnp.asarray([0.1, 0.5, 1.0], dtype)


def _extreme_eigenvalues(a: jax.Array) -> linalg.ExtremeEigenvalues:
    like = jax.ShapeDtypeStruct(a.shape[-1:], a.dtype)
    return linalg.extreme_eigenvalues(lambda v: linalg.matmul(a, v), like, key=_KEY)


def _spectral_measure(a: jax.Array) -> linalg.SpectralMeasure:
    like = jax.ShapeDtypeStruct(a.shape[-1:], a.dtype)
    return linalg.spectral_density(lambda v: linalg.matmul(a, v), like, key=_KEY, num_steps=2)


def _trace_of_function(dtype: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    measure = _spectral_measure(_positive(dtype, 3))
    return lambda x: linalg.trace_of_function(measure, lambda node: jnp.exp(-x * node)), (jnp.asarray(0.3, dtype),)


def _smoothed_density(dtype: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    measure = _spectral_measure(_positive(dtype, 3))
    function = lambda points, width: linalg.smoothed_density(measure, points, width)
    return function, (jnp.asarray([2.0, 4.0], dtype), jnp.asarray(0.7, dtype))


def _krylov(name: str) -> Row:
    """Three steps end at rounding, whatever the tolerance; the null space is another path and has its own tests."""
    solve = lambda a, b: getattr(linalg, name)(lambda v: linalg.matmul(a, v), b, rtol=1e-15)
    return Row(
        f"linalg.{name}",
        of(solve, lambda d: _positive(d, 3), lambda d: matrix(d, 3)),
        rounding=(".residual_norm",),
        scaling=law(1, 0, result={".x": -1}) + law(0, 1, result={".x": 1, ".residual_norm": 1}),
    )


def _sizes(dtype: Any) -> jax.Array:
    return jnp.asarray([0.8, 1.3, 0.6, 1.1], dtype)


def _separable(sizes: jax.Array, right: jax.Array, shift: jax.Array) -> jax.Array:
    bases = linalg.graded_basis(sizes), linalg.graded_basis(sizes, ("free", "free"))
    return linalg.solve_separable(bases, right, shift)


def _largest_margin(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """P and P - a^T P a."""
    basis = arguments.constant([[[1, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0, 1]]], a.dtype)
    images = jnp.stack([linalg.matmul(linalg.matmul(a.T, matrix), a) for matrix in basis])
    solution = linalg.maximize_margin([basis, basis - images])
    return solution.margin, solution.status


def _certified_rate(method: first_order.StateSpace, mu: jax.Array, L: jax.Array) -> tuple[jax.Array, ...]:
    certificate = first_order.certify_rate(method, mu, L)
    return certificate.rate, certificate.quadratic_rate, certificate.status


def _own_rate(method: first_order.StateSpace, mu: jax.Array, L: jax.Array) -> tuple[jax.Array, ...]:
    certificate = first_order.check_lyapunov(method, arguments.constant([[2.0, -1.0], [-1.0, 1.0]], mu.dtype), mu, L)
    return certificate.rate, certificate.status


def _is_proved(dtype: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    certificate = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, _CERTIFICATE)
    return lambda mu: first_order.is_proved(certificate.replace(mu=mu)), (certificate.mu,)


def _quadratic_loss(scale: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    w = params["w"]
    return scale * (jnp.sum(w**4) + jnp.sum(w**2 * jnp.arange(1, 4, dtype=scale.dtype)))


def _hessian_spectrum(scale: jax.Array, w: jax.Array) -> first_order.Spectrum:
    return first_order.hessian_spectrum(jax.tree_util.Partial(_quadratic_loss, scale), {"w": w})


def _lanczos_spectrum(scale: jax.Array, w: jax.Array) -> first_order.Spectrum:
    loss = jax.tree_util.Partial(_quadratic_loss, scale)
    return first_order.hessian_spectrum(loss, {"w": w}, method="lanczos", key=_KEY, num_probes=1)


def _grid(rates: jax.Array, curvatures: jax.Array) -> first_order.Analysis:
    return first_order.analyze_learning_rates(lambda rate: optax.sgd(rate, momentum=0.5), rates, curvatures)


def _of_step_only(args: Any, tangents: Any) -> Any:
    """No change of A and C, whose eigenvalue one at curvature zero would move, nor of what gradients do not get to."""
    zero, method = tangents[0].A * 0, args[0]
    return (method.replace(A=zero, B=0.3 * method.B, C=zero[0]), *tangents[1:])


def _constructor(name: str, *values: float, scaling: tuple[Law, ...] | str) -> Row:
    return Row(f"first_order.{name}", of(getattr(first_order, name), *map(number, values)), scaling=scaling)


_UNITS = {".A": 0, ".B": 1, ".C": -1}
_in_units = first_order.StateSpace
_STEP = {".A": 0, ".B": 1, ".C": 0}
_CURVATURE = {".A": 0, ".B": -1, ".C": 0}
_TUNED = law(1, 1, result=_CURVATURE)
_MIXED_STATES = "one state is the parameters and one a gradient, so that a step size enters single entries of A and B"
_SPECTRUM = {".eigenvalues": 1, ".mu": 1, ".L": 1, ".lower_bound": 1, ".upper_bound": 1}
_CARD = {".mu": -1, ".L": -1, ".worst_curvature": -1, ".stability_limit": -1, ".transient_curvature": -1}


_HOST = "decides on the host while tracing; covered by tests/test_arguments.py"
_EXACT = "runs on the host in exact arithmetic; see tests/first_order/test_certificates.py"
with jax.enable_x64(False):
    _CERTIFICATE = first_order.certify_rate(first_order.nesterov(jnp.float32(0.5), jnp.float32(0.4)), 0.1, 1.0)
_DISCRETE = "returns a truth value or a code"


def _solve_status(dtype: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return jax.jit(lambda x: status.first_failing((x > 0, status.Status.NOT_STABLE))), (jnp.asarray(1.0, dtype),)


def _merge(dtype: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return jax.jit(lambda x: status.merge((x > 0).astype(jnp.int32), jnp.int32(4))), (jnp.asarray(1.0, dtype),)


_BILINEAR = law(1, 0, result=1) + law(0, 1, result=1)
_ANY_UNITS = "nothing in it has units"

ROWS = [
    Row("linalg.matmul", of(linalg.matmul, lambda d: matrix(d, 2, 3), lambda d: matrix(d, 3, 2)), scaling=_BILINEAR),
    Row(
        "linalg.einsum",
        of(lambda a: linalg.einsum("ij,ji->", a, a), lambda d: matrix(d, 3, 3)),
        scaling=law(1, result=2),
    ),
    Row("linalg.svd", of(linalg.svd, lambda d: matrix(d, 3, 2)), scaling=law(1, result={".singular_values": 1})),
    Row("linalg.qr", of(linalg.qr, lambda d: matrix(d, 3, 2)), scaling=law(1, result={".triangular": 1})),
    Row("linalg.eigh", of(linalg.eigh, lambda d: _positive(d, 3)), scaling=law(1, result={".values": 1})),
    Row("linalg.cholesky", of(linalg.cholesky, lambda d: _positive(d, 3)), scaling=law(2, result=1)),
    Row(
        "linalg.solve",
        of(linalg.solve, lambda d: _positive(d, 3), lambda d: matrix(d, 3, 2)),
        scaling=law(1, 0, result=-1) + law(0, 1, result=1),
    ),
    Row("linalg.safe_norm", of(linalg.safe_norm, lambda d: matrix(d, 4)), scaling=law(1, result=1)),
    Row(
        "linalg.schur",
        of(linalg.schur, lambda d: matrix(d, 3, 3)),
        differentiable="T and Q are not unique; `eigenvalues` is differentiable",
        heavy=True,
        order=0,
        scaling=law(1, result={".T": 1}),
    ),
    Row(
        "linalg.eigenvalues",
        of(linalg.eigenvalues, lambda d: matrix(d, 3, 3, seed=3)),
        heavy=True,
        scaling=law(1, result=1),
    ),
    Row(
        "linalg.left_eigenvectors",
        of(lambda a: linalg.left_eigenvectors(linalg.schur(a)), lambda d: matrix(d, 2, 2)),
        differentiable="eigenvectors are not unique",
        heavy=True,
        order=0,
        scaling="eigenvectors have a factor of modulus one that rounding decides; see tests/linalg/test_schur.py",
    ),
    Row(
        "linalg.lanczos",
        of(
            lambda a, v: linalg.lanczos(lambda x: linalg.matmul(a, x), v, num_steps=2),
            lambda d: _positive(d, 3),
            lambda d: matrix(d, 3),
        ),
        differentiable="a recurrence for what is: the eigenvalues of extreme_eigenvalues",
        order=0,
        rounding=(".asymmetry",),
        scaling=law(1, 0, result={".diagonal": 1, ".off_diagonal": 1}) + law(0, 1, result=0),
    ),
    Row(
        "linalg.extreme_eigenvalues",
        of(_extreme_eigenvalues, lambda d: _positive(d, 3)),
        differentiable="the vectors are constants for the first derivative, so the second raises",
        order=1,
        rounding=("_error_bounds", ".asymmetry"),
        constants=("_vectors", "_bound"),
        smooth=lambda args, tangents: (tangents[0] + tangents[0].T,),
        scaling=law(
            1,
            result={
                ".smallest": 1,
                ".largest": 1,
                "_bound": 1,
                ".smallest_vectors": 0,
                ".largest_vectors": 0,
            },
        ),
    ),
    Row(
        "linalg.spectral_density",
        of(_spectral_measure, lambda d: _positive(d, 3)),
        differentiable="nodes and weights of random probes; eigenvalues of extreme_eigenvalues are",
        order=0,
        rounding=(".asymmetry",),
        scaling=law(1, result={".nodes": 1}),
    ),
    Row(
        "linalg.trace_of_function",
        _trace_of_function,
        scaling="its argument is what the function of the caller depends on",
    ),
    Row(
        "linalg.maximize_margin",
        of(_largest_margin, lambda d: 0.3 * matrix(d, 2, 2)),
        "the envelope theorem gives the derivative of the margin from the duals; certify_rate uses it",
        heavy=True,
        tolerance=1e-8,
        order=0,
        scaling="the matrix has no unit; for units of the inequalities see tests/linalg/test_lmi.py",
    ),
    Row(
        "linalg.smoothed_density",
        _smoothed_density,
        rounding=(".standard_error",),  # where the width is huge, all probes say the same
        scaling="its units are those of nodes that are no argument",
    ),
    Row(
        "linalg.solve_discrete_lyapunov",
        of(linalg.solve_discrete_lyapunov, lambda d: 0.3 * matrix(d, 2, 2), lambda d: _positive(d, 2)),
        rounding=(".residual",),
        scaling=law(0, 1, result={".x": 1}),
    ),
    _krylov("minres"),
    _krylov("conjugate_gradient"),
    *(
        Row(f"linalg.{name}", of(getattr(linalg, name), lambda d: matrix(d, 2, 6)), scaling=law(1, result=1))
        for name in ("dct", "idct", "dst", "idst", "hartley", "dctn", "idctn", "dstn", "idstn")
    ),
    Row(
        "linalg.graded_basis",
        of(linalg.graded_basis, _sizes),
        scaling=law(1, result={".eigenvalues": -2, ".vectors": -0.5, ".volumes": 1}),
    ),
    Row(
        "linalg.solve_separable",
        of(_separable, _sizes, lambda d: matrix(d, 4, 4), number(0.3)),
        scaling=law(1, 0, -2, result=2) + law(0, 1, 0, result=1),
    ),
    Row(
        "trees.all_finite", of(lambda x: trees.all_finite({"x": x}), lambda d: matrix(d, 3)), _DISCRETE, order=None,
        scaling=_ANY_UNITS,
    ),
    Row(
        "trees.is_floating", of(trees.is_floating, lambda d: matrix(d, 3)), _DISCRETE, _HOST, order=None,
        scaling=_ANY_UNITS,
    ),
    Row(
        "trees.check_same_structure", of(trees.check_same_structure, _curvatures), _HOST, _HOST, order=None,
        scaling=_ANY_UNITS,
    ),
    Row("status.first_failing", _solve_status, _DISCRETE, order=None, scaling=_ANY_UNITS),
    Row("status.merge", _merge, _DISCRETE, order=None, scaling=_ANY_UNITS),
    Row(
        "raise_if_failed",
        of(jaxnm.raise_if_failed, number(1.0)),
        "raises on the host",
        "needs a concrete status: raises on the host; covered by tests/test_status.py",
        order=None,
        scaling=_ANY_UNITS,
    ),
    *(
        Row(f"arguments.{name}", of(arguments.is_number, number(1.0)), _HOST, _HOST, order=None, scaling=_ANY_UNITS)
        for name in (
            "refuse", "is_number", "to_arrays", "complex_dtype", "check_shape", "check_square", "check_real",
            "check_number", "check_count", "check_key", "check_dtype", "constant", "is_numeric", "check_axis",
            "check_batch", "check_callable", "check_cap", "check_flag", "check_list", "check_option", "check_tuple",
            "float_dtype", "shape_of_value", "to_integers",
        )
    ),
    Row(
        "arguments.without_derivative",
        of(lambda x: arguments.without_derivative("f", "x", x, remedy="none"), lambda d: matrix(d, 3)),
        "it is there to raise",
        order=0,
        scaling=law(1, result=1),
    ),
    Row(
        "arguments.hoist_tracers",
        of(lambda x: arguments.hoist_tracers("f", "x", lambda v: x * v, x)[0](x), lambda d: matrix(d, 3)),
        scaling=law(1, result=2),
    ),
    Row(
        "arguments.nan_unless",
        of(jax.jit(lambda x: arguments.nan_unless(x, jnp.isfinite(x))), lambda d: matrix(d, 3)),
        scaling=law(1, result=1),
    ),
    Row(
        "first_order.state_space",
        of(first_order.state_space, lambda d: matrix(d, 2, 2), lambda d: matrix(d, 2), lambda d: matrix(d, 2)),
        scaling=law(0, 1, -1, result=_UNITS),
    ),
    Row(
        "first_order.iteration_matrix",
        of(first_order.iteration_matrix, _method, _curvatures),
        scaling=law(_in_units(0, 1, 0), -1, result=0) + law(_in_units(1, 1, 1), -1, result=1),
    ),
    _constructor("three_parameter", 0.5, 0.3, 0.2, scaling=law(1, 0, 0, result=_STEP)),
    _constructor("gradient_descent", 0.5, scaling=law(1, result=_STEP)),
    _constructor("heavy_ball", 0.5, 0.3, scaling=law(1, 0, result=_STEP)),
    _constructor("nesterov", 0.5, 0.3, scaling=law(1, 0, result=_STEP)),
    _constructor("optimal_gradient_descent", 0.1, 1.0, scaling=_TUNED),
    _constructor("optimal_heavy_ball", 0.1, 1.0, scaling=_TUNED),
    _constructor("optimal_nesterov", 0.1, 1.0, scaling=_TUNED),
    _constructor("triple_momentum", 0.1, 1.0, scaling=_TUNED),
    _constructor("robust_momentum", 0.8, 0.1, 1.0, scaling=law(0, 1, 1, result=_CURVATURE)),
    _constructor("gauss_seidel_nesterov", 0.5, 0.3, scaling=law(1, 0, result=_STEP)),
    _constructor("optimal_gauss_seidel_nesterov", 0.1, 1.0, scaling=_TUNED),
    _constructor("optimistic_gradient", 0.3, scaling=_MIXED_STATES),
    _constructor("quasi_hyperbolic", 0.5, 0.9, 0.7, scaling=_MIXED_STATES),
    Row(
        "first_order.spectral_radius",
        of(first_order.spectral_radius, lambda d: matrix(d, 2, 2)),
        scaling=law(1, result=1),
    ),
    Row(
        "first_order.transient_growth",
        of(lambda m: first_order.transient_growth(m, 5), lambda d: matrix(d, 2, 2)),
        scaling="the largest of powers, each of which has another law",
    ),
    Row(
        "first_order.quadratic_rate",
        of(first_order.quadratic_rate, _method, number(0.1), number(1.0)),
        scaling=law(_RATE, 1, 1, result=0) + law(_STATE, 0, 0, result=0),
    ),
    Row(
        "first_order.worst_curvature",
        of(first_order.worst_curvature, _method, number(0.1), number(1.0)),
        scaling=law(_RATE, 1, 1, result=1) + law(_STATE, 0, 0, result=0),
    ),
    Row(
        "first_order.is_stable",
        of(first_order.is_stable, _method, number(0.1), number(1.0)),
        _DISCRETE,
        order=None,
        scaling=law(_RATE, 1, 1, result=0) + law(_STATE, 0, 0, result=0),
    ),
    Row(
        "first_order.stability_limit",
        of(first_order.stability_limit, _method),
        smooth=_of_step_only,
        scaling=law(_RATE, result=1) + law(_STATE, result=0),
    ),
    Row(
        "first_order.chebyshev",
        of(lambda mu, L: first_order.chebyshev(mu, L, 4), number(0.1), number(1.0)),
        scaling=law(1, 1, result={".B": -1}),
    ),
    Row(
        "first_order.time_varying_rate",
        of(
            lambda mu, L, lam: first_order.time_varying_rate(first_order.chebyshev(mu, L, 4), lam),
            number(0.1),
            number(1.0),
            lambda d: jnp.asarray([0.15, 0.6], d),
        ),
        scaling=law(1, 1, 1, result=0),
    ),
    Row(
        "first_order.resolvent_norm",
        of(first_order.resolvent_norm, lambda d: 0.3 * matrix(d, 2, 2), _curvatures),
        scaling=law(1, 1, result=-1),
    ),
    Row(
        "first_order.pseudospectrum",
        of(first_order.pseudospectrum, lambda d: 0.3 * matrix(d, 2, 2), _curvatures),
        scaling=law(1, 1, result=1),
    ),
    Row(
        "first_order.kreiss_constant",
        of(first_order.kreiss_constant, lambda d: 0.3 * matrix(d, 2, 2)),
        "a supremum found by comparisons",
        heavy=True,
        order=0,
        scaling="the unit circle is the unit",
    ),
    Row(
        "first_order.numerical_radius",
        of(first_order.numerical_radius, lambda d: matrix(d, 2, 2)),
        "how the maximal direction moves is not known, so there is no second derivative",
        heavy=True,
        order=1,
        scaling=law(1, result=1),
    ),
    Row(
        "first_order.schur_lyapunov",
        of(first_order.schur_lyapunov, _method, _curvatures),
        scaling=law(_RATE, 1, result=0) + law(_STATE, 0, result=0),
    ),
    Row(
        "first_order.casoratian",
        of(first_order.casoratian, *(partial(_vector, seed) for seed in range(4))),
        scaling=law(1, 1, 1, 1, result=2),
    ),
    Row(
        "first_order.eigen_lyapunov",
        of(first_order.eigen_lyapunov, lambda d: matrix(d, 2, 2)),
        "eigenvectors of repeated eigenvalues are not",
        heavy=True,
        order=0,
        scaling=law(1, result=0),
    ),
    Row(
        "first_order.lyapunov_decrease",
        of(first_order.lyapunov_decrease, lambda d: _positive(d, 2), lambda d: 0.3 * matrix(d, 2, 2), number(0.9)),
        scaling=law(1, 0, 0, result=1) + law(0, 1, 1, result=2),
    ),
    Row(
        "first_order.from_optax",
        lambda d: (lambda rate: first_order.from_optax(optax.sgd(float(rate), momentum=0.9)), (jnp.asarray(0.1, d),)),
        "analyze_learning_rates is",
        "the verdict (affine or not) is by values on the host; analyze_learning_rates maps over hyperparameters",
    ),
    Row(
        "first_order.hessian_spectrum",
        of(_hessian_spectrum, number(0.3), _curvatures),
        rounding=(".asymmetry",),
        constants=("_bound",),
        scaling=law(1, 0, result=_SPECTRUM),
    ),
    Row(
        "first_order.certify_rate",
        of(_certified_rate, _method, number(0.5), number(1.0)),
        "the multipliers give the first derivative only",
        heavy=True,
        tolerance={"float64": 1e-6, "float32": 2e-3},  # of 1 - rate: a millionth, and half a percent
        derivative_tolerance=1e-4,  # as its docstring says
        order=1,
        scaling=law(_RATE, 1, 1, result=0) + law(_STATE, 0, 0, result=0),
    ),
    Row(
        "first_order.check_lyapunov",
        of(_own_rate, _method, number(0.1), number(1.0)),
        "the multipliers give the first derivative only, and none in P",
        heavy=True,
        tolerance=1e-7,
        order=1,
        scaling=law(_RATE, 1, 1, result=0),
    ),
    Row("first_order.is_proved", _is_proved, _DISCRETE, order=None, scaling="its only argument that is free is mu"),
    *(
        Row(f"first_order.{name}", of(lambda x: None, number(1.0)), "exact arithmetic", _EXACT)
        for name in ("verify", "write_certificate", "read_certificate")
    ),
    Row(
        "first_order.analyze",
        of(first_order.analyze, _method, _curvatures),
        smooth=_of_step_only,
        heavy=True,
        scaling=law(_in_units(0, 1, 0), -1, result=_CARD | {".method.B": 1}),
    ),
    Row(
        "first_order.analyze_learning_rates",
        of(jax.jit(_grid), lambda d: jnp.asarray([0.13, 0.45, 0.9], d), _curvatures),
        heavy=True,
        # the states of the method are in powers of two of the parameters' units
        scaling=law(1, -1, result=_CARD | {".learning_rate": 1, ".method": None, ".state_units": None}),
    ),
    *(
        Row(f"plot.first_order.{name}", of(lambda x: None, number(1.0)), "draws", "draws on the host; see tests/plot")
        for name in ("rate_map", "eigenvalue_disc", "error_envelope", "spectral_density", "pseudospectrum")
    ),
    *(
        Row(f"plot.stokes.{name}", of(lambda x: None, number(1.0)), "draws", "draws on the host; see tests/plot")
        for name in ("streamlines", "pressure", "mask", "schur_spectrum")
    ),
    *(
        Row(f"plot.filtering.{name}", of(lambda x: None, number(1.0)), "draws", "draws on the host; see tests/plot")
        for name in (
            "world_map", "cloud", "cloud_strip", "cloud_animation", "filter_traces", "error_curves", "state_band"
        )
    ),
    *(
        Row(f"plot.tensor_train.{name}", of(lambda x: None, number(1.0)), "draws", "draws on the host; see tests/plot")
        for name in ("rank_profile", "singular_values", "slice_map", "convergence")
    ),
    *STOKES_ROWS,
    *FILTERING_ROWS,
    *TENSOR_TRAIN_ROWS,
    *TENSOR_TRAIN_CROSS_ROWS,
    *TENSOR_TRAIN_QUANTICS_ROWS,
    *TENSOR_TRAIN_OPTIMIZER_ROWS,
    *TENSOR_TRAIN_SOLVE_ROWS,
    *TENSOR_TRAIN_SPECTRA_ROWS,
]  # fmt: skip
# The same functions on their other path: n = 3 states, where eigenvalues come from the QR iteration; Lanczos.
LARGER = [
    Row(
        "first_order.hessian_spectrum",
        of(_lanczos_spectrum, number(0.3), _curvatures),
        "mu and L have a first derivative, as the row of linalg.extreme_eigenvalues shows",
        constants=(".eigenvalues", ".weights", "_bound"),
        order=1,
        heavy=True,
        rounding=(".asymmetry",),
        scaling=law(1, 0, result=_SPECTRUM),
    ),
    Row(
        "first_order.spectral_radius",
        of(first_order.spectral_radius, lambda d: matrix(d, 3, 3)),
        heavy=True,
        scaling=law(1, result=1),
    ),
    Row(
        "first_order.quadratic_rate",
        of(first_order.quadratic_rate, lambda d: _method(d, 3), number(0.1), number(1.0)),
        "how a worst curvature inside the interval moves is not known, so there is no second derivative",
        heavy=True,
        order=1,
        scaling=law(_RATE, 1, 1, result=0) + law(_STATE, 0, 0, result=0),
    ),
    Row(
        "first_order.stability_limit",
        of(first_order.stability_limit, lambda d: _method(d, 3)),
        "the implicit function theorem to first order",
        smooth=_of_step_only,
        heavy=True,
        order=1,
        scaling=law(_RATE, result=1) + law(_STATE, result=0),
    ),
    Row(
        "first_order.transient_growth",
        of(lambda m: first_order.transient_growth(m, 5), lambda d: matrix(d, 3, 3)),
        scaling="the largest of powers, each of which has another law",
    ),
    Row(
        "first_order.eigen_lyapunov",
        of(first_order.eigen_lyapunov, lambda d: matrix(d, 3, 3)),
        "eigenvectors of repeated eigenvalues are not",
        heavy=True,
        order=0,
        scaling=law(1, result=0),
    ),
    *STOKES_LARGER,
    *TENSOR_TRAIN_LARGER,
]
