"""A particle filter over eight devices: evidence, means and score against Kalman, and what stays and travels where."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxnm import Status
from jaxnm.filtering import StateSpaceModel, particle_filter, sharded_particle_filter
from tests.compilation import QUICK
from tests.filtering.test_particle_filter import _THETA, _kalman, _model, _record, _score

_MESH = jax.make_mesh((8,), ("particles",))


def _filtered(theta, observations, key, num, **options):
    return sharded_particle_filter(key, _model(theta), observations, num_particles=num, mesh=_MESH, **options)


def test_the_evidence_is_unbiased_whether_particles_travel_or_not():
    observations = _record(25)
    exact = _kalman(_THETA, observations)[0]
    keys = jax.random.split(jax.random.key(0), 400)

    def evidences(keys, exchange_threshold):
        run = lambda key: _filtered(
            jnp.asarray(_THETA), jnp.asarray(observations), key, 256, exchange_threshold=exchange_threshold
        )
        return jax.vmap(run)(keys).log_evidence

    compiled = jax.jit(evidences, compiler_options=QUICK)
    spreads = []
    for exchange_threshold in (0.0, 0.9, 1.0):
        error = np.asarray(compiled(keys, jnp.asarray(exchange_threshold))) - exact
        ratio = np.exp(error)
        assert abs(ratio.mean() - 1) <= 4 * ratio.std() / 20
        spreads.append(error.std())
    # known to a few hundredths each; groups that drift apart are worth less
    print("SPREADS", spreads)
    assert max(spreads[1:]) < spreads[0]


def test_means_and_what_travels():
    observations, num = _record(30), 8 * 4096
    observations[[5, 17]] = np.nan
    _, means, variances, _ = _kalman(_THETA, observations)
    arguments = jnp.asarray(_THETA), jnp.asarray(observations), jax.random.key(0)
    compiled = jax.jit(partial(_filtered, num=num)).lower(*arguments).compile()
    result = compiled(*arguments)
    standard_error = np.sqrt(variances / np.asarray(result.effective_sample_size))
    assert np.all(np.abs(result.mean - means) <= 6 * standard_error)
    assert np.array_equal(result.log_evidence_increments[np.array([5, 17])], [0.0, 0.0])
    assert np.allclose(np.exp(result.log_weights).sum(), 1, rtol=1e-12)
    assert int(result.status) == Status.OK

    for leaf in (result.particles, result.log_weights):
        assert leaf.sharding.spec == PartitionSpec("particles")
        assert all(shard.data.shape == (4096,) for shard in leaf.addressable_shards)
    # all that is sent but for the exchange itself is as small as the number of devices times that of observations
    program = compiled.as_text()
    sent = re.findall(r"= (.*?) (all-gather|all-reduce|collective-permute|all-to-all)(?:-start)?\(", program)
    assert {kind for _, kind in sent} >= {"all-gather", "all-to-all"}
    for shapes, kind in sent:
        sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in re.findall(r"\[([\d,]*)\]", shapes)]
        assert max(sizes) <= (4096 if kind == "all-to-all" else 8 * 30)
    plain = jax.jit(lambda theta, y, key: particle_filter(key, _model(theta), y, num_particles=num))
    whole = plain.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    # an eighth each, and as much again for hands dealt and received
    assert compiled.memory_analysis().temp_size_in_bytes <= whole / 4


def test_the_score_is_right():
    observations, theta = _record(30), np.array([0.5, 1.2, 0.6])

    def scores(theta, keys):
        one = lambda theta, key: _filtered(theta, jnp.asarray(observations), key, 1024).log_evidence
        return jax.vmap(jax.grad(one), (None, 0))(theta, keys)

    keys = jax.random.split(jax.random.key(1), 100)
    found = np.asarray(jax.jit(scores, compiler_options=QUICK)(jnp.asarray(theta), keys))
    # the bias, of order 1 / N, is below the standard error of 100 seeds here
    assert np.all(np.abs(found.mean(0) - _score(theta, observations)) <= 4 * found.std(0) / 10)


def _numbered(key, num):
    """Particles that know on which device they began."""
    home = jnp.full(num, jax.lax.axis_index("particles"))
    return {"home": home, "first": home == 0, "pair": jnp.zeros((num, 2))}


def _impossible(particles, y, time):
    """At first all but those of device y die; later all where y is negative."""
    dead = jnp.where(time == 0, particles["home"] != y.astype(jnp.int32), y < 0)
    return jnp.where(dead, -jnp.inf, jnp.zeros(()))


def test_dead_groups_are_revived_and_a_dead_cloud_is_kept():
    model = StateSpaceModel(_numbered, lambda key, particles, time: particles, _impossible)

    @partial(jax.jit, compiler_options=QUICK)
    def run(observations, exchange_threshold):
        # 12 on each device: one of them to every device, and four that stay
        return sharded_particle_filter(
            jax.random.key(0), model, observations, num_particles=96, mesh=_MESH, exchange_threshold=exchange_threshold
        )

    def shares(result):
        return np.exp(np.asarray(result.log_weights)).reshape(8, 12).sum(1)

    alive = jnp.array([3.0, 0.0, 0.0])
    revived = run(alive, 0.9)
    assert np.all(np.asarray(revived.particles["home"]) == 3)
    assert not np.any(np.asarray(revived.particles["first"]))
    assert np.all(shares(revived) > 0)
    assert np.allclose(shares(revived).sum(), 1, rtol=1e-14)
    alone = run(alive, 0.0)
    assert np.allclose(shares(alone), np.arange(8) == 3, rtol=1e-14)
    for result in (revived, alone):
        assert int(result.status) == Status.OK
        assert np.allclose(result.log_evidence_increments, [-np.log(8), 0, 0], atol=1e-14)
        assert np.allclose(result.mean["home"], 3, rtol=1e-14)

    dead = run(alive.at[2].set(-1.0), 0.9)
    assert int(dead.status) == Status.DEGENERATE
    assert dead.log_evidence == -np.inf
    assert np.all(np.asarray(dead.particles["home"]) == 3)
    # all devices go on as if the observation were missing
    missing = run(alive.at[2].set(jnp.nan), 0.9)
    assert np.allclose(dead.log_weights, missing.log_weights, rtol=1e-14)
    assert np.allclose(np.exp(dead.log_weights).sum(), 1, rtol=1e-14)
    assert np.allclose(dead.mean["home"], 3, rtol=1e-14)


@pytest.mark.parametrize("num", [1025, 56])
def test_groups_are_equal_and_large_enough_to_be_dealt(num):
    with pytest.raises(ValueError, match="sharded_particle_filter: num_particles is"):
        _filtered(jnp.asarray(_THETA), jnp.zeros(2), jax.random.key(0), num)
