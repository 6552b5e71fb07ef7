"""`memfit sensitivity`: what quantizing each layer costs, one layer at a time, exactly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memfit.analysis.result import Sensitivity
from memfit.analysis.roles import Part, parts, weighted
from memfit.capture.replay import named_tensors
from memfit.compress import metrics
from memfit.compress.calibrate import channel_axes, not_a_number
from memfit.compress.data import Batch, Data, Fingerprint, Sampling
from memfit.compress.fake_quant import Grids, of_range
from memfit.compress.network import Network, opened
from memfit.compress.observers import check_bits
from memfit.compress.ranges import Ranges
from memfit.compress.ranges import read as read_ranges
from memfit.compress.runner import Runner
from memfit.compress.store import Store, Unit
from memfit.compress.sweep import (
    ALL_QUANTIZED,
    DIRECTIONS,
    NONE_QUANTIZED,
    Batchwise,
    Quantization,
    one_thread,
    quantized_weights,
)
from memfit.errors import CaptureError, SourceError, UsageError
from memfit.measure.session import Progress, no_progress
from memfit.units import format_names

if TYPE_CHECKING:
    from memfit.capture.entry import Inputs

METHODS = ("exact", "taylor")
BOTH = "both"
BACKENDS = ("loky", "ray")
CHECKED = 24
"""Layers that are measured beside an estimate, spread over the network."""

WHOLE = {"quantize": NONE_QUANTIZED, "float": ALL_QUANTIZED}
"""The network that each direction starts from."""


@dataclass(frozen=True)
class Settings:
    """What to measure; see `memfit.sensitivity`."""

    sampling: Sampling
    bits: int = 8
    metric: str | Callable[..., Any] = "sqnr"
    direction: str = "quantize"
    method: str = "exact"
    ranges: str | Path | None = None
    per_channel: bool = False
    store: str | Path | None = None
    jobs: int = 1
    backend: str = "loky"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_bits(self.bits)
        for option, given, known in (
            ("--direction", self.direction, (*DIRECTIONS, BOTH)),
            ("--method", self.method, METHODS),
            ("--backend", self.backend, BACKENDS),
        ):
            if given not in known:
                raise UsageError(
                    f"there is no such {option[2:]}", where=option, received=repr(given), todo=f"use {', '.join(known)}"
                )
        if self.method == "taylor":
            wrong: tuple[tuple[str, Any, Any], ...] = (
                ("--direction", self.direction, "quantize"),
                ("--metric", self.metric, "sqnr"),
                ("--store", self.store, None),
            )
            for name, value, only in wrong:
                if value != only:
                    raise UsageError(
                        "an estimate is of one layer quantized, of its SQNR, and is there at once",
                        where=name,
                        received=f"{value} with --method taylor",
                        todo=f"leave {name} out, or use --method exact",
                    )
        if self.jobs < 1:
            raise UsageError(
                "there is at least one job", where="--jobs", received=str(self.jobs), todo="give the cores to use"
            )

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions to measure, the main one first."""
        return DIRECTIONS if self.direction == BOTH else (self.direction,)


def sensitivity(
    source: str | nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    progress: Progress = no_progress,
) -> Sensitivity:
    """Measure each layer of a network on data; arguments as for `memfit.sensitivity`."""
    progress("building the model", 0, None)
    metrics.metric_of(settings.metric)  # what is wrong with it is said before there is any work
    ranges = None if settings.ranges is None else read_ranges(settings.ranges)
    with ExitStack() as stack:
        network = stack.enter_context(opened(source, inputs, args=args, weights=weights, quick=True))
        stack.enter_context(one_thread())
        data = settings.sampling.open(network.wanted)
        study = _Study(network, data, settings, progress)
        study.prepare(ranges)
        if settings.method == "taylor":
            return study.estimate()
        with Store(settings.store, study.key()) as store:
            study.sweep(store)
            return study.result(store)


