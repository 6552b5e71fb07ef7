"""MCUNetV2, figure 1: the first blocks of MobileNetV2 need far more memory than the rest.

At 224x224 with int8 activations the peak is 1,372 KiB, in the third of 18 parts, while most need under 180 KiB.
Prints the published and the computed figures and draws the bar chart to block_peaks.png where matplotlib is installed.

    python examples/block_peaks.py
    memfit profile torchvision:mobilenet_v2 --per block --memory mcunet -o peaks.png
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import memfit

PUBLISHED = Path(__file__).parents[1] / "tests/expected/mobilenet_v2_224_int8_block_peaks.csv"


def main() -> None:
    profile = memfit.profile("torchvision:mobilenet_v2", inputs="1x3x224x224", per="block", memory="mcunet")
    print("int8 peak of each block, KiB")
    print(f"{'block':<14} {'published':>10} {'computed':>10}")
    for row, published in zip(profile.rows, csv.DictReader(PUBLISHED.read_text().splitlines()), strict=False):
        computed = row["peak_bytes"] / 1024
        print(f"{row['name']:<14} {published['peak_kib']:>10} {computed:>10.1f}  {'#' * round(computed / 25)}")
    print(f"\npeak: {profile.totals['peak_bytes'] / 1024:.1f} KiB, in {profile.totals['peak_at']}")
    if find_spec("matplotlib"):
        from memfit.report.files import write

        write(profile, Path("block_peaks.png"), force=True)
        print("drawn: block_peaks.png")


if __name__ == "__main__":
    main()
