"""The edge of stability: full-batch training drives the sharpness to the stability limit of the optimizer in use.

Run it with `python -m examples.edge_of_stability`; pictures go to build/gallery. The exit status is 1 if a check fails.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.tree_util import Partial
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn import datasets

import jaxnm.first_order as fo
from jaxnm import raise_if_failed
from jaxnm.linalg import extreme_eigenvalues
from jaxnm.plot.first_order import spectral_density

FOLDER = Path("build/gallery")
OPTIMIZERS = {
    "gradient descent, 0.25": optax.sgd(0.25),
    "heavy ball, 0.3, momentum 0.9": optax.sgd(0.3, momentum=0.9),
    "Nesterov, 0.13, momentum 0.9": optax.sgd(0.13, momentum=0.9, nesterov=True),
}
NUM_STEPS = 3000
EVERY = 20
"""Steps between two looks at the sharpness."""
LATE = NUM_STEPS // EVERY * 2 // 3
"""The last third of them."""


class Network(nnx.Module):
    """Two hidden layers with tanh, from the 64 pixels of a digit to 10 classes."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, pixels: Array) -> Array:
        """Scores of the classes."""
        return self.last(nnx.tanh(self.second(nnx.tanh(self.first(pixels)))))


class Problem(NamedTuple):
    """A network to train on digits, in float32."""

    loss: Partial
    """Of the parameters: half the mean square distance to the one-hot classes."""
    params: Any
    """Where training starts."""
    dimension: int


class Run(NamedTuple):
    """Training with one optimizer."""

    losses: np.ndarray
    """[steps]"""
    sharpness: np.ndarray
    """[looks], the largest eigenvalue of the Hessian of the loss."""
    limit: float
    """Largest curvature on which the optimizer is stable."""


def mean_square_loss(graph: nnx.GraphDef, pixels: Array, classes: Array, params: Any) -> Array:
    """Half the mean square distance between scores and one-hot classes."""
    scores = nnx.merge(graph, params)(pixels)
    return jnp.mean(jnp.sum((scores - classes) ** 2, axis=-1)) / 2


def problem(num_images: int, width: int) -> Problem:
    """The first images of the digits, centered, and a network of the given width."""
    pixels, classes = map(np.asarray, datasets.load_digits(return_X_y=True))
    inputs = jnp.asarray(pixels[:num_images] / 16, jnp.float32)
    targets = jax.nn.one_hot(classes[:num_images], 10, dtype=jnp.float32)
    graph, params = nnx.split(Network(width, nnx.Rngs(0)))
    # the graph definition is static, the data are leaves: they are not compiled into the program
    loss = Partial(Partial(mean_square_loss, graph), inputs - inputs.mean(0), targets)
    return Problem(loss, params, sum(leaf.size for leaf in jax.tree.leaves(params)))


