"""Settings of the simulated CUDA caching allocator, and the text that PyTorch reads them from.

Line numbers are those of PyTorch v2.13.0 (commit cf30153c4c13); docs/cuda-allocator.md says how they were found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from memfit.errors import UsageError

MIB = 1 << 20
LARGE_BUFFER_BYTES = 20 * MIB
"""Segment that requests over 1 MiB and under 10 MiB share: `large_segment_size_`, c10/core/AllocatorConfig.h:339."""
MIN_LARGE_ALLOC_BYTES = 10 * MIB
"""From here on a request has a segment of its own: `kMinLargeAlloc`, c10/core/AllocatorConfig.h:22."""
INTERVALS = 16
"""Intervals of `roundup_power2_divisions`, from under 2 MiB to 32 GiB and more: c10/core/AllocatorConfig.cpp."""


@dataclass(frozen=True)
class Settings:
    """What the caching allocator is told, sizes in bytes.

    >>> Settings.parse("expandable_segments:True,max_split_size_mb:128").max_split_size_bytes
    134217728

    Raises:
        UsageError: a value that PyTorch would refuse.
    """

    expandable_segments: bool = False
    """Segments that grow page by page in place of one segment per request."""
    max_split_size_bytes: int | None = None
    """Free blocks from this size on are never split; None splits all."""
    max_non_split_rounding_bytes: int | None = None
    """How much larger than such a request the free block given to it must not be; None is the large segment's size."""
    large_segment_bytes: int = LARGE_BUFFER_BYTES
    """Segment that requests over 1 MiB and under 10 MiB share, and the step in which the large pool expands."""
    roundup_power2_divisions: int | tuple[int, ...] = 0
    """Steps between two powers of two to which requests round up, or one for each of the 16 intervals from 1 MiB."""
    garbage_collection_threshold: float = 0.0
    """Share of `allowed_bytes` from which old cached segments are given back; 0 never; no effect without a limit."""
    allowed_bytes: int | None = None
    """What `torch.cuda.set_per_process_memory_fraction` allows; None where no fraction below 1 is set."""
    capacity_bytes: int | None = None
    """What the device gives the allocator at most; None for a device without end."""
    device_bytes: int | None = None
    """The device's whole memory, by which an expandable segment's addresses are limited; None takes the capacity."""

    def __post_init__(self) -> None:
        if self.large_segment_bytes <= MIN_LARGE_ALLOC_BYTES or self.large_segment_bytes % MIB:
            _refuse("large_segment_bytes", self.large_segment_bytes, "give whole MiB, more than 10")
        for name in ("max_split_size_bytes", "max_non_split_rounding_bytes"):
            value = getattr(self, name)
            if value is not None and value < self.large_segment_bytes:
                _refuse(name, value, f"give at least the large segment's {self.large_segment_bytes} bytes")
        if not 0 <= self.garbage_collection_threshold < 1:
            _refuse(
                "garbage_collection_threshold", self.garbage_collection_threshold, "give a share between 0.0 and 1.0"
            )
        divisions = self.divisions()
        if len(divisions) != INTERVALS or any(d < 0 or d & (d - 1) for d in divisions):
            _refuse(
                "roundup_power2_divisions",
                self.roundup_power2_divisions,
                f"give one power of two, or {INTERVALS} of them",
            )
        for name in ("allowed_bytes", "capacity_bytes", "device_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                _refuse(name, value, "give a size in bytes, or None for no limit")

    def divisions(self) -> tuple[int, ...]:
        """Divisions for each of the 16 intervals: under 2 MiB, then from 2, 4, …, 32768 MiB on.

        >>> Settings(roundup_power2_divisions=4).divisions()[:3]
        (4, 4, 4)
        """
        given = self.roundup_power2_divisions
        return (given,) * INTERVALS if isinstance(given, int) else given

    @classmethod
    def parse(cls, text: str, *, device_bytes: int | None = None, capacity_bytes: int | None = None) -> Settings:
        """Read the text of `PYTORCH_ALLOC_CONF` or `PYTORCH_CUDA_ALLOC_CONF`.

        `device_bytes`, the device's whole memory, is needed for `per_process_memory_fraction`, which is a share of it;
        it and `capacity_bytes` go to the result as they are. Sources: `ConfigTokenizer` and `keys` in
        c10/core/AllocatorConfig.h and .cpp, `getKeys` in c10/cuda/CUDAAllocatorConfig.h:157-176. Stricter than
        PyTorch in one thing: a number with other characters behind it, or a negative one, is an error here, while
        PyTorch takes what `std::stoull` makes of it.

        >>> Settings.parse("roundup_power2_divisions:[256:1, 512:2, >:8]").divisions()[7:12]
        (1, 1, 2, 8, 8)

        Raises:
            UsageError: a key that PyTorch does not know, one that changes the model, or a value that it would refuse.
        """
        given = _pairs(text)
        found: dict[str, Any] = {"device_bytes": device_bytes, "capacity_bytes": capacity_bytes}
        for key in sorted(given, key=lambda k: k != "large_segment_size_mb"):  # the others are checked against it
            read = _READERS.get(key)
            if read is None:
                near = get_close_matches(key, _READERS, n=3)
                raise UsageError(
                    f"PyTorch's CUDA allocator has no setting {key!r}",
                    where="allocator settings",
                    received=repr(text),
                    todo=f"did you mean {' or '.join(near)}?" if near else f"its settings are {', '.join(_READERS)}",
                )
            found.update(read(key, given[key], device_bytes))
        return cls(**found)


def _refuse(name: str, value: object, todo: str) -> NoReturn:
    raise UsageError("this allocator setting cannot be", where=name, received=repr(value), todo=todo)


_ITEM = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)")


