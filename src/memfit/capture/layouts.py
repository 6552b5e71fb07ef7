"""Memory formats and strides: how PyTorch's CPU kernels lay out what they make."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memfit.capture.phantom import contiguous_strides, is_dense, phantom


def elementwise_strides(shape: Sequence[int], operands: Sequence[Tensor]) -> tuple[int, ...]:
    """Strides that an element-wise operation gives its output: dense, in the order of its operands' dimensions.

    Source: TensorIterator's reorder_dimensions and fast_setup in aten/src/ATen/TensorIterator.cpp, PyTorch 2.13.
    """
    shape = tuple(shape)
    whole = [t for t in operands if tuple(t.shape) == shape]
    if len(whole) == len(operands):
        first = operands[0].stride()
        if first == contiguous_strides(shape) or all(t.is_contiguous() for t in operands):
            if all(t.is_contiguous() for t in operands):
                return contiguous_strides(shape)
        elif len(shape) == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in operands):
            return strides_in(shape, torch.channels_last)
        if all(t.stride() == first for t in operands) and is_dense(shape, first):
            return first
    rank = len(shape)
    spread = [_broadcast_strides(t, shape) for t in operands]
    order = list(range(rank - 1, -1, -1))
    for i in range(1, rank):
        late = i
        for early in range(i - 1, -1, -1):
            swap = _out_of_order(order[early], order[late], shape, spread)
            if swap > 0:
                order[early], order[late] = order[late], order[early]
                late = early
            elif swap < 0:
                break
    strides = [0] * rank
    step = 1
    for d in order:
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


def _broadcast_strides(t: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    missing = len(shape) - t.dim()
    own = tuple(
        0 if n == 1 and shape[missing + d] != 1 else s for d, (n, s) in enumerate(zip(t.shape, t.stride(), strict=True))
    )
    return (0,) * missing + own


def _out_of_order(a: int, b: int, shape: tuple[int, ...], spread: Sequence[tuple[int, ...]]) -> int:
    """1 where dimension `a`, which comes first, should come after `b`; -1 where not; 0 where no operand can tell."""
    for strides in spread:
        if strides[a] == 0 or strides[b] == 0:
            continue
        if strides[a] != strides[b]:
            return 1 if strides[a] > strides[b] else -1
        if shape[a] > shape[b]:
            return 1
    return 0


def strides_in(shape: Sequence[int], layout: torch.memory_format) -> tuple[int, ...]:
    """Dense strides of a shape in a memory format."""
    if layout is torch.contiguous_format:
        return contiguous_strides(tuple(shape))
    n, c, *space = shape
    inner = contiguous_strides((n, *space, c))
    return (inner[0], inner[-1], *inner[1:-1])


def suggested_format(t: Tensor) -> torch.memory_format:
    """Memory format that an image tensor's strides suggest.

    Source: is_channels_last_strides_2d_s4 in c10/core/MemoryFormat.h, PyTorch 2.13.
    """
    if t.dim() != 4:
        return torch.contiguous_format
    strides = t.stride()
    least = 0
    if strides[1] == 0:
        return torch.contiguous_format
    for d in (1, 3, 2, 0):
        if t.shape[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return torch.contiguous_format
        least = strides[d] * max(t.shape[d], 1)
    return torch.channels_last


def laid_out_as(shape: Sequence[int], t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Make an output in the memory format that an input suggests."""
    return phantom(tuple(shape), strides_in(shape, suggested_format(t)), dtype or t.dtype)


def same_layout(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Make what `empty_like` makes: the same strides where dense, else dense in the same order of dimensions."""
    shape, strides = tuple(t.shape), t.stride()
    if not is_dense(shape, strides):
        strides = elementwise_strides(shape, (t,))
    return phantom(shape, strides, dtype or t.dtype)
