"""Every example runs and prints what was published beside what memfit computes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

QUICK = ["--warmup", "0", "--iterations", "1", "--threads", "1", "--inputs", "1x3x500x334", "--output", "study"]
SHORT = {"mobilenet_v2_study": QUICK}
"""Options that make an example quick enough for a test."""

TRAINS = {"digits"}
"""Not a study of published figures but a network that others use; the tests of pruning hold it to its accuracy."""

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


def test_there_are_as_many_as_studies() -> None:
    assert len(EXAMPLES) == 6
