"""Reader of MiniMalloc's CSV problems.

Format: https://github.com/google/minimalloc/blob/2026acbf5db2477e899d70b84a5c012c3a0bb6e9/src/converter.cc (`FromCsv`).
A header names the columns, in any order: `id`, `lower`, `upper` (half-open) and `size`; also, where used, `alignment`,
`gaps`, `offset` (a fixed one) and `hint` (where to look first; read and not used). `buffer` and `buffer_id` stand for
`id`, `start` and `begin` for `lower`; `end` is an `upper` that is included, and so are then the ends of gaps.

A gap `5-9` is time in which the buffer is not alive; `5-9@0:64` time in which only its bytes [0, 64) are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from memfit.errors import said
from memfit.packing.buffers import Buffer, PackingError, Span
from memfit.packing.problem import Problem

_ALIASES = {"buffer": "id", "buffer_id": "id", "start": "lower", "begin": "lower", "end": "upper"}
_REQUIRED = ("id", "lower", "upper", "size")
_KNOWN = (*_REQUIRED, "alignment", "gaps", "offset", "hint")
_LARGEST = 1 << 62


def read_minimalloc(path: str | Path, capacity: int | None = None) -> Problem:
    """Read a problem in MiniMalloc's CSV format.

    Args:
        path: the file.
        capacity: bytes of the arena; the file does not say it.

    Raises:
        PackingError: the file cannot be read, or a line of it is wrong; names the first such line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8 text"
        raise PackingError(
            "a packing problem cannot be read",
            where=str(path),
            received=reason,
            todo="give a CSV file with the columns id,lower,upper,size",
        ) from fault
    return parse_minimalloc(text, capacity, name=str(path))


def parse_minimalloc(text: str, capacity: int | None = None, *, name: str = "the text") -> Problem:
    r"""Read a problem from the text of a CSV in MiniMalloc's format.

    >>> problem = parse_minimalloc("id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\n")
    >>> problem.lower_bound, problem.buffers[1].spans
    (8, (Span(lower=3, upper=9, start=0, size=4),))

    Args:
        text: the file's text.
        capacity: bytes of the arena.
        name: of the file, for messages.

    Raises:
        PackingError: a line is wrong; names the first such line.
    """
    columns: list[str] = []
    closed = 0
    buffers: dict[str, tuple[int, Buffer]] = {}
    reader = csv.reader(io.StringIO(text))
    try:
        for record in reader:
            fields = [field.strip() for field in record]
            if not any(fields):
                continue
            if not columns:
                closed = int("end" in fields)
                columns = _columns(fields, f"{name}, line {reader.line_num}")
                continue
            where = f"{name}, line {reader.line_num}"
            if len(fields) != len(columns):
                raise PackingError(
                    f"a line has {len(fields)} fields, the header {len(columns)}",
                    where=where,
                    received=_shown(",".join(record)),
                    todo=f"give {','.join(columns)}",
                )
            buffer = _buffer(dict(zip(columns, fields, strict=True)), closed, where)
            if buffer.name in buffers:
                raise PackingError(
                    f"an id stands twice, first in line {buffers[buffer.name][0]}",
                    where=where,
                    received=_shown(buffer.name),
                    todo="give every buffer an id of its own",
                )
            buffers[buffer.name] = (reader.line_num, buffer)
    except csv.Error as fault:
        raise PackingError(
            "a line is not CSV",
            where=f"{name}, line {reader.line_num}",
            received=said(fault),
            todo="mend or remove the line",
        ) from fault
    if not columns:
        raise PackingError(
            "a packing problem is empty",
            where=name,
            received="no header",
            todo="begin with the header id,lower,upper,size",
        )
    return Problem(tuple(buffer for _, buffer in buffers.values()), capacity=capacity)


def _columns(fields: list[str], where: str) -> list[str]:
    """Check the header, and give each column its one name."""
    columns = [_ALIASES.get(field, field) for field in fields]
    for fault, names in (
        ("the header lacks a column", [column for column in _REQUIRED if column not in columns]),
        ("the header names a column twice", sorted({column for column in columns if columns.count(column) > 1})),
        ("the header names a column that is not known", [column for column in columns if column not in _KNOWN]),
    ):
        if names:
            raise PackingError(
                f"{fault}: {_shown(names[0])}",
                where=where,
                received=_shown(",".join(fields)),
                todo=f"give {','.join(_REQUIRED)}, and alignment, gaps, offset or hint where needed",
            )
    return columns


def _buffer(fields: Mapping[str, str], closed: int, where: str) -> Buffer:
    """Make a buffer of one line."""
    lower, upper, size = (_integer(fields, column, where) for column in ("lower", "upper", "size"))
    upper += closed
    alignment = _integer(fields, "alignment", where) if "alignment" in fields else 1
    # MiniMalloc writes -1 where nothing is fixed; an empty field says the same.
    given = _integer(fields, "offset", where) if fields.get("offset") else -1
    if fields.get("hint"):
        _integer(fields, "hint", where)
    try:
        spans = _spans(lower, upper, size, fields.get("gaps", ""), closed)
        return Buffer(fields["id"], size, spans, alignment=alignment, offset=None if given == -1 else given)
    except PackingError as fault:
        inner = f"{where}, {fault.where}" if fault.where else where
        raise PackingError(fault.what, where=inner, received=fault.received, todo=fault.todo) from fault


def _spans(lower: int, upper: int, size: int, gaps: str, closed: int) -> list[Span]:
    """Cut a lifetime at its gaps."""
    spans, at = [], lower
    cuts = sorted(_gap(gap, closed) for gap in gaps.split())
    for begin, end, low, high in cuts:
        if not (at <= begin < end <= upper and 0 <= low <= high <= size):
            raise PackingError(
                "a gap lies outside its buffer, is empty, or overlaps another",
                where="gaps",
                received=f"{gaps!r} in [{lower}, {upper}), {size} bytes",
                todo="give gaps begin-end, or begin-end@low:high, within the lifetime and the size",
            )
        spans += [Span(at, begin), Span(begin, end, low, high - low)]
        at = end
    return [span for span in (*spans, Span(at, upper)) if span.lower < span.upper or not cuts]


def _gap(text: str, closed: int) -> tuple[int, int, int, int]:
    """Read `begin-end` or `begin-end@low:high`."""
    times, _, window = text.partition("@")
    begin, dash, end = times.partition("-")
    low, colon, high = window.partition(":")
    numbers = (begin, end, low, high) if window else (begin, end)
    if not dash or ("@" in text and not colon) or not all(part.isascii() and part.isdigit() for part in numbers):
        raise PackingError(
            "a gap is not well formed",
            where="gaps",
            received=_shown(text),
            todo="write begin-end or begin-end@low:high",
        )
    return int(begin), int(end) + closed, int(low or 0), int(high or 0)


def _integer(fields: Mapping[str, str], column: str, where: str) -> int:
    """Read a field as an integer of at most 62 bits."""
    text = fields[column]
    digits = text[1:] if text[:1] in ("-", "+") else text
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and abs(int(text)) < _LARGEST:
        return int(text)
    raise PackingError(
        f"{column} is not an integer", where=where, received=_shown(text), todo="write a whole number of bytes or steps"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
