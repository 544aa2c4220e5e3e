"""Quadratic Lyapunov functions of iteration matrices: the Schur (Casoratian) one, and one from eigenvectors."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Num

from jaxnm import arguments, trees
from jaxnm.first_order.state_space import StateSpace, check_method, curvatures_of, iteration_matrix
from jaxnm.linalg import eigh, left_eigenvectors, matmul, schur


@flax.struct.dataclass
class SchurLyapunov:
    """Per curvature: a form with `M^T P M = det(M) P`, and whether it is positive definite: a certificate."""

    P: Float[Array, "*batch n n"]
    """The form, normalized to P[0, 0] = 1."""
    rate: Float[Array, "*batch"]
    """sqrt |det M|: the certified rate per iterate where `valid`."""
    valid: Bool[Array, "*batch"]
    """Whether the eigenvalues are a strictly complex pair by more than rounding."""


def schur_lyapunov(method: StateSpace, eigenvalues: Float[ArrayLike, "*batch"]) -> SchurLyapunov:
    """The Lyapunov function of the complex Schur form, block by block, and where it holds.

    For a 2 x 2 block M the form `z^T P z = z_1^2 - a z_1 z_2 - b z_2^2` (of [[a, b], [1, 0]]; any real block has one)
    obeys `M^T P M = det(M) P` exactly. With a strictly complex pair P is positive definite and the form decreases by
    `rate^2 = |det M|`, the squared spectral radius. With real eigenvalues the identity still holds but P is
    indefinite, the rate is the geometric mean of the two moduli, and nothing is certified.

    Args:
      method: state-space form with n states.
      eigenvalues: [...] curvatures.

    Returns:
      `SchurLyapunov(P [..., n, n], rate [...], valid [...])`, P normalized to P[0, 0] = 1. `valid` asks for
      discriminant < -16 eps (half^2 + |b c|) of [[a, b], [c, d]], half = (a - d) / 2: strictly complex by more than
      rounding. n = 1: P = 1, rate = |M|, valid where finite. n > 2: not valid anywhere, P and rate NaN, since the
      squared last Schur coordinate has rank one (two for a conjugate pair) and cannot be positive definite; use
      `eigen_lyapunov` there.

    Raises:
      TypeError: an integer array, or a method of another type.

    Cost: closed form. Differentiable in P and rate where `valid`.
    Source: arXiv:2310.15880, Theorems 1 and 2.

    Example:
      >>> from jaxnm.first_order import heavy_ball
      >>> result = schur_lyapunov(heavy_ball(0.1, 0.81), jnp.array([1.0]))
      >>> round(float(result.rate[0]), 6), bool(result.valid[0])
      (0.9, True)
    """
    check_method("schur_lyapunov", method)
    check_method("schur_lyapunov", method)
    return _schur_lyapunov(
        iteration_matrix(method, curvatures_of("schur_lyapunov", "eigenvalues", eigenvalues, method))
    )


@jax.jit
def _schur_lyapunov(matrix: Array) -> SchurLyapunov:
    n, batch = matrix.shape[-1], matrix.shape[:-2]
    if n == 1:
        modulus = jnp.abs(matrix[..., 0, 0])
        return SchurLyapunov(jnp.ones_like(matrix), modulus, jnp.isfinite(modulus))
    if n > 2:
        invalid = jnp.zeros(batch, bool)
        nan = arguments.nan_unless(matrix, invalid, 2)
        return SchurLyapunov(nan, nan[..., 0, 0], invalid)
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    half = (a - d) / 2
    discriminant = half * half + b * c
    margin = 16 * jnp.finfo(matrix.dtype).eps * (half * half + jnp.abs(b * c))
    # c = 0 leaves real eigenvalues, so nothing is lost where the normalization is left out
    c = jnp.where(c == 0, jnp.ones_like(c), c)
    cross = -half / c
    P = jnp.stack([jnp.stack([jnp.ones_like(a), cross], -1), jnp.stack([cross, -b / c], -1)], -2)
    determinant = jnp.abs(matrix[..., 0, 0] * d - b * matrix[..., 1, 0])
    positive = determinant > 0
    rate = jnp.where(positive, jnp.sqrt(jnp.where(positive, determinant, jnp.ones_like(determinant))), determinant)
    return SchurLyapunov(P, rate, discriminant < -margin)


def casoratian(x_before: Any, x: Any, x_after: Any, x_star: Any) -> Float[Array, ""]:
    """The paper's V_k = |x_{k-1} - x*|^2 - <x_k - x*, x_{k-2} - x*>: no step size, momentum or curvature inside.

    On a quadratic every eigendirection with the companion block [[a, b], [1, 0]] contributes a term that is multiplied
    by -b an iterate, exactly, for complex and for real eigenvalues. It certifies a rate only where
    `schur_lyapunov(...).valid` holds on the whole spectrum, and is identically 0 for one-state methods. A difference
    of nearly equal numbers: expect noise of about eps |x - x*|^2.

    Args:
      x_before: x_{k-2}, any pytree of floating arrays.
      x: x_{k-1}, of the same structure.
      x_after: x_k, of the same structure.
      x_star: the minimizer, of the same structure.

    Returns:
      V_k, a scalar.

    Raises:
      ValueError: trees that differ in structure or shapes, with the path of the first difference.

    Cost: two inner products. Differentiable everywhere. Source: arXiv:2310.15880, equation (1).

    Example:
      >>> float(casoratian(jnp.array([4.0]), jnp.array([2.0]), jnp.array([1.0]), jnp.array([0.0])))
      0.0
    """
    trees.check_same_structure("casoratian", x=x, x_before=x_before, x_after=x_after, x_star=x_star)
    for name, tree in (("x", x), ("x_before", x_before), ("x_after", x_after), ("x_star", x_star)):
        for leaf in jax.tree.leaves(tree):
            arguments.check_real("casoratian", name, *arguments.to_arrays("casoratian", **{name: leaf}))
    return _casoratian(x_before, x, x_after, x_star)


@jax.jit
def _casoratian(x_before: Any, x: Any, x_after: Any, x_star: Any) -> Array:
    before, now, after = (optax.tree.sub(tree, x_star) for tree in (x_before, x, x_after))
    return jnp.asarray(optax.tree.vdot(now, now)) - jnp.asarray(optax.tree.vdot(after, before))


def eigen_lyapunov(
    matrix: Num[ArrayLike, "*batch n n"], *, slack: Float[ArrayLike, ""] = 0.0
) -> Inexact[Array, "*batch n n"]:
    """A positive definite P with `M^H P M <= (rate + slack)^2 P`, rate = spectral radius, for any n.

    Without slack P is the sum of w w^H over all unit left eigenvectors w, and the decrease is exactly the squared
    spectral radius. A defective matrix has too few eigenvectors and needs a slack: then P = Q D^2 Q^H from the Schur
    form, D = diag(delta^(n-1), ..., 1) with delta = min(1, slack / |strict upper part of T|).

    Args:
      matrix: [..., n, n], real or complex.
      slack: scalar >= 0, added to the rate.

    Returns:
      P [..., n, n], symmetric (Hermitian) with unit largest eigenvalue; NaN where the matrix is not finite, and
      where P is singular to rounding (smallest eigenvalue below n eps): a defective matrix without slack, or with too
      small a slack.

    Raises:
      TypeError: an integer dtype. ValueError: not square, or a negative slack as a Python number.

    Cost: one Schur form and n triangular solves. Not differentiable (TypeError: eigenvectors of repeated
    eigenvalues are not); `jaxnm.linalg.solve_discrete_lyapunov` gives a differentiable one.

    Example:
      >>> P = eigen_lyapunov(jnp.array([[0.5, 1.0], [0.0, 0.5]]), slack=0.1)
      >>> bool(lyapunov_decrease(P, jnp.array([[0.5, 1.0], [0.0, 0.5]]), 0.6) >= -1e-6)
      True
    """
    (matrix,) = arguments.to_arrays("eigen_lyapunov", matrix=matrix)
    arguments.check_square("eigen_lyapunov", "matrix", matrix)
    arguments.check_number("eigen_lyapunov", "slack", slack, "a finite number >= 0", lambda s: s >= 0, "pass 0 or more")
    slack = arguments.constant(slack, jnp.finfo(matrix.dtype).dtype)
    matrix, slack = arguments.without_derivative(
        "eigen_lyapunov", "an argument", (matrix, slack), remedy="use jaxnm.linalg.solve_discrete_lyapunov"
    )
    return _eigen_lyapunov(matrix, slack)


@jax.jit
def _eigen_lyapunov(matrix: Array, slack: Array) -> Array:
    by_vectors, by_scaling = eigen_lyapunov_candidates(matrix, slack)
    return arguments.nan_unless(jnp.where(slack > 0, by_scaling, by_vectors), slack >= 0)


def eigen_lyapunov_candidates(matrix: Array, slack: Array) -> tuple[Array, Array]:
    """The two forms of `eigen_lyapunov` from one Schur form: by eigenvectors (NaN where defective), by scaling."""
    matrix = jax.lax.stop_gradient(matrix)
    n = matrix.shape[-1]
    form = schur(matrix)
    rows = left_eigenvectors(form)
    by_vectors = _normalize(matmul(rows.conj().mT, rows), matrix)
    coupling = jnp.sqrt(jnp.sum(jnp.abs(jnp.triu(form.T, 1)) ** 2, (-2, -1)))
    coupled = coupling > 0
    delta = jnp.where(coupled, jnp.minimum(slack / jnp.where(coupled, coupling, jnp.ones_like(coupling)), 1), 1)
    scales = jnp.stack([delta**k for k in range(n - 1, -1, -1)], -1)
    scaled = form.Q * jnp.expand_dims(scales, -2).astype(form.Q.dtype)
    by_scaling = _normalize(matmul(scaled, scaled.conj().mT), matrix)
    return _nan_unless_definite(by_vectors), _nan_unless_definite(by_scaling)


def _nan_unless_definite(P: Array) -> Array:
    smallest = eigh(P).values[..., 0]  # beside a largest of one
    return arguments.nan_unless(P, smallest > P.shape[-1] * jnp.finfo(P.dtype).eps, 2)


def _normalize(P: Array, like: Array) -> Array:
    """Hermitian, real where `like` is, and with unit largest eigenvalue."""
    P = P if jnp.iscomplexobj(like) else P.real
    P = (P + P.conj().mT) / 2
    largest = eigh(P).values[..., -1]
    largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return P / jnp.expand_dims(largest, (-2, -1)).astype(P.dtype)


def lyapunov_decrease(
    P: Num[ArrayLike, "*batch n n"], matrix: Num[ArrayLike, "*batch n n"], rate: Float[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    """Smallest eigenvalue of `rate^2 P - M^H P M`: not negative where P certifies the rate.

    Args:
      P: [..., n, n] symmetric (Hermitian).
      matrix: [..., n, n].
      rate: [...] per iterate.

    Returns:
      [...], real; NaN where an input is not finite. Rounding is about eps |M|^2 |P|.

    Raises:
      TypeError: an integer dtype, or a complex rate. ValueError: not square, or sizes that differ.

    Cost: two products and one `eigh`. Differentiable where the smallest eigenvalue is simple.

    Example:
      >>> round(float(lyapunov_decrease(jnp.eye(2), 0.5 * jnp.eye(2), 1.0)), 6)
      0.75
    """
    P, matrix = arguments.to_arrays("lyapunov_decrease", P=P, matrix=matrix)
    (rate,) = arguments.to_arrays(
        "lyapunov_decrease", rate=jnp.asarray(rate, P.real.dtype) if arguments.is_number(rate) else rate
    )
    arguments.check_real("lyapunov_decrease", "rate", rate)
    arguments.check_square("lyapunov_decrease", "P", P)
    arguments.check_shape(
        "lyapunov_decrease", "matrix", matrix, f"[..., {P.shape[-1]}, {P.shape[-1]}]", lambda s: s[-2:] == P.shape[-2:]
    )
    batches = rate.shape, P.shape[:-2], matrix.shape[:-2]
    arguments.check_batch("lyapunov_decrease", "rate", rate, "[...] with the batch axes of P and matrix", *batches)
    batch = jnp.broadcast_shapes(*batches)
    whole = lambda array, core: jnp.broadcast_to(array, batch + core)
    return _lyapunov_decrease(whole(P, P.shape[-2:]), whole(matrix, P.shape[-2:]), whole(rate, ()))


@jax.jit
def _lyapunov_decrease(P: Array, matrix: Array, rate: Array) -> Array:
    decrease = (rate**2)[..., None, None].astype(P.dtype) * P - matmul(matmul(matrix.conj().mT, P), matrix)
    return eigh(decrease).values[..., 0]
