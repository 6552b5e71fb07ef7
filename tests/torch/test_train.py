"""`memfit train`: its answers held against direct predictions, its contract, its messages, its printed report."""

from __future__ import annotations

import csv
import json
import os
import re
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memfit
from memfit.analysis.result import TrainingStep
from memfit.cli.main import main
from memfit.errors import UsageError
from memfit.memory.cuda.context import context_bytes
from memfit.report import RENDERERS, table
from memfit.units import parse_bytes

MIB = 1 << 20
CONTEXT = context_bytes("8.0")
SNAPSHOTS = Path(__file__).parent / "snapshots"

NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.out(torch.relu(self.norm(self.conv(x))))


class Net(nn.Module):
    def __init__(self, width=16, depth=5):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make(**options):
    return Net(**options), torch.zeros(1, 3, 32, 32)


class NoBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(x).argmax(-1)


def no_backward():
    return NoBackward(), torch.zeros(1, 8)


def nothing_to_train():
    return nn.ReLU(), torch.zeros(1, 8)


def one_value_each():
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 4)), torch.zeros(2, 8)


def wrong_shape():
    return Net(), torch.zeros(1, 4, 32, 32)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("train") / "net.py"
    path.write_text(NET)
    return f"{path}:make"


@pytest.fixture(scope="module")
def net(source: str) -> nn.Module:
    """The same network, held."""
    space: dict[str, Any] = {}
    exec(compile(NET, "net.py", "exec"), space)
    model = space["Net"]()
    assert isinstance(model, nn.Module)
    return model


SHAPE = "1x3x32x32"
predicted: dict[Any, TrainingStep] = {}


def predict(model: Any, batch: int = 32, **options: Any) -> TrainingStep:
    """Predict, each setup once."""
    key = (id(model) if isinstance(model, nn.Module) else model, batch, *sorted(options.items()))
    if key not in predicted:
        inputs = SHAPE if isinstance(model, nn.Module) else None
        predicted[key] = memfit.train(model, inputs, batch=batch, **options)
    return predicted[key]


def reserved(model: Any, batch: int = 32, **options: Any) -> int:
    return int(predict(model, batch, **options).totals["peak_reserved_bytes"])


