"""Writing a plan into a `.tflite` file: another order of operators, and a place in the arena for each tensor.

TensorFlow Lite Micro runs operators in the order of the file and obeys the byte offsets of a metadata entry named
OfflineMemoryAllocation (tensorflow/lite/micro/docs/memory_management.md), so that the unchanged runtime needs the
memory of the better plan. Nothing is serialised anew:

- **Order.** A subgraph lists its operators by offsets; these few numbers are exchanged, and nothing else moves. Every
  tensor keeps its index.
- **Offsets, where the file has an entry of that length.** Its numbers are overwritten in place: the file keeps its
  size, and all other bytes.
- **Offsets, where it has none.** FlatBuffers' offsets only point forward, so a longer list cannot stand behind what it
  lists. The new root table, the new lists of buffers and of metadata, and the plan itself go to the front of the file;
  the whole old file follows, byte for byte, shifted by a multiple of 16, and so keeps its inner offsets and the
  alignment of its data. The eight bytes of its old header stay behind without use. Data behind the tables (files of
  more than 2 GB) is named by its place in the file: those numbers grow by the shift.

The result is read again and compared before it is handed out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from memfit.errors import InternalError, MemfitError, UsageError
from memfit.formats.flatbuffer import File, Schema, Table
from memfit.formats.tflite import Metadata, Operator, Subgraph, TfliteModel, parse_model
from memfit.formats.tflite.model import OFFLINE_MEMORY_ALLOCATION, OFFLINE_VERSION, ONLINE_PLANNED
from memfit.formats.tflite.reader import IDENTIFIER

ALIGNMENT = 16
"""Of a buffer's data in the file (force_align in the schema) and of a tensor in the arena (MicroArenaBufferAlignment,
tensorflow/lite/micro/micro_arena_constants.h)."""

_SUBGRAPH = 0
"""Second number of the entry, which the runtime does not read (GetOfflinePlannedOffsets, micro_allocation_info.cc)."""

_REFERENCES = range(1, 10)
"""Fields of the schema's Model that are references: all but the version, external_buffers the last."""

_STATEFUL = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "IF", "WHILE"})
"""Operators that may read or write what no tensor index shows."""


def rewrite(
    model: TfliteModel,
    *,
    orders: Mapping[int, Sequence[int]] | None = None,
    offsets: Sequence[int] | None = None,
) -> bytes:
    """Give the bytes of the same model with another plan.

    Args:
        model: what `read_model` gives.
        orders: by subgraph, the operators' present indices in their new order.
        offsets: by tensor of the one subgraph, its first byte in the arena, a multiple of 16; -1 leaves it to the
            runtime, as it must for constants and variable tensors. An entry that the file has already is replaced;
            None leaves it as it is. Whether tensors overlap is the planner's business, and the validator's.

    Raises:
        UsageError: an order that cannot run, or offsets that the runtime would not take.
        MemfitError: a file whose tables this cannot be written into.
    """
    orders = orders or {}
    for index, order in orders.items():
        if not 0 <= index < len(model.subgraphs):
            raise _unusable("there is no such subgraph", "orders", f"{index} of {len(model.subgraphs)}")
        check_order(model.subgraphs[index], order)
    if offsets is not None:
        _check_offsets(model, offsets)
    work = _Work(model)
    for index, order in orders.items():
        work.reorder(index, order)
    if offsets is not None:
        plan = struct.pack(f"<3i{len(offsets)}i", OFFLINE_VERSION, _SUBGRAPH, len(offsets), *offsets)
        if not work.overwrite(plan):
            work.put_before(plan)
    written = bytes(work.data)
    _compare(model, orders, offsets, written)
    return written


# -- what can be written ------------------------------------------------------------------------------------------


def check_order(subgraph: Subgraph, order: Sequence[int]) -> None:
    """Refuse an order in which the operators cannot run, or would compute something else.

    An operator runs after all that write what it reads. Operators that touch one variable tensor, and those with state
    that no tensor shows (resource variables, control flow, custom operators), keep their order among themselves.

    Raises:
        UsageError: names the two operators.
    """
    count = len(subgraph.operators)
    if sorted(order) != list(range(count)):
        raise _unusable(
            "an order names each operator once", f"subgraphs[{subgraph.index}]", f"{len(order)} for {count} operators"
        )
    place = {index: position for position, index in enumerate(order)}
    for before, after in dependencies(subgraph):
        if place[before] > place[after]:
            first, second = subgraph.operators[before], subgraph.operators[after]
            raise _unusable(
                "this order cannot run",
                f"subgraphs[{subgraph.index}]",
                f"operators[{after}] ({second.name}) before operators[{before}] ({first.name}), which it depends on",
            )


