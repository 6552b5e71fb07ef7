"""What a process takes of a GPU outside the caching allocator: an estimate, and always called one.

The CUDA context, loaded kernels and the libraries' handles depend on GPU, driver and what runs; PyTorch reports them
nowhere, only the driver's own figure shows them. Reports of users with lazily loaded kernels (the default since CUDA
12.2) range from 170 to 550 MiB for the context and 60 to 250 MiB for what is loaded later: pytorch/pytorch #86509,
#107667, vllm-project/vllm #12126. More multiprocessors take more.
"""

from __future__ import annotations

from memfit.units import format_bytes

_MIB = 1 << 20
_ESTIMATES = {(7, 5): 300, (8, 0): 500, (8, 6): 400, (8, 9): 400, (9, 0): 600, (10, 0): 600}
"""MiB by compute capability; 500 for any other."""
SPREAD = 0.5
"""Share by which the real figure may differ, either way."""


def context_bytes(capability: str | None) -> int:
    """Estimate what one process takes of the GPU before and beside the caching allocator, in bytes.

    >>> context_bytes("8.0") // (1 << 20)
    500
    """
    major, _, minor = str(capability or "8.0").partition(".")
    return _ESTIMATES.get((int(major), int(minor or 0)), 500) * _MIB


def context_note(capability: str | None) -> str:
    """Say what the estimate is."""
    size = format_bytes(context_bytes(capability))
    return f"the CUDA context comes on top, estimated at {size}, give or take half: it depends on GPU and driver"
