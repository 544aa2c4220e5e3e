"""Lanczos against LAPACK, closed forms, its own identities, and the frequencies that its probabilities promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxnm import Status
from jaxnm.linalg import extreme_eigenvalues, lanczos, smoothed_density, spectral_density, trace_of_function
from tests.compilation import QUICK

KEY = jax.random.key(0)


def _symmetric(d, seed=0):
    a = np.random.default_rng(seed).normal(size=(d, d))
    return (a + a.T) / 2


def _with_eigenvalues(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * np.asarray(values)) @ q.T


def _ends(matrix, key=KEY, **options):
    matrix = jnp.asarray(matrix)
    return extreme_eigenvalues(lambda v: matrix @ v, jnp.zeros(len(matrix), matrix.dtype), key=key, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_recurrence_and_orthogonality_to_rounding(dtype):
    """A Q = Q T + residual and Q^T Q = 1, on a tree of several leaves, also when eigenvalues converge on the way."""
    d, m = 60, 40
    matrix = jnp.asarray(_with_eigenvalues(np.append(np.linspace(0, 1, d - 2), [30, 100])), dtype)
    start = {"a": jnp.ones((4, 5), dtype), "b": jnp.arange(39.0, dtype=dtype), "c": jnp.ones((), dtype)}
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    T = lanczos(lambda v: unravel(matrix @ jax.flatten_util.ravel_pytree(v)[0]), start, num_steps=m)
    assert int(T.status) == Status.OK
    assert int(T.num_steps) == m
    Q = np.asarray(jax.vmap(lambda v: jax.flatten_util.ravel_pytree(v)[0])(T.basis)).T.astype(float)
    tri = np.diag(T.diagonal) + np.diag(T.off_diagonal[:-1], 1) + np.diag(T.off_diagonal[:-1], -1)
    residual = np.asarray(matrix, float) @ Q - Q @ tri
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(Q[:, 0], flat / np.linalg.norm(flat), atol=2 * eps)
    assert np.abs(Q.T @ Q - np.eye(m)).max() < 20 * eps
    assert np.linalg.norm(residual[:, :-1]) < 10 * np.sqrt(m) * eps * 100
    assert np.linalg.norm(residual[:, -1]) == pytest.approx(float(T.off_diagonal[-1]), rel=1e4 * eps)
    assert float(T.asymmetry) < 20 * eps


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-3, 5, 50),
        np.geomspace(1e-8, 1, 50),
        np.concatenate([np.zeros(40), [1, 1, 2, 2, 3, 5, 5, 5, 8, 13]]),
        -np.geomspace(1e-3, 1e6, 50),
        1e-200 * np.linspace(1, 2, 50),
    ],
    ids=["uniform", "graded", "multiple", "negative", "tiny"],
)
def test_both_ends_against_lapack(values):
    """Distinct eigenvalues from the end inwards, with their vectors; a multiple one once."""
    matrix = _with_eigenvalues(values)
    distinct = np.unique(np.asarray(values))
    ends = _ends(matrix, num_smallest=2, num_largest=3, tolerance=1e-12)
    assert int(ends.status) == Status.OK
    scale = np.abs(values).max()
    np.testing.assert_allclose(ends.smallest, distinct[:2], atol=1e-13 * scale)
    np.testing.assert_allclose(ends.largest, distinct[::-1][:3], atol=1e-13 * scale)
    vectors = np.concatenate([ends.smallest_vectors, ends.largest_vectors])
    found = np.concatenate([ends.smallest, ends.largest])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-12)
    bounds = np.concatenate([ends.smallest_error_bounds, ends.largest_error_bounds])
    residuals = np.linalg.norm(vectors @ matrix - found[:, None] * vectors, axis=1)
    np.testing.assert_allclose(bounds, residuals, atol=1e-13 * scale)
    assert bounds.max() < 1e-11 * scale
    assert float(ends.lower_bound) <= distinct[0] + 1e-14 * scale
    assert float(ends.upper_bound) >= distinct[-1] - 1e-14 * scale
    assert int(ends.num_steps) <= 50


def test_the_laplacian_of_an_interval_has_its_closed_form():
    n = 120

    def negative_laplacian(v):
        padded = jnp.pad(v, 1)
        return 2 * v - padded[:-2] - padded[2:]

    ends = extreme_eigenvalues(negative_laplacian, jnp.zeros(n), key=KEY, num_steps=n, num_smallest=2, num_largest=2)
    exact = 4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2
    assert int(ends.status) == Status.OK
    np.testing.assert_allclose(ends.smallest, exact[:2], rtol=1e-9)
    np.testing.assert_allclose(ends.largest, exact[:-3:-1], rtol=1e-12)


def test_too_few_steps_are_said_and_the_bounds_hold():
    matrix = _symmetric(200)
    exact = np.linalg.eigvalsh(matrix)
    ends = _ends(matrix, num_steps=25)
    assert int(ends.status) == Status.NOT_CONVERGED
    for value, bound in zip(
        [ends.smallest[0], ends.largest[0]], [ends.smallest_error_bounds[0], ends.largest_error_bounds[0]], strict=True
    ):
        assert np.abs(exact - float(value)).min() <= float(bound)
    assert float(ends.lower_bound) <= exact[0] < float(ends.smallest[0])
    assert float(ends.upper_bound) >= exact[-1] > float(ends.largest[0])
    # no worse than the bound by Chebyshev polynomials: a share tanh^2(z / (2 m - 1)) of the spread
    z = np.arccosh(np.sqrt(2 * 200 / np.pi) / 0.5e-6)
    share = np.tanh(z / (2 * 25 - 1)) ** 2
    assert share < 0.2
    assert float(ends.upper_bound) <= exact[-1] + share / (1 - 2 * share) * (exact[-1] - exact[0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("probability", [0.02, 0.3])
def test_the_outer_bounds_fail_no_more_often_than_promised(probability):
    """An isolated eigenvalue just above a continuum, few steps: the start decides whether it is seen."""
    values = jnp.append(jnp.linspace(-1, 1, 499), 1.02)
    keys = jax.random.split(KEY, 1000)

    @jax.jit
    @jax.vmap
    def ends(key):
        found = extreme_eigenvalues(
            lambda v: values * v, values, key=key, num_steps=30, failure_probability=probability, tolerance=1e-15
        )
        return found.lower_bound, found.upper_bound

    lower, upper = ends(keys)
    failures = int(np.sum((np.asarray(lower) > -1) | (np.asarray(upper) < 1.02)))
    assert failures <= 1000 * probability + 4 * np.sqrt(1000 * probability)
    if probability == 0.3:  # the bound is near enough to the truth to fail at times
        assert failures > 10


def test_without_reorthogonalization_converged_eigenvalues_come_back():
    matrix = jnp.asarray(_with_eigenvalues(np.append(np.linspace(0, 1, 199), 10)))
    near_ten = {}
    for reorthogonalize in (True, False):
        T = lanczos(lambda v: matrix @ v, jnp.ones(200), num_steps=80, reorthogonalize=reorthogonalize)
        assert int(T.status) == Status.OK
        assert (T.basis is None) != reorthogonalize
        tri = np.diag(T.diagonal) + np.diag(T.off_diagonal[:-1], 1) + np.diag(T.off_diagonal[:-1], -1)
        near_ten[reorthogonalize] = int(np.sum(np.linalg.eigvalsh(tri) > 9))
    assert near_ten[True] == 1
    assert near_ten[False] > 1
    ends = _ends(matrix, reorthogonalize=False)
    assert int(ends.status) == Status.OK
    assert float(ends.largest[0]) == pytest.approx(10, rel=1e-12)
    assert float(ends.smallest[0]) == pytest.approx(0, abs=1e-7)
    assert ends.largest_vectors is None


@pytest.mark.exhaustive
def test_derivatives_are_those_of_lapack():
    """In what a closure holds and in the leaves of a Partial; first order, forward and backward, jitted or not."""
    a, b = (jnp.asarray(_symmetric(30, seed)) for seed in (1, 2))

    def product(weights, v):
        return weights[0] * (a @ v) + weights[1] ** 2 * (b @ v)

    def ours(weights):
        ends = extreme_eigenvalues(jax.tree_util.Partial(product, weights), jnp.zeros(30), key=KEY, num_largest=2)
        return jnp.concatenate([ends.smallest, ends.largest])

    closure = lambda weights: extreme_eigenvalues(lambda v: product(weights, v), jnp.zeros(30), key=KEY).largest[0]
    reference = lambda weights: jnp.linalg.eigvalsh(weights[0] * a + weights[1] ** 2 * b)[jnp.array([0, -1, -2])]
    weights = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(ours(weights), reference(weights), rtol=1e-12)
    np.testing.assert_allclose(jax.jacrev(ours)(weights), jax.jacrev(reference)(weights), rtol=1e-6)
    forward, backward = (jax.jit(f, compiler_options=QUICK) for f in (jax.jacfwd(ours), jax.grad(closure)))
    np.testing.assert_allclose(forward(weights), jax.jacrev(reference)(weights), rtol=1e-6)
    np.testing.assert_allclose(backward(weights), jax.jacrev(reference)(weights)[1], rtol=1e-6)
    check_grads(ours, (weights,), order=1, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_batch_of_operators_with_a_bad_one():
    scales = jnp.array([1.0, jnp.nan, 3.0])
    values = jnp.linspace(-1, 2, 40)
    find = lambda scale: extreme_eigenvalues(lambda v: scale * values * v, values, key=KEY)
    batch = jax.jit(jax.vmap(find))(scales)
    np.testing.assert_array_equal(batch.status, [Status.OK, Status.NONFINITE_INPUT, Status.OK])
    np.testing.assert_allclose(batch.largest[:, 0], [2, np.nan, 6], rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(batch.lower_bound), [False, True, False])
    slopes = jax.vmap(jax.grad(lambda scale: find(scale).largest[0]))(scales)
    np.testing.assert_allclose(slopes, [2, np.nan, 2], rtol=1e-6)


@pytest.mark.exhaustive
def test_an_operator_that_is_not_symmetric_is_said():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(50, 50)))
    slightly = jnp.asarray(_symmetric(50)) + 1e-6 * jnp.triu(matrix, 1)
    for operator in (matrix, slightly):
        product = lambda v, operator=operator: operator @ v
        for reorthogonalize in (True, False):
            assert int(lanczos(product, jnp.ones(50), num_steps=9, reorthogonalize=reorthogonalize).status) == (
                Status.NOT_SYMMETRIC
            )
        assert int(extreme_eigenvalues(product, jnp.ones(50), key=KEY).status) == Status.NOT_SYMMETRIC
        measure = spectral_density(product, jnp.ones(50), key=KEY, num_steps=9, num_probes=2)
        assert int(measure.status) == Status.NOT_SYMMETRIC


@pytest.mark.exhaustive
def test_small_spaces_and_invariant_ones():
    """One and two dimensions, more steps than dimensions, the identity, zero, a projector, a scalar leaf."""
    one = extreme_eigenvalues(lambda v: -3 * v, jnp.zeros(()), key=KEY)
    assert (float(one.smallest[0]), float(one.largest[0]), int(one.num_steps)) == (-3, -3, 1)
    two = _ends(np.array([[2.0, 1.0], [1.0, 2.0]]), num_steps=1000)
    np.testing.assert_allclose([two.smallest[0], two.largest[0]], [1, 3], rtol=1e-14)
    assert int(two.num_steps) == 2
    T = lanczos(lambda v: v, jnp.ones(5), num_steps=1000)
    assert T.diagonal.shape == (5,)
    assert int(T.num_steps) == 1
    np.testing.assert_allclose(T.diagonal, [1, 0, 0, 0, 0], rtol=1e-15)
    zero = extreme_eigenvalues(lambda v: 0 * v, jnp.ones(5), key=KEY)
    assert (float(zero.largest[0]), int(zero.status), float(zero.upper_bound)) == (0, Status.OK, 0)
    projector = _ends(np.diag([1.0, 1.0, 0.0, 0.0, 0.0]), num_smallest=2)
    assert int(projector.num_steps) == 2
    np.testing.assert_allclose([projector.smallest[1], projector.largest[0]], [1, 1], rtol=1e-14)


def test_fewer_distinct_eigenvalues_than_asked_for():
    """Copies are found with a basis only; see test_units.py for those."""
    ends = _ends(np.eye(5), num_largest=2, reorthogonalize=False)
    assert int(ends.status) == Status.NOT_CONVERGED
    np.testing.assert_allclose(ends.largest, [1, np.nan], rtol=1e-15)


def test_a_zero_start_and_starts_that_are_not_finite():
    product = lambda v: 2 * v
    for start, status in ((0.0, Status.OUT_OF_RANGE), (jnp.inf, Status.NONFINITE_INPUT), (jnp.nan, 1)):
        T = lanczos(product, jnp.full(4, start), num_steps=3)
        assert int(T.status) == status
        assert bool(jnp.all(jnp.isnan(T.diagonal)))
        assert bool(jnp.all(jnp.isnan(T.basis)))
    for extreme in (1e-300, 1e300):  # squares of which under- and overflow
        np.testing.assert_allclose(lanczos(product, jnp.full(4, extreme), num_steps=3).diagonal[0], 2, rtol=1e-15)


def test_quadratures_are_exact_on_polynomials():
    """e_1^T T^k e_1 = v^T A^k v for k < 2 m, on the nodes and weights as well as on T."""
    matrix, m = jnp.asarray(_symmetric(30)), 5
    start = jax.random.normal(KEY, (30,))
    T = lanczos(lambda v: matrix @ v, start, num_steps=m)
    tri = np.diag(T.diagonal) + np.diag(T.off_diagonal[:-1], 1) + np.diag(T.off_diagonal[:-1], -1)
    unit = np.asarray(start / jnp.linalg.norm(start))
    for k in range(2 * m):
        exact = unit @ np.linalg.matrix_power(matrix, k) @ unit
        assert np.linalg.matrix_power(tri, k)[0, 0] == pytest.approx(exact, rel=1e-10, abs=1e-10)
    measure = spectral_density(lambda v: matrix @ v, start, key=KEY, num_steps=m, num_probes=3)
    assert measure.nodes.shape == measure.weights.shape == (3, m)
    np.testing.assert_allclose(jnp.sum(measure.weights, 1), 1, rtol=1e-12)
    assert not np.allclose(measure.nodes[0], measure.nodes[1])  # probes differ


@pytest.mark.exhaustive
def test_traces_of_functions_within_their_standard_errors():
    matrix = _with_eigenvalues(np.linspace(0.5, 9, 300))
    exact = np.linalg.eigvalsh(matrix)
    on_device = jnp.asarray(matrix)
    measure = spectral_density(lambda v: on_device @ v, jnp.zeros(300), key=KEY, num_steps=40, num_probes=24)
    assert int(measure.status) == Status.OK
    for function in (jnp.log, jnp.square, lambda x: 1 / x, lambda x: (x < 3.0).astype(float)):
        estimate = trace_of_function(measure, function)
        difference = float(estimate.value) - float(jnp.sum(function(exact)))
        assert abs(difference) < 4 * float(estimate.standard_error) + 2  # 2: a step between nodes
        assert float(estimate.standard_error) < 0.05 * float(jnp.sum(function(exact)))
    powers = trace_of_function(measure, lambda x: jnp.stack([x, x**2]))
    assert powers.value.shape == powers.standard_error.shape == (2,)
    one = spectral_density(lambda v: on_device @ v, jnp.zeros(300), key=KEY, num_steps=3, num_probes=1)
    assert bool(jnp.isnan(trace_of_function(one, jnp.square).standard_error))


@pytest.mark.exhaustive
@pytest.mark.parametrize("reorthogonalize", [True, False])
def test_the_density_is_that_of_the_eigenvalues(reorthogonalize):
    """A semicircle, smeared with the same width as the exact eigenvalues."""
    d, width = 400, 0.15
    matrix = jnp.asarray(_symmetric(d) / np.sqrt(d / 2))
    exact = np.linalg.eigvalsh(matrix)
    measure = spectral_density(
        lambda v: matrix @ v, jnp.zeros(d), key=KEY, num_probes=16, reorthogonalize=reorthogonalize, batch_size=4
    )
    points = jnp.linspace(-3, 3, 121)
    density, error = smoothed_density(measure, points, width)
    expected = np.exp(-(((np.asarray(points)[:, None] - exact) / width) ** 2) / 2).mean(1) / (
        width * np.sqrt(2 * np.pi)
    )
    assert np.all(np.abs(density - expected) < 4.5 * np.asarray(error) + 1e-3)  # 1e-3: of the quadrature
    assert float(jnp.max(error)) < 0.03
    assert float(jnp.trapezoid(density, points)) == pytest.approx(1, abs=1e-3)
    check_grads(lambda x, w: smoothed_density(measure, x, w).value, (points[::40], jnp.asarray(0.3)), order=2)
    assert bool(jnp.isnan(smoothed_density(measure, 0.0, jnp.asarray(-1.0)).value))


def test_new_data_do_not_recompile():
    from jaxnm.linalg.extreme_eigenvalues import _extreme_eigenvalues

    product = lambda scale, v: scale * v
    before = _extreme_eigenvalues._cache_size()
    for scale, tolerance in ((1.0, 1e-3), (2.0, 1e-4), (3.0, None)):
        operator = jax.tree_util.Partial(product, jnp.asarray(scale))
        ends = extreme_eigenvalues(operator, jnp.zeros(7), key=KEY, tolerance=tolerance)
        assert float(ends.largest[0]) == pytest.approx(scale, rel=1e-14)
    assert _extreme_eigenvalues._cache_size() == before + 1


_v = jnp.zeros(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lanczos(lambda v: v, jnp.arange(3), num_steps=2), TypeError, "start is of dtypes"),
        (lambda: lanczos(lambda v: v, jnp.ones(3, complex), num_steps=2), TypeError, "start is of dtypes"),
        (lambda: lanczos(lambda v: v, {}, num_steps=2), ValueError, "without numbers"),
        (lambda: lanczos(lambda v: v, _v, num_steps=0), ValueError, "num_steps is 0"),
        (lambda: lanczos(lambda v: v, _v, num_steps=2.0), TypeError, "num_steps is of type float"),
        (lambda: lanczos(lambda v: v[:2], _v, num_steps=2), ValueError, "product is of shape"),
        (lambda: lanczos(lambda v: (v, v), _v, num_steps=2), ValueError, "pass trees of one structure"),
        (lambda: lanczos(lambda v: v.astype(jnp.float32), _v, num_steps=2), TypeError, "product of operator is of dt"),
        (lambda: extreme_eigenvalues(lambda v: v, _v, key=0), TypeError, "key is of type int"),
        (
            lambda: extreme_eigenvalues(lambda v: v, _v, key=jax.random.split(KEY)),
            ValueError,
            "key is a batch of keys",
        ),
        (lambda: extreme_eigenvalues(lambda v: v, _v, key=KEY, num_smallest=5), ValueError, "num_smallest is 5"),
        (
            lambda: extreme_eigenvalues(lambda v: v, _v, key=KEY, num_smallest=0, num_largest=0),
            ValueError,
            "num_smallest .* is 0",
        ),
        (lambda: extreme_eigenvalues(lambda v: v, _v, key=KEY, tolerance=0.0), ValueError, "tolerance is 0.0"),
        (
            lambda: extreme_eigenvalues(lambda v: v, _v, key=KEY, failure_probability=1.0),
            ValueError,
            "failure_probability is 1.0",
        ),
        (lambda: spectral_density(lambda v: v, _v, key=KEY, num_probes=0), ValueError, "num_probes is 0"),
        (
            lambda: smoothed_density(spectral_density(lambda v: v, _v, key=KEY), 0.0, 0.0),
            ValueError,
            "width is 0.0",
        ),
        (
            lambda: trace_of_function(spectral_density(lambda v: v, _v, key=KEY), jnp.sum),
            ValueError,
            "the value of function",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
