"""Run a captured graph on real tensors: the same operations in the same order, so the same bits."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.recording import from_symbol, function_of, tensors_in
from memfit.errors import CaptureError, GraphError
from memfit.graph.model import BEFORE, Graph, Ref, StorageKind, Symbol
from memfit.graph.model import Tensor as Value
from memfit.units import format_shape

_Geometry = tuple[int, tuple[int, ...], tuple[int, ...], int, str]


def replay(graph: Graph, state: nn.Module | Mapping[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a captured graph on real tensors and return its outputs, in the order of `graph.outputs`.

    For a graph of inference, or for the forward part of a training graph. Parameters are only read; buffers that the
    graph writes to are copied first.

    >>> import memfit
    >>> model = nn.Linear(3, 2)
    >>> graph = memfit.capture(model, "1x3")
    >>> x = torch.ones(1, 3)
    >>> torch.equal(replay(graph, model, [x])[0], model(x))
    True

    Args:
        graph: what a capture made.
        state: the model, or its parameters and buffers by name.
        inputs: tensors of the shapes and dtypes that the graph was captured with.

    Raises:
        CaptureError: an input or a parameter does not fit the graph.
    """
    if len(inputs) != len(graph.inputs):
        raise CaptureError(
            "replay needs one tensor per input",
            where=graph.source,
            received=f"{len(inputs)} for {len(graph.inputs)} inputs",
            todo="pass them in the order of graph.inputs",
        )
    values: dict[_Geometry, Tensor] = {}
    for tid, tensor in zip(graph.inputs, inputs, strict=True):
        values[_geometry(graph.tensors[tid])] = _checked(graph.tensors[tid], tensor)
    named = named_tensors(state)
    written = {graph.tensors[t].storage for op in graph.ops for t in op.outputs}
    for value in graph.tensors:
        storage = graph.storages[value.storage]
        if value.version or storage.birth != BEFORE or storage.kind is StorageKind.INPUT:
            continue
        if value.id in graph.constants:
            values[_geometry(value)] = constant_of(graph, value)
        elif value.name is not None:
            if value.name not in named:
                raise CaptureError(
                    "the state lacks a tensor of the graph",
                    where=value.name,
                    received=f"{len(named)} tensors of other names",
                    todo="pass the module that was captured",
                )
            tensor = _checked(value, named[value.name].detach())
            values[_geometry(value)] = tensor.clone() if value.storage in written else tensor
    last_use = _last_uses(graph)
    with torch.no_grad():
        for op in graph.ops:
            if op.target == "aten.lift_fresh.default":
                outputs: list[Tensor] = [constant_of(graph, graph.tensors[op.outputs[0]])]
            else:
                args = _decode(op.args, graph, values)
                kwargs = {k: _decode(v, graph, values) for k, v in op.kwargs.items()}
                function = function_of(op.target)
                if torch.Tag.inplace_view in function.tags:  # turn a view of it, not the tensor that others look at
                    args[0] = args[0].detach()
                result = function(*args, **kwargs)
                outputs = list(tensors_in((result,)))
                if not outputs:  # an in-place operation over a list returns nothing
                    outputs = [_lookup(graph.tensors[t], values) for t in op.outputs]
            # Kernels may leave out a last, empty output that the schema promises (a recurrent layer's workspace).
            for tid, tensor in zip(op.outputs, outputs, strict=False):
                values[_geometry(graph.tensors[tid])] = tensor
            for geometry in last_use.get(op.index, ()):
                values.pop(geometry, None)
    return [_lookup(graph.tensors[t], values) for t in graph.outputs]


def _geometry(value: Value) -> _Geometry:
    return value.storage, value.shape, value.strides, value.offset, value.dtype


def _last_uses(graph: Graph) -> dict[int, list[_Geometry]]:
    """Geometries by the last operation after which no operation touches their storage."""
    last: dict[int, int] = {}
    for op in graph.ops:
        for tid in (*op.inputs, *op.outputs):
            last[graph.tensors[tid].storage] = op.index
    for tid in graph.outputs:
        last.pop(graph.tensors[tid].storage, None)
    result: dict[int, list[_Geometry]] = {}
    for value in graph.tensors:
        if value.storage in last:
            result.setdefault(last[value.storage], []).append(_geometry(value))
    return result


def _lookup(value: Value, values: dict[_Geometry, Tensor]) -> Tensor:
    found = values.get(_geometry(value))
    if found is not None:
        return found
    for geometry, tensor in values.items():
        if geometry[0] == value.storage and geometry[4] == value.dtype:
            return tensor.as_strided(value.shape, value.strides, value.offset)
    raise GraphError(
        "a value is read that no operation has made",
        where=f"tensor {value.id}",
        received=f"{format_shape(value.shape)} {value.dtype}",
        todo="capture the model again",
    )


def _decode(value: Any, graph: Graph, values: dict[_Geometry, Tensor]) -> Any:
    if isinstance(value, Ref):
        return _lookup(graph.tensors[value], values)
    if isinstance(value, tuple):
        return [_decode(v, graph, values) for v in value]
    if isinstance(value, Symbol):
        return from_symbol(value)
    return value


def constant_of(graph: Graph, value: Value) -> Tensor:
    """Make the small tensor that a graph keeps the bytes of."""
    raw = bytearray(base64.b64decode(graph.constants[value.id]))
    return torch.frombuffer(raw, dtype=getattr(torch, value.dtype)).clone().reshape(value.shape)


def _checked(value: Value, tensor: Tensor) -> Tensor:
    dtype = str(tensor.dtype)[6:]
    if tuple(tensor.shape) != value.shape or dtype != value.dtype:
        raise CaptureError(
            "a tensor does not fit the graph",
            where=value.name,
            received=f"{format_shape(tuple(tensor.shape))} {dtype}",
            todo=f"pass {format_shape(value.shape)} {value.dtype}",
        )
    return tensor


def named_tensors(state: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """List a module's parameters, buffers and tensors held as plain attributes by name; a tied one by all its names."""
    if not isinstance(state, nn.Module):
        return dict(state)
    named: dict[str, Tensor] = {}
    for path, module in state.named_modules():
        prefix = f"{path}." if path else ""
        for members in (vars(module), module._buffers, module._parameters):
            named.update({prefix + name: t for name, t in members.items() if isinstance(t, Tensor)})
    return named
