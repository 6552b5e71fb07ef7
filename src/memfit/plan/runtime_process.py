"""One process of the real TensorFlow Lite Micro runtime, started by `memfit.plan.runtime`: it may crash alone.

    python -m memfit.plan.runtime_process print MODEL ARENA               I O
    python -m memfit.plan.runtime_process run MODEL ARENA GIVEN.npz MADE.npz I O
    python -m memfit.plan.runtime_process probe MODEL ARENA SEED          I O

`print` starts the runtime and lets it print its allocations; `run` feeds it; `probe` reads arena sizes, one a line,
and answers `yes` where the runtime starts in that many bytes and computes what it computes in ARENA bytes. I and O are
the numbers of inputs and outputs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _start(model: bytes, arena: int) -> Any:
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(model, arena_size=arena)


def _invoke(interpreter: Any, inputs: list[Array], outputs: int) -> list[Array]:
    for index, value in enumerate(inputs):
        interpreter.set_input(value, index)
    interpreter.invoke()
    return [interpreter.get_output(index) for index in range(outputs)]


def _drawn(interpreter: Any, inputs: int, seed: int) -> list[Array]:
    """Draw an input of the right shapes and types."""
    random = np.random.default_rng(seed)
    drawn = []
    for index in range(inputs):
        detail = interpreter.get_input_details(index)
        dtype = np.dtype(detail["dtype"])
        shape = tuple(detail["shape"])
        if dtype.kind == "f":
            drawn.append(random.normal(size=shape).astype(dtype))
        elif dtype.kind == "b":
            drawn.append(random.integers(0, 2, shape).astype(dtype))
        else:
            drawn.append(random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True))
    return drawn


def _run(model: bytes, arena: int, given: str, made: str, ends: tuple[int, int]) -> None:
    interpreter = _start(model, arena)
    with np.load(given) as file:
        runs = len(file.files) // max(1, ends[0])
        results = {
            f"{run}.{index}": value
            for run in range(runs)
            for index, value in enumerate(
                _invoke(interpreter, [file[f"{run}.{i}"] for i in range(ends[0])], ends[1])
            )
        }  # fmt: skip
    np.savez(made, **results)  # type: ignore[arg-type]  # numpy's own annotation takes the names for options


def _probe(model: bytes, arena: int, seed: int, ends: tuple[int, int]) -> None:
    large = _start(model, arena)
    inputs = _drawn(large, ends[0], seed)
    expected = _invoke(large, inputs, ends[1])
    for line in sys.stdin:
        child = os.fork()  # the runtime may crash in an arena that is too small
        if not child:
            os._exit(0 if _works(model, int(line), inputs, expected) else 1)
        sys.stdout.write("yes\n" if os.waitpid(child, 0)[1] == 0 else "no\n")
        sys.stdout.flush()


def _works(model: bytes, arena: int, inputs: list[Array], expected: list[Array]) -> bool:
    try:
        found = _invoke(_start(model, arena), inputs, len(expected))
    except RuntimeError:
        return False
    return all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))


def main(arguments: list[str]) -> None:
    """Do one of the three tasks."""
    task, path, arena, *others = arguments
    ends = (int(others[-2]), int(others[-1]))
    model = Path(path).read_bytes()
    if task == "print":
        _start(model, int(arena)).print_allocations()
    elif task == "run":
        _run(model, int(arena), others[0], others[1], ends)
    else:
        _probe(model, int(arena), int(others[0]), ends)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
