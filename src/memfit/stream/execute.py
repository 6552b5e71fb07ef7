"""A streamed network run in one byte array of exactly the planned size.

Whatever lives from one step to the next, line buffers, whole values, sums and scratch, is in that array, at the places
that the plan gives them. Each step computes one row of one value out of rows of others. What NumPy makes on the way is
gone with the step: the products and sums of that one row, which a kernel in C has in registers, and a copy of the rows
of a ring that it reads where they go round its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memfit.errors import UsageError
from memfit.formats.tflite import Operator
from memfit.kernels.convolution import one_channel
from memfit.kernels.interpreter import Interpreter, check_inputs, dtype_of
from memfit.kernels.kernel import Array, Region, area_of
from memfit.stream.layout import SegmentLayout, line_name, scratch_name, sums_name, value_name
from memfit.stream.network import INPUT, StreamOp, Value
from memfit.stream.plan import StreamPlan
from memfit.stream.reach import Span
from memfit.stream.segments import SUM_BYTES, Flow, Segments
from memfit.stream.store import Place, Store

Feed = Callable[[int, int, int], Array]
"""(row, first column, end) → that part of a row of an image, as an array (columns, channels)."""


@dataclass(frozen=True)
class Execution:
    """What a run gave, and what it took."""

    outputs: tuple[Array, ...]
    peak_bytes: int
    """One past the highest byte of the array that was written."""
    macs: int
    """Multiply-accumulates of the rows and columns that were computed."""
    extra_macs: int
    """Above those of a plain run."""
    input_passes: int
    """How often a row of the network's input was asked for, at most."""
    steps: int
    gathered_bytes: int
    """The largest copy of rows of a ring that do not follow each other, gone when their step is over."""


def execute(plan: StreamPlan, inputs: Sequence[Array | Feed], *, check: bool = True) -> Execution:
    """Run a plan once; see `Executor`.

    >>> from memfit.formats.tflite import Operator, Subgraph, TfliteModel, TfliteTensor
    >>> from memfit.stream import plan_stream, records
    >>> def tensor(index, *shape):
    ...     return TfliteTensor(index, "", shape, (), "INT8", 0, None, None, False, True, False, 0)
    >>> window = dict(padding=0, stride_h=2, stride_w=2, filter_height=2, filter_width=2)
    >>> pool = Operator(0, 0, "MAX_POOL_2D", False, 1, (0,), (1,), (), (), "Pool2DOptions", window, None)
    >>> graph = Subgraph(0, "main", (tensor(0, 1, 4, 4, 1), tensor(1, 1, 2, 2, 1)), (pool,), (0,), (1,))
    >>> model = TfliteModel("pool.tflite", 3, "", (), (graph,), (), (), (), ())
    >>> found = execute(plan_stream(records(model)), [np.arange(16, dtype=np.int8).reshape(1, 4, 4, 1)])
    >>> found.outputs[0].ravel().tolist(), found.peak_bytes  # two rows of four columns, and the output
    ([5, 7, 13, 15], 12)
    """
    return Executor(plan, check=check).run(inputs)


class Executor:
    """Runs a plan, to the bit as a plain run of its network.

    Args:
        plan: from `plan_stream`, of a `.tflite` file.
        check: hold every access against what the plan says about each byte, and fill freed bytes with a pattern.

    Raises:
        UsageError: the plan is of an estimate, which has no weights.
        UnsupportedOp: an operator, or one of its types or options, has no kernel.
    """

    def __init__(self, plan: StreamPlan, *, check: bool = True) -> None:
        if plan.network.estimated:
            raise UsageError(
                "an estimate of a network has no weights to run with",
                where=plan.network.model.source,
                received="a source that is no .tflite file",
                todo="convert the network, and give the .tflite file",
            )
        self.plan, self.check = plan, check
        self.model, self.values = plan.network.model, plan.network.values
        self._plain = Interpreter(self.model)
        self._segments = Segments(plan.network, resident=plan.resident)

    def reset(self) -> None:
        """Set the variable tensors to their zero points, as at the start."""
        self._plain.reset()

    def run(self, inputs: Sequence[Array | Feed]) -> Execution:
        """Run the network once.

        Args:
            inputs: for each input of the model an array of its shape and type, or a function that gives part of a row
                of it: (row, first column, end) → (columns, channels). A row is asked for once per stripe.

        Raises:
            UsageError: an input has another shape or type.
            InternalError: the plan reads or writes a byte that is not its to read or write.
        """
        return _Run(self, _feeds(self, inputs)).run()


