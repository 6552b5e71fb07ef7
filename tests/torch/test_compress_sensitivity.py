"""`memfit sensitivity`: exact to the bit, resumable, explained by roles, the same wherever it runs."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import memfit
from memfit.analysis.layers import layers
from memfit.analysis.roles import Part, parts
from memfit.cli.main import cli
from memfit.compress import metrics
from memfit.compress.data import Sampling
from memfit.compress.fake_quant import Grids, fake_quantize, of_range, of_weight
from memfit.compress.network import opened
from memfit.compress.sensitivity import Settings, _Study, by_role, dips
from memfit.compress.store import Store, Unit
from memfit.compress.sweep import DIRECTIONS, measure, measure_again, one_thread
from memfit.errors import CaptureError, MissingExtra, SourceError, UsageError

ROOT = Path(__file__).parents[2]


class Block(nn.Module):
    """An inverted residual, its activations in place."""

    def __init__(self, width: int, expand: int, stride: int = 1) -> None:
        super().__init__()
        hidden = width * expand
        self.widen = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True))
        self.spread = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True)
        )
        self.exit = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.shortcut = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.exit(self.spread(self.widen(x)))
        if self.shortcut:
            y += x
        return y


class Net(nn.Module):
    """Branches, in-place work, a tied layer and a product with a raw parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(True))
        self.blocks = nn.Sequential(Block(8, 2), Block(8, 2, 2), Block(8, 3))
        self.side = nn.Conv2d(8, 8, 1)
        self.mix = nn.Linear(16, 16)
        self.matrix = nn.Parameter(torch.randn(16, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = torch.cat([x, self.side(x).sigmoid_()], 1).mean((2, 3))
        x = self.mix(self.mix(x).relu_())
        return self.head(torch.addmm(x.new_zeros(12), x, self.matrix))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def batches(count: int = 3, size: int = 4, labels: bool = False) -> list[object]:
    generator = torch.Generator().manual_seed(1)
    found: list[object] = []
    for _ in range(count):
        x = torch.randn(size, 3, 16, 16, generator=generator)
        found.append((x, torch.randint(5, (size,), generator=generator)) if labels else x)
    return found


def run(model: nn.Module | str | None = None, **given: object) -> memfit.Sensitivity:
    given.setdefault("data", batches())
    return memfit.sensitivity(net() if model is None else model, "4x3x16x16", **given)  # type: ignore[arg-type]


# -- fake quantization --------------------------------------------------------------------------------------------


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize("bits", range(2, 17))
def test_fake_quantization_is_torchs_to_the_bit(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(5, 7, 11, 13, generator=generator) * 3
    x.view(-1)[:6] = torch.tensor([0.5, -0.5, 1.5, -0.0, 1e6, -1e6])
    for symmetric in (False, True):
        for low, high in ((-1.3, 2.7), (0.0, 6.0), (-4.0, -1.0), (0.0, 0.0), (-1e-30, 1e-30)):
            grids = of_range(low, high, bits, symmetric=symmetric)
            assert grids.bits == bits
            wanted = torch.fake_quantize_per_tensor_affine(
                x, grids.scale.item(), int(grids.zero_point), grids.least, grids.most
            )
            if abs(high) > 1e-20 or not low:
                assert torch.equal(bits_of(fake_quantize(x, grids)), bits_of(wanted))
    for axis in (0, 1, 3):
        grids = of_weight(x.clamp(-9, 9), bits, axis=axis)
        wanted = torch.fake_quantize_per_channel_affine(
            x, grids.scale, grids.zero_point.int(), axis, grids.least, grids.most
        )
        assert torch.equal(bits_of(fake_quantize(x, grids)), bits_of(wanted))
        assert torch.equal(fake_quantize(x, grids).abs().amax(), fake_quantize(x.clamp(-9, 9), grids).abs().amax())


def test_halves_go_to_the_even_number_and_what_is_outside_to_the_ends() -> None:
    grids = Grids(torch.tensor(1.0), torch.tensor(0.0), -2, 2)
    values = torch.tensor([-9.0, -1.5, -0.5, 0.5, 1.5, 2.5, float("inf"), float("-inf")])
    assert fake_quantize(values, grids).tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 2.0, -2.0]
    half = fake_quantize(torch.tensor([0.3, 0.6], dtype=torch.bfloat16), grids)
    assert half.dtype is torch.bfloat16
    assert half.tolist() == [0.0, 1.0]


def test_a_channels_grid_holds_its_largest_magnitude_and_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [-3.0, 1.0], [1e-45, 0.0]])
    grids = of_weight(weight, 8)
    rounded = fake_quantize(weight, grids)
    assert rounded[0].tolist() == [0.0, 0.0]
    assert rounded[1, 0] == pytest.approx(-3.0)
    assert torch.isfinite(rounded).all()
    with pytest.raises(UsageError, match="2 to 16 bits"):
        of_weight(weight, 17)


