"""Who makes and who reads each value of a forward pass.

A value is one version of one storage: an operation that mutates makes a new one, a view keeps it. Passes that follow
values therefore see in-place code as they see any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from memfit.graph.model import BEFORE, Graph, Op, Phase, StorageKind
from memfit.graph.optable import Role, role

FORWARD = frozenset({Phase.FORWARD, Phase.LOSS})
"""Phases that make the rows of a network; backward and optimizer step belong to the modules that they serve."""

NONE = -1

_MULTIPLIES = frozenset(
    {Role.CONV, Role.LINEAR, Role.MATMUL, Role.ATTENTION, Role.RECURRENT, Role.EMBEDDING, Role.INDEX, Role.LOSS}
)


@dataclass(frozen=True, slots=True)
class Values:
    """The values of a graph's forward pass; value numbers index `producer`, `readers` and `parameter`.

    >>> from memfit.graph.model import Graph
    >>> values_of(Graph((), (), (), (), (), ())).producer
    []
    """

    forward: tuple[Op, ...]
    """Operations of the forward pass and the loss, in order."""
    roles: list[Role]
    """Of every forward operation, by position in `forward`."""
    alias: list[bool]
    """By position in `forward`: True where no value is made (views, and pooling to the size there is)."""
    inputs: list[tuple[int, ...]]
    """By position in `forward`: the values read, each once, in argument order."""
    outputs: list[tuple[int, ...]]
    """By position in `forward`: the values of its outputs."""
    result: list[int]
    """By position in `forward`: tensor id of the main output, the first that is no parameter or buffer; -1 for none."""
    mutates: list[int]
    """By position in `forward`: the value that the main output overwrites, or -1."""
    producer: list[int]
    """Position in `forward` of the operation that makes the value; -1 for what exists before."""
    readers: list[list[int]]
    """Positions in `forward` of the operations that read it; views do not count."""
    elements: list[int]
    """Elements of the tensor that first held the value."""
    parameter: list[int]
    """Storage of the parameter that the value is; -1 for all others."""
    prepared: list[bool]
    """True for values computed from parameters and buffers alone, such as a standardized weight."""
    state: list[bool]
    """True for parameters, buffers and what they become when written to."""
    value_of: dict[tuple[int, int], int]
    """Value number by (storage, version)."""
    leaving: frozenset[int]
    """Values of the graph's outputs."""


def is_kept_copy(op: Op) -> bool:
    """True for the copy that autograd keeps of a value which the operation after it overwrites.

    A copy that the network itself makes is kept, if at all, by the operation that reads it.
    """
    return op.kind == "clone" and bool(op.saved) and op.outputs[0] in op.saved


def is_identity(graph: Graph, op: Op, part: Role) -> bool:
    """True for adaptive pooling to the size that its input already has, and for dropout in inference.

    To the network, autograd's copies are too: they are read by backward only.
    """
    if op.kind == "identity" or (part is Role.COPY and is_kept_copy(op)):
        return True
    if part is Role.DROPOUT:
        return not graph.training
    if part is Role.POOL or part is Role.REDUCE:
        tensors = graph.tensors
        return (
            len(op.inputs) == 1
            and bool(op.outputs)
            and tensors[op.inputs[0]].shape == tensors[op.outputs[0]].shape
            and ("adaptive" in op.kind or "Adaptive" in graph.scopes[op.scope].class_name)
        )
    return False


def values_of(graph: Graph) -> Values:
    """Number the values of a graph's forward pass and find who makes and who reads each."""
    tensors, storages = graph.tensors, graph.storages
    ids: dict[tuple[int, int], int] = {}
    producer: list[int] = []
    readers: list[list[int]] = []
    elements: list[int] = []
    parameter: list[int] = []
    prepared: list[bool] = []
    state: list[bool] = []
    number: list[int] = [NONE] * len(tensors)
    sure: dict[str, Role] = {}

    def new(tensor_id: int, made_by: int) -> int:
        tensor = tensors[tensor_id]
        key = (tensor.storage, tensor.version)
        found = ids.get(key)
        if found is None:
            found = ids[key] = len(producer)
            kind = storages[tensor.storage].kind
            own = kind is StorageKind.PARAMETER or kind is StorageKind.BUFFER
            producer.append(made_by)
            readers.append([])
            elements.append(tensor.elements)
            parameter.append(tensor.storage if kind is StorageKind.PARAMETER else NONE)
            prepared.append(own)
            state.append(own)
        number[tensor_id] = found
        return found

    for tensor_id in graph.inputs:
        new(tensor_id, BEFORE)
    forward = tuple(op for op in graph.ops if op.phase in FORWARD) if graph.training else graph.ops
    roles: list[Role] = []
    alias: list[bool] = []
    read: list[tuple[int, ...]] = []
    made: list[tuple[int, ...]] = []
    mutates: list[int] = []
    result: list[int] = []
    for position, op in enumerate(forward):
        part = sure.get(op.kind)
        if part is None:
            part = sure[op.kind] = role(op.kind)
        roles.append(part)
        inputs: list[int] = []
        for i in op.inputs:
            value = number[i]
            if value < 0:
                value = new(i, BEFORE)
            if value not in inputs:
                inputs.append(value)
        read.append(tuple(inputs))
        if is_identity(graph, op, part):
            for o in op.outputs:
                tensor = tensors[o]
                number[o] = ids.setdefault((tensor.storage, tensor.version), inputs[0])
            alias.append(True)
            mutates.append(NONE)
            made.append((inputs[0],))
            result.append(op.outputs[0])
            continue
        before = len(producer)
        outputs = []
        main = NONE
        for o in op.outputs:
            value = number[o]
            if value < 0:
                value = new(o, position)
            outputs.append(value)
            if main < 0 and not state[value]:
                main = o
        if main < 0 and op.outputs:
            main = op.outputs[0]
        makes = len(producer) > before
        made.append(tuple(outputs))
        result.append(main)
        alias.append(not makes and bool(outputs))
        target = NONE
        if makes:
            storage, version = tensors[main].storage, tensors[main].version
            for i in op.inputs:
                tensor = tensors[i]
                if tensor.storage == storage and tensor.version != version:
                    target = number[i]
                    for value in outputs:  # a write to a part is still a version of the whole
                        elements[value] = max(elements[value], elements[target])
                    break
        mutates.append(target)
        if not makes and outputs:
            continue
        for value in inputs:
            readers[value].append(position)
        if inputs and part not in _MULTIPLIES and all(prepared[v] for v in inputs):
            for value in outputs:
                prepared[value] = True
    return Values(
        forward=forward,
        roles=roles,
        alias=alias,
        inputs=read,
        outputs=made,
        result=result,
        mutates=mutates,
        producer=producer,
        readers=readers,
        elements=elements,
        parameter=parameter,
        prepared=prepared,
        state=state,
        value_of=ids,
        leaving=frozenset(ids[key] for o in graph.outputs if (key := (tensors[o].storage, tensors[o].version)) in ids),
    )
