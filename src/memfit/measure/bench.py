"""`memfit bench`: one measurement from its source to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memfit.analysis.result import Benchmark
from memfit.capture.recording import tensors_in
from memfit.capture.torch_trace import capture_module
from memfit.errors import CaptureError, MemfitError, UsageError, said
from memfit.graph.model import Graph
from memfit.measure.boundaries import record
from memfit.measure.config import Config
from memfit.measure.environment import environment, remarks
from memfit.measure.layout import Event
from memfit.measure.memory import MEASURE
from memfit.measure.rows import figures, rows_and_totals
from memfit.measure.session import Progress, no_progress, quiet_collector
from memfit.measure.statistics import WIDE, describe
from memfit.measure.subject import Call, Subject, subject
from memfit.measure.timers import TIMERS
from memfit.measure.timing import Stopwatch, Timing

if TYPE_CHECKING:
    from memfit.capture.entry import Inputs


@dataclass
class Measured:
    """A result, and the samples that it was made from."""

    result: Benchmark
    whole: list[float]
    """Milliseconds of each timed iteration of the whole model; empty for a sweep."""
    rows: dict[str, list[float]]
    """Milliseconds of each timed iteration, by row."""


def measure(
    source: str | nn.Module,
    inputs: Inputs | None,
    config: Config,
    *,
    args: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> Measured:
    """Time a model that really runs, and its rows.

    Raises:
        MemfitError: a source that cannot run, a device that is not there, a model that refused its input.
        KeyboardInterrupt: it came before anything was measured.
    """
    _require_device(config.placing.device)
    with _threads(config.threads):
        around = environment(config.placing.device)
        progress("building the model", 0, None)
        with subject(source, args, config.placing) as what, torch.no_grad():
            bench = _Bench(what, config, progress)
            return bench.sweep(inputs, around) if config.sweep else bench.one(inputs, around)


class _Bench:
    """One measurement under way."""

    def __init__(self, what: Subject, config: Config, progress: Progress) -> None:
        self.what, self.config, self.progress = what, config, progress
        self.device = config.placing.device
        self.timer = TIMERS[self.device]()
        self.notes: dict[str, None] = dict.fromkeys(what.notes)
        self.model: Callable[..., Any] = what.model
        if config.compile:
            self.model = torch.compile(what.model)

    # -- the two kinds of result ------------------------------------------------------------------------------------

    def one(self, inputs: Any, around: dict[str, Any]) -> Measured:
        """Measure one batch size."""
        config = self.config
        call = self.what.call(inputs, config.batches[0] if config.batches else None)
        self._first_run(call)
        graph, events = self._captured(call)
        with quiet_collector():
            timing = self._stopwatch(call).time(graph, events)
        rows, totals = rows_and_totals(timing.rows, timing.whole, call.batch)
        totals["batch"] = call.batch
        if config.with_memory:
            timing.interrupted = self._add_memory(call, graph, totals) or timing.interrupted
        self._remark(timing)
        result = self._result(call.described, rows, totals, around, timing)
        return Measured(result, timing.whole, {t.spec.name: list(t.samples) for t in timing.rows})

    def sweep(self, inputs: Any, around: dict[str, Any]) -> Measured:
        """Measure the whole model at each batch size."""
        config = self.config
        rows: list[dict[str, Any]] = []
        points: list[dict[str, Any]] = []
        timing = Timing([], [])
        described: tuple[dict[str, Any], ...] = ()
        for batch in config.batches or ():
            try:
                call = self.what.call(inputs, batch)
                self._first_run(call)
                graph, events = self._captured(call)
                with quiet_collector():
                    found = self._stopwatch(call).time(graph, events, f"batch {batch}: ")
            except CaptureError as error:
                if not rows or not _is_memory(error):
                    raise
                self.notes[f"batch {batch} does not fit in memory"] = None
                break
            except KeyboardInterrupt:
                if not rows:
                    raise
                timing.interrupted = True
                break
            described = described or call.described
            entry = found.rows[0]
            entry = replace(entry, spec=entry.spec._replace(name=f"batch {batch}"))
            row: dict[str, Any] = {"name": entry.spec.name, "batch": batch, "calls": 1}
            row |= figures(found.whole, call.batch, entry.spec.macs)
            row["per_sample_ms"] = row["mean_ms"] / call.batch
            row["macs"] = entry.spec.macs
            timing = replace(found, rows=[*timing.rows, entry], settled=_both(timing.settled, found.settled))
            if config.with_memory and not found.interrupted:
                timing.interrupted = self._add_memory(call, graph, row)
            rows.append(row)
            points.append({**row, "inputs": call.described})
            if timing.interrupted:
                break
        best = max(rows, key=lambda row: float(row["fps"]))
        totals: dict[str, Any] = dict.fromkeys(("whole_ms", "layers_ms", "unattributed_ms"))
        totals |= {"fps": best["fps"], "best_batch": best["batch"]}
        self._remark(timing)
        result = self._result(described, tuple(rows), totals, around, timing)
        return Measured(replace(result, sweep=tuple(points)), [], {t.spec.name: list(t.samples) for t in timing.rows})

    def _stopwatch(self, call: Call) -> Stopwatch:
        return Stopwatch(
            self.what.name,
            self.what.model,
            self.model,
            call,
            config=self.config,
            timer=self.timer,
            progress=self.progress,
        )

    # -- before the clock runs ----------------------------------------------------------------------------------------

    def _run(self, call: Call) -> Any:
        return self.model(*call.args, **call.kwargs)

    def _first_run(self, call: Call) -> None:
        """Run once, so that what the model or PyTorch makes once and keeps is there, and refusals show themselves."""
        self.progress("running once", 0, None)
        try:
            outputs = self._run(call)
            if self.device == "cuda":
                torch.cuda.synchronize()
        except MemfitError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{e['name']} {'x'.join(map(str, e['shape']))} {e['dtype']}" for e in call.described)
            raise CaptureError(
                f"the model failed on this input: {said(error)}",
                where=self.what.name,
                received=shapes or "no inputs",
                todo="check the input's shape and dtype (--input 1x3x224x224, or 1x128:int64 for token ids), "
                "and that the device has room for it",
            ) from error
        if not all(bool(t.isfinite().all()) for t in tensors_in((outputs,)) if t.is_floating_point()):
            self.notes["the outputs are not finite numbers, which can be slower or faster to compute with"] = None

    def _captured(self, call: Call) -> tuple[Graph | None, tuple[Event, ...]]:
        """Capture the model as it runs here; without rows below the model it may fail, and MACs are not known then."""
        self.progress("capturing", 0, None)
        args, kwargs = call.stand_ins()

        def run() -> Graph:
            return capture_module(
                self.what.model,
                args,
                kwargs,
                source=self.what.name,
                input_names=call.names,
                strict=self.config.per != "model",
                cuda=_this_gpu() if self.device == "cuda" else None,
            )

        try:
            graph, events = record(self.what.model, run)
        except MemfitError as error:
            if self.config.per != "model" or self.config.with_memory:
                raise
            self.notes[f"MACs are not known, as the model cannot be captured: {error.what}"] = None
            return None, ()
        call.fill_tokens(graph)
        return graph, events

    # -- around it ----------------------------------------------------------------------------------------------------

    def _add_memory(self, call: Call, graph: Graph | None, into: dict[str, Any]) -> bool:
        """Measure memory too; True where that was interrupted."""
        self.progress("measuring memory", 0, None)
        assert graph is not None  # a capture that failed has been reported
        try:
            found, notes = MEASURE[self.device](lambda: self._run(call), graph)
        except KeyboardInterrupt:
            return True
        into |= found
        self.notes |= dict.fromkeys(notes)
        return False

    def _remark(self, timing: Timing) -> None:
        """Say what a reader of the figures must know."""
        notes, schedule, done = self.notes, self.config.schedule, len(timing.whole)
        notes |= dict.fromkeys(timing.notes)
        if timing.interrupted and not any(note.startswith("interrupted") for note in notes):
            wanted = f" of {schedule.iterations}" if schedule.iterations is not None else ""
            count = len(self.config.batches or ())
            sizes = f" of batch size {len(timing.rows)} of {count}" if self.config.sweep else ""
            notes[f"interrupted after {done}{wanted} iterations{sizes}"] = None
        if timing.settled is False:
            notes["a median was not sure to ±1 % when the time was up; give it more --seconds"] = None
        if any(describe(samples)["unsteady"] for samples in (*(t.samples for t in timing.rows), timing.whole)):
            notes[
                f"wide: the middle half of the samples spans more than {WIDE:.0%} of the median, or outliers pull "
                "the mean that far away; measure on a quiet machine"
            ] = None

    def _result(
        self,
        described: tuple[dict[str, Any], ...],
        rows: tuple[dict[str, Any], ...],
        totals: dict[str, Any],
        around: dict[str, Any],
        timing: Timing,
    ) -> Benchmark:
        config, placing = self.config, self.config.placing
        floating = next((p.dtype for p in self.what.model.parameters() if p.is_floating_point()), None)
        return Benchmark(
            source=self.what.name,
            inputs=described,
            per="batch" if config.sweep else config.per,
            memory=None,
            training=False,
            device=placing.device,
            rows=rows,
            totals=totals,
            notes=(*self.notes, *remarks(around, self.device)),
            environment=around,
            settings={
                "warmup": config.schedule.warmup,
                "iterations": len(timing.whole),
                "wanted_iterations": config.schedule.iterations,
                "seconds": config.schedule.seconds,
                "settled": timing.settled,
                "mode": config.mode if config.per != "model" else None,
                "dtype": None if floating is None else str(floating).removeprefix("torch."),
                "channels_last": placing.channels_last,
                "compile": config.compile,
                "threads": around["threads"],
            },
        )


def _require_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device here to measure on",
            where="--device",
            received="cuda",
            todo="measure with --device cpu, or predict without a GPU: memory of inference with "
            "memfit profile SOURCE --memory cuda, of a training step with memfit train SOURCE --batch N --device cuda",
        )


def _this_gpu() -> Any:
    from memfit.capture.cuda import Cuda

    return Cuda(torch.cuda.get_device_capability())


def _both(one: bool | None, other: bool | None) -> bool | None:
    return other if one is None else one and bool(other)


def _is_memory(error: CaptureError) -> bool:
    cause = error.__cause__
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
