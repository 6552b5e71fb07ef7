"""Layers: what folds, what has a row, what a row counts."""

from __future__ import annotations

from graphs import Builder

from memfit.analysis.layers import Layer, layers
from memfit.graph.model import Graph


def summary(graph: Graph, **options: bool) -> list[tuple[str, str, str | None, str | None]]:
    return [(row.name, row.type, row.norm, row.activation) for row in layers(graph, **options)]


def holds_everything(graph: Graph, rows: tuple[Layer, ...]) -> None:
    """Each operation in one row; parameters and MACs add up."""
    assert sorted(index for row in rows for index in row.ops) == list(range(len(graph.ops)))
    assert sum(row.macs for row in rows) == sum(op.macs for op in graph.ops)
    assert sum(row.params for row in rows) == sum(t.elements for t in graph.parameters())
    assert len({row.name for row in rows}) == len(rows)


def test_norm_and_activation_fold_in_place_or_not() -> None:
    for in_place in (False, True):
        b = Builder()
        x = b.conv(b.input(1, 3, 8, 8), 4, 3, 2, path="conv")
        x = b.norm(x, path="bn")
        x = b.inplace("relu", x, path="relu") if in_place else b.unary("relu", x, path="relu")
        graph = b.build(x)
        rows = layers(graph)
        assert summary(graph) == [("input", "input", None, None), ("conv", "conv2d", "batch_norm", "relu")]
        conv = rows[1]
        assert (conv.kernel, conv.stride, conv.output_shape) == ((3, 3), (2, 2), (1, 4, 4, 4))
        assert (conv.activations, conv.weights, conv.params) == (64, 4 * 3 * 9, 4 * 3 * 9 + 4 + 8)
        assert conv.macs == 64 * 27
        holds_everything(graph, rows)


def test_without_folding_each_operation_has_its_row() -> None:
    b = Builder()
    x = b.norm(b.conv(b.input(1, 3, 8, 8), 4, path="conv"), path="bn")
    graph = b.build(b.unary("relu", x, path="relu"))
    assert summary(graph, fold=False) == [
        ("input", "input", None, None),
        ("conv", "conv2d", None, None),
        ("bn", "batch_norm", None, None),
        ("relu", "relu", None, None),
    ]
    holds_everything(graph, layers(graph, fold=False))


def test_nothing_folds_where_another_operation_reads() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 3, path="conv")
    y = b.unary("relu", x, path="relu")
    graph = b.build(b.add(x, y))
    assert summary(graph)[1:] == [
        ("conv", "conv2d", None, None),
        ("relu", "relu", None, None),
        ("add", "add", None, None),
    ]


def test_nothing_folds_over_an_output_of_the_network() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 3, path="conv")
    graph = b.build(x, b.unary("relu", x, path="relu"))
    assert [row.type for row in layers(graph)] == ["input", "conv2d", "relu"]


def test_only_one_activation_folds_and_no_norm_after_it() -> None:
    b = Builder()
    x = b.unary("relu", b.conv(b.input(1, 3, 8, 8), 3, path="conv"), path="relu")
    x = b.norm(x, path="bn")
    x = b.unary("relu6", x, path="relu6")
    graph = b.build(b.unary("sigmoid", x, path="gate"))
    assert summary(graph)[1:] == [
        ("conv", "conv2d", None, "relu"),
        ("bn", "batch_norm", None, "relu6"),
        ("gate", "sigmoid", None, None),
    ]


def test_other_norms_are_rows_of_their_own() -> None:
    b = Builder()
    x = b.norm(b.conv(b.input(1, 4, 8, 8), 4, path="conv"), path="ln", kind="layer_norm")
    graph = b.build(b.unary("gelu", x, path="act"))
    assert summary(graph)[1:] == [("conv", "conv2d", None, None), ("ln", "layer_norm", None, "gelu")]


def test_relu_after_an_in_place_add_belongs_to_the_add() -> None:
    """As ResNet writes it: `out += identity; relu_(out)`, all on the convolution's storage."""
    b = Builder()
    b.sequence("layer1")
    b.module("layer1.0", "BasicBlock")
    x = b.conv(b.input(1, 3, 8, 8), 4, path="stem")
    y = b.norm(b.conv(x, 4, 3, path="layer1.0.conv2"), path="layer1.0.bn2")
    y = b.inplace("add", y, x, path="layer1.0")
    y = b.inplace("relu", y, path="layer1.0.relu")
    graph = b.build(y)
    assert summary(graph)[2:] == [
        ("layer1.0.conv2", "conv2d", "batch_norm", None),
        ("layer1.0.add", "add", None, "relu"),
    ]
    holds_everything(graph, layers(graph))


def test_views_and_pooling_to_the_size_there_is_have_no_row() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 4, 4), 2, path="conv")
    x = b.op("identity", (x,), (1, 2, 4, 4), path="avgpool")
    x = b.view(x, 1, 32)
    x = b.unary("relu", b.linear(x, 5, path="fc"), path="relu")
    graph = b.build(x)
    rows = layers(graph)
    assert [(row.name, row.activation) for row in rows] == [("input", None), ("conv", None), ("fc", "relu")]
    assert rows[2].weights == 160
    assert rows[2].params == 165
    holds_everything(graph, rows)


def test_a_split_value_has_several_readers() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 4, 4), 4, path="conv")
    left = b.view(x, 1, 2, 4, 4, kind="split")
    right = b.view(x, 1, 2, 4, 4, kind="split", offset=32)
    graph = b.build(b.unary("relu", left, path="relu"), b.unary("sigmoid", right, path="gate"))
    assert [row.type for row in layers(graph)] == ["input", "conv2d", "relu", "sigmoid"]


