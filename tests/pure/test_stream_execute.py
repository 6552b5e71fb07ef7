"""The streaming executor: any plan, in one array of the planned size, gives what a plain run gives, to the bit."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stream_nets
from stream_nets import StreamNet
from tflite_models import SAME, VALID, Net

from memfit.cli.main import main
from memfit.errors import InternalError, UnsupportedOp, UsageError
from memfit.formats.tflite import TfliteModel, parse_model, read_model
from memfit.kernels import Interpreter
from memfit.kernels.kernel import Array
from memfit.packing import Buffer, violations
from memfit.stream import Execution, Executor, StreamNetwork, StreamPlan, execute, plan_stream, records, skips, verify
from memfit.stream.layout import line_name, sums_name, value_name
from memfit.stream.padding import fold_padding
from memfit.stream.reorder import reordered
from memfit.stream.segments import Segment, Segments

SHARED = Path(__file__).parents[3] / "shared" / "models"

MODELS = (
    "mlperf-tiny/vww_96_int8", "mlperf-tiny/pretrainedResnet_quant", "mlperf-tiny/pretrainedResnet",
    "mlperf-tiny/kws_ref_model", "mlperf-tiny/ad01_int8", "tflite-micro/person_detect",
    "tflite-micro/keyword_scrambled_8bit", "tflite-micro/mobilenet_v2_quantized_1x3x224x224",
)  # fmt: skip

SMALL: dict[str, Callable[[], bytes]] = {
    "resnet18": lambda: stream_nets.resnet18(40, 4, 10),
    "efficientnet_b0": lambda: stream_nets.efficientnet_b0(24, 0.07, 10),
    "unet": lambda: stream_nets.unet(24, 3, 3),
    "unet, resized": lambda: stream_nets.unet(24, 3, 3, resize=True),
    "mcunet": lambda: stream_nets.mcunet(48, 0.25, 10),
}


@cache
def built(name: str) -> bytes:
    """A known architecture, small, as a file."""
    return SMALL[name]()


@cache
def small(name: str) -> TfliteModel:
    return parse_model(built(name))


@cache
def drawn(seed: int) -> TfliteModel:
    """A network drawn at random."""
    return parse_model(stream_nets.drawn(seed))


def values(model: TfliteModel, seed: int = 0) -> list[Array]:
    draw = np.random.default_rng(seed)
    made = []
    for i in model.main.inputs:
        tensor = model.main.tensors[i]
        if tensor.type == "FLOAT32":
            made.append(draw.normal(size=tensor.shape).astype(np.float32))
        else:
            info = np.iinfo({"INT8": "i1", "INT16": "i2"}[tensor.type])
            made.append(draw.integers(info.min, info.max, tensor.shape, info.dtype, endpoint=True))
    return made


def repeated(network: StreamNetwork, pick: random.Random) -> StreamNetwork:
    """Do some operators of a network again, somewhere behind, where somebody reads what they make then."""
    order = list(range(len(network.ops)))
    begin, end, again = sorted(pick.choices(range(len(order) + 1), k=3))
    found = reordered(network, [*order[:again], *order[begin:end], *order[again:]])
    return found if all(v.readers or v.leaves or v.producer < 0 for v in found.values.values()) else network


def plan_at_random(network: StreamNetwork, pick: random.Random) -> StreamPlan:
    """Cut a network at random, each part in any way that the planner knows, whatever it costs."""
    given = fold_padding(network) if pick.random() < 0.7 else network
    segments = Segments(repeated(given, pick), resident=pick.random() < 0.4)
    end, chosen = segments.count, []
    while end:
        every = list(segments.ending(end, 1 << 40, 1 << 40, every=True))
        chosen.append(every[0] if every[0].in_place and pick.random() < 0.6 else pick.choice(every))
        end = chosen[-1].begin
    return plan_of(segments, chosen[::-1], network.macs)


def plan_of(segments: Segments, chosen: list[Segment], macs: int) -> StreamPlan:
    arena = stream_nets.lay_out(segments, chosen)
    extra = sum(segment.extra_macs for segment in chosen) + segments.network.macs - macs
    return StreamPlan(segments.network, segments.resident, arena, extra, macs, (), True)


def together(network: StreamNetwork, stripes: int = 1) -> StreamPlan:
    """All operators in one segment."""
    segments = Segments(network)
    every = segments.ending(segments.count, 1 << 40, 1 << 40, every=True)
    chosen = next(s for s in every if s.begin == 0 and s.stripes == stripes and not s.overlaps)
    return plan_of(segments, [chosen], network.macs)


def best(network: StreamNetwork, share: float = 0.1, *, resident: bool = False) -> StreamPlan:
    """Plan a network."""
    return plan_stream(network, max_extra_macs=share, resident=resident)


def agrees(plan: StreamPlan, given: list[Array], expected: tuple[Array, ...]) -> Execution:
    """Run a plan and hold everything that it promises."""
    found = execute(plan, given)
    for ours, theirs in zip(found.outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    assert found.peak_bytes == plan.peak_bytes
    assert found.extra_macs == plan.extra_macs
    assert found.input_passes == plan.passes
    return found


# -- any plan gives the same ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_any_plan_of_any_network_gives_the_same(seed: int) -> None:
    model = drawn(seed)
    network, given = records(model), values(model, seed)
    expected = Interpreter(model).run(given)
    pick = random.Random(seed)
    for _ in range(3):
        agrees(plan_at_random(network, pick), given, expected)
    agrees(best(network, 1.0), given, expected)


def test_networks_say_much() -> None:
    """Outputs that are nearly constant would agree whatever a plan did."""
    distinct = []
    for seed in range(50):
        model = drawn(seed)
        output = Interpreter(model).run(values(model, seed))[-1]
        distinct.append(len(np.unique(output)) / min(output.size, 100))
    assert np.median(distinct) > 0.6
    for name in SMALL:
        model = small(name)
        outputs = [Interpreter(model).run(values(model, seed))[0] for seed in range(3)]
        assert len(np.unique(outputs[0])) > 0.6 * min(outputs[0].size, 100), name
        assert len({output.tobytes() for output in outputs}) == 3, name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_known_architectures(name: str, share: float) -> None:
    model = small(name)
    given = values(model)
    expected = Interpreter(model).run(given)
    for resident in (False, True):
        agrees(best(records(model), share, resident=resident), given, expected)


BORDERED: dict[str, tuple[bool, Callable[[StreamNet, int], tuple[int, ...]]]] = {
    "convolution": (True, lambda net, x: (net.conv(net.border(x, (2, 0, 1, 3)), 3, 3, 2, padding=VALID),)),
    "depthwise convolution": (True, lambda net, x: (net.depthwise(net.border(x, (1, 1, 1, 1)), padding=VALID),)),
    "padding on both": (True, lambda net, x: (net.conv(net.border(x, (3, 1, 0, 2)), 3, 3, padding=SAME),)),
    "by its zero point": (True, lambda net, x: (net.conv(net.border(x, (1, 1, 1, 1), net.tensors[x].zeros[0]), 2, 3),)),
    "two readers": (True, lambda net, x: (net.join(net.conv(b := net.border(x, (1, 1, 1, 1)), 2, 3), net.conv(b, 2)),)),
    "max pooling of lowest": (True, lambda net, x: (net.pool(net.border(x, (1, 1, 1, 1), -128), "MAX", 3, 2, VALID),)),
    "max pooling of others": (False, lambda net, x: (net.pool(net.border(x, (1, 1, 1, 1), 3), "MAX", 3, 2, VALID),)),
    "average pooling": (False, lambda net, x: (net.pool(net.border(x, (1, 1, 1, 1)), "AVERAGE", 3, 2, VALID),)),
    "another number": (False, lambda net, x: (net.conv(net.border(x, (1, 1, 1, 1), 77), 2, 3, padding=VALID),)),
    "an output": (False, lambda net, x: (net.conv(b := net.border(x, (1, 1, 1, 1)), 2, 3, padding=VALID), b)),
    "a sum too": (False, lambda net, x: (net.sum(net.conv(b := net.border(x, (1, 1, 1, 1)), 4, 3), b),)),
}  # fmt: skip


@pytest.mark.parametrize("name", BORDERED)
def test_a_window_sees_to_the_padding_before_it(name: str) -> None:
    folds, build = BORDERED[name]
    net = StreamNet()
    model = parse_model(net.finish(*build(net, net.conv(net.image(9, 10, 3), 4, 3))))
    network, given = records(model), values(model)
    folded = fold_padding(network)
    assert [op.kind for op in network.ops if op.kind.startswith("PAD")]
    assert (folded is not network) == folds
    assert folds == (not any(op.kind.startswith("PAD") for op in folded.ops))
    assert folded.macs == network.macs
    expected = Interpreter(model).run(given)
    assert [o.tobytes() for o in Interpreter(folded.model).run(given)] == [o.tobytes() for o in expected]
    again = records(folded.model)  # what is found by going through the PAD is what the file would say without it
    assert [(op.rows, op.columns, op.inputs, op.macs) for op in again.ops] == [
        (op.rows, op.columns, op.inputs, op.macs) for op in folded.ops
    ]
    assert again.values == folded.values
    for share in (0, 1.0):
        plan = best(network, share)
        agrees(plan, given, expected)
        assert plan.network.macs - plan.extra_macs <= network.macs
    agrees(together(folded, 2), given, expected)


def test_a_padded_image_is_never_kept() -> None:
    """Three rows of an image of 8 by 8, where the padded one would take three of 10 and a row of the image."""
    net = StreamNet()
    model = parse_model(net.finish(net.conv(net.border(net.image(8, 8, 4), (1, 1, 1, 1)), 2, 3, padding=VALID)))
    network = records(model)
    assert best(network, 0).peak_bytes == 3 * 8 * 4 + 8 * 8 * 2
    assert together(network).peak_bytes == 3 * 10 * 4 + 8 * 4 + 8 * 8 * 2


def test_a_skip_connection_is_computed_again() -> None:
    """The largest image of a U-Net, half of what lives, waits for its end; made by a tenth of the work."""
    model = parse_model(stream_nets.unet(64, 8, 3))
    network, given = records(model), values(model)
    expected = Interpreter(model).run(given)
    kept, again, more = (best(network, share) for share in (0, 0.1, 0.25))
    assert kept.peak_bytes > 64 * 64 * 8 + 32 * 32 * 16
    assert again.peak_bytes < kept.peak_bytes - 0.9 * 64 * 64 * 8
    assert more.peak_bytes < 0.5 * kept.peak_bytes
    first = network.ops[0].macs + network.ops[1].macs
    assert [op.origin for op in again.network.ops if op.index >= 23] == [0, 1, *range(23, 27)]
    assert again.extra_macs == first
    for plan in (kept, again, more):
        agrees(plan, given, expected)
        assert sum(at.segment.extra_macs for at in plan.segments) == plan.extra_macs
    assert (kept.passes, again.passes) == (1, 2)
    (line,) = [line for line in again.segments[-1].lines if line.value in again.network.inputs]
    assert line.rows == 3  # for the convolution that reads it there; what read it before is done
    once = plan_stream(network, max_extra_macs=0.1, passes=1)  # of the second image, from the first
    assert (once.passes, once.extra_macs) == (1, network.ops[3].macs + network.ops[4].macs)
    agrees(once, given, expected)


def test_rows_that_wait_within_a_segment_are_computed_again() -> None:
    """A U-Net that is one segment, with a third of its first image in a line buffer."""
    model = parse_model(stream_nets.unet(64, 8, 2, resize=True))
    network, given = records(model), values(model)
    kept, again = (best(network, share) for share in (0, 0.2))
    image = network.ops[1].output
    assert [line.rows for line in kept.segments[0].lines if line.value == image] == [23]
    assert again.peak_bytes < 0.6 * kept.peak_bytes
    for plan in (kept, again):
        agrees(plan, given, Interpreter(model).run(given))


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_computed_again_is_counted(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size, here."""
    monkeypatch.setattr(skips, "SHARE", 1 << 40)
    monkeypatch.setattr(skips, "MOST", 1)
    model = parse_model(stream_nets.hourglass(seed))
    network, given = fold_padding(records(model)), values(model, seed)
    resident = seed % 3 == 0
    found = skips.Variants(network, 1.0, resident=resident)
    ways = [choice for choice in found.front if choice.variant]
    for choice in ways[:1] + ways[1:][-1:]:
        executed = reordered(found.segments(choice).network, choice.order)
        arena = stream_nets.lay_out(Segments(executed, resident=resident), choice.segments)
        assert arena.problem.lower_bound == choice.peak_bytes
        plan = StreamPlan(executed, resident, arena, choice.extra_macs, network.macs, (), True)
        agrees(plan, given, Interpreter(model).run(given))
        assert sum(at.segment.extra_macs for at in plan.segments) == plan.extra_macs


