"""Poisson's equation and diffusion in 3 to 10 dimensions, by exponential sums and by sweeps: residuals, ranks, times.

Run it with `python -m examples.tensor_train_poisson`. Times are of the second call, the first one compiles.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnm.tensor_train as tt

KEY = jax.random.key(0)
EPS = 1e-9


def second_difference(n: int) -> np.ndarray:
    """Minus the second derivative on n inner points of the unit interval, zero at both ends."""
    return (n + 1) ** 2 * (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))


def diffusion(d: int, n: int, strength: float) -> tt.TTMatrix:
    """Minus div(a grad u) on the unit cube with a = 1 + strength prod_k exp(-8 (x_k - 1/2)^2), of ranks 4."""
    step = 1 / (n + 1)
    bump = lambda x: np.exp(-8 * (x - 0.5) ** 2)
    slope = (np.eye(n + 1, n) - np.eye(n + 1, n, k=-1)) / step
    mass, stiff = np.diag(bump(np.arange(1, n + 1) * step)), slope.T * bump((np.arange(n + 1) + 0.5) * step) @ slope
    core = np.zeros((4, n, n, 4))
    for place, (same, other) in enumerate(((np.eye(n), slope.T @ slope), (mass, stiff))):
        a, b = 2 * place, 2 * place + 1
        core[a, :, :, a], core[b, :, :, a], core[b, :, :, b] = same, other, same
    first = np.concatenate([core[1:2, ..., :2], strength * core[3:4, ..., 2:]], -1)
    return tt.matrix_from_cores([first, *[core] * (d - 2), core[..., :1] + core[..., 2:3]])


def ones(d: int, n: int) -> tt.TT:
    """The right-hand side of all examples."""
    return tt.from_cores([np.ones((1, n, 1))] * d)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """(result, milliseconds of the best of two calls after the first)."""
    result = jax.block_until_ready(function())
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(function())
        best = min(best, time.perf_counter() - start)
    return result, 1000 * best


def relative_residual(matrix: tt.TTMatrix, solution: tt.TT, right: tt.TT) -> float:
    """|A x - b| / |b|."""
    return float(tt.distance(matrix @ solution, right) / tt.norm(right))


def rounded(right: tt.TT, spacing: float) -> tt.TT:
    """The solution of Poisson's equation at small ranks."""
    whole = tt.laplace_inverse(right, spacing=spacing, eps=EPS)
    return tt.round(whole, max_rank=16, eps=1e-8, method="randomized", key=KEY)


def by_exponentials() -> None:
    """The inverse of the ten-dimensional Laplacian."""
    print(f"10-D Poisson by exponential sums, right-hand side of ones, eps = {EPS:.0e}")
    print(
        f"{'n':>4} {'terms':>6} {'sum of products':>16} {'train, unrounded':>17} {'and rounded':>12}  ranks, residual"
    )
    for n in (15, 63, 255):
        d, spacing = 10, 1 / (n + 1)
        rows, right = [jnp.ones(n)] * d, ones(d, n)
        factors_of = jax.jit(lambda h, rows=rows: tt.laplace_inverse_factors(rows, spacing=h, eps=EPS))
        factors, products = timed(partial(factors_of, spacing))
        if n > 63:
            print(f"{n:4d} {factors[0].shape[0]:6d} {products:13.2f} ms {'-':>17} {'-':>12}")
            continue
        _, unrounded = timed(partial(tt.laplace_inverse, right, spacing=spacing, eps=EPS))
        solution, total = timed(partial(rounded, right, spacing))
        matrix = tt.kronecker_sum([second_difference(n)] * d)
        residual = relative_residual(matrix, solution, right)
        print(
            f"{n:4d} {factors[0].shape[0]:6d} {products:13.2f} ms {unrounded:14.2f} ms {total:9.1f} ms"
            f"  {int(solution.ranks.max())}, {residual:.1e}"
        )


def by_sweeps() -> None:
    """`solve` on constant and variable coefficients, and in quantics."""
    print("\nBy sweeps, right-hand side of ones")
    print(f"{'system':44} {'unknowns':>9} {'tol':>6} {'residual':>9} {'rank':>4} {'sweeps':>6} {'time':>11}")
    cases = [
        ("Poisson, 3-D, n = 16", tt.kronecker_sum([second_difference(16)] * 3), 12, 1e-8),
        ("Poisson, 10-D, n = 16", tt.kronecker_sum([second_difference(16)] * 10), 12, 1e-6),
        ("Poisson, 50-D, n = 16", tt.kronecker_sum([second_difference(16)] * 50), 8, 1e-6),
        ("diffusion, contrast 11, 3-D, n = 32", diffusion(3, 32, 10.0), 12, 1e-6),
        ("diffusion, contrast 11, 10-D, n = 16", diffusion(10, 16, 10.0), 24, 1e-6),
        *((f"Poisson, quantics, 2^{q} points", tt.quantics.laplacian(q, spacing=1 / (2**q + 1)), 5, 1e-8)
          for q in (12, 14)),
    ]  # fmt: skip
    for name, matrix, max_rank, tol in cases:
        d, n = len(matrix.rows), matrix.rows[0]
        right = ones(d, n)
        result, milliseconds = timed(partial(tt.solve, matrix, right, max_rank=max_rank, tol=tol, key=KEY))
        rank, sweeps = int(result.ranks.max()), int(result.num_sweeps)
        print(
            f"{name:44} {f'{n}^{d}':>9} {tol:6.0e} {float(result.residual):9.1e} {rank:4d} {sweeps:6d}"
            f" {milliseconds:8.1f} ms"
        )


@partial(jax.jit, static_argnames=("largest", "num_steps", "max_rank"))
def preconditioned(
    matrix: tt.TTMatrix, right: tt.TT, spacing: float, key: jax.Array, *, largest: float, num_steps: int, max_rank: int
) -> tuple[tt.TT, jax.Array]:
    """Richardson's iteration x <- x + w P (b - A x), w = 2 / (1 + max a), and |b - A x| / |b| before each step."""

    def rounded(train: tt.TT, key: jax.Array) -> tt.TT:
        return tt.round(train, max_rank=max_rank, method="randomized", key=key)

    def step(x: tt.TT, key: jax.Array) -> tuple[tt.TT, jax.Array]:
        first, second = jax.random.split(key)
        difference = right - matrix @ x
        change = tt.laplace_inverse(rounded(difference, first), spacing=spacing, eps=0.1)
        return rounded(x + 2 / (1 + largest) * change, second), tt.norm(difference) / tt.norm(right)

    start = tt.from_cores([np.zeros((1, n, 1)) for n in right.shape], max_rank=max_rank)
    return jax.lax.scan(step, start, jax.random.split(key, num_steps))


def by_preconditioning() -> None:
    """The inverse Laplacian as a preconditioner of variable coefficients."""
    print("\nBy Richardson's iteration with the inverse Laplacian: diffusion, contrast 2, residual by step")
    for d, n, max_rank in ((3, 64, 12), (8, 16, 12)):
        run = partial(preconditioned, diffusion(d, n, 1.0), ones(d, n), 1 / (n + 1), KEY)
        (_, residuals), milliseconds = timed(partial(run, largest=2.0, num_steps=12, max_rank=max_rank))
        history = " ".join(f"{value:.0e}" for value in residuals)
        print(f"{d}-D, n = {n}, ranks {max_rank}, {milliseconds:.0f} ms: {history}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    by_exponentials()
    by_sweeps()
    by_preconditioning()
