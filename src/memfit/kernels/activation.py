"""Fused activations: the range that an operator's result is cut to."""

from __future__ import annotations

import numpy as np

from memfit.formats.tflite import TfliteTensor
from memfit.kernels.kernel import Node, scale_of, zero_of

NONE, RELU, RELU_N1_TO_1, RELU6 = 0, 1, 2, 3
"""ActivationFunctionType of the schema."""

_REAL = {
    NONE: (-np.inf, np.inf),
    RELU: (0.0, np.inf),
    RELU_N1_TO_1: (-1.0, 1.0),
    RELU6: (0.0, 6.0),
}

LIMITS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767), "INT32": (-(1 << 31), (1 << 31) - 1)}


def round_float(x: float | np.float32) -> int:
    """Round a float half away from zero; std::round in TfLiteRound, cppmath.h.

    >>> round_float(-2.5)
    -3
    """
    return int(np.copysign(np.floor(np.abs(np.float64(x)) + 0.5), x))


def activation_range(node: Node, output: TfliteTensor) -> tuple[int, int]:
    """Give the smallest and largest integer of an output after its fused activation.

    Source: CalculateActivationRangeQuantized, tensorflow/lite/kernels/kernel_util.cc.
    """
    low, high = LIMITS[output.type]
    activation = node.option("fused_activation_function")
    node.need(activation in _REAL, "a fused activation is not known", activation)
    real_low, real_high = _REAL[activation]
    size, zero = np.float32(scale_of(output)), zero_of(output)
    if real_low > -np.inf:
        low = max(low, zero + round_float(np.float32(real_low) / size))
    if real_high < np.inf:
        high = min(high, zero + round_float(np.float32(real_high) / size))
    return low, high


def float_range(node: Node) -> tuple[np.float32, np.float32]:
    """Give the range of a float output after its fused activation: CalculateActivationRange, kernel_util.h."""
    activation = node.option("fused_activation_function")
    node.need(activation in _REAL, "a fused activation is not known", activation)
    low, high = _REAL[activation]
    limits = np.finfo(np.float32)
    return np.float32(max(low, float(limits.min))), np.float32(min(high, float(limits.max)))
