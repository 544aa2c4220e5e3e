"""The spectrum of a Hessian: what the rates of first-order methods depend on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int32

from jaxnm import arguments
from jaxnm.linalg import eigh
from jaxnm.status import Status, first_failing


@flax.struct.dataclass
class Spectrum:
    """Curvatures of a function at a point."""

    eigenvalues: Float[Array, "d"]
    """All of them, ascending; NaN where the Hessian is not finite."""
    mu: Float[Array, ""]
    """Smallest eigenvalue. Zero: a flat direction. Negative: the function is not convex there."""
    L: Float[Array, ""]
    """Largest eigenvalue."""
    asymmetry: Float[Array, ""]
    """max |H - H^T| / max |H|: rounding for a smooth function."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT (the Hessian is not finite) or NOT_SYMMETRIC (the eigenvalues are those of (H + H^T) / 2)."""


def hessian_spectrum(loss: Callable[[Any], Any], params: Any) -> Spectrum:
    """All eigenvalues of the Hessian of a loss, for models small enough to hold it (some thousands of parameters).

    Args:
      loss: function of the parameters alone, returning a real scalar. A `jax.tree_util.Partial` carries data as
        traced leaves, so that new data do not recompile.
      params: any pytree of float32 arrays, or of float64 arrays, d numbers in all.

    Returns:
      `Spectrum(eigenvalues [d] ascending, mu, L, asymmetry, status)`, in the dtype of the parameters.

    Raises:
      TypeError: parameters that are not all float32 or all float64, or a loss that is not a real floating scalar.
      ValueError: no parameters.

    Status:
      NONFINITE_INPUT: the Hessian holds inf or NaN. NOT_SYMMETRIC: it is not symmetric beyond sqrt(eps), which means
      a wrong custom derivative, or second derivatives that do not exist.

    Cost: d Hessian-vector products, d^2 numbers of memory, and one d x d `eigh`.
    Differentiable where the eigenvalues are simple (it takes third derivatives of the loss).

    Example:
      >>> float(hessian_spectrum(lambda x: 1.5 * x[0] ** 2 + x[1] ** 2, jnp.zeros(2)).L)
      3.0
    """
    leaves = jax.tree.leaves(params)
    if sum(jnp.size(leaf) for leaf in leaves) == 0:
        arguments.refuse(
            "hessian_spectrum", "params", "a tree without parameters", "at least one", "pass the parameters"
        )
    dtypes = {jnp.result_type(leaf) for leaf in leaves}
    for leaf in leaves:
        if len(dtypes) > 1 or jnp.result_type(leaf) not in (jnp.float32, jnp.float64):
            arguments.refuse(
                "hessian_spectrum",
                "params",
                f"of dtypes {sorted(map(str, dtypes))}",
                "float32 or float64 arrays, all of one dtype",
                "cast them, and keep integers out of the tree",
                error=TypeError,
            )
    value = jax.eval_shape(loss, params)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        arguments.refuse(
            "hessian_spectrum",
            "the value of loss",
            str(value),
            "a real floating scalar",
            "reduce it with a mean or a sum",
            error=TypeError,
        )
    loss = loss if isinstance(loss, jax.tree_util.Partial) else jax.tree_util.Partial(loss)
    return _hessian_spectrum(loss, params)


@jax.jit
def _hessian_spectrum(loss: jax.tree_util.Partial, params: Any) -> Spectrum:
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda vector: loss(unravel(vector)))(flat)
    eigenvalues = eigh(hessian).values
    finite = jnp.all(jnp.isfinite(hessian))
    largest = jnp.max(jnp.abs(hessian))
    asymmetry = jnp.max(jnp.abs(hessian - hessian.T)) / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    tolerance = jnp.sqrt(jnp.finfo(flat.dtype).eps)
    status = first_failing((~finite, Status.NONFINITE_INPUT), (asymmetry > tolerance, Status.NOT_SYMMETRIC))
    return Spectrum(eigenvalues, eigenvalues[0], eigenvalues[-1], jax.lax.stop_gradient(asymmetry), status)
