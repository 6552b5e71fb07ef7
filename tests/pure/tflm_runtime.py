"""Runs models in the real TensorFlow Lite Micro runtime, in a process of its own: it may crash on small arenas.

    python tflm_runtime.py ARENA_BYTES SEEDS MODEL.tflite...

prints one line per model: a digest of its outputs on random inputs of those seeds, all -1 and all +1 extremes included,
or `error: …`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest


def need_runtime() -> None:
    if find_spec("tflite_micro") is None:
        pytest.skip("tflite-micro is not installed: pip install 'memfit[tflm]'")


def outputs_of(paths: Sequence[Path], arena: int, seeds: int = 3) -> list[str]:
    """A digest of each model's outputs, or `error: …` where the runtime refused it."""
    done = subprocess.run(
        [sys.executable, __file__, str(arena), str(seeds), *map(str, paths)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return lines + [f"error: the runtime ended with {done.returncode}"] * (len(paths) - len(lines))


def _inputs(seed: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        return random.normal(0, 1 if seed else 100, shape).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    info = np.iinfo(dtype)
    if seed < 2:
        return np.full(shape, (info.min, info.max)[seed], dtype)
    return random.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def _digest(path: str, arena: int, seeds: int) -> str:
    from tflite_micro import runtime

    from memfit.formats.tflite import read_model

    main = read_model(path).main
    interpreter = runtime.Interpreter.from_file(path, arena_size=arena)
    digest = hashlib.sha256()
    for seed in range(seeds):
        for position, _ in enumerate(main.inputs):
            detail = interpreter.get_input_details(position)
            interpreter.set_input(_inputs(seed, detail["shape"], np.dtype(detail["dtype"])), position)
        interpreter.invoke()
        for position in range(len(main.outputs)):
            digest.update(interpreter.get_output(position).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    for name in sys.argv[3:]:
        try:
            print(_digest(name, int(sys.argv[1]), int(sys.argv[2])), flush=True)  # noqa: T201
        except RuntimeError as error:
            print("error:", " ".join(str(error).split()), flush=True)  # noqa: T201
