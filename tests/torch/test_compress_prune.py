"""Pruning: channels go where the peak is, figures hold when captured again, and bad input is refused clearly."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import memfit
from memfit.cli.main import main
from memfit.compress.channels import Surgery, copy_of
from memfit.compress.choice import Figures, Limits, by_peak, by_share, pool, smallest
from memfit.compress.data import open_data
from memfit.compress.resize import measure_sizes
from memfit.compress.scoring import Scorer, renew_statistics
from memfit.errors import CaptureError, MissingExtra, OutputError, SourceError, UsageError
from memfit.memory.flash import flash_of_graph
from memfit.memory.model import View
from memfit.memory.registry import memory_model
from memfit.report.table import render

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHAPE = "1x3x32x32"


def convolution(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Net(nn.Module):
    """A stem, a wide inverted residual at full size, a shortcut, a concatenation, and a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.expand = convolution(8, 40, 1)
        self.depth = convolution(40, 40, groups=40)
        self.project = nn.Conv2d(40, 8, 1)
        self.down = convolution(8, 16, stride=4)
        self.side = convolution(16, 12)
        self.last = nn.Conv2d(28, 10, 3)
        self.head = nn.Linear(10 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        x = self.down(x)
        x = torch.cat([x, self.side(x)], 1)
        return self.head(self.last(x).flatten(1))


class Grouped(nn.Module):
    """A grouped convolution, whose own channels can only go several at once, between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(functional.relu(self.grouped(self.first(x))))).mean((2, 3))


def made(kind: type[nn.Module] = Net, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def batches(count: int = 2, labels: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(count)]
    return [(x, torch.arange(4)) if labels else x for x in images]


def pruned(model: nn.Module | None = None, **options: Any) -> memfit.Pruning:
    options.setdefault("data", batches())
    return memfit.prune(model if model is not None else made(), SHAPE, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def half() -> tuple[nn.Module, memfit.Pruning]:
    model = made()
    return model, pruned(model, budget=24_576)


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_the_peak_holds_when_the_pruned_module_is_profiled_again(half: tuple[nn.Module, memfit.Pruning]) -> None:
    model, result = half
    before = memfit.profile(model, SHAPE, memory="mcunet")
    after = memfit.profile(result.module, SHAPE, memory="mcunet")
    t = result.totals
    assert t["baseline_peak_bytes"] == before.totals["peak_bytes"] == 49 * 1024  # the shortcut's 8, 40, 1 besides
    assert t["peak_bytes"] == after.totals["peak_bytes"] <= t["budget_bytes"] == 24_576
    assert t["peak_at"] == after.totals["peak_at"]
    assert (t["baseline_macs"], t["macs"]) == (before.totals["macs"], after.totals["macs"])
    assert t["params"] == sum(p.numel() for p in result.module.parameters()) < t["baseline_params"]
    assert t["flash_bytes"] == flash_of_graph(memfit.capture(result.module, SHAPE)).total_bytes


def test_the_users_module_is_left_as_it_was() -> None:
    model = made().train()
    model.stem[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = pruned(model, budget="30KiB", importance="taylor")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in (*model.parameters(), *result.module.parameters()))
    assert not model.stem[0].weight.requires_grad
    trains = {name: p.requires_grad for name, p in result.module.named_parameters()}
    assert trains == {name: p.requires_grad for name, p in model.named_parameters()}


def test_channels_go_where_the_peak_is(half: tuple[nn.Module, memfit.Pruning]) -> None:
    _, result = half
    cut = {row["name"] for row in result.rows if row["channels_after"] < row["channels_before"]}
    assert {"expand.0", "depth.0"} <= cut
    assert not cut & {"side.0", "last", "head"}
    rows = {row["name"]: row for row in result.rows}
    assert rows["expand.0"]["channels_after"] == rows["depth.0"]["channels_after"] == result.module.depth[0].groups
    assert max(row["bytes_after"] for row in result.rows) == result.totals["peak_bytes"]
    assert sum(row["params_after"] for row in result.rows) == result.totals["params"]


def test_uniform_pruning_takes_from_every_layer() -> None:
    result = pruned(budget=24_576, strategy="uniform")
    rows = {row["name"]: row for row in result.rows}
    assert all(rows[name]["channels_after"] < rows[name]["channels_before"] for name in ("stem.0", "side.0", "last"))
    assert rows["head"]["channels_after"] == 5
    assert result.totals["peak_bytes"] <= 24_576


def test_layers_of_a_shortcut_lose_the_same_channels() -> None:
    result = pruned(budget=9_000, min_channels=2)
    stem, project = result.module.stem[0], result.module.project
    assert stem.out_channels == project.out_channels < 8
    assert result.module(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "bn-scale"])
def test_the_same_run_twice_gives_the_same_network(importance: str) -> None:
    one, two = (pruned(budget=24_576, importance=importance) for _ in range(2))
    assert one.rows == two.rows
    assert one.totals == two.totals
    state = two.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.module.state_dict().items())


@pytest.mark.parametrize(("memory", "share"), [("ideal", 0.6), ("eager", 0.7), ("autograd", 0.6), ("tinytl", 0.5)])
def test_every_memory_model_can_be_the_budget(memory: str, share: float) -> None:
    model = made()
    total = "saved_bytes" if memory in ("autograd", "tinytl") else "peak_bytes"
    whole = memfit.profile(model, SHAPE, memory=memory).totals[total]
    result = pruned(model, budget=int(whole * share), memory=memory)
    assert result.totals["baseline_peak_bytes"] == whole
    again = memfit.profile(result.module, SHAPE, memory=memory).totals[total]
    assert result.totals["peak_bytes"] == again <= int(whole * share)


def test_several_limits_at_once() -> None:
    model = made()
    whole = pruned(model, budget="1MiB").totals
    limits = {"budget": 30_000, "max_flash": whole["flash_bytes"] - 4_000, "max_macs": whole["macs"] // 2}
    t = pruned(model, **limits).totals
    assert (t["peak_bytes"] <= 30_000, t["flash_bytes"] <= limits["max_flash"], t["macs"] <= limits["max_macs"]) == (
        True, True, True,
    )  # fmt: skip
    assert t["max_flash_bytes"] == limits["max_flash"]


def test_limits_that_decide_are_named() -> None:
    model = made()
    whole = pruned(model, budget="1MiB")
    assert whole.totals["binding"] == []
    peak = pruned(model, budget=24_576).totals
    assert peak["binding"] == ["peak"]
    loose = {"max_flash": whole.totals["flash_bytes"], "max_macs": peak["macs"]}
    by_the_peak = pruned(model, budget=24_576, **loose)
    assert by_the_peak.totals["binding"] == ["peak"]
    assert by_the_peak.rows == pruned(model, budget=24_576).rows
    assert shown(by_the_peak) == "what decided: --budget; with room to spare: --max-flash, --max-macs"
    tight = pruned(model, budget=24_576, max_macs=int(0.9 * peak["macs"]))
    assert tight.totals["binding"] == ["peak", "macs"]
    assert shown(tight) == "what decided: --budget, --max-macs"
    assert pruned(model, budget=24_576, max_macs=peak["macs"] // 2).totals["binding"] == ["macs"]
    uniform = pruned(model, budget=24_576, max_macs=int(0.9 * peak["macs"]), strategy="uniform")
    assert uniform.totals["binding"] == ["peak"]  # its evenly thinner layers multiply little


def shown(result: memfit.Pruning) -> str:
    stream = io.StringIO()
    render(result, stream)
    return next(line for line in stream.getvalue().splitlines() if line.startswith("what decided"))


def test_a_latency_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.compress.prune import _Work

    def by_channels(self: _Work, model: Any) -> float:
        return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)) / 10

    monkeypatch.setattr(_Work, "_latency", by_channels)
    result = pruned(max_latency=9.0)
    assert result.totals["baseline_latency_ms"] == 13.4
    assert result.totals["latency_ms"] <= 9.0
    assert result.totals["binding"] == ["latency"]
    assert result.totals["latency_ms"] >= 0.95 * 9.0  # and no more was taken than that asks for
    spare = pruned(max_latency=8.0, budget=20_000).totals
    assert (spare["binding"], spare["latency_ms"] <= 8.0) == (["peak"], True)
    with pytest.raises(UsageError, match="cannot reach this latency") as caught:
        pruned(max_latency=1.0)
    assert "the smallest" in str(caught.value)


def test_limits_that_hold_already_change_nothing() -> None:
    model = made()
    result = pruned(model, budget="1MiB")
    assert all(row["channels_before"] == row["channels_after"] for row in result.rows)
    assert any("nothing was taken out" in note for note in result.notes)


def test_a_grouped_convolution_stays_whole() -> None:
    result = pruned(made(Grouped), budget=36_000)
    rows = {row["name"]: row for row in result.rows}
    assert rows["grouped"]["channels_after"] == 16
    assert rows["wide"]["channels_after"] < 32
    assert any("the model's own code fixes the channels of" in note for note in result.notes)


# -- predictions ------------------------------------------------------------------------------------------------------


def test_sizes_are_predicted_as_they_are_captured() -> None:
    model = made()
    example = torch.zeros(1, 3, 32, 32)

    def capture(counts: Any) -> Any:
        surgery = Surgery(copy_of(model, "net"), (example,), {}, "net")
        for group, count in zip(surgery.groups, counts, strict=True):
            surgery.remove(group.name, range(count))
        return memfit.capture(surgery.close(), example)

    groups = Surgery(copy_of(model, "net"), (example,), {}, "net").groups
    sizes = measure_sizes(capture, [group.channels for group in groups])
    assert [groups[i].name for i in sizes.fixed] == ["head"]
    counts = [0 if i in sizes.fixed else 1 + i % 3 for i in range(len(groups))]
    guess, truth = sizes.resized(counts), capture(counts)
    assert [t.shape for t in guess.tensors] == [t.shape for t in truth.tensors]
    assert [s.nbytes for s in guess.storages] == [s.nbytes for s in truth.storages]
    assert [op.macs for op in guess.ops] == [op.macs for op in truth.ops]
    for name in ("mcunet", "ideal"):
        assert memory_model(name).figures(View(guess)).per_op == memory_model(name).figures(View(truth)).per_op


def test_the_search_is_checked_by_hand() -> None:
    # Two operations: the first needs 10 bytes for a channel of group 0 and 1 for one of group 1, the second 5 for one
    # of group 1. Group 1's channels cost less, but only group 0 lowers the peak enough.
    def evaluate(counts: Any) -> Figures:
        a, b = 8 - counts[0], 8 - counts[1]
        return Figures((10 * a + b, 5 * b), 100 * a, a * b)

    def pools() -> list[Any]:
        return [pool([1.0] * 8, least=1, relative=True), pool([0.5] * 8, least=1, relative=True)]

    assert by_peak(pools(), evaluate, Limits(peak=70)) == [2, 0]
    assert by_peak(pools(), evaluate, Limits(peak=35)) == [6, 1]  # then the peak moves to the second operation
    assert by_share(pools(), evaluate, Limits(peak=35)) == [5, 5]
    assert by_peak(pools(), evaluate, Limits(flash=300)) == [5, 0]
    assert by_peak(pools(), evaluate, Limits(peak=70, macs=30))[0] >= 2
    assert smallest(pools(), evaluate, Limits(peak=11)).peak == 11
    with pytest.raises(UsageError, match="smallest reachable is 11 B"):
        smallest(pools(), evaluate, Limits(peak=10))


def test_a_group_costs_more_the_less_is_left() -> None:
    chosen = pool([1.0, 2.0, 3.0, 4.0], least=1, relative=True)
    costs = []
    while chosen.free:
        costs.append(chosen.cost())
        chosen.take()
    assert costs == pytest.approx([0.10536, 0.25131, 0.55962], abs=1e-5)  # -log(9/10), -log(7/9), -log(4/7)
    assert sum(costs) == pytest.approx(0.91629, abs=1e-5)  # -log(4/10)


# -- scores and fine-tuning -------------------------------------------------------------------------------------------


def test_scores_are_before_and_after() -> None:
    model = made()
    labelled = pruned(model, budget=24_576).totals
    assert 0 <= labelled["metric"] <= 1
    assert labelled["baseline_metric"] is not None
    noise = memfit.prune(model, SHAPE, budget=24_576, data="random", samples=2)
    assert noise.settings["metric"] == "sqnr"
    assert noise.totals["baseline_metric"] is None
    assert noise.totals["metric"] < 60
    loss = pruned(model, budget=24_576, metric="loss").totals
    assert loss["metric"] > 0
    own = pruned(model, budget=24_576, metric=lambda module: module.expand[0].out_channels).totals
    assert (own["baseline_metric"], own["metric"] < 40) == (40, True)


def test_fine_tuning_is_given_the_pruned_module_after_each_round() -> None:
    seen: list[int] = []

    def tune(module: Any) -> None:
        seen.append(module.expand[0].out_channels)
        with torch.no_grad():
            module.head.bias.fill_(1.0)

    result = pruned(budget=24_576, rounds=2, fine_tune=tune)
    assert len(seen) == 2
    assert 40 > seen[0] > seen[1]
    assert result.totals["untuned_metric"] is not None
    assert bool((result.module.head.bias == 1).all())
    assert not result.module.training


def test_statistics_of_batch_norms_are_those_of_the_data() -> None:
    model = made()
    data = open_data(batches(labels=False), None)
    norm = model.stem[1]
    momentum, count = norm.momentum, int(norm.num_batches_tracked)
    scorer = Scorer(data, ((torch.zeros(1, 3, 32, 32),), {}), "sqnr", model)
    assert renew_statistics(scorer, model)
    sums = [model.stem[0](x).transpose(0, 1).flatten(1) for x in batches(labels=False)]
    assert torch.allclose(norm.running_mean, torch.stack([s.mean(1) for s in sums]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([s.var(1) for s in sums]).mean(0), atol=1e-5)
    assert (norm.momentum, int(norm.num_batches_tracked)) == (momentum, count)
    before = norm.running_mean.clone()
    single = Scorer(open_data([torch.zeros(1, 3, 32, 32)], None), scorer.call, "sqnr", model)
    assert not renew_statistics(single, model)
    assert torch.equal(norm.running_mean, before)


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_saved_program_has_the_reported_peak(tmp_path: Path) -> None:
    file = tmp_path / "pruned.pt2"
    result = pruned(budget=24_576, save=file)
    assert memfit.profile(str(file), per="op", memory="mcunet").totals["peak_bytes"] == result.totals["peak_bytes"]
    image = torch.randn(1, 3, 32, 32)
    loaded = torch.export.load(file).module()
    assert torch.allclose(loaded(image), result.module(image), atol=1e-5)
    with pytest.raises(OutputError, match="exists already"):
        pruned(budget=24_576, save=file)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned.pt2"]


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = ["prune", "torchvision:squeezenet1_1", "--input", "1x3x64x64", "--data", "random", "--samples", "1"]
    picture = tmp_path / "pruned.png"
    assert main([*shell, "--budget", "60KiB", "-o", str(picture), "-o", str(tmp_path / "pruned.json")]) == 0
    printed = capsys.readouterr().out
    assert "peak (mcunet) 74.1 KiB → " in printed
    assert "budget 60 KiB" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "pruned.json").read_text())
    assert found["command"] == "prune"
    assert {"baseline_peak_bytes", "peak_bytes", "budget_bytes", "baseline_metric", "metric"} <= found["totals"].keys()
    assert {"name", "channels_before", "channels_after"} <= found["rows"][0].keys()
    assert "module" not in found
    assert main([*shell, "--budget", "60KiB", "--save", str(tmp_path / "x.onnx")]) == 2
    assert "x.pt2" in capsys.readouterr().err
    assert main([*shell, "--budget", "1KiB"]) == 2
    message = capsys.readouterr().err
    assert "pruning cannot reach this peak" in message
    assert "the smallest reachable is" in message
    assert main(shell) == 2
    assert "give --budget" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "said"), [("--budget=60KiB", "PASSIVE"), ("--max-latency=1000", None)])
def test_threads_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch, limit: str, said: str | None) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # remembers to put it back
    del os.environ["OMP_WAIT_POLICY"]
    assert main(["prune", "torchvision:no_such_model", "--data", "random", limit]) == 2
    assert os.environ.get("OMP_WAIT_POLICY") == said


# -- bad input --------------------------------------------------------------------------------------------------------


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Untraceable(nn.Module):
    """Torch-Pruning reads dependencies from autograd's graph, and this one ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("not while training")
        return self.conv(x)


def test_a_model_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(CaptureError, match="Torch-Pruning cannot trace this model") as caught:
        pruned(Untraceable(), budget="1KiB", data=batches(labels=False))
    for part in ("RuntimeError: not while training", "where:", "Untraceable", "to do:"):
        assert part in str(caught.value)
    with pytest.raises(CaptureError, match=r"cannot trace this model|no channels"):
        pruned(Opaque(), budget="1KiB", data=batches(labels=False))


def test_weights_that_are_not_numbers_are_named() -> None:
    model = made()
    with torch.no_grad():
        model.side[0].weight[0] = float("nan")
    with pytest.raises(UsageError, match="importance of channels is not a number") as caught:
        pruned(model, budget=24_576)
    assert "side.0" in str(caught.value) or "down.0" in str(caught.value)


def test_callables_are_named_as_files_have_them(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "seen = []\ndef width(module): return module.expand[0].out_channels\ndef train(module): module.k = 1"
    )
    result = pruned(budget=24_576, metric=f"{file}:width", fine_tune=f"{file}:train")
    assert result.settings["metric"] == "width"
    assert result.totals["baseline_metric"] == 40 > result.totals["metric"]
    assert result.module.k == 1
    with pytest.raises(SourceError, match="no such function"):
        pruned(budget=24_576, fine_tune=f"{file}:trian")


def test_the_users_own_code_that_raises() -> None:
    def broken(module: nn.Module) -> float:
        raise KeyError("no such split")

    with pytest.raises(SourceError, match=r"(?s)the metric broken failed.*broken.*KeyError: 'no such split'"):
        pruned(budget=24_576, metric=broken)
    with pytest.raises(SourceError, match=r"(?s)fine-tuning failed.*broken.*KeyError"):
        pruned(budget=24_576, fine_tune=broken)
    with pytest.raises(SourceError, match="does not give a finite number"):
        pruned(budget=24_576, metric=lambda _: "good")
    with pytest.raises(SourceError, match="another network"):
        pruned(budget=24_576, fine_tune=lambda _: made())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": "1KiB"}, r"the smallest reachable is .* \([\d,]+ bytes\), with 4 channels"),
        ({"max_flash": "20KiB"}, "pruning cannot reach this flash"),
        ({"max_macs": 10}, "cannot reach this number of MACs"),
        ({}, "nothing to prune for"),
        ({"budget": 0}, "above zero"),
        ({"budget": "30KiB", "memory": "tflm"}, "use mcunet, ideal"),
        ({"budget": "30KiB", "importance": "luck"}, "no such importance"),
        ({"budget": "30KiB", "strategy": "luck"}, "no such strategy"),
        ({"budget": "30KiB", "metric": "luck"}, "no such metric"),
        ({"budget": "30KiB", "min_channels": 0}, "at least 1"),
        ({"budget": "30KiB", "metric": "accuracy", "data": "random"}, "needs labels"),
        ({"budget": "30KiB", "data": []}, "no samples"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, SourceError), match=said):
        pruned(**options)


