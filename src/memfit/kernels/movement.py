"""Operators that only move elements: reshaping, transposing, slicing, joining, padding.

Sources in tflite-micro: micro/kernels/{reshape,transpose,concatenation,split,split_v,pack,unpack,pad,pad_common,
mirror_pad,slice,strided_slice}*.cc and kernels/internal/reference/ beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.kernel import Array, Held, Inputs, Kernel, Node, Outputs, Region, nothing, zero_of


def given(inputs: Inputs, position: int = 0) -> Array:
    """Give an input that is there."""
    found = inputs[position]
    assert found is not None  # Node.input saw it
    return found


def moves(parameters: Callable[[Node], Any], move: Callable[[Any, Array], Array]) -> Kernel:
    """Make a kernel from a function that gives the output's values out of the first input."""

    def whole(own: Any, inputs: Inputs, outputs: Outputs) -> None:
        outputs[0][...] = move(own, given(inputs))

    return Kernel(parameters, whole)


# -- shapes -----------------------------------------------------------------------------------------------------------


def _copy(_: None, inputs: Inputs, outputs: Outputs) -> None:
    outputs[0][...] = given(inputs).reshape(outputs[0].shape)


RESHAPE = Kernel(nothing, _copy)
"""RESHAPE, SQUEEZE and EXPAND_DIMS: the same elements in the same order."""


@dataclass(frozen=True)
class Transposition:
    """Parameters of TRANSPOSE."""

    order: tuple[int, ...]
    """For each dimension of the output, that of the input."""
    shape: tuple[int, ...]
    """Of the input."""


def _transpose_parameters(node: Node) -> Transposition:
    order, shape = node.numbers(1), node.input(0).shape
    node.need(len(order) == len(shape), "an order of another rank", order)
    return Transposition(tuple(axis % len(order) for axis in order), shape)


def _transpose(parameters: Transposition, inputs: Inputs, outputs: Outputs) -> None:
    outputs[0][...] = given(inputs).transpose(parameters.order)


def _transpose_needs(parameters: Transposition, region: Region) -> Held:
    """Of the input, a region is a part of its second and third dimension, whatever they stand for."""
    wanted = {parameters.order[1]: (region.top, region.bottom), parameters.order[2]: (region.left, region.right)}
    first, second = (wanted.get(axis, (0, parameters.shape[axis])) for axis in (1, 2))
    return (Region(*first, *second),)


