"""Time and memory of whole `memfit train` processes, on a machine without a GPU.

python benchmarks/train_speed.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = (
    "torchvision:resnet50 --batch 32 --optimizer adam --budget 12GiB",
    "torchvision:vit_b_16 --batch 64 --optimizer adamw --budget 8GiB",
    "timm:convnext_tiny --batch 64 --optimizer adamw --autocast bf16 --budget 16GiB",
    "torchvision:resnet50 --batch 32 --optimizer adam",
)
RUNS = 3


def main() -> int:
    own = Path(sys.executable).parent / "memfit"
    memfit = str(own) if own.exists() else shutil.which("memfit")
    if memfit is None:
        print("train_speed: memfit is not installed", file=sys.stderr)
        return 2
    print("| memfit train | seconds, best of 3 | peak MiB of the process |\n|---|---:|---:|")
    for command in COMMANDS:
        seconds, peak = [], 0.0
        for _ in range(RUNS):
            start = time.perf_counter()
            process = subprocess.Popen([memfit, "train", *command.split()], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds.append(time.perf_counter() - start)
            peak = max(peak, usage.ru_maxrss / 1024)
            if status:
                return 1
        print(f"| {command} | {min(seconds):.2f} | {peak:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