def test_a_program_has_no_code_to_prune() -> None:
    with pytest.raises(SourceError, match="only a model with its own code can be pruned"):
        memfit.prune("pruned.pt2", budget="1KiB", data="random")


def test_without_torch_pruning_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtra, match=r"pip install 'memfit\[compress\]'"):
        pruned(budget=24_576)


def test_what_torch_pruning_does_not_need_is_not_imported() -> None:
    code = (
        "import sys; from memfit.compress.channels import torch_pruning; torch_pruning(); "
        "print([name for name in ('torch_pruning', 'timm', 'torch._dynamo') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['torch_pruning']"


# -- the example ------------------------------------------------------------------------------------------------------


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(os.environ, "DIGITS_WEIGHTS", "no such file")
    import digits as found

    yield found
    sys.modules.pop("digits", None)


def test_the_digits_network_is_as_described(digits: Any) -> None:
    model, example = digits.network()
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 53
    assert memfit.profile(model, example, memory="mcunet").totals["peak_bytes"] == 21_760
    train, test = list(digits.train_data()), list(digits.test_data())
    assert sum(len(labels) for _, labels in train) == 1347
    assert sum(len(labels) for _, labels in test) == 450
    assert train[0][0].shape == (64, 1, 32, 32)
    assert -1 <= float(train[0][0].min()) < float(train[0][0].max()) <= 1


def test_the_digits_network_prunes_to_a_quarter_and_learns(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = digits.network()
    train = [(images[:16], labels[:16]) for images, labels in digits.train_data()][:2]
    result = memfit.prune(model, example, data=train, budget=21_760 // 4)
    assert result.totals["peak_bytes"] <= 5_440
    (images, labels), test = digits._digits()
    monkeypatch.setattr(digits, "_digits", lambda: ((images[:64], labels[:64]), (test[0][:50], test[1][:50])))
    before = result.module.classifier.weight.clone()
    tuned = digits.fine_tune(result.module, 2, batch=32)
    assert tuned is result.module
    assert not tuned.training
    assert not torch.equal(before, tuned.classifier.weight)
    assert 0 <= digits.accuracy(tuned) <= 1
