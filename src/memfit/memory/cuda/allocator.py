"""PyTorch's native CUDA caching allocator, simulated: what `torch.cuda` would report, without a device.

Rules of PyTorch v2.13.0 (commit cf30153c4c13), file c10/cuda/CUDACachingAllocator.cpp where no other is named;
docs/cuda-allocator.md lists them and says how they and the line numbers were found. One device, one stream, no graph
capture, no private pools. Addresses are made up: each segment lies above all earlier ones. Only their order could
matter, and PyTorch goes by the order in which segments were had before it looks at addresses.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from memfit.errors import InternalError
from memfit.memory.cuda.pool import ADDRESS_BITS, Block, Pool, Segment
from memfit.memory.cuda.settings import MIN_LARGE_ALLOC_BYTES, Settings

__all__ = ["Block", "BlockState", "CachingAllocator", "OutOfMemory", "SegmentState", "Settings"]

MIN_BLOCK_BYTES = 512
"""All sizes are multiples of this: `kMinBlockSize`, c10/core/AllocatorConfig.h:18."""
SMALL_BYTES = 1 << 20
"""Largest size of the small pool: `kSmallSize`, c10/core/AllocatorConfig.h:20."""
SMALL_BUFFER_BYTES = 2 << 20
"""Segment of the small pool: `kSmallBuffer`, c10/core/AllocatorConfig.h:16."""
ROUND_LARGE_BYTES = 2 << 20
"""Step of segments from 10 MiB on: `kRoundLarge`, c10/core/AllocatorConfig.h:24."""
ENDLESS_BYTES = 1 << 50
"""Addresses that an expandable segment reserves on a device without end."""


class OutOfMemory(Exception):
    """The device cannot serve a request, as `torch.OutOfMemoryError` says; sizes in bytes.

    `segment_bytes` is what PyTorch's message calls "tried to allocate"; `allocated_bytes` and `reserved_bytes` are
    those at the failure, after all that could be released was; `capacity_bytes` is the smaller of the two limits.
    """

    def __init__(
        self,
        requested_bytes: int,
        segment_bytes: int,
        *,
        allocated_bytes: int,
        reserved_bytes: int,
        capacity_bytes: int,
    ) -> None:
        self.requested_bytes, self.segment_bytes = requested_bytes, segment_bytes
        self.allocated_bytes, self.reserved_bytes, self.capacity_bytes = allocated_bytes, reserved_bytes, capacity_bytes
        super().__init__(
            f"{requested_bytes} bytes asked for, {segment_bytes} needed from the device; of {capacity_bytes} there, "
            f"{reserved_bytes} are reserved and {allocated_bytes} allocated"
        )


@dataclass(frozen=True)
class BlockState:
    """One block of a segment, sizes in bytes; `requested_bytes` is 0 when it is free."""

    address: int
    nbytes: int
    requested_bytes: int
    allocated: bool


@dataclass(frozen=True)
class SegmentState:
    """One stretch of device memory and the blocks that tile it, as `torch.cuda.memory_snapshot` lists them."""

    address: int
    nbytes: int
    pool: str
    """`small` or `large`."""
    expandable: bool
    blocks: tuple[BlockState, ...]


class CachingAllocator:
    """The caching allocator of one device; the figures are those that `torch.cuda` gives.

    `allocated_bytes` is `memory_allocated()`, `reserved_bytes` is `memory_reserved()`, the peaks are
    `max_memory_allocated()` and `max_memory_reserved()` (torch/cuda/memory.py:533-604); `requested_bytes` is
    `memory_stats()["requested_bytes.all.current"]`.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(3 << 20)
    >>> allocator.allocated_bytes, allocator.reserved_bytes
    (3145728, 20971520)
    >>> allocator.free(block)
    >>> allocator.allocated_bytes, allocator.reserved_bytes, allocator.peak_allocated_bytes
    (0, 20971520, 3145728)
    >>> allocator.empty_cache()
    >>> allocator.reserved_bytes
    0
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings = settings or Settings()
        self.allocated_bytes = self.requested_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_requested_bytes = self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        """Times that all cached segments were given back and the device asked again."""
        self.num_ooms = 0
        """Requests that ended in `OutOfMemory`."""
        self.num_device_allocs = 0
        """cudaMalloc calls, or mappings of expandable segments."""
        self.num_device_frees = 0
        """cudaFree calls, or unmappings."""
        endless = float("inf")
        max_split = settings.max_split_size_bytes
        self._max_split: float = endless if max_split is None else max_split
        rounding = settings.max_non_split_rounding_bytes
        self._max_rounding = settings.large_segment_bytes if rounding is None else rounding
        # should_split, lines 3680-3698: the rest that is split off, and the request from which nothing is.
        self._small = Pool("small", MIN_BLOCK_BYTES, endless)
        if settings.expandable_segments:
            self._large = Pool("large", MIN_BLOCK_BYTES, endless)
        else:
            self._large = Pool("large", SMALL_BYTES + 1, self._max_split)
        self._divisions = settings.divisions()
        self._rounds = max(self._divisions) > 1
        self._limit: float = endless if settings.allowed_bytes is None else settings.allowed_bytes
        self._capacity: float = endless if settings.capacity_bytes is None else settings.capacity_bytes
        self._collects = settings.garbage_collection_threshold > 0 and settings.allowed_bytes is not None
        self._picks = settings.expandable_segments or max_split is not None or self._collects
        self._segments: dict[int, Segment] = {}
        self._next_address = ROUND_LARGE_BYTES

    def malloc(self, nbytes: int) -> Block | None:
        """Allocate `nbytes` bytes; None for 0 bytes, which take nothing.

        `malloc`, retry path lines 1770-1792; `raw_alloc`, line 5101; `alloc_found_block`, line 2085.

        Raises:
            OutOfMemory: the device is full, even after cached segments were given back.
        """
        if nbytes <= 0:
            if nbytes:
                raise InternalError(
                    "an allocation cannot be negative",
                    where="CachingAllocator.malloc",
                    received=str(nbytes),
                    todo="report this with the network",
                )
            return None
        size = self.round_size(nbytes) if self._rounds else (nbytes + 511) & -512
        pool = self._small if size <= SMALL_BYTES else self._large
        keys, free = pool.keys, pool.free
        index = bisect_left(keys, size << ADDRESS_BITS)
        if self._picks:
            index = self._pick(pool, index, size)
        if index < len(keys):
            block = free[index]
            del keys[index], free[index]
        else:
            block = self._obtain(pool, size, nbytes)

        rest = block.nbytes - size
        if rest >= pool.split_from and size < pool.split_below:
            # Pool.cut_front and Pool.insert, written out, since this runs once per allocation; a split block's age is
            # never asked for.
            address = block.address
            front = Block(address, size, block.segment)
            before = front.previous = block.previous
            if before is None:
                block.segment.head = front
            else:
                before.following = front
            front.following = block
            block.previous = front
            block.address = address = address + size
            block.nbytes = rest
            key = rest << ADDRESS_BITS | address
            index = bisect_left(keys, key)
            keys.insert(index, key)
            free.insert(index, block)
            block = front
        else:
            size = block.nbytes
        block.allocated = True
        block.requested_bytes = nbytes
        self.allocated_bytes = total = self.allocated_bytes + size
        if total > self.peak_allocated_bytes:  # noqa: PLR1730  (max() costs a call per event)
            self.peak_allocated_bytes = total
        self.requested_bytes = total = self.requested_bytes + nbytes
        if total > self.peak_requested_bytes:  # noqa: PLR1730
            self.peak_requested_bytes = total
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back; its segment stays reserved. None, from a request of 0 bytes, is ignored.

        `free_block`, line 3505: the block merges with free neighbours of its segment.
        """
        if block is None:
            return
        if not block.allocated:
            raise InternalError(
                "only an allocated block can be freed",
                where="CachingAllocator.free",
                received=repr(block),
                todo="report this with the network",
            )
        self.allocated_bytes -= block.nbytes
        self.requested_bytes -= block.requested_bytes
        block.allocated = False
        block.requested_bytes = 0
        pool = block.pool
        neighbour = block.previous
        if neighbour is not None and not neighbour.allocated:
            pool.merge(block, neighbour)
        neighbour = block.following
        if neighbour is not None and not neighbour.allocated:
            pool.merge(block, neighbour)
        pool.insert(block)

    def empty_cache(self) -> None:
        """Give back what is wholly free: `release_cached_blocks`, line 4090, the large pool before the small."""
        for pool in (self._large, self._small):
            self._release_pool(pool)

    def reset_peaks(self) -> None:
        """Let the peaks start again from the present: `torch.cuda.reset_peak_memory_stats`."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    @property
    def active_bytes(self) -> int:
        """Bytes of blocks that are allocated or awaited by another stream: the same here, with one stream."""
        return self.allocated_bytes

    @property
    def peak_active_bytes(self) -> int:
        """Highest `active_bytes`."""
        return self.peak_allocated_bytes

    @property
    def inactive_split_bytes(self) -> int:
        """Free bytes that cannot be given back, since other parts of their segments are in use.

        Expandable segments are left out, as in PyTorch (`free_block`, line 3505).
        """
        return sum(
            block.nbytes
            for pool in (self._small, self._large)
            for block in pool.free
            if not block.segment.unit_bytes and (block.previous is not None or block.following is not None)
        )

    def segments(self) -> tuple[SegmentState, ...]:
        """All reserved memory, by address; an expandable segment gives one entry for each mapped stretch."""
        found: list[SegmentState] = []
        for segment in self._segments.values():
            blocks: list[BlockState] = []
            block: Block | None = segment.head
            while block is not None:
                if block.mapped:
                    blocks.append(BlockState(block.address, block.nbytes, block.requested_bytes, block.allocated))
                block = block.following
                if blocks and (block is None or not block.mapped):
                    nbytes = sum(b.nbytes for b in blocks)
                    expandable = segment.unit_bytes > 0
                    found.append(SegmentState(blocks[0].address, nbytes, segment.pool.name, expandable, tuple(blocks)))
                    blocks = []
        return tuple(found)

    def round_size(self, nbytes: int) -> int:
        """Size of the block that a request of `nbytes` (at least 1) asks for: `round_size`, about line 3068.

        >>> CachingAllocator().round_size(513)
        1024
        >>> CachingAllocator(Settings(roundup_power2_divisions=4)).round_size(1200 << 20) >> 20
        1280
        """
        if nbytes >= MIN_BLOCK_BYTES:
            divisions = self._divisions[min(max(nbytes.bit_length() - 21, 0), len(self._divisions) - 1)]
            if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions:
                step = (1 << nbytes.bit_length() - 1) // divisions
                return -(-nbytes // step) * step
        return (nbytes + MIN_BLOCK_BYTES - 1) & -MIN_BLOCK_BYTES

    def segment_size(self, size: int) -> int:
        """Bytes of the segment that a rounded size needs: `get_allocation_size`, lines 3700-3708."""
        if size <= SMALL_BYTES:
            return SMALL_BUFFER_BYTES
        if size < MIN_LARGE_ALLOC_BYTES:
            return self.settings.large_segment_bytes
        return (size + ROUND_LARGE_BYTES - 1) & -ROUND_LARGE_BYTES

    def _pick(self, pool: Pool, index: int, size: int) -> int:
        """Change the best fit where settings demand; the list's length says none: `get_free_block`, lines 3710-3768."""
        pool.lookups += self._collects
        free = pool.free
        none = len(free)
        if index == none:
            return none
        if self.settings.expandable_segments:
            # A block counts with the room that it can grow into, so that fixed holes are filled first.
            while index + 1 < none and _room(free[index + 1]) < _room(free[index]):
                index += 1
        found = free[index].nbytes
        if size < self._max_split:
            return none if found >= self._max_split else index
        return none if found >= size + self._max_rounding else index

    def _obtain(self, pool: Pool, size: int, nbytes: int) -> Block:
        """Get a new block from the device, giving cached ones back as need be: `malloc`, lines 1770-1792."""
        if self._collects:
            self._collect_garbage()
        segment_bytes = self.segment_size(size)
        block = self._grow(pool, size, segment_bytes)
        if block is None and self._release_oversize(pool, size):
            block = self._grow(pool, size, segment_bytes)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._grow(pool, size, segment_bytes)
        if block is None:
            self.num_ooms += 1
            raise OutOfMemory(
                nbytes,
                segment_bytes,
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                capacity_bytes=int(min(self._limit, self._capacity)),
            )
        return block

    def _grow(self, pool: Pool, size: int, segment_bytes: int) -> Block | None:
        """One more segment, or more of an expandable one; None when the device refuses: `alloc_block`, line 3843."""
        if self.reserved_bytes + segment_bytes > self._limit:
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, size)
        if self.reserved_bytes + segment_bytes > self._capacity:
            return None
        segment = self._new_segment(pool, segment_bytes, unit_bytes=0)
        self.num_device_allocs += 1
        self._reserve(segment_bytes)
        return segment.head

    def _new_segment(self, pool: Pool, nbytes: int, *, unit_bytes: int) -> Segment:
        segment = Segment(self._next_address, nbytes, pool, unit_bytes)
        self._segments[segment.address] = segment
        self._next_address += (nbytes + ROUND_LARGE_BYTES - 1) & -ROUND_LARGE_BYTES
        return segment

    def _reserve(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """Map memory behind a free stretch until it holds `size`: `try_allocate_expandable_block`, line 3471."""
        block = self._find_expandable(pool, size)
        if not block.mapped and not self._map(block, min(block.nbytes, size)):
            return None
        while block.nbytes < size:
            after = block.following
            if after is None:
                raise InternalError(
                    "an expandable segment ended before its room did",
                    where="CachingAllocator",
                    received=repr(block),
                    todo="report this with the network",
                )
            if not self._map(after, min(size - block.nbytes, after.nbytes)):
                return None
            block = after  # it has swallowed the block before it
        pool.remove(block)
        return block

    def _find_expandable(self, pool: Pool, size: int) -> Block:
        """First stretch, by address, of free and unmapped blocks with room for `size`; a new range if there is none.

        `find_expandable_block`, which ends before line 3396. A range reserves addresses for the device's memory and
        an eighth more (constructor of `ExpandableSegment`).
        """
        for unmapped in pool.unmapped:
            before = unmapped.previous
            start = unmapped if before is None or before.allocated else before
            room, block = 0, start
            while room < size and not block.allocated:
                room += block.nbytes
                if block.following is None:
                    break
                block = block.following
            if room >= size:
                return start
        settings = self.settings
        unit = SMALL_BUFFER_BYTES if pool is self._small else settings.large_segment_bytes
        device = settings.capacity_bytes if settings.device_bytes is None else settings.device_bytes
        addresses = ENDLESS_BYTES if device is None else device + device // 8
        segment = self._new_segment(pool, -(-addresses // unit) * unit, unit_bytes=unit)
        pool.insert_unmapped(segment.head)
        return segment.head

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the low `size` bytes of an unmapped block, in whole units: `map_block`, line 3396."""
        unit = block.segment.unit_bytes
        mapped_bytes = -(-size // unit) * unit
        if self.reserved_bytes + mapped_bytes > self._capacity:
            return False
        pool = block.pool
        pool.unmapped.remove(block)
        if mapped_bytes < block.nbytes:
            rest = Block(block.address + mapped_bytes, block.nbytes - mapped_bytes, block.segment, mapped=False)
            rest.previous, rest.following = block, block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            block.nbytes = mapped_bytes
            pool.insert_unmapped(rest)
        block.mapped = True
        pool.merge(block, block.previous)
        pool.merge(block, block.following)
        pool.insert(block)
        self.num_device_allocs += 1
        self._reserve(mapped_bytes)
        return True

    def _unmap(self, block: Block) -> None:
        """Take the memory from behind the whole units of a free block: `unmap_block`, line 4236."""
        segment, pool = block.segment, block.pool
        unit = segment.unit_bytes
        start = -(-(block.address - segment.address) // unit) * unit + segment.address
        end = (block.address + block.nbytes - segment.address) // unit * unit + segment.address
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            pool.insert(pool.cut_front(block, start - block.address))
        if end < block.address + block.nbytes:
            whole = pool.cut_front(block, end - start)
            pool.insert(block)
            block = whole
        block.mapped = False
        pool.merge(block, block.previous)
        pool.merge(block, block.following)
        self.num_device_frees += 1
        self.reserved_bytes -= end - start
        if block.previous is None and block.following is None:
            del self._segments[segment.address]
        else:
            pool.insert_unmapped(block)

    def _release_pool(self, pool: Pool) -> None:
        """Give back all segments without a block in use, and free units of expandable ones: `release_blocks`."""
        for block in list(pool.free):
            if block.segment.unit_bytes:
                self._unmap(block)
            elif block.previous is None and block.following is None:
                self._release(block)

    def _release(self, block: Block) -> None:
        """Give back the segment that a free block fills: `release_block`, line 4121."""
        block.pool.remove(block)
        del self._segments[block.address]
        self.num_device_frees += 1
        self.reserved_bytes -= block.nbytes

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back cached blocks that are never split, as many as `size` needs; whether that suffices.

        `release_available_cached_blocks`, about line 4002: without `max_split_size_bytes` it does nothing.
        """
        if self.settings.max_split_size_bytes is None:
            return False
        needed = max(size, self.settings.max_split_size_bytes)
        index = bisect_left(pool.keys, needed << ADDRESS_BITS)
        if index < len(pool.free) and not pool.free[index].segment.unit_bytes:
            self._release(pool.free[index])
            return True
        released = 0
        for block in reversed(pool.free[:index]):
            if released >= needed or block.nbytes < self._max_split:
                break
            if not block.segment.unit_bytes:
                released += block.nbytes
                self._release(block)
        return released >= needed

    def _collect_garbage(self) -> None:
        """Give back cached segments of the large pool that were long passed over, until under the threshold.

        `garbage_collect_cached_blocks`, lines 3779-3836. A block's age is the number of requests to its pool since it
        became free; in each round those of average age and above go.
        """
        limit = self.settings.allowed_bytes
        if limit is None:
            return
        excess = self.reserved_bytes - int(self.settings.garbage_collection_threshold * limit)
        pool = self._large
        whole = [b for b in pool.free if b.previous is None and b.following is None]
        if excess <= 0 or not whole:
            return
        ages, count, reclaimed, went = sum(pool.lookups - b.born for b in whole), len(whole), 0, True
        while reclaimed < excess and went and count > 0:
            threshold = ages / count
            went = False
            for block in list(pool.free):
                age = pool.lookups - block.born
                free_segment = block.previous is None and block.following is None and not block.segment.unit_bytes
                if free_segment and age >= threshold:
                    went = True
                    reclaimed += block.nbytes
                    ages -= age
                    count -= 1
                    self._release(block)


def _room(block: Block) -> int:
    """Size of a free block, with the unmapped range behind it."""
    after = block.following
    return block.nbytes + (0 if after is None or after.mapped else after.nbytes)
