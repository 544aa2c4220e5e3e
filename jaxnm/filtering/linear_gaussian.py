"""Linear-Gaussian state-space models: simulation, and their hand-over to the particle filter.

Covariances may be singular (a known initial state, a transition with less noise than states): what is sampled goes
through a triangular root that skips the directions without variance, in value and in derivative.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from jaxnm import arguments
from jaxnm.filtering.models import StateSpaceModel
from jaxnm.linalg.factorizations import cholesky, matmul

_LOG_TWO_PI = np.log(2 * np.pi).item()
# how far from the subspace that the noise reaches a state counts as on it, in eps of its size
_OFF_SUPPORT = 1000
# up to which difference of covariances, in standard deviations, the symmetric part is meant: eps to this power, which
# leaves room for rounding and for finite differences
_SYMMETRY = 0.25


@flax.struct.dataclass
class LinearGaussianModel:
    """x_0 ~ N(m, P),  x_t = F x_t-1 + c + N(0, Q),  y_t = H x_t + e + N(0, R), the first observation being y_0.

    Every array may be traced. Of covariances the symmetric part is used; one that is not symmetric up to eps^(1/4)
    standard deviations (1e-4 in float64, 2e-2 in float32) is none, as if it were not positive semidefinite.

    Example:
      >>> level = LinearGaussianModel(jnp.zeros(1), jnp.eye(1), jnp.eye(1), 0.1 * jnp.eye(1), jnp.eye(1), jnp.eye(1))
      >>> level.observation.shape
      (1, 1)
    """

    initial_mean: Float[Array, "d"]
    initial_covariance: Float[Array, "d d"]
    transition: Float[Array, "d d"]
    """F."""
    transition_covariance: Float[Array, "d d"]
    """Q."""
    observation: Float[Array, "m d"]
    """H."""
    observation_covariance: Float[Array, "m m"]
    """R."""
    transition_offset: Any = None
    """c [d], zero by default."""
    observation_offset: Any = None
    """e [m], zero by default."""


class Gain(NamedTuple):
    """What an observation does to a covariance."""

    gain: Array
    """[d, m], what a residual is multiplied by."""
    factor: Array
    """[m, m], lower Cholesky factor of the covariance of the residual."""
    covariance: Array
    """[d, d], given the observation."""
    singular: Bool[Array, ""]
    """Whether the covariance of the residual is finite but not positive definite."""
    kept: Array
    """[d, d], 1 - gain @ H."""


def simulate_linear_gaussian(
    key: Key[Array, ""], model: LinearGaussianModel, num_steps: int
) -> tuple[Float[Array, "T d"], Float[Array, "T m"]]:
    """States and observations of a linear-Gaussian model.

    Args:
      key: typed.
      model: its covariances may be singular.
      num_steps: T >= 0 (static).

    Returns:
      states [T, d] and observations [T, m]; NaN where a covariance is not symmetric and positive semidefinite, or
      not finite.

    Raises:
      ValueError: shapes that do not fit, num_steps < 0. TypeError: a key that is not typed, integer arrays.

    Cost: O(T (d^2 + m d + m^2)).
    Differentiable in the model, with the noise held fixed; the derivative in the direction of a variance that is zero
    is taken as zero.

    Example:
      >>> level = LinearGaussianModel(jnp.zeros(1), jnp.eye(1), jnp.eye(1), 0.1 * jnp.eye(1), jnp.eye(1), jnp.eye(1))
      >>> states, observations = simulate_linear_gaussian(jax.random.key(0), level, 100)
      >>> states.shape, observations.shape
      ((100, 1), (100, 1))
    """
    function = "simulate_linear_gaussian"
    arguments.check_key(function, key)
    arguments.check_count(function, "num_steps", num_steps)
    return _simulate(key, check_model(function, model), int(num_steps))


def as_state_space_model(model: LinearGaussianModel) -> StateSpaceModel:
    """The same model for `particle_filter`.

    Particles are [N, d]. Components of an observation that are NaN are left out of the likelihood. Where the transition
    has less noise than states, its density is that on the subspace which the noise reaches, and zero off it.

    Args:
      model: any; the arrays derived from it are leaves of the result, so that other values compile nothing anew.

    Returns:
      `StateSpaceModel` with a transition density and without a proposal (see `optimal_proposal`). Densities and samples
      are NaN where a covariance is not symmetric and positive semidefinite, and the likelihood where
      `observation_covariance` is not positive definite. They refuse complex observations with TypeError.

    Raises:
      ValueError: shapes that do not fit. TypeError: integer arrays.

    Cost: a step costs O(d^2 + m d + m^2) a particle.
    Differentiable in the model if called inside the function that is differentiated: samples are transformed normal
    numbers, so that gradients flow through the particles.

    Example:
      >>> level = LinearGaussianModel(jnp.zeros(1), jnp.eye(1), jnp.eye(1), 0.1 * jnp.eye(1), jnp.eye(1), jnp.eye(1))
      >>> as_state_space_model(level).sample_initial(jax.random.key(0), 1000).shape
      (1000, 1)
    """
    model = check_model("as_state_space_model", model)
    initial_root, transition_root = _roots(model)
    moved = (model.transition, model.transition_offset, transition_root)
    return StateSpaceModel(
        sample_initial=Partial(_sample_initial, model.initial_mean, initial_root),
        sample_transition=Partial(_sample_transition, *moved),
        log_likelihood=Partial(_log_likelihood, model),
        transition_log_density=Partial(_transition_log_density, *moved),
    )


def optimal_proposal(model: LinearGaussianModel) -> Partial:
    """Where a guided filter should move its particles: p(x_t | x_t-1, y_t), which minimizes the variance of weights.

    Args:
      model: with a positive definite `observation_covariance`.

    Returns:
      `(key, particles, observation, time) -> (new, log_density)` for `particle_filter(..., proposal=...)`. Missing
      components guide nothing; with all of them missing it is the transition.

    Raises:
      ValueError: shapes that do not fit. TypeError: integer arrays.

    Cost: O(d^3 + m^3) a step, and O(d^2 + m d) a particle.
    Differentiable as `as_state_space_model`.
    Source: A. Doucet, S. Godsill, C. Andrieu, Stat. Comput. 10 (2000), 197-208, section II.D.

    Example:
      >>> level = LinearGaussianModel(jnp.zeros(1), jnp.eye(1), jnp.eye(1), 0.1 * jnp.eye(1), jnp.eye(1), jnp.eye(1))
      >>> new, log_density = optimal_proposal(level)(jax.random.key(0), jnp.zeros((5, 1)), jnp.ones(1), 1)
      >>> new.shape, log_density.shape
      ((5, 1), (5,))
    """
    model = check_model("optimal_proposal", model)
    return Partial(_propose, model, _roots(model)[1])


# ------------------------------------------------------------------------------------- shared with the Kalman filter


def check_model(function: str, model: LinearGaussianModel) -> LinearGaussianModel:
    """The model with all offsets, its arrays of one real dtype; refused where shapes do not fit."""
    (model,) = _checked(function, model)
    return model


def check_model_and_observations(
    function: str, model: LinearGaussianModel, observations: ArrayLike
) -> tuple[LinearGaussianModel, Array]:
    """The same, with observations [T, m] of the dtype that is common to all."""
    checked, array = _checked(function, model, observations)
    m = checked.observation.shape[0]
    arguments.check_shape(function, "observations", array, f"[T, {m}]", lambda shape: len(shape) == 2 and shape[1] == m)
    return checked, array


def _checked(function: str, model: Any, *observations: ArrayLike) -> tuple[Any, ...]:
    if not isinstance(model, LinearGaussianModel):
        arguments.refuse(
            function, "model", f"a {type(model).__name__}", "a LinearGaussianModel", "see its class", error=TypeError
        )
    given = {name: value for name, value in vars(model).items() if value is not None}
    for name in vars(model):
        if name not in given and not name.endswith("_offset"):
            arguments.refuse(function, name, "None", "an array", "see LinearGaussianModel", error=TypeError)
    # before all get one dtype, which would be complex
    for name, value in (*given.items(), *(("observations", rows) for rows in observations)):
        if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(value)):
            arguments.refuse(function, name, "complex", "a real dtype", "pass its real part", error=TypeError)
    *arrays, last = arguments.to_arrays(function, **given, observations=observations[0] if observations else 0.0)
    fields = dict(zip(given, arrays, strict=True))
    arguments.check_shape(
        function, "initial_mean", fields["initial_mean"], "[d], d >= 1", lambda shape: len(shape) == 1 and shape[0] >= 1
    )
    d = fields["initial_mean"].shape[0]
    arguments.check_shape(
        function,
        "observation",
        fields["observation"],
        f"[m, {d}], m >= 1",
        lambda shape: len(shape) == 2 and shape[0] >= 1 and shape[1] == d,
    )
    m = fields["observation"].shape[0]
    dtype = fields["observation"].dtype
    for name, size in (("transition_offset", d), ("observation_offset", m)):
        if name not in fields:
            fields[name] = arguments.constant(np.zeros(size), dtype)
    expected = {
        "initial_covariance": (d, d),
        "transition": (d, d),
        "transition_covariance": (d, d),
        "observation_covariance": (m, m),
        "transition_offset": (d,),
        "observation_offset": (m,),
    }
    for name, wanted in expected.items():
        arguments.check_shape(
            function, name, fields[name], str(list(wanted)), lambda shape, wanted=wanted: shape == wanted
        )
    model = _with_symmetric_covariances(LinearGaussianModel(**fields))
    return (model, last) if observations else (model,)


@jax.jit
def _with_symmetric_covariances(model: LinearGaussianModel) -> LinearGaussianModel:
    names = ("initial_covariance", "transition_covariance", "observation_covariance")
    return dataclasses.replace(model, **{name: _symmetric_or_none(getattr(model, name)) for name in names})


def _symmetric_or_none(covariance: Array) -> Array:
    """The symmetric part, or a negative identity, which every function answers as what is no covariance."""
    fixed = jax.lax.stop_gradient(covariance)
    deviation = jnp.sqrt(jnp.abs(jnp.diagonal(fixed)))
    allowed = float(jnp.finfo(fixed.dtype).eps) ** _SYMMETRY * deviation[:, None] * deviation[None, :]
    is_none = jnp.any(jnp.abs(fixed - fixed.mT) > allowed)
    return jnp.where(is_none, -jnp.eye(len(fixed), dtype=fixed.dtype), symmetric(covariance))


def symmetric(matrix: Array) -> Array:
    """The symmetric part."""
    return (matrix + matrix.mT) / 2


def is_semidefinite(covariance: Array, variances: Array | None = None) -> Bool[Array, ""]:
    """Whether the correlations have no eigenvalue that is negative beyond rounding; False where there is NaN.

    A negative variance is seen beside any other. Of a covariance that is given an observation, `variances` [d] are
    those before, beside which what is left of a difference may be rounding.
    """
    d = len(covariance)
    covariance = jax.lax.stop_gradient(covariance)
    variances = jnp.diagonal(covariance) if variances is None else jax.lax.stop_gradient(variances)
    positive = variances > 0
    scale = jnp.sqrt(jnp.where(positive, variances, 1))
    scaled = covariance / scale[:, None] / scale[None, :]
    loaded = scaled + 16 * d * float(jnp.finfo(covariance.dtype).eps) * jnp.eye(d, dtype=covariance.dtype)
    # what does not vary has no covariance
    possible = (positive[:, None] & positive[None, :]) | (covariance == 0)
    return jnp.all(jnp.isfinite(cholesky(loaded))) & jnp.all(possible)


def observed_part(model: LinearGaussianModel, observation: Array) -> tuple[Array, Array, Array]:
    """(which components are seen, H, R), missing components without a row in H and with unit variance in R.

    Their residual is zero (see `residual_of`), so that they change no mean, covariance, determinant or derivative.
    """
    seen = ~jnp.isnan(observation)
    observe = jnp.where(seen[:, None], model.observation, 0)
    both = seen[:, None] & seen[None, :]
    noise = jnp.where(both, model.observation_covariance, jnp.eye(len(seen), dtype=observe.dtype))
    return seen, observe, noise


def residual_of(model: LinearGaussianModel, observation: Array, means: Array) -> Array:
    """[..., m]: the observation less what is expected from states [..., d]; zero where it is missing."""
    expected = matmul(means, model.observation.T) + _row(model.observation_offset, means)
    seen = _row(~jnp.isnan(observation), means)
    # selected before and after, so that what is missing has no derivative
    known = jnp.where(seen, _row(observation, means), 0)
    return jnp.where(seen, known - expected, 0)


def _row(vector: Array, like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def gain_of(covariance: Array, observe: Array, noise: Array) -> Gain:
    """Gain and covariance in Joseph's form, a sum of two semidefinite products whatever the rounding of the gain."""
    cross = matmul(observe, covariance)
    innovation = symmetric(matmul(cross, observe.T) + noise)
    factor = cholesky(innovation)
    gain = cho_solve((factor, True), cross).T
    eye = jnp.eye(len(covariance), dtype=gain.dtype)
    kept = eye - matmul(gain, observe)
    # what rounding leaves of 1 - 1 is zero: a state that is seen without noise is known, and seen again is impossible
    rounding = 4 * float(jnp.finfo(gain.dtype).eps) * (eye + matmul(jnp.abs(gain), jnp.abs(observe)))
    kept = kept - jax.lax.stop_gradient(jnp.where(jnp.abs(kept) <= rounding, kept, 0))
    conditional = matmul(matmul(kept, covariance), kept.T) + matmul(matmul(gain, noise), gain.T)
    singular = jnp.all(jnp.isfinite(innovation)) & ~jnp.all(jnp.isfinite(factor))
    return Gain(gain, factor, symmetric(conditional), singular, kept)


