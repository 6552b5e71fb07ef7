"""`memfit stream` of a network: the plan as rows and totals."""

from __future__ import annotations

from typing import Any

from memfit.analysis.result import Stream
from memfit.errors import UsageError
from memfit.formats.tflite import TfliteModel
from memfit.graph.model import Graph, Op
from memfit.memory.mcunet import figures
from memfit.memory.model import View
from memfit.plan.estimate import CAPTURED, NOTE
from memfit.plan.network import limits_of, operator_names
from memfit.stream.choose import within
from memfit.stream.layout import SegmentLayout
from memfit.stream.network import StreamNetwork, network_of
from memfit.stream.plan import StreamPlan, plan_stream
from memfit.targets import load
from memfit.units import format_bytes

FED = "the input is fed row by row and is never whole in memory"
SEGMENT, FRONT = "segment", "front"
"""What rows may be."""
RESIDENT = "the input is whole in memory from the start"


def stream_network(
    graph: Graph,
    *,
    max_extra_macs: float = 0.1,
    max_peak: int | None = None,
    resident: bool = False,
    target: str | None = None,
    passes: int | None = None,
    per: str = SEGMENT,
) -> tuple[Stream, StreamPlan]:
    """Plan a network to run in little memory.

    Args:
        graph: of a `.tflite` file, or of any other source, for an estimate of the int8 network it would become.
        max_extra_macs: work that may be done twice, as a share of the plain run's multiply-accumulates.
        max_peak: bytes: look for the least extra work within them, instead of the lowest peak.
        resident: the input is whole in memory, rather than fed row by row.
        target: a board, whose RAM is `max_peak` where none is given.
        passes: how often a fed input may be read; None for as often as it takes.
        per: rows of the result: one per `segment` of the plan, or one per plan of the `front`.

    Raises:
        UsageError: a share below 0, a size below one byte, no such board, or a network that is not of images.
    """
    if not 0 <= max_extra_macs <= 1:
        raise UsageError(
            "extra work is a share from 0 to 100 % of the network's own",
            where="--max-extra-macs",
            received=f"{max_extra_macs:.0%}",
            todo="write 10%",
        )
    limits = limits_of(target, max_peak)
    network = network_of(graph)
    if passes is not None and passes < 1:
        raise UsageError(
            "the input is read at least once", where="--input-passes", received=str(passes), todo="write 1"
        )
    if per not in (SEGMENT, FRONT):
        raise UsageError("rows are segments or the front", where="--per", received=per, todo=f"{SEGMENT} or {FRONT}")
    if not any(op.streams for op in network.ops):
        raise UsageError(
            "nothing here can be computed row by row: no operation makes an image",
            where=graph.source,
            received=", ".join(sorted({op.kind for op in network.ops})[:6]) or "no operations",
            todo="memfit plan packs networks of any kind",
        )
    both = {
        way: plan_stream(network, max_extra_macs=max_extra_macs, max_peak_bytes=limits.ram, resident=way, passes=passes)
        for way in (False, True)
    }
    plan = both[resident]
    front = _front(both, network.macs, resident=resident)
    before, names = _before(graph, network), operator_names(graph, network.model)
    baseline = figures(View(graph)).total_bytes
    rows = tuple(_row(plan, number, layout, before, names) for number, layout in enumerate(plan.segments))
    worst = max(rows, key=lambda row: row["peak_bytes"], default=None)
    totals: dict[str, Any] = {
        "peak_bytes": plan.peak_bytes,
        "peak_at": worst["name"] if worst else None,
        "baseline_peak_bytes": baseline,
        "extra_macs_share": plan.extra_share,
        "extra_macs": plan.extra_macs,
        "macs": network.macs,
        "fed_peak_bytes": both[False].peak_bytes,
        "fed_extra_macs_share": both[False].extra_share,
        "resident_peak_bytes": both[True].peak_bytes,
        "resident_extra_macs_share": both[True].extra_share,
        "lower_bound_bytes": plan.arena.packing.lower_bound,
        "input_bytes": sum(network.values[i].nbytes for i in network.inputs),
        "input_passes": plan.passes,
        "limit_bytes": limits.ram,
        "fits": None if limits.ram is None else plan.peak_bytes <= limits.ram,
    }
    result = Stream(
        source=graph.source,
        inputs=tuple(
            {
                "name": network.values[i].name,
                "shape": network.model.main.tensors[i].shape,
                "dtype": network.model.main.tensors[i].type.lower(),
            }
            for i in network.inputs
        ),
        per=per,
        memory="stream",
        training=False,
        device="cpu",
        rows=rows if per == SEGMENT else tuple({"name": f"{p['extra_macs_share']:.2%}", **p} for p in front),
        totals=totals,
        notes=tuple(_notes(plan, network, graph)),
        environment={},
        settings={
            "max_extra_macs": max_extra_macs,
            "max_peak_bytes": limits.ram,
            "input_resident": resident,
            "input_passes": passes,
            "target": limits.target.key if limits.target else None,
        },
        front=front,
        boards=tuple(
            {
                "name": board.key,
                "ram_bytes": board.ram_bytes,
                "fits": plan.peak_bytes <= board.ram_bytes,
                "fitted_before": baseline <= board.ram_bytes,
            }
            for board in load().values()
            if board.kind == "mcu"
        ),
        plain=tuple(
            {"name": names[op.index], "type": op.kind, "reason": op.reason}
            for op in network.ops
            if op.reason is not None
        ),
        advice=_advice(plan, totals, max_extra_macs),
    )
    return result, plan


