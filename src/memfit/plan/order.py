"""Search for the order of a network's operators in which the fewest bytes are alive at once.

Any order of the operators in which each comes after those whose results it reads gives the same answer, but not the
same peak of memory. The search is exact for up to a few dozen free choices; beyond that it keeps the best order found
and says how far it may be from the best one. `docs/operator-order.md` explains it and proves the rules it relies on.

Nothing here knows what an operator is: a `Step` reads and writes numbered storages, and that is all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from memfit.errors import MemfitError
from memfit.plan.downsets import Part, Search, bits

NODES = 1_000_000
"""Steps that `search` tries, from all states, when it is not told how many: up to some seconds for hundreds of them."""

Progress = Callable[[int, int, int], None]
"""Called now and then with the steps tried, the lower bound and the best peak (bytes)."""


class OrderError(MemfitError):
    """Steps that contradict themselves, or an order that they do not allow."""


@dataclass(frozen=True, slots=True)
class Step:
    """An operator: it reads and writes storages, and may need scratch bytes while it runs.

    A storage that a step reads and writes too is one that it changes in place.

    Args:
        inputs: numbers of the storages that it reads.
        outputs: numbers of the storages that it writes.
        extra: bytes alive only while it runs.
        after: numbers of further steps that must come before it; all are listed before it.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    extra: int = 0
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Order:
    """An order of steps, and what is known about it."""

    order: tuple[int, ...]
    """Numbers of the steps, first to last."""
    peak: int
    """Most bytes alive at one time in this order."""
    lower_bound: int
    """Bytes that no order can go below."""
    choices: int
    """Runs of steps whose place is not forced, counted after chains are joined; 0 when there is nothing to choose."""
    nodes: int
    """States that were searched."""
    notes: tuple[str, ...] = ()
    """What kept the search from an answer with proof."""

    @property
    def optimal(self) -> bool:
        """Whether no order has a lower peak."""
        return self.peak == self.lower_bound

    @property
    def gap(self) -> float:
        """How far the peak may be above the lowest one, as a share of the lower bound."""
        return (self.peak - self.lower_bound) / max(1, self.lower_bound)


def dependencies(steps: Sequence[Step]) -> list[frozenset[int]]:
    """Direct predecessors of each step, by the order in which the steps are listed.

    A step comes after every step listed before it that writes what it reads, or reads what it writes. Steps that only
    write the same storage may change places.

    >>> dependencies([Step((0,), (1,)), Step((1,), (1,)), Step((1,), (2,))])
    [frozenset(), frozenset({0}), frozenset({0, 1})]

    Args:
        steps: the steps, listed in an order that is valid.
    """
    writers: dict[int, set[int]] = {}
    readers: dict[int, set[int]] = {}
    before = []
    for number, step in enumerate(steps):
        wanted = set(step.after)
        for storage in step.inputs:
            wanted |= writers.get(storage, set())
        for storage in step.outputs:
            wanted |= readers.get(storage, set())
        before.append(frozenset(wanted))
        for storage in step.outputs:
            writers.setdefault(storage, set()).add(number)
        for storage in step.inputs:
            readers.setdefault(storage, set()).add(number)
    return before


def live_bytes(
    steps: Sequence[Step],
    sizes: Sequence[int],
    order: Iterable[int] | None = None,
    *,
    given: AbstractSet[int] = frozenset(),
    kept: AbstractSet[int] = frozenset(),
) -> tuple[int, ...]:
    """Bytes alive before the first step, and while each step runs.

    While a step runs, all that it reads and writes is alive, its `extra`, and every storage that was born and is still
    to be used. A storage is born at its first use and dies after its last; a given one is there from the beginning, a
    kept one stays to the end. A given storage that no step uses is alive before the first step only.

    >>> live_bytes([Step((0,), (1,)), Step((1,), (2,), extra=5)], [10, 20, 30], given={0}, kept={2})
    (10, 30, 55)

    Args:
        steps: the steps.
        sizes: bytes of each storage.
        order: numbers of the steps, first to last; None for the order of the list.
        given: storages alive before the first step.
        kept: storages alive after the last step.

    Returns:
        One more figure than there are steps.
    """
    return tuple(_simulate(_Network(steps, sizes, given, kept), range(len(steps)) if order is None else order)[0])


