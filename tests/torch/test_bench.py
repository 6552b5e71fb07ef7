"""`memfit bench` on real models: rows, sums, weights, what is left unchanged. No time is asserted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import memfit
from memfit.capture.sources import load
from memfit.capture.sources.weights import load_weights
from memfit.capture.torch_trace import capture_module
from memfit.cli.main import main
from memfit.errors import CaptureError, MissingExtra, SourceError, UsageError
from memfit.measure import bench as bench_module
from memfit.measure.boundaries import check_order, instrument, record
from memfit.measure.layout import lay_out
from memfit.measure.program import Program, op_weights, restored
from memfit.measure.rows import layer_specs, row_of_ops
from memfit.measure.subject import Placing, subject
from memfit.measure.timers import CpuTimer
from memfit.measure.timing import Stopwatch, _run_steps

MOBILENET, SMALL = "torchvision:mobilenet_v2", "1x3x32x32"
QUICK: dict[str, Any] = {"warmup": 0, "iterations": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would make these tests slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Two blocks with additions, a shared layer, an in-place activation, and products in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(2)
        )
        self.shared = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
            x = self.shared(x)
        x += 1
        rows = x.flatten(2)
        mixed = torch.softmax(rows @ rows.transpose(1, 2), -1) @ rows
        return self.head(mixed.mean(-1))


def events_of(model: nn.Module, x: Tensor):
    return record(model.eval(), lambda: capture_module(model, (x,)))


def sane(result: memfit.Benchmark) -> None:
    """What holds for every benchmark: the contract's figures, and sums that are exact."""
    totals = result.totals
    for row in result.rows:
        assert row["calls"] >= 1, row
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p95_ms"], row
        assert row["std_ms"] >= 0
        assert row["fps"] == pytest.approx(totals["batch"] * 1000 / row["mean_ms"])
        assert row["share"] == pytest.approx(row["mean_ms"] / totals["whole_ms"])
    assert sum(row["mean_ms"] for row in result.rows) == pytest.approx(totals["layers_ms"], rel=1e-9)
    assert totals["whole_ms"] - totals["layers_ms"] == totals["unattributed_ms"]
    assert result.to_dict()["memory"] is None


# -- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "block"])
@pytest.mark.parametrize("mode", ["in-place", "isolated"])
def test_rows_are_those_of_profile(per: str, mode: str) -> None:
    result = memfit.bench(MOBILENET, SMALL, per=per, mode=mode, **QUICK)
    sane(result)
    profile = memfit.profile(MOBILENET, SMALL, per=per)
    expected = [row for row in profile.rows if row["type"] != "input"]
    assert [row["name"] for row in result.rows] == [row["name"] for row in expected]
    assert [row["type"] for row in result.rows] == [row["type"] for row in expected]
    assert [row["macs"] for row in result.rows] == [row["macs"] for row in expected]
    assert result.totals["macs"] == profile.totals["macs"]
    assert not any(row.get("estimated") for row in result.rows)


@pytest.mark.parametrize("mode", ["in-place", "isolated"])
def test_every_operation_is_a_row(mode: str) -> None:
    result = memfit.bench(MOBILENET, SMALL, per="op", mode=mode, **QUICK)
    sane(result)
    assert [row["name"] for row in result.rows] == [
        row["name"] for row in memfit.profile(MOBILENET, SMALL, per="op").rows
    ]


def test_the_whole_model_is_one_row() -> None:
    result = memfit.bench(MOBILENET, SMALL, **QUICK)
    sane(result)
    (row,) = result.rows
    assert (row["name"], row["type"], row["share"]) == ("(model)", "MobileNetV2", 1.0)
    assert result.totals["unattributed_ms"] == 0


@pytest.mark.parametrize("mode", ["in-place", "isolated"])
def test_a_shared_layer_is_one_row_with_two_calls(mode: str) -> None:
    result = memfit.bench(Residual(), "1x4x8x8", per="layer", mode=mode, **QUICK)
    sane(result)
    calls = {row["name"]: row["calls"] for row in result.rows}
    assert calls["shared"] == 2
    assert calls["head"] == 1
    assert not any("shared#" in name for name in calls)


