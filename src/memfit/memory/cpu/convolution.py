"""Convolution on the CPU: oneDNN's reordered copies, and the columns of the unfolding kernels.

oneDNN computes on blocked layouts: a row-major operand is reordered into a copy whose channels are padded to whole
vectors, and the result is written blocked and reordered back. Measured with torch 2.13.0 (oneDNN 3.12), operation by
operation; `benchmarks/eager_truth.py` compares whole networks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from memfit.graph.model import ITEMSIZE, Op, Tensor
from memfit.memory.cpu.machine import F32, Machine, is_contiguous, is_contiguous_last, suggests_last, up

SLACK = 128
"""Bytes that oneDNN adds to a scratchpad to align it."""


PAGE = 4096
BATCH = 4120
"""Bytes of a thread's list for batched gemm: entries of 40 bytes, up to a page."""


class Shape(NamedTuple):
    """A convolution's numbers, a transposed one read as the convolution that it inverts."""

    batch: int
    inputs: int
    outputs: int
    groups: int
    spatial: tuple[int, ...]
    """Size of the input."""
    result: tuple[int, ...]
    """Size of the output."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    last: bool
    """channels_last: oneDNN works on the tensors as they lie."""

    @property
    def depthwise(self) -> bool:
        """True with one channel per group on both sides."""
        return self.groups > 1 and self.inputs == self.groups == self.outputs

    @property
    def taps(self) -> int:
        """Elements of one kernel window."""
        return math.prod(self.kernel)

    @property
    def strided(self) -> bool:
        """True where a stride is over 1."""
        return any(s > 1 for s in self.stride)


class Call(NamedTuple):
    """One forward convolution: its numbers, operands, and the bytes of its output."""

    shape: Shape
    x: Tensor
    weight: Tensor
    bias: bool
    y_bytes: int


def shape_of(
    x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...], op_args: tuple[Any, ...], last: bool
) -> Shape:
    """Read a convolution's numbers; `op_args` are stride, padding, dilation and groups.

    A 1-D convolution runs as a 2-D one of height 1.
    """
    stride, padding, dilation, groups = op_args
    dims = len(x) - 2

    def full(values: Any, missing: int) -> tuple[int, ...]:
        values = tuple(values) * dims if len(values) == 1 else tuple(values)
        return (missing, *values) if dims == 1 else values

    return Shape(
        x[0], x[1], y[1], groups, full(x[2:], 1), full(y[2:], 1), full(weight[2:], 1),
        full(stride, 1), full(padding, 0), full(dilation, 1), last,
    )  # fmt: skip


def pointwise(shape: Shape) -> bool:
    """True where oneDNN's 1x1 kernel applies: no padding, and a stride that divides the input."""
    return shape.taps == 1 and not any(shape.padding) and gathers(shape)


def gathers(shape: Shape) -> bool:
    """True where a stride takes every s-th pixel and leaves none over."""
    return all(s == 1 or i == o * s for i, o, s in zip(shape.spatial, shape.result, shape.stride, strict=True))


def group_block(machine: Machine, shape: Shape) -> int:
    """Channels that oneDNN blocks in a grouped convolution: the widest that divides both sides; 0 for none."""
    inputs, outputs = shape.inputs // shape.groups, shape.outputs // shape.groups
    for block in (16, 8, 4):
        if block <= machine.lanes and inputs % block == 0 and outputs % block == 0:
            return block
    return 0


def by_gemm(machine: Machine, shape: Shape) -> bool:
    """True where oneDNN has no blocked kernel for row-major operands and unfolds."""
    if any(p >= k_span for p, k_span in zip(shape.padding, spans(shape), strict=True)):
        return True
    if shape.padding[-1] > shape.result[-1]:
        return True
    return shape.groups > 1 and not shape.depthwise and not group_block(machine, shape)


