"""MINRES and conjugate gradients against dense solves, scipy's step counts, and the bounds of exact arithmetic."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from jaxnm import Status, linalg
from jaxnm.linalg import conjugate_gradient, minres
from tests.compilation import QUICK

BOTH = pytest.mark.parametrize("solver", [minres, conjugate_gradient])
EPS = np.finfo(float).eps


def _with_eigenvalues(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    matrix = (q * np.asarray(values)) @ q.T
    return (matrix + matrix.T) / 2, q


def _vector(n, seed=1):
    return np.random.default_rng(seed).normal(size=n)


def _operator(matrix, dtype=None):
    return Partial(linalg.matmul, jnp.asarray(matrix, dtype))


def _relative(found, expected):
    return np.linalg.norm(np.asarray(found, float) - expected) / np.linalg.norm(expected)


DEFINITE = np.linspace(1, 100, 60)
INDEFINITE = np.linspace(-50, 100, 60) + 0.3


@pytest.mark.parametrize(
    ("solver", "values"),
    [(conjugate_gradient, DEFINITE), (minres, DEFINITE), (minres, INDEFINITE), (minres, -DEFINITE)],
)
def test_agrees_with_dense_solves(solver, values):
    matrix, _ = _with_eigenvalues(values)
    b = _vector(60)
    exact = np.linalg.solve(matrix, b)
    condition = np.abs(values).max() / np.abs(values).min()
    for dtype, rtol in ((jnp.float64, 1e-10), (jnp.float32, 1e-5)):
        solution = solver(_operator(matrix, dtype), jnp.asarray(b, dtype))
        assert int(solution.status) == Status.OK
        assert solution.x.dtype == solution.residual_norm.dtype == dtype
        assert float(solution.residual_norm) <= 10 * rtol * np.linalg.norm(b)
        assert _relative(solution.x, exact) <= 10 * rtol * condition
    residual = np.linalg.norm(b - matrix @ np.asarray(solution.x, float))
    rounding = 60 * np.finfo(np.float32).eps * 100 * np.linalg.norm(exact)
    assert float(solution.residual_norm) == pytest.approx(residual, abs=rounding)
    tight = solver(_operator(matrix), jnp.asarray(b), rtol=0.0)
    assert int(tight.status) == Status.OK
    assert float(tight.residual_norm) <= 100 * EPS * (100 * np.linalg.norm(exact) + np.linalg.norm(b))


def test_as_many_steps_as_scipy():
    b = _vector(60)
    for values in (DEFINITE, INDEFINITE):
        matrix, _ = _with_eigenvalues(values)
        for theirs, ours in ((scipy.sparse.linalg.minres, minres), (scipy.sparse.linalg.cg, conjugate_gradient)):
            if ours is minres or values is DEFINITE:
                count = []
                theirs(matrix, b, rtol=1e-8, callback=lambda _, count=count: count.append(1))
                # scipy's MINRES compares with |A| |x|, which is a little larger than |b|
                assert abs(int(ours(_operator(matrix), jnp.asarray(b), rtol=1e-8).num_steps) - len(count)) <= 6


@BOTH
def test_a_step_for_each_distinct_eigenvalue(solver):
    matrix, _ = _with_eigenvalues(np.repeat([1.0, 2.0, 5.0], 10))
    solution = solver(_operator(matrix), jnp.asarray(_vector(30)))
    assert int(solution.num_steps) == 3
    assert int(solution.status) == Status.OK
    assert _relative(solution.x, np.linalg.solve(matrix, _vector(30))) < 100 * EPS


@BOTH
def test_a_null_space_that_is_given(solver):
    """Consistent or not: the solution of least norm; vectors neither orthogonal, unit, nor independent."""
    values = np.linspace(0, 100, 60)
    values[1] = 0
    if solver is minres:
        values[2:20] *= -1
    matrix, q = _with_eigenvalues(values)
    vectors = [jnp.asarray(3 * q[:, 0] + q[:, 1]), jnp.asarray(q[:, 1]), jnp.asarray(q[:, 0])]
    pseudo = np.linalg.pinv(matrix, rcond=1e-10)
    for b in (matrix @ _vector(60), _vector(60)):
        for initial in (None, jnp.asarray(_vector(60, 5))):
            solution = solver(_operator(matrix), jnp.asarray(b), null_space=vectors, initial=initial)
            assert int(solution.status) == Status.OK
            assert _relative(solution.x, pseudo @ b) < 1e-7
            assert np.abs(q[:, :2].T @ solution.x).max() < 100 * EPS * np.linalg.norm(solution.x)
    diagonal = jnp.asarray(1 / (1 + np.arange(60.0)))
    solution = solver(
        _operator(matrix), jnp.asarray(b), null_space=vectors, preconditioner=lambda v: diagonal * v, rtol=1e-12
    )
    assert int(solution.status) == Status.OK
    assert _relative(solution.x, pseudo @ b) < 1e-7


@BOTH
def test_a_null_space_that_is_none(solver):
    """The solution is orthogonal to it and leaves a residual; a null space right to rounding is accepted."""
    values, right = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 2.0, 1.0])
    solution = solver(lambda v: values * v, right, null_space=[jnp.ones(3)])
    assert int(solution.status) == Status.OUT_OF_RANGE
    assert float(solution.residual_norm) > 0.1
    # a smooth right-hand side: its product is far smaller than the operator
    ring = lambda v: 2 * v - jnp.roll(v, 1) - jnp.roll(v, -1)
    smooth = jnp.asarray(np.cos(2 * np.pi * np.arange(2000) / 2000))
    rough = jnp.ones(2000) + 1e-10 * jnp.asarray(_vector(2000))
    solution = solver(ring, smooth, null_space=[rough])
    assert int(solution.status) == Status.OK


@pytest.mark.parametrize(
    ("solver", "dtype", "size", "right"),
    [(minres, "float64", 1e300, 1e-8), (conjugate_gradient, "float32", 1e20, 1e-18)],
)
def test_a_solution_near_the_smallest_number(solver, dtype, size, right):
    """Differences of such an x underflow, and x does not; a right-hand side far smaller makes it."""
    size = jnp.asarray(size, dtype)
    operator = lambda v: size * (2 * v - jnp.pad(v[1:], (0, 1)) - jnp.pad(v[:-1], (1, 0)))
    solve = lambda right: solver(operator, right)
    i = np.arange(1, 41)
    b = jnp.full(40, right, dtype)
    solution = solve(b)
    assert int(solution.status) == Status.OK
    assert float(solution.residual_norm) <= (1e-9 if dtype == "float64" else 1e-4) * float(jnp.linalg.norm(b))
    exact = np.float64(right) / float(size) * (i * (41 - i) / 2)
    np.testing.assert_allclose(np.asarray(solution.x, float), exact, rtol=1e-8 if dtype == "float64" else 1e-3)
    lost = solve(b * jnp.asarray(1e-4, dtype))
    assert int(lost.status) == Status.INACCURATE
    assert float(lost.residual_norm) > 1e-4 * right


@BOTH
def test_a_null_space_that_is_not_given(solver):
    """Harmless for a right-hand side in the range; said, and soon, for one that is not."""
    matrix, _ = _with_eigenvalues(np.linspace(0, 100, 60))
    consistent = solver(_operator(matrix), jnp.asarray(matrix @ _vector(60)))
    assert int(consistent.status) == Status.OK
    inconsistent = solver(_operator(matrix), jnp.asarray(_vector(60)))
    assert int(inconsistent.status) == Status.INACCURATE
    assert int(inconsistent.num_steps) < 120
    assert np.isfinite(inconsistent.x).all()


@BOTH
def test_a_preconditioner_saves_steps(solver):
    scale = np.geomspace(1, 1e4, 60)
    matrix = _with_eigenvalues(np.linspace(1, 3, 60))[0] * np.sqrt(scale[:, None] * scale)
    b = _vector(60)
    plain = solver(_operator(matrix), jnp.asarray(b))
    inverse = jnp.asarray(1 / scale)
    better = solver(_operator(matrix), jnp.asarray(b), preconditioner=Partial(jnp.multiply, inverse))
    assert int(plain.status) == int(better.status) == Status.OK
    assert int(better.num_steps) < 30 < int(plain.num_steps)
    assert _relative(better.x, np.linalg.solve(matrix, b)) < 1e-8
    wrong = solver(_operator(matrix), jnp.asarray(b), preconditioner=lambda v: -v)
    assert int(wrong.status) == Status.OUT_OF_RANGE
    hidden = solver(_operator(matrix), jnp.asarray(b), preconditioner=lambda v: jnp.where(inverse > 0.5, -0.1, 1) * v)
    assert int(hidden.status) == Status.OUT_OF_RANGE


def test_the_recurrence_of_minres_is_corrected():
    """Of condition 1e6 it alone leaves a true residual of 2e-8, and says 1e-10."""
    matrix, _ = _with_eigenvalues(np.geomspace(1, 1e6, 60))
    solution = minres(_operator(matrix), jnp.asarray(_vector(60)))
    assert int(solution.status) == Status.OK
    assert float(solution.residual_norm) <= 1e-9 * np.linalg.norm(_vector(60))


@BOTH
def test_trees_scales_and_lineax_operators(solver):
    matrix, _ = _with_eigenvalues(DEFINITE)
    b = _vector(60)
    expected = np.linalg.solve(matrix, b)
    flat, unravel = ravel_pytree({"a": jnp.zeros((4, 5)), "b": (jnp.zeros(39), jnp.zeros(()))})
    array = jnp.asarray(matrix)
    tree = solver(lambda v: unravel(array @ ravel_pytree(v)[0]), unravel(jnp.asarray(b)))
    assert flat.size == 60
    assert _relative(ravel_pytree(tree.x)[0], expected) < 1e-8
    for scale in (1e-200, 1e200):
        for operator, right, factor in ((scale * matrix, b, 1 / scale), (matrix, scale * b, scale)):
            solution = solver(_operator(operator), jnp.asarray(right))
            assert int(solution.status) == Status.OK
            assert _relative(solution.x / factor, expected) < 1e-8
    like = jax.ShapeDtypeStruct((60,), jnp.float64)
    for operator in (
        lineax.MatrixLinearOperator(array, lineax.positive_semidefinite_tag),
        lineax.FunctionLinearOperator(lambda v: array @ v, like, lineax.positive_semidefinite_tag),
    ):
        solution = solver(operator, jnp.asarray(b), preconditioner=lineax.DiagonalLinearOperator(1 / jnp.diag(array)))
        assert _relative(solution.x, expected) < 1e-8


@BOTH
def test_starts_and_ends(solver):
    matrix, _ = _with_eigenvalues(DEFINITE)
    b = jnp.asarray(_vector(60))
    nothing = solver(_operator(matrix), jnp.zeros(60))
    assert (int(nothing.num_steps), int(nothing.status), float(jnp.abs(nothing.x).max())) == (0, Status.OK, 0)
    exact = solver(_operator(matrix), b, rtol=1e-15).x
    warm = solver(_operator(matrix), b, initial=exact + 1e-3, rtol=1e-6)
    assert int(warm.status) == Status.OK
    assert float(warm.residual_norm) <= 1e-6 * np.linalg.norm(b) * (1 + 1e-6)
    again = solver(_operator(matrix), b, initial=exact)
    assert int(again.status) == Status.OK
    few = solver(_operator(matrix), b, max_steps=5)
    assert (int(few.num_steps), int(few.status)) == (5, Status.NOT_CONVERGED)
    assert float(few.residual_norm) == pytest.approx(np.linalg.norm(b - matrix @ few.x), rel=1e-12)
    errors = [_relative(solver(_operator(matrix), b, max_steps=steps).x, np.asarray(exact)) for steps in (1, 5, 20)]
    assert errors == sorted(errors, reverse=True)
    none = solver(_operator(matrix), b, max_steps=0)
    assert (int(none.num_steps), int(none.status)) == (0, Status.NOT_CONVERGED)
    zero = solver(lambda v: 0 * v, b)
    assert (int(zero.num_steps), int(zero.status)) == (1, Status.INACCURATE)


@pytest.mark.parametrize(("solver", "values"), [(minres, INDEFINITE), (conjugate_gradient, DEFINITE)])
def test_a_start_far_off_is_judged_by_the_right_hand_side(solver, values):
    """Of size 1e17, 1e200 and, of a zero right-hand side, any (Krylov.jl #1036)."""
    matrix, _ = _with_eigenvalues(values)
    b = _vector(60)
    for far, right in ((1e17, b), (1e200, b), (1.0, 0 * b)):
        solution = solver(_operator(matrix), jnp.asarray(right), initial=far * jnp.arange(60.0))
        assert int(solution.status) == Status.OK
        assert np.linalg.norm(right - matrix @ np.asarray(solution.x)) <= 1e-9 * np.linalg.norm(right)


def test_a_derivative_whose_system_is_not_solved_is_nan():
    matrix, _ = _with_eigenvalues(np.repeat([1.0, 2.0, 5.0], 10))
    b = jnp.asarray(_vector(30))

    def first(b, max_steps):
        solution = minres(_operator(matrix), b, max_steps=max_steps)
        return solution.x[0], solution.status

    gradient = jax.jit(jax.grad(first, has_aux=True), compiler_options=QUICK)
    found, status = gradient(b, 3)
    assert int(status) == Status.OK
    np.testing.assert_allclose(found, np.linalg.inv(matrix)[0], rtol=0, atol=1e-12)
    assert np.isnan(gradient(b, 2)[0]).all()


@BOTH
def test_closing_over_a_tracer_leaks_nothing(solver):
    def solve(scale):
        close = lambda v: scale * v
        return solver(close, jnp.ones(2), preconditioner=lambda v: v / scale).x

    with jax.checking_leaks():
        jax.jit(jax.vmap(lambda scale: jax.jvp(solve, (scale,), (scale,)))).trace(jnp.ones(3))


@pytest.mark.parametrize("what", ["operator", "preconditioner"])
def test_a_matrix_is_no_operator(what):
    options = {"operator": lambda v: v, "right": jnp.ones(3)} | {what: jnp.eye(3)}
    with pytest.raises(TypeError, match=f"minres: {what} is of type .*expected a function"):
        minres(options.pop("operator"), options.pop("right"), **options)


def test_what_cannot_be_solved_is_said():
    matrix, _ = _with_eigenvalues(INDEFINITE)
    b = jnp.asarray(_vector(60))
    negative = conjugate_gradient(_operator(matrix), b)
    assert int(negative.status) == Status.OUT_OF_RANGE
    assert np.isfinite(negative.x).all()
    assert int(conjugate_gradient(_operator(-np.eye(60)), b).num_steps) == 1
    lopsided = matrix + 3 * np.triu(np.ones((60, 60)))
    for solver in (minres, conjugate_gradient):
        assert int(solver(_operator(lopsided), b).status) in (Status.NOT_SYMMETRIC, Status.OUT_OF_RANGE)
        assert int(solver(_operator(matrix), b, rtol=jnp.asarray(-1.0)).status) == Status.OUT_OF_RANGE
        for operator, right in ((matrix, b.at[3].set(jnp.nan)), (np.where(np.eye(60), np.inf, matrix), b)):
            bad = solver(_operator(operator), right)
            assert int(bad.status) == Status.NONFINITE_INPUT
            assert np.isnan(bad.x).all()
            assert np.isnan(bad.residual_norm)
    assert int(minres(_operator(lopsided), b).status) == Status.NOT_SYMMETRIC


def _equal(ours, theirs, atol):
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol * np.abs(expected).max())


