"""Saved runs: a result with its samples, and what changed since. No torch in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from memfit.analysis.result import Benchmark
from memfit.errors import SourceError, UsageError
from memfit.measure.statistics import is_wide, mann_whitney

LEAST = 0.05
"""A change of the median below this share is none that matters, however surely it is there: two runs of the same
model on one machine differ by as much."""

SURE = 0.01
"""Largest p-value of a change, all rows of a comparison together (Bonferroni)."""

_MACHINE = ("cpu", "gpu", "capability", "threads", "cores", "isa", "governor", "torch", "cuda", "cudnn", "python")
_SETTINGS = ("mode", "dtype", "channels_last", "compile")


@dataclass(frozen=True)
class Run:
    """An earlier run."""

    file: str
    content: Mapping[str, Any]
    whole: tuple[float, ...]
    rows: Mapping[str, tuple[float, ...]]


def write(result: Benchmark, whole: Sequence[float], rows: Mapping[str, Sequence[float]], stream: IO[str]) -> None:
    """Write a result as JSON has it, with the milliseconds of every iteration: `samples.whole` and `samples.rows`."""
    content = {**result.to_dict(), "samples": {"whole": list(whole), "rows": {k: list(v) for k, v in rows.items()}}}
    json.dump(content, stream, ensure_ascii=False, allow_nan=False)
    stream.write("\n")


def read(path: Path) -> Run:
    """Read a saved run.

    Raises:
        SourceError: no such file, or not a run that `memfit bench --save` wrote.
    """
    if not path.is_file():
        raise SourceError("there is no such file", where="--against", received=str(path), todo="check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        samples = content["samples"]
        rows = {str(name): _numbers(values) for name, values in samples["rows"].items()}
        run = Run(str(path), content, _numbers(samples["whole"]), rows)
        good = content["command"] == Benchmark.command and bool(rows) and all(rows.values())
        good = good and isinstance(content["per"], str) and isinstance(content["environment"], dict)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        good = False
    if not good:
        raise SourceError(
            "this is not a run to compare with",
            where="--against",
            received=str(path),
            todo="give a file that memfit bench --save wrote",
        )
    return run


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(v, int | float) and 0 < v < float("inf") for v in values):
        raise ValueError("not samples")
    return tuple(map(float, values))


def check(run: Run, *, per: str, source: str, device: str) -> None:
    """Refuse a run of other rows or of another device before anything is measured.

    Raises:
        UsageError: it cannot be compared.
    """
    then = run.content.get("per")
    if then != per:
        raise UsageError(
            f"that run has rows per {then}, and this one would have rows per {per}",
            where="--against",
            received=run.file,
            todo="give several batch sizes" if then == "batch" else f"add --per {then}",
        )
    if run.content.get("device") != device:
        raise UsageError(
            f"that run is of the {run.content.get('device')}, and this one would be of the {device}",
            where="--against",
            received=run.file,
            todo="compare runs of the same device",
        )
    if per in ("model", "batch") and run.content.get("source") != source:
        raise UsageError(
            "that run is of another network",
            where="--against",
            received=f"{run.file}: {run.content.get('source')}",
            todo=f"give a run of {source}; with --per layer the rows that both have can be compared",
        )


def compare(result: Benchmark, whole: Sequence[float], rows: Mapping[str, Sequence[float]], run: Run) -> Benchmark:
    """Put an earlier run's medians beside this one's: `before_ms`, `ratio` (now to before) and `change`.

    A change is called faster or slower where both hold: the medians differ by at least 5 %, and a Mann-Whitney test of
    the two runs' samples gives p < 0.01, divided by the number of rows. Otherwise it is `same`. Where both hold but the
    middle half of either run's samples spans more than 10 % of their median, it is `unsure`: a busy machine looks so.

    Raises:
        UsageError: no row has the same name in both.
    """
    both = [name for name in rows if name in run.rows]
    if not both:
        raise UsageError(
            "that run is of another network: no row has the same name in both",
            where="--against",
            received=f"{run.file}: {run.content.get('source')}",
            todo=f"give a run of {result.source}",
        )
    found = {name: _change(run.rows[name], rows[name], len(both)) for name in both}
    changed = []
    for row in result.rows:
        entry = found.get(row["name"])
        beside = {key: entry[key] if entry else None for key in ("before_ms", "ratio", "change")}
        changed.append({**row, **beside})
    unlike = differences(result, run)
    comparison = {
        "file": run.file,
        "whole": _change(run.whole, whole, 1) if run.whole and whole else None,
        "rows": [{"name": name, **found[name]} for name in both],
        "only_now": [name for name in rows if name not in run.rows],
        "only_before": [name for name in run.rows if name not in rows],
        "differences": unlike,
    }
    notes = [*result.notes]
    for name, (before, now) in unlike.items():
        notes.append(f"not the same conditions as {run.file}: {name} was {before}, is {now}")
    return replace(result, rows=tuple(changed), comparison=comparison, notes=tuple(notes))


def differences(result: Benchmark, run: Run) -> dict[str, tuple[Any, Any]]:
    """List what was not the same: name → then and now."""
    now = result.to_dict()
    found: dict[str, tuple[Any, Any]] = {}
    for part, keys in (("environment", _MACHINE), ("settings", _SETTINGS)):
        before = run.content.get(part) or {}
        for key in keys:
            if before.get(key) != now[part].get(key):
                found[key] = (before.get(key), now[part].get(key))
    if run.content.get("source") != result.source:
        found["source"] = (run.content.get("source"), result.source)
    shapes = [_shapes(content.get("inputs")) for content in (run.content, now)]
    if shapes[0] != shapes[1]:
        found["inputs"] = (shapes[0], shapes[1])
    return found


def _shapes(inputs: Any) -> str:
    return ", ".join(
        "x".join(map(str, entry.get("shape", ()))) + f" {entry.get('dtype')}" for entry in inputs or () if entry
    )


def _change(before: Sequence[float], now: Sequence[float], tests: int) -> dict[str, Any]:
    then, here = float(np.median(before)), float(np.median(now))
    ratio = here / then
    p = mann_whitney(before, now)
    if p >= SURE / tests or abs(ratio - 1) < LEAST:
        change = "same"
    elif is_wide(before) or is_wide(now):
        change = "unsure"
    else:
        change = "faster" if ratio < 1 else "slower"
    return {"before_ms": then, "now_ms": here, "ratio": ratio, "p_value": p, "change": change}
