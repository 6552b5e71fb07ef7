"""Planners that place one block after another and never move it again."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence

from memfit.packing.blocks import Block

Choice = Callable[[list[tuple[int, int]], Block], int]
"""Chooses an offset: the forbidden ranges of offsets (open intervals, in order) and the block → its offset."""


class Neighbours:
    """Which blocks are ever alive together, and at which distances they would collide."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.ranges: list[dict[int, list[tuple[int, int]]]] = [{} for _ in blocks]
        """For each block, by neighbour: open intervals of `offset - neighbour's offset` at which they overlap."""
        events = sorted((part, number) for number, block in enumerate(blocks) for part in block.parts)
        live: list[tuple[int, int, int, int]] = []
        for part, number in events:
            live = [other for other in live if other[0] > part.lower]
            for _, low, high, other in live:
                if other != number:
                    self._add(number, other, low - part.high, high - part.low)
                    self._add(other, number, part.low - high, part.high - low)
            live.append((part.upper, part.low, part.high, number))

    def _add(self, number: int, other: int, low: int, high: int) -> None:
        found = self.ranges[number].setdefault(other, [])
        if (low, high) not in found:
            found.append((low, high))


def lowest(forbidden: list[tuple[int, int]], block: Block) -> int:
    """Choose the lowest offset that collides with nothing (first fit)."""
    offset = block.least
    for low, high in forbidden:
        if low >= offset:
            break
        if high > offset:
            offset = -(-high // block.alignment) * block.alignment
    # What is forbidden lies in the order of its lower ends: past one that begins above, an offset below is free.
    return offset


def tightest(forbidden: list[tuple[int, int]], block: Block) -> int:
    """Choose the offset in the smallest gap that holds the block, the lowest of equals; above all if none does."""
    best, least_spare, offset = None, 0, block.least
    for low, high in forbidden:
        spare = low - offset
        if spare >= 0 and (best is None or spare < least_spare):
            best, least_spare = offset, spare
        if high > offset:
            offset = max(offset, -(-high // block.alignment) * block.alignment)
    return offset if best is None else best


def place(near: Neighbours, order: Sequence[int], choose: Choice = lowest) -> list[int]:
    """Place the fixed blocks, then the others one by one in the order given.

    Args:
        near: the blocks with their neighbours.
        order: indices of blocks; fixed ones are skipped.
        choose: `lowest` or `tightest`.

    Returns:
        The offset of each block, in bytes.
    """
    blocks = near.blocks
    offsets: list[int | None] = [block.offset for block in blocks]
    forbidden: list[list[tuple[int, int]]] = [[] for _ in blocks]
    fixed = [number for number, block in enumerate(blocks) if block.offset is not None]
    for number in (*fixed, *(number for number in order if blocks[number].offset is None)):
        at = offsets[number]
        if at is None:
            at = offsets[number] = choose(forbidden[number], blocks[number])
        for other, ranges in near.ranges[number].items():
            if offsets[other] is None:
                for low, high in ranges:
                    insort(forbidden[other], (at - high, at - low))
    return [offset or 0 for offset in offsets]


def height(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    """Give the first address above all blocks, in bytes."""
    return max((at + block.high for block, at in zip(blocks, offsets, strict=True) if block.parts), default=0)


def by_size(blocks: Sequence[Block]) -> list[int]:
    """Order blocks by size, largest first; the longer-lived, then the earlier, of equals."""
    return sorted(range(len(blocks)), key=lambda i: (blocks[i].low - blocks[i].high, blocks[i].lower - blocks[i].upper))


def by_duration(blocks: Sequence[Block]) -> list[int]:
    """Order blocks by the time from first birth to last death, longest first; the larger of equals."""
    return sorted(range(len(blocks)), key=lambda i: (blocks[i].lower - blocks[i].upper, blocks[i].low - blocks[i].high))


def by_area(blocks: Sequence[Block]) -> list[int]:
    """Order blocks by bytes times time, largest first."""
    return sorted(range(len(blocks)), key=lambda i: -blocks[i].area)
