"""Files of ranges: what a calibration found, the same bytes for the same model, data and settings. No torch in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memfit.analysis.result import Calibration
from memfit.errors import SourceError, UsageError

FORMAT = 1
"""Version of the file's format."""

_KEYS = ("name", "type", "min", "max", "scale", "zero_point", "observed_min", "observed_max", "samples")


@dataclass(frozen=True)
class Ranges:
    """Ranges that were kept."""

    source: str
    fingerprint: dict[str, str]
    """Hashes of the `model` and of the `data` that they are of."""
    settings: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    """By name: `min`, `max`, `scale`, `zero_point`, and `channels` with lists of these and their `axis`, or None."""

    def of(self, layer: str, path: str) -> dict[str, Any]:
        """Give a layer's entry.

        Raises:
            UsageError: there is none.
        """
        entry = self.layers.get(layer)
        if entry is None:
            raise UsageError(
                "the ranges lack a layer",
                where="--ranges",
                received=f"{path}: nothing for {layer}",
                todo="calibrate again: memfit calibrate … --save RANGES.json",
            )
        return entry

    def check_model(self, fingerprint: str, path: str) -> None:
        """Refuse ranges of another model than the one with this fingerprint.

        Raises:
            UsageError: they are.
        """
        if self.fingerprint.get("model") != fingerprint:
            raise UsageError(
                "these ranges are of another model, or of other weights",
                where="--ranges",
                received=f"{path}, of {self.source}",
                todo="calibrate this one: memfit calibrate … --save RANGES.json",
            )


def write(result: Calibration, stream: IO[str]) -> None:
    """Write a calibration's ranges as one JSON object: no clock, no version of anything but the format."""
    layers = [{**{key: row[key] for key in _KEYS}, "channels": result.channels.get(row["name"])} for row in result.rows]
    content = {
        "memfit_ranges": FORMAT,
        "source": result.source,
        "fingerprint": result.fingerprint,
        "settings": result.settings,
        "inputs": [{**entry, "shape": list(entry["shape"])} for entry in result.inputs],
        "layers": layers,
    }
    json.dump(content, stream, ensure_ascii=False, allow_nan=False, indent=1)
    stream.write("\n")


def read(path: str | Path) -> Ranges:
    """Read a file of ranges.

    Raises:
        SourceError: no such file, not one of ranges, or of a format that this version does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError("there is no such file", where="--ranges", received=str(path), todo="check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["memfit_ranges"]
        layers = {str(entry["name"]): {key: entry[key] for key in (*_KEYS, "channels")} for entry in content["layers"]}
        for entry in layers.values():
            _check_range([entry["min"]], [entry["max"]])
            if entry["channels"] is not None:
                _check_range(entry["channels"]["min"], entry["channels"]["max"])
        ranges = Ranges(str(content["source"]), dict(content["fingerprint"]), dict(content["settings"]), layers)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        version = None
    if version != FORMAT:
        raise SourceError(
            "this is not a file of ranges" if version is None else "these ranges have a format of another version",
            where="--ranges",
            received=str(path) if version is None else f"{path}: format {version}",
            todo="give a file that memfit calibrate --save wrote" + ("" if version is None else " with this memfit"),
        )
    return ranges


def _check_range(low: list[float | None], high: list[float | None]) -> None:
    """Refuse what is no range: its ends, which are numbers in order, or both missing."""
    for least, most in zip(low, high, strict=True):
        if (least, most) != (None, None) and not -math.inf < least <= most < math.inf:  # type: ignore[operator]
            raise ValueError((least, most))
