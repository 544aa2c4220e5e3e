"""Counts on graphs against eigenvalues of dense matrices, which are assembled here, face by face, without jaxnm."""

import itertools
import time

import numpy as np
import pytest

from jaxnm.stokes.counting import count_nonunit_eigenvalues
from jaxnm.stokes.domain import largest_component
from jaxnm.stokes.grid import Boundary, Grid

_LETTERS = {"N": "no_slip", "F": "free_slip", "P": "periodic", "I": "inflow", "T": "outflow", "O": "do_nothing"}


def _boundary(letters):
    return Boundary(*((_LETTERS[a], _LETTERS[b]) for a, b in letters.split("|")))


def _grid(shape, spacing=None):
    return Grid(
        shape, None, None if spacing is None else tuple(float(h * n) for h, n in zip(spacing, shape, strict=True))
    )


def _count(shape, letters, solid=None, spacing=None):
    return count_nonunit_eigenvalues(_grid(shape, spacing), _boundary(letters), solid)


def _dense(shape, boundary, solid, spacing):
    """A and B on the unknown faces and the fluid cells."""
    dim = len(shape)
    periodic = [boundary.is_periodic(a) for a in range(dim)]

    def fluid(cell):
        """True, False in the solid, the kind of the side that the cell is beyond, or 'corner'."""
        cell = [i % n if p else i for i, n, p in zip(cell, shape, periodic, strict=True)]
        beyond = [boundary[a][int(i > 0)] for a, (i, n) in enumerate(zip(cell, shape, strict=True)) if not 0 <= i < n]
        return ("corner" if len(beyond) > 1 else beyond[0]) if beyond else not solid[tuple(cell)]

    step = lambda at, axis, by: tuple(i + by * (a == axis) for a, i in enumerate(at))
    name = lambda axis, at: (axis, *(i % n if p else i for i, n, p in zip(at, shape, periodic, strict=True)))
    number, mass = {}, []
    for axis in range(dim):
        for at in itertools.product(*(range(n + (a == axis and not periodic[a])) for a, n in enumerate(shape))):
            sides = {fluid(step(at, axis, -1)), fluid(at)}
            if sides == {True} or (True in sides and sides & {"outflow", "do_nothing"}):
                number[name(axis, at)] = len(number)
                mass.append(1.0 if sides == {True} else 0.5)
    cells = np.argwhere(~solid)
    a, b = np.zeros((len(number), len(number))), np.zeros((len(cells), len(number)))
    for row, cell in enumerate(cells.tolist()):
        for axis, by in itertools.product(range(dim), (0, 1)):
            column = number.get(name(axis, step(cell, axis, by)))
            if column is not None:
                b[row, column] += (1 - 2 * by) / spacing[axis]
    for (axis, *at), i in number.items():
        for other, by in itertools.product(range(dim), (-1, 1)):
            beside = step(at, other, by)
            j, sides = number.get(name(axis, beside)), (fluid(step(beside, axis, -1)), fluid(beside))
            scale = (1.0 if axis == other else mass[i]) / spacing[other] ** 2
            if axis == other:
                weight = float(fluid(step(at, axis, -1) if by < 0 else at) is True)
            elif j is not None:
                weight = 1.0
            elif not periodic[other] and not 0 <= beside[other] < shape[other]:
                weight = 2.0 * (boundary[other][int(by > 0)] in ("no_slip", "inflow", "outflow"))
            else:
                weight = 1.0 if True in sides else 2.0
            a[i, i] += scale * weight
            if j is not None:
                a[i, j] -= scale * weight
    return a, b


def _dense_count(shape, boundary, solid, spacing):
    a, b = _dense(shape, boundary, solid, spacing)
    if not len(a):
        return 0
    w, v = np.linalg.eigh(a)
    keep = w > 1e-10 * w[-1]
    root = (b @ v[:, keep]) / np.sqrt(w[keep])
    values = np.linalg.eigvalsh(root @ root.T)
    distance = np.abs(values - 1)
    assert not np.any((distance > 1e-9) & (distance < 1e-6))
    return int(np.sum((distance > 1e-7) & (np.abs(values) > 1e-9)))


_BOXES = {
    "NN|NN": lambda x, y: 2 * x + 2 * y - 5,
    "PP|NN": lambda x, y: 2 * (x - 1),
    "PP|PP": lambda x, y: 0,
    "FF|FF": lambda x, y: 0,
    "FF|NF": lambda x, y: x - 1,
    "NN|FF": lambda x, y: 2 * (y - 1),
    "NF|NF": lambda x, y: x + y - 2,
    "NN|NF": lambda x, y: 2 * y + x - 3,
    "IT|NN": lambda x, y: 2 * x + y - 2,
    "TT|FF": lambda x, y: 0,
    "FT|FF": lambda x, y: 0,
    "IO|NN": lambda x, y: 2 * x + 2 * y - 4,
    "OO|NN": lambda x, y: 2 * x + 2 * y - 4 - (x == y),  # one unit eigenvalue more in a square
    "OO|FF": lambda x, y: 2 * (y - 1),
    "NO|PP": lambda x, y: 2 * (y - 1),
    "NN|NN|NN": lambda x, y, z: x * y * z - (x - 2) * (y - 2) * (z - 2) - 1,
    "PP|PP|NN": lambda x, y, z: 2 * (x * y - 1),
    "PP|NN|NN": lambda x, y, z: x * (2 * y + 2 * z - 4) - 1,
    "FF|FF|NF": lambda x, y, z: x * y - 1,
    "FF|PP|FF": lambda x, y, z: 0,
    "PP|PP|PP": lambda x, y, z: 0,
    "NT|NN|NN": lambda x, y, z: x * y * z - (x - 1) * (y - 2) * (z - 2),
}


