"""Whose the time between two marks is. No torch in it.

A capture tells how many operations had run as each module was entered and left. From that follows which modules must
carry marks for the rows to be told apart, and which operations run from each mark to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from memfit.errors import CaptureError
from memfit.graph.model import Graph
from memfit.measure.statistics import Array

NOBODY = -1
"""Row of an operation that no row owns."""


class Event(NamedTuple):
    """A module's `forward` begins or ends."""

    module: int
    """Its place in `named_modules()`, which is its scope in the graph."""
    enters: bool
    ops: int
    """Operations that have run by then."""


class Layout(NamedTuple):
    """Which modules carry marks, and whose the time between them is."""

    modules: frozenset[int]
    order: tuple[tuple[int, bool], ...]
    """The marks of one run in their order: module, and whether it is entered."""
    row: tuple[int, ...]
    part: tuple[int, ...]
    """Pairs of a row and a part of the run, from one mark to the next; the first begins with the run."""
    share: tuple[float, ...]
    """The share of that part that is the row's: 1 unless a part runs operations of several rows."""
    rows: int
    shared: frozenset[int]
    """Rows that have a share of such a part."""


def lay_out(graph: Graph, events: Sequence[Event], row_of: Sequence[int], rows: int) -> Layout:
    """Choose the modules to mark, and give every part of the run between marks to the row whose operations it runs.

    A part without operations between two rows, where only Python runs, is nobody's. Parts that several rows share are
    divided equally here; see `divide`.
    """
    working = [op.index for op in graph.ops if row_of[op.index] != NOBODY and not graph.is_alias(op)]
    chosen: set[int] = set()
    for before, after in pairwise(working):
        if row_of[before] != row_of[after]:
            between = [e for e in events if before < e.ops <= after]
            if between:
                chosen.add(_parting(between).module)
    kept = [e for e in events if e.module in chosen]
    bounds = [0, *(e.ops for e in kept), len(graph.ops)]
    row: list[int] = []
    part: list[int] = []
    share: list[float] = []
    shared: set[int] = set()
    for position, (start, end) in enumerate(pairwise(bounds)):
        owners = owners_of(graph, row_of, start, end)
        if not owners:
            owners = _around(working, row_of, start)
        if len(owners) > 1:
            shared.update(owners)
        for owner in owners:
            row.append(owner)
            part.append(position)
            share.append(1 / len(owners))
    order = tuple((e.module, e.enters) for e in kept)
    return Layout(frozenset(chosen), order, tuple(row), tuple(part), tuple(share), rows, frozenset(shared))


def owners_of(graph: Graph, row_of: Sequence[int], start: int, end: int) -> list[int]:
    """List the rows whose operations run in `[start, end)`; views only where nothing else does."""
    found = dict.fromkeys(row_of[i] for i in range(start, end) if not graph.is_alias(graph.ops[i]))
    found.pop(NOBODY, None)
    if not found:
        found = dict.fromkeys(row_of[i] for i in range(start, end))
        found.pop(NOBODY, None)
        return list(found)[:1]
    return list(found)


def _around(working: Sequence[int], row_of: Sequence[int], place: int) -> list[int]:
    """Find the row that both the operation before and the one after belong to."""
    before = next((row_of[i] for i in reversed(working) if i < place), None)
    after = next((row_of[i] for i in working if i >= place), None)
    return [before] if before is not None and before == after else []


def _parting(between: Sequence[Event]) -> Event:
    """Choose the event that parts two rows: the second one enters an outermost module, or else the first leaves one."""
    entering = len(between)
    while entering > 0 and between[entering - 1].enters:
        entering -= 1
    if entering < len(between):
        return between[entering]
    leaving = 0
    while leaving + 1 < len(between) and not between[leaving + 1].enters:
        leaving += 1
    return between[leaving]


def divide(layout: Layout, graph: Graph, events: Sequence[Event], row_of: Sequence[int], weight: Array) -> Layout:
    """Divide the parts that several rows share in proportion to the weights of their operations."""
    kept = [e for e in events if e.module in layout.modules]
    bounds = [0, *(e.ops for e in kept), len(graph.ops)]
    held: dict[tuple[int, int], float] = {}
    for position, (start, end) in enumerate(pairwise(bounds)):
        for index in range(start, end):
            key = (position, row_of[index])
            held[key] = held.get(key, 0.0) + float(weight[index])
    sums: dict[int, float] = {}
    for pair in zip(layout.part, layout.row, strict=True):
        sums[pair[0]] = sums.get(pair[0], 0.0) + held.get(pair, 0.0)
    counts = Counter(layout.part)
    share = tuple(
        1.0 if counts[p] == 1 else held.get((p, r), 0.0) / sums[p] if sums[p] else 1 / counts[p]
        for p, r in zip(layout.part, layout.row, strict=True)
    )
    return layout._replace(share=share)


def other_order(
    paths: Sequence[str], expected: Sequence[tuple[int, bool]], seen: Sequence[tuple[int, bool]]
) -> CaptureError:
    """Say where a run left the captured order."""
    place = next((i for i, (a, b) in enumerate(zip(expected, seen, strict=False)) if a != b), None)
    where = None if place is None else paths[seen[place][0]] or "(root)"
    return CaptureError(
        "this model calls its modules in another order than when it was captured, so its time cannot be given to rows",
        where=where,
        received=f"{len(seen)} marks where {len(expected)} were captured",
        todo="time the whole model with --per model; the order of modules must not depend on values",
    )
