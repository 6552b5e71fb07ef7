"""What computing operations together takes: line buffers, stripes, bytes and repeated work.

A segment is a run of consecutive operations, `[begin, end)`. Rows flow through it, on demand: one row of the last
operation's output after the other, each operation making one row at a time when another asks for it, and each value
keeping only the rows that its readers still need. The most rows that a value ever keeps is the height of its line
buffer. With `stripes` the columns of the output are cut into so many parts, one after the other, and what neighbours
both need is computed twice.

Values that are read after the segment are kept whole, as those before it are. Without stripes, rows of an input that
dies here make room as they are consumed, and rows of the output take room as they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memfit.stream.network import INPUT, StreamNetwork, StreamOp, Value
from memfit.stream.reach import Reach, Span, stripes

STRIPES = 16
"""The most stripes that are tried."""

SUM_BYTES = 4
"""Bytes of one sum of a whole image, per channel: int32, as in TFLM."""

_VIEWS = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output is their input, read in another way."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LineBuffer:
    """The rows of a value that a segment keeps: a ring."""

    value: int
    rows: int
    """Row `y` is in slot `y % rows`."""
    columns: tuple[Span, ...]
    """Per stripe, the columns that are kept."""


@dataclass(frozen=True)
class Segment:
    """One way to compute operations `[begin, end)`."""

    begin: int
    end: int
    stripes: int
    """1 for the full width."""
    peak_bytes: int
    """Most bytes live at one time while it runs, values that only wait included."""
    extra_macs: int
    """Multiply-accumulates above the plain run's; below 0 where rows that nobody needs are left out."""
    overlaps: bool
    """True where rows of the output are counted as taking the room of rows of the inputs."""
    in_place: bool = False
    """True for an operation that runs plainly and whose output has the input's bytes: a depthwise convolution, which
    overwrites it channel by channel, or a reshape."""


@dataclass(frozen=True)
class _End:
    """What all segments that end before one operation share."""

    end: int
    heights: dict[int, int]
    """Value → rows of its line buffer."""
    rows: dict[int, int]
    """Value → rows of it that are made."""
    made: dict[int, Integers] | None
    """Value → rows of it that are made when row y of the last output is; None where rows do not say it."""
    limit_macs: int
    limit_bytes: int


