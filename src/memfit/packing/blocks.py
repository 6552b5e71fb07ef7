"""What planners place: blocks, each a buffer or a group of aliases that moves as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import NamedTuple

from memfit.packing.buffers import Alias, Buffer, PackingError


class Part(NamedTuple):
    """A rectangle of a block: addresses `[low, high)` from the block's offset, alive in `[lower, upper)`."""

    lower: int
    upper: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Block:
    """What planners place: a buffer, or a group of aliases that moves as one."""

    members: tuple[tuple[int, int], ...]
    """Index of each buffer, and its distance from the block's offset in bytes; in the problem's order."""
    parts: tuple[Part, ...]
    alignment: int
    """The offset is a multiple of it, in bytes."""
    offset: int | None
    """Where it must be; None where the planner chooses."""
    least: int
    """The lowest offset that keeps every member at 0 or above, in bytes; a multiple of `alignment`."""

    @property
    def lower(self) -> int:
        """First time at which any of it is alive."""
        return min((part.lower for part in self.parts), default=0)

    @property
    def upper(self) -> int:
        """First time at which none of it is alive any more."""
        return max((part.upper for part in self.parts), default=0)

    @property
    def low(self) -> int:
        """Lowest address of its rectangles, from its offset, in bytes."""
        return min((part.low for part in self.parts), default=0)

    @property
    def high(self) -> int:
        """First address above its rectangles, from its offset, in bytes."""
        return max((part.high for part in self.parts), default=0)

    @property
    def area(self) -> int:
        """Bytes times time of its rectangles."""
        return sum((part.upper - part.lower) * (part.high - part.low) for part in self.parts)

    def occupied(self, time: int) -> list[tuple[int, int]]:
        """List the address ranges that are occupied at a time, from the block's offset, joined and in order."""
        joined: list[tuple[int, int]] = []
        for low, high in sorted((part.low, part.high) for part in self.parts if part.lower <= time < part.upper):
            if joined and low <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
            else:
                joined.append((low, high))
        return joined


def grain(blocks: Sequence[Block]) -> int:
    """Find the largest step, in bytes, on which every rectangle of every block must begin."""
    steps = [block.alignment for block in blocks]
    steps += [part.low for block in blocks for part in block.parts]
    steps += [block.offset for block in blocks if block.offset is not None]
    return gcd(*steps) or 1


def lower_bound(blocks: Sequence[Block]) -> int:
    """Give the largest sum of bytes live at one time, with what alignment adds; `Problem.lower_bound` says how."""
    step = grain(blocks)
    bound = max(
        (block.high + (block.least if block.offset is None else block.offset) for block in blocks if block.parts),
        default=0,
    )
    changes: dict[int, set[int]] = {}
    for number, block in enumerate(blocks):
        for part in block.parts:
            changes.setdefault(part.lower, set()).add(number)
            changes.setdefault(part.upper, set()).add(number)
    live: dict[int, list[int]] = {}
    for time in sorted(changes):
        # Only what changes is looked at again: a problem of hundreds of buffers has as many times.
        for number in changes[time]:
            live[number] = [high - low for low, high in blocks[number].occupied(time)]
        sizes = [size for sizes in live.values() for size in sizes]
        rounded = [-(-size // step) * step for size in sizes]
        spare = max((up - size for up, size in zip(rounded, sizes, strict=True)), default=0)
        bound = max(bound, sum(rounded) - spare)
    return bound


def merge(buffers: Sequence[Buffer], aliases: Sequence[Alias], alignment: int = 1) -> tuple[Block, ...]:
    """Make a block of every buffer and every alias group.

    Args:
        buffers: with names that differ.
        aliases: pairs of them that may overlap.
        alignment: of every offset, besides each buffer's own, in bytes.

    Raises:
        PackingError: aliases, alignments or fixed offsets that contradict each other.
    """
    index = {buffer.name: number for number, buffer in enumerate(buffers)}
    near: dict[int, list[tuple[int, int]]] = {}
    for alias in aliases:
        for name in (alias.buffer, alias.of):
            if name not in index:
                raise PackingError(
                    "an alias names a buffer that the problem does not have",
                    where=f"alias {alias.buffer} of {alias.of}",
                    received=name,
                    todo="name two of the problem's buffers",
                )
        one, other = index[alias.buffer], index[alias.of]
        near.setdefault(other, []).append((one, alias.distance))
        near.setdefault(one, []).append((other, -alias.distance))
    seen: set[int] = set()
    blocks = []
    for number in range(len(buffers)):
        if number not in seen:
            distances = _distances(buffers, number, near)
            seen |= distances.keys()
            block = _block(buffers, distances, alignment)
            if len(block.members) > 1 or block.parts:
                blocks.append(block)
    return tuple(blocks)


def _distances(buffers: Sequence[Buffer], first: int, near: Mapping[int, list[tuple[int, int]]]) -> dict[int, int]:
    """Give the distance of every buffer of an alias group from its first one, in bytes."""
    found, todo = {first: 0}, [first]
    while todo:
        here = todo.pop()
        for other, distance in near.get(here, ()):
            if other not in found:
                found[other] = found[here] + distance
                todo.append(other)
            if found[other] != found[here] + distance:
                raise PackingError(
                    "aliases contradict each other",
                    where=f"buffers {buffers[here].name} and {buffers[other].name}",
                    received=f"distances {found[other]} and {found[here] + distance} from {buffers[first].name}",
                    todo="give each pair of aliases one distance",
                )
    return found


def _block(buffers: Sequence[Buffer], distances: Mapping[int, int], alignment: int) -> Block:
    """Make one block of a group, placed by its member of the largest alignment."""
    alignments = {number: lcm(buffers[number].alignment, alignment) for number in distances}
    chief = max(sorted(distances), key=alignments.__getitem__)
    members = tuple((number, distances[number] - distances[chief]) for number in sorted(distances))
    fixed: set[int] = set()
    for number, distance in members:
        buffer = buffers[number]
        if distance % alignments[number]:
            raise PackingError(
                "an alias contradicts an alignment",
                where=f"buffers {buffer.name} and {buffers[chief].name}",
                received=f"distance {distance}, alignment {alignments[number]}",
                todo="make the distance a multiple of the alignment",
            )
        if buffer.offset is not None:
            fixed.add(buffer.offset - distance)
    common = lcm(*alignments.values())
    lowest = -min(distance for _, distance in members)
    least = -(-lowest // common) * common
    if len(fixed) > 1 or any(base % common or base < least for base in fixed):
        names = ", ".join(buffers[number].name for number, _ in members)
        raise PackingError(
            "fixed offsets contradict aliases or alignment",
            where=f"buffers {names}",
            received=f"offsets {[buffers[number].offset for number, _ in members]}, alignment {common}",
            todo="fix one offset of the group, at a multiple of the alignment",
        )
    parts = tuple(
        dict.fromkeys(
            Part(span.lower, span.upper, distance + span.start, distance + span.start + (span.size or 0))
            for number, distance in members
            for span in buffers[number].spans
            if span.size and span.lower < span.upper
        )
    )
    return Block(members, parts, common, next(iter(fixed), None), least)
