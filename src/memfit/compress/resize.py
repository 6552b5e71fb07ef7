"""How a graph's sizes follow from its channel counts, so that a choice can be judged without capturing it.

Every size in a captured graph is linear in the channels taken out of each group: a convolution's output has one number
per channel, a flattened one a fixed count for each, a concatenation the sum. The factors are found by capturing the
model a few times with different numbers of channels taken out of all groups at once, and comparing the shapes. A size
that one group explains with one factor in every capture is that group's, and a concatenation's is the sum of its
inputs'. Where that does not explain all, or the model fails, each group is captured by itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memfit.errors import MemfitError, UnsupportedOp
from memfit.graph.model import Graph, Op, StorageKind, Tensor
from memfit.graph.optable import Role, role

_CAPTURES, _MORE, _MANY = 3, 5, 40
"""Captures with coded numbers of channels, and how many for more groups than the last: so few that they are quick, so
many that two sizes hardly ever look alike in all of them."""

Counts = tuple[int, ...]
"""Channels taken out of each group."""
Code = tuple[int, ...]
"""What a group, or a size, has lost in each of the captures."""
Factors = tuple[tuple[int, int], ...]
"""(group, elements of a size that go with one of its channels)."""


class _Unexplained(Exception):
    """A size follows from no single group, or the captures do not match."""


@dataclass(frozen=True)
class Sizes:
    """A graph, and what each of its sizes loses with a channel of each group."""

    graph: Graph
    dims: dict[int, tuple[tuple[int, Factors], ...]]
    """Tensor id → the dimensions that change."""
    fixed: frozenset[int]
    """Groups that must stay: the outputs' shapes depend on them, or the model fails without some of their channels."""
    failing: frozenset[int] = frozenset()
    """Of them those without some of whose channels the model fails."""

    def resized(self, counts: Sequence[int]) -> Graph:
        """Give the graph as it would be captured with so many channels taken out of each group.

        Shapes, bytes of storages, and MACs follow; strides, names and lifetimes stay.
        """
        graph = self.graph
        tensors = list(graph.tensors)
        touched: dict[int, int] = {}
        for tid, changes in self.dims.items():
            tensor = tensors[tid]
            shape = list(tensor.shape)
            for dim, factors in changes:
                shape[dim] -= sum(counts[group] * factor for group, factor in factors)
            tensors[tid] = tensor._replace(shape=tuple(shape))
            old, new = tensor.elements, tensors[tid].elements
            if old != new:
                touched[tensor.storage] = (
                    tid if (seen := touched.get(tensor.storage)) is None or old > graph.tensors[seen].elements else seen
                )
        storages = list(graph.storages)
        for number, tid in touched.items():
            old, new = graph.tensors[tid].elements, tensors[tid].elements
            if old:
                storages[number] = storages[number]._replace(nbytes=storages[number].nbytes * new // old)
        ops = tuple(self._counted(op, tensors) if op.macs else op for op in graph.ops)
        return replace(graph, tensors=tuple(tensors), storages=tuple(storages), ops=ops)

    def _counted(self, op: Op, tensors: Sequence[Tensor]) -> Op:
        """Count an operation's MACs again: they are proportional to what it makes and to what each element takes."""
        before = self.graph.tensors
        old, new = _work(op, before), _work(op, tensors)
        return op if old == new or not old else op._replace(macs=op.macs * new // old)


def _work(op: Op, tensors: Sequence[Tensor]) -> int:
    """Give a number that an operation's MACs are proportional to; the op table has the exact counts."""
    made = tensors[op.outputs[0]].elements if op.outputs else 0
    part = role(op.kind)
    if part is Role.CONV and len(op.inputs) > 1:
        swept = tensors[op.inputs[0]].elements if op.attrs.get("output_padding") is not None else made
        return swept * math.prod(tensors[op.inputs[1]].shape[1:])
    if part in (Role.LINEAR, Role.MATMUL):
        left = next((t.shape for i in op.inputs if len((t := tensors[i]).shape) > 1), (1,))
        return made * left[-1]
    return made


def measure_sizes(capture: Callable[[Counts], Graph], channels: Sequence[int], *, seed: int = 0) -> Sizes:
    """Find how a model's sizes follow from its channels.

    Args:
        capture: channels to take out of each group → the graph of the model without them.
        channels: how many each group has.
        seed: of the numbers that are tried.

    Raises:
        MemfitError: the model itself cannot be captured.
    """
    groups = len(channels)
    base = capture((0,) * groups)
    try:
        found = _coded(base, capture, channels, seed)
    except (_Unexplained, MemfitError) as error:
        if isinstance(error, UnsupportedOp):
            raise
        found, failing = _one_by_one(base, capture, channels)
    else:
        failing = frozenset()
    dims: dict[int, tuple[tuple[int, Factors], ...]] = {}
    for (tid, dim), factors in sorted(found.items()):
        dims[tid] = (*dims.get(tid, ()), (dim, factors))
    held = {group for tid in (*base.inputs, *base.outputs) for _, factors in dims.get(tid, ()) for group, _ in factors}
    return Sizes(base, dims, frozenset(held) | failing, failing)


def _coded(
    base: Graph, capture: Callable[[Counts], Graph], channels: Sequence[int], seed: int
) -> dict[tuple[int, int], Factors]:
    """Explain every size that changes by one group, from captures in which all groups are changed at once."""
    draw = random.Random(seed)
    several = _CAPTURES if len(channels) <= _MANY else _MORE
    codes: dict[Code, int] = {}
    for group, count in enumerate(channels):
        for _ in range(1000):
            code = tuple(draw.randint(1, min(count - 1, 64)) if count > 1 else 0 for _ in range(several))
            if not any(_multiple(code, other) or _multiple(other, code) for other in codes):
                break
        if count > 1:
            if code in codes:
                raise _Unexplained
            codes[code] = group
    of_group = {group: code for code, group in codes.items()}
    differences: list[dict[tuple[int, int], int]] = []
    for number in range(several):
        counts = tuple(of_group[group][number] if group in of_group else 0 for group in range(len(channels)))
        differences.append(_differences(base, capture(counts)))
    lost_at: dict[tuple[int, int], Code] = {
        place: tuple(difference.get(place, 0) for difference in differences) for place in set().union(*differences)
    }
    known: dict[Code, Factors] = {}

    def explain(lost: Code) -> Factors | None:
        if lost not in known:
            matches = [((group, factor),) for code, group in codes.items() if (factor := _multiple(lost, code))]
            if len(matches) == 1:
                known[lost] = matches[0]
            elif matches:
                raise _Unexplained
        return known.get(lost)

    for op in base.ops:  # concatenations: what the inputs lose together
        for tid in op.outputs:
            for dim in range(len(base.tensors[tid].shape)):
                lost = lost_at.get((tid, dim))
                if lost is None:
                    continue
                parts = [part for i in op.inputs if (part := lost_at.get((i, dim))) is not None]
                found = [known.get(part) for part in parts]
                if len(parts) > 1 and None not in found and tuple(map(sum, zip(*parts, strict=True))) == lost:
                    known[lost] = _joined([factors for factors in found if factors is not None])
                else:
                    explain(lost)
    whole = {
        place: known.get(lost)
        or next(
            (
                tuple((group, count * factor) for group, count in factors)
                for code, factors in known.items()
                if (factor := _multiple(lost, code))
            ),
            None,
        )
        for place, lost in lost_at.items()
    }
    if None in whole.values():
        raise _Unexplained
    return {place: factors for place, factors in whole.items() if factors is not None}


def _multiple(lost: Code, code: Code) -> int:
    """Tell how many times a code another is; 0 where it is no whole number of times."""
    if not code[0] or lost[0] % code[0]:
        return 0
    factor = lost[0] // code[0]
    return factor if all(gone == factor * count for gone, count in zip(lost, code, strict=True)) else 0


def _joined(parts: Sequence[Factors]) -> Factors:
    """Add up what several sizes lose."""
    total: dict[int, int] = {}
    for factors in parts:
        for group, count in factors:
            total[group] = total.get(group, 0) + count
    return tuple(sorted(total.items()))


def _one_by_one(
    base: Graph, capture: Callable[[Counts], Graph], channels: Sequence[int]
) -> tuple[dict[tuple[int, int], Factors], frozenset[int]]:
    """Take one channel out of one group at a time; a group that the model fails without stays whole."""
    found: dict[tuple[int, int], Factors] = {}
    failing: set[int] = set()
    for group, count in enumerate(channels):
        if count < 2:
            failing.add(group)
            continue
        counts = tuple(int(other == group) for other in range(len(channels)))
        try:
            difference = _differences(base, capture(counts))
        except UnsupportedOp:
            raise
        except (_Unexplained, MemfitError):
            failing.add(group)
            continue
        for place, lost in difference.items():
            found[place] = (*found.get(place, ()), (group, lost))
    return found, frozenset(failing)


def _differences(base: Graph, other: Graph) -> dict[tuple[int, int], int]:
    """Give what each size of each tensor has lost."""
    if len(base.tensors) != len(other.tensors) or [op.kind for op in base.ops] != [op.kind for op in other.ops]:
        raise _Unexplained
    found: dict[tuple[int, int], int] = {}
    for one, two in zip(base.tensors, other.tensors, strict=True):
        if one.shape == two.shape:
            continue
        if len(one.shape) != len(two.shape):
            raise _Unexplained
        if base.storages[one.storage].kind is StorageKind.CONSTANT:
            continue
        for dim, (was, now) in enumerate(zip(one.shape, two.shape, strict=True)):
            if was != now:
                found[one.id, dim] = was - now
    return found