def test_a_tied_tensor_counts_in_its_first_row_and_unused_ones_in_a_row_of_their_own() -> None:
    b = Builder()
    table = b.parameter("embed.weight", 10, 4)
    lost = b.parameter("aux.weight", 7, 3)
    ids = b.input(2, 5, dtype="int64", name="ids")
    x = b.op("embedding", (table, ids), (2, 5, 4), path="embed")
    turned = b.view(table, 4, 10, path="head", kind="t")
    graph = b.build(b.op("linear", (x, turned), (2, 5, 10), path="head", macs=400))
    rows = layers(graph)
    assert [(row.name, row.weights, row.params) for row in rows] == [
        ("ids", 0, 0),
        ("embed", 40, 40),
        ("head", 0, 0),
        ("(unused)", 0, 21),
    ]
    assert rows[-1].parameters == (lost,)
    holds_everything(graph, rows)


def test_a_weight_prepared_in_forward_belongs_to_its_convolution() -> None:
    b = Builder()
    weight, gain = b.parameter("conv.weight", 4, 3, 1, 1), b.parameter("conv.gain", 4, 1, 1, 1)
    x = b.input(1, 3, 8, 8)
    scaled = b.op("mul", (weight, gain), (4, 3, 1, 1), path="conv")
    graph = b.build(b.op("conv2d", (x, scaled), (1, 4, 8, 8), path="conv", macs=768))
    rows = layers(graph)
    assert [(row.name, row.type, row.weights, row.params) for row in rows[1:]] == [("conv", "conv2d", 12, 16)]
    assert rows[1].activations == 256
    holds_everything(graph, rows)


def test_a_bias_added_apart_belongs_to_its_product() -> None:
    b = Builder()
    weight, bias = b.parameter("fc.weight", 3, 4), b.parameter("fc.bias", 3)
    x = b.input(2, 4)
    y = b.op("linear", (x, b.view(weight, 4, 3, path="fc", kind="t")), (2, 3), path="fc", macs=24)
    y = b.inplace("add", y, bias, path="fc")
    graph = b.build(b.unary("relu", y, path="relu"))
    rows = layers(graph)
    assert [(row.name, row.activation, row.params) for row in rows[1:]] == [("fc", "relu", 15)]
    holds_everything(graph, rows)


def test_filling_a_new_tensor_is_part_of_making_it() -> None:
    b = Builder()
    x = b.input(1, 4)
    mask = b.op("zeros", (), (4, 4))
    part = b.view(mask, 2, 4, kind="slice")
    filled = b.inplace("fill", part)
    whole = b.view(filled, 4, 4)
    graph = b.build(b.op("matmul", (x, whole), (1, 4), macs=16))
    rows = layers(graph)
    assert [(row.name, row.activations) for row in rows] == [("input", 4), ("zeros", 16), ("matmul", 4)]
    holds_everything(graph, rows)


def test_a_counter_in_a_buffer_has_no_row() -> None:
    b = Builder(training=True)
    steps = b.buffer("bn.num_batches_tracked", dtype="int64")
    x = b.conv(b.input(1, 3, 8, 8), 4, path="conv")
    b.inplace("add", steps, path="bn")
    graph = b.build(b.norm(x, path="bn"))
    rows = layers(graph)
    assert [(row.name, row.norm) for row in rows] == [("input", None), ("conv", "batch_norm")]
    holds_everything(graph, rows)


def test_a_module_called_twice_is_numbered() -> None:
    b = Builder()
    weight = b.parameter("head.weight", 3, 3, 1, 1)
    x = b.input(1, 3, 4, 4)
    y = b.op("conv2d", (x, weight), (1, 3, 4, 4), path="head", macs=144)
    graph = b.build(b.op("conv2d", (y, weight), (1, 3, 4, 4), path="head", macs=144))
    rows = layers(graph)
    assert [(row.name, row.params, row.macs) for row in rows[1:]] == [("head", 9, 144), ("head#2", 0, 144)]


def test_a_row_that_an_operation_without_module_makes_goes_by_its_parameters_module() -> None:
    b = Builder()
    b.module("attn", "Attention")
    b.module("attn.out", "Linear")
    weight = b.parameter("attn.out.weight", 4, 4)
    x = b.input(2, 4)
    graph = b.build(b.op("linear", (x, b.view(weight, 4, 4, path="attn", kind="t")), (2, 4), path="attn", macs=32))
    assert layers(graph)[1].name == "attn.out"


def test_a_module_goes_by_the_operation_with_its_parameters_or_its_last() -> None:
    b = Builder()
    b.module("lstm", "LSTM")
    x = b.input(5, 2, 3)
    state = b.op("zeros", (), (1, 2, 4), path="lstm")
    weights = [b.parameter("lstm.weight_ih", 16, 3), b.parameter("lstm.weight_hh", 16, 4)]
    x = b.op("rnn_layer", (x, *weights, state), (5, 2, 4), path="lstm", macs=10 * 112)
    gate = b.unary("sigmoid", x, path="swish")
    graph = b.build(b.op("mul", (x, gate), (5, 2, 4), path="swish"))
    assert [row.name for row in layers(graph)] == ["input", "lstm.zeros", "lstm", "swish.sigmoid", "swish"]
    assert layers(graph)[2].weights == 112


def test_an_activation_of_a_second_output_does_not_fold() -> None:
    b = Builder()
    x = b.op("topk", (b.input(2, 8),), (2, 4), (2, 4))
    second = b.ops[-1].outputs[1]
    graph = b.build(x, b.unary("sigmoid", second, path="gate"))
    assert [(row.name, row.activation) for row in layers(graph)] == [("input", None), ("topk", None), ("gate", None)]
