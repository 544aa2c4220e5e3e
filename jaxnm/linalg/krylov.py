"""Large symmetric linear systems by their products: conjugate gradients, and MINRES for indefinite ones."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import lineax
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnm import arguments
from jaxnm.linalg.implicit import solve_implicitly
from jaxnm.linalg.lanczos import (
    Operator,
    checked_operator,
    dimension_of,
    divide,
    frozen_operator,
    norm,
    shapes_of,
)
from jaxnm.linalg.scaling import exponent_of, power_of_two, times_power_of_two
from jaxnm.status import Status, first_failing
from jaxnm.trees import all_finite, check_same_structure

_RUNNING = -1  # beside the codes of Status
_ROUNDING = 10  # eps times the largest modulus seen: a curvature or a coupling below this is zero


@flax.struct.dataclass
class KrylovSolution:
    """Solution of `A x = right` by products with A."""

    x: Any
    """Like `right`. NaN where an input or the result is not finite, else the last iterate, also after a failure."""
    num_steps: Int32[Array, ""]
    """Steps taken, a product and an application of the preconditioner each."""
    residual_norm: Float[Array, ""]
    """|right - A x|, computed from x and not by recurrence; `right` without its part in the null space."""
    status: Int32[Array, ""]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, NONFINITE_RESULT, NOT_SYMMETRIC, NOT_CONVERGED or INACCURATE."""


def minres(
    operator: Operator | lineax.AbstractLinearOperator,
    right: Any,
    *,
    preconditioner: Operator | lineax.AbstractLinearOperator | None = None,
    initial: Any = None,
    null_space: list[Any] | tuple[Any, ...] | None = None,
    rtol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
) -> KrylovSolution:
    """Solve `A x = right` for symmetric A, definite or not, by the iterates of least residual.

    Args:
      operator: product with A, from a pytree to one of the same structure, linear and symmetric. A
        `jax.tree_util.Partial` carries data as traced leaves, so that new data do not recompile; a function may close
        over tracers. A lineax operator is used by its `mv`.
      right: pytree of float32 arrays, or of float64 arrays; d numbers in all.
      preconditioner: product with an approximation to the inverse of |A|, symmetric positive definite.
      initial: where to start, like `right`; zero by default. It changes how many steps are taken, not what is reached.
      null_space: list of vectors like `right` that span the null space of A, where it has one. `right` is then
        projected onto the range of A, and x is the solution that is orthogonal to the null space.
      rtol: stop when the residual, by recurrence and in the norm of the preconditioner, is this share of `right` in
        that norm; in [0, 1), default 1e-10 in float64 and 1e-5 in float32. Below eps it counts as eps.
      max_steps: the most steps, default min(10 d, 10,000).

    Returns:
      `KrylovSolution(x, num_steps, residual_norm, status)`.

    Raises:
      TypeError: leaves that are not all float32 or all float64, or products of another dtype. ValueError: trees or
        products of another structure, rtol outside [0, 1), or max_steps below 0.

    Status:
      NONFINITE_INPUT: an argument, or the product with `right`, is not finite. OUT_OF_RANGE: the preconditioner is not
      positive definite, a traced rtol is out of its range, or a vector n of `null_space` is none (|A n| is above
      sqrt(eps) |A| |n|, by products with n and a few other vectors). NONFINITE_RESULT: a later product is not finite (x
      is NaN in this and the first). NOT_SYMMETRIC: x^T (A right) and right^T (A x) differ beyond sqrt(eps).
      NOT_CONVERGED: more steps are needed. INACCURATE: the iteration ended, and `right - A x` is above ten times rtol,
      and above what rounding leaves (100 eps |A| |x|) or above sqrt(eps), as where A is singular and `right` is not in
      its range, in a system too ill-conditioned for the dtype, or where x is below the smallest number of the dtype. So
      OK says: the residual of x, computed from x, is at most ten times what was asked, or at most sqrt(eps) where
      rounding allows no less.

    Cost: a product a step and two or three besides (and one a vector of `null_space`), memory of eight vectors.
    Differentiable to every order in `right`, in what the operator depends on and in `null_space`, by one more system
    with the same operator and not through the loop; the derivative in `initial`, `preconditioner` and `rtol` is zero.
    In a batch each member stops on its own.
    Source: C. C. Paige, M. A. Saunders, SIAM J. Numer. Anal. 12 (1975), 617-629.

    Example:
      >>> solution = minres(lambda v: jnp.array([2.0, -4.0]) * v, jnp.array([2.0, 4.0]))
      >>> solution.x.round(4), int(solution.num_steps)
      (Array([ 1., -1.], dtype=float32), 2)
    """
    return _checked("minres", operator, right, preconditioner, initial, null_space, rtol, max_steps)


