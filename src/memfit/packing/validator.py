"""An independent check of a packing: it shares nothing with the planners but the problem's own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memfit.packing.problem import Problem


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a packing breaks."""

    rule: str
    """`missing`, `unknown`, `negative`, `alignment`, `fixed`, `alias`, `capacity`, `height` or `overlap`."""
    message: str
    """Which buffers break it, and how."""


def violations(
    problem: Problem, offsets: Mapping[str, int], *, height: int | None = None, capacity: int | None = None
) -> list[Violation]:
    """List every rule that a packing breaks; none for a valid one.

    >>> from memfit.packing import Buffer, Problem
    >>> problem = Problem((Buffer("a", 4, [(0, 2)]), Buffer("b", 4, [(1, 3)])))
    >>> violations(problem, {"a": 0, "b": 4})
    []
    >>> violations(problem, {"a": 0, "b": 2})[0].message
    'a and b overlap: both use addresses [2, 4) in [1, 2)'

    Args:
        problem: what was to be packed.
        offsets: name of each buffer → its first address, in bytes.
        height: what the packing says its height is, in bytes; None leaves it unchecked.
        capacity: the arena it must lie within, in bytes; None for any.
    """
    return [Violation(rule, message) for rule, message in _violations(problem, offsets, height, capacity)]


def _violations(
    problem: Problem, offsets: Mapping[str, int], height: int | None, capacity: int | None
) -> Iterator[tuple[str, str]]:
    names = {buffer.name for buffer in problem.buffers}
    for name in names - offsets.keys():
        yield "missing", f"{name} has no offset"
    for name in offsets.keys() - names:
        yield "unknown", f"{name} is not a buffer of the problem"
    if names - offsets.keys():
        return
    rectangles = []
    for buffer in problem.buffers:
        at = offsets[buffer.name]
        if at < 0:
            yield "negative", f"{buffer.name} begins at {at}"
        if at % buffer.alignment or at % problem.alignment:
            yield "alignment", f"{buffer.name} begins at {at}, alignment {buffer.alignment} and {problem.alignment}"
        if buffer.offset is not None and buffer.offset != at:
            yield "fixed", f"{buffer.name} begins at {at}, fixed at {buffer.offset}"
        for span in buffer.spans:
            if span.size and span.lower < span.upper:
                low = at + span.start
                rectangles.append((span.lower, span.upper, low, low + span.size, buffer.name))
    for alias in problem.aliases:
        if offsets[alias.buffer] - offsets[alias.of] != alias.distance:
            found = offsets[alias.buffer] - offsets[alias.of]
            yield "alias", f"{alias.buffer} lies {found} from {alias.of}, not {alias.distance}"
    top = max((rectangle[3] for rectangle in rectangles), default=0)
    if height is not None and height != top:
        yield "height", f"the height is {top}, not {height}"
    if capacity is not None and top > capacity:
        yield "capacity", f"the height is {top}, over the capacity of {capacity}"
    group = _groups(problem)
    rectangles.sort()
    live: list[tuple[int, int, int, int, str]] = []
    for lower, upper, low, high, name in rectangles:
        live = [other for other in live if other[1] > lower]
        for _, end, bottom, ceiling, other in live:
            if low < ceiling and bottom < high and group[name] != group[other]:
                shared = f"[{max(low, bottom)}, {min(high, ceiling)}) in [{lower}, {min(upper, end)})"
                yield "overlap", f"{other} and {name} overlap: both use addresses {shared}"
        live.append((lower, upper, low, high, name))


def _groups(problem: Problem) -> dict[str, str]:
    """Name each buffer's alias group by one of its members."""
    group = {buffer.name: buffer.name for buffer in problem.buffers}
    for alias in problem.aliases:
        keep, drop = group[alias.of], group[alias.buffer]
        for name, was in group.items():
            if was == drop:
                group[name] = keep
    return group
