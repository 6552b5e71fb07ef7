"""The arena of a streamed network: every buffer with its lifetime row by row, packed.

Time counts steps: in each, one row of one value is made (or, in an operation that runs plainly, the whole of it). A
line buffer is a ring of its own, alive for one stripe of its segment. A value that is kept whole is one buffer of
linked rectangles, one per row, where its segments count rows by themselves, and one rectangle elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from memfit.packing import Alias, Buffer, Packing, Problem, checked, pack
from memfit.packing.buffers import Span as Rectangle
from memfit.stream.place import Placer
from memfit.stream.reach import Span
from memfit.stream.segments import SUM_BYTES, Flow, LineBuffer, Segment, Segments

GRAIN = 256
"""A height is looked for to within one part in so many of the most bytes live."""


@dataclass(frozen=True)
class SegmentLayout:
    """What one segment keeps while it runs."""

    segment: Segment
    first_step: int
    end_step: int
    streamed: bool
    """True if it works row by row, one row a step; False for one operation that runs plainly, in one step."""
    lines: tuple[LineBuffer, ...]
    """Ring buffers, the fed input's among them."""
    sums: int | None
    """Value whose image is added up, or None."""
    columns: dict[int, tuple[Span, ...]]
    """Value made → the columns of it that each stripe computes."""
    rows: dict[int, int]
    """Value made → how many rows of it are computed."""


@dataclass(frozen=True)
class Arena:
    """Where everything lies."""

    layouts: tuple[SegmentLayout, ...]
    problem: Problem
    packing: Packing

    def line_offset(self, number: int, stripe: int, value: int) -> int:
        """Give the offset in bytes of a line buffer of segment `number`."""
        return self.packing.offsets[line_name(number, stripe, value)]

    def value_offset(self, value: int) -> int:
        """Give the offset in bytes of a value that is kept whole."""
        return self.packing.offsets[value_name(value)]


def line_name(number: int, stripe: int, value: int) -> str:
    """Name a line buffer.

    >>> line_name(0, 2, 17)
    'line 0.2 17'
    """
    return f"line {number}.{stripe} {value}"


def value_name(value: int) -> str:
    """Name a whole value's buffer.

    >>> value_name(17)
    'value 17'
    """
    return f"value {value}"


def sums_name(number: int) -> str:
    """Name the sums of an image, of segment `number`.

    >>> sums_name(3)
    'sums 3'
    """
    return f"sums {number}"


def scratch_name(number: int) -> str:
    """Name the scratch of an operation in place: one channel of a depthwise convolution.

    >>> scratch_name(3)
    'channel 3'
    """
    return f"channel {number}"


@dataclass
class _Whole:
    """A value that is kept whole, row by row in the making."""

    births: list[int]
    deaths: list[int] = field(default_factory=list)


