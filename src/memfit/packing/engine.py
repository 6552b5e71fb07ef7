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
    """`search.FEWEST`, `LOWEST` or `TIGHTEST`."""
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


_CHANGING = (
    "entries", "place", "skyline", "solid", "rest", "live", "crossing", "changed", "options", "floating", "head",
    "decided", "dirty", "marked",
)  # fmt: skip
"""The board's fields that a search starts from afresh; the trail and the frames may keep what an earlier one left."""


class Start:
    """A component laid out for one engine: the state in which every search begins."""

    def __init__(self, view: Sections, engine: Engine) -> None:
        self._board = _board(view, engine)
        self._engine = engine
        self._fresh = {name: getattr(self._board, name)[:] for name in _CHANGING}
        if not isinstance(self._board.skyline, list):
            self._fresh = {name: values.copy() for name, values in self._fresh.items()}

    def board(self, strategy: Strategy, capacity: int) -> search.Board:
        """Begin a search; the board of the one before is used again.

        Args:
            strategy: order and rules.
            capacity: in units of the component.
        """
        for name, values in self._fresh.items():
            getattr(self._board, name)[:] = values
        self._board.rank[:] = self._engine.array(strategy.rank)
        control = self._board.control
        for place in (search.DEPTH, search.TRAIL, search.NODES, search.PHASE, search.OVERFLOW):
            control[place] = 0
        control[search.CAPACITY] = capacity
        control[search.RULE] = strategy.rule
        control[search.RIGHT] = int(strategy.right)
        return self._board


def _board(view: Sections, engine: Engine) -> search.Board:
    """Lay out a component: nothing placed but the fixed blocks."""
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
    near_first, near = [0], []
    for block in range(blocks):
        met = {
            owner[entry]
            for position in range(view.first[block], view.first[block + 1])
            for entry in by_section[view.section[position]]
        }
        near += sorted(met - {block})
        near_first.append(len(near))
    flat = [entry for of_section in by_section for entry in of_section]
    place = [0] * entries
    for position, entry in enumerate(flat):
        place[entry] = position
    rest = [sum(view.top[entry] - view.low[entry] for entry in of_section) for of_section in by_section]
    live = [len(of_section) for of_section in by_section]
    frames = FRAMES_PER_BLOCK * blocks + 8 * count + 16
    room = 24 * entries + 64 * count + 16 * frames
    control = [0] * 10
    control[search.FLOATS] = int(not plain or linked)
    control[search.LINKED] = int(linked)
    nothing, none = [0] * count, [0] * frames
    fields = (
        view.first, view.section, view.low, view.top, owner, view.alignment, view.high, view.least, begin, view.spare,
        [0] * blocks, twin, near_first, near, flat, place,
        nothing, nothing, rest, live, crossing, [-1] * count, nothing, [0] * blocks, nothing,
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
