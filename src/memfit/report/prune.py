"""How `memfit prune` speaks, and its picture: channels of every layer and the peak, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Pruning, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column
from memfit.report.compressed import draw_bars, draw_peaks, metric_words, panels, write_head
from memfit.units import format_bytes, format_count, format_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMITS = {
    "peak": ("budget_bytes", "--budget"),
    "flash": ("max_flash_bytes", "--max-flash"),
    "macs": ("max_macs", "--max-macs"),
    "latency": ("max_latency_ms", "--max-latency"),
}
"""Limits by their names in `binding`: where the totals have them, and the option that sets them."""


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
    name = result.settings["metric"] if isinstance(result, Pruning) else "metric"
    metric = metric_words(name, t["baseline_metric"], t["untuned_metric"], t["metric"])
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


def summary(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Give the whole network's line."""
    t = result.totals
    peaks = {"bytes_before": t["baseline_peak_bytes"], "bytes_after": t["peak_bytes"]}
    return [("whole", {"params_before": t["baseline_params"], "params_after": t["params"], **peaks})]


def chart(result: Result) -> Figure:
    """Draw what every layer has and needs, before and after."""
    figure, above, below = panels(0.28)
    draw_bars(above, *([row[f"channels_{when}"] for row in result.rows] for when in ("before", "after")))
    above.set_ylabel("channels", fontsize=8.5, color=png.SOFT)
    draw_peaks(below, result)
    phrases = totals(result)
    write_head(figure, result, " · ".join(phrases[:2]), " · ".join(phrases[2:]))
    return figure


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
