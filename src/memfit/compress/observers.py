"""Ranges of activations in constant memory: streaming histograms, and what each method makes of them.

A histogram's bins are `2^e` wide and start at whole multiples of that. When a value does not fit, `e` grows and
neighbouring bins join; dividing by a power of two and rounding down give the same bin whether in one step or in
several. So no count is ever lost or moved: the histogram of the same values is the same to the last count, however
they are split into batches and in whatever order they come.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memfit.errors import UsageError

Counts = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

BINS, CHANNEL_BINS = 8192, 1024
"""Bins of a histogram, half of them below zero; those of one channel are fewer."""

AVERAGING = 0.01
"""Share of a new sample in a moving average, as in torch.ao's MovingAverageMinMaxObserver (PyTorch 2.13):
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/ao/quantization/observer.py"""

PERCENTILE = 99.99
"""Percent of the values that the range of the method `percentile` reaches, at either end, as TensorRT's default."""

_CHUNK = 1 << 18
"""Elements counted at once: their copies stay in the processor's cache, and memory is the same for any size."""


class Range(NamedTuple):
    """A range of values that is to be represented; one entry for the whole tensor, or one per channel."""

    low: Floats
    high: Floats


class Histogram:
    """Counts of values in bins that double their width when a value does not fit.

    >>> histogram = Histogram(bins=8)
    >>> histogram.add(torch.tensor([[0.5, 1.0, -3.0]]))
    >>> histogram.add(torch.tensor([[7.0]]))  # bins from -8 to 8 now, each 2 wide
    >>> histogram.width.tolist(), histogram.counts.tolist()
    ([2.0], [[0, 0, 1, 0, 2, 0, 0, 1]])

    Args:
        channels: how many histograms side by side.
        bins: of each, an even number.
    """

    def __init__(self, channels: int = 1, bins: int = BINS) -> None:
        self.channels, self.bins = channels, bins
        self.counts: Counts = np.zeros((channels, bins), np.int64)
        self._exponent = np.full(channels, _NONE, np.int64)
        """Of the bins' width; `_NONE` while a channel has seen only zeros."""

    @property
    def width(self) -> Floats:
        """Width of a bin, per channel."""
        return np.asarray(np.ldexp(1.0, np.maximum(self._exponent, _LEAST)), np.float64)

    def add(self, values: Tensor) -> None:
        """Count values.

        Args:
            values: finite, of the shape (channels, any number), floating point.
        """
        if not values.numel():
            return
        least, most = torch.aminmax(values, dim=1)
        largest = torch.maximum(least.abs(), most.abs()).double().numpy()
        _, exponent = np.frexp(largest)
        wanted = np.where(largest > 0, np.maximum(exponent - (self.bins.bit_length() - 2), _LEAST), _NONE)
        self._widen(np.maximum(wanted, self._exponent))
        scale = np.ldexp(1.0, -np.where(self._exponent == _NONE, 0, self._exponent))
        # In single precision a factor below one would round the smallest negative values to zero, one bin too high.
        wide = values.dtype is torch.float64 or float(scale.max()) > 1e38 or float(scale.min()) < 1
        dtype = torch.float64 if wide else torch.float32
        factor = torch.from_numpy(scale).to(dtype)
        if self.channels == 1:
            self._count(values.reshape(-1), float(factor[0]), dtype)
            return
        base = torch.arange(self.channels).mul_(self.bins).add_(self.bins // 2)
        step = max(1, _CHUNK // self.channels)
        size = self.channels * self.bins
        total = torch.zeros(size, dtype=torch.int64)
        for part in torch.split(values, step, 1):
            places = part.to(dtype).mul(factor[:, None]).floor_().to(torch.int64).add_(base[:, None])
            total += torch.bincount(places.reshape(-1), minlength=size)
        self.counts += total.view(self.channels, self.bins).numpy()

    def _count(self, values: Tensor, factor: float, dtype: torch.dtype) -> None:
        total = torch.zeros(self.bins, dtype=torch.int64)
        for part in torch.split(values, _CHUNK):
            places = part.to(dtype).mul(factor).floor_().add_(self.bins // 2).to(torch.int64)
            total += torch.bincount(places, minlength=self.bins)
        self.counts[0] += total.numpy()

    def _widen(self, wanted: Counts) -> None:
        """Join bins until each channel's width is the wanted one."""
        for channel in np.flatnonzero(wanted > self._exponent):
            before = int(self._exponent[channel])
            self._exponent[channel] = wanted[channel]
            if before == _NONE:  # only zeros so far, and they stay in the bin above zero
                continue
            row = self.counts[channel]
            places = np.flatnonzero(row)
            joined = np.zeros_like(row)
            shift = min(int(wanted[channel]) - before, 62)
            np.add.at(joined, ((places - self.bins // 2) >> shift) + self.bins // 2, row[places])
            self.counts[channel] = joined

    def edges(self, channel: int) -> Floats:
        """Give the lower ends of a channel's bins, and the upper end of the last."""
        whole = np.arange(-(self.bins // 2), self.bins // 2 + 1, dtype=np.float64)
        return np.asarray(whole * float(self.width[channel]), np.float64)

    def quantile(self, share: float, channel: int = 0) -> float:
        """Estimate the value below which a share of the counts lies, straight lines inside the bins."""
        row = self.counts[channel]
        total = int(row.sum())
        if not total:
            return math.nan
        below = np.cumsum(row)
        wanted = share * total
        place = min(int(np.searchsorted(below, wanted, "left")), self.bins - 1)
        while not row[place]:
            place += 1
        start = int(below[place] - row[place])
        width = float(self.width[channel])
        return (place - self.bins // 2 + min(max((wanted - start) / int(row[place]), 0.0), 1.0)) * width


_NONE, _LEAST = -(1 << 20), -1022
"""No exponent yet, and that of the smallest normal number: narrower bins would be nothing but zeros."""


class Observer:
    """What one layer put out so far, in constant memory.

    >>> observer = Observer()
    >>> observer.add(torch.tensor([[-1.0, 0.0, 3.0]]))
    >>> observer.low.item(), observer.high.item(), observer.elements, observer.samples
    (-1.0, 3.0, 3, 1)

    Args:
        channels: keep a range, and with `histograms` a histogram, per channel too.
        axis: which dimension of the output is the channel.
        histograms: per channel; the whole output always has one.
    """

    def __init__(self, channels: int = 0, axis: int = 1, *, histograms: bool = False) -> None:
        self.axis, self.channels = axis, channels
        self.elements = self.samples = self.infinite = 0
        """Elements and samples seen, and how many elements were infinite, which no range can hold."""
        self.whole = Histogram()
        self.low: Floats = np.full(1, math.inf)
        self.high: Floats = np.full(1, -math.inf)
        self.averaged_low: Floats = np.full(1, math.nan)
        self.averaged_high: Floats = np.full(1, math.nan)
        self.by_channel: Observer | None = None
        self._histograms = histograms
        if channels:
            self.by_channel = Observer.__new__(Observer)
            self.by_channel._begin_channels(channels, histograms)

    def _begin_channels(self, channels: int, histograms: bool) -> None:
        self.axis = self.channels = 0
        self.elements = self.samples = self.infinite = 0
        self.whole = Histogram(channels, CHANNEL_BINS if histograms else 2)
        self.low, self.high = np.full(channels, math.inf), np.full(channels, -math.inf)
        self.averaged_low, self.averaged_high = np.full(channels, math.nan), np.full(channels, math.nan)
        self.by_channel = None
        self._histograms = histograms

    def add(self, values: Tensor, samples: int | None = None) -> None:
        """Look at one batch.

        Args:
            values: the output, the samples along its first dimension; NaN is refused.
            samples: how many they are; None is the first dimension.

        Raises:
            ValueError: a value is not a number.
        """
        values = values.detach()
        if not values.is_floating_point():
            values = values.to(torch.float64 if values.dtype in (torch.int64, torch.int32) else torch.float32)
        elif values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        count = samples if samples is not None else (int(values.shape[0]) if values.dim() else 1)
        self.elements += values.numel()
        self.samples += count
        if not values.numel():
            return
        split = count if values.dim() and count and values.shape[0] % count == 0 else 1
        rows = values.reshape(1, split, -1)
        infinite = self._take(rows)
        self.infinite += infinite
        if self.by_channel is not None:
            moved = values.movedim(self.axis, 0).unsqueeze(1) if self.axis in (0, -values.dim()) else None
            if moved is None:
                batched = values.reshape(split, -1, *values.shape[1:])
                axis = self.axis % values.dim() + 1
                moved = batched.movedim(axis, 0)
            self.by_channel._take(moved.reshape(self.channels, moved.shape[1], -1))

    def _take(self, rows: Tensor) -> int:
        """Look at values of the shape (channels, samples, any number), and count those that are infinite."""
        least, most = torch.aminmax(rows, dim=2)
        low, high = least.double(), most.double()
        if bool(torch.isnan(low).any()):
            raise ValueError("a value is not a number")
        infinite = 0
        if bool(torch.isinf(low).any()) or bool(torch.isinf(high).any()):
            wrong = torch.isinf(rows)
            infinite = int(wrong.sum())
            low = rows.masked_fill(wrong, math.inf).amin(2).double()
            high = rows.masked_fill(wrong, -math.inf).amax(2).double()
            rows = rows.masked_fill(wrong, 0.0)
        self.low = np.minimum(self.low, low.amin(1).numpy())
        self.high = np.maximum(self.high, high.amax(1).numpy())
        self._average(low.numpy(), high.numpy())
        if self.whole.bins > 2:
            flat = rows.reshape(rows.shape[0], -1)
            self.whole.add(flat)
            if infinite:
                for channel, count in enumerate(wrong.flatten(1).sum(1).tolist()):
                    self.whole.counts[channel, self.whole.bins // 2] -= count
        return infinite

    def _average(self, low: Floats, high: Floats) -> None:
        """Let each sample in turn pull the averages, so that they do not depend on how samples are batched."""
        for sample in range(low.shape[1]):
            seen = low[:, sample] <= high[:, sample]
            first = seen & np.isnan(self.averaged_low)
            for averaged, new in ((self.averaged_low, low[:, sample]), (self.averaged_high, high[:, sample])):
                averaged[first] = new[first]
                later = seen & ~first
                averaged[later] += AVERAGING * (new[later] - averaged[later])


def _minmax(observer: Observer, _bits: int, _symmetric: bool, _percentile: float) -> Range:
    return Range(observer.low.copy(), observer.high.copy())


def _moving_average(observer: Observer, _bits: int, _symmetric: bool, _percentile: float) -> Range:
    return Range(observer.averaged_low.copy(), observer.averaged_high.copy())


def _percentile(observer: Observer, _bits: int, _symmetric: bool, percentile: float) -> Range:
    low, high = observer.low.copy(), observer.high.copy()
    for channel in range(len(low)):
        if low[channel] <= high[channel]:
            ends = (observer.whole.quantile(share, channel) for share in (1 - percentile / 100, percentile / 100))
            low[channel], high[channel] = (min(max(end, low[channel]), high[channel]) for end in ends)
    return Range(low, high)


def _entropy(observer: Observer, bits: int, _symmetric: bool, _percentile: float) -> Range:
    from memfit.compress.thresholds import entropy_threshold

    low, high = observer.low.copy(), observer.high.copy()
    for channel in range(len(low)):
        if low[channel] < high[channel]:
            reach = entropy_threshold(observer.whole, channel, bits, one_sided=low[channel] >= 0 or high[channel] <= 0)
            low[channel], high[channel] = max(low[channel], -reach), min(high[channel], reach)
    return Range(low, high)


def _mse(observer: Observer, bits: int, symmetric: bool, _percentile: float) -> Range:
    from memfit.compress.thresholds import least_error

    low, high = observer.low.copy(), observer.high.copy()
    for channel in range(len(low)):
        if low[channel] < high[channel]:
            ends = (float(low[channel]), float(high[channel]))
            low[channel], high[channel] = least_error(observer.whole, channel, ends, bits, symmetric=symmetric)
    return Range(low, high)


METHODS = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
"""Method → what it makes of what an observer saw."""

OF_HISTOGRAMS = ("percentile", "entropy", "mse")
"""Methods that need a histogram per channel for ranges per channel."""


def range_of(
    observer: Observer, method: str, *, bits: int = 8, symmetric: bool = False, percentile: float = PERCENTILE
) -> Range:
    """Choose the range to represent; NaN where nothing finite was seen.

    Args:
        observer: what was seen.
        method: minmax, moving-average, percentile, entropy or mse.
        bits: of the representation, for entropy and mse.
        symmetric: whether zero is to be in the middle, for mse.
        percentile: percent of the values at which the range ends on either side.

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(
            "there is no such method", where="--method", received=repr(method), todo=f"use {', '.join(METHODS)}"
        )
    found = METHODS[method](observer, bits, symmetric, percentile)
    empty = ~(found.low <= found.high)
    found.low[empty] = found.high[empty] = math.nan
    return found


class Grid(NamedTuple):
    """Numbers that a tensor is rounded to: `scale · (q - zero_point)` for whole q from `least` to `most`."""

    scale: float
    zero_point: int
    least: int
    most: int


def grid(low: float, high: float, bits: int = 8, *, symmetric: bool = False) -> Grid:
    """Lay a grid of signed whole numbers over a range, with zero on the grid.

    Asymmetric: the range is widened to hold zero, `scale = (high - low) / (2^bits - 1)`. Symmetric: the zero point is 0
    and the lowest number stays unused, `scale = max(|low|, |high|) / (2^(bits-1) - 1)`, as for TensorFlow Lite's
    weights (https://ai.google.dev/edge/litert/models/quantization_spec, read 2026-11-21). A range of zero width at
    zero gets the scale 1.

    >>> grid(-1.0, 1.55)
    Grid(scale=0.01, zero_point=-28, least=-128, most=127)
    >>> grid(-1.0, 1.27, symmetric=True)
    Grid(scale=0.01, zero_point=0, least=-127, most=127)
    >>> grid(0.0, 0.0)
    Grid(scale=1.0, zero_point=0, least=-128, most=127)

    Args:
        low: least value to represent.
        high: largest one.
        bits: 2 to 16.
        symmetric: zero in the middle.

    Raises:
        UsageError: bits that cannot be.
    """
    check_bits(bits)
    least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale = max(-low, high) / most
        return Grid(max(scale, _TINY) if scale else 1.0, 0, -most, most)
    scale = high / (most - least) - low / (most - least)
    if not scale:
        return Grid(1.0, 0, least, most)
    scale = max(scale, _TINY)
    return Grid(scale, min(max(round(least - low / scale), least), most), least, most)


_TINY = float(np.finfo(np.float32).tiny)
"""Smallest scale: a normal number in float32."""


def check_bits(bits: int, where: str = "--bits") -> None:
    """Refuse bits that no grid is made for.

    Raises:
        UsageError: fewer than 2 or more than 16.
    """
    if not 2 <= bits <= 16:
        raise UsageError("a grid has 2 to 16 bits", where=where, received=str(bits), todo="use 2, 4, 8 or 16")
