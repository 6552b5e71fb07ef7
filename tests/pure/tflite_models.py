"""Small `.tflite` models that the tests make themselves, such as TensorFlow Lite Micro can run.

`Net` is a builder with one method per operator that tests need; `OPERATOR_NETS` holds networks around one operator
each, `MIXED_NETS` whole ones. Numbers are drawn from a fixed seed, so a model is the same bytes on every run.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TYPES = {"FLOAT32": "f4", "INT8": "i1", "INT16": "i2", "INT32": "i4", "INT64": "i8", "UINT8": "u1", "BOOL": "?"}
CODES = {"FLOAT32": 0, "INT32": 2, "UINT8": 3, "INT64": 4, "STRING": 5, "BOOL": 6, "INT16": 7, "INT8": 9,
         "RESOURCE": 13, "VARIANT": 14, "INT4": 17}  # fmt: skip
ACTIVATION = {None: 0, "relu": 1, "relu6": 3}
SAME, VALID = 0, 1
_PLACE = 0x7E57_0000_0000
"""Stands for the place of data behind the tables until it is known."""


class TensorSpec(NamedTuple):
    shape: tuple[int, ...]
    type: str
    data: bytes | None
    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    dimension: int
    variable: bool
    name: str | None
    buffer: int | None


class OpSpec(NamedTuple):
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str | None
    values: Mapping[str, Any]
    version: int
    custom: bytes | None
    intermediates: tuple[int, ...]


def _call(table: str, function: str) -> Any:
    return getattr(import_module(f"tflite.{table}"), f"{table}{function}")


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def table(builder: flatbuffers.Builder, name: str, /, **fields: Any) -> int:
    """Write a table; references are offsets of what was written before."""
    _call(name, "Start")(builder)
    for field, value in fields.items():
        if value is not None:
            _call(name, f"Add{_camel(field)}")(builder, value)
    return int(_call(name, "End")(builder))


def offsets(builder: flatbuffers.Builder, items: Sequence[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def numbers(builder: flatbuffers.Builder, values: Sequence[float], kind: str) -> int:
    return int(builder.CreateNumpyVector(np.array(values, dtype=kind)))


def aligned_bytes(builder: flatbuffers.Builder, data: bytes) -> int:
    """Write a buffer's bytes at a multiple of 16, as converters do."""
    builder.StartVector(1, len(data), 16)
    builder.head = builder.head - len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return int(builder.EndVector())


