"""The planner of `memfit stream`, held against hand-worked cases and a slow simulator written from the definitions."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import stream_nets

from memfit.errors import UsageError
from memfit.formats.flatbuffer import Span
from memfit.formats.tflite import Operator, Subgraph, TfliteModel, TfliteTensor, parse_model
from memfit.graph.model import Graph
from memfit.kernels import KERNELS, Region
from memfit.kernels.window import Axis
from memfit.packing import violations
from memfit.stream import StreamNetwork, StreamOp, network_of, plan_stream, records
from memfit.stream.choose import Choices, within
from memfit.stream.layout import value_name
from memfit.stream.reach import bilinear, nearest, transposed, window
from memfit.stream.recompute import gates_of
from memfit.stream.reorder import reordered
from memfit.stream.segments import Flow, Segment, Segments


class Net:
    """A `.tflite` model of int8 images in the making; weights have shapes only."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.tensors: list[TfliteTensor] = []
        self.operators: list[Operator] = []
        self.input = self.tensor((1, height, width, channels))

    def tensor(self, shape: tuple[int, ...], *, constant: bool = False) -> int:
        index = len(self.tensors)
        data = Span(0, 0) if constant else None
        self.tensors.append(TfliteTensor(index, f"t{index}", shape, (), "INT8", 0, data, None, False, True, False, 0))
        return index

    def add(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...], **options: int) -> int:
        output = self.tensor(shape)
        index = len(self.operators)
        self.operators.append(
            Operator(index, 0, kind, False, 1, inputs, (output,), (), (), "Options", dict(options), None)
        )
        return output

    def conv(self, x: int, channels: int, kernel: int = 1, stride: int = 1, kind: str = "CONV_2D") -> int:
        _, height, width, before = self.tensors[x].shape
        deep = kind == "DEPTHWISE_CONV_2D"
        channels = before if deep else channels
        weight = self.tensor((1, kernel, kernel, before) if deep else (channels, kernel, kernel, before), constant=True)
        shape = (1, -(-height // stride), -(-width // stride), channels)
        return self.add(kind, (x, weight), shape, padding=0, stride_h=stride, stride_w=stride)

    def depthwise(self, x: int, kernel: int = 3, stride: int = 1) -> int:
        return self.conv(x, 0, kernel, stride, "DEPTHWISE_CONV_2D")

    def sum(self, a: int, b: int) -> int:
        return self.add("ADD", (a, b), self.tensors[a].shape)

    def mean(self, x: int) -> int:
        return self.add("MEAN", (x, self.tensor((2,), constant=True)), (1, 1, 1, self.tensors[x].shape[3]))

    def network(self, *outputs: int) -> StreamNetwork:
        main = Subgraph(0, "main", tuple(self.tensors), tuple(self.operators), (self.input,), outputs)
        return records(TfliteModel("net.tflite", 3, "", (), (main,), (), (), (), ()))


def block(net: Net, x: int, channels: int, stride: int = 1, expand: int = 4) -> int:
    """An inverted residual."""
    before = net.tensors[x].shape[3]
    y = net.conv(net.depthwise(net.conv(x, before * expand), 3, stride), channels)
    return net.sum(x, y) if stride == 1 and channels == before else y


def draw(seed: int) -> StreamNetwork:
    """A random small network with residuals."""
    choose_from = random.Random(seed)
    net = Net(choose_from.randint(5, 12), choose_from.randint(5, 12), choose_from.randint(1, 3))
    x = net.input
    for _ in range(choose_from.randint(2, 4)):
        way = choose_from.randrange(5)
        if way == 0:
            x = net.conv(x, choose_from.randint(1, 4), choose_from.choice((1, 3, 5)), choose_from.choice((1, 2)))
        elif way == 1:
            x = net.depthwise(x, 3, choose_from.choice((1, 2)))
        elif way == 2:
            x = block(net, x, net.tensors[x].shape[3], expand=2)
        elif way == 3:
            x = net.add("RELU", (x,), net.tensors[x].shape)
        else:
            y = net.conv(x, 2, 3)
            x = net.add("CONCATENATION", (x, y), (*net.tensors[x].shape[:3], net.tensors[x].shape[3] + 2), axis=3)
    if choose_from.random() < 0.3:
        x = net.mean(x)
    return net.network(x)


def excite(net: Net, x: int) -> int:
    """A squeeze-excite: an image times what a small network makes of its mean."""
    gate = net.conv(net.conv(net.mean(x), 2), net.tensors[x].shape[3])
    return net.add("MUL", (x, net.add("LOGISTIC", (gate,), net.tensors[gate].shape)), net.tensors[x].shape)


def excited(seed: int, blocks: int = 2) -> StreamNetwork:
    """A random network with squeeze-excites, as in MobileNetV3."""
    choose_from = random.Random(seed)
    net = Net(choose_from.randint(6, 14), choose_from.randint(6, 14), choose_from.randint(1, 3))
    x = net.conv(net.input, choose_from.randint(2, 4), 3)
    for _ in range(blocks):
        before, stride = x, choose_from.choice((1, 1, 2))
        wide = net.conv(x, choose_from.randint(4, 12))
        x = net.conv(excite(net, net.depthwise(wide, 3, stride)), choose_from.randint(2, 6))
        if net.tensors[x].shape == net.tensors[before].shape:
            x = net.sum(before, x)
    return net.network(x)


# -- by hand -------------------------------------------------------------------------------------------------------


def test_line_buffers_are_as_high_as_the_kernel() -> None:
    net = Net(8, 8, 2)
    x = net.conv(net.depthwise(net.conv(net.input, 4)), 3)
    segments = Segments(net.network(x))
    assert segments.heights(3) == {0: 1, 2: 3, 4: 1}


def test_a_residual_keeps_two_rows() -> None:
    """The sum of row y waits for row y + 1 of what the depthwise convolution reads: rows y and y + 1 are kept."""
    net = Net(8, 8, 2)
    x = block(net, net.conv(net.input, 2), 2)
    heights = Segments(net.network(x)).heights(5)
    expanded, source = net.operators[1].outputs[0], net.operators[0].outputs[0]
    assert heights[expanded] == 3
    assert heights[source] == 2


def test_a_stripe_computes_its_halo_twice() -> None:
    """8 columns in two stripes; a 3-wide convolution above a 1-wide one: each stripe needs one more column below."""
    net = Net(8, 8, 2)
    network = net.network(net.depthwise(net.conv(net.input, 4)))
    segments = Segments(network)
    found = {(s.begin, s.stripes): s for s in segments.ending(2, network.macs, 1 << 40)}
    assert found[0, 1].extra_macs == 0
    assert found[0, 2].extra_macs == 2 * 8 * (2 * 4)  # two columns of eight rows, 2·4 each
    # line buffers of the wider stripe: input 1·5·2, expanded 3·5·4; the output is whole: 8·8·4
    assert found[0, 2].peak_bytes == 10 + 60 + 256


def test_rows_of_the_output_take_the_place_of_rows_of_the_input() -> None:
    net = Net(8, 4, 3)
    network = net.network(net.conv(net.input, 3))
    plan = plan_stream(network, resident=True)
    assert plan.peak_bytes == (8 + 1) * 4 * 3  # one row more than the tensor
    assert plan.arena.packing.optimal


def test_a_fed_input_is_never_whole() -> None:
    net = Net(64, 64, 3)
    network = net.network(net.conv(net.input, 8, 3, 2))
    plan = plan_stream(network, max_extra_macs=0)
    assert plan.peak_bytes == 3 * 64 * 3 + 32 * 32 * 8
    assert plan.passes == 1
    assert plan_stream(network, resident=True, max_extra_macs=0).peak_bytes >= 64 * 64 * 3


def test_a_mean_is_added_up_as_rows_come() -> None:
    net = Net(16, 16, 4)
    network = net.network(net.mean(net.conv(net.input, 8, 3)))
    plan = plan_stream(network, max_extra_macs=0)
    # three rows of the input, one of the convolution, sums of four bytes, the output
    assert plan.peak_bytes == 3 * 16 * 4 + 16 * 8 + 8 * 4 + 8


def test_what_cannot_stream_is_named() -> None:
    net = Net(4, 4, 2)
    turned = net.add("SOFTMAX", (net.input,), (1, 4, 4, 2))
    network = net.network(turned)
    assert network.ops[0].reason == "memfit has no rule for which rows it takes"
    assert plan_stream(network).peak_bytes == 2 * 32


def test_an_impossible_peak_gives_the_lowest() -> None:
    network = draw(3)
    plan = plan_stream(network, max_peak_bytes=1, max_extra_macs=1.0)
    assert not plan.met
    assert plan.peak_bytes == plan_stream(network, max_extra_macs=1.0).peak_bytes


def test_a_batch_is_refused() -> None:
    net = Net(4, 4, 1)
    net.tensors[0] = net.tensors[0]._replace(shape=(2, 4, 4, 1))
    with pytest.raises(UsageError, match="batch 2"):
        net.network(net.input)


def test_a_network_of_nothing() -> None:
    assert plan_stream(network_of(Graph((), (), (), (), (), ()))).peak_bytes == 0


# -- against the kernels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("centers", [False, True])
def test_resize_takes_what_the_kernel_takes(kind: str, corners: bool, centers: bool) -> None:
    if corners and centers:
        return
    net = Net(5, 7, 2)
    size = net.tensor((2,), constant=True)
    net.add(kind, (net.input, size), (1, 11, 13, 2), align_corners=corners, half_pixel_centers=centers)
    network = net.network(2)
    kernel = KERNELS[kind]
    parameters = kernel.prepare(network.model, network.model.main.operators[0])
    op = network.ops[0]
    for y in range(11):
        for x in range(13):
            needed = kernel.needed(parameters, Region(y, y + 1, x, x + 1))[0]
            assert needed == Region(*op.rows[0].of(y, y + 1), *op.columns[0].of(x, x + 1))
    assert nearest(5, 11).length == bilinear(5, 11).length == 5


def test_a_transposed_convolution_takes_what_reaches_it() -> None:
    for size, stride, before, length in ((2, 2, 0, 5), (3, 2, 1, 5), (4, 3, 1, 4), (3, 1, 1, 6)):
        outputs = (length - 1) * stride - 2 * before + size
        found = transposed(Axis(size, stride, 1, before, length), outputs)
        for place in range(outputs):
            reaching = [i for i in range(length) for tap in range(size) if i * stride - before + tap == place]
            assert list(range(*found.spans[place])) == sorted(set(reaching))


# -- against a slow simulator ------------------------------------------------------------------------------------------


def held_most(network: StreamNetwork, segment: Segment) -> tuple[dict[int, int], int]:
    """Follow a segment from the definitions: sets of rows, none of the planner's arithmetic.

    Returns the most rows that each value inside holds at once, and the multiply-accumulates done, columns included.
    """
    ops = network.ops[segment.begin : segment.end]
    maker = {op.output: op for op in ops}
    last = ops[-1]
    kept = {i for i in maker if network.values[i].leaves or any(r >= segment.end for r in network.values[i].readers)}

    def taken(op: StreamOp, which: int, row: int) -> set[int]:
        return set(range(*op.rows[which].spans[row]))

    done: dict[int, list[int]] = {op.output: [] for op in ops}
    held: dict[int, set[int]] = {}
    most: dict[int, int] = {}

    def still_needed(value: int) -> set[int]:
        need = set()
        for op in ops:
            if value in op.inputs:
                which = op.inputs.index(value)
                for row in range(network.values[op.output].height):
                    if row not in done[op.output]:
                        need |= taken(op, which, row)
        return need

    def make(value: int, row: int) -> None:
        if row in held.get(value, set()) or (value in done and row in done[value]):
            return
        op = maker.get(value)
        if op is not None:
            for before in range(row):
                make(value, before)
            for which, i in enumerate(op.inputs):
                rows = taken(op, which, row)
                for need in range(max(rows) + 1 if rows else 0):
                    if need in still_needed(i):
                        make(i, need)
        held.setdefault(value, set()).add(row)
        most[value] = max(most.get(value, 0), max(held[value]) - min(held[value]) + 1)
        if op is not None:
            done[value].append(row)
            for i in op.inputs:
                held[i] &= still_needed(i)

    for row in range(network.values[last.output].height):
        make(last.output, row)
    work = 0
    if not last.sums:
        width = network.values[last.output].width
        inner = width - 2 * segment.edge
        cuts = [segment.edge + -(-inner * k // segment.stripes) for k in range(segment.stripes + 1)]
        cuts[0], cuts[-1] = 0, width
        for start, end in pairwise(cuts):
            columns: dict[int, set[int]] = {last.output: set(range(start, end))}
            for op in reversed(ops):
                mine = columns.get(op.output, set())
                mine = set(range(min(mine), max(mine) + 1)) if mine else mine
                value = network.values[op.output]
                work += op.macs * len(mine) * value.height // (value.width * value.height)
                for which, i in enumerate(op.inputs):
                    for column in mine:
                        columns.setdefault(i, set()).update(range(*op.columns[which].spans[column]))
    return {i: count for i, count in most.items() if i not in kept}, work


@pytest.mark.parametrize("seed", range(25))
def test_a_slow_simulator_agrees(seed: int) -> None:
    network = draw(seed)
    segments = Segments(network)
    for end in range(1, len(network.ops) + 1):
        if network.ops[end - 1].sums:
            continue
        heights = segments.heights(end)
        rows = segments.made_rows(end, set(network.values))
        for segment in segments.ending(end, network.macs * 4, 1 << 40, 3, every=True):
            outputs = segments.outputs(segment.begin, end)
            inside = network.ops[segment.begin : end]
            if outputs != [network.ops[end - 1].output]:
                continue
            if any(rows[op.output] != network.values[op.output].height for op in inside):
                continue
            most, work = held_most(network, segment)
            streamed = len(inside) > 1 or segment.stripes > 1
            if streamed:
                for i, count in most.items():
                    if network.values[i].producer >= segment.begin or segments.fed(i, segment.begin, end):
                        assert heights[i] == count
            if not segment.in_place:
                assert segment.extra_macs == work - sum(op.macs for op in inside)


@pytest.mark.parametrize("seed", range(25))
def test_packings_are_valid_and_reach_the_plan(seed: int) -> None:
    network = draw(seed)
    for resident in (False, True):
        front = Choices(Segments(network, resident=resident)).front()
        assert [c.extra_macs for c in front] == sorted(c.extra_macs for c in front)
        for choice in front:
            executed = reordered(network, choice.order)
            arena = stream_nets.lay_out(Segments(executed, resident=resident), choice.segments)
            assert not violations(arena.problem, arena.packing.offsets, height=arena.packing.height)
            assert arena.problem.lower_bound == choice.peak_bytes


@pytest.mark.parametrize("seed", [2, 6, 24, 69, *range(100, 110)])
def test_what_lives_is_what_the_plan_counts(seed: int) -> None:
    """Passes, gates that wait for their image, and inputs that nobody reads among them."""
    network = records(parse_model(stream_nets.drawn(seed)))
    for resident in (False, True):
        for choice in Choices(Segments(network, resident=resident)).front():
            executed = reordered(network, choice.order)
            arena = stream_nets.lay_out(Segments(executed, resident=resident), choice.segments)
            assert arena.problem.lower_bound == choice.peak_bytes
            assert max(segment.peak_bytes for segment in choice.segments) == choice.peak_bytes


def test_an_input_that_nobody_reads_is_never_taken() -> None:
    network = records(parse_model(stream_nets.drawn(2)))
    unread = [i for i in network.inputs if not network.values[i].readers]
    assert unread
    fed, resident = (plan_stream(network, resident=way).arena for way in (False, True))
    assert not {value_name(i) for i in unread} & {buffer.name for buffer in fed.problem.buffers}
    there = {buffer.name: buffer.spans for buffer in resident.problem.buffers}
    for i in unread:
        assert [(span.lower, span.upper) for span in there[value_name(i)]] == [(0, resident.layouts[0].end_step)]


@pytest.mark.parametrize("seed", range(25))
def test_ends_together_are_as_each_alone(seed: int) -> None:
    for network in (draw(seed), excited(seed)):
        segments, ends = Segments(network), range(1, len(network.ops) + 1)
        alone = [segment for end in ends for segment in segments.ending(end, network.macs, 1 << 40)]
        together = list(segments.among(ends, network.macs, 1 << 40))
        assert len(together) == len(alone)
        assert set(together) == set(alone)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1])
def test_rows_in_the_room_of_others_are_packed_to_the_bound(share: float) -> None:
    """One such output after the other, each below the one before; the segment that needs most is not the first."""
    plan = plan_stream(records(parse_model(stream_nets.mcunet())), max_extra_macs=share)
    assert sum(layout.segment.overlaps for layout in plan.segments) > 2
    assert (
        plan.peak_bytes
        == plan.arena.problem.lower_bound
        == min(c.peak_bytes for c in plan.front if c.extra_macs <= share * plan.macs)
    )


@pytest.mark.parametrize("seed", range(25))
def test_no_other_way_to_cut_is_better(seed: int) -> None:
    """All ways to cut, one after the other."""
    network = draw(seed)
    segments = Segments(network)
    every: dict[int, list[Segment]] = {
        end: list(segments.ending(end, network.macs // 2, 1 << 40, 2, every=True))
        for end in range(1, segments.count + 1)
    }
    ways: set[tuple[int, int]] = set()

    def walk(end: int, peak: int, extra: int) -> None:
        if end == 0:
            if extra <= network.macs // 2:
                ways.add((extra, peak))
            return
        for segment in every[end]:
            walk(segment.begin, max(peak, segment.peak_bytes), extra + segment.extra_macs)

    if segments.count > 8:
        return
    walk(segments.count, 0, 0)
    front = Choices(segments).front()
    assert all((choice.extra_macs, choice.peak_bytes) >= min(ways) for choice in front)
    for extra, peak in ways:
        best = within(front, extra_macs=extra)
        assert best is not None
        assert best.peak_bytes <= peak


def test_every_row_is_made_once_and_in_order() -> None:
    net = Net(9, 9, 2)
    network = net.network(block(net, block(net, net.input, 2), 4, 2))
    segments = Segments(network)
    flow = Flow(segments, 0, segments.count)
    seen: dict[int, list[int]] = {}
    for value, row in flow.steps():
        seen.setdefault(value, []).append(row)
    assert all(rows == list(range(len(rows))) for rows in seen.values())
    assert window(Axis(3, 1, 1, 1, 9), 9).ends[-1] == 9


# -- squeeze-excites in several passes ---------------------------------------------------------------------------------


def test_a_squeeze_excite_is_found() -> None:
    network = excited(0, 1)
    (gate,) = gates_of(network)
    assert network.ops[gate.mean].sums
    assert network.ops[gate.product].kind == "MUL"
    assert network.values[gate.image].readers == (gate.mean, gate.product)
    assert [network.values[i].channels for i in gate.values] == [network.values[gate.image].channels]


def test_an_image_is_computed_again_rather_than_kept() -> None:
    """Rows of 16 by 32 bytes: whole, the image has 8192; computed twice, three rows of what it is made of do."""
    net = Net(16, 16, 2)
    image = net.depthwise(net.conv(net.input, 32))
    network = net.network(net.conv(excite(net, image), 2))
    alone = plan_stream(network, max_extra_macs=0)
    first = network.ops[0].macs + network.ops[1].macs
    twice = plan_stream(network, max_extra_macs=first / network.macs, passes=2)
    assert alone.peak_bytes >= 16 * 16 * 32
    # the input's row 32, three rows of 512, a row of the image and one of the product, the output whole, the gate
    assert twice.peak_bytes <= 32 + 3 * 512 + 2 * 512 + 16 * 16 * 2 + 32
    assert twice.passes == 2
    assert twice.extra_macs == first
    assert twice.network.macs - network.macs == first
    assert [op.origin for op in twice.network.ops].count(0) == 2
    assert plan_stream(network, max_extra_macs=1, passes=1).passes == 1


def test_what_is_computed_again_is_an_ordinary_network() -> None:
    network = excited(3)
    plan = plan_stream(network, max_extra_macs=0.5)
    again = records(plan.network.model)
    assert [(op.kind, op.inputs, op.output, op.rows, op.columns) for op in again.ops] == [
        (op.kind, op.inputs, op.output, op.rows, op.columns) for op in plan.network.ops
    ]
    assert {i: (v.producer, v.readers, v.leaves) for i, v in again.values.items()} == {
        i: (v.producer, v.readers, v.leaves) for i, v in plan.network.values.items()
    }
    assert again.outputs == network.outputs


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("resident", [False, True])
def test_passes_are_counted_as_they_are_laid_out(seed: int, resident: bool) -> None:
    network = excited(seed)
    front = Choices(Segments(network, resident=resident)).front()
    assert [c.peak_bytes for c in front] == sorted((c.peak_bytes for c in front), reverse=True)
    for choice in front:
        executed = reordered(network, choice.order)
        arena = stream_nets.lay_out(Segments(executed, resident=resident), choice.segments)
        assert arena.problem.lower_bound == choice.peak_bytes
        work = 0
        for layout in arena.layouts:
            for op in executed.ops[layout.segment.begin : layout.segment.end]:
                value = executed.values[op.output]
                pixels = sum(b - a for a, b in layout.columns[op.output]) * layout.rows[op.output]
                work += op.macs * pixels // (value.height * value.width)
        assert work - network.macs == choice.extra_macs


def test_passes_are_limited_where_that_is_asked_for() -> None:
    network = excited(5)
    for passes in (1, 2, 3):
        plan = plan_stream(network, max_extra_macs=0.5, passes=passes)
        assert plan.passes <= passes
