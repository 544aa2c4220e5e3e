"""How far do tensor trains carry? A photograph, the hyper-parameters of a classifier, an integral over 30 dimensions.

Each stands beside what one would do without: truncated singular value decompositions of matrices, random search with
the same budget, and Monte Carlo with a million points.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial, reduce
from math import comb, factorial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image

from jaxnm import tensor_train
from jaxnm.plot import tensor_train as plot

NUM_SECTIONS = 3
SIDE, ORIGIN = 256, (100, 200)
"""Of the part of the photograph, in pixels, and its upper left corner."""
SHOWN = 0.05
"""Relative error of the picture that is shown."""
ERRORS = (0.2, 0.15, 0.1, 0.07, SHOWN, 0.03, 0.02, 0.01)
TRAINED, VALIDATED = 150, 300
"""Images of digits; all others are for the test."""
HIDDEN, EPOCHS = 16, 25
LEVELS = 16
"""Values of a hyper-parameter."""
BUDGET, SEEDS = 600, 8
NUM_DIMENSIONS, NODES, MAX_RANK = 30, 8, 8
TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
PHASE, CORNER = 0.1, Fraction(1, 50)
FAMILIES = ("oscillatory", "corner peak")

Section = tuple[str, dict[str, bool]]
Experiment = tuple[Figure, str, dict[str, bool]]
"""A figure, text, and checks that must hold."""
HOW_TO_READ = """\
A tensor train writes an array of d modes as a chain of d small cores, joined by bonds. Its size is the number of
entries of the cores, d n r^2 for modes of size n and bonds of rank r, where the array has n^d."""


def sections(folder: Path) -> Iterator[Section]:
    """The parts of the chapter, one at a time: a text and the checks made on the way. Pictures go to `folder`."""
    parts = {"photograph": photograph, "classifier": classifier, "integral": integral}
    for number, (name, part) in enumerate(parts.items()):
        figure, text, held = part()
        path = folder / f"compressed_{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        opening = "" if number else f"{HOW_TO_READ}\n\n"
        yield f"{opening}{text}\n  picture: {path}", held


# ------------------------------------------------------------------------------------------------ a photograph


def interleaved(pixels: np.ndarray) -> np.ndarray:
    """[256, 256, 3] as [16, 16, 16, 16, 3]: the mode k has the k-th digits, in base four, of row and column."""
    split = pixels.reshape((4,) * 8 + (3,))
    return split.transpose(0, 4, 1, 5, 2, 6, 3, 7, 8).reshape(16, 16, 16, 16, 3)


def restored(tt: tensor_train.TT) -> np.ndarray:
    """The pixels [256, 256, 3] of a train of `interleaved` ones, from its cores at their ranks."""
    cores = map(np.asarray, tensor_train.to_cores(jax.device_get(tt)))  # in NumPy, where a new shape compiles nothing
    split = reduce(lambda before, core: np.tensordot(before, core, 1), cores).reshape((4,) * 8 + (3,))
    return split.transpose(0, 2, 4, 6, 1, 3, 5, 7, 8).reshape(SIDE, SIDE, 3)


def tiles(pixels: np.ndarray, side: int) -> np.ndarray:
    """A row for each square of side x side pixels."""
    count = SIDE // side
    return pixels.reshape(count, side, count, side, 3).transpose(0, 2, 1, 3, 4).reshape(count**2, -1)


def truncated(matrix: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """How many numbers the two factors of the smallest ranks within some relative errors have."""
    values = np.linalg.svd(matrix, compute_uv=False)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / np.linalg.norm(values)
    return np.sum(tails > errors[:, None], 1) * sum(matrix.shape)


def stored(tt: tensor_train.TT) -> int:
    """How many numbers the cores have at their ranks."""
    ranks = np.asarray(tt.ranks)
    return int(np.sum(ranks[:-1] * np.array(tt.shape) * ranks[1:]))


def photograph() -> Experiment:
    """Sizes and errors of one train at several tolerances, beside singular value decompositions of two matrices."""
    top, left = ORIGIN
    pixels = load_sample_image("china.jpg")[top : top + SIDE, left : left + SIDE] / 255
    array = jnp.asarray(interleaved(pixels))
    norm = np.linalg.norm(pixels)
    relative = lambda tt: float(np.linalg.norm(restored(tt) - pixels) / norm)
    # one program for all tolerances; without one, inner products are accurate to the root of the machine epsilon
    compress = jax.jit(partial(tensor_train.from_dense, max_rank=SIDE, method="gram"))
    exact, *trains = [compress(array, eps=jnp.asarray(eps)) for eps in (0.0, *ERRORS)]
    found, size = np.array([relative(tt) for tt in trains]), np.array([stored(tt) for tt in trains])
    others = {
        "rows of pixels": truncated(pixels.reshape(SIDE, -1), found),
        "8 x 8 tiles": truncated(tiles(pixels, 8), found),
    }
    lines = [
        f"A photograph (china.jpg of scikit-learn), {SIDE} x {SIDE} pixels in three colours, {pixels.size:,} numbers,",
        "as an array [16, 16, 16, 16, 3]: a mode holds one digit, in base four, of the row and of the column. How many",
        "numbers are stored, and their share of the array; truncated SVDs of matrices at the error that the train has:",
        f"  {'tolerance':>9}{'error':>9}{'train':>17}" + "".join(f"{'SVD of ' + name:>25}" for name in others),
    ]
    share = lambda number: f"{number:,} {number / pixels.size:>6.1%}"
    for row in zip(ERRORS, found, size, *others.values(), strict=True):
        sizes = f"{share(row[2]):>17}" + "".join(f"{share(number):>25}" for number in row[3:])
        lines.append(f"  {row[0]:>9.2f}{row[1]:>9.4f}{sizes}")
    for name, other in others.items():
        lost = ", ".join(f"{error:.1%}" for error in found[other <= size])
        label = f"the SVD of {name}"
        lines.append(
            f"  {label:<25} is smaller than the train at errors of {lost}" if lost else f"  {label} never wins"
        )
    shown = trains[ERRORS.index(SHOWN)]
    ranks = ", ".join(map(str, np.asarray(shown.ranks)[1:-1]))
    lines.append(f"  the picture shows the tolerance {SHOWN}, with ranks {ranks}; the last, up to 3, is of colours")
    held = {
        "photograph: every error is within its tolerance": bool(np.all(found <= ERRORS)),
        "photograph: without a tolerance nothing is lost": relative(exact) < 1e-6,
        "photograph: at errors of 12 % and less the train is smaller than the SVD of rows of pixels": bool(
            np.all((size < others["rows of pixels"])[found <= 0.12])
        ),
    }
    curves = {"tensor train": size, **{f"SVD of {name}": other for name, other in others.items()}}
    return draw_photograph(pixels, shown, exact, found, curves), "\n".join(lines), held


def draw_photograph(
    pixels: np.ndarray,
    shown: tensor_train.TT,
    exact: tensor_train.TT,
    errors: np.ndarray,
    curves: dict[str, np.ndarray],
) -> Figure:
    """The picture and what is left of it, sizes against errors, singular values of the bonds."""
    figure, ((before, after), (curve, spectra)) = plt.subplots(2, 2, figsize=(11, 10), layout="constrained")
    titles = {
        f"the photograph: {pixels.size:,} numbers": pixels,
        f"a train of {stored(shown):,}, relative error {errors[ERRORS.index(SHOWN)]:.1%}": restored(shown),
    }
    for ax, (title, image) in zip((before, after), titles.items(), strict=True):
        ax.imshow(np.clip(image, 0, 1), interpolation="nearest")
        ax.set(title=title, xticks=(), yticks=())
    for (label, sizes), style in zip(curves.items(), ("o-", "s--", "^-."), strict=True):
        curve.loglog(sizes, errors, style, markersize=5, label=label)
    curve.axvline(pixels.size, color="0.5", linewidth=0.9, linestyle=":", label="the array itself")
    curve.set(xlabel="numbers stored", ylabel="relative error", title="size and error")
    curve.legend(fontsize="small")
    plot.singular_values(exact, threshold=SHOWN, ax=spectra)
    spectra.set_title("singular values of the train without a tolerance")
    return figure


# ------------------------------------------------------------------------------------------------ a classifier


class Grids(NamedTuple):
    """Values of the hyper-parameters, [16] each."""

    learning_rate: Array
    momentum: Array
    weight_decay: Array
    scale: Array
    """Of the initial weights."""
    smoothing: Array
    """Share of a label that is spread over all classes."""
    contrast: Array
    """Exponent of the pixels."""


class Digits(NamedTuple):
    """Images in [0, 1], labels as rows of ones and zeros, and the weights before they are scaled."""

    images: Array
    labels: Array
    validation_images: Array
    validation_labels: Array
    weights: tuple[Array, ...]


def hyper_parameters() -> Grids:
    """Learning rate, decay, scale and contrast at equal ratios, and so 1 - momentum."""
    ratios = lambda low, high: 10 ** np.linspace(low, high, LEVELS)
    values = (
        ratios(-2, 1), 1 - ratios(0, -1.7), ratios(-5, -1), ratios(-1.5, 0.5), np.linspace(0, 0.45, LEVELS),
        ratios(-0.9, 0.6),
    )  # fmt: skip
    return Grids(*(jnp.asarray(value, jnp.float32) for value in values))


def logits(weights: tuple[Array, ...], images: Array) -> Array:
    """Of a network with one hidden layer."""
    first, first_bias, second, second_bias = weights
    return jnp.tanh(images @ first + first_bias[None]) @ second + second_bias[None]


def cross_entropy(weights: tuple[Array, ...], images: Array, labels: Array) -> Array:
    """Mean over the images."""
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits(weights, images)), 1))


def train(index: Array, digits: Digits, grids: Grids) -> tuple[tuple[Array, ...], Array]:
    """Weights after some steps of gradient descent with momentum on all images, and the contrast they are made for."""
    rate, momentum, decay, scale, smoothing, contrast = (grid[i] for grid, i in zip(grids, index, strict=True))
    images = digits.images**contrast
    labels = digits.labels * (1 - smoothing) + smoothing / 10

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, velocity = carry
        slope = jax.grad(cross_entropy)(weights, images, labels)
        velocity = jax.tree.map(lambda v, g, w: momentum * v + g + decay * w, velocity, slope, weights)
        return (jax.tree.map(lambda w, v: w - rate * v, weights, velocity), velocity), None

    start = tuple(scale * weight for weight in digits.weights)
    (weights, _), _ = jax.lax.scan(step, (start, tuple(map(jnp.zeros_like, start))), None, length=EPOCHS)
    return weights, contrast


def validation_loss(index: Array, digits: Digits, grids: Grids) -> Array:
    """After training, at most 10, which is what a training that diverged gets."""
    weights, contrast = train(index, digits, grids)
    loss = cross_entropy(weights, digits.validation_images**contrast, digits.validation_labels)
    return jnp.where(jnp.isfinite(loss), jnp.minimum(loss, 10), 10)


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def search(key: Array, digits: Digits, grids: Grids) -> tensor_train.OptimizeResult:
    """PROTES, with small batches for a small budget."""
    return tensor_train.protes(
        validation_loss, (LEVELS,) * len(grids), key=key, budget=BUDGET, args=(digits, grids),
        batch=20, elite=4, steps=5,
    )  # fmt: skip


@jax.jit
def losses(indices: Array, digits: Digits, grids: Grids) -> Array:
    """Validation losses [m] at indices [m, 6]."""
    return jax.lax.map(lambda index: validation_loss(index, digits, grids), indices, batch_size=100)


@jax.jit
def accuracies(indices: Array, digits: Digits, grids: Grids, images: Array, labels: Array) -> Array:
    """Shares of images that are classified rightly, after training at indices [m, 6]."""

    def one(index: Array) -> Array:
        weights, contrast = train(index, digits, grids)
        return jnp.mean(jnp.argmax(logits(weights, images**contrast), 1) == jnp.argmax(labels, 1), dtype=jnp.float32)

    return jax.lax.map(one, indices)


def classifier() -> Experiment:
    """The best of 16^6 hyper-parameters by PROTES and by random search."""
    pixels, targets = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(targets))
    images, labels = (jnp.asarray(rows[order], jnp.float32) for rows in (pixels / 16, np.eye(10)[targets]))
    seen = TRAINED + VALIDATED
    first, second = jax.random.split(jax.random.key(0))
    weights = (
        jax.random.normal(first, (images.shape[1], HIDDEN), jnp.float32) / np.sqrt(images.shape[1]).item(),
        jnp.zeros(HIDDEN, jnp.float32),
        jax.random.normal(second, (HIDDEN, 10), jnp.float32) / np.sqrt(HIDDEN).item(),
        jnp.zeros(10, jnp.float32),
    )
    digits = Digits(images[:TRAINED], labels[:TRAINED], images[TRAINED:seen], labels[TRAINED:seen], weights)
    grids = hyper_parameters()
    result = search(jax.random.split(jax.random.key(1), SEEDS), digits, grids)
    drawn = jax.random.randint(jax.random.key(2), (SEEDS, BUDGET, len(grids)), 0, LEVELS, jnp.int32)
    values = np.asarray(losses(drawn.reshape(-1, len(grids)), digits, grids)).reshape(SEEDS, BUDGET)
    winners = np.concatenate([np.asarray(result.best_index), np.asarray(drawn)[range(SEEDS), values.argmin(1)]])
    lowest = np.concatenate([np.asarray(result.best_value), values.min(1)]).reshape(2, SEEDS)
    tested = np.asarray(accuracies(winners, digits, grids, images[seen:], labels[seen:])).reshape(2, SEEDS)
    names = ("PROTES", "random search")
    best = winners[int(np.argmin(lowest[0]))]
    chosen = [float(grid[i]) for grid, i in zip(grids, best, strict=True)]
    said = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in zip(Grids._fields, chosen, strict=True))
    lines = [
        f"A network with a hidden layer of {HIDDEN} learns {TRAINED} images of digits (scikit-learn), {EPOCHS} steps.",
        f"It has six hyper-parameters of {LEVELS} values: {LEVELS ** len(grids):,} trainings, of which a search may do "
        f"{BUDGET}.",
        f"The loss to minimize is that on {VALIDATED} other images; the test is on the {len(labels) - seen:,} left.",
        f"  {f'of {SEEDS} seeds':<18}{'validation loss: best':>22}{'median':>9}{'worst':>9}{'test: best':>13}"
        f"{'median':>9}{'worst':>9}",
    ]
    for name, loss, test in zip(names, lowest, tested, strict=True):
        best_test, median_test, worst_test = np.quantile(test, [1, 0.5, 0])
        lines.append(
            f"  {name:<18}{loss.min():>22.4f}{np.median(loss):>9.4f}{loss.max():>9.4f}{best_test:>13.1%}"
            f"{median_test:>9.1%}{worst_test:>9.1%}"
        )
    runs = np.minimum.accumulate(values, 1)
    final = np.median(lowest[1])
    caught = np.median(np.asarray(result.history), 0) <= final
    calls = BUDGET // result.history.shape[1]
    if caught.any():
        when = calls * (1 + int(caught.argmax()))
        lines.append(f"  what random search reaches in {BUDGET} trainings, PROTES reaches in {when} (medians)")
    lines += [
        f"  the winner           {said};",
        f"                       {tested[0, int(np.argmin(lowest[0]))]:.1%} of the test images are classified rightly",
    ]
    held = {
        "classifier: no search exceeds its budget": bool(np.all(np.asarray(result.num_evaluations) <= BUDGET)),
        "classifier: PROTES has the lower median loss": bool(np.median(lowest[0]) < np.median(lowest[1])),
        "classifier: it has the lower loss in most pairs of seeds": bool(
            np.mean(lowest[0][:, None] < lowest[1][None]) > 0.7
        ),
        "classifier: the best value is that of the best index": bool(
            np.allclose(losses(jnp.asarray(winners[:SEEDS]), digits, grids), lowest[0], rtol=1e-2)
        ),
        "classifier: the winner classifies nine of ten test images": bool(tested[0, int(np.argmin(lowest[0]))] > 0.9),
    }
    return draw_classifier(dict(zip(names, (result, runs), strict=True)), lowest, tested), "\n".join(lines), held


def draw_classifier(searches: dict, lowest: np.ndarray, tested: np.ndarray) -> Figure:
    """Best losses over trainings, and what they are worth on other images."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    plot.convergence(searches, labels=("trainings", "lowest validation loss so far"), ax=left)
    left.set(ylim=(0.9 * lowest.min(), 1.1), xlim=(0, BUDGET))
    for name, marker, loss, test in zip(searches, "os", lowest, tested, strict=True):
        right.plot(loss, 100 * test, marker, label=f"{name}, {SEEDS} seeds")
    right.set(
        xlabel="validation loss of the winner", ylabel="test images classified rightly (per cent)",
        title="the winners of all seeds, on other images",
    )  # fmt: skip
    right.title.set_fontsize("medium")
    right.legend(fontsize="small")
    return figure


