"""How many eigenvalues of the pressure Schur complement S = nu B A^-1 B^T are not one, by counting on graphs.

Unit eigenvectors. With H = A - B^T B, `S p = p` holds if and only if p = B u with `H u = 0` (take u = nu A^-1 B^T p),
and B is one to one on ker H up to ker A, on which it vanishes. Hence, H definite or not, on N fluid cells,

    K = N - zeros - dim ker H + dim ker A,      zeros = 1 without an open side, else 0.

Local forms. Times the size of their faces, velocities become circulations along edges between neighbouring cells, and
H becomes a sum of quadratic forms, one for each edge of the grid (vertex in 2-D), in the at most four faces around
it: the square of the curl (four fluid cells, or three beside a re-entrant corner), 2 a^2 (a flat wall), w^2/2 + 2 w c
+ 2 c^2 (outflow; c the tangential face, w the difference of the two half-mass ones), w^2/2 + 2 w c (do-nothing), and
at the rims of open sides a^2 (wall or solid), (a + c)^2 (outflow, outflow), a^2 + 2 a c (do-nothing, outflow), 2 a c
(do-nothing twice), 0 (free slip). Those of do-nothing sides are not definite, the others are.

The graph. Let ker L be the u for which all forms vanish with all their arguments: u is closed (no curl) on the
complex X of cells, faces and full edges, zero on a graph Y, and constant on each patch of do-nothing faces. Edges of
Y: faces beside flat walls and do-nothing sides; the pair of cells flanking a re-entrant corner; neighbours on an
outflow side, whose faces are vertices too. Closed fields that vanish on Y are differences of potentials constant on
the components of Y, and, around loops, the part of H^1(X) that vanishes on the cycles of Y:

    dim ker L = components(Y) - 1 + dim H_1(X) / im H_1(Y) + patches not held to zero at their rims.

A loop in X that bounds in the box (periodic sides joined) is homologous to one on the surface of the solid, since the
chain that it bounds splits there, and those lie in Y. So the quotient is that of the winding numbers around the
periodic axes, rank W(X) - rank W(Y), in two and in three dimensions, however the domain is knotted.

Do-nothing. The rest of ker H are the u with Q L u = t, t != 0, L^T t = 0: null vectors of t^T Q^-1 t on ker L^T. In
2-D, L^T t = 0 says that t is equal at both ends of each face: a constant a component of the dual graph (the
vorticity), and one for the tangential stress along each patch. Their small integer Gram matrix decides: a square
between two do-nothing sides has one null vector, a rectangle none. In 3-D ker L^T is large and the number is not
topological: it may change with the aspect ratio. There H itself is eliminated modulo a prime, with the grid's
spacing.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Bool

from jaxnm import arguments
from jaxnm.stokes.domain import check_fluid, has_pressure_null_space, has_velocity_null_space
from jaxnm.stokes.grid import Boundary, Grid, as_solid, check_grid

_FLUID, _SOLID, _WALL, _SLIP, _OUTFLOW, _DO_NOTHING, _CORNER = range(7)
_CODES = {"no_slip": _WALL, "inflow": _WALL, "free_slip": _SLIP, "outflow": _OUTFLOW, "do_nothing": _DO_NOTHING}
_AROUND = ((0, 0), (1, 0), (1, 1), (0, 1))  # the cells around an edge, in circular order
_PRIME = 2**31 - 1
_LARGEST_ELIMINATION = 5e9  # unknowns times bandwidth squared, about half a minute


def count_nonunit_eigenvalues(grid: Grid, boundary: Boundary, solid: Bool[ArrayLike, "*cells"] | None = None) -> int:
    """The exact number of eigenvalues of S = nu B A^-1 B^T that are neither one nor the zero of a constant pressure.

    Conjugate gradients on S take at most that many steps and one more; where it is a large share of the cells, S is
    far from the identity. Counted on graphs (see the module), without an eigenvalue or a matrix of the operators.

    Args:
      grid: its shape decides; the spacing matters only in three dimensions with do-nothing sides.
      boundary: the kinds of the sides.
      solid: [*grid.shape] booleans, True in the solid.

    Returns:
      a Python int, multiplicities counted, over the fluid cells. Where A is singular its pseudo-inverse is meant.

    Raises:
      ValueError: fluid that does not hang together, a mask of the wrong shape, an axis of one cell that is not periodic
        (a periodic one is a slab); in three dimensions fluid at a do-nothing side, if the domain is too large to
        eliminate (more than about 14 x 14 x 14 cells, or longer and thinner): no count by graphs exists there.
        TypeError: a mask that is not boolean.

    Cost: seconds for 10^6 cells, on the host; not for traced arguments. In three dimensions with do-nothing sides up
    to a minute, and right but for a chance of about unknowns / 2^31. Not differentiable.

    Example:
      >>> count_nonunit_eigenvalues(Grid((64, 32)), Boundary())
      187
    """
    check_grid("count_nonunit_eigenvalues", grid, boundary)
    mask = np.zeros(grid.shape, bool)
    if solid is not None:
        as_solid("count_nonunit_eigenvalues", solid, grid)
        mask = np.asarray(solid)
        check_fluid("count_nonunit_eigenvalues", mask, boundary)
    domain = _Domain(grid, boundary, mask)
    fluid = int(np.count_nonzero(~mask)) - has_pressure_null_space(grid, boundary, mask)
    fluid += sum(has_velocity_null_space(grid, boundary, mask, None))
    if domain.patches and grid.dim == 3:
        return int(fluid - _nullity_of_h(domain))
    return int(fluid - _dim_ker_l(domain) - (_dim_indefinite(domain) if domain.patches else 0))


class _Domain:
    """The cells with a layer beyond each side: what they are, and a vertex for each cell and each open face."""

    def __init__(self, grid: Grid, boundary: Boundary, solid: np.ndarray) -> None:
        self.grid, self.boundary, self.solid = grid, boundary, solid
        self.cells = np.arange(solid.size).reshape(solid.shape)
        self.sides: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        self.size, self.patches = solid.size, 0
        for axis in range(grid.dim):
            for side, kind in enumerate(boundary[axis]):
                layer = np.take(solid, [-side], axis)
                vertices = np.full(layer.shape, -1)
                if boundary.is_open(axis)[side]:
                    fluid = int(np.count_nonzero(~layer))
                    vertices[~layer] = np.arange(self.size, self.size + fluid)
                    self.size += fluid
                    self.patches += fluid if kind == "do_nothing" else 0
                self.sides[axis, side] = (_CODES.get(kind, _FLUID), vertices)

    def edges(self) -> Iterator["_Edges"]:
        """For each pair of axes, the edges across both."""
        dims, dim, wraps = self.grid.shape, self.grid.dim, self.boundary.is_periodic
        strides = [int(np.prod(np.add(dims, 1)[a + 1 :])) for a in range(dim)]
        count = int(np.prod(np.add(dims, 1)))
        for pair in combinations(range(dim), 2):
            codes, vertices = np.where(self.solid, _SOLID, _FLUID).astype(np.int8), self.cells
            for axis in sorted(pair, key=wraps):  # what repeats comes last, to repeat the layers as well
                if wraps(axis):
                    codes, vertices = (np.concatenate([np.take(x, [-1], axis), x], axis) for x in (codes, vertices))
                    continue
                ends = []
                for side in (0, 1):
                    code, ids = self.sides[axis, side]
                    width = [(0, 0) if a == axis else ((codes.shape[a] - ids.shape[a]) // 2,) * 2 for a in range(dim)]
                    layer = np.pad(np.full(ids.shape, code, np.int8), width, constant_values=_CORNER)
                    ends.append((layer, np.pad(ids, width, constant_values=-1)))
                codes = np.concatenate([ends[0][0], codes, ends[1][0]], axis)
                vertices = np.concatenate([ends[0][1], vertices, ends[1][1]], axis)
            cut = lambda x, steps, pair=pair: x[
                tuple(
                    slice(steps[pair.index(a)], n - 1 + steps[pair.index(a)]) if a in pair else slice(None)
                    for a, n in enumerate(x.shape)
                )
            ]
            around = [cut(codes, steps) for steps in _AROUND]
            here = np.indices(around[0].shape, sparse=True)
            faces = []
            for slot in range(4):
                normal, other = pair if slot % 2 == 0 else pair[::-1]
                at = [(x - (slot in (0, 3))) % dims[a] if a == other else x for a, x in enumerate(here)]
                faces.append(normal * count + sum(x * stride for x, stride in zip(at, strides, strict=True)))
            yield _Edges(pair, around, [cut(vertices, steps) for steps in _AROUND], faces)


class _Edges:
    """The edges across two axes: codes and vertices of the four cells around each, the faces between k and k + 1."""

    def __init__(self, pair: tuple[int, int], codes: list, vertices: list, faces: list) -> None:
        self.pair, self.codes, self.vertices, self.faces = pair, codes, vertices, faces
        self.fluid = [code == _FLUID for code in codes]
        self.opened = [(code == _OUTFLOW) | (code == _DO_NOTHING) for code in codes]
        self.number = np.sum(np.stack(self.fluid), 0, dtype=np.int8)

    def flat(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(k, where cells k and k + 1 are fluid and the other two not, what is opposite)."""
        for k in range(4):
            yield k, self.fluid[k] & self.fluid[_next(k)] & (self.number == 2), self.codes[_next(k, 2)]

    def rims(self) -> Iterator[tuple[int, int, int, np.ndarray, np.ndarray]]:
        """(k, m, n, where cell k alone is fluid and m beside it open, what is in n, the other one beside k)."""
        for k in range(4):
            for m, n in ((_next(k), _next(k, 3)), (_next(k, 3), _next(k))):
                yield k, m, n, self.fluid[k] & ~self.fluid[n] & self.opened[m], self.codes[n]

    def active(self, k: int) -> np.ndarray:
        """Whether the velocity on face k is an unknown."""
        a, b = k, _next(k)
        both = self.fluid[a] & self.fluid[b]
        return both | (self.fluid[a] & self.opened[b]) | (self.opened[a] & self.fluid[b])


