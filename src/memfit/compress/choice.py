"""Which channels to take out, so that a network keeps its limits and loses as little importance as possible.

The search works on numbers alone: what each operation needs, and how much less with one channel of a group fewer. Both
come from the memory model itself, evaluated on the graph with other sizes (`resize`). Needs are linear in the counts;
where one is not (MACs, flash), the factors are taken again after a share of the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

from memfit.errors import UsageError

_STRETCH = 0.1
"""Share of what a limit still asks for beyond which the factors of MACs and flash are taken again."""


class Figures(NamedTuple):
    """What a network with some channel counts takes."""

    needs: tuple[int, ...]
    """Bytes at each operation under the memory model, or only their sum for a model that adds up."""
    flash: int
    macs: int

    @property
    def peak(self) -> int:
        """The largest need."""
        return max(self.needs, default=0)


class Limits(NamedTuple):
    """What a network may take; None where there is no limit."""

    peak: int | None = None
    flash: int | None = None
    macs: int | None = None

    def exceeded(self, figures: Figures) -> dict[str, float]:
        """Give by how much figures are above each limit that they break, as a share of the limit."""
        pairs = {
            "peak": (figures.peak, self.peak),
            "flash": (figures.flash, self.flash),
            "macs": (figures.macs, self.macs),
        }
        return {
            name: (value - limit) / max(limit, 1)
            for name, (value, limit) in pairs.items()
            if limit is not None and value > limit
        }


@dataclass
class Pool:
    """The channels of one group that may go, the least important first."""

    channels: int
    least: int
    """Channels that must stay."""
    order: list[int]
    """Channel numbers by rising importance."""
    rating: list[float]
    """Importance in that order."""
    relative: bool
    """True where importance compares only channels of one group, so that a loss is a share of what is left of it."""
    taken: int = 0
    left: float = field(init=False)
    """Importance of the channels that are still there."""

    def __post_init__(self) -> None:
        self.left = sum(self.rating)

    @property
    def free(self) -> int:
        """Channels that may still go."""
        return self.channels - self.least - self.taken

    def cost(self) -> float:
        """Give what the next channel costs: the share of the group's remaining importance that goes with it.

        As -log(1 - share), so that costs add up: taking half of what is left twice costs the same both times.
        """
        rating = self.rating[self.taken]
        if not self.relative:
            return max(rating, 1e-30)
        if rating >= self.left:
            return math.inf
        # A channel that rates nothing still gives room for less: as if a thousandth of an average one.
        floor = 1e-3 / max(self.channels - self.taken, 1)
        share = max(rating / self.left if self.left > 0 else 0.0, floor)
        return -math.log1p(-min(share, 1 - 1e-12))

    def take(self) -> None:
        """Let the next channel go."""
        self.left = max(self.left - self.rating[self.taken], 0.0)
        self.taken += 1


Evaluate = Callable[[Sequence[int]], Figures]
"""Channels taken out of each group → what the network then takes."""


def pool(rating: Sequence[float], *, least: int, relative: bool, fixed: bool = False) -> Pool:
    """Order a group's channels by importance; equal ones go from the last to the first.

    >>> pool([0.5, 0.1, 0.4], least=1, relative=True).order
    [1, 2, 0]
    """
    count = len(rating)
    order = sorted(range(count), key=lambda i: (rating[i], -i))
    kept = count if fixed else min(least, count)
    return Pool(count, kept, order, [float(rating[i]) for i in order], relative)


def smallest(pools: Sequence[Pool], evaluate: Evaluate, limits: Limits) -> Figures:
    """Give what the network takes with as few channels as may be.

    Raises:
        UsageError: that is still more than a limit; says what the smallest is.
    """
    figures = evaluate([p.channels - p.least for p in pools])
    left = max((p.least for p in pools if p.least < p.channels), default=0)
    for name, option in (("peak", "--budget"), ("flash", "--max-flash"), ("macs", "--max-macs")):
        limit, reached = getattr(limits, name), getattr(figures, name)
        if limit is not None and reached > limit:
            from memfit.units import format_bytes, format_count

            write = format_count if name == "macs" else format_bytes
            exact = "" if name == "macs" else f" ({reached:,} bytes)"
            raise UsageError(
                f"pruning cannot reach this {'number of MACs' if name == 'macs' else name}",
                where=option,
                received=write(limit),
                todo=f"the smallest reachable is {write(reached)}{exact}, "
                + (f"with {left} channels left in each layer" if left else "and no channel may be taken out"),
            )
    return figures


def by_peak(pools: Sequence[Pool], evaluate: Evaluate, limits: Limits) -> list[int]:
    """Choose channels one by one: where the peak is, the one that lowers it most for the importance that it costs.

    Where flash or MACs are further above their limits than the peak, the channel is chosen by what it lowers of them.

    Args:
        pools: by group.
        evaluate: what the network takes with other counts.
        limits: which all can be met; see `smallest`.

    Returns:
        Channels to take out of each group.
    """
    pools = [copy(p) for p in pools]
    counts = [p.taken for p in pools]
    figures = evaluate(counts)
    while exceeded := limits.exceeded(figures):
        factors = [_factors(evaluate, counts, group, figures) if p.free else None for group, p in enumerate(pools)]
        needs = list(figures.needs)
        values = {"flash": float(figures.flash), "macs": float(figures.macs)}
        stops = {
            name: values[name] - max(_STRETCH * values[name], 1.0) for name in ("flash", "macs") if name in exceeded
        }
        while True:
            now = Figures(tuple(needs), math.ceil(values["flash"]), math.ceil(values["macs"]))
            above = limits.exceeded(now)
            if not above or any(values[name] < stop for name, stop in stops.items() if name in above):
                break
            name = max(above, key=lambda n: above[n])
            group = _best(pools, factors, name, needs)
            if group is None:
                break
            chosen = factors[group]
            assert chosen is not None  # only groups with channels to give are chosen
            pools[group].take()
            counts[group] += 1
            for op, less in chosen.needs:
                needs[op] -= less
            values["flash"] -= chosen.flash
            values["macs"] -= chosen.macs
        before = figures
        figures = evaluate(counts)
        if figures == before:  # nothing left that helps: the limits were not possible together
            break
    return counts


class _Less(NamedTuple):
    """What the network takes less with one channel of a group fewer."""

    needs: tuple[tuple[int, int], ...]
    """(operation, bytes), where there are any."""
    at: dict[int, int]
    flash: int
    macs: int


def _factors(evaluate: Evaluate, counts: Sequence[int], group: int, figures: Figures) -> _Less:
    fewer = evaluate([count + (other == group) for other, count in enumerate(counts)])
    needs = tuple(
        (op, was - now) for op, (was, now) in enumerate(zip(figures.needs, fewer.needs, strict=True)) if was != now
    )
    return _Less(needs, dict(needs), figures.flash - fewer.flash, figures.macs - fewer.macs)


def _best(pools: Sequence[Pool], factors: Sequence[_Less | None], name: str, needs: Sequence[int]) -> int | None:
    """Find the group whose next channel lowers a figure most for its cost."""
    at = max(range(len(needs)), key=lambda op: needs[op]) if name == "peak" else 0
    best, found = 0.0, None
    for group, (p, less) in enumerate(zip(pools, factors, strict=True)):
        if less is None or not p.free:
            continue
        gain = less.at.get(at, 0) if name == "peak" else getattr(less, name)
        if gain <= 0:
            continue
        value = gain / p.cost()
        if found is None or value > best:
            best, found = value, group
    return found


def by_share(pools: Sequence[Pool], evaluate: Evaluate, limits: Limits) -> list[int]:
    """Take the same share of channels out of every group: the smallest share with which all limits hold.

    Args:
        pools: by group.
        evaluate: what the network takes with other counts.
        limits: which all can be met; see `smallest`.

    Returns:
        Channels to take out of each group.
    """

    def counts(share: float) -> list[int]:
        return [min(math.floor(share * p.channels + 1e-9), p.channels - p.least) for p in pools]

    shares = sorted({taken / p.channels for p in pools for taken in range(p.channels - p.least + 1)})
    low, high = 0, len(shares) - 1
    while low < high:
        middle = (low + high) // 2
        if limits.exceeded(evaluate(counts(shares[middle]))):
            low = middle + 1
        else:
            high = middle
    return counts(shares[low])


STRATEGIES: dict[str, Callable[[Sequence[Pool], Evaluate, Limits], list[int]]] = {"peak": by_peak, "uniform": by_share}
"""Ways to choose, by name."""
