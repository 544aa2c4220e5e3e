"""The largest margin against closed forms, eigenvalues and duality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status
from jaxnm.linalg import maximize_margin


def _symmetric_basis(n):
    pairs = [(i, j) for i in range(n) for j in range(i + 1)]
    basis = np.zeros((len(pairs), n, n))
    for k, (i, j) in enumerate(pairs):
        basis[k, i, j] = basis[k, j, i] = 1
    return basis


def _lyapunov(a):
    """P and P - a^T P a, for symmetric P."""
    basis = _symmetric_basis(len(a))
    return basis, basis - np.einsum("ji,mjk,kl->mil", a, basis, a)


def _assert_optimal(solution, blocks, scalars, tolerance):
    """Both sides, by LAPACK: the margin is attained at v, the dual point is feasible and its value is the bound."""
    v, margin = np.asarray(solution.v), float(solution.margin)
    matrices = [np.einsum("m,mij->ij", v, block) for block in blocks]
    attained = min(
        [np.linalg.eigvalsh(matrix).min() for matrix in matrices] + ([(v @ scalars).min()] if scalars.size else [])
    )
    traces = sum(np.trace(block, axis1=1, axis2=2) for block in blocks) + scalars.sum(1)
    assert v @ traces == pytest.approx(1, abs=1e-10)
    assert attained >= margin - 1e-13
    assert attained == pytest.approx(margin, abs=2 * tolerance)
    duals, scalar_duals = [np.asarray(dual) for dual in solution.duals], np.asarray(solution.scalar_duals)
    assert min([np.linalg.eigvalsh(dual).min() for dual in duals] + list(scalar_duals)) > -1e-13
    assert sum(np.trace(dual) for dual in duals) + scalar_duals.sum() == pytest.approx(1, abs=1e-7)
    pairing = (
        sum(np.einsum("mij,ij->m", block, dual) for block, dual in zip(blocks, duals, strict=True))
        + scalars @ scalar_duals
    )
    np.testing.assert_allclose(pairing, float(solution.upper_bound) * traces, atol=1e-7)
    assert margin <= float(solution.upper_bound) + 1e-12 <= margin + tolerance


def test_the_margin_of_a_whole_space_of_matrices_is_one_over_its_size():
    """All symmetric matrices: v is the identity over n, by symmetry."""
    solution = maximize_margin([jnp.asarray(_symmetric_basis(4))])
    assert float(solution.margin) == pytest.approx(0.25, abs=1e-9)
    np.testing.assert_allclose(np.einsum("m,mij->ij", solution.v, _symmetric_basis(4)), np.eye(4) / 4, atol=1e-8)
    scalars = maximize_margin([], jnp.asarray([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]))
    assert float(scalars.margin) == pytest.approx(0.25, abs=1e-9)  # v = (1/4, 1/4): 1/4, 1/4 and 1/2


@pytest.mark.parametrize("radius", [0.3, 0.9, 0.999])
def test_lyapunov_functions_exist_below_radius_one(radius):
    random = np.random.default_rng(3)
    matrices = random.normal(size=(20, 3, 3))
    matrices *= radius / np.abs(np.linalg.eigvals(matrices)).max(1)[:, None, None]
    blocks = [np.stack(each) for each in zip(*map(_lyapunov, matrices), strict=True)]
    solution = maximize_margin([jnp.asarray(block) for block in blocks])
    assert np.all(np.asarray(solution.status) == Status.OK)
    assert np.all(np.asarray(solution.margin) > 0)
    for k in range(20):
        member = jax.tree.map(lambda leaf, k=k: leaf[k], solution)
        _assert_optimal(member, [block[k] for block in blocks], np.zeros((6, 0)), 1e-9)


def test_no_lyapunov_function_exists_above_radius_one():
    random = np.random.default_rng(4)
    matrices = random.normal(size=(20, 3, 3))
    matrices *= 1.001 / np.abs(np.linalg.eigvals(matrices)).max(1)[:, None, None]
    blocks = [jnp.asarray(np.stack(each)) for each in zip(*map(_lyapunov, matrices), strict=True)]
    solution = maximize_margin(blocks)
    assert np.all(np.asarray(solution.margin) <= 0)
    assert np.all(np.asarray(solution.upper_bound) < 1e-9)


def test_an_infeasible_system_has_a_negative_bound_with_its_proof():
    """v and -v/2 - s, s > 0: the scalars v, s and -v/2 - s cannot all be positive."""
    scalars = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.6]])
    solution = maximize_margin([], jnp.asarray(scalars))
    assert int(solution.status) == Status.OK
    assert float(solution.upper_bound) < -1e-3
    _assert_optimal(solution, [], scalars, 1e-9)


def test_random_systems_are_solved_from_both_sides():
    random = np.random.default_rng(0)
    blocks = [random.normal(size=(12, 8, n, n)) for n in (4, 2)]
    blocks = [block + block.swapaxes(-1, -2) for block in blocks]
    scalars = random.normal(size=(12, 8, 3))
    # make some of them feasible: a positive definite combination
    blocks[0][:6, 0] += 12 * np.eye(4)
    blocks[1][:6, 0] += 12 * np.eye(2)
    scalars[:6, 0] += 6
    solution = maximize_margin([jnp.asarray(block) for block in blocks], jnp.asarray(scalars))
    assert np.all(np.asarray(solution.status) == Status.OK)
    assert np.all(np.asarray(solution.margin)[:6] > 0)
    for k in range(12):
        member = jax.tree.map(lambda leaf, k=k: leaf[k], solution)
        _assert_optimal(member, [block[k] for block in blocks], scalars[k], 1e-9)


def test_a_constant_part_is_one_more_variable():
    """Largest x with [[1, x], [x, 1]] >= 0 and a margin: with F_0 = I, F_1 = [[0, 1], [1, 0]] scaled by v_0 > 0."""
    blocks = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    # v_0 positive, and v_1 - 0.8 v_0 positive: x > 0.8
    scalars = jnp.asarray([[1.0, -0.8], [0.0, 1.0]])
    solution = maximize_margin([blocks], scalars)
    assert float(solution.margin) > 0
    assert 0.8 < float(solution.v[1] / solution.v[0]) < 1


@pytest.mark.parametrize("unit", [1e-200, 1e-8, 1e8, 1e200])
def test_units_of_the_inequalities_change_no_margin(unit):
    basis = _symmetric_basis(4)
    solution = maximize_margin([jnp.asarray(unit * basis)])
    assert int(solution.status) == Status.OK
    assert float(solution.margin) == pytest.approx(0.25, abs=1e-9)
    np.testing.assert_allclose(np.einsum("m,mij->ij", solution.v * unit, basis), np.eye(4) / 4, atol=1e-8)


@pytest.mark.parametrize(("dtype", "factors"), [("float64", [1, 1e4, 1e8, 1e12]), ("float32", [1, 1e2, 1e4, 1e8])])
def test_units_of_the_unknowns_change_no_margin(dtype, factors):
    factors = np.asarray(factors)
    units = np.stack([np.ones(4), factors, 1 / factors], 1)
    matrices = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    solution = maximize_margin([jnp.asarray(units[..., None, None] * matrices, dtype)])
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    np.testing.assert_array_equal(solution.status, Status.OK)
    np.testing.assert_allclose(solution.margin, 0.5, rtol=tolerance)
    np.testing.assert_allclose(solution.upper_bound, 0.5, rtol=tolerance)
    np.testing.assert_allclose(np.asarray(solution.v) * units, [[0.5, 0, 0.5]] * 4, atol=tolerance)
    # the derivative of the margin in F, by the duals: that of the smallest eigenvalue is I / 2, over the trace's
    np.testing.assert_allclose(solution.duals[0], np.broadcast_to(np.eye(2) / 2, (4, 2, 2)), atol=tolerance)


def test_a_solution_beyond_the_range_is_said():
    """Of v F = 1 in float32 with F near the largest number: v is below the smallest."""
    solution = maximize_margin([], jnp.full((1, 1), 3e38, jnp.float32))
    assert int(solution.status) == Status.INACCURATE


def test_a_derivative_raises():
    blocks = jnp.asarray(_symmetric_basis(4))
    with pytest.raises(TypeError, match="maximize_margin: an inequality is differentiated"):
        jax.make_jaxpr(jax.grad(lambda blocks: maximize_margin([blocks]).margin))(blocks)


@pytest.mark.exhaustive
def test_bad_members_are_said_and_alone():
    basis = jnp.asarray(_symmetric_basis(2))
    blocks = jnp.stack([basis, basis.at[0, 0, 0].set(jnp.nan), jnp.zeros_like(basis), basis])
    solution = jax.jit(lambda block: maximize_margin([block]))(blocks)
    np.testing.assert_array_equal(solution.status, [Status.OK, Status.NONFINITE_INPUT, Status.OUT_OF_RANGE, Status.OK])
    np.testing.assert_array_equal(np.isnan(solution.margin), [False, True, True, False])
    np.testing.assert_allclose(solution.margin[jnp.array([0, 3])], 0.5, rtol=1e-8)
    by_vmap = jax.vmap(lambda block: maximize_margin([block]))(blocks)
    np.testing.assert_allclose(by_vmap.margin, solution.margin, rtol=1e-12)


@pytest.mark.exhaustive
def test_members_do_not_depend_on_the_chunks():
    """More members than one chunk holds; the first and the last are what they are alone."""
    random = np.random.default_rng(1)
    matrices = 0.4 * random.normal(size=(700, 3, 3))
    blocks = [jnp.asarray(np.stack(each)) for each in zip(*map(_lyapunov, matrices), strict=True)]
    margins = maximize_margin(blocks).margin
    assert margins.shape == (700,)
    for k in (0, 350, 699):
        assert float(maximize_margin([block[k] for block in blocks]).margin) == pytest.approx(
            float(margins[k]), abs=1e-9
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: maximize_margin([]), ValueError, "blocks is empty"),
        (lambda: maximize_margin(jnp.ones((2, 3, 3))), TypeError, "blocks is a .*, expected a list"),
        (lambda: maximize_margin(None), TypeError, "blocks is a NoneType"),
        (lambda: maximize_margin([jnp.ones((3, 3))]), ValueError, r"blocks\[0\] is of shape \(3, 3\)"),
        (lambda: maximize_margin([jnp.ones((2, 3, 4))]), ValueError, r"blocks\[0\] is of shape"),
        (lambda: maximize_margin([jnp.ones((2, 3, 3), int)]), TypeError, r"blocks\[0\] is of dtype int"),
        (lambda: maximize_margin([jnp.ones((2, 3, 3), complex)]), TypeError, r"blocks\[0\] is of dtype complex"),
        (lambda: maximize_margin([jnp.ones((2, 3, 3))], jnp.ones((3, 1))), ValueError, "scalars is of shape"),
        (lambda: maximize_margin([jnp.ones((2, 3, 3))], tolerance=-1.0), ValueError, "tolerance is -1.0"),
        (lambda: maximize_margin([jnp.ones((2, 3, 3))], max_steps=0), ValueError, "max_steps is 0"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=f"maximize_margin: {message}"):
        call()
