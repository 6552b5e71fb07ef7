"""Packing a streamed network's arena segment by segment: its buffers are few at any time, and most live in one segment.

What is kept for later is placed first, in each segment in turn, at every place that touches something; what lives in
the segment alone then goes into the gaps, largest first. Where that fails, the search goes back to the last segment in
which something was placed that lives in the one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from memfit.packing import Problem
from memfit.packing.blocks import Block

TRIES = 4
"""How often each segment may be filled for one height, on average; in short networks more often."""

Gaps = list[tuple[int, int]]
"""Offsets that a block may have: from, to, both included."""


def place(problem: Problem, ends: Sequence[int], height: int) -> tuple[list[int] | None, int]:
    """Find an offset for each block of a problem, within a height in bytes.

    Gives None where none is found, and the segment that could not be reached or filled: what stands in the way.

    >>> from memfit.packing import Buffer
    >>> problem = Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 6, [(1, 3)]), Buffer("c", 8, [(2, 4)])))
    >>> place(problem, [2, 4], 14), place(problem, [2, 4], 13)
    (([6, 0, 6], 2), (None, 1))

    Args:
        problem: without fixed buffers.
        ends: the step after each segment, in order.
        height: of the arena.
    """
    placement = _Placement(problem.blocks, ends, height)
    found = placement.run()
    return found, placement.reached


class _Placement:
    """One search for one height."""

    def __init__(self, blocks: Sequence[Block], ends: Sequence[int], height: int) -> None:
        self.blocks, self.height = blocks, height
        self.lower, self.upper = [b.lower for b in blocks], [b.upper for b in blocks]
        self.tries = TRIES * max(len(ends), 50)
        self.offsets: dict[int, int] = {}
        self.apart: dict[tuple[int, int], Gaps] = {}
        """Pair of blocks → where the second may not begin, from where the first does: between these."""
        self.kept: list[list[int]] = []
        """Per segment: blocks that are born there and live on, the oldest first, and of those the largest."""
        self.local: list[list[int]] = []
        """Per segment: blocks that live there alone, the largest first."""
        self.beyond: list[list[int]] = []
        """Per segment: blocks that live on behind it."""
        order = sorted(range(len(blocks)), key=lambda i: -blocks[i].high)
        for first, end in pairwise([0, *ends]):
            born = [i for i in order if blocks[i].parts and first <= self.lower[i] < end]
            self.kept.append(sorted((i for i in born if self.upper[i] > end), key=lambda i: self.lower[i]))
            self.local.append([i for i in born if self.upper[i] <= end])
            self.beyond.append([i for i in order if blocks[i].parts and self.lower[i] < end < self.upper[i]])
        self.birth = {i: number for number, kept in enumerate(self.kept) for i in kept}
        self.dead: dict[tuple[int, ...], set[int]] = {}
        """Segment, and the offsets of what lives on before it, from where no way was found → the segments to blame."""
        self.reached = 0

    def run(self) -> list[int] | None:
        """Search; give the offsets."""
        if self._go(0) is not None:
            return None
        return [self.offsets.get(i, block.least) for i, block in enumerate(self.blocks)]

    def _go(self, number: int) -> set[int] | None:
        """Place a segment and all behind it; give the segments whose blocks are in the way, None for success."""
        if number == len(self.kept):
            return None
        alive = self.beyond[number - 1] if number else []
        state = (number, *(self.offsets[i] for i in alive))
        if state in self.dead:
            return self.dead[state]
        blame = {self.birth[i] for i in alive}
        for _ in self._ways(number, 0):
            self.tries -= 1
            if self.tries < 0:
                return set()
            if not any(self._fits(number, choose) for choose in (_lowest, _tightest, _highest)):
                continue
            self.reached = max(self.reached, number + 1)
            found = self._go(number + 1)
            if found is None:
                return None
            for block in self.local[number]:
                self.offsets.pop(block, None)
            if number not in found:
                for block in self.kept[number]:
                    self.offsets.pop(block, None)
                return found
            blame |= found - {number}
        self.dead[state] = blame
        return blame

    def _ways(self, number: int, which: int) -> Iterator[None]:
        """Place a segment's blocks that live on, from one of them, in all ways: first at both ends of the arena."""
        if which == len(self.kept[number]):
            yield None
            return
        block = self.kept[number][which]
        gaps = self._gaps(block)
        ends = [gaps[0][0], gaps[-1][1]] if gaps else []
        for offset in dict.fromkeys([*ends, *(offset for gap in gaps for offset in gap)]):
            self.offsets[block] = offset
            yield from self._ways(number, which + 1)
            self.offsets.pop(block, None)

    def _fits(self, number: int, choose: Callable[[Gaps], int]) -> bool:
        """Place what lives in one segment alone."""
        for block in self.local[number]:
            gaps = self._gaps(block)
            if not gaps:
                for other in self.local[number]:
                    self.offsets.pop(other, None)
                return False
            self.offsets[block] = choose(gaps)
        return True

    def _gaps(self, block: int) -> Gaps:
        """Find where a block may lie, given all that is placed."""
        mine, lower, upper = self.blocks[block], self.lower[block], self.upper[block]
        taken = sorted(
            (offset + low, offset + high)
            for other, offset in self.offsets.items()
            if self.lower[other] < upper and lower < self.upper[other]
            for low, high in self._apart(other, block)
        )
        gaps, at, last = [], mine.least, self.height - mine.high
        for low, high in taken:
            if at <= min(low, last):
                gaps.append((at, min(low, last)))
            at = max(at, high)
        if at <= last:
            gaps.append((at, last))
        return gaps

    def _apart(self, other: int, block: int) -> Gaps:
        found = self.apart.get((other, block))
        if found is None:
            found = self.apart[other, block] = _apart(self.blocks[other], self.blocks[block])
        return found


def _apart(a: Block, b: Block) -> Gaps:
    """Find the distances from `a` to `b` at which they would overlap: strictly between each pair."""
    mine, theirs = (np.array([(p.lower, p.upper, p.low, p.high) for p in block.parts]) for block in (a, b))
    together = (mine[:, None, 0] < theirs[None, :, 1]) & (theirs[None, :, 0] < mine[:, None, 1])
    low = (mine[:, None, 2] - theirs[None, :, 3])[together]
    high = (mine[:, None, 3] - theirs[None, :, 2])[together]
    found: Gaps = []
    for start, end in sorted(zip(low.tolist(), high.tolist(), strict=True)):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _lowest(gaps: Gaps) -> int:
    return gaps[0][0]


def _highest(gaps: Gaps) -> int:
    return gaps[-1][1]


def _tightest(gaps: Gaps) -> int:
    return min(gaps, key=lambda gap: gap[1] - gap[0])[0]
