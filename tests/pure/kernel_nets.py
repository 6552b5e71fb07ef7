"""Models of one operator each, drawn at random: shapes, types, scales, zero points, padding, activations.

`DRAWN` has one function per kind of operator; `drawn(name, seed)` gives the bytes of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tflite_models import Net

SAME, VALID = 0, 1
WIDTHS = {"INT8": 8, "INT16": 16}


class Draw(Net):
    """A model whose tensors are quantized at random."""

    def __init__(self, seed: int, types: str = "INT8 INT8 INT16 FLOAT32") -> None:
        self.draw = np.random.default_rng(seed)
        super().__init__(str(self.draw.choice(types.split())), seed)

    def chance(self, of: float = 0.5) -> bool:
        return bool(self.draw.random() < of)

    def number(self, low: int, high: int) -> int:
        """Draw an integer, both ends included."""
        return int(self.draw.integers(low, high, endpoint=True))

    def real(self, low: float, high: float) -> float:
        """Draw a scale, as a 32-bit float, even in its logarithm."""
        return float(np.float32(math.exp(self.draw.uniform(math.log(low), math.log(high)))))

    def zero(self, type: str | None = None) -> int:
        kind = type or self.type
        return int(self.draw.choice([0, -128, 127, -1, self.number(-128, 127)])) if kind == "INT8" else 0

    def quantized(self, shape: Sequence[int], type: str | None = None, *, low: float = 0.01, high: float = 0.5) -> int:
        """Make a tensor with a scale and a zero point of its own."""
        kind = type or self.type
        if kind not in WIDTHS:
            return self.tensor(shape, kind)
        scale = self.real(low, high) / (256 if kind == "INT16" else 1)
        return self.tensor(shape, kind, scale=scale, zero=self.zero(kind))

    def given(self, *shape: int, type: str | None = None, low: float = 0.01, high: float = 0.5) -> int:
        """Make an input of the network."""
        index = self.quantized(shape, type, low=low, high=high)
        self.inputs.append(index)
        return index

    def weights(self, shape: Sequence[int], channel: int | None, type: str = "INT8") -> int:
        if self.type == "FLOAT32":
            return self.tensor(shape, data=self.draw.normal(0, 0.3, shape))
        count = 1 if channel is None else shape[channel]
        scales = [self.real(0.002, 0.05) for _ in range(count)]
        if type == "INT4":
            values = self.draw.integers(0, 256, -(-math.prod(shape) // 2)).astype(np.uint8).tobytes()
            return self.tensor(shape, "INT4", values, scale=scales, dimension=channel or 0)
        return self.tensor(shape, "INT8", self.draw.integers(-127, 128, shape), scale=scales, dimension=channel or 0)

    def offsets(self, source: int, weight: int, count: int, *, short: bool = False) -> int:
        """Make a bias of the scales that the kernels take for granted."""
        if self.type == "FLOAT32":
            return self.tensor((count,), data=self.draw.normal(0, 0.3, count))
        scales = [self.tensors[source].scales[0] * w for w in self.tensors[weight].scales]
        kind, size = ("INT64", 1 << 20) if self.type == "INT16" else ("INT32", 3000)
        if self.type == "INT16" and short and self.chance(0.3):
            kind, size = "INT32", 1 << 16
        return self.tensor((count,), kind, self.draw.integers(-size, size, count), scale=scales)

    def image(self, *, channels: int = 6, size: int = 9) -> int:
        return self.given(self.number(1, 2), self.number(1, size), self.number(1, size), self.number(1, channels))

    def made(self, weight: int) -> int:
        """Let a few weights be an input of the network, made at run time."""
        if self.chance(0.15) and self.tensors[weight].type != "INT4":
            self.tensors[weight] = self.tensors[weight]._replace(data=None)
            self.inputs.append(weight)
        return weight

    def activation(self) -> int:
        return self.number(0, 3)


def _windowed(length: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    extent = (kernel - 1) * dilation + 1
    return -(-length // stride) if padding == SAME else -(-(length + 1 - extent) // stride)


def _window(n: Draw, x: int, *, dilate: bool = True) -> tuple[list[int], dict[str, Any]]:
    """Draw a kernel that fits, and the output's height and width."""
    padding = n.number(0, 1)
    sides = []
    for length in n.shape(x)[1:3]:
        kernel, stride, dilation = n.number(1, 4), n.number(1, 3), n.number(1, 2) if dilate else 1
        if padding == VALID:
            kernel = min(kernel, length)
            dilation = 1 if (kernel - 1) * dilation + 1 > length else dilation
        sides.append((kernel, stride, dilation, _windowed(length, kernel, stride, dilation, padding)))
    (kh, sh, dh, oh), (kw, sw, dw, ow) = sides
    values = {"padding": padding, "stride_h": sh, "stride_w": sw}
    if dilate:
        values.update(dilation_h_factor=dh, dilation_w_factor=dw)
    return [kh, kw, oh, ow], values


