"""Linear systems in train form against dense and sparse solutions, closed forms and sine transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, integrate, sparse
from scipy.sparse import linalg as sparse_linalg

from jaxnm import tensor_train
from jaxnm.status import Status
from jaxnm.tensor_train.laplace import (
    exponential_sum,
    kronecker_sum,
    laplace_inverse,
    laplace_inverse_factors,
    laplace_inverse_matrix,
)
from jaxnm.tensor_train.solve import solve
from tests.tensor_train.reference import assert_well_formed, full, full_of, random_cores

_KEY = jax.random.key(0)


def _second_difference(n):
    """(-1, 2, -1) (n + 1)^2: minus the second derivative on the unit interval."""
    return (n + 1) ** 2 * (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))


def _eigenvalues(n):
    return (2 * (n + 1) * np.sin(np.pi * np.arange(1, n + 1) / (2 * n + 2))) ** 2


def _ones(d, n, dtype=np.float64):
    return tensor_train.from_cores([np.ones((1, n, 1), dtype)] * d)


def _by_sines(array):
    """The solution of Poisson's equation in three dimensions."""
    value = _eigenvalues(array.shape[0])
    total = value[:, None, None] + value[None, :, None] + value[None, None]
    return fft.idstn(fft.dstn(array, 1) / total, 1)


def _residual(matrix, tt, right):
    return float(tensor_train.distance(matrix @ tt, right) / tensor_train.norm(right))


def _full_matrix(cores):
    """[rows, columns] of operator cores."""
    d = len(cores)
    tensor = full([core.reshape(core.shape[0], -1, core.shape[3]) for core in cores])
    tensor = tensor.reshape([size for core in cores for size in core.shape[1:3]])
    size = int(np.prod([core.shape[1] for core in cores]))
    return tensor.transpose([*range(0, 2 * d, 2), *range(1, 2 * d, 2)]).reshape(size, size)


# ------------------------------------------------------------------------------------------------ by exponentials


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("eps", [1e-2, 1e-6, 1e-10, 1e-13])
def test_the_exponential_sum_keeps_its_bound(condition, eps):
    times, weights = exponential_sum(condition, eps)
    x = np.geomspace(1, condition, 3000)
    values = np.exp(-times[None] * x[:, None]) @ weights
    # besides the bound, T roundings in double precision
    assert np.abs(x * values - 1).max() < eps + 1e-15
    assert times.size < 1.6 * np.log10(condition) * -np.log10(eps) + 80


