"""VGG19, layer by layer: kernel and stride, output, activations, weights and their share.

python examples/vgg19_table.py
memfit profile torchvision:vgg19
"""

from __future__ import annotations

import csv
from pathlib import Path

import memfit
from memfit.units import format_shape

PUBLISHED = Path(__file__).parents[1] / "tests/expected/vgg19_224_layers.csv"


def main() -> None:
    profile = memfit.profile("torchvision:vgg19", inputs="1x3x224x224", per="layer", memory="ideal")
    *published, total = csv.DictReader(PUBLISHED.read_text().splitlines())
    weights = profile.totals["weights"]
    print(f"{'':<38}   {'activations':^21}   {'weights':^23}   {'% of weights':^17}")
    print(f"{'layer':<8} {'kernel':>6} {'stride':>6} {'output':>15}", end="")
    print(f"   {'published':>10} {'computed':>10}", end="")
    print(f"   {'published':>11} {'computed':>11}   {'published':>8} {'computed':>8}")
    for row, known in zip(profile.rows, published, strict=True):
        kernel, stride = (format_shape(row[key]) if row[key] else "" for key in ("kernel", "stride"))
        share = f"{100 * row['weights'] / weights:.2f}" if row["weights"] else ""
        print(
            f"{known['type']:<8} {kernel:>6} {stride:>6} {format_shape(row['output_shape']):>15}"
            f"   {known['activations']:>10} {row['activations']:>10}"
            f"   {known['weights']:>11} {row['weights'] or '':>11}"
            f"   {known['ratio_percent_of_weights']:>8} {share:>8}"
        )
    print(
        f"{'total':<38}   {total['activations']:>10} {profile.totals['activations']:>10}"
        f"   {total['weights']:>11} {weights:>11}"
    )
    print(
        f"parameters with biases: published {int(total['params_with_bias']):,}, computed {profile.totals['params']:,}"
    )


if __name__ == "__main__":
    main()
