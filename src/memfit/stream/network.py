"""The operators of a network as streaming sees them: which rows and columns of its inputs each output row takes.

One record per operator, made of a `.tflite` file, or of the estimate of one that another source would become. Images
are height, width, channels, whatever the order in which a file keeps them; what is no image has height and width 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from memfit.errors import UsageError
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.graph.model import Graph, Op
from memfit.kernels.kernel import constant, senseless
from memfit.kernels.window import BEFORE, SAME
from memfit.plan.estimate import CAPTURED, as_tflite
from memfit.stream.reach import Reach, Way, bilinear, nearest, same, shifted, slide, transposed, whole, window
from memfit.stream.views import moved

INPUT = -1
"""Producer of what the network is given."""

LONGEST = 1 << 20
"""The most rows or columns of an image that is planned: what has more is no image, but a broken file."""

_BROADCASTS = frozenset(
    {
        "ADD", "SUB", "MUL", "DIV", "ADD_N", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "PRELU", "RELU", "RELU6",
        "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "GELU", "ABS", "RSQRT", "LOGISTIC", "TANH", "HARD_SWISH", "NEG", "SQRT",
        "SQUARE", "EXP", "LOG", "SIN", "COS", "CEIL", "FLOOR", "ROUND", "FLOOR_DIV", "FLOOR_MOD", "QUANTIZE",
        "DEQUANTIZE", "CAST", "SELECT_V2", "EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL",
        "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT",
    }
)  # fmt: skip
"""Element-wise operators."""


@dataclass(frozen=True)
class Value:
    """A tensor made at run time: height, width, channels."""

    index: int
    """Of the tensor in the model."""
    name: str
    height: int
    width: int
    channels: int
    """With the batch, if it is more than one: what lies at one place."""
    itemsize: int
    """Bytes of an element in an arena."""
    producer: int
    """Operator, or INPUT."""
    readers: tuple[int, ...]
    """Operators, in order."""
    leaves: bool
    """True for an output of the network."""
    planar: bool = False
    """True for an input whose channels stand first: where it is whole, the bytes of a row do not lie together."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one row of one column."""
        return self.channels * self.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.pixel_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.height * self.row_bytes


@dataclass(frozen=True)
class StreamOp:
    """One operator."""

    index: int
    kind: str
    """As in TensorFlow Lite's schema: CONV_2D."""
    name: str
    inputs: tuple[int, ...]
    """Values read, each once, without constants."""
    output: int
    """Value made; the first, if there are several."""
    others: tuple[int, ...]
    """Further values made."""
    rows: tuple[Reach, ...]
    """Per input: which rows each row of the output takes; empty if it does not stream."""
    columns: tuple[Reach, ...]
    """Per input: which columns each column of the output takes."""
    macs: int
    """Multiply-accumulates of the whole output."""
    sums: bool
    """True if it adds up its input row by row, and has its output at the end."""
    reason: str | None
    """Why it does not stream; None if it does."""
    origin: int
    """Operator of the network as it was given that it computes: its own index, unless something is computed again."""

    @property
    def streams(self) -> bool:
        """True if it can work row by row."""
        return self.reason is None


@dataclass(frozen=True)
class StreamNetwork:
    """A network's operators in order, and the values that they make and read."""

    model: TfliteModel
    ops: tuple[StreamOp, ...]
    values: dict[int, Value]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    estimated: bool
    """True if the model is an estimate of what the source would become."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the plain run."""
        return sum(op.macs for op in self.ops)

    @cached_property
    def followed(self) -> dict[tuple[int, int], dict[int, int]]:
        """Where rows have been followed: operations `[begin, end)` → value → most rows kept; `Segments` fills it in."""
        return {}


