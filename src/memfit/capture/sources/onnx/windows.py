"""What slides over an image: shapes, attributes and multiplications of convolution and pooling. Layout NCHW."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from memfit.capture.sources.onnx.call import Call, Out, Shape

Rule = Callable[[Call], list[Out]]


class Window(NamedTuple):
    """How a window moves."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    pads: tuple[int, ...]
    """Before each dimension, then after each."""
    output: Shape
    """Places that it stops at."""


def window(call: Call, space: Shape, kernel: Shape) -> Window:
    """Place a window of that size on an image."""
    rank = len(space)
    stride = tuple(call.integers("strides", (1,) * rank, rank))
    dilation = tuple(call.integers("dilations", (1,) * rank, rank))
    if any(size < 1 for size in (*kernel, *stride, *dilation)):
        raise call.wrong("its kernel, strides or dilations are not positive", f"{kernel}, {stride}, {dilation}")
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    auto = call.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        output = tuple(-(-size // step) for size, step in zip(space, stride, strict=True))
        need = [max(0, (o - 1) * s + r - i) for o, s, r, i in zip(output, stride, reach, space, strict=True)]
        small, large = [n // 2 for n in need], [n - n // 2 for n in need]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
        return Window(kernel, stride, dilation, pads, output)
    pads = (0,) * (2 * rank) if auto == "VALID" else tuple(call.integers("pads", (0,) * (2 * rank), 2 * rank))
    free = [size + pads[d] + pads[d + rank] - reach[d] for d, size in enumerate(space)]
    if call.integer("ceil_mode", 0):
        output = tuple(-(-room // stride[d]) + 1 for d, room in enumerate(free))
        output = tuple(  # a window that would start in the padding behind the image does not count
            o - 1 if (o - 1) * stride[d] >= space[d] + pads[d] else o for d, o in enumerate(output)
        )
    else:
        output = tuple(room // stride[d] + 1 for d, room in enumerate(free))
    if any(size < 1 for size in output) and all(space):
        raise call.wrong("its window is larger than its padded input", f"{reach} on {space} with pads {pads}")
    return Window(kernel, stride, dilation, pads, tuple(max(0, size) for size in output))


def _attrs(found: Window) -> dict[str, Any]:
    rank = len(found.kernel)
    before, after = found.pads[:rank], found.pads[rank:]
    return {
        "kernel": found.kernel,
        "stride": found.stride,
        "padding": before if before == after else found.pads,
        "dilation": found.dilation,
    }


# -- convolution --------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    """Where a convolution's operands stand among the inputs."""

    x: int = 0
    weight: int = 1
    bias: int = 2
    zero: int | None = None
    """The output's zero point, whose type is the output's."""
    dtype: str | None = None

    def parts(self, call: Call) -> tuple[Shape, Shape, int]:
        """Shapes of image and weight, and the groups, held against each other."""
        if call.integer("channels_last", 0):
            raise call.wrong("memfit does not read channels_last convolutions", "channels_last=1")
        image, weight = call.shape(self.x, at_least=3), call.shape(self.weight)
        groups = call.integer("group", 1)
        if len(weight) != len(image):
            raise call.wrong("its weight has another rank than its input")
        if groups < 1 or weight[1] * groups != image[1] or weight[0] % groups:
            raise call.wrong(f"its weight does not fit its input's channels in {groups} groups")
        kernel = tuple(call.integers("kernel_shape", weight[2:]))
        if kernel != weight[2:]:
            raise call.wrong("its kernel_shape is not its weight's", f"{kernel} and {weight}")
        return image, weight, groups

    def shapes(self, call: Call) -> list[Out]:
        """Shape of the output."""
        image, weight, _ = self.parts(call)
        found = window(call, image[2:], weight[2:])
        dtype = self.dtype or call.dtype(self.x if self.zero is None else self.zero)
        return [((image[0], weight[0], *found.output), dtype)]

    def kind(self, call: Call) -> str:
        """Name it: depthwise where each channel has a group of its own."""
        image, weight, groups = self.parts(call)
        rank = len(image) - 2
        depthwise = groups > 1 and groups == image[1] and weight[1] == 1
        return f"{'depthwise_' if depthwise else ''}conv{rank}d"

    def attrs(self, call: Call) -> dict[str, Any]:
        """Kernel, stride, padding, dilation, groups, bias."""
        image, weight, groups = self.parts(call)
        return {**_attrs(window(call, image[2:], weight[2:])), "groups": groups, "bias": call.has(self.bias)}

    def macs(self, call: Call) -> int:
        """Every output element sums (input channels / groups) · kernel products."""
        _, weight, _ = self.parts(call)
        return math.prod(self.shapes(call)[0][0]) * math.prod(weight[1:])


def transposed_parts(call: Call) -> tuple[Shape, Shape, int, Shape, dict[str, Any]]:
    """Image, weight, groups, the output's size, and attributes of a transposed convolution."""
    image, weight = call.shape(0, at_least=3), call.shape(1)
    groups, rank = call.integer("group", 1), len(image) - 2
    if len(weight) != len(image) or groups < 1 or weight[0] != image[1] or weight[0] % groups:
        raise call.wrong(f"its weight does not fit its input's channels in {groups} groups")
    kernel = weight[2:]
    if tuple(call.integers("kernel_shape", kernel)) != kernel:
        raise call.wrong("its kernel_shape is not its weight's")
    stride = tuple(call.integers("strides", (1,) * rank, rank))
    dilation = tuple(call.integers("dilations", (1,) * rank, rank))
    extra = tuple(call.integers("output_padding", (0,) * rank, rank))
    if any(size < 1 for size in (*kernel, *stride, *dilation)):
        raise call.wrong("its kernel, strides or dilations are not positive")
    full = [
        step * (size - 1) + e + d * (k - 1) + 1
        for size, step, e, d, k in zip(image[2:], stride, extra, dilation, kernel, strict=True)
    ]
    auto = call.text("auto_pad", "NOTSET")
    pads = (0,) * (2 * rank) if auto == "VALID" else tuple(call.integers("pads", (0,) * (2 * rank), 2 * rank))
    if "output_shape" in call.attributes:
        output = tuple(call.integers("output_shape"))[-rank:]
        if len(output) != rank:
            raise call.wrong("its output_shape is not one size for each dimension")
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        output = tuple(size * step for size, step in zip(image[2:], stride, strict=True))
    else:
        output = tuple(f - pads[d] - pads[d + rank] for d, f in enumerate(full))
    attrs = {
        **_attrs(Window(kernel, stride, dilation, pads, output)),
        "groups": groups,
        "bias": call.has(2),
        "output_padding": extra,
    }
    return image, weight, groups, output, attrs


def transposed(call: Call) -> list[Out]:
    image, weight, groups, output, _ = transposed_parts(call)
    return [((image[0], weight[1] * groups, *output), call.dtype())]


def transposed_kind(call: Call) -> str:
    return f"conv_transpose{len(call.shape(0)) - 2}d"


def transposed_macs(call: Call) -> int:
    """Every input element is multiplied by (output channels / groups) · kernel weights."""
    image, weight, *_ = transposed_parts(call)
    return math.prod(image) * math.prod(weight[1:])


def deformed(call: Call) -> list[Out]:
    image, weight, output = call.shape(0, 4), call.shape(1, 4), call.shape(2, 4)
    return [((image[0], weight[0], *output[2:]), call.dtype())]


def deformed_macs(call: Call) -> int:
    return math.prod(deformed(call)[0][0]) * math.prod(call.shape(1, 4)[1:])


# -- pooling ------------------------------------------------------------------------------------------------------


def pooled(zero: int | None = None) -> Rule:
    """Rule for pooling, with the indices that max pooling can give besides."""

    def rule(call: Call) -> list[Out]:
        image = call.shape(0, at_least=3)
        if call.integer("channels_last", 0):
            raise call.wrong("memfit does not read channels_last pooling", "channels_last=1")
        found = _pool_window(call)
        shape = (*image[:2], *found.output)
        return [(shape, call.dtype() if zero is None else call.dtype(zero)), (shape, "int64")]

    return rule


def _pool_window(call: Call) -> Window:
    space = call.shape(0, at_least=3)[2:]
    return window(call, space, tuple(call.integers("kernel_shape", None, len(space))))


def pool_kind(name: str) -> Callable[[Call], str]:
    """avg_pool2d and the like."""
    return lambda call: f"{name}{len(call.shape(0)) - 2}d"


def pool_attrs(call: Call) -> dict[str, Any]:
    return _attrs(_pool_window(call))


def global_pooled(zero: int | None = None) -> Rule:
    """One value for each channel."""

    def rule(call: Call) -> list[Out]:
        image = call.shape(0, at_least=2)
        if call.integer("channels_last", 0):
            return [
                ((image[0], *(1,) * (len(image) - 2), image[-1]), call.dtype() if zero is None else call.dtype(zero))
            ]
        return [((*image[:2], *(1,) * (len(image) - 2)), call.dtype() if zero is None else call.dtype(zero))]

    return rule


def global_pool_kind(name: str) -> Callable[[Call], str]:
    """Adaptive pooling to 1, which does nothing where the image is 1 already."""

    def kind(call: Call) -> str:
        space = call.shape(0)[2:]
        return "identity" if all(size == 1 for size in space) else f"adaptive_{name}_pool{max(1, min(3, len(space)))}d"

    return kind


def unpooled(call: Call) -> list[Out]:
    image = call.shape(0, at_least=3)
    if call.has(2):
        return [(tuple(call.known(2, "shape")), call.dtype())]
    rank = len(image) - 2
    kernel = call.integers("kernel_shape", None, rank)
    stride, pads = call.integers("strides", (1,) * rank, rank), call.integers("pads", (0,) * (2 * rank), 2 * rank)
    space = [(size - 1) * stride[d] - pads[d] - pads[d + rank] + kernel[d] for d, size in enumerate(image[2:])]
    return [((*image[:2], *space), call.dtype())]


def roi_pooled(call: Call) -> list[Out]:
    return [((call.shape(1, 2)[0], call.shape(0, 4)[1], *call.integers("pooled_shape", None, 2)), call.dtype())]


def roi_aligned(call: Call) -> list[Out]:
    size = (call.integer("output_height", 1), call.integer("output_width", 1))
    return [((call.shape(1, 2)[0], call.shape(0, 4)[1], *size), call.dtype())]


def column_to_image(call: Call) -> list[Out]:
    columns, size, block = call.shape(0, 3), call.known(1, "shape"), call.known(2, "block")
    area = math.prod(block)
    if area < 1 or columns[1] % area:
        raise call.wrong("its columns are no multiple of the block")
    return [((columns[0], columns[1] // area, *size), call.dtype())]


def grid_sampled(call: Call) -> list[Out]:
    image, grid = call.shape(0, at_least=3), call.shape(1)
    if len(grid) != len(image):
        raise call.wrong("its grid has another rank than its input")
    return [((*image[:2], *grid[1:-1]), call.dtype())]


def affine_grid(call: Call) -> list[Out]:
    size = call.known(1, "size")
    if len(size) not in (4, 5):
        raise call.wrong("its size is no image's", str(size[:32]))
    return [((size[0], *size[2:], len(size) - 2), call.dtype())]
