"""Run traces through PyTorch's own CUDA caching allocator, without a GPU, and hold memfit's simulation against it.

    python benchmarks/allocator_truth/record.py --torch-lib DIR --cuda-include DIR [--traces N] [--events N] [--write]

`--torch-lib` holds libc10_cuda.so and libc10.so, from the folder torch/lib of a CUDA wheel of the PyTorch version that
is installed (its headers are used); `--cuda-include` holds cuda.h, as the wheels nvidia-cuda-runtime and
nvidia-cuda-crt bring it. The library runs on fake_cuda.cpp, a CUDA runtime that only counts. Random traces under each
setting and limit must give the same figures after every event and the same layout at the end; `--write` stores short
ones for tests/pure/test_cuda_allocator.py.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from memfit.memory.cuda.allocator import Block, CachingAllocator, OutOfMemory, Settings

HERE = Path(__file__).parent
EXPECTED = HERE.parents[1] / "tests" / "expected" / "cuda_allocator_traces.txt"
MIB = 1 << 20
TEXTS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "max_split_size_mb:32,max_non_split_rounding_mb:25",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:2,4:8,>:16]",
    "large_segment_size_mb:12",
    "large_segment_size_mb:64",
    "expandable_segments:True,large_segment_size_mb:12",
    "expandable_segments:True,roundup_power2_divisions:8",
    "expandable_segments:True,max_split_size_mb:32",
    "garbage_collection_threshold:0.6,per_process_memory_fraction:0.7",
    "per_process_memory_fraction:0.9",
)
LIMITS = (
    {},
    {"capacity_bytes": 600 * MIB + 12345, "device_bytes": 600 * MIB + 12345},
    {"capacity_bytes": 130 * MIB, "device_bytes": 130 * MIB},
    {"capacity_bytes": 300 * MIB, "device_bytes": 1000 * MIB},
)
ENDLESS = {"device_bytes": 80 << 30}
EDGES = (1, 512, 513, MIB - 1, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 12 * MIB, 19 * MIB, 20 * MIB, 32 * MIB)


def build(folder: Path, torch_lib: Path, cuda_include: Path) -> Path:
    """Compile the fake runtime and the driver."""
    import torch

    headers = Path(torch.__file__).parent / "include"
    macros = folder / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"  # a CPU build leaves it out
    macros.parent.mkdir(parents=True)
    macros.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    versions = folder / "versions.map"
    versions.write_text("libcudart.so.13 { global: *; };\n")
    uncalled, runtime, driver = folder / "uncalled.o", folder / "libcudart.so.13", folder / "drive"
    subprocess.run(["gcc", "-fPIC", "-c", HERE / "uncalled.c", "-o", uncalled], check=True)
    linked = ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}"]
    source = HERE / "fake_cuda.cpp"
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-I{cuda_include}", source, uncalled, *linked, "-o", runtime], check=True
    )
    paths = [f"-I{folder}", f"-I{headers}", f"-I{cuda_include}", f"-L{torch_lib}", f"-Wl,-rpath,{torch_lib}"]
    libraries = ["-Wl,--no-as-needed", runtime, "-lc10_cuda", "-lc10"]
    subprocess.run(["g++", "-std=c++20", "-w", *paths, HERE / "drive.cpp", *libraries, "-o", driver], check=True)
    return driver


def trace(seed: int, count: int) -> list[str]:
    """Make random events: sizes around the rules' bounds and between, phases of growing and of shrinking."""
    rng = random.Random(seed)
    events: list[str] = []
    live: list[int] = []
    requests, growth = 0, 0.6
    for _ in range(count):
        if rng.random() < 0.02:
            growth = rng.choice((0.35, 0.5, 0.6, 0.75))
        if rng.random() < 0.01:
            events.append("e")
        elif live and rng.random() > growth:
            events.append(f"f {live.pop(rng.randrange(len(live)))}")
        else:
            kind = rng.random()
            if kind < 0.3:
                size = max(0, rng.choice(EDGES) + rng.choice((-512, -1, 0, 0, 1, 512)))
            elif kind < 0.6:
                size = rng.randrange(1, MIB)
            else:
                size = rng.randrange(MIB, (10 if kind < 0.85 else 64) * MIB)
            events.append(f"m {size}")
            live.append(requests)
            requests += 1
    return [*events, "l"]


