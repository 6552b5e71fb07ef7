"""TensorFlow Lite Micro's greedy planner, against its rule written down a second time, byte by byte of the arena."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.packing import Buffer, Problem, pack


def slow_tflm(rows: list[tuple[int, int, int, int]]) -> list[int]:
    """Plan (size, first use, last use, offline offset or -1) as the runtime documents it; both uses are included.

    Written from the rule, not from the planner under test: every offset is tried in turn, 16 bytes at a time.
    """
    order = [n for n, row in enumerate(rows) if row[3] >= 0]
    online = [n for n, row in enumerate(rows) if row[3] < 0]
    while online:
        chosen = online[0]
        for n in online:
            if rows[n][0] >= rows[chosen][0]:  # of equal sizes the one added last
                chosen = n
        online.remove(chosen)
        order.append(chosen)
    offsets: dict[int, int] = {}
    for n in order:
        size, first, last, offline = rows[n]
        if offline >= 0:
            offsets[n] = offline
            continue
        at = 0
        while any(
            not (rows[m][2] < first or last < rows[m][1]) and at < base + rows[m][0] and base < at + size
            for m, base in offsets.items()
        ):
            at += 16
        offsets[n] = at
    return [offsets[n] for n in range(len(rows))]


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    rows, base = [], 0
    for _ in range(draw(st.integers(1, 14))):
        size, first = 16 * draw(st.integers(1, 6)), draw(st.integers(0, 9))
        offline = -1
        if draw(st.integers(0, 4)) == 0:
            offline = base + 16 * draw(st.integers(0, 3))
            base = offline + size
        rows.append((size, first, first + draw(st.integers(0, 5)), offline))
    return rows


def planned(rows: list[tuple[int, int, int, int]]) -> list[int]:
    buffers = tuple(
        Buffer(str(n), size, [(first, last + 1)], offset=None if offline < 0 else offline)
        for n, (size, first, last, offline) in enumerate(rows)
    )
    return list(pack(Problem(buffers), "tflm").offsets.values())


@settings(max_examples=400, deadline=None)
@given(rows=requests())
def test_replica_equals_the_rule_written_twice(rows: list[tuple[int, int, int, int]]) -> None:
    assert planned(rows) == slow_tflm(rows)


def test_ties_go_to_the_buffer_added_last() -> None:
    assert planned([(32, 0, 1, -1), (32, 0, 1, -1), (32, 0, 1, -1)]) == [64, 32, 0]


def test_both_ends_of_a_use_count() -> None:
    assert planned([(32, 0, 2, -1), (16, 2, 3, -1)]) == [0, 32]
    assert planned([(32, 0, 2, -1), (16, 3, 3, -1)]) == [0, 0]


def test_offline_offsets_come_first_and_leave_gaps_to_fill() -> None:
    assert planned([(48, 0, 3, -1), (16, 0, 3, 32), (32, 0, 3, -1)]) == [48, 32, 0]


def test_sizes_are_rounded_up_to_16() -> None:
    assert planned([(20, 0, 0, -1), (10, 0, 0, -1)]) == [0, 32]
