"""What a plan leaves behind: the planned file, the C header, and the real runtime's word on both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from memfit.analysis.result import Plan
from memfit.errors import MissingExtra, OutputError, UsageError
from memfit.files import check_target, write_bytes
from memfit.memory.tflm.arena import arena
from memfit.plan.arena import planned_file
from memfit.plan.header import header
from memfit.plan.network import HOST, NetworkPlan, answer


@dataclass(frozen=True)
class Outputs:
    """What to write, and whether to prove it."""

    save: str | Path | None = None
    """The planned `.tflite`."""
    emit: str | Path | None = None
    """The C header."""
    verify: bool = False
    inputs: int = 100
    """Inputs to verify with."""
    force: bool = False
    """Overwrite files that exist."""


def check_outputs(outputs: Outputs, *, source: str | None) -> None:
    """Refuse, before any work is done, what could not be written or run afterwards.

    Raises:
        UsageError: a planned file or its verification of what is not a `.tflite`, or a suffix that says something else.
        MissingExtra: verification without the runtime.
        OutputError: a file that exists, or a folder that does not.
    """
    asked = {"-o": outputs.save, "--verify": outputs.verify or None}
    if source is None or not source.endswith(".tflite"):
        for option, value in asked.items():
            if value is not None:
                raise UsageError(
                    f"{option} is of a .tflite file: only that can be written with a plan, and run",
                    where=option,
                    received=str(source or "a network"),
                    todo="convert the network first, then plan the .tflite",
                )
        if outputs.emit is not None and (source is None or source.endswith(".csv")):
            raise UsageError(
                "a header is of a network's tensors", where="--emit", received=str(source or outputs.emit),
                todo="use -o PLAN.csv",
            )  # fmt: skip
    if outputs.save is not None and source is not None and Path(outputs.save).resolve() == Path(source).resolve():
        raise OutputError(
            "the planned file would replace the one that it is made of", where="-o", received=str(outputs.save),
            todo="choose another name",
        )  # fmt: skip
    for option, path, suffixes in (("-o", outputs.save, (".tflite",)), ("--emit", outputs.emit, (".h", ".hpp"))):
        if path is None:
            continue
        if Path(path).suffix.lower() not in suffixes:
            raise UsageError(
                "the suffix says what is written, and this one is not known here",
                where=option,
                received=str(path),
                todo=f"name it {suffixes[0]}",
            )
        check_target(path, force=outputs.force)
    if outputs.save is not None and outputs.emit is not None and Path(outputs.save) == Path(outputs.emit):
        raise UsageError(
            "one file is named twice", where="--emit", received=str(outputs.save), todo="give each its own name"
        )
    if outputs.verify:
        if outputs.inputs < 1:
            raise UsageError(
                "nothing is verified without inputs", where="--verify-inputs", received=str(outputs.inputs),
                todo="give 1 or more",
            )  # fmt: skip
        if find_spec("tflite_micro") is None:
            raise MissingExtra(
                "--verify runs TensorFlow Lite Micro's own runtime, which is not installed",
                where="--verify",
                received="no package tflite_micro",
                todo="pip install 'memfit[tflm]' (on Linux, x86-64)",
            )


def write_outputs(found: NetworkPlan, outputs: Outputs, *, progress: Callable[[str], None] | None = None) -> Plan:
    """Verify a plan and write its files, each whole or not at all; a plan that fails writes none.

    Returns:
        The result, with what the runtime said.
    """
    result = found.result
    written = planned_file(found.arena) if outputs.save is not None or outputs.verify else None
    if written is not None and outputs.verify:
        result = _verified(found, written, outputs, progress)
    if outputs.emit is not None:
        text = header(
            found.arena, name=Path(found.result.source).stem, pointer_bits=found.result.settings["pointer_bits"]
        )
        write_bytes(text.encode(), outputs.emit, force=outputs.force)
    if written is not None and outputs.save is not None:
        write_bytes(written, outputs.save, force=outputs.force)
    return result


def _verified(found: NetworkPlan, written: bytes, outputs: Outputs, progress: Callable[[str], None] | None) -> Plan:
    """Run both files; the RAM is then what was measured, where the figures are of this machine's kind of runtime."""
    from memfit.plan.verify import verify_plan

    result, plan = found.result, found.arena
    stock = plan.stock if plan.stock.build.name == HOST else arena(plan.source, HOST)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "planned.tflite"
        copy.write_bytes(written)
        said = verify_plan(
            plan.source,
            plan.source.source,
            copy,
            predicted_before=stock.smallest_bytes,
            predicted_after=found.host.smallest_bytes,
            inputs=outputs.inputs,
            progress=progress,
        )
    totals = dict(result.totals)
    if plan.arena.build.name == HOST:
        totals["ram_bytes"], totals["runtime_ram_bytes"] = said["arena_bytes"], said["runtime_arena_bytes"]
        totals |= answer(
            totals["ram_bytes"], totals["flash_bytes"], totals["ram_limit_bytes"], totals["flash_limit_bytes"]
        )
    return replace(result, totals=totals, verification=said)
