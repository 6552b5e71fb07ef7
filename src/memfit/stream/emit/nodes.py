"""A network's operators as patching sees them: windows over images, and paddings that belong to a convolution.

Values are the model's tensors, by their index. A PAD that only feeds a convolution of the same scale and zero point is
part of that convolution: without a constant of its own, PAD writes the zero point, which adds nothing to a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.kernels.kernel import constant
from memfit.memory.tflm.builds import ALIGNMENT, align_up
from memfit.memory.tflm.calls import tensor_bytes

SAME, VALID = 0, 1
"""Padding of the schema."""

TYPES = frozenset({"INT8", "INT16", "FLOAT32"})
"""What patches are computed in: each output is summed by itself, in one order, and zeros may be added to the sum."""

ONLY_TYPES = f"patches are of {', '.join(sorted(TYPES))} only"

_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
_GROWING = "TRANSPOSE_CONV"
_POOLS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D"})
_JOINS = frozenset({"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"})
_POINTS = frozenset(
    {"ABS", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "QUANTIZE", "RELU", "RELU6", "RSQRT", "TANH"}
)  # fmt: skip
IN_PLACE = _JOINS | _POINTS
"""Operators whose kernels read an element before they write the one at its place."""


class Window(NamedTuple):
    """How an operator takes its input along one axis."""

    kernel: int
    """From the first element read to the last, dilation included."""
    stride: int
    before: int
    """Padding before the first element."""
    length: int
    """Of the input."""
    outputs: int
    grows: bool = False
    """Of a transposed convolution: one with this window would make the input from the output."""

    def needs(self, first: int, end: int) -> tuple[int, int]:
        """Give what of the input outputs `[first, end)` read, without padding.

        >>> Window(3, 2, 1, 8, 4).needs(0, 2), Window(3, 2, 1, 8, 4).needs(3, 4)
        ((0, 4), (5, 8))
        >>> Window(3, 2, 0, 4, 8, grows=True).needs(0, 2), Window(3, 2, 0, 4, 8, grows=True).needs(2, 4)
        ((0, 1), (0, 2))
        """
        high = (end - 1) * self.stride - self.before + self.kernel
        if self.grows:
            high = (end - 1 + self.before) // self.stride + 1
        return max(self.first(first), 0), min(high, self.length)

    def first(self, output: int) -> int:
        """Give the first input that an output reads, below 0 in the padding."""
        if self.grows:
            return -((self.kernel - 1 - self.before - output) // self.stride)
        return output * self.stride - self.before


POINT = "point"
WINDOW = "window"
JOIN = "join"
TURN = "turn"


@dataclass(frozen=True)
class Node:
    """One operator, with the PAD before it if that is part of it."""

    index: int
    operators: tuple[int, ...]
    """Of the model: the operator itself last."""
    operator: Operator
    inputs: tuple[int, ...]
    """Values read, each once, without constants."""
    outputs: tuple[int, ...]
    kind: str | None
    """POINT, WINDOW, JOIN or TURN; None for what is not cut into patches."""
    reason: str | None
    """Why it is not cut; None if it can be."""
    rows: Window | None
    columns: Window | None
    macs: int
    """Multiply-accumulates of the whole output."""

    @property
    def output(self) -> int:
        """Value made; the first of several."""
        return self.outputs[0]


class Image(NamedTuple):
    """A value of four dimensions, batch 1."""

    height: int
    width: int
    channels: int
    itemsize: int
    row_axis: int
    """1, or 2 where channels stand first."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of one channel's, where channels stand first."""
        return self.width * self.itemsize * (self.channels if self.row_axis == 1 else 1)


class Network(NamedTuple):
    """All nodes of a model's main subgraph, in order."""

    model: TfliteModel
    nodes: tuple[Node, ...]
    images: dict[int, Image]
    """By value, of those that are images."""
    nbytes: dict[int, int]
    """By value, in the arena."""
    last: dict[int, int]
    """By value, the node that reads it last; one past the last node for outputs."""
    maker: dict[int, int]
    """By value, the node that makes it; -1 for inputs."""

    def live(self, position: int) -> list[int]:
        """Give the values that live across the cut before node `position`."""
        return [v for v, made in self.maker.items() if made < position <= self.last[v]]