class Segments:
    """The segments of a network and what each takes."""

    def __init__(
        self, network: StreamNetwork, *, resident: bool = False, overlap: bool = True, passes: int = STRIPES
    ) -> None:
        """Prepare the segments.

        Args:
            network: from `network_of`.
            resident: the network's input is whole from the start, rather than fed row by row.
            overlap: without stripes, rows of an output may take the room of rows of the inputs.
            passes: how often a fed input may be read, once per stripe. Without extra work it is read once.
        """
        self.passes = passes
        self.network = network
        self.ops = network.ops
        self.values = network.values
        self.resident = resident
        self.overlap = overlap
        self.count = len(self.ops)
        self.birth: dict[int, int] = {}
        """Value → first cut after which it exists."""
        self.last: dict[int, int] = {}
        """Value → last operation that reads it; the number of operations for outputs of the network."""
        self.whole: set[int] = set()
        """Inputs of the network that are held whole."""
        for value in self.values.values():
            last = value.readers[-1] if value.readers else value.producer
            self.last[value.index] = self.count if value.leaves else last
            self.birth[value.index] = value.producer
            if value.producer == INPUT:
                if resident or not value.readers or not all(self.ops[r].streams for r in value.readers):
                    self.whole.add(value.index)
                else:
                    self.birth[value.index] = value.readers[0] if value.readers else 0
        self._live: dict[int, list[int]] = {}
        self._heights: dict[tuple[int, int], dict[int, int]] = {}
        self._starts = self._pieces()
        self._ends = {id(reach): np.array([0, *reach.ends]) for op in self.ops for reach in op.rows}
        self._firsts = {id(reach): np.array(reach.firsts) for op in self.ops for reach in op.rows}

    # -- what lives between segments --------------------------------------------------------------------------------

    def live(self, cut: int) -> list[int]:
        """Give the values that are whole between operations `cut - 1` and `cut`."""
        found = self._live.get(cut)
        if found is None:
            found = self._live[cut] = [v for v in self.values if self._exists(v, cut) and self.last[v] >= cut]
        return found

    def _exists(self, value: int, cut: int) -> bool:
        if self.values[value].producer == INPUT:
            return value in self.whole or self.birth[value] < cut
        return self.values[value].producer < cut

    def fed(self, value: int, begin: int, end: int) -> bool:
        """True for an input of the network that a segment takes row by row, from outside."""
        found = self.values[value]
        return (
            found.producer == INPUT and value not in self.whole and begin <= self.birth[value] <= self.last[value] < end
        )

    def outputs(self, begin: int, end: int) -> list[int]:
        """Give what a segment makes for others."""
        return [i for op in self.ops[begin:end] for i in (op.output, *op.others) if i >= 0 and self.last[i] >= end]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _pieces(self) -> list[int]:
        """Find for each operation the last cut at or before it that a single value crosses."""
        starts, start = [], 0
        for cut in range(self.count):
            crossing = [v for v in self.values if self.values[v].producer < cut <= self.last[v]]
            if len(crossing) <= 1:
                start = cut
            starts.append(start)
        return starts

    def heights(self, end: int) -> dict[int, int]:
        """Give the line buffers' heights of values read by operations before `end`, back to what does not stream.

        How many rows a value keeps does not depend on what stands before it, nor on what stands behind the next cut
        that a single value crosses: there, rows are asked for one by one in any case. So each piece between such cuts
        is followed once.
        """
        found: dict[int, int] = {}
        while end > 0:
            begin = self._starts[end - 1]
            for first in range(end - 1, begin - 1, -1):
                if not self.ops[first].streams:
                    begin = first + 1
                    break
            if begin >= end:
                break
            key = (begin, end)
            if key not in self._heights:
                self._heights[key] = self.follow(begin, end)
            found.update(self._heights[key])
            end = begin
        return found

    def follow(self, begin: int, end: int) -> dict[int, int]:
        """Let rows flow through operations `[begin, end)` and give the most rows that each value read there keeps."""
        flow = Flow(self, begin, end)
        for _ in flow.steps():
            pass
        return flow.most

    # -- bytes and work -----------------------------------------------------------------------------------------------

    def ending(self, end: int, limit_macs: int, limit_bytes: int, most_stripes: int = STRIPES) -> Iterator[Segment]:
        """Give the segments that end before operation `end`, from short to long.

        Args:
            end: one past the last operation.
            limit_macs: the most extra multiply-accumulates.
            limit_bytes: segments that need as much or more are left out.
            most_stripes: the most stripes to try.
        """
        last = self.ops[end - 1]
        plain = self._plain(end - 1)
        if plain.peak_bytes < limit_bytes or not last.streams:
            yield plain
        if not last.streams:
            return
        shared = _End(end, self.heights(end), self._rows(end), self._made(end), limit_macs, limit_bytes)
        for count in range(1, min(most_stripes, self._stripe_width(end)) + 1):
            yield from self._with_stripes(shared, count)

    def _plain(self, index: int) -> Segment:
        """Run one operation by itself, every tensor whole."""
        op = self.ops[index]
        live = set(self.live(index)) | set(op.inputs)
        made = [i for i in (op.output, *op.others) if i >= 0]
        peak = sum(self.values[i].nbytes for i in (*live, *made))
        if self._in_place(op):
            peak -= self.values[op.output].nbytes - self.scratch(op)
            return Segment(index, index + 1, 1, peak, 0, overlaps=False, in_place=True)
        return Segment(index, index + 1, 1, peak, 0, overlaps=False)

    def scratch(self, op: StreamOp) -> int:
        """Give the bytes that an operation in place needs besides: one channel of a depthwise convolution."""
        value = self.values[op.output]
        return 0 if op.kind in _VIEWS else value.height * value.width * value.itemsize

    def _in_place(self, op: StreamOp) -> bool:
        if op.kind not in _VIEWS and (op.kind != "DEPTHWISE_CONV_2D" or not op.streams):
            return False
        if len(op.inputs) != 1 or op.output < 0 or op.others:
            return False
        x, y = self.values[op.inputs[0]], self.values[op.output]
        same = (x.height, x.width, x.pixel_bytes) == (y.height, y.width, y.pixel_bytes)
        held = x.producer != INPUT or x.index in self.whole
        return held and (same or (op.kind in _VIEWS and x.nbytes == y.nbytes)) and self.last[x.index] == op.index

    def _stripe_width(self, end: int) -> int:
        """Columns that are cut into stripes: of the last output, or of the image that is added up."""
        last = self.ops[end - 1]
        return self.values[last.inputs[0] if last.sums else last.output].width

    def own(self, value: Value, count: int) -> list[Span]:
        """Cut a value that is kept whole into the columns that each stripe makes."""
        return stripes(value.width, count)

    def columns(self, end: int, count: int) -> Iterator[tuple[StreamOp, list[Span], dict[int, list[Span]]]]:
        """Give the columns that each operation makes per stripe, and those of all values that have been asked for.

        From the last operation backwards.

        The last operation's own stripes are equal; those before it make what is asked of them.
        """
        wanted: dict[int, list[Span]] = {}
        for index in range(end - 1, -1, -1):
            op = self.ops[index]
            if not op.streams or (op.sums and index != end - 1):
                return
            value = self.values[op.output]
            spans = wanted.get(op.output, [(0, 0)] * count)
            if self.last[op.output] >= end:
                spans = [_union(a, b) for a, b in zip(spans, self.own(value, count), strict=True)]
            for i, asked in self._asked(op, spans):
                before = wanted.get(i)
                wanted[i] = asked if before is None else [_union(a, b) for a, b in zip(before, asked, strict=True)]
            yield op, spans, wanted

    def kept_columns(self, begin: int, end: int, count: int) -> dict[int, tuple[Span, ...]]:
        """Give, for each value that a segment makes or reads, the columns per stripe."""
        found: dict[int, list[Span]] = {}
        for op, spans, wanted in self.columns(end, count):
            found[op.output] = spans
            if op.index == begin:
                found.update((i, asked) for i, asked in wanted.items() if i not in found)
                break
        return {i: tuple(spans) for i, spans in found.items()}

    def made_rows(self, end: int, made: set[int]) -> dict[int, int]:
        """Give how many rows of each of the values are made in a segment that ends before operation `end`."""
        rows = self._rows(end)
        return {i: rows.get(i, self.values[i].height) for i in made}

    def _rows(self, end: int) -> dict[int, int]:
        """Give how many rows of each value are made in a segment that ends here."""
        found: dict[int, int] = {}
        for op in reversed(self.ops[:end]):
            if not op.streams:
                break
            if self.last[op.output] >= end:
                found[op.output] = self.values[op.output].height
            count = found.get(op.output, 0)
            for i, reach in zip(op.inputs, op.rows, strict=True):
                found[i] = max(found.get(i, 0), int(self._ends[id(reach)][count]))
        return found

    def _made(self, end: int) -> dict[int, Integers] | None:
        """Give how many rows of each value are made when row y of the last output is; None where rows do not say it."""
        last = self.ops[end - 1]
        if last.sums:
            return None
        found: dict[int, Integers] = {last.output: np.arange(1, self.values[last.output].height + 1)}
        for op in reversed(self.ops[:end]):
            if not op.streams:
                break
            if op.output not in found:
                return found  # another output: no segment that holds it overlaps
            for i, reach in zip(op.inputs, op.rows, strict=True):
                asked = self._ends[id(reach)][found[op.output]]
                found[i] = np.maximum(found[i], asked) if i in found else asked
        return found

    def _with_stripes(self, shared: _End, count: int) -> Iterator[Segment]:
        """Give the segments of one end with one number of stripes, from short to long."""
        end, values = shared.end, self.values
        lines = [0] * count
        """Bytes of line buffers per stripe."""
        extra = 0
        inputs: set[int] = set()
        outputs: list[int] = []
        for op, spans, wanted in self.columns(end, count):
            value = values[op.output]
            inputs.discard(op.output)
            inputs.update(op.inputs)
            outputs += [i for i in (op.output, *op.others) if self.last[i] >= end]
            if self.last[op.output] < end:
                for k, (a, b) in enumerate(spans):
                    lines[k] += shared.heights[op.output] * (b - a) * value.pixel_bytes
            if op.macs:
                done = sum(b - a for a, b in spans) * shared.rows.get(op.output, 0)
                extra += op.macs * done // (value.width * value.height) - op.macs
            if max(lines) >= shared.limit_bytes or (count > 1 and extra > shared.limit_macs):
                return
            again = count > 1 and any(self.fed(i, op.index, end) for i in inputs)
            if again and (count > self.passes or extra <= 0):
                continue
            peak, overlaps = self._measure(shared, op.index, lines, {i: wanted[i] for i in inputs}, outputs)
            if peak < shared.limit_bytes:
                yield Segment(op.index, end, count, peak, extra, overlaps=overlaps)

    def _measure(
        self, shared: _End, begin: int, lines: list[int], inputs: dict[int, list[Span]], outputs: list[int]
    ) -> tuple[int, bool]:
        """Give the bytes of a segment, and whether its output overlaps its inputs."""
        end, made, last = shared.end, shared.made, self.ops[shared.end - 1]
        own = list(lines)
        for i, spans in inputs.items():
            value = self.values[i]
            if self.fed(i, begin, end):
                for k, (a, b) in enumerate(spans):
                    own[k] += shared.heights[i] * (b - a) * value.pixel_bytes
        held = {*self.live(begin), *(i for i in inputs if not self.fed(i, begin, end))}
        waiting = sum(self.values[i].nbytes for i in held)
        sums = self.values[last.output].channels * SUM_BYTES if last.sums else 0
        most = waiting + sum(self.values[i].nbytes for i in outputs) + sums + max(own)
        dying = [i for i in inputs if i in held and self.last[i] < end]
        if not (self.overlap and len(own) == 1 and dying and made is not None and outputs == [last.output]):
            return most, False
        if any(self.values[i].planar for i in dying):
            return most, False
        output = self.values[last.output]
        during = np.arange(1, output.height + 1) * output.row_bytes
        stays = waiting
        for i in dying:
            value = self.values[i]
            dead = np.full(output.height, value.height)
            for index in value.readers:
                op = self.ops[index]
                if op.output not in made:
                    return most, False
                firsts = self._firsts[id(op.rows[op.inputs.index(i)])]
                done = made[op.output] - 1 if index == end - 1 else made[op.output]
                dead = np.minimum(dead, firsts[done])
            during = during + (value.height - dead) * value.row_bytes
            stays -= value.nbytes
        return max(stays + int(during.max()), waiting) + max(own), True

    def _asked(self, op: StreamOp, spans: list[Span]) -> Iterator[tuple[int, list[Span]]]:
        """Give each input of an operation with its columns per stripe; an image that is added up is only cut."""
        for i, reach in zip(op.inputs, op.columns, strict=True):
            yield i, self.own(self.values[i], len(spans)) if op.sums else [reach.of(*span) for span in spans]


