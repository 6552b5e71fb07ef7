"""Integer models with random weights for the streaming executor: small ones drawn at random, and known architectures.

`StreamNet.finish` runs each model once and fits its scales to what comes out, as batch norm would, so that values
neither saturate nor vanish from layer to layer: only then does an equal output say much. Every model is the same bytes
on every run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tflite_models import ACTIVATION, SAME, VALID, Net

from memfit.formats.tflite import Operator, TfliteModel, parse_model
from memfit.kernels import kernel_of
from memfit.kernels.interpreter import dtype_of
from memfit.kernels.kernel import constant
from memfit.stream.layout import Arena, Draft
from memfit.stream.segments import Segment, Segments

SIZE = 45
"""Root of the mean square that the integers of each tensor are given."""

WEIGHTS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
"""Operators with weights → where their image, weights and bias stand."""


class StreamNet(Net):
    """A model whose scales are fitted when it is finished."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.tied: dict[int, int] = {}
        """Output → tensor whose scale and zero point it has."""

    def image(self, height: int, width: int, channels: int, *, planar: bool = False) -> int:
        """Make the input; `planar` for one whose channels stand first, transposed at once."""
        if not planar:
            return self.input(1, height, width, channels)
        return self.transpose(self.input(1, channels, height, width), 0, 2, 3, 1)

    def like(self, other: int, shape: Sequence[int] | None = None) -> int:
        made = super().like(other, shape)
        self.tied[made] = other
        return made

    def given(self, *shape: int) -> int:
        """Make constant activations: of a whole image, or one for each channel."""
        values = self.random.integers(-128, 128, shape)
        return self.tensor((1, *shape) if len(shape) == 3 else shape, "INT8", values, scale=0.05)

    def free(self, shape: Sequence[int]) -> int:
        """Make a tensor whose scale is fitted."""
        return self.tensor(shape, scale=0.05, zero=int(self.random.integers(-20, 21)))

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
        weight = self.weight((channels, kernel, kernel, self.shape(x)[3]), channel=0)
        y = self.free((1, *self._sized(x, kernel, stride, padding, dilation), channels))
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
        y = self.free((1, *self._sized(x, kernel, stride, padding, dilation), channels))
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
        return self.op(
            "TRANSPOSE_CONV", [self.ints(*shape), weight, x, self.bias(x, weight, channels)], [self.free(shape)],
            "TransposeConvOptions", version=3, padding=SAME, stride_w=stride, stride_h=stride,
        )  # fmt: skip

    def border(self, x: int, sides: tuple[int, int, int, int], fill: int | None = None) -> int:
        """Pad above, below, left and right, with the zero point or a number."""
        top, bottom, left, right = sides
        paddings = self.tensor((4, 2), "INT32", np.array([[0, 0], [top, bottom], [left, right], [0, 0]]))
        n, height, width, channels = self.shape(x)
        y = self.like(x, (n, top + height + bottom, left + width + right, channels))
        if fill is None:
            return self.op("PAD", [x, paddings], [y], "PadOptions", version=2)
        spec = self.tensors[x]
        value = self.tensor((1,), spec.type, np.array([fill]), scale=spec.scales[0])
        return self.op("PADV2", [x, paddings, value], [y], "PadV2Options", version=2)

    def sum(self, a: int, b: int, activation: str | None = None) -> int:
        return self.op("ADD", [a, b], [self.free(self.shape(a))], "AddOptions", version=2, pot_scale_int16=False,
                       fused_activation_function=ACTIVATION[activation])  # fmt: skip

    def times(self, a: int, b: int) -> int:
        return self.op("MUL", [a, b], [self.free(self.shape(a))], "MulOptions", version=2, fused_activation_function=0)

    def join(self, first: int, *others: int) -> int:
        """Join channels, at the scale of the first part."""
        same = [
            self.op("QUANTIZE", [x], [self.like(first, self.shape(x))], "QuantizeOptions") if x != first else x
            for x in others
        ]
        return self.concat(first, *same, axis=3)

    def mean(self, x: int, *, keep: bool = True) -> int:
        """Take the mean of a whole image."""
        channels = self.shape(x)[3]
        y = self.free((1, 1, 1, channels) if keep else (1, channels))
        return self.op("MEAN", [x, self.ints(1, 2)], [y], "ReducerOptions", version=2, keep_dims=keep)

    def pool_all(self, x: int) -> int:
        """Take the mean of a whole image by pooling: the window is as large as the image, or larger."""
        side = max(self.shape(x)[1:3])
        return self.pool(x, "AVERAGE", side, side, SAME)

    def swish(self, x: int) -> int:
        """x times its logistic, as converters write it."""
        return self.times(x, self.unary("LOGISTIC", x))

    def excite(self, x: int, channels: int, *, swish: bool = True, pools: bool = False) -> int:
        """Squeeze and excite: scale every channel by what its mean says, which a pooling may take."""
        mean = self.pool_all(x) if pools else self.mean(x)
        squeezed = self.conv(mean, channels, activation=None if swish else "relu")
        squeezed = self.swish(squeezed) if swish else squeezed
        return self.times(x, self.unary("LOGISTIC", self.conv(squeezed, self.shape(x)[3])))

    def classify(self, x: int, classes: int) -> int:
        return self.linear(self.mean(x, keep=False), classes)

    def finish(self, *outputs: int) -> bytes:
        """Run the model on a random input, fit every scale on the way, and write it."""
        model = parse_model(self.build(*outputs))
        found: dict[int, Any] = {
            t.index: constant(model, t) for t in model.main.tensors if t.is_constant
        }  # fmt: skip
        for i in self.inputs:
            found[i] = self.random.integers(-128, 128, self.shape(i)).astype(np.int8)
        for operator in model.main.operators:
            output = operator.outputs[0]
            if output in self.tied:
                spec = self.tensors[self.tied[output]]
                self.tensors[output] = self.tensors[output]._replace(scales=spec.scales, zeros=spec.zeros)
            fitted = operator.name in WEIGHTS or operator.name in ("ADD", "MUL", "MEAN")
            for _ in range(4):
                made = self._run(model, operator, found)
                zero = self.tensors[output].zeros[0]
                size = math.sqrt(float(np.square(made.astype(np.float64) - zero).mean()))
                if not fitted or 0.5 * SIZE < size < 1.5 * SIZE:
                    break
                self._fit(operator, SIZE / max(size, 1.0))
            found[output] = made
        return self.build(*outputs)

    def _fit(self, operator: Operator, larger: float) -> None:
        """Change scales so that the integers of an output become so many times larger."""
        if operator.name not in WEIGHTS:
            output = self.tensors[operator.outputs[0]]
            self.tensors[operator.outputs[0]] = output._replace(scales=(float(np.float32(output.scales[0] / larger)),))
            return
        image, weights, bias = (operator.inputs[place] for place in WEIGHTS[operator.name])
        scales = tuple(float(np.float32(scale * larger)) for scale in self.tensors[weights].scales)
        self.tensors[weights] = self.tensors[weights]._replace(scales=scales)
        together = tuple(self.tensors[image].scales[0] * scale for scale in scales)
        self.tensors[bias] = self.tensors[bias]._replace(scales=together)

    def _run(self, model: TfliteModel, operator: Operator, found: dict[int, Any]) -> Any:
        """Compute an operator with the scales as they are now."""
        if operator.name in WEIGHTS:
            self._fit(operator, 1.0)  # the bias follows the image's scale
        tensors = list(model.main.tensors)
        for i in {*operator.inputs, *operator.outputs}:
            if (quantization := tensors[i].quantization) is not None:
                spec = self.tensors[i]
                fitted = quantization._replace(scales=spec.scales, zero_points=spec.zeros)
                tensors[i] = tensors[i]._replace(quantization=fitted)
        now = replace(model, subgraphs=(model.main._replace(tensors=tuple(tensors)),))
        kernel = kernel_of(now, operator)
        output = now.main.tensors[operator.outputs[0]]
        made = np.empty(output.shape, dtype_of(now, output))
        kernel.run(kernel.prepare(now, operator), [found[i] for i in operator.inputs], [made])
        return made


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
    return net.finish(net.classify(x, classes))


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
    return net.finish(net.classify(net.swish(net.conv(x, wide(1280))), classes))


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
    return net.finish(net.conv(x, classes))


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
    return net.finish(net.classify(x, classes))


