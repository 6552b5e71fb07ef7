"""Operators of one input: RELU, RELU6, LEAKY_RELU, PRELU, HARD_SWISH, ELU, LOGISTIC, TANH, ABS, NEG, RSQRT, …

Functions of one 8-bit number are worked out once for all 256 of them, by the same integer arithmetic.

Sources in tflite-micro: micro/kernels/{activations,leaky_relu,prelu,hard_swish,logistic}_common.cc, {elu,tanh,
elementwise}.cc, and kernels/internal/reference/ with the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.activation import LIMITS, round_float
from memfit.kernels.elementwise import INT8_VALUES, elementwise, lookup
from memfit.kernels.fixed_point import (
    Ints,
    divide_by_power,
    inverse_square_root,
    logistic,
    multiplier_of,
    quantize_multiplier,
    scale,
    tanh,
)
from memfit.kernels.kernel import Array, Kernel, Node, scale_of, zero_of

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Unary:
    """Parameters of an operator of one input."""

    function: Function | None
    """Computes each element; None where a table does."""
    table: Array | None
    """Of 8-bit inputs."""


def _compute(parameters: Unary, inputs: list[Array]) -> Array:
    if parameters.table is not None:
        return lookup(parameters.table, inputs[0])
    assert parameters.function is not None  # one of the two is there
    return parameters.function(inputs[0])


def unary(integers: Callable[[Node], Callable[[Ints], Ints]] | None, floats: Function | None, types: str) -> Kernel:
    """Make a kernel from what it does to integers, after a look at the operator, and to floats."""

    def parameters(node: Node) -> Unary:
        kind = node.input(0).type
        node.need(kind in types.split(), "no kernel for this type", kind)
        if kind in ("FLOAT32", "BOOL"):
            return Unary(floats, None)
        assert integers is not None  # `types` names none otherwise
        function = integers(node)
        low, high = LIMITS[node.output().type]
        if kind == "INT8":
            return Unary(None, np.clip(function(INT8_VALUES), low, high))
        return Unary(lambda x: np.clip(function(x.astype(np.int64)), low, high), None)

    return elementwise(parameters, _compute)


# -- rectifiers -------------------------------------------------------------------------------------------------------


def _relu(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    multiplier, shift = quantize_multiplier(scale_of(source) / scale_of(output))
    return lambda x: np.maximum(scale(x - zero_of(source), multiplier, shift) + zero_of(output), zero_of(output))


def _relu6(node: Node) -> Callable[[Ints], Ints]:
    source = node.input(0)
    low, high = LIMITS[source.type]
    six = round_float(np.float32(6) / np.float32(scale_of(source))) + zero_of(source)
    return lambda x: np.maximum(np.minimum(x, min(max(six, low), high)), zero_of(source))


def _leaky_relu(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    a, b = np.float32(scale_of(source)), np.float32(scale_of(output))  # single precision in C++
    identity = quantize_multiplier(float(a / b))
    slope = quantize_multiplier(float(a * np.float32(node.option("alpha")) / b))

    def function(x: Ints) -> Ints:
        value = x - zero_of(source)
        made: Ints = np.where(value >= 0, scale(value, *identity), scale(value, *slope)) + zero_of(output)
        return made

    return function


RELU = unary(_relu, lambda x: np.where(x < 0, np.float32(0), x), "INT8 INT16 FLOAT32")
RELU6 = unary(_relu6, lambda x: np.where(x > 6, np.float32(6), np.where(x < 0, np.float32(0), x)), "INT8 INT16 FLOAT32")


def _leaky_float(node: Node) -> Function:
    alpha = np.float32(node.option("alpha"))
    return lambda x: np.where(x > 0, x, x * alpha)


def _leaky_parameters(node: Node) -> Unary:
    if node.input(0).type == "FLOAT32":
        return Unary(_leaky_float(node), None)
    kernel: Unary = _LEAKY_INTEGERS.parameters(node).own
    return kernel


_LEAKY_INTEGERS = unary(_leaky_relu, None, "INT8 INT16")
LEAKY_RELU = elementwise(_leaky_parameters, _compute)


@dataclass(frozen=True)
class Prelu:
    """Parameters of PRELU; None for float."""

    zeros: tuple[int, int, int]
    """Of input, slopes and output."""
    identity: tuple[int, int]
    slope: tuple[int, int]
    low: int
    high: int


def _prelu_parameters(node: Node) -> Prelu | None:
    source, alpha, output = node.input(0), node.input(1), node.output()
    if source.type == "FLOAT32":
        return None
    node.need(source.type in ("INT8", "INT16") and alpha.type == "INT8", "no kernel for these types", source.type)
    real = scale_of(source) / scale_of(output)
    slope = scale_of(source) * scale_of(alpha) / scale_of(output)
    return Prelu((zero_of(source), zero_of(alpha), zero_of(output)), quantize_multiplier(real),
                 quantize_multiplier(slope), *LIMITS[output.type])  # fmt: skip


def _prelu(parameters: Prelu | None, inputs: list[Array]) -> Array:
    if parameters is None:
        return np.where(inputs[0] >= 0, inputs[0], inputs[0] * inputs[1])
    value = inputs[0].astype(np.int64) - parameters.zeros[0]
    product = value * (inputs[1].astype(np.int64) - parameters.zeros[1])
    made = np.where(value >= 0, scale(value, *parameters.identity), scale(product, *parameters.slope))
    found: Array = np.clip(made + parameters.zeros[2], parameters.low, parameters.high)
    return found


PRELU = elementwise(_prelu_parameters, _prelu)


# -- hard swish -------------------------------------------------------------------------------------------------------


def _high16(a: Ints, b: int) -> Ints:
    """Multiply 16-bit numbers in [-1, 1), rounded to nearest, halves up."""
    made: Ints = np.minimum((a * b + (1 << 14)) >> 15, 32767)
    return made


def _narrow(multiplier: int) -> int:
    """Round a 31-bit multiplier to 15 bits: DownScaleInt32ToInt16Multiplier, common.h."""
    return 32767 if multiplier >= (1 << 31) - 1 - (1 << 15) else (multiplier + (1 << 15)) >> 16


def _hard_swish(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    fine = np.float32(1 / 128) * np.float32(scale_of(source))
    multiplier, exponent = quantize_multiplier(float(fine / np.float32(scale_of(output))))
    gate, gate_exponent = quantize_multiplier(float(fine / (np.float32(3) / np.float32(32768))))
    node.need(exponent <= 0, "an output scale that is too small for it", scale_of(output))

    def function(x: Ints) -> Ints:
        value = ((x - zero_of(source)) << 7).astype(np.int16).astype(np.int64)
        slope = value
        if gate_exponent > 0:
            slope = np.clip(slope << (gate_exponent - 1), -32768, 32767)
        slope = _high16(slope, _narrow(gate))
        if gate_exponent > 0:
            slope = np.clip(slope << 1, -32768, 32767)
        if gate_exponent < 0:
            slope = divide_by_power(slope, -gate_exponent)
        slope = (slope + (1 << 15)) >> 1  # from [-1, 1] to [0, 1]
        product = slope * _high16(value, _narrow(multiplier))
        product = np.sign(product) * (np.abs(product) >> 15)  # towards zero
        made: Ints = divide_by_power(product, -exponent) + zero_of(output)
        return made

    return function


def _hard_swish_float(x: Array) -> Array:
    return x * np.minimum(np.float32(6), np.maximum(np.float32(0), x + np.float32(3))) / np.float32(6)


HARD_SWISH = unary(_hard_swish, _hard_swish_float, "INT8 FLOAT32")


# -- curves -----------------------------------------------------------------------------------------------------------


def _sigmoid_points() -> Ints:
    """Sample 1/(1 + exp(-x)) at i/24 with 16 bits, for i from 0 to 255.

    Each is moved up by half of what a straight line between two points falls short of the curve: h²/16 times its bend.
    So made, they are the values of sigmoid_table_uint16, common.h, where the last one is the largest number.
    """
    step = 1 / 24
    curve = 1 / (1 + np.exp(-step * np.arange(256)))
    bend = curve * (1 - curve) * (2 * curve - 1)
    points: Ints = np.floor(65536 * (curve + step * step / 16 * bend) + 0.5).astype(np.int64)
    points[-1] = 65535
    return points


_SIGMOID = _sigmoid_points()


def _curve(node: Node, curve: Callable[[Ints, int], Ints], bits: int, zero: int) -> Callable[[Ints], Ints]:
    """Bring inputs to four integer bits, and a curve's values to `bits` bits."""
    source = node.input(0)
    multiplier, shift = multiplier_of(scale_of(source) * (1 << 27))
    radius = 15 * (1 << 27) // (1 << shift) if shift >= 0 else 15 * (1 << 27) * (1 << -shift)

    def function(x: Ints) -> Ints:
        value = x - zero_of(source)
        inside = np.abs(value) < radius
        made = divide_by_power(curve(scale(np.where(inside, value, 0), multiplier, shift), 4), 31 - bits) + zero
        found: Ints = np.where(inside, np.clip(made, -128, 127), np.where(value > 0, 127, -128))
        return found

    return function


