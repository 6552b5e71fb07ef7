"""One step of training, predicted: a capture or two, and the run of them through the memory of the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memfit.errors import UsageError
from memfit.graph.model import Graph, Op, StorageKind
from memfit.memory.cuda.simulate import Run, Simulation, simulate
from memfit.training.cpu import simulate_on_cpu
from memfit.training.setup import Setup

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memfit.capture.entry import Inputs, Model


@dataclass(frozen=True)
class Prediction:
    """What one setup needs. Sizes are in bytes."""

    setup: Setup
    graph: Graph
    """The first micro-batch, with the optimizer's state made before."""
    simulation: Simulation
    run: Run

    def runs_within(self, room: int) -> bool:
        """Tell whether a GPU with only so many bytes runs the step, where its allocator gives cached segments back."""
        if self.setup.device != "cuda" or self.simulation.peak_allocated_bytes > room:
            return self.peak_reserved_bytes <= room
        return simulate(self.run, replace(self.setup.allocator, capacity_bytes=max(room, 0))).shortfall is None

    @property
    def peak_reserved_bytes(self) -> int:
        """What the caching allocator takes from the device at most."""
        return self.simulation.peak_reserved_bytes

    @property
    def peak_op(self) -> Op | None:
        """The operation at the peak; None in a graph without operations."""
        index = self.simulation.peak_op
        return self.simulation.graph.ops[index] if index >= 0 else None

    @cached_property
    def saved_storages(self) -> frozenset[int]:
        """Storages that autograd keeps for backward, parameters and buffers left out."""
        graph = self.graph
        kept = {graph.tensors[t].storage for op in graph.ops for t in op.saved}
        left_out = (StorageKind.PARAMETER, StorageKind.BUFFER)
        return frozenset(s for s in kept if graph.storages[s].kind not in left_out)

    def bytes_of(self, kind: StorageKind) -> int:
        """Bytes of the device's storages of one kind, each once, as they are without rounding."""
        host = set(self.graph.host)
        return sum(s.nbytes for s in self.graph.storages if s.kind is kind and s.id not in host)

    @property
    def saved_bytes(self) -> int:
        """Bytes that autograd keeps for backward."""
        return sum(self.graph.storages[s].nbytes for s in self.saved_storages)


class Predictor:
    """Predicts setups of one model; each setup once."""

    def __init__(
        self,
        source: str | nn.Module,
        inputs: Inputs | None = None,
        *,
        args: Mapping[str, Any] | None = None,
        loss: Callable[[Any], Tensor] | None = None,
        estimate: bool = False,
    ) -> None:
        self.source, self.inputs, self.args, self.loss, self.estimate = source, inputs, args, loss, estimate
        self.models: dict[str | None, Model] = {}
        self.known: dict[Setup, Prediction] = {}
        self.progress: Callable[[str], None] = lambda _: None

    def predict(self, setup: Setup) -> Prediction:
        """Predict one setup.

        Raises:
            MemfitError: as for `memfit.capture`.
        """
        found = self.known.get(setup)
        if found is None:
            setup.check()
            self.progress(describe(setup))
            first = self._capture(setup, accumulating=False)
            kept = setup.accumulate > 1 or not setup.set_to_none
            later = self._capture(setup, accumulating=True) if kept else None
            run = Run(first, later, setup.accumulate, setup.set_to_none)
            found = self.known[setup] = Prediction(
                setup,
                first,
                simulate(run, setup.allocator) if setup.device == "cuda" else simulate_on_cpu(run),
                run,
            )
        return found

    def checkpoint_paths(self, setup: Setup, chosen: str) -> tuple[str, ...]:
        """Give the modules that a regular expression chooses; errors as for `memfit.capture.entry.checkpoint_paths`."""
        from memfit.capture.entry import checkpoint_paths

        module = self._open(setup).loaded.model
        assert module is not None  # a graph is refused
        return checkpoint_paths(module, chosen)

    def _open(self, setup: Setup) -> Model:
        from memfit.capture.entry import open_model

        model = self.models.get(setup.dtype)
        if model is None:
            model = self.models[setup.dtype] = open_model(self.source, dtype=setup.dtype, args=self.args)
        if model.loaded.graph is not None:
            raise UsageError(
                "a saved graph holds one pass, and a prediction of training needs several",
                where=model.loaded.name,
                received=model.loaded.name,
                todo="give the model that it was captured from, or profile the graph with --memory cuda",
            )
        return model

    def _capture(self, setup: Setup, *, accumulating: bool) -> Graph:
        from memfit.capture.optimizers import optimizer

        return self._open(setup).capture(
            self.inputs,
            training=True,
            batch=setup.batch,
            optimizer=optimizer(setup.optimizer, setup.kernels),
            steady=True,
            accumulating=accumulating,
            autocast=setup.autocast,
            checkpoint=setup.checkpoint,
            train_only=setup.train_only,
            device=setup.device,
            capability=setup.capability,
            loss=self.loss,
            estimate=self.estimate,
        )


def describe(setup: Setup) -> str:
    """Name a setup in a few words, for progress.

    >>> describe(Setup(batch=8, autocast="bf16"))
    'batch 8, adam, autocast bf16'
    """
    parts = [f"batch {setup.batch}", setup.optimizer]
    if setup.autocast:
        parts.append(f"autocast {setup.autocast}")
    if setup.checkpoint:
        parts.append(f"{len(setup.checkpoint)} modules checkpointed")
    return ", ".join(parts)
