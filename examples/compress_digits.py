r"""A network made to fit: calibrate, find the sensitive layers, quantize to half the peak, prune to a quarter of it.

The network of `examples/digits.py` reads handwritten digits; it is trained here if it is not yet (35 s of one core; the
steps take 65). Each step keeps its table and its picture in a folder:

    python examples/compress_digits.py                     # everything into ./compressed
    python examples/compress_digits.py --output somewhere

The same by hand, piece by piece (D is examples/digits.py):

    memfit calibrate D:network --data D:train_data --samples 256 --save ranges.json -o ranges.png
    memfit sensitivity D:network --data D:test_data --ranges ranges.json -o sensitivity.png
    memfit quantize D:network --data D:train_data --samples 256 --budget 20KiB --metric D:accuracy --save recipe.json
    memfit prune D:network --data D:train_data --budget 10KiB --metric D:accuracy --fine-tune D:fine_tune \
        --save pruned.pt2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import digits
import torch

import memfit
from memfit.analysis.result import Result
from memfit.report.files import write
from memfit.report.table import render
from memfit.units import format_bytes

HERE = Path(__file__).parent
NETWORK, TRAIN, ACCURACY = (f"{HERE / 'digits.py'}:{name}" for name in ("network", "train_data", "accuracy"))


def keep(result: Result, folder: Path, name: str) -> None:
    """Print a result, and keep its table and its picture."""
    render(result, sys.stdout)
    print()
    for suffix in (".md", ".png"):
        write(result, folder / f"{name}{suffix}", force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("compressed"), help="folder of tables and pictures")
    parser.add_argument("--samples", type=int, default=256, help="digits to calibrate and to measure with")
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS, help="of training, where there are no weights yet")
    parser.add_argument("--tuning", type=int, default=12, help="epochs after pruning")
    given = parser.parse_args()
    folder, samples = given.output, given.samples
    folder.mkdir(parents=True, exist_ok=True)

    if not digits.WEIGHTS.is_file():
        torch.manual_seed(0)
        model = digits.Digits()
        print("training …", file=sys.stderr)
        digits.fine_tune(model, given.epochs, 0.01)
        torch.save(model.state_dict(), digits.WEIGHTS)
    model, _ = digits.network()
    float_accuracy = digits.accuracy(model)
    peak = memfit.profile(NETWORK, memory="mcunet").totals["peak_bytes"]
    print(f"float: {float_accuracy:.2%} of the test digits, peak {format_bytes(peak)} at 8 bits an activation\n")

    ranges = folder / "ranges.json"
    keep(memfit.calibrate(NETWORK, data=TRAIN, samples=samples, save=ranges), folder, "calibrate")
    sensitive = memfit.sensitivity(NETWORK, data=TRAIN, samples=samples, ranges=ranges)
    keep(sensitive, folder, "sensitivity")
    half = memfit.quantize(
        NETWORK, data=TRAIN, samples=samples, budget=peak // 2, metric=ACCURACY, save=folder / "recipe.json", force=True
    )
    keep(half, folder, "quantize")
    quarter = memfit.prune(
        NETWORK,
        data=TRAIN,
        budget=peak // 4,
        metric=ACCURACY,
        fine_tune=lambda pruned: digits.fine_tune(pruned, given.tuning),
        save=folder / "pruned.pt2",
        force=True,
    )
    keep(quarter, folder, "prune")

    print("| | peak | of the float network's | test accuracy | points lost |")
    print("|---|---|---|---|---|")
    for name, peak_bytes, accuracy in (
        ("float", peak, float_accuracy),
        ("quantized", half.totals["peak_bytes"], half.totals["metric"]),
        ("pruned and tuned", quarter.totals["peak_bytes"], quarter.totals["metric"]),
    ):
        lost = 100 * (float_accuracy - accuracy)
        print(f"| {name} | {format_bytes(peak_bytes)} | {peak_bytes / peak:.0%} | {accuracy:.2%} | {lost:.1f} |")


if __name__ == "__main__":
    main()
