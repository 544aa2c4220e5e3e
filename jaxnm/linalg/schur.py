"""Complex Schur form and eigenvalues of small matrices, on every platform.

`jax.lax.linalg.schur` exists on the CPU only and `eig` not on TPUs. The matrices met here are small (n up to about 16),
many, and often defective, so this is the textbook algorithm in plain `lax`: reduction to Hessenberg form, then
complex QR steps with Wilkinson's shift by plane rotations; n = 2 in closed form.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Complex, Num

from jaxnm import arguments
from jaxnm.linalg.blocks import map_blocks
from jaxnm.linalg.factorizations import einsum, matmul, solve
from jaxnm.linalg.scaling import exponent_of

# A CPU works through a large batch in blocks of this many bytes, nearly twice as fast as all at once for n >= 3.
_BLOCK_BYTES = 1_000_000
_STEPS_PER_EIGENVALUE = 30
_STEPS_BEFORE_EXCEPTIONAL_SHIFT = 10
_SWEEPS_TO_BALANCE = 20
_ZERO = -(2**20)  # the exponent of a zero, below all others by far


@flax.struct.dataclass
class SchurForm:
    """`matrix = Q T Q^H`, T upper triangular, Q unitary."""

    T: Complex[Array, "*batch n n"]
    """Upper triangular; its diagonal holds the eigenvalues, ascending in modulus: the dominant one comes last."""
    Q: Complex[Array, "*batch n n"]
    """Unitary; its first k columns span an invariant subspace for every k."""
    converged: Bool[Array, "*batch"]
    """False where the iteration ran out of steps or the matrix is not finite; T and Q are NaN there."""


def schur(matrix: Num[ArrayLike, "*batch n n"]) -> SchurForm:
    """Complex Schur form of a batch of small matrices, the dominant eigenvalue last.

    Args:
      matrix: [..., n, n], real or complex, n up to about 16.

    Returns:
      `SchurForm(T, Q, converged)`, complex of the input's precision. |A - Q T Q^H| and |Q^H Q - I| are below
      10 n eps |A| and 10 n eps. Eigenvalues of equal modulus keep no particular order.

    Raises:
      TypeError: an integer dtype. ValueError: not square.

    Status: `converged` is False, and the member NaN, where the matrix is not finite or 30 n steps did not suffice.

    Cost: about 25 n^3 complex flops a member; the slowest member of a batch sets the number of steps.
    Not differentiable (T and Q are not unique): a derivative raises TypeError; `eigenvalues` has one.

    Source: G. H. Golub, C. F. Van Loan, "Matrix Computations", 4th ed., sections 7.4 to 7.6.

    Example:
      >>> T = schur(jnp.array([[0.0, 1.0], [-0.25, 0.0]])).T
      >>> bool(jnp.allclose(jnp.abs(jnp.diagonal(T)), 0.5))
      True
    """
    (matrix,) = arguments.to_arrays("schur", matrix=matrix)
    arguments.check_square("schur", "matrix", matrix)
    return _schur(matrix)


def eigenvalues(matrix: Num[ArrayLike, "*batch n n"]) -> Complex[Array, "*batch n"]:
    """Eigenvalues of a batch of small matrices, ascending in modulus: the dominant one comes last.

    Args:
      matrix: [..., n, n], real or complex, n up to about 16.

    Returns:
      [..., n], complex of the input's precision; NaN where the matrix is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not square.

    The matrix is balanced first (by a diagonal similarity with powers of two), so that in a matrix of entries of very
    different sizes small eigenvalues are as accurate as in one of equal sizes, in any units of the variables.

    Cost: that of `schur`; a derivative costs two n x n solves an eigenvalue.
    Differentiable (first and second order) at simple eigenvalues. Where eigenvalues agree to about sqrt(eps) the true
    derivative is unbounded or does not exist; a finite one is returned, limited to |dA| / sqrt(eps).

    Source: as `schur`; the derivative is w^H dA v / (w^H v) with left and right eigenvectors w and v.

    Example:
      >>> eigenvalues(jnp.diag(jnp.array([3.0, -1.0]))).real
      Array([-1.,  3.], dtype=float32)
    """
    (matrix,) = arguments.to_arrays("eigenvalues", matrix=matrix)
    arguments.check_square("eigenvalues", "matrix", matrix)
    return _eigenvalues(matrix.astype(arguments.complex_dtype(matrix.dtype)))


def left_eigenvectors(form: SchurForm) -> Complex[Array, "*batch n n"]:
    """Unit left eigenvectors as rows, in the order of the diagonal of T: `W @ matrix = diag(T) W`.

    Args:
      form: a Schur form of the matrix.

    Returns:
      [..., n, n], row i belongs to T[i, i]. Rows of a defective eigenvalue are parallel to rounding.

    Cost: n triangular solves a member. Not differentiable: a derivative raises TypeError.

    Example:
      >>> left_eigenvectors(schur(jnp.diag(jnp.array([1.0, 2.0])))).real
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    if not isinstance(form, SchurForm):
        got, remedy = f"a {type(form).__name__}", "pass schur(matrix)"
        arguments.refuse("left_eigenvectors", "form", got, "a SchurForm", remedy, error=TypeError)
    return _left_eigenvectors(form)


