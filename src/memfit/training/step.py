"""The answer of `memfit train`: what one step needs, whether it fits, and what would help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memfit.analysis.result import TrainingStep
from memfit.errors import CaptureError, UsageError
from memfit.graph.model import Graph, Op, StorageKind
from memfit.memory.cuda.context import context_bytes
from memfit.memory.cuda.profile import notes as notes_of
from memfit.memory.cuda.simulate import CATEGORIES
from memfit.training import checkpointing, search
from memfit.training.advice import Idea, combined, ideas
from memfit.training.predict import Prediction, Predictor
from memfit.training.setup import Setup
from memfit.units import format_count, format_names

AUTO = "auto"


def predict_step(
    predictor: Predictor,
    setup: Setup,
    *,
    checkpoint: str | None = None,
    budget_bytes: int | None = None,
    advice: bool = True,
) -> TrainingStep:
    """Predict one step of training on a GPU, and hold it against a budget.

    Args:
        predictor: of the model.
        setup: how it is trained; its `checkpoint` is empty.
        checkpoint: None, `auto`, or a regular expression of module paths.
        budget_bytes: what the GPU has; None asks no question of fit.
        advice: say what would help, where there is a budget.

    Raises:
        UsageError: a setup that cannot be, or a budget below 1.
        CaptureError: the model cannot be trained.
    """
    if budget_bytes is not None and budget_bytes < 1:
        raise UsageError(
            "the budget must be at least one byte", where="--budget", received=str(budget_bytes), todo="such as 24GiB"
        )
    setup.check()
    setup = _with_capability(setup)
    context = _context(setup)
    room = None if budget_bytes is None else budget_bytes - context
    notes: list[str] = []
    if checkpoint == AUTO:
        prediction = checkpointing.choose(predictor, setup, room)
    elif checkpoint is not None:
        prediction = predictor.predict(replace(setup, checkpoint=predictor.checkpoint_paths(setup, checkpoint)))
    else:
        prediction = predictor.predict(setup)
    setup = prediction.setup
    if setup.checkpoint:
        extra = checkpointing.recomputed_macs(prediction, predictor.predict(replace(setup, checkpoint=())))
        chosen = format_names(setup.checkpoint, most=4)
        notes.append(f"checkpointed: {chosen}; backward computes {format_count(extra)} MACs again")
    totals = _totals(prediction, context)
    found: list[Idea] = []
    if room is not None:
        needed = prediction.peak_reserved_bytes + context
        totals["budget_bytes"] = budget_bytes
        totals["fits"] = prediction.peak_reserved_bytes <= room
        totals["runs_with_retries"] = totals["fits"] or prediction.runs_within(room)
        totals["short_bytes"] = max(needed - (budget_bytes or 0), 0)
        totals["max_batch"] = largest_batch(predictor, setup, room)
        if advice:
            found = ideas(predictor, setup)
            if not totals["fits"] and not any(i.prediction.peak_reserved_bytes <= room for i in found):
                together = combined(predictor, setup, room, found)
                found = [*([together] if together else []), *found]
    return TrainingStep(
        source=prediction.graph.source,
        inputs=tuple(
            {"name": t.name, "shape": t.shape, "dtype": t.dtype}
            for t in (prediction.graph.tensors[i] for i in prediction.graph.inputs)
        ),
        per="category",
        memory="cuda" if setup.device == "cuda" else "eager",
        training=True,
        device=setup.device,
        rows=_rows(prediction),
        totals=totals,
        notes=(*prediction.graph.notes, *notes, *_notes(prediction)),
        environment=dict(prediction.graph.environment),
        settings=setup.describe(),
        timeline=_timeline(prediction),
        advice=tuple(_advice(idea, prediction, room, context) for idea in found),
    )


def largest_batch(predictor: Predictor, setup: Setup, room: int) -> int:
    """Find the largest batch whose reserved peak is within the room; the end is confirmed by a capture."""

    def needs(batch: int) -> int | None:
        try:
            return predictor.predict(replace(setup, batch=batch)).peak_reserved_bytes
        except CaptureError:
            if batch > 2:
                raise
            return None

    return search.largest(needs, room, setup.batch)


def _totals(prediction: Prediction, context: int) -> dict[str, Any]:
    run = prediction.simulation
    op = prediction.peak_op
    return {
        "parameter_bytes": prediction.bytes_of(StorageKind.PARAMETER),
        "buffer_bytes": prediction.bytes_of(StorageKind.BUFFER),
        "input_bytes": prediction.bytes_of(StorageKind.INPUT),
        "gradient_bytes": prediction.bytes_of(StorageKind.GRADIENT),
        "optimizer_bytes": prediction.bytes_of(StorageKind.OPTIMIZER),
        "saved_bytes": prediction.saved_bytes,
        "temporary_bytes": run.temporary[run.peak_op] if op is not None else 0,
        "allocated_bytes": run.per_op[run.peak_op] if op is not None else 0,
        "peak_allocated_bytes": run.peak_allocated_bytes,
        "peak_reserved_bytes": run.peak_reserved_bytes,
        "context_bytes": context,
        "peak_at": None if op is None else place(run.graph, op),
        "peak_phase": None if op is None else str(op.phase),
        "budget_bytes": None,
        "fits": None,
        "runs_with_retries": None,
        "short_bytes": None,
        "max_batch": None,
    }


def place(graph: Graph, op: Op) -> str:
    """Say which operation of which module it is.

    >>> from memfit.graph.model import Scope
    >>> graph = Graph((), (), (), (Scope(0, "", "Net", -1), Scope(1, "fc", "Linear", 0)), (), ())
    >>> place(graph, Op(0, "linear", "aten.addmm.default", (), (), {}, 1))
    'fc (linear, forward)'
    """
    return f"{graph.scopes[op.scope].path or '(root)'} ({op.kind}, {op.phase})"


def _rows(prediction: Prediction) -> tuple[dict[str, Any], ...]:
    """Give one row per category of bytes: at the peak, at its own highest, between two steps."""
    run = prediction.simulation
    peak = run.peak_op
    rows = []
    for name in CATEGORIES:
        series = run.by_category[name]
        if not series or not max(series):
            continue
        rows.append(
            {
                "name": name,
                "allocated_bytes": series[peak],
                "share": series[peak] / run.per_op[peak] if run.per_op[peak] else None,
                "highest_bytes": max(series),
                "what": WHAT[name],
            }
        )
    return tuple(rows)


WHAT = {
    "parameters": "weights and biases",
    "buffers": "running statistics, tables",
    "inputs": "one batch",
    "kv cache": "keys and values of earlier tokens",
    "optimizer": "the optimizer's state",
    "gradients": "of the parameters",
    "saved": "activations that backward needs",
    "activations": "all other activations, gradients of activations",
    "temporaries": "kernels' own, gone when they return",
    "libraries": "cuBLAS workspaces, kept",
}
"""Category → what is in it."""


def _timeline(prediction: Prediction) -> dict[str, Any]:
    """Give the bytes by category at each operation of the last micro-batch."""
    run = prediction.simulation
    return {
        "ops": [place(run.graph, op) for op in run.graph.ops],
        "phases": [str(op.phase) for op in run.graph.ops],
        "allocated_bytes": list(run.per_op),
        "reserved_bytes": list(run.reserved),
        **{f"{name}_bytes": list(series) for name, series in run.by_category.items() if any(series)},
    }


def _advice(idea: Idea, now: Prediction, room: int | None, context: int) -> dict[str, Any]:
    needed = idea.prediction.peak_reserved_bytes
    return {
        "name": idea.name,
        "peak_reserved_bytes": needed,
        "peak_allocated_bytes": idea.prediction.simulation.peak_allocated_bytes,
        "needed_bytes": needed + context,
        "saves_bytes": now.peak_reserved_bytes - needed,
        "fits": None if room is None else needed <= room,
        "cost": idea.cost,
        "checkpoint": list(idea.prediction.setup.checkpoint),
    }


def _with_capability(setup: Setup) -> Setup:
    """Write the compute capability as captures do: sm_90 is 9.0."""
    if setup.capability is None:
        return setup
    from memfit.capture.cuda.device import Cuda

    return replace(setup, capability=Cuda.parse(setup.capability).name)


def _context(setup: Setup) -> int:
    """Give what the process takes of the device outside of the allocator: measured, estimated, or none on the CPU."""
    if setup.device == "cpu":
        return 0
    return context_bytes(setup.capability) if setup.context_bytes is None else setup.context_bytes


def _notes(prediction: Prediction) -> list[str]:
    setup = prediction.setup
    found = list(prediction.simulation.notes)
    if setup.device == "cuda":
        found += notes_of(prediction.graph, setup.context_bytes)
    if setup.accumulate > 1:
        found.append(
            f"{setup.accumulate} micro-batches of {setup.batch} make one step: {setup.accumulate * setup.batch} samples"
        )
    if setup.optimizer == "adam8bit":
        found.append("adam8bit is bitsandbytes' as its source describes it; it is not run here")
    return found
