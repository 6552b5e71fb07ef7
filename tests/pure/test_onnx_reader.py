"""The `.onnx` reader: every operator against a runtime, known answers, and what it says of files that are not right."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models as models
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx_models import F, N

import memfit
from memfit.capture.sources.onnx import to_graph
from memfit.capture.sources.onnx.inputs import place_inputs, read_inputs
from memfit.capture.sources.onnx.operators import OPERATORS
from memfit.capture.sources.onnx.steps import Walk
from memfit.errors import MemfitError, SourceError, UnsupportedOp, UsageError
from memfit.formats.onnx import parse_model
from memfit.formats.onnx.wire import KEPT_BYTES, without_weights
from memfit.graph.model import Graph, StorageKind
from memfit.graph.optable import Role, role
from memfit.graph.verify import verify


def graph_of(data: bytes, inputs: Any = None, **options: Any) -> Graph:
    return to_graph(parse_model(data), inputs, **options)


def net_of(name: str, **options: Any) -> Graph:
    return graph_of(models.NETS[name](), models.INPUTS.get(name), **options)


def saved(tmp_path: Path, data: bytes, name: str = "net.onnx") -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


# -- every operator, against something that runs it ----------------------------------------------------------------


def run(proto: ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every value of a run: ONNX Runtime's, or those of ONNX's own reference where it does not know an operator."""
    names = [info.name for info in proto.graph.output]
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the models")
    runtime.set_default_logger_severity(4)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(names, feeds)
    except Exception:  # each of its faults has a class of its own
        from onnx.reference import ReferenceEvaluator

        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(proto).run(names, feeds)
    return dict(zip(names, results, strict=True))


@pytest.mark.parametrize("name", models.NETS)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")  # ONNX's reference divides by zero on purpose
def test_every_shape_type_and_known_number_is_what_a_runtime_makes(name: str) -> None:
    data = models.NETS[name]()
    model = parse_model(data)
    values, symbols, _ = place_inputs(model, read_inputs(models.INPUTS.get(name)), None)
    walk = Walk(model, values, symbols, False)
    walk.run()
    proto = onnx.load_from_string(data)
    shown = {info.name for info in proto.graph.output}
    for node in proto.graph.node:
        for output in node.output:
            if output and output not in shown:
                proto.graph.output.append(helper.make_empty_tensor_value_info(output))
                shown.add(output)
    drawn = np.random.default_rng(0)
    feeds = {}
    for key, value in values.items():
        dtype = np.dtype(value.dtype)
        array = drawn.integers(0, 2, value.shape) if dtype.kind in "iub" else drawn.normal(0, 1, value.shape)
        feeds[key] = np.asarray(array).astype(dtype)
    for key, result in run(proto, feeds).items():
        made, array = walk.names.held[key], np.asarray(result)
        assert made.dtype == str(array.dtype)
        if name in models.WORST_CASE:
            assert len(made.shape) == array.ndim
            assert all(most >= size for most, size in zip(made.shape, array.shape, strict=True))
            continue
        assert made.shape == array.shape, key
        if made.data is not None:
            assert np.allclose(made.data.astype(float), array.astype(float)), key


@pytest.mark.parametrize("name", models.NETS)
def test_generated_models_make_graphs(name: str, tmp_path: Path) -> None:
    graph = net_of(name)
    verify(graph)
    assert all(s.death == s.ideal_death for s in graph.storages)
    for per in ("layer", "op", "tensor", "block", "module"):
        for memory in ("ideal", "mcunet"):
            if per != "tensor" or memory == "ideal":
                memfit.profile(graph, per=per, memory=memory)
    path = tmp_path / "graph.memfit.json"
    memfit.save_graph(graph, path)
    assert memfit.load_graph(path).ops == graph.ops


