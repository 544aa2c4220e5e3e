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

# A CPU works through a large batch in blocks of this many bytes, nearly twice as fast as all at once for n >= 3.
_BLOCK_BYTES = 1_000_000
_STEPS_PER_EIGENVALUE = 30
_STEPS_BEFORE_EXCEPTIONAL_SHIFT = 10


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
    Not differentiable (T and Q are not unique); `eigenvalues` is.

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

    Cost: that of `schur`; a derivative costs one (n + 1) x (n + 1) solve an eigenvalue.
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

    Cost: n triangular solves a member. Not differentiable.

    Example:
      >>> left_eigenvectors(schur(jnp.diag(jnp.array([1.0, 2.0])))).real
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    return _left_eigenvectors(form)


@jax.jit
def _schur(matrix: Array) -> SchurForm:
    matrix = jax.lax.stop_gradient(matrix).astype(arguments.complex_dtype(matrix.dtype))
    return SchurForm(*_over_members(_schur_member, matrix))


def _over_members(function: Callable[[Array], Any], matrix: Array) -> Any:
    batch, n = matrix.shape[:-2], matrix.shape[-1]
    members = max(1, _BLOCK_BYTES // (n * n * matrix.dtype.itemsize))
    mapped = map_blocks(jax.vmap(function), (matrix.reshape(math.prod(batch), n, n),), cpu=members)
    return jax.tree.map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), mapped)


def _schur_member(matrix: Array) -> tuple[Array, Array, Array]:
    T, Q, exponent, converged = _unsorted_schur(matrix, jnp.eye(matrix.shape[-1], dtype=matrix.dtype))
    T, Q = _sort(T, Q)
    nan = jnp.full_like(T, jnp.nan)
    return jnp.where(converged, _scale_by_power_of_two(T, exponent), nan), jnp.where(converged, Q, nan), converged


def _unsorted_schur(matrix: Array, Q: Array) -> tuple[Array, Array, Array, Array]:
    """(T, Q times the Schur vectors, exponent, converged), with T to be multiplied by 2^exponent.

    Q may have any number of rows: none, where only the eigenvalues are wanted.
    """
    n = matrix.shape[-1]
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, jnp.zeros_like(matrix))
    # a power of two scales without rounding and keeps squares inside the range
    size = jnp.max(jnp.maximum(jnp.abs(matrix.real), jnp.abs(matrix.imag)))
    exponent = jnp.where(size > 0, jnp.frexp(jnp.where(size > 0, size, jnp.ones_like(size)))[1], 0)
    scaled = _scale_by_power_of_two(matrix, -exponent)
    if n == 1:
        return scaled, Q, exponent, finite
    if n == 2:
        return *_schur_two(scaled, Q), exponent, finite
    T, Q, converged = _schur_by_qr_steps(*_hessenberg(scaled, Q))
    return T, Q, exponent, converged & finite


def _scale_by_power_of_two(matrix: Array, exponent: Array) -> Array:
    half = exponent // 2  # in two steps, since 2^exponent itself may overflow
    for part in (half, exponent - half):
        matrix = _times(matrix, jnp.ldexp(jnp.ones((), matrix.real.dtype), part))
    return matrix


def _rotation(x: Array, y: Array) -> tuple[Array, Array]:
    """(c, s) = (x, y) / |(x, y)|, and (1, 0) for the zero vector."""
    size = jnp.maximum(jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)), jnp.maximum(jnp.abs(y.real), jnp.abs(y.imag)))
    zero = size == 0
    size = jnp.where(zero, jnp.ones_like(size), size)
    x, y = jnp.where(zero, jnp.ones_like(x), _over(x, size)), _over(y, size)
    length = jnp.sqrt(_square(x) + _square(y))
    return _over(x, length), _over(y, length)


def _square(z: Array) -> Array:
    return z.real**2 + z.imag**2


def _times(z: Array, factor: Array) -> Array:
    """Complex times real, without the promotion that would make it complex times complex."""
    return jax.lax.complex(z.real * factor, z.imag * factor)


