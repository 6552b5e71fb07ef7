"""`memfit quantize`: bits by the peak, grids, what is done around rounding, recipes that apply again, bad input."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import memfit
from memfit.analysis.result import Quantization
from memfit.capture.replay import named_tensors
from memfit.cli.main import main
from memfit.compress.adjust import corrections, equalize
from memfit.compress.fake_quant import fake_quantize, of_range, of_weight
from memfit.compress.learned_rounding import learn
from memfit.compress.quantized import Quantized, Rounding
from memfit.compress.recipe import read
from memfit.compress.runner import Runner
from memfit.compress.straight_through import rounded
from memfit.compress.weights import feeds, weight_grids, weights_of
from memfit.errors import SourceError, UsageError
from memfit.memory.demand import Demand
from memfit.memory.model import Options, View
from memfit.memory.registry import memory_model
from memfit.report import RENDERERS

pytest.importorskip("ortools")


class Net(nn.Module):
    """Every case that matters: a strided stem, an inverted residual, a plain residual, in-place activations."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.tail = nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(12 * 2 * 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        x = functional.relu(self.tail(x))
        return self.head(x.flatten(1))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.3, 2)
    return model.eval()


SHAPE = "1x1x8x8"


def batches(count: int = 24, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    labels = (images.flatten(1)[:, :4]).argmax(1)
    return list(zip(images.split(size), labels.split(size), strict=True))


def quantize(model: nn.Module | None = None, **options: Any) -> Quantization:
    options = {"budget": 300, "data": batches(), "metric": "sqnr"} | options
    return memfit.quantize(net() if model is None else model, SHAPE, **options)


@pytest.fixture(scope="module")
def half() -> tuple[Net, Quantization]:
    model = net()
    return model, quantize(model)


def demand_of(model: nn.Module, memory: str = "mcunet") -> Demand:
    chosen = memory_model(memory)
    assert chosen.demand is not None
    graph = memfit.capture(model, SHAPE, training=chosen.of_training)
    return chosen.demand(View(graph, Options(layer_bits={})))


# -- bits by the peak ---------------------------------------------------------------------------------------------


def test_the_peak_fits_and_profile_reports_the_same(half: tuple[Net, Quantization], tmp_path: Path) -> None:
    model, found = half
    plain = memfit.profile(model, SHAPE, memory="mcunet").totals
    assert found.totals["baseline_peak_bytes"] == plain["peak_bytes"] > 300
    assert found.totals["baseline_peak_at"] == plain["peak_at"]
    assert found.totals["peak_bytes"] <= found.totals["budget_bytes"] == 300
    path = tmp_path / "recipe.json"
    again = quantize(model, save=path)
    assert again.rows == found.rows
    profile = memfit.profile(model, SHAPE, recipe=path)
    assert profile.memory == "mcunet"
    assert profile.totals["peak_bytes"] == found.totals["peak_bytes"]
    assert max(row["bytes_after"] or 0 for row in found.rows) == found.totals["peak_bytes"]
    assert {row["name"]: row["bits"] for row in found.rows} == {row["name"]: row["bits"] for row in profile.rows}
    for row in found.rows:
        assert row["activation_bytes"] == math.ceil(row["activations"] * row["bits"] / 8)
    for per in ("block", "module", "op"):
        assert memfit.profile(model, SHAPE, recipe=path, per=per).totals["peak_bytes"] == profile.totals["peak_bytes"]


def test_exact_is_the_best_of_all_choices_by_its_own_measure() -> None:
    model = net()
    found = quantize(model, budget=300, bits=(2, 4, 8), equalize=False, correct=False)
    demand = demand_of(model)
    costs = measured(model, demand, (2, 4, 8))
    best = min(
        sum(costs[group[-1]][width] for group, width in zip(demand.groups, widths, strict=True))
        for widths in itertools.product((2, 4, 8), repeat=len(demand.groups))
        if demand.total_bytes({n: w for g, w in zip(demand.groups, widths, strict=True) for n in g}) <= 300
    )
    bits = {row["name"]: row["bits"] for row in found.rows}
    mine = sum(costs[group[-1]][bits[group[-1]]] for group in demand.groups)
    # Layers that no limit binds have the widest bits whatever those cost, and noise does not always fall with them.
    assert mine <= best * 1.05 + 1e-4
    assert found.totals["optimal"]
    assert found.totals["gap"] == 0
    exact, greedy, uniform = found.strategies
    for other in (greedy, uniform):
        assert other["fits"]
        assert other["peak_bytes"] <= 300
        assert other["cost"] is None or exact["cost"] <= other["cost"]


def measured(model: nn.Module, demand: Demand, widths: tuple[int, ...]) -> dict[str, dict[int, float]]:
    """Noise of each layer alone, by whole runs, with grids of the least squared error."""
    from memfit.compress.observers import Observer, range_of

    data = [images for images, _ in batches()]
    runner = Runner(memfit.capture(model, "8x1x8x8"), model)
    observers = {layer.name: Observer() for layer in runner.layers}
    names = [layer.name for layer in runner.layers]
    for x in data:
        runner.run([x], on_output=lambda k, t: observers[names[k]].add(t))
    wanted = [model(x).detach().double() for x in data]
    power = sum(float(y.square().sum()) for y in wanted)
    found: dict[str, dict[int, float]] = {}
    for group in demand.groups:
        name = group[-1]
        for width in widths:
            low, high = range_of(observers[name], "mse", bits=width)
            grids = of_range(float(low[0]), float(high[0]), width)
            noise = 0.0

            def look(k: int, t: Tensor, name: str = name, grids: Any = grids) -> Tensor | None:
                return fake_quantize(t, grids) if names[k] == name else None

            for x, y in zip(data, wanted, strict=True):
                out = runner.run([x], on_output=look)
                noise += float((out[0].double() - y).square().sum())
            found.setdefault(name, {})[width] = noise / power
    return found


def test_where_noise_does_not_add_up_the_choice_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfit.compress.quantize._ADDITIVE", 0.0)
    for budget in (200, 240):
        found = quantize(budget=budget, equalize=False, correct=False, bits=(2, 3, 4, 5, 6))
        assert any("costs measured again around the choice" in note for note in found.notes)
        exact, greedy, uniform = found.strategies
        assert exact["fits"]
        assert exact["peak_bytes"] <= budget
        # Weights, rounded too in these figures, add a little to what the choice went by.
        assert exact["metric"] >= max(greedy["metric"], uniform["metric"]) - 0.3


@pytest.mark.parametrize("memory", ["ideal", "tinytl", "autograd"])
def test_budgets_of_other_memory_models(memory: str, tmp_path: Path) -> None:
    model = net()
    own = memfit.profile(model, SHAPE, memory=memory).totals
    key = "saved_bytes" if memory != "ideal" else "peak_bytes"
    budget = own[key] // 2
    path = tmp_path / "recipe.json"
    found = quantize(model, budget=budget, memory=memory, save=path)
    assert found.totals["baseline_peak_bytes"] == own[key]
    assert found.totals["peak_bytes"] <= budget
    profile = memfit.profile(model, SHAPE, recipe=path)
    assert profile.memory == memory
    assert profile.totals[key] == found.totals["peak_bytes"]
    assert demand_of(model, memory).total_bytes({}) == own[key]


def test_flash_has_a_limit_too() -> None:
    free = quantize(max_flash="10MiB")
    weights = {row["name"]: row["weight_bits"] for row in free.rows if row["weights"]}
    assert set(weights.values()) == {16}
    tight = quantize(max_flash=free.totals["flash_bytes"] - 2000)
    assert tight.totals["flash_bytes"] <= tight.totals["max_flash_bytes"] == free.totals["flash_bytes"] - 2000
    saved = sum(math.ceil(r["weights"] * 16 / 8) - math.ceil(r["weights"] * r["weight_bits"] / 8)
                for r in tight.rows if r["weights"])  # fmt: skip
    assert tight.totals["flash_bytes"] == free.totals["flash_bytes"] - saved
    assert all(entry["flash_bytes"] <= tight.totals["max_flash_bytes"] for entry in tight.strategies)
    with pytest.raises(UsageError, match=r"(?s)flash.*--max-flash.*the smallest with 2-bit weights is .* bytes"):
        quantize(max_flash=100)


# -- what is done around rounding ---------------------------------------------------------------------------------


def test_evening_out_changes_nothing_in_floating_point() -> None:
    model = net()
    runner = Runner(memfit.capture(model, SHAPE), model)
    changed, pairs = equalize(runner, named_tensors(model))
    # depth → project; the stem is read twice, ReLU6 stops at 6, and between tail and head a flatten mixes channels.
    assert pairs == 1
    assert set(changed) == {"depth.1.weight", "depth.1.bias", "project.0.weight"}
    x = torch.randn(4, 1, 8, 8)
    wanted = model(x)
    other = net()
    with torch.no_grad():
        for name, tensor in changed.items():
            named_tensors(other)[name].copy_(tensor)
    torch.testing.assert_close(other(x), wanted, rtol=1e-4, atol=1e-5)
    gain = other.depth[1].weight / (other.depth[1].running_var + other.depth[1].eps).sqrt()
    reach = other.depth[0].weight.flatten(1).abs().amax(1) * gain.abs()
    after = other.project[0].weight.transpose(0, 1).flatten(1).abs().amax(1)
    torch.testing.assert_close(reach, after, rtol=1e-3, atol=1e-5)


def test_corrected_means_are_those_of_the_float_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
    x = torch.randn(32, 3, 4, 4) + 1
    runner = Runner(memfit.capture(model, "32x3x4x4"), model)
    named = named_tensors(model)
    assert [(feed.layer, feed.source) for feed in feeds(runner)] == [(1, 0), (2, 1)]
    grids = {name: weight_grids(named[name].detach(), 3, axis) for _, name, axis in weights_of(runner)}
    low = Rounding({}, grids).rounded(named)
    means = {1: x.mean((0, 2, 3)), 2: model[:2](x).detach().mean(0)}
    changed = corrections(runner, named, low, means)
    assert set(changed) == {"0.bias", "2.bias"}
    first = functional.conv2d(x, low["0.weight"], changed["0.bias"])
    torch.testing.assert_close(first.mean((0, 2, 3)), model[0](x).mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    hidden = model[:2](x)
    second = functional.linear(hidden, low["2.weight"], changed["2.bias"])
    torch.testing.assert_close(second.mean(0), model(x).mean(0), rtol=1e-4, atol=1e-4)


def test_learned_rounding_is_on_the_grid_and_closer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2)).eval()
    x = torch.randn(16, 4, 6, 6)
    runner = Runner(memfit.capture(model, "16x4x6x6"), model)
    named = named_tensors(model)
    grids = {name: of_weight(named[name].detach(), 3) for _, name, _ in weights_of(runner)}
    learned = learn(runner, [x], named, Rounding({}, grids), iterations=60)
    assert set(learned) == {"0.weight", "2.weight"}
    nearest = Rounding({}, grids).rounded(named)
    for name, tensor in learned.items():
        torch.testing.assert_close(fake_quantize(tensor, grids[name]), tensor, rtol=0, atol=1e-6)
        assert float((tensor - named[name].detach()).abs().max()) <= float(grids[name].scale.max()) * 1.001

    def off(weights: dict[str, Tensor]) -> float:
        state = {**{n: t.detach() for n, t in named.items()}, **weights}
        return float((torch.func.functional_call(model, state, (x,)) - model(x)).detach().square().sum())

    assert off(learned) < off({name: nearest[name] for name in learned})