class Net:
    """One model being built: its main subgraph, and others where control flow needs them."""

    def __init__(self, type: str = "INT8", seed: int = 0) -> None:
        self.type = type
        self.random = np.random.default_rng(seed)
        self.tensors: list[TensorSpec] = []
        self.ops: list[OpSpec] = []
        self.inputs: list[int] = []
        self.metadata: dict[str, bytes | int] = {}
        """Content by name; a number names a tensor, whose buffer the entry shares."""
        self.outside = False
        """Put the data behind the tables, as files of more than 2 GB do."""
        self.others: list[Net] = []
        self.outputs: list[int] = []
        self.signature = False

    # -- tensors ---------------------------------------------------------------------------------------------------

    def tensor(
        self,
        shape: Sequence[int],
        type: str | None = None,
        data: Array | bytes | None = None,
        *,
        scale: float | Sequence[float] | None = None,
        zero: int = 0,
        dimension: int = 0,
        variable: bool = False,
        name: str | None = None,
        buffer: int | None = None,
    ) -> int:
        kind = type or self.type
        raw = None
        if data is not None:
            raw = data if isinstance(data, bytes) else np.asarray(data).astype(f"<{TYPES[kind]}").tobytes()
        if scale is None and kind in ("INT8", "INT16") and type is None:
            scale = 0.05 if kind == "INT8" else 0.05 / 256
        scales = () if scale is None else tuple(scale) if isinstance(scale, Sequence) else (scale,)
        self.tensors.append(
            TensorSpec(tuple(shape), kind, raw, scales, (zero,) * len(scales), dimension, variable, name, buffer)
        )
        return len(self.tensors) - 1

    def input(self, *shape: int, type: str | None = None) -> int:
        index = self.tensor(shape, type, name=f"input{len(self.inputs)}")
        self.inputs.append(index)
        return index

    def like(self, other: int, shape: Sequence[int] | None = None) -> int:
        """Make an empty tensor quantized as another."""
        spec = self.tensors[other]
        scale = spec.scales[0] if spec.scales else None
        zero = spec.zeros[0] if spec.zeros else 0
        return self.tensor(spec.shape if shape is None else shape, spec.type, scale=scale, zero=zero)

    def shape(self, index: int) -> tuple[int, ...]:
        return self.tensors[index].shape

    def ints(self, *values: int) -> int:
        return self.tensor((len(values),), "INT32", np.array(values))

    def weight(self, shape: Sequence[int], *, channel: int | None = None, type: str | None = None) -> int:
        if self.type == "FLOAT32":
            return self.tensor(shape, data=self.random.normal(0, 0.3, shape))
        count = 1 if channel is None else shape[channel]
        scales = [0.004 + 0.001 * (i % 5) for i in range(count)]
        values = self.random.integers(-120, 121, shape)
        if type == "INT4":
            packed = bytes(math.ceil(math.prod(shape) / 2))
            return self.tensor(shape, "INT4", packed, scale=scales, dimension=channel or 0)
        return self.tensor(shape, type or "INT8", values, scale=scales, dimension=channel or 0)

    def bias(self, source: int, weight: int, count: int) -> int:
        if self.type == "FLOAT32":
            return self.tensor((count,), data=self.random.normal(0, 0.1, count))
        scale = self.tensors[source].scales[0]
        scales = [scale * w for w in self.tensors[weight].scales]
        kind = "INT64" if self.type == "INT16" else "INT32"
        return self.tensor((count,), kind, self.random.integers(-50, 51, count), scale=scales)

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str | None = None,
        *,
        version: int = 1,
        custom: bytes | None = None,
        intermediates: Sequence[int] = (),
        **values: Any,
    ) -> int:
        self.ops.append(
            OpSpec(name, tuple(inputs), tuple(outputs), options, values, version, custom, tuple(intermediates))
        )
        return outputs[0] if outputs else -1

    # -- operators -------------------------------------------------------------------------------------------------

    def _window(self, x: int, kernel: tuple[int, int], stride: int, padding: int) -> tuple[int, int]:
        height, width = self.shape(x)[1:3]
        if padding == SAME:
            return -(-height // stride), -(-width // stride)
        return (height - kernel[0]) // stride + 1, (width - kernel[1]) // stride + 1

    def conv(
        self, x: int, channels: int, kernel: int = 3, stride: int = 1, *, padding: int = SAME,
        activation: str | None = None, per_channel: bool = True, bias: bool = True, filter_type: str | None = None,
    ) -> int:  # fmt: skip
        n, _, _, c = self.shape(x)
        weight = self.weight((channels, kernel, kernel, c), channel=0 if per_channel else None, type=filter_type)
        y = self.tensor((n, *self._window(x, (kernel, kernel), stride, padding), channels))
        parts = [x, weight, self.bias(x, weight, channels)] if bias else [x, weight]
        return self.op(
            "CONV_2D", parts, [y], "Conv2DOptions", version=3, padding=padding, stride_w=stride,
            stride_h=stride, fused_activation_function=ACTIVATION[activation], dilation_w_factor=1,
            dilation_h_factor=1,
        )  # fmt: skip

    def depthwise(
        self, x: int, kernel: int = 3, stride: int = 1, *, padding: int = SAME, multiplier: int = 1,
        activation: str | None = None, filter_type: str | None = None,
    ) -> int:  # fmt: skip
        n, _, _, c = self.shape(x)
        weight = self.weight((1, kernel, kernel, c * multiplier), channel=3, type=filter_type)
        y = self.tensor((n, *self._window(x, (kernel, kernel), stride, padding), c * multiplier))
        return self.op(
            "DEPTHWISE_CONV_2D", [x, weight, self.bias(x, weight, c * multiplier)], [y], "DepthwiseConv2DOptions",
            version=3, padding=padding, stride_w=stride, stride_h=stride, depth_multiplier=multiplier,
            fused_activation_function=ACTIVATION[activation], dilation_w_factor=1, dilation_h_factor=1,
        )  # fmt: skip

    def transpose_conv(self, x: int, channels: int, kernel: int = 3, stride: int = 2) -> int:
        n, h, w, c = self.shape(x)
        shape = (n, h * stride, w * stride, channels)
        weight = self.weight((channels, kernel, kernel, c), channel=0)
        y = self.tensor(shape)
        return self.op(
            "TRANSPOSE_CONV", [self.ints(*shape), weight, x, self.bias(x, weight, channels)], [y],
            "TransposeConvOptions", version=3, padding=SAME, stride_w=stride, stride_h=stride,
        )  # fmt: skip

    def linear(
        self, x: int, units: int, activation: str | None = None, *, filter_type: str | None = None,
        per_channel: bool = False,
    ) -> int:  # fmt: skip
        n = self.shape(x)[0]
        columns = math.prod(self.shape(x)[1:])
        weight = self.weight((units, columns), channel=0 if per_channel else None, type=filter_type)
        y = self.tensor((n, units))
        return self.op(
            "FULLY_CONNECTED", [x, weight, self.bias(x, weight, units)], [y], "FullyConnectedOptions", version=4,
            fused_activation_function=ACTIVATION[activation],
        )  # fmt: skip

    def pool(self, x: int, kind: str = "AVERAGE", size: int = 2, stride: int = 2, padding: int = VALID) -> int:
        n, _, _, c = self.shape(x)
        y = self.like(x, (n, *self._window(x, (size, size), stride, padding), c))
        return self.op(
            f"{kind}_POOL_2D", [x], [y], "Pool2DOptions", version=2, padding=padding, stride_w=stride,
            stride_h=stride, filter_width=size, filter_height=size,
        )  # fmt: skip

    def softmax(self, x: int) -> int:
        scale = {"INT8": 1 / 256, "INT16": 1 / 32768}.get(self.type)
        y = self.tensor(self.shape(x), scale=scale, zero=-128 if self.type == "INT8" else 0)
        return self.op("SOFTMAX", [x], [y], "SoftmaxOptions", version=2, beta=1.0)

    def binary(self, name: str, a: int, b: int, activation: str | None = None) -> int:
        options = {"fused_activation_function": ACTIVATION[activation]}
        if name in ("ADD", "SUB"):
            options["pot_scale_int16"] = False
        return self.op(name, [a, b], [self.tensor(self.shape(a))], f"{name.capitalize()}Options", version=2, **options)

    def add(self, a: int, b: int, activation: str | None = None) -> int:
        return self.binary("ADD", a, b, activation)

    def concat(self, *parts: int, axis: int = -1) -> int:
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(p)[axis] for p in parts)
        return self.op(
            "CONCATENATION", parts, [self.like(parts[0], shape)], "ConcatenationOptions", version=2,
            axis=axis % len(shape), fused_activation_function=0,
        )  # fmt: skip

    def pad(self, x: int, around: int = 1, value: bool = False) -> int:
        n, h, w, c = self.shape(x)
        paddings = self.tensor((4, 2), "INT32", np.array([[0, 0], [around, around], [around, around], [0, 0]]))
        y = self.like(x, (n, h + 2 * around, w + 2 * around, c))
        if not value:
            return self.op("PAD", [x, paddings], [y], "PadOptions", version=2)
        spec = self.tensors[x]
        fill = self.tensor((1,), spec.type, np.array([1]), scale=spec.scales[0] if spec.scales else None)
        return self.op("PADV2", [x, paddings, fill], [y], "PadV2Options", version=2)

    def reshape(self, x: int, *shape: int, written: Sequence[int] | None = None) -> int:
        target = tuple(written or shape)
        y = self.like(x, shape)
        return self.op("RESHAPE", [x, self.ints(*target)], [y], "ReshapeOptions", new_shape=np.array(target, "<i4"))

    def reduce(self, name: str, x: int, axes: Sequence[int] = (1, 2), keep: bool = False) -> int:
        shape = [1 if keep and d in axes else s for d, s in enumerate(self.shape(x)) if keep or d not in axes]
        return self.op(name, [x, self.ints(*axes)], [self.like(x, shape)], "ReducerOptions", version=2, keep_dims=keep)

    def unary(self, name: str, x: int, options: str | None = None, **values: Any) -> int:
        y = self.like(x)
        if self.type != "FLOAT32" and name in ("LOGISTIC", "TANH"):
            span = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}[name]
            y = self.tensor(self.shape(x), scale=span[0] if self.type == "INT8" else 1 / 32768,
                            zero=span[1] if self.type == "INT8" else 0)  # fmt: skip
        return self.op(name, [x], [y], options, version=2, **values)

    def transpose(self, x: int, *order: int) -> int:
        y = self.like(x, [self.shape(x)[d] for d in order])
        return self.op("TRANSPOSE", [x, self.ints(*order)], [y], "TransposeOptions", version=2)

    def slice(self, x: int, begin: Sequence[int], size: Sequence[int]) -> int:
        return self.op("SLICE", [x, self.ints(*begin), self.ints(*size)], [self.like(x, size)], "SliceOptions")

    def strided_slice(self, x: int, begin: Sequence[int], end: Sequence[int], strides: Sequence[int]) -> int:
        shape = [-(-(e - b) // s) for b, e, s in zip(begin, end, strides, strict=True)]
        parts = [x, self.ints(*begin), self.ints(*end), self.ints(*strides)]
        return self.op("STRIDED_SLICE", parts, [self.like(x, shape)], "StridedSliceOptions", version=2)

    def split(self, x: int, count: int, axis: int) -> list[int]:
        shape = list(self.shape(x))
        shape[axis] //= count
        parts = [self.like(x, shape) for _ in range(count)]
        self.op("SPLIT", [self.tensor((), "INT32", np.array(axis)), x], parts, "SplitOptions", num_splits=count)
        return parts

    def pack(self, *parts: int, axis: int = 0) -> int:
        shape = list(self.shape(parts[0]))
        shape.insert(axis, len(parts))
        y = self.like(parts[0], shape)
        return self.op("PACK", parts, [y], "PackOptions", values_count=len(parts), axis=axis)

    def unpack(self, x: int, axis: int = 0) -> list[int]:
        shape = [s for d, s in enumerate(self.shape(x)) if d != axis]
        parts = [self.like(x, shape) for _ in range(self.shape(x)[axis])]
        self.op("UNPACK", [x], parts, "UnpackOptions", num=len(parts), axis=axis)
        return parts

    def gather(self, x: int, *indices: int, axis: int = 0) -> int:
        shape = list(self.shape(x))
        shape[axis] = len(indices)
        return self.op("GATHER", [x, self.ints(*indices)], [self.like(x, shape)], "GatherOptions", axis=axis)

    def resize(self, x: int, height: int, width: int, bilinear: bool = False) -> int:
        n, _, _, c = self.shape(x)
        name = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
        options = "ResizeBilinearOptions" if bilinear else "ResizeNearestNeighborOptions"
        return self.op(name, [x, self.ints(height, width)], [self.like(x, (n, height, width, c))], options, version=2)

    def matmul(self, a: int, b: int, *, adj_x: bool = False, adj_y: bool = False) -> int:
        left, right = self.shape(a), self.shape(b)
        shape = (*left[:-2], left[-1] if adj_x else left[-2], right[-2] if adj_y else right[-1])
        return self.op(
            "BATCH_MATMUL", [a, b], [self.tensor(shape)], "BatchMatMulOptions", version=2, adj_x=adj_x, adj_y=adj_y
        )

    def quantize(self, x: int, type: str) -> int:
        scale = 0.05 if type == "INT8" else 0.05 / 256
        return self.op("QUANTIZE", [x], [self.tensor(self.shape(x), type, scale=scale)], "QuantizeOptions")

    def dequantize(self, x: int) -> int:
        return self.op("DEQUANTIZE", [x], [self.tensor(self.shape(x), "FLOAT32")], "DequantizeOptions", version=2)

    def svdf(self, x: int, units: int, rank: int = 1, memory: int = 4) -> int:
        n, width = self.shape(x)
        filters = units * rank
        features = self.weight((filters, width))
        if self.type == "FLOAT32":
            time = self.weight((filters, memory))
            state = self.tensor((n, filters * memory), variable=True, name="state")
        else:
            time = self.tensor((filters, memory), "INT16", self.random.integers(-99, 99, (filters, memory)),
                               scale=0.001)  # fmt: skip
            state = self.tensor((n, filters * memory), "INT16", scale=0.005, variable=True, name="state")
        y = self.tensor((n, units))
        if self.type == "FLOAT32":
            bias = self.bias(x, features, units)
        else:
            bias = self.tensor((units,), "INT32", self.random.integers(-9, 9, units), scale=0.000005)
        return self.op(
            "SVDF", [x, features, time, bias, state], [y], "SVDFOptions", version=3, rank=rank,
            fused_activation_function=1,
        )  # fmt: skip

    def lstm(self, x: int, units: int) -> int:
        n, _, width = self.shape(x)
        inputs = [x, *(self.weight((units, width)) for _ in range(4)), *(self.weight((units, units)) for _ in range(4))]
        inputs += [-1, -1, -1]
        if self.type == "FLOAT32":
            inputs += [self.bias(x, inputs[1], units) for _ in range(4)]
        else:
            inputs += [self.bias(x, weight, units) for weight in inputs[1:5]]
        hidden = {"INT8": 1 / 128, "INT16": 1 / 32768}.get(self.type)
        state = self.tensor((n, units), scale=hidden, variable=True, name="hidden")
        if self.type == "FLOAT32":
            cell = self.tensor((n, units), variable=True, name="cell")
        else:
            cell = self.tensor((n, units), "INT16", scale=2.0**-11, variable=True, name="cell")
        inputs += [-1, -1, state, cell, -1, -1, -1, -1]
        y = self.tensor((n, self.shape(x)[1], units), scale=hidden)
        return self.op(
            "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], "UnidirectionalSequenceLSTMOptions", version=3,
            fused_activation_function=4, cell_clip=0.0, proj_clip=0.0, time_major=False,
        )  # fmt: skip

    # -- file ------------------------------------------------------------------------------------------------------

    def build(self, *outputs: int) -> bytes:
        """Write the model; `outputs` are the main subgraph's."""
        self.outputs = list(outputs)
        builder = flatbuffers.Builder(1 << 16)
        nets = [self, *self.others]
        payloads: list[bytes] = [b""]
        codes: list[tuple[str, int]] = []
        graphs = []
        for number, net in enumerate(nets):
            graphs.append(net._subgraph(builder, number, payloads, codes))
        metadata = []
        for name, content in self.metadata.items():
            if isinstance(content, bytes):
                payloads.append(content)
                buffer = len(payloads) - 1
            else:
                buffer = payloads.index(self.tensors[content].data or b"")
            metadata.append(table(builder, "Metadata", name=builder.CreateString(name), buffer=buffer))
        if self.outside:
            written = [table(builder, "Buffer", offset=_PLACE + k, size=len(p)) for k, p in enumerate(payloads)]
        else:
            data = [aligned_bytes(builder, p) if p else None for p in payloads]
            written = [table(builder, "Buffer", data=d) for d in data]
        buffers = offsets(builder, written)
        kinds = vars(import_module("tflite.BuiltinOperator").BuiltinOperator)
        written = []
        for name, version in codes:
            code = kinds.get(name, 32)
            custom = builder.CreateString(name) if name not in kinds else None
            written.append(
                table(builder, "OperatorCode", deprecated_builtin_code=min(code, 127), custom_code=custom,
                      version=version, builtin_code=code)
            )  # fmt: skip
        signatures = None
        if self.signature:
            maps = [
                offsets(builder, [table(builder, "TensorMap", name=builder.CreateString(f"{what}{k}"), tensor_index=i)
                                  for k, i in enumerate(found)])
                for what, found in (("in", self.inputs), ("out", self.outputs))
            ]  # fmt: skip
            key = builder.CreateString("serving_default")
            signatures = offsets(
                builder,
                [table(builder, "SignatureDef", inputs=maps[0], outputs=maps[1], signature_key=key, subgraph_index=0)],
            )
        codes_at, graphs_at = offsets(builder, written), offsets(builder, graphs)
        metadata_at = offsets(builder, metadata) if metadata else None
        description = builder.CreateString("made by memfit's tests")
        root = table(
            builder, "Model", version=3, operator_codes=codes_at, subgraphs=graphs_at, description=description,
            buffers=buffers, metadata=metadata_at, signature_defs=signatures,
        )  # fmt: skip
        builder.Finish(root, b"TFL3")
        file = bytes(builder.Output())
        if self.outside:
            for k, payload in enumerate(payloads):
                file += bytes(-len(file) % 16)
                place = len(file) if payload else 0
                file = file.replace(struct.pack("<Q", _PLACE + k), struct.pack("<Q", place)) + payload
        return file

    def _subgraph(
        self, builder: flatbuffers.Builder, number: int, payloads: list[bytes], codes: list[tuple[str, int]]
    ) -> int:
        tensors = []
        buffer_of: list[int] = []
        for index, spec in enumerate(self.tensors):
            buffer = 0
            if spec.buffer is not None:
                buffer = buffer_of[spec.buffer]
            elif spec.data is not None:
                payloads.append(spec.data)
                buffer = len(payloads) - 1
            buffer_of.append(buffer)
            quantization = None
            if spec.scales:
                quantization = table(
                    builder, "QuantizationParameters", scale=numbers(builder, spec.scales, "<f4"),
                    zero_point=numbers(builder, spec.zeros, "<i8"), quantized_dimension=spec.dimension,
                )  # fmt: skip
            name = builder.CreateString(spec.name if spec.name is not None else f"t{index}")
            tensors.append(
                table(builder, "Tensor", shape=numbers(builder, spec.shape, "<i4"), type=CODES[spec.type],
                      buffer=buffer, name=name, quantization=quantization, is_variable=spec.variable or None)
            )  # fmt: skip
        ops = [self._operator(builder, op, codes) for op in self.ops]
        return table(
            builder, "SubGraph", tensors=offsets(builder, tensors), inputs=numbers(builder, self.inputs, "<i4"),
            outputs=numbers(builder, self.outputs, "<i4"), operators=offsets(builder, ops),
            name=builder.CreateString("main" if not number else f"subgraph{number}"),
        )  # fmt: skip

    def _operator(self, builder: flatbuffers.Builder, op: OpSpec, codes: list[tuple[str, int]]) -> int:
        code = (op.name, op.version)
        if code not in codes:
            codes.append(code)
        kind = options = None
        if op.options is not None:
            values = {
                key: builder.CreateNumpyVector(value) if isinstance(value, np.ndarray)
                else builder.CreateString(value) if isinstance(value, str) else value
                for key, value in op.values.items()
            }  # fmt: skip
            options = table(builder, op.options, **values)
            kind = getattr(import_module("tflite.BuiltinOptions").BuiltinOptions, op.options)
        custom = builder.CreateByteVector(op.custom) if op.custom else None
        intermediates = numbers(builder, op.intermediates, "<i4") if op.intermediates else None
        return table(
            builder, "Operator", opcode_index=codes.index(code), inputs=numbers(builder, op.inputs, "<i4"),
            outputs=numbers(builder, op.outputs, "<i4"), builtin_options_type=kind, builtin_options=options,
            custom_options=custom, intermediates=intermediates,
        )  # fmt: skip


def offline_plan(offsets_of: Sequence[int]) -> bytes:
    """Content of an OfflineMemoryAllocation entry."""
    return struct.pack(f"<{3 + len(offsets_of)}i", 1, 0, len(offsets_of), *offsets_of)


# -- networks around one operator ---------------------------------------------------------------------------------


def _one(type: str, shape: Sequence[int], body: Callable[[Net, int], int | list[int]]) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net(type)
        result = body(net, net.input(*shape))
        return net.build(*([result] if isinstance(result, int) else result))

    return make


def _two(type: str, body: Callable[[Net, int, int], int]) -> Callable[[], bytes]:
    def make() -> bytes:
        net = Net(type)
        a, b = net.input(1, 4, 6), net.input(1, 6, 4)
        return net.build(body(net, a, b))

    return make


_IMAGE = (1, 6, 8, 4)
_INTEGER_AND_FLOAT = ("INT8", "INT16", "FLOAT32")

_BODIES: dict[str, tuple[Sequence[str], Sequence[int], Callable[[Net, int], int | list[int]]]] = {
    "conv": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.conv(x, 5, stride=2, activation="relu6")),
    "conv_per_tensor": (("INT8",), _IMAGE, lambda n, x: n.conv(x, 5, per_channel=False)),
    "conv_int4": (("INT8",), _IMAGE, lambda n, x: n.conv(x, 6, filter_type="INT4")),
    "depthwise": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.depthwise(x, multiplier=2)),
    "depthwise_int4": (("INT8",), _IMAGE, lambda n, x: n.depthwise(x, filter_type="INT4")),
    "linear": (_INTEGER_AND_FLOAT, (2, 24), lambda n, x: n.linear(x, 7, "relu")),
    "linear_per_channel": (("INT8",), (2, 24), lambda n, x: n.linear(x, 7, per_channel=True)),
    "linear_int4": (("INT8",), (2, 24), lambda n, x: n.linear(x, 8, filter_type="INT4")),
    "average_pool": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.pool(x)),
    "max_pool": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.pool(x, "MAX")),
    "softmax": (_INTEGER_AND_FLOAT, (2, 10), lambda n, x: n.softmax(x)),
    "add": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.add(x, x, "relu")),
    "sub": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.binary("SUB", x, x)),
    "mul": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.binary("MUL", x, x)),
    "reshape": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.reshape(x, 1, 192)),
    "reshape_open": (("INT8",), _IMAGE, lambda n, x: n.reshape(x, 1, 192, written=(1, -1))),
    "pad": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.pad(x)),
    "pad_value": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.pad(x, value=True)),
    "mean": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.reduce("MEAN", x, keep=True)),
    "sum": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.reduce("SUM", x)),
    "reduce_max": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.reduce("REDUCE_MAX", x)),
    "transpose": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.transpose(x, 0, 3, 1, 2)),
    "slice": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.slice(x, (0, 1, 1, 0), (1, 4, 4, 3))),
    "strided_slice": (
        ("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.strided_slice(x, (0, 0, 1, 0), (1, 6, 8, 4), (1, 2, 2, 1)),
    ),
    "quantize": (("FLOAT32",), _IMAGE, lambda n, x: n.quantize(x, "INT8")),
    "requantize": (("INT16",), _IMAGE, lambda n, x: n.quantize(x, "INT8")),
    "dequantize": (("INT8",), _IMAGE, lambda n, x: n.dequantize(x)),
    "concat": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.concat(x, x, x)),
    "logistic": (_INTEGER_AND_FLOAT, (2, 10), lambda n, x: n.unary("LOGISTIC", x)),
    "tanh": (_INTEGER_AND_FLOAT, (2, 10), lambda n, x: n.unary("TANH", x)),
    "relu": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.unary("RELU", x)),
    "relu6": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.unary("RELU6", x)),
    "leaky_relu": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.unary("LEAKY_RELU", x, "LeakyReluOptions", alpha=0.1)),
    "hard_swish": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.unary("HARD_SWISH", x, "HardSwishOptions")),
    "transpose_conv": (_INTEGER_AND_FLOAT, _IMAGE, lambda n, x: n.transpose_conv(x, 3)),
    "resize_nearest": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.resize(x, 12, 16)),
    "resize_bilinear": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.resize(x, 12, 16, bilinear=True)),
    "split": (("INT8", "FLOAT32"), _IMAGE, lambda n, x: n.split(x, 2, 3)),
    "pack": (("INT8", "FLOAT32"), (4, 6), lambda n, x: n.pack(x, x)),
    "unpack": (("INT8", "FLOAT32"), (3, 6), lambda n, x: n.unpack(x)),
    "gather": (("INT8", "FLOAT32"), (5, 6), lambda n, x: n.gather(x, 3, 1)),
    "svdf": (("INT8", "FLOAT32"), (1, 12), lambda n, x: n.svdf(x, 6, rank=2)),
    "lstm": (_INTEGER_AND_FLOAT, (1, 4, 6), lambda n, x: n.lstm(x, 5)),
}  # fmt: skip


