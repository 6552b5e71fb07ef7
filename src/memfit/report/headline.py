"""The sentences around a table: what it shows, and the totals in words.

Each command may speak in its own way; one without a voice of its own speaks as `profile` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from memfit.analysis.result import Result
from memfit.report.columns import COLUMNS, figure, label
from memfit.units import format_bytes, format_shape

_LABELS = {
    "parameter_bytes": "parameters",
    "buffer_bytes": "buffers",
    "model_bytes": "model",
    "input_bytes": "input",
    "context_bytes": "CUDA context",
}


def inputs(result: Result) -> str:
    """Write the inputs; a single one needs no name."""
    named = len(result.inputs) > 1
    return ", ".join(
        (f"{entry['name']}=" if named else "") + f"{format_shape(tuple(entry['shape']))} {entry['dtype']}"
        for entry in result.inputs
    )


def setting(result: Result) -> str:
    """Say under which conditions the figures hold.

    >>> x = {"name": "x", "shape": (1, 8), "dtype": "int8"}
    >>> setting(Result("net", (x,), "op", "eager", True, "cpu", (), {}, (), {}))
    '1x8 int8 · training · cpu · per op'
    """
    voice = VOICES.get(result.command)
    conditions = voice.conditions(result) if voice else _conditions(result)
    return " · ".join(part for part in (inputs(result), *conditions) if part)


def _conditions(result: Result) -> list[str]:
    phase, context = (result.environment.get(key) for key in ("phase", "context"))
    what = "training" if result.training else "inference" if phase is None else f"{phase}, context {context:,}"
    return [what, result.device, f"per {result.per}"]


def title(result: Result) -> str:
    """Say what is shown."""
    return " · ".join(part for part in (result.source, setting(result)) if part)


def peak(result: Result) -> str | None:
    """State the memory model's own total in one phrase, with its place where it has one.

    >>> peak(Result("net", (), "op", "ideal", False, "cpu", (), {"peak_bytes": 4096, "peak_at": "fc"}, (), {}))
    'peak (ideal) 4.0 KiB at fc'
    """
    if result.totals.get("peak_bytes") is not None:
        place = result.totals.get("peak_at")
        return f"{label(result, 'peak_bytes')} {format_bytes(result.totals['peak_bytes'])}" + (
            f" at {place}" if place else ""
        )
    key = figure(result)
    if key is None or result.totals.get(key) is None or not key.endswith("bytes"):
        return None
    return f"{label(result, key)} {format_bytes(result.totals[key])} in all"


def totals(result: Result) -> list[str]:
    """Give the totals as short phrases, the most important first."""
    voice = VOICES.get(result.command)
    return voice.totals(result) if voice else _totals(result)


def _totals(result: Result) -> list[str]:
    phrases = [*_answer(result), *([first] if (first := peak(result)) else [])]
    for key in ("saved_bytes", "allocated_bytes"):
        phrase = f"{label(result, key)} {_size(result, key)}"
        if result.totals.get(key) is not None and not (first or "").startswith(phrase):
            phrases.append(phrase)
    phrases += [f"{name} {_size(result, key)}" for key, name in _LABELS.items() if _has(result, key)]
    told = {*_LABELS, *COLUMNS, *_ANSWERED}
    others = [key for key in result.totals if key.endswith("_bytes") and key not in told]
    phrases += [
        f"{key.removesuffix('_bytes').replace('_', ' ')} {_size(result, key)}" for key in others if _has(result, key)
    ]
    return phrases


_ANSWERED = ("budget_bytes", "short_bytes")


def _answer(result: Result) -> list[str]:
    """Say first whether a language model's phase fits its budget, and what does."""
    t = result.totals
    if t.get("fits") is None:
        return []
    budget = format_bytes(t["budget_bytes"])
    fits = f"fits {budget}" if t["fits"] else f"does not fit {budget}: {format_bytes(t['short_bytes'])} short"
    return [
        fits,
        f"largest context at this batch {t['max_context']:,}" if t["max_context"] else "no context fits at this batch",
        f"largest batch at this context {t['max_batch']:,}" if t["max_batch"] else "no batch fits at this context",
    ]


def lines(result: Result) -> list[str]:
    """Give the sentences that stand below the totals, each on a line of its own."""
    voice = VOICES.get(result.command)
    return voice.lines(result) if voice else []


def brief(result: Result) -> str | None:
    """Give the one line that stands for the whole; None for a command with a table."""
    voice = VOICES.get(result.command)
    return voice.brief(result) if voice and voice.brief else None


def environment(result: Result) -> str | None:
    """List what the figures depend on; None where nothing is known."""
    entries = [f"{key} {_scalar(value)}" for key, value in result.environment.items() if not _nested(value)]
    return ", ".join(entries) or None


def _has(result: Result, key: str) -> bool:
    return result.totals.get(key) is not None


def _size(result: Result, key: str) -> str:
    return format_bytes(result.totals[key]) if _has(result, key) else ""


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nested(value: Any) -> bool:
    return value is None or isinstance(value, dict | list | tuple)


class Voice(NamedTuple):
    """How a command's results speak."""

    conditions: Callable[[Result], list[str]]
    """Under which conditions the figures hold, after the inputs."""
    totals: Callable[[Result], list[str]]
    """The totals as short phrases, the most important first."""
    lines: Callable[[Result], list[str]] = lambda _: []
    """Further sentences, each on a line of its own."""
    brief: Callable[[Result], str] | None = None
    """All of it in one line, which a terminal then shows instead of a table."""


VOICES: dict[str, Voice] = {}
"""Command → its voice."""