def _fine_input(node: Node, largest_exact: int) -> tuple[int, int]:
    """Give the multiplier and right shift that bring 16-bit inputs to 1/(3·4096) of a unit.

    Source: TanhPrepare, tanh.cc: powers of two go by a plain factor of 3.
    """
    real = scale_of(node.input(0))
    logarithm = math.log(real) / math.log(2)
    nearest = round_float(logarithm)
    left_shift = 12 + nearest
    if abs(logarithm - nearest) < 1e-3 and 0 <= left_shift <= largest_exact:
        return 3 << left_shift, 0
    multiplier, shift = real * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and shift <= 30:
        shift += 1
        multiplier *= 2.0
    return int(multiplier), shift


def fine_logistic(x: Ints, multiplier: int, shift: int) -> Ints:
    """Give 1/(1 + exp(-x)) of 16-bit integers with 15 bits, between the points of a table.

    Source: Logistic for int16, integer_ops/logistic.h.
    """
    value = (x * multiplier + ((1 << shift) >> 1)) >> shift
    size = np.abs(value)
    place = np.minimum(size >> 9, 254)
    between = (_SIGMOID[place] << 9) + (size & 0x1FF) * (_SIGMOID[place + 1] - _SIGMOID[place])
    result = np.where(size >> 9 >= 255, 0x7FFF << 10, between)
    result = np.where(value >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1)
    return result >> 10


