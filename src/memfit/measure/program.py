"""A captured graph, made ready to run operation by operation on real tensors with nothing left to look up.

Like `memfit.capture.replay`, which runs a graph once and checks what it is given; this one resolves every argument
beforehand, so that between two operations of a timed run there is next to nothing but the timestamp.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memfit.capture.recording import from_symbol, function_of, tensors_in
from memfit.errors import CaptureError
from memfit.graph.model import BEFORE, Graph, Ref, StorageKind, Symbol
from memfit.graph.model import Tensor as Value
from memfit.measure.statistics import Array
from memfit.measure.timers import Mark, Timer
from memfit.units import format_shape

Slots = list[Any]
Reader = Callable[[Slots], Any]
_Geometry = tuple[int, tuple[int, ...], tuple[int, ...], int, str]


class Step:
    """One operation: how to read its arguments, what to call, where its results go."""

    __slots__ = ("args", "frees", "function", "index", "inplace_view", "kwargs", "outputs")

    def __init__(self, index: int, function: Callable[..., Any], args: list[Reader], kwargs: dict[str, Reader]) -> None:
        self.index, self.function, self.args, self.kwargs = index, function, args, kwargs
        self.outputs: list[int] = []
        self.frees: list[int] = []
        """Slots that nothing reads any more."""
        self.inplace_view = False

    def read(self, slots: Slots) -> tuple[list[Any], dict[str, Any]]:
        """Fetch the arguments."""
        args = [read(slots) for read in self.args]
        if self.inplace_view:  # turn a view of it, not the tensor that others look at
            args[0] = args[0].detach()
        return args, {name: read(slots) for name, read in self.kwargs.items()}

    def keep(self, result: Any, slots: Slots) -> None:
        """Put the results in their slots."""
        # An in-place operation over a list returns nothing; kernels may leave out a last, empty output.
        tensors = (result,) if isinstance(result, Tensor) else tensors_in((result,))
        for slot, tensor in zip(self.outputs, tensors, strict=False):
            slots[slot] = tensor

    def free(self, slots: Slots) -> None:
        """Drop what nothing reads any more."""
        for slot in self.frees:
            slots[slot] = None


class Program:
    """A graph's operations, ready to run.

    Args:
        graph: a capture of inference.
        model: its parameters and buffers; only read, since those that the graph writes to are copied.
        inputs: the tensors of the call, in the order of `graph.inputs`.
        device: where it runs.
    """

    def __init__(self, graph: Graph, model: nn.Module, inputs: Sequence[Tensor], device: str = "cpu") -> None:
        self.graph, self._device = graph, device
        self._slot_of: dict[_Geometry, int] = {}
        self._initial: Slots = []
        self._copied: list[int] = []
        written = {graph.tensors[t].storage for op in graph.ops for t in op.outputs if not graph.is_alias(op)}
        for tid, tensor in zip(graph.inputs, inputs, strict=True):
            self._hold(graph.tensors[tid], tensor, written)
        named = _named(model)
        for value in graph.tensors:
            storage = graph.storages[value.storage]
            if value.version or storage.birth != BEFORE or storage.kind is StorageKind.INPUT:
                continue
            if value.id in graph.constants:
                self._hold(value, _constant(graph, value).to(device), written)
            elif value.name is not None and value.name in named:
                self._hold(value, named[value.name].detach(), written)
        self.steps = [self._step(op.index) for op in graph.ops]
        self._free_dead()

    def begin(self) -> Slots:
        """Give the slots as a run finds them."""
        slots = list(self._initial)
        for slot in self._copied:
            slots[slot] = slots[slot].clone()
        return slots

    def run(self, mark: Mark) -> None:
        """Run every operation once, with a mark before and after each."""
        slots = self.begin()
        for step in self.steps:
            args, kwargs = step.read(slots)
            mark()
            result = step.function(*args, **kwargs)
            mark()
            step.keep(result, slots)
            del args, kwargs, result
            step.free(slots)

    def groups(self, row_of: Sequence[int]) -> Iterator[tuple[int, list[Step]]]:
        """Split the operations into runs of neighbours that belong to one row."""
        for row, steps in groupby(self.steps, key=lambda step: row_of[step.index]):
            yield row, list(steps)

    # -- preparing ------------------------------------------------------------------------------------------------

    def _hold(self, value: Value, tensor: Tensor, written: set[int]) -> None:
        slot = self._new(value)
        self._initial[slot] = tensor
        if value.storage in written:
            self._copied.append(slot)

    def _new(self, value: Value) -> int:
        slot = self._slot_of.get(_geometry(value))
        if slot is None:
            slot = self._slot_of[_geometry(value)] = len(self._initial)
            self._initial.append(None)
        return slot

    def _step(self, index: int) -> Step:
        graph = self.graph
        op = graph.ops[index]
        if op.target == "aten.lift_fresh.default":
            value = _constant(graph, graph.tensors[op.outputs[0]]).to(self._device)
            step = Step(index, function_of(op.target), [lambda _slots: value], {})
        else:
            function = function_of(op.target)
            kwargs = {key: self._reader(entry) for key, entry in op.kwargs.items()}
            step = Step(index, function, [self._reader(entry) for entry in op.args], kwargs)
            step.inplace_view = torch.Tag.inplace_view in function.tags
        step.outputs = [self._new(graph.tensors[t]) for t in op.outputs]
        return step

    def _reader(self, entry: Any) -> Reader:
        """Resolve a recorded argument as far as it can be before there are tensors."""
        if isinstance(entry, Ref):
            return self._lookup(self.graph.tensors[entry])
        if isinstance(entry, tuple):
            if not _holds_tensors(entry):
                whole = [_literal(part, self._device) for part in entry]
                return lambda _slots: whole
            parts = [self._reader(part) for part in entry]
            return lambda slots: [part(slots) for part in parts]
        literal = _literal(entry, self._device)
        return lambda _slots: literal

    def _lookup(self, value: Value) -> Reader:
        slot = self._slot_of.get(_geometry(value))
        if slot is not None:
            return lambda slots: slots[slot]
        for geometry, other in reversed(self._slot_of.items()):
            if geometry[0] == value.storage and geometry[4] == value.dtype:
                shape, strides, offset = value.shape, value.strides, value.offset
                return lambda slots, other=other: slots[other].as_strided(shape, strides, offset)  # type: ignore[misc]
        raise CaptureError(
            "an operation reads a tensor that the model does not hold by a name, so it cannot be run by itself",
            where=value.name or f"tensor {value.id}",
            received=f"{format_shape(value.shape)} {value.dtype}",
            todo="use rows per model, block or layer, in place",
        )

    def _free_dead(self) -> None:
        """Let each step drop the storages that no later one touches, except what the graph returns or is given."""
        graph = self.graph
        last: dict[int, int] = {}
        for op in graph.ops:
            for tid in (*op.inputs, *op.outputs):
                last[graph.tensors[tid].storage] = op.index
        for tid in graph.outputs:
            last.pop(graph.tensors[tid].storage, None)
        for geometry, slot in self._slot_of.items():
            if geometry[0] in last:
                self.steps[last[geometry[0]]].frees.append(slot)


def op_weights(program: Program, timer: Timer, *, warmup: int = 3, rounds: int = 11) -> Array:
    """Give each operation's median milliseconds over a few replays, to divide what several rows took together."""
    times = []
    for _ in range(warmup + rounds):
        timer.start()
        program.run(timer.mark)
        times.append(timer.finish()[::2])
    weights: Array = np.median(np.array(times[warmup:]), axis=0)
    return weights


