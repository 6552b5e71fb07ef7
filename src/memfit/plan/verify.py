"""A planned file proved: both files run in the real TensorFlow Lite Micro runtime, and must say the same.

Needs the extra `tflm`. The planned file runs in an arena of exactly the size that was predicted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memfit.errors import InternalError, UnsupportedOp
from memfit.formats.tflite import TfliteModel
from memfit.memory.tflm.builds import VERSION
from memfit.plan.runtime import Runtime

Array = npt.NDArray[Any]

INPUTS = 100
"""Inputs that are tried unless another number is asked for."""

_BATCH = 50
"""Inputs for each request to the runtime."""

_TYPES = {
    "FLOAT32": "f4", "INT8": "i1", "UINT8": "u1", "INT16": "i2", "INT32": "i4", "INT64": "i8", "BOOL": "?",
}  # fmt: skip


def verify_plan(
    model: TfliteModel,
    before: str | Path,
    after: str | Path,
    *,
    predicted_before: int,
    predicted_after: int,
    inputs: int = INPUTS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a file and its planned copy on the same inputs, and find the smallest arena of each.

    Args:
        model: what both files hold.
        before: the file as it was.
        after: the planned one.
        predicted_before: bytes of arena that are thought to be the smallest for `before`.
        predicted_after: the same for `after`; it runs in an arena of this size.
        inputs: how many inputs to try: the smallest and largest values, zeros, one value at a time, random ones.
        seed: of the random inputs.
        progress: is told how far it is.

    Returns:
        `inputs`, `identical` (how many gave the same outputs to the bit), `arena_bytes` and `runtime_arena_bytes` (the
        smallest arenas measured, planned and as it was), `predicted_arena_bytes`, `runtime`.

    Raises:
        MissingExtra: tflite-micro is not installed.
        SourceError: the runtime refuses a file, or ends.
        UnsupportedOp: an input of a type that cannot be fed.
        InternalError: an output differs, which must never be.
    """
    same = 0
    say = progress or (lambda _: None)
    with Runtime() as runtime:
        for start in range(0, inputs, _BATCH):
            batch = [sample_inputs(model, number, seed) for number in range(start, min(start + _BATCH, inputs))]
            say(f"{start:,} of {inputs:,} inputs")
            plain = runtime.outputs(before, batch)
            planned = runtime.outputs(after, batch, arena=predicted_after)
            for number, (first, second) in enumerate(zip(plain, planned, strict=True), start):
                if all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True)):
                    same += 1
                    continue
                raise InternalError(
                    "the planned file computes something else",
                    where=str(after),
                    received=f"input {number} of {inputs}, seed {seed}",
                    todo="do not use it, and report this with the model",
                )
        say("smallest arenas")
        smallest = runtime.smallest_arena(after, near=predicted_after)
        stock = runtime.smallest_arena(before, near=predicted_before)
    return {
        "inputs": inputs,
        "identical": same,
        "arena_bytes": smallest,
        "predicted_arena_bytes": predicted_after,
        "runtime_arena_bytes": stock,
        "runtime": VERSION.split(",", maxsplit=1)[0],
    }


def sample_inputs(model: TfliteModel, number: int, seed: int) -> list[Array]:
    """Make the inputs of run `number`: edge cases first, then random ones.

    Raises:
        UnsupportedOp: an input of a type that cannot be fed.
    """
    random = np.random.default_rng((seed, number))
    found = []
    for i in model.main.inputs:
        tensor = model.main.tensors[i]
        kind = _TYPES.get(tensor.type)
        if kind is None:
            raise UnsupportedOp(
                "an input of this type cannot be fed to the runtime",
                where=f"input {tensor.name}",
                received=tensor.type,
                todo="leave out --verify",
            )
        found.append(_value(np.dtype(kind), tensor.shape, number, random))
    return found


def _value(dtype: np.dtype[Any], shape: Sequence[int], number: int, random: np.random.Generator) -> Array:
    """Make one input; the first few are the same value everywhere, and of the others every tenth but at one place."""
    if dtype.kind == "f":
        edges: tuple[float, ...] = (0.0, 1.0, -1.0, 1e3, -1e3)
        made: Array = random.uniform(-3.0, 3.0, shape).astype(dtype)
    else:
        # Wide integers are indices and counts as a rule: large ones would reach outside of tables.
        wide = dtype.kind == "b" or dtype.itemsize > 2
        low, high = (0, 1) if wide else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        edges = (0, low, high, 1, high // 2)
        made = random.integers(low, high, shape, endpoint=True).astype(dtype)
    if number < len(edges):
        return np.full(shape, edges[number], dtype)
    if number % 10 == 9 and made.size:
        place = int(random.integers(made.size))
        value = made.flat[place]
        made[...] = edges[1]
        made.flat[place] = value
    return made
