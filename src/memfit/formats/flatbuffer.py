"""Reading FlatBuffers that nobody vouches for.

FlatBuffers' own Python reader follows every offset it meets: a damaged file makes it read anywhere, loop over four
billion items, or take all memory. Here each offset, each vector's length and each text is held against the file's size
before it is used, and one allowance limits what a whole file may make the reader do, however often its parts are
named. What the tables look like (field numbers, types, defaults) comes from the package that FlatBuffers' compiler
generated from the format's schema: its builder functions are called with a recorder in the builder's place.

The encoding: https://flatbuffers.dev/internals/ (version 25.12).
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from memfit.errors import SourceError

ALLOWANCE = 60_000
"""Tables that one file may make a reader look at. Keeps the slowest file under 2 s and 500 MiB."""

VALUES = 64
"""Values of a vector that take as long, or as much memory, as one table."""

TEXT_BYTES = 1024
"""Names are read up to here; converters join the names of fused operators to some hundred characters."""


class Span(NamedTuple):
    """Bytes of a file: `[offset, offset + nbytes)`, from its start."""

    offset: int
    nbytes: int


# -- what tables look like ----------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a table."""

    slot: int
    """Its number, from 0."""
    format: str
    """Code of `struct` for a number or truth value; empty for what stands elsewhere: table, text or vector."""
    default: Any
    item_bytes: int
    """Of one item of a vector; 0 for anything else."""


class Layout(NamedTuple):
    """The fields of one kind of table, by name as in the schema."""

    name: str
    fields: dict[str, Field]


_SLOTS = {
    "PrependBoolSlot": "?",
    "PrependInt8Slot": "b",
    "PrependUint8Slot": "B",
    "PrependByteSlot": "B",
    "PrependInt16Slot": "h",
    "PrependUint16Slot": "H",
    "PrependInt32Slot": "i",
    "PrependUint32Slot": "I",
    "PrependInt64Slot": "q",
    "PrependUint64Slot": "Q",
    "PrependFloat32Slot": "f",
    "PrependFloat64Slot": "d",
    "PrependUOffsetTRelativeSlot": "",
}


class _Recorder:
    """Stands in for a builder and keeps what the generated code asks of it."""

    def __init__(self) -> None:
        self.slot: tuple[int, str, Any] = (0, "", None)
        self.item_bytes = 0

    def __getattr__(self, name: str) -> Any:
        code = _SLOTS[name]

        def prepend(slot: int, _value: Any, default: Any) -> None:
            self.slot = (slot, code, bool(default) if code == "?" else default if code else None)

        return prepend

    def StartVector(self, item_bytes: int, _count: int, _alignment: int) -> int:  # noqa: N802  (the builder's name)
        self.item_bytes = item_bytes
        return 0


class Schema:
    """The tables of a generated package, looked at when they are asked for."""

    def __init__(self, package: str, newer: dict[str, dict[str, Field]] | None = None) -> None:
        """Read from `package`; `newer` adds fields that the format has and the package does not know yet."""
        self._package = package
        self._newer = newer or {}
        self._layouts: dict[str, Layout] = {}

    def layout(self, table: str) -> Layout:
        """Give a table's fields.

        >>> Schema("tflite").layout("Metadata").fields["buffer"]
        Field(slot=1, format='I', default=0, item_bytes=0)
        """
        found = self._layouts.get(table)
        if found is None:
            functions = vars(import_module(f"{self._package}.{table}"))
            fields = {}
            for name, function in functions.items():
                if name.startswith(f"{table}Add") and callable(function):
                    recorder = _Recorder()
                    function(recorder, 0)
                    camel = name.removeprefix(f"{table}Add")
                    starts_vector = functions.get(f"{table}Start{camel}Vector")
                    if starts_vector is not None:
                        starts_vector(recorder, 0)
                    fields[_snake(camel)] = Field(*recorder.slot, recorder.item_bytes)
            found = self._layouts[table] = Layout(table, {**fields, **self._newer.get(table, {})})
        return found

    def names(self, enum: str) -> dict[int, str]:
        """Give the names of an enumeration's values.

        >>> Schema("tflite").names("TensorType")[9]
        'INT8'
        """
        values = vars(getattr(import_module(f"{self._package}.{enum}"), enum))
        return {value: name for name, value in values.items() if isinstance(value, int) and not name.startswith("_")}


def _snake(camel: str) -> str:
    """Turn the generated code's name into the schema's.

    >>> _snake("DilationHFactor"), _snake("BuiltinOptions2"), _snake("AdjX")
    ('dilation_h_factor', 'builtin_options2', 'adj_x')
    """
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in camel).lstrip("_")


_NUMBERS = {code: struct.Struct(f"<{code}") for code in "?bBhHiIqQfd"}

# -- bytes --------------------------------------------------------------------------------------------------------


