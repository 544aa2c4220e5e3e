"""Train a network to find a robot in a maze, and compare it with the bootstrap filter, which knows the maze.

Run it with `python -m examples.train_localization --steps 2000`; `--help` lists the options. The folder `--output` gets
checkpoints, from which the same command goes on after an interruption, the parameters of the best seed, and a log.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxnm.filtering import worlds
from jaxnm.filtering.cells import MePFRNN, PFGRUCell
from jaxnm.filtering.checkpoints import save_parameters
from jaxnm.filtering.histogram import histogram_filter
from jaxnm.filtering.particle_filter import particle_filter
from jaxnm.filtering.training import LocalizationErrors, evaluate, train
from jaxnm.filtering.unrolling import RecurrentBaseline
from jaxnm.status import Status

WORLDS = {make.__name__: make for make in (worlds.maze10, worlds.maze18, worlds.maze27, worlds.labyrinth)}
SPEEDS = {"labyrinth": 0.5}
NUM_RANGES = 5
NUM_TEST_STEPS = 100
FIELDS = ("mean_squared", "final_mean_squared", "final_mean", "final_median", "within_half")
HEAD = ("mse", "last mse", "last mean", "last med", "< 0.5", "CPU ms")
NUM_KEPT = 100
"""Points of every training curve in the log."""
MODELS = {
    "mepfrnn": lambda rngs: MePFRNN(NUM_RANGES, rngs=rngs),
    "mepfrnn-observation-only": lambda rngs: MePFRNN(NUM_RANGES, likelihood="observation_only", rngs=rngs),
    "pfgru": lambda rngs: PFGRUCell(4 + NUM_RANGES, rngs=rngs),
    "gru": lambda rngs: RecurrentBaseline(4 + NUM_RANGES, kind="gru", rngs=rngs),
    "lstm": lambda rngs: RecurrentBaseline(4 + NUM_RANGES, kind="lstm", rngs=rngs),
}


class Progress:
    """A bar of tqdm where it is installed, else a line of text now and then."""

    def __init__(self, steps: int):
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar = None
        else:
            self.bar = tqdm(total=steps, unit="step", dynamic_ncols=True)

    def __call__(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Show the metrics, of the median seed."""
        text = ", ".join(f"{name.replace('_', ' ')} {np.nanmedian(value):.3g}" for name, value in metrics.items())
        if self.bar is None:
            print(f"step {step}: {text}", flush=True)
        else:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def test_trajectories(name: str, num: int) -> worlds.Trajectories:
    """Those that no network was trained on."""
    world = WORLDS[name](dtype=jnp.float32)
    return worlds.simulate(jax.random.key(101), world, num, NUM_TEST_STEPS, speed=SPEEDS.get(name, 0.2))


