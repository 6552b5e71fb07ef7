"""Memory models on graphs worked out by hand, and profiles made of them."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import Builder, inverted_residual, training_step

from memfit.analysis.result import Profile
from memfit.errors import UsageError
from memfit.graph.model import Graph, Phase
from memfit.memory.model import Options, View
from memfit.memory.profile import PER, profile_graph
from memfit.memory.registry import MODELS, memory_model
from memfit.memory.tensors import allocated_bytes


def adds_up(profile: Profile) -> None:
    """Shown parts sum to the shown total; the largest shown peak is the network's."""
    for key in ("activations", "weights", "params", "macs", "activation_bytes", "saved_bytes", "bytes", "elements"):
        if key in profile.totals and profile.rows and key in profile.rows[0] and profile.per != "module":
            assert sum(row[key] for row in profile.rows) == profile.totals[key], key
    if profile.totals["peak_bytes"] is not None and profile.per != "tensor":
        assert max(row["peak_bytes"] or 0 for row in profile.rows) == profile.totals["peak_bytes"]
        at = [row for row in profile.rows if row["name"] == profile.totals["peak_at"]]
        assert [row["peak_bytes"] for row in at] == [profile.totals["peak_bytes"]]


def peaks(graph: Graph, **options: Any) -> list[int | None]:
    profile = profile_graph(graph, memory="mcunet", **options)
    adds_up(profile)
    return [row["peak_bytes"] for row in profile.rows[1:]]


def test_mcunet_inverted_residual() -> None:
    """x = 32, hidden = 96, one channel = 16, at 8 bits.

    expand: x + hidden; depthwise in place: hidden + channel + x; project: hidden + x, written into x; add: x.
    """
    assert peaks(inverted_residual()) == [128, 96 + 16 + 32, 128, 32]
    assert peaks(inverted_residual(), inplace_depthwise=False) == [128, 96 + 96 + 32, 128, 32]
    assert peaks(inverted_residual(), bits=4) == [64, 72, 64, 16]
    assert peaks(inverted_residual(), bits=1) == [16, 18, 16, 4]
    assert peaks(inverted_residual(batch=2)) == [256, 192 + 16 + 64, 256, 64]


def test_mcunet_with_stride_and_without_a_residual() -> None:
    """Hidden 96 shrinks to 24 with stride 2 and a channel of 4; the output has 8 elements."""
    assert peaks(inverted_residual(stride=2, skip=False)) == [32 + 96, 96 + 4, 24 + 8]


def test_mcunet_does_not_write_over_what_is_read_later() -> None:
    b = Builder()
    x = b.conv(b.input(1, 2, 4, 4), 2, path="conv")
    y = b.conv(x, 2, 3, path="depthwise", depthwise=True)
    assert peaks(b.build(b.op("mul", (x, y), (1, 2, 4, 4)))) == [64, 64, 96]


def test_mcunet_does_not_accumulate_into_the_convolutions_own_input() -> None:
    b = Builder()
    x = b.input(1, 2, 4, 4)
    assert peaks(b.build(b.add(b.conv(x, 2, path="conv"), x))) == [64, 96]


def test_mcunet_does_not_accumulate_through_an_activation() -> None:
    b = Builder()
    x = b.conv(b.input(1, 2, 4, 4), 2, path="stem")
    y = b.conv(x, 2, path="a")
    y = b.unary("relu", b.conv(y, 2, path="b"), path="relu")
    assert peaks(b.build(b.add(x, y))) == [64, 64, 96, 96]


def test_mcunet_accumulates_into_the_earlier_branch_in_place_or_not() -> None:
    """ResNet's strided block: the shortcut's convolution runs last and adds itself to the main branch."""
    for in_place in (False, True):
        b = Builder()
        x = b.input(1, 2, 4, 4)
        y = b.conv(x, 2, path="main")
        s = b.norm(b.conv(x, 2, path="shortcut.0"), path="shortcut.1")
        z = b.inplace("add", y, s) if in_place else b.add(y, s)
        assert peaks(b.build(b.unary("relu", z))) == [64, 64, 32]


def test_mcunet_counts_in_place_code_once() -> None:
    b = Builder()
    x = b.unary("relu", b.conv(b.input(1, 2, 4, 4), 2, path="conv"), path="relu")
    assert peaks(b.build(b.inplace("hardswish", x))) == [64, 32]
    b = Builder()
    x = b.unary("relu", b.conv(b.input(1, 2, 4, 4), 2, path="conv"), path="relu")
    assert peaks(b.build(b.unary("hardswish", x))) == [64, 64]