def _over(z: Array, divisor: Array) -> Array:
    return jax.lax.complex(z.real / divisor, z.imag / divisor)


def _rotate_rows(matrix: Array, i: int | Array, c: Array, s: Array) -> Array:
    """Rows i and i + 1 of G matrix with G = [[c*, s*], [-s, c]], which takes the vector (c, s) to (1, 0)."""
    first, second = jax.lax.dynamic_slice_in_dim(matrix, i, 2, 0)
    rows = jnp.stack([c.conj() * first + s.conj() * second, c * second - s * first])
    return jax.lax.dynamic_update_slice_in_dim(matrix, rows, i, 0)


def _rotate_columns(matrix: Array, i: int | Array, c: Array, s: Array) -> Array:
    """Columns i and i + 1 of matrix G^H."""
    return _rotate_rows(matrix.conj().T, i, c, s).conj().T


def _similarity(T: Array, Q: Array, i: int | Array, c: Array, s: Array) -> tuple[Array, Array]:
    return _rotate_columns(_rotate_rows(T, i, c, s), i, c, s), _rotate_columns(Q, i, c, s)


def _schur_two(matrix: Array, Q: Array) -> tuple[Array, Array]:
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
    T, Q = _similarity(matrix, Q, 0, c, s)
    return T.at[1, 0].set(0), Q


def _eigenvalues_two(matrix: Array) -> tuple[Array, Array]:
    mean = (matrix[0, 0] + matrix[1, 1]) / 2
    half = (matrix[0, 0] - matrix[1, 1]) / 2
    root = jnp.sqrt(half * half + matrix[0, 1] * matrix[1, 0])
    return mean - root, mean + root


def _hessenberg(matrix: Array, Q: Array) -> tuple[Array, Array]:
    """(H, Q times the reflections) with H zero below its first subdiagonal, by Householder reflections."""
    n = matrix.shape[-1]
    H = matrix
    for k in range(n - 2):
        below = jnp.where(jnp.arange(n) > k, H[:, k], jnp.zeros_like(H[:, k]))
        length = jnp.sqrt(jnp.sum(_square(below)))
        pivot = below[k + 1]
        modulus = jnp.abs(pivot)
        phase = jnp.where(
            modulus > 0, _over(pivot, jnp.where(modulus > 0, modulus, jnp.ones_like(modulus))), jnp.ones_like(pivot)
        )
        direction = below.at[k + 1].add(_times(phase, length))
        squares = jnp.sum(_square(direction))
        squares = jnp.where(squares > 0, squares, jnp.ones_like(squares))
        reflect = _over(2 * direction, squares).conj()  # zero where there is nothing to annihilate
        H = H - jnp.outer(direction, matmul(reflect, H))
        H = H - jnp.outer(matmul(H, direction), reflect)
        H = H.at[k + 2 :, k].set(0)
        Q = Q - jnp.outer(matmul(Q, direction), reflect)
    return H, Q


