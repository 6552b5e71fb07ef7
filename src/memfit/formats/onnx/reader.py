"""From the bytes of an `.onnx` file to records, with every type, size and name looked at.

The `onnx` package holds the format's protobuf classes; its shape inference and its checker, which are C++, are not
called. Weights are never read: see `wire`. Files beside the model are never opened.
"""

from __future__ import annotations

import ast
import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from memfit.errors import MissingExtra, SourceError
from memfit.formats.flatbuffer import shown
from memfit.formats.onnx.model import (
    DTYPES,
    Function,
    Node,
    OnnxGraph,
    OnnxModel,
    OnnxTensor,
    Reference,
    ValueInfo,
)
from memfit.formats.onnx.wire import KEPT_BYTES, REMOVED, without_weights

RANK = 32
"""Dimensions of a tensor; NumPy and PyTorch take 64, real networks 8."""

ELEMENTS = 1 << 40
"""Elements of a tensor; 1 TiB of int8."""

NODES = 30_000
"""Nodes that one file may hold, those of functions and of control flow included.

Keeps the slowest file under 2 s; large language models have 5,000.
"""

VALUES = 1_500_000
"""Names, dimensions and numbers that one file may make the reader look at. Keeps the slowest file under 2 s."""

DEPTH = 12
"""Levels of graphs inside nodes; each takes several of Python's frames."""

_MAPPED_BYTES = 4 << 20
"""Larger files are mapped, not read."""

_TYPED: dict[str, tuple[str, str | None]] = {
    "float32": ("float_data", "f4"),
    "float64": ("double_data", "f8"),
    "int64": ("int64_data", "i8"),
    "uint64": ("uint64_data", "u8"),
    "uint32": ("uint64_data", "u4"),
    **{name: ("int32_data", code) for name, code in (
        ("int32", "i4"), ("int16", "i2"), ("int8", "i1"), ("uint16", "u2"), ("uint8", "u1"), ("bool", "?"),
        ("float16", "f2"),
    )},
    "complex64": ("float_data", None),
    "complex128": ("double_data", None),
    "string": ("string_data", None),
}  # fmt: skip
"""Dtype → the field that holds its values where raw_data does not, and NumPy's code; None: values are not looked at."""

_BITS = {"uint4": 4, "int4": 4, "float4_e2m1": 4, "uint2": 2, "int2": 2, "float64": 64, "int64": 64, "uint64": 64,
         "complex64": 64, "complex128": 128, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "bfloat16": 16,
         "int16": 16, "uint16": 16}  # fmt: skip
"""Bits of one element; 8 where nothing is said."""


