"""How much code TensorFlow Lite Micro's interpreter and kernels are: measured on a PC, and carried over to Cortex-M.

Measured: `tflite_micro` 0.dev20261023182759, the Python package for x86-64 (gcc 14.2, kernels in C++ without assembly).
For each operator's registration and its parser, every function that can be reached from there was added up by the
symbol table, without what the interpreter has already and without the unpacking of compressed tensors, which a device
does not have unless it is asked for. Tables of constants count too; texts of error messages and the C library do not.

Carried over: eleven files of TensorFlow's audio front end and eight loops like those of TFLM's kernels were compiled
with gcc 12.2 for both. In sum, `-mcpu=cortex-m4 -O2` gave 0.74 of the bytes that x86-64 takes at `-O2`, and `-Os` gave
0.56. TFLM builds its core with `-Os` and its kernels with `-O2` (tensorflow/lite/micro/tools/make/Makefile). Single
files and functions lie between 0.57 and 1.7 at `-O2`; the sum is far steadier: 0.74 for the files, 0.75 for the loops.
"""

from __future__ import annotations

KERNEL_RATIO = 0.74
"""Bytes on Cortex-M at -O2 for one byte on x86-64 at -O2."""

CORE_RATIO = 0.56
"""The same at -Os."""

CORE = 23_734
"""Interpreter, allocator, memory planner and reading of the flatbuffer: x86-64 bytes.

TFLM's own record says 25,807 for April 2022, its C runtime included (interpreter less baseline, linux_x86_64_release):
https://github.com/tensorflow/tflite-micro/tree/main/data/continuous_builds/size_profiling
"""

COMMON = 2_230
"""What ten kernels or more call: tensor look-up, shapes, requantization: x86-64 bytes."""

KERNELS: dict[str, int] = {
    "ABS": 1_910, "ADD": 16_307, "ADD_N": 2_480, "ARG_MAX": 2_722, "ARG_MIN": 2_719, "ASSIGN_VARIABLE": 1_170,
    "AVERAGE_POOL_2D": 4_732, "BATCH_MATMUL": 14_569, "BATCH_TO_SPACE_ND": 2_408, "BROADCAST_ARGS": 1_926,
    "BROADCAST_TO": 2_127, "CALL_ONCE": 480, "CAST": 3_290, "CEIL": 1_064, "CIRCULAR_BUFFER": 1_505,
    "CONCATENATION": 8_015, "CONV_2D": 11_658, "COS": 698, "CUMSUM": 2_928, "DEPTHWISE_CONV_2D": 9_506,
    "DEPTH_TO_SPACE": 2_686, "DEQUANTIZE": 1_281, "DIV": 13_898, "DYNAMIC_UPDATE_SLICE": 4_346, "ELU": 1_263,
    "EMBEDDING_LOOKUP": 1_856, "EQUAL": 12_550, "EXP": 986, "EXPAND_DIMS": 1_105, "FILL": 1_501, "FLOOR": 502,
    "FLOOR_DIV": 3_270, "FLOOR_MOD": 3_195, "FULLY_CONNECTED": 8_384, "GATHER": 3_443, "GATHER_ND": 2_265,
    "GREATER": 14_694, "GREATER_EQUAL": 10_545, "HARD_SWISH": 1_633, "IF": 1_709, "L2_NORMALIZATION": 2_436,
    "L2_POOL_2D": 3_182, "LEAKY_RELU": 1_812, "LESS": 10_545, "LESS_EQUAL": 10_545, "LOG": 698, "LOGICAL_AND": 2_356,
    "LOGICAL_NOT": 709, "LOGICAL_OR": 2_356, "LOGISTIC": 4_203, "LOG_SOFTMAX": 5_236, "MAXIMUM": 12_769,
    "MAX_POOL_2D": 4_513, "MEAN": 6_643, "MINIMUM": 12_769, "MIRROR_PAD": 1_527, "MUL": 13_289, "NEG": 340,
    "NOT_EQUAL": 12_601, "PACK": 2_456, "PAD": 8_286, "PADV2": 8_286, "PRELU": 6_714, "QUANTIZE": 2_961,
    "READ_VARIABLE": 335, "REDUCE_ALL": 2_159, "REDUCE_MAX": 3_524, "REDUCE_MIN": 3_521, "RELU": 1_463, "RELU6": 1_155,
    "RESHAPE": 1_419, "RESIZE_BILINEAR": 4_340, "RESIZE_NEAREST_NEIGHBOR": 5_569, "REVERSE_V2": 6_654, "ROUND": 1_024,
    "RSQRT": 2_629, "SELECT_V2": 10_425, "SHAPE": 566, "SIN": 698, "SLICE": 4_527, "SOFTMAX": 8_116,
    "SPACE_TO_BATCH_ND": 2_702, "SPACE_TO_DEPTH": 2_768, "SPLIT": 2_444, "SPLIT_V": 2_395, "SQRT": 737, "SQUARE": 708,
    "SQUARED_DIFFERENCE": 10_621, "SQUEEZE": 1_167, "STRIDED_SLICE": 19_688, "SUB": 18_931, "SUM": 5_672,
    "SVDF": 7_669, "TANH": 4_339, "TFLite_Detection_PostProcess": 11_742, "TRANSPOSE": 2_745, "TRANSPOSE_CONV": 10_391,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 16_248, "UNPACK": 2_099, "VAR_HANDLE": 729, "WHILE": 2_099, "ZEROS_LIKE": 709,
}  # fmt: skip
"""Operator → x86-64 bytes that it takes alone, for every type of number that it knows.

A program that registers an operator links all of them, whatever types the network has; variants for one type only,
such as Register_CONV_2D_INT8, exist for optimised kernels.
"""

