"""The Stein (discrete Lyapunov) equation by doubling."""

import math
from functools import partial, reduce

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int32, Num

from jaxnm import arguments
from jaxnm.linalg.blocks import map_blocks
from jaxnm.linalg.factorizations import einsum
from jaxnm.linalg.implicit import solve_implicitly
from jaxnm.status import Status, first_failing

# Up to this size a product is written out as a sum of n outer products along the batch: on a CPU that is several times
# faster than a batched matrix product of such small matrices.
_LARGEST_UNROLLED = 16
# A CPU works through a large batch in blocks of this many bytes an operand, more than twice as fast as all at once.
# Not a power of two: rows at such distances compete for the same lines of the cache.
_BLOCK_BYTES = 25_000


@flax.struct.dataclass
class SteinSolution:
    """Solution of `a x a^H - x + q = 0`."""

    x: Inexact[Array, "*batch n n"]
    """The solution; NaN where `status` is neither OK nor INACCURATE."""
    residual: Float[Array, "*batch"]
    """Relative residual |a x a^H - x + q| / (|a x a^H| + |x| + |q|), Frobenius norms."""
    stable: Bool[Array, "*batch"]
    """Whether the spectral radius of `a` is below one, so that the solution is the limit of the series."""
    status: Int32[Array, "*batch"]
    """OK, NONFINITE_INPUT, NOT_STABLE, NONFINITE_RESULT or INACCURATE."""


def solve_discrete_lyapunov(a: Num[ArrayLike, "*#batch n n"], q: Num[ArrayLike, "*#batch n n"]) -> SteinSolution:
    """Solve `a x a^H - x + q = 0` for x, with scipy's convention: x is the sum of `a^k q (a^H)^k` over k >= 0.

    The sum is built by doubling, `x <- x + a x a^H`, `a <- a a`, which reaches 2^j terms in j steps and stops where the
    rest is below rounding. A batch goes through one
    loop, on a CPU in blocks that fit its cache.

    Args:
      a: [..., n, n], real or complex, spectral radius below one.
      q: [..., n, n] of the same dtype; the batch axes broadcast against those of `a`. Any matrix: for Hermitian q the
        solution is Hermitian, for positive definite q and stable a it is positive definite.

    Returns:
      `SteinSolution(x, residual, stable, status)`, batched like the inputs.

    Raises:
      TypeError: an integer dtype. ValueError: not square, or sizes that differ.

    Status:
      NONFINITE_INPUT: `a` or `q` holds inf or NaN. NOT_STABLE: the spectral radius of `a` is one or above, or closer
      to one than the dtype resolves (about 2^-56 in float64). NONFINITE_RESULT: the sum overflowed. x is NaN in these.
      INACCURATE: the residual is above sqrt(eps), as happens where powers of `a` cancel; x is what was reached.

    Cost: 6 n^3 flops a step, log2(36 / (1 - spectral radius)) steps; the slowest member of a batch sets the number.
    Differentiable in `a` and `q` to every order wherever the status is OK, by one more Stein equation with the
    transposed matrix, not through the loop. Gradients of failed members are NaN, those of the others unharmed.

    Source: R. A. Smith, "Matrix equation XA + BX = C", SIAM J. Appl. Math. 16 (1968), 198-201 (the doubling).

    Example:
      >>> solution = solve_discrete_lyapunov(jnp.array([[0.5]]), jnp.array([[3.0]]))
      >>> float(solution.x[0, 0]), int(solution.status)
      (4.0, 0)
    """
    a, q = arguments.to_arrays("solve_discrete_lyapunov", a=a, q=q)
    arguments.check_square("solve_discrete_lyapunov", "a", a)
    arguments.check_shape(
        "solve_discrete_lyapunov", "q", q, f"[..., {a.shape[-1]}, {a.shape[-1]}]", lambda s: s[-2:] == a.shape[-2:]
    )
    return _solve(a, q)


