"""`memfit plan` of a packing problem in MiniMalloc's CSV format: buffers alone, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memfit.analysis.result import Plan
from memfit.packing import PLANNERS, pack
from memfit.packing.minimalloc import read_minimalloc
from memfit.units import format_count


def plan_problem(
    path: str | Path,
    *,
    capacity: int | None = None,
    planner: str = "exact",
    time_limit: float | None = None,
    side_by_side: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Pack the buffers of a problem.

    Args:
        path: a CSV file with the columns id, lower, upper (half-open) and size, in bytes.
        capacity: bytes of the arena: the search stops at the first packing within it. None looks for the smallest.
        planner: a name in `memfit.packing.PLANNERS`.
        time_limit: seconds for the search; without it, the same file has the same plan on every run.
        side_by_side: also pack with every other planner.
        progress: is told how far the search is.

    Raises:
        PackingError: the file cannot be read, or a line of it is wrong.
        UsageError: there is no such planner.
    """
    problem = read_minimalloc(path, capacity)

    def tell(nodes: int, lower: int, best: int) -> None:
        if progress is not None:
            progress(
                f"{format_count(nodes)} placements, best {format_count(best)} bytes, at least {format_count(lower)}"
            )

    found = pack(problem, planner, time_limit=time_limit, progress=tell)
    rows = tuple(
        {
            "tensor": buffer.name,
            "offset": found.offsets[buffer.name],
            "nbytes": buffer.size,
            "first_op": min((span.lower for span in buffer.spans), default=0),
            "end_op": max((span.upper for span in buffer.spans), default=0),
        }
        for buffer in problem.buffers
    )
    totals: dict[str, Any] = {
        "buffers": len(problem.buffers),
        "lower_bound_bytes": found.lower_bound,
        "arena_bytes": found.height,
        "optimal": found.optimal,
        "tail_bytes": None,
        "ram_bytes": None,
        "flash_bytes": None,
        "fits": found.fits,
        "capacity_bytes": capacity,
        "nodes": found.nodes,
    }
    others = {} if not side_by_side else {name: pack(problem, name) for name in PLANNERS if name != planner}
    return Plan(
        source=str(path),
        inputs=(),
        per="tensor",
        memory=None,
        training=False,
        device="cpu",
        rows=rows,
        totals=totals,
        notes=found.notes,
        environment={},
        settings={"runtime": None, "planner": planner, "time_limit_s": time_limit},
        planners=tuple(
            {"name": name, "arena_bytes": other.height, "optimal": other.height <= found.lower_bound}
            for name, other in {planner: found, **others}.items()
        )
        if side_by_side
        else (),
    )