# ------------------------------------------------------------------------------------------------ an integral


class Parameters(NamedTuple):
    """Of both integrands."""

    slopes: Array
    """[30]"""
    phase: Array
    """Of the oscillatory one, in turns."""


def integrand(x: Array, parameters: Parameters, family: Array) -> Array:
    """Genz' oscillatory function or corner peak; which one is traced, so that one program does for both."""
    total = jnp.vdot(parameters.slopes, x)
    return jnp.where(
        family == 0, jnp.cos(2 * jnp.pi * parameters.phase + total), (1 + jnp.abs(total)) ** -(x.shape[0] + 1.0)
    )


@jax.jit
def by_cross(parameters: Parameters, family: Array, tol: Array) -> tuple:
    """The integral over the unit cube, the result of the cross approximation, and the gradient of the integral."""
    nodes, weights = (jnp.asarray(part) for part in np.polynomial.legendre.leggauss(NODES))

    def value(parameters: Parameters) -> tuple[Array, tensor_train.CrossResult]:
        result = tensor_train.from_function_on(
            integrand, [(nodes + 1) / 2] * NUM_DIMENSIONS, max_rank=MAX_RANK, tol=tol, key=jax.random.key(0),
            args=(parameters, family),
        )  # fmt: skip
        return tensor_train.integrate(result.tt, [weights / 2] * NUM_DIMENSIONS), result

    (total, result), gradient = jax.value_and_grad(value, has_aux=True)(parameters)
    return total, result, gradient


