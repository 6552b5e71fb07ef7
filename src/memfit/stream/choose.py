"""The best segments of a network: dynamic programming over the places where it may be cut.

A place is a cut, and how many gates of squeeze-excites behind it are known already: those whose image was computed once
to take its mean, and will be computed again from this cut, to be multiplied. See `recompute`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memfit.stream.recompute import Place, Run, Step, passes_of, steps_of
from memfit.stream.segments import STRIPES, Integers, Segment, Segments

CAP = 0.5
"""Share of extra multiply-accumulates above which no plan is looked for."""


@dataclass(frozen=True)
class Choice:
    """One way to cut a network: no other has a lower peak for as little extra work."""

    peak_bytes: int
    extra_macs: int
    segments: tuple[Segment, ...]
    """Their operations are places in `order`."""
    order: tuple[int, ...]
    """The network's operations as they are done; some more than once."""
    variant: int = 0
    """Which way to write the network it is of: 0 for as it was given; see `skips`."""


@dataclass(frozen=True)
class _Front:
    """The best ways to a place, by increasing work and decreasing peak."""

    peak: Integers
    extra: Integers
    stripes: Integers
    """Of all its segments: of ways that are otherwise equal, the one with the fewest is taken."""
    steps: tuple[tuple[Step, _Front], ...]
    """The last steps that lead here, each with the front that it comes from."""
    step: Integers
    """Per way: which of `steps` is its last one."""
    before: Integers
    """Per way: which way of that front it goes on from."""


class Choices:
    """All ways through a network, and the best of them.

    Args:
        segments: of the network.
        cap: largest share of extra multiply-accumulates.
        repeats: operations that the network does once more, which is extra work as it stands.
        below: give only ways that need less bytes.
    """

    def __init__(
        self, segments: Segments, cap: float = CAP, *, repeats: Collection[int] = (), below: int | None = None
    ) -> None:
        self.segments = segments
        self.repeats = {index: segments.ops[index].macs for index in repeats}
        """Operation that is done once more → its multiply-accumulates."""
        spent = sum(self.repeats.values())
        self.limit_macs = int(cap * (segments.network.macs - spent)) - spent
        self._passes = passes_of(segments)
        self._fronts: dict[tuple[frozenset[tuple[int, ...]], int], list[Choice]] = {}
        # Stripes and passes only add work: what they are for is a lower peak than without.
        bound = _without_work(segments) + 1
        bound = bound if below is None else min(bound, below)
        steps = steps_of(segments, self._passes, self.limit_macs, bound, STRIPES)
        found: dict[Place, list[Step]] = {}
        for target, step in steps:
            found.setdefault(target, []).append(step)
        self._found = {target: _undominated(steps) for target, steps in sorted(found.items())}
        self._saved = -sum(min(0, *(step.extra for step in steps)) for steps in self._found.values())

    def front(self, apart: Collection[tuple[int, ...]] = (), most_macs: int | None = None) -> list[Choice]:
        """Find all ways that no other beats in both peak and extra work, from least work to least memory.

        Exact among the segments that `Segments` can measure: for each place, every way to it that no other beats is
        kept.

        Args:
            apart: operations of segments that may not count rows of their output as taking the room of rows of their
                inputs.
            most_macs: ways of more extra work may be left out; None for none.
        """
        limit = self.limit_macs
        if most_macs is not None:  # on the way there may be more, where later segments take less than the plain run
            limit = min(limit, most_macs - sum(self.repeats.values()) + self._saved)
        key = frozenset(apart), limit
        if key not in self._fronts:
            front = self._best(*key)
            self._fronts[key] = [self._choice(front, way) for way in range(len(front.peak))]
        return self._fronts[key]

    def _best(self, apart: Collection[tuple[int, ...]], limit_macs: int) -> _Front:
        """Find the best ways to the end of a network."""
        limit = self.segments.passes
        start: Place = (0, 0)
        fronts: dict[Place, dict[int, _Front]] = {start: {0: _START}}
        """Place → how often a fed input was read, where that is limited → front."""
        for target, steps in self._found.items():
            found: dict[int, list[tuple[Step, _Front]]] = {}
            for step in steps:
                if step.overlaps and step.runs[-1].ops in apart:
                    continue
                for reads, front in fronts.get(step.source, {}).items():
                    after = reads + step.reads if limit is not None else 0
                    if limit is None or after <= limit:
                        found.setdefault(after, []).append((step, front))
            fronts[target] = {reads: _joined(ways, limit_macs) for reads, ways in found.items()}
        ends = fronts.get((self.segments.count, 0), {})
        return _joined([(_STAY, front) for front in ends.values()], limit_macs)

    def _choice(self, front: _Front, way: int) -> Choice:
        peak, extra = int(front.peak[way]), int(front.extra[way])
        runs: list[Run] = []
        while front.steps:
            step, source = front.steps[front.step[way]]
            way, front = int(front.before[way]), source
            if len(step.runs) == 1:  # what waits beside it depends on the way here
                runs.append(replace(step.runs[0], segment=replace(step.runs[0].segment, peak_bytes=step.peak)))
            else:
                runs += reversed(step.runs)
        segments: list[Segment] = []
        order: list[int] = []
        for run in reversed(runs):
            begin = len(order)
            order += run.ops
            repeated = sum(self.repeats.get(index, 0) for index in run.ops)
            work = run.segment.extra_macs + repeated
            segments.append(replace(run.segment, begin=begin, end=len(order), extra_macs=work))
        return Choice(peak, extra + sum(self.repeats.values()), tuple(segments), tuple(order))


