"""One row per captured operation, views and backward included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memfit.analysis.layers import Layer, Naming
from memfit.graph.model import Graph, Phase, StorageKind


class OpRow(NamedTuple):
    """One operation as captured."""

    name: str
    type: str
    phase: Phase
    op: int
    """Its index in the graph."""
    kernel: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    dtype: str | None
    activations: int
    """Elements that it makes; 0 for a view."""
    weights: int
    params: int
    macs: int


def op_rows(graph: Graph, unfolded: Sequence[Layer]) -> tuple[OpRow, ...]:
    """List the operations of a graph in the order in which they ran.

    >>> from memfit.graph.model import Graph
    >>> op_rows(Graph((), (), (), (), (), ()), ())
    ()

    Args:
        graph: the network.
        unfolded: the result of `layers(graph, fold=False)`.
    """
    naming = Naming(graph)
    layer_at = {layer.head: layer for layer in unfolded if layer.head >= 0}
    tensors, storages = graph.tensors, graph.storages
    reads = [any(storages[tensors[i].storage].kind is StorageKind.PARAMETER for i in op.inputs) for op in graph.ops]
    for made in layer_at.values():
        naming.note(made.scope, made.type, reads[made.head])
    rows = []
    for op in graph.ops:
        layer = layer_at.get(op.index)
        if layer is not None:
            shape: tuple[int, ...] | None = layer.output_shape
            dtype: str | None = layer.dtype
        else:
            output = graph.tensors[op.outputs[0]] if op.outputs else None
            shape, dtype = (output.shape, output.dtype) if output else (None, None)
        first = graph.tensors[layer.parameters[0]].name if layer and layer.parameters else None
        rows.append(
            OpRow(
                name=naming.unique(naming.name(op.scope, op.kind, reads[op.index], first)),
                type=op.kind,
                phase=op.phase,
                op=op.index,
                kernel=op.attrs.get("kernel"),
                stride=op.attrs.get("stride"),
                output_shape=shape,
                dtype=dtype,
                activations=layer.activations if layer else 0,
                weights=layer.weights if layer else 0,
                params=layer.params if layer else 0,
                macs=op.macs,
            )
        )
    return tuple(rows)