def _front(both: dict[bool, StreamPlan], macs: int, *, resident: bool) -> tuple[dict[str, Any], ...]:
    """Join the fronts of a fed and of a resident input: peaks within each share of extra work at which one falls."""
    found = []
    for extra in sorted({choice.extra_macs for plan in both.values() for choice in plan.front}):
        best = {way: within(plan.front, extra_macs=extra) for way, plan in both.items()}
        fed, whole = (None if (choice := best[way]) is None else choice.peak_bytes for way in (False, True))
        found.append(
            {
                "extra_macs": extra,
                "extra_macs_share": extra / max(macs, 1),
                "peak_bytes": whole if resident else fed,
                "fed_peak_bytes": fed,
                "resident_peak_bytes": whole,
            }
        )
    return tuple(found)


def _before(graph: Graph, network: StreamNetwork) -> list[int]:
    """Give what each operator needs in the memory model mcunet; 0 for what it does not count."""
    per_op = figures(View(graph)).per_op
    found = []
    for operator in network.model.main.operators:
        captured = operator.options.get(CAPTURED)
        known = isinstance(graph.origin, TfliteModel)
        index = captured.index if isinstance(captured, Op) else operator.index if known else None
        found.append(0 if index is None or index >= len(per_op) else per_op[index] or 0)
    return found


def _row(plan: StreamPlan, number: int, layout: SegmentLayout, before: list[int], names: list[str]) -> dict[str, Any]:
    """Describe one segment."""
    segment, ops, values = layout.segment, plan.network.ops, plan.network.values
    first, last = ops[segment.begin], ops[segment.end - 1]
    later = {op.origin for op in ops[segment.end :]}
    count = segment.stripes
    lines = [
        sum(
            line.rows * (line.columns[stripe][1] - line.columns[stripe][0]) * values[line.value].pixel_bytes
            for line in layout.lines
        )
        for stripe in range(count)
    ]
    return {
        "name": _name(names[first.origin], None if first is last else names[last.origin]),
        "type": "in place"
        if segment.in_place
        else "pass"
        if first.origin in later
        else "streamed"
        if layout.streamed
        else "plain",
        "operations": segment.end - segment.begin,
        "stripes": count,
        "rows_kept": sum(line.rows for line in layout.lines),
        "line_bytes": max(lines, default=0),
        "peak_bytes": segment.peak_bytes,
        "before_bytes": max((before[op.origin] for op in ops[segment.begin : segment.end]), default=0),
        "extra_macs": segment.extra_macs,
        "segment": number,
        "first_op": segment.begin,
        "end_op": segment.end,
    }


def _name(first: str, last: str | None) -> str:
    """Name a segment by its first and its last operation, a module that both are in only once.

    >>> _name("features.5.conv.0.0", "features.5.add"), _name("features.7.conv.0.0", "features.7.conv.2")
    ('features.5.conv.0.0 … add', 'features.7.conv.0.0 … conv.2')
    >>> _name("features.0.0", "features.4.add"), _name("mean", None)
    ('features.0.0 … features.4.add', 'mean')
    """
    if last is None:
        return first
    ours, theirs = first.split("."), last.split(".")
    shared = next((k for k, (a, b) in enumerate(zip(ours, theirs[:-1], strict=False)) if a != b), len(theirs) - 1)
    while shared and theirs[shared].isdigit():
        shared -= 1
    return f"{first} … {'.'.join(theirs[shared:])}"


def _notes(plan: StreamPlan, network: StreamNetwork, graph: Graph) -> list[str]:
    notes = [NOTE] if network.estimated else []
    notes.append(RESIDENT if plan.resident else FED)
    if plan.passes > 1 and not plan.resident:
        notes.append(
            f"its rows are read {plan.passes} times, once per stripe and pass: from flash, a file or a sensor that can "
            "be read again; --input-passes 1 reads them once"
        )
    packing = plan.arena.packing
    if not packing.optimal:
        notes.append(f"the arena is {format_bytes(packing.height - packing.lower_bound)} above the most bytes live")
    return [*notes, *packing.notes, *graph.notes]


def _advice(plan: StreamPlan, totals: dict[str, Any], share: float) -> tuple[str, ...]:
    """Say how far an impossible target is, and what stands in the way."""
    limit = totals["limit_bytes"]
    if limit is None or totals["fits"]:
        return ()
    short = format_bytes(totals["peak_bytes"] - limit)
    found = [f"{short} too much for {format_bytes(limit)}, at {totals['peak_at']}, with at most {share:.0%} extra MACs"]
    more = next((choice for choice in plan.front if choice.peak_bytes <= limit), None)
    if more is not None:
        needed = more.extra_macs / max(plan.macs, 1)
        found.append(f"--max-extra-macs {needed:.1%} would reach {format_bytes(more.peak_bytes)}")
    elif plan.front:
        found.append(f"no plan goes below {format_bytes(plan.front[-1].peak_bytes)}: a smaller input or network would")
    return tuple(found)
