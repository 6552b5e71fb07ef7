"""How `memfit sensitivity` speaks, its columns, and its picture: each layer's figure in network order, by role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Result, Sensitivity
from memfit.report import columns, headline, png
from memfit.report.columns import Column, Row, shorten
from memfit.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _decibels(value: Any) -> str:
    return f"{value:.1f} dB"


def _number(value: Any) -> str:
    return f"{value:.4g}"


def _difference(value: Any) -> str:
    return f"{value:.3g}"


COLUMNS = {
    "role": Column("role", str, 99, right=False),
    "sqnr_db": Column("SQNR", _decibels, 97),
    "exact_sqnr_db": Column("measured", _decibels, 91),
    "metric": Column("metric", _number, 98),
    "drop": Column("drop", _difference, 94),
    "float_sqnr_db": Column("SQNR, float alone", _decibels, 60),
    "float_metric": Column("metric, float alone", _number, 90),
    "float_drop": Column("drop, float alone", _difference, 61),
    "dip": Column("dip", lambda dips: "dip" if dips else "", 93, right=False, mark=True),
}
"""Columns that only sensitivities have, in their order."""

# -- words --------------------------------------------------------------------------------------------------------

_DIRECTIONS = {
    "quantize": "one layer quantized",
    "float": "one layer left float",
    "both": "one layer quantized, and one left float",
}


def conditions(result: Result) -> list[str]:
    """Say what was measured."""
    s = result.settings if isinstance(result, Sensitivity) else {}
    if not s:
        return []
    metric = "SQNR" if _is_sqnr(result) else str(s["metric"])
    parts = [_DIRECTIONS[s["direction"]], f"{s['bits']} bits", metric, f"{s['data']} data"]
    return [*parts, "estimated" if s["method"] == "taylor" else "", "outputs per channel" if s["per_channel"] else ""]


def totals(result: Result) -> list[str]:
    """Say what the network is worth float and quantized, and how good an estimate is."""
    t = result.totals
    write = _decibels if _is_sqnr(result) else _number
    direction = result.settings["direction"] if isinstance(result, Sensitivity) else "quantize"
    phrases = []
    if t.get("baseline") is not None:
        phrases.append(f"{_BASELINES[_is_sqnr(result), direction == 'float']} {write(t['baseline'])}")
    for key, name in (("float", "float"), ("quantized", "all quantized")):
        if t.get(key) is not None and t[key] != t.get("baseline"):
            phrases.append(f"{name} {write(t[key])}")
    if t.get("quantized_sqnr_db") is not None and not (_is_sqnr(result) and direction == "float"):
        phrases.append(f"SQNR with all quantized {_decibels(t['quantized_sqnr_db'])}")
    if t.get("rank_correlation") is not None:
        phrases.append(f"rank correlation with {t['checked']} measured layers {t['rank_correlation']:.2f}")
    count = f"{format_count(t['samples'])} sample{'s' if t['samples'] != 1 else ''}"
    return [*phrases, f"{format_count(t['layers'])} layers", count]


_BASELINES = {
    (True, False): "median layer",
    (True, True): "all quantized",
    (False, False): "float",
    (False, True): "all quantized",
}
"""Whether the metric is SQNR, whether one is left float → what the baseline is."""


def lines(result: Result) -> list[str]:
    """Sum up by role."""
    if not isinstance(result, Sensitivity):
        return []
    write = _decibels if _is_sqnr(result) else _number
    found = ["by role, the most sensitive first:"] if result.roles else []
    for entry in result.roles:
        if entry["mean"] is None:
            continue
        name, count, marked = role_name(entry["role"]), entry["layers"], entry["dips"]
        if count == 1:
            found.append(f"  {name}: {write(entry['mean'])}, 1 layer" + (", which dips" if marked else ""))
            continue
        text = f"  {name}: mean {write(entry['mean'])}, worst {write(entry['worst'])} over {count} layers"
        found.append(text + (f", {marked} of them dip{'s' if marked == 1 else ''}" if marked else ""))
    return found


def role_name(role: str) -> str:
    """Name a role for people.

    >>> role_name("attention_scaling")
    'scaling in attention'
    """
    return _ROLES.get(role, (role, ""))[0]


def _is_sqnr(result: Result) -> bool:
    return not isinstance(result, Sensitivity) or result.settings.get("metric", "sqnr") == "sqnr"


# -- pictures -----------------------------------------------------------------------------------------------------

_ROLES = {
    "first": ("first layer", "#2f4858"),
    "last": ("last layer", "#8c6bb1"),
    "exit": ("block's exit", "#d1495b"),
    "attention_scaling": ("scaling in attention", "#e08e2b"),
    "depthwise": ("depthwise", "#3a8f7b"),
    "other": ("other", "#8fb1cc"),
}
"""Role → its name and its colour."""

_LEFT, _RIGHT, _ABOVE, _BELOW, _PLOT = 0.85, 0.3, 1.34, 0.8, 3.1
_STEP, _LEAST, _MOST = 0.155, 9.6, 48.0
"""Inches between layers, and of the picture's width."""
_NAME = 34


