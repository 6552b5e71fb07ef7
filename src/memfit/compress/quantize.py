"""`memfit quantize`: bits for every activation and weight, so that the network's peak fits and the least is lost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memfit.analysis.layers import UNUSED, Layer
from memfit.analysis.result import Quantization
from memfit.capture.entry import Model
from memfit.capture.replay import named_tensors
from memfit.compress import precision, ranges
from memfit.compress.adjust import corrections, equalize
from memfit.compress.calibrate import not_a_number
from memfit.compress.data import Fingerprint, Sampling, hash_model
from memfit.compress.fake_quant import Grids, fake_quantize, of_range
from memfit.compress.learned_rounding import learn
from memfit.compress.network import Network, opened
from memfit.compress.observers import Observer, range_of
from memfit.compress.precision import Limit, Programme, Solution
from memfit.compress.quantized import Quantized, Rounding, encode, put
from memfit.compress.recipe import Recipe, hash_network
from memfit.compress.runner import Runner
from memfit.compress.scoring import METRICS, Scorer, called
from memfit.compress.weights import Feed, feeds, weight_grids, weights_of
from memfit.errors import SourceError, UsageError
from memfit.graph.model import Graph
from memfit.measure.session import Progress, no_progress
from memfit.memory.demand import Demand, Part
from memfit.memory.flash import flash_of_graph
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

_ADDITIVE = 0.01
"""Noise power by signal power (20 dB) up to which losses are taken to add up."""
_ROUNDS, _CHANGES = 2, (1 << 30, 6, 2)
"""Of measuring again, and how many layers may change at once in the tries of each."""


@dataclass(frozen=True)
class Settings:
    """What to quantize to, and how; see `memfit.quantize`."""

    sampling: Sampling
    budget_bytes: int
    memory: str = "mcunet"
    bits: tuple[int, ...] = BITS
    weight_bits: tuple[int, ...] | None = None
    """None: 8, or with a limit of flash the widths of `bits`."""
    max_flash: int | None = None
    strategy: str = "exact"
    ranges: str | Path | None = None
    metric: str | Callable[[nn.Module], Any] | None = None
    equalize: bool = True
    correct: bool = True
    rounding: str = "nearest"
    train: Callable[[nn.Module], Any] | None = None
    time_limit: float = 60.0

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
        for option, limit in (
            ("--budget", self.budget_bytes),
            ("--max-flash", self.max_flash),
            ("--time-limit", self.time_limit),
        ):
            if limit is not None and not 0 < limit < math.inf:
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
        self.data = settings.sampling.open(network.wanted)
        self.runners: dict[int, tuple[Graph, Runner]] = {}
        self.model = Quantized(network.what.model, Rounding()).network
        """A copy, whose weights may be changed."""
        self.observers: dict[str, Observer] = {}
        self.weight_grids: dict[tuple[str, int], Grids] = {}
        self.weight_names: tuple[str, ...] = ()
        self.fixed_flash = 0
        """Bytes of flash that are no weights."""
        self.sums: dict[int, Tensor] = {}
        """By layer: the mean of each channel of what it reads, times the samples."""
        self.fingerprint = Fingerprint()
        self.samples = 0
        self.notes: dict[str, None] = dict.fromkeys((*network.notes, *self.base.notes))

    def runner(self, batch: Any) -> tuple[Runner, list[Tensor]]:
        """Give a runner of the copy's weights."""
        own, tensors = self.network.runner(batch)
        found = self.runners.get(id(own.graph))
        if found is None:
            found = self.runners[id(own.graph)] = own.graph, Runner(own.graph, self.model)
        return found[1], tensors

    def run(self) -> Quantization:
        """Even out, calibrate, measure, choose, round and compare."""
        if self.settings.equalize:
            self._equalize()
        self._calibrate()
        programme = self._programme({})
        self._check_reach(programme)
        flash = self._flash_programme({})
        grids = _GridTable(self.observers, self._kept_ranges())
        measured, of_weights = self._measure(programme, flash, grids)
        programme = self._programme(measured).reachable()
        flash = self._flash_programme(of_weights)
        self.progress("choosing bits", 0, None)
        options = {"time_limit": self.settings.time_limit, "seed": self.settings.sampling.seed}
        solutions = {name: solve(programme, **options) for name, solve in precision.STRATEGIES.items()}
        solutions["exact"] = self._refined(programme, solutions, grids, options)
        choices = {}
        for name, solve in precision.STRATEGIES.items():
            widths = None if flash is None else solve(flash, **options)
            choices[name] = self._choice(programme, solutions[name], flash, widths, grids)
        return self._result(choices)

    def _equalize(self) -> None:
        """Even out the channels of the copy's weights."""
        batch = next(iter(self.data))
        runner, _ = self.runner(batch)
        changed, pairs = equalize(runner, named_tensors(self.model))
        put(self.model, changed)
        self.runners.clear()
        if pairs:
            self.notes[f"channels are evened out between {pairs} pair{'s' if pairs > 1 else ''} of layers"] = None

    # -- what is measured ------------------------------------------------------------------------------------------

    def _calibrate(self) -> None:
        """Look at every layer's output, and remember which layers can be rounded."""
        for batch in self.data:
            runner, tensors = self.runner(batch)
            runner.run(tensors, on_output=self._look(runner, batch.samples))
            self.fingerprint.add(batch)
            self.samples += batch.samples
            self.progress("calibrating", self.samples, self.data.length)

    def _look(self, runner: Runner, count: int) -> Callable[[int, Tensor], None]:
        """Make a hook that observes every layer's output, and sums what the layers with weights read."""
        names = [layer.name for layer in runner.layers]
        reading: dict[int, list[Feed]] = {}
        if self.settings.correct:
            for feed in feeds(runner):
                reading.setdefault(feed.source, []).append(feed)

        def look(number: int, output: Tensor) -> None:
            if output.is_floating_point():
                try:
                    self.observers.setdefault(names[number], Observer()).add(output, count)
                except ValueError:
                    raise not_a_number(runner.layers[number], output, self.samples, count) from None
            for feed in reading.get(number, ()):
                x = output.reshape(feed.shape)
                mean = x.mean([d for d in range(x.dim()) if d != feed.axis], dtype=torch.float64) * count
                self.sums[feed.layer] = self.sums.get(feed.layer, 0) + mean

        return look

    def _kept_ranges(self) -> dict[str, tuple[float, float]] | None:
        """Read the ranges that the user gave."""
        if self.settings.ranges is None:
            return None
        kept = ranges.read(self.settings.ranges)
        kept.check_model(self.network.fingerprint(), str(self.settings.ranges))
        entries = {name: kept.of(name, str(self.settings.ranges)) for name in self.observers}
        return {
            name: (float(entry["min"]), float(entry["max"]))
            for name, entry in entries.items()
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

    def _flash_programme(self, costs: Mapping[str, Mapping[int, float]]) -> Programme | None:
        """Write the choice of the weights' bits, where flash has a limit.

        The estimate for 8-bit weights, and the bytes that other widths take more or less.

        Raises:
            UsageError: a limit below what is possible.
        """
        limit, widths = self.settings.max_flash, self.settings.widths_of_weights
        if limit is None:
            return None
        runner = self._any_runner()
        named = named_tensors(self.model)
        self.weight_names = tuple(dict.fromkeys(name for _, name, _ in weights_of(runner)))
        parts = tuple(Part(place, named[name].numel(), 8) for place, name in enumerate(self.weight_names))
        self.fixed_flash = flash_of_graph(runner.graph).total_bytes - sum(part.elements for part in parts)
        programme = Programme(
            (widths,) * len(parts),
            tuple(costs.get(name, {}) for name in self.weight_names),
            (Limit(parts, limit - self.fixed_flash),),
        )
        if not programme.holds(programme.at(0)):
            reach = limit + programme.excess(programme.at(0))
            raise UsageError(
                "no choice of bits keeps this flash",
                where="--max-flash",
                received=format_bytes(limit),
                todo=f"the smallest with {min(widths)}-bit weights is {format_bytes(reach)} ({reach:,} bytes), code "
                "included; prune first, or allow fewer bits",
            )
        return programme.reachable()

    def _measure(
        self, programme: Programme, flash: Programme | None, grids: _GridTable
    ) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
        """Give the noise at the outputs, as a share of their power, when one tensor alone is rounded, by its bits.

        Of layers' outputs, and of parameters where flash has a limit; only of what a limit binds.
        """
        reachable = programme.reachable()
        noise: dict[str, dict[int, float]] = {
            name: dict.fromkeys(reachable.choices[group], 0.0)
            for group in sorted(reachable.binding())
            for name in self.demand.groups[group]
            if name not in self.demand.passing
        }
        of_weights: dict[str, dict[int, float]] = {}
        if flash is not None:
            of_weights = {
                self.weight_names[item]: dict.fromkeys(flash.choices[item], 0.0) for item in sorted(flash.binding())
            }
        signal = 0.0
        done = 0
        for batch in self.data:
            runner, tensors = self.runner(batch)
            owners = [[] for _ in runner.layers] if flash is None else self._owners(runner, of_weights)
            own = [t.double() for t in runner.run(tensors) if t.is_floating_point()]
            signal += sum(float(t.square().sum()) for t in own)
            numbers = [k for k, layer in enumerate(runner.layers) if layer.name in noise or owners[k]]
            for cut in runner.prefix(tensors, numbers):
                name = runner.layers[cut.layer].name
                for bits in noise.get(name, ()):
                    found = runner.resume(cut, fake_quantize(cut.output, grids(name, bits)))
                    noise[name][bits] += _noise(own, found)
                for weight, axis in owners[cut.layer]:
                    for bits in of_weights[weight]:
                        rounded = self._rounded_weight(weight, bits, axis)
                        found = runner.resume(cut, weights={cut.layer: {weight: rounded}})
                        of_weights[weight][bits] += _noise(own, found)
                done += 1
                whole = self.data.length or self.settings.sampling.samples
                self.progress("measuring sensitivity", done, whole and -(-whole // batch.samples) * len(numbers))
        signal = max(signal, 1e-300)
        shares = ({name: {b: n / signal for b, n in of.items()} for name, of in all_of.items()} for all_of in
                  (noise, of_weights))  # fmt: skip
        first, second = shares
        return first, second

    def _owners(self, runner: Runner, wanted: Mapping[str, Any]) -> list[list[tuple[str, int | None]]]:
        """Give each layer's weights whose rounding is to be measured, and the dimension of their channels."""
        owners: list[list[tuple[str, int | None]]] = [[] for _ in runner.layers]
        number = {layer.name: k for k, layer in enumerate(runner.layers)}
        for layer, name, axis in weights_of(runner):
            if name in wanted:
                owners[number[layer.name]].append((name, axis))
        return owners

    def _weight_grid(self, name: str, bits: int, axis: int | None) -> Grids:
        found = self.weight_grids.get((name, bits))
        if found is None:
            found = self.weight_grids[name, bits] = weight_grids(named_tensors(self.model)[name], bits, axis)
        return found

    def _rounded_weight(self, name: str, bits: int, axis: int | None) -> Tensor:
        return fake_quantize(named_tensors(self.model)[name].detach(), self._weight_grid(name, bits, axis))

    # -- where noise does not add up ---------------------------------------------------------------------------------

    def _refined(
        self, programme: Programme, solutions: Mapping[str, Solution], grids: _GridTable, options: Mapping[str, Any]
    ) -> Solution:
        """Look for better bits around the best so far, where so much is lost that losses no longer add up.

        Costs are measured again with all other layers rounded as they are now, and the programme is solved again,
        freely first and then with few changes; bits stay only if the noise of all together is less.
        """
        found = solutions["exact"]
        free = programme.binding()
        if not free or self._joint_noise(found.bits, grids) < _ADDITIVE:
            return found
        widest = programme.at(-1)
        starts = [
            s._replace(bits=tuple(b if i in free else w for i, (b, w) in enumerate(zip(s.bits, widest, strict=True))))
            for s in solutions.values()
            if s.holds
        ]
        noises = [self._joint_noise(start.bits, grids) for start in starts]
        place = noises.index(min(noises))
        found, least = starts[place], noises[place]
        rounds = 0
        for _ in range(_ROUNDS):
            self.progress("measuring around the choice", rounds, _ROUNDS)
            local = replace(programme, costs=self._costs_around(programme, found.bits, grids))
            rounds += 1
            for most in _CHANGES:
                tried = precision.exact(local, near=(found.bits, min(most, len(free))), **options)
                noise = self._joint_noise(tried.bits, grids) if tried.bits != found.bits else least
                if noise < least:
                    found, least = tried, noise
                    break
            else:
                break
        self.notes[
            f"noise is too strong to add up: costs measured again around the choice, {rounds} time"
            + ("s" if rounds > 1 else "")
        ] = None
        return Solution(found.bits, programme.cost(found.bits), programme.holds(found.bits), False, None)

    def _hook(self, bits: Sequence[int | None], grids: _GridTable, runner: Runner) -> Any:
        """Round every layer that is stored to the bits of its group."""
        chosen = self._stored(bits)
        names = [layer.name for layer in runner.layers]

        def look(number: int, output: Tensor) -> Tensor | None:
            width = chosen.get(names[number])
            return None if width is None else fake_quantize(output, grids(names[number], width))

        return look

    def _stored(self, bits: Sequence[int | None]) -> dict[str, int]:
        return {
            name: width
            for names, width in zip(self.demand.groups, bits, strict=True)
            for name in names
            if width is not None and name not in self.demand.passing
        }

    def _joint_noise(self, bits: Sequence[int | None], grids: _GridTable) -> float:
        """Give the noise power at the outputs with all layers rounded, by the power of the signal."""
        noise = signal = 0.0
        for batch in self.data:
            runner, tensors = self.runner(batch)
            own = [t.double() for t in runner.run(tensors) if t.is_floating_point()]
            signal += sum(float(t.square().sum()) for t in own)
            noise += _noise(own, runner.run(tensors, on_output=self._hook(bits, grids, runner)))
        return noise / max(signal, 1e-300)

    def _costs_around(
        self, programme: Programme, bits: Sequence[int | None], grids: _GridTable
    ) -> tuple[dict[int, float], ...]:
        """Give the noise power of every other width of each layer, all others as they are; the least of each is 0."""
        stored = self._stored(bits)
        group_of = {name: item for item in programme.binding() for name in self.demand.groups[item] if name in stored}
        powers: list[dict[int, float]] = [{} for _ in programme.choices]
        for batch in self.data:
            runner, tensors = self.runner(batch)
            own = [t.double() for t in runner.run(tensors) if t.is_floating_point()]
            hook = self._hook(bits, grids, runner)
            numbers = [k for k, layer in enumerate(runner.layers) if layer.name in group_of]
            for cut in runner.prefix(tensors, numbers, on_output=hook):
                name = runner.layers[cut.layer].name
                power = powers[group_of[name]]
                for width in programme.choices[group_of[name]]:
                    out = runner.resume(cut, fake_quantize(cut.output, grids(name, width)), on_output=hook)
                    power[width] = power.get(width, 0.0) + _noise(own, out)
        return tuple({w: p - min(power.values()) for w, p in power.items()} for power in powers)

    # -- the answer ------------------------------------------------------------------------------------------------

    def _choice(
        self,
        programme: Programme,
        solution: Solution,
        flash: Programme | None,
        widths: Solution | None,
        grids: _GridTable,
    ) -> _Choice:
        """Turn widths into grids, and into what else changes with them."""
        layer_bits = {
            name: bits
            for names, bits in zip(self.demand.groups, solution.bits, strict=True)
            if bits is not None
            for name in names
        }
        runner = self._any_runner()
        of_weights: dict[str, int | None] = (
            {} if widths is None else dict(zip(self.weight_names, widths.bits, strict=True))
        )
        widest = self.settings.widths_of_weights[-1]
        weights = {
            name: self._weight_grid(name, of_weights.get(name) or widest, axis) for _, name, axis in weights_of(runner)
        }
        passing = self.demand.passing
        rounding = Rounding({n: grids(n, bits) for n, bits in layer_bits.items() if n not in passing}, weights)
        flash_bytes = None
        if flash is not None and widths is not None:
            flash_bytes = self.fixed_flash + flash.limits[0].nbytes(widths.bits)
        costs = [programme.known_cost(solution.bits)]
        if flash is not None and widths is not None:
            costs.append(flash.known_cost(widths.bits))
        return _Choice(
            layer_bits=layer_bits,
            rounding=rounding,
            changed=self._corrections(rounding, {}),
            holds=solution.holds and (widths is None or widths.holds),
            optimal=solution.optimal and (widths is None or widths.optimal),
            gap=max((s.gap for s in (solution, widths) if s is not None and s.gap is not None), default=None),
            cost=None if None in costs else sum(cost for cost in costs if cost is not None),
            flash_bytes=flash_bytes,
        )

    def _corrections(self, rounding: Rounding, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the biases and running means that make up for rounded weights."""
        if not self.settings.correct:
            return {}
        named = named_tensors(self.model)
        rounded = {**rounding.rounded(named), **changed}
        means = {layer: total / max(self.samples, 1) for layer, total in self.sums.items()}
        return corrections(self._any_runner(), named, rounded, means)

    def _scorer(self) -> Scorer:
        call = self.network.what.call(self.inputs, None)
        return Scorer(self.data, (call.args, call.kwargs), self.settings.metric, self.network.what.model).chosen()

    def _finish(self, module: Quantized, choice: _Choice, touched: Collection[str]) -> _Choice:
        """Learn how to round, and train, where that is asked for; `touched` may differ from the model's own so far."""
        named = named_tensors(self.model)
        if self.settings.rounding == "learned":
            batch = next(iter(self.data))
            runner, tensors = self.runner(batch)
            learned = learn(
                runner,
                tensors,
                named,
                choice.rounding,
                progress=lambda done, of: self.progress("learning how to round", done, of),
            )
            choice = replace(choice, changed=learned | self._corrections(choice.rounding, learned))
            self.notes[f"rounding is learned from the first {batch.samples} samples"] = None
        put(module.network, {n: named[n] for n in touched} | choice.changed)
        module.set_rounding(choice.rounding)
        if self.settings.train is not None:
            self.progress("training", 0, None)
            shapes = {name: p.shape for name, p in module.named_parameters()}
            called(self.settings.train, module, "training")
            if {name: p.shape for name, p in module.named_parameters()} != shapes:
                raise SourceError(
                    "training changed the shapes of parameters",
                    where="--train",
                    received=self.network.what.name,
                    todo="train the module that is given, in place",
                )
            module.eval().requires_grad_(False)
            self.notes["training keeps the norms' statistics"] = None
        return choice

    def _result(self, choices: Mapping[str, _Choice]) -> Quantization:
        settings = self.settings
        scorer = self._scorer()
        self.progress("scoring", 0, None)
        module = Quantized(self.model, Rounding(), self._input_names())
        metrics = self._scores(scorer, module, choices)
        strategies = []
        for name, choice in choices.items():
            bits = [choice.layer_bits[g[-1]] for g in self.demand.groups if g[-1] in choice.layer_bits]
            strategies.append(
                {
                    "name": name,
                    "peak_bytes": self.demand.total_bytes(choice.layer_bits),
                    "flash_bytes": choice.flash_bytes,
                    "fits": choice.holds,
                    "cost": choice.cost,
                    "mean_bits": sum(bits) / len(bits) if bits else None,
                    "metric": metrics[name],
                    "optimal": choice.optimal,
                    "gap": choice.gap,
                }
            )
        touched = {name for choice in choices.values() for name in choice.changed}
        chosen = self._finish(module, choices[settings.strategy], touched)
        metric = metrics[settings.strategy]
        further = settings.train is not None or settings.rounding != "nearest"
        if further:
            metric = self._scores(scorer, module, {"": None})[""]
        profile = profile_graph(self.base, memory=settings.memory, layer_bits=chosen.layer_bits)
        key = "saved_bytes" if self.memory.measures == "saved" else "peak_bytes"
        for note in profile.notes:
            self.notes[note] = None
        self._note_additivity(scorer)
        recipe = self._recipe(module, chosen.layer_bits, profile.totals[key])
        return Quantization(
            source=self.network.what.name,
            inputs=profile.inputs,
            per="layer",
            memory=settings.memory,
            training=self.memory.of_training,
            device="cpu",
            rows=self._layer_rows(profile.rows, chosen.layer_bits, module.rounding, key),
            totals={
                "baseline_peak_bytes": self.baseline.totals[key],
                "peak_bytes": profile.totals[key],
                "budget_bytes": settings.budget_bytes,
                "baseline_peak_at": self.baseline.totals.get("peak_at"),
                "peak_at": profile.totals.get("peak_at"),
                "baseline_metric": None if scorer.metric == "sqnr" else scorer.score(self.network.what.model),
                "metric": metric,
                "untrained_metric": metrics[settings.strategy] if further else None,
                "flash_bytes": chosen.flash_bytes,
                "max_flash_bytes": settings.max_flash,
                "optimal": chosen.optimal,
                "gap": chosen.gap,
            },
            notes=tuple(self.notes),
            environment=dict(self.base.environment),
            settings={
                "data": self.data.name,
                "samples": self.samples,
                "metric": scorer.name,
                "strategy": settings.strategy,
                "bits": sorted(set(settings.bits)),
                "weight_bits": list(settings.widths_of_weights),
                "equalize": settings.equalize,
                "correct": settings.correct,
                "rounding": settings.rounding,
                "trained": settings.train is not None,
                "seed": settings.sampling.seed,
            },
            strategies=tuple(strategies),
            recipe=recipe,
            module=module,
        )

    def _note_additivity(self, scorer: Scorer) -> None:
        note = "summed cost: noise at the outputs by the signal's power, each tensor rounded by itself, added up"
        self.notes[note] = None
        if scorer.metric == "sqnr":
            self.notes["SQNR compares with the float network, of which it has none itself"] = None

    def _scores(
        self, scorer: Scorer, module: Quantized, choices: Mapping[str, _Choice | None]
    ) -> dict[str, float | None]:
        """Score a network with one choice after another, None as it is; for sqnr the float network runs only once."""
        scores: dict[str, float | None] = {}
        named = named_tensors(self.model)
        signal, wanted = 0.0, []
        if scorer.metric == "sqnr":
            for batch in scorer.data:
                with torch.no_grad():
                    outputs = scorer.outputs(scorer.reference, batch)
                wanted.append([t.double() for t in outputs if t.is_floating_point()])
                signal += sum(float(t.square().sum()) for t in wanted[-1])
        touched = {n for choice in choices.values() if choice is not None for n in choice.changed}
        for name, choice in choices.items():
            if choice is not None:
                put(module.network, {n: named[n] for n in touched} | choice.changed)
                module.set_rounding(choice.rounding)
            if scorer.metric != "sqnr":
                scores[name] = scorer.score(module)
                continue
            noise = 0.0
            for own, batch in zip(wanted, scorer.data, strict=True):
                with torch.no_grad():
                    noise += _noise(own, scorer.outputs(module, batch))
            scores[name] = 10 * math.log10(signal / noise) if noise and signal else None
        return scores

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
            settings={"strategy": settings.strategy, "bits": list(settings.bits), "seed": settings.sampling.seed},
            activations=activations,
            weights=weights,
            changed=changed,
        )


@dataclass(frozen=True)
class _Choice:
    """Bits of every tensor, and what follows from them."""

    layer_bits: dict[str, int]
    rounding: Rounding
    changed: dict[str, Tensor]
    """Tensors of the model that go with these bits."""
    holds: bool
    optimal: bool
    gap: float | None
    cost: float | None
    flash_bytes: int | None


class _GridTable:
    """The grid of each layer's output at each width, made when it is asked for."""

    def __init__(self, observers: Mapping[str, Observer], kept: Mapping[str, tuple[float, float]] | None) -> None:
        self._observers, self._kept = observers, kept
        self._made: dict[tuple[str, int], Grids] = {}

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


def _noise(own: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    floating = (t for t in found if t.is_floating_point())
    return sum(float((a - b.double()).square().sum()) for a, b in zip(own, floating, strict=True))
