"""Functions on a box by Chebyshev polynomials in every variable, their coefficients in a train."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int, Int32, Key

from jaxnm import arguments
from jaxnm.linalg import einsum
from jaxnm.linalg.scaling import rescaled
from jaxnm.status import Status, first_failing, merge
from jaxnm.tensor_train.cross import FLOOR, MARGIN, CrossResult, Search, from_function_on
from jaxnm.tensor_train.scaling import scaled_back, unit_cores
from jaxnm.tensor_train.trains import TT

_POINTS = 512
"""Random points of the check."""


@flax.struct.dataclass
class ChebyshevTrain:
    """A polynomial on a box: the sum of entries (j_1, ..., j_d) of a train times T_j1(t_1) ... T_jd(t_d).

    T_j is the Chebyshev polynomial of the first kind, and t_k runs from -1 to 1 along side k of the box.
    """

    coefficients: TT
    box: Float[Array, "d 2"]


@flax.struct.dataclass
class ChebyshevResult:
    """A polynomial through values of a function, and what is known about the train of these values."""

    interpolant: ChebyshevTrain
    cross: CrossResult
    """Of the values at the nodes; its errors are those at the nodes."""
    error: Float[Array, ""]
    """The largest difference at random points of the box, relative to |cross.best_value|."""
    status: Int32[Array, ""]


def chebyshev(
    f: Callable[..., Any],
    box: Float[ArrayLike, "d 2"],
    degree: int | Sequence[int],
    *,
    max_rank: int,
    tol: Float[ArrayLike, ""],
    key: Key[Array, ""],
    initial: Int[ArrayLike, "m d"] | None = None,
    args: tuple[Any, ...] = (),
    max_sweeps: int = 8,
    search: Search = "auto",
) -> ChebyshevResult:
    """The interpolation polynomial of a function on a box, as a train.

    Args:
      f: `f(point [d], *args)` gives a real or complex scalar; as in `from_function`.
      box: lower and upper ends, with lower < upper; may be traced.
      degree: of the polynomial in each variable, one for all or d of them (static).
      max_rank: as in `from_function`, as are tol, key, initial (indices of nodes), args, max_sweeps and search.
      tol: see there.
      key: see there.
      initial: see there.
      args: see there.
      max_sweeps: see there.
      search: see there.

    Returns:
      `ChebyshevResult`; see `evaluate`. The nodes are the zeros of T_(degree + 1), so that f is not asked at the ends.

    Raises:
      ValueError: a box of another shape, a negative degree, another number of them; as `from_function`. TypeError: as
        `from_function`.

    Status: as `from_function`, and NOT_CONVERGED too where `error` is above 10 tol: the degree is too low.
    Cost: that of `from_function` with n = degree + 1, and d n^2 R^2 multiplications.
    Differentiable in args and box.
    Source: L. N. Trefethen, Approximation Theory and Approximation Practice, SIAM (2013), chapters 2 to 4.

    Example:
      >>> f = lambda x: jnp.cos(jnp.sum(x))
      >>> box = jnp.array([[0.0, 1.0]] * 5)
      >>> result = chebyshev(f, box, 8, max_rank=3, tol=1e-6, key=jax.random.key(0))
      >>> bool(abs(evaluate(result.interpolant, jnp.full((1, 5), 0.2))[0] - jnp.cos(1.0)) < 1e-5)
      True
    """
    name = "chebyshev"
    (box,) = arguments.to_arrays(name, box=box)
    arguments.check_real(name, "box", box)
    condition = lambda shape: len(shape) == 2 and shape[0] >= 1 and shape[1] == 2
    arguments.check_shape(name, "box", box, "[d, 2], d >= 1", condition, "one row a variable")
    if not isinstance(box, jax.core.Tracer) and not np.all(np.diff(jax.device_get(box)) > 0):
        arguments.refuse(name, "box", "empty in a variable", "lower < upper in each row", "give ends in their order")
    d = box.shape[0]
    degrees: list[Any] = list(degree) if isinstance(degree, Sequence) else [degree] * d
    if len(degrees) != d:
        arguments.refuse(name, "degree", f"of length {len(degrees)}", f"one number or {d}", "one a row of box")
    for k, number in enumerate(degrees):
        arguments.check_count(name, f"degree[{k}]", number, minimum=0)
    shape = tuple(int(number) + 1 for number in degrees)
    cross = from_function_on(
        f, _grids(box, shape), max_rank=max_rank, tol=tol, key=key, initial=initial, args=args, max_sweeps=max_sweeps,
        search=search,
    )  # fmt: skip
    return _interpolated(f, cross, box, arguments.constant(tol, box.dtype), key, args)


def evaluate(train: ChebyshevTrain, points: Float[ArrayLike, "m d"]) -> Inexact[Array, "m"]:
    """A polynomial on a box at points.

    Args:
      train: of `chebyshev`, in d variables.
      points: [m, d].

    Returns:
      [m]; NaN outside of the box.

    Raises:
      ValueError: points of another shape. TypeError: another type, integers.

    Cost: m d n R^2 multiplications and m n R numbers at a time. Differentiable, at the ends and nodes too.

    Example:
      >>> result = chebyshev(lambda x: x[0] * x[1], jnp.array([[0.0, 2.0]] * 2), 1, max_rank=2, tol=0.0,
      ...                    key=jax.random.key(0))
      >>> evaluate(result.interpolant, jnp.array([[0.5, 2.0], [3.0, 0.0]])).round(4).tolist()
      [1.0, nan]
    """
    if not isinstance(train, ChebyshevTrain):
        got = f"of type {type(train).__name__}"
        arguments.refuse("evaluate", "train", got, "a ChebyshevTrain", "see chebyshev, and gather", error=TypeError)
    d = train.coefficients.ndim
    box, points = arguments.to_arrays("evaluate", box=train.box, points=points)
    arguments.check_real("evaluate", "points", points)
    arguments.check_shape("evaluate", "points", points, f"[m, {d}]", lambda shape: len(shape) == 2 and shape[1] == d)
    return _evaluate(train.coefficients, box, points)


@partial(jax.jit, static_argnums=1)
def _grids(box: Array, shape: tuple[int, ...]) -> list[Array]:
    middle, half = (box[:, 0] + box[:, 1]) / 2, (box[:, 1] - box[:, 0]) / 2
    nodes = [jnp.asarray(_nodes_and_transform(n, n)[0], box.dtype) for n in shape]
    return [middle[k] + half[k] * node for k, node in enumerate(nodes)]


@partial(jax.jit, static_argnums=0)
def _interpolated(
    f: Callable[..., Any], cross: CrossResult, box: Array, tol: Array, key: Array, args: tuple[Any, ...]
) -> ChebyshevResult:
    tt = cross.tt
    transform = np.stack([_nodes_and_transform(n, max(tt.shape))[1] for n in tt.shape])
    cores = einsum("dji,dris->drjs", jnp.asarray(transform, tt.dtype), tt.cores)
    interpolant = ChebyshevTrain(TT(cores, tt.ranks, tt.log_scale, tt.shape), box)
    error = _error(f, interpolant, jax.random.fold_in(key, 1), jnp.abs(cross.best_value), args)
    limit = MARGIN * jnp.maximum(tol.astype(error.dtype), FLOOR * jnp.finfo(error.dtype).eps)
    inaccurate = first_failing((~(error <= limit), Status.NOT_CONVERGED))
    return ChebyshevResult(interpolant, cross, error, merge(cross.status, inaccurate))


def _error(f: Callable[..., Any], train: ChebyshevTrain, key: Array, scale: Array, args: tuple[Any, ...]) -> Array:
    train, args = jax.lax.stop_gradient((train, args))
    box = train.box
    lower, upper = box[None, :, 0], box[None, :, 1]
    share = jax.random.uniform(key, (_POINTS, box.shape[0]), box.dtype)
    points = jnp.clip(lower + (upper - lower) * share, lower, upper)
    values = jax.vmap(lambda point: f(point, *args))(points)
    difference = jnp.abs(values - _evaluate(train.coefficients, box, points))
    difference = jnp.where(jnp.isfinite(values), difference, jnp.zeros_like(difference))
    return jnp.max(difference) / jnp.where(scale > 0, scale, jnp.ones_like(scale))


def _nodes_and_transform(n: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(nodes [n], matrix [most, most] from values at them to coefficients, zero behind n)."""
    angles = (np.arange(n) + 0.5) * np.pi / n
    matrix = np.zeros((most, most))
    matrix[:n, :n] = np.cos(np.arange(n)[:, None] * angles) * np.where(np.arange(n) == 0, 1, 2)[:, None] / n
    return np.cos(angles), matrix


