"""`memfit calibrate`: the range of every layer's output, from real data, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memfit.analysis.layers import UNUSED, Layer
from memfit.analysis.result import Calibration
from memfit.compress.data import Data, Fingerprint, Sampling
from memfit.compress.freed import give_back
from memfit.compress.network import Network, opened
from memfit.compress.observers import METHODS, OF_HISTOGRAMS, PERCENTILE, Observer, Range, check_bits, grid, range_of
from memfit.errors import CaptureError, UsageError
from memfit.graph.model import Graph
from memfit.graph.optable import Role
from memfit.measure.session import Progress, no_progress
from memfit.units import format_names

if TYPE_CHECKING:
    from memfit.capture.entry import Inputs

MARKS = {"p1": 0.01, "p50": 0.5, "p99": 0.99}
"""Percentiles that every row gives beside its range."""

_LAST = frozenset({Role.LINEAR, Role.NORM, Role.ATTENTION, Role.MATMUL, Role.EMBEDDING, Role.RECURRENT})
"""Layers whose channels are their output's last dimension."""


@dataclass(frozen=True)
class Settings:
    """What to calibrate with; see `memfit.calibrate`."""

    sampling: Sampling
    method: str = "minmax"
    bits: int = 8
    symmetric: bool = False
    percentile: float | None = None
    per_channel: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_bits(self.bits)
        if self.method not in METHODS:
            raise UsageError(
                "there is no such method",
                where="--method",
                received=repr(self.method),
                todo=f"use {', '.join(METHODS)}",
            )
        if self.percentile is None or self.percentile == PERCENTILE:
            return
        if self.method != "percentile":
            raise UsageError(
                "a percentile is of the method of that name",
                where="--percentile",
                received=f"{self.percentile:g}, with --method {self.method}",
                todo="add --method percentile, or leave it out",
            )
        if not 50 < self.percentile <= 100:
            raise UsageError(
                "a range that ends at a percentile has one from 50 to 100",
                where="--percentile",
                received=str(self.percentile),
                todo="give 99.99, or less to leave out more",
            )

    def range_of(self, observer: Observer) -> Range:
        """Choose the range of what was seen."""
        return range_of(
            observer,
            self.method,
            bits=self.bits,
            symmetric=self.symmetric,
            percentile=PERCENTILE if self.percentile is None else self.percentile,
        )


def calibrate(
    source: str | nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    progress: Progress = no_progress,
) -> Calibration:
    """Run a network on data and find the range of each layer's output; arguments as for `memfit.calibrate`."""
    progress("building the model", 0, None)
    with opened(source, inputs, args=args, weights=weights, quick=True) as network:
        data = settings.sampling.open(network.wanted, again=False)
        watch = _Watch(network, settings)
        for batch in data:
            watch.add(batch.inputs, batch)
            give_back()
            progress("calibrating", watch.samples, data.length or settings.sampling.samples)
        return watch.result(data, progress)


