"""`memfit plan` and `memfit check`: plans hold, files carry them, the runtime obeys, and answers are right."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tflite_models as models
from test_tflite_reader import real
from tflm_runtime import need_runtime

import memfit
from memfit.capture.sources.tflite import to_graph
from memfit.cli.main import main
from memfit.errors import MissingExtra, OutputError, UsageError
from memfit.formats.tflite import parse_model, read_model
from memfit.memory.tflm.arena import arena
from memfit.packing import PLANNERS, Buffer, Problem, violations
from memfit.plan.arena import compare, plan_arena, planned_file
from memfit.plan.network import plan_network
from memfit.plan.writer import rewrite

GAINS = ["cnn-int8", "cnn-int16", "cnn-float32", "sequence-int16", "branches-int8", "branches-float32"]
"""Networks whose head the runtime's own planner or the file's order makes larger than it must be."""


def model_bytes(name: str) -> bytes:
    return models.NETS[name]()


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.tflite"
    path.write_bytes(model_bytes("cnn-int8"))
    return path


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "problem.csv"
    path.write_text("id,lower,upper,size\na,0,2,4\nb,1,3,4\nc,2,4,8\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# -- the plan itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(models.NETS))
def test_a_plan_is_valid_never_higher_than_the_runtimes_own_and_what_the_file_then_needs(name: str) -> None:
    model = parse_model(model_bytes(name))
    plan = plan_arena(model)
    assert plan.arena.head_bytes <= plan.stock.head_bytes
    assert plan.arena.smallest_bytes <= plan.stock.smallest_bytes
    assert plan.lower_bound <= plan.arena.head_bytes
    if len(model.subgraphs) == 1:
        assert plan.optimal
    written = parse_model(planned_file(plan))
    again = arena(written)
    assert (again.head_bytes, again.tail_bytes, again.smallest_bytes) == (
        plan.arena.head_bytes,
        plan.arena.tail_bytes,
        plan.arena.smallest_bytes,
    )
    buffers = [
        Buffer(str(number), buffer.nbytes, [(buffer.first, buffer.last + 1)])
        for number, buffer in enumerate(again.buffers)
    ]
    places = {str(number): offset for number, offset in enumerate(again.offsets)}
    assert not violations(Problem(tuple(buffers)), places, height=plan.arena.head_bytes)


@pytest.mark.parametrize("name", GAINS)
def test_these_networks_gain(name: str) -> None:
    plan = plan_arena(parse_model(model_bytes(name)))
    assert plan.arena.head_bytes < plan.stock.head_bytes
    assert plan.offsets is not None or plan.order is not None


def test_what_gains_nothing_stays_byte_for_byte() -> None:
    model = parse_model(model_bytes("resnet-int8"))
    plan = plan_arena(model)
    assert (plan.offsets, plan.order) == (None, None)
    assert planned_file(plan) == bytes(model.data)


def test_a_file_that_is_planned_already_is_planned_as_if_it_were_not() -> None:
    first = plan_arena(parse_model(model_bytes("cnn-int8")))
    again = plan_arena(parse_model(planned_file(first)))
    assert again.arena.head_bytes == first.arena.head_bytes == again.stock.head_bytes
    assert (again.offsets, again.order) == (None, None)
    assert again.lower_bound == first.lower_bound


def test_a_bad_plan_in_a_file_is_replaced() -> None:
    model = parse_model(model_bytes("cnn-int8"))
    plan = plan_arena(model)
    assert plan.offsets is not None
    high = tuple(offset if offset < 0 else offset + 4096 for offset in plan.offsets)
    worse = parse_model(rewrite(model, offsets=high))
    again = plan_arena(worse)
    assert again.stock.head_bytes > again.arena.head_bytes == plan.arena.head_bytes


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", ["branches-int8", "cnn-int8"])
def test_a_planned_file_is_never_made_worse_by_a_weaker_planner(name: str, planner: str) -> None:
    model = parse_model(model_bytes(name))
    kept = plan_arena(model, reorder=False)
    offsets = [-1] * len(model.main.tensors)
    for buffer, offset in zip(kept.arena.buffers, kept.arena.offsets, strict=True):
        if buffer.tensor is not None:
            offsets[buffer.tensor] = offset
    planned = parse_model(rewrite(model, offsets=offsets))
    again = plan_arena(planned, planner=planner)
    assert again.stock.head_bytes == kept.arena.head_bytes
    assert again.lower_bound <= again.arena.head_bytes <= again.stock.head_bytes


def test_the_same_model_has_the_same_plan_on_every_run() -> None:
    model = parse_model(model_bytes("branches-int8"))
    one, two = plan_arena(model), plan_arena(model)
    assert (one.offsets, one.order, one.arena.offsets) == (two.offsets, two.order, two.arena.offsets)


def test_an_order_that_is_kept() -> None:
    model = parse_model(model_bytes("branches-int8"))
    kept = plan_arena(model, reorder=False)
    assert kept.order is None
    assert kept.optimal
    assert kept.arena.head_bytes > plan_arena(model).arena.head_bytes


def test_no_planner_is_below_the_bound() -> None:
    plan = plan_arena(parse_model(model_bytes("cnn-int8")))
    heights = {name: packing.height for name, packing in compare(plan.model).items()}
    assert min(heights.values()) == heights["exact"] == plan.lower_bound
    assert heights["tflm"] == plan.stock.head_bytes


@pytest.mark.parametrize("name", ["cnn-int8", "branches-int8", "cnn-float32", "lstm-int8"])
def test_the_real_runtime_needs_what_was_predicted_and_says_the_same(name: str, tmp_path: Path) -> None:
    need_runtime()
    path = tmp_path / "net.tflite"
    path.write_bytes(model_bytes(name))
    result = memfit.plan(str(path), save=tmp_path / "planned.tflite", verify=True, verify_inputs=12)
    said = result.verification
    assert said is not None
    assert (said["inputs"], said["identical"]) == (12, 12)
    assert said["predicted_arena_bytes"] <= said["arena_bytes"] + 16
    assert said["arena_bytes"] <= said["predicted_arena_bytes"]
    assert result.totals["ram_bytes"] == said["arena_bytes"] <= said["runtime_arena_bytes"]


def test_vww_runs_in_85_300_bytes(tmp_path: Path) -> None:
    need_runtime()
    path = real("mlperf-tiny/vww_96_int8")
    planned = tmp_path / "planned.tflite"
    result = memfit.plan(str(path), save=planned, verify=True, verify_inputs=15)
    assert result.totals["ram_bytes"] == 85_240
    assert result.totals["arena_bytes"] == result.totals["lower_bound_bytes"] == 55_296
    assert read_model(planned).offline_offsets is not None


# -- estimates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn-int8", "resnet-int8", "unet-int8", "branches-int8"])
def test_an_estimate_from_the_graph_alone_has_the_files_own_arena(name: str) -> None:
    graph = to_graph(parse_model(model_bytes(name)))
    known = plan_network(graph).result
    guessed = plan_network(replace(graph, origin=None)).result
    assert guessed.totals["arena_bytes"] == known.totals["arena_bytes"]
    assert any("not yet converted" in note for note in guessed.notes)
    assert not any("not yet converted" in note for note in known.notes)


@pytest.mark.parametrize(
    "name",
    [f"mlperf-tiny/{name}" for name in ("ad01_int8", "kws_ref_model", "pretrainedResnet_quant", "vww_96_int8")]
    + [f"tflite-micro/{name}" for name in ("hello_world_int8", "mobilenet_v2_quantized_1x3x224x224", "person_detect")],
)
def test_an_estimate_of_a_real_network_has_its_ram_to_the_byte(name: str) -> None:
    graph = to_graph(read_model(real(name)))
    known, guessed = (plan_network(which).result.totals for which in (graph, replace(graph, origin=None)))
    for key in ("arena_bytes", "tail_bytes", "ram_bytes"):
        assert guessed[key] == known[key], key
    assert abs(guessed["flash_bytes"] - known["flash_bytes"]) < 0.1 * known["flash_bytes"]


def test_a_float_network_is_planned_as_the_integers_that_it_becomes() -> None:
    as_float = to_graph(read_model(real("mlperf-tiny/pretrainedResnet")))
    quantized = to_graph(read_model(real("mlperf-tiny/pretrainedResnet_quant")))
    guessed = plan_network(replace(as_float, origin=None)).result.totals
    assert guessed["ram_bytes"] == plan_network(quantized).result.totals["ram_bytes"] == 55_984


# -- the command --------------------------------------------------------------------------------------------------


def test_json_keeps_the_contract(cnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", cnn, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["command"] == "plan"
    totals, rows = found["totals"], found["rows"]
    names = ("buffers", "lower_bound_bytes", "arena_bytes", "optimal", "tail_bytes", "ram_bytes", "flash_bytes", "fits")
    assert all(name in totals for name in names)
    assert totals["fits"] is None
    assert totals["buffers"] == len(rows)
    assert all(isinstance(row[key], int) for row in rows for key in ("offset", "nbytes", "first_op", "end_op"))
    assert max(row["offset"] + row["nbytes"] for row in rows) == totals["arena_bytes"]
    live = [
        sum(row["nbytes"] for row in rows if row["first_op"] <= at < row["end_op"])
        for at in range(max(row["end_op"] for row in rows))
    ]
    assert max(live) == totals["lower_bound_bytes"]
    assert [row["live_bytes"] for row in found["operators"]] == live


def test_a_target_answers_with_the_figures_of_32_bits(cnn: Path) -> None:
    board = memfit.plan(str(cnn), target="stm32f746")
    host = memfit.plan(str(cnn))
    assert board.totals["fits"] is True
    assert board.totals["ram_limit_bytes"] == 320 << 10
    assert board.totals["tail_bytes"] < host.totals["tail_bytes"]
    assert any("not verified by execution" in note for note in board.notes)
    assert memfit.plan(str(cnn), pointers=32).totals["ram_bytes"] == board.totals["ram_bytes"]


def test_what_does_not_fit_says_by_how_much_and_where(cnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need = memfit.plan(str(cnn)).totals["ram_bytes"]
    code, out, _ = run(capsys, "plan", cnn, "--ram", need - 100, "--flash", "1KiB")
    assert code == 0
    assert "does not fit: 100 B of RAM short" in out
    assert "the peak is at conv2d" in out or "the peak is at" in out
    short = memfit.plan(str(cnn), ram=need - 100, flash=1024)
    assert short.totals["fits"] is False
    assert short.totals["ram_short_bytes"] == 100
    assert memfit.plan(str(cnn), ram=need).totals["fits"] is True


def test_a_problem_is_packed(problem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", problem, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["totals"]["arena_bytes"] == found["totals"]["lower_bound_bytes"] == 12
    assert found["totals"]["optimal"] is True
    assert [(row["tensor"], row["nbytes"], row["first_op"], row["end_op"]) for row in found["rows"]] == [
        ("a", 4, 0, 2),
        ("b", 4, 1, 3),
        ("c", 8, 2, 4),
    ]
    assert memfit.plan(str(problem), capacity=12).totals["fits"] is True
    assert memfit.plan(str(problem), capacity=11).totals["fits"] is False


def test_a_header_holds_every_offset(cnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "offsets.h"
    code, out, _ = run(capsys, "plan", cnn, "--emit", path, "--format", "json")
    text, found = path.read_text(), json.loads(out)
    assert code == 0
    numbers = [int(number) for number in re.findall(r"^    (-?\d+),", text, re.MULTILINE)]
    assert len(numbers) == len(read_model(cnn).main.tensors)
    tensors = [row["offset"] for row in found["rows"] if row["shape"] is not None]
    assert sorted(number for number in numbers if number >= 0) == sorted(tensors)
    assert f"CNN_HEAD_BYTES {found['totals']['arena_bytes']}" in text


def test_a_header_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    net = models.Net()
    image = net.tensor((1, 4), scale=0.1, name='evil */ "name" \\ ??/')
    net.inputs.append(image)
    source = tmp_path / "1-model.x.tflite"
    source.write_bytes(net.build(net.unary("LOGISTIC", image)))
    found = memfit.plan(str(source), emit=tmp_path / "offsets.h")
    first = next(row["offset"] for row in found.rows if row["made_by"] == "input")
    program = f'#include "offsets.h"\nint main(void) {{ return model_1_model_x_offsets[0] != {first}; }}\n'
    (tmp_path / "main.c").write_text(program)
    subprocess.run([compiler, "-Wall", "-Werror", "-o", "main", "main.c"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)


def test_nothing_is_overwritten_without_force(cnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, name in (("-o", "planned.tflite"), ("--emit", "offsets.h")):
        path = tmp_path / name
        path.write_text("mine")
        code, _, err = run(capsys, "plan", cnn, option, path)
        assert code == 2
        assert "--force" in err
        assert path.read_text() == "mine"
        assert run(capsys, "plan", cnn, option, path, "--force")[0] == 0
        assert path.read_bytes() != b"mine"
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "CNN", "--target", "stm32f747"], "stm32f746"),
        (["plan", "CNN", "--target", "h100"], "microcontrollers"),
        (["plan", "CNN", "--ram", "plenty"], "--ram"),
        (["plan", "CNN", "--ram", "0"], "at least one byte"),
        (["plan", "CNN", "--capacity", "1MiB"], "--ram or --target"),
        (["plan", "CNN", "-o", "CNN"], "would replace"),
        (["plan", "CNN", "-o", "a.tflite", "-o", "b.tflite"], "one plan"),
        (["plan", "CNN", "--emit", "offsets.txt"], "suffix"),
        (["plan", "CNN", "--batch", "2"], "--batch"),
        (["plan", "CSV", "--ram", "1KiB"], "--ram"),
        (["plan", "CSV", "--verify"], "--verify"),
        (["plan", "CSV", "-o", "planned.tflite"], ".tflite"),
        (["plan", "CSV", "--emit", "o.h"], "--emit"),
        (["plan", "nowhere.tflite"], "nowhere.tflite"),
        (["plan", "nowhere.csv"], "nowhere.csv"),
        (["check", "CNN"], "--max-ram"),
        (["check", "CNN", "--max-ram", "1KiB", "--memory", "mcunet"], "--max-peak"),
        (["check", "CNN", "--max-peak", "x"], "--max-peak"),
        (["profile", "CNN", "-o", "x.xml"], "memfit check"),
    ],
)
def test_bad_input_gets_one_clear_message(
    arguments: list[str],
    says: str,
    *,
    cnn: Path,
    problem: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    names = {"CNN": str(cnn), "CSV": str(problem)}
    code, out, err = run(capsys, *(names.get(argument, argument) for argument in arguments))
    assert code == 2
    assert not out
    assert err.startswith("memfit: error: ")
    assert says in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_verification_without_the_runtime_is_refused_before_any_work(
    cnn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memfit.plan.outputs.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="tflm"):
        memfit.plan(str(cnn), verify=True)


def test_a_plan_that_computes_something_else_is_never_written(
    cnn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_runtime()
    from memfit.errors import InternalError
    from memfit.plan import outputs

    def overlapping(plan: Any) -> bytes:
        return rewrite(plan.source, offsets=[min(offset, 0) for offset in plan.offsets])

    monkeypatch.setattr(outputs, "planned_file", overlapping)
    with pytest.raises(InternalError, match="something else"):
        memfit.plan(str(cnn), save=tmp_path / "planned.tflite", verify=True, verify_inputs=10)
    assert not (tmp_path / "planned.tflite").exists()


# -- check --------------------------------------------------------------------------------------------------------


def test_check_is_one_line_and_an_exit_code(cnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need = memfit.plan(str(cnn)).totals["ram_bytes"]
    code, out, _ = run(capsys, "check", cnn, "--max-ram", need, "--max-flash", "1MiB", "--max-peak", "1MiB")
    assert code == 0
    assert out.count("\n") == 1
    assert " holds: ram " in out
    code, out, _ = run(capsys, "check", cnn, "--max-ram", need - 1, "--max-flash", "1MiB")
    assert code == 1
    assert "does not hold" in out
    assert "1 B over" in out


def test_checks_json_and_junit(cnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "check.xml"
    code, out, _ = run(capsys, "check", cnn, "--max-ram", "1KiB", "--max-flash", "1MiB", "--format", "json", "-o", path)
    found = json.loads(out)
    assert code == 1
    assert found["totals"] == {"holds": False}
    assert [(row["name"], row["limit_bytes"], row["holds"]) for row in found["rows"]] == [
        ("ram", 1024, False),
        ("flash", 1 << 20, True),
    ]
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in suite.iter("testcase")] == [True, False]


def test_a_target_gives_the_limits(cnn: Path) -> None:
    found = memfit.check(str(cnn), target="stm32f746", max_flash="900KiB")
    assert {row["name"]: row["limit_bytes"] for row in found.rows} == {"ram": 320 << 10, "flash": 900 << 10}
    with pytest.raises(UsageError, match="no limit"):
        memfit.check(str(cnn))


# -- small and quick ----------------------------------------------------------------------------------------------

_LOADED = """
import sys
from memfit.cli.main import main
{before}
code = main(["plan", {path!r}, "--format", "json"])
print(code, sorted(name for name in sys.modules if name in ("torch", "onnx", "matplotlib", "numba", "tflite_micro")),
      file=sys.stderr)
"""


@pytest.mark.parametrize(("before", "loaded"), [("", "[]"), ("import torch", "['torch']")])
def test_planning_a_file_never_imports_torch(before: str, loaded: str, cnn: Path) -> None:
    if before:
        pytest.importorskip("torch")
    script = _LOADED.format(before=before, path=str(cnn))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].startswith("0 ")
    assert ("torch" in done.stderr.splitlines()[-1]) == (loaded != "[]")


def test_a_picture(cnn: Path, problem: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, source in enumerate((cnn, problem)):
        path = tmp_path / f"{number}.png"
        assert main(["plan", str(source), "-o", str(path)]) == 0
        assert path.read_bytes().startswith(b"\x89PNG")


def test_write_errors_leave_nothing(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        memfit.plan(str(cnn), save=tmp_path / "no" / "where.tflite")
