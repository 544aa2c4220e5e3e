"""The exact solver of two-dimensional boxes: a few fast transforms and one correction on the walls.

With D the scaled gradient of `spectral`, A = B^T B + C^T C holds exactly when every wall is free of shear and every
open side has zero tangential velocity ("base" conditions). All operators are then diagonal in one tensor basis: with
a, b the singular values of the two differences and lam = a^2 + b^2, and with f and g the right sides of momentum and
divergence,

    u = b (b f1 - a f2) / lam^2 + a g / lam,   v = a (a f2 - b f1) / lam^2 + b g / lam,   p = (a f1 + b f2) / lam - g.

a f1 and b f2 are the transforms of the derivatives of the force, which live on the cells. Other sides change only the
diagonal next to the side: +2 / h^2 on the tangential velocity beside a no-slip wall, -2 / h^2 beside a do-nothing side.
These are corrected by the capacitance matrix W^-1 + E^T G E of the traces on such sides (G the base solution operator),
which in mode space has two diagonal blocks, one a pair of sides, coupled by

    C_kl = -a_k b_l phi_k(side) phi_l(side) / lam_kl^2,

and falls into four of half the size where both ends of an axis are alike. Modes that are constant along an open or
periodic axis carry no pressure; there one tridiagonal problem with the true sides is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnm.linalg.factorizations import einsum, matmul
from jaxnm.stokes import spectral
from jaxnm.stokes.grid import Boundary, Grid, Velocity


@dataclass(frozen=True)
class _Axis:
    """What is static of an axis."""

    n: int
    cells: spectral.Basis
    faces: spectral.Basis
    tangential: spectral.Basis
    groups: tuple[tuple[slice, slice], ...]
    """Modes (indices of `cells`) and channels that are coupled among themselves."""
    signs: tuple[float, ...]
    """A channel: +1 for no slip, -1 for do-nothing."""
    symmetric: bool
    constant_on_faces: bool
    """Whether Psi has a constant, its first member."""


def _axis(n: int, boundary: Boundary, axis: int) -> _Axis:
    sign = {"no_slip": 1.0, "inflow": 1.0, "do_nothing": -1.0}
    signs = [sign[kind] for kind in boundary[axis] if kind in sign]
    symmetric = len(signs) == 2 and boundary.is_open(axis)[0] == boundary.is_open(axis)[1]
    groups = [(slice(0, None), slice(0, len(signs)))]
    if symmetric:  # symmetric and antisymmetric modes, each with a channel of its own
        groups = [(slice(0, None, 2), slice(0, 1)), (slice(1, None, 2), slice(1, 2))]
    return _Axis(
        n=n,
        cells=spectral.cell_basis(n, boundary, axis),
        faces=spectral.face_basis(n, boundary, axis),
        tangential=spectral.tangential_basis(n, boundary, axis),
        groups=tuple(groups),
        signs=tuple(signs),
        symmetric=symmetric,
        constant_on_faces=boundary.is_periodic(axis) or all(boundary.is_open(axis)),
    )


@flax.struct.dataclass
class DirectFactor:
    """What the direct solver computes once for a grid: the factored capacitance matrix of the wall traces."""

    grid: Grid
    boundary: Boundary = flax.struct.field(pytree_node=False)
    singular_values: tuple[Array, Array]
    """a [nx] and b [ny]; zero where Phi is constant."""
    channels: tuple[Array, Array]
    """Values of the modes at the sides that are corrected, [nx, sides of x] and [ny, sides of y]."""
    blocks: tuple[Any, ...]
    """One a group of modes."""


@flax.struct.dataclass
class _Block:
    inverse: Array
    """[modes, t, t]: the inverse of the diagonal block that is eliminated."""
    coupling: Array
    """[modes, t, others, s]."""
    factor: Any
    """Inverse of the Schur complement, [others s, others s], or of the blocks [others, s, s] where nothing is
    eliminated; None where there are no others."""


def factorize_box(grid: Grid, boundary: Boundary, dtype: Any) -> DirectFactor:
    """Factor the capacitance matrix: about 2 (n/2)^3 multiplications for each of four blocks of an n x n box."""
    axes = [_axis(n, boundary, axis) for axis, n in enumerate(grid.shape)]
    spacing = [jnp.asarray(h).astype(dtype) for h in grid.spacing]
    a, b = (_singular_values(axis, h) for axis, h in zip(axes, spacing, strict=True))
    cx, cy = (_channels(axis, boundary, number, dtype) for number, axis in enumerate(axes))
    square = _inverse(_sum_of_squares(a, b)) ** 2
    blocks = []
    for x_modes, x_channels in axes[0].groups:
        for y_modes, y_channels in axes[1].groups:
            weight = square[x_modes, y_modes]
            cx_part, cy_part = cx[x_modes, x_channels], cy[y_modes, y_channels]
            a_part, b_part = a[x_modes], b[y_modes]
            x_flexibility = _flexibility(axes[0].signs[x_channels], spacing[0])
            y_flexibility = _flexibility(axes[1].signs[y_channels], spacing[1])
            # u beside the sides of y, one system a mode of x; v beside the sides of x, one a mode of y
            u_block = y_flexibility + einsum("kl,l,ls,lt->kst", weight, b_part**2, cy_part, cy_part)
            v_block = x_flexibility + einsum("kl,k,ks,kt->lst", weight, a_part**2, cx_part, cx_part)
            u_block, v_block = _regular(u_block, a_part), _regular(v_block, b_part)
            coupling = -einsum("kl,k,l,lt,ks->ktls", weight, a_part, b_part, cy_part, cx_part)
            if _eliminates_u(coupling.shape):
                blocks.append(_factor_block(u_block, coupling, v_block))
            else:
                blocks.append(_factor_block(v_block, coupling.transpose(2, 3, 0, 1), u_block))
    return DirectFactor(grid=grid, boundary=boundary, singular_values=(a, b), channels=(cx, cy), blocks=tuple(blocks))


def trace_blocks(grid: Grid, boundary: Boundary, dtype: Any) -> list[tuple[Array, Array, Array]]:
    """For each group of modes the two diagonal blocks of W^-1 + E^T A^-1 E, and Y^T Y with Y = B A^-1 E, A the base.

    The blocks are [modes of x, t, t] (u beside the sides of y) and [modes of y, s, s]; rows of Y^T Y in that order.
    """
    axes = [_axis(n, boundary, axis) for axis, n in enumerate(grid.shape)]
    spacing = [jnp.asarray(h).astype(dtype) for h in grid.spacing]
    a, b = (_singular_values(axis, h) for axis, h in zip(axes, spacing, strict=True))
    cx, cy = (_channels(axis, boundary, number, dtype) for number, axis in enumerate(axes))
    inverse = _inverse(_sum_of_squares(a, b))
    blocks = []
    for x_modes, x_channels in axes[0].groups:
        for y_modes, y_channels in axes[1].groups:
            weight, cx_part, cy_part = inverse[x_modes, y_modes], cx[x_modes, x_channels], cy[y_modes, y_channels]
            a_part, b_part = a[x_modes], b[y_modes]
            u_block = _flexibility(axes[1].signs[y_channels], spacing[1])
            u_block = u_block + einsum("kl,ls,lt->kst", weight, cy_part, cy_part)
            v_block = _flexibility(axes[0].signs[x_channels], spacing[0])
            v_block = v_block + einsum("kl,ks,kt->lst", weight, cx_part, cx_part)
            u_block, v_block = _regular(u_block, a_part), _regular(v_block, b_part)
            blocks.append((u_block, v_block, _squares(weight, a_part, b_part, cx_part, cy_part)))
    return blocks


def _squares(weight: Array, a: Array, b: Array, cx: Array, cy: Array) -> Array:
    """Y^T Y on the traces (k, t) of u, then (l, s) of v."""
    square = weight**2
    first = einsum("kl,k,ls,lt->kst", square, a**2, cy, cy)
    second = einsum("kl,l,ks,kt->lst", square, b**2, cx, cx)
    both = einsum("kl,k,l,lt,ks->ktls", square, a, b, cy, cx)
    (m, t, _), (n, s, _) = first.shape, second.shape
    spread = lambda block: einsum("kst,kj->ksjt", block, jnp.eye(block.shape[0], dtype=block.dtype))
    rows = both.reshape(m * t, n * s)
    return jnp.block([[spread(first).reshape(m * t, m * t), rows], [rows.T, spread(second).reshape(n * s, n * s)]])


def solve_box(factor: DirectFactor, force: Velocity, divergence: Array) -> tuple[Velocity, Array]:
    """(w, p) with A w + B^T p = force and B w = divergence; p of zero mean where that is free."""
    grid, boundary = factor.grid, factor.boundary
    axes = [_axis(n, boundary, axis) for axis, n in enumerate(grid.shape)]
    (a, b), (cx, cy) = factor.singular_values, factor.channels
    dtype = force.u.dtype
    hx, hy = (jnp.asarray(h).astype(dtype) for h in grid.spacing)
    mx, my = (spectral.root_mass(n, boundary, axis, force.u) for axis, n in enumerate(grid.shape))
    f1, f2 = force.u / mx, force.v / my
    bases = axes[0].cells, axes[1].cells
    to_modes = lambda cells: spectral.analyse_cells(cells, bases)
    # a f1 and b f2, from the derivatives: nothing but cells is transformed
    along_x = to_modes(spectral.slope_adjoint(f1, axes[0].n, boundary, 0, hx))
    along_y = to_modes(spectral.slope_adjoint(f2, axes[1].n, boundary, 1, hy))
    along_x, along_y = jax.lax.optimization_barrier((along_x, along_y))
    column, row = a[:, None], b[None]
    inverse = _inverse(column**2 + row**2)
    square = inverse**2
    u_modes = (row**2 * _inverse(column) * along_x - column * along_y) * square
    v_modes = (column**2 * _inverse(row) * along_y - row * along_x) * square
    pressure_modes = (along_x + along_y) * inverse
    # mostly zero, and then its transform is not computed
    g = jax.lax.cond(jnp.any(divergence != 0), to_modes, jnp.zeros_like, divergence)
    u_modes, v_modes = u_modes + column * inverse * g, v_modes + row * inverse * g
    pressure_modes = pressure_modes - g
    if factor.blocks:
        on_y_sides, on_x_sides = matmul(u_modes, cy), matmul(v_modes.T, cx)
        for_u, for_v = _solve_traces(factor, axes, on_y_sides, on_x_sides)
        change_u, change_v = _outer(for_u, cy), _outer(cx, for_v)
        vorticity = (row * change_u - column * change_v) * square
        u_modes, v_modes = u_modes - row * vorticity, v_modes + column * vorticity
        pressure_modes = pressure_modes - (column * change_u + row * change_v) * inverse
    # kept apart: the transforms read each number several times, and XLA would compute it again for each
    u_modes, v_modes, pressure_modes = jax.lax.optimization_barrier((u_modes, v_modes, pressure_modes))
    u = spectral.synthesise_faces(u_modes, bases, axes[0].faces, 0)
    v = spectral.synthesise_faces(v_modes, bases, axes[1].faces, 1)
    pressure = spectral.synthesise_cells(pressure_modes, bases)
    if axes[0].constant_on_faces:
        u = u + _uniform_flow(f1, 0, axes, hy)
    if axes[1].constant_on_faces:
        v = v + _uniform_flow(f2, 1, axes, hx)
    return Velocity(u / mx, v / my), pressure


def _singular_values(axis: _Axis, spacing: Array) -> Array:
    sign = -1.0 if axis.cells.kind == "cosine" else 1.0
    return jnp.asarray(sign * spectral.frequencies(axis.cells), spacing.dtype) / spacing


def _channels(axis: _Axis, boundary: Boundary, number: int, dtype: Any) -> Array:
    """[n, channels]: the modes at the cells beside the sides that are corrected."""
    corrected = [i for i, kind in enumerate(boundary[number]) if kind in ("no_slip", "inflow", "do_nothing")]
    ends = np.zeros((axis.n, len(corrected)))
    for channel, i in enumerate(corrected):
        ends[-1 if i else 0, channel] = 1
    if axis.symmetric:
        ends = ends @ np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    if not corrected:
        return jnp.zeros((axis.n, 0), dtype)
    return axis.cells.analyse(jnp.asarray(ends, dtype), 0)


def _outer(left: Array, right: Array) -> Array:
    """The product `left @ right.T` over the few channels, term by term, so that it needs no array of its own."""
    terms = (left[:, i, None] * right[None, :, i] for i in range(left.shape[1]))
    return sum(terms, jnp.zeros((1, 1), left.dtype))


def _sum_of_squares(a: Array, b: Array) -> Array:
    return a[:, None] ** 2 + b[None] ** 2


def _inverse(x: Array) -> Array:
    """1 / x, and 0 for 0."""
    return jnp.where(x == 0, jnp.zeros_like(x), 1 / jnp.where(x == 0, jnp.ones_like(x), x))


def _flexibility(signs: Sequence[float], spacing: Array) -> Array:
    """W^-1 [1, t, t]."""
    return (jnp.diag(jnp.asarray(signs, spacing.dtype)) * (spacing**2 / 2))[None]


def _regular(block: Array, singular_values: Array) -> Array:
    """Modes without a slope have no trace; their block, zero up to rounding beside do-nothing sides, is replaced."""
    identity = jnp.eye(block.shape[-1], dtype=block.dtype)[None]
    return jnp.where((singular_values == 0)[:, None, None], identity, block)


def _eliminates_u(shape: tuple[int, ...]) -> bool:
    return shape[0] * shape[1] >= shape[2] * shape[3]


def _factor_block(first: Array, coupling: Array, second: Array) -> _Block:
    """Eliminate the blocks `first` [k, t, t], factor what remains on `second` [l, s, s]."""
    modes, t, others, s = coupling.shape
    inverse = jnp.linalg.inv(first) if t > 1 else 1 / first
    if others * s == 0 or t == 0:
        remaining = None if others * s == 0 else (jnp.linalg.inv(second) if s > 1 else 1 / second)
        return _Block(inverse, coupling, remaining)
    left = einsum("ktu,kuls->ktls", inverse, coupling).reshape(modes * t, others * s)
    complement = -matmul(coupling.reshape(modes * t, others * s).T, left)
    positions = jnp.arange(others)
    blocked = complement.reshape(others, s, others, s)
    blocked = blocked.at[positions, :, positions, :].add(second)
    # its inverse: a product reads it once and runs on all cores, two triangular solutions do neither
    return _Block(inverse, coupling, jnp.linalg.inv(blocked.reshape(others * s, others * s)))


def _solve_block(block: _Block, first: Array, second: Array) -> tuple[Array, Array]:
    """`first` [k, t] and `second` [l, s] to the solution of both."""
    half = einsum("ktu,ku->kt", block.inverse, first)
    if second.size == 0:
        return half, second
    if first.size == 0:
        return first, einsum("lst,lt->ls", block.factor, second)
    right = second - einsum("ktls,kt->ls", block.coupling, half)
    others = matmul(block.factor, right.reshape(-1)).reshape(second.shape)
    rest = first - einsum("ktls,ls->kt", block.coupling, others)
    return einsum("ktu,ku->kt", block.inverse, rest), others


def _solve_traces(factor: DirectFactor, axes: Sequence[_Axis], for_u: Array, for_v: Array) -> tuple[Array, Array]:
    """Forces on the sides, [nx, channels of y] and [ny, channels of x], from the traces of the base solution."""
    blocks = iter(factor.blocks)
    u, v = jnp.zeros_like(for_u), jnp.zeros_like(for_v)
    for x_modes, x_channels in axes[0].groups:
        for y_modes, y_channels in axes[1].groups:
            block = next(blocks)
            parts = for_u[x_modes, y_channels], for_v[y_modes, x_channels]
            shape = (*parts[0].shape, *parts[1].shape)
            if _eliminates_u(shape):
                first, second = _solve_block(block, *parts)
            else:
                second, first = _solve_block(block, *parts[::-1])
            u = u.at[x_modes, y_channels].set(first)
            v = v.at[y_modes, x_channels].set(second)
    return u, v


def _uniform_flow(force: Array, number: int, axes: Sequence[_Axis], spacing: Array) -> Array:
    """Flow that is constant along the axis `number`: a tridiagonal problem across it, diagonal in its own basis."""
    across = 1 - number
    n = axes[number].n
    count = force.shape[number]
    constant = np.full(count, np.sqrt(1 / n))
    if count == n + 1:  # half control volumes at both ends
        constant[[0, -1]] *= np.sqrt(0.5)
    constant = jnp.asarray(constant, force.dtype)
    mean = matmul(constant, force) if number == 0 else matmul(force, constant)
    basis = axes[across].tangential
    eigenvalues = jnp.asarray(spectral.frequencies(basis) ** 2, force.dtype) / spacing**2
    flow = basis.synthesise(basis.analyse(mean, 0) * _inverse(eigenvalues), 0)
    return constant[:, None] * flow[None] if number == 0 else flow[:, None] * constant[None]