def test_mcunet_counts_what_other_branches_keep() -> None:
    b = Builder()
    x = b.input(1, 2, 4, 4)
    left, right = b.conv(x, 2, path="left"), b.conv(x, 4, path="right")
    assert peaks(b.build(b.op("concat", (left, right), (1, 6, 4, 4)))) == [64, 32 + 32 + 64, 96 + 96]


def test_ideal_follows_storages() -> None:
    """fp32: input 128 bytes, convolution 256, batch norm 256, in-place ReLU on it, pooling 64."""
    b = Builder()
    x = b.norm(b.conv(b.input(1, 2, 4, 4), 4, path="conv"), path="bn")
    graph = b.build(b.pool(b.inplace("relu", x, path="relu"), path="pool"))
    figures = MODELS["ideal"].figures(View(graph))
    assert figures.per_op == (128 + 256, 512, 256, 256 + 64)
    profile = profile_graph(graph, memory="ideal")
    assert [row["peak_bytes"] for row in profile.rows] == [None, 512, 320]
    assert (profile.totals["peak_bytes"], profile.totals["peak_at"]) == (512, "conv")
    assert (profile.totals["input_bytes"], profile.totals["buffer_bytes"]) == (128, 0)
    assert profile.totals["parameter_bytes"] == profile.totals["model_bytes"] == 4 * (8 + 4 + 8)


def test_autograd_counts_each_storage_once() -> None:
    """Input 256 bytes, convolution's output 512, ReLU's 512 (pooling saves it again), pooled 128, scores 24."""
    graph = training_step()
    profile = profile_graph(graph, memory="autograd", per="layer")
    adds_up(profile)
    assert {row["name"]: row["saved_bytes"] for row in profile.rows} == {
        "input": 0,
        "body.conv": 256 + 512 + 512,
        "body.pool": 0,
        "fc": 128,
        "mse_loss": 24,
    }


