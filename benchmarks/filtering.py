"""Cases: particle filters on a linear-Gaussian record, resampling, and a training step of a particle cell."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.protocol import Case, Contender

_RHO, _SX, _SY = 0.9, 1.0, 0.2
_LENGTH = 100
_SYSTEM = (
    f"x_t = {_RHO} x_t-1 + N(0, {_SX:g}^2), y_t = x_t + N(0, {_SY}^2), x_0 ~ N(0, {_SX:g}^2), {_LENGTH} observations"
)
# beyond this many standard deviations an answer is wrong: once in 5e8 calls if it is normal
_DEVIATIONS = 6
_SEEDS = 8


class _Record(NamedTuple):
    """Observations of the linear-Gaussian system, and what the Kalman filter and smoother know of them."""

    observations: np.ndarray
    """[T], float32."""
    log_evidence: float
    score: np.ndarray
    """[3], the derivative of the log-evidence in (rho, sx, sy)."""
    variance: float
    """N times the variance of the log-evidence of a bootstrap filter that resamples at every step, multinomially."""

    def tolerance(self, num: int) -> float:
        """What the error of a log-evidence from `num` particles stays below."""
        variance = self.variance / num
        return _DEVIATIONS * math.sqrt(variance) + variance / 2


@cache
def _record() -> _Record:
    from jaxnm.filtering import LinearGaussianModel, kalman_filter, kalman_smoother, simulate_linear_gaussian

    def linear(parameters: jax.Array) -> LinearGaussianModel:
        rho, sx, sy = (parameter.reshape(1, 1) for parameter in parameters)
        return LinearGaussianModel(jnp.zeros(1), sx**2, rho, sx**2, jnp.ones((1, 1)), sy**2)

    def log_evidence(parameters: jax.Array) -> jax.Array:
        return kalman_filter(linear(parameters), rounded).log_evidence

    parameters = jnp.array([_RHO, _SX, _SY])
    rounded = simulate_linear_gaussian(jax.random.key(3), linear(parameters), _LENGTH)[1]
    rounded = rounded.astype(jnp.float32).astype(parameters.dtype)
    filtered = kalman_filter(linear(parameters), rounded)
    smoothed = kalman_smoother(linear(parameters), rounded)
    # the integrals of smoothing density^2 / predictive density, less one, over time (Del Moral 2004, section 9.4)
    before, after = filtered.predicted_covariances[:, 0, 0], smoothed.covariances[:, 0, 0]
    apart = (smoothed.means - filtered.predicted_means)[:, 0]
    rest = 2 * before - after
    terms = before / jnp.sqrt(after * rest) * jnp.exp(apart**2 / rest) - 1
    return _Record(
        observations=np.asarray(rounded[:, 0], np.float32),
        log_evidence=float(filtered.log_evidence),
        score=np.asarray(jax.grad(log_evidence)(parameters)),
        variance=float(jnp.sum(terms)),
    )


def _arguments(record: _Record) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A seed, the parameters (rho, sx, sy), and the observations."""
    return jnp.uint32(1), jnp.array([_RHO, _SX, _SY], jnp.float32), jnp.asarray(record.observations)


def _sample_initial(parameters: jax.Array, key: jax.Array, num: int) -> jax.Array:
    return parameters[1] * jax.random.normal(key, (num,), parameters.dtype)


def _sample_transition(parameters: jax.Array, key: jax.Array, x: jax.Array, *_: Any) -> jax.Array:
    return parameters[0] * x + parameters[1] * jax.random.normal(key, x.shape, x.dtype)


def _log_likelihood(parameters: jax.Array, x: jax.Array, y: jax.Array, *_: Any) -> jax.Array:
    return -0.5 * ((y - x) / parameters[2]) ** 2 - jnp.log(parameters[2]) - 0.5 * math.log(2 * math.pi)


def _ours(seed: jax.Array, parameters: jax.Array, observations: jax.Array, num: int, checkpoint: bool = False) -> Any:
    """The log-evidence by `particle_filter`."""
    from jaxnm.filtering import StateSpaceModel, particle_filter

    model = StateSpaceModel(
        sample_initial=Partial(_sample_initial, parameters),
        sample_transition=Partial(_sample_transition, parameters),
        log_likelihood=Partial(_log_likelihood, parameters),
    )
    key = jax.random.key(seed)
    return particle_filter(key, model, observations, num_particles=num, checkpoint=checkpoint).log_evidence