@jax.jit
def _solve(a: Array, q: Array) -> SteinSolution:
    batch = jnp.broadcast_shapes(a.shape[:-2], q.shape[:-2])
    a = jnp.broadcast_to(a, batch + a.shape[-2:])
    q = jnp.broadcast_to(q, batch + q.shape[-2:])
    flat = tuple(matrix.reshape(math.prod(batch), *matrix.shape[-2:]) for matrix in (a, q))
    members = max(1, _BLOCK_BYTES // (a.shape[-1] ** 2 * a.dtype.itemsize))
    solution = map_blocks(_solve_block, flat, cpu=members)
    return jax.tree.map(lambda leaf: leaf.reshape(batch + leaf.shape[1:]), solution)


def _solve_block(a: Array, q: Array) -> SteinSolution:
    a, q = _batch_last(a), _batch_last(q)
    x, converged = solve_implicitly(
        lambda x: x - _image(a, x),
        q,
        partial(_double, a),
        # the transpose of x -> a x a^H, without conjugation as JAX transposes, is x -> a^T x conj(a)
        transpose_solve=partial(_double, a.swapaxes(0, 1)),
        figures=jnp.zeros(a.shape[2:], a.dtype),
        member=lambda leaf: leaf[0, 0] if leaf.ndim == a.ndim else leaf,
    )
    converged = converged.real > 0.5
    image = _image(a, x)
    scale = _norm(image) + _norm(x) + _norm(q)
    residual = _norm(image - x + q) / jnp.maximum(scale, jnp.finfo(x.dtype).tiny)
    status = first_failing(
        (~jnp.all(jnp.isfinite(a) & jnp.isfinite(q), (0, 1)), Status.NONFINITE_INPUT),
        (~converged, Status.NOT_STABLE),
        (~jnp.all(jnp.isfinite(x), (0, 1)), Status.NONFINITE_RESULT),
        (residual > jnp.sqrt(jnp.finfo(x.dtype).eps), Status.INACCURATE),
    )
    usable = (status == Status.OK) | (status == Status.INACCURATE)
    x = arguments.nan_unless(jnp.moveaxis(x, (0, 1), (-2, -1)), usable, 2)
    return SteinSolution(x=x, residual=jax.lax.stop_gradient(residual), stable=converged, status=status)


def _batch_last(matrix: Array) -> Array:
    """[..., n, n] to [n, n, ...]: products of many small matrices then run along the contiguous batch."""
    return jnp.moveaxis(matrix, (-2, -1), (0, 1))


def _double(a: Array, q: Array) -> tuple[Array, Array]:
    """(x, 1 where converged) for a, q [n, n, ...]; x is NaN in members that did not converge."""
    n = a.shape[0]
    resolution = jnp.finfo(a.dtype)
    max_steps = jnp.int32(resolution.nmant + 8)

    def step(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        power, x, steps, converged, _ = state
        # without the barriers XLA fuses the products and computes the inner ones n times over
        once = jax.lax.optimization_barrier
        x = x + once(_multiply(once(_multiply(power, x)), _adjoint(power)))
        power = once(_multiply(power, power))
        size = _largest(power)
        # The next increment is below (n size)^2 |x|: rounding. And a norm of the power below one proves stability.
        converged |= (n * size) ** 2 <= resolution.eps / 4
        return power, x, steps + 1, converged, converged | ~jnp.isfinite(size)

    def unfinished(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        _, _, steps, _, finished = state
        return (steps < max_steps) & ~jnp.all(finished)

    no_member = jnp.zeros(a.shape[2:], bool)
    _, x, _, converged, _ = jax.lax.while_loop(unfinished, step, (a, q, jnp.int32(0), no_member, no_member))
    return jnp.where(converged, x, jnp.full_like(x, jnp.nan)), converged.astype(a.dtype)


def _multiply(a: Array, b: Array) -> Array:
    if a.shape[0] > _LARGEST_UNROLLED:
        return einsum("ik...,kj...->ij...", a, b)
    return reduce(jnp.add, [a[:, k, None] * b[None, k] for k in range(a.shape[0])])


def _adjoint(a: Array) -> Array:
    return a.swapaxes(0, 1).conj()


def _image(a: Array, x: Array) -> Array:
    """`a x a^H`."""
    return _multiply(_multiply(a, x), _adjoint(a))


def _largest(matrix: Array) -> Array:
    return jnp.max(jnp.abs(matrix), (0, 1))


def _norm(matrix: Array) -> Array:
    """Frobenius norm of each member, without overflow."""
    largest = _largest(matrix)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return scale * jnp.sqrt(jnp.sum((jnp.abs(matrix) / scale[None, None]) ** 2, (0, 1)))
