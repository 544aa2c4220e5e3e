"""The particle filter over devices, on one; tests/devices has it on eight. And many filters within little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxnm.filtering import StateSpaceModel, particle_filter, sharded_particle_filter
from tests.compilation import QUICK
from tests.filtering.test_particle_filter import _THETA, _model, _optimal, _record

_MESH = jax.make_mesh((1,), ("particles",))


def test_on_one_device_it_is_the_plain_filter():
    observations, mask = jnp.asarray(_record(12)).at[3].set(jnp.nan), jnp.arange(12) != 7
    model = _model(jnp.asarray(_THETA)).replace(proposal=Partial(_optimal, jnp.asarray(_THETA)))

    def both(key):
        options = {"num_particles": 60, "mask": mask, "ess_threshold": 0.8, "resampling": "multinomial"}
        return (
            particle_filter(key, model, observations, **options),
            sharded_particle_filter(key, model, observations, mesh=_MESH, **options),
        )

    plain, sharded = jax.jit(both, compiler_options=QUICK)(jax.random.key(0))
    assert np.any(plain.resampled)
    assert jax.tree.structure(plain) == jax.tree.structure(sharded)
    for ours, theirs in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_no_observations():
    result = sharded_particle_filter(
        jax.random.key(0), _model(jnp.asarray(_THETA)), jnp.zeros(0), num_particles=5, mesh=_MESH
    )
    assert result.log_evidence == 0
    assert result.mean.shape == result.effective_sample_size.shape == result.resampled.shape == (0,)
    assert result.particles.shape == (5,)
    np.testing.assert_allclose(np.exp(result.log_weights), 0.2, rtol=1e-14)


def test_bad_arguments():
    model, key, y = _model(jnp.asarray(_THETA)), jax.random.key(0), jnp.zeros(3)
    grid = jax.make_mesh((1, 1), ("particles", "seeds"))

    def run(model=model, y=y, key=key, **options):
        return sharded_particle_filter(key, model, y, **({"num_particles": 2, "mesh": _MESH} | options))

    for options in (
        {"num_particles": 0}, {"axis": "seeds"}, {"mesh": grid}, {"resampling": "fair"}, {"ess_threshold": 1.5},
        {"exchange_threshold": -0.1}, {"mask": jnp.ones(2, bool)}, {"mask": jnp.ones(3)}, {"y": 1.0}, {"y": ()},
        {"y": {"a": y, "b": jnp.zeros(2)}}, {"model": model.replace(controlled=True)},
        {"model": model.replace(proposal=Partial(_optimal), transition_log_density=None)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="sharded_particle_filter: "):
            run(**options)
    for options in ({"key": 0}, {"model": None}, {"mesh": 8}, {"num_particles": 2.0}):
        with pytest.raises(TypeError, match="sharded_particle_filter: "):
            run(**options)
    walk = StateSpaceModel(model.sample_initial, model.sample_transition, lambda x, y, time: jnp.sum(x))
    with pytest.raises(ValueError, match="one number a particle"):
        run(walk)


def test_many_filters_a_few_at_a_time_need_little_memory():
    """`jax.lax.map` with a batch size instead of `jax.vmap` over seeds."""
    observations, keys = jnp.asarray(_record(10)), jax.random.split(jax.random.key(0), 64)

    def evidence(key):
        return particle_filter(key, _model(jnp.asarray(_THETA)), observations, num_particles=500).log_evidence

    ways = (jax.vmap(evidence), lambda keys: jax.lax.map(evidence, keys, batch_size=8))
    at_once, by_eight = (jax.jit(way, compiler_options=QUICK).lower(keys).compile() for way in ways)
    np.testing.assert_allclose(by_eight(keys), at_once(keys), rtol=1e-12)
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (at_once, by_eight)]
    assert sizes[1] <= sizes[0] / 4
