"""One axis at a time: the bases in which differences are diagonal, and the inverse of the Laplacian of a box.

Between cells and faces of one axis the difference quotient D (its adjoint is minus the divergence) has the singular
value decomposition `D = Psi diag(a) Phi^T` with orthonormal Phi on the cells and Psi on the faces, both fast:

    walls at both ends        Phi cosines, type 2      Psi sines, type 1
    open at both ends         Phi sines, type 2        Psi cosines, type 1
    wall below, open above    Phi cosines, type 4      Psi sines, type 3
    open below, wall above    Phi sines, type 4        Psi cosines, type 3
    periodic                  Phi Hartley              Psi Hartley, rotated by half a step

Faces of open sides have half a control volume; all of this holds in the variables M^{1/2} u, in which D stands for
M^{-1/2} B^T. Everything stays real.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.linalg.transforms import dct, dst, hartley, idct, idst
from jaxnm.linalg.transforms_nd import transform_pair
from jaxnm.stokes.grid import REFLECTED, Boundary, Velocity
from jaxnm.stokes.operators import StokesOperators, at_open_side, beside

# Up to this many points a product with the dense matrix of the transform beats the FFT.
_LARGEST_PRODUCT = 64


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis on the n cells of an axis, or on its unknown faces, and the angle of each member."""

    kind: Literal["cosine", "sine", "hartley", "rotated hartley"]
    type: int
    angles: tuple[float, ...]
    """theta, in the order of the coefficients: the second difference multiplies by 4 sin^2(theta / 2)."""

    def analyse(self, x: Array, axis: int) -> Array:
        """Coefficients along an axis."""
        method = "matmul" if len(self.angles) <= _LARGEST_PRODUCT else "fft"
        if self.kind == "cosine":
            return dct(x, self.type, axis=axis, norm="ortho", method=method)
        if self.kind == "sine":
            return dst(x, self.type, axis=axis, norm="ortho", method=method)
        spectrum = hartley(x, axis=axis, norm="ortho", method=method)
        return spectrum if self.kind == "hartley" else self._rotate(spectrum, axis, 1)

    def synthesise(self, x: Array, axis: int) -> Array:
        """The inverse of `analyse`, which is its adjoint."""
        method = "matmul" if len(self.angles) <= _LARGEST_PRODUCT else "fft"
        if self.kind == "cosine":
            return idct(x, self.type, axis=axis, norm="ortho", method=method)
        if self.kind == "sine":
            return idst(x, self.type, axis=axis, norm="ortho", method=method)
        spectrum = x if self.kind == "hartley" else self._rotate(x, axis, -1)
        return hartley(spectrum, axis=axis, norm="ortho", method=method)

    def _rotate(self, x: Array, axis: int, direction: int) -> Array:
        """sin(theta / 2) x_k + cos(theta / 2) x_{-k}, or its transpose."""
        half = np.asarray(self.angles) / 2
        reflected = jnp.roll(jnp.flip(x, axis), 1, axis)
        cosine = np.cos(half) if direction > 0 else np.roll(np.cos(half)[::-1], 1)
        line = lambda values: _line(values, axis, x)
        return line(np.sin(half)) * x + line(cosine) * reflected


def frequencies(basis: Basis) -> np.ndarray:
    """2 sin(theta / 2): the difference quotient times the spacing, without its sign."""
    return 2 * np.sin(np.asarray(basis.angles) / 2)


def cell_basis(n: int, boundary: Boundary, axis: int) -> Basis:
    """Phi."""
    low, high = boundary.is_open(axis)
    return Basis("hartley", 0, _circle(n)) if boundary.is_periodic(axis) else _interval(n, low, high)


def face_basis(n: int, boundary: Boundary, axis: int) -> Basis:
    """Psi, on the unknown faces."""
    if boundary.is_periodic(axis):
        return Basis("rotated hartley", 0, _circle(n))
    low, high = boundary.is_open(axis)
    if low and high:
        return Basis("cosine", 1, _angles(n, range(n + 1)))
    if not low and not high:
        return Basis("sine", 1, _angles(n, range(1, n)))
    return Basis("cosine" if low else "sine", 3, _angles(n, np.arange(n) + 0.5))


def tangential_basis(n: int, boundary: Boundary, axis: int) -> Basis:
    """Eigenvectors of the second difference of a tangential velocity along an axis, on its n cells."""
    if boundary.is_periodic(axis):
        return Basis("hartley", 0, _circle(n))
    lower, upper = (kind in REFLECTED for kind in boundary[axis])
    return _interval(n, lower, upper)


def _interval(n: int, zero_below: bool, zero_above: bool) -> Basis:
    """Values in the middle of n intervals, zero or of zero slope at each end."""
    if zero_below == zero_above:
        return Basis("sine" if zero_below else "cosine", 2, _angles(n, np.arange(n) + int(zero_below)))
    return Basis("sine" if zero_below else "cosine", 4, _angles(n, np.arange(n) + 0.5))


def _angles(n: int, multiples: object) -> tuple[float, ...]:
    return tuple(np.pi * np.asarray(multiples, float) / n)


def _circle(n: int) -> tuple[float, ...]:
    return tuple(2 * np.pi * np.arange(n) / n)