def _matmul(**flags: bool) -> Callable[[Net, int, int], int]:
    if flags.get("adj_x") or flags.get("adj_y"):
        return lambda n, a, _: n.matmul(a, a, **flags)
    return lambda n, a, b: n.matmul(a, b)


OPERATOR_NETS: dict[str, Callable[[], bytes]] = {
    **{
        f"{name}-{type.lower()}": _one(type, shape, body)
        for name, (types, shape, body) in _BODIES.items()
        for type in types
    },
    **{f"matmul-{type.lower()}": _two(type, _matmul()) for type in _INTEGER_AND_FLOAT},
    "matmul_adj_x-int8": _two("INT8", _matmul(adj_x=True)),
    "matmul_adj_y-int8": _two("INT8", _matmul(adj_y=True)),
}
"""Name → a model of one operator."""


# -- whole networks -----------------------------------------------------------------------------------------------


def cnn(type: str = "INT8") -> bytes:
    net = Net(type)
    x = net.conv(net.input(1, 16, 16, 3), 8, stride=2, activation="relu6")
    for channels, stride in ((16, 1), (24, 2), (24, 1)):
        x = net.conv(net.depthwise(x, stride=stride, activation="relu6"), channels, kernel=1, activation="relu6")
    x = net.pool(x, size=4, stride=4)
    x = net.linear(net.reshape(x, 1, 24), 10)
    net.signature = True
    return net.build(net.softmax(x))