def chart(result: Result) -> Figure:
    """Draw a point per layer in network order, its role as its colour, the baseline as a line and the dips by name."""
    from matplotlib.figure import Figure

    key = "sqnr_db" if _is_sqnr(result) else "metric"
    drawn = [row for row in result.rows if row.get(key) is not None]
    names = [shorten(str(row.get("name", "")), _NAME) for row in drawn]
    width = min(max(_LEAST, _LEFT + _RIGHT + _STEP * len(drawn)), _MOST)
    below = _BELOW + 0.062 * max(map(len, names), default=0)
    height = _ABOVE + _PLOT + below
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    inner = width - _LEFT - _RIGHT
    axes = figure.add_axes((_LEFT / width, below / height, inner / width, _PLOT / height))
    if drawn:
        _draw(axes, result, drawn, key)
        axes.set_xticklabels(names, rotation=90, fontsize=7, color=png.INK, parse_math=False)
        _mark(axes, drawn)
        _explain(axes, across=max(2, int(width / 2.2)))
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no rows", color=png.SOFT, ha="center", va="center", transform=axes.transAxes)
    _words(figure, result)
    return figure


def _draw(axes: Axes, result: Result, drawn: list[Row], key: str) -> None:
    places = range(len(drawn))
    heights = [float(row[key]) for row in drawn]
    axes.plot(places, heights, color="#c9d3db", linewidth=1.0, zorder=2)
    baseline = result.totals.get("baseline")
    if baseline is not None:
        axes.axhline(baseline, color=png.SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    other = f"float_{key}"
    if any(row.get(other) is not None for row in drawn):
        kept = [
            (place, float(row[other])) for place, row in zip(places, drawn, strict=True) if row.get(other) is not None
        ]
        axes.plot(*zip(*kept, strict=True), color=png.SOFT, linewidth=0.8, marker="_", markersize=4, zorder=2)
        if result.totals.get("float_baseline") is not None:
            axes.axhline(result.totals["float_baseline"], color=png.SOFT, linewidth=0.7, linestyle=":", zorder=1)
    means = {entry["role"]: entry["mean"] for entry in getattr(result, "roles", ())}
    write = _decibels if _is_sqnr(result) else _number
    for role, (name, colour) in _ROLES.items():
        members = [place for place in places if drawn[place].get("role") == role]
        if not members:
            continue
        mean = means.get(role)
        label = f"{name}: {len(members)}" + (f", mean {write(mean)}" if mean is not None else "")
        axes.plot(
            members, [heights[p] for p in members], "o", markersize=5, color=colour, label=label, zorder=4, linestyle=""
        )
    marked = [place for place in places if drawn[place].get("dip")]
    axes.plot(
        marked, [heights[p] for p in marked], "o", markersize=10, markerfacecolor="none", markeredgecolor=png.PEAK,
        markeredgewidth=1.1, linestyle="", zorder=3, label=f"dip: {len(marked)}" if marked else "_",
    )  # fmt: skip
    axes.set_xlim(-0.8, len(drawn) - 0.2)
    axes.margins(y=0.08)
    axes.set_xticks(list(places))
    axes.tick_params(axis="x", length=0, pad=3)
    axes.tick_params(axis="y", length=0, labelsize=8, labelcolor=png.SOFT)
    axes.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_ylabel(_axis(result), fontsize=8.5, color=png.SOFT, parse_math=False)


def _mark(axes: Axes, drawn: list[Row]) -> None:
    """Let the names of the layers that dip stand out, in the colours of their roles."""
    for place, row in enumerate(drawn):
        if row.get("dip"):
            role = str(row.get("role"))
            colour = _ROLES[role][1] if role in _ROLES and role != "other" else png.PEAK
            axes.get_xticklabels()[place].set(color=colour, fontweight="bold")


def _explain(axes: Axes, across: int) -> None:
    """Put the legend above."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=across, fontsize=7.5, frameon=False, borderaxespad=0.2,
        handletextpad=0.2, columnspacing=1.2, labelcolor=png.INK,
    )  # fmt: skip


def _axis(result: Result) -> str:
    if _is_sqnr(result):
        return "SQNR of the network's output, dB"
    return str(result.settings["metric"]) if isinstance(result, Sensitivity) else "metric"


def _words(figure: Figure, result: Result) -> None:
    width, height = (float(inches) for inches in figure.get_size_inches())

    def line(inches_from_top: float, text: str, **style: Any) -> None:
        figure.text(0.3 / width, 1 - inches_from_top / height, text, va="top", parse_math=False, **style)

    line(0.2, shorten(result.source, 80), fontsize=13, fontweight="bold", color=png.INK)
    line(0.5, shorten(headline.setting(result), 130), fontsize=9.5, color=png.SOFT)
    line(height - 0.5, shorten(" · ".join(totals(result)), 130), fontsize=9.5, fontweight="bold", color=png.INK)
    remarks = [*result.notes]
    if any(row.get("float_sqnr_db") is not None for row in result.rows):
        remarks.insert(0, "thin marks: one layer left float in the quantized network")
    line(height - 0.29, shorten(" · ".join(remarks), 140), fontsize=9, color=png.SOFT)


headline.VOICES["sensitivity"] = headline.Voice(conditions, totals, lines)
png.CHARTS["sensitivity"] = chart
columns.MAIN_COLUMNS["sensitivity"] = "sqnr_db"
columns.COLUMNS.update(COLUMNS)
columns.COLUMNS.setdefault("bits", Column("bits", str, 93))