def test_training_goes_through_the_rounding(tmp_path: Path) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    seen: list[bool] = []

    def train(module: nn.Module) -> None:
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for x, y in batches() * 6:
            loss = functional.cross_entropy(module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(all(p.grad is not None for p in module.parameters()))
        module.eval()

    path = tmp_path / "trained.json"
    found = quantize(model, metric="loss", train=train, save=path)
    assert seen
    assert all(seen)
    assert found.totals["metric"] < found.totals["untrained_metric"]
    for name, tensor in named_tensors(model).items():
        assert torch.equal(tensor, before[name]), name
    x = batches()[0][0]
    assert torch.equal(memfit.apply_recipe(model, path)(x), found.module(x))


def test_a_gradient_passes_where_values_lie_on_the_grid() -> None:
    grids = of_range(-1.0, 1.0, 4)
    x = torch.tensor([-5.0, -0.5, 0.5, 5.0], requires_grad=True)
    y = rounded(x, grids)
    torch.testing.assert_close(y.detach(), fake_quantize(x.detach(), grids))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


# -- recipes ------------------------------------------------------------------------------------------------------


def test_a_recipe_gives_the_same_outputs_again(half: tuple[Net, Quantization], tmp_path: Path) -> None:
    model, found = half
    for count in (1, 5, 8):
        x = torch.randn(count, 1, 8, 8)
        again = memfit.apply_recipe(model, found.recipe)
        assert torch.equal(again(x), found.module(x))
        assert not torch.equal(again(x), model(x))
    one, two = tmp_path / "a.json", tmp_path / "b.json"
    quantize(model, save=one)
    quantize(model, save=two)
    assert one.read_bytes() == two.read_bytes()
    kept = json.loads(one.read_text())
    assert kept["memfit_recipe"] == 1
    assert kept["memory"] == "mcunet"
    assert kept["budget_bytes"] == 300
    entry = kept["activations"]["depth.0"]
    assert set(entry) == {"bits", "scale", "zero_point"}
    # What is added into the sum as it is made is never stored, and so not rounded by itself.
    assert kept["activations"]["project.0"]["scale"] is None
    assert kept["activations"]["project.0"]["bits"] == kept["activations"]["add"]["bits"]
    assert kept["weights"]["stem.0.weight"]["axis"] == 0
    assert len(kept["weights"]["stem.0.weight"]["scale"]) == 8


def test_each_tensor_lies_on_its_grid(half: tuple[Net, Quantization]) -> None:
    found = half[1]
    x = batches()[0][0]
    recipe, module = found.recipe, found.module
    assert isinstance(module, Quantized)
    out = module(x)
    last = recipe.activations["head"]
    steps = out / last["scale"] + last["zero_point"]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-2)
    assert len(out.unique()) <= 2 ** last["bits"]