@pytest.mark.parametrize("kind", ["INT16", "FLOAT32"])
def test_wide_integers_and_floats(kind: str) -> None:
    net = Net(kind)
    x = net.input(1, 9, 8, 3)
    y = net.conv(net.pad(net.depthwise(net.conv(x, 6, 1), 3, 2)), 3)
    model = parse_model(net.build(net.pool(net.add(y, net.conv(y, 3)), "MAX", 3, 2)))
    given, pick = values(model), random.Random(1)
    for _ in range(5):
        agrees(plan_at_random(records(model), pick), given, Interpreter(model).run(given))


# -- real models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_real_models(name: str) -> None:
    path = SHARED / f"{name}.tflite"
    if not path.exists():
        pytest.skip("the real models are not beside this checkout")
    model = read_model(path)
    network, given = records(model), values(model)
    expected = Interpreter(model).run(given)
    for resident in (False, True):
        plan = best(network, resident=resident)
        agrees(plan, given, expected)
        assert plan.extra_share <= 0.1
        if "mobilenet" in name:
            assert plan.peak_bytes <= (200_000 if resident else 54_000)
            assert not [op for op in plan.network.ops if op.kind == "PAD"]


def test_the_real_runtime_gives_the_same(tmp_path: Path) -> None:
    if find_spec("tflite_micro") is None:
        pytest.skip("tflite-micro is not installed: pip install 'memfit[tflm]'")
    from memfit.plan.runtime import outputs

    for name in ("mcunet", "unet"):
        path = tmp_path / "net.tflite"
        path.write_bytes(built(name))
        model = read_model(path)
        batch = [values(model, seed) for seed in range(3)]
        plan = best(records(model))
        for given, theirs in zip(batch, outputs(path, batch), strict=True):
            agrees(plan, given, theirs)


