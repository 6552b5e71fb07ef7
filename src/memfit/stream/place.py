"""Packing a streamed network's arena segment by segment: its buffers are few at any time, and most live in one segment.

One segment is filled after the other. What lives on in others is placed first, at every place that touches something;
what lives in the segment alone then goes into the gaps, largest first. Where that fails, the search goes back to the
last segment in which something was placed that lives in the one that failed.

Rows of an output that take the room of rows of an input leave the output below it, the next one below that, and so on:
the room at the bottom decides. So the search begins at the first segment, at the one that needs the most, and at the
last, and fills what lies behind it and then what lies before it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from memfit.packing import Problem
from memfit.packing.blocks import Block

TRIES = 5
"""How often a block may be placed in one search, on average."""

FEW = 1000
"""Blocks up to which it may be more often: as if there were so many."""

Gaps = list[tuple[int, int]]
"""Offsets that a block may have: from, to, both included."""


class Placer:
    """The blocks of a problem, to be placed within one height or another.

    >>> from memfit.packing import Buffer
    >>> problem = Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 6, [(1, 3)]), Buffer("c", 8, [(2, 4)])))
    >>> placer = Placer(problem, [2, 4])
    >>> placer.place(14), placer.place(13), placer.stuck
    ([6, 0, 6], None, 1)

    Args:
        problem: without fixed buffers.
        ends: the step after each segment, in order.
    """

    def __init__(self, problem: Problem, ends: Sequence[int]) -> None:
        self.blocks, self.count = problem.blocks, len(ends)
        self.stuck = self.count
        """The segment that the last search could not reach or fill: what stands in the way."""
        self.high = [block.high for block in self.blocks]
        self.lives = [
            range(bisect_right(ends, block.lower), bisect_left(ends, block.upper) + 1) if block.parts else range(0)
            for block in self.blocks
        ]
        """Per block: the segments in which it lives."""
        self.near: list[list[int]] = [[] for _ in self.blocks]
        """Per block: those that may live at one time with it."""
        alive: list[list[int]] = [[] for _ in ends]
        for i, (block, lives) in enumerate(zip(self.blocks, self.lives, strict=True)):
            lower, upper = block.lower, block.upper
            for other in {other for segment in lives for other in alive[segment]}:
                if lower < self.blocks[other].upper and self.blocks[other].lower < upper:
                    self.near[i].append(other)
                    self.near[other].append(i)
            for segment in lives:
                alive[segment].append(i)
        self._apart: dict[tuple[int, int], Gaps] = {}

    def place(self, height: int, start: int = 0) -> list[int] | None:
        """Find an offset for each block, within a height in bytes; None where none is found.

        Args:
            height: of the arena.
            start: the segment that is filled first.
        """
        search = _Search(self, height, start)
        found = search.run()
        self.stuck = self.count if found is not None else search.order[search.reached]
        return found

    def apart(self, other: int, block: int) -> Gaps:
        """Give where a block may not begin, from where the other does: strictly between these."""
        found = self._apart.get((other, block))
        if found is None:
            found = self._apart[other, block] = _apart(self.blocks[other], self.blocks[block])
        return found


class _Search:
    """One search for one height."""

    def __init__(self, placer: Placer, height: int, start: int) -> None:
        self.placer, self.blocks, self.height = placer, placer.blocks, height
        count = placer.count
        self.tries = TRIES * max(len(self.blocks), FEW)
        self.offsets: list[int | None] = [None] * len(self.blocks)
        self.order = [*range(start, count), *reversed(range(start))]
        """The segments as they are filled."""
        self.kept: list[list[int]] = [[] for _ in self.order]
        """Per place in the order: blocks met there first that live on in segments behind it, or change row by row."""
        self.local: list[list[int]] = [[] for _ in self.order]
        """Per place in the order: blocks that live there alone, the largest first."""
        self.beyond: list[list[int]] = [[] for _ in self.order]
        """Per place in the order: blocks met by then that live on."""
        self.met: dict[int, int] = {}
        """Block → the place in the order where it is met first."""
        turn = {segment: at for at, segment in enumerate(self.order)}
        for i in sorted(range(len(self.blocks)), key=lambda i: -placer.high[i]):
            turns = [turn[segment] for segment in placer.lives[i]]
            if turns:
                first, last = min(turns), max(turns)
                (self.kept if last > first or len(self.blocks[i].parts) > 1 else self.local)[first].append(i)
                self.met[i] = first
                for at in range(first, last):
                    self.beyond[at].append(i)
        for segment, kept in zip(self.order, self.kept, strict=True):  # the nearest to what is filled comes first
            kept.sort(key=lambda i: self.blocks[i].lower if segment >= start else -self.blocks[i].upper)
        self.dead: dict[tuple[int | None, ...], set[int]] = {}
        """Place in the order, and the offsets of what was met before, from where no way was found → whom to blame."""
        self.reached = 0

    def run(self) -> list[int] | None:
        """Search; give the offsets."""
        if self._go(0) is not None:
            return None
        return [block.least if at is None else at for at, block in zip(self.offsets, self.blocks, strict=True)]

    def _go(self, at: int) -> set[int] | None:
        """Fill the segments from a place in the order on; None for success, or the places whose blocks are to blame."""
        if at == len(self.order):
            return None
        alive = self.beyond[at - 1] if at else []
        state = (at, *(self.offsets[i] for i in alive))
        if state in self.dead:
            return self.dead[state]
        blame = {self.met[i] for i in alive}
        for _ in self._ways(at, 0):
            if self.tries < 0:
                return set()
            roomy = not self.local[at] or self._gaps(self.local[at][0])
            if not roomy or not any(self._fits(at, choose) for choose in (_lowest, _tightest, _highest)):
                continue
            self.reached = max(self.reached, at + 1)
            found = self._go(at + 1)
            if found is None:
                return None
            self._lift(self.local[at])
            if at not in found:
                self._lift(self.kept[at])
                return found
            blame |= found - {at}
        self.dead[state] = blame
        return blame

    def _lift(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.offsets[block] = None

    def _ways(self, at: int, which: int) -> Iterator[None]:
        """Place a segment's blocks that live on, from one of them, in all ways: first at both ends of the arena."""
        if which == len(self.kept[at]):
            yield None
            return
        block = self.kept[at][which]
        gaps = self._gaps(block)
        ends = [gaps[0][0], gaps[-1][1]] if gaps else []
        for offset in dict.fromkeys([*ends, *(offset for gap in gaps for offset in gap)]):
            self.offsets[block] = offset
            yield from self._ways(at, which + 1)
            self.offsets[block] = None

    def _fits(self, at: int, choose: Callable[[Gaps], int]) -> bool:
        """Place what lives in one segment alone."""
        for block in self.local[at]:
            gaps = self._gaps(block)
            if not gaps:
                self._lift(self.local[at])
                return False
            self.offsets[block] = choose(gaps)
        return True

    def _gaps(self, block: int) -> Gaps:
        """Find where a block may lie, given all that is placed."""
        self.tries -= 1
        taken = []
        for other in self.placer.near[block]:
            offset = self.offsets[other]
            if offset is not None:
                taken += [(offset + low, offset + high) for low, high in self.placer.apart(other, block)]
        gaps, at, last = [], self.blocks[block].least, self.height - self.placer.high[block]
        for low, high in sorted(taken):
            if at <= min(low, last):
                gaps.append((at, min(low, last)))
            at = max(at, high)
        if at <= last:
            gaps.append((at, last))
        return gaps


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