# -- the sweep ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", ["own", "torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224"])
def test_what_comes_after_a_layer_is_the_whole_network_to_the_bit(direction: str, shape: str) -> None:
    source, inputs = (net(), "2x3x16x16") if shape == "own" else (shape, "2x3x32x32" if "vit" in shape else "2x3x40x40")
    args = {"depth": 2, "img_size": 32} if "vit" in shape else None
    with opened(source, inputs, args=args, quick=True) as network, one_thread():
        settings = Settings(Sampling("random", samples=2))
        study = _Study(network, settings.sampling.open(network.wanted), settings)
        study.prepare(None)
        batch = next(iter(study.data))
        runner, tensors = network.runner(batch)
        kept = [t.clone() for t in tensors]
        naive = dict(measure_again(runner, tensors, study.quantization, study.chosen, direction))
        fast = dict(measure(runner, tensors, study.quantization, study.chosen, direction))
        reference = runner.run(tensors)
        assert list(fast) == list(study.chosen)
        assert all(torch.equal(a, b) for n in naive for a, b in zip(naive[n], fast[n], strict=True))
        assert not any(torch.equal(fast[n][0], reference[0]) for n in naive)
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))


@pytest.mark.parametrize(
    ("model", "shape", "strides"),
    [
        (nn.Conv2d(1, 4, 3), (2, 1, 8, 6), (48, 1, 6, 1)),  # one channel lies so in two ways, of which one is quick
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 6), (144, 1, 18, 3)),
        (nn.Conv2d(3, 4, 3).double(), (2, 3, 8, 6), (144, 48, 6, 1)),
        (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), (2, 3, 8, 6), (144, 48, 6, 1)),
    ],
)
def test_images_lie_as_convolutions_run_fastest(
    model: nn.Module, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    dtype = next(model.parameters()).dtype
    data = Sampling([torch.randn(shape, dtype=dtype)])
    with opened(model, quick=True) as network:
        _, (laid,) = network.runner(next(iter(data.open(network.wanted))))
    assert (tuple(laid.shape), laid.stride()) == (shape, strides)
    with opened(model) as network:
        batch = next(iter(data.open(network.wanted)))
        _, (given,) = network.runner(batch)
    assert given is batch.inputs[0]
    assert torch.equal(given, laid)


def test_figures_are_those_of_the_model_itself_with_one_layer_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
        nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip
    x = torch.randn(4, 3, 16, 16)
    found = {row["name"]: row["sqnr_db"] for row in run(model, data=[x]).rows}
    ends = {"0": "2", "3": "5", "6": "7", "10": "10"}  # a layer's convolution, and the module that it ends with
    assert list(found) == list(ends)
    x = x.contiguous(memory_format=torch.channels_last)  # as images are laid for convolutions
    with torch.no_grad(), one_thread():
        reference = model(x)
        for name, end in ends.items():
            changed = deepcopy(model)
            layer, modules = changed.get_submodule(name), dict(changed.named_modules())
            weight = layer.get_parameter("weight")
            weight.copy_(fake_quantize(weight, of_weight(weight)))
            seen: list[Tensor] = []
            model.get_submodule(end).register_forward_hook(lambda _m, _i, y, seen=seen: seen.append(y))
            model(x)
            grids = of_range(float(seen[0].min()), float(seen[0].max()))
            modules[end].register_forward_hook(lambda _m, _i, y, grids=grids: fake_quantize(y, grids))
            noise = (reference.double() - changed(x).double()).square().sum()
            wanted = 10 * math.log10(reference.double().square().sum() / noise)
            assert found[name] == pytest.approx(wanted, rel=1e-12)


def test_rows_are_the_layers_with_weights_and_figures_are_as_defined() -> None:
    model, data = net(), batches()
    kept = {name: t.clone() for name, t in model.state_dict().items()}
    found = run(model, data=data, direction="both")
    names = [row["name"] for row in found.rows]
    assert names[:3] == ["stem.0", "blocks.0.widen.0", "blocks.0.spread.0"]
    assert [n for n in names if n.startswith("mix")] == ["mix", "mix#2"]  # a tied layer runs twice
    assert {row["bits"] for row in found.rows} == {8}
    # The head by hand: its weight per channel, its output on a grid over what the data gave.
    outputs = [model(x).detach() for x in data]
    low, high = (min(float(o.min()) for o in outputs), max(float(o.max()) for o in outputs))
    weight = fake_quantize(model.head.weight, of_weight(model.head.weight))
    signal = noise = 0.0
    features: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _m, args: features.append(args[0].detach()))
    for x, output in zip(data, outputs, strict=True):
        model(x)
        changed = fake_quantize(
            nn.functional.linear(features[-1], weight, model.head.bias), of_range(low, high)
        ).detach()
        signal += float(output.double().square().sum())
        noise += float((output.double() - changed.double()).square().sum())
    handle.remove()
    assert found.rows[-1]["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert found.rows[-1]["role"] == "last"
    middle = sorted(row["sqnr_db"] for row in found.rows)
    assert found.totals["baseline"] == pytest.approx(middle[len(middle) // 2])
    for row in found.rows:
        assert row["drop"] == found.totals["baseline"] - row["sqnr_db"]
        assert row["float_drop"] == found.totals["float_baseline"] - row["float_sqnr_db"]
    assert found.totals["float_baseline"] == found.totals["quantized_sqnr_db"] < min(middle)
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())
    one_way = run(model, data=data, direction="float")
    assert [r["sqnr_db"] for r in one_way.rows] == [r["float_sqnr_db"] for r in found.rows]


def test_more_bits_make_less_noise() -> None:
    worth = [run(bits=bits).totals["quantized_sqnr_db"] for bits in (2, 4, 8, 16)]
    assert worth == sorted(worth)
    assert worth[3] > worth[2] + 40  # 6 dB a bit


def test_metrics_with_labels_and_of_ones_own() -> None:
    model, data = net(), batches(labels=True)
    outputs = torch.cat([model(x) for x, _ in data]).detach()
    labels = torch.cat([y for _, y in data])
    right = float((outputs.argmax(1) == labels).double().mean())
    found = run(model, data=data, metric="accuracy", bits=3)
    assert found.totals["baseline"] == found.totals["float"] == pytest.approx(right)
    assert all(row["drop"] == pytest.approx(right - row["metric"]) for row in found.rows)
    loss = run(model, data=data, metric="loss")
    assert loss.totals["float"] == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-6)
    assert all(row["drop"] == row["metric"] - loss.totals["float"] for row in loss.rows)
    cosine = run(model, data=data, metric="cosine")
    assert cosine.totals["float"] == pytest.approx(1.0)
    assert all(0.9 < row["metric"] <= 1 for row in cosine.rows)
    own = run(model, data=data, metric=lambda out, y: (out.argmax(1) == y).float().mean(), bits=3)
    assert [row["metric"] for row in own.rows] == pytest.approx([row["metric"] for row in found.rows])
    assert "sqnr_db" in own.rows[0]


def test_ranges_from_a_file_are_those_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    for per_channel in (False, True):
        with one_thread():  # as the sweep itself runs
            memfit.calibrate(net(), "4x3x16x16", data=batches(), per_channel=per_channel, save=path)
        assert run(ranges=path, per_channel=per_channel).rows == run(per_channel=per_channel).rows
    with pytest.raises(UsageError, match=r"other weights[\s\S]*--ranges[\s\S]*memfit calibrate"):
        run(net(1), ranges=path)


def test_an_estimate_ranks_as_the_exact_figures_do() -> None:
    data = batches(6, 8)
    exact, estimate = run(data=data), run(data=data, method="taylor")
    ranks = metrics.spearman([r["sqnr_db"] for r in exact.rows], [r["sqnr_db"] for r in estimate.rows])
    assert ranks is not None
    assert ranks > 0.8
    assert estimate.totals["rank_correlation"] > 0.8
    assert estimate.totals["checked"] == len(exact.rows)
    assert max(abs(a["sqnr_db"] - b["sqnr_db"]) for a, b in zip(exact.rows, estimate.rows, strict=True)) < 12
    with pytest.raises(UsageError, match="--direction"):
        run(method="taylor", direction="both")


def test_an_estimate_goes_through_views_made_in_place() -> None:
    """As `adaptive_avg_pool2d` makes them for images whose channels are laid last."""
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = nn.Sequential(*layers).eval()
    rows = memfit.sensitivity(model, "1x3x8x8", data="random", samples=2, method="taylor").rows
    assert len(rows) == 3
    assert all(row["sqnr_db"] is not None for row in rows)


# -- roles --------------------------------------------------------------------------------------------------------


def test_roles_of_efficientvit_sam_match_the_list_made_by_hand() -> None:
    graph = memfit.capture(f"{ROOT}/examples/efficientvit_sam.py:encoder")
    rows = layers(graph)
    found = {rows[n].name: part for n, part in parts(graph, rows).items()}
    fused = ["stage0:1:1", *(f"stage{s}:{b}:1" for s in (1, 2) for b in (0, 1)), *(f"neck:{b}:1" for b in range(3, 7))]
    mb = [f"stage3:{b}:2" for b in range(5)] + ["stage4:0:2"] + [f"stage4:{b}:6" for b in range(1, 5)]
    scaling = [f"stage4:{b}:2" for b in range(1, 5)]
    depthwise = [f"stage3:{b}:1" for b in range(5)] + ["stage4:0:1"]
    depthwise += [f"stage4:{b}:{layer}" for b in range(1, 5) for layer in (1, 5)]
    assert [n for n, p in found.items() if p is Part.EXIT] == sorted(fused + mb, key=list(found).index)
    assert [n for n, p in found.items() if p is Part.ATTENTION_SCALING] == scaling
    assert [n for n, p in found.items() if p is Part.DEPTHWISE] == depthwise
    assert (found["stage0:0:0"], found["neck:7:0"]) == (Part.FIRST, Part.LAST)
    assert all(re.fullmatch(r"\w+:\d+:\d+", name) for name in found)
    assert len(found) == 69


@pytest.mark.parametrize(
    ("source", "exits", "last"),
    [
        ("torchvision:mobilenet_v2", 17, ["classifier.1"]),
        ("torchvision:resnet18", 8, ["fc"]),
        ("torchvision:vgg11", 0, ["classifier.6"]),
        ("timm:efficientnet_b0", 16, ["classifier"]),
        ("timm:vit_tiny_patch16_224", 12, ["head"]),
    ],
)
def test_roles_of_known_networks(source: str, exits: int, last: list[str]) -> None:
    graph = memfit.capture(source)
    rows = layers(graph)
    found = {rows[n].name: part for n, part in parts(graph, rows).items()}
    assert sum(part is Part.EXIT for part in found.values()) == exits
    assert [name for name, part in found.items() if part is Part.LAST] == last
    assert sum(part is Part.FIRST for part in found.values()) == 1
    assert Part.ATTENTION_SCALING not in found.values()
    for name, part in found.items():
        if part is Part.EXIT:
            assert next(row for row in rows if row.name == name).activation is None


def test_dips_stand_out_and_are_summed_up_by_role() -> None:
    drops = [0.0, 5.0, 0.0, 0.5, 0.0, 1.0, 1.5, None, 1.0, 6.0]
    assert [place for place, dip in enumerate(dips(drops)) if dip] == [1, 9]
    assert dips([2.0, 1.0, 1.0, 1.0]) == [True, False, False, False]
    assert dips([]) == []
    assert dips([1.0]) == [False]
    rows = [
        {"role": "exit", "sqnr_db": 40.0, "drop": 5.0, "dip": True},
        {"role": "other", "sqnr_db": None, "drop": None, "dip": False},
    ]
    assert [entry["role"] for entry in by_role(rows, "sqnr_db")] == ["exit", "other"]
    assert by_role(rows, "sqnr_db")[1]["mean"] is None


# -- a store ------------------------------------------------------------------------------------------------------


def test_a_stopped_sweep_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    path, whole = tmp_path / "sweep.sqlite", run(direction="both").to_dict()
    for stop in (0, 7, 30):

        def progress(what: str, done: int, of: int | None, stop: int = stop) -> None:
            if what == "measuring" and done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(direction="both", store=path, progress=progress)
        assert len(sqlite3.connect(path).execute("SELECT * FROM units").fetchall()) == stop
    seen: list[int] = []
    found = run(direction="both", store=path, progress=lambda _, done, of: seen.append(done) if of else None)
    assert found.to_dict() == whole
    assert min(d for d in seen if d > 3) >= 12  # it did not begin again
    again = run(direction="both", store=path)
    assert again.to_dict() == whole


def test_a_store_of_another_sweep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.sqlite"
    run(store=path)
    for given, differs in (
        ({"model": net(1)}, "model"),
        ({"data": batches(2)}, "data"),
        ({"bits": 4}, "bits 8"),
        ({"metric": "cosine"}, "metric sqnr"),
    ):
        with pytest.raises(UsageError, match=rf"another sweep[\s\S]*--store[\s\S]*sweep\.sqlite[\s\S]*{differs}"):
            run(store=path, **given)
    other = tmp_path / "notes.sqlite"
    other.write_text("no database, but long enough to look at" * 10)
    with pytest.raises(SourceError, match="not a store"):
        run(store=other)
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(SourceError, match="not a store"):
        run(store=tmp_path / "other.sqlite")


def test_one_sweep_at_a_time_holds_a_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", {"model": "m"}) as store:
        store.add(Unit("a", "quantize", 0), (1.5, None))
        with pytest.raises(SourceError, match="another sweep is writing"):
            Store(tmp_path / "s.sqlite", {"model": "m"})
    with Store(tmp_path / "s.sqlite", {"model": "m"}) as store:
        assert store.done == {Unit("a", "quantize", 0): (1.5, None)}


FORKS = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_compress_sensitivity import _count, run
store, save, kept, ends = Path({store!r}), Path({save!r}), [0], []
for kill in (True, True, True, False):
    process = os.fork()
    if not process:
        run(store=store, direction="both", save=save)
        os._exit(0)
    while kill and _count(store, store.parent) < kept[-1] + 5:
        time.sleep(0.005)
    if kill:
        os.kill(process, signal.SIGKILL)
    ends.append(os.WTERMSIG(os.waitpid(process, 0)[1]))
    kept.append(_count(store, store.parent))
print(json.dumps([kept, ends]))
"""
"""Starts the sweep again and again and kills it; one process of its own, since PyTorch takes seconds to load."""


def test_killed_again_and_again_it_ends_the_same(tmp_path: Path) -> None:
    store, save = tmp_path / "sweep.sqlite", tmp_path / "found.json"
    code = FORKS.format(folder=str(Path(__file__).parent), store=str(store), save=str(save))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    kept, ends = json.loads(told)
    assert ends == [signal.SIGKILL] * 3 + [0]
    assert kept[-1] == 96  # 15 layers and the whole network, two directions, three batches: nothing is done twice
    assert 0 < kept[1] < kept[2] < kept[3] <= 96  # nothing is lost
    assert json.loads(save.read_text())["rows"] == run(direction="both").to_dict()["rows"]


def _count(store: Path, folder: Path) -> int:
    """Count the units in a copy of a store, as a process that is killed now leaves it."""
    copy = folder / "copy.sqlite"
    for suffix in ("", "-wal"):
        source, target = Path(f"{store}{suffix}"), Path(f"{copy}{suffix}")
        target.unlink(missing_ok=True)
        if source.exists():
            target.write_bytes(source.read_bytes())
    connection = sqlite3.connect(copy)
    try:
        found: int = connection.execute("SELECT count(*) FROM units").fetchone()[0]
    except sqlite3.DatabaseError:
        return 0
    finally:
        connection.close()
    return found


# -- several processes --------------------------------------------------------------------------------------------


def test_several_processes_give_the_same_bits(tmp_path: Path) -> None:
    serial = run(direction="both", data=batches(3, labels=True), metric="loss").to_dict()
    spread = run(direction="both", data=batches(3, labels=True), metric="loss", jobs=2, store=tmp_path / "s.sqlite")
    assert spread.to_dict() == serial


@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install 'memfit[ray]'")
@pytest.mark.skipif("MEMFIT_RAY" not in os.environ, reason="starting Ray takes a quarter of a minute: set MEMFIT_RAY=1")
def test_a_ray_cluster_gives_the_same_bits() -> None:
    assert run(backend="ray", jobs=2).to_dict() == run().to_dict()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"needs Ray[\s\S]*--backend[\s\S]*memfit\[ray\]"):
        run(backend="ray")
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(MissingExtra, match=r"joblib[\s\S]*memfit\[compress\]"):
        run(jobs=2)


# -- bad input ----------------------------------------------------------------------------------------------------


def test_bad_input_is_named(tmp_path: Path) -> None:
    broken = net()
    broken.blocks[1].exit[0].weight.data[0, 0] = float("nan")
    with pytest.raises(CaptureError, match=r"not numbers[\s\S]*blocks\.1\.exit\.0[\s\S]*NaN of[\s\S]*check the"):
        run(broken)
    flat = net()
    flat.side.weight.data.zero_()
    flat.side.bias.data.zero_()
    found = run(flat)
    assert any("one and the same value" in note and "side" in note for note in found.notes)
    assert any(row["name"] == "side" for row in found.rows)
    with pytest.raises(SourceError, match=r"no samples"):
        run(data=[])
    with pytest.raises(SourceError, match=r"accuracy needs labels[\s\S]*--data[\s\S]*give batches of"):
        run(metric="accuracy")
    with pytest.raises(SourceError, match=r"none of the network's classes[\s\S]*labels from"):
        run(data=[(x, y + 5) for x, y in batches(1, labels=True)], metric="accuracy")
    with pytest.raises(UsageError, match=r"no such metric[\s\S]*sqnr, cosine, loss, accuracy"):
        run(metric="psnr")
    with pytest.raises(CaptureError, match="no layer with weights"):
        memfit.sensitivity(nn.ReLU(), "1x4", data=[torch.ones(1, 4)])


def test_a_metric_that_fails_names_the_layer_and_keeps_what_is_done(tmp_path: Path) -> None:
    calls = 0

    def metric(output: Tensor, labels: Tensor | None) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ZeroDivisionError("no positives")
        return float(output.mean())

    path = tmp_path / "sweep.sqlite"
    with pytest.raises(SourceError, match=r"ZeroDivisionError: no positives[\s\S]*layer blocks\.0\.exit\.0"):
        run(metric=metric, store=path)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM units").fetchone() == (4,)
    connection.close()
    assert len(run(metric=metric, store=path).rows) == 15


def test_data_that_is_gone_through_once_is_kept() -> None:
    assert run(data=iter(batches())).rows == run().rows


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_every_format(tmp_path: Path) -> None:
    names = ["s.json", "s.md", "s.csv", "s.png", "s.txt"]
    arguments = [
        "sensitivity",
        "torchvision:squeezenet1_1",
        "--input",
        "1x3x32x32",
        "--data",
        "random",
        "--samples",
        "2",
    ]
    found = CliRunner().invoke(
        cli,
        [*arguments, *(part for name in names for part in ("-o", str(tmp_path / name))), "--format", "json"],
        catch_exceptions=False,
    )
    content = json.loads(found.stdout)
    assert len(content["rows"]) == 26
    assert content["rows"] == json.loads((tmp_path / "s.json").read_text())["rows"]
    assert all({"name", "role", "bits", "sqnr_db", "drop"} <= set(row) for row in content["rows"])
    assert {entry["role"] for entry in content["roles"]} <= {str(part) for part in Part}
    assert sum(entry["layers"] for entry in content["roles"]) == content["totals"]["layers"] == 26
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    assert "by role, the most sensitive first" in (tmp_path / "s.txt").read_text()
    assert (tmp_path / "s.csv").read_text().count("\n") == 27
