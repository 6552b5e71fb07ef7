"""Timestamps during a run: a monotonic clock on the CPU, events on a GPU.

A timer gives a `mark` to be called between parts of a run, and afterwards the milliseconds between the marks. The mark
is all that the measured run has to pay, so that on a GPU the host waits once per run, never in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from memfit.measure.statistics import Array

Mark = Callable[[], object]


class Timer(Protocol):
    """Timestamps of one device."""

    @property
    def mark(self) -> Mark:
        """Take a timestamp."""

    def start(self) -> None:
        """Forget the marks so far."""

    def finish(self) -> Array:
        """Give the milliseconds between one mark and the next."""


class CpuTimer:
    """Reads a monotonic clock at each mark.

    >>> ticks = iter([0, 1_000_000, 3_000_000])
    >>> timer = CpuTimer(lambda: next(ticks))
    >>> for _ in range(3):
    ...     timer.mark()
    >>> timer.finish().tolist()
    [1.0, 2.0]
    """

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        marks: list[int] = []
        append = marks.append

        def mark() -> None:
            append(now())

        self.mark = mark
        self._marks = marks

    def start(self) -> None:
        """Forget the marks so far."""
        self._marks.clear()

    def finish(self) -> Array:
        """Give the milliseconds between one mark and the next."""
        marks = np.array(self._marks, dtype=np.int64)
        spans: Array = (marks[1:] - marks[:-1]) / 1e6
        return spans


class CudaTimer:
    """Records an event in the current stream at each mark, and waits for the last one when asked for the times.

    Events are made once and used again in every run.
    """

    def __init__(self) -> None:
        import torch

        self._new: Callable[..., Any] = torch.cuda.Event
        self._events: list[Any] = []
        self._used = 0

    def mark(self) -> None:
        """Record one event."""
        if self._used == len(self._events):
            self._events.append(self._new(enable_timing=True))
        self._events[self._used].record()
        self._used += 1

    def start(self) -> None:
        """Forget the marks so far."""
        self._used = 0

    def finish(self) -> Array:
        """Wait once, for the last event, and give the milliseconds between one mark and the next."""
        events = self._events[: self._used]
        if not events:
            return np.zeros(0)
        events[-1].synchronize()
        return np.array([before.elapsed_time(after) for before, after in pairwise(events)], dtype=np.float64)


TIMERS: dict[str, Callable[[], Timer]] = {"cpu": CpuTimer, "cuda": CudaTimer}
"""Device → its timer."""
