"""Local search: an order of blocks, placed first fit, and changed where that lowers the arena."""

from __future__ import annotations

import random
from collections.abc import Sequence

from memfit.packing.blocks import Block, lower_bound
from memfit.packing.greedy import Neighbours, by_area, by_duration, by_size, height, place

TRIES = 400
"""Orders tried, at most."""

WORK = 2_000_000
"""Pairs of blocks alive together that all orders may look at; with many pairs, fewer orders are tried."""


def local_search(blocks: Sequence[Block]) -> list[int]:
    """Start from the best greedy order and move a block that reaches the top to an earlier place, again and again.

    An order is kept when the arena does not grow. The same choices are made on every run. Ends at the lower bound, or
    after 400 orders (fewer in problems with many neighbours).

    Returns:
        The offset of each block, in bytes.
    """
    if not blocks:
        return []
    near, chance = Neighbours(blocks), random.Random(0)
    bound = lower_bound(blocks)
    ways = [(order, place(near, order)) for order in (by_size(blocks), by_area(blocks), by_duration(blocks))]
    order, offsets = min(ways, key=lambda way: height(blocks, way[1]))
    best = height(blocks, offsets)
    pairs = 1 + sum(map(len, near.ranges))
    for _ in range(max(20, min(TRIES, WORK // pairs))):
        if best <= bound:
            break
        top = [number for number in order if offsets[number] + blocks[number].high == best]
        moved = chance.choice(top)
        at = order.index(moved)
        changed = [number for number in order if number != moved]
        changed.insert(chance.randrange(at) if at else 0, moved)
        if chance.random() < 0.5:
            one, other = chance.randrange(len(order)), chance.randrange(len(order))
            changed[one], changed[other] = changed[other], changed[one]
        found = place(near, changed)
        now = height(blocks, found)
        if now <= best:
            order, offsets, best = changed, found, now
    return offsets