def conjugate_gradient(
    operator: Operator | lineax.AbstractLinearOperator,
    right: Any,
    *,
    preconditioner: Operator | lineax.AbstractLinearOperator | None = None,
    initial: Any = None,
    null_space: list[Any] | tuple[Any, ...] | None = None,
    rtol: ArrayLike | None = None,
    max_steps: ArrayLike | None = None,
) -> KrylovSolution:
    """Solve `A x = right` for symmetric positive (semi)definite A, by the iterates of least error in its norm.

    Args:
      operator: as in `minres`, positive definite, or semidefinite with its `null_space` given.
      right: as in `minres`.
      preconditioner: as in `minres`.
      initial: as in `minres`.
      null_space: as in `minres`.
      rtol: as in `minres`.
      max_steps: as in `minres`.

    Returns:
      `KrylovSolution(x, num_steps, residual_norm, status)`.

    Raises:
      TypeError, ValueError: as `minres`.

    Status:
      As `minres`, and OUT_OF_RANGE: a direction of negative curvature was met (x is the iterate before it).

    Cost: a product a step and two or three besides, memory of four vectors. Differentiable as `minres`.
    Source: M. R. Hestenes, E. Stiefel, J. Res. Nat. Bur. Standards 49 (1952), 409-436.

    Example:
      >>> solution = conjugate_gradient(lambda v: jnp.array([2.0, 4.0]) * v, jnp.array([2.0, 4.0]))
      >>> solution.x.round(4), int(solution.num_steps)
      (Array([1., 1.], dtype=float32), 2)
    """
    return _checked("conjugate_gradient", operator, right, preconditioner, initial, null_space, rtol, max_steps)


def _product(operator: lineax.AbstractLinearOperator, vector: Any) -> Any:
    return operator.mv(vector)


def _as_function(operator: Any) -> Any:
    if not isinstance(operator, lineax.AbstractLinearOperator):
        return operator
    # those made of a function carry a program among their leaves, which is no traced argument
    arrays = all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(operator))
    return Partial(_product, operator) if arrays else lambda vector: operator.mv(vector)


def _checked(
    name: str,
    operator: Any,
    right: Any,
    preconditioner: Any,
    initial: Any,
    null_space: list[Any] | tuple[Any, ...] | None,
    rtol: ArrayLike | None,
    max_steps: ArrayLike | None,
) -> KrylovSolution:
    like = shapes_of(name, "right", right)
    dtype = jax.tree.leaves(like)[0].dtype
    if null_space is not None and not isinstance(null_space, list | tuple):
        got = f"a {type(null_space).__name__}"
        arguments.refuse(name, "null_space", got, "a list of vectors", "pass [vector]", error=TypeError)
    for argument, vectors in (("initial", [] if initial is None else [initial]), ("null_space", null_space or [])):
        for vector in vectors:
            check_same_structure(name, right=like, **{argument: vector})
            other = jax.tree.leaves(shapes_of(name, argument, vector))[0].dtype
            if other != dtype:
                got, expected = f"of dtype {other}", f"{dtype}, that of right"
                arguments.refuse(name, argument, got, expected, "cast one of them", error=TypeError)
    if rtol is None:
        rtol = 1e-10 if dtype == jnp.float64 else 1e-5
    arguments.check_number(name, "rtol", rtol, "in [0, 1)", lambda value: 0 <= value < 1, "try 1e-6")
    if max_steps is None:
        max_steps = min(10 * dimension_of(like), 10_000)
    arguments.check_cap(name, "max_steps", max_steps)
    operator = checked_operator(name, _as_function(operator), like)
    if preconditioner is not None:
        preconditioner = checked_operator(name, _as_function(preconditioner), like, argument="preconditioner")
    right, initial, null_space = jax.tree.map(jnp.asarray, (right, initial, list(null_space or [])))
    rtol, max_steps = arguments.constant(rtol, dtype), arguments.constant(max_steps, jnp.int32)
    return _solve(name, operator, preconditioner, right, initial, null_space, rtol, max_steps)


