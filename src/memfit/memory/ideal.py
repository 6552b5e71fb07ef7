"""Memory model `ideal`: the least that this order of operations needs.

Definition: at each operation, the bytes of all storages alive at it, where a storage lives from the operation that
makes it to its last use (the network's outputs to the end). The input is included; parameters and buffers are not.

Where layers' outputs have bits of their own, ⌈bits/8 · elements⌉ bytes count; what a layer makes on its way to its
output (a convolution's sums before the batch norm) has the same bits.

Source: liveness analysis, as compilers and static memory planners do it.

Limits: a lower bound. No kernel workspaces, no rounding, no fragmentation, and nothing is fused; an operation's
inputs and outputs are all there while it runs, unless the network's own code works in place.
"""

from __future__ import annotations

from memfit.graph.model import Storage, StorageKind
from memfit.memory.demand import NO_GROUP, Demand, Moment, Part, item_bits, storage_groups
from memfit.memory.model import Figures, MemoryModel, View, peak

_STATE = frozenset({StorageKind.PARAMETER, StorageKind.BUFFER})


def figures(view: View) -> Figures:
    """Give the live bytes at each operation.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), ()))).total_bytes
    0
    """
    chosen = view.options.layer_bits
    if chosen is not None:
        per_op = demand(view).per_op(chosen)
        return Figures(per_op, peak(per_op))
    live = view.graph.ideal_live_bytes
    return Figures(live, peak(live))


def demand(view: View) -> Demand:
    """Give what is alive at each operation; what a layer makes on its way has the bits of its output.

    >>> from memfit.graph.model import Graph
    >>> demand(View(Graph((), (), (), (), (), ()))).total_bytes({})
    0
    """
    graph = view.graph
    names, group_of = storage_groups(view)
    item = item_bits(view)
    count = len(graph.ops)
    begin: list[list[Storage]] = [[] for _ in range(count + 1)]
    for storage in graph.storages:
        if storage.kind not in _STATE and storage.ideal_death > storage.birth:
            begin[min(max(storage.birth, 0), count)].append(storage)
    alive: list[Storage] = []
    moments = []
    for index in range(count):
        alive = [s for s in (*alive, *begin[index]) if s.ideal_death > index]
        parts = (
            Part(group_of.get(s.id, NO_GROUP), s.nbytes * 8 // item.get(s.id, 8), item.get(s.id, 8)) for s in alive
        )
        moments.append(Moment(index, tuple(parts)))
    return Demand(names, tuple(moments), count, "peak")


MODEL = MemoryModel(
    "ideal", "lower bound for this order of operations, ideal lifetimes", "peak", figures, demand=demand
)
