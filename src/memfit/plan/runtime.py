"""The real TensorFlow Lite Micro runtime, each time in a process of its own, because it can crash.

Needs the extra `tflm`: tflite-micro's Python package. The runtime prints what it allocates to file descriptor 2 and
has no numbers to ask for, so that is what is read here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memfit.errors import MissingExtra, SourceError
from memfit.formats.tflite import TfliteModel, read_model
from memfit.units import format_bytes

Array = npt.NDArray[Any]

_SECONDS = 300
"""A run that takes longer counts as hanging."""

_TOTAL = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_ROW = re.compile(r"'([^']+)' used (\d+) bytes with alignment overhead \(requested (\d+) bytes for (\d+) ")


class PrintedRow(NamedTuple):
    """One category as the runtime prints it."""

    name: str
    used_bytes: int
    requested_bytes: int
    structures: int


@dataclass(frozen=True)
class Printed:
    """What the runtime says that it allocated."""

    total_bytes: int
    head_bytes: int
    tail_bytes: int
    rows: tuple[PrintedRow, ...]


def allocations(path: str | Path, *, arena: int | None = None) -> Printed:
    """Start the runtime and read what it prints of its arena.

    Args:
        path: a `.tflite` file.
        arena: bytes; None takes an ample one, a multiple of 16. The printed tail depends on the remainder by 16.

    Raises:
        MissingExtra: tflite-micro is not installed.
        SourceError: the runtime refuses the model, or crashes; with its own words.
    """
    model = read_model(path)
    done = _process(model, path, "print", arena or ample(path))
    totals = {name: int(value) for name, value in _TOTAL.findall(done.stderr)}
    if done.returncode or len(totals) != 3:
        raise _refused(path, done.returncode, done.stderr)
    rows = tuple(
        PrintedRow(name, int(used), int(requested), int(count))
        for name, used, requested, count in _ROW.findall(done.stderr)
    )
    return Printed(totals["total"], totals["head"], totals["tail"], rows)


def outputs(
    path: str | Path, inputs: Sequence[Sequence[Array]], *, arena: int | None = None
) -> tuple[tuple[Array, ...], ...]:
    """Run a model on inputs, one after the other: its variable tensors live on from run to run.

    Args:
        path: a `.tflite` file.
        inputs: for each run, an array for each input of the model.
        arena: bytes; None takes an ample one.

    Returns:
        For each run, an array for each output.

    Raises:
        MissingExtra: tflite-micro is not installed.
        SourceError: the runtime refuses model, arena or inputs, or crashes; with its own words.
    """
    model = read_model(path)
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
        named = {f"{run}.{index}": value for run, values in enumerate(inputs) for index, value in enumerate(values)}
        np.savez(given, **named)  # type: ignore[arg-type]  # numpy's own annotation takes the names for options
        done = _process(model, path, "run", arena or ample(path), str(given), str(made))
        if done.returncode:
            raise _refused(path, done.returncode, done.stderr)
        with np.load(made) as file:
            found = {name: file[name] for name in file.files}
    count = len(model.main.outputs)
    return tuple(tuple(found[f"{run}.{index}"] for index in range(count)) for run in range(len(inputs)))


def smallest_arena(path: str | Path, *, near: int | None = None, seed: int = 0) -> int:
    """Find the smallest arena in which the runtime starts and computes what it computes in an ample one.

    Args:
        path: a `.tflite` file.
        near: a guess, in bytes: where it is right, two tries are enough.
        seed: of the input that is computed.

    Raises:
        MissingExtra: tflite-micro is not installed.
        SourceError: the runtime refuses the model even in an ample arena; with its own words.
    """
    with _Prober(path, seed) as prober:
        low, high = 0, prober.ample
        if near is not None and 0 < near < high:
            if prober.works(near):
                high = near
                step = 1
                while low < high - 1 and prober.works(max(high - step, low + 1)):
                    high = max(high - step, low + 1)
                    step *= 2
                low = max(high - step, low)
            else:
                low, step = near, 1
                while low + step < high and not prober.works(low + step):
                    low += step
                    step *= 2
                high = min(high, low + step)
        while high - low > 1:
            middle = (low + high) // 2
            if prober.works(middle):
                high = middle
            else:
                low = middle
    return high


def ample(path: str | Path) -> int:
    """Give an arena that is large enough for any model of that file, a multiple of 16.

    A megabyte more than ten times the file and four times all that its tensors hold.
    """
    model = read_model(path)
    held = sum(t.nbytes for subgraph in model.subgraphs for t in subgraph.tensors if not t.is_constant)
    return (Path(path).stat().st_size * 10 + 16 * held + (1 << 20)) // 16 * 16


class _Prober:
    """A process that tries arenas, each in a fork of its own."""

    def __init__(self, path: str | Path, seed: int) -> None:
        self.path = path
        self.ample = ample(path)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            _command(read_model(path), path, "probe", self.ample, str(seed)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=_environment(),
        )  # fmt: skip

    def __enter__(self) -> _Prober:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def works(self, arena: int) -> bool:
        """Try one size."""
        assert self.process.stdin is not None  # both were asked for as pipes
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{arena}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if answer not in ("yes", "no"):
            self.process.wait(_SECONDS)
            self.errors.seek(0)
            raise _refused(self.path, self.process.returncode, self.errors.read().decode(errors="replace"))
        return answer == "yes"


def _command(model: TfliteModel, path: str | Path, task: str, arena: int, *others: str) -> list[str]:
    if find_spec("tflite_micro") is None:
        raise MissingExtra(
            "running a model needs TensorFlow Lite Micro's own runtime",
            where=str(path),
            received="no package tflite_micro",
            todo="pip install 'memfit[tflm]' (on Linux, x86-64)",
        )
    ends = (str(len(model.main.inputs)), str(len(model.main.outputs)))
    return [sys.executable, "-m", "memfit.plan.runtime_process", task, str(path), str(arena), *others, *ends]


def _environment() -> dict[str, str]:
    """One thread is enough, and a process that forks should have no other."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _process(
    model: TfliteModel, path: str | Path, task: str, arena: int, *others: str
) -> subprocess.CompletedProcess[str]:
    command = _command(model, path, task, arena, *others)
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS,
            env=_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SourceError(
            "the runtime did not come to an end",
            where=str(path),
            received=f"no answer in {_SECONDS} s, with an arena of {format_bytes(arena)}",
            todo="try a smaller model",
        ) from None


def _refused(path: str | Path, code: int, text: str) -> SourceError:
    """Make the error for a run that failed, with the last of what the runtime said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = "; ".join(lines[-3:]) or "nothing"
    return SourceError(
        "TensorFlow Lite Micro does not run this model"
        + (f": its process was ended by signal {-code}" if code < 0 else ""),
        where=str(path),
        received=said[:600],
        todo="give it a larger arena if it asks for one, or convert the model to operators that it has",
    )
