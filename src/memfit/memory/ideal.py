"""Memory model `ideal`: the least that this order of operations needs.

Definition: at each operation, the bytes of all storages alive at it, where a storage lives from the operation that
makes it to its last use (the network's outputs to the end). The input is included; parameters and buffers are not.

Source: liveness analysis, as compilers and static memory planners do it.

Limits: a lower bound. No kernel workspaces, no rounding, no fragmentation, and nothing is fused; an operation's
inputs and outputs are all there while it runs, unless the network's own code works in place.
"""

from __future__ import annotations

from memfit.memory.model import Figures, MemoryModel, View, peak


def figures(view: View) -> Figures:
    """Give the live bytes at each operation.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), ()))).total_bytes
    0
    """
    live = view.graph.ideal_live_bytes
    return Figures(live, peak(live))


MODEL = MemoryModel("ideal", "lower bound for this order of operations, ideal lifetimes", "peak", figures)
