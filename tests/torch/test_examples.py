"""Every example runs and prints what was published beside what memfit computes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

QUICK = ["--warmup", "0", "--iterations", "1", "--threads", "1", "--inputs", "1x3x500x334", "--output", "study"]
SHORT = {"mobilenet_v2_study": QUICK}
"""Options that make an example quick enough for a test."""

TRAINS = {"digits", "compress_digits"}
"""Not studies of published figures but a network, which the tests of pruning hold to its accuracy, and what makes it
fit."""

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in TRAINS)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *SHORT.get(example.stem, ())])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "published" in printed
    assert "computed" in printed
    assert len(printed.splitlines()) > 5


def test_the_chain_of_compression_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("DIGITS_WEIGHTS", str(tmp_path / "digits.pt"))
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    monkeypatch.setattr(sys, "argv", ["compress_digits.py", "--samples", "16", "--epochs", "1", "--tuning", "1"])
    runpy.run_path(str(FOLDER / "compress_digits.py"), run_name="__main__")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][-3:]
    assert [row[0] for row in rows] == ["| float", "| quantized", "| pruned and tuned"]
    assert float(rows[1][2].rstrip("%")) <= 50
    assert float(rows[2][2].rstrip("%")) <= 25
    kept = {path.name for path in (tmp_path / "compressed").iterdir()}
    steps = ("calibrate", "sensitivity", "quantize", "prune")
    assert kept == {f"{step}{suffix}" for step in steps for suffix in (".md", ".png")} | {
        "ranges.json", "recipe.json", "pruned.pt2",
    }  # fmt: skip


def test_there_are_as_many_as_studies() -> None:
    assert len(EXAMPLES) == 6
