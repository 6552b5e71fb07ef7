"""`memfit calibrate`: its data, its contract, its files and its messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import memfit
from memfit.analysis.result import Calibration
from memfit.cli.main import main
from memfit.compress import ranges
from memfit.compress.data import MEAN, STD, Batch, Data, Wanted, hash_model, open_data
from memfit.compress.observers import METHODS
from memfit.errors import CaptureError, MemfitError, SourceError, UsageError
from memfit.report import RENDERERS

IMAGE = Wanted("input", (1, 3, 8, 8), "float32")

NET = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.body(x)).mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Net(), torch.zeros(1, 3, 8, 8)


def batches(count=5, size=2):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size)


def empty():
    return []


def broken():
    yield torch.zeros(2, 3, 8, 8)
    raise RuntimeError("the disk is gone")


def dirty():
    yield torch.zeros(2, 3, 8, 8)
    yield torch.full((2, 3, 8, 8), float("nan"))


def number():
    return 3


def gray():
    return [torch.zeros(2, 1, 8)]
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return str(tmp_path / "net.py")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for index, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((12, 20, 3), (10 * index + number, 100, 200), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def lines(error: MemfitError) -> tuple[str, str | None, str | None]:
    assert error.todo
    return error.what, error.where, error.received


def batch_sizes(data: Data) -> list[int]:
    return [batch.samples for batch in data]


# -- ranges -------------------------------------------------------------------------------------------------------


def own_ranges(model: nn.Module, x: Tensor) -> dict[str, tuple[float, float]]:
    """Find what a hook sees at three of the network's layers."""
    seen: dict[str, tuple[float, float]] = {}

    def look(name: str) -> Any:
        return lambda _m, _i, o: seen.update({name: (o.min().item(), o.max().item())})

    hooks = [
        model.get_submodule(module).register_forward_hook(look(name))
        for module, name in (("stem.2", "stem.0"), ("body", "body"), ("head", "head"))
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_ranges_are_those_that_hooks_see(net: str) -> None:
    result = memfit.calibrate(f"{net}:make", data=f"{net}:batches")
    module: dict[str, Any] = {}
    exec(NET, module)
    x = torch.cat([batch for batch, _ in module["batches"]()])
    expected = own_ranges(module["make"]()[0], x)
    rows = {row["name"]: row for row in result.rows}
    assert list(rows) == ["x", "stem.0", "body", "add", "mean", "head"]
    for name, ends in expected.items():
        assert (rows[name]["min"], rows[name]["max"]) == pytest.approx(ends, rel=1e-5)
    assert (rows["x"]["min"], rows["x"]["max"]) == (x.min().item(), x.max().item())
    for row in result.rows:
        assert row["samples"] == 10
        low, high = min(row["min"], 0), max(row["max"], 0)
        assert row["scale"] == pytest.approx((high - low) / 255)
        assert -128 <= row["zero_point"] <= 127
        assert row["observed_min"] <= row["p1"] <= row["p50"] <= row["p99"] <= row["observed_max"]
    assert result.totals["activations"] == sum(row["activations"] for row in result.rows)


def test_activations_are_what_profile_prints(net: str) -> None:
    profile = memfit.profile(f"{net}:make", samples=10, memory="ideal")
    result = memfit.calibrate(f"{net}:make", data=f"{net}:batches")
    assert [(r["name"], r["type"], r["activations"]) for r in result.rows] == [
        (r["name"], r["type"], r["activations"]) for r in profile.rows
    ]


@pytest.mark.parametrize("method", METHODS)
def test_how_samples_are_batched_makes_no_difference(net: str, method: str) -> None:
    found = [
        memfit.calibrate(f"{net}:make", data=f"{net}:batches", batch=batch, method=method, per_channel=True)
        for batch in (None, 1, 4)
    ]
    for other in found[1:]:
        assert other.fingerprint == found[0].fingerprint
        for one, two in zip(found[0].rows, other.rows, strict=True):
            for key in ("min", "max", "scale"):
                assert one[key] == pytest.approx(two[key], rel=1e-4, abs=1e-6)


def test_channels_cover_the_whole(net: str) -> None:
    result = memfit.calibrate(f"{net}:make", data=f"{net}:batches", per_channel=True)
    rows = {row["name"]: row for row in result.rows}
    counts = {"x": 3, "stem.0": 6, "body": 6, "add": 6, "mean": 6, "head": 4}
    assert {name: len(entry["scale"]) for name, entry in result.channels.items()} == counts
    for name, entry in result.channels.items():
        assert min(entry["min"]) == rows[name]["min"]
        assert max(entry["max"]) == rows[name]["max"]
        assert max(entry["scale"]) <= rows[name]["scale"] * 1.0001


def test_channels_of_transformers_are_last() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=False)
    result = memfit.calibrate(model, "5x2x8", data=[torch.randn(5, 2, 8)], per_channel=True)
    assert {len(entry["scale"]) for entry in result.channels.values()} >= {8, 16}


