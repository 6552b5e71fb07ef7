"""The module tree with totals at each level, as torchsummary's users know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memfit.analysis.blocks import ROOT
from memfit.analysis.layers import INPUT, UNUSED, Layer
from memfit.analysis.values import FORWARD
from memfit.graph.model import Graph


class ModuleRow(NamedTuple):
    """One module with all that is inside it."""

    name: str
    type: str
    depth: int
    """0 for the root."""
    scope: int
    output_shape: tuple[int, ...] | None
    """What it made last; None where it made nothing."""
    activations: int
    activation_bytes: int
    weights: int
    params: int
    """Each parameter once, at the first module that owns it."""
    macs: int


def modules(graph: Graph, layers: Sequence[Layer], activation_bytes: Sequence[int]) -> tuple[ModuleRow, ...]:
    """List every module of a network, in the order of the tree; a module's figures include its children's.

    >>> from memfit.graph.model import Graph, Scope
    >>> modules(Graph((), (), (), (Scope(0, "", "Net", -1),), (), ()), (), ())[0].name
    '(root)'

    Args:
        graph: the network.
        layers: the result of `layers(graph)`.
        activation_bytes: bytes of each layer's output.
    """
    scopes, tensors = graph.scopes, graph.tensors
    count = len(scopes)
    activations, nbytes, weights = [0] * count, [0] * count, [0] * count
    params, macs, depth = [0] * count, [0] * count, [0] * count
    shape: list[tuple[int, tuple[int, ...]]] = [(-1, ())] * count
    heavy = {p for layer in layers for p in layer.weight_parameters}
    for layer, size in zip(layers, activation_bytes, strict=True):
        if layer.type in (INPUT, UNUSED):
            continue
        activations[layer.scope] += layer.activations
        nbytes[layer.scope] += size
        macs[layer.scope] += layer.macs
    for op in graph.ops:
        if op.outputs and op.phase in FORWARD:
            shape[op.scope] = (op.index, tensors[op.outputs[0]].shape)
    seen: set[int] = set()
    for scope in scopes:
        if scope.parent >= 0:
            depth[scope.index] = depth[scope.parent] + 1
        for p in scope.params:
            if p not in seen:
                seen.add(p)
                params[scope.index] += tensors[p].elements
                weights[scope.index] += tensors[p].elements if p in heavy else 0
    for tensor in graph.parameters():  # of no module in the tree
        if tensor.id not in seen:
            params[0] += tensor.elements
            weights[0] += tensor.elements if tensor.id in heavy else 0
    for index in range(count - 1, 0, -1):
        parent = scopes[index].parent
        for column in (activations, nbytes, weights, params, macs):
            column[parent] += column[index]
        shape[parent] = max(shape[parent], shape[index])
    return tuple(
        ModuleRow(
            name=scope.path or ROOT,
            type=scope.class_name,
            depth=depth[i],
            scope=i,
            output_shape=shape[i][1] if shape[i][0] >= 0 else None,
            activations=activations[i],
            activation_bytes=nbytes[i],
            weights=weights[i],
            params=params[i],
            macs=macs[i],
        )
        for i, scope in enumerate(scopes)
    )
