"""The arena problem worked out by hand, and every planner against the independent validator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import MemfitError
from memfit.packing import PLANNERS, Alias, Buffer, Problem, pack, violations
from memfit.packing.exact import Budget, Portfolio
from memfit.packing.search import INFEASIBLE, SOLVED
from memfit.packing.sections import sections


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


INTERLOCKED = problem((3, 7, 1), (2, 3, 2), (0, 4, 1), (0, 2, 3), (5, 7, 3), (2, 5, 1), (4, 5, 2))

# Worked by hand. Time to the right, addresses upwards.


def test_a_residual_block_at_the_bound() -> None:
    """`x` stays while `a` and `b` come and go: 8 + 4 + 2 are live at once, and 14 bytes suffice."""
    given = problem((0, 4, 8), (1, 3, 4), (2, 4, 2), (3, 5, 6))
    assert given.lower_bound == 16  # x 8, b 2 and the last 6 in [3, 4)
    assert pack(given).height == 16


def test_a_height_above_the_live_sum_is_proved() -> None:
    """Seven buffers of which never more than 4 bytes live at once, and which need 5.

    In 4 bytes, [0, 2) is filled by 3 and `c`, [5, 7) by 3 and `a`: each of these two lies at the bottom or the top, and
    as both live in [3, 4), say `c` at 0 and `a` at 3. Then `f` of [2, 5) can only be at 1 or 2, and at 1 if the 2 of
    [2, 3) is to fit above it; but the 2 of [4, 5) has then only 0 and 2 left, which are not together.
    """
    given = INTERLOCKED
    assert given.lower_bound == 4
    packing = pack(given)
    assert packing.optimal
    assert packing.height == brute(given) == packing.lower_bound == 5


def test_alignment_and_the_bound_it_gives() -> None:
    """Offsets 0 and 16: the lower buffer takes 16 bytes, whichever it is; the upper one its own 5."""
    given = Problem((Buffer("a", 10, [(0, 1)]), Buffer("b", 5, [(0, 1)])), alignment=16)
    assert given.lower_bound == 21
    assert pack(given).height == 21
    assert brute(given) == 21


def test_mixed_alignments() -> None:
    given = Problem((Buffer("a", 3, [(0, 1)], alignment=4), Buffer("b", 3, [(0, 1)]), Buffer("c", 2, [(0, 1)])))
    assert pack(given).height == 8


def test_a_buffer_alive_twice_keeps_its_place() -> None:
    """`a` is away in [2, 4): `b` may use its bytes then, but not `c`, which outlasts the pause."""
    given = Problem((Buffer("a", 4, [(0, 2), (4, 6)]), Buffer("b", 4, [(2, 4)]), Buffer("c", 2, [(3, 5)])))
    packing = pack(given)
    assert packing.height == 6
    assert packing.offsets["c"] >= 4


def test_linked_rectangles_let_output_rows_follow_input_rows() -> None:
    """Streaming by rows: input rows die from the bottom, output rows are born there; one byte more than the input."""
    rows = 4
    source = Buffer("in", rows, [(0, row + 1, row, 1) for row in range(rows)])
    result = Buffer("out", rows, [(row, rows + 1, row, 1) for row in range(rows)])
    packing = pack(Problem((source, result)))
    assert packing.height == packing.lower_bound == rows + 1
    assert packing.offsets["in"] - packing.offsets["out"] == 1


def test_two_linked_rectangles_that_interlock() -> None:
    """Each lies below the other at one time: neither can be placed on a closed skyline alone."""
    one = Buffer("one", 10, [(0, 1, 0, 5), (1, 2, 5, 5)])
    two = Buffer("two", 10, [(0, 1, 5, 5), (1, 2, 0, 5)])
    packing = pack(Problem((one, two)))
    assert packing.height == 10
    assert packing.optimal


def test_fixed_offsets_stay() -> None:
    given = Problem((Buffer("a", 4, [(0, 3)], offset=4), Buffer("b", 4, [(0, 1)]), Buffer("c", 6, [(1, 3)])))
    packing = pack(given)
    assert packing.offsets == {"a": 4, "b": 0, "c": 8}
    assert packing.optimal


def test_aliases_move_together() -> None:
    """An output two bytes below its input, as in a sliding window: ten bytes hold both."""
    given = Problem(
        (Buffer("in", 8, [(0, 2)]), Buffer("out", 8, [(1, 3)]), Buffer("c", 3, [(0, 3)])), (Alias("out", "in", -2),)
    )
    packing = pack(given)
    assert packing.height == 13
    assert packing.offsets["in"] - packing.offsets["out"] == 2


def test_nothing_to_place() -> None:
    packing = pack(Problem((Buffer("empty", 0, [(0, 3)]), Buffer("never", 4, [(2, 2)]))))
    assert (packing.height, packing.lower_bound, packing.optimal, packing.gap) == (0, 0, True, 0.0)
    assert packing.offsets == {"empty": 0, "never": 0}
    assert pack(Problem(())).height == 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Buffer("a", -1, [(0, 1)]), "size is less than 0"),
        (lambda: Buffer("a", 1, [(3, 1)]), "ends before it begins"),
        (lambda: Buffer("a", 1, [(0, 1)], alignment=0), "alignment is less than 1"),
        (lambda: Buffer("a", 1, [(0, 1)], alignment=4, offset=2), "contradicts its alignment"),
        (lambda: Buffer("a", 4, [(0, 1, 2, 3)]), "outside its buffer"),
        (lambda: problem((0, 1, 1), capacity=-1), "capacity is less than 0"),
        (lambda: problem((0, 1, 1), alignment=0), "alignment is less than 1"),
        (lambda: Problem((Buffer("a", 1, []), Buffer("a", 1, []))), "same name"),
        (lambda: Problem((Buffer("a", 1, []),), (Alias("a", "b"),)), "does not have"),
        (
            lambda: Problem((Buffer("a", 1, []), Buffer("b", 1, [])), (Alias("a", "b"), Alias("b", "a", 1))),
            "aliases contradict each other",
        ),
        (
            lambda: Problem((Buffer("a", 1, []), Buffer("b", 1, [])), (Alias("a", "b", 2),), 4),
            "contradicts an alignment",
        ),
        (
            lambda: Problem((Buffer("a", 1, [], offset=0), Buffer("b", 1, [], offset=0)), (Alias("a", "b", 2),)),
            "fixed offsets contradict",
        ),
        (lambda: pack(Problem((Buffer("a", 2, [(0, 2)], offset=0), Buffer("b", 2, [(1, 3)], offset=1)))), "overlap"),
        (lambda: pack(problem((0, 1, 1)), "sise"), "no such planner"),
    ],
)
def test_problems_that_cannot_be(make: Callable[[], object], what: str) -> None:
    with pytest.raises(MemfitError) as caught:
        make()
    assert what in caught.value.what
    assert caught.value.todo


# The validator finds each fault by name.


@pytest.mark.parametrize(
    ("offsets", "rule"),
    [
        ({"a": 0, "b": 4}, None),
        ({"a": 0}, "missing"),
        ({"a": 0, "b": 4, "c": 0}, "unknown"),
        ({"a": -4, "b": 4}, "negative"),
        ({"a": 0, "b": 6}, "alignment"),
        ({"a": 4, "b": 4}, "fixed"),
        ({"a": 0, "b": 0}, "overlap"),
        ({"a": 0, "b": 8}, "capacity"),
    ],
)
def test_the_validator_names_the_rule(offsets: dict[str, int], rule: str | None) -> None:
    given = Problem((Buffer("a", 4, [(0, 2)], offset=0), Buffer("b", 4, [(1, 3)], alignment=4)))
    found = {violation.rule for violation in violations(given, offsets, capacity=10)}
    assert (rule in found) if rule else not found


def test_the_validator_checks_distances_and_height() -> None:
    given = Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 4, [(1, 3)])), (Alias("b", "a", 1),))
    assert [violation.rule for violation in violations(given, {"a": 0, "b": 2}, height=7)] == ["alias", "height"]
    assert violations(given, {"a": 0, "b": 1}, height=5) == []


def test_a_linked_buffer_may_have_to_wait_for_another_that_can_still_rise() -> None:
    """Found by fuzzing: the second lies on the fourth, whose own head is too low to carry it at first."""
    rows: list[list[tuple[int, ...]]] = [
        [(4, 6, 0, 2)],
        [(1, 3, 2, 1), (0, 1, 0, 1)],
        [(4, 5, 1, 1), (2, 3, 0, 1)],
        [(2, 3, 1, 1), (1, 3, 0, 2)],
    ]
    given = Problem(tuple(Buffer(str(n), 3, spans) for n, spans in enumerate(rows)))
    view = sections(given.blocks)
    assert Portfolio(view, 4).run(Budget(1000)) == SOLVED
    assert Portfolio(view, 3).run(Budget(1000)) == INFEASIBLE


def test_rounding_of_the_topmost_does_not_hide_that_it_sticks_out() -> None:
    """Found by fuzzing: the only free buffer is too high for the capacity from the start."""
    given = Problem((Buffer("a", 1, [(0, 3)], offset=0), Buffer("b", 4, [(2, 3, 2, 2), (4, 5, 0, 2)])), alignment=2)
    assert Portfolio(sections(given.blocks), 3).run(Budget(1000)) == INFEASIBLE
    assert pack(given).height == 4
