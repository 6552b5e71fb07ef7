"""Integer models with random weights for the streaming executor: small ones drawn at random, and known architectures.

Scales follow each operator's fan-in, so that values keep about the same spread from layer to layer and neither saturate
nor vanish: only then does an equal output say much. Every model is the same bytes on every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from tflite_models import ACTIVATION, SAME, VALID, Net

SPREAD = 69
"""Standard deviation of weights drawn evenly from -120 to 120."""


class StreamNet(Net):
    """A model whose convolutions have scales that fit their fan-in."""

    def image(self, height: int, width: int, channels: int, *, planar: bool = False) -> int:
        """Make the input; `planar` for one whose channels stand first, transposed at once."""
        if not planar:
            return self.input(1, height, width, channels)
        return self.transpose(self.input(1, channels, height, width), 0, 2, 3, 1)

    def quantized(self, shape: Sequence[int], scale: float) -> int:
        return self.tensor(shape, scale=float(np.float32(scale)), zero=int(self.random.integers(-20, 21)))

    def scale(self, x: int) -> float:
        return self.tensors[x].scales[0]

    def _sized(self, x: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
        extent = (kernel - 1) * dilation + 1
        height, width = self.shape(x)[1:3]
        if padding == SAME:
            return -(-height // stride), -(-width // stride)
        return (height - extent) // stride + 1, (width - extent) // stride + 1

    def conv(  # type: ignore[override]
        self, x: int, channels: int, kernel: int = 1, stride: int = 1, *, padding: int = SAME, dilation: int = 1,
        activation: str | None = None,
    ) -> int:  # fmt: skip
        depth = self.shape(x)[3]
        weight = self.weight((channels, kernel, kernel, depth), channel=0)
        spread = self.scale(x) * 0.006 * SPREAD * math.sqrt(kernel * kernel * depth)
        y = self.quantized((1, *self._sized(x, kernel, stride, padding, dilation), channels), spread)
        return self.op(
            "CONV_2D", [x, weight, self.bias(x, weight, channels)], [y], "Conv2DOptions", version=3, padding=padding,
            stride_w=stride, stride_h=stride, fused_activation_function=ACTIVATION[activation],
            dilation_w_factor=dilation, dilation_h_factor=dilation,
        )  # fmt: skip

    def depthwise(  # type: ignore[override]
        self, x: int, kernel: int = 3, stride: int = 1, *, padding: int = SAME, dilation: int = 1, multiplier: int = 1,
        activation: str | None = None,
    ) -> int:  # fmt: skip
        channels = self.shape(x)[3] * multiplier
        weight = self.weight((1, kernel, kernel, channels), channel=3)
        spread = self.scale(x) * 0.006 * SPREAD * kernel
        y = self.quantized((1, *self._sized(x, kernel, stride, padding, dilation), channels), spread)
        return self.op(
            "DEPTHWISE_CONV_2D", [x, weight, self.bias(x, weight, channels)], [y], "DepthwiseConv2DOptions", version=3,
            padding=padding, stride_w=stride, stride_h=stride, depth_multiplier=multiplier,
            fused_activation_function=ACTIVATION[activation], dilation_w_factor=dilation, dilation_h_factor=dilation,
        )  # fmt: skip

    def up(self, x: int, channels: int, kernel: int = 2, stride: int = 2) -> int:
        """Enlarge by a transposed convolution."""
        _, height, width, depth = self.shape(x)
        shape = (1, height * stride, width * stride, channels)
        weight = self.weight((channels, kernel, kernel, depth), channel=0)
        y = self.quantized(shape, self.scale(x) * 0.006 * SPREAD * math.sqrt(depth))
        return self.op(
            "TRANSPOSE_CONV", [self.ints(*shape), weight, x, self.bias(x, weight, channels)], [y],
            "TransposeConvOptions", version=3, padding=SAME, stride_w=stride, stride_h=stride,
        )  # fmt: skip

    def sum(self, a: int, b: int, activation: str | None = None) -> int:
        y = self.quantized(self.shape(a), math.hypot(self.scale(a), self.scale(b)))
        return self.op("ADD", [a, b], [y], "AddOptions", version=2, pot_scale_int16=False,
                       fused_activation_function=ACTIVATION[activation])  # fmt: skip

    def times(self, a: int, b: int) -> int:
        """Multiply by what comes out of a logistic: between 0 and 1."""
        y = self.quantized(self.shape(a), self.scale(a))
        return self.op("MUL", [a, b], [y], "MulOptions", version=2, fused_activation_function=0)

    def join(self, *parts: int) -> int:
        """Join channels; the parts get the first one's scale."""
        return self.concat(*(p if self.tensors[p][3:5] == self.tensors[parts[0]][3:5] else self.rescaled(p, parts[0])
                             for p in parts), axis=3)  # fmt: skip

    def rescaled(self, x: int, like: int) -> int:
        return self.op("QUANTIZE", [x], [self.like(like, self.shape(x))], "QuantizeOptions")

    def mean(self, x: int, *, keep: bool = True) -> int:
        """Take the mean of a whole image."""
        _, height, width, channels = self.shape(x)
        shape = (1, 1, 1, channels) if keep else (1, channels)
        y = self.quantized(shape, self.scale(x) / math.sqrt(height * width) * 3)
        return self.op("MEAN", [x, self.ints(1, 2)], [y], "ReducerOptions", version=2, keep_dims=keep)

    def swish(self, x: int) -> int:
        """x times its logistic, as converters write it."""
        return self.times(x, self.unary("LOGISTIC", x))

    def excite(self, x: int, channels: int, *, swish: bool = True) -> int:
        """Squeeze and excite: scale every channel by what its mean says."""
        squeezed = self.conv(self.mean(x), channels, activation=None if swish else "relu")
        squeezed = self.swish(squeezed) if swish else squeezed
        return self.times(x, self.unary("LOGISTIC", self.conv(squeezed, self.shape(x)[3])))

    def classify(self, x: int, classes: int) -> int:
        y = self.linear(self.mean(x, keep=False), classes)
        self.tensors[y] = self.tensors[y]._replace(scales=(self.scale(x) * 0.06 * math.sqrt(self.shape(x)[3]),))
        return y


