"""What a process takes of a GPU outside the caching allocator: an estimate, and always called one."""

from __future__ import annotations

from memfit.units import format_bytes

_MIB = 1 << 20
_BY_MAJOR = {7: 350, 8: 450, 9: 550, 10: 600, 12: 500}
"""MiB by major compute capability."""


def context_bytes(capability: str | None) -> int:
    """Estimate the CUDA context, the loaded kernels and the libraries' handles of one process, in bytes."""
    major = int(str(capability or "8.0").partition(".")[0])
    return _BY_MAJOR.get(major, 500) * _MIB


def context_note(capability: str | None) -> str:
    """Say what the estimate is."""
    size = format_bytes(context_bytes(capability))
    return f"the context comes on top, estimated at {size}: it depends on GPU, driver and the kernels in use"
