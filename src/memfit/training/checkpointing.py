"""Which blocks to compute again in backward, for a peak within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from memfit.analysis.blocks import blocks
from memfit.analysis.layers import layers
from memfit.analysis.values import FORWARD
from memfit.errors import CaptureError
from memfit.graph.model import Graph, StorageKind
from memfit.training.predict import Prediction, Predictor
from memfit.training.setup import Setup


class Candidate(NamedTuple):
    """A block that could be checkpointed."""

    path: str
    saved_bytes: int
    """What backward would no longer keep of it."""
    macs: int
    """What would be computed again."""


def candidates(graph: Graph) -> list[Candidate]:
    """List the blocks that are modules and keep anything for backward, in order of execution.

    A module that contains another listed one is left out: only the inner ones are checkpointed.
    """
    found: list[Candidate] = []
    paths = {scope.path: scope for scope in graph.scopes if scope.path}
    chosen = layers(graph)
    left_out = (StorageKind.PARAMETER, StorageKind.BUFFER, StorageKind.INPUT)
    names = [block.name for block in blocks(graph, chosen) if block.name in paths]
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    for name in names:
        inside = [op for op in graph.ops if op.phase in FORWARD and _within(graph.scopes[op.scope].path, name)]
        made = {graph.tensors[t].storage for op in inside for t in op.outputs}
        kept = {graph.tensors[t].storage for op in inside for t in op.saved} & made
        nbytes = sum(graph.storages[s].nbytes for s in kept if graph.storages[s].kind not in left_out)
        if nbytes:
            found.append(Candidate(name, nbytes, sum(op.macs for op in inside)))
    total = sum(candidate.saved_bytes for candidate in found)
    return [candidate for candidate in found if candidate.saved_bytes >= WORTH * total]


WORTH = 0.005
"""Share of what all blocks keep below which a block is not worth a checkpoint."""


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def accepted(graph: Graph, found: list[Candidate], attempt: Callable[[tuple[str, ...]], object]) -> list[Candidate]:
    """Leave out what cannot be checkpointed: a block that fails when it runs again, and all of its class.

    A block fails so where its input is a list that others add to meanwhile, as in DenseNet.
    """
    classes = {scope.path: scope.class_name for scope in graph.scopes}
    while found:
        try:
            attempt(in_order(graph, found))
        except CaptureError as error:
            where = (error.where or "").partition(" ")[0]
            culprit = next((c.path for c in found if _within(where, c.path)), None)
            if culprit is None:
                return []
            found = [c for c in found if classes[c.path] != classes[culprit]]
        else:
            break
    return found


def choose(predictor: Predictor, setup: Setup, room: int | None) -> Prediction:
    """Checkpoint as few blocks as bring the reserved peak within the room, those first that save most per MAC.

    Every choice is confirmed by a capture. Without a room, or where even all blocks do not bring the peak within it,
    the choice with the lowest peak is given.
    """
    plain = predictor.predict(replace(setup, checkpoint=()))
    if room is not None and plain.peak_reserved_bytes <= room:
        return plain
    order = sorted(candidates(plain.graph), key=lambda c: -c.saved_bytes / (c.macs + 1e-6 * c.saved_bytes + 1))
    order = accepted(plain.graph, order, lambda paths: predictor.predict(replace(setup, checkpoint=paths)))
    if not order:
        return plain
    tried: dict[int, Prediction] = {0: plain}

    def first(count: int) -> Prediction:
        if count not in tried:
            tried[count] = predictor.predict(replace(setup, checkpoint=in_order(plain.graph, order[:count])))
        return tried[count]

    if room is not None and first(len(order)).peak_reserved_bytes <= room:
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if first(middle).peak_reserved_bytes <= room else (middle, high)
        return first(high)
    for count in sorted({len(order), *(round(len(order) * share) for share in (0.5, 0.75, 0.9))}):
        first(count)
    return min(tried.values(), key=lambda p: (p.peak_reserved_bytes, len(p.setup.checkpoint)))


def in_order(graph: Graph, chosen: Sequence[Candidate]) -> tuple[str, ...]:
    """Give the paths in the order of the module tree, so that one choice has one name."""
    wanted = {candidate.path for candidate in chosen}
    return tuple(scope.path for scope in graph.scopes if scope.path in wanted)


def recomputed_macs(checkpointed: Prediction, plain: Prediction) -> int:
    """MACs that checkpoints add to backward."""
    return sum(op.macs for op in checkpointed.graph.ops) - sum(op.macs for op in plain.graph.ops)
