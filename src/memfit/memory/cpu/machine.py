"""What the workspace rules read: the graph's tensors, the number of threads and the width of a vector.

Layout questions are answered as ATen answers them (c10/core/MemoryFormat.h, TensorImpl's contiguity), from shape and
strides alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from memfit.graph.model import ITEMSIZE, Graph, Op, StorageKind, Tensor

F32 = 4
"""Bytes of a float32."""

LANES = {"AVX512": 16, "AVX2": 8}
"""float32 elements in one vector, the block of oneDNN's blocked layouts, by `environment["isa"]`."""


class Machine:
    """A graph's tensors on the machine that runs them; what every rule is given."""

    __slots__ = ("_ops", "_views", "lanes", "storages", "tensors", "threads")

    def __init__(self, graph: Graph) -> None:
        self._ops = graph.ops
        self._views: set[int] | None = None
        self.tensors = graph.tensors
        self.storages = graph.storages
        self.threads = int(graph.environment.get("threads") or 1)
        self.lanes = LANES.get(str(graph.environment.get("isa")), 0)

    def outputs(self, op: Op) -> list[int]:
        """Bytes of the storages that the operation makes, in order, each once and empty ones left out."""
        made: list[int] = []
        last = -1
        tensors, storages, index = self.tensors, self.storages, op.index
        for o in op.outputs:
            storage = storages[tensors[o].storage]
            if storage.birth == index and storage.nbytes and storage.id != last:
                made.append(storage.nbytes)
                last = storage.id
        return made

    def is_view(self, tensor: int) -> bool:
        """True for what a view operation made: autograd lets it hold on to the tensor that it looks at."""
        if self._views is None:
            self._views = views = set()
            for op in self._ops:
                looked_at = {(self.tensors[i].storage, self.tensors[i].version) for i in op.inputs}
                for o in op.outputs:
                    made = (self.tensors[o].storage, self.tensors[o].version)
                    if made in looked_at and op.target not in _UNTRACKED:
                        views.add(o)
                    else:
                        views.discard(o)
        return tensor in self._views

    def adds_bias(self, op: Op) -> bool:
        """True for the sum that ends `linear` on an input that is not row-major.

        PyTorch adds the bias in place (native/Linear.cpp), but out of place under a dispatch mode, so the capture
        shows a new storage.
        """
        first, second = self.tensors[op.inputs[0]], self.tensors[op.inputs[1]]
        before = self._ops[op.index - 1] if op.index else op
        return (
            before.target == "aten._unsafe_view.default"
            and before.outputs == op.inputs[:1]
            and len(second.shape) == 1
            and self.storages[second.storage].kind is StorageKind.PARAMETER
            and self.storages[first.storage].death == op.index + 1
        )


_UNTRACKED = frozenset({"aten._unsafe_view.default", "aten.detach.default", "aten.alias.default"})
"""Operations that share bytes without being views to autograd."""

Rule = Callable[[Machine, Op], Sequence[int] | None]
"""Signed bytes in the order in which the kernel allocates and frees them; None where the rule does not reach."""


def argument(op: Op, position: int, name: str, default: Any = None) -> Any:
    """A recorded argument, wherever it stands."""
    return op.args[position] if position < len(op.args) else op.kwargs.get(name, default)


def up(value: int, block: int) -> int:
    """`value` rounded up to a multiple of `block`."""
    return -(-value // block) * block


def dense(tensor: Tensor) -> int:
    """Bytes of a contiguous copy."""
    return math.prod(tensor.shape) * ITEMSIZE[tensor.dtype]


def is_contiguous(tensor: Tensor) -> bool:
    """True in row-major order, dimensions of one element aside."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1:
            if size == 0:
                return True
            if stride != expected:
                return False
            expected *= size
    return True


def is_contiguous_last(tensor: Tensor) -> bool:
    """True in channels_last order, dimensions of one element aside."""
    shape, strides = tensor.shape, tensor.strides
    expected = 1
    for d in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[d] != 1:
            if strides[d] != expected:
                return False
            expected *= shape[d]
    return True


def suggests_last(tensor: Tensor) -> bool:
    """True where ATen's `suggest_memory_format` says channels_last: by strides, ambiguous shapes are not."""
    shape, strides = tensor.shape, tensor.strides
    if len(shape) not in {4, 5} or strides[1] == 0:
        return False
    least = 0
    for d in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(shape[d], 1)
    return True


def is_dense(tensor: Tensor) -> bool:
    """True where the elements fill their bytes without gap or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((st, sz) for st, sz in zip(tensor.strides, tensor.shape, strict=True) if sz != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def freed(sizes: list[int]) -> list[int]:
    """The frees of a list of allocations, first made first freed."""
    return [-size for size in sizes]
