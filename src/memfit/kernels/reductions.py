"""MEAN, SUM, REDUCE_MAX, REDUCE_MIN, ARG_MAX, ARG_MIN and CUMSUM.

Sources in tflite-micro: kernels/internal/reference/reduce.h, micro/kernels/reduce_common.cc, arg_min_max.h, cumsum.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.activation import LIMITS
from memfit.kernels.fixed_point import Ints, quantize_multiplier, scale
from memfit.kernels.kernel import Array, Inputs, Kernel, Node, Outputs, Sums, add_part, scale_of, zero_of


@dataclass(frozen=True)
class Reduction:
    """Parameters of a reduction."""

    axes: tuple[int, ...]
    count: int
    """Elements that come to one."""
    operator: str
    input_zero: int
    multiplier: int
    shift: int
    zero: int
    shape: tuple[int, ...]
    """Of the input."""
    type: str


def _parameters(node: Node) -> Reduction:
    image, output = node.input(0), node.output()
    types = {"MEAN": "INT8 INT16 FLOAT32", "SUM": "INT8 INT16 FLOAT32", "REDUCE_ALL": "BOOL"}
    types_here = types.get(node.operator.name, "INT8 INT16 FLOAT32 INT32").split()
    node.need(image.type in types_here, "no kernel for this type", image.type)
    rank = len(image.shape)
    axes = tuple(sorted({axis % rank for axis in node.numbers(1)})) if rank else ()
    count = int(np.prod([image.shape[axis] for axis in axes], dtype=np.int64))
    multiplier, shift = 0, 0
    if image.type in ("INT8", "INT16"):
        multiplier, shift = quantize_multiplier(scale_of(image) / scale_of(output))
        if node.operator.name == "MEAN":
            # The division by the count goes into the multiplier, as QuantizedMeanOrSum does it.
            moved = min(count.bit_length() - 1, 32, 31 + shift)
            multiplier, shift = (multiplier << moved) // count, shift - moved
    name = node.operator.name
    return Reduction(axes, count, name, zero_of(image), multiplier, shift, zero_of(output), image.shape, image.type)


def _sum_of_floats(x: Array, axes: tuple[int, ...]) -> Array:
    """Add one after the other in the order of memory, as C++ does: numpy's own sums pair them up."""
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    rows = x.transpose(axes + kept).reshape(-1, *(x.shape[axis] for axis in kept))
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total += row
    return total


def _whole(parameters: Reduction, inputs: Inputs, outputs: Outputs) -> None:
    x, output = inputs[0], outputs[0]
    assert x is not None  # Node.input saw it
    if parameters.operator == "REDUCE_MAX":
        output[...] = x.max(axis=parameters.axes).reshape(output.shape)
    elif parameters.operator == "REDUCE_MIN":
        output[...] = x.min(axis=parameters.axes).reshape(output.shape)
    elif parameters.operator == "REDUCE_ALL":
        output[...] = x.all(axis=parameters.axes).reshape(output.shape)
    elif x.dtype.kind == "f":
        total = _sum_of_floats(x, parameters.axes)
        mean = total / np.float32(parameters.count) if parameters.operator == "MEAN" else total
        output[...] = mean.reshape(output.shape)
    else:
        _finish(parameters, x.sum(axis=parameters.axes, dtype=np.int64), outputs)


def _finish(parameters: Reduction, total: Array, outputs: Outputs) -> None:
    wide = total.astype(np.int64) - parameters.input_zero * parameters.count
    made = scale(wide, parameters.multiplier, parameters.shift) + parameters.zero
    outputs[0][...] = np.clip(made, *LIMITS[parameters.type]).reshape(outputs[0].shape)


def _sums_shape(parameters: Reduction) -> tuple[int, int] | None:
    fits = parameters.operator in ("MEAN", "SUM") and parameters.type in ("INT8", "INT16")
    if not fits or parameters.axes != (1, 2) or len(parameters.shape) != 4:
        return None
    return parameters.shape[0], parameters.shape[3]


REDUCTION = Kernel(_parameters, _whole, sums=Sums(_sums_shape, add_part, _finish))
"""MEAN and SUM: 8-bit, 16-bit, float; REDUCE_MAX and REDUCE_MIN: any; REDUCE_ALL: truth values."""


# -- places of extremes -----------------------------------------------------------------------------------------------


def _arg_parameters(node: Node) -> tuple[int, bool]:
    return node.numbers(1)[0] % len(node.input(0).shape), node.operator.name == "ARG_MAX"


def _arg(parameters: tuple[int, bool], inputs: Inputs, outputs: Outputs) -> None:
    axis, largest = parameters
    x = inputs[0]
    assert x is not None  # Node.input saw it
    outputs[0][...] = (np.argmax if largest else np.argmin)(x, axis=axis).reshape(outputs[0].shape)


ARG = Kernel(_arg_parameters, _arg)
"""ARG_MAX and ARG_MIN: the first of equals."""


# -- running sums -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningSum:
    """Parameters of CUMSUM."""

    axis: int
    exclusive: bool
    reverse: bool
    zero: int
    """Of the input."""
    output_zero: int
    multiplier: int
    shift: int


def _cumsum_parameters(node: Node) -> RunningSum:
    source, output = node.input(0), node.output()
    node.need(source.type in ("INT8", "FLOAT32"), "no kernel for this type", source.type)
    axis = node.numbers(1)[0] % len(source.shape)
    multiplier, shift = 0, 0
    if source.type == "INT8":
        multiplier, shift = quantize_multiplier(2 * scale_of(source) / ((1 << 20) * scale_of(output)))
    return RunningSum(axis, bool(node.option("exclusive")), bool(node.option("reverse")), zero_of(source),
                      zero_of(output), multiplier, shift)  # fmt: skip


def _cumsum(parameters: RunningSum, inputs: Inputs, outputs: Outputs) -> None:
    x = inputs[0]
    assert x is not None  # Node.input saw it
    floats = x.dtype.kind == "f"
    values = np.moveaxis(x if floats else (x.astype(np.int64) - parameters.zero) << 19, parameters.axis, 0)
    # The source starts an integer sum at minus the zero point, on the common scale (CumSum, cumsum.h).
    start = 0 if floats else -parameters.zero << 19
    total: Ints | Array = np.full(values.shape[1:], start, values.dtype)
    made = np.empty_like(values)
    order = range(len(values))
    for place in reversed(order) if parameters.reverse else order:
        after = total + values[place]
        made[place] = total if parameters.exclusive else after
        total = after
    made = np.moveaxis(made, 0, parameters.axis)
    if not floats:
        made = np.clip(scale(made, parameters.multiplier, parameters.shift) + parameters.output_zero, -128, 127)
    outputs[0][...] = made


CUMSUM = Kernel(_cumsum_parameters, _cumsum)
