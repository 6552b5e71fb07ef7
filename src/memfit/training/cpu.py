"""A step of training on the CPU: the `eager` memory model, put into the shape of a GPU's simulation."""

from __future__ import annotations

from memfit.graph.model import Graph, StorageKind
from memfit.memory.cuda.simulate import CATEGORIES, CATEGORY_OF_KIND, Run, Simulation
from memfit.memory.eager import timeline
from memfit.memory.inplace import taken_over

_STATE = (StorageKind.PARAMETER, StorageKind.BUFFER)


def simulate_on_cpu(run: Run) -> Simulation:
    """Run a step on the CPU, whose allocator keeps nothing: what is reserved is what is allocated.

    The figures are of a step whose optimizer has its state; parameters and buffers are counted.
    """
    graphs = [graph for graph, _ in run.graphs(1)]
    state = sum(s.nbytes for s in run.first.storages if s.kind in _STATE)
    lines = {id(graph): timeline(graph) for graph in graphs}
    last = graphs[-1]
    line = lines[id(last)]
    by_category = _by_category(last)
    per_op = tuple(state + nbytes for nbytes in line.per_op_peak_bytes)
    temporary = tuple(
        total - sum(series[index] for series in by_category.values()) for index, total in enumerate(per_op)
    )
    by_category["temporaries"] = temporary
    peak = max((state + found.peak_bytes for found in lines.values()), default=state)
    return Simulation(
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak,
        between_bytes=state + sum(s.nbytes for s in last.storages if s.kind is StorageKind.OPTIMIZER),
        per_op=per_op,
        reserved=(),
        temporary=temporary,
        by_category=by_category,
        graph=last,
        notes=line.notes,
    )


def _by_category(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Bytes of the storages of each category that live while each operation runs."""
    count = len(graph.ops)
    saved = {graph.tensors[t].storage for op in graph.ops for t in op.saved}
    follow = {new for _, new in taken_over(graph).values()}  # these take an old storage's place when that ends
    change = {name: [0] * (count + 1) for name in CATEGORIES}
    for s in graph.storages:
        changes = change[CATEGORY_OF_KIND.get(s.kind) or ("saved" if s.id in saved else "activations")]
        changes[min(max(s.birth, 0) + (s.id in follow), count)] += s.nbytes
        changes[count if s.kind in _STATE else min(max(s.death, s.birth + 1), count)] -= s.nbytes
    found = {}
    for name, changes in change.items():
        total, series = 0, []
        for value in changes[:count]:
            total += value
            series.append(total)
        found[name] = tuple(series)
    return found
