"""memfit shows where a neural network's memory goes, layer by layer, and makes the network fit.

Names load on use, so that `import memfit` costs next to nothing and never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memfit.version import __version__

if TYPE_CHECKING:
    from memfit.api import (
        Benchmark,
        Calibration,
        Check,
        Plan,
        Profile,
        Pruning,
        Quantization,
        Sensitivity,
        Stream,
        TrainingStep,
        apply_recipe,
        bench,
        calibrate,
        capture,
        check,
        load_graph,
        plan,
        profile,
        prune,
        quantize,
        replay,
        save_graph,
        sensitivity,
        stream,
        train,
    )
    from memfit.errors import MemfitError
    from memfit.graph.model import Graph

__all__ = [
    "Benchmark",
    "Calibration",
    "Check",
    "Graph",
    "MemfitError",
    "Plan",
    "Profile",
    "Pruning",
    "Quantization",
    "Sensitivity",
    "Stream",
    "TrainingStep",
    "__version__",
    "apply_recipe",
    "bench",
    "calibrate",
    "capture",
    "check",
    "load_graph",
    "plan",
    "profile",
    "prune",
    "quantize",
    "replay",
    "save_graph",
    "sensitivity",
    "stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "Graph":
        from memfit.graph.model import Graph

        return Graph
    if name == "MemfitError":
        from memfit.errors import MemfitError

        return MemfitError
    if name in ("capture", "plan", "stream"):  # packages that are functions too
        return import_module(f"memfit.{name}")
    if name in __all__:
        from memfit import api

        return getattr(api, name)
    raise AttributeError(f"module 'memfit' has no attribute {name!r}")