def test_recipes_for_other_networks_are_refused(half: tuple[Net, Quantization], tmp_path: Path) -> None:
    model, found = half
    path = tmp_path / "recipe.json"
    quantize(model, save=path)
    other = Net(classes=5).eval()
    with pytest.raises(UsageError, match=r"(?s)recipe was made for another network.*--recipe.*Net.*memfit quantize"):
        memfit.profile(other, SHAPE, recipe=path)
    with pytest.raises(UsageError, match="other weights"):
        memfit.apply_recipe(net(1), path)
    assert memfit.profile(net(1), SHAPE, recipe=path).totals["peak_bytes"] == found.totals["peak_bytes"]
    notes = memfit.profile(net(), "1x1x8x8", recipe=path, memory="ideal").notes
    assert any("budget is of mcunet, not of ideal" in note for note in notes)
    with pytest.raises(UsageError, match="knows no bits by layer"):
        memfit.profile(net(), SHAPE, recipe=path, memory="eager")
    text = path.read_text()
    for damage in (
        "",
        "[]",
        text.replace('"memfit_recipe": 1', '"memfit_recipe": 9'),
        text.replace('"bits": 8', '"bits": 99'),
    ):
        path.write_text(damage)
        with pytest.raises(SourceError, match=r"(?s)recipe.*--recipe"):
            read(path)
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "none.json")


