"""The list of boards and GPUs as a result, which every renderer can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from memfit.analysis.result import Result
from memfit.errors import UsageError
from memfit.targets import KINDS, Target, load
from memfit.units import format_bytes


@dataclass(frozen=True)
class Targets(Result):
    """Boards, chips and GPUs, one in each row. Sizes are in bytes."""

    command: ClassVar[str] = "targets"


def targets(*, kind: str | None = None, min_ram: int = 0) -> Targets:
    """List the boards and GPUs that memfit knows.

    >>> listed = targets(kind="mcu", min_ram=2 << 20)
    >>> listed.totals["count"] == len(listed.rows) > 3
    True
    >>> [row["ram_bytes"] for row in listed.rows if row["name"] == "stm32h743"]
    []

    Args:
        kind: one of KINDS, or None for all.
        min_ram: leave out what offers less than that many bytes to one array.

    Raises:
        UsageError: no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError("there is no such kind", where="--kind", received=repr(kind), todo=f"use {' or '.join(KINDS)}")
    chosen = [t for t in load().values() if kind in (None, t.kind) and t.ram_bytes >= min_ram]
    what = kind or "mcu and gpu"
    return Targets(
        source="targets",
        inputs=(),
        per="target",
        memory=None,
        training=False,
        device=f"{what}, at least {format_bytes(min_ram)}" if min_ram else what,
        rows=tuple(map(_row, chosen)),
        totals={"count": len(chosen)},
        notes=tuple(_notes(chosen)),
        environment={},
    )


def _row(target: Target) -> dict[str, Any]:
    return {
        "name": target.key,
        "what": target.name,
        "kind": target.kind,
        "core": target.core,
        "mhz": target.mhz,
        "ram_bytes": target.ram_bytes,
        "bank_bytes": target.bank_bytes if target.kind == "mcu" else None,
        "total_ram_bytes": target.total_ram_bytes if target.kind == "mcu" else None,
        "reported_bytes": target.reported_bytes,
        "flash_bytes": target.flash_bytes,
        "pointer_bits": target.pointer_bits,
        "checked": target.checked,
        "seen": target.seen,
        "link": target.link,
        "note": target.note,
    }


def _notes(chosen: list[Target]) -> list[str]:
    notes = []
    if any(target.kind == "mcu" for target in chosen):
        notes.append("an mcu's ram is the longest stretch without a gap: what one arena can take if nothing else does")
    if any(target.reported_bytes for target in chosen):
        notes.append("a gpu's ram is the data sheet's; --budget takes what its driver reports, where that is known")
    unchecked = [target.key for target in chosen if target.checked is None]
    if unchecked:
        notes.append(f"not compared with any source, {len(unchecked)} of {len(chosen)}: {', '.join(unchecked)}")
    return notes