def hessian_product(loss: Partial, params: Any, vector: Any) -> Any:
    """Forward over reverse: as much work as a few gradients, no matrix."""
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def train(optimizer: optax.GradientTransformation, task: Problem, *, num_steps: int = NUM_STEPS) -> Run:
    """Full-batch training, with a look at the sharpness after every 20 steps, in one compiled program."""

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(task.loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def look_and_train(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
        product = Partial(hessian_product, task.loss, carry[0])
        ends = extreme_eigenvalues(product, carry[0], key=key, num_steps=40, num_smallest=0, tolerance=1e-3)
        carry, losses = jax.lax.scan(step, carry, length=EVERY)
        return carry, (losses, ends.largest[0])

    keys = jax.random.split(jax.random.key(1), num_steps // EVERY)
    start = (task.params, optimizer.init(task.params))
    _, (losses, sharpness) = jax.jit(lambda start, keys: jax.lax.scan(look_and_train, start, keys))(start, keys)
    limit = float(fo.stability_limit(fo.from_optax(optimizer).method))
    return Run(np.ravel(losses), np.asarray(sharpness), limit)


def edge_of_stability(task: Problem) -> tuple[Figure, str, dict[str, bool]]:
    """Sharpness and loss of three optimizers over training, each against its own stability limit."""
    runs = {name: train(optimizer, task) for name, optimizer in OPTIMIZERS.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    steps = EVERY * np.arange(NUM_STEPS // EVERY)
    lines = [f"{'':<32}{'limit':>8}{'sharpness':>24}{'share of steps on':>22}", f"{'':<40}{'start':>12}{'late':>12}"]
    lines[1] += f"{'which the loss rises':>24}"
    checks = {}
    for name, run in runs.items():
        (line,) = left.plot(steps, run.sharpness, linewidth=1, label=name)
        left.axhline(run.limit, color=line.get_color(), linestyle="--", linewidth=0.9)
        right.semilogy(run.losses, color=line.get_color(), linewidth=0.7, label=name)
        late = float(np.median(run.sharpness[LATE:]))
        rises = float(np.mean(np.diff(run.losses[EVERY * LATE :]) > 0))
        lines.append(f"{name:<32}{run.limit:>8.4g}{run.sharpness[0]:>12.4g}{late:>12.4g}{100 * rises:>22.0f} %")
        checks |= {
            f"{name}: starts below the limit": bool(run.sharpness[0] < 0.6 * run.limit),
            f"{name}: late sharpness within 5 % of the limit": abs(late / run.limit - 1) < 0.05,
            f"{name}: the loss falls all the same": bool(run.losses[-1] < 0.1 * run.losses[0]),
        }
    left.set(
        xlabel="step",
        ylabel="sharpness: largest eigenvalue of the Hessian",
        title="sharpness (solid) and stability limit (dashed)",
        ylim=(0, None),
    )
    right.set(xlabel="step", ylabel="training loss", title=f"{task.dimension:,} parameters, digits, full batch")
    right.legend(fontsize="small")
    return figure, "\n".join(lines), checks


def spectrum_of_a_network(task: Problem) -> tuple[Figure, str, dict[str, bool]]:
    """The whole spectrum of the Hessian of a larger network after some training, from Hessian-vector products."""
    optimizer = OPTIMIZERS["gradient descent, 0.25"]

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(task.loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (task.params, optimizer.init(task.params))
    params = jax.jit(lambda start: jax.lax.scan(step, start, length=200))(start)[0][0]

    begin = time.perf_counter()
    found = fo.hessian_spectrum(task.loss, params, method="lanczos", key=jax.random.key(0), num_steps=120, num_probes=2)
    raise_if_failed(jax.block_until_ready(found))
    seconds = time.perf_counter() - begin
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    spectral_density(found, ax=ax)
    near_zero = float(jnp.sum(jnp.where(jnp.abs(found.eigenvalues) < 0.01 * found.L, found.weights, 0)))
    text = "\n".join(
        [
            f"{task.dimension:,} parameters, {task.loss.args[0].shape[0]:,} images: both ends and the density from "
            f"Hessian-vector products in {seconds:.0f} s, compilation included",
            f"  smallest eigenvalue {found.mu:.4f}, none below {found.lower_bound:.4f}",
            f"  largest eigenvalue  {found.L:.4f}, none above {found.upper_bound:.4f} (but for a probability of 1e-6)",
            f"  about {100 * near_zero:.1f} % of the eigenvalues are smaller than a hundredth of the largest",
            str(fo.analyze(optimizer, found, name="gradient descent, 0.25, there")),
        ]
    )
    checks = {
        "network: the bounds are near the ends": bool(found.upper_bound < 1.01 * found.L),
        "network: most curvatures are nearly zero": near_zero > 0.9,
    }
    return figure, text, checks


def main() -> int:
    """Run both; 0 if all checks hold, else 1."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    checks: dict[str, bool] = {}
    for name, part in {
        "edge_of_stability": lambda: edge_of_stability(problem(500, 100)),
        "network_spectrum": lambda: spectrum_of_a_network(problem(1797, 288)),
    }.items():
        figure, text, held = part()
        figure.savefig(FOLDER / f"{name}.png", dpi=120)
        plt.close(figure)
        print(f"{text}\n  picture: {FOLDER / name}.png\n", flush=True)
        checks |= held
    for name in (name for name, held in checks.items() if not held):
        print(f"FAILED: {name}")
    print(f"{sum(checks.values())} of {len(checks)} checks hold")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
