"""The largest batch that fits, found by few captures and confirmed by one."""

from __future__ import annotations

from collections.abc import Callable

LIMIT = 1 << 20
"""No larger batch is tried."""


def largest(needs: Callable[[int], int | None], room: int, start: int) -> int:
    """Find the largest batch whose need is within the room; 0 where not even the smallest is.

    Needs grow with the batch nearly in proportion, so the next batch to try is where a line through two known needs
    reaches the room; each try narrows the bracket, and the end is confirmed: the batch fits, and the next one does not.

    Args:
        needs: bytes that a batch needs; None where the model does not take that batch, such as 1 in training.
        room: bytes that there are.
        start: a batch to begin with.

    >>> largest(lambda batch: 100 + 7 * batch, 1000, 32)
    128
    """
    found: dict[int, int | None] = {}

    def need(batch: int) -> int | None:
        if batch not in found:
            found[batch] = needs(batch)
        return found[batch]

    low, high = 0, LIMIT  # low fits (0: nothing is known to), high does not
    batch, margin, fitted, halving = max(start, 1), 1, None, False
    while True:
        value = need(batch)
        fits = value is not None and value <= room
        if fits:
            low = batch
        elif value is None and batch <= 2:
            low = max(low, batch)  # too small for the model; a larger one may do
        else:
            high = batch
        if high - low <= 1:
            break
        # Needs in steps, as segments make them, leave the line short of the end: go past it by a margin that doubles,
        # and once the end lies between two tries so near each other, halve.
        halving = halving or (fitted is not None and fits is not fitted and high - low <= 2 * margin)
        margin = 2 * margin if fits is fitted else 1
        fitted = fits
        if halving:
            batch = (low + high) // 2
        else:
            guess = _next(found, room, low, high)
            batch = min(max(guess, low + margin), high - 1) if fits else max(min(guess, high - margin), low + 1)
    return low if low and (value := need(low)) is not None and value <= room else 0


def _next(found: dict[int, int | None], room: int, low: int, high: int) -> int:
    """Choose the next batch between the bounds: on the line through the nearest known points, or by doubling."""
    known = sorted((batch, value) for batch, value in found.items() if value is not None)
    below = [point for point in known if point[0] <= low]
    points = [*below[-1:], *(point for point in known if point[0] >= high)][:2]
    if len(points) < 2:
        points = below[-2:]
    if len(points) == 2:
        (b0, n0), (b1, n1) = points
        if n1 > n0:
            return min(max(b0 + (room - n0) * (b1 - b0) // (n1 - n0), low + 1), high - 1)
    return min(max(low, 1) * 2, high - 1) if high == LIMIT else max((low + high) // 2, low + 1)
