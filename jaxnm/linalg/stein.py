"""The Stein (discrete Lyapunov) equation by doubling."""

from functools import reduce
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int32, Num

from jaxnm import arguments
from jaxnm.linalg.factorizations import matmul
from jaxnm.status import Status, first_failing

# Up to this size a matrix travels through the loop as n * n arrays over the batch, one an entry: on a CPU that is
# several times faster than batched products of [batch, n, n] with such small n.
_LARGEST_UNROLLED = 4


@flax.struct.dataclass
class SteinSolution:
    """Solution of `a x a^H - x + q = 0`."""

    x: Inexact[Array, "*batch n n"]
    """The solution; NaN where `status` is not OK."""
    residual: Float[Array, "*batch"]
    """Relative residual |a x a^H - x + q| / (|a x a^H| + |x| + |q|), Frobenius norms."""
    stable: Bool[Array, "*batch"]
    """Whether the spectral radius of `a` is below one, so that the solution is the limit of the series."""
    status: Int32[Array, "*batch"]
    """OK, NONFINITE_INPUT, NOT_STABLE or NONFINITE_RESULT."""


def solve_discrete_lyapunov(a: Num[ArrayLike, "*batch n n"], q: Num[ArrayLike, "*#batch n n"]) -> SteinSolution:
    """Solve `a x a^H - x + q = 0` for x, with scipy's convention: x is the sum of `a^k q (a^H)^k` over k >= 0.

    The sum is built by doubling, `x <- x + a x a^H`, `a <- a a`, which reaches 2^j terms in j steps and stops when a
    further step changes nothing. All of a batch goes through one loop.

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
      to one than the dtype resolves (about 2^-56 in float64). NONFINITE_RESULT: the sum overflowed. x is NaN then.

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
    x, converged = jax.lax.custom_linear_solve(
        lambda x: x - _image(a, x),
        q,
        solve=lambda _, right: _double(a, right),
        # the transpose of x -> a x a^H, without conjugation as JAX transposes, is x -> a^T x conj(a)
        transpose_solve=lambda _, right: _double(a.mT, right),
        has_aux=True,
    )
    image = _image(a, x)
    scale = _norm(image) + _norm(x) + _norm(q)
    residual = _norm(image - x + q) / jnp.maximum(scale, jnp.finfo(x.dtype).tiny)
    axes = (-2, -1)
    status = first_failing(
        (~jnp.all(jnp.isfinite(a) & jnp.isfinite(q), axes), Status.NONFINITE_INPUT),
        (~converged, Status.NOT_STABLE),
        (~jnp.all(jnp.isfinite(x), axes), Status.NONFINITE_RESULT),
    )
    return SteinSolution(x=x, residual=jax.lax.stop_gradient(residual), stable=converged, status=status)


def _double(a: Array, q: Array) -> tuple[Array, Array]:
    """(x, converged); x is NaN in members that did not converge."""
    n = a.shape[-1]
    resolution = jnp.finfo(a.dtype)
    max_steps = jnp.int32(resolution.nmant + 8)
    multiply, adjoint = (_multiply_entries, _adjoint_entries) if n <= _LARGEST_UNROLLED else (matmul, _adjoint)

    def largest(matrix: Any) -> Array:
        entries = [jnp.max(jnp.abs(leaf), (-2, -1)) if leaf is matrix else jnp.abs(leaf) for leaf in jax.tree.leaves(matrix)]
        return reduce(jnp.maximum, entries)

    def step(state: tuple[Any, Any, Array, Array, Array]) -> tuple[Any, Any, Array, Array, Array]:
        power, x, steps, converged, _ = state
        # without the barrier XLA fuses the two products and computes the inner one n times over
        increment = multiply(jax.lax.optimization_barrier(multiply(power, x)), adjoint(power))
        power = multiply(power, power)
        x = jax.tree.map(jnp.add, x, increment)
        size = largest(power)
        # |power| < 1 in a norm proves that the spectral radius is below one, whatever q is
        converged |= (n * size < 1) & (largest(increment) <= resolution.eps / 4 * largest(x))
        return power, x, steps + 1, converged, converged | ~jnp.isfinite(size)

    def unfinished(state: tuple[Any, Any, Array, Array, Array]) -> Array:
        _, _, steps, _, finished = state
        return (steps < max_steps) & ~jnp.all(finished)

    split, join = (_split, _join) if n <= _LARGEST_UNROLLED else (lambda matrix: matrix, lambda matrix: matrix)
    no_member = jnp.zeros(a.shape[:-2], bool)
    start = (split(a), split(q), jnp.int32(0), no_member, no_member)
    _, x, _, converged, _ = jax.lax.while_loop(unfinished, step, start)
    return jnp.where(converged[..., None, None], join(x), jnp.nan), converged


def _image(a: Array, x: Array) -> Array:
    """`a x a^H`."""
    if a.shape[-1] > _LARGEST_UNROLLED:
        return matmul(matmul(a, x), _adjoint(a))
    entries = _split(a)
    return _join(_multiply_entries(_multiply_entries(entries, _split(x)), _adjoint_entries(entries)))


def _adjoint(a: Array) -> Array:
    return a.conj().mT


def _norm(matrix: Array) -> Array:
    """Frobenius norm of each member, without overflow."""
    largest = jnp.max(jnp.abs(matrix), (-2, -1), keepdims=True)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return scale[..., 0, 0] * jnp.sqrt(jnp.sum(jnp.abs(matrix / scale) ** 2, (-2, -1)))


_Entries = list[list[Array]]


def _split(matrix: Array) -> _Entries:
    return [[matrix[..., i, j] for j in range(matrix.shape[-1])] for i in range(matrix.shape[-2])]


def _join(entries: _Entries) -> Array:
    return jnp.stack([jnp.stack(row, -1) for row in entries], -2)


def _multiply_entries(a: _Entries, b: _Entries) -> _Entries:
    columns = list(zip(*b, strict=True))
    return [[reduce(jnp.add, map(jnp.multiply, row, column)) for column in columns] for row in a]


def _adjoint_entries(a: _Entries) -> _Entries:
    return [[entry.conj() for entry in column] for column in zip(*a, strict=True)]