def test_functions_of_one_module_share_its_time_and_say_so() -> None:
    result = memfit.bench(Residual(), "1x4x8x8", per="layer", **QUICK)
    estimated = {row["type"] for row in result.rows if row["estimated"]}
    assert {"softmax", "matmul"} <= {kind.removeprefix("b") for kind in estimated} | estimated
    assert not next(row for row in result.rows if row["name"] == "head")["estimated"]
    assert any(note.startswith("estimated: ") for note in result.notes)


def test_blocks_are_as_asked_for() -> None:
    result = memfit.bench(Residual(), "1x4x8x8", per="block", blocks=r"blocks\.\d|shared|head", **QUICK)
    names = [row["name"] for row in result.rows]
    assert set(names) >= {"blocks.0", "blocks.1", "shared", "head", "(root)"}
    assert next(row for row in result.rows if row["name"] == "shared")["calls"] == 2


# -- marks --------------------------------------------------------------------------------------------------------


def test_the_marks_give_each_row_its_modules_time() -> None:
    """On a clock that only the modules move, each row gets what its own modules took."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()
    graph, events = events_of(model, torch.zeros(1, 3, 8, 8))
    specs = layer_specs(graph, events, None)
    layout = lay_out(graph, events, row_of_ops(graph, specs), len(specs))
    now = [0]
    costs = (5, 3, 2, 7)
    for module, cost in zip(model, costs, strict=True):

        def work(x: Tensor, forward: Any = module.forward, cost: int = cost) -> Tensor:
            now[0] += cost * 1_000_000
            return forward(x)

        module.forward = work
    timer = CpuTimer(lambda: now[0])
    with instrument(model, layout, timer.mark)():
        timer.mark()
        model(torch.zeros(1, 3, 8, 8))
        timer.mark()
    parts = timer.finish()
    taken = np.bincount(layout.row, weights=parts[list(layout.part)] * layout.share, minlength=len(specs))
    assert dict(zip((s.type for s in specs), taken.tolist(), strict=True)) == {"conv2d": 10.0, "max_pool2d": 7.0}


@pytest.mark.parametrize("failing", [False, True])
def test_the_marks_are_taken_off_again(failing: bool) -> None:
    model = Residual().eval()
    model.head.forward = own = model.head.forward  # one that the user has put there
    graph, events = events_of(model, torch.zeros(1, 4, 8, 8))
    specs = layer_specs(graph, events, None)
    layout = lay_out(graph, events, row_of_ops(graph, specs), len(specs))
    before = [dict(vars(module)) for module in model.modules()]
    try:
        with instrument(model, layout, lambda: None)():
            assert any("forward" in vars(module) for module in model.modules() if module is not model.head)
            model(torch.zeros(1, 5 if failing else 4, 8, 8))
    except RuntimeError:
        assert failing
    assert [dict(vars(module)) for module in model.modules()] == before
    assert vars(model.head)["forward"] is own


def test_another_order_than_captured_is_an_error() -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.turned = False

        def forward(self, x: Tensor) -> Tensor:
            first, second = (self.other, self.one) if self.turned else (self.one, self.other)
            return second(first(x))

    model = Turning().eval()
    x = torch.zeros(1, 4)
    graph, events = events_of(model, x)
    assert len(graph.ops) == 4
    check_order(model, events, lambda: model(x))
    model.turned = True
    with pytest.raises(CaptureError, match="another order") as caught:
        check_order(model, events, lambda: model(x))
    assert caught.value.where in {"one", "other"}


# -- replay -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "mobilenet", "vit"])
def test_the_program_computes_what_the_model_does(name: str) -> None:
    sources = {"residual": Residual(), "mobilenet": MOBILENET, "vit": "timm:vit_tiny_patch16_224"}
    shapes = {"residual": "2x4x8x8", "mobilenet": SMALL, "vit": "1x3x224x224"}
    with subject(sources[name], None, Placing()) as what, torch.no_grad():
        call = what.call(shapes[name], None)
        expected = what.model(*call.args)
        args, kwargs = call.stand_ins()
        graph = capture_module(what.model, args, kwargs)
        program = Program(graph, what.model, list(call.args))
        slots = program.begin()
        for step in program.steps:
            given, named = step.read(slots)
            step.keep(step.function(*given, **named), slots)
            step.free(slots)
        (result,) = (slots[program.steps[-1].outputs[0]],)
        assert torch.equal(result, expected)
        weights = op_weights(program, CpuTimer(), warmup=0, rounds=1)
        assert len(weights) == len(graph.ops)
        assert (weights > 0).all()


def test_isolated_rows_do_not_change_their_inputs() -> None:
    """An addition in place is repeated on the same input, not on its own result."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            y += 1
            return y * 2

    model, x = Growing().eval(), torch.ones(1, 4)
    with torch.no_grad():
        graph = capture_module(model, (x,))
        program = Program(graph, model, [x])
        slots = program.begin()
        for _, steps in program.groups(list(range(len(graph.ops)))):
            with restored(steps, program, slots) as put_back:
                for _ in range(5):
                    put_back()
                    _run_steps(steps, slots, lambda: None)
        assert torch.equal(slots[program.steps[-1].outputs[0]], model(x))
        slots = program.begin()
        for _, steps in program.groups(list(range(len(graph.ops)))):
            for _ in range(5):
                _run_steps(steps, slots, lambda: None)
        assert not torch.equal(slots[program.steps[-1].outputs[0]], model(x))  # so this test can fail


