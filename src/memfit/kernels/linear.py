"""FULLY_CONNECTED and BATCH_MATMUL.

Sources in tflite-micro: kernels/internal/reference/integer_ops/fully_connected.h, reference/fully_connected.h,
reference/batch_matmul.h, micro/kernels/{fully_connected,batch_matmul}*.cc.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memfit.kernels.activation import LIMITS, float_range
from memfit.kernels.convolution import TYPES, Matrix, Requantization, convolution_scales, requantization
from memfit.kernels.fixed_point import Ints, quantize_multiplier, quantize_multipliers
from memfit.kernels.kernel import Array, Inputs, Kernel, Node, Outputs, scale_of, zero_of


@dataclass(frozen=True)
class Linear:
    """Parameters of FULLY_CONNECTED."""

    zero: int
    """Zero point of the input."""
    weights_zero: int
    matrix: Matrix | None
    """Constant integer weights, less their zero point."""
    sums: Ints | None
    """Of the weights of each output."""
    requantize: Requantization | None
    float_range: tuple[np.float32, np.float32] | None


def _parameters(node: Node) -> Linear:
    image, filters = node.input(0), node.input(1)
    kinds = (image.type, filters.type)
    node.need(kinds in TYPES, "no kernel for these types of activations and weights", " and ".join(kinds))
    if image.type == "FLOAT32":
        return Linear(0, 0, None, None, None, float_range(node))
    quantization = filters.quantization
    if quantization is not None and len(quantization.scales) > 1:
        multiplier, shift = convolution_scales(node, 0, 1, filters.shape[0])
    else:
        # One scale for all: TFLM multiplies the two in single precision here (GetQuantizedConvolutionMultipler).
        product = float(np.float32(scale_of(image)) * np.float32(scale_of(filters)))
        multiplier, shift = quantize_multipliers([product / scale_of(node.output())])
    weights = node.constant(1)
    weights_zero = zero_of(filters)
    matrix = sums = None
    if weights is not None:
        matrix, sums = _matrix(weights, weights_zero, TYPES[kinds])
    requantize = requantization(node, multiplier, shift, 2)
    return Linear(zero_of(image), weights_zero, matrix, sums, requantize, None)


def _matrix(weights: Array, zero: int, largest: int) -> tuple[Matrix, Ints]:
    columns = weights.reshape(weights.shape[0], -1).T.astype(np.int64) - zero
    return Matrix.of(columns[None], largest), columns.sum(axis=0)


def _whole(parameters: Linear, inputs: Inputs, outputs: Outputs) -> None:
    image, weights = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    assert image is not None  # Node.input saw both
    assert weights is not None
    output = outputs[0]
    rows = image.reshape(-1, weights.shape[-1])
    if parameters.requantize is None:
        made = sequential_product(rows, weights.reshape(-1, weights.shape[-1]).T)
        if bias is not None:
            made += bias
        assert parameters.float_range is not None  # set where there is no requantization
        output[...] = np.clip(made, *parameters.float_range).reshape(output.shape)
        return
    matrix, sums = parameters.matrix, parameters.sums
    if matrix is None or sums is None:
        matrix, sums = _matrix(weights, parameters.weights_zero, 32768)
    accumulators = matrix.multiply(rows)
    accumulators -= parameters.zero * sums
    if bias is not None:
        accumulators += bias
    output[...] = parameters.requantize(accumulators).reshape(output.shape)


def sequential_product(left: Array, right: Array) -> Array:
    """Multiply float matrices, adding one product after the other as C++ does: (…, n, k) by (…, k, m)."""
    total = np.zeros((*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1]), "f4")
    for k in range(left.shape[-1]):
        total += left[..., :, k, None] * right[..., None, k, :]
    return total


LINEAR = Kernel(_parameters, _whole)
"""FULLY_CONNECTED: 8-bit, with weights of 8 or 4 bits; 16x8-bit; float."""


# -- batches of matrices ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """Parameters of BATCH_MATMUL."""

    transposed: tuple[bool, bool]
    zeros: tuple[int, int]
    requantize: Requantization | None


def _product_parameters(node: Node) -> Product:
    left, right, output = node.input(0), node.input(1), node.output()
    node.need(
        left.type == right.type and left.type in ("INT8", "INT16", "FLOAT32"), "no kernel for this type", left.type
    )
    flags = bool(node.option("adj_x")), bool(node.option("adj_y"))
    if left.type == "FLOAT32":
        return Product(flags, (0, 0), None)
    product = float(np.float32(scale_of(left)) * np.float32(scale_of(right)))  # single precision here too
    multiplier, shift = (np.array([v]) for v in quantize_multiplier(product / scale_of(output)))
    requantize = Requantization(multiplier, shift, zero_of(output), *LIMITS[output.type], wide=left.type == "INT16")
    return Product(flags, (zero_of(left), zero_of(right)), requantize)


def _product(parameters: Product, inputs: Inputs, outputs: Outputs) -> None:
    left, right = inputs[0], inputs[1]
    assert left is not None  # Node.input saw both
    assert right is not None
    if parameters.transposed[0]:
        left = left.swapaxes(-1, -2)
    if parameters.transposed[1]:
        right = right.swapaxes(-1, -2)
    if parameters.requantize is None:
        outputs[0][...] = sequential_product(left, right)
        return
    # Sums of products of numbers of 17 bits at the most are exact in double precision, up to 2^19 of them.
    wide = np.matmul(left.astype(np.float64) - parameters.zeros[0], right.astype(np.float64) - parameters.zeros[1])
    outputs[0][...] = parameters.requantize(wide.astype(np.int64))


PRODUCT = Kernel(_product_parameters, _product)
"""BATCH_MATMUL: 8-bit, 16-bit, float."""