def _line(values: np.ndarray, axis: int, like: Array) -> Array:
    """A vector along one axis, to broadcast against `like` and of its dtype."""
    return jnp.asarray(values, like.dtype).reshape([-1 if a == axis % like.ndim else 1 for a in range(like.ndim)])


def analyse_cells(cells: Array, bases: tuple[Basis, Basis]) -> Array:
    """Coefficients of a field on the cells of two axes."""
    if _is_pair(bases):
        return transform_pair(cells, (bases[0].kind, bases[1].kind), inverse=False)
    return bases[0].analyse(bases[1].analyse(cells, 1), 0)


def synthesise_cells(modes: Array, bases: tuple[Basis, Basis]) -> Array:
    """The inverse of `analyse_cells`."""
    if _is_pair(bases):
        return transform_pair(modes, (bases[0].kind, bases[1].kind), inverse=True)
    return bases[0].synthesise(bases[1].synthesise(modes, 1), 0)


def synthesise_faces(modes: Array, bases: tuple[Basis, Basis], faces: Basis, axis: int) -> Array:
    """A velocity across an axis from its coefficients in the order of the modes of the cells.

    Between walls the sine at a face is the mean of its values half a step beside it over cos(theta / 2), so that all
    fast transforms are of one kind. The division costs no accuracy where the coefficients fall off as a velocity's do.
    """
    n = len(bases[axis].angles)
    if not (_is_pair(bases) and faces.kind == "sine" and faces.type == 1):
        if len(faces.angles) != n:  # a constant on the cells or on the faces has no counterpart
            ends = [(0, 0), (0, 0)]
            ends[axis] = (1, 0)
            grows = len(faces.angles) > n
            modes = jnp.pad(modes, ends) if grows else jax.lax.slice_in_dim(modes, 1, n, axis=axis)
        other = bases[1 - axis].synthesise(modes, 1 - axis)
        return faces.synthesise(other, axis)
    half = 1 / np.cos(np.asarray(bases[axis].angles) / 2)
    scaled = modes * _line(half, axis, modes)
    # sines of type 2 begin with the mode that cosines have second, and end with one that is not needed
    shifted = jnp.roll(scaled, -1, axis) * _line(np.arange(n) < n - 1, axis, modes)
    kinds = ("sine", bases[1].kind) if axis == 0 else (bases[0].kind, "sine")
    values = transform_pair(shifted, kinds, inverse=True)
    lower, upper = (jax.lax.slice_in_dim(values, i, n - 1 + i, axis=axis) for i in (0, 1))
    return (lower + upper) / 2


def _is_pair(bases: tuple[Basis, Basis]) -> bool:
    """Whether both axes have transforms of type 2, long enough for an FFT."""
    return all(basis.type == 2 and len(basis.angles) > _LARGEST_PRODUCT for basis in bases)


def root_mass(n: int, boundary: Boundary, axis: int, like: Array) -> Array:
    """M^{1/2} along an axis, to broadcast."""
    lower, upper = at_open_side(n, boundary, axis)
    return _line(np.where(lower | upper, np.sqrt(0.5), 1.0), axis, like)


def slope(cells: Array, boundary: Boundary, axis: int, spacing: Array) -> Array:
    """M^{-1/2} B^T along one axis: from cells to unknown faces."""
    jump = beside(cells, boundary, axis, 1) - beside(cells, boundary, axis, 0)
    n = cells.shape[axis]
    return jump / (spacing * root_mass(n, boundary, axis, cells))


def slope_adjoint(faces: Array, n: int, boundary: Boundary, axis: int, spacing: Array) -> Array:
    """The adjoint of `slope`: from unknown faces to n cells."""
    scaled = faces / (spacing * root_mass(n, boundary, axis, faces))
    if boundary.is_periodic(axis):
        return scaled - jnp.roll(scaled, -1, axis)
    ends = tuple(0 if opened else 1 for opened in boundary.is_open(axis))
    full = jnp.pad(scaled, [ends if a == axis else (0, 0) for a in range(faces.ndim)])
    first, second = (jax.lax.slice_in_dim(full, start, start + n, axis=axis) for start in (0, 1))
    return first - second


def solve_laplacian(operators: StokesOperators, right: Velocity) -> Velocity:
    """A^-1 on a box without drag, by fast diagonalization; the pseudo-inverse where A is singular."""
    grid, boundary = operators.grid, operators.boundary
    solutions = []
    for c, f in enumerate(right.components):
        weight = root_mass(grid.shape[c], boundary, c, f)
        bases = [
            face_basis(n, boundary, axis) if axis == c else tangential_basis(n, boundary, axis)
            for axis, n in enumerate(grid.shape)
        ]
        x, eigenvalue = f / weight, jnp.zeros((), f.dtype)
        for axis, basis in enumerate(bases):
            x = basis.analyse(x, axis)
            inverse = 1 / jnp.asarray(grid.spacing[axis]).astype(f.dtype)
            eigenvalue = eigenvalue + (_line(frequencies(basis), axis, f) * inverse) ** 2
        null = eigenvalue == 0
        x = jnp.where(null, jnp.zeros_like(x), x / jnp.where(null, jnp.ones_like(eigenvalue), eigenvalue))
        for axis, basis in enumerate(bases):
            x = basis.synthesise(x, axis)
        solutions.append(x / weight)
    return Velocity(*solutions)