SHARED: tuple[tuple[frozenset[str], int], ...] = tuple(
    (frozenset(names.split()), nbytes)
    for names, nbytes in (
        ("ADD SQUARED_DIFFERENCE", 436),
        ("ARG_MAX ARG_MIN", 2_431),
        ("AVERAGE_POOL_2D L2_POOL_2D MAX_POOL_2D", 488),
        ("AVERAGE_POOL_2D MAX_POOL_2D", 908),
        ("BATCH_MATMUL TRANSPOSE", 777),
        ("CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV", 965),
        ("COS LOG LOGICAL_NOT SIN SQRT SQUARE", 429),
        ("DIV LOGISTIC LOG_SOFTMAX SOFTMAX", 333),
        ("EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL", 331),
        ("FLOOR_DIV FLOOR_MOD", 1_396),
        ("FLOOR_DIV FLOOR_MOD SQUARED_DIFFERENCE", 462),
        ("FULLY_CONNECTED UNIDIRECTIONAL_SEQUENCE_LSTM", 712),
        ("IF WHILE", 615),
        ("L2_NORMALIZATION RSQRT", 582),
        ("LOGICAL_AND LOGICAL_OR", 2_293),
        ("LOGISTIC LOG_SOFTMAX SOFTMAX TANH", 406),
        ("LOG_SOFTMAX SOFTMAX TANH", 852),
        ("MAXIMUM MINIMUM", 11_837),
        ("MEAN REDUCE_ALL REDUCE_MAX REDUCE_MIN SUM", 512),
        ("MEAN SUM", 3_661),
        ("PAD PADV2", 8_230),
        ("REDUCE_MAX REDUCE_MIN", 2_774),
    )
)
"""Functions that several of these operators have in common, linked once: x86-64 bytes within those of KERNELS."""