# -- what a run says and takes ------------------------------------------------------------------------------------


def test_rows_come_from_a_function() -> None:
    net = StreamNet()
    model = parse_model(net.build(net.conv(net.depthwise(net.conv(net.image(10, 12, 2), 5), 3), 2)))
    network, given = records(model), values(model)
    plan = together(network, 2)
    asked: list[tuple[int, int, int]] = []

    def camera(row: int, left: int, right: int) -> Array:
        asked.append((row, left, right))
        return given[0][0, row, left:right]

    found = execute(plan, [camera])
    assert found.outputs[0].tobytes() == Interpreter(model).run(given)[0].tobytes()
    assert asked == [(row, 0, 7) for row in range(10)] + [(row, 5, 12) for row in range(10)]
    assert found.input_passes == 2
    with pytest.raises(UsageError, match="row 0, columns") as raised:
        execute(plan, [lambda row, *_: given[0][0, row]])
    assert "(12, 2) of int8 for (7, 2) of int8" in str(raised.value)


def test_inputs_are_checked() -> None:
    model = small("mcunet")
    plan = best(records(model))
    with pytest.raises(UsageError, match="another shape or type"):
        execute(plan, [np.zeros((1, 2, 2, 3), np.int8)])
    with pytest.raises(UsageError, match="2 arrays for 1 inputs"):
        execute(plan, values(model) * 2)


