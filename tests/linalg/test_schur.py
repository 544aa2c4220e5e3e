"""The Schur form against its definition, and eigenvalues against LAPACK's, on matrices that are hard for both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import linalg

_random = np.random.default_rng(0)


def _rotated(blocks):
    n = blocks.shape[-1]
    q = np.linalg.qr(_random.normal(size=(50, n, n)))[0]
    return q @ blocks @ q.swapaxes(-1, -2)


def _matrices(n, dtype):
    """Batches of 50 of each kind; near underflow, entries still stay clear of the subnormal range."""
    normal = _random.normal(size=(50, n, n))
    limits = np.finfo(dtype)
    shift = np.eye(n, k=1)
    kinds = {
        "normal": normal,
        "symmetric": normal + normal.swapaxes(-1, -2),
        "jordan": np.broadcast_to(0.9 * np.eye(n) + shift, (50, n, n)),
        "rotated jordan": _rotated(0.9 * np.eye(n) + shift),
        "nilpotent": _rotated(np.triu(normal, 1)),
        "permutation": np.broadcast_to(np.roll(np.eye(n), 1, 0), (50, n, n)),
        "identity": np.broadcast_to(np.eye(n), (50, n, n)),
        "zero": np.zeros((50, n, n)),
        "rank one": normal[:, :, :1] * normal[:, :1, :],
        "graded": normal * 10.0 ** (-3 * np.arange(n))[None, :, None],
        "near overflow": normal * float(limits.max / 40 / n),
        "near underflow": normal * float(limits.tiny / limits.eps**2),
    }
    return np.concatenate(list(kinds.values())).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_testing_ratios(n, dtype):
    """|A - Q T Q^H| / (n eps |A|) and |Q^H Q - I| / (n eps) below 10, T triangular and sorted, on 600 matrices."""
    a = _matrices(n, dtype)
    form = linalg.schur(jnp.asarray(a))
    assert bool(jnp.all(form.converged))
    scale = np.abs(a.astype(np.float64)).max((-2, -1), keepdims=True)
    scale[scale == 0] = 1
    a, T = a.astype(np.float64) / scale, np.asarray(form.T, np.complex128) / scale
    Q = np.asarray(form.Q, np.complex128)
    unit = n * np.finfo(dtype).eps
    size = np.maximum(np.linalg.norm(a, axis=(-2, -1)), 1e-300)
    assert (np.linalg.norm(a - Q @ T @ Q.conj().swapaxes(-1, -2), axis=(-2, -1)) <= 10 * unit * size).all()
    assert (np.linalg.norm(Q.conj().swapaxes(-1, -2) @ Q - np.eye(n), axis=(-2, -1)) <= 10 * unit).all()
    np.testing.assert_array_equal(np.tril(T, -1), 0)
    moduli = np.abs(np.diagonal(T, axis1=-2, axis2=-1))
    assert (np.diff(moduli, axis=-1) >= -10 * unit * size[:, None]).all()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_eigenvalues_agree_with_lapack(n):
    a = _random.normal(size=(200, n, n)) + 1j * _random.normal(size=(200, n, n))
    ours = np.asarray(linalg.eigenvalues(jnp.asarray(a)))
    theirs = np.linalg.eigvals(a)
    distance = np.abs(ours[:, :, None] - theirs[:, None, :])
    assert max(distance.min(1).max(), distance.min(2).max()) < 1e-11
    assert (np.diff(np.abs(ours), axis=1) >= -1e-12).all()


def test_eigenvalues_have_two_derivatives_where_they_are_simple():
    """Along a direction, by jvp, by vjp and by one over the other, against central differences, in one program."""
    a, direction, cotangent = (jnp.asarray(_random.normal(size=shape)) for shape in ((3, 3), (3, 3), 3))
    moduli = lambda a: jnp.abs(linalg.eigenvalues(a))

    def first_and_second(a, direction):
        gradient = lambda a: jax.vjp(moduli, a)[1](cotangent)[0]
        (value, tangent), (slope, second) = jax.jvp(moduli, (a,), (direction,)), jax.jvp(gradient, (a,), (direction,))
        return value, tangent, slope, second

    step = 1e-5
    points = jnp.stack([a - step * direction, a, a + step * direction])
    value, tangent, slope, second = jax.jit(jax.vmap(first_and_second, (0, None)))(points, direction)
    np.testing.assert_allclose(tangent[1], (value[2] - value[0]) / (2 * step), rtol=1e-6, atol=1e-7)
    assert float(jnp.vdot(slope[1], direction)) == pytest.approx(float(cotangent @ tangent[1]), rel=1e-12)
    np.testing.assert_allclose(second[1], (slope[2] - slope[0]) / (2 * step), rtol=1e-6, atol=1e-6)


_gradients_of_the_largest = jax.jit(jax.vmap(jax.grad(lambda a: jnp.abs(linalg.eigenvalues(a)[-1]))))


@pytest.mark.parametrize("n", [2, 3])
def test_derivatives_are_finite_where_eigenvalues_repeat(n):
    shift = jnp.eye(n, k=1)
    gradients = _gradients_of_the_largest(jnp.stack([jnp.eye(n), jnp.zeros((n, n)), 0.9 * jnp.eye(n) + shift, shift]))
    assert bool(jnp.all(jnp.isfinite(gradients)))


def test_a_defective_subdominant_eigenvalue_does_not_disturb_the_dominant_one():
    """A method that stores gradients has a nilpotent part; its rate still has the right derivative."""
    a = jnp.array([[0.9, 0.2, 0.1], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    # in a batch of the size of the test above, which is compiled
    gradient = _gradients_of_the_largest(jnp.tile(a, (4, 1, 1)))[0]
    step = 1e-6
    differences = np.zeros((3, 3))
    for i, j in np.ndindex(3, 3):
        change = np.zeros((3, 3))
        change[i, j] = step
        plus, minus = (np.abs(np.linalg.eigvals(a + s * change)).max() for s in (1, -1))
        differences[i, j] = (plus - minus) / (2 * step)
    np.testing.assert_allclose(gradient, differences, atol=1e-6)


def test_left_eigenvectors_satisfy_their_equation():
    a = jnp.asarray(_random.normal(size=(20, 4, 4)))
    form = linalg.schur(a)
    rows = linalg.left_eigenvectors(form)
    values = jnp.diagonal(form.T, axis1=-2, axis2=-1)
    residual = jnp.matmul(rows, a.astype(rows.dtype)) - values[..., None] * rows
    assert float(jnp.max(jnp.abs(residual))) < 1e-11
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=-1), 1, rtol=1e-14)


def test_a_bad_member_is_flagged_and_alone():
    a = _random.normal(size=(3, 3, 3))
    clean = linalg.schur(jnp.asarray(a))
    a[1, 0, 2] = np.inf
    form = linalg.schur(jnp.asarray(a))
    np.testing.assert_array_equal(form.converged, [True, False, True])
    assert bool(jnp.all(jnp.isnan(form.T[1])))
    np.testing.assert_array_equal(form.T[::2], clean.T[::2])
    assert bool(jnp.all(jnp.isnan(linalg.eigenvalues(jnp.asarray(a))[1])))


def test_a_batch_is_as_unitary_as_its_members():
    """3,600 complex float32 matrices at once: every rotation has to be one and the same for rows, columns and Q."""
    for n in (3, 12):
        a = (_random.normal(size=(1800, n, n)) + 1j * _random.normal(size=(1800, n, n))).astype(np.complex64)
        form = linalg.schur(jnp.asarray(a))
        Q = np.asarray(form.Q)
        defect = np.linalg.norm(Q.conj().swapaxes(-1, -2) @ Q - np.eye(n), axis=(-2, -1))
        assert (defect <= 10 * n * np.finfo(np.float32).eps).all()
