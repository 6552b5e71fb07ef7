"""SOFTMAX: kernels/internal/reference/softmax.h and micro/kernels/softmax_common.cc of tflite-micro."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.elementwise import elementwise
from memfit.kernels.fixed_point import (
    Ints,
    divide_by_power,
    exp_negative,
    high_mul,
    quantize_multiplier,
    reciprocal,
    scale_up,
)
from memfit.kernels.kernel import Array, Node, scale_of

DIFFERENCE_BITS, SUM_BITS = 5, 12
"""Integer bits of differences to the largest input, and of the sum of exponentials."""


@dataclass(frozen=True)
class Exponentials:
    """Parameters of SOFTMAX of 8 bits."""

    exponentials: Ints
    """exp of the difference to the largest input, for differences 0, -1, … -255; 0 for those that count as -inf."""
    counted: Array
    """True for differences that do not count as -inf."""
    low: int
    high: int
    bits: int
    """Of the output."""


def softmax_scale(beta: float, scale: float) -> tuple[int, int, int]:
    """Give the multiplier and shift for differences of inputs, and the smallest one that counts.

    Source: PreprocessSoftmaxScaling and CalculateInputRadius, quantization_util.cc.
    """
    real = min(beta * scale * (1 << (31 - DIFFERENCE_BITS)), (1 << 31) - 1.0)
    multiplier, shift = quantize_multiplier(real)
    radius = ((1 << DIFFERENCE_BITS) - 1) * (1 << (31 - DIFFERENCE_BITS)) // (1 << shift)
    return multiplier, shift, -radius


def _parameters(node: Node) -> Exponentials:
    source, output = node.input(0), node.output()
    node.need(source.type == "INT8", "no kernel for this type", source.type)
    multiplier, shift, smallest = softmax_scale(float(np.float32(node.option("beta", 1.0))), scale_of(source))
    differences = -np.arange(256)
    counted = differences >= smallest
    rescaled = scale_up(np.where(counted, differences, 0), multiplier, shift)
    exponentials = np.where(counted, exp_negative(rescaled, DIFFERENCE_BITS), 0)
    low, high = (-32768, 32767) if output.type == "INT16" else (-128, 127)
    return Exponentials(exponentials, counted, low, high, 16 if output.type == "INT16" else 8)


def _softmax(parameters: Exponentials, inputs: list[Array]) -> Array:
    x = inputs[0].astype(np.int64)
    differences = x.max(axis=-1, keepdims=True) - x
    each = parameters.exponentials[differences]
    total = divide_by_power(each, SUM_BITS).sum(axis=-1, keepdims=True)
    inverse, moved = reciprocal(total, SUM_BITS)
    made = divide_by_power(high_mul(inverse, each), moved + 31 - parameters.bits) + parameters.low
    made = np.clip(made, parameters.low, parameters.high)
    return np.where(parameters.counted[differences], made, parameters.low)


SOFTMAX = elementwise(_parameters, _softmax)