@jax.jit
def _schur(matrix: Array) -> SchurForm:
    matrix = arguments.without_derivative("schur", "matrix", matrix, remedy="differentiate eigenvalues(matrix) instead")
    return _schur_form(matrix.astype(arguments.complex_dtype(matrix.dtype)))


def _schur_form(matrix: Array) -> SchurForm:
    return SchurForm(*_over_members(_schur_member, matrix))


def _over_members(function: Callable[[Array], Any], matrix: Array) -> Any:
    batch, n = matrix.shape[:-2], matrix.shape[-1]
    members = max(1, _BLOCK_BYTES // (n * n * matrix.dtype.itemsize))
    mapped = map_blocks(jax.vmap(function), (matrix.reshape(math.prod(batch), n, n),), cpu=members)
    return jax.tree.map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), mapped)


def _schur_member(matrix: Array) -> tuple[Array, Array, Array]:
    # a power of two scales without rounding and keeps squares inside the range
    size = jnp.max(jnp.maximum(jnp.abs(matrix.real), jnp.abs(matrix.imag)))
    usable = (size > 0) & jnp.isfinite(size)
    exponent = jnp.where(usable, jnp.frexp(jnp.where(usable, size, jnp.ones_like(size)))[1], 0)
    matrix = _scale_by_power_of_two(matrix, -exponent)
    T, Q, converged = _schur_vectors(matrix, jnp.eye(matrix.shape[-1], dtype=matrix.dtype), ascending=True)
    nan = jnp.full_like(T, jnp.nan)
    return jnp.where(converged, _scale_by_power_of_two(T, exponent), nan), jnp.where(converged, Q, nan), converged


def _schur_vectors(matrix: Array, Q: Array, *, ascending: bool) -> tuple[Array, Array, Array]:
    """(T, Q times the Schur vectors, converged) of a matrix of size one or zero.

    Q may have any number of rows: none, where only the eigenvalues are wanted.
    """
    n = matrix.shape[-1]
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, jnp.zeros_like(matrix))
    if n == 1:
        return matrix, Q, finite
    # one array, as every similarity turns the columns of both alike
    both = jnp.concatenate([matrix, Q])
    if n == 2:
        both = _schur_two(both, ascending)
        return both[:n], both[n:], finite
    both, converged = _schur_by_qr_steps(_hessenberg(both), ascending)
    return jnp.triu(both[:n]), both[n:], converged & finite