# -- the subject ----------------------------------------------------------------------------------------------------


def test_weights_are_real_and_the_same_each_time() -> None:
    one, other = (load(MOBILENET, real=True).model for _ in range(2))
    assert one is not None
    assert other is not None
    state = torch.get_rng_state()
    for (name, tensor), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, again), name
    assert float(one.state_dict()["features.0.0.weight"].std()) > 0.01
    assert float(one.state_dict()["features.0.1.running_var"].sum()) == 32
    load(MOBILENET, real=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_are_stated_and_given_ones_are_not(tmp_path: Path) -> None:
    model = load(MOBILENET, real=True).model
    assert model is not None
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pt")
    assert "weights are random" in memfit.bench(MOBILENET, SMALL, **QUICK).notes
    given = memfit.bench(MOBILENET, SMALL, weights=tmp_path / "w.pt", **QUICK)
    assert "weights are random" not in given.notes


def test_weights_are_put_in_place(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(source.weight, target.weight)
    torch.save({f"module.{k}": v + 1 for k, v in source.state_dict().items()}, tmp_path / "parallel.pth")
    load_weights(target, tmp_path / "parallel.pth")
    assert torch.equal(source.weight + 1, target.weight)


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    safetensors.save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(source.weight, target.weight)
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    with pytest.raises(SourceError, match="cannot be read"):
        load_weights(target, tmp_path / "bad.safetensors")


def test_missing_safetensors_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.capture.sources import weights

    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="pip install safetensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (Evil(), "more than tensors"),
        ([1, 2], "no state dict"),
        ({"a": 1}, "no state dict"),
        ({"weight": torch.zeros(2, 3)}, "not this model's"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "not this model's"),
        ({"weight": torch.zeros(9, 9), "bias": torch.zeros(2)}, "do not fit"),
    ],
)
def test_weights_that_cannot_be_are_refused(content: Any, match: str, tmp_path: Path, capsys) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=match) as caught:
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")
    assert caught.value.where == str(tmp_path / "w.pt")
    assert caught.value.received
    assert caught.value.todo
    assert capsys.readouterr().out == ""


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        load_weights(nn.Linear(3, 2), tmp_path / "none.pt")
    with pytest.raises(UsageError, match="by its name"):
        load_weights(nn.Linear(3, 2), tmp_path / "weights.zip")


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}, {"channels_last": True}])
def test_a_held_module_is_left_as_it_was(options: dict[str, Any]) -> None:
    model = Residual().train()
    model.blocks[0].eval()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    result = memfit.bench(model, "1x4x8x8", per="layer", **options, **QUICK)
    sane(result)
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]), name
        assert tensor.stride() == before[name][1]
    assert result.settings["dtype"] == ("bfloat16" if "dtype" in options else "float32")
    assert "weights are random" not in result.notes


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    result = memfit.bench(Residual(), "1x4x8x8", threads=before + 1, **QUICK)
    assert result.settings["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_token_ids_stay_within_the_table(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            if not torch._C._len_torch_dispatch_stack():
                seen.append(ids.clone())
            return self.head(self.words(ids)).mean(1)

    seen: list[Tensor] = []
    sane(memfit.bench(Text(), "2x50:int64", per="layer", **QUICK))
    assert int(seen[-1].max()) == 6
    assert int(seen[-1].min()) == 0


def test_a_users_own_example_is_used(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        assert torch._C._len_torch_dispatch_stack() or bool((x == 7).all()), 'not my example'\n"
        "        return super().forward(x)\n"
        "def make(width=4):\n"
        "    return Net(width, 2), torch.full((3, width), 7.0)\n"
    )
    result = memfit.bench(f"{path}:make", **QUICK)
    assert result.totals["batch"] == 3
    assert result.inputs[0]["shape"] == (3, 4)
    assert "weights are random" not in result.notes
    with pytest.raises(CaptureError, match="not my example"):
        memfit.bench(f"{path}:make", batch=2, **QUICK)


def test_a_transformers_model_runs(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 32}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = memfit.bench(f"hf:{tmp_path}", "1x16:int64", per="block", **QUICK)
    sane(result)
    assert len(result.rows) >= 3


# -- options --------------------------------------------------------------------------------------------------------


def test_a_sweep_has_a_row_for_each_batch() -> None:
    result = memfit.bench(Residual(), "1x4x8x8", batch=[1, 3], **QUICK)
    assert result.per == "batch"
    assert [(row["name"], row["batch"]) for row in result.rows] == [("batch 1", 1), ("batch 3", 3)]
    for row in result.rows:
        assert row["fps"] == pytest.approx(row["batch"] * 1000 / row["mean_ms"])
        assert row["per_sample_ms"] == pytest.approx(row["mean_ms"] / row["batch"])
    assert [point["inputs"][0]["shape"] for point in result.sweep] == [(1, 4, 8, 8), (3, 4, 8, 8)]
    assert result.totals["whole_ms"] is None
    assert result.totals["best_batch"] in (1, 3)
    one = memfit.bench(Residual(), "1x4x8x8", batch=3, **QUICK)
    assert one.totals["batch"] == 3
    sane(one)


def test_measured_memory_equals_the_prediction() -> None:
    result = memfit.bench(MOBILENET, "1x3x64x64", with_memory=True, **QUICK)
    totals = result.totals
    assert totals["measured_peak_bytes"] == totals["predicted_peak_bytes"]
    assert totals["prediction_error"] == 0
    assert totals["predicted_peak_bytes"] == memfit.profile(MOBILENET, "1x3x64x64").totals["peak_bytes"]


def test_workspaces_without_a_rule_are_measured_for_the_prediction() -> None:
    result = memfit.bench(Residual(), "1x4x64x64", dtype="bf16", with_memory=True, **QUICK)
    assert abs(result.totals["prediction_error"]) < 0.01
    if memfit.capture(Residual(), "1x4x64x64", dtype="bf16").environment["isa"] == "AVX512":
        assert any("measured one by one, without a rule" in note for note in result.notes)


def test_the_profiler_writes_nothing(capfd) -> None:
    memfit.bench(Residual(), "1x4x8x8", with_memory=True, **QUICK)
    assert capfd.readouterr() == ("", "")


def test_an_adaptive_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    result = memfit.bench(Residual(), "1x4x8x8", seconds=0.05, warmup=0)
    assert result.settings["iterations"] >= 1
    assert result.settings["settled"] in (True, False)
    assert memfit.bench(Residual(), "1x4x8x8", seconds=60, warmup=0, iterations=3).settings["iterations"] <= 3


def test_a_run_is_saved_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    first = memfit.bench(Residual(), "1x4x8x8", per="layer", save=path, **QUICK)
    content = json.loads(path.read_text())
    assert set(content["samples"]["rows"]) == {row["name"] for row in first.rows}
    assert {len(samples) for samples in content["samples"]["rows"].values()} == {2}
    assert np.mean(content["samples"]["whole"]) == pytest.approx(first.totals["whole_ms"])
    again = memfit.bench(Residual(), "1x4x8x8", per="layer", against=path, **QUICK)
    assert again.comparison is not None
    assert len(again.comparison["rows"]) == len(first.rows)
    assert {row["change"] for row in again.rows} == {"same"}  # two samples prove nothing
    with pytest.raises(UsageError, match="rows per layer"):
        memfit.bench(Residual(), "1x4x8x8", per="block", against=path, **QUICK)


def interrupted_after(monkeypatch: pytest.MonkeyPatch, runs: int) -> None:
    plain = Stopwatch.plain
    count = iter(range(10**6))

    def once(self: Stopwatch) -> float:
        if next(count) == runs:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(Stopwatch, "plain", once)


@pytest.mark.parametrize("per", ["model", "layer"])
def test_ctrl_c_shows_and_saves_what_there_is(
    per: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_after(monkeypatch, 4)
    run = tmp_path / "run.json"
    line = f"bench {MOBILENET} --input {SMALL} --per {per} --warmup 1 --iterations 50 --save {run} --format json"
    assert main(line.split()) == 130
    shown = json.loads(capsys.readouterr().out)
    assert "interrupted after 3 of 50 iterations" in shown["notes"]
    assert len(json.loads(run.read_text())["samples"]["whole"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_ctrl_c_in_a_sweep_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_after(monkeypatch, 5)
    result = memfit.bench(Residual(), "1x4x8x8", batch=[1, 2, 4], warmup=0, iterations=3)
    assert [row["batch"] for row in result.rows] == [1, 2]
    assert "interrupted after 2 of 3 iterations of batch size 2 of 3" in result.notes


def test_ctrl_c_before_anything_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    interrupted_after(monkeypatch, 0)
    run = tmp_path / "run.json"
    assert main(f"bench {MOBILENET} --input {SMALL} --iterations 5 --save {run}".split()) == 130
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_between_isolated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Stopwatch._alone
    count = iter(range(10**6))

    def once(self: Stopwatch, *given: Any) -> float:
        if next(count) == 5:
            raise KeyboardInterrupt
        return alone(self, *given)

    monkeypatch.setattr(Stopwatch, "_alone", once)
    result = memfit.bench(MOBILENET, SMALL, per="layer", mode="isolated", warmup=0, iterations=2)
    assert [row["name"] for row in result.rows] == ["features.0.0", "features.1.conv.0.0"]
    assert "interrupted: 2 of 64 rows are done" in result.notes
    sane(result)


def test_macs_may_be_unknown_for_the_whole_model() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y if float(y.sum()) > 0 else -y

    result = memfit.bench(Deciding(), "1x4", **QUICK)
    assert result.totals["macs"] is None
    assert any(note.startswith("MACs are not known") for note in result.notes)
    with pytest.raises(CaptureError):
        memfit.bench(Deciding(), "1x4", per="layer", **QUICK)


def test_outputs_that_are_no_numbers_are_remarked_on() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    assert any("not finite" in note for note in memfit.bench(Odd(), "1x4", **QUICK).notes)


@pytest.mark.parametrize(
    ("given", "what", "where", "received", "todo"),
    [
        ({"per": "tensor"}, "no such kind of row", "--per", "'tensor'", "model, block, layer, op"),
        ({"mode": "alone"}, "no such way", "--mode", "'alone'", "in-place, isolated"),
        ({"device": "tpu"}, "no such device", "--device", "'tpu'", "cpu, cuda"),
        ({"batch": 0}, "counts from one", "--batch", "0", "1 or more"),
        ({"batch": [2, 2]}, "given twice", "--batch", "2,2", "only once"),
        ({"threads": 0}, "counts from one", "--threads", "0", "1 or more"),
        ({"iterations": 0}, "at least one iteration", "--iterations", "0", "1 or more"),
        ({"seconds": 0}, "above zero", "--seconds", "0", "such as 10"),
        ({"batch": [1, 2], "per": "layer"}, "one row for each", "--batch", "--per layer", "leave out --per"),
        ({"compile": True, "per": "block"}, "fuses them", "--compile", "--per block", "leave out"),
        ({"blocks": "a"}, "needs rows per block", "--blocks", "'a'", "--per block"),
        ({"channels_last": True, "inputs": "1x4"}, "four dimensions", "--channels-last", "(1, 4)", "leave it out"),
        ({"inputs": "1x4x8"}, "model failed on this input", "Residual", "1x4x8", "--input"),
        ({"inputs": None}, "inputs of this model are not known", "Residual", "no --input", "--input"),
        ({"source": "x.memfit.json"}, "can run", "x.memfit.json", "saved graph", "torchvision:"),
        ({"source": "x.pt2"}, "can run", "x.pt2", "exported program", "torchvision:"),
        ({"source": "torchvision:resnet5"}, "no model of that name", "torchvision:resnet5", "resnet5", "resnet50"),
        ({"source": "nothing"}, "not a model source", "SOURCE", "'nothing'", "torchvision:NAME"),
        ({"weights": "w.pt"}, "already built", "weights", "w.pt", "yourself"),
    ],
)
def test_bad_input_has_one_clear_error(given, what, where, received, todo) -> None:
    options = {"source": Residual(), "inputs": "1x4x8x8", **QUICK, **given}
    with pytest.raises((UsageError, SourceError, CaptureError)) as caught:
        memfit.bench(**options)
    error = caught.value
    assert what in error.what
    assert error.where == where
    assert received in (error.received or "")
    assert todo in (error.todo or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_message_says_how_to_predict(capsys) -> None:
    assert main(["bench", MOBILENET, "--device", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"memfit profile SOURCE --memory cuda.*memfit train SOURCE .*--device cuda", err)


def test_the_terminal_has_a_bar_and_a_pipe_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.cli.progress import progress_bar

    told = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with progress_bar("x") as progress:
        told.append(progress("timing", 1, 2))
    assert told == [None]


def test_a_compiled_model_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def stand_in(model: nn.Module) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr(bench_module.torch, "compile", stand_in)
    result = memfit.bench(Residual(), "1x4x8x8", compile=True, **QUICK)
    sane(result)
    assert len(compiled) == 1
    assert result.settings["compile"] is True


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [{}, {"per": "layer"}, {"per": "op"}, {"per": "layer", "mode": "isolated"}])
def test_a_gpu_is_timed(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    synchronize = torch.cuda.Event.synchronize
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda e: (waits.append(1), synchronize(e))[1])
    result = memfit.bench(MOBILENET, "1x3x224x224", device="cuda", with_memory=True, **options, **QUICK)
    sane(result)
    assert result.totals["measured_peak_bytes"] > 0
    assert result.totals["measured_reserved_bytes"] >= result.totals["measured_peak_bytes"]
    if not options:
        assert len(waits) == 2  # one in each iteration
    assert "gpu" in result.environment
