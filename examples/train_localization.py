"""Train a network to find a robot in a maze, and compare it with the bootstrap filter, which knows the maze.

Run it with `python -m examples.train_localization --steps 2000`; `--help` lists the options. The folder `--output` gets
checkpoints, from which the same command goes on after an interruption, the parameters of the best seed, and a log.
"""

import argparse
import json
import time
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
from jaxnm.filtering.particle_filter import particle_filter
from jaxnm.filtering.training import LocalizationErrors, evaluate, train
from jaxnm.filtering.unrolling import RecurrentBaseline
from jaxnm.status import Status

WORLDS = {make.__name__: make for make in (worlds.maze10, worlds.maze18, worlds.maze27, worlds.labyrinth)}
SHARPNESS = 20
"""The likelihood of a mePFRNN starts this much steeper than by default: from ranges to half a cell, not to two."""
SPEEDS = {"labyrinth": 0.5}
NUM_RANGES = 5
NUM_TEST_STEPS = 100


def mepfrnn(rngs: nnx.Rngs, **options: Any) -> MePFRNN:
    """A mePFRNN whose likelihood is steep enough to localize before it has learned to."""
    cell = MePFRNN(NUM_RANGES, resampling="systematic", rngs=rngs, **options)
    cell.misfit_second.kernel[...] = SHARPNESS * cell.misfit_second.kernel[...]
    return cell


MODELS = {
    "mepfrnn": mepfrnn,
    "mepfrnn-observation-only": partial(mepfrnn, likelihood="observation_only"),
    "pfgru": lambda rngs: PFGRUCell(4 + NUM_RANGES, resampling="systematic", rngs=rngs),
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


def bootstrap_errors(tracks: worlds.Trajectories, world: worlds.World, num_particles: int) -> LocalizationErrors:
    """Those of the bootstrap filter, one trajectory after the other."""
    model = worlds.localization_model(world, num_ranges=NUM_RANGES)

    def mean(row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        key, ranges, actions = row
        return particle_filter(key, model, (ranges, actions), num_particles=num_particles).mean

    keys = jax.random.split(jax.random.key(11), len(tracks.poses))
    means = jax.jit(lambda rows: jax.lax.map(mean, rows, batch_size=10))((keys, tracks.ranges, tracks.actions))
    squares = jnp.sum((means - tracks.poses[..., :2]) ** 2, -1)
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


def row(name: str, errors: LocalizationErrors) -> dict[str, Any]:
    """One line of the table, printed and kept."""
    numbers = {
        field: round(float(getattr(errors, field)), 4)
        for field in ("mean_squared", "final_mean_squared", "final_mean", "final_median", "within_half")
    }
    print(f"{name:44}" + "".join(f"{number:10.3f}" for number in numbers.values()))
    return {"name": name, **numbers}


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
    parser.add_argument("--particles", type=int, default=30)
    parser.add_argument("--test-trajectories", type=int, default=300)
    parser.add_argument("--test-particles", type=int, nargs="+", default=[30, 300])
    parser.add_argument("--bootstrap-particles", type=int, nargs="+", default=[30, 300, 3000])
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--loss", choices=("localization", "elbo"), default="elbo")
    parser.add_argument("--loss-weight", type=float, default=0.1)
    parser.add_argument("--motion-weight", type=float, default=3.0)
    parser.add_argument("--motion-steps", type=int, default=0, help="steps on the motion alone, before the others")
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

    phases = [("motion", options.motion_steps, 0.0)] if motion_weight and options.motion_steps else []
    phases.append(("filter", options.steps, options.loss_weight if motion_weight else 1.0))
    history, status, begun = {}, np.zeros(options.seeds, np.int32), time.perf_counter()
    for name, steps, loss_weight in phases:
        schedule = optax.warmup_cosine_decay_schedule(0.0, options.learning_rate, min(100, steps // 10), max(steps, 1))
        progress = Progress(steps)
        result = train(
            jax.random.fold_in(jax.random.key(options.seed), len(history)),
            (graphdef, params),
            tracks,
            world,
            steps=steps,
            batch_size=options.batch,
            num_particles=options.particles if particle_cell else 1,
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
        history[name] = {key: np.round(value, 6).tolist() for key, value in result.history.items()}
    seconds = time.perf_counter() - begun

    test = worlds.simulate(jax.random.key(101), world, options.test_trajectories, NUM_TEST_STEPS, speed=speed)
    head = ("mse", "last mse", "last mean", "last med", "< 0.5")
    print(f"{'errors in cells':44}" + "".join(f"{title:>10}" for title in head))
    member = lambda seed: jax.tree.map(lambda leaf: leaf[seed], params)
    table, best = [], (float("inf"), 0)
    for seed in range(options.seeds):
        for count in options.test_particles if particle_cell else [1]:
            errors = evaluate(graphdef, member(seed), test, world, key=jax.random.key(7), num_particles=count)
            failed = "" if status[seed] == Status.OK else f", {Status(int(status[seed])).name}"
            table.append(row(f"{options.model}, seed {seed}, {count} particles{failed}", errors))
            best = min(best, (float(errors.final_median), seed))
    for count in options.bootstrap_particles:
        table.append(row(f"bootstrap filter, {count} particles", bootstrap_errors(test, world, count)))
    for name in options.transfer:
        other = WORLDS[name](dtype=jnp.float32)
        elsewhere = worlds.simulate(
            jax.random.key(102), other, options.test_trajectories, NUM_TEST_STEPS, speed=SPEEDS.get(name, 0.2)
        )
        for count in options.test_particles:
            errors = evaluate(graphdef, member(best[1]), elsewhere, other, key=jax.random.key(7), num_particles=count)
            table.append(row(f"{options.model} in {name}, {count} particles", errors))

    log = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    log |= {"parameters": size, "seconds of this call": round(seconds, 1), "jax": jax.__version__}
    log |= {"device": jax.devices()[0].device_kind, "status": status.tolist(), "table": table}
    path = save_parameters(output / "parameters", graphdef, member(best[1]), meta=log)
    (output / "log.json").write_text(json.dumps(log | {"history": history}))
    print(f"{seconds:.0f} s; {path} holds seed {best[1]}, {output / 'log.json'} the log")


if __name__ == "__main__":
    main()