def _feeds(executor: Executor, inputs: Sequence[Array | Feed]) -> dict[int, Feed]:
    """Make a function of rows of every input."""
    check_inputs(executor.model, [given if isinstance(given, np.ndarray) else None for given in inputs])
    return {
        i: _rows_of(given, executor.values[i]) if isinstance(given, np.ndarray) else given
        for i, given in zip(executor.model.main.inputs, inputs, strict=True)
    }


def _rows_of(array: Array, value: Value) -> Feed:
    if value.planar:
        return lambda row, left, right: array[0, :, row, left:right].T
    image = array.reshape(value.height, value.width, value.channels)
    return lambda row, left, right: image[row, left:right]


class _Run:
    """One run."""

    def __init__(self, executor: Executor, feeds: dict[int, Feed]) -> None:
        self.plan, self.model, self.values = executor.plan, executor.model, executor.values
        self.plain, self.segments = executor._plain, executor._segments
        self.feeds = feeds
        self.store = Store(self.plan.arena, self.values, check=executor.check)
        self.pixels = [0] * len(self.plan.network.ops)
        """Per operator, pixels of its output that were computed."""
        self.asked = {i: [0] * self.values[i].height for i in self.plan.network.inputs}
        """Input → how often each of its rows was asked for."""
        self.present: set[int] = set()
        """Inputs of the network that are held whole by now."""
        self.places: dict[int, Place] = {}
        """Value → where it lies as a whole."""
        self.constants: dict[int, tuple[list[Array | None], list[Region | None]]] = {}
        """Operator → what it reads besides values, and the area of each."""

    def run(self) -> Execution:
        store, network = self.store, self.plan.network
        step = 0
        for number, layout in enumerate(self.plan.segments):
            step = layout.end_step
            self._begin(layout)
            if layout.streamed:
                self._stream(number, layout)
            elif layout.segment.in_place:
                self._in_place(number, layout)
            else:
                self._whole(layout)
        store.at, store.step = "after the last operator", step
        outputs = tuple(self._output(i) for i in network.outputs)
        macs = 0
        for op, count in zip(network.ops, self.pixels, strict=True):
            if op.macs:
                value = self.values[op.output]
                macs += op.macs * count // (value.width * value.height)
        passes = max((count for counts in self.asked.values() for count in counts), default=1)
        return Execution(outputs, store.high, macs, macs - self.plan.macs, passes, step, store.gathered)

    def _output(self, index: int) -> Array:
        tensor = self.model.main.tensors[index]
        if index not in self.values:
            found = self.plain.tensors[index]
            assert found is not None  # a constant, or the model would have been refused
            return found
        return self.store.read_all(self._place(index), tensor.shape).copy()

    # -- places ---------------------------------------------------------------------------------------------------

    def _place(self, index: int) -> Place:
        """Give where a value lies as a whole."""
        found = self.places.get(index)
        if found is None:
            value = self.values[index]
            dtype = dtype_of(self.model, self.model.main.tensors[index])
            offset = self.plan.arena.value_offset(index)
            found = Place(value, value_name(index), offset, value.height, (0, value.width), dtype)
            self.places[index] = found
        return found

    def _lines(self, number: int, layout: SegmentLayout, stripe: int) -> dict[int, Place]:
        """Give where the line buffers of a stripe lie."""
        found = {}
        for line in layout.lines:
            dtype = dtype_of(self.model, self.model.main.tensors[line.value])
            offset = self.plan.arena.line_offset(number, stripe, line.value)
            name = line_name(number, stripe, line.value)
            found[line.value] = Place(self.values[line.value], name, offset, line.rows, line.columns[stripe], dtype)
        return found

    # -- inputs ---------------------------------------------------------------------------------------------------

    def _begin(self, layout: SegmentLayout) -> None:
        """Put the inputs of the network that are whole from here on into the array."""
        self.store.at = "before the first operator"
        if layout.first_step == 0:
            self.store.advance(0)
            for i in self.segments.whole:
                self._fill(i)
        lines = {line.value for line in layout.lines}
        for op in self.plan.network.ops[layout.segment.begin : layout.segment.end]:
            for i in op.inputs:
                if self.values[i].producer == INPUT and i not in lines and i not in self.present:
                    self.store.advance(layout.first_step)
                    self._fill(i)

    def _fill(self, index: int) -> None:
        self.present.add(index)
        place = self._place(index)
        for row in range(place.value.height):
            self._feed(place, row)

    def _feed(self, place: Place, row: int) -> None:
        """Take a row of an input from outside, those of its columns that are kept."""
        value, (left, right) = place.value, place.columns
        if left >= right:
            return
        given = self.feeds[value.index](row, left, right)
        if given.shape != (right - left, value.channels) or given.dtype != place.dtype:
            raise UsageError(
                "a row of an input has another shape or type",
                where=f"{self.model.source}, input {value.name}, row {row}, columns [{left}, {right})",
                received=f"{given.shape} of {given.dtype} for {(right - left, value.channels)} of {place.dtype}",
                todo="give an array (columns, channels) of the input's type",
            )
        self.asked[value.index][row] += 1
        room = self.store.write(place, row, place.columns)
        if value.planar:
            room[0, :, 0] = given.T
        else:
            room[0, 0] = given

    # -- segments -------------------------------------------------------------------------------------------------

    def _stream(self, number: int, layout: SegmentLayout) -> None:
        """Let rows flow through a segment, stripe by stripe."""
        segment, store = layout.segment, self.store
        step = layout.first_step
        for stripe in range(segment.stripes):
            places = self._lines(number, layout, stripe)
            flow = Flow(self.segments, segment.begin, segment.end)
            for value, row in flow.steps():
                op = flow.maker.get(value)
                store.at = f"input {self.values[value].name}" if op is None else _name(op)
                store.advance(step)
                step += 1
                if op is None:
                    if value in places:
                        self._feed(places[value], row)
                elif op.sums:
                    columns = self.segments.own_columns(op.inputs[0], segment)[stripe]
                    sums = self._sums(number, op, first=stripe == row == 0)
                    self._add(op, sums, places, row, columns)
                else:
                    self._row(op, places, row, layout.columns[value][stripe])
        if layout.sums is not None:
            self._finish(number, self.segments.ops[segment.end - 1])

    def _row(self, op: StreamOp, places: dict[int, Place], row: int, columns: Span) -> None:
        """Compute a row of an operator's output."""
        left, right = columns
        if left >= right:
            return
        operator, kernel = self.model.main.operators[op.index], self.plain.kernels[op.index]
        parameters = self.plain.parameters[op.index]
        region = Region(row, row + 1, left, right)
        needed = kernel.needed(parameters, region)
        if op.index not in self.constants:
            self.constants[op.index] = self._constants(operator)
        constants, areas = self.constants[op.index]
        given, held = list(constants), list(areas)
        for position, i in enumerate(operator.inputs):
            if i not in self.values:
                continue
            part = needed[position] if position < len(needed) else None
            if part is None:
                given[position] = self.store.read_all(self._place(i), self.model.main.tensors[i].shape)
            else:
                given[position], held[position] = self._read(places.get(i) or self._place(i), part), part
        place = places.get(op.output) or self._place(op.output)
        kernel.run_region(parameters, given, held, [self.store.write(place, row, columns)], region)
        self.pixels[op.index] += right - left

    def _constants(self, operator: Operator) -> tuple[list[Array | None], list[Region | None]]:
        tensors, known = self.model.main.tensors, self.plain.tensors
        fixed = [i if i >= 0 and i not in self.values else None for i in operator.inputs]
        return (
            [None if i is None else known[i] for i in fixed],
            [None if i is None else area_of(tensors[i]) for i in fixed],
        )

    def _read(self, place: Place, part: Region) -> Array:
        """Read a region of an input: of its second and third dimension."""
        if place.value.planar:
            return self.store.read(place, (part.left, part.right), (0, place.value.width))
        return self.store.read(place, (part.top, part.bottom), (part.left, part.right))

    def _add(self, op: StreamOp, sums: Array, places: dict[int, Place], row: int, columns: Span) -> None:
        """Add a row of an image to its sums."""
        how = self.plain.kernels[op.index].sums
        assert how is not None  # the planner adds up row by row only where the kernel does
        x = op.inputs[0]
        if columns[0] < columns[1]:
            how.add(sums, self.store.read(places.get(x) or self._place(x), (row, row + 1), columns))

    def _sums(self, number: int, op: StreamOp, *, first: bool) -> Array:
        size = self.values[op.output].channels * SUM_BYTES
        sums = self.store.scratch(sums_name(number), size, first=first).view(np.int32)[None]
        if first:
            sums[...] = 0
        return sums

    def _finish(self, number: int, op: StreamOp) -> None:
        self.store.at = _name(op)
        how = self.plain.kernels[op.index].sums
        assert how is not None  # as in _add
        made = self.store.write_all(self._place(op.output), self.model.main.tensors[op.output].shape)
        how.finish(self.plain.parameters[op.index], self._sums(number, op, first=False), [made])

    def _whole(self, layout: SegmentLayout) -> None:
        """Run one operator plainly."""
        op, main = self._alone(layout), self.model.main
        operator = main.operators[op.index]
        given = [
            None if i < 0
            else self.store.read_all(self._place(i), main.tensors[i].shape) if i in self.values
            else self.plain.tensors[i]
            for i in operator.inputs
        ]  # fmt: skip
        made = [self.store.write_all(self._place(i), main.tensors[i].shape) for i in operator.outputs]
        self.plain.kernels[op.index].run(self.plain.parameters[op.index], given, made)

    def _in_place(self, number: int, layout: SegmentLayout) -> None:
        """Run a depthwise convolution that overwrites its input channel by channel, or a reshape."""
        op, main = self._alone(layout), self.model.main
        source, target = self._place(op.inputs[0]), self._place(op.output)
        if op.kind != "DEPTHWISE_CONV_2D":
            self.store.read_all(source, main.tensors[op.inputs[0]].shape)
            self.store.write_all(target, main.tensors[op.output].shape)
            return
        operator = main.operators[op.index]
        kernel, parameters = self.plain.kernels[op.index], self.plain.parameters[op.index]
        _, weights, *bias = (self.plain.tensors[i] if i >= 0 else None for i in operator.inputs)
        assert weights is not None  # else it reads two values, and is not planned in place
        size = self.segments.scratch(op)
        for channel in range(target.value.channels):
            one = slice(channel, channel + 1)
            scratch = self.store.scratch(scratch_name(number), size, first=True).view(target.dtype)
            made = scratch.reshape(1, target.value.height, target.value.width, 1)
            image = self.store.read_channel(source, channel)
            given = [image, weights[..., one], *(None if b is None else b[one] for b in bias)]
            kernel.run(one_channel(parameters, channel), given, [made])
            self.store.scratch(scratch_name(number), size, first=False)
            self.store.write_channel(target, channel)[...] = made

    def _alone(self, layout: SegmentLayout) -> StreamOp:
        """Begin the one step of a segment of one operator."""
        op = self.plan.network.ops[layout.segment.begin]
        self.store.at = _name(op)
        self.store.advance(layout.first_step)
        if op.output >= 0:
            value = self.values[op.output]
            self.pixels[op.index] += value.height * value.width
        return op


def _name(op: StreamOp) -> str:
    return f"operator {op.index} ({op.kind}, {op.name})"