def _scale_by_power_of_two(matrix: Array, exponent: Array) -> Array:
    half = exponent // 2  # in two steps, since 2^exponent itself may overflow
    for part in (half, exponent - half):
        matrix = _times(matrix, jnp.ldexp(jnp.ones((), matrix.real.dtype), part))
    return matrix


def _rotation(x: Array, y: Array) -> tuple[Array, Array]:
    """(c, s) = (x, y) / |(x, y)|, and (1, 0) for the zero vector."""
    pair = jnp.stack([x, y])
    size = jnp.max(jnp.maximum(jnp.abs(pair.real), jnp.abs(pair.imag)))
    pair = jnp.where(size > 0, _over(pair, jnp.where(size > 0, size, 1)), jnp.stack([jnp.ones_like(x), 0 * y]))
    c, s = _over(pair, jnp.sqrt(jnp.sum(_square(pair))))
    return c, s


def _square(z: Array) -> Array:
    return z.real**2 + z.imag**2


def _times(z: Array, factor: Array) -> Array:
    """Complex times real, without the promotion that would make it complex times complex."""
    return jax.lax.complex(z.real * factor, z.imag * factor)


def _over(z: Array, divisor: Array) -> Array:
    return jax.lax.complex(z.real / divisor, z.imag / divisor)


def _similarity(both: Array, i: int | Array, c: Array, s: Array) -> Array:
    """(G T G^H; Q G^H), G = [[c*, s*], [-s, c]] in rows i and i + 1: it takes the vector (c, s) to (1, 0)."""
    first, second = jax.lax.dynamic_slice_in_dim(both, i, 2, 0)
    rows = jnp.stack([c.conj() * first + s.conj() * second, c * second - s * first])
    both = jax.lax.dynamic_update_slice_in_dim(both, rows, i, 0)
    first, second = jax.lax.dynamic_slice_in_dim(both, i, 2, 1).T
    columns = jnp.stack([c * first + s * second, c.conj() * second - s.conj() * first], 1)
    return jax.lax.dynamic_update_slice_in_dim(both, columns, i, 1)


def _schur_two(both: Array, ascending: bool) -> Array:
    matrix = both[:2]
    first, _ = _eigenvalues_two(matrix)
    # Either row of A - first annihilates the eigenvector: two candidates, parallel, of which one may be all rounding.
    # Their sum with phases aligned needs no choice; a choice near a tie could fall differently in each place where XLA
    # computes it again.
    by_top = jnp.stack([-matrix[0, 1], matrix[0, 0] - first])
    by_bottom = jnp.stack([matrix[1, 1] - first, -matrix[1, 0]])
    inner = jnp.sum(by_bottom.conj() * by_top)
    modulus = jnp.abs(inner)
    phase = jnp.where(modulus > 0, _over(inner, jnp.where(modulus > 0, modulus, jnp.ones_like(modulus))), 1)
    c, s = _rotation(*(by_top + phase * by_bottom))
    both = _similarity(both, 0, c, s).at[1, 0].set(0)
    if not ascending:
        return both
    # conjugate pairs are equal but for rounding; where XLA computes this again, some places would swap and others not
    margin = 1 + 32 * jnp.finfo(both.dtype).eps
    swap = _square(both[0, 0]) > margin * _square(both[1, 1])
    c, s = _rotation(both[0, 1], both[1, 1] - both[0, 0])
    return _similarity(both, 0, jnp.where(swap, c, 1), jnp.where(swap, s, 0)).at[1, 0].set(0)


def _eigenvalues_two(matrix: Array) -> tuple[Array, Array]:
    mean = (matrix[0, 0] + matrix[1, 1]) / 2
    half = (matrix[0, 0] - matrix[1, 1]) / 2
    root = jnp.sqrt(half * half + matrix[0, 1] * matrix[1, 0])
    return mean - root, mean + root