def test_a_depthwise_convolution_overwrites_its_input() -> None:
    """Channel by channel, with one channel of scratch; the reshape before it takes no room at all."""
    net = StreamNet()
    image = net.reshape(net.linear(net.input(1, 5), 7 * 6 * 4), 1, 7, 6, 4)
    model = parse_model(net.build(net.depthwise(image)))
    network, given = records(model), values(model)
    segments = Segments(network)
    chosen = [next(segments.ending(end, 1 << 40, 1 << 40, every=True)) for end in range(1, segments.count + 1)]
    assert [segment.in_place for segment in chosen] == [False, True, True]
    plan = plan_of(segments, chosen, network.macs)
    assert len({plan.arena.value_offset(op.output) for op in network.ops}) == 1
    assert plan.peak_bytes == 7 * 6 * 4 + 7 * 6
    agrees(plan, given, Interpreter(model).run(given))


def test_what_nobody_reads_is_computed_all_the_same() -> None:
    net = StreamNet()
    x = net.conv(net.image(8, 9, 2), 3, 3)
    net.conv(x, 4, 3)
    model = parse_model(net.finish(net.conv(x, 2, 3)))
    network, given = records(model), values(model)
    assert [op.reason for op in network.ops] == [None, "nobody reads its output", None]
    agrees(best(network), given, Interpreter(model).run(given))


