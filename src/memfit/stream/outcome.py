"""`memfit stream` of a network: the plan as rows and totals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from memfit.analysis.result import Stream
from memfit.errors import UsageError
from memfit.formats.tflite import TfliteModel
from memfit.graph.model import Graph, Op
from memfit.memory.mcunet import figures
from memfit.memory.model import Options, View
from memfit.plan.estimate import CAPTURED, NOTE
from memfit.plan.network import limits_of, operator_names
from memfit.stream.choose import CAP, within
from memfit.stream.layout import SegmentLayout, line_name, scratch_name, sums_name, value_name
from memfit.stream.network import StreamNetwork, network_of
from memfit.stream.plan import StreamPlan, better, plan_stream
from memfit.targets import load
from memfit.units import format_bytes, format_limit

FED = "the input is fed row by row and is never whole in memory"
SEGMENT, FRONT = "segment", "front"
"""What rows may be."""
RESIDENT = "the input is whole in memory from the start"
TAKEN = "the input is taken whole before anything is computed: here that needs less than feeding it row by row"


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

    def planned(share: float) -> dict[bool, StreamPlan]:
        """Plan with the input fed (False) and resident (True)."""
        return {
            way: plan_stream(network, max_extra_macs=share, max_peak_bytes=limits.ram, resident=way, passes=passes)
            for way in (False, True)
        }

    def chosen(found: dict[bool, StreamPlan]) -> dict[bool, StreamPlan]:
        """Let an input that is fed be taken whole at first, where that is better."""
        return found | {False: better(found[False], found[True], limits.ram)}

    found = planned(max_extra_macs)
    both = chosen(found)
    plan = both[resident]
    front = _front(found, network.macs, resident=resident)
    plainly = figures(View(graph, Options(bits=_bits(network))))
    before, names = _before(graph, network, plan, plainly.per_op), operator_names(graph, network.model)
    baseline = plainly.total_bytes
    rows = tuple(_row(plan, layout, before, names) for layout in plan.segments)
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
        notes=tuple(_notes(plan, graph, resident=resident, baseline=baseline)),
        environment={},
        settings={
            "max_extra_macs": max_extra_macs,
            "max_peak_bytes": limits.ram,
            "input_resident": resident,
            "input_passes": passes,
            "target": limits.target.key if limits.target else None,
        },
        front=front,
        operators=_operators(plan, names),
        buffers=_buffers(plan),
        boards=tuple(
            {
                "name": board.key,
                "ram_bytes": board.ram_bytes,
                "fits": plan.peak_bytes <= board.ram_bytes,
                "short_bytes": max(plan.peak_bytes - board.ram_bytes, 0),
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
        advice=_advice(totals, front, max_extra_macs, lambda share: chosen(planned(share))[resident]),
    )
    return result, plan


def _front(both: dict[bool, StreamPlan], macs: int, *, resident: bool) -> tuple[dict[str, Any], ...]:
    """Join the fronts of a fed and of a resident input: peaks within each share of extra work at which one falls."""
    found = []
    for extra in sorted({choice.extra_macs for plan in both.values() for choice in plan.front}):
        best = {way: within(plan.front, extra_macs=extra) for way, plan in both.items()}
        fed, whole = (None if (choice := best[way]) is None else choice.peak_bytes for way in (False, True))
        fed = min((peak for peak in (fed, whole) if peak is not None), default=None)
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


def _bits(network: StreamNetwork) -> int:
    """Give the bits of an element of the network's images."""
    return next(8 * network.values[op.output].itemsize for op in network.ops if op.streams)


def _before(graph: Graph, network: StreamNetwork, plan: StreamPlan, per_op: Sequence[int | None]) -> list[int]:
    """Give what each operator needs, of what the memory model mcunet says per operation; 0 for what it does not count.

    A PAD that a plan leaves out counts at the operators that see to it.
    """
    found = []
    for operator in network.model.main.operators:
        captured = operator.options.get(CAPTURED)
        known = isinstance(graph.origin, TfliteModel)
        index = captured.index if isinstance(captured, Op) else operator.index if known else None
        found.append(0 if index is None or index >= len(per_op) else per_op[index] or 0)
    kept = {op.origin for op in plan.network.ops}
    for op in network.ops:
        if op.index not in kept:
            for reader in network.values[op.output].readers:
                found[reader] = max(found[reader], found[op.index])
    return found


def _row(plan: StreamPlan, layout: SegmentLayout, before: list[int], names: list[str]) -> dict[str, Any]:
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
        if last.sums and first.origin in later
        else "streamed"
        if layout.streamed
        else "plain",
        "operations": segment.end - segment.begin,
        "stripes": count,
        "rows_kept": sum(line.rows for line in layout.lines),
        "line_bytes": max(lines, default=0),
        "peak_bytes": segment.peak_bytes,
        "before_bytes": max((before[op.origin] for op in ops[segment.begin : segment.end]), default=0) or None,
        "extra_macs": segment.extra_macs,
        "first_op": segment.begin,
        "end_op": segment.end,
    }


