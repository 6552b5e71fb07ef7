"""CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV.

Sources in tflite-micro: kernels/internal/reference/integer_ops/{conv,depthwise_conv,transpose_conv}.h, their float
counterparts beside them, micro/kernels/{conv,depthwise_conv,transpose_conv}*.cc, PopulateConvolutionQuantizationParams
in kernels/kernel_util.cc.

A whole output is computed in stripes of rows that fit a processor's cache: the same code computes any region.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memfit.kernels.activation import activation_range, float_range
from memfit.kernels.fixed_point import INT32_MAX, Ints, quantize_multipliers, scale, scale_wide, wrap32
from memfit.kernels.kernel import Array, Held, Inputs, Kernel, Node, Outputs, Region, scale_of, zero_of
from memfit.kernels.window import Axis, Window, window

_STRIPE = 1 << 16
"""Accumulators in a stripe: half a MiB of int64."""

EXACT_FLOAT32, EXACT_FLOAT64 = 1 << 24, 1 << 53
"""Up to here every integer is exact in these types."""


@dataclass(frozen=True)
class Requantization:
    """From accumulators to the output's integers."""

    multiplier: Ints
    shift: Ints
    zero: int
    low: int
    high: int
    wide: bool
    """Accumulators of 64 bits, as for 16-bit activations with a bias of 64."""
    wraps: bool = False
    """True if accumulators of 32 bits may overflow, which a bias near their limits can do."""

    def __call__(self, accumulators: Ints) -> Ints:
        """Give the output's integers; channels last."""
        if self.wraps:
            accumulators = wrap32(accumulators)
        made = (scale_wide if self.wide else scale)(accumulators, self.multiplier, self.shift)
        if self.zero:
            made += self.zero
        np.clip(made, self.low, self.high, out=made)
        return made


@dataclass(frozen=True)
class Matrix:
    """Constant integer weights as a matrix, in the fastest type that holds all their sums exactly.

    The products of integers and every partial sum of them are integers no larger than `largest·Σ|w|`. A floating-point
    type that holds all integers up to that adds them without rounding, in whatever order and with whatever fused
    operations the BLAS library chooses; so its matrix product is exact, and far faster than one of integers.
    """

    weights: Array
    """(groups, inputs of a group, outputs of a group)."""

    @classmethod
    def of(cls, weights: Array, largest: int) -> Matrix:
        """Take weights (groups, inputs, outputs) for inputs of at most `largest` in size."""
        bound = largest * int(np.abs(weights.astype(np.int64)).sum(axis=1).max(initial=0))
        kind = np.float32 if bound <= EXACT_FLOAT32 else np.float64 if bound <= EXACT_FLOAT64 else np.int64
        return cls(np.ascontiguousarray(weights.astype(kind)))

    def multiply(self, rows: Array) -> Ints:
        """Multiply (rows, groups · inputs) integers by the weights: (rows, groups · outputs)."""
        groups, inputs, _ = self.weights.shape
        if groups == 1:
            plain: Ints = (rows.astype(self.weights.dtype) @ self.weights[0]).astype(np.int64)
            return plain
        split = rows.astype(self.weights.dtype).reshape(len(rows), groups, inputs).swapaxes(0, 1)
        made: Ints = np.matmul(split, self.weights).swapaxes(0, 1).reshape(len(rows), -1).astype(np.int64)
        return made


@dataclass(frozen=True)
class Convolution:
    """Parameters of CONV_2D and DEPTHWISE_CONV_2D."""

    window: Window
    fill: int
    """What stands for zero outside of the input: its zero point."""
    groups: int
    multiplier: int
    """Outputs per input channel of a depthwise convolution; 0 for a convolution."""
    weights: Array | None
    """As the file has them, unpacked; None if they are made at run time."""
    matrix: Matrix | None
    """Of constant integer weights of a convolution."""
    offset: Ints | None
    """Constant bias, less the zero point's part; None if made at run time."""
    requantize: Requantization | None
    """None for float."""
    float_range: tuple[np.float32, np.float32] | None


def convolution_scales(node: Node, image: int, weights: int, channels: int) -> tuple[Ints, Ints]:
    """Give a multiplier and shift per output channel: input scale · filter scale / output scale, in double."""
    filters = node.input(weights)
    scales = filters.quantization.scales if filters.quantization else ()
    node.need(len(scales) in (1, channels), "the filter's scales are not one, or one per channel", len(scales))
    source, target = scale_of(node.input(image)), scale_of(node.output())
    scales = scales if len(scales) == channels else scales[:1] * channels
    return quantize_multipliers(source * one / target for one in scales)


