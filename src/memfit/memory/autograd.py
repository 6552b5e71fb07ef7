"""Memory model `autograd`: what stock PyTorch keeps for backward.

Definition: the storages of all tensors that autograd saves in forward and loss, whole, each once, at the first
operation that saves it; parameters and buffers do not count, the network's input does.

Where layers' outputs have bits of their own, what is saved of them is kept in ⌈bits/8 · elements⌉ bytes, as training
with compressed activations does.

Source: the saved tensors as PyTorch itself reports them (`torch.autograd.graph.saved_tensors_hooks`), noted on each
operation when the graph is captured.

Limits: what backward frees on its way, gradients, and the peak of the step are not in it (`eager` of a training
capture is). Tensors that custom autograd functions keep outside the hooks are not seen.
"""

from __future__ import annotations

from memfit.analysis.values import FORWARD
from memfit.errors import UsageError
from memfit.graph.model import StorageKind
from memfit.memory.demand import NO_GROUP, Demand, Moment, Part, item_bits, storage_groups
from memfit.memory.model import Figures, MemoryModel, View

_NOT_COUNTED = frozenset({StorageKind.PARAMETER, StorageKind.BUFFER})


def figures(view: View) -> Figures:
    """Give the bytes that each forward operation is the first to save.

    >>> from memfit.graph.model import Graph
    >>> figures(View(Graph((), (), (), (), (), (), training=True))).total_bytes
    0

    Raises:
        UsageError: the graph was captured for inference, where nothing is saved.
    """
    graph = view.graph
    if not graph.training:
        raise UsageError(
            "autograd needs a training capture: inference keeps nothing for backward",
            where="--memory autograd",
            received=f"an inference capture of {graph.source or 'a network'}",
            todo="capture with training=True (--training)",
        )
    per_op = demand(view).per_op(view.options.layer_bits or {})
    return Figures(per_op, sum(kept or 0 for kept in per_op))


def demand(view: View) -> Demand:
    """Give what each forward operation is the first to save.

    >>> from memfit.graph.model import Graph
    >>> demand(View(Graph((), (), (), (), (), (), training=True))).moments
    ()
    """
    graph = view.graph
    tensors, storages = graph.tensors, graph.storages
    names, group_of = ((), {}) if view.options.layer_bits is None else storage_groups(view)
    item = item_bits(view)
    seen: set[int] = set()
    moments = []
    for op in graph.ops:
        if op.phase not in FORWARD:
            continue
        parts = []
        for i in op.saved:
            storage = storages[tensors[i].storage]
            if storage.id not in seen:
                seen.add(storage.id)
                if storage.kind not in _NOT_COUNTED:
                    own = item.get(storage.id, 8)
                    parts.append(Part(group_of.get(storage.id, NO_GROUP), storage.nbytes * 8 // own, own))
        moments.append(Moment(op.index, tuple(parts)))
    return Demand(names, tuple(moments), len(graph.ops), "saved")


MODEL = MemoryModel(
    "autograd", "what stock PyTorch keeps for backward", "saved", figures, of_training=True, demand=demand
)
