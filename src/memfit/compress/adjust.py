"""What is done to weights around rounding: channels evened out before it, shifted means put right after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfit.analysis.layers import Layer
from memfit.analysis.values import values_of
from memfit.compress.runner import Runner
from memfit.compress.weights import Feed, feeds
from memfit.graph.model import Op, StorageKind
from memfit.graph.optable import Role, role

_HOMOGENEOUS = (None, "relu", "leaky_relu")
"""Activations that give s times as much for s times the input."""
_MOST = 64.0
"""A channel is scaled by no more than this."""


class Norm:
    """A layer's batch norm in evaluation: the names of its tensors."""

    def __init__(self, runner: Runner, op: Op) -> None:
        graph = runner.graph
        own = [graph.tensors[i] for i in op.inputs]
        parameters = [str(t.name) for t in own if graph.storages[t.storage].kind is StorageKind.PARAMETER]
        buffers = [str(t.name) for t in own if graph.storages[t.storage].kind is StorageKind.BUFFER]
        self.weight, self.bias = (*parameters, None, None)[:2] if len(parameters) == 2 else (None, None)
        self.mean, self.variance = (*buffers, None, None)[:2] if len(buffers) >= 2 else (None, None)
        self.eps = next((float(a) for a in reversed(op.args) if isinstance(a, float)), 1e-5)

    def factor(self, named: Mapping[str, Tensor]) -> Tensor | None:
        """Give what each channel is multiplied by."""
        if self.variance is None or self.weight is None:
            return None
        return named[self.weight].detach() / (named[self.variance] + self.eps).sqrt()


def norm_of(runner: Runner, layer: Layer) -> Norm | None:
    """Find a layer's batch norm."""
    for index in layer.ops:
        op = runner.graph.ops[index]
        if index > layer.head and role(op.kind) is Role.BATCH_NORM:
            return Norm(runner, op)
    return None


def bias_of(runner: Runner, feed: Feed) -> str | None:
    """Name the one-dimensional parameter that a layer adds to its product."""
    graph = runner.graph
    for tid in graph.ops[feed.op].inputs:
        value = graph.tensors[tid]
        if graph.storages[value.storage].kind is StorageKind.PARAMETER and len(value.shape) == 1:
            return value.name
    return None


def equalize(runner: Runner, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Even out the channels between pairs of layers: each channel's weights reach equally far in both.

    Cross-layer equalization: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019, section 4.1 (https://arxiv.org/abs/1906.04721). With s = √(r₁·r₂)/r₂ the first layer's channel is divided
    by s, in its batch norm where it has one, and the second layer's input channel multiplied by it. Only where nothing
    else reads the first layer's output and its activation is none, ReLU or leaky ReLU, so that in floating point
    nothing changes; ReLU6 stops at the same 6 whatever the scale.

    Args:
        runner: of any shape of batch.
        named: the model's tensors.

    Returns:
        New tensors by name, and how many pairs were evened out.
    """
    readers = _readers(runner)
    used = _uses(runner)
    changed: dict[str, Tensor] = {}
    by_layer = {feed.layer: feed for feed in feeds(runner)}
    pairs = 0

    def current(name: str) -> Tensor:
        return changed.get(name, named[name].detach())

    for feed in by_layer.values():
        first = by_layer.get(feed.source)
        layer = runner.layers[feed.source]
        if first is None or layer.activation not in _HOMOGENEOUS or readers.get(feed.source) != 1:
            continue
        norm = norm_of(runner, layer)
        if (layer.norm is not None) != (norm is not None) or (norm and norm.factor(named) is None):
            continue
        bias = bias_of(runner, first)
        own = (norm.weight, norm.bias) if norm else (first.weight, bias)
        names = [str(name) for name in (*own, feed.weight) if name]
        if any(used[name] > 1 for name in names) or feed.weight == first.weight:
            continue
        weight, after = current(first.weight), current(feed.weight)
        depthwise = after.shape[1] == 1 and after.shape[0] == weight.shape[0]
        if not depthwise and after.shape[1] != weight.shape[0]:
            continue  # grouped, or a view in between that mixes channels
        reach = weight.flatten(1).abs().amax(1)
        if norm:
            gain = norm.factor({**named, **changed})
            assert gain is not None
            reach = reach * gain.abs()
        reach_after = after.flatten(1).abs().amax(1) if depthwise else after.transpose(0, 1).flatten(1).abs().amax(1)
        scale = (reach / reach_after.clamp_min(1e-12)).sqrt()
        scale = torch.where((reach > 0) & (reach_after > 0), scale, torch.ones_like(scale)).clamp(1 / _MOST, _MOST)
        for name in own:
            if name:
                changed[name] = current(name) / _along(scale, current(name), 0)
        changed[feed.weight] = after * _along(scale, after, 0 if depthwise else 1)
        pairs += 1
    return changed, pairs


def corrections(
    runner: Runner,
    named: Mapping[str, Tensor],
    rounded: Mapping[str, Tensor],
    means: Mapping[int, Tensor],
) -> dict[str, Tensor]:
    """Take out the shift that rounding a weight gives to the mean of each channel.

    Bias correction: Nagel et al. (see `equalize`), section 4.2, with means of the inputs from data. A product that is
    off by (Wq - W)·E[x] on average has that subtracted from its bias, or added to its batch norm's running mean.

    Args:
        runner: of any shape of batch.
        named: the model's tensors.
        rounded: the same with rounded weights.
        means: by layer: the mean of each channel of its input.

    Returns:
        New tensors by name.
    """
    changed: dict[str, Tensor] = {}
    used = _uses(runner)
    for feed in feeds(runner):
        if feed.layer not in means or used[feed.weight] > 1:
            continue
        off = (rounded[feed.weight].detach() - named[feed.weight].detach()).flatten(2) if feed.conv else None
        mean = means[feed.layer].to(named[feed.weight].dtype)
        if off is None:
            shift = (rounded[feed.weight].detach() - named[feed.weight].detach()) @ mean
        else:
            groups = mean.numel() // off.shape[1]
            per_group = mean.view(groups, off.shape[1]).repeat_interleave(off.shape[0] // groups, 0)
            shift = (off.sum(2) * per_group).sum(1)
        norm = norm_of(runner, runner.layers[feed.layer])
        bias = bias_of(runner, feed)
        if bias is not None and used[bias] == 1:
            changed[bias] = named[bias].detach() - shift
        elif norm is not None and norm.mean is not None:
            changed[norm.mean] = named[norm.mean] + shift
    return changed


def _readers(runner: Runner) -> dict[int, int]:
    """Count the operations that read each layer's output; one that leaves the network counts as read once more."""
    values = values_of(runner.graph)
    found: dict[int, int] = {}
    for number, layer in enumerate(runner.layers):
        if layer.result >= 0:
            value = values.value_of[
                runner.graph.tensors[layer.result].storage, runner.graph.tensors[layer.result].version
            ]
            found[number] = len(values.readers[value]) + (value in values.leaving)
    return found


def _uses(runner: Runner) -> _Counter:
    """Count the layers that read each parameter, by every name it has."""
    found = _Counter()
    for number in range(len(runner.layers)):
        for name in runner.parameters(number):
            found[name] = found.get(name, 0) + 1
    return found


class _Counter(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def _along(scale: Tensor, like: Tensor, axis: int) -> Tensor:
    shape: Sequence[Any] = [-1 if i == axis else 1 for i in range(like.dim())]
    return scale.reshape(tuple(shape)).to(like.dtype)
