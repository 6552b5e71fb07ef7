"""AVERAGE_POOL_2D, MAX_POOL_2D and L2_POOL_2D: integer_ops/pooling.h and reference/pooling.h of tflite-micro."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.activation import activation_range, float_range
from memfit.kernels.kernel import Array, Held, Inputs, Kernel, Node, Outputs, Region, Sums, add_part
from memfit.kernels.window import Axis, Window, window


@dataclass(frozen=True)
class Pooling:
    """Parameters of a pooling operator."""

    window: Window
    kind: str
    """AVERAGE, MAX or L2."""
    low: float
    high: float
    shape: tuple[int, ...]
    """Of the input."""
    type: str
    single: bool
    """True if the output has one row and one column."""


def _parameters(node: Node) -> Pooling:
    image = node.input(0)
    types = ("FLOAT32",) if node.operator.name == "L2_POOL_2D" else ("INT8", "INT16", "FLOAT32")
    node.need(image.type in types, "no kernel for this type", image.type)
    low, high = float_range(node) if image.type == "FLOAT32" else activation_range(node, node.output())
    kernel = (node.option("filter_height"), node.option("filter_width"))
    seen, kind = window(node, image.shape, kernel), node.operator.name.split("_")[0]
    single = node.output().shape[1:3] == (1, 1)
    return Pooling(seen, kind, float(low), float(high), image.shape, image.type, single)


def _needs(parameters: Pooling, region: Region) -> Held:
    return (parameters.window.needed(region),)


def _counts(axis: Axis, start: int, end: int) -> Array:
    """Count the taps inside the input for each output in one direction."""
    begins = axis.span(start, end)[0] + axis.stride * np.arange(end - start)
    return np.minimum(begins + axis.size, axis.length) - np.maximum(begins, 0)


def _part(parameters: Pooling, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    image, place, output = inputs[0], held[0], outputs[0]
    assert image is not None  # Node.input saw it
    assert place is not None
    rows, columns = parameters.window
    lowest = np.finfo(np.float32).min if image.dtype.kind == "f" else np.iinfo(image.dtype).min
    fill = float(lowest) if parameters.kind == "MAX" else 0.0
    taps = parameters.window.taps(parameters.window.padded(image, place, region, fill), region)
    if parameters.kind == "MAX":
        made = taps[:, :, :, 0, 0].copy()
        for y in range(rows.size):
            for x in range(columns.size):
                np.maximum(made, taps[:, :, :, y, x], out=made)
        output[...] = np.clip(made, parameters.low, parameters.high)
        return
    down, across = _counts(rows, region.top, region.bottom), _counts(columns, region.left, region.right)
    count = (down[:, None] * across[None, :])[None, :, :, None]
    total = np.zeros(taps[:, :, :, 0, 0].shape, np.float32 if image.dtype.kind == "f" else np.int64)
    for y in range(rows.size):  # in C++'s order, for the sake of floats
        for x in range(columns.size):
            tap = taps[:, :, :, y, x]
            total += tap * tap if parameters.kind == "L2" else tap
    if image.dtype.kind == "f":
        mean = total / count.astype(np.float32)
        if parameters.kind == "L2":
            mean = np.sqrt(mean)
    else:
        mean = _divided(total, count)
    output[...] = np.clip(mean, parameters.low, parameters.high)


def _divided(total: Array, count: int | Array) -> Array:
    """Divide integers, halves away from zero; C++'s own division goes towards zero."""
    made: Array = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return made


def _sums_shape(parameters: Pooling) -> tuple[int, int] | None:
    """Give the shape of the sums if there is but one output, of all of the image."""
    n, height, width, channels = parameters.shape
    whole = parameters.window.needed(Region(0, 1, 0, 1)) == Region(0, height, 0, width)
    fits = parameters.kind == "AVERAGE" and parameters.type in ("INT8", "INT16")
    return (n, channels) if fits and whole and parameters.single else None


def _finish(parameters: Pooling, sums: Array, outputs: Outputs) -> None:
    mean = _divided(sums.astype(np.int64), parameters.shape[1] * parameters.shape[2])
    outputs[0][...] = np.clip(mean, parameters.low, parameters.high)[:, None, None]


POOLING = Kernel(_parameters, needs=_needs, part=_part, sums=Sums(_sums_shape, add_part, _finish))
"""AVERAGE_POOL_2D and MAX_POOL_2D: 8-bit, 16-bit, float; L2_POOL_2D: float."""