def _operators(plan: StreamPlan, names: list[str]) -> tuple[dict[str, Any], ...]:
    """Describe what is done, in order, and the columns that each stripe makes of it."""
    return tuple(
        {
            "name": names[op.origin],
            "type": op.kind,
            "index": op.origin,
            "inputs": list(op.inputs),
            "output": op.output,
            "rows": at.rows.get(op.output, 0),
            "columns": [list(span) for span in at.columns.get(op.output, ())],
        }
        for at in plan.segments
        for op in plan.network.ops[at.segment.begin : at.segment.end]
    )


def _buffers(plan: StreamPlan) -> tuple[dict[str, Any], ...]:
    """Describe what is in the arena: where it lies, when it lives, and which rows and columns of what it holds."""
    values = plan.network.values
    held: dict[str, tuple[str, int, int | None, int | None, int, tuple[int, int]]] = {
        value_name(i): ("whole", i, None, None, value.height, (0, value.width)) for i, value in values.items()
    }
    for number, at in enumerate(plan.segments):
        for line in at.lines:
            for which, span in enumerate(line.columns):
                held[line_name(number, which, line.value)] = ("line", line.value, number, which, line.rows, span)
        made = plan.network.ops[at.segment.end - 1].output
        held[sums_name(number)] = ("sums", made, number, None, 1, (0, 1))
        held[scratch_name(number)] = ("channel", made, number, None, values[made].height, (0, values[made].width))
    found = []
    for buffer in plan.arena.problem.buffers:
        kind, value, segment, stripe, rows, columns = held[buffer.name]
        found.append(
            {
                "tensor": values[value].name,
                "index": value,
                "kind": kind,
                "segment": segment,
                "stripe": stripe,
                "rows": rows,
                "columns": list(columns),
                "offset": plan.arena.packing.offsets[buffer.name],
                "nbytes": buffer.size,
                "alive": [[span.lower, span.upper, span.start, span.size] for span in buffer.spans],
            }
        )
    return tuple(found)


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


def _notes(plan: StreamPlan, graph: Graph, *, resident: bool, baseline: int) -> list[str]:
    notes = [NOTE] if plan.network.estimated else []
    if plan.network.estimated and plan.peak_bytes > baseline:
        notes.append("more than before: what mcunet counts as one operation, such as a norm, becomes several operators")
    notes.append(FED if not plan.resident else RESIDENT if resident else TAKEN)
    if plan.passes > 1 and not plan.resident:
        notes.append(
            f"its rows are read {plan.passes} times, once per stripe and pass: from flash, a file or a sensor that can "
            "be read again; --input-passes 1 reads them once"
        )
    notes.append("weights stay in flash; the stack and the program that runs the plan need RAM of their own")
    packing, live = plan.arena.packing, max((at.segment.peak_bytes for at in plan.segments), default=0)
    if packing.height > live:
        notes.append(f"the arena is {format_bytes(packing.height - live)} above the most bytes live")
    return [*notes, *packing.notes, *graph.notes]


def _advice(
    totals: dict[str, Any], front: Sequence[dict[str, Any]], share: float, planned: Callable[[float], StreamPlan]
) -> tuple[str, ...]:
    """Say how far an impossible target is, what stands in the way, and whether more work would do."""
    limit = totals["limit_bytes"]
    if limit is None or totals["fits"]:
        return ()
    short = format_bytes(totals["peak_bytes"] - limit)
    asked = f"at most {100 * share:.4g}% extra MACs"
    far = f"{short} too much for {format_limit(limit)}, at {totals['peak_at']}, with {asked}"
    reached = (point["extra_macs"] for point in front if point["peak_bytes"] and point["peak_bytes"] <= limit)
    enough = next(reached, None)
    if enough is None:
        bound = f"{100 * max(CAP, share):.4g}%"
        least = format_bytes(front[-1]["peak_bytes"])
        return far, f"no plan with at most {bound} extra MACs goes below {least}: a smaller input or network would"
    for extra in sorted({enough, front[-1]["extra_macs"]}):  # the peaks of a front are not packed yet
        more = math.ceil(1000 * extra / totals["macs"]) / 1000
        tried = planned(more)
        if tried.met:
            return far, f"--max-extra-macs {more:.1%} would reach {format_bytes(tried.peak_bytes)}"
    return far, f"the lowest that more work packs to is {format_bytes(tried.peak_bytes)}"
