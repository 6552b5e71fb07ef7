"""How `memfit stream` speaks, and its picture: memory before and after per segment, and the Pareto front."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Result, Stream
from memfit.report import columns, headline, png
from memfit.report.columns import Column, shorten
from memfit.units import format_bytes, format_count, format_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KIB = 1 << 10

_FRONT = 8
"""Points of the front that are printed."""

_REASONS = 4
"""Reasons that are printed."""

_KINDS = 6
"""Kinds of operators that are printed for each."""

_BOARDS = 4
"""Boards that are named among those that have room, and among those that lack some."""


def conditions(result: Result) -> list[str]:
    """Say what was asked for."""
    s = result.settings if isinstance(result, Stream) else {}
    parts = [str(s["target"])] if s.get("target") else []
    parts.append(f"at most {100 * s.get('max_extra_macs', 0):.4g}% extra MACs")
    parts.append("input resident" if s.get("input_resident") else "input fed row by row")
    return parts


def totals(result: Result) -> list[str]:
    """Give the peak, what it was, and the work that it takes."""
    t = result.totals
    phrases = []
    if t["fits"] is not None:
        phrases.append(f"{'fits' if t['fits'] else 'does not fit'} {format_limit(t['limit_bytes'])}")
    before, now = t["baseline_peak_bytes"], t["peak_bytes"]
    change = f" (was {format_bytes(before)}, {(now - before) / before:+.0%})" if before else ""
    phrases.append(f"peak {format_bytes(now)}{change}")
    phrases.append(f"extra MACs {t['extra_macs_share']:.2%} ({format_count(t['extra_macs'])})")
    return phrases


def lines(result: Result) -> list[str]:
    """Show the front, what runs plainly and why, the boards, and what is missing."""
    if not isinstance(result, Stream):
        return []
    found = [_other(result), *result.advice]
    if result.per != "front" and len(points := _points(result.front)) > 1:
        found.append(
            "most bytes live by extra MACs: "
            + " · ".join(f"{point['extra_macs_share']:.1%} {format_bytes(point['peak_bytes'])}" for point in points)
        )
    reasons: dict[str, Counter[str]] = {}
    for row in result.plain:
        reasons.setdefault(row["reason"], Counter())[row["type"]] += 1
    for reason, kinds in sorted(reasons.items(), key=lambda entry: -entry[1].total())[:_REASONS]:
        named = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.most_common(_KINDS))
        more = f" and {len(kinds) - _KINDS} kinds more" if len(kinds) > _KINDS else ""
        found.append(f"plainly, since {reason}: {named}{more}")
    found += _boards(result.boards)
    if result.verification is not None:
        found.append(_verified(result.verification))
    if result.emitted is not None:
        found += _emitted(result.emitted, result.totals["limit_bytes"])
    if result.verification is not None and result.verification["runtime"] is None:
        found.append("the real runtime was not asked: tflite-micro is not installed (extra tflm)")
    return found


def _boards(boards: Sequence[dict[str, Any]]) -> list[str]:
    """Name the smallest boards that have room, and those that lack the least."""
    by_size = sorted(boards, key=lambda board: (board["ram_bytes"], board["name"]))
    fitting, short = ([board for board in by_size if board["fits"] is fits] for fits in (True, False))
    before = sum(board["fitted_before"] for board in boards)
    count = f"fits {len(fitting)} of {len(boards)} known boards ({before} before)"
    smallest = ", ".join(f"{board['name']} ({format_limit(board['ram_bytes'])})" for board in fitting[:_BOARDS])
    found = [f"{count}, the smallest: {smallest}" if fitting else count]
    if short:
        nearest = ", ".join(f"{b['name']} ({format_bytes(b['short_bytes'])} short)" for b in short[: -_BOARDS - 1 : -1])
        found.append(f"no room on {nearest}" + (f" and {len(short) - _BOARDS} more" if len(short) > _BOARDS else ""))
    return found


def _other(result: Stream) -> str:
    """Say what the other way to take the input needs."""
    other, says = ("fed", "fed row by row") if result.settings.get("input_resident") else ("resident", "resident")
    peak, share = result.totals[f"{other}_peak_bytes"], result.totals[f"{other}_extra_macs_share"]
    return f"with the input {says}: peak {format_bytes(peak)}, extra MACs {share:.2%}"


def _emitted(e: dict[str, Any], limit: int | None) -> list[str]:
    """Say what the patched file needs, beside the file as it was and the best plan without patches."""
    fits, short = "", e["ram_bytes"] - (limit or 0)
    if limit is not None:
        size = format_limit(limit)
        fits = f"does not fit {size}: {format_bytes(short)} short; " if short > 0 else f"fits {size}; "
    found = [
        f"{e['path']}: {fits}arena {e['ram_bytes']:,} bytes (as it was {e['runtime_ram_bytes']:,}, planned "
        f"{e['plan_ram_bytes']:,}): head {e['head_bytes']:,} (was {e['runtime_head_bytes']:,}), tail "
        f"{e['tail_bytes']:,} (was {e['runtime_tail_bytes']:,}); operators {e['runtime_operators']} → "
        f"{e['operators']}, extra MACs {e['extra_macs_share']:.2%}, file {format_bytes(e['runtime_file_bytes'])} → "
        f"{format_bytes(e['file_bytes'])}"
    ]
    if e["reason"] is not None:
        found.append(f"without patches: {e['reason']}")
    if e["verification"] is not None:
        v = e["verification"]
        found.append(
            f"{e['path']} verified by {v['runtime']}: {v['identical']:,} of {v['inputs']:,} inputs give the outputs of "
            "the file as it was"
        )
    return found


def _verified(v: dict[str, Any]) -> str:
    real = ""
    if v["runtime"] is not None:
        real = f", {v['runtime_identical']:,} of {v['inputs']:,} those of {v['runtime']}"
    return (
        f"verified by a run in one array of {v['peak_bytes']:,} bytes: {v['identical']:,} of {v['inputs']:,} inputs "
        f"give the outputs of a plain run{real}; extra MACs and passes over the input as planned"
    )


def _points(front: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose points of the front at which the peak falls, spread evenly if there are many."""
    lower: list[dict[str, Any]] = []
    for point in front:
        if point["peak_bytes"] is not None and (not lower or point["peak_bytes"] < lower[-1]["peak_bytes"]):
            lower.append(point)
    step = max((len(lower) - 1) / (_FRONT - 1), 1)
    return [lower[round(number * step)] for number in range(min(len(lower), _FRONT))]