def log_density_of_residual(residual: Array, factor: Array, seen: Array) -> Array:
    """Normal log-density of residuals [..., m] with covariance factor @ factor^T, of which `seen` count."""
    flat = residual.reshape(-1, residual.shape[-1])
    scaled = solve_triangular(factor, flat.T, lower=True).T.reshape(residual.shape)
    count = jnp.sum(seen, dtype=residual.dtype)
    return -0.5 * (jnp.sum(scaled**2, -1) + count * _LOG_TWO_PI) - jnp.sum(jnp.log(jnp.diagonal(factor)))


# ----------------------------------------------------------------------------------------------- singular covariances


def semidefinite_root(covariance: Array, support: Array | None = None, variances: Array | None = None) -> Array:
    """Lower triangular L with L L^T = covariance, its columns zero where a pivot is zero to rounding.

    Unlike a root by eigenvectors it has derivatives of every order where eigenvalues repeat. NaN where the covariance
    is not positive semidefinite; for `variances` see `is_semidefinite`. Components outside `support` (bool [d]) get no
    column.
    """
    d = len(covariance)
    index = jnp.arange(d)
    negligible = d * float(jnp.finfo(covariance.dtype).eps) * jnp.diagonal(covariance)
    allowed = jnp.ones(d, bool) if support is None else support

    def eliminate(rest: Array, j: Array) -> tuple[Array, Array]:
        pivot = rest[j, j]
        positive = (pivot > negligible[j]) & allowed[j]
        root = jnp.sqrt(jnp.where(positive, pivot, 1))
        column = jnp.where(positive & (index >= j), rest[:, j] / root, 0)
        return rest - column[:, None] * column[None, :], column

    _, columns = jax.lax.scan(eliminate, covariance, index)
    return arguments.nan_unless(columns.T, is_semidefinite(covariance, variances), 2)


