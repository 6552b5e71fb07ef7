"""The arena problem worked out by hand, and every planner against the independent validator."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.packing import PLANNERS, Buffer, Problem, pack, violations


def problem(*rows: tuple[int, int, int], **options: int) -> Problem:
    """Make a problem of (lower, upper, size)."""
    return Problem(tuple(Buffer(str(n), size, [(a, b)]) for n, (a, b, size) in enumerate(rows)), **options)


@st.composite
def problems(draw: st.DrawFn, *, most: int = 9, plain: bool = False) -> Problem:
    common = 1 if plain else draw(st.sampled_from([1, 1, 2]))
    fixed = set() if plain else draw(st.sets(st.integers(0, most - 1), max_size=2))
    high = 0
    buffers = []
    for number in range(draw(st.integers(1, most))):
        lower, size = draw(st.integers(0, 8)), draw(st.integers(0, 9))
        spans: list[tuple[int, ...]] = [(lower, lower + draw(st.integers(0, 5)))]
        alignment, offset = 1, None
        if not plain:
            alignment = draw(st.sampled_from([1, 1, 1, 2, 4]))
            for _ in range(draw(st.integers(0, 2)) if draw(st.booleans()) else 0):
                begin, start = draw(st.integers(0, 10)), draw(st.integers(0, size))
                spans.append((begin, begin + draw(st.integers(0, 4)), start, draw(st.integers(0, size - start))))
            if draw(st.booleans()):
                start = draw(st.integers(0, size))
                spans[0] = (*spans[0], start, size - start)
            if number in fixed:
                step = math.lcm(alignment, common)
                offset = (-(-high // step) + draw(st.integers(0, 2))) * step
                high = offset + size
        buffers.append(Buffer(f"b{number}", size, spans, alignment=alignment, offset=offset))
    return Problem(tuple(buffers), alignment=common)


@pytest.mark.parametrize("planner", PLANNERS)
@settings(max_examples=60, deadline=None)
@given(given=problems())
def test_every_planner_makes_valid_packings(planner: str, given: Problem) -> None:
    packing = pack(given, planner, nodes=3000)
    assert violations(given, packing.offsets, height=packing.height) == []
    assert given.lower_bound <= packing.lower_bound <= packing.height


def brute(given: Problem) -> int:
    """Find the lowest height by trying every offset of every block."""
    blocks = given.blocks

    def clash(one: int, at: int, other: int, base: int) -> bool:
        return any(
            a.lower < b.upper and b.lower < a.upper and at + a.low < base + b.high and base + b.low < at + a.high
            for a in blocks[one].parts
            for b in blocks[other].parts
        )

    def fits(capacity: int, placed: list[int]) -> bool:
        number = len(placed)
        if number == len(blocks):
            return True
        block = blocks[number]
        choices = range(block.least, capacity - block.high + 1, block.alignment)
        return any(
            not any(clash(number, at, other, base) for other, base in enumerate(placed))
            and fits(capacity, [*placed, at])
            for at in ([block.offset] if block.offset is not None else choices)
            if at + block.high <= capacity
        )

    capacity = 0
    while not fits(capacity, []):
        capacity += 1
    return capacity


@settings(max_examples=150, deadline=None)
@given(given=problems(most=5))
def test_the_exact_planner_equals_brute_force(given: Problem) -> None:
    packing = pack(given)
    best = brute(given)
    if all(len(block.occupied(time)) <= 1 for block in given.blocks for time in range(20)):
        assert packing.optimal
        assert packing.height == best
    else:
        assert packing.lower_bound <= best <= packing.height
