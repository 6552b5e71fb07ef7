"""What PyTorch's CPU allocator really did: the profiler's memory events, in time order.

The measuring side of the `eager` memory model. Every CPU allocation and free reports itself to the profiler; their
running sum is the truth that predictions are compared with, exact to the byte.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function


@dataclass(frozen=True)
class Allocations:
    """CPU allocations and frees during one call, in bytes."""

    events: tuple[int, ...]
    """Signed sizes in time order, frees negative."""
    peak_bytes: int
    """Highest running sum; what existed before the call counts as nothing."""


def measure(run: Callable[[], object], *, warm_up: int = 1) -> Allocations:
    """Run a callable under the profiler and give its CPU allocations.

    `warm_up` calls come first, so that what is made once and kept (oneDNN's primitives, tables, thread pools) does not
    count. What the last call returns is dropped inside the measurement.

    >>> import torch
    >>> measure(lambda: torch.zeros(1000).sum()).events
    (4000, 4, -4000, -4)
    """
    for _ in range(warm_up):
        run()
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    finally:
        if enabled:
            gc.enable()
    events = memory_events(profiler)
    peak = total = 0
    for change in events:
        total += change
        peak = max(peak, total)
    return Allocations(events, peak)


def measure_each(runs: Iterable[Callable[[], object] | None]) -> list[tuple[int, ...] | None]:
    """Give the signed bytes that each of several calls allocates and frees, in time order, all under one profile.

    What a call returns outlives its measurement, so its outputs stay allocated. Each call runs once before it is
    measured. None stands for a call that is None or raises.

    >>> import torch
    >>> x = torch.zeros(1000)
    >>> measure_each([lambda: x + 1, None])
    [(8, 4, 4000, -4, -8), None]
    """
    succeeded: list[bool] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for index, run in enumerate(runs):
            succeeded.append(run is not None and _runs_marked(run, f"{_MARK}{index}"))
            del run
    spans: list[tuple[int, int, int]] = []
    timed: list[tuple[int, int]] = []
    for event in profiler.profiler.kineto_results.events():
        name = event.name()
        if name == "[memory]" and event.device_type() == DeviceType.CPU:
            timed.append((event.start_ns(), event.nbytes()))
        elif name.startswith(_MARK):
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns(), int(name[len(_MARK) :])))
    timed.sort(key=lambda pair: pair[0])
    found: list[tuple[int, ...] | None] = [None] * len(succeeded)
    times = [time for time, _ in timed]
    for start, stop, index in spans:
        if succeeded[index]:
            inside = timed[bisect_left(times, start) : bisect_right(times, stop)]
            found[index] = tuple(nbytes for _, nbytes in inside)
    return found


_MARK = "memfit allocations "


def _runs_marked(run: Callable[[], object], mark: str) -> bool:
    """Run once unmarked and once marked; False where it raises."""
    try:
        run()
        with record_function(mark):
            kept = run()
    except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    del kept
    return True


def memory_events(profiler: Any) -> tuple[int, ...]:
    """Signed bytes of a finished profile's CPU memory events, in time order."""
    timed = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    timed.sort(key=lambda pair: pair[0])
    return tuple(nbytes for _, nbytes in timed)
