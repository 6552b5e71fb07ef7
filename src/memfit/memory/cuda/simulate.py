"""A run on a GPU, operation by operation, through the caching allocator.

The run that is simulated: the model is moved to the GPU, its input is there, and then the graph runs several times, as
a training loop or a loop of inference does. What differs between the first and the later times is simulated as it
happens: the optimizer's state is made in the first step, libraries allocate their workspaces when they are first
called, and blocks that were freed are found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from memfit.graph.model import BEFORE, Graph, Phase, StorageKind
from memfit.memory import kv_cache
from memfit.memory.cuda.allocator import Block, CachingAllocator, OutOfMemory, Settings
from memfit.memory.cuda.workspaces import Gpu, library_workspaces, temporaries
from memfit.memory.inplace import taken_over

ITERATIONS = 3
"""Times that the graph is run: from the third on nothing changes any more."""

CATEGORIES = (
    "parameters", "buffers", "inputs", "kv cache", "optimizer", "gradients", "saved", "activations", "temporaries",
    "libraries",
)  # fmt: skip
"""What a block holds: `saved` are the activations that autograd keeps, `activations` all others, `temporaries` what a
kernel needs while it runs, `libraries` the workspaces that cuBLAS keeps, `kv cache` what a language model keeps
between two tokens."""

CATEGORY_OF_KIND = {
    StorageKind.PARAMETER: "parameters",
    StorageKind.BUFFER: "buffers",
    StorageKind.INPUT: "inputs",
    StorageKind.OPTIMIZER: "optimizer",
    StorageKind.GRADIENT: "gradients",
}
_PLACED = (StorageKind.PARAMETER, StorageKind.BUFFER)


@dataclass(frozen=True)
class Run:
    """What runs: one graph for each kind of micro-batch.

    The optimizer's state, where there is one, exists in the graphs before their first operation.
    """

    first: Graph
    """Runs where no gradients exist before."""
    later: Graph | None = None
    """Runs where gradients exist before; needed with `accumulate` above 1 or without `set_to_none`."""
    accumulate: int = 1
    """Micro-batches for one step of the optimizer."""
    set_to_none: bool = True
    """Whether `zero_grad` drops the gradients, or fills them with zeros."""

    def graphs(self, iteration: int) -> Iterator[tuple[Graph, bool]]:
        """Give an iteration's micro-batches: the graph of each, and whether the optimizer steps after it."""
        for index in range(self.accumulate):
            fresh = index == 0 and (self.set_to_none or iteration == 0)
            yield (self.first if fresh or self.later is None else self.later), index == self.accumulate - 1