def resnet(type: str = "INT8") -> bytes:
    net = Net(type)
    x = net.conv(net.input(1, 16, 16, 3), 8, activation="relu")
    for channels in (8, 16, 32):
        stride = 1 if channels == 8 else 2
        y = net.conv(net.conv(x, channels, stride=stride, activation="relu"), channels)
        short = x if stride == 1 else net.conv(x, channels, kernel=1, stride=stride)
        x = net.add(short, y, "relu")
    return net.build(net.softmax(net.linear(net.reduce("MEAN", x), 10)))


def unet(type: str = "INT8") -> bytes:
    net = Net(type)
    x, skips = net.input(1, 16, 16, 3), []
    for channels in (8, 16):
        x = net.conv(x, channels, activation="relu")
        skips.append(x)
        x = net.pool(x, "MAX")
    x = net.conv(x, 32, activation="relu")
    for skip in reversed(skips):
        x = net.concat(net.transpose_conv(x, net.shape(skip)[3]), skip)
        x = net.conv(x, net.shape(skip)[3], activation="relu")
    return net.build(net.conv(x, 2, kernel=1))


def keyword(type: str = "INT8") -> bytes:
    net = Net(type)
    x = net.input(1, 20)
    for units in (16, 8):
        x = net.linear(net.svdf(x, units), units)
    return net.build(net.softmax(x))