def _next(k: int, steps: int = 1) -> int:
    return (k + steps) % 4


# ----------------------------------------------------------------------------------------------- where all forms vanish


def _dim_ker_l(domain: _Domain) -> int:
    dim, periodic, ground = domain.grid.dim, domain.boundary.is_periodic, domain.size
    zero: list[tuple] = []  # edges of Y: two vertices and the periodic axes crossed
    equal: list[tuple] = []  # do-nothing faces of equal velocity, or of none
    full: list[tuple] = []  # edges of X
    for edges in domain.edges():
        vertices, codes = edges.vertices, edges.codes

        def add(where: np.ndarray, m: int, n: int, edges: Any = edges, to: list = zero) -> None:
            at = np.nonzero(where)
            crossed = np.zeros((at[0].size, dim), np.int8)
            for t, axis in enumerate(edges.pair):
                if periodic(axis):
                    crossed[:, axis] = (at[axis] == 0) * (_AROUND[n][t] - _AROUND[m][t])
            to.append((edges.vertices[m][at], edges.vertices[n][at], crossed))

        for k, where, beyond in edges.flat():
            add(where & np.isin(beyond, (_SOLID, _WALL, _DO_NOTHING)), k, _next(k))
            add(where & (beyond == _OUTFLOW), _next(k, 3), _next(k, 2))
            where = where & (beyond == _DO_NOTHING)
            equal.append((vertices[_next(k, 2)][where], vertices[_next(k, 3)][where]))
        for k in range(4):
            a, b = _next(k), _next(k, 3)
            add((edges.number == 3) & ~edges.fluid[_next(k, 2)], a, b)
        for k, m, n, where, beside in edges.rims():
            stops = np.isin(beside, (_SOLID, _WALL, _DO_NOTHING))
            add(where & (codes[m] == _OUTFLOW) & stops, k, m)
            add(where & (codes[m] == _OUTFLOW) & (beside == _OUTFLOW), m, n)
            where = where & (codes[m] == _DO_NOTHING) & (stops | (beside == _OUTFLOW))
            equal.append((vertices[m][where], np.full(np.count_nonzero(where), ground)))
    # X: all faces between fluid cells
    for axis in range(dim):
        both = ~domain.solid & ~np.roll(domain.solid, 1, axis)
        if not periodic(axis):
            both[(slice(None),) * axis + (0,)] = False
        at = np.nonzero(both)
        crossed = np.zeros((at[0].size, dim), np.int8)
        crossed[:, axis] = at[axis] == 0
        full.append((domain.cells[at], np.roll(domain.cells, 1, axis)[at], crossed))
    isolated = int(np.count_nonzero(domain.solid)) + domain.patches  # vertices that are none of X
    components, loops = _windings(domain.size, *_joined(zero))
    result = components - isolated - 1 + _rank(_windings(domain.size, *_joined(full))[1]) - _rank(loops)
    if domain.patches:
        free, _ = _components(ground + 1, *_joined(equal))
        result += free - (ground - domain.patches) - 1
    return result


