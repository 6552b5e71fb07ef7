"""MobileNetV2's tensor by tensor report: parameters, buffers and the input, each rounded up to 512 bytes.

Published totals for two inputs; the second was printed as 14.49 MiB in one place and as 15.49 in another, of which
the first is taken as a misprint.

    python examples/tensor_report.py
    memfit profile torchvision:mobilenet_v2 --input 1x3x500x334 --per tensor --memory tensors
"""

from __future__ import annotations

import csv
from pathlib import Path

import memfit

PUBLISHED = Path(__file__).parents[1] / "tests/expected/mobilenet_v2_memory_report.csv"
ALSO_PRINTED = {"1x3x500x334": "14.49 or "}
"""What one place says instead, by input."""


def main() -> None:
    for known in csv.DictReader(PUBLISHED.read_text().splitlines()):
        shape = known["input_shape"]
        profile = memfit.profile("torchvision:mobilenet_v2", inputs=shape, per="tensor", memory="tensors")
        totals = profile.totals
        mib = f"{totals['allocated_bytes'] / 2**20:.2f}"
        print(f"{known['input']}, {shape}: {len(profile.rows)} tensors")
        print(f"{'':<12} {'published':>16} {'computed':>16}")
        print(f"{'elements':<12} {known['total_tensor_elements']:>16} {totals['elements']:>16}")
        print(f"{'bytes':<12} {known['allocated_bytes_512_rounded']:>16} {totals['allocated_bytes']:>16}")
        print(f"{'MiB':<12} {ALSO_PRINTED.get(shape, '') + known['allocated_mib']:>16} {mib:>16}")
        print(f"{'parameters':<12} {known['parameters']:>16} {totals['params']:>16}\n")


if __name__ == "__main__":
    main()
