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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from memfit.stream.network import INPUT, StreamNetwork, StreamOp
from memfit.stream.reach import Reach, Span, stripes

STRIPES = 16
"""The most stripes that are tried."""

EDGES = (0, 1, 2, 3)
"""How many columns more than an equal share the outer stripes are given: they have one halo where others have two."""

UNEVEN = 8
"""The most stripes of which the outer ones are given more."""

TOGETHER = 64
"""The most ends whose segments are measured at once: arrays stay in the processor's cache."""

SUM_BYTES = 4
"""Bytes of one sum of a whole image, per channel: int32, as in TFLM."""

_VIEWS = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
"""Operators whose output is their input, read in another way."""

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


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
    gives_room: int | None = None
    """The input whose rows, once consumed, are counted as room for rows of the output."""
    in_place: bool = False
    """True for an operation that runs plainly and whose output has the input's bytes: a depthwise convolution, which
    overwrites it channel by channel, or a reshape."""
    edge: int = 0
    """Columns that the outer stripes have more than an equal share; see `stripes`."""

    @property
    def overlaps(self) -> bool:
        """True where rows of the output take the room of rows of an input."""
        return self.gives_room is not None


_Columns = tuple[Integers, Integers]
"""The first column, and the one after the last: per stripe of all ways to cut, and per end."""


@dataclass(frozen=True)
class _Cuts:
    """Ways to cut columns into stripes."""

    ways: tuple[tuple[int, int], ...]
    """How many stripes, and how many columns more than an equal share the outer ones have."""

    @cached_property
    def counts(self) -> Integers:
        """Per way: how many stripes."""
        return np.array([count for count, _ in self.ways])

    @cached_property
    def first(self) -> Integers:
        """Per way: where its stripes begin, where those of all ways stand one behind the other."""
        return np.cumsum(self.counts) - self.counts

    @property
    def stripes(self) -> int:
        """Stripes of all ways."""
        return sum(count for count, _ in self.ways)


@dataclass(frozen=True)
class _Ends:
    """What segments share that end before several operations, are cut in the same ways, and may begin equally far back.

    Arrays have one entry, or one column, per end.
    """

    ends: Integers
    start: int
    """The first operation that they may begin with."""
    cuts: _Cuts
    heights: tuple[dict[int, int], ...]
    """Value → rows of its line buffer."""
    rows: dict[int, Integers]
    """Value → rows of it that are made."""

    def rows_kept(self, value: int) -> Integers:
        """Give the height of a value's line buffer."""
        return np.array([heights.get(value, 0) for heights in self.heights])


