"""`memfit quantize`: bits for every activation and weight, so that the network's peak fits and the least is lost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memfit.analysis.layers import UNUSED, Layer
from memfit.analysis.result import Quantization
from memfit.capture.entry import Model
from memfit.capture.replay import named_tensors
from memfit.compress import precision, ranges
from memfit.compress.data import Data, Fingerprint, hash_model, open_data
from memfit.compress.fake_quant import Grids, fake_quantize, of_range
from memfit.compress.network import Network, opened
from memfit.compress.observers import Observer, range_of
from memfit.compress.precision import Programme, Solution
from memfit.compress.quantized import Quantized, Rounding, encode, put
from memfit.compress.recipe import Recipe, hash_network
from memfit.compress.runner import Runner
from memfit.compress.scoring import METRICS, Scorer
from memfit.errors import UsageError
from memfit.graph.model import Graph
from memfit.measure.session import Progress, no_progress
from memfit.memory.demand import Demand
from memfit.memory.model import Options, View
from memfit.memory.profile import profile_graph
from memfit.memory.registry import memory_model
from memfit.units import format_bytes

if TYPE_CHECKING:
    from memfit.capture.entry import Inputs

MEMORY = ("mcunet", "ideal", "autograd", "tinytl")
"""Memory models that a budget can be of."""

BITS = (2, 4, 8, 16)
"""Widths that activations may have."""

WEIGHT_BITS = (8,)
"""Widths that weights may have where flash has no limit."""

_LISTED = 4


@dataclass(frozen=True)
class Settings:
    """What to quantize to, and how; see `memfit.quantize`."""

    data: Any
    budget_bytes: int
    memory: str = "mcunet"
    bits: tuple[int, ...] = BITS
    weight_bits: tuple[int, ...] | None = None
    """None: 8, or with a limit of flash the widths of `bits`."""
    max_flash: int | None = None
    strategy: str = "exact"
    samples: int | None = None
    batch: int | None = None
    ranges: str | Path | None = None
    metric: str | Callable[[nn.Module], Any] | None = None
    equalize: bool = True
    correct: bool = True
    rounding: str = "nearest"
    train: Callable[[nn.Module], Any] | None = None
    seed: int = 0
    time_limit: float = 60.0
    images: Mapping[str, Any] = field(default_factory=dict)
    """How images are scaled: `mean` and `std`."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is built."""
        for option, value, known in (
            ("--strategy", self.strategy, tuple(precision.STRATEGIES)),
            ("--rounding", self.rounding, ROUNDINGS),
            ("--memory", memory_model(self.memory).name, MEMORY),
        ):
            if value not in known:
                raise UsageError(
                    f"there is no such {option[2:]} to quantize for" if option == "--memory" else
                    f"there is no such {option[2:]}",
                    where=option, received=repr(value), todo=f"use {', '.join(known)}",
                )  # fmt: skip
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise UsageError(
                "there is no such metric",
                where="--metric",
                received=repr(self.metric),
                todo=f"use {', '.join(METRICS)} or FILE.py:CALLABLE, which is given the module",
            )
        for option, widths in (("--bits", self.bits), ("--weights-bits", self.weight_bits)):
            if widths is not None and (not widths or not all(2 <= width <= 16 for width in widths)):
                raise UsageError(
                    "widths are 2 to 16 bits", where=option, received=repr(widths), todo=f"write {option} 2,4,8,16"
                )
        for option, limit in (("--budget", self.budget_bytes), ("--max-flash", self.max_flash)):
            if limit is not None and limit < 1:
                raise UsageError(
                    "a limit must be above zero", where=option, received=str(limit), todo="give a larger one"
                )

    @property
    def widths_of_weights(self) -> tuple[int, ...]:
        """Widths that weights may have."""
        if self.weight_bits is not None:
            return tuple(sorted(set(self.weight_bits)))
        return tuple(sorted(set(self.bits))) if self.max_flash is not None else WEIGHT_BITS


ROUNDINGS = ("nearest", "learned")
"""How weights are rounded."""


def quantize(
    source: str | nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    progress: Progress = no_progress,
) -> Quantization:
    """Quantize a network to a budget; arguments as for `memfit.quantize`."""
    progress("building the model", 0, None)
    with _threads(), opened(source, inputs, args=args, weights=weights) as network:
        return _Work(network, inputs, settings, progress).run()


