"""Where is the robot? A bootstrap filter that knows the maze, and a network that learned to move its particles.

The network is the one that `python -m examples.train_localization` trained; its parameters and the logs of that and all
other trainings lie in `examples/trained`.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib import pyplot as plt

from examples.train_localization import MODELS, NUM_RANGES, WORLDS, bootstrap_means, test_trajectories
from jaxnm.filtering import worlds
from jaxnm.filtering.cells import MePFRNN
from jaxnm.filtering.checkpoints import load_parameters
from jaxnm.filtering.particle_filter import particle_filter
from jaxnm.filtering.training import network_inputs
from jaxnm.filtering.unrolling import unroll
from jaxnm.plot import filtering as plot

TRAINED = Path(__file__).parent / "trained"
NUM_TRAJECTORIES = 100
TIMES = (0, 5, 20, 99)
"""Of the pictures."""


def results() -> list[dict[str, Any]]:
    """What every training of `examples/trained` wrote into its log, by world and model."""
    logs = [json.loads(path.read_text()) for path in TRAINED.glob("*.json")]
    worlds_, models = list(WORLDS), list(MODELS)
    return sorted(logs, key=lambda log: (worlds_.index(log["world"]), models.index(log["model"])))


def budget_table() -> str:
    """How every network was trained, in Markdown."""
    keys = ("motion_steps", "steps", "batch", "length", "particles", "learning_rate", "loss")
    lines = ["| world | network | numbers | CPU s | " + " | ".join(key.replace("_", " ") for key in keys) + " |"]
    lines.append("| --- | --- | ---: | ---: |" + " ---: |" * len(keys))
    for log in results():
        start = f"| {log['world']} | {log['model']} | {log['parameters']:,} | {log['cpu_seconds']:.0f} | "
        lines.append(start + " | ".join(str(log[key]) for key in keys) + " |")
    return "\n".join(lines)


def results_table() -> str:
    """The errors of all trained networks and of the filters that know the world, in Markdown."""
    head = ("world", "filter", "particles or points", "numbers", "trained for", "median", "mean", "within .5")
    head += ("last MSE", "CPU ms")
    lines = ["| " + " | ".join(head) + " |", "| --- " * 2 + "| ---: " * 8 + "|"]
    for world in WORLDS:
        logs = [log for log in results() if log["world"] == world]
        rows = [(log, row) for log in logs for row in log["table"] if row["world"] == world]
        lines += [
            _line(world, row, f"{log['parameters']:,}", f"{log['cpu_seconds']:.0f} s")
            for log, row in rows
            if row["name"].startswith(log["model"])
        ]
        others = [row for log, row in rows if not row["name"].startswith(log["model"])]
        once = {(row["name"], row["particles"]): row for row in others}
        lines += [_line(world, once[which], "", "") for which in sorted(once)]
    return "\n".join(lines)


def transfer_table() -> str:
    """The errors of networks in worlds that they were not trained in, in Markdown."""
    lines = ["| world | network | particles | median | mean | within .5 |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for log in results():
        for row in (row for row in log["table"] if row["world"] != log["world"]):
            numbers = f"{row['final_median']:.3f} | {row['final_mean']:.3f} | {row['within_half']:.0%}"
            lines.append(f"| {row['world']} | {row['name']} | {row['particles']} | {numbers} |")
    return "\n".join(lines)


def _line(world: str, row: dict[str, Any], size: str, seconds: str) -> str:
    name = row["name"].split(",")[0]
    numbers = f"{row['final_median']:.3f} | {row['final_mean']:.3f} | {row['within_half']:.0%}"
    tail = f"{row['final_mean_squared']:.2f} | {row['cpu_ms_a_trajectory']:.1f}"
    count = row["particles"] if name not in ("gru", "lstm") else ""
    return f"| {world} | {name} | {count} | {size} | {seconds} | {numbers} | {tail} |"


def network(likelihood: str = "predicted_distances") -> tuple[nnx.GraphDef, Any, dict[str, Any]]:
    """The trained mePFRNN, and the log of its training; with another likelihood the same parameters."""
    cell = MePFRNN(NUM_RANGES, rngs=nnx.Rngs(0))
    params, log = load_parameters(TRAINED / "maze10-mepfrnn.npz", cell)
    cell.likelihood = likelihood
    return nnx.split(cell)[0], params, log


@partial(jax.jit, static_argnums=(0, 4))
def _particles(
    graphdef: nnx.GraphDef, params: Any, tracks: worlds.Trajectories, world: worlds.World, num_particles: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions [T, n, K, 2] in cells, log-weights [T, n, K], and weighted means [n, T, 2]."""
    size = jnp.array(world.blocked.shape, world.beacons.dtype)
    output = unroll(
        graphdef,
        params,
        network_inputs(tracks),
        jax.random.key(7),
        num_particles=num_particles,
        beacons=world.beacons,
        size=size,
    )
    positions = output.predictions[..., :2] * size.reshape(1, 1, 1, 2)
    weights = jnp.exp(output.log_weights)
    return positions, output.log_weights, jnp.moveaxis(jnp.sum(weights[..., None] * positions, -2), 0, 1)