def network_of(graph: Graph) -> StreamNetwork:
    """Make the records of a network, of whatever source.

    >>> network_of(Graph((), (), (), (), (), ())).ops
    ()

    Args:
        graph: of a `.tflite` file, or of any other source: then of the int8 network that it would become.

    Raises:
        UsageError: a graph of training, or a network whose batch is not 1.
    """
    if isinstance(graph.origin, TfliteModel):
        return records(graph.origin)
    model, last = as_tflite(graph), _channels_last(graph)
    found = records(model, last=last, estimated=True)
    captured = [operator.options.get(CAPTURED) for operator in model.main.operators]
    elsewhere = moved(graph, {op.index for op in captured if isinstance(op, Op)}, last=last)
    ops = (
        replace(
            op, rows=(), columns=(), sums=False, reason="its input's rows or columns stand elsewhere in what made it"
        )
        if op.streams and isinstance(source, Op) and source.index in elsewhere
        else op
        for op, source in zip(found.ops, captured, strict=True)
    )
    return replace(found, ops=tuple(ops))


def _channels_last(graph: Graph) -> bool:
    return any(op.attrs.get("layout") == "nhwc" for op in graph.ops)


def records(model: TfliteModel, *, last: bool = True, estimated: bool = False) -> StreamNetwork:
    """Make the records of a model; `last` says that the channels of images stand last."""
    main = model.main
    made = {i: operator.index for operator in main.operators for i in operator.outputs if i >= 0}
    read: dict[int, list[int]] = {}
    for operator in main.operators:
        for i in dict.fromkeys(operator.inputs):
            if i >= 0 and (i in made or i in main.inputs):
                read.setdefault(i, []).append(operator.index)
    turned = {
        operator.inputs[0]
        for operator in main.operators
        if operator.name == "TRANSPOSE"
        and operator.inputs[0] in main.inputs
        and len(read[operator.inputs[0]]) == 1
        and _order(model, operator) == (0, 2, 3, 1)
    }
    values = {}
    for i in sorted({*made, *main.inputs}):
        tensor = main.tensors[i]
        height, width, channels = _area(tensor, last=last and i not in turned)
        itemsize = max(-(-8 * tensor.nbytes // max(tensor.elements, 1)) + 7, 8) // 8
        values[i] = Value(
            i, tensor.name, height, width, channels, itemsize, made.get(i, INPUT), tuple(read.get(i, ())),
            i in main.outputs, i in turned,
        )  # fmt: skip
    tallest = max(values.values(), key=lambda value: max(value.height, value.width), default=None)
    if tallest is not None and max(tallest.height, tallest.width) > LONGEST:
        raise UsageError(
            f"an image has more than {LONGEST:,} rows or columns",
            where=f"{model.source}, tensor {tallest.index} ({tallest.name})",
            received=f"{tallest.height:,} by {tallest.width:,}",
            todo="check how the model was made",
        )
    for i in main.inputs:
        shape = main.tensors[i].shape
        if len(shape) == 4 and shape[0] != 1:
            raise UsageError(
                "streaming plans one image at a time",
                where=model.source,
                received=f"batch {shape[0]}",
                todo="give an input with batch 1",
            )
    work = _captured_macs(model) if estimated else [_macs(model, operator) for operator in main.operators]
    ops = tuple(
        _operator(model, operator, values, macs, last=last) for operator, macs in zip(main.operators, work, strict=True)
    )
    return StreamNetwork(model, ops, values, main.inputs, main.outputs, estimated)


def _area(tensor: TfliteTensor, *, last: bool) -> tuple[int, int, int]:
    if len(tensor.shape) != 4:
        return 1, 1, tensor.elements
    n, a, b, c = tensor.shape
    return (a, b, n * c) if last else (b, c, n * a)


def _order(model: TfliteModel, operator: Operator) -> tuple[int, ...] | None:
    tensor = model.main.tensors[operator.inputs[1]] if len(operator.inputs) > 1 else None
    if tensor is None or not tensor.is_constant or CAPTURED in operator.options:
        return None
    return tuple(int(i) for i in constant(model, tensor).ravel())


Parts = tuple[tuple[Reach, ...], tuple[Reach, ...]]


class _Refusal(Exception):
    """Why an operator does not stream."""


@dataclass(frozen=True)
class _Site:
    """An operator with what it touches at hand."""

    model: TfliteModel
    operator: Operator
    inputs: tuple[Value, ...]
    output: Value
    last: bool

    @property
    def captured(self) -> Op | None:
        found = self.operator.options.get(CAPTURED)
        return found if isinstance(found, Op) else None

    def option(self, name: str, default: Any) -> Any:
        return self.operator.options.get(name, default)

    def windows(self, kernel: tuple[int, int]) -> tuple[Way, Way]:
        """Give kernel, stride, dilation and padding of rows and of columns."""
        op = self.captured
        if op is None:
            padding = "same" if self.option("padding", SAME) == SAME else "valid"
            above, left = self.option(BEFORE, (padding, padding))
            return (
                (kernel[0], self.option("stride_h", 1), self.option("dilation_h_factor", 1), above),
                (kernel[1], self.option("stride_w", 1), self.option("dilation_w_factor", 1), left),
            )
        found = []
        for name, default in (("kernel", kernel), ("stride", 1), ("dilation", 1)):
            found.append(_pair(op.attrs.get(name, default)))
        given = op.attrs.get("padding")
        before: tuple[Any, Any] = (given, given) if given is None or isinstance(given, str) else _pair(given)
        return (
            (found[0][0], found[1][0], found[2][0], before[0]),
            (found[0][1], found[1][1], found[2][1], before[1]),
        )


def _pair(given: Any) -> tuple[int, int]:
    """Read a value for rows and columns: a number, one per direction, or paddings before and after.

    >>> _pair(3), _pair((2, 1)), _pair((0, 1, 2, 3)), _pair((5,))
    ((3, 3), (2, 1), (0, 1), (1, 5))
    """
    if isinstance(given, int):
        return given, given
    given = tuple(given)
    return (1, int(given[0])) if len(given) == 1 else (int(given[0]), int(given[1]))


def _both(site: _Site, reach: Callable[[int, int], Reach]) -> Parts:
    x, y = site.inputs[0], site.output
    return (reach(x.height, y.height),), (reach(x.width, y.width),)


def _window(site: _Site, kernel: tuple[int, int]) -> Parts:
    x, y = site.inputs[0], site.output
    down, across = site.windows(kernel)
    return (
        (window(slide(x.height, y.height, down), y.height),),
        (window(slide(x.width, y.width, across), y.width),),
    )


def _convolution(site: _Site) -> Parts:
    shape = site.model.main.tensors[site.operator.inputs[1]].shape
    if len(shape) != 4:
        raise _Refusal("its weights are no image filter")
    return _window(site, (shape[1], shape[2]))


def _pool(site: _Site) -> Parts:
    kernel = (site.option("filter_height", 1), site.option("filter_width", 1))
    return _window(site, kernel)


def _pool_of_all(site: _Site) -> Parts:
    """AVERAGE_POOL_2D whose window is the image."""
    x = site.inputs[0]
    rows, columns = _pool(site)
    if rows != (whole(x.height, 1),) or columns != (whole(x.width, 1),):
        raise _Refusal("its output is one pixel")
    _check_sums(site)
    return rows, columns


def _adaptive(length: int, outputs: int) -> Reach:
    """Windows of adaptive pooling: from ⌊i·n/m⌋ to ⌈(i + 1)·n/m⌉."""
    spans = tuple((i * length // outputs, -(-(i + 1) * length // outputs)) for i in range(outputs))
    return Reach(spans, length)


def _element_wise(site: _Site) -> Parts:
    y = site.output
    rows: list[Reach] = []
    columns: list[Reach] = []
    for x in site.inputs:
        for length, made, into in ((x.height, y.height, rows), (x.width, y.width, columns)):
            if length not in (made, 1):
                raise _Refusal("its inputs are not of one size")
            into.append(same(made) if length == made else whole(1, made))
    return tuple(rows), tuple(columns)


def _concatenation(site: _Site) -> Parts:
    if any((x.height, x.width) != (site.output.height, site.output.width) for x in site.inputs):
        raise _Refusal("it does not join channels")
    return _element_wise(site)


def _pad(site: _Site) -> Parts:
    x, y = site.inputs[0], site.output
    if site.captured is not None:
        if not site.captured.target.startswith("aten.constant_pad_nd"):
            raise _Refusal("it pads with what its image holds, or memfit does not know with what")
        given = next((entry for entry in site.captured.args[1:2] if isinstance(entry, tuple)), ())
        if not 2 <= len(given) <= 4 or site.last:
            raise _Refusal("where it pads is not known before the conversion")
        top, left = int(given[2]) if len(given) > 2 else 0, int(given[0])
    else:
        if not site.model.main.tensors[site.operator.inputs[1]].is_constant:
            raise _Refusal("its paddings are made at run time")
        if len(site.model.main.tensors[x.index].shape) != 4:
            raise _Refusal("it pads no image")
        top, left = paddings(site.model, site.operator)
    return (shifted(x.height, y.height, top),), (shifted(x.width, y.width, left),)


def paddings(model: TfliteModel, operator: Operator) -> tuple[int, int]:
    """Give the rows and columns that a PAD of an image puts before it."""
    pads = constant(model, model.main.tensors[operator.inputs[1]])
    return int(pads[1, 0]), int(pads[2, 0])


def _nearest(site: _Site) -> Parts:
    corners, centers = bool(site.option("align_corners", False)), bool(site.option("half_pixel_centers", False))
    return _both(site, lambda length, made: nearest(length, made, corners=corners, centers=centers))


def _bilinear(site: _Site) -> Parts:
    if site.captured is not None:
        corners = next((entry for entry in site.captured.args[2:3] if isinstance(entry, bool)), False)
        return _both(
            site, lambda length, made: bilinear(length, made, corners=corners, centers=False if corners else None)
        )
    corners, centers = bool(site.option("align_corners", False)), bool(site.option("half_pixel_centers", False))
    return _both(site, lambda length, made: bilinear(length, made, corners=corners, centers=centers))


def _transposed(site: _Site) -> Parts:
    shape = site.model.main.tensors[site.operator.inputs[1]].shape
    x, y = site.inputs[0], site.output
    kernel = _pair(site.captured.attrs.get("kernel", (1, 1))) if site.captured is not None else (shape[1], shape[2])
    down, across = site.windows(kernel)
    made = []
    for length, outputs, (size, stride, dilation, padding) in (
        (x.height, y.height, down),
        (x.width, y.width, across),
    ):
        before = padding or 0
        if isinstance(padding, str):  # the convolution that it turns round has the output as its input
            before = slide(outputs, length, (size, stride, dilation, padding)).before
        made.append(transposed(slide(length, outputs, (size, stride, dilation, before)), outputs))
    return (made[0],), (made[1],)


def _turn(site: _Site) -> Parts:
    """TRANSPOSE of an image whose channels stand first: kernels take rows of all columns."""
    x, y = site.inputs[0], site.output
    if site.captured is not None or _order(site.model, site.operator) != (0, 2, 3, 1):
        raise _Refusal("it puts rows or columns in another place")
    if (x.height, x.width) != (y.height, y.width):
        raise _Refusal("its input is read in another way as well")
    return (same(y.height),), (whole(x.width, y.width),)


def _axes(site: _Site) -> list[int] | None:
    tensor = site.model.main.tensors[site.operator.inputs[1]]
    return sorted(int(i) % 4 for i in constant(site.model, tensor).ravel()) if tensor.is_constant else None


def _sum(site: _Site) -> Parts:
    x, y = site.inputs[0], site.output
    if site.captured is not None and site.captured.kind.startswith("adaptive"):
        return _both(site, _adaptive)
    if x.height * x.width == 1 or y.height * y.width != 1 or y.channels != x.channels:
        raise _Refusal("it does not take the mean of a whole image")
    if site.captured is None:
        tensors = site.model.main.tensors
        if len(tensors[y.index].shape) != 4 and _axes(site) != [1, 2]:  # of an image as high as it has channels
            raise _Refusal("it does not take the mean of a whole image")
    _check_sums(site)
    return (whole(x.height, 1),), (whole(x.width, 1),)


def _check_sums(site: _Site) -> None:
    """Refuse an image whose sum depends on the order of its parts; an estimate is of integers."""
    if site.captured is None and site.model.main.tensors[site.inputs[0].index].type not in ("INT8", "INT16"):
        raise _Refusal("sums of floats depend on their order")


_REACHES: dict[str, Callable[[_Site], Parts]] = {
    **dict.fromkeys(_BROADCASTS, _element_wise),
    **dict.fromkeys(("MEAN", "SUM"), _sum),
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "TRANSPOSE_CONV": _transposed,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "L2_POOL_2D": _pool,
    "CONCATENATION": _concatenation,
    "PAD": _pad,
    "PADV2": _pad,
    "RESIZE_NEAREST_NEIGHBOR": _nearest,
    "RESIZE_BILINEAR": _bilinear,
    "TRANSPOSE": _turn,
}
"""Operator → how it finds the rows and columns that it takes; what is not here runs plainly."""

_SUMS = {"MEAN": _sum, "SUM": _sum, "AVERAGE_POOL_2D": _pool_of_all}
"""Operators that may make one pixel of an image by adding it up row by row."""


def _operator(model: TfliteModel, operator: Operator, values: dict[int, Value], macs: int, *, last: bool) -> StreamOp:
    read = tuple(i for i in dict.fromkeys(operator.inputs) if i in values)
    made = tuple(i for i in operator.outputs if i in values)
    output = made[0] if made else -1
    parts: Parts = ((), ())
    reason: str | None = None
    sums = False
    alone = bool(made) and values[output].height * values[output].width == 1
    finder = (_SUMS if alone else _REACHES).get(operator.name)
    if not made or not read:
        reason = "it reads or makes nothing at run time"
    elif len(made) > 1 and any(values[i].readers for i in made[1:]):
        reason = "it has several outputs"
    elif not values[output].readers and not values[output].leaves:
        reason = "nobody reads its output"
    elif all(values[i].height * values[i].width == 1 for i in (*read, *made)):
        reason = "it works on no image"
    elif operator.name not in _REACHES:
        reason = "memfit has no rule for which rows it takes"
    elif any(len(shape := model.main.tensors[i].shape) == 4 and shape[0] != 1 for i in (*read, *made)):
        reason = "it works on several images"
    elif finder is None:
        reason = "its output is one pixel"
    elif any(model.main.tensors[i].is_variable for i in (*operator.inputs, *operator.outputs) if i >= 0):
        reason = "it keeps a state"
    else:
        try:
            parts = finder(_Site(model, operator, tuple(values[i] for i in read), values[output], last))
            sums = alone
        except _Refusal as refusal:
            reason = str(refusal)
        except (ArithmeticError, LookupError, ValueError) as error:
            raise senseless(model, operator, error) from error
    name = values[output].name if made else operator.name.lower()
    return StreamOp(
        operator.index, operator.name, name, read, output, made[1:], *parts, macs, sums, reason, operator.index
    )  # fmt: skip


def _captured_macs(model: TfliteModel) -> list[int]:
    """Give the multiply-accumulates of what was captured, at the first of the operators that it becomes."""
    captured = [operator.options.get(CAPTURED) for operator in model.main.operators]
    first = {op.index: place for place, op in reversed(list(enumerate(captured))) if isinstance(op, Op)}
    return [op.macs if isinstance(op, Op) and first[op.index] == place else 0 for place, op in enumerate(captured)]


def _macs(model: TfliteModel, operator: Operator) -> int:
    """Count multiply-accumulates of the plain run, by the shapes of weights and outputs."""
    tensors = model.main.tensors
    shapes: Sequence[tuple[int, ...]] = [tensors[i].shape if i >= 0 else () for i in operator.inputs]
    made = tensors[operator.outputs[0]].elements if operator.outputs else 0
    if operator.name == "CONV_2D":
        return made * math.prod(shapes[1][1:])
    if operator.name == "DEPTHWISE_CONV_2D":
        return made * math.prod(shapes[1][1:3])
    if operator.name == "TRANSPOSE_CONV":
        return math.prod(shapes[2]) * math.prod(shapes[1][:3])
    if operator.name == "FULLY_CONNECTED":
        return made * (shapes[1][-1] if shapes[1] else 0)
    if operator.name == "BATCH_MATMUL":
        return made * (shapes[0][-1] if shapes[0] else 0)
    return 0
