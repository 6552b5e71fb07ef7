"""How `memfit train` speaks, and its picture: bytes by category over one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Result, TrainingStep
from memfit.report import columns, headline, png
from memfit.report.columns import Column, shorten
from memfit.units import format_bytes, format_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "parameters": "#355070",
    "buffers": "#4a6b8a",
    "inputs": "#6d8aa8",
    "kv cache": "#7a9e9f",
    "optimizer": "#6d597a",
    "gradients": "#b56576",
    "saved": "#8fb1cc",
    "activations": "#c5d8e6",
    "temporaries": "#eaac8b",
    "libraries": "#b8bec5",
}
"""Category → colour, from what lasts at the bottom to what passes at the top."""

_ADVICE = 6
"""Ideas that the printed report shows."""


def conditions(result: Result) -> list[str]:
    """Say how the network is trained."""
    s = result.settings if isinstance(result, TrainingStep) else {}
    parts = [f"batch {s['batch']}" + (f" x {s['accumulate']}" if s.get("accumulate", 1) > 1 else "")]
    parts.append(" ".join(str(part) for part in (s["optimizer"], s.get("kernels")) if part))
    if s.get("autocast"):
        parts.append(f"autocast {s['autocast']}")
    if s.get("checkpoint"):
        parts.append(f"{len(s['checkpoint'])} modules checkpointed")
    if s.get("train_only"):
        parts.append(f"trains only {s['train_only']}")
    parts.append("cpu" if s["device"] == "cpu" else f"cuda, compute capability {result.environment.get('capability')}")
    return parts


def totals(result: Result) -> list[str]:
    """Give the answer first, then the peak and what it is made of."""
    t = result.totals
    phrases = []
    if t.get("fits") is not None:
        budget = format_limit(t["budget_bytes"])
        if t["fits"]:
            phrases.append(f"fits {budget}: the largest batch that does is {t['max_batch']:,}")
        else:
            largest = f"the largest batch that fits is {t['max_batch']:,}" if t["max_batch"] else "no batch fits"
            phrases.append(f"does not fit {budget}: {format_bytes(t['short_bytes'])} short; {largest}")
            if t["runs_with_retries"]:
                phrases.append(
                    "runs all the same where nothing else is on the GPU: the allocator gives cached segments back"
                )
    place = f" at {t['peak_at']}" if t.get("peak_at") else ""
    phrases.append(f"peak allocated {format_bytes(t['peak_allocated_bytes'])}{place}")
    if result.device == "cuda":
        phrases.append(f"reserved {format_bytes(t['peak_reserved_bytes'])}")
        phrases.append(f"with the context {format_bytes(t['peak_reserved_bytes'] + t['context_bytes'])}")
    phrases += [f"{name} {format_bytes(t[key])}" for key, name in _TOTALS.items() if t.get(key)]
    return phrases


def lines(result: Result) -> list[str]:
    """Say what would help, the most helpful first."""
    if not isinstance(result, TrainingStep) or not result.advice:
        return []
    return ["what would help, and what the step then needs in all:", *map(_idea, result.advice[:_ADVICE])]


_TOTALS = {
    "parameter_bytes": "parameters",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "saved_bytes": "saved for backward",
}


def _idea(idea: dict[str, Any]) -> str:
    fits = {True: ", fits", False: ", still short", None: ""}[idea["fits"]]
    return f"  {format_bytes(idea['needed_bytes'])}{fits}: {idea['name']} ({idea['cost']})"


def timeline(result: Result) -> Figure:
    """Draw the bytes by category over the operations of one step, stacked, with the reserved bytes above."""
    from matplotlib.figure import Figure

    assert isinstance(result, TrainingStep)
    line, t = result.timeline, result.totals
    chart = Figure(figsize=(9.6, 5.4), dpi=160, facecolor="white")
    axes = chart.add_axes((0.085, 0.2, 0.885, 0.62))
    count = len(line["ops"])
    highest = max((*line["allocated_bytes"], *(line["reserved_bytes"] or ()), t.get("budget_bytes") or 0, 1))
    unit, factor = ("GiB", 1 << 30) if highest >= 1 << 30 else ("MiB", 1 << 20)
    names = [name for name in COLOURS if f"{name}_bytes" in line]
    stacks = [[value / factor for value in line[f"{name}_bytes"]] for name in names]
    places = list(range(count))
    axes.stackplot(places, stacks, colors=[COLOURS[n] for n in names], labels=names, linewidth=0, step="post", zorder=2)
    if line["reserved_bytes"]:
        reserved = [value / factor for value in line["reserved_bytes"]]
        axes.plot(places, reserved, color=png.INK, linewidth=0.9, label="reserved", zorder=3, drawstyle="steps-post")
    if t.get("budget_bytes"):
        room = (t["budget_bytes"] - t["context_bytes"]) / factor
        axes.axhline(room, color=png.PEAK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=4)
        axes.text(count * 0.005, room, " budget less context", color=png.PEAK, fontsize=8, va="bottom", zorder=5)
    _mark_peak(axes, line, factor, unit)
    _mark_phases(axes, line["phases"])
    axes.set_xlim(0, max(count - 1, 1))
    axes.set_ylim(0, highest / factor * 1.1)
    axes.set_ylabel(unit, fontsize=9, color=png.SOFT)
    axes.set_xlabel("operations of one step", fontsize=8.5, color=png.SOFT, labelpad=16)
    axes.tick_params(length=0, labelsize=8, labelcolor=png.SOFT)
    axes.grid(axis="y", color=png.GRID, linewidth=0.8, zorder=0)
    for side in axes.spines.values():
        side.set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    chart.legend(
        handles, labels, loc="lower center", ncols=min(len(labels), 6), frameon=False, fontsize=8, labelcolor=png.INK
    )
    style: dict[str, Any] = {"va": "top", "parse_math": False}
    chart.text(0.03, 0.965, shorten(result.source, 80), fontsize=13, fontweight="bold", color=png.INK, **style)
    chart.text(0.03, 0.915, shorten(headline.setting(result), 120), fontsize=9.5, color=png.SOFT, **style)
    chart.text(0.03, 0.872, shorten(totals(result)[0], 120), fontsize=9.5, fontweight="bold", color=png.INK, **style)
    return chart


def _mark_peak(axes: Any, line: dict[str, Any], factor: int, unit: str) -> None:
    allocated = line["allocated_bytes"]
    if not allocated:
        return
    peak = max(allocated)
    at = allocated.index(peak)
    left = at > len(allocated) / 2
    above = max((peak, *(line["reserved_bytes"] or ())))  # the label stands over the line of reserved bytes too
    axes.plot([at], [peak / factor], marker="o", markersize=4, color=png.PEAK, zorder=6)
    axes.annotate(
        f"{peak / factor:.2f} {unit} at {shorten(line['ops'][at], 60)}",
        (at, above / factor),
        xytext=(-8 if left else 8, 6),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=8,
        color=png.PEAK,
        fontweight="bold",
        zorder=6,
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
    )


def _mark_phases(axes: Any, phases: list[str]) -> None:
    """Name the parts of the step below the axis, and part them."""
    start = 0
    for index in range(1, len(phases) + 1):
        if index < len(phases) and phases[index] == phases[start]:
            continue
        if start:
            axes.axvline(start, color="white", linewidth=1.2, zorder=3)
        if index - start >= len(phases) * 0.03:
            axes.text(
                (start + index) / 2, -0.075, phases[start], transform=axes.get_xaxis_transform(), ha="center",
                fontsize=8.5, color=png.INK, va="top",
            )  # fmt: skip
        start = index


headline.VOICES["train"] = headline.Voice(conditions, totals, lines)
png.CHARTS["train"] = timeline
columns.MAIN_COLUMNS["train"] = "allocated_bytes"
columns.COLUMNS["what"] = Column("what it is", str, 28, right=False)