def test_every_row_of_the_table_has_a_model() -> None:
    used = set()
    for make in models.NETS.values():
        model = parse_model(make())
        graphs = [model.graph, *(v for n in model.graph.nodes for v in n.attributes.values() if hasattr(v, "nodes"))]
        used |= {(node.domain, node.op_type) for graph in graphs for node in (*graph.nodes,)}
        used |= {(node.domain, node.op_type) for f in model.functions.values() for node in f.nodes}
    without = {name for _, name in set(OPERATORS) - used}
    runtime_lacks = {"Swish", "BitCast", "CumProd", "TensorScatter", "Attention", "SimplifiedLayerNormalization"}
    same_as_another = {
        "Scatter", "Multinomial", "RandomUniform", "RandomNormalLike", "HammingWindow", "BlackmanWindow", "BitwiseOr",
        "BitwiseXor", "BitwiseNot", "Asin", "Acos", "Acosh", "Atanh", "GlobalLpPool", "QuantizeLinear",
        "DequantizeLinear", "QLinearConv", "TransposeMatMul", "RotaryEmbedding", "SkipSimplifiedLayerNormalization",
        "Gelu", "GroupNorm", "QLinearReduceMean",
    }  # fmt: skip
    assert without <= runtime_lacks | same_as_another


def test_every_kind_has_a_role() -> None:
    named = {entry.kind for entry in OPERATORS.values() if isinstance(entry.kind, str)}
    assert {kind for kind in named if role(kind) is Role.OTHER} <= {"fft", "stft"}


# -- known answers ------------------------------------------------------------------------------------------------

MACS = {
    "conv": 6 * 5 * 11 * 4 * 9,
    "conv_depthwise": 4 * 9 * 11 * 9,
    "conv_grouped": 6 * 7 * 9 * 2 * 9,
    "conv1d": 2 * 5 * 6 * 3 * 4,
    "conv3d": 3 * 6 * 6 * 7 * 2 * 18,
    "conv_transpose": 4 * 9 * 11 * 5 * 9,
    "gemm": 2 * 8 * 5,
    "gemm_a_transposed": 2 * 8 * 5,
    "matmul": 2 * 3 * 8 * 5,
    "matmul_of_activations": 2 * 4 * 3 * 8 * 5,
    "einsum": 2 * 3 * 4 * 5 * 8,
    "einsum_dots": 2 * 3 * 8 * 5,
    "einsum_implicit": 3 * 8 * 5,
    "einsum_one": 0,
    "qlinear_conv": 6 * 9 * 11 * 4 * 9,
    "qlinear_matmul": 2 * 8 * 5,
    "lstm": 6 * 2 * (12 * 5 + 12 * 3),
    "lstm_bidirectional": 2 * 6 * 2 * (12 * 5 + 12 * 3),
    "gru": 6 * 2 * (9 * 5 + 9 * 3),
    "attention": 2 * 4 * 5 * 7 * (8 + 6),
    "attention_grouped": 2 * 4 * 5 * 7 * 16,
    "ms_qattention": 2 * 5 * 8 * 24 + 2 * 5 * 5 * 16,
    "ms_multi_head_attention": 2 * 5 * 7 * 16,
    "ms_matmul_nbits": 2 * 3 * 32 * 6,
    "ms_fused_matmul": 2 * 3 * 8 * 5,
    "loop": 5 * 2 * 4 * 4,
    "max_pool": 0,
    "act_Softmax": 0,
    "deform_conv": 3 * 4 * 4 * 4 * 9,
}


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name: str) -> None:
    assert sum(op.macs for op in net_of(name).ops) == MACS[name]


