"""The table of TFLM's reference kernels: what each asks of the arena.

Read from tensorflow/lite/micro/kernels at commit 90b983c2 (2026-08-20), one file per operator, and compared with every
request that the wheel 0.dev20261023182759 makes (a debugger's trace of AllocatePersistentBuffer, AllocateTemp and
RequestScratchBufferInArena). Optimised kernels (CMSIS-NN, Xtensa, Ethos-U …) have other operator data and ask for
more scratch: they are not in this table.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

from memfit.formats.tflite import Operator, TfliteModel
from memfit.memory.tflm.builds import EVAL_TENSOR, POINTER, Sizes, int_array
from memfit.memory.tflm.calls import Call, Event, Keep, Kernel, Prepare, Scratch, elements, tensor_bytes

TABLE = "KERNELS in memfit/memory/tflm/operators.py"

_INTEGER = ("INT8", "INT16")


def _holds(names: str) -> Prepare:
    """Prepare that only looks at tensors, by position."""
    return lambda call: iter(call.hold(names))


def _all_inputs(before: str) -> Prepare:
    """Prepare that looks at some tensors and then at every input."""

    def prepare(call: Call) -> Iterator[Event]:
        yield from call.hold(before)
        yield from call.hold(" ".join(f"i{k}" for k in range(len(call.inputs))))

    return prepare


def _per_channel(channels: int) -> Iterator[Keep]:
    """Multiplier and shift of each output channel."""
    yield Keep(4 * channels, "per-channel multipliers")
    yield Keep(4 * channels, "per-channel shifts")


def _unpacked(call: Call) -> Iterator[Scratch]:
    """Room for a 4-bit filter unpacked to bytes."""
    if call.input(1).type == "INT4":
        yield Scratch(call.input(1).elements, "unpacked filter")


def _dimension(call: Call, number: int, dimension: int) -> int:
    shape = call.input(number).shape
    return shape[dimension] if len(shape) > dimension else 1


def _conv(call: Call) -> Iterator[Event]:
    """kernels/conv_common.cc; float asks for per-channel buffers too."""
    yield from call.hold("o0 i0 i1")
    yield from _per_channel(_dimension(call, 1, 0))
    yield from call.hold("i0 i1 i2 o0")
    yield from _unpacked(call)


def _depthwise(call: Call) -> Iterator[Event]:
    """kernels/depthwise_conv_common.cc."""
    yield from call.hold("o0 i0 i1")
    yield from _per_channel(_dimension(call, 1, 3))
    yield from _unpacked(call)
    yield from call.hold("i0 i1 i2 o0")


def _transpose_conv(call: Call) -> Iterator[Event]:
    """kernels/transpose_conv.cc; input 0 is the output's shape and is not looked at."""
    yield from call.hold("o0 i2 i1")
    yield from _per_channel(_dimension(call, 1, 0))
    kind, count = call.input(2).type, call.output().elements
    if kind in _INTEGER:
        yield Scratch(count * (4 if kind == "INT8" else 8), "accumulators")
    if kind != "FLOAT32":
        yield from call.hold("i2 i1 i3 o0")
        bias = call.inputs[3] if len(call.inputs) > 3 else None
        if kind == "INT16" and bias is not None and bias.type == "INT16":
            yield Scratch(8 * bias.elements, "bias of 64 bits")


def _fully_connected(call: Call) -> Iterator[Event]:
    """kernels/fully_connected.cc, fully_connected_common.cc."""
    yield from call.hold("i0 i1 i2 o0")
    yield from _unpacked(call)
    quantization = call.input(1).quantization
    if call.input(0).type != "FLOAT32" and quantization is not None and len(quantization.scales) > 1:
        yield from _per_channel(len(quantization.scales))


def _softmax(call: Call) -> Iterator[Event]:
    """kernels/softmax_common.cc: two tables of 513 entries for 16-bit input."""
    yield from call.hold("i0 o0")
    if call.input(0).type == "INT16":
        yield Keep(2 * 513, "exponential table")
        yield Keep(2 * 513, "reciprocal table")


def _reshape(call: Call) -> Iterator[Event]:
    """kernels/reshape_common.cc: an output shape with a size left open is written anew."""
    yield from call.hold("i0 o0")
    if any(size < 0 for size in call.output().shape):
        yield Keep(int_array(len(call.output().shape)), "output shape")


def _mean_or_sum(call: Call) -> Iterator[Event]:
    """PrepareMeanOrSumHelper, kernels/reduce_common.cc."""
    kind = call.input(0).type
    yield from call.hold("i0 o0 i1")
    if kind in _INTEGER:
        yield Scratch(4 * call.output().elements, "sums")
    yield from _reduced(call)
    yield from call.hold("i0 i1 o0" if kind == "INT8" else "i0 i1")


