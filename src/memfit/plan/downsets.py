"""The search behind `memfit.plan.order`: sets of executed steps as bit masks, level by level.

A state is the set of steps executed so far; the bytes alive after it do not depend on their order.
`docs/operator-order.md` proves the three rules that keep the states few:

- *settle*: a step, or a chain of steps, that fits and leaves no more bytes alive than before is taken at once;
- *commit*: once a state is as low as the root or lower, the lowest one between the two takes the root's place;
- *twins*: of branches that can be exchanged, only one way to share out what is done is looked at.

The bound is the lowest peak not yet ruled out. A step that does not fit waits; when nothing else is left, the bound
rises to the smallest need that waits, which proves that no lower peak exists.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

Use = tuple[int, int, bool, bool]
"""A storage: bytes, mask of the steps that use it, whether it is there before them, whether it stays after them."""
Twins = tuple[int, tuple[int, ...]]
"""Branches that can be exchanged: how many steps each has, and the first step of each."""


def bits(mask: int) -> Iterator[int]:
    """Places of the ones in a mask, lowest first.

    >>> list(bits(0b1011))
    [0, 1, 3]
    """
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(frozen=True)
class Part:
    """Steps to be ordered on their own, numbered from 0, and the storages that they use."""

    names: tuple[int, ...]
    """What the caller calls each step."""
    ancestors: tuple[int, ...]
    descendants: tuple[int, ...]
    """By step: mask of the steps that come before it, or after it, in every order."""
    uses: tuple[Use, ...]
    extra: tuple[int, ...]
    live: int
    """Bytes alive before the first step."""
    twins: tuple[Twins, ...] = ()
    flipped: bool = False
    """Whether time runs backwards."""

    @classmethod
    def make(
        cls, names: Sequence[int], ancestors: Sequence[int], uses: Sequence[Use], extra: Sequence[int], live: int
    ) -> Part:
        """Number the steps so that the steps of each twin stand side by side."""
        plain = cls(tuple(names), tuple(ancestors), _turned(ancestors), tuple(uses), tuple(extra), live)
        classes = _twins(plain)
        if not classes:
            return plain
        first = list(range(len(names)))
        for group in (group for members in classes for group in members):
            for step in group:
                first[step] = group[0]
        order = sorted(range(len(names)), key=lambda step: (first[step], step))
        place = {step: at for at, step in enumerate(order)}

        def moved(mask: int) -> int:
            return sum(1 << place[step] for step in bits(mask))

        return cls(
            names=tuple(names[step] for step in order),
            ancestors=tuple(moved(ancestors[step]) for step in order),
            descendants=tuple(moved(plain.descendants[step]) for step in order),
            uses=tuple((size, moved(users), born, stays) for size, users, born, stays in uses),
            extra=tuple(extra[step] for step in order),
            live=live,
            twins=tuple((len(members[0]), tuple(place[group[0]] for group in members)) for members in classes),
        )

    def reversed(self) -> Part:
        """Let time run backwards: what stays is there from the start, and the last step comes first."""
        change = sum(size * (stays - born) for size, _, born, stays in self.uses)
        return replace(
            self,
            ancestors=self.descendants,
            descendants=self.ancestors,
            uses=tuple((size, users, stays, born) for size, users, born, stays in self.uses),
            live=self.live + change,
            flipped=not self.flipped,
        )

    def alive(self, done: int) -> int:
        """Bytes alive after the steps in the mask `done`."""
        live = self.live
        for size, users, born, stays in self.uses:
            live += size * (((born or users & done) and (stays or users & ~done)) != 0) - size * born
        return live

    @property
    def lower(self) -> int:
        """Bytes that the neediest step cannot do without, in any order."""
        passing = self.live - sum(size for size, _, born, _ in self.uses if born)
        most = 0
        for step, (before, after) in enumerate(zip(self.ancestors, self.descendants, strict=True)):
            need = passing + self.extra[step]
            for size, users, born, stays in self.uses:
                if users >> step & 1 or ((born or users & before) and (stays or users & after)):
                    need += size
            most = max(most, need)
        return most

    @property
    def choices(self) -> int:
        """Chains of steps."""
        return sum(follower < 0 for follower in self.chain)

    @cached_property
    def above(self) -> tuple[int, ...]:
        """By step: mask of its direct predecessors."""
        return tuple(_direct(before, self.ancestors) for before in self.ancestors)

    @cached_property
    def below(self) -> tuple[int, ...]:
        """By step: mask of its direct successors."""
        return _turned(self.above)

    @cached_property
    def chain(self) -> tuple[int, ...]:
        """By step: the only successor, if the step is its only predecessor; else -1."""
        ends = [after.bit_length() - 1 for after in self.below]
        return tuple(
            end if end >= 0 and after == 1 << end and self.above[end] == 1 << step else -1
            for step, (after, end) in enumerate(zip(self.below, ends, strict=True))
        )


def _turned(masks: Sequence[int]) -> tuple[int, ...]:
    """Turn predecessors into successors."""
    turned = [0] * len(masks)
    for step, mask in enumerate(masks):
        for other in bits(mask):
            turned[other] |= 1 << step
    return tuple(turned)


def _direct(mask: int, ancestors: Sequence[int]) -> int:
    """Leave out of a step's ancestors those that are ancestors of others."""
    rest, implied = mask, 0
    while rest:
        highest = rest.bit_length() - 1
        implied |= ancestors[highest]
        rest &= ~(implied | 1 << highest)
    return mask & ~implied


