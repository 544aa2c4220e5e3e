"""Training: resumption and interruption to the bit, seeds side by side, what is refused, and that it learns."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnm.filtering import worlds
from jaxnm.filtering.cells import MePFRNN
from jaxnm.filtering.checkpoints import load_parameters, save_parameters
from jaxnm.filtering.motion import motion_loss
from jaxnm.filtering.training import evaluate, network_inputs, train
from jaxnm.filtering.unrolling import RecurrentBaseline, unroll
from jaxnm.status import Status

WORLD = worlds.maze10()
OPTIMIZER = optax.adam(1e-2)
KEY = jax.random.key(1)
SINGLE = np.finfo(np.float32).eps


@cache
def tracks() -> worlds.Trajectories:
    return worlds.simulate(jax.random.key(0), WORLD, 40, 5)


def make(rngs: nnx.Rngs, hidden: int = 6) -> RecurrentBaseline:
    return RecurrentBaseline(9, hidden, rngs=rngs)


def run(model=None, key=KEY, steps=12, **options):
    options = {"batch_size": 4, "num_particles": 3, "optimizer": OPTIMIZER, "checkpoint": False, **options}
    model = make(nnx.Rngs(0)) if model is None else model
    return train(key, model, options.pop("trajectories", tracks()), options.pop("world", WORLD), steps=steps, **options)


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) and x.dtype == y.dtype for x, y in pairs)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.exhaustive
def test_resumed_run_equals_one_without_a_break(tmp_path):
    whole = run()
    run(steps=5, checkpoint_dir=tmp_path, checkpoint_every=3, report_every=2)
    heard = []
    resumed = run(checkpoint_dir=tmp_path, report=lambda step, metrics: heard.append((step, metrics)), report_every=4)
    assert same(whole, resumed)
    assert [step for step, _ in heard] == [5, 8, 12]
    np.testing.assert_allclose(heard[-1][1]["loss"], whole.history["loss"][8:].mean(), rtol=4 * SINGLE)
    assert (int(whole.steps), int(whole.status)) == (12, 0)
    # at the end already: nothing is left to do
    assert same(whole, run(checkpoint_dir=tmp_path))
    with pytest.raises(ValueError, match="at step 12, expected at most steps = 11"):
        run(steps=11, checkpoint_dir=tmp_path)


def test_interruption_leaves_a_whole_checkpoint(tmp_path):
    def interrupt(step, metrics):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, checkpoint_every=3, report=interrupt, report_every=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6"]
    # what a kill in the middle of writing leaves
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    assert same(run(), run(checkpoint_dir=tmp_path))


def test_seeds_side_by_side_equal_single_runs():
    both = run(make, num_seeds=2)
    graphdef = nnx.split(make(nnx.Rngs(0)))[0]
    keys = jax.random.split(KEY, 2)
    last = np.uint32(2**32 - 1)
    for seed in range(2):
        params = nnx.split(make(nnx.Rngs(jax.random.fold_in(keys[seed], last))))[1]
        single = run((graphdef, params), keys[seed])
        for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(single), strict=True):
            # Adam divides small gradients by their size, so that rounding weighs more there
            np.testing.assert_allclose(x[seed], y, rtol=1e3 * SINGLE, atol=1e2 * SINGLE)
    assert not np.allclose(both.history["loss"][0], both.history["loss"][1])


def test_diverging_seed_keeps_its_last_finite_parameters():
    # one pose is NaN: a seed diverges when it draws this trajectory, the other one never does
    poses = tracks().poses.at[7, 2].set(jnp.nan)
    spoilt = {"trajectories": tracks().replace(poses=poses), "num_seeds": 2}
    result = run(make, **spoilt)
    assert sorted(result.status.tolist()) == [Status.OK, Status.NONFINITE_RESULT]
    bad = int(np.argmax(result.status))
    taken = int(result.steps[bad])
    assert 0 < taken < 12
    assert int(result.steps[1 - bad]) == 12
    before = run(make, steps=taken, **spoilt)
    assert before.status.tolist() == [0, 0]
    member = lambda r: jax.tree.map(lambda leaf: leaf[bad], (r.params, r.optimizer_state))
    assert same(member(result), member(before))
    assert np.isnan(result.history["loss"][bad, taken:]).all()
    assert np.isfinite(result.history["loss"][1 - bad]).all()
    assert np.isfinite(result.history["loss"][bad, :taken]).all()


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"model": lambda: make(nnx.Rngs(0), 7)}, "model.hidden = 6"),
        ({"model": lambda: make(nnx.Rngs(1))}, "parameters at the start"),
        ({"world": worlds.maze18()}, "world = maze10"),
        ({"batch_size": 5}, "batch_size = 4"),
        ({"key": jax.random.key(2)}, "key"),
        ({"optimizer": optax.sgd(0.1)}, "whose state has"),
        ({"trajectories": worlds.simulate(jax.random.key(3), WORLD, 40, 5)}, "data"),
    ],
)
def test_checkpoint_of_another_run_is_refused_and_left_alone(changed, match, checkpointed):
    before = contents(checkpointed)
    if "model" in changed:
        changed = changed | {"model": changed["model"]()}
    with pytest.raises(ValueError, match=match):
        run(checkpoint_dir=checkpointed, **changed)
    assert contents(checkpointed) == before


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(steps=4, checkpoint_dir=folder, checkpoint_every=4)
    return folder


@pytest.mark.parametrize("damage", ["arrays", "description", "format", "foreign", "file"])
def test_damaged_and_foreign_folders_are_refused_and_left_alone(damage, tmp_path):
    folder = tmp_path / "run"
    if damage == "foreign":
        folder.mkdir()
        (folder / "thesis.tex").write_text("do not lose this")
    elif damage == "file":
        folder.write_text("do not lose this")
    else:
        run(steps=4, checkpoint_dir=folder, checkpoint_every=4)
        description = folder / "4" / "description" / "metadata"
        if damage == "arrays":
            for path in (folder / "4" / "state").rglob("*"):
                if path.is_file() and path.parent.name == "d":
                    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))
        elif damage == "description":
            description.write_text("{")
        else:
            description.write_text(json.dumps(json.loads(description.read_text()) | {"format": "another"}))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="checkpoint_dir"):
        run(checkpoint_dir=folder)
    assert contents(tmp_path) == before


def test_parameters_make_the_round_trip(tmp_path):
    cell = MePFRNN(3, hidden=8, rngs=nnx.Rngs(0))
    path = save_parameters(tmp_path / "cell", cell, meta={"seed": 0, "log": [1.5]})
    assert [entry.name for entry in tmp_path.iterdir()] == ["cell.npz"]
    params, meta = load_parameters(path, MePFRNN(3, hidden=8, rngs=nnx.Rngs(1)))
    assert meta == {"seed": 0, "log": [1.5]}
    assert same(params, nnx.split(cell)[1])
    with pytest.raises(ValueError, match="hidden = 8, expected 9"):
        load_parameters(path, MePFRNN(3, hidden=9, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="likelihood = 'predicted_distances'"):
        load_parameters(path, MePFRNN(3, hidden=8, likelihood="observation_only", rngs=nnx.Rngs(0)))
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = [whole[:middle], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :], b"", b"PK no zip"]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be read"):
            load_parameters(path, cell)
        assert path.read_bytes() == bad
    np.savez(path, weights=np.ones(3))
    with pytest.raises(ValueError, match="cannot be read"):
        load_parameters(path, cell)
    with pytest.raises(FileNotFoundError):
        load_parameters(tmp_path / "nothing.npz", cell)
    with pytest.raises(TypeError, match="JSON"):
        save_parameters(path, cell, meta={"array": np.ones(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["cell.npz"]


def test_loss_falls():
    losses = run(steps=1000).history["loss"]
    assert losses[-50:].mean() < losses[:5].mean() / 2


@pytest.mark.exhaustive
def test_particles_learn_to_follow_the_odometry():
    # they lose their way at first, by two cells and more
    cell = MePFRNN(2, hidden=16, rngs=nnx.Rngs(0))
    data = worlds.simulate(jax.random.key(0), WORLD, 64, 8, num_ranges=2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    result = run(cell, steps=200, trajectories=data, optimizer=optimizer, loss_weight=0.0, motion_weight=1.0)
    errors = result.history["motion_error"]
    assert int(result.status) == 0
    assert np.isnan(result.history["final_error"]).all()
    assert errors[:5].mean() > 2
    assert errors[-20:].mean() < 0.8


def test_evaluation_measures_distances_in_cells():
    graphdef, params = nnx.split(make(nnx.Rngs(0)))
    errors = evaluate(graphdef, params, tracks(), WORLD, key=KEY)
    output = unroll(graphdef, params, network_inputs(tracks()), KEY)
    distances = np.linalg.norm(
        np.asarray(output.mean[..., :2], np.float64) * 10 - np.asarray(tracks().poses[..., :2]).swapaxes(0, 1), axis=-1
    ).T
    np.testing.assert_allclose(errors.distances, distances, rtol=20 * SINGLE)
    np.testing.assert_allclose(errors.mean_squared, (distances**2).mean(), rtol=20 * SINGLE)
    np.testing.assert_allclose(errors.final_mean_squared, (distances[:, -1] ** 2).mean(), rtol=20 * SINGLE)
    np.testing.assert_allclose(errors.final_mean, distances[:, -1].mean(), rtol=20 * SINGLE)
    np.testing.assert_allclose(errors.final_median, np.median(distances[:, -1]), rtol=20 * SINGLE)
    np.testing.assert_allclose(errors.within_half, (distances[:, -1] < 0.5).mean(), rtol=20 * SINGLE)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="typed key"):
        run(key=jnp.zeros(2, jnp.uint32))
    for name in ("batch_size", "num_particles", "num_seeds", "checkpoint_every", "report_every"):
        with pytest.raises(ValueError, match=name):
            run(**{name: 0})
    with pytest.raises(ValueError, match="loss"):
        run(loss="unknown")
    with pytest.raises(ValueError, match="poses"):
        run(trajectories=(jnp.zeros((5, 2, 9)), jnp.zeros((2, 5, 3))))
    with pytest.raises(ValueError, match="one for each seed"):
        run(nnx.split(make(nnx.Rngs(0))), num_seeds=5)
    with pytest.raises(TypeError, match="model"):
        run(3)
    with pytest.raises(TypeError, match="particle cell"):
        motion_loss(*nnx.split(make(nnx.Rngs(0))), jnp.zeros((2, 1, 9)), KEY, size=jnp.ones(2))
    empty = run(steps=0)
    assert empty.history["loss"].shape == (0,)
    assert same(empty.params, nnx.split(make(nnx.Rngs(0)))[1])
