"""How `memfit plan` speaks, and the picture of an arena: time across, addresses up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Plan, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column, shorten
from memfit.units import format_bytes, format_count, format_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILL = ("#8fb1cc", "#a9c6b8", "#d9c08c", "#c5aecf", "#9fc1c9", "#d7a9a0", "#b3bfa0", "#b8bec5")
"""Colours of the rectangles, in turn."""
SCRATCH = "#e4e8ec"

_BOARDS = 6
"""Boards that the printed report names."""


def conditions(result: Result) -> list[str]:
    """Say what was planned for."""
    s = result.settings if isinstance(result, Plan) else {}
    if s.get("runtime") is None:
        return [f"planner {s.get('planner')}"]
    parts = ["TensorFlow Lite Micro", f"{s['pointer_bits']}-bit"]
    if s.get("target"):
        parts.insert(0, str(s["target"]))
    return parts


def totals(result: Result) -> list[str]:
    """Give the answer first, then the arena and what it is made of."""
    t = result.totals
    if t.get("ram_bytes") is None:
        return _totals_of_problem(t)
    phrases = []
    if t["fits"] is not None:
        phrases.append(_fit(t))
    phrases.append(f"arena {format_bytes(t['arena_bytes'])}{_was(t['arena_bytes'], t['runtime_arena_bytes'])}")
    phrases.append(_proof(t))
    phrases.append(f"tail {format_bytes(t['tail_bytes'])}")
    phrases.append(f"RAM {format_bytes(t['ram_bytes'])}{_was(t['ram_bytes'], t['runtime_ram_bytes'])}")
    phrases.append(
        f"flash {format_bytes(t['flash_bytes'])} (model {format_bytes(t['model_bytes'])}, code about "
        f"{format_bytes(t['code_bytes'])})"
    )
    return phrases


def _totals_of_problem(t: dict[str, Any]) -> list[str]:
    phrases = []
    if t["fits"] is not None:
        capacity = format_count(t["capacity_bytes"])
        phrases.append(f"fits {capacity} bytes" if t["fits"] else f"no packing within {capacity} bytes was found")
    phrases.append(f"arena {format_count(t['arena_bytes'])} bytes ({format_limit(t['arena_bytes'])})")
    phrases.append(_proof(t))
    phrases.append(f"{format_count(t['buffers'])} buffers")
    return phrases


def _proof(t: dict[str, Any]) -> str:
    if t["optimal"]:
        return "no smaller one exists"
    bound = t["lower_bound_bytes"]
    gap = (t["arena_bytes"] - bound) / bound if bound else 0.0
    return f"lower bound {format_bytes(bound)}, gap {gap:.1%}"


def _fit(t: dict[str, Any]) -> str:
    if t["fits"]:
        return "fits " + " and ".join(
            f"{format_limit(t[f'{kind}_limit_bytes'])} of {name}"
            for kind, name in (("ram", "RAM"), ("flash", "flash"))
            if t[f"{kind}_limit_bytes"] is not None
        )
    short = [
        f"{format_bytes(t[f'{kind}_short_bytes'])} of {name} short"
        for kind, name in (("ram", "RAM"), ("flash", "flash"))
        if t[f"{kind}_short_bytes"]
    ]
    return "does not fit: " + ", ".join(short)


def _was(now: int, before: int) -> str:
    return f" (was {format_bytes(before)}, {(now - before) / before:+.0%})" if before > now else ""


def lines(result: Result) -> list[str]:
    """Say what would help, what other planners make of it, which boards it fits, and what the runtime said."""
    if not isinstance(result, Plan):
        return []
    found = []
    if result.order is not None:
        found.append("operators in another order: " + _order(result))
    if result.advice:
        found += ["what stands in the way, and what would help:" if result.totals["fits"] is False else "what helps:"]
        found += [f"  {idea}" for idea in result.advice]
    if result.planners:
        found.append(
            "planners: "
            + " · ".join(
                f"{row['name']} {format_bytes(row['arena_bytes'])}{' ✓' if row['optimal'] else ''}"
                for row in result.planners
            )
        )
    if result.boards and result.totals["fits"] is None:
        found.append(_boards(result.boards))
    if result.verification is not None:
        found.append(_verified(result.verification))
    return found


def _order(result: Plan) -> str:
    assert result.order is not None
    moved = [position for position, index in enumerate(result.order) if position != index]
    first, last = moved[0], moved[-1]
    listed = " ".join(str(index) for index in result.order[first : last + 1])
    return f"{len(moved)} of {len(result.order)} move, {first} to {last} run as {shorten(listed, 60)}"


def _boards(boards: Sequence[dict[str, Any]]) -> str:
    """Name the smallest boards that it fits, and how many there are."""
    fitting = sorted(
        (board for board in boards if board["fits"]), key=lambda board: (board["ram_bytes"], board["name"])
    )
    if not fitting:
        return f"fits none of the {len(boards)} boards that memfit knows (memfit targets)"
    names = ", ".join(f"{board['name']} ({format_limit(board['ram_bytes'])})" for board in fitting[:_BOARDS])
    return f"fits {len(fitting)} of {len(boards)} known boards, the smallest: {names}"


def _verified(v: dict[str, Any]) -> str:
    exact = "as predicted" if v["arena_bytes"] == v["predicted_arena_bytes"] else (
        f"predicted {v['predicted_arena_bytes']:,}"
    )  # fmt: skip
    return (
        f"verified with {v['runtime']}: {v['identical']:,} of {v['inputs']:,} inputs give identical outputs; smallest "
        f"arena {v['arena_bytes']:,} bytes ({exact}), before {v['runtime_arena_bytes']:,}"
    )


def arena(result: Result) -> Figure:
    """Draw each buffer as a rectangle in time and addresses, and above it the bytes live at each operation."""
    from matplotlib.figure import Figure

    rows = result.rows
    chart = Figure(figsize=(9.6, 6.2), dpi=160, facecolor="white")
    axes = chart.add_axes((0.085, 0.11, 0.885, 0.52))
    above = chart.add_axes((0.085, 0.67, 0.885, 0.13), sharex=axes)
    height = max((*(row["offset"] + row["nbytes"] for row in rows), 1))
    unit, factor = ("MiB", 1 << 20) if height >= 10 << 20 else ("KiB", 1 << 10) if height >= 1 << 10 else ("B", 1)
    begin = min((row["first_op"] for row in rows), default=0)
    end = max((row["end_op"] for row in rows), default=1)
    top = result.totals["arena_bytes"]
    _rectangles(axes, rows, factor, end - begin)
    _live(above, result, begin, end, factor)
    bound = result.totals["lower_bound_bytes"]
    for level, colour, text in ((top, png.INK, f"arena {format_bytes(top)}"), (bound, png.PEAK, "lower bound")):
        if level == bound and bound == top and text == "lower bound":
            continue
        axes.axhline(level / factor, color=colour, linewidth=1.0, linestyle=(0, (5, 3)), zorder=4)
        axes.text(
            1.0, level / factor, f"{text} ", color=colour, fontsize=8, ha="right", va="bottom", zorder=5,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    limit = result.totals.get("capacity_bytes")
    axes.set_xlim(begin, max(end, begin + 1))
    axes.set_ylim(0, max(top, limit or 0) / factor * 1.08 or 1)
    axes.set_ylabel(f"address, {unit}", fontsize=8.5, color=png.SOFT)
    what = "operation" if isinstance(result, Plan) and result.operators else "time"
    axes.set_xlabel(what, fontsize=8.5, color=png.SOFT)
    for part in (axes, above):
        part.tick_params(length=0, labelsize=8, labelcolor=png.SOFT)
        part.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
        part.set_axisbelow(True)
        for side in part.spines.values():
            side.set_visible(False)
    above.tick_params(labelbottom=False)
    above.set_ylabel(f"live, {unit}", fontsize=8.5, color=png.SOFT)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    phrases = totals(result)
    chart.text(0.03, 0.972, shorten(result.source, 80), fontsize=13, fontweight="bold", color=png.INK, **style)
    chart.text(0.03, 0.929, shorten(headline.setting(result), 120), fontsize=9.5, color=png.SOFT, **style)
    chart.text(
        0.03, 0.893, shorten(" · ".join(phrases[:2]), 120), fontsize=9.5, fontweight="bold", color=png.INK, **style
    )
    chart.text(0.03, 0.860, shorten(" · ".join(phrases[2:]), 130), fontsize=9, color=png.SOFT, **style)
    return chart


def _rectangles(axes: Axes, rows: Sequence[dict[str, Any]], factor: int, span: int) -> None:
    """Draw the buffers, each with its name where there is room for it."""
    from matplotlib.patches import Rectangle

    tallest = max((row["offset"] + row["nbytes"] for row in rows), default=1)
    for number, row in enumerate(sorted(rows, key=lambda row: (row["first_op"], row["offset"]))):
        width, height = max(row["end_op"] - row["first_op"], 0), row["nbytes"] / factor
        scratch = str(row.get("made_by") or "").startswith("scratch")
        axes.add_patch(
            Rectangle(
                (row["first_op"], row["offset"] / factor), width, height,
                facecolor=SCRATCH if scratch else FILL[number % len(FILL)], edgecolor="white", linewidth=0.7, zorder=2,
            )
        )  # fmt: skip
        name = str(row.get("made_by") or row["tensor"])
        flat = row["nbytes"] / tallest > 0.028
        across = int(width / max(span, 1) * 128)
        upright = row["nbytes"] / tallest > 0.12 and across < min(len(name), 9)
        letters = int(row["nbytes"] / tallest * 50) if upright else across
        if (flat or upright) and letters >= 4 and width / max(span, 1) > 0.014:
            axes.text(
                row["first_op"] + width / 2, (row["offset"] + row["nbytes"] / 2) / factor, shorten(name, letters),
                fontsize=6.2, color=png.INK, ha="center", va="center", rotation=90 if upright else 0, zorder=3,
                parse_math=False, clip_on=True,
            )  # fmt: skip


def _live(axes: Axes, result: Result, begin: int, end: int, factor: int) -> None:
    """Draw the bytes that are live at each time, and mark the peak."""
    change: dict[int, int] = {begin: 0, end: 0}
    for row in result.rows:
        if row["first_op"] < row["end_op"]:
            change[row["first_op"]] = change.get(row["first_op"], 0) + row["nbytes"]
            change[row["end_op"]] = change.get(row["end_op"], 0) - row["nbytes"]
    times, sizes, live = [], [], 0
    for time in sorted(change):
        live += change[time]
        times.append(time)
        sizes.append(live / factor)
    axes.fill_between(times, sizes, step="post", color=png.BAR, linewidth=0, zorder=2)
    highest = max(sizes, default=0) or 1
    axes.set_ylim(0, highest * 1.3)
    at = sizes.index(max(sizes)) if sizes else 0
    place = result.totals.get("peak_at")
    axes.axhline(highest, color=png.PEAK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    late = bool(times) and times[at] - begin > (end - begin) / 2
    axes.annotate(
        f"{format_bytes(round(highest * factor))}" + (f" at {shorten(str(place), 40)}" if place else ""),
        (times[at] if times else begin, highest),
        xytext=(-3 if late else 3, 3),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=8,
        fontweight="bold",
        color=png.PEAK,
        parse_math=False,
        annotation_clip=False,
    )


headline.VOICES["plan"] = headline.Voice(conditions, totals, lines)
png.CHARTS["plan"] = arena
columns.MAIN_COLUMNS["plan"] = "nbytes"
columns.COLUMNS.update(
    {
        "offset": Column("offset", format_count, 92),
        "nbytes": Column("bytes", format_bytes, 95),
        "first_op": Column("from", format_count, 80),
        "end_op": Column("to", format_count, 79),
    }
)
