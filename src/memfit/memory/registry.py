"""The table of memory models: one file and one entry each."""

from __future__ import annotations

import difflib
from types import MappingProxyType

from memfit.errors import UsageError
from memfit.memory import autograd, ideal, mcunet, tensors, tinytl
from memfit.memory.model import Figures, MemoryModel, View, peak


def _eager(view: View) -> Figures:
    """Give what PyTorch needs at each operation: live storages, eager lifetimes, and known kernel workspaces."""
    from memfit.memory.eager import timeline

    found = timeline(view.graph, view.options.probes)
    per_op = tuple(found.per_op_peak_bytes)
    return Figures(
        per_op,
        max(found.peak_bytes, peak(per_op)),
        tuple(found.notes),
        columns=(("workspace_bytes", tuple(found.workspace_bytes)),),
    )


def _cuda(view: View) -> Figures:
    """Give what `torch.cuda` will report, parameters and buffers included."""
    from memfit.memory.cuda.profile import figures

    return figures(view)


def _tflm(view: View) -> Figures:
    """Give the arena of TensorFlow Lite Micro in use at each operation, and head, tail and smallest arena."""
    from memfit.memory.tflm.profile import figures

    return figures(view)


MODELS = MappingProxyType(
    {
        model.name: model
        for model in (
            MemoryModel("eager", "PyTorch as it runs: eager lifetimes and known kernel workspaces", "peak", _eager),
            ideal.MODEL,
            mcunet.MODEL,
            tinytl.MODEL,
            autograd.MODEL,
            tensors.MODEL,
            MemoryModel("cuda", "what torch.cuda will report: the caching allocator over the run", "peak", _cuda),
            MemoryModel("tflm", "the arena that TensorFlow Lite Micro needs, of .tflite files", "peak", _tflm),
        )
    }
)
"""Name → memory model."""


def memory_model(name: str) -> MemoryModel:
    """Find a memory model by name.

    >>> memory_model("mcunet").measures
    'peak'

    Raises:
        UsageError: there is no such model; names the nearest.
    """
    found = MODELS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, MODELS, 1)
        raise UsageError(
            "there is no such memory model",
            where="--memory",
            received=repr(name),
            todo=(f"did you mean {near[0]}? " if near else "") + f"choose one of {', '.join(MODELS)}",
        )
    return found
