"""What would make a step of training need less, each idea predicted by a capture of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from memfit.errors import MemfitError
from memfit.graph.model import Graph
from memfit.graph.optable import Role, role
from memfit.training import checkpointing
from memfit.training.predict import Prediction, Predictor
from memfit.training.setup import Setup


class Idea(NamedTuple):
    """One change, and what it leads to."""

    name: str
    """What to do, in the command line's words where it has them."""
    prediction: Prediction
    cost: str
    """What it costs, in a few words."""


def ideas(predictor: Predictor, setup: Setup) -> list[Idea]:
    """Predict every change that applies, the one that saves most of the reserved peak first."""
    now = predictor.predict(setup).peak_reserved_bytes
    found: list[Idea] = []
    for name, change, cost in _changes(setup, _has_batch_norm(predictor.predict(setup).graph)):
        try:
            prediction = change(predictor)
        except MemfitError:
            continue  # the model does not run this way
        if prediction.peak_reserved_bytes < now:
            found.append(Idea(_named(name, prediction), prediction, cost))
    return sorted(found, key=lambda idea: idea.prediction.peak_reserved_bytes)


def combined(predictor: Predictor, setup: Setup, room: int, single: list[Idea]) -> Idea | None:
    """Add changes one by one, those without cost to the result first, until the step fits; None where none does."""
    current, names = setup, []
    wanted = ("autocast", "checkpoint", "kernels", "optimizer", "accumulate")
    for field in wanted:
        idea = next((i for i in single if getattr(i.prediction.setup, field) != getattr(setup, field)), None)
        if idea is None:
            continue
        changed = replace(current, **{field: getattr(idea.prediction.setup, field)})
        if field == "accumulate":
            changed = replace(changed, batch=idea.prediction.setup.batch)
        if field == "optimizer":
            changed = replace(changed, kernels=None)
        try:
            prediction = predictor.predict(changed)
            if field == "checkpoint":
                prediction = checkpointing.choose(predictor, replace(changed, checkpoint=()), room)
        except MemfitError:
            continue
        current = prediction.setup
        names.append(_named("--checkpoint auto", prediction) if field == "checkpoint" else idea.name)
        if prediction.peak_reserved_bytes <= room:
            return Idea(" and ".join(names), prediction, "all of these together") if len(names) > 1 else None
    return None


def _changes(setup: Setup, batch_norm: bool) -> Iterator[tuple[str, Callable[[Predictor], Prediction], str]]:
    """List the changes that apply to a setup: name, how to predict it, cost."""

    def to(**fields: Any) -> Callable[[Predictor], Prediction]:
        return lambda predictor: predictor.predict(replace(setup, **fields))

    if not setup.checkpoint:
        yield (
            "--checkpoint auto",
            lambda predictor: checkpointing.choose(predictor, setup, None),
            "computes their forward pass twice; with a budget, of as few as fit",
        )
    if setup.autocast is None and setup.dtype in (None, "fp32"):
        kind = "bf16" if setup.capability is None or float(setup.capability) >= 8 else "fp16"
        yield f"--autocast {kind}", to(autocast=kind), "activations in half precision"
    for name in _LIGHTER.get(setup.optimizer, ()):
        yield f"--optimizer {name}", to(optimizer=name, kernels=None), _OPTIMIZER_COST[name]
    if setup.device == "cuda" and setup.kernels is None and setup.optimizer in _FUSED:
        yield "--kernels fused", to(kernels="fused"), "none: the same result without temporary lists"
    if setup.batch > 1:
        half = -(-setup.batch // 2)
        factor = -(-setup.batch * setup.accumulate // half)
        yield (
            f"--batch {half} --accumulate {factor}",
            to(batch=half, accumulate=factor),
            "more, smaller passes" + ("; batch norm sees the smaller batch" if batch_norm else ", the same gradient"),
        )
    if not setup.set_to_none:
        yield "zero_grad(set_to_none=True)", to(set_to_none=True), "none"
    if setup.device == "cuda" and not setup.allocator.expandable_segments:
        changed = replace(setup.allocator, expandable_segments=True)
        yield "PYTORCH_ALLOC_CONF=expandable_segments:True", to(allocator=changed), "none: less fragmentation"


def _has_batch_norm(graph: Graph) -> bool:
    return any(role(op.kind) is Role.BATCH_NORM for op in graph.ops)


_LIGHTER = {
    "adam": ("adam8bit", "momentum"),
    "adamw": ("adam8bit", "adafactor"),
    "rmsprop": ("momentum",),
    "adagrad": ("sgd",),
    "momentum": ("sgd",),
}
"""Optimizers with less state."""

_OPTIMIZER_COST = {
    "adam8bit": "state in 8 bits, from bitsandbytes",
    "momentum": "another optimizer: tune it again",
    "sgd": "another optimizer: tune it again",
    "adafactor": "another optimizer: tune it again",
}

_FUSED = ("momentum", "adam", "adamw", "adagrad")


def _named(name: str, prediction: Prediction) -> str:
    if name != "--checkpoint auto":
        return name
    count = len(prediction.setup.checkpoint)
    return f"{name} ({count} block{'s' if count > 1 else ''})"
