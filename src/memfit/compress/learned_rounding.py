"""Weights rounded up or down so that each layer's product stays close to what it was, instead of to the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from memfit.capture.dynamo import without_dynamo
from memfit.capture.recording import from_symbol, function_of
from memfit.compress.fake_quant import Grids, fake_quantize
from memfit.compress.quantized import Rounding
from memfit.compress.runner import Runner
from memfit.compress.weights import Feed, feeds
from memfit.graph.model import Graph, Ref, Symbol

ITERATIONS = 200
_RATE, _WEIGHT = 0.02, 0.02
"""Step size, and what keeps a rounding from being undecided, per weight."""
_WARM = 0.2
"""Share of the iterations before weights have to decide."""
_STRETCH = (-0.1, 1.1)
"""The sigmoid is stretched to this and clipped to 0 and 1, as in the paper."""


def learn(
    runner: Runner,
    inputs: Sequence[Tensor],
    named: Mapping[str, Tensor],
    rounding: Rounding,
    *,
    iterations: int = ITERATIONS,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> dict[str, Tensor]:
    """Learn how to round each layer's weight, one after the other, from one batch.

    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020
    (https://arxiv.org/abs/2004.10568): V minimises ‖W·x - Ŵ(V)·x‖² + λ·Σ(1 - |2h(V) - 1|^β), where h(V) from 0 to 1 is
    what is added to the weight rounded down, and β falls from 20 to 2. Here x is what the layers before give when they
    are already rounded.

    Args:
        runner: of the float weights, for inputs of this shape.
        inputs: one batch.
        named: the model's tensors.
        rounding: the grids.
        iterations: for each layer.
        progress: is told how many layers are done, and of how many.

    Returns:
        Weights on their grids, by name.
    """
    waiting: dict[int, list[Feed]] = {}
    every = [feed for feed in feeds(runner) if feed.weight in rounding.weights]
    for feed in every:
        waiting.setdefault(feed.source, []).append(feed)
    names = [layer.name for layer in runner.layers]
    learned: dict[str, Tensor] = {}
    weights: dict[int, dict[str, Tensor]] = {
        number: {
            name: fake_quantize(tensor.detach(), rounding.weights[name])
            for name, tensor in runner.parameters(number).items()
            if name in rounding.weights
        }
        for number in range(len(runner.layers))
    }
    weights = {number: of for number, of in weights.items() if of}
    done = 0

    def look(number: int, output: Tensor) -> Tensor | None:
        nonlocal done
        grid = rounding.activations.get(names[number])
        given = None if grid is None else fake_quantize(output, grid)
        for feed in waiting.get(number, ()):
            if feed.weight not in learned:
                x = (output if given is None else given).reshape(feed.shape)
                product = _product(runner.graph, feed, x)
                learned[feed.weight] = _learned(
                    product, named[feed.weight].detach(), rounding.weights[feed.weight], iterations
                )
                weights[feed.layer][feed.weight] = learned[feed.weight]
            done += 1
            progress(done, len(every))
        return given

    runner.run(inputs, on_output=look, weights=weights)
    return learned


def _learned(product: Callable[[Tensor], Tensor], weight: Tensor, grids: Grids, iterations: int) -> Tensor:
    shape = [1] * weight.dim()
    if grids.axis is not None:
        shape[grids.axis] = -1
    scale = grids.scale.reshape(shape)
    with torch.enable_grad(), without_dynamo():  # optimizers ask for PyTorch's compiler, which takes seconds to import
        down = (weight / scale).floor()
        rest = (weight / scale - down).clamp(0.01, 0.99)
        low, high = _STRETCH
        v = torch.logit((rest - low) / (high - low)).requires_grad_()
        wanted = product(weight)
        size = wanted.square().mean().clamp_min(1e-12)
        optimizer = torch.optim.Adam([v], lr=_RATE)
        for step in range(iterations):
            h = (torch.sigmoid(v) * (high - low) + low).clamp(0, 1)
            soft = (down + h).clamp(grids.least, grids.most) * scale
            loss = (product(soft) - wanted).square().mean() / size
            at = (step / iterations - _WARM) / (1 - _WARM)
            if at >= 0:
                sharp = 2 + 9 * (1 + torch.cos(torch.tensor(at * torch.pi)).item())
                loss = loss + _WEIGHT * (1 - (2 * h - 1).abs().pow(sharp)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        up = (torch.sigmoid(v) * (high - low) + low) >= 0.5
        found = (down + up).clamp(grids.least, grids.most) * scale
        nearest = fake_quantize(weight, grids)
        better = (product(found) - wanted).square().sum() < (product(nearest) - wanted).square().sum()
    return found.detach() if bool(better) else nearest


def _product(graph: Graph, feed: Feed, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Give what the layer's operation makes of a weight, without its bias."""
    if not feed.conv:
        return lambda weight: torch.nn.functional.linear(x, weight)
    op = graph.ops[feed.op]
    function = function_of(op.target)
    rest = [from_symbol(a) if isinstance(a, Symbol) else list(a) if isinstance(a, tuple) else a for a in op.args[2:]]
    rest = [None if isinstance(a, Ref) else a for a in rest]
    return lambda weight: function(x, weight, *rest)