def _hessenberg(both: Array) -> Array:
    """(H; Q times the reflections) with H zero below its first subdiagonal, by Householder reflections."""
    n = both.shape[-1]
    row = jnp.arange(both.shape[0])

    def reflect(k: Array, both: Array) -> Array:
        # row k + 1 and column k as sums, since k may differ between members of a batch
        column = jax.lax.dynamic_index_in_dim(both, k, 1, keepdims=False)[:n]
        here, below = row[:n] == k + 1, row[:n] > k + 1
        pivot, rest = jnp.sum(jnp.where(here, column, 0)), jnp.where(below, column, 0)
        squares = jnp.sum(_square(rest))
        length = jnp.sqrt(squares + _square(pivot))
        modulus = jnp.sqrt(_square(pivot))
        nonzero = modulus > 0
        phase = jnp.where(nonzero, _over(pivot, jnp.where(nonzero, modulus, 1)), 1)
        direction = jnp.where(here, pivot + _times(phase, length), rest)
        squares = jnp.sum(_square(direction))
        mirror = _over(2 * direction, jnp.where(squares > 0, squares, 1)).conj()  # zero: nothing to annihilate
        rows = jnp.pad(direction, (0, both.shape[0] - n))
        both = both - jnp.outer(rows, matmul(mirror, both[:n]))
        both = both - jnp.outer(matmul(both, direction), mirror)
        annihilated = ((row > k + 1) & (row < n))[:, None] & (row[:n] == k)[None, :]
        return jnp.where(annihilated, 0, both)

    return jax.lax.fori_loop(0, n - 2, reflect, both)


