"""Real peak memory beside the predicted one, by the same conventions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memfit.graph.model import BEFORE, Graph, StorageKind

Run = Callable[[], object]


def cpu_memory(run: Run, graph: Graph) -> tuple[dict[str, Any], list[str]]:
    """Give the CPU allocator's real peak, what the `eager` model predicts, and by how much that is off.

    The profiler sees what the call allocates. What it found, the inputs and the tensors that the model keeps beside its
    parameters and buffers, is added to the real peak, since `eager` counts it.
    """
    from memfit.capture.allocations import measure
    from memfit.memory.eager import timeline

    with _silent_profiler():
        real = measure(run)
    counted = {StorageKind.INPUT, StorageKind.CONSTANT}
    existing = sum(s.nbytes for s in graph.storages if s.birth == BEFORE and s.kind in counted)
    predicted = timeline(graph)
    notes = list(predicted.notes)
    if predicted.unknown:
        from memfit.capture.cpu_probe import probe

        kinds = ", ".join(sorted(predicted.unknown))
        with _silent_profiler():
            predicted = timeline(graph, probe(graph))
        notes = [*predicted.notes, f"predicted with workspaces measured one by one, without a rule: {kinds}"]
    return _beside(real.peak_bytes + existing, predicted.peak_bytes), notes


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep the profiler's own library from writing to stderr that it starts and stops."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("KINETO_LOG_LEVEL", None)


def cuda_memory(run: Run, graph: Graph) -> tuple[dict[str, Any], list[str]]:
    """Give what `torch.cuda` and the driver report at the peak, and what the `cuda` model predicts of a capture."""
    import torch

    from memfit.memory.profile import profile_graph

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    predicted = profile_graph(graph, memory="cuda", per="layer")
    figures = _beside(allocated, predicted.totals["peak_allocated_bytes"])
    figures |= {
        "measured_reserved_bytes": reserved,
        "predicted_reserved_bytes": predicted.totals["peak_reserved_bytes"],
        "driver_used_bytes": total - free,
    }
    return figures, list(predicted.notes)


def _beside(measured: int, predicted: int) -> dict[str, Any]:
    return {
        "measured_peak_bytes": measured,
        "predicted_peak_bytes": predicted,
        "prediction_error": (predicted - measured) / measured if measured else None,
    }


MEASURE: dict[str, Callable[[Run, Graph], tuple[dict[str, Any], list[str]]]] = {"cpu": cpu_memory, "cuda": cuda_memory}
"""Device → how its memory is measured and predicted."""
