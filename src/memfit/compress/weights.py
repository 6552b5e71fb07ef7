"""The grids of a network's weights: one per output channel, as wide as loses least."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from memfit.analysis.layers import Layer
from memfit.capture.replay import named_tensors
from memfit.compress.fake_quant import Grids, fake_quantize, of_weight
from memfit.compress.runner import Runner

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


def grids_of_weights(runner: Runner, model: nn.Module, bits: int) -> dict[str, Grids]:
    """Lay grids over every weight of a network.

    Args:
        runner: of any shape of batch.
        model: whose weights.
        bits: of each.
    """
    named = named_tensors(model)
    return {name: weight_grids(named[name], bits, axis) for _, name, axis in weights_of(runner)}


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
