"""The operator table of `.tflite`: what each operator is called here, what it multiplies, which inputs only say how.

To add an operator, add one entry, and its kind's role in `memfit/graph/optable.py` where the kind is new. Listed are
the operators of TFLM (tensorflow/lite/micro/micro_mutable_op_resolver.h, its signal library included, 2026-08) and
those of TensorFlow Lite that need no more than a name. Shapes are NHWC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from memfit.errors import SourceError
from memfit.formats.tflite import Operator, TfliteTensor


class Call(NamedTuple):
    """One operator with its tensors looked up: what the table's functions read."""

    operator: Operator
    inputs: Sequence[TfliteTensor | None]
    """By position; None for an optional input that is left out."""
    outputs: Sequence[TfliteTensor]
    where: str
    """File and operator, for messages."""

    def shape(self, position: int, rank: int | None = None) -> tuple[int, ...]:
        """Shape of an input that must be there, of that rank."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        if tensor is None:
            raise self.wrong(f"input {position} is missing", f"{len(self.inputs)} inputs")
        if rank is not None and len(tensor.shape) != rank:
            raise self.wrong(f"input {position} has {len(tensor.shape)} dimensions instead of {rank}", _text(tensor))
        return tensor.shape

    def result(self, rank: int | None = None) -> tuple[int, ...]:
        """Shape of the first output, of that rank."""
        if not self.outputs:
            raise self.wrong("it has no output", "0 outputs")
        if rank is not None and len(self.outputs[0].shape) != rank:
            raise self.wrong(
                f"its output has {len(self.outputs[0].shape)} dimensions instead of {rank}", _text(self.outputs[0])
            )
        return self.outputs[0].shape

    def constant(self, position: int) -> bool:
        """True where an input's data stands in the file."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        return tensor is not None and tensor.is_constant

    def wrong(self, what: str, received: str) -> SourceError:
        """Make the error for an operator that cannot run."""
        return SourceError(
            f"{self.operator.name} cannot run: {what}",
            where=self.where,
            received=received,
            todo="convert the model again: the file is damaged, or its converter has a fault",
        )


def _text(tensor: TfliteTensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.name}".rstrip()


class Entry(NamedTuple):
    """One row of the table."""

    kind: str | Callable[[Call], str]
    settings: tuple[int, ...] = ()
    """Inputs that say how, not what: shapes, axes, paddings. As constants they are buffers, not parameters."""
    macs: Callable[[Call], int] | None = None
    attrs: Callable[[Call], dict[str, Any]] | None = None
    options: str | None = None
    """The table of options that it must have, if any."""
    mutates: bool = False
    """True where it writes to the variable tensors among its inputs."""
    inputs: int = 1
    """So many of its first inputs must be there."""
    outputs: int = 1


# -- convolution and products -------------------------------------------------------------------------------------

_PADDING = {0: "same", 1: "valid"}