def _joined(parts: list[tuple]) -> Any:
    return (np.concatenate(column) for column in zip(*parts, strict=True))


def _components(size: int, first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(first.size, np.int8), (first, second)), shape=(size, size))
    return connected_components(graph, directed=False)


def _windings(size: int, first: np.ndarray, second: np.ndarray, crossed: np.ndarray) -> tuple[int, list[dict]]:
    """The number of components, and winding numbers that generate those of all cycles."""
    across = crossed.any(1)
    count, labels = _components(size, first[~across], second[~across])
    quotient = np.column_stack([labels[first[across]], labels[second[across]], crossed[across]])
    parent: dict[int, tuple[int, np.ndarray]] = {}

    def root(vertex: int) -> tuple[int, np.ndarray]:
        path, total = [], np.zeros(crossed.shape[1], int)
        while vertex in parent:
            path.append(vertex)
            vertex, step = parent[vertex]
            total = total + step
        rest = total
        for passed in path:
            step = parent[passed][1]
            parent[passed] = (vertex, rest)
            rest = rest - step
        return vertex, total

    loops = set()
    for a, b, *step in np.unique(quotient, axis=0).tolist():
        (root_a, from_a), (root_b, from_b) = root(a), root(b)
        winding = np.array(step) + from_b - from_a
        if root_a != root_b:
            parent[root_a], count = (root_b, winding), count - 1
        elif winding.any():
            loops.add(tuple(winding.tolist()))
    return count, [dict(enumerate(loop)) for loop in loops]


