"""Measure what single operations allocate on this machine, where no rule is known.

Each distinct operation of a captured graph (same function, shapes, strides, dtypes and settings) runs on real tensors
of its own, so the memory needed is that of one operation, not of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from memfit.capture.allocations import measure_each
from memfit.capture.recording import from_symbol, function_of
from memfit.graph.model import Graph, Op, Phase, Ref, Symbol
from memfit.memory.cpu_workspaces import doubts, events


def probe(graph: Graph, *, everything: bool | None = None) -> dict[int, tuple[int, ...]]:
    """Run each distinct operation once and give its allocations and frees in signed bytes, by operation index.

    `everything` also runs operations that have a rule; by default only on a machine or PyTorch version for which the
    rules were not verified. What an operation allocates must not depend on its values: floating tensors are filled
    with 0.5, integers with 0 and masks with True. An operation that cannot run so is left out. The graph's number of
    threads is used.
    """
    if everything is None:
        everything = bool(doubts(graph))
    members: dict[Any, list[int]] = {}
    for op in graph.ops:
        if graph.is_alias(op) or (op.phase is Phase.BACKWARD and op.target == "aten.add.Tensor"):
            continue
        if everything or events(graph, op) is None:
            members.setdefault(signature(graph, op), []).append(op.index)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(int(graph.environment.get("threads") or threads))
        with torch.no_grad():
            measured = measure_each(_runs(graph, [indices[0] for indices in members.values()]))
    finally:
        torch.set_num_threads(threads)
    found: dict[int, tuple[int, ...]] = {}
    for indices, result in zip(members.values(), measured, strict=True):
        if result is not None:
            found.update(dict.fromkeys(indices, result))
    return found


def signature(graph: Graph, op: Op) -> tuple[Any, ...]:
    """Everything that an operation's allocations can depend on."""
    storages: dict[int, int] = {}

    def describe(value: Any) -> Any:
        if isinstance(value, Ref):
            t = graph.tensors[value]
            return t.shape, t.strides, t.dtype, storages.setdefault(t.storage, len(storages))
        if isinstance(value, tuple):
            return tuple(describe(v) for v in value)
        return type(value).__name__, value

    return op.target, describe(op.args), tuple((k, describe(v)) for k, v in op.kwargs.items())


def _runs(graph: Graph, indices: list[int]) -> Iterator[Callable[[], object] | None]:
    """One callable per operation, its tensors made when it is asked for; None where they cannot be."""
    for index in indices:
        op = graph.ops[index]
        try:
            bases = _bases(graph, op)
            args = _real(op.args, graph, bases)
            kwargs = {k: _real(v, graph, bases) for k, v in op.kwargs.items()}
            function = function_of(op.target)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            yield None
            continue
        yield lambda function=function, args=args, kwargs=kwargs: function(*args, **kwargs)  # type: ignore[misc]
        del bases, args, kwargs, function


def _bases(graph: Graph, op: Op) -> dict[int, tuple[Tensor, int]]:
    """A flat real tensor for each storage that the operation reads, and the first element that it stands for."""
    spans: dict[int, tuple[int, int, str]] = {}
    for tid in op.inputs:
        t = graph.tensors[tid]
        end = t.offset + sum((size - 1) * stride for size, stride in zip(t.shape, t.strides, strict=True)) + 1
        start, stop, _ = spans.get(t.storage, (t.offset, end, t.dtype))
        spans[t.storage] = (min(start, t.offset), max(stop, end), t.dtype)
    return {s: (_filled(stop - start, dtype), start) for s, (start, stop, dtype) in spans.items()}


def _filled(count: int, name: str) -> Tensor:
    dtype = getattr(torch, name)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full((max(count, 0),), 0.5).to(dtype)
    return torch.full((max(count, 0),), int(dtype is torch.bool), dtype=dtype)


def _real(value: Any, graph: Graph, bases: dict[int, tuple[Tensor, int]]) -> Any:
    if isinstance(value, Ref):
        t = graph.tensors[value]
        base, start = bases[t.storage]
        return base.view(getattr(torch, t.dtype)).as_strided(t.shape, t.strides, t.offset - start)
    if isinstance(value, tuple):
        return [_real(v, graph, bases) for v in value]
    return from_symbol(value) if isinstance(value, Symbol) else value
