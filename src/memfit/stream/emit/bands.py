"""Bands: the rows of an image that one patch has, and how a kernel with SAME or VALID padding fits on them.

A band is a run of rows at full width. A kernel that runs with SAME padding on a band pads where the image may go on, so
some of its first and last rows are garbage; the others are the image's own where SAME's padding lines up with what the
rows need. Rows and columns are those of the whole image.
"""

from __future__ import annotations

from typing import NamedTuple

from memfit.stream.emit.nodes import SAME, VALID, Window, fit


class Band(NamedTuple):
    """Rows `[start, start + rows)` of an image, held in a tensor of its own."""

    tensor: int
    start: int
    rows: int
    columns: int
    """From the first one; those beyond the image's width hold nothing of use."""
    low: int
    high: int
    """Rows `[low, high)` are the image's; the others are garbage."""

    @property
    def end(self) -> int:
        """One past the last row; above the image's height if there is a row of junk below it."""
        return self.start + self.rows


class Need(NamedTuple):
    """What is asked of a value."""

    low: int
    high: int
    """Rows `[low, high)` as the image has them."""
    start: int
    end: int
    """Rows `[start, end)` in a band; those that are not asked for above may be garbage."""
    junk_row: bool = False
    """A row below the image besides, of any content."""
    junk_column: bool = False
    """A column to the right of the image besides, of any content."""

    def union(self, other: Need) -> Need:
        """Give what serves both."""
        return Need(
            min(self.low, other.low), max(self.high, other.high), min(self.start, other.start),
            max(self.end, other.end), self.junk_row or other.junk_row, self.junk_column or other.junk_column,
        )  # fmt: skip


class Made(NamedTuple):
    """What a kernel makes of a band, along one axis."""

    start: int
    """Place of the first output in the image."""
    outputs: int
    low: int
    high: int
    """Outputs `[low, high)` are the image's."""


def made(window: Window, padding: int, rows: tuple[int, int], good: tuple[int, int]) -> Made | None:
    """Tell what a kernel makes of rows `[start, end)`, of which those in `good` are the image's.

    >>> made(Window(3, 1, 1, 8, 8), SAME, (2, 6), (2, 6))
    Made(start=2, outputs=4, low=3, high=5)
    >>> made(Window(3, 2, 1, 8, 4), SAME, (2, 6), (2, 6)) is None  # rows 2 to 4 would be read for row 1, not 1 to 3
    True

    Returns:
        None if the padding does not line up.
    """
    if window.grows:
        return _grown(window, padding, rows, good)
    (start, end), (low, high) = rows, good
    outputs, before = fit(end - start, window.kernel, window.stride, padding)
    first = start - before + window.before
    if outputs < 1 or first % window.stride:
        return None
    first //= window.stride
    length, stride = window.length, window.stride
    lowest = max(first, 0)
    if low > 0:
        lowest = max(lowest, -(-(low + window.before) // stride))
    highest = min(first + outputs, window.outputs)
    if high < length:
        highest = min(highest, (high + window.before - window.kernel) // stride + 1)
    if end > length:  # junk stands where the padding should
        highest = min(highest, (length + window.before - window.kernel) // stride + 1)
    return Made(first, outputs, lowest, max(highest, lowest))


def _grown(window: Window, padding: int, rows: tuple[int, int], good: tuple[int, int]) -> Made:
    """Do the same for a transposed convolution whose output is as large as its input makes it.

    >>> made(Window(3, 2, 0, 8, 16, grows=True), SAME, (2, 6), (2, 6))
    Made(start=4, outputs=8, low=5, high=12)
    """
    (start, end), (low, high) = rows, good
    count, stride = end - start, window.stride
    outputs = count * stride if padding == SAME else (count - 1) * stride + window.kernel
    first = start * stride - window.before + fit(outputs, window.kernel, stride, padding)[1]
    lowest, highest = max(first, 0), min(first + outputs, window.outputs)
    if low > 0:
        lowest = max(lowest, (low - 1) * stride - window.before + window.kernel)
    if high < window.length or end > window.length:
        highest = min(highest, high * stride - window.before)
    return Made(first, outputs, lowest, max(highest, lowest))


def across(window: Window, padding: int, columns: int) -> int | None:
    """Give the columns that a kernel makes of a band so wide; None if the image's are not among them, in their places.

    >>> across(Window(3, 2, 1, 8, 4), SAME, 8), across(Window(3, 2, 1, 8, 4), SAME, 9)
    (None, 5)
    """
    found = made(window, padding, (0, columns), (0, window.length))
    good = found is not None and found.start == 0 and found.low == 0 and found.high == window.outputs
    return found.outputs if found is not None and good else None


class Fit(NamedTuple):
    """How a kernel is run so that it makes what is asked of it."""

    padding: int
    need: Need
    """Of its input."""


def choose(rows: Window, columns: Window, out: Need, *, junk: bool) -> Fit | None:
    """Find the smallest band from which a kernel makes what is needed.

    Args:
        rows: along the height.
        columns: along the width.
        out: what is asked of the output, without junk.
        junk: whether the input may have a row or a column of junk.
    """
    low, high = rows.needs(out.low, out.high)
    low_most, high_most = rows.needs(out.start, out.end)
    reach = rows.kernel + 2 * rows.stride
    earliest, latest = max(low_most - reach, 0), min(high_most + reach, rows.length)
    kinds = [
        (padding, junk_column)
        for padding in (VALID, SAME)
        for junk_column in (False, True)[: 1 + junk]
        if across(columns, padding, columns.length + junk_column) is not None
    ]
    for extra in range(1 + 2 * junk):
        for count in range(high - low, latest - earliest + 1):
            for padding, junk_column in kinds:
                if not 0 <= extra - junk_column <= 1:
                    continue
                junk_row = extra > junk_column
                for start in range(max(earliest, high - count), min(low, latest - count) + 1):
                    end = start + count
                    if junk_row and end != rows.length:
                        continue
                    found = made(rows, padding, (start, end + junk_row), (low, high))
                    if (
                        found is not None
                        and found.low <= out.low
                        and found.high >= out.high
                        and found.start <= out.start
                        and found.start + found.outputs >= out.end
                    ):
                        return Fit(padding, Need(low, high, start, end, junk_row, junk_column))
    return None
