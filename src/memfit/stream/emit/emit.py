"""A `.tflite` file that needs less memory on the unchanged runtime: searched for, written, and proved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memfit.errors import InternalError, MemfitError, UsageError
from memfit.formats.tflite import TfliteModel, parse_model
from memfit.kernels import Interpreter
from memfit.memory.tflm import Arena, arena
from memfit.packing import Problem
from memfit.packing.validator import violations
from memfit.plan.arena import ArenaPlan, plan_arena, planned_file
from memfit.plan.verify import sample_inputs
from memfit.stream.emit.draft import Draft
from memfit.stream.emit.lower import lower
from memfit.stream.emit.nodes import ONLY_TYPES, TYPES, Network, Node, network_of
from memfit.stream.emit.patch import CannotPatch, Unit
from memfit.stream.emit.place import SCRATCH, bound, buffers, place
from memfit.stream.emit.search import Choice, Search, macs_of
from memfit.stream.emit.write import write
from memfit.stream.replay import assert_intact

Progress = Callable[[str], None]

NOTHING_SAVED = "no patches save more of the head than their operators cost"

PROOFS = 3
"""Random inputs on which a file is compared before it is handed out."""

FIRST_RANDOM = 5
"""Number of the first of `sample_inputs` that is drawn at random."""

_COARSE = 0.88
"""Ratio of neighbouring heights that are tried first."""

_SPREADS = (0.1, 0.03, 0.01, 0.003)
"""How far around the best height so far others are tried then, as shares of it."""

_STEPS = 6
"""Heights to each side."""

_REPAIRS = 12
"""How often a height is tried again with more room left where packing failed."""


@dataclass(frozen=True)
class Patched:
    """What was found for a network."""

    data: bytes
    """The file."""
    model: TfliteModel
    """What is in it."""
    plan: ArenaPlan
    """The best without patches."""
    arena: Arena
    """What the runtime needs for the file."""
    units: tuple[Unit, ...]
    """Nodes that are computed together, in order; empty where patches save nothing and the plan's file was taken."""
    macs: int
    """Multiply-accumulates of the file."""
    plain_macs: int
    """Multiply-accumulates of the model."""
    nodes: tuple[Node, ...]
    """What was cut, or not, and why not."""
    reason: str | None
    """Why the file is without patches; None if it has some."""

    @property
    def extra_share(self) -> float:
        """Work that is done twice, as a share of the model's own."""
        return (self.macs - self.plain_macs) / max(self.plain_macs, 1)


class _File(NamedTuple):
    """A choice that was lowered and packed."""

    height: int
    """Of the head, in bytes, for which it was made."""
    smallest_bytes: int
    draft: Draft
    places: dict[int, int]
    choice: Choice


