"""Certificates checked in exact arithmetic, on the host, and written down for someone else to check.

The matrices are built here a second time, from the definitions and with fractions, not by the code that found the
certificate. Doubles are fractions, so nothing is rounded; the multipliers towards the minimizer are determined by the
others, since function values must cancel, and are computed again.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnm import arguments
from jaxnm.first_order.rate_certificate import RateCertificate, check_certificate
from jaxnm.first_order.state_space import StateSpace
from jaxnm.status import Status

Matrix = list[list[Fraction]]
_FORMAT = "jaxnm rate certificate 1"
_FIELDS = ("rate", "Q", "q", "multipliers", "margin", "quadratic_rate", "status", "A", "B", "C", "mu", "L")


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of an exact check; of several, for a batch."""

    valid: bool
    """Whether it is a proof; for a batch, whether all of them are."""
    reason: str
    """What was proved, or the first condition that fails."""
    members: tuple["Verification", ...] = ()
    """One for each member of a batch, in order; empty for a single certificate."""

    def __bool__(self) -> bool:
        return self.valid


def verify(certificate: RateCertificate) -> Verification:
    """Check a certificate in exact rational arithmetic: a proof is accepted, anything else is refused.

    Args:
      certificate: from `certify_rate`, or from `read_certificate`; of any batch shape.

    Returns:
      `Verification(valid, reason, members)`: it proves that with V_k as in `RateCertificate` the inequality
      V_{k+1} <= rate^2 V_k holds along the method on every function of the class F(mu, L), exactly for the numbers that
      the certificate holds, and that V_k >= c |state_k|^2 with some c > 0. For a batch, one for each member.

    Raises:
      TypeError: not a certificate, or traced: it runs on the host.

    Cost: some 0.01 to 0.5 s a member, by the size of its matrices. Not differentiable, and not for use under `jit`.
    Source: exact LDL^T, as for any positive definite matrix of rationals.

    Example:
      >>> import jax
      >>> from jaxnm.first_order import certify_rate, gradient_descent
      >>> with jax.enable_x64(True):
      ...     verify(certify_rate(gradient_descent(1.0), 0.1, 1.0)).valid
      True
    """
    _check_host("verify", certificate)
    if np.ndim(certificate.rate) == 0:
        return _verify_one(certificate)
    members = tuple(_verify_one(member) for member in _members(certificate))
    failing = [i for i, member in enumerate(members) if not member.valid]
    if not failing:
        return Verification(True, f"all {len(members)} members are proofs", members)
    first = members[failing[0]].reason
    return Verification(False, f"{len(failing)} of {len(members)} members fail; member {failing[0]}: {first}", members)


def write_certificate(certificate: RateCertificate, path: str | pathlib.Path) -> None:
    """Write a certificate to a JSON file of exact rationals.

    Args:
      certificate: from `certify_rate`; of any batch shape.
      path: of the file, which is replaced.

    Returns:
      nothing. The file holds a format name, the memory, the dtype and the batch shape, and for each member all numbers
      as strings "numerator/denominator".

    Raises:
      TypeError: not a certificate, or traced. ValueError: a member that is not finite.

    Cost: none to speak of. Not differentiable, and not for use under `jit`.

    Example:
      >>> import tempfile
      >>> from jaxnm.first_order import certify_rate, gradient_descent
      >>> with tempfile.NamedTemporaryFile() as file:
      ...     write_certificate(certify_rate(gradient_descent(1.0), 0.1, 1.0), file.name)
      ...     float(read_certificate(file.name).mu) == float(jnp.float32(0.1))
      True
    """
    _check_host("write_certificate", certificate)
    content = {
        "format": _FORMAT,
        "memory": certificate.memory,
        "dtype": str(np.asarray(certificate.rate).dtype),
        "batch": list(np.shape(certificate.rate)),
        "members": [_written(member) for member in _members(certificate)],
    }
    pathlib.Path(path).write_text(json.dumps(content, indent=1) + "\n")


