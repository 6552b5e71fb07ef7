"""What fits a budget when a language model generates: the largest context and the largest batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memfit.errors import UsageError
from memfit.graph.model import Graph
from memfit.memory.cuda.context import context_bytes
from memfit.memory.cuda.profile import simulated
from memfit.training import search

if TYPE_CHECKING:
    from memfit.capture.entry import Model
    from memfit.memory.cuda.allocator import Settings


@dataclass(frozen=True)
class Fit:
    """A phase of generation against a budget; each size is captured once.

    A size fits where the bytes that the caching allocator reserves, with the estimate of the context beside them, are
    within the budget.
    """

    model: Model
    phase: str
    batch: int
    context: int
    budget_bytes: int
    options: Mapping[str, Any]
    """Of the capture: device, capability and so on."""
    allocator: Settings | None = None
    progress: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.budget_bytes < 1:
            raise UsageError(
                "the budget must be at least one byte",
                where="--budget",
                received=str(self.budget_bytes),
                todo="such as 24GiB",
            )

    @cached_property
    def beside_bytes(self) -> int:
        """Estimate of what the process takes of the GPU outside the allocator."""
        return context_bytes(self.options.get("capability"))

    @cached_property
    def _known(self) -> dict[tuple[int, int], int]:
        return {}

    def know(self, graph: Graph) -> None:
        """Take the graph of the size that is asked about as captured already."""
        self._known[self.batch, self.context] = self._reserved(graph)

    def needs(self, batch: int, context: int) -> int:
        """Give the reserved peak of a size, in bytes."""
        found = self._known.get((batch, context))
        if found is None:
            self.progress(f"{self.phase}, batch {batch}, context {context}")
            graph = self.model.capture(phase=self.phase, batch=batch, context=context, **self.options)
            found = self._known[batch, context] = self._reserved(graph)
        return found

    def totals(self) -> dict[str, Any]:
        """Answer: whether it fits, what is short, and the largest context and batch that fit, 0 where none does."""
        room = self.budget_bytes - self.beside_bytes
        needed = self.needs(self.batch, self.context)
        limit = self._limit()

        def of_context(context: int) -> int | None:
            return None if limit is not None and context > limit else self.needs(self.batch, context)

        return {
            "budget_bytes": self.budget_bytes,
            "context_bytes": self.beside_bytes,
            "fits": needed <= room,
            "short_bytes": max(needed - room, 0),
            "max_context": search.largest(of_context, room, self.context),
            "max_batch": search.largest(lambda batch: self.needs(batch, self.context), room, self.batch),
        }

    def _limit(self) -> int | None:
        """Give the longest context to try: the model's own limit, unless a longer one was asked about."""
        limit = self.model.generation(self.phase, self.context).limit
        return None if limit is None else max(limit, self.context)

    def _reserved(self, graph: Graph) -> int:
        return simulated(graph, self.allocator).peak_reserved_bytes
