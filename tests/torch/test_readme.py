"""The README's commands run, and print what it says they print."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from memfit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.rpartition("&& ")[2]
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.rpartition("&& ")[2].startswith("memfit ")
]
SHOWN = [
    (next(line for line in reversed(before.splitlines()) if "memfit " in line).rpartition("&& ")[2], text)
    for (_, before), (language, text) in pairwise(BLOCKS)
    if language == "text"
]
"""Command and what the README says that it prints, from its start on."""


def run(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    name, *arguments = shlex.split(command)
    assert name == "memfit"
    code = main(arguments)
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(re.sub(r"--seconds \d+", "--iterations 5 --warmup 1", command), capsys)
    target = re.search(r" -o (\S+)", command)
    if target:
        assert (tmp_path / target[1]).stat().st_size > 100


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_the_table_is_what_the_command_prints(
    command: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    printed = run(command, capsys)
    assert printed.startswith(shown.rstrip()), "the README's table is not what the command prints; paste it anew"


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_the_python_example_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 3