class _Watch:
    """The observers of every layer."""

    def __init__(self, network: Network, settings: Settings) -> None:
        self.network, self.settings = network, settings
        self.samples = 0
        self.observers: dict[int, Observer] = {}
        self.described: tuple[dict[str, Any], ...] = ()
        self._data = Fingerprint()
        self._axes: list[int] = []

    def add(self, inputs: Sequence[Tensor], batch: Any) -> None:
        """Run one batch and look at every layer's output as it comes by."""
        runner, tensors = self.network.runner(batch)
        if not self._axes:
            self._axes = channel_axes(runner.graph, runner.layers)
            self.described = tuple(
                {"name": runner.graph.tensors[i].name, "shape": tuple(t.shape), "dtype": str(t.dtype)[6:]}
                for i, t in zip(runner.graph.inputs, inputs, strict=True)
            )
        count = batch.samples

        def look(number: int, output: Tensor) -> None:
            observer = self.observers.get(number)
            if observer is None:
                observer = self.observers[number] = self._observer(number, output)
            try:
                observer.add(output, count)
            except ValueError:
                raise not_a_number(runner.layers[number], output, self.samples, count) from None

        runner.run(tensors, on_output=look)
        self._data.add(batch)
        self.samples += count

    def _observer(self, number: int, output: Tensor) -> Observer:
        axis = self._axes[number]
        channels = 0
        if self.settings.per_channel and output.dim() > 1 and output.is_floating_point():
            channels = int(output.shape[axis])
        return Observer(channels, axis, histograms=self.settings.method in OF_HISTOGRAMS)

    def result(self, data: Data, progress: Progress = no_progress) -> Calibration:
        """Choose the ranges."""
        network, settings = self.network, self.settings
        assert network.graph is not None  # data without samples is refused
        rows: list[dict[str, Any]] = []
        channels: dict[str, dict[str, Any]] = {}
        infinite: list[str] = []
        empty: list[str] = []
        for number, layer in enumerate(network.layers):
            progress("choosing the ranges", number, len(network.layers))
            if layer.type == UNUSED:
                continue
            observer = self.observers.get(number)
            rows.append(self._row(layer, observer))
            if observer is None or not _floating(layer):
                continue
            if observer.infinite:
                infinite.append(layer.name)
            if rows[-1]["min"] is None:
                empty.append(layer.name)
            if observer.by_channel is not None:
                channels[layer.name] = self._channels(observer)
        notes = [*network.notes, *network.graph.notes]
        if infinite:
            notes.append(f"infinite values are left out of the ranges of {format_names(infinite)}")
        if empty:
            notes.append(f"no finite value, and so no range, at {format_names(empty)}")
        wanted = settings.sampling.samples
        if wanted is not None and self.samples < wanted:
            notes.append(f"the data has only {self.samples} of {wanted} samples")
        return Calibration(
            source=network.what.name,
            inputs=self.described,
            per="layer",
            memory=None,
            training=False,
            device="cpu",
            rows=tuple(rows),
            totals={"samples": self.samples, "activations": sum(row["activations"] for row in rows)},
            notes=tuple(notes),
            environment=dict(network.graph.environment),
            settings={
                "data": data.name,
                "samples": self.samples,
                "method": settings.method,
                "bits": settings.bits,
                "symmetric": settings.symmetric,
                "percentile": (settings.percentile or PERCENTILE) if settings.method == "percentile" else None,
                "per_channel": settings.per_channel,
                "batch": data.batch,
                "seed": settings.sampling.seed,
            },
            channels=channels,
            fingerprint={"model": network.fingerprint(), "data": self._data.hexdigest()},
        )

    def _row(self, layer: Layer, observer: Observer | None) -> dict[str, Any]:
        row: dict[str, Any] = {"name": layer.name, "type": layer.type, "output_shape": layer.output_shape}
        row |= dict.fromkeys(("min", "max", "scale", "zero_point", "observed_min", "observed_max", *MARKS))
        row |= {"activations": observer.elements if observer else 0, "samples": observer.samples if observer else 0}
        if observer is None or not _floating(layer):
            return row
        settings = self.settings
        found = settings.range_of(observer)
        low, high = float(found.low[0]), float(found.high[0])
        if math.isnan(low):
            return row
        laid = grid(low, high, settings.bits, symmetric=settings.symmetric)
        least, most = float(observer.low[0]), float(observer.high[0])
        row |= {"min": low, "max": high, "scale": laid.scale, "zero_point": laid.zero_point}
        row |= {"observed_min": least, "observed_max": most}
        row |= {key: min(max(observer.whole.quantile(share), least), most) for key, share in MARKS.items()}
        return row

    def _channels(self, observer: Observer) -> dict[str, Any]:
        """Give the ranges of a layer's channels; one that saw nothing finite has nulls."""
        settings = self.settings
        assert observer.by_channel is not None
        found = settings.range_of(observer.by_channel)
        entry: dict[str, Any] = {"axis": observer.axis, "min": [], "max": [], "scale": [], "zero_point": []}
        for low, high in zip(found.low.tolist(), found.high.tolist(), strict=True):
            laid = None if math.isnan(low) else grid(low, high, settings.bits, symmetric=settings.symmetric)
            entry["min"].append(None if laid is None else low)
            entry["max"].append(None if laid is None else high)
            entry["scale"].append(laid and laid.scale)
            entry["zero_point"].append(None if laid is None else laid.zero_point)
        return entry


def channel_axes(graph: Graph, layers: Sequence[Layer]) -> list[int]:
    """Tell which dimension of each layer's output is the channel.

    The second where a convolution made it, the last where a linear layer, a norm or attention did; any other layer has
    that of the first layer it reads whose output has as many dimensions. Without one it is the last of three, else the
    second.
    """
    tensors = graph.tensors
    row_of = {tensors[layer.result].storage: n for n, layer in enumerate(layers) if layer.result >= 0}
    axes: list[int] = []
    for number, layer in enumerate(layers):
        rank = len(layer.output_shape)
        axis = -1 if rank == 3 else min(1, rank - 1)
        if layer.role in _LAST:
            axis = -1
        elif layer.role is not Role.CONV and layer.head >= 0:
            for tid in graph.ops[layer.head].inputs:
                before = row_of.get(tensors[tid].storage, number)
                if before < number and len(layers[before].output_shape) == rank:
                    axis = axes[before]
                    break
        elif layer.role is Role.CONV:
            axis = 1 if rank in (4, 5) or rank == 3 else 0
        axes.append(axis)
    return axes


def _floating(layer: Layer) -> bool:
    dtype: torch.dtype = getattr(torch, layer.dtype)
    return dtype.is_floating_point


def not_a_number(layer: Layer, output: Tensor, before: int, count: int) -> CaptureError:
    """Say where values that are not numbers came up."""
    wrong = int(torch.isnan(output).sum())
    return CaptureError(
        "a layer puts out values that are not numbers",
        where=layer.name,
        received=f"{wrong:,} NaN of {output.numel():,} values, in samples {before + 1} to {before + count}",
        todo="check the weights, and that the data is scaled as it was in training",
    )
