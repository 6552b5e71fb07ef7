"""TensorFlow Lite Micro's own planner, step for step: `GreedyMemoryPlanner`.

Source: https://github.com/tensorflow/tflite-micro/blob/17bebc092249c5c3e1ede3d1590d85488fa802e0/tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc
(`CalculateOffsetsIfNeeded`); sizes are rounded up before, in `micro_allocation_info.cc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from memfit.packing.blocks import Block

ALIGNMENT = 16
"""`MicroArenaBufferAlignment()` in bytes: micro_arena_constants.h of the commit above."""


def tflm(blocks: Sequence[Block]) -> list[int]:
    """Place blocks as TensorFlow Lite Micro's greedy planner does.

    The rule: buffers with an offline offset come first, in the order they were added, and are not checked. The others
    follow by size, largest first, of equals the one added last. Each goes to the lowest gap that holds it, between the
    buffers that are in use at any of its times; first and last use are both included, as in `[lower, upper - 1]`.

    Sizes are rounded up to 16 bytes, but the height of a packing is measured with what was given: to get the runtime's
    head, give sizes that are multiples of 16. The runtime knows no linked rectangles and no aliases: a block takes part
    as one rectangle around all that it holds.

    Args:
        blocks: in the order in which the runtime adds its buffers: tensors, then scratch requests.

    Returns:
        The offset of each block, in bytes.
    """
    step = lcm(ALIGNMENT, *(block.alignment for block in blocks))
    sizes = [-(-(block.high - block.low) // step) * step for block in blocks]
    used = [(block.lower, block.upper - 1) for block in blocks]
    offline = [number for number, block in enumerate(blocks) if block.offset is not None]
    online = [number for number, block in enumerate(blocks) if block.offset is None]
    placed: list[tuple[int, int]] = []  # (address, block), by address; of equal addresses the one placed first
    offsets = [0] * len(blocks)
    for number in (*offline, *sorted(online, key=lambda number: (-sizes[number], -number))):
        block = blocks[number]
        if block.offset is not None:
            offsets[number] = block.offset
        else:
            first, last = used[number]
            busy = [(at, i) for at, i in placed if used[i][0] <= last and first <= used[i][1]]
            offsets[number] = _first_gap(block, sizes[number], [(at, at + sizes[i]) for at, i in busy])
        address = offsets[number] + block.low
        place = sum(at <= address for at, _ in placed)
        placed.insert(place, (address, number))
    return offsets


def _first_gap(block: Block, size: int, busy: list[tuple[int, int]]) -> int:
    """Give the block's offset in the lowest gap of `size` bytes between busy ranges, given in order of their start."""
    offset = block.least
    for start, end in busy:
        if start - (offset + block.low) >= size:
            break
        if end > offset + block.low:
            offset = max(offset, -(-(end - block.low) // block.alignment) * block.alignment)
    return offset