def fine_tanh(x: Ints, multiplier: int, shift: int) -> Ints:
    """Give tanh(x) of 16-bit integers with 15 bits: Tanh for int16, integer_ops/tanh.h."""
    value = (x * multiplier + ((1 << shift) >> 1)) >> shift
    size = np.abs(value)
    place = np.minimum(size >> 8, 254)
    between = (_SIGMOID[place] << 8) + (size & 0xFF) * (_SIGMOID[place + 1] - _SIGMOID[place])
    result = np.where(size >> 8 >= 255, 0xFFFF << 8, between) - (1 << 23)
    return np.where(value >= 0, result + (1 << 7), -result + (1 << 7) - 1) >> 8


def _logistic(node: Node) -> Callable[[Ints], Ints]:
    if node.input(0).type == "INT16":
        multiplier, shift = _fine_input(node, 0)
        return lambda x: fine_logistic(x, multiplier, shift)
    return _curve(node, logistic, 8, -128)


def _tanh(node: Node) -> Callable[[Ints], Ints]:
    if node.input(0).type == "INT16":
        multiplier, shift = _fine_input(node, 1)
        return lambda x: fine_tanh(x, multiplier, shift)
    return _curve(node, tanh, 7, 0)


def in_double(function: Callable[[Array], Array]) -> Function:
    """Compute floats in double precision and round: C's functions are right to the last bit in nearly all cases."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


_exp = in_double(np.exp)


def logistic_float(x: Array) -> Array:
    """Give 1/(1 + exp(-x)), with the source's cut-offs: reference/logistic.h."""
    middle = np.float32(1) / (np.float32(1) + _exp(-x))
    return np.where(
        x > np.float32(16.619047164916992188), np.float32(1), np.where(x < -9, _exp(np.minimum(x, 0)), middle)
    )


