"""A few hundred damaged files of every format that is read, and proof that the script would notice a fault."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fuzz_readers
from fuzz_readers import READERS, Reader, Wrong, fuzz, outcome_of

from memfit.errors import InternalError, SourceError


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, fuzz_readers._alarm)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("suffix", READERS)
def test_damaged_files_give_a_result_or_a_clear_error(suffix: str) -> None:
    tally = fuzz([suffix], 400)[suffix]
    assert tally.faults == []
    assert sum(tally.outcomes.values()) == 400
    assert tally.outcomes["correct"] > 20
    assert tally.outcomes["clear error"] > 200


@pytest.mark.parametrize("suffix", READERS)
def test_healthy_files_are_correct(suffix: str) -> None:
    reader = READERS[suffix]
    for name, data in reader.seeds().items():
        outcome, words = outcome_of(reader, data)
        assert outcome == "correct" or name in ("custom", "control_flow"), (name, words)


def _raises(error: BaseException) -> Callable[[bytes], None]:
    def read(_: bytes) -> None:
        raise error

    return read


def _hang(_: bytes) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_raises(IndexError("x")), "crash"),
        (_raises(RecursionError()), "crash"),
        (_raises(InternalError("x")), "crash"),
        (_raises(SystemExit(0)), "crash"),
        (_raises(MemoryError()), "memory"),
        (_raises(Wrong("x")), "wrong"),
        (_raises(SourceError("no place, nothing received")), "wrong"),
        (_raises(SourceError("what", where="where", received="this", todo="that")), "clear error"),
        (lambda _: None, "correct"),
        (_hang, "hang"),
    ],
)
def test_every_fault_is_noticed(read: Callable[[bytes], None], outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0.2)
    assert outcome_of(Reader(dict, lambda _: ([], []), read), b"")[0] == outcome


def test_a_case_is_the_same_file_on_every_run() -> None:
    one, other = (fuzz_readers.Damage(READERS[".tflite"]) for _ in range(2))
    assert [one.make(case) for case in range(50)] == [other.make(case) for case in range(50)]
