"""More small models for the arena of TensorFlow Lite Micro: the rest of its operators, and odd cases.

`MORE_OPERATORS` has one network per operator that `tflite_models` has none of; `REPEATED` chains of many copies;
`ODD` what a predictor may stumble over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tflite_models as models
from tflite_models import Net, offline_plan

Make = Callable[[], bytes]

SHAPE = (1, 4, 6, 4)


def _case(type: str, body: Callable[[Net], int | Sequence[int]]) -> Make:
    def make() -> bytes:
        net = Net(type)
        found = body(net)
        return net.build(*([found] if isinstance(found, int) else found))

    return make


def _simple(name: str, options: str | None = None, shape: Sequence[int] = SHAPE) -> Callable[[Net], int]:
    """An operator of one input, as its output."""
    return lambda n: n.op(name, [n.input(*shape)], [n.tensor(shape)], options)


def _pair(name: str, options: str | None = None, out: str | None = None) -> Callable[[Net], int]:
    """An operator of two inputs of a shape."""

    def body(n: Net) -> int:
        a, b = n.input(*SHAPE), n.input(*SHAPE)
        return n.op(name, [a, b], [n.tensor(SHAPE, out)], options)

    return body


def _set(name: str, body: Callable[[Net], int | Sequence[int]], types: str) -> dict[str, Make]:
    return {f"{name}-{type.lower()}": _case(type, body) for type in types.split()}


def _reduce(name: str) -> Callable[[Net], int]:
    return lambda n: n.reduce(name, n.input(*SHAPE), (1, 2))


def _arg(name: str) -> Callable[[Net], int]:
    return lambda n: n.op(
        name, [n.input(2, 5), n.ints(1)], [n.tensor((2,), "INT32")], f"{name.title().replace('_', '')}Options",
        output_type=2,
    )  # fmt: skip


def _add_n(n: Net) -> int:
    parts = [n.input(*SHAPE) for _ in range(3)]
    return n.op("ADD_N", parts, [n.tensor(SHAPE)], "AddNOptions")


def _batch_to_space(n: Net) -> int:
    crops = n.tensor((2, 2), "INT32", np.zeros((2, 2)))
    return n.op("BATCH_TO_SPACE_ND", [n.input(4, 2, 2, 1), n.ints(2, 2), crops], [n.tensor((1, 4, 4, 1))],
                "BatchToSpaceNDOptions")  # fmt: skip


def _space_to_batch(n: Net) -> int:
    paddings = n.tensor((2, 2), "INT32", np.zeros((2, 2)))
    return n.op("SPACE_TO_BATCH_ND", [n.input(1, 4, 4, 1), n.ints(2, 2), paddings], [n.tensor((4, 2, 2, 1))],
                "SpaceToBatchNDOptions")  # fmt: skip


def _cast(n: Net) -> int:
    return n.op("CAST", [n.input(*SHAPE)], [n.tensor(SHAPE, "FLOAT32" if n.type != "FLOAT32" else "INT8")],
                "CastOptions")  # fmt: skip


def _dynamic_update_slice(n: Net) -> int:
    x, update = n.input(3, 4), n.input(2, 1)
    return n.op("DYNAMIC_UPDATE_SLICE", [x, update, n.ints(1, 1)], [n.tensor((3, 4))], "DynamicUpdateSliceOptions")


def _embedding(n: Net) -> int:
    ids = n.input(3, type="INT32")
    if n.type == "FLOAT32":
        return n.op("EMBEDDING_LOOKUP", [ids, n.weight((5, 4))], [n.tensor((3, 4))])
    table = n.weight((5, 4))
    scale = n.tensors[table].scales[0]
    return n.op("EMBEDDING_LOOKUP", [ids, table], [n.tensor((3, 4), scale=scale)])


def _fill(n: Net) -> int:
    return n.op("FILL", [n.ints(2, 3), n.input(type=n.type)], [n.tensor((2, 3), n.type)], "FillOptions")


def _gather_nd(n: Net) -> int:
    indices = n.tensor((2, 1), "INT32", np.array([[0], [1]]))
    return n.op("GATHER_ND", [n.input(3, 4), indices], [n.tensor((2, 4))], "GatherNdOptions")


def _log_softmax(n: Net) -> int:
    scale, zero = (16 / 256, 127) if n.type == "INT8" else (None, 0)
    return n.op("LOG_SOFTMAX", [n.input(2, 10)], [n.tensor((2, 10), scale=scale, zero=zero)], "LogSoftmaxOptions")


def _l2(n: Net) -> int:
    scale = 1 / 128 if n.type == "INT8" else None
    return n.op("L2_NORMALIZATION", [n.input(2, 10)], [n.tensor((2, 10), scale=scale)], "L2NormOptions",
                fused_activation_function=0)  # fmt: skip


def _mirror_pad(n: Net) -> int:
    around = n.tensor((4, 2), "INT32", np.array([[0, 0], [1, 1], [1, 1], [0, 0]]))
    return n.op("MIRROR_PAD", [n.input(*SHAPE), around], [n.tensor((1, 6, 8, 4))], "MirrorPadOptions", mode=0)


def _prelu(n: Net) -> int:
    return n.op("PRELU", [n.input(*SHAPE), n.weight((1, 1, 4))], [n.tensor(SHAPE)])


def _select(n: Net) -> int:
    which = n.input(*SHAPE, type="BOOL")
    return n.op("SELECT_V2", [which, n.input(*SHAPE), n.input(*SHAPE)], [n.tensor(SHAPE)], "SelectV2Options")


def _split_v(n: Net) -> list[int]:
    x = n.input(*SHAPE)
    parts = [n.tensor((1, 4, 2, 4)), n.tensor((1, 4, 4, 4))]
    n.op("SPLIT_V", [x, n.ints(2, 4), n.tensor((), "INT32", np.array(2))], parts, "SplitVOptions", num_splits=2)
    return parts


def _broadcast_to(n: Net) -> int:
    return n.op("BROADCAST_TO", [n.input(1, 4), n.ints(3, 4)], [n.tensor((3, 4))], "BroadcastToOptions")


def _broadcast_args(n: Net) -> int:
    return n.op("BROADCAST_ARGS", [n.input(2, type="INT32"), n.input(2, type="INT32")], [n.tensor((2,), "INT32")])


def _circular_buffer(n: Net) -> int:
    return n.op("CIRCULAR_BUFFER", [n.input(1, 1, 1, 8)], [n.tensor((1, 3, 1, 8))],
                custom=b"cycles_max\x00\x01\x0b\x01\x01\x01\x01\x04\x02\x24\x01")  # fmt: skip


def _variables(n: Net) -> int:
    """A resource variable: written, then read."""
    handle = n.tensor((), "RESOURCE")
    n.op("VAR_HANDLE", [], [handle], "VarHandleOptions", container="", shared_name="state")
    x = n.input(1, 4)
    n.op("ASSIGN_VARIABLE", [handle, x], [], "AssignVariableOptions")
    return n.op("READ_VARIABLE", [handle], [n.tensor((1, 4))], "ReadVariableOptions")


def _call_once(n: Net) -> int:
    """Another subgraph sets a resource variable before the first run."""
    other = Net(n.type)
    inner = other.tensor((), "RESOURCE")
    other.op("VAR_HANDLE", [], [inner], "VarHandleOptions", container="", shared_name="state")
    other.op("ASSIGN_VARIABLE", [inner, other.weight((1, 4))], [], "AssignVariableOptions")
    n.others.append(other)
    n.op("CALL_ONCE", [], [], "CallOnceOptions", init_subgraph_index=1)
    handle = n.tensor((), "RESOURCE")
    n.op("VAR_HANDLE", [], [handle], "VarHandleOptions", container="", shared_name="state")
    x = n.input(1, 4)
    y = n.op("READ_VARIABLE", [handle], [n.tensor((1, 4))], "ReadVariableOptions")
    return n.add(x, y)


def _loop(n: Net) -> list[int]:
    """WHILE: a counter below 3, and a convolution in the body."""
    condition = Net(n.type)
    i, x = condition.input(1, type="INT32"), condition.input(1, 4, 4, 2)
    limit = condition.tensor((1,), "INT32", np.array([3]))
    condition.outputs = [condition.op("LESS", [i, limit], [condition.tensor((1,), "BOOL")], "LessOptions")]
    body = Net(n.type)
    i, x = body.input(1, type="INT32"), body.input(1, 4, 4, 2)
    one = body.tensor((1,), "INT32", np.array([1]))
    j = body.op("ADD", [i, one], [body.tensor((1,), "INT32")], "AddOptions", fused_activation_function=0)
    body.outputs = [j, body.conv(x, 2, activation="relu")]
    n.others += [condition, body]
    start, x = n.input(1, type="INT32"), n.input(1, 4, 4, 2)
    ends = [n.tensor((1,), "INT32"), n.tensor((1, 4, 4, 2))]
    n.op("WHILE", [start, x], ends, "WhileOptions", cond_subgraph_index=1, body_subgraph_index=2)
    return ends


def _branch(n: Net) -> int:
    """IF between a convolution and a transposed one and a pool: subgraphs with scratch buffers of their own."""
    for wide in (False, True):
        other = Net(n.type)
        x = other.input(1, 4, 4, 2)
        y = other.pool(other.transpose_conv(x, 2)) if wide else other.conv(x, 2)
        other.outputs = [y]
        n.others.append(other)
    which, x = n.input(1, type="BOOL"), n.conv(n.input(1, 4, 4, 2), 2)
    y = n.op("IF", [which, x], [n.tensor((1, 4, 4, 2))], "IfOptions", then_subgraph_index=1, else_subgraph_index=2)
    return n.conv(y, 3)


_F, _I, _Q = "FLOAT32", "INT8", "INT8 FLOAT32"

MORE_OPERATORS: dict[str, Make] = {
    **_set("ABS", _simple("ABS", "AbsOptions"), "FLOAT32 INT8 INT16"),
    **_set("ADD_N", _add_n, _Q),
    **_set("ARG_MAX", _arg("ARG_MAX"), _Q),
    **_set("ARG_MIN", _arg("ARG_MIN"), _Q),
    **_set("BATCH_TO_SPACE_ND", _batch_to_space, _Q),
    **_set("BROADCAST_ARGS", _broadcast_args, _F),
    **_set("BROADCAST_TO", _broadcast_to, _Q),
    **_set("CALL_ONCE", _call_once, _Q),
    **_set("CAST", _cast, _Q),
    **_set("CEIL", _simple("CEIL"), _F),
    **_set("COS", _simple("COS", "CosOptions"), _F),
    **_set(
        "CUMSUM",
        lambda n: n.op("CUMSUM", [n.input(2, 5), n.ints(1)], [n.tensor((2, 5))], "CumsumOptions"),
        _Q,
    ),
    **_set(
        "DEPTH_TO_SPACE",
        (
            lambda n: n.op(
                "DEPTH_TO_SPACE", [n.input(*SHAPE)], [n.tensor((1, 8, 12, 1))], "DepthToSpaceOptions", block_size=2
            )
        ),
        _Q,
    ),
    **_set("DIV", _pair("DIV", "DivOptions"), _Q),
    **_set("DYNAMIC_UPDATE_SLICE", _dynamic_update_slice, _Q),
    **_set("ELU", _simple("ELU"), _Q),
    **_set("EMBEDDING_LOOKUP", _embedding, _Q),
    **_set("EQUAL", _pair("EQUAL", "EqualOptions", "BOOL"), _Q),
    **_set("EXP", _simple("EXP", "ExpOptions"), _F),
    **_set(
        "EXPAND_DIMS",
        lambda n: n.op("EXPAND_DIMS", [n.input(3, 4), n.ints(0)], [n.tensor((1, 3, 4))], "ExpandDimsOptions"),
        _Q,
    ),
    **_set("FILL", _fill, _Q),
    **_set("FLOOR", _simple("FLOOR"), _F),
    **_set("FLOOR_DIV", _pair("FLOOR_DIV", "FloorDivOptions"), _F),
    **_set("FLOOR_MOD", _pair("FLOOR_MOD", "FloorModOptions"), _F),
    **_set("GATHER_ND", _gather_nd, _Q),
    **_set("GREATER", _pair("GREATER", "GreaterOptions", "BOOL"), _Q),
    **_set("GREATER_EQUAL", _pair("GREATER_EQUAL", "GreaterEqualOptions", "BOOL"), _Q),
    **_set("IF", _branch, _Q),
    **_set("L2_NORMALIZATION", _l2, _Q),
    **_set("L2_POOL_2D", lambda n: n.pool(n.input(*SHAPE), "L2"), _F),
    **_set("LESS", _pair("LESS", "LessOptions", "BOOL"), _Q),
    **_set("LESS_EQUAL", _pair("LESS_EQUAL", "LessEqualOptions", "BOOL"), _Q),
    **_set("LOG", _simple("LOG"), _F),
    **_set("LOG_SOFTMAX", _log_softmax, _Q),
    **_set("LOGICAL_NOT", _simple("LOGICAL_NOT", "LogicalNotOptions"), "BOOL"),
    **_set("LOGICAL_AND", _pair("LOGICAL_AND", "LogicalAndOptions"), "BOOL"),
    **_set("LOGICAL_OR", _pair("LOGICAL_OR", "LogicalOrOptions"), "BOOL"),
    **_set("MAXIMUM", _pair("MAXIMUM", "MaximumMinimumOptions"), _Q),
    **_set("MINIMUM", _pair("MINIMUM", "MaximumMinimumOptions"), _Q),
    **_set("MIRROR_PAD", _mirror_pad, _Q),
    **_set("NEG", _simple("NEG", "NegOptions"), _F),
    **_set("NOT_EQUAL", _pair("NOT_EQUAL", "NotEqualOptions", "BOOL"), _Q),
    **_set("PRELU", _prelu, _Q),
    **_set("REDUCE_MIN", _reduce("REDUCE_MIN"), _Q),
    **_set("REDUCE_ALL", _reduce("REDUCE_ALL"), "BOOL"),
    **_set(
        "REVERSE_V2",
        lambda n: n.op("REVERSE_V2", [n.input(3, 4), n.ints(1)], [n.tensor((3, 4))], "ReverseV2Options"),
        _Q,
    ),
    **_set("ROUND", _simple("ROUND"), _F),
    **_set("RSQRT", _simple("RSQRT"), "FLOAT32 INT8 INT16"),
    **_set("SELECT_V2", _select, _Q),
    **_set(
        "SHAPE",
        lambda n: n.op("SHAPE", [n.input(3, 4)], [n.tensor((2,), "INT32")], "ShapeOptions", out_type=2),
        _F,
    ),
    **_set("SIN", _simple("SIN"), _F),
    **_set("SPACE_TO_BATCH_ND", _space_to_batch, _Q),
    **_set(
        "SPACE_TO_DEPTH",
        (
            lambda n: n.op(
                "SPACE_TO_DEPTH", [n.input(*SHAPE)], [n.tensor((1, 2, 3, 16))], "SpaceToDepthOptions", block_size=2
            )
        ),
        _Q,
    ),
    **_set("SPLIT_V", _split_v, _Q),
    **_set("SQRT", _simple("SQRT"), _F),
    **_set("SQUARE", _simple("SQUARE", "SquareOptions"), _F),
    **_set("SQUARED_DIFFERENCE", _pair("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"), _Q),
    **_set(
        "SQUEEZE",
        (
            lambda n: n.op(
                "SQUEEZE", [n.input(1, 3, 1)], [n.tensor((3,))], "SqueezeOptions", squeeze_dims=np.array([0, 2], "<i4")
            )
        ),
        _Q,
    ),
    **_set("VAR_HANDLE", _variables, _Q),
    **_set("WHILE", _loop, _Q),
    **_set("ZEROS_LIKE", _simple("ZEROS_LIKE", "ZerosLikeOptions"), _Q),
    **_set("CIRCULAR_BUFFER", _circular_buffer, _I),
}
"""Operator and type → a model of that operator."""


# -- copies ---------------------------------------------------------------------------------------------------------


def _copies(type: str, shape: Sequence[int], body: Callable[[Net, int], int | list[int]], count: int) -> Make:
    def make() -> bytes:
        net = Net(type)
        x = net.input(*shape)
        ends = [y for _ in range(count) for y in np.atleast_1d(body(net, x))]
        return net.build(*(int(y) for y in ends))

    return make


REPEATED: dict[str, Make] = {
    f"{name}x16-{types[0].lower()}": _copies(types[0], shape, body, 16)
    for name, (types, shape, body) in models._BODIES.items()
}
"""Sixteen copies of an operator beside each other, all of them outputs."""


# -- odd cases ------------------------------------------------------------------------------------------------------


def _unused(n: Net) -> int:
    """A tensor that no operator touches still takes space."""
    n.tensor((1, 100))
    return n.conv(n.input(1, 4, 4, 2), 3)


def _unused_input(n: Net) -> int:
    n.input(1, 50)
    return n.conv(n.input(1, 4, 4, 2), 3)


def _ends_twice(n: Net) -> list[int]:
    x = n.input(1, 4, 4, 2)
    y = n.conv(x, 3)
    return [y, x, y]


def _no_bias(n: Net) -> int:
    x = n.conv(n.input(1, 4, 4, 2), 3, bias=False)
    weight = n.weight((5, 48))
    return n.op("FULLY_CONNECTED", [x, weight, -1], [n.tensor((1, 5))], "FullyConnectedOptions")


def _short_bias(n: Net) -> int:
    """A transposed convolution of 16 bits with a bias of 16 bits, which the kernel widens."""
    x, shape = n.input(1, 4, 4, 2), n.ints(1, 8, 8, 3)
    weight = n.weight((3, 3, 3, 2), channel=0)
    scales = [n.tensors[x].scales[0] * w for w in n.tensors[weight].scales]
    bias = n.tensor((3,), "INT16", np.arange(3), scale=scales)
    return n.op("TRANSPOSE_CONV", [shape, weight, x, bias], [n.tensor((1, 8, 8, 3))], "TransposeConvOptions",
                version=3, padding=0, stride_w=2, stride_h=2)  # fmt: skip


def _wide(n: Net) -> int:
    """Many channels: what the convolution looks at while it prepares is more than all else."""
    return n.conv(n.input(1, 2, 2, 1), 600, kernel=1)


def _wide_linear(n: Net) -> int:
    return n.linear(n.input(1, 4), 300, per_channel=True)


def _wide_last(n: Net) -> int:
    x = n.conv(n.conv(n.input(1, 2, 2, 1), 4), 600, kernel=1)
    return n.pool(x)


def _planned(places: Callable[[int], Sequence[int]], body: Callable[[Net], int]) -> Callable[[Net], int]:
    """A network with an offline plan."""

    def make(n: Net) -> int:
        y = body(n)
        n.metadata["OfflineMemoryAllocation"] = offline_plan(places(len(n.tensors)))
        return y

    return make


def _three_convs(n: Net) -> int:
    x = n.input(1, 6, 6, 4)
    for channels in (8, 4, 6):
        x = n.conv(x, channels)
    return x


def _keyword(n: Net) -> int:
    return n.linear(n.svdf(n.input(1, 20), 16), 8)


def _one_offset(tensor: int, offset: int) -> Callable[[int], Sequence[int]]:
    return lambda count: [offset if i == tensor else -1 for i in range(count)]


def _unreached(n: Net) -> int:
    """A subgraph that no operator runs: its tensors are planned all the same."""
    other = Net(n.type)
    other.outputs = [other.conv(other.input(1, 4, 4, 2), 2)]
    n.others.append(other)
    return n.conv(n.input(1, 4, 4, 2), 3)


def _same_branch(n: Net) -> int:
    """Both branches are one subgraph, which the planner visits twice."""
    other = Net(n.type)
    x = other.input(1, 4, 4, 2)
    other.outputs = [other.pool(other.transpose_conv(x, 2))]
    n.others.append(other)
    which, x = n.input(1, type="BOOL"), n.conv(n.input(1, 4, 4, 2), 2)
    y = n.op("IF", [which, x], [n.tensor((1, 4, 4, 2))], "IfOptions", then_subgraph_index=1, else_subgraph_index=1)
    return n.conv(y, 3)


def _no_operators(n: Net) -> int:
    return n.input(1, 4)


ODD: dict[str, Make] = {
    **_set("unused", _unused, _Q),
    **_set("unused_input", _unused_input, _I),
    **_set("ends_twice", _ends_twice, _Q),
    **_set("no_bias", _no_bias, _Q),
    **_set("short_bias", _short_bias, "INT16"),
    **_set("wide", _wide, "INT8 INT16 FLOAT32"),
    **_set("wide_linear", _wide_linear, _I),
    **_set("wide_last", _wide_last, _I),
    **_set("planned", _planned(lambda count: [64 * i for i in range(count)], _three_convs), _Q),
    **_set("planned_none", _planned(lambda count: [-1] * count, _three_convs), _I),
    **_set("planned_one", _planned(_one_offset(3, 48), _three_convs), _I),
    **_set("planned_state", _planned(_one_offset(3, 320), _keyword), _Q),
    **_set("unreached", _unreached, _I),
    **_set("same_branch", _same_branch, _I),
    **_set("no_operators", _no_operators, _I),
}
"""What a predictor may stumble over."""


# -- networks drawn at random ---------------------------------------------------------------------------------------


def drawn(seed: int) -> bytes:
    """A network of up to twenty operators of images, then a few of vectors."""
    random = np.random.default_rng(seed)
    net = Net(str(random.choice(["INT8", "INT16", "FLOAT32"], p=[0.6, 0.2, 0.2])), seed)
    integer = net.type == "INT8"
    x = net.input(1, int(random.integers(5, 12)), int(random.integers(5, 12)), int(random.integers(1, 6)))
    alive = [x]
    for _ in range(int(random.integers(1, 20))):
        x = alive[int(random.integers(max(0, len(alive) - 3), len(alive)))]
        _, height, width, channels = net.shape(x)
        wanted = int(random.integers(1, 24))
        choices: list[Callable[[], int]] = [
            lambda: net.conv(x, wanted, kernel=int(random.choice([1, 3])), activation="relu"),  # noqa: B023
            lambda: net.depthwise(x, multiplier=int(random.integers(1, 3))),  # noqa: B023
            lambda: net.add(x, net.conv(x, channels, per_channel=bool(random.integers(2)))),  # noqa: B023
            lambda: net.concat(x, net.depthwise(x)),  # noqa: B023
            lambda: net.unary("LOGISTIC", x) if net.type == "FLOAT32" else net.pad(x),  # noqa: B023
            lambda: net.binary("MUL", x, x),  # noqa: B023
        ]
        if min(height, width) > 3:
            choices += [lambda: net.pool(x, str(random.choice(["MAX", "AVERAGE"])))] * 2  # noqa: B023
        elif max(height, width) < 8:
            choices += [lambda: net.transpose_conv(x, wanted)] * 2  # noqa: B023
        if integer:
            choices += [lambda: net.resize(x, height + 1, width + 1), lambda: net.unary("RELU6", x)]  # noqa: B023
            choices += [lambda: net.conv(x, 2 * wanted, filter_type="INT4")]  # noqa: B023
        y = choices[int(random.integers(len(choices)))]()
        if np.prod(net.shape(y)) < 20_000 and (net.type != "INT8" or net.tensors[y].scales == (0.05,)):
            alive.append(y)
    flat = net.reduce("MEAN", alive[-1])
    ends = [net.linear(flat, int(random.integers(2, 40)), per_channel=integer and bool(random.integers(2)))]
    if integer and random.integers(2):
        ends.append(net.linear(net.svdf(flat, int(random.integers(2, 20))), 5))
    if random.integers(2):
        ends[0] = net.softmax(ends[0])
    return net.build(*ends)
