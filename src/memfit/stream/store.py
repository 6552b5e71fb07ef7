"""One byte array, and what a plan says about each of its bytes.

Beside the array stands, for each byte, which of the plan's buffers has it now, and what it holds: a byte of a value, or
nothing. Every read and every write is held against both, so a plan that gives bytes away too early is found even where
the numbers happen to be the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memfit.errors import InternalError
from memfit.kernels.kernel import Array
from memfit.packing import Buffer
from memfit.stream.layout import Arena
from memfit.stream.network import Value
from memfit.stream.reach import Span

PATTERN = 0xA5
"""What a byte is filled with when it is freed."""

NOBODY = 0
"""Owner of a byte that the plan gives to no buffer, and identity of one that holds nothing."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a value lies for a while: as a whole, or as a ring of rows."""

    value: Value
    buffer: str
    """Name of the plan's buffer."""
    offset: int
    """First byte in the array."""
    slots: int
    """Rows that there is room for: row `y` is in slot `y % slots`."""
    columns: Span
    """Columns that are kept."""
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the place."""
        return self.slots * (self.columns[1] - self.columns[0]) * self.value.pixel_bytes

    @property
    def row_axis(self) -> int:
        """Dimension of the tensor that its rows are."""
        return 2 if self.value.planar else 1

    @property
    def whole(self) -> bool:
        """True if the place holds all of the value."""
        return self.slots == self.value.height and self.columns == (0, self.value.width)


class _Views:
    """The bytes of a place in the order of the tensor: four dimensions, and beside the elements the bytes of each."""

    def __init__(self, store: Store, place: Place) -> None:
        store._within(place.buffer, place.offset, place.offset + place.nbytes)
        self.typed: Array = _image(store.bytes, place).view(place.dtype)[..., 0]
        if store.check:
            self.identities: Integers = _image(store._identities, place)
            self.owners: npt.NDArray[np.int32] = _image(store._owners, place)
            self.expected = store._expected(place.value, (0, place.slots), place.columns)
            """Identities of the first rows that there is room for; those of later ones follow at equal distances."""
        self.step = place.value.width * place.value.itemsize * (1 if place.value.planar else place.value.channels)
        """From the identity of a byte to that of the one a row further down."""


class Store:
    """The array of a run.

    Args:
        arena: where a plan puts everything, and when.
        values: all values of the network.
        check: hold every access against the plan, and fill what is freed with a pattern.
    """

    def __init__(self, arena: Arena, values: dict[int, Value], *, check: bool) -> None:
        self.check = check
        self.bytes = np.full(arena.packing.height, PATTERN, np.uint8)
        self.high = 0
        """One past the highest byte that was written."""
        self.gathered = 0
        """Bytes of the largest copy that was made to read rows of a ring that do not follow each other."""
        self.at = "before the first operator"
        """What is being computed, for messages."""
        self.step = 0
        self._offsets = arena.packing.offsets
        self._number = {buffer.name: number for number, buffer in enumerate(arena.problem.buffers, 1)}
        self._names = ["nobody", *self._number]
        self._owners = np.zeros(len(self.bytes) if check else 0, np.int32)
        self._identities = np.zeros(len(self.bytes) if check else 0, np.int64)
        self._bases: dict[int, int] = {}
        """Value → identity of its first byte; the others follow in the order of the tensor."""
        base = 1
        for value in values.values():
            self._bases[value.index] = base
            base += value.nbytes
        self._extra = base
        """Identities from here on are of sums and scratch."""
        self._values = list(values.values())
        self._partners = {number: [number] for number in self._number.values()}
        """Buffer → those that may have the same bytes at the same time: itself, and its aliases."""
        for alias in arena.problem.aliases:
            a, b = self._number[alias.buffer], self._number[alias.of]
            self._partners[a].append(b)
            self._partners[b].append(a)
        self._views: dict[str, _Views] = {}
        """Buffer → the views of its place."""
        self._events = _events(arena.problem.buffers) if check else []
        self._next = 0

    # -- lifetimes ------------------------------------------------------------------------------------------------

    def advance(self, step: int) -> None:
        """Go to a step: free what dies before it, and give out what is born in it."""
        self.step = step
        while self._next < len(self._events) and self._events[self._next][0] <= step:
            _, born, name, start, end = self._events[self._next]
            self._next += 1
            number, offset = self._number[name], self._offsets[name]
            self._within(name, offset + start, offset + end)
            owners = self._owners[offset + start : offset + end]
            if born:
                taken = self._foreign(owners, number) & (owners != NOBODY)
                if taken.any():
                    byte = int(np.argmax(taken))
                    raise self._fault(
                        "a plan gives one byte to two buffers",
                        f"byte {offset + start + byte}, of {self._names[owners[byte]]} and {name}",
                    )
                owners[:] = number
            else:
                mine = owners == number
                owners[mine] = NOBODY
                self._identities[offset + start : offset + end][mine] = NOBODY
                self.bytes[offset + start : offset + end][mine] = PATTERN

    def _within(self, name: str, start: int, end: int) -> None:
        if start < 0 or end > len(self.bytes):
            raise self._fault(
                "a plan reaches outside of its arena",
                f"bytes [{start}, {end}) of {name} in an array of {len(self.bytes)}",
            )

    # -- values ---------------------------------------------------------------------------------------------------

    def read(self, place: Place, rows: Span, columns: Span) -> Array:
        """Give rows and columns of a value, in the order of its tensor; a view where they follow each other."""
        count = max(rows[1] - rows[0], 0)
        if count > place.slots or columns[0] < place.columns[0] or columns[1] > place.columns[1]:
            raise self._fault(
                "a plan keeps less of a value than is read",
                f"{place.value.name}: rows [{rows[0]}, {rows[1]}) of columns [{columns[0]}, {columns[1]}), kept are "
                f"{place.slots} rows of columns [{place.columns[0]}, {place.columns[1]})",
            )
        parts = []
        views = self._of(place)
        for start, end in self._runs(place, rows):
            slot = start % place.slots
            here = self._slots(place, slot, slot + end - start, columns)
            if self.check:
                first = views.expected[self._slots(place, 0, end - start, columns)]
                self._same(views.identities[here], first + start * views.step)
            parts.append(views.typed[here])
        if len(parts) == 1:
            return parts[0]
        made = np.concatenate(parts, axis=place.row_axis)
        self.gathered = max(self.gathered, made.nbytes)
        return made

    def write(self, place: Place, row: int, columns: Span) -> Array:
        """Give a row of a value to write into, in the order of its tensor."""
        slot = row % place.slots
        here = self._slots(place, slot, slot + 1, columns)
        views = self._of(place)
        if self.check:
            self._owned(place, views.owners[here], row, columns)
            first = views.expected[self._slots(place, 0, 1, columns)]
            np.add(first, row * views.step, out=views.identities[here])
        self._reach(place, slot, columns)
        return views.typed[here]

    def read_all(self, place: Place, shape: tuple[int, ...]) -> Array:
        """Give a whole value as an array of its tensor's shape: a view."""
        here = slice(place.offset, place.offset + place.nbytes)
        if self.check:
            base = self._bases[place.value.index]
            self._same(self._identities[here], np.arange(base, base + place.nbytes))
        return self.bytes[here].view(place.dtype).reshape(shape)

    def write_all(self, place: Place, shape: tuple[int, ...]) -> Array:
        """Give the room of a whole value, as an array of its tensor's shape to write into."""
        here = slice(place.offset, place.offset + place.nbytes)
        self._within(place.buffer, here.start, here.stop)
        if self.check:
            self._owned(place, self._owners[here], 0, (0, place.value.width))
            base = self._bases[place.value.index]
            self._identities[here] = np.arange(base, base + place.nbytes)
        self.high = max(self.high, here.stop)
        return self.bytes[here].view(place.dtype).reshape(shape)

    def read_channel(self, place: Place, channel: int) -> Array:
        """Give one channel of a whole image: a view (1, rows, columns, 1)."""
        views = self._of(place)
        if self.check:
            self._same(views.identities[..., channel, :], views.expected[..., channel, :])
        return views.typed[..., channel : channel + 1]

    def write_channel(self, place: Place, channel: int) -> Array:
        """Give one channel of a whole image to write into: a view (1, rows, columns, 1)."""
        views = self._of(place)
        if self.check:
            self._owned(place, views.owners[..., channel, :], 0, (0, place.value.width))
            views.identities[..., channel, :] = views.expected[..., channel, :]
        self.high = max(self.high, place.offset + place.nbytes)
        return views.typed[..., channel : channel + 1]

    def scratch(self, name: str, size: int, *, first: bool) -> Array:
        """Give the bytes of sums, or of scratch; `first` says that nothing is expected to be there yet."""
        offset = self._offsets[name]
        self._within(name, offset, offset + size)
        here = slice(offset, offset + size)
        if self.check:
            number = self._number[name]
            if (self._owners[here] != number).any():
                raise self._fault("a plan uses bytes that it does not have", f"{name}, bytes [{offset}, {here.stop})")
            if first:
                self._identities[here] = self._extra + number
            elif (self._identities[here] != self._extra + number).any():
                raise self._fault("a plan reads bytes that were overwritten", f"{name}, bytes [{offset}, {here.stop})")
        self.high = max(self.high, here.stop)
        return self.bytes[here]

    # -- checks ---------------------------------------------------------------------------------------------------

    def _expected(self, value: Value, rows: Span, columns: Span) -> Integers:
        """Give the identities of rows and columns, in the order of the tensor, bytes of an element last."""
        y, x = np.arange(*rows)[:, None], np.arange(*columns)
        inner = np.arange(value.itemsize)
        base = self._bases[value.index]
        if value.planar:
            channel = np.arange(value.channels)[:, None, None]
            places = (channel * value.height + y) * value.width + x
            return (base + places[None, ..., None] * value.itemsize + inner).astype(np.int64)
        within = np.arange(value.pixel_bytes).reshape(value.channels, value.itemsize)
        places = y * value.width + x
        return (base + places[None, ..., None, None] * value.pixel_bytes + within).astype(np.int64)

    def _same(self, found: Integers, expected: Integers) -> None:
        """Compare identities, of which `found` is a view into the store's."""
        if np.array_equal(found, expected):
            return
        wrong = found != expected
        first = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        start = found.__array_interface__["data"][0] - self._identities.__array_interface__["data"][0]
        byte = (start + sum(int(i) * s for i, s in zip(first, found.strides, strict=True))) // found.itemsize
        raise self._fault(
            "a plan reads a byte that does not hold what was written",
            f"{self._describe(int(expected[first]))} at byte {byte}, which {self._holds(int(found[first]))}",
        )

    def _foreign(self, owners: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.bool_]:
        """Say which bytes belong neither to a buffer nor to one that may overlap it."""
        wrong: npt.NDArray[np.bool_] = owners != number
        return wrong & ~np.isin(owners, self._partners[number]) if wrong.any() else wrong

    def _owned(self, place: Place, owners: npt.NDArray[np.int32], row: int, columns: Span) -> None:
        wrong = self._foreign(owners, self._number[place.buffer])
        if wrong.any():
            owner = self._names[int(owners[wrong][0])]
            raise self._fault(
                "a plan writes into bytes that it does not have",
                f"{place.value.name}, row {row}, columns [{columns[0]}, {columns[1]}), in {place.buffer}, whose bytes "
                f"belong to {owner} now",
            )

    def _holds(self, identity: int) -> str:
        return "is dead" if identity == NOBODY else f"holds {self._describe(identity)}"

    def _describe(self, identity: int) -> str:
        """Name a byte by its identity."""
        if identity >= self._extra:
            return self._names[identity - self._extra]
        number = bisect_right(self._values, identity, key=lambda v: self._bases[v.index]) - 1
        value = self._values[number]
        place = (identity - self._bases[value.index]) // value.itemsize
        if value.planar:
            row, column = place // value.width % value.height, place % value.width
        else:
            row, column = divmod(place // value.channels, value.width)
        return f"value {value.index} ({value.name}), row {row}, column {column}"

    def _fault(self, what: str, received: str) -> InternalError:
        return InternalError(
            what,
            where=f"{self.at}, step {self.step}",
            received=received,
            todo="do not use this plan, and report it with the model",
        )

    # -- views ----------------------------------------------------------------------------------------------------

    def _of(self, place: Place) -> _Views:
        found = self._views.get(place.buffer)
        if found is None:
            found = self._views[place.buffer] = _Views(self, place)
        return found

    def _slots(self, place: Place, start: int, end: int, columns: Span) -> tuple[slice, ...]:
        left = place.columns[0]
        everything = slice(None)
        here = (slice(start, end), slice(columns[0] - left, columns[1] - left))
        return (everything, everything, *here) if place.value.planar else (everything, *here)

    def _runs(self, place: Place, rows: Span) -> Iterator[Span]:
        """Cut rows into runs whose slots follow each other; one empty run for no rows."""
        start, end = rows
        if start >= end:
            yield start, start
        while start < end:
            stop = min(end, start - start % place.slots + place.slots)
            yield start, stop
            start = stop

    def _reach(self, place: Place, slot: int, columns: Span) -> None:
        """Note the highest byte that is written."""
        if columns[0] >= columns[1]:
            return
        left, right = place.columns
        if place.value.planar:
            end = place.nbytes if place.whole else (slot + 1) * (right - left) * place.value.pixel_bytes
        else:
            end = (slot * (right - left) + columns[1] - left) * place.value.pixel_bytes
        self.high = max(self.high, place.offset + end)


def _image(array: npt.NDArray[Any], place: Place) -> npt.NDArray[Any]:
    """View the bytes of a place in the order of the tensor: four dimensions, and the bytes of an element."""
    value, width = place.value, place.columns[1] - place.columns[0]
    flat = array[place.offset : place.offset + place.nbytes]
    if not value.planar:
        return flat.reshape(1, place.slots, width, value.channels, value.itemsize)
    if place.whole:
        return flat.reshape(1, value.channels, place.slots, width, value.itemsize)
    return flat.reshape(1, place.slots, value.channels, width, value.itemsize).swapaxes(1, 2)


def _events(buffers: tuple[Buffer, ...]) -> list[tuple[int, bool, str, int, int]]:
    """List (step, born, buffer, first byte, end) by step, deaths first."""
    found = []
    for buffer in buffers:
        for span in buffer.spans:
            size = span.size or 0
            if size and span.lower < span.upper:
                found.append((span.lower, True, buffer.name, span.start, span.start + size))
                found.append((span.upper, False, buffer.name, span.start, span.start + size))
    return sorted(found)
