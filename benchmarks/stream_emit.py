"""What `memfit stream --emit` reaches: both files run in TensorFlow Lite Micro, and every whole tensor compared.

    python benchmarks/stream_emit.py [MODEL.tflite...] [--inputs 100] [--made] [--made-inputs 5]

For each model: search and write in this process, on its CPU time; the smallest arena with which the runtime starts, by
trying; outputs on so many inputs in an arena of exactly the predicted size; and with memfit's own kernels, on the same
number of inputs, all tensors that both files have: those between units of patches, and all beside them. `--made` adds
the int8 models with random weights of `stream_execute.py`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from stream_execute import made

from memfit.formats.tflite import TfliteModel, parse_model, read_model
from memfit.kernels import Interpreter
from memfit.memory.tflm.builds import VERSION
from memfit.plan.verify import sample_inputs, verify_plan
from memfit.stream.emit.emit import Patched, emit

COLUMNS = (
    "model", "as it was", "planned", "patched", "head", "tail", "operators", "extra MACs", "file", "equal outputs",
    "equal tensors", "search",
)  # fmt: skip


def tensors(model: TfliteModel, found: Patched, inputs: int) -> tuple[int, int]:
    """How many tensors were compared and how many were equal; tensors are the same where their names are."""
    patched = parse_model(found.data)
    before, after = Interpreter(model, keep=True), Interpreter(patched, keep=True)
    made = {i for operator in model.main.operators for i in operator.outputs}
    by_name: dict[str, int] = {}
    for operator in patched.main.operators:
        by_name.update((patched.main.tensors[i].name, i) for i in operator.outputs)
    pairs = [(i, by_name[name]) for i in made if (name := model.main.tensors[i].name) in by_name]
    equal = 0
    for number in range(inputs):
        values = sample_inputs(model, number, 0)
        before.run(values)
        after.run(values)
        equal += sum(np.array_equal(before.tensors[i], after.tensors[j]) for i, j in pairs)
    return len(pairs) * inputs, equal


def row(path: Path, inputs: int, share: float) -> list[str]:
    model = read_model(path)
    start = time.process_time()
    found = emit(model, max_extra_macs=share)
    spent = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "patched.tflite"
        copy.write_bytes(found.data)
        said = verify_plan(
            model, path, copy, predicted_before=found.plan.stock.smallest_bytes,
            predicted_after=found.arena.smallest_bytes, inputs=inputs,
        )  # fmt: skip
    compared, equal = tensors(model, found, inputs)
    return [
        path.stem,
        f"{said['runtime_arena_bytes']:,}",
        f"{found.plan.arena.smallest_bytes:,}",
        f"{said['arena_bytes']:,}" + ("" if found.units else " (the plan's)"),
        f"{found.arena.head_bytes:,}",
        f"{found.arena.tail_bytes:,}",
        f"{len(model.main.operators)} → {len(found.model.main.operators)}",
        f"{found.extra_share:.1%}",
        f"{len(found.data) - len(model.data):+,}",
        f"{said['identical']:,} of {inputs:,}",
        f"{equal:,} of {compared:,}",
        f"{spent:.1f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.1, help="extra MACs, as a share")
    parser.add_argument("--made", action="store_true")
    parser.add_argument("--made-inputs", type=int, default=5)
    given = parser.parse_args()
    print(f"{VERSION}, NumPy {np.__version__}; bytes of arena; CPU seconds")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for path in given.models:
        print("| " + " | ".join(row(path, given.inputs, given.share)) + " |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in made(Path(folder)) if given.made else []:
            print("| " + " | ".join(row(path, given.made_inputs, given.share)) + " |", flush=True)


if __name__ == "__main__":
    main()