def dependencies(subgraph: Subgraph) -> Iterator[tuple[int, int]]:
    """Pairs of operators whose order matters, as (earlier, later) of the present order."""
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    stateful = -1
    for operator in subgraph.operators:
        here = operator.index
        touched = [i for i in operator.inputs if i >= 0]
        written = set(operator.outputs)
        written.update(i for i in touched if subgraph.tensors[i].is_variable)
        for i in (*touched, *written):
            if i in writer and writer[i] != here:
                yield writer[i], here
        for i in written:
            for reader in readers.pop(i, ()):
                if reader != here:
                    yield reader, here
            writer[i] = here
        for i in touched:
            readers.setdefault(i, []).append(here)
        if _is_stateful(operator):
            if stateful >= 0:
                yield stateful, here
            stateful = here


def _is_stateful(operator: Operator) -> bool:
    return operator.is_custom or operator.name in _STATEFUL


def _check_offsets(model: TfliteModel, offsets: Sequence[int]) -> None:
    if len(model.subgraphs) != 1:
        raise _unusable(
            "the runtime reads one list of offsets for every subgraph, so a plan of one of several cannot be given",
            "offsets",
            f"{len(model.subgraphs)} subgraphs",
        )
    tensors = model.main.tensors
    if len(offsets) != len(tensors):
        raise _unusable("offsets are given one per tensor", "offsets", f"{len(offsets)} for {len(tensors)} tensors")
    for tensor, offset in zip(tensors, offsets, strict=True):
        if offset == ONLINE_PLANNED:
            continue
        where = f"offsets[{tensor.index}] ({tensor.name})"
        if tensor.is_constant or tensor.is_variable:
            kind = "a constant" if tensor.is_constant else "a variable tensor"
            raise _unusable(f"{kind} has no place among the planned tensors", where, str(offset))
        if offset % ALIGNMENT or not 0 <= offset < 1 << 31:
            raise _unusable(f"an offset is -1 or a multiple of {ALIGNMENT} from 0 on", where, str(offset))


def _unusable(what: str, where: str, received: str) -> UsageError:
    return UsageError(what, where=where, received=received, todo="give a plan that was made for this file")


# -- bytes --------------------------------------------------------------------------------------------------------


class _Work:
    """A copy of the file, and the tables in it that change."""

    def __init__(self, model: TfliteModel) -> None:
        self.model = model
        self.data = bytearray(model.data)
        self.file = File(bytes(self.data), model.source, ".tflite")
        self.schema = Schema("tflite")
        self.root = Table(self.file, self.file.reference(0, "the root"), self.schema.layout("Model"), "model")
        self.subgraphs = list(self.root.tables("subgraphs", self.schema.layout("SubGraph")))

    def _list(self, table: Table, name: str) -> list[int]:
        """Bytes at which the tables of a list stand, in its order."""
        return [item.at for item in table.tables(name, self.schema.layout("Buffer"))]

    def reorder(self, subgraph: int, order: Sequence[int]) -> None:
        """Exchange the offsets in a subgraph's list of operators."""
        table = self.subgraphs[subgraph]
        at = table.place("operators")
        if not at:
            return
        start, _ = self.file.vector(at, 4, table.where)
        targets = self._list(table, "operators")
        for position, index in enumerate(order):
            entry = start + 4 * position
            if targets[index] <= entry:
                raise self.file.damaged("an operator stands inside the list of operators", table.where, str(index))
            struct.pack_into("<I", self.data, entry, targets[index] - entry)

    def overwrite(self, plan: bytes) -> bool:
        """Put the plan where the file has one of the same length that nothing else uses."""
        model = self.model
        found = [m.buffer for m in model.metadata if m.name == OFFLINE_MEMORY_ALLOCATION]
        if len(found) != 1:
            return False
        span = model.buffers[found[0]].data
        used = [t.buffer for s in model.subgraphs for t in s.tensors]
        used += [m.buffer for m in model.metadata if m.name != OFFLINE_MEMORY_ALLOCATION]
        used += model.metadata_buffer
        shared = any(model.buffers[i].data == span for i in {*used} - {found[0]}) or found[0] in used
        if span is None or span.nbytes != len(plan) or shared:
            return False
        self.data[span.offset : span.offset + span.nbytes] = plan
        return True

    def put_before(self, plan: bytes) -> None:
        """Put a new root, new lists and the plan in front of the old file."""
        model = self.model
        buffers = self._list(self.root, "buffers")
        entries = self._list(self.root, "metadata")
        kept = [at for at, m in zip(entries, model.metadata, strict=True) if m.name != OFFLINE_MEMORY_ALLOCATION]
        slots = dict(self.root.slots())
        layout = self.schema.layout("Model").fields
        unknown = [slot for slot in slots if slot and slot not in _REFERENCES]
        if unknown:
            raise MemfitError(
                "this .tflite file has a part that memfit does not know, and cannot be written",
                where=f"{model.source}: model",
                received=f"field {unknown[0]} of the root",
                todo="convert the model with the format of 2026, or please report it",
            )
        old: dict[int, int] = {
            slot: self.file.reference(at, "model") for slot, at in slots.items() if slot in _REFERENCES
        }
        changed = {layout["buffers"].slot, layout["metadata"].slot}
        fields = sorted({0, *old, *changed})

        name = OFFLINE_MEMORY_ALLOCATION.encode()
        table = _up(8 + 4 + 2 * (max(fields) + 1), 4)
        buffers_at = table + 4 + 4 * len(fields)
        metadata_at = buffers_at + 4 + 4 * (len(buffers) + 1)
        vtables_at = metadata_at + 4 + 4 * (len(kept) + 1)
        entry_at = vtables_at + 16
        name_at = entry_at + 12
        buffer_at = _up(name_at + 4 + len(name) + 1, 4)
        data_at = _up(buffer_at + 8 + 4, ALIGNMENT)
        shift = _up(data_at + len(plan), ALIGNMENT)

        front = bytearray(shift)
        place = {slot: table + 4 + 4 * position for position, slot in enumerate(fields)}
        struct.pack_into("<I4s", front, 0, table, IDENTIFIER)
        struct.pack_into("<2H", front, 8, 4 + 2 * (max(fields) + 1), 4 + 4 * len(fields))
        for slot, at in place.items():
            struct.pack_into("<H", front, 12 + 2 * slot, at - table)
        struct.pack_into("<i", front, table, table - 8)
        struct.pack_into("<I", front, place[0], model.version)

        def refer(at: int, target: int) -> None:
            struct.pack_into("<I", front, at, target - at)

        for slot, target in old.items():
            if slot not in changed:
                refer(place[slot], target + shift)
        for slot, at, targets, last in (
            (layout["buffers"].slot, buffers_at, buffers, buffer_at),
            (layout["metadata"].slot, metadata_at, kept, entry_at),
        ):
            refer(place[slot], at)
            struct.pack_into("<I", front, at, len(targets) + 1)
            for position, target in enumerate([*(t + shift for t in targets), last]):
                refer(at + 4 + 4 * position, target)
        struct.pack_into("<4H", front, vtables_at, 8, 12, 4, 8)  # Metadata: name, buffer
        struct.pack_into("<3H", front, vtables_at + 8, 6, 8, 4)  # Buffer: data
        struct.pack_into("<i", front, entry_at, entry_at - vtables_at)
        refer(entry_at + 4, name_at)
        struct.pack_into("<I", front, entry_at + 8, len(buffers))
        struct.pack_into(f"<I{len(name)}s", front, name_at, len(name), name)
        struct.pack_into("<i", front, buffer_at, buffer_at - vtables_at - 8)
        refer(buffer_at + 4, data_at - 4)
        struct.pack_into(f"<I{len(plan)}s", front, data_at - 4, len(plan), plan)
        self._shift_outside(shift)
        self.data[:0] = front

    def _shift_outside(self, shift: int) -> None:
        """Move the places of data behind the tables, which count from the start of the file."""
        moved: set[int] = set()
        tables = [(table, "offset") for table in self.root.tables("buffers", self.schema.layout("Buffer"))]
        for subgraph in self.subgraphs:
            operators = subgraph.tables("operators", self.schema.layout("Operator"))
            tables += [(table, "large_custom_options_offset") for table in operators]
        for table, field in tables:
            at = table.place(field)
            if at and at not in moved and table.number(field) > 1:
                moved.add(at)
                struct.pack_into("<Q", self.data, at, table.number(field) + shift)


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