@dataclass(frozen=True)
class Simulation:
    """What the allocator did. Sizes are in bytes, as `torch.cuda` counts them."""

    peak_allocated_bytes: int
    """Highest `torch.cuda.memory_allocated()`."""
    peak_reserved_bytes: int
    """Highest `torch.cuda.memory_reserved()`."""
    between_bytes: int
    """Allocated between two iterations."""
    per_op: tuple[int, ...]
    """Highest allocated bytes while each operation runs, in the micro-batch with the highest peak, the last of them."""
    reserved: tuple[int, ...]
    """Reserved bytes after each of these operations."""
    temporary: tuple[int, ...]
    """What each operation needs beyond its outputs."""
    by_category: dict[str, tuple[int, ...]]
    """Allocated bytes by category at each operation's highest point; sums to `per_op`."""
    graph: Graph
    """The graph of that micro-batch, which the figures by operation are of."""
    retries: int = 0
    """How often the allocator had to give cached segments back."""
    shortfall: OutOfMemory | None = None
    """Where the run did not fit the allocator's capacity: what was asked for; the figures end there."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""

    @cached_property
    def peak_op(self) -> int:
        """First operation with the highest allocated bytes; -1 in a graph without operations."""
        return self.per_op.index(max(self.per_op)) if self.per_op else -1


def simulate(run: Run, settings: Settings | None = None, iterations: int = ITERATIONS) -> Simulation:
    """Send every allocation of a run through the caching allocator."""
    return _Simulator(run, settings or Settings()).run(iterations)


class _Simulator:
    """One simulation under way."""

    def __init__(self, run: Run, settings: Settings) -> None:
        self.plan = run
        self.allocator = CachingAllocator(settings)
        self.bytes = dict.fromkeys(CATEGORIES, 0)
        self.gradients: list[tuple[Block, str]] = []
        self.libraries: set[str] = set()
        self.has_state = False
        self.state: set[int] = set()
        self.past: dict[int, tuple[Block, str]] = {}
        self.passes: dict[int, _Pass] = {}

    def run(self, iterations: int) -> Simulation:
        """Run so many iterations, or up to the first allocation that fails."""
        worst = _Course(self.plan.first)
        shortfall = None
        between = 0
        try:
            self._place(self.plan.first)
            between = self.allocator.allocated_bytes
            for iteration in range(iterations):
                if self.plan.set_to_none:
                    self._drop_gradients()
                for graph, steps in self.plan.graphs(iteration):
                    course = _Course(graph)
                    try:
                        self._micro_batch(course, steps=steps)
                    finally:
                        if course.peak >= worst.peak:
                            worst = course
                between = self.allocator.allocated_bytes
        except OutOfMemory as error:
            shortfall = error
        found = self.allocator
        return Simulation(
            peak_allocated_bytes=found.peak_allocated_bytes,
            peak_reserved_bytes=found.peak_reserved_bytes,
            between_bytes=between,
            per_op=tuple(worst.per_op),
            reserved=tuple(worst.reserved),
            temporary=tuple(worst.by_category["temporaries"]),
            by_category={name: tuple(values) for name, values in worst.by_category.items()},
            graph=worst.graph,
            retries=found.num_alloc_retries,
            shortfall=shortfall,
        )

    def _take(self, nbytes: int, category: str) -> tuple[Block, str] | None:
        block = self.allocator.malloc(nbytes)
        if block is None:
            return None
        self.bytes[category] += block.nbytes
        return block, category

    def _give(self, held: tuple[Block, str]) -> None:
        block, category = held
        self.bytes[category] -= block.nbytes
        self.allocator.free(block)

    def _recategorized(self, held: tuple[Block, str], category: str) -> tuple[Block, str]:
        block, before = held
        self.bytes[before] -= block.nbytes
        self.bytes[category] += block.nbytes
        return block, category

    def _place(self, graph: Graph) -> None:
        """Allocate what exists before the first iteration, in the order of `module.to("cuda")`."""
        host = set(graph.host)
        for sid in placement_order(graph):
            storage = graph.storages[sid]
            if sid in host:
                continue
            if storage.kind is StorageKind.ACTIVATION:  # an earlier run's, which this one may drop
                if (taken := self._take(storage.nbytes, "kv cache")) is not None:
                    self.past[sid] = taken
            else:
                self._take(storage.nbytes, CATEGORY_OF_KIND.get(storage.kind, "buffers"))

    def _drop_gradients(self) -> None:
        for held in self.gradients:
            self._give(held)
        self.gradients.clear()

    def _micro_batch(self, course: _Course, *, steps: bool) -> None:
        graph = course.graph
        lives = self.passes.get(id(graph))
        if lives is None:
            lives = self.passes[id(graph)] = _Pass(graph)
        allocator, storages, phases = self.allocator, graph.storages, lives.phases
        held, self.past = self.past, {}
        for index in range(len(graph.ops)):
            if phases[index] is Phase.STEP and not steps:
                break
            for sid in lives.deaths[index]:
                if sid in held:
                    self._give(held.pop(sid))
            if phases[index] is Phase.STEP and not self.has_state:  # what backward held is gone when the step begins
                self.has_state = True
                for sid in lives.state:
                    self._take(storages[sid].nbytes, "optimizer")
            for name, nbytes in lives.libraries[index]:
                if name not in self.libraries:
                    self.libraries.add(name)
                    self._take(nbytes, "libraries")
            for sid in lives.births[index]:
                if storages[sid].kind is StorageKind.OPTIMIZER:
                    if sid in self.state:
                        continue  # made in the first step, and kept
                    self.state.add(sid)
                old = lives.in_place.get((index, sid))
                if old in held:
                    held[sid] = self._recategorized(held.pop(old), lives.category[sid])
                    continue
                taken = self._take(storages[sid].nbytes, lives.category[sid])
                if taken is not None:
                    held[sid] = taken
            passing = [self._take(nbytes, "temporaries") for nbytes in lives.temporaries[index]]
            course.add(allocator, self.bytes)
            for block in passing:
                if block is not None:
                    self._give(block)
        for sid, block in held.items():
            if storages[sid].kind is StorageKind.GRADIENT:
                self.gradients.append(block)
            elif storages[sid].kind is not StorageKind.OPTIMIZER:
                self._give(block)


class _Course:
    """What was allocated at each operation of one micro-batch."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.per_op: list[int] = []
        self.reserved: list[int] = []
        self.by_category: dict[str, list[int]] = {name: [] for name in CATEGORIES}

    def add(self, allocator: CachingAllocator, by_category: dict[str, int]) -> None:
        """Note where the allocator stands at the operation's highest point."""
        self.per_op.append(allocator.allocated_bytes)
        self.reserved.append(allocator.reserved_bytes)
        for name, nbytes in by_category.items():
            self.by_category[name].append(nbytes)

    @property
    def peak(self) -> int:
        """Highest allocated bytes; 0 without operations."""
        return max(self.per_op, default=0)


