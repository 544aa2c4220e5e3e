"""The spectrum of a Hessian: what the rates of first-order methods depend on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int32, Key

from jaxnm import arguments
from jaxnm.linalg import ExtremeEigenvalues, SpectralMeasure, eigh, extreme_eigenvalues, spectral_density
from jaxnm.status import Status, first_failing, merge


@flax.struct.dataclass
class Spectrum:
    """Curvatures of a function at a point."""

    eigenvalues: Float[Array, "k"]
    """All d of them (dense), or Ritz values that stand for them (Lanczos), ascending; NaN where the Hessian is not
    finite."""
    weights: Float[Array, "k"]
    """The share of the d eigenvalues that each stands for: 1 / d each, or an estimate from random probes."""
    mu: Float[Array, ""]
    """Smallest eigenvalue. Zero: a flat direction. Negative: the function is not convex there."""
    L: Float[Array, ""]
    """Largest eigenvalue."""
    lower_bound: Float[Array, ""]
    """No eigenvalue is below: by rounding (dense), or but for a probability of 1e-6 (Lanczos)."""
    upper_bound: Float[Array, ""]
    """No eigenvalue is above, likewise."""
    asymmetry: Float[Array, ""]
    """Largest part of the Hessian that is not symmetric, over its largest entry: rounding for a smooth function."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, NOT_SYMMETRIC or NOT_CONVERGED."""
    dimension: int = flax.struct.field(pytree_node=False)
    """d, how many parameters there are."""


def hessian_spectrum(
    loss: Callable[[Any], Any],
    params: Any,
    *,
    method: str = "dense",
    key: Key[ArrayLike, ""] | None = None,
    num_steps: int = 100,
    num_probes: int = 4,
    tolerance: ArrayLike | None = None,
) -> Spectrum:
    """Eigenvalues of the Hessian of a loss: all of them, or the ends and the density for models of any size.

    Args:
      loss: function of the parameters alone, returning a real scalar. A `jax.tree_util.Partial` carries data as
        traced leaves, so that new data do not recompile.
      params: any pytree of float32 arrays, or of float64 arrays, d numbers in all.
      method: "dense" holds the matrix (some thousands of parameters); "lanczos" needs Hessian-vector products only
        (static).
      key: for the random vectors of "lanczos".
      num_steps: of "lanczos", the most products for the two ends, and the products a probe (static).
      num_probes: of "lanczos", random vectors for the density (static).
      tolerance: of "lanczos", of the two ends as in `jaxnm.linalg.extreme_eigenvalues`.

    Returns:
      `Spectrum(eigenvalues [k], weights [k], mu, L, lower_bound, upper_bound, asymmetry, status, dimension)`, in the
      dtype of the parameters; k = d, or num_probes * min(num_steps, d) + 2.

    Raises:
      TypeError: parameters that are not all float32 or all float64, a loss that is not a real floating scalar, or
        an untyped key.
      ValueError: no parameters, an unknown method, or "lanczos" without a key.

    Status:
      NONFINITE_INPUT: the Hessian holds inf or NaN. NOT_SYMMETRIC: it is not symmetric beyond sqrt(eps), which means
      a wrong custom derivative, or second derivatives that do not exist; "dense" returns the eigenvalues of
      (H + H^T) / 2 then. NOT_CONVERGED: "lanczos" took all its steps before mu and L met the tolerance.

    Cost: d Hessian-vector products, d^2 numbers of memory and one d x d `eigh` (dense); at most
    (num_probes + 1) num_steps + 2 products, one after the other, and num_steps d numbers (lanczos).
    Differentiable where the eigenvalues are simple (it takes third derivatives of the loss): all of them (dense), or
    mu and L (lanczos).
    Source of the second: Ghorbani, Krishnan, Xiao, arXiv:1901.10159, and those of `jaxnm.linalg.spectral_density`.

    Example:
      >>> float(hessian_spectrum(lambda x: 1.5 * x[0] ** 2 + x[1] ** 2, jnp.zeros(2)).L)
      3.0
    """
    if method not in ("dense", "lanczos"):
        arguments.refuse("hessian_spectrum", "method", repr(method), '"dense" or "lanczos"', "choose one of them")
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        if not arguments.is_numeric(leaf):
            got, remedy = f"a tree with a {type(leaf).__name__}", "keep what is no parameter out of it"
            arguments.refuse("hessian_spectrum", "params", got, "a tree of arrays", remedy, error=TypeError)
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
    loss, value = arguments.hoist_tracers("hessian_spectrum", "loss", loss, params)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        arguments.refuse(
            "hessian_spectrum",
            "the value of loss",
            str(value),
            "a real floating scalar",
            "reduce it with a mean or a sum",
            error=TypeError,
        )
    if method == "dense":
        return _dense(loss, params)
    if key is None:
        arguments.refuse("hessian_spectrum", "key", "None", 'a key for method="lanczos"', "pass jax.random.key(0)")
    arguments.check_key("hessian_spectrum", key)
    params = jax.tree.map(jnp.asarray, params)
    end_key, probe_key = jax.random.split(key)
    product = Partial(_hessian_product, loss, params)
    ends = extreme_eigenvalues(product, params, key=end_key, num_steps=num_steps, tolerance=tolerance)
    # the nodes are constants for a derivative
    fixed = jax.lax.stop_gradient(product)
    measure = spectral_density(fixed, params, key=probe_key, num_steps=num_steps, num_probes=num_probes)
    return _from_ritz_values(ends, measure)


