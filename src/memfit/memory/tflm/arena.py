"""The whole arena from the file alone: head, tail by category, and the smallest with which the runtime starts.

The runtime's allocations are run again here in their order, on addresses alone: the tail grows down from the arena's
end, what is temporary lies above the head. Source: micro_allocator.cc, micro_interpreter.cc and
arena_allocator/single_arena_buffer_allocator.cc; docs/tflm.md tells it in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from memfit.errors import SourceError, UnsupportedOp
from memfit.formats.tflite import TfliteModel, TfliteTensor
from memfit.formats.tflite.model import ONLINE_PLANNED
from memfit.memory.tflm import builds as sizes
from memfit.memory.tflm.builds import ALIGNMENT, Build, align_down, align_up, build_named, int_array
from memfit.memory.tflm.calls import Call, Event, Hold, Keep, Kernel, Scratch, tensor_bytes
from memfit.memory.tflm.head import HeadBuffer, Request, Steps, buffers, place, steps
from memfit.memory.tflm.operators import CUSTOM_KERNELS, KERNELS, TABLE, resource_name

RUNTIME = "runtime objects"
EVAL_TENSORS = "TfLiteEvalTensor data"
NODES = "NodeAndRegistration struct"
PARAMETERS = "builtin parameters"
PERSISTENT = "Persistent buffer data"
HANDLES = "scratch buffer handles"
VARIABLES = "TfLiteTensor variable buffer data"
TENSORS = "Persistent TfLiteTensor data"
QUANTIZATION = "Persistent TfLiteTensor quantization data"

PRINTED = (EVAL_TENSORS, TENSORS, QUANTIZATION, PERSISTENT, VARIABLES, NODES)
"""Categories that the runtime's print_allocations() shows, by its own names; the other three have no line there."""


class Item(NamedTuple):
    """One allocation in the tail."""

    category: str
    what: str
    operator: str | None
    """Kind of the operator that it is for."""
    nbytes: int
    """As asked for."""
    used_bytes: int
    """With what alignment adds."""
    structures: int
    """Structures in it; the runtime counts them."""


class Category(NamedTuple):
    """All tail allocations of one kind, as the runtime prints them."""

    name: str
    used_bytes: int
    requested_bytes: int
    structures: int


@dataclass(frozen=True)
class Arena:
    """What one build of TFLM needs for a model."""

    build: Build
    head_bytes: int
    """Height of the plan: activations and scratch buffers."""
    tail_bytes: int
    """Persistent part, in an arena whose size is a multiple of 16."""
    smallest_bytes: int
    """The smallest arena with which the runtime starts, planning temporaries included."""
    items: tuple[Item, ...]
    """The tail, in order of allocation."""
    buffers: tuple[HeadBuffer, ...]
    offsets: tuple[int, ...]
    """Of each buffer in the head."""
    live_bytes: tuple[int, ...]
    """Bytes in use in the head while each operator of the main subgraph runs."""
    reach_bytes: tuple[int, ...]
    """First address in the head above all that is in use, by operator; the largest is the head, as a rule."""
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Head and tail: the runtime's printed total."""
        return self.head_bytes + self.tail_bytes

    @property
    def categories(self) -> tuple[Category, ...]:
        """The tail summed up by category, in order of first allocation."""
        sums: dict[str, list[int]] = {}
        for item in self.items:
            row = sums.setdefault(item.category, [0, 0, 0])
            for position, value in enumerate((item.used_bytes, item.nbytes, item.structures)):
                row[position] += value
        return tuple(Category(name, *row) for name, row in sums.items())

    @property
    def by_operator(self) -> dict[str, int]:
        """Tail bytes that are for operators of each kind, by kind: parameters, operator data, kernels' buffers."""
        found: dict[str, int] = {}
        for item in self.items:
            if item.operator is not None:
                found[item.operator] = found.get(item.operator, 0) + item.used_bytes
        return found


