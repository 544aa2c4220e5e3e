"""Cases: Schur forms and eigenvalues of many small matrices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender

_BATCH = 10_000


def _matrices(n: int) -> np.ndarray:
    random = np.random.default_rng(n)
    return random.normal(size=(_BATCH, n, n)) + 1j * random.normal(size=(_BATCH, n, n))


def schur_form(n: int) -> Case:
    """Complex Schur forms of 10,000 complex n x n matrices."""
    from jaxnm.linalg import schur

    matrices, some = _matrices(n), 1000
    on_device = (jnp.asarray(matrices),)

    def scipy_loop(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.linalg import schur as scipy_schur

        forms = [scipy_schur(matrix, output="complex") for matrix in matrices]
        return np.stack([T for T, _ in forms]), np.stack([Q for _, Q in forms])

    def error(answer: Any) -> float:
        T, Q = (answer.T, answer.Q) if hasattr(answer, "Q") else answer
        residual = matrices[: len(T)] - Q @ T @ Q.conj().swapaxes(-1, -2)
        return float(
            (np.linalg.norm(residual, axis=(-2, -1)) / np.linalg.norm(matrices[: len(T)], axis=(-2, -1))).max()
        )

    peers = [Contender("scipy loop", scipy_loop, (matrices[:some],), module="scipy", subset=(some, _BATCH))]
    if jax.default_backend() == "cpu":  # the only platform where JAX has it
        peers.append(Contender("jax.lax.linalg.schur", jax.lax.linalg.schur, on_device, jitted=True))
    return Case(
        name=f"schur-{n}",
        description=f"{_BATCH:,} complex Schur forms, {n} x {n}; ours are sorted by modulus, the peers' are not",
        ours=Contender("ours", schur, on_device, jitted=True),
        peers=tuple(peers),
        error=error,
        metric="largest |A - Q T Q^H| / |A| of the batch",
        tolerance=1e-13,
        flops=25 * 4 * n**3 * _BATCH,
    )


def eigenvalues(n: int) -> Case:
    """Eigenvalues of 10,000 complex n x n matrices."""
    from jaxnm.linalg import eigenvalues as ours

    matrices = _matrices(n)
    on_device = (jnp.asarray(matrices),)
    checked = 500

    def error(answer: np.ndarray) -> float:
        shifted = matrices[:checked, None] - answer[:checked, :, None, None] * np.eye(n)
        smallest = np.linalg.svd(shifted, compute_uv=False)[..., -1]
        return float((smallest / np.linalg.norm(matrices[:checked], axis=(-2, -1))[:, None]).max())

    peers = [Contender("numpy eigvals", np.linalg.eigvals, (matrices,))]
    if jax.default_backend() == "cpu":
        peers.append(Contender("jnp eigvals", jnp.linalg.eigvals, on_device, jitted=True))
    return Case(
        name=f"eigenvalues-{n}",
        description=f"eigenvalues of {_BATCH:,} complex matrices, {n} x {n}; ours are sorted by modulus",
        ours=Contender("ours", ours, on_device, jitted=True),
        peers=tuple(peers),
        error=error,
        metric=f"largest smallest singular value of A - lambda I over |A|, over all eigenvalues of {checked} members",
        tolerance=1e-13,
        flops=10 * 4 * n**3 * _BATCH,
    )


CASES: dict[str, Callable[[], Case]] = {
    **{f"schur-{n}": partial(schur_form, n) for n in (2, 3, 4, 6)},
    **{f"eigenvalues-{n}": partial(eigenvalues, n) for n in (2, 3, 4, 6)},
}