def test_a_convolution_says_what_passes_ask() -> None:
    (op,) = net_of("conv").ops
    assert op.attrs == {
        "kernel": (3, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "bias": True,
    }  # fmt: skip
    assert net_of("conv_uneven_pads").ops[0].attrs["padding"] == (0, 1, 2, 3)
    assert net_of("conv_depthwise").ops[0].kind == "depthwise_conv2d"
    assert net_of("ms_fused_conv").ops[0].attrs["activation"] == "relu"


def test_rows_and_blocks_of_a_convolutional_network(tmp_path: Path) -> None:
    path = saved(tmp_path, models.cnn())
    rows = memfit.profile(path).rows
    assert [row["name"] for row in rows] == [
        "image", "features.0.0", "features.1.conv.0", "features.1.conv.2", "features.1.add", "adaptive_avg_pool2d",
        "classifier.1",
    ]  # fmt: skip
    assert (rows[1]["norm"], rows[1]["activation"], rows[1]["kernel"]) == ("batch_norm", "relu6", (3, 3))
    assert rows[1]["params"] == 8 * 27 + 16  # mean and variance are buffers
    by_hand = memfit.profile(path, memory="ideal")
    assert by_hand.totals["peak_bytes"] == 3 * 512 * 4  # the add, whose operands are both there
    assert by_hand.memory == "ideal"
    names = [row["name"] for row in memfit.profile(path, per="block", memory="mcunet").rows]
    assert names == ["features", "(root)", "classifier"]


def test_views_share_their_inputs_bytes() -> None:
    for name in ("reshape", "squeeze", "unsqueeze", "flatten", "unary_Identity", "dropout", "cast_to_itself"):
        graph = net_of(name)
        (op,) = graph.ops
        assert graph.tensors[op.outputs[0]].storage == graph.tensors[graph.inputs[0]].storage, name
    for name in ("transpose", "slice", "expand", "concat", "cast"):
        graph = net_of(name)
        assert graph.tensors[graph.outputs[0]].storage != graph.tensors[graph.inputs[0]].storage, name


def test_settings_are_buffers_and_weights_are_parameters() -> None:
    graph = net_of("resize_sizes")
    assert ([t.shape for t in graph.parameters()], [t.shape for t in graph.buffers()]) == ([], [(4,)])
    graph = net_of("batch_norm")
    assert (len(list(graph.parameters())), len(list(graph.buffers()))) == (2, 2)
    graph = net_of("clip")  # single numbers are literals
    assert not list(graph.parameters())


def test_tied_weights_share_one_storage_and_count_once() -> None:
    graph = net_of("tied")
    assert kinds(graph) == ["embedding", "linear"]
    assert sum(t.elements for t in graph.parameters()) == 160


def test_weights_count_as_they_are_stored() -> None:
    (weight,) = net_of("half").parameters()
    assert (weight.dtype, weight.nbytes) == ("float16", 80)
    weights = [t for t in net_of("qdq_cnn_int4").parameters() if len(t.shape) > 1]
    assert {t.dtype for t in weights} == {"int4"}
    assert sum(t.nbytes for t in weights) == (216 + 72 + 80) // 2
    graph = net_of("ms_matmul_nbits")
    assert sum(t.nbytes for t in graph.parameters()) == 6 * 16  # two four-bit numbers to a byte


# -- shapes that are computed --------------------------------------------------------------------------------------


def test_shape_subgraphs_leave_no_operations() -> None:
    assert kinds(net_of("shuffle")) == ["reshape", "transpose", "reshape", "slice", "pad", "split", "mul"]
    assert set(kinds(net_of("transformer"))) == {
        "embedding", "add", "layer_norm", "linear", "reshape", "transpose", "matmul", "div", "where", "softmax", "mul",
        "erf",
    }  # fmt: skip
    assert sum(t.elements for t in net_of("transformer").parameters()) == sum(
        math.prod(s) for s in ((20, 16), (32, 16), (16,), (16,), *[(16, 16)] * 4, *[(16,)] * 3, (16, 32), (32, 16))
    )


@pytest.mark.parametrize("name", models.WORST_CASE)
def test_a_size_that_depends_on_values_counts_as_the_largest_and_says_so(name: str) -> None:
    assert any("the largest there can be counts" in note for note in net_of(name).notes)


def test_a_shape_that_only_a_run_knows_is_an_error_that_names_it() -> None:
    def model(told: bool) -> bytes:
        net = models.Net()
        y = net.op("Reshape", net.input(2, 6), net.input(2, dtype="i8"))
        if told:
            net.infos.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [3, 4]))
        return net.build(net.op("Relu", y))

    with pytest.raises(SourceError, match=r"(?s)shape of reshape_1 depends on values.*node\[0\].*input1.*fixed"):
        graph_of(model(False))
    assert graph_of(model(True)).tensors[-1].shape == (3, 4)