def _log_density_on_support(new: Array, mean: Array, root: Array) -> Array:
    """[N]: of N(mean, root root^T) at new [N, d], with respect to the components that have a pivot; zero off it."""
    pivots = jnp.diagonal(root)
    positive = pivots > 0
    whole = root + jnp.diag(jnp.where(positive, 0, 1).astype(root.dtype))
    scaled = solve_triangular(whole, (new - mean).T, lower=True).T
    scale = jnp.abs(new) + jnp.abs(mean) + jnp.sqrt(jnp.sum(jax.lax.stop_gradient(root) ** 2, 1))[None, :]
    tolerance = _OFF_SUPPORT * float(jnp.finfo(root.dtype).eps)
    reached = jnp.all(positive[None, :] | ~(jnp.abs(scaled) > tolerance * scale), 1)
    squares = jnp.sum(jnp.where(positive[None, :], scaled, 0) ** 2, 1)
    rank = jnp.sum(positive, dtype=root.dtype)
    log_volume = jnp.sum(jnp.log(jnp.where(positive, pivots, 1))) + 0.5 * rank * _LOG_TWO_PI
    # NaN pivots are not positive, and must show
    return jnp.where(reached, -0.5 * squares - log_volume, -jnp.inf) + 0 * jnp.sum(pivots)