def test_kept_ranges_make_the_grids(tmp_path: Path) -> None:
    model = net()
    path = tmp_path / "ranges.json"
    kept = memfit.calibrate(model, SHAPE, data=batches(), save=path)
    found = quantize(model, ranges=path, equalize=False)
    row = next(row for row in kept.rows if row["name"] == "head")
    entry = found.recipe.activations["head"]
    assert entry["scale"] == pytest.approx((row["max"] - row["min"]) / (2 ** entry["bits"] - 1), rel=1e-6)
    with pytest.raises(UsageError, match=r"(?s)ranges are of another model.*--ranges"):
        quantize(net(1), ranges=path)


# -- bad input and reports ----------------------------------------------------------------------------------------


def test_a_budget_below_what_is_possible_names_the_smallest() -> None:
    model = net()
    demand = demand_of(model)
    least = demand.total_bytes({name: 2 for group in demand.groups for name in group})
    with pytest.raises(UsageError, match=rf"(?s)no choice of bits keeps the budget.*--budget.*\({least:,} bytes\)"):
        quantize(model, budget=least - 1)
    assert quantize(model, budget=least).totals["peak_bytes"] == least
    roomy = quantize(model, budget="1MiB")
    assert {row["bits"] for row in roomy.rows} == {16}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": (1, 8)}, "2 to 16 bits"),
        ({"bits": ()}, "2 to 16 bits"),
        ({"strategy": "best"}, r"(?s)strategy.*exact, greedy, uniform"),
        ({"memory": "eager"}, r"(?s)memory.*mcunet, ideal, autograd, tinytl"),
        ({"metric": "mood"}, r"(?s)metric.*accuracy, loss, sqnr"),
        ({"rounding": "up"}, r"(?s)rounding.*nearest, learned"),
        ({"budget": 0}, "above zero"),
        ({"data": []}, "no samples"),
        ({"metric": lambda _: 1 / 0}, r"(?s)metric .*ZeroDivisionError"),
        ({"data": [torch.full((2, 1, 8, 8), math.nan)]}, "NaN"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, SourceError), match=words):
        quantize(**options)


