"""The graph: what every reader makes and every pass reads. No torch in it.

Units are bytes and elements, intervals are half-open and count operations: a storage with `[birth, death)` is live
while operation `birth` runs and gone before operation `death` starts. Birth of what exists before the first operation
is -1, so that nothing is born twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

ITEMSIZE: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one element, by dtype name as PyTorch and NumPy spell it."""

ITEMBITS: dict[str, int] = {"int4": 4, "uint4": 4, "float4_e2m1": 4, "int2": 2, "uint2": 2}
"""Bits of one element of the types that share bytes."""

BEFORE = -1
"""Birth of a storage that exists before the first operation."""


def packed_bytes(elements: int, dtype: str) -> int:
    """Bytes of dense elements, those under a byte packed as files store them.

    A runtime may hold such elements unpacked; what its memory model says then counts.

    >>> packed_bytes(3, "float32"), packed_bytes(3, "int4")
    (12, 2)
    """
    bits = ITEMBITS.get(dtype)
    return elements * ITEMSIZE[dtype] if bits is None else -(-elements * bits // 8)


class StorageKind(StrEnum):
    """What a storage holds."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    CONSTANT = "constant"
    WORKSPACE = "workspace"


class Phase(StrEnum):
    """The part of a step that an operation belongs to."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    STEP = "step"


class Storage(NamedTuple):
    """Bytes that live together; views of one tensor share one storage."""

    id: int
    nbytes: int
    kind: StorageKind
    birth: int
    """Operation that makes it, or BEFORE."""
    death: int
    """Eager lifetime's end: the first operation before which Python has dropped the last reference."""
    ideal_death: int
    """Ideal lifetime's end: one past the last operation that uses it; graph outputs live to the end."""


class Tensor(NamedTuple):
    """A value: a typed, strided window on one version of a storage."""

    id: int
    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    offset: int = 0
    """First element, counted from the start of the storage in elements of `dtype`."""
    version: int = 0
    """How many operations have written to the storage before this value."""
    name: str | None = None
    """Name of a parameter, a buffer, an input or a language model's cache; None for what else operations make."""
    trainable: bool = False
    """True for a parameter that requires a gradient."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Dense bytes of the elements, whatever the storage holds besides."""
        return packed_bytes(math.prod(self.shape), self.dtype)


class Ref(int):
    """A tensor id inside an operation's recorded arguments."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"%{int(self)}"


class Symbol(str):
    """A dtype, device, layout or memory format inside an operation's recorded arguments, by name."""

    __slots__ = ()


class Op(NamedTuple):
    """One operation, in the order in which it ran."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a record
    kind: str
    """The field's word: conv2d, depthwise_conv2d, linear, add, relu6."""
    target: str
    """The framework's own name, which replay calls: aten.convolution.default."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attrs: dict[str, Any]
    """Kernel, stride, padding, dilation, groups, convolution backend; JSON values, tuples for lists."""
    scope: int
    """Index of the module that ran it."""
    saved: tuple[int, ...] = ()
    """Tensors that autograd keeps for this operation's backward."""
    macs: int = 0
    phase: Phase = Phase.FORWARD
    args: tuple[Any, ...] = ()
    """Recorded arguments for replay: `Ref` for tensors, `Symbol` for dtypes and devices, tuples for lists."""
    kwargs: dict[str, Any] = {}  # noqa: RUF012  (never written to; a NamedTuple has no default factory)


class Scope(NamedTuple):
    """One module of the model's tree."""

    index: int  # type: ignore[assignment]
    path: str
    """Dotted path from the root; the root's is empty."""
    class_name: str
    parent: int
    """Index of the enclosing module; -1 for the root."""
    container: bool = False
    """True for Sequential and ModuleList, whose members are peers."""
    params: tuple[int, ...] = ()
    """Ids of the tensors of its own parameters, children's excluded."""
    buffers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=True)
class Graph:
    """A captured network.

    Scopes stand in the order of `named_modules()`, the root first. `source` is what the user named, `environment`
    what the capture depended on (device, threads, instruction set, versions) and `notes` what a reader of any figure
    made from this graph must know, such as a stated worst case.
    """

    storages: tuple[Storage, ...]
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    scopes: tuple[Scope, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: str = ""
    training: bool = False
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    constants: dict[int, str] = field(default_factory=dict)
    """Bytes of small tensors made from literals, base64, by tensor id: what replay needs and cannot compute."""
    host: tuple[int, ...] = ()
    """Storages in the host's memory, in a graph captured for another device."""
    origin: Any = field(default=None, compare=False, repr=False)
    """The records of the file that it was read from (`memfit.formats`), for passes of that format; not saved."""

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter once, in the order of the module tree."""
        return (t for t in self.tensors if t.name and self.storages[t.storage].kind is StorageKind.PARAMETER)

    def buffers(self) -> Iterator[Tensor]:
        """Every buffer once, in the order of the module tree."""
        return (t for t in self.tensors if t.name and self.storages[t.storage].kind is StorageKind.BUFFER)

    def is_alias(self, op: Op) -> bool:
        """True where the operation makes no bytes and changes none: all outputs view an input's value.

        An operation without outputs is none.
        """
        tensors = self.tensors
        values = {(tensors[i].storage, tensors[i].version) for i in op.inputs}
        return bool(op.outputs) and all((tensors[o].storage, tensors[o].version) in values for o in op.outputs)

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Bytes of the storages alive while each operation runs, eager lifetimes; parameters and buffers left out."""
        return self._live(eager=True)

    @cached_property
    def ideal_live_bytes(self) -> tuple[int, ...]:
        """The same with ideal lifetimes."""
        return self._live(eager=False)

    def _live(self, *, eager: bool) -> tuple[int, ...]:
        count = len(self.ops)
        delta = [0] * (count + 1)
        for s in self.storages:
            if s.kind is StorageKind.PARAMETER or s.kind is StorageKind.BUFFER:
                continue
            delta[min(max(s.birth, 0), count)] += s.nbytes
            delta[min(s.death if eager else s.ideal_death, count)] -= s.nbytes
        total, live = 0, []
        for change in delta[:count]:
            total += change
            live.append(total)
        return tuple(live)
