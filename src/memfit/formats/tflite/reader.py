"""From the bytes of a `.tflite` file to records, with every offset, length and index checked."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from memfit.errors import SourceError
from memfit.formats.flatbuffer import Field, File, Layout, Schema, Span, Table
from memfit.formats.tflite.model import (
    COMPRESSION,
    TYPE_BITS,
    Buffer,
    Metadata,
    Operator,
    OperatorCode,
    Quantization,
    SignatureDef,
    Subgraph,
    TfliteModel,
    TfliteTensor,
)

IDENTIFIER = b"TFL3"
VERSION = 3
"""TFLITE_SCHEMA_VERSION: the one that TFLM's examples and converters of the last years use."""

RANK = 16
"""Dimensions of a tensor; TFLM's kernels take 6 at the most (RuntimeShape, kernels/internal/runtime_shape.h)."""

ELEMENTS = 1 << 40
"""Elements of a tensor; 1 TiB of int8."""

CUSTOM = 32
"""BuiltinOperator.CUSTOM."""

_MAPPED_BYTES = 64 << 20
"""Larger files are mapped, not read: only the tables of a model of gigabytes are looked at."""

_NEWER_TYPES = {19: "INT2", 20: "UINT4", 21: "FLOAT8_E4M3FN", 22: "FLOAT8_E5M2"}
_NEWER_FIELDS = {"Tensor": {"external_buffer": Field(10, "I", 0, 0)}}
"""Of schema version 3d, which the package does not know yet:
https://github.com/tensorflow/tflite-micro/blob/1ed28607b122bc1d2bc4c553eb0d76f87cffa381/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

_VECTORS = {
    ("ReshapeOptions", "new_shape"): "i",
    ("SqueezeOptions", "squeeze_dims"): "i",
    ("BucketizeOptions", "boundaries"): "f",
}
_TEXTS = {("VarHandleOptions", "container"), ("VarHandleOptions", "shared_name")}
"""Options that are no plain numbers; what is in neither list is left out."""

_CALLS = {
    "IF": ("then_subgraph_index", "else_subgraph_index"),
    "WHILE": ("cond_subgraph_index", "body_subgraph_index"),
    "CALL_ONCE": ("init_subgraph_index",),
}
"""Operators that run other subgraphs, and the options that say which."""


def read_model(path: str | Path) -> TfliteModel:
    """Read a `.tflite` file.

    Raises:
        SourceError: there is no such file, it is no `.tflite` file, or it is damaged: what, where in the schema's
            words, and what stands there.
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


def parse_model(data: Any, source: str = "model.tflite") -> TfliteModel:
    """Read the bytes of a `.tflite` file; `source` names it in messages. Errors as for `read_model`."""
    file = File(data, source, ".tflite")
    if bytes(data[4:8]) != IDENTIFIER:
        raise SourceError(
            "this is not a .tflite file",
            where=source,
            received=f"{file.size:,} bytes that begin with {bytes(data[:8])!r}" if file.size else "an empty file",
            todo="give a file that TensorFlow Lite's converter wrote",
        )
    return _Reader(file).model()


