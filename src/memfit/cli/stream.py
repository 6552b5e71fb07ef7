"""`memfit stream`: a network computed row by row, so that it runs in little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memfit.cli.options import Output, busy, check_output, deliver, output_options, read_size
from memfit.cli.profile import read_arguments


@click.command("stream", short_help="Run a big network in small memory: parts computed row by row.")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--max-extra-macs", metavar="SHARE", default="10%", show_default=True, help="Work that may be done twice."
)
@click.option("--max-peak", metavar="SIZE", help="Look for the least extra work within this size, such as 128KiB.")
@click.option("--input-resident", is_flag=True, help="The input is whole in memory, rather than fed row by row.")
@click.option("--input-passes", metavar="N", type=click.IntRange(min=1), help="How often a fed input may be read.")
@click.option("--target", metavar="BOARD", help="Fit this board's RAM; memfit targets lists them.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@output_options
def command(
    *,
    source: str,
    max_extra_macs: str,
    max_peak: str | None,
    inputs: tuple[str, ...],
    arguments: tuple[str, ...],
    format: str,
    files: tuple[Path, ...],
    force: bool,
    **options: Any,
) -> None:
    """Plan SOURCE so that parts of it are computed together, row by row, in little memory.

    SOURCE is a .tflite file, or any source of `memfit profile`, for an estimate of the int8 network it would become.
    """
    output = Output(format, files, force)
    check_output(output)
    given = {name: value for name, value in options.items() if value is not None}
    if max_peak is not None:
        given["max_peak"] = read_size(max_peak, "--max-peak")
    if inputs:
        given["inputs"] = list(inputs)

    from memfit import api

    with busy(f"planning {source}"):
        result = api.stream(source, max_extra_macs=max_extra_macs, args=read_arguments(arguments) or None, **given)
    deliver(result, output)