# -- sizes that the file leaves open -------------------------------------------------------------------------------


def open_net(*sizes: int | str) -> bytes:
    net = models.Net()
    return net.build(net.op("Relu", net.input(*sizes, name="image")))


def test_the_batch_is_1_unless_given() -> None:
    graph = graph_of(open_net("N", 3, 4))
    assert graph.tensors[0].shape == (1, 3, 4)
    assert graph.notes == ("the batch (N) is not fixed in the file and counts as 1 (--batch)",)
    graph = graph_of(open_net("N", 3, 4), batch=5)
    assert (graph.tensors[0].shape, graph.notes) == ((5, 3, 4), ())
    assert graph_of(open_net(2, 3, 4), batch=5).tensors[0].shape == (5, 3, 4)


@pytest.mark.parametrize("given", ["2x3x8x9", ["image=2x3x8x9"], {"image": np.zeros((2, 3, 8, 9), np.float32)}])
def test_inputs_replace_what_is_open(given: Any) -> None:
    data = open_net("N", 3, "height", "width")
    assert graph_of(data, given).tensors[0].shape == (2, 3, 8, 9)


def test_a_size_that_remains_open_names_the_input_and_the_option() -> None:
    with pytest.raises(UsageError, match=r"(?s)not fixed.*image.*image=Nx3xheightx\?.*--input image=1x3x…x…"):
        graph_of(open_net("N", 3, "height", None))


def test_a_symbol_is_the_same_number_everywhere() -> None:
    net = models.Net()
    a, b = net.input("N", "T", name="ids"), net.input("N", "T", 4, name="states")
    graph = graph_of(net.build(net.op("Neg", a), net.op("Neg", b)), "ids=2x7")
    assert [graph.tensors[i].shape for i in graph.inputs] == [(2, 7), (2, 7, 4)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("1xbanana", r"(?s)not an input shape.*1xbanana.*1x3x224x224"),
        ("1x3", r"(?s)another number of dimensions.*image.*1x3.*like image=Nx3x4"),
        (["1x3x4", "1x3x4"], r"(?s)more inputs.*2 inputs.*image=Nx3x4"),
        ("other=1x3x4", r"(?s)no such input.*other.*image=Nx3x4"),
        ("1x3x4:int64", r"(?s)another type.*image.*int64.*float32"),
        ("999999999999x999999999999x3", r"(?s)no possible size.*image.*999999999999.*smaller"),
    ],
)
def test_inputs_that_do_not_fit_are_explained(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        graph_of(open_net("N", 3, 4), given)


def test_a_batch_that_the_file_fixed_inside_is_an_error_of_the_operator() -> None:
    net = models.Net()
    data = net.build(net.op("Reshape", net.input("N", 6), N(1, 6)))
    with pytest.raises(SourceError, match=r"(?s)Reshape cannot run: the new shape.*node\[0\].*\[1, 6\] from 4x6"):
        graph_of(data, batch=4)


# -- integer networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [("qdq_cnn", "uint8"), ("qdq_cnn_int4", "uint8"), ("qdq_cnn_int16", "int16")]
)
def test_quantization_around_operators_is_an_integer_network(name: str, dtype: str) -> None:
    graph = net_of(name)
    assert kinds(graph) == [
        "quantize", "conv2d", "relu", "depthwise_conv2d", "add", "max_pool2d", "adaptive_avg_pool2d", "reshape",
        "linear", "dequantize",
    ]  # fmt: skip
    made = [graph.tensors[i] for op in graph.ops[:-1] for i in op.outputs]
    assert {t.dtype for t in made} == {dtype}
    floating = [s for s in graph.storages if s.kind is StorageKind.ACTIVATION and s.nbytes == 10 * 4]
    assert len(floating) == 1  # the output, which leaves in floating point
    assert "operators between DequantizeLinear and QuantizeLinear count as integer ones: 8" in graph.notes
    # image in floating point and as integers; everything after is smaller
    item = 1 if dtype == "uint8" else 2
    assert memfit.profile(graph).totals["peak_bytes"] == 768 * 4 + 768 * item
    biases = [t for t in graph.parameters() if t.dtype == "int32"]
    assert sum(t.elements for t in biases) == 8 + 8 + 10