# -- drawn at random -------------------------------------------------------------------------------------------------


def drawn(seed: int) -> bytes:
    """A small network drawn at random: windows of all kinds, branches, skips, squeeze-excite, enlarging."""
    pick = random.Random(seed)
    net = StreamNet(seed)
    x = net.image(pick.randint(5, 13), pick.randint(5, 13), pick.randint(1, 3), planar=pick.random() < 0.25)
    seen = [x]
    if pick.random() < 0.2:
        seen.append(net.input(1, *net.shape(x)[1:3], pick.randint(1, 3)))
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
        way = pick.random()
        x = net.classify(x, 3) if way < 0.5 else net.mean(x) if way < 0.7 else net.pool_all(x)
    return net.finish(*dict.fromkeys([*outputs, x]))


def hourglass(seed: int) -> bytes:
    """A small network drawn at random that narrows and widens again, with skips from each level to its like."""
    pick = random.Random(seed)
    net = StreamNet(seed)
    x = net.image(pick.randint(12, 20), pick.randint(12, 20), pick.randint(1, 3))
    skips = []
    for _ in range(pick.randint(2, 3)):
        for _ in range(pick.randint(1, 2)):
            x = pick.choice((_conv_alike, _conv_alike, _depthwise_alike, _excite))(net, x, pick)
        skips.append(x)
        x = net.pool(x, "MAX", 2, 2, SAME) if pick.random() < 0.5 else net.conv(x, pick.randint(2, 5), 3, 2)
    x = _conv_alike(net, x, pick)
    for skip in reversed(skips):
        _, height, width, channels = net.shape(skip)
        x = net.resize(net.conv(x, channels), height, width, bilinear=pick.random() < 0.5)
        x = net.sum(x, skip) if pick.random() < 0.5 else net.join(skip, x)
        x = _conv_alike(net, x, pick)
    return net.finish(x if pick.random() < 0.7 else net.mean(x))