def arena(
    model: TfliteModel, build: str | Build = "wheel", *, offsets: Sequence[int] | None = None, estimate: bool = False
) -> Arena:
    """Predict the arena that TensorFlow Lite Micro needs for a model.

    >>> from memfit.formats.tflite import Subgraph
    >>> nothing = TfliteModel("", 3, "", (), (Subgraph(0, "main", (), (), (), ()),), (), (), (), ())
    >>> found = arena(nothing)
    >>> found.head_bytes, found.tail_bytes  # the runtime's own objects
    (0, 496)

    Args:
        model: what `memfit.formats.tflite.read_model` gives.
        build: a name in `BUILDS`, or one of them.
        offsets: plan the head with these offsets, one for each tensor, -1 where the runtime plans; None takes the
            file's own, if it has them.
        estimate: let operators that the table lacks pass, with nothing but their tensors and a note.

    Raises:
        UnsupportedOp: an operator without a row in the table, or one that TFLM cannot run.
        SourceError: offsets that do not fit the model.
    """
    chosen = build if isinstance(build, Build) else build_named(build)
    run = _Run(model, chosen, offsets, estimate)
    tail = run.tail(0)
    smallest = min(_fitting(run, residue) for residue in range(0, ALIGNMENT, chosen.pointer))
    notes = [
        f"estimate: the arena of {name} is unknown: its own parameters, buffers and scratch are not counted"
        for name in dict.fromkeys(run.unknown)
    ]
    if not chosen.verified:
        notes.append(f"not verified by execution: {chosen.what}")
    live, reach = run.by_operator()
    return Arena(
        chosen, run.head_bytes, tail.used, smallest, tuple(tail.items), run.buffers, run.offsets, live, reach,
        tuple(notes),
    )  # fmt: skip


def _fitting(run: _Run, residue: int) -> int:
    """Find the smallest arena, of those that leave this remainder when divided by 16, in which all checks pass."""
    tail = run.tail(residue)
    return tail.size - tail.slack // ALIGNMENT * ALIGNMENT


class _Tail:
    """The end of the arena while the runtime starts; addresses below 0 are memory that an arena of that size lacks."""

    def __init__(self, size: int) -> None:
        self.size = self.address = self.slack = size
        self.items: list[Item] = []

    @property
    def used(self) -> int:
        """Bytes from the tail's lowest address to the arena's end."""
        return self.size - self.address

    def take(
        self, nbytes: int, alignment: int, category: str, what: str, *, operator: str | None = None, structures: int = 1
    ) -> None:
        """AllocatePersistentBuffer."""
        before = self.address
        self.address = align_down(before - nbytes, alignment)
        self.items.append(Item(category, what, operator, nbytes, before - self.address, structures))

    def clear_of(self, address: int) -> None:
        """Note that everything below an address was in use: the arena cannot shrink by more than what is between."""
        self.slack = min(self.slack, self.address - address)

    def clear_for_planner(self, address: int, nbytes: int) -> None:
        """GetAvailableMemory: the planner works between two addresses that are multiples of 16."""
        free = align_down(self.address, ALIGNMENT) - align_up(address, ALIGNMENT)
        self.slack = min(self.slack, free - nbytes)


