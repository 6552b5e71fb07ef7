"""The table of kernels: operator name → how it is computed."""

from __future__ import annotations

from memfit.kernels import arithmetic, movement
from memfit.kernels.convolution import CONVOLUTION
from memfit.kernels.kernel import Kernel
from memfit.kernels.linear import LINEAR
from memfit.kernels.pooling import POOLING
from memfit.kernels.quantization import DEQUANTIZE, QUANTIZE
from memfit.kernels.reductions import REDUCTION
from memfit.kernels.softmax import SOFTMAX

KERNELS: dict[str, Kernel] = {
    "ADD": arithmetic.ADD,
    "ADD_N": arithmetic.ADD_N,
    "AVERAGE_POOL_2D": POOLING,
    "CONCATENATION": movement.CONCATENATION,
    "CONV_2D": CONVOLUTION,
    "DEPTHWISE_CONV_2D": CONVOLUTION,
    "DEPTH_TO_SPACE": movement.DEPTH_TO_SPACE,
    "DEQUANTIZE": DEQUANTIZE,
    "DIV": arithmetic.DIV,
    "EXPAND_DIMS": movement.RESHAPE,
    "FULLY_CONNECTED": LINEAR,
    "GATHER": movement.GATHER,
    "MAXIMUM": arithmetic.MAXIMUM,
    "MAX_POOL_2D": POOLING,
    "MEAN": REDUCTION,
    "MINIMUM": arithmetic.MINIMUM,
    "MIRROR_PAD": movement.MIRROR_PAD,
    "MUL": arithmetic.MUL,
    "PACK": movement.PACK,
    "PAD": movement.PAD,
    "PADV2": movement.PAD,
    "QUANTIZE": QUANTIZE,
    "REDUCE_MAX": REDUCTION,
    "REDUCE_MIN": REDUCTION,
    "RESHAPE": movement.RESHAPE,
    "SLICE": movement.SLICE,
    "SOFTMAX": SOFTMAX,
    "SPACE_TO_DEPTH": movement.SPACE_TO_DEPTH,
    "SPLIT": movement.SPLIT,
    "SPLIT_V": movement.SPLIT_V,
    "SQUARED_DIFFERENCE": arithmetic.SQUARED_DIFFERENCE,
    "SQUEEZE": movement.RESHAPE,
    "STRIDED_SLICE": movement.STRIDED_SLICE,
    "SUB": arithmetic.SUB,
    "SUM": REDUCTION,
    "TRANSPOSE": movement.TRANSPOSE,
    "UNPACK": movement.UNPACK,
}
"""Operators of the main subgraph that can be computed, by their names in the schema."""
