"""Choose rows and columns of a result; its totals stay those of the whole network."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from memfit.analysis.result import Result, Selection
from memfit.errors import UsageError
from memfit.units import format_bytes, format_count, format_shape, parse_bytes

Row = dict[str, Any]
Kind = TypeVar("Kind", bound=Result)

ADDITIVE = frozenset(
    {
        "activations",
        "weights",
        "params",
        "params_share",
        "macs",
        "elements",
        "bytes",
        "activation_bytes",
        "saved_bytes",
        "allocated_bytes",
        "mean_ms",
        "share",
    }
)
"""Columns whose rows sum to the whole. A peak is not among them: a network's peak is the largest of its rows'."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(!=|<=|>=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_NULL = frozenset({"", "none", "null"})


def is_additive(result: Result, column: str) -> bool:
    """Tell whether the column's rows sum to the total; a module's row contains its children's, so none does there."""
    return column in ADDITIVE and result.per != "module"


def select(
    result: Kind,
    *,
    sort: str | None = None,
    top: int | None = None,
    where: Iterable[str] = (),
    columns: Sequence[str] | None = None,
    depth: int | None = None,
) -> Kind:
    """Choose rows and columns: first `depth`, then `where`, `sort`, `top` and `columns`.

    >>> rows = ({"name": "a", "macs": 3}, {"name": "b", "macs": 9}, {"name": "c", "macs": 5})
    >>> whole = Result("net", (), "layer", "ideal", False, "cpu", rows, {"macs": 17}, (), {})
    >>> part = select(whole, sort="macs", top=2)
    >>> [row["name"] for row in part.rows], part.selection.hidden
    (['b', 'c'], {'macs': 3})
    >>> part.notes
    ('shown: 2 of 3 rows; macs 14 of 17',)

    Args:
        result: the whole.
        sort: a column; numbers fall and text rises, a leading `-` or `+` makes either fall or rise. Nulls come last.
        top: keep that many rows.
        where: conditions such as `type=conv2d`, `peak_bytes>=100KiB`, `name~^features`, all of which must hold.
        columns: the columns to keep, in that order.
        depth: module rows down to that depth; any other row joins those with the same first `depth` path parts.

    Raises:
        UsageError: an unknown column, a condition that cannot be read, or a count below one.
    """
    where = tuple(where)
    rows, notes = result.rows, list(result.notes)
    known = tuple(dict.fromkeys(key for row in rows for key in row))
    if depth is not None:
        _at_least_one("--depth", depth)
        if result.per != "module":
            rows = _grouped(rows, depth)
            notes.append(f"rows joined by the first {depth} parts of their path; a peak is the largest of its rows'")
    whole = rows
    if depth is not None and result.per == "module":
        rows = tuple(row for row in rows if (row.get("depth") or 0) <= depth)
    for text in where:
        matched = _matching(rows, text, known)
        if rows and not matched:
            notes.append(_nothing_left(rows, text))
        rows = matched
    if sort is not None:
        rows = _sorted(rows, sort, known)
    if top is not None:
        _at_least_one("--top", top)
        rows = rows[:top]
    if columns is not None:
        for column in columns:
            _require(column, known, "--columns")
        shown_columns = tuple(dict.fromkeys(columns))
    else:
        shown_columns = known

    before = result.selection or Selection()
    hidden = {column: total for column, total in before.hidden.items() if column in shown_columns}
    if len(rows) < len(whole):
        kept = {id(row) for row in rows}
        left_out = [row for row in whole if id(row) not in kept]
        additive = [column for column in shown_columns if is_additive(result, column)]
        for column in additive:
            if (total := _sum(left_out, column)) is not None:
                hidden[column] = hidden.get(column, 0) + total
        notes.append(_shown(rows, whole, additive))
    if columns is not None:
        rows_shown = tuple({column: row.get(column) for column in shown_columns} for row in rows)
    else:
        rows_shown = rows
    return replace(
        result,
        rows=rows_shown,
        notes=tuple(notes),
        selection=Selection(
            columns=shown_columns if columns is not None else before.columns,
            hidden_rows=before.hidden_rows + len(whole) - len(rows),
            hidden=hidden,
        ),
    )


def _shown(rows: Sequence[Row], whole: Sequence[Row], additive: Iterable[str]) -> str:
    """Say how much of the whole is shown."""
    parts = [f"shown: {format_count(len(rows))} of {format_count(len(whole))} rows"]
    for column in additive:
        total = _sum(whole, column)
        if total and not column.endswith("share"):
            parts.append(f"{column} {_text(column, _sum(rows, column) or 0)} of {_text(column, total)}")
    return "; ".join(parts)


def _text(column: str, value: float) -> str:
    if _is_size(column):
        return format_bytes(int(value))
    return f"{value:.3f}" if column.endswith("_ms") else format_count(int(value))