class _Study:
    """One network on one set of data."""

    def __init__(self, network: Network, data: Data, settings: Settings, progress: Progress = no_progress) -> None:
        self.network, self.data, self.settings, self.progress = network, data, settings, progress
        self.name, self.metric = metrics.metric_of(settings.metric)
        self.notes: list[str] = []
        self.chosen: tuple[int, ...] = ()
        self.batches: list[int] = []
        """Samples of each batch."""
        self.described: tuple[dict[str, Any], ...] = ()
        self.fingerprint: dict[str, str] = {}
        self.quantization = Quantization({}, {})

    # -- before ------------------------------------------------------------------------------------------------------

    def prepare(self, ranges: Ranges | None) -> None:
        """Go through the data once: hash it, and find the ranges where none are given."""
        watch = _Extremes(self.settings.per_channel)
        found = Fingerprint()
        runner: Runner | None = None
        for batch in self.data:
            runner, tensors = self.network.runner(batch)
            if not self.batches:
                self._begin(runner, batch)
            if self.metric.labels and batch.labels is None:
                raise SourceError(
                    f"the metric {self.name} needs labels, and the data has none",
                    where="--data",
                    received=self.data.name,
                    todo="give batches of (inputs, labels), a .npz with x and y or folders per class, or --metric sqnr",
                )
            if ranges is None:
                watch.run(runner, tensors, self.chosen, sum(self.batches), batch.samples)
            found.add(batch)
            self.batches.append(batch.samples)
            self.progress("calibrating", sum(self.batches), self.data.length or self.settings.sampling.samples)
        assert runner is not None  # data without samples is refused
        wanted = self.settings.sampling.samples
        if wanted is not None and sum(self.batches) < wanted:
            self.notes.append(f"the data has only {sum(self.batches)} of {wanted} samples")
        self.fingerprint = {"model": self.network.fingerprint(), "data": found.hexdigest()}
        outputs = watch.grids(self.settings.bits, self.notes) if ranges is None else self._given(ranges, runner)
        weights = quantized_weights(runner, self.chosen, self.settings.bits)
        self.quantization = Quantization(weights, outputs)

    def _begin(self, runner: Runner, batch: Batch) -> None:
        self.chosen = tuple(n for n in weighted(runner.graph, runner.layers) if _floating(runner.layers[n].dtype))
        if not self.chosen:
            raise CaptureError(
                "this network has no layer with weights to quantize",
                where=self.network.what.name,
                received=", ".join(sorted({layer.type for layer in runner.layers})),
                todo="give a network with convolutions or linear layers in floating point",
            )
        self.described = tuple(
            {"name": runner.graph.tensors[i].name, "shape": tuple(t.shape), "dtype": str(t.dtype)[6:]}
            for i, t in zip(runner.graph.inputs, batch.inputs, strict=True)
        )

    def _given(self, ranges: Ranges, runner: Runner) -> dict[int, Grids]:
        """Lay the grids over ranges from a file."""
        where, path = "--ranges", str(self.settings.ranges)
        ranges.check_model(self.fingerprint["model"], path)
        symmetric = bool(ranges.settings.get("symmetric"))
        found: dict[int, Grids] = {}
        for number in self.chosen:
            layer = runner.layers[number]
            entry = ranges.of(layer.name, path)
            channels = entry["channels"]
            if self.settings.per_channel:
                if channels is None:
                    raise UsageError(
                        "these ranges are not per channel",
                        where=where,
                        received=path,
                        todo="calibrate with --per-channel, or leave it out here",
                    )
                low, high = ([float(v or 0) for v in channels[key]] for key in ("min", "max"))
                axis = int(channels["axis"])
                found[number] = of_range(low, high, self.settings.bits, symmetric=symmetric, axis=axis)
            elif entry["min"] is None:
                raise UsageError(
                    "a layer has no range, since it put out no finite value",
                    where=where,
                    received=f"{path}: {layer.name}",
                    todo="calibrate on other data",
                )
            else:
                found[number] = of_range(entry["min"], entry["max"], self.settings.bits, symmetric=symmetric)
        return found

    def key(self) -> dict[str, Any]:
        """Say what the measured numbers depend on."""
        grids = hashlib.sha256()
        for number in self.chosen:
            held = self.quantization.outputs[number]
            grids.update(f"{number} {held.scale.tolist()} {held.zero_point.tolist()} {held.axis}".encode())
        return {
            **self.fingerprint,
            "bits": self.settings.bits,
            "metric": self.name,
            "ranges": grids.hexdigest(),
            "batches": self.batches,
            "torch": torch.__version__,
        }

    # -- the exact sweep -----------------------------------------------------------------------------------------------

    def missing(self, store: Store) -> Iterator[tuple[int, str, list[int]]]:
        """List what is to be done, by batch and direction: the layers, -1 for the whole network."""
        names = {number: self.network.layers[number].name for number in self.chosen}
        for batch in range(len(self.batches)):
            for direction in self.settings.directions:
                every = {-1: WHOLE[direction], **names}
                left = [n for n, name in every.items() if Unit(name, direction, batch) not in store.done]
                if left:
                    yield batch, direction, left
            extra = {"quantize": "float", "float": "quantize"}
            for direction in (extra[d] for d in self.settings.directions):
                whole = Unit(WHOLE[direction], direction, batch)
                if direction not in self.settings.directions and whole not in store.done:
                    yield batch, direction, [-1]

    def sweep(self, store: Store) -> None:
        """Measure what the store does not have yet."""
        left: dict[int, list[tuple[str, list[int]]]] = {}
        for place, direction, chosen in self.missing(store):
            left.setdefault(place, []).append((direction, chosen))
        total = len(self.batches) * (len(self.chosen) * len(self.settings.directions) + 2)
        self.progress("measuring", len(store.done), total)
        if self.settings.jobs > 1 or self.settings.backend != "loky":
            from memfit.compress import workers

            found = workers.spread(
                workers.Plan(self.quantization, self.settings.metric),
                self.network.runner,
                named_tensors(self.network.what.model),
                ((place, batch, left[place]) for place, batch in enumerate(self.data) if place in left),
                jobs=self.settings.jobs,
                backend=self.settings.backend,
            )
            for unit, sums in found:
                store.add(unit, tuple(sums))
                self.progress("measuring", len(store.done), total)
            return
        for place, batch in enumerate(self.data):
            if place not in left:
                continue
            work = self.batchwise(batch)
            for direction, chosen in left[place]:
                for name, sums in work.units(chosen, direction):
                    store.add(Unit(name, direction, place), tuple(sums))
                    self.progress("measuring", len(store.done), total)

    def batchwise(self, batch: Batch) -> Batchwise:
        """Get ready to measure a batch."""
        runner, tensors = self.network.runner(batch)
        return Batchwise(runner, tensors, batch.labels, batch.samples, self.quantization, self.metric.score, self.name)

    def result(self, store: Store) -> Sensitivity:
        """Put the units together."""
        main, *others = self.settings.directions

        def sums(name: str, direction: str) -> metrics.Sums:
            count = range(len(self.batches))
            return metrics.add(metrics.Sums(*store.done[Unit(name, direction, place)]) for place in count)  # type: ignore[arg-type]

        whole = {direction: sums(name, direction) for direction, name in WHOLE.items()}
        worth = {direction: self.metric.value(found) for direction, found in whole.items()}
        rows = []
        roles = self._roles()
        for number in self.chosen:
            layer = self.network.layers[number]
            row = self._row(number, roles)
            for prefix, direction in (("", main), *(("float_", other) for other in others)):
                found = sums(layer.name, direction)
                row[f"{prefix}sqnr_db"] = metrics.sqnr_db(found)
                if self.name != "sqnr":
                    row[f"{prefix}metric"] = self.metric.value(found)
            rows.append(row)
        return self._assembled(rows, worth, {"quantized_sqnr_db": metrics.sqnr_db(whole["float"])})

    def _roles(self) -> dict[int, Part]:
        assert self.network.graph is not None
        return parts(self.network.graph, self.network.layers)

    def _row(self, number: int, roles: Mapping[int, Part]) -> dict[str, Any]:
        layer = self.network.layers[number]
        return {
            "name": layer.name,
            "role": str(roles[number]),
            "type": layer.type,
            "norm": layer.norm,
            "activation": layer.activation,
            "bits": self.settings.bits,
        }

    def _assembled(
        self, rows: list[dict[str, Any]], worth: dict[str, float | None], more: dict[str, Any]
    ) -> Sensitivity:
        """Compare the rows with their baseline, find the dips, and explain them by role."""
        main, *others = self.settings.directions
        key = "sqnr_db" if self.name == "sqnr" else "metric"
        totals: dict[str, Any] = {"layers": len(rows), "samples": sum(self.batches)}
        for prefix, direction in (("", main), *(("float_", other) for other in others)):
            column = f"{prefix}{key}"
            baseline = worth.get(direction)
            if self.name == "sqnr" and direction == "quantize":
                baseline = _median([row[column] for row in rows])
            totals[f"{prefix}baseline"] = baseline
            for row in rows:
                row[f"{prefix}drop"] = self._drop(baseline, row[column])
        if self.name != "sqnr":
            totals["float"], totals["quantized"] = worth.get("quantize"), worth.get("float")
        totals |= more
        for row, dip in zip(rows, dips([row["drop"] for row in rows]), strict=True):
            row["dip"] = dip
        network = self.network
        assert network.graph is not None
        same = [row["name"] for row in rows if row["sqnr_db"] is None]
        if same:
            self.notes.append(f"the output does not change at all with {format_names(same)}")
        return Sensitivity(
            source=network.what.name,
            inputs=self.described,
            per="layer",
            memory=None,
            training=False,
            device="cpu",
            rows=tuple(rows),
            totals=totals,
            notes=(*network.notes, *network.graph.notes, *self.notes),
            environment={**network.graph.environment, "threads": 1},
            settings={
                "data": self.data.name,
                "samples": sum(self.batches),
                "bits": self.settings.bits,
                "metric": self.name,
                "direction": self.settings.direction,
                "method": self.settings.method,
                "ranges": None if self.settings.ranges is None else str(self.settings.ranges),
                "per_channel": self.settings.per_channel,
                "batch": self.data.batch,
                "seed": self.settings.sampling.seed,
            },
            roles=by_role(rows, key),
            fingerprint=self.fingerprint,
        )

    def _drop(self, baseline: float | None, value: float | None) -> float | None:
        if baseline is None or value is None:
            return None
        return baseline - value if self.metric.falls else value - baseline

    # -- the estimate --------------------------------------------------------------------------------------------------

    def estimate(self) -> Sensitivity:
        """Estimate every layer from one backward pass a batch, and measure some to see how good that is."""
        from memfit.compress.taylor import estimated_noise

        generator = torch.Generator().manual_seed(self.settings.sampling.seed)
        noise: dict[int, list[float]] = {number: [] for number in self.chosen}
        signal: list[float] = []
        exact: dict[int, metrics.Sums] = {}
        done = 0
        for batch in self.data:
            work = self.batchwise(batch)
            if not exact:
                checked = _spread(self.chosen, CHECKED)
                for number, (_, sums) in zip(checked, work.units(checked, "quantize"), strict=True):
                    exact[number] = sums
                    self.progress("measuring some", len(exact), len(checked))
            signal.append(metrics.compare(reference := work.runner.run(work.inputs), reference, 1).signal)
            axes = channel_axes(work.runner.graph, work.runner.layers)
            found = estimated_noise(
                work.runner, work.inputs, self.quantization, axes=axes, samples=work.samples, generator=generator
            )
            for number, value in found.items():
                noise[number].append(value)
            done += batch.samples
            self.progress("estimating", done, sum(self.batches))
        roles = self._roles()
        rows = []
        for number in self.chosen:
            row = self._row(number, roles)
            power = metrics.Sums(1, math.fsum(signal), math.fsum(noise[number]), 0.0, 0.0)
            row["sqnr_db"] = metrics.sqnr_db(power) if noise[number] else None
            row["exact_sqnr_db"] = metrics.sqnr_db(exact[number]) if number in exact else None
            rows.append(row)
        both = [(row["sqnr_db"], row["exact_sqnr_db"]) for row in rows]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        correlation = metrics.spearman([a for a, _ in pairs], [b for _, b in pairs])
        self.notes.append(
            f"estimated from one backward pass a batch; {len(pairs)} of {len(rows)} layers measured on the first batch"
        )
        return self._assembled(rows, {}, {"rank_correlation": correlation, "checked": len(pairs)})


