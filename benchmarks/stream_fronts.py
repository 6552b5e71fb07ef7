"""Peaks of streamed networks for none to much extra work, the input fed or resident, and the time that planning takes.

    python benchmarks/stream_fronts.py                           # a table of all
    python benchmarks/stream_fronts.py mobilenet mcunet          # of those whose names contain one of these
    python benchmarks/stream_fronts.py --images docs/images

Every figure is the height of a packed arena. The U-Net and the MCUNet-like network are int8 files with random weights,
made by `tests/pure/stream_nets.py`; the others are estimates from torchvision. `--images` draws each front. Seconds are
of CPU time: for the plan with the default bound, 10%, and for the slowest of a row. Needs `pip install memfit[zoo]`.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import memfit
from memfit.memory.mcunet import figures
from memfit.memory.model import View
from memfit.report.files import write
from memfit.stream import StreamPlan, network_of, plan_stream

SHARES = (0.0, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Extra work allowed."""

DEFAULT = 0.1
"""What is allowed where nothing else is said."""


def made(name: str) -> Callable[[], Any]:
    """Capture a network with random weights."""

    def capture() -> Any:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))
        import stream_nets

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.tflite"
            path.write_bytes(getattr(stream_nets, name)())
            return replace(memfit.capture(str(path)), source=f"{name}, random weights")

    return capture


def zoo(name: str, size: int = 224, **arguments: Any) -> Callable[[], Any]:
    """Capture a network of torchvision's, for square images."""
    return lambda: memfit.capture(f"torchvision:{name}", f"1x3x{size}x{size}", args=arguments or None)


NETWORKS: dict[str, Callable[[], Any]] = {
    "MobileNetV2 1.0 at 224": zoo("mobilenet_v2"),
    "MobileNetV2 0.35 at 224": zoo("mobilenet_v2", width_mult=0.35),
    "MobileNetV2 0.30 at 80": zoo("mobilenet_v2", 80, width_mult=0.3),
    "MobileNetV3 large at 224": zoo("mobilenet_v3_large"),
    "EfficientNet-B0 at 224": zoo("efficientnet_b0"),
    "ResNet18 at 224": zoo("resnet18"),
    "ResNet50 at 224": zoo("resnet50"),
    "DenseNet121 at 224": zoo("densenet121"),
    "U-Net at 128": made("unet"),
    "MCUNet-like at 160": made("mcunet"),
}


def cell(plan: StreamPlan) -> str:
    """Write a packed peak in KiB, with its extra work."""
    return f"{plan.peak_bytes / 1024:.1f}" + (f" ({plan.extra_share:.1%})" if plan.extra_macs > 0 else "")


def main() -> None:
    """Print the table, and draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of networks' names; all without")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="draw each front into this folder")
    asked = parser.parse_args()
    chosen = {
        name: make
        for name, make in NETWORKS.items()
        if not asked.names or any(part.lower() in name.lower() for part in asked.names)
    }
    print(f"{datetime.date.today()}, Python {platform.python_version()}, memfit {memfit.__version__}\n")
    print(
        "| network | operations | before, KiB | input |",
        *(f"{share:.0%} |" for share in SHARES),
        "seconds, 10% | slowest |",
    )
    print("|---|---:|---:|---|" + "---:|" * (len(SHARES) + 2))
    for name, make in chosen.items():
        graph = make()
        before = figures(View(graph)).total_bytes / 1024
        if asked.images is not None:
            path = asked.images / f"stream-{name.lower().replace(' ', '-')}.png"
            write(memfit.stream(graph, per="front"), path, force=True)
        for resident in (False, True):
            plans, seconds = [], {}
            for share in SHARES:
                network = network_of(graph)  # one that no plan has looked at before
                start = time.process_time()
                plans.append(plan_stream(network, max_extra_macs=share, resident=resident))
                seconds[share] = time.process_time() - start
            way = "resident" if resident else "fed"
            cells = " | ".join(cell(plan) for plan in plans)
            took = f"{seconds[DEFAULT]:.1f} | {max(seconds.values()):.1f}"
            print(f"| {name} | {len(network.ops)} | {before:.1f} | {way} | {cells} | {took} |", flush=True)


if __name__ == "__main__":
    main()
