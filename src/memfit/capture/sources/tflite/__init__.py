"""The reader of `.tflite` files: without PyTorch, without TensorFlow, and without trust in the file."""

from __future__ import annotations

from memfit.capture.sources.loaded import LoadedSource
from memfit.capture.sources.tflite.graph import to_graph
from memfit.formats.tflite import read_model

__all__ = ["load_tflite", "to_graph"]


def load_tflite(source: str) -> LoadedSource:
    """Read a `.tflite` file.

    Raises:
        SourceError: there is no such file, it is no `.tflite` file, or it is damaged.
    """
    model = read_model(source)
    return LoadedSource(source, read=lambda estimate: to_graph(model, estimate=estimate))
