"""TinyTL: training keeps activations, and in MobileNetV2 the early blocks keep most of them.

Published are the seven blocks that change the shape, in MiB ("Mb" in print), at batch 1.

    python examples/saved_activations.py
    memfit profile torchvision:mobilenet_v2 --per block --memory tinytl
"""

from __future__ import annotations

import csv
from pathlib import Path

import memfit

PUBLISHED = Path(__file__).parents[1] / "tests/expected/mobilenet_v2_224_saved_activations_tinytl.csv"


def main() -> None:
    profile = memfit.profile("torchvision:mobilenet_v2", inputs="1x3x224x224", per="block", memory="tinytl")
    saved = {row["name"]: row["saved_bytes"] for row in profile.rows}
    print("kept for backward by TinyTL's rule, MiB")
    print(f"{'block':<14} {'input':>14} {'published':>10} {'computed':>10}")
    for row in csv.DictReader(PUBLISHED.read_text().splitlines()):
        computed = saved[row["block"]] / 2**20
        print(f"{row['block']:<14} {row['input_shape']:>14} {row['published_mib'] or '-':>10} {computed:>10.2f}")

    whole = profile.totals
    print(f"\nwhole network: {whole['saved_bytes'] / 2**20:.1f} MiB")
    for train_only in ("norm", "bias"):
        part = memfit.profile(
            "torchvision:mobilenet_v2", inputs="1x3x224x224", memory="tinytl", train_only=train_only, frozen_bits=8
        ).totals
        kept, size = part["saved_bytes"] / 2**20, part["model_bytes"] / 2**20
        print(f"training only {train_only}: {kept:.1f} MiB kept, model {size:.2f} MiB with frozen parameters at 8 bits")


if __name__ == "__main__":
    main()
