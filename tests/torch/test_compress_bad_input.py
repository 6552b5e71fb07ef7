"""What a stranger may give `calibrate`, `sensitivity`, `quantize` and `prune` by mistake: one clear message each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import memfit
from memfit.cli.main import main

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), torch.zeros(1, 3, 8, 8)

def nan():
    model, example = make()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    return model, example

def constant():
    model, example = make()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    return model, example

def other():
    model, example = make()
    with torch.no_grad():
        model[2].weight.add_(1)
    return model, example

def good(): return [(torch.arange(768.0).reshape(4, 3, 8, 8).sin(), torch.arange(4))] * 2
def empty(): return []
def none(): return None
def wrong_shape(): return [torch.zeros(2, 1, 8, 8)]
def wrong_type(): return [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
def not_finite(): return [torch.full((2, 3, 8, 8), float("inf"))]
def wrong_labels(): return [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 9]))]
def ends():
    yield torch.zeros(2, 3, 8, 8)
    raise OSError("the disk is gone")

KEPT = iter([torch.ones(2, 3, 8, 8)])
def only_once(): return KEPT

def raises(*given): raise KeyError("no such split")
def not_a_number(*given): return float("nan")
def text(*given): return "good"
"""

COMMANDS = {
    "calibrate": ["calibrate"],
    "sensitivity": ["sensitivity"],
    "quantize": ["quantize", "--budget", "1KiB"],
    "prune": ["prune", "--budget", "768B"],
}
ALL = list(COMMANDS)
SCORED = ["sensitivity", "quantize", "prune"]

