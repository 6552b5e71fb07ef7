"""What the reports of `memfit quantize` and `memfit prune` share: the metric's words, and their picture's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Result
from memfit.report import headline, png
from memfit.report.columns import shorten
from memfit.units import format_limit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#d5dde4", "#4a7fa8"

_NAMED = 18
"""Layers whose names stand below the picture, about."""


def metric_words(name: str, *values: float | None) -> str | None:
    """Name a metric with its values, one after another; None where there is none.

    >>> metric_words("accuracy", 0.991, 0.989), metric_words("sqnr", None, 29.94)
    ('accuracy 99.10% → 98.90%', 'SQNR 29.9 dB')
    """
    known = [_figure(name, value) for value in values if value is not None]
    return f"{'SQNR' if name == 'sqnr' else name} {' → '.join(known)}" if known else None


def _figure(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.1f} dB" if name == "sqnr" else f"{value:.4g}"


def panels(upper: float) -> tuple[Figure, Axes, Axes]:
    """Make a figure of two panels, one above the other, whose share of the height is `upper` of 0.64."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.2), dpi=160, facecolor="white")
    above = figure.add_axes((0.085, 0.78 - upper, 0.885, upper))
    below = figure.add_axes((0.085, 0.13, 0.885, 0.58 - upper), sharex=above)
    above.tick_params(labelbottom=False)
    return figure, above, below


def write_head(figure: Figure, result: Result, bold: str, rest: str) -> None:
    """Write what was compressed, how, and what came of it."""
    words: tuple[tuple[float, str, int, dict[str, Any]], ...] = (
        (0.972, result.source, 70, {"fontsize": 13, "fontweight": "bold", "color": png.INK}),
        (0.929, headline.setting(result), 125, {"fontsize": 9.5, "color": png.SOFT}),
        (0.893, bold, 120, {"fontsize": 9.5, "fontweight": "bold", "color": png.INK}),
        (0.860, rest, 140, {"fontsize": 8.5, "color": png.SOFT}),
    )
    for height, text, most, style in words:
        figure.text(0.03, height, shorten(text, most), va="top", parse_math=False, **style)


def draw_peaks(axes: Axes, result: Result) -> None:
    """Draw what each layer needs before and after, the budget as a line, and names below; the peaks' in red."""
    rows, totals = result.rows, result.totals
    largest = max((row[key] or 0 for row in rows for key in ("bytes_before", "bytes_after")), default=1) or 1
    unit, factor = ("MiB", 1 << 20) if largest >= 10 << 20 else ("KiB", 1 << 10) if largest >= 1 << 10 else ("B", 1)
    before, after = ([(row[f"bytes_{when}"] or 0) / factor for row in rows] for when in ("before", "after"))
    draw_bars(axes, before, after)
    explain(axes)
    limit = totals["budget_bytes"]
    if limit is not None and totals.get("peak_at") is not None:
        axes.axhline(limit / factor, color=png.PEAK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=4)
        axes.annotate(
            f"budget {format_limit(limit)} ", (1.0, limit / factor), xycoords=axes.get_yaxis_transform(),
            xytext=(0, 2), textcoords="offset points", color=png.PEAK, fontsize=8, ha="right", va="bottom", zorder=5,
        )  # fmt: skip
        axes.set_ylim(0, max(largest, limit) / factor * 1.12)
    axes.set_ylabel(f"{result.memory}, {unit}", fontsize=8.5, color=png.SOFT)
    _name_layers(axes, rows, {totals.get("baseline_peak_at"), totals.get("peak_at")})


def draw_bars(axes: Axes, before: list[Any], after: list[Any]) -> None:
    """Draw a wide bar for what was and a narrow one for what is, layer by layer."""
    places = range(len(before))
    axes.bar(places, before, width=0.86, color=BEFORE, label="before", zorder=2)
    axes.bar(places, after, width=0.5, color=AFTER, label="after", zorder=3)
    axes.set_ylim(0, (max((*before, *after), default=1) or 1) * 1.12)
    plain(axes)


def plain(axes: Axes) -> None:
    """Take away what says nothing."""
    axes.tick_params(length=0, labelsize=8, labelcolor=png.SOFT)
    axes.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def explain(axes: Axes) -> None:
    """Put the legend above, on the right."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)


def _name_layers(axes: Axes, rows: tuple[dict[str, Any], ...], marked: set[Any]) -> None:
    """Name some layers below, evenly, and the marked ones in the places of their neighbours."""
    names = [str(row["name"]) for row in rows]
    step = max(len(rows) // _NAMED, 1)
    peaks = [place for place, name in enumerate(names) if name in marked]
    evenly = [place for place in range(0, len(rows), step) if all(abs(place - peak) >= step for peak in peaks)]
    places = sorted([*evenly, *peaks])
    axes.set_xticks(places)
    axes.set_xticklabels(
        [shorten(names[place], 22) for place in places], rotation=40, ha="right", fontsize=6.5, color=png.SOFT,
        parse_math=False,
    )  # fmt: skip
    for place, label in zip(places, axes.get_xticklabels(), strict=True):
        if place in peaks:
            label.set(color=png.PEAK, fontweight="bold")
    axes.set_xlim(-0.7, max(len(rows), 1) - 0.3)
