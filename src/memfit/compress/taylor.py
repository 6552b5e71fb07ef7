"""What quantizing each layer does to the output, estimated for all layers from one backward pass a batch.

To first order, a layer's quantization noise d changes the network's outputs by J·d, J being their derivative by that
layer's output. For a random v with independent entries of mean 0 and variance 1, the square of v·J·d has the mean
‖J·d‖², and v·J for every layer at once is one backward pass: that of v times the outputs. Here the products of gradient
and noise are added up over each channel of each sample before they are squared, and the squares over the channels: what
noise does at the pixels of one channel goes together, that of different channels is taken as independent. This is the
Fisher approximation of the squared error's second derivative, in blocks of channels (B. Hassibi and D. Stork, Second
order derivatives for network pruning, NeurIPS 1992; random probes: M. Hutchinson, Commun. Stat. Simul. 19, 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from memfit.compress.runner import Runner, _Run
from memfit.compress.sweep import Quantization
from memfit.errors import CaptureError, said


def estimated_noise(
    runner: Runner,
    inputs: Sequence[Tensor],
    quantization: Quantization,
    *,
    axes: Sequence[int],
    samples: int,
    generator: torch.Generator,
) -> dict[int, float]:
    """Estimate the sum of the squares of what the outputs differ by when one layer is quantized, for each layer.

    Args:
        runner: the network.
        inputs: a batch.
        quantization: of the layers.
        axes: which dimension of each layer's output is the channel.
        samples: how many the batch holds.
        generator: of the random direction in the space of outputs.

    Returns:
        By layer; without those that no gradient reaches.

    Raises:
        CaptureError: an operation has no derivative.
    """
    gradients = _gradients(runner, inputs, list(quantization.outputs), generator)
    found: dict[int, float] = {}
    for number, noise in _noises(runner, inputs, quantization, sorted(gradients)):
        product = gradients.pop(number).mul_(noise)
        split = samples if product.dim() and product.shape[0] % samples == 0 else 1
        parts = product.reshape(split, -1, *product.shape[1:]) if product.dim() else product.reshape(1, 1, 1)
        axis = axes[number] % max(product.dim(), 1)
        kept = {0, axis + 1}
        others = [d for d in range(parts.dim()) if d not in kept]
        sums = parts.sum(others) if others else parts
        found[number] = float(sums.double().square().sum())
    return found


def _gradients(
    runner: Runner, inputs: Sequence[Tensor], chosen: Sequence[int], generator: torch.Generator
) -> dict[int, Tensor]:
    """Run a batch forward and back: the gradient of one random sum of the outputs by each layer's output."""
    run = _Tracked(runner, inputs, chosen)
    for index in range(-1, len(runner.graph.ops)):
        run.follow(index)
    outputs = [output for output in run.outputs() if output.requires_grad]
    if not outputs:
        return {}
    directions = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    try:
        torch.autograd.backward(outputs, directions)
    except RuntimeError as error:
        raise CaptureError(
            "this network cannot be followed backwards",
            where=runner.graph.source,
            received=said(error),
            todo="use --method exact",
        ) from error
    return run.gradients


class _Tracked(_Run):
    """A run that autograd follows, and that keeps the gradients of the chosen layers' outputs."""

    def __init__(self, runner: Runner, inputs: Sequence[Tensor], chosen: Sequence[int]) -> None:
        super().__init__(runner, runner._begin(inputs), None, None)
        self.chosen = frozenset(chosen)
        self.gradients: dict[int, Tensor] = {}

    def follow(self, index: int) -> None:
        """Run one operation, and watch the outputs of the chosen layers that it completes."""
        runner, windows = self.runner, self.runner._windows
        with torch.enable_grad():
            if index >= 0:
                self._call(index)
            for number in runner._ready_after.get(index, ()):
                if number in self.chosen:
                    tid = runner.layers[number].result
                    cell = self.state[windows.storage[tid]]
                    output = windows.look(cell, tid)
                    if not output.requires_grad:  # nothing before it is followed, so begin here
                        output = output.detach().requires_grad_().clone()
                        cell.views = {windows.number[tid]: output}
                    output.register_hook(self._keeper(number))  # type: ignore[no-untyped-call]
        if index >= 0:
            for storage in runner._steps[index].frees:
                self.state.pop(storage, None)

    def outputs(self) -> list[Tensor]:
        """Give the network's outputs."""
        windows = self.runner._windows
        return [windows.look(self.state[windows.storage[tid]], tid) for tid in self.runner.graph.outputs]

    def _keeper(self, number: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            held = self.gradients.get(number)
            self.gradients[number] = gradient.detach().clone() if held is None else held + gradient.detach()

        return keep


class _Seen(Exception):
    """The output that was waited for is there."""


def _noises(
    runner: Runner, inputs: Sequence[Tensor], quantization: Quantization, chosen: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Give what quantizing each layer changes its own output by."""
    for cut in runner.prefix(inputs, chosen):
        hook, weights = quantization.only({cut.layer})
        waiting = _Waiting(cut.layer, hook)
        with suppress(_Seen):
            runner.resume(cut, on_output=waiting, weights=weights)
        assert waiting.output is not None
        yield cut.layer, waiting.output.sub_(cut.output)


class _Waiting:
    """A hook that stops a run at one layer."""

    def __init__(self, layer: int, hook: Callable[[int, Tensor], Tensor | None]) -> None:
        self.layer, self.hook = layer, hook
        self.output: Tensor | None = None

    def __call__(self, number: int, output: Tensor) -> None:
        if number == self.layer:
            self.output = self.hook(number, output)
            raise _Seen