def network_of(model: TfliteModel) -> Network:
    """Make the nodes of a model."""
    main = model.main
    makers = {o: operator.index for operator in main.operators for o in operator.outputs}
    readers: dict[int, list[int]] = {}
    for operator in main.operators:
        for i in dict.fromkeys(operator.inputs):
            readers.setdefault(i, []).append(operator.index)
    for o in main.outputs:
        readers.setdefault(o, []).append(len(main.operators))
    turned = {
        operator.inputs[0]
        for operator in main.operators
        if operator.name == "TRANSPOSE" and _permutation(model, operator) == (0, 2, 3, 1)
    }
    turned = {i for i in turned if i in main.inputs and len(readers[i]) == 1}
    folded = {
        operator.index for operator in main.operators if operator.name == "PAD" and _folds(model, operator, readers)
    }
    images = {}
    for i in {*makers, *main.inputs}:
        tensor = main.tensors[i]
        if len(tensor.shape) == 4 and tensor.shape[0] == 1:
            _, a, b, c = tensor.shape
            itemsize = tensor_bytes(tensor) // max(tensor.elements, 1)
            images[i] = Image(b, c, a, itemsize, 2) if i in turned else Image(a, b, c, itemsize, 1)
    nodes: list[Node] = []
    for operator in main.operators:
        if operator.index in folded:
            continue
        before = makers.get(operator.inputs[0], -1) if operator.inputs else -1
        padding = main.operators[before] if before in folded else None
        nodes.append(_node(model, len(nodes), operator, padding, images))
    maker = dict.fromkeys(main.inputs, -1)
    last = dict.fromkeys(main.inputs, -1)
    for node in nodes:
        for o in node.outputs:
            maker[o] = last[o] = node.index
        for i in node.inputs:
            last[i] = node.index
    last.update(dict.fromkeys((o for o in main.outputs if o in maker), len(nodes)))
    nbytes = {v: align_up(tensor_bytes(main.tensors[v]), ALIGNMENT) for v in maker}
    return Network(model, tuple(nodes), images, nbytes, last, maker)


def _permutation(model: TfliteModel, operator: Operator) -> tuple[int, ...]:
    tensor = model.main.tensors[operator.inputs[1]]
    return tuple(int(n) for n in constant(model, tensor).ravel()) if tensor.is_constant else ()


def _quantization(tensor: TfliteTensor) -> tuple[object, object]:
    q = tensor.quantization
    return (q.scales, q.zero_points) if q else ((), ())


def _paddings(model: TfliteModel, operator: Operator) -> list[list[int]] | None:
    tensor = model.main.tensors[operator.inputs[1]]
    if not tensor.is_constant:
        return None
    found = constant(model, tensor)
    return [[int(n) for n in pair] for pair in found] if found.shape == (4, 2) else None


def _folds(model: TfliteModel, operator: Operator, readers: dict[int, list[int]]) -> bool:
    """Tell whether a PAD can be part of the one convolution that reads it."""
    main, out = model.main, operator.outputs[0]
    after = readers.get(out, [])
    if len(after) != 1 or after[0] >= len(main.operators) or len(operator.inputs) != 2:
        return False
    reader, tensor = main.operators[after[0]], main.tensors[operator.inputs[0]]
    around = _paddings(model, operator)
    return (
        reader.name in _CONVOLUTIONS
        and reader.inputs[0] == out
        and reader.options.get("padding") == VALID
        and tensor.type in TYPES
        and _quantization(tensor) == _quantization(main.tensors[out])
        and around is not None
        and around[0] == around[3] == [0, 0]
    )


def _node(
    model: TfliteModel, index: int, operator: Operator, padding: Operator | None, images: dict[int, Image]
) -> Node:
    tensors = model.main.tensors
    read = [padding.inputs[0] if padding and k == 0 else i for k, i in enumerate(operator.inputs)]
    inputs = tuple(i for i in dict.fromkeys(read) if i >= 0 and not tensors[i].is_constant)
    numbers = (*((padding.index,) if padding else ()), operator.index)
    found = _kind(model, operator, padding, inputs, images)
    reason, kind, rows, columns = (found, None, None, None) if isinstance(found, str) else (None, *found)
    return Node(
        index, numbers, operator, inputs, operator.outputs, kind, reason, rows, columns, _macs(model, operator)
    )  # fmt: skip


def _macs(model: TfliteModel, operator: Operator) -> int:
    tensors = model.main.tensors
    if operator.name == "FULLY_CONNECTED":
        return tensors[operator.outputs[0]].elements * tensors[operator.inputs[1]].shape[-1]
    if operator.name == _GROWING:
        return tensors[operator.inputs[2]].elements * math.prod(tensors[operator.inputs[1]].shape[:3])
    if operator.name not in _CONVOLUTIONS:
        return 0
    filter = tensors[operator.inputs[1]].shape
    each = math.prod(filter[1:]) if operator.name == "CONV_2D" else math.prod(filter[1:3])
    return tensors[operator.outputs[0]].elements * each


