"""SOFTMAX, LOG_SOFTMAX and L2_NORMALIZATION: along the last dimension.

Sources in tflite-micro: kernels/internal/reference/{softmax,log_softmax,l2normalization}.h, integer_ops/
l2normalization.h, micro/kernels/softmax_common.cc, log_softmax.cc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memfit.kernels.activations import in_double
from memfit.kernels.elementwise import elementwise
from memfit.kernels.fixed_point import (
    INT32_MIN,
    Ints,
    divide_by_power,
    exp_negative,
    high_mul,
    inverse_square_root,
    leading_zeros,
    logarithm,
    quantize_multiplier,
    reciprocal,
    scale,
    scale_up,
)
from memfit.kernels.kernel import Array, Node, scale_of, zero_of

DIFFERENCE_BITS, SUM_BITS, LOG_BITS = 5, 12, 4
"""Integer bits of differences to the largest input, of the sum of exponentials, of its logarithm."""


@dataclass(frozen=True)
class Exponentials:
    """Parameters for 8-bit inputs; arrays are over the differences 0, -1, … -255 to the largest input."""

    differences: Ints
    """The differences, with `DIFFERENCE_BITS` integer bits."""
    exponentials: Ints
    """Their exponentials; 0 for those that count as -inf."""
    counted: Array
    """True for differences that do not count as -inf."""
    smallest: int
    """The smallest of them."""
    bits: int
    """Of the output."""
    inverse: tuple[int, int]
    """Multiplier and shift from differences back to inputs, for LOG_SOFTMAX."""


def softmax_scale(beta: float, scale: float) -> tuple[int, int, int]:
    """Give the multiplier and shift for differences of inputs, and the smallest one that counts.

    Source: PreprocessSoftmaxScaling and CalculateInputRadius, quantization_util.cc.

    >>> softmax_scale(1.0, 0.05)
    (1717986918, 22, -496)
    """
    real = min(beta * scale * (1 << (31 - DIFFERENCE_BITS)), (1 << 31) - 1.0)
    multiplier, shift = quantize_multiplier(real)
    radius = ((1 << DIFFERENCE_BITS) - 1) * (1 << (31 - DIFFERENCE_BITS)) // (1 << shift)
    return multiplier, shift, -radius


def _exponentials(node: Node, beta: float) -> Exponentials:
    source, output = node.input(0), node.output()
    multiplier, shift, smallest = softmax_scale(beta, scale_of(source))
    differences = -np.arange(256)
    counted = differences >= smallest
    rescaled = scale_up(np.where(counted, differences, 0), multiplier, shift)
    exponentials = np.where(counted, exp_negative(rescaled, DIFFERENCE_BITS), 0)
    inverse = quantize_multiplier((1 << (31 - shift)) / multiplier)
    return Exponentials(rescaled, exponentials, counted, smallest, 16 if output.type == "INT16" else 8, inverse)


@dataclass(frozen=True)
class Tables:
    """Parameters of SOFTMAX of 16 bits: two functions between 513 points each."""

    multiplier: int
    shift: int
    exponential: Ints
    inverse: Ints


def _table(function: Callable[[Array], Array], low: float, high: float) -> Ints:
    """Sample a function at 513 points, each moved to halve the error in the middle of its piece.

    Source: gen_lut and LUTPopulateInt16, common.h; values in [-1, 1] with 15 bits, in single precision.
    """
    f = np.float32
    step = (f(high) - f(low)) / f(512)
    points = f(low) + np.arange(513, dtype=f) * step
    per_unit = f(65536) / f(2)
    values = function(points) * per_unit
    middle = _round(function(points[:-1] + step / f(2)) * per_unit)
    here = _round(values[:-1])
    error = _round((values[1:] + here) / f(2)) - middle
    made = np.append(here - _round(error / f(2)), _round(function(np.array([high], f)) * per_unit))
    table: Ints = np.clip(made, -32768, 32767).astype(np.int64)
    return table


def _round(x: Array) -> Array:
    wide = x.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.float32)


def _look_up(table: Ints, x: Ints) -> Ints:
    """Interpolate between the points of a table, for x in [-32768, 32767]: LUTLookup, common.h."""
    place = 256 + (x >> 7)
    made: Ints = table[place] + (((table[place + 1] - table[place]) * (x & 0x7F) + 64) >> 7)
    return made


_exp = in_double(np.exp)


def _softmax_parameters(node: Node) -> Exponentials | Tables | np.float32:
    source = node.input(0)
    node.need(source.type in ("INT8", "INT16", "FLOAT32"), "no kernel for this type", source.type)
    beta = np.float32(node.option("beta", 1.0))
    if source.type == "FLOAT32":
        return beta
    if source.type == "INT8":
        return _exponentials(node, float(beta))
    multiplier, shift = quantize_multiplier(scale_of(source) * float(beta) / (10.0 / 65535.0))
    one = np.float32(1)
    return Tables(multiplier, shift, _table(_exp, -10.0, 0.0), _table(lambda x: one / (one + x), 0.0, 1.0))


def _sum_in_order(x: Array) -> Array:
    """Add floats along the last dimension one after the other, as C++ does."""
    total = np.zeros(x.shape[:-1], np.float32)
    for index in range(x.shape[-1]):
        total += x[..., index]
    return total[..., None]


def _softmax(parameters: Exponentials | Tables | np.float32, inputs: list[Array]) -> Array:
    if isinstance(parameters, Exponentials):
        return _softmax_8(parameters, inputs[0].astype(np.int64))
    if isinstance(parameters, Tables):
        return _softmax_16(parameters, inputs[0].astype(np.int64))
    x = inputs[0]
    each = _exp((x - x.max(axis=-1, keepdims=True)) * parameters)
    return each / _sum_in_order(each)


def _softmax_8(parameters: Exponentials, x: Ints) -> Array:
    differences = x.max(axis=-1, keepdims=True) - x
    each = parameters.exponentials[differences]
    total = divide_by_power(each, SUM_BITS).sum(axis=-1, keepdims=True)
    inverse, moved = reciprocal(total, SUM_BITS)
    half = 1 << (parameters.bits - 1)
    made = divide_by_power(high_mul(inverse, each), moved + 31 - parameters.bits) - half
    return np.where(parameters.counted[differences], np.clip(made, -half, half - 1), -half)


def _softmax_16(parameters: Tables, x: Ints) -> Array:
    differences = scale(x - x.max(axis=-1, keepdims=True), parameters.multiplier, parameters.shift)
    each = _look_up(parameters.exponential, np.clip(differences + 32767, -32768, 32767))
    total = each.sum(axis=-1, keepdims=True)
    zeros = leading_zeros(total)
    shifted = ((total << (zeros - 1)) + (1 << 13)) >> 14
    inverse = _look_up(parameters.inverse, np.clip(shifted - ((1 << 15) + (1 << 16)), -32768, 32767))
    right = 31 - zeros
    made: Array = np.clip((each * inverse + (np.int64(1) << (right - 1))) >> right, 0, 32767)
    return made


def _log_softmax_parameters(node: Node) -> Exponentials | None:
    kind = node.input(0).type
    node.need(kind in ("INT8", "FLOAT32"), "no kernel for this type", kind)
    return _exponentials(node, 1.0) if kind == "INT8" else None


def _log_softmax(parameters: Exponentials | None, inputs: list[Array]) -> Array:
    if parameters is None:
        x = inputs[0] - inputs[0].max(axis=-1, keepdims=True)
        made: Array = x - in_double(np.log)(_sum_in_order(_exp(x)))
        return made
    wide = inputs[0].astype(np.int64)
    differences = wide.max(axis=-1, keepdims=True) - wide
    total = divide_by_power(parameters.exponentials[differences], SUM_BITS).sum(axis=-1, keepdims=True)
    log = logarithm(total, SUM_BITS, DIFFERENCE_BITS)
    smallest = np.maximum(parameters.smallest - 1, scale(log + INT32_MIN, *parameters.inverse))
    found = divide_by_power(parameters.differences[differences] - log, 31 - DIFFERENCE_BITS - LOG_BITS) + 127
    return np.where(-differences > smallest, np.clip(found, -128, 127), -128)


def _l2_parameters(node: Node) -> int | None:
    kind = node.input(0).type
    node.need(kind in ("INT8", "FLOAT32"), "no kernel for this type", kind)
    return zero_of(node.input(0)) if kind == "INT8" else None


def _l2(zero: int | None, inputs: list[Array]) -> Array:
    x = inputs[0]
    if zero is None:
        norm = np.maximum(np.sqrt(_sum_in_order(x * x)), np.float32(1e-6))
        return x / norm
    wide = x.astype(np.int64) - zero
    squares, places = np.unique((wide * wide).sum(axis=-1), return_inverse=True)
    found = [inverse_square_root(int(square)) for square in squares]
    multiplier = np.array([m for m, _ in found])[places].reshape(*x.shape[:-1], 1)
    shift = np.array([s for _, s in found])[places].reshape(*x.shape[:-1], 1)
    return np.clip(scale(wide, multiplier, shift + 7), -128, 127)


SOFTMAX = elementwise(_softmax_parameters, _softmax)
"""Of 8 bits, to 8 or 16 bits; of 16 bits; of floats."""
LOG_SOFTMAX = elementwise(_log_softmax_parameters, _log_softmax)
L2_NORMALIZATION = elementwise(_l2_parameters, _l2)