def read_certificate(path: str | pathlib.Path) -> RateCertificate:
    """Read what `write_certificate` wrote.

    Args:
      path: of the file.

    Returns:
      the certificate, equal to the one written bit for bit if its dtype is available.

    Raises:
      ValueError: not such a file, or numbers that the dtype does not hold exactly (float64 without x64). TypeError: no
        path.

    Cost: none to speak of. Not differentiable, and not for use under `jit`.

    Example:
      >>> read_certificate("no such file")
      Traceback (most recent call last):
      ...
      FileNotFoundError: ...
    """
    if not isinstance(path, str | os.PathLike):
        got = f"of type {type(path).__name__}"
        arguments.refuse("read_certificate", "path", got, "a path", "pass that of the file", error=TypeError)
    text = pathlib.Path(path).read_text()
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        arguments.refuse("read_certificate", "path", "another kind of file", repr(_FORMAT), "write one first")
    dtype = np.dtype(content["dtype"])
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        arguments.refuse("read_certificate", "the file", f"in {dtype}", "a dtype that is on", "switch x64 on")
    shape = tuple(content["batch"])
    columns = {}
    for name in _FIELDS:
        kind = np.dtype(np.int32) if name == "status" else dtype
        values = [_numbers(member[name], kind) for member in content["members"]]
        columns[name] = jnp.asarray(np.stack(values).reshape(shape + values[0].shape))
    method = StateSpace(columns.pop("A"), columns.pop("B"), columns.pop("C"))
    return RateCertificate(method=method, memory=content["memory"], **columns)


# ------------------------------------------------------------------------------------------------- the exact check


def _verify_one(certificate: RateCertificate) -> Verification:
    refuse = lambda reason: Verification(False, reason)
    status = Status(int(np.asarray(certificate.status)))
    if status not in (Status.OK, Status.INACCURATE):
        return refuse(f"there is no proof: {status.name}, {status.meaning}")
    if not all(np.all(np.isfinite(array)) for array in _fields(certificate).values()):
        return refuse("a number is not finite")
    A, B, C = (_exact(leaf) for leaf in (certificate.method.A, certificate.method.B, certificate.method.C))
    mu, L, rate = (_exact(leaf) for leaf in (certificate.mu, certificate.L, certificate.rate))
    if not 0 <= mu <= L:
        return refuse("mu and L are not in the order 0 <= mu <= L")
    if not 0 <= rate < 1:
        return refuse("the rate is not between 0 and 1")
    n, steps = len(B), certificate.memory + 1
    Q, q, given = _exact(certificate.Q), _exact(certificate.q), _exact(certificate.multipliers)
    pairs = {
        points: [(i, j) for j in range(points + 1) for i in range(points + 1) if i != j]
        for points in (steps, steps + 1)
    }
    if len(Q) != n + steps or len(q) != steps or len(given) != sum(map(len, pairs.values())):
        return refuse("the sizes of Q, q and the multipliers do not fit the method and the memory")
    if any(Q[i][j] != Q[j][i] for i in range(n + steps) for j in range(i)):
        return refuse("Q is not symmetric")
    # h = (f - mu |y|^2 / 2) / (L - mu): the method on it, with rows in the coordinates (state, gradients)
    d = n + steps + 1
    unit = lambda k: [Fraction(int(i == k)) for i in range(d)]
    gradients = [unit(n + k) for k in range(steps + 1)]
    states = [[unit(i) for i in range(n)]]
    for k in range(steps):
        position = _combination(C, states[k])
        states.append(
            [
                _combination([1, mu * B[i], (L - mu) * B[i]], [_combination(A[i], states[k]), position, gradients[k]])
                for i in range(n)
            ]
        )
    positions = [_combination(C, state) for state in states]
    square = rate * rate
    # function values: of rate^2 V_k - V_{k+1}, and of V_k
    decrease = [square * (q[k] if k < steps else 0) - (q[k - 1] if k > 0 else 0) for k in range(steps + 1)]
    multipliers = {}
    for points, values, part in (
        (steps + 1, decrease, given[: len(pairs[steps + 1])]),
        (steps, list(q), given[len(pairs[steps + 1]) :]),
    ):
        multipliers[points] = _repaired(dict(zip(pairs[points], part, strict=True)), values)
        for (i, j), value in multipliers[points].items():
            if value < 0:
                return refuse(
                    f"the multiplier of the pair {(i, j)} among {points} points is negative: {float(value):.3g}"
                )
    falls = _zeros(d)
    _add(falls, square, Q, [*states[0], *gradients[:-1]])
    _add(falls, Fraction(-1), Q, [*states[1], *gradients[1:]])
    bounds = _zeros(d)
    _add(bounds, Fraction(1), Q, [*states[0], *gradients[:-1]])
    for points, matrix in ((steps + 1, falls), (steps, bounds)):
        for (i, j), value in multipliers[points].items():
            _subtract_inequality(matrix, value, i, j, positions, gradients, points)
    if not _is_positive_definite(falls):
        return refuse("rate^2 V_k - V_{k+1} less the inequalities is not positive definite")
    if not _is_positive_definite([row[:-1] for row in bounds[:-1]]):
        return refuse("V_k less the inequalities is not positive definite")
    return Verification(True, f"proved: the rate {float(rate)!r} on F({float(mu):g}, {float(L):g})")


