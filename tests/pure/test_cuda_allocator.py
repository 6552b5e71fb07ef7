"""The simulated CUDA caching allocator: traces worked out by hand, a second implementation, and PyTorch's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_allocator import Naive, Span

from memfit.errors import InternalError
from memfit.memory.cuda.allocator import Block, CachingAllocator, OutOfMemory, SegmentState, Settings

MIB = 1 << 20
TRACES = Path(__file__).parents[1] / "expected" / "cuda_allocator_traces.txt"


def take(allocator: CachingAllocator, *sizes: int) -> list[Block]:
    """Allocate sizes above 0."""
    blocks = [allocator.malloc(size) for size in sizes]
    found = [block for block in blocks if block is not None]
    assert len(found) == len(sizes)
    return found


def mib(*values: float) -> tuple[int, ...]:
    return tuple(int(value * MIB) for value in values)


def layout(allocator: CachingAllocator) -> list[list[int]]:
    """Sizes of each segment's blocks in MiB, free ones negative."""
    return [[b.nbytes // MIB * (1 if b.allocated else -1) for b in s.blocks] for s in allocator.segments()]


def figures(allocator: CachingAllocator) -> tuple[int, int]:
    return allocator.allocated_bytes, allocator.reserved_bytes


class TestSegments:
    def test_small_requests_share_segments_of_2_mib(self) -> None:
        a = CachingAllocator()
        take(a, *[100] * 4096)  # 4096 x 512 = 2 MiB
        assert figures(a) == mib(2, 2)
        take(a, 1)
        assert figures(a) == (2 * MIB + 512, 4 * MIB)

    def test_1_mib_is_the_last_small_size(self) -> None:
        a = CachingAllocator()
        take(a, MIB)
        assert figures(a) == mib(1, 2)
        take(a, MIB + 1)  # 1 MiB + 512 after rounding, so the large pool and its 20 MiB segment
        assert figures(a) == (2 * MIB + 512, 22 * MIB)
        assert [s.pool for s in a.segments()] == ["small", "large"]

    def test_from_1_to_10_mib_share_segments_of_20_mib(self) -> None:
        a = CachingAllocator()
        take(a, *mib(9, 9, 2))  # 20 MiB to the byte
        assert figures(a) == mib(20, 20)
        take(a, 3 * MIB)
        assert figures(a) == mib(23, 40)
        assert layout(a) == [[9, 9, 2], [3, -17]]

    @pytest.mark.parametrize(
        ("nbytes", "reserved"),
        [
            (10 * MIB - 512, 20 * MIB),  # under 10 MiB: shares
            (10 * MIB - 511, 10 * MIB),  # rounds to 10 MiB first, and then has its own segment
            (10 * MIB, 10 * MIB),
            (10 * MIB + 1, 12 * MIB),  # 10 MiB + 512, in steps of 2 MiB
            (11_000_000, 12 * MIB),  # 11,000,320 = 5.25 x 2 MiB, so 6
        ],
    )
    def test_from_10_mib_each_has_its_own_in_steps_of_2_mib(self, nbytes: int, reserved: int) -> None:
        a = CachingAllocator()
        take(a, nbytes)
        assert a.reserved_bytes == reserved

    def test_segment_of_the_middle_sizes_can_be_set(self) -> None:
        a = CachingAllocator(Settings(large_segment_bytes=64 * MIB))
        take(a, 3 * MIB)
        assert figures(a) == mib(3, 64)

    def test_nothing_takes_nothing(self) -> None:
        a = CachingAllocator()
        assert a.malloc(0) is None
        a.free(None)
        assert (figures(a), a.segments(), a.num_device_allocs) == ((0, 0), (), 0)


class TestSplitting:
    def test_small_pool_splits_off_512_bytes(self) -> None:
        a = CachingAllocator()
        hole, _ = take(a, 1024, 512)
        start = hole.address
        a.free(hole)
        first, second = take(a, 512, 512)  # the hole of 1024 is the best fit, and its other half is split off
        assert (first.address, second.address) == (start, start + 512)
        assert a.allocated_bytes == 3 * 512

    @pytest.mark.parametrize(
        ("nbytes", "allocated"),
        [
            (19 * MIB, 20 * MIB),  # 1 MiB would be left: not more than 1 MiB, so the block counts whole
            (19 * MIB - 512, 19 * MIB - 512),  # 1 MiB + 512 are left: split
            (20 * MIB, 20 * MIB),
        ],
    )
    def test_large_pool_splits_off_more_than_1_mib(self, nbytes: int, allocated: int) -> None:
        a = CachingAllocator()
        (block,) = take(a, nbytes)
        assert (block.nbytes, a.allocated_bytes, a.reserved_bytes) == (allocated, allocated, 20 * MIB)
        assert a.requested_bytes == nbytes

    def test_best_fit_then_lower_address(self) -> None:
        a = CachingAllocator()
        low, _, three, _, high, _ = take(a, *mib(5, 2, 3, 2, 5, 3))  # 20 MiB to the byte
        start = low.address
        for block in (high, low, three):
            a.free(block)
        two, four = take(a, *mib(2, 4))
        assert (two.address, two.nbytes) == (start + 7 * MIB, 3 * MIB)  # 1 MiB is left, so the hole goes whole
        assert (four.address, four.nbytes) == (start, 5 * MIB)  # two holes of 5: the lower
        assert layout(a) == [[5, 2, 3, 2, -5, 3]]

    def test_of_two_equal_segments_the_older_is_used(self) -> None:
        a = CachingAllocator()
        older, newer = take(a, *mib(30, 30))
        start = older.address
        a.free(newer)
        a.free(older)
        assert take(a, 30 * MIB)[0].address == start


class TestFreeing:
    def test_merges_with_both_neighbours(self) -> None:
        a = CachingAllocator()
        first, second, third = take(a, *mib(4, 4, 4))
        a.free(first)
        a.free(third)
        assert layout(a) == [[-4, 4, -12]]  # the third with the 8 MiB behind it
        a.free(second)
        assert layout(a) == [[-20]]

    def test_a_cached_segment_is_used_again(self) -> None:
        a = CachingAllocator()
        a.free(take(a, 30 * MIB)[0])
        assert figures(a) == mib(0, 30)
        take(a, 30 * MIB)
        assert figures(a) == mib(30, 30)
        assert a.num_device_allocs == 1

    def test_fragments_do_not_add_up(self) -> None:
        a = CachingAllocator()
        blocks = take(a, *[2 * MIB] * 10)
        for block in blocks[::2]:
            a.free(block)
        assert (figures(a), a.inactive_split_bytes) == (mib(10, 20), 10 * MIB)
        take(a, 3 * MIB)  # five holes of 2 MiB
        assert figures(a) == mib(13, 40)

    def test_empty_cache_keeps_segments_in_use(self) -> None:
        a = CachingAllocator()
        part, whole, small = take(a, 3 * MIB, 30 * MIB, 512)
        take(a, 4 * MIB)  # beside the 3 MiB
        for block in (part, whole, small):
            a.free(block)
        assert figures(a) == mib(4, 52)
        a.empty_cache()
        assert figures(a) == mib(4, 20)
        assert (a.inactive_split_bytes, a.num_device_frees) == (16 * MIB, 2)

    def test_what_is_not_allocated_cannot_be_freed(self) -> None:
        a = CachingAllocator()
        (block,) = take(a, 512)
        a.free(block)
        with pytest.raises(InternalError, match=r"only an allocated block can be freed\n(?s:.*)2097152 bytes, free"):
            a.free(block)
        with pytest.raises(InternalError, match="cannot be negative"):
            a.malloc(-1)


class TestFigures:
    def test_requested_and_allocated(self) -> None:
        a = CachingAllocator()
        block, _ = take(a, 1, 513)
        assert (a.requested_bytes, a.allocated_bytes, a.active_bytes) == (514, 512 + 1024, 512 + 1024)
        a.free(block)
        assert (a.requested_bytes, a.allocated_bytes, a.active_bytes) == (513, 1024, 1024)

    def test_peaks(self) -> None:
        a = CachingAllocator()
        first, second = take(a, 30 * MIB - 1, 20 * MIB)
        a.free(first)
        a.empty_cache()
        assert (a.allocated_bytes, a.requested_bytes, a.reserved_bytes) == mib(20, 20, 20)
        peaks = (a.peak_allocated_bytes, a.peak_requested_bytes, a.peak_reserved_bytes, a.peak_active_bytes)
        assert peaks == (50 * MIB, 50 * MIB - 1, 50 * MIB, 50 * MIB)
        a.reset_peaks()
        assert (a.peak_allocated_bytes, a.peak_requested_bytes, a.peak_reserved_bytes) == mib(20, 20, 20)
        a.free(second)
        assert a.peak_allocated_bytes == 20 * MIB


class TestLimits:
    def test_cached_segments_are_given_back_before_a_request_fails(self) -> None:
        a = CachingAllocator(Settings(capacity_bytes=40 * MIB))
        a.free(take(a, 30 * MIB)[0])
        take(a, 36 * MIB)  # 30 + 36 > 40
        assert figures(a) == mib(36, 36)
        assert (a.num_alloc_retries, a.num_ooms, a.peak_reserved_bytes) == (1, 0, 36 * MIB)

    def test_out_of_memory_is_an_answer(self) -> None:
        a = CachingAllocator(Settings(capacity_bytes=40 * MIB))
        take(a, 30 * MIB)
        with pytest.raises(OutOfMemory) as caught:
            a.malloc(10 * MIB + 1)  # a segment of 12
        error = caught.value
        assert (error.requested_bytes, error.segment_bytes) == (10 * MIB + 1, 12 * MIB)
        assert (error.allocated_bytes, error.reserved_bytes, error.capacity_bytes) == mib(30, 30, 40)
        assert (a.num_alloc_retries, a.num_ooms) == (1, 1)
        take(a, 10 * MIB)
        assert figures(a) == mib(40, 40)

    def test_a_split_segment_cannot_be_given_back(self) -> None:
        a = CachingAllocator(Settings(capacity_bytes=40 * MIB))
        first, _ = take(a, *mib(2, 2))
        a.free(first)
        with pytest.raises(OutOfMemory):
            a.malloc(22 * MIB)  # 20 + 22 > 40, though 38 MiB are not in use
        assert figures(a) == mib(2, 20)

    def test_a_limit_below_the_capacity(self) -> None:
        a = CachingAllocator(Settings(capacity_bytes=40 * MIB, allowed_bytes=30 * MIB))
        with pytest.raises(OutOfMemory) as caught:
            a.malloc(32 * MIB)
        assert caught.value.capacity_bytes == 30 * MIB

    def test_a_limit_counts_the_segment_even_where_less_would_be_mapped(self) -> None:
        a = CachingAllocator(Settings(expandable_segments=True, allowed_bytes=50 * MIB))
        take(a, 15 * MIB)  # 20 MiB mapped
        take(a, 24 * MIB)  # the 5 MiB left and 20 more: 40 MiB; the check takes 20 + 24
        assert figures(a) == mib(39, 40)
        with pytest.raises(OutOfMemory):
            a.malloc(2 * MIB)  # 1 MiB is left, and 40 + 20 > 50


class TestMaxSplit:
    def settings(self, **more: int) -> Settings:
        return Settings(max_split_size_bytes=32 * MIB, **more)

    def test_large_blocks_stay_whole(self) -> None:
        a = CachingAllocator(self.settings())
        (block,) = take(a, 60 * MIB)
        a.free(block)
        take(a, 5 * MIB)  # under 32 MiB: never from a block of 32 MiB or more
        assert figures(a) == mib(5, 80)
        take(a, 40 * MIB + 512)  # 60 < 40 + 512 B + 20: taken, whole
        assert figures(a) == mib(65, 80)

    def test_a_block_20_mib_larger_is_not_taken(self) -> None:
        a = CachingAllocator(self.settings())
        a.free(take(a, 60 * MIB)[0])
        take(a, 40 * MIB)  # 60 ≥ 40 + 20
        assert figures(a) == mib(40, 100)

    def test_how_much_larger_can_be_set(self) -> None:
        a = CachingAllocator(self.settings(max_non_split_rounding_bytes=21 * MIB))
        a.free(take(a, 60 * MIB)[0])
        take(a, 40 * MIB)
        assert figures(a) == mib(60, 60)

    def test_one_large_enough_goes_before_all_do(self) -> None:
        a = CachingAllocator(self.settings(capacity_bytes=100 * MIB))
        a.free(take(a, 60 * MIB)[0])
        a.free(take(a, 12 * MIB)[0])
        take(a, 36 * MIB)  # 72 + 36 > 100; the 60 is enough, and the 12 stays cached
        assert figures(a) == mib(36, 48)
        assert a.num_alloc_retries == 0

    def test_several_go_when_none_is_large_enough(self) -> None:
        a = CachingAllocator(self.settings(capacity_bytes=110 * MIB))
        blocks = take(a, *mib(32, 34, 36))
        for block in blocks:
            a.free(block)
        take(a, 60 * MIB)  # 36 and 34 go, the largest first; 32 + 60 ≤ 110
        assert figures(a) == mib(60, 92)
        assert a.num_alloc_retries == 0


class TestRounding:
    @pytest.mark.parametrize(
        ("nbytes", "size"),
        [
            (600, 1024),  # not over 512 x 4: plain rounding
            (2048, 2048),
            (2049, 2560),  # 2048 to 4096 in steps of 512
            (9000, 10240),  # 8192 to 16384 in steps of 2048; 9216 without divisions
            (16384, 16384),
            (1200 * MIB, 1280 * MIB),  # 1024 to 2048 MiB in steps of 256
            (1792 * MIB + 1, 2048 * MIB),
        ],
    )
    def test_steps_between_powers_of_two(self, nbytes: int, size: int) -> None:
        a = CachingAllocator(Settings(roundup_power2_divisions=4))
        assert a.round_size(nbytes) == size
        assert take(a, nbytes)[0].nbytes >= size

    def test_by_interval(self) -> None:
        a = CachingAllocator(Settings.parse("roundup_power2_divisions:[1:0,4:2,>:1]"))
        given_sizes = (9000, 3 * MIB + 1, 5 * MIB, 9 * MIB)
        assert tuple(map(a.round_size, given_sizes)) == (9216, 3 * MIB + 512, 6 * MIB, 9 * MIB)

    def test_rounding_counts_in_allocated(self) -> None:
        a = CachingAllocator(Settings(roundup_power2_divisions=4))
        take(a, 9 * MIB)  # 8 to 16 in steps of 2: 10 MiB, so a segment of its own
        assert (a.requested_bytes, *figures(a)) == mib(9, 10, 10)


class TestGarbageCollection:
    def run(self, settings: Settings) -> CachingAllocator:
        a = CachingAllocator(settings)
        a.free(take(a, 30 * MIB)[0])
        take(a, *mib(36, 34))
        return a

    def test_old_segments_go_from_the_threshold_on(self) -> None:
        # Before the 34 MiB: 66 MiB reserved, over 0.5 x 100; the 30 MiB have been passed over, and go.
        a = self.run(Settings(garbage_collection_threshold=0.5, allowed_bytes=100 * MIB))
        assert figures(a) == mib(70, 70)
        assert a.num_device_frees == 1

    @pytest.mark.parametrize(
        "given_settings",
        [
            Settings(allowed_bytes=100 * MIB),
            Settings(garbage_collection_threshold=0.5, capacity_bytes=100 * MIB),  # no memory fraction, no collection
            Settings(garbage_collection_threshold=0.66, allowed_bytes=100 * MIB),  # 66 MiB are not over 66
        ],
    )
    def test_else_they_stay(self, given_settings: Settings) -> None:
        assert figures(self.run(given_settings)) == mib(70, 100)

    def test_the_older_goes_first(self) -> None:
        a = CachingAllocator(Settings(garbage_collection_threshold=0.5, allowed_bytes=100 * MIB))
        older, younger = take(a, *mib(12, 14))
        a.free(older)  # after request 2
        take(a, 30 * MIB)
        a.free(younger)  # after request 3
        take(a, 40 * MIB)  # 56 > 50; ages 2 and 1, mean 1.5: the older goes, and its 12 MiB suffice
        assert figures(a) == mib(70, 84)


class TestExpandable:
    def allocator(self, **more: int) -> CachingAllocator:
        return CachingAllocator(Settings(expandable_segments=True, **more))

    def test_grows_by_20_mib(self) -> None:
        a = self.allocator()
        take(a, 3 * MIB)
        assert figures(a) == mib(3, 20)
        take(a, 18 * MIB)  # 17 MiB are free at the end: 1 MiB is missing, 20 are mapped
        assert figures(a) == mib(21, 40)
        assert layout(a) == [[3, 18, -19]]
        assert (a.num_device_allocs, a.inactive_split_bytes) == (2, 0)

    def test_small_pool_grows_by_2_mib(self) -> None:
        a = self.allocator()
        take(a, *[MIB] * 3)
        assert figures(a) == mib(3, 4)
        assert [(s.pool, s.expandable, s.nbytes) for s in a.segments()] == [("small", True, 4 * MIB)]

    def test_large_pool_splits_off_512_bytes(self) -> None:
        a = self.allocator()
        take(a, 11 * MIB + MIB // 2)
        assert a.allocated_bytes == 11 * MIB + MIB // 2  # 12 MiB with segments of cudaMalloc

    def test_growing_requests_do_not_fragment(self) -> None:
        reserved = []
        for expandable in (True, False):
            a = CachingAllocator(Settings(expandable_segments=expandable))
            for block in take(a, *mib(30, 30)):
                a.free(block)
            take(a, 50 * MIB)
            reserved.append(a.reserved_bytes)
        assert tuple(reserved) == mib(60, 110)

    def test_whole_units_are_given_back(self) -> None:
        a = self.allocator()
        _, block = take(a, *mib(3, 30))
        assert a.reserved_bytes == 40 * MIB
        a.free(block)
        a.empty_cache()  # 3 to 40 are free: of the two units only the second
        assert (figures(a), layout(a)) == (mib(3, 20), [[3, -17]])
        take(a, 30 * MIB)
        assert (figures(a), layout(a)) == (mib(33, 40), [[3, 30, -7]])

    def test_a_gap_is_filled_before_the_end_grows(self) -> None:
        a = self.allocator()
        first, middle, _ = take(a, *mib(15, 30, 10))  # 60 MiB mapped
        a.free(middle)
        a.empty_cache()  # 15 to 45 are free: the unit from 20 to 40 goes
        assert (a.reserved_bytes, layout(a)) == (40 * MIB, [[15, -5], [-5, 10, -5]])
        (block,) = take(a, 25 * MIB)
        assert block.address == first.address + 15 * MIB
        assert (a.reserved_bytes, layout(a)) == (60 * MIB, [[15, 25, -5, 10, -5]])

    def test_fit_counts_the_room_to_grow(self) -> None:
        a = self.allocator()
        hole, _ = take(a, *mib(6, 10))  # 4 MiB free at the end, with all further addresses behind them
        a.free(hole)
        take(a, 3 * MIB)
        assert layout(a) == [[3, -3, 10, -4]]

    def test_an_empty_segment_goes_altogether(self) -> None:
        a = self.allocator()
        a.free(take(a, 50 * MIB)[0])
        assert figures(a) == mib(0, 60)
        a.empty_cache()
        assert (figures(a), a.segments(), a.num_device_frees) == (mib(0, 0), (), 1)

    def test_out_of_memory(self) -> None:
        a = self.allocator(capacity_bytes=50 * MIB)
        take(a, 30 * MIB)
        with pytest.raises(OutOfMemory) as caught:
            a.malloc(12 * MIB)  # 2 MiB more than is free, and 40 + 20 > 50
        assert (caught.value.reserved_bytes, caught.value.segment_bytes) == mib(40, 12)
        take(a, 10 * MIB)
        assert figures(a) == mib(40, 40)

    def test_the_last_unit_can_be_had(self) -> None:
        a = self.allocator(capacity_bytes=60 * MIB)
        take(a, *mib(30, 30))
        assert figures(a) == mib(60, 60)

    def test_addresses_are_an_eighth_more_than_the_device(self) -> None:
        a = self.allocator(device_bytes=80 * MIB)  # 90 MiB of addresses: 5 units, 100 MiB
        take(a, *mib(70, 25))
        assert len(a.segments()) == 1
        take(a, 6 * MIB)  # 5 MiB of addresses are left
        assert layout(a) == [[70, 25, -5], [6, -14]]


LIMITS = (
    Settings(),
    Settings(capacity_bytes=90 * MIB),
    Settings(capacity_bytes=60 * MIB, device_bytes=100 * MIB),
    Settings(allowed_bytes=80 * MIB + 5),
)
TEXTS = (
    "",
    "expandable_segments:True",
    "expandable_segments:True,large_segment_size_mb:12",
    "max_split_size_mb:20",
    "max_split_size_mb:24,max_non_split_rounding_mb:21",
    "roundup_power2_divisions:[1:2,4:8,>:16]",
    "large_segment_size_mb:12",
    "garbage_collection_threshold:0.4",
)
EVERY_SETTING = tuple(
    replace(
        Settings.parse(text),
        capacity_bytes=limit.capacity_bytes,
        device_bytes=limit.device_bytes,
        allowed_bytes=limit.allowed_bytes,
    )
    for text in TEXTS
    for limit in LIMITS
)

edges = st.builds(
    lambda base, off: max(1, base + off),
    st.sampled_from([512, MIB // 2, MIB, 2 * MIB, 3 * MIB, 5 * MIB, 9 * MIB, 10 * MIB, 19 * MIB, 24 * MIB, 33 * MIB]),
    st.sampled_from([-512, -1, 0, 0, 1, 512]),
)
sizes = st.one_of(edges, st.integers(1, 2 * MIB), st.integers(MIB, 40 * MIB))
events = st.lists(st.one_of(sizes, st.integers(-30, -1), st.just(0)), max_size=60)
"""Above 0: a request; below: give back the live block of that number from the end, modulo; 0: empty the cache."""


def check(segments: tuple[SegmentState, ...], a: CachingAllocator) -> None:
    """What holds of any state."""
    for segment in segments:
        address = segment.address
        for block in segment.blocks:
            assert block.address == address
            assert block.nbytes > 0
            assert block.nbytes % 512 == 0
            address += block.nbytes
        assert address == segment.address + segment.nbytes
    assert sum(s.nbytes for s in segments) == a.reserved_bytes
    assert sum(b.nbytes for s in segments for b in s.blocks if b.allocated) == a.allocated_bytes
    assert sum(b.requested_bytes for s in segments for b in s.blocks) == a.requested_bytes
    assert a.requested_bytes <= a.allocated_bytes <= a.reserved_bytes
    assert a.allocated_bytes <= a.peak_allocated_bytes <= a.peak_reserved_bytes


@given(st.sampled_from(EVERY_SETTING), events)
@settings(max_examples=250, deadline=None)
def test_agrees_with_a_second_implementation(given_settings: Settings, trace: list[int]) -> None:
    a, naive = CachingAllocator(given_settings), Naive(given_settings)
    live: list[tuple[Block, Span]] = []
    for event in trace:
        if event > 0:
            span = naive.malloc(event)
            try:
                block = a.malloc(event)
            except OutOfMemory:
                assert span is None
            else:
                assert span is not None
                assert block is not None
                assert block.nbytes == span.nbytes
                live.append((block, span))
        elif event and live:
            block, span = live.pop(event % len(live))
            a.free(block)
            naive.free(span)
        elif not event:
            a.empty_cache()
            naive.empty()
        segments = a.segments()
        check(segments, a)
        assert figures(a) == (naive.total("used"), naive.total("used", "free"))
        assert (a.requested_bytes, a.num_alloc_retries, a.num_ooms) == (naive.requested(), naive.retries, naive.ooms)
        assert [(s.pool, [(b.nbytes, b.allocated) for b in s.blocks]) for s in segments] == naive.layout()
    for block, _ in live:
        a.free(block)
    assert (a.allocated_bytes, a.requested_bytes) == (0, 0)
    a.empty_cache()
    assert (a.reserved_bytes, a.segments()) == (0, ())


def run(given_settings: Settings, trace: list[int]) -> list[tuple[int, int, list[int]]]:
    """Allocated and requested bytes and the live blocks' rounded sizes after each event."""
    a = CachingAllocator(given_settings)
    live: list[Block] = []
    found = []
    for event in trace:
        if event > 0:
            live += take(a, event)
        elif event and live:
            a.free(live.pop(event % len(live)))
        elif not event:
            a.empty_cache()
        found.append((a.allocated_bytes, a.requested_bytes, [a.round_size(b.requested_bytes) for b in live]))
    return found


@given(events)
@settings(max_examples=60, deadline=None)
def test_expandable_segments_change_allocated_by_unsplit_rests_only(trace: list[int]) -> None:
    plain, grown = run(Settings(), trace), run(Settings(expandable_segments=True), trace)
    for (allocated, requested, live), (exact, same, _) in zip(plain, grown, strict=True):
        large = sum(size > MIB for size in live)
        assert requested == same
        assert exact == sum(live)
        assert exact <= allocated <= exact + large * MIB


@given(st.lists(st.one_of(st.integers(1, MIB), st.integers(-30, 0)), max_size=60))
@settings(max_examples=40, deadline=None)
def test_small_requests_allocate_the_same_either_way(trace: list[int]) -> None:
    plain, grown = run(Settings(), trace), run(Settings(expandable_segments=True), trace)
    assert [x[0] for x in plain] == [x[0] for x in grown]


def recorded() -> list[tuple[str, dict[str, int], list[str]]]:
    """Traces run through PyTorch's own allocator: settings, limits, lines."""
    found: list[tuple[str, dict[str, int], list[str]]] = []
    for line in TRACES.read_text(encoding="utf-8").splitlines():
        if line.startswith("trace"):
            _, text, *limits = line.split()
            found.append((text.strip("'"), {k: int(v) for k, v in (x.split("=") for x in limits)}, []))
        elif not line.startswith("#"):
            found[-1][2].append(line)
    return found


@pytest.mark.parametrize(("text", "limits", "lines"), recorded())
def test_equals_pytorchs_own_allocator(text: str, limits: dict[str, int], lines: list[str]) -> None:
    """`benchmarks/allocator_truth/record.py` ran these events through libc10_cuda.so of v2.13.0."""
    a = CachingAllocator(Settings.parse(text, **limits))
    live: list[Block | None] = []
    for number, line in enumerate(lines):
        kind, *rest = line.split()
        if kind == "layout":
            found = [",".join(f"{'-+'[b.allocated]}{b.nbytes}" for b in s.blocks) for s in a.segments()]
            assert sorted(found) == sorted(rest)
            continue
        answer = "ok"
        if kind == "m":
            try:
                live.append(a.malloc(int(rest[0])))
            except OutOfMemory:
                live.append(None)
                answer = "full"
        elif kind == "f":
            a.free(live[int(rest[0])])
        else:
            a.empty_cache()
        got = (answer, a.allocated_bytes, a.reserved_bytes, a.requested_bytes, a.inactive_split_bytes)
        got_text = " ".join(map(str, got))
        assert got_text == " ".join(rest[-5:]), f"event {number}: {line}"
    assert lines
