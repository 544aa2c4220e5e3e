"""Eigenvalues of the Schur complement: published extremes, counts, masks, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnm import stokes
from jaxnm.stokes import Boundary, Grid
from tests.compilation import QUICK
from tests.stokes.test_counting import _boundary, _dense


def _operators(shape, letters, solid=None, upper=None, **options):
    upper = (1.0,) * len(shape) if upper is None else upper
    return stokes.discretize(Grid(shape, None, upper), _boundary(letters), solid=solid, **options)


def _dense_eigenvalues(operators):
    """Those that are neither zero nor one, from matrices assembled without jaxnm."""
    grid = operators.grid
    solid = np.zeros(grid.shape, bool) if operators.solid is None else np.asarray(operators.solid)
    a, b = _dense(grid.shape, operators.boundary, solid, grid.spacing)
    w, v = np.linalg.eigh(a)
    keep = w > 1e-10 * w[-1]
    root = (b @ v[:, keep]) / np.sqrt(w[keep])
    values = np.linalg.eigvalsh(root @ root.T)
    return values[(np.abs(values - 1) > 1e-8) & (np.abs(values) > 1e-9)]


# smallest eigenvalue at n = 8 and 16 and the largest at 32 where it is simple to state (see the table of the notes)
_TABLE = {
    "NN|NN": (0.30976, 0.26543),
    "PP|NN": (0.54945, 0.50595),
    "FF|NF": (0.50595, 0.49286),
    "NN|FF": (0.38031, 0.36824),
    "NF|NF": (0.32101, 0.27587),
    "NN|NF": (0.31116, 0.26708),
    "NT|NN": (0.15960, 0.15395),
    "NO|NN": (0.15967, 0.15401),
    "OO|NN": (0.38422, 0.37167),
    "OO|FF": (1.25484, 1.25121),
    "NO|PP": (0.56411, 0.51850),
}


@pytest.mark.parametrize("letters", _TABLE)
def test_the_published_extremes_of_boxes(letters):
    for n, smallest in zip((8, 16), _TABLE[letters], strict=True):
        operators = _operators((n, n), letters)
        values = np.asarray(stokes.schur_eigenvalues(operators))
        assert values.size == stokes.count_nonunit_eigenvalues(operators.grid, operators.boundary)
        assert values[0] == pytest.approx(smallest, abs=5.1e-6)
        if n == 8:
            np.testing.assert_allclose(values, _dense_eigenvalues(operators), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("letters", "largest"), [("NN|NN", 0.78164), ("NO|NN", 1.48121), ("OO|FF", 1.63494)])
def test_the_published_largest_eigenvalues(letters, largest):
    """Do-nothing sides push eigenvalues above one."""
    values = stokes.schur_eigenvalues(_operators((32, 32), letters))
    assert float(values[-1]) == pytest.approx(largest, abs=5.1e-6)


def test_boxes_without_a_wall_have_no_other_eigenvalue_than_one():
    for letters in ("PP|PP", "FF|FF", "TT|FF", "FT|FF"):
        assert stokes.schur_eigenvalues(_operators((5, 4), letters)).shape == (0,)


@pytest.mark.parametrize("letters", ["OF|NN", "TO|ON", "OO|OO", "IO|PP"])
def test_unequal_spacing_against_dense_matrices(letters):
    operators = _operators((6, 5), letters, upper=(1.3, 0.7))
    np.testing.assert_allclose(stokes.schur_eigenvalues(operators), _dense_eigenvalues(operators), rtol=0, atol=1e-12)


def _masks():
    corner = np.zeros((8, 8), bool)
    corner[4:, 4:] = True
    annulus = np.zeros((16, 16), bool)
    annulus[4:12, 4:12] = True
    fichera = np.zeros((8, 8, 8), bool)
    fichera[4:, 4:, 4:] = True
    return {
        "L": ("NN|NN", corner, 26, 0.1156, None),
        "annulus": ("NN|NN", annulus, 90, 0.0284, 0.9772),
        "Fichera": ("NN|NN|NN", fichera, 285, 0.1125, 0.8687),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["L", "annulus", "Fichera"])
def test_masks(name):
    letters, solid, count, smallest, largest = _masks()[name]
    values = np.asarray(stokes.schur_eigenvalues(_operators(solid.shape, letters, solid)))
    assert values.size == count
    assert values[0] == pytest.approx(smallest, abs=5.1e-5)
    assert largest is None or values[-1] == pytest.approx(largest, abs=5.1e-5)
    if name == "L":
        np.testing.assert_allclose(
            values, _dense_eigenvalues(_operators(solid.shape, letters, solid)), rtol=0, atol=1e-9
        )


def test_a_channel_one_cell_wide():
    """S = L (L + 4)^-1: eigenvalues mu / (mu + 4), mu = 4 sin^2(k pi / 2 N)."""
    n = 8
    solid = np.ones((n, n), bool)
    solid[:, 3] = False
    values = stokes.schur_eigenvalues(_operators((n, n), "NN|NN", solid))
    mu = 4 * np.sin(np.pi * np.arange(1, n) / (2 * n)) ** 2
    np.testing.assert_allclose(values, mu / (mu + 4), rtol=1e-10)


@pytest.mark.exhaustive
def test_extremes_and_the_inf_sup_constant():
    for letters, upper in (("NN|NN", (1.0, 1.0)), ("NO|NN", (2.0, 0.5))):
        operators = _operators((12, 10), letters, upper=upper)
        values = stokes.schur_eigenvalues(operators)
        extremes = stokes.schur_extremes(operators, key=jax.random.key(1), num_steps=119)
        assert float(extremes.smallest[0]) == pytest.approx(float(values[0]), rel=1e-10)
        # one is an eigenvalue too
        assert float(extremes.largest[0]) == pytest.approx(max(float(values[-1]), 1.0), rel=1e-10)
        constant = stokes.inf_sup_constant(operators, key=jax.random.key(1), num_steps=119)
        assert float(constant) == pytest.approx(float(values[0]) ** 0.5, rel=1e-10)


@pytest.mark.exhaustive
def test_the_operator_is_symmetric_and_knows_no_viscosity():
    solid = np.zeros((5, 4), bool)
    solid[1, 1:3] = True
    dense = jax.jit(
        lambda operators: stokes.schur_complement(operators).to_dense(), compiler_options=QUICK
    )  # fmt: skip
    for mask in (None, solid):
        matrices = [np.asarray(dense(_operators((5, 4), "IT|NN", mask, viscosity=nu))) for nu in (1.0, 1e-3)]
        np.testing.assert_array_equal(*matrices)
        np.testing.assert_allclose(matrices[0], matrices[0].T, rtol=0, atol=1e-12)
        if mask is not None:
            assert not matrices[0][mask.ravel()].any()
    free = stokes.schur_complement(_operators((5, 4), "FF|PP"))
    assert len(free.null_space) == 1
    assert stokes.schur_complement(_operators((5, 4), "IT|NN")).null_space == []
    np.testing.assert_allclose(free(free.null_space[0]), 0, rtol=0, atol=1e-13)
    p = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)))
    np.testing.assert_allclose(free.as_linear_operator().mv(p), p - p.mean(), rtol=0, atol=1e-13)


def test_what_is_refused():
    porous = stokes.discretize(Grid((4, 4)), Boundary(), inverse_permeability=jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="schur_eigenvalues: operators is with drag"):
        stokes.schur_eigenvalues(porous)
    with pytest.raises(ValueError, match="with a traced mask"):
        jax.jit(lambda solid: stokes.schur_eigenvalues(stokes.discretize(Grid((4, 4)), Boundary(), solid=solid)))(
            jnp.zeros((4, 4), bool)
        )
    with pytest.raises(ValueError, match="to_dense: grid is of 5041 cells, expected at most 5000"):
        stokes.schur_complement(_operators((71, 71), "NN|NN")).to_dense()
    with pytest.raises(TypeError, match="typed key"):
        stokes.schur_extremes(_operators((4, 4), "NN|NN"), key=0)