def closed_form(family: int, parameters: Parameters) -> tuple[float, np.ndarray]:
    """The integral, and its gradient: [31] for slopes and phase of the oscillatory function, [30] for the corner peak.

    The corner peak has equal slopes here, and its sum cancels all digits of a float: it is exact, of fractions.
    """
    d = NUM_DIMENSIONS
    if family == 0:
        a, u = np.asarray(parameters.slopes), float(parameters.phase)
        product = np.exp(2j * np.pi * u) * np.prod((np.exp(1j * a) - 1) / (1j * a))
        by_slopes = product * (1j * np.exp(1j * a) / (np.exp(1j * a) - 1) - 1 / a)
        return product.real, np.append(by_slopes, 2j * np.pi * product).real
    a = CORNER
    terms = [(-1) ** k * comb(d, k) / (1 + k * a) for k in range(d + 1)]
    slopes = [-k * term / (1 + k * a) for k, term in enumerate(terms)]
    whole = factorial(d) * a**d
    value = sum(terms) / whole
    return float(value), np.full(d, float((sum(slopes) / whole - d * value / a) / d))


@partial(jax.jit, static_argnums=0)
def monte_carlo(num: int, parameters: Parameters, family: Array, key: Array) -> Array:
    """The mean of the integrand at random points."""
    points = jax.random.uniform(key, (num, NUM_DIMENSIONS))
    return jnp.mean(jax.vmap(integrand, (0, None, None))(points, parameters, family))


