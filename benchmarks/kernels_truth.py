"""The NumPy kernels against the real TensorFlow Lite Micro runtime: outputs, every tensor in between, and time.

    python benchmarks/kernels_truth.py ../shared/models/*/*.tflite
    python benchmarks/kernels_truth.py ../shared/models/*/*.tflite --inputs 100 --drawn 200
    python benchmarks/kernels_truth.py … --write docs/kernels.md    # put the tables between the page's markers

Needs `pip install memfit[tflm]`. Each model runs on the smallest and largest values, zeros, one value at a time and
random ones; the runtime keeps all tensors, and each must be equal to the bit. Run it with OPENBLAS_NUM_THREADS=1 on a
machine that has other work to do.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from memfit.errors import MemfitError
from memfit.formats.tflite import TfliteModel, read_model
from memfit.kernels import Interpreter
from memfit.plan.runtime import ample
from memfit.plan.verify import sample_inputs


class Result(NamedTuple):
    """One model: how much was compared, how much of it was equal, and seconds per run."""

    name: str
    type: str
    operators: int
    inputs: int
    outputs_equal: int
    tensors: int
    tensors_equal: int
    seconds: float
    runtime_seconds: float


def compare(path: Path, inputs: int) -> Result:
    model = read_model(path)
    main = model.main
    interpreter = Interpreter(model, keep=True)
    batch = [sample_inputs(model, number, 0) for number in range(inputs)]
    made = sorted({i for operator in main.operators for i in operator.outputs})
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        named: Any = {f"{run}.{k}": x for run, values in enumerate(batch) for k, x in enumerate(values)}
        np.savez(given, **named)
        arguments = [str(path), str(given), str(found), str(ample(model)), ",".join(map(str, made))]
        done = subprocess.run([sys.executable, __file__, "--child", *arguments], check=False, capture_output=True,
                              env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, text=True)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{path}: {done.stderr[-600:]}")
        theirs = np.load(found)
        outputs_equal = tensors_equal = tensors = 0
        started = time.perf_counter()
        for values in batch:
            interpreter.run(values)
        seconds = (time.perf_counter() - started) / inputs
        interpreter.reset()
        for run, values in enumerate(batch):
            outputs = interpreter.run(values)
            same = [theirs[f"{run}.out.{k}"].tobytes() == x.tobytes() for k, x in enumerate(outputs)]
            outputs_equal += all(same)
            for index in made:
                ours = interpreter.tensors[index]
                assert ours is not None
                tensors += 1
                tensors_equal += theirs[f"{run}.{index}"].tobytes() == ours.tobytes()
        return Result(path.stem, main.tensors[main.inputs[0]].type.lower(), len(main.operators), inputs, outputs_equal,
                      tensors, tensors_equal, seconds, float(theirs["seconds"]))  # fmt: skip


def child(path: str, given: str, found: str, arena: str, tensors: str) -> None:
    """Run the runtime with all tensors kept, and write them."""
    from tflite_micro import runtime

    keeping = runtime.InterpreterConfig.kPreserveAllTensors
    interpreter = runtime.Interpreter.from_file(path, arena_size=int(arena), intrepreter_config=keeping)
    main = read_model(path).main
    results, spent = {}, 0.0
    with np.load(given) as file:
        runs = len({name.split(".")[0] for name in file.files})
        for run in range(runs):
            for k in range(len(main.inputs)):
                interpreter.set_input(file[f"{run}.{k}"], k)
            started = time.perf_counter()
            interpreter.invoke()
            spent += time.perf_counter() - started
            for index in map(int, tensors.split(",")):
                results[f"{run}.{index}"] = np.array(interpreter.GetTensor(index, 0)["tensor_data"])
            for k in range(len(main.outputs)):
                results[f"{run}.out.{k}"] = interpreter.get_output(k)
    results["seconds"] = np.array(spent / runs)
    np.savez(found, **results)


def drawn(count: int, inputs: int) -> list[tuple[str, str, int, int]]:
    """Compare models of one operator each: kind, type, how many, how many with all outputs equal on all inputs."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pure"))
    import kernel_nets

    from memfit.plan.runtime import Runtime

    found: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    with tempfile.TemporaryDirectory() as folder, Runtime() as runtime:
        path = Path(folder) / "model.tflite"
        for kind in kernel_nets.DRAWN:
            for seed in range(count):
                path.write_bytes(kernel_nets.drawn(kind, seed))
                model = read_model(path)
                batch = [sample_inputs(model, number, seed) for number in range(inputs)]
                interpreter = Interpreter(model)
                same = all(
                    a.tobytes() == b.tobytes()
                    for values, theirs in zip(batch, runtime.outputs(path, batch), strict=True)
                    for a, b in zip(interpreter.run(values), theirs, strict=True)
                )
                entry = found[_operator(model), model.main.tensors[model.main.inputs[0]].type.lower()]
                entry[0] += 1
                entry[1] += same
                if not same:
                    print(f"{kind}, seed {seed}: differs", file=sys.stderr)
    return [(*key, *value) for key, value in sorted(found.items())]


def _operator(model: TfliteModel) -> str:
    return model.main.operators[0].name


def real_table(results: list[Result]) -> str:
    rows = [
        "| model | operators | inputs | equal outputs | tensors compared | equal | NumPy, ms | runtime, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        rows.append(
            f"| {r.name} ({r.type}) | {r.operators} | {r.inputs} | {r.outputs_equal} | {r.tensors:,} | "
            f"{r.tensors_equal:,} | {r.seconds * 1000:.1f} | {r.runtime_seconds * 1000:.1f} |"
        )
    return "\n".join(rows)


def drawn_text(found: list[tuple[str, str, int, int]], inputs: int) -> str:
    total, equal = sum(row[2] for row in found), sum(row[3] for row in found)
    kinds = []
    for kind in sorted({row[1] for row in found}):
        count, same = (sum(row[k] for row in found if row[1] == kind) for k in (2, 3))
        kinds.append(f"{same:,} of {count:,} {kind}")
    return (
        f"{equal:,} of {total:,} models of one operator, drawn at random (shapes, scales, zero points, padding, "
        f"strides, activations;\n{len({row[0] for row in found})} operators), are equal on all of {inputs} inputs: "
        f"{', '.join(kinds)}."
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--inputs", type=int, default=20, metavar="N", help="inputs of each model (20)")
    parser.add_argument("--drawn", type=int, metavar="N", help="also N models of each kind of operator")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    options = parser.parse_args()
    results = []
    for path in options.models:
        try:
            results.append(compare(path, options.inputs))
        except MemfitError as error:
            print(error, file=sys.stderr)
    said = (
        f"Measured on {datetime.date.today()} with tflite-micro {version('tflite-micro')}, NumPy {version('numpy')}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread, `python benchmarks/kernels_truth.py`:"
    )
    parts = [said, real_table(results) if results else ""]
    if options.drawn:
        parts.append(drawn_text(drawn(options.drawn, 8), 8))
    text = "\n\n".join(part for part in parts if part)
    print(text)
    if options.write:
        page = options.write.read_text()
        mark = r"(<!-- truth -->\n).*?(\n<!-- end of truth -->)"
        options.write.write_text(re.sub(mark, lambda m: f"{m[1]}\n{text}\n{m[2]}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
