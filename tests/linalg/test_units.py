"""Answers in any units, of any batch, and derivatives that do not exist: each raises instead of being wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import Status, linalg
from tests.compilation import QUICK

EPS = np.finfo(float).eps
KEY = jax.random.key(0)


@pytest.mark.parametrize(("dtype", "decades"), [(np.float64, 12), (np.float32, 5)])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_eigenvalues_of_a_badly_scaled_matrix(n, dtype, decades):
    """D B D^-1 has the eigenvalues of B, and derivatives in B are those of B as well."""
    random = np.random.default_rng(n)
    b = random.normal(size=(20, n, n)).astype(dtype)
    d = (2.0 ** np.round(np.linspace(0, decades * np.log2(10), n))).astype(dtype)
    b = np.concatenate([b, b[:, ::-1, ::-1]])  # graded upwards and downwards
    moduli = lambda b, d: jnp.sum(jnp.abs(linalg.eigenvalues(d[:, None] * b / d[None])), -1)
    both = jax.jit(jax.vmap(jax.value_and_grad(moduli), (0, None)), compiler_options=QUICK)
    (value, slope), (plain, expected) = both(b, d), both(b, np.ones_like(d))
    eps = np.finfo(dtype).eps
    condition = np.abs(expected).max((1, 2), keepdims=True) + 1
    np.testing.assert_allclose(value, plain, rtol=0, atol=100 * n * eps * condition.max())
    assert (np.abs(slope - expected) <= 1000 * n * eps * condition**3).all()


def test_eigenvalues_in_any_units():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
    scales = jnp.asarray([1e-200, 1.0, 1e200])
    value = lambda a: jnp.abs(linalg.eigenvalues(a)[-1])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)), compiler_options=QUICK)(
        scales[:, None, None] * a[None]
    )
    np.testing.assert_allclose(values / scales, float(jnp.max(jnp.abs(jnp.linalg.eigvals(a)))), rtol=100 * EPS)
    np.testing.assert_allclose(slopes, jnp.broadcast_to(slopes[1], slopes.shape), rtol=0, atol=100 * EPS)


def test_fewer_distinct_eigenvalues_than_asked_for():
    """Those at the end, each as often as it is there."""
    batch = jnp.asarray([np.ones(6), [1.0, 1, 2, 2, 2, 1], np.zeros(6), [3.0, 3, 1, 1, 1, 1]])
    find = lambda values: linalg.extreme_eigenvalues(lambda v: values * v, jnp.zeros(6), key=KEY, num_largest=3)
    found = jax.jit(jax.vmap(find), compiler_options=QUICK)(batch)
    np.testing.assert_array_equal(found.status, Status.OK)
    np.testing.assert_allclose(found.largest, np.sort(batch)[:, :-4:-1], rtol=0, atol=10 * EPS)
    products = np.einsum("bik,bjk->bij", found.largest_vectors, found.largest_vectors)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (4, 3, 3)), rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(found.upper_bound, np.max(batch, 1), rtol=0, atol=1e-12)


def _product(a):
    return lambda v: linalg.matmul(a, v)


WITHOUT = {
    "schur": lambda a: linalg.schur(a).T.real,
    "left_eigenvectors": lambda a: (
        linalg.left_eigenvectors(
            linalg.SchurForm(T=a.astype(complex), Q=jnp.eye(2, dtype=complex), converged=jnp.array(True))
        ).real
    ),
    "lanczos": lambda a: linalg.lanczos(_product(a), jnp.ones(2), num_steps=2).diagonal,
    "spectral_density": lambda a: linalg.spectral_density(_product(a), jnp.ones(2), key=KEY).nodes,
    "extreme_eigenvalues": lambda a: (
        linalg.extreme_eigenvalues(_product(a), jnp.ones(2), key=KEY, reorthogonalize=False).largest
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_derivatives_that_do_not_exist_raise(name):
    total = lambda a: jnp.sum(WITHOUT[name](a))
    for derivative in (jax.grad(total), lambda a: jax.jvp(total, (a,), (a,))):
        with pytest.raises(TypeError, match=f"{name}: .*expected no derivative"):
            jax.jit(derivative).trace(jnp.eye(2))


def test_the_second_derivative_of_extreme_eigenvalues_raises():
    largest = lambda a: linalg.extreme_eigenvalues(_product(a), jnp.ones(2), key=KEY).largest[0]
    jax.jit(jax.grad(largest)).trace(jnp.eye(2))
    with pytest.raises(TypeError, match="extreme_eigenvalues: the first derivative is differentiated"):
        jax.jit(jax.hessian(largest)).trace(jnp.eye(2))


EXPORTED = {
    "solve_discrete_lyapunov": lambda a: linalg.solve_discrete_lyapunov(0.1 * a, a),
    "schur": linalg.schur,
    "left_eigenvectors": lambda a: linalg.left_eigenvectors(linalg.schur(a)),
    "eigenvalues": linalg.eigenvalues,
    "eigenvalues, differentiated": jax.grad(lambda a: jnp.sum(jnp.abs(linalg.eigenvalues(a)))),
    "eigh": linalg.eigh,
    "svd": linalg.svd,
    "qr": linalg.qr,
    "cholesky": linalg.cholesky,
    "solve": lambda a: linalg.solve(a, a),
    "safe_norm": lambda a: linalg.safe_norm(a, axis=-1),
    "dct": linalg.dct,
    "dst": lambda a: linalg.dst(a, 1),
    "hartley": linalg.hartley,
    "dctn": lambda a: linalg.dctn(a, axes=(1, 2)),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_export_with_a_symbolic_batch(name):
    (batch,) = jax.export.symbolic_shape("batch")
    like = jax.ShapeDtypeStruct((batch, 3, 3), jnp.float64)
    exported = jax.export.export(jax.jit(EXPORTED[name]))(like)
    assert all(leaf.shape[0] == batch for leaf in exported.out_avals)