def test_a_mean_along_other_axes_runs_plainly() -> None:
    """As high as it has channels, so that shapes alone do not tell which axes are gone."""
    net = StreamNet()
    x = net.conv(net.image(4, 6, 2), 6, 3)
    model = parse_model(net.finish(net.reduce("MEAN", x, (1, 3))))
    network, given = records(model), values(model)
    assert network.ops[1].reason == "it does not take the mean of a whole image"
    agrees(best(network), given, Interpreter(model).run(given))


@pytest.mark.parametrize("height", [5, 9])
def test_an_average_over_a_whole_image_is_added_up(height: int) -> None:
    """A row of the input, one of the convolution, four bytes per channel and the output; no image."""
    net = StreamNet()
    model = parse_model(net.finish(net.pool_all(net.conv(net.image(height, 7, 2), 6))))
    network, given = records(model), values(model)
    assert network.ops[1].sums
    plan = best(network, 0)
    assert plan.peak_bytes == 7 * 2 + 7 * 6 + 6 * 4 + 6
    for seed in range(5):
        given = values(model, seed)
        agrees(plan, given, Interpreter(model).run(given))


def test_an_average_of_less_than_the_image_is_not_added_up() -> None:
    net = StreamNet()
    x = net.conv(net.image(5, 7, 2), 6)
    model = parse_model(net.finish(net.pool(x, "AVERAGE", 5, 7, VALID), net.pool(x, "MAX", 7, 7, SAME)))
    network, given = records(model), values(model)
    assert [op.reason for op in network.ops[1:]] == ["its output is one pixel"] * 2
    agrees(best(network), given, Interpreter(model).run(given))
    net = Net("FLOAT32")
    network = records(parse_model(net.build(net.pool(net.input(1, 4, 4, 2), "AVERAGE", 4, 4))))
    assert network.ops[0].reason == "sums of floats depend on their order"


def test_states_live_on() -> None:
    net = Net()
    model = parse_model(net.build(net.svdf(net.input(1, 6), 4)))
    plain, streamed = Interpreter(model), Executor(best(records(model)))
    for seed in (0, 1, 0):
        given = values(model, seed)
        assert plain.run(given)[0].tobytes() == streamed.run(given).outputs[0].tobytes()
    streamed.reset()
    assert streamed.run(values(model, 0)).outputs[0].tobytes() != plain.run(values(model, 0))[0].tobytes()


def test_without_checks_it_gives_the_same() -> None:
    model = small("efficientnet_b0")
    plan, given = best(records(model)), values(model)
    loose, strict = execute(plan, given, check=False), execute(plan, given)
    assert loose.outputs[0].tobytes() == strict.outputs[0].tobytes()
    assert replace(loose, outputs=()) == replace(strict, outputs=())


def test_copies_are_no_larger_than_what_is_kept() -> None:
    """Rows that go round the end of a ring are copied together for the time of one row."""
    model = small("mcunet")
    plan = best(records(model), 0)
    largest = max(
        line.rows * (right - left) * plan.network.values[line.value].pixel_bytes
        for layout in plan.segments for line in layout.lines for left, right in line.columns
    )  # fmt: skip
    assert 0 < execute(plan, values(model)).gathered_bytes <= largest


def test_an_estimate_is_refused() -> None:
    network = replace(records(small("mcunet")), estimated=True)
    with pytest.raises(UsageError, match="no weights"):
        Executor(best(network))


def test_an_operator_without_a_kernel_is_refused() -> None:
    net = Net()
    x = net.input(1, 8, 8, 2)
    model = parse_model(net.build(net.op("GELU", [x], [net.like(x)], "GeluOptions", approximate=False)))
    with pytest.raises(UnsupportedOp, match="GELU"):
        Executor(best(records(model)))


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.tflite"
    path.write_bytes(built("mcunet"))
    return path


