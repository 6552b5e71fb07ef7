"""The `.tflite` reader: known answers, every operator, and what it says about files that are not right."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models

import memfit
from memfit.capture.sources.tflite import to_graph
from memfit.capture.sources.tflite.operators import CUSTOM_OPERATORS, OPERATORS
from memfit.errors import MemfitError, SourceError, UnsupportedOp, UsageError
from memfit.formats.tflite import parse_model
from memfit.graph.model import Graph, StorageKind, Tensor, packed_bytes
from memfit.graph.optable import Role, role
from memfit.graph.verify import verify

REAL = Path(__file__).resolve().parents[3] / "shared" / "models"

# operators, MACs, lower bound of TFLM's head (shared/models/README.md), parameters
KNOWN = {
    "mlperf-tiny/ad01_int8": (10, 264_192, 768),
    "mlperf-tiny/kws_ref_model": (13, 2_656_768, 16_000),
    "mlperf-tiny/vww_96_int8": (31, 7_489_664, 55_296),
    "mlperf-tiny/pretrainedResnet_quant": (16, 12_501_632, 49_152),
    "mlperf-tiny/pretrainedResnet": (16, 12_501_632, 196_608),
    "tflite-micro/person_detect": (31, 7_157_888, 55_296),
    "tflite-micro/hello_world_int8": (3, 288, 32),
    "tflite-micro/keyword_scrambled_8bit": (15, 21_056, 672),
    "tflite-micro/mobilenet_v2_quantized_1x3x224x224": (84, 300_774_272, 2_451_840),
}


def graph_of(data: bytes, **options: bool) -> Graph:
    return to_graph(parse_model(data), **options)


def real(name: str) -> Path:
    path = REAL / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"the real models are not here: {path}")
    return path


def head_bound(graph: Graph) -> int:
    """TFLM's view of the same lower bound: sizes rounded up to 16, and SVDF's two scratch buffers."""
    peak = 0
    for op in graph.ops:
        live = sum(
            -(-s.nbytes // 16) * 16
            for s in graph.storages
            if s.kind in (StorageKind.INPUT, StorageKind.ACTIVATION) and s.birth <= op.index < s.ideal_death
        )
        if op.kind == "svdf":
            batch = graph.tensors[op.inputs[0]].shape[0]
            filters, units = graph.tensors[op.inputs[1]].shape[0], graph.tensors[op.outputs[0]].shape[1]
            live += sum(-(-4 * batch * n // 16) * 16 for n in (filters, units))
        peak = max(peak, live)
    return peak


# -- known answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_real_models(name: str) -> None:
    operators, macs, bound = KNOWN[name]
    graph = memfit.capture(str(real(name)))
    assert len(graph.ops) == operators
    assert sum(op.macs for op in graph.ops) == macs
    assert head_bound(graph) == bound


def test_mobilenet_v2_multiplies_as_often_as_pytorchs() -> None:
    profile = memfit.profile(str(real("tflite-micro/mobilenet_v2_quantized_1x3x224x224")))
    assert profile.totals["macs"] == 300_774_272  # torchvision:mobilenet_v2, 1x3x224x224
    assert profile.totals["params"] == 3_504_872 - 17_056  # batch norm's weights and biases became one bias


def test_rows_have_the_names_that_the_network_had() -> None:
    rows = memfit.profile(str(real("mlperf-tiny/vww_96_int8"))).rows
    assert [row["name"] for row in rows[1:4]] == ["conv2d", "depthwise_conv2d", "conv2d_1"]
    assert rows[1]["activation"] == "relu"
    assert (rows[1]["kernel"], rows[1]["stride"], rows[1]["output_shape"]) == ((3, 3), (2, 2), (1, 48, 48, 8))


# -- every operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.NETS)
def test_generated_models_make_graphs(name: str) -> None:
    data = models.NETS[name]()
    model = parse_model(data)
    graph = to_graph(model)
    verify(graph)
    assert len(graph.ops) == len(model.main.operators)
    constants = {t.buffer: t.nbytes for t in model.main.tensors if t.is_constant}
    held = sum(t.nbytes for t in (*graph.parameters(), *graph.buffers()))
    assert held == sum(constants.values()) + sum(t.nbytes for t in model.main.tensors if t.is_variable)
    for per in ("layer", "op", "tensor", "block", "module"):
        for memory in ("ideal", "mcunet"):
            if per != "tensor" or memory == "ideal":
                memfit.profile(graph, per=per, memory=memory)


def test_every_kind_has_a_role() -> None:
    named = {e.kind for e in (*OPERATORS.values(), *CUSTOM_OPERATORS.values()) if isinstance(e.kind, str)}
    others = {kind for kind in named if role(kind) is Role.OTHER}
    state = {"var_handle", "assign_variable", "call_once", "if", "while"}
    signal = {e.kind for e in CUSTOM_OPERATORS.values()} - {"nms"}
    assert others <= state | signal


MACS = {
    "conv-int8": 3 * 4 * 5 * 9 * 4,  # 6x8 at stride 2, 5 filters of 3x3x4
    "depthwise-int8": 6 * 8 * 8 * 9,
    "transpose_conv-float32": 6 * 8 * 4 * 9 * 3,
    "linear-int16": 2 * 24 * 7,
    "matmul-int8": 4 * 6 * 4,
    "matmul_adj_x-int8": 6 * 4 * 6,
    "matmul_adj_y-int8": 4 * 6 * 4,
    "svdf-int8": 12 * 12 + 12 * 4,  # 6 units of rank 2, 12 inputs, memory 4
    "lstm-float32": 4 * (4 * 5 * 6 + 4 * 5 * 5),  # 4 steps, four gates
    "softmax-int8": 0,
}


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name: str) -> None:
    assert sum(op.macs for op in graph_of(models.NETS[name]()).ops) == MACS[name]


def test_settings_are_buffers_and_weights_are_parameters() -> None:
    graph = graph_of(models.NETS["transpose_conv-int8"]())
    assert [t.shape for t in graph.parameters()] == [(3, 3, 3, 4), (3,)]
    assert [t.shape for t in graph.buffers()] == [(4,)]


def test_a_variable_tensor_is_a_buffer_that_its_operator_writes() -> None:
    graph = graph_of(models.NETS["svdf-int8"]())
    (state,) = graph.buffers()
    assert state.name == "state"
    (op,) = graph.ops
    written = graph.tensors[op.outputs[1]]
    assert (written.storage, written.version) == (state.storage, 1)


def test_tied_weights_share_one_storage_and_count_once() -> None:
    graph = graph_of(models.tied())
    weights = [t for t in graph.parameters() if t.shape == (8, 8)]
    assert len(weights) == 2
    assert len({t.storage for t in weights}) == 1
    assert memfit.profile(graph).rows[2]["params"] == 0


def test_int4_weights_take_half_a_byte() -> None:
    weight = next(t for t in graph_of(models.NETS["conv_int4-int8"]()).parameters() if t.dtype == "int4")
    assert weight.nbytes == weight.elements // 2
    assert packed_bytes(3, "int2") == 1
    assert Tensor(0, 0, (5,), (1,), "int4").nbytes == 3


def test_the_records_say_what_the_arena_needs() -> None:
    model = parse_model(models.cnn())
    conv = model.main.operators[0]
    assert (conv.name, conv.version, conv.options_type) == ("CONV_2D", 3, "Conv2DOptions")
    assert conv.options["fused_activation_function"] == 3
    weight = model.main.tensors[conv.inputs[1]]
    assert weight.quantization is not None
    assert (len(weight.quantization.scales), weight.quantization.dimension) == (8, 0)
    assert len(model.content(weight.data)) == weight.nbytes == 8 * 27
    assert model.signatures[0].inputs == (("in0", 0),)
    lstm = parse_model(models.NETS["lstm-int8"]()).main
    assert sum(t.is_variable for t in lstm.tensors) == 2
    assert lstm.operators[0].inputs.count(-1) == 9


def test_offline_offsets_are_read() -> None:
    net = models.Net()
    y = net.unary("RELU", net.input(1, 4))
    net.metadata["OfflineMemoryAllocation"] = models.offline_plan([16, 0])
    assert parse_model(net.build(y)).offline_offsets == (16, 0)
    assert parse_model(models.cnn()).offline_offsets is None
    net.metadata["OfflineMemoryAllocation"] = struct.pack("<4i", 1, 0, 99, 0)
    assert parse_model(net.build(y)).offline_offsets is None


# -- where the format has more than a graph ------------------------------------------------------------------------


def test_subgraphs_are_read_and_the_first_is_the_network() -> None:
    model = parse_model(models.control_flow())
    assert [s.name for s in model.subgraphs] == ["main", "subgraph1", "subgraph2"]
    graph = to_graph(model)
    assert [op.kind for op in graph.ops] == ["if"]
    assert "3 subgraphs" in graph.notes[0]
    assert "IF" in graph.notes[0]


def test_subgraphs_in_a_circle_are_refused() -> None:
    with pytest.raises(SourceError, match=r"(?s)circle.*subgraphs\[1\].*runs subgraph 1.*convert"):
        parse_model(models.control_flow(circle=True))


def test_an_unknown_operator_names_itself_and_the_table(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match=r"(?s)MyOperator.*operators\[1\].*1x4.*OPERATORS.*--estimate"):
        graph_of(models.custom())
    graph = graph_of(models.custom(), estimate=True)
    assert graph.ops[1].kind == "unknown"
    assert any("MyOperator" in note and note.startswith("estimate") for note in graph.notes)
    path = tmp_path / "custom.tflite"
    path.write_bytes(models.custom())
    assert any("MyOperator" in note for note in memfit.profile(str(path), estimate=True).notes)


def test_a_custom_operator_with_a_builtins_name_is_not_that_builtin() -> None:
    data = models.custom("XDD").replace(b"\x03\x00\x00\x00XDD\x00", b"\x03\x00\x00\x00ADD\x00")
    assert parse_model(data).main.operators[1].is_custom
    with pytest.raises(UnsupportedOp):
        graph_of(data)


def test_texts_and_variants_have_no_size() -> None:
    net = models.Net("FLOAT32")
    x = net.input(1, 4, type="STRING")
    data = net.build(net.op("SHAPE", [x], [net.tensor((2,), "INT32")], "ShapeOptions"))
    with pytest.raises(UnsupportedOp, match=r"STRING"):
        graph_of(data)
    assert graph_of(data, estimate=True).ops[0].kind == "shape"


def test_compressed_constants_may_be_shorter_than_their_shape() -> None:
    net = models.Net("FLOAT32")
    y = net.op("ADD", [net.input(1, 4), net.tensor((1, 4), data=b"abc")], [net.tensor((1, 4))], "AddOptions")
    net.metadata["COMPRESSION_METADATA"] = b"x"
    graph = graph_of(net.build(y))
    assert graph.notes == ("compressed constants count with all their elements, not as the file stores them",)


# -- names that are not to be trusted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\tc", r"a\x0ab\x0d\x09c"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("\u202eevil\u2028", r"\u202eevil\u2028"),
        ("größe", "größe"),
        ("x" * 5000, "x" * 1024 + "…"),
        ("", "tensor0"),
    ],
)
def test_names_cannot_forge_a_report(name: str, told: str, tmp_path: Path) -> None:
    net = models.Net("FLOAT32")
    x = net.tensor((1, 4), name=name)
    net.inputs.append(x)
    path = tmp_path / "named.tflite"
    path.write_bytes(net.build(net.unary("RELU", x)))
    rows = memfit.profile(str(path)).rows
    assert rows[0]["name"] == told
    shown = subprocess.run(
        [sys.executable, "-m", "memfit", "profile", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert told[:10] in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_a_name_that_is_no_text_is_escaped() -> None:
    data = models.custom().replace(b"input0", b"inp\xff\xfe0")
    assert parse_model(data).main.tensors[0].name == r"inp\xff\xfe0"


# -- files that are not right --------------------------------------------------------------------------------------


def patched(change: str) -> bytes:
    """A file with one thing wrong."""
    net = models.Net("FLOAT32")
    x = net.input(1, 4)
    if change == "unwritten":
        return net.build(net.unary("RELU", net.tensor((1, 4), name="nobody")))
    if change == "output":
        net.unary("RELU", x)
        return net.build(net.tensor((1, 4)))
    if change == "twice":
        y = net.tensor((1, 4))
        net.op("RELU", [x], [y])
        return net.build(net.op("TANH", [x], [y]))
    if change == "input written":
        return net.build(net.op("RELU", [x], [x]))
    if change == "constant written":
        return net.build(net.op("RELU", [x], [net.tensor((1, 4), data=np.zeros(4))]))
    if change == "index":
        return net.build(net.op("RELU", [77], [net.tensor((1, 4))]))
    if change == "negative index":
        return net.build(net.op("RELU", [x], [-1]))
    if change == "shape":
        return net.build(net.op("RELU", [x], [net.tensor((1, -4))]))
    if change == "huge":
        return net.build(net.op("RELU", [x], [net.tensor((1 << 30, 1 << 30, 1 << 30))]))
    if change == "rank":
        return net.build(net.op("RELU", [x], [net.tensor((1,) * 40)]))
    if change == "short constant":
        return net.build(net.op("ADD", [x, net.tensor((1, 4), data=b"abc")], [net.tensor((1, 4))]))
    if change == "options":
        return net.build(net.op("CONV_2D", [x, x], [net.tensor((1, 4))], "AddOptions"))
    if change == "filter":
        filters = net.tensor((3, 5), data=np.zeros((3, 5)))
        return net.build(net.op("FULLY_CONNECTED", [x, filters, -1], [net.tensor((1, 3))], "FullyConnectedOptions"))
    if change == "rank of input":
        return net.build(net.op("CONV_2D", [x, x], [net.tensor((1, 4))], "Conv2DOptions"))
    if change == "no filter":
        return net.build(net.op("FULLY_CONNECTED", [x], [net.tensor((1, 4))], "FullyConnectedOptions"))
    if change == "no input":
        return net.build(net.op("RELU", [], [net.tensor((1, 4))]))
    if change == "one of two":
        return net.build(net.op("ADD", [x, -1], [net.tensor((1, 4))], "AddOptions"))
    if change == "no output":
        net.op("RELU", [x], [])
        return net.build(x)
    raise AssertionError(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unwritten", r"(?s)reads a tensor before.*operators\[0\] \(RELU\).*nobody.*convert"),
        ("output", r"(?s)output is never computed.*outputs.*tensors\[2\]"),
        ("twice", r"(?s)two operators write one tensor.*operators\[1\].*operators\[0\] writes too"),
        ("input written", r"(?s)writes to the network's input.*RELU"),
        ("constant written", r"(?s)writes to a constant.*RELU"),
        ("index", r"(?s)index points to none of the 2 tensors.*operators\[0\].inputs.*77.*convert"),
        ("negative index", r"(?s)index points to none.*outputs.*-1"),
        ("shape", r"(?s)size that cannot be.*tensors\[1\].shape.*1x-4"),
        ("huge", r"(?s)size that cannot be.*1073741824x"),
        ("rank", r"(?s)more than 16 dimensions.*tensors\[1\].*40"),
        ("short constant", r"(?s)less data than its shape.*3 bytes for 1x4 of FLOAT32"),
        ("options", r"(?s)options of another operator.*AddOptions instead of Conv2DOptions"),
        ("filter", r"(?s)FULLY_CONNECTED cannot run: its filter does not divide the input.*1x4, 3x5, left out, 1x3"),
        ("rank of input", r"(?s)CONV_2D cannot run: input 1 has 2 dimensions instead of 4"),
        ("no filter", r"(?s)FULLY_CONNECTED cannot run: input 1 is missing.*1 inputs"),
        ("no input", r"(?s)RELU lacks an input or an output.*operators\[0\].*inputs \[\], outputs \[1\]"),
        ("one of two", r"(?s)ADD lacks an input.*inputs \[0, -1\], outputs \[1\]"),
        ("no output", r"(?s)RELU lacks an input or an output.*inputs \[0\], outputs \[\]"),
    ],
)
def test_a_file_that_cannot_run_says_what_where_and_what_to_do(change: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        graph_of(patched(change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"(?s)not a \.tflite file.*an empty file.*TensorFlow Lite's converter"),
        (b"PK\x03\x04zip!", r"(?s)not a \.tflite file.*8 bytes that begin with b'PK"),
        (b"\x00\x00\x00\x00TFL3", r"(?s)damaged: an offset points outside.*the root"),
        (b"\xff\xff\xff\xffTFL3" + bytes(64), r"(?s)damaged: an offset points outside.*the root.*4,294,967,295"),
        (b"\x08\x00\x00\x00TFL3" + bytes(8), r"(?s)damaged: a table's list of fields is broken"),
    ],
)
def test_a_file_that_is_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        memfit.capture(str(path))


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        memfit.capture(str(tmp_path / "none.tflite"))
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(SourceError, match="folder"):
        memfit.capture(str(tmp_path / "folder.tflite"))


def test_every_cut_is_an_error_or_the_same_model() -> None:
    data = models.NETS["conv-int8"]()
    whole = parse_model(data)
    for end in range(0, len(data), 7):
        try:
            found = parse_model(data[:end])
        except SourceError:
            continue
        assert found == whole


def test_a_list_that_names_one_tensor_without_end_is_refused_quickly() -> None:
    """A small file that asks for a lot of work: 300,000 entries of a list name one table with a long shape."""
    data = bytearray(models.NETS["relu-float32"]())
    tensors = subgraph_tensors(bytes(data))
    data += bytes(-len(data) % 4)
    count, start = 300_000, len(data)
    table = start + 4 + 4 * count + 8  # behind the list and the table's own list of fields
    data += struct.pack("<I", count) + b"".join(struct.pack("<I", table - (start + 4 + 4 * i)) for i in range(count))
    data += struct.pack("<4H", 6, 8, 4, 0)  # fields: the shape, 4 bytes on
    data += struct.pack("<iI", 8, 4) + struct.pack("<17i", 16, *([1] * 16))
    struct.pack_into("<I", data, tensors, start - tensors)
    began = time.process_time()
    with pytest.raises(SourceError, match=r"(?s)more than memfit reads.*subgraphs\[0\].tensors\[\d+\].*bytes"):
        parse_model(bytes(data))
    assert time.process_time() - began < 2


def subgraph_tensors(data: bytes) -> int:
    """Byte at which the first subgraph's reference to its tensors stands."""
    from memfit.formats.flatbuffer import File, Schema, Table

    schema, file = Schema("tflite"), File(data, "x", ".tflite")
    root = Table(file, file.reference(0, ""), schema.layout("Model"), "model")
    (subgraph,) = root.tables("subgraphs", schema.layout("SubGraph"))
    return subgraph.place("tensors")