def test_the_kronecker_sum_is_that_of_matrices():
    blocks = [np.random.default_rng(n).normal(size=(n, n)) for n in (2, 3, 4)]
    operator = kronecker_sum(blocks)
    assert np.asarray(operator.ranks).tolist() == [1, 2, 2, 1]
    eye = [np.eye(n) for n in (2, 3, 4)]
    expected = sum(np.kron(np.kron(*(blocks[j] if j == k else eye[j] for j in (0, 1))), blocks[2] if k == 2 else eye[2])
                   for k in range(3))  # fmt: skip
    found = _full_matrix([np.asarray(core) for core in tensor_train.matrix_to_cores(operator)])
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_array_equal(tensor_train.matrix_to_cores(kronecker_sum(blocks[:1]))[0][0, :, :, 0], blocks[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_poisson_in_three_dimensions_by_exponentials(dtype):
    """Against sine transforms; in float32 the sum of some 70 terms of one sign has some roundings of error."""
    n = 15
    right = tensor_train.from_cores(random_cores((n,) * 3, 2, dtype))
    eps = 1e-9 if dtype == "float64" else 1e-5
    expected = _by_sines(full_of(right))
    spacing = jnp.asarray(1 / (n + 1), dtype)
    solution = laplace_inverse(right, spacing=spacing, eps=eps)
    assert_well_formed(solution, dtype)
    assert np.linalg.norm(full_of(solution) - expected) < eps * np.linalg.norm(expected)


@pytest.mark.exhaustive
def test_modes_of_different_sizes_spacings_and_matrices_agree():
    sizes = (3, 5, 1, 4)
    matrices = [_second_difference(n) for n in sizes]
    right = tensor_train.from_cores(random_cores(sizes, 2))
    spacing = jnp.asarray([1 / (n + 1) for n in sizes])
    operator = kronecker_sum(matrices)
    whole = _full_matrix([np.asarray(core) for core in tensor_train.matrix_to_cores(operator)])
    expected = np.linalg.solve(whole, full_of(right).ravel()).reshape(sizes)
    bound = 1e-9 * np.linalg.norm(expected)
    for options in ({"spacing": spacing}, {"matrices": matrices, "condition": 40.0}):
        solution = laplace_inverse(right, eps=1e-9, **options)
        assert_well_formed(solution)
        assert np.linalg.norm(full_of(solution) - expected) < bound
        inverse = laplace_inverse_matrix(sizes, eps=1e-9, **options)
        assert np.linalg.norm(full_of(inverse @ right) - expected) < bound
        rows = [np.cos(np.arange(n) + 1.0) for n in sizes]
        factors = laplace_inverse_factors(rows, eps=1e-9, **options)
        found = np.einsum("ja,jb,jc,jd->abcd", *(np.asarray(factor) for factor in factors))
        product = np.einsum("a,b,c,d->abcd", *rows)
        exact = np.linalg.solve(whole, product.ravel()).reshape(sizes)
        assert np.linalg.norm(found - exact) < 1e-9 * np.linalg.norm(exact)


def test_one_mode():
    matrix = _second_difference(6)
    right = tensor_train.from_cores(random_cores((6,), 1))
    expected = np.linalg.solve(matrix, full_of(right))
    for solution in (
        laplace_inverse(right, spacing=1 / 7, eps=1e-11),
        laplace_inverse_matrix((6,), spacing=1 / 7, eps=1e-11) @ right,
    ):
        assert_well_formed(solution)
        assert np.linalg.norm(full_of(solution) - expected) < 1e-10 * np.linalg.norm(expected)


def test_poisson_in_ten_dimensions_by_an_independent_integral():
    """u(i) is the integral over s > 0 of the product of (exp(-s L) 1)(i_k), here by adaptive quadrature in log s."""
    d, n, eps = 10, 63, 1e-9
    factors = laplace_inverse_factors([jnp.ones(n)] * d, spacing=1 / (n + 1), eps=eps)
    index = np.array([31, 31, 10, 5, 50, 31, 20, 40, 31, 2])
    found = sum(np.prod([np.asarray(factor)[:, i] for factor, i in zip(factors, index, strict=True)], 0))
    j = np.arange(1, n + 1)
    sines = np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.outer(j, j) / (n + 1))
    ones = sines @ np.ones(n)

    def integrand(t):
        heat = sines[index] @ (np.exp(-np.exp(t) * _eigenvalues(n)) * ones)
        return np.exp(t) * np.prod(heat)

    expected = integrate.quad(integrand, -25, 0, epsabs=0, epsrel=1e-11, limit=400)[0]
    # eps bounds the error in the Euclidean norm, and at a point with this norm of b and least eigenvalue
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    # a product of sines is an eigenvector: there the bound holds as it is
    rows = [np.sin(np.pi * k * j / (n + 1)) for k in range(1, d + 1)]
    value = _eigenvalues(n)[:d].sum()
    factors = laplace_inverse_factors(rows, spacing=1 / (n + 1), eps=eps)
    found = sum(np.prod([np.asarray(factor)[:, 4] for factor in factors], 0))
    np.testing.assert_allclose(found, np.prod([row[4] for row in rows]) / value, rtol=2 * eps)


@pytest.mark.exhaustive
def test_derivatives_of_the_inverse():
    """u is proportional to h^2; for matrices against differences."""
    rows = [np.ones(4), np.arange(1.0, 4)]
    right = tensor_train.from_cores([row[None, :, None] for row in rows])
    total = lambda h: tensor_train.integrate(laplace_inverse(right, spacing=h, eps=1e-12), [jnp.ones(4), jnp.ones(3)])
    amount, slope = jax.value_and_grad(total)(0.3)
    np.testing.assert_allclose(slope, 2 * amount / 0.3, rtol=1e-10)
    blocks = [jnp.asarray(_second_difference(n)) for n in (4, 3)]
    change = np.diag([1.0, -2.0, 0.5, 3.0])
    of = lambda t: tensor_train.integrate(
        laplace_inverse(right, matrices=[blocks[0] + t * change, blocks[1]], eps=1e-13), [jnp.ones(4), jnp.ones(3)]
    )
    np.testing.assert_allclose(jax.grad(of)(0.0), (of(1e-3) - of(-1e-3)) / 2e-3, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ by sweeps


def _diffusion(d, n, strength):
    """Minus div(a grad u) on the unit cube, a = 1 + strength prod_k g(x_k) in the middle of cells; TT and sparse."""
    step = 1 / (n + 1)
    bump = lambda x: np.exp(-8 * (x - 0.5) ** 2)
    slope = (np.eye(n + 1, n) - np.eye(n + 1, n, k=-1)) / step
    mass, stiff = np.diag(bump(np.arange(1, n + 1) * step)), slope.T * bump((np.arange(n + 1) + 0.5) * step) @ slope
    pairs = [(np.eye(n), slope.T @ slope, 1.0), (mass, stiff, strength)]
    cores = []
    for k in range(d):
        core = np.zeros((4, n, n, 4))
        for place, (same, other, _) in enumerate(pairs):
            a, b = 2 * place, 2 * place + 1
            core[a, :, :, a], core[b, :, :, a], core[b, :, :, b] = same, other, same
        if k == 0:
            core = np.concatenate([factor * core[2 * m + 1 : 2 * m + 2, :, :, 2 * m : 2 * m + 2]
                                   for m, (_, _, factor) in enumerate(pairs)], -1)  # fmt: skip
        cores.append(core[..., :1] + core[..., 2:3] if k == d - 1 else core)

    def assembled():
        total = 0
        for same, other, factor in pairs:
            for k in range(d):
                term = sparse.identity(1)
                for j in range(d):
                    term = sparse.kron(term, sparse.csr_matrix(other if j == k else same))
                total = total + factor * term
        return total.tocsc()

    return tensor_train.matrix_from_cores(cores), assembled


@pytest.mark.exhaustive
def test_variable_coefficients_in_three_dimensions_against_a_sparse_solver():
    """A contrast of eleven. The smallest eigenvalue of A is above 3 * 9.8, so that the residual bounds the error."""
    n = 16
    operator, assembled = _diffusion(3, n, 10.0)
    result = solve(operator, _ones(3, n), max_rank=7, tol=1e-6, key=_KEY)
    assert_well_formed(result.tt)
    assert int(result.status) == Status.OK
    np.testing.assert_allclose(result.residual, _residual(operator, result.tt, _ones(3, n)), rtol=1e-4)
    expected = sparse_linalg.spsolve(assembled(), np.ones(n**3))
    error = np.linalg.norm(full_of(result.tt).ravel() - expected)
    assert error < 1e-6 * n**1.5 / (3 * 9.8)
    # the solution is even in each variable, so that its ranks are 8
    small = solve(operator, _ones(3, n), max_rank=7, tol=1e-13, key=_KEY)
    assert (int(small.status), bool(small.saturated)) == (Status.NOT_CONVERGED, True)
    assert np.asarray(small.ranks).tolist() == [1, 7, 7, 1]
    assert int(small.num_sweeps) < 10
    np.testing.assert_allclose(small.residual, _residual(operator, small.tt, _ones(3, n)), rtol=1e-4)


@pytest.mark.exhaustive
def test_the_inverse_laplacian_preconditions_variable_coefficients():
    """With a from 1 to 2 a step of 2 / 3 brings the norm <r, P r>^(1/2) to 1 / 3, for P exact to eps (1 + 2 eps) / 3.

    In that norm I - w A P is symmetric with eigenvalues between 1 - w a_max (1 + eps) and 1 - w (1 - eps).
    """
    n, eps, size = 16, 0.01, 10
    operator, assembled = _diffusion(3, n, 1.0)
    right = _ones(3, n)
    inverse = lambda tt: laplace_inverse(tt, spacing=1 / (n + 1), eps=eps)
    rounded = lambda tt, key: tensor_train.round(tt, max_rank=size, method="randomized", key=key)

    def step(x, key):
        residual = rounded(right - operator @ x, key)
        change = inverse(residual)
        x = rounded(x + tensor_train.scale(change, 2 / 3), key)
        return x, jnp.sqrt(tensor_train.dot(residual, change))

    start = tensor_train.from_cores([np.zeros((1, n, 1))] * 3, max_rank=size)
    x, sizes = jax.jit(lambda keys: jax.lax.scan(step, start, keys))(jax.random.split(_KEY, 12))
    # what is left is for the rounding to 10
    assert (np.asarray(sizes[1:] / sizes[:-1]) < (1 + 2 * eps) / 3 + 0.005).all()
    residual = _residual(operator, x, right)
    assert residual < 1e-5
    expected = sparse_linalg.spsolve(assembled(), np.ones(n**3))
    assert np.linalg.norm(full_of(x).ravel() - expected) < residual * n**1.5 / (3 * 9.8)


def _single(operator, max_rank):
    cores = [np.asarray(core, np.float32) for core in tensor_train.matrix_to_cores(operator)]
    return tensor_train.matrix_from_cores(cores, max_rank=max_rank)


@pytest.mark.exhaustive
def test_poisson_and_diffusion_in_ten_dimensions_by_sweeps():
    """In float32; against the exponential sum, where the residual bounds the error through the smallest eigenvalue."""
    d, n, tol = 10, 8, 1e-4
    double = lambda x: jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, x)
    right = _ones(d, n)
    for operator in (kronecker_sum([_second_difference(n)] * d), _diffusion(d, n, 1.0)[0]):
        result = solve(_single(operator, 4), _ones(d, n, np.float32), max_rank=10, tol=tol, key=_KEY)
        assert_well_formed(result.tt, "float32")
        assert int(result.status) == Status.OK
        assert _residual(operator, double(result.tt), right) < 1.01 * tol
        if operator.max_rank == 2:
            expected = laplace_inverse(right, spacing=1 / (n + 1), eps=1e-9)
            error = tensor_train.distance(double(result.tt), expected) / tensor_train.norm(right)
            assert float(error) < 1.01 * tol / (d * _eigenvalues(n)[0])


@pytest.mark.exhaustive
def test_poisson_on_two_to_the_q_points_in_quantics():
    """u = x (1 - x) / 2 has ranks 3 and solves the difference equation; the condition number is 2^(2 q) 0.4."""
    bits = 10
    size = 2**bits
    begin = np.array([1.0, 0.0, 0.0])
    core = np.zeros((3, 2, 2, 3))
    core[0, :, :, 0], core[0, :, :, 1], core[0, :, :, 2] = np.eye(2), np.eye(2, k=-1), np.eye(2, k=1)
    core[1, :, :, 1], core[2, :, :, 2] = np.eye(2, k=1), np.eye(2, k=-1)
    last = core @ np.array([2.0, -1.0, -1.0])[:, None]
    operator = tensor_train.matrix_from_cores([np.tensordot(begin[None], core, 1), *[core] * (bits - 2), last])
    operator = operator.replace(log_scale=jnp.asarray(2 * np.log(size + 1.0)))
    result = solve(operator, _ones(bits, 2), max_rank=5, tol=1e-8, key=_KEY)
    x = np.arange(1, size + 1) / (size + 1)
    np.testing.assert_allclose(full_of(result.tt).ravel(), x * (1 - x) / 2, rtol=1e-9)
    # a residual keeps more than an error asks for: the condition number is between them
    assert np.asarray(tensor_train.round(result.tt, eps=1e-8).ranks).max() == 3
    assert int(result.status) == Status.OK


def _nonsymmetric(seed=0):
    """Well conditioned, 4^4, of ranks 2."""
    rng = np.random.default_rng(seed)
    cores = [0.1 * rng.normal(size=(1 if k == 0 else 2, 4, 4, 1 if k == 3 else 2)) for k in range(4)]
    for core in cores:
        core[0, :, :, 0] += np.eye(4)
    return cores


@pytest.mark.exhaustive
def test_nonsymmetric_systems_of_any_scale_for_a_batch_of_right_hand_sides():
    cores = _nonsymmetric()
    whole = _full_matrix(cores)
    operator = tensor_train.matrix_from_cores(cores)
    rights = [random_cores((4,) * 4, 2, seed=seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tensor_train.from_cores, rights))
    scaled = operator.replace(log_scale=jnp.asarray(300.0))
    run = jax.jit(jax.vmap(lambda b, x: solve(scaled, b, max_rank=16, tol=1e-10, key=_KEY, initial=x)))
    nothing = tensor_train.from_cores([np.zeros((1, 4, 1))] * 4, max_rank=16)
    results = run(batch, jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), nothing))
    assert not np.asarray(results.status).any()
    for k, right in enumerate(rights):
        tt = jax.tree.map(lambda leaf, k=k: leaf[k], results.tt)
        expected = np.linalg.solve(whole, full(right).ravel())
        np.testing.assert_allclose(tt.log_scale, -300, atol=30)
        found = full_of(tt.replace(log_scale=tt.log_scale + 300.0)).ravel()
        assert np.linalg.norm(found - expected) < 1e-10 * np.linalg.cond(whole) * np.linalg.norm(expected)
    again = run(batch, results.tt)
    assert not np.asarray(again.status).any()
    assert np.asarray(again.num_sweeps).max() == 1 < np.asarray(results.num_sweeps).min()


