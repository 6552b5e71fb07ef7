"""Recipes: which bits and grids make a network fit, as one JSON file that can be applied again. No torch in it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from memfit.analysis.layers import Layer, layers
from memfit.errors import SourceError, UsageError
from memfit.graph.model import Graph
from memfit.units import format_limit

FORMAT = 1
"""Version of the file's format."""


@dataclass(frozen=True)
class Recipe:
    """How a network is quantized."""

    source: str
    memory: str
    """The memory model of the budget."""
    budget_bytes: int
    peak_bytes: int
    fingerprint: dict[str, str]
    """Hashes: `network` of names, types and shapes of the parameters, `model` of its weights too, `data`."""
    inputs: tuple[dict[str, Any], ...]
    """Name, shape and dtype of each, for which the peak holds."""
    settings: dict[str, Any]
    activations: dict[str, dict[str, Any]]
    """By layer: `bits`, `scale` and `zero_point` of its output; without a grid where it is never stored by itself."""
    weights: dict[str, dict[str, Any]]
    """By parameter: `bits`, `axis` (null for one grid) and `scale`, a list; zero is in the middle."""
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By parameter, where it differs from the network's own: `dtype`, `shape`, `data` (base64 of zlib)."""

    @property
    def layer_bits(self) -> dict[str, int]:
        """Bits of every layer's output, by the layer's name."""
        return {name: int(entry["bits"]) for name, entry in self.activations.items()}


_KEYS = tuple(Recipe.__dataclass_fields__)


def write(recipe: Recipe, stream: IO[str]) -> None:
    """Write a recipe as one JSON object, the same bytes for the same recipe."""
    content = {"memfit_recipe": FORMAT, **{key: getattr(recipe, key) for key in _KEYS}}
    json.dump(content, stream, ensure_ascii=False, allow_nan=False, indent=1)
    stream.write("\n")


def read(path: str | Path, where: str = "--recipe") -> Recipe:
    """Read a recipe.

    Raises:
        SourceError: no such file, not a recipe, or of a format that this version does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError("there is no such file", where=where, received=str(path), todo="check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["memfit_recipe"]
        recipe = Recipe(**{key: content[key] for key in _KEYS})
        for entry in recipe.activations.values():
            _check_grid(entry["bits"], [] if entry["scale"] is None else [entry["scale"]], entry["zero_point"])
        for entry in recipe.weights.values():
            _check_grid(entry["bits"], entry["scale"], entry["axis"])
            if not entry["scale"]:
                raise ValueError(entry)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        version = None
    if version != FORMAT:
        raise SourceError(
            "this is not a recipe" if version is None else "this recipe has a format of another version",
            where=where,
            received=str(path) if version is None else f"{path}: format {version}",
            todo="give a file that memfit quantize --save wrote" + ("" if version is None else " with this memfit"),
        )
    return recipe


def _check_grid(bits: Any, scales: Any, place: Any) -> None:
    """Refuse what no grid has: its bits, its steps, and its zero point or its axis."""
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(bits)
    if not all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in scales):
        raise ValueError(scales)
    if not isinstance(place, int | None):
        raise TypeError(place)


def hash_network(graph: Graph) -> str:
    """Hash the names, shapes and dtypes of a network's parameters, which a capture without weights knows too."""
    named = sorted((str(t.name), t.shape, t.dtype) for t in graph.parameters())
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def check_network(recipe: Recipe, graph: Graph, rows: tuple[Layer, ...] | None = None) -> None:
    """Refuse a network that a recipe was not made for.

    Raises:
        UsageError: other parameters, or a layer of the recipe that the network does not have.
    """
    names = {layer.name for layer in (layers(graph) if rows is None else rows)}
    missing = [name for name in recipe.activations if name not in names]
    if missing or hash_network(graph) != recipe.fingerprint.get("network"):
        raise UsageError(
            "this recipe was made for another network",
            where="--recipe",
            received=f"a recipe for {recipe.source}, and the network {graph.source}"
            + (f", which has no layer {missing[0]}" if missing else ", whose parameters are others"),
            todo="use the source and the arguments that the recipe was made with, or make one with memfit quantize",
        )


def notes_of(recipe: Recipe, inputs: tuple[dict[str, Any], ...], memory: str) -> tuple[str, ...]:
    """Say what a reader of figures made with a recipe must know."""
    notes = [f"activations have the bits of a recipe for {format_limit(recipe.budget_bytes)} under {recipe.memory}"]
    if [tuple(entry["shape"]) for entry in recipe.inputs] != [tuple(entry["shape"]) for entry in inputs]:
        notes.append("the recipe was made for inputs of another shape, for which alone its budget holds")
    elif memory != recipe.memory:
        notes.append(f"the recipe's budget is of {recipe.memory}, not of {memory}")
    return tuple(notes)
