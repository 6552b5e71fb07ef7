"""Where to end a range: searches over a histogram for the least divergence or the least error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memfit.compress.observers import Floats, Histogram

_CANDIDATES = 128
"""Ends of a range that are tried; they lie evenly between the narrowest and the widest."""


def _tried(histogram: Histogram) -> int:
    """Say how many ends are worth trying: fewer where bins are few, as they are for channels."""
    return max(min(_CANDIDATES, histogram.bins // 32), 2)


def entropy_threshold(histogram: Histogram, channel: int, bits: int, *, one_sided: bool) -> float:
    """Find the threshold at which the clipped and quantized distribution is closest to the true one.

    The counts beyond the threshold join the last bin on their side; that distribution is compared with the one in which
    the bins within are joined into as many levels as there are numbers and spread evenly over the bins that are not
    empty, by the Kullback-Leibler divergence. As in TensorRT (S. Migacz, "8-bit Inference with TensorRT", GTC 2017),
    which does so for magnitudes; here both signs are kept apart, and the bin at zero counts no more than its larger
    neighbour.

    Args:
        histogram: what was counted.
        channel: whose counts.
        bits: of the representation.
        one_sided: all values have one sign, so that every level is on that side.

    Returns:
        The largest magnitude to represent; the whole range where there are as many levels as bins.
    """
    half = histogram.bins // 2
    row = histogram.counts[channel].astype(np.float64)
    # Zero is always on the grid, and after a ReLU half of all values are zero: they must not decide.
    row[half] = min(row[half], max(row[half - 1], row[half + 1], 1.0))
    width = float(histogram.width[channel])
    occupied = np.flatnonzero(row)
    most = int(max(occupied[-1] - half + 1, half - occupied[0]))
    levels = 1 << bits
    least = levels if one_sided else levels // 2
    if least >= most:
        return most * width
    best, found = np.inf, most
    for reach in np.unique(np.linspace(least, most, _tried(histogram)).round().astype(int)):
        inside = row[half - reach : half + reach]
        clipped = inside.copy()
        clipped[0] += row[: half - reach].sum()
        clipped[-1] += row[half + reach :].sum()
        if one_sided:
            side = slice(reach, None) if occupied[-1] >= half else slice(None, reach)
            inside, clipped = inside[side], clipped[side]
        divergence = _divergence(clipped, _levelled(inside, levels))
        if divergence < best:
            best, found = divergence, int(reach)
    return found * width


def _levelled(counts: Floats, levels: int) -> Floats:
    """Join bins into levels, and spread each level's counts over those of its bins that are not empty."""
    bounds = np.arange(len(counts)) * levels // len(counts)
    sums = np.bincount(bounds, weights=counts, minlength=levels)
    filled = np.bincount(bounds, weights=(counts > 0).astype(np.float64), minlength=levels)
    spread = np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0)
    result: Floats = np.where(counts > 0, spread[bounds], 0.0)
    return result


def _divergence(p: Floats, q: Floats) -> float:
    """Compute the Kullback-Leibler divergence of two histograms, empty bins of the second a little filled."""
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / np.maximum(q[there], 1e-12))))


def least_error(
    histogram: Histogram, channel: int, ends: tuple[float, float], bits: int, *, symmetric: bool
) -> tuple[float, float]:
    """Find the range whose grid gives the least mean squared error for what was counted.

    Every bin stands for its middle. First both ends are drawn in together, then each by itself.

    Args:
        histogram: what was counted.
        channel: whose counts.
        ends: least and largest value seen; the range never reaches beyond.
        bits: of the grid.
        symmetric: zero in the middle.
    """
    occupied = np.flatnonzero(histogram.counts[channel])
    counts = histogram.counts[channel][occupied].astype(np.float64)
    middles = (occupied - histogram.bins // 2 + 0.5) * float(histogram.width[channel])
    middles = np.clip(middles, *ends)

    def best(lows: Floats, highs: Floats) -> tuple[float, float]:
        errors = _errors(middles, counts, lows, highs, bits, symmetric=symmetric)
        place = int(np.argmin(errors))
        return float(lows[place]), float(highs[place])

    tried = _tried(histogram)
    shares = np.linspace(1.0, 1.0 / tried, tried)
    low, high = best(ends[0] * shares, ends[1] * shares)
    if symmetric:
        return low, high
    near = np.linspace(0.5, 1.5, tried // 2 + 1)
    low, high = best(np.full(near.shape, low), np.clip(high * near, *ends))
    return best(np.clip(low * near, *ends), np.full(near.shape, high))


_AT_ONCE = 1 << 16
"""Bins of all ranges together whose errors are computed at once, so that they stay in the processor's cache."""


def _errors(middles: Floats, counts: Floats, lows: Floats, highs: Floats, bits: int, *, symmetric: bool) -> Floats:
    """Sum the squared errors of each range's grid."""
    from memfit.compress.observers import grid

    grids = [grid(float(low), float(high), bits, symmetric=symmetric) for low, high in zip(lows, highs, strict=True)]
    scales = np.array([g.scale for g in grids])[:, None]
    zeros = np.array([float(g.zero_point) for g in grids])[:, None]
    step = max(1, _AT_ONCE // len(middles))
    errors = []
    for start in range(0, len(grids), step):
        scale, zero = scales[start : start + step], zeros[start : start + step]
        numbers = np.rint(middles / scale)
        np.clip(numbers, grids[0].least - zero, grids[0].most - zero, out=numbers)
        numbers *= scale
        numbers -= middles
        numbers *= numbers
        errors.append(numbers @ counts)
    result: Floats = np.concatenate(errors)
    return result
