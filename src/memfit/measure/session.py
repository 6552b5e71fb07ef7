"""Warm-up, timed iterations, and when to stop."""

from __future__ import annotations

import gc
import time
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from memfit.errors import UsageError
from memfit.measure.statistics import is_settled

Sample = TypeVar("Sample")

Progress = Callable[[str, int, int | None], None]
"""What is being done, how many iterations of it are done, and of how many; None where that is not known."""


def no_progress(_what: str, _done: int, _of: int | None) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Schedule:
    """How often to run."""

    warmup: int = 25
    iterations: int | None = 300
    """Timed iterations; with `seconds` the most of them, None for no limit."""
    seconds: float | None = None
    """Stop when the median is settled, at the latest after that time."""
    now: Callable[[], float] = field(default=time.monotonic, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.warmup < 0:
            raise UsageError(
                "there cannot be fewer than no warm-up iterations",
                where="--warmup",
                received=str(self.warmup),
                todo="give 0 or more",
            )
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(
                "at least one iteration must be timed",
                where="--iterations",
                received=str(self.iterations),
                todo="give 1 or more; 300 is usual",
            )
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UsageError(
                "the time for measuring must be above zero",
                where="--seconds",
                received=str(self.seconds),
                todo="give the most seconds that a measurement may take, such as 10",
            )
        if self.seconds is None and self.iterations is None:
            raise UsageError(
                "a measurement needs an end",
                where="--iterations, --seconds",
                received="neither",
                todo="give iterations or seconds",
            )


@dataclass
class Collected(Generic[Sample]):
    """The samples of a run of iterations."""

    samples: list[Sample]
    interrupted: bool = False
    """True where Ctrl-C came before the end; every sample is of a whole iteration."""
    settled: bool | None = None
    """Of an adaptive run, whether the median was known well enough when it stopped."""


def collect(
    once: Callable[[], Sample],
    schedule: Schedule,
    *,
    whole: Callable[[Sample], float],
    what: str = "",
    progress: Progress = no_progress,
) -> Collected[Sample]:
    """Run the warm-up and the timed iterations; Ctrl-C ends it early, with what there is.

    >>> ticks = iter(range(100))
    >>> collect(lambda: next(ticks), Schedule(2, 3), whole=float).samples
    [2, 3, 4]

    Args:
        once: one iteration → its sample.
        schedule: how often.
        whole: a sample → the milliseconds that an adaptive run watches.
        what: what is measured, for the progress bar.
        progress: is told after each iteration.

    Raises:
        KeyboardInterrupt: it came before the first timed iteration was done.
    """
    found: Collected[Sample] = Collected([])
    try:
        for done in range(schedule.warmup):
            progress(f"{what}: warming up", done, schedule.warmup)
            once()
        ordered: list[float] = []
        start = schedule.now()
        while schedule.iterations is None or len(found.samples) < schedule.iterations:
            sample = once()
            found.samples.append(sample)
            progress(what, len(found.samples), schedule.iterations)
            if schedule.seconds is not None:
                insort(ordered, whole(sample))
                found.settled = is_settled(ordered)
                if found.settled or schedule.now() - start >= schedule.seconds:
                    break
    except KeyboardInterrupt:
        if not found.samples:
            raise
        found.interrupted = True
    return found


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Take what exists out of the garbage collector's sight, so that its passes stay short while times are taken.

    It stays on: a model may leave cycles behind, and they may hold activations.
    """
    gc.collect()
    if gc.get_freeze_count():  # someone else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