@partial(jax.jit, static_argnums=0)
def _solve(
    name: str,
    operator: Partial,
    preconditioner: Partial | None,
    right: Any,
    initial: Any,
    null_space: list[Any],
    rtol: Array,
    max_steps: Array,
) -> KrylovSolution:
    eps, detached = jnp.finfo(rtol.dtype).eps, jax.lax.stop_gradient
    frozen = frozen_operator(operator)
    precondition = (lambda vector: vector) if preconditioner is None else frozen_operator(preconditioner)
    finite = all_finite((right, initial, null_space))
    basis = _orthonormal(null_space)
    project, fixed_project = partial(_without, basis), partial(_without, detached(basis))
    right = project(right)
    size_of_right = power_of_two(norm(detached(right)))
    unit = divide(detached(right), size_of_right)
    image = frozen(unit)
    finite &= all_finite(image)
    size_of_operator = power_of_two(norm(image))
    system = operator
    if null_space:
        # not singular, and of the size of A in the null space: then the derivative stays orthogonal to it as well
        system = partial(_shifted, operator, project, size_of_operator)
        precondition = partial(_shifted, precondition, fixed_project, jnp.ones_like(rtol))
    start = None if initial is None else project(detached(initial))
    loop = minres_loop if name == "minres" else conjugate_gradient_loop

    def solve(b: Any, first: Array) -> tuple[Any, Array]:
        begin = None if start is None else optax.tree.scale(first, start)
        state = _refined(loop, system, precondition, size_of_operator, b, begin, jnp.maximum(rtol, eps), max_steps)
        # a solution says in its status that it is not accurate; a derivative has none
        x = jax.tree.map(lambda leaf: arguments.nan_unless(leaf, (first > 0) | state.accurate, leaf.ndim), state.x)
        figures = state.num_steps, state.code, state.accurate
        return x, jnp.stack([figure.astype(rtol.dtype) for figure in figures])

    figures = jnp.zeros(3, rtol.dtype)
    x, figures = solve_implicitly(system, right, solve, figures=figures, symmetric=True, marked=True)
    num_steps, code, _ = figures.astype(jnp.int32)
    x = project(x)

    # what came out, by a product with the solution; in units of the right-hand side, where nothing underflows
    size_of_x = power_of_two(norm(detached(x)))
    found = divide(detached(x), size_of_x)
    # a factor inside the operator must not meet a power of two before it meets the vector
    product = jax.lax.optimization_barrier(frozen(found))
    units = exponent_of(size_of_x) - exponent_of(size_of_right)
    reached = jax.tree.map(lambda leaf: times_power_of_two(leaf, units), product)
    residual = optax.tree.sub(unit, reached)
    size_of_found = times_power_of_two(norm(found), units + exponent_of(size_of_operator))
    accurate = _is_accurate(
        residual, size_of_found, reached, unit, _size(precondition, residual), _size(precondition, unit),
        jnp.maximum(rtol, eps),
    )  # fmt: skip
    size = jnp.maximum(norm(image), norm(product) / jnp.where(norm(found) > 0, norm(found), 1))
    annihilated = _annihilated(frozen, detached(basis), size)
    asymmetry = jnp.subtract(optax.tree.vdot(found, image), optax.tree.vdot(unit, product))
    asymmetric = jnp.abs(asymmetry) > math.sqrt(eps) * (norm(image) + norm(product))
    status = first_failing(
        (~finite, Status.NONFINITE_INPUT),
        (~((rtol >= 0) & (rtol < 1)) | ~annihilated | (code == Status.OUT_OF_RANGE), Status.OUT_OF_RANGE),
        ((code == Status.NONFINITE_RESULT) | ~all_finite(x), Status.NONFINITE_RESULT),
        (asymmetric, Status.NOT_SYMMETRIC),
        (code == Status.NOT_CONVERGED, Status.NOT_CONVERGED),
        (~accurate, Status.INACCURATE),
    )
    usable = (status != jnp.int32(Status.NONFINITE_INPUT)) & (status != jnp.int32(Status.NONFINITE_RESULT))
    x = jax.tree.map(lambda leaf: arguments.nan_unless(leaf, usable, leaf.ndim), x)
    return KrylovSolution(x, num_steps, arguments.nan_unless(size_of_right * norm(residual), usable), status)


def _orthonormal(vectors: list[Any]) -> list[Any]:
    """Gram-Schmidt, twice; a vector that depends on those before it becomes zero."""
    basis: list[Any] = []
    for vector in vectors:
        length = jax.lax.stop_gradient(norm(vector))
        vector = divide(vector, jnp.where(length > 0, length, 1))
        vector = _without(basis, _without(basis, vector))
        square = jnp.asarray(optax.tree.vdot(vector, vector))
        new = square > (100 * jnp.finfo(square.dtype).eps) ** 2
        basis.append(optax.tree.scale(jnp.where(new, 1 / jnp.sqrt(jnp.where(new, square, 1)), 0), vector))
    return basis


