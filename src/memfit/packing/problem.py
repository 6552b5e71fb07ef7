"""The arena problem: buffers with lifetimes that share one range of addresses, and a packing as its answer.

A buffer gets one offset. It occupies rectangles of time by address: one for a plain buffer, several where it is alive
at separate times, or where its rows live at different times (linked rectangles). Two buffers that are alive at the same
time may not share an address. The height of a packing is the first address above all buffers: the size of the arena.

All times are half-open and without unit (operation indices, usually); all sizes and offsets are bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memfit.packing.blocks import Block, lower_bound, merge
from memfit.packing.buffers import Alias, Buffer, PackingError


@dataclass(frozen=True)
class Problem:
    """Buffers to pack into one arena.

    >>> Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 4, [(1, 3)]))).lower_bound
    8

    Args:
        buffers: what to place.
        aliases: pairs of buffers that may overlap.
        alignment: every offset is a multiple of it, besides each buffer's own alignment, in bytes.
        capacity: bytes of the arena; None to look for the smallest.

    Raises:
        PackingError: names that are not unique or not there, alignments or offsets that contradict each other.
    """

    buffers: tuple[Buffer, ...]
    aliases: tuple[Alias, ...] = ()
    alignment: int = 1
    capacity: int | None = None
    blocks: tuple[Block, ...] = field(init=False, repr=False, compare=False)
    """The buffers as planners see them: alias groups merged; nothing for what has no bytes or no lifetime."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffers", tuple(self.buffers))
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.alignment < 1:
            raise PackingError(
                "an alignment is less than 1",
                where="alignment",
                received=str(self.alignment),
                todo="give bytes, 1 or more",
            )
        if self.capacity is not None and self.capacity < 0:
            raise PackingError(
                "a capacity is less than 0", where="capacity", received=str(self.capacity), todo="give bytes, 0 or more"
            )
        twice = [name for name, count in Counter(buffer.name for buffer in self.buffers).items() if count > 1]
        if twice:
            raise PackingError(
                "two buffers have the same name",
                where=f"buffer {twice[0]}",
                received=f"{len(twice)} names that are not alone",
                todo="give every buffer a name of its own",
            )
        object.__setattr__(self, "blocks", merge(self.buffers, self.aliases, self.alignment))

    @property
    def lower_bound(self) -> int:
        """The largest sum of bytes live at one time, with what alignment adds: no arena is smaller.

        Sizes are rounded up to the common divisor of all alignments, but for one buffer at each time: the topmost.
        """
        return lower_bound(self.blocks)

    def offsets(self, placed: Sequence[int]) -> dict[str, int]:
        """Give every buffer's offset, in bytes, from the offsets of `blocks`, in their order."""
        found = {buffer.name: buffer.offset or 0 for buffer in self.buffers}
        for block, base in zip(self.blocks, placed, strict=True):
            found.update((self.buffers[member].name, base + distance) for member, distance in block.members)
        return found


@dataclass(frozen=True)
class Packing:
    """Where each buffer lies, and what is known of it."""

    offsets: Mapping[str, int]
    """Name of the buffer → its first address, in bytes."""
    height: int
    """First address above all buffers: the smallest arena for this packing, in bytes."""
    lower_bound: int
    """No packing is lower, in bytes: the largest live sum, or more where a search has ruled out lower ones."""
    planner: str
    nodes: int = 0
    """Placements that a search tried; 0 for a planner that does not search."""
    capacity: int | None = None
    """The arena asked for, in bytes."""
    notes: tuple[str, ...] = ()

    @property
    def optimal(self) -> bool:
        """Whether a lower packing is ruled out."""
        return self.height <= self.lower_bound

    @property
    def gap(self) -> float:
        """How far the height may be above the smallest possible, as a fraction of the lower bound."""
        return (self.height - self.lower_bound) / self.lower_bound if self.lower_bound else 0.0

    @property
    def fits(self) -> bool | None:
        """Whether it lies within the capacity; None without one."""
        return None if self.capacity is None else self.height <= self.capacity