def adds_up(step: TrainingStep) -> None:
    """Rows sum to the peak's total, and the categories of the timeline to what is allocated at every operation."""
    line, totals = step.timeline, step.totals
    assert sum(row["allocated_bytes"] for row in step.rows) == totals["allocated_bytes"]
    assert sum(row["share"] for row in step.rows) == pytest.approx(1)
    assert totals["allocated_bytes"] == max(line["allocated_bytes"]) <= totals["peak_allocated_bytes"]
    count = len(line["ops"])
    assert all(len(series) == count for series in line.values() if series)
    categories = [f"{row['name']}_bytes" for row in step.rows]
    assert set(line) == {"ops", "phases", "allocated_bytes", "reserved_bytes", *categories}
    for index, total in enumerate(line["allocated_bytes"]):
        assert sum(line[name][index] for name in categories) == total
        assert all(line[name][index] >= 0 for name in categories)
    for row in step.rows:
        assert row["highest_bytes"] == max(line[f"{row['name']}_bytes"])
    assert line["phases"] == sorted(line["phases"], key=["forward", "loss", "backward", "step"].index)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sgd": {"optimizer": "sgd"},
    "momentum, for-loop": {"optimizer": "momentum", "kernels": "for-loop"},
    "adamw, fused": {"optimizer": "adamw", "kernels": "fused"},
    "adafactor": {"optimizer": "adafactor"},
    "8bit": {"optimizer": "8bit-adam"},
    "autocast bf16": {"autocast": "bf16"},
    "autocast fp16": {"autocast": "fp16"},
    "dtype bf16": {"dtype": "bf16"},
    "accumulate": {"accumulate": 3},
    "checkpoint": {"checkpoint": r"^blocks\.\d$"},
    "bias": {"train_only": "bias"},
    "norm": {"train_only": "norm"},
    "gradients kept": {"set_to_none": False},
    "expandable": {"alloc_conf": "expandable_segments:True"},
    "H100": {"capability": "sm_90"},
    "cpu": {"device": "cpu"},
    "cpu, autocast": {"device": "cpu", "autocast": "bf16"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_sum_to_the_whole(net: nn.Module, name: str) -> None:
    step = predict(net, **VARIANTS[name])
    adds_up(step)
    totals = step.totals
    trained = [p for n, p in net.named_parameters() if _trains(n, VARIANTS[name].get("train_only"))]
    size = 2 if VARIANTS[name].get("dtype") else 4
    assert totals["parameter_bytes"] == size * sum(p.numel() for p in net.parameters())
    assert totals["gradient_bytes"] == size * sum(p.numel() for p in trained)
    assert totals["input_bytes"] == 32 * 3 * 32 * 32 * size
    # five batch norms' statistics and counters
    assert totals["buffer_bytes"] == 5 * (2 * 16 * size + 8)
    if VARIANTS[name].get("device") != "cpu":
        assert totals["peak_allocated_bytes"] <= totals["peak_reserved_bytes"]
        assert totals["context_bytes"] == context_bytes("9.0" if name == "H100" else "8.0")
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def _trains(name: str, train_only: str | None) -> bool:
    chosen = {None: "", "bias": r"bias$", "norm": r"\.norm\."}[train_only]
    return re.search(chosen, name) is not None


def test_optimizer_bytes(net: nn.Module) -> None:
    elements = sum(p.numel() for p in net.parameters())

    def state(**options: Any) -> int:
        return int(predict(net, **options).totals["optimizer_bytes"])

    assert state() == 8 * elements
    assert state(optimizer="sgd") == 0
    assert state(optimizer="momentum", kernels="for-loop") == 4 * elements
    assert state(optimizer="adamw", kernels="fused") == 8 * elements + 4 * len(list(net.parameters()))
    assert state(dtype="bf16") == 4 * elements
    assert state(train_only="bias") == 8 * sum(p.numel() for n, p in net.named_parameters() if n.endswith("bias"))


def test_accumulation_halves_what_is_saved(net: nn.Module) -> None:
    """The same samples in two halves: half the activations, and gradients that wait for the second half."""
    whole, halves = predict(net).totals, predict(net, 16, accumulate=2).totals
    assert halves["saved_bytes"] == pytest.approx(whole["saved_bytes"] / 2, rel=0.01)
    assert halves["gradient_bytes"] == whole["gradient_bytes"]
    assert halves["peak_reserved_bytes"] < whole["peak_reserved_bytes"]
    assert any("2 micro-batches of 16" in note for note in predict(net, 16, accumulate=2).notes)


def test_saved_activations_by_hand(net: nn.Module) -> None:
    """Images of 16 channels: the stem's result, and of each block the convolution's, the norm's, ReLU's and the sum.

    A block's sum is the next one's input; ReLU keeps its result, the norm its input. The mean keeps nothing, the last
    block's sum neither. In 512-byte blocks or not, saved bytes are exact: statistics, pooled rows and logits besides.
    """
    image = 32 * 16 * 32 * 32 * 4
    small = 5 * 2 * 16 * 4 + 32 * 16 * 4 + 32 * 10 * 4 + 32 * 8 + 4  # statistics, head's input, loss: classes, 0-dim
    inputs = 32 * 3 * 32 * 32 * 4
    assert predict(net).totals["saved_bytes"] == 15 * image + inputs + small


def test_autocast_saves_in_half_precision(net: nn.Module) -> None:
    whole, half = predict(net).totals, predict(net, autocast="bf16").totals
    assert half["parameter_bytes"] == whole["parameter_bytes"]
    assert half["saved_bytes"] < 0.55 * whole["saved_bytes"]
    assert predict(net, autocast="fp16").totals["saved_bytes"] == half["saved_bytes"]


def test_frozen_layers_keep_less(net: nn.Module) -> None:
    """With biases only, convolutions need no input: what ReLU and the norms need stays."""
    assert predict(net, train_only="bias").totals["saved_bytes"] < predict(net).totals["saved_bytes"]


def test_kept_gradients_are_there_in_forward(net: nn.Module) -> None:
    step, kept = predict(net), predict(net, set_to_none=False)
    first = [s.timeline["gradients_bytes"][0] for s in (step, kept)]
    assert first[0] == 0 < kept.totals["gradient_bytes"] <= first[1]


def test_expandable_segments_are_stated(net: nn.Module) -> None:
    step = predict(net, alloc_conf="expandable_segments:True")
    assert step.settings["expandable_segments"] is True
    assert step.totals["peak_reserved_bytes"] <= reserved(net)
    assert step.totals["peak_allocated_bytes"] <= predict(net).totals["peak_allocated_bytes"]


def test_a_checkpoint_recomputes(net: nn.Module) -> None:
    plain, step = predict(net), predict(net, checkpoint=r"^blocks\.\d$")
    assert step.totals["saved_bytes"] < plain.totals["saved_bytes"] / 2
    assert step.settings["checkpoint"] == [f"blocks.{i}" for i in range(5)]
    # Of five blocks the first convolution, 3x3x16x16 on 32 images of 32 x 32: what follows the last saved tensor is not
    # run again.
    assert any(f"{5 * 9 * 256 * 32 * 1024:,} MACs" in note for note in step.notes)


# -- a budget --------------------------------------------------------------------------------------------------------


def test_a_budget_of_exactly_the_need_fits(net: nn.Module) -> None:
    need = reserved(net) + CONTEXT
    exact, short = predict(net, budget=need, advice=False), predict(net, budget=need - 1, advice=False)
    assert (exact.totals["fits"], exact.totals["short_bytes"]) == (True, 0)
    assert (short.totals["fits"], short.totals["short_bytes"]) == (False, 1)
    assert exact.totals["max_batch"] >= 32 > short.totals["max_batch"]
    assert exact.totals["runs_with_retries"] is True
    assert exact.advice == short.advice == ()
    measured = predict(net, budget=need, cuda_context=CONTEXT + 1, advice=False)
    assert (measured.totals["fits"], measured.totals["context_bytes"]) == (False, CONTEXT + 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"autocast": "bf16"}, {"accumulate": 2}, {"checkpoint": "blocks"}, {"alloc_conf": "expandable_segments:True"}],
    ids=str,
)
@pytest.mark.parametrize("room", [90, 300])
def test_the_largest_batch_fits_and_the_next_does_not(net: nn.Module, room: int, options: dict[str, Any]) -> None:
    budget = CONTEXT + room * MIB
    largest = predict(net, budget=budget, advice=False, **options).totals["max_batch"]
    assert largest > 1
    assert reserved(net, largest, **options) <= room * MIB < reserved(net, largest + 1, **options)


