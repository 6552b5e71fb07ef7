"""Squeeze-excite in several passes: an image is computed once for its mean, and again to be multiplied by its gate.

A squeeze-excite needs the mean of a whole image before it can multiply the first of its rows. Kept whole, the image is
often the largest tensor of a network. Instead, a pass computes it row by row and adds the rows up, the gate is made of
the sums, and the next pass computes the same rows again, now multiplied, and goes on. A pass may go through gates that
are known from passes before it, so that several squeeze-excites one behind the other need no whole image in between.

So a way through the network visits *places*: a cut, and how many gates behind it are known. What is computed again are
ordinary operators, and `reordered` writes them as such.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memfit.stream.network import INPUT, StreamNetwork
from memfit.stream.segments import Segment, Segments

AHEAD = 3
"""The most gates that may be known beyond a cut."""

Place = tuple[int, int]
"""A cut, and the number of gates known beyond it."""


@dataclass(frozen=True)
class Run:
    """Operations done together."""

    ops: tuple[int, ...]
    """Of the network as it was given."""
    segment: Segment
    """How; its own operations are counted elsewhere."""


@dataclass(frozen=True)
class Step:
    """One way from a place to another: one segment, or a pass up to a mean and then its gate."""

    source: Place
    runs: tuple[Run, ...]
    peak: int
    extra: int
    stripes: int
    reads: int
    """How often it reads a fed input, row by row."""

    @property
    def overlaps(self) -> bool:
        """True where rows of the output take the room of rows of the inputs."""
        return bool(self.runs) and self.runs[-1].segment.overlaps


@dataclass(frozen=True)
class Gate:
    """A squeeze-excite: operations `[mean, product)` make of an image what it is then multiplied by."""

    mean: int
    product: int
    """First operation that reads the image after its mean."""
    image: int
    values: tuple[int, ...]
    """Made by the gate and read from `product` on."""


@dataclass(frozen=True)
class Passes:
    """A network as passes see it."""

    gates: tuple[Gate, ...]
    through: Segments
    """Of all operations but those of gates, whose values are given."""
    places: tuple[int, ...]
    """Its operations → theirs in the network as it was given."""
    upto: tuple[Segments, ...]
    """Per gate: of what its mean takes, the mean at the end."""
    upto_places: tuple[tuple[int, ...], ...]

    def ahead(self, cut: int, count: int) -> list[int]:
        """Give the values of the next `count` gates that are multiplied behind an operation of `through`."""
        first = bisect_left([gate.product for gate in self.gates], self.places[cut])
        return [i for gate in self.gates[first : first + count] for i in gate.values]


def gates_of(network: StreamNetwork) -> tuple[Gate, ...]:
    """Find the squeeze-excites: a mean, operations on its one pixel, and one that reads image and gate.

    What stands between the mean and the product must depend on the mean alone, and the image must be one that streams.
    """
    found = []
    for op in network.ops:
        image = op.inputs[0] if op.sums else INPUT
        after = [r for r in network.values[image].readers if r > op.index] if image >= 0 else []
        if not after or network.values[image].producer == INPUT:
            continue
        chain = network.ops[op.index : after[0]]
        made = {i for link in chain for i in (link.output, *link.others)}
        alone = all(set(link.inputs) <= made and not link.streams for link in chain[1:])
        leaving = tuple(i for i in sorted(made) if i >= 0 and any(r >= after[0] for r in network.values[i].readers))
        streams = network.ops[network.values[image].producer].streams and network.ops[after[0]].streams
        closed = all(network.values[i].readers[-1] == after[0] for i in leaving)
        if alone and streams and leaving and closed and not any(network.values[i].leaves for i in made):
            found.append(Gate(op.index, after[0], image, leaving))
    return tuple(found)


def passes_of(segments: Segments) -> Passes | None:
    """Prepare the passes of a network; None where it has no squeeze-excite."""
    network = segments.network
    gates = gates_of(network)
    if not gates:
        return None
    inside = {index for gate in gates for index in range(gate.mean, gate.product)}
    places = tuple(op.index for op in network.ops if op.index not in inside)
    through = part_of(network, places, network.outputs)
    upto, upto_places = [], []
    for gate in gates:
        needed = {gate.image}
        mine = [gate.mean]
        for index in reversed([place for place in places if place < gate.mean]):
            op = network.ops[index]
            if needed & {op.output, *op.others}:
                needed.update(op.inputs)
                mine.append(index)
        upto_places.append(tuple(reversed(mine)))
        upto.append(part_of(network, upto_places[-1], (network.ops[gate.mean].output,)))
    return Passes(
        gates,
        Segments(through, resident=segments.resident, passes=segments.passes),
        places,
        tuple(Segments(part, resident=segments.resident, passes=segments.passes) for part in upto),
        tuple(upto_places),
    )


def part_of(network: StreamNetwork, places: Sequence[int], outputs: tuple[int, ...]) -> StreamNetwork:
    """Take some operations of a network, in order; what others would make is given."""
    new = {old: index for index, old in enumerate(places)}
    ops = tuple(replace(network.ops[old], index=index) for old, index in new.items())
    touched = {i for op in ops for i in (*op.inputs, op.output, *op.others) if i >= 0} | set(outputs)
    values = {}
    for i in sorted(touched):
        value = network.values[i]
        readers = tuple(new[r] for r in value.readers if r in new)
        producer = new.get(value.producer, INPUT)
        values[i] = replace(value, producer=producer, readers=readers, leaves=i in outputs)
    inputs = tuple(i for i in network.inputs if i in values)
    return StreamNetwork(network.model, ops, values, inputs, outputs, network.estimated)


def steps_of(
    segments: Segments, passes: Passes | None, limit_macs: int, limit_bytes: int, stripes: int
) -> Iterator[tuple[Place, Step]]:
    """Give all steps between places: (target, step).

    Args:
        segments: of the network.
        passes: of the same; None for none.
        limit_macs: the most extra multiply-accumulates.
        limit_bytes: steps that need as much or more are left out.
        stripes: the most stripes to try.
    """
    for segment in segments.among(range(1, segments.count + 1), limit_macs, limit_bytes, stripes):
        run = Run(tuple(range(segment.begin, segment.end)), segment)
        reads = _reads(segments, segment)
        step = Step((segment.begin, 0), (run,), segment.peak_bytes, segment.extra_macs, segment.stripes, reads)
        yield (segment.end, 0), step
    if passes is not None:
        for gate in passes.gates:  # an image kept whole, of which what comes next may still be computed again
            yield (gate.product, 1), Step((gate.product, 0), (), 0, 0, 0, 0)
        yield from _through(passes, limit_macs, limit_bytes, stripes)
        yield from _upto(segments, passes, limit_macs, limit_bytes, stripes)


def _reads(segments: Segments, segment: Segment) -> int:
    fed = any(segments.fed(i, segment.begin, segment.end) for i in segments.reads)
    return segment.stripes if fed else 0


def _through(passes: Passes, limit_macs: int, limit_bytes: int, stripes: int) -> Iterator[tuple[Place, Step]]:
    """Give the segments that go through gates that are known, or lie before such."""
    segments, places = passes.through, passes.places
    products = [gate.product for gate in passes.gates]
    for segment in segments.among(range(1, segments.count + 1), limit_macs, limit_bytes, stripes):
        end = segment.end
        target = places[end] if end < segments.count else places[-1] + 1
        begin, last = places[segment.begin], places[end - 1]
        first = bisect_left(products, begin)
        inside = bisect_left(products, last + 1) - first
        run = Run(places[segment.begin : end], segment)
        reads = _reads(segments, segment)
        for known in range(max(inside, 1), min(AHEAD, len(products) - first) + 1):
            others = passes.ahead(segment.begin, known)
            within = {i for gate in passes.gates[first : first + inside] for i in gate.values}
            waiting = sum(segments.values[i].nbytes for i in others if i not in within)
            left = known - inside
            to = (target, left) if left else (last + 1, 0)
            peak = segment.peak_bytes + waiting
            yield to, Step((begin, known), (run,), peak, segment.extra_macs, segment.stripes, reads)


def _upto(
    given: Segments, passes: Passes, limit_macs: int, limit_bytes: int, stripes: int
) -> Iterator[tuple[Place, Step]]:
    """Give the passes up to each mean, with the gate behind it."""
    values = given.values
    for number, gate in enumerate(passes.gates):
        segments, mine = passes.upto[number], passes.upto_places[number]
        chain = range(gate.mean + 1, gate.product)
        for segment in segments.ending(segments.count, limit_macs, limit_bytes, stripes, again=True):
            if segment.end - segment.begin < 2 or segment.extra_macs <= 0:
                continue
            ops = mine[segment.begin :]
            met = {i for index in ops for i in given.ops[index].inputs}
            fed = {i for i in met if segments.fed(i, segment.begin, segment.end)}
            if any(not set(given.values[i].readers) <= set(ops) for i in fed):
                continue  # a later pass would read more of it than this one
            held = {*segments.live(segment.begin), *(met - fed - {given.ops[index].output for index in ops})}
            before = mine[segment.begin - 1] if segment.begin else -1
            for cut in range(bisect_left(passes.places, before + 1), bisect_left(passes.places, ops[0]) + 1):
                place = passes.places[cut]
                known = number - bisect_left([g.product for g in passes.gates], place)
                if not 0 <= known < AHEAD:
                    continue
                live = {*passes.through.live(cut), *passes.ahead(cut, known), *held}
                waiting = sum(values[i].nbytes for i in live)
                inside = segment.peak_bytes - sum(values[i].nbytes for i in held)
                after = waiting + _gate_bytes(given, gate)
                peak = max(waiting + inside, after)
                if peak >= limit_bytes:
                    continue
                runs = [Run(ops, replace(segment, peak_bytes=waiting + inside))]
                runs += [Run((index,), Segment(index, index + 1, 1, after, 0)) for index in chain]
                reads = segment.stripes if fed else 0
                yield (
                    (place, known + 1),
                    Step((place, known), tuple(runs), peak, segment.extra_macs, segment.stripes, reads),
                )


def _gate_bytes(segments: Segments, gate: Gate) -> int:
    """Give the most bytes of a gate's own values that live while it is made."""
    most = 0
    for index in range(gate.mean + 1, gate.product):
        own = [
            i
            for op in segments.ops[gate.mean : index + 1]
            for i in (op.output, *op.others)
            if i >= 0 and max(segments.last[i], segments.values[i].producer) >= index
        ]
        most = max(most, sum(segments.values[i].nbytes for i in own))
    return most
