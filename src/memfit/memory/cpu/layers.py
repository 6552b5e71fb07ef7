"""What the CPU kernels of norms and attention allocate besides their outputs, measured with torch 2.13.0."""

from __future__ import annotations

import math

from memfit.graph.model import Op, Tensor
from memfit.memory.cpu.machine import (
    F32,
    Machine,
    argument,
    dense,
    freed,
    is_contiguous,
    is_contiguous_last,
    suggests_last,
)

# -- norms ------------------------------------------------------------------------------------------------------------


def batch_norm(machine: Machine, op: Op) -> list[int] | None:
    """Evaluation: scale and shift of C elements; training: statistics first (native/Normalization.cpp)."""
    x = machine.tensors[op.args[0]]
    c = F32 * x.shape[1]
    outputs = machine.outputs(op)
    if not op.args[5]:
        return [*outputs, c, c, -c, -c]
    parts = [] if row_major_norm(machine, x) else [machine.threads * c]
    return [*outputs, c, c, *parts, *freed(parts), -c, -c, c, c, -c, -c]


def row_major_norm(machine: Machine, x: Tensor) -> bool:
    """True where the forward kernels run over images; those for channels_last also take (batch, channels), and single
    pixels on one thread.
    """
    pixels = x.elements > x.shape[0] * x.shape[1] or (machine.threads > 1 and len(x.shape) > 2)
    return pixels and is_contiguous(x) and not suggests_last(x)


def batch_norm_backward(machine: Machine, op: Op) -> list[int]:
    """A second gradient where both operands lie alike, else one value a channel."""
    gradient, x = machine.tensors[op.args[0]], machine.tensors[op.args[1]]
    c = F32 * x.shape[1]
    outputs = machine.outputs(op)
    size = dense(x)
    weights = [] if op.args[9][1] else [c]
    if is_contiguous(gradient) and is_contiguous(x):
        if x.elements > x.shape[0] * x.shape[1]:
            return [*outputs, size, -size]
        last = True
    else:
        last = len(x.shape) >= 4 and is_contiguous_last(gradient) and is_contiguous_last(x)
    if last:
        parts = 2 * machine.threads * c
        return [*outputs, size, -size, *weights, parts, -parts, *freed(weights)]
    return [*outputs, c, -c]


def layer_norm(machine: Machine, op: Op) -> list[int]:
    """A copy of an input that is not row-major, around the outputs."""
    x = machine.tensors[op.args[0]]
    copied = [] if is_contiguous(x) else [dense(x)]
    return [*copied, *machine.outputs(op), *freed(copied)]


def layer_norm_backward(machine: Machine, op: Op) -> list[int]:
    """Copies of operands, and each thread's part of the weight's and bias's gradients."""
    gradient, x = machine.tensors[op.args[0]], machine.tensors[op.args[1]]
    copied = [] if is_contiguous(x) else [dense(x)]
    inner = [] if is_contiguous(gradient) else [dense(gradient)]
    mask = op.args[7]
    if mask[1] or mask[2]:
        inner.append(2 * machine.threads * F32 * math.prod(op.args[2]))
    return [*copied, *machine.outputs(op), *inner, *(-b for b in reversed(inner)), *freed(copied)]


def group_norm(machine: Machine, op: Op) -> list[int]:
    """channels_last: scale and shift of every channel of every image."""
    x = machine.tensors[op.args[0]]
    parts = [] if is_contiguous(x) else [2 * F32 * x.shape[0] * x.shape[1]]
    return [*machine.outputs(op), *parts, *freed(parts)]


def group_norm_backward(machine: Machine, op: Op) -> list[int]:
    """Two sums for every channel of every image."""
    x = machine.tensors[op.args[1]]
    sums = F32 * x.shape[0] * x.shape[1]
    return [*machine.outputs(op), sums, sums, -sums, -sums]


# -- attention --------------------------------------------------------------------------------------------------------


def query_block(length: int) -> int:
    """Queries that the flash kernel takes at once (native/cpu/FlashAttentionKernel.cpp)."""
    block = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(length, block)


def flash_attention(machine: Machine, op: Op) -> list[int]:
    """Each thread's scores, maxima, sums and output block."""
    query, key, value = (machine.tensors[op.args[p]] for p in range(3))
    q, k = query_block(query.shape[2]), min(512, key.shape[2])
    buffer = F32 * machine.threads * (q * k + 2 * q + q * value.shape[3])
    return [*machine.outputs(op), buffer, -buffer]


def flash_attention_backward(machine: Machine, op: Op) -> list[int]:
    """A copy of the output's gradient where heads do not lie inside tokens, two blocks of scores a thread, a row."""
    gradient, query, key = (machine.tensors[op.args[p]] for p in range(3))
    batch, heads, tokens, _ = gradient.strides
    sizes = gradient.shape
    turned = gradient._replace(
        shape=(sizes[0], sizes[2], sizes[1], sizes[3]), strides=(batch, tokens, heads, gradient.strides[3])
    )
    q, k = query_block(query.shape[2]), min(512, key.shape[2])
    inner = [] if is_contiguous(turned) else [dense(gradient)]
    inner += [2 * F32 * machine.threads * q * k, F32 * q]
    return [*machine.outputs(op), *inner, *(-b for b in reversed(inner))]


def fused_attention(machine: Machine, op: Op) -> list[int] | None:
    """The evaluation path of `nn.MultiheadAttention`: packed projections, then the whole score matrix."""
    query, key = machine.tensors[op.args[0]], machine.tensors[op.args[1]]
    if len(query.shape) != 3 or query[1:6] != key[1:6] or argument(op, 9, "mask") is not None:
        return None
    x, heads = dense(query), int(op.args[4])
    scores = F32 * query.shape[0] * heads * query.shape[1] ** 2
    return [3 * x, 3 * x, -3 * x, scores, -scores, x, x, -x, -3 * x]