def chart(result: Result) -> Figure:
    """Draw each segment's peak before and after, and the front beside them; the front alone where it is the rows."""
    from matplotlib.figure import Figure

    alone = result.per == "front"
    height = 4.6 if alone else max(3.6, 1.6 + 0.3 * len(result.rows))
    drawn = Figure(figsize=(11, height), dpi=160, facecolor="white")
    bottom, tall = 0.55 / height, 1 - 1.4 / height
    parts = [drawn.add_axes((0.08, bottom, 0.88, tall) if alone else (0.72, bottom, 0.25, tall))]
    _draw_front(parts[0], result)
    if not alone:
        parts.append(drawn.add_axes((0.27, bottom, 0.38, tall)))
        _draw_segments(parts[1], result)
    for part in parts:
        part.tick_params(length=0, labelsize=7.5, labelcolor=png.SOFT)
        part.grid(color=png.GRID, linewidth=0.8, axis="both" if part is parts[0] else "x")
        part.set_axisbelow(True)
        for spine in part.spines.values():
            spine.set_visible(False)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    drawn.text(0.02, 1 - 0.12 / height, shorten(result.source, 80), fontsize=12, fontweight="bold", **style)
    drawn.text(0.02, 1 - 0.36 / height, headline.setting(result), fontsize=9, color=png.SOFT, **style)
    drawn.text(0.02, 1 - 0.55 / height, " · ".join(totals(result)), fontsize=9, fontweight="bold", **style)
    return drawn


def _draw_segments(axes: Axes, result: Result) -> None:
    """Draw two bars per segment, and the figure of the one that remains."""
    rows = result.rows
    places = range(len(rows))
    before, now = ([value / _KIB for value in columns.values(result, key)] for key in ("before_bytes", "peak_bytes"))
    axes.barh([y - 0.19 for y in places], before, 0.34, color=png.GRID, label="before: the largest of its operations")
    axes.barh([y + 0.19 for y in places], now, 0.34, color=png.BAR, label="streamed")
    room = max([*before, *now, 1e-9])
    for y, value in zip(places, now, strict=True):
        axes.text(value + 0.01 * room, y + 0.19, f"{value:,.1f}", va="center", fontsize=6.5, color=png.SOFT)
    axes.set_yticks(list(places))
    axes.set_yticklabels([shorten(str(row.get("name", "")), 38) for row in rows], fontsize=7.5, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * room)
    axes.set_xlabel("peak, KiB", fontsize=8.5, color=png.SOFT)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")


def _draw_front(axes: Axes, result: Result) -> None:
    """Draw peak over extra work, the input fed and resident, and mark the plan."""
    front = result.front if isinstance(result, Stream) else ()
    at = (100 * result.totals["extra_macs_share"], result.totals["peak_bytes"] / _KIB)
    most = max([at[0], *(100 * point["extra_macs_share"] for point in front)]) * 1.04
    for way, colour, says in (("fed", png.BAR, "input fed row by row"), ("resident", png.SOFT, "input resident")):
        points = [point for point in front if point[f"{way}_peak_bytes"] is not None]
        shares = [100 * point["extra_macs_share"] for point in points]
        peaks = [point[f"{way}_peak_bytes"] / _KIB for point in points]
        axes.step([*shares, most], [*peaks, *peaks[-1:]], where="post", color=colour, linewidth=1.4, label=says)
    axes.plot(*at, marker="o", color=png.PEAK)
    axes.annotate(
        f"{at[1]:,.1f} KiB", at, (5, 5), textcoords="offset points", fontsize=7.5, color=png.PEAK, fontweight="bold"
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("extra MACs, %", fontsize=8.5, color=png.SOFT)
    axes.set_ylabel("most bytes live, KiB", fontsize=8.5, color=png.SOFT)
    axes.legend(fontsize=7.5, frameon=False, loc="best")


_NEW = {
    "operations": Column("operations", format_count, 70),
    "stripes": Column("stripes", format_count, 88),
    "rows_kept": Column("rows kept", format_count, 60),
    "line_bytes": Column("line buffers", format_bytes, 62),
    "before_bytes": Column("before", format_bytes, 76),
    "extra_macs": Column("extra MACs", format_count, 82),
    "extra_macs_share": Column("share", columns.COLUMNS["params_share"].cell, 15),
    "fed_peak_bytes": Column("input fed", format_bytes, 92),
    "resident_peak_bytes": Column("input resident", format_bytes, 91),
}
for _key, _column in _NEW.items():
    columns.COLUMNS.setdefault(_key, _column)
headline.VOICES["stream"] = headline.Voice(conditions, totals, lines)
png.CHARTS["stream"] = chart