class File:
    """The bytes of one file, and what reading them may still cost."""

    def __init__(self, data: Any, source: str, kind: str, allowance: int = ALLOWANCE) -> None:
        """Hold `data`, bytes or a memory map; `source` and `kind` (`.tflite`) are for messages."""
        self.data = data
        self.size = len(data)
        self.source = source
        self.kind = kind
        self._left = allowance * VALUES
        self.vtables: dict[int, tuple[int, ...]] = {}
        """Where each kind of table keeps its fields, by the place of that list; tables of one kind share it."""

    def number(self, code: str, at: int, where: str) -> Any:
        """Read one number."""
        reader = _NUMBERS[code]
        if not 0 <= at <= self.size - reader.size:
            raise self.damaged("an offset points outside of the file", where, f"byte {at:,} of {self.size:,}")
        return reader.unpack_from(self.data, at)[0]

    def reference(self, at: int, where: str) -> int:
        """Follow an offset, which counts from its own place and never backwards."""
        step = self.number("I", at, where)
        if not step or at + step > self.size - 4:
            raise self.damaged(
                "an offset points outside of the file", where, f"{step:,} bytes on from byte {at:,} of {self.size:,}"
            )
        return int(at + step)

    def vector(self, at: int, item_bytes: int, where: str) -> tuple[int, int]:
        """Give the place of a vector's first item and their number, which fit into the file."""
        start = self.reference(at, where)
        count = self.number("I", start, where)
        if count * item_bytes > self.size - start - 4:
            raise self.damaged(
                "a list is longer than the file", where, f"{count:,} items of {item_bytes} bytes at byte {start:,}"
            )
        return start + 4, count

    def spend(self, values: int, where: str) -> None:
        """Count work; a file may name its parts many times over, but not without end."""
        self._left -= values
        if self._left < 0:
            raise SourceError(
                f"this {self.kind} file holds more than memfit reads: "
                f"{ALLOWANCE:,} tables or {ALLOWANCE * VALUES:,} values",
                where=f"{self.source}: {where}",
                received=f"{self.size:,} bytes",
                todo="if a converter wrote it, please report it; if not, it is damaged",
            )

    def damaged(self, what: str, where: str, received: str) -> SourceError:
        """Make the error for a file that breaks its own format."""
        return SourceError(
            f"this {self.kind} file is damaged: {what}",
            where=f"{self.source}: {where}" if where else self.source,
            received=received,
            todo="convert the model again, or fetch the file again",
        )


class Table:
    """One table of a file, checked where it is looked at."""

    __slots__ = ("_fields", "_file", "_layout", "at", "where")

    def __init__(self, file: File, at: int, layout: Layout, where: str) -> None:
        """Look at the table at byte `at`; `where` says where that is in the schema's words."""
        file.spend(VALUES, where)
        vtable = at - file.number("i", at, where)
        fields = file.vtables.get(vtable)
        if fields is None:
            size = file.number("H", vtable, where)
            if size < 4 or size % 2 or vtable + size > file.size:
                raise file.damaged("a table's list of fields is broken", where, f"{size} bytes at byte {vtable:,}")
            fields = struct.unpack_from(f"<{(size - 4) // 2}H", file.data, vtable + 4)
            file.vtables[vtable] = fields
        self._file, self._layout, self._fields = file, layout, fields
        self.at, self.where = at, where

    def place(self, name: str) -> int:
        """Byte at which a field stands; 0 where the table leaves it out."""
        slot = self._layout.fields[name].slot
        if slot >= len(self._fields):
            return 0
        offset = self._fields[slot]
        return self.at + offset if offset else 0

    def slots(self) -> Iterator[tuple[int, int]]:
        """Every field that is there, known to the schema or not: (slot, byte)."""
        return ((slot, self.at + offset) for slot, offset in enumerate(self._fields) if offset)

    def number(self, name: str) -> Any:
        """A number or truth value."""
        field = self._layout.fields[name]
        at = self.place(name)
        return self._file.number(field.format, at, self.where) if at else field.default

    def numbers(self, name: str, code: str) -> tuple[Any, ...]:
        """A vector of numbers; empty where there is none."""
        at = self.place(name)
        if not at:
            return ()
        where = f"{self.where}.{name}"
        start, count = self._file.vector(at, struct.calcsize(f"<{code}"), where)
        self._file.spend(count, where)
        return struct.unpack_from(f"<{count}{code}", self._file.data, start)

    def bytes(self, name: str) -> Span | None:
        """A vector of bytes, without reading it."""
        at = self.place(name)
        return Span(*self._file.vector(at, 1, f"{self.where}.{name}")) if at else None

    def text(self, name: str) -> str | None:
        """A text, cut down to TEXT_BYTES and fit to be shown."""
        span = self.bytes(name)
        if span is None:
            return None
        used = min(span.nbytes, TEXT_BYTES)
        self._file.spend(used // 4, self.where)
        return shown(bytes(self._file.data[span.offset : span.offset + used]), cut=used < span.nbytes)

    def table(self, name: str, layout: Layout) -> Table | None:
        """A table inside; None where there is none."""
        at = self.place(name)
        where = f"{self.where}.{name}"
        return Table(self._file, self._file.reference(at, where), layout, where) if at else None

    def tables(self, name: str, layout: Layout) -> Iterator[Table]:
        """A vector of tables."""
        at = self.place(name)
        if at:
            where = f"{self.where}.{name}"
            start, count = self._file.vector(at, 4, where)
            for index in range(count):
                inner = f"{where}[{index}]"
                yield Table(self._file, self._file.reference(start + 4 * index, inner), layout, inner)


def shown(raw: bytes, *, cut: bool = False) -> str:
    r"""Turn a file's bytes into text that no terminal, table or log can mistake for anything else.

    >>> shown(b"conv\x1b[31m\xff"), shown("gr\u00f6\u00dfe".encode())
    ('conv\\x1b[31m\\xff', 'größe')
    """
    text = raw.decode("utf-8", errors="ignore" if cut else "backslashreplace")
    if not text.isascii() or not text.isprintable():
        text = "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else _escape(c) for c in text)
    return f"{text}…" if cut else text


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
