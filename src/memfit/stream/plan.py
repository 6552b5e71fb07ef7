"""The plan of a streamed network: segments, stripes, and an arena in which everything has its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfit.stream.choose import CAP, Choice, within
from memfit.stream.layout import Arena, Draft, SegmentLayout, value_name
from memfit.stream.network import StreamNetwork
from memfit.stream.padding import fold_padding
from memfit.stream.reorder import reordered
from memfit.stream.segments import Segment, Segments
from memfit.stream.skips import Order, Variants

TRIES = 6
"""Choices that are packed, where the first ones do not pack to their bound."""

EASIER = 4
"""Choices of less work that are packed, where the others need more than they."""


@dataclass(frozen=True)
class StreamPlan:
    """How a network runs in little memory."""

    network: StreamNetwork
    """As it is executed: without the PADs that the windows behind them see to, and what is computed again stands there
    again; `StreamOp.origin` says whose it is."""
    resident: bool
    """True if the network's input is whole in the arena; False if it is fed row by row."""
    arena: Arena
    extra_macs: int
    """Multiply-accumulates above the plain run's."""
    macs: int
    """Multiply-accumulates of the plain run of the network as it was given."""
    front: tuple[Choice, ...]
    """All choices that no other beats in peak and extra work, by increasing work; by count, not packed."""
    met: bool
    """True if it is within what was asked for."""

    @property
    def peak_bytes(self) -> int:
        """The arena: height of the packing."""
        return self.arena.packing.height

    @property
    def segments(self) -> tuple[SegmentLayout, ...]:
        """The segments in order."""
        return self.arena.layouts

    @property
    def extra_share(self) -> float:
        """Extra multiply-accumulates as a share of the plain run's."""
        return self.extra_macs / self.macs if self.macs else 0.0

    @property
    def passes(self) -> int:
        """How often the input is read: in each segment that takes it row by row, once per stripe that needs it."""
        kept = {buffer.name for buffer in self.arena.problem.buffers}
        counts = {i: int(value_name(i) in kept) for i in self.network.inputs}
        for at in self.segments:
            for line in at.lines:
                if line.value in counts:
                    counts[line.value] += sum(left < right for left, right in line.columns)
        return max(counts.values(), default=1)


def plan_stream(
    network: StreamNetwork,
    *,
    max_extra_macs: float = 0.1,
    max_peak_bytes: int | None = None,
    resident: bool = False,
    passes: int | None = None,
) -> StreamPlan:
    """Plan a network so that it runs in little memory.

    Args:
        network: from `network_of`.
        max_extra_macs: work that may be done twice, as a share of the plain run's multiply-accumulates.
        max_peak_bytes: instead of the lowest peak, look for the least work whose arena has at most so many bytes.
        resident: the network's input is whole in the arena, rather than fed row by row.
        passes: how often a fed input may be read, once per stripe and pass; None for as often as it takes. Without
            extra work it is read once.
    """
    network = fold_padding(network)
    limit = int(max_extra_macs * network.macs)
    found = Variants(network, max(CAP, max_extra_macs), resident=resident, passes=passes)
    front = tuple(found.front)
    trials: list[_Trial] = []
    apart: set[tuple[int, Order]] = set()
    """Segments whose output cannot take its input's room: this was in the way of a packing."""
    best: StreamPlan | None = None
    while best is None and len(trials) < TRIES:
        trial = _Trial(found, _candidate(found.without(apart, limit) if apart else front, limit, max_peak_bytes))
        best = trial.within(max(trial.draft.bound, max_peak_bytes or 0))
        if best is None:
            trials.append(trial)
            near = [at.segment for at in trial.draft.layouts[: trial.draft.stuck + 1] if at.segment.overlaps]
            if not near:
                break
            apart.add((trial.choice.variant, trial.choice.order[near[-1].begin : near[-1].end]))
    if best is None or max_peak_bytes is None or best.peak_bytes > max_peak_bytes:
        for trial in sorted(trials, key=lambda trial: trial.draft.bound):  # a little higher, they may pack
            best = trial.lowest(2 * trial.draft.bound if best is None else best.peak_bytes) or best
        best = best or trials[0].anyhow()
        easier = [c for c in front if c.extra_macs <= limit and c.peak_bytes < best.peak_bytes]
        for choice in easier[-2 :: -max(len(easier) // EASIER, 1)]:  # what takes less work may be easier to pack
            if choice.peak_bytes < best.peak_bytes:
                best = _Trial(found, choice).lowest(best.peak_bytes) or best
    return replace(best, front=front, met=max_peak_bytes is None or best.peak_bytes <= max_peak_bytes)


class _Trial:
    """A choice, to be packed."""

    def __init__(self, found: Variants, choice: Choice) -> None:
        given = found.segments(choice)
        self.choice, self.macs = choice, found.network.macs
        self.network = reordered(given.network, choice.order)
        segments = Segments(self.network, resident=given.resident, passes=given.passes)
        self.resident = given.resident
        self.draft = Draft(segments, _simpler(segments, choice))

    def within(self, height: int) -> StreamPlan | None:
        """Pack it within a height in bytes; None where that is not found."""
        arena = self.draft.within(height)
        return None if arena is None else self._plan(arena)

    def lowest(self, below: int) -> StreamPlan | None:
        """Pack it as low as may be; None where that is not below so many bytes."""
        arena = self.draft.lowest(below)
        return None if arena is None else self._plan(arena)

    def anyhow(self) -> StreamPlan:
        """Pack it, however high."""
        return self._plan(self.draft.anyhow())

    def _plan(self, arena: Arena) -> StreamPlan:
        return StreamPlan(self.network, self.resident, arena, self.choice.extra_macs, self.macs, (), met=True)


def _simpler(segments: Segments, choice: Choice) -> list[Segment]:
    """Count row by row only where the peak needs it: the fewer rectangles, the sooner they are packed."""
    ends = [segment.end for segment in choice.segments if segment.overlaps]
    simple = {
        (rival.begin, rival.end): rival
        for rival in reversed(list(segments.among(ends, 0, choice.peak_bytes + 1, 1, overlaps=False)))
    }
    return [
        replace(simple.get((segment.begin, segment.end), segment), extra_macs=segment.extra_macs)
        if segment.overlaps
        else segment
        for segment in choice.segments
    ]


def _candidate(front: Sequence[Choice], limit: int, peak: int | None) -> Choice:
    """Take the lowest peak with no more extra work than a limit, or the least such work within a peak."""
    allowed = [choice for choice in front if choice.extra_macs <= limit] or front[:1]
    met = within(allowed, peak_bytes=peak) if peak is not None else None
    return allowed[-1] if met is None else met


def better(a: StreamPlan, b: StreamPlan, peak: int | None) -> StreamPlan:
    """Take the plan with the lower peak or, where both are within one that was asked for, with less work."""
    if peak is not None and a.met != b.met:
        return a if a.met else b
    if peak is not None and a.met:
        return min(a, b, key=lambda plan: (plan.extra_macs, plan.peak_bytes))
    return min(a, b, key=lambda plan: (plan.peak_bytes, plan.extra_macs))
