"""Run a captured graph with its tensors rounded and gradients that pass the rounding: quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memfit.analysis.layers import Layer
from memfit.capture.recording import from_symbol, function_of, tensors_in
from memfit.capture.replay import constant_of
from memfit.compress.fake_quant import Grids, fake_quantize
from memfit.errors import CaptureError, said
from memfit.graph.model import BEFORE, Graph, Op, Ref, StorageKind, Symbol

if TYPE_CHECKING:
    from memfit.compress.quantized import Rounding

_Window = tuple[int, tuple[int, ...], tuple[int, ...], int, str]


def rounded(values: Tensor, grids: Grids) -> Tensor:
    """Round to a grid; the gradient is that of the values where they lie within the grid's ends, and zero beyond.

    >>> from memfit.compress.fake_quant import of_range
    >>> x = torch.tensor([0.26, 9.0], requires_grad=True)
    >>> rounded(x, of_range(0.0, 1.5, bits=4)).sum().backward()
    >>> x.grad
    tensor([1., 0.])
    """
    shape = [1] * values.dim()
    if grids.axis is not None:
        shape[grids.axis] = -1
    scale, zero_point = grids.scale.reshape(shape), grids.zero_point.reshape(shape)
    clipped = torch.clamp(values, (grids.least - zero_point) * scale, (grids.most - zero_point) * scale)
    return clipped + (fake_quantize(values.detach(), grids) - clipped).detach()


def run(
    graph: Graph, rows: Sequence[Layer], named: Mapping[str, Tensor], inputs: Sequence[Tensor], rounding: Rounding
) -> list[Tensor]:
    """Run a graph of inference so that gradients reach the parameters; norms keep their statistics.

    Args:
        graph: captured with inputs of these shapes.
        rows: its layers.
        named: parameters and buffers by name; they are only read.
        inputs: one tensor each.
        rounding: what is rounded to what.

    Raises:
        CaptureError: an operation of the graph has no gradient.
    """
    done = _Pass(graph, named, inputs, rounding)
    ready: dict[int, list[Layer]] = {}
    for layer in rows:
        if layer.name in rounding.activations and layer.result >= 0:
            made = [i for i in layer.ops if layer.result in graph.ops[i].outputs]
            at = min((i for i in made if i >= layer.head), default=layer.head) if layer.head >= 0 else BEFORE
            ready.setdefault(at, []).append(layer)
    for index in range(-1, len(graph.ops)):
        if index >= 0:
            done.perform(graph.ops[index])
        for layer in ready.get(index, ()):
            done.put(layer.result, rounded(done.look(layer.result), rounding.activations[layer.name]))
    return [done.look(t) for t in graph.outputs]


class _Pass:
    """The values of one run, by the window that a tensor of the graph is on its storage."""

    def __init__(self, graph: Graph, named: Mapping[str, Tensor], inputs: Sequence[Tensor], rounding: Rounding) -> None:
        self.graph = graph
        self.values: dict[_Window, Tensor] = {}
        grids = {id(named[name]): grid for name, grid in rounding.weights.items()}
        done: dict[int, Tensor] = {}
        for value in graph.tensors:
            storage = graph.storages[value.storage]
            if value.version or storage.birth != BEFORE or storage.kind is StorageKind.INPUT:
                continue
            if value.id in graph.constants:
                self.values[self._window(value.id)] = constant_of(graph, value)
            elif value.name is not None:
                own = named[value.name]
                if id(own) in grids and id(own) not in done:
                    done[id(own)] = rounded(own, grids[id(own)])
                self.values[self._window(value.id)] = done.get(id(own), own)
        for tid, tensor in zip(graph.inputs, inputs, strict=True):
            self.values[self._window(tid)] = tensor

    def look(self, tid: int) -> Tensor:
        """Find a tensor, or look at its storage through another that is there."""
        found = self.values.get(self._window(tid))
        if found is None:
            wanted = self.graph.tensors[tid]
            base = next(t for w, t in self.values.items() if w[0] == wanted.storage and w[4] == wanted.dtype)
            found = self.values[self._window(tid)] = base.as_strided(wanted.shape, wanted.strides, wanted.offset)
        return found

    def put(self, tid: int, tensor: Tensor) -> None:
        """Give a storage a new value, at which no window looks yet but this one."""
        storage = self.graph.tensors[tid].storage
        for key in [w for w in self.values if w[0] == storage]:
            del self.values[key]
        self.values[self._window(tid)] = tensor

    def perform(self, op: Op) -> None:
        """Run one operation; one that writes to what it is given writes to a copy, so that no gradient is spoilt."""
        graph = self.graph
        if op.target == "aten.lift_fresh.default":
            self.values[self._window(op.outputs[0])] = constant_of(graph, graph.tensors[op.outputs[0]])
            return
        function = function_of(op.target)
        args = [self._decode(entry) for entry in op.args]
        kwargs = {key: self._decode(entry) for key, entry in op.kwargs.items()}
        writes = function._schema.is_mutable and torch.Tag.inplace_view not in function.tags
        if writes:
            written = {i for i, a in enumerate(function._schema.arguments) if a.alias_info and a.alias_info.is_write}
            args = [a.clone() if i in written and isinstance(a, Tensor) else a for i, a in enumerate(args)]
        try:
            result = function(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            raise CaptureError(
                f"an operation cannot run with gradients: {said(error)}",
                where=graph.scopes[op.scope].path or op.target,
                received=op.target,
                todo="train without quantization, and quantize what comes out",
            ) from error
        before = {graph.tensors[i].storage for i in op.inputs}
        for tid, tensor in zip(op.outputs, tensors_in((result,)), strict=False):
            if writes and graph.tensors[tid].storage in before:
                self.put(tid, tensor)
            else:
                self.values[self._window(tid)] = tensor

    def _window(self, tid: int) -> _Window:
        value = self.graph.tensors[tid]
        return value.storage, value.shape, value.strides, value.offset, value.dtype

    def _decode(self, entry: Any) -> Any:
        if isinstance(entry, Ref):
            return self.look(int(entry))
        if isinstance(entry, tuple):
            return [self._decode(part) for part in entry]
        return from_symbol(entry) if isinstance(entry, Symbol) else entry