def _derivatives(function, second):
    """One program of the first derivatives in both modes and, where asked for, the second."""
    modes = [jax.jacfwd, jax.jacrev] + ([lambda f, n: jax.jacfwd(jax.jacrev(f, n), n)] if second else [])
    every = lambda *args: [mode(function, tuple(range(len(args))))(*args) for mode in modes]
    return jax.jit(every, compiler_options=QUICK)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("solver", "closed_over", "second"), [(minres, True, False), (conjugate_gradient, False, True)]
)
def test_derivatives_in_the_operator_and_the_right_hand_side(solver, closed_over, second):
    """Of operators whose data are closed over and of those with data for leaves; what differs is before the solver."""
    matrix, _ = _with_eigenvalues([1.0, 2.0, 5.0])
    base = jnp.asarray(matrix)

    def solve(theta, b):
        symmetric = base + theta + theta.T
        operator = (lambda v: linalg.matmul(symmetric, v)) if closed_over else Partial(linalg.matmul, symmetric)
        diagonal = 1 / jnp.diag(symmetric)
        return solver(operator, b, rtol=1e-14, preconditioner=lambda v: diagonal * v).x

    exact = lambda theta, b: jnp.linalg.solve(base + theta + theta.T, b)
    theta, b = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3))) / 20, jnp.asarray(_vector(3))
    cubes = lambda x: lambda theta, b: jnp.sum(x(theta, b) ** 3)
    _equal(_derivatives(cubes(solve), second)(theta, b), _derivatives(cubes(exact), second)(theta, b), 1e-11)