def section(folder: Path) -> tuple[str, dict[str, bool]]:
    """The same trajectories through both filters; tables, pictures, checks."""
    world = WORLDS["maze10"](dtype=jnp.float32)
    tracks = test_trajectories("maze10", NUM_TRAJECTORIES)
    poses = np.asarray(tracks.poses[..., :2])
    graphdef, params, log = network()
    released, _, _ = network("observation_only")
    errors, clouds = {}, {}
    for count in (30, 300, 3000):
        errors[f"bootstrap filter, {count}"] = _distances(bootstrap_means(tracks, world, count), poses)
    for count in (30, 300):
        *clouds[count], means = _particles(graphdef, params, tracks, world, count)
        errors[f"mePFRNN, {count}"] = _distances(means, poses)
    _, even, means = _particles(released, params, tracks, world, 300)
    errors["mePFRNN as released, 300"] = _distances(means, poses)

    lines = [
        f"{NUM_TRAJECTORIES} robots in a maze of 10 x 10 cells hear their {NUM_RANGES} nearest beacons.",
        f"The network has {log['parameters']:,} numbers and was trained for {log['cpu_seconds']:.0f} CPU seconds.",
        f"{'after 100 moves, in cells':32}{'median':>10}{'mean':>10}{'within .5':>12}",
    ]
    for name, distances in errors.items():
        final = distances[:, -1]
        lines.append(f"{name:32}{np.median(final):10.3f}{final.mean():10.3f}{np.mean(final < 0.5):12.0%}")

    _pictures(folder, world, tracks, clouds[300], errors)
    lines.append(f"The clouds of one robot: {folder}/robot_bootstrap.png, robot_mepfrnn.png, robot_mepfrnn.gif")
    lines.append(f"Errors over time: {folder}/robot_errors.png")
    within = {name: float(np.mean(distances[:, -1] < 0.5)) for name, distances in errors.items()}
    (logged,) = [row["within_half"] for row in log["table"] if row["particles"] == 300 and "seed" in row["name"]]
    deviation = float(np.sqrt(logged * (1 - logged) / NUM_TRAJECTORIES))
    checks = {
        "the bootstrap filter with 3000 particles finds nine robots of ten": within["bootstrap filter, 3000"] >= 0.9,
        "the trained network finds as many as its log says": abs(within["mePFRNN, 300"] - logged) <= 4 * deviation,
        "as released, the same parameters weigh all particles alike": bool(np.all(np.ptp(even, axis=-1) == 0)),
        "and find fewer robots": within["mePFRNN as released, 300"] < within["mePFRNN, 300"],
    }
    return "\n".join(lines), checks


def _distances(means: Any, poses: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.asarray(means) - poses, axis=-1)


def _pictures(
    folder: Path, world: worlds.World, tracks: worlds.Trajectories, cloud: Any, errors: dict[str, np.ndarray]
) -> None:
    """Of the first robot, whichever it is, and of all errors."""
    model = worlds.localization_model(world, num_ranges=NUM_RANGES)
    record = (tracks.ranges[0], tracks.actions[0])
    found = particle_filter(jax.random.key(12), model, record, num_particles=3000, history="full")
    history: Any = found.history
    positions, log_weights = (part[:, 0] for part in cloud)
    clouds = {"bootstrap": (history.particles, history.log_weights), "mepfrnn": (positions, log_weights)}
    for name, (particles, weights) in clouds.items():
        figure = plot.cloud_strip(world, particles, weights, poses=tracks.poses[0], times=TIMES)
        figure.savefig(folder / f"robot_{name}.png", dpi=150)
        plt.close(figure)
    plot.cloud_animation(world, *clouds["mepfrnn"], folder / "robot_mepfrnn.gif", poses=tracks.poses[0], every=4)
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    clear = {name: distances for name, distances in errors.items() if not name.endswith(" 30")}
    plot.error_curves(clear, threshold=0.5, ax=ax)
    figure.savefig(folder / "robot_errors.png", dpi=150)
    plt.close(figure)