Refused = Callable[..., str]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def refused(net: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail, check its message, and that it leaves no file behind."""

    def run(command: str, *more: str, model: str = "make", data: str = "random") -> str:
        before = {path: path.stat().st_mtime_ns for path in net.parent.rglob("*") if "__pycache__" not in path.parts}
        given = data if data == "random" or Path(data).is_absolute() else f"{net}:{data}"
        samples = ["--samples", "4"] if data == "random" else []
        own = [f"{net}{part}" if part.startswith(":") else part for part in more]
        code = main([*COMMANDS[command], f"{net}:{model}", "--data", given, *samples, *own])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert [err.count(part) for part in ("memfit: error: ", "\n  where:  ", "\n  received: ", "\n  to do:  ")] == [
            1
        ] * 4
        after = {path: path.stat().st_mtime_ns for path in net.parent.rglob("*") if "__pycache__" not in path.parts}
        assert after == before
        return err

    return run


@pytest.mark.parametrize("command", ALL)
def test_weights_that_are_not_numbers(command: str, refused: Refused) -> None:
    err = refused(command, model="nan")
    assert "not a number" in err or "not numbers" in err
    assert "where:    2" in err


@pytest.mark.parametrize("command", ALL)
def test_constant_activations_are_no_trouble(
    command: str, net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    code = main([*COMMANDS[command], f"{net}:constant", "--data", "random", "--samples", "2", "-o", str(found)])
    assert code == 0, capsys.readouterr().err
    assert len(json.loads(found.read_text())["rows"]) >= 3


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("empty", "the data has no samples"),
        ("none", "not an iterable of batches"),
        ("wrong_shape", "1x8x8"),
        ("wrong_type", "uint8 for"),
        ("not_finite", "NaN or infinite"),
        ("ends", "OSError: the disk is gone"),
        ("nowhere", "no such function"),
    ],
)
def test_bad_data(command: str, data: str, what: str, refused: Refused) -> None:
    assert what in refused(command, data=data)


@pytest.mark.parametrize("command", SCORED)
def test_data_that_comes_only_once(command: str, refused: Refused) -> None:
    assert "each time that it is asked" in refused(command, data="only_once")


@pytest.mark.parametrize("command", ALL)
def test_a_folder_without_images(command: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "readme.md").write_text("none yet")
    assert "holds no images" in refused(command, data=str(tmp_path / "images"))


@pytest.mark.parametrize("command", SCORED)
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_labels_that_are_missing_or_none_of_the_classes(command: str, metric: str, refused: Refused) -> None:
    assert f"the metric {metric} needs labels" in refused(command, "--metric", metric)
    assert "labels from 0 to 9 for 4 classes" in refused(command, "--metric", metric, data="wrong_labels")


@pytest.mark.parametrize("command", SCORED)
@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        (":raises", ["KeyError: 'no such split'", "net.py:43: def raises"]),
        (":not_a_number", ["nan", "finite number"]),
        (":text", ["'good'"]),
        ("likelihood", ["no such metric", "sqnr"]),
    ],
)
def test_metrics_that_fail(command: str, metric: str, parts: list[str], refused: Refused) -> None:
    err = refused(command, "--metric", metric, data="good")
    assert all(part in err for part in parts)


@pytest.mark.parametrize(("command", "option"), [("quantize", "--train"), ("prune", "--fine-tune")])
def test_training_that_fails(command: str, option: str, refused: Refused, tmp_path: Path) -> None:
    save = tmp_path / ("kept.json" if command == "quantize" else "kept.pt2")
    err = refused(command, option, ":raises", "--save", str(save), data="good")
    assert "raises failed" in err
    assert "KeyError: 'no such split'" in err
    assert "no function of a Python file" in refused(command, option, "train")


@pytest.mark.parametrize("command", SCORED[1:])
def test_a_budget_below_what_is_possible_says_the_smallest(command: str, refused: Refused) -> None:
    err = refused(command, "--budget", "20B")
    assert "smallest" in err
    assert " bytes)" in err
    for size, what in (("0", "at least one byte"), ("much", "not a size")):
        assert what in refused(command, "--budget", size)


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_limits_of_time_are_above_zero(limit: str, refused: Refused) -> None:
    assert "above zero" in refused("quantize", "--time-limit", limit)
    assert "above zero" in refused("prune", "--max-latency", limit)


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not an object": lambda _: [],
    "another version": lambda found: {**found, "memfit_ranges": 7},
    "no layers": lambda found: {key: value for key, value in found.items() if key != "layers"},
    "a layer lost": lambda found: {**found, "layers": found["layers"][:2]},
    "text for a number": lambda found: {**found, "layers": [{**row, "min": "x"} for row in found["layers"]]},
    "ends turned": lambda found: {**found, "layers": [{**row, "min": 2, "max": 1} for row in found["layers"]]},
}


@pytest.mark.parametrize("command", ["sensitivity", "quantize"])
def test_ranges_that_are_damaged_or_of_another_model(
    command: str, net: Path, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "ranges.json"
    assert main(["calibrate", f"{net}:make", "--data", f"{net}:good", "--save", str(kept)]) == 0
    capsys.readouterr()
    assert "of another model, or of other weights" in refused(command, "--ranges", str(kept), model="other")
    content = json.loads(kept.read_text())
    bad = tmp_path / "bad.json"
    for damage in DAMAGED.values():
        bad.write_text(json.dumps(damage(content)))
        err = refused(command, "--ranges", str(bad), data="good")
        assert any(what in err for what in ("not a file of ranges", "the ranges lack a layer", "of another version"))
    bad.write_text(kept.read_text()[:200])
    assert "not a file of ranges" in refused(command, "--ranges", str(bad), data="good")
    assert "no such file" in refused(command, "--ranges", str(tmp_path / "none.json"))


def test_a_recipe_that_is_damaged(net: Path, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    kept = tmp_path / "recipe.json"
    memfit.quantize(model, "1x8", budget="16B", data="random", samples=2, save=kept)
    content = json.loads(kept.read_text())
    assert torch.is_tensor(memfit.apply_recipe(model, kept)(torch.ones(1, 8)))
    bad = tmp_path / "bad.json"
    for part, key, value in (
        ("activations", "bits", 1),
        ("activations", "scale", "x"),
        ("activations", "scale", -1.0),
        ("activations", "zero_point", 0.5),
        ("weights", "scale", []),
        ("weights", "scale", [1.0]),
        ("weights", "axis", "first"),
        ("weights", "bits", None),
    ):
        entries = {name: {**entry, key: value} for name, entry in content[part].items()}
        bad.write_text(json.dumps({**content, part: entries}))
        with pytest.raises(memfit.MemfitError, match="recipe") as error:
            memfit.apply_recipe(model, bad)
        assert (error.value.where or "").startswith("--recipe")


@pytest.mark.parametrize("command", ALL)
def test_weights_that_are_damaged(command: str, refused: Refused, tmp_path: Path) -> None:
    for name, content in (("w.pt", b"nothing"), ("w.safetensors", b"nothing"), ("w.json", b"{}")):
        (tmp_path / name).write_bytes(content)
        assert f"{name}" in refused(command, "--weights", str(tmp_path / name))


@pytest.mark.parametrize("command", ALL)
def test_what_is_there_is_kept(command: str, refused: Refused, tmp_path: Path) -> None:
    suffix = ".pt2" if command == "prune" else ".json"
    there = tmp_path / f"there{suffix}"
    there.write_text("mine")
    assert "exists already" in refused(command, "--save", str(there))
    assert f"kept as {suffix}" in refused(command, "--save", str(tmp_path / "kept.txt"))
    assert "folder" in refused(command, "--save", str(tmp_path / "nowhere" / f"kept{suffix}"))
    assert "suffix" in refused(command, "-o", str(tmp_path / "kept.gif"))


def test_data_held_by_a_program_may_come_only_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))

    def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.randn(2, 8, generator=generator), torch.tensor([0, 3])

    assert memfit.calibrate(model, "1x8", data=endless(), samples=6).totals["samples"] == 6
    assert memfit.sensitivity(model, "1x8", data=endless(), samples=6).totals["samples"] == 6
    listed = list(islice(endless(), 3))
    options = {"budget": "16B", "samples": 6}
    assert memfit.quantize(model, "1x8", data=endless(), **options).totals == (
        memfit.quantize(model, "1x8", data=listed, **options).totals
    )