def test_what_is_not_quantized_again_stays_floating_point() -> None:
    graph = net_of("qdq_float_tail")
    made = [(op.kind, graph.tensors[op.outputs[0]].dtype) for op in graph.ops]
    assert made == [("quantize", "uint8"), ("linear", "uint8"), ("dequantize", "float32"), ("softmax", "float32")]
    net = models.Net(13)
    x = net.op("DequantizeLinear", net.input(1, 8, dtype="u1"), models.ONE, models.ZERO)
    data = net.build(net.op("MatMul", x, F(8, 4)))
    assert kinds(graph_of(data)) == ["dequantize", "linear"]


def test_a_value_with_two_readers_is_integer_for_one_and_floating_point_for_the_other() -> None:
    net = models.Net(13)
    scale, zero = net.scale(), net.constant(models.ZERO)
    x = net.op("DequantizeLinear", net.input(1, 8, dtype="u1"), scale, zero)
    y = net.op("QuantizeLinear", net.op("Relu", x), scale, zero)
    graph = graph_of(net.build(y, net.op("Softmax", x)))
    made = [(op.kind, graph.tensors[op.outputs[0]].dtype) for op in graph.ops]
    assert made == [("dequantize", "float32"), ("relu", "uint8"), ("softmax", "float32")]
    relu = graph.ops[1]
    assert graph.tensors[relu.inputs[0]].storage == graph.tensors[graph.inputs[0]].storage


def test_weights_that_the_file_quantizes_itself_count_as_the_integers() -> None:
    net = models.Net(13)
    scale, zero = net.scale(), net.constant(models.ZERO8)
    weight = net.op("DequantizeLinear", net.op("QuantizeLinear", F(8, 64), scale, zero), scale, zero)
    graph = graph_of(net.build(net.op("MatMul", net.input(1, 8), weight)))
    assert kinds(graph) == ["linear"]
    assert [(t.dtype, t.shape) for t in graph.parameters()] == [("int8", (8, 64))]


def test_work_on_a_weight_is_an_operation_and_the_product_is_still_linear() -> None:
    net = models.Net(13)
    weight = net.op("Mul", net.constant(F(8, 64), "weight"), F(1, 64))
    graph = graph_of(net.build(net.op("MatMul", net.input(1, 8), weight)))
    assert kinds(graph) == ["mul", "linear"]
    rows = memfit.profile(graph).rows
    assert [(row["type"], row["params"], row["weights"]) for row in rows] == [("input", 0, 0), ("linear", 576, 512)]


def test_qlinear_operators_are_integers_with_scales_as_buffers() -> None:
    graph = net_of("qlinear_cnn")
    assert kinds(graph) == ["quantize", "conv2d", "add", "adaptive_avg_pool2d", "view", "linear", "dequantize"]
    assert sum(t.elements for t in graph.parameters()) == 4 * 27 + 4 + 40 + 10


# -- functions and control flow ------------------------------------------------------------------------------------


def test_functions_stand_in_the_place_of_their_calls() -> None:
    graph = net_of("function")
    assert kinds(graph) == ["linear", "leaky_relu", "reshape"] * 2
    assert {graph.scopes[op.scope].path for op in graph.ops} == {"layers.0.block", "layers.1.block"}
    assert graph.ops[1].kwargs == {"alpha": pytest.approx(0.1)}


def test_branches_and_loops() -> None:
    assert kinds(net_of("if_known")) == ["squeeze", "relu"]
    graph = net_of("if_unknown")
    assert graph.notes == ("the condition of If depends on values; of its two branches the larger counts",)
    graph = net_of("loop")
    assert [(op.kind, op.attrs.get("times", 1)) for op in graph.ops] == [
        ("loop", 1), ("linear", 5), ("tanh", 5), ("relu", 5), ("slice_scatter", 1),
    ]  # fmt: skip
    whole = graph.tensors[graph.outputs[1]]
    assert (whole.shape, graph.storages[whole.storage].birth, whole.version) == ((5, 2, 4), 0, 1)
    graph = net_of("scan")
    assert [graph.tensors[i].shape for i in graph.outputs] == [(3,), (6, 3)]


