"""Kernels that compute regions: any partition of an output gives, to the bit, what a whole run gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_nets import drawn
from tflite_models import OPERATOR_NETS, Net

from memfit.formats.tflite import parse_model
from memfit.kernels import Interpreter, Region, kernel_of
from memfit.kernels.kernel import Array

REGIONAL = (
    "conv", "depthwise", "transpose_conv", "pool", "sums", "differences", "extremes", "comparison", "concatenation",
    "resize", "pad", "rectifier", "transpose",
)  # fmt: skip


def values(interpreter: Interpreter, seed: int) -> list[Array]:
    random = np.random.default_rng(seed)
    main = interpreter.model.main
    made = []
    for index in main.inputs:
        tensor = main.tensors[index]
        if tensor.type == "FLOAT32":
            made.append(random.normal(size=tensor.shape).astype(np.float32))
        else:
            info = np.iinfo("i1" if tensor.type == "INT8" else "i2")
            made.append(random.integers(info.min, info.max, tensor.shape, info.dtype, endpoint=True))
    return made


def cuts(draw: st.DrawFn, length: int) -> list[int]:
    inside = draw(st.sets(st.integers(1, length - 1), max_size=4)) if length > 1 else set()
    return [0, *sorted(inside), length]


def computed_by_regions(data: st.DataObject, name: str) -> None:
    model = parse_model(drawn(name, data.draw(st.integers(0, 5000))))
    interpreter = Interpreter(model, keep=True)
    expected = interpreter.run(values(interpreter, data.draw(st.integers(0, 99))))[0]
    operator = model.main.operators[0]
    kernel = kernel_of(model, operator)
    assert kernel.by_regions
    parameters = kernel.prepare(model, operator)
    given_inputs = [interpreter.tensors[i] if i >= 0 else None for i in operator.inputs]
    made = np.full_like(expected, 77)
    rows, columns = (cuts(data.draw, size) for size in expected.shape[1:3])
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            region = Region(top, bottom, left, right)
            needed = kernel.needed(parameters, region)
            parts, held = [], []
            for position, x in enumerate(given_inputs):
                place = needed[position] if position < len(needed) else None
                if x is None or place is None:
                    parts.append(x)
                    held.append(None)
                    continue
                whole = Region(0, x.shape[1], 0, x.shape[2])
                # Sometimes more is at hand than is needed, as in a line buffer.
                more = data.draw(st.integers(0, 2))
                place = Region(
                    max(place.top - more, 0), min(place.bottom + more, whole.bottom),
                    max(place.left - more, 0), min(place.right + more, whole.right),
                )  # fmt: skip
                parts.append(place.of(x, whole).copy())
                held.append(place)
            view = made[:, top:bottom, left:right]
            kernel.run_region(parameters, parts, held, [view], region)
    assert made.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", REGIONAL)
def test_any_partition_gives_what_a_whole_run_gives(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        computed_by_regions(data, name)

    check()


def global_net(random: np.random.Generator, name: str, type: str) -> bytes:
    net = Net(type)
    n, h, w, c = (int(random.integers(1, high)) for high in (3, 7, 7, 5))
    x = net.input(n, h, w, c)
    if name == "AVERAGE_POOL_2D":
        return net.build(
            net.op(name, [x], [net.like(x, (n, 1, 1, c))], "Pool2DOptions", padding=1, stride_h=h, stride_w=w,
                   filter_height=h, filter_width=w, fused_activation_function=1)
        )  # fmt: skip
    y = net.tensor((n, 1, 1, c), type, scale=float(random.uniform(0.0001, 0.1)), zero=-3 if type == "INT8" else 0)
    return net.build(net.op(name, [x, net.ints(1, 2)], [y], "ReducerOptions", keep_dims=True))


@pytest.mark.parametrize("type", ["INT8", "INT16"])
@pytest.mark.parametrize("name", ["MEAN", "SUM", "AVERAGE_POOL_2D"])
@given(st.integers(0, 999), st.data())
@settings(max_examples=25, deadline=None)
def test_an_image_added_up_part_by_part(name: str, type: str, seed: int, data: st.DataObject) -> None:
    model = parse_model(global_net(np.random.default_rng(seed), name, type))
    interpreter = Interpreter(model)
    x = values(interpreter, seed)[0]
    operator = model.main.operators[0]
    kernel = kernel_of(model, operator)
    parameters = kernel.prepare(model, operator)
    assert kernel.sums is not None
    shape = kernel.sums.shape(parameters)
    assert shape == (x.shape[0], x.shape[3])
    sums = np.zeros(shape, np.int32)
    rows, columns = (cuts(data.draw, size) for size in x.shape[1:3])
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            kernel.sums.add(sums, x[:, top:bottom, left:right])
    expected = interpreter.run([x])[0]
    made = np.empty_like(expected)
    kernel.sums.finish(parameters, sums, [made])
    assert made.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["mean-float32", "max_pool-int8", "average_pool-int8", "reduce_max-int8"])
def test_what_cannot_be_added_up_in_parts_says_so(name: str) -> None:
    model = parse_model(OPERATOR_NETS[name]())
    kernel = kernel_of(model, model.main.operators[0])
    assert kernel.sums is not None
    assert kernel.sums.shape(kernel.prepare(model, model.main.operators[0])) is None
