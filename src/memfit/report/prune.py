"""How `memfit prune` speaks, and its picture: channels of every layer and the peak, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Pruning, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column, shorten
from memfit.units import format_bytes, format_count, format_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMITS = {
    "peak": ("budget_bytes", "--budget"),
    "flash": ("max_flash_bytes", "--max-flash"),
    "macs": ("max_macs", "--max-macs"),
    "latency": ("max_latency_ms", "--max-latency"),
}
"""Limits by their names in `binding`: where the totals have them, and the option that sets them."""
BEFORE, AFTER = "#d5dde4", "#4a7fa8"


def conditions(result: Result) -> list[str]:
    """Say how it was pruned."""
    s = result.settings if isinstance(result, Pruning) else {}
    parts = [f"{s['strategy']} pruning", f"importance {s['importance']}", f"data {s['data']}"]
    if s["fine_tuned"]:
        parts.append("fine-tuned" + (f" in {s['rounds']} rounds" if s["rounds"] > 1 else ""))
    return [*parts, f"seed {s['seed']}"]


def totals(result: Result) -> list[str]:
    """Give the peak first, then the metric and what else changed."""
    t = result.totals
    phrases = [
        f"peak ({result.memory}) {format_bytes(t['baseline_peak_bytes'])} → {format_bytes(t['peak_bytes'])}"
        + (f", budget {format_limit(t['budget_bytes'])}" if t["budget_bytes"] is not None else "")
    ]
    metric = _metric(result)
    if metric:
        phrases.append(metric)
    for key, name, write in (
        ("flash_bytes", "flash", format_bytes),
        ("macs", "MACs", format_count),
        ("params", "parameters", format_count),
        ("latency_ms", "latency", lambda ms: f"{ms:.2f} ms"),
    ):
        if t[key] is not None:
            limit = t.get(f"max_{key}")
            phrases.append(
                f"{name} {write(t[f'baseline_{key}'])} → {write(t[key])}"
                + (f", limit {write(limit)}" if limit is not None else "")
            )
    return phrases


def lines(result: Result) -> list[str]:
    """Say where the peak was and is, and of several limits which decided."""
    t = result.totals
    said = []
    if t.get("peak_at") is not None:
        still = t["baseline_peak_at"] == t["peak_at"]
        said.append(
            f"the peak is still at {t['peak_at']}"
            if still
            else f"the peak was at {t['baseline_peak_at']} and is at {t['peak_at']}"
        )
    given = [name for name, (key, _) in LIMITS.items() if t[key] is not None]
    if len(given) > 1:
        binding = [LIMITS[name][1] for name in t["binding"]]
        rest = [LIMITS[name][1] for name in given if name not in t["binding"]]
        decided = f"what decided: {', '.join(binding) or 'no limit by itself'}"
        said.append(decided + (f"; with room to spare: {', '.join(rest)}" if binding and rest else ""))
    return said


def _metric(result: Result) -> str | None:
    t = result.totals
    name = result.settings["metric"] if isinstance(result, Pruning) else "metric"
    if t["metric"] is None and t["baseline_metric"] is None:
        return None
    parts = [t["baseline_metric"], *([t["untuned_metric"]] if t["untuned_metric"] is not None else []), t["metric"]]
    return f"{name} " + " → ".join(_figure(name, value) for value in parts if value is not None)


def _figure(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.1f} dB" if name == "sqnr" else f"{value:.4g}"


def summary(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Give the whole network's line."""
    t = result.totals
    peaks = {"bytes_before": t["baseline_peak_bytes"], "bytes_after": t["peak_bytes"]}
    return [("whole", {"params_before": t["baseline_params"], "params_after": t["params"], **peaks})]


def chart(result: Result) -> Figure:
    """Draw what every layer has and needs, before and after."""
    from matplotlib.figure import Figure

    rows = result.rows
    figure = Figure(figsize=(9.6, 6.2), dpi=160, facecolor="white")
    above = figure.add_axes((0.085, 0.49, 0.885, 0.31))
    below = figure.add_axes((0.085, 0.13, 0.885, 0.31), sharex=above)
    t = result.totals
    largest = max((row[key] or 0 for row in rows for key in ("bytes_before", "bytes_after")), default=1) or 1
    unit, factor = ("MiB", 1 << 20) if largest >= 10 << 20 else ("KiB", 1 << 10) if largest >= 1 << 10 else ("B", 1)
    _steps(above, [row["channels_before"] for row in rows], [row["channels_after"] for row in rows])
    before = [(row["bytes_before"] or 0) / factor for row in rows]
    _steps(below, before, [(row["bytes_after"] or 0) / factor for row in rows])
    limit = t["budget_bytes"]
    if limit is not None and any(row["bytes_before"] for row in rows) and largest >= t["baseline_peak_bytes"]:
        below.axhline(limit / factor, color=png.PEAK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=4)
        below.text(
            1.0, limit / factor, f"budget {format_limit(limit)} ", color=png.PEAK, fontsize=8, ha="right", va="bottom",
            transform=below.get_yaxis_transform(), zorder=5,
        )  # fmt: skip
    above.set_ylabel("channels", fontsize=8.5, color=png.SOFT)
    below.set_ylabel(f"{result.memory}, {unit}", fontsize=8.5, color=png.SOFT)
    above.tick_params(labelbottom=False)
    step = max(len(rows) // 18, 1)
    places = list(range(0, len(rows), step))
    below.set_xticks(places)
    below.set_xticklabels(
        [shorten(str(rows[i]["name"]), 22) for i in places], rotation=40, ha="right", fontsize=6.5, color=png.SOFT
    )
    below.set_xlim(-0.7, max(len(rows), 1) - 0.3)
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", bbox_to_anchor=(0.975, 0.985), ncols=2, frameon=False, fontsize=8)
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    phrases = totals(result)
    figure.text(0.03, 0.972, shorten(result.source, 70), fontsize=13, fontweight="bold", color=png.INK, **style)
    figure.text(0.03, 0.929, shorten(headline.setting(result), 125), fontsize=9.5, color=png.SOFT, **style)
    first, rest = " · ".join(phrases[:2]), " · ".join(phrases[2:])
    figure.text(0.03, 0.893, shorten(first, 120), fontsize=9.5, fontweight="bold", color=png.INK, **style)
    figure.text(0.03, 0.860, shorten(rest, 130), fontsize=9, color=png.SOFT, **style)
    return figure


def _steps(axes: Axes, before: list[Any], after: list[Any]) -> None:
    places = range(len(before))
    axes.bar(places, before, width=0.86, color=BEFORE, label="before", zorder=2)
    axes.bar(places, after, width=0.86, color=AFTER, label="after", zorder=3)
    axes.set_ylim(0, (max((*before, *after), default=1) or 1) * 1.12)
    axes.tick_params(length=0, labelsize=8, labelcolor=png.SOFT)
    axes.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


headline.VOICES["prune"] = headline.Voice(conditions, totals, lines)
png.CHARTS["prune"] = chart
columns.MAIN_COLUMNS["prune"] = "bytes_after"
columns.SUMMARIES["prune"] = summary
columns.COLUMNS.update(
    {
        "channels_before": Column("channels", format_count, 90),
        "channels_after": Column("→ channels", format_count, 91),
        "params_before": Column("params", format_count, 60),
        "params_after": Column("→ params", format_count, 61),
        "bytes_before": Column("peak", format_bytes, 94, modelled=True),
        "bytes_after": Column("→ peak", format_bytes, 95, modelled=True),
    }
)
