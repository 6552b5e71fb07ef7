"""The arena of a `.tflite` network, planned: the order of its operators, and a place for each tensor.

TensorFlow Lite Micro runs operators in the file's order and places buffers greedily. Here the order with the smallest
peak is searched for (`memfit.plan.order`), its buffers are packed exactly (`memfit.packing`), and what the runtime then
needs is predicted from its own rules (`memfit.memory.tflm`): scratch buffers have no place in the file, so the runtime
places them itself between the planned tensors.

Of plans that are equally low the one is taken that changes the file least: as it is, then offsets, then an order.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from memfit.errors import UsageError
from memfit.formats.tflite import TfliteModel
from memfit.formats.tflite.model import ONLINE_PLANNED
from memfit.memory.tflm.arena import Arena, arena
from memfit.memory.tflm.builds import ALIGNMENT, Build
from memfit.memory.tflm.head import HeadBuffer
from memfit.packing import PLANNERS, Buffer, Packing, Problem, pack
from memfit.plan.order import Order, Step, search
from memfit.plan.writer import dependencies, rewrite

Progress = Callable[[str], None]


SHARED = "the file's own plan lets tensors share bytes, so that it is below what any packing reaches"


@dataclass(frozen=True)
class ArenaPlan:
    """How a network's buffers lie in the arena, and what the runtime needs for that."""

    source: TfliteModel
    """The network as it is in its file."""
    model: TfliteModel
    """The same with its operators in the planned order, under the indices of the file."""
    arena: Arena
    """What the runtime needs with this plan."""
    stock: Arena
    """What it needs with the file as it is."""
    offsets: tuple[int, ...] | None
    """By tensor of the main subgraph, in bytes, -1 where the runtime plans; None where its own plan is as low."""
    order: tuple[int, ...] | None
    """The file's operator indices in their new order; None where nothing changes."""
    lower_bound: int
    """No order and no packing needs a head of fewer bytes: this is proved."""
    notes: tuple[str, ...]

    @property
    def optimal(self) -> bool:
        """Whether a lower head is ruled out."""
        return self.arena.head_bytes <= self.lower_bound


def plan_arena(
    model: TfliteModel,
    build: str | Build = "wheel",
    *,
    planner: str = "exact",
    reorder: bool = True,
    time_limit: float | None = None,
    estimate: bool = False,
    progress: Progress | None = None,
) -> ArenaPlan:
    """Find the lowest arena for a network.

    Args:
        model: what `memfit.formats.tflite.read_model` gives.
        build: of the runtime, a name in `memfit.memory.tflm.builds.BUILDS`.
        planner: a name in `memfit.packing.PLANNERS`.
        reorder: look for a better order of operators.
        time_limit: seconds for all searches together; without it they stop after so many steps, and the same model has
            the same plan on every run.
        estimate: let operators that the table of TFLM's lacks pass, with a note.
        progress: is told what is being done.

    Raises:
        UnsupportedOp: an operator that TFLM lacks, or that memfit does not know.
        SourceError: subgraphs that cannot be planned.
        UsageError: there is no such planner.
    """
    end = None if time_limit is None else time.monotonic() + time_limit
    say = progress or (lambda _: None)
    stock = arena(model, build, estimate=estimate)
    free = None if model.offline_offsets is None else _free(model)
    base = stock if free is None else arena(model, build, offsets=free, estimate=estimate)
    if len(model.subgraphs) > 1:  # the file cannot hold offsets for them
        packing = pack(problem_of(base.buffers), planner, time_limit=_left(end))
        notes = _notes_of_several(packing, stock)
        return ArenaPlan(model, model, stock, stock, None, None, packing.lower_bound, notes)

    say("ordering operators")
    half = None if end is None else max((end - time.monotonic()) / 2, 0.0)
    pairs = tuple(dependencies(model.main) if reorder else _one_by_one(model))
    order = _order(model, base, pairs, half)
    orders = [(model, base)]
    if order.order != tuple(range(len(order.order))):
        ordered = _reordered(model, order.order)
        orders.insert(0, (ordered, arena(ordered, build, offsets=free, estimate=estimate)))
    found = [_Candidate(stock, model, None, None)]
    for which, held in orders:
        problem = problem_of(held.buffers)
        if problem.lower_bound > min(plan.arena.head_bytes for plan in found):
            continue  # no packing of this order can be as low
        say("packing")
        packing = pack(problem, planner, time_limit=_left(end))
        offsets = _offsets(which, held.buffers, packing)
        if free is None:
            found.append(_Candidate(held, which, None, packing))
        found.append(_Candidate(arena(which, build, offsets=offsets, estimate=estimate), which, offsets, packing))
    best = min(found, key=lambda plan: (plan.arena.head_bytes, plan.model is not model, plan.offsets is not None))
    packings = [p.packing for p in found if p.packing is not None and p.model is best.model]
    if not packings:  # each was ruled out: the file's own offsets let tensors lie in each other
        return ArenaPlan(model, model, stock, stock, None, None, 0, (SHARED,))
    packing = packings[0]
    only = _is_only(order.order, pairs)
    bound = packing.lower_bound if only else max(order.lower_bound, _unordered(base.buffers))
    moved = None if best.model is model else tuple(operator.index for operator in best.model.main.operators)
    notes = _notes(order, packing, best.arena, bound)
    return ArenaPlan(model, best.model, best.arena, stock, best.offsets, moved, bound, notes)