def test_the_command_runs_the_plan(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    monkeypatch.setattr(os, "environ", environment)
    assert main(["stream", str(file), "--verify", "--verify-inputs", "12", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert environment["OPENBLAS_NUM_THREADS"] == "1"  # rows are too little work to share
    said, totals = found["verification"], found["totals"]
    assert (said["inputs"], said["identical"]) == (12, 12)
    assert (said["peak_bytes"], said["extra_macs"]) == (totals["peak_bytes"], totals["extra_macs"])
    assert said["input_passes"] == totals["input_passes"]
    real = find_spec("tflite_micro") is not None
    assert said["runtime_identical"] == (12 if real else None)
    assert main(["stream", str(file), "--verify", "--verify-inputs", "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"one array of {totals['peak_bytes']:,} bytes: 1 of 1 inputs give the outputs of a plain run" in text
    assert ("1 of 1 those of tflite-micro" in text) == real


def test_without_the_runtime_it_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda _: None)
    model = read_model(file)
    said = verify.verify_stream(best(records(model)), model, inputs=2)
    assert (said["identical"], said["runtime"], said["runtime_identical"]) == (2, None, None)


def test_a_plan_that_computes_something_else_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(file)
    monkeypatch.setattr(Interpreter, "run", lambda *_: (np.zeros(10, np.int8),))
    with pytest.raises(InternalError, match="computes something else") as raised:
        verify.verify_stream(best(records(model)), model, inputs=2)
    assert "input 0 of 2" in str(raised.value)


def test_a_plan_that_takes_something_else_is_an_error(file: Path) -> None:
    model = read_model(file)
    plan = best(records(model))
    with pytest.raises(InternalError, match="another number of extra multiply-accumulates") as raised:
        verify.verify_stream(replace(plan, extra_macs=plan.extra_macs + 1), model, inputs=1)
    assert f"{plan.extra_macs:,}, planned {plan.extra_macs + 1:,}" in str(raised.value)


def test_what_cannot_be_verified_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "torchvision:mobilenet_v2", "--verify"]) == 2
    assert "only that has weights to run with" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nothing is verified without inputs"):
        verify.check_verification(str(file), 0)


# -- damaged plans ----------------------------------------------------------------------------------------------------


@cache
def chain() -> tuple[TfliteModel, StreamPlan]:
    """Three windows one behind the other in one segment, and a mean that is added up."""
    net = StreamNet()
    x = net.conv(net.image(12, 10, 2), 4, 3)
    model = parse_model(net.build(net.mean(net.conv(net.depthwise(x, 3), 3, 3))))
    return model, together(records(model))


def with_arena(plan: StreamPlan, **changed: Any) -> StreamPlan:
    return replace(plan, arena=replace(plan.arena, **changed))


def moved(plan: StreamPlan, offsets: dict[str, int]) -> StreamPlan:
    """Put buffers elsewhere, in an array that still has room for all."""
    sizes = {buffer.name: buffer.size for buffer in plan.arena.problem.buffers}
    found = {**plan.arena.packing.offsets, **offsets}
    height = max(found[name] + size for name, size in sizes.items())
    return with_arena(plan, packing=replace(plan.arena.packing, offsets=found, height=height))


def lifetime(plan: StreamPlan, name: str, *, later: int = 0, sooner: int = 0) -> StreamPlan:
    """Let a buffer begin some steps later, or end some sooner."""
    problem = plan.arena.problem
    buffers = tuple(
        Buffer(b.name, b.size, [(s.lower + later, s.upper - sooner, s.start, s.size or 0) for s in b.spans])
        if b.name == name else b
        for b in problem.buffers
    )  # fmt: skip
    return with_arena(plan, problem=replace(problem, buffers=buffers))


def refused(plan: StreamPlan, model: TfliteModel, *said: str) -> None:
    with pytest.raises(InternalError) as raised:
        execute(plan, values(model))
    for part in (*said, "operator", "step", "do not use this plan"):
        assert part in str(raised.value)


def test_a_ring_that_is_too_short_is_found() -> None:
    model, plan = chain()
    layout = plan.segments[0]
    value = plan.network.ops[0].output
    lines = tuple(replace(line, rows=2) if line.value == value else line for line in layout.lines)
    damaged = with_arena(plan, layouts=(replace(layout, lines=lines), *plan.segments[1:]))
    refused(damaged, model, "a plan keeps less of a value than is read", plan.network.values[value].name, "2 rows")


def test_two_buffers_at_one_place_are_found() -> None:
    model, plan = chain()
    fed, value = plan.network.inputs[0], plan.network.ops[0].output
    damaged = moved(plan, {line_name(0, 0, value): plan.arena.line_offset(0, 0, fed)})
    refused(damaged, model, "a plan gives one byte to two buffers", line_name(0, 0, value), line_name(0, 0, fed))


def test_rows_that_are_overwritten_too_early_are_found_even_where_outputs_agree() -> None:
    """The sum waits for three windows while the ring goes on; all rows of this image are alike, so none is missed."""
    net = StreamNet()
    x = net.conv(net.image(12, 6, 2), 4)
    model = parse_model(net.build(net.sum(x, net.depthwise(net.depthwise(net.depthwise(x))))))
    plan = together(records(model))
    layout, value = plan.segments[0], plan.network.ops[0].output
    assert [line.rows for line in layout.lines if line.value == value] == [4]
    lines = tuple(replace(line, rows=3) if line.value == value else line for line in layout.lines)
    damaged = with_arena(plan, layouts=(replace(layout, lines=lines), *plan.segments[1:]))
    alike = np.full((1, 12, 6, 2), 50, np.int8)
    assert execute(damaged, [alike], check=False).outputs[0].tobytes() == Interpreter(model).run([alike])[0].tobytes()
    name = plan.network.values[value].name
    refused(damaged, model, "does not hold what was written", f"({name}), row 0, column 0", f"({name}), row 3", "ADD")


def test_a_lifetime_that_ends_too_early_is_found() -> None:
    model, plan = chain()
    name = line_name(0, 0, plan.network.ops[0].output)
    refused(lifetime(plan, name, sooner=5), model, "is dead", "row 10", "column 0")


def test_a_lifetime_that_begins_too_late_is_found() -> None:
    model, plan = chain()
    name = line_name(0, 0, plan.network.ops[0].output)
    refused(lifetime(plan, name, later=9), model, "writes into bytes", "nobody")
    refused(lifetime(plan, sums_name(0), later=20), model, "bytes that it does not have")


def test_an_output_that_is_freed_is_found() -> None:
    model, plan = chain()
    name = value_name(plan.network.outputs[0])
    damaged = lifetime(plan, name, sooner=1)
    refused(damaged, model, "a plan writes into bytes that it does not have")


def test_an_array_that_is_too_small_is_found() -> None:
    model, plan = chain()
    packing = plan.arena.packing
    refused(with_arena(plan, packing=replace(packing, height=packing.height - 1)), model, "outside of its arena")


def test_columns_that_are_not_kept_are_found() -> None:
    model, plan = chain()
    layout = plan.segments[0]
    lines = tuple(replace(line, columns=tuple((a, b - 1) for a, b in line.columns)) for line in layout.lines)
    damaged = with_arena(plan, layouts=(replace(layout, lines=lines), *plan.segments[1:]))
    with pytest.raises(InternalError, match="keeps less"):
        execute(damaged, values(model))


@pytest.mark.parametrize("seed", range(25))
def test_it_refuses_just_what_the_validator_refuses(seed: int) -> None:
    """Buffers put anywhere: the packing's validator and the run, which share nothing, say the same."""
    model = drawn(seed)
    network, given = records(model), values(model, seed)
    pick = random.Random(seed)
    plan = plan_at_random(network, pick)
    names = list(plan.arena.packing.offsets)
    for _ in range(4):
        name = pick.choice(names)
        damaged = moved(plan, {name: pick.randrange(plan.peak_bytes + 1)})
        problem, offsets = damaged.arena.problem, damaged.arena.packing.offsets
        if violations(problem, offsets):
            with pytest.raises(InternalError):
                execute(damaged, given)
        else:
            found = execute(damaged, given)
            expected = Interpreter(model).run(given)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(found.outputs, expected, strict=True))
