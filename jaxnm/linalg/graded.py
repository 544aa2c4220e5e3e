"""The eigenvectors of the second difference on cells of different sizes, and separable systems solved with them.

On equal cells the vectors are those of `jaxnm.linalg.transforms`. Elsewhere there is no fast transform: the basis is a
dense matrix from one symmetric eigenvalue problem, applied as one product along an axis. With control volumes M and
the stiffness K of fluxes between neighbours (a difference of values over their distance) the second difference is
M^-1 K, which stands for minus the second derivative, and M^-1/2 K M^-1/2 is symmetric and tridiagonal.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxnm import arguments
from jaxnm.linalg.factorizations import eigh, einsum

End = Literal["fixed", "free"]
Place = Literal["cells", "faces"]


@flax.struct.dataclass
class GradedBasis:
    """Eigenvectors of a second difference along an axis, with m unknowns."""

    eigenvalues: Float[Array, "m"]
    """Ascending; the first is exactly zero where constants are in the null space: no fixed end, or periodic."""
    vectors: Float[Array, "m m"]
    """In columns, of any sign: `sqrt(volumes)[:, None] * vectors` is an orthogonal matrix."""
    volumes: Float[Array, "m"]
    """Control volumes of the unknowns."""

    def analyse(self, x: Num[ArrayLike, "..."], axis: int = -1) -> Float[Array, "..."]:
        """Coefficients in the basis along an axis, in the order of the eigenvalues: one product with a matrix.

        Args:
          x: values at the unknowns, any shape with m numbers along `axis`.
          axis: of the lines (static).

        Returns:
          of the shape of x. `einsum("j,j...->...", volumes, x**2)` is the sum of their squares, for axis 0.

        Raises:
          ValueError: an axis that x has not, or lines that are not of m numbers. TypeError: integer or complex x.
        """
        return _along("analyse", self, x, axis)

    def synthesise(self, coefficients: Num[ArrayLike, "..."], axis: int = -1) -> Float[Array, "..."]:
        """Values at the unknowns from the coefficients along an axis: the inverse of `analyse`.

        Args:
          coefficients: any shape with m numbers along `axis`.
          axis: of the lines (static).

        Returns:
          of the shape of the coefficients.

        Raises:
          ValueError, TypeError: as `analyse`.
        """
        return _along("synthesise", self, coefficients, axis)


def graded_basis(
    sizes: Num[ArrayLike, "n"],
    ends: tuple[End, End] | Literal["periodic"] = ("fixed", "fixed"),
    *,
    at: Place = "cells",
) -> GradedBasis:
    """Eigenvectors of the second difference on an interval or a circle that is cut into cells of any sizes.

    Minus the second difference of u at an unknown is what flows out, over its control volume. Between neighbours the
    flux is their difference over their distance. Unknowns at the cells lie in the centres; at a fixed end u is zero
    half a cell beyond the last centre, at a free end nothing flows. Unknowns at the faces lie between the cells; their
    distances are the sizes of the cells, their volumes half the sum of the two; u is zero on a face at a fixed end, and
    unknown on one at a free end, with half a cell for a volume.

    Equal cells of size h give the closed forms `4 sin(theta / 2)^2 / h^2` and the vectors of `dct` and `dst` with norm
    "ortho", over sqrt(h) and up to sign: at the cells type 2 (sine for fixed ends, cosine for free ones) or type 4
    (fixed and free), at the faces sines of type 1 for fixed ends; periodic ones span the spaces of `hartley`.

    Args:
      sizes: [n] of the cells, positive, float32 or float64.
      ends: a pair of "fixed" and "free", the lower one first, or "periodic" (static).
      at: "cells", or "faces" for the faces of the cells (static).

    Returns:
      `GradedBasis(eigenvalues [m], vectors [m, m], volumes [m])`; m = n at the cells and where periodic, else at the
      faces n - 1 and one more for each free end. All NaN where a size is not positive or not finite.

    Raises:
      ValueError: other ends, another place, sizes that are not of one axis or leave no unknown. TypeError: a dtype
      other than float32 and float64.

    Cost: one dense eigenvalue problem, O(m^3); `analyse` and `synthesise` m^2 multiplications a line. Errors of the
    eigenvalues are a small multiple of eps times the largest of them, about 4 over the square of the smallest cell.
    Differentiable in the sizes where the eigenvalues are distinct; between ends they always are. Periodic ones come in
    pairs that are double on equal cells and close on slowly varying ones: the derivatives of vectors are not finite
    where they are double.

    Example:
      >>> basis = graded_basis(jnp.array([1.0, 1.0]), ("free", "free"))
      >>> basis.eigenvalues.round(5)
      Array([0., 2.], dtype=float32)
      >>> basis.synthesise(basis.analyse(jnp.array([1.0, 2.0]))).round(5)
      Array([1., 2.], dtype=float32)
    """
    (sizes,) = arguments.to_arrays("graded_basis", sizes=sizes)
    arguments.check_real("graded_basis", "sizes", sizes)
    if sizes.dtype not in (jnp.float32, jnp.float64):
        got, remedy = f"of dtype {sizes.dtype}", "pass sizes.astype(jnp.float32)"
        arguments.refuse("graded_basis", "sizes", got, "float32 or float64", remedy, error=TypeError)
    pair = isinstance(ends, tuple) and len(ends) == 2 and all(end in ("fixed", "free") for end in ends)
    if not (pair or ends == "periodic"):
        wanted = "a pair of 'fixed' and 'free', or 'periodic'"
        arguments.refuse("graded_basis", "ends", repr(ends), wanted, "name the lower end first")
    if at not in ("cells", "faces"):
        arguments.refuse("graded_basis", "at", repr(at), "'cells' or 'faces'", "see its docstring")
    fewest = 2 if at == "faces" and ends == ("fixed", "fixed") else 1
    expected = f"[n] with n >= {fewest}"
    arguments.check_shape(
        "graded_basis", "sizes", sizes, expected, lambda shape: len(shape) == 1 and shape[0] >= fewest
    )
    return _graded_basis(sizes, ends, at)


def solve_separable(
    bases: Sequence[GradedBasis], right: Num[ArrayLike, "..."], shift: Num[ArrayLike, ""] = 0.0
) -> Float[Array, "..."]:
    """Solve `(D_1 + D_2 [+ D_3] + shift) x = right` by fast diagonalization, D_a the second difference along axis a.

    D_a is minus the second derivative along the axis, as in `graded_basis`: with shift 0 this is Poisson's equation
    `-lap x = right` with zero data on fixed ends.

    Args:
      bases: two or three of them, one an axis of `right`.
      right: [m_1, m_2] or [m_1, m_2, m_3], values at the unknowns.
      shift: a number, positive for the steps of a diffusion; a negative one makes the system indefinite.

    Returns:
      x, of the shape of right. Where an eigenvalue is exactly zero (shift 0 and no fixed end) right is projected onto
      the range and x has zero mean, weighted with the volumes. All NaN where right, shift or a basis is not finite.

    Raises:
      ValueError: another number of bases, a shape that does not fit, or a Python shift that is not finite. TypeError:
      something that is no `GradedBasis`, integer or complex data.

    Cost: four products with matrices in two dimensions, six in three: O(m) multiplications an unknown and axis.
    Differentiable in right everywhere, in shift where no eigenvalue is zero, in the sizes of the cells as
    `graded_basis` is; an axis whose sizes are not differentiated may have double eigenvalues.

    Source: R. E. Lynch, J. R. Rice, D. H. Thomas, Numer. Math. 6 (1964), 185-199.

    Example:
      >>> basis = graded_basis(jnp.array([0.5, 0.5]))
      >>> solve_separable((basis, basis), jnp.ones((2, 2))).round(5)
      Array([[0.0625, 0.0625],
             [0.0625, 0.0625]], dtype=float32)
    """
    bases = tuple(bases) if isinstance(bases, Sequence) else bases
    if not isinstance(bases, tuple) or not all(isinstance(basis, GradedBasis) for basis in bases):
        got = f"of type {type(bases).__name__}" if not isinstance(bases, tuple) else "no tuple of GradedBasis"
        remedy = "make each with graded_basis(...)"
        arguments.refuse("solve_separable", "bases", got, "a tuple of GradedBasis", remedy, error=TypeError)
    if len(bases) not in (2, 3):
        arguments.refuse("solve_separable", "bases", f"of length {len(bases)}", "two or three", "give one an axis")
    named = {f"bases[{axis}].vectors": basis.vectors for axis, basis in enumerate(bases)}
    arguments.check_number("solve_separable", "shift", shift, "finite", lambda value: True, "pass 0.0 for none")
    right, shift, *_ = arguments.to_arrays("solve_separable", right=right, shift=shift, **named)
    arguments.check_real("solve_separable", "right", right)
    arguments.check_real("solve_separable", "shift", shift)
    unknowns = tuple(basis.eigenvalues.shape[-1] for basis in bases)
    arguments.check_shape("solve_separable", "right", right, f"{unknowns}", lambda shape: shape == unknowns)
    arguments.check_shape("solve_separable", "shift", shift, "()", lambda shape: shape == ())
    return _solve_separable(jax.tree.map(lambda leaf: leaf.astype(right.dtype), bases), right, shift)


@partial(jax.jit, static_argnums=(1, 2))
def _graded_basis(sizes: Array, ends: tuple[End, End] | Literal["periodic"], at: Place) -> GradedBasis:
    # NaN throughout where a size is bad; eigh is guarded against it
    sizes = arguments.nan_unless(sizes, jnp.all(jnp.isfinite(sizes) & (sizes > 0)), 1)
    volumes, couplings = _geometry(sizes, ends, at)
    root = jnp.sqrt(volumes)
    between = couplings[1:-1] / (root[:-1] * root[1:])
    symmetric = jnp.diag((couplings[:-1] + couplings[1:]) / volumes) - jnp.diag(between, 1) - jnp.diag(between, -1)
    if ends == "periodic":
        around = couplings[0] / (root[0] * root[-1])
        symmetric = symmetric.at[0, -1].add(-around).at[-1, 0].add(-around)
    values, vectors = eigh(symmetric)
    if ends == "periodic" or ends == ("free", "free"):
        # the constant is known exactly; the others are orthogonal to it but for rounding of the first eigenvector
        constant = root / jnp.sqrt(jnp.sum(volumes))
        others = vectors[:, 1:]
        others = others - constant[:, None] * einsum("j,jk->k", constant, others)[None]
        values = jnp.concatenate([0 * values[:1], values[1:]])
        vectors = jnp.concatenate([constant[:, None], others], 1)
    return GradedBasis(values, vectors / root[:, None], volumes)


def _geometry(sizes: Array, ends: tuple[End, End] | Literal["periodic"], at: Place) -> tuple[Array, Array]:
    """Volumes [m] of the unknowns, and couplings [m + 1] (one over a distance) below each and above the last."""
    if ends == "periodic":
        middle = (sizes + jnp.roll(sizes, 1)) / 2
        volumes, distances = (sizes, middle) if at == "cells" else (middle, jnp.roll(sizes, 1))
        return volumes, 1 / jnp.concatenate([distances, distances[:1]])
    halves = jnp.concatenate([sizes[:1], sizes[:-1] + sizes[1:], sizes[-1:]]) / 2
    none = jnp.zeros_like(sizes[:1])
    lower, upper = (end == "free" for end in ends)
    if at == "cells":
        inverse = 1 / halves
        return sizes, jnp.concatenate([none if lower else inverse[:1], inverse[1:-1], none if upper else inverse[-1:]])
    unknown = slice(0 if lower else 1, None if upper else -1)
    couplings = jnp.concatenate([none, 1 / sizes, none])
    return halves[unknown], couplings[0 if lower else 1 : None if upper else -1]


def _along(name: str, basis: GradedBasis, x: ArrayLike, axis: int) -> Array:
    x, vectors, volumes = arguments.to_arrays(name, x=x, vectors=basis.vectors, volumes=basis.volumes)
    arguments.check_real(name, "x", x)
    arguments.check_axis(name, "axis", axis, x.ndim)
    m = volumes.shape[-1]
    arguments.check_shape(name, "x", x, f"{m} along axis {axis}", lambda shape: shape[axis] == m)
    return _product(x, vectors, volumes if name == "analyse" else None, int(axis) % x.ndim)


@partial(jax.jit, static_argnums=3)
def _product(x: Array, vectors: Array, volumes: Array | None, axis: int) -> Array:
    """Along one axis, V x, or V^T M x where volumes are given."""
    lines = jnp.moveaxis(x, axis, -1)
    if volumes is None:
        lines = einsum("...k,jk->...j", lines, vectors)
    else:
        lines = einsum("...j,jk->...k", lines, volumes[:, None] * vectors)
    return jnp.moveaxis(lines, -1, axis)


@jax.jit
def _solve_separable(bases: tuple[GradedBasis, ...], right: Array, shift: Array) -> Array:
    good = jnp.all(jnp.isfinite(right)) & jnp.isfinite(shift)
    x, eigenvalue = right, shift
    for axis, basis in enumerate(bases):
        x = _product(x, basis.vectors, basis.volumes, axis)
        eigenvalue = eigenvalue + basis.eigenvalues.reshape([-1 if a == axis else 1 for a in range(right.ndim)])
    null = eigenvalue == 0
    x = jnp.where(null, jnp.zeros_like(x), x / jnp.where(null, jnp.ones_like(eigenvalue), eigenvalue))
    for axis, basis in enumerate(bases):
        x = _product(x, basis.vectors, None, axis)
    return arguments.nan_unless(x, good, right.ndim)