@jax.jit
def _evaluate(tt: TT, box: Array, points: Array) -> Array:
    lower, upper = box[:, 0], box[:, 1]
    inside = jnp.all((points >= lower[None]) & (points <= upper[None]), 1)
    there = (2 * points - lower[None] - upper[None]) / (upper - lower)[None]
    n, size = max(tt.shape), tt.max_rank
    real = points.dtype

    def step(carry: tuple[Array, Array], site: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (rows, units), (core, t) = carry, site

        # T_(j+1) = 2 t T_j - T_(j-1), which is stable on [-1, 1]; the one before T_0 = 1 is T_1 = t
        def recur(pair: tuple[Array, Array], _: Array) -> tuple[tuple[Array, Array], Array]:
            before, now = pair
            return (now, 2 * t * now - before), now

        _, basis = jax.lax.scan(recur, (t, jnp.ones_like(t)), jnp.arange(n, dtype=jnp.int32))
        moved = einsum("mr,rjs->mjs", rows, core)
        rows, more = jax.vmap(rescaled)(einsum("mjs,jm->ms", moved, basis.astype(core.dtype)))
        return (rows, units + more), None

    cores, exponents = unit_cores(tt.cores)
    rows = jnp.zeros((points.shape[0], size), tt.dtype).at[:, 0].set(1)
    units = jnp.full(points.shape[0], jnp.sum(exponents, dtype=jnp.int32))
    (rows, units), _ = jax.lax.scan(step, (rows, units), (cores, there.T))
    values = scaled_back(rows[:, 0], units, tt.log_scale)
    return jnp.where(inside, values, jnp.full((), jnp.nan, real).astype(values.dtype))
