"""A published study of MobileNetV2, all of it in one go: latency of the whole model, its blocks and its layers, on the
CPU and on a GPU where there is one, its structure, and its memory tensor by tensor; beside the published figures.

    python examples/mobilenet_v2_study.py                            # 25 + 300 iterations, as published
    python examples/mobilenet_v2_study.py --iterations 20 --warmup 3 # a first look
    python examples/mobilenet_v2_study.py --output study             # keep every table and picture in a folder

The same by hand, piece by piece:

    memfit bench torchvision:mobilenet_v2 --input 1x3x1024x2048
    memfit bench torchvision:mobilenet_v2 --input 1x3x1024x2048 --per block
    memfit bench torchvision:mobilenet_v2 --input 1x3x1024x2048 --per layer
    memfit profile torchvision:mobilenet_v2 --input 1x3x1024x2048 --memory ideal
    memfit profile torchvision:mobilenet_v2 --input 1x3x1024x2048 --per tensor
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import memfit
from memfit.report.files import write
from memfit.report.table import render

SOURCE = "torchvision:mobilenet_v2"
LATENCY = {
    "1x3x1024x2048": {
        "RTX 2080 Ti": (33.627, 0.058), "Titan XP": (54.314, 0.150), "Xeon Gold 5218": (560.022, 43.278),
    },
    "1x3x500x334": {
        "RTX 2080 Ti": (5.570, 0.131), "Titan XP": (5.795, 0.144), "Xeon Gold 5218": (70.180, 3.190),
    },
}  # fmt: skip
"""Published milliseconds, mean and standard deviation: fp32, batch 1, 25 + 300 iterations."""

MEMORY = {"1x3x1024x2048": "37.58", "1x3x500x334": "15.49 (14.49 in one place)"}
"""Published MiB of parameters, buffers and input, each rounded up to 512 bytes; 14.49 is taken as a misprint."""

PARAMETERS = 3_504_872

Timings = dict[str, dict[str, memfit.Benchmark]]
"""Device → what a row is → the measurement."""


def main() -> None:
    options = arguments()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    shapes = options.inputs or list(LATENCY)
    keep = Keeper(options.output)
    times: dict[str, Timings] = {}
    for shape in shapes:
        times[shape] = {device: measure(shape, device, options, keep) for device in devices}
    print(f"\nMobileNetV2, fp32, batch 1, {options.warmup} + {options.iterations} iterations\n")
    for shape in shapes:
        compare_latency(shape, times[shape])
    for shape in shapes:
        compare_memory(shape, keep)
    if "cuda" not in devices:
        print("There is no GPU here, so the GPU's columns are the published ones only.")
    for path in keep.written:
        print(f"wrote {path}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--inputs", nargs="+", choices=LATENCY, help="only these")
    parser.add_argument("--output", type=Path, help="a folder for every table and picture; made if it is not there")
    return parser.parse_args()


class Keeper:
    """Prints results, and keeps them in a folder where one is given."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.written = folder, list[Path]()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def show(self, result: memfit.Benchmark | memfit.Profile, name: str) -> None:
        render(result, sys.stdout)
        print()
        if self.folder is None:
            return
        suffixes = (".txt", ".csv", ".json", *((".png",) if find_spec("matplotlib") else ()))
        for suffix in suffixes:
            path = self.folder / f"{name}{suffix}"
            write(result, path, force=True)
            self.written.append(path)


def measure(shape: str, device: str, options: argparse.Namespace, keep: Keeper) -> dict[str, memfit.Benchmark]:
    """Time the whole model, its blocks and its layers."""
    found = {}
    for per in ("model", "block", "layer"):
        found[per] = memfit.bench(
            SOURCE,
            shape,
            per=per,
            device=device,
            warmup=options.warmup,
            iterations=options.iterations,
            threads=options.threads,
            with_memory=per == "model",
        )
        keep.show(found[per], f"latency-{device}-{shape}-{per}")
    return found


def compare_latency(shape: str, timings: Timings) -> None:
    """Put this machine's latency beside the published ones."""
    print(f"input {shape}: latency in ms, mean ± std, and frames per second")
    print(f"  {'published':<12} {'device':<34} {'latency':>20} {'FPS':>10}")
    for device, (mean, std) in LATENCY[shape].items():
        print(f"  {'published':<12} {device:<34} {mean:>10.3f} ± {std:<7.3f} {1000 / mean:>10.2f}")
    for device, found in timings.items():
        around = found["model"].environment
        name = str(around["gpu"] if device == "cuda" else f"{around['cpu']}, {around['threads']} threads")
        totals = found["model"].totals
        mean, std = totals["whole_ms"], totals["whole_std_ms"]
        print(f"  {'computed':<12} {name:<34} {mean:>10.3f} ± {std:<7.3f} {totals['fps']:>10.2f}")
        for per in ("block", "layer"):
            rows = found[per].rows
            slowest = max(rows, key=lambda row: float(row["mean_ms"]))
            print(
                f"  {'':<12} {len(rows)} {per}s, {found[per].totals['layers_ms']:.3f} ms in all; the slowest is "
                f"{slowest['name']}, {slowest['mean_ms']:.3f} ms, {slowest['share']:.1%} of the model"
            )
    print()


def compare_memory(shape: str, keep: Keeper) -> None:
    """Report structure and tensors, and put the totals beside the published ones."""
    keep.show(memfit.profile(SOURCE, shape, memory="ideal"), f"structure-{shape}")
    tensors = memfit.profile(SOURCE, shape, per="tensor")
    keep.show(tensors, f"tensors-{shape}")
    mib = f"{tensors.totals['allocated_bytes'] / 2**20:.2f}"
    print(f"input {shape}: {'published':>28} {'computed':>12}")
    print(f"  {'memory, MiB':<20} {MEMORY[shape]:>28} {mib:>12}")
    print(f"  {'parameters':<20} {PARAMETERS:>28,} {tensors.totals['params']:>12,}\n")


if __name__ == "__main__":
    main()
