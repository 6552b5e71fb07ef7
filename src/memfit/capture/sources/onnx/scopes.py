"""Module paths, read out of the names that exporters leave on nodes, weights and metadata.

PyTorch's first exporter names a node `/layer1/layer1.0/conv1/Conv`: a member of a Sequential repeats the name of what
holds it. Its second exporter keeps the paths in the node's metadata. Other tools write `model/conv2d/Conv2D`, or one
word. Where a node has no telling name, its weight's may tell: `layer1.0.conv1.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from memfit.capture.sources.onnx.call import Call
from memfit.formats.flatbuffer import shown
from memfit.formats.onnx import Node
from memfit.graph.model import Scope

if TYPE_CHECKING:
    from memfit.capture.sources.onnx.steps import Step

Path = tuple[str, ...]

DEPTH = 32
"""Levels of a path; what lies deeper is joined."""

_LAST = re.compile(r"\.(?:weight|bias|kernel|gamma|beta)(?:_quantized|_int8)?$")


def path_of(node: Node, call: Call | None, outer: Path, *, whole: bool = False) -> Path:
    """Find the module that a node belongs to.

    Args:
        node: the node.
        call: the node with its inputs, whose names may tell.
        outer: the path of the function or body that it stands in.
        whole: the node holds others, so that its own name is the last part of the path.
    """
    if node.scopes:
        path = tuple(_from_metadata(node.scopes))
        weight = _from_weight(call)
        return _cut((*outer, *(weight if weight and weight[:-1] == path[:-1] else path)))
    if "/" in node.name:
        parts = [part for part in node.name.split("/") if part]
        return _cut((*outer, *_joined(parts if whole else parts[:-1])))
    if whole:
        return _cut((*outer, node.name)) if node.name else outer
    weight = _from_weight(call)
    if weight:
        return _cut((*outer, *weight))
    if node.name and not _is_counted(node):
        return _cut((*outer, node.name))
    return outer


def _from_weight(call: Call | None) -> Path:
    """Find the module whose weight a node reads: `layer1.0.conv1.weight`."""
    for value in () if call is None else call.inputs[1:]:
        if value is not None and value.constant and (name := value.root.name) and _LAST.search(name):
            return tuple(part for part in re.split(r"[./]", _LAST.sub("", name)) if part)
    return ()


def _is_counted(node: Node) -> bool:
    """True for names that only count: Conv_12, node_relu_3, n4."""
    bare = node.name.lower().removeprefix("node_").rstrip("0123456789").rstrip("_")
    return bare in ("", "n", "node", node.op_type.lower())


def _from_metadata(scopes: Sequence[str]) -> Iterator[str]:
    """Turn paths from outside in, `features`, `features.0`, into parts; the last is the operation's own name."""
    held = ""
    for scope in scopes[:-1]:
        if not scope:
            continue
        own = scope.removeprefix(f"{held}.") if held else scope
        yield from (part for part in own.split(".") if part)
        held = scope


def _joined(parts: Sequence[str]) -> Iterator[str]:
    """Turn `layer1`, `layer1.0`, `conv1` into `layer1`, `0`, `conv1`."""
    held = ""
    for part in parts:
        own = part.removeprefix(f"{held}.") if held else part
        held = part
        for piece in own.split("."):
            if piece:
                yield piece


def classes_of(steps: Iterable[Step]) -> dict[Path, str]:
    """Read the class of each module that PyTorch's exporter names in the nodes' metadata."""
    found: dict[Path, str] = {}
    for step in steps:
        node = step.node
        if len(node.scopes) == len(node.classes):
            for level in range(len(node.scopes) - 1):
                path = _cut(tuple(_from_metadata(node.scopes[: level + 2])))
                found.setdefault(path, shown(node.classes[level].rpartition(".")[2][:80].encode("utf-8", "replace")))
    return found


def _cut(parts: Sequence[str]) -> Path:
    kept = tuple(parts)
    return kept if len(kept) <= DEPTH else (*kept[: DEPTH - 1], "/".join(kept[DEPTH - 1 :]))


def scopes_of(paths: Sequence[Path], classes: Mapping[Path, str] | None = None) -> tuple[tuple[Scope, ...], list[int]]:
    """Give the modules, the root first, and the module of each path.

    >>> [scope.path for scope in scopes_of([("layer1", "0"), ("layer1", "1"), ()])[0]]
    ['', 'layer1', 'layer1.0', 'layer1.1']
    """
    root: dict[str, dict] = {}  # type: ignore[type-arg]
    clean: dict[str, str] = {}
    shown_paths = []
    for path in paths:
        for part in path:
            if part not in clean:
                clean[part] = shown(part[:256].encode("utf-8", "backslashreplace")) or "_"
        shown_paths.append(tuple(clean[part] for part in path))
    for path in shown_paths:
        node = root
        for part in path:
            node = node.setdefault(part, {})
    scopes = [Scope(0, "", (classes or {}).get(()) or "Model", -1)]
    index_of: dict[Path, int] = {(): 0}
    stack: list[tuple[Path, dict[str, dict]]] = [((), root)]  # type: ignore[type-arg]
    while stack:
        path, node = stack.pop()
        if path:
            index_of[path] = len(scopes)
            listed = bool(node) and all(part.isdecimal() for part in node)
            class_name = (classes or {}).get(path) or ("Sequential" if listed else "Module")
            scopes.append(Scope(len(scopes), ".".join(path), class_name, index_of[path[:-1]], listed))
        stack.extend(((*path, part), child) for part, child in reversed(node.items()))
    return tuple(scopes), [index_of[path] for path in shown_paths]
