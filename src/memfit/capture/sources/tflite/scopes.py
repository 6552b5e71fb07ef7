"""Module paths for a format that has no modules, read out of the names that converters leave on tensors.

TensorFlow names a tensor after the operations that were fused into it: `model/conv2d/BiasAdd;model/conv2d/Conv2D`.
The part that belongs to the operator itself, without its last word, is the layer's path.
"""

from __future__ import annotations

from collections.abc import Sequence

from memfit.formats.tflite import Operator, Subgraph
from memfit.graph.model import Scope

DEPTH = 32
"""Levels of a path; what lies deeper is joined."""

_OWN = {
    "CONV_2D": ("Conv2D", "BiasAdd"),
    "DEPTHWISE_CONV_2D": ("depthwise", "BiasAdd"),
    "TRANSPOSE_CONV": ("conv2d_transpose", "BiasAdd"),
    "FULLY_CONNECTED": ("MatMul", "BiasAdd"),
    "ADD": ("add",),
    "MUL": ("mul",),
    "CONCATENATION": ("concat",),
    "AVERAGE_POOL_2D": ("AvgPool",),
    "MAX_POOL_2D": ("MaxPool",),
    "MEAN": ("Mean",),
    "RESHAPE": ("Reshape",),
    "PAD": ("Pad",),
    "SOFTMAX": ("Softmax",),
}
"""Operator → the last words by which TensorFlow's own operation shows, the surest first."""

_WEIGHT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}
"""Operators whose filter's name says more than their output's, and where the filter stands."""


def scopes_of(subgraph: Subgraph) -> tuple[tuple[Scope, ...], list[int]]:
    """Give the modules, the root first, and the module of each operator."""
    paths = [_path(subgraph, operator) for operator in subgraph.operators]
    shared = _shared([path for path in paths if path])
    paths = [path[shared:] for path in paths]
    root: dict[str, object] = {}
    for path in paths:
        node = root
        for part in path:
            node = node.setdefault(part, {})  # type: ignore[assignment]
    scopes = [Scope(0, "", "Model", -1)]
    index_of: dict[tuple[str, ...], int] = {(): 0}
    stack: list[tuple[tuple[str, ...], dict[str, object]]] = [((), root)]
    while stack:
        path, node = stack.pop()
        if path:
            index_of[path] = len(scopes)
            scopes.append(Scope(len(scopes), ".".join(path), "Module", index_of[path[:-1]]))
        stack.extend(((*path, part), child) for part, child in reversed(node.items()))  # type: ignore[misc]
    return tuple(scopes), [index_of[path] for path in paths]


def _path(subgraph: Subgraph, operator: Operator) -> tuple[str, ...]:
    """Find an operator's path in the names of its filter and its output."""
    tensors = subgraph.tensors
    names = []
    place = _WEIGHT.get(operator.name)
    if place is not None and place < len(operator.inputs) and operator.inputs[place] >= 0:
        weight = tensors[operator.inputs[place]]
        if weight.is_constant:
            names.append(weight.name)
    names += [tensors[i].name for i in operator.outputs[:1]]
    parts = [part.split("/") for name in names for part in name.rstrip("…").split(";") if part]
    for last in _OWN.get(operator.name, ()):
        for part in parts:
            if len(part) > 1 and part[-1].rstrip("0123456789_:") == last:
                return _cut(part[:-1])
    first = names[-1].partition(";")[0].split("/") if names else []
    return _cut(first[:-1])


def _cut(parts: Sequence[str]) -> tuple[str, ...]:
    kept = tuple(part for part in parts if part)
    return kept if len(kept) <= DEPTH else (*kept[: DEPTH - 1], "/".join(kept[DEPTH - 1 :]))


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Count the leading parts that all paths share, such as the model's own name; each keeps one part at least."""
    if not paths:
        return 0
    count = 0
    while all(len(path) > count + 1 and path[count] == paths[0][count] for path in paths):
        count += 1
    return count
