"""Comma-separated values: the rows as they are, sizes in bytes, and the memory model in a column of its own."""

from __future__ import annotations

import csv
from typing import IO, Any

from memfit.analysis.result import Result
from memfit.report.columns import keys
from memfit.units import format_shape


def render(result: Result, stream: IO[str]) -> None:
    """Write a header with the JSON contract's keys and one line per row; a null is empty, shapes read 1x3x224x224."""
    shown = keys(result)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*shown, "memory"])
    for row in result.rows:
        writer.writerow([*(_raw(row.get(key)) for key in shown), result.memory])


def _raw(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return format_shape(tuple(value))
    return str(value).lower() if isinstance(value, bool) else value
