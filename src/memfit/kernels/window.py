"""Windows that slide over images: where they start, what they need, and how an image is padded under them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from memfit.kernels.kernel import Array, Node, Region

SAME, VALID = 0, 1
"""Padding of the schema."""

BEFORE = "before"
"""Option of an operator that a PAD was folded into, which no schema has: rows and columns of padding before the image,
in place of what `padding` says."""


class Axis(NamedTuple):
    """One direction of a window."""

    size: int
    """Taps of the kernel."""
    stride: int
    dilation: int
    before: int
    """Rows or columns of padding before the input; there may be others after it."""
    length: int
    """Of the input."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Give the inputs `[first, last)` under outputs `[start, end)`, padding included.

        >>> Axis(3, 2, 1, 1, 8).span(0, 2)
        (-1, 4)
        """
        return start * self.stride - self.before, (end - 1) * self.stride - self.before + self.extent

    @property
    def extent(self) -> int:
        """Inputs from the first tap to the last."""
        return (self.size - 1) * self.dilation + 1

    def inside(self, start: int, end: int) -> tuple[int, int]:
        """Give the inputs under outputs `[start, end)` that exist."""
        first, last = self.span(start, end)
        first = min(max(first, 0), self.length)
        return first, max(min(last, self.length), first)


class Window(NamedTuple):
    """A kernel's window."""

    rows: Axis
    columns: Axis

    def needed(self, region: Region) -> Region:
        """Give the part of the input that a region of the output takes, without padding.

        >>> Window(Axis(3, 1, 1, 1, 8), Axis(1, 2, 1, 0, 9)).needed(Region(0, 2, 1, 3))
        Region(top=0, bottom=3, left=2, right=5)
        """
        return Region(*self.rows.inside(region.top, region.bottom), *self.columns.inside(region.left, region.right))

    def padded(self, image: Array, held: Region, region: Region, fill: float) -> Array:
        """Take what a region of the output sees, with `fill` outside of the input; no copy without padding."""
        needed = self.needed(region)
        inside = needed.of(image, held)
        top, bottom = self.rows.span(region.top, region.bottom)
        left, right = self.columns.span(region.left, region.right)
        if (needed.height, needed.width) == (bottom - top, right - left):
            return inside
        made = np.full((image.shape[0], bottom - top, right - left, image.shape[3]), fill, image.dtype)
        if inside.size:
            y, x = needed.top - top, needed.left - left
            made[:, y : y + needed.height, x : x + needed.width] = inside
        return made

    def taps(self, padded: Array, region: Region) -> Array:
        """View what `padded` gave as (batch, rows, columns, kernel rows, kernel columns, channels)."""
        n, _, _, c = padded.shape
        strides = padded.strides
        rows, columns = self.rows, self.columns
        return np.lib.stride_tricks.as_strided(
            padded,
            (n, region.height, region.width, rows.size, columns.size, c),
            (
                strides[0], strides[1] * rows.stride, strides[2] * columns.stride,
                strides[1] * rows.dilation, strides[2] * columns.dilation, strides[3],
            ),
            writeable=False,
        )  # fmt: skip


def axis(padding: int, size: int, stride: int, dilation: int, length: int) -> Axis:
    """Work out the padding of one direction.

    Source: ComputePaddingHeightWidth, tensorflow/lite/kernels/padding.h.

    >>> axis(SAME, 3, 2, 1, 8)
    Axis(size=3, stride=2, dilation=1, before=0, length=8)
    """
    extent = (size - 1) * dilation + 1
    outputs = -(-length // stride) if padding == SAME else -(-(length + 1 - extent) // stride)
    return Axis(size, stride, dilation, max((outputs - 1) * stride + extent - length, 0) // 2, length)


def window(node: Node, image: tuple[int, ...], kernel: tuple[int, int]) -> Window:
    """Read an operator's window over an image of a shape (batch, height, width, channels)."""
    padding, before = node.option("padding"), node.option(BEFORE, None)
    rows = axis(padding, kernel[0], node.option("stride_h"), node.option("dilation_h_factor", 1), image[1])
    columns = axis(padding, kernel[1], node.option("stride_w"), node.option("dilation_w_factor", 1), image[2])
    if before is not None:
        rows, columns = rows._replace(before=before[0]), columns._replace(before=before[1])
    return Window(rows, columns)
