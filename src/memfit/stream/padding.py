"""PAD as part of the window behind it: a convolution or max pooling that sees the padding itself keeps no padded image.

Converters write a PAD where a framework's own padding is neither SAME nor VALID. The runtime makes the padded image;
a plan that computes row by row need not.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from memfit.formats.tflite import Operator
from memfit.kernels.kernel import Node, constant, zero_of
from memfit.kernels.window import BEFORE, window
from memfit.plan.estimate import CAPTURED
from memfit.stream.network import StreamNetwork, StreamOp, paddings
from memfit.stream.reach import chained
from memfit.stream.reorder import reordered

_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})

_LOWEST = {"INT8": -(1 << 7), "INT16": -(1 << 15), "FLOAT32": float(np.finfo(np.float32).min)}
"""What max pooling pads with."""


def fold_padding(network: StreamNetwork) -> StreamNetwork:
    """Leave out each PAD whose readers can see what it pads with as padding of their own.

    A convolution does where that is the zero point of its image, max pooling where it is the lowest number of its type.
    Image and padded image must have one scale.

    >>> from memfit.formats.tflite import Subgraph, TfliteModel
    >>> empty = Subgraph(0, "main", (), (), (), ())
    >>> fold_padding(StreamNetwork(TfliteModel("", 3, "", (), (empty,), (), (), (), ()), (), {}, (), (), False)).ops
    ()

    Args:
        network: from `network_of`; its outputs, values and work stay as they are.
    """
    ops, operators = list(network.ops), list(network.model.main.operators)
    folded = set()
    for pad in network.ops:
        readers = network.values[pad.output].readers if pad.output >= 0 else ()
        if readers and _is_plain(network, pad) and all(_sees(network, pad, ops[r]) for r in readers):
            for reader in readers:
                ops[reader] = _read_through(pad, ops[reader])
                operators[reader] = _widened(network, pad, operators[reader])
            folded.add(pad.index)
    if not folded:
        return network
    main = network.model.main._replace(operators=tuple(operators))
    model = replace(network.model, subgraphs=(main, *network.model.subgraphs[1:]))
    joined = replace(network, model=model, ops=tuple(ops))
    return reordered(joined, [op.index for op in ops if op.index not in folded])


def _is_plain(network: StreamNetwork, pad: StreamOp) -> bool:
    """Say whether an operator pads rows and columns of an image that nobody reads but operators."""
    if pad.kind not in ("PAD", "PADV2") or not pad.streams or len(pad.inputs) != 1:
        return False
    x, y = network.values[pad.inputs[0]], network.values[pad.output]
    tensors = network.model.main.tensors
    given, made = tensors[x.index], tensors[y.index]
    scales = [t.quantization and (t.quantization.scales, t.quantization.zero_points) for t in (given, made)]
    grows = y.height >= x.height and y.width >= x.width  # a crop is no padding
    return grows and x.channels == y.channels and given.type == made.type and scales[0] == scales[1] and not y.leaves


def _sees(network: StreamNetwork, pad: StreamOp, reader: StreamOp) -> bool:
    """Say whether an operator's own padding is what a PAD fills its image with."""
    operator = network.model.main.operators[reader.index]
    places = [place for place, i in enumerate(operator.inputs) if i == pad.output]
    if places != [0] or not reader.streams or pad.inputs[0] in operator.inputs:
        return False
    image, estimated = network.model.main.tensors[pad.output], CAPTURED in operator.options
    if reader.kind in _CONVOLUTIONS:
        own: float | None = zero_of(image) if image.type == "INT8" and not estimated else 0
    elif reader.kind == "MAX_POOL_2D":
        own = -math.inf if estimated else _LOWEST.get(image.type)
    else:
        return False
    return own is not None and bool(_fill(network, pad) == own)


def _fill(network: StreamNetwork, pad: StreamOp) -> Any:
    """Give what an operator pads with; None if it is made at run time."""
    main = network.model.main
    operator = main.operators[pad.index]
    captured = operator.options.get(CAPTURED)
    if captured is not None:
        return captured.args[2] if len(captured.args) > 2 else 0
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        value = main.tensors[operator.inputs[2]]
        return constant(network.model, value).ravel()[0] if value.is_constant else None
    return zero_of(main.tensors[pad.output]) if main.tensors[pad.output].type == "INT8" else 0


def _read_through(pad: StreamOp, reader: StreamOp) -> StreamOp:
    """Let an operator read what a PAD reads."""
    place = reader.inputs.index(pad.output)

    def instead(entries: tuple[Any, ...], entry: Any) -> tuple[Any, ...]:
        return (*entries[:place], entry, *entries[place + 1 :])

    return replace(
        reader,
        inputs=instead(reader.inputs, pad.inputs[0]),
        rows=instead(reader.rows, chained(pad.rows[0], reader.rows[place])),
        columns=instead(reader.columns, chained(pad.columns[0], reader.columns[place])),
    )


def _widened(network: StreamNetwork, pad: StreamOp, operator: Operator) -> Operator:
    """Write an operator that pads by itself; an estimated one has no window, and is never computed."""
    model = network.model
    options, inputs = operator.options, (pad.inputs[0], *operator.inputs[1:])
    if CAPTURED not in options:
        node = Node(model, operator)
        image = model.main.tensors[pad.output].shape
        if operator.name in _CONVOLUTIONS:
            kernel = node.input(1).shape[1:3]
        else:
            kernel = (node.option("filter_height"), node.option("filter_width"))
        rows, columns = window(node, image, (kernel[0], kernel[1]))
        top, left = paddings(model, model.main.operators[pad.index])
        options = {**options, BEFORE: (rows.before + top, columns.before + left)}
    return operator._replace(inputs=inputs, options=options)
