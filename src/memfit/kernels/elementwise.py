"""Kernels that compute each element of the output from the elements at its place: how they are cut into regions.

Inputs may be broadcast: one row, one column, or fewer dimensions than the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.kernel import Array, Held, Inputs, Kernel, Node, Outputs, Region, area_of

Compute = Callable[[Any, list[Array]], Array]
"""(parameters, inputs that broadcast against each other) → the output's values, in a type that holds them."""


@dataclass(frozen=True)
class Elementwise:
    """Parameters of an element-wise operator."""

    areas: tuple[Region | None, ...]
    """The whole area of each input; None for those without one."""
    own: Any
    """The operator's own parameters."""


def _part_of(area: Region, region: Region) -> Region:
    """Give the region of an input for a region of the output: all of it in a direction that is broadcast."""
    top, bottom = (region.top, region.bottom) if area.height != 1 else (0, 1)
    left, right = (region.left, region.right) if area.width != 1 else (0, 1)
    return Region(top, bottom, left, right)


def _needs(parameters: Elementwise, region: Region) -> Held:
    return tuple(None if area is None else _part_of(area, region) for area in parameters.areas)


def elementwise(parameters: Callable[[Node], Any], compute: Compute) -> Kernel:
    """Make the kernel of an element-wise operator, from what it prepares and what it computes."""

    def prepare(node: Node) -> Elementwise:
        tensors = [node.optional(position) for position in range(len(node.operator.inputs))]
        return Elementwise(tuple(area_of(tensor) for tensor in tensors), parameters(node))

    def whole(parameters: Elementwise, inputs: Inputs, outputs: Outputs) -> None:
        outputs[0][...] = compute(parameters.own, [x for x in inputs if x is not None])

    def part(parameters: Elementwise, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
        given = []
        for x, place, area in zip(inputs, held, parameters.areas, strict=True):
            if x is None:
                continue
            image = x.reshape((1,) * (4 - x.ndim) + x.shape)
            everything = area or Region(0, image.shape[1], 0, image.shape[2])
            given.append(_part_of(everything, region).of(image, place or everything))
        outputs[0][...] = compute(parameters.own, given)

    return Kernel(prepare, whole, _needs, part)


# -- functions of one 8-bit number, as tables --------------------------------------------------------------------------

INT8_VALUES = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
"""The 8-bit integers in the order of their bit patterns: 0 … 127, -128 … -1."""


def lookup(table: Array, x: Array) -> Array:
    """Look 8-bit integers up in a table of 256 values in the order of `INT8_VALUES`.

    >>> lookup(INT8_VALUES * 2, np.array([-128, -1, 5], np.int8)).tolist()
    [-256, -2, 10]
    """
    found: Array = table[x.view(np.uint8)]
    return found