def test_constant_activations_are_no_trouble() -> None:
    model = net()
    with torch.no_grad():
        model.depth[1].weight.zero_()
        model.depth[1].bias.fill_(0.0)
    found = quantize(model)
    assert found.totals["peak_bytes"] <= 300
    assert torch.isfinite(found.module(batches()[0][0])).all()


def test_without_labels_there_is_no_accuracy() -> None:
    data = [images for images, _ in batches()]
    assert quantize(data=data, metric=None).settings["metric"] == "sqnr"
    assert quantize(metric=None).settings["metric"] == "accuracy"
    with pytest.raises(UsageError, match="needs labels"):
        quantize(data=data, metric="accuracy")


def test_reports(half: tuple[Net, Quantization]) -> None:
    found = half[1]
    shown = {name: io.StringIO() for name in ("table", "md", "csv", "json")}
    for name, stream in shown.items():
        RENDERERS[name].render(found, stream)
    for words in (
        "exact choice of 2/4/8/16 bits",
        "budget 300 B",
        "exact: peak",
        "greedy: peak",
        "uniform: peak",
        "proven least",
    ):
        assert words in shown["table"].getvalue()
    content = json.loads(shown["json"].getvalue())
    assert content["command"] == "quantize"
    assert set(content["totals"]) >= {"baseline_peak_bytes", "peak_bytes", "budget_bytes", "baseline_metric", "metric"}
    assert set(content["rows"][0]) >= {"name", "bits", "weight_bits", "bytes_before", "bytes_after"}
    assert [entry["name"] for entry in content["strategies"]] == ["exact", "greedy", "uniform"]
    picture = io.BytesIO()
    RENDERERS["png"].render(found, picture)
    assert picture.getvalue().startswith(b"\x89PNG")


SOURCE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval(), torch.zeros(1, 1, 8, 8)

def data():
    for _ in range(3):
        yield torch.ones(2, 1, 8, 8), torch.tensor([0, 1])

def tune(module):
    return None
"""


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.py"
    file.write_text(SOURCE)
    recipe, picture = tmp_path / "recipe.json", tmp_path / "bits.png"
    line = ["quantize", f"{file}:make", "--budget", "120", "--data", f"{file}:data", "--save", str(recipe)]
    line += ["--bits", "2,4,8", "--format", "json", "-o", str(picture)]
    assert main([*line, "--train", f"{file}:tune", "--metric", "accuracy"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["totals"]["peak_bytes"] <= 120
    assert found["settings"]["trained"]
    assert picture.is_file()
    assert str(recipe) in told.err
    assert main(["profile", f"{file}:make", "--recipe", str(recipe), "--format", "json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert profile["totals"]["peak_bytes"] == found["totals"]["peak_bytes"]
    assert profile["memory"] == "mcunet"
    assert main(line) == 2  # the files exist
    assert "--force" in capsys.readouterr().err
    for more, words in (
        (["--bits", "3,x"], "2 to 16 bits"),
        (["--train", "tune"], "FILE.py:CALLABLE"),
        (["--budget", "-4"], "size"),
    ):
        assert main([*line, "--force", *more]) == 2
        assert words in capsys.readouterr().err
