"""One question, one card: what a method does on a spectrum."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int32

from jaxnm import arguments
from jaxnm.first_order.hessian import Spectrum
from jaxnm.first_order.linearization import check_affine, from_optax, is_affine, linearize
from jaxnm.first_order.lyapunov import eigen_lyapunov_candidates, lyapunov_decrease, schur_lyapunov
from jaxnm.first_order.methods import check_curvatures, curvatures_valid
from jaxnm.first_order.rates import stability_limit, worst_or_fixed
from jaxnm.first_order.spectral import spectral_radius, transient_growth
from jaxnm.first_order.state_space import StateSpace, check_method, iteration_matrix, parameter_units
from jaxnm.status import Status, first_failing, merge

_INTERVAL_POINTS = 257
_TRANSIENT_STEPS = 300


@flax.struct.dataclass
class Analysis:
    """What a method does on quadratics with a given spectrum; `str(analysis)` is a card, or a table for a batch."""

    method: StateSpace
    """The method analyzed."""
    mu: Float[Array, "*batch"]
    """Smallest curvature."""
    L: Float[Array, "*batch"]
    """Largest curvature."""
    rate: Float[Array, "*batch"]
    """Worst asymptotic rate per iterate, over the curvatures given or over all of the interval (mu, L)."""
    worst_curvature: Float[Array, "*batch"]
    """Where it is attained."""
    curved_rate: Float[Array, "*batch"]
    """The rate without the flat directions: of what does converge, where mu = 0 keeps an eigenvalue 1."""
    flat_directions: Int32[Array, "*batch"]
    """Curvatures that are zero to rounding; no method moves along them."""
    negative_directions: Int32[Array, "*batch"]
    """Curvatures below zero beyond rounding: the function is not convex."""
    stability_limit: Float[Array, "*batch"]
    """Largest curvature below which all positive ones are stable."""
    transient_peak: Float[Array, "*batch"]
    """Largest 2-norm of a power of a block over the curvatures: how far the error can overshoot before it decays.

    States in units of a gradient are measured by what they do to the parameters: see `state_units`."""
    transient_index: Int32[Array, "*batch"]
    """After how many steps; 300, the last one looked at, if the norm may still grow."""
    transient_curvature: Float[Array, "*batch"]
    """At which curvature."""
    schur_fraction: Float[Array, "*batch"]
    """Share of the curvatures on which the Schur (Casoratian) Lyapunov function is valid."""
    schur_valid: Bool[Array, "*batch"]
    """Whether it is valid on all of them, and so certifies the rate."""
    eigen_valid: Bool[Array, "*batch"]
    """Whether the eigenvector Lyapunov function was found and checked on every curvature, for rate + eigen_slack."""
    eigen_slack: Float[Array, "*batch"]
    """0 where eigenvectors suffice; (1 - rate) / 100 where a defective block needed a slack."""
    state_units: Float[Array, "*batch n"]
    """|B_0 / B_i|, the factor from state i of `method`, where gradients enter it, to units of the parameters; 1
    elsewhere."""
    time_varying: Bool[Array, "*batch"]
    """Whether the method is a snapshot of a time-varying one."""
    stochastic: Bool[Array, "*batch"]
    """Whether the method is the mean of one with injected noise."""
    status: Int32[Array, "*batch"]
    """OK, NONFINITE_INPUT, OUT_OF_RANGE, NOT_AFFINE, or the status of the Spectrum."""
    num_curvatures: int = flax.struct.field(pytree_node=False)
    """At how many curvatures the blocks were evaluated."""
    dimension: int = flax.struct.field(pytree_node=False)
    """For how many they stand: as many, or the parameters of a model whose spectrum is known by Ritz values."""
    interval: bool = flax.struct.field(pytree_node=False)
    """Whether they stand for the whole interval (mu, L)."""
    name: str = flax.struct.field(pytree_node=False, default="")
    """The title of the card."""
    learning_rate: Float[Array, "*batch"] | None = None
    """The grid, where the analysis came from `analyze_learning_rates`."""

    def __str__(self) -> str:
        return _card(self) if jnp.ndim(self.rate) == 0 else _table(self)


def analyze(
    method: StateSpace | optax.GradientTransformation,
    spectrum: Spectrum | Float[ArrayLike, "m"] | tuple[ArrayLike, ArrayLike],
    *,
    name: str = "",
    warmup_steps: int = 3,
) -> Analysis:
    """Rate, stability limit, transient growth and Lyapunov functions of a method on a spectrum.

    Args:
      method: state-space form, or an optax transformation (then `from_optax` is called, outside `jit` only).
      spectrum: a `Spectrum`, an array [m] of curvatures, or a pair (mu, L) that stands for every curvature between.
      name: a title for the card.
      warmup_steps: as in `from_optax`.

    Returns:
      `Analysis`, in the dtype of the spectrum for an optax transformation. On a Spectrum or an array everything is
      evaluated at its m curvatures. On a pair the rate and its curvature are certified for the whole interval, while
      transient growth (300 steps) and the Lyapunov functions are evaluated at 257 equidistant curvatures. Optimizer
      states in units of a gradient are first scaled to those of the parameters: the units of the loss do not matter.

    Raises:
      ValueError: a pair outside 0 <= mu <= L or not of scalars, no curvatures, or a transformation that is not affine.
        TypeError: integer or complex arrays, or a method of another type.

    Status: that of the Spectrum; OUT_OF_RANGE for a traced pair outside 0 <= mu <= L; NONFINITE_INPUT where the method
      or a curvature is not finite. No Lyapunov function is valid then.

    Cost: m blocks, each with 300 powers and one Schur form. With a StateSpace it works under `jit` and `vmap`.
    Differentiable in rate, stability limit and transient peak where those functions are.

    Example:
      >>> from jaxnm.first_order import optimal_heavy_ball
      >>> round(float(analyze(optimal_heavy_ball(1.0, 9.0), (1.0, 9.0)).rate), 4)
      0.5
    """
    flags = (arguments.constant(False, bool), arguments.constant(False, bool))
    if isinstance(method, optax.GradientTransformation):
        linearization = from_optax(method, warmup_steps=warmup_steps)
        method, flags = linearization.method, (linearization.time_varying, linearization.stochastic)
        curvatures = _curvatures("analyze", spectrum, method.A.dtype)
        method = jax.tree.map(lambda leaf: leaf.astype(curvatures.values.dtype), method)
    else:
        check_method("analyze", method, expected="a StateSpace or an optax transformation")
        curvatures = _curvatures("analyze", spectrum, method.A.dtype)
    return dataclasses.replace(_analyze(method, curvatures, flags), name=name)


def analyze_learning_rates(
    factory: Callable[[ArrayLike], optax.GradientTransformation],
    learning_rates: Float[ArrayLike, "batch"],
    spectrum: Spectrum | Float[ArrayLike, "m"] | tuple[ArrayLike, ArrayLike],
    *,
    name: str = "",
    warmup_steps: int = 3,
) -> Analysis:
    """`analyze` for a grid of learning rates of one optax factory, in one call.

    Args:
      factory: learning rate to transformation, as `optax.sgd` or `lambda lr: optax.sgd(lr, momentum=0.9)`; it is
        traced once, so it must not branch on the value.
      learning_rates: [batch].
      spectrum: as in `analyze`.
      name: a title for the table.
      warmup_steps: as in `from_optax`.

    Returns:
      `Analysis` with a leading axis [batch], in the dtype of the spectrum; `str(...)` is a table, one row a learning
      rate, in order.

    Raises:
      ValueError: none of the members is affine (outside `jit`), or as `analyze`. TypeError: as `analyze`.

    Status: as `analyze`, and NOT_AFFINE for members whose step is not affine or not finite, whose figures are NaN; the
      others are unharmed.

    Cost: one linearization for the whole grid, then that of `analyze` a member.
    Differentiable in the learning rates, under `jit` too.

    Example:
      >>> import optax
      >>> rates = jnp.array([0.5, 1.0])
      >>> analyze_learning_rates(optax.sgd, rates, (0.5, 1.0)).rate
      Array([0.75, 0.5 ], dtype=float32)
    """
    (learning_rates,) = arguments.to_arrays("analyze_learning_rates", learning_rates=learning_rates)
    arguments.check_shape(
        "analyze_learning_rates",
        "learning_rates",
        learning_rates,
        "[batch] with batch >= 1",
        lambda shape: len(shape) == 1 and shape[0] > 0,
    )
    remedy = "pass optax.sgd, or a function from a learning rate to a transformation"
    arguments.check_callable("analyze_learning_rates", "factory", factory, remedy)
    linearization, measurement = jax.vmap(
        lambda rate: linearize("analyze_learning_rates", factory(rate), warmup_steps)
    )(learning_rates)
    if not isinstance(linearization.residual, jax.core.Tracer):
        check_affine("analyze_learning_rates", linearization, measurement)
    affine = is_affine(linearization)
    curvatures = _curvatures("analyze_learning_rates", spectrum, learning_rates.dtype)
    only_affine = lambda leaf: arguments.nan_unless(leaf.astype(curvatures.values.dtype), affine, leaf.ndim - 1)
    method = jax.tree.map(only_affine, linearization.method)
    statuses = merge(jnp.broadcast_to(curvatures.status, affine.shape), first_failing((~affine, Status.NOT_AFFINE)))
    one = lambda method, flags, status: _analyze(method, dataclasses.replace(curvatures, status=status), flags)
    analysis = jax.vmap(one)(method, (linearization.time_varying, linearization.stochastic), statuses)
    return dataclasses.replace(analysis, name=name, learning_rate=learning_rates)


@flax.struct.dataclass
class _Curvatures:
    """Where a method is evaluated, and what that stands for."""

    values: Array
    """[m], or [mu, L] for an interval."""
    weights: Array
    """[m]: shares, with sum 1; empty for an interval."""
    status: Array
    interval: bool = flax.struct.field(pytree_node=False)
    dimension: int = flax.struct.field(pytree_node=False)


def _curvatures(function: str, spectrum: Any, dtype: Any) -> _Curvatures:
    status = arguments.constant(Status.OK, jnp.int32)
    if isinstance(spectrum, Spectrum):
        return _Curvatures(spectrum.eigenvalues, spectrum.weights, spectrum.status, False, spectrum.dimension)
    if isinstance(spectrum, tuple):
        if len(spectrum) != 2:
            arguments.refuse(function, "spectrum", f"a tuple of {len(spectrum)}", "a pair (mu, L)", "pass an array")
        check_curvatures(function, *spectrum, positive=False)
        mu, L = (
            arguments.constant(end, dtype)
            if arguments.is_number(end)
            else arguments.to_arrays(function, spectrum=end)[0]
            for end in spectrum
        )
        for end, array in (("mu", mu), ("L", L)):
            arguments.check_real(function, f"{end} of spectrum", array)
            arguments.check_shape(
                function, f"{end} of spectrum", array, "a scalar, shape ()", lambda shape: shape == (),
                "pass an array for single curvatures, and jax.vmap for a batch",
            )  # fmt: skip
        return _Curvatures(
            jnp.stack([mu, L]), arguments.constant(np.zeros(0), mu.dtype), status, True, _INTERVAL_POINTS
        )
    (curvatures,) = arguments.to_arrays(function, spectrum=spectrum)
    arguments.check_real(function, "spectrum", curvatures)
    arguments.check_shape(
        function, "spectrum", curvatures, "[m] with m >= 1", lambda shape: len(shape) == 1 and shape[0] > 0
    )
    m = curvatures.shape[0]
    return _Curvatures(curvatures, arguments.constant(np.full(m, 1 / m), curvatures.dtype), status, False, m)


@jax.jit
def _analyze(given_method: StateSpace, given: _Curvatures, flags: tuple[Array, Array]) -> Analysis:
    units = parameter_units(given_method)
    method = given_method.rescaled(units)
    mu, L = jnp.min(given.values), jnp.max(given.values)
    if given.interval:
        mu, L = given.values
        out_of_range = first_failing((~curvatures_valid(mu, L, positive=False), Status.OUT_OF_RANGE))
        values = mu + (L - mu) * jnp.linspace(0, 1, _INTERVAL_POINTS, dtype=mu.dtype)
        given = dataclasses.replace(
            given,
            values=values,
            weights=jnp.full_like(values, 1 / _INTERVAL_POINTS),
            status=merge(given.status, out_of_range),
        )
        worst = worst_or_fixed(method, mu, L)
        radii = spectral_radius(iteration_matrix(method, jnp.append(values, worst)))
        rate, radii = radii[-1], radii[:-1]
    else:
        radii = spectral_radius(iteration_matrix(method, given.values))
        rate, worst = jnp.max(radii), given.values[jnp.argmax(radii)]
    analysis = _evaluate(method, given, radii, rate, worst, mu, L, flags)
    return dataclasses.replace(analysis, method=given_method, state_units=units)


@jax.jit
def _evaluate(
    method: StateSpace,
    given: _Curvatures,
    radii: Array,
    rate: Array,
    worst: Array,
    mu: Array,
    L: Array,
    flags: tuple[Array, Array],
) -> Analysis:
    curvatures = given.values
    blocks = iteration_matrix(method, curvatures)
    resolution = jnp.finfo(curvatures.dtype).eps
    # an eigensolver leaves errors of some eps max|lam| in the small eigenvalues of a Hessian
    noise = 0 if given.interval else 4 * curvatures.shape[0] * resolution * jnp.max(jnp.abs(curvatures))
    flat = jnp.abs(curvatures) <= noise
    growth = transient_growth(blocks, _TRANSIENT_STEPS)
    top = jnp.argmax(growth.peak)
    schur = schur_lyapunov(method, curvatures)
    slack = jnp.maximum((1 - rate) / 100, resolution)
    by_vectors, by_scaling = eigen_lyapunov_candidates(blocks, slack)
    defective = ~jnp.all(jnp.isfinite(by_vectors))
    P = jnp.where(defective, by_scaling, by_vectors)
    slack = jnp.where(defective, slack, jnp.zeros_like(slack))
    decrease = lyapunov_decrease(P, blocks, jnp.broadcast_to(rate + slack, curvatures.shape))
    size = jnp.max(jnp.abs(blocks), (-2, -1))
    rounding = 100 * method.num_states**2 * resolution * (1 + size**2)
    finite = jnp.all(jnp.isfinite(curvatures)) & jnp.isfinite(rate)
    share = lambda condition: jnp.sum(jnp.where(condition, given.weights, 0))
    number = lambda condition: jnp.round(given.dimension * share(condition)).astype(jnp.int32)
    return Analysis(
        method=method,
        mu=mu,
        L=L,
        rate=rate,
        worst_curvature=worst,
        curved_rate=jnp.max(jnp.where(flat, 0, radii)),
        flat_directions=number(flat),
        negative_directions=number(curvatures < -noise),
        stability_limit=stability_limit(method),
        transient_peak=growth.peak[top],
        transient_index=growth.index[top],
        transient_curvature=curvatures[top],
        schur_fraction=share(schur.valid),
        schur_valid=finite & jnp.all(schur.valid),
        eigen_valid=finite & jnp.all(decrease >= -rounding),
        eigen_slack=slack,
        state_units=jnp.ones_like(method.B),
        time_varying=flags[0],
        stochastic=flags[1],
        status=merge(given.status, first_failing((~finite, Status.NONFINITE_INPUT))),
        num_curvatures=curvatures.shape[0],
        dimension=given.dimension,
        interval=given.interval,
    )


def _card(analysis: Analysis) -> str:
    a = jax.tree.map(np.asarray, analysis)
    known = "" if a.dimension == a.num_curvatures else f", known by {a.num_curvatures:,} Ritz values"
    source = "every curvature between" if a.interval else f"{a.dimension:,} curvatures{known}"
    kappa = f", kappa = {a.L / a.mu:.4g}" if a.mu > 0 else ""
    lines = [("spectrum", f"mu = {a.mu:.4g}, L = {a.L:.4g}{kappa} ({source})")]
    if a.status != Status.OK:
        known = Status(int(a.status))
        lines.append(("status", f"{known.name}: {known.meaning}; {known.cure}"))
    lines.append(
        ("rate per iterate", f"{a.rate:.6f}, worst at curvature {a.worst_curvature:.4g}{_iterates_a_digit(a.rate)}")
    )
    if a.flat_directions:
        lines.append(("flat directions", f"{a.flat_directions} (eigenvalue 1); rate of the rest {a.curved_rate:.6f}"))
    if a.negative_directions:
        lines.append(("not convex", f"{a.negative_directions} negative curvatures: the iteration leaves along them"))
    if np.isnan(a.stability_limit):
        limit = "not decidable in this dtype"
    elif np.isinf(a.stability_limit):
        limit = "every positive curvature"
    else:
        limit = f"curvatures below {a.stability_limit:.4g}"
        limit += f" = {a.stability_limit / a.L:.3g} L" if a.L > 0 else ""
    lines.append(("stable on", limit))
    where = f"at step {a.transient_index}, curvature {a.transient_curvature:.4g}"
    growing = " or later" if a.transient_index == _TRANSIENT_STEPS else ""
    lines.append(("transient growth", f"{a.transient_peak:.4g} {where}{growing}"))
    verdict = "certifies the rate" if a.schur_valid else "no certificate, as eigenvalues on the rest are real or double"
    share = f"valid on {100 * a.schur_fraction:.4g} % of the curvatures: {verdict}"
    lines.append(("Schur function", share if a.method.num_states <= 2 else "defined for one and two states only"))
    slack = f"the rate + {a.eigen_slack:.2g}" if a.eigen_slack > 0 else "the rate"
    found = f"certifies {slack}" if a.eigen_valid else "not found within rounding"
    lines.append(("eigenvector function", found))
    if a.stochastic:
        lines.append(("stochastic", "all of the above is about the mean over the injected noise"))
    if a.time_varying:
        lines.append(("time-varying", "all of the above is a snapshot of one step"))
    title = [a.name] if a.name else []
    return "\n".join([*title, *(f"  {label:<21}{text}" for label, text in lines)])


def _iterates_a_digit(rate: np.ndarray) -> str:
    if not rate < 1 - 100 * np.finfo(rate.dtype).eps:
        return " (no convergence)"
    if rate == 0:
        return " (finite termination)"
    return f" ({np.log(0.1) / np.log(rate):.4g} iterates a digit)"


def _table(analysis: Analysis) -> str:
    """One row a member, batch axes flattened."""
    columns: dict[str, Array | None] = {
        "learning rate": analysis.learning_rate,
        "rate": analysis.rate,
        "worst at": analysis.worst_curvature,
        "stable below": analysis.stability_limit,
        "transient growth": analysis.transient_peak,
        "Schur valid on %": 100 * analysis.schur_fraction,
        "status": analysis.status,
    }
    shown = {title: np.ravel(np.asarray(column)) for title, column in columns.items() if column is not None}
    widths = [max(len(title), 9) for title in shown]
    rows = ["  ".join(f"{title:>{width}}" for title, width in zip(shown, widths, strict=True))]
    for values in zip(*shown.values(), strict=True):
        rows.append("  ".join(f"{value:>{width}.6g}" for value, width in zip(values, widths, strict=True)))
    return "\n".join([*([analysis.name] if analysis.name else []), *rows])
