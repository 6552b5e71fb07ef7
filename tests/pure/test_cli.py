"""The command line: options, output files, messages and exit codes, with a stand-in for the profiler."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from test_report_samples import layers

import memfit
from memfit import __version__, report
from memfit.analysis.result import Profile
from memfit.cli import options
from memfit.cli.main import COMMANDS, main
from memfit.errors import CaptureError, InternalError
from memfit.report import files

Call = Callable[..., Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the stand-in profiler was asked for."""
    seen: list[dict[str, Any]] = []

    def profile(source: str, **given: Any) -> Profile:
        seen.append({"source": source, **given})
        return layers()

    stand_in(monkeypatch, profile)
    return seen


def stand_in(monkeypatch: pytest.MonkeyPatch, profile: Call) -> None:
    module = types.ModuleType("memfit.api")
    module.profile = profile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "memfit.api", module)
    monkeypatch.setattr(memfit, "api", module, raising=False)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def profile(source: str, **given: Any) -> Profile:
        raise error

    stand_in(monkeypatch, profile)


def test_the_table_is_printed(calls, capsys) -> None:
    assert main(["profile", "net.py:make"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("net.py:make · 1x3x32x32 float32")
    assert err == ""


def test_defaults_are_left_to_the_api(calls) -> None:
    main(["profile", "net.py:make"])
    expected = {"per": "layer", "training": False, "fold": True, "inplace_depthwise": True}
    expected |= {"probe": False, "estimate": False, "source": "net.py:make"}
    assert calls == [expected]


def test_every_option_reaches_the_api(calls, tmp_path: Path) -> None:
    graph = tmp_path / "g.memfit.json"
    line = "profile s --input 1x3x8x8 --input y=1x2:int64 --per block --memory mcunet --training --device cuda"
    line += " --dtype bf16 --batch 4 --samples 10 --arg width=0.5 --arg name=relu --no-fold --blocks ^a"
    line += " --no-inplace-depthwise --bits 4 --frozen-bits 8 --train-only bias --probe --estimate --threads 2"
    line += " --capability 9.0 --alloc-conf expandable_segments:True --autocast bf16"
    line += " --phase decode --context 512 --budget 24GiB"
    assert main([*line.split(), "--save-graph", str(graph)]) == 0
    assert callable(calls[0].pop("progress"))
    assert calls == [
        {
            "source": "s",
            "inputs": ["1x3x8x8", "y=1x2:int64"],
            "per": "block",
            "memory": "mcunet",
            "training": True,
            "device": "cuda",
            "capability": "9.0",
            "alloc_conf": "expandable_segments:True",
            "autocast": "bf16",
            "dtype": "bf16",
            "batch": 4,
            "samples": 10,
            "args": {"width": 0.5, "name": "relu"},
            "fold": False,
            "blocks": "^a",
            "inplace_depthwise": False,
            "bits": 4,
            "frozen_bits": 8,
            "train_only": "bias",
            "probe": True,
            "estimate": True,
            "threads": 2,
            "phase": "decode",
            "context": 512,
            "budget": 24 << 30,
            "save_graph": graph,
        }
    ]


def test_tensors_are_counted_as_tensors(calls) -> None:
    main(["profile", "s", "--per", "tensor"])
    main(["profile", "s", "--per", "tensor", "--memory", "ideal"])
    assert [call["memory"] for call in calls] == ["tensors", "ideal"]


def test_json_on_stdout_is_the_contract(calls, capsys) -> None:
    main(["profile", "s", "--format", "json"])
    assert json.loads(capsys.readouterr().out) == layers().to_dict()


def test_rows_and_columns_are_chosen(calls, capsys) -> None:
    line = ["profile", "s", "--format", "csv", "--sort", "-macs", "--top", "2", "--where", "type~conv"]
    assert main([*line, "--columns", "name, macs", "--depth", "4"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows == [
        {"name": "stem.0", "macs": "110592", "memory": "ideal"},
        {"name": "blocks.0.conv.1", "macs": "65536", "memory": "ideal"},
    ]


def test_terminal_formats_are_the_text_renderers() -> None:
    shown = [name for name, entry in report.RENDERERS.items() if not entry.binary and entry.only is None]
    assert shown == list(options.FORMATS)


# Files


def test_files_are_written_and_named(calls, capsys, tmp_path: Path) -> None:
    wanted = [tmp_path / name for name in ("a.md", "b.csv", "c.json", "d.TXT", "e.png")]
    arguments = [part for path in wanted for part in ("-o", str(path))]
    assert main(["profile", "s", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("net.py:make")
    assert err == "".join(f"memfit: wrote {path}\n" for path in wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in wanted)
    assert json.loads((tmp_path / "c.json").read_text()) == layers().to_dict()
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


def test_an_existing_file_is_kept_and_no_work_is_done(calls, capsys, tmp_path: Path) -> None:
    path = tmp_path / "keep.md"
    path.write_text("mine")
    assert main(["profile", "s", "-o", str(path)]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in ("exists already", f"where:    {path}", f"received: {path}", "--force"))
    assert path.read_text() == "mine"
    assert calls == []
    assert main(["profile", "s", "-o", str(path), "--force"]) == 0
    assert path.read_text().startswith("**net.py:make**")


def test_a_file_that_appears_meanwhile_is_kept(monkeypatch, capsys, tmp_path: Path) -> None:
    path = tmp_path / "late.md"

    def profile(source: str, **given: Any) -> Profile:
        path.write_text("mine")
        return layers()

    stand_in(monkeypatch, profile)
    assert main(["profile", "s", "-o", str(path)]) == 2
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_half_written_file(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "whole.md"
    path.write_text("mine")

    def half(profile: Profile, stream: Any) -> None:
        stream.write("half")
        raise ValueError("in the middle")

    monkeypatch.setitem(report.RENDERERS, "md", report.RENDERERS["md"]._replace(render=half))
    with pytest.raises(ValueError, match="in the middle"):
        files.write(layers(), path, force=True)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target.md", tmp_path / "link.md"
    target.write_text("old")
    link.symlink_to(target)
    files.write(layers(), link, force=True)
    assert link.is_symlink()
    assert target.read_text().startswith("**net.py:make**")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.html", ["suffix", ".md .csv .json .png", "a.html"]),
        ("a", ["suffix", ".txt"]),
        ("nowhere/a.md", ["does not exist", "nowhere", "make it first"]),
        ("g.memfit.json", ["saved graph", "--save-graph"]),
        ("folder.md", ["this is a folder"]),
    ],
)
def test_files_that_cannot_be_written(name: str, parts: list[str], calls, capsys, tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    assert main(["profile", "s", "-o", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert calls == []


def test_one_file_twice_is_refused(calls, capsys, tmp_path: Path) -> None:
    assert main(["profile", "s", "-o", str(tmp_path / "a.md"), "-o", str(tmp_path / "." / "a.md")]) == 2
    assert "named twice" in capsys.readouterr().err


def test_a_saved_graph_is_guarded_too(calls, capsys, tmp_path: Path) -> None:
    assert main(["profile", "s", "--save-graph", str(tmp_path / "g.json")]) == 2
    assert "g.memfit.json" in capsys.readouterr().err
    kept = tmp_path / "g.memfit.json"
    kept.write_text("mine")
    assert main(["profile", "s", "--save-graph", str(kept)]) == 2
    assert "--force" in capsys.readouterr().err
    assert calls == []


# Messages and exit codes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["profil"], ["no such command", "received: profil", "did you mean profile"]),
        (["profile"], ["missing argument 'SOURCE'", "where:    memfit profile", "see memfit profile --help"]),
        (["profile", "s", "--bacth", "2"], ["--bacth", "--batch", "received: profile s --bacth 2"]),
        (["profile", "s", "--batch", "0"], ["--batch", "0"]),
        (["profile", "s", "--memory", "magic"], ["magic", "mcunet"]),
        (["profile", "s", "--phase", "generate"], ["generate", "prefill", "decode"]),
        (["profile", "s", "--phase", "decode", "--context", "0"], ["--context", "0"]),
        (["profile", "s", "--phase", "decode", "--budget", "much"], ["--budget", "'much'", "24GiB"]),
        (["profile", "s", "--phase", "decode", "--budget", "0"], ["--budget", "'0'", "24GiB"]),
        (["--nothing"], ["--nothing", "where:    memfit"]),
        (["profile", "s", "--arg", "width"], ["constructor's argument", "'width'", "key=value"]),
        (["profile", "s", "--arg", "a=1", "--arg", "a=2"], ["given twice", "'a=2'", "only once"]),
        (["profile", "s", "--blocks", "("], ["regular expression", "--blocks", "'('", "escape"]),
        (["profile", "s", "--train-only", "["], ["regular expression", "--train-only"]),
        (["profile", "s", "--sort", "peek_bytes"], ["no such column", "--sort", "peak_bytes"]),
    ],
)
def test_wrong_usage_is_one_clear_message(arguments: list[str], parts: list[str], calls, capsys) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memfit: error: ")
    assert "Traceback" not in err
    assert all(part in err for part in parts), err


def test_a_failed_capture_says_all_four(monkeypatch, capsys) -> None:
    failing(monkeypatch, CaptureError("a layer refused", where="stem.0", received="1x4x8x8", todo="give 3 channels"))
    assert main(["profile", "s"]) == 2
    assert capsys.readouterr().err == (
        "memfit: error: a layer refused\n  where:    stem.0\n  received: 1x4x8x8\n  to do:    give 3 channels\n"
    )


def test_an_own_fault_is_named_as_such(monkeypatch, capsys) -> None:
    failing(monkeypatch, KeyError("lost"))
    assert main(["profile", "s"]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(part in err for part in ("fault of memfit's own", "KeyError: 'lost'", "--debug"))


def test_an_internal_error_exits_with_three(monkeypatch) -> None:
    failing(monkeypatch, InternalError("a rule was broken"))
    assert main(["profile", "s"]) == 3


@pytest.mark.parametrize("error", [KeyError("lost"), CaptureError("refused")])
def test_debug_shows_the_traceback(error: Exception, monkeypatch, capsys) -> None:
    failing(monkeypatch, error)
    assert main(["profile", "s", "--debug"]) in {2, 3}
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_exits_with_130(error: BaseException, monkeypatch, capsys) -> None:
    failing(monkeypatch, error)
    assert main(["profile", "s"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_and_version(capsys) -> None:
    assert main([]) == 0
    assert "profile" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memfit {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_common_options(name: str, capsys) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--format", "--output", "--force", "--debug"))


def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import types; from test_report_samples import layers\n"
        "api = types.ModuleType('memfit.api'); api.profile = lambda *a, **k: layers()\n"
        "import memfit; memfit.api = sys.modules['memfit.api'] = api\n"
        "from memfit.cli.main import main; sys.exit(main(['profile', 's']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("package", "line", "extra"),
    [
        *(
            ("torch", f"{name} torchvision:resnet18 {more}", extra)
            for name, more, extra in (
                ("calibrate", "--data random", "compress"),
                ("sensitivity", "--data random", "compress"),
                ("quantize", "--data random --budget 1MiB", "compress"),
                ("prune", "--data random --budget 1MiB", "compress"),
                ("bench", "", "torch"),
                ("train", "--batch 2", "torch"),
            )
        ),
        ("ortools", "quantize torchvision:resnet18 --data random --budget 1MiB", "compress"),
        ("torch_pruning", "prune torchvision:resnet18 --data random --budget 1MiB", "compress"),
    ],
)
def test_a_missing_package_is_named_before_any_work(
    package: str, line: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memfit.errors.find_spec", lambda name: None if name == package else name)
    arguments = line.split()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for part in (f"received: no package {package}", f"where:    memfit {arguments[0]}", f"'memfit[{extra}]'"):
        assert part in err