@partial(jax.jit, static_argnums=2)
def bootstrap_means(tracks: worlds.Trajectories, world: worlds.World, num_particles: int) -> jax.Array:
    """Where the bootstrap filter sees the robot, [n, T, 2], one trajectory after the other."""
    model = worlds.localization_model(world, num_ranges=NUM_RANGES)

    def mean(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        key, ranges, actions = row
        return particle_filter(key, model, (ranges, actions), num_particles=num_particles).mean

    keys = jax.random.split(jax.random.key(11), len(tracks.poses))
    return jax.lax.map(mean, (keys, tracks.ranges, tracks.actions), batch_size=10)


@partial(jax.jit, static_argnums=2)
def histogram_means(tracks: worlds.Trajectories, world: worlds.World, resolution: int) -> jax.Array:
    """Where Bayes' rule on a grid sees the robot, [n, T, 2]."""
    mean = lambda record: histogram_filter(world, record, resolution=resolution).means
    return jax.lax.map(mean, (tracks.ranges, tracks.actions), batch_size=10)


def baseline_errors(
    means: Callable[..., jax.Array], tracks: worlds.Trajectories, *arguments: Any
) -> LocalizationErrors:
    """Those of a filter which knows the world, the noise of the ranges and the moves."""
    squares = jnp.sum((means(tracks, *arguments) - tracks.poses[..., :2]) ** 2, -1)
    distances = jnp.sqrt(squares)
    final = distances[:, -1]
    return LocalizationErrors(
        jnp.mean(squares),
        jnp.mean(squares[:, -1]),
        jnp.mean(final),
        jnp.median(final),
        jnp.mean((final < 0.5).astype(final.dtype)),
        distances,
    )


def row(name: str, world: str, num_particles: int, errors: Callable[[], LocalizationErrors]) -> dict[str, Any]:
    """One line of the table, printed and kept; what `errors` costs is taken from a second call."""
    found = jax.block_until_ready(errors())
    begun = time.process_time()
    jax.block_until_ready(errors())
    milliseconds = 1e3 * (time.process_time() - begun) / len(found.distances)
    numbers = {field: round(float(getattr(found, field)), 4) for field in FIELDS}
    numbers |= {"cpu_ms_a_trajectory": round(milliseconds, 2)}
    print(f"{f'{name} in {world}, {num_particles} particles':52}" + "".join(f"{x:10.3f}" for x in numbers.values()))
    return {"name": name, "world": world, "particles": num_particles, **numbers}


def arguments() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=sorted(WORLDS), default="maze10")
    parser.add_argument("--model", choices=sorted(MODELS), default="mepfrnn")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1, help="runs side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the first key")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=50, help="steps of a training trajectory")
    parser.add_argument("--trajectories", type=int, default=4000)
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--test-trajectories", type=int, default=200)
    parser.add_argument("--test-particles", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--bootstrap-particles", type=int, nargs="*", default=[30, 300, 1000, 3000])
    parser.add_argument("--histogram-resolution", type=int, default=8, help="points a cell in each direction, or 0")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--motion-learning-rate", type=float, default=3e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--loss", choices=("localization", "elbo"), default="elbo")
    parser.add_argument("--loss-weight", type=float, default=0.03)
    parser.add_argument("--motion-weight", type=float, default=3.0)
    parser.add_argument("--motion-steps", type=int, default=0, help="on the motion alone, before the others; mepfrnn")
    parser.add_argument("--output", type=Path, default=None, help="default: build/localization/<world>-<model>")
    parser.add_argument("--transfer", choices=sorted(WORLDS), nargs="*", default=[], help="other worlds to test in")
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, write the log."""
    options = arguments()
    output = options.output or Path("build/localization") / f"{options.world}-{options.model}"
    world = WORLDS[options.world](dtype=jnp.float32)
    make = MODELS[options.model]
    particle_cell = options.model not in ("gru", "lstm")
    motion_weight = options.motion_weight if options.model.startswith("mepfrnn") else 0.0
    speed = SPEEDS.get(options.world, 0.2)
    tracks = worlds.simulate(jax.random.key(100), world, options.trajectories, options.length, speed=speed)
    keys = jax.random.split(jax.random.key(options.seed), options.seeds)
    made = [nnx.split(make(nnx.Rngs(key))) for key in keys]
    graphdef = made[0][0]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in made))
    size = sum(leaf[0].size for leaf in jax.tree.leaves(params))
    print(f"{options.model} in {options.world}: {size} parameters, {options.seeds} seeds")

    phases = [("motion", options.motion_steps, options.motion_learning_rate, 0.0)] if motion_weight else []
    phases.append(("filter", options.steps, options.learning_rate, options.loss_weight if motion_weight else 1.0))
    history, status, begun = {}, np.zeros(options.seeds, np.int32), time.process_time()
    for name, steps, rate, loss_weight in phases:
        if steps == 0:
            continue
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10), steps)
        progress = Progress(steps)
        result = train(
            jax.random.fold_in(jax.random.key(options.seed), len(history)),
            (graphdef, params),
            tracks,
            world,
            steps=steps,
            batch_size=options.batch,
            num_particles=options.particles if particle_cell and loss_weight else 1,
            optimizer=optax.chain(optax.clip_by_global_norm(options.clip), optax.adam(schedule)),
            loss=options.loss if particle_cell else "localization",
            loss_weight=loss_weight,
            motion_weight=motion_weight,
            num_seeds=options.seeds,
            checkpoint_dir=output / name,
            checkpoint_every=200,
            report=progress,
            report_every=20,
        )
        progress.close()
        params, status = result.params, np.maximum(status, result.status)
        every = -(-steps // NUM_KEPT)
        history[name] = {"every": every} | {
            key: np.round(value[:, ::every], 5).tolist() for key, value in result.history.items()
        }
    seconds = time.process_time() - begun

    test = test_trajectories(options.world, options.test_trajectories)
    print(f"{'errors in cells':52}" + "".join(f"{title:>10}" for title in HEAD))
    member = lambda seed: jax.tree.map(lambda leaf: leaf[seed], params)
    of = lambda seed, tracks, world, count: partial(
        evaluate, graphdef, member(seed), tracks, world, key=jax.random.key(7), num_particles=count
    )
    table, best = [], (float("inf"), 0)
    for seed in range(options.seeds):
        failed = "" if status[seed] == Status.OK else f", {Status(int(status[seed])).name}"
        for count in options.test_particles if particle_cell else [1]:
            name = f"{options.model}{failed}, seed {seed}"
            table.append(row(name, options.world, count, of(seed, test, world, count)))
            best = min(best, (table[-1]["final_median"], seed))
    for count in options.bootstrap_particles:
        errors = partial(baseline_errors, bootstrap_means, test, world, count)
        table.append(row("bootstrap filter", options.world, count, errors))
    if options.histogram_resolution:
        resolution = options.histogram_resolution
        errors = partial(baseline_errors, histogram_means, test, world, resolution)
        table.append(row("histogram filter", options.world, world.blocked.size * resolution**2, errors))
    for name in options.transfer:
        other, elsewhere = WORLDS[name](dtype=jnp.float32), test_trajectories(name, options.test_trajectories)
        for count in options.test_particles if particle_cell else [1]:
            errors = of(best[1], elsewhere, other, count)
            table.append(row(f"{options.model} of {options.world}", name, count, errors))

    # not where it was written to, which is a path of the machine
    log = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    log |= {"parameters": size, "cpu_seconds": round(seconds, 1), "jax": jax.__version__}
    log |= {"device": jax.devices()[0].device_kind, "status": status.tolist(), "table": table}
    path = save_parameters(output / "parameters", graphdef, member(best[1]), meta=log)
    (output / "log.json").write_text(json.dumps(log | {"history": history}, indent=1))
    print(f"{seconds:.0f} CPU seconds; {path} holds seed {best[1]}, {output / 'log.json'} the log")


if __name__ == "__main__":
    main()
