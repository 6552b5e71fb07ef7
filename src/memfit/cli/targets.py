"""`memfit targets`: the boards and GPUs that memfit knows, with their memory."""

from __future__ import annotations

import click

from memfit.cli.options import Output, Rows, check_output, deliver, output_options, select_options, size_option
from memfit.targets import KINDS


@click.command("targets", short_help="List boards and GPUs, with their memory.")
@click.option("--kind", type=click.Choice(KINDS), help="Only microcontrollers, or only GPUs.")
@size_option("--min-ram", help="Only those with at least so much RAM for one array, such as 256KiB.")
@select_options
@output_options
def command(
    *,
    kind: str | None,
    min_ram: int | None,
    rows: Rows,
    output: Output,
) -> None:
    """List the boards and GPUs that --target and --budget know by name, with a link to the vendor for each."""
    check_output(output)

    from memfit.analysis.boards import targets

    deliver(rows.of(targets(kind=kind, min_ram=min_ram or 0)), output)
