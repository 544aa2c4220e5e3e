"""A, B and B^T against matrices that are assembled face by face without jaxnm."""

from functools import partial

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest

from jaxnm import stokes
from jaxnm.stokes import Boundary, Grid, Velocity
from tests.compilation import QUICK
from tests.stokes.test_counting import _boundary, _dense

EPS = float(np.finfo(float).eps)


def _mask(shape, seed):
    """A picture of one piece, whose solid also touches the sides."""
    return stokes.largest_component(np.random.default_rng(seed).random(shape) < 0.25, Boundary())


def _operators(shape, letters, seed=None, upper=None):
    upper = tuple(float(n) * h for n, h in zip(shape, (0.25, 0.4, 0.3), strict=False)) if upper is None else upper
    solid = None if seed is None else _mask(shape, seed)
    return stokes.discretize(Grid(shape, None, upper), _boundary(letters), viscosity=0.6, solid=solid)


_MIXES = [
    *(((5, 4), letters, seed) for letters in ("NN|NN", "PP|TO", "IO|FN", "OT|PP") for seed in (None, 0)),
    *(((3, 4, 3), letters, seed) for letters in ("NO|PP|TF", "PP|NN|IT") for seed in (None, 0)),
]


@partial(jax.jit, compiler_options=QUICK)
def _matrices(operators):
    return [operators.to_dense(name) for name in ("laplacian", "divergence", "gradient")]


@pytest.mark.parametrize(("shape", "letters", "seed"), _MIXES)
def test_the_matrices_are_those_of_an_independent_assembly(shape, letters, seed):
    operators = _operators(shape, letters, seed)
    a, b, gradient = map(np.asarray, _matrices(operators))
    np.testing.assert_array_equal(a, a.T)
    np.testing.assert_array_equal(b, gradient.T)
    solid = np.zeros(shape, bool) if seed is None else np.asarray(operators.solid)
    wanted_a, wanted_b = _dense(shape, operators.boundary, solid, operators.grid.spacing)
    active = np.concatenate([np.ravel(part) for part in operators.active_faces().components])
    fluid = ~solid.ravel()
    assert len(wanted_a) == active.sum()
    np.testing.assert_allclose(a[np.ix_(active, active)], wanted_a, rtol=0, atol=8 * EPS * np.abs(wanted_a).max())
    np.testing.assert_allclose(b[np.ix_(fluid, active)], wanted_b, rtol=0, atol=4 * EPS * np.abs(wanted_b).max())
    # nothing reaches the solid
    for matrix, rows, columns in ((a, active, active), (b, fluid, active)):
        assert not matrix[~rows].any()
        assert not matrix[:, ~columns].any()
    sparse = operators.to_sparse().toarray()
    wanted = np.block([[0.6 * a, b.T], [b, np.zeros((fluid.size,) * 2)]])
    idle = ~np.concatenate([active, fluid])
    wanted[idle, idle] = 1
    if not any(operators.velocity_null_space) and not operators.pressure_null_space:
        np.testing.assert_allclose(sparse, wanted, rtol=0, atol=8 * EPS * np.abs(wanted).max())
    else:  # one unknown of each null space is pinned
        changed = np.any(np.abs(sparse - wanted) > 8 * EPS * np.abs(wanted).max(), 1)
        pinned = np.where(changed & (np.abs(sparse).sum(1) == 1))[0]
        assert pinned.size == operators.pressure_null_space + sum(operators.velocity_null_space)
        keep = np.delete(np.arange(len(wanted)), pinned)
        np.testing.assert_allclose(
            sparse[np.ix_(keep, keep)], wanted[np.ix_(keep, keep)], rtol=0, atol=8 * EPS * np.abs(wanted).max()
        )
    assert np.linalg.matrix_rank(sparse) == len(sparse)


