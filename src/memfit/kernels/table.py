"""The table of kernels: operator name → how it is computed."""

from __future__ import annotations

from memfit.kernels import activations, arithmetic, indexing, movement
from memfit.kernels.comparison import COMPARISONS
from memfit.kernels.convolution import CONVOLUTION, TRANSPOSED
from memfit.kernels.kernel import Kernel
from memfit.kernels.linear import LINEAR, PRODUCT
from memfit.kernels.pooling import POOLING
from memfit.kernels.quantization import CAST, DEQUANTIZE, QUANTIZE
from memfit.kernels.recurrent import LSTM, SVDF
from memfit.kernels.reductions import ARG, CUMSUM, REDUCTION
from memfit.kernels.resize import RESIZE
from memfit.kernels.softmax import L2_NORMALIZATION, LOG_SOFTMAX, SOFTMAX

KERNELS: dict[str, Kernel] = {
    "ABS": activations.ABS,
    "ADD": arithmetic.ADD,
    "ADD_N": arithmetic.ADD_N,
    "ARG_MAX": ARG,
    "ARG_MIN": ARG,
    "AVERAGE_POOL_2D": POOLING,
    "BATCH_MATMUL": PRODUCT,
    "BATCH_TO_SPACE_ND": indexing.BATCH_TO_SPACE_ND,
    "BROADCAST_ARGS": indexing.BROADCAST_ARGS,
    "BROADCAST_TO": indexing.BROADCAST_TO,
    "CAST": CAST,
    "CONCATENATION": movement.CONCATENATION,
    "CONV_2D": CONVOLUTION,
    "CUMSUM": CUMSUM,
    "DEPTHWISE_CONV_2D": CONVOLUTION,
    "DEPTH_TO_SPACE": indexing.DEPTH_TO_SPACE,
    "DEQUANTIZE": DEQUANTIZE,
    "DIV": arithmetic.DIV,
    "DYNAMIC_UPDATE_SLICE": indexing.DYNAMIC_UPDATE_SLICE,
    "ELU": activations.ELU,
    "EMBEDDING_LOOKUP": indexing.EMBEDDING_LOOKUP,
    "EXPAND_DIMS": movement.RESHAPE,
    "FILL": indexing.FILL,
    "FLOOR_DIV": arithmetic.FLOOR_DIV,
    "FLOOR_MOD": arithmetic.FLOOR_MOD,
    "FULLY_CONNECTED": LINEAR,
    "GATHER": indexing.GATHER,
    "GATHER_ND": indexing.GATHER_ND,
    "HARD_SWISH": activations.HARD_SWISH,
    "L2_NORMALIZATION": L2_NORMALIZATION,
    "L2_POOL_2D": POOLING,
    "LEAKY_RELU": activations.LEAKY_RELU,
    "LOGICAL_NOT": activations.LOGICAL_NOT,
    "LOGISTIC": activations.LOGISTIC,
    "LOG_SOFTMAX": LOG_SOFTMAX,
    "MAXIMUM": arithmetic.MAXIMUM,
    "MAX_POOL_2D": POOLING,
    "MEAN": REDUCTION,
    "MINIMUM": arithmetic.MINIMUM,
    "MIRROR_PAD": movement.MIRROR_PAD,
    "MUL": arithmetic.MUL,
    "PACK": movement.PACK,
    "PAD": movement.PAD,
    "PADV2": movement.PAD,
    "PRELU": activations.PRELU,
    "QUANTIZE": QUANTIZE,
    "REDUCE_ALL": REDUCTION,
    "REDUCE_MAX": REDUCTION,
    "REDUCE_MIN": REDUCTION,
    "RELU": activations.RELU,
    "RELU6": activations.RELU6,
    "RESHAPE": movement.RESHAPE,
    "RESIZE_BILINEAR": RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": RESIZE,
    "REVERSE_V2": indexing.REVERSE_V2,
    "RSQRT": activations.RSQRT,
    "SHAPE": indexing.SHAPE,
    "SLICE": movement.SLICE,
    "SOFTMAX": SOFTMAX,
    "SPACE_TO_BATCH_ND": indexing.SPACE_TO_BATCH_ND,
    "SPACE_TO_DEPTH": indexing.SPACE_TO_DEPTH,
    "SPLIT": movement.SPLIT,
    "SPLIT_V": movement.SPLIT_V,
    "SQUARED_DIFFERENCE": arithmetic.SQUARED_DIFFERENCE,
    "SQUEEZE": movement.RESHAPE,
    "STRIDED_SLICE": movement.STRIDED_SLICE,
    "SUB": arithmetic.SUB,
    "SUM": REDUCTION,
    "SVDF": SVDF,
    "TANH": activations.TANH,
    "TRANSPOSE": movement.TRANSPOSE,
    "TRANSPOSE_CONV": TRANSPOSED,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": LSTM,
    "UNPACK": movement.UNPACK,
    "ZEROS_LIKE": indexing.ZEROS_LIKE,
    **COMPARISONS,
    **activations.FLOATS,
}
"""Operators of the main subgraph that can be computed, by their names in the schema."""
