"""How `memfit quantize` speaks, and its picture: bits of every layer, and the peak before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Quantization, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column, shorten
from memfit.units import format_bytes, format_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# -- words --------------------------------------------------------------------------------------------------------


def conditions(result: Result) -> list[str]:
    """Say how it was quantized."""
    s = result.settings if isinstance(result, Quantization) else {}
    bits = "/".join(map(str, s["bits"]))
    weights = "/".join(map(str, s["weight_bits"]))
    return [
        f"{s['strategy']} choice of {bits} bits",
        f"weights {weights} bits",
        f"data {s['data']}",
        f"seed {s['seed']}",
    ]


def totals(result: Result) -> list[str]:
    """Give the peak first, then the metric."""
    t = result.totals
    what = "peak" if t.get("peak_at") is not None else "kept"
    phrases = [
        f"{what} ({result.memory}) {format_bytes(t['baseline_peak_bytes'])} → {format_bytes(t['peak_bytes'])}"
        f", budget {format_limit(t['budget_bytes'])}"
    ]
    name = result.settings["metric"] if isinstance(result, Quantization) else "metric"
    parts = [_figure(name, value) for value in (t["baseline_metric"], t["metric"]) if value is not None]
    if parts:
        phrases.append(f"{name} " + " → ".join(parts))
    return phrases


def lines(result: Result) -> list[str]:
    """Set the ways to choose side by side."""
    if not isinstance(result, Quantization):
        return []
    name = result.settings["metric"]
    found = []
    for entry in result.strategies:
        words = [f"peak {format_bytes(entry['peak_bytes'])}" + ("" if entry["fits"] else " (does not fit)")]
        if entry["metric"] is not None:
            words.append(f"{name} {_figure(name, entry['metric'])}")
        if entry["cost"] is not None:
            words.append(f"summed cost {entry['cost']:.3g}")
        if entry["mean_bits"] is not None:
            words.append(f"{entry['mean_bits']:.1f} bits on average")
        if entry["name"] == "exact":
            gap = entry["gap"]
            words.append(
                "proven least" if entry["optimal"] else f"within {gap:.1%} of the least" if gap else "no proof"
            )
        found.append(f"{entry['name']}: {', '.join(words)}")
    return found


def _figure(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.1f} dB" if name == "sqnr" else f"{value:.4g}"


def summary(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Give the whole network's line."""
    t = result.totals
    return [("whole", {"bytes_before": t["baseline_peak_bytes"], "bytes_after": t["peak_bytes"]})]


# -- pictures -----------------------------------------------------------------------------------------------------

_AFTER, _WEIGHTS = "#4a7fa8", "#c98b2b"


def chart(result: Result) -> Figure:
    """Draw the bits of every layer as steps, and what each needs before and after, with the budget."""
    from matplotlib.figure import Figure

    rows = result.rows
    figure = Figure(figsize=(9.6, 6.2), dpi=160, facecolor="white")
    above = figure.add_axes((0.085, 0.55, 0.885, 0.25))
    below = figure.add_axes((0.085, 0.13, 0.885, 0.36), sharex=above)
    _bits(above, rows)
    _bytes(below, result)
    step = max(len(rows) // 18, 1)
    places = list(range(0, len(rows), step))
    above.tick_params(labelbottom=False)
    below.set_xticks(places)
    below.set_xticklabels(
        [shorten(str(rows[i]["name"]), 22) for i in places], rotation=40, ha="right", fontsize=6.5, color=png.SOFT,
        parse_math=False,
    )  # fmt: skip
    below.set_xlim(-0.7, max(len(rows), 1) - 0.3)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    figure.text(0.03, 0.972, shorten(result.source, 70), fontsize=13, fontweight="bold", color=png.INK, **style)
    figure.text(0.03, 0.929, shorten(headline.setting(result), 125), fontsize=9.5, color=png.SOFT, **style)
    figure.text(
        0.03, 0.893, shorten(" · ".join(totals(result)), 120), fontsize=9.5, fontweight="bold", color=png.INK, **style
    )
    figure.text(0.03, 0.860, shorten(" · ".join(lines(result)[1:]), 140), fontsize=8, color=png.SOFT, **style)
    return figure


def _bits(axes: Axes, rows: tuple[dict[str, Any], ...]) -> None:
    edges = [place - 0.5 for place in range(len(rows) + 1)]
    shown = [row.get("bits") or 0 for row in rows]
    axes.stairs(shown, edges, color=_AFTER, linewidth=1.6, label="output", zorder=3)
    axes.stairs(shown, edges, fill=True, color=_AFTER, alpha=0.15, zorder=2)
    held = [(place, row["weight_bits"]) for place, row in enumerate(rows) if row.get("weight_bits")]
    if held:
        axes.plot(*zip(*held, strict=True), ".", markersize=3.5, color=_WEIGHTS, label="weights", zorder=4)
    top = max([*shown, *(bits for _, bits in held), 8])
    axes.set_yscale("log", base=2)
    axes.set_yticks([width for width in (2, 4, 8, 16) if width <= top])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.minorticks_off()
    axes.set_ylim(1.4, top * 1.4)
    axes.set_ylabel("bits", fontsize=8.5, color=png.SOFT)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=8)
    _plain(axes)


def _bytes(axes: Axes, result: Result) -> None:
    rows, limit = result.rows, result.totals["budget_bytes"]
    largest = max((row[key] or 0 for row in rows for key in ("bytes_before", "bytes_after")), default=1) or 1
    unit, factor = ("MiB", 1 << 20) if largest >= 10 << 20 else ("KiB", 1 << 10) if largest >= 1 << 10 else ("B", 1)
    places = range(len(rows))
    before = [(row["bytes_before"] or 0) / factor for row in rows]
    after = [(row["bytes_after"] or 0) / factor for row in rows]
    axes.bar(places, before, width=0.86, color="#d5dde4", label="before", zorder=2)
    axes.bar(places, after, width=0.5, color=_AFTER, label="after", zorder=3)
    if result.totals.get("peak_at") is not None:
        axes.axhline(limit / factor, color=png.PEAK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=4)
        axes.text(
            1.0, limit / factor, f"budget {format_limit(limit)} ", color=png.PEAK, fontsize=8, ha="right", va="bottom",
            transform=axes.get_yaxis_transform(), zorder=5,
        )  # fmt: skip
        largest = max(largest, limit)
    axes.set_ylim(0, largest / factor * 1.12)
    axes.set_ylabel(f"{result.memory}, {unit}", fontsize=8.5, color=png.SOFT)
    axes.legend(loc="upper center", ncols=2, frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0, labelsize=8, labelcolor=png.SOFT)
    axes.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


headline.VOICES["quantize"] = headline.Voice(conditions, totals, lines)
png.CHARTS["quantize"] = chart
columns.MAIN_COLUMNS["quantize"] = "bytes_after"
columns.SUMMARIES["quantize"] = summary
columns.COLUMNS.setdefault("bits", Column("bits", str, 93))
columns.COLUMNS.update({"weight_bits": Column("weight bits", str, 88)})
