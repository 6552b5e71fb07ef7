"""Blocks, segments and free lists of the simulated CUDA caching allocator.

Line numbers are those of PyTorch v2.13.0 (commit cf30153c4c13); docs/cuda-allocator.md says how they were found.
"""

from __future__ import annotations

from bisect import bisect_left, insort

ADDRESS_BITS = 64
"""A free block's key is its size, then this many bits of address."""


class Segment:
    """Memory had from the device at once, or a reserved range of addresses that is mapped piece by piece.

    `unit_bytes` is the step in which a range is mapped (c10/cuda/CUDACachingAllocator.cpp:432, `map`), 0 for a
    segment from cudaMalloc; `head` is the block at the lowest address.
    """

    __slots__ = ("address", "head", "nbytes", "pool", "unit_bytes")

    def __init__(self, address: int, nbytes: int, pool: Pool, unit_bytes: int = 0) -> None:
        self.address, self.nbytes, self.pool, self.unit_bytes = address, nbytes, pool, unit_bytes
        self.head = Block(address, nbytes, self, mapped=not unit_bytes)


class Block:
    """A piece of a segment, in use or free; `malloc` returns one and `free` takes it back.

    `nbytes` is its size, which `torch.cuda.memory_allocated` counts; `requested_bytes` is what was asked for.
    """

    __slots__ = (
        "address",
        "allocated",
        "born",
        "following",
        "mapped",
        "nbytes",
        "pool",
        "previous",
        "requested_bytes",
        "segment",
    )

    def __init__(self, address: int, nbytes: int, segment: Segment, *, mapped: bool = True) -> None:
        self.address, self.nbytes, self.segment, self.mapped = address, nbytes, segment, mapped
        self.pool = segment.pool
        self.requested_bytes = 0
        self.allocated = False
        self.previous: Block | None = None
        self.following: Block | None = None
        self.born = 0

    def __repr__(self) -> str:
        state = "allocated" if self.allocated else "free" if self.mapped else "unmapped"
        return f"<Block {self.address:#x} {self.nbytes} bytes, {state}>"


class Pool:
    """Free blocks of the small or of the large pool, smallest first, among equals the oldest segment's.

    PyTorch orders them by size, then by the order in which their segments were had, then by address
    (`BlockComparatorSizeCounterAddress`); segments have rising addresses here, so size and address say the same.
    Unmapped ranges are ordered by address alone (`BlockComparatorAddress`).
    """

    __slots__ = ("free", "keys", "lookups", "name", "split_below", "split_from", "unmapped")

    def __init__(self, name: str, split_from: int, split_below: float) -> None:
        self.name, self.split_from, self.split_below = name, split_from, split_below
        self.keys: list[int] = []
        self.free: list[Block] = []
        self.unmapped: list[Block] = []
        self.lookups = 0

    def insert(self, block: Block) -> None:
        """Put a mapped block among the free ones; its age starts again (`insert_into_blocks`, line 276)."""
        key = block.nbytes << ADDRESS_BITS | block.address
        index = bisect_left(self.keys, key)
        self.keys.insert(index, key)
        self.free.insert(index, block)
        block.born = self.lookups

    def remove(self, block: Block) -> None:
        """Take a block from among the free ones (`erase_from_blocks`, line 283)."""
        index = bisect_left(self.keys, block.nbytes << ADDRESS_BITS | block.address)
        del self.keys[index], self.free[index]

    def insert_unmapped(self, block: Block) -> None:
        """Keep a range of addresses without memory behind it."""
        insort(self.unmapped, block, key=_address)

    def merge(self, block: Block, neighbour: Block | None) -> None:
        """Let `block`, which is in no list, swallow a neighbour that is free and mapped or unmapped like it.

        `try_merge_blocks`, line 3583.
        """
        if neighbour is None or neighbour.allocated or neighbour.mapped != block.mapped:
            return
        if neighbour.mapped:
            self.remove(neighbour)
        else:
            self.unmapped.remove(neighbour)
        if neighbour is block.previous:
            block.address = neighbour.address
            before = block.previous = neighbour.previous
            if before is None:
                block.segment.head = block
            else:
                before.following = block
        else:
            after = block.following = neighbour.following
            if after is not None:
                after.previous = block
        block.nbytes += neighbour.nbytes

    def cut_front(self, block: Block, nbytes: int) -> Block:
        """Cut `nbytes` off the low end of a block that is in no list, and return the new block there."""
        front = Block(block.address, nbytes, block.segment)
        before = front.previous = block.previous
        if before is None:
            block.segment.head = front
        else:
            before.following = front
        front.following = block
        block.previous = front
        block.address += nbytes
        block.nbytes -= nbytes
        return front


def _address(block: Block) -> int:
    return block.address