def sequence(type: str = "INT8") -> bytes:
    net = Net(type)
    x = net.lstm(net.input(1, 6, 8), 12)
    return net.build(net.softmax(net.linear(net.reshape(x, 1, 72), 4)))


def attention(type: str = "INT8") -> bytes:
    net = Net(type)
    x = net.input(1, 6, 8)
    scores = net.softmax(net.matmul(x, x, adj_y=True))
    return net.build(net.matmul(scores, x))


def branches(type: str = "INT8") -> bytes:
    """Branches whose order matters: a wide and a narrow one from the same input."""
    net = Net(type)
    x = net.conv(net.input(1, 12, 12, 4), 8)
    wide = net.pool(net.conv(x, 32, activation="relu"), "MAX")
    narrow = net.pool(net.conv(x, 4, activation="relu"), "MAX")
    deep = net.pool(net.depthwise(net.conv(x, 24)), "MAX")
    return net.build(net.conv(net.concat(net.concat(narrow, wide), deep), 4, kernel=1))


def multi_output(type: str = "INT8") -> bytes:
    net = Net(type)
    a, b = net.input(1, 8, 8, 4), net.input(1, 8, 8, 4)
    joined = net.add(a, b)
    left, right = net.split(joined, 2, 3)
    return net.build(net.reduce("MEAN", left), net.resize(right, 16, 16), a)


