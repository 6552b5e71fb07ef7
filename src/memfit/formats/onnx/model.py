"""What an `.onnx` file says, as plain records.

Field names are the format's (onnx.proto3, IR version 13 and older). Names are kept as the file has them, since they
are how its parts find each other; `shown` from `memfit.formats.flatbuffer` makes them fit to be printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

DTYPES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}
"""TensorProto.DataType → dtype as the graph spells it; texts have no size that the file tells."""


class OnnxTensor(NamedTuple):
    """A constant of the file: an initializer, or a tensor among a node's attributes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any
    """Its values as a NumPy array where they are few; None where they are many, or stand in another file."""
    external: bool = False
    """True where another file holds the values; it is never opened."""
    sparse: bool = False

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


class ValueInfo(NamedTuple):
    """What the file says of a value's type."""

    name: str
    kind: str
    """tensor, sequence, optional, map, sparse or unknown."""
    dtype: str | None
    shape: tuple[int | str | None, ...] | None
    """A text is a symbol, such as `batch`; None an unknown size, or for the whole shape an unknown rank."""


class Node(NamedTuple):
    """One operator of a graph, in the file's order."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a record
    name: str
    op_type: str
    domain: str
    """Empty for the standard operators."""
    overload: str
    inputs: tuple[str, ...]
    """Empty text for an optional input that is left out."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    """Numbers, texts, `OnnxTensor`, `OnnxGraph`, tuples of these, or `Reference` inside a function."""
    scopes: tuple[str, ...] = ()
    """Module paths from outside in, as PyTorch's exporter leaves them in metadata_props."""
    classes: tuple[str, ...] = ()
    """Class of each of these modules."""


class Reference(NamedTuple):
    """An attribute that takes the value of the calling node's attribute."""

    name: str


class OnnxGraph(NamedTuple):
    """A graph of nodes: the network, or the body of a control-flow node."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    initializers: dict[str, OnnxTensor]
    values: dict[str, ValueInfo]
    """value_info: what the exporter knew of the values in between."""


class Function(NamedTuple):
    """An operator that the file itself defines."""

    domain: str
    name: str
    overload: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    """Names of those without a default."""
    defaults: dict[str, Any]
    nodes: tuple[Node, ...]
    opsets: dict[str, int]


@dataclass(frozen=True)
class OnnxModel:
    """An `.onnx` file."""

    source: str
    ir_version: int
    producer: str
    opsets: dict[str, int]
    """Version of each operator set, by domain; the standard one's is empty text."""
    graph: OnnxGraph
    functions: dict[tuple[str, str, str], Function]
    """By domain, name and overload."""
