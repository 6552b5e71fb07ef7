"""Operators that place elements by indices, blocks or shapes: GATHER, SPACE_TO_DEPTH, BROADCAST_TO, FILL and others.

Sources in tflite-micro: micro/kernels/ with the operators' names, kernels/internal/reference/ beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.kernel import Array, Inputs, Kernel, Node, Outputs, nothing, scale_of, zero_of
from memfit.kernels.movement import given, moves

# -- by indices -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """Parameters of GATHER."""

    axis: int
    batches: int


def _gather_parameters(node: Node) -> Gathered:
    batches = int(node.option("batch_dims"))
    node.need(batches >= 0, "a negative number of batch dimensions", batches)
    return Gathered(int(node.option("axis")) % len(node.input(0).shape), batches)


def _gather(parameters: Gathered, inputs: Inputs, outputs: Outputs) -> None:
    x, indices, output = given(inputs), given(inputs, 1), outputs[0]
    if not parameters.batches:
        output[...] = np.take(x, indices, parameters.axis)
        return
    for place in np.ndindex(x.shape[: parameters.batches]):
        output[place] = np.take(x[place], indices[place], parameters.axis - parameters.batches)


GATHER = Kernel(_gather_parameters, _gather)


def _gather_nd(_: None, inputs: Inputs, outputs: Outputs) -> None:
    outputs[0][...] = given(inputs)[tuple(np.moveaxis(given(inputs, 1), -1, 0))]


GATHER_ND = Kernel(nothing, _gather_nd)


def _update(_: None, inputs: Inputs, outputs: Outputs) -> None:
    """Copy the first input, with the second written over it; one that would reach beyond the end is moved back."""
    x, update, starts, output = given(inputs), given(inputs, 1), given(inputs, 2).reshape(-1), outputs[0]
    sizes = zip(starts, x.shape, update.shape, strict=True)
    first = [min(max(int(start), 0), size - part) for start, size, part in sizes]
    output[...] = x
    output[tuple(slice(a, a + part) for a, part in zip(first, update.shape, strict=True))] = update


DYNAMIC_UPDATE_SLICE = Kernel(nothing, _update)


def _embedding_parameters(node: Node) -> tuple[float, int] | None:
    table, output = node.input(1), node.output()
    if table.type == output.type:
        return None
    node.need(table.type == "INT8" and output.type == "FLOAT32", "no kernel for these types", table.type)
    return scale_of(table), zero_of(table)


def _embedding(parameters: tuple[float, int] | None, inputs: Inputs, outputs: Outputs) -> None:
    rows = given(inputs, 1)[given(inputs)]
    if parameters is not None:
        rows = (rows.astype(np.float32) - np.float32(parameters[1])) * np.float32(parameters[0])
    outputs[0][...] = rows


EMBEDDING_LOOKUP = Kernel(_embedding_parameters, _embedding)


# -- blocks -----------------------------------------------------------------------------------------------------------


def _block(node: Node) -> int:
    return int(node.option("block_size"))


def _to_depth(size: int, x: Array) -> Array:
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // size, size, w // size, size, c)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // size, w // size, size * size * c)


def _to_space(size: int, x: Array) -> Array:
    n, h, w, c = x.shape
    blocks = x.reshape(n, h, w, size, size, c // (size * size))
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * size, w * size, c // (size * size))


SPACE_TO_DEPTH, DEPTH_TO_SPACE = moves(_block, _to_depth), moves(_block, _to_space)


def _block_parameters(node: Node) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...], int]:
    edges = node.numbers(2)
    fill = zero_of(node.output()) if node.input(0).type == "INT8" else 0
    return node.numbers(1), tuple(zip(edges[::2], edges[1::2], strict=True)), fill


def _to_batch(own: tuple[tuple[int, ...], tuple[tuple[int, int], ...], int], x: Array) -> Array:
    blocks, around, fill = own
    count = len(blocks)
    padded = np.pad(x, ((0, 0), *around, *((0, 0),) * (x.ndim - 1 - count)), constant_values=fill)
    shape = [padded.shape[0]]
    for size, block in zip(padded.shape[1:], blocks, strict=False):
        shape += [size // block, block]
    inner = padded.shape[1 + count :]
    order = [
        *range(2, 2 * count + 1, 2),
        0,
        *range(1, 2 * count + 1, 2),
        *range(2 * count + 1, 2 * count + 1 + len(inner)),
    ]
    made = padded.reshape(*shape, *inner).transpose(order)
    return made.reshape(-1, *(size // block for size, block in zip(padded.shape[1:], blocks, strict=False)), *inner)


def _from_batch(own: tuple[tuple[int, ...], tuple[tuple[int, int], ...], int], x: Array) -> Array:
    blocks, crops, _ = own
    count = len(blocks)
    inner = x.shape[1 + count :]
    batch = x.shape[0] // int(np.prod(blocks))
    order = [count]
    for k in range(count):
        order += [count + 1 + k, k]
    order += range(2 * count + 1, 2 * count + 1 + len(inner))
    made = x.reshape(*blocks, batch, *x.shape[1 : 1 + count], *inner).transpose(order)
    made = made.reshape(batch, *(size * block for size, block in zip(x.shape[1:], blocks, strict=False)), *inner)
    return made[(slice(None), *(slice(a, made.shape[1 + k] - b) for k, (a, b) in enumerate(crops)))]


SPACE_TO_BATCH_ND, BATCH_TO_SPACE_ND = moves(_block_parameters, _to_batch), moves(_block_parameters, _from_batch)


# -- shapes -----------------------------------------------------------------------------------------------------------


def _fills(value: Callable[[Inputs, Outputs], Any]) -> Kernel:
    """Make a kernel that writes one value, which is broadcast."""

    def whole(_: None, inputs: Inputs, outputs: Outputs) -> None:
        outputs[0][...] = value(inputs, outputs)

    return Kernel(nothing, whole)


def _broadcast_shapes(inputs: Inputs, _: Outputs) -> Any:
    return np.broadcast_shapes(tuple(given(inputs)), tuple(given(inputs, 1)))


BROADCAST_TO = _fills(lambda inputs, _: given(inputs))
BROADCAST_ARGS = _fills(_broadcast_shapes)
FILL = _fills(lambda inputs, _: given(inputs, 1).reshape(()))
SHAPE = _fills(lambda inputs, _: given(inputs).shape)
ZEROS_LIKE = _fills(lambda inputs, _: 0)  # noqa: ARG005
REVERSE_V2 = moves(lambda node: node.numbers(1), lambda axes, x: np.flip(x, axes))
