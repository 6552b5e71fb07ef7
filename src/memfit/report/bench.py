"""How `memfit bench` speaks, its columns and the lines below them, and its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Benchmark, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column, Row, shorten
from memfit.units import format_bytes, format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _ms(value: Any) -> str:
    return f"{value:,.3f}"


def _rate(value: Any) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _percent(value: Any) -> str:
    return f"{value:.1%}"


def _marked(word: str) -> Any:
    return lambda value: word if value else ""


COLUMNS = {
    "batch": Column("batch", format_count, 12),
    "calls": Column("calls", format_count, 79),
    "mean_ms": Column("mean ms", _ms, 99),
    "std_ms": Column("std", _ms, 88),
    "min_ms": Column("min", _ms, 81),
    "p50_ms": Column("p50", _ms, 86),
    "p95_ms": Column("p95", _ms, 85),
    "share": Column("share", _percent, 84),
    "fps": Column("FPS", _rate, 83),
    "per_sample_ms": Column("ms a sample", _ms, 76),
    "gmacs_per_s": Column("GMAC/s", _rate, 82),
    "before_ms": Column("p50 before", _ms, 93),
    "ratio": Column("ratio", lambda value: f"{value:.3f}", 95),
    "change": Column("change", str, 97, right=False),
    "unsteady": Column("spread", _marked("wide"), 90, right=False, mark=True),
    "estimated": Column("part", _marked("estimated"), 82, right=False, mark=True),
}
"""Columns that only benchmarks have, in their order."""

_BATCHES = "batch"


# -- words --------------------------------------------------------------------------------------------------------


def conditions(result: Result) -> list[str]:
    """Say how the network was run."""
    s = result.settings if isinstance(result, Benchmark) else {}
    parts = [result.device, "whole model" if result.per in ("model", _BATCHES) else f"per {result.per}"]
    if s.get("mode"):
        parts[-1] += " in place" if s["mode"] == "in-place" else f" {s['mode']}"
    parts += [word for key, word in (("channels_last", "channels last"), ("compile", "compiled")) if s.get(key)]
    if result.per == _BATCHES:
        parts.append(f"batch {', '.join(str(row.get('batch')) for row in result.rows)}")
    if "warmup" in s:
        parts.append(f"{s['warmup']} + {format_count(s['iterations'])} iterations")
    return parts


def totals(result: Result) -> list[str]:
    """Give the whole model's time first, then what follows from it."""
    t = result.totals
    if result.per == _BATCHES:
        phrases = [f"most throughput {_rate(t['fps'])} FPS at batch {t['best_batch']}"] if "best_batch" in t else []
    else:
        phrases = [f"whole model {_ms(t['whole_ms'])} ms"]
        if t.get("whole_std_ms") is not None:
            phrases[0] += f" ± {_ms(t['whole_std_ms'])}"
        if t.get("whole_p50_ms") is not None:
            phrases.append(f"median {_ms(t['whole_p50_ms'])} ms")
        phrases.append(f"{_rate(t['fps'])} FPS")
        if t.get("gmacs_per_s"):
            phrases.append(f"{_rate(t['gmacs_per_s'])} GMAC/s")
        if t.get("unsteady"):
            phrases.append("wide spread")
    return phrases + _memory(t)


def _memory(t: Row) -> list[str]:
    if t.get("measured_peak_bytes") is None:
        return []
    error = "" if t["prediction_error"] is None else f", off by {t['prediction_error']:+.2%}"
    peak = format_bytes(t["measured_peak_bytes"])
    phrases = [f"peak memory {peak} measured, {format_bytes(t['predicted_peak_bytes'])} predicted{error}"]
    if t.get("measured_reserved_bytes") is not None:
        measured, predicted = (format_bytes(t[f"{which}_reserved_bytes"]) for which in ("measured", "predicted"))
        phrases.append(f"reserved {measured} measured, {predicted} predicted")
    if t.get("driver_used_bytes") is not None:
        phrases.append(f"in use on the device {format_bytes(t['driver_used_bytes'])}")
    return phrases


def lines(result: Result) -> list[str]:
    """Say what changed, where it is compared with an earlier run."""
    found = result.comparison if isinstance(result, Benchmark) else None
    if not found:
        return []
    sentences = []
    whole = found.get("whole")
    if whole:
        sentences.append(
            f"against {found['file']}: whole model {_ms(whole['before_ms'])} → {_ms(whole['now_ms'])} ms, "
            f"ratio {whole['ratio']:.3f}, {whole['change']}"
        )
    counts = {
        kind: sum(row["change"] == kind for row in found["rows"]) for kind in ("faster", "slower", "unsure", "same")
    }
    if len(found["rows"]) > 1:
        head = "" if whole else f"against {found['file']}: "
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        sentences.append(f"{head}of {len(found['rows'])} rows {told}")
    for key, words in (("only_now", "only in this run"), ("only_before", f"only in {found['file']}")):
        if found[key]:
            names = ", ".join(found[key][:5]) + (", …" if len(found[key]) > 5 else "")
            rows = "row" if len(found[key]) == 1 else "rows"
            sentences.append(f"{words}: {format_count(len(found[key]))} {rows} ({names})")
    return sentences


