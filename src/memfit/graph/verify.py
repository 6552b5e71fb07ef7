"""Every rule of the graph language, checked in one place: after every reader and every rewrite."""

from __future__ import annotations

from memfit.errors import GraphError
from memfit.graph.model import BEFORE, ITEMBITS, ITEMSIZE, Graph, StorageKind, packed_bytes


def verify(graph: Graph) -> None:
    """Check a graph against the rules of its language.

    Raises:
        GraphError: names the rule, the element that breaks it and what it holds.
    """
    count, storages, tensors = len(graph.ops), graph.storages, graph.tensors
    for index, s in enumerate(storages):
        if s.id != index:
            raise _broken("a storage's id is its position", f"storage {index}", f"id {s.id}")
        if s.nbytes < 0:
            raise _broken("a storage has no negative size", f"storage {index}", f"{s.nbytes} bytes")
        if not BEFORE <= s.birth <= count:
            raise _broken("a storage is born before or at an operation", f"storage {index}", f"birth {s.birth}")
        if not s.birth <= s.death <= count or not s.birth <= s.ideal_death <= count:
            raise _broken(
                "a storage dies after its birth, at the end at the latest",
                f"storage {index}",
                f"[{s.birth}, {s.death}) eager, [{s.birth}, {s.ideal_death}) ideal, {count} operations",
            )
    for index, t in enumerate(tensors):
        if t.id != index:
            raise _broken("a tensor's id is its position", f"tensor {index}", f"id {t.id}")
        if not 0 <= t.storage < len(storages):
            raise _broken("a tensor has a storage", f"tensor {index}", f"storage {t.storage}")
        if t.dtype not in ITEMSIZE and t.dtype not in ITEMBITS:
            raise _broken("a tensor's dtype is a known one", f"tensor {index}", t.dtype)
        if len(t.shape) != len(t.strides) or any(size < 0 for size in t.shape):
            raise _broken("a tensor has one stride per dimension", f"tensor {index}", f"{t.shape}, {t.strides}")
        if t.shape and 0 not in t.shape:
            last = t.offset + sum((n - 1) * step for n, step in zip(t.shape, t.strides, strict=True))
            if packed_bytes(last + 1, t.dtype) > storages[t.storage].nbytes:
                raise _broken(
                    "a tensor lies inside its storage",
                    f"tensor {index}",
                    f"{packed_bytes(last + 1, t.dtype)} bytes needed, {storages[t.storage].nbytes} there",
                )
    for index, scope in enumerate(graph.scopes):
        if scope.index != index or not -1 <= scope.parent < max(index, 1):
            raise _broken("a scope follows its parent", f"scope {index}", f"index {scope.index}, parent {scope.parent}")
        if any(not 0 <= i < len(tensors) for i in (*scope.params, *scope.buffers)):
            raise _broken("a scope's parameters exist", f"scope {scope.path!r}", "an unknown tensor")
    versions = [0] * len(storages)
    for index, op in enumerate(graph.ops):
        where = f"op {index} ({op.kind})"
        if op.index != index:
            raise _broken("an operation's index is its position", where, f"index {op.index}")
        if not 0 <= op.scope < len(graph.scopes):
            raise _broken("an operation belongs to a scope", where, f"scope {op.scope}")
        if any(not 0 <= i < len(tensors) for i in (*op.inputs, *op.outputs, *op.saved)):
            raise _broken("an operation's tensors exist", where, "an unknown tensor")
        for i in op.inputs:
            t = tensors[i]
            s = storages[t.storage]
            if s.birth >= index or s.death <= index or s.ideal_death <= index:
                raise _broken("an operation reads live storages", where, f"{s}")
            if t.version > versions[t.storage]:
                raise _broken("an operation reads values that were written before", where, f"{t}")
        for i in op.outputs:
            t = tensors[i]
            s = storages[t.storage]
            if s.birth > index or s.death < index:
                raise _broken("an operation writes live storages", where, f"{s}")
            versions[t.storage] = max(versions[t.storage], t.version)
    for what, ids in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if any(not 0 <= i < len(tensors) for i in ids):
            raise _broken(f"the graph's {what} exist", what, "an unknown tensor")
    for i in graph.inputs:
        if storages[tensors[i].storage].birth != BEFORE:
            raise _broken("inputs exist before the first operation", f"tensor {i}", str(storages[tensors[i].storage]))
    if any(not 0 <= i < len(storages) for i in graph.host):
        raise _broken("the host's storages exist", "host", "an unknown storage")
    for s in storages:
        if s.kind in (StorageKind.PARAMETER, StorageKind.INPUT) and s.birth != BEFORE:
            raise _broken("parameters and inputs exist before the first operation", f"storage {s.id}", str(s))


def _broken(rule: str, where: str, received: str) -> GraphError:
    return GraphError(
        f"the graph breaks a rule: {rule}",
        where=where,
        received=received,
        todo="capture the model again; if the file came from memfit itself, please report it",
    )