_WIDE_BIASES = {"DEPTHWISE_CONV_2D": ("INT64",), "TRANSPOSE_CONV": ("INT64", "INT16")}
"""Types of bias beside activations of 16 bits, where they are other than 64 and 32 bits."""


def requantization(node: Node, multiplier: Ints, shift: Ints, bias: int) -> Requantization:
    """Put together how accumulators become the output's integers; `bias` is the position of the bias input.

    The weights are the second input of all operators that come here.
    """
    output, added = node.output(), node.optional(bias)
    known = ("INT32",) if output.type == "INT8" else _WIDE_BIASES.get(node.operator.name, ("INT64", "INT32"))
    node.need(added is None or added.type in known, "a bias of a type that TFLM misreads", added and added.type)
    low, high = activation_range(node, output)
    wide = output.type == "INT16" and (added is None or added.type == "INT64")
    # With 16 bits the zero points are 0, and the kernels do not look at them.
    zero = zero_of(output) if output.type == "INT8" else 0
    weights, constant = node.constant(1), node.constant(bias)
    wraps = not wide
    if not wide and weights is not None and (added is None or constant is not None):
        products = (1 << 16 if output.type == "INT16" else 255) * np.abs(weights.astype(np.int64)).sum()
        wraps = int(products) + (0 if constant is None else int(np.abs(constant.astype(np.int64)).max())) > INT32_MAX
    return Requantization(multiplier, shift, zero, low, high, wide, wraps)


TYPES = {
    ("INT8", "INT8"): 128,
    ("INT8", "INT4"): 128,
    ("INT16", "INT8"): 32768,
    ("FLOAT32", "FLOAT32"): 0,
}
"""Types of activations and weights → the largest input in size."""


def _parameters(node: Node) -> Convolution:
    image, filters = node.input(0), node.input(1)
    kinds = (image.type, filters.type)
    node.need(kinds in TYPES, "no kernel for these types of activations and weights", " and ".join(kinds))
    depthwise = node.operator.name == "DEPTHWISE_CONV_2D"
    channels = filters.shape[3 if depthwise else 0]
    weights, bias = node.constant(1), node.constant(2)
    groups = image.shape[3] // (1 if depthwise else filters.shape[3])
    matrix = offset = None
    if image.type != "FLOAT32" and weights is not None:
        fill = zero_of(image) if image.type == "INT8" else 0
        if not depthwise:
            matrix = Matrix.of(_columns(weights, groups), TYPES[kinds])
        offset = _offset(weights, bias, fill, depthwise) if node.optional(2) is None or bias is not None else None
    return Convolution(
        window(node, image.shape, (filters.shape[1], filters.shape[2])),
        zero_of(image) if image.type == "INT8" else 0,
        groups,
        channels // image.shape[3] if depthwise else 0,
        weights,
        matrix,
        offset,
        None if image.type == "FLOAT32" else requantization(node, *convolution_scales(node, 0, 1, channels), 2),
        float_range(node) if image.type == "FLOAT32" else None,
    )