@pytest.mark.exhaustive
def test_zero_gives_zero():
    right = tensor_train.from_cores(random_cores((4,) * 4, 2))
    operator = tensor_train.matrix_from_cores(_nonsymmetric())
    nothing = solve(operator, 0.0 * right, max_rank=16, tol=1e-11, key=_KEY)
    assert_well_formed(nothing.tt)
    assert not np.asarray(nothing.tt.cores).any()
    assert (int(nothing.status), float(nothing.residual), int(nothing.num_sweeps)) == (Status.OK, 0, 0)


@pytest.mark.exhaustive
def test_complex_systems_with_modes_of_different_sizes_and_ranks_at_their_bounds():
    sizes = (3, 5, 1, 4)
    rng = np.random.default_rng(3)
    operator = kronecker_sum([_second_difference(n) * (1 + 0.5j) + 9j * rng.normal(size=(n, n)) for n in sizes])
    right = tensor_train.from_cores(random_cores(sizes, 3, "complex128"))
    result = solve(operator, right, max_rank=100, tol=1e-10, key=_KEY)
    assert_well_formed(result.tt, "complex128")
    assert result.tt.max_rank == 4
    assert int(result.status) == Status.OK
    whole = _full_matrix([np.asarray(core) for core in tensor_train.matrix_to_cores(operator)])
    expected = np.linalg.solve(whole, full_of(right).ravel())
    error = np.linalg.norm(full_of(result.tt).ravel() - expected)
    assert error < 1e-10 * np.linalg.cond(whole) * np.linalg.norm(expected)


