"""`memfit check`: one line and an exit code, for programs that build firmware and models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import FORMATS, Output, busy, check_output, deliver, output_options, read_size
from memfit.cli.profile import MEMORY, read_arguments

BROKEN = 1
"""Exit code where a limit does not hold."""


@click.command("check", short_help="Hold a network to limits of RAM, flash and peak: exit 0 or 1.")
@click.argument("source", metavar="SOURCE")
@click.option("--max-ram", metavar="SIZE", help="Of the arena with which the runtime starts: memfit plan's ram_bytes.")
@click.option("--max-flash", metavar="SIZE", help="Of model and code: memfit plan's flash_bytes.")
@click.option("--max-peak", metavar="SIZE", help="Of the memory model: memfit profile's peak_bytes.")
@click.option(
    "--target", metavar="BOARD", help="Take RAM and flash of this board as limits; memfit targets lists them."
)
@click.option("--memory", type=click.Choice(MEMORY), help="The memory model of --max-peak, as in memfit profile.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option("--batch", metavar="N", type=click.IntRange(min=1), help="Replace the first dimension of every input.")
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--pointers", type=click.Choice(("32", "64")), help="Bits of a pointer; the board's, or else 64.")
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@partial(output_options, formats=(*FORMATS, "junit"))
def command(
    *,
    source: str,
    inputs: tuple[str, ...],
    arguments: tuple[str, ...],
    pointers: str | None,
    format: str,
    files: tuple[Path, ...],
    force: bool,
    **options: Any,
) -> None:
    """Hold SOURCE to limits: exit 0 where all hold, 1 where one does not.

    SOURCE is what memfit plan and memfit profile take.
    """
    output = Output(format, files, force)
    check_output(output)
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("max_ram", "max_flash", "max_peak"):
        if name in given:
            given[name] = read_size(given[name], f"--{name.replace('_', '-')}")
    if inputs:
        given["inputs"] = list(inputs)

    from memfit import api

    with busy(f"checking {source}"):
        result = api.check(
            source, args=read_arguments(arguments) or None, pointers=int(pointers) if pointers else None, **given
        )
    deliver(result, output)
    if not result.totals["holds"]:
        raise click.exceptions.Exit(BROKEN)
