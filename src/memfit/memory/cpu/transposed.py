"""Transposed convolution on the CPU: oneDNN runs the passes of the convolution that it inverts.

Its forward is that convolution's data gradient, its data gradient that convolution's forward. `Shape` holds the
inverted convolution's numbers: its input is the transposed one's output.
"""

from __future__ import annotations

import math

from memfit.graph.model import Op
from memfit.memory.cpu.convolution import (
    BATCH,
    PAGE,
    SLACK,
    Shape,
    backend_of,
    by_gemm,
    copies,
    gathering,
    last_outputs,
    last_weight,
    reordered,
    shape_of,
)
from memfit.memory.cpu.convolution_backward import (
    reduction,
    sizes,
    strided,
    strided_weight,
    uneven,
    weights_by_gemm,
    window,
)
from memfit.memory.cpu.machine import F32, Machine, suggests_last

BACKEND = "MkldnnTranspose"
"""ATen's name of the transposed oneDNN kernel."""


def transposed_forward(machine: Machine, op: Op) -> list[int] | None:
    """Events of a transposed `aten.convolution`."""
    x, weight, bias, stride, padding, dilation, _, _, groups = op.args[:9]
    tensors = machine.tensors
    tx, tw, ty = tensors[x], tensors[weight], tensors[op.outputs[0]]
    if op.attrs.get("backend") != BACKEND or not machine.lanes or len(tx.shape) != 4:
        return None
    last = suggests_last(tx) or suggests_last(tw)
    shape = shape_of(ty.shape, tx.shape, tw.shape, (stride, padding, dilation, groups), last)
    extra = copies(last, tw, tx)
    inner = last_passes(machine, shape, bias is not None) if last else row_major(machine, shape, bias is not None)
    return [*extra, *inner, *(-b for b in reversed(extra))]


def row_major(machine: Machine, shape: Shape, bias: bool) -> list[int]:
    """Forward on row-major tensors."""
    y, _, _ = sizes(shape)
    if by_gemm(machine, shape):
        columns = machine.threads * window(shape) + 2 * SLACK
        return [columns, y, -columns, y, -y]
    if shape.strided and not shape.depthwise and (shape.groups == 1 or shape.inputs // shape.groups > 16):
        scratch = strided(machine, shape) + SLACK + (y + SLACK if bias and uneven(shape) else 0)
        x = F32 * shape.batch * shape.outputs * math.prod(shape.result)
        weight = strided_weight(shape)
        return [scratch, x, weight, y, -weight, -x, -scratch, y, y, -y, -y]
    yr, weight, xr = reordered(machine, shape, first=False)
    added = [yr + SLACK] if bias else []
    return [*added, xr, weight, yr, -weight, -xr, *(-b for b in added), y, -yr]


def last_passes(machine: Machine, shape: Shape, bias: bool) -> list[int]:
    """Forward on channels_last tensors."""
    y, _, _ = sizes(shape)
    if shape.groups > 1:
        weight, _ = last_weight(machine, shape)
        scratch = y + SLACK if bias else 0
    elif shape.strided:
        scratch = strided(machine, shape) + SLACK + (y + SLACK if bias and uneven(shape) else 0)
        weight = strided_weight(shape)
    else:
        scratch = PAGE + machine.threads * BATCH + SLACK
        weight = F32 * last_outputs(shape.inputs, shape.taps, shape.result) * shape.outputs * shape.taps
    inner = [scratch] if scratch else []
    return [y, *inner, weight, -weight, *(-b for b in inner)]


def transposed_backward(machine: Machine, op: Op) -> list[int] | None:
    """Events of a transposed `aten.convolution_backward`, row-major."""
    gradient, x, weight, _, stride, padding, dilation, _, _, groups, mask = op.args
    tensors = machine.tensors
    tg, tx, tw = tensors[gradient], tensors[x], tensors[weight]
    backend = op.attrs.get("backend") or backend_of(machine, tx, tw, op.args[4:10])
    if backend != BACKEND or not machine.lanes or suggests_last(tx) or suggests_last(tw) or groups != 1:
        return None
    shape = shape_of(tg.shape, tx.shape, tw.shape, (stride, padding, dilation, groups), False)
    if by_gemm(machine, shape) or weights_by_gemm(machine, shape):
        return None
    extra = copies(False, tw, tg, tx)
    gr, wr, xr = reordered(machine, shape)
    events = list(extra)
    if mask[0]:
        scratch = gathering(machine, shape)
        inner = [b for b in (scratch + SLACK if scratch else 0, gr) if b]
        data = F32 * shape.batch * shape.outputs * math.prod(shape.result)
        events += [*inner, wr, xr, -wr, *(-b for b in reversed(inner)), data, -xr]
    if mask[1] or mask[2]:
        _, w, _ = sizes(shape)
        gr, wr, xr = reordered(machine, shape, first=False)
        scratch = reduction(machine, shape, wr, False)
        inner = [scratch + SLACK] if scratch else []
        gb = [F32 * shape.inputs] if mask[2] else []
        gs = [gr] if gr else []
        made = [*gs, xr, wr, *inner, *gb, *(-b for b in inner), -xr, *(-b for b in gs), *gb, w, -wr]
        events += [*made, *(-b for b in gb)]
    return [*events, *(-b for b in reversed(extra))]
