"""Ranges in constant memory: held against NumPy and against PyTorch's own observers, whole and in pieces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from memfit.compress.observers import (
    BINS,
    METHODS,
    OF_HISTOGRAMS,
    Histogram,
    Observer,
    grid,
    range_of,
)
from memfit.errors import UsageError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def observed(values: Tensor, sizes: list[int] | None = None, **options: Any) -> Observer:
    observer = Observer(**options)
    for part in values.split(sizes or [len(values)]):
        observer.add(part)
    return observer


def skewed(seed: int = 0, shape: tuple[int, ...] = (12, 5, 6, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.logspace(-2, 2, shape[0])[:, None, None, None]
    return values + 0.5 * torch.randn(shape, generator=generator).exp()


# -- histograms ---------------------------------------------------------------------------------------------------


def test_bins_are_as_numpy_counts_them() -> None:
    values = skewed().reshape(1, -1)
    histogram = Histogram(bins=256)
    histogram.add(values)
    expected, _ = np.histogram(values.double().numpy(), histogram.edges(0))
    assert histogram.counts[0].tolist() == expected.tolist()
    assert histogram.counts.sum() == values.numel()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(
            st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.0**20, -(2.0**20)]),
            max_size=6,
        ),
        min_size=1,
        max_size=5,
    )
)
@example([[2.0**26], [-(2.0**-126)]])  # the second, in bins as wide as the first needs, is all but zero
def test_growth_loses_no_count_and_order_does_not_matter(parts: list[list[float]]) -> None:
    whole, pieces, backwards = Histogram(bins=16), Histogram(bins=16), Histogram(bins=16)
    tensors = [torch.tensor([part], dtype=torch.float32) for part in parts]
    whole.add(torch.cat(tensors, 1))
    for tensor in tensors:
        pieces.add(tensor)
    for tensor in reversed(tensors):
        backwards.add(tensor)
    assert whole.counts.sum() == sum(map(len, parts))
    for other in (pieces, backwards):
        assert other.width.tolist() == whole.width.tolist()
        assert other.counts.tolist() == whole.counts.tolist()


def test_channels_are_counted_as_if_each_were_alone() -> None:
    values = skewed(shape=(6, 40, 3, 3)).movedim(1, 0).reshape(40, -1)
    values[3] = 0  # a dead channel
    together = Histogram(40, 64)
    for part in values.split(20, 1):
        together.add(part)
    for channel in range(40):
        alone = Histogram(1, 64)
        alone.add(values[channel : channel + 1])
        assert together.counts[channel].tolist() == alone.counts[0].tolist()
        assert together.width[channel] == alone.width[0]


def test_memory_does_not_grow_with_samples() -> None:
    observer = Observer(5, histograms=True)
    sizes = set()
    for seed in range(5):
        observer.add(skewed(seed))
        assert observer.by_channel is not None
        sizes.add((observer.whole.counts.nbytes, observer.by_channel.whole.counts.nbytes))
    assert len(sizes) == 1
    assert observer.whole.counts.nbytes == 8 * BINS


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.9, 0.999, 1.0])
def test_quantiles_are_numpys_to_a_bin(share: float) -> None:
    values = skewed()
    observer = observed(values)
    expected = np.quantile(values.numpy(), share, method="inverted_cdf")
    assert abs(observer.whole.quantile(share) - expected) <= observer.whole.width[0]


# -- what is seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 4, 3]])
@pytest.mark.parametrize("method", METHODS)
def test_batches_make_no_difference(method: str, sizes: list[int]) -> None:
    values = skewed()
    options: dict[str, Any] = {"channels": 5, "histograms": method in OF_HISTOGRAMS}
    one, other = observed(values, **options), observed(values, sizes, **options)
    for a, b in ((one, other), (one.by_channel, other.by_channel)):
        assert a is not None
        assert b is not None
        found, again = range_of(a, method), range_of(b, method)
        assert found.low.tolist() == again.low.tolist()
        assert found.high.tolist() == again.high.tolist()
    assert (one.elements, one.samples) == (other.elements, other.samples) == (values.numel(), 12)


def test_least_and_largest_are_those_of_pytorch() -> None:
    from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver

    values = skewed()
    observer = observed(values, [5, 4, 3], channels=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, channels = MinMaxObserver(), PerChannelMinMaxObserver(ch_axis=1)
    for part in values.split([5, 4, 3]):
        whole(part)
        channels(part)
    found = range_of(observer, "minmax")
    assert (found.low[0], found.high[0]) == (whole.min_val.item(), whole.max_val.item())
    assert observer.by_channel is not None
    by_channel = range_of(observer.by_channel, "minmax")
    assert by_channel.low.tolist() == channels.min_val.tolist()
    assert by_channel.high.tolist() == channels.max_val.tolist()


def test_moving_average_is_that_of_pytorch_sample_by_sample() -> None:
    from torch.ao.quantization.observer import MovingAverageMinMaxObserver

    values = skewed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MovingAverageMinMaxObserver(averaging_constant=0.01)
    for sample in values:
        theirs(sample)
    found = range_of(observed(values, [7, 5]), "moving-average")
    assert found.low[0] == pytest.approx(theirs.min_val.item(), rel=1e-5)
    assert found.high[0] == pytest.approx(theirs.max_val.item(), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scale_and_zero_point_are_those_of_pytorch(bits: int, symmetric: bool) -> None:
    from torch.ao.quantization.observer import MinMaxObserver

    for low, high in ((-1.0, 3.0), (0.0, 2.0), (-5.0, -1.0), (4.0, 5.0), (-1e-3, 1e4)):
        found = grid(low, high, bits, symmetric=symmetric)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = MinMaxObserver(
                dtype=torch.qint32,
                qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
                quant_min=found.least,
                quant_max=found.most,
                eps=0.0,
            )
        theirs(torch.tensor([low, high]))
        scale, zero_point = theirs.calculate_qparams()
        assert found.scale == pytest.approx(scale.item(), rel=1e-6)
        assert found.zero_point == zero_point.item()
        assert found.least <= found.zero_point <= found.most


def test_zero_is_on_every_grid() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -0.5), (0.0, 0.0), (1e-44, 1e-44), (-3e38, 3e38)):
        for bits in range(2, 17):
            found = grid(low, high, bits)
            assert math.isfinite(found.scale)
            assert found.scale > 0
            assert found.least <= found.zero_point <= found.most
            reach = (found.most - found.zero_point) * found.scale
            assert reach >= max(high, 0) - found.scale * 0.51


@pytest.mark.parametrize("bits", [1, 17, 0])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="2 to 16 bits") as error:
        grid(0, 1, bits)
    assert error.value.received == str(bits)


# -- methods ------------------------------------------------------------------------------------------------------


def error_of(values: Tensor, low: float, high: float, bits: int, symmetric: bool = False) -> float:
    g = grid(low, high, bits, symmetric=symmetric)
    numbers = (values.double() / g.scale).round().add(g.zero_point).clamp(g.least, g.most)
    return ((numbers - g.zero_point) * g.scale - values).square().mean().item()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_nearly_the_least_error(bits: int, symmetric: bool) -> None:
    values = torch.randn(1, 1500, generator=torch.Generator().manual_seed(3)).clamp(min=-1.0)
    observer = observed(values)
    found = range_of(observer, "mse", bits=bits, symmetric=symmetric)
    own = error_of(values, float(found.low[0]), float(found.high[0]), bits, symmetric)
    ends = np.linspace(0.05, 1, 40)
    low, high = float(observer.low[0]), float(observer.high[0])
    best = min(error_of(values, a * low, b * high, bits, symmetric) for a in ends[::5] for b in ends)
    assert own <= 1.05 * best
    assert own <= error_of(values, low, high, bits, symmetric)


def test_mse_is_not_worse_than_pytorchs_histogram() -> None:
    from torch.ao.quantization.observer import HistogramObserver

    values = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)).mul(2).exp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HistogramObserver(dtype=torch.qint8)
        theirs(values)
        scale, zero_point = theirs.calculate_qparams()
    span = (-128 - zero_point.item()) * scale.item(), (127 - zero_point.item()) * scale.item()
    found = range_of(observed(values), "mse")
    assert error_of(values, float(found.low[0]), float(found.high[0]), 8) <= 1.02 * error_of(values, *span, 8)


def test_entropy_cuts_off_rare_outliers() -> None:
    generator = torch.Generator().manual_seed(2)
    bulk = torch.randn(1, 200_000, generator=generator)
    values = torch.cat([bulk, torch.full((1, 3), 60.0)], 1)
    for seen, two_sided in ((values, True), (values.relu(), False)):
        found = range_of(observed(seen), "entropy")
        assert 3.0 < found.high[0] < 15.0
        assert (found.low[0] < -3.0) == two_sided
    assert range_of(observed(values), "minmax").high[0] == 60.0


def test_entropy_keeps_all_where_there_are_as_many_levels_as_bins() -> None:
    observer = observed(skewed())
    found = range_of(observer, "entropy", bits=16)
    assert (found.low[0], found.high[0]) == (observer.low[0], observer.high[0])


def test_percentile_ends_where_it_says() -> None:
    values = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(5))
    observer = observed(values)
    found = range_of(observer, "percentile", percentile=99.0)
    low, high = np.percentile(values.numpy(), [1, 99])
    assert found.low[0] == pytest.approx(low, abs=observer.whole.width[0])
    assert found.high[0] == pytest.approx(high, abs=observer.whole.width[0])
    with pytest.raises(UsageError, match="no such method") as error:
        range_of(observer, "guess")
    assert error.value.received == "'guess'"


# -- what has no range --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_odd_activations(method: str) -> None:
    inf = math.inf
    cases: list[tuple[Tensor, float, float]] = [
        (torch.zeros(2, 3), 0.0, 0.0),
        (torch.full((2, 3), 5.0), 5.0, 5.0),
        (torch.full((2, 3), -0.125), -0.125, -0.125),
        (torch.tensor([[inf, 1.0, -inf], [-inf, inf, 1.0]]), 1.0, 1.0),
        (torch.tensor([[3, 3], [3, 3]]), 3.0, 3.0),
        (torch.full((2, 3), 1.5, dtype=torch.bfloat16), 1.5, 1.5),
        (torch.full((2, 3), 3e38), 3e38, 3e38),
    ]
    for values, low, high in cases:
        observer = observed(values, channels=values.shape[1], histograms=True)
        found = range_of(observer, method)
        assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
        assert observer.whole.counts.sum() == int(torch.isfinite(values).sum())
        assert grid(float(found.low[0]), float(found.high[0])).scale > 0
    for values in (torch.empty(2, 0), torch.full((2, 3), inf)):
        assert math.isnan(range_of(observed(values), method).low[0])
    with pytest.raises(ValueError, match="not a number"):
        observed(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="not a number"):
        observed(torch.tensor([[math.nan, inf]]))
