"""The sentences around a table: what it shows, and the totals in words."""

from __future__ import annotations

from typing import Any

from memfit.analysis.result import Profile
from memfit.report.columns import COLUMNS, figure, label
from memfit.units import format_bytes, format_shape

_LABELS = {
    "parameter_bytes": "parameters",
    "buffer_bytes": "buffers",
    "model_bytes": "model",
    "input_bytes": "input",
}


def inputs(profile: Profile) -> str:
    """Write the inputs; a single one needs no name."""
    named = len(profile.inputs) > 1
    return ", ".join(
        (f"{entry['name']}=" if named else "") + f"{format_shape(tuple(entry['shape']))} {entry['dtype']}"
        for entry in profile.inputs
    )


def setting(profile: Profile) -> str:
    """Say under which conditions the figures hold.

    >>> x = {"name": "x", "shape": (1, 8), "dtype": "int8"}
    >>> setting(Profile("net", (x,), "op", "eager", True, "cpu", (), {}, (), {}))
    '1x8 int8 · training · cpu · per op'
    """
    parts = [inputs(profile), "training" if profile.training else "inference", profile.device, f"per {profile.per}"]
    return " · ".join(part for part in parts if part)


def title(profile: Profile) -> str:
    """Say what is shown."""
    return " · ".join(part for part in (profile.source, setting(profile)) if part)


def peak(profile: Profile) -> str | None:
    """State the memory model's own total in one phrase, with its place where it has one.

    >>> peak(Profile("net", (), "op", "ideal", False, "cpu", (), {"peak_bytes": 4096, "peak_at": "fc"}, (), {}))
    'peak (ideal) 4.0 KiB at fc'
    """
    if profile.totals.get("peak_bytes") is not None:
        place = profile.totals.get("peak_at")
        return f"{label(profile, 'peak_bytes')} {format_bytes(profile.totals['peak_bytes'])}" + (
            f" at {place}" if place else ""
        )
    key = figure(profile)
    if key is None or profile.totals.get(key) is None or not key.endswith("bytes"):
        return None
    return f"{label(profile, key)} {format_bytes(profile.totals[key])} in all"


def totals(profile: Profile) -> list[str]:
    """Give the totals as short phrases, the memory model's own first."""
    phrases = [first] if (first := peak(profile)) else []
    for key in ("saved_bytes", "allocated_bytes"):
        phrase = f"{label(profile, key)} {_size(profile, key)}"
        if profile.totals.get(key) is not None and not (first or "").startswith(phrase):
            phrases.append(phrase)
    phrases += [f"{name} {_size(profile, key)}" for key, name in _LABELS.items() if _has(profile, key)]
    others = [key for key in profile.totals if key.endswith("_bytes") and key not in _LABELS and key not in COLUMNS]
    phrases += [
        f"{key.removesuffix('_bytes').replace('_', ' ')} {_size(profile, key)}" for key in others if _has(profile, key)
    ]
    return phrases


def environment(profile: Profile) -> str | None:
    """List what the figures depend on; None where nothing is known."""
    entries = [f"{key} {_scalar(value)}" for key, value in profile.environment.items() if not _nested(value)]
    return ", ".join(entries) or None


def _has(profile: Profile, key: str) -> bool:
    return profile.totals.get(key) is not None


def _size(profile: Profile, key: str) -> str:
    return format_bytes(profile.totals[key]) if _has(profile, key) else ""


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nested(value: Any) -> bool:
    return value is None or isinstance(value, dict | list | tuple)