def _without(basis: list[Any], vector: Any) -> Any:
    """The vector without its parts along the vectors of an orthonormal basis."""
    for direction in basis:
        vector = optax.tree.add_scale(vector, jnp.negative(optax.tree.vdot(direction, vector)), direction)
    return vector


def _annihilated(operator: Operator, vectors: list[Any], size: Array) -> Array:
    """Whether the operator takes each of the orthonormal vectors to zero, up to the root of rounding.

    Args:
      operator: A.
      vectors: orthonormal, or zero.
      size: a lower bound of |A|; the right-hand side may be smooth, so A is also tried on a vector that is not.
    """
    if not vectors:
        return jnp.array(True)
    signs = lambda leaf: (1 - 2 * (jnp.arange(leaf.size, dtype=jnp.int32) % 2)).astype(leaf.dtype).reshape(leaf.shape)
    rough = jax.tree.map(signs, vectors[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), divide(rough, norm(rough)), *vectors)
    images = jax.lax.map(lambda vector: norm(operator(vector)), stacked)
    return jnp.all(images[1:] <= math.sqrt(jnp.finfo(size.dtype).eps) * jnp.maximum(size, images[0]))


def _shifted(operator: Operator, project: Operator, shift: Array, vector: Any) -> Any:
    """The operator between projections, and `shift` times the identity in what they remove."""
    inside = project(vector)
    return optax.tree.add_scale(project(operator(inside)), shift, optax.tree.sub(vector, inside))


# --------------------------------------------------------------------------------------------------------- the loops


class _Pass(NamedTuple):
    x: Any
    residual: Any
    size: Array
    """Of the residual, in the norm of the preconditioner."""
    num_steps: Array
    code: Array
    more: Array
    accurate: Array
    """Whether the residual, computed from x, is what was asked for or what rounding leaves."""


def _refined(
    loop: Callable[..., Any],
    operator: Operator,
    precondition: Operator,
    size_of_operator: Array,
    right: Any,
    begin: Any,
    rtol: Array,
    max_steps: Array,
) -> _Pass:
    """The loop, again from the true residual while rounding keeps that above the tolerance.

    That is a share of `right`, wherever the loop begins. The recurrence of MINRES loses up to the square of the
    condition, and a start far off leaves rounding errors of its own size.
    Right-hand side and operator are scaled to size 1.
    """
    length = norm(right)
    unit = power_of_two(length)
    right = divide(right, unit)
    scaled = lambda vector: divide(operator(vector), size_of_operator)
    size = partial(_size, precondition)
    first, eps = size(right), jnp.finfo(rtol.dtype).eps
    choose = lambda condition, yes, no: jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), yes, no)

    def again(state: _Pass) -> _Pass:
        share = rtol * first / jnp.where(state.size > 0, state.size, 1)
        step, num_steps, code = loop(scaled, precondition, state.residual, share, max_steps - state.num_steps)
        x = optax.tree.add(state.x, step)
        image = scaled(x)
        residual = optax.tree.sub(right, image)
        reached, num_steps = size(residual), state.num_steps + num_steps
        better = (state.num_steps == 0) | (reached < state.size)
        ended = (code == Status.OK) | (code == Status.INACCURATE)
        more = ended & (reached > 10 * rtol * first) & (reached < state.size / 2) & (num_steps < max_steps)
        accurate = _is_accurate(residual, norm(x), image, right, reached, first, rtol)
        new = _Pass(x, residual, reached, num_steps, code, more, accurate)
        return choose(better, new, state)._replace(num_steps=num_steps, more=more)

    x, residual = optax.tree.zeros_like(right), right
    if begin is not None:
        begin = optax.tree.scale(size_of_operator, divide(begin, unit))
        image = scaled(begin)
        from_begin = optax.tree.sub(right, image)
        # from farther away zero is nearer, and squares may overflow; False for NaN
        usable = (length > 0) & (norm(from_begin) < 1 / eps**2)
        x, residual = choose(usable, (begin, from_begin), (x, residual))
    reached = size(residual)
    nothing = (length == 0) | ((reached <= rtol * first) & (first > 0))
    state = _Pass(x, residual, reached, jnp.int32(0), jnp.int32(0), ~nothing, nothing)
    state = jax.lax.while_loop(lambda state: state.more, again, state)
    exponent = exponent_of(unit) - exponent_of(size_of_operator)
    # a length that is not finite makes NaN: of a failed member also in the derivative
    nan_or_one = jnp.where(jnp.isfinite(length), 1, length)
    return state._replace(x=jax.tree.map(lambda leaf: nan_or_one * times_power_of_two(leaf, exponent), state.x))