def test_the_adjoint_of_the_guide_is_the_derivative():
    """<l, x> + <y, b - A x> with A^T y = l has the derivative of <l, x> where x and y are held fixed."""
    cores, change = _nonsymmetric(), _nonsymmetric(1)
    transposed = tensor_train.matrix_from_cores([core.swapaxes(1, 2) for core in cores])
    operator = tensor_train.matrix_from_cores(cores)
    right, wanted = (tensor_train.from_cores(random_cores((4,) * 4, 2, seed=seed)) for seed in (0, 1))
    options = {"max_rank": 16, "tol": 1e-11, "key": _KEY}
    x, y = solve(operator, right, **options).tt, solve(transposed, wanted, **options).tt
    moved = lambda t: [core + t * other for core, other in zip(cores, change, strict=True)]
    found = jax.grad(lambda t: -tensor_train.dot(y, tensor_train.matrix_from_cores(moved(t)) @ x))(0.0)
    value = lambda t: full_of(wanted).ravel() @ np.linalg.solve(_full_matrix(moved(t)), full_of(right).ravel())
    np.testing.assert_allclose(found, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-6)


@pytest.mark.exhaustive
def test_programs_do_not_grow_with_the_number_of_sites():
    run = jax.jit(lambda a, b: solve(a, b, max_rank=3, key=_KEY))
    lines = [len(run.lower(kronecker_sum([np.eye(3)] * d), _ones(d, 3)).as_text().splitlines()) for d in (20, 100)]
    assert lines[0] == lines[1]
