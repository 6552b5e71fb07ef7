"""`memfit check`: one line and an exit code, for programs that build firmware and models."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from memfit.cli.options import (
    FORMATS,
    Output,
    busy,
    check_output,
    deliver,
    given,
    model_options,
    output_options,
    size_option,
)
from memfit.cli.profile import MEMORY

BROKEN = 1
"""Exit code where a limit does not hold."""


@click.command("check", short_help="Hold a network to limits of RAM, flash and peak: exit 0 or 1.")
@click.argument("source", metavar="SOURCE")
@size_option("--max-ram", help="Of the arena with which the runtime starts: memfit plan's ram_bytes.")
@size_option("--max-flash", help="Of model and code: memfit plan's flash_bytes.")
@size_option("--max-peak", help="Of the memory model: memfit profile's peak_bytes.")
@click.option(
    "--target", metavar="BOARD", help="Take RAM and flash of this board as limits; memfit targets lists them."
)
@click.option("--memory", type=click.Choice(MEMORY), help="The memory model of --max-peak, as in memfit profile.")
@click.option("--batch", metavar="N", type=click.IntRange(min=1), help="Replace the first dimension of every input.")
@model_options
@click.option("--pointers", type=click.Choice(("32", "64")), help="Bits of a pointer; the board's, or else 64.")
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@partial(output_options, formats=(*FORMATS, "junit"))
def command(*, source: str, pointers: str | None, output: Output, **options: Any) -> None:
    """Hold SOURCE to limits: exit 0 where all hold, 1 where one does not.

    SOURCE is what memfit plan and memfit profile take.
    """
    check_output(output)

    from memfit import api

    with busy(f"checking {source}"):
        result = api.check(source, pointers=int(pointers) if pointers else None, **given(options))
    deliver(result, output)
    if not result.totals["holds"]:
        raise click.exceptions.Exit(BROKEN)