class Segments:
    """The segments of a network and what each takes."""

    def __init__(self, network: StreamNetwork, *, resident: bool = False, passes: int | None = None) -> None:
        """Prepare the segments.

        Args:
            network: from `network_of`.
            resident: the network's input is whole from the start, rather than fed row by row.
            passes: how often a fed input may be read, once per stripe; None for as often as there are stripes. Without
                extra work it is read once.
        """
        self.passes = passes
        self.network = network
        self.ops = network.ops
        self.values = network.values
        self.resident = resident
        self.count = len(self.ops)
        self.last: dict[int, int] = {}
        """Value → last operation that reads it; the number of operations for outputs of the network."""
        self.whole: set[int] = set()
        """Inputs of the network that are held whole."""
        self.reads: dict[int, list[tuple[int, int]]] = {}
        """Fed input → first and last operation of each time that it is read."""
        for value in self.values.values():
            last = value.readers[-1] if value.readers else value.producer
            self.last[value.index] = self.count if value.leaves else last
        for i in network.inputs:
            readers = self.values[i].readers
            if not readers and not self.values[i].leaves:
                self.last[i] = 0  # resident, it is there until the first operation is done; fed, it is never taken
            if resident or self.values[i].leaves or not all(self.ops[r].streams for r in readers):
                self.whole.add(i)
            elif readers:
                self.reads[i] = _reads([(r, self.ops[r].origin) for r in readers])
        self._live: dict[int, list[int]] = {}
        self._made: dict[int, dict[int, Integers] | None] = {}
        self._kept: dict[tuple[int, int, int], Integers | None] = {}
        self._starts = self._pieces()
        self._first = self._streaming()
        self._ends = {id(reach): np.array([0, *reach.ends]) for op in self.ops for reach in op.rows}
        self._firsts = {id(reach): np.array(reach.firsts) for op in self.ops for reach in op.rows}
        self._columns = {id(reach): _ends_of(reach) for op in self.ops for reach in op.columns}

    # -- what lives between segments --------------------------------------------------------------------------------

    def live(self, cut: int) -> list[int]:
        """Give the values that are whole between operations `cut - 1` and `cut`."""
        found = self._live.get(cut)
        if found is None:
            found = self._live[cut] = [v for v in self.values if self._exists(v, cut)]
        return found

    def _exists(self, value: int, cut: int) -> bool:
        if value in self.reads:
            return any(first < cut <= last for first, last in self.reads[value])
        given = self.values[value].producer == INPUT and value not in self.whole
        return (not given and self.values[value].producer < cut) and self.last[value] >= cut

    def fed(self, value: int, begin: int, end: int) -> bool:
        """True for an input of the network that a segment takes row by row, from outside."""
        met = [(first, last) for first, last in self.reads.get(value, ()) if first < end and last >= begin]
        return bool(met) and all(begin <= first and last < end for first, last in met)

    def outputs(self, begin: int, end: int) -> list[int]:
        """Give what a segment makes for others."""
        return [i for op in self.ops[begin:end] for i in (op.output, *op.others) if i >= 0 and self.last[i] >= end]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _pieces(self) -> list[int]:
        """Find for each operation the last cut at or before it that a single value crosses."""
        crossing = [0] * (self.count + 1)
        for i, value in self.values.items():
            if value.producer != INPUT or i in self.network.inputs:  # what is given besides has one row
                for first, last in self.reads.get(i, [(value.producer, self.last[i])]):
                    for cut in range(first + 1, min(last, self.count - 1) + 1):
                        crossing[cut] += 1
        starts, start = [], 0
        for cut in range(self.count):
            if crossing[cut] <= 1:
                start = cut
            starts.append(start)
        return starts

    def _streaming(self) -> list[int]:
        """Find for each operation how far back it may be computed together with those before it."""
        starts, start = [], 0
        for op in self.ops:
            start = start if op.streams else op.index + 1
            starts.append(start)
            start = op.index + 1 if op.sums else start
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
            found.update(self.follow(begin, end))
            end = begin
        return found

    def fed_rows(self, value: int, begin: int, end: int) -> int:
        """Give the height of a fed input's line buffer in a segment `[begin, end)`, whatever read it before."""
        times = [(first, last) for first, last in self.reads[value] if begin <= first < end]
        if len(self.reads[value]) == 1:
            return self.heights(end)[value]
        cuts = (cut for cut in range(times[-1][1] + 1, end) if self._starts[cut] == cut)
        return self.follow(times[0][0], next(cuts, end))[value]

    def step_count(self, begin: int, end: int) -> int:
        """Count the rows that flow through operations `[begin, end)` in one stripe, as `Flow.steps` gives them."""
        rows: dict[int, int] = {}
        count = 0
        for op in reversed(self.ops[begin:end]):
            asked = self.values[op.output].height if self.last[op.output] >= end else 0
            asked = max(asked, rows.pop(op.output, 0))
            count += self.values[op.inputs[0]].height if op.sums else asked
            for i, reach in zip(op.inputs, op.rows, strict=True):
                rows[i] = max(rows.get(i, 0), int(self._ends[id(reach)][asked]))
        return count + sum(rows.values())

    def follow(self, begin: int, end: int) -> dict[int, int]:
        """Let rows flow through operations `[begin, end)` and give the most rows that each value read there keeps."""
        known = self.network.followed
        if (begin, end) not in known:
            flow = Flow(self, begin, end)
            for _ in flow.steps():
                pass
            known[begin, end] = flow.most
        return known[begin, end]

    # -- bytes and work -----------------------------------------------------------------------------------------------

    def ending(
        self,
        end: int,
        limit_macs: int,
        limit_bytes: int,
        most_stripes: int = STRIPES,
        *,
        again: bool = False,
        every: bool = False,
    ) -> Iterator[Segment]:
        """Give the segments that end before operation `end`, from short to long; see `among`."""
        yield from self.among([end], limit_macs, limit_bytes, most_stripes, again=again, every=every)

    def among(
        self,
        ends: Sequence[int],
        limit_macs: int,
        limit_bytes: int,
        most_stripes: int = STRIPES,
        *,
        again: bool = False,
        every: bool = False,
        overlaps: bool = True,
    ) -> Iterator[Segment]:
        """Give the segments that end before one of several operations.

        Args:
            ends: for each, one past the last operation.
            limit_macs: the most extra multiply-accumulates.
            limit_bytes: segments that need as much or more are left out.
            most_stripes: the most stripes to try.
            again: all of it will be computed once more, and is extra work as a whole.
            every: also those that another one of the same operations beats in both bytes and work.
            overlaps: also those in which rows of the output take the room of rows of an input.
        """
        overlaps &= not again
        alike: dict[tuple[int, int], list[int]] = {}
        for end in ends:
            streams = self.ops[end - 1].streams
            plain = self.plain(end - 1)
            if plain.peak_bytes < limit_bytes or not streams:
                yield plain
            if streams:
                alike.setdefault((self._first[end - 1], self._stripe_width(end)), []).append(end)
        for (start, width), found in alike.items():
            for at in range(0, len(found), TOGETHER):
                shared = self._ends_at(found[at : at + TOGETHER], start, _ways(width, most_stripes))
                yield from self._streamed(shared, limit_macs, limit_bytes, again=again, every=every, overlaps=overlaps)

    def _ends_at(self, ends: Sequence[int], start: int, cuts: _Cuts) -> _Ends:
        heights = tuple(self.heights(end) for end in ends)
        return _Ends(np.array(ends), start, cuts, heights, self._rows(np.array(ends)))

    def plain(self, index: int) -> Segment:
        """Run one operation by itself, every tensor whole."""
        op = self.ops[index]
        live = set(self.live(index)) | set(op.inputs)
        made = [i for i in (op.output, *op.others) if i >= 0]
        peak = sum(self.values[i].nbytes for i in (*live, *made))
        if self._in_place(op):
            peak -= self.values[op.output].nbytes - self.scratch(op)
            return Segment(index, index + 1, 1, peak, 0, in_place=True)
        return Segment(index, index + 1, 1, peak, 0)

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

    def _own(self, value: int, shared: _Ends) -> _Columns:
        """Cut a value that is kept whole, or an image that is added up, into the columns that each stripe makes."""
        across = self._stripe_width(int(shared.ends[0]))
        return _all_stripes(self.values[value].width, across, shared.cuts.ways)

    def own_columns(self, value: int, segment: Segment) -> list[Span]:
        """Give the columns of a value that is kept whole, or added up, that each stripe of a segment makes."""
        width, across = self.values[value].width, self._stripe_width(segment.end)
        return stripes(width, segment.stripes, segment.edge * width // across)

    def _walk(self, shared: _Ends) -> Iterator[tuple[StreamOp, _Columns, dict[int, _Columns]]]:
        """Give the columns that each operation makes, and those that have been asked for of values made before it.

        From the last operation backwards. The last operations' stripes are given; those before make what is asked.
        """
        ends = shared.ends
        nothing = np.zeros((shared.cuts.stripes, len(ends)), dtype=np.int64)
        wanted: dict[int, _Columns] = {}
        for op in reversed(self.ops[shared.start : ends.max()]):
            made = wanted.pop(op.output, (nothing, nothing))
            leaves: Flags = (op.index < ends) & (self.last[op.output] >= ends)
            if leaves.any():
                made = _union(made, _where(leaves, self._own(op.output, shared)))
            for i, reach in zip(op.inputs, op.columns, strict=True):
                if op.sums:
                    asked = _where(op.index == ends - 1, self._own(i, shared))
                else:
                    asked = _under(self._columns[id(reach)], made)
                wanted[i] = _union(wanted[i], asked) if i in wanted else asked
            yield op, made, wanted

    def kept_columns(self, segment: Segment) -> dict[int, tuple[Span, ...]]:
        """Give, for each value that a segment makes or reads, the columns per stripe."""
        found: dict[int, _Columns] = {}
        cuts = _Cuts(((segment.stripes, segment.edge),))
        for op, made, wanted in self._walk(self._ends_at([segment.end], segment.begin, cuts)):
            found[op.output] = made
            if op.index == segment.begin:
                found.update(wanted)
        return {i: tuple(zip(a[:, 0].tolist(), b[:, 0].tolist(), strict=True)) for i, (a, b) in found.items()}

    def made_rows(self, end: int, made: set[int]) -> dict[int, int]:
        """Give how many rows of each of the values are made in a segment that ends before operation `end`."""
        rows = self._rows(np.array([end]))
        return {i: int(rows[i][0]) if i in rows else self.values[i].height for i in made}

    def _rows(self, ends: Integers) -> dict[int, Integers]:
        """Give how many rows of each value are made in segments that end before these operations."""
        found: dict[int, Integers] = {}
        nothing = np.zeros(len(ends), dtype=np.int64)
        for op in reversed(self.ops[: ends.max()]):
            if not op.streams:
                break
            leaves = (op.index < ends) & (self.last[op.output] >= ends)
            count = np.where(leaves, self.values[op.output].height, found.get(op.output, nothing))
            found[op.output] = count
            for i, reach in zip(op.inputs, op.rows, strict=True):
                asked = self._ends[id(reach)][count]
                found[i] = np.maximum(found[i], asked) if i in found else asked
        return found

    def _made_by(self, end: int) -> dict[int, Integers] | None:
        """Give how many rows of each value are made when row y of the last output is; None where rows do not say it."""
        if end not in self._made:
            self._made[end] = self._made_until(end)
        return self._made[end]

    def _made_until(self, end: int) -> dict[int, Integers] | None:
        last = self.ops[end - 1]
        if last.sums:
            return None
        found: dict[int, Integers] = {last.output: np.arange(1, self.values[last.output].height + 1)}
        for op in reversed(self.ops[:end]):
            if not op.streams or op.output not in found:  # another output: no segment that holds it overlaps
                break
            for i, reach in zip(op.inputs, op.rows, strict=True):
                asked = self._ends[id(reach)][found[op.output]]
                found[i] = np.maximum(found[i], asked) if i in found else asked
        return found

    def _streamed(
        self, shared: _Ends, limit_macs: int, limit_bytes: int, *, again: bool, every: bool, overlaps: bool
    ) -> Iterator[Segment]:
        """Give the segments that work row by row, of all ends and in all ways to cut columns at once."""
        ends, cuts, values = shared.ends, shared.cuts, self.values
        counts = cuts.counts[:, None]
        single = counts == 1
        lines = np.zeros((cuts.stripes, len(ends)), dtype=np.int64)
        """Bytes of line buffers, per stripe and end."""
        extra = np.zeros((len(counts), len(ends)), dtype=np.int64)
        alive = np.ones(len(ends), dtype=np.bool_)
        """Ends before which a longer segment may still be within the limits."""
        leaving = np.zeros(len(ends), dtype=np.int64)
        """How many values a segment makes for others."""
        sums = [values[op.output].channels * SUM_BYTES if op.sums else 0 for op in (self.ops[end - 1] for end in ends)]
        made_bytes = np.array(sums)
        nearest: dict[int, int] = {}
        """Value from before the segment → the first operation in it, or behind it, that reads it."""
        for op, (left, right), wanted in self._walk(shared):
            value, inside = values[op.output], op.index < ends
            nearest.pop(op.output, None)
            nearest.update(dict.fromkeys(op.inputs, op.index))
            for i in (op.output, *op.others):
                leaves = inside & (self.last[i] >= ends)
                leaving += leaves
                made_bytes += leaves * values[i].nbytes
            if self.last[op.output] < ends.max():
                dies = self.last[op.output] < ends
                lines += shared.rows_kept(op.output) * dies * value.pixel_bytes * (right - left)
            if op.macs:
                done = np.add.reduceat(right - left, cuts.first) * shared.rows[op.output]
                extra += inside * (op.macs * done // (value.width * value.height) - (0 if again else op.macs))
            usable = (extra <= limit_macs) | (single & (not again))
            usable &= np.maximum.reduceat(lines, cuts.first) + made_bytes < limit_bytes
            alive &= usable.any(axis=0) | ~inside
            usable &= alive & inside
            if not usable.any():
                if not alive.any():
                    return
                continue
            live = self.live(op.index)
            own, waiting = lines, np.full(len(ends), sum(values[i].nbytes for i in live))
            for i in nearest.keys() - live:  # what is given: held whole, or fed row by row
                fed = np.array([self.fed(i, op.index, int(end)) for end in ends])
                waiting += ((nearest[i] < ends) & ~fed) * values[i].nbytes
                if fed.any():
                    a, b = wanted[i]
                    kept = shared.rows_kept(i)
                    if len(self.reads[i]) > 1:
                        there = zip(fed & usable.any(axis=0), ends, strict=True)
                        kept = np.array([read and self.fed_rows(i, op.index, int(end)) for read, end in there])
                    own = own + fed * kept * values[i].pixel_bytes * (b - a)
                    usable &= ~fed | single | (extra > 0)
                    if self.passes is not None:
                        usable &= ~fed | (counts <= self.passes)
            most = np.maximum.reduceat(own, cuts.first) + (waiting + made_bytes)
            fits = usable & (most < limit_bytes)
            for way, at in np.argwhere(fits) if every else _undominated(extra, most, cuts.counts, fits):
                count, edge = cuts.ways[way]
                peak, work = int(most[way, at]), int(extra[way, at])
                yield Segment(op.index, int(ends[at]), count, peak, work, edge=edge)
            if overlaps:
                least = np.minimum(most[0], limit_bytes)
                for at in np.flatnonzero(usable[0] & (leaving == 1) & (waiting + own[0] < least)):
                    end = int(ends[at])
                    met = {i: reader for i, reader in nearest.items() if reader < end}
                    inputs = {i: reader for i, reader in met.items() if i in live or not self.fed(i, op.index, end)}
                    low, giver = self._overlapped(end, inputs, int(waiting[at]), int(least[at] - own[0, at]))
                    if giver is not None:
                        peak, work = low + int(own[0, at]), int(extra[0, at])
                        yield Segment(op.index, end, 1, peak, work, gives_room=giver)

    def _overlapped(
        self, end: int, inputs: Mapping[int, int], waiting: int, limit_bytes: int
    ) -> tuple[int, int | None]:
        """Let rows of the output take the room of rows of an input; give the bytes of all whole values, and the input.

        A single one: what several inputs leave is not in one piece. The others make room when all of them is consumed.

        Args:
            end: of the segment, which makes nothing for others but the last operation's output.
            inputs: those that are held whole → the first operation in the segment that reads them.
            waiting: bytes of all that is whole while it runs, without its outputs.
            limit_bytes: of no interest is what needs as much or more.

        Returns:
            The limit and None where nothing needs less.
        """
        best: tuple[int, int | None] = (limit_bytes, None)
        output = self.values[self.ops[end - 1].output]
        dying = [self.values[i] for i in inputs if self.last[i] < end]
        stays = waiting - sum(value.nbytes for value in dying)
        if self.last[output.index] < end or any(value.planar for value in dying) or stays + output.nbytes >= best[0]:
            return best
        kept = {value.index: self._kept_rows(value.index, inputs[value.index], end) for value in dying}
        during = stays + np.arange(1, output.height + 1) * output.row_bytes
        for value in dying:
            rows = kept[value.index]
            if rows is None:
                return best
            during += (rows > 0) * value.nbytes
        for i, rows in kept.items():
            if rows is not None:
                value = self.values[i]
                low = max(int((during - (rows > 0) * value.nbytes + rows * value.row_bytes).max()), waiting)
                best = (low, i) if low < best[0] else best
        return best

    def _kept_rows(self, value: int, reader: int, end: int) -> Integers | None:
        """Give how many rows of an input are still needed when row y of the last output is made; None for no answer.

        Args:
            value: the input.
            reader: the first operation in the segment that reads it; those before have read it all.
            end: of the segment.
        """
        key = (value, reader, end)
        if key not in self._kept:
            made = self._made_by(end)
            readers = [self.ops[index] for index in self.values[value].readers if index >= reader]
            if made is None or any(op.output not in made for op in readers):
                self._kept[key] = None
            else:
                firsts = [self._firsts[id(op.rows[op.inputs.index(value)])] for op in readers]
                done = [made[op.output] - (op.index == end - 1) for op in readers]
                dead = np.minimum.reduce([first[rows] for first, rows in zip(firsts, done, strict=True)])
                if not any(rows[0] for i, rows in made.items() if i != self.ops[end - 1].output):
                    dead[0] = 0  # the first row is made in the first step: what nobody reads is still there
                self._kept[key] = self.values[value].height - dead
        return self._kept[key]


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
        self.progress: dict[int, int] = {}
        """Value → rows made so far, or of the image that it adds up."""
        self.readers: dict[int, list[tuple[int, list[int]]]] = {}
        """Value → the outputs of its readers, and for each of their rows the first row of the value still needed."""
        self.ends: dict[int, list[tuple[int, list[int]]]] = {}
        """Output → its inputs, and for each row how many of theirs it takes."""
        self.most: dict[int, int] = {}
        self.asked: list[int] = []
        for op in ops:
            self.progress[op.output] = 0
            self.ends[op.output] = []
            for i, reach in zip(op.inputs, op.rows, strict=True):
                self.progress.setdefault(i, 0)
                self.most.setdefault(i, 0)
                firsts, ends = _added(reach) if op.sums else (reach.firsts, reach.ends)
                self.readers.setdefault(i, []).append((op.output, firsts))
                self.ends[op.output].append((i, ends))
        kept = [op.output for op in ops if segments.last[op.output] >= end]
        self.asked = [ops[-1].output, *(i for i in kept if i != ops[-1].output)]

    def steps(self) -> Iterator[tuple[int, int]]:
        """Make all rows; give (value, row) while each is made, with all that is kept still there."""
        for value in self.asked:
            maker = self.maker[value]
            count = self.values[maker.inputs[0]].height if maker.sums else self.values[value].height
            yield from self._pull(value, count)

    def low(self, value: int) -> int:
        """Give the first row of a value that somebody still needs."""
        return min([firsts[self.progress[output]] for output, firsts in self.readers.get(value, ())], default=0)

    def _pull(self, value: int, count: int) -> Iterator[tuple[int, int]]:
        """Make the first `count` rows of a value, and before each of them what it takes."""
        progress = self.progress
        asked = [(value, count)]
        while asked:
            value, count = asked[-1]
            row = progress[value]
            if row >= count:
                asked.pop()
                continue
            for i, ends in self.ends.get(value, ()):
                if progress[i] < ends[row]:
                    asked.append((i, ends[row]))
                    break
            else:
                if value in self.most:
                    self.most[value] = max(self.most[value], row + 1 - self.low(value))
                yield value, row
                progress[value] = row + 1


def _added(reach: Reach) -> tuple[list[int], list[int]]:
    """Let a sum take its image row by row."""
    return list(range(reach.length + 1)), list(range(1, reach.length + 1))


@cache
def _all_stripes(width: int, across: int, ways: tuple[tuple[int, int], ...]) -> _Columns:
    """Cut columns in all ways; the outer stripes' share is given for `across` columns."""
    found = np.array([span for count, edge in ways for span in stripes(width, count, edge * width // across)])
    return found[:, :1], found[:, 1:]


def _where(which: Flags | bool, columns: _Columns) -> _Columns:
    """Give the same columns for some of the ends, and none for the others."""
    return columns[0] * which, columns[1] * which


def _union(a: _Columns, b: _Columns) -> _Columns:
    """Give the smallest columns around two, either of which may be empty."""
    full_a, full_b = a[0] < a[1], b[0] < b[1]
    both = full_a & full_b
    left = np.where(both, np.minimum(a[0], b[0]), np.where(full_b, b[0], a[0]))
    right = np.where(both, np.maximum(a[1], b[1]), np.where(full_b, b[1], a[1]))
    return left, right


def _ends_of(reach: Reach) -> _Columns:
    """Give where the inputs of outputs begin from each place on, and where those of the ones before it end."""
    spans = [*reach.spans, (0, 0)]
    return np.array([span[0] for span in spans]), np.array([0, *(span[1] for span in reach.spans)])


def _under(ends: _Columns, made: _Columns) -> _Columns:
    """Give the input's columns under those of an output; see `Reach.of`."""
    left, right = made
    full = left < right
    return ends[0][left] * full, ends[1][right] * full


def _undominated(extra: Integers, most: Integers, counts: Integers, usable: Flags) -> Integers:
    """Give (way, end) where no other way of the same end has neither more work nor more bytes, by increasing work."""
    way, end = np.nonzero(usable)
    order = np.lexsort((counts[way], most[way, end], extra[way, end], end))
    way, end = way[order], end[order]
    bytes_ = most[way, end] - end * (1 + most.max(initial=0))  # each end below all that come before it
    lowest = np.minimum.accumulate(bytes_)
    better = np.append(np.full(min(len(way), 1), fill_value=True), lowest[1:] < lowest[:-1])
    found: Integers = np.stack((way, end), axis=1)[better]
    return found


def _reads(readers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Find where an input is read again from its first row: (operator, the one that it computes) of all readers.

    >>> _reads([(0, 0), (3, 3)]), _reads([(0, 0), (3, 3), (9, 0), (12, 3)]), _reads([(0, 0), (3, 3), (9, 3)])
    ([(0, 3)], [(0, 3), (9, 12)], [(0, 9)])
    """
    groups: list[dict[int, int]] = [{}]
    for index, origin in readers:
        if origin in groups[-1]:
            groups.append({})
        groups[-1][origin] = index
    if any(group.keys() != groups[0].keys() for group in groups):
        return [(readers[0][0], readers[-1][0])]
    return [(min(group.values()), max(group.values())) for group in groups]


@cache
def _ways(width: int, most: int) -> _Cuts:
    """List the ways to cut so many columns into at most so many stripes."""
    return _Cuts(
        tuple(
            (count, edge)
            for count in range(1, min(most, width) + 1)
            for edge in EDGES
            if edge == 0 or (2 < count <= UNEVEN and width - 2 * edge >= count)
        )
    )