def test_a_held_module_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    memfit.calibrate(model, "1x3x8x8", data="random", samples=3)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_come_from_a_file(net: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "linear.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n")
    source = f"{tmp_path / 'linear.py'}:make"
    x = torch.randn(4, 3)
    given = memfit.calibrate(source, "1x3", data=[x], weights=tmp_path / "weights.pt")
    assert given.rows[1]["max"] == pytest.approx(model(x).max().item())
    assert memfit.calibrate("torchvision:squeezenet1_1", "1x3x32x32", data="random", samples=1).notes == (
        "weights are random",
    )


def test_tokens_are_drawn_from_the_table() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    result = memfit.calibrate(model, "1x12:int64", data="random", samples=3)
    assert [(row["type"], row["min"] is None) for row in result.rows] == [
        ("input", True),
        ("embedding", False),
        ("linear", False),
    ]


def test_batches_of_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * 2 + b

    x = [{"b": torch.ones(2, 3), "a": torch.zeros(2, 3), "labels": torch.zeros(2)}]
    for data in (x, [((torch.zeros(2, 3), torch.ones(2, 3)), torch.zeros(2))]):
        result = memfit.calibrate(Two(), ["a=1x3", "b=1x3"], data=data)
        rows = {row["name"]: row for row in result.rows}
        assert (rows["a"]["max"], rows["b"]["max"], rows["add"]["max"]) == (0.0, 1.0, 1.0)


def test_constant_and_infinite_activations() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0 + 3).masked_fill(x > 0, -torch.inf).softmax(-1).clamp(0.25, 0.25)

    result = memfit.calibrate(Masked(), "1x4", data=[torch.tensor([[1.0, -1.0, -1.0, 2.0]])])
    rows = {row["type"]: row for row in result.rows}
    assert (rows["add"]["min"], rows["add"]["max"]) == (3.0, 3.0)
    assert rows["add"]["scale"] == pytest.approx(3 / 255)
    infinite = [row for row in result.rows if row["name"] == "masked_fill"]
    assert [(row["min"], row["max"]) for row in infinite] == [(3.0, 3.0)]
    assert "infinite values are left out of the ranges of masked_fill" in result.notes
    assert all(row["scale"] > 0 for row in result.rows if row["type"] != "gt")


def test_nan_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[2].bias[1] = torch.nan
    with pytest.raises(CaptureError, match="not numbers") as error:
        memfit.calibrate(model, "1x2", data=[torch.ones(3, 2)])
    assert lines(error.value) == (
        "a layer puts out values that are not numbers",
        "2",
        "3 NaN of 6 values, in samples 1 to 3",
    )


def test_what_cannot_be_run_step_by_step_is_refused() -> None:
    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(CaptureError, match="operation by operation") as error:
        memfit.calibrate(Drawn(), "1x8", data="random", samples=1)
    assert error.value.where == "Drawn"


# -- data ---------------------------------------------------------------------------------------------------------


def test_noise_is_the_same_however_it_is_batched() -> None:
    whole = [torch.cat([b.inputs[0] for b in open_data("random", [IMAGE], samples=5, batch=n)]) for n in (1, 2, 5)]
    assert torch.equal(whole[0], whole[1])
    assert torch.equal(whole[0], whole[2])
    prints = {
        open_data("random", [IMAGE], samples=5, batch=n, seed=s).fingerprint() for n, s in ((1, 0), (3, 0), (5, 1))
    }
    assert len(prints) == 2
    assert batch_sizes(open_data("random", [IMAGE])) == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("batch", "samples", "sizes"),
    [
        (None, None, [2, 2, 2, 2, 2]),
        (None, 5, [2, 2, 1]),
        (4, None, [4, 4, 2]),
        (1, 3, [1, 1, 1]),
        (3, 4, [3, 1]),
        (64, None, [10]),
    ],
)
def test_a_loaders_batches(net: str, batch: int | None, samples: int | None, sizes: list[int]) -> None:
    data = open_data(f"{net}:batches", [IMAGE], batch=batch, samples=samples)
    assert batch_sizes(data) == sizes
    assert batch_sizes(data) == sizes  # and again
    labels = [label for b in data if b.labels is not None for label in b.labels.tolist()]
    assert labels == [0, 1] * 5 if samples is None else labels == ([0, 1] * 5)[:samples]