def _conv_alike(net: StreamNet, x: int, pick: random.Random) -> int:
    return net.conv(x, pick.randint(2, 6), pick.choice((1, 3)), activation="relu")


def _depthwise_alike(net: StreamNet, x: int, pick: random.Random) -> int:
    return net.depthwise(x, pick.choice((3, 5)))


def _excite(net: StreamNet, x: int, pick: random.Random) -> int:
    return net.excite(x, pick.randint(1, 2))


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


def _bordered(net: StreamNet, x: int, pick: random.Random) -> int:
    """A window behind a PAD of its own, which another operator may read too."""
    sides = (pick.randint(0, 2), pick.randint(0, 2), pick.randint(0, 2), pick.randint(0, 2))
    if pick.random() < 0.3:
        return net.pool(net.border(x, sides, pick.choice((-128, 3))), "MAX", 2, pick.choice((1, 2)), SAME)
    bordered = net.border(x, sides)
    size = pick.choice((1, 2, 3)) if min(net.shape(bordered)[1:3]) > 2 else 1
    padding, stride, dilation = pick.choice((SAME, VALID, VALID)), pick.choice((1, 1, 2, 3)), pick.choice((1, 1, 2))
    dilation = dilation if (size - 1) * dilation < min(net.shape(bordered)[1:3]) else 1
    if pick.random() < 0.5:
        y = net.depthwise(bordered, size, stride, padding=padding, dilation=dilation)
    else:
        y = net.conv(bordered, pick.randint(1, 4), size, stride, padding=padding, dilation=dilation)
    if pick.random() < 0.3:
        return net.join(y, net.conv(bordered, 2, size, stride, padding=padding, dilation=dilation))
    return y


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
    _bordered,
    _resize,
    _up,
    lambda net, x, _: net.op("HARD_SWISH", [x], [net.free(net.shape(x))], "HardSwishOptions"),
    lambda net, x, pick: net.pad(x, pick.randint(1, 2)),
    lambda net, x, pick: inverted(net, x, net.shape(x)[3], pick.randint(1, 3)),
    lambda net, x, pick: inverted(net, x, pick.randint(1, 4), 2, kernel=pick.choice((3, 5)), stride=2),
    lambda net, x, pick: (
        net.excite(x, pick.randint(1, 2), swish=pick.random() < 0.5, pools=pick.random() < 0.5)
        if math.prod(net.shape(x)[1:3]) > 1
        else net.conv(x, 2)
    ),
    lambda net, x, pick: net.join(net.conv(x, 2, 3), net.conv(x, pick.randint(1, 3), 1), x),
    lambda net, x, _: net.swish(x),
    lambda net, x, pick: net.sum(
        x, net.given(*net.shape(x)[1:]) if pick.random() < 0.5 else net.given(net.shape(x)[3])
    ),
)


def lay_out(segments: Segments, chosen: Sequence[Segment]) -> Arena:
    """Place every buffer of a choice of segments."""
    draft = Draft(segments, chosen)
    return draft.within(draft.bound) or draft.anyhow()