def theirs(driver: Path, text: str, limits: dict[str, int], events: list[str], *, down: bool) -> list[str]:
    """PyTorch's figures."""
    environment = {
        "LD_LIBRARY_PATH": str(driver.parent),
        "PYTORCH_CUDA_ALLOC_CONF": text,
        "TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC": "0",
        "FAKE_DEVICE": str((limits or ENDLESS)["device_bytes"]),
    }
    if "capacity_bytes" in limits:
        environment["FAKE_CAPACITY"] = str(limits["capacity_bytes"])
    if down:
        environment["FAKE_DOWN"] = "1"
    ran = subprocess.run(
        [driver], input="\n".join(events), env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(f"{text!r} {limits}: {ran.stderr}")
    return ran.stdout.splitlines()


def ours(text: str, limits: dict[str, int], events: list[str]) -> Iterator[str]:
    """Memfit's figures, in the same form."""
    a = CachingAllocator(Settings.parse(text, **(limits or ENDLESS)))
    taken: list[Block | None] = []
    for event in events:
        kind, _, number = event.partition(" ")
        answer = "ok"
        if kind == "m":
            taken.append(None)
            try:
                taken[-1] = a.malloc(int(number))
            except OutOfMemory:
                answer = "full"
        elif kind == "f":
            a.free(taken[int(number)])
        elif kind == "e":
            a.empty_cache()
        else:
            layout = (",".join(f"{'-+'[b.allocated]}{b.nbytes}" for b in s.blocks) for s in a.segments())
            yield " ".join(("layout", *layout))
            continue
        yield f"{answer} {a.allocated_bytes} {a.reserved_bytes} {a.requested_bytes} {a.inactive_split_bytes}"


def same(one: str, other: str) -> bool:
    """Equal lines; segments of a layout may come in any order, since addresses are made up."""
    return sorted(one.split()) == sorted(other.split()) if one.startswith("layout") else one == other


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-lib", type=Path, required=True)
    parser.add_argument("--cuda-include", type=Path, required=True)
    parser.add_argument("--traces", type=int, default=5, help="for each setting and limit")
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help=f"store short traces in {EXPECTED.name}")
    options = parser.parse_args()
    compared = 0
    stored: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        driver = build(Path(scratch), options.torch_lib.resolve(), options.cuda_include.resolve())
        for text in TEXTS:
            for order, limits in enumerate(LIMITS):
                for seed in range(options.traces):
                    events = trace(seed, options.events)
                    down = seed % 2 == 1 and "expandable" not in text
                    real = theirs(driver, text, limits, events, down=down)
                    for event, one, other in zip(events, real, ours(text, limits, events), strict=True):
                        compared += 1
                        if not same(one, other):
                            sys.exit(f"{text!r} {limits} seed {seed}: {event}\n  PyTorch {one}\n  memfit  {other}")
                if order in (1, 2):
                    events = trace(1000 + order, 110)
                    stored.append(" ".join(("trace", repr(text), *(f"{k}={v}" for k, v in limits.items()))))
                    real = theirs(driver, text, limits, events, down=False)
                    stored += [f"{e} {r}" if r[0] != "l" else r for e, r in zip(events, real, strict=True)]
    print(f"{compared} lines equal, in {len(TEXTS) * len(LIMITS) * options.traces} traces")
    if options.write:
        import torch

        head = (
            f"# Made by benchmarks/allocator_truth/record.py with PyTorch {torch.__version__.split('+')[0]}.\n"
            "# After each event: whether it was served, allocated, reserved, requested and inactive split bytes.\n"
        )
        EXPECTED.write_text(head + "\n".join(stored) + "\n", encoding="utf-8")
        print(f"wrote {EXPECTED.name}")


if __name__ == "__main__":
    main()