class _Extremes:
    """The least and the largest value of each layer's output."""

    def __init__(self, per_channel: bool) -> None:
        self.per_channel = per_channel
        self.found: dict[int, tuple[Tensor, Tensor]] = {}
        self.axes: list[int] = []
        self.names: dict[int, str] = {}
        self.infinite: dict[str, None] = {}

    def run(self, runner: Runner, inputs: Sequence[Tensor], chosen: Sequence[int], before: int, samples: int) -> None:
        """Run a batch of so many samples, after those before it."""
        self.axes = self.axes or channel_axes(runner.graph, runner.layers)
        wanted = frozenset(chosen)

        def look(number: int, output: Tensor) -> None:
            if not output.is_floating_point() or not output.numel():
                return
            least, most = torch.aminmax(output)
            if bool(torch.isnan(least)):
                raise not_a_number(runner.layers[number], output, before, samples)
            if number not in wanted:
                return
            if bool(torch.isinf(least) | torch.isinf(most)):
                self.infinite.setdefault(runner.layers[number].name)
                output = output.nan_to_num(0.0, 0.0, 0.0)
                least, most = torch.aminmax(output)
            if self.per_channel and output.dim() > 1:
                moved = output.movedim(self.axes[number], 0).flatten(1)
                least, most = torch.aminmax(moved, dim=1)
            known = self.found.get(number)
            if known is not None:
                least, most = torch.minimum(known[0], least), torch.maximum(known[1], most)
            self.found[number] = (least, most)
            self.names[number] = runner.layers[number].name

        runner.run(inputs, on_output=look)

    def grids(self, bits: int, notes: list[str]) -> dict[int, Grids]:
        """Lay a grid over each layer's range."""
        constant = []
        grids: dict[int, Grids] = {}
        for number, (least, most) in self.found.items():
            if bool((least == most).all()):
                constant.append(self.names[number])
            if least.dim():
                axis = self.axes[number]
                grids[number] = of_range(least.tolist(), most.tolist(), bits, axis=axis)
            else:
                grids[number] = of_range(float(least), float(most), bits)
        if self.infinite:
            notes.append(f"infinite values are left out of the ranges of {format_names(list(self.infinite))}")
        if constant:
            notes.append(f"one and the same value, whatever the data, comes out of {format_names(constant)}")
        return grids