def test_a_loop_without_a_known_end_is_an_error_or_an_estimate() -> None:
    with pytest.raises(UnsupportedOp, match=r"(?s)as often as its values say.*node\[0\].*--estimate"):
        graph_of(models.loop(None))
    graph = graph_of(models.loop(None), estimate=True)
    assert "estimate: a Loop whose rounds depend on values counts with one round" in graph.notes
    assert graph_of(models.loop(0)).tensors  # no round: the state goes straight through


def test_functions_in_a_circle_are_refused() -> None:
    net = models.Net(13)
    body = [helper.make_node("f", ["a"], ["b"], domain="local")]
    net.functions = [helper.make_function("local", "f", ["a"], ["b"], body, [helper.make_opsetid("local", 1)])]
    with pytest.raises(SourceError, match=r"(?s)circle.*function f.*received: f"):
        graph_of(net.build(net.op("f", net.input(1), domain="local")))


# -- operators that are not known ----------------------------------------------------------------------------------


def test_an_unknown_operator_names_itself_and_the_table(tmp_path: Path) -> None:
    def model(told: bool = True) -> bytes:
        net = models.Net()
        net.microsoft = True
        y = net.op("Mystery", net.input(1, 4), domain="com.acme", name="/layer/Mystery")
        if told:
            net.infos.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 9]))
        return net.build(net.op("Relu", y))

    with pytest.raises(
        UnsupportedOp, match=r"(?s)com\.acme\.Mystery.*node\[0\] \(/layer/Mystery\).*1x4.*OPERATORS.*--est"
    ):
        graph_of(model())
    graph = graph_of(model(), estimate=True)
    assert graph.ops[0].kind == "unknown"
    assert graph.tensors[graph.ops[0].outputs[0]].shape == (1, 9)
    assert graph_of(model(False), estimate=True).tensors[-1].shape == (1, 4)  # as its first input
    notes = memfit.profile(saved(tmp_path, model()), estimate=True).notes
    assert any(note.startswith("estimate: com.acme.Mystery is unknown") for note in notes)


def test_what_is_no_tensor_is_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("SequenceAt", ["x", "x"], ["y"])], "g", [sequence], [])
    with pytest.raises(UnsupportedOp, match=r"(?s)no tensor.*input x.*sequence"):
        graph_of(helper.make_model(graph).SerializeToString())


# -- weights -------------------------------------------------------------------------------------------------------


def test_large_weights_are_never_copied(tmp_path: Path) -> None:
    net = models.Net()
    data = net.build(net.op("Gemm", net.input(1, 2048), F(2048, 2048)))
    path = saved(tmp_path, data)
    memfit.capture(saved(tmp_path, models.big(), "small.onnx"))  # imports
    tracemalloc.start()
    graph = memfit.capture(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert graph.ops[0].macs == 2048 * 2048
    assert len(data) > 16 << 20
    assert peak < 1 << 20


def test_leaving_weights_out_changes_nothing_else() -> None:
    data = models.big()
    proto, less = ModelProto.FromString(data), ModelProto.FromString(without_weights(data, "x"))
    for tensor in (*proto.graph.initializer, *less.graph.initializer):
        if len(tensor.raw_data) > KEPT_BYTES or tensor.external_data:
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
    assert proto == less
    small = models.cnn()
    assert without_weights(small, "x") == small


def test_files_beside_the_model_are_not_needed(tmp_path: Path) -> None:
    proto = onnx.load_from_string(models.cnn())
    path = tmp_path / "net.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=16)
    whole = memfit.capture(saved(tmp_path, models.cnn(), "whole.onnx"))
    (tmp_path / "weights.bin").unlink()
    graph = memfit.capture(str(path))
    assert [op.macs for op in graph.ops] == [op.macs for op in whole.ops]
    assert sum(t.nbytes for t in graph.parameters()) == sum(t.nbytes for t in whole.parameters())
    assert "weights in other files count with the size of their shape; they were not opened" in graph.notes


# -- names that are not to be trusted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb", r"a\x0ab"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("\u202eevil", r"\u202eevil"),
        ("größe", "größe"),
        ("x" * 5000, "x" * 1024 + "…"),
    ],
)
def test_names_cannot_forge_a_report(name: str, told: str, tmp_path: Path) -> None:
    net = models.Net()
    x = net.input(1, 4, name=name)
    path = saved(tmp_path, net.build(net.op("Gemm", x, net.constant(F(4, 4), f"{name}.weight"), name=name)))
    assert memfit.profile(path).rows[0]["name"] == told
    shown = subprocess.run(
        [sys.executable, "-m", "memfit", "profile", path], capture_output=True, text=True, check=True
    ).stdout
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_two_names_that_print_alike_stay_two() -> None:
    net = models.Net()
    a, b = net.input(1, 4, name="\x00"), net.input(1, 5, name=r"\x00")
    graph = graph_of(net.build(net.op("Relu", a), net.op("Relu", b)))
    assert [graph.tensors[op.outputs[0]].shape for op in graph.ops] == [(1, 4), (1, 5)]