# -- proof --------------------------------------------------------------------------------------------------------


def _compare(
    model: TfliteModel, orders: Mapping[int, Sequence[int]], offsets: Sequence[int] | None, written: bytes
) -> None:
    """Read the written file: it must be the model that was asked for, with the same data in every buffer."""
    found = parse_model(written, model.source)
    wanted = [
        s._replace(
            operators=tuple(
                s.operators[i]._replace(index=position)
                for position, i in enumerate(orders.get(s.index, range(len(s.operators))))
            )
        )
        for s in model.subgraphs
    ]
    same = (
        list(_placeless(found, found.subgraphs)) == list(_placeless(model, wanted))
        and [(m.name, found.content(found.buffers[m.buffer].data)) for m in found.metadata if not _is_plan(m)]
        == [(m.name, model.content(model.buffers[m.buffer].data)) for m in model.metadata if not _is_plan(m)]
        and replace(found, subgraphs=(), buffers=(), metadata=())
        == replace(model, subgraphs=(), buffers=(), metadata=())
        and (offsets is None or found.offline_offsets == tuple(offsets))
    )
    if not same:
        raise InternalError(
            "the written file does not read as it should",
            where=model.source,
            received=f"{len(written):,} bytes",
            todo="please report it, with the file",
        )


def _is_plan(entry: Metadata) -> bool:
    return entry.name == OFFLINE_MEMORY_ALLOCATION


def _placeless(model: TfliteModel, subgraphs: Sequence[Subgraph]) -> Iterator[object]:
    """Every part of the subgraphs, with data in the place of where it stands."""
    for subgraph in subgraphs:
        yield subgraph.index, subgraph.name, subgraph.inputs, subgraph.outputs
        for tensor in subgraph.tensors:
            yield repr(tensor._replace(data=None)), model.content(tensor.data)
        for operator in subgraph.operators:
            yield repr(operator._replace(custom_options=None)), model.content(operator.custom_options)
