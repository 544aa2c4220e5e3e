"""Certified rates on smooth strongly convex functions: a map, a design, optax chains, and a method that has none.

Run it with `python -m examples.certificates`; pictures go to build/gallery. The exit status is 1 if a check fails.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import ArrayLike, Bool, Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import jaxnm.first_order as fo
from jaxnm import Status

FOLDER = Path("build/gallery")
Experiment = tuple[Figure, str, dict[str, bool]]
"""A figure, text, and checks that must hold."""

MU, L = 1.0, 10.0
"""The class of the map and of the design."""
SAME = 1e-6
"""Certified rates that exceed the quadratic rate by no more count as equal to it."""
LENGTHS = range(3, 13)
"""Of the cycles that are looked for."""


def roots_of_unity_cycle(
    step: Float[ArrayLike, "*batch"],
    momentum: Float[ArrayLike, "*batch"],
    mu: Float[ArrayLike, "*batch"],
    L: Float[ArrayLike, "*batch"],
    length: int,
) -> Bool[np.ndarray, "*batch"]:
    """Whether the heavy ball cycles through the corners of a regular polygon in the plane, for some f of F(mu, L).

    As complex numbers x_{k+1} = w x_k, w = exp(2 pi i / length), so step g_k = (1 + momentum - momentum / w - w) x_k.
    Some f has these gradients if s x_k, s = (g_k / x_k - mu) / (L - mu), are gradients of a convex function with equal
    values there and a 1-Lipschitz gradient: the inequalities of `function_classes.smooth_convex`, for every pair.
    Source: Goujaud, Taylor, Dieuleveut, arXiv:2307.11291.
    """
    step, momentum, mu, L = map(np.asarray, (step, momentum, mu, L))
    turn = np.exp(2j * np.pi / length)
    s = ((1 + momentum - momentum / turn - turn) / step - mu) / (L - mu)
    jumps = [1 - turn**j for j in range(1, length)]
    slacks = [(np.conj(s) * jump).real - np.abs(s * jump) ** 2 / 2 for jump in jumps]
    return np.min(slacks, axis=0) >= 0


# ------------------------------------------------------------------------------------------------------------ a map


def rate_map(columns: int = 52, rows: int = 52) -> Experiment:
    """Certified rates of the heavy ball over its two parameters, beside those on quadratics."""
    steps, momenta = jnp.linspace(0.005, 0.4, columns), jnp.linspace(0.0, 0.95, rows)
    one = lambda step, momentum: fo.certify_rate(fo.heavy_ball(step, momentum), MU, L)
    certify = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))  # [rows, columns]
    found = jax.block_until_ready(certify(steps, momenta))

    certified, quadratic = np.asarray(found.rate), np.asarray(found.quadratic_rate)
    proved = np.asarray(found.status) == Status.OK
    lost = np.asarray(found.status) == Status.NOT_CERTIFIED
    gap = np.where(proved, certified - quadratic, np.nan)
    same = proved & (gap <= SAME)
    grid = np.meshgrid(np.asarray(steps), np.asarray(momenta))
    cycles = np.any([roots_of_unity_cycle(*grid, MU, L, length) for length in LENGTHS], axis=0)

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained", sharey=True)
    titles = ("on quadratics", "certified on all of the class", "certified less quadratic")
    for ax, rates, title in zip(axes, (quadratic, certified), titles, strict=False):
        shown = np.ma.masked_where(~(rates < 1), rates)
        mesh = ax.pcolormesh(steps, momenta, shown, cmap="viridis_r", norm=Normalize(quadratic.min(), 1))
        row, column = np.unravel_index(np.argmin(rates), rates.shape)
        label = f"best here: {rates[row, column]:.4f}"
        ax.plot(steps[column], momenta[row], "w*", markeredgecolor="k", markersize=12, label=label)
        ax.legend(loc="lower right", fontsize="small")
        ax.set_title(f"rate {title}, kappa = {L / MU:g}")
    figure.colorbar(mesh, ax=axes[:2], label="rate per iterate (grey: not below 1)")
    paint_gap(axes[2], steps, momenta, gap, same, lost & cycles, lost & ~cycles)
    for ax in axes:
        ax.set(xlabel="step size", facecolor="0.85")
    axes[0].set_ylabel("momentum")

    members = np.random.default_rng(0).choice(np.flatnonzero(proved), 8, replace=False)
    chosen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[members], found)
    verification = fo.verify(chosen)
    text = "\n".join(
        [
            f"heavy ball on F({MU:g}, {L:g}), {certified.size} pairs of step size and momentum in one call",
            f"  not stable on quadratics       {np.sum(np.asarray(found.status) == Status.NOT_STABLE):>5}",
            f"  stable there, no certificate   {lost.sum():>5}, of which {np.sum(lost & cycles)} cycle on some f",
            f"  certified                      {proved.sum():>5}, of which {same.sum()} at the quadratic rate",
            f"  largest gap {np.nanmax(gap):.4f}; best rate {certified.min():.4f}, on quadratics {quadratic.min():.4f}",
            f"  {len(members)} random members checked exactly: {verification.reason}",
        ]
    )
    checks = {
        "map: no rate below the quadratic one": bool(np.all(gap[proved] > -1e-12)),
        "map: quadratics are the worst case in a part of it": bool(0.1 < same.sum() / proved.sum() < 0.9),
        "map: no certificate where there is a cycle": not np.any(proved & cycles),
        "map: members verified": verification.valid,
    }
    return figure, text, checks


def paint_gap(
    ax: Axes, steps: Array, momenta: Array, gap: np.ndarray, same: np.ndarray, cycle: np.ndarray, unknown: np.ndarray
) -> None:
    """The gap in colors, and three regions in one color each."""
    shown = np.ma.masked_where(~(gap > SAME), gap)
    mesh = ax.pcolormesh(steps, momenta, shown, cmap="YlGnBu", norm=LogNorm(1e-4, 0.3))
    ax.figure.colorbar(mesh, ax=ax, label="certified less quadratic rate", extend="min")
    regions = {
        "equal: quadratics are the worst case": (same, "#f6d55c"),
        f"no certificate, a cycle of length {LENGTHS[0]} to {LENGTHS[-1]}": (cycle, "#b03a2e"),
        "no certificate, none of these cycles": (unknown, "#e8a49c"),
    }
    for region, color in regions.values():
        ax.pcolormesh(steps, momenta, np.ma.masked_where(~region, region.astype(float)), cmap=ListedColormap([color]))
    handles = [Patch(color=color, label=label) for label, (_, color) in regions.items()]
    ax.legend(handles=[*handles, Patch(color="0.85", label="not stable on quadratics")], loc="upper right", fontsize=7)
    ax.set_title("the difference")


# --------------------------------------------------------------------------------------------------------- a design


def descend(num_steps: int, scale: Array, start: Array) -> tuple[np.ndarray, np.ndarray, int]:
    """Adam on the certified rate of `three_parameter`; a step that loses the certificate is halved until it does not.

    Returns the parameters [num_steps + 1, 3], the rates [num_steps + 1] and the number of halvings.
    """

    @jax.jit
    @jax.value_and_grad
    def rate_of(scaled: Any) -> Array:
        alpha, beta, gamma = scaled * scale
        return fo.certify_rate(fo.three_parameter(alpha, beta, gamma), MU, L).rate

    optimizer = optax.adam(optax.exponential_decay(0.1, num_steps, 1e-4))
    path: list[Any] = [start / scale]
    state, update = optimizer.init(path[0]), jax.jit(optimizer.update)
    rate, slope = rate_of(path[0])
    rates, halvings = [rate], 0
    for _ in range(num_steps):
        change, state = update(slope, state)
        trial = optax.apply_updates(path[-1], change)
        rate, slope = rate_of(trial)
        while not rate < 1:  # a zero gradient would end the descent
            trial, halvings = jax.tree.map(lambda old, new: (old + new) / 2, path[-1], trial), halvings + 1
            rate, slope = rate_of(trial)
        path.append(trial)
        rates.append(rate)
    return np.asarray(jnp.stack(path) * scale), np.asarray(jnp.stack(rates)), halvings


def design(num_steps: int = 500) -> Experiment:
    """Step size and momenta by gradient descent through the certificate, from the heavy ball tuned to quadratics."""
    tuned = fo.optimal_heavy_ball(MU, L)
    start = jnp.array([-tuned.B[0], -tuned.A[0, 1], 0.0])
    path, rates, halvings = descend(num_steps, jnp.array([1 / L, 1.0, 1.0]), start)
    closed = 1 - (MU / L) ** 0.5
    target = fo.triple_momentum(MU, L)
    goal = np.array([-target.B[0], -target.A[0, 1], -target.C[1]])
    best = int(np.argmin(rates))
    certificate = fo.certify_rate(fo.three_parameter(*path[best].tolist()), MU, L)
    verification = fo.verify(certificate)

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    left.plot(rates, linewidth=0.9, label="certified rate")
    left.axhline(closed, color="tab:red", linewidth=0.9, label="1 - 1/sqrt(kappa)")
    left.set(xlabel="step of the design", ylabel="rate per iterate", title=f"certified rate, kappa = {L / MU:g}")
    left.legend(fontsize="small")
    middle.semilogy(rates - closed, linewidth=0.9, label="certified rate")
    middle.semilogy(np.minimum.accumulate(rates) - closed, "k--", linewidth=0.9, label="best so far")
    middle.set(xlabel="step of the design", ylabel="rate less 1 - 1/sqrt(kappa)", title="distance to triple momentum")
    middle.legend(fontsize="small")
    right.plot(path[:, 1], path[:, 2], "-", color="0.6", linewidth=0.8)
    points = right.scatter(path[:, 1], path[:, 2], c=path[:, 0], s=9, cmap="plasma")
    figure.colorbar(points, ax=right, label="step size alpha")
    right.plot(*path[0, 1:], "ks", label="start: heavy ball tuned to quadratics")
    right.plot(*goal[1:], "r*", markersize=13, markeredgecolor="k", label="triple momentum")
    right.set(xlabel="momentum beta", ylabel="extrapolation gamma", title="path of the parameters")
    right.legend(loc="upper left", fontsize="small")

    rows = [("start", path[0], rates[0]), ("designed", path[best], rates[best]), ("triple momentum", goal, closed)]
    lines = [f"{'':<18}{'alpha':>12}{'beta':>12}{'gamma':>12}{'rate':>14}"]
    lines += [f"{name:<18}" + "".join(f"{v:>12.6f}" for v in row) + f"{rate:>14.8f}" for name, row, rate in rows]
    within = lambda gap: int(np.argmax(rates - closed < gap)) if rates[best] - closed < gap else "no"
    lines += [
        f"within 1e-3 of 1 - 1/sqrt(kappa) after {within(1e-3)} steps, within 1e-4 after {within(1e-4)}",
        f"nearest: {rates[best] - closed:.1e} above it, at step {best} of {num_steps}; {halvings} halvings on the way",
        verification.reason,
    ]
    checks = {
        "design: within 1e-4 of 1 - 1/sqrt(kappa)": bool(rates[best] - closed < 1e-4),
        "design: never below it": bool(np.all(rates > closed)),
        "design: the parameters of triple momentum, to 1e-2": bool(np.max(np.abs(path[best] - goal)) < 1e-2),
        "design: verified": verification.valid,
    }
    return figure, "\n".join(lines), checks


# ---------------------------------------------------------------------------------------------------- optax chains

CURVATURES = 0.03, 1.0
CHAINS = {
    "sgd(0.7, momentum=0.35)": optax.sgd(0.7, momentum=0.35),
    "sgd(0.7, momentum=0.35, nesterov=True)": optax.sgd(0.7, momentum=0.35, nesterov=True),
    "sgd(1.0, momentum=0.7, nesterov=True)": optax.sgd(1.0, momentum=0.7, nesterov=True),
    "sgd(1.0, momentum=0.7)": optax.sgd(1.0, momentum=0.7),
    "sgd(2.0, momentum=0.7)": optax.sgd(2.0, momentum=0.7),
    "trace(0.3), trace(0.2), scale(-0.4)": optax.chain(optax.trace(0.3), optax.trace(0.2), optax.scale(-0.4)),
    "sgd(1.0, 0.7, nesterov=True), ema(0.2)": optax.chain(
        optax.sgd(1.0, momentum=0.7, nesterov=True), optax.ema(0.2, debias=False)
    ),
}
"""What is tried, with mu and L above."""
KNOWN = {
    "sgd(0.7, momentum=0.35)": 0.96708924,
    "sgd(0.7, momentum=0.35, nesterov=True)": 0.967484,
    "trace(0.3), trace(0.2), scale(-0.4)": 0.978244,
}
"""Rates found by another solver."""


def optax_chains(path: Path) -> Experiment:
    """Certificates of optimizers as they are used, the last one written to a file at `path` and read back."""
    lines = [f"{'':<40}{'states':>7}{'quadratic':>11}{'memory 0':>11}{'memory 1':>11}   proofs"]
    checks, certificates = {}, {}
    figure, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    for place, (name, optimizer) in enumerate(CHAINS.items()):
        method = fo.from_optax(optimizer).method
        states = method.B.shape[0]
        # not memory 1 for three states, which compiles for long
        memories = (0, 1) if states < 3 else (0,)
        found = certificates[name] = [fo.certify_rate(method, *CURVATURES, memory=memory) for memory in memories]
        outcomes = [fo.verify(certificate) for certificate in found]
        rates = [float(found[0].quadratic_rate), *(float(certificate.rate) for certificate in found)]
        said = ["exact" if outcome else Status(int(c.status)).name for outcome, c in zip(outcomes, found, strict=True)]
        cells = "".join(f"{rate:>11.6f}" for rate in rates) + " " * 11 * (2 - len(found))
        lines.append(f"{name:<40}{states:>7}{cells}   {', '.join(said)}")
        checks[f"{name}: verified, or no certificate"] = all(
            outcome.valid or certificate.status == Status.NOT_CERTIFIED
            for outcome, certificate in zip(outcomes, found, strict=True)
        )
        if name in KNOWN:
            checks[f"{name}: the known rate"] = abs(rates[1] - KNOWN[name]) < 2e-6
        for rate, offset, color in zip(rates, (-0.25, 0, 0.25), ("0.6", "tab:blue", "tab:orange"), strict=False):
            ax.barh(place + offset, 1 - rate, height=0.22, color=color)
    labels = {"0.6": "on quadratics", "tab:blue": "certified, memory 0", "tab:orange": "certified, memory 1"}
    ax.legend(handles=[Patch(color=color, label=label) for color, label in labels.items()], fontsize="small")
    ax.set(
        xlabel="1 - rate per iterate", title=f"mu = {CURVATURES[0]:g}, L = {CURVATURES[1]:g}; no bar: no certificate"
    )
    ax.set_yticks(range(len(CHAINS)), list(CHAINS), fontsize="small")
    ax.invert_yaxis()

    last = certificates[next(reversed(CHAINS))][0]
    fo.write_certificate(last, path)
    copy = fo.read_certificate(path)
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), copy, last)
    member = json.loads(path.read_text())["members"][0]
    lines += [
        "",
        f"the last one as a file of {path.stat().st_size} bytes, of fractions; its rate is",
        f"  {member['rate']}",
    ]
    lines.append(f"read back: {fo.verify(copy).reason}")
    checks["file: read back bit for bit, and valid"] = all(jax.tree.leaves(same)) and fo.verify(copy).valid
    return figure, "\n".join(lines), checks


# -------------------------------------------------------------------------------------------------- a counterexample


def three_cycle(start: float, num_steps: int) -> np.ndarray:
    """The heavy ball tuned to kappa = 25 on f' = 25 x | x + 24 | 25 x - 24, from rest: [num_steps + 1]."""
    slope = lambda x: 25 * x if x < 1 else (x + 24 if x < 2 else 25 * x - 24)
    iterates = [start, start]
    for _ in range(num_steps):
        x, before = iterates[-1], iterates[-2]
        iterates.append(x + 4 / 9 * (x - before) - slope(x) / 9)
    return np.array(iterates[1:])


