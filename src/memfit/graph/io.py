"""A graph as one JSON file, and back: the same graph, or one clear error."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.errors import GraphError, MemfitError, OutputError, SourceError, said
from memfit.graph.model import Graph, Op, Phase, Ref, Scope, Storage, StorageKind, Symbol, Tensor
from memfit.graph.verify import verify

FORMAT = 1
"""Raised when a file of this version cannot be read by the code before it."""

SUFFIX = ".memfit.json"

_STORAGE_FIELDS, _TENSOR_FIELDS, _SCOPE_FIELDS = Storage._fields, Tensor._fields, Scope._fields


def to_json(graph: Graph) -> dict[str, Any]:
    """Write a graph as JSON values; rows of equal records are lists in the order that `columns` names."""
    return {
        "memfit_graph": FORMAT,
        "source": graph.source,
        "training": graph.training,
        "environment": graph.environment,
        "notes": list(graph.notes),
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "columns": {
            "storages": list(_STORAGE_FIELDS),
            "tensors": list(_TENSOR_FIELDS),
            "scopes": list(_SCOPE_FIELDS),
            "ops": list(Op._fields),
        },
        "storages": [list(s) for s in graph.storages],
        "tensors": [list(t) for t in graph.tensors],
        "scopes": [list(s) for s in graph.scopes],
        "ops": [
            [o.index, o.kind, o.target, o.inputs, o.outputs, _pack(o.attrs), o.scope, o.saved, o.macs, o.phase,
             _pack(o.args), _pack(o.kwargs)]
            for o in graph.ops
        ],
        "constants": {str(tid): data for tid, data in graph.constants.items()},
        "host": list(graph.host),
    }  # fmt: skip


def from_json(data: Any) -> Graph:
    """Read what `to_json` wrote, and verify it.

    Raises:
        GraphError: the data is not a graph, or breaks a rule of the graph language.
    """
    try:
        if data["memfit_graph"] != FORMAT:
            raise GraphError(
                "this graph file has another version",
                where="memfit_graph",
                received=f"version {data['memfit_graph']!r}",
                todo=f"capture the model again with this memfit, which reads version {FORMAT}",
            )
        graph = Graph(
            storages=tuple(
                Storage(int(i), int(n), StorageKind(k), int(b), int(d), int(u)) for i, n, k, b, d, u in data["storages"]
            ),
            tensors=tuple(
                Tensor(
                    int(i), int(storage), _ints(shape), _ints(strides), str(dtype), int(offset), int(version),
                    None if name is None else str(name), bool(trainable),
                )
                for i, storage, shape, strides, dtype, offset, version, name, trainable in data["tensors"]
            ),
            ops=tuple(
                Op(
                    int(index), str(kind), str(target), _ints(inputs), _ints(outputs), _unpack(attrs), int(scope),
                    _ints(saved), int(macs), Phase(phase), _unpack(args), _unpack(kwargs),
                )
                for index, kind, target, inputs, outputs, attrs, scope, saved, macs, phase, args, kwargs in data["ops"]
            ),
            scopes=tuple(
                Scope(int(i), str(path), str(name), int(parent), bool(container), _ints(params), _ints(buffers))
                for i, path, name, parent, container, params, buffers in data["scopes"]
            ),
            inputs=_ints(data["inputs"]),
            outputs=_ints(data["outputs"]),
            source=str(data["source"]),
            training=bool(data["training"]),
            environment=dict(data["environment"]),
            notes=tuple(map(str, data["notes"])),
            constants={int(tid): str(value) for tid, value in data["constants"].items()},
            host=_ints(data.get("host", ())),
        )  # fmt: skip
    except MemfitError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise GraphError(
            "this is not a graph that memfit wrote",
            where="the graph's JSON",
            received=said(error),
            todo="save the graph again with --save-graph",
        ) from error
    verify(graph)
    return graph


def save(graph: Graph, path: str | Path, *, force: bool = False) -> None:
    """Write a graph to a `.memfit.json` file, whole or not at all.

    Raises:
        OutputError: the file exists and `force` is not set, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(
            "the file exists and is kept",
            where=str(path),
            received="a file that is there already",
            todo="choose another name, or pass --force",
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(to_json(graph), separators=(",", ":")) + "\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            "the graph cannot be written", where=str(path), received=said(error), todo="check the folder and the disk"
        ) from error


def load(path: str | Path) -> Graph:
    """Read a `.memfit.json` file.

    Raises:
        SourceError: there is no such file.
        GraphError: it is not a graph, or breaks a rule of the graph language.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise SourceError(
            "the graph file cannot be read", where=str(path), received=error.strerror, todo="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise GraphError(
            "this is not a graph that memfit wrote",
            where=str(path),
            received=f"bytes that are not text, at {error.start}",
            todo="save the graph again with --save-graph",
        ) from error
    try:
        return from_json(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise GraphError(
            "this graph file is not valid JSON",
            where=str(path),
            received=str(error),
            todo="it was cut off or edited; save the graph again with --save-graph",
        ) from error
    except GraphError as error:
        if str(path) in str(error):
            raise
        raise GraphError(
            error.what,
            where=f"{path}{': ' + error.where if error.where else ''}",
            received=error.received,
            todo=error.todo,
        ) from error


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _pack(value: Any) -> Any:
    """Write references, symbols and the floats that JSON lacks as one-key objects."""
    if isinstance(value, Ref):
        return {"t": int(value)}
    if isinstance(value, Symbol):
        return {"s": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": repr(value)}
    if isinstance(value, tuple | list):
        return [_pack(v) for v in value]
    if isinstance(value, dict):
        return {"d": {k: _pack(v) for k, v in value.items()}}
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_unpack(v) for v in value)
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        return _TAGS[tag](content)
    return value


def _unpack_dict(content: dict[str, Any]) -> dict[str, Any]:
    return {k: _unpack(v) for k, v in content.items()}


_TAGS: dict[str, Callable[[Any], Any]] = {"t": Ref, "s": Symbol, "f": float, "d": _unpack_dict}