# -- files that are not right --------------------------------------------------------------------------------------


def broken() -> Iterator[tuple[bytes, str]]:
    yield b"", r"(?s)not an \.onnx file.*empty file"
    yield b"PK\x03\x04 a zip file", r"(?s)cannot be read as protobuf.*byte"
    yield models.cnn()[:500], r"(?s)cannot be read as protobuf.*bytes where \d+ are left"
    yield ModelProto(ir_version=8).SerializeToString(), r"(?s)no network.*model\.graph"
    net = models.Net()
    net.op("Relu", "nobody", outputs=["y"])
    yield net.build("y"), r"(?s)before anything has written it.*node\[0\].*nobody"
    net = models.Net()
    net.op("Add", net.input(1), "b", outputs=["a"])
    net.op("Relu", "a", outputs=["b"])
    yield net.build("b"), r"(?s)before anything has written it.*received: b"
    net = models.Net()
    x = net.input(1)
    net.op("Relu", x, outputs=["y"])
    net.op("Tanh", x, outputs=["y"])
    yield net.build("y"), r"(?s)two values have one name.*node\[1\].*y"
    net = models.Net()
    net.op("Relu", net.input(1))
    yield net.build("missing"), r"(?s)output is never computed.*missing"
    net = models.Net()
    yield net.build(net.op("Conv", net.input(1, 3, 8, 8), F(4, 5, 3, 3))), r"(?s)Conv cannot run.*channels.*1x3x8x8"
    net = models.Net()
    yield (
        net.build(net.op("Conv", net.input(1, 3, 8, 8), F(4, 3, 3, 3), strides=[0, 1])),
        r"(?s)Conv cannot run.*strides.*not positive",
    )
    net = models.Net()
    yield net.build(net.op("Conv", net.input(1, 3, 8, 8), F(4, 3, 9, 9))), r"(?s)Conv.*window is larger.*\(9, 9\)"
    net = models.Net()
    yield net.build(net.op("MatMul", net.input(1, 3), F(4, 5))), r"(?s)MatMul.*do not share.*3 and 4"
    net = models.Net()
    yield net.build(net.op("Add", net.input(1, 3), F(4))), r"(?s)Add.*do not fit together.*1x3.*4"
    net = models.Net()
    yield net.build(net.op("Add", net.input(1, 3))), r"(?s)Add.*input 1 is missing"
    net = models.Net()
    yield net.build(net.op("Softmax", net.input(1, 3), axis=2.5)), ""
    net = models.Net()
    yield net.build(net.op("Concat", net.input(1, 3), axis=9)), r"(?s)Concat.*axis 9"
    net = models.Net()
    yield net.build(net.op("Expand", net.input(1), N(1 << 30, 1 << 30))), r"(?s)Expand.*no possible shape"
    net = models.Net()
    yield net.build(net.op("Relu", net.constant(F(2), "w"), outputs=["w"])), r"(?s)two values have one name"
    net = models.Net()
    net.constant(F(2), "w")
    net.constant(F(2), "w")
    yield net.build(net.op("Relu", "w")), r"(?s)two initializers.*initializer\[1\].*w"
    proto = onnx.load_from_string(models.cnn())
    proto.graph.initializer[0].dims[0] = 1 << 62
    yield proto.SerializeToString(), r"(?s)no possible shape.*initializer\[0\].*4611686018427387904x3x3x3"
    proto = onnx.load_from_string(models.cnn())
    proto.graph.initializer[0].dims[0] = -8
    yield proto.SerializeToString(), r"(?s)no possible shape.*-8x3x3x3"
    proto = onnx.load_from_string(models.cnn())
    proto.graph.initializer[0].dims[0] = 9
    yield proto.SerializeToString(), r"(?s)more or less data.*initializer\[0\].*864 bytes instead of 972"
    proto = onnx.load_from_string(models.big())
    proto.graph.initializer[0].dims[0] = 6400
    yield proto.SerializeToString(), r"(?s)more or less data.*294,912 bytes for 7,372,800"
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "deep", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "deep", [], [])
    yield helper.make_model(graph).SerializeToString(), r"(?s)inside each other more than 12 deep"


