"""`memfit stream --emit`: what is refused before any work, and the file with its figures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memfit.errors import OutputError, UsageError
from memfit.files import check_target, write_bytes
from memfit.formats.tflite import TfliteModel
from memfit.graph.model import Graph
from memfit.plan.verify import verify_plan
from memfit.stream.emit.emit import Patched, check, emit

SUFFIX = ".tflite"


def check_emit(source: object, path: str | Path, *, force: bool) -> None:
    """Refuse, before any work is done, what could not be written afterwards.

    Raises:
        UsageError: a source that is no `.tflite` file, another suffix, or no convolutions that can be cut.
        OutputError: a file that exists or is the source itself, or a folder that does not.
    """
    origin = source.origin if isinstance(source, Graph) else source
    if not isinstance(origin, TfliteModel) and not str(origin).endswith(SUFFIX):
        raise UsageError(
            "--emit writes a .tflite file anew: only that has weights and quantization to write",
            where="--emit",
            received=str(source) if isinstance(source, str) else "a network",
            todo="convert the network first, then stream the .tflite",
        )
    if isinstance(origin, TfliteModel):
        check(origin)
    if Path(path).suffix.lower() != SUFFIX:
        raise UsageError(
            "the suffix says what is written, and --emit writes a .tflite file",
            where="--emit",
            received=str(path),
            todo=f"name it {Path(path).stem}{SUFFIX}",
        )
    read = origin.source if isinstance(origin, TfliteModel) else str(origin)
    if Path(path).resolve() == Path(read).resolve():
        raise OutputError(
            "the patched file would replace the one that it is made of",
            where="--emit",
            received=str(path),
            todo="choose another name",
        )
    check_target(path, force=force)


def emit_file(
    model: TfliteModel,
    path: str | Path,
    *,
    max_extra_macs: float = 0.1,
    force: bool = False,
    verify_inputs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a patched copy of a model, and give its figures; bytes are of the 64-bit runtime's arena.

    Args:
        model: read from a file.
        path: what to write, whole or not at all.
        max_extra_macs: work that may be done twice, as a share of the network's own.
        force: overwrite a file that exists.
        verify_inputs: run both files on so many inputs in the real runtime, where it is installed; None does not.
        progress: is told what is being done.

    Raises:
        MemfitError: as for `emit` and `write_bytes`.
    """
    found = emit(model, max_extra_macs=max_extra_macs, progress=progress)
    figures = _figures(found, str(path))
    if verify_inputs is not None and find_spec("tflite_micro") is not None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"patched{SUFFIX}"
            copy.write_bytes(found.data)
            said = verify_plan(
                model,
                model.source,
                copy,
                predicted_before=found.plan.stock.smallest_bytes,
                predicted_after=found.arena.smallest_bytes,
                inputs=verify_inputs,
                progress=progress,
            )
        figures |= {"ram_bytes": said["arena_bytes"], "runtime_ram_bytes": said["runtime_arena_bytes"]}
        figures["verification"] = said
    write_bytes(found.data, path, force=force)
    return figures


def _figures(found: Patched, path: str) -> dict[str, Any]:
    plan, main = found.plan, found.plan.source.main
    nodes = [main.operators[node.operators[-1]] for node in found.nodes]
    return {
        "path": path,
        "ram_bytes": found.arena.smallest_bytes,
        "plan_ram_bytes": plan.arena.smallest_bytes,
        "runtime_ram_bytes": plan.stock.smallest_bytes,
        "head_bytes": found.arena.head_bytes,
        "tail_bytes": found.arena.tail_bytes,
        "runtime_head_bytes": plan.stock.head_bytes,
        "runtime_tail_bytes": plan.stock.tail_bytes,
        "operators": len(found.model.main.operators),
        "runtime_operators": len(main.operators),
        "extra_macs": found.macs - found.plain_macs,
        "extra_macs_share": found.extra_share,
        "file_bytes": len(found.data),
        "runtime_file_bytes": len(plan.source.data),
        "units": [
            {
                "first_op": nodes[unit.begin].index,
                "end_op": nodes[unit.end - 1].index + 1,
                "patches": unit.patches,
                "rows": list(unit.cuts),
                "upward": unit.upward,
            }
            for unit in found.units
            if unit.cuts
        ],
        "reason": found.reason,
        "verification": None,
    }
