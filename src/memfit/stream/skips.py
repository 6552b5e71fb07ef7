"""Skip connections that are computed again where they are read, rather than kept until then.

A U-Net's decoder reads what its encoder made, the first and largest image last, and all that lies between runs beside
these images. An image that is computed a second time, row by row, right before it is read, needs no room meanwhile. So
a network is written in several ways, each with operations that are done once more, and each is cut as well as can be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from memfit.stream.choose import Choice, Choices, within
from memfit.stream.network import INPUT, StreamNetwork
from memfit.stream.reorder import reordered
from memfit.stream.segments import Segments

OPERATIONS = 600
"""How many operations all the ways together have that are looked at besides the one that was given: they take time."""

SHARE = 8
"""An image is computed again where it is at least one part in so many of the bytes that live in a segment beside it."""

ROWS = 4
"""Within the segment it is where it keeps at least one row in so many."""

MOST = 2
"""What is computed again is at most one part in so many of the extra work that is allowed: stripes take some too."""

Order = tuple[int, ...]
"""Operations of the network as it was given, in the order in which they are done."""


@dataclass(frozen=True)
class _Way:
    """A way to write the network that may be worth a look."""

    order: Order
    peak_bytes: int
    """Of the plan that it is to better, without the image that is computed again: lower it does not get."""
    extra_macs: int
    """Of that plan, without what is computed again."""


class Variants:
    """The best plans of a network, whichever of its skip connections are computed again.

    Which are is not searched in full: one is added after the other, each time the largest that waits in the segment
    with the highest peak or beside it, as long as that lowers it.

    Args:
        network: from `network_of`.
        cap: largest share of extra multiply-accumulates.
        resident: the network's input is whole from the start.
        passes: how often a fed input may be read; None for as often as it takes.
    """

    def __init__(
        self, network: StreamNetwork, cap: float, *, resident: bool = False, passes: int | None = None
    ) -> None:
        self.network = network
        self.choices = [Choices(Segments(network, resident=resident, passes=passes), cap)]
        """Of each way to write the network."""
        limit = int(cap * network.macs)
        self.front = self.without(())
        """All ways that no other beats in both peak and extra work, from least work to least memory."""
        tried: set[Order] = set()
        left = OPERATIONS
        ways = self._longer(tuple(range(len(network.ops))), self.front)
        while (way := next(ways, None)) is not None and len(way.order) <= left:
            variant = reordered(network, way.order)
            spent = variant.macs - network.macs
            rival = within(self.front, extra_macs=min(way.extra_macs + spent, limit))
            if way.order in tried or MOST * spent > limit or rival is None or rival.peak_bytes <= way.peak_bytes:
                continue
            tried.add(way.order)
            left -= len(way.order)
            known = within(self.front, extra_macs=spent)
            segments = Segments(variant, resident=resident, passes=passes)
            choices = Choices(segments, cap, repeats=_repeats(way.order), below=known.peak_bytes if known else None)
            found = [replace(choice, variant=len(self.choices)) for choice in choices.front()]
            if found:
                self.choices.append(choices)
                self.front = _merged([*self.front, *found])
                ways = self._longer(way.order, found)

    def segments(self, choice: Choice) -> Segments:
        """Give the segments of the network as it is written for a choice."""
        return self.choices[choice.variant].segments

    def without(self, apart: Collection[tuple[int, Order]], most_macs: int | None = None) -> list[Choice]:
        """Find the front where segments, each a variant and its operations, may not be taken as they are.

        These may not count rows of their output as taking the room of rows of their inputs. Ways of more extra
        work than `most_macs` may be left out.
        """
        found = []
        for variant, choices in enumerate(self.choices):
            own = [ops for number, ops in apart if number == variant]
            found += [replace(choice, variant=variant) for choice in choices.front(own, most_macs)]
        return _merged(found)

    def _longer(self, order: Order, front: list[Choice]) -> Iterator[_Way]:
        """Give the orders in which one more image is computed again, the largest first."""
        given = self.segments(front[0]) if front else self.choices[0].segments
        written = given.network
        found: dict[tuple[int, int], tuple[int, int, int]] = {}
        spent = written.macs - self.network.macs
        for choice in dict.fromkeys([*front[:1], *front[-1:]]):
            executed = Segments(reordered(written, choice.order), resident=given.resident, passes=given.passes)
            for nbytes, producer, reader in _waiting(executed, choice):
                image = (choice.order[producer], choice.order[reader])
                found.setdefault(image, (nbytes, choice.peak_bytes - nbytes, choice.extra_macs - spent))
        for image, (_, peak, extra) in sorted(found.items(), key=lambda entry: (-entry[1][0], entry[0])):
            longer = _again(self.network, written, order, *image)
            if longer is not None:
                yield _Way(longer, peak, extra)


def _merged(choices: list[Choice]) -> list[Choice]:
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.extra_macs, c.peak_bytes, c.variant)):
        if not found or choice.peak_bytes < found[-1].peak_bytes:
            found.append(choice)
    return found


def _repeats(order: Order) -> list[int]:
    """Give the places at which an operation is done once more.

    >>> _repeats((0, 1, 2, 0, 1, 3))
    [3, 4]
    """
    first = {operation: place for place, operation in reversed(list(enumerate(order)))}
    return [place for place, operation in enumerate(order) if place != first[operation]]


def _waiting(executed: Segments, choice: Choice) -> Iterator[tuple[int, int, int]]:
    """Give the large images that wait beside the segment with the highest peak, or many of whose rows wait within.

    Each is given by its bytes, the operation that made it, and the one that it waits for.
    """
    if not choice.segments:
        return
    worst = max(choice.segments, key=lambda segment: segment.peak_bytes)
    heights = executed.heights(worst.end)
    for value in executed.values.values():
        readers = [reader for reader in value.readers if reader >= worst.begin]
        if not INPUT < value.producer < worst.end or not readers:
            continue
        if value.producer < worst.begin:
            waits = len(readers) < len(value.readers) or readers[0] >= worst.end
            nbytes, reader = value.nbytes, readers[0]
        else:
            rows = heights.get(value.index, 0)
            waits = len(readers) > 1 and readers[-1] < worst.end and ROWS * rows >= value.height
            nbytes, reader = rows * value.row_bytes // worst.stripes, readers[-1]
        if waits and SHARE * nbytes >= worst.peak_bytes:
            yield nbytes, value.producer, reader


def _again(given: StreamNetwork, written: StreamNetwork, order: Order, producer: int, reader: int) -> Order | None:
    """Compute what an operation makes once more before it is read; None where it cannot be made row by row.

    Args:
        given: the network.
        written: with its operations in `order`.
        order: of operations of the network as it was given.
        producer: place of the operation.
        reader: place before which it is done again, with all that it takes and that is not there anyway.
    """
    asked, needed = [producer], set()
    while asked:
        place = asked.pop()
        op = written.ops[place]
        if not op.streams or op.sums or op.others:
            return None
        needed.add(place)
        for i in op.inputs:
            value = written.values[i]
            there = value.readers[-1] >= reader or value.leaves or value.height * value.width == 1
            if value.producer != INPUT and not there and value.producer not in needed:
                asked.append(value.producer)
    repeats = set(_repeats(order))
    again = [order[place] for place in sorted(needed)]
    rest = [order[place] for place in range(reader, len(order)) if not (place in repeats and order[place] in again)]
    return _used(given, (*order[:reader], *again, *rest))


def _used(given: StreamNetwork, order: Order) -> Order:
    """Leave out operations that are done for nobody since what they make is made again."""
    while True:
        values = reordered(given, order).values.values()
        idle = {
            v.producer
            for v in values
            if v.producer != INPUT and not v.readers and not v.leaves and order.count(order[v.producer]) > 1
        }
        if not idle:
            return order
        order = tuple(operation for place, operation in enumerate(order) if place not in idle)
