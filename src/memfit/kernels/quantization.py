"""QUANTIZE, DEQUANTIZE and CAST.

Sources in tflite-micro: kernels/internal/reference/{quantize,requantize,dequantize}.h, micro/kernels/cast.cc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.activation import LIMITS
from memfit.kernels.elementwise import INT8_VALUES, elementwise, lookup
from memfit.kernels.fixed_point import INT32_MAX, INT32_MIN, Ints, quantize_multiplier, scale, wrap32
from memfit.kernels.kernel import DTYPES, Array, Node, scale_of, zero_of


@dataclass(frozen=True)
class Requantize:
    """Parameters of QUANTIZE from integers."""

    multiplier: int
    shift: int
    input_zero: int
    zero: int
    low: int
    high: int
    table: Ints | None

    def compute(self, x: Ints) -> Ints:
        """Requantize integers one by one."""
        return np.clip(scale(x - self.input_zero, self.multiplier, self.shift) + self.zero, self.low, self.high)


@dataclass(frozen=True)
class Affine:
    """Parameters of QUANTIZE from floats, and of DEQUANTIZE."""

    scale: float
    zero: int
    low: int
    high: int


def _quantize_parameters(node: Node) -> Requantize | Affine:
    source, output = node.input(0), node.output()
    node.need(output.type in LIMITS, "no kernel for this type", output.type)
    low, high = LIMITS[output.type]
    if source.type == "FLOAT32":
        return Affine(scale_of(output), zero_of(output), low, high)
    node.need(source.type in LIMITS, "no kernel for this type", source.type)
    real = scale_of(source) / scale_of(output)
    plain = Requantize(*quantize_multiplier(real), zero_of(source), zero_of(output), low, high, None)
    if source.type != "INT8":
        return plain
    return Requantize(plain.multiplier, plain.shift, plain.input_zero, plain.zero, low, high,
                      plain.compute(INT8_VALUES))  # fmt: skip


def _quantize(parameters: Requantize | Affine, inputs: list[Array]) -> Array:
    x = inputs[0]
    if isinstance(parameters, Requantize):
        return lookup(parameters.table, x) if parameters.table is not None else parameters.compute(x.astype(np.int64))
    real = (x / np.float32(parameters.scale)).astype(np.float64)
    whole = np.copysign(np.floor(np.abs(real) + 0.5), real)
    # What no 32-bit integer holds, NaN included, becomes the smallest one: x86's conversion, and no other promise.
    held = np.where((whole >= INT32_MIN) & (whole <= INT32_MAX), whole, INT32_MIN).astype(np.int64)
    made: Array = np.clip(wrap32(held + parameters.zero), parameters.low, parameters.high)
    return made


QUANTIZE = elementwise(_quantize_parameters, _quantize)


def _dequantize_parameters(node: Node) -> Affine:
    source = node.input(0)
    node.need(source.type in ("INT8", "INT16", "UINT8"), "no kernel for this type", source.type)
    return Affine(scale_of(source), zero_of(source), 0, 0)


def _dequantize(parameters: Affine, inputs: list[Array]) -> Array:
    difference = inputs[0].astype(np.int32) - parameters.zero
    return (parameters.scale * difference.astype(np.float64)).astype(np.float32)


DEQUANTIZE = elementwise(_dequantize_parameters, _dequantize)


def _cast_parameters(node: Node) -> str:
    kinds = node.input(0).type, node.output().type
    node.need(all(kind in DTYPES for kind in kinds), "no kernel for these types", " to ".join(kinds))
    return DTYPES[kinds[1]]


def _cast(kind: str, inputs: list[Array]) -> Array:
    """Convert: floats towards zero and saturating, NaN to 0, integers cut to the width."""
    x, target = inputs[0], np.dtype(kind)
    if x.dtype.kind == "f" and target.kind == "i":
        limits = np.iinfo(target)
        return np.clip(np.trunc(np.nan_to_num(x.astype(np.float64))), limits.min, limits.max).astype(target)
    return x.astype(target)


CAST = elementwise(_cast_parameters, _cast)
