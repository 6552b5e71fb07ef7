"""`memfit targets`: the boards and GPUs that memfit knows, with their memory."""

from __future__ import annotations

from pathlib import Path

import click

from memfit.cli.options import Output, check_output, deliver, output_options, select_options, split_columns
from memfit.errors import UsageError
from memfit.targets import KINDS
from memfit.units import parse_bytes


@click.command("targets", short_help="List boards and GPUs, with their memory.")
@click.option("--kind", type=click.Choice(KINDS), help="Only microcontrollers, or only GPUs.")
@click.option("--min-ram", metavar="SIZE", help="Only those with at least so much RAM for one array, such as 256KiB.")
@select_options
@output_options
def command(
    *,
    kind: str | None,
    min_ram: str | None,
    sort: str | None,
    top: int | None,
    where: tuple[str, ...],
    columns: str | None,
    depth: int | None,
    format: str,
    files: tuple[Path, ...],
    force: bool,
) -> None:
    """List the boards and GPUs that --target and --budget know by name, with a link to the vendor for each."""
    output = Output(format, files, force)
    check_output(output)
    least = 0 if min_ram is None else _size(min_ram)

    from memfit.analysis.boards import targets
    from memfit.analysis.select import select

    result = targets(kind=kind, min_ram=least)
    if sort or top or where or columns is not None or depth:
        result = select(result, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(result, output)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise UsageError(
            "this is not a size", where="--min-ram", received=repr(text), todo="write it as 256KiB, 1MB or a number"
        ) from error
