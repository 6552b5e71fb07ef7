"""A convolution's backward pass on the CPU: the data's gradient, then the weight's and the bias's."""

from __future__ import annotations

import math
from collections.abc import Callable

from memfit.graph.model import Op, Tensor
from memfit.memory.cpu.convolution import (
    BATCH,
    PAGE,
    SLACK,
    Shape,
    backend_of,
    by_gemm,
    copies,
    first_convolution,
    last_outputs,
    last_weight,
    pointwise,
    reordered,
    shape_of,
    spans,
    unfolds,
)
from memfit.memory.cpu.machine import F32, Machine, suggests_last, up


def backward(machine: Machine, op: Op) -> list[int] | None:
    """Events of `aten.convolution_backward`."""
    gradient, x, weight, _, stride, padding, dilation, _transposed, _, groups, mask = op.args
    tensors = machine.tensors
    tg, tx, tw = tensors[gradient], tensors[x], tensors[weight]
    last = suggests_last(tx) or suggests_last(tw)
    backend = op.attrs.get("backend") or backend_of(machine, tx, tw, op.args[4:10])
    rule = BACKWARD.get(backend)
    if rule is None or not machine.lanes or len(tx.shape) > 4:
        return None
    shape = shape_of(tx.shape, tg.shape, tw.shape, (stride, padding, dilation, groups), last)
    return rule(machine, shape, (tg, tx, tw), mask)


def onednn_backward(
    machine: Machine, shape: Shape, operands: tuple[Tensor, Tensor, Tensor], mask: tuple[bool, bool, bool]
) -> list[int] | None:
    """oneDNN: a primitive for the data, then one for weight and bias."""
    gradient, x, weight = operands
    extra = copies(shape.last, weight, gradient, x)
    events = list(extra)
    if mask[0]:
        data = last_data(machine, shape) if shape.last else data_gradient(machine, shape)
        if data is None:
            return None
        events += data
    if mask[1] or mask[2]:
        weights = last_weights(machine, shape, mask[2]) if shape.last else weight_gradient(machine, shape, mask[2])
        if weights is None:
            return None
        events += weights
    return [*events, *(-b for b in reversed(extra))]


def sizes(shape: Shape) -> tuple[int, int, int]:
    """Bytes of the three gradients: data, weight, bias."""
    x = F32 * shape.batch * shape.inputs * math.prod(shape.spatial)
    return x, F32 * shape.inputs // shape.groups * shape.outputs * shape.taps, F32 * shape.outputs


