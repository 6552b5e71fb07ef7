"""The problem as the exact search sees it: time cut into sections, addresses in their common unit.

Times at which the same blocks are live need be looked at once, and a time whose live blocks are all live together at
another time too need not be looked at: what remains are the *sections* whose live sets are maximal. A block covers some
of them, and occupies one range of addresses in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from memfit.packing.blocks import Block, grain


@dataclass(frozen=True)
class Sections:
    """A component of a problem: blocks, sections, and which block occupies what in which section.

    Addresses are in units of `unit` bytes. An *entry* is a block in a section; entries are numbered block by block.
    """

    unit: int
    blocks: tuple[int, ...]
    """Index of each block in the problem's."""
    alignment: tuple[int, ...]
    least: tuple[int, ...]
    """Lowest offset of each block."""
    fixed: tuple[int, ...]
    """Offset of each block, -1 where it is free."""
    high: tuple[int, ...]
    """Top of each block above its offset, exact: `offset + high` is what a capacity limits."""
    first: tuple[int, ...]
    """First entry of each block; one more at the end."""
    section: tuple[int, ...]
    """Section of each entry, ascending within a block."""
    low: tuple[int, ...]
    top: tuple[int, ...]
    """What an entry occupies, from its block's offset; tops are rounded up to where another block can begin."""
    spare: tuple[int, ...]
    """By section: how much rounding may add to its sum: the largest of its entries' roundings."""
    count: int
    """Number of sections."""
    exact: bool
    """False where a block has a hole in a section, which the search takes as occupied."""


def components(blocks: Sequence[Block]) -> list[list[int]]:
    """Split blocks into groups that share no time: indices, in the order of time.

    Blocks without rectangles are left out.
    """
    order = sorted((i for i, block in enumerate(blocks) if block.parts), key=lambda i: (blocks[i].lower, i))
    groups: list[list[int]] = []
    end = 0
    for number in order:
        if not groups or blocks[number].lower >= end:
            groups.append([])
            end = blocks[number].upper
        groups[-1].append(number)
        end = max(end, blocks[number].upper)
    return groups


def unit_of(blocks: Sequence[Block]) -> int:
    """Find the largest unit, in bytes, of which all offsets of some lowest packing are multiples.

    >>> from memfit.packing import Buffer, Problem
    >>> unit_of(Problem((Buffer("a", 4096, [(0, 2)]), Buffer("b", 6144, [(0, 2)]))).blocks)
    2048
    """
    unit = gcd(
        *(value for block in blocks for part in block.parts for value in (part.low, part.high)),
        *(value for block in blocks for value in (block.offset or 0, block.least)),
    )
    unit = unit or 1
    while odd := [block.alignment for block in blocks if unit % block.alignment and block.alignment % unit]:
        unit = gcd(unit, *odd)
    return unit


def sections(blocks: Sequence[Block], numbers: Sequence[int] | None = None) -> Sections:
    """Cut the time of some blocks into sections.

    Args:
        blocks: the problem's.
        numbers: which of them; None for all.
    """
    chosen = tuple(range(len(blocks)) if numbers is None else numbers)
    mine = [blocks[number] for number in chosen]
    unit = unit_of(mine)
    step = max(1, grain(mine) // unit)
    live, exact = _maximal(mine)
    first, section, low, top = [0], [], [], []
    spare = [0] * len(live)
    for index in range(len(mine)):
        for at, ranges in enumerate(live):
            if index in ranges:
                bottom, ceiling = (address // unit for address in ranges[index])
                rounded = bottom + -(-(ceiling - bottom) // step) * step
                section.append(at)
                low.append(bottom)
                top.append(rounded)
                spare[at] = max(spare[at], rounded - ceiling)
        first.append(len(section))
    return Sections(
        unit=unit,
        blocks=chosen,
        alignment=tuple(max(1, block.alignment // unit) for block in mine),
        least=tuple(block.least // unit for block in mine),
        fixed=tuple(-1 if block.offset is None else block.offset // unit for block in mine),
        high=tuple(block.high // unit for block in mine),
        first=tuple(first),
        section=tuple(section),
        low=tuple(low),
        top=tuple(top),
        spare=tuple(spare),
        count=len(live),
        exact=exact,
    )


def _maximal(blocks: Sequence[Block]) -> tuple[list[dict[int, tuple[int, int]]], bool]:
    """List the address ranges live in each section that no neighbour includes, and whether none has a hole."""
    changes: dict[int, set[int]] = {}
    for number, block in enumerate(blocks):
        for part in block.parts:
            changes.setdefault(part.lower, set()).add(number)
            changes.setdefault(part.upper, set()).add(number)
    exact = True
    kept: list[dict[int, tuple[int, int]]] = []
    now: dict[int, tuple[int, int]] = {}
    for time in sorted(changes):
        now = dict(now)
        for number in changes[time]:
            ranges = blocks[number].occupied(time)
            now.pop(number, None)
            if ranges:
                now[number] = (ranges[0][0], ranges[-1][1])
                exact = exact and len(ranges) == 1
        while kept and kept[-1].items() <= now.items():
            kept.pop()
        if now and not (kept and now.items() <= kept[-1].items()):
            kept.append(now)
    return kept, exact