def _without_work(segments: Segments) -> int:
    """Find the lowest peak of full rows, each computed once, none in the room of another value."""
    ends = range(1, segments.count + 1)
    plain = max((segments.plain(end - 1).peak_bytes for end in ends), default=0)
    lowest = [0] + [plain] * segments.count
    found = segments.among(ends, 0, plain + 1, 1, overlaps=False)
    for segment in sorted(found, key=lambda segment: segment.end):
        lowest[segment.end] = min(lowest[segment.end], max(lowest[segment.begin], segment.peak_bytes))
    return lowest[-1]


def _undominated(found: list[Step]) -> list[Step]:
    """Leave out steps for which another between the same places has neither more bytes nor more work."""
    best: dict[tuple[Place, bool, int], list[Step]] = {}
    for step in sorted(found, key=lambda s: (s.extra, s.peak, s.stripes)):
        rivals = best.setdefault((step.source, step.overlaps, step.reads), [])
        if not rivals or step.peak < rivals[-1].peak:
            rivals.append(step)
    return [step for rivals in best.values() for step in rivals]


def _joined(ways: list[tuple[Step, _Front]], limit_macs: int) -> _Front:
    """Go on from fronts by one step each, and keep the ways that no other beats."""
    if not ways:
        return replace(_START, peak=_NOTHING, extra=_NOTHING, stripes=_NOTHING, step=_NOTHING, before=_NOTHING)
    peak = np.concatenate([np.maximum(front.peak, step.peak) for step, front in ways])
    extra = np.concatenate([front.extra + step.extra for step, front in ways])
    stripes = np.concatenate([front.stripes + step.stripes for step, front in ways])
    lengths = [len(front.peak) for _, front in ways]
    last = np.repeat(np.arange(len(ways)), lengths)
    before = np.concatenate([np.arange(length) for length in lengths])
    order = np.lexsort((stripes, peak, extra))
    order = order[extra[order] <= limit_macs]
    lowest = np.minimum.accumulate(peak[order])
    best = order[np.append(np.full(min(len(order), 1), fill_value=True), lowest[1:] < lowest[:-1])]
    return _Front(peak[best], extra[best], stripes[best], tuple(ways), last[best], before[best])


_NOTHING: Integers = np.array([], dtype=np.int64)
_ONE: Integers = np.array([0])
_START = _Front(_ONE, _ONE, _ONE, (), _ONE, _ONE)
"""The way of no steps."""
_STAY = Step((0, 0), (), 0, 0, 0, 0)
"""The step to where one is."""


def within(front: Sequence[Choice], *, extra_macs: int | None = None, peak_bytes: int | None = None) -> Choice | None:
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