def integral() -> Experiment:
    """Both families at several tolerances, value and gradient against closed forms."""
    slopes = (np.linspace(0.2, 1.0, NUM_DIMENSIONS), np.full(NUM_DIMENSIONS, float(CORNER)))
    lines = [
        f"Integrals over the unit cube in {NUM_DIMENSIONS} dimensions, on {NODES} Gauss-Legendre nodes each: "
        f"{NODES}^{NUM_DIMENSIONS} = {float(NODES) ** NUM_DIMENSIONS:.0e} points. Genz' functions",
        "cos(2 pi u + sum a_k x_k), with slopes from 0.2 to 1, and (1 + sum a_k x_k)^-31, with slopes 0.02. Errors are",
        "relative; the gradient, with respect to all slopes (and u), is taken through the cross approximation.",
        f"  {'':<13}{'tolerance':>9}{'largest rank':>14}{'evaluations':>13}{'check error':>13}{'integral':>14}"
        f"{'its error':>11}{'gradient':>11}{'Monte Carlo':>13}",
    ]
    held, curves, last = {}, {}, {}
    for family, name in enumerate(FAMILIES):
        parameters = Parameters(jnp.asarray(slopes[family]), jnp.asarray(PHASE))
        exact, slope = closed_form(family, parameters)
        errors = []
        for tol in TOLERANCES:
            total, result, gradient = by_cross(parameters, jnp.int32(family), jnp.asarray(tol))
            found = np.append(gradient.slopes, gradient.phase)[: len(slope)]
            number = int(result.num_evaluations)
            off = np.linalg.norm(found - slope) / np.linalg.norm(slope)
            errors.append((abs(float(total) / exact - 1), float(off)))
            lines.append(
                f"  {name if tol == TOLERANCES[0] else '':<13}{tol:>9.0e}{int(jnp.max(result.ranks)):>14}{number:>13,}"
                f"{float(result.check_error):>13.1e}{float(total):>14.6e}{errors[-1][0]:>11.1e}{errors[-1][1]:>11.1e}"
            )
        keys = jax.random.split(jax.random.key(3), 4)
        guesses = [float(monte_carlo(10**6, parameters, jnp.int32(family), key)) / exact - 1 for key in keys]
        sampled = float(np.sqrt(np.mean(np.square(guesses))))
        lines[-1] += f"{sampled:>13.1e}"
        curves[name], last[name] = (np.array(errors), sampled), result
        held |= {
            f"integral, {name}: it is the closed form to 1e-9": bool(errors[-1][0] < 1e-9),
            f"integral, {name}: its gradient is that of the closed form to 1e-8": bool(errors[-1][1] < 1e-8),
            f"integral, {name}: the check at random points agrees": int(result.status) == 0,
        }
    held["integral, oscillatory: the rank is two"] = int(jnp.max(last["oscillatory"].ranks)) == 2
    lines.append("  Monte Carlo: root mean square error of a million random points, four times.")
    return draw_integral(curves, last), "\n".join(lines), held


def draw_integral(curves: dict, last: dict) -> Figure:
    """Errors over tolerances, ranks and singular values of the trains."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for color, (name, (errors, sampled)) in zip(("C0", "C1"), curves.items(), strict=True):
        left.loglog(TOLERANCES, errors[:, 0], "o-", color=color, label=f"{name}, integral")
        left.loglog(TOLERANCES, errors[:, 1], "s--", color=color, fillstyle="none", label=f"{name}, gradient")
        left.axhline(
            sampled, color=color, linewidth=0.9, linestyle=":", label=f"{name}, integral by a million random points"
        )
    left.set(xlabel="tolerance of the cross approximation", ylabel="relative error", title="errors, to closed forms")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize="small")
    plot.rank_profile({name: result.tt for name, result in last.items()}, ax=middle)
    middle.set_title(f"ranks at the tolerance {TOLERANCES[-1]:g}")
    plot.singular_values(last["corner peak"].tt, threshold=TOLERANCES[-1], ax=right)
    right.set_title("corner peak: singular values of the bonds")
    return figure
