"""`memfit stream`: a network computed row by row, so that it runs in little memory."""

from __future__ import annotations

from functools import partial
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
from memfit.cli.threads import multiply_alone


@click.command("stream", short_help="Run a big network in small memory: parts computed row by row.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--max-extra-macs",
    metavar="SHARE",
    default="10%",
    show_default=True,
    help="Multiply-accumulates that may be done twice, of the network's own.",
)
@size_option("--max-peak", help="Look for the least extra work within this size, such as 128KiB.")
@click.option("--input-resident", is_flag=True, help="The input is whole in memory, rather than fed row by row.")
@click.option(
    "--input-passes", metavar="N", type=COUNT, help="How often a fed input may be read; as often as it takes."
)
@click.option("--target", metavar="BOARD", help="Look for the least extra work within this board's RAM.")
@click.option(
    "--per",
    type=click.Choice(("segment", "front")),
    default="segment",
    show_default=True,
    help="Rows: segments of the plan, or all plans that none other beats in both bytes and work.",
)
@click.option("--verify", is_flag=True, help="Run the plan in one array of its size: outputs must be identical.")
@click.option("--verify-inputs", metavar="N", type=COUNT, default=20, show_default=True, help="Inputs that it runs.")
@click.option(
    "--emit",
    metavar="FILE.tflite",
    type=click.Path(path_type=Path),
    help="Also write the network in patches, which the unchanged TFLM runtime runs in less memory.",
)
@model_options
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@partial(select_options, depth=False)  # a segment is of several modules
@output_options
def command(*, source: str, emit: Path | None, rows: Rows, output: Output, **options: Any) -> None:
    """Plan SOURCE so that parts of it are computed together, row by row, in little memory.

    SOURCE is a .tflite file, or any source of `memfit profile`, for an estimate of the int8 network it would become.
    """
    check_output(output)
    if options["verify"]:
        multiply_alone()

    from memfit import api

    with busy(f"planning {source}") as report:
        result = api.stream(source, emit=emit, force=output.force, progress=report, **given(options))
    deliver(rows.of(result), output, also_written=[emit] if emit is not None else [])
