"""The `cuda` memory model: what `torch.cuda` will report.

Definition: parameters, buffers and input are allocated in the order of `module.to("cuda")`, then the graph runs, and
every storage is allocated and freed by PyTorch's caching allocator as `allocator.py` simulates it, with eager
lifetimes and the workspaces that `workspaces.py` knows. A figure is allocated bytes (`torch.cuda.memory_allocated`),
everything included; the totals give reserved bytes too. Source: docs/cuda.md. Limits: one process, one stream; what
only cuDNN knows is not counted, and the context is outside of the allocator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memfit.graph.model import BEFORE, Graph, StorageKind
from memfit.memory.cuda.context import context_note
from memfit.memory.cuda.simulate import Run, Simulation, simulate
from memfit.memory.cuda.workspaces import UNCOUNTED
from memfit.memory.model import Figures, View

if TYPE_CHECKING:
    from memfit.memory.cuda.allocator import Settings


def figures(view: View) -> Figures:
    """Give the allocated bytes at each operation, and the peaks of allocated and reserved."""
    graph = view.graph
    found = simulated(graph, view.options.allocator)
    return Figures(
        found.per_op,
        found.peak_allocated_bytes,
        tuple(notes(graph)),
        extra=(
            ("peak_allocated_bytes", found.peak_allocated_bytes),
            ("peak_reserved_bytes", found.peak_reserved_bytes),
        ),
        columns=(
            (
                "workspace_bytes",
                tuple(None if op.target in UNCOUNTED else n for op, n in zip(graph.ops, found.temporary, strict=True)),
            ),
        ),
    )


def simulated(graph: Graph, settings: Settings | None = None) -> Simulation:
    """Run a graph through the allocator: twice, or once where it takes over what only one run can."""
    return simulate(Run(graph), settings, iterations=1 if uses_cache(graph) else 2)


def uses_cache(graph: Graph) -> bool:
    """Tell whether the run takes over activations of an earlier one: a language model's keys and values."""
    return any(s.birth == BEFORE and s.kind is StorageKind.ACTIVATION for s in graph.storages)


def notes(graph: Graph, context: int | None = None) -> list[str]:
    """Say what the figures leave out; `context` is what the CUDA context was measured to take."""
    found = []
    if graph.environment.get("device") != "cuda":
        found.append("captured as the CPU runs it: capture with --device cuda for the kernels that a GPU takes")
    uncounted = sorted({op.kind for op in graph.ops if op.target in UNCOUNTED})
    if uncounted:
        found.append(f"workspaces that only cuDNN knows are not counted: {', '.join(uncounted)}")
    if uses_cache(graph):
        found.append("reserved is of this step alone: a process that ran the prefill keeps what that reserved")
    if context is None:
        found.append(context_note(str(graph.environment.get("capability", "8.0"))))
    return found
