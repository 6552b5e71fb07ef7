"""From the records of a `.tflite` file to a graph.

Every tensor has bytes of its own, as in TFLM's arena: RESHAPE and its like copy. Constants are parameters, or buffers
where they only say how (shapes, axes, paddings); tensors with the same buffer share one storage. Variable tensors are
buffers too, and an operator that writes to one makes a new version of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memfit.capture.sources.tflite.operators import ACTIVATIONS, CUSTOM_OPERATORS, OPERATORS, Call, Entry
from memfit.capture.sources.tflite.scopes import scopes_of
from memfit.errors import SourceError, UnsupportedOp
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.formats.tflite.model import COMPRESSION
from memfit.graph.model import BEFORE, Graph, Op, Ref, Scope, Storage, StorageKind, Tensor, packed_bytes
from memfit.graph.verify import verify

_DTYPES = {"RESOURCE": "int32"}
_NO_SIZE = ("STRING", "VARIANT")


def to_graph(model: TfliteModel, *, estimate: bool = False) -> Graph:
    """Turn a model's main subgraph into a graph, and verify it.

    Args:
        model: what `read_model` gives.
        estimate: let operators that the table lacks pass, without MACs and with a note.

    Raises:
        UnsupportedOp: an operator that OPERATORS lacks, or a tensor type without a size.
        SourceError: operators that cannot run in this order, or whose shapes do not fit together.
    """
    graph = _Build(model, estimate).run()
    verify(graph)
    return graph


class _Build:
    """One graph in the making."""

    def __init__(self, model: TfliteModel, estimate: bool) -> None:
        self.model, self.estimate = model, estimate
        self.subgraph = model.main
        self.tensors = self.subgraph.tensors
        self.count = len(self.subgraph.operators)
        self.storages: list[Storage] = []
        self.made: list[Tensor] = []
        self.now: dict[int, int] = {}
        """File's tensor index → the graph's tensor that holds its value at this point."""
        self.shared: dict[int, int] = {}
        """File's buffer → storage."""
        self.last_use: dict[int, int] = {}
        self.writes: dict[int, int] = {}
        self.state: dict[int, int] = {}
        """File's tensor index of a constant or variable → the graph's tensor; what shares bytes is there once."""
        self.notes: dict[str, None] = {}
        self.roles: dict[int, bool] = {}
        """Constant → True where some operator computes with it, False where it only says how."""

    def run(self) -> Graph:
        subgraph = self.subgraph
        entries = [self._entry(operator) for operator in subgraph.operators]
        self._look_ahead(entries)
        inputs = [self._input(i) for i in dict.fromkeys(subgraph.inputs)]
        for tensor in self.tensors:
            if tensor.is_constant and tensor.index not in self.now:
                self._constant(tensor)
            elif tensor.is_variable and tensor.index not in self.now:
                self._hold(tensor, StorageKind.BUFFER, BEFORE, self.count)
        scopes, scope_of = scopes_of(subgraph)
        ops = [
            self._op(operator, entry, scope_of[operator.index])
            for operator, entry in zip(subgraph.operators, entries, strict=True)
        ]
        for i in subgraph.outputs:
            if i not in self.now:
                raise self._wrong("the network's output is never computed", "outputs", self._name(i))
        self._note()
        return Graph(
            storages=tuple(self.storages),
            tensors=tuple(self.made),
            ops=tuple(ops),
            scopes=self._with_state(scopes, scope_of),
            inputs=tuple(inputs),
            outputs=tuple(self.now[i] for i in subgraph.outputs),
            source=self.model.source,
            environment={"format": "tflite"},
            notes=tuple(self.notes),
            origin=self.model,
        )

    # -- operators -------------------------------------------------------------------------------------------------

    def _entry(self, operator: Operator) -> Entry:
        """Find an operator's row in the table."""
        found = (CUSTOM_OPERATORS if operator.is_custom else OPERATORS).get(operator.name)
        if found is None:
            if not self.estimate:
                raise UnsupportedOp(
                    f"memfit does not know the operator {operator.name}",
                    where=self._where(operator),
                    received=", ".join(
                        "x".join(map(str, self.tensors[i].shape)) or "scalar" for i in operator.inputs if i >= 0
                    )
                    or "no inputs",
                    todo="add a row to OPERATORS in memfit/capture/sources/tflite/operators.py, or allow an estimate "
                    "with --estimate",
                )
            self.notes[f"estimate: {operator.name} is unknown, and counts with its tensors but without MACs"] = None
            return Entry("unknown")
        if found.options is not None and operator.options_type not in (None, found.options):
            raise self._wrong(
                f"{operator.name} carries the options of another operator",
                f"operators[{operator.index}]",
                f"{operator.options_type} instead of {found.options}",
            )
        present = next((k for k, i in enumerate(operator.inputs) if i < 0), len(operator.inputs))
        if present < found.inputs or len(operator.outputs) < found.outputs:
            raise self._wrong(
                f"{operator.name} lacks an input or an output",
                f"operators[{operator.index}]",
                f"inputs {list(operator.inputs)}, outputs {list(operator.outputs)}",
            )
        return found

    def _look_ahead(self, entries: Sequence[Entry]) -> None:
        """Find each tensor's last use, and what each constant is for."""
        for operator, entry in zip(self.subgraph.operators, entries, strict=True):
            for position, i in enumerate(operator.inputs):
                if i >= 0:
                    self.last_use[i] = operator.index + 1
                    self.roles[i] = self.roles.get(i, False) or position not in entry.settings
            for i in operator.outputs:
                self.last_use[i] = operator.index + 1
                if i in self.writes and not self.tensors[i].is_variable:
                    raise self._wrong(
                        "two operators write one tensor",
                        f"operators[{operator.index}]",
                        f"{self._name(i)}, which operators[{self.writes[i]}] writes too",
                    )
                self.writes[i] = operator.index
        for i in self.subgraph.outputs:
            self.last_use[i] = self.count

    def _op(self, operator: Operator, entry: Entry, scope: int) -> Op:
        read: list[int] = []
        args: list[Ref | None] = []
        for i in operator.inputs:
            if i < 0:
                args.append(None)
                continue
            if i not in self.now:
                if self.tensors[i].elements:
                    raise self._wrong(
                        "an operator reads a tensor before anything has written it",
                        f"operators[{operator.index}] ({operator.name})",
                        self._name(i),
                    )
                self._hold(self.tensors[i], StorageKind.BUFFER, BEFORE, self.count)
            read.append(self.now[i])
            args.append(Ref(self.now[i]))
        call = Call(
            operator,
            [self.tensors[i] if i >= 0 else None for i in operator.inputs],
            [self.tensors[i] for i in operator.outputs],
            self._where(operator),
        )
        kind = entry.kind if isinstance(entry.kind, str) else entry.kind(call)
        attrs: dict[str, Any] = {"version": operator.version}
        if entry.attrs is not None:
            attrs.update(entry.attrs(call))
        activation = ACTIVATIONS.get(operator.options.get("fused_activation_function", 0))
        if activation is not None:
            attrs["activation"] = activation
        macs = entry.macs(call) if entry.macs is not None else 0
        written = [self._write(i, operator) for i in operator.outputs]
        flags = operator.mutating_variable_inputs
        for position, i in enumerate(operator.inputs):
            mutated = entry.mutates or (position < len(flags) and flags[position])
            if i >= 0 and mutated and self.tensors[i].is_variable:
                written.append(self._write(i, operator))
        return Op(
            operator.index,
            kind,
            f"tflite.{operator.name}",
            tuple(dict.fromkeys(read)),
            tuple(written),
            attrs,
            scope,
            macs=macs,
            args=tuple(args),
            kwargs=dict(operator.options),
        )

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _hold(
        self, tensor: TfliteTensor, kind: StorageKind, birth: int, death: int, *, storage: int | None = None
    ) -> int:
        """Make a graph's tensor, with a storage of its own unless one is given."""
        dtype = self._dtype(tensor)
        if storage is None:
            storage = len(self.storages)
            self.storages.append(Storage(storage, packed_bytes(tensor.elements, dtype), kind, birth, death, death))
            if kind is StorageKind.PARAMETER or kind is StorageKind.BUFFER:
                self.state[tensor.index] = len(self.made)
        self.now[tensor.index] = self._tensor(tensor, storage, dtype)
        return self.now[tensor.index]

    def _tensor(self, tensor: TfliteTensor, storage: int, dtype: str, version: int = 0) -> int:
        named = self.storages[storage].birth == BEFORE
        strides = [math.prod(tensor.shape[d + 1 :]) for d in range(len(tensor.shape))]
        self.made.append(
            Tensor(
                len(self.made),
                storage,
                tensor.shape,
                tuple(strides),
                dtype,
                version=version,
                name=(tensor.name or f"tensor{tensor.index}") if named and not version else None,
            )
        )
        return len(self.made) - 1

    def _dtype(self, tensor: TfliteTensor) -> str:
        if tensor.type in _NO_SIZE:
            if not self.estimate:
                raise UnsupportedOp(
                    f"a tensor of type {tensor.type} has no size that the file tells",
                    where=f"{self.model.source}: tensor {self._name(tensor.index)}",
                    received=tensor.type,
                    todo="TFLM cannot run it either; allow an estimate of a byte per element with --estimate",
                )
            self.notes[f"estimate: tensors of type {tensor.type} count as one byte per element"] = None
            return "uint8"
        return _DTYPES.get(tensor.type, tensor.type.lower())

    def _input(self, i: int) -> int:
        tensor = self.tensors[i]
        if tensor.is_constant:
            return self._constant(tensor)
        if tensor.is_variable:
            return self._hold(tensor, StorageKind.BUFFER, BEFORE, self.count)
        return self._hold(tensor, StorageKind.INPUT, BEFORE, self.last_use.get(i, 0))

    def _constant(self, tensor: TfliteTensor) -> int:
        """Hold a constant; those that name one buffer share its bytes."""
        counts = self.roles.get(tensor.index, tensor.type not in ("INT32", "INT64"))
        kind = StorageKind.PARAMETER if counts else StorageKind.BUFFER
        storage = self.shared.get(tensor.buffer) if tensor.data is not None else None
        nbytes = packed_bytes(tensor.elements, self._dtype(tensor))
        if storage is not None:
            held = self.storages[storage]
            kind = held.kind if held.kind is StorageKind.PARAMETER else kind
            self.storages[storage] = held._replace(kind=kind, nbytes=max(held.nbytes, nbytes))
        made = self._hold(tensor, kind, BEFORE, self.count, storage=storage)
        if tensor.data is not None:
            self.shared[tensor.buffer] = self.made[made].storage
        return made

    def _write(self, i: int, operator: Operator) -> int:
        """Give an operator's output a tensor: new bytes, or a new version of a variable's."""
        tensor = self.tensors[i]
        if tensor.is_variable and i in self.now:
            before = self.made[self.now[i]]
            self.now[i] = self._tensor(tensor, before.storage, before.dtype, before.version + 1)
            return self.now[i]
        if i in self.now:
            what = "a constant" if tensor.is_constant else "the network's input"
            raise self._wrong(
                f"an operator writes to {what}", f"operators[{operator.index}] ({operator.name})", self._name(i)
            )
        return self._hold(tensor, StorageKind.ACTIVATION, operator.index, self.last_use[i])

    def _with_state(self, scopes: tuple[Scope, ...], scope_of: Sequence[int]) -> tuple[Scope, ...]:
        """List in each module the parameters and buffers that its operators are the first to read."""
        reader: dict[int, int] = {}
        for operator in self.subgraph.operators:
            for i in operator.inputs:
                reader.setdefault(i, scope_of[operator.index])
        params: dict[int, list[int]] = {}
        buffers: dict[int, list[int]] = {}
        for i, made in self.state.items():
            kind = self.storages[self.made[made].storage].kind
            (params if kind is StorageKind.PARAMETER else buffers).setdefault(reader.get(i, 0), []).append(made)
        return tuple(
            s._replace(params=tuple(params.get(s.index, ())), buffers=tuple(buffers.get(s.index, ()))) for s in scopes
        )

    # -- words -----------------------------------------------------------------------------------------------------

    def _note(self) -> None:
        model = self.model
        if len(model.subgraphs) > 1:
            callers = dict.fromkeys(o.name for o in self.subgraph.operators if o.name in ("IF", "WHILE", "CALL_ONCE"))
            how = f" that {', '.join(callers)} run" if callers else ""
            self.notes[
                f"of {len(model.subgraphs)} subgraphs the first is counted; operators of the others{how} are not"
            ] = None
        if any(-1 in self.tensors[i].signature for i in self.subgraph.inputs):
            self.notes["an input's size may vary; it counts as the file has it"] = None
        compressed = any(entry.name == COMPRESSION for entry in model.metadata)
        if compressed or any(t.sparse for t in self.tensors):
            how = "compressed" if compressed else "sparse"
            self.notes[f"{how} constants count with all their elements, not as the file stores them"] = None
        if any(t.external for t in self.tensors):
            self.notes["constants in other files count with the size of their shape"] = None

    def _where(self, operator: Operator) -> str:
        output = f", {self._name(operator.outputs[0])}" if operator.outputs else ""
        return f"{self.model.source}: operators[{operator.index}]{output}"

    def _name(self, i: int) -> str:
        name = self.tensors[i].name
        return f"tensors[{i}] ({name})" if name else f"tensors[{i}]"

    def _wrong(self, what: str, where: str, received: str) -> SourceError:
        return SourceError(
            f"this .tflite file cannot run: {what}",
            where=f"{self.model.source}: model.subgraphs[0].{where}",
            received=received,
            todo="convert the model again: the file is damaged, or its converter has a fault",
        )