def conv(n: Draw) -> int:
    x = n.image()
    batch, _, _, depth = n.shape(x)
    groups = int(n.draw.choice([g for g in range(1, depth + 1) if depth % g == 0])) if n.chance(0.3) else 1
    (kh, kw, oh, ow), values = _window(n, x)
    channels = groups * n.number(1, 4)
    kind = "INT4" if n.type == "INT8" and n.chance(0.2) else "INT8"
    w = n.weights((channels, kh, kw, depth // groups), 0 if n.chance(0.7) and channels > 1 else None, kind)
    parts = [x, n.made(w), n.offsets(x, w, channels, short=True)]
    return n.op("CONV_2D", parts if n.chance(0.8) else parts[:2], [n.quantized((batch, oh, ow, channels))],
                "Conv2DOptions", fused_activation_function=n.activation(), **values)  # fmt: skip


def depthwise(n: Draw) -> int:
    x = n.image()
    batch, _, _, depth = n.shape(x)
    (kh, kw, oh, ow), values = _window(n, x)
    multiplier = n.number(1, 3)
    channels = depth * multiplier
    kind = "INT4" if n.type == "INT8" and n.chance(0.2) else "INT8"
    w = n.weights((1, kh, kw, channels), 3 if n.chance(0.7) and channels > 1 else None, kind)
    parts = [x, n.made(w), n.offsets(x, w, channels)]
    return n.op("DEPTHWISE_CONV_2D", parts, [n.quantized((batch, oh, ow, channels))], "DepthwiseConv2DOptions",
                depth_multiplier=multiplier, fused_activation_function=n.activation(),
                **values)  # fmt: skip


def transpose_conv(n: Draw) -> int:
    x = n.image(size=5)
    batch, h, w, depth = n.shape(x)
    kh, kw, sh, sw, channels = n.number(1, 4), n.number(1, 4), n.number(1, 3), n.number(1, 3), n.number(1, 4)
    padding = n.number(0, 1)
    shape = (batch, h * sh, w * sw, channels)
    if padding == VALID:
        shape = (batch, (h - 1) * sh + kh, (w - 1) * sw + kw, channels)
    weight = n.weights((channels, kh, kw, depth), 0 if n.chance(0.7) and channels > 1 else None)
    parts = [n.ints(*shape), n.made(weight), x, n.offsets(x, weight, channels)]
    return n.op("TRANSPOSE_CONV", parts, [n.quantized(shape)], "TransposeConvOptions",
                padding=padding, stride_w=sw, stride_h=sh)  # fmt: skip


def linear(n: Draw) -> int:
    rows, columns, units = n.number(1, 3), n.number(1, 40), n.number(1, 9)
    x = n.given(rows, columns)
    kind = "INT4" if n.type == "INT8" and n.chance(0.2) else "INT8"
    w = n.weights(
        (units, columns), 0 if n.type == "INT8" and kind == "INT8" and n.chance(0.4) and units > 1 else None, kind
    )
    y = n.quantized((rows, units), low=0.3, high=1.0)
    n.made(w)
    return n.op("FULLY_CONNECTED", [x, w, n.offsets(x, w, units) if n.chance(0.8) else -1], [y],
                "FullyConnectedOptions", fused_activation_function=n.activation())  # fmt: skip


def pool(n: Draw) -> int:
    x = n.image()
    batch, _, _, depth = n.shape(x)
    (kh, kw, oh, ow), values = _window(n, x, dilate=False)
    spec = n.tensors[x]
    y = n.tensor((batch, oh, ow, depth), spec.type, scale=spec.scales or None, zero=(*spec.zeros, 0)[0])
    return n.op(str(n.draw.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"])), [x], [y], "Pool2DOptions", filter_height=kh,
                filter_width=kw, fused_activation_function=n.activation(), **values)  # fmt: skip


def _pair(n: Draw, *, high: float = 0.5) -> tuple[int, int, tuple[int, ...]]:
    """Draw two inputs of which one may be broadcast, and the shape of the result."""
    shape = [n.number(1, 2), n.number(1, 4), n.number(1, 4), n.number(1, 5)]
    other = list(shape)
    how = n.number(0, 4)
    if how == 1:
        other = [1, 1, 1, shape[3]]
    elif how == 2:
        other = [shape[3]]
    elif how == 3:
        other = [1, shape[1], 1, 1]
    a, b = (shape, other) if n.chance(0.7) else (other, shape)
    return n.given(*a, high=high), n.given(*b, high=high), tuple(shape)


def sums(n: Draw) -> int:
    a, b, shape = _pair(n)
    name = str(n.draw.choice(["ADD", "SUB", "MUL"]))
    values = {} if name == "MUL" else {"pot_scale_int16": False}
    return n.op(name, [a, b], [n.quantized(shape, low=0.03)], f"{name.title()}Options",
                fused_activation_function=n.activation(), **values)  # fmt: skip


def differences(n: Draw) -> int:
    a, b, shape = _pair(n)
    return n.op("SQUARED_DIFFERENCE", [a, b], [n.quantized(shape, high=3.0)], "SquaredDifferenceOptions")


def extremes(n: Draw) -> int:
    a, b, shape = _pair(n)
    return n.op(str(n.draw.choice(["MAXIMUM", "MINIMUM"])), [a, b], [n.like(a, shape)], "MaximumMinimumOptions")


def division(n: Draw) -> int:
    """Divide by an input of which no value is the zero point, for which the runtime has no answer."""
    shape = (2, n.number(1, 20))
    a = n.given(*shape)
    scale = n.real(0.01, 0.5)
    if n.type == "FLOAT32":
        b = n.tensor(shape, data=n.draw.uniform(0.5, 2, shape))
    else:
        zero = n.zero()
        values = n.draw.integers(-128, 128, shape)
        values[values == zero] = zero + 1 if zero < 100 else zero - 1
        b = n.tensor(shape, "INT8", values, scale=scale, zero=zero)
    return n.op("DIV", [a, b], [n.quantized(shape)], "DivOptions", fused_activation_function=n.activation())


def comparison(n: Draw) -> int:
    a, b, shape = _pair(n)
    name = str(n.draw.choice(["EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"]))
    options = "".join(part.title() for part in name.split("_")) + "Options"
    return n.op(name, [a, b], [n.tensor(shape, "BOOL")], options)


def add_n(n: Draw) -> int:
    shape = (n.number(1, 3), n.number(1, 9))
    first = n.given(*shape)
    parts = [first]
    for _ in range(n.number(1, 3)):
        parts.append(n.like(first))
        n.inputs.append(parts[-1])
    return n.op("ADD_N", parts, [n.quantized(shape, low=0.3, high=1.0)], "AddNOptions")


def reduction(n: Draw) -> int:
    x = n.image()
    name = str(n.draw.choice(["MEAN", "SUM"] if n.type == "INT16" else ["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"]))
    axes = sorted(int(a) for a in n.draw.choice(4, n.number(1, 2), replace=False))
    keep = n.chance()
    shape = [1 if keep and d in axes else s for d, s in enumerate(n.shape(x)) if keep or d not in axes]
    y = n.quantized(shape) if name in ("MEAN", "SUM") and n.chance(0.8) else n.like(x, shape)
    return n.op(name, [x, n.ints(*axes)], [y], "ReducerOptions", keep_dims=keep)


def concatenation(n: Draw) -> int:
    axis = n.number(1, 3)
    shape = [1, n.number(1, 4), n.number(1, 4), n.number(1, 4)]
    first = n.given(*shape)
    parts = [first]
    for _ in range(n.number(1, 3)):
        other = list(shape)
        other[axis] = n.number(1, 4)
        parts.append(n.like(first, other))
        n.inputs.append(parts[-1])
    return n.concat(*parts, axis=axis)


def resize(n: Draw) -> int:
    x = n.image()
    batch, _, _, depth = n.shape(x)
    height, width = n.number(1, 14), n.number(1, 14)
    bilinear = n.type != "INT16" and n.chance(0.7)
    corners = n.chance(0.3)
    name = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
    return n.op(name, [x, n.ints(height, width)], [n.like(x, (batch, height, width, depth))],
                "ResizeBilinearOptions" if bilinear else "ResizeNearestNeighborOptions", align_corners=corners,
                half_pixel_centers=n.chance() and not corners)  # fmt: skip


def pad(n: Draw) -> int:
    x = n.image(size=5)
    around = n.draw.integers(0, 3, (4, 2))
    shape = [s + int(a.sum()) for s, a in zip(n.shape(x), around, strict=True)]
    paddings = n.tensor((4, 2), "INT32", around)
    spec = n.tensors[x]
    y = n.like(x, shape)
    if n.chance():
        return n.op("PAD", [x, paddings], [y], "PadOptions")
    fill = n.tensor((1,), spec.type, np.array([n.number(-9, 9)]), scale=spec.scales or None, zero=(*spec.zeros, 0)[0])
    return n.op("PADV2", [x, paddings, fill], [y], "PadV2Options")


def mirror_pad(n: Draw) -> int:
    x = n.given(1, n.number(3, 5), n.number(3, 5), n.number(1, 3))
    mode = n.number(0, 1)
    around = np.array([[0, 0], *n.draw.integers(0, 3, (2, 2)).tolist(), [0, 0]])
    shape = [s + int(a.sum()) for s, a in zip(n.shape(x), around, strict=True)]
    return n.op("MIRROR_PAD", [x, n.tensor((4, 2), "INT32", around)], [n.like(x, shape)], "MirrorPadOptions", mode=mode)


def transpose(n: Draw) -> int:
    x = n.image(size=5)
    order = [int(axis) for axis in n.draw.permutation(4)] if n.chance() else [0, 2, 3, 1]
    return n.op("TRANSPOSE", [x, n.ints(*order)], [n.like(x, [n.shape(x)[d] for d in order])], "TransposeOptions")


def strided_slice(n: Draw) -> int:
    x = n.given(1, n.number(2, 6), n.number(2, 6), n.number(1, 4))
    masks = {name: n.number(0, 15) if n.chance(0.3) else 0 for name in ("begin_mask", "end_mask")}
    shrink = 0
    begins, ends, strides, shape = [], [], [], []
    for axis, size in enumerate(n.shape(x)):
        if axis and n.chance(0.15):
            shrink |= 1 << axis
            begin = n.number(-size, size - 1)
            begins, ends, strides = [*begins, begin], [*ends, begin % size + 1], [*strides, 1]
            continue
        stride = n.number(1, 3) if axis and n.chance(0.7) else 1
        begin, end = n.number(0, size - 1), size
        end = n.number(begin + 1, size)
        if axis and n.chance(0.2):
            begin, end, stride = n.number(1, size - 1) if size > 1 else 0, -size - 1, -1
        begins, ends, strides = [*begins, begin], [*ends, end], [*strides, stride]
        place = slice(
            None if masks["begin_mask"] >> axis & 1 else begin, None if masks["end_mask"] >> axis & 1 else end, stride
        )
        shape.append(len(range(size)[place]))
    y = n.like(x, shape)
    parts = [x, n.ints(*begins), n.ints(*ends), n.ints(*strides)]
    return n.op("STRIDED_SLICE", parts, [y], "StridedSliceOptions", shrink_axis_mask=shrink, **masks)


def softmax(n: Draw) -> int:
    x = n.given(n.number(1, 3), n.number(1, 20), low=0.001, high=2.0)
    kind = "INT16" if n.type == "INT8" and n.chance(0.3) else n.type
    scale, zero = {"INT8": (1 / 256, -128), "INT16": (1 / 32768, 0)}.get(kind, (None, 0))
    if kind != n.type:
        scale, zero = 1 / 65536, -32768
    y = n.tensor(n.shape(x), kind, scale=scale, zero=zero)
    beta = 1.0 if n.chance() else n.real(0.3, 2.0)
    return n.op("SOFTMAX", [x], [y], "SoftmaxOptions", beta=beta)


def log_softmax(n: Draw) -> int:
    x = n.given(n.number(1, 3), n.number(1, 20), low=0.002, high=1.0)
    scale = 16 / 256 if n.type == "INT8" else None
    return n.op("LOG_SOFTMAX", [x], [n.tensor(n.shape(x), n.type, scale=scale, zero=127 if scale else 0)],
                "LogSoftmaxOptions")  # fmt: skip


def l2_normalization(n: Draw) -> int:
    x = n.given(n.number(1, 3), n.number(1, 20))
    return n.op("L2_NORMALIZATION", [x], [n.tensor(n.shape(x), n.type, scale=1 / 128 if n.type == "INT8" else None)],
                "L2NormOptions", fused_activation_function=0)  # fmt: skip


def curve(n: Draw) -> int:
    name = str(n.draw.choice(["LOGISTIC", "TANH"]))
    x = n.given(n.number(1, 3), 40, low=0.004, high=0.6)
    if n.type == "INT16" and n.chance(0.4):
        x = n.tensor((2, 40), "INT16", scale=float(2.0 ** -n.number(10, 14)))
        n.inputs = [x]
    span = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}[name]
    scale, zero = {"INT8": span, "INT16": (1 / 32768, 0)}.get(n.type, (None, 0))
    return n.op(name, [x], [n.tensor(n.shape(x), n.type, scale=scale, zero=zero)])


def rectifier(n: Draw) -> int:
    name = str(n.draw.choice(["RELU", "RELU6", "LEAKY_RELU", "PRELU"]))
    x = n.given(1, n.number(1, 4), n.number(1, 4), n.number(1, 5))
    if name == "RELU6":
        # The runtime refuses scales on which 6 is not an integer of the type.
        n.tensors[x] = n.tensors[x]._replace(
            scales=(0.1,) if n.type == "INT8" else n.tensors[x].scales,
            zeros=(-20,) if n.type == "INT8" else n.tensors[x].zeros,
        )
        return n.op(name, [x], [n.like(x)])
    y = n.quantized(n.shape(x))
    if name == "LEAKY_RELU":
        return n.op(name, [x], [y], "LeakyReluOptions", alpha=n.real(0.01, 1.5))
    if name == "PRELU":
        shape = (1, 1, n.shape(x)[3])
        if n.type == "FLOAT32":
            alpha = n.tensor(shape, data=n.draw.normal(0, 0.3, shape))
        else:
            alpha = n.tensor(
                shape, "INT8", n.draw.integers(-128, 128, shape), scale=n.real(0.002, 0.02), zero=n.zero("INT8")
            )
        return n.op(name, [x, alpha], [y])
    return n.op(name, [x], [y])


def swish(n: Draw) -> int:
    x = n.given(2, 50, low=0.004, high=1.0)
    return n.op("HARD_SWISH", [x], [n.quantized((2, 50), low=0.02, high=0.3)], "HardSwishOptions")


def elu(n: Draw) -> int:
    return n.op("ELU", [n.given(2, 50)], [n.quantized((2, 50))])


def absolute(n: Draw) -> int:
    x = n.given(2, 50)
    return n.op("ABS", [x], [n.quantized((2, 50)) if n.chance() else n.like(x)], "AbsOptions")


def requantize(n: Draw) -> int:
    x = n.given(2, 50)
    kind = str(
        n.draw.choice(
            {"INT8": ["INT8", "INT16", "INT32"], "INT16": ["INT8", "INT16", "INT32"]}.get(n.type, ["INT8", "INT16"])
        )
    )
    y = n.tensor((2, 50), kind, scale=n.real(1e-5, 1e-3), zero=0) if kind == "INT32" else n.quantized((2, 50), kind)
    return n.op("QUANTIZE", [x], [y], "QuantizeOptions")


def dequantize(n: Draw) -> int:
    x = n.given(2, 50)
    return n.op("DEQUANTIZE", [x], [n.tensor((2, 50), "FLOAT32")], "DequantizeOptions")


def running_sum(n: Draw) -> int:
    x = n.given(2, n.number(1, 4), n.number(1, 4))
    return n.op("CUMSUM", [x, n.ints(n.number(0, 2))], [n.quantized(n.shape(x))], "CumsumOptions", exclusive=n.chance(),
                reverse=n.chance())  # fmt: skip


def products(n: Draw) -> int:
    batch, rows, depth, columns = n.number(1, 3), n.number(1, 5), n.number(1, 9), n.number(1, 5)
    adj_x, adj_y = n.chance(), n.chance()
    a = n.given(batch if n.chance(0.8) else 1, *((depth, rows) if adj_x else (rows, depth)))
    b = n.given(batch, *((columns, depth) if adj_y else (depth, columns)))
    y = n.quantized((batch, rows, columns), low=0.3, high=2.0)
    return n.op("BATCH_MATMUL", [a, b], [y], "BatchMatMulOptions", adj_x=adj_x, adj_y=adj_y)


def svdf(n: Draw) -> int:
    batch, width, units, rank, memory = 1, n.number(2, 9), n.number(1, 5), n.number(1, 3), n.number(2, 6)
    x = n.given(batch, width, high=0.1)
    filters = units * rank
    if n.type == "FLOAT32":
        features, times = n.weights((filters, width), None), n.weights((filters, memory), None)
        state = n.tensor((batch, filters * memory), variable=True)
        bias = n.offsets(x, features, units)
    else:
        features = n.weights((filters, width), None)
        kind = str(n.draw.choice(["INT8", "INT16"]))
        limit, scale = (128, 0.01) if kind == "INT8" else (3000, 0.0003)
        times = n.tensor((filters, memory), kind, n.draw.integers(-limit, limit, (filters, memory)), scale=scale)
        size = n.real(0.05, 0.2) if kind == "INT8" else n.real(0.0005, 0.002)
        state = n.tensor(
            (batch, filters * memory), kind, scale=size, zero=n.zero("INT8") if kind == "INT8" else 0, variable=True
        )
        bias = n.tensor(
            (units,), "INT32", n.draw.integers(-900, 900, units), scale=float(np.float32(size) * np.float32(scale))
        )
    y = n.quantized((batch, units), low=0.05, high=0.2)
    return n.op("SVDF", [x, features, times, bias, state], [y], "SVDFOptions", rank=rank, fused_activation_function=1)


def lstm(n: Draw) -> int:
    batch, steps, width, units = n.number(1, 2), n.number(1, 5), n.number(1, 6), n.number(1, 6)
    major = n.chance()
    shape = (steps, batch) if major else (batch, steps)
    x = n.given(*shape, width, high=0.05)
    inputs = [
        x,
        *(n.weights((units, width), None) for _ in range(4)),
        *(n.weights((units, units), None) for _ in range(4)),
    ]
    inputs += [-1, -1, -1, *(n.offsets(x, w, units) for w in inputs[1:5]), -1, -1]
    if n.type == "FLOAT32":
        hidden, cell = n.tensor((batch, units), variable=True), n.tensor((batch, units), variable=True)
        y = n.tensor((*shape, units))
    else:
        scale = n.real(0.005, 0.01) / (256 if n.type == "INT16" else 1)
        zero = n.zero() if n.type == "INT8" else 0
        hidden = n.tensor((batch, units), scale=scale, zero=zero, variable=True)
        cell = n.tensor((batch, units), "INT16", scale=2.0 ** -n.number(10, 14), variable=True)
        y = n.tensor((*shape, units), scale=scale, zero=zero)
    inputs += [hidden, cell, -1, -1, -1, -1]
    return n.op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], "UnidirectionalSequenceLSTMOptions",
                fused_activation_function=4, cell_clip=n.real(0.3, 3.0) if n.chance() else 0.0, proj_clip=0.0,
                time_major=major)  # fmt: skip


