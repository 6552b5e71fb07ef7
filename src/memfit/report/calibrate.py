"""How `memfit calibrate` speaks, its columns, and its picture of a network's ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Calibration, Result
from memfit.report import columns, headline, png
from memfit.report.columns import Column, Row, shorten
from memfit.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _value(value: Any) -> str:
    return f"{value:.4g}"


COLUMNS = {
    "min": Column("min", _value, 96),
    "max": Column("max", _value, 97),
    "scale": Column("scale", _value, 41),
    "zero_point": Column("zero point", str, 38),
    "observed_min": Column("seen min", _value, 35),
    "observed_max": Column("seen max", _value, 36),
    "p1": Column("1 %", _value, 26),
    "p50": Column("median", _value, 28),
    "p99": Column("99 %", _value, 27),
    "samples": Column("samples", format_count, 12),
}
"""Columns that only calibrations have, in their order."""

# -- words --------------------------------------------------------------------------------------------------------


def conditions(result: Result) -> list[str]:
    """Say what the ranges are of."""
    s = result.settings if isinstance(result, Calibration) else {}
    method = f"{s['method']} {s['percentile']:g} %" if s.get("percentile") else str(s.get("method", ""))
    parts = [f"{s['data']} data" if s.get("data") else "", method, f"{s['bits']} bits" if "bits" in s else ""]
    parts += [word for key, word in (("symmetric", "symmetric"), ("per_channel", "per channel too")) if s.get(key)]
    return parts


def totals(result: Result) -> list[str]:
    """Say how much was looked at."""
    t = result.totals
    return [
        f"{format_count(t['samples'])} sample{'s' if t['samples'] != 1 else ''}",
        f"{format_count(t['activations'])} values looked at, none kept",
    ]


# -- pictures -----------------------------------------------------------------------------------------------------

_INCHES, _ROW, _ABOVE, _BELOW, _EDGE, _NAME = 9.6, 0.27, 0.86, 1.2, 0.3, 38
_MIDDLE = "#2f4858"
_APART = 40.0
"""From this ratio of the widest range to the median one on, the axis is logarithmic away from zero."""


def chart(result: Result) -> Figure:
    """Draw each layer's range as a bar, with what was seen as a line and the middle 98 % of it set apart."""
    from matplotlib.figure import Figure

    drawn = [row for row in result.rows if row.get("min") is not None and row.get("observed_min") is not None]
    remark = None
    if len(drawn) > png.MOST:
        kept = sorted(drawn, key=lambda row: -_reach(row))[: png.MOST]
        chosen = {id(row) for row in kept}
        remark = f"the widest {png.MOST} of {format_count(len(drawn))} ranges, in the order of the rows"
        drawn = [row for row in drawn if id(row) in chosen]
    above = _ABOVE + (0.2 if remark else 0)
    height = above + _BELOW + _ROW * max(len(drawn), 2)
    figure = Figure(figsize=(_INCHES, height), dpi=160, facecolor="white")
    names = [shorten(str(row.get("name", "")), _NAME) for row in drawn]
    left = _EDGE + 0.05 + 0.078 * max(map(len, names), default=0)
    width = _INCHES - left - _EDGE
    axes = figure.add_axes((left / _INCHES, _BELOW / height, width / _INCHES, 1 - (above + _BELOW) / height))
    if drawn:
        _draw(axes, drawn, names)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no rows", color=png.SOFT, ha="center", va="center", transform=axes.transAxes)
    _words(figure, result, remark)
    return figure


def _reach(row: Row) -> float:
    return max(abs(float(row["observed_min"])), abs(float(row["observed_max"])))


def _draw(axes: Axes, drawn: list[Row], names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    places = range(len(drawn))
    reaches = sorted(_reach(row) for row in drawn)
    middle = reaches[len(reaches) // 2] or reaches[-1] or 1.0
    far = reaches[-1] > _APART * middle
    low = [float(row["min"]) for row in drawn]
    span = [float(row["max"]) - float(row["min"]) for row in drawn]
    widest = max(places, key=lambda place: _reach(drawn[place]))
    colours = [png.PEAK if place == widest else png.BAR for place in places]
    axes.barh(places, span, left=low, height=0.72, color=colours, alpha=0.55, zorder=2)
    for place, row in enumerate(drawn):
        seen = (float(row["observed_min"]), float(row["observed_max"]))
        axes.plot(seen, (place, place), color=_MIDDLE, linewidth=0.8, zorder=3)
        for end in seen:
            axes.plot((end,), (place,), marker="|", markersize=5, color=_MIDDLE, zorder=3)
        axes.plot((float(row["p1"]), float(row["p99"])), (place, place), color=_MIDDLE, linewidth=3.2, zorder=4)
        axes.plot((float(row["p50"]),), (place,), marker="o", markersize=3.6, color="white", zorder=5)
        axes.plot((float(row["p50"]),), (place,), marker="o", markersize=2.2, color=_MIDDLE, zorder=6)
    axes.axvline(0, color=png.SOFT, linewidth=0.8, zorder=1)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.margins(x=0.03)
    axes.set_yticks(list(places))
    axes.set_yticklabels(names, fontsize=8.5, color=png.INK, parse_math=False)
    axes.get_yticklabels()[widest].set(color=png.PEAK, fontweight="bold")
    if far:
        least = middle / 4
        axes.set_xscale("symlog", linthresh=least, linscale=1.2)
        decades = range(math.ceil(math.log10(3 * least)), math.floor(math.log10(reaches[-1])) + 1)
        every = -(-len(decades) // 4)
        ends = [10.0**power for power in decades[::-1][::every]]
        sides = [-end for end in ends if any(end <= -float(row["observed_min"]) for row in drawn)]
        axes.set_xticks(
            [*sides, 0.0, *(end for end in ends if any(end <= float(row["observed_max"]) for row in drawn))]
        )
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.tick_params(axis="x", length=0, labelsize=8, labelcolor=png.SOFT, pad=4)
    axes.tick_params(axis="y", length=0, pad=5)
    axes.grid(axis="x", color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(
        "value: calibrated range (bar), least to largest seen (thin line), 1 % to 99 % (thick line), median (dot)"
        + (" · logarithmic away from zero" if far else ""),
        fontsize=8,
        color=png.SOFT,
        labelpad=5,
    )


def _words(figure: Figure, result: Result, remark: str | None) -> None:
    height = figure.get_figheight()

    def line(inches_from_top: float, text: str, **style: Any) -> None:
        figure.text(_EDGE / _INCHES, 1 - inches_from_top / height, text, va="top", parse_math=False, **style)

    line(0.2, shorten(result.source, 80), fontsize=13, fontweight="bold", color=png.INK)
    line(0.5, shorten(headline.setting(result), 120), fontsize=9.5, color=png.SOFT)
    if remark:
        line(0.7, remark, fontsize=9.5, color=png.SOFT)
    line(height - 0.52, shorten(" · ".join(totals(result)), 120), fontsize=9.5, fontweight="bold", color=png.INK)
    line(height - 0.31, shorten(" · ".join(result.notes), 130), fontsize=9, color=png.SOFT)


headline.VOICES["calibrate"] = headline.Voice(conditions, totals)
png.CHARTS["calibrate"] = chart
columns.MAIN_COLUMNS["calibrate"] = "max"
columns.COLUMNS.update(COLUMNS)
