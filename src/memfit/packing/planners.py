"""The table of planners, and the one way to call them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from memfit.errors import InternalError, UsageError
from memfit.packing.blocks import Block
from memfit.packing.buffers import PackingError
from memfit.packing.exact import Budget, Progress, exact
from memfit.packing.greedy import Neighbours, by_area, by_duration, by_size, height, place, tightest
from memfit.packing.local_search import local_search
from memfit.packing.problem import Packing, Problem
from memfit.packing.tflm import tflm
from memfit.packing.validator import violations
from memfit.units import format_count

NODES = 150_000
"""Nodes that a search for the lowest packing may try where nothing else is said: at most a minute in plain Python."""

NODES_TO_FIT = 1_000_000
"""The same for a search that only has to fit a capacity."""

UNLIMITED = 1 << 62
"""Where the time is limited instead."""


@dataclass(frozen=True, slots=True)
class Planner:
    """A way to place blocks."""

    name: str
    says: str
    """What it does, in a line."""
    place: Callable[[Sequence[Block]], list[int]] | None
    """Blocks → their offsets in bytes; None for the exact search, which takes a budget too."""


PLANNERS = MappingProxyType(
    {
        planner.name: planner
        for planner in (
            Planner("exact", "search for the lowest packing, with proof or gap", None),
            Planner("tflm", "TensorFlow Lite Micro's greedy planner, step for step", tflm),
            Planner(
                "size", "greedy, largest first, lowest gap", lambda blocks: place(Neighbours(blocks), by_size(blocks))
            ),
            Planner(
                "duration",
                "greedy, longest-lived first, lowest gap",
                lambda blocks: place(Neighbours(blocks), by_duration(blocks)),
            ),
            Planner(
                "area",
                "greedy, largest bytes times time first, lowest gap",
                lambda blocks: place(Neighbours(blocks), by_area(blocks)),
            ),
            Planner(
                "best-fit",
                "greedy, largest first, tightest gap",
                lambda blocks: place(Neighbours(blocks), by_size(blocks), tightest),
            ),
            Planner("local-search", "orders changed step by step, placed first fit", local_search),
        )
    }
)
"""Name → planner."""


def find_planner(name: str) -> Planner:
    """Find a planner by name.

    >>> find_planner("tflm").says
    "TensorFlow Lite Micro's greedy planner, step for step"

    Raises:
        UsageError: there is no such planner; names the nearest.
    """
    found = PLANNERS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, PLANNERS, n=1)
        raise UsageError(
            "there is no such planner",
            where="--planner",
            received=name,
            todo=f"did you mean {near[0]}?" if near else f"take one of {', '.join(PLANNERS)}",
        )
    return found


def pack(
    problem: Problem,
    planner: str = "exact",
    capacity: int | None = None,
    *,
    time_limit: float | None = None,
    nodes: int | None = None,
    use_numba: bool | None = None,
    progress: Progress | None = None,
) -> Packing:
    """Place every buffer of a problem, and check the result with the independent validator.

    >>> from memfit.packing import Buffer, Problem, pack
    >>> problem = Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 4, [(1, 3)]), Buffer("c", 8, [(2, 4)])))
    >>> packing = pack(problem)
    >>> packing.height, packing.optimal, dict(packing.offsets)
    (12, True, {'a': 0, 'b': 8, 'c': 0})

    Args:
        problem: the buffers.
        planner: a name of `PLANNERS`.
        capacity: bytes of the arena; takes the place of the problem's own. The exact planner stops at the first packing
            within it; where none is found, the best one found comes back, and `fits` is False.
        time_limit: seconds after which the exact search stops with the best found. Without it, the same problem gives
            the same packing on every run.
        nodes: how many placements the exact search may try; None for `NODES`, or `NODES_TO_FIT` with a capacity, or as
            many as the time allows where that is limited.
        use_numba: None compiles a search when it has become long and numba is installed; True at once; False never.
        progress: called with nodes, lower bound and best height in bytes, now and then.

    Raises:
        UsageError: there is no such planner.
        PackingError: fixed buffers that overlap.
    """
    chosen = find_planner(planner)
    capacity = problem.capacity if capacity is None else capacity
    _check_fixed(problem)
    if nodes is None:
        nodes = UNLIMITED if time_limit is not None else NODES if capacity is None else NODES_TO_FIT
    budget = Budget(nodes, None if time_limit is None else time.monotonic() + time_limit, use_numba)
    if chosen.place is None:
        placed, bound = exact(problem.blocks, capacity, budget, progress)
    else:
        placed, bound = chosen.place(problem.blocks), problem.lower_bound
    packing = checked(problem, placed, planner, bound)
    notes = _notes(budget, packing.height, bound, capacity)
    return replace(packing, nodes=budget.used, capacity=capacity, notes=notes)


def checked(problem: Problem, placed: Sequence[int], planner: str, bound: int) -> Packing:
    """Make a packing of the offsets of a problem's blocks, which the independent validator has seen.

    Raises:
        InternalError: the planner made one that is not valid.
    """
    offsets, found = problem.offsets(placed), height(problem.blocks, placed)
    broken = violations(problem, offsets, height=found)
    if broken:
        raise InternalError(
            "a planner made a packing that is not valid",
            where=f"planner {planner}, {len(problem.buffers)} buffers",
            received=broken[0].message,
            todo="report this with the problem; another planner may do",
        )
    return Packing(offsets, found, bound, planner)


def _notes(budget: Budget, found: int, bound: int, capacity: int | None) -> tuple[str, ...]:
    """Say what of the answer is open, and why."""
    notes = []
    if capacity is not None and found > capacity:
        if bound > capacity:
            notes.append(f"no packing lies within the capacity of {format_count(capacity)} bytes: this is proved")
        else:
            notes.append(f"no packing within the capacity of {format_count(capacity)} bytes was found; one may exist")
    if budget.stopped is not None and found > bound:
        notes.append(f"the search stopped at {budget.stopped}; a lower packing may exist")
    return tuple(notes)


def _check_fixed(problem: Problem) -> None:
    """Refuse fixed buffers that overlap: no planner could do anything about them."""
    fixed = [block for block in problem.blocks if block.offset is not None]
    for number, block in enumerate(fixed):
        for other in fixed[:number]:
            for mine in block.parts:
                for part in other.parts:
                    at, base = block.offset or 0, other.offset or 0
                    if (
                        mine.lower < part.upper
                        and part.lower < mine.upper
                        and at + mine.low < base + part.high
                        and base + part.low < at + mine.high
                    ):
                        names = [problem.buffers[found.members[0][0]].name for found in (other, block)]
                        raise PackingError(
                            "fixed buffers overlap",
                            where=f"buffers {names[0]} and {names[1]}",
                            received=f"addresses from {base} and from {at}, both in "
                            f"[{max(mine.lower, part.lower)}, {min(mine.upper, part.upper)})",
                            todo="fix them apart, or name them as aliases",
                        )
