"""`memfit plan` of a network: its arena, RAM and flash, whether a board has them, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memfit.analysis.layers import UNUSED, layers
from memfit.analysis.result import Plan
from memfit.errors import UsageError
from memfit.formats.tflite import Operator, TfliteModel
from memfit.graph.model import Graph
from memfit.memory.flash import flash_of_graph
from memfit.memory.tflm.arena import Arena, arena
from memfit.memory.tflm.builds import VERSION, Build, build_named
from memfit.memory.tflm.head import HeadBuffer
from memfit.plan.arena import ArenaPlan, compare, plan_arena, planned_file
from memfit.plan.estimate import NOTE, as_tflite
from memfit.targets import Target, find, load
from memfit.units import format_bytes, format_shape

HOST, DEVICE = "wheel", "mcu"
"""Builds of TFLM that figures are of: the Python package, and a 32-bit microcontroller's."""

_LIVE = 4
"""Tensors that a sentence on the peak names."""


@dataclass(frozen=True)
class Limits:
    """What there is room for, in bytes; None where nothing is said."""

    ram: int | None = None
    flash: int | None = None
    target: Target | None = None
    """The board that they are of."""


def limits_of(target: str | None, ram: int | None = None, flash: int | None = None) -> Limits:
    """Find a board, and let sizes that are given take the place of its own.

    >>> limits_of("stm32f746", flash=1 << 19).flash
    524288

    Raises:
        UsageError: there is no such board, or a size below one byte.
    """
    board = None if target is None else find(target)
    if board is not None and board.kind != "mcu":
        raise UsageError(
            "TensorFlow Lite Micro runs on microcontrollers", where="--target", received=board.key,
            todo="choose a board of memfit targets --kind mcu",
        )  # fmt: skip
    for name, size in (("--ram", ram), ("--flash", flash)):
        if size is not None and size < 1:
            raise UsageError("a size must be at least one byte", where=name, received=str(size), todo="write 320KiB")
    return Limits(
        ram if ram is not None or board is None else board.ram_bytes,
        flash if flash is not None or board is None else board.flash_bytes,
        board,
    )


@dataclass(frozen=True)
class NetworkPlan:
    """A plan, as people see it and as a file is written of it."""

    result: Plan
    arena: ArenaPlan
    host: Arena
    """What the runtime on this machine needs for it, whatever the target is."""


