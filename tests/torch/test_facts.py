"""Published figures, reproduced to the last digit, and the rows of networks that people know.

`tests/expected` holds the project's own copies of the figures.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import memfit

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "tests/expected"

THIN_PEAKS = [
    145152, 124416, 290304, 73872, 72576, 36612, 36612, 36288, 13689, 13689, 13689, 14256, 18225, 18225, 18144, 9825,
    9825, 11200,
]  # fmt: skip
"""mobilenet_v2 at width 0.35 and 144x144, int8, by hand from MCUNetV2's rule."""


def facts(name: str) -> list[dict[str, str]]:
    with (EXPECTED / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def example(name: str) -> ModuleType:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_int8_block_peaks() -> None:
    profile = memfit.profile("torchvision:mobilenet_v2", inputs="1x3x224x224", per="block", memory="mcunet")
    names = [f"features.{i}" for i in range(19)]
    assert [row["name"] for row in profile.rows] == [*names, "(root)", "classifier"]
    published = [int(row["peak_bytes"]) for row in facts("mobilenet_v2_224_int8_block_peaks")]
    assert [row["peak_bytes"] for row in profile.rows[:18]] == published
    assert profile.totals["peak_bytes"] == max(published) == 1372 * 1024
    assert profile.totals["peak_at"] == "features.2"


def test_int8_block_peaks_of_a_thin_network() -> None:
    profile = memfit.profile(
        "torchvision:mobilenet_v2",
        inputs="1x3x144x144",
        per="block",
        memory="mcunet",
        args={"width_mult": 0.35},
    )
    assert [row["peak_bytes"] for row in profile.rows[:18]] == THIN_PEAKS


def test_saved_activations() -> None:
    profile = memfit.profile("torchvision:mobilenet_v2", inputs="1x3x224x224", per="block", memory="tinytl")
    saved = {row["name"]: row["saved_bytes"] for row in profile.rows}
    for row in facts("mobilenet_v2_224_saved_activations_tinytl"):
        assert saved[row["block"]] == int(row["saved_bytes"])
        assert f"{saved[row['block']] / 2**20:.2f}" == row["saved_mib"]
        assert row["published_mib"] in ("", row["saved_mib"])
    assert sum(saved.values()) == profile.totals["saved_bytes"]


@pytest.mark.parametrize(
    ("name", "autograd", "tinytl"), [("resnet18", 21.2, 18.1), ("resnet50", 82.0, 84.2), ("mobilenet_v2", 74.7, 52.0)]
)
def test_saved_mib_of_an_image(name: str, autograd: float, tinytl: float) -> None:
    """Figures measured with saved-tensor hooks, and TinyTL's rule, at batch 2."""
    for model, expected in (("autograd", autograd), ("tinytl", tinytl)):
        profile = memfit.profile(f"torchvision:{name}", inputs="2x3x224x224", memory=model)
        assert round(profile.totals["saved_bytes"] / 2 / 2**20, 1) == expected
        assert sum(row["saved_bytes"] for row in profile.rows) == profile.totals["saved_bytes"]


def test_vgg19_layer_table() -> None:
    profile = memfit.profile("torchvision:vgg19", inputs="1x3x224x224", per="layer", memory="ideal")
    *published, total = facts("vgg19_224_layers")
    assert len(profile.rows) == len(published)
    for row, expected in zip(profile.rows, published, strict=True):
        assert row["activations"] == int(expected["activations"])
        assert row["weights"] == int(expected["weights"] or 0)
        assert row["params"] == int(expected["params_with_bias"] or 0)
        for key, prefix in (("kernel", "patch"), ("stride", "stride")):
            sizes = (expected[f"{prefix}_h"], expected[f"{prefix}_w"])
            assert row[key] == (tuple(map(int, sizes)) if sizes[0] else None)
        _, channels, *pixels = row["output_shape"]
        assert (channels, *(pixels or (1, 1))) == tuple(int(expected[f"out_{d}"]) for d in "chw")
        if expected["ratio_percent_of_weights"]:
            assert f"{100 * row['weights'] / profile.totals['weights']:.2f}" == expected["ratio_percent_of_weights"]
    assert profile.totals["activations"] == int(total["activations"]) == 16_542_184
    assert profile.totals["weights"] == int(total["weights"]) == 143_652_544
    assert profile.totals["params"] == int(total["params_with_bias"]) == 143_667_240
    assert profile.totals["macs"] == 19_632_062_464


@pytest.mark.parametrize("row", facts("mobilenet_v2_memory_report"), ids=lambda row: row["input"])
def test_tensor_report(row: dict[str, str]) -> None:
    profile = memfit.profile("torchvision:mobilenet_v2", inputs=row["input_shape"], per="tensor", memory="tensors")
    assert profile.totals["elements"] == int(row["total_tensor_elements"])
    assert profile.totals["allocated_bytes"] == int(row["allocated_bytes_512_rounded"])
    assert sum(r["allocated_bytes"] for r in profile.rows) == profile.totals["allocated_bytes"]
    assert f"{profile.totals['allocated_bytes'] / 2**20:.2f}" == row["allocated_mib"]
    assert profile.totals["params"] == int(row["parameters"])


def test_activation_sizes_of_efficientvit_sam() -> None:
    sizes = example("efficientvit_sam").activation_sizes
    profile, one = sizes()
    published = facts("efficientvit_sam_l0_512_calibration")
    assert {label: row["activations"] for label, row in one.items()} == {
        row["layer"]: int(row["elements_per_sample"]) for row in published
    }
    for row in published:
        shape = tuple(int(row[key]) for key in ("channels", "height", "width"))
        assert one[row["layer"]]["output_shape"] == (1, *shape)
    for samples in (10, 100):
        _, many = sizes(samples)
        for row in published:
            found = many[row["layer"]]
            assert f"{found['activations']:.2e}" == row[f"published_{samples}_samples"]
            assert found["activation_bytes"] == 4 * found["activations"]
        assert many["stage1:0:0"]["activation_bytes"] == 32 * samples * 2**20
    assert profile.totals["params"] == 30_728_224
    assert f"{profile.totals['macs'] / 1e9:.2f}" == "34.77"


@pytest.mark.parametrize("name", ["block_peaks", "saved_activations", "vgg19_table", "tensor_report"])
def test_each_example_prints_published_and_computed(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example(name).main()
    printed = capsys.readouterr().out
    assert "published" in printed
    assert "computed" in printed


# -- rows of networks that people know --------------------------------------------------------------------------------


def numbered(path: str, count: int) -> list[str]:
    return [f"{path}.{i}" for i in range(count)]


BLOCKS: dict[str, list[str]] = {
    "torchvision:resnet18": [
        "conv1", "maxpool", *numbered("layer1", 2), *numbered("layer2", 2), *numbered("layer3", 2),
        *numbered("layer4", 2), "avgpool", "fc",
    ],
    "torchvision:vgg19": [
        "features.0-4", "features.5-9", "features.10-18", "features.19-27", "features.28-36", "classifier",
    ],
    "torchvision:vit_b_16": [
        "conv_proj", "(root)", "encoder", *[f"encoder.layers.encoder_layer_{i}" for i in range(12)], "encoder.ln",
        "heads",
    ],
    "torchvision:swin_t": [
        "features.0", *numbered("features.1", 2), "features.2", *numbered("features.3", 2), "features.4",
        *numbered("features.5", 6), "features.6", *numbered("features.7", 2), "norm", "avgpool", "head",
    ],
    "torchvision:convnext_tiny": [
        "features.0", *numbered("features.1", 3), "features.2", *numbered("features.3", 3), "features.4",
        *numbered("features.5", 9), "features.6", *numbered("features.7", 3), "avgpool", "classifier",
    ],
    "torchvision:efficientnet_b0": [
        "features.0", "features.1", *numbered("features.2", 2), *numbered("features.3", 2), *numbered("features.4", 3),
        *numbered("features.5", 3), *numbered("features.6", 4), "features.7", "features.8", "avgpool", "classifier",
    ],
    "torchvision:googlenet": [
        "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3", "inception4a",
        "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4", "inception5a", "inception5b",
        "avgpool", "fc", "(unused)",
    ],
    "timm:levit_128": [
        "stem", *numbered("stages.0.blocks", 4), "stages.1.downsample", *numbered("stages.1.blocks", 4),
        "stages.2.downsample", *numbered("stages.2.blocks", 4), "(root)", "head", "head_dist",
    ],
}  # fmt: skip


@pytest.mark.parametrize("source", BLOCKS)
def test_blocks_are_what_people_call_blocks(source: str) -> None:
    profile = memfit.profile(source, inputs="1x3x224x224", per="block", memory="mcunet")
    assert [row["name"] for row in profile.rows] == BLOCKS[source]


def test_dense_layers_are_blocks() -> None:
    profile = memfit.profile("torchvision:densenet121", inputs="1x3x224x224", per="block", memory="mcunet")
    names = [row["name"] for row in profile.rows]
    assert sum("denselayer" in name for name in names) == 58
    assert [name for name in names if "denselayer" not in name] == [
        "features.conv0", "features.pool0", "features.denseblock1", "features.transition1", "features.denseblock2",
        "features.transition2", "features.denseblock3", "features.transition3", "features.denseblock4", "(root)",
        "classifier",
    ]  # fmt: skip


@pytest.mark.parametrize("memory", ["ideal", "mcunet", "tinytl", "autograd"])
@pytest.mark.parametrize(
    "source", ["torchvision:resnet50", "torchvision:inception_v3", "torchvision:shufflenet_v2_x1_0", "timm:nf_resnet50"]
)
def test_every_kind_of_row_adds_up(source: str, memory: str) -> None:
    size = 299 if "inception" in source else 224
    graph: Any = memfit.capture(source, inputs=f"2x3x{size}x{size}", training=memory in ("autograd", "tinytl"))
    from memfit.memory.profile import profile_graph

    whole: dict[str, int] = {}
    for per in ("layer", "block", "op"):
        profile = profile_graph(graph, per=per, memory=memory)
        for key in ("params", "weights", "activations", "macs", "saved_bytes", "activation_bytes"):
            if key in profile.totals:
                assert sum(row[key] or 0 for row in profile.rows) == profile.totals[key], (per, key)
        for key in ("params", "weights", "saved_bytes", "peak_bytes"):
            if key in profile.totals:
                assert whole.setdefault(key, profile.totals[key]) == profile.totals[key], (per, key)
        if profile.totals["peak_bytes"] is not None:
            assert max(row["peak_bytes"] or 0 for row in profile.rows) == profile.totals["peak_bytes"]