def _schur_by_qr_steps(H: Array, Q: Array) -> tuple[Array, Array, Array]:
    n = H.shape[-1]
    positions = jnp.arange(n - 1)
    eps = jnp.finfo(H.dtype).eps
    floor = eps**2 * jnp.sqrt(jnp.sum(_square(H)))

    def deflate(H: Array) -> Array:
        """Subdiagonal entries that are rounding noise beside their diagonal neighbours become zero."""
        diagonal, below = jnp.abs(jnp.diagonal(H)), jnp.diagonal(H, -1)
        small = jnp.abs(below) <= jnp.maximum(eps * (diagonal[:-1] + diagonal[1:]), floor)
        return H - jnp.diag(jnp.where(small, below, 0), -1)

    def last_active(H: Array) -> Array:
        """The last row of the lowest block that is still coupled; 0 when none is."""
        return jnp.max(jnp.where(jnp.diagonal(H, -1) != 0, positions + 1, 0))

    def step(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        # the shift is part of the state so that it is one number where it is subtracted and where it is added back
        H, Q, steps, since, shift = state
        coupled = jnp.diagonal(H, -1) != 0
        bottom = last_active(H)
        # its first row: one below the last decoupled position above the bottom
        top = jnp.max(jnp.where(~coupled & (positions < bottom), positions + 1, 0))
        H = H - shift * jnp.eye(n, dtype=H.dtype)

        # Loops, not unrolled: each rotation is then computed from numbers that are stored. Unrolled, XLA computes them
        # again in every use, and where they cancel, rounding makes rows and columns turn by different angles.
        def rotate_rows(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            H, rotations = state
            active = (i >= top) & (i < bottom)
            c, s = _rotation(H[i, i], H[i + 1, i])
            c, s = jnp.where(active, c, 1), jnp.where(active, s, 0)
            return _rotate_rows(H, i, c, s), rotations.at[i].set(jnp.stack([c, s]))

        def rotate_columns(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            c, s = rotations[i]
            H, Q = state
            return _rotate_columns(H, i, c, s), _rotate_columns(Q, i, c, s)

        H, rotations = jax.lax.fori_loop(0, n - 1, rotate_rows, (H, jnp.zeros((n - 1, 2), H.dtype)))
        H, Q = jax.lax.fori_loop(0, n - 1, rotate_columns, (H, Q))
        # rows above the block were shifted too, and no rotation mixed them with it: adding back is exact to rounding
        H = jnp.triu(H + shift * jnp.eye(n, dtype=H.dtype), -1)
        H = deflate(H)
        since = jnp.where(last_active(H) == bottom, since + 1, 0)
        return H, Q, steps + 1, since, _shift(H, last_active(H), since)

    def unfinished(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        H, _, steps, _, _ = state
        return (steps < _STEPS_PER_EIGENVALUE * n) & jnp.any(jnp.diagonal(H, -1) != 0)

    zero = jnp.zeros((), positions.dtype)
    H = deflate(H)
    H, Q, _, _, _ = jax.lax.while_loop(unfinished, step, (H, Q, zero, zero, _shift(H, last_active(H), zero)))
    return jnp.triu(H), Q, jnp.all(jnp.diagonal(H, -1) == 0)


def _shift(H: Array, bottom: Array, since: Array) -> Array:
    """Wilkinson's shift: the eigenvalue of the trailing 2 x 2 block nearer to its last entry; now and then another."""
    upper = jnp.maximum(bottom - 1, 0)
    block = jnp.stack(
        [jnp.stack([H[upper, upper], H[upper, bottom]]), jnp.stack([H[bottom, upper], H[bottom, bottom]])]
    )
    first, second = _eigenvalues_two(block)
    wilkinson = jnp.where(_square(first - block[1, 1]) < _square(second - block[1, 1]), first, second)
    exceptional = (since + 1) % _STEPS_BEFORE_EXCEPTIONAL_SHIFT == 0
    return jnp.where(exceptional, block[1, 1] + (0.75 * jnp.abs(block[1, 0])).astype(H.dtype), wilkinson)


def _sort(T: Array, Q: Array) -> tuple[Array, Array]:
    """Swap neighbours on the diagonal by rotations until the moduli ascend (bubble sort)."""
    n = T.shape[-1]
    if n == 1:
        return T, Q

    def swap_if_larger(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # the keys are carried, not computed from T, so that every use of `swap` sees one decision
        T, Q, keys = state
        swap = keys[i] > keys[i + 1]
        c, s = _rotation(T[i, i + 1], T[i + 1, i + 1] - T[i, i])
        c, s = jnp.where(swap, c, 1), jnp.where(swap, s, 0)
        T, Q = _similarity(T, Q, i, c, s)
        T = T.at[i + 1, i].set(0)
        first, second = keys[i], keys[i + 1]
        keys = keys.at[i].set(jnp.minimum(first, second)).at[i + 1].set(jnp.maximum(first, second))
        return T, Q, keys

    start = (T, Q, _square(jnp.diagonal(T)))
    T, Q, _ = jax.lax.fori_loop(0, n - 1, lambda _, state: jax.lax.fori_loop(0, n - 1, swap_if_larger, state), start)
    return T, Q


def _eigenvectors(T: Array, Q: Array) -> tuple[Array, Array]:
    """Unit right eigenvectors as columns and unit left ones as rows: A V = V diag(T), W A = diag(T) W."""
    right = _triangular_eigenvectors(T)
    # W T = D W reads T^H W^H = W^H D*, and reversing rows and columns makes T^H upper triangular
    left = _triangular_eigenvectors(T.conj().T[::-1, ::-1])[::-1, ::-1].conj().T
    right, left = matmul(Q, right), matmul(left, Q.conj().T)
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
    T, _, exponent, converged = _unsorted_schur(matrix, jnp.zeros((0, matrix.shape[-1]), matrix.dtype))
    values = jnp.diagonal(T)
    values = _scale_by_power_of_two(values[jnp.argsort(_square(values))], exponent)
    return jnp.where(converged, values, jnp.full_like(values, jnp.nan))


@_eigenvalues_member.defjvp
def _eigenvalues_member_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (matrix,), (tangent,) = primals, tangents
    values = _eigenvalues_member(matrix)
    right, left = _smooth_eigenvectors(matrix, values)
    numerator = einsum("ij,jk,ki->i", left, tangent, right)
    overlap = einsum("ij,ji->i", left, right)
    limit = jnp.sqrt(jnp.finfo(overlap.dtype).eps)
    # nearly orthogonal left and right vectors: nearly defective, and the derivative is limited
    overlap = jnp.where(jnp.abs(overlap) < limit, limit.astype(overlap.dtype), overlap)
    return values, numerator / overlap


@jax.jit
def _eigenvalues(matrix: Array) -> Array:
    return _over_members(_eigenvalues_member, matrix)


@jax.jit
def _left_eigenvectors(form: SchurForm) -> Array:
    vectors = jnp.vectorize(lambda T, Q: _eigenvectors(T, Q)[1], signature="(n,n),(n,n)->(n,n)")(form.T, form.Q)
    return jax.lax.stop_gradient(vectors)


def _smooth_eigenvectors(matrix: Array, values: Array) -> tuple[Array, Array]:
    """Right (columns) and left (rows) eigenvectors as differentiable functions of the matrix and its eigenvalues.

    With fixed vectors b, c near the left and right eigenvector, (A - value + b c^H) x = b holds for the eigenvector x
    with c^H x = 1, and that system is regular when the eigenvalue is simple. Elsewhere the fixed vectors are returned.
    """
    n = matrix.shape[-1]
    form = _schur(jax.lax.stop_gradient(matrix))
    right, left = jax.lax.stop_gradient(_eigenvectors(form.T, form.Q))
    scale = jnp.max(jnp.abs(form.T))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale)).astype(matrix.dtype)
    identity = jnp.eye(n, dtype=matrix.dtype)

    def vectors(value: Array, c: Array, b: Array) -> tuple[Array, Array]:
        """`c` is the fixed right vector, `b` the fixed left one, as a column."""
        near = jnp.abs(jnp.diagonal(form.T) - value) <= jnp.sqrt(jnp.finfo(matrix.dtype).eps) * jnp.abs(scale)
        simple = jnp.sum(near) == 1
        system = matrix - value * identity + scale * jnp.outer(b, c.conj())
        system = jnp.where(simple, system, identity)
        x = solve(system, scale * b[:, None])[:, 0]
        y = solve(system.conj().T, scale * c[:, None])[:, 0]
        return jnp.where(simple, x, c), jnp.where(simple, y, b).conj()

    return jax.vmap(vectors, in_axes=(0, 1, 0), out_axes=(1, 0))(values, right, left.conj())
