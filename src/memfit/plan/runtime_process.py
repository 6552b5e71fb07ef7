"""The process in which `memfit.plan.runtime` runs the real TensorFlow Lite Micro runtime.

It reads requests, one JSON object a line, and answers each with one: `{"code": …, "text": …, "result": …}`. Every
request runs in a fork of its own, because the runtime can crash: `code` is the fork's exit code, or a negative signal;
`text` is what came out at file descriptor 2, where the runtime prints.

Requests have `model` (a path), `arena` (bytes) and `task`: `print` starts the runtime and lets it print its
allocations; `run` computes the outputs of inputs, both in `.npz` files (`given`, `made`), named RUN.INDEX; `start` only
starts it; `compute` runs it on an input drawn with `seed`, and its result is a digest of the outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Request = dict[str, Any]


def _start(request: Request) -> Any:
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(Path(request["model"]).read_bytes(), arena_size=request["arena"])


def _print(request: Request) -> str:
    _start(request).print_allocations()
    return ""


def _only_start(request: Request) -> str:
    _start(request)
    return ""


def _run(request: Request) -> str:
    interpreter = _start(request)
    with np.load(request["given"]) as file:
        results = {}
        for run in range(request["runs"]):
            values = [file[f"{run}.{index}"] for index in range(request["inputs"])]
            made = _invoke(interpreter, values, request["outputs"])
            results.update({f"{run}.{index}": value for index, value in enumerate(made)})
    np.savez(request["made"], **results)  # type: ignore[arg-type]  # numpy's annotation takes the names for options
    return ""


def _compute(request: Request) -> str:
    interpreter = _start(request)
    inputs = _drawn(interpreter, request["inputs"], request["seed"])
    digest = hashlib.sha256()
    for value in _invoke(interpreter, inputs, request["outputs"]):
        digest.update(value.tobytes())
    return digest.hexdigest()


def _invoke(interpreter: Any, inputs: list[Array], outputs: int) -> list[Array]:
    for index, value in enumerate(inputs):
        interpreter.set_input(value, index)
    interpreter.invoke()
    return [interpreter.get_output(index) for index in range(outputs)]


def _drawn(interpreter: Any, inputs: int, seed: int) -> list[Array]:
    """Draw an input of the right shapes and types."""
    random = np.random.default_rng(seed)
    drawn: list[Array] = []
    for index in range(inputs):
        detail = interpreter.get_input_details(index)
        dtype, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
        if dtype.kind == "f":
            drawn.append(random.normal(size=shape).astype(dtype))
        elif dtype.kind == "b":
            drawn.append(random.integers(0, 2, shape).astype(dtype))
        else:
            info = np.iinfo(dtype)
            drawn.append(random.integers(info.min, info.max, shape, dtype, endpoint=True))
    return drawn


_TASKS = {"print": _print, "run": _run, "start": _only_start, "compute": _compute}


def _answer(request: Request) -> Request:
    """Do what is asked in a fork, and tell how it ended."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as results:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            code = 1
            try:
                results.write(_TASKS[request["task"]](request).encode())
                results.flush()
                code = 0
            except Exception as error:  # whatever it is, the asking process says so
                os.write(2, f"{error}\n".encode())
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        errors.seek(0)
        results.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "text": errors.read().decode(errors="replace"),
            "result": results.read().decode(),
        }


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    import_module("tflite_micro")  # once, before the forks: each would load it anew
    main()
