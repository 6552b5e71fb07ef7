"""The head of the arena: which buffers it holds, when they live, and where TFLM's planner puts them.

Source: tensorflow/lite/micro/micro_allocation_info.cc (lifetimes, offline offsets) and
memory_planner/greedy_memory_planner.cc, whose rule is `memfit.packing.tflm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memfit.errors import SourceError
from memfit.formats.tflite import Operator, TfliteModel
from memfit.formats.tflite.model import ONLINE_PLANNED
from memfit.memory.tflm.builds import ALIGNMENT, align_up
from memfit.memory.tflm.calls import tensor_bytes
from memfit.packing.blocks import Block, Part
from memfit.packing.tflm import tflm

NEVER = -1
"""Lifetime of a tensor that no operator touches; it takes space all the same."""

_STEPS = 1 << 18
"""More of them are no network: subgraphs that each run the next one twice."""

_CALLS = {
    "IF": ("then_subgraph_index", "else_subgraph_index"),
    "WHILE": ("cond_subgraph_index", "body_subgraph_index"),
    "CALL_ONCE": ("init_subgraph_index",),
}
"""Operators whose subgraphs are planned as part of them: MarkSubgraphLifetimesIfNecessary."""


class Request(NamedTuple):
    """A scratch buffer that an operator asks for."""

    subgraph: int
    operator: int
    nbytes: int
    what: str


class HeadBuffer(NamedTuple):
    """One buffer that the planner places."""

    name: str
    subgraph: int
    tensor: int | None
    """Index within its subgraph; None for a scratch buffer."""
    operator: int | None
    """The operator that asked for a scratch buffer."""
    nbytes: int
    """Rounded up to 16."""
    first: int
    """Step at which it is made: 0 for inputs, k + 1 for what operator k makes."""
    last: int
    """Step of its last use, which it still occupies."""
    offset: int | None
    """Where the file says that it goes; None where the runtime plans."""


class Steps(NamedTuple):
    """When the planner thinks that things happen."""

    tensors: dict[tuple[int, int], tuple[int, int]]
    """(subgraph, tensor) → first and last step."""
    operators: dict[tuple[int, int], tuple[int, int]]
    """(subgraph, operator) → its step, and the last step of the subgraphs that it runs."""


def steps(model: TfliteModel) -> Steps:
    """Find every tensor's first and last step, as MarkAllocationLifetimes does.

    Raises:
        SourceError: subgraphs that run themselves, or each other without end.
    """
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    operators: dict[tuple[int, int], tuple[int, int]] = {}
    now = 0

    def mark(number: int, depth: int = 0) -> None:
        nonlocal now
        if depth > len(model.subgraphs) or now > _STEPS:
            raise SourceError(
                "subgraphs run each other too often for any plan",
                where=f"{model.source}: subgraphs[{number}]",
                received=f"{now:,} steps, {depth} subgraphs within each other",
                todo="convert the model again",
            )
        subgraph = model.subgraphs[number]
        for i in subgraph.inputs:
            first.setdefault((number, i), now)
            last[number, i] = now
        for operator in subgraph.operators:
            now += 1
            started = now
            for i in operator.outputs:
                first.setdefault((number, i), now)
            for called in called_by(operator):
                now += 1
                mark(called, depth + 1)
            for i in (*operator.inputs, *operator.outputs):
                if i >= 0:
                    last[number, i] = now
            key = (number, operator.index)
            operators[key] = (operators[key][0] if key in operators else started, now)
        for i in subgraph.outputs:
            first.setdefault((number, i), now)
            last[number, i] = now

    mark(0)
    tensors = {key: (first.get(key, NEVER), at) for key, at in last.items()}
    return Steps(tensors, operators)


def called_by(operator: Operator) -> tuple[int, ...]:
    """Name the subgraphs that an operator runs."""
    if operator.is_custom:
        return ()
    return tuple(int(operator.options.get(name, 0)) for name in _CALLS.get(operator.name, ()))


def buffers(
    model: TfliteModel,
    requests: Sequence[Request] = (),
    *,
    offsets: Sequence[int] | None = None,
    found: Steps | None = None,
) -> tuple[HeadBuffer, ...]:
    """List what the planner places, in the order in which the runtime adds it.

    Args:
        model: what `read_model` gives.
        requests: scratch buffers, in the order of the requests.
        offsets: one for each tensor, -1 where the runtime plans; None takes the file's own, if it has them.
        found: what `steps` gave, where that is known.

    Raises:
        SourceError: offsets whose number is not that of the tensors.
        UnsupportedOp: a tensor of a type without a size.
    """
    when = found or steps(model)
    chosen = model.offline_offsets if offsets is None else tuple(offsets)
    count = sum(len(subgraph.tensors) for subgraph in model.subgraphs)
    if chosen is not None and len(chosen) != count:
        raise SourceError(
            "the offsets for the arena are not as many as the tensors, and TFLM refuses that",
            where=f"{model.source}: metadata OfflineMemoryAllocation",
            received=f"{len(chosen)} offsets, {count} tensors",
            todo="plan the model again, or remove that entry",
        )
    made = []
    position = 0
    for subgraph in model.subgraphs:
        handles = {i for operator in subgraph.operators if operator.name == "VAR_HANDLE" for i in operator.outputs}
        for tensor in subgraph.tensors:
            fixed = ONLINE_PLANNED if chosen is None else chosen[position]
            position += 1
            if tensor.data is not None or tensor.index in handles:  # a handle lies in its operator's data
                continue
            if tensor.is_variable and fixed == ONLINE_PLANNED:
                continue
            size = tensor_bytes(tensor)
            if size:
                first, last = when.tensors.get((subgraph.index, tensor.index), (NEVER, NEVER))
                name = tensor.name or f"tensor{tensor.index}"
                made.append(
                    HeadBuffer(
                        name, subgraph.index, tensor.index, None, align_up(size, ALIGNMENT), first, last,
                        None if fixed == ONLINE_PLANNED else fixed,
                    )
                )  # fmt: skip
    for request in requests:
        first, last = when.operators.get((request.subgraph, request.operator), (NEVER, NEVER))
        made.append(
            HeadBuffer(
                f"{request.what} of operators[{request.operator}]", request.subgraph, None, request.operator,
                align_up(request.nbytes, ALIGNMENT), first, last, None,
            )
        )  # fmt: skip
    return tuple(made)


def place(held: Sequence[HeadBuffer]) -> tuple[int, ...]:
    """Give every buffer the offset that TFLM's greedy planner gives it."""
    blocks = [
        Block(((number, 0),), (Part(buffer.first, buffer.last + 1, 0, buffer.nbytes),), 1, buffer.offset, 0)
        for number, buffer in enumerate(held)
    ]
    return tuple(tflm(blocks))
