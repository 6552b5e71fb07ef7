"""The real TensorFlow Lite Micro runtime, in a process of its own, because it can crash.

Needs the extra `tflm`: tflite-micro's Python package. The runtime prints what it allocates to file descriptor 2 and
has no numbers to ask for, so that is what is read here.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memfit.errors import MissingExtra, SourceError
from memfit.formats.tflite import TfliteModel, read_model
from memfit.units import format_bytes

Array = npt.NDArray[Any]

_SECONDS = 300
"""A request that takes longer counts as hanging."""

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


class Runtime:
    """The runtime in a process that lives as long as the `with` block.

    Every request may crash without harm to the next. Arenas are in bytes; None takes an ample one, a multiple of 16.

    Raises, in every method:
        MissingExtra: tflite-micro is not installed.
        SourceError: the file is not readable, or the runtime refuses it, crashes or hangs; with its own words.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def allocations(self, path: str | Path, *, arena: int | None = None) -> Printed:
        """Start the runtime and read what it prints of its arena.

        The printed tail depends on the remainder of the arena's size by 16.
        """
        model = read_model(path)
        answer = self._ask("print", model, path, arena)
        totals = {name: int(value) for name, value in _TOTAL.findall(answer["text"])}
        if len(totals) != 3:
            raise _refused(path, answer)
        rows = tuple(
            PrintedRow(name, int(used), int(requested), int(count))
            for name, used, requested, count in _ROW.findall(answer["text"])
        )
        return Printed(totals["total"], totals["head"], totals["tail"], rows)

    def outputs(
        self, path: str | Path, inputs: Sequence[Sequence[Array]], *, arena: int | None = None
    ) -> tuple[tuple[Array, ...], ...]:
        """Run a model on inputs, one after the other: its variable tensors live on from run to run.

        Args:
            path: a `.tflite` file.
            inputs: for each run, an array for each input of the model.
            arena: bytes.

        Returns:
            For each run, an array for each output.
        """
        model = read_model(path)
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
            named = {f"{run}.{index}": value for run, values in enumerate(inputs) for index, value in enumerate(values)}
            np.savez(given, **named)  # type: ignore[arg-type]  # numpy's annotation takes the names for options
            self._ask("run", model, path, arena, given=str(given), made=str(made), runs=len(inputs))
            with np.load(made) as file:
                found = {name: file[name] for name in file.files}
        count = len(model.main.outputs)
        return tuple(tuple(found[f"{run}.{index}"] for index in range(count)) for run in range(len(inputs)))

    def smallest_arena(self, path: str | Path, *, near: int | None = None, seed: int | None = 0) -> int:
        """Find the smallest arena in which the runtime starts and computes what it computes in an ample one.

        An arena that is a little too small may start and compute something else.

        Args:
            path: a `.tflite` file.
            near: a guess, in bytes: where it is right, two tries are enough.
            seed: of the input that is computed; None only starts the runtime.
        """
        model = read_model(path)
        task = "start" if seed is None else "compute"
        expected = self._ask(task, model, path, None, seed=seed)["result"]

        def works(arena: int) -> bool:
            answer = self._ask(task, model, path, arena, may_fail=True, seed=seed)
            return bool(answer["code"] == 0 and answer["result"] == expected)

        low, high = 0, ample(model)  # `low` fails, `high` works
        if near is not None and low < near < high:
            step = 1
            if works(near):
                high = near
                while high - step > low and works(high - step):
                    high -= step
                    step *= 2
                low = max(low, high - step)
            else:
                low = near
                while low + step < high and not works(low + step):
                    low += step
                    step *= 2
                high = min(high, low + step)
        while high - low > 1:
            middle = (low + high) // 2
            if works(middle):
                high = middle
            else:
                low = middle
        return high

    def _ask(
        self, task: str, model: TfliteModel, path: str | Path, arena: int | None, *, may_fail: bool = False, **more: Any
    ) -> dict[str, Any]:
        request = {
            "task": task,
            "model": str(path),
            "arena": ample(model) if arena is None else arena,
            "inputs": len(model.main.inputs),
            "outputs": len(model.main.outputs),
            **more,
        }
        process = self._started(path)
        assert process.stdin is not None  # both were asked for as pipes
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._gone(path) from None
        if not select.select([process.stdout], [], [], _SECONDS)[0]:
            self._end()
            raise SourceError(
                "TensorFlow Lite Micro does not come to an end",
                where=str(path),
                received=f"no answer in {_SECONDS} s, with an arena of {format_bytes(request['arena'])}",
                todo="try a smaller model",
            )
        line = process.stdout.readline()
        if not line:
            raise self._gone(path)
        answer: dict[str, Any] = json.loads(line)
        if answer["code"] and not may_fail:
            raise _refused(path, answer)
        return answer

    def _started(self, path: str | Path) -> subprocess.Popen[str]:
        if self._process is None:
            if find_spec("tflite_micro") is None:
                raise MissingExtra(
                    "running a model needs TensorFlow Lite Micro's own runtime",
                    where=str(path),
                    received="no package tflite_micro",
                    todo="pip install 'memfit[tflm]' (on Linux, x86-64)",
                )
            # A process that forks should have no threads besides its first.
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "memfit.plan.runtime_process"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        return self._process

    def _gone(self, path: str | Path) -> SourceError:
        self._end()
        return SourceError(
            "the process of TensorFlow Lite Micro has ended",
            where=str(path),
            received="no answer",
            todo="see what it wrote above; try python -m memfit.plan.runtime_process",
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def allocations(path: str | Path, *, arena: int | None = None) -> Printed:
    """Start the runtime once and read what it prints of its arena; see `Runtime.allocations`."""
    with Runtime() as runtime:
        return runtime.allocations(path, arena=arena)


def outputs(
    path: str | Path, inputs: Sequence[Sequence[Array]], *, arena: int | None = None
) -> tuple[tuple[Array, ...], ...]:
    """Run a model on inputs; see `Runtime.outputs`."""
    with Runtime() as runtime:
        return runtime.outputs(path, inputs, arena=arena)


def smallest_arena(path: str | Path, *, near: int | None = None, seed: int | None = 0) -> int:
    """Find the smallest arena that works; see `Runtime.smallest_arena`."""
    with Runtime() as runtime:
        return runtime.smallest_arena(path, near=near, seed=seed)


def ample(model: TfliteModel) -> int:
    """Give an arena that is large enough for a model, a multiple of 16.

    >>> from memfit.formats.tflite import TfliteModel
    >>> ample(TfliteModel("", 3, "", (), (), (), (), (), ()))
    1048576
    """
    tensors = [t for subgraph in model.subgraphs for t in subgraph.tensors]
    operators = sum(len(subgraph.operators) for subgraph in model.subgraphs)
    return sum(16 * t.nbytes + 4096 for t in tensors) + 16384 * operators + (1 << 20) // 16 * 16


def _refused(path: str | Path, answer: dict[str, Any]) -> SourceError:
    """Make the error for a run that failed, with the last of what the runtime said."""
    code = answer["code"]
    lines = [line.strip() for line in answer["text"].splitlines() if line.strip()]
    return SourceError(
        "TensorFlow Lite Micro does not run this model" + (f": it was ended by signal {-code}" if code < 0 else ""),
        where=str(path),
        received="; ".join(lines[-3:])[:600] or "no word of it",
        todo="give it a larger arena if it asks for one, or convert the model to operators that it has",
    )
