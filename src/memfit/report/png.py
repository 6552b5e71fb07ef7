"""A bar chart: one bar per row of the column that the report is about, the peak set apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from memfit.analysis.result import Result
from memfit.errors import MissingExtra
from memfit.report import headline
from memfit.report.columns import cell, figure, label, peak_row, shorten, values
from memfit.units import format_count
from memfit.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 80
"""More bars than this cannot be read: then the largest are drawn, in the order of the rows."""

INK, SOFT, GRID = "#1f2933", "#66727f", "#e4e8ec"
BAR, PEAK = "#8fb1cc", "#d1495b"
_INCHES, _ROW, _ABOVE, _BELOW, _EDGE = 9.6, 0.27, 0.86, 1.08, 0.3
_LABEL = 1.25
"""Inches to the right of the longest bar, for its figure."""
_NAME = 38
_UNITS = (("GiB", 1 << 30, 10), ("MiB", 1 << 20, 10), ("KiB", 1 << 10, 1), ("B", 1, 0))
"""Unit, its bytes, and from how many of them on it is used: as in the figures beside the bars."""


def render(result: Result, stream: IO[bytes]) -> None:
    """Draw the command's own chart, or else bars.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise MissingExtra(
            "a .png needs matplotlib, which is not installed",
            where="-o",
            received="no package matplotlib",
            todo="pip install 'memfit[plots]'",
        ) from None

    chart = CHARTS.get(result.command, bars)(result)
    FigureCanvasAgg(chart)
    chart.savefig(stream, format="png", metadata={"Software": f"memfit {__version__}"})


def bars(result: Result) -> Figure:
    """Draw one bar per row."""
    from matplotlib.figure import Figure

    key = figure(result)
    drawn = _drawn(result, key)
    remark = _remark(result, len(drawn))
    above = _ABOVE + (0.2 if remark else 0)
    height = above + _BELOW + _ROW * max(len(drawn), 2)
    chart = Figure(figsize=(_INCHES, height), dpi=160, facecolor="white")
    longest = max((len(_name(result, index)) for index in drawn), default=0)
    left = _EDGE + 0.05 + 0.078 * longest
    width = _INCHES - left - _EDGE
    axes = chart.add_axes((left / _INCHES, _BELOW / height, width / _INCHES, 1 - (above + _BELOW) / height))
    if key is None or not drawn:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no rows", color=SOFT, ha="center", va="center", transform=axes.transAxes)
    else:
        _draw(axes, result, key, drawn, stretch=width / (width - _LABEL))
    _write(chart, result, key, remark)
    return chart


CHARTS: dict[str, Callable[[Result], Figure]] = {}
"""Command → its chart; bars for every other."""


def _drawn(result: Result, key: str | None) -> list[int]:
    count = len(result.rows)
    if key is None or count <= MOST:
        return list(range(count))
    sizes = values(result, key)
    return sorted(sorted(range(count), key=lambda index: -sizes[index])[:MOST])


def _name(result: Result, index: int) -> str:
    return shorten(str(result.rows[index].get("name", index + 1)), _NAME)


def _draw(axes: Axes, result: Result, key: str, drawn: list[int], *, stretch: float) -> None:
    from matplotlib.ticker import MaxNLocator

    every = values(result, key)
    sizes = [every[index] for index in drawn]
    unit, factor = _unit(key, max(sizes))
    lengths = [size / factor for size in sizes]
    places = range(len(drawn))
    marked = _marked(result, key, drawn, sizes)
    colours = [PEAK if place == marked else BAR for place in places]
    axes.barh(places, lengths, height=0.72, color=colours, zorder=2)
    reach = max(lengths) or 1.0
    axes.set_xlim(0, reach * stretch)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    for place, index in enumerate(drawn):
        strong = place == marked
        text = cell(key, result.rows[index].get(key))
        axes.text(
            lengths[place] + reach * 0.01,
            place,
            f"peak {text}" if strong and key == "peak_bytes" else text,
            color=PEAK if strong else SOFT,
            fontweight="bold" if strong else "normal",
            fontsize=8,
            va="center",
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
        )
    if marked is not None:
        axes.axvline(lengths[marked], color=PEAK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(list(places))
    axes.set_yticklabels([_name(result, index) for index in drawn], fontsize=8.5, color=INK, parse_math=False)
    if marked is not None:
        axes.get_yticklabels()[marked].set(color=PEAK, fontweight="bold")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.tick_params(axis="x", length=0, labelsize=8, labelcolor=SOFT, pad=4)
    axes.tick_params(axis="y", length=0, pad=5)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    unit_text = f"{label(result, key)}, {unit}" if unit else label(result, key)
    axes.set_xlabel(unit_text, fontsize=8.5, color=SOFT, labelpad=5, parse_math=False)


def _marked(result: Result, key: str, drawn: list[int], sizes: list[float]) -> int | None:
    """Choose the bar to set apart: the network's peak, or for any other figure the largest."""
    if key == "peak_bytes" and result.totals.get("peak_at") is not None:
        row = peak_row(result)
        return drawn.index(row) if row in drawn else None
    return sizes.index(max(sizes)) if max(sizes) > 0 else None


def _unit(key: str, largest: float) -> tuple[str, int]:
    if not key.endswith("bytes"):
        return "", 1
    return next((unit, factor) for unit, factor, least in _UNITS if largest >= least * factor)


def _remark(result: Result, count: int) -> str | None:
    """Say which rows are drawn where not all are."""
    whole = len(result.rows) + (result.selection.hidden_rows if result.selection else 0)
    if count == whole:
        return None
    remark = f"{format_count(count)} of {format_count(whole)} rows"
    return f"the largest {remark}, in the order of the rows" if count < len(result.rows) else remark


def _write(chart: Figure, result: Result, key: str | None, remark: str | None) -> None:
    """Put the words around the bars."""
    height = chart.get_figheight()

    def line(inches_from_top: float, text: str, **style: Any) -> None:
        chart.text(_EDGE / _INCHES, 1 - inches_from_top / height, text, va="top", parse_math=False, **style)

    what = [label(result, key)] if key else []
    line(0.2, shorten(result.source, 80), fontsize=13, fontweight="bold", color=INK)
    line(0.5, shorten(" · ".join([*what, headline.setting(result)]), 120), fontsize=9.5, color=SOFT)
    if remark:
        line(0.7, remark, fontsize=9.5, color=SOFT)
    phrases = headline.totals(result)
    if phrases:
        line(height - 0.52, shorten(phrases[0], 100), fontsize=9.5, fontweight="bold", color=INK)
        line(height - 0.31, shorten(" · ".join(phrases[1:]), 130), fontsize=9, color=SOFT)
