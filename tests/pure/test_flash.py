"""Flash: the file to the byte, the code as an estimate that stands apart, and both for networks without a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tflite_models

from memfit.capture.sources.tflite.graph import to_graph
from memfit.errors import UsageError
from memfit.formats.tflite import parse_model, read_model
from memfit.memory.flash import CHANNEL_BYTES, TENSOR_BYTES, code, estimate, flash, flash_of_graph
from memfit.memory.flash_kernels import DEFAULT, KERNEL_RATIO, KERNELS, OPERATORS, SHARED

MODELS = Path(__file__).parents[2].parent / "shared" / "models"
REAL = {
    # file: its bytes, constants, weight bits, how far the estimate from the graph alone may be off
    "mlperf-tiny/ad01_int8": (276_976, 270_880, 8, 0.01),
    "mlperf-tiny/kws_ref_model": (53_936, 24_376, 8, 0.17),
    "mlperf-tiny/pretrainedResnet": (318_144, 310_832, 32, 0.03),
    "mlperf-tiny/pretrainedResnet_quant": (98_496, 78_752, 8, 0.05),
    "mlperf-tiny/vww_96_int8": (333_288, 219_072, 8, 0.10),
    "tflite-micro/hello_world_int8": (2_704, 420, 8, 0.10),
    "tflite-micro/keyword_scrambled_8bit": (29_632, 22_728, 8, 0.05),
    "tflite-micro/mobilenet_v2_quantized_1x3x224x224": (3_980_776, 3_542_592, 8, 0.01),
    "tflite-micro/person_detect": (300_568, 218_928, 8, 0.01),
}


def test_a_file_is_its_bytes() -> None:
    data = tflite_models.cnn()
    model = parse_model(data, "cnn.tflite")
    found = flash(model)
    constants = {t.buffer: t.data.nbytes for s in model.subgraphs for t in s.tensors if t.data is not None}
    assert found.model_bytes == len(data)
    assert found.weight_bytes == sum(constants.values())
    assert found.weight_bytes + found.graph_bytes == found.model_bytes
    assert found.core_bytes + sum(o.code_bytes for o in found.by_operator) == found.code_bytes
    assert found.model_bytes + found.code_bytes == found.total_bytes
    assert [o.name for o in found.by_operator] == list(dict.fromkeys(o.name for o in model.main.operators))
    assert any("estimate" in note for note in found.notes)


def test_a_graph_read_from_a_file_gives_the_file() -> None:
    model = parse_model(tflite_models.cnn(), "cnn.tflite")
    graph = to_graph(model)
    assert flash_of_graph(graph) == flash(model)
    assert flash_of_graph(replace(graph, origin=None)).model_bytes != len(tflite_models.cnn())


@pytest.mark.parametrize("name", tflite_models.OPERATOR_NETS)
def test_every_operator_has_a_figure_or_a_note(name: str) -> None:
    found = flash(parse_model(tflite_models.OPERATOR_NETS[name](), f"{name}.tflite"))
    assert found.core_bytes > 10_000
    unknown = [o.name for o in found.by_operator if not o.known]
    assert all(o.code_bytes > 0 for o in found.by_operator)
    assert bool(unknown) == any("no figure for" in note for note in found.notes)
    for operator in unknown:
        assert operator not in KERNELS
        assert any(operator in note for note in found.notes)


def test_what_operators_share_counts_once() -> None:
    alone = {name: code([name])[1][0].code_bytes for name in ("MAX_POOL_2D", "AVERAGE_POOL_2D")}
    _, both = code(["MAX_POOL_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D"])
    assert [o.name for o in both] == ["MAX_POOL_2D", "AVERAGE_POOL_2D"]
    shared = sum(nbytes for group, nbytes in SHARED if {"MAX_POOL_2D", "AVERAGE_POOL_2D"} <= group)
    assert sum(alone.values()) - sum(o.code_bytes for o in both) == pytest.approx(shared * KERNEL_RATIO, abs=2)


def test_the_tables_agree() -> None:
    for group, nbytes in SHARED:
        assert len(group) > 1
        assert all(nbytes < KERNELS[name] for name in group)
    for name in KERNELS:
        within = sum(nbytes for group, nbytes in SHARED if name in group)
        assert within < KERNELS[name]
    assert {name for names in OPERATORS.values() for name in names} <= set(KERNELS)
    assert all(o.code_bytes > 0 for o in code(KERNELS)[1])
    assert min(KERNELS.values()) < DEFAULT < max(KERNELS.values())


def test_an_unknown_operator_is_the_median_and_says_so() -> None:
    _, (known, unknown) = code(["ADD", "MY_OPERATOR"])
    assert (known.known, unknown.known) == (True, False)
    assert unknown.code_bytes == round(DEFAULT * KERNEL_RATIO)


def test_an_estimate_worked_out_by_hand() -> None:
    """One convolution with 4 output channels and 3x3x2 kernels, without a file."""
    net = tflite_models.Net()
    y = net.conv(net.input(1, 8, 8, 2), 4, 3)
    graph = replace(to_graph(parse_model(net.build(y), "net.tflite")), origin=None)
    found = estimate(graph)
    assert found.weight_bytes == 4 * 3 * 3 * 2 + 4 * 4
    tensors, scales = 4, 1 + 1 + 4 + 4  # input, weights, bias, output; one scale each, but one a channel for two
    assert found.graph_bytes == tensors * TENSOR_BYTES + scales * CHANNEL_BYTES
    assert [o.name for o in found.by_operator] == ["CONV_2D"]
    assert estimate(graph, weight_bits=4).weight_bytes == 4 * 3 * 3 * 2 // 2 + 4 * 4
    with pytest.raises(UsageError, match="from 1 to 32 bits"):
        estimate(graph, weight_bits=64)


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    path = MODELS / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"{path} is not there: the real models are not part of the project")
    size, constants, bits, off = REAL[name]
    model = read_model(path)
    found = flash(model)
    assert (found.model_bytes, found.weight_bytes) == (size, constants)
    assert all(o.known for o in found.by_operator)
    guess = estimate(to_graph(model), weight_bits=bits)
    assert guess.weight_bytes == pytest.approx(constants, rel=0.001)
    assert guess.model_bytes == pytest.approx(size, rel=off)
    assert {o.name for o in guess.by_operator if not o.known} == set()
    assert guess.code_bytes == pytest.approx(found.code_bytes, rel=0.3)
