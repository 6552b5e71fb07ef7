"""What samples say, and how sure that is. No torch in it.

Every figure of time in a report is made here from the samples of one row: milliseconds per iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

Z95 = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""

WIDE = 0.10
"""A row is unsteady where the middle half of its samples spans more than this share of the median, or where outliers
pull the mean further than this share away from it."""

SETTLED = 0.02
"""An adaptive run stops when the median's 95 % interval is narrower than this share of the median: ±1 %."""

FEWEST = 10
"""Samples below which no run counts as settled."""


def describe(samples: ArrayLike) -> dict[str, Any]:
    """Give mean, standard deviation, minimum, percentiles and steadiness of one row's samples, in their unit.

    >>> describe([2.0, 1.0, 3.0])["p50_ms"], describe([2.0, 1.0, 3.0])["std_ms"]
    (2.0, 1.0)
    """
    values = np.asarray(samples, dtype=np.float64)
    low, p50, p95 = (float(p) for p in np.percentile(values, (0, 50, 95)))
    mean = float(values.mean())
    return {
        "mean_ms": mean,
        "std_ms": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "min_ms": low,
        "p50_ms": p50,
        "p95_ms": p95,
        "unsteady": is_wide(values) or abs(mean - p50) > WIDE * p50,
    }


def is_wide(samples: ArrayLike) -> bool:
    """Tell whether the middle half of the samples spans too much for their median to be trusted.

    >>> is_wide([1.0, 1.0, 1.0, 1.0, 9.0]), is_wide([1.0, 2.0, 3.0, 4.0])
    (False, True)
    """
    p25, p50, p75 = np.percentile(np.asarray(samples, dtype=np.float64), (25, 50, 75))
    return bool(p75 - p25 > WIDE * p50)


def median_ranks(count: int) -> tuple[int, int]:
    """Give the ranks, from 0, of the order statistics between which the median lies with 95 % confidence.

    The number of samples below the median is binomial; this is its normal approximation, as in Le Boudec,
    Performance Evaluation (2010), section 2.2.2. For very few samples they are the smallest and the largest.

    >>> median_ranks(100), median_ranks(3)
    ((39, 60), (0, 2))
    """
    half = Z95 * math.sqrt(count) / 2
    low = math.floor(count / 2 - half) - 1
    high = math.ceil(count / 2 + half + 1) - 1
    return max(low, 0), min(high, count - 1)


def is_settled(ordered: Sequence[float]) -> bool:
    """Tell whether the median of sorted samples is known well enough to stop.

    >>> is_settled([1.0] * 20), is_settled([1.0, 2.0] * 10)
    (True, False)
    """
    count = len(ordered)
    if count < FEWEST:
        return False
    low, high = median_ranks(count)
    return ordered[high] - ordered[low] < SETTLED * ordered[count // 2]


def mann_whitney(one: ArrayLike, other: ArrayLike) -> float:
    """Give the two-sided p-value that two sets of samples come from the same distribution.

    Rank sums with the normal approximation, corrected for ties and continuity (Mann and Whitney, 1947).

    >>> mann_whitney([1, 2, 3, 4], [1, 2, 3, 4])
    1.0
    >>> mann_whitney(range(20), range(30, 50)) < 1e-6
    True
    """
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    n, m = len(a), len(b)
    both = np.concatenate((a, b))
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum()) / (total * (total - 1)) if total > 1 else 0.0
    variance = n * m / 12 * (total + 1 - ties)
    if variance <= 0:
        return 1.0
    z = max(abs(u - n * m / 2) - 0.5, 0.0) / math.sqrt(variance)
    return min(math.erfc(z / math.sqrt(2)), 1.0)
