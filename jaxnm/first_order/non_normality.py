"""What the spectral radius hides: resolvents, pseudospectra, the numerical radius and the Kreiss constant.

The numerical radius rests on one fact: the smallest eigenvalue of a Hermitian matrix is a concave function of the
matrix. On A + x B + y C it is concave in (x, y), so on an arc of the unit circle it is nowhere below its smallest value
at the two ends and at the point where their tangents meet. Arcs are halved where that bound is lowest.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxnm import arguments
from jaxnm.first_order.rates import once_differentiable
from jaxnm.first_order.spectral import spectral_radius
from jaxnm.linalg import eigenvalues, eigh, solve, svd
from jaxnm.linalg.scaling import rescaled, times_power_of_two

_ARCS = 256  # at the start
_KEPT_ARCS = 16  # split in a round
_ARC_ROUNDS = 22
_RADII = 48  # circles at the start
_SPLIT_RADII = 8  # intervals between circles halved in a round
_RADIUS_ROUNDS = 12
_LEVEL_ROUNDS = 30


class CertifiedMaximum(NamedTuple):
    """A supremum between two bounds."""

    value: Float[Array, "*batch"]
    """Attained: the function takes this value somewhere."""
    upper_bound: Float[Array, "*batch"]
    """No point has a larger value, up to rounding in the eigenvalues."""


def resolvent_norm(matrix: Num[ArrayLike, "n n"], z: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """2-norm of the resolvent `(z I - matrix)^-1`: how strongly the iteration answers a forcing that goes like z^k.

    Args:
      matrix: [n, n], real or complex.
      z: [...] points of the complex plane, of the same precision.

    Returns:
      [...], inf at an eigenvalue, NaN where an input is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not one square matrix.

    Cost: one n x n `svd` a point. Differentiable where the smallest singular value is simple and not zero.
    Source: Trefethen, Embree, "Spectra and Pseudospectra" (2005), section 2.

    Example:
      >>> float(resolvent_norm(jnp.zeros((2, 2)), 0.5))
      2.0
    """
    return _resolvent_norm(*_matrix_and_points("resolvent_norm", matrix, z=z))


def pseudospectrum(matrix: Num[ArrayLike, "n n"], grid: Num[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """Smallest singular value of `z I - matrix` on a grid: the level eps at which z enters the eps-pseudospectrum.

    Args:
      matrix: [n, n], real or complex.
      grid: [...] points z of the complex plane, of the same precision.

    Returns:
      [...] >= 0: the distance from the matrix to the nearest one that has the eigenvalue z. Its contour lines are the
      boundaries of the pseudospectra. NaN where an input is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not one square matrix.

    Cost: one n x n `svd` a point. Differentiable where the smallest singular value is simple and not zero.
    Source: Trefethen, Embree, "Spectra and Pseudospectra" (2005), section 2.

    Example:
      >>> pseudospectrum(jnp.diag(jnp.array([1.0, -1.0])), jnp.array([0.5, 3.0]))
      Array([0.5, 2. ], dtype=float32)
    """
    return _pseudospectrum(*_matrix_and_points("pseudospectrum", matrix, grid=grid))


def _matrix_and_points(function: str, matrix: Any, **points: Any) -> list[Array]:
    (matrix,) = arguments.to_arrays(function, matrix=matrix)
    arguments.check_square(function, "matrix", matrix)
    arguments.check_shape(function, "matrix", matrix, "[n, n]", lambda shape: len(shape) == 2)
    ((name, point),) = points.items()
    if isinstance(point, int | float | complex):
        point = jnp.asarray(point, arguments.complex_dtype(matrix.dtype))
    return [matrix, *arguments.to_arrays(function, **{name: point})]


@jax.jit
def _resolvent_norm(matrix: Array, z: Array) -> Array:
    return 1 / _pseudospectrum(matrix, z)


@jax.jit
def _pseudospectrum(matrix: Array, grid: Array) -> Array:
    dtype = arguments.complex_dtype(matrix.dtype)
    shifted = (
        jnp.expand_dims(grid.astype(dtype), (-2, -1)) * jnp.eye(matrix.shape[-1], dtype=dtype)[(None,) * grid.ndim]
        - matrix.astype(dtype)[(None,) * grid.ndim]
    )
    return svd(shifted).singular_values[..., -1]


def numerical_radius(matrix: Num[ArrayLike, "*batch n n"]) -> CertifiedMaximum:
    """Largest |x^H matrix x| over unit vectors x: between half the norm and the norm, and at least the spectral radius.

    The numerical range is convex; with support function h(theta), the largest eigenvalue of the Hermitian part of
    e^(i theta) matrix, its radius is the maximum of h, enclosed by inscribed and circumscribed polygons.

    Args:
      matrix: [..., n, n], real or complex.

    Returns:
      `CertifiedMaximum(value [...], upper_bound [...])`. The gap is rounding where the maximum is isolated, and at most
      8e-5 relative where many directions tie (a disc); NaN where the matrix is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not square.

    Cost: about 1,600 eigenvalue problems of size n a member. `value` is differentiable where the maximal direction is
    unique and its eigenvalue simple; `upper_bound` has the same derivative. A second derivative raises TypeError.
    Source: C. R. Johnson, "Numerical determination of the field of values", SIAM J. Numer. Anal. 15 (1978), 595-602.

    Example:
      >>> round(float(numerical_radius(jnp.array([[0.0, 1.0], [0.0, 0.0]])).value), 4)
      0.5
    """
    (matrix,) = arguments.to_arrays("numerical_radius", matrix=matrix)
    arguments.check_square("numerical_radius", "matrix", matrix)
    return _numerical_radius(matrix)


@jax.jit
def _numerical_radius(matrix: Array) -> CertifiedMaximum:
    members = jnp.vectorize(_numerical_radius_member, signature="(n,n)->(),()")
    return CertifiedMaximum(*once_differentiable("numerical_radius", members, matrix))


def _numerical_radius_member(matrix: Array) -> tuple[Array, Array]:
    dtype = arguments.complex_dtype(matrix.dtype)
    finite = jnp.all(jnp.isfinite(matrix))
    matrix, exponent = rescaled(jnp.where(finite, matrix, jnp.zeros_like(matrix)))
    matrix = matrix.astype(dtype)
    hermitian, skew = (matrix + matrix.conj().T) / 2, 1j * (matrix - matrix.conj().T) / 2
    lowest, angle = _lowest_on_circle(*jax.lax.stop_gradient((jnp.zeros_like(matrix), -hermitian, -skew)))
    value = -_smallest_eigenvalue(_on_circle(jnp.zeros_like(matrix), -hermitian, -skew, angle, 1.0))
    # the bound moves with the value, up to the gap between them
    gap = jax.lax.stop_gradient(jnp.maximum(-lowest - value, 0))
    value, upper_bound = (times_power_of_two(bound, exponent) for bound in (value, value + gap))
    return arguments.nan_unless(value, finite), arguments.nan_unless(upper_bound, finite)


def kreiss_constant(matrix: Num[ArrayLike, "*batch n n"]) -> CertifiedMaximum:
    """Sup (|z| - 1) |(z I - matrix)^-1| over |z| > 1: a bound K on transient growth, K <= sup_k |matrix^k| <= e n K.

    With s = 1 / |z| it is the supremum of (1 - s) N(s) over 0 < s < 1, N(s) the largest norm of (I - w matrix)^-1 on
    |w| = s. On a circle a level g is a singular value of I - w matrix exactly where a pencil of size 2n has an
    eigenvalue on the unit circle; the level is lowered to the smallest singular value between neighbouring crossings
    until there is none. Between circles Hadamard helps: log N is convex in log s, so a chord is an upper bound, and the
    intervals of s with the largest bound are halved.

    Args:
      matrix: [..., n, n], real or complex.

    Returns:
      `CertifiedMaximum(value [...], upper_bound [...])`, value >= 1; both inf where the spectral radius exceeds one.
      At a spectral radius of one to rounding only the upper bound is inf: whether powers stay bounded cannot be decided
      then. NaN where the matrix is not finite.

    Raises:
      TypeError: an integer dtype. ValueError: not square.

    Cost: about 150 circles a member, each some 3 eigenvalue problems of size 2n and 40 `svd` of size n.
    Accuracy: levels are told apart to sqrt(eps) relative, and the chords of the last intervals add about 1e-4.
    Not differentiable (TypeError).
    Source: Trefethen, Embree, "Spectra and Pseudospectra" (2005), section 18; the level sets as in Boyd, Balakrishnan,
    Systems & Control Letters 15 (1990), 1-7, for discrete time.

    Example:
      >>> round(float(kreiss_constant(jnp.array([[0.5, 0.0], [0.0, -0.5]])).value), 4)
      1.0
    """
    (matrix,) = arguments.to_arrays("kreiss_constant", matrix=matrix)
    arguments.check_square("kreiss_constant", "matrix", matrix)
    (matrix,) = arguments.without_derivative(
        "kreiss_constant",
        "the matrix",
        (matrix,),
        remedy="use differences, or transient_growth, which is differentiable",
    )
    return _kreiss_constant(matrix)


@jax.jit
def _kreiss_constant(matrix: Array) -> CertifiedMaximum:
    member = jnp.vectorize(_kreiss_member, signature="(n,n)->(),()")
    return CertifiedMaximum(*member(matrix))


def _kreiss_member(matrix: Array) -> tuple[Array, Array]:
    finite = jnp.all(jnp.isfinite(matrix))
    matrix = jnp.where(finite, matrix, jnp.zeros_like(matrix)).astype(arguments.complex_dtype(matrix.dtype))
    n, eps = matrix.shape[-1], jnp.finfo(matrix.dtype).eps
    size = jnp.maximum(jnp.sqrt(jnp.sum(jnp.abs(matrix) ** 2)), eps)
    on_radius = jax.vmap(partial(_on_radius, matrix))
    # radii as s = 1 / (1 + exp(-a)): a resolves both ends, and 1 - s without cancellation; the last one is s = 1
    last = -jnp.log(eps) / 2
    a = jnp.append(jnp.linspace(-last - jnp.log(size), last, _RADII, dtype=size.dtype), 4 * last)
    attained, above = on_radius(a)
    value = jnp.maximum(jnp.max(jnp.exp(attained[:-1])), 1)

    def split(r: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, right, above_left, above_right, value = state
        worst = jax.lax.top_k(_between_radii(left, right, above_left, above_right), _SPLIT_RADII)[1]
        middle = (left[worst] + right[worst]) / 2
        attained, above = on_radius(middle)
        new = _RADII + _SPLIT_RADII * r + jnp.arange(_SPLIT_RADII)
        left, above_left = left.at[new].set(middle), above_left.at[new].set(above)
        right = right.at[new].set(right[worst]).at[worst].set(middle)
        above_right = above_right.at[new].set(above_right[worst]).at[worst].set(above)
        return left, right, above_left, above_right, jnp.maximum(value, jnp.max(jnp.exp(attained)))

    room = lambda nodes: jnp.concatenate([nodes, jnp.zeros(_SPLIT_RADII * _RADIUS_ROUNDS, nodes.dtype)])
    intervals = room(a[:-1]), room(a[1:]), room(above[:-1]), room(above[1:])
    *intervals, value = jax.lax.fori_loop(0, _RADIUS_ROUNDS, split, (*intervals, value))
    # below the first radius N is no larger than there
    upper_bound = jnp.exp(jnp.maximum(jnp.max(_between_radii(*intervals)), above[0]))
    unbounded = spectral_radius(matrix) > 1 + 100 * n * eps
    value, upper_bound = jnp.where(unbounded, jnp.inf, value), jnp.where(unbounded, jnp.inf, upper_bound)
    return arguments.nan_unless(value, finite), arguments.nan_unless(jnp.maximum(value, upper_bound), finite)


def _on_radius(matrix: Array, a: Array) -> tuple[Array, Array]:
    """(log of (1 - s) N(s) at a point of the circle, log of an upper bound of N(s)) for s = 1 / (1 + exp(-a))."""
    level = _smallest_on_circle(jax.nn.sigmoid(a).astype(matrix.dtype) * matrix)
    margin = jnp.sqrt(jnp.finfo(matrix.dtype).eps)
    # singular values below rounding of the matrix are not resolved
    resolved = level > 1e3 * matrix.shape[-1] * jnp.finfo(matrix.dtype).eps
    level = jnp.where(resolved, level, jnp.ones_like(level))
    log_norm = jnp.where(resolved, -jnp.log(level), jnp.inf)
    return jnp.where(resolved, jax.nn.log_sigmoid(-a) + log_norm, -jnp.inf), log_norm + margin


def _smallest_on_circle(matrix: Array) -> Array:
    """The smallest singular value of z I - matrix over |z| = 1, from above and to sqrt(eps) relative."""
    n, dtype = matrix.shape[-1], matrix.dtype
    eps = jnp.finfo(dtype).eps
    identity, zero = jnp.eye(n, dtype=dtype), jnp.zeros((n, n), dtype)
    real = jnp.finfo(dtype).dtype

    def smallest_at(angles: Array) -> Array:
        z = jnp.exp(1j * angles.astype(dtype))[:, None, None]
        return jnp.min(svd(z * identity[None] - matrix[None]).singular_values[:, -1])

    def crossings(level: Array) -> Array:
        """Angles [2n], sorted, at which `level` is a singular value; 0 where a pencil eigenvalue is off the circle."""
        scaled = level.astype(dtype) * identity
        left = jnp.block([[identity, zero], [scaled, matrix.conj().T]])
        right = jnp.block([[matrix, scaled], [zero, identity]])
        shift = jnp.asarray(1.37 * jnp.exp(0.7j), dtype)
        z = shift + 1 / eigenvalues(solve(right - shift * left, left))
        on_circle = jnp.abs(jnp.abs(z) - 1) < 4 * jnp.sqrt(eps)
        return jnp.sort(jnp.where(on_circle, jnp.angle(z), 0))

    def lower(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        level, _, rounds = state
        angles = crossings(level * (1 - jnp.sqrt(eps)))
        middles = (angles + jnp.append(angles[1:], angles[0] + 2 * jnp.pi)) / 2
        found = smallest_at(middles)
        return jnp.minimum(level, found), found < level * (1 - jnp.sqrt(eps)), rounds + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, lowered, rounds = state
        return lowered & (rounds < _LEVEL_ROUNDS)

    start = smallest_at(jnp.linspace(-jnp.pi, jnp.pi, 16, endpoint=False, dtype=real))
    return jax.lax.while_loop(unfinished, lower, (start, jnp.array(True), jnp.int32(0)))[0]


def _between_radii(left: Array, right: Array, above_left: Array, above_right: Array) -> Array:
    """Log of an upper bound of (1 - s) N(s) for a in [left, right]: the chord of log N over log s, maximized."""
    log_left, log_right = jax.nn.log_sigmoid(left), jax.nn.log_sigmoid(right)
    known = jnp.isfinite(above_left) & jnp.isfinite(above_right) & (right > left)
    run = jnp.where(known, log_right - log_left, 1)
    slope = jnp.maximum(jnp.where(known, above_right - above_left, 0), 0) / jnp.where(run > 0, run, 1)
    # the derivative of log(1 - s) + slope log s vanishes at s = slope / (1 + slope), that is at a = log(slope)
    a = jnp.clip(jnp.log(jnp.maximum(slope, jnp.finfo(slope.dtype).tiny)), left, right)
    bound = jax.nn.log_sigmoid(-a) + above_left + slope * (jax.nn.log_sigmoid(a) - log_left)
    return jnp.where(known, bound, jnp.where(right > left, jnp.inf, -jnp.inf))


def _lowest_on_circle(A: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """A lower bound of the smallest eigenvalue of A + cos(t) B + sin(t) C over all t, and the best t that was met."""
    real = jnp.finfo(A.dtype).dtype

    def at(angle: Array, radius: Array) -> Array:
        return _smallest_eigenvalue(_on_circle(A, B, C, angle, radius))

    def corner(starts: Array, width: Array) -> Array:
        """Where the tangents at both ends of an arc meet."""
        return at(starts + width / 2, 1 / jnp.cos(width / 2))

    def keep(starts: Array, corners: Array) -> tuple[Array, Array]:
        """The arcs with the lowest corners, and the lowest corner of the others."""
        order = jnp.argsort(corners)
        rest = corners[order[_KEPT_ARCS]] if corners.shape[0] > _KEPT_ARCS else jnp.max(corners)
        return starts[order[:_KEPT_ARCS]], rest

    def halve(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        starts, width, rest, lowest, best = state
        width = width / 2
        middles = starts + width
        values = at(middles, jnp.ones((), real))
        index = jnp.argmin(values)
        better = values[index] < lowest
        lowest, best = jnp.where(better, values[index], lowest), jnp.where(better, middles[index], best)
        children = jnp.concatenate([starts, middles])
        starts, others = keep(children, corner(children, width))
        return starts, width, jnp.minimum(rest, others), lowest, best

    width = jnp.asarray(2 * jnp.pi / _ARCS, real)
    angles = width * jnp.arange(_ARCS, dtype=real)
    values = at(angles, jnp.ones((), real))
    index = jnp.argmin(values)
    starts, rest = keep(angles, corner(angles, width))
    state = (starts, width, rest, values[index], angles[index])
    starts, width, rest, lowest, best = jax.lax.fori_loop(0, _ARC_ROUNDS, halve, state)
    return jnp.minimum(jnp.minimum(rest, lowest), jnp.min(corner(starts, width))), best


def _on_circle(A: Array, B: Array, C: Array, angle: Array, radius: Array | float) -> Array:
    """A + radius (cos(angle) B + sin(angle) C) for each angle [...]."""
    x, y = (jnp.expand_dims(radius * f(angle), (-2, -1)).astype(A.dtype) for f in (jnp.cos, jnp.sin))
    lead = (None,) * angle.ndim
    return A[lead] + x * B[lead] + y * C[lead]


def _smallest_eigenvalue(matrix: Array) -> Array:
    """Of a Hermitian matrix [..., n, n]; in closed form up to n = 2."""
    n = matrix.shape[-1]
    if n > 2:
        return eigh(matrix).values[..., 0]
    if n == 1:
        return matrix[..., 0, 0].real
    a, b, d = matrix[..., 0, 0].real, matrix[..., 0, 1], matrix[..., 1, 1].real
    squares = ((a - d) / 2) ** 2 + b.real**2 + b.imag**2
    positive = squares > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, jnp.ones_like(squares))), 0)
    return (a + d) / 2 - root
