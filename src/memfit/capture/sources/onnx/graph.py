"""From the steps of an `.onnx` network to a graph.

What an operator writes has bytes of its own, except what only shows its input's: Reshape, Squeeze, Unsqueeze, Flatten,
Identity, Dropout. Constants are parameters, or buffers where they only say how. Lifetimes are ideal ones, from an
operator to the last that reads: a file does not say when its runtime frees, so both lifetimes of the graph are these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memfit.capture.sources.onnx.call import Value
from memfit.capture.sources.onnx.inputs import place_inputs, read_inputs
from memfit.capture.sources.onnx.quantized import fold_quantization
from memfit.capture.sources.onnx.scopes import classes_of, scopes_of
from memfit.capture.sources.onnx.steps import Step, Walk
from memfit.errors import UnsupportedOp
from memfit.formats.onnx import OnnxGraph, OnnxModel, OnnxTensor
from memfit.formats.onnx.reader import show
from memfit.graph.model import BEFORE, Graph, Op, Ref, Storage, StorageKind, Tensor, packed_bytes
from memfit.graph.verify import verify


def to_graph(model: OnnxModel, inputs: Any = None, *, batch: int | None = None, estimate: bool = False) -> Graph:
    """Turn a model into a graph, and verify it.

    Args:
        model: what `read_model` gives.
        inputs: shapes as text (`"1x3x224x224"`, `["ids=1x128", …]`), or arrays; None takes the file's own.
        batch: replaces the first dimension of every input.
        estimate: let operators that the table lacks pass, without MACs and with a note.

    Raises:
        UsageError: inputs that do not fit, or a size that remains unknown.
        UnsupportedOp: an operator that OPERATORS lacks, or a type without a size.
        SourceError: operators that cannot run in this order, or whose shapes do not fit together.
    """
    values, symbols, notes = place_inputs(model, read_inputs(inputs), batch)
    walk = Walk(model, values, symbols, estimate)
    walk.notes.update(dict.fromkeys(notes))
    outputs = walk.run()
    graph = _Build(model, walk, list(values.values()), outputs, estimate).run()
    verify(graph)
    return graph


class _Build:
    """One graph in the making."""

    def __init__(self, model: OnnxModel, walk: Walk, inputs: list[Value], outputs: list[Value], estimate: bool) -> None:
        self.model, self.walk, self.inputs, self.outputs, self.estimate = model, walk, inputs, outputs, estimate
        self.notes = walk.notes
        self.storages: list[Storage] = []
        self.tensors: list[Tensor] = []
        self.storage_of: dict[Value, int] = {}
        self.tensor_of: dict[Value, int] = {}
        self.version: dict[int, int] = {}
        self.last_use: dict[Value, int] = {}
        self.state: dict[int, int] = {}
        """The graph's tensor of a parameter or buffer → the first step that reads it; -1 for none."""
        self.count = 0

    def run(self) -> Graph:
        steps = self._alive(self.walk.steps)
        steps, count = fold_quantization(steps, self.outputs)
        if count:
            self.notes[f"operators between DequantizeLinear and QuantizeLinear count as integer ones: {count}"] = None
        self.count = len(steps)
        self._look_ahead(steps)
        for value in self.inputs:
            self._hold(value, StorageKind.INPUT, BEFORE, self.last_use.get(value, 0))
        self._constants(steps)
        scopes, scope_of = scopes_of([step.path for step in steps], classes_of(steps))
        ops = [self._op(step, index, scope_of[index]) for index, step in enumerate(steps)]
        outputs = [self._tensor(value) for value in self.outputs]
        params: dict[int, list[int]] = {}
        buffers: dict[int, list[int]] = {}
        for tensor, reader in self.state.items():
            kind = self.storages[self.tensors[tensor].storage].kind
            where = scope_of[reader] if reader >= 0 else 0
            (params if kind is StorageKind.PARAMETER else buffers).setdefault(where, []).append(tensor)
        return Graph(
            storages=tuple(self.storages),
            tensors=tuple(self.tensors),
            ops=tuple(ops),
            scopes=tuple(
                s._replace(params=tuple(params.get(s.index, ())), buffers=tuple(buffers.get(s.index, ())))
                for s in scopes
            ),
            inputs=tuple(self.tensor_of[value] for value in self.inputs),
            outputs=tuple(outputs),
            source=self.model.source,
            environment={"format": "onnx"},
            notes=tuple(self.notes),
            origin=self.model,
        )

    # -- what is there and how long --------------------------------------------------------------------------------

    def _alive(self, steps: Sequence[Step]) -> list[Step]:
        """Leave out what nothing reads, as runtimes do."""
        wanted: set[Value] = set(self.outputs)
        for leaving in self.outputs:
            self._want(leaving, wanted)
        kept: list[Step] = []
        for step in reversed(steps):
            if any(value in wanted for value in step.outputs if value is not None):
                kept.append(step)
                for value in step.inputs:
                    if value is not None:
                        self._want(value, wanted)
        left = set(steps).difference(kept)
        gone = sum(not step.entry.view and step.node.op_type not in ("Loop", "Scan") for step in left)
        if gone:
            self.notes[f"operators whose results nothing reads are left out: {gone}"] = None
        return kept[::-1]

    def _want(self, value: Value, wanted: set[Value]) -> None:
        """Want a value, and what it shows."""
        wanted.add(value)
        wanted.add(value.root)

    def _look_ahead(self, steps: Sequence[Step]) -> None:
        """Find each value's last use."""
        for index, step in enumerate(steps):
            for used in (*step.inputs, *step.outputs):
                if used is not None:
                    self.last_use[used.root] = index + 1
        for value in self.outputs:
            self.last_use[value.root] = len(steps)

    def _constants(self, steps: Sequence[Step]) -> None:
        """Hold what exists before the network runs: a parameter where some operator computes with it."""
        reader: dict[Value, int] = {}
        counts: dict[Value, bool] = {}
        for index, step in enumerate(steps):
            for position, value in enumerate(step.inputs):
                if value is not None and value.root.constant:
                    root = value.root
                    reader.setdefault(root, index)
                    counts[root] = counts.get(root, False) or position not in step.entry.settings
            for value in step.settings:
                reader.setdefault(value.root, index)
                counts.setdefault(value.root, False)
        for value in self.outputs:
            if value.root.constant:
                reader.setdefault(value.root, -1)
                counts.setdefault(value.root, True)
        for root, index in reader.items():
            counts[root] = counts[root] and root.weighty
            kind = StorageKind.PARAMETER if counts[root] else StorageKind.BUFFER
            self.state[self._hold(root, kind, BEFORE, -1)] = index
        self._note_stored(list(reader))

    def _note_stored(self, roots: Sequence[Value]) -> None:
        tensors = [root.tensor for root in roots if root.tensor is not None]
        if any(t.external for t in tensors):
            self.notes["weights in other files count with the size of their shape; they were not opened"] = None
        if any(t.sparse for t in tensors):
            self.notes["sparse constants count with all their elements, not as the file stores them"] = None

    def _hold(self, value: Value, kind: StorageKind, birth: int, death: int) -> int:
        """Give a value bytes of its own."""
        dtype = self._dtype(value)
        nbytes = packed_bytes(value.elements, dtype)
        storage = len(self.storages)
        end = death if death >= 0 else self.count
        self.storages.append(Storage(storage, nbytes, kind, birth, end, end))
        self.storage_of[value] = storage
        name = show(value.name) or f"{kind.value}{storage}"
        self.tensor_of[value] = self._made(value, storage, dtype, name if birth == BEFORE else None)
        return self.tensor_of[value]

    def _made(self, value: Value, storage: int, dtype: str, name: str | None = None, version: int = 0) -> int:
        shape = value.shape
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        self.tensors.append(
            Tensor(len(self.tensors), storage, shape, tuple(strides), dtype, version=version, name=name)
        )
        return len(self.tensors) - 1

    def _dtype(self, value: Value) -> str:
        if value.stored == "string":
            if not self.estimate:
                raise UnsupportedOp(
                    "a tensor of texts has no size that the file tells",
                    where=f"{self.model.source}: {show(value.name, 200)}",
                    received=repr(value),
                    todo="allow an estimate of a byte per text with --estimate",
                )
            self.notes["estimate: tensors of texts count as one byte per text"] = None
            return "uint8"
        return value.stored

    def _tensor(self, value: Value) -> int:
        """Find the graph's tensor of a value; a view gets one on the bytes that it shows."""
        found = self.tensor_of.get(value)
        if found is None:
            root = value.root
            storage = self.storage_of.get(root)
            if storage is None:  # made by no operator: the output of a loop of no rounds
                self.state[self._hold(root, StorageKind.BUFFER, BEFORE, -1)] = -1
                storage = self.storage_of[root]
                if root is value:
                    return self.tensor_of[root]
            found = self._made(value, storage, self._dtype(value), version=self.version.get(storage, 0))
            self.tensor_of[value] = found
        return found

    # -- operations ------------------------------------------------------------------------------------------------

    def _op(self, step: Step, index: int, scope: int) -> Op:
        entry, call = step.entry, step.call
        args: list[Any] = [None if v is None else Ref(self._tensor(v)) for v in step.inputs]
        read = [int(ref) for ref in args if ref is not None]
        read += [self._tensor(value) for value in step.settings]
        kind = entry.kind if isinstance(entry.kind, str) else entry.kind(call)
        attrs: dict[str, Any] = dict(entry.attrs(call)) if entry.attrs is not None else {}
        if step.times > 1:
            attrs["times"] = step.times
        macs = entry.macs(call) * step.times if entry.macs is not None else 0
        written = [self._write(value, step, index) for value in step.outputs if value is not None]
        node = step.node
        return Op(
            index,
            kind,
            f"onnx.{show(f'{node.domain}.{node.op_type}' if node.domain else node.op_type, 120)}",
            tuple(dict.fromkeys(read)),
            tuple(written),
            attrs,
            scope,
            macs=macs,
            args=tuple(args),
            kwargs={
                show(name, 80): kept for name, value in node.attributes.items() if (kept := _plain(value)) is not None
            },
        )

    def _write(self, value: Value, step: Step, index: int) -> int:
        root = value.root
        if step.writes is not None and root in self.storage_of:
            storage = self.storage_of[root]
            self.version[storage] = self.version.get(storage, 0) + 1
            self.tensor_of[value] = self._made(value, storage, self._dtype(value), version=self.version[storage])
            return self.tensor_of[value]
        if value.base is not None:
            return self._tensor(value)
        return self._hold(value, StorageKind.ACTIVATION, index, max(self.last_use.get(value, 0), index + 1))


def _plain(value: Any) -> Any:
    """Keep an attribute that JSON can say; tensors and graphs are left out."""
    if isinstance(value, str):
        return show(value, 200)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, tuple) and not isinstance(value, OnnxTensor | OnnxGraph) and len(value) <= 64:
        items = [_plain(item) for item in value]
        return None if any(item is None for item in items) else tuple(items)
    return value if isinstance(value, int) else None