def _size(precondition: Operator, vector: Any) -> Array:
    """In the norm of the preconditioner."""
    return jnp.sqrt(jnp.abs(optax.tree.vdot(vector, precondition(vector))))


def _is_accurate(
    residual: Any, size_of_x: Array, image: Any, right: Any, reached: Array, first: Array, rtol: Array
) -> Array:
    """Whether the residual of x is what was asked for, or what rounding leaves.

    Args:
      residual: right - A x.
      size_of_x: |x|, times that of A.
      image: A x.
      right: of size one.
      reached: the residual in the norm of the preconditioner.
      first: `right` in that norm.
      rtol: what was asked for.
    """
    eps = jnp.finfo(rtol.dtype).eps
    rounding = 100 * eps * (jnp.maximum(size_of_x, norm(image)) + norm(right))
    return (reached <= 10 * rtol * first) | ((norm(residual) <= rounding) & (reached <= math.sqrt(eps) * first))


def _code(num_steps: Array, max_steps: Array, converged: Array, *failures: tuple[Array, Status]) -> Array:
    """Whether to go on: the first failure, then OK, then NOT_CONVERGED, or _RUNNING."""
    code = jnp.where(num_steps < max_steps, jnp.int32(_RUNNING), jnp.int32(Status.NOT_CONVERGED))
    code = jnp.where(converged, jnp.int32(Status.OK), code)
    for condition, status in reversed(failures):
        code = jnp.where(condition, jnp.int32(status), code)
    return code


def _start(precondition: Operator, right: Any, max_steps: Array) -> tuple[Any, Array, Array]:
    """(the right-hand side preconditioned, its product with that, the code)."""
    length = norm(right)
    usable = (length > 0) & jnp.isfinite(length)
    preconditioned = precondition(right)
    square = jnp.asarray(optax.tree.vdot(right, preconditioned))
    wrong = usable & ~(square > 0)
    failures = ((wrong & ~jnp.isfinite(square), Status.NONFINITE_RESULT), (wrong, Status.OUT_OF_RANGE))
    return preconditioned, square, _code(jnp.int32(0), max_steps, ~usable, *failures)


def _advanced(x: Any, step: Array, direction: Any, good: Array) -> Any:
    return jax.tree.map(lambda x, direction: jnp.where(good, x + step * direction, x), x, direction)


class _Descent(NamedTuple):
    x: Any
    residual: Any
    direction: Any
    square: Array
    """Of the residual, in the norm of the preconditioner."""
    largest: Array
    """Modulus of a curvature so far."""
    num_steps: Array
    code: Array


def conjugate_gradient_loop(
    operator: Operator, precondition: Operator, right: Any, rtol: Array, max_steps: Array
) -> tuple[Any, Array, Array]:
    """(x, num_steps, code) for a definite operator: the bare loop, for solvers with a derivative of their own."""
    direction, square, code = _start(precondition, right, max_steps)
    goal, eps = rtol**2 * square, jnp.finfo(rtol.dtype).eps

    def step(state: _Descent) -> _Descent:
        image = operator(state.direction)
        curvature, scale = (jnp.asarray(optax.tree.vdot(state.direction, other)) for other in (image, state.direction))
        largest = jnp.maximum(state.largest, jnp.abs(curvature) / scale)
        rounding = _ROUNDING * eps * largest * scale
        good = curvature > rounding
        share = state.square / jnp.where(good, curvature, 1)
        x = _advanced(state.x, share, state.direction, good)
        residual = optax.tree.add_scale(state.residual, -share, image)
        preconditioned = precondition(residual)
        square = jnp.asarray(optax.tree.vdot(residual, preconditioned))
        code = _code(
            state.num_steps + 1,
            max_steps,
            jnp.abs(square) <= goal,
            (~jnp.isfinite(curvature), Status.NONFINITE_RESULT),
            (curvature < -rounding, Status.OUT_OF_RANGE),
            (~good, Status.INACCURATE),
            (~jnp.isfinite(square), Status.NONFINITE_RESULT),
            (square < -goal, Status.OUT_OF_RANGE),
        )
        direction = optax.tree.add_scale(preconditioned, square / state.square, state.direction)
        return _Descent(x, residual, direction, square, largest, state.num_steps + 1, code)

    zero = optax.tree.zeros_like(right)
    state = _Descent(zero, right, direction, square, jnp.zeros_like(square), jnp.int32(0), code)
    state = jax.lax.while_loop(lambda state: state.code == _RUNNING, step, state)
    return state.x, state.num_steps, state.code