# ----------------------------------------------------------------------------------------------------------- functions


@jax.jit
def _roots(model: LinearGaussianModel) -> tuple[Array, Array]:
    return semidefinite_root(model.initial_covariance), semidefinite_root(model.transition_covariance)


@partial(jax.jit, static_argnums=2)
def _simulate(key: Array, model: LinearGaussianModel, num_steps: int) -> tuple[Array, Array]:
    initial_root, transition_root = _roots(model)
    d, m = model.initial_mean.shape[0], model.observation.shape[0]
    dtype = model.initial_mean.dtype
    state_key, noise_key = jax.random.split(key)

    def step(carry: tuple[Array, Array], normal: Array) -> tuple[tuple[Array, Array], Array]:
        mean, root = carry
        state = mean + matmul(root, normal)
        return (matmul(model.transition, state) + model.transition_offset, transition_root), state

    normals = jax.random.normal(state_key, (num_steps, d), dtype)
    _, states = jax.lax.scan(step, (model.initial_mean, initial_root), normals)
    noise = matmul(
        jax.random.normal(noise_key, (num_steps, m), dtype), semidefinite_root(model.observation_covariance).T
    )
    return states, matmul(states, model.observation.T) + model.observation_offset[None, :] + noise


def _sample_initial(mean: Array, root: Array, key: Array, num: int) -> Array:
    return mean[None, :] + matmul(jax.random.normal(key, (num, *mean.shape), mean.dtype), root.T)