def spans(shape: Shape) -> list[int]:
    """Pixels that a dilated kernel covers, by dimension."""
    return [(k - 1) * d + 1 for k, d in zip(shape.kernel, shape.dilation, strict=True)]


def first_convolution(machine: Machine, shape: Shape) -> bool:
    """True where oneDNN reads a row-major input as it lies: fewer channels than a vector (one or three on AVX2)."""
    if shape.groups != 1 or pointwise(shape):
        return False
    return shape.inputs < 16 if machine.lanes == 16 else shape.inputs in {1, 3}


def last_outputs(channels: int, taps: int, result: tuple[int, ...]) -> int:
    """Channels to which the channels_last kernels pad their weight: oneDNN's choice among blocks of 16 to 64."""
    if taps == 1:
        return up(channels, 16) if channels <= 64 else min(up(channels, block) for block in (64, 48, 32))
    blocks = (48, 32) if math.prod(result) >= 400 else (32,)
    return up(channels, 16) if channels <= 16 else min(up(channels, block) for block in blocks)


def reordered(machine: Machine, shape: Shape, *, first: bool = True) -> tuple[int, int, int]:
    """Bytes of the blocked input (0: read as it lies), weight and output."""
    lanes, groups = machine.lanes, shape.groups
    pixels, results = F32 * shape.batch * math.prod(shape.spatial), F32 * shape.batch * math.prod(shape.result)
    if groups == 1:
        inputs, outputs = up(shape.inputs, lanes), up(shape.outputs, lanes)
        if first and first_convolution(machine, shape):
            return 0, F32 * shape.inputs * outputs * shape.taps, results * outputs
        return pixels * inputs, F32 * inputs * outputs * shape.taps, results * outputs
    if shape.depthwise:
        padded = up(groups, lanes)
        return pixels * padded, F32 * padded * shape.taps, results * padded
    weight = F32 * shape.inputs // groups * shape.outputs * shape.taps
    return pixels * shape.inputs, weight, results * shape.outputs


def last_weight(machine: Machine, shape: Shape) -> tuple[int, bool]:
    """Bytes of the blocked weight of a channels_last convolution, and whether it runs by batched gemm."""
    lanes, groups = machine.lanes, shape.groups
    if shape.depthwise:
        return F32 * up(groups, lanes) * shape.taps, False
    inputs, outputs = shape.inputs // groups, shape.outputs // groups
    if groups > 1 and inputs <= lanes:
        if inputs % 16 and outputs % 16 and group_block(machine, shape):
            return F32 * shape.inputs * outputs * shape.taps, False
        return F32 * groups * up(inputs, lanes) * up(outputs, lanes) * shape.taps, False
    return F32 * groups * inputs * last_outputs(outputs, shape.taps, shape.result) * shape.taps, True


def forward(machine: Machine, op: Op) -> list[int] | None:
    """Events of `aten.convolution`."""
    backend = str(op.attrs.get("backend"))
    rule = FORWARD.get(backend)
    if rule is None:
        return None
    x, weight, bias = op.args[:3]
    stride, padding, dilation, _transposed, _output_padding, groups = op.args[3:9]
    tensors = machine.tensors
    tx, tw, ty = tensors[x], tensors[weight], tensors[op.outputs[0]]
    last = suggests_last(tx) or suggests_last(tw)
    shape = shape_of(tx.shape, ty.shape, tw.shape, (stride, padding, dilation, groups), last)
    return rule(machine, Call(shape, tx, tw, bias is not None, machine.storages[ty.storage].nbytes))


def copies(last: bool, *tensors: Tensor) -> list[int]:
    """Bytes of the copies of what does not lie in the layout asked for."""
    right = is_contiguous_last if last else is_contiguous
    return [math.prod(t.shape) * ITEMSIZE[t.dtype] for t in tensors if not right(t)]


