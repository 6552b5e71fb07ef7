"""The predicted arena against TensorFlow Lite Micro itself, for every operator and for whole networks.

Skipped where tflite-micro is not installed (`pip install 'memfit[tflm]'`, Linux on x86-64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tflite_models as models
import tflm_nets as nets

from memfit.errors import MissingExtra, SourceError
from memfit.formats.tflite import read_model
from memfit.memory.tflm import arena
from memfit.memory.tflm.arena import PRINTED
from memfit.plan import runtime as module
from memfit.plan.runtime import Runtime

REAL = Path(__file__).resolve().parents[3] / "shared" / "models"

needs_runtime = pytest.mark.skipif(
    find_spec("tflite_micro") is None, reason="tflite-micro is not installed: pip install 'memfit[tflm]'"
)

DRAWN = {f"drawn{seed}": (lambda seed=seed: nets.drawn(seed)) for seed in range(25)}

GENERATED: dict[str, Callable[[], bytes]] = {
    **models.NETS, **nets.MORE_OPERATORS, **nets.REPEATED, **nets.ODD, **DRAWN
}  # fmt: skip

ONLY_START = ("BROADCAST_ARGS", "CIRCULAR_BUFFER", "EMBEDDING_LOOKUP", "RSQRT")
"""Operators that compute nothing, or nothing twice the same, from any input."""


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime() as found:
        yield found


def compare(runtime: Runtime, path: Path, *, seed: int | None = 0) -> None:
    """Head, tail, total and every printed row equal; the smallest arena equal, or safe by at most 16 bytes."""
    found = arena(read_model(path))
    printed = runtime.allocations(path)
    rows = {c.name: tuple(c[1:]) for c in found.categories if c.name in PRINTED and (c.used_bytes or c.structures)}
    assert rows == {row.name: tuple(row[1:]) for row in printed.rows}
    assert (found.head_bytes, found.tail_bytes) == (printed.head_bytes, printed.tail_bytes)
    assert found.total_bytes == printed.total_bytes
    smallest = runtime.smallest_arena(path, near=found.smallest_bytes, seed=seed)
    assert smallest <= found.smallest_bytes <= smallest + 16


@needs_runtime
@pytest.mark.parametrize("name", GENERATED)
def test_generated_models(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(GENERATED[name]())
    compare(runtime, path, seed=None if name.startswith(ONLY_START) else 0)


@needs_runtime
@pytest.mark.parametrize("path", sorted(REAL.glob("*/*.tflite")) or [None], ids=lambda p: p.stem if p else "absent")
def test_real_models(path: Path | None, runtime: Runtime) -> None:
    if path is None:
        pytest.skip(f"the real models are not here: {REAL}")
    compare(runtime, path)


@needs_runtime
def test_other_remainders_of_the_arena(runtime: Runtime, tmp_path: Path) -> None:
    """The printed tail grows with what alignment loses at the arena's end, and only with that."""
    path = tmp_path / "net.tflite"
    path.write_bytes(models.cnn())
    found = arena(read_model(path))
    tails = [runtime.allocations(path, arena=65536 + rest).tail_bytes for rest in range(16)]
    assert tails[0] == found.tail_bytes
    assert max(tails) < found.tail_bytes + 16


@needs_runtime
def test_outputs_are_those_of_the_runtime(runtime: Runtime, tmp_path: Path) -> None:
    """A float RELU, and a state that lives on from run to run."""
    path = tmp_path / "relu.tflite"
    path.write_bytes(models.OPERATOR_NETS["relu-float32"]())
    inputs = [[np.random.default_rng(seed).normal(size=(1, 6, 8, 4)).astype("f4")] for seed in range(3)]
    for (value,), (result,) in zip(inputs, runtime.outputs(path, inputs), strict=True):
        assert (result == np.maximum(value, 0)).all()
    path = tmp_path / "svdf.tflite"
    path.write_bytes(models.OPERATOR_NETS["svdf-float32"]())
    value = np.ones((1, 12), "f4")
    first, second = runtime.outputs(path, [[value], [value]])
    assert (first[0] != second[0]).any()


@needs_runtime
def test_the_smallest_arena_is_found_without_a_guess(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(models.keyword())
    exact = arena(read_model(path)).smallest_bytes
    for near in (None, 1, exact - 100, exact - 1, exact, exact + 1, exact + 999):
        assert runtime.smallest_arena(path, near=near) == exact


@needs_runtime
def test_what_the_runtime_refuses_is_told_in_its_words(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(models.custom())
    with pytest.raises(SourceError, match=r"(?s)does not run this model.*net.tflite.*op code CUSTOM.*convert"):
        runtime.allocations(path)
    path.write_bytes(models.cnn())
    with pytest.raises(SourceError, match=r"(?s)does not run this model.*larger arena"):
        runtime.outputs(path, [[np.zeros((1, 16, 16, 3), "i1")]], arena=2048)
    assert runtime.allocations(path).head_bytes > 0  # a crash or a refusal does no harm to the next


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(models.cnn())
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    for call in (module.allocations, module.smallest_arena, lambda p: module.outputs(p, [])):
        with pytest.raises(MissingExtra, match=r"(?s)own runtime.*no package tflite_micro.*memfit\[tflm\]"):
            call(path)