def _transpose_part(parameters: Transposition, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    needed, place = _transpose_needs(parameters, region)[0], held[0]
    assert needed is not None  # the input is an image
    assert place is not None
    rest = [slice(None)] * 4
    for axis, wanted in ((1, slice(region.top, region.bottom)), (2, slice(region.left, region.right))):
        if parameters.order[axis] in (0, 3):  # `needed` has cut the others
            rest[parameters.order[axis]] = wanted
    outputs[0][...] = needed.of(given(inputs), place)[tuple(rest)].transpose(parameters.order)


TRANSPOSE = Kernel(_transpose_parameters, _transpose, _transpose_needs, _transpose_part)


# -- joining and splitting --------------------------------------------------------------------------------------------


def _axis(node: Node, rank: int) -> int:
    return int(node.option("axis")) % rank


@dataclass(frozen=True)
class Joined:
    """Parameters of CONCATENATION and SPLIT."""

    axis: int
    sizes: tuple[int, ...]
    """Of each part along the axis."""


def _concatenation_parameters(node: Node) -> Joined:
    parts = [node.input(position) for position in range(len(node.operator.inputs))]
    axis = _axis(node, len(parts[0].shape))
    for part in parts:
        same = part.quantization is None or node.output().type not in ("INT8",) or (
            part.quantization[:2] == (node.output().quantization or ((),))[:2]
        )  # fmt: skip
        node.need(same, "the inputs are quantized in another way than the output", part.name)
    node.need(not node.option("fused_activation_function"), "a fused activation", "which TFLM does not compute")
    return Joined(axis, tuple(part.shape[axis] for part in parts))


def _concatenate(parameters: Joined, inputs: Inputs, outputs: Outputs) -> None:
    np.concatenate([given(inputs, position) for position in range(len(inputs))], parameters.axis, out=outputs[0])


def _concatenation_needs(parameters: Joined, region: Region) -> Held:
    """Along rows or columns, an input gives what of the region lies in it."""
    if parameters.axis not in (1, 2):
        return (region,) * len(parameters.sizes)
    start, found = 0, []
    for size in parameters.sizes:
        low, high = (region.top, region.bottom) if parameters.axis == 1 else (region.left, region.right)
        low = min(max(low - start, 0), size)
        high = max(min(high - start, size), low)
        found.append(region._replace(top=low, bottom=high) if parameters.axis == 1
                     else region._replace(left=low, right=high))  # fmt: skip
        start += size
    return tuple(found)


def _concatenation_part(parameters: Joined, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    parts = []
    for position, needed in enumerate(_concatenation_needs(parameters, region)):
        place = held[position]
        assert needed is not None  # all inputs are images
        assert place is not None
        parts.append(needed.of(given(inputs, position), place))
    np.concatenate(parts, parameters.axis, out=outputs[0])


CONCATENATION = Kernel(_concatenation_parameters, _concatenate, _concatenation_needs, _concatenation_part)


def _split_parameters(node: Node) -> Joined:
    sizes_last = node.operator.name == "SPLIT_V"
    axis = node.numbers(2 if sizes_last else 0)[0] % len(node.input(0 if sizes_last else 1).shape)
    return Joined(axis, tuple(node.output(k).shape[axis] for k in range(len(node.operator.outputs))))


def _split_into(parameters: Joined, x: Array, outputs: Outputs) -> None:
    ends = np.cumsum(parameters.sizes)[:-1]
    for output, part in zip(outputs, np.split(x, ends, parameters.axis), strict=True):
        output[...] = part


def _splits(position: int) -> Kernel:
    """Make the kernel of SPLIT, whose axis comes first, or of SPLIT_V."""

    def whole(parameters: Joined, inputs: Inputs, outputs: Outputs) -> None:
        _split_into(parameters, given(inputs, position), outputs)

    return Kernel(_split_parameters, whole)


SPLIT, SPLIT_V = _splits(1), _splits(0)


def _pack_axis(node: Node) -> int:
    return _axis(node, len(node.output().shape))


def _pack(axis: int, inputs: Inputs, outputs: Outputs) -> None:
    np.stack([given(inputs, position) for position in range(len(inputs))], axis, out=outputs[0])


def _unpack(axis: int, inputs: Inputs, outputs: Outputs) -> None:
    for output, part in zip(outputs, np.moveaxis(given(inputs), axis, 0), strict=True):
        output[...] = part


PACK = Kernel(_pack_axis, _pack)
UNPACK = Kernel(lambda node: _axis(node, len(node.input(0).shape)), _unpack)


# -- padding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Padding:
    """Parameters of PAD, PADV2 and MIRROR_PAD."""

    around: tuple[tuple[int, int], ...]
    """Before and after, in each direction."""
    fill: int | float | None
    """None if it is made at run time."""
    shape: tuple[int, ...]
    """Of the input."""
    mirror: int
    """1 if the edge itself is repeated (SYMMETRIC), 0 if it is the mirror (REFLECT)."""


def _pad_parameters(node: Node) -> Padding:
    image = node.input(0)
    numbers = node.numbers(1)
    around = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    fill: Any = 0
    if node.operator.name == "MIRROR_PAD":
        fill = None
    elif node.optional(2) is not None:
        value = node.constant(2)
        fill = None if value is None else value.reshape(-1)[0]
    elif image.type == "INT8":
        fill = zero_of(node.output())
    return Padding(around, fill, image.shape, int(node.option("mode")))


def _fill(parameters: Padding, inputs: Inputs) -> Any:
    return parameters.fill if parameters.fill is not None else given(inputs, 2).reshape(-1)[0]


def _pad(parameters: Padding, inputs: Inputs, outputs: Outputs) -> None:
    outputs[0][...] = _fill(parameters, inputs)
    inside = tuple(slice(before, before + size)
                   for (before, _), size in zip(parameters.around, parameters.shape, strict=True))  # fmt: skip
    outputs[0][inside] = given(inputs)


def _pad_needs(parameters: Padding, region: Region) -> Held:
    def inside(start: int, end: int, axis: int) -> tuple[int, int]:
        before, size = parameters.around[axis][0], parameters.shape[axis]
        first = min(max(start - before, 0), size)
        return first, max(min(end - before, size), first)

    return (Region(*inside(region.top, region.bottom, 1), *inside(region.left, region.right, 2)),)


def _pad_part(parameters: Padding, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    output, place = outputs[0], held[0]
    needed = _pad_needs(parameters, region)[0]
    assert needed is not None  # the input is an image
    assert place is not None
    output[...] = _fill(parameters, inputs)
    if not needed.height or not needed.width:
        return
    top = parameters.around[1][0] + needed.top - region.top
    left = parameters.around[2][0] + needed.left - region.left
    n, c = parameters.around[0][0], parameters.around[3][0]
    output[
        n : n + parameters.shape[0], top : top + needed.height, left : left + needed.width, c : c + parameters.shape[3]
    ] = needed.of(given(inputs), place)


PAD = Kernel(_pad_parameters, _pad, _pad_needs, _pad_part)
"""PAD and PADV2."""

MIRROR_PAD = moves(
    _pad_parameters,
    lambda parameters, x: np.pad(x, parameters.around, "symmetric" if parameters.mirror else "reflect"),
)


# -- slices -----------------------------------------------------------------------------------------------------------


def _slice_parameters(node: Node) -> tuple[slice, ...]:
    begins, shape = node.numbers(1), node.output().shape
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, shape, strict=True))


SLICE = moves(_slice_parameters, lambda where, x: x[where])


def _strided_slice_parameters(node: Node) -> tuple[slice | int, ...]:
    """Turn begins, ends, strides and masks into indices; source: kernels/internal/strided_slice_logic.h."""
    begins, ends, strides = node.numbers(1), node.numbers(2), node.numbers(3)
    masks = {name: int(node.option(name)) for name in ("begin_mask", "end_mask", "shrink_axis_mask")}
    others = {name: int(node.option(name)) for name in ("ellipsis_mask", "new_axis_mask")}
    node.need(not any(others.values()), "a mask that is not computed", others)
    found: list[slice | int] = []
    for axis, size in enumerate(node.input(0).shape):
        if axis >= len(begins):
            found.append(slice(None))
            continue
        begin, end, stride = begins[axis], ends[axis], strides[axis]
        if masks["shrink_axis_mask"] >> axis & 1:
            found.append(0 if masks["begin_mask"] >> axis & 1 else begin % size)
            continue
        first = None if masks["begin_mask"] >> axis & 1 else begin
        last = None if masks["end_mask"] >> axis & 1 else end
        if node.option("offset") and last is not None:
            last = begin + last
        found.append(slice(first, last, stride))
    return tuple(found)


def _strided(where: tuple[slice | int, ...], inputs: Inputs, outputs: Outputs) -> None:
    outputs[0][...] = given(inputs)[where].reshape(outputs[0].shape)


STRIDED_SLICE = Kernel(_strided_slice_parameters, _strided)
