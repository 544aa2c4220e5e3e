"""Singular values of a train at its bonds: how fast they fall is how well it compresses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxnm import arguments
from jaxnm.linalg import einsum, svd
from jaxnm.tensor_train.products import right_factors
from jaxnm.tensor_train.trains import TT, check_train, within


def singular_values(tt: TT) -> Float[Array, "d-1 R"]:
    """Singular values of a train at every bond, relative to its norm.

    Row k is those of the matrix [n_1 ... n_k, n_k+1 ... n_d] of all entries, over the norm of the train, so that their
    squares sum to one. A rounding to the ranks r_k is off by at least the root of the summed squares that it drops at
    any one bond, and by at most that of the sum over all bonds.

    Args:
      tt: of d modes and any ranks.

    Returns:
      [d - 1, R], real, descending; zero beyond the rank of the bond, and everywhere if the train is zero. NaN up to
      the ranks if a core is not finite.

    Raises:
      ValueError: a batch of trains. TypeError: no train.

    Cost: two QR of [n R, R] a site and an SVD of [R, R] a bond.
    Values below a few machine epsilons are rounding.
    Not differentiable: it raises, since a singular value that repeats, or is zero, has no derivative.
    Source: I. V. Oseledets, SIAM J. Sci. Comput. 33 (2011), 2295-2317, theorem 2.2 (the bound).

    Example:
      >>> from jaxnm.tensor_train import from_cores
      >>> ones = from_cores([jnp.ones((1, 3, 1))] * 3)
      >>> singular_values(ones + ones).round(4).tolist()
      [[1.0, 0.0], [1.0, 0.0]]
    """
    check_train("singular_values", tt=tt)
    remedy = "a repeated one has no derivative; differentiate `round` or `norm`"
    return _singular_values(arguments.without_derivative("singular_values", "tt", tt, remedy=remedy))


@jax.jit
def _singular_values(tt: TT) -> Array:
    behind, _ = right_factors(tt.cores)
    # the same train read from the right to the left
    before, _ = right_factors(jnp.swapaxes(tt.cores, 1, 3)[::-1])
    values = svd(einsum("kra,krb->kab", before[::-1][:-1], behind[1:]))[1]
    values = jnp.where(within(tt.ranks[1:-1], tt.max_rank), values, jnp.zeros_like(values))
    size = jnp.sqrt(jnp.sum(values**2, 1, keepdims=True))
    return values / jnp.where(size > 0, size, jnp.ones_like(size))
