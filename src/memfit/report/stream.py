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


def conditions(result: Result) -> list[str]:
    """Say what was asked for."""
    s = result.settings if isinstance(result, Stream) else {}
    parts = [str(s["target"])] if s.get("target") else []
    parts.append(f"at most {s.get('max_extra_macs', 0):.0%} extra MACs")
    parts.append("input resident" if s.get("input_resident") else "input fed row by row")
    return parts


def totals(result: Result) -> list[str]:
    """Give the peak, what it was, and the work that it takes."""
    t = result.totals
    phrases = []
    if t["fits"] is not None:
        phrases.append(f"fits {format_bytes(t['limit_bytes'])}" if t["fits"] else "does not fit")
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
    if len(result.front) > 1 and result.per != "front":
        points = result.front if len(result.front) <= _FRONT else _spread(result.front)
        found.append(
            "peak by extra MACs: "
            + " · ".join(f"{point['extra_macs_share']:.1%} {format_bytes(point['peak_bytes'])}" for point in points)
        )
    reasons: dict[str, Counter[str]] = {}
    for row in result.plain:
        reasons.setdefault(row["reason"], Counter())[row["type"]] += 1
    for reason, kinds in sorted(reasons.items(), key=lambda entry: -entry[1].total())[:_REASONS]:
        named = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in kinds.most_common(_KINDS))
        more = f" and {len(kinds) - _KINDS} kinds more" if len(kinds) > _KINDS else ""
        found.append(f"plainly, since {reason}: {named}{more}")
    fitting = sorted((b for b in result.boards if b["fits"]), key=lambda b: (b["ram_bytes"], b["name"]))
    if fitting:
        fitted = sum(board["fitted_before"] for board in result.boards)
        found.append(
            f"fits {len(fitting)} of {len(result.boards)} known boards ({fitted} before), the smallest: "
            + ", ".join(f"{board['name']} ({format_limit(board['ram_bytes'])})" for board in fitting[:4])
        )
    if result.verification is not None:
        found.append(_verified(result.verification))
    if result.emitted is not None:
        found += _emitted(result.emitted)
    return found


def _other(result: Stream) -> str:
    """Say what the other way to take the input needs."""
    other, says = ("fed", "fed row by row") if result.settings.get("input_resident") else ("resident", "resident")
    peak, share = result.totals[f"{other}_peak_bytes"], result.totals[f"{other}_extra_macs_share"]
    return f"with the input {says}: peak {format_bytes(peak)}, extra MACs {share:.2%}"


def _emitted(e: dict[str, Any]) -> list[str]:
    """Say what the patched file needs, beside the file as it was and the best plan without patches."""
    found = [
        f"{e['path']}: arena {e['ram_bytes']:,} bytes (as it was {e['runtime_ram_bytes']:,}, planned "
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


def _spread(front: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    step = (len(front) - 1) / (_FRONT - 1)
    return [front[round(number * step)] for number in range(_FRONT)]


def chart(result: Result) -> Figure:
    """Draw each segment's peak before and after, and the front beside them; the front alone where it is the rows."""
    from matplotlib.figure import Figure

    alone = result.per == "front"
    rows, height = result.rows, 4.6 if alone else max(3.6, 1.6 + 0.3 * len(result.rows))
    drawn = Figure(figsize=(11, height), dpi=160, facecolor="white")
    bottom, tall = 0.55 / height, 1 - 1.4 / height
    parts = [drawn.add_axes((0.08, bottom, 0.88, tall) if alone else (0.72, bottom, 0.25, tall))]
    _draw_front(parts[0], result)
    if not alone:
        parts.append(drawn.add_axes((0.27, bottom, 0.38, tall)))
        _draw_segments(parts[1], rows)
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


def _draw_segments(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw two bars per segment, and the figure of the one that remains."""
    places = range(len(rows))
    before = [row["before_bytes"] / _KIB for row in rows]
    now = [row["peak_bytes"] / _KIB for row in rows]
    axes.barh([y - 0.19 for y in places], before, 0.34, color=png.GRID, label="before: the largest of its operations")
    axes.barh([y + 0.19 for y in places], now, 0.34, color=png.BAR, label="streamed")
    room = max([*before, *now, 1e-9])
    for y, value in zip(places, now, strict=True):
        axes.text(value + 0.01 * room, y + 0.19, f"{value:,.1f}", va="center", fontsize=6.5, color=png.SOFT)
    axes.set_yticks(list(places))
    axes.set_yticklabels([shorten(str(row["name"]), 38) for row in rows], fontsize=7.5, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * room)
    axes.set_xlabel("peak, KiB", fontsize=8.5, color=png.SOFT)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")


def _draw_front(axes: Axes, result: Result) -> None:
    """Draw peak over extra work, the input fed and resident, and mark the plan."""
    front = result.front if isinstance(result, Stream) else ()
    for way, colour, says in (("fed", png.BAR, "input fed row by row"), ("resident", png.SOFT, "input resident")):
        points = [point for point in front if point[f"{way}_peak_bytes"] is not None]
        shares = [100 * point["extra_macs_share"] for point in points]
        peaks = [point[f"{way}_peak_bytes"] / _KIB for point in points]
        axes.step(shares, peaks, where="post", color=colour, linewidth=1.4, label=says)
    at = (100 * result.totals["extra_macs_share"], result.totals["peak_bytes"] / _KIB)
    axes.plot(*at, marker="o", color=png.PEAK)
    axes.annotate(
        f"{at[1]:,.1f} KiB", at, (6, -11), textcoords="offset points", fontsize=7.5, color=png.PEAK, fontweight="bold"
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
    "extra_macs_share": Column("share", columns.COLUMNS["params_share"].cell, 84),
    "fed_peak_bytes": Column("input fed", format_bytes, 92),
    "resident_peak_bytes": Column("input resident", format_bytes, 91),
    "segment": Column("segment", format_count, 8),
}
for _key, _column in _NEW.items():
    columns.COLUMNS.setdefault(_key, _column)
headline.VOICES["stream"] = headline.Voice(conditions, totals, lines)
png.CHARTS["stream"] = chart