# -- architectures -----------------------------------------------------------------------------------------------------


def inverted(net: StreamNet, x: int, channels: int, expand: int, *, kernel: int = 3, stride: int = 1) -> int:
    """An inverted residual, as in MobileNetV2."""
    before = net.shape(x)[3]
    y = net.conv(x, before * expand, activation="relu") if expand > 1 else x
    y = net.conv(net.depthwise(y, kernel, stride, activation="relu"), channels)
    return net.sum(x, y) if stride == 1 and channels == before else y


def resnet18(side: int = 224, width: int = 64, classes: int = 1000) -> bytes:
    """ResNet18: https://arxiv.org/abs/1512.03385, table 1."""
    net = StreamNet()
    x = net.conv(net.image(side, side, 3), width, 7, 2, activation="relu")
    x = net.pool(x, "MAX", 3, 2, SAME)
    for stage in range(4):
        for number in range(2):
            stride = 2 if stage and not number else 1
            channels = width << stage
            y = net.conv(net.conv(x, channels, 3, stride, activation="relu"), channels, 3)
            shortcut = net.conv(x, channels, 1, stride) if stride == 2 else x
            x = net.sum(y, shortcut, "relu")
    return net.build(net.classify(x, classes))


def efficientnet_b0(side: int = 224, share: float = 1.0, classes: int = 1000) -> bytes:
    """EfficientNet-B0: https://arxiv.org/abs/1905.11946, table 1; `share` of its channels."""
    net = StreamNet()
    wide = lambda channels: max(2, round(channels * share))  # noqa: E731  (one line, used below)
    x = net.swish(net.conv(net.image(side, side, 3), wide(32), 3, 2))
    for expand, channels, repeats, stride, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for number in range(repeats):
            before = net.shape(x)[3]
            y = net.swish(net.conv(x, before * expand)) if expand > 1 else x
            y = net.swish(net.depthwise(y, kernel, stride if not number else 1))
            y = net.conv(net.excite(y, max(1, before // 4)), wide(channels))
            x = net.sum(x, y) if number else y
    return net.build(net.classify(net.swish(net.conv(x, wide(1280))), classes))


def unet(side: int = 128, width: int = 16, levels: int = 4, *, resize: bool = False, classes: int = 2) -> bytes:
    """A U-Net with skips by concatenation: https://arxiv.org/abs/1505.04597, with padded convolutions.

    It grows by transposed convolutions, or by resizing to the double size.
    """
    net = StreamNet()
    x, skips = net.image(side, side, 3), []
    for level in range(levels + 1):
        channels = width << level
        x = net.conv(net.conv(x, channels, 3, activation="relu"), channels, 3, activation="relu")
        if level < levels:
            skips.append(x)
            x = net.pool(x, "MAX", 2, 2)
    for level, skip in reversed(list(enumerate(skips))):
        channels = width << level
        height, across = net.shape(skip)[1:3]
        x = net.conv(net.resize(x, height, across, bilinear=True), channels) if resize else net.up(x, channels)
        x = net.join(skip, x)
        x = net.conv(net.conv(x, channels, 3, activation="relu"), channels, 3, activation="relu")
    return net.build(net.conv(x, classes))


def mcunet(side: int = 160, share: float = 1.0, classes: int = 1000) -> bytes:
    """A network of inverted residuals with kernels of 3, 5 and 7, as searches for microcontrollers find them.

    After MCUNet, https://arxiv.org/abs/2007.10319; not one of its own networks.
    """
    net = StreamNet()
    wide = lambda channels: max(2, round(channels * share))  # noqa: E731  (one line, used below)
    x = net.conv(net.image(side, side, 3), wide(16), 3, 2, activation="relu")
    x = inverted(net, x, wide(8), 1)
    for channels, strides, kernels, expands in (
        (16, (2, 1, 1), (7, 3, 5), (3, 5, 4)), (24, (2, 1, 1), (5, 5, 5), (5, 5, 4)),
        (40, (2, 1, 1), (5, 3, 7), (5, 4, 4)), (48, (1, 1), (5, 5), (5, 4)),
        (96, (2, 1, 1), (3, 3, 5), (6, 5, 4)), (160, (1,), (7,), (5,)),
    ):  # fmt: skip
        for stride, kernel, expand in zip(strides, kernels, expands, strict=True):
            x = inverted(net, x, wide(channels), expand, kernel=kernel, stride=stride)
    return net.build(net.classify(x, classes))


# -- drawn at random -------------------------------------------------------------------------------------------------


def drawn(seed: int) -> bytes:
    """A small network drawn at random: windows of all kinds, branches, skips, squeeze-excite, enlarging."""
    pick = random.Random(seed)
    net = StreamNet(seed=seed)
    x = net.image(pick.randint(5, 13), pick.randint(5, 13), pick.randint(1, 3), planar=pick.random() < 0.25)
    seen = [x]
    outputs = []
    for _ in range(pick.randint(2, 5)):
        x = pick.choice(_STEPS)(net, x, pick)
        if pick.random() < 0.3:
            same = [s for s in seen if net.shape(s) == net.shape(x)]
            alike = [s for s in seen if net.shape(s)[1:3] == net.shape(x)[1:3]]
            if same and pick.random() < 0.5:
                x = net.sum(x, pick.choice(same))
            elif alike:
                x = net.join(x, pick.choice(alike))
        seen.append(x)
        if pick.random() < 0.1:
            outputs.append(x)
    if pick.random() < 0.5 and math.prod(net.shape(x)[1:3]) > 1:
        x = net.classify(x, 3) if pick.random() < 0.7 else net.mean(x)
    return net.build(*dict.fromkeys([*outputs, x]))


def _conv(net: StreamNet, x: int, pick: random.Random) -> int:
    kernel, dilation = pick.choice((1, 2, 3, 5)), pick.choice((1, 1, 2))
    fits = (kernel - 1) * dilation < min(net.shape(x)[1:3])
    padding = pick.choice((SAME, VALID)) if fits else SAME
    return net.conv(x, pick.randint(1, 5), kernel, pick.choice((1, 1, 2, 3)), padding=padding, dilation=dilation,
                    activation=pick.choice((None, "relu")))  # fmt: skip


def _depthwise(net: StreamNet, x: int, pick: random.Random) -> int:
    return net.depthwise(x, pick.choice((2, 3, 5)), pick.choice((1, 1, 2)), dilation=pick.choice((1, 1, 2)),
                         multiplier=pick.choice((1, 1, 2)))  # fmt: skip


def _pool(net: StreamNet, x: int, pick: random.Random) -> int:
    size = pick.choice((2, 3))
    padding = VALID if size <= min(net.shape(x)[1:3]) and pick.random() < 0.5 else SAME
    return net.pool(x, pick.choice(("MAX", "AVERAGE")), size, pick.choice((1, 2)), padding)


def _resize(net: StreamNet, x: int, pick: random.Random) -> int:
    height, width = net.shape(x)[1:3]
    if height * width > 200:
        return net.unary("RELU", x)
    return net.resize(x, pick.randint(height, 2 * height), pick.randint(width, 2 * width), pick.random() < 0.5)


def _up(net: StreamNet, x: int, pick: random.Random) -> int:
    if math.prod(net.shape(x)[1:3]) > 100:
        return net.unary("LOGISTIC", x)
    return net.up(x, pick.randint(1, 4), pick.choice((2, 3)), 2)


_STEPS = (
    _conv,
    _conv,
    _depthwise,
    _pool,
    _resize,
    _up,
    lambda net, x, pick: net.pad(x, pick.randint(1, 2)),
    lambda net, x, pick: inverted(net, x, net.shape(x)[3], pick.randint(1, 3)),
    lambda net, x, pick: inverted(net, x, pick.randint(1, 4), 2, kernel=pick.choice((3, 5)), stride=2),
    lambda net, x, pick: (
        net.excite(x, pick.randint(1, 2), swish=pick.random() < 0.5)
        if math.prod(net.shape(x)[1:3]) > 1
        else net.conv(x, 2)
    ),
    lambda net, x, pick: net.join(net.conv(x, 2, 3), net.conv(x, pick.randint(1, 3), 1), x),
    lambda net, x, _: net.swish(x),
)