def emit(
    model: TfliteModel,
    *,
    max_extra_macs: float = 0.1,
    heights: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Patched:
    """Find patches with which the runtime starts in the smallest arena, and make the file.

    Args:
        model: what `memfit.formats.tflite.read_model` gives.
        max_extra_macs: multiply-accumulates that may be done twice, as a share of the model's own.
        heights: of the head, in bytes: the only ones to try; None searches.
        progress: is told what is being done.

    Raises:
        UsageError: a model without convolutions, or of types that no patches are made of.
        UnsupportedOp: an operator that the runtime lacks.
        SourceError: tensors or options of the model contradict each other.
        InternalError: the file computes something else, or reads a wrong byte: it is not handed out.
    """
    check(model)
    say = progress or (lambda _: None)
    plan = plan_arena(model, progress=progress)
    network = network_of(model)
    macs = network_macs(network)
    reason = _why_not(model)
    found = None if reason else _search(network, plan, int(macs * (1 + max_extra_macs)), heights, say)
    if found is None:
        data = planned_file(plan)
        reason = f"{reason or NOTHING_SAVED}; the file is as memfit plan writes it"
        made = parse_model(data, model.source)
        return Patched(data, made, plan, plan.arena, (), macs, macs, network.nodes, reason)
    say("writing and proving")
    data = write(found.draft, found.places)
    made = parse_model(data, model.source)
    prove(network, found.draft, found.places, made)
    macs_after = macs_of(network, found.draft)
    cut = any(unit.cuts for unit in found.choice.units)
    why = None if cut else f"{NOTHING_SAVED}; operators write over inputs that nobody reads after them"
    return Patched(data, made, plan, arena(made), found.choice.units, macs_after, macs, network.nodes, why)


def check(model: TfliteModel) -> None:
    """Refuse what patches are of no use for.

    Raises:
        UsageError: says why.
    """
    operators = [o for o in model.main.operators if o.name in ("CONV_2D", "DEPTHWISE_CONV_2D") and not o.is_custom]
    if not operators:
        raise UsageError(
            "patches are of convolutions, and there is none",
            where=model.source,
            received=", ".join(dict.fromkeys(o.name for o in model.main.operators)) or "no operators",
            todo="use memfit plan, which gives the lowest arena of any network",
        )
    types = dict.fromkeys(model.main.tensors[o.outputs[0]].type for o in operators)
    if not TYPES & set(types):
        raise UsageError(
            ONLY_TYPES,
            where=model.source,
            received=f"convolutions of {', '.join(types)}",
            todo="convert the model to int8; memfit plan gives the lowest arena of it as it is",
        )


def _why_not(model: TfliteModel) -> str | None:
    """Say why a file cannot be written anew; None if it can."""
    if len(model.subgraphs) > 1:
        return "the runtime takes no offsets for several subgraphs"
    if any(buffer.outside for buffer in model.buffers) or any(o.intermediates for o in model.main.operators):
        return "data stand behind the tables, or operators have intermediate tensors"
    if any(tensor.is_variable for tensor in model.main.tensors) or any(o.is_custom for o in model.main.operators):
        return "it has a state from run to run, or custom operators"
    return None


def network_macs(network: Network) -> int:
    """Count the multiply-accumulates of the plain run."""
    return sum(node.macs for node in network.nodes)


# -- search -----------------------------------------------------------------------------------------------------------


def _search(
    network: Network, plan: ArenaPlan, most_macs: int, heights: Sequence[int] | None, say: Progress
) -> _File | None:
    """Try heights from that of the plan downwards, then finer around the best; every promising choice is packed."""
    search = Search(network)
    best: _File | None = None
    tried: dict[int, int] = {}
    least = sum(search.alone)

    def attempt(height: int, *, beating: bool = False) -> None:
        nonlocal best
        height = height // 16 * 16
        if height in tried:
            return
        say(f"patches within {height:,} bytes" + (f", best {best.smallest_bytes:,}" if best else ""))
        margins: dict[Unit, int] = {}
        for _ in range(_REPAIRS):
            limit = min(best.smallest_bytes if best else 1 << 62, plan.arena.smallest_bytes)
            most_tail = limit - height if beating else None
            choice = search.best(height, margins, most_tail=most_tail)
            if choice is not None and choice.macs > most_macs:
                choice = search.best(height, margins, most_macs, most_tail)
            estimate = 1 << 62 if choice is None else height + choice.tail_bytes
            tried.setdefault(height, estimate)
            if choice is None or estimate > limit:
                return
            made, failed = _file(network, choice, height, limit - choice.tail_bytes)
            if made is not None and made.smallest_bytes < limit:
                best = made
            if not failed or (made is not None and made is not best):
                return
            for key in failed:
                margins[key] = margins.get(key, 0) + height // 64

    if heights is not None:
        for given in heights:
            attempt(given)
        return best
    height = float(plan.arena.head_bytes)
    while True:
        attempt(int(height))
        known = tried[int(height) // 16 * 16]
        if known == 1 << 62 or height + least > plan.arena.smallest_bytes * 2:
            break
        height *= _COARSE
    for spread in _SPREADS:
        centre = best.height if best is not None else min(tried, key=lambda height: tried[height])
        for step in range(-_STEPS, _STEPS + 1):
            attempt(int(centre * (1 + spread * step / _STEPS)), beating=True)
    return best


def _file(network: Network, choice: Choice, height: int, most: int) -> tuple[_File | None, list[Unit]]:
    """Lower a choice and pack it: into the height that it is for, or into what it needs up to `most` bytes.

    Besides, the units whose patches do not fit into the height: less of them might.
    """
    try:
        draft = lower(network, choice.units, upper=choice.upper)
    except CannotPatch:  # at another place than the one that its cost was worked out for
        return None, []
    found = place(draft, height)
    ends = {draft.cuts[number].position for number in found.failed if number < len(draft.cuts)}
    failed = [unit._replace(cuts=()) for unit in choice.units if unit.cuts and unit.end in ends]
    low, step = bound(draft), 16
    if found.failed:
        low, step = height + 16, height // 64
        found = place(draft, min(most, height + height // 4) // 16 * 16)
        if found.failed or found.height < low:
            return None, failed
    while found.height - low >= step:
        middle = (low + found.height) // 32 * 16
        lower_one = place(draft, middle)
        if lower_one.failed:
            low = middle + 16
        else:
            found = lower_one
    offsets = [found.offsets.get(tensor, -1) for tensor in range(len(draft.tensors))]
    needed = arena(draft.records(), offsets=offsets)
    return _File(height, needed.smallest_bytes, draft, found.offsets, choice), failed


# -- proof ------------------------------------------------------------------------------------------------------------


def prove(network: Network, draft: Draft, places: Mapping[int, int], made: TfliteModel) -> None:
    """Check the packing, follow every byte through the arena, and compare all whole tensors on random inputs.

    Raises:
        SourceError: the model's own tensors contradict each other.
        InternalError: says what is wrong.
    """
    before, after = Interpreter(network.model, keep=True), Interpreter(made, keep=True)
    before.run(sample_inputs(network.model, FIRST_RANDOM, 0))
    held = [buffer for buffer in buffers(draft) if not buffer.name.startswith(SCRATCH)]
    broken = violations(Problem(tuple(held)), {buffer.name: places[int(buffer.name)] for buffer in held})
    if broken:
        raise _wrong(network.model, "the arena's plan is not valid", broken[0].message)
    assert_intact(made)
    for number in range(PROOFS):
        values = sample_inputs(network.model, FIRST_RANDOM + number, 0)
        before.run(values)
        after.run(values)
        for old, new in draft.whole.items():
            x, y = before.tensors[old] if old >= 0 else None, after.tensors[new]
            if x is not None and y is not None and x.tobytes() != y.tobytes():
                name = network.model.main.tensors[old].name
                raise _wrong(network.model, "the patched file computes something else", f"{name}, input {number}")


def _wrong(model: TfliteModel, what: str, received: str) -> MemfitError:
    return InternalError(what, where=model.source, received=received, todo="report this with the model")
