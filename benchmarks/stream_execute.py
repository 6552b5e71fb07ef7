"""Streamed plans run in one byte array: what they take, and whether they give what the plain run and TFLM give.

    python benchmarks/stream_execute.py ../shared/models/*/*.tflite --inputs 20
    python benchmarks/stream_execute.py --made --made-inputs 1
    python benchmarks/stream_execute.py … --made --write docs/stream.md    # put the tables between the page's markers

`--made` adds int8 models with random weights: ResNet18 and EfficientNet-B0 at 224, a U-Net at 128 and an MCUNet-like
network at 160. Every access of a run is held against the plan. Needs `pip install memfit[tflm]`. Set OMP_NUM_THREADS=1
on a machine that has other work to do.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from memfit.formats.tflite import read_model
from memfit.memory.tflm import arena
from memfit.plan.verify import sample_inputs
from memfit.stream import Executor, StreamPlan, plan_stream, records
from memfit.stream.verify import verify_stream

SHARES = (0.0, 0.05, 0.1, 0.2, 0.5)

MARKERS = "<!-- executed -->", "<!-- end of executed -->"


class Row(NamedTuple):
    """One model with one way to take its input."""

    name: str
    input: str
    plan: StreamPlan
    stock_bytes: int
    copied_bytes: int
    plan_seconds: float
    run_seconds: float
    verification: dict[str, int]


def made(folder: Path) -> list[Path]:
    """Write the models with random weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))
    import stream_nets

    builders = {
        "ResNet18 at 224": stream_nets.resnet18,
        "EfficientNet-B0 at 224": stream_nets.efficientnet_b0,
        "U-Net at 128": stream_nets.unet,
        "MCUNet-like at 160": stream_nets.mcunet,
    }
    found = []
    for name, build in builders.items():
        found.append(folder / f"{name}.tflite")
        found[-1].write_bytes(build())
    return found


def run(path: Path, inputs: int, share: float) -> list[Row]:
    model = read_model(path)
    network = records(model)
    stock = arena(model).head_bytes
    found = []
    for resident in (False, True):
        started = time.perf_counter()
        plan = plan_stream(network, max_extra_macs=share, resident=resident)
        planned = time.perf_counter()
        said = verify_stream(plan, model, inputs=inputs, progress=lambda text: print(path.stem, text, file=sys.stderr))
        started_run = time.perf_counter()
        Executor(plan).run(sample_inputs(model, inputs, 0))
        seconds = time.perf_counter() - started_run
        how = "resident" if resident else "row by row"
        found.append(Row(path.stem, how, plan, stock, said["copied_bytes"], planned - started, seconds, said))
    return found


def table(rows: list[Row]) -> str:
    lines = [
        "| model | input | array, bytes | stock head, bytes | extra MACs | passes | inputs | as plain run | as TFLM |"
        " copied | plan, s | run, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        v, plan = row.verification, row.plan
        lines.append(
            f"| {row.name} | {row.input} | {v['peak_bytes']:,} | {row.stock_bytes:,} | {plan.extra_share:.2%} | "
            f"{v['input_passes']} | {v['inputs']} | {v['identical']} | {v['runtime_identical']} | "
            f"{v['copied_bytes']:,} | {row.plan_seconds:.1f} | {row.run_seconds:.1f} |"
        )
    return "\n".join(lines)


def fronts(rows: list[Row]) -> str:
    """Give the lowest peak for each bound on extra MACs."""
    heads = " | ".join(f"≤ {share:.0%}" if share else "none" for share in SHARES)
    lines = [f"| model | input | {heads} |", f"|---|---|{'---:|' * len(SHARES)}"]
    for row in rows:
        found = []
        for share in SHARES:
            peaks = [c.peak_bytes for c in row.plan.front if c.extra_macs <= share * row.plan.macs]
            found.append(f"{min(peaks) / 1024:.1f}" if peaks else "-")
        lines.append(f"| {row.name} | {row.input} | {' | '.join(found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.1, help="extra MACs, as a share")
    parser.add_argument("--made", action="store_true")
    parser.add_argument("--made-inputs", type=int, default=3)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models:
            rows += run(path, options.inputs, options.share)
        for path in made(Path(folder)) if options.made else []:
            rows += run(path, options.made_inputs, options.share)
    said_of_fronts = "Most bytes live at one time by the share of extra MACs that is allowed, KiB:"
    print(found := f"{table(rows)}\n\n{said_of_fronts}\n\n{fronts(rows)}")
    if options.write:
        text = options.write.read_text()
        when = datetime.date.today().isoformat()
        said = (
            f"Measured on {when} with tflite-micro {version('tflite-micro')}, NumPy {version('numpy')}, Python "
            f"{platform.python_version()}, {platform.machine()}, `OMP_NUM_THREADS=1 python "
            "benchmarks/stream_execute.py`:"
        )
        body = f"{MARKERS[0]}\n\n{said}\n\n{found}\n\n{MARKERS[1]}"
        pattern = f"{re.escape(MARKERS[0])}.*{re.escape(MARKERS[1])}"
        options.write.write_text(re.sub(pattern, lambda _: body, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
