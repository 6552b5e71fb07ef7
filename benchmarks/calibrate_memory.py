"""Calibrate EfficientViT-SAM-L0's encoder at 512x512 on 10 and on 100 samples: what memory grows by, and what it would.

    python benchmarks/calibrate_memory.py [--samples 10 100] [--method percentile] [--threads 1]

Each run is a process of its own, whose peak resident memory the kernel reports. The naive way keeps every layer's
activations until the end, as the ranges of 100 samples were once taken: that is computed, not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = f"{ROOT}/examples/efficientvit_sam.py:encoder"
LIMIT = 0.02


def calibrate(samples: int, method: str, threads: int) -> tuple[int, float, dict]:
    """Run one calibration; give its peak resident bytes, its seconds and its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "ranges.json"
        command = [
            sys.executable, "-m", "memfit", "calibrate", SOURCE, "--data", "random", "--samples", str(samples),
            "--batch", "1", "--method", method, "-o", str(result),
        ]  # fmt: skip
        start = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        message = process.stderr.read().decode() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(message)
        return usage.ru_maxrss * 1024, time.perf_counter() - start, json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=(10, 100))
    parser.add_argument("--method", default="percentile")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    peaks = []
    print(f"{'samples':>8} {'peak RSS':>12} {'seconds':>8} {'all activations':>18} {'largest layer':>16}")
    for samples in options.samples:
        peak, seconds, result = calibrate(samples, options.method, options.threads)
        peaks.append(peak)
        kept = [row["activations"] * 4 for row in result["rows"]]
        figures = (peak / 2**20, seconds, sum(kept) / 2**20, max(kept) / 2**20)
        print("{:>8} {:>8.1f} MiB {:>8.1f} {:>14,.0f} MiB {:>12,.0f} MiB".format(samples, *figures), flush=True)
    growth = peaks[1] / peaks[0] - 1
    versions = {key: result["environment"][key] for key in ("torch", "python", "isa")}
    print(f"growth {growth:+.2%} with {options.method}; {versions}, memfit {result['memfit']}")
    if growth >= LIMIT:
        raise SystemExit(f"the peak grew by {growth:.2%}, at most {LIMIT:.0%} was wanted")


if __name__ == "__main__":
    main()
