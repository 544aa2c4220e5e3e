"""The tour: what jaxnm answers on real data, chapter by chapter. Run it with `make tour`.

Every prediction is checked against what was observed. The exit status is 1 if a check fails.
"""

import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from examples import certified_rates, compressed_arrays, hidden_states, optimizer_rates, stokes_flow

FOLDER = Path("build/tour")
CHAPTERS = {
    "What rate will my optimizer have?": optimizer_rates,
    "Is that rate proved for every such function?": certified_rates,
    "How does a slow fluid pass these obstacles?": stokes_flow,
    "Where is the robot, and what does a noisy record hide?": hidden_states,
    "What does a tensor train compress, search and integrate?": compressed_arrays,
}


def main() -> int:
    """Run every chapter; 0 if all checks hold, else 1."""
    jax.config.update("jax_enable_x64", True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checks: dict[str, bool] = {}
    for number, (title, chapter) in enumerate(CHAPTERS.items(), 1):
        heading = f"Chapter {number}. {title}"
        print(f"\n{heading}\n{'=' * len(heading)}\n", flush=True)
        with tqdm(total=chapter.NUM_SECTIONS, desc=f"chapter {number}", unit="section", leave=False) as bar:
            for text, held in chapter.sections(FOLDER):
                bar.write(text + "\n")
                bar.update()
                checks |= held
    failed = [name for name, held in checks.items() if not held]
    for name in failed:
        print(f"FAILED: {name}")
    seconds = time.perf_counter() - started
    print(f"{len(checks) - len(failed)} of {len(checks)} checks hold; {seconds:.0f} s, pictures in {FOLDER}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