def _same_channels(call: Call, got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise call.wrong(f"{what}: {got} instead of {wanted}", _shapes(call))


def _shapes(call: Call) -> str:
    tensors = [*call.inputs, *call.outputs]
    return ", ".join("left out" if t is None else "x".join(map(str, t.shape)) or "scalar" for t in tensors)


def _window(call: Call, kernel: tuple[int, ...], groups: int | None = None) -> dict[str, Any]:
    """Attributes of what slides over height and width."""
    options = call.operator.options
    attrs: dict[str, Any] = {
        "layout": "nhwc",
        "kernel": kernel,
        "stride": (options.get("stride_h", 1), options.get("stride_w", 1)),
        "padding": _PADDING.get(options.get("padding", 0), "unknown"),
    }
    if "dilation_h_factor" in options:
        attrs["dilation"] = (options["dilation_h_factor"], options["dilation_w_factor"])
    if groups is not None:
        attrs["groups"] = groups
    return attrs


def _conv_attrs(call: Call) -> dict[str, Any]:
    filters, channels = call.shape(1, 4), call.shape(0, 4)[3]
    groups = channels // filters[3] if filters[3] else 0
    if groups < 1 or groups * filters[3] != channels:
        raise call.wrong("its filter does not divide the input's channels", _shapes(call))
    return {**_window(call, filters[1:3], groups), "bias": len(call.inputs) > 2 and call.inputs[2] is not None}


def _conv_macs(call: Call) -> int:
    """Every output element sums kernel · (input channels / groups) products; the filter is OHWI."""
    filters = call.shape(1, 4)
    _same_channels(call, call.result(4)[3], filters[0], "its output's channels are not the filter's")
    return call.outputs[0].elements * math.prod(filters[1:])


def _depthwise_attrs(call: Call) -> dict[str, Any]:
    kernel = call.shape(1, 4)[1:3]
    return {
        **_window(call, kernel, call.shape(0, 4)[3]),
        "bias": len(call.inputs) > 2 and call.inputs[2] is not None,
    }


def _depthwise_macs(call: Call) -> int:
    """Every output element sums as many products as the kernel has elements; the filter is 1HWC."""
    filters = call.shape(1, 4)
    _same_channels(call, call.result(4)[3], filters[3], "its output's channels are not the filter's")
    return call.outputs[0].elements * filters[1] * filters[2]


def _transpose_conv_attrs(call: Call) -> dict[str, Any]:
    return {
        **_window(call, call.shape(1, 4)[1:3], 1),
        "bias": len(call.inputs) > 3 and call.inputs[3] is not None,
    }


def _transpose_conv_macs(call: Call) -> int:
    """Every input element is multiplied by kernel · output channels weights; the filter is OHWI."""
    filters, source = call.shape(1, 4), call.shape(2, 4)
    _same_channels(call, source[3], filters[3], "its input's channels are not the filter's")
    return math.prod(source) * math.prod(filters[:3])


def _conv3d_macs(call: Call) -> int:
    """As for CONV_2D; the filter is DHWIO."""
    return math.prod(call.result(5)) * math.prod(call.shape(1, 5)[:4])


def _conv3d_transpose_macs(call: Call) -> int:
    """As for TRANSPOSE_CONV; the filter is DHWOI."""
    return math.prod(call.shape(2, 5)) * math.prod(call.shape(1, 5)[:4])


def _linear_macs(call: Call) -> int:
    """Every output element sums as many products as the filter, (units, inputs), has columns."""
    filters = call.shape(1)
    if len(filters) < 2 or not filters[-1]:
        raise call.wrong("its filter is no matrix", _shapes(call))
    if math.prod(call.shape(0)) % filters[-1]:
        raise call.wrong("its filter does not divide the input", _shapes(call))
    _same_channels(call, (call.result() or (1,))[-1], filters[-2], "its output is not as wide as the filter is high")
    return call.outputs[0].elements * filters[-1]


def _matmul_kind(call: Call) -> str:
    return "linear" if call.constant(0) or call.constant(1) else "matmul"


def _matmul_macs(call: Call) -> int:
    """Every output element sums as many products as the operands share."""
    left, right = call.shape(0), call.shape(1)
    if len(left) < 2 or len(right) < 2:
        raise call.wrong("an operand is no matrix", _shapes(call))
    shared = left[-2] if call.operator.options.get("adj_x") else left[-1]
    other = right[-1] if call.operator.options.get("adj_y") else right[-2]
    _same_channels(call, other, shared, "the operands do not share a dimension")
    call.result()
    return call.outputs[0].elements * shared


def _svdf_macs(call: Call) -> int:
    """Per sample: features, (filters, inputs), times the input, then time weights, (filters, memory), times state."""
    source, features, time = call.shape(0, 2), call.shape(1, 2), call.shape(2, 2)
    _same_channels(call, source[1], features[1], "its input is not as wide as the feature weights")
    return source[0] * (math.prod(features) + math.prod(time))


def _recurrent_macs(steps_from: int) -> Callable[[Call], int]:
    """Every step of every sample multiplies by every weight matrix; `steps_from`: dimensions that count steps."""

    def macs(call: Call) -> int:
        source = call.shape(0)
        weights = [t.elements for t in call.inputs[1:] if t is not None and len(t.shape) == 2 and not t.is_variable]
        return math.prod(source[:steps_from]) * sum(weights)

    return macs


def _pool_attrs(call: Call) -> dict[str, Any]:
    options = call.operator.options
    return _window(call, (options.get("filter_height", 1), options.get("filter_width", 1)))


# -- the table ----------------------------------------------------------------------------------------------------


def _named(
    text: str, *, settings: tuple[int, ...] = (), inputs: int | None = None, outputs: int = 1
) -> dict[str, Entry]:
    """Rows that are no more than a name, as OPERATOR=kind; without a kind it is the operator's own in small letters.

    Its inputs go up to the last setting unless their number is given.
    """
    rows = {}
    least = 1 + max(settings, default=0) if inputs is None else inputs
    for item in text.split():
        name, _, kind = item.partition("=")
        rows[name] = Entry(kind or name.lower(), settings, inputs=least, outputs=outputs)
    return rows


OPERATORS: dict[str, Entry] = {
    # Convolution and products
    "CONV_2D": Entry("conv2d", (), _conv_macs, _conv_attrs, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": Entry("depthwise_conv2d", (), _depthwise_macs, _depthwise_attrs, "DepthwiseConv2DOptions"),
    "TRANSPOSE_CONV": Entry(
        "conv_transpose2d", (0,), _transpose_conv_macs, _transpose_conv_attrs, "TransposeConvOptions"
    ),
    "CONV_3D": Entry("conv3d", (), _conv3d_macs),
    "CONV_3D_TRANSPOSE": Entry("conv_transpose3d", (0,), _conv3d_transpose_macs),
    "FULLY_CONNECTED": Entry("linear", (), _linear_macs, None, "FullyConnectedOptions"),
    "BATCH_MATMUL": Entry(_matmul_kind, (), _matmul_macs),
    # Recurrent
    "SVDF": Entry("svdf", (), _svdf_macs, None, "SVDFOptions", mutates=True),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Entry("lstm", (), _recurrent_macs(2), mutates=True),
    "BIDIRECTIONAL_SEQUENCE_LSTM": Entry("lstm", (), _recurrent_macs(2), mutates=True),
    "UNIDIRECTIONAL_SEQUENCE_RNN": Entry("rnn", (), _recurrent_macs(2), mutates=True),
    "BIDIRECTIONAL_SEQUENCE_RNN": Entry("rnn", (), _recurrent_macs(2), mutates=True),
    "LSTM": Entry("lstm_cell", (), _recurrent_macs(1), mutates=True),
    "RNN": Entry("rnn_cell", (), _recurrent_macs(1), mutates=True),
    **_named("EMBEDDING_LOOKUP=embedding", inputs=2),
    # Activations and norms
    **_named(
        "RELU RELU6 RELU_N1_TO_1=hardtanh RELU_0_TO_1=clamp LEAKY_RELU ELU GELU HARD_SWISH=hardswish TANH"
        " LOGISTIC=sigmoid SOFTMAX LOG_SOFTMAX L2_NORMALIZATION=l2_norm"
        " LOCAL_RESPONSE_NORMALIZATION=local_response_norm"
    ),
    **_named("PRELU", inputs=2),
    # Element-wise
    **_named(
        "ADD SUB MUL DIV FLOOR_DIV=floor_divide FLOOR_MOD=remainder MAXIMUM MINIMUM POW SQUARED_DIFFERENCE ATAN2"
        " EQUAL=eq NOT_EQUAL=ne LESS=lt LESS_EQUAL=le GREATER=gt GREATER_EQUAL=ge LOGICAL_AND LOGICAL_OR BITWISE_XOR"
        " RIGHT_SHIFT=bitwise_right_shift",
        inputs=2,
    ),
    **_named("SELECT=where SELECT_V2=where", inputs=3),
    **_named(
        "ADD_N ABS NEG EXP LOG SQRT RSQRT SQUARE SIN COS CEIL FLOOR ROUND SIGN LOGICAL_NOT CAST BITCAST=cast QUANTIZE"
        " DEQUANTIZE FAKE_QUANT=fake_quantize"
    ),
    # Pooling, resizing, joining
    "AVERAGE_POOL_2D": Entry("avg_pool2d", (), None, _pool_attrs, "Pool2DOptions"),
    "MAX_POOL_2D": Entry("max_pool2d", (), None, _pool_attrs, "Pool2DOptions"),
    "L2_POOL_2D": Entry("l2_pool2d", (), None, _pool_attrs, "Pool2DOptions"),
    **_named("RESIZE_BILINEAR=upsample_bilinear2d RESIZE_NEAREST_NEIGHBOR=upsample_nearest2d", settings=(1,)),
    **_named("DEPTH_TO_SPACE SPACE_TO_DEPTH CONCATENATION=concat PACK=concat"),
    # Reductions
    **_named(
        "MEAN SUM REDUCE_MAX=amax REDUCE_MIN=amin REDUCE_PROD=prod REDUCE_ANY=any REDUCE_ALL=all ARG_MAX=argmax"
        " ARG_MIN=argmin CUMSUM TOPK_V2=topk",
        settings=(1,),
    ),
    # Same values in new bytes
    **_named("RESHAPE", settings=(1,), inputs=1),
    **_named(
        "EXPAND_DIMS=unsqueeze TRANSPOSE PAD MIRROR_PAD=pad TILE REVERSE_V2=flip BROADCAST_TO=expand_copy",
        settings=(1,),
    ),
    **_named("PADV2=pad", settings=(1,), inputs=3),
    **_named("SQUEEZE UNPACK=unbind"),
    **_named("SLICE BATCH_TO_SPACE_ND=batch_to_space SPACE_TO_BATCH_ND=space_to_batch", settings=(1, 2)),
    **_named("STRIDED_SLICE=slice", settings=(1, 2, 3)),
    **_named("SPLIT", settings=(0,), inputs=2),
    **_named("SPLIT_V=split", settings=(1, 2)),
    **_named("DYNAMIC_UPDATE_SLICE=slice_scatter", settings=(2,)),
    **_named("GATHER GATHER_ND", settings=(1,)),
    **_named("SCATTER_ND", settings=(0, 2)),
    **_named("ONE_HOT", settings=(1, 2, 3)),
    # Values from nothing
    **_named("SHAPE RANK ZEROS_LIKE"),
    **_named("FILL=full", settings=(0,), inputs=2),
    **_named("RANGE=arange", settings=(0, 1, 2)),
    **_named("BROADCAST_ARGS", settings=(0, 1)),
    # State and control flow
    **_named("VAR_HANDLE", inputs=0),
    **_named("READ_VARIABLE IF"),
    **_named("WHILE", outputs=0),
    **_named("ASSIGN_VARIABLE", inputs=2, outputs=0),
    **_named("CALL_ONCE", inputs=0, outputs=0),
}
"""Builtin operator, by the schema's name → what memfit knows of it."""

CUSTOM_OPERATORS: dict[str, Entry] = {
    "CIRCULAR_BUFFER": Entry("circular_buffer"),
    "TFLite_Detection_PostProcess": Entry("nms"),
    "TFLM_DECODE": Entry("decode"),
    **_named(
        "SignalDelay=signal_delay SignalEnergy=signal_energy SignalFftAutoScale=fft_auto_scale"
        " SignalFilterBank=filter_bank SignalFilterBankLog=filter_bank_log"
        " SignalFilterBankSpectralSubtraction=filter_bank_spectral_subtraction"
        " SignalFilterBankSquareRoot=filter_bank_square_root SignalFramer=signal_framer SignalIrfft=fft"
        " SignalOverlapAdd=overlap_add SignalPCAN=pcan SignalRfft=fft SignalStacker=signal_stacker"
        " SignalWindow=signal_window"
    ),
}
"""TFLM's own custom operators, by the name that they go by in a file."""

ACTIVATIONS = {1: "relu", 2: "hardtanh", 3: "relu6", 4: "tanh", 5: "sign"}
"""ActivationFunctionType of the schema: the activation that an operator does along with its work."""