def _twins(part: Part) -> list[list[list[int]]]:
    """Find branches that can be exchanged: whole components, and chains within the others."""
    count = len(part.names)
    groups: list[list[int]] = []
    seen = 0
    for step in range(count):
        if not seen >> step & 1:
            joined, border = 0, 1 << step
            while border:
                joined |= border
                border = 0
                for other in bits(joined):
                    border |= part.ancestors[other] | part.descendants[other]
                border &= ~joined
            seen |= joined
            groups.append(list(bits(joined)))
    found = _classes(part, groups) if len(groups) > 1 else []
    taken = {step for members in found for group in members for step in group}
    chain = part.chain
    heads = [step for step in range(count) if step not in taken and step not in chain]
    chains = []
    for head in heads:
        group = [head]
        while chain[group[-1]] >= 0:
            group.append(chain[group[-1]])
        chains.append(group)
    return found + _classes(part, chains)


def _classes(part: Part, groups: list[list[int]]) -> list[list[list[int]]]:
    """Collect the groups that can be exchanged with each other, and leave out those that stand alone."""
    classes: dict[tuple[object, ...], list[list[list[int]]]] = {}
    for group in groups:
        inside = sum(1 << step for step in group)
        outside = [0, 0]
        for step in group:
            outside[0] |= part.above[step] & ~inside
            outside[1] |= part.below[step] & ~inside
        alike = classes.setdefault((len(group), tuple(part.extra[step] for step in group), *outside), [])
        for members in alike:
            if _exchangeable(part, members[0], group):
                members.append(group)
                break
        else:
            alike.append([group])
    return [members for alike in classes.values() for members in alike if len(members) > 1]


def _exchangeable(part: Part, left: list[int], right: list[int]) -> bool:
    """Whether the problem is the same after each step of one group takes the place of the other's."""
    pairs = list(zip(left, right, strict=True))
    either = sum(1 << step for step in left + right)

    def swapped(mask: int) -> int:
        if not mask & either:
            return mask
        result = mask & ~either
        for one, other in pairs:
            result |= (mask >> one & 1) << other | (mask >> other & 1) << one
        return result

    for one, other in pairs:
        if swapped(part.ancestors[one]) != part.ancestors[other]:
            return False
        if swapped(part.descendants[one]) != part.descendants[other]:
            return False
    uses = Counter(use for use in part.uses if use[1] & either)
    return uses == Counter((size, swapped(users), born, stays) for size, users, born, stays in uses.elements())


