"""Cases: Schur forms and eigenvalues of many small matrices, both ends of the spectrum of a large operator."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Case, Contender

_BATCHES = {"1e3": 1000, "1e4": 10_000, "1e5": 100_000, "1e6": 1_000_000}
_SIZES = [(n, size) for n in (2, 3, 4, 6) for size in ("1e3", "1e4", "1e6")]
_TOLERANCE = 1e-6  # of Lanczos


def _matrices(n: int, batch: int) -> np.ndarray:
    random = np.random.default_rng(n)
    return random.normal(size=(batch, n, n)) + 1j * random.normal(size=(batch, n, n))


def schur_form(n: int, size: str) -> Case:
    """Complex Schur forms of a batch of complex n x n matrices."""
    from jaxnm.linalg import schur

    batch = _BATCHES[size]
    matrices, some = _matrices(n, batch), 1000
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

    peers = [Contender("scipy loop", scipy_loop, (matrices[:some],), module="scipy", subset=(some, batch))]
    if jax.default_backend() == "cpu":  # the only platform where JAX has it
        peers.append(Contender("jax.lax.linalg.schur", jax.lax.linalg.schur, on_device, jitted=True))
    return Case(
        name=f"schur-{n}-{size}",
        description=f"{batch:,} complex Schur forms, {n} x {n}; ours are sorted by modulus, the peers' are not",
        ours=Contender("ours", schur, on_device, jitted=True),
        peers=tuple(peers),
        error=error,
        metric="largest |A - Q T Q^H| / |A| of the batch",
        tolerance=1e-13,
        flops=25 * 4 * n**3 * batch,
    )


def eigenvalues(n: int, size: str) -> Case:
    """Eigenvalues of a batch of complex n x n matrices."""
    from jaxnm.linalg import eigenvalues as ours

    batch = _BATCHES[size]
    matrices = _matrices(n, batch)
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
        name=f"eigenvalues-{n}-{size}",
        description=f"eigenvalues of {batch:,} complex matrices, {n} x {n}; ours are sorted by modulus",
        ours=Contender("ours", ours, on_device, jitted=True),
        peers=tuple(peers),
        error=error,
        metric=f"largest smallest singular value of A - lambda I over |A|, over all eigenvalues of {checked} members",
        tolerance=1e-13,
        flops=10 * 4 * n**3 * batch,
    )


def laplacian_ends() -> Case:
    """Smallest and largest eigenvalue of the five-point Laplacian; they have a closed form."""
    from jaxnm.linalg import extreme_eigenvalues

    shape = (60, 47)
    squares = [4 * np.sin(np.pi * np.array([1, n]) / (2 * (n + 1))) ** 2 for n in shape]
    exact = squares[0] + squares[1]

    def product(v: jax.Array) -> jax.Array:
        padded = jnp.pad(v, 1)
        return 4 * v - padded[:-2, 1:-1] - padded[2:, 1:-1] - padded[1:-1, :-2] - padded[1:-1, 2:]

    def ours(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        ends = extreme_eigenvalues(product, start, key=jax.random.key(0), num_steps=400, tolerance=_TOLERANCE)
        return ends.smallest[0], ends.largest[0]

    start = jnp.zeros(shape)
    return Case(
        name="lanczos-laplacian",
        description=f"both ends of the spectrum of the five-point Laplacian on {shape[0]} x {shape[1]} points, "
        f"residual below {_TOLERANCE:g} of the norm; scipy is given its own sparse matrix",
        ours=Contender("ours", ours, (start,), jitted=True),
        peers=(
            Contender("scipy eigsh, sparse matrix", _sparse_ends, shape, module="scipy"),
            Contender(
                "matfree, 400 steps", partial(_matfree_ends, product, 400), (start,), jitted=True, module="matfree"
            ),
        ),
        error=lambda answer: float(np.max(np.abs(np.asarray(answer) - exact)) / exact[1]),
        metric="largest |eigenvalue - closed form| over the largest eigenvalue",
        tolerance=1e-10,
    )


def _sparse_ends(rows: int, columns: int) -> tuple[float, float]:
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    line = [
        sparse.diags_array([-np.ones(n - 1), 2 * np.ones(n), -np.ones(n - 1)], offsets=[-1, 0, 1])
        for n in (rows, columns)
    ]
    matrix = sparse.csr_array(sparse.kronsum(line[1], line[0], format="csr"))
    values = eigsh(matrix, k=2, which="BE", tol=_TOLERANCE, return_eigenvectors=False)
    return float(values.min()), float(values.max())


def _matfree_ends(product: Callable[[Any], Any], num_steps: int, start: Any) -> tuple[jax.Array, jax.Array]:
    """Tridiagonal form with full reorthogonalization, then its eigenvalues: the steps must be known before."""
    from jax.flatten_util import ravel_pytree
    from matfree import decomp

    flat, unravel = ravel_pytree(start)
    vector = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    form = decomp.tridiag_sym(num_steps, materialize=True, reortho="full")
    T = form(lambda v: ravel_pytree(product(unravel(v)))[0], vector).J_small
    values = jnp.linalg.eigvalsh(T)
    return values[0], values[-1]


def network_ends() -> Case:
    """Smallest and largest eigenvalue of the Hessian of a network's loss, from Hessian-vector products."""
    from jax.flatten_util import ravel_pytree
    from jax.tree_util import Partial

    from examples.edge_of_stability import hessian_product, problem
    from jaxnm.linalg import extreme_eigenvalues

    task = problem(1797, 288)
    loss, params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (task.loss, task.params))
    flat, unravel = ravel_pytree(params)

    def ours(loss: Any, params: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        operator = Partial(hessian_product, loss, params)
        ends = extreme_eigenvalues(operator, params, key=jax.random.key(0), num_steps=200, tolerance=_TOLERANCE)
        vectors = jax.vmap(lambda tree: ravel_pytree(tree)[0])
        return ends.smallest[0], ends.largest[0], vectors(ends.smallest_vectors)[0], vectors(ends.largest_vectors)[0]

    product = jax.jit(lambda vector: ravel_pytree(hessian_product(loss, params, unravel(vector)))[0])

    def scipy_ends(dimension: int) -> tuple[np.ndarray, ...]:
        from scipy.sparse.linalg import aslinearoperator, eigsh

        shape = (dimension, dimension)
        operator = aslinearoperator(
            SimpleNamespace(shape=shape, dtype=np.float64, matvec=lambda v: np.asarray(product(v)))
        )
        values, vectors = eigsh(operator, k=2, which="BE", tol=_TOLERANCE)
        return values[0], values[1], vectors[:, 0], vectors[:, 1]

    def error(answer: tuple[np.ndarray, ...]) -> float:
        smallest, largest, low, high = answer
        residuals = [np.linalg.norm(product(v) - value * v) for value, v in ((smallest, low), (largest, high))]
        return float(max(residuals) / abs(largest))

    return Case(
        name="lanczos-network",
        description=f"both ends of the spectrum of the Hessian of a network with {flat.size:,} parameters on 1,797 "
        f"images, from Hessian-vector products, residual below {_TOLERANCE:g} of the norm",
        ours=Contender("ours", ours, (loss, params), jitted=True),
        peers=(Contender("scipy eigsh, jitted product", scipy_ends, (flat.size,), module="scipy"),),
        error=error,
        metric="largest |H v - eigenvalue v| over the largest eigenvalue, v the unit vectors returned",
        tolerance=1e-5,
        rounds=3,
    )


CASES: dict[str, Callable[[], Case]] = {
    **{f"schur-{n}-{size}": partial(schur_form, n, size) for n, size in _SIZES},
    **{f"eigenvalues-{n}-{size}": partial(eigenvalues, n, size) for n, size in _SIZES},
    "lanczos-laplacian": laplacian_ends,
    "lanczos-network": network_ends,
}