def _hessian_product(loss: Partial, params: Any, vector: Any) -> Any:
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


@jax.jit
def _from_ritz_values(ends: ExtremeEigenvalues, measure: SpectralMeasure) -> Spectrum:
    nodes, weights = measure.nodes.reshape(-1), measure.weights.reshape(-1) / measure.nodes.shape[0]
    order = jnp.argsort(nodes)
    # a probe may reach further than the run for the ends, if that has not converged
    beyond = lambda excess: jax.lax.stop_gradient(jnp.maximum(excess, 0))
    mu = ends.smallest[0] - beyond(ends.smallest[0] - nodes[order[0]])
    L = ends.largest[0] + beyond(nodes[order[-1]] - ends.largest[0])
    around = lambda first, middle, last: jnp.concatenate([first[None], middle[order], last[None]])
    nothing = jnp.zeros((), weights.dtype)
    return Spectrum(
        eigenvalues=around(*jax.lax.stop_gradient((mu, nodes, L))),
        weights=around(nothing, weights, nothing),
        mu=mu,
        L=L,
        lower_bound=ends.lower_bound,
        upper_bound=ends.upper_bound,
        asymmetry=jnp.maximum(ends.asymmetry, measure.asymmetry),
        status=merge(ends.status, measure.status),
        dimension=measure.dimension,
    )


@jax.jit
def _dense(loss: Partial, params: Any) -> Spectrum:
    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda vector: loss(unravel(vector)))(flat)
    eigenvalues = eigh(hessian).values
    finite = jnp.all(jnp.isfinite(hessian))
    largest = jnp.max(jnp.abs(hessian))
    asymmetry = jnp.max(jnp.abs(hessian - hessian.T)) / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    tolerance = jnp.sqrt(jnp.finfo(flat.dtype).eps)
    status = first_failing((~finite, Status.NONFINITE_INPUT), (asymmetry > tolerance, Status.NOT_SYMMETRIC))
    d = flat.shape[0]
    mu, L = eigenvalues[0], eigenvalues[-1]
    rounding = d * jnp.finfo(flat.dtype).eps * jnp.maximum(jnp.abs(mu), jnp.abs(L))
    return Spectrum(
        eigenvalues=eigenvalues,
        weights=jnp.full_like(eigenvalues, 1 / d),
        mu=mu,
        L=L,
        lower_bound=jax.lax.stop_gradient(mu - rounding),
        upper_bound=jax.lax.stop_gradient(L + rounding),
        asymmetry=jax.lax.stop_gradient(asymmetry),
        status=status,
        dimension=d,
    )
