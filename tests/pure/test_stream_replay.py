"""The replay checker: what it lets pass runs right, and what it refuses is wrong even where outputs agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models
from tflite_models import Net
from tflm_runtime import need_runtime

from memfit.errors import InternalError, UnsupportedOp
from memfit.formats.tflite import TfliteModel, parse_model
from memfit.plan.arena import plan_arena, planned_file
from memfit.plan.runtime import Runtime
from memfit.plan.writer import rewrite
from memfit.stream.replay import NOBODY, START, assert_intact, describe, replay

ONE_GRAPH = sorted(name for name in models.NETS if "lstm" not in name)


def with_offsets(net: Net, output: int, chosen: dict[int, int]) -> TfliteModel:
    """Build a network with some offsets, the rest left to the runtime."""
    places = [chosen.get(i, -1) for i in range(len(net.tensors))]
    net.metadata["OfflineMemoryAllocation"] = models.offline_plan(places)
    return parse_model(net.build(output))


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_the_runtimes_own_plan_and_memfits_keep_every_byte(name: str) -> None:
    model = parse_model(models.NETS[name]())
    assert replay(model).faults == ()
    plan = plan_arena(model)
    found = assert_intact(parse_model(planned_file(plan)))
    assert found.nbytes <= plan.arena.head_bytes
    assert found.read_bytes > 0


def test_equal_values_do_not_hide_that_they_are_in_the_wrong_place() -> None:
    net = Net()
    x = net.input(1, 4, 4, 4)
    first, second = net.unary("RELU", x), net.unary("RELU", x)
    y = net.add(first, second)
    model = with_offsets(net, y, {x: 0, first: 64, second: 64, y: 128})
    fault = replay(model).faults[0]
    assert (fault.operator, fault.tensor, fault.offset, fault.nbytes, fault.writer) == (2, first, 64, 64, 1)
    said = describe(model, fault)
    assert "operators[2] (ADD) reads" in said
    assert "it was overwritten, 64 bytes from offset 64, last written by operators[1] (RELU)" in said
    with pytest.raises(InternalError, match=r"operators\[2\]"):
        assert_intact(model)


def test_equal_values_run_equal_in_the_runtime_all_the_same(tmp_path: Path) -> None:
    need_runtime()
    net = Net()
    x = net.input(1, 4, 4, 4)
    first, second = net.unary("RELU", x), net.unary("RELU", x)
    y = net.add(first, second)
    right = tmp_path / "right.tflite"
    right.write_bytes(net.build(y))
    with_offsets(net, y, {x: 0, first: 64, second: 64, y: 128})
    wrong = tmp_path / "wrong.tflite"
    wrong.write_bytes(net.build(y))
    values = [[np.random.default_rng(0).integers(-128, 128, (1, 4, 4, 4), np.int8)]]
    with Runtime() as runtime:
        a, b = (runtime.outputs(path, values)[0][0] for path in (right, wrong))
    assert a.tobytes() == b.tobytes()  # outputs agree, and still the plan is wrong


def halves(offsets: Sequence[int]) -> TfliteModel:
    """Cut an image into rows, work on each half, and join them: input, two slices, two results, output."""
    net = Net()
    x = net.input(1, 8, 4, 4)
    top, bottom = (net.slice(x, (0, row, 0, 0), (1, 4, 4, 4)) for row in (0, 4))
    done = [net.pool(part, "MAX", 1, 1) for part in (top, bottom)]
    y = net.concat(*done, axis=1)
    return with_offsets(net, y, dict(zip((x, top, bottom, *done, y), offsets, strict=True)))


def test_slices_may_lie_on_their_source_and_parts_where_they_are_joined() -> None:
    assert replay(halves((0, 0, 64, 128, 192, 128))).faults == ()
    assert replay(halves((0, 0, 64, 128, 192, 128))).nbytes == 256


@pytest.mark.parametrize(
    ("offsets", "operator", "tensor"),
    [
        ((0, 64, 64, 128, 192, 128), 1, "input"),  # the first slice moved onto the second one's source
        ((0, 0, 64, 64, 192, 64), 3, "second slice"),  # the first result overwrites the second slice
        ((0, 0, 64, 128, 128, 128), 4, "first result"),  # the second result overwrites the first
        ((0, 0, 64, 192, 128, 128), 4, "second result"),  # joining swaps them, and loses one
        ((0, 0, 64, 128, 192, 144), 4, "first result"),  # a copy onto part of itself
    ],
)  # fmt: skip
def test_each_way_to_overwrite_is_seen(offsets: Sequence[int], operator: int, tensor: str) -> None:
    model = halves(offsets)
    runtime_inputs = {o.index: o.inputs for o in model.main.operators}
    names = dict(
        zip(
            (*model.main.inputs, *(o.outputs[0] for o in model.main.operators)),
            ("input", "first slice", "second slice", "first result", "second result", "output"),
            strict=True,
        )
    )
    faults = replay(model).faults
    assert (faults[0].operator, names[faults[0].tensor]) == (operator, tensor)
    assert faults[0].tensor in runtime_inputs[operator]


def test_what_computes_may_lie_on_its_input_only_element_by_element() -> None:
    for make, allowed in (
        (lambda net, x: net.unary("RELU", x), True),
        (lambda net, x: net.add(x, x), True),
        (lambda net, x: net.conv(x, 4), False),
        (lambda net, x: net.depthwise(x), False),
    ):
        net = Net()
        x = net.input(1, 4, 4, 4)
        y = make(net, x)
        assert (replay(with_offsets(net, y, {x: 0, y: 0})).faults == ()) is allowed


def test_an_output_of_the_network_must_last_to_the_end() -> None:
    net = Net()
    x = net.input(1, 4, 4, 4)
    first = net.unary("RELU", x)
    second = net.unary("RELU", x)
    places = {x: 0, first: 64, second: 64}
    net.metadata["OfflineMemoryAllocation"] = models.offline_plan([places.get(i, -1) for i in range(len(net.tensors))])
    (fault,) = replay(parse_model(net.build(first, second))).faults
    assert (fault.operator, fault.tensor, fault.writer) == (2, first, 1)


def test_an_input_that_is_overwritten_names_its_writer() -> None:
    net = Net()
    x, z = net.input(1, 4, 4, 4), net.input(1, 4, 4, 4)
    y = net.add(x, z)
    faults = replay(with_offsets(net, y, {x: 0, z: 16, y: 256})).faults
    assert [(f.tensor, f.offset, f.nbytes, f.writer) for f in faults] == [(x, 16, 48, START)]


def test_padding_updates_and_strides_carry_identities() -> None:
    net = Net()
    x = net.input(1, 4, 4, 4)
    inner = net.strided_slice(net.pad(x), (0, 1, 1, 0), (1, 5, 5, 4), (1, 1, 1, 1))
    every = net.strided_slice(inner, (0, 0, 0, 0), (1, 4, 4, 4), (1, 2, 2, 1))
    changed = net.op(
        "DYNAMIC_UPDATE_SLICE", [inner, every, net.ints(0, 1, 1, 0)], [net.like(inner)], "DynamicUpdateSliceOptions"
    )
    model = parse_model(net.build(changed))
    assert replay(model).faults == ()
    places = {inner: 0, every: 64, changed: 0, x: 256}  # in place: what is not updated stays where it is
    assert replay(with_offsets(net, changed, places)).faults == ()
    (fault, *_) = replay(with_offsets(net, changed, {**places, changed: 16})).faults
    assert fault.tensor == inner


def test_what_was_never_written_is_named() -> None:
    net = Net()
    x, nothing = net.input(1, 4, 4, 4), net.tensor((1, 4, 4, 4))
    y = net.add(x, nothing)
    (fault,) = replay(parse_model(net.build(y))).faults
    assert (fault.tensor, fault.writer) == (nothing, NOBODY)
    assert "never written" in fault.what


def test_control_flow_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="control flow"):
        replay(parse_model(models.control_flow()))


MOVED = ["cnn-int8", "resnet-int8", "unet-int8", "branches-int8", "multi_output-int8", "attention-int8"]


@pytest.mark.parametrize("name", MOVED)
def test_wherever_the_runtime_computes_something_else_a_fault_was_found(name: str, tmp_path: Path) -> None:
    """Random addresses: what is found without a fault runs as it should, and most others do not."""
    need_runtime()
    model = parse_model(models.NETS[name]())
    random = np.random.default_rng(len(name))
    path, stock = tmp_path / "moved.tflite", tmp_path / "stock.tflite"
    stock.write_bytes(models.NETS[name]())
    tensors = model.main.tensors
    given = [[random.integers(-128, 128, tensors[i].shape, np.int8) for i in model.main.inputs] for _ in range(2)]
    plan = plan_arena(model)
    base = {b.tensor: at for b, at in zip(plan.arena.buffers, plan.arena.offsets, strict=True) if b.tensor is not None}
    height, wrong, passed = plan.arena.head_bytes, 0, 0
    with Runtime() as runtime:
        right = runtime.outputs(stock, given)
        for trial in range(24):
            moved = dict(base)
            for i in random.choice(sorted(base), 1 + trial // 12, replace=False):
                moved[int(i)] = 16 * int(random.integers(0, height // 8))
            path.write_bytes(rewrite(model, offsets=[moved.get(i, -1) for i in range(len(tensors))]))
            same = all(
                a.tobytes() == b.tobytes()
                for first, second in zip(right, runtime.outputs(path, given), strict=True)
                for a, b in zip(first, second, strict=True)
            )
            faults = replay(parse_model(path.read_bytes())).faults
            assert same or faults
            wrong += not same
            passed += not faults
    assert wrong
    assert passed
