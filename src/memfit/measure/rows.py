"""The rows of a benchmark: memfit's own layers, blocks and operations, and the operations whose time is theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from memfit.analysis.blocks import blocks
from memfit.analysis.layers import Layer, layers
from memfit.analysis.ops import op_rows
from memfit.graph.model import Graph
from memfit.measure.layout import NOBODY, Event
from memfit.measure.statistics import describe


class RowSpec(NamedTuple):
    """What a row is, before it has been timed."""

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    calls: int
    """Calls in one iteration."""
    macs: int | None
    ops: tuple[int, ...]


def model_row(type_name: str, macs: int | None, output_shape: tuple[int, ...] | None = None) -> RowSpec:
    """Describe the whole model as one row."""
    return RowSpec("(model)", type_name, output_shape, 1, macs, ())


def layer_specs(graph: Graph, events: Sequence[Event], _pattern: str | None) -> list[RowSpec]:
    """Describe one row per layer as `memfit profile --per layer` has them, without inputs.

    Where a module is called several times in one iteration, the same layer of each call is one row.
    """
    call_of = _calls(graph, events)
    joined: dict[tuple[int, str, int], list[Layer]] = {}
    seen: dict[tuple[int, int, str], int] = {}
    for layer in layers(graph):
        if layer.head < 0:
            continue
        call = (layer.scope, call_of[layer.head], layer.type)
        place = seen[call] = seen.get(call, -1) + 1
        joined.setdefault((layer.scope, layer.type, place), []).append(layer)
    return [
        RowSpec(
            name=held[0].name,
            type=held[0].type,
            output_shape=held[0].output_shape,
            calls=len(held),
            macs=sum(layer.macs for layer in held),
            ops=tuple(sorted(i for layer in held for i in layer.ops)),
        )
        for held in joined.values()
    ]


def block_specs(graph: Graph, events: Sequence[Event], pattern: str | None) -> list[RowSpec]:
    """Describe one row per block as `memfit profile --per block` has them."""
    every = layers(graph)
    entered: dict[str, int] = {}
    for event in events:
        if event.enters:
            path = graph.scopes[event.module].path
            entered[path] = entered.get(path, 0) + 1
    specs = []
    for block in blocks(graph, every, pattern):
        held = [every[i] for i in block.layers if every[i].head >= 0]
        if held:
            specs.append(
                RowSpec(
                    name=block.name,
                    type=block.type,
                    output_shape=held[-1].output_shape,
                    calls=max(entered.get(block.name, 1), 1),
                    macs=sum(layer.macs for layer in held),
                    ops=tuple(sorted(i for layer in held for i in layer.ops)),
                )
            )
    return specs


def op_specs(graph: Graph, _events: Sequence[Event], _pattern: str | None) -> list[RowSpec]:
    """Describe one row per captured operation, views included."""
    return [
        RowSpec(row.name, row.type, row.output_shape, 1, row.macs, (row.op,))
        for row in op_rows(graph, layers(graph, fold=False))
    ]


SPECS: dict[str, Callable[[Graph, Sequence[Event], str | None], list[RowSpec]]] = {
    "layer": layer_specs,
    "block": block_specs,
    "op": op_specs,
}
"""What a row is → its rows; the whole model is a row that needs no graph."""


def row_of_ops(graph: Graph, specs: Sequence[RowSpec]) -> list[int]:
    """Give each operation's row."""
    row_of = [NOBODY] * len(graph.ops)
    for position, spec in enumerate(specs):
        for index in spec.ops:
            row_of[index] = position
    return row_of


def _calls(graph: Graph, events: Sequence[Event]) -> list[int]:
    """Give each operation's call of its module: 1 for the module's first call in the run."""
    count: dict[int, int] = {}
    calls = [0] * len(graph.ops)
    waiting = 0
    for event in (*events, Event(-1, True, len(graph.ops))):
        for index in range(waiting, event.ops):
            calls[index] = count.get(graph.ops[index].scope, 1)
        waiting = max(waiting, event.ops)
        if event.enters:
            count[event.module] = count.get(event.module, 0) + 1
    return calls


@dataclass(frozen=True)
class Timed:
    """One row with its samples."""

    spec: RowSpec
    samples: Sequence[float]
    """Milliseconds per iteration, all calls together."""
    estimated: bool = False
    """True where part of its time is a share of what several rows took together."""


def figures(samples: Sequence[float], batch: int, macs: int | None) -> dict[str, Any]:
    """Give the figures of time of one row, with the rates that follow from its mean.

    >>> figures([2.0, 2.0], 4, 10_000_000)["fps"], figures([2.0, 2.0], 4, 10_000_000)["gmacs_per_s"]
    (2000.0, 5.0)
    """
    found = describe(samples)
    mean = found["mean_ms"]
    unsteady = found.pop("unsteady")
    return {
        **found,
        "share": None,
        "fps": batch * 1000 / mean,
        "gmacs_per_s": macs / mean / 1e6 if macs else None,
        "unsteady": unsteady,
    }


def rows_and_totals(
    timed: Sequence[Timed], whole: Sequence[float], batch: int
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """Make the rows, and totals that they add up to: `whole_ms` = `layers_ms` + `unattributed_ms`."""
    total = describe(whole)
    whole_ms = total["mean_ms"]
    rows: list[dict[str, Any]] = []
    for entry in timed:
        spec = entry.spec
        row: dict[str, Any] = {
            "name": spec.name,
            "type": spec.type,
            "output_shape": spec.output_shape,
            "calls": spec.calls,
        }
        row |= figures(entry.samples, batch, spec.macs)
        row["share"] = row["mean_ms"] / whole_ms
        row["macs"] = spec.macs
        if any(other.estimated for other in timed):
            row["estimated"] = entry.estimated
        rows.append(row)
    layers_ms = sum(row["mean_ms"] for row in rows)
    macs = [entry.spec.macs for entry in timed]
    known = None if not macs or None in macs else sum(m for m in macs if m is not None)
    totals = {
        "whole_ms": whole_ms,
        "layers_ms": layers_ms,
        "unattributed_ms": whole_ms - layers_ms,
        "fps": batch * 1000 / whole_ms,
        "gmacs_per_s": known / whole_ms / 1e6 if known else None,
        "macs": known,
        **{f"whole_{key}": total[key] for key in ("std_ms", "min_ms", "p50_ms", "p95_ms")},
        "unsteady": total["unsteady"],
    }
    return tuple(rows), totals