DEFAULT = sorted(KERNELS.values())[len(KERNELS) // 2]
"""For an operator that the table lacks: the median of those that it has."""

OPERATORS: dict[str, tuple[str, ...]] = {
    "conv1d": ("CONV_2D",), "conv2d": ("CONV_2D",), "depthwise_conv1d": ("DEPTHWISE_CONV_2D",),
    "depthwise_conv2d": ("DEPTHWISE_CONV_2D",), "conv_transpose1d": ("TRANSPOSE_CONV",),
    "conv_transpose2d": ("TRANSPOSE_CONV",), "linear": ("FULLY_CONNECTED",), "matmul": ("BATCH_MATMUL",),
    "attention": ("BATCH_MATMUL", "SOFTMAX", "MUL"),
    "multi_head_attention": ("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX", "MUL"),
    "lstm": ("UNIDIRECTIONAL_SEQUENCE_LSTM",), "svdf": ("SVDF",), "embedding": ("GATHER",), "add": ("ADD",),
    "add_n": ("ADD_N",), "sub": ("SUB",), "rsub": ("SUB",), "mul": ("MUL",), "div": ("DIV",), "pow": ("MUL",),
    "maximum": ("MAXIMUM",), "minimum": ("MINIMUM",), "squared_difference": ("SQUARED_DIFFERENCE",),
    "abs": ("ABS",), "neg": ("NEG",), "exp": ("EXP",), "log": ("LOG",), "sin": ("SIN",), "cos": ("COS",),
    "sqrt": ("SQRT",), "rsqrt": ("RSQRT",), "square": ("SQUARE",), "floor": ("FLOOR",), "ceil": ("CEIL",),
    "round": ("ROUND",), "cast": ("CAST",), "where": ("SELECT_V2",), "masked_fill": ("SELECT_V2",), "eq": ("EQUAL",),
    "ne": ("NOT_EQUAL",), "lt": ("LESS",), "le": ("LESS_EQUAL",), "gt": ("GREATER",), "ge": ("GREATER_EQUAL",),
    "quantize": ("QUANTIZE",), "dequantize": ("DEQUANTIZE",), "concat": ("CONCATENATION",), "pad": ("PAD",),
    "avg_pool1d": ("AVERAGE_POOL_2D",), "avg_pool2d": ("AVERAGE_POOL_2D",), "max_pool1d": ("MAX_POOL_2D",),
    "max_pool2d": ("MAX_POOL_2D",), "l2_pool2d": ("L2_POOL_2D",), "adaptive_avg_pool1d": ("MEAN",),
    "adaptive_avg_pool2d": ("MEAN",), "adaptive_max_pool1d": ("REDUCE_MAX",), "adaptive_max_pool2d": ("REDUCE_MAX",),
    "mean": ("MEAN",), "sum": ("SUM",), "amax": ("REDUCE_MAX",), "amin": ("REDUCE_MIN",), "max": ("REDUCE_MAX",),
    "min": ("REDUCE_MIN",), "argmax": ("ARG_MAX",), "argmin": ("ARG_MIN",), "cumsum": ("CUMSUM",),
    "softmax": ("SOFTMAX",), "log_softmax": ("LOG_SOFTMAX",), "tanh": ("TANH",), "sigmoid": ("LOGISTIC",),
    "silu": ("LOGISTIC", "MUL"), "hardswish": ("HARD_SWISH",), "hardsigmoid": ("ADD", "RELU6", "MUL"),
    "elu": ("ELU",), "leaky_relu": ("LEAKY_RELU",), "prelu": ("PRELU",), "relu": ("RELU",), "relu6": ("RELU6",),
    "hardtanh": ("MINIMUM", "MAXIMUM"), "clamp": ("MINIMUM", "MAXIMUM"),
    "layer_norm": ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "MUL", "ADD", "SUB"),
    "group_norm": ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "MUL", "ADD", "SUB", "RESHAPE"),
    "instance_norm": ("MEAN", "SQUARED_DIFFERENCE", "RSQRT", "MUL", "ADD", "SUB"),
    "batch_norm": ("MUL", "ADD"), "l2_norm": ("L2_NORMALIZATION",), "upsample_bilinear2d": ("RESIZE_BILINEAR",),
    "upsample_nearest2d": ("RESIZE_NEAREST_NEIGHBOR",), "depth_to_space": ("DEPTH_TO_SPACE",),
    "pixel_shuffle": ("DEPTH_TO_SPACE",), "space_to_depth": ("SPACE_TO_DEPTH",),
    "pixel_unshuffle": ("SPACE_TO_DEPTH",), "channel_shuffle": ("RESHAPE", "TRANSPOSE"), "flip": ("REVERSE_V2",),
    "gather": ("GATHER",), "index_select": ("GATHER",), "gather_nd": ("GATHER_ND",), "select": ("STRIDED_SLICE",),
    "slice": ("STRIDED_SLICE",), "split": ("SPLIT",), "chunk": ("SPLIT",), "reshape": ("RESHAPE",),
    "view": ("RESHAPE",), "permute": ("TRANSPOSE",), "transpose": ("TRANSPOSE",), "clone": (), "contiguous": (),
    "copy": (), "dropout": (), "expand": ("BROADCAST_TO",), "fill": ("FILL",), "full": (), "zeros": (), "ones": (),
    "zeros_like": ("ZEROS_LIKE",), "arange": (), "scalar_tensor": (), "empty": (),
}  # fmt: skip
"""The graph's kind → what a converter makes of it; nothing for what it computes beforehand or leaves out."""

FUSED = frozenset({"relu", "relu6"})
"""Activations that TFLM's convolution, pooling, add and the like do themselves."""
