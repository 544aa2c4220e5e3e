"""Particle cells against an independent transcription of their equations; losses against loops over particles."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jaxnm.filtering.cells import MePFRNN, PFGRUCell, PFLSTMCell
from jaxnm.filtering.losses import elbo_loss, localization_loss
from jaxnm.filtering.particle_steps import ParticleCarry, layer_norm, nearest_distances, select, spread_noise
from jaxnm.filtering.unrolling import RecurrentBaseline, initial_particles, unroll

BATCH, PARTICLES, FEATURES = 2, 6, 9
SIZE = np.array([10.0, 8.0])
BEACONS = np.random.default_rng(5).uniform(0, 8, (12, 2))
WORLD = {"beacons": jnp.asarray(BEACONS), "size": jnp.asarray(SIZE)}
SINGLE = np.finfo(np.float32).eps


def count(cell: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(cell, nnx.Param)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.01 * x)


def weights_of(layer: nnx.Linear) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)


def affine(layer: nnx.Linear, *parts: np.ndarray) -> np.ndarray:
    kernel, bias = weights_of(layer)
    return np.concatenate(parts) @ kernel + bias


def normed(cell: nnx.Module, x: np.ndarray) -> np.ndarray:
    scale, bias = np.asarray(cell.norm.scale[...], np.float64), np.asarray(cell.norm.bias[...], np.float64)
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale + bias


def published_weights(log_weights: np.ndarray, ancestors: np.ndarray, alpha: float) -> np.ndarray:
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    mixture = alpha * weights + (1 - alpha) / len(weights)
    chosen = weights[ancestors] / mixture[ancestors]
    return np.log(chosen / chosen.sum())


def gru_reference(cell, hidden, log_weights, x, noise):
    new, increments = np.empty_like(hidden), np.empty(len(hidden))
    observed, drive = leaky_relu(affine(cell.observation, x)), leaky_relu(affine(cell.input, x))
    for i, h in enumerate(hidden):
        gates = sigmoid(affine(cell.gates, h, drive))
        update, reset = gates[: len(h)], gates[len(h) :]
        candidate = affine(cell.candidate, reset * h, drive)
        mean, spread = candidate[: len(h)], candidate[len(h) :]
        proposal = leaky_relu(normed(cell, mean + np.log1p(np.exp(spread)) * noise[i]))
        new[i] = (1 - update) * proposal + update * h
        increments[i] = affine(cell.weight, new[i], observed)[0]
    return new, log_weights + increments


def lstm_reference(cell, hidden, memory, log_weights, x, noise):
    new, kept, increments = np.empty_like(hidden), np.empty_like(hidden), np.empty(len(hidden))
    observed, drive = leaky_relu(affine(cell.observation, x)), leaky_relu(affine(cell.input, x))
    for i, h in enumerate(hidden):
        total = affine(cell.from_hidden, h) + affine(cell.from_input, drive)
        forget, take, give, mean, spread = np.split(total, 5)
        proposal = normed(cell, mean + np.log1p(np.exp(spread)) * noise[i])
        kept[i] = sigmoid(forget) * memory[i] + sigmoid(take) * leaky_relu(proposal)
        new[i] = sigmoid(give) * np.tanh(kept[i])
        increments[i] = affine(cell.weight, new[i], observed)[0]
    return new, kept, log_weights + increments


@pytest.mark.parametrize("make", [PFGRUCell, PFLSTMCell])
def test_one_step_is_the_published_one(make):
    rng = np.random.default_rng(0)
    cell = make(FEATURES, rngs=nnx.Rngs(1))
    # zero biases and a norm that does nothing would hide mistakes
    graphdef, params = nnx.split(cell)
    params = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(0, 0.1, p.shape), p.dtype), params)
    cell = nnx.merge(graphdef, params)
    hidden, memory, noise = rng.standard_normal((3, BATCH, PARTICLES, 64))
    log_weights = np.log(rng.dirichlet(np.ones(PARTICLES), BATCH))
    x = rng.standard_normal((BATCH, FEATURES))
    ancestors = np.sort(rng.integers(0, PARTICLES, (BATCH, PARTICLES)))
    single = partial(jnp.asarray, dtype=jnp.float32)
    carry = ParticleCarry(single(hidden), single(log_weights), single(memory) if make is PFLSTMCell else None)

    @jax.jit
    def step(carry, x, noise, ancestors):
        return select(cell.propagate(carry, x, noise), ancestors, 0.5)

    found = step(carry, single(x), single(noise), jnp.asarray(ancestors, jnp.int32))
    output = jax.jit(cell.read)(found)
    kernel, bias = weights_of(cell.head)
    for b in range(BATCH):
        if make is PFGRUCell:
            new, increased = gru_reference(cell, hidden[b], log_weights[b], x[b], noise[b])
        else:
            new, kept, increased = lstm_reference(cell, hidden[b], memory[b], log_weights[b], x[b], noise[b])
            np.testing.assert_allclose(found.memory[b], kept[ancestors[b]], atol=1e-5)
        new, expected = new[ancestors[b]], published_weights(increased, ancestors[b], 0.5)
        np.testing.assert_allclose(found.hidden[b], new, atol=1e-5)
        np.testing.assert_allclose(found.log_weights[b], expected, atol=1e-5)
        np.testing.assert_allclose(output.predictions[b], sigmoid(new @ kernel + bias), atol=1e-5)
        np.testing.assert_allclose(output.mean[b], sigmoid(np.exp(expected) @ new @ kernel + bias), atol=1e-5)


def test_parameter_counts_are_the_published_ones():
    head, norm = 64 * 3 + 3, 2 * 64
    # the published cells have 60 numbers of a batch norm over 30 particles
    assert count(PFGRUCell(64, rngs=nnx.Rngs(0))) == 29_149 - 60 + head + norm
    assert count(PFLSTMCell(64, rngs=nnx.Rngs(0))) == 35_677 - 60 + head + norm
    # no argument of the cell knows the world: 10 x 10, 18 x 18, 27 x 27, 14 x 34
    cell = MePFRNN(rngs=nnx.Rngs(0))
    assert count(cell) == 28_742 + norm
    graphdef, params = nnx.split(cell)
    for side, beacons in (((10, 10), 48), ((18, 18), 90), ((27, 27), 200), ((14, 34), 14)):
        output = jax.eval_shape(
            lambda b, s: unroll(graphdef, params, jnp.ones((2, 3, 9)), jax.random.key(0), beacons=b, size=s),
            jnp.ones((beacons, 2)),
            jnp.asarray(side, float),
        )
        assert output.mean.shape == (2, 3, 3)


def observed_once(likelihood, beacons=WORLD["beacons"]):
    cell = MePFRNN(likelihood=likelihood, rngs=nnx.Rngs(2))
    inputs = jnp.concatenate([jnp.full((BATCH, 4), 0.3), jnp.ones((BATCH, 5))], -1)
    return unroll_once(*nnx.split(cell), inputs[None], jax.random.key(3), beacons, WORLD["size"])


@partial(jax.jit, static_argnums=0)
def unroll_once(graphdef, params, inputs, key, beacons, size):
    return unroll(graphdef, params, inputs, key, num_particles=30, beacons=beacons, size=size)


def test_intended_likelihood_spreads_the_weights_and_the_released_one_does_not():
    intended, released = observed_once("predicted_distances"), observed_once("observation_only")
    assert float(jnp.min(jnp.ptp(intended.log_weights, axis=-1))) > 0.1
    assert float(jnp.max(jnp.ptp(released.log_weights, axis=-1))) == 0.0
    np.testing.assert_allclose(released.log_weights, -np.log(30), rtol=4 * SINGLE)


def test_intended_likelihood_starts_decreasing_in_every_squared_difference():
    cell = MePFRNN(rngs=nnx.Rngs(0))
    gradient = jax.vmap(jax.grad(lambda squares: cell._misfit(squares)[0]))
    squares = jnp.asarray(np.random.default_rng(0).exponential(5, (20, 5)), jnp.float32)
    assert float(jnp.max(gradient(squares))) < 0


def test_order_of_the_beacons_does_not_matter():
    order = np.random.default_rng(1).permutation(len(BEACONS))
    plain, permuted = (
        observed_once("predicted_distances"),
        observed_once("predicted_distances", WORLD["beacons"][order]),
    )
    np.testing.assert_allclose(permuted.log_weights, plain.log_weights, rtol=16 * SINGLE)


def test_nearest_distances_are_sorted_distances_with_finite_derivatives():
    positions = np.random.default_rng(2).uniform(0, 8, (7, 2))
    positions[0] = BEACONS[4]
    found = nearest_distances(jnp.asarray(positions), WORLD["beacons"], 5)
    distances = np.linalg.norm(positions[:, None] - BEACONS, axis=-1)
    np.testing.assert_allclose(found, np.sort(distances, -1)[:, :5], rtol=8 * np.finfo(float).eps)
    slope = jax.grad(lambda p: jnp.sum(nearest_distances(p, WORLD["beacons"], 5)))(jnp.asarray(positions))
    assert bool(jnp.all(jnp.isfinite(slope)))


@cache
def small_problem(checkpoint):
    cell = MePFRNN(hidden=8, resampling="systematic", rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell)
    inputs = np.random.default_rng(0).uniform(0, 2, (5, BATCH, 9))
    poses = jnp.full((5, BATCH, 3), 3.0)

    def loss(params, inputs, key):
        output = unroll(graphdef, params, inputs, key, num_particles=PARTICLES, checkpoint=checkpoint, **WORLD)
        weighted = elbo_loss(output.predictions, poses, WORLD["size"], output.log_weights, weighted=True)
        return localization_loss(output.mean, poses, WORLD["size"]) + weighted, output

    options = {"xla_backend_optimization_level": 0}
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options), params, inputs


def test_a_missing_range_is_left_out_and_every_gradient_finite():
    compute, params, inputs = small_problem(True)
    inputs = inputs.copy()
    inputs[2:, 0, 6] = np.nan
    key = jax.random.key(1)
    (value, output), gradient = compute(params, jnp.asarray(inputs), key)
    assert np.isfinite(value)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    # the neighbour sees nothing of it
    (_, whole), _ = compute(params, jnp.asarray(np.nan_to_num(inputs, nan=1.0)), key)
    np.testing.assert_array_equal(whole.predictions[:, 1], output.predictions[:, 1])
    cell = MePFRNN(hidden=8, resampling="systematic", rngs=nnx.Rngs(0))
    log_weights = jax.nn.log_softmax(jnp.arange(6, dtype=jnp.float32))[None].repeat(2, 0)
    carry = ParticleCarry(jnp.ones((2, 6, 8), jnp.float32), log_weights)
    world = [array.astype(jnp.float32) for array in WORLD.values()]
    moved = cell.propagate(carry, jnp.asarray(inputs[3], jnp.float32), jnp.ones((2, 6, 8), jnp.float32), *world)
    # by the other ranges alone, as in `localization_model`
    positions = jax.nn.sigmoid(moved.hidden[0] @ cell.head.kernel[...] + cell.head.bias[...][None])[:, :2]
    exact = jnp.linalg.norm(positions[:, None] * world[1][None, None] - world[0][None], axis=-1)
    nearest = jnp.sort(exact, 1)[:, :5] - jnp.asarray(inputs[3, 0, 4:], jnp.float32)[None]
    squares = jnp.where(jnp.arange(5)[None] == 2, 0, nearest**2)
    raw = squares @ cell.misfit_first.kernel[...] + cell.misfit_first.bias[...][None]
    increment = (jnp.where(raw > 0, raw, 0.1 * raw) @ cell.misfit_second.kernel[...])[:, 0]
    expected = jax.nn.log_softmax(log_weights[0] + increment)
    np.testing.assert_allclose(moved.log_weights[0], expected, rtol=1e3 * SINGLE, atol=1e3 * SINGLE)
    # and not at all where none is heard
    unheard = jnp.asarray(inputs[3], jnp.float32).at[0, 4:].set(jnp.nan)
    moved = cell.propagate(carry, unheard, jnp.ones((2, 6, 8), jnp.float32), *world)
    np.testing.assert_allclose(moved.log_weights[0], log_weights[0], rtol=8 * SINGLE)


def test_seeds_and_ensembles_under_vmap_are_the_single_runs():
    graphdef, _ = nnx.split(MePFRNN(hidden=8, resampling="systematic", rngs=nnx.Rngs(0)))
    members = [nnx.split(MePFRNN(hidden=8, resampling="systematic", rngs=nnx.Rngs(seed)))[1] for seed in range(3)]
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    inputs = jnp.asarray(np.random.default_rng(0).uniform(0, 2, (3, BATCH, 9)))
    run = jax.jit(lambda params, key: unroll(graphdef, params, inputs, key, num_particles=PARTICLES, **WORLD).mean)
    keys = jax.random.split(jax.random.key(0), 4)
    options = {"xla_backend_optimization_level": 0}
    found = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)), compiler_options=options)(ensemble, keys)
    assert found.shape == (3, 4, 3, BATCH, 3)
    np.testing.assert_allclose(found[2, 3], run(members[2], keys[3]), atol=64 * SINGLE)


def test_trained_with_some_particles_runs_with_ten_times_as_many():
    graphdef, params = nnx.split(PFGRUCell(FEATURES, 8, resampling="systematic", rngs=nnx.Rngs(0)))
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, FEATURES)))
    few = unroll(graphdef, params, inputs, jax.random.key(0), num_particles=30)
    many = unroll(graphdef, params, inputs, jax.random.key(0), num_particles=300)
    assert many.predictions.shape == (3, 1, 300, 3)
    # both are averages over one law: they agree within the errors of their means
    spread = float(jnp.std(few.predictions[-1], axis=1).max())
    assert float(jnp.max(jnp.abs(few.mean[-1] - many.mean[-1]))) < 5 * spread / np.sqrt(30)


def test_rematerialized_steps_use_a_quarter_of_the_memory_and_have_the_same_gradient():
    graphdef, params = nnx.split(PFGRUCell(FEATURES, rngs=nnx.Rngs(0)))
    inputs = jnp.zeros((50, 100, FEATURES), jnp.float32)

    def temporary_bytes(checkpoint):
        def loss(params, key):
            output = unroll(graphdef, params, inputs, key, num_particles=30, checkpoint=checkpoint)
            return jnp.mean(output.mean**2) + jnp.mean(output.predictions**2)

        # only the plan of the memory is wanted, not fast code
        program = jax.jit(jax.grad(loss)).lower(params, jax.random.key(0))
        compiled = program.compile({"xla_backend_optimization_level": 0})
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(True) <= temporary_bytes(False) / 4

    key = jax.random.key(4)
    plain, params, inputs = small_problem(False)
    again, _, _ = small_problem(True)
    for a, b in zip(*(jax.tree.leaves(f(params, jnp.asarray(inputs), key)[1]) for f in (plain, again)), strict=True):
        np.testing.assert_allclose(a, b, atol=256 * SINGLE * (1 + float(jnp.max(jnp.abs(b)))))


def test_gradient_of_a_step_is_that_of_finite_differences():
    cell = PFGRUCell(3, 4, dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell)
    rng = np.random.default_rng(0)
    carry = ParticleCarry(jnp.asarray(rng.standard_normal((1, 5, 4))), jnp.full((1, 5), -np.log(5)))
    x, noise = jnp.asarray(rng.standard_normal((1, 3))), jnp.asarray(rng.standard_normal((1, 5, 4)))
    ancestors = jnp.array([[0, 1, 1, 3, 4]], jnp.int32)

    @jax.jit
    def loss(params):
        cell = nnx.merge(graphdef, params)
        return jnp.sum(cell.read(select(cell.propagate(carry, x, noise), ancestors, 0.5)).mean ** 2)

    check_grads(loss, (params,), 1, ["rev"], rtol=1e-6)
    noisy = jax.jit(lambda x: layer_norm(cell.norm, spread_noise(x, noise[0])))
    check_grads(noisy, (carry.hidden[0],), 2, rtol=1e-4)


def test_ordinary_resampling_leaves_even_weights():
    cell = PFGRUCell(FEATURES, 8, alpha=1.0, resampling="systematic", rngs=nnx.Rngs(0))
    output = unroll(*nnx.split(cell), jnp.ones((2, 1, FEATURES)), jax.random.key(0), num_particles=PARTICLES)
    np.testing.assert_allclose(output.log_weights, -np.log(PARTICLES), rtol=4 * SINGLE)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_baseline_is_the_flax_cell_in_a_loop(kind):
    baseline = RecurrentBaseline(FEATURES, 8, kind=kind, rngs=nnx.Rngs(0))
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((3, BATCH, FEATURES)), jnp.float32)
    output = unroll(*nnx.split(baseline), inputs, jax.random.key(0), num_particles=1, **WORLD)
    assert output.predictions.shape == (3, BATCH, 1, 3)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        carry = baseline.initial_carry(KEY, BATCH, 1)
        for x in inputs:
            carry, state = baseline.cell(carry, x)
        expected = jax.nn.sigmoid(baseline.head(state))
    np.testing.assert_allclose(output.mean[-1], expected, atol=16 * SINGLE)


def loss_problem():
    rng = np.random.default_rng(0)
    predictions = rng.uniform(size=(4, BATCH, PARTICLES, 3))
    poses = rng.uniform(0, 8, (4, BATCH, 3))
    log_weights = np.log(rng.dirichlet(np.ones(PARTICLES), (4, BATCH)))
    times = np.exp(0.1 * np.arange(4))
    return predictions, poses, log_weights, times / times.sum()


def reference_errors(prediction, pose, heading):
    xy = (prediction[:2] - pose[:2] / SIZE) ** 2
    if heading == "turns":
        return [*xy, (prediction[2] - pose[2] / (2 * np.pi)) ** 2]
    angle = 2 * np.pi * prediction[2]
    return [*xy, (np.cos(angle) - np.cos(pose[2])) ** 2 + (np.sin(angle) - np.sin(pose[2])) ** 2]


@pytest.mark.parametrize("heading", ["circle", "turns"])
def test_losses_are_their_sums(heading):
    predictions, poses, log_weights, b = loss_problem()
    times, batch, _, _ = predictions.shape
    localization = published = weighted = 0.0
    for t in range(times):
        for m in range(batch):
            errors = np.array([reference_errors(p, poses[t, m], heading) for p in predictions[t, m]])
            combined = errors @ [1, 1, 0.1]
            localization += b[t] * combined[0] / batch
            parts = -np.log(np.mean(np.exp(-b[t] * errors), 0))
            published += (parts[:2].mean() + 0.1 * parts[2]) / (times * batch)
            weighted -= b[t] * np.log(np.sum(np.exp(log_weights[t, m] - combined / 0.25))) / batch
    arrays = [jnp.asarray(a) for a in (predictions, poses, SIZE)]
    options = {"decay": 0.1, "heading": heading}
    found = localization_loss(arrays[0][:, :, 0], *arrays[1:], **options)
    np.testing.assert_allclose(found, localization, rtol=1e-13)
    np.testing.assert_allclose(elbo_loss(*arrays, **options), published, rtol=1e-13)
    found = elbo_loss(*arrays, jnp.asarray(log_weights), weighted=True, scale=0.5, **options)
    np.testing.assert_allclose(found, weighted, rtol=1e-13)


def test_losses_of_no_time_are_zero():
    size = jnp.ones(2)
    assert float(localization_loss(jnp.ones((0, 2, 3)), jnp.ones((0, 2, 3)), size)) == 0
    assert float(elbo_loss(jnp.ones((0, 2, 5, 3)), jnp.ones((0, 2, 3)), size)) == 0


GRU = PFGRUCell(FEATURES, 8, rngs=nnx.Rngs(0))
ME = MePFRNN(hidden=8, resampling="systematic", rngs=nnx.Rngs(0))
INPUTS, KEY = np.ones((2, BATCH, FEATURES)), jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PFGRUCell(3, alpha=0.0, rngs=nnx.Rngs(0)), r"alpha is 0.0, expected in \(0, 1\]"),
        (lambda: MePFRNN(alpha=1.5, rngs=nnx.Rngs(0)), r"alpha is 1.5, expected in \(0, 1\]"),
        (lambda: PFLSTMCell(3, resampling="best", rngs=nnx.Rngs(0)), "'best', expected one of"),
        (lambda: MePFRNN(likelihood="both", rngs=nnx.Rngs(0)), "MePFRNN: likelihood is 'both'"),
        (lambda: RecurrentBaseline(3, kind="rnn", rngs=nnx.Rngs(0)), "kind is 'rnn'"),
        (lambda: PFGRUCell(0, rngs=nnx.Rngs(0)), "in_features is 0"),
        (lambda: initial_particles(KEY, GRU, 2, 0), "num_particles is 0, expected an int >= 1"),
        (lambda: unroll(*nnx.split(GRU), INPUTS, KEY, num_particles=0), "num_particles is 0"),
        (lambda: unroll(*nnx.split(GRU), INPUTS[0], KEY), r"unroll: inputs is of shape \(2, 9\)"),
        (lambda: unroll(*nnx.split(GRU), INPUTS[..., :4], KEY), r"PFGRUCell: inputs is of shape \(2, 4\)"),
        (lambda: unroll(*nnx.split(ME), INPUTS, KEY), "beacons or size is None"),
        (lambda: unroll(*nnx.split(ME), INPUTS, KEY, beacons=BEACONS[:3], size=SIZE), "m >= 5"),
        (lambda: unroll(*nnx.split(ME), INPUTS, KEY, beacons=BEACONS[0], size=SIZE), r"expected \[m, 2\]"),
        (lambda: unroll(*nnx.split(ME), INPUTS, KEY, beacons=BEACONS, size=np.ones(3)), r"expected \[2\]"),
        (lambda: GRU(initial_particles(KEY, ME, 3, 5), INPUTS[0], KEY), r"expected \[3, 9\]"),
        (lambda: localization_loss(np.ones((2, 3, 3)), np.ones((2, 4, 3)), SIZE), "poses is of shape"),
        (lambda: localization_loss(np.ones((2, 3, 3)), np.ones((2, 3, 3)), SIZE, heading="none"), "heading is 'none'"),
        (lambda: elbo_loss(np.ones((2, 3, 5, 3)), np.ones((2, 3, 3)), SIZE, weighted=True), "log_weights is None"),
        (lambda: elbo_loss(np.ones((2, 3, 5, 3)), np.ones((2, 3, 3)), SIZE, scale=0.0), "scale is 0.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_raw_keys_are_refused():
    with pytest.raises(TypeError, match="expected a typed key"):
        unroll(*nnx.split(GRU), INPUTS, 0)
