"""`.tflite` files as plain records: everything that TensorFlow Lite Micro reads from one, and nothing of the graph."""

from __future__ import annotations

from memfit.formats.flatbuffer import Span
from memfit.formats.tflite.model import (
    Buffer,
    Metadata,
    Operator,
    OperatorCode,
    Quantization,
    SignatureDef,
    Subgraph,
    TfliteModel,
    TfliteTensor,
)
from memfit.formats.tflite.reader import parse_model, read_model

__all__ = [
    "Buffer",
    "Metadata",
    "Operator",
    "OperatorCode",
    "Quantization",
    "SignatureDef",
    "Span",
    "Subgraph",
    "TfliteModel",
    "TfliteTensor",
    "parse_model",
    "read_model",
]
