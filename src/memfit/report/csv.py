"""Comma-separated values: the rows as they are, sizes in bytes, and the memory model in a column of its own."""

from __future__ import annotations

import csv
from typing import IO, Any

from memfit.analysis.result import Profile
from memfit.report.columns import keys
from memfit.units import format_shape


def render(profile: Profile, stream: IO[str]) -> None:
    """Write a header with the JSON contract's keys and one line per row; a null is empty, shapes read 1x3x224x224."""
    shown = keys(profile)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*shown, "memory"])
    for row in profile.rows:
        writer.writerow([*(_raw(row.get(key)) for key in shown), profile.memory])


def _raw(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return format_shape(tuple(value))
    return str(value).lower() if isinstance(value, bool) else value