class _Run:
    """One start of the runtime: what it asks for, whatever the arena's size."""

    def __init__(self, model: TfliteModel, build: Build, offsets: Sequence[int] | None, estimate: bool) -> None:
        self.model, self.build, self.estimate = model, build, estimate
        self.chosen = model.offline_offsets if offsets is None else tuple(offsets)
        self.unknown: list[str] = []
        self.calls = [
            Call(model, subgraph.index, operator, build)
            for subgraph in model.subgraphs
            for operator in subgraph.operators
        ]
        names = {resource_name(call.operator) for call in self.calls if call.operator.name == "VAR_HANDLE"}
        self.resources = len(names)
        self.kernels = [self._kernel(call) for call in self.calls]
        self.events: list[list[Event]] = [
            list(kernel.prepare(call)) for kernel, call in zip(self.kernels, self.calls, strict=True)
        ]
        self.requests = [
            Request(call.subgraph, call.operator.index, event.nbytes, event.what)
            for call, events in zip(self.calls, self.events, strict=True)
            for event in events
            if isinstance(event, Scratch)
        ]
        self._check_requests()
        self.steps: Steps = steps(model)
        self.buffers = buffers(model, self.requests, offsets=self.chosen, found=self.steps)
        self.offsets = place(self.buffers)
        self.head_bytes = max(
            (at + buffer.nbytes for at, buffer in zip(self.offsets, self.buffers, strict=True)), default=0
        )

    def _kernel(self, call: Call) -> Kernel:
        operator = call.operator
        found = (CUSTOM_KERNELS if operator.is_custom else KERNELS).get(operator.name)
        if found is None and self.estimate:
            self.unknown.append(operator.name)
            return Kernel(_look_at_all)
        if found is None:
            raise UnsupportedOp(
                f"memfit does not know what TFLM allocates for {operator.name}",
                where=call.where,
                received=operator.name,
                todo=f"add a row to {TABLE}, or allow an estimate with --estimate",
            )
        return found

    def _check_requests(self) -> None:
        for call, events in zip(self.calls, self.events, strict=True):
            count = sum(isinstance(event, Scratch) for event in events)
            if count > sizes.SCRATCH_PER_OPERATOR:
                raise UnsupportedOp(
                    "an operator asks for more scratch buffers than TFLM allows",
                    where=call.where,
                    received=str(count),
                    todo="TFLM cannot run it",
                )

    # -- in order of allocation ------------------------------------------------------------------------------------

    def tail(self, residue: int) -> _Tail:
        """Start in an arena whose size leaves this remainder when divided by 16, as if there were room below it."""
        tail = _Tail(residue)
        self._objects(tail)
        self._operators(tail)
        self._prepare(tail)
        self._plan(tail)
        tail.clear_of(self.head_bytes)
        for ends, what in ((self.model.main.inputs, "input"), (self.model.main.outputs, "output")):
            tail.take(self.build.pointer * len(ends), ALIGNMENT, PERSISTENT, f"{what} pointers")
            for i in ends:
                self._end(tail, self.model.main.tensors[i], what)
        tail.clear_of(self.head_bytes)
        return tail

    def _objects(self, tail: _Tail) -> None:
        """Items 1 to 7: the runtime's own objects, eval tensors, nodes."""
        size, pointer = self.build.size, self.build.pointer
        for what, structure in (
            ("arena allocator", sizes.ARENA_ALLOCATOR),
            ("greedy planner", sizes.GREEDY_PLANNER),
            ("allocator", sizes.MICRO_ALLOCATOR),
        ):
            tail.take(size(structure), pointer, RUNTIME, what)
        if self.resources:
            tail.take(size(sizes.RESOURCES), ALIGNMENT, PERSISTENT, "resource variables")
            tail.take(size(sizes.RESOURCE) * self.resources, ALIGNMENT, PERSISTENT, "list of resource variables")
        tail.take(size(sizes.DATA_ALLOCATOR), pointer, RUNTIME, "builtin data allocator")
        subgraphs = self.model.subgraphs
        tail.take(size(sizes.SUBGRAPH) * len(subgraphs), pointer, RUNTIME, "subgraph allocations")
        for subgraph in subgraphs:
            count = len(subgraph.tensors)
            tail.take(size(sizes.EVAL_TENSOR) * count, pointer, EVAL_TENSORS, "eval tensors", structures=count)
        for subgraph in subgraphs:
            count = len(subgraph.operators)
            tail.take(size(sizes.NODE) * count, pointer, NODES, "nodes and registrations", structures=count)

    def _operators(self, tail: _Tail) -> None:
        """Items 8 and 9: parsed options of all operators, then operator data of all."""
        size = self.build.size
        for kernel, call in zip(self.kernels, self.calls, strict=True):
            if kernel.parameters is not None:
                nbytes = size(kernel.parameters)
                own = kernel.parameters_alignment
                alignment = size(own) if own is not None else 4 if nbytes % 4 == 0 else 1
                tail.take(nbytes, alignment, PARAMETERS, "parameters", operator=call.operator.name)
        for kernel, call in zip(self.kernels, self.calls, strict=True):
            if kernel.data is not None and size(kernel.data):
                tail.take(size(kernel.data), ALIGNMENT, PERSISTENT, "operator data", operator=call.operator.name)
        tail.clear_of(size(sizes.SCRATCH_REQUEST) * sizes.SCRATCH_PER_OPERATOR)

    def _prepare(self, tail: _Tail) -> None:
        """Item 10: what kernels keep, and above the scratch requests what they only look at."""
        request = self.build.size(sizes.SCRATCH_REQUEST)
        requests = 0
        for call, events in zip(self.calls, self.events, strict=True):
            temporary = request * (requests + sizes.SCRATCH_PER_OPERATOR)
            tail.clear_of(temporary)
            for event in events:
                if isinstance(event, Hold):
                    temporary = self._held(temporary, event.tensor)
                elif isinstance(event, Keep):
                    tail.take(event.nbytes, ALIGNMENT, PERSISTENT, event.what, operator=call.operator.name)
                else:
                    requests += 1
                # The runtime checks what is kept against the head alone; an arena in which it overlaps what is
                # looked at may start and be wrong, so it does not count as one that works.
                tail.clear_of(temporary)
            tail.clear_of(request * (requests + sizes.SCRATCH_PER_OPERATOR))

    def _held(self, address: int, tensor: TfliteTensor) -> int:
        """Give the first free address above a temporary TfLiteTensor that is put at an address."""
        size, pointer = self.build.size, self.build.pointer
        address = align_up(address, pointer) + size(sizes.TENSOR)
        if _is_quantized(tensor):
            address = align_up(address, pointer) + size(sizes.AFFINE_QUANTIZATION)
            address = align_up(address, 4) + _zero_points(tensor)
        return address

    def _plan(self, tail: _Tail) -> None:
        """Items 11 and 12, scratch handles and variables, and the planner's own memory above the requests."""
        size, pointer, count = self.build.size, self.build.pointer, len(self.requests)
        if count:
            tail.take(size(sizes.SCRATCH_HANDLE) * count, pointer, HANDLES, "scratch buffer handles", structures=count)
        temporary = align_up(size(sizes.SCRATCH_REQUEST) * (count + sizes.SCRATCH_PER_OPERATOR), pointer)
        temporary += pointer * len(self.model.subgraphs)
        tensors = sum(len(subgraph.tensors) for subgraph in self.model.subgraphs)
        temporary = align_up(temporary, pointer) + size(sizes.ALLOCATION_INFO) * (tensors + count)
        tail.clear_of(temporary)
        for subgraph in self.model.subgraphs:
            for tensor in subgraph.tensors:
                # The runtime counts from the first offset for every subgraph: AllocateVariables, micro_allocator.cc.
                if tensor.is_variable and (self.chosen is None or self.chosen[tensor.index] == ONLINE_PLANNED):
                    tail.take(tensor_bytes(tensor), ALIGNMENT, VARIABLES, tensor.name)
        tail.clear_for_planner(temporary, sizes.PLANNER_BYTES * len(self.buffers))

    def _end(self, tail: _Tail, tensor: TfliteTensor, what: str) -> None:
        """Items 13 and 14: what programs see of an input or output."""
        size, pointer = self.build.size, self.build.pointer
        tail.take(size(sizes.TENSOR), pointer, TENSORS, what)
        if _is_quantized(tensor):
            tail.take(size(sizes.AFFINE_QUANTIZATION), pointer, QUANTIZATION, what)
            tail.take(_zero_points(tensor), 4, QUANTIZATION, what)

    def by_operator(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the bytes in use, and the first address above them, while each operator of the main subgraph runs."""
        ends = [self.steps.operators[0, operator.index] for operator in self.model.main.operators]
        last = max((last for _, last in ends), default=0)
        change, reach = [0] * (last + 2), [0] * (last + 1)
        for at, buffer in zip(self.offsets, self.buffers, strict=True):
            first, end = max(buffer.first, 0), min(buffer.last, last) + 1
            if first < end:
                change[first] += buffer.nbytes
                change[end] -= buffer.nbytes
                top = at + buffer.nbytes
                for step in range(first, end):
                    reach[step] = max(reach[step], top)
        live = list(accumulate(change))
        return (
            tuple(max(live[first : end + 1]) for first, end in ends),
            tuple(max(reach[first : end + 1]) for first, end in ends),
        )


def _look_at_all(call: Call) -> Iterator[Event]:
    """Prepare of a kernel that nothing is known of."""
    for tensor in (*call.inputs, *call.outputs):
        if tensor is not None:
            yield Hold(tensor)


def _is_quantized(tensor: TfliteTensor) -> bool:
    """Tell whether the runtime makes a quantization structure for a tensor: micro_allocator.cc:290."""
    return tensor.quantization is not None and bool(tensor.quantization.scales and tensor.quantization.zero_points)


def _zero_points(tensor: TfliteTensor) -> int:
    """Bytes of the array that the runtime copies zero points into, one for each scale."""
    if tensor.quantization is None:
        raise SourceError(
            "a tensor without quantization has no zero points",
            where=tensor.name,
            received=tensor.type,
            todo="quantize the model for integer kernels",
        )
    return int_array(len(tensor.quantization.scales))
