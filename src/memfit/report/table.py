"""The terminal's table, as wide as the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import StringIO
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from memfit.analysis.result import Result
from memfit.report import headline
from memfit.report.columns import (
    COLUMNS,
    cell,
    column,
    figure,
    filled,
    label,
    peak_row,
    shorten,
    summary_rows,
    values,
)

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
"""Columns where there is no terminal to fit."""

_GAP = 2
_NAME = 24
"""A name is cut down to this before any column is left out."""
_BAR = range(10, 31)
"""Characters that bars may take, if there are any bars."""
_BAR_IMPORTANCE = 38
"""Among the columns: less important ones make room for the bars."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ASCII = str.maketrans({"…": "~", "·": "-", "─": "-", "█": "#", **dict.fromkeys("▏▎▍▌▋▊▉", " ")})


class _Field(NamedTuple):
    """One column with its text, ready to be placed."""

    key: str
    head: str
    cells: list[str]
    foot: list[str]
    right: bool
    importance: int

    @property
    def width(self) -> int:
        return max(map(len, (self.head, *self.cells, *self.foot)))


def render(result: Result, stream: IO[str], *, width: int | None = None) -> None:
    """Write the table; colours only on a terminal, which also sets the width unless it is given."""
    from rich.console import Console
    from rich.text import Text

    one_line = headline.brief(result)
    if one_line is not None:
        stream.write(_shown(f"{one_line}\n", stream))
        return
    terminal = stream.isatty()
    room = max(width or _terminal_width(stream), 20)
    fields, left_out = _fit(_fields(result), room, keep_all=_asked(result))
    bars = _bars(result, room - _total(fields))

    buffer = StringIO()
    console = Console(
        file=buffer,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=max(room, _total(fields) + (max(map(len, bars)) + _GAP if bars else 0)),
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for line in _wrapped(headline.title(result).split(" · "), " · ", room):
        console.print(Text(line, style="bold"), no_wrap=True, overflow="ignore", crop=False)
    console.print()
    if fields and result.rows:
        console.print(_table(result, fields, bars))
    else:
        console.print(Text("no rows", style="dim"))
    console.print()
    for number, line in enumerate(_wrapped(headline.totals(result), " · ", room)):
        console.print(Text(line, style="bold" if number == 0 else ""), no_wrap=True, overflow="ignore", crop=False)
    for sentence in headline.lines(result):
        indent = " " * (len(sentence) - len(sentence.lstrip()))
        for number, line in enumerate(_wrapped(sentence.split(), " ", room - 2 * len(indent))):
            console.print(Text(indent * (2 if number else 1) + line), no_wrap=True, overflow="ignore", crop=False)
    for line in _remarks(result, left_out, room):
        console.print(Text(line, style="dim"), no_wrap=True, overflow="ignore", crop=False)

    text = "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())
    stream.write(_shown(text, stream))


def _shown(text: str, stream: IO[str]) -> str:
    """Leave to a terminal what it can show."""
    unicode = "utf" in (getattr(stream, "encoding", None) or "utf-8").lower()
    return text if unicode else text.translate(_ASCII)


def _terminal_width(stream: IO[str]) -> int:
    """Ask the stream, then stderr, which is still the terminal when stdout goes to a pager."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"]) or WIDTH
    for candidate in (stream, sys.__stderr__):
        try:
            if candidate is not None and candidate.isatty():
                return os.get_terminal_size(candidate.fileno()).columns or WIDTH
        except (OSError, ValueError):
            continue
    return WIDTH


def _asked(result: Result) -> bool:
    return result.selection is not None and result.selection.columns is not None


def _fields(result: Result) -> list[_Field]:
    shown = filled(result)
    below = summary_rows(result, shown)
    main = figure(result)
    fields = []
    for index, key in enumerate(shown):
        known = column(key)
        cells = [cell(key, row.get(key)) for row in result.rows]
        if key == "name" and _is_tree(result):
            cells = [_leaf(row) for row in result.rows]
        foot = [name if index == 0 else cell(key, sums.get(key)) for name, sums in below]
        importance = 99 if key == main else known.importance
        fields.append(_Field(key, label(result, key), cells, foot, known.right, importance))
    return fields


def _is_tree(result: Result) -> bool:
    """Tell whether the rows are a module tree in its order, each below its parent, so that names may be indented."""
    if result.per != "module":
        return False
    above: list[str] = []
    for row in result.rows:
        name, depth = str(row.get("name", "")), row.get("depth")
        if not isinstance(depth, int) or depth > len(above):
            return False
        del above[depth:]
        if depth > 1 and not name.startswith(above[-1] + "."):
            return False
        above.append(name)
    return True


def _leaf(row: dict[str, Any]) -> str:
    depth = row["depth"]
    return "  " * int(depth) + (str(row["name"]).rsplit(".", 1)[-1] if depth else str(row["name"] or "(root)"))


def _total(fields: Sequence[_Field], name: int | None = None) -> int:
    widths = [name if name is not None and field.key == "name" else field.width for field in fields]
    return sum(widths) + _GAP * (len(fields) - 1)


def _fit(fields: list[_Field], room: int, *, keep_all: bool) -> tuple[list[_Field], list[_Field]]:
    """Leave out the least important columns and cut names until the rest fits.

    Columns that were asked for all stay; then only names give way, and the table may be wider than the terminal.
    """
    kept = list(fields)
    natural = max((field.width for field in fields if field.key == "name"), default=0)
    bars = _GAP + _BAR.start
    while len(kept) > 1 and not keep_all and _total(kept, min(natural, _NAME)) + bars > room:
        least = min(kept, key=lambda field: field.importance)
        if bars and least.importance > _BAR_IMPORTANCE:
            bars = 0
        else:
            kept.remove(least)
    spare = room - _total(kept, 0) - bars
    limit = max(spare, 8)
    kept = [_cut(field, limit) if field.key == "name" else field for field in kept]
    left_out = [field for field in fields if field.key not in {entry.key for entry in kept}]
    if kept and kept[0].foot[-1:] == ["total"] and not any(field.foot[-1] for field in kept[1:]):
        kept = [field._replace(foot=field.foot[:-1]) for field in kept]  # a total with no figure left to show
    return kept, left_out


def _cut(field: _Field, width: int) -> _Field:
    return field._replace(
        cells=[shorten(text, width) for text in field.cells], foot=[shorten(text, width) for text in field.foot]
    )


def _bars(result: Result, spare: int) -> list[str]:
    """Draw the report's own column in the room that is left; no bars where it is too little to tell them apart."""
    key = figure(result)
    width = min(spare - _GAP, _BAR.stop - 1)
    if key is None or width < _BAR.start or len(result.rows) < 2:
        return []
    numbers = values(result, key)
    longest = max(numbers)
    if longest <= 0:
        return []
    return [_bar(max(number, 0) / longest * width) for number in numbers]


def _bar(length: float) -> str:
    eighths = round(length * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _table(result: Result, fields: Sequence[_Field], bars: Sequence[str]) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    ruled = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
    table = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    drawn = next((index for index, field in enumerate(fields) if field.key == figure(result)), None)
    for index, field in enumerate(fields):
        table.add_column(
            Text(field.head),
            justify="right" if field.right else "left",
            width=field.width,
            no_wrap=True,
            overflow="crop",
        )
        if bars and index == drawn:
            table.add_column("", width=max(map(len, bars)), no_wrap=True)
    peak = peak_row(result)
    below = len(fields[0].foot)
    for index, _ in enumerate(result.rows):
        cells = [Text(field.cells[index]) for field in fields]
        if bars and drawn is not None:
            cells.insert(drawn + 1, Text(bars[index], style="red" if index == peak else "blue"))
        table.add_row(*cells, style="bold" if index == peak else "", end_section=index == len(result.rows) - 1)
    for index in range(below):
        cells = [Text(field.foot[index]) for field in fields]
        if bars and drawn is not None:
            cells.insert(drawn + 1, Text(""))
        table.add_row(*cells, style="bold" if index == below - 1 else "")
    return table


def _remarks(result: Result, left_out: Sequence[_Field], room: int) -> list[str]:
    lines: list[str] = []
    for note in result.notes:
        lines += _wrapped(f"note: {note}".split(" "), " ", room)
    if left_out:
        names = ", ".join(field.key for field in left_out)
        lines += _wrapped(f"not shown at this width: {names} (--columns shows them)".split(" "), " ", room)
    around = headline.environment(result)
    if around:
        lines += _wrapped(around.split(" "), " ", room)
    return lines


def _wrapped(parts: Sequence[str], joint: str, room: int) -> list[str]:
    """Join the parts, beginning a new line where the next does not fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(joint) + len(part) <= room:
            lines[-1] += joint + part
        else:
            lines.append(part)
    return lines


__all__ = ["COLUMNS", "WIDTH", "render"]
