"""The exact planner: heuristics first, then a search that finds a lower packing or rules it out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from memfit.packing import engine, search
from memfit.packing.blocks import Block, lower_bound
from memfit.packing.engine import Engine, Strategy
from memfit.packing.greedy import Neighbours, by_area, by_duration, by_size, height, lowest, place, tightest
from memfit.packing.sections import Sections, components, sections

PLAIN_NODES = 10_000
"""Nodes after which a search goes on compiled, where numba is installed."""

Progress = Callable[[int, int, int], None]
"""Called now and then with the nodes searched, the lower bound and the best height (bytes)."""


@dataclass
class Budget:
    """What a search may use, and has used."""

    nodes: int
    """Nodes that it may try in all."""
    deadline: float | None = None
    """`time.monotonic()` at which it must stop."""
    use_numba: bool | None = None
    """None: compiled past `PLAIN_NODES`; True: from the start; False: never."""
    tick: Callable[[], None] | None = None
    """Called between two stretches of a search."""
    used: int = 0
    stopped: str | None = None

    def engine(self) -> Engine:
        """Choose how to run the next search."""
        if self.use_numba or (self.use_numba is None and self.used > PLAIN_NODES):
            return engine.compiled() or engine.PLAIN
        return engine.PLAIN

    def left(self) -> bool:
        """Whether to go on."""
        if self.used >= self.nodes:
            self.stopped = f"the budget of {self.nodes:,} nodes"
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.stopped = "the time limit"
        return self.stopped is None


ORDERS = {"W": 0, "A": 1, "T": 2, "Z": 3}
"""Keys of a static order: lifetime (sections), area, largest section total, size."""

FIXED = (
    ("WAT", search.FEWEST, False),
    ("TAW", search.TIGHTEST, False),
    ("AZT", search.FEWEST, False),
    ("TWA", search.LOWEST, False),
    ("TAW", search.FEWEST, True),
    ("WAT", search.TIGHTEST, True),
    ("TWA", search.FEWEST, True),
    ("AZT", search.LOWEST, True),
)
"""The first strategies of a portfolio: order, rule, direction."""


def strategies(view: Sections) -> Iterator[Strategy]:
    """Give strategies without end: the fixed ones, then random variations of them, the same each time."""
    total = [0] * view.count
    for entry, section in enumerate(view.section):
        total[section] += view.top[entry] - view.low[entry]
    keys = []
    for block in range(len(view.blocks)):
        mine = range(view.first[block], view.first[block + 1])
        sizes = [view.top[entry] - view.low[entry] for entry in mine]
        keys.append((len(sizes), sum(sizes), max(total[view.section[entry]] for entry in mine), max(sizes)))
    chance = random.Random(0)
    for name, rule, right in FIXED:
        yield Strategy(_rank([tuple(key[ORDERS[letter]] for letter in name) for key in keys]), rule, right)
    while True:
        name = chance.choice(FIXED)[0]
        noisy = [
            tuple(key[ORDERS[letter]] * math.exp(0.15 * chance.gauss(0.0, 1.0)) for letter in name) for key in keys
        ]
        yield Strategy(
            _rank(noisy), chance.choice((search.FEWEST, search.LOWEST, search.TIGHTEST)), chance.random() < 0.5
        )


def _rank(keys: Sequence[tuple[float, ...]]) -> tuple[int, ...]:
    rank = [0] * len(keys)
    for position, block in enumerate(sorted(range(len(keys)), key=keys.__getitem__, reverse=True)):
        rank[block] = position
    return tuple(rank)


def luby(index: int) -> int:
    """Give a term of Luby's sequence, counted from 1: lengths of restarts that suit an unknown run time.

    >>> [luby(i) for i in range(1, 16)]
    [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]
    """
    while True:
        length = index.bit_length()
        if index == (1 << length) - 1:
            return 1 << (length - 1)
        index -= (1 << (length - 1)) - 1


class Portfolio:
    """Search after search for one component and one capacity, each with another strategy and its own share of nodes.

    Args:
        view: the component.
        capacity: in units of `view.unit`.
    """

    def __init__(self, view: Sections, capacity: int) -> None:
        self.view, self.capacity = view, capacity
        self._strategies = enumerate(strategies(view), 1)
        self._board: search.Board | None = None
        self._start: engine.Start | None = None
        self._engine = engine.PLAIN
        self._todo = 0
        self.offsets: list[int] = []
        """Of each block, in units, once solved."""

    def run(self, budget: Budget, limit: int | None = None) -> int:
        """Go on until the capacity is decided, or `limit` more nodes are used up.

        Returns:
            `SOLVED`, `INFEASIBLE` or `STOPPED`.
        """
        lowest = zip(self.view.fixed, self.view.least, self.view.high, strict=True)
        if any((fixed if fixed >= 0 else least) + top > self.capacity for fixed, least, top in lowest):
            return search.INFEASIBLE
        end = budget.nodes if limit is None else min(budget.nodes, budget.used + limit)
        while budget.left() and budget.used < end:
            if budget.tick is not None:
                budget.tick()
            if self._board is None or self._todo <= 0:
                number, strategy = next(self._strategies)
                wanted = budget.engine()
                if self._start is None or wanted is not self._engine:
                    self._engine, self._start = wanted, engine.Start(self.view, wanted)
                self._board = self._start.board(strategy, self.capacity)
                self._todo = 4 * len(self.view.blocks) * luby(number)
            before = int(self._board.control[search.NODES])
            share = min(self._todo, self._engine.nodes_per_call, end - budget.used)
            result = self._engine.advance(self._board, share)
            spent = max(1, int(self._board.control[search.NODES]) - before)
            budget.used += spent
            self._todo = 0 if self._board.control[search.OVERFLOW] else self._todo - spent
            if result != search.STOPPED:
                self.offsets = [int(offset) for offset in self._board.head]
                return result
        return search.STOPPED


@dataclass
class Component:
    """A component on its way to its lowest packing; heights in units."""

    view: Sections
    bound: int
    """No packing is lower."""
    best: int
    offsets: list[int]
    """Of the best packing, by block of the component."""
    closed: int = 0
    """The search finds no packing lower than this: the bound, or more where holes are taken as occupied."""
    searches: dict[int, Portfolio] = field(default_factory=dict)
    """By height, those not yet decided."""

    def attempt(self, target: int, budget: Budget, limit: int) -> None:
        """Look for a packing at most `target` high, with `limit` nodes more than before."""
        portfolio = self.searches.setdefault(target, Portfolio(self.view, target))
        result = portfolio.run(budget, limit)
        if result == search.SOLVED:
            self.offsets = portfolio.offsets
            self.best = max(at + top for at, top in zip(self.offsets, self.view.high, strict=True))
        elif result == search.INFEASIBLE:
            self.closed = max(self.closed, target + 1)
            if self.view.exact:
                self.bound = max(self.bound, target + 1)
        self.searches = {at: kept for at, kept in self.searches.items() if self.closed <= at < self.best}


def exact(
    blocks: Sequence[Block], capacity: int | None, budget: Budget, progress: Progress | None = None
) -> tuple[list[int], int]:
    """Find the lowest packing, or the first within a capacity, and a bound that no packing is below.

    Args:
        blocks: what to place.
        capacity: stop at the first packing within it, in bytes; None for the lowest.
        budget: what may be used.
        progress: called between two stretches of a search.

    Returns:
        The offset of each block, and the lower bound, in bytes.
    """
    offsets = heuristic(blocks)
    bound = lower_bound(blocks)
    goal = bound if capacity is None else max(bound, capacity)
    best = height(blocks, offsets)
    if best <= goal:
        return offsets, bound
    parts = []
    for numbers in components(blocks):
        view = sections(blocks, numbers)
        mine = [blocks[number] for number in numbers]
        found = heuristic(mine)
        top = height(mine, found)
        for number, offset in zip(numbers, found, strict=True):
            offsets[number] = offset
        floor = -(-lower_bound(mine) // view.unit)
        parts.append(Component(view, floor, top // view.unit, [offset // view.unit for offset in found], floor))
    # The hardest first: what it cannot reach, the others need not.
    for part in sorted(parts, key=lambda part: -part.bound * part.view.unit):
        unit = part.view.unit

        def report(part: Component = part, unit: int = unit) -> None:
            if progress is not None:
                progress(budget.used, part.bound * unit, part.best * unit)

        budget.tick = report
        _lower(part, goal // unit, budget, first=capacity is not None)
        bound = max(bound, part.bound * unit)
        if capacity is None:
            goal = max(goal, part.best * unit)
        for block, offset in zip(part.view.blocks, part.offsets, strict=True):
            offsets[block] = offset * unit
    return offsets, bound


def _lower(part: Component, goal: int, budget: Budget, *, first: bool) -> None:
    """Bring a component down to a goal, or as low as the budget allows; heights in units.

    First the goal itself: nearly always the lower bound can be reached. Then heights between what is ruled out and the
    best found, nearer to the goal first. That a search ran out of budget says nothing about its height, so all of them
    go on with twice as much. With `first`, only the goal counts.
    """
    limit = 120 * len(part.view.blocks)
    while part.best > max(goal, part.closed) and budget.left():
        floor = max(goal, part.closed)
        if first and floor > goal:
            break
        part.attempt(floor, budget, limit)
        share = 2
        while not first and floor == max(goal, part.closed) and part.best > floor + 1 and share and budget.left():
            before, gap = part.best, part.best - floor
            part.attempt(part.best - max(1, gap // share), budget, limit // 4)
            share = 2 if part.best < before else 2 * share if share < min(gap, 8) else 0
        if floor == max(goal, part.closed):
            limit *= 2


def heuristic(blocks: Sequence[Block]) -> list[int]:
    """Give the lowest packing that the greedy planners find."""
    near = Neighbours(blocks)
    found = []
    for order in (by_size(blocks), by_area(blocks), by_duration(blocks)):
        found += [place(near, order, lowest), place(near, order, tightest)]
    return min(found, key=lambda offsets: height(blocks, offsets))
