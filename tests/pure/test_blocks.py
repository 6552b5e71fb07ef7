"""Blocks: what people call a block, each row in exactly one."""

from __future__ import annotations

import pytest
from graphs import Builder

from memfit.analysis.blocks import blocks
from memfit.analysis.layers import layers
from memfit.errors import UsageError
from memfit.graph.model import Graph


def names(graph: Graph, pattern: str | None = None) -> list[str]:
    rows = layers(graph)
    found = blocks(graph, rows, pattern)
    placed = sorted(position for block in found for position in block.layers)
    assert placed == [position for position, row in enumerate(rows) if row.type != "input"]
    return [block.name for block in found]


def residual(b: Builder, x: int, path: str) -> int:
    b.module(path, "Block")
    y = b.unary("relu", b.norm(b.conv(x, 4, path=f"{path}.conv1"), path=f"{path}.bn1"), path=f"{path}.relu")
    y = b.conv(y, 4, path=f"{path}.conv2")
    return b.add(y, x, path=path)


def resnet() -> Graph:
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 4, path="conv1")
    for stage in ("layer1", "layer2"):
        b.sequence(stage)
        for i in range(2):
            x = residual(b, x, f"{stage}.{i}")
    x = b.op("mean", (x,), (1, 4))
    return b.build(b.linear(x, 10, path="fc"))


def test_stages_are_descended_into() -> None:
    assert names(resnet()) == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "(root)", "fc"]


def test_single_members_of_a_list_that_is_opened_are_blocks_too() -> None:
    b = Builder()
    b.sequence("features")
    x = b.conv(b.input(1, 3, 8, 8), 4, path="features.0.conv")
    for i in (1, 2):
        x = residual(b, x, f"features.{i}")
    x = b.conv(x, 8, path="features.3.conv")
    graph = b.build(x)
    assert names(graph) == ["features.0", "features.1", "features.2", "features.3"]


def test_a_list_of_single_layers_is_not_opened() -> None:
    b = Builder()
    x = b.input(1, 8)
    b.sequence("mlp")
    for i in (0, 2, 4):
        x = b.unary("relu", b.linear(x, 8, path=f"mlp.{i}"), path=f"mlp.{i + 1}")
    assert names(b.build(x)) == ["mlp"]


def test_element_wise_arithmetic_makes_no_block() -> None:
    """A hand-written swish after each convolution does not turn the parts of a block into blocks."""
    b = Builder()
    b.sequence("block")
    x = b.input(1, 3, 4, 4)
    for i in range(2):
        b.sequence(f"block.{i}")
        y = b.conv(x, 3, path=f"block.{i}.0")
        gate = b.unary("sigmoid", y, path=f"block.{i}.1")
        x = b.op("mul", (y, gate), (1, 3, 4, 4), path=f"block.{i}.1")
    assert names(b.build(x)) == ["block"]


def test_repeated_pooling_cuts_a_plain_chain() -> None:
    b = Builder()
    b.sequence("features")
    x, i = b.input(1, 3, 16, 16), 0
    for convs in (1, 2):
        for _ in range(convs):
            x = b.unary("relu", b.conv(x, 4, path=f"features.{i}"), path=f"features.{i + 1}")
            i += 2
        x = b.pool(x, path=f"features.{i}")
        i += 1
    x = b.view(x, 1, 64)
    b.sequence("classifier")
    x = b.linear(b.linear(x, 8, path="classifier.0"), 3, path="classifier.1")
    assert names(b.build(x)) == ["features.0-2", "features.3-7", "classifier"]


def test_a_module_of_numbered_members_of_one_class_is_a_list() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 4, path="stem")
    b.module("dense", "DenseBlock")
    made = [x]
    for i in (1, 2):
        path = f"dense.denselayer{i}"
        b.module(path, "DenseLayer")
        x = b.op("concat", made, (1, 4 * len(made), 8, 8), path=path)
        made.append(b.conv(x, 4, path=f"{path}.conv"))
    x = b.op("concat", made, (1, 12, 8, 8), path="dense")
    assert names(b.build(x)) == ["stem", "dense.denselayer1", "dense.denselayer2", "dense"]


def test_two_different_parts_of_one_class_stay_together() -> None:
    b = Builder()
    b.module("block", "Block")
    x = b.input(1, 4, 8, 8)
    for part in ("context_module", "local_module"):
        x = residual(b, x, f"block.{part}")
    assert names(b.build(x)) == ["block"]


def test_a_pattern_overrides() -> None:
    graph = resnet()
    assert names(graph, r"layer\d") == ["conv1", "layer1", "layer2", "(root)", "fc"]
    assert names(graph, r"layer1\.\d") == ["conv1", "layer1.0", "layer1.1", "layer2", "(root)", "fc"]


@pytest.mark.parametrize(
    ("pattern", "said"), [("nothing", "no module has a path like this"), ("(", "not a regular expression")]
)
def test_a_pattern_that_cannot_be(pattern: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        names(resnet(), pattern)
    assert repr(pattern) in str(caught.value)
    assert "whole module paths" in str(caught.value)
