"""What a column is called, how its cells read, and how much it matters when there is little room.

Every renderer reads its labels and cells here, so that a figure reads the same in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memfit.analysis.result import Result
from memfit.analysis.select import ADDITIVE
from memfit.units import format_bytes, format_count, format_shape

Row = dict[str, Any]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shape(value: Any) -> str:
    return format_shape(tuple(value)) if isinstance(value, tuple | list) else _text(value)


def _share(value: Any) -> str:
    return f"{value:.2%}"


def _milliseconds(value: Any) -> str:
    return f"{value:.3f} ms"


class Column(NamedTuple):
    """One column as people see it."""

    label: str
    cell: Callable[[Any], str]
    importance: int
    """The least important column goes first where the room is short."""
    right: bool = True
    """Numbers stand to the right."""
    modelled: bool = False
    """True for a figure that a memory model gives, whose label names the model."""
    mark: bool = False
    """True where only a true value says anything, so that a column without one is left out."""


COLUMNS: dict[str, Column] = {
    "name": Column("name", _text, 100, right=False),
    "made_by": Column("made by", _text, 90, right=False),
    "tensor": Column("tensor", _text, 40, right=False),
    "type": Column("type", _text, 80, right=False),
    "class": Column("class", _text, 70, right=False),
    "phase": Column("phase", _text, 68, right=False),
    "module": Column("module", _text, 30, right=False),
    "depth": Column("depth", _text, 5),
    "norm": Column("norm", _text, 22, right=False),
    "activation": Column("activation", _text, 24, right=False),
    "kernel": Column("kernel", _shape, 46),
    "stride": Column("stride", _shape, 44),
    "shape": Column("shape", _shape, 72),
    "output_shape": Column("output shape", _shape, 66),
    "dtype": Column("dtype", _text, 56, right=False),
    "elements": Column("elements", format_count, 54),
    "activations": Column("activations", format_count, 42),
    "weights": Column("weights", format_count, 34),
    "params": Column("params", format_count, 64),
    "params_share": Column("share", _share, 32),
    "macs": Column("MACs", format_count, 58),
    "bytes": Column("bytes", format_bytes, 74),
    "activation_bytes": Column("outputs", format_bytes, 36, modelled=True),
    "workspace_bytes": Column("workspace", format_bytes, 60, modelled=True),
    "saved_bytes": Column("saved", format_bytes, 92, modelled=True),
    "allocated_bytes": Column("allocated", format_bytes, 94, modelled=True),
    "peak_bytes": Column("peak", format_bytes, 96, modelled=True),
}
"""Every known column, in the order in which it is shown."""

MEMORY_COLUMNS: dict[str, str] = {
    "tinytl": "saved_bytes",
    "autograd": "saved_bytes",
    "tensors": "allocated_bytes",
}
"""The column a memory model is about; for every other model it is the peak."""

MAIN_COLUMNS: dict[str, str] = {}
"""The column that a command's results are about, where no memory model says it."""

SUMMARIES: dict[str, Callable[[Result], list[tuple[str, Row]]]] = {}
"""Command → the lines below its rows; for every other, the totals of the columns that add up."""

_FIGURES = ("peak_bytes", "saved_bytes", "allocated_bytes", "activation_bytes", "bytes", "macs", "params", "elements")


def column(key: str) -> Column:
    """Describe a column, known or not, by its key's ending.

    >>> column("peak_bytes").label, column("head_bytes").cell(2048), column("load_ms").label
    ('peak', '2.0 KiB', 'load')
    """
    if key in COLUMNS:
        return COLUMNS[key]
    if key.endswith("_bytes"):
        return Column(key.removesuffix("_bytes").replace("_", " "), format_bytes, 50)
    if key.endswith("_ms"):
        return Column(key.removesuffix("_ms").replace("_", " "), _milliseconds, 50)
    if key.endswith("_share"):
        return Column(key.replace("_", " "), _share, 20)
    return Column(key.replace("_", " "), _shape, 10, right=False)


def cell(key: str, value: Any) -> str:
    """Write one cell for people; a null is blank.

    >>> cell("kernel", [3, 3]), cell("params", 3504872), cell("norm", None)
    ('3x3', '3,504,872', '')
    """
    return "" if value is None else column(key).cell(value)


def label(result: Result, key: str) -> str:
    """Name a column; a memory figure's label says which model it is of."""
    known = column(key)
    return f"{known.label} ({result.memory})" if known.modelled else known.label


def keys(result: Result) -> tuple[str, ...]:
    """List every column of the rows: as asked for, or in the order of COLUMNS with unknown ones before the sizes."""
    if result.selection and result.selection.columns is not None:
        return result.selection.columns
    present = dict.fromkeys(key for row in result.rows for key in row)
    sizes = [key for key in COLUMNS if key in present and COLUMNS[key].modelled]
    known = [key for key in COLUMNS if key in present and not COLUMNS[key].modelled]
    return (*known, *(key for key in present if key not in COLUMNS), *sizes)


def filled(result: Result) -> tuple[str, ...]:
    """List the columns worth showing to people: all asked for, or those with at least one value."""
    if result.selection and result.selection.columns is not None:
        return result.selection.columns
    return tuple(key for key in keys(result) if any(_says(key, row.get(key)) for row in result.rows))


def _says(key: str, value: Any) -> bool:
    return value is not None and (value is not False or not column(key).mark)


def figure(result: Result) -> str | None:
    """Name the column that the report is about: the memory model's own, or else the first figure there is."""
    shown = [key for key in keys(result) if any(_is_number(row.get(key)) for row in result.rows)]
    own = MAIN_COLUMNS.get(result.command) or MEMORY_COLUMNS.get(result.memory or "", "peak_bytes")
    wanted = (own, *_FIGURES)
    return next((key for key in wanted if key in shown), shown[0] if shown else None)


def values(result: Result, key: str) -> list[float]:
    """Give a column's figures, one per row; a null has no length to draw."""
    numbers = (row.get(key) for row in result.rows)
    return [float(number) if isinstance(number, int | float) else 0.0 for number in numbers]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def peak_row(result: Result) -> int | None:
    """Find the row at which the network's peak is, where it is shown."""
    place = result.totals.get("peak_at")
    if place is None:
        return None
    names = [str(row.get("name")) for row in result.rows]
    if place in names:
        return names.index(place)
    for index, row in enumerate(result.rows):  # rows joined to a shorter path
        if place.startswith(f"{names[index]}.") and row.get("peak_bytes") == result.totals.get("peak_bytes"):
            return index
    return None


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text, since paths differ at both ends.

    >>> shorten("encoder.layers.11.attention.output", 16)
    'encoder…n.output'
    """
    if len(text) <= width:
        return text
    head = max(width - 1, 0) // 2
    tail = max(width - 1, 0) - head
    return text[:head] + "…" + (text[-tail:] if tail else "")


def summary_rows(result: Result, shown: Sequence[str]) -> list[tuple[str, Row]]:
    """Give the lines below the rows: what the rows left out sum to, then the whole."""
    lines: list[tuple[str, Row]] = []
    chosen = result.selection
    if chosen and chosen.hidden:  # modules left out have no sums: they are inside rows that are shown
        count = chosen.hidden_rows
        lines.append((f"other {format_count(count)} row{'s' if count > 1 else ''}", chosen.hidden))
    if result.command in SUMMARIES:
        return lines + SUMMARIES[result.command](result)
    totals = {key: result.totals[key] for key in shown if key in result.totals and key in ADDITIVE}
    if totals:
        lines.append(("total", totals))
    return lines
