"""A particle filter whose particles are spread over devices.

Every device runs the ordinary filter on its own group of particles, and knows the weight of every group: one number a
device, which an observation multiplies by the evidence of that group. So a step sends a few numbers only. Groups whose
weights have become uneven are of unequal use, and no resampling within a group repairs that: then particles travel.
They are dealt like cards, an equal part of every group to every device, weights and all, which changes no weighted sum
and leaves all groups alike but for the luck of the deal.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from jaxnm import arguments
from jaxnm.filtering.clouds import FilterResult, FilterState, FilterStep
from jaxnm.filtering.filter_steps import Advanced, Dials, Options, advance, begin
from jaxnm.filtering.models import StateSpaceModel
from jaxnm.filtering.particle_filter import check_observations, check_options
from jaxnm.filtering.resampling import Method
from jaxnm.filtering.weights import effective_sample_size, normalize
from jaxnm.status import Status, first_failing, merge


class _Devices(NamedTuple):
    """Along which axis of the mesh the groups lie, and how many there are."""

    axis: str
    size: int

    def own(self, key: Array) -> Array:
        """The key of this device."""
        return key if self.size == 1 else jax.random.fold_in(key, jax.lax.axis_index(self.axis))


class _Group(NamedTuple):
    """The particles of one device, and what all devices know alike."""

    state: FilterState
    """Log-weights normalized within the group."""
    shares: Array
    """[devices], log-weights of the groups, normalized."""
    log_evidence: Array
    """Of all devices."""


def sharded_particle_filter(
    key: Key[Array, ""],
    model: StateSpaceModel,
    observations: Any,
    *,
    num_particles: int,
    mesh: Mesh | AbstractMesh,
    axis: str | None = None,
    resampling: Method = "systematic",
    ess_threshold: Float[ArrayLike, ""] = 0.5,
    exchange_threshold: Float[ArrayLike, ""] = 0.9,
    mask: Bool[ArrayLike, "time"] | None = None,
) -> FilterResult:
    """`particle_filter` with its particles spread over devices.

    Args:
      key: of `jax.random.key`. Device d uses `fold_in(fold_in(key, t), d)` at time t, so that numbers depend on how
        many devices there are; a mesh of one device gives what `particle_filter` gives.
      model: see `StateSpaceModel`. Each device calls its functions with its own particles: `sample_initial(key, num)`
        with num = N / D. With a `proposal` the filter is guided.
      observations: as in `particle_filter`; they, and the parameters of the model, are on all devices.
      num_particles: N over all D devices (static); a multiple of D, and at least D^2.
      mesh: of `jax.make_mesh` (static).
      axis: name of the axis of the mesh over which the particles are spread; needed where the mesh has several.
      resampling: a method of `resample` (static).
      ess_threshold: a device resamples its group before it moves where the effective sample size of the group is below
        this share of its size. 1: at every step; 0: never. May be traced.
      exchange_threshold: particles travel before a step where the weights of the groups are worth less than this share
        of D even ones, that is 1 / sum W_d^2 < exchange_threshold D. 1: before every step; 0: never, which leaves D
        filters that are averaged by their evidence. May be traced.
      mask: [T], False where an observation is missing.

    Returns:
      `FilterResult` without covariance and history. The leaves of particles, and log_weights, are split along `axis`;
      all else is on all devices. Log-weights are normalized over all devices, `effective_sample_size` is that of all
      particles, `resampled` says whether any device resampled.

    Raises:
      ValueError: as `particle_filter`, and no such axis, an N that is no multiple of D or below D^2.
      TypeError: a key that is not typed, a model or a mesh that is none.

    Status:
      As `particle_filter`, the same on all devices. DEGENERATE only where no particle of any device could explain an
      observation. A group all of whose particles died has weight zero until the next exchange.

    A batch of symbolic size cannot be exported, as JAX does not lower the collectives.
    Cost: O(N / D) a step and device. A step without exchange sends one number a device; means and all else that it
    tells are added up once, after the last. An exchange sends (1 - 1 / D) of its particles and log-weights from every
    device: N / D times the bytes of both. It is the rarer the larger the groups are, whose weights drift apart with
    a variance of order D / N a step.
    Differentiable as `particle_filter` with `gradient="stop"`.
    Source: M. Bolic, P. M. Djuric, S. Hong, IEEE Trans. Signal Process. 53 (2005), 2442-2450 (resampling within groups,
    and exchange, there with neighbours); C. Verge, C. Dubarry, P. Del Moral, E. Moulines, arXiv:1306.3911 (weights of
    groups); N. Whiteley, A. Lee, K. Heine, Bernoulli 22 (2016), 494-529 (interaction adapted to effective numbers).

    Example:
      >>> walk = StateSpaceModel(
      ...     sample_initial=lambda key, num: jax.random.normal(key, (num,)),
      ...     sample_transition=lambda key, x, time: x + jax.random.normal(key, x.shape),
      ...     log_likelihood=lambda x, y, time: -0.5 * (y - x) ** 2,
      ... )
      >>> mesh = jax.make_mesh((1,), ("particles",))
      >>> y = jnp.array([0.0, 1.0, jnp.nan])
      >>> result = sharded_particle_filter(jax.random.key(0), walk, y, num_particles=100, mesh=mesh)
      >>> result.mean.shape, result.log_weights.sharding.spec == PartitionSpec("particles"), int(result.status)
      ((3,), True, 0)
    """
    name = "sharded_particle_filter"
    arguments.check_key(name, key)
    devices = _check_devices(name, mesh, axis, num_particles)
    model, dials = check_options(name, model, num_particles, resampling, ess_threshold, "stop", 1.0, None, None)
    in_range = lambda x: 0 <= x <= 1
    arguments.check_number(name, "exchange_threshold", exchange_threshold, "in [0, 1]", in_range, "try 0.9")
    observations, observed = check_observations(name, model, observations, mask)
    options = Options(resampling, "stop")
    (exchange,) = arguments.to_arrays(name, exchange_threshold=exchange_threshold)
    arguments.check_real(name, "exchange_threshold", exchange)
    scalar = lambda shape: shape == ()
    arguments.check_shape(name, "exchange_threshold", exchange, "a scalar", scalar, "use jax.vmap for several")
    return _filter(key, model, observations, observed, dials, exchange, int(num_particles), mesh, devices, options)


def _check_devices(name: str, mesh: Any, axis: Any, num_particles: Any) -> _Devices:
    if not isinstance(mesh, Mesh | AbstractMesh):
        got = f"of type {type(mesh).__name__}"
        arguments.refuse(name, "mesh", got, "a Mesh", "use jax.make_mesh((8,), ('particles',))", error=TypeError)
    names = mesh.axis_names
    if axis is None and len(names) != 1:
        arguments.refuse(name, "axis", "None", f"one of {names}", "the mesh has not exactly one axis")
    axis = names[0] if axis is None else axis
    if axis not in names:
        arguments.refuse(name, "axis", repr(axis), f"one of {names}", "give an axis of the mesh")
    size = mesh.shape[axis]
    arguments.check_count(name, "num_particles", num_particles, minimum=1)
    if num_particles % size or num_particles < size**2:
        expected = f"a multiple of the {size} devices, and at least {size**2}"
        remedy = "every device has the same number, of which it can send some to each"
        arguments.refuse(name, "num_particles", repr(num_particles), expected, remedy)
    return _Devices(axis, size)


@partial(jax.jit, static_argnums=(6, 7, 8, 9))
def _filter(
    key: Array,
    model: StateSpaceModel,
    observations: Any,
    observed: Array,
    dials: Dials,
    exchange_threshold: Array,
    num: int,
    mesh: Mesh | AbstractMesh,
    devices: _Devices,
    options: Options,
) -> FilterResult:
    everywhere, split = PartitionSpec(), PartitionSpec(devices.axis)
    layout: dict[str, Any] = {field.name: everywhere for field in dataclasses.fields(FilterResult)}
    layout |= {"particles": split, "log_weights": split, "covariance": None, "history": None}
    each = jax.shard_map(
        partial(_filter_group, num=num // devices.size, devices=devices, options=options),
        mesh=mesh,
        in_specs=everywhere,
        out_specs=FilterResult(**layout),
        # functions of users need not say on which devices the constants in their loops differ
        check_vma=False,
    )
    return each(key, model, observations, observed, dials, exchange_threshold)


def _weighed(devices: _Devices, before: _Group, advanced: Advanced) -> tuple[_Group, Any]:
    """The groups after an observation, and what this one adds to the step of all: `_together` adds it up."""
    state, step = advanced.state, advanced.step
    evidences, alive = jax.lax.all_gather((advanced.log_total, advanced.possible), devices.axis)
    # a group that cannot explain the observation has weight zero; if none can, all are as if it were missing
    explained = before.shares + jnp.where(alive, evidences, jnp.full_like(evidences, -jnp.inf))
    possible = jnp.any(explained > -jnp.inf)
    shares, log_total = normalize(jnp.where(possible, explained, before.shares + evidences))
    zero = jnp.zeros_like(log_total)
    log_total = log_total + jnp.where(possible, zero, jnp.full_like(zero, -jnp.inf))
    weight = jnp.exp(shares[jax.lax.axis_index(devices.axis)])
    died = state.status == jnp.int32(Status.DEGENERATE)  # which is no failure while another group lives
    status = jnp.where(died, jnp.int32(Status.OK), state.status)
    status = merge(status, first_failing((~possible, Status.DEGENERATE)))
    part = FilterStep(
        mean=jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, step.mean),
        effective_sample_size=weight**2 / step.effective_sample_size,
        resampled=step.resampled,
        log_evidence_increment=log_total,
        ancestors=None,
    )
    fresh = dataclasses.replace(state, status=jnp.int32(Status.OK), log_evidence=jnp.zeros_like(state.log_evidence))
    return _Group(fresh, shares, before.log_evidence + log_total), (part, status)


def _together(devices: _Devices, parts: FilterStep, statuses: Array) -> tuple[FilterStep, Array]:
    """The steps of all devices, and the status; leaves [T, ...]."""
    means, sizes = jax.lax.psum((parts.mean, parts.effective_sample_size), devices.axis)
    resampled, codes = jax.lax.all_gather((parts.resampled, statuses), devices.axis)
    # of the failures of one time the first in the order of `particle_filter`, which is that of the codes
    none = jnp.int32(max(Status) + 1)
    codes = jnp.min(jnp.where(codes == jnp.int32(Status.OK), none, codes), 0)
    first = codes[jnp.argmax(codes < none)] if codes.shape[0] else none
    steps = dataclasses.replace(parts, mean=means, effective_sample_size=1 / sizes, resampled=jnp.any(resampled, 0))
    return steps, jnp.where(first == none, jnp.int32(Status.OK), first)


def _dealt(devices: _Devices, group: _Group) -> _Group:
    """Every device has an equal part of every group, neighbours in a group on different devices."""
    size = devices.size
    # what the number of devices does not divide stays
    dealt = group.state.log_weights.shape[0] // size * size

    def deal(leaf: Array) -> Array:
        hands = leaf[:dealt].reshape(dealt // size, size, *leaf.shape[1:])
        hands = jax.lax.all_to_all(hands, devices.axis, split_axis=1, concat_axis=1)
        return jnp.concatenate([hands.reshape(dealt, *leaf.shape[1:]), leaf[dealt:]])

    joint = group.state.log_weights + group.shares[jax.lax.axis_index(devices.axis)]
    log_weights, share = normalize(deal(joint))
    state = dataclasses.replace(
        group.state, particles=jax.tree.map(deal, group.state.particles), log_weights=log_weights
    )
    shares, _ = normalize(jax.lax.all_gather(share, devices.axis))
    return group._replace(state=state, shares=shares)


def _filter_group(
    key: Array,
    model: StateSpaceModel,
    observations: Any,
    observed: Array,
    dials: Dials,
    exchange_threshold: Array,
    num: int,
    devices: _Devices,
    options: Options,
) -> FilterResult:
    """The filter of one device, with `num` particles."""
    length = observed.shape[0]
    if length == 0:  # the initial cloud, and a step that is cut off
        observations = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), observations)
        observed = jnp.zeros(1, bool)
    row = lambda t: jax.tree.map(lambda leaf: leaf[t], observations)
    begun = begin(devices.own(jax.random.fold_in(key, 0)), model, row(0), observed[0], num)
    zero = jnp.zeros((), begun.state.log_weights.dtype)
    even = jnp.full(devices.size, -jnp.log(jnp.asarray(devices.size, zero.dtype)))
    group, first = _weighed(devices, _Group(begun.state, even, zero), begun)

    def body(group: _Group, inputs: Any) -> tuple[_Group, Any]:
        time, present = inputs
        if devices.size > 1:
            worth = effective_sample_size(jax.lax.stop_gradient(group.shares))
            uneven = worth < exchange_threshold.astype(worth.dtype) * devices.size
            uneven = uneven | (exchange_threshold >= 1)
            group = jax.lax.cond(uneven, partial(_dealt, devices), lambda group: group, group)
        own = devices.own(jax.random.fold_in(key, time))
        return _weighed(devices, group, advance(own, model, group.state, row(time), present, dials, options))

    times = jnp.arange(1, length, dtype=jnp.int32)
    group, rest = jax.lax.scan(body, group, (times, observed[1:]))
    parts = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b])[:length], first, rest)
    steps, status = _together(devices, *parts)
    return FilterResult(
        particles=group.state.particles,
        log_weights=group.state.log_weights + group.shares[jax.lax.axis_index(devices.axis)],
        log_evidence=group.log_evidence,
        log_evidence_increments=steps.log_evidence_increment,
        effective_sample_size=steps.effective_sample_size,
        resampled=steps.resampled,
        mean=steps.mean,
        covariance=None,
        history=None,
        status=status,
    )