class Search:
    """One search over a part's states; with a `width`, a beam that keeps so many of each number of steps.

    Args:
        part: the steps.
        bound: peak to begin with, in bytes.
        width: None for the exact search.
    """

    def __init__(self, part: Part, bound: int, width: int | None = None) -> None:
        self.part, self.bound, self.width = part, bound, width
        self.passed = bound
        """The bound before it last rose."""
        self.tried = 0
        """Steps that were tried from some state, to run or to see whether they fall: what a search costs."""
        self.order: list[int] | None = None
        """The steps' names, once an order with a peak of at most `bound` is found."""
        self._compile()
        self.full = (1 << len(part.names)) - 1
        self.ended = False
        """Whether there is nothing more to look at."""
        self.committed: list[tuple[int, tuple[int, ...]]] = []
        self.seen: dict[int, tuple[int, tuple[int, ...], int, int]] = {}
        """By state: the state it came from, the steps between, the bytes alive, the steps that are ready."""
        self.levels: dict[int, list[int]] = {}
        self.counts: list[int] = []
        self.open: list[int] = []
        self.blocked: list[tuple[int, int, int]] = []
        """Need, state and step of what did not fit."""
        self._commit(0, ())

    def _compile(self) -> None:
        """What each step adds and frees: always, or only if none of the other users is done, or all are."""
        part = self.part
        count = len(part.names)
        self.chain, self.after, self.ancestors = part.chain, part.below, part.ancestors
        self.grow, self.free = list(part.extra), [0] * count
        self.keep = [0] * count
        shared = [0] * count
        births: list[dict[int, int]] = [{} for _ in range(count)]
        deaths: list[dict[int, int]] = [{} for _ in range(count)]
        for size, users, born, stays in part.uses:
            for step in bits(users):
                others = users & ~(1 << step)
                if not born and not others & part.ancestors[step]:
                    if others & ~part.descendants[step]:
                        births[step][others] = births[step].get(others, 0) + size
                        shared[step] |= others
                    else:
                        self.grow[step] += size
                        self.keep[step] += size
                if not stays and not others & part.descendants[step]:
                    if others & ~part.ancestors[step]:
                        deaths[step][others] = deaths[step].get(others, 0) + size
                        shared[step] |= others
                    else:
                        self.keep[step] -= size
        self.births = [tuple(entry.items()) for entry in births]
        self.deaths = [tuple(entry.items()) for entry in deaths]
        self.near = [0] * count
        """By step: the steps whose chains need less, or free more, once it is done."""
        for head in range(count):
            step, others = head, 0
            while step >= 0:
                others |= shared[step]
                step = self.chain[step]
            for other in bits(others):
                self.near[other] |= 1 << head

    def run(self, nodes: int, stop: int, bound: int) -> int:
        """Try about so many steps from the states that are open; returns how many it was.

        Args:
            nodes: steps to try.
            stop: the search ends once the bound reaches it.
            bound: lower peaks are ruled out already; heeded when the bound rises next.
        """
        begun = self.tried
        while self.tried < begun + nodes and not self.ended:
            if self.open or self._next_level():
                done = self.open.pop()
                self.tried += 1  # a state may have no step left to try
                if done == self.full:
                    order = [self.part.names[step] for step in self._replay(self.committed + self._trace(done))]
                    self.order = order[::-1] if self.part.flipped else order
                    self.ended = True
                else:
                    for step in bits(self.seen[done][3]):
                        self._step(done, step)
            elif self.blocked:
                self.passed, self.bound = self.bound, max(bound, self.blocked[0][0])
                self.ended = self.bound >= stop
                while self.blocked and self.blocked[0][0] <= self.bound and not self.ended:
                    _, done, step = heapq.heappop(self.blocked)
                    self._step(done, step)
            else:
                self.ended = True
        return self.tried - begun

    def _next_level(self) -> bool:
        """Open the states with the fewest steps done; commit to one that leaves no more alive than the root."""
        if not self.counts:
            return False
        states = self.levels.pop(heapq.heappop(self.counts))
        seen = self.seen
        best = min(states, key=lambda done: seen[done][2])
        if seen[best][2] <= self.live and best != self.root:
            steps = self._replay(self._trace(best))
            lowest = self._lowest(sum(1 << step for step in steps))
            self._commit(self.root, tuple(step for step in steps if lowest >> step & 1))
            return self._next_level()
        if self.width and len(states) > self.width:
            states = sorted(states, key=lambda done: seen[done][2])[: self.width]
        self.open = states[::-1]
        return True

    def _commit(self, root: int, steps: tuple[int, ...]) -> None:
        """Begin anew from the state that these steps lead to, and forget all others."""
        for states in (self.seen, self.levels, self.counts, self.blocked):
            states.clear()
        done = root | sum(1 << step for step in steps)
        ready = sum(1 << step for step, before in enumerate(self.ancestors) if not (before & ~done or done >> step & 1))
        self._visit(-1, done, self.part.alive(done), ready, ready, *steps)
        ((self.root, (_, steps, self.live, ready)),) = self.seen.items()
        self.committed.append((root, steps))
        self.seen[self.root] = (-1, (), self.live, ready)

    def _lowest(self, inside: int) -> int:
        """Of the steps `inside`, which to run after the root for the fewest bytes alive; all, if nothing is lower.

        This is a minimum cut: what is to be run is on the side of the source, and a storage is an edge that is cut when
        some of its users are to be run, or were, and some are not.
        """
        part, root, count = self.part, self.root, len(self.part.names)
        source, sink, endless = -1, -2, 1 << 62
        spare: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for number, (size, users, born, stays) in enumerate(part.uses):
            head = source if born or users & root else count + 2 * number
            tail = sink if stays or users & ~(root | inside) else count + 2 * number + 1
            if users & inside and (head, tail) != (source, sink):
                spare[head][tail] += size
                for step in bits(users & inside):
                    spare[step][head] += endless if head != source else 0
                    spare[tail][step] += endless if tail != sink else 0
        for step in bits(inside):
            for other in bits(part.above[step] & inside):
                spare[step][other] += endless
        while True:
            came, border = {source: source}, [source]
            for node in border:
                for other, room in spare[node].items():
                    if room > 0 and other not in came:
                        came[other] = node
                        border.append(other)
            if sink not in came:
                break
            path = [sink]
            while path[-1] != source:
                path.append(came[path[-1]])
            edges = list(pairwise(path[::-1]))
            flow = min(spare[one][other] for one, other in edges)
            for one, other in edges:
                spare[one][other] -= flow
                spare[other][one] += flow
        lowest = sum(1 << node for node in came if 0 <= node < count)
        return lowest if part.alive(root | lowest) < part.alive(root | inside) else inside

    def _step(self, done: int, step: int) -> None:
        """Run a step, or let it wait."""
        self.tried += 1
        _, _, before, ready = self.seen[done]
        grow = 0
        for others, size in self.births[step]:
            if not others & done:
                grow += size
        need = before + grow + self.grow[step]
        if need > self.bound:
            if not self.width:
                heapq.heappush(self.blocked, (need, done, step))
            return
        now = done | 1 << step
        live = before + grow + self.keep[step]
        for others, size in self.deaths[step]:
            if not others & ~now:
                live -= size
        fresh = 0
        for other in bits(self.after[step]):
            if not self.ancestors[other] & ~now:
                fresh |= 1 << other
        ready = ready & ~(1 << step) | fresh
        # What could not fall before can now only if this step made room, or shares storages with it.
        check = ready if live < before or need > self.passed else ready & (fresh | self.near[step])
        self._visit(done, now, live, ready, check, step)

    def _visit(self, parent: int, done: int, live: int, ready: int, check: int, *steps: int) -> None:
        """Settle a state, where only the steps in `check` may fall, and note it if it is new."""
        ancestors, after = self.ancestors, self.after
        while check:
            low = check & -check
            check ^= low
            found = self._fall(done, live, low.bit_length() - 1)
            if found is None:
                continue
            now, live, taken = found
            steps += tuple(taken)
            ready &= ~now
            for step in taken:
                for other in bits(after[step] & ~now):
                    if not ancestors[other] & ~now:
                        ready |= 1 << other
            done, check = now, ready
        if self.part.twins:
            done, ready, _ = self._canonical(done, ready)
        if done in self.seen:
            return
        self.seen[done] = (parent, steps, live, ready)
        count = done.bit_count()
        if count not in self.levels:
            self.levels[count] = []
            heapq.heappush(self.counts, count)
        self.levels[count].append(done)

    def _fall(self, done: int, live: int, step: int) -> tuple[int, int, list[int]] | None:
        """Follow a chain to the first place with no more bytes alive than now, if it fits."""
        now, level, taken = done, live, []
        self.tried += 1
        while step >= 0:
            grow = 0
            for others, size in self.births[step]:
                if not others & now:
                    grow += size
            if level + grow + self.grow[step] > self.bound:
                return None
            now |= 1 << step
            level += grow + self.keep[step]
            for others, size in self.deaths[step]:
                if not others & ~now:
                    level -= size
            taken.append(step)
            if level <= live:
                return now, level, taken
            step = self.chain[step]
        return None

    def _canonical(self, done: int, ready: int) -> tuple[int, int, list[tuple[int, tuple[int, ...], list[int]]]]:
        """Give the twins that are furthest the first places; returns which twin each place now holds."""
        swaps = []
        for width, places in self.part.twins:
            mask = (1 << width) - 1
            states = [done >> place & mask for place in places]
            order = sorted(range(len(places)), key=lambda twin: -states[twin])
            if order != list(range(len(places))):
                waiting = [ready >> place & mask for place in places]
                for place, twin in zip(places, order, strict=True):
                    done = done & ~(mask << place) | states[twin] << place
                    ready = ready & ~(mask << place) | waiting[twin] << place
                swaps.append((width, places, order))
        return done, ready, swaps

    def _trace(self, done: int) -> list[tuple[int, tuple[int, ...]]]:
        """States from the root to this one, each with the steps that follow it."""
        path = []
        while True:
            parent, steps, _, _ = self.seen[done]
            if parent < 0:
                break
            path.append((parent, steps))
            done = parent
        return path[::-1]

    def _replay(self, path: list[tuple[int, tuple[int, ...]]]) -> list[int]:
        """Run a path again, with the twins that really take each place."""
        real, order = list(range(len(self.part.names))), []
        for state, steps in path:
            order += [real[step] for step in steps]
            before = list(real)
            for width, places, twins in self._canonical(state | sum(1 << step for step in steps), 0)[2]:
                for place, twin in zip(places, twins, strict=True):
                    real[place : place + width] = before[places[twin] : places[twin] + width]
        return order
