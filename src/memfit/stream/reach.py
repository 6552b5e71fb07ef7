"""Which rows or columns of an input an output row or column takes: one `Reach` per direction.

All places are absolute and half-open, and padding is left out: what lies outside of the input is never asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from memfit.kernels.window import SAME, VALID, Axis, axis

Span = tuple[int, int]
"""Rows or columns `[first, end)`."""

Way = tuple[int, int, int, int | str | None]
"""How a window moves: kernel, stride, dilation, and padding before: a number, `same`, `valid`, or None for half."""


@dataclass(frozen=True)
class Reach:
    """For each output row (or column), the input rows that it takes, by increasing place.

    >>> window(Axis(3, 2, 1, 1, 8), 4).spans
    ((0, 2), (1, 4), (3, 6), (5, 8))

    Args:
        spans: for each output row, the inputs `[first, end)`; neither end ever goes back, in empty spans either.
        length: rows of the input.
    """

    spans: tuple[Span, ...]
    length: int

    def of(self, start: int, end: int) -> Span:
        """Give the inputs under outputs `[start, end)`.

        >>> window(Axis(3, 1, 1, 1, 8), 8).of(2, 4)
        (1, 5)
        """
        if start >= end:
            return (0, 0)
        return self.spans[start][0], self.spans[end - 1][1]

    @cached_property
    def firsts(self) -> list[int]:
        """For each output row, the first input row that it or a later one takes; the input's length at the end."""
        found = [self.length]
        for first, end in reversed(self.spans):
            found.append(min(found[-1], first) if end > first else found[-1])
        return found[::-1]

    @cached_property
    def ends(self) -> list[int]:
        """For each output row, how many input rows must have been made for it and those before."""
        found: list[int] = []
        for first, end in self.spans:
            found.append(max(found[-1] if found else 0, end if end > first else 0))
        return found


def window(direction: Axis, outputs: int) -> Reach:
    """Slide a kernel's window."""
    return Reach(tuple(direction.inside(place, place + 1) for place in range(outputs)), direction.length)


def same(length: int) -> Reach:
    """Take row by row.

    >>> same(2).spans
    ((0, 1), (1, 2))
    """
    return Reach(tuple((place, place + 1) for place in range(length)), length)


def whole(length: int, outputs: int) -> Reach:
    """Take all of the input for each output row.

    >>> whole(3, 2).spans
    ((0, 3), (0, 3))
    """
    return Reach(((0, length),) * outputs, length)


def shifted(length: int, outputs: int, before: int) -> Reach:
    """Find the input `before` rows further down in the output, as PAD puts it.

    >>> shifted(2, 4, 1).spans
    ((0, 0), (0, 1), (1, 2), (2, 2))
    """
    spans = []
    for place in range(outputs):
        at = place - before
        spans.append((at, at + 1) if 0 <= at < length else (min(max(at, 0), length),) * 2)
    return Reach(tuple(spans), length)


def chained(first: Reach, second: Reach) -> Reach:
    """Find what an operator takes of the input of the one before it.

    >>> chained(shifted(2, 4, 1), window(Axis(3, 1, 1, 0, 4), 2)).spans
    ((0, 2), (0, 2))

    Args:
        first: from the input to the value between.
        second: from there to the output.
    """
    starts = [*(span[0] for span in first.spans), first.length]
    return Reach(
        tuple(first.of(*span) if span[0] < span[1] else (starts[span[0]],) * 2 for span in second.spans), first.length
    )


def transposed(direction: Axis, outputs: int) -> Reach:
    """Spread each input over `direction.size` outputs, `direction.stride` apart, as a transposed convolution does.

    >>> transposed(Axis(2, 2, 1, 0, 2), 4).spans
    ((0, 1), (0, 1), (1, 2), (1, 2))
    """
    spans = []
    for place in range(outputs):
        at = place + direction.before
        first = max(-(-(at - direction.extent + 1) // direction.stride), 0)
        spans.append((min(first, direction.length), max(min(at // direction.stride + 1, direction.length), first)))
    return Reach(tuple(spans), direction.length)


def nearest(length: int, outputs: int, *, corners: bool = False, centers: bool = False) -> Reach:
    """Take the nearest input, as RESIZE_NEAREST_NEIGHBOR does.

    >>> nearest(2, 4).spans
    ((0, 1), (0, 1), (1, 2), (1, 2))
    """
    from memfit.kernels.resize import _nearest

    found = [int(place) for place in _nearest(length, outputs, corners, centers).first]
    return Reach(tuple((place, place + 1) for place in found), length)


def bilinear(length: int, outputs: int, *, corners: bool = False, centers: bool | None = False) -> Reach:
    """Take the inputs on both sides, as RESIZE_BILINEAR does; centers None for what both conventions take.

    >>> bilinear(2, 4, centers=True).spans
    ((0, 1), (0, 2), (0, 2), (1, 2))
    """
    from memfit.kernels.resize import _integer

    ways = [_integer(length, outputs, corners, bool(way)) for way in ([False, True] if centers is None else [centers])]
    spans = []
    for place in range(outputs):
        found = [way.span(place, place + 1) for way in ways]
        spans.append((min(span[0] for span in found), max(span[1] for span in found)))
    return Reach(tuple(spans), length)


def slide(length: int, outputs: int, way: Way) -> Axis:
    """Make the axis of a window.

    >>> slide(224, 112, (3, 2, 1, 1)).before, slide(224, 112, (3, 2, 1, "same")).before
    (1, 0)
    """
    kernel, stride, dilation, padding = way
    if isinstance(padding, str):
        return axis(SAME if padding.lower() == "same" else VALID, kernel, stride, dilation, length)
    extent = (kernel - 1) * dilation + 1
    before = padding if padding is not None else max((outputs - 1) * stride + extent - length, 0) // 2
    return Axis(kernel, stride, dilation, before, length)


def stripes(width: int, count: int, edge: int = 0) -> list[Span]:
    """Cut columns into `count` parts, as equal as can be, but for the outer ones, which get `edge` columns more.

    >>> stripes(7, 3), stripes(12, 3, 1)
    ([(0, 3), (3, 5), (5, 7)], [(0, 5), (5, 8), (8, 12)])
    """
    inner = width - 2 * edge
    cuts = [edge - (-inner * number // count) for number in range(count + 1)]
    return list(pairwise([0, *cuts[1:-1], width]))