def _move(transition: Array, offset: Array, particles: Array) -> Array:
    return matmul(particles, transition.T) + offset[None, :]


def _sample_transition(transition: Array, offset: Array, root: Array, key: Array, particles: Array, time: Any) -> Array:
    normal = jax.random.normal(key, particles.shape, particles.dtype)
    return _move(transition, offset, particles) + matmul(normal, root.T)


def _transition_log_density(transition: Array, offset: Array, root: Array, new: Array, old: Array, time: Any) -> Array:
    return _log_density_on_support(new, _move(transition, offset, old), root)


def _check_observation(function: str, model: LinearGaussianModel, observation: ArrayLike) -> Array:
    m = model.observation.shape[0]
    array = jnp.asarray(observation)
    arguments.check_real(function, "observation", array)
    array = array.astype(model.observation.dtype)
    arguments.check_shape(function, "observation", array, f"[{m}]", lambda shape: shape == (m,))
    return array


def _log_likelihood(model: LinearGaussianModel, particles: Array, observation: ArrayLike, time: Any) -> Array:
    observation = _check_observation("as_state_space_model", model, observation)
    seen, _, noise = observed_part(model, observation)
    return log_density_of_residual(residual_of(model, observation, particles), cholesky(noise), seen)


def _propose(
    model: LinearGaussianModel, transition_root: Array, key: Array, particles: Array, observation: ArrayLike, time: Any
) -> tuple[Array, Array]:
    observation = _check_observation("optimal_proposal", model, observation)
    _, observe, noise = observed_part(model, observation)
    update = gain_of(model.transition_covariance, observe, noise)
    prior = _move(model.transition, model.transition_offset, particles)
    mean = prior + matmul(residual_of(model, observation, prior), update.gain.T)
    # the same components as in the transition density, so that their ratio is one of densities on one subspace
    variances = jnp.diagonal(model.transition_covariance)
    root = semidefinite_root(update.covariance, jnp.diagonal(transition_root) > 0, variances)
    new = mean + matmul(jax.random.normal(key, mean.shape, mean.dtype), root.T)
    return new, _log_density_on_support(new, mean, root)
