"""How a benchmark is measured: contenders prepared apart, timed in turn, compared in one metric."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHORTEST_SAMPLE = 0.02  # seconds: a faster call is repeated within its sample, and the mean is taken
_FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case: ours or a peer's."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    jitted: bool = False
    """Whether `function` is compiled by `jax.jit` before it is timed; otherwise it is called as it is."""
    module: str | None = None
    """The module it needs; without it the row says "not installed"."""
    subset: tuple[int, int] | None = None
    """(done, total): it does only so many members of the work, and its times are scaled up. The row says so."""
    apart: bool = False
    """A yardstick, no peer: timed after the others with nothing between its calls, and the fastest call counts."""


@dataclass(frozen=True)
class Case:
    """The same work for ours and for each peer, and what their answers are held to."""

    name: str
    description: str
    ours: Contender
    peers: tuple[Contender, ...]
    error: Callable[[Any], float]
    """Error of an answer (a pytree of NumPy arrays, perhaps of a subset): one metric for every contender."""
    metric: str
    tolerance: float
    """A row is refused when either error is above it."""
    target_ratios: dict[str, float] = field(default_factory=dict)
    """The least (peer time / our time) wanted, by the name of the peer."""
    cpu_limit: float | None = None
    """The most CPU seconds that one call of ours may take after compilation."""
    flops: float = 0.0
    """The fewest additions and multiplications that our algorithm needs, for the floor; 0 where it is not simple."""
    rounds: int = 9
    seconds: float = 8.0
    """The rounds end early, after three at least, when they have taken this long."""


@dataclass(frozen=True)
class Prepared:
    """A contender that is compiled and warm."""

    call: Callable[[], Any]
    calls: int
    scale: float
    error: float
    compile_seconds: float | None
    temporary_bytes: int | None
    traces: int | None
    moved_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the table: ours beside one peer. Seconds are medians a call, scaled where `scaled` says so."""

    case: str
    peer: str
    verdict: str
    """ok, refused, not installed or failed."""
    ratio: float | None = None
    cpu_ratio: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peer_seconds: float | None = None
    peer_cpu_seconds: float | None = None
    error: float | None = None
    peer_error: float | None = None
    compile_seconds: float | None = None
    peer_compile_seconds: float | None = None
    temporary_bytes: int | None = None
    peer_temporary_bytes: int | None = None
    traces: int | None = None
    rounds: int | None = None
    target: str = ""
    scaled: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a case gave: its rows, and the floor under our time."""

    case: str
    description: str
    metric: str
    tolerance: float
    rows: tuple[Row, ...]
    moved_bytes: int
    flops: float
    copy_seconds: float
    """One jitted call that copies as many bytes as our inputs and outputs hold."""
    arithmetic_seconds: float
    """`flops` at the measured rate of a large matrix product, the best that the device does."""
    times_floor: float
    """Our time over the larger of the two."""


def measure(case: Case) -> Outcome:
    """Run a case: prepare every contender, time them in turn, compare their answers."""
    ours = _prepare(case.ours, case.error)
    installed = {peer.name: _prepare(peer, case.error) for peer in case.peers if _is_installed(peer)}
    apart = {peer.name for peer in case.peers if peer.apart}
    in_turn = {case.ours.name: ours} | {name: peer for name, peer in installed.items() if name not in apart}
    samples = _interleave(list(in_turn.values()), case.rounds, case.seconds)
    times = dict(zip(in_turn, samples, strict=True))
    for name in installed.keys() & apart:
        (alone,) = _interleave([installed[name]], 4 * case.rounds, case.seconds)
        times[name] = [min(alone)] * len(samples[0])
    rows = tuple(
        _compare(case, ours, times[case.ours.name], peer, installed[peer.name], times[peer.name])
        if peer.name in installed
        else Row(case.name, peer.name, "not installed", **_our_figures(ours, times[case.ours.name]))
        for peer in case.peers
    )
    copy = _copy_seconds(ours.moved_bytes)
    arithmetic = case.flops / _arithmetic_rate() if case.flops else 0.0
    return Outcome(
        case=case.name,
        description=case.description,
        metric=case.metric,
        tolerance=case.tolerance,
        rows=rows,
        moved_bytes=ours.moved_bytes,
        flops=case.flops,
        copy_seconds=copy,
        arithmetic_seconds=arithmetic,
        times_floor=statistics.median(wall for wall, _ in times[case.ours.name]) / max(copy, arithmetic),
    )


def _is_installed(contender: Contender) -> bool:
    return contender.module is None or importlib.util.find_spec(contender.module) is not None


def _prepare(contender: Contender, error: Callable[[Any], float]) -> Prepared:
    compile_seconds = temporary_bytes = traces = None
    if contender.jitted:
        counted = 0

        def traced(*arguments: Any) -> Any:
            nonlocal counted
            counted += 1
            return contender.function(*arguments)

        jitted = jax.jit(traced)
        start = time.perf_counter()
        compiled = jitted.lower(*contender.arguments).compile()
        compile_seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        temporary_bytes = None if memory is None else int(memory.temp_size_in_bytes)
        # the same call with other values must not trace again
        jax.block_until_ready(jitted(*contender.arguments))
        jax.block_until_ready(jitted(*jax.tree.map(_halved, contender.arguments)))
        traces = counted
        function = compiled
    else:
        function = contender.function

    def call() -> Any:
        return jax.block_until_ready(function(*contender.arguments))

    answer = jax.tree.map(np.asarray, call())
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    done, total = contender.subset or (1, 1)
    return Prepared(
        call=call,
        calls=max(1, round(_SHORTEST_SAMPLE / max(once, 1e-7))),
        scale=total / done,
        error=float(error(answer)),
        compile_seconds=compile_seconds,
        temporary_bytes=temporary_bytes,
        traces=traces,
        moved_bytes=sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((contender.arguments, answer))),
    )


def _halved(leaf: Any) -> Any:
    """Half of a number; integers and booleans (pivots, masks) as they are."""
    return leaf / 2 if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf


def _interleave(contenders: list[Prepared], rounds: int, seconds: float) -> list[list[tuple[float, float]]]:
    """(wall, CPU) seconds a call, one list a contender; in every round each contender has its turn."""
    samples: list[list[tuple[float, float]]] = [[] for _ in contenders]
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= _FEWEST_ROUNDS and time.perf_counter() - begin > seconds:
            break
        for contender, list_of_samples in zip(contenders, samples, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(contender.calls):
                contender.call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            factor = contender.scale / contender.calls
            list_of_samples.append((wall * factor, cpu * factor))
    return samples


def _our_figures(ours: Prepared, times: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(wall for wall, _ in times),
        "cpu_seconds": statistics.median(cpu for _, cpu in times),
        "error": ours.error,
        "compile_seconds": ours.compile_seconds,
        "temporary_bytes": ours.temporary_bytes,
        "traces": ours.traces,
        "rounds": len(times),
    }


def _compare(
    case: Case,
    ours: Prepared,
    our_times: list[tuple[float, float]],
    contender: Contender,
    peer: Prepared,
    peer_times: list[tuple[float, float]],
) -> Row:
    scaled = "scaled from {:,} of {:,}".format(*contender.subset) if contender.subset else ""
    figures = _our_figures(ours, our_times) | {"peer_error": peer.error, "scaled": scaled}
    # written so that a NaN refuses the row
    if not (ours.error <= case.tolerance and peer.error <= case.tolerance):
        return Row(case.name, contender.name, "refused", **figures)
    ratio = statistics.median(theirs[0] / mine[0] for theirs, mine in zip(peer_times, our_times, strict=True))
    targets = []
    if contender.name in case.target_ratios:
        least = case.target_ratios[contender.name]
        targets.append(f"ratio >= {least:g}: {_met(ratio >= least)}")
    if case.cpu_limit is not None:
        targets.append(f"our CPU < {case.cpu_limit:g} s: {_met(figures['cpu_seconds'] < case.cpu_limit)}")
    return Row(
        case.name,
        contender.name,
        "ok",
        ratio=ratio,
        cpu_ratio=statistics.median(theirs[1] / mine[1] for theirs, mine in zip(peer_times, our_times, strict=True)),
        peer_seconds=statistics.median(wall for wall, _ in peer_times),
        peer_cpu_seconds=statistics.median(cpu for _, cpu in peer_times),
        peer_compile_seconds=peer.compile_seconds,
        peer_temporary_bytes=peer.temporary_bytes,
        target="; ".join(targets),
        **figures,
    )


def _met(condition: bool) -> str:
    return "met" if condition else "NOT met"


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls: a floor wants the best that the machine does, not the usual."""
    jax.block_until_ready(call())
    durations = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(call())
        durations.append(time.perf_counter() - start)
    return min(durations)


def _copy_seconds(moved_bytes: int) -> float:
    """Seconds of one jitted call that reads and writes `moved_bytes` in total."""
    array = jnp.zeros(max(1, moved_bytes // 16), jnp.float64)
    negative = jax.jit(jnp.negative)
    return _fastest(lambda: negative(array))


@functools.cache
def _arithmetic_rate() -> float:
    """Flops a second of a jitted product of two large matrices on the default device, in double precision."""
    size = 1024
    matrix = jnp.ones((size, size), jnp.float64)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / _fastest(lambda: product(matrix, matrix))
