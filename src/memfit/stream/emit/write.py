"""Writing a draft as a `.tflite` file.

The new tables (operators, tensors, lists, the plan) go to the front of the file, and the whole old file follows, byte
for byte: new tables point into it for what they share with it, which is every constant's data, every quantization, and
the options of every operator that runs as it did. FlatBuffers' offsets only point forward, so this is the way round.
What is written is read again and compared with the draft.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memfit.errors import InternalError
from memfit.formats.flatbuffer import Field, File, Schema, Table
from memfit.formats.tflite import TfliteModel, parse_model
from memfit.formats.tflite.model import OFFLINE_MEMORY_ALLOCATION, OFFLINE_VERSION, ONLINE_PLANNED
from memfit.formats.tflite.reader import IDENTIFIER
from memfit.memory.tflm.builds import align_up
from memfit.plan.writer import ALIGNMENT
from memfit.stream.emit.draft import Draft, NewOperator

_INT32 = 2
"""TensorType.INT32."""


@dataclass(frozen=True)
class Old:
    """A part of the old file, by its first byte."""

    at: int


@dataclass(eq=False)
class Record:
    """A table: by slot, a struct code and a number, or what is referred to."""

    fields: dict[int, tuple[str, Any]]


@dataclass(eq=False)
class Many:
    """A vector: numbers with their struct code, or what is referred to, with an empty one."""

    code: str
    items: Sequence[Any]
    alignment: int = 4
    """Of its first item."""


@dataclass(eq=False)
class Text:
    """A string."""

    text: str


Part = Old | Record | Many | Text


def write(draft: Draft, places: Mapping[int, int]) -> bytes:
    """Give the bytes of the file: a tensor's first byte in the arena by its number, where it has a place.

    Raises:
        InternalError: what was written does not read as the draft.
    """
    offsets = [places.get(tensor, ONLINE_PLANNED) for tensor in range(len(draft.tensors))]
    written = _Writer(draft, offsets).file()
    _compare(draft, offsets, parse_model(written, draft.model.source))
    return written


class _Writer:
    def __init__(self, draft: Draft, offsets: Sequence[int]) -> None:
        self.draft, self.offsets = draft, offsets
        self.model, self.records = draft.model, draft.records()
        self.old = File(self.model.data, self.model.source, ".tflite")
        self.schema = Schema("tflite")
        self.root = Table(self.old, self.old.reference(0, "the root"), self.schema.layout("Model"), "model")
        self.main = next(self.root.tables("subgraphs", self.schema.layout("SubGraph")))
        self.buffers: list[Part] = [Old(table.at) for table in self.root.tables("buffers", self._layout("Buffer"))]

    def _layout(self, name: str) -> Any:
        return self.schema.layout(name)

    def _fields(self, name: str) -> Mapping[str, Field]:
        found: Mapping[str, Field] = self.schema.layout(name).fields
        return found

    def file(self) -> bytes:
        """Lay out the front, and put the old file behind it."""
        subgraph = self._subgraph()  # adds buffers
        plan = struct.pack(f"<3i{len(self.offsets)}i", OFFLINE_VERSION, 0, len(self.offsets), *self.offsets)
        entry = self._record("Metadata", name=Text(OFFLINE_MEMORY_ALLOCATION), buffer=self._buffer(plan))
        metadata = [
            Old(table.at)
            for table, known in zip(
                self.root.tables("metadata", self._layout("Metadata")), self.model.metadata, strict=True
            )
            if known.name != OFFLINE_MEMORY_ALLOCATION
        ]
        codes: list[Part] = [
            Old(table.at) for table in self.root.tables("operator_codes", self._layout("OperatorCode"))
        ]
        for code in self.records.codes[len(codes) :]:
            codes.append(
                self._record(
                    "OperatorCode",
                    deprecated_builtin_code=code.builtin,
                    version=code.version,
                    builtin_code=code.builtin,
                )
            )
        root = self._copy(self.root, "Model", {"subgraphs": Many("", [subgraph]), "operator_codes": Many("", codes)})
        slots = self._fields("Model")
        root.fields[slots["buffers"].slot] = "", Many("", self.buffers)
        root.fields[slots["metadata"].slot] = "", Many("", [*metadata, entry])
        if self.model.signatures:
            root.fields[slots["signature_defs"].slot] = "", Many("", list(self._signatures()))
        return _serialize(root, self.model.data)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _record(self, kind: str, /, **values: Any) -> Record:
        fields = self._fields(kind)
        return Record({fields[key].slot: (fields[key].format, value) for key, value in values.items()})

    def _copy(self, table: Table, name: str, changed: Mapping[str, Any]) -> Record:
        """Copy a table of the old file: numbers as they are, what is referred to by its place."""
        fields = self._fields(name)
        by_slot = {field.slot: (key, field) for key, field in fields.items()}
        found: dict[int, tuple[str, Any]] = {}
        for slot, at in table.slots():
            key, field = by_slot.get(slot, ("", None))
            if field is None or key in changed:
                continue
            where = f"{table.where}.{key}"
            value = table.number(key) if field.format else Old(self.old.reference(at, where))
            found[slot] = field.format, value
        for key, value in changed.items():
            if value is not None:
                found[fields[key].slot] = fields[key].format, value
        return Record(found)

    def _buffer(self, data: bytes) -> int:
        self.buffers.append(self._record("Buffer", data=Many("B", data, ALIGNMENT)))
        return len(self.buffers) - 1

    def _subgraph(self) -> Record:
        tensors = list(self.main.tables("tensors", self._layout("Tensor")))
        operators = list(self.main.tables("operators", self._layout("Operator")))
        main = self.records.main
        return self._record(
            "SubGraph",
            tensors=Many("", [self._tensor(tensors, index) for index in range(len(self.draft.tensors))]),
            inputs=Many("i", main.inputs),
            outputs=Many("i", main.outputs),
            operators=Many(
                "",
                [
                    self._operator(operators, new, record.code)
                    for new, record in zip(self.draft.operators, main.operators, strict=True)
                ],
            ),
            **({"name": Old(self.old.reference(at, "name"))} if (at := self.main.place("name")) else {}),
        )

    def _tensor(self, tensors: Sequence[Table], index: int) -> Record:
        new = self.draft.tensors[index]
        if new.template is None:
            return self._record(
                "Tensor", shape=Many("i", new.shape), type=_INT32, buffer=self._buffer(new.data or b""),
                name=Text(new.name),
            )  # fmt: skip
        old, table = self.model.main.tensors[new.template], tensors[new.template]
        changed: dict[str, Any] = {}
        if (new.shape, new.name) != (old.shape, old.name):
            changed = {"shape": Many("i", new.shape), "name": Text(new.name), "shape_signature": None}
        if new.part is not None:
            changed["buffer"] = self._buffer(self.draft.content(index))
            found, layout = self.draft.quantization(index), self._layout("QuantizationParameters")
            quantization = table.table("quantization", layout)
            if found is not None and found != old.quantization and quantization is not None:
                values = {
                    "scale": Many("f", found.scales), "zero_point": Many("q", found.zero_points, 8), "min": None,
                    "max": None,
                }  # fmt: skip
                changed["quantization"] = self._copy(quantization, "QuantizationParameters", values)
        return self._copy(table, "Tensor", changed)

    def _operator(self, operators: Sequence[Table], new: NewOperator, code: int) -> Record:
        changed: dict[str, Any] = {"inputs": Many("i", new.inputs), "outputs": Many("i", new.outputs)}
        kinds = {name: number for number, name in self.schema.names("BuiltinOptions").items()}
        if new.template is None:
            changed["opcode_index"] = code
            if new.name == "CONCATENATION":
                changed["builtin_options_type"] = kinds["ConcatenationOptions"]
                changed["builtin_options"] = self._record("ConcatenationOptions", axis=new.axis)
            return self._record("Operator", **changed)
        old = self.model.main.operators[new.template]
        if new.padding is not None and old.options_type is not None:
            options = operators[new.template].table("builtin_options", self._layout(old.options_type))
            if options is not None:
                changed["builtin_options"] = self._copy(options, old.options_type, {"padding": new.padding})
        return self._copy(operators[new.template], "Operator", changed)

    def _signatures(self) -> Iterator[Record]:
        for table in self.root.tables("signature_defs", self._layout("SignatureDef")):
            changed = {}
            for key in ("inputs", "outputs"):
                entries = [
                    self._copy(entry, "TensorMap", {"tensor_index": self.draft.whole[entry.number("tensor_index")]})
                    for entry in table.tables(key, self._layout("TensorMap"))
                ]
                changed[key] = Many("", entries)
            yield self._copy(table, "SignatureDef", changed)


# -- bytes ------------------------------------------------------------------------------------------------------------


@dataclass
class _Layout:
    """Where the parts of the front go: parents before what they refer to."""

    size: int = 8
    places: dict[int, int] = field(default_factory=dict)
    vtables: dict[tuple[int, ...], int] = field(default_factory=dict)
    tables: dict[int, tuple[int, dict[int, int]]] = field(default_factory=dict)
    """By table: its list of fields, and where in it each slot stands."""
    order: list[Record | Many | Text] = field(default_factory=list)

    def add(self, root: Record) -> None:
        """Give every part that is reached from the root a place."""
        queue: list[Record | Many | Text] = [root]
        for part in queue:  # grows
            self.order.append(part)
            self._place(part)
            queue += [child for child in _children(part) if not isinstance(child, Old)]

    def _place(self, part: Record | Many | Text) -> None:
        if isinstance(part, Record):
            wide = sorted(part.fields, key=lambda slot: -_width(part.fields[slot][0]))
            inside, at = {}, 4
            for slot in wide:
                inside[slot] = at
                at += _width(part.fields[slot][0])
            key = (at, *(inside.get(slot, 0) for slot in range(max(inside, default=-1) + 1)))
            if key not in self.vtables:
                self.vtables[key] = self._room(4 + 2 * (len(key) - 1), 2)
            self.tables[id(part)] = self.vtables[key], inside
            self.places[id(part)] = self._room(at, 4)
            return
        data = len(part.text.encode()) + 1 if isinstance(part, Text) else len(part.items) * _width(part.code)
        alignment = 4 if isinstance(part, Text) else part.alignment
        self.size = align_up(self.size + 4, alignment) - 4
        self.places[id(part)] = self._room(4 + data, 4)

    def _room(self, nbytes: int, alignment: int) -> int:
        at = align_up(self.size, alignment)
        self.size = at + nbytes
        return at


def _children(part: Record | Many | Text) -> Iterator[Any]:
    if isinstance(part, Record):
        yield from (value for code, value in part.fields.values() if not code)
    elif isinstance(part, Many) and not part.code:
        yield from part.items


def _width(code: str) -> int:
    return struct.calcsize(f"<{code}") if code else 4


def _serialize(root: Record, old: Any) -> bytes:
    """Write the front, padded so that the old file keeps its alignment, and the old file."""
    layout = _Layout()
    layout.add(root)
    shift = align_up(layout.size, ALIGNMENT)
    front = bytearray(shift)
    struct.pack_into("<I4s", front, 0, layout.places[id(root)], IDENTIFIER)
    for (size, *inside), at in layout.vtables.items():
        struct.pack_into(f"<{2 + len(inside)}H", front, at, 4 + 2 * len(inside), size, *inside)

    def refer(at: int, target: Part) -> None:
        place = target.at + shift if isinstance(target, Old) else layout.places[id(target)]
        struct.pack_into("<I", front, at, place - at)

    for part in layout.order:
        at = layout.places[id(part)]
        if isinstance(part, Text):
            text = part.text.encode()
            struct.pack_into(f"<I{len(text)}s", front, at, len(text), text)
        elif isinstance(part, Many):
            struct.pack_into("<I", front, at, len(part.items))
            if part.code:
                struct.pack_into(f"<{len(part.items)}{part.code}", front, at + 4, *part.items)
            else:
                for position, item in enumerate(part.items):
                    refer(at + 4 + 4 * position, item)
        else:
            vtable, slots = layout.tables[id(part)]
            struct.pack_into("<i", front, at, at - vtable)
            for slot, (code, value) in part.fields.items():
                if code:
                    struct.pack_into(f"<{code}", front, at + slots[slot], value)
                else:
                    refer(at + slots[slot], value)
    return bytes(front) + bytes(old)


# -- proof ------------------------------------------------------------------------------------------------------------


def _compare(draft: Draft, offsets: Sequence[int], found: TfliteModel) -> None:
    """Hold the file that was read back against the draft, constants by their bytes."""
    wanted, main = draft.records(), found.main
    same = (
        list(found.offline_offsets or ()) == list(offsets)
        and found.codes == wanted.codes
        and (main.inputs, main.outputs) == (wanted.main.inputs, wanted.main.outputs)
        and [repr(o._replace(custom_options=None)) for o in main.operators]
        == [repr(o._replace(custom_options=None)) for o in wanted.main.operators]
        and all(
            repr(a._replace(data=None, buffer=0)) == repr(b._replace(data=None, buffer=0)) and draft.content(b.index)
            == found.content(a.data)
            for a, b in zip(main.tensors, wanted.main.tensors, strict=True)
        )
        and [(s.key, s.subgraph, [n for n, _ in s.inputs], [n for n, _ in s.outputs]) for s in found.signatures]
        == [(s.key, s.subgraph, [n for n, _ in s.inputs], [n for n, _ in s.outputs]) for s in wanted.signatures]
    )  # fmt: skip
    if not same:
        raise InternalError(
            "the written file does not read as it should",
            where=draft.model.source,
            received=f"{len(main.operators)} operators, {len(main.tensors)} tensors",
            todo="please report it, with the file",
        )
