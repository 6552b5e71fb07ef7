"""What to measure and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from memfit.errors import UsageError
from memfit.measure.session import Schedule
from memfit.measure.subject import Placing
from memfit.measure.timers import TIMERS

PER = ("model", "block", "layer", "op")
"""What rows can be."""

MODES = ("in-place", "isolated")
"""How rows are timed: during a run of the whole model, or each alone on the input that it had there."""


@dataclass(frozen=True)
class Config:
    """What to measure and how."""

    placing: Placing = field(default_factory=Placing)
    schedule: Schedule = field(default_factory=Schedule)
    per: str = "model"
    mode: str = "in-place"
    batches: tuple[int, ...] | None = None
    """Batch sizes; several make a sweep with one row each."""
    compile: bool = False
    threads: int | None = None
    with_memory: bool = False
    blocks: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is built."""
        if self.per not in PER:
            raise _unknown("there is no such kind of row", "--per", self.per, PER)
        if self.mode not in MODES:
            raise _unknown("there is no such way to time rows", "--mode", self.mode, MODES)
        if self.placing.device not in TIMERS:
            raise _unknown("there is no such device", "--device", self.placing.device, TIMERS)
        if self.blocks is not None and self.per != "block":
            raise UsageError(
                "a pattern for blocks needs rows per block",
                where="--blocks",
                received=repr(self.blocks),
                todo="add --per block, or leave out --blocks",
            )
        if self.threads is not None and self.threads < 1:
            raise _too_few("--threads", self.threads)
        for batch in self.batches or ():
            if batch < 1:
                raise _too_few("--batch", batch)
        if self.batches is not None and len(set(self.batches)) < len(self.batches):
            raise UsageError(
                "a batch size is given twice",
                where="--batch",
                received=",".join(map(str, self.batches)),
                todo="give each only once",
            )
        if self.sweep and self.per != "model":
            raise UsageError(
                "a sweep over batch sizes has one row for each of them",
                where="--batch",
                received=f"{','.join(map(str, self.batches or ()))} with --per {self.per}",
                todo="leave out --per, or give a single batch size",
            )
        if self.compile and self.per != "model":
            raise UsageError(
                "a compiled model has no layers left to time: the compiler fuses them",
                where="--compile",
                received=f"--per {self.per}",
                todo="leave out --per to time the whole compiled model, or leave out --compile",
            )

    @property
    def sweep(self) -> bool:
        """True where several batch sizes are measured."""
        return self.batches is not None and len(self.batches) > 1


def _unknown(what: str, where: str, received: str, known: Iterable[str]) -> UsageError:
    return UsageError(what, where=where, received=repr(received), todo=f"choose one of {', '.join(known)}")


def _too_few(where: str, received: int) -> UsageError:
    return UsageError("this counts from one", where=where, received=str(received), todo="give 1 or more")