@contextmanager
def _threads() -> Iterator[None]:
    """Use one thread where the machine is busy: several that wait for each other would take many times as long."""
    before = torch.get_num_threads()
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Work:
    """One run of quantization."""

    def __init__(self, network: Network, inputs: Inputs | None, settings: Settings, progress: Progress) -> None:
        self.network, self.inputs, self.settings, self.progress = network, inputs, settings, progress
        self.memory = memory_model(settings.memory)
        self.base: Graph = Model(network.what.loaded).capture(inputs, training=self.memory.of_training)
        view = View(self.base, Options(layer_bits={}))
        assert self.memory.demand is not None
        self.demand: Demand = self.memory.demand(view)
        self.rows: tuple[Layer, ...] = view.layers
        self.baseline = profile_graph(self.base, memory=settings.memory)
        self.data = self._data()
        self.runners: dict[int, tuple[Graph, Runner]] = {}
        self.model = Quantized(network.what.model, Rounding()).network
        """A copy, whose weights may be changed."""
        self.observers: dict[str, Observer] = {}
        self.fingerprint = Fingerprint()
        self.samples = 0
        self.notes: dict[str, None] = dict.fromkeys((*network.notes, *self.base.notes))

    def _data(self) -> Data:
        s = self.settings
        return open_data(s.data, self.network.wanted, samples=s.samples, batch=s.batch, seed=s.seed, **s.images)

    def runner(self, batch: Any) -> tuple[Runner, list[Tensor]]:
        """Give a runner of the copy's weights."""
        own, tensors = self.network.runner(batch)
        found = self.runners.get(id(own.graph))
        if found is None:
            found = self.runners[id(own.graph)] = own.graph, Runner(own.graph, self.model)
        return found[1], tensors

    def run(self) -> Quantization:
        """Calibrate, measure, choose, round and compare."""
        self._calibrate()
        programme = self._programme({})
        self._check_reach(programme)
        grids = _GridTable(self.observers, self._kept_ranges())
        measured = self._measure(programme, grids)
        programme = self._programme(measured).reachable()
        self.progress("choosing bits", 0, None)
        solutions = {
            name: solve(programme, time_limit=self.settings.time_limit, seed=self.settings.seed)
            for name, solve in precision.STRATEGIES.items()
        }
        return self._result(programme, solutions, grids)

    # -- what is measured ------------------------------------------------------------------------------------------

    def _calibrate(self) -> None:
        """Look at every layer's output, and remember which layers can be rounded."""
        for batch in self.data:
            runner, tensors = self.runner(batch)
            names = [layer.name for layer in runner.layers]

            def look(number: int, output: Tensor, names: Sequence[str] = names, count: int = batch.samples) -> None:
                if output.is_floating_point():
                    self.observers.setdefault(names[number], Observer()).add(output, count)

            runner.run(tensors, on_output=look)
            self.fingerprint.add(batch)
            self.samples += batch.samples
            self.progress("calibrating", self.samples, self.data.length)

    def _kept_ranges(self) -> dict[str, tuple[float, float]] | None:
        """Read the ranges that the user gave."""
        if self.settings.ranges is None:
            return None
        kept = ranges.read(self.settings.ranges)
        if kept.fingerprint.get("model") != self.network.fingerprint():
            raise UsageError(
                "these ranges are of another network, or of other weights",
                where="--ranges",
                received=str(self.settings.ranges),
                todo="calibrate this one with memfit calibrate --save",
            )
        return {
            name: (float(entry["min"]), float(entry["max"]))
            for name, entry in kept.layers.items()
            if entry["min"] is not None
        }

    def _programme(self, costs: Mapping[str, Mapping[int, float]]) -> Programme:
        """Write the choice of the activations' bits."""
        choices, sums = [], []
        for names in self.demand.groups:
            free = all(name in self.observers for name in names)
            choices.append(self.settings.bits if free else ())
            stored = [costs.get(name, {}) for name in names if name not in self.demand.passing]
            sums.append({b: sum(of[b] for of in stored) for b in self.settings.bits if all(b in of for of in stored)})
        return precision.programme_of(self.demand, choices, sums, self.settings.budget_bytes)

    def _check_reach(self, programme: Programme) -> None:
        lowest = programme.at(0)
        if not programme.holds(lowest):
            reach = self.settings.budget_bytes + programme.excess(lowest)
            raise UsageError(
                "no choice of bits keeps the budget",
                where="--budget",
                received=format_bytes(self.settings.budget_bytes),
                todo=f"the smallest {self.settings.memory} peak with {min(self.settings.bits)}-bit activations is "
                f"{format_bytes(reach)} ({reach:,} bytes); prune first, or allow fewer bits",
            )

    def _measure(self, programme: Programme, grids: _GridTable) -> dict[str, dict[int, float]]:
        """Give the noise at the outputs, as a share of their power, when one layer alone is rounded, by its bits."""
        reachable = programme.reachable()
        noise: dict[str, dict[int, float]] = {
            name: dict.fromkeys(reachable.choices[group], 0.0)
            for group in sorted(reachable.binding())
            for name in self.demand.groups[group]
            if name not in self.demand.passing
        }
        signal = 0.0
        done = 0
        for batch in self.data:
            runner, tensors = self.runner(batch)
            own = [t.double() for t in runner.run(tensors) if t.is_floating_point()]
            signal += sum(float(t.square().sum()) for t in own)
            numbers = [k for k, layer in enumerate(runner.layers) if layer.name in noise]
            for place, cut in enumerate(runner.prefix(tensors, numbers)):
                name = runner.layers[cut.layer].name
                for bits in noise[name]:
                    found = runner.resume(cut, fake_quantize(cut.output, grids(name, bits)))
                    noise[name][bits] += _noise(own, found)
                self.progress("measuring sensitivity", done + place + 1, None)
            done += len(numbers)
        return {name: {bits: power / max(signal, 1e-300) for bits, power in of.items()} for name, of in noise.items()}

    # -- the answer ------------------------------------------------------------------------------------------------

    def layer_bits(self, solution: Solution) -> dict[str, int]:
        """Give each layer the bits of its group."""
        return {
            name: bits
            for names, bits in zip(self.demand.groups, solution.bits, strict=True)
            if bits is not None
            for name in names
        }

    def rounding(self, chosen: Mapping[str, int], weights: Mapping[str, Grids], grids: _GridTable) -> Rounding:
        """Give the grids of a choice."""
        passing = self.demand.passing
        return Rounding({n: grids(n, bits) for n, bits in chosen.items() if n not in passing}, dict(weights))

    def _scorer(self) -> Scorer:
        call = self.network.what.call(self.inputs, None)
        return Scorer(self.data, (call.args, call.kwargs), self.settings.metric, self.network.what.model).chosen()

    def _result(self, programme: Programme, solutions: Mapping[str, Solution], grids: _GridTable) -> Quantization:
        settings = self.settings
        scorer = self._scorer()
        self.progress("scoring", 0, None)
        from memfit.compress.weights import grids_of_weights

        weight_grids = grids_of_weights(self._any_runner(), self.model, settings.widths_of_weights[-1])
        module = Quantized(self.model, Rounding(), self._input_names())
        roundings = {
            name: self.rounding(self.layer_bits(solution), weight_grids, grids) for name, solution in solutions.items()
        }
        metrics = _scores(scorer, module, roundings)
        strategies = []
        for name, solution in solutions.items():
            bits = [b for b in solution.bits if b is not None]
            strategies.append(
                {
                    "name": name,
                    "peak_bytes": self.demand.total_bytes(self.layer_bits(solution)),
                    "fits": solution.holds,
                    "cost": programme.known_cost(solution.bits),
                    "mean_bits": sum(bits) / len(bits) if bits else None,
                    "metric": metrics[name],
                    "optimal": solution.optimal,
                    "gap": solution.gap,
                }
            )
        chosen = self.layer_bits(solutions[settings.strategy])
        module.set_rounding(self.rounding(chosen, weight_grids, grids))
        profile = profile_graph(self.base, memory=settings.memory, layer_bits=chosen)
        key = "saved_bytes" if self.memory.measures == "saved" else "peak_bytes"
        for note in (*profile.notes, *grids.notes):
            self.notes[note] = None
        recipe = self._recipe(module, chosen, profile.totals[key])
        own = next(entry for entry in strategies if entry["name"] == settings.strategy)
        return Quantization(
            source=self.network.what.name,
            inputs=profile.inputs,
            per="layer",
            memory=settings.memory,
            training=self.memory.of_training,
            device="cpu",
            rows=self._layer_rows(profile.rows, chosen, module.rounding, key),
            totals={
                "baseline_peak_bytes": self.baseline.totals[key],
                "peak_bytes": profile.totals[key],
                "budget_bytes": settings.budget_bytes,
                "baseline_peak_at": self.baseline.totals.get("peak_at"),
                "peak_at": profile.totals.get("peak_at"),
                "baseline_metric": None if scorer.metric == "sqnr" else scorer.score(self.network.what.model),
                "metric": own["metric"],
                "optimal": own["optimal"],
                "gap": own["gap"],
            },
            notes=tuple(self.notes),
            environment=dict(self.base.environment),
            settings={
                "data": self.data.name,
                "samples": self.samples,
                "metric": scorer.name,
                "strategy": settings.strategy,
                "bits": list(settings.bits),
                "weight_bits": list(settings.widths_of_weights),
                "seed": settings.seed,
            },
            strategies=tuple(strategies),
            recipe=recipe,
            module=module,
        )

    def _any_runner(self) -> Runner:
        return next(iter(self.runners.values()))[1]

    def _input_names(self) -> tuple[str, ...]:
        graph = self._any_runner().graph
        return tuple(str(graph.tensors[i].name) for i in graph.inputs)

    def _layer_rows(
        self, after: Sequence[Mapping[str, Any]], chosen: Mapping[str, int], rounding: Rounding, key: str
    ) -> tuple[dict[str, Any], ...]:
        before = {row["name"]: row for row in self.baseline.rows}
        weights = self._weight_bits(rounding)
        rows = []
        for row in after:
            if row["type"] == UNUSED:
                continue
            name = row["name"]
            rows.append(
                {
                    "name": name,
                    "type": row["type"],
                    "output_shape": row["output_shape"],
                    "activations": row["activations"],
                    "bits": chosen.get(name),
                    "weights": row["weights"],
                    "weight_bits": weights.get(name),
                    "activation_bytes": row["activation_bytes"],
                    "bytes_before": before[name][key] if name in before else None,
                    "bytes_after": row[key],
                }
            )
        return tuple(rows)

    def _weight_bits(self, rounding: Rounding) -> dict[str, int]:
        tensors = self.base.tensors
        return {
            row.name: rounding.weights[str(tensors[tid].name)].bits
            for row in self.rows
            for tid in row.weight_parameters
            if str(tensors[tid].name) in rounding.weights
        }

    def _recipe(self, module: Quantized, chosen: Mapping[str, int], peak_bytes: int) -> Recipe:
        settings, rounding = self.settings, module.rounding
        activations: dict[str, dict[str, Any]] = {}
        for name, bits in chosen.items():
            grid = rounding.activations.get(name)
            activations[name] = {
                "bits": bits,
                "scale": None if grid is None else float(grid.scale),
                "zero_point": None if grid is None else int(grid.zero_point),
            }
        weights = {
            name: {"bits": grid.bits, "axis": grid.axis, "scale": grid.scale.reshape(-1).tolist()}
            for name, grid in rounding.weights.items()
        }
        own = named_tensors(self.network.what.model)
        changed = {
            name: encode(tensor)
            for name, tensor in named_tensors(module.network).items()
            if not torch.equal(tensor, own[name])
        }
        return Recipe(
            source=self.network.what.name,
            memory=settings.memory,
            budget_bytes=settings.budget_bytes,
            peak_bytes=peak_bytes,
            fingerprint={
                "network": hash_network(self.base),
                "model": hash_model(own),
                "data": self.fingerprint.hexdigest(),
            },
            inputs=tuple(
                {"name": name, "shape": list(entry["shape"]), "dtype": entry["dtype"]}
                for name, entry in zip(self._input_names(), self.baseline.inputs, strict=True)
            ),
            settings={"strategy": settings.strategy, "bits": list(settings.bits), "seed": settings.seed},
            activations=activations,
            weights=weights,
            changed=changed,
        )