def gathering(machine: Machine, shape: Shape) -> int:
    """Scratch of a 1x1 convolution with a stride over 1, which first gathers the pixels it needs."""
    if not shape.strided or shape.groups > 1 or len(shape.kernel) != 2 or not pointwise(shape):
        return 0
    return machine.threads * F32 * up(shape.inputs, machine.lanes) * math.prod(shape.result) + SLACK


def onednn(machine: Machine, call: Call) -> list[int] | None:
    """oneDNN, forward."""
    shape, x, w, bias, y = call
    if not machine.lanes:
        return None
    extra = copies(shape.last, x, w)
    release = [-b for b in extra]
    if shape.last:
        weight, batched = last_weight(machine, shape)
        scratch = [PAGE + machine.threads * BATCH] if batched else []
        return [*extra, y, *scratch, weight, -weight, *(-b for b in scratch), *release]
    if by_gemm(machine, shape):
        columns = []
        if not (shape.taps == 1 and not shape.strided and not any(shape.padding)):
            window = F32 * shape.inputs // shape.groups * shape.taps * math.prod(shape.result)
            columns = [machine.threads * window + SLACK]
        return [*extra, *columns, y, *(-b for b in columns), y, -y, *release]
    xr, wr, yr = reordered(machine, shape)
    scratch_bytes = gathering(machine, shape)
    if bias and shape.outputs % machine.lanes and (shape.groups == 1 or shape.depthwise):
        scratch_bytes += F32 * up(shape.outputs, machine.lanes) + SLACK
    inner = [b for b in (scratch_bytes, xr) if b]
    return [*extra, *inner, wr, yr, -wr, *(-b for b in reversed(inner)), y, -yr, *release]


def unfolds(shape: Shape) -> bool:
    """True where ATen's own kernel needs columns: not for 1x1 without stride and padding."""
    return shape.taps != 1 or shape.strided or any(shape.padding)


def unfolding(_: Machine, call: Call) -> list[int] | None:
    """ATen's own kernel: unfold the input into columns, then multiply."""
    shape, x, w, _bias, y = call
    extra = copies(shape.last, x, w)
    groups = shape.groups
    columns = 0
    if unfolds(shape):
        columns = F32 * shape.batch * shape.inputs // groups * shape.taps * math.prod(shape.result)
    inner = [columns] if columns else []
    if groups == 1:
        return [*extra, *inner, y, *(-b for b in inner), *(-b for b in extra)]
    part = F32 * shape.batch * shape.inputs // groups * math.prod(shape.spatial)
    if shape.batch > 1 or shape.last:
        inner.insert(0, part)
    one = [*inner, y // groups, *(-b for b in reversed(inner))]
    return [*extra, *one * groups, y, *[-(y // groups)] * groups, *(-b for b in extra)]


FORWARD = {
    "Mkldnn": onednn,
    "Slow2d": unfolding,
}
"""By the backend's name in ATen."""


def backend_of(machine: Machine, x: Tensor, w: Tensor, settings: tuple[Any, ...]) -> str:
    """Choose the backend as ATen's `ConvParams::use_mkldnn` does (aten/src/ATen/native/Convolution.cpp, v2.13.0).

    `settings` are stride, padding, dilation, transposed, output padding and groups.
    """
    stride, _padding, dilation, transposed, output_padding, groups = settings
    if x.dtype != "float32" or len(x.shape) > 4:
        return ""
    if transposed and any(p >= s for p, s in zip(output_padding, stride, strict=False)):
        return "SlowTranspose2d"
    kernel = w.shape[2:]
    wide = x.shape[0] >= 16 or any(n != 1 for n in (*stride, *dilation, *kernel))
    large = groups > 1 or (len(kernel) > 1 and min(kernel) > 3) or x.shape[0] > 1 or math.prod(x.shape) > 20480
    if (wide or machine.threads > 1) and large:
        return "MkldnnTranspose" if transposed else "Mkldnn"
    if any(d != 1 for d in dilation):
        return "SlowDilated2d"
    return "SlowTranspose2d" if transposed else "Slow2d"