class Flow:
    """The rows of one stripe as they flow through operations `[begin, end)`.

    Values from before `begin` are made on demand too: the most rows of them that are kept is what a line buffer
    before the segment would have to hold.
    """

    def __init__(self, segments: Segments, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.values = segments.values
        ops = segments.ops[begin:end]
        self.maker = {op.output: op for op in ops}
        self.made: dict[int, int] = {}
        """Value → rows made so far."""
        self.readers: dict[int, list[tuple[int, list[int]]]] = {}
        """Value → the outputs of its readers, and for each of their rows the first row of the value still needed."""
        self.ends: dict[int, list[tuple[int, list[int]]]] = {}
        """Output → its inputs, and for each row how many of theirs it takes."""
        self.most: dict[int, int] = {}
        self.asked: list[int] = []
        for op in ops:
            self.made[op.output] = 0
            self.ends[op.output] = []
            for i, reach in zip(op.inputs, op.rows, strict=True):
                self.made.setdefault(i, 0)
                self.most.setdefault(i, 0)
                firsts, ends = _added(reach) if op.sums else (reach.firsts, reach.ends)
                self.readers.setdefault(i, []).append((op.output, firsts))
                self.ends[op.output].append((i, ends))
        self.progress = {op.output: 0 for op in ops}
        """Output → rows of it, or of the image that it adds up, that are done."""
        kept = [op.output for op in ops if segments.last[op.output] >= end]
        self.asked = [ops[-1].output, *(i for i in kept if i != ops[-1].output)]

    def steps(self) -> Iterator[tuple[int, int]]:
        """Make all rows; give (value, row) while each is made, with all that is kept still there."""
        for value in self.asked:
            maker = self.maker[value]
            count = self.values[maker.inputs[0]].height if maker.sums else self.values[value].height
            yield from self._pull(value, count)

    def kept(self, value: int) -> tuple[int, int]:
        """Give the rows `[first, end)` of a value that are kept."""
        return self.low(value), self.made[value]

    def low(self, value: int) -> int:
        """Give the first row of a value that somebody still needs."""
        return min((firsts[self.progress[output]] for output, firsts in self.readers.get(value, [])), default=0)

    def _pull(self, value: int, count: int) -> Iterator[tuple[int, int]]:
        op = self.maker.get(value)
        while (self.progress[value] if op is not None else self.made[value]) < count:
            row = self.progress[value] if op is not None else self.made[value]
            if op is not None:
                for i, ends in self.ends[value]:
                    yield from self._pull(i, ends[row])
            if value in self.most:
                self.most[value] = max(self.most[value], row + 1 - self.low(value))
            yield value, row
            if op is not None:
                self.progress[value] = row + 1
                self.made[value] = 1 if op.sums else row + 1
            else:
                self.made[value] = row + 1


def _added(reach: Reach) -> tuple[list[int], list[int]]:
    """Let a sum take its image row by row."""
    return list(range(reach.length + 1)), list(range(1, reach.length + 1))


def _union(a: Span, b: Span) -> Span:
    """Give the smallest span around two, either of which may be empty.

    >>> _union((2, 4), (3, 7)), _union((0, 0), (3, 7))
    ((2, 7), (3, 7))
    """
    if a[0] >= a[1]:
        return b
    if b[0] >= b[1]:
        return a
    return min(a[0], b[0]), max(a[1], b[1])