@contextmanager
def restored(steps: Sequence[Step], program: Program, slots: Slots) -> Iterator[Callable[[], None]]:
    """Give a function that puts back what the steps overwrite of tensors that were there before them."""
    graph = program.graph
    first = steps[0].index
    changed: list[tuple[Tensor, Tensor]] = []
    for step in steps:
        op = graph.ops[step.index]
        if graph.is_alias(op):
            continue
        for tid in op.outputs:
            value = graph.tensors[tid]
            if value.version and graph.storages[value.storage].birth < first:
                slot = program._slot_of[_geometry(value)]
                if slots[slot] is not None:
                    changed.append((slots[slot], slots[slot].clone()))

    def put_back() -> None:
        for tensor, before in changed:
            tensor.copy_(before)

    yield put_back
    changed.clear()


def _geometry(value: Value) -> _Geometry:
    return value.storage, value.shape, value.strides, value.offset, value.dtype


def _holds_tensors(entry: tuple[Any, ...]) -> bool:
    return any(isinstance(part, Ref) or (isinstance(part, tuple) and _holds_tensors(part)) for part in entry)


def _literal(entry: Any, device: str) -> Any:
    if isinstance(entry, Symbol):
        value = from_symbol(entry)
        return torch.device(device) if isinstance(value, torch.device) and value.type != "meta" else value
    if isinstance(entry, tuple):
        return [_literal(part, device) for part in entry]
    return entry


def _constant(graph: Graph, value: Value) -> Tensor:
    raw = bytearray(base64.b64decode(graph.constants[value.id]))
    return torch.frombuffer(raw, dtype=getattr(torch, value.dtype)).clone().reshape(value.shape)


def _named(model: nn.Module) -> Mapping[str, Tensor]:
    named: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for members in (vars(module), module._buffers, module._parameters):
            named.update({prefix + name: t for name, t in members.items() if isinstance(t, Tensor)})
    return named
