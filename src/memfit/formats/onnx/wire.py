"""Leaving the weights out of a protobuf message before anyone parses it.

A model of gigabytes is weights but for a few hundred kilobytes, and a profile needs only their shapes. The message is
walked on its own bytes (which may be a mapped file): lengths are held against the end of what contains them, and every
large payload of a tensor is replaced by a note of its length. What is left goes to the real parser.

The encoding: https://protobuf.dev/programming-guides/encoding/; the field numbers: onnx.proto3 of onnx 1.23,
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

from typing import Any

from memfit.errors import SourceError

KEPT_BYTES = 1 << 14
"""Payloads up to here stay: shapes, axes and other small constants that say how."""

REMOVED = "memfit.removed_bytes"
"""Key of the entry that stands for a payload: its value is the length."""

DEPTH = 60
"""Levels of messages; protobuf's own parsers stop at 100."""

FIELDS = 500_000
"""Fields that are walked over; networks of thousands of nodes have some ten thousand."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message → field → the message inside it that may hold tensors."""

_PAYLOADS = frozenset({4, 5, 6, 7, 9, 10, 11})
"""TensorProto's float, int32, string, int64, raw, double and uint64 data."""

_EXTERNAL_DATA = 13


def without_weights(data: Any, source: str) -> bytes:
    """Copy a ModelProto's bytes without large tensor payloads.

    Args:
        data: the file's bytes, or a map of them.
        source: names the file in messages.

    Raises:
        SourceError: a length that reaches past the end of what holds it, or a field that cannot be.
    """
    return bytes(_Copy(data, source).message(0, len(data), "model", 0))


class _Copy:
    """One walk over a file."""

    def __init__(self, data: Any, source: str) -> None:
        self.data, self.source = data, source
        self.fields = 0

    def message(self, at: int, end: int, message: str, depth: int) -> bytearray:
        """Copy one message, field by field."""
        data, source = self.data, self.source
        if depth > DEPTH:
            raise _damaged(source, at, f"messages inside each other more than {DEPTH} deep")
        kept = bytearray()
        inner = _INNER[message]
        removed = 0
        while at < end:
            start = at
            self.fields += 1
            if self.fields > FIELDS:
                raise _damaged(source, at, f"more than {FIELDS:,} fields")
            tag, at = _varint(data, at, end, source)
            field, wire = tag >> 3, tag & 7
            if not field:
                raise _damaged(source, start, "a field without a number")
            if wire == _VARINT:
                _, at = _varint(data, at, end, source)
            elif wire == _FIXED64:
                at += 8
            elif wire == _FIXED32:
                at += 4
            elif wire == _BYTES:
                length, at = _varint(data, at, end, source)
                body, at = at, at + length
                if at > end:
                    raise _damaged(source, start, f"{length:,} bytes where {max(0, end - body):,} are left")
                if length > KEPT_BYTES:
                    if message == "tensor" and field in _PAYLOADS:
                        removed += length
                        continue
                    if field in inner:
                        copied = self.message(body, at, inner[field], depth + 1)
                        kept += _encoded(tag) + _encoded(len(copied)) + copied
                        continue
            else:
                raise _damaged(source, start, f"wire type {wire}")
            if at > end:
                raise _damaged(source, start, f"a number of which {at - end} bytes are missing")
            kept += data[start:at]
        if removed:
            key, value = REMOVED.encode(), str(removed).encode()
            entry = b"\x0a" + _encoded(len(key)) + key + b"\x12" + _encoded(len(value)) + value
            kept += _encoded(_EXTERNAL_DATA << 3 | _BYTES) + _encoded(len(entry)) + entry
        return kept


def _varint(data: Any, at: int, end: int, source: str) -> tuple[int, int]:
    """Read a number and give the place after it."""
    value = shift = 0
    start = at
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _damaged(source, start, "a number that does not end")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _damaged(source: str, at: int, received: str) -> SourceError:
    return SourceError(
        "this is not an .onnx file, or it is damaged: it cannot be read as protobuf",
        where=f"{source}, byte {at:,}",
        received=received,
        todo="check the file: convert the model again, or copy it again",
    )
