"""What a measurement depends on, and would have to be the same for another to compare with."""

from __future__ import annotations

import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from memfit.units import format_bytes

BUSY = 0.5
"""Load per core, before a measurement began, from which on the machine was busy with something else."""


def environment(device: str) -> dict[str, Any]:
    """Describe the machine: the processor by its name, threads, cores allowed, versions, load."""
    import torch

    found: dict[str, Any] = {}
    if device == "cuda":
        found |= _gpu()
    found["cpu"] = cpu_name()
    found["threads"] = torch.get_num_threads()
    found["cores"] = cores()
    found["isa"] = torch.backends.cpu.get_cpu_capability()
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        found["governor"] = governor
    with suppress(OSError, AttributeError):
        found["load"] = round(os.getloadavg()[0], 2)
    found["torch"] = str(torch.__version__)
    found["python"] = sys.version.split()[0]
    return found


def _gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gpu_memory": format_bytes(properties.total_memory),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_conv": torch.backends.cudnn.allow_tf32,
    }


def cpu_name() -> str:
    """Give the processor's name as Linux or the platform knows it."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def cores() -> str:
    """List the cores that this process may run on: `0-3,8`.

    >>> import re
    >>> bool(re.fullmatch(r"[0-9,-]+", cores()))
    True
    """
    if not hasattr(os, "sched_getaffinity"):
        return f"0-{(os.cpu_count() or 1) - 1}"
    return ranges(sorted(os.sched_getaffinity(0)))


def ranges(numbers: list[int]) -> str:
    """Write sorted numbers as ranges.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def remarks(found: dict[str, Any], device: str) -> list[str]:
    """Say what of the machine's state makes times doubtful."""
    notes = []
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" and found.get("load", 0) > BUSY * available:
        notes.append(f"the machine was busy: load {found['load']:.2f} on {available} cores before the measurement")
    if device == "cpu" and found["threads"] > available:
        notes.append(f"{found['threads']} threads share {available} cores")
    return notes


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