def test_null_spaces_are_those_of_the_matrices():
    """What is known before any number is computed, against ranks."""
    free = ("FF|FF", "PP|PP", "OO|PP", "OO|FO", "TT|FF", "PP|NN", "PP|TT", "FF|PP", "OT|OO", "NN|FF", "PP|FT")
    for letters in free:
        operators = _operators((3, 4), letters)
        a, b = _dense((3, 4), operators.boundary, np.zeros((3, 4), bool), operators.grid.spacing)
        assert len(a) - np.linalg.matrix_rank(a) == sum(operators.velocity_null_space), letters
        assert 12 - np.linalg.matrix_rank(b) == operators.pressure_null_space, letters
        for c, is_free in enumerate(operators.velocity_null_space):
            ones = Velocity(
                *(jnp.full(s, float(c == d)) for d, s in enumerate(stokes.face_shapes(*_domain(operators))))
            )
            image = operators.laplacian(ones).components[c]
            assert bool(jnp.all(jnp.abs(image) < 1e-12)) == is_free, letters


def _domain(operators):
    return operators.grid, operators.boundary


def test_face_shapes():
    for letters, own in (("NN", 5), ("FI", 5), ("PP", 6), ("NT", 6), ("OF", 6), ("OT", 7), ("TT", 7)):
        assert stokes.face_shapes(Grid((6, 4)), _boundary(f"{letters}|NN")) == ((own, 4), (6, 3))
        assert stokes.face_shapes(Grid((4, 6)), _boundary(f"NN|{letters}")) == ((3, 6), (4, own))
        three = stokes.face_shapes(Grid((3, 4, 6)), _boundary(f"NN|PP|{letters}"))
        assert three == ((2, 4, 6), (3, 4, 6), (3, 4, own))


def test_positions_are_the_middles_of_the_unknown_faces():
    grid = Grid((4, 5), (1.0, -1.0), (3.0, 1.5))
    x, y = stokes.positions(grid, _boundary("NO|PP"), 0)
    assert x.shape == y.shape == stokes.face_shapes(grid, _boundary("NO|PP"))[0]
    np.testing.assert_allclose(x[:, 0], [1.5, 2, 2.5, 3])
    np.testing.assert_allclose(y[0], [-0.75, -0.25, 0.25, 0.75, 1.25])
    _, y = stokes.positions(grid, _boundary("NO|PP"), 1)
    np.testing.assert_allclose(y[0], [-1, -0.5, 0, 0.5, 1])
    assert stokes.positions(grid, Boundary(), 0, jnp.float32)[0].dtype == jnp.float32


@pytest.mark.exhaustive
def test_operators_of_lineax():
    operators = _operators((4, 5), "IT|NN", 0)
    random = np.random.default_rng(0)
    u = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape)), operators.structure()[0])
    p = jnp.asarray(random.normal(size=(4, 5)))
    for name, argument in (("laplacian", u), ("divergence", u), ("gradient", p), ("saddle", (u, p))):
        operator = operators.as_linear_operator(name)
        image = jax.flatten_util.ravel_pytree(operator.mv(argument))[0]
        matrix = np.asarray(operators.to_dense(name))
        np.testing.assert_allclose(matrix @ jax.flatten_util.ravel_pytree(argument)[0], image, rtol=0, atol=1e-12)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(operator.transpose().mv(operator.mv(argument)))[0],
                                   matrix.T @ image, rtol=0, atol=1e-11)  # fmt: skip
    assert lineax.is_symmetric(operators.as_linear_operator("saddle"))
    assert lineax.is_positive_semidefinite(operators.as_linear_operator("laplacian"))
    assert not lineax.is_symmetric(operators.as_linear_operator("divergence"))


def test_drag_adds_the_mean_of_the_two_cells_and_half_of_one():
    drag = jnp.arange(12.0).reshape(3, 4)
    grid, boundary = Grid((3, 4)), _boundary("NO|PP")
    plain, porous = (stokes.discretize(grid, boundary, inverse_permeability=k) for k in (None, drag))
    change = np.diag(np.asarray(porous.to_dense("laplacian") - plain.to_dense("laplacian")))
    full = np.asarray(drag)
    on_u = np.concatenate([(full[:-1] + full[1:]) / 2, full[-1:] / 2])
    on_v = (np.roll(full, 1, 1) + full) / 2
    np.testing.assert_allclose(change, np.concatenate([on_u.ravel(), on_v.ravel()]), rtol=0, atol=1e-13)


def test_a_large_matrix_is_refused():
    with pytest.raises(ValueError, match="to_dense: name is on 29800 unknowns, expected at most 20000"):
        stokes.discretize(Grid((100, 100)), Boundary()).to_dense()
