"""`memfit prune`: take out channels until the network keeps its limits, first where its peak is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memfit.analysis.layers import INPUT, UNUSED, layers
from memfit.analysis.result import Pruning
from memfit.capture.entry import Model
from memfit.compress.calibrate import channel_axes
from memfit.compress.channels import IMPORTANCE, Group, Surgery, copy_of
from memfit.compress.choice import STRATEGIES, Figures, Limits, Pool, pool, smallest
from memfit.compress.data import RANDOM, Sampling, Wanted
from memfit.compress.resize import Sizes, measure_sizes
from memfit.compress.scoring import METRICS, Scorer, called, renew_statistics, taylor_gradients
from memfit.errors import SourceError, UsageError
from memfit.graph.model import Graph
from memfit.measure.session import Progress, no_progress
from memfit.measure.subject import Call, Placing, Subject, subject
from memfit.memory.flash import flash_of_graph
from memfit.memory.model import MemoryModel, Options, View
from memfit.memory.profile import profile_graph
from memfit.memory.registry import memory_model
from memfit.units import format_bytes, format_count, format_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memfit.capture.entry import Inputs

MEMORY = ("mcunet", "ideal", "eager", "autograd", "tinytl")
"""Memory models that a budget can be of."""

_RUNS = 15
"""Timed runs of a latency, whose median counts."""
_TRIES = 8
"""Rounds of pruning and measuring that a latency may take."""
_CLOSE = 0.95
"""Share of a latency that is near enough to it."""


@dataclass(frozen=True)
class Settings:
    """What to prune to, and how."""

    sampling: Sampling
    limits: Limits
    latency_ms: float | None = None
    memory: str = "mcunet"
    importance: str = "magnitude"
    strategy: str = "peak"
    fine_tune: str | Callable[[nn.Module], Any] | None = None
    metric: str | Callable[[nn.Module], Any] | None = None
    rounds: int = 1
    """Rounds of pruning, each followed by fine-tuning where there is some; limits close in on the last."""
    least: int = 4
    """Channels that each layer keeps at the least."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is built."""
        for option, value, known in (
            ("--importance", self.importance, IMPORTANCE),
            ("--strategy", self.strategy, tuple(STRATEGIES)),
        ):
            if value not in known:
                raise UsageError(
                    f"there is no such {option[2:]}", where=option, received=repr(value), todo=f"use {_or(known)}"
                )
        if memory_model(self.memory).name not in MEMORY:
            raise UsageError(
                "this memory model is not one that a PyTorch model can be pruned for on the CPU",
                where="--memory",
                received=self.memory,
                todo=f"use {_or(MEMORY)}",
            )
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise UsageError(
                "there is no such metric",
                where="--metric",
                received=repr(self.metric),
                todo=f"use {', '.join(METRICS)} or FILE.py:CALLABLE, which is given the module",
            )
        if all(limit is None for limit in (*self.limits, self.latency_ms)):
            raise UsageError(
                "there is nothing to prune for",
                where="memfit prune",
                received="no limit",
                todo="give --budget, --max-flash, --max-macs or --max-latency",
            )
        for option, number in (("--rounds", self.rounds), ("--min-channels", self.least)):
            if number < 1:
                raise UsageError(
                    f"{option} must be at least 1", where=option, received=str(number), todo="give 1 or more"
                )
        for option, limit in (
            ("--budget", self.limits.peak),
            ("--max-flash", self.limits.flash),
            ("--max-macs", self.limits.macs),
            ("--max-latency", self.latency_ms),
        ):
            if limit is not None and not 0 < limit < float("inf"):
                raise UsageError(
                    "a limit must be above zero", where=option, received=str(limit), todo="give a larger one"
                )