class _GridTable:
    """The grid of each layer's output at each width, made when it is asked for."""

    def __init__(self, observers: Mapping[str, Observer], kept: Mapping[str, tuple[float, float]] | None) -> None:
        self._observers, self._kept = observers, kept
        self._made: dict[tuple[str, int], Grids] = {}
        self.notes: dict[str, None] = {}

    def __call__(self, name: str, bits: int) -> Grids:
        found = self._made.get((name, bits))
        if found is None:
            found = self._made[name, bits] = of_range(*self._range(name, bits), bits)
        return found

    def _range(self, name: str, bits: int) -> tuple[float, float]:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        observer = self._observers[name]
        found = range_of(observer, "mse" if bits <= 8 else "minmax", bits=bits)
        low, high = float(found.low[0]), float(found.high[0])
        return (low, high) if low <= high else (0.0, 0.0)


def _scores(scorer: Scorer, module: Quantized, roundings: Mapping[str, Rounding]) -> dict[str, float | None]:
    """Score a network with one rounding after another; for sqnr the float network runs only once."""
    if scorer.metric != "sqnr":
        scores = {}
        for name, rounding in roundings.items():
            module.set_rounding(rounding)
            scores[name] = scorer.score(module)
        return scores
    signal, noise = 0.0, dict.fromkeys(roundings, 0.0)
    wanted = []
    for batch in scorer.data:
        with torch.no_grad():
            wanted.append([t.double() for t in scorer.outputs(scorer.reference, batch) if t.is_floating_point()])
        signal += sum(float(t.square().sum()) for t in wanted[-1])
    for name, rounding in roundings.items():
        module.set_rounding(rounding)
        for own, batch in zip(wanted, scorer.data, strict=True):
            with torch.no_grad():
                noise[name] += _noise(own, scorer.outputs(module, batch))
    return {name: 10 * math.log10(signal / of) if of and signal else None for name, of in noise.items()}


def _noise(own: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    floating = (t for t in found if t.is_floating_point())
    return sum(float((a - b.double()).square().sum()) for a, b in zip(own, floating, strict=True))


__all__ = ["BITS", "MEMORY", "Settings", "put", "quantize", "replace"]