class _Candidate(NamedTuple):
    """One way to plan."""

    arena: Arena
    model: TfliteModel
    offsets: tuple[int, ...] | None
    packing: Packing | None
    """None for the file as it is."""


def compare(model: TfliteModel, build: str | Build = "wheel", *, estimate: bool = False) -> dict[str, Packing]:
    """Pack a network's buffers, in the order of its operators, with every planner there is.

    Args:
        model: the network, its operators in the order to compare with.
        build: of the runtime, which decides on the scratch buffers.
        estimate: as for `plan_arena`.
    """
    free = None if model.offline_offsets is None else _free(model)
    problem = problem_of(arena(model, build, offsets=free, estimate=estimate).buffers)
    return {name: pack(problem, name) for name in PLANNERS}


def planned_file(plan: ArenaPlan) -> bytes:
    """Give the bytes of a `.tflite` file with its plan in it.

    Raises:
        UsageError: a plan of what is no file.
        MemfitError: a file whose tables this cannot be written into.
    """
    model = plan.source
    if not model.data:
        raise UsageError(
            "only a .tflite file can be written with a plan", where=model.source, received="a network without a file",
            todo="convert it first, then plan the .tflite",
        )  # fmt: skip
    orders = None if plan.order is None else {0: plan.order}
    if orders is None and plan.offsets is None:
        return bytes(model.data)
    return rewrite(model, orders=orders, offsets=plan.offsets)


def problem_of(held: Sequence[HeadBuffer]) -> Problem:
    """State the arena problem of a head: buffers by their number, alive from their first to their last step.

    Offsets that a file has do not bind: they are what is being looked for.
    """
    return Problem(
        tuple(
            Buffer(str(number), buffer.nbytes, [(buffer.first, buffer.last + 1)], alignment=ALIGNMENT)
            for number, buffer in enumerate(held)
        )
    )


def _free(model: TfliteModel) -> tuple[int, ...]:
    """Leave every tensor to the planner."""
    return (ONLINE_PLANNED,) * sum(len(subgraph.tensors) for subgraph in model.subgraphs)


def _left(end: float | None) -> float | None:
    return None if end is None else max(end - time.monotonic(), 0.0)


def _order(model: TfliteModel, base: Arena, pairs: Iterable[tuple[int, int]], time_limit: float | None) -> Order:
    """Look for the order with the smallest sum of live bytes."""
    main = model.main
    sizes = [0] * len(main.tensors)
    scratch: dict[int, int] = defaultdict(int)
    for buffer in base.buffers:
        if buffer.tensor is not None:
            sizes[buffer.tensor] = buffer.nbytes
        elif buffer.operator is not None:
            scratch[buffer.operator] += buffer.nbytes
    after: dict[int, set[int]] = defaultdict(set)
    for before, behind in pairs:
        after[behind].add(before)
    steps = [
        Step(
            tuple(dict.fromkeys(i for i in operator.inputs if i >= 0)),
            tuple(dict.fromkeys(operator.outputs)),
            scratch[operator.index],
            tuple(sorted(after[operator.index])),
        )
        for operator in main.operators
    ]
    return search(steps, sizes, given=frozenset(main.inputs), kept=frozenset(main.outputs), time_limit=time_limit)


def _one_by_one(model: TfliteModel) -> Iterator[tuple[int, int]]:
    """Bind every operator to the one before."""
    return ((behind - 1, behind) for behind in range(1, len(model.main.operators)))


def _is_only(order: Sequence[int], pairs: Iterable[tuple[int, int]]) -> bool:
    """Tell whether an order is the only one: each operator needs the one before."""
    known = set(pairs)
    return all(pair in known for pair in pairwise(order))


def _reordered(model: TfliteModel, order: Sequence[int]) -> TfliteModel:
    """Give the model with its main operators in another order, under their own indices."""
    main = model.main._replace(operators=tuple(model.main.operators[i] for i in order))
    return replace(model, subgraphs=(main, *model.subgraphs[1:]))


def _offsets(model: TfliteModel, held: Sequence[HeadBuffer], packing: Packing) -> tuple[int, ...]:
    """Give the offset of each tensor of a packing; scratch buffers have none in a file."""
    found = list(_free(model))
    for number, buffer in enumerate(held):
        if buffer.tensor is not None:
            found[buffer.tensor] = packing.offsets[str(number)]
    return tuple(found)


def _unordered(held: Sequence[HeadBuffer]) -> int:
    """Bytes that are live together whatever the order: the inputs before the first operator, and what none touches."""
    at_start = sum(buffer.nbytes for buffer in held if buffer.first <= 0 <= buffer.last)
    untouched = sum(buffer.nbytes for buffer in held if buffer.last < 0)
    return max(at_start, untouched)


def _notes(order: Order, packing: Packing, found: Arena, bound: int) -> tuple[str, ...]:
    """Say what of the answer is open, and why."""
    notes = list(order.notes)
    if found.head_bytes > bound:
        if found.head_bytes > packing.height:
            notes.append(
                f"the runtime places scratch buffers itself: the head is {found.head_bytes - packing.height:,} bytes "
                "above the best packing"
            )
        notes += packing.notes
    return tuple(notes)


def _notes_of_several(packing: Packing, stock: Arena) -> tuple[str, ...]:
    gain = stock.head_bytes - packing.height
    better = f"; a packing {gain:,} bytes lower exists" if gain > 0 else ""
    return (
        f"several subgraphs: the runtime takes no offsets for them, so its own plan stays{better}",
        *packing.notes,
    )
