"""Phantom tensors: real CPU tensors whose bytes do not exist.

A phantom is an ordinary `torch.Tensor` on the CPU, so every dispatch decision (attention kernels, batch norm, autograd,
Python fast paths) is the CPU's own; only its storage points into address space that was reserved and never filled. All
phantoms share that address: nothing may read or write them, and under a capture nothing does. Were a kernel to do so
all the same, it would read zeros, not crash.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_RESERVE_BITS = (45, 42, 40, 37, 34, 31)
"""Address space to reserve, largest first: a limit on virtual memory may refuse the larger ones."""


_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Linux's value (asm-generic/mman.h), which Python names from 3.13 on: do not count the reservation as memory."""


@cache
def _region() -> mmap.mmap:
    """Reserve address space once a process; no page of it is ever backed by memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    for bits in _RESERVE_BITS:
        try:
            return mmap.mmap(-1, 1 << bits, flags=flags)
        except (OSError, ValueError, OverflowError):
            continue
    raise MemoryError("cannot reserve 2 GiB of address space; raise the limit on virtual memory (ulimit -v)")


@cache
def _base_address() -> int:
    return torch.frombuffer(_region(), dtype=torch.uint8, count=1).data_ptr()


def phantom(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, *, elements: int | None = None
) -> Tensor:
    """Make a CPU tensor of that geometry without bytes; `elements` sizes its storage (default: just enough).

    >>> phantom((2, 3), (3, 1), torch.float32).untyped_storage().nbytes()
    24
    """
    if elements is None:
        elements = 1
        for size, stride in zip(shape, strides, strict=True):
            if size == 0:
                elements = 0
                break
            elements += (size - 1) * stride
    if elements == 0:
        return torch.empty(0, dtype=dtype).as_strided(shape, strides)
    return torch.frombuffer(_region(), dtype=dtype, count=elements).as_strided(shape, strides)


def is_phantom(tensor: Tensor) -> bool:
    """True where the tensor's bytes do not exist."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() == _base_address()


def dense(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a contiguous phantom."""
    return phantom(shape, contiguous_strides(shape), dtype)


def like(tensor: Tensor) -> Tensor:
    """Make a phantom with another tensor's shape, dtype and dense layout."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    return phantom(shape, strides if is_dense(shape, strides) else dense_strides(shape, strides), tensor.dtype)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def dense_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a dense tensor that keeps another's order of dimensions.

    >>> dense_strides((2, 3, 4), (24, 1, 6))
    (12, 1, 3)
    """
    order = sorted(range(len(shape)), key=lambda d: (strides[d], -d))
    result = [0] * len(shape)
    step = 1
    for d in order:
        result[d] = step
        step *= max(shape[d], 1)
    return tuple(result)


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True where the elements fill their range without gap or overlap."""
    step = 1
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


_META = torch.device("meta")
_CPU = torch.device("cpu")


def run_on_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation's outputs as phantoms by its meta kernel: shapes, strides and errors, no arithmetic.

    Outputs that are or share an argument's storage are returned as that argument or a view of it.
    """
    stand_ins: dict[int, Tensor] = {}
    originals: dict[int, Tensor] = {}

    def to_meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            stand_in = stand_ins.get(id(value))
            if stand_in is None:
                stand_in = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_META)
                stand_ins[id(value)] = stand_in
                originals[stand_in.untyped_storage()._cdata] = value
            return stand_in
        return _META if isinstance(value, torch.device) else value

    meta_args, meta_kwargs = tree_map(to_meta, (args, kwargs))
    result = func(*meta_args, **meta_kwargs)
    made: dict[int, Tensor] = {}

    def to_phantom(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        original = originals.get(storage._cdata)
        if original is not None:
            if value.shape == original.shape and value.stride() == original.stride():
                return original
            return original.as_strided(value.shape, value.stride(), original.storage_offset() + value.storage_offset())
        base = made.get(storage._cdata)
        if base is None:
            elements = storage.nbytes() // value.element_size()
            base = made[storage._cdata] = phantom((elements,), (1,), value.dtype, elements=elements)
        if base.dtype != value.dtype:
            base = base.view(value.dtype)
        return base.as_strided(value.shape, value.stride(), value.storage_offset())

    return tree_map(to_phantom, result)


def numel(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    return math.prod(shape)
