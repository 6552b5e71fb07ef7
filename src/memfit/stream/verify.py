"""A streamed plan proved: it runs in one array of its size, and says what the plain run and the real runtime say."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from memfit.errors import InternalError, UsageError
from memfit.formats.tflite import TfliteModel
from memfit.graph.model import Graph
from memfit.kernels.interpreter import Interpreter
from memfit.kernels.kernel import Array
from memfit.memory.tflm.builds import VERSION
from memfit.plan.runtime import Runtime
from memfit.plan.verify import sample_inputs
from memfit.stream.execute import Execution, Executor
from memfit.stream.plan import StreamPlan

INPUTS = 20
"""Inputs that are tried unless another number is asked for."""

_BATCH = 10
"""Inputs for each request to the runtime, in which variable tensors live on from run to run."""


def check_verification(source: object, inputs: int) -> None:
    """Refuse, before any work is done, what could not be run afterwards.

    Raises:
        UsageError: a source that is no `.tflite` file, or no inputs.
    """
    origin = source.origin if isinstance(source, Graph) else source
    if not isinstance(origin, TfliteModel) and not str(origin).endswith(".tflite"):
        raise UsageError(
            "--verify is of a .tflite file: only that has weights to run with",
            where="--verify",
            received=str(source) if isinstance(source, str) else "a network",
            todo="convert the network first, then plan the .tflite",
        )
    if inputs < 1:
        raise UsageError(
            "nothing is verified without inputs", where="--verify-inputs", received=str(inputs), todo="give 1 or more"
        )


def verify_stream(
    plan: StreamPlan,
    model: TfliteModel,
    *,
    inputs: int = INPUTS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a plan, the plain network and, where it is installed, TensorFlow Lite Micro on the same inputs.

    Args:
        plan: of `model`.
        model: read from a file.
        inputs: how many inputs to try: the smallest and largest values, zeros, one value at a time, random ones.
        seed: of the random inputs.
        progress: is told how far it is.

    Returns:
        `inputs`; `identical` (how many gave the outputs of a plain run to the bit); `runtime` and `runtime_identical`
        (the same of the real runtime, None where it is not installed); and of the run: `peak_bytes` (one past the
        highest byte written), `extra_macs`, `input_passes` and `copied_bytes` (the largest copy of a ring's rows).

    Raises:
        UnsupportedOp: an operator without a kernel, or an input of a type that cannot be fed.
        SourceError: the runtime refuses the file.
        InternalError: an output differs from the plain run's, the run takes something else than was planned, or it
            meets a byte that is not its to read: none of it must ever be.
    """
    say = progress or (lambda _: None)
    plain, streamed = Interpreter(model), Executor(plan)  # the plain run first: a file may make no sense
    real = find_spec("tflite_micro") is not None
    same = 0
    with Runtime() as runtime:
        for start in range(0, inputs, _BATCH):
            batch = [sample_inputs(model, number, seed) for number in range(start, min(start + _BATCH, inputs))]
            say(f"{start:,} of {inputs:,} inputs")
            theirs = runtime.outputs(model.source, batch) if real else ()
            streamed.reset()
            plain.reset()
            for number, given in enumerate(batch):
                wanted = plain.run(given)
                found = streamed.run(given)
                _as_planned(plan, found)
                if not _equal(found.outputs, wanted):
                    raise InternalError(
                        "the streamed network computes something else",
                        where=model.source,
                        received=f"input {start + number} of {inputs}, seed {seed}",
                        todo="do not use this plan, and report it with the model",
                    )
                same += real and _equal(found.outputs, theirs[number])
    return {
        "inputs": inputs,
        "identical": inputs,
        "runtime": VERSION.split(",", maxsplit=1)[0] if real else None,
        "runtime_identical": same if real else None,
        "peak_bytes": found.peak_bytes,
        "extra_macs": found.extra_macs,
        "input_passes": found.input_passes,
        "copied_bytes": found.gathered_bytes,
    }


def _equal(a: tuple[Array, ...], b: tuple[Array, ...]) -> bool:
    """True if outputs are the same to the bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def _as_planned(plan: StreamPlan, found: Execution) -> None:
    """Hold what a run took against what was planned."""
    for name, took, planned in (
        ("bytes", found.peak_bytes, plan.peak_bytes),
        ("extra multiply-accumulates", found.extra_macs, plan.extra_macs),
        ("passes over the input", found.input_passes, plan.passes),
    ):
        if took != planned:
            raise InternalError(
                f"a run takes another number of {name} than was planned",
                where=plan.network.model.source,
                received=f"{took:,}, planned {planned:,}",
                todo="report it with the model",
            )