# -- what does not go together with a file --------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["eager", "cuda", "autograd", "tinytl"])
def test_pytorchs_memory_models_are_refused(memory: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(models.cnn())
    with pytest.raises(UsageError, match=rf"(?s){memory} is what PyTorch needs.*--memory.*tflm"):
        memfit.profile(str(path), memory=memory)


@pytest.mark.parametrize("options", [{"inputs": "1x3x8x8"}, {"batch": 2}, {"training": True}, {"dtype": "fp16"}])
def test_options_of_a_source_that_is_built_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(models.cnn())
    with pytest.raises(MemfitError, match=r"(?s)(holds a (network|finished)).*leave"):
        memfit.profile(str(path), **options)  # type: ignore[arg-type]


def test_a_graph_from_a_file_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(models.keyword())
    graph = memfit.capture(str(path))
    memfit.save_graph(graph, tmp_path / "x.memfit.json")
    again = memfit.load_graph(tmp_path / "x.memfit.json")
    assert again == graph
    assert memfit.profile(again).totals == memfit.profile(graph, memory="ideal").totals
    assert graph.origin.main.operators[0].name == "SVDF"
    assert again.origin is None


def test_sizes_are_those_of_the_shapes() -> None:
    graph = graph_of(models.unet("INT16"))
    for tensor in graph.tensors:
        if graph.storages[tensor.storage].kind is StorageKind.ACTIVATION:
            assert graph.storages[tensor.storage].nbytes == 2 * math.prod(tensor.shape)
