"""The command: `python -m benchmarks [case ...] [--list] [--json FILE] [--write FILE ...]`."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

import jax

from benchmarks import certificates, filtering, first_order, linalg, stokes, tensor_train
from benchmarks.protocol import Outcome, Row, measure

GROUPS = {
    "first_order": first_order.CASES,
    "certificates": certificates.CASES,
    "linalg": linalg.CASES,
    "stokes": stokes.CASES,
    "filtering": filtering.CASES,
    "tensor_train": tensor_train.CASES,
}
_PEERS = ("numpy", "scipy", "matfree", "autolyap", "pepit", "pyamg", "particles", "cuthbert", "torch")
_PEERS += ("teneva", "ttopt", "tensorly", "nevergrad", "protes", "torchtt", "tntorch")
CASES = {name: case for cases in GROUPS.values() for name, case in cases.items()}

_LEGEND = """
ratio: peer time / our time, median of interleaved rounds; CPU ratio: the same of CPU time, over all threads.
compile: ours / peer's, apart from the times. temporary: peak bytes beside inputs and outputs. traces: of ours, over
calls with different values. floor: copying our inputs and outputs once, or the arithmetic at its best rate.
"""


def main() -> int:
    """Run the chosen cases; 0 if every row was measured, 1 if one failed or was refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside the peers, in one run.")
    parser.add_argument(
        "case", nargs="*", help="cases or groups to run, or the beginnings of their names; all without one"
    )
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
    parser.add_argument(
        "--write", type=Path, nargs="+", default=[], metavar="FILE", help="put the tables of whole groups into FILE"
    )
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
        return 0
    asked = [name for case in arguments.case for name in GROUPS.get(case, (case,))]
    chosen = [name for name in CASES if not asked or name.startswith(tuple(asked))]
    unknown = [case for case in asked if not any(name.startswith(case) for name in CASES)]
    if unknown:
        parser.error(f"no case begins with {', '.join(unknown)}; there are {', '.join(CASES)}")

    jax.config.update("jax_enable_x64", True)
    environment = _environment()
    print("\n".join(f"{key}: {value}" for key, value in environment.items()), end="\n\n", flush=True)

    rows: list[Row] = []
    outcomes: list[Outcome] = []
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}", file=sys.stderr, flush=True)
        try:
            outcome = measure(CASES[name]())
        except Exception:
            traceback.print_exc()
            rows.append(Row(name, "", "failed"))
            continue
        outcomes.append(outcome)
        rows += outcome.rows

    print(_table(rows))
    print(_LEGEND)
    print("\n".join(_footnote(outcome) for outcome in outcomes))
    if arguments.json:
        failed = [row.case for row in rows if row.verdict == "failed"]
        cases = [dataclasses.asdict(outcome) for outcome in outcomes]
        content = {"environment": environment, "cases": cases, "failed": failed}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    about = "\n".join(f"- {key}: {value}" for key, value in environment.items())
    dated = f"jax {environment['jax']}, {environment['device']}, {environment['date']}:"
    whole = {group: cases for group, cases in GROUPS.items() if set(cases) <= set(chosen)}
    for group, cases in whole.items():
        table = [row for row in rows if row.case in cases]
        notes = "\n".join([_LEGEND, *(_footnote(outcome) for outcome in outcomes if outcome.case in cases)])
        brief = [row for row in table if not row.case.endswith(("-1e3", "-1e6"))]
        short = _table(brief, ("case", "peer", "ratio", "our ms", "peer ms", "our error", "peer error", "notes"))
        for path in arguments.write:
            _write_between(path, f"benchmark table: {group}", f"{about}\n\n{_table(table)}\n{notes}")
            _write_between(path, f"benchmark summary: {group}", f"{dated}\n\n{short}")
    return int(any(row.verdict in ("failed", "refused") for row in rows))


def _write_between(path: Path, mark: str, content: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end of mark -->` in a file, where it has these marks."""
    first, last = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    text = path.read_text()
    if first in text and last in text:
        head, rest = text.split(first, 1)
        path.write_text(f"{head}{first}\n\n{content}\n\n{last}{rest.split(last, 1)[1]}")


def _environment() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [
        f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.endswith(("_NUM_THREADS", "_TUNABLES"))
    ]
    devices = jax.devices()
    return {
        "jax": jax.__version__,
        "peers": ", ".join(f"{name} {_version(name)}" for name in _PEERS),
        "device": f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})",
        "machine": f"{platform.machine()} {_processor()}, {os.cpu_count()} CPUs",
        "threads": f"{usable} for XLA; {', '.join(limits) or 'no other limit set'}; load {os.getloadavg()[0]:.1f}",
        "x64": bool(jax.config.read("jax_enable_x64")),
        "date": datetime.date.today().isoformat(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _table(rows: list[Row], columns: tuple[str, ...] | None = None) -> str:
    header = ["case", "peer", "ratio", "CPU ratio", "our ms", "peer ms", "our CPU ms", "our error", "peer error"]
    header += ["compile s", "temporary", "traces", "notes"]
    chosen = [header.index(name) for name in columns or header]
    lines = [[line[i] for i in chosen] for line in [header, *map(_cells, rows)]]
    header = lines[0]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    is_text = [name in ("case", "peer", "notes") for name in header]
    rule = ["-" * width if text else "-" * (width - 1) + ":" for width, text in zip(widths, is_text, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        )
        + " |"
        for line in [header, rule, *lines[1:]]
    )


def _cells(row: Row) -> list[str]:
    verdict = "" if row.verdict == "ok" else row.verdict
    if row.verdict == "refused":
        verdict = "REFUSED: an error is above the tolerance"
    compile_seconds = f"{_number(row.compile_seconds, '.2f')} / {_number(row.peer_compile_seconds, '.2f')}"
    return [
        row.case,
        row.peer,
        _number(row.ratio, ".3g"),
        _number(row.cpu_ratio, ".3g"),
        _number(row.seconds, ".3g", 1e3),
        _number(row.peer_seconds, ".4g", 1e3),
        _number(row.cpu_seconds, ".3g", 1e3),
        _number(row.error, ".1e"),
        _number(row.peer_error, ".1e"),
        compile_seconds,
        "-" if row.temporary_bytes is None else _bytes(row.temporary_bytes),
        _number(row.traces, "d"),
        "; ".join(part for part in (verdict, row.target, row.scaled) if part),
    ]


def _number(value: float | None, specification: str, factor: float = 1) -> str:
    return "-" if value is None else format(value * factor, specification)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _footnote(outcome: Outcome) -> str:
    parts = [f"{outcome.copy_seconds * 1e3:.3g} ms to copy {_bytes(outcome.moved_bytes)}"]
    if outcome.flops:
        parts.append(f"{outcome.arithmetic_seconds * 1e3:.3g} ms for {outcome.flops / 1e6:.3g} Mflop")
    return (
        f"- {outcome.case}: {outcome.description}.\n"
        f"  Error: {outcome.metric}; tolerance {outcome.tolerance:g}.\n"
        f"  Floor: {', '.join(parts)}; ours takes {outcome.times_floor:.1f} times the larger."
    )


if __name__ == "__main__":
    sys.exit(main())