def _columns(weights: Array, groups: int) -> Array:
    """Reorder (outputs, rows, columns, inputs) to (groups, rows·columns·inputs, outputs of a group)."""
    return weights.reshape(groups, weights.shape[0] // groups, -1).swapaxes(1, 2)


def _offset(weights: Array, bias: Array | None, fill: int, depthwise: bool) -> Ints:
    """Give bias - zero point · Σ weights: Σ w·(x - z) + b, with the part that does not depend on x taken out."""
    sums = weights.astype(np.int64).sum(axis=(0, 1, 2) if depthwise else (1, 2, 3))
    made: Ints = (0 if bias is None else bias.astype(np.int64)) - fill * sums
    return made


def _needs(parameters: Convolution, region: Region) -> Held:
    return (parameters.window.needed(region),)


def _part(parameters: Convolution, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    image, weights = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    place = held[0]
    assert image is not None  # the interpreter hands over what the operator lists
    assert weights is not None
    assert place is not None
    compute = _float if parameters.requantize is None else _depthwise if parameters.multiplier else _convolution
    output = outputs[0]
    rows = max(1, _STRIPE // max(1, output.shape[0] * region.width * output.shape[3]))
    for top in range(region.top, region.bottom, rows):
        stripe = Region(top, min(top + rows, region.bottom), region.left, region.right)
        seen = parameters.window.padded(image, place, stripe, parameters.fill)
        made = compute(parameters, seen, weights, bias, stripe)
        output[:, stripe.top - region.top : stripe.bottom - region.top] = made


def _convolution(parameters: Convolution, seen: Array, weights: Array, bias: Array | None, region: Region) -> Array:
    matrix, offset = parameters.matrix, parameters.offset
    if matrix is None:
        matrix = Matrix.of(_columns(weights, parameters.groups), 32768)
    if offset is None:
        offset = _offset(weights, bias, parameters.fill, depthwise=False)
    taps = parameters.window.taps(seen, region)
    n, height, width, rows, columns, channels = taps.shape
    groups = parameters.groups
    if groups > 1:  # the group before the taps
        taps = taps.reshape(n, height, width, rows, columns, groups, -1).transpose(0, 1, 2, 5, 3, 4, 6)
    accumulators = matrix.multiply(taps.reshape(n * height * width, rows * columns * channels))
    accumulators += offset
    assert parameters.requantize is not None  # float does not come here
    return parameters.requantize(accumulators).reshape(n, height, width, -1)


def _depthwise(parameters: Convolution, seen: Array, weights: Array, bias: Array | None, region: Region) -> Array:
    offset = parameters.offset
    if offset is None:
        offset = _offset(weights, bias, parameters.fill, depthwise=True)
    taps = parameters.window.taps(seen, region)
    kind = np.int32 if seen.dtype == np.int8 else np.int64  # 8-bit products of a window fit 32 bits, as in C++
    factors = weights[0].astype(kind)
    total: Any = np.zeros((*taps.shape[:3], factors.shape[2]), kind)
    for y in range(taps.shape[3]):
        for x in range(taps.shape[4]):
            tap: Any = taps[:, :, :, y, x].astype(kind)
            if parameters.multiplier > 1:
                tap = np.repeat(tap, parameters.multiplier, axis=3)
            tap *= factors[y, x]
            total += tap
    accumulators = total.astype(np.int64)
    accumulators += offset
    assert parameters.requantize is not None  # float does not come here
    return parameters.requantize(accumulators)


def _float(parameters: Convolution, seen: Array, weights: Array, bias: Array | None, region: Region) -> Array:
    """Add the products one after the other, in C++'s order: that decides how sums of floats are rounded.

    What lies in the padding adds a zero, which changes no sum; C++ leaves it out.
    """
    taps = parameters.window.taps(seen, region)
    depthwise = bool(parameters.multiplier)
    channels = weights.shape[3 if depthwise else 0]
    total = np.zeros((*taps.shape[:3], channels), np.float32)
    for y in range(taps.shape[3]):
        for x in range(taps.shape[4]):
            tap = taps[:, :, :, y, x]
            if depthwise:
                total += np.repeat(tap, parameters.multiplier, axis=3) * weights[0, y, x]
                continue
            depth = weights.shape[3]
            each = channels // parameters.groups
            for c in range(depth):
                seen_by = np.repeat(tap[..., c::depth], each, axis=3)  # its group's input, for every output channel
                total += seen_by * weights[:, y, x, c]
    if bias is not None:
        total += bias
    assert parameters.float_range is not None  # only float comes here
    return np.clip(total, *parameters.float_range)


# -- transposed -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transposed:
    """Parameters of TRANSPOSE_CONV. Its window is that of the convolution from output to input."""

    window: Window
    zero: int
    """Zero point of the input."""
    height: int
    width: int
    """Of the input."""
    matrices: tuple[Matrix, ...] | None
    """Of constant integer weights: one per tap, rows before columns."""
    requantize: Requantization | None
    float_range: tuple[np.float32, np.float32] | None


def _tap_matrices(weights: Array, largest: int) -> tuple[Matrix, ...]:
    bound = largest * weights.shape[1] * weights.shape[2]  # an output adds up what all taps give
    return tuple(
        Matrix.of(weights[:, y, x].T[None], bound) for y in range(weights.shape[1]) for x in range(weights.shape[2])
    )


def _transposed_parameters(node: Node) -> Transposed:
    filters, image, output = node.input(1), node.input(2), node.output()
    kinds = (image.type, filters.type)
    node.need(kinds in TYPES and filters.type != "INT4", "no kernel for these types", " and ".join(kinds))
    weights = node.constant(1)
    matrices = requantize = None
    if image.type != "FLOAT32":
        requantize = requantization(node, *convolution_scales(node, 2, 1, filters.shape[0]), 3)
        wide = image.type == "INT16"
        requantize = replace(requantize, wide=wide, wraps=requantize.wraps and not wide)
        matrices = None if weights is None else _tap_matrices(weights, 2 * TYPES[kinds])
    return Transposed(
        window(node, output.shape, (filters.shape[1], filters.shape[2])),
        zero_of(image) if image.type == "INT8" else 0,
        image.shape[1],
        image.shape[2],
        matrices,
        requantize,
        float_range(node) if image.type == "FLOAT32" else None,
    )


def _sources(axis: Axis, start: int, end: int, length: int) -> tuple[int, int]:
    """Give the inputs that reach outputs `[start, end)` of a transposed convolution."""
    first = min(max(-((axis.size - 1 - axis.before - start) // axis.stride), 0), length)
    return first, max(min((end - 1 + axis.before) // axis.stride + 1, length), first)


def _transposed_needs(parameters: Transposed, region: Region) -> Held:
    rows, columns = parameters.window
    return (
        None,
        None,
        Region(
            *_sources(rows, region.top, region.bottom, parameters.height),
            *_sources(columns, region.left, region.right, parameters.width),
        ),
    )


def _reached(axis: Axis, tap: int, inputs: tuple[int, int], outputs: tuple[int, int]) -> tuple[slice, slice]:
    """Say which of the inputs `[first, last)` a tap brings to which of the outputs `[start, end)`."""
    moved = tap - axis.before
    first = max(inputs[0], -((moved - outputs[0]) // axis.stride))
    last = min(inputs[1], (outputs[1] - 1 - moved) // axis.stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    start = first * axis.stride + moved - outputs[0]
    return slice(first - inputs[0], last - inputs[0]), slice(
        start, start + (last - first - 1) * axis.stride + 1, axis.stride
    )


def _transposed_part(parameters: Transposed, inputs: Inputs, held: Held, outputs: Outputs, region: Region) -> None:
    weights, image = inputs[1], inputs[2]
    bias = inputs[3] if len(inputs) > 3 else None
    needed, place, output = _transposed_needs(parameters, region)[2], held[2], outputs[0]
    assert weights is not None  # Node.input saw both
    assert image is not None
    assert needed is not None  # the third input is the image
    assert place is not None
    seen = needed.of(image, place)
    matrices = parameters.matrices
    if parameters.requantize is not None:
        seen = seen.astype(np.int64) - parameters.zero
        matrices = matrices or _tap_matrices(weights, 65536)
    total: Any = np.zeros((*output.shape[:3], weights.shape[0]), np.float32 if matrices is None else np.int64)
    rows, columns = parameters.window
    # From the last tap to the first: an output meets its inputs in their order, which decides how floats are rounded.
    for y in reversed(range(rows.size)):
        from_rows, to_rows = _reached(rows, y, (needed.top, needed.bottom), (region.top, region.bottom))
        for x in reversed(range(columns.size)):
            from_columns, to_columns = _reached(columns, x, (needed.left, needed.right), (region.left, region.right))
            given, made = seen[:, from_rows, from_columns], total[:, to_rows, to_columns]
            if not given.size or not made.size:
                continue
            if matrices is not None:
                flat = given.reshape(-1, given.shape[3])
                made += matrices[y * columns.size + x].multiply(flat).reshape(made.shape)
                continue
            for c in range(given.shape[3]):
                made += given[..., c, None] * weights[:, y, x, c]
    if bias is not None:
        total += bias
    if parameters.requantize is not None:
        output[...] = parameters.requantize(total)
        return
    assert parameters.float_range is not None  # set where there is no requantization
    output[...] = np.clip(total, *parameters.float_range)


def one_channel(parameters: Convolution, channel: int) -> Convolution:
    """Give the parameters of one channel of a depthwise convolution that has one output for each input channel."""
    requantize, one = parameters.requantize, slice(channel, channel + 1)
    if requantize is not None:
        requantize = replace(requantize, multiplier=requantize.multiplier[one], shift=requantize.shift[one])
    offset = None if parameters.offset is None else parameters.offset[one]
    return replace(parameters, groups=1, offset=offset, requantize=requantize)


CONVOLUTION = Kernel(_parameters, needs=_needs, part=_part)
"""CONV_2D and DEPTHWISE_CONV_2D: 8-bit, with weights of 8 or 4 bits; 16x8-bit; float."""

TRANSPOSED = Kernel(_transposed_parameters, needs=_transposed_needs, part=_transposed_part)
"""TRANSPOSE_CONV: 8-bit, 16x8-bit, float."""