LOGISTIC = unary(_logistic, logistic_float, "INT8 INT16 FLOAT32")
TANH = unary(_tanh, in_double(np.tanh), "INT8 INT16 FLOAT32")


def _elu(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    inverse = np.float32(1) / np.float32(scale_of(output))

    def function(x: Ints) -> Ints:
        real = np.float32(scale_of(source)) * (x - zero_of(source)).astype(np.float32)
        rescaled = (_elu_float(real) * inverse).astype(np.float64)
        whole = np.copysign(np.floor(np.abs(rescaled) + 0.5), rescaled)
        return (whole + zero_of(output)).astype(np.int64)

    return function


def _elu_float(x: Array) -> Array:
    return np.where(x < 0, _exp(np.minimum(x, 0)) - np.float32(1), x)


ELU = unary(_elu, in_double(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)), "INT8 FLOAT32")


# -- others -----------------------------------------------------------------------------------------------------------


def _abs(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    if scale_of(source) == scale_of(output):
        return lambda x: np.abs(x - zero_of(source)) + zero_of(output)
    multiplier, shift = quantize_multiplier(scale_of(source) / scale_of(output))
    return lambda x: scale(np.abs(x - zero_of(source)), multiplier, shift) + zero_of(output)


def _rsqrt(node: Node) -> Callable[[Ints], Ints]:
    source, output = node.input(0), node.output()
    multiplier, shift = quantize_multiplier(1.0 / (math.sqrt(scale_of(source)) * scale_of(output)))

    def one(value: int) -> int:
        if value <= 0:  # C++ ends with an error for negative ones
            return LIMITS[output.type][1]
        inverse, inverse_shift = inverse_square_root(value)
        data = scale(np.array([1]), inverse, inverse_shift + 20)
        return int(scale(data, multiplier, shift - 20)[0]) + zero_of(output)

    def function(x: Ints) -> Ints:
        values, places = np.unique(x - zero_of(source), return_inverse=True)
        return np.array([one(int(value)) for value in values])[places].reshape(x.shape)

    return function


def _floats(function: Any) -> Kernel:
    return unary(None, function, "FLOAT32")


def _round_half_even(x: Array) -> Array:
    """Round halves to even, without negative zeros: RoundToNearest, reference/round.h."""
    below = np.floor(x)
    rest = x - below
    keep = (rest < 0.5) | ((rest == 0.5) & (below % 2 == 0))
    return np.where(keep, below, below + np.float32(1))


ABS = unary(_abs, np.abs, "INT8 INT16 FLOAT32")
RSQRT = unary(_rsqrt, lambda x: np.float32(1) / np.sqrt(x), "INT8 INT16 FLOAT32")
LOGICAL_NOT = unary(None, np.logical_not, "BOOL")
FLOATS: dict[str, Kernel] = {
    "CEIL": _floats(np.ceil),
    "COS": _floats(in_double(np.cos)),
    "EXP": _floats(_exp),
    "FLOOR": _floats(np.floor),
    "LOG": _floats(in_double(np.log)),
    "NEG": _floats(np.negative),
    "ROUND": _floats(_round_half_even),
    "SIN": _floats(in_double(np.sin)),
    "SQRT": _floats(np.sqrt),
    "SQUARE": _floats(np.square),
}
"""Operators of floats alone."""