def percolating_axes(solid: np.ndarray, boundary: Boundary) -> np.ndarray:
    """For each axis whether a path through the fluid leads round the box along it; on the host."""
    cells, parts = np.arange(solid.size).reshape(solid.shape), []
    for axis in range(solid.ndim):
        both = ~solid & ~np.roll(solid, 1, axis)
        if not boundary.is_periodic(axis):
            both[(slice(None),) * axis + (0,)] = False
        at = np.nonzero(both)
        crossed = np.zeros((at[0].size, solid.ndim), np.int8)
        crossed[:, axis] = at[axis] == 0
        parts.append((cells[at], np.roll(cells, 1, axis)[at], crossed))
    loops = _windings(solid.size, *_joined(parts))[1]
    return np.array([any(loop[axis] for loop in loops) for axis in range(solid.ndim)])


def _rank(rows: Iterable[dict[int, int]]) -> int:
    """The rank of a sparse matrix of integers, exactly."""
    pivots: dict[int, dict[int, Fraction]] = {}
    for entries in sorted(rows, key=len):
        row = {column: Fraction(value) for column, value in entries.items() if value}
        while row:
            last = max(row)
            if last not in pivots:
                pivots[last] = row
                break
            factor = row[last] / pivots[last][last]
            for column, value in pivots[last].items():
                row[column] = row.get(column, Fraction(0)) - factor * value
                if not row[column]:
                    del row[column]
    return len(pivots)


# ----------------------------------------------------------------------------------------------------------- do-nothing


def _dim_indefinite(domain: _Domain) -> int:
    """In 2-D, the null vectors of 4 t^T Q^-1 t on ker L^T; velocities on outflow sides count half."""
    (edges,) = domain.edges()
    codes, size = edges.codes, edges.number.size
    here = np.arange(size).reshape(edges.number.shape)  # t of an edge; at its faces on do-nothing sides size + here
    held = np.zeros(here.shape, bool)
    ones, weights, coupling = (np.zeros(here.shape, int) for _ in range(3))
    weights += 4 * (edges.number >= 3)
    for _, where, beyond in edges.flat():
        weights += where * (2 * np.isin(beyond, (_SOLID, _WALL, _OUTFLOW)) - 2 * (beyond == _DO_NOTHING))
        coupling += 4 * (where & (beyond == _DO_NOTHING))
        held |= where & (beyond == _SLIP)
    twice = held & False
    for k, m, _, where, beside in edges.rims():
        stops, nothing = (beside == _SOLID) | (beside == _WALL), codes[m] == _DO_NOTHING
        held |= where & (beside == _SLIP)
        ones += 4 * (where & nothing & stops)
        weights += where & ~nothing & (stops | ((beside == _OUTFLOW) & (m == _next(k))))
        weights -= where & nothing & (beside == _OUTFLOW)
        coupling += 2 * (where & nothing & ((beside == _OUTFLOW) | (beside == _DO_NOTHING)))
        twice |= where & nothing & (beside == _DO_NOTHING)
    ground = 2 * size
    slots = []
    for k in range(4):
        own = ((codes[k] == _DO_NOTHING) | (codes[_next(k)] == _DO_NOTHING)) & ~(twice & (k % 2 == 1))
        variable, active = np.where(held, ground, np.where(own, size + here, here)), edges.active(k)
        slots.append((variable[active], ground + 1 + edges.faces[k][active]))
    seen, faces = _joined(slots)
    _, labels = _components(int(faces.max()) + 1, seen, faces)
    total = np.bincount(labels[:ground], np.concatenate([weights.ravel(), ones.ravel()])).astype(int)
    pairs = np.stack([labels[:size], labels[size:ground], coupling.ravel()])[:, coupling.ravel() > 0]
    rows = {x: {x: int(total[x])} for x in set(pairs[:2].ravel().tolist()) - {int(labels[ground])}}
    for x, y, value in pairs.T.tolist():
        if x in rows and y in rows:
            rows[x][y] = rows[x].get(y, 0) + value
            rows[y][x] = rows[y].get(x, 0) + value
    return len(rows) - _rank(rows.values())


