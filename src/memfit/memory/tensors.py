"""Memory model `tensors`: the tensor by tensor report, as pytorch-memlab prints it.

Definition: every parameter, buffer and input, each rounded up to 512 bytes.

Source: pytorch-memlab's MemReporter (https://github.com/Stonesjtu/pytorch_memlab), which rounds each tensor as
CUDA's caching allocator does (`kMinBlockSize`, c10/cuda/CUDACachingAllocator.cpp, PyTorch 2.13).

Limits: tensors that exist outside a run. No activations, no gradients, no segments; a tied tensor counts once.
"""

from __future__ import annotations

from memfit.graph.model import Tensor
from memfit.memory.model import Figures, MemoryModel, View

ROUNDING_BYTES = 512
"""kMinBlockSize: c10/cuda/CUDACachingAllocator.cpp, PyTorch 2.13."""


def allocated_bytes(tensor: Tensor) -> int:
    """Round a tensor's bytes up.

    >>> allocated_bytes(Tensor(0, 0, (32,), (1,), "float32")), allocated_bytes(Tensor(0, 0, (), (), "int64"))
    (512, 512)
    """
    return -(-tensor.nbytes // ROUNDING_BYTES) * ROUNDING_BYTES


def listed(view: View) -> tuple[tuple[str, Tensor], ...]:
    """List what the report lists, as (kind, tensor): parameters, then buffers, then inputs."""
    graph = view.graph
    return (
        *(("parameter", t) for t in graph.parameters()),
        *(("buffer", t) for t in graph.buffers()),
        *(("input", graph.tensors[i]) for i in dict.fromkeys(graph.inputs)),
    )


def figures(view: View) -> Figures:
    """Give the report's total; it has no figure for operations."""
    total = sum(allocated_bytes(tensor) for _, tensor in listed(view))
    return Figures((None,) * len(view.graph.ops), total)


MODEL = MemoryModel("tensors", "parameters, buffers and inputs, each rounded up to 512 bytes", "tensors", figures)