Found = tuple[str, Window, Window]


def _kind(
    model: TfliteModel, operator: Operator, padding: Operator | None, inputs: tuple[int, ...], images: dict[int, Image]
) -> Found | str:
    """Give kind and windows of an operator that can be cut, or the reason why it cannot."""
    tensors = model.main.tensors
    if operator.is_custom or len(operator.outputs) != 1:
        return "it is not known to work on parts of an image"
    out = operator.outputs[0]
    y = images.get(out)
    if y is None or not inputs or any(i not in images for i in inputs):
        return "it is not from image to image, one at a time"
    if any(tensors[i].type not in TYPES or tensors[i].is_variable for i in (*inputs, out)):
        return ONLY_TYPES
    x = images[inputs[0]]
    name = operator.name
    same_rows, same_columns = Window(1, 1, 0, y.height, y.height), Window(1, 1, 0, y.width, y.width)
    if name in _CONVOLUTIONS or name in _POOLS or name == _GROWING:
        if len(inputs) != 1:
            return "its weights are made at run time"
        return _window(model, operator, padding, x, y)
    if name == "TRANSPOSE":
        if x.row_axis == 2 and (x.height, x.width, x.channels) == (y.height, y.width, y.channels):
            return TURN, same_rows, same_columns
        return "it puts rows or columns in another place"
    if name in _POINTS or name in _JOINS or name == "CONCATENATION":
        if any((images[i].height, images[i].width) != (y.height, y.width) for i in inputs):
            return "its inputs are not of one size"
        if name == "CONCATENATION":
            if operator.options.get("axis", 0) % 4 != 3 or len(operator.inputs) != len(inputs):
                return "it does not join channels"
        elif any(images[i].channels != y.channels for i in inputs):
            return "it spreads channels"
        others = [tensors[i] for i in operator.inputs if i >= 0 and tensors[i].is_constant]
        if any(math.prod(tensor.shape[:-1]) != 1 for tensor in others):
            return "its constant has a value for each place"
        return (POINT if len(inputs) == 1 and len(operator.inputs) == 1 else JOIN), same_rows, same_columns
    return "patches of it are not made"


def _window(model: TfliteModel, operator: Operator, padding: Operator | None, x: Image, y: Image) -> Found | str:
    option = operator.options
    grows = operator.name == _GROWING
    if operator.name in _CONVOLUTIONS or grows:
        shape = model.main.tensors[operator.inputs[1]].shape
        sizes = (shape[1], shape[2])
    else:
        sizes = (option["filter_height"], option["filter_width"])
    around = _paddings(model, padding) if padding else None
    found = []
    for axis, (size, length, outputs) in enumerate(zip(sizes, (x.height, x.width), (y.height, y.width), strict=True)):
        stride = option.get(("stride_h", "stride_w")[axis], 1)
        dilation = option.get(("dilation_h_factor", "dilation_w_factor")[axis], 1)
        kernel = (size - 1) * dilation + 1
        if around is not None:
            before = around[1 + axis][0]
        else:
            before = fit(outputs if grows else length, kernel, stride, option.get("padding", SAME))[1]
        found.append(Window(kernel, stride, before, length, outputs, grows))
    if grows:
        same = option.get("padding", SAME) == SAME
        if any(w.outputs != (w.length * w.stride if same else (w.length - 1) * w.stride + w.kernel) for w in found):
            return "its output is not as large as its input makes it"
        return WINDOW, found[0], found[1]
    if found[0].kernel > x.height + 2 * found[0].before or found[0].outputs == 1:
        return "it takes the whole image at once"
    return WINDOW, found[0], found[1]


def fit(length: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Give how many outputs a kernel has on so many elements, and the padding before the first.

    Source: ComputePaddingHeightWidth, tensorflow/lite/kernels/padding.h.

    >>> fit(8, 3, 2, SAME), fit(9, 3, 2, SAME), fit(9, 3, 2, VALID)
    ((4, 0), (5, 1), (4, 0))
    """
    if padding == VALID:
        return (length - kernel + stride) // stride, 0
    outputs = -(-length // stride)
    return outputs, max((outputs - 1) * stride + kernel - length, 0) // 2
