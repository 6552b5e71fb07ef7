"""What a memory model takes and gives: one figure for each operation, and the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from memfit.analysis.layers import Layer, layers
from memfit.analysis.values import Values, values_of
from memfit.errors import UsageError
from memfit.graph.model import Graph, Tensor
from memfit.graph.optable import Role, role

if TYPE_CHECKING:
    from memfit.memory.cuda.allocator import Settings
    from memfit.memory.demand import Demand


@dataclass(frozen=True)
class Options:
    """What a reader may choose; each model uses its own."""

    bits: int = 8
    """`mcunet`: bits of one activation."""
    layer_bits: Mapping[str, int] | None = None
    """Bits of layers' outputs, by the layers' names; a layer without an entry keeps the model's own."""
    inplace_depthwise: bool = True
    """`mcunet`: let depthwise convolutions overwrite their input."""
    train_only: str | None = None
    """`tinytl` and the model size: `bias`, `norm`, or a regular expression that parameter names contain."""
    probes: Mapping[int, tuple[int, ...]] | None = None
    """`eager`: measured workspaces of operations that have no rule."""
    allocator: Settings | None = None
    """`cuda`: settings of the caching allocator; None takes its defaults."""
    estimate: bool = False
    """`tflm`: let operators pass whose kernel the table lacks, with a note."""


class View:
    """A graph with the passes that its memory models share, each run once."""

    def __init__(self, graph: Graph, options: Options | None = None) -> None:
        self.graph = graph
        self.options = options or Options()

    @cached_property
    def values(self) -> Values:
        """Result of `values_of`."""
        return values_of(self.graph)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The folded layers, whatever the report's rows are."""
        return layers(self.graph, values=self.values)

    @cached_property
    def trainable(self) -> frozenset[int]:
        """Storages of the parameters that training updates."""
        chosen = self.options.train_only
        parameters = [t for t in self.graph.parameters() if t.trainable]
        if chosen is None:
            return frozenset(t.storage for t in parameters)
        wanted = _filter(self.graph, chosen)
        found = frozenset(t.storage for t in parameters if wanted(t))
        if not found:
            names = ", ".join(str(t.name) for t in parameters[:3]) or "none"
            raise UsageError(
                "no trainable parameter is chosen",
                where="--train-only",
                received=repr(chosen),
                todo=f"use bias, norm, or a regular expression that names contain; the first names are {names}",
            )
        return found


def _filter(graph: Graph, chosen: str) -> Callable[[Tensor], bool]:
    """Turn `bias`, `norm` or a regular expression into a test of parameters."""
    if chosen == "bias":
        return lambda t: (t.name or "").rpartition(".")[2] == "bias"
    if chosen == "norm":
        tensors = graph.tensors
        norms = {
            tensors[i].storage for op in graph.ops if role(op.kind) in (Role.BATCH_NORM, Role.NORM) for i in op.inputs
        }
        return lambda t: t.storage in norms
    try:
        pattern = re.compile(chosen)
    except re.error as error:
        raise UsageError(
            f"this is not a regular expression: {error}",
            where="--train-only",
            received=repr(chosen),
            todo="use bias, norm, or a regular expression that parameter names contain",
        ) from None
    return lambda t: bool(pattern.search(t.name or ""))


class Figures(NamedTuple):
    """A memory model's answer.

    Of a peak model a row's figure is the largest of its operations', of a saved model their sum.
    """

    per_op: tuple[int | None, ...]
    """Bytes by operation; None where the model gives that operation no figure of its own."""
    total_bytes: int
    """Of the whole network: the largest or the sum of the above."""
    notes: tuple[str, ...] = ()
    extra: tuple[tuple[str, int], ...] = ()
    """Further totals."""
    columns: tuple[tuple[str, tuple[int | None, ...]], ...] = ()
    """Further columns by operation."""


class MemoryModel(NamedTuple):
    """One entry of the table of memory models."""

    name: str
    what: str
    """One line for people."""
    measures: Literal["peak", "saved", "tensors"]
    figures: Callable[[View], Figures]
    of_training: bool = False
    """True where the figures are of training, so that a model is captured with loss and backward."""
    demand: Callable[[View], Demand] | None = None
    """The same figures as sums over layers' outputs, of models whose activations may have bits of their own."""


def peak(per_op: tuple[int | None, ...]) -> int:
    """Give the largest figure; 0 without any."""
    return max((figure for figure in per_op if figure is not None), default=0)