def dips(drops: Sequence[float | None]) -> list[bool]:
    """Mark the layers that stand out from those around them, in network order.

    A layer dips where it is worse than its neighbours, and one has to come up by more than the median step between
    neighbouring layers, to either side, before there is a layer that is worse still.

    >>> dips([1.0, 1.2, 9.0, 1.1, 0.9])
    [False, False, True, False, False]

    Args:
        drops: how much worse each layer is than the baseline; None where that is not known.
    """
    known = [(place, drop) for place, drop in enumerate(drops) if drop is not None]
    values = [drop for _, drop in known]
    usual = _median([abs(a - b) for a, b in pairwise(values)]) or 0.0
    found = [False] * len(drops)
    for at, (place, drop) in enumerate(known):
        rises = [_rise(drop, values[:at][::-1]), _rise(drop, values[at + 1 :])]
        rise = min((r for r in rises if r is not None), default=0.0)
        found[place] = rise > usual
    return found


def _rise(drop: float, beside: Sequence[float]) -> float | None:
    """Find how far the drop falls to one side before it is above `drop`; None at the end of the network."""
    least = drop
    for other in beside:
        if other > drop:
            break
        least = min(least, other)
    return drop - least if beside else None


def by_role(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[dict[str, Any], ...]:
    """Sum the rows up by role, the lowest mean first.

    >>> row = {"role": "exit", "sqnr_db": 30.0, "drop": 4.0, "dip": True}
    >>> by_role([row, {**row, "sqnr_db": 40.0, "dip": False}], "sqnr_db")
    ({'role': 'exit', 'layers': 2, 'dips': 1, 'mean': 35.0, 'worst': 30.0, 'mean_drop': 4.0},)
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["role"], []).append(row)
    found = []
    for role, members in groups.items():
        values = [row[key] for row in members if row[key] is not None]
        drops = [row["drop"] for row in members if row["drop"] is not None]
        worst = max((row for row in members if row["drop"] is not None), key=lambda r: r["drop"], default=None)
        found.append(
            {
                "role": role,
                "layers": len(members),
                "dips": sum(row["dip"] for row in members),
                "mean": math.fsum(values) / len(values) if values else None,
                "worst": None if worst is None else worst[key],
                "mean_drop": math.fsum(drops) / len(drops) if drops else None,
            }
        )
    return tuple(
        sorted(found, key=lambda entry: -(entry["mean_drop"] if entry["mean_drop"] is not None else -math.inf))
    )


def _spread(chosen: Sequence[int], most: int) -> list[int]:
    """Take so many, evenly."""
    count = len(chosen)
    return [chosen[place * count // most] for place in range(most)] if count > most else list(chosen)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _floating(dtype: str) -> bool:
    found: torch.dtype = getattr(torch, dtype)
    return found.is_floating_point
