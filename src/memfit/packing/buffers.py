"""What is packed: buffers, the rectangles of time by address that they occupy, and aliases between them.

All times are half-open and without unit (operation indices, usually); all sizes and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memfit.errors import MemfitError


class PackingError(MemfitError):
    """A packing problem that contradicts itself, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Span:
    """One rectangle of a buffer: bytes `[start, start + size)` of it, alive in `[lower, upper)`.

    Args:
        lower: first time at which the bytes are alive.
        upper: first time at which they no longer are.
        start: where the bytes begin, from the buffer's own offset, in bytes.
        size: how many they are; None for all from `start` to the buffer's end.
    """

    lower: int
    upper: int
    start: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that need one offset in the arena.

    >>> Buffer("conv1", 4096, [(0, 3)]).spans
    (Span(lower=0, upper=3, start=0, size=4096),)

    Args:
        name: unique in its problem.
        size: bytes.
        spans: when which bytes are alive: `Span`s, or tuples of their arguments. Several make linked rectangles, which
            keep their places relative to each other.
        alignment: the offset is a multiple of it, in bytes.
        offset: where the buffer must be; None where the planner chooses.

    Raises:
        PackingError: a size or time that cannot be.
    """

    name: str
    size: int
    spans: tuple[Span, ...]
    alignment: int = 1
    offset: int | None = None

    def __init__(
        self,
        name: str,
        size: int,
        spans: Iterable[Span | tuple[int, ...]],
        *,
        alignment: int = 1,
        offset: int | None = None,
    ) -> None:
        for label, value, least in (("size", size, 0), ("alignment", alignment, 1), ("offset", offset, 0)):
            if value is not None and value < least:
                raise PackingError(
                    f"a buffer's {label} is less than {least}",
                    where=f"buffer {name}",
                    received=str(value),
                    todo=f"give {label} in bytes, {least} or more",
                )
        if offset is not None and offset % alignment:
            raise PackingError(
                "a fixed offset contradicts its alignment",
                where=f"buffer {name}",
                received=f"offset {offset}, alignment {alignment}",
                todo="fix the offset at a multiple of the alignment",
            )
        rows = []
        for given in spans:
            span = given if isinstance(given, Span) else Span(*given)
            length = size - span.start if span.size is None else span.size
            if span.lower > span.upper:
                raise PackingError(
                    "a lifetime ends before it begins",
                    where=f"buffer {name}",
                    received=f"[{span.lower}, {span.upper})",
                    todo="give lower ≤ upper, the upper end not included",
                )
            if span.start < 0 or length < 0 or span.start + length > size:
                raise PackingError(
                    "a rectangle lies outside its buffer",
                    where=f"buffer {name}, alive in [{span.lower}, {span.upper})",
                    received=f"bytes [{span.start}, {span.start + length}) of {size}",
                    todo="give a start and a size within the buffer",
                )
            rows.append(Span(span.lower, span.upper, span.start, length))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "spans", tuple(rows))
        object.__setattr__(self, "alignment", alignment)
        object.__setattr__(self, "offset", offset)


@dataclass(frozen=True, slots=True)
class Alias:
    """Two buffers at a known distance, which may overlap: an in-place operation, a reshape, a sliding window.

    `offset(buffer) = offset(of) + distance`. Aliases of aliases count: all of a group may overlap each other.

    Args:
        buffer: name of one buffer.
        of: name of the other.
        distance: bytes, of either sign.
    """

    buffer: str
    of: str
    distance: int = 0