def read_model(path: str | Path) -> OnnxModel:
    """Read an `.onnx` file; files of weights beside it need not be there.

    Raises:
        SourceError: there is no such file, it is no `.onnx` file, or it is damaged: what, where in the format's
            words, and what stands there.
        MissingExtra: the package `onnx` is not installed.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size > _MAPPED_BYTES else file.read()
    except OSError as error:
        raise SourceError(
            "the file cannot be read", where=source, received=error.strerror or str(error), todo="check the path"
        ) from error
    return parse_model(data, source)


def parse_model(data: Any, source: str = "model.onnx") -> OnnxModel:
    """Read the bytes of an `.onnx` file; `source` names it in messages. Errors as for `read_model`.

    >>> import onnx
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    >>> model = parse_model(helper.make_model(graph).SerializeToString())
    >>> model.graph.nodes[0].op_type, model.graph.inputs[0].shape
    ('Relu', ('N', 4))
    """
    try:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto
    except ImportError as error:
        raise MissingExtra(
            "reading .onnx files needs onnx, which is not installed",
            where="onnx",
            received=source,
            todo="pip install 'memfit[onnx]'",
        ) from error
    if not len(data):
        raise SourceError(
            "this is not an .onnx file",
            where=source,
            received="an empty file",
            todo="give a model that an exporter to ONNX wrote",
        )
    proto = ModelProto()
    try:
        proto.ParseFromString(without_weights(data, source))
    except (DecodeError, RecursionError) as error:
        raise SourceError(
            "this is not an .onnx file, or it is damaged: it cannot be read as protobuf",
            where=source,
            received=f"{len(data):,} bytes that begin with {bytes(data[:8])!r}",
            todo="check the file: convert the model again, or copy it again",
        ) from error
    return _Reader(source).model(proto)


class _Reader:
    """One file being read."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.nodes = 0
        self.values = 0

    def model(self, proto: Any) -> OnnxModel:
        if not proto.HasField("graph"):
            raise self.damaged("it holds no network", "model.graph", "nothing")
        opsets = self._opsets(proto.opset_import, "model.opset_import")
        functions: dict[tuple[str, str, str], Function] = {}
        for index, entry in enumerate(proto.functions):
            function = self._function(entry, f"model.functions[{index}]", opsets)
            key = (function.domain, function.name, function.overload)
            if key in functions:
                raise self.damaged("two functions have one name", f"model.functions[{index}]", self.show(function.name))
            functions[key] = function
        return OnnxModel(
            source=self.source,
            ir_version=proto.ir_version,
            producer=show(self.text(proto.producer_name), 200),
            opsets=opsets,
            graph=self._graph(proto.graph, "graph", 0),
            functions=functions,
        )

    def _opsets(self, entries: Any, where: str) -> dict[str, int]:
        found: dict[str, int] = {}
        self.spend(len(entries), where)
        for entry in entries:
            domain = _domain(self.text(entry.domain))
            found[domain] = max(found.get(domain, 0), entry.version)
        return found

    # -- graphs ----------------------------------------------------------------------------------------------------

    def _graph(self, proto: Any, where: str, depth: int) -> OnnxGraph:
        if depth > DEPTH:
            raise self.damaged(f"graphs stand inside each other more than {DEPTH} deep", where, "one more")
        initializers: dict[str, OnnxTensor] = {}
        for index, entry in enumerate(proto.initializer):
            place = f"{where}.initializer[{index}]"
            self._hold(self._tensor(entry, place), initializers, place)
        for index, entry in enumerate(proto.sparse_initializer):
            place = f"{where}.sparse_initializer[{index}]"
            self._hold(self._sparse(entry, place), initializers, place)
        values = [self._info(entry, f"{where}.value_info[{i}]") for i, entry in enumerate(proto.value_info)]
        return OnnxGraph(
            name=self.text(proto.name),
            nodes=tuple(self._node(entry, index, where, depth) for index, entry in enumerate(proto.node)),
            inputs=tuple(self._info(entry, f"{where}.input[{i}]") for i, entry in enumerate(proto.input)),
            outputs=tuple(self._info(entry, f"{where}.output[{i}]") for i, entry in enumerate(proto.output)),
            initializers=initializers,
            values={value.name: value for value in values},
        )

    def _hold(self, tensor: OnnxTensor, held: dict[str, OnnxTensor], where: str) -> None:
        if tensor.name in held:
            raise self.damaged("two initializers have one name", where, self.show(tensor.name))
        if not tensor.name:
            raise self.damaged("an initializer has no name", where, "empty text")
        held[tensor.name] = tensor

    def _node(self, proto: Any, index: int, where: str, depth: int) -> Node:
        self.nodes += 1
        if self.nodes > NODES:
            raise self.damaged(f"it holds more than {NODES:,} nodes", f"{where}.node[{index}]", "one more")
        self.spend(len(proto.input) + len(proto.output) + len(proto.attribute) + len(proto.metadata_props), where)
        place = f"{where}.node[{index}]"
        attributes = {}
        for entry in proto.attribute:
            name = self.text(entry.name)
            if name in attributes:
                raise self.damaged("an attribute is given twice", place, self.show(name))
            attributes[name] = self._attribute(entry, f"{place}.{self.show(name)}", depth)
        scopes: tuple[str, ...] = ()
        classes: tuple[str, ...] = ()
        for entry in proto.metadata_props:
            if entry.key == "pkg.torch.onnx.name_scopes":
                scopes = _texts(self.text(entry.value))
            elif entry.key == "pkg.torch.onnx.class_hierarchy":
                classes = _texts(self.text(entry.value))
        return Node(
            index,
            self.text(proto.name),
            self.text(proto.op_type),
            _domain(self.text(proto.domain)),
            self.text(proto.overload),
            tuple(self.text(name) for name in proto.input),
            tuple(self.text(name) for name in proto.output),
            attributes,
            scopes,
            classes,
        )

    def _function(self, proto: Any, where: str, opsets: dict[str, int]) -> Function:
        self.spend(len(proto.input) + len(proto.output) + len(proto.attribute), where)
        defaults = {}
        for entry in proto.attribute_proto:
            name = self.text(entry.name)
            defaults[name] = self._attribute(entry, f"{where}.{self.show(name)}", 0)
        return Function(
            domain=_domain(self.text(proto.domain)),
            name=self.text(proto.name),
            overload=self.text(proto.overload),
            inputs=tuple(self.text(name) for name in proto.input),
            outputs=tuple(self.text(name) for name in proto.output),
            attributes=tuple(self.text(name) for name in proto.attribute),
            defaults=defaults,
            nodes=tuple(self._node(entry, index, where, 0) for index, entry in enumerate(proto.node)),
            opsets=self._opsets(proto.opset_import, where) or opsets,
        )

    def _attribute(self, proto: Any, where: str, depth: int) -> Any:
        reference = self.text(proto.ref_attr_name)
        if reference:
            return Reference(reference)
        kind = proto.type or _kind_of(proto)
        if kind == 1:
            return float(proto.f)
        if kind == 2:
            return int(proto.i)
        if kind == 3:
            self.spend(len(proto.s) // 8, where)
            return self.text(proto.s)
        if kind == 4:
            return self._tensor(proto.t, where)
        if kind == 5:
            return self._graph(proto.g, where, depth + 1)
        if kind in (6, 7, 8):
            items = {6: proto.floats, 7: proto.ints, 8: proto.strings}[kind]
            self.spend(len(items), where)
            return tuple(self.text(item) for item in items) if kind == 8 else tuple(items)
        if kind == 9:
            return tuple(self._tensor(entry, f"{where}[{i}]") for i, entry in enumerate(proto.tensors))
        if kind == 10:
            return tuple(self._graph(entry, f"{where}[{i}]", depth + 1) for i, entry in enumerate(proto.graphs))
        if kind == 11:
            return self._sparse(proto.sparse_tensor, where)
        return None  # types, which only operators on sequences and optionals have

    # -- tensors and types -----------------------------------------------------------------------------------------

    def _tensor(self, proto: Any, where: str) -> OnnxTensor:
        name = self.text(proto.name)
        dtype = DTYPES.get(proto.data_type)
        if dtype is None:
            raise self.damaged("a constant has no known type", where, f"data_type {proto.data_type}")
        shape = self._shape(proto.dims, where)
        elements = math.prod(shape)
        external = proto.data_location == 1
        removed = any(entry.key == REMOVED for entry in proto.external_data)
        data = None if external or removed else self._values(proto, dtype, shape, where)
        if removed and proto.raw_data:  # a payload in two fields
            raise self.damaged("a constant's values stand in two fields", where, self.show(name))
        if not external and removed:
            self._check_removed(proto, dtype, elements, where)
        return OnnxTensor(name, dtype, shape, data, external)

    def _check_removed(self, proto: Any, dtype: str, elements: int, where: str) -> None:
        """Hold the length of a payload that was left out against the shape, as far as it tells."""
        for entry in proto.external_data:
            if entry.key == REMOVED and entry.value.isdecimal() and len(entry.value) < 20:
                held, bits = int(entry.value), _BITS.get(dtype, 8)
                few = dtype != "string" and held * 8 < elements * min(bits, 8)
                if few or (dtype != "string" and held > 16 * max(1, elements)):
                    raise self.damaged(
                        "a constant has more or less data than its shape",
                        where,
                        f"{held:,} bytes for {elements:,} elements of {dtype}",
                    )

    def _values(self, proto: Any, dtype: str, shape: tuple[int, ...], where: str) -> Any:
        """Read the values of a constant that is small."""
        elements = math.prod(shape)
        field, code = _TYPED.get(dtype, ("int32_data", None))
        raw, typed = proto.raw_data, getattr(proto, field)
        if raw:
            wanted = -(-elements * _BITS.get(dtype, 8) // 8)
            if len(raw) != wanted:
                raise self.damaged(
                    "a constant has more or less data than its shape",
                    where,
                    f"{len(raw):,} bytes instead of {wanted:,} for {'x'.join(map(str, shape)) or 'a scalar'} {dtype}",
                )
            return None if code is None else np.frombuffer(raw, dtype=f"<{code}").reshape(shape)
        self.spend(len(typed), where)
        if code is None:
            return None
        if len(typed) != elements:
            raise self.damaged(
                "a constant has more or less data than its shape",
                where,
                f"{len(typed):,} values instead of {elements:,} for {'x'.join(map(str, shape)) or 'a scalar'} {dtype}",
            )
        if elements > KEPT_BYTES:
            return None
        if dtype == "float16":
            return np.array([v & 0xFFFF for v in typed], dtype=np.uint16).view(np.float16).reshape(shape)
        kind = np.dtype(code)
        if kind.kind in "iu":
            low, high = np.iinfo(kind).min, np.iinfo(kind).max
            if any(not low <= value <= high for value in typed):
                raise self.damaged("a constant holds a number that its type cannot", where, dtype)
        with np.errstate(all="ignore"):
            return np.array(list(typed), dtype=kind).reshape(shape)

    def _sparse(self, proto: Any, where: str) -> OnnxTensor:
        inner = self._tensor(proto.values, f"{where}.values")
        return OnnxTensor(inner.name, inner.dtype, self._shape(proto.dims, where), None, sparse=True)

    def _shape(self, dims: Iterable[int], where: str) -> tuple[int, ...]:
        shape = tuple(int(size) for size in dims)
        self.spend(len(shape), where)
        if len(shape) > RANK or any(size < 0 for size in shape) or math.prod(shape) > ELEMENTS:
            text = "x".join(map(str, shape[:RANK])) + ("…" if len(shape) > RANK else "")
            raise self.damaged("a tensor has no possible shape", where, text)
        return shape

    def _info(self, proto: Any, where: str) -> ValueInfo:
        name = self.text(proto.name)
        kind = proto.type.WhichOneof("value") or "unknown"
        if kind != "tensor_type":
            return ValueInfo(name, kind.removesuffix("_type"), None, None)
        tensor = proto.type.tensor_type
        dtype = DTYPES.get(tensor.elem_type)
        if not tensor.HasField("shape"):
            return ValueInfo(name, "tensor", dtype, None)
        self.spend(len(tensor.shape.dim), where)
        if len(tensor.shape.dim) > RANK:
            raise self.damaged("a tensor has no possible shape", where, f"{len(tensor.shape.dim)} dimensions")
        sizes: list[int | str | None] = []
        for dim in tensor.shape.dim:
            held = dim.WhichOneof("value")
            if held == "dim_value":
                sizes.append(int(dim.dim_value) if dim.dim_value >= 0 else None)
            else:
                sizes.append(self.text(dim.dim_param) or None if held else None)
        return ValueInfo(name, "tensor", dtype, tuple(sizes))

    # -- words -----------------------------------------------------------------------------------------------------

    def text(self, value: str | bytes) -> str:
        """Give a text; bytes that are none become escapes, so that two names stay two."""
        return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")

    def show(self, name: str) -> str:
        """Make a name fit to be printed."""
        return show(name)

    def spend(self, values: int, where: str) -> None:
        """Count what the file makes the reader look at."""
        self.values += values + 1
        if self.values > VALUES:
            raise self.damaged("it holds more than any network needs", where, f"more than {VALUES:,} names and numbers")

    def damaged(self, what: str, where: str, received: str) -> SourceError:
        """Make the error for a file that is not right."""
        return SourceError(
            f"this .onnx file is damaged: {what}",
            where=f"{self.source}: {where}",
            received=received or "empty text",
            todo="convert the model again, or copy the file again",
        )


def show(name: str, limit: int = 1024) -> str:
    r"""Make a name of a file fit to be printed: control characters become escapes, long names end.

    >>> show("conv\x1b[31m"), show("abcdef", 3)
    ('conv\\x1b[31m', 'abc…')
    """
    return shown(name[:limit].encode("utf-8", "backslashreplace")) + ("…" if len(name) > limit else "")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _kind_of(proto: Any) -> int:
    """Find the type of an attribute that does not say it, as old files may."""
    for kind, field in ((1, "f"), (2, "i"), (3, "s"), (4, "t"), (5, "g")):
        if proto.HasField(field):
            return kind
    for kind, field in ((6, "floats"), (7, "ints"), (8, "strings"), (9, "tensors"), (10, "graphs")):
        if len(getattr(proto, field)):
            return kind
    return 0


def _texts(text: str) -> tuple[str, ...]:
    """Read a list of texts that PyTorch's exporter wrote as a Python literal."""
    if len(text) > 8192 or not text.startswith("["):
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else ()