_EIGHT = "INT8 INT8 FLOAT32"

DRAWN: dict[str, tuple[Callable[[Draw], int], str]] = {
    "conv": (conv, "INT8 INT8 INT16 FLOAT32"),
    "depthwise": (depthwise, "INT8 INT8 INT16 FLOAT32"),
    "transpose_conv": (transpose_conv, "INT8 INT8 INT16 FLOAT32"),
    "linear": (linear, "INT8 INT8 INT16 FLOAT32"),
    "pool": (pool, "INT8 INT8 INT16 FLOAT32"),
    "sums": (sums, "INT8 INT8 INT16 FLOAT32"),
    "differences": (differences, "INT8 INT8 INT16 FLOAT32"),
    "extremes": (extremes, _EIGHT),
    "division": (division, _EIGHT),
    "comparison": (comparison, _EIGHT),
    "add_n": (add_n, _EIGHT),
    "reduction": (reduction, "INT8 INT8 INT16 FLOAT32"),
    "concatenation": (concatenation, "INT8 INT8 INT16 FLOAT32"),
    "resize": (resize, "INT8 INT8 INT16 FLOAT32"),
    "pad": (pad, "INT8 INT8 INT16 FLOAT32"),
    "mirror_pad": (mirror_pad, _EIGHT),
    "transpose": (transpose, "INT8 INT8 INT16 FLOAT32"),
    "strided_slice": (strided_slice, "INT8 INT16 FLOAT32"),
    "softmax": (softmax, "INT8 INT8 INT16"),
    "log_softmax": (log_softmax, "INT8"),
    "l2_normalization": (l2_normalization, _EIGHT),
    "curve": (curve, "INT8 INT16"),
    "rectifier": (rectifier, "INT8 INT8 INT16 FLOAT32"),
    "swish": (swish, _EIGHT),
    "elu": (elu, "INT8"),
    "absolute": (absolute, "INT8 INT16 FLOAT32"),
    "requantize": (requantize, "INT8 INT8 INT16 FLOAT32"),
    "dequantize": (dequantize, "INT8 INT16"),
    "running_sum": (running_sum, _EIGHT),
    "products": (products, "INT8 INT8 INT16 FLOAT32"),
    "svdf": (svdf, _EIGHT),
    "lstm": (lstm, "INT8 INT16"),
}
"""Kind of operator → what draws a model of it, and of which types."""


def drawn(name: str, seed: int) -> bytes:
    """Make a model: the same bytes for the same seed."""
    body, types = DRAWN[name]
    net = Draw(seed, types)
    return net.build(body(net))
