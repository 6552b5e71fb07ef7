"""Arithmetic of two or more tensors: ADD, SUB, MUL, DIV, ADD_N, SQUARED_DIFFERENCE, MAXIMUM, MINIMUM.

Sources in tflite-micro: kernels/internal/reference/integer_ops/{add,mul}.h, reference/{add,sub,div,add_n}.h,
micro/kernels/{add,sub,mul}_common.cc, {div,add_n,squared_difference,maximum_minimum}.cc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from memfit.kernels.activation import activation_range, float_range
from memfit.kernels.elementwise import INT8_VALUES, elementwise, lookup
from memfit.kernels.fixed_point import (
    Ints,
    divide_by_power,
    high_mul,
    leading_zeros,
    quantize_multiplier,
    reciprocal,
    scale,
    wrap32,
)
from memfit.kernels.kernel import Array, Kernel, Node, nothing, scale_of, zero_of

QUANTIZED = ("INT8", "INT16")


@dataclass(frozen=True)
class Plain:
    """Parameters of arithmetic on numbers that are not quantized."""

    low: Any
    high: Any


def _plain(node: Node, *, activation: bool = True) -> Plain:
    kind = node.output().type
    node.need(kind in ("FLOAT32", "INT32", "INT64"), "no kernel for this type", kind)
    if kind == "FLOAT32" and activation:
        return Plain(*float_range(node))
    return Plain(None, None)


def _clip(parameters: Plain, values: Array) -> Array:
    return values if parameters.low is None else np.clip(values, parameters.low, parameters.high)


@dataclass(frozen=True)
class Operand:
    """One side of a quantized sum: what its integers come to on the common scale."""

    zero: int
    multiplier: int
    shift: int
    left_shift: int
    table: Ints | None
    """Of 8-bit operands: the values for all of them."""

    def values(self, x: Array) -> Ints:
        """Bring integers to the common scale."""
        return lookup(self.table, x) if self.table is not None else self.compute(x.astype(np.int64))

    def compute(self, x: Ints) -> Ints:
        """Work out the values one by one."""
        return scale((x - self.zero) << self.left_shift, self.multiplier, self.shift)


def _operand(node: Node, position: int, real: float, left_shift: int) -> Operand:
    tensor = node.input(position)
    multiplier, shift = quantize_multiplier(real)
    plain = Operand(zero_of(tensor), multiplier, shift, left_shift, None)
    if tensor.type != "INT8":
        return plain
    return Operand(plain.zero, multiplier, shift, left_shift, plain.compute(INT8_VALUES))


@dataclass(frozen=True)
class Sum:
    """Parameters of quantized ADD, SUB and SQUARED_DIFFERENCE."""

    operands: tuple[Operand, ...]
    multiplier: int
    shift: int
    zero: int
    low: int
    high: int


def _finish(parameters: Sum, raw: Ints) -> Array:
    made = scale(raw, parameters.multiplier, parameters.shift)
    made += parameters.zero
    return np.clip(made, parameters.low, parameters.high, out=made)


def _sum_parameters(node: Node) -> Sum | Plain:
    output = node.output()
    if output.type not in QUANTIZED:
        return _plain(node)
    left_shift = 15 if output.type == "INT16" else 20
    first, second = scale_of(node.input(0)), scale_of(node.input(1))
    if node.operator.name == "SUB":  # in single precision, other than ADD
        a, b, target = np.float32(first), np.float32(second), np.float32(scale_of(output))
        twice = np.float32(2) * max(a, b)
        reals = float(a / twice), float(b / twice), float(twice / (np.float32(1 << left_shift) * target))
    else:
        double = 2 * max(first, second)
        reals = first / double, second / double, double / ((1 << left_shift) * scale_of(output))
    operands = _operand(node, 0, reals[0], left_shift), _operand(node, 1, reals[1], left_shift)
    return Sum(operands, *quantize_multiplier(reals[2]), zero_of(output), *activation_range(node, output))


def _add(parameters: Sum | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        return _clip(parameters, inputs[0] + inputs[1])
    first, second = parameters.operands
    return _finish(parameters, first.values(inputs[0]) + second.values(inputs[1]))


def _sub(parameters: Sum | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        return _clip(parameters, inputs[0] - inputs[1])
    first, second = parameters.operands
    return _finish(parameters, first.values(inputs[0]) - second.values(inputs[1]))


def _squared_difference_parameters(node: Node) -> Sum | Plain:
    output = node.output()
    if output.type not in QUANTIZED:
        return _plain(node, activation=False)
    left_shift = 0 if output.type == "INT16" else 7
    first, second = scale_of(node.input(0)), scale_of(node.input(1))
    double = 2 * max(first, second)
    # The divisor is a product of an int and a float in C++: single precision.
    divisor = float(np.float32(1 << (2 * left_shift)) * np.float32(scale_of(output)))
    operands = _operand(node, 0, first / double, left_shift), _operand(node, 1, second / double, left_shift)
    return Sum(
        operands, *quantize_multiplier(double * double / divisor), zero_of(output), *activation_range(node, output)
    )


def _squared_difference(parameters: Sum | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        difference: Array = inputs[0] - inputs[1]
        return difference * difference
    first, second = parameters.operands
    raw = first.values(inputs[0]) - second.values(inputs[1])
    return _finish(parameters, wrap32(raw * raw))


def _add_n_parameters(node: Node) -> Sum | Plain:
    output = node.output()
    if output.type != "INT8":
        return _plain(node, activation=False)
    count = len(node.operator.inputs)
    operand = _operand(node, 0, 0.5, 20)
    real = 2 * scale_of(node.input(0)) / ((1 << 20) * scale_of(output))
    return Sum((operand,) * count, *quantize_multiplier(real), zero_of(output), -128, 127)


def _add_n(parameters: Sum | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        total = inputs[0].copy()
        for x in inputs[1:]:
            total += x
        return total
    # The source starts its sum at the integer 0, which stands for minus the zero point (AddN, add_n.h).
    raw = np.full(inputs[0].shape, parameters.operands[0].compute(np.zeros(1, np.int64))[0])
    for operand, x in zip(parameters.operands, inputs, strict=True):
        raw += operand.values(x)
    return _finish(parameters, raw)


@dataclass(frozen=True)
class Product:
    """Parameters of quantized MUL and DIV."""

    zeros: tuple[int, int]
    multiplier: int
    shift: int
    zero: int
    low: int
    high: int


def _mul_parameters(node: Node) -> Product | Plain:
    first, second, output = node.input(0), node.input(1), node.output()
    if output.type not in QUANTIZED:
        return _plain(node)
    real = scale_of(first) * scale_of(second) / scale_of(output)
    return Product((zero_of(first), zero_of(second)), *quantize_multiplier(real), zero_of(output),
                   *activation_range(node, output))  # fmt: skip


def _mul(parameters: Product | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        return _clip(parameters, inputs[0] * inputs[1])
    first = inputs[0].astype(np.int64) - parameters.zeros[0]
    second = inputs[1].astype(np.int64) - parameters.zeros[1]
    made = scale(first * second, parameters.multiplier, parameters.shift)
    made += parameters.zero
    return np.clip(made, parameters.low, parameters.high, out=made)


def _div_parameters(node: Node) -> Product | Plain:
    first, second, output = node.input(0), node.input(1), node.output()
    if output.type != "INT8":
        return _plain(node)
    real = np.float32(scale_of(first)) / (np.float32(scale_of(second)) * np.float32(scale_of(output)))
    return Product((zero_of(first), zero_of(second)), *quantize_multiplier(float(real)), zero_of(output),
                   *activation_range(node, output))  # fmt: skip


def _div(parameters: Product | Plain, inputs: list[Array]) -> Array:
    if isinstance(parameters, Plain):
        if inputs[0].dtype.kind == "f":
            return _clip(parameters, inputs[0] / inputs[1])
        quotient = np.abs(inputs[0].astype(np.int64)) // np.maximum(np.abs(inputs[1].astype(np.int64)), 1)
        made: Array = quotient * np.sign(inputs[0]) * np.sign(inputs[1])
        return made
    above = inputs[0].astype(np.int64) - parameters.zeros[0]
    below = inputs[1].astype(np.int64) - parameters.zeros[1]
    above, below = np.where(below < 0, -above, above), np.abs(below)
    # 1/below with 31 bits; what it was shifted by is made good at the end. A divisor of zero is undefined in C++.
    inverse, moved = reciprocal(np.maximum(below, 1), 31)
    headroom = leading_zeros(np.where(above < 0, ~above, above)) - 1  # bits that only repeat the sign
    quotient = high_mul(above << headroom, inverse)
    product = high_mul(quotient, parameters.multiplier)
    made = _divide_as_x86(product, moved + headroom - parameters.shift) + parameters.zero
    return np.clip(made, parameters.low, parameters.high)


def _divide_as_x86(x: Ints, exponent: Ints) -> Ints:
    """Divide by `2^exponent` as the source compiles: by more than 2^31, which C++ leaves open, x86 shifts by the rest.

    Such exponents come with quotients that are far below one.
    """
    wrapped = (x >> (exponent & 31)) + (x > np.where(x < 0, 0, -1))
    return np.where(exponent > 31, wrapped, divide_by_power(x, np.clip(exponent, 0, 31)))


def _pairwise(function: Callable[[Array, Array], Array]) -> Callable[[None, list[Array]], Array]:
    return lambda _, inputs: function(inputs[0], inputs[1])


ADD: Kernel = elementwise(_sum_parameters, _add)
SUB: Kernel = elementwise(_sum_parameters, _sub)
MUL: Kernel = elementwise(_mul_parameters, _mul)
DIV: Kernel = elementwise(_div_parameters, _div)
ADD_N: Kernel = elementwise(_add_n_parameters, _add_n)
SQUARED_DIFFERENCE: Kernel = elementwise(_squared_difference_parameters, _squared_difference)


def _floor_div(a: Array, b: Array) -> Array:
    return np.floor(a / b) if a.dtype.kind == "f" else np.floor_divide(a, b)


def _floor_mod(a: Array, b: Array) -> Array:
    """Give C's remainder, moved to the divisor's sign: FloorMod, floor_mod.h."""
    rest = np.fmod(a, b)
    return np.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)


FLOOR_DIV: Kernel = elementwise(nothing, _pairwise(_floor_div))
FLOOR_MOD: Kernel = elementwise(nothing, _pairwise(_floor_mod))
MAXIMUM: Kernel = elementwise(nothing, _pairwise(np.maximum))
"""Of the integers: TFLM looks at no scales here."""
MINIMUM: Kernel = elementwise(nothing, _pairwise(np.minimum))