@pytest.mark.parametrize("letters", _BOXES)
def test_the_closed_formulas_of_boxes(letters):
    for shape in [(4, 4, 4), (8, 5, 3), (3, 6, 7), (12, 12, 12)]:
        box = shape[: letters.count("|") + 1]
        assert _count(box, letters) == _BOXES[letters](*box), box
        if len(box) == 2:
            assert _count(box, letters, spacing=(1.0, 0.3)) == _BOXES[letters](*box), box


def test_the_masks_of_the_notes():
    for n, count in ((8, 26), (16, 58)):
        corner = np.zeros((n, n), bool)
        corner[n // 2 :, n // 2 :] = True
        assert _count((n, n), "NN|NN", corner) == count
        assert _count((n, n), "FF|FF", corner) == n - 1  # the solid alone, which is no-slip
    annulus = np.zeros((16, 16), bool)
    annulus[4:12, 4:12] = True
    assert _count((16, 16), "NN|NN", annulus) == 90
    squares = (np.arange(32) - 15.5) ** 2
    for radius, count in ((6, 33), (10, 57), (14, 77)):
        assert _count((32, 32), "PP|PP", squares[:, None] + squares < radius**2) == count
    fichera = np.zeros((8, 8, 8), bool)
    fichera[4:, 4:, 4:] = True
    assert _count((8, 8, 8), "NN|NN|NN", fichera) == 285
    throat = np.ones((24, 3), bool)
    throat[:, 1] = False
    assert _count((24, 3), "NN|NN", throat) == 23


@pytest.mark.parametrize(("shape", "seed"), [((6, 5), 0), ((9, 4), 1), ((2, 7), 2), ((4, 4, 3), 3), ((3, 2, 4), 4)])
def test_random_domains_have_the_counts_of_dense_matrices(shape, seed):
    random = np.random.default_rng(seed)
    for case in range(14):
        pairs = [("PP" if random.random() < 0.3 else "".join(random.choice(list("NFITO"), 2))) for _ in shape]
        letters = "|".join(pairs)
        boundary = _boundary(letters)
        picture = random.random(shape) > random.uniform(0.3, 0.95)
        solid = largest_component(picture, boundary) if case and not picture.all() else np.zeros(shape, bool)
        spacing = (1.0,) * len(shape) if case % 2 else tuple(random.uniform(0.5, 1.5, len(shape)).tolist())
        expected = _dense_count(shape, boundary, solid, spacing)
        assert _count(shape, letters, solid, spacing) == expected, (letters, solid.astype(int).tolist(), spacing)


@pytest.mark.parametrize("letters", ["PP|NN|NN", "PP|PP|PP", "NT|FF|PP"])
def test_bars_and_rings_in_three_dimensions(letters):
    bar, ring = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    bar[:, 1, 1] = True
    ring[1:4, 1:4, 2], ring[2, 2, 2] = True, False
    for solid in (bar, ring, bar.swapaxes(0, 2), bar | bar.swapaxes(0, 2)):
        assert _count((4, 4, 4), letters, solid) == _dense_count((4, 4, 4), _boundary(letters), solid, (1.0,) * 3)


def test_a_do_nothing_count_in_three_dimensions_depends_on_the_spacing():
    """A 2-D square between two do-nothing sides has a unit eigenvalue that a rectangle has not, times each layer."""
    for spacing in ((1.0, 1.0, 1.0), (1.0, 0.8, 1.3)):
        for letters, shape in (("OO|NN|PP", (3, 3, 2)), ("OI|OT|NN", (2, 2, 4))):
            solid = np.zeros(shape, bool)
            assert _count(shape, letters, solid, spacing) == _dense_count(shape, _boundary(letters), solid, spacing)


def test_a_million_cells():
    boundary = _boundary("PP|TO")
    solid = largest_component(np.random.default_rng(0).random((1000, 1000)) > 0.8, boundary)
    start = time.perf_counter()
    count = count_nonunit_eigenvalues(Grid((1000, 1000)), boundary, solid)
    assert 0 < count < solid.size - solid.sum()
    assert time.perf_counter() - start < 60


def test_what_is_refused():
    cut = np.zeros((4, 4), bool)
    cut[1] = True
    for solid, error, words in (
        (cut, ValueError, "falls into 2 parts"),
        (np.ones((4, 4), bool), ValueError, "some fluid"),
        (np.zeros((4, 3), bool), ValueError, "of shape"),
        (np.zeros((4, 4)), TypeError, "booleans"),
    ):
        with pytest.raises(error, match=words):
            count_nonunit_eigenvalues(Grid((4, 4)), Boundary(), solid)
    with pytest.raises(ValueError, match="two or more"):
        count_nonunit_eigenvalues(Grid((1, 4)), Boundary())
    with pytest.raises(ValueError, match="not a matter of the graph"):
        count_nonunit_eigenvalues(Grid((40, 40, 40)), _boundary("NO|NN|NN"))
    # no fluid at the do-nothing side
    closed = np.zeros((40, 40, 40), bool)
    closed[-1] = True
    assert count_nonunit_eigenvalues(Grid((40, 40, 40)), _boundary("NO|NN|NN"), closed) == 39 * 1600 - 37 * 38**2 - 1