class _Pass:
    """What happens at each operation of a graph."""

    def __init__(self, graph: Graph) -> None:
        count = len(graph.ops)
        host = set(graph.host)
        self.phases = [op.phase for op in graph.ops]
        self.births: list[list[int]] = [[] for _ in range(count + 1)]
        self.deaths: list[list[int]] = [[] for _ in range(count + 1)]
        self.state: list[int] = []
        saved = {graph.tensors[t].storage for op in graph.ops for t in op.saved}
        self.category: dict[int, str] = {}
        cached = kv_cache.storages(graph)
        for sid, nbytes, kind, birth, death, _ in graph.storages:
            if sid in host or not nbytes:
                continue
            if birth == BEFORE:
                if kind is StorageKind.OPTIMIZER:
                    self.state.append(sid)
                elif kind is StorageKind.ACTIVATION and death < count:
                    self.deaths[max(death, 0)].append(sid)
                continue
            self.category[sid] = CATEGORY_OF_KIND.get(kind) or (
                "saved" if sid in saved else "kv cache" if sid in cached else "activations"
            )
            self.births[min(birth, count)].append(sid)
            if death < count:
                self.deaths[max(death, birth + 1)].append(sid)
        self.in_place = {(index, new): old for index, (old, new) in taken_over(graph).items()}
        self.libraries = library_workspaces(graph)
        gpu = Gpu.of(graph)
        self.temporaries = [temporaries(graph, op, gpu) for op in graph.ops]


def placement_order(graph: Graph) -> list[int]:
    """Storages that exist before the first iteration, in the order in which `module.to("cuda")` and the input come.

    Source: torch/nn/modules/module.py, `Module._apply`: a module's children first, then its parameters, its buffers.
    """
    children: list[list[int]] = [[] for _ in graph.scopes]
    for scope in graph.scopes[1:]:
        children[scope.parent].append(scope.index)
    order: dict[int, None] = {}
    waiting: list[tuple[int, bool]] = [(0, False)] if graph.scopes else []
    while waiting:
        index, visited = waiting.pop()
        if visited:
            scope = graph.scopes[index]
            order.update(dict.fromkeys(graph.tensors[t].storage for t in (*scope.params, *scope.buffers)))
        else:
            waiting.append((index, True))
            waiting += [(child, False) for child in reversed(children[index])]
    lasting = (StorageKind.OPTIMIZER, StorageKind.GRADIENT)
    order.update(
        dict.fromkeys(s.id for s in graph.storages if s.birth == BEFORE and s.kind not in lasting and s.id not in order)
    )
    return list(order)
