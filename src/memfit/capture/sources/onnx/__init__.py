"""The reader of `.onnx` files: without PyTorch, without ONNX Runtime, and without trust in the file."""

from __future__ import annotations

from memfit.capture.sources.loaded import LoadedSource
from memfit.capture.sources.onnx.graph import to_graph
from memfit.formats.onnx import read_model

__all__ = ["load_onnx", "to_graph"]


def load_onnx(source: str) -> LoadedSource:
    """Read an `.onnx` file.

    Raises:
        SourceError: there is no such file, it is no `.onnx` file, or it is damaged.
        MissingExtra: the package `onnx` is not installed.
    """
    model = read_model(source)
    return LoadedSource(
        source,
        read_with=lambda inputs, batch, estimate: to_graph(model, inputs, batch=batch, estimate=estimate),
    )