def plan_network(
    graph: Graph,
    *,
    limits: Limits | None = None,
    pointer_bits: int | None = None,
    planner: str = "exact",
    reorder: bool = True,
    time_limit: float | None = None,
    side_by_side: bool = False,
    estimate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> NetworkPlan:
    """Plan the arena of a network for TensorFlow Lite Micro.

    Args:
        graph: of a `.tflite` file, or of any other source for an estimate of what it would become.
        limits: RAM and flash to fit.
        pointer_bits: 32 or 64; None takes the target's, or 64 as on the host.
        planner: a name in `memfit.packing.PLANNERS`.
        reorder: look for a better order of operators.
        time_limit: seconds for the searches.
        side_by_side: also pack with every other planner.
        estimate: let operators that TFLM's table lacks pass, with a note; always so for what is not a `.tflite`.
        progress: is told what is being done.

    Raises:
        UnsupportedOp: an operator that TFLM lacks, or that memfit does not know.
        UsageError: a planner or a number of bits that there is not.
    """
    limits = limits or Limits()
    build = _build(pointer_bits, limits.target)
    known = isinstance(graph.origin, TfliteModel)
    model = graph.origin if known else as_tflite(graph)
    estimate = estimate or not known
    plan = plan_arena(
        model, build, planner=planner, reorder=reorder, time_limit=time_limit, estimate=estimate, progress=progress
    )
    host, device = (
        plan.arena if build.name == name else arena(plan.model, name, offsets=plan.offsets, estimate=estimate)
        for name in (HOST, DEVICE)
    )
    code = flash_of_graph(graph)
    grown = 0 if plan.offsets is None or not known else len(planned_file(plan)) - len(model.data)
    names = operator_names(graph, model)
    operators = _operators(plan, names)
    peak = max(operators, key=lambda row: row["live_bytes"], default=None)
    totals: dict[str, Any] = {
        "buffers": len(plan.arena.buffers),
        "lower_bound_bytes": plan.lower_bound,
        "arena_bytes": plan.arena.head_bytes,
        "optimal": plan.optimal,
        "tail_bytes": plan.arena.tail_bytes,
        "ram_bytes": plan.arena.smallest_bytes,
        "flash_bytes": code.total_bytes + grown,
        "peak_at": peak["name"] if peak else None,
        "runtime_arena_bytes": plan.stock.head_bytes,
        "runtime_ram_bytes": plan.stock.smallest_bytes,
        "model_bytes": code.model_bytes + grown,
        "code_bytes": code.code_bytes,
        "ram_limit_bytes": limits.ram,
        "flash_limit_bytes": limits.flash,
        **answer(plan.arena.smallest_bytes, code.total_bytes + grown, limits.ram, limits.flash),
    }
    result = Plan(
        source=graph.source,
        inputs=tuple(
            {"name": model.main.tensors[i].name, "shape": model.main.tensors[i].shape, "dtype": _dtype(model, i)}
            for i in model.main.inputs
        ),
        per="tensor",
        memory="tflm",
        training=False,
        device="cpu",
        rows=_rows(plan, names),
        totals=totals,
        notes=(*([] if known else [NOTE]), *_notes(plan, build, host, device), *graph.notes, *plan.notes, *code.notes),
        environment={"format": graph.environment.get("format", graph.source.rpartition(".")[2]) if known else None},
        settings={
            "runtime": "tflm",
            "version": VERSION,
            "pointer_bits": 8 * build.pointer,
            "target": limits.target.key if limits.target else None,
            "planner": planner,
            "reorder": reorder,
        },
        order=plan.order,
        operators=tuple(operators),
        planners=_side_by_side(plan, build, estimate) if side_by_side else (),
        boards=_boards(device.smallest_bytes, code.total_bytes + grown),
        advice=_advice(plan, totals, limits, operators, known=known),
    )
    return NetworkPlan(result, plan, host)


def _build(pointer_bits: int | None, target: Target | None) -> Build:
    bits = pointer_bits or (target.pointer_bits if target else 64)
    if bits not in (32, 64):
        raise UsageError("pointers have 32 or 64 bits", where="--pointers", received=str(bits), todo="use 32 or 64")
    return build_named(DEVICE if bits == 32 else HOST)


def _dtype(model: TfliteModel, index: int) -> str:
    return model.main.tensors[index].type.lower()


def operator_names(graph: Graph, model: TfliteModel) -> list[str]:
    """Name each operator as `memfit profile --per op` does; those of an estimate by what they make."""
    if not isinstance(graph.origin, TfliteModel):
        return [_output_name(model, operator) for operator in model.main.operators]
    named = {row.head: row.name for row in layers(graph, fold=False) if row.type != UNUSED}
    return [named.get(operator.index, operator.name.lower()) for operator in model.main.operators]


def _output_name(model: TfliteModel, operator: Operator) -> str:
    return model.main.tensors[operator.outputs[0]].name if operator.outputs else operator.name.lower()


def _operators(plan: ArenaPlan, names: Sequence[str]) -> list[dict[str, Any]]:
    """Give the operators in the planned order, and what is in use in the head while each runs."""
    return [
        {"name": names[operator.index], "type": operator.name, "live_bytes": live, "reach_bytes": reach}
        for operator, live, reach in zip(
            plan.model.main.operators, plan.arena.live_bytes, plan.arena.reach_bytes, strict=True
        )
    ]


def _rows(plan: ArenaPlan, names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Give one row per buffer of the head, in order of time, then of address."""
    model = plan.model
    makers = {(0, i): names[operator.index] for operator in reversed(model.main.operators) for i in operator.outputs}
    makers.update({(0, i): "input" for i in model.main.inputs})
    rows = []
    for buffer, offset in zip(plan.arena.buffers, plan.arena.offsets, strict=True):
        first = max(buffer.first - 1, 0)
        tensor = None if buffer.tensor is None else model.subgraphs[buffer.subgraph].tensors[buffer.tensor]
        rows.append(
            {
                "tensor": buffer.name,
                "made_by": _maker(buffer, makers, names),
                "shape": tensor.shape if tensor else None,
                "dtype": tensor.type.lower() if tensor else None,
                "offset": offset,
                "nbytes": buffer.nbytes,
                "first_op": first,
                "end_op": max(buffer.last, first),
            }
        )
    return tuple(sorted(rows, key=lambda row: (row["first_op"], row["end_op"], row["offset"])))


def _maker(buffer: HeadBuffer, makers: dict[tuple[int, int], str], names: Sequence[str]) -> str | None:
    if buffer.tensor is None:
        return f"scratch of {names[buffer.operator]}" if buffer.subgraph == 0 and buffer.operator is not None else None
    return makers.get((buffer.subgraph, buffer.tensor))


def answer(ram: int, flash: int, ram_limit: int | None, flash_limit: int | None) -> dict[str, int | None]:
    """Say whether RAM and flash suffice, and how much is missing; null without a limit. All in bytes.

    >>> answer(300, 50, 256, None)
    {'fits': False, 'ram_short_bytes': 44, 'flash_short_bytes': None}
    """
    short = [
        None if limit is None else max(need - limit, 0) for need, limit in ((ram, ram_limit), (flash, flash_limit))
    ]
    known = [missing for missing in short if missing is not None]
    return {"fits": not any(known) if known else None, "ram_short_bytes": short[0], "flash_short_bytes": short[1]}


def _notes(plan: ArenaPlan, build: Build, host: Arena, device: Arena) -> tuple[str, ...]:
    """Say which runtime the figures are of, and what the other one would need."""
    notes = [f"the arena of {VERSION}: optimised kernels ask for more"]
    if build.name == HOST:
        notes.append(
            f"a 32-bit device, not verified by execution: tail {device.tail_bytes:,} bytes, "
            f"RAM {device.smallest_bytes:,}"
        )
    else:
        notes.append(
            f"32-bit figures are not verified by execution; on a 64-bit host: tail {host.tail_bytes:,} bytes, "
            f"RAM {host.smallest_bytes:,}"
        )
    return (*notes, *(note for note in plan.arena.notes if not note.startswith("not verified")))


def _side_by_side(plan: ArenaPlan, build: Build, estimate: bool) -> tuple[dict[str, Any], ...]:
    """Give what each planner makes of the planned order's buffers."""
    return tuple(
        {"name": name, "arena_bytes": packing.height, "optimal": packing.height <= plan.lower_bound}
        for name, packing in compare(plan.model, build, estimate=estimate).items()
    )


def _boards(ram: int, code: int) -> tuple[dict[str, Any], ...]:
    """Tell of every known microcontroller whether the network fits, by the 32-bit figures."""
    return tuple(
        {
            "name": target.key,
            "ram_bytes": target.ram_bytes,
            "flash_bytes": target.flash_bytes,
            "fits": ram <= target.ram_bytes and (target.flash_bytes is None or code <= target.flash_bytes),
        }
        for target in load().values()
        if target.kind == "mcu"
    )


def _advice(
    plan: ArenaPlan, totals: dict[str, Any], limits: Limits, operators: Sequence[dict[str, Any]], *, known: bool
) -> tuple[str, ...]:
    """Say what stands in the way, and what would help."""
    advice = []
    if totals["ram_short_bytes"]:
        advice.append(_at_peak(plan, operators))
        if plan.arena.tail_bytes > plan.arena.head_bytes:
            advice.append(
                f"the persistent part is {format_bytes(plan.arena.tail_bytes)}, more than the activations: fewer "
                "operators and channels help, a better packing does not"
            )
        else:
            short = format_bytes(totals["ram_short_bytes"])
            advice.append(
                f"to save {short}: stream that part of the network row by row (memfit stream), or give it a smaller "
                "input or fewer channels there"
            )
    if totals["flash_short_bytes"]:
        advice.append(
            f"flash holds {format_bytes(totals['model_bytes'])} of model and about "
            f"{format_bytes(totals['code_bytes'])} of code: prune channels, use 4-bit weights, or keep the model in "
            "external flash"
        )
    gain = plan.stock.smallest_bytes - plan.arena.smallest_bytes
    if known and gain > 0:
        before = limits.ram is not None and plan.stock.smallest_bytes > limits.ram >= plan.arena.smallest_bytes
        advice.append(
            f"-o PLANNED.tflite writes this plan into the file: {format_bytes(gain)} less RAM, the runtime unchanged"
            + (", which is what makes it fit" if before else "")
        )
    return tuple(advice)


def _at_peak(plan: ArenaPlan, operators: Sequence[dict[str, Any]]) -> str:
    """Name the operation at the peak and the tensors live there."""
    if not operators:
        return "there is no operation"
    at = max(range(len(operators)), key=lambda index: int(operators[index]["live_bytes"]))
    live = sorted(
        (buffer for buffer in plan.arena.buffers if max(buffer.first - 1, 0) <= at < buffer.last),
        key=lambda buffer: -buffer.nbytes,
    )
    shown = ", ".join(
        f"{format_shape(plan.model.main.tensors[b.tensor].shape) if b.tensor is not None else 'scratch'} "
        f"{format_bytes(b.nbytes)}"
        for b in live[:_LIVE]
    )
    more = f" and {len(live) - _LIVE} more" if len(live) > _LIVE else ""
    return (
        f"the peak is at {operators[at]['name']} ({operators[at]['type']}): "
        f"{format_bytes(operators[at]['live_bytes'])} live together: {shown}{more}"
    )