def test_an_endless_loader_is_stopped() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(3, 3, 8, 8)

    assert batch_sizes(open_data(endless(), [IMAGE], samples=7)) == [3, 3, 1]


def test_images_are_cut_and_normalised(images: Path) -> None:
    data = open_data(images, [IMAGE], batch=2)
    assert data.classes == ("cat", "dog")
    batches = list(data)
    assert [b.labels.tolist() for b in batches if b.labels is not None] == [[0, 0], [0, 1], [1, 1]]
    expected = [(value / 255 - m) / s for value, m, s in zip((10, 100, 200), MEAN, STD, strict=True)]
    assert batches[1].inputs[0][1, :, 3, 3].tolist() == pytest.approx(expected)
    plain = next(iter(open_data(images, [IMAGE], mean=[0], std=[1], batch=1)))
    assert plain.inputs[0].max().item() == pytest.approx(200 / 255)
    gray = next(iter(open_data(images / "cat", [Wanted("x", (1, 1, 4, 4), "float32")])))
    assert (tuple(gray.inputs[0].shape), gray.labels) == ((3, 1, 4, 4), None)
    some = [open_data(images, [IMAGE], samples=3, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]


def test_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 8, 8))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6))
    found = list(open_data(tmp_path / "a.npz", [IMAGE], batch=4))
    assert [b.samples for b in found] == [4, 2]
    assert found[0].inputs[0].dtype is torch.float32
    assert torch.equal(torch.cat([b.inputs[0] for b in found]), torch.from_numpy(x).float())
    labels = found[1].labels
    assert labels is not None
    assert labels.tolist() == [4, 5]
    np.savez(tmp_path / "b.npz", a=x, b=x)
    two = [Wanted("a", (1, 3, 8, 8), "float32"), Wanted("b", (1, 3, 8, 8), "float32")]
    assert len(next(iter(open_data(tmp_path / "b.npz", two))).inputs) == 2


@pytest.mark.parametrize(
    ("data", "what", "where", "received"),
    [
        ("NET:empty", "the data has no samples", "NET:empty", "not a single batch"),
        ("NET:broken", "the data failed", "NET:broken, batch 2", "RuntimeError: the disk is gone"),
        ("NET:dirty", "the data holds values that are NaN or infinite", "NET:dirty, batch 2", "384 of 384"),
        ("NET:number", "the data is not an iterable of batches", "NET:number", "int"),
        ("NET:gray", "the data does not have the shape that the model takes", "NET:gray, batch 1", "2x1x8 for input"),
        ("NET:bathces", "the file has no such function", "NET", "bathces"),
        ("missing.npz", "there is no such file", "--data", "missing.npz"),
        ("nowhere/", "there is no such file or folder", "--data", "nowhere/"),
        ("noise", "this is not data that memfit reads", "--data", "'noise'"),
        ("nothing.py:make", "there is no such file", "nothing.py:make", "nothing.py"),
    ],
)
def test_bad_data(net: str, data: str, what: str, where: str, received: str) -> None:
    with pytest.raises(MemfitError) as error:
        for _ in open_data(data.replace("NET", net), [IMAGE]):
            pass
    assert error.value.what == what
    assert error.value.where == where.replace("NET", net)
    assert (error.value.received or "").startswith(received)
    assert error.value.todo