class _Rotation(NamedTuple):
    x: Any
    before: Any
    """Lanczos vector before the current one, times `beta_before`."""
    current: Any
    """Lanczos vector, times `beta`."""
    preconditioned: Any
    """The same, preconditioned."""
    directions: tuple[Any, Any]
    """Of the last two steps."""
    beta_before: Array
    beta: Array
    cosine: Array
    sine: Array
    """Of the last plane rotation."""
    corner: Array
    """Entry of the rotated tridiagonal matrix that the next rotation changes."""
    fill: Array
    """Its entry two above the diagonal."""
    residual: Array
    """Norm, by recurrence."""
    largest: Array
    """Norm of a column of the tridiagonal matrix so far."""
    num_steps: Array
    code: Array


def minres_loop(
    operator: Operator, precondition: Operator, right: Any, rtol: Array, max_steps: Array
) -> tuple[Any, Array, Array]:
    """(x, num_steps, code) for a symmetric operator: the bare loop, as `conjugate_gradient_loop`."""
    preconditioned, square, code = _start(precondition, right, max_steps)
    eps = jnp.finfo(rtol.dtype).eps
    first = jnp.sqrt(jnp.maximum(square, 0))
    # of a vector of norm one in the inverse preconditioner, which is the norm that bounds on x need
    unit = norm(preconditioned) / jnp.where(first > 0, first, 1)

    def step(state: _Rotation) -> _Rotation:
        vector = divide(state.preconditioned, state.beta)
        following = optax.tree.add_scale(operator(vector), -state.beta / state.beta_before, state.before)
        alpha = jnp.asarray(optax.tree.vdot(vector, following))
        following = optax.tree.add_scale(following, -alpha / state.beta, state.current)
        preconditioned = precondition(following)
        square = jnp.asarray(optax.tree.vdot(following, preconditioned))
        beta = jnp.sqrt(jnp.maximum(square, 0))
        inherited = jnp.where(state.num_steps > 0, state.beta, 0)
        largest = jnp.maximum(state.largest, jnp.sqrt(inherited**2 + alpha**2 + beta**2))
        rounding = _ROUNDING * eps * largest
        beta = jnp.where(beta > rounding, beta, 0)  # the Krylov space is exhausted

        above = state.cosine * state.corner + state.sine * alpha
        diagonal = state.sine * state.corner - state.cosine * alpha
        fill, corner = state.sine * beta, -state.cosine * beta
        pivot = jnp.sqrt(diagonal**2 + beta**2)
        good = pivot > rounding
        divisor = jnp.where(good, pivot, 1)
        cosine, sine = diagonal / divisor, beta / divisor
        older, old = state.directions
        direction = jax.tree.map(
            lambda vector, older, old: (vector - state.fill * older - above * old) / divisor, vector, older, old
        )
        x = _advanced(state.x, cosine * state.residual, direction, good)
        residual = jnp.where(good, sine * state.residual, state.residual)
        code = _code(
            state.num_steps + 1,
            max_steps,
            residual <= rtol * first,
            (~jnp.isfinite(alpha + square), Status.NONFINITE_RESULT),
            (square < -eps * largest**2, Status.OUT_OF_RANGE),
            # A annihilates what is left, or x has grown so that its rounding errors are as large
            (~good | (jnp.sqrt(diagonal**2 + corner**2) <= rounding), Status.INACCURATE),
            (eps * largest * norm(x) >= residual * unit, Status.INACCURATE),
        )
        return _Rotation(
            x, state.current, following, preconditioned, (old, direction), state.beta, beta, cosine, sine, corner, fill,
            residual, largest, state.num_steps + 1, code,
        )  # fmt: skip

    zero, none, one = optax.tree.zeros_like(right), jnp.zeros_like(first), jnp.ones_like(first)
    state = _Rotation(
        zero, zero, right, preconditioned, (zero, zero), one, first, -one, none, none, none, first, none,
        jnp.int32(0), code,
    )  # fmt: skip
    state = jax.lax.while_loop(lambda state: state.code == _RUNNING, step, state)
    return state.x, state.num_steps, state.code
