"""Lifetimes by byte of a draft's tensors, and their places in the arena.

A tensor that lies in another shares its bytes. What is packed are the outermost ones, each as rectangles of time by
address: a row lives from the operator that writes it to the last one that reads it, whichever tensor that is through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from memfit.memory.tflm.builds import ALIGNMENT, align_up
from memfit.packing import Buffer, Problem, pack
from memfit.packing.buffers import PackingError
from memfit.stream.emit.draft import Draft, NewOperator

NODES = 3000
"""Placements that the packer may try for one block and height."""


class Use(NamedTuple):
    """Bytes `[low, high)` of an outermost tensor, in use at times `[first, end)`."""

    low: int
    high: int
    first: int
    end: int


def buffers(draft: Draft) -> list[Buffer]:
    """State what has to be packed: by name the number of each outermost tensor, with its rectangles.

    Time 0 is before the first operator, and operator k runs at time k + 1.
    """
    return [
        Buffer(str(root), align_up(size, ALIGNMENT), list(_rectangles(uses, size)), alignment=ALIGNMENT)
        for root, (size, uses) in found_uses(draft).items()
    ]


def found_uses(draft: Draft) -> dict[int, tuple[int, list[Use]]]:
    """Give, for each outermost tensor, its bytes and when which of them are in use."""
    written: dict[int, int] = {}
    read: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    """Tensor → (time, first byte, end) of every reading."""
    inputs = [draft.whole[i] for i in draft.model.main.inputs if i in draft.whole]
    for tensor in inputs:
        written[tensor] = 0
        read[tensor].append((0, 0, draft.nbytes(tensor)))
    for time, operator in enumerate(draft.operators, 1):
        for position, tensor in enumerate(operator.inputs):
            if tensor >= 0 and not draft.is_constant(tensor):
                for low, high in read_bytes(draft, operator, position):
                    read[tensor].append((time, low, high))
        for tensor in operator.outputs:
            written.setdefault(tensor, time)
    last = len(draft.operators) + 1
    for tensor in (draft.whole[i] for i in draft.model.main.outputs if i in draft.whole):
        read[tensor].append((last, 0, draft.nbytes(tensor)))
    found: dict[int, tuple[int, list[Use]]] = {}
    for tensor, first in written.items():
        size = draft.nbytes(tensor)
        root, at = draft.root(tensor)
        most, uses = found.setdefault(root, (draft.nbytes(root), []))
        uses.extend(
            Use(at + low, at + high, first, end + 1) for low, high, end in _last_reads(size, first, read[tensor])
        )
        found[root] = max(most, at + size), uses
    return found


def read_bytes(draft: Draft, operator: NewOperator, position: int) -> Iterator[tuple[int, int]]:
    """Give the bytes of an input that an operator reads."""
    tensor = operator.inputs[position]
    size = draft.nbytes(tensor)
    if operator.template is not None or operator.name != "SLICE":
        yield 0, size
        return
    whole, part = draft.tensors[tensor].shape, draft.tensors[operator.outputs[0]].shape
    begin = draft.tensors[operator.inputs[1]].data or b""
    starts = [int.from_bytes(begin[4 * k : 4 * k + 4], "little") for k in range(4)]
    item = size // math.prod(whole)
    inner = item * whole[3] * whole[2]
    if part[1] < whole[1] or part[2] == whole[2]:  # channels last: rows follow each other
        yield starts[1] * inner, (starts[1] + part[1]) * inner
        return
    row = item * whole[3]
    for channel in range(part[1]):
        start = (starts[1] + channel) * inner + starts[2] * row
        yield start, start + part[2] * row


def _last_reads(size: int, written: int, readings: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Cut a tensor's bytes into runs with one last reading each: (first byte, end, time)."""
    runs = [(0, size, written)]
    for time, low, high in readings:
        cut = []
        for start, end, last in runs:
            for a, b, when in (
                (start, min(end, low), last),
                (max(start, low), min(end, high), max(last, time)),
                (max(start, high), end, last),
            ):
                if a < b:
                    cut.append((a, b, when))
        runs = cut
    yield from runs


