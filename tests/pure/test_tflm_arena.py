"""The arena of TensorFlow Lite Micro, predicted: worked out by hand, and as measured once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tflite_models as models
import tflm_nets as nets
from tflite_models import Net

import memfit
from memfit.errors import SourceError, UnsupportedOp, UsageError
from memfit.formats.tflite import TfliteModel, parse_model, read_model
from memfit.memory.tflm import BUILDS, arena, buffers, place
from memfit.memory.tflm.operators import CUSTOM_KERNELS, KERNELS

REAL = Path(__file__).resolve().parents[3] / "shared" / "models"

# head, printed total, smallest arena of the wheel; total and smallest of a device with the plain allocator and short
# enums, from source compiled for 32 bits (shared/tflm-arena.md)
KNOWN = {
    "mlperf-tiny/ad01_int8": (768, 3_984, 4_632, 2_372, 2_808),
    "mlperf-tiny/kws_ref_model": (16_000, 24_272, 24_272, 22_772, 22_780),
    "mlperf-tiny/vww_96_int8": (73_728, 103_680, 103_672, 100_660, 100_668),
    "mlperf-tiny/pretrainedResnet_quant": (49_152, 55_984, 55_984, 54_340, 54_348),
    "mlperf-tiny/pretrainedResnet": (196_608, 203_376, 203_376, None, None),
    "tflite-micro/person_detect": (55_296, 85_264, 85_264, 82_292, 82_296),
    "tflite-micro/hello_world_int8": (32, 1_504, 1_936, 708, 1_100),
    "tflite-micro/keyword_scrambled_8bit": (672, 10_032, 12_936, 8_100, 10_440),
    "tflite-micro/mobilenet_v2_quantized_1x3x224x224": (2_451_840, 2_607_168, 2_607_160, 2_600_548, 2_600_556),
}


def real(name: str) -> Path:
    path = REAL / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"the real models are not here: {path}")
    return path


def model_of(data: bytes) -> TfliteModel:
    return parse_model(data, "net.tflite")


@pytest.mark.parametrize("name", KNOWN)
def test_real_models_are_exact(name: str) -> None:
    head, total, smallest, device_total, device_smallest = KNOWN[name]
    model = read_model(real(name))
    found = arena(model)
    assert (found.head_bytes, found.total_bytes, found.smallest_bytes) == (head, total, smallest)
    if device_total is not None:
        device = arena(model, "mcu")
        assert (device.total_bytes, device.smallest_bytes) == (device_total, device_smallest)
        assert any("not verified by execution" in note for note in device.notes)


@pytest.mark.parametrize("name", KNOWN)
def test_profile_says_the_same(name: str) -> None:
    head, total, smallest, _, _ = KNOWN[name]
    profile = memfit.profile(str(real(name)), per="op")
    totals = profile.totals
    assert profile.memory == "tflm"
    assert (totals["head_bytes"], totals["peak_bytes"], totals["ram_bytes"]) == (head, total, smallest)
    assert totals["head_bytes"] + totals["tail_bytes"] == totals["peak_bytes"]
    assert max(row["peak_bytes"] for row in profile.rows) == totals["peak_bytes"]
    assert all(row["live_bytes"] + totals["tail_bytes"] <= row["peak_bytes"] for row in profile.rows)


def test_one_operator_by_hand() -> None:
    """A RELU of 24 floats: docs/tflm.md works it out."""
    net = Net("FLOAT32")
    x = net.input(1, 24)
    found = arena(model_of(net.build(net.unary("RELU", x))))
    assert found.head_bytes == 96 + 96
    assert [(item.category, item.nbytes) for item in found.items] == [
        ("runtime objects", 104),
        ("runtime objects", 72),
        ("runtime objects", 272),
        ("runtime objects", 16),
        ("runtime objects", 24),
        ("TfLiteEvalTensor data", 2 * 24),
        ("NodeAndRegistration struct", 64),
        ("Persistent buffer data", 28),
        ("Persistent buffer data", 8),
        ("Persistent TfLiteTensor data", 64),
        ("Persistent buffer data", 8),
        ("Persistent TfLiteTensor data", 64),
    ]
    # 600 bytes to the nodes; at multiples of 16: 28 go down to 640, 8 to 656; 64; 8 to 736; 64
    assert (found.tail_bytes, found.total_bytes) == (800, 992)
    # an arena that leaves 8 when divided by 16 loses less: 632, 648, 712, 728, 792
    assert found.smallest_bytes == 192 + 792 == 984


def test_tiny_models_are_decided_by_planning() -> None:
    """12 requests of 16 bytes, a pointer, 32 for each tensor make 264, rounded up to 272; then two buffers of 40."""
    net = Net("FLOAT32")
    x = net.input(1, 1)
    found = arena(model_of(net.build(net.unary("RELU", x))))
    assert (found.head_bytes, found.tail_bytes) == (16 + 16, 800)
    assert found.smallest_bytes == 632 + 272 + 2 * 40 == 984


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", models.MIXED_NETS)
def test_parts_add_up(name: str, build: str) -> None:
    found = arena(model_of(models.MIXED_NETS[name]()), build)
    assert sum(item.used_bytes for item in found.items) == found.tail_bytes
    assert sum(category.used_bytes for category in found.categories) == found.tail_bytes
    assert found.total_bytes == found.head_bytes + found.tail_bytes
    assert max(found.reach_bytes) == found.head_bytes
    assert max(found.live_bytes) <= found.head_bytes
    # the printed total is of an arena that 16 divides; the smallest one may end less than 16 bytes earlier
    assert found.smallest_bytes > found.total_bytes - 16


def test_devices_need_less_than_the_host() -> None:
    for make in models.MIXED_NETS.values():
        found = [arena(model_of(make()), build).tail_bytes for build in ("wheel", "host", "mcu-int-enums", "mcu")]
        assert found == sorted(found, reverse=True)


def test_tail_by_operator() -> None:
    net = Net("INT8")
    x = net.conv(net.input(1, 4, 4, 2), 8)
    found = arena(model_of(net.build(net.linear(net.conv(x, 8), 4))))
    assert set(found.by_operator) == {"CONV_2D", "FULLY_CONNECTED"}
    kept = [item.nbytes for item in found.items if item.operator == "CONV_2D"]
    assert kept == [28, 28, 80, 80, 32, 32, 32, 32]


def test_a_better_plan_lowers_the_smallest_arena() -> None:
    path = real("mlperf-tiny/vww_96_int8")
    model = read_model(path)
    held = buffers(model)
    assert max(at + b.nbytes for at, b in zip(place(held), held, strict=True)) == 73_728
    # shared/models/README.md: every buffer alone at the top or at the bottom, in turn
    offsets = [-1] * len(model.main.tensors)
    top = 55_296
    last = None
    for buffer in sorted(held, key=lambda b: b.first):
        down = last is None or last != 0
        offset = 0 if down else top - buffer.nbytes
        offsets[buffer.tensor if buffer.tensor is not None else 0] = offset
        last = offset
    found = arena(model, offsets=offsets)
    assert found.head_bytes == top
    assert found.smallest_bytes == 85_240


def test_wrong_offsets_are_refused() -> None:
    net = Net("INT8")
    y = net.conv(net.input(1, 4, 4, 2), 3)
    net.metadata["OfflineMemoryAllocation"] = models.offline_plan([0, 0])
    with pytest.raises(SourceError, match=r"(?s)as many as the tensors.*2 offsets, 4 tensors.*plan the model again"):
        arena(model_of(net.build(y)))


def test_an_unknown_operator_is_named_with_the_table() -> None:
    model = model_of(models.custom())
    with pytest.raises(UnsupportedOp, match=r"(?s)MyOperator.*operators\[1\].*KERNELS in memfit/memory/tflm"):
        arena(model)
    found = arena(model, estimate=True)
    assert any(note.startswith("estimate: ") and "MyOperator" in note for note in found.notes)


def test_what_is_no_tflite_file_has_no_arena(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(models.cnn())
    memfit.save_graph(memfit.capture(str(path)), tmp_path / "x.memfit.json")
    with pytest.raises(UsageError, match=r"(?s)not read from one.*--memory.*give the .tflite file"):
        memfit.profile(str(tmp_path / "x.memfit.json"), memory="tflm")
    with pytest.raises(UsageError, match="no such build"):
        arena(read_model(path), "esp32")


def test_profile_estimates_when_it_may(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(models.custom())
    with pytest.raises(UnsupportedOp):
        memfit.profile(str(path))
    profile = memfit.profile(str(path), estimate=True)
    assert any("estimate: the arena of MyOperator" in note for note in profile.notes)


def test_every_kernel_has_a_network_that_the_runtime_runs() -> None:
    """test_tflm_runtime.py compares each with the real thing."""
    used = set()
    for make in (*models.NETS.values(), *nets.MORE_OPERATORS.values()):
        for subgraph in model_of(make()).subgraphs:
            used |= {operator.name for operator in subgraph.operators}
    assert set(KERNELS) | set(CUSTOM_KERNELS) <= used


def test_types_under_a_byte_are_unpacked() -> None:
    net = Net("INT8")
    y = net.conv(net.input(1, 4, 4, 2), 4, filter_type="INT4")
    held = buffers(model_of(net.build(y)))
    found = arena(model_of(net.build(y)))
    assert [b.nbytes for b in held] == [32, 64]
    assert [b.nbytes for b in found.buffers] == [32, 64, 4 * 3 * 3 * 2 + 8]


def test_subgraphs_that_run_each_other_too_often_are_refused() -> None:
    """Each runs the next one twice: 2³⁰ visits, which would keep the runtime busy too."""
    net = Net("FLOAT32")
    inner = [net, *(Net("FLOAT32") for _ in range(30))]
    for number, other in enumerate(inner):
        which, x = other.input(1, type="BOOL"), other.input(1, 4)
        y = other.unary("RELU", x)
        if number < 30:
            y = other.op("IF", [which, which, x], [other.tensor((1, 4))], "IfOptions",
                         then_subgraph_index=number + 1, else_subgraph_index=number + 1)  # fmt: skip
        other.outputs = [y]
    net.others = inner[1:]
    with pytest.raises(SourceError, match=r"(?s)too often.*subgraphs\[\d+\].*steps.*convert"):
        arena(model_of(net.build(*net.outputs)))


def test_large_models_are_quick() -> None:
    net = Net("INT8")
    x = net.input(1, 4, 4, 4)
    for _ in range(400):
        x = net.conv(x, 4, kernel=1)
    model = model_of(net.build(x))
    start = time.process_time()
    arena(model)
    assert time.process_time() - start < 1