def counterexample(most: int = 30) -> Experiment:
    """The heavy ball tuned to quadratics loses its certificate where a cycle of three points appears."""
    kappas = np.linspace(2.0, most, 4 * (most - 2) + 1)
    rates, proved = {}, {}
    for memory in (0, 1):
        # one after the other: the compiled program is that of the optax chains with two states
        found = [fo.certify_rate(fo.optimal_heavy_ball(1.0, k), 1.0, k, memory=memory) for k in kappas.tolist()]
        rates[memory] = np.array([float(certificate.rate) for certificate in found])
        proved[memory] = np.array([certificate.status == Status.OK for certificate in found])
    root = np.sqrt(kappas)
    cycles = roots_of_unity_cycle(4 / (1 + root) ** 2, ((root - 1) / (root + 1)) ** 2, 1.0, kappas, 3)
    closed = 9 + 4 * 5**0.5
    near = {k: fo.certify_rate(fo.optimal_heavy_ball(1.0, k), 1.0, k) for k in (closed - 1e-3, closed + 1e-3)}

    points = np.array([792, -2208, 2592]) / 1225
    iterates = three_cycle(3.3, 90)
    distances = np.max(np.abs(np.sort(iterates[-3:]) - np.sort(points)))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    left.plot(kappas, (root - 1) / (root + 1), color="0.5", label="on quadratics")
    for memory, style in ((0, "-"), (1, "--")):
        shown = np.where(proved[memory], rates[memory], np.nan)
        left.plot(kappas, shown, style, label=f"certified, memory {memory}")
    left.axvspan(kappas[cycles][0], most, color="tab:red", alpha=0.15, label="three-cycle on some f of the class")
    left.set(xlabel="kappa = L / mu", ylabel="rate per iterate", title="heavy ball tuned to quadratics")
    left.legend(loc="lower right", fontsize="small")
    line = np.array([-2.2, 1.0, 2.0, 2.8])
    middle.plot(line, np.interp(line, [-2.2, 1, 2, 2.8], [-55, 25, 26, 46]), label="f', slopes 1 and 25")
    middle.plot(points, [25 * points[0], 25 * points[1], 25 * points[2] - 24], "ro", label="the three points")
    middle.axhline(0, color="0.8", linewidth=0.8)
    middle.set(xlabel="x", ylabel="f'(x)", title="a function of F(1, 25)")
    middle.legend(fontsize="small")
    right.plot(iterates[:31], "o-", markersize=3, linewidth=0.8, label="heavy ball from 3.3 at rest")
    for point in points:
        right.axhline(
            point, color="r", linewidth=0.7, label="792/1225, -2208/1225, 2592/1225" if point == points[0] else ""
        )
    right.set(xlabel="iteration k", ylabel="x_k", title="kappa = 25: the iterates do not converge")
    right.legend(loc="upper right", fontsize="small")

    lines = [f"{'kappa':>7}{'quadratic':>12}{'memory 0':>12}{'memory 1':>12}   three-cycle"]
    for k in (2, 6, 10, 14, 17, 18, 25, 30):
        i = int(np.argmin(np.abs(kappas - k)))
        shown = [f"{rates[m][i]:.6f}" if proved[m][i] else "none" for m in (0, 1)]
        quadratic = (root[i] - 1) / (root[i] + 1)
        lines.append(f"{k:>7}{quadratic:>12.6f}{shown[0]:>12}{shown[1]:>12}   {'yes' if cycles[i] else 'no'}")
    lines += [f"kappa = 9 + 4 sqrt(5) {k - closed:+.3f}: {Status(int(c.status)).name}" for k, c in near.items()]
    lines.append(
        f"kappa = 25, x_0 = 3.3: after 90 steps the last three iterates are within {distances:.0e} of the cycle"
    )
    checks = {
        "counterexample: certified exactly where there is no three-cycle": bool(np.all(proved[0] == ~cycles)),
        "counterexample: memory 1 agrees": bool(np.all(proved[1] == ~cycles)),
        "counterexample: memory 1 is never worse": bool(np.all(rates[1] <= rates[0] + 1e-7)),
        "counterexample: lost at 9 + 4 sqrt(5)": [int(c.status) for c in near.values()] == [0, Status.NOT_CERTIFIED],
        "counterexample: the cycle": bool(distances < 1e-9),
    }
    return figure, "\n".join(lines), checks


def main() -> int:
    """Run all four; 0 if all checks hold, else 1."""
    jax.config.update("jax_enable_x64", True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checks: dict[str, bool] = {}
    for name, experiment in {
        "certificates_map": rate_map,
        "certificates_design": design,
        "certificates_optax": partial(optax_chains, FOLDER / "certificate.json"),
        "certificates_counterexample": counterexample,
    }.items():
        begin = time.perf_counter()
        figure, text, held = experiment()
        figure.savefig(FOLDER / f"{name}.png", dpi=120)
        plt.close(figure)
        print(f"{text}\n  picture: {FOLDER / name}.png, {time.perf_counter() - begin:.0f} s\n", flush=True)
        checks |= held
    for name in (name for name, held in checks.items() if not held):
        print(f"FAILED: {name}")
    print(f"{sum(checks.values())} of {len(checks)} checks hold; {time.perf_counter() - started:.0f} s")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
