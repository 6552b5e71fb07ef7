"""Timing: the whole model alone, its rows during a run of it, or each row by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from memfit.capture.recording import tensors_in
from memfit.errors import CaptureError, MemfitError, said
from memfit.graph.model import Graph
from memfit.measure.boundaries import check_order, instrument
from memfit.measure.config import Config
from memfit.measure.layout import Event, Layout, divide, lay_out, other_order
from memfit.measure.program import Program, Step, op_weights, restored
from memfit.measure.rows import SPECS, RowSpec, Timed, model_row, row_of_ops
from memfit.measure.session import Progress, collect
from memfit.measure.statistics import Array
from memfit.measure.subject import Call
from memfit.measure.timers import Timer


@dataclass
class Timing:
    """The samples of a measurement."""

    rows: list[Timed]
    whole: list[float]
    """Milliseconds of each timed iteration of the model alone."""
    interrupted: bool = False
    settled: bool | None = None
    """Of an adaptive run, whether every median was known well enough."""
    notes: list[str] = field(default_factory=list)


class Stopwatch:
    """Times one call of a model.

    Args:
        name: the source, for messages.
        module: the model, whose modules carry the marks.
        model: what is called: the module, or what a compiler made of it.
        call: the arguments.
        config: what to measure and how.
        timer: of the device.
        progress: is told after each iteration.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        model: Callable[..., Any],
        call: Call,
        *,
        config: Config,
        timer: Timer,
        progress: Progress,
    ) -> None:
        self.name, self.module, self.model, self.call = name, module, model, call
        self.config, self.timer, self.progress = config, timer, progress

    def run(self) -> Any:
        """Call the model."""
        return self.model(*self.call.args, **self.call.kwargs)

    def time(self, graph: Graph | None, events: tuple[Event, ...], prefix: str = "") -> Timing:
        """Time the model alone and its rows; without a graph, the model alone.

        Raises:
            CaptureError: there are no rows, or they cannot be told apart.
        """
        config = self.config
        if config.per == "model" or graph is None:
            macs = sum(op.macs for op in graph.ops) if graph is not None else None
            shape = graph.tensors[graph.outputs[0]].shape if graph is not None and graph.outputs else None
            found = collect(
                self.plain,
                config.schedule,
                whole=float,
                what=f"{prefix}timing the model",
                progress=self.progress,
            )
            row = Timed(model_row(type(self.module).__name__, macs or None, shape), found.samples)
            return Timing([row], found.samples, found.interrupted, found.settled)
        specs = SPECS[config.per](graph, events, config.blocks)
        if not specs:
            raise CaptureError(
                "this model runs no operation, so there are no rows to time",
                where=self.name,
                received="a graph without operations",
                todo="leave out --per",
            )
        if config.mode == "isolated":
            return self.isolated(graph, specs)
        return self.in_place(graph, events, specs)

    def plain(self) -> float:
        """Time the model alone."""
        timer = self.timer
        timer.start()
        timer.mark()
        outputs = self.run()
        timer.mark()
        del outputs
        return float(timer.finish()[0])

    def in_place(self, graph: Graph, events: tuple[Event, ...], specs: list[RowSpec]) -> Timing:
        """Time runs of the model alone and runs with timestamps in turn, so that what drifts drifts for both."""
        if self.config.per == "op":
            once, estimated = self._op_by_op(graph), frozenset[int]()
        else:
            once, estimated = self._between_marks(graph, events, specs)
        turn = 0

        def both() -> tuple[float, Array]:
            nonlocal turn
            turn += 1
            if turn % 2:
                return self.plain(), once()
            parts = once()
            return self.plain(), parts

        found = collect(
            both,
            self.config.schedule,
            whole=lambda sample: sample[0],
            what=f"timing {len(specs)} {self.config.per}s in place",
            progress=self.progress,
        )
        whole = [sample[0] for sample in found.samples]
        parts = np.array([sample[1] for sample in found.samples])
        timed = [Timed(spec, parts[:, i].tolist(), i in estimated) for i, spec in enumerate(specs)]
        notes = []
        if estimated:
            names = "1 row shares" if len(estimated) == 1 else f"{len(estimated)} rows share"
            notes.append(
                f"estimated: {names} parts of a module's own code; their time is divided as the same operations take "
                "when they run one by one"
            )
        return Timing(timed, whole, found.interrupted, found.settled, notes)

    def _between_marks(
        self, graph: Graph, events: tuple[Event, ...], specs: list[RowSpec]
    ) -> tuple[Callable[[], Array], frozenset[int]]:
        """Prepare one run with timestamps at the modules that part the rows."""
        row_of = row_of_ops(graph, specs)
        layout = lay_out(graph, events, row_of, len(specs))
        if layout.shared:
            layout = divide(layout, graph, events, row_of, self._weights(graph))
        marked, times = self.marked(layout, events), _summing(layout)
        return lambda: times(marked()), layout.shared

    def marked(self, layout: Layout, events: Sequence[Event]) -> Callable[[], Array]:
        """Prepare a run with marks; it gives the milliseconds of its parts.

        Raises:
            CaptureError: the modules are not called in the captured order.
        """
        check_order(self.module, events, self.run)
        timer = self.timer
        forward = instrument(self.module, layout, timer.mark)
        expected = len(layout.order) + 1
        paths = [path for path, _ in self.module.named_modules()]

        def once() -> Array:
            timer.start()
            with forward():
                timer.mark()
                outputs = self.run()
                timer.mark()
            del outputs
            parts = timer.finish()
            if len(parts) != expected:
                raise other_order(paths, layout.order, [(0, True)] * (len(parts) - 1))
            return parts

        return once

    def _weights(self, graph: Graph) -> Array:
        """Give each operation's own time, or where it cannot be run by itself the bytes that it touches."""
        try:
            return op_weights(self._program(graph), self.timer)
        except (MemfitError, RuntimeError, TypeError, ValueError):
            tensors = graph.tensors
            touched = [sum(tensors[t].nbytes for t in (*op.inputs, *op.outputs)) for op in graph.ops]
            idle = [graph.is_alias(op) for op in graph.ops]
            return np.array([0 if i else t for i, t in zip(idle, touched, strict=True)], dtype=np.float64)

    def _program(self, graph: Graph) -> Program:
        return Program(
            graph, self.module, list(tensors_in((self.call.args, self.call.kwargs))), self.config.placing.device
        )

    def _op_by_op(self, graph: Graph) -> Callable[[], Array]:
        """Prepare one replay with a timestamp before and after each operation."""
        program, timer = self._program(graph), self.timer

        def once() -> Array:
            timer.start()
            program.run(timer.mark)
            return timer.finish()[::2]

        self._try(once, "these operations cannot be replayed one by one")
        return once

    def isolated(self, graph: Graph, specs: list[RowSpec]) -> Timing:
        """Time the model alone, then each row alone, where a replay of the network comes by with its real inputs."""
        schedule = self.config.schedule
        if schedule.seconds is not None:
            schedule = replace(schedule, seconds=schedule.seconds / (len(specs) + 1))
        whole = collect(self.plain, schedule, whole=float, what="timing the model", progress=self.progress)
        program = self._program(graph)
        row_of = row_of_ops(graph, specs)
        groups = list(program.groups(row_of))
        spans: dict[int, list[Array]] = {}
        interrupted, settled = whole.interrupted, whole.settled
        slots = program.begin()
        done = 0
        try:
            for row, steps in groups if not interrupted else ():
                self._try(lambda steps=steps: _run_steps(steps, slots, lambda: None), "a row cannot run by itself")  # type: ignore[misc]
                if row >= 0:
                    with restored(steps, program, slots) as put_back:
                        found = collect(
                            lambda steps=steps, put_back=put_back: self._alone(steps, slots, put_back),  # type: ignore[misc]
                            schedule,
                            whole=float,
                            what=f"row {row + 1} of {len(specs)}, {specs[row].name}",
                            progress=self.progress,
                        )
                    if found.interrupted:
                        raise KeyboardInterrupt
                    settled = None if settled is None else settled and bool(found.settled)
                    spans.setdefault(row, []).append(np.array(found.samples))
                for step in steps:
                    step.free(slots)
                done += 1
        except KeyboardInterrupt:
            interrupted = True
        unfinished = {row for row, _ in groups[done:]}
        timed = []
        for row, spec in enumerate(specs):
            if row in unfinished or row not in spans:
                continue
            shortest = min(map(len, spans[row]))
            timed.append(Timed(spec, np.sum([part[:shortest] for part in spans[row]], axis=0).tolist()))
        notes = [f"interrupted: {len(timed)} of {len(specs)} rows are done"] if interrupted else []
        return Timing(timed, whole.samples, interrupted, settled, notes)

    def _alone(self, steps: Sequence[Step], slots: list[Any], put_back: Callable[[], None]) -> float:
        """Time one row's operations."""
        put_back()
        timer = self.timer
        timer.start()
        _run_steps(steps, slots, timer.mark)
        return float(timer.finish()[0])

    def _try(self, run: Callable[[], Any], what: str) -> None:
        try:
            run()
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise CaptureError(
                what,
                where=self.name,
                received=said(error),
                todo="use --per layer, block or model, in place",
            ) from error


def _run_steps(steps: Sequence[Step], slots: list[Any], mark: Callable[[], object]) -> None:
    mark()
    for step in steps:
        args, kwargs = step.read(slots)
        step.keep(step.function(*args, **kwargs), slots)
    mark()


def _summing(layout: Layout) -> Callable[[Array], Array]:
    """Prepare the sum of a run's parts by row."""
    row, part = np.array(layout.row, dtype=np.intp), np.array(layout.part, dtype=np.intp)
    share = np.array(layout.share)

    def times(parts: Array) -> Array:
        summed: Array = np.bincount(row, weights=parts[part] * share, minlength=layout.rows).astype(np.float64)
        return summed

    return times
