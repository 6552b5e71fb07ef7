"""Which nodes are computed together, and in how many patches: a dynamic program for each height of the head.

Repeating an operator costs persistent bytes, and whole tensors cost bytes of the head; what counts is their sum. So a
height is given, each unit of nodes takes the fewest patches that stay within it, as large as they can be, and the
cheapest sequence of units is found exactly. Heights are tried from below until what they save no longer pays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

from memfit.memory.tflm.builds import ALIGNMENT, EVAL_TENSOR, NODE, Build, align_up, build_named
from memfit.memory.tflm.calls import Call, Keep
from memfit.memory.tflm.operators import KERNELS
from memfit.stream.emit.draft import Draft, NewOperator
from memfit.stream.emit.lower import CONCATENATED, in_place, lower_unit
from memfit.stream.emit.nodes import Network, Node
from memfit.stream.emit.patch import CannotPatch, Patch, Unit, overwritten, pairs
from memfit.stream.emit.place import found_uses

LONGEST = 14
"""Nodes of a unit at most."""

REACH = 4
"""Rows from an image's edge within which a kernel's band may look different from one in the middle."""


class Cost(NamedTuple):
    """What one patch takes."""

    head_bytes: dict[tuple[bool, bool], int]
    """Most bytes in use at one time, besides values before and after the unit: by whether the patch's own rows of what
    is before it are still read, and whether its rows of the output are there."""
    garbage_bytes: int
    """Beyond the patch's rows of the output."""
    tail_bytes: int
    shared_bytes: int
    """Of the tail besides, once for all patches: constants that were cut."""
    macs: int
    low: int
    """First row of the output for which this was worked out."""
    needs: tuple[tuple[int, int], ...]
    """Rows of each value before the unit, `[first, end)`."""