@pytest.mark.exhaustive
@BOTH
def test_derivatives_with_a_null_space(solver):
    """Of D^T diag(weights) D x = b with constants as null space, and of one that turns with the operator."""
    steps = jnp.diff(jnp.eye(3), axis=0)

    def solve(weights, b):
        laplacian = lambda v: linalg.matmul(steps.T, weights * linalg.matmul(steps, v))
        return solver(laplacian, b, null_space=[jnp.ones(3)], rtol=1e-14).x

    def exact(weights, b):
        inverse = jnp.linalg.inv(steps.T @ (weights[:, None] * steps) + jnp.ones((3, 3)))
        return inverse @ (b - b.mean())

    right = jnp.arange(1.0, 5.0)
    turned = lambda normal: (
        solver(lambda v: normal @ normal * v - normal * (normal @ v), right, null_space=[normal], rtol=1e-14).x
    )
    projected = lambda normal: (right - normal * (normal @ right) / (normal @ normal)) / (normal @ normal)

    weights, b = jnp.asarray(np.linspace(1, 2, 2)), jnp.asarray(_vector(3))
    np.testing.assert_allclose(solve(weights, b), exact(weights, b), rtol=0, atol=1e-12)
    second = solver is minres  # the rest of the program is the same
    _equal(_derivatives(solve, second)(weights, b), _derivatives(exact, second)(weights, b), 1e-12)
    normal = jnp.asarray([1.0, -2.0, 0.5, 1.5])
    _equal(_derivatives(turned, False)(normal), _derivatives(projected, False)(normal), 1e-12)