def _pairs(text: str) -> dict[str, str]:
    """Split `key:value,key:[list]`, white space ignored; the last of several values of a key holds."""
    squeezed = re.sub(r"\s", "", text)
    found: dict[str, str] = {}
    start = 0
    while start < len(squeezed):
        match = _ITEM.match(squeezed, start)
        if match is None:
            raise UsageError(
                "these allocator settings cannot be read",
                where=f"at {squeezed[start : start + 24]!r}",
                received=repr(text),
                todo="write key:value pairs with commas between them, such as expandable_segments:True",
            )
        found[match[1]] = match[2]
        start = match.end()
    return found


_Reader = Callable[[str, str, int | None], dict[str, Any]]


def _whole(key: str, value: str) -> int:
    if not value.isascii() or not value.isdigit():
        _refuse(key, value, "give a whole number")
    return int(value)


def _truth(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        _refuse(key, value, "write True or False, in this spelling")
    return value == "True"


def _size(field: str) -> _Reader:
    return lambda key, value, _: {field: _whole(key, value) * MIB}


def _expandable(key: str, value: str, _: int | None) -> dict[str, Any]:
    return {"expandable_segments": _truth(key, value)}


def _threshold(key: str, value: str, _: int | None) -> dict[str, Any]:
    share = _share(key, value)
    if not 0 < share < 1:
        _refuse(key, value, "give a share between 0.0 and 1.0")
    return {"garbage_collection_threshold": share}


def _share(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        _refuse(key, value, "give a share, such as 0.8")


def _fraction(key: str, value: str, device_bytes: int | None) -> dict[str, Any]:
    """`setMemoryFraction`, CUDACachingAllocator.cpp:2551: a limit exists only below 1."""
    share = _share(key, value)
    if not 0 <= share <= 1:
        _refuse(key, value, "give a share from 0.0 to 1.0")
    if share == 1:
        return {}
    if device_bytes is None:
        _refuse(key, value, "say how much memory the device has (device_bytes), since this is a share of it")
    return {"allowed_bytes": int(share * device_bytes)}


def _divisions(key: str, value: str, _: int | None) -> dict[str, Any]:
    """`parseRoundUpPower2Divisions`, c10/core/AllocatorConfig.cpp:211-216: one number, or a list of MiB:number.

    The first entry also holds below its size, `>` above the entry before it; sizes named nowhere are not rounded.
    """
    if not value.startswith("["):
        one = _whole(key, value)
        if one == 0:
            _refuse(key, value, "give a power of two")
        return {"roundup_power2_divisions": one}
    divisions = [0] * INTERVALS
    last, first = 0, True
    for item in filter(None, value[1:-1].split(",")):
        boundary, _colon, text = item.partition(":")
        number = _whole(key, text)
        if boundary == ">":
            divisions[last + 1 :] = [number] * (INTERVALS - last - 1)
            continue
        mib = _whole(key, boundary)
        if mib == 0 or mib & (mib - 1):
            _refuse(key, value, "bounds are powers of two, in MiB")
        last = min(mib.bit_length() - 1, INTERVALS - 1)
        if first:
            divisions[:last] = [number] * last
        first = False
        divisions[last] = number
    return {"roundup_power2_divisions": tuple(divisions)}


def _backend(key: str, value: str, _: int | None) -> dict[str, Any]:
    if value == "cudaMallocAsync":
        _refuse(key, value, "this simulates PyTorch's native allocator; cudaMallocAsync leaves pooling to the driver")
    if value != "native":
        _refuse(key, value, "the backends are native and cudaMallocAsync")
    return {}


def _preemptive(key: str, value: str, _: int | None) -> dict[str, Any]:
    if _truth(key, value):
        _refuse(key, value, "this refuses requests before cached segments are given back, which is not simulated")
    return {}


def _harmless(key: str, value: str, _: int | None) -> dict[str, Any]:  # noqa: ARG001  (a reader's signature)
    """Pinned host memory, locks and graph capture: no effect on what a device's default pools hold."""
    return {}


_READERS: dict[str, _Reader] = {
    "large_segment_size_mb": _size("large_segment_bytes"),
    "max_split_size_mb": _size("max_split_size_bytes"),
    "max_non_split_rounding_mb": _size("max_non_split_rounding_bytes"),
    "garbage_collection_threshold": _threshold,
    "roundup_power2_divisions": _divisions,
    "expandable_segments": _expandable,
    "per_process_memory_fraction": _fraction,
    "throw_on_cudamalloc_oom": _preemptive,
    "backend": _backend,
    **dict.fromkeys(
        (
            "release_lock_on_cudamalloc",
            "release_lock_on_hipmalloc",
            "graph_capture_record_stream_reuse",
            "pinned_use_cuda_host_register",
            "pinned_use_hip_host_register",
            "pinned_num_register_threads",
            "pinned_reserve_segment_size_mb",
            "pinned_free_catch_all",
            "pinned_use_background_threads",
            "pinned_max_round_threshold_mb",
            "pinned_max_cached_size_mb",
        ),
        _harmless,
    ),
}