class Tails:
    """Persistent bytes of operators, worked out once for each kind, template and number of channels."""

    def __init__(self, network: Network, build: Build) -> None:
        self.network, self.build = network, build
        self.known: dict[tuple[str, int | None, int], int] = {}
        self.eval_tensor = build.size(EVAL_TENSOR)
        self.scratches: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}
        """As in a draft, for all."""

    def of(self, draft: Draft, operator: NewOperator) -> int:
        """Give those of one operator of a draft, without its tensors."""
        made = draft.tensors[operator.outputs[0]].shape
        key = operator.name, operator.template, made[-1] if made else 1
        if key not in self.known:
            self.known[key] = self.own(operator.name) + self._kept(operator, made)
        return self.known[key]

    def own(self, name: str) -> int:
        """Give those of any operator of a kind."""
        kernel, size = KERNELS.get(name), self.build.size(NODE)
        if kernel is not None and kernel.parameters is not None:
            size += self.build.size(kernel.parameters)
        if kernel is not None and kernel.data is not None:
            size += align_up(self.build.size(kernel.data), ALIGNMENT)
        return size

    def _kept(self, operator: NewOperator, made: tuple[int, ...]) -> int:
        """Give what a kernel keeps: per-channel buffers of a group of channels are smaller."""
        if operator.template is None or operator.name not in KERNELS:
            return 0
        call = Call(self.network.model, 0, self.network.model.main.operators[operator.template], self.build)
        kept = [event.nbytes for event in KERNELS[operator.name].prepare(call) if isinstance(event, Keep)]
        whole = call.output().shape
        if len(made) == 4 and made[3] < whole[3]:
            kept = [nbytes * made[3] // whole[3] for nbytes in kept]
        return sum(align_up(nbytes, ALIGNMENT) for nbytes in kept)


class Choice(NamedTuple):
    """A way to one cut."""

    tail_bytes: int
    macs: int
    units: tuple[Unit, ...]
    upper: bool
    """Whether the network's inputs lie at the upper end of the arena."""
    ends: dict[int, bool]
    """By value that crosses the cut: whether it lies at the upper end."""
    base: bool
    """The same of the largest value across the last cut where patches end, or which a single value crosses."""


@dataclass
class Stretch:
    """Nodes `[begin, end)` that may be computed together, and what patches of them take."""

    network: Network
    begin: int
    end: int
    inputs: tuple[int, ...]
    over: int | None
    """Input over which the output is written, row by row."""
    dying: tuple[int, ...]
    """Other inputs that nobody reads after it."""
    standing_bytes: int
    """Whole values that live across it, inputs that live on, and the one that is written over."""
    tails: Tails
    scratch: bool
    """Whether the runtime places scratch buffers while a node runs."""
    groups: int = 1
    least_tail: int = 0
    """Tail bytes that its patches take at least."""
    costs: dict[tuple[int, int, int, int, bool], Cost | None] = field(default_factory=dict)

    @cached_property
    def edge(self) -> int:
        """Rows from the output's edge at which a patch may look different from one in the middle."""
        for row in range(self.network.images[self.output].height):
            lows = {self.output: row}
            for node in reversed(self.network.nodes[self.begin : self.end]):
                if node.rows is not None and node.output in lows:
                    low = node.rows.first(lows[node.output])
                    lows.update((i, min(low, lows.get(i, low))) for i in node.inputs)
            if min(lows.values()) >= REACH:
                return row
        return self.network.images[self.output].height

    @cached_property
    def period(self) -> int:
        """After so many rows of the output, addresses are aligned and rows grow as they did."""
        images, nodes = self.network.images, self.network.nodes[self.begin : self.end]
        rows = images[self.output].height
        aligned = [images[self.output].row_bytes]
        aligned += [images[i].row_bytes * images[i].height // rows for i in self.inputs]
        grown = math.prod(node.rows.stride for node in nodes if node.rows is not None and node.rows.grows)
        return math.lcm(ALIGNMENT // math.gcd(ALIGNMENT, *aligned), grown)

    @property
    def output(self) -> int:
        """Value made."""
        return self.network.nodes[self.end - 1].output

    def cost(self, low: int, high: int, *, upward: bool) -> Cost | None:
        """Give what rows `[low, high)` of the output take; None if no operators compute them."""
        height = self.network.images[self.output].height
        entire = (low, high) == (0, height)
        key = (
            high - low,
            -1 if entire else min(low, self.edge),
            min(height - high, self.edge),
            low % self.period,
            upward,
        )
        if key not in self.costs:
            self.costs[key] = self._cost(low, high, upward=upward, entire=entire)
        return self.costs[key]

    def _cost(self, low: int, high: int, *, upward: bool, entire: bool) -> Cost | None:
        draft = Draft(self.network.model, scratches=self.tails.scratches)
        unit = Unit(self.begin, self.end, (low, high), upward, self.groups)
        try:
            patch = Patch(draft, self.network, unit, low, high, whole=entire)
            patch.write()
        except CannotPatch:
            return None
        head, garbage = self._head(draft, low, high)
        tail = sum(self.tails.of(draft, operator) for operator in draft.operators)
        added = sum(t.template is None or not draft.is_constant(i) for i, t in enumerate(draft.tensors))
        tail += self.tails.eval_tensor * added
        shared = self.tails.eval_tensor * len(draft.parts)
        macs = macs_of(self.network, draft)
        needs = tuple((patch.needs[i].start, patch.needs[i].end) for i in self.inputs)
        return Cost(head, garbage, tail, shared, macs, low, needs)

    def _head(self, draft: Draft, low: int, high: int) -> tuple[dict[tuple[bool, bool], int], int]:
        """Give `head_bytes` and `garbage_bytes` of a patch that was written by itself."""
        output, before = draft.whole[self.output], {draft.whole[i] for i in self.inputs}
        row_bytes = self.network.images[self.output].row_bytes
        uses = found_uses(draft)
        count = len(draft.operators) + 2
        read = max(
            (
                time + 1
                for time, operator in enumerate(draft.operators, 1)
                if any(i >= 0 and draft.root(i)[0] in before for i in operator.inputs)
            ),
            default=0,
        )
        made, garbage = count, 0
        own = []
        for root, (size, spans) in uses.items():
            first, end = min(use.first for use in spans), max(use.end for use in spans)
            if root in before:
                continue
            if root == output and self.over is not None:
                continue  # it takes no bytes of its own
            if root == output:
                made = first
                garbage = max(use.high for use in spans) - high * row_bytes
                garbage = max(garbage, low * row_bytes - min(use.low for use in spans), 0)
            else:
                own.append((align_up(size, ALIGNMENT), first, end))
        for time, operator in enumerate(draft.operators, 1):
            own += [(align_up(size, ALIGNMENT), time, time + 1) for size in draft.scratch(operator)]
        found = dict.fromkeys(((False, False), (False, True), (True, False), (True, True)), 0)
        changes = [0] * (count + 1)
        for size, first, end in own:
            changes[first] += size
            changes[end] -= size
        for time, nbytes in enumerate(accumulate(changes[:count])):
            key = time < read, time >= made
            found[key] = max(found[key], nbytes)
        for size, first, end in own:  # it lies between what is read and what is made, if it lives with both
            key = first < read, end > made
            found[key] = max(found[key], size)
        return found, garbage


def macs_of(network: Network, draft: Draft) -> int:
    """Count the multiply-accumulates of a draft's operators."""
    nodes = {node.operators[-1]: node for node in network.nodes}
    total = 0
    for operator in draft.operators:
        node = nodes.get(operator.template) if operator.template is not None else None
        if node is not None and node.macs:
            whole = math.prod(network.model.main.tensors[node.output].shape)
            total += node.macs * math.prod(draft.tensors[operator.outputs[0]].shape) // whole
    return total


def _cost(choice: Choice) -> tuple[int, int]:
    return choice.tail_bytes, choice.macs


GROUPS = (1, 2, 3, 4, 6, 8)
"""Groups of channels that are tried."""


class Search:
    """All stretches of a network."""

    def __init__(self, network: Network, build: str = "wheel") -> None:
        self.network = network
        self.tails = Tails(network, build_named(build))
        self.count = len(network.nodes)
        macs = [node.macs for node in network.nodes]
        self.macs_after = [*accumulate(reversed(macs), initial=0)][::-1]
        """By cut, the multiply-accumulates of all nodes after it."""
        self.live = [network.live(position) for position in range(self.count + 1)]
        self.scratch = [self._scratch(node) for node in network.nodes]
        self.plain_bytes = [self._plain(node) for node in network.nodes]
        self.stretches = list(self._stretches())
        self.by_end: dict[int, list[Stretch]] = {}
        for stretch in self.stretches:
            self.by_end.setdefault(stretch.end, []).append(stretch)
        tails = [self._tails(node) for node in network.nodes]
        self.alone = [sum(sizes) for sizes in tails]
        """By node, its tail bytes when it runs by itself, without its constants' tensors."""
        least = [sizes[-1] for sizes in tails]  # without a PAD that is part of it: no patch takes less
        self.least_after = [*accumulate(reversed(least), initial=0)][::-1]
        """By cut, the least tail bytes of all nodes after it."""
        for stretch in self.stretches:
            inside = network.nodes[stretch.begin : stretch.end]
            stretch.least_tail = sum(least[stretch.begin : stretch.end])
            if all(len(node.operators) == 1 for node in inside):  # what does not fit whole takes two patches
                stretch.least_tail += stretch.least_tail + self.tails.own("CONCATENATION")

    def _plain(self, node: Node) -> int:
        """Give the bytes in use while a node runs with whole tensors, as the model has it."""
        nbytes, live = self.network.nbytes, set(self.live[node.index]) | set(node.inputs)
        if len(node.operators) > 1:
            return 1 << 62  # its padding is written in another way
        made = 0 if in_place(self.network, node) is not None else sum(nbytes[o] for o in node.outputs)
        return sum(nbytes[v] for v in live) + made + self.scratch[node.index]

    def _scratch(self, node: Node) -> int:
        """Give the bytes of a node's scratch buffers when it runs by itself."""
        draft = Draft(self.network.model)
        lower_unit(draft, self.network, Unit(node.index, node.index + 1, ()))
        return sum(align_up(size, ALIGNMENT) for size in draft.scratch(draft.operators[-1]))

    def _stretches(self) -> Iterator[Stretch]:
        network = self.network
        for begin in range(self.count):
            for end in range(begin + 1, min(begin + LONGEST, self.count) + 1):
                node = network.nodes[end - 1]
                if node.kind is None:
                    break
                crossing = [v for v in self.live[end] if network.maker[v] >= begin]
                if crossing != [node.output]:
                    continue
                inputs = tuple(
                    dict.fromkeys(i for n in network.nodes[begin:end] for i in n.inputs if network.maker[i] < begin)
                )
                over = overwritten(network, begin, end)
                dying = tuple(i for i in inputs if network.last[i] < end and i != over)
                standing = [v for v in self.live[begin] if v not in dying]
                waiting = sum(network.nbytes[v] for v in standing)
                scratch = any(self.scratch[begin:end])
                wide = [network.images[first.output].channels for first, _ in pairs(network, network.nodes[begin:end])]
                for groups in [count for count in GROUPS if count <= min(wide, default=1)]:
                    yield Stretch(network, begin, end, inputs, over, dying, waiting, self.tails, scratch, groups)

    def best(
        self,
        height: int,
        margins: Mapping[Unit, int] | None = None,
        most_macs: int | None = None,
        most_tail: int | None = None,
    ) -> Choice | None:
        """Find the units with the smallest tail of all whose tensors in use never need more than `height` bytes.

        None if there are none.

        Args:
            height: of the head, in bytes.
            margins: bytes that a unit must stay below it, by the unit without its cuts.
            most_macs: multiply-accumulates that the units may take; None for any number.
            most_tail: bytes that their tails may take; None for any number.
        """
        margins = margins or {}
        large = [nbytes > height for nbytes in self.plain_bytes]
        # By cut: the ways to it that may still be the best, by where what was made last lies.
        found: list[dict[bool, list[Choice]]] = [{} for _ in range(self.count + 1)]
        for upper in (False, True):
            found[0][upper] = [Choice(0, 0, (), upper, dict.fromkeys(self.live[0], upper), upper)]
        for end in range(1, self.count + 1):
            ways: dict[bool, list[Choice]] = {False: [], True: []}
            node = self.network.nodes[end - 1]
            if not large[end - 1]:
                for before in chain.from_iterable(found[end - 1].values()):
                    for upper in self._sides_alone(node, before):
                        unit = Unit(end - 1, end, (), upper)
                        ways[upper].append(self._then(before, unit, self.alone[end - 1], node.macs))
            stretches = [stretch for stretch in self.by_end.get(end, ()) if any(large[stretch.begin : end])]
            for upper in (False, True):
                ways[upper] = self._pruned(ways[upper], end, most_macs)
                tries = [
                    (min(before.tail_bytes for before in befores), stretch, befores)
                    for stretch in stretches
                    if (befores := self._befores(stretch, found[stretch.begin], upper=upper))
                ]
                for tail, stretch, befores in sorted(tries, key=lambda t: t[0] + t[1].least_tail):
                    spare = None if most_tail is None else most_tail - self.least_after[end] - tail
                    if ways[upper] and most_macs is None:
                        beaten = ways[upper][0].tail_bytes - tail
                        spare = beaten if spare is None else min(spare, beaten)
                    margin = margins.get(Unit(stretch.begin, end, (), upper, stretch.groups), 0)
                    patched = self._patched(stretch, height - margin, spare, upward=upper)
                    if patched is not None:
                        ways[upper] += [self._then(before, *patched) for before in befores]
                        ways[upper] = self._pruned(ways[upper], end, most_macs)
            found[end] = ways
        return min(chain.from_iterable(found[self.count].values()), key=_cost, default=None)

    def _befores(self, stretch: Stretch, ways: Mapping[bool, list[Choice]], *, upper: bool) -> list[Choice]:
        """Give the ways to a stretch after which its output may lie at an end of the arena."""
        return [way for way in chain.from_iterable(ways.values()) if upper in self._sides(stretch, way)]

    def _then(self, before: Choice, unit: Unit, tail_bytes: int, macs: int) -> Choice:
        """Go on with another unit."""
        live, nbytes = self.live[unit.end], self.network.nbytes
        ends = {v: before.ends.get(v, unit.upward) for v in live}
        base = before.base
        if live and (unit.cuts or len(live) == 1):
            base = ends[max(live, key=nbytes.__getitem__)]
        units = (*before.units, unit)
        return Choice(before.tail_bytes + tail_bytes, before.macs + macs, units, before.upper, ends, base)

    def _pruned(self, ways: list[Choice], end: int, most_macs: int | None) -> list[Choice]:
        """Leave the ways that no other beats: in the tail, or in tail or work where that is bounded."""
        if most_macs is None or len(ways) < 2:
            ways = [min(ways, key=_cost)] if ways else []
        found: list[Choice] = []
        for way in sorted(ways, key=_cost):
            if most_macs is not None and way.macs + self.macs_after[end] > most_macs:
                continue
            if not found or way.macs < found[-1].macs:
                found.append(way)
        return found

    def _sides_alone(self, node: Node, before: Choice) -> tuple[bool, ...]:
        """Tell at which end of the arena a node's output may lie when it runs by itself."""
        over = in_place(self.network, node)
        return (before.ends[over],) if over is not None else (not before.base,)

    def _sides(self, stretch: Stretch, before: Choice) -> tuple[bool, ...]:
        """Tell at which end a unit's output may lie: not where most of what dies in it does."""
        if stretch.over is not None:
            return (before.ends[stretch.over],)
        if not stretch.dying:
            return (False, True)
        return (not before.ends[max(stretch.dying, key=self.network.nbytes.__getitem__)],)

    def _tails(self, node: Node) -> list[int]:
        """Give the tail bytes of a node's operators, with their outputs."""
        draft = Draft(self.network.model)
        lower_unit(draft, self.network, Unit(node.index, node.index + 1, ()))
        return [self.tails.of(draft, o) + self.tails.eval_tensor * len(o.outputs) for o in draft.operators]

    def _patched(
        self, stretch: Stretch, height: int, spare: int | None, *, upward: bool
    ) -> tuple[Unit, int, int] | None:
        """Cut a stretch's output into as few patches as fit; None if its tail is above what is spare."""
        rows, nbytes = self.network.images[stretch.output].height, self.network.nbytes
        made = 0 if stretch.over is not None else nbytes[stretch.output]
        read = sum(nbytes[i] for i in stretch.dying)
        if stretch.standing_bytes + max(made, read) > height:
            return None
        if spare is not None and stretch.least_tail > spare:
            return None
        sizes: list[int] = []
        tail = macs = shared = 0
        for size, cost in self._largest(stretch, height, upward=upward):
            sizes.append(size)
            tail, macs, shared = tail + cost.tail_bytes, macs + cost.macs, max(shared, cost.shared_bytes)
            if spare is not None and tail + shared > spare:
                return None
        if sum(sizes) < rows:
            return None
        if len(sizes) > 1:
            joins = 1 + max(0, len(sizes) - 2) // (CONCATENATED - 1)
            tail += joins * self.tails.own("CONCATENATION")
        cuts = [0, *accumulate(reversed(sizes) if upward else sizes)]
        return Unit(stretch.begin, stretch.end, tuple(cuts), upward, stretch.groups), tail + shared, macs

    def _largest(self, stretch: Stretch, height: int, *, upward: bool) -> Iterator[tuple[int, Cost]]:
        """Make one patch after the other as high as it can be, until all rows are done or no row fits."""
        rows = self.network.images[stretch.output].height
        done, size = 0, rows
        if self._fits(stretch, height, 0, 1, upward=upward) is None:  # most that fail do so here, for every height
            return
        while done < rows:
            best: tuple[int, Cost] | None = None
            low, high = 1, rows - done
            middle, steps = min(size, high), 0
            while low <= high:
                cost = self._fits(stretch, height, done, middle, upward=upward)
                if cost is not None:
                    best, low = (middle, cost), middle + 1
                else:
                    high = middle - 1
                steps += 1  # as high as the one before, or a row more or less, is likely
                middle = (low + high) // 2 if steps > 1 else low if cost is not None else high
            if best is None:
                return
            yield best
            size = best[0]
            done += size

    def _fits(self, stretch: Stretch, height: int, done: int, count: int, *, upward: bool) -> Cost | None:
        """Give the cost of the next rows if they fit."""
        network, output = self.network, stretch.output
        rows = network.images[output].height
        span = (rows - done - count, rows - done) if upward else (done, done + count)
        cost = stretch.cost(*span, upward=upward)
        if cost is None:
            return None
        reading = self._waiting(stretch, cost, span, upward=upward)
        afterwards = 0.0
        if done + count < rows:
            following = (span[0] - 1, span[0]) if upward else (span[1], span[1] + 1)
            after = stretch.cost(*following, upward=upward)
            if after is None:
                return None
            afterwards = self._waiting(stretch, after, following, upward=upward)
        row_bytes = network.nbytes[output] / rows if stretch.over is None else 0.0
        for (reads, writes), own in cost.head_bytes.items():
            total = stretch.standing_bytes + own + (reading if reads else afterwards)
            total += row_bytes * (done + count) + cost.garbage_bytes if writes else row_bytes * done
            if total > height:
                return None
        return cost

    def _waiting(self, stretch: Stretch, cost: Cost, span: tuple[int, int], *, upward: bool) -> float:
        """Give the bytes of values before a unit that a patch and those after it read."""
        if stretch.scratch:  # the runtime places it beside whole tensors
            return sum(self.network.nbytes[value] for value in stretch.dying)
        total, height = 0.0, self.network.images[stretch.output].height
        for value in stretch.dying:
            x = self.network.images[value]
            first, end = cost.needs[stretch.inputs.index(value)]
            if span[0] >= stretch.edge and height - span[1] >= stretch.edge:
                shift = (span[0] - cost.low) * x.height // height
                first, end = first + shift, end + shift
            gone = max(0, x.height - end) if upward else first
            if x.row_axis == 2:  # rows of each channel: what is free stays in as many pieces
                gone //= x.channels
            total += self.network.nbytes[value] * (x.height - gone) / x.height
        return total