def test_no_batch_fits_a_budget_below_the_context(net: nn.Module) -> None:
    totals = predict(net, budget=CONTEXT, advice=False).totals
    assert (totals["max_batch"], totals["fits"]) == (0, False)
    assert totals["short_bytes"] == reserved(net)


def test_a_model_that_needs_two_samples(source: str) -> None:
    """Batch norm of rows refuses one sample: from 2 on it is asked."""
    step = predict(source.replace(":make", ":one_value_each"), 2, budget=CONTEXT + 64 * MIB, advice=False)
    assert step.totals["max_batch"] > 2


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_each_idea_is_a_prediction_of_its_own(net: nn.Module) -> None:
    budget = CONTEXT + reserved(net) - 6 * MIB
    step = predict(net, budget=budget)
    assert step.totals["fits"] is False
    singles = [idea for idea in step.advice if " and " not in idea["name"]]
    assert {re.sub(r"[ =].*", "", idea["name"]) for idea in singles} >= {"--checkpoint", "--autocast", "--batch"}
    assert [i["peak_reserved_bytes"] for i in singles] == sorted(i["peak_reserved_bytes"] for i in singles)
    for idea in singles:
        words = idea["name"].split()
        paths = "|".join(f"^{re.escape(path)}$" for path in idea["checkpoint"])
        options = {
            "autocast": option(words, "--autocast"),
            "optimizer": option(words, "--optimizer"),
            "kernels": option(words, "--kernels"),
            "checkpoint": paths or None,
            "alloc_conf": "expandable_segments:True" if "expandable_segments" in idea["name"] else None,
            "accumulate": int(option(words, "--accumulate") or 1),
        }
        chosen = {name: value for name, value in options.items() if value not in (None, 1)}
        if "--batch" in words:
            assert int(option(words, "--batch") or 0) * options["accumulate"] == 32
        direct = predict(net, int(option(words, "--batch") or 32), **chosen).totals
        assert idea["peak_reserved_bytes"] == direct["peak_reserved_bytes"], idea["name"]
        assert idea["peak_allocated_bytes"] == direct["peak_allocated_bytes"]
        assert idea["needed_bytes"] == idea["peak_reserved_bytes"] + step.totals["context_bytes"]
        assert idea["saves_bytes"] == step.totals["peak_reserved_bytes"] - idea["peak_reserved_bytes"] > 0
        assert idea["fits"] is (idea["peak_reserved_bytes"] + CONTEXT <= budget)
        assert ("--checkpoint" in idea["name"]) is bool(idea["checkpoint"])
        if idea["checkpoint"]:
            assert f"({len(idea['checkpoint'])} block" in idea["name"]