class _Reader:
    """One file being read."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.schema = Schema("tflite", _NEWER_FIELDS)
        self.types = {**_NEWER_TYPES, **self.schema.names("TensorType")}
        self.builtins = self.schema.names("BuiltinOperator")
        self.options = {"": self.schema.names("BuiltinOptions"), "2": self.schema.names("BuiltinOptions2")}
        self.details = self.schema.names("QuantizationDetails")
        self.buffers: tuple[Buffer, ...] = ()
        self.codes: tuple[OperatorCode, ...] = ()
        self.compressed = False

    def layout(self, name: str) -> Layout:
        return self.schema.layout(name)

    def model(self) -> TfliteModel:
        file = self.file
        root = Table(file, file.reference(0, "the root"), self.layout("Model"), "model")
        version = root.number("version")
        if version != VERSION:
            raise SourceError(
                "this .tflite file has another version of the format",
                where=f"{file.source}: model.version",
                received=f"version {version}",
                todo=f"convert the model again: memfit reads version {VERSION}",
            )
        self.buffers = tuple(self._buffer(table) for table in root.tables("buffers", self.layout("Buffer")))
        self.codes = tuple(self._code(t) for t in root.tables("operator_codes", self.layout("OperatorCode")))
        metadata = tuple(self._metadata(t) for t in root.tables("metadata", self.layout("Metadata")))
        self.compressed = any(entry.name == COMPRESSION for entry in metadata)
        subgraphs = tuple(
            self._subgraph(table, index)
            for index, table in enumerate(root.tables("subgraphs", self.layout("SubGraph")))
        )
        if not subgraphs:
            raise file.damaged("it holds no network", "model.subgraphs", "no subgraph")
        self._check_calls(subgraphs)
        return TfliteModel(
            source=file.source,
            version=version,
            description=root.text("description") or "",
            codes=self.codes,
            subgraphs=subgraphs,
            buffers=self.buffers,
            metadata=metadata,
            metadata_buffer=self._indices(root, "metadata_buffer", len(self.buffers), "buffers", low=None),
            signatures=tuple(
                self._signature(table, subgraphs)
                for table in root.tables("signature_defs", self.layout("SignatureDef"))
            ),
            data=file.data,
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def _buffer(self, table: Table) -> Buffer:
        inside = table.bytes("data")
        offset, size = table.number("offset"), table.number("size")
        if offset > 1:  # the schema's rule for data behind the flatbuffer
            return Buffer(self._outside(offset, size, table.where), outside=True)
        return Buffer(inside if inside is not None and inside.nbytes else None, outside=False)

    def _outside(self, offset: int, size: int, where: str) -> Span | None:
        if offset + size > self.file.size:
            raise self.file.damaged(
                "data behind the tables reaches past the end of the file",
                where,
                f"{size:,} bytes at byte {offset:,} of {self.file.size:,}",
            )
        return Span(offset, size) if size else None

    def _code(self, table: Table) -> OperatorCode:
        builtin = max(table.number("builtin_code"), table.number("deprecated_builtin_code"))
        custom = table.text("custom_code")
        if builtin == CUSTOM and not custom:
            raise self.file.damaged("a custom operator has no name", table.where, "custom_code is missing")
        name = self.builtins.get(builtin, f"BUILTIN_{builtin}") if builtin != CUSTOM else str(custom)
        return OperatorCode(builtin, name, table.number("version"), builtin == CUSTOM)

    def _subgraph(self, table: Table, index: int) -> Subgraph:
        tensors = tuple(
            self._tensor(tensor, position)
            for position, tensor in enumerate(table.tables("tensors", self.layout("Tensor")))
        )
        count = len(tensors)
        operators = tuple(
            self._operator(operator, position, count)
            for position, operator in enumerate(table.tables("operators", self.layout("Operator")))
        )
        return Subgraph(
            index,
            table.text("name") or "",
            tensors,
            operators,
            self._indices(table, "inputs", count, "tensors"),
            self._indices(table, "outputs", count, "tensors"),
        )

    def _tensor(self, table: Table, index: int) -> TfliteTensor:
        file, where = self.file, table.where
        shape = table.numbers("shape", "i")
        if len(shape) > RANK:
            raise file.damaged(f"a tensor has more than {RANK} dimensions", where, f"{len(shape):,} dimensions")
        code = table.number("type")
        kind = self.types.get(code)
        if kind is None:
            raise file.damaged("a tensor has a type that the format does not have", f"{where}.type", str(code))
        elements = 1
        for size in shape:
            elements *= size
        if min(shape, default=0) < 0 or elements > ELEMENTS:
            raise file.damaged(
                "a tensor has a size that cannot be", f"{where}.shape", "x".join(map(str, shape)) or "scalar"
            )
        buffer = table.number("buffer")
        if buffer >= len(self.buffers):
            raise file.damaged(
                "a tensor names a buffer that is not there", f"{where}.buffer", f"{buffer} of {len(self.buffers)}"
            )
        data = self.buffers[buffer].data
        sparse = bool(table.place("sparsity"))
        name = table.text("name") or ""
        tensor = TfliteTensor(
            index,
            name,
            shape,
            table.numbers("shape_signature", "i"),
            kind,
            buffer,
            data,
            self._quantization(table),
            table.number("is_variable"),
            table.number("has_rank"),
            sparse,
            table.number("external_buffer"),
        )
        whole = not sparse and not self.compressed and kind in TYPE_BITS
        if data is not None and whole and data.nbytes < tensor.nbytes:
            raise self.file.damaged(
                "a constant has less data than its shape asks for",
                f"{where} ({name})" if name else where,
                f"{data.nbytes:,} bytes for {'x'.join(map(str, shape)) or 'a scalar'} of {kind}",
            )
        return tensor

    def _quantization(self, table: Table) -> Quantization | None:
        found = table.table("quantization", self.layout("QuantizationParameters"))
        if found is None:
            return None
        details = found.number("details_type")
        return Quantization(
            found.numbers("scale", "f"),
            found.numbers("zero_point", "q"),
            found.number("quantized_dimension"),
            self.details.get(details, f"details {details}") if details else None,
        )

    def _operator(self, table: Table, index: int, tensors: int) -> Operator:
        code = table.number("opcode_index")
        if code >= len(self.codes):
            raise self.file.damaged(
                "an operator's kind is not in the model's list",
                f"{table.where}.opcode_index",
                f"{code} of {len(self.codes)}",
            )
        kind = self.codes[code]
        options_type, options = self._options(table)
        custom = table.bytes("custom_options")
        offset = table.number("large_custom_options_offset")
        if offset > 1:
            custom = self._outside(offset, table.number("large_custom_options_size"), table.where)
        return Operator(
            index,
            code,
            kind.name,
            kind.is_custom,
            kind.version,
            self._indices(table, "inputs", tensors, "tensors", low=-1),
            self._indices(table, "outputs", tensors, "tensors"),
            self._indices(table, "intermediates", tensors, "tensors", low=-1),
            tuple(bool(flag) for flag in table.numbers("mutating_variable_inputs", "B")),
            options_type,
            options,
            custom,
        )

    def _options(self, table: Table) -> tuple[str | None, dict[str, Any]]:
        """Read the builtin options, which stand in the first union or in the second."""
        for suffix, names in self.options.items():
            code = table.number(f"builtin_options{suffix}_type")
            if not code:
                continue
            name = names.get(code)
            if name is None:
                raise self.file.damaged(
                    "an operator has options of a kind that the format does not have", table.where, f"kind {code}"
                )
            layout = self.layout(name)
            found = table.table(f"builtin_options{suffix}", layout)
            if found is None:
                return None, {}
            return name, dict(self._option(found, name, layout))
        return None, {}

    def _option(self, table: Table, name: str, layout: Layout) -> Any:
        for key, field in layout.fields.items():
            if field.format:
                yield key, table.number(key)
            elif (name, key) in _VECTORS:
                yield key, table.numbers(key, _VECTORS[name, key])
            elif (name, key) in _TEXTS:
                yield key, table.text(key)

    def _metadata(self, table: Table) -> Metadata:
        buffer = table.number("buffer")
        if buffer >= len(self.buffers):
            raise self.file.damaged(
                "metadata names a buffer that is not there", f"{table.where}.buffer", f"{buffer} of {len(self.buffers)}"
            )
        return Metadata(table.text("name") or "", buffer)

    def _signature(self, table: Table, subgraphs: tuple[Subgraph, ...]) -> SignatureDef:
        subgraph = table.number("subgraph_index")
        if subgraph >= len(subgraphs):
            raise self.file.damaged(
                "a signature names a subgraph that is not there",
                f"{table.where}.subgraph_index",
                f"{subgraph} of {len(subgraphs)}",
            )
        count = len(subgraphs[subgraph].tensors)

        def names(field: str) -> tuple[tuple[str, int], ...]:
            found = []
            for entry in table.tables(field, self.layout("TensorMap")):
                tensor = entry.number("tensor_index")
                if tensor >= count:
                    raise self.file.damaged(
                        "a signature names a tensor that is not there", entry.where, f"{tensor} of {count}"
                    )
                found.append((entry.text("name") or "", tensor))
            return tuple(found)

        return SignatureDef(table.text("signature_key") or "", subgraph, names("inputs"), names("outputs"))

    # -- checks ----------------------------------------------------------------------------------------------------

    def _indices(self, table: Table, name: str, count: int, what: str, low: int | None = 0) -> tuple[int, ...]:
        """Read a vector of indices into something that has `count` items; `low` is the smallest that may stand there.

        None leaves out what points nowhere: nobody reads the deprecated list of metadata buffers.
        """
        found = table.numbers(name, "i")
        if low is None:
            return tuple(i for i in found if 0 <= i < count)
        for index in found:
            if not low <= index < count:
                raise self.file.damaged(
                    f"an index points to none of the {count:,} {what}", f"{table.where}.{name}", str(index)
                )
        return found

    def _check_calls(self, subgraphs: tuple[Subgraph, ...]) -> None:
        """Refuse operators that run a subgraph which is not there, or one that they are part of."""
        calls: list[set[int]] = []
        for subgraph in subgraphs:
            called: set[int] = set()
            for operator in subgraph.operators:
                for option in () if operator.is_custom else _CALLS.get(operator.name, ()):
                    index = operator.options.get(option, 0)
                    if not 0 <= index < len(subgraphs):
                        raise self.file.damaged(
                            f"{operator.name} runs a subgraph that is not there",
                            f"model.subgraphs[{subgraph.index}].operators[{operator.index}].{option}",
                            f"{index} of {len(subgraphs)}",
                        )
                    called.add(index)
            calls.append(called)
        state = [0] * len(subgraphs)  # 1 while its calls are being followed, 2 when they have been
        for start in range(len(subgraphs)):
            stack = [(start, iter(calls[start]))] if not state[start] else []
            state[start] = state[start] or 1
            while stack:
                here, rest = stack[-1]
                following = next((c for c in rest if state[c] != 2), None)
                if following is None:
                    state[here] = 2
                    stack.pop()
                elif state[following] == 1:
                    raise self.file.damaged(
                        "subgraphs run each other in a circle",
                        f"model.subgraphs[{here}]",
                        f"it runs subgraph {following}, which it is part of",
                    )
                else:
                    state[following] = 1
                    stack.append((following, iter(calls[following])))
