"""The grids of a network's weights: one per output channel, as wide as loses least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from memfit.analysis.layers import Layer
from memfit.compress.fake_quant import Grids, fake_quantize, of_weight
from memfit.compress.runner import Runner
from memfit.graph.model import Tensor as Value
from memfit.graph.optable import Role

_NARROW = 8
"""Below so many bits it pays to leave out a weight's outliers."""
_SHARES = torch.linspace(1.0, 0.3, 36)
"""Shares of a channel's largest magnitude that its grid may end at."""


def weights_of(runner: Runner) -> Iterator[tuple[Layer, str, int | None]]:
    """Name each layer's weights, with the dimension of their output channels."""
    tensors = runner.graph.tensors
    for layer in runner.layers:
        for tid in layer.weight_parameters:
            if tensors[tid].name is not None and tensors[tid].dtype.startswith(("float", "bfloat")):
                yield layer, str(tensors[tid].name), 1 if "transpose" in layer.type else 0


class Feed(NamedTuple):
    """What a layer with weights reads: another layer's output, whole."""

    layer: int
    """Number of the layer that reads it."""
    source: int
    """Number of the layer that makes it."""
    shape: tuple[int, ...]
    """As the reading operation sees it."""
    weight: str
    """Name of the one parameter that it is multiplied with."""
    op: int
    """The operation that does it."""

    @property
    def axis(self) -> int:
        """Dimension of the channels."""
        return 1 if len(self.shape) > 2 and self.conv else len(self.shape) - 1

    conv: bool = False


def feeds(runner: Runner) -> list[Feed]:
    """List the convolutions and linear layers of one weight each whose input is another layer's whole output."""
    graph, tensors = runner.graph, runner.graph.tensors
    made = {
        (tensors[row.result].storage, tensors[row.result].version): n for n, row in enumerate(runner.layers)
        if row.result >= 0
    }  # fmt: skip
    found = []
    for number, layer in enumerate(runner.layers):
        names = [str(tensors[t].name) for t in layer.weight_parameters if tensors[t].name]
        if layer.role not in (Role.CONV, Role.LINEAR) or len(names) != 1 or "transpose" in layer.type:
            continue
        op = graph.ops[layer.head]
        if layer.role is Role.LINEAR and not _transposes(runner, op.inputs, layer.weight_parameters[0]):
            continue
        for tid in op.inputs:
            value = tensors[tid]
            source = made.get((value.storage, value.version))
            if source is None:
                continue
            whole = tensors[runner.layers[source].result]
            if value.elements == whole.elements and value.offset == whole.offset and _dense(value) and _dense(whole):
                conv = layer.role is Role.CONV
                found.append(Feed(number, source, value.shape, names[0], op.index, conv))
            break
    return found


def _transposes(runner: Runner, inputs: tuple[int, ...], weight: int) -> bool:
    """True where a weight has one row per output, as that of `nn.Linear`."""
    tensors = runner.graph.tensors
    own = tensors[weight]
    read = [tensors[i] for i in inputs if tensors[i].storage == own.storage]
    return len(own.shape) == 2 and any(t.shape in (own.shape[::-1], own.shape) and _same(t, own) for t in read)


def _same(read: Value, own: Value) -> bool:
    """True where what is read is a parameter itself, as `aten.linear` does, or its transpose."""
    return read.strides == own.strides[::-1] or read.id == own.id


def _dense(value: Value) -> bool:
    """True where the elements lie in the order of the dimensions."""
    step = 1
    for size, stride in zip(reversed(value.shape), reversed(value.strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def weight_grids(weight: Tensor, bits: int, axis: int | None) -> Grids:
    """Lay a grid over each channel: to its largest magnitude, or below 8 bits to where the squared error is least."""
    found = of_weight(weight, bits, axis=axis)
    if bits >= _NARROW or axis is None or not weight.numel():
        return found
    best_error = torch.full_like(found.scale, torch.inf)
    best = found.scale
    for share in _SHARES:
        tried = Grids(found.scale * share, found.zero_point, found.least, found.most, axis)
        error = (fake_quantize(weight.detach(), tried) - weight.detach()).square().movedim(axis, 0).flatten(1).sum(1)
        better = error < best_error
        best_error, best = torch.where(better, error, best_error), torch.where(better, tried.scale, best)
    return Grids(best, found.zero_point, found.least, found.most, axis)
