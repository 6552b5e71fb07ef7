"""Hard problems with a known answer, for tests and benchmarks: a rectangle of time by address, cut into buffers."""

from __future__ import annotations

import random

from memfit.packing.buffers import Buffer
from memfit.packing.problem import Problem


def planted(count: int, seed: int, *, height: int = 1024, drop: float = 0.0, wide: float = 0.5) -> Problem:
    """Cut `[0, 1000)` by `[0, height)` into buffers: they fit `height` bytes, and with nothing dropped not one less.

    Cuts go through a piece in time or in address, or leave five pieces around a pinwheel, which no straight cut can
    part; that keeps first-fit orders from finding the packing.

    >>> planted(120, seed=1).lower_bound
    1024

    Args:
        count: pieces to cut, about.
        seed: the same one gives the same problem.
        height: of the rectangle, in bytes.
        drop: share of the pieces left out, which leaves some room.
        wide: how many of the straight cuts part addresses, not times; from 0 to 1.
    """
    chance = random.Random(seed)
    pieces = [(0, 1000, 0, height)]
    while len(pieces) < count:
        some = chance.sample(range(len(pieces)), min(len(pieces), 3))
        number = max(some, key=lambda n: (pieces[n][1] - pieces[n][0]) * (pieces[n][3] - pieces[n][2]))
        lower, upper, low, high = pieces[number]
        if min(upper - lower, high - low) < 4:
            continue
        if chance.random() < 0.3:
            left, right = sorted(chance.sample(range(lower + 1, upper), 2))
            under, over = sorted(chance.sample(range(low + 1, high), 2))
            pieces[number] = (left, right, under, over)
            pieces += [(lower, right, low, under), (right, upper, low, over)]
            pieces += [(left, upper, over, high), (lower, left, under, high)]
        elif chance.random() < wide:
            cut = chance.randrange(low + 1, high)
            pieces[number] = (lower, upper, low, cut)
            pieces.append((lower, upper, cut, high))
        else:
            cut = chance.randrange(lower + 1, upper)
            pieces[number] = (lower, cut, low, high)
            pieces.append((cut, upper, low, high))
    chance.shuffle(pieces)
    kept = [piece for piece in pieces if chance.random() >= drop]
    return Problem(tuple(Buffer(f"b{n}", piece[3] - piece[2], [piece[:2]]) for n, piece in enumerate(kept)))


def network(count: int, seed: int, *, reach: float = 3.0) -> Problem:
    """Make lifetimes like a network's: each operation makes one tensor, which lives until a later one has read it.

    Args:
        count: tensors.
        seed: the same one gives the same problem.
        reach: operations for which a tensor lives beyond the next one, on average.
    """
    chance = random.Random(seed)
    channels, squares = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96), (1, 1, 1, 7, 14, 28)
    buffers = []
    for number in range(count):
        size = 16 * chance.choice(channels) * chance.choice(squares)
        last = min(count, number + 1 + int(chance.expovariate(1 / reach)))
        buffers.append(Buffer(f"t{number}", size, [(number, last + 1)], alignment=16))
    return Problem(tuple(buffers))