def _rectangles(uses: list[Use], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Turn uses into rectangles (lower, upper, start, size) that do not overlap."""
    edges = sorted({0, size, *(use.low for use in uses), *(use.high for use in uses)})
    merged: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
    for low, high in pairwise(edges):
        times = _joined((use.first, use.end) for use in uses if use.low <= low and high <= use.high)
        if merged and merged[-1][2] == times:
            merged[-1] = (merged[-1][0], high, times)
        else:
            merged.append((low, high, times))
    for low, high, times in merged:
        if high == size:
            high = align_up(high, ALIGNMENT)  # noqa: PLW2901  (the runtime rounds a tensor's bytes up)
        for first, end in times:
            yield first, end, low, high - low


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join times that touch or overlap."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((first, end))
    return tuple(found)


# -- places -----------------------------------------------------------------------------------------------------------


class End(NamedTuple):
    """Where a tensor across a cut lies: so many bytes from one end of the arena."""

    upper: bool
    distance: int
    size: int

    def offset(self, height: int) -> int:
        """Give its first byte in an arena of a height."""
        return (height - self.distance - self.size) // ALIGNMENT * ALIGNMENT if self.upper else self.distance


class Block(NamedTuple):
    """What lives between two cuts that only whole tensors cross."""

    buffers: tuple[Buffer, ...]
    """With the times of the block only."""
    crossing: dict[str, End]
    """By name of the buffers that cross a cut."""


def blocks(draft: Draft) -> list[Block]:
    """Cut the packing problem at the cuts.

    Tensors across a cut lie at the ends of the arena, so that what is free between them stays in one piece: at the end
    that the draft says, in the lowest gap beside those that live there at the same time.
    """
    whole = buffers(draft)
    sizes = {buffer.name: buffer.size for buffer in whole}
    ends: dict[str, End] = {}
    found = []
    first, before = 0, frozenset[str]()
    for cut in (*draft.cuts, None):
        after: dict[str, bool] = {}
        for tensor in cut.tensors if cut else ():
            after.setdefault(str(draft.root(tensor)[0]), draft.upper[tensor])
        together = before | after.keys()
        for name, upper in after.items():
            if name not in ends:
                beside = sorted(ends[other][1:] for other in together if other in ends and ends[other].upper == upper)
                ends[name] = End(upper, _gap(beside, sizes[name]), sizes[name])
        end = cut.operators + 1 if cut and after else len(draft.operators) + 2
        inside = [part for buffer in whole if (part := _clipped(buffer, first, end)) is not None]
        found.append(Block(tuple(inside), {name: ends[name] for name in together}))
        first, before = end, frozenset(after)
    return found


def _gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Find the lowest gap of a size between (first byte, bytes), in order."""
    at = 0
    for start, nbytes in taken:
        if start - at >= size:
            break
        at = max(at, start + nbytes)
    return at


def _clipped(buffer: Buffer, first: int, end: int) -> Buffer | None:
    spans = [
        (max(span.lower, first), min(span.upper, end), span.start, span.size or 0)
        for span in buffer.spans
        if max(span.lower, first) < min(span.upper, end)
    ]
    return Buffer(buffer.name, buffer.size, spans, alignment=ALIGNMENT) if spans else None


class Places(NamedTuple):
    """A place for every tensor, or the blocks for which there is none."""

    offsets: dict[int, int]
    """Tensor → its first byte."""
    height: int
    failed: tuple[int, ...]
    """Blocks that were not packed into the height; block k ends at cut k."""


def bound(draft: Draft) -> int:
    """Give the most bytes in use at one time: no packing is lower."""
    return max(Problem(block.buffers).lower_bound for block in blocks(draft))


def place(draft: Draft, height: int) -> Places:
    """Find a place for every tensor within a height."""
    found: dict[str, int] = {}
    failed = []
    for number, block in enumerate(blocks(draft)):
        packed = _packed(block, height)
        if packed is None:
            failed.append(number)
        else:
            found.update(packed)
    if failed:
        return Places({}, height, tuple(failed))
    places = {}
    for tensor in range(len(draft.tensors)):
        root, at = draft.root(tensor)
        if str(root) in found:
            places[tensor] = found[str(root)] + at
    return Places(places, height, ())


def _packed(block: Block, height: int) -> dict[str, int] | None:
    """Pack a block into a height, with what crosses its cuts at the ends."""
    if Problem(block.buffers).lower_bound > height:
        return None
    fixed = []
    for buffer in block.buffers:
        end = block.crossing.get(buffer.name)
        offset = None if end is None else end.offset(height)
        if offset is not None and not 0 <= offset <= height - buffer.size:
            return None
        fixed.append(Buffer(buffer.name, buffer.size, buffer.spans, alignment=ALIGNMENT, offset=offset))
    try:
        packing = pack(Problem(tuple(fixed)), capacity=height, nodes=NODES)
    except PackingError:
        return None
    return dict(packing.offsets) if packing.height <= height else None