def data_gradient(machine: Machine, shape: Shape) -> list[int]:
    """The input's gradient, row-major."""
    x, _, _ = sizes(shape)
    if by_gemm(machine, shape) or (shape.depthwise and any(d > 1 for d in shape.dilation)):
        columns = [machine.threads * window(shape) + SLACK] if unfolds(shape) else []
        return [x, *columns, *(-b for b in columns), x, -x]
    if shape.strided and not shape.depthwise and (shape.groups == 1 or shape.inputs // shape.groups > 16):
        g = F32 * shape.batch * shape.outputs * math.prod(shape.result)
        scratch, wr = strided(machine, shape), strided_weight(shape)
        return [g, wr, x, scratch, -scratch, -wr, -g, x, x, -x, -x]
    xr, wr, gr = reordered(machine, shape, first=False)
    return [gr, wr, xr, -wr, -gr, x, -xr]


def window(shape: Shape) -> int:
    """Bytes of one image's unfolded columns, one group."""
    return F32 * shape.inputs // shape.groups * shape.taps * math.prod(shape.result)


def strided_weight(shape: Shape) -> int:
    """Bytes of the weight blocked for the strided kernel."""
    inputs = shape.inputs // shape.groups
    padded = last_outputs(inputs, shape.taps, shape.result)
    return F32 * shape.groups * padded * (shape.outputs // shape.groups) * shape.taps


def uneven(shape: Shape) -> bool:
    """True where the stride does not divide the image."""
    return any(i % s for i, s in zip(shape.spatial, shape.stride, strict=True))


def strided(machine: Machine, shape: Shape) -> int:
    """Scratch of the strided kernel: per thread its batch, its mask, a padded copy of the output's gradient, and an
    accumulator where the stride does not divide the image.
    """
    padded = 1
    for i, o, s, p, k in zip(shape.spatial, shape.result, shape.stride, shape.padding, spans(shape), strict=True):
        after = (o - 1) * s + k - i - p
        padded *= o + max(0, k - 1 - p) // s + max(0, k - 1 - after) // s
    each = BATCH + PAGE + up(F32 * shape.outputs * padded, 4 * PAGE)
    total = 3 * PAGE + machine.threads * each
    if uneven(shape):
        cells = -(-shape.spatial[-1] // shape.stride[-1]) * math.prod(shape.stride)
        total += PAGE + machine.threads * up(F32 * cells * shape.inputs // shape.groups, 4 * PAGE)
    return total


def weight_gradient(machine: Machine, shape: Shape, bias: bool) -> list[int]:
    """The weight's and the bias's gradients, row-major."""
    _, w, b = sizes(shape)
    gb = [b] if bias else []
    release = [-b for b in gb]
    if weights_by_gemm(machine, shape):
        threads = 1 if shape.groups > 1 and math.prod(shape.result) > 256 else machine.threads
        scratch = threads * 4 * w + SLACK + (threads * window(shape) + SLACK if unfolds(shape) else 0)
        return [w, scratch, *gb, -scratch, *gb, w, -w, *release]
    xr, wr, gr = reordered(machine, shape)
    scratch = reduction(machine, shape, wr, bias)
    inner = [scratch] if scratch else []
    xs = [xr] if xr else []
    return [gr, *xs, wr, *inner, *gb, *(-s for s in inner), *(-s for s in xs), -gr, *gb, w, -wr, *release]


def reduction(machine: Machine, shape: Shape, wr: int, bias: bool) -> int:
    """Scratch of the weight's gradient: partial sums of threads that share the batch, and padded or gathered data."""
    lanes = machine.lanes
    ragged = F32 * up(shape.outputs, lanes) if bias and shape.outputs % lanes and shape.groups == 1 else 0
    if shape.depthwise:
        n = min(machine.threads, shape.batch) if shape.last or -(-shape.groups // lanes) < machine.threads else 1
        if n == 1:
            return 0
        padded = shape.groups if shape.last else up(shape.groups, lanes)
        return (n - 1) * (wr + (F32 * padded + SLACK if bias else 0)) + SLACK
    total = 0
    if bias and shape.outputs <= lanes and machine.threads > 1 and shape.batch > 1:
        total += 3 * PAGE + F32 * lanes * (min(machine.threads, shape.batch) - 1)
    if pointwise(shape) and shape.groups == 1:
        n = pointwise_split(machine, shape)
        if n > 1:
            total += (n - (lanes == 16)) * wr + 8192 + SLACK  # on AVX2 every thread has a part of its own
        if shape.strided:
            blocks = up(shape.inputs, lanes) // lanes
            if not shape.last:
                blocks = gathered_blocks(blocks)
            total += machine.threads * F32 * lanes * blocks * math.prod(shape.result) + SLACK
    elif lanes == 16:
        n = spatial_split(machine, shape)
        if n > 1:
            total += (n - 1) * (wr + F32 * up(shape.outputs, lanes)) + 8192 + SLACK
    return total + (ragged + SLACK if ragged else 0)


def gathered_blocks(blocks: int) -> int:
    """Blocks of channels that are gathered at once (oneDNN 3.12, jit_avx512_common_1x1_conv_kernel's `init_conf`).

    >>> [gathered_blocks(n) for n in (7, 13, 16, 18)]
    [7, 13, 8, 9]
    """
    while blocks > 9:
        if blocks % 2 == 0:
            blocks //= 2
        elif blocks % 3 == 0:
            blocks //= 3
        else:
            break
    return blocks


def pointwise_split(machine: Machine, shape: Shape) -> int:
    """Threads over which oneDNN splits the batch of a 1x1 weight gradient, by its estimate of memory traffic
    (oneDNN 3.12, jit_avx512_common_1x1_conv_kernel's `balance`).
    """
    lanes = machine.lanes
    load, cast = -(-shape.outputs // lanes), -(-shape.inputs // lanes)
    pixels = math.prod(shape.result)
    reduce = pixels

    def cost(batch: int, outputs: int, inputs: int) -> int:
        rows = -(-(shape.batch * reduce) // batch)
        return (
            rows * -(-cast // inputs) * lanes
            + rows * -(-load // outputs) * lanes
            + 12 * -(-load // outputs) * -(-cast // inputs) * lanes * lanes
        )

    return split(machine.threads, (load, cast), cost, most=shape.batch * reduce, batch=shape.batch)


def spatial_split(machine: Machine, shape: Shape) -> int:
    """The same for k x k (oneDNN 3.12, jit_avx512_common_conv_bwd_weights_kernel's `balance`)."""
    lanes = machine.lanes
    groups = shape.groups
    if machine.threads < groups:
        return 1
    load, cast = -(-shape.outputs // groups // lanes), -(-shape.inputs // groups // lanes)
    width = min(lanes, shape.inputs) if first_convolution(machine, shape) else lanes
    x, y, area = math.prod(shape.spatial), math.prod(shape.result), math.prod(shape.stride)

    def cost(batch: int, outputs: int, inputs: int) -> int:
        images = -(-shape.batch // batch)
        return (
            images * -(-cast // inputs) * width * x // area
            + 2 * images * -(-load // outputs) * lanes * y
            + 4 * -(-load // outputs) * -(-cast // inputs) * shape.taps * width * lanes
        )

    return split(machine.threads // groups, (load, cast), cost, most=shape.batch, batch=shape.batch)


def split(threads: int, blocks: tuple[int, int], cost: Callable[[int, int, int], int], *, most: int, batch: int) -> int:
    """The batch's share of the threads in the cheapest distribution over batch, outputs and inputs; last one wins."""
    load, cast = blocks
    best, chosen = cost(1, 1, 1), 1
    for n in range(1, min(threads, most) + 1):
        rest = threads // n
        for outputs in range(1, min(rest, load) + 1):
            value = cost(n, outputs, min(rest // outputs, cast))
            if value <= best:
                best, chosen = value, n
    return min(batch, threads) if threads > chosen > threads // 2 else chosen


def weights_by_gemm(machine: Machine, shape: Shape) -> bool:
    """True where oneDNN has no blocked kernel for the weight's gradient."""
    if shape.depthwise:
        wide = shape.kernel[-1] > 3 or (shape.taps == 1 and shape.strided) or any(d > 1 for d in shape.dilation)
        return wide or any(k > i for k, i in zip(shape.kernel, shape.spatial, strict=True))
    if shape.groups > 1 and min(shape.inputs, shape.outputs) // shape.groups < 8:
        return True
    return by_gemm(machine, shape) or any(k > 14 for k in shape.kernel)


def last_data(machine: Machine, shape: Shape) -> list[int]:
    """The input's gradient, channels_last."""
    x, _, _ = sizes(shape)
    if shape.depthwise:
        wr, _ = last_weight(machine, shape)
        return [x, wr, -wr]
    if shape.strided:
        scratch, wr = strided(machine, shape), strided_weight(shape)
    else:
        scratch = PAGE + machine.threads * BATCH + SLACK
        wr = F32 * last_outputs(shape.inputs, shape.taps, shape.result) * shape.outputs * shape.taps
    return [x, wr, scratch, -scratch, -wr]


def last_weights(machine: Machine, shape: Shape, bias: bool) -> list[int]:
    """The weight's and the bias's gradients, channels_last."""
    _, w, b = sizes(shape)
    gb = [b] if bias else []
    release = [-b for b in gb]
    scratch = 0
    if shape.depthwise and any(k > 3 for k in shape.kernel):
        wr = F32 * shape.groups * 256 * shape.taps
        scratch = 64 * shape.groups + SLACK if bias else 0
    else:
        _, wr, _ = reordered(machine, shape)
        scratch = reduction(machine, shape, wr, bias)
    inner = [scratch] if scratch else []
    return [wr, *inner, *gb, *(-s for s in inner), *gb, w, w, -w, -wr, *release]


def unfolding_backward(
    _: Machine, shape: Shape, operands: tuple[Tensor, Tensor, Tensor], mask: tuple[bool, bool, bool]
) -> list[int] | None:
    """ATen's own kernel."""
    if shape.groups > 1:
        return by_group(shape, mask)
    gradient, x, weight = operands
    gx, gw, gb = sizes(shape)
    first = copies(shape.last, gradient, weight)
    later, second = copies(shape.last, gradient), copies(shape.last, x)
    events: list[int] = []
    if mask[0]:
        events += [*first, gx, *(-b for b in reversed(first))]
    if mask[2]:
        events.append(gb)
    if mask[1]:
        columns = [window(shape) * shape.batch] if unfolds(shape) else []
        events += [*second, gw, *later, *columns, *(-b for b in (*columns, *later, *second))]
    return events


def by_group(shape: Shape, mask: tuple[bool, bool, bool]) -> list[int] | None:
    """The same group by group: slices of a batch are copied, and each gradient is put together at the end."""
    if unfolds(shape) or shape.last:
        return None
    groups = shape.groups
    gx, gw, gb = (size if wanted else 0 for size, wanted in zip(sizes(shape), mask, strict=True))
    x = F32 * shape.batch * shape.inputs * math.prod(shape.spatial) // groups
    g = F32 * shape.batch * shape.outputs * math.prod(shape.result) // groups
    slices = [g, x] if shape.batch > 1 else []
    parts = [size // groups for size in (gx, gb, gw) if size]
    one = [*slices, *parts, *(-b for b in reversed(slices))]
    whole = [size for size in (gx, gw, gb) if size]
    return [*one * groups, *whole, *(-size // groups for size in reversed(whole) for _ in range(groups))]


BACKWARD = {
    "Mkldnn": onednn_backward,
    "Slow2d": unfolding_backward,
}