def _repaired(
    multipliers: dict[tuple[int, int], Fraction], values: Sequence[Fraction]
) -> dict[tuple[int, int], Fraction]:
    """With the multipliers towards the minimizer, the last point, such that `values` cancel."""
    last = len(values)
    repaired = dict(multipliers)
    for k in range(last):
        others = sum(value for (i, j), value in multipliers.items() if i == k and j != last)
        others -= sum(value for (i, j), value in multipliers.items() if j == k)
        repaired[k, last] = values[k] - others
    return repaired


def _subtract_inequality(
    matrix: Matrix,
    factor: Fraction,
    i: int,
    j: int,
    positions: Sequence[list[Fraction]],
    gradients: Sequence[list[Fraction]],
    minimizer: int,
) -> None:
    """Matrix -= factor times the form of h_i - h_j - g_j (y_i - y_j) - |g_i - g_j|^2 / 2 without the values."""
    zero = [Fraction(0)] * len(matrix)
    at = lambda rows, k: zero if k == minimizer else rows[k]
    between = _combination([1, -1], [at(positions, i), at(positions, j)])
    jump = _combination([1, -1], [at(gradients, i), at(gradients, j)])
    slope = at(gradients, j)
    for a in range(len(matrix)):
        for b in range(len(matrix)):
            product = (slope[a] * between[b] + between[a] * slope[b] + jump[a] * jump[b]) / 2
            matrix[a][b] += factor * product


def _add(matrix: Matrix, factor: Fraction, form: Matrix, rows: Sequence[list[Fraction]]) -> None:
    """Matrix += factor rows^T form rows."""
    images = [_combination(line, rows) for line in form]
    for row, image in zip(rows, images, strict=True):
        for a, value in enumerate(row):
            if value:
                for b, other in enumerate(image):
                    matrix[a][b] += factor * value * other


def _is_positive_definite(matrix: Matrix) -> bool:
    """By exact elimination: all pivots are positive."""
    rows = [list(row) for row in matrix]
    for k, pivot_row in enumerate(rows):
        if pivot_row[k] <= 0:
            return False
        for row in rows[k + 1 :]:
            ratio = row[k] / pivot_row[k]
            if ratio:
                for b in range(k, len(rows)):
                    row[b] -= ratio * pivot_row[b]
    return True


def _combination(factors: Sequence[Any], rows: Sequence[list[Fraction]]) -> list[Fraction]:
    return [sum((f * row[b] for f, row in zip(factors, rows, strict=True)), Fraction(0)) for b in range(len(rows[0]))]


def _zeros(size: int) -> Matrix:
    return [[Fraction(0)] * size for _ in range(size)]


def _exact(array: Any) -> Any:
    """Fractions in nested lists."""
    convert = lambda value: [convert(item) for item in value] if isinstance(value, list) else Fraction(value)
    return convert(np.asarray(array, np.float64).tolist())


# ---------------------------------------------------------------------------------------------------- files, batches


def _check_host(function: str, certificate: Any) -> None:
    check_certificate(function, certificate)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(certificate)):
        arguments.refuse(
            function, "certificate", "traced", "a concrete one", "call it outside jit and vmap", error=TypeError
        )


def _members(certificate: RateCertificate) -> list[RateCertificate]:
    batch = np.shape(certificate.rate)
    flat = jax.tree.map(lambda leaf: np.reshape(leaf, (-1, *np.shape(leaf)[len(batch) :])), certificate)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], flat) for k in range(int(np.prod(batch, dtype=int)))]


def _fields(certificate: RateCertificate) -> dict[str, np.ndarray]:
    owner = lambda name: certificate.method if name in ("A", "B", "C") else certificate
    return {name: np.asarray(getattr(owner(name), name)) for name in _FIELDS}


def _written(certificate: RateCertificate) -> dict[str, Any]:
    def text(value: Any) -> Any:
        return [text(item) for item in value] if isinstance(value, list) else str(Fraction(value))

    fields = _fields(certificate)
    if not all(np.all(np.isfinite(array)) for array in fields.values()):
        arguments.refuse("write_certificate", "certificate", "not finite", "finite numbers", "see its status")
    return {name: text(array.astype(np.float64).tolist()) for name, array in fields.items()}


def _numbers(values: Any, dtype: np.dtype) -> np.ndarray:
    def convert(value: Any) -> Any:
        return [convert(item) for item in value] if isinstance(value, list) else float(Fraction(value))

    return np.asarray(convert(values)).astype(dtype)
