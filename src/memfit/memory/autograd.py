"""Memory model `autograd`: what stock PyTorch keeps for backward.

Definition: the storages of all tensors that autograd saves in forward and loss, whole, each once, at the first
operation that saves it; parameters and buffers do not count, the network's input does.

Source: the saved tensors as PyTorch itself reports them (`torch.autograd.graph.saved_tensors_hooks`), noted on each
operation when the graph is captured.

Limits: what backward frees on its way, gradients, and the peak of the step are not in it (`eager` of a training
capture is). Tensors that custom autograd functions keep outside the hooks are not seen.
"""

from __future__ import annotations

from memfit.analysis.values import FORWARD
from memfit.errors import UsageError
from memfit.graph.model import StorageKind
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
            received=f"an inference capture of {graph.source or 'a network'}",
            todo="capture with training=True (--training)",
        )
    tensors, storages = graph.tensors, graph.storages
    seen: set[int] = set()
    per_op: list[int | None] = []
    total = 0
    for op in graph.ops:
        if op.phase not in FORWARD:
            per_op.append(None)
            continue
        kept = 0
        for i in op.saved:
            storage = tensors[i].storage
            if storage not in seen:
                seen.add(storage)
                if storages[storage].kind not in _NOT_COUNTED:
                    kept += storages[storage].nbytes
        per_op.append(kept)
        total += kept
    return Figures(tuple(per_op), total)


MODEL = MemoryModel("autograd", "what stock PyTorch keeps for backward", "saved", figures, of_training=True)
