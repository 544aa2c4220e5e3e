"""Cross interpolation of functions that cannot be traced and are expensive: on the host, no entry asked for twice."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key

from jaxnm import arguments
from jaxnm.status import Status
from jaxnm.tensor_train.cross import FLOOR, MARGIN, VISIBLE, CrossResult, check_initial, of_table
from jaxnm.tensor_train.trains import bounded_rank, checked_shape, from_cores, to_cores

_EXTRA = 4
_CHAINS = 2


def from_black_box(
    f: Callable[[np.ndarray], Any],
    shape: Sequence[int],
    *,
    max_rank: int,
    tol: float,
    key: Key[Array, ""],
    initial: Int[ArrayLike, "m d"] | None = None,
    max_sweeps: int = 8,
    samples: int = 64,
    search: Literal["full", "rook"] = "rook",
) -> CrossResult:
    """The train of a function of batches of indices, which is never asked twice for one index.

    Args:
      f: `f(indices [m, d] int32)` gives [m] real or complex numbers, NumPy or otherwise; all indices of a call differ
        from each other and from earlier ones.
      shape: the mode sizes, d of them.
      max_rank: no rank is larger.
      tol: as in `from_function`.
      key: of `jax.random.key`.
      initial: multi-indices where f is known to matter.
      max_sweeps: sweeps over all bonds, in alternating direction; fewer are made as in
        `from_function`.
      samples: random indices at the start, after each sweep, and in the check; after a sweep, a quarter more of them
        continue pivots.
      search: "rook" asks for some rows and columns of the blocks of two modes, "full" for all entries.

    Returns:
      `CrossResult` as of `from_function`, without padding: max_rank of the train is the largest rank. num_evaluations
      counts the indices that f was given. Where these are all that there are, check_error is of all entries.

    Raises:
      ValueError: as `from_function`; values of another shape. TypeError: a raw key, integer values.

    Status: as `from_function`; UNEXPLORED where fewer than 8 of the `samples` in the check are above tol.
    Cost: about 3 d n R^2 evaluations, the most part of them in the first sweeps; all entries, in one call, where there
    are no more of them than this. Not under `jit`, and not
    differentiable.
    Source: as `from_function`.

    Example:
      >>> f = lambda indices: 1.0 / (1.0 + indices.sum(1))
      >>> result = from_black_box(f, (8,) * 6, max_rank=12, tol=1e-5, key=jax.random.key(0))
      >>> int(result.status), bool(result.num_evaluations < 8**6 / 50)
      (0, True)
    """
    name = "from_black_box"
    sizes = checked_shape(name, shape)
    for argument, value in (("max_rank", max_rank), ("max_sweeps", max_sweeps), ("samples", samples)):
        arguments.check_count(name, argument, value, minimum=1)
    if any(isinstance(value, jax.core.Tracer) for value in (tol, initial, key)):
        arguments.refuse(name, "an argument", "traced", "known values", "use from_function under jit")
    (known,) = arguments.to_arrays(name, tol=tol)
    arguments.check_real(name, "tol", known)
    arguments.check_shape(name, "tol", known, "a scalar", lambda shape: shape == (), "one for all bonds")
    tol = float(tol)
    arguments.check_number(name, "tol", tol, ">= 0", lambda value: value >= 0, "0 is as good as 8 machine epsilons")
    arguments.check_key(name, key)
    arguments.check_option(name, "search", search, ("full", "rook"), "use 'rook'")
    arguments.check_callable(name, "f", f, "pass a function of indices")
    given = np.asarray(check_initial(name, initial, sizes)[0])
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).reshape(-1).tolist())
    table = _Table(f, sizes)
    run = _Run(table, random, bounded_rank(sizes, int(max_rank)), tol, int(samples), search == "full")
    return run.result(given, max_sweeps)


class _Table:
    """Values of the function that are known."""

    def __init__(self, f: Callable[[np.ndarray], Any], sizes: tuple[int, ...]):
        self.f, self.sizes = f, sizes
        self.known: dict[bytes, Any] = {}
        self.dtype: Any = None
        self.best_index, self.best_value = np.zeros(len(sizes), np.int32), 0.0
        self.broken = False

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """[m] at indices [m, d]; those that are not finite are NaN."""
        indices = np.ascontiguousarray(indices, np.int32)
        names = [row.tobytes() for row in indices]
        fresh = {name: k for k, name in enumerate(names) if name not in self.known}
        if fresh:
            self._ask(list(fresh), indices[list(fresh.values())])
        return np.array([self.known[name] for name in names], self.dtype)

    def everything(self) -> tuple[np.ndarray, np.ndarray]:
        """(indices, values) of all that is known."""
        indices = np.frombuffer(b"".join(self.known), np.int32).reshape(len(self.known), -1)
        return indices, np.array(list(self.known.values()), self.dtype)

    def _ask(self, names: list[bytes], indices: np.ndarray) -> None:
        values = np.asarray(self.f(indices))
        if values.shape != (len(names),):
            got = f"of shape {values.shape}"
            arguments.refuse("from_black_box", "the value of f", got, f"({len(names)},)", "give one number an index")
        if not np.issubdtype(values.dtype, np.inexact):
            got = f"of dtype {values.dtype}"
            arguments.refuse("from_black_box", "the value of f", got, "floating", "use .astype(float)", error=TypeError)
        arguments.check_dtype("from_black_box", "the value of f", values.dtype)
        # that of all batches so far: a complex one makes the earlier ones complex
        self.dtype = values.dtype if self.dtype is None else np.result_type(self.dtype, values.dtype)
        finite = np.isfinite(values)
        self.broken |= not finite.all()
        values = np.where(finite, values, np.nan).astype(values.dtype)
        self.known.update(zip(names, values, strict=True))
        size = np.where(finite, np.abs(values), -1)
        k = int(size.argmax())
        if size[k] > abs(self.best_value):
            self.best_index, self.best_value = indices[k], values[k]


class _Run:
    """Left indices [r, k] before each bond k and right ones [r, d - k] behind it."""

    def __init__(self, table: _Table, random: np.random.Generator, size: int, tol: float, samples: int, full: bool):
        self.table, self.random, self.size, self.samples, self.full = table, random, size, samples, full
        self.asked_tol, self.d = tol, len(table.sizes)
        self.share = 1 / max(self.d - 1, 1) ** 0.5

    @property
    def tol(self) -> float:
        return max(self.asked_tol, self.floor)

    @property
    def local(self) -> float:
        """Pivots are above this, relative to the largest entry."""
        return max(self.share * self.tol, self.floor)

    @property
    def floor(self) -> float:
        return FLOOR * float(np.finfo(self.table.dtype).eps)

    @property
    def largest(self) -> float:
        return float(abs(self.table.best_value))

    @property
    def least(self) -> int:
        """So many values of a draw must be above the tolerance."""
        return min(VISIBLE, self.samples)

    @property
    def all_known(self) -> bool:
        return len(self.table.known) == math.prod(self.table.sizes)

    def visible(self, values: np.ndarray) -> int:
        """How many are."""
        return int(np.sum(np.nan_to_num(np.abs(values)) > self.tol * self.largest))

    def drawn(self) -> np.ndarray:
        return self.random.integers(0, self.table.sizes, (self.samples, self.d), np.int32)

    def guided(self) -> np.ndarray:
        """Beginnings of pivots that are continued at random."""
        points = self.random.integers(0, self.table.sizes, (-(-self.samples // 4), self.d), np.int32)
        for point, bond in zip(points, self.random.integers(0, self.d + 1, len(points)), strict=True):
            left, right = self.left[bond], self.right[bond]
            if self.random.random() < 0.5:
                point[:bond] = left[self.random.integers(len(left))]
            else:
                point[bond:] = right[self.random.integers(len(right))]
        return points

    def result(self, given: np.ndarray, max_sweeps: int) -> CrossResult:
        table, d = self.table, self.d
        if math.prod(table.sizes) <= 3 * d * max(table.sizes) * self.size**2:
            # a cross might ask for as many entries; it asks for none of them again if it has to interpolate some
            values = table(np.indices(table.sizes, np.int32).reshape(d, -1).T).reshape(table.sizes)
            if not table.broken:
                return self.of_all(jnp.asarray(values))
        table(np.concatenate([given, self.drawn()]))
        for _ in range(16):
            if self.largest > 0:
                break
            table(self.drawn())
        self.left = [table.best_index[None, :k] for k in range(d + 1)]
        self.right = [table.best_index[None, k:] for k in range(d + 1)]
        additions, ranks, forward = given, 1, False
        for _ in range(max_sweeps):
            forward = not forward
            errors, cores = self.sweep(forward, additions)
            additions, error, visible = self.look_around(cores)
            steady, ranks = max(map(len, self.left)) <= ranks, max(map(len, self.left))
            small = error <= self.tol * self.largest
            # where little was seen, all sweeps are made, for the searches between them
            if steady and small and (visible >= self.least or self.all_known):
                break
            if steady and not small:
                self.share /= 4
        # without additions and last from left to right, so that the left indices are nested
        if forward:
            self.sweep(False, given[:0])
        errors, cores = self.sweep(True, given[:0])
        check = self.drawn()
        values, train = table(check), _entries(cores, check)
        explored = self.visible(values) >= self.least
        scale = self.largest or 1.0
        if self.all_known:
            # nothing is left to be guessed
            check, values = table.everything()
            train, explored = _entries(cores, check), True
        difference = np.abs(values - train)
        finite = difference[np.isfinite(values)]
        check_error = finite.max() / scale if finite.size else np.nan
        mean = abs(_mean(cores)) / scale
        mean_error = check_error / mean if mean > 0 else np.inf if check_error > 0 else check_error
        tt = from_cores([jnp.asarray(core.astype(table.dtype)) for core in cores])
        real = jnp.finfo(tt.dtype).dtype
        limit = self.local * self.largest
        full = any(e > limit and len(r) == self.size for e, r in zip(errors, self.left[1:-1], strict=True))
        status = Status.OK if explored else Status.UNEXPLORED
        if not check_error <= MARGIN * self.tol:
            status = Status.NOT_CONVERGED
        if table.broken:
            status = Status.NONFINITE_INPUT
        return CrossResult(
            tt, tt.ranks, jnp.asarray(max(errors, default=0) / scale, real), jnp.asarray(check_error, real),
            jnp.asarray(mean_error, real), jnp.int32(len(table.known)), jnp.bool_(full), jnp.asarray(table.best_index),
            jnp.asarray(table.best_value, tt.dtype), jnp.int32(status),
        )  # fmt: skip

    def of_all(self, values: Array) -> CrossResult:
        """From the whole table, by TT-SVD."""
        tol = jnp.asarray(self.asked_tol, jnp.finfo(values.dtype).dtype)
        result = of_table(values, self.size, tol, jnp.bool_(False))
        return result.replace(tt=from_cores(to_cores(result.tt)))

    def sweep(self, forward: bool, additions: np.ndarray) -> tuple[list[float], list[np.ndarray]]:
        """(what is left over at each bond, cores)."""
        d, errors, factors = self.d, [], []
        for bond in range(1, d) if forward else range(d - 1, 0, -1):
            rows = _products(self.left[bond - 1], additions[:, : bond - 1], self.table.sizes[bond - 1], behind=True)
            columns = _products(self.right[bond + 1], additions[:, bond + 1 :], self.table.sizes[bond], behind=False)
            self.left[bond], self.right[bond], error = self.pivots(bond, rows, columns)
            errors.append(error)
        # the train through the pivots: left quotients, since their denominators are among their rows
        for k in range(d):
            rows = _products(self.left[k], self.left[k][:0], self.table.sizes[k], behind=True)
            values = self.block(rows, self.right[k + 1])
            if k < d - 1:
                values = _quotient(values, self.block(self.left[k + 1], self.right[k + 1]))
            values = np.where(np.isfinite(values), values, 0)
            factors.append(values.reshape(len(self.left[k]), -1, len(self.right[k + 1])))
        return errors, factors

    def block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        left, right = np.repeat(rows, len(columns), 0), np.tile(columns, (len(rows), 1))
        return self.table(np.concatenate([left, right], 1)).reshape(len(rows), len(columns))

    def pivots(self, bond: int, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        factorize = lambda rows, columns: _rank_revealing(
            self.block(rows, columns), self.local, self.largest, self.size
        )
        some = lambda array: array[self.random.permutation(len(array))[:_EXTRA]]
        if self.full:
            i, j, error = factorize(rows, columns)
            return rows[i], columns[j], error
        i, _, _ = factorize(rows, _distinct(self.right[bond], some(columns)))
        chosen = _distinct(rows[i], some(rows))
        _, j, error = factorize(chosen, columns)
        i, order, last = factorize(rows, columns[j])
        return rows[i], columns[j][order], max(error, last)

    def look_around(self, cores: list[np.ndarray]) -> tuple[np.ndarray, float, int]:
        """(where the train is most in error, the largest such error, how many uniform values are visible).

        Half of the chains climb by errors, half by values.
        """
        uniform = self.drawn()
        visible = self.visible(self.table(uniform))
        drawn = np.concatenate([uniform, self.guided()])
        error = lambda indices: np.nan_to_num(np.abs(self.table(indices) - _entries(cores, indices)))
        size = lambda indices: np.nan_to_num(np.abs(self.table(indices)))
        missed = float(error(drawn).max())
        ends = []
        for goal in (error, size):
            points = drawn[np.argsort(-goal(drawn))[:_CHAINS]]
            for k, n in enumerate(self.table.sizes):
                every = np.repeat(points[:, None], n, 1)
                every[:, :, k] = np.arange(n)
                goals = goal(every.reshape(-1, self.d)).reshape(len(points), n)
                points = every[np.arange(len(points)), goals.argmax(1)]
            ends.append(points)
        points = np.unique(np.concatenate(ends), axis=0)
        errors = error(points)
        wanted = points[np.argsort(-errors)][: int(np.sum(errors > self.tol * self.largest))]
        return wanted, max(missed, float(errors.max())), visible


def _distinct(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([first, second]), axis=0) if first.shape[1] else first[:1]


def _products(indices: np.ndarray, more: np.ndarray, n: int, *, behind: bool) -> np.ndarray:
    """Indices, and more of them that are new, with every value of a mode behind or before them."""
    if len(more) and more.shape[1]:
        known = {row.tobytes() for row in indices}
        fresh = [row for row in np.unique(more, axis=0) if row.tobytes() not in known]
        indices = np.concatenate([indices, np.array(fresh, np.int32).reshape(-1, indices.shape[1])])
    mode = np.arange(n, dtype=np.int32)[:, None]
    if behind:
        return np.concatenate([np.repeat(indices, n, 0), np.tile(mode, (len(indices), 1))], 1)
    return np.concatenate([np.repeat(mode, len(indices), 0), np.tile(indices, (n, 1))], 1)


def _rank_revealing(matrix: np.ndarray, tol: float, largest: float, size: int) -> tuple[list[int], list[int], float]:
    """(pivot rows, pivot columns, what is left), of LU with full pivoting; at least one pivot."""
    missing = np.isnan(matrix)
    rest = np.where(missing, 0, matrix)
    limit = tol * max(largest, np.abs(rest).max())
    whole = ~missing.any(axis=1, keepdims=True) & ~missing.any(axis=0, keepdims=True)
    rows, columns = [], []
    for candidates in (whole, ~missing):
        while len(rows) < min(size, *matrix.shape):
            sizes = np.where(candidates, np.abs(rest), 0)
            i, j = np.unravel_index(sizes.argmax(), sizes.shape)
            if not sizes[i, j] > limit:
                break
            rows.append(int(i))
            columns.append(int(j))
            rest = np.where(missing, 0, rest - np.outer(rest[:, j] / rest[i, j], rest[i]))
            rest[:, j] = 0
    error = float(np.abs(rest).max())
    return (rows, columns, error) if rows else ([0], [0], error)


def _quotient(values: np.ndarray, pivots: np.ndarray) -> np.ndarray:
    """Values pivots^-1, where the pivots are in the order of an elimination."""
    size, m = len(pivots), len(values)
    whole = np.concatenate([values, pivots])
    missing = np.isnan(whole)
    rest = np.where(missing, 0, whole)
    lower = np.zeros_like(rest)
    for k in range(size):
        pivot = rest[m + k, k]
        if pivot == 0:
            continue
        lower[:, k] = rest[:, k] / pivot
        rest = np.where(missing, 0, rest - np.outer(lower[:, k], rest[m + k]))
    corner = lower[m:] + np.diag(np.where(np.diagonal(lower[m:]) == 0, 1, 0)).astype(lower.dtype)
    return np.linalg.solve(corner.T, lower[:m].T).T


def _mean(cores: list[np.ndarray]) -> Any:
    """Of all entries."""
    row = np.ones(1, cores[0].dtype)
    for core in cores:
        row = row @ core.mean(1)
    return row[0]


def _entries(cores: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    rows = np.ones((len(indices), 1), cores[0].dtype)
    for core, index in zip(cores, indices.T, strict=True):
        moved = np.empty((len(indices), core.shape[2]), core.dtype)
        for value in range(core.shape[1]):
            moved[index == value] = rows[index == value] @ core[:, value]
        rows = moved
    return rows[:, 0]