def search(
    steps: Sequence[Step],
    sizes: Sequence[int],
    *,
    given: AbstractSet[int] = frozenset(),
    kept: AbstractSet[int] = frozenset(),
    initial: Sequence[int] | None = None,
    nodes: int = NODES,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> Order:
    """Find the order of the steps with the smallest peak of live bytes.

    Two branches start from the same storage; the one that shrinks at once had better come first:

    >>> steps = [Step((0,), (1,)), Step((0,), (2,)), Step((2,), (3,)), Step((1, 3), (4,))]
    >>> found = search(steps, [10, 50, 60, 5, 5], given={0}, kept={4})
    >>> found.order, found.peak, found.optimal
    ((1, 2, 0, 3), 75, True)
    >>> max(live_bytes(steps, [10, 50, 60, 5, 5], given={0}, kept={4}))
    120

    Args:
        steps: the operators, listed in a valid order; see `dependencies` for what may change places.
        sizes: bytes of each storage, aligned as the arena aligns them; 0 for constants.
        given: storages alive before the first step (the network's inputs).
        kept: storages alive after the last step (its outputs).
        initial: the order to start from; None for the order of the list. It comes back as it is unless a lower peak is
            found, and what need not change keeps its place.
        nodes: how many steps the search may try.
        time_limit: seconds after which it stops with the best found. Without it, the same problem gives the same order
            on every run.
        progress: called now and then.

    Raises:
        OrderError: a number out of range, a negative size, a storage that is read before anything writes it, or an
            initial order that the steps do not allow.
    """
    before = _checked(steps, sizes, given, kept)
    first = _checked_order(before, initial)
    network = _Network([steps[number] for number in first], sizes, given, kept)
    place = {number: at for at, number in enumerate(first)}
    network.link([sum(1 << place[other] for other in before[number]) for number in first])
    solver = _Solver(network, _Budget(nodes, None if time_limit is None else time.monotonic() + time_limit, progress))
    solver.solve()
    return Order(
        order=tuple(first[at] for at in solver.order),
        peak=solver.peak,
        lower_bound=solver.bound,
        choices=solver.choices,
        nodes=solver.budget.used,
        notes=tuple(solver.notes) if solver.peak > solver.bound else (),
    )


def _checked(
    steps: Sequence[Step], sizes: Sequence[int], given: AbstractSet[int], kept: AbstractSet[int]
) -> list[frozenset[int]]:
    """Refuse what cannot be, and return the dependencies."""
    for number, size in enumerate(sizes):
        if size < 0:
            raise OrderError(
                "a storage has a negative size",
                where=f"storage {number}",
                received=f"{size} bytes",
                todo="give 0 or more",
            )
    written = set(given)
    for number, step in enumerate(steps):
        where = f"step {number}"
        for storage in (*step.inputs, *step.outputs):
            if not 0 <= storage < len(sizes):
                raise OrderError(
                    "a step uses a storage that has no size",
                    where=where,
                    received=f"storage {storage}, and {len(sizes)} sizes",
                    todo="give one size per storage",
                )
        if step.extra < 0:
            raise OrderError(
                "a step needs a negative number of bytes",
                where=where,
                received=f"extra={step.extra}",
                todo="give 0 or more",
            )
        for other in step.after:
            if not 0 <= other < number:
                raise OrderError(
                    "a step must come after one that is not listed before it",
                    where=where,
                    received=f"after step {other}",
                    todo="list the steps in a valid order",
                )
        for storage in step.inputs:
            if storage not in written and sizes[storage]:
                raise OrderError(
                    "a step reads a storage before any step has written it",
                    where=where,
                    received=f"storage {storage} of {sizes[storage]} bytes",
                    todo="list the steps in a valid order, add the storage to `given`, or make its size 0",
                )
        written.update(step.outputs)
    for storage in (*given, *kept):
        if not 0 <= storage < len(sizes) or (sizes[storage] and storage not in written):
            raise OrderError(
                "a storage is to be kept that nothing writes, or has no size",
                where=f"storage {storage}",
                received=f"{len(sizes)} sizes",
                todo="name storages that a step writes or that are given",
            )
    return dependencies(steps)


def _checked_order(before: Sequence[frozenset[int]], initial: Sequence[int] | None) -> list[int]:
    """Refuse an initial order that is none."""
    if initial is None:
        return list(range(len(before)))
    if sorted(initial) != list(range(len(before))):
        raise OrderError(
            "the initial order does not name every step once",
            where="initial",
            received=f"{len(initial)} numbers for {len(before)} steps",
            todo="give a permutation of the steps",
        )
    done: set[int] = set()
    for number in initial:
        if not before[number] <= done:
            raise OrderError(
                "the initial order puts a step before one that it needs",
                where=f"step {number}",
                received=f"step {min(before[number] - done)} after it",
                todo="give an order in which what is read was written",
            )
        done.add(number)
    return list(initial)


class _Network:
    """The steps by their place in the initial order, which is what all numbers below mean."""

    def __init__(
        self, steps: Sequence[Step], sizes: Sequence[int], given: AbstractSet[int], kept: AbstractSet[int]
    ) -> None:
        self.sizes, self.given, self.kept = sizes, given, kept
        self.extra = [step.extra for step in steps]
        self.touched = [tuple(dict.fromkeys(step.inputs + step.outputs)) for step in steps]
        self.users: dict[int, int] = {}
        """Mask of the steps that use each storage."""
        for number, touched in enumerate(self.touched):
            for storage in touched:
                self.users[storage] = self.users.get(storage, 0) | 1 << number

    def link(self, before: list[int]) -> None:
        """Take the mask of direct predecessors of each step, all of them lower, and complete it."""
        self.ancestors = before
        for number, mask in enumerate(before):
            for other in bits(mask):
                before[number] |= before[other]

    def run(self, number: int, done: int, live: int) -> tuple[int, int]:
        """Bytes while a step runs after those in the mask `done`, and after it; `live` is what they left alive."""
        need, after = live + self.extra[number], live
        for storage in self.touched[number]:
            users, size = self.users[storage], self.sizes[storage]
            if storage not in self.given and not users & done:
                need += size
                after += size
            if storage not in self.kept and not users & ~(done | 1 << number):
                after -= size
        return need, after

    def cuts(self) -> list[int]:
        """Places at which every step before comes before every step after, whatever the order."""
        count = len(self.ancestors)
        places, common = [count], -1
        for number in range(count - 1, -1, -1):
            common &= self.ancestors[number]
            below = (1 << number) - 1
            if common & below == below:
                places.append(number)
        return places[::-1]

    def part(self, order: Sequence[int], first: int, last: int, live: int) -> Part:
        """Make a problem of its own of steps `[first, last)` of an order, with `live` bytes alive before them."""
        names = sorted(order[first:last])
        inside = sum(1 << name for name in names)
        done = sum(1 << name for name in order[:first])
        place = {name: at for at, name in enumerate(names)}

        def local(mask: int) -> int:
            return sum(1 << place[name] for name in bits(mask & inside))

        uses = []
        for storage in dict.fromkeys(storage for name in names for storage in self.touched[name]):
            users = self.users[storage]
            born = storage in self.given or bool(users & done)
            stays = storage in self.kept or bool(users & ~done & ~inside)
            if self.sizes[storage]:
                uses.append((self.sizes[storage], local(users), born, stays))
        ancestors = [local(self.ancestors[name]) for name in names]
        return Part.make(names, ancestors, uses, [self.extra[name] for name in names], live)


def _simulate(network: _Network, order: Iterable[int]) -> tuple[list[int], list[int]]:
    """Bytes before the first step and while each step runs; and bytes alive between steps."""
    sizes, given, kept = network.sizes, network.given, network.kept
    left = {storage: users.bit_count() for storage, users in network.users.items()}
    born = set(given)
    live = sum(sizes[storage] for storage in given if storage in left or storage in kept)
    during, between = [sum(sizes[storage] for storage in given)], [live]
    for number in order:
        for storage in network.touched[number]:
            if storage not in born:
                born.add(storage)
                live += sizes[storage]
        during.append(live + network.extra[number])
        for storage in network.touched[number]:
            left[storage] -= 1
            if not left[storage] and storage not in kept:
                live -= sizes[storage]
        between.append(live)
    return during, between


@dataclass
class _Budget:
    """What a search may use, and has used."""

    nodes: int
    deadline: float | None
    progress: Progress | None
    used: int = 0

    def report(self, bound: int, peak: int) -> None:
        """Tell how far the search is."""
        if self.progress is not None:
            self.progress(self.used, bound, peak)

    def stopped(self) -> str | None:
        """Say what is used up, if anything."""
        if self.used >= self.nodes:
            return f"the budget of {self.nodes:,} steps tried"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "the time limit"
        return None


SLICE = 2_500
"""Steps tried between two looks at the clock, and between the two directions of the exact search."""
NARROW, WIDEST = 8, 4096
"""States that a beam keeps of each number of executed steps, at first and at most."""
ROUNDS = 6
"""How often a beam asks for a lower peak, halving the distance to the lower bound."""
WINDOWS = (12, 24, 48)
"""Steps around the peak that are put in order anew, all else left where it is."""


class _Solver:
    """Takes the parts between cuts one after another, the highest first."""

    def __init__(self, network: _Network, budget: _Budget) -> None:
        self.network, self.budget = network, budget
        self.order = list(range(len(network.extra)))
        during, self.between = _simulate(network, self.order)
        self.start, self.during = during[0], during[1:]
        self.notes: list[str] = []
        self.bound = self.start
        self.choices = 0

    @property
    def peak(self) -> int:
        return max([self.start, *self.during])

    def solve(self) -> None:
        """Lower the peak part by part."""
        cuts = self.network.cuts()
        parts = []
        for first, last in pairwise(cuts):
            if last == first + 1:
                self.bound = max(self.bound, self.during[first])
            else:
                part = self.network.part(self.order, first, last, self.between[first])
                self.choices += part.choices
                self.bound = max(self.bound, part.lower)
                parts.append((first, last, part))
        parts.sort(key=lambda entry: (-max(self.during[entry[0] : entry[1]]), entry[0]))
        floor = self.bound
        for at, (first, last, part) in enumerate(parts):
            if max(self.during[first:last]) <= floor:
                break
            waiting = sum(max(self.during[begin:end]) > floor for begin, end, _ in parts[at:])
            spare = (self.budget.nodes - self.budget.used) // waiting
            self.bound = max(self.bound, self._solve_part(part, first, last, floor, self.budget.used + spare))
            floor = max(floor, *self.during[first:last])
        peak = self.peak
        for first, last, _ in parts:
            self._settle(first, last, peak)

    def _solve_part(self, part: Part, first: int, last: int, floor: int, limit: int) -> int:
        """Lower one part's peak to `floor`, or as far as possible; returns its lower bound."""
        begun, floor = self.budget.used, max(floor, part.lower)
        high = self._beams(part, first, last, floor, NARROW, limit=limit)
        searches = [Search(part, floor), Search(part.reversed(), floor)]
        lower, half = floor, begun + (limit - begun) // 2
        while high > lower and not self.budget.stopped() and self.budget.used < half:
            for search in searches:
                self.budget.used += search.run(SLICE, high, lower)
                lower = max(lower, min(search.bound, high))
                if search.order is not None:
                    self._replace(first, last, search.order)
                    high = lower = max(self.during[first:last])
                if search.ended:
                    break
            self.budget.report(max(self.bound, lower), self.peak)
        width = NARROW
        while high > lower and self.budget.used < limit and not self.budget.stopped() and width < WIDEST:
            width *= 4
            high = self._beams(part, first, last, lower, width, limit=limit)
            high = self._windows(first, last, lower, limit)
        if high > lower:
            reason = self.budget.stopped() or f"its share of {limit - begun:,} steps tried"
            self.notes.append(f"the {last - first} steps from place {first} on were not searched to the end: {reason}")
        return lower if lower > floor else part.lower

    def _beams(self, part: Part, first: int, last: int, floor: int, width: int, *, limit: int) -> int:
        """Ask beams in both directions for peaks down to `floor`; returns the lowest found."""
        high = max(self.during[first:last])
        bottom = target = floor
        for _ in range(ROUNDS):
            if high <= bottom:
                break
            for side in (part, part.reversed()):
                beam = Search(side, target, width)
                self._run(beam, high, limit)
                if beam.order is not None:
                    self._replace(first, last, beam.order)
                    high = max(self.during[first:last])
                    break
            else:
                bottom = target + 1
            target = (bottom + high) // 2
        return high

    def _run(self, search: Search, stop: int, limit: int) -> None:
        """Let a search run to its end, or as far as the budget goes."""
        while not search.ended and self.budget.used < limit and not self.budget.stopped():
            self.budget.used += search.run(min(SLICE, limit - self.budget.used), stop, 0)

    def _windows(self, first: int, last: int, floor: int, limit: int) -> int:
        """Order a few steps around the peak anew, as long as that lowers it; returns the peak."""
        size = 0
        while (high := max(self.during[first:last])) > floor and size < len(WINDOWS):
            middle = self.during.index(high, first, last)
            begin = max(first, middle - WINDOWS[size] // 2)
            end = min(last, begin + WINDOWS[size])
            part = self.network.part(self.order, begin, end, self.between[begin])
            search = Search(part, max(part.lower, floor))
            if search.bound < high:
                self._run(search, high, min(limit, self.budget.used + 4 * SLICE))
            if search.order is None:
                size += 1
            else:
                self._replace(begin, end, search.order)
        return high

    def _replace(self, first: int, last: int, names: Sequence[int]) -> None:
        """Put steps `[first, last)` in another order."""
        self.order[first:last] = names
        during, self.between = _simulate(self.network, self.order)
        self.during = during[1:]

    def _settle(self, first: int, last: int, peak: int) -> None:
        """Leave a part as it was if `peak` allows; else move its steps back towards their places."""
        found = self.order[first:last]
        self._replace(first, last, range(first, last))
        if self.peak <= peak:
            return
        network, done = self.network, sum(1 << name for name in self.order[:first])
        live, moved = self.between[first], True
        while moved:
            moved, before, now = False, done, live
            for at in range(len(found) - 1):
                early, late = found[at : at + 2]
                if early > late and not network.ancestors[early] >> late & 1:
                    need, between = network.run(late, before, now)
                    if max(need, network.run(early, before | 1 << late, between)[0]) <= peak:
                        found[at : at + 2] = [late, early]
                        moved = True
                now = network.run(found[at], before, now)[1]
                before |= 1 << found[at]
        self._replace(first, last, found)