def _nullity_of_h(domain: _Domain) -> int:
    """Dimension of the kernel of H, over the integers modulo a prime, with weights from the squares of the spacing."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    first, *others = (float(h) for h in domain.grid.spacing)
    scale = [1]
    for h in others:
        ratio = Fraction((first / h) ** 2).limit_denominator(10**6)
        scale.append(ratio.numerator * pow(ratio.denominator, -1, _PRIME) % _PRIME)
    entries: list[tuple] = []
    for edges in domain.edges():
        codes, fluid, active = edges.codes, edges.fluid, [edges.active(k) for k in range(4)]
        weight = scale[edges.pair[0]] * scale[edges.pair[1]] % _PRIME

        def add(where: np.ndarray, k: int, m: int, value: Any, edges: Any = edges, weight: int = weight) -> None:
            sign = 1 if (k < 2) == (m < 2) else -1  # against the circulation
            value = np.broadcast_to(sign * value, where.shape)[where] % _PRIME * weight % _PRIME
            entries.append((edges.faces[k][where], edges.faces[m][where], value))

        for k in range(4):
            after, across, before = (_next(k, steps) for steps in (1, 2, 3))
            mass = 1 + (fluid[k] & fluid[after])  # twice
            opposite = np.where(fluid[k], codes[before], codes[across])
            single = active[across] | fluid[across] | fluid[before]
            reflected = np.isin(opposite, (_SOLID, _WALL, _OUTFLOW))
            add(active[k], k, k, mass * np.where(single, 1, 2 * reflected))
            add(active[k] & active[across], k, across, mass)
            for m, shared in ((after, after), (before, k)):
                add(active[k] & active[m] & fluid[shared], k, m, 2)
    rows, columns, values = _joined(entries)
    names, rows = np.unique(rows, return_inverse=True)
    columns, size = np.searchsorted(names, columns), names.size
    order = reverse_cuthill_mckee(coo_array((np.ones(rows.size), (rows, columns)), shape=(size, size)).tocsr(), True)
    place = np.argsort(order)
    rows, columns = place[rows], place[columns]
    band = max(int(np.abs(rows - columns).max()), 1)
    if size * band**2 > _LARGEST_ELIMINATION:
        got = f"of {domain.grid.shape} cells in three dimensions with fluid at a do-nothing side"
        arguments.refuse(
            "count_nonunit_eigenvalues", "grid", got, "fewer: this count is not a matter of the graph",
            "use outflow sides, or fewer cells",
        )  # fmt: skip
    by_row = np.argsort(rows, kind="stable")
    rows, columns, values = rows[by_row], columns[by_row], values[by_row]
    window, rank, entered = np.zeros((0, 3 * band + 1), np.int64), 0, 0
    for start in range(0, size, band):
        until = min(start + 2 * band, size)
        chosen = slice(*np.searchsorted(rows, [entered, until]))
        fresh = np.zeros((until - entered, 3 * band + 1), np.int64)
        np.add.at(fresh, (rows[chosen] - entered, columns[chosen] - start), values[chosen])
        window, entered = np.concatenate([window[window.any(1)], fresh % _PRIME]), until
        for column in range(min(band, size - start)):
            at = np.flatnonzero(window[:, column])
            if at.size:
                pivot, rest = window[at[0], column:].copy(), at[1:]
                factor = window[rest, column] * pow(int(pivot[0]), -1, _PRIME) % _PRIME
                window[rest, column:] = (window[rest, column:] - factor[:, None] * pivot) % _PRIME
                window[at[0]], rank = 0, rank + 1
        window = np.concatenate([window[:, band:], np.zeros((len(window), band), np.int64)], axis=1)
    return size - rank