def _cuthbert(seed: jax.Array, parameters: jax.Array, observations: jax.Array, num: int, score: bool = False) -> Any:
    """The log-evidence by cuthbert, whose first observation belongs to the first move: from 0, which gives our x_0."""
    from cuthbert.filtering import filter as run
    from cuthbert.smc.particle_filter import build_filter
    from cuthbertlib.resampling import systematic
    from cuthbertlib.resampling.adaptive import ess_decorator
    from cuthbertlib.resampling.autodiff import stop_gradient_decorator

    resampling = stop_gradient_decorator(systematic.resampling) if score else systematic.resampling
    # its own arrays have the default dtype, which makes it float32 throughout
    with jax.enable_x64(False):
        filtering = build_filter(
            init_sample=lambda key: jnp.zeros((), parameters.dtype),
            propagate_sample=lambda key, state, model_inputs: _sample_transition(parameters, key, state),
            log_potential=lambda state_prev, state, model_inputs: _log_likelihood(parameters, state, model_inputs),
            n_filter_particles=num,
            resampling_fn=ess_decorator(resampling, 0.5),
        )
        start, rest = jax.random.split(jax.random.key(seed))
        states = run(filtering, observations, filtering.init_prepare(key=start), key=rest)
        return states.log_normalizing_constant[-1]


def _particles(observations: np.ndarray, num: int, filters: int | None = None) -> np.ndarray:
    """The log-evidence by the package particles, in float64, without its summaries; by a loop for several filters."""
    from particles import SMC
    from particles.kalman import LinearGauss
    from particles.state_space_models import Bootstrap

    def one() -> float:
        model = Bootstrap(ssm=LinearGauss(rho=_RHO, sigmaX=_SX, sigmaY=_SY, sigma0=_SX), data=observations)
        smc = SMC(fk=model, N=num, resampling="systematic", ESSrmin=0.5, collect="off")
        smc.run()
        return smc.logLt

    return np.asarray(one() if filters is None else [one() for _ in range(filters)])


def _evidence_case(
    name: str, what: str, contenders: tuple[Contender, ...], num: int, targets: dict[str, float], rounds: int
) -> Case:
    record = _record()
    ours, *peers = contenders
    return Case(
        name=name,
        description=f"the log-evidence of {_SYSTEM}, by {what}, systematic resampling where the effective sample size "
        "is below N / 2; ours and cuthbert in float32, particles in float64; what is not needed for the evidence the "
        "compiler may leave out of both",
        ours=ours,
        peers=tuple(peers),
        error=lambda answer: float(np.max(np.abs(answer - record.log_evidence))),
        metric=f"largest |log-evidence - Kalman's|; the tolerance is {_DEVIATIONS} standard deviations and half a "
        "variance, by the asymptotic variance of a filter that resamples multinomially at every step, in closed form",
        tolerance=record.tolerance(num),
        target_ratios=targets,
        rounds=rounds,
    )


def bootstrap(num: int, rounds: int = 9) -> Case:
    """One bootstrap filter."""
    arguments = _arguments(_record())
    contenders = (
        Contender("ours", partial(_ours, num=num), arguments, jitted=True),
        Contender("particles", partial(_particles, num=num), arguments[2:], module="particles"),
        Contender("cuthbert", partial(_cuthbert, num=num), arguments, jitted=True, module="cuthbert"),
    )
    name = f"filter-bootstrap-1e{round(math.log10(num))}"
    what = f"a bootstrap filter with {num:,} particles"
    return _evidence_case(name, what, contenders, num, {"particles": 1, "cuthbert": 1}, rounds)


def batched(filters: int, num: int) -> Case:
    """Many filters by vmap."""
    _, parameters, observations = _arguments(_record())
    arguments = jnp.arange(filters, dtype=jnp.uint32), parameters, observations
    over_seeds = partial(jax.vmap, in_axes=(0, None, None))
    loop = partial(_particles, num=num, filters=filters)
    contenders = (
        Contender("ours, vmap", over_seeds(partial(_ours, num=num)), arguments, jitted=True),
        Contender("cuthbert, vmap", over_seeds(partial(_cuthbert, num=num)), arguments, jitted=True, module="cuthbert"),
        Contender("particles, a loop", loop, (observations,), module="particles"),
    )
    what = f"{filters} bootstrap filters with {num:,} particles each"
    return _evidence_case(f"filter-vmap-{filters}x1e3", what, contenders, num, {"cuthbert, vmap": 5}, 9)


