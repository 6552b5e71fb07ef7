"""`.onnx` files as plain records: what the file says, checked, and nothing of the graph."""

from __future__ import annotations

from memfit.formats.onnx.model import (
    DTYPES,
    Function,
    Node,
    OnnxGraph,
    OnnxModel,
    OnnxTensor,
    Reference,
    ValueInfo,
)
from memfit.formats.onnx.reader import parse_model, read_model

__all__ = [
    "DTYPES",
    "Function",
    "Node",
    "OnnxGraph",
    "OnnxModel",
    "OnnxTensor",
    "Reference",
    "ValueInfo",
    "parse_model",
    "read_model",
]
