"""The `eager` memory model: PyTorch on the CPU as it runs.

Definition: at each operation, the bytes of every storage that Python still holds (eager lifetimes; parameters and
buffers left out, the network's input included), plus the largest sum that the kernel's own allocations reach while it
runs. Source: the profiler's CPU allocations, which this equals; see docs/eager-cpu.md for the measured table. Limits:
the CPU only; kernels without a rule count their outputs only and are named in `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memfit.graph.model import Graph, Phase, Ref, StorageKind
from memfit.memory.cpu.machine import Machine
from memfit.memory.cpu_workspaces import doubts, find


@dataclass(frozen=True)
class Timeline:
    """Memory over the operations of one graph, in bytes."""

    per_op_peak_bytes: tuple[int, ...]
    """Highest total while each operation runs."""
    workspace_bytes: tuple[int | None, ...]
    """What the operation's kernel needs at its peak beyond its outputs; None where no rule is known."""
    peak_bytes: int
    """Highest total of all, the network's input included."""
    peak_op: int
    """First operation at which it is reached; -1 in a graph without operations."""
    unknown: tuple[str, ...]
    """Kinds of operations whose workspaces are unknown; their outputs are counted."""
    notes: tuple[str, ...]
    """What a reader of the figures must know."""


def timeline(graph: Graph, probes: Mapping[int, tuple[int, ...]] | None = None) -> Timeline:
    """Run the eager model over a captured graph.

    `probes` gives events measured for some operations, by index; they take precedence over the rules.

    >>> from memfit.graph.model import Op, Storage, Tensor
    >>> x, y = (Tensor(i, i, (2, 8), (8, 1), "float32") for i in range(2))
    >>> storages = (Storage(0, 64, StorageKind.INPUT, -1, 1, 1), Storage(1, 64, StorageKind.ACTIVATION, 0, 1, 1))
    >>> op = Op(0, "relu", "aten.relu.default", (0,), (1,), {}, 0)
    >>> timeline(Graph(storages, (x, y), (op,), (), (0,), (1,))).peak_bytes
    128
    """
    if graph.environment.get("device") == "cuda":
        return _on_gpu(graph)
    machine = Machine(graph)
    held, made = held_bytes(graph)
    per_op: list[int] = []
    workspaces: list[int | None] = []
    unknown: dict[str, None] = {}
    probes = probes or {}
    for op in graph.ops:
        index = op.index
        found = probes.get(index) if index in probes else find(machine, op)
        output_bytes = made[index]
        if found is None:
            unknown[op.kind] = None
            highest = output_bytes
            workspaces.append(None)
        else:
            total = highest = 0
            for change in found:
                total += change
                if total > highest:  # noqa: PLR1730  (max() costs a call per event)
                    highest = total
            workspaces.append(highest - max(total, 0))
            if total > output_bytes:
                keep_longer(graph, index, total - output_bytes, held)
        per_op.append(held[index] + highest)
    peak = max(per_op, default=_inputs(graph))
    notes = list(doubts(graph))
    if unknown:
        notes.append(
            f"workspaces unknown on {graph.environment.get('isa')}, outputs only counted: {', '.join(sorted(unknown))}"
        )
    return Timeline(
        per_op_peak_bytes=tuple(per_op),
        workspace_bytes=tuple(workspaces),
        peak_bytes=peak,
        peak_op=per_op.index(peak) if per_op else -1,
        unknown=tuple(unknown),
        notes=tuple(notes),
    )


def _on_gpu(graph: Graph) -> Timeline:
    """Run the model over what a GPU runs: live bytes and the kernels' temporaries, without an allocator's rounding."""
    from memfit.memory.cuda.workspaces import UNCOUNTED, Gpu, temporaries
    from memfit.memory.inplace import taken_over

    gpu = Gpu.of(graph)
    held, made = held_bytes(graph)
    for index, (_, new) in taken_over(graph).items():
        made[index] -= graph.storages[new].nbytes
    needs = tuple(sum(temporaries(graph, op, gpu)) for op in graph.ops)
    per_op = tuple(h + m + n for h, m, n in zip(held, made, needs, strict=False))
    peak = max(per_op, default=_inputs(graph))
    unknown = tuple(dict.fromkeys(op.kind for op in graph.ops if op.target in UNCOUNTED))
    return Timeline(
        per_op_peak_bytes=per_op,
        workspace_bytes=tuple(None if op.target in UNCOUNTED else n for op, n in zip(graph.ops, needs, strict=True)),
        peak_bytes=peak,
        peak_op=per_op.index(peak) if per_op else -1,
        unknown=unknown,
        notes=(f"workspaces that only cuDNN knows are not counted: {', '.join(unknown)}",) if unknown else (),
    )


def held_bytes(graph: Graph) -> tuple[list[int], list[int]]:
    """Bytes alive before each operation and still alive while it runs, and bytes that it makes itself."""
    count = len(graph.ops)
    change, made = [0] * (count + 1), [0] * (count + 1)
    left_out = (StorageKind.PARAMETER, StorageKind.BUFFER)
    host = frozenset(graph.host)
    for sid, nbytes, kind, birth, death, _ in graph.storages:
        if kind in left_out or sid in host:
            continue
        if birth < 0:
            change[0] += nbytes
        else:
            made[min(birth, count)] += nbytes
            change[min(birth + 1, count)] += nbytes
        change[min(max(death, birth + 1), count)] -= nbytes
    if graph.training and graph.environment.get("device") != "cuda":  # a GPU's step keeps them on the host
        for first, last in saved_numbers(graph):
            change[first + 1] += 8
            change[last] -= 8
    held, total = [], 0
    for value in change[:count]:
        total += value
        held.append(total)
    return held, made


def keep_longer(graph: Graph, index: int, extra_bytes: int, held: list[int]) -> None:
    """Count what a kernel leaves beyond its outputs' own bytes, as a mean loss does, for as long as they live."""
    tensors, storages = graph.tensors, graph.storages
    deaths = [storages[tensors[o].storage].death for o in graph.ops[index].outputs]
    for later in range(index + 1, min(max(deaths, default=0), len(held))):
        held[later] += extra_bytes


def saved_numbers(graph: Graph) -> Iterator[tuple[int, int]]:
    """Pairs of operations between which autograd keeps a Python number, as a tensor of 8 bytes.

    A product with or division by a number keeps it for its backward; a capture records the number itself.
    """
    waiting: dict[tuple[str, object], list[int]] = {}
    for op in graph.ops:
        if op.target not in _KEEPS_NUMBER or len(op.args) != 2 or isinstance(op.args[1], Ref):
            continue
        kept = waiting.setdefault((op.target, op.args[1]), [])
        if op.phase is Phase.BACKWARD:
            if kept:
                yield kept.pop(), op.index
        elif op.phase is not Phase.STEP:
            kept.append(op.index)


_KEEPS_NUMBER = frozenset({"aten.mul.Tensor", "aten.div.Tensor"})


def _inputs(graph: Graph) -> int:
    storages = {graph.tensors[i].storage for i in graph.inputs}
    return sum(graph.storages[s].nbytes for s in storages)