def _reduce_max(call: Call) -> Iterator[Event]:
    """PrepareMinMaxHelper, kernels/reduce_common.cc."""
    yield from call.hold("i0 i1 o0" if call.input(0).type == "INT8" else "i0 i1")
    yield from call.hold("i0 o0 i1")
    yield from _reduced(call)


def _reduced(call: Call) -> Iterator[Scratch]:
    yield Scratch(4 * len(call.input(0).shape), "index of the element")
    yield Scratch(4 * call.input(1).elements, "resolved axes")


def _svdf(call: Call) -> Iterator[Event]:
    """kernels/svdf_common.cc."""
    yield from call.hold("i0 i1 i2 i3 i4 o0")
    batch, filters = _dimension(call, 0, 0), _dimension(call, 1, 0)
    yield Scratch(4 * batch * filters, "filter outputs")
    if call.input(0).type == "INT8":
        yield Scratch(4 * batch * (filters // max(1, int(call.operator.options.get("rank", 1)))), "unit outputs")


def _lstm(call: Call) -> Iterator[Event]:
    """kernels/unidirectional_sequence_lstm.cc, lstm_shared.h: inputs that are left out take nothing."""
    yield from _all_inputs("")(call)
    yield from call.hold("o0")
    state = call.input(_LSTM_CELL_STATE)
    for gate in ("forget gate", "input gate", "cell gate", "output gate"):
        yield Scratch(tensor_bytes(state), gate)


_LSTM_CELL_STATE = 19
"""kLstmCellStateTensor, kernels/lstm_shared.h."""


def _batch_matmul(call: Call) -> Iterator[Event]:
    """kernels/batch_matmul.cc: operands are transposed into buffers of their own."""
    yield from call.hold("i0 i1 o0")
    if call.input(0).type in _INTEGER:
        yield Keep(28, "quantization")
    for number, transposed in ((0, call.option("adj_x")), (1, not call.option("adj_y"))):
        if transposed:
            operand = call.input(number)
            yield Keep(call.build.size(EVAL_TENSOR), "transposed operand")
            yield Keep(int_array(len(operand.shape)), "transposed operand's shape")
            yield Keep(elements(operand.shape) * (tensor_bytes(operand) // max(1, operand.elements)), "operand")
    yield Keep(int_array(len(call.output().shape)), "output shape")


def _add_n(call: Call) -> Iterator[Event]:
    """kernels/add_n.cc: a list of pointers to the inputs."""
    yield from _all_inputs("o0")(call)
    if call.output().type == "INT8":
        yield Keep(40, "multipliers")
    yield Scratch(call.build.pointer * len(call.inputs), "pointers to inputs")


def _cumsum(call: Call) -> Iterator[Event]:
    """kernels/cumsum.cc."""
    yield from call.hold("i0 i1 o0")
    if call.output().type == "INT8":
        yield Keep(36, "multipliers")


def _log_softmax(call: Call) -> Iterator[Event]:
    """kernels/log_softmax.cc: five numbers and two of type size_t."""
    yield from call.hold("i0 o0")
    if call.input(0).type == "INT8":
        yield Keep(call.build.size(Sizes(40, 40, 28, 28)), "multipliers")


def _new_shape(names: str) -> Prepare:
    """Prepare that looks at tensors and writes the output's shape anew (CreateWritableTensorDimsWithCopy)."""

    def prepare(call: Call) -> Iterator[Event]:
        yield from call.hold(names)
        yield Keep(int_array(len(call.output().shape)), "output shape")

    return prepare


def _embedding_lookup(call: Call) -> Iterator[Event]:
    """kernels/embedding_lookup.cc: a scale and a size_t."""
    yield from _new_shape("i0 i1 o0")(call)
    yield Keep(call.build.size(Sizes(16, 16, 8, 8)), "scale and columns")


def _mirror_pad(call: Call) -> Iterator[Event]:
    """kernels/mirror_pad.cc."""
    yield from call.hold("i0 i1 o0")
    yield Scratch(4 * len(call.input(0).shape), "elements of the input by dimension")
    yield Scratch(4 * len(call.output().shape), "elements of the output by dimension")


def _assign_variable(call: Call) -> Iterator[Event]:
    """kernels/assign_variable.cc: the first assignment to a resource variable makes room for its value."""
    yield from call.hold("i1")
    name = _resource(call.model, call.subgraph, call.operator.inputs)
    for subgraph in call.model.subgraphs:
        for operator in subgraph.operators:
            if operator.name == call.operator.name and (
                name is not None and _resource(call.model, subgraph.index, operator.inputs) == name
            ):
                if (subgraph.index, operator.index) == (call.subgraph, call.operator.index):
                    yield Keep(tensor_bytes(call.input(1)), "resource variable")
                return


def _resource(model: TfliteModel, subgraph: int, inputs: tuple[int, ...]) -> tuple[str, str] | None:
    """Name the resource variable that a handle stands for; None where another subgraph hands it in."""
    for operator in model.subgraphs[subgraph].operators:
        if operator.name == "VAR_HANDLE" and inputs and inputs[0] in operator.outputs:
            return resource_name(operator)
    return None


def resource_name(operator: Operator) -> tuple[str, str]:
    """Container and name of the variable that a VAR_HANDLE stands for."""
    return str(operator.options.get("container", "")), str(operator.options.get("shared_name", ""))


def _same(nbytes: int) -> Sizes:
    return Sizes(nbytes, nbytes, nbytes, nbytes)


def _enums(count: int) -> Sizes:
    """Parameters that are enums, or enums and truth values, and nothing else."""
    return Sizes(4 * count, 4 * count, 4 * count, count)


_POOL = Kernel(_holds("i0 o0"), _same(40), _same(32))
_PAD = Kernel(_holds("i0 i1 i2 o0"), None, _same(56))
_RESIZE = Kernel(_holds("i0 i1 o0"), _same(2))
_UNARY = Kernel(_holds("i0 o0"))
_BINARY = Kernel(_holds("i0 i1 o0"))
_COMPARISON = Kernel(_holds("i0 i1"), None, _same(32))
_RESCALED = Kernel(_holds("i0 o0"), None, Sizes(28, 28, 28, 20))
_NOTHING = Kernel(_holds(""))

KERNELS = MappingProxyType(
    {
        "CONV_2D": Kernel(_conv, _same(28), Sizes(80, 72, 56, 56)),
        "DEPTHWISE_CONV_2D": Kernel(_depthwise, _same(28), Sizes(80, 72, 56, 56)),
        "TRANSPOSE_CONV": Kernel(_transpose_conv, Sizes(20, 20, 20, 16), Sizes(88, 80, 72, 72)),
        "FULLY_CONNECTED": Kernel(_fully_connected, Sizes(32, 32, 24, 16), Sizes(72, 64, 48, 48), POINTER),
        "BATCH_MATMUL": Kernel(_batch_matmul, _same(3), Sizes(32, 32, 16, 16)),
        "SVDF": Kernel(_svdf, Sizes(12, 12, 12, 8), _same(36)),
        "UNIDIRECTIONAL_SEQUENCE_LSTM": Kernel(_lstm, _same(16), _same(688)),
        "AVERAGE_POOL_2D": _POOL,
        "MAX_POOL_2D": _POOL,
        "SOFTMAX": Kernel(_softmax, _same(4), Sizes(80, 80, 56, 56)),
        "ADD": Kernel(_holds("i0 i1 o0"), Sizes(8, 8, 8, 2), _same(60)),
        "SUB": Kernel(_holds("i0 i1 o0"), Sizes(8, 8, 8, 2), _same(52)),
        "MUL": Kernel(_holds("i0 i1 o0"), Sizes(4, 4, 4, 1), _same(36)),
        "RESHAPE": Kernel(_reshape, _same(36)),
        "PAD": _PAD,
        "PADV2": _PAD,
        "MEAN": Kernel(_mean_or_sum, _same(1), _same(44)),
        "SUM": Kernel(_mean_or_sum, _same(1), _same(44)),
        "REDUCE_MAX": Kernel(_reduce_max, _same(1), _same(44)),
        "TRANSPOSE": Kernel(_holds("i0 i1 o0")),
        "SLICE": Kernel(_holds("i0 i1 i2 o0")),
        "STRIDED_SLICE": Kernel(_holds("i0 i1 i2 i3 o0"), _same(24), _same(84)),
        "QUANTIZE": Kernel(_holds("i0 o0"), None, _same(32)),
        "DEQUANTIZE": Kernel(_holds("i0 o0"), None, _same(32)),
        "CONCATENATION": Kernel(_all_inputs("i0 o0"), _same(8), Sizes(80, 40, 24, 24)),
        "LOGISTIC": Kernel(_holds("i0 o0"), None, _same(16)),
        "TANH": Kernel(_holds("i0 i0 o0"), None, _same(16)),
        "RELU": Kernel(_holds("i0 o0"), None, _same(28)),
        "RELU6": Kernel(_holds("i0"), None, _same(8)),
        "LEAKY_RELU": Kernel(_holds("i0 o0"), _same(4), _same(24)),
        "HARD_SWISH": Kernel(_holds("i0 o0"), None, _same(20)),
        "RESIZE_NEAREST_NEIGHBOR": _RESIZE,
        "RESIZE_BILINEAR": _RESIZE,
        "SPLIT": Kernel(_holds("i0"), _same(4)),
        "PACK": Kernel(_holds(""), _same(8)),
        "UNPACK": Kernel(_holds(""), _same(8)),
        "GATHER": Kernel(_new_shape("i0 i1 o0"), _same(8)),
        # The rest of what the wheel registers; not in the trial that the table began with
        "ADD_N": Kernel(_add_n),
        "ARG_MAX": Kernel(_holds(""), _enums(1)),
        "ARG_MIN": Kernel(_holds(""), _enums(1)),
        "CAST": Kernel(_holds("i0 o0"), _enums(2)),
        "CUMSUM": Kernel(_cumsum, _same(2)),
        "DEPTH_TO_SPACE": Kernel(_new_shape("i0 o0"), _same(4)),
        "SPACE_TO_DEPTH": Kernel(_new_shape("i0 o0"), _same(4)),
        "DIV": Kernel(_holds("i0 i1 o0"), _enums(1), _same(28)),
        "DYNAMIC_UPDATE_SLICE": Kernel(_holds("i0 i1 i2 o0")),
        "ELU": Kernel(_holds("i0 o0"), None, _same(256)),
        "EMBEDDING_LOOKUP": Kernel(_embedding_lookup),
        "GATHER_ND": Kernel(_new_shape("i0 i1 o0")),
        "L2_NORMALIZATION": Kernel(_holds("i0 o0"), _enums(1), _same(4)),
        "L2_POOL_2D": Kernel(_new_shape("i0 o0"), _same(40)),
        "LOG_SOFTMAX": Kernel(_log_softmax),
        "MIRROR_PAD": Kernel(_mirror_pad, _enums(1), _same(20)),
        "PRELU": Kernel(_holds("i0 i1 o0"), None, _same(28)),
        "REDUCE_MIN": Kernel(_reduce_max, _same(1), _same(44)),
        "REDUCE_ALL": Kernel(_reduce_max, _same(1), _same(44)),
        "SELECT_V2": Kernel(_holds("i0 i1 i2 o0"), None, _same(1)),
        "SHAPE": Kernel(_holds(""), _enums(1)),
        "SPACE_TO_BATCH_ND": Kernel(_holds("i0 o0"), None, _same(4)),
        "SPLIT_V": Kernel(_holds("i2"), _same(4)),
        "SQUARED_DIFFERENCE": Kernel(_holds("i0 i1 o0"), None, _same(112)),
        "SQUEEZE": Kernel(_holds("i0 o0"), _same(36)),
        "ABS": _RESCALED,
        "RSQRT": _RESCALED,
        **dict.fromkeys(
            (
                "BATCH_TO_SPACE_ND",
                "CEIL",
                "COS",
                "EXP",
                "LOG",
                "LOGICAL_NOT",
                "ROUND",
                "SIN",
                "SQRT",
                "SQUARE",
                "ZEROS_LIKE",
            ),
            _UNARY,
        ),
        **dict.fromkeys(
            ("BROADCAST_ARGS", "BROADCAST_TO", "EXPAND_DIMS", "FILL", "FLOOR_DIV", "FLOOR_MOD", "REVERSE_V2"), _BINARY
        ),
        **dict.fromkeys(("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"), _COMPARISON),
        **dict.fromkeys(("FLOOR", "NEG", "MAXIMUM", "MINIMUM", "LOGICAL_AND", "LOGICAL_OR"), _NOTHING),
        # State and control flow
        "VAR_HANDLE": Kernel(_holds(""), Sizes(16, 16, 8, 8), _same(4), POINTER),
        "ASSIGN_VARIABLE": Kernel(_assign_variable, None, Sizes(4, 0, 0, 0)),
        "READ_VARIABLE": Kernel(_holds("i0")),
        "CALL_ONCE": Kernel(_holds(""), _same(4), _same(8)),
        "IF": Kernel(_holds("i0"), _same(8), _same(8)),
        "WHILE": Kernel(_holds(""), _same(8), _same(8)),
    }
)
"""Builtin operator, by the schema's name → its kernel."""

CUSTOM_KERNELS = MappingProxyType({"CIRCULAR_BUFFER": Kernel(_holds("i0 o0"), None, _same(8))})
"""TFLM's own custom operators, by the name that they go by in a file."""
