"""What `memfit plan` saves on real files, proved in the real runtime, and what planning costs.

Each file is planned, written, and run beside the original in TensorFlow Lite Micro on many inputs; the smallest arena
of each is found by trying. Planning is also timed as a process of its own, from nothing to the printed table. Needs
`pip install memfit[tflm]`.

    python benchmarks/tflm_plan.py MODEL.tflite… [--inputs 100]
    python benchmarks/tflm_plan.py ../shared/models/*/*.tflite --inputs 1000 --write docs/plan.md
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import memfit

RUNS = 5
LARGE = 1 << 20
"""Bytes of a file from which on it gets a fiftieth of the inputs: one run of it takes seconds."""


def cold(path: Path) -> tuple[float, float]:
    """Median seconds and peak MiB of `memfit plan` as a process."""
    walls, peaks = [], []
    for _ in range(RUNS):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "memfit", "plan", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - begin)
        peaks.append(usage.ru_maxrss / 1024)
        assert status == 0, path
    return statistics.median(walls), max(peaks)


def row(path: Path, inputs: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = memfit.plan(
            str(path), save=Path(folder) / "planned.tflite", verify=True, verify_inputs=inputs, compare=True
        )
    totals, said = found.totals, found.verification
    assert said is not None
    greedy = min(entry["arena_bytes"] for entry in found.planners if entry["name"] not in ("exact", "local-search"))
    seconds, mebibytes = cold(path)
    return (
        f"| {path.stem} | {totals['runtime_arena_bytes']:,} | {greedy:,} | {totals['arena_bytes']:,} | "
        f"{totals['lower_bound_bytes']:,} | {said['runtime_arena_bytes']:,} | {said['arena_bytes']:,} | "
        f"{said['arena_bytes'] - said['predicted_arena_bytes']:+d} | {said['identical']:,} of {said['inputs']:,} | "
        f"{seconds:.2f} s | {mebibytes:.0f} MiB |"
    )


def table(paths: list[Path], inputs: int) -> str:
    lines = [
        f"{date.today()}, memfit {version('memfit')}, tflite-micro {version('tflite-micro')}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. Bytes.",
        "",
        "| model | head: runtime | best greedy | memfit | lower bound | smallest arena: as it was | planned | over "
        "prediction | identical outputs | `memfit plan` | its memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        lines.append(row(path, inputs if path.stat().st_size < LARGE else max(inputs // 50, 1)))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--write", type=Path, help="put the table between the markers of this page")
    options = parser.parse_args()
    made = table(options.models, options.inputs)
    print(made)
    if options.write:
        text = options.write.read_text()
        begin, end = "<!-- tflm_plan -->", "<!-- /tflm_plan -->"
        options.write.write_text(
            re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n\n{made}\n\n{end}", text, flags=re.DOTALL)
        )


if __name__ == "__main__":
    main()
