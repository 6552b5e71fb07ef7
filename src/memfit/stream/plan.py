"""The plan of a streamed network: segments, stripes, and an arena in which everything has its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memfit.stream.choose import CAP, Choice, within
from memfit.stream.layout import HEIGHTS, Arena, SegmentLayout, lay_out, value_name
from memfit.stream.network import StreamNetwork
from memfit.stream.padding import fold_padding
from memfit.stream.recompute import reordered
from memfit.stream.segments import Segment, Segments
from memfit.stream.skips import Order, Variants

TRIES = 8
"""Choices that are packed, where the first ones do not pack to their bound."""


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
    best: StreamPlan | None = None
    apart: set[tuple[int, Order]] = set()
    """Segments whose output cannot take its input's room: this was in the way of a packing."""
    for trial in range(TRIES):
        choice = _candidate(found.without(apart) if apart else front, limit, max_peak_bytes)
        if best is not None and max_peak_bytes is None and best.peak_bytes <= choice.peak_bytes:
            break
        plan = _packed(found, front, choice, max_peak_bytes, HEIGHTS[:1] if trial < TRIES - 1 else HEIGHTS)
        best = plan if best is None else better(best, plan, max_peak_bytes)
        near = [at.segment for at in plan.segments[: plan.arena.stuck + 1] if at.segment.overlaps]
        if plan.arena.packing.optimal or not near or (max_peak_bytes is not None and plan.met):
            break
        apart.add((choice.variant, choice.order[near[-1].begin : near[-1].end]))
    assert best is not None
    easier = [c for c in front if c.extra_macs <= limit and c.peak_bytes < best.peak_bytes]
    if max_peak_bytes is None and easier[:-1]:  # what takes less work may be easier to pack
        for choice in easier[-2 :: -max(len(easier) // TRIES, 1)]:
            if choice.peak_bytes < best.peak_bytes:
                plan = _packed(found, front, choice, max_peak_bytes, HEIGHTS[:1])
                best = better(best, plan, max_peak_bytes)
    return best


def _packed(
    found: Variants, front: tuple[Choice, ...], choice: Choice, peak: int | None, heights: Sequence[float]
) -> StreamPlan:
    """Pack a choice."""
    given = found.segments(choice)
    executed = reordered(given.network, choice.order)
    segments = Segments(executed, resident=given.resident, passes=given.passes)
    arena = lay_out(segments, _simpler(segments, choice), heights)
    met = peak is None or arena.packing.height <= peak
    return StreamPlan(executed, given.resident, arena, choice.extra_macs, found.network.macs, front, met)


def _simpler(segments: Segments, choice: Choice) -> list[Segment]:
    """Count row by row only where the peak needs it: the fewer rectangles, the sooner they are packed."""
    found = []
    for segment in choice.segments:
        if segment.overlaps:
            rivals = segments.ending(segment.end, 0, choice.peak_bytes + 1, 1)
            rival = next((r for r in rivals if r.begin == segment.begin and not r.overlaps), segment)
            found.append(replace(rival, extra_macs=segment.extra_macs))
        else:
            found.append(segment)
    return found


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
