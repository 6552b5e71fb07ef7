"""Boards for the exact search, and the two ways to run it: plain Python, and the same source compiled by numba."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

from memfit.packing import search
from memfit.packing.sections import Sections

FRAMES_PER_BLOCK = 8
"""Room for moves: each block is placed once, and a section may be raised without placing one."""


class Strategy(NamedTuple):
    """One way to search: the answer is the same, the time is not."""

    rank: tuple[int, ...]
    """By block: its place in the order in which options are tried."""
    rule: int
    """`search.FEWEST` or `search.LOWEST`."""
    right: bool
    """Whether the last of equally good sections is taken, not the first."""


class Engine(NamedTuple):
    """A way to run the search."""

    name: str
    advance: Callable[[search.Board, int], int]
    array: Callable[[Sequence[int]], Any]
    """Makes what the board's fields are."""
    nodes_per_call: int
    """How far to go between two looks at the clock."""


PLAIN = Engine("plain Python", search.advance, list, 500)


@cache
def compiled() -> Engine | None:
    """Compile the search with numba; None where that is not installed.

    The result is kept beside the source (or in the user's cache), so a machine compiles once.
    """
    if importlib.util.find_spec("numba") is None:
        return None
    import numba
    import numpy as np

    spec = importlib.util.find_spec(search.__name__)
    if spec is None or spec.loader is None:
        return None
    # A second copy of the module: in it, each function is replaced by its compiled self, which the others then call.
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["Board"] = search.Board
    for name, function in list(vars(module).items()):
        if isinstance(function, FunctionType) and function.__module__ == search.__name__:
            try:
                setattr(module, name, numba.njit(cache=True)(function))
            except RuntimeError:  # nowhere to keep it
                setattr(module, name, numba.njit(function))
    return Engine("numba", module.advance, lambda values: np.array(values, dtype=np.int64), 50_000)


def board(view: Sections, strategy: Strategy, capacity: int, engine: Engine) -> search.Board:
    """Lay out a search for one component.

    Args:
        view: the component.
        strategy: order and rules.
        capacity: in units of `view.unit`.
        engine: what shall run it.
    """
    blocks, count, entries = len(view.blocks), view.count, len(view.section)
    owner = [block for block in range(blocks) for _ in range(view.first[block], view.first[block + 1])]
    by_section: list[list[int]] = [[] for _ in range(count)]
    for entry, section in enumerate(view.section):
        by_section[section].append(entry)
    crossing = [0] * count
    kinds: dict[tuple[Any, ...], int] = {}
    twin, plain, linked = [], True, False
    for block in range(blocks):
        mine = range(view.first[block], view.first[block + 1])
        where = [view.section[entry] for entry in mine]
        ranges = [(view.low[entry], view.top[entry]) for entry in mine]
        for section in range(where[0], where[-1]):
            crossing[section] += 1
        linked = linked or len(set(ranges)) > 1
        plain = plain and where[-1] - where[0] == len(where) - 1 and view.fixed[block] < 0
        kind = (*where, *ranges, view.alignment[block], view.high[block], view.least[block], view.fixed[block])
        twin.append(kinds.setdefault(kind, block))
    begin = [0]
    for of_section in by_section:
        begin.append(begin[-1] + len(of_section))
    flat = [entry for of_section in by_section for entry in of_section]
    place = [0] * entries
    for position, entry in enumerate(flat):
        place[entry] = position
    rest = [sum(view.top[entry] - view.low[entry] for entry in of_section) for of_section in by_section]
    frames = FRAMES_PER_BLOCK * blocks + 8 * count + 16
    room = 24 * entries + 64 * count + 16 * frames
    control = [0] * 10
    control[search.FLOATS] = int(not plain or linked)
    control[search.LINKED] = int(linked)
    control[search.CAPACITY] = capacity
    control[search.RULE] = strategy.rule
    control[search.RIGHT] = int(strategy.right)
    nothing, none = [0] * count, [0] * frames
    fields = (
        view.first, view.section, view.low, view.top, owner, view.alignment, view.high, begin, view.spare,
        strategy.rank, twin, flat, place,
        nothing, rest, [len(of_section) for of_section in by_section], crossing, [-1] * count, nothing, nothing,
        view.least, [0] * blocks,
        [0] * room, [0] * room, nothing, nothing, nothing, nothing,
        none, none, none, none, none, none, none, none, [0] * (8 * entries + 16 * frames), control,
    )  # fmt: skip
    made = search.Board(*(engine.array(field) for field in fields))
    for block, offset in enumerate(view.fixed):
        if offset >= 0:
            search._decide(made, block, offset)
    made.control[search.TRAIL] = 0
    return made
