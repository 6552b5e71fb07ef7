"""What each operation needs, as a sum over layers' outputs whose bits may be chosen.

A memory model that gives a demand gives its figures for any bits, and to a solver the inequalities that these bits
must satisfy; both from the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from memfit.errors import UsageError
from memfit.graph.model import ITEMSIZE, StorageKind

if TYPE_CHECKING:
    from memfit.memory.model import View

NO_GROUP = -1


class Part(NamedTuple):
    """Elements in memory at some moment."""

    group: int
    """Whose bits they have; -1 where there is nothing to choose."""
    elements: int
    own_bits: int
    """Bits of an element where none are chosen."""

    def nbytes(self, bits: Sequence[int | None]) -> int:
        """Give ⌈bits/8 · elements⌉.

        >>> Part(0, 3, 8).nbytes([4]), Part(0, 3, 8).nbytes([None])
        (2, 3)
        """
        chosen = bits[self.group] if self.group >= 0 else None
        return (self.elements * (chosen or self.own_bits) + 7) // 8


class Moment(NamedTuple):
    """One state of memory while an operation runs."""

    op: int
    parts: tuple[Part, ...]

    def nbytes(self, bits: Sequence[int | None]) -> int:
        """Sum the bytes of what is there."""
        return sum(part.nbytes(bits) for part in self.parts)


@dataclass(frozen=True)
class Demand:
    """Every moment of a network's run, under one memory model.

    >>> demand = Demand((("a",), ("b", "c")), (Moment(0, (Part(0, 10, 8), Part(1, 4, 8))),), 1, "peak")
    >>> demand.total_bytes({}), demand.total_bytes({"a": 4}), demand.total_bytes({"a": 4, "b": 2, "c": 2})
    (14, 9, 6)
    """

    groups: tuple[tuple[str, ...], ...]
    """Names of layers; those of one group share bytes, so that they have the same bits."""
    moments: tuple[Moment, ...]
    """In the order of the operations, of which each may have several, or none."""
    ops: int
    measures: Literal["peak", "saved"]
    """Whether the largest moment counts, or all of them together."""
    passing: frozenset[str] = frozenset()
    """Layers whose output is never stored by itself: it is added into another's as it is made."""

    def bits(self, chosen: Mapping[str, int]) -> list[int | None]:
        """Give each group the bits that were chosen for its layers, the most of them; None leaves it its own."""
        return [max((chosen[name] for name in names if name in chosen), default=None) for names in self.groups]

    def per_op(self, chosen: Mapping[str, int]) -> tuple[int | None, ...]:
        """Give each operation's bytes, None where it has no figure of its own.

        Args:
            chosen: bits by layer; a layer without an entry keeps the model's own.
        """
        bits = self.bits(chosen)
        needs: list[int | None] = [None] * self.ops
        for moment in self.moments:
            needs[moment.op] = max(needs[moment.op] or 0, moment.nbytes(bits))
        return tuple(needs)

    def total_bytes(self, chosen: Mapping[str, int]) -> int:
        """Give the largest of the operations' bytes, or their sum, whichever the memory model measures."""
        needs = [need for need in self.per_op(chosen) if need is not None]
        return max(needs, default=0) if self.measures == "peak" else sum(needs)


def check_bits(groups: Sequence[Sequence[str]], chosen: Mapping[str, int]) -> None:
    """Refuse bits of layers that a network does not have.

    Raises:
        UsageError: names such a layer.
    """
    known = {name for names in groups for name in names}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UsageError(
            "the bits are of layers that this network does not have",
            where="layer_bits",
            received=", ".join(unknown[:3]),
            todo="use bits that were chosen for this network",
        )


def storage_groups(view: View) -> tuple[tuple[tuple[str, ...], ...], dict[int, int]]:
    """Group the layers that write to the same storage, and give each floating activation's group by storage.

    A layer's intermediate values, such as what a convolution gives to its batch norm, belong to it.
    """
    graph, rows = view.graph, view.layers
    parent = list(range(len(rows)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    owner: dict[int, int] = {}
    first: dict[int, int] = {}
    for number, row in enumerate(rows):
        if row.head < 0 and row.result >= 0:
            first[graph.tensors[row.result].storage] = number
        owner |= dict.fromkeys(row.ops, number)
    counted = (StorageKind.ACTIVATION, StorageKind.INPUT)
    floating = {t.storage for t in graph.tensors if t.dtype.startswith(("float", "bfloat")) and t.dtype in ITEMSIZE} & {
        s.id for s in graph.storages if s.kind in counted
    }
    for op in graph.ops:
        number = owner.get(op.index, NO_GROUP)
        if number < 0 or graph.is_alias(op):
            continue
        for tid in op.outputs:
            storage = graph.tensors[tid].storage
            if storage in floating:
                parent[root(number)] = root(first.setdefault(storage, number))
    numbers = sorted({root(n) for s, n in first.items() if s in floating})
    place = {number: group for group, number in enumerate(numbers)}
    names = tuple(tuple(row.name for n, row in enumerate(rows) if root(n) == number) for number in numbers)
    return names, {s: place[root(n)] for s, n in first.items() if s in floating}


def item_bits(view: View) -> dict[int, int]:
    """Give the bits of one element of each storage, the widest where tensors of several types look at it."""
    found: dict[int, int] = {}
    for tensor in view.graph.tensors:
        if tensor.dtype in ITEMSIZE:
            found[tensor.storage] = max(found.get(tensor.storage, 8), ITEMSIZE[tensor.dtype] * 8)
    return found
