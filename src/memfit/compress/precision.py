"""Which bits each activation and each weight gets, so that memory holds and as little as possible is lost. No torch.

The limits are sums over what is in memory together: one for each moment of the run where a peak counts, one for all of
them where everything that is kept does. The loss is the sum of what each choice costs by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from memfit.errors import require
from memfit.memory.demand import Demand, Part

Bits = tuple[int | None, ...]
"""Bits by item; None where an item keeps its own."""

_TOTAL = 1 << 46
"""What all costs together are scaled to, so that CP-SAT sums whole numbers; a cost below 2^-46 of them is lost."""


class Limit(NamedTuple):
    """Parts that are in memory together, and the bytes that they may take."""

    parts: tuple[Part, ...]
    budget_bytes: int

    def nbytes(self, bits: Sequence[int | None]) -> int:
        """Give what they take."""
        return sum(part.nbytes(bits) for part in self.parts)


@dataclass(frozen=True)
class Programme:
    """Choose one width for each item, within the limits, at the least cost.

    >>> limit = Limit((Part(0, 100, 8), Part(1, 100, 8)), 150)
    >>> programme = Programme(((4, 8), (4, 8)), ({4: 1.0, 8: 0.0}, {4: 0.1, 8: 0.0}), (limit,))
    >>> exact(programme).bits, uniform(programme).bits
    ((8, 4), (4, 4))
    """

    choices: tuple[tuple[int, ...], ...]
    """By item: the widths it may have, rising; none where it keeps its own."""
    costs: tuple[Mapping[int, float], ...]
    """By item: width → what that loses; 0 where a width has no entry."""
    limits: tuple[Limit, ...]

    def at(self, place: int) -> Bits:
        """Give each item its narrowest width (0) or its widest (-1)."""
        return tuple(widths[place] if widths else None for widths in self.choices)

    def cost(self, bits: Sequence[int | None]) -> float:
        """Sum what the widths lose."""
        return sum(cost.get(width, 0.0) for cost, width in zip(self.costs, bits, strict=True) if width is not None)

    def known_cost(self, bits: Sequence[int | None]) -> float | None:
        """Sum the same; None where a width that is not the widest has no entry."""
        for widths, cost, width in zip(self.choices, self.costs, bits, strict=True):
            if width is not None and width != widths[-1] and width not in cost:
                return None
        return self.cost(bits)

    def excess(self, bits: Sequence[int | None]) -> int:
        """Give the bytes by which the limit that is broken most is broken; 0 or less where all hold."""
        return max((limit.nbytes(bits) - limit.budget_bytes for limit in self.limits), default=0)

    def holds(self, bits: Sequence[int | None]) -> bool:
        """Tell whether all limits hold."""
        return self.excess(bits) <= 0

    def reachable(self) -> Programme:
        """Leave out widths with which a limit breaks even where all other items are at their narrowest."""
        lowest = list(self.at(0))
        bytes_of = [limit.nbytes(lowest) for limit in self.limits]
        within: dict[int, list[int]] = {}
        for place, limit in enumerate(self.limits):
            for item in {part.group for part in limit.parts if part.group >= 0}:
                within.setdefault(item, []).append(place)

        def holds(item: int, width: int) -> bool:
            bits = lowest.copy()
            bits[item] = width
            for place in within.get(item, ()):
                parts = [part for part in self.limits[place].parts if part.group == item]
                more = sum(part.nbytes(bits) - part.nbytes(lowest) for part in parts)
                if bytes_of[place] + more > self.limits[place].budget_bytes:
                    return False
            return True

        choices = tuple(
            tuple(w for w in widths if w == widths[0] or holds(item, w)) for item, widths in enumerate(self.choices)
        )
        return replace(self, choices=choices)

    def binding(self) -> frozenset[int]:
        """Find the items that are in a limit which does not hold at the widest widths."""
        widest = self.at(-1)
        return frozenset(
            part.group
            for limit in self.limits
            if limit.nbytes(widest) > limit.budget_bytes
            for part in limit.parts
            if part.group >= 0 and len(self.choices[part.group]) > 1
        )


class Solution(NamedTuple):
    """Widths, and how good they are."""

    bits: Bits
    cost: float
    holds: bool
    """Whether all limits do."""
    optimal: bool = False
    """True where no other widths within the limits cost less, to the resolution of the costs."""
    gap: float | None = None
    """Share of the cost by which it might be lower still; None where nothing is known of that."""


def programme_of(
    demand: Demand, choices: Sequence[Sequence[int]], costs: Sequence[Mapping[int, float]], budget_bytes: int
) -> Programme:
    """Write a memory model's demand as limits; moments that hold the same become one.

    Args:
        demand: of the network.
        choices: widths by group.
        costs: by group.
        budget_bytes: for each moment where the model measures a peak, for all of them together otherwise.
    """
    if demand.measures == "saved":
        limits = [Limit(tuple(part for moment in demand.moments for part in moment.parts), budget_bytes)]
    else:
        limits = [Limit(parts, budget_bytes) for parts in dict.fromkeys(tuple(sorted(m.parts)) for m in demand.moments)]
    return Programme(tuple(tuple(sorted(set(widths))) for widths in choices), tuple(costs), tuple(limits))


def exact(
    programme: Programme, *, time_limit: float = 60.0, seed: int = 0, near: tuple[Bits, int] | None = None
) -> Solution:
    """Solve the integer programme with OR-tools' CP-SAT (Perron and Didier, https://developers.google.com/optimization).

    One thread and a limit in its deterministic time, so that the same programme has the same answer on every run.

    Args:
        programme: whose limits can hold.
        time_limit: about seconds; then the best so far is given, with the gap to the bound that is proven.
        seed: of the search.
        near: widths within the limits, of which only so many may change.

    Raises:
        MissingExtra: OR-tools is not installed.
    """
    require("ortools", "compress", "choosing bits needs OR-tools", where="memfit quantize")
    from ortools.sat.python import cp_model

    start = greedy(programme).bits if near is None else near[0]
    programme = programme.reachable()
    free = programme.binding()
    if not free:
        widest = programme.at(-1)
        return Solution(widest, programme.cost(widest), programme.holds(widest), True, 0.0)
    model = cp_model.CpModel()
    chosen: dict[tuple[int, int], cp_model.IntVar] = {}
    whole = sum(max(programme.costs[item].values(), default=0.0) for item in free)
    scale = _TOTAL / whole if whole > 0 else 0.0
    terms = []
    for item in sorted(free):
        widths = programme.choices[item]
        for width in widths:
            variable = chosen[item, width] = model.new_bool_var(f"{item}:{width}")
            model.add_hint(variable, start[item] == width)
            terms.append(round(programme.costs[item].get(width, 0.0) * scale) * variable)
        model.add_exactly_one(chosen[item, width] for width in widths)
    widest = programme.at(-1)
    for limit in programme.limits:
        if limit.nbytes(widest) <= limit.budget_bytes:
            continue
        fixed = 0
        taken: list[cp_model.LinearExpr | int] = []
        for part in limit.parts:
            if part.group not in free:
                fixed += part.nbytes(widest)
                continue
            for width in programme.choices[part.group]:
                taken.append((part.elements * width + 7) // 8 * chosen[part.group, width])
        model.add(sum(taken) <= limit.budget_bytes - fixed)
    if near is not None:
        same = [chosen[i, w] for i, w in enumerate(near[0]) if w is not None and (i, w) in chosen]
        model.add(sum(same) >= len(free) - near[1])
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.num_workers = 1
    parameters.random_seed = seed
    parameters.max_deterministic_time = time_limit
    parameters.linearization_level = 2
    parameters.relative_gap_limit = 0.0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(start, programme.cost(start), programme.holds(start))
    bits = list(widest)
    for (item, width), variable in chosen.items():
        if solver.boolean_value(variable):
            bits[item] = width
    value, bound = solver.objective_value, solver.best_objective_bound
    gap = max(value - bound, 0.0) / value if value > 0 else 0.0
    optimal = status == cp_model.OPTIMAL
    return Solution(tuple(bits), programme.cost(bits), programme.holds(bits), optimal, 0.0 if optimal else gap)


def greedy(programme: Programme, *, time_limit: float = 60.0, seed: int = 0) -> Solution:  # noqa: ARG001  (one signature)
    """Take the simplest way: narrow whatever is largest just now by one step, until all limits hold.

    What an item takes is its largest part's bytes; of equal ones the first goes first. It sees neither what lies in
    memory together nor what a width costs.
    """
    elements = _elements(programme)
    places = [len(widths) - 1 for widths in programme.choices]

    def bits() -> Bits:
        return tuple(w[p] if w else None for w, p in zip(programme.choices, places, strict=True))

    while not programme.holds(bits()):
        open_items = [i for i, place in enumerate(places) if place > 0 and elements[i]]
        if not open_items:
            break
        places[max(open_items, key=lambda i: (elements[i] * programme.choices[i][places[i]], -i))] -= 1
    found = bits()
    return Solution(found, programme.cost(found), programme.holds(found))


def uniform(programme: Programme, *, time_limit: float = 60.0, seed: int = 0) -> Solution:  # noqa: ARG001  (one signature)
    """Give every item the same width, the widest with which all limits hold."""
    every = sorted({width for widths in programme.choices for width in widths}, reverse=True)
    bits = programme.at(0)
    for width in every:
        bits = tuple(max((w for w in widths if w <= width), default=widths[0]) if widths else None
                     for widths in programme.choices)  # fmt: skip
        if programme.holds(bits):
            break
    return Solution(bits, programme.cost(bits), programme.holds(bits))


STRATEGIES: dict[str, Callable[..., Solution]] = {"exact": exact, "greedy": greedy, "uniform": uniform}
"""Name → how bits are chosen."""


def _elements(programme: Programme) -> list[int]:
    elements = [0] * len(programme.choices)
    for limit in programme.limits:
        for part in limit.parts:
            if part.group >= 0:
                elements[part.group] = max(elements[part.group], part.elements)
    return elements
