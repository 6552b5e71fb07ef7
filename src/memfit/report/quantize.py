"""How `memfit quantize` speaks, and its picture: bits of every layer, and the peak before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Quantization, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column
from memfit.report.compressed import AFTER, draw_peaks, explain, metric_words, panels, plain, write_head
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
    phrases = [
        f"{_what(result)} ({result.memory}) {format_bytes(t['baseline_peak_bytes'])} → {format_bytes(t['peak_bytes'])}"
        f", budget {format_limit(t['budget_bytes'])}"
    ]
    name = result.settings["metric"] if isinstance(result, Quantization) else "metric"
    metric = metric_words(name, t["baseline_metric"], t["metric"])
    return [*phrases, metric] if metric else phrases


def _what(result: Result) -> str:
    """Name what has a budget: a peak, or with a model of training all that is kept."""
    return "peak" if result.totals.get("peak_at") is not None else "kept"


def lines(result: Result) -> list[str]:
    """Set the ways to choose side by side."""
    if not isinstance(result, Quantization):
        return []
    found = []
    for entry in result.strategies:
        words = _reached(result, result.settings["metric"], entry)
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


def _reached(result: Result, name: str, entry: dict[str, Any]) -> list[str]:
    """Say what one way to choose reaches."""
    size = f"{_what(result)} {format_bytes(entry['peak_bytes'])}" + ("" if entry["fits"] else " (does not fit)")
    metric = metric_words(name, entry["metric"])
    return [size, metric] if metric else [size]


def summary(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Give the whole network's line."""
    t = result.totals
    return [("whole", {"bytes_before": t["baseline_peak_bytes"], "bytes_after": t["peak_bytes"]})]


# -- pictures -----------------------------------------------------------------------------------------------------

_WEIGHTS = "#c98b2b"


def chart(result: Result) -> Figure:
    """Draw the bits of every layer as steps, and what each needs before and after, with the budget."""
    figure, above, below = panels(0.24)
    _bits(above, result.rows)
    draw_peaks(below, result)
    rest = ""
    if isinstance(result, Quantization):
        name = result.settings["metric"]
        rest = " · ".join(f"{way['name']}: {', '.join(_reached(result, name, way))}" for way in result.strategies)
    write_head(figure, result, " · ".join(totals(result)), rest)
    return figure


def _bits(axes: Axes, rows: tuple[dict[str, Any], ...]) -> None:
    edges = [place - 0.5 for place in range(len(rows) + 1)]
    shown = [row.get("bits") or 0 for row in rows]
    axes.stairs(shown, edges, color=AFTER, linewidth=1.6, label="output", zorder=3)
    axes.stairs(shown, edges, fill=True, color=AFTER, alpha=0.15, zorder=2)
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
    plain(axes)
    explain(axes)


headline.VOICES["quantize"] = headline.Voice(conditions, totals, lines)
png.CHARTS["quantize"] = chart
columns.MAIN_COLUMNS["quantize"] = "bytes_after"
columns.SUMMARIES["quantize"] = summary
columns.COLUMNS.setdefault("bits", Column("bits", str, 93))
columns.COLUMNS.update({"weight_bits": Column("weight bits", str, 88)})
