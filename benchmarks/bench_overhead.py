"""What timing layer by layer costs the timed network: runs with timestamps beside plain runs, in turn, in one process.

    python benchmarks/bench_overhead.py                                  # mobilenet_v2 and resnet50 at 224, batch 1
    python benchmarks/bench_overhead.py torchvision:resnet18 --threads 1 --iterations 500
    python benchmarks/bench_overhead.py --write docs/bench.md            # put the table between the page's markers

Both kinds run alternately, so that whatever else the machine does falls on both. `overhead` is the ratio of the
medians; the interval beside it is a 95 % bootstrap of that ratio.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
from pathlib import Path

import numpy as np
import torch

from memfit.capture.torch_trace import capture_module
from memfit.measure.boundaries import record
from memfit.measure.config import Config
from memfit.measure.environment import environment
from memfit.measure.layout import lay_out
from memfit.measure.rows import SPECS, row_of_ops
from memfit.measure.session import no_progress, quiet_collector
from memfit.measure.subject import Placing, subject
from memfit.measure.timers import CpuTimer
from memfit.measure.timing import Stopwatch

SOURCES = ("torchvision:mobilenet_v2", "torchvision:resnet50")
BEGIN, END = "<!-- bench-overhead: begin -->", "<!-- bench-overhead: end -->"


def compare(source: str, per: str, warmup: int, iterations: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Time plain and marked runs in turn; also gives the marks of one run."""
    with subject(source, None, Placing()) as what, torch.no_grad():
        call = what.call(None, None)
        args, kwargs = call.stand_ins()
        graph, events = record(what.model, lambda: capture_module(what.model, args, kwargs))
        specs = SPECS[per](graph, events, None)
        layout = lay_out(graph, events, row_of_ops(graph, specs), len(specs))
        watch = Stopwatch(
            source, what.model, what.model, call, config=Config(per=per), timer=CpuTimer(), progress=no_progress
        )
        marked = watch.marked(layout, events)
        plain_ms, marked_ms = [], []
        with quiet_collector():
            for index in range(warmup + iterations):
                pair = [0.0, 0.0]
                for which in (0, 1) if index % 2 else (1, 0):
                    pair[which] = float(marked().sum()) if which else watch.plain()
                if index >= warmup:
                    plain_ms.append(pair[0])
                    marked_ms.append(pair[1])
        return np.array(plain_ms), np.array(marked_ms), len(layout.order) + 2


def interval(plain: np.ndarray, marked: np.ndarray, rounds: int = 2000) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of the overhead."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(plain), size=(rounds, len(plain)))
    ratios = np.median(marked[picks], axis=1) / np.median(plain[picks], axis=1) - 1
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=SOURCES)
    parser.add_argument("--per", default="layer", choices=("layer", "block"))
    parser.add_argument("--warmup", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    around = environment("cpu")
    lines = [
        "| network | timestamps a run | plain, median | with timestamps, median | overhead | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for source in options.sources:
        plain, marked, marks = compare(source, options.per, options.warmup, options.iterations)
        low, high = interval(plain, marked)
        overhead = float(np.median(marked) / np.median(plain)) - 1
        lines.append(
            f"| {source}, per {options.per} | {marks} | {np.median(plain):.3f} ms | {np.median(marked):.3f} ms "
            f"| {overhead:+.2%} | {low:+.2%} … {high:+.2%} |"
        )
    where = ", ".join(f"{key} {value}" for key, value in around.items())
    lines += ["", f"{datetime.date.today()}, {options.iterations} runs of each in turn, {platform.system()}: {where}."]
    print("\n".join(lines))
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        block = "\n".join((BEGIN, *lines, END))
        pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
        options.write.write_text(re.sub(pattern, lambda _: block, page, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
