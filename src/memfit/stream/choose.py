"""The best segments of a network: dynamic programming over the places where it may be cut."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from memfit.stream.segments import STRIPES, Segment, Segments

CAP = 0.5
"""Share of extra multiply-accumulates above which no plan is looked for."""


@dataclass(frozen=True)
class Choice:
    """One way to cut a network: no other has a lower peak for as little extra work."""

    peak_bytes: int
    extra_macs: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class _State:
    """The best way found to a cut."""

    peak: int
    extra: int
    stripes: int
    """Of all its segments: of ways that are otherwise equal, the one with the fewest is taken."""
    segment: Segment | None
    before: _State | None


def choose(segments: Segments, cap: float = CAP) -> list[Choice]:
    """Find all ways to cut a network that no other beats in both peak and extra work, from least work to least memory.

    Exact among the segments that `Segments` can measure: for each cut, every way to it that no other beats is kept.

    Args:
        segments: of the network.
        cap: largest share of extra multiply-accumulates.
    """
    count = segments.count
    limit_macs = int(cap * segments.network.macs)
    bound = 1 << 62
    if count:  # the plain run is one way; a segment that needs more is in no better one
        bound = 1 + max(next(segments.ending(end, 0, 1 << 62)).peak_bytes for end in range(1, count + 1))
    full = _states(segments, limit_macs, bound, 1)
    if full:  # stripes only add work: what they are for is a lower peak than this
        bound = full[0].peak + 1
    return [_choice(state) for state in _states(segments, limit_macs, bound, STRIPES)]


def _states(segments: Segments, limit_macs: int, bound: int, stripes: int) -> list[_State]:
    """Find the best ways to the end of a network with at most so many stripes."""
    fronts: list[list[_State]] = [[_State(0, 0, 0, None, None)]]
    for end in range(1, segments.count + 1):
        found: list[_State] = []
        for segment in _undominated(list(segments.ending(end, limit_macs, bound, stripes))):
            for state in fronts[segment.begin]:
                extra = state.extra + segment.extra_macs
                if extra <= limit_macs or segment.extra_macs <= 0:
                    peak, parts = max(state.peak, segment.peak_bytes), state.stripes + segment.stripes
                    found.append(_State(peak, extra, parts, segment, state))
        fronts.append(_front(found))
    return fronts[-1]


def _undominated(found: list[Segment]) -> list[Segment]:
    """Leave out segments for which another of the same operations has neither more bytes nor more work."""
    best: dict[int, list[Segment]] = {}
    for segment in sorted(found, key=lambda s: (s.extra_macs, s.peak_bytes, s.stripes)):
        rivals = best.setdefault(segment.begin, [])
        if not rivals or segment.peak_bytes < rivals[-1].peak_bytes:
            rivals.append(segment)
    return [segment for rivals in best.values() for segment in rivals]


def _front(found: list[_State]) -> list[_State]:
    front: list[_State] = []
    for state in sorted(found, key=lambda s: (s.extra, s.peak, s.stripes)):
        if not front or state.peak < front[-1].peak:
            front.append(state)
    return front


def _choice(state: _State) -> Choice:
    segments = []
    at: _State | None = state
    while at is not None and at.segment is not None:
        segments.append(at.segment)
        at = at.before
    return Choice(state.peak, state.extra, tuple(reversed(segments)))


def within(front: list[Choice], *, extra_macs: int | None = None, peak_bytes: int | None = None) -> Choice | None:
    """Take of a front the lowest peak with no more extra work, or the least work within a peak; None for none."""
    if extra_macs is not None:
        at = bisect_left(front, extra_macs + 1, key=lambda choice: choice.extra_macs)
        if at == 0:
            return None
        best = front[at - 1]
        return best if peak_bytes is None or best.peak_bytes <= peak_bytes else None
    if peak_bytes is not None:
        return next((choice for choice in front if choice.peak_bytes <= peak_bytes), None)
    return front[-1] if front else None