def test_ideas_are_put_together_where_no_single_one_fits(net: nn.Module) -> None:
    single = predict(net, budget=CONTEXT + reserved(net) - 6 * MIB).advice
    room = min(idea["peak_reserved_bytes"] for idea in single) - 2 * MIB
    step = predict(net, budget=CONTEXT + room)
    first, *rest = step.advice
    assert " and " in first["name"]
    assert first["fits"] is True
    assert first["peak_reserved_bytes"] <= room
    assert not any(idea["fits"] for idea in rest)
    count = re.search(r"\((\d+) block", first["name"])
    assert (int(count[1]) if count else 0) == len(first["checkpoint"])


def test_no_idea_repeats_what_is_set(net: nn.Module) -> None:
    options = {"optimizer": "sgd", "autocast": "bf16", "checkpoint": "blocks", "alloc_conf": "expandable_segments:True"}
    names = [idea["name"] for idea in predict(net, 1, budget=CONTEXT + 1, **options).advice]
    assert not [
        n for n in names if any(word in n for word in ("checkpoint", "autocast", "optimizer", "batch", "expand"))
    ]


def test_automatic_checkpoints_fit_the_budget_with_the_fewest_blocks(net: nn.Module) -> None:
    """Images of 16 MiB, so that every block shows in the segments; none of the choices with one block fewer fits."""

    def chosen(paths: list[str]) -> int:
        return reserved(net, 256, **({"checkpoint": "|".join(f"^{re.escape(p)}$" for p in paths)} if paths else {}))

    plain, lowest = reserved(net, 256), reserved(net, 256, checkpoint="auto")
    assert lowest < plain
    counts = []
    for room in (plain, plain - 1, (plain + lowest) // 2, lowest):
        step = predict(net, 256, checkpoint="auto", budget=CONTEXT + room, advice=False)
        assert step.totals["fits"] is True
        paths = step.settings["checkpoint"]
        assert chosen(paths) == step.totals["peak_reserved_bytes"] <= room
        counts.append(len(paths))
        assert all(chosen([p for p in paths if p != left]) > room for left in paths)
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    hopeless = predict(net, 256, checkpoint="auto", budget=CONTEXT + MIB, advice=False)
    assert hopeless.totals["fits"] is False
    assert hopeless.totals["peak_reserved_bytes"] == lowest


# -- the command -----------------------------------------------------------------------------------------------------

TOTALS: dict[str, type] = {
    "parameter_bytes": int,
    "gradient_bytes": int,
    "optimizer_bytes": int,
    "saved_bytes": int,
    "peak_allocated_bytes": int,
    "peak_reserved_bytes": int,
    "context_bytes": int,
    "peak_at": str,
    "budget_bytes": int,
    "fits": bool,
    "max_batch": int,
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["train", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_the_contract(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, source, "--batch", "32", "--budget", "1GiB", "--format", "json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) >= {
        "memfit", "command", "source", "inputs", "memory", "rows", "totals", "notes", "environment",
    }  # fmt: skip
    assert (found["memfit"], found["command"], found["source"]) == (memfit.__version__, "train", source)
    assert (found["memory"], found["device"], found["training"]) == ("cuda", "cuda", True)
    assert found["inputs"] == [{"name": found["inputs"][0]["name"], "shape": [32, 3, 32, 32], "dtype": "float32"}]
    for name, kind in TOTALS.items():
        assert type(found["totals"][name]) is kind, name
    for name, value in found["totals"].items():
        assert not name.endswith("_bytes") or type(value) is int, name
    assert found["totals"]["budget_bytes"] == 1 << 30
    for row in found["rows"]:
        assert type(row["allocated_bytes"]) is type(row["highest_bytes"]) is int
        assert 0 <= row["share"] <= 1
    assert found["settings"]["optimizer"] == "adam"
    assert all(type(idea["peak_reserved_bytes"]) is int for idea in found["advice"])
    assert found["environment"]["capability"] == "8.0"
    without = json.loads(run(capsys, source, "--batch", "32", "--format", "json")[1])
    assert set(without["totals"]) == set(found["totals"])
    assert {n for n, v in without["totals"].items() if v is None} == {
        "budget_bytes", "fits", "runs_with_retries", "short_bytes", "max_batch",
    }  # fmt: skip
    assert without["advice"] == []
    same = {"parameter_bytes", "saved_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "peak_at"}
    assert {without["totals"][n] for n in same} == {found["totals"][n] for n in same}


def test_the_command_and_the_api_agree(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = "--batch 8 --optimizer momentum --kernels foreach --autocast bf16 --accumulate 2 --checkpoint blocks"
    line += " --train-only norm --keep-gradients --alloc-conf expandable_segments:True --capability 9.0"
    line += " --cuda-context 400MiB --budget 2GiB --no-advice --arg width=8 --input 1x3x16x16"
    code, out, _ = run(capsys, source, *line.split(), "--format", "json")
    step = memfit.train(
        source,
        "1x3x16x16",
        batch=8,
        optimizer="momentum",
        kernels="foreach",
        autocast="bf16",
        accumulate=2,
        checkpoint="blocks",
        train_only="norm",
        set_to_none=False,
        alloc_conf="expandable_segments:True",
        capability="9.0",
        cuda_context="400MiB",
        budget="2GiB",
        advice=False,
        args={"width": 8},
    )
    assert code == 0
    assert json.loads(out) == step.to_dict()
    assert step.settings == {
        "batch": 8,
        "optimizer": "momentum",
        "kernels": "foreach",
        "dtype": None,
        "autocast": "bf16",
        "accumulate": 2,
        "checkpoint": step.settings["checkpoint"],
        "train_only": "norm",
        "set_to_none": False,
        "device": "cuda",
        "capability": "9.0",
        "expandable_segments": True,
    }
    assert step.totals["context_bytes"] == parse_bytes("400MiB")


def test_files_of_every_format(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"step.{kind}" for kind in ("md", "csv", "json", "png")]
    words = [word for file in files for word in ("-o", str(file))]
    code, out, err = run(capsys, source, "--batch", "32", "--budget", "600MiB", *words)
    assert code == 0
    assert out.startswith(source)
    assert all(file.name in err for file in files)
    totals = json.loads(files[2].read_text())["totals"]
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert sum(int(row["allocated_bytes"]) for row in rows if row["name"] != "total") == totals["allocated_bytes"]
    assert "| parameters" in files[0].read_text()
    assert files[3].read_bytes().startswith(b"\x89PNG")
    before = files[2].read_bytes()
    code, _, err = run(capsys, source, "--batch", "4", "-o", str(files[2]))
    assert code == 2
    assert "--force" in err
    assert files[2].read_bytes() == before
    assert run(capsys, source, "--batch", "4", "-o", str(files[2]), "--force")[0] == 0
    assert json.loads(files[2].read_text())["settings"]["batch"] == 4


def test_the_printed_answer(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    need = reserved(source) + CONTEXT
    code, out, _ = run(capsys, source, "--batch", "32", "--budget", str(need), "--no-advice")
    assert (code, "fits " in out, "the largest batch that does" in out) == (0, True, True)
    code, out, _ = run(capsys, source, "--batch", "32", "--budget", str(need - 40 * MIB))
    assert (code, "does not fit" in out, "40.0 MiB short" in out) == (0, True, True)
    assert "what would help" in out
    code, out, _ = run(capsys, source, "--batch", "32", "--budget", "100MiB", "--no-advice")
    assert "no batch fits" in out


BAD: dict[str, tuple[str, list[str], list[str]]] = {
    # what is wrong: the network, further words, what the message must say
    "optimizer": ("make", ["--batch", "2", "--optimizer", "adan"], ["no such optimizer", "'adan'", "adam or adamw"]),
    "batch": ("make", ["--batch", "0"], ["'--batch'", "0", "x>=1"]),
    "no batch": ("make", [], ["missing option '--batch'"]),
    "accumulate": ("make", ["--batch", "2", "--accumulate", "0"], ["'--accumulate'", "x>=1"]),
    "no backward": ("no_backward", ["--batch", "2"], ["nothing to train on"]),
    "no parameters": ("nothing_to_train", ["--batch", "2"], ["no trainable parameter", "ReLU"]),
    "shape": ("wrong_shape", ["--batch", "2"], ["stem (Conv2d)", "2x4x32x32", "--input"]),
    "kernels": (
        "make", ["--batch", "2", "--optimizer", "adafactor", "--kernels", "fused"],
        ["adafactor has no fused kernels", "--kernels", "foreach, for-loop"],
    ),
    "checkpoint expression": (
        "make", ["--batch", "2", "--checkpoint", "("], ["--checkpoint", "regular expression", "'('"],
    ),
    "checkpoint without a match": ("make", ["--batch", "2", "--checkpoint", "zzz"], ["no module has a path", "stem"]),
    "train-only expression": ("make", ["--batch", "2", "--train-only", "("], ["--train-only", "regular expression"]),
    "train-only without a match": (
        "make", ["--batch", "2", "--train-only", "zzz"], ["no trainable parameter", "stem.weight"],
    ),
    "budget": ("make", ["--batch", "2", "--budget", "much"], ["neither a size", "--budget", "'much'", "24GiB"]),
    "budget of nothing": ("make", ["--batch", "2", "--budget", "0"], ["at least one byte", "--budget"]),
    "alloc-conf": (
        "make", ["--batch", "2", "--alloc-conf", "magic:True"], ["no setting 'magic'", "expandable_segments"],
    ),
    "alloc-conf value": (
        "make", ["--batch", "2", "--alloc-conf", "expandable_segments:maybe"],
        ["expandable_segments", "'maybe'", "True or False"],
    ),
    "capability": ("make", ["--batch", "2", "--capability", "fast"], ["--capability", "'fast'", "8.0 (A100)"]),
    "capability that is none": ("make", ["--batch", "2", "--capability", "99.9"], ["--capability", "'99.9'"]),
    "cuda-context": ("make", ["--batch", "2", "--cuda-context", "big"], ["big"]),
    "device": ("make", ["--batch", "2", "--device", "tpu"], ["--device", "'tpu'", "cuda"]),
    "suffix": ("make", ["--batch", "2", "-o", "step.xyz"], ["step.xyz"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message(source: str, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, words, parts = BAD[case]
    code, out, err = run(capsys, source.replace(":make", f":{name}"), *words)
    assert (code, out) == (2, "")
    assert err.count("memfit: error:") == 1
    assert "to do:" in err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_a_saved_graph_is_refused(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "net.memfit.json"
    memfit.profile(source, save_graph=saved)
    code, _, err = run(capsys, str(saved), "--batch", "2")
    assert code == 2
    assert "saved graph" in err
    assert "to do:" in err


def test_an_exported_program_trains(tmp_path: Path, net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    """A .pt2 file has its shapes built in: its own batch is answered, another one is refused in one message."""
    file = tmp_path / "net.pt2"
    batch = torch.zeros(4, 3, 32, 32)
    torch.export.save(torch.export.export(net.train(), (batch,)), file)
    code, out, err = run(capsys, str(file), "--batch", "4", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["totals"]["parameter_bytes"] == predict(net).totals["parameter_bytes"]
    code, _, err = run(capsys, str(file), "--batch", "8")
    assert code == 2
    assert err.count("memfit: error:") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "--device"),
        ({"autocast": "fp8"}, "--autocast"),
        ({"batch": 0}, "--batch"),
        ({"accumulate": 0}, "--accumulate"),
        ({"budget": 0}, "budget"),
        ({"dtype": "int8"}, "dtype"),
        ({"capability": "fast"}, "capability"),
    ],
)
def test_the_api_refuses_the_same(net: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        memfit.train(net, SHAPE, **{"batch": 2, **options})
    assert message in f"{caught.value} {caught.value.where}"
    assert caught.value.todo


def test_a_loss_of_ones_own(net: nn.Module) -> None:
    """Soft targets: one more table of probabilities than the default loss has."""

    def loss(scores: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores, torch.zeros_like(scores))

    own = memfit.train(net, SHAPE, batch=32, loss=loss)
    adds_up(own)
    assert own.totals["saved_bytes"] > predict(net).totals["saved_bytes"]


def test_progress_names_what_is_predicted(net: nn.Module) -> None:
    told: list[str] = []
    memfit.train(net, SHAPE, batch=4, budget=CONTEXT + 64 * MIB, advice=False, progress=told.append)
    assert told[0] == "batch 4, adam"
    assert len(told) == len(set(told)) > 2


# -- the printed report ----------------------------------------------------------------------------------------------


@cache
def sample() -> TrainingStep:
    """A step made up for the report: no figure of it is computed here."""
    parts = {
        "parameters": (4, 4), "buffers": (1, 1), "inputs": (2, 2), "optimizer": (8, 8), "gradients": (3, 4),
        "saved": (20, 32), "activations": (16, 16), "temporaries": (0, 6), "libraries": (10, 10),
    }  # fmt: skip
    rows = tuple(
        {
            "name": name,
            "allocated_bytes": now * MIB,
            "share": now / 64,
            "highest_bytes": highest * MIB,
            "what": f"what {name} are",
        }
        for name, (now, highest) in parts.items()
    )
    totals = {
        "parameter_bytes": 4 * MIB, "buffer_bytes": MIB, "input_bytes": 2 * MIB, "gradient_bytes": 4 * MIB,
        "optimizer_bytes": 8 * MIB, "saved_bytes": 33 * MIB, "temporary_bytes": 0, "allocated_bytes": 64 * MIB,
        "peak_allocated_bytes": 64 * MIB, "peak_reserved_bytes": 80 * MIB, "context_bytes": 500 * MIB,
        "peak_at": "blocks.2.norm (batch_norm_backward, backward)", "peak_phase": "backward",
        "budget_bytes": 512 * MIB, "fits": False, "runs_with_retries": False, "short_bytes": 68 * MIB, "max_batch": 7,
    }  # fmt: skip
    idea = {"peak_allocated_bytes": 30 * MIB, "checkpoint": []}
    advice = (
        {"name": "--checkpoint auto (3 blocks)", "peak_reserved_bytes": 10 * MIB, "saves_bytes": 70 * MIB, "fits": True,
         "needed_bytes": 510 * MIB, "cost": "computes these again", **idea},
        {"name": "--optimizer sgd", "peak_reserved_bytes": 72 * MIB, "saves_bytes": 8 * MIB, "fits": False,
         "needed_bytes": 572 * MIB, "cost": "tune it again", **idea},
    )  # fmt: skip
    settings = {
        "batch": 8, "optimizer": "adam", "kernels": "fused", "dtype": None, "autocast": "bf16", "accumulate": 4,
        "checkpoint": ["blocks.0", "blocks.1"], "train_only": "norm", "set_to_none": True, "device": "cuda",
        "capability": "9.0", "expandable_segments": False,
    }  # fmt: skip
    line = {
        "ops": [
            "stem (conv2d, forward)",
            "blocks.2.norm (batch_norm_backward, backward)",
            "(root) (foreach_add, step)",
        ],
        "phases": ["forward", "backward", "step"],
        "allocated_bytes": [40 * MIB, 64 * MIB, 30 * MIB],
        "reserved_bytes": [80 * MIB] * 3,
        "parameters_bytes": [4 * MIB] * 3,
        "saved_bytes": [36 * MIB, 60 * MIB, 26 * MIB],
    }
    return TrainingStep(
        source="net.py:make",
        inputs=({"name": "x", "shape": (8, 3, 32, 32), "dtype": "float32"},),
        per="category",
        memory="cuda",
        training=True,
        device="cuda",
        rows=rows,
        totals=totals,
        notes=("a note",),
        environment={"device": "cuda", "capability": "9.0", "torch": "2.13.0"},
        settings=settings,
        timeline=line,
        advice=advice,
    )


TEXTS = {"train-table-100.txt": 100, "train-table-140.txt": 140, "train-report.md": None, "train-report.csv": None}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_as_stored(name: str) -> None:
    stream = StringIO()
    width = TEXTS[name]
    if width is None:
        RENDERERS[name.rpartition(".")[2]].render(sample(), stream)
    else:
        table.render(sample(), stream, width=width)
    path = SNAPSHOTS / name
    if os.environ.get("MEMFIT_UPDATE_SNAPSHOTS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(stream.getvalue(), encoding="utf-8")
    assert path.exists(), f"{name} is missing: review the output, then store it with MEMFIT_UPDATE_SNAPSHOTS=1"
    assert stream.getvalue() == path.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over() -> None:
    assert {path.name for path in SNAPSHOTS.iterdir() if path.name.startswith("train-")} == set(TEXTS)


@pytest.mark.parametrize("case", ["sample", "real", "cpu"])
def test_the_timeline_is_drawn(case: str, net: nn.Module) -> None:
    pytest.importorskip("matplotlib")
    step = {
        "sample": sample,
        "real": lambda: predict(net, budget=CONTEXT + 300 * MIB, advice=False),
        "cpu": lambda: predict(net, device="cpu"),
    }[case]()
    stream = BytesIO()
    RENDERERS["png"].render(step, stream)
    assert stream.getvalue().startswith(b"\x89PNG")
    assert len(stream.getvalue()) > 10_000
