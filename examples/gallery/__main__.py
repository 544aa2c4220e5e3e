"""Runs every experiment, prints what it showed and writes its figure; the exit status is 1 if a check fails."""

import sys
import time
from pathlib import Path

import jax
from matplotlib import pyplot as plt

from examples.gallery import cycles, exponential, flat_modes_and_precision, other_parameters, quadratics, rosenbrock

FOLDER = Path("build/gallery")


def main() -> int:
    """Run every experiment; 0 if all checks hold, else 1."""
    jax.config.update("jax_enable_x64", True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checks: dict[str, bool] = {}
    for experiment in (quadratics, flat_modes_and_precision, other_parameters, cycles, rosenbrock, exponential):
        figure, text, held = experiment()
        heading, path = str(experiment.__doc__), FOLDER / f"{experiment.__name__}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        print(f"\n{heading}\n{'=' * len(heading)}\n\n{text}\n\nfigure: {path}", flush=True)
        checks |= held
    failed = [name for name, holds in checks.items() if not holds]
    for name in failed:
        print(f"FAILED: {name}")
    print(f"\n{len(checks) - len(failed)} of {len(checks)} checks hold; {time.perf_counter() - started:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
