"""`memfit plan`: a microcontroller's memory, or a packing problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memfit.cli.options import (
    COUNT,
    Output,
    Rows,
    busy,
    check_output,
    deliver,
    given,
    model_options,
    output_options,
    select_options,
    size_option,
)

PLANNERS = ("exact", "tflm", "size", "duration", "area", "best-fit", "local-search")
ARTIFACT = ".tflite"


@click.command("plan", short_help="Plan a microcontroller's memory: the lowest arena, and whether a board has it.")
@click.argument("source", metavar="SOURCE")
@click.option("--target", metavar="BOARD", help="Does it fit this board? memfit targets lists them.")
@click.option("--runtime", type=click.Choice(("tflm",)), default="tflm", show_default=True, help="What runs it.")
@size_option("--ram", help="RAM for the arena, such as 320KiB; instead of the board's.")
@size_option("--flash", help="Flash for model and code, such as 1MiB; instead of the board's.")
@click.option("--pointers", type=click.Choice(("32", "64")), help="Bits of a pointer; the board's, or else 64.")
@size_option("--capacity", help="PROBLEM.csv: stop at the first packing within so many bytes.")
@click.option(
    "--planner", type=click.Choice(PLANNERS), default="exact", show_default=True, help="How buffers are packed."
)
@click.option("--keep-order", is_flag=True, help="Leave the operators in the order of the file.")
@click.option("--time-limit", metavar="S", type=click.FloatRange(min=0), help="Seconds for the searches.")
@click.option("--compare", is_flag=True, help="Also pack with every other planner.")
@click.option("--verify", is_flag=True, help="Run both files in the real runtime: outputs must be identical.")
@click.option("--verify-inputs", metavar="N", type=COUNT, default=100, show_default=True)
@click.option("--emit", metavar="OFFSETS.h", type=click.Path(path_type=Path), help="Write the offsets as a C header.")
@click.option("--batch", metavar="N", type=COUNT, help="Replace the first dimension of every input.")
@model_options
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@select_options
@output_options
def command(
    *,
    source: str,
    runtime: str,  # noqa: ARG001  (there is one)
    keep_order: bool,
    pointers: str | None,
    emit: Path | None,
    rows: Rows,
    output: Output,
    **options: Any,
) -> None:
    """Plan the memory of SOURCE on a microcontroller.

    SOURCE is a .tflite file, whose planned copy -o PLANNED.tflite writes; PROBLEM.csv with the columns
    id,lower,upper,size; or any source of `memfit profile`, for an estimate of the int8 network it would become.
    """
    artifacts = [path for path in output.files if path.suffix.lower() == ARTIFACT]
    if len(artifacts) > 1:
        raise click.UsageError(f"one plan is written to one file, and {len(artifacts)} .tflite files were given")
    reports = output._replace(files=tuple(path for path in output.files if path not in artifacts))
    check_output(reports)
    save = artifacts[0] if artifacts else None

    from memfit import api

    with busy(f"planning {source}") as report:
        whole = api.plan(
            source,
            pointers=int(pointers) if pointers else None,
            reorder=not keep_order,
            save=save,
            emit=emit,
            force=output.force,
            progress=report,
            **given(options),
        )
    deliver(rows.of(whole), reports, also_written=[path for path in (save, emit) if path is not None])