class _Timeline:
    """The buffers of a choice in the making."""

    def __init__(self, segments: Segments, chosen: Sequence[Segment]) -> None:
        self.segments = segments
        self.values = segments.values
        self.chosen = chosen
        self.buffers: list[Buffer] = []
        self.aliases: list[Alias] = []
        self.whole: dict[int, _Whole] = {}
        self.layouts: list[SegmentLayout] = []
        self.step = 0

    def run(self) -> None:
        """Follow all segments."""
        for value in self.segments.whole:
            self._born(value, 0)
        for number, segment in enumerate(self.chosen):
            self._follow(number, segment)
        for value, whole in self.whole.items():
            height = self.values[value].height
            deaths = whole.deaths or [self.step] * height
            self.buffers.append(
                Buffer(
                    value_name(value),
                    self.values[value].nbytes,
                    _rectangles(whole.births, deaths, self.values[value].row_bytes),
                )
            )

    def _born(self, value: int, step: int) -> None:
        self.whole.setdefault(value, _Whole([step] * self.values[value].height))

    def _follow(self, number: int, segment: Segment) -> None:
        segments, ops = self.segments, self.segments.ops[segment.begin : segment.end]
        first, count = self.step, segment.stripes
        made = {i for op in ops for i in (op.output, *op.others) if i >= 0}
        outputs = set(segments.outputs(segment.begin, segment.end))
        inputs = {i for op in ops for i in op.inputs if i not in made}
        fed = {i for i in inputs if segments.fed(i, segment.begin, segment.end)}
        for i in inputs - fed:
            self._born(i, first)
        dying = [i for i, whole in self.whole.items() if not whole.deaths and segments.last[i] < segment.end]
        streamed = (
            all(op.streams for op in ops) and not segment.in_place and (len(ops) > 1 or segment.overlaps or bool(fed))
        )
        spans: dict[int, tuple[Span, ...]] = {i: ((0, self.values[i].width),) * count for i in made | inputs}
        if streamed:
            spans.update(segments.kept_columns(segment))
        births: dict[int, list[int]] = {i: [] for i in outputs}
        deaths: dict[int, list[int]] = {i: [] for i in dying}
        lines: list[LineBuffer] = []
        if not streamed:
            self.step += 1
            for i in made - outputs:  # made, and read by nobody
                self.buffers.append(Buffer(value_name(i), self.values[i].nbytes, [(first, self.step)]))
        else:
            heights = segments.heights(segment.end)
            heights |= {i: segments.fed_rows(i, segment.begin, segment.end) for i in fed}
            lines = [LineBuffer(i, heights[i], spans[i]) for i in sorted(fed | (made - outputs))]
            if segment.overlaps:  # in one stripe: rows of an input make room for rows of outputs
                flow = Flow(segments, segment.begin, segment.end)
                for step, (value, row) in enumerate(flow.steps(), first):
                    if value in births and len(births[value]) == row:
                        births[value].append(step)
                    for i, died in deaths.items():
                        died.extend([max(step, first + 1)] * (flow.low(i) - len(died)))
            steps = segments.step_count(segment.begin, segment.end)
            for stripe in range(count):
                for line in lines:
                    left, right = line.columns[stripe]
                    size = line.rows * (right - left) * self.values[line.value].pixel_bytes
                    alive = (self.step, self.step + steps)
                    self.buffers.append(Buffer(line_name(number, stripe, line.value), size, [alive]))
                self.step += steps
        last = ops[-1]
        if last.sums and streamed:
            size = self.values[last.output].channels * SUM_BYTES
            self.buffers.append(Buffer(sums_name(number), size, [(first, self.step)]))
        for i in outputs:
            height = self.values[i].height
            by_row = segment.overlaps and len(births[i]) == height
            self.whole[i] = _Whole(births[i] if by_row else [first] * height)
        for i in dying:
            height = self.values[i].height
            found = deaths[i] + [self.step] * (height - len(deaths[i]))
            self.whole[i].deaths = found if i == segment.gives_room else found[-1:] * height
        if segment.in_place:
            x, y = ops[0].inputs[0], ops[0].output
            self.aliases.append(Alias(value_name(y), value_name(x)))
            scratch = segments.scratch(ops[0])
            self.buffers.append(Buffer(scratch_name(number), scratch, [(first, self.step)]))
        self.layouts.append(
            SegmentLayout(
                segment, first, self.step, streamed, tuple(lines), last.output if last.sums and streamed else None,
                {i: spans[i] for i in made}, segments.made_rows(segment.end, made),
            )
        )  # fmt: skip


def _rectangles(births: Sequence[int], deaths: Sequence[int], row_bytes: int) -> list[Rectangle]:
    """Join neighbouring rows with one lifetime.

    >>> _rectangles([0, 0, 1], [2, 2, 2], 10)
    [Span(lower=0, upper=2, start=0, size=20), Span(lower=1, upper=2, start=20, size=10)]
    """
    found: list[Rectangle] = []
    for row, (birth, death) in enumerate(zip(births, deaths, strict=True)):
        if found and (found[-1].lower, found[-1].upper) == (birth, death):
            found[-1] = Rectangle(birth, death, found[-1].start, (found[-1].size or 0) + row_bytes)
        else:
            found.append(Rectangle(birth, death, row * row_bytes, row_bytes))
    return found


class Draft:
    """Every buffer of a choice of segments, not yet placed.

    Args:
        segments: of the network.
        chosen: segments that follow each other from the first operation to the last.
    """

    def __init__(self, segments: Segments, chosen: Sequence[Segment]) -> None:
        timeline = _Timeline(segments, chosen)
        timeline.run()
        self.layouts = tuple(timeline.layouts)
        self.problem = Problem(tuple(timeline.buffers), tuple(timeline.aliases))
        self.bound = self.problem.lower_bound
        """The most bytes live: no arena is smaller."""
        self._placer = Placer(self.problem, [layout.end_step for layout in self.layouts])
        peaks = [layout.segment.peak_bytes for layout in self.layouts]
        self._starts = dict.fromkeys((peaks.index(max(peaks)), len(peaks) - 1, 0)) if peaks else {}

    @property
    def stuck(self) -> int:
        """The segment that stood in the way when the last search failed."""
        return self._placer.stuck

    def within(self, height: int) -> Arena | None:
        """Place every buffer within a height in bytes; None where no way is found."""
        for start in self._starts:
            placed = self._placer.place(height, start)
            if placed is not None:
                return Arena(self.layouts, self.problem, checked(self.problem, placed, "segments", self.bound))
        return None

    def lowest(self, below: int) -> Arena | None:
        """Find the lowest arena of less than so many bytes; None where none is found."""
        low, best = self.bound, self.within(below - 1) if below > self.bound else None
        while best is not None and best.packing.height - low > max(self.bound // GRAIN, 1):
            middle = (low + best.packing.height) // 2
            arena = self.within(middle)
            low, best = (middle, best) if arena is None else (low, arena)
        return best

    def anyhow(self) -> Arena:
        """Place every buffer, within twice the most bytes live, or by a planner that always finds a way."""
        found = self.lowest(2 * self.bound + 1)
        return Arena(self.layouts, self.problem, pack(self.problem, "size")) if found is None else found