def test_bad_files(images: Path, tmp_path: Path) -> None:
    (images / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(SourceError, match="this image cannot be read") as error:
        list(open_data(images, [IMAGE]))
    assert error.value.where == str(images / "cat" / "1.png")
    (tmp_path / "bare").mkdir()
    with pytest.raises(SourceError, match="holds no images"):
        open_data(tmp_path / "bare", [IMAGE])
    with pytest.raises(UsageError, match="images of one or three channels"):
        open_data(images, [Wanted("ids", (1, 12), "int64")])
    with pytest.raises(UsageError, match="one number for each channel"):
        open_data(images, [IMAGE], mean=[0, 0])
    with pytest.raises(UsageError, match="are of a folder of images"):
        open_data("random", [IMAGE], mean=[0])
    (tmp_path / "c.npz").write_bytes(b"PK nothing")
    with pytest.raises(SourceError, match="this file of arrays cannot be read"):
        open_data(tmp_path / "c.npz", [IMAGE])
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(SourceError, match="does not have the type") as error:
        open_data(tmp_path / "d.npz", [IMAGE])
    assert error.value.received == "uint8 for input"
    for option in ("samples", "batch"):
        with pytest.raises(UsageError, match="at least 1"):
            open_data("random", [IMAGE], **{option: 0})
    with pytest.raises(UsageError, match="inputs of this model are not known"):
        open_data("random", None)


def test_a_fingerprint_tells_models_and_data_apart(net: str) -> None:
    one = memfit.calibrate(f"{net}:make", data=f"{net}:batches")
    fewer = memfit.calibrate(f"{net}:make", data=f"{net}:batches", samples=9)
    assert one.fingerprint["model"] == fewer.fingerprint["model"]
    assert one.fingerprint["data"] != fewer.fingerprint["data"]
    model = nn.Linear(2, 2)
    before = hash_model(model.state_dict())
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert hash_model(model.state_dict()) != before
    assert Batch((torch.zeros(3, 1),)).samples == 3


# -- files and the command ------------------------------------------------------------------------------------------


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["calibrate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_writes_the_same_bytes_twice(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [tmp_path / name for name in ("one.json", "two.json")]
    for path in kept:
        code, out, err = run(
            f"{net}:make", "--data", f"{net}:batches", "--method", "entropy", "--per-channel", "--save", str(path),
            "--format", "json", capsys=capsys,
        )  # fmt: skip
        assert code == 0, err
        assert f"wrote {path}" in err
    assert kept[0].read_bytes() == kept[1].read_bytes()
    shown = json.loads(out)
    assert {"memfit", "command", "source", "inputs", "memory", "rows", "totals", "notes", "environment"} <= set(shown)
    wanted = {"name", "type", "output_shape", "min", "max", "scale", "zero_point", "activations", "samples"}
    assert all(wanted <= set(row) for row in shown["rows"])
    found = ranges.read(kept[0])
    assert found.fingerprint == shown["fingerprint"]
    assert found.settings == shown["settings"]
    assert [entry["scale"] for entry in found.layers.values()] == [row["scale"] for row in shown["rows"]]
    assert found.layers["stem.0"]["channels"] == shown["channels"]["stem.0"]
    assert run(f"{net}:make", "--data", "random", "--save", str(kept[0]), capsys=capsys)[0] == 2  # it is kept


def test_ranges_that_are_none(tmp_path: Path) -> None:
    for content in ("", "{}", "[]", '{"memfit_ranges": 1}', "\x00"):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(SourceError, match="not a file of ranges"):
            ranges.read(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(
        '{"memfit_ranges": 9, "layers": [], "source": "", "fingerprint": {}, "settings": {}}'
    )
    with pytest.raises(SourceError, match="of another version") as error:
        ranges.read(tmp_path / "r.json")
    assert (error.value.received or "").endswith("r.json: format 9")
    with pytest.raises(SourceError, match="no such file"):
        ranges.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "random", "--bits", "1"), "1 is not in the range 2<=x<=16"),
        (("--data", "random", "--samples", "0"), "0 is not in the range x>=1"),
        ((), "missing option '--data'"),
        (("--data", "random", "--percentile", "99"), "a percentile is of the method of that name"),
        (("--data", "random", "--method", "percentile", "--percentile", "10"), "has one from 50 to 100"),
        (("--data", "random", "--save", "ranges.txt"), "the ranges are kept as .json"),
        (("--data", "random", "--mean", "a,b"), "these are not numbers"),
        (("--data", "random", "--weights", "none.pt"), "there is no such file"),
    ],
)
def test_bad_options(net: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(f"{net}:make", *arguments, capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_every_format(net: str, tmp_path: Path) -> None:
    result = memfit.calibrate(f"{net}:make", data=f"{net}:batches", method="percentile")
    assert isinstance(result, Calibration)
    texts = {}
    for name, renderer in RENDERERS.items():
        if renderer.only is None:
            stream: Any = BytesIO() if renderer.binary else StringIO()
            renderer.render(result, stream)
            texts[name] = stream.getvalue()
    assert texts["png"][:4] == b"\x89PNG"
    assert "percentile 99.99 % · 8 bits" in texts["table"]
    assert re.search(r"stem\.0 +conv2d +2x6x8x8 .* -128", texts["table"])
    assert texts["csv"].splitlines()[0].startswith("name,type,output_shape,activations,min,max,scale,zero_point")
    assert len(texts["csv"].splitlines()) == 1 + len(result.rows)
    assert "stem.0" in texts["md"]
    assert len(result.to_pandas()) == len(result.rows)


def test_it_works_from_a_shell(net: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memfit", "calibrate", f"{net}:make", "--data", "random", "--samples", "2"]
    done = subprocess.run(
        [*command, "--top", "2", "--columns", "name,max", "-o", str(tmp_path / "r.png")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 samples" in done.stdout
    assert (tmp_path / "r.png").stat().st_size > 10_000