def _schur_by_qr_steps(both: Array, ascending: bool) -> tuple[Array, Array]:
    """QR steps with implicit shifts, then sweeps of a bubble sort: both turn neighboring axes from top to bottom.

    One loop does both, since every loop costs compile time.
    """
    n, most = both.shape[-1], _STEPS_PER_EIGENVALUE * both.shape[-1]
    index = jnp.arange(n)
    offset = jnp.arange(both.shape[0])[:, None] - index[None, :]
    strictly_lower = (offset > 0) & (jnp.arange(both.shape[0]) < n)[:, None]
    on_diagonal, below = offset[:n] == 0, offset[:n] == 1
    eps = jnp.finfo(both.dtype).eps
    floor = eps**2 * jnp.sqrt(jnp.sum(_square(both[:n])))

    def sweep(state: tuple[Array, ...]) -> tuple[Array, ...]:
        both, keys, steps, since, last, sorting, _ = state
        # subdiagonal entries that are rounding noise beside their diagonal neighbors become zero
        size = jnp.abs(both[:n].real) + jnp.abs(both[:n].imag)
        diagonal = jnp.sum(jnp.where(on_diagonal, size, 0), 1)
        coupled = below & (size > jnp.maximum(eps * (diagonal[:, None] + diagonal[None, :]), floor))
        both = both.at[:n].set(jnp.where(below & ~coupled, 0, both[:n]))
        # the lowest block that is still coupled: from row `top` to row `bottom`, or both zero when there is none
        coupled = jnp.any(coupled, 1)
        bottom = jnp.max(jnp.where(coupled, index, 0))
        top = jnp.max(jnp.where(~coupled & (index <= bottom), index, 0))
        since = jnp.where(bottom == last, since + 1, 0)
        shift = _shift(both[:n], bottom, since)
        squares = jnp.sum(jnp.where(on_diagonal, _square(both[:n]), 0), 1)
        # once they are sorted by, they are carried: decisions on numbers computed again could contradict each other
        keys = jnp.where(sorting, keys, squares)
        converged = bottom == 0

        # A loop, not unrolled: each rotation is then computed from numbers that are stored. Unrolled, XLA computes them
        # again in every use, and where they cancel, rounding makes rows and columns turn by different angles.
        def turn(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            both, keys = state
            # columns i - 1, i and i + 1 of rows i and i + 1
            block = jax.lax.dynamic_slice_in_dim(both, i, 2, 0)
            block = jax.lax.dynamic_slice_in_dim(jnp.pad(block, ((0, 0), (1, 0))), i, 3, 1)
            x = jnp.where(i == top, block[0, 1] - shift, block[0, 0])
            y = jnp.where(i == top, block[1, 1], block[1, 0])
            active = (i >= top) & (i < bottom)
            if ascending:
                x = jnp.where(converged, block[0, 2], x)
                y = jnp.where(converged, block[1, 2] - block[0, 1], y)
                first, second = jax.lax.dynamic_slice_in_dim(keys, i, 2)
                swap = converged & (first > second)
                pair = jnp.where(swap, jnp.stack([second, first]), jnp.stack([first, second]))
                keys = jax.lax.dynamic_update_slice_in_dim(keys, pair, i, 0)
                active |= swap
            c, s = _rotation(x, y)
            return _similarity(both, i, jnp.where(active, c, 1), jnp.where(active, s, 0)), keys

        unsorted = jnp.any(keys[:-1] > keys[1:]) if ascending else False
        running = jnp.where(converged, unsorted, steps < most)
        both, keys = jax.lax.fori_loop(0, n - 1, turn, (both, keys))
        # what was annihilated
        both = jnp.where(strictly_lower & (converged | (offset > 1)), 0, both)
        return both, keys, steps + 1, since, bottom, converged, running

    zero = jnp.zeros((), index.dtype)
    start = (both, jnp.zeros(n, both.real.dtype), zero, zero, zero, jnp.array(False), jnp.array(True))
    both, _, _, _, _, converged, _ = jax.lax.while_loop(lambda state: state[-1], sweep, start)
    return both, converged


def _shift(H: Array, bottom: Array, since: Array) -> Array:
    """Wilkinson's shift: the eigenvalue of the trailing 2 x 2 block nearer to its last entry; now and then another."""
    # the block by sums, as `bottom` differs between the members of a batch
    place = jnp.arange(H.shape[-1])[None, :] == jnp.stack([jnp.maximum(bottom - 1, 0), bottom])[:, None]
    block = jnp.sum(jnp.where(place[:, None, :, None] & place[None, :, None, :], H, 0), (2, 3))
    first, second = _eigenvalues_two(block)
    wilkinson = jnp.where(_square(first - block[1, 1]) < _square(second - block[1, 1]), first, second)
    exceptional = (since + 1) % _STEPS_BEFORE_EXCEPTIONAL_SHIFT == 0
    return jnp.where(
        exceptional, block[1, 1] + _times(jnp.ones_like(wilkinson), 0.75 * jnp.abs(block[1, 0])), wilkinson
    )


def _eigenvectors(T: Array, Q: Array) -> tuple[Array, Array]:
    """Unit right eigenvectors as columns and unit left ones as rows: A V = V diag(T), W A = diag(T) W."""
    # W T = D W reads T^H W^H = W^H D*, and reversing rows and columns makes T^H upper triangular
    right, left = jax.vmap(_triangular_eigenvectors)(jnp.stack([T, T.conj().T[::-1, ::-1]]))
    right, left = matmul(Q, right), matmul(left[::-1, ::-1].conj().T, Q.conj().T)
    return _over(right, _lengths(right, 0)), _over(left, _lengths(left, 1))


def _lengths(vectors: Array, axis: int) -> Array:
    return jnp.sqrt(jnp.sum(_square(vectors), axis, keepdims=True))


def _triangular_eigenvectors(T: Array) -> Array:
    """Right eigenvectors of an upper triangular matrix as columns, by back substitution with a floor on the pivots."""
    n = T.shape[-1]
    row = jnp.arange(n)
    resolution = jnp.finfo(T.dtype)
    floor = resolution.eps * jnp.maximum(jnp.max(jnp.abs(T)), resolution.tiny / resolution.eps)
    identity = jnp.eye(n, dtype=T.dtype)

    def column(i: Array) -> Array:
        pivots = jnp.diagonal(T) - T[i, i]
        pivots = jnp.where(jnp.abs(pivots) < floor, floor.astype(T.dtype), pivots)
        system = T - jnp.diag(jnp.diagonal(T)) + jnp.diag(pivots)
        system = jnp.where((row < i)[:, None], system, identity)
        return jax.lax.linalg.triangular_solve(system, identity[:, i][:, None], left_side=True, lower=False)[:, 0]

    return jax.vmap(column, out_axes=-1)(row)


@jax.custom_jvp
def _eigenvalues_member(matrix: Array) -> Array:
    """Of a matrix of size one or zero."""
    T, _, converged = _schur_vectors(matrix, jnp.zeros((0, matrix.shape[-1]), matrix.dtype), ascending=False)
    return _in_order(T, converged)[0]


def _in_order(T: Array, converged: Array) -> tuple[Array, Array]:
    """The diagonal of T, ascending in modulus, and where each value stands on it."""
    values = jnp.diagonal(T)
    order = jnp.argsort(_square(values))
    values = values[order]
    return jnp.where(converged, values, jnp.full_like(values, jnp.nan)), order


@_eigenvalues_member.defjvp
def _eigenvalues_member_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    fixed = jax.lax.stop_gradient(primals[0])
    T, Q, converged = _schur_vectors(fixed, jnp.eye(len(fixed), dtype=fixed.dtype), ascending=False)
    values, order = _in_order(T, converged)
    right, left = _eigenvectors(T, Q)
    curves = lambda matrix: _values_through(matrix, values, right[:, order], left[order])
    return jax.jvp(curves, primals, tangents)


@jax.custom_jvp
def _values_through(matrix: Array, values: Array, right: Array, left: Array) -> Array:
    """The eigenvalues as functions of the matrix, given what they and their vectors are here."""
    # The sum adds nothing but a first derivative, for where JAX drops the rule below: in a loop, after reverse mode.
    return values + _slopes(matrix - jax.lax.stop_gradient(matrix), right, left)


@_values_through.defjvp
def _values_through_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    matrix, values, right, left = primals
    values = _values_through(matrix, values, right, left)
    right, left = _smooth_eigenvectors(matrix, values, right, left)
    return values, _slopes(tangents[0], right, left)


def _slopes(tangent: Array, right: Array, left: Array) -> Array:
    overlap = einsum("ij,ji->i", left, right)
    limit = jnp.sqrt(jnp.finfo(overlap.dtype).eps)
    # nearly orthogonal left and right vectors: nearly defective, and the derivative is limited
    overlap = jnp.where(jnp.abs(overlap) < limit, limit.astype(overlap.dtype), overlap)
    return einsum("ij,jk,ki->i", left, tangent, right) / overlap


@jax.jit
def _eigenvalues(matrix: Array) -> Array:
    return _over_members(_balanced_eigenvalues, matrix)


def _balanced_eigenvalues(matrix: Array) -> Array:
    """Eigenvalues, and their derivatives, by those of D^-1 A D, of size one and with rows as long as columns."""
    size = jax.lax.stop_gradient(jnp.maximum(jnp.abs(matrix.real), jnp.abs(matrix.imag)))
    exponents = jnp.where(size > 0, exponent_of(size), jnp.int32(_ZERO))
    powers = _balance(exponents)
    powers = powers[None, :] - powers[:, None]
    largest = jnp.where(jnp.any(size > 0), jnp.max(exponents + powers), 0)
    return _scale_by_power_of_two(_eigenvalues_member(_scale_by_power_of_two(matrix, powers - largest)), largest)


def _balance(exponents: Array) -> Array:
    """Powers p for which entries of these exponents, times 2^(p_j - p_i), have rows about as large as columns.

    Off the diagonal, by the largest entry. A row or a column without an opposite comes down to the diagonal.
    Source: B. N. Parlett, C. Reinsch, Numer. Math. 13 (1969), 293-304. On exponents alone, so nothing underflows.

    Args:
      exponents: [n, n], `_ZERO` for a zero.
    """
    n = exponents.shape[-1]
    if n == 1:
        return jnp.zeros(1, jnp.int32)
    on_diagonal = jnp.eye(n, dtype=bool)
    diagonal = jnp.max(jnp.where(on_diagonal, exponents, _ZERO))

    def shift_of(row: Array, column: Array) -> Array:
        """Half of how far the row is above the column."""
        nonzero = lambda exponent: exponent > _ZERO // 2
        alone = lambda size: jnp.where(nonzero(diagonal), jnp.minimum(size, diagonal), size)
        above = jnp.where(nonzero(row), row, alone(column)) - jnp.where(nonzero(column), column, alone(row))
        return jnp.where(nonzero(row) | nonzero(column), jax.lax.div(above, jnp.int32(2)), 0)

    if n == 2:
        return jnp.stack([jnp.int32(0), shift_of(exponents[1, 0], exponents[0, 1])])
    index = jnp.arange(n, dtype=jnp.int32)

    def change_one(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        exponents, powers, count, unchanged = state
        here = index == count % n
        column = jnp.max(jnp.where(here[None, :], exponents, _ZERO))
        row = jnp.max(jnp.where(here[:, None], exponents, _ZERO))
        shift = shift_of(row, column)
        change = jnp.where(here, shift, 0)
        exponents = exponents + change[None, :] - change[:, None]
        return exponents, powers + change, count + 1, jnp.where(shift != 0, 0, unchanged + 1)

    zero = jnp.int32(0)
    start = (jnp.where(on_diagonal, _ZERO, exponents), jnp.zeros(n, jnp.int32), zero, zero)
    unfinished = lambda state: (state[3] < n) & (state[2] < _SWEEPS_TO_BALANCE * n)
    return jax.lax.while_loop(unfinished, change_one, start)[1]


@jax.jit
def _left_eigenvectors(form: SchurForm) -> Array:
    remedy = "differentiate eigenvalues(matrix), or apply jax.lax.stop_gradient to the form"
    form = arguments.without_derivative("left_eigenvectors", "form", form, remedy=remedy)
    *batch, n, _ = form.T.shape
    T, Q = (matrix.reshape(math.prod(batch), n, n) for matrix in (form.T, form.Q))
    return jax.vmap(_eigenvectors)(T, Q)[1].reshape(form.T.shape)


def _smooth_eigenvectors(matrix: Array, values: Array, right: Array, left: Array) -> tuple[Array, Array]:
    """Right (columns) and left (rows) eigenvectors as differentiable functions of the matrix and its eigenvalues.

    With fixed vectors b, c near the left and right eigenvector, (A - value + b c^H) x = b holds for the eigenvector x
    with c^H x = 1, and that system is regular when the eigenvalue is simple. Elsewhere the fixed vectors are returned.
    """
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    c, b = right.T, left.conj()
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    near = jnp.abs(values[:, None] - values[None, :]) <= jnp.sqrt(jnp.finfo(matrix.dtype).eps) * scale
    simple = jnp.sum(near, 1, keepdims=True) == 1
    scale = scale.astype(matrix.dtype)
    systems = matrix[None] - values[:, None, None] * identity[None] + scale * b[:, :, None] * c[:, None, :].conj()
    systems = jnp.where(simple[:, :, None], systems, identity[None])
    # both kinds in one call, which compiles in half the time
    systems = jnp.concatenate([systems, systems.conj().swapaxes(-1, -2)])
    x, y = jnp.split(solve(systems, scale * jnp.concatenate([b, c])[:, :, None])[:, :, 0], 2)
    return jnp.where(simple, x, c).T, jnp.where(simple, y, b).conj()
