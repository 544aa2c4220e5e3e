"""Second differences on cells of different sizes: dense scipy matrices, the transforms, convergence, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from jaxnm import linalg
from jaxnm.linalg import graded_basis, solve_separable
from tests.compilation import QUICK

ENDS = [("fixed", "fixed"), ("free", "free"), ("fixed", "free"), ("free", "fixed"), "periodic"]
PLACES = ("cells", "faces")
BOTH = pytest.mark.parametrize("at", PLACES)
ALL = pytest.mark.parametrize("ends", ENDS, ids=str)
_solve = jax.jit(solve_separable, compiler_options=QUICK)
_basis = jax.jit(graded_basis, static_argnames=("ends", "at"), compiler_options=QUICK)


def _sizes(n, seed=0):
    return np.random.default_rng(seed).uniform(0.3, 1.7, n)


def _stretched(n, steepness=2.0):
    """Edges in [0, 1], dense at both ends."""
    return (1 + np.tanh(steepness * np.linspace(-1, 1, n + 1)) / np.tanh(steepness)) / 2


def _stiffness(sizes, ends, at):
    """K and the volumes, unknown by unknown, from points and the distances between them."""
    periodic = ends == "periodic"
    edges = np.concatenate([[0], np.cumsum(sizes)])
    if at == "cells":
        points, volumes = list((edges[1:] + edges[:-1]) / 2), list(sizes)
    else:
        points = list(edges)
        volumes = [(a + b) / 2 for a, b in zip([0, *sizes], [*sizes, 0], strict=True)]
        if periodic:
            points.pop()
            volumes[0] += volumes.pop()
        else:
            if ends[0] == "fixed":
                del points[0], volumes[0]
            if ends[1] == "fixed":
                del points[-1], volumes[-1]
    m = len(points)
    k = np.zeros((m, m))
    pairs = [(i, i + 1, points[i + 1] - points[i]) for i in range(m - 1)]
    if periodic:
        pairs.append((m - 1, 0, points[0] + edges[-1] - points[-1]))
    for i, j, distance in pairs:
        difference = np.zeros(m)
        difference[i] -= 1
        difference[j] += 1
        k += np.outer(difference, difference) / distance
    if not periodic and ends[0] == "fixed":
        k[0, 0] += 1 / points[0]
    if not periodic and ends[1] == "fixed":
        k[-1, -1] += 1 / (edges[-1] - points[-1])
    return k, np.asarray(volumes)


def _allowed(matrix):
    return 10 * len(matrix) * np.finfo(float).eps * np.linalg.norm(matrix, 2)


@ALL
@BOTH
def test_diagonalizes_the_dense_matrices(ends, at):
    """One to seven cells of random sizes."""
    for n in (1, 2, 7):
        if n == 1 and at == "faces" and ends == ("fixed", "fixed"):
            continue
        sizes = _sizes(n)
        k, volumes = _stiffness(sizes, ends, at)
        basis = _basis(jnp.asarray(sizes), ends, at=at)
        np.testing.assert_allclose(basis.volumes, volumes, rtol=1e-15)
        values = scipy.linalg.eigh(k, np.diag(volumes), eigvals_only=True)
        scale = _allowed(k / volumes[:, None])
        np.testing.assert_allclose(basis.eigenvalues, values, rtol=0, atol=scale + 1e-30)
        v, singular = np.asarray(basis.vectors), ends in ("periodic", ("free", "free"))
        np.testing.assert_allclose(v.T @ (volumes[:, None] * v), np.eye(len(v)), rtol=0, atol=1e-13)
        np.testing.assert_allclose(k @ v, volumes[:, None] * v * values, rtol=0, atol=10 * scale + 1e-30)
        assert (float(basis.eigenvalues[0]) == 0) == singular
        if singular:
            np.testing.assert_allclose(v[:, 0], v[0, 0], rtol=1e-15)


# ends and place: the transform, its type, and the multiples of pi / (2 n) that are the angles
EQUAL = {
    (("fixed", "fixed"), "cells"): ("dst", 2, lambda n: 2 * np.arange(1, n + 1)),
    (("free", "free"), "cells"): ("dct", 2, lambda n: 2 * np.arange(n)),
    (("fixed", "free"), "cells"): ("dst", 4, lambda n: 2 * np.arange(n) + 1),
    (("free", "fixed"), "cells"): ("dct", 4, lambda n: 2 * np.arange(n) + 1),
    (("fixed", "fixed"), "faces"): ("dst", 1, lambda n: 2 * np.arange(1, n)),
    (("free", "free"), "faces"): ("dct", 1, lambda n: 2 * np.arange(n + 1)),
    (("fixed", "free"), "faces"): ("dst", 3, lambda n: 2 * np.arange(n) + 1),
    (("free", "fixed"), "faces"): ("dct", 3, lambda n: 2 * np.arange(n) + 1),
}


@pytest.mark.parametrize(("ends", "at"), EQUAL, ids=str)
def test_equal_cells_have_the_cosines_and_sines_of_the_transforms(ends, at):
    n, h = 12, 0.25
    name, type, multiples = EQUAL[ends, at]
    basis = graded_basis(jnp.full(n, h), ends, at=at)
    closed = 4 * np.sin(np.pi * multiples(n) / (4 * n)) ** 2 / h**2
    np.testing.assert_allclose(basis.eigenvalues, closed, rtol=0, atol=1e-12)
    m = len(closed)
    x = np.random.default_rng(1).normal(size=(3, m))
    # half a control volume at free ends: the transforms are orthogonal in the square roots of the volumes
    root = np.sqrt(np.asarray(basis.volumes))
    expected = getattr(linalg, name)(jnp.asarray(x * root), type, norm="ortho")
    found = basis.analyse(jnp.asarray(x))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=0, atol=1e-12)
    np.testing.assert_allclose(basis.synthesise(found), x, rtol=0, atol=1e-12)


@BOTH
def test_equal_periodic_cells_have_the_spaces_of_the_hartley_transform(at):
    n, h = 9, 0.5
    basis = graded_basis(jnp.full(n, h), "periodic", at=at)
    closed = 4 * np.sin(np.pi * np.arange(n) / n) ** 2 / h**2
    np.testing.assert_allclose(basis.eigenvalues, np.sort(closed), rtol=0, atol=1e-12)
    mixing = np.asarray(linalg.hartley(np.sqrt(h) * basis.vectors, axis=0, norm="ortho"))
    apart = abs(closed[:, None] - np.sort(closed)) > 1e-6
    np.testing.assert_allclose(mixing[apart], 0, rtol=0, atol=1e-13)


def test_any_axis_and_batches():
    basis = graded_basis(jnp.asarray(_sizes(5)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5, 6)))
    matrix = np.asarray(basis.vectors).T * np.asarray(basis.volumes)
    for axis in (1, -2):
        found = basis.analyse(x, axis)
        np.testing.assert_allclose(found, np.einsum("kj,ajb->akb", matrix, x), rtol=0, atol=1e-13)
        np.testing.assert_allclose(basis.synthesise(found, axis), x, rtol=0, atol=1e-13)
    sizes = jnp.asarray(np.stack([_sizes(5), _sizes(5, 1)]))
    many = jax.vmap(graded_basis)(sizes)
    for i in range(2):
        np.testing.assert_allclose(many.eigenvalues[i], graded_basis(sizes[i]).eigenvalues, rtol=1e-13)


@pytest.mark.parametrize("shift", [0.0, 0.7, -0.4])
def test_separable_systems_against_dense_matrices(shift):
    """Two and three axes; where constants are in the null space, the pseudo-inverse in the weights of the volumes."""
    cases = [
        ((("fixed", "free"), "cells", 5), (("fixed", "fixed"), "faces", 6)),
        ((("free", "free"), "cells", 5), ("periodic", "faces", 4)),
        ((("free", "free"), "faces", 3), ("periodic", "cells", 4), (("free", "free"), "cells", 5)),
        (("periodic", "cells", 3), (("free", "fixed"), "faces", 4), (("fixed", "fixed"), "cells", 4)),
    ]
    for case in cases:
        symmetric, root, bases = np.zeros((1, 1)), np.ones(1), []
        for seed, (ends, at, n) in enumerate(case):
            sizes = _sizes(n, seed)
            k, volumes = _stiffness(sizes, ends, at)
            line = k / np.sqrt(np.outer(volumes, volumes))
            symmetric = np.kron(symmetric, np.eye(len(line))) + np.kron(np.eye(len(symmetric)), line)
            root = np.kron(root, np.sqrt(volumes))
            bases.append(_basis(jnp.asarray(sizes), ends, at=at))
        matrix = symmetric + shift * np.eye(len(symmetric))
        shape = tuple(basis.eigenvalues.size for basis in bases)
        right = np.random.default_rng(3).normal(size=shape)
        wanted = np.linalg.pinv(matrix, rcond=1e-12, hermitian=True) @ (root * right.ravel()) / root
        found = np.asarray(_solve(tuple(bases), jnp.asarray(right), shift))
        condition = np.linalg.cond(matrix) if np.linalg.matrix_rank(matrix) == len(matrix) else 1e3
        np.testing.assert_allclose(found.ravel(), wanted, rtol=0, atol=1e-14 * condition * np.abs(wanted).max())
        if shift == 0 and np.linalg.matrix_rank(matrix) < len(matrix):
            assert abs(root**2 @ found.ravel()) <= 1e-13 * np.sum(root**2) * np.abs(found).max()


def _poisson_error(n):
    """Largest error of -lap u = f on stretched cells; u is zero for x = 0 and 1, and has no slope for y = 0 and 1."""
    edges = _stretched(n)
    sizes, centres = jnp.asarray(np.diff(edges)), (edges[1:] + edges[:-1]) / 2
    x, y = centres[:, None], centres[None, :]
    exact = np.sin(np.pi * x) * np.exp(x) * np.cos(2 * np.pi * y)
    force = 4 * np.pi**2 * exact - ((1 - np.pi**2) * np.sin(np.pi * x) + 2 * np.pi * np.cos(np.pi * x)) * np.exp(
        x
    ) * np.cos(2 * np.pi * y)
    bases = _basis(sizes), _basis(sizes, ("free", "free"))
    return float(jnp.max(jnp.abs(_solve(bases, jnp.asarray(force)) - exact)))


def test_second_order_on_stretched_cells():
    errors = np.array([_poisson_error(n) for n in (16, 32, 64)])
    orders = np.log2(errors[:-1] / errors[1:])
    assert np.all(orders > 1.9)
    assert np.all(orders < 2.1)
    assert errors[-1] < 8e-3


@pytest.mark.parametrize(("ends", "at"), [(ENDS[0], "cells"), (ENDS[1], "faces"), ("periodic", "cells")], ids=str)
def test_derivatives_in_the_sizes(ends, at):
    """Of eigenvalues, and of a solution, against differences; sizes at random have no double eigenvalues."""
    sizes = jnp.asarray(_sizes(5))

    def objective(sizes, right, shift):
        basis, other = graded_basis(sizes, ends, at=at), graded_basis(sizes, ("fixed", "free"))
        x = solve_separable((basis, other), right, shift)
        return jnp.sum(x**2) + jnp.sum(jnp.sin(basis.eigenvalues))

    m = graded_basis(sizes, ends, at=at).volumes.size
    right = jnp.asarray(np.random.default_rng(4).normal(size=(m, 5)))
    check_grads(
        jax.jit(objective),
        (sizes, right, jnp.asarray(0.3)),
        order=1,
        eps=1e-6,
        rtol=1e-6,
        atol=1e-6,
    )


def test_the_derivative_of_a_pseudo_inverse():
    """Both axes free: the null space moves with the sizes."""

    def objective(sizes, right):
        basis = graded_basis(sizes, ("free", "free"))
        return jnp.sum(solve_separable((basis, graded_basis(sizes[:4], ("free", "free"))), right) ** 2)

    right = jnp.asarray(np.random.default_rng(5).normal(size=(5, 4)))
    check_grads(
        jax.jit(objective),
        (jnp.asarray(_sizes(5)), right),
        order=1,
        eps=1e-6,
        rtol=1e-6,
        atol=1e-6,
    )


def test_float32_stays_float32():
    edges = _stretched(32)
    sizes = jnp.asarray(np.diff(edges), jnp.float32)
    lowered = jax.jit(lambda s, r: solve_separable((graded_basis(s), graded_basis(s, "periodic")), r)).lower(
        sizes, jnp.ones((32, 32), jnp.float32)
    )
    assert "f64" not in lowered.as_text()
    for ends in ENDS[1:3]:
        basis = graded_basis(sizes, ends)
        exact = graded_basis(sizes.astype(float), ends)
        assert {leaf.dtype for leaf in jax.tree.leaves(basis)} == {jnp.dtype("float32")}
        eps, largest = np.finfo(np.float32).eps, float(exact.eigenvalues[-1])
        np.testing.assert_allclose(basis.eigenvalues, exact.eigenvalues, rtol=0, atol=4 * eps * largest)
        root = np.sqrt(np.asarray(basis.volumes))[:, None]
        turned = root * np.asarray(basis.vectors)
        np.testing.assert_allclose(turned.T @ turned, np.eye(32), rtol=0, atol=32 * eps)
        back = basis.synthesise(basis.analyse(jnp.ones(32, jnp.float32)))
        np.testing.assert_allclose(back, 1, rtol=0, atol=32 * eps)


@pytest.mark.parametrize("ends", [("fixed", "fixed"), ("free", "free"), "periodic"], ids=str)
def test_bad_sizes_give_nan_to_their_member_only(ends):
    bad = [0.0, -1.0, np.nan, np.inf]
    sizes = jnp.asarray(np.stack([_sizes(4)] * 5)).at[jnp.arange(4), 1].set(jnp.asarray(bad))
    many = jax.jit(jax.vmap(partial(graded_basis, ends=ends)))
    gradient = jax.grad(lambda s: jnp.sum(many(s).eigenvalues))(sizes)
    for leaf in [*jax.tree.leaves(many(sizes)), gradient]:
        assert np.isnan(leaf[:4]).all()
        assert np.isfinite(leaf[4]).all()


def test_systems_with_bad_data_give_nan():
    basis = graded_basis(jnp.asarray(_sizes(3)), ("free", "free"))
    broken = graded_basis(jnp.asarray([1.0, -1.0, 1.0]))
    right = jnp.ones((3, 3))
    assert np.isnan(_solve((basis, basis), right.at[1, 1].set(jnp.inf), 0.0)).all()
    assert np.isnan(_solve((basis, broken), right, 0.0)).all()
    for shift in (jnp.inf, jnp.nan):
        assert np.isnan(_solve((basis, basis), right, jnp.asarray(shift))).all()
    np.testing.assert_allclose(_solve((basis, basis), right, 0.0), 0, rtol=0, atol=1e-14)


_ONES = jnp.ones(3)
_BASIS = lambda: graded_basis(_ONES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: graded_basis(jnp.arange(1, 4)), TypeError, "graded_basis: sizes is of dtype int"),
        (lambda: graded_basis([1.0, "b"]), TypeError, "graded_basis: sizes is a list"),
        (lambda: graded_basis(_ONES.astype(jnp.float16)), TypeError, "graded_basis: sizes is of dtype float16"),
        (lambda: graded_basis(_ONES.astype(complex)), TypeError, "graded_basis: sizes is of dtype complex"),
        (lambda: graded_basis(jnp.ones((3, 3))), ValueError, r"graded_basis: sizes is of shape \(3, 3\)"),
        (lambda: graded_basis(jnp.ones(0), ("free", "free")), ValueError, r"graded_basis: sizes is of shape \(0,\)"),
        (lambda: graded_basis(jnp.ones(1), at="faces"), ValueError, r"expected \[n\] with n >= 2"),
        (lambda: graded_basis(_ONES, "fixed"), ValueError, "graded_basis: ends is 'fixed', expected a pair"),
        (lambda: graded_basis(_ONES, ("fixed", "periodic")), ValueError, "graded_basis: ends is"),
        (lambda: graded_basis(_ONES, at="nodes"), ValueError, "graded_basis: at is 'nodes'"),
        (lambda: _BASIS().analyse(jnp.ones(4)), ValueError, r"analyse: x is of shape \(4,\), expected 3 along axis -1"),
        (lambda: _BASIS().synthesise(_ONES, 1), ValueError, "synthesise: axis is 1, expected -1, 0"),
        (lambda: solve_separable((_BASIS(),), _ONES), ValueError, "solve_separable: bases is of length 1"),
        (lambda: solve_separable(_BASIS(), _ONES), TypeError, "solve_separable: bases is of type GradedBasis"),
        (lambda: solve_separable((1, 2), _ONES), TypeError, "solve_separable: bases is no tuple of GradedBasis"),
        (lambda: solve_separable((_BASIS(),) * 2, _ONES), ValueError, r"right is of shape \(3,\), expected \(3, 3\)"),
        (lambda: solve_separable((_BASIS(),) * 2, jnp.ones((3, 3)), np.inf), ValueError, "shift is inf"),
        (lambda: solve_separable((_BASIS(),) * 2, jnp.ones((3, 3)), _ONES), ValueError, "shift is of shape"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