def _searchsorted(seed: jax.Array, log_weights: jax.Array, method: str) -> jax.Array:
    """Systematic resampling as it is usually written."""
    num = log_weights.shape[0]
    sums = jnp.cumsum(jnp.exp(log_weights - jnp.max(log_weights)))
    offset = jax.random.uniform(jax.random.key(seed), (), log_weights.dtype)
    positions = (jnp.arange(num, dtype=log_weights.dtype) + offset) * (sums[-1] / num)
    return jnp.minimum(jnp.searchsorted(sums, positions, method=method), num - 1)


def _cuthbertlib(seed: jax.Array, log_weights: jax.Array) -> jax.Array:
    from cuthbertlib.resampling import systematic

    with jax.enable_x64(False):
        key = jax.random.key(seed)
        return systematic.resampling(key, log_weights, log_weights, log_weights.shape[0])[0]


def _particles_systematic(log_weights: np.ndarray) -> np.ndarray:
    from particles import resampling

    return resampling.resampling("systematic", resampling.exp_and_normalise(log_weights))


def systematic(num: int) -> Case:
    """Systematic resampling of one cloud."""
    from jaxnm.filtering import resample

    log_weights = (4 * np.log(np.random.default_rng(0).exponential(size=num))).astype(np.float32)
    weights = np.exp(log_weights.astype(np.float64))
    expected = num * weights / weights.sum()
    arguments = jnp.uint32(1), jnp.asarray(log_weights)

    def ours(seed: jax.Array, log_weights: jax.Array) -> tuple[jax.Array]:
        return (resample(jax.random.key(seed), log_weights),)

    def error(answer: Any) -> float:
        (ancestors,) = answer if isinstance(answer, tuple) else (answer,)
        largest = np.abs(np.bincount(ancestors, minlength=num) - expected).max()
        # ours, which comes in a tuple, is held to what it promises
        return float("inf") if isinstance(answer, tuple) and largest > 1.001 else float(largest)

    return Case(
        name=f"resample-systematic-1e{round(math.log10(num))}",
        description=f"systematic resampling of {num:,} particles from log-weights, w = Exp(1)^4, in float32; particles "
        "in float64",
        ours=Contender("ours", ours, arguments, jitted=True),
        peers=(
            *(
                Contender(f"jnp.searchsorted, {method}", partial(_searchsorted, method=method), arguments, jitted=True)
                for method in ("scan", "scan_unrolled", "sort")
            ),
            Contender("cuthbertlib", _cuthbertlib, arguments, jitted=True, module="cuthbertlib"),
            Contender("particles", _particles_systematic, (log_weights.astype(float),), module="particles"),
        ),
        error=error,
        metric="max |N_i - N w_i|, weights in float64; exact arithmetic gives at most 1, and ours is refused above "
        "1.001; the tolerance leaves room for N^2 eps / 2, what adding up N weights in float32 may lose at worst, so "
        "that the rows of such peers show it",
        tolerance=1 + num**2 * float(np.finfo(np.float32).eps) / 2,
        rounds=5,
    )


def score(num: int) -> Case:
    """The derivative of the log-evidence."""
    record = _record()
    arguments = _arguments(record)

    def ours(*arguments: Any, checkpoint: bool) -> jax.Array:
        return jax.grad(partial(_ours, num=num, checkpoint=checkpoint), 1)(*arguments)

    def cuthbert(*arguments: Any) -> jax.Array:
        return jax.grad(partial(_cuthbert, num=num, score=True), 1)(*arguments)

    seeds, many = jnp.arange(_SEEDS, dtype=jnp.uint32) + 100, jax.jit(partial(ours, checkpoint=True))
    spread = np.std([many(seed, *arguments[1:]) for seed in seeds], axis=0, ddof=1)

    def error(answer: Any) -> float:
        return float(np.max(np.abs(answer - record.score) / spread)) if answer.shape else 0.0

    alone, kept = "ours, the log-evidence alone", "ours, every cloud kept"
    return Case(
        name=f"filter-gradient-1e{round(math.log10(num))}",
        description=f"the score in (rho, sx, sy) of {_SYSTEM}, by a bootstrap filter with {num:,} particles in float32 "
        "and stop-gradient resampling; ours with checkpoint=True; 1 / ratio to the log-evidence alone is the cost in "
        "filters",
        ours=Contender("ours", partial(ours, checkpoint=True), arguments, jitted=True),
        peers=(
            Contender("cuthbert", cuthbert, arguments, jitted=True, module="cuthbert"),
            Contender(kept, partial(ours, checkpoint=False), arguments, jitted=True),
            Contender(alone, partial(_ours, num=num), arguments, jitted=True),
        ),
        error=error,
        metric=f"largest |score - Kalman's| over its standard deviation, by {_SEEDS} other seeds of ours; 0 for the "
        "log-evidence alone",
        tolerance=_DEVIATIONS,
        rounds=5,
    )