def test_tinytl_keeps_inputs_and_one_bit_of_a_relu() -> None:
    profile = profile_graph(training_step(), memory="tinytl", per="layer")
    adds_up(profile)
    saved = {row["name"]: row["saved_bytes"] for row in profile.rows}
    assert saved == {"input": 0, "body.conv": 256 + 512 + 128 // 8, "body.pool": 0, "fc": 128, "mse_loss": 0}


@pytest.mark.parametrize(
    ("chosen", "saved"), [("bias", 16), ("norm", 512 + 16), ("^fc", 16 + 128), ("body.conv.weight", 256 + 16)]
)
def test_tinytl_keeps_no_input_of_frozen_layers(chosen: str, saved: int) -> None:
    profile = profile_graph(training_step(), memory="tinytl", train_only=chosen)
    assert profile.totals["saved_bytes"] == saved


def test_tinytl_products_and_smooth_activations() -> None:
    """matmul keeps both operands, softmax its output, gelu its input, a gate both factors; add keeps nothing."""
    b = Builder(training=True)
    x = b.input(2, 8)
    y = b.linear(x, 8, path="fc")
    s = b.op("softmax", (b.op("matmul", (x, y), (2, 2), macs=32),), (2, 2))
    g = b.unary("gelu", y, path="act")
    m = b.op("mul", (g, y), (2, 8))
    profile = profile_graph(b.build(b.add(m, y), s), memory="tinytl")
    kept = {row["name"]: row["saved_bytes"] for row in profile.rows}
    assert kept == {"input": 0, "fc": 64, "matmul": 128, "softmax": 16, "act": 64, "mul": 128, "add": 0}


def test_tinytl_model_size() -> None:
    """Frozen parameters at 8 bits, trained ones at 32; as stored without --frozen-bits."""
    graph = training_step()
    biases, rest = 4 + 4 + 3, 8 + 4 + 48
    sized = profile_graph(graph, memory="tinytl", train_only="bias", frozen_bits=8)
    assert sized.totals["model_bytes"] == 4 * biases + rest
    assert profile_graph(graph, memory="tinytl", train_only="bias").totals["model_bytes"] == 4 * (biases + rest)


def test_tensors_rounds_each_up() -> None:
    b = Builder()
    x = b.input(1, 3, 8, 8)
    b.buffer("bn.steps", dtype="int64")
    graph = b.build(b.conv(x, 200, path="conv"))
    profile = profile_graph(graph, per="tensor", memory="tensors")
    assert [(row["name"], row["type"], row["allocated_bytes"]) for row in profile.rows] == [
        ("conv.weight", "parameter", 2560),
        ("conv.bias", "parameter", 1024),
        ("bn.steps", "buffer", 512),
        ("input", "input", 1024),
    ]
    assert profile.totals["allocated_bytes"] == 5120
    assert [allocated_bytes(graph.tensors[i]) for i in graph.inputs] == [1024]


# -- profiles ---------------------------------------------------------------------------------------------------------

HAND_MADE = {"inference": inverted_residual(), "training": training_step()}


@pytest.mark.parametrize("phase", HAND_MADE)
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("memory", MODELS)
def test_every_model_and_kind_of_row_adds_up(memory: str, per: str, phase: str) -> None:
    graph = HAND_MADE[phase]
    model = memory_model(memory)
    needs_other = {"autograd": not graph.training, "tflm": True}.get(memory, False)
    if needs_other or (model.measures == "tensors" and per != "tensor"):
        with pytest.raises(UsageError, match=memory):
            profile_graph(graph, per=per, memory=memory)
        return
    for fold in (True, False):
        profile = profile_graph(graph, per=per, memory=memory, fold=fold)
        if fold or memory != "mcunet":
            adds_up(profile)
        names = [row["name"] for row in profile.rows]
        assert len(set(names)) == len(names)
        assert profile.to_dict()["memory"] == memory


@pytest.mark.parametrize("name", MODELS)
def test_each_model_describes_itself(name: str) -> None:
    model = memory_model(name)
    assert model.name == name
    assert model.what
    assert model.figures.__doc__


def test_samples_multiply_activations_and_nothing_else() -> None:
    graph = inverted_residual()
    one, ten = profile_graph(graph, memory="ideal"), profile_graph(graph, memory="ideal", samples=10)
    for single, many in zip(one.rows, ten.rows, strict=True):
        assert many["activations"] == 10 * single["activations"]
        assert many["activation_bytes"] == 40 * single["activations"]
        assert many["macs"] == single["macs"]
    assert any("10 samples" in note for note in ten.notes)


def test_module_rows_contain_their_children() -> None:
    profile = profile_graph(inverted_residual(), per="module", memory="ideal")
    rows = {row["name"]: row for row in profile.rows}
    assert list(rows)[:3] == ["(root)", "block", "block.0"]
    assert rows["(root)"]["params"] == rows["block"]["params"] == profile.totals["params"]
    assert rows["(root)"]["macs"] == profile.totals["macs"]
    assert rows["block"]["activations"] == 96 + 96 + 32
    assert rows["(root)"]["activations"] == rows["block"]["activations"] + 32
    assert [row["depth"] for row in profile.rows[:3]] == [0, 1, 2]
    assert len(profile_graph(inverted_residual(), per="module", memory="ideal", depth=1).rows) == 2


def test_backward_adds_to_the_peaks_of_the_modules_it_serves() -> None:
    graph = training_step()
    live = graph.ideal_live_bytes
    backward = {graph.ops[i].kind: live[i] for i in range(len(graph.ops)) if graph.ops[i].phase is Phase.BACKWARD}
    profile = profile_graph(graph, memory="ideal")
    rows = {row["name"]: row for row in profile.rows}
    assert rows["body.pool"]["peak_bytes"] >= backward["max_pool2d_with_indices_backward"]
    assert profile.totals["backward_macs"] == 96
    assert profile.totals["macs"] == sum(row["macs"] for row in profile.rows)
    ops = profile_graph(graph, memory="ideal", per="op")
    assert sum(row["macs"] for row in ops.rows) == ops.totals["macs"] == profile.totals["macs"] + 96
    assert {row["phase"] for row in ops.rows} == {"forward", "loss", "backward"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "mcunett"}, ("memory model", "mcunett", "did you mean mcunet")),
        ({"per": "line", "memory": "ideal"}, ("kind of row", "line", "layer")),
        ({"memory": "ideal", "samples": 0}, ("--samples", "0", "positive")),
        ({"memory": "tinytl", "train_only": "("}, ("--train-only", "'('", "regular expression")),
        ({"memory": "tinytl", "train_only": "zebra"}, ("--train-only", "zebra", "block.0.weight")),
        ({"memory": "autograd"}, ("autograd", "inference capture", "training=True")),
    ],
)
def test_what_cannot_be_is_said_clearly(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        profile_graph(inverted_residual(), **options)
    for word in words:
        assert word in str(caught.value)


def test_options_have_the_defaults_of_the_command() -> None:
    assert Options() == Options(bits=8, inplace_depthwise=True, train_only=None, probes=None)
