"""Predicted against real arenas of TensorFlow Lite Micro, byte by byte.

Real is what the runtime itself prints, and the smallest arena in which it starts and computes what it computes in an
ample one, found by trying; predicted is the `tflm` memory model on the file alone. Needs `pip install memfit[tflm]`.

    python benchmarks/tflm_truth.py MODEL.tflite…             # some files
    python benchmarks/tflm_truth.py ../shared/models/*/*.tflite --generated 200
    python benchmarks/tflm_truth.py … --write docs/tflm.md    # put the tables between the page's markers
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from memfit.errors import MemfitError
from memfit.formats.tflite import read_model
from memfit.memory.tflm import arena
from memfit.memory.tflm.arena import PRINTED
from memfit.plan.runtime import Runtime

ONLY_START = ("BROADCAST_ARGS", "CIRCULAR_BUFFER", "EMBEDDING_LOOKUP", "RSQRT")
"""Generated networks that compute nothing, or nothing twice the same, from any input."""


class Result(NamedTuple):
    """One model: predicted and real (head, tail, smallest arena), whether every printed row is equal, the device's."""

    name: str
    predicted: tuple[int, int, int]
    real: tuple[int, int, int]
    rows: bool
    device: tuple[int, int]

    @property
    def exact(self) -> bool:
        return self.rows and self.predicted[:2] == self.real[:2]

    @property
    def margin(self) -> int:
        return self.predicted[2] - self.real[2]


def compare(runtime: Runtime, path: Path) -> Result:
    model = read_model(path)
    found, device = arena(model), arena(model, "mcu")
    printed = runtime.allocations(path)
    rows = {c.name: tuple(c[1:]) for c in found.categories if c.name in PRINTED and (c.used_bytes or c.structures)}
    seed = None if path.stem.startswith(ONLY_START) else 0
    smallest = runtime.smallest_arena(path, near=found.smallest_bytes, seed=seed)
    return Result(
        path.stem,
        (found.head_bytes, found.tail_bytes, found.smallest_bytes),
        (printed.head_bytes, printed.tail_bytes, smallest),
        rows == {row.name: tuple(row[1:]) for row in printed.rows},
        (device.total_bytes, device.smallest_bytes),
    )


def generated(folder: Path, drawn: int) -> dict[str, list[Path]]:
    """Write the tests' networks, by group."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))
    import tflite_models
    import tflm_nets

    groups: dict[str, dict[str, Callable[[], bytes]]] = {
        "one operator": {**tflite_models.OPERATOR_NETS, **tflm_nets.MORE_OPERATORS},
        "sixteen copies of an operator": dict(tflm_nets.REPEATED),
        "CNN, ResNet, U-Net, SVDF, LSTM, attention, branches": dict(tflite_models.MIXED_NETS),
        "odd cases": dict(tflm_nets.ODD),
        "drawn at random": {f"drawn{seed}": lambda seed=seed: tflm_nets.drawn(seed) for seed in range(drawn)},  # type: ignore[misc]
    }
    paths: dict[str, list[Path]] = {}
    for group, makers in groups.items():
        for name, make in makers.items():
            path = folder / f"{name}.tflite"
            path.write_bytes(make())
            paths.setdefault(group, []).append(path)
    return paths


def real_table(results: Iterable[Result]) -> str:
    lines = [
        "| model | head | tail | total | smallest arena | equal to the runtime | a device: total / smallest |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for r in results:
        head, tail, smallest = r.predicted
        verdict = "yes" if r.exact and not r.margin else f"no: {r.real}" if not r.exact else f"smallest +{r.margin}"
        lines.append(
            f"| {r.name} | {head:,} | {tail:,} | {head + tail:,} | {smallest:,} | {verdict} | "
            f"{r.device[0]:,} / {r.device[1]:,} |"
        )
    return "\n".join(lines)


def group_table(groups: dict[str, list[Result]]) -> str:
    lines = [
        "| generated networks | models | head, tail, every printed row equal | smallest arena equal | largest margin |",
        "|---|---:|---:|---:|---:|",
    ]
    for group, results in groups.items():
        exact, tight = sum(r.exact for r in results), sum(not r.margin for r in results)
        margins = [r.margin for r in results]
        lines.append(
            f"| {group} | {len(results)} | {exact} | {tight} | {max(margins, key=abs, default=0):+,} bytes |"
            .replace("+0 bytes", "0 bytes")
        )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--generated", type=int, metavar="N", help="the tests' networks too, N of them drawn at random")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    with Runtime() as runtime, tempfile.TemporaryDirectory() as folder:
        real = []
        for path in options.models:
            try:
                real.append(compare(runtime, path))
            except MemfitError as error:
                print(error, file=sys.stderr)
        groups: dict[str, list[Result]] = {}
        if options.generated is not None:
            for group, paths in generated(Path(folder), options.generated).items():
                groups[group] = [compare(runtime, path) for path in paths]
                for result in groups[group]:
                    if not result.exact or not 0 <= result.margin <= 16:
                        print(f"{result.name}: predicted {result.predicted}, real {result.real}", file=sys.stderr)
    said = (
        f"Measured on {datetime.date.today()} with tflite-micro {version('tflite-micro')} on {platform.machine()}, "
        f"Python {platform.python_version()}, `python benchmarks/tflm_truth.py`:"
    )
    text = "\n\n".join(part for part in (said, real_table(real) if real else "", group_table(groups) if groups else "")
                       if part)  # fmt: skip
    print(text)
    if options.write:
        page = options.write.read_text()
        mark = r"(<!-- truth -->\n).*?(\n<!-- end of truth -->)"
        options.write.write_text(re.sub(mark, lambda m: f"{m[1]}\n{text}\n{m[2]}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
