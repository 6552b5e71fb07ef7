"""One layer quantized in a float network, or one left float in a quantized network: what the outputs become.

The network runs once for each batch and direction; for each layer only that layer and what depends on it runs again,
on what came before it as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from memfit.analysis.layers import Layer
from memfit.compress.fake_quant import Grids, fake_quantize, of_weight
from memfit.compress.metrics import Score, Sums, compare
from memfit.compress.runner import Hook, Runner, Weights
from memfit.errors import MemfitError, SourceError, said
from memfit.graph.model import Graph, Ref

DIRECTIONS = ("quantize", "float")
"""One layer quantized and the rest float, or the other way round."""

NONE_QUANTIZED, ALL_QUANTIZED = "(none)", "(all)"
"""What stands in a layer's place for the whole network, float and quantized."""

_WHOLE = {NONE_QUANTIZED: "the float network", ALL_QUANTIZED: "the network with all layers quantized"}


@dataclass(frozen=True)
class Quantization:
    """How each layer of a network is quantized."""

    weights: Weights
    """By layer: its parameters of two or more dimensions, quantized."""
    outputs: Mapping[int, Grids]
    """By layer: the grid of its output."""

    def only(self, chosen: Collection[int]) -> tuple[Hook, Weights]:
        """Give what a runner needs to quantize these layers and leave the others."""
        outputs = {number: grids for number, grids in self.outputs.items() if number in chosen}

        def quantize(number: int, output: Tensor) -> Tensor | None:
            grids = outputs.get(number)
            return None if grids is None else fake_quantize(output, grids)

        return quantize, {number: held for number, held in self.weights.items() if number in chosen}


def quantized_weights(runner: Runner, layers: Sequence[int], bits: int) -> dict[int, dict[str, Tensor]]:
    """Quantize the weights of layers: symmetric, each output channel on a grid of its own; biases stay as they are.

    Args:
        runner: the network; its weights are only read.
        layers: positions in `runner.layers`.
        bits: 2 to 16.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for number in layers:
        axes = _transposed(runner.graph, runner.layers[number])
        found[number] = {
            name: fake_quantize(weight, of_weight(weight, bits, axis=axes.get(name, 0)))
            for name, weight in runner.parameters(number).items()
            if weight.dim() > 1 and weight.is_floating_point()
        }
    return found


_SECOND_MATRIX = {"aten.mm.default": 1, "aten.bmm.default": 1, "aten.addmm.default": 2, "aten.baddbmm.default": 2}
"""Product → which argument has the output's channels last."""


def _transposed(graph: Graph, layer: Layer) -> dict[str, int]:
    """Find the weights of a layer whose output channels are not their first dimension."""
    tensors = graph.tensors
    axes: dict[str, int] = {}
    for index in layer.ops:
        op = graph.ops[index]
        if op.kind.startswith("conv_transpose"):
            name = tensors[op.inputs[1]].name
            if name is not None:
                axes[name] = 1
        place = _SECOND_MATRIX.get(op.target)
        if place is not None and isinstance(op.args[place], Ref):
            name = tensors[int(op.args[place])].name  # the transpose of a weight is a view, which has none
            if name is not None:
                axes[name] = -1
    return axes


def measure(
    runner: Runner,
    inputs: Sequence[Tensor],
    quantization: Quantization,
    chosen: Sequence[int],
    direction: str,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Give the network's outputs with one layer changed, for one layer after the other.

    Args:
        runner: the network.
        inputs: a batch.
        quantization: of every layer that is to be quantized.
        chosen: the layers to change, positions in `runner.layers`.
        direction: `quantize`, one in the float network; or `float`, one left so in the quantized network.
    """
    every = set(quantization.weights) | set(quantization.outputs)
    if direction == "quantize":
        for cut in runner.prefix(inputs, chosen):
            hook, weights = quantization.only({cut.layer})
            yield cut.layer, runner.resume(cut, on_output=hook, weights=weights)
        return
    hook, weights = quantization.only(every)
    for cut in runner.prefix(inputs, chosen, on_output=hook, weights=weights):
        others, their_weights = quantization.only(every - {cut.layer})
        yield cut.layer, runner.resume(cut, on_output=others, weights=their_weights)


def measure_again(
    runner: Runner, inputs: Sequence[Tensor], quantization: Quantization, chosen: Sequence[int], direction: str
) -> Iterator[tuple[int, list[Tensor]]]:
    """Do what `measure` does by running the whole network again for each layer: slower, and the same bits."""
    every = set(quantization.weights) | set(quantization.outputs)
    for number in chosen:
        hook, weights = quantization.only({number} if direction == "quantize" else every - {number})
        yield number, runner.run(inputs, on_output=hook, weights=weights)


@dataclass(frozen=True)
class Batchwise:
    """A batch that is being measured."""

    runner: Runner
    inputs: Sequence[Tensor]
    labels: Tensor | None
    samples: int
    quantization: Quantization
    score: Score | None
    metric: str

    def units(self, chosen: Sequence[int], direction: str) -> Iterator[tuple[str, Sums]]:
        """Measure some layers, or the whole network, in one direction.

        Args:
            chosen: layers; -1 is the network with nothing changed: float for `quantize`, quantized for `float`.
            direction: see `measure`.

        Yields:
            The layer's name and its sums.
        """
        layers = [number for number in chosen if number >= 0]
        reference = self.runner.run(self.inputs)
        if len(layers) < len(chosen):
            hook, weights = self.quantization.only(set(self.quantization.weights) | set(self.quantization.outputs))
            whole = (
                (NONE_QUANTIZED, reference)
                if direction == "quantize"
                else (ALL_QUANTIZED, self.runner.run(self.inputs, on_output=hook, weights=weights))
            )
            yield whole[0], self._sums(*whole, reference)
        if layers:
            for number, outputs in measure(self.runner, self.inputs, self.quantization, layers, direction):
                name = self.runner.layers[number].name
                yield name, self._sums(name, outputs, reference)

    def _sums(self, name: str, outputs: list[Tensor], reference: list[Tensor]) -> Sums:
        value = None
        if self.score is not None:
            try:
                value = self.score(outputs, self.labels)
            except MemfitError as error:
                if error.where == "--data":
                    raise
                raise self._failed(name, error.received or error.what, error.where) from error
            except Exception as error:
                raise self._failed(name, said(error)) from error
        return compare(reference, outputs, self.samples, value)

    def _failed(self, name: str, reason: str, place: str | None = None) -> SourceError:
        return SourceError(
            f"the metric failed: {reason}",
            where=f"{_WHOLE.get(name) or f'layer {name}'}, metric {place or self.metric}",
            received=f"the outputs of a batch of {self.samples}",
            todo="try the metric on the network's outputs by itself, or with --debug for the whole traceback",
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each operation run on one thread, so that no result depends on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