BROKEN = list(broken())


@pytest.mark.parametrize("case", range(len(BROKEN)))
def test_files_that_are_not_right_are_explained(case: int) -> None:
    data, words = BROKEN[case]
    if not words:
        graph_of(data)
        return
    with pytest.raises(MemfitError, match=words) as caught:
        graph_of(data)
    assert all((caught.value.what, caught.value.where, caught.value.received, caught.value.todo))


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "attributes"),
    [
        ("Shape", [models.I(2, 3)], 1, {"end": [1]}),
        ("Constant", [], 3, {"value_int": 1}),
        (
            "MultiHeadAttention",
            [models.I(2, 5, 8), models.I(2, 7, 8), models.I()],
            1,
            {"num_heads": 2, "domain": models.MS},
        ),
        ("Tile", [models.I(2, 3), N(), N(0)], 1, {}),
        ("ConstantOfShape", [N(2, 3)], 1, {"value": [1, 2]}),
    ],
)
def test_what_damaged_files_once_led_astray(kind: str, inputs: Any, outputs: int, attributes: dict[str, Any]) -> None:
    data = models.one(kind, *inputs, outputs=outputs, **attributes)()
    if kind == "ConstantOfShape":  # without a value it fills with zeros
        assert graph_of(data).outputs
        return
    with pytest.raises(SourceError, match=rf"(?s)^{kind} cannot run.*where.*received.*to do"):
        graph_of(data)


def test_a_file_of_a_million_fields_is_refused_at_once() -> None:
    data = b"\x3a" + b"\xc0\x84\x3d" + b"\x12\x00" * 500_000  # a graph of a million bytes: names, again and again
    with pytest.raises(SourceError, match=r"more than 500,000 fields"):
        parse_model(data)


# -- as a command --------------------------------------------------------------------------------------------------


def memfit_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "memfit", *arguments], capture_output=True, text=True, check=False)


def test_the_command_line_reads_it(tmp_path: Path) -> None:
    path = saved(tmp_path, models.cnn())
    done = memfit_run("profile", path, "--input", "2x3x32x32", "--format", "json")
    result = json.loads(done.stdout)
    assert result["memory"] == "ideal"
    assert result["rows"][0]["output_shape"] == [2, 3, 32, 32]
    assert memfit_run("profile", path, "--batch", "4").returncode == 0
    for arguments in (["--memory", "eager"], ["--training"], ["--dtype", "fp16"], ["--arg", "a=1"]):
        refused = memfit_run("profile", path, *arguments)
        assert refused.returncode == 2, arguments
        assert "Traceback" not in refused.stderr


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path) -> None:
    path = saved(tmp_path, models.cnn())
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'onnx' else real(name, *a); sys.modules['onnx'] = None; "
        f"from memfit.cli.main import main; sys.exit(main(['profile', {path!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'memfit[onnx]'" in done.stderr
