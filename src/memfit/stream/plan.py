"""The plan of a streamed network: segments, stripes, and an arena in which everything has its place."""

from __future__ import annotations

from dataclasses import dataclass

from memfit.stream.choose import CAP, Choice, choose, within
from memfit.stream.layout import NODES, Arena, SegmentLayout, lay_out
from memfit.stream.network import StreamNetwork
from memfit.stream.segments import STRIPES, Segment, Segments

TRIES = 2
"""Choices of a front that are packed, where the first ones do not pack to their bound."""


@dataclass(frozen=True)
class StreamPlan:
    """How a network runs in little memory."""

    network: StreamNetwork
    resident: bool
    """True if the network's input is whole in the arena; False if it is fed row by row."""
    arena: Arena
    extra_macs: int
    """Multiply-accumulates above the plain run's."""
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
        return self.extra_macs / self.network.macs if self.network.macs else 0.0

    @property
    def passes(self) -> int:
        """How often the input is read, row by row: once per stripe that takes any of it."""
        if self.resident:
            return 1
        fed = set(self.network.inputs)
        counts = [sum(a < b for a, b in line.columns) for at in self.segments for line in at.lines if line.value in fed]
        return max(counts, default=1)


def plan_stream(
    network: StreamNetwork,
    *,
    max_extra_macs: float = 0.1,
    max_peak_bytes: int | None = None,
    resident: bool = False,
    passes: int = STRIPES,
    nodes: int = NODES,
) -> StreamPlan:
    """Plan a network so that it runs in little memory.

    Args:
        network: from `network_of`.
        max_extra_macs: work that may be done twice, as a share of the plain run's multiply-accumulates.
        max_peak_bytes: instead of the lowest peak, look for the least work whose arena has at most so many bytes.
        resident: the network's input is whole in the arena, rather than fed row by row.
        passes: how often a fed input may be read, once per stripe; without extra work it is read once.
        nodes: placements that each packing may try.
    """
    limit = int(max_extra_macs * network.macs)
    cap = max(CAP, max_extra_macs)
    best: StreamPlan | None = None
    front: tuple[Choice, ...] = ()
    for overlap in (True, False):
        segments = Segments(network, resident=resident, overlap=overlap, passes=passes)
        found = choose(segments, cap)
        front = front or tuple(found)
        for choice in _candidates(found, limit, max_peak_bytes):
            arena = lay_out(segments, _simpler(network, choice, segments), nodes=nodes if best is None else nodes // 8)
            height = arena.packing.height
            met = max_peak_bytes is None or height <= max_peak_bytes
            plan = StreamPlan(network, resident, arena, choice.extra_macs, front, met)
            best = plan if best is None else _better(best, plan, max_peak_bytes)
            if best is plan and height <= choice.peak_bytes and met:
                return plan
    assert best is not None  # the plain run is a candidate
    return best


def _simpler(network: StreamNetwork, choice: Choice, segments: Segments) -> list[Segment]:
    """Count row by row only where the peak needs it: the fewer rectangles, the sooner they are packed."""
    plain = Segments(network, resident=segments.resident, overlap=False, passes=segments.passes)
    found = []
    for segment in choice.segments:
        if segment.overlaps:
            rivals = plain.ending(segment.end, network.macs, choice.peak_bytes + 1, 1)
            found.append(next((r for r in rivals if r.begin == segment.begin), segment))
        else:
            found.append(segment)
    return found


def _candidates(front: list[Choice], limit: int, peak: int | None) -> list[Choice]:
    """Give the choices to pack, the best first."""
    allowed = [choice for choice in front if choice.extra_macs <= limit] or front[:1]
    if peak is not None:
        first = within(allowed, peak_bytes=peak)
        return allowed[allowed.index(first) :][:TRIES] if first is not None else allowed[-1:]
    return allowed[-TRIES:][::-1]


def _better(a: StreamPlan, b: StreamPlan, peak: int | None) -> StreamPlan:
    if peak is not None and a.met != b.met:
        return a if a.met else b
    if peak is not None and a.met:
        return min(a, b, key=lambda plan: (plan.extra_macs, plan.peak_bytes))
    return min(a, b, key=lambda plan: (plan.peak_bytes, plan.extra_macs))