def _sum(rows: Iterable[Row], column: str) -> Any:
    """Sum a column; None where every row has none."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values:
        return None
    return math.fsum(values) if any(isinstance(value, float) for value in values) else sum(values)


# Depth


def _grouped(rows: Iterable[Row], depth: int) -> tuple[Row, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        path = str(row.get("module") or row.get("name") or "")
        groups.setdefault(".".join(path.split(".")[:depth]), []).append(row)
    return tuple(
        {**members[0], "name": name} if len(members) == 1 else _joined(name, members)
        for name, members in groups.items()
    )


def _joined(name: str, rows: list[Row]) -> Row:
    """Make one row of several: sums, the largest peak, the last output, and null where they differ."""
    joined: Row = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(column) for row in rows]
        if column == "name":
            joined[column] = name
        elif column in ADDITIVE:
            joined[column] = _sum(rows, column)
        elif column.endswith("_bytes"):
            joined[column] = None if None in values else max(value for value in values if value is not None)
        elif column == "output_shape":
            joined[column] = values[-1]
        else:
            joined[column] = values[0] if all(value == values[0] for value in values) else None
    return joined


# Where


class _Condition(NamedTuple):
    column: str
    sign: str
    value: str


def _parse(text: str, known: Sequence[str]) -> _Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            "this is not a condition on a column",
            where="--where",
            received=repr(text),
            todo="write COLUMN, one of = != < <= > >= ~ and a value, such as 'type=conv2d' or 'peak_bytes>=100KiB'",
        )
    _require(match[1], known, "--where")
    return _Condition(match[1], match[2], match[3])


def _matching(rows: Sequence[Row], text: str, known: Sequence[str]) -> tuple[Row, ...]:
    condition = _parse(text, known)
    present = [row[condition.column] for row in rows if row.get(condition.column) is not None]
    numeric = bool(present) and all(isinstance(value, int | float) for value in present)
    test = _test(condition, text, numeric=numeric and not isinstance(present[0], bool))
    return tuple(row for row in rows if test(row.get(condition.column)))


def _test(condition: _Condition, text: str, *, numeric: bool) -> Callable[[Any], bool]:
    """Make the test of one cell; only `!=` holds for a null, or `=` when null is what was asked for."""
    sign, wanted = condition.sign, condition.value
    if sign == "~":
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise UsageError(
                f"this is not a regular expression: {error}",
                where=f"--where {text}",
                received=repr(wanted),
                todo="escape the characters that stand for themselves with \\",
            ) from None
        return lambda cell: cell is not None and pattern.search(_plain_text(cell)) is not None
    equality = sign in {"=", "==", "!="}
    if equality and wanted.lower() in _NULL:
        return lambda cell: (cell is None) is (sign != "!=")
    if not numeric and not equality:
        raise UsageError(
            f"{sign} compares numbers, and {condition.column} has none here",
            where=f"--where {text}",
            received=repr(wanted),
            todo="use = or !=, or ~ with a regular expression",
        )
    compare = _COMPARE[sign]
    if numeric:
        number = _number(condition, text)
        return lambda cell: compare(cell, number) if cell is not None else sign == "!="
    return lambda cell: compare(_plain_text(cell), wanted) if cell is not None else sign == "!="


def _number(condition: _Condition, text: str) -> float:
    value = condition.value
    try:
        if _is_size(condition.column):
            return parse_bytes(value)
        if value.endswith("%"):
            return float(value[:-1]) / 100
        digits = value.replace(",", "").replace("_", "")
        return int(digits) if digits.lstrip("+-").isdigit() else float(digits)
    except (UsageError, ValueError):
        raise UsageError(
            f"{condition.column} holds {'sizes' if _is_size(condition.column) else 'numbers'}, and this is none",
            where=f"--where {text}",
            received=repr(value),
            todo="write a size such as 100KiB" if _is_size(condition.column) else "write a number, such as 1000 or 10%",
        ) from None


def _is_size(column: str) -> bool:
    return column == "bytes" or column.endswith("_bytes")


def _plain_text(cell: Any) -> str:
    if isinstance(cell, tuple | list):
        return format_shape(tuple(cell))
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _nothing_left(rows: Sequence[Row], text: str) -> str:
    column = _CONDITION.fullmatch(text)[1]  # type: ignore[index]  # it has been parsed before
    values = list(dict.fromkeys(row[column] for row in rows if isinstance(row.get(column), str)))
    listed = ", ".join(values[:8]) + (", …" if len(values) > 8 else "")
    return f"no row has {text}" + (f"; {column} is one of {listed}" if values else "")


# Sort


def _sorted(rows: Sequence[Row], sort: str, known: Sequence[str]) -> tuple[Row, ...]:
    sign, column = (sort[0], sort[1:]) if sort[:1] in {"+", "-"} else ("", sort)
    _require(column, known, "--sort")
    present = [row for row in rows if row.get(column) is not None]
    absent = [row for row in rows if row.get(column) is None]
    text = any(isinstance(row[column], str) for row in present)

    def key(row: Row) -> Any:
        value = row[column]
        if text:
            return _natural(_plain_text(value))
        return math.prod(value) if isinstance(value, tuple | list) else value

    falls = sign == "-" if sign else not text
    return (*sorted(present, key=key, reverse=falls), *absent)


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Order numbers inside a text by value, so that features.2 stands before features.10."""
    return [(1, 0, part) if odd % 2 == 0 else (0, int(part), "") for odd, part in enumerate(re.split(r"(\d+)", text))]


# Errors


def _require(column: str, known: Sequence[str], option: str) -> None:
    if column in known:
        return
    near = difflib.get_close_matches(column, known, n=3, cutoff=0.5)
    near += [name for name in known if column and column in name and name not in near]
    todo = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        "there is no such column",
        where=option,
        received=repr(column),
        todo=f"{todo}the columns here are {', '.join(known) or 'none, as there are no rows'}",
    )


def _at_least_one(option: str, count: int) -> None:
    if count < 1:
        raise UsageError(
            "this counts from one", where=option, received=str(count), todo="give a whole number of 1 or more"
        )