def summary(result: Result) -> list[tuple[str, Row]]:
    """Give the lines below the rows: their sum, what it leaves of the whole, and the whole timed alone."""
    t = result.totals
    if t.get("whole_ms") is None or result.per == "model":
        return []
    share = {key: t[key] / t["whole_ms"] for key in ("layers_ms", "unattributed_ms")}
    whole = {"mean_ms": t["whole_ms"], "share": 1.0, "fps": t["fps"], "gmacs_per_s": t.get("gmacs_per_s")}
    whole |= {key: t.get(f"whole_{key}") for key in ("std_ms", "min_ms", "p50_ms", "p95_ms")}
    whole |= {"macs": t.get("macs"), "unsteady": t.get("unsteady")}
    return [
        (f"all {result.per}s", {"mean_ms": t["layers_ms"], "share": share["layers_ms"]}),
        ("unattributed", {"mean_ms": t["unattributed_ms"], "share": share["unattributed_ms"]}),
        ("whole model", whole),
    ]


# -- pictures -----------------------------------------------------------------------------------------------------

_INCHES, _ROW, _ABOVE, _BELOW, _EDGE, _NAME = 9.6, 0.27, 0.86, 1.08, 0.3, 38
_WHISKER = "#2f4858"


def chart(result: Result) -> Figure:
    """Draw a bar for each row's mean with a line from its median to its 95th percentile, or a sweep's two curves."""
    return _curves(result) if result.per == _BATCHES and len(result.rows) > 1 else _bars(result)


def _bars(result: Result) -> Figure:
    from matplotlib.figure import Figure

    drawn = [row for row in result.rows if isinstance(row.get("mean_ms"), float)]
    remark = None
    if len(drawn) > png.MOST:
        kept = sorted(drawn, key=lambda row: -float(row["mean_ms"]))[: png.MOST]
        chosen = {id(row) for row in kept}
        remark = f"the slowest {png.MOST} of {format_count(len(drawn))} rows, in the order of the rows"
        drawn = [row for row in drawn if id(row) in chosen]
    above = _ABOVE + (0.2 if remark else 0)
    height = above + _BELOW + _ROW * max(len(drawn), 2)
    figure = Figure(figsize=(_INCHES, height), dpi=160, facecolor="white")
    names = [shorten(str(row.get("name", "")), _NAME) for row in drawn]
    left = _EDGE + 0.05 + 0.078 * max(map(len, names), default=0)
    width = _INCHES - left - _EDGE
    axes = figure.add_axes((left / _INCHES, _BELOW / height, width / _INCHES, 1 - (above + _BELOW) / height))
    if drawn:
        _draw_bars(axes, drawn, names)
        axes.set_xlabel(
            "milliseconds in one iteration: mean (bar), median (dot) to 95th percentile (line)",
            fontsize=8.5,
            color=png.SOFT,
            labelpad=5,
        )
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no rows", color=png.SOFT, ha="center", va="center", transform=axes.transAxes)
    _words(figure, result, remark)
    return figure