@BOTH
def test_a_batch_with_members_that_fail(solver):
    """Good members are what they are alone, in value and gradient; failed ones say why."""
    matrix, _ = _with_eigenvalues(np.linspace(1, 9, 6))
    singular = matrix - np.linalg.eigvalsh(matrix)[0] * np.eye(6)
    matrices = jnp.asarray(np.stack([matrix, np.nan * matrix, 2 * matrix, singular]))
    rights = jnp.asarray(np.stack([_vector(6, seed) for seed in range(4)])).at[2, 0].set(jnp.inf)
    solve = lambda matrix, b: solver(Partial(linalg.matmul, matrix), b, rtol=1e-14)
    batch = jax.jit(jax.vmap(solve))(matrices, rights)
    bad = Status.NONFINITE_INPUT
    np.testing.assert_array_equal(batch.status, [Status.OK, bad, bad, Status.INACCURATE])
    alone = solve(matrices[0], rights[0])
    np.testing.assert_allclose(batch.x[0], alone.x, rtol=0, atol=100 * EPS)
    np.testing.assert_array_equal(np.isnan(batch.x).all(1), [False, True, True, False])
    gradient = jax.jit(jax.grad(lambda matrices: jnp.sum(jax.vmap(solve)(matrices, rights).x[:3])))(matrices)
    expected = jax.jit(jax.grad(lambda matrix: jnp.sum(jnp.linalg.solve(matrix, rights[0]))))(matrices[0])
    np.testing.assert_allclose(gradient[0], expected, rtol=0, atol=1e-12)
    assert bool(jnp.all(jnp.isnan(gradient[1])))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"right": jnp.arange(3)}, TypeError, "minres: right is of dtypes.*int"),
        ({"right": {}}, ValueError, "minres: right is a tree without numbers"),
        ({"operator": lambda v: v[:2]}, ValueError, "minres: product is of shape"),
        ({"operator": lambda v: v.astype(jnp.float32)}, TypeError, "minres: the product of operator is of dtype"),
        ({"preconditioner": lambda v: {"a": v}}, ValueError, "minres: product"),
        ({"initial": jnp.ones(4)}, ValueError, "minres: initial is of shape"),
        ({"initial": jnp.ones(3, jnp.float32)}, TypeError, "minres: initial is of dtype float32, expected float64"),
        ({"null_space": jnp.ones(3)}, TypeError, "minres: null_space is .*expected a list"),
        ({"null_space": [jnp.ones(4)]}, ValueError, "minres: null_space is of shape"),
        ({"rtol": 1.0}, ValueError, r"minres: rtol is 1.0, expected in \[0, 1\)"),
        ({"max_steps": -1}, ValueError, "minres: max_steps is -1"),
        ({"max_steps": 3.0}, TypeError, "minres: max_steps is of type float"),
    ],
)
def test_bad_arguments(options, error, message):
    options = {"operator": lambda v: v, "right": jnp.ones(3)} | options
    with pytest.raises(error, match=message):
        minres(options.pop("operator"), options.pop("right"), **options)
