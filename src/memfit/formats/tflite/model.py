"""What a `.tflite` file says, as plain records.

Field names are the schema's (tensorflow/compiler/mlir/lite/schema/schema.fbs, version 3). Sizes are bytes, places
count from the start of the file, indices are those of the file: tensors and operators within their subgraph, buffers
and operator codes within the model.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from memfit.formats.flatbuffer import Span

OFFLINE_MEMORY_ALLOCATION = "OfflineMemoryAllocation"
"""Metadata entry whose offsets TFLM obeys: kOfflineMemAllocMetadata, micro_allocation_info.cc."""

COMPRESSION = "COMPRESSION_METADATA"
"""Metadata entry of files whose constants TFLM unpacks as it runs: METADATA_KEY, tensorflow/lite/micro/compression."""

OFFLINE_VERSION = 1
"""First value of that entry; tensorflow/lite/micro/docs/memory_management.md."""

ONLINE_PLANNED = -1
"""Offset that leaves a tensor to the runtime: kOnlinePlannedBuffer, greedy_memory_planner.h."""

TYPE_BITS: dict[str, int] = {
    "FLOAT32": 32,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "FLOAT64": 64,
    "FLOAT8_E4M3FN": 8,
    "FLOAT8_E5M2": 8,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
    "INT2": 2,
    "INT4": 4,
    "UINT4": 4,
    "INT8": 8,
    "UINT8": 8,
    "INT16": 16,
    "UINT16": 16,
    "INT32": 32,
    "UINT32": 32,
    "INT64": 64,
    "UINT64": 64,
    "BOOL": 8,
    "RESOURCE": 32,
}
"""Bits of one element as the file stores it; a resource is the 32-bit handle of TFLM (memory_helpers.cc).

Texts and variants have no size of their own and are not listed.
"""


class Quantization(NamedTuple):
    """How a tensor's integers stand for real numbers: real = scale · (integer - zero point)."""

    scales: tuple[float, ...]
    """One, or one per index of `dimension`."""
    zero_points: tuple[int, ...]
    dimension: int
    """quantized_dimension."""
    details: str | None
    """CustomQuantization, BlockwiseQuantization …, which then stand in the place of the above; None as a rule."""


class TfliteTensor(NamedTuple):
    """One tensor of a subgraph."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a record
    name: str
    """Fit to be shown: control characters escaped, long ones cut."""
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    """shape_signature: -1 where the size may vary; empty where it says nothing."""
    type: str
    """As in the schema's TensorType: INT8, FLOAT32."""
    buffer: int
    """0 by custom for a tensor without data."""
    data: Span | None
    """Its buffer's bytes; None for what is made at run time."""
    quantization: Quantization | None
    """None where the table is missing; scales may be empty where it is there."""
    is_variable: bool
    has_rank: bool
    sparse: bool
    external: int
    """external_buffer: other than 0 for data in another file."""

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def is_constant(self) -> bool:
        """True where the file, or one beside it, holds its data: TFLM gives it no memory."""
        return self.data is not None or self.external != 0

    @property
    def nbytes(self) -> int:
        """Bytes of its elements as a file stores them, types under a byte packed.

        TFLM unpacks: in its arena an element of INT4 takes a byte (memory_helpers.cc, TfLiteTypeSizeOf).
        """
        return -(-self.elements * TYPE_BITS.get(self.type, 8) // 8)


class OperatorCode(NamedTuple):
    """One kind of operator that the model uses."""

    builtin: int
    """BuiltinOperator: the larger of builtin_code and deprecated_builtin_code."""
    name: str
    """CONV_2D; a custom operator's own name; BUILTIN_n for a code that the schema package does not know."""
    version: int
    is_custom: bool


class Operator(NamedTuple):
    """One operator of a subgraph, in order of execution."""

    index: int  # type: ignore[assignment]
    code: int
    """Index into the model's operator codes."""
    name: str
    """The code's name."""
    is_custom: bool
    """True for a custom operator, which may go by any name, a builtin's too."""
    version: int
    inputs: tuple[int, ...]
    """Tensor indices; -1 for an optional input that is left out."""
    outputs: tuple[int, ...]
    intermediates: tuple[int, ...]
    mutating_variable_inputs: tuple[bool, ...]
    options_type: str | None
    """Conv2DOptions …; None without builtin options."""
    options: dict[str, Any]
    """Numbers, truth values, texts and tuples of numbers, defaults filled in; nested tables are left out."""
    custom_options: Span | None
    """Of a custom operator, wherever the file keeps them."""


class Subgraph(NamedTuple):
    """One graph of operators; the first one is the network."""

    index: int  # type: ignore[assignment]
    name: str
    tensors: tuple[TfliteTensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Buffer(NamedTuple):
    """One entry of the model's buffers."""

    data: Span | None
    """None for an empty one."""
    outside: bool
    """True where the bytes stand behind the flatbuffer, as in files of more than 2 GB."""


class Metadata(NamedTuple):
    """One named buffer."""

    name: str
    buffer: int


class SignatureDef(NamedTuple):
    """Names of inputs and outputs by which programs call a subgraph."""

    key: str
    subgraph: int
    inputs: tuple[tuple[str, int], ...]
    """(name, tensor index)."""
    outputs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TfliteModel:
    """A `.tflite` file; every index in it has been checked.

    `data` holds the file's bytes (or maps them) for `content`, and is left out of comparison and of `repr`.
    """

    source: str
    version: int
    description: str
    codes: tuple[OperatorCode, ...]
    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[Buffer, ...]
    metadata: tuple[Metadata, ...]
    metadata_buffer: tuple[int, ...]
    """Deprecated: buffers without names."""
    signatures: tuple[SignatureDef, ...]
    data: Any = field(repr=False, compare=False, default=b"")

    @property
    def main(self) -> Subgraph:
        """The network itself."""
        return self.subgraphs[0]

    def content(self, span: Span | None) -> bytes:
        """Copy bytes out of the file; empty for None."""
        return b"" if span is None else bytes(self.data[span.offset : span.offset + span.nbytes])

    @property
    def offline_offsets(self) -> tuple[int, ...] | None:
        """Offsets of an OfflineMemoryAllocation entry, one per tensor, -1 where the runtime plans; None without one.

        The last such entry counts, as in TFLM. An entry that is cut short gives None: the runtime would read past it.
        """
        entries = [m for m in self.metadata if m.name == OFFLINE_MEMORY_ALLOCATION]
        raw = self.content(self.buffers[entries[-1].buffer].data) if entries else b""
        if len(raw) < 12:
            return None
        count = struct.unpack_from("<I", raw, 8)[0]
        return struct.unpack_from(f"<{count}i", raw, 12) if len(raw) >= 12 + 4 * count else None
