"""The search for the largest batch: right for all that grows, and by few calls where it grows nearly straight."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memfit.training.search import LIMIT, largest

GIB = 1 << 30


class Counted:
    """A function of the batch that counts its calls, and refuses to be asked twice."""

    def __init__(self, needs: Callable[[int], int | None]) -> None:
        self.needs = needs
        self.asked: list[int] = []

    def __call__(self, batch: int) -> int | None:
        assert batch >= 1
        assert batch not in self.asked
        self.asked.append(batch)
        return self.needs(batch)


def truth(needs: Callable[[int], int | None], room: int, most: int) -> int:
    """Try every batch."""
    return max((b for b in range(1, most) if (value := needs(b)) is not None and value <= room), default=0)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=200),
    st.integers(0, 2000),
    st.integers(1, 300),
)
@example([0] * 10 + [50], 0, 1)
@example([7], 6, 1)
def test_steps_of_any_height(steps: list[int], room: int, start: int) -> None:
    heights = list(accumulate(steps))

    def needs(batch: int) -> int:
        return heights[batch - 1] if batch <= len(heights) else heights[-1] + 10_000 * (batch - len(heights))

    counted = Counted(needs)
    found = largest(counted, room, start)
    assert found == truth(needs, room, len(heights) + 2)
    assert found == 0 or found in counted.asked
    assert found + 1 in counted.asked  # that it does not fit was seen, too


@settings(deadline=None)
@given(
    offset=st.integers(0, 4 * GIB),
    each=st.integers(2 << 20, GIB),
    room=st.integers(0, 100 * GIB),
    start=st.integers(1, 1024),
    step=st.sampled_from([1, 512, 2 << 20, 20 << 20]),
)
def test_few_calls_for_needs_that_are_nearly_straight(offset: int, each: int, room: int, start: int, step: int) -> None:
    """As an allocator's needs are: straight, rounded up to segments."""

    def needs(batch: int) -> int:
        return -(-(offset + each * batch) // step) * step

    counted = Counted(needs)
    found = largest(counted, room, start)
    if found < LIMIT - 1:
        assert needs(found + 1) > room
        assert found == 0 or needs(found) <= room
    assert len(counted.asked) < 16


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(1, 1000), st.integers(1, 200), st.integers(1, 64))
def test_where_a_kernel_changes_the_slope_does(knee: int, first: int, second: int, start: int) -> None:
    """Slope `first` up to the knee, another slope behind it, and a jump between them."""

    def needs(batch: int) -> int:
        return first * min(batch, knee) + max(batch - knee, 0) * second + (500 if batch > knee else 0)

    for room in (first, first * knee, first * knee + 499, first * knee + 500 + second, 50_000):
        found = largest(needs, room, start)
        assert found == 0 or needs(found) <= room
        assert needs(found + 1) > room


@pytest.mark.parametrize("start", [1, 2, 3, 32, 1000])
def test_a_model_that_does_not_train_on_one_sample(start: int) -> None:
    """Batch norm refuses a batch of 1 of single values."""
    assert largest(lambda batch: None if batch == 1 else 10 * batch, 105, start) == 10
    assert largest(lambda batch: None if batch == 1 else 10 * batch, 20, start) == 2
    assert largest(lambda batch: None if batch == 1 else 10 * batch, 19, start) == 0


@pytest.mark.parametrize("start", [1, 7, 4096])
@pytest.mark.parametrize("room", [-5, 0, 99])
def test_nothing_fits(start: int, room: int) -> None:
    counted = Counted(lambda batch: 100 * batch)
    assert largest(counted, room, start) == 0
    assert 1 in counted.asked
    assert len(counted.asked) < 16


def test_needs_that_never_grow_end_at_the_limit() -> None:
    counted = Counted(lambda _: 100)
    assert LIMIT - 1 <= largest(counted, 100, 8) <= LIMIT
    assert len(counted.asked) < 40


def test_a_start_beyond_the_limit_counts() -> None:
    assert largest(lambda _: 100, 100, 2 * LIMIT) == 2 * LIMIT
    assert largest(lambda batch: batch, LIMIT - 9, 2 * LIMIT) == LIMIT - 9


def test_the_first_try_is_the_batch_that_was_asked_about() -> None:
    counted = Counted(lambda batch: 10 * batch)
    largest(counted, 1000, 32)
    assert counted.asked[0] == 32
    assert counted.asked[-2:] in ([100, 101], [101, 100], [102, 101])