def prune(
    source: str | nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    *,
    args: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    save: Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Pruning:
    """Prune a network to its limits; arguments as for `memfit.prune`."""
    if isinstance(source, str) and source.endswith((".pt2", ".memfit.json", ".tflite", ".onnx")):
        raise SourceError(
            "only a model with its own code can be pruned",
            where=source,
            received="a file that memfit reads for its graph",
            todo="name the model itself, such as torchvision:mobilenet_v2 or FILE.py:CALLABLE, or pass an nn.Module",
        )
    progress("building the model", 0, None)
    with subject(source, args, Placing(weights=weights)) as what, _seeded(settings.sampling.seed):
        work = _Work(what, inputs, settings, progress)
        result = work.run()
        if save is not None:
            from memfit.compress.export import save_program

            progress("saving", 0, None)
            save_program(result.module, work.arguments, save, force=force)
        return result


class _Work:
    """One run of pruning."""

    def __init__(self, what: Subject, inputs: Inputs | None, settings: Settings, progress: Progress) -> None:
        self.what, self.inputs, self.settings, self.progress = what, inputs, settings, progress
        self.memory: MemoryModel = memory_model(settings.memory)
        call = what.call(inputs, None)
        self.base = self.capture(what.model)
        call.fill_tokens(self.base)
        self.arguments = (call.args, call.kwargs)
        self.scorer = self._scorer(call, given=inputs is not None)
        self.notes: dict[str, None] = dict.fromkeys((*what.notes, *self.base.notes))
        self.binding: tuple[str, ...] = ()
        """Limits that decided the last round."""
        self.latency_ms: float | None = None
        """Of what the last round left."""

    def _scorer(self, call: Call, *, given: bool) -> Scorer:
        settings = self.settings
        wanted = tuple(
            Wanted(entry["name"], tuple(entry["shape"]), entry["dtype"], strict=given) for entry in call.described
        )
        return Scorer(settings.sampling.open(wanted), self.arguments, settings.metric, self.what.model).chosen()

    def capture(self, model: nn.Module) -> Graph:
        """Capture a model of the same inputs, as `memfit profile` does."""
        opened = Model(replace(self.what.loaded, model=model))
        return opened.capture(self.inputs, training=self.memory.of_training)

    def figures(self, graph: Graph) -> Figures:
        """Give what a network takes."""
        found = self.memory.figures(View(graph, Options()))
        needs = tuple(need or 0 for need in found.per_op)
        if self.memory.measures == "saved" or max(needs, default=0) != found.total_bytes:
            needs = (found.total_bytes,)
        return Figures(needs, flash_of_graph(graph).total_bytes, sum(op.macs for op in graph.ops))

    def run(self) -> Pruning:
        """Prune, fine-tune and compare."""
        settings, model = self.settings, copy_of(self.what.model, self.what.name)
        before = self.figures(self.base)
        self.progress("scoring the model as it is", 0, None)
        baseline = None if self.scorer.metric == "sqnr" else self.scorer.score(model)  # none of itself
        latency = self._latency(model) if settings.latency_ms is not None else None
        untuned: float | None = None
        for number in range(1, settings.rounds + 1):
            share = number / settings.rounds
            limits = Limits(*(_toward(b, w, share) for b, w in zip(_totals(before), settings.limits, strict=True)))
            wanted_ms = None
            if settings.latency_ms is not None and latency is not None:
                wanted_ms = latency * min(settings.latency_ms / latency, 1.0) ** share
            model = self._pruned(model, limits, wanted_ms)
            self._renew(model)
            if settings.fine_tune is not None:
                if number == settings.rounds:
                    untuned = self.scorer.score(model)
                model = self._tuned(model)
        self.progress("scoring the pruned model", 0, None)
        after = self.capture(model)
        return self._result(model, after, (baseline, untuned, self.scorer.score(model)), latency)

    # -- one round -------------------------------------------------------------------------------------------------

    def _pruned(self, model: nn.Module, limits: Limits, latency_ms: float | None) -> nn.Module:
        """Take channels out of a model until the limits hold; the model itself stays as it was."""
        self.progress("finding what depends on what", 0, None)
        surgery = self._surgery(copy_of(model, self.what.name))
        groups = surgery.groups
        if self.settings.importance == "taylor":
            self.progress("running backward for the importance", 0, None)
            if not taylor_gradients(self.scorer, surgery.model):
                self._note("the data has no labels: Taylor importance is of the mean square of the outputs")
        rated = surgery.importance(self.settings.importance)
        sizes = self._sizes(model, groups)
        evaluate = _remembered(lambda counts: self.figures(sizes.resized(counts)))
        pools = self._pools(groups, rated, sizes)
        smallest(pools, evaluate, limits)

        def choose(within: Limits) -> list[int]:
            return STRATEGIES[self.settings.strategy](pools, evaluate, within)

        aim = limits
        kept: nn.Module | None = None
        fast = slow = 0  # MACs that keep the latency, and that do not
        for attempt in range(_TRIES):
            self.progress("choosing channels", 0, None)
            counts = choose(aim)
            cut = self._cut(model, groups, pools, counts)
            found, predicted = self.figures(self.capture(cut)), evaluate(counts)
            if limits.exceeded(found):  # eager's workspaces do not follow from sizes alone: aim below the limit
                aim = Limits(
                    *(
                        goal
                        if limit is None or goal is None or is_now <= limit
                        else thought - (is_now - limit << attempt)
                        for goal, limit, is_now, thought in zip(
                            aim, limits, _totals(found), _totals(predicted), strict=True
                        )
                    )
                )
                continue
            took = 0.0 if latency_ms is None else self._latency(cut)
            if latency_ms is None or took <= latency_ms:
                kept, fast, self.latency_ms = cut, found.macs, took
                decided = _binding(limits, aim, lambda within: evaluate(choose(within)))
                self.binding = (*decided, *["latency"] * bool(slow))
                if latency_ms is None or not slow or took >= _CLOSE * latency_ms:
                    break
            else:
                slow = found.macs
            if kept is None:  # time falls more slowly than the MACs do
                share = (0.97 * latency_ms / took) ** (1 + attempt)
                aim = aim._replace(macs=self._macs_for(found.macs, share, pools, evaluate, (took, latency_ms)))
            else:
                aim = aim._replace(macs=(fast + slow) // 2)
        if kept is not None:
            return kept
        raise UsageError(
            "pruning does not reach these limits together",
            where="--budget, --max-flash, --max-macs, --max-latency",
            received=self._taken(found) + ("" if latency_ms is None else f", {took:.2f} ms"),
            todo="give one of the limits more room, or fewer --min-channels",
        )

    def _surgery(self, model: nn.Module) -> Surgery:
        args, kwargs = self.arguments
        return Surgery(model, args, kwargs, self.what.name)

    def _sizes(self, model: nn.Module, groups: Sequence[Group]) -> Sizes:
        done = 0

        def capture(counts: Sequence[int]) -> Graph:
            nonlocal done
            self.progress("measuring how sizes follow from channels", done, None)
            done += 1
            if not any(counts):
                return self.capture(model)
            surgery = self._surgery(copy_of(model, self.what.name))
            for group, count in zip(groups, counts, strict=True):
                surgery.remove(group.name, range(count))
            return self.capture(surgery.close())

        sizes = measure_sizes(capture, [group.channels for group in groups], seed=self.settings.sampling.seed)
        whole = [groups[i].name for i in sorted(sizes.failing)]
        if whole:
            self._note(f"the model's own code fixes the channels of {format_names(whole)}, which stay")
        return sizes

    def _pools(self, groups: Sequence[Group], rated: Mapping[str, Any], sizes: Sizes) -> list[Pool]:
        relative = self.settings.importance != "taylor"
        return [
            pool(rated[group.name].tolist(), least=self.settings.least, relative=relative, fixed=number in sizes.fixed)
            for number, group in enumerate(groups)
        ]

    def _cut(
        self, model: nn.Module, groups: Sequence[Group], pools: Sequence[Pool], counts: Sequence[int]
    ) -> nn.Module:
        surgery = self._surgery(copy_of(model, self.what.name))
        for group, chosen, count in zip(groups, pools, counts, strict=True):
            surgery.remove(group.name, chosen.order[:count])
        return surgery.close().eval()

    def _latency(self, model: nn.Module) -> float:
        """Measure the median time of a call, in milliseconds."""
        self.progress("measuring the latency", 0, None)
        args, kwargs = self.arguments
        times = []
        with torch.no_grad():
            for run in range(_RUNS + 3):
                start = time.perf_counter_ns()
                model(*args, **kwargs)
                if run >= 3:
                    times.append((time.perf_counter_ns() - start) / 1e6)
        return median(times)

    def _macs_for(
        self,
        macs: int,
        share: float,
        pools: Sequence[Pool],
        evaluate: Callable[[Sequence[int]], Figures],
        times: tuple[float, float],
    ) -> int:
        """Give the MACs with which a latency may hold: a share of those that took too long.

        Raises:
            UsageError: as few as may be are not few enough.
        """
        least = evaluate([p.channels - p.least for p in pools]).macs
        if macs <= least:
            raise UsageError(
                "pruning cannot reach this latency",
                where="--max-latency",
                received=f"{times[1]:g} ms",
                todo=f"the smallest, of {format_count(least)} MACs, takes about {times[0]:.2f} ms here",
            )
        return max(int(macs * share), least)

    def _renew(self, model: nn.Module) -> None:
        """Measure batch norms' statistics again, unless the data is noise."""
        if self.scorer.data.name == RANDOM:
            return
        self.progress("measuring batch norms' statistics", 0, None)
        if renew_statistics(self.scorer, model):
            self._note("batch norms' means and variances are measured again on the data")

    def _tuned(self, model: nn.Module) -> nn.Module:
        self.progress("fine-tuning", 0, None)
        tune = self.settings.fine_tune
        assert callable(tune)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        found = called(tune, model, "fine-tuning")
        tuned = found if isinstance(found, nn.Module) else model
        if {name: p.shape for name, p in tuned.named_parameters()} != shapes:
            raise SourceError(
                "fine-tuning gave back another network than it was given",
                where="--fine-tune",
                received=type(found).__name__,
                todo="train the module that is given, and return nothing or that module",
            )
        return tuned.eval()

    # -- the answer ------------------------------------------------------------------------------------------------

    def _result(
        self,
        model: nn.Module,
        after: Graph,
        metrics: tuple[float | None, float | None, float | None],
        latency: float | None,
    ) -> Pruning:
        settings = self.settings
        profiles = [profile_graph(graph, memory=settings.memory) for graph in (self.base, after)]
        was, now = (self.figures(graph) for graph in (self.base, after))
        one, two = (profile.totals for profile in profiles)
        key = "saved_bytes" if self.memory.measures == "saved" else "peak_bytes"
        for note in (*profiles[1].notes, *(flash_of_graph(after).notes if settings.limits.flash is not None else ())):
            self._note(note)
        if all(old == new for old, new in zip(was, now, strict=True)):
            self._note("the limits hold as it is: nothing was taken out")
        if self.scorer.metric == "sqnr":
            self._note("SQNR compares with the network before pruning, of which it has none itself")
        return Pruning(
            source=self.what.name,
            inputs=profiles[0].inputs,
            per="layer",
            memory=settings.memory,
            training=self.memory.of_training,
            device="cpu",
            rows=self._rows(after, [profile.rows for profile in profiles], key),
            totals={
                "baseline_peak_bytes": was.peak,
                "peak_bytes": now.peak,
                "budget_bytes": settings.limits.peak,
                "baseline_peak_at": one.get("peak_at"),
                "peak_at": two.get("peak_at"),
                "baseline_metric": metrics[0],
                "metric": metrics[2],
                "untuned_metric": metrics[1],
                "baseline_flash_bytes": was.flash,
                "flash_bytes": now.flash,
                "max_flash_bytes": settings.limits.flash,
                "baseline_macs": was.macs,
                "macs": now.macs,
                "max_macs": settings.limits.macs,
                "baseline_params": sum(t.elements for t in self.base.parameters()),
                "params": sum(t.elements for t in after.parameters()),
                "baseline_latency_ms": latency,
                "latency_ms": None if latency is None else self.latency_ms,
                "max_latency_ms": settings.latency_ms,
                "binding": list(self.binding),
            },
            notes=tuple(self.notes),
            environment=dict(after.environment),
            settings={
                "data": self.scorer.data.name,
                "samples": settings.sampling.samples,
                "metric": self.scorer.name,
                "importance": settings.importance,
                "strategy": settings.strategy,
                "rounds": settings.rounds,
                "fine_tuned": settings.fine_tune is not None,
                "least_channels": settings.least,
                "seed": settings.sampling.seed,
            },
            module=model,
        )

    def _rows(self, after: Graph, profiled: Sequence[Sequence[dict[str, Any]]], key: str) -> tuple[dict[str, Any], ...]:
        old, new = layers(self.base), layers(after)
        axes = channel_axes(self.base, old)
        rows = []
        for layer, pruned, axis, *figures in zip(old, new, axes, *profiled, strict=True):
            if layer.type in (INPUT, UNUSED) or not layer.output_shape:
                continue
            rows.append(
                {
                    "name": layer.name,
                    "type": layer.type,
                    "channels_before": layer.output_shape[axis],
                    "channels_after": pruned.output_shape[axis],
                    "params_before": layer.params,
                    "params_after": pruned.params,
                    "bytes_before": figures[0].get(key),
                    "bytes_after": figures[1].get(key),
                }
            )
        return tuple(rows)

    def _taken(self, figures: Figures) -> str:
        return f"{format_bytes(figures.peak)}, flash {format_bytes(figures.flash)}, {format_count(figures.macs)} MACs"

    def _note(self, text: str) -> None:
        self.notes[text] = None


def _remembered(evaluate: Callable[[Sequence[int]], Figures]) -> Callable[[Sequence[int]], Figures]:
    known: dict[tuple[int, ...], Figures] = {}

    def find(counts: Sequence[int]) -> Figures:
        key = tuple(counts)
        if key not in known:
            known[key] = evaluate(key)
        return known[key]

    return find


def _binding(limits: Limits, aim: Limits, reached: Callable[[Limits], Figures]) -> tuple[str, ...]:
    """Name the limits that decide: the others alone would leave the network above them.

    Args:
        limits: that were asked for.
        aim: what was pruned to: the same, or less where a latency needed it.
        reached: limits → what the network takes when it is pruned to them.
    """
    return tuple(
        name
        for name, limit in limits._asdict().items()
        if limit is not None
        and not (name == "macs" and aim.macs != limit)  # the latency asked for fewer
        and name in limits.exceeded(reached(aim._replace(**{name: None})))
    )


def _totals(figures: Figures) -> tuple[int, int, int]:
    return figures.peak, figures.flash, figures.macs


def _toward(before: int, limit: int | None, share: float) -> int | None:
    """Give the limit of a round: each takes the same share of what is left."""
    if limit is None or before <= limit or share >= 1:
        return limit
    return int(before * (limit / before) ** share)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let random numbers depend on the seed alone, and leave the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
