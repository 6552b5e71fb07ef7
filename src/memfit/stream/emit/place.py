"""Lifetimes by byte of a draft's tensors, and their places in the arena.

A tensor that lies in another shares its bytes. What is packed are the outermost ones, each as rectangles of time by
address: a row lives from the operator that writes it to the last one that reads it, whichever tensor that is through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from memfit.memory.tflm.builds import ALIGNMENT, align_up
from memfit.packing import Buffer, Problem, pack
from memfit.packing.buffers import PackingError
from memfit.stream.emit.draft import Draft, NewOperator

SCRATCH = "scratch "
"""How names of buffers begin that the runtime places."""

NODES = 3000
"""Placements that the packer may try for one block and height."""

TRIES = 60
"""Blocks that may be packed between two cuts that a single tensor crosses."""

_SAID, _TURNED, _FREE = "said", "turned", "free"
_WAYS = (_SAID, _TURNED, _FREE)
"""Where a tensor across a cut may lie: at the end that the draft says, at the other one, or anywhere."""


class Use(NamedTuple):
    """Bytes `[low, high)` of an outermost tensor, in use at times `[first, end)`."""

    low: int
    high: int
    first: int
    end: int


def buffers(draft: Draft) -> list[Buffer]:
    """State what has to be packed: by name the number of each outermost tensor, with its rectangles.

    Time 0 is before the first operator, and operator k runs at time k + 1. Scratch buffers, which the runtime places
    itself, stand for the room that they need.
    """
    tensors = [
        Buffer(str(root), align_up(size, ALIGNMENT), list(_rectangles(uses, size)), alignment=ALIGNMENT)
        for root, (size, uses) in found_uses(draft).items()
    ]
    scratch = [
        Buffer(f"{SCRATCH}{time}.{number}", align_up(size, ALIGNMENT), [(time, time + 1)], alignment=ALIGNMENT)
        for time, operator in enumerate(draft.operators, 1)
        for number, size in enumerate(draft.scratch(operator))
    ]
    return tensors + scratch


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
    scratch = [time for time, operator in enumerate(draft.operators, 1) if draft.scratch(operator)]
    found: dict[int, tuple[int, list[Use]]] = {}
    for tensor, first in written.items():
        size = draft.nbytes(tensor)
        root, at = draft.root(tensor)
        most, uses = found.setdefault(root, (draft.nbytes(root), []))
        reads = list(_last_reads(size, first, read[tensor]))
        uses.extend(Use(at + low, at + high, first, end + 1) for low, high, end in reads)
        if len(reads) > 1:  # the runtime places scratch buffers beside whole tensors
            last_read = max(end for _, _, end in reads)
            uses.extend(Use(at, at + size, time, time + 1) for time in scratch if first <= time <= last_read)
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


def _last_reads(size: int, written: int, readings: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Cut a tensor's bytes into runs with one last reading each: (first byte, end, time)."""
    parts = [(time, low, high) for time, low, high in readings if high - low < size]
    whole = [time for time, low, high in readings if high - low == size]
    runs = [(0, size, max(whole, default=written))]
    for time, low, high in parts:
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
    after: dict[str, bool]
    """By name of the buffers that cross the second cut: whether they are to lie at the upper end of the arena."""


def blocks(draft: Draft) -> list[Block]:
    """Cut the packing problem at the cuts."""
    whole = buffers(draft)
    found = []
    first = 0
    for cut in (*draft.cuts, None):
        after: dict[str, bool] = {}
        for tensor in cut.tensors if cut else ():
            after.setdefault(str(draft.root(tensor)[0]), draft.upper[tensor])
        end = cut.operators + 1 if cut else len(draft.operators) + 2
        inside = [part for buffer in whole if (part := _clipped(buffer, first, end)) is not None]
        found.append(Block(tuple(inside), after))
        first = end
    return found


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
    """Find a place for every tensor within a height.

    Tensors across a cut lie at the ends of the arena, so that what is free between them stays in one piece: at the end
    that the draft says. Where several cross, other places are tried too.
    """
    parts = blocks(draft)
    low = [number for number, block in enumerate(parts) if Problem(block.buffers).lower_bound > height]
    if low:
        return Places({}, height, tuple(low))
    found: dict[str, int] = {}
    failed = []
    crossing: dict[str, End] = {}
    begin = 0
    for end, block in enumerate(parts, 1):
        if len(block.after) > 1:
            continue
        run = _Run(parts[begin:end], height)
        packed = run.packed(crossing)
        if packed is None:
            failed.append(begin + run.deepest)
            crossing = {name: End(upper, 0, run.sizes[name]) for name, upper in block.after.items()}
        else:
            found |= packed
            crossing = {name: run.end(name, packed[name]) for name in block.after}
        begin = end
    if failed:
        return Places({}, height, tuple(failed))
    places = {}
    for tensor in range(len(draft.tensors)):
        root, at = draft.root(tensor)
        if str(root) in found:
            places[tensor] = found[str(root)] + at
    return Places(places, height, ())


class _Run:
    """Blocks one after the other, with several tensors across each cut between them."""

    def __init__(self, parts: Sequence[Block], height: int) -> None:
        self.parts, self.height = parts, height
        self.sizes = {buffer.name: buffer.size for block in parts for buffer in block.buffers}
        self.tries = TRIES
        self.deepest = 0

    def packed(self, before: Mapping[str, End], number: int = 0) -> dict[str, int] | None:
        """Pack the blocks from one on; None if no place that was tried for what crosses their cuts leads to the end."""
        if number == len(self.parts):
            return {}
        self.deepest = max(self.deepest, number)
        block = self.parts[number]
        ways = _WAYS if len(block.after) > 1 else _WAYS[:1]
        for way in ways:
            if self.tries == 0:
                break
            self.tries -= 1
            ends = self._ends(block, before, way)
            found = _packed(block, {name: end.offset(self.height) for name, end in ends.items()}, self.height)
            if found is None:
                continue
            after = {name: ends.get(name) or self.end(name, found[name]) for name in block.after}
            rest = self.packed(after, number + 1)
            if rest is not None:
                return found | rest
        return None

    def _ends(self, block: Block, before: Mapping[str, End], way: str) -> dict[str, End]:
        """Choose places for what is new across a block's second cut."""
        ends = dict(before)
        for name, upper in block.after.items():
            if name not in ends and way != _FREE:
                side = upper == (way == _SAID)
                beside = sorted(end[1:] for end in ends.values() if end.upper == side)
                ends[name] = End(side, _gap(beside, self.sizes[name]), self.sizes[name])
        return ends

    def end(self, name: str, offset: int) -> End:
        """Note where a tensor was placed, from the end that is nearer."""
        size = self.sizes[name]
        above = self.height - offset - size
        return End(True, above, size) if above < offset else End(False, offset, size)


def _gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Find the lowest gap of a size between (first byte, bytes), in order."""
    at = 0
    for start, nbytes in taken:
        if start - at >= size:
            break
        at = max(at, start + nbytes)
    return at


def _packed(block: Block, fixed: Mapping[str, int], height: int) -> dict[str, int] | None:
    """Pack a block into a height, with some of its buffers where they are."""
    held = []
    for buffer in block.buffers:
        offset = fixed.get(buffer.name)
        if offset is not None and not 0 <= offset <= height - buffer.size:
            return None
        held.append(Buffer(buffer.name, buffer.size, buffer.spans, alignment=ALIGNMENT, offset=offset))
    try:
        packing = pack(Problem(tuple(held)), capacity=height, nodes=NODES)
    except PackingError:
        return None
    return dict(packing.offsets) if packing.height <= height else None
