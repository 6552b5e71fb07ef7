"""memfit.profile beside torchinfo.summary: time in one process, and time and memory of whole processes.

    python benchmarks/profile_speed.py [--runs N] [--write docs/speed.md]

One thread. In one process the two take turns on the same module, at two resolutions in turn, so that nothing that
either might remember helps; whole processes start from nothing and build the model themselves. Medians; needs
`pip install 'memfit[zoo,peers]'`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

NAMES = ("mobilenet_v2", "resnet50", "vit_b_16", "convnext_tiny")
BATCHES = (1, 32)
SIDES = (192, 224)
PROCESSES = (*NAMES, "vgg19")

TORCHINFO_SCRIPT = """
import torch; torch.set_num_threads(1)
{shim}
import torchvision, torchinfo
torchinfo.summary(torchvision.models.{name}(), (1, 3, 224, 224), depth=9)
"""
# torchvision's binary may not load beside a CPU build of PyTorch; its missing schemas are defined for this side too.
SHIM = "from memfit.capture.shim import define_missing_torchvision_schemas as d; d()"


def median_ms(run: Callable[[int], object], count: int) -> float:
    """Median milliseconds of `count` runs, resolutions in turn."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        run(SIDES[i % len(SIDES)])
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def in_process(name: str, batch: int, runs: int) -> tuple[float, float]:
    """Median milliseconds of memfit and torchinfo on one module with real weights."""
    import torchinfo
    import torchvision

    import memfit

    model = getattr(torchvision.models, name)().eval()
    fixed = name.startswith("vit")  # its position embedding fits one resolution

    def side(s: int) -> int:
        return 224 if fixed else s

    def ours(s: int) -> object:
        return memfit.profile(model, inputs=f"{batch}x3x{side(s)}x{side(s)}")

    def theirs(s: int) -> object:
        return torchinfo.summary(model, (batch, 3, side(s), side(s)), verbose=0, depth=9)

    ours(224)
    theirs(224)
    mine, other = [], []
    for _ in range(runs if batch == 1 else max(2, runs // 4)):
        mine.append(median_ms(ours, 2))
        other.append(median_ms(theirs, 2))
    return statistics.median(mine), statistics.median(other)


def process(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one process, by the kernel's own account."""
    start = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:3])} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def whole_processes(name: str, runs: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Median seconds and MiB of memfit's command and of a script that does the same with torchinfo."""
    script = TORCHINFO_SCRIPT.format(shim=SHIM, name=name)
    commands = (
        [sys.executable, "-m", "memfit", "profile", f"torchvision:{name}", "--input", "1x3x224x224", "--threads", "1"],
        [sys.executable, "-c", script],
    )
    found: list[list[tuple[float, float]]] = [[], []]
    for _ in range(runs):
        for results, command in zip(found, commands, strict=True):
            results.append(process(command))
    first, second = ((statistics.median(t for t, _ in r), statistics.median(m for _, m in r)) for r in found)
    return first, second


def report(runs: int) -> str:
    """Measure everything and give the tables."""
    # First, while this process is small: a child's peak memory counts from that of the parent it was forked from.
    processes = [
        "| whole process | memfit, s | torchinfo, s | memfit, MiB | torchinfo, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in PROCESSES:
        (ours, our_mib), (theirs, their_mib) = whole_processes(name, max(3, runs // 2))
        processes.append(f"| {name} | {ours:.2f} | {theirs:.2f} | {our_mib:.0f} | {their_mib:.0f} |")
        print(processes[-1], file=sys.stderr)

    from memfit.capture.shim import import_torchvision

    import_torchvision()
    import torch
    import torchinfo

    torch.set_num_threads(1)
    lines = [
        f"{date.today()}, torch {torch.__version__}, torchinfo {torchinfo.__version__}, "
        f"Python {platform.python_version()}, one thread, {platform.machine()}.",
        "",
        "| network | batch | memfit, ms | torchinfo, ms | times faster |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in NAMES:
        for batch in BATCHES:
            ours, theirs = in_process(name, batch, runs)
            lines.append(f"| {name} | {batch} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |")
            print(lines[-1], file=sys.stderr)
    return "\n".join([*lines, "", *processes])


def main() -> None:
    """Print the tables, or put them between the markers of a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--write", type=Path, help="a markdown file with <!-- speed --> … <!-- /speed --> in it")
    options = parser.parse_args()
    tables = report(options.runs)
    print(tables)
    if options.write:
        before, _, rest = options.write.read_text().partition("<!-- speed -->")
        _, _, after = rest.partition("<!-- /speed -->")
        options.write.write_text(f"{before}<!-- speed -->\n{tables}\n<!-- /speed -->{after}")


if __name__ == "__main__":
    main()