def _draw_bars(axes: Axes, drawn: list[Row], names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    means = [float(row["mean_ms"]) for row in drawn]
    places = range(len(drawn))
    slowest = means.index(max(means))
    axes.barh(places, means, height=0.72, color=[png.PEAK if i == slowest else png.BAR for i in places], zorder=2)
    # A stray outlier must not flatten every bar: the axis ends a little after the longest mean or median.
    ends = [max(mean, row.get("p50_ms") or 0.0) for mean, row in zip(means, drawn, strict=True)]
    whiskers = [min(row.get("p95_ms") or end, 1.6 * max(ends)) for end, row in zip(ends, drawn, strict=True)]
    reach = max(*ends, *whiskers)
    for place, row in enumerate(drawn):
        strong = place == slowest
        p50, p95 = row.get("p50_ms"), row.get("p95_ms")
        if p50 is not None and p95 is not None:
            axes.plot([p50, whiskers[place]], [place, place], color=_WHISKER, linewidth=1.0, zorder=3)
            axes.plot([p50], [place], marker="o", markersize=2.6, color=_WHISKER, zorder=3)
            cut = p95 > whiskers[place]
            axes.plot([whiskers[place]], [place], marker=">" if cut else "|", markersize=4, color=_WHISKER, zorder=3)
        share = f"  {row['share']:.1%}" if row.get("share") is not None else ""
        axes.text(
            max(ends[place], whiskers[place]) + reach * 0.012,
            place,
            f"{_ms(means[place])} ms{share}",
            color=png.PEAK if strong else png.SOFT,
            fontweight="bold" if strong else "normal",
            fontsize=8,
            va="center",
            zorder=4,
        )
    axes.set_xlim(0, reach * 1.2)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_yticks(list(places))
    axes.set_yticklabels(names, fontsize=8.5, color=png.INK, parse_math=False)
    axes.get_yticklabels()[slowest].set(color=png.PEAK, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    _plain(axes, "x")
    axes.tick_params(axis="y", length=0, pad=5)


def _curves(result: Result) -> Figure:
    """Draw latency and throughput against the batch size, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES, 4.6), dpi=160, facecolor="white")
    rows = sorted(result.rows, key=lambda row: int(row["batch"]))
    batches = [int(row["batch"]) for row in rows]
    latency = figure.add_axes((0.075, 0.225, 0.4, 0.5))
    throughput = figure.add_axes((0.565, 0.225, 0.4, 0.5))
    means = [float(row["mean_ms"]) for row in rows]
    low, high = ([float(row[key]) for row in rows] for key in ("p50_ms", "p95_ms"))
    latency.fill_between(batches, low, high, color=png.BAR, alpha=0.45, linewidth=0, zorder=2)
    rates = [float(row["fps"]) for row in rows]
    best = rates.index(max(rates))
    panels: list[tuple[Axes, list[float], str, int | None]] = [
        (latency, means, "milliseconds in one iteration: mean, median to p95 shaded", None),
        (throughput, rates, "samples a second", best),
    ]
    for axes, values, words, strong in panels:
        axes.plot(batches, values, color=_WHISKER, linewidth=1.6, marker="o", markersize=4.5, zorder=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches)
        axes.set_xticklabels([str(b) for b in batches])
        axes.minorticks_off()
        axes.margins(x=0.09)
        top = max(*values, *(high if axes is latency else ()))
        axes.set_ylim(0, top * 1.2)
        for place, value in enumerate(values):
            axes.annotate(
                f"{value:,.1f}",
                (batches[place], value),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=png.PEAK if place == strong else png.SOFT,
                fontweight="bold" if place == strong else "normal",
                zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )
        if strong is not None:
            axes.plot([batches[strong]], [values[strong]], marker="o", markersize=6.5, color=png.PEAK, zorder=4)
        axes.set_title(words, fontsize=9, color=png.INK, loc="left", pad=8)
        axes.set_xlabel("batch size", fontsize=8.5, color=png.SOFT, labelpad=4)
        _plain(axes, "y")
        axes.tick_params(axis="x", length=0, labelsize=8, labelcolor=png.SOFT, pad=4)
    _words(figure, result, None)
    return figure


def _plain(axes: Axes, along: Any) -> None:
    axes.tick_params(axis=along, length=0, labelsize=8, labelcolor=png.SOFT, pad=4)
    axes.grid(axis=along, color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _words(figure: Figure, result: Result, remark: str | None) -> None:
    height = figure.get_figheight()

    def line(inches_from_top: float, text: str, **style: Any) -> None:
        figure.text(_EDGE / _INCHES, 1 - inches_from_top / height, text, va="top", parse_math=False, **style)

    line(0.2, shorten(result.source, 80), fontsize=13, fontweight="bold", color=png.INK)
    line(0.5, shorten(headline.setting(result), 120), fontsize=9.5, color=png.SOFT)
    if remark:
        line(0.7, remark, fontsize=9.5, color=png.SOFT)
    phrases = totals(result)
    around = result.environment
    machine = around.get("gpu") or around.get("cpu")
    details = [str(machine)] if machine else []
    details += [f"{key} {around[key]}" for key in ("threads", "torch") if around.get(key) is not None]
    if phrases:
        line(height - 0.52, shorten(" · ".join(phrases), 120), fontsize=9.5, fontweight="bold", color=png.INK)
    line(height - 0.31, shorten(" · ".join(details), 130), fontsize=9, color=png.SOFT)


headline.VOICES["bench"] = headline.Voice(conditions, totals, lines)
png.CHARTS["bench"] = chart
columns.MAIN_COLUMNS["bench"] = "mean_ms"
columns.SUMMARIES["bench"] = summary
columns.COLUMNS.update(COLUMNS)