MIXED_NETS: dict[str, Callable[[], bytes]] = {
    f"{make.__name__}-{type.lower()}": (lambda make=make, type=type: make(type))  # type: ignore[misc]
    for make, types in (
        (cnn, _INTEGER_AND_FLOAT),
        (resnet, _INTEGER_AND_FLOAT),
        (unet, _INTEGER_AND_FLOAT),
        (keyword, ("INT8", "FLOAT32")),
        (sequence, _INTEGER_AND_FLOAT),
        (attention, _INTEGER_AND_FLOAT),
        (branches, ("INT8", "FLOAT32")),
        (multi_output, ("INT8", "FLOAT32")),
    )
    for type in types
}
"""Name → a network of several operators."""

NETS = {**OPERATOR_NETS, **MIXED_NETS}


# -- networks that no runtime needs to run ------------------------------------------------------------------------


def control_flow(*, circle: bool = False) -> bytes:
    """IF with two subgraphs; in a circle, one of them runs itself."""
    net = Net("FLOAT32")
    x = net.input(1, 4)
    condition = net.input(1, type="BOOL")
    for name in ("RELU", "TANH"):
        other = Net("FLOAT32")
        other.outputs = [other.unary(name, other.input(1, 4))]
        net.others.append(other)
    if circle:
        inner = net.others[0]
        flag = inner.tensor((1,), "BOOL", np.array([True]))
        inner.outputs = [
            inner.op("IF", [flag, inner.outputs[0]], [inner.tensor((1, 4))], "IfOptions", then_subgraph_index=1,
                     else_subgraph_index=2)
        ]  # fmt: skip
    y = net.op("IF", [condition, x], [net.tensor((1, 4))], "IfOptions", then_subgraph_index=1, else_subgraph_index=2)
    return net.build(y)


def custom(name: str = "MyOperator") -> bytes:
    net = Net("FLOAT32")
    x = net.input(1, 4)
    y = net.op(name, [net.unary("RELU", x)], [net.tensor((1, 4))], custom=b"\x01\x02\x03")
    return net.build(net.unary("TANH", y))


def tied() -> bytes:
    """Two layers that share one buffer of weights."""
    net = Net("FLOAT32")
    x = net.input(1, 8)
    x = net.linear(x, 8)
    first = net.ops[-1].inputs[1]
    again = net.tensor((8, 8), name="again", buffer=first)
    y = net.op("FULLY_CONNECTED", [x, again, -1], [net.tensor((1, 8))], "FullyConnectedOptions")
    return net.build(y)