class _Training(NamedTuple):
    """A cell and a batch of trajectories."""

    graphdef: Any
    params: Any
    inputs: np.ndarray
    """[T, B, 9]."""
    poses: np.ndarray
    """[T, B, 3]."""
    size: np.ndarray
    particles: int


def _training() -> _Training:
    from flax import nnx

    from jaxnm.filtering import PFGRUCell

    random, length, batch = np.random.default_rng(0), 50, 100
    inputs = random.normal(size=(length, batch, 9)).astype(np.float32)
    poses = random.uniform(size=(length, batch, 3)) * np.array([10, 10, 2 * np.pi])
    size = np.array([10, 10], np.float32)
    graphdef, params = nnx.split(PFGRUCell(9, rngs=nnx.Rngs(0)))
    return _Training(graphdef, params, inputs, poses.astype(np.float32), size, 30)


def _loss(graphdef: Any, particles: int, checkpoint: bool) -> Callable[..., jax.Array]:
    from jaxnm.filtering import localization_loss, unroll

    def loss(params: Any, seed: jax.Array, inputs: jax.Array, poses: jax.Array, size: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        output = unroll(graphdef, params, inputs, key, num_particles=particles, checkpoint=checkpoint)
        return localization_loss(output.mean, poses, size)

    return loss


class _TorchStep:
    """The same cell, loss and gradient in PyTorch, by the equations of `PFGRUCell`, with the same initial weights."""

    def __init__(self, training: _Training):
        import torch

        # in the order of the leaves of `params`, so that gradients compare
        paths, self.structure = jax.tree.flatten_with_path(training.params)
        names = [".".join(str(getattr(part, "key", part)) for part in path[:2]) for path, _ in paths]
        self.leaves = [torch.tensor(np.asarray(leaf), requires_grad=True) for _, leaf in paths]
        self.weights = dict(zip(names, self.leaves, strict=True))
        self.inputs, self.poses, self.size = map(torch.tensor, (training.inputs, training.poses, training.size))
        self.particles, self.alpha = training.particles, 0.5

    def __call__(self) -> tuple[np.ndarray, list[np.ndarray]]:
        import torch

        loss = self.loss(self.inputs, self.poses)
        gradient = torch.autograd.grad(loss, self.leaves)
        return loss.detach().numpy(), [part.numpy() for part in gradient]

    def linear(self, layer: str, *parts: Any) -> Any:
        """The layer on its parts put side by side; the kernels of flax are [inputs, outputs]."""
        import torch

        return torch.cat(parts, -1) @ self.weights[f"{layer}.kernel"] + self.weights[f"{layer}.bias"]

    def step(self, hidden: Any, log_weights: Any, inputs: Any, noise: Any, choose: Callable[[Any], Any]) -> Any:
        """Particles [B, K, h] and log-weights [B, K] after one step."""
        import torch
        from torch.nn import functional

        batch, particles, width = hidden.shape
        spread = lambda x: functional.leaky_relu(x)[:, None].expand(batch, particles, -1)
        observed, drive = spread(self.linear("observation", inputs)), spread(self.linear("input", inputs))
        update, reset = torch.sigmoid(self.linear("gates", hidden, drive)).chunk(2, -1)
        mean, deviation = self.linear("candidate", reset * hidden, drive).chunk(2, -1)
        proposal = mean + functional.softplus(deviation) * noise
        scale, shift = self.weights["norm.scale"], self.weights["norm.bias"]
        proposal = functional.leaky_relu(functional.layer_norm(proposal, (width,), scale, shift, eps=1e-6))
        hidden = (1 - update) * proposal + update * hidden
        log_weights = torch.log_softmax(log_weights + self.linear("weight", hidden, observed)[..., 0], -1)
        mixture = self.alpha * torch.exp(log_weights) + (1 - self.alpha) / particles
        ancestors = choose(mixture.detach())
        hidden = hidden.gather(1, ancestors[..., None].expand(-1, -1, width))
        return hidden, torch.log_softmax((log_weights - torch.log(mixture)).gather(1, ancestors), -1)

    def loss(self, inputs: Any, poses: Any) -> Any:
        """The localization loss of inputs [T, B, features]."""
        import torch

        shape = (inputs.shape[1], self.particles, len(self.weights["norm.scale"]))
        hidden, log_weights = torch.randn(shape), torch.full(shape[:2], -math.log(self.particles))
        draw = partial(torch.multinomial, num_samples=self.particles, replacement=True)
        means = []
        for row in inputs:
            hidden, log_weights = self.step(hidden, log_weights, row, torch.randn(shape), draw)
            mean = (torch.exp(log_weights)[..., None] * hidden).sum(1)
            means.append(torch.sigmoid(self.linear("head", mean)))
        prediction = torch.stack(means)
        squares = ((prediction[..., :2] - poses[..., :2] / self.size) ** 2).sum(-1)
        turned = 4 * torch.sin(math.pi * prediction[..., 2] - poses[..., 2] / 2) ** 2
        times = torch.softmax(0.001 * torch.arange(len(inputs)), 0)
        return (times[:, None] * (squares + 0.1 * turned)).sum() / len(inputs[0])


def print_peak_growth() -> None:
    """Print by how many bytes one training step in PyTorch raises the peak memory of this process."""
    step = _TorchStep(_training())
    step.loss(step.inputs[:1], step.poses[:1]).backward()  # loads what is loaded at the first call
    before = _peak()
    step()
    print(_peak() - before)


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # unlike the next one not inherited from the process that started this one
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _torch_memory() -> str:
    """What a step in PyTorch needs, measured in a process of its own."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        return ""
    program = "from benchmarks.filtering import print_peak_growth; print_peak_growth()"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return f"; one step in PyTorch raises the peak memory of a process of its own by {int(printed) / 1e6:.0f} MB"


def training_step() -> Case:
    """Value and gradient of the loss of a particle-filter GRU over a batch of sequences."""
    training = _training()
    length, batch, features = training.inputs.shape
    particles, hidden = training.particles, 64
    data = [jnp.asarray(array) for array in (training.inputs, training.poses, training.size)]

    def ours(checkpoint: bool) -> Callable[..., Any]:
        return jax.value_and_grad(_loss(training.graphdef, particles, checkpoint))

    reference = jax.jit(ours(True))
    answers = [reference(training.params, jnp.uint32(seed), *data) for seed in range(100, 100 + _SEEDS)]
    losses = np.array([value for value, _ in answers])
    flat = lambda gradient: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    slopes = np.stack([flat(gradient) for _, gradient in answers])
    # the distance of one draw from the mean of the others
    away = math.sqrt(np.var(slopes, axis=0, ddof=1).sum() * (1 + 1 / _SEEDS))

    def error(answer: Any) -> float:
        value, gradient = answer
        of_slope = np.linalg.norm(flat(gradient) - slopes.mean(0)) / away
        return float(max(abs(value - losses.mean()) / losses.std(ddof=1), of_slope))

    arguments = training.params, jnp.uint32(1), *data
    torch_name = "PyTorch, same cell"
    return Case(
        name="pfgru-training-step",
        description=f"value and gradient of the localization loss of PFGRUCell, {batch} sequences of {length} steps, "
        f"{particles} particles of {hidden} features, {features} inputs, float32; ours with "
        f"checkpoint=True{_torch_memory()}",
        ours=Contender("ours", ours(True), arguments, jitted=True),
        peers=(
            Contender(torch_name, _later(_TorchStep, training), (), module="torch"),
            Contender("ours, every step kept", ours(False), arguments, jitted=True),
        ),
        error=error,
        metric=f"the larger of |loss - mean of ours over {_SEEDS} other seeds| in standard deviations of these, and "
        "the distance of the gradient from their mean gradient over its root mean square",
        tolerance=_DEVIATIONS,
        target_ratios={torch_name: 2},
        # two products a particle and step and one for its weight; the gradient takes twice as much again
        flops=3 * 2.0 * length * batch * particles * (4 * hidden * hidden + hidden),
        rounds=5,
    )


def _later(make: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """What `make` gives, made at the first call: its module may not be installed."""
    made = cache(lambda: make(*arguments))
    return lambda: made()()


CASES: dict[str, Callable[[], Case]] = {
    "filter-bootstrap-1e3": partial(bootstrap, 1_000),
    "filter-bootstrap-1e4": partial(bootstrap, 10_000),
    "filter-bootstrap-1e5": partial(bootstrap, 100_000, rounds=5),
    "filter-bootstrap-1e6": partial(bootstrap, 1_000_000, rounds=2),
    "filter-vmap-50x1e3": partial(batched, 50, 1_000),
    "filter-gradient-1e4": partial(score, 10_000),
    **{f"resample-systematic-1e{e}": partial(systematic, 10**e) for e in (4, 5, 6)},
    "pfgru-training-step": training_step,
}
