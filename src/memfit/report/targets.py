"""How `memfit targets` speaks."""

from __future__ import annotations

from memfit.analysis.result import Result
from memfit.report import columns, headline
from memfit.report.columns import Column
from memfit.units import format_count


def conditions(result: Result) -> list[str]:
    """Say what was asked for."""
    return [result.device]


def totals(result: Result) -> list[str]:
    """Count them."""
    count = result.totals["count"]
    return [f"{format_count(count)} target{'' if count == 1 else 's'}"]


COLUMNS = {
    "kind": Column("kind", str, 60, right=False),
    "core": Column("core", str, 76, right=False),
    "mhz": Column("MHz", format_count, 74),
    "ram_bytes": Column("ram", columns.column("ram_bytes").cell, 98),
    "bank_bytes": Column("largest bank", columns.column("bank_bytes").cell, 25),
    "total_ram_bytes": Column("all banks", columns.column("total_ram_bytes").cell, 26),
    "reported_bytes": Column("reported", columns.column("reported_bytes").cell, 27),
    "flash_bytes": Column("flash", columns.column("flash_bytes").cell, 90),
    "pointer_bits": Column("pointer bits", format_count, 5),
    "checked": Column("checked", str, 15, right=False),
    "seen": Column("compared with", str, 4, right=False),
    "link": Column("link", str, 12, right=False),
    "note": Column("note", str, 3, right=False),
}
"""Columns that only this list has, in their order."""

headline.VOICES["targets"] = headline.Voice(conditions, totals)
columns.MAIN_COLUMNS["targets"] = "ram_bytes"
columns.COLUMNS.update(COLUMNS)
