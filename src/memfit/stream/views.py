"""Captured operations that read an image through a view in which its rows or columns stand elsewhere.

An image is known by the tensor that shows it first. A view may take some of its channels, or number them in another
way, as a channel shuffle does. One that reads rows as columns, cuts rows off, or deals them out to channels, has other
rows: what reads that, or a copy of it, needs the image whole.
"""

from __future__ import annotations

from collections.abc import Collection

from memfit.graph.model import Graph, Tensor


def moved(graph: Graph, heads: Collection[int], *, last: bool) -> frozenset[int]:
    """Find the operations that read other rows or columns than their input was made of.

    Args:
        graph: captured.
        heads: indices of the operations that become operators; the others copy, or belong to one of these.
        last: True where the channels of images stand last.
    """
    shown: dict[tuple[int, int], Tensor] = {}
    for tensor in graph.tensors:
        shown.setdefault((tensor.storage, tensor.version), tensor)
    found: set[int] = set()
    mixed: set[tuple[int, int]] = set()
    """Storages and versions that hold copies of such views."""
    for op in graph.ops:
        reads = [graph.tensors[i] for i in op.inputs]
        keys = {(tensor.storage, tensor.version) for tensor in reads}
        if not keys & mixed and not any(_moves(shown[t.storage, t.version], t, last=last) for t in reads):
            continue
        if op.index in heads:
            found.add(op.index)
        else:
            made = (graph.tensors[i] for i in op.outputs)
            mixed |= {(tensor.storage, tensor.version) for tensor in made} - keys
    return frozenset(found)


def _moves(image: Tensor, view: Tensor, *, last: bool) -> bool:
    """True if a view's rows and columns are not those of the image."""
    axes = (-3, -2) if last else (-2, -1)
    if len(view.shape) < 4 or all(view.shape[axis] == 1 for axis in axes):
        return False
    return len(image.shape) < 4 or any(
        view.shape[axis] != image.shape[axis] or (view.shape[axis] > 1 and view.strides[axis] != image.strides[axis])
        for axis in axes
    )
