"""Options that every command shares, and what they do once a result is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from memfit.analysis.result import Result

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("table", "md", "csv", "json")
"""Formats that a terminal can show; a test holds them against the renderers."""


class Output(NamedTuple):
    """Where a result goes."""

    format: str
    files: tuple[Path, ...]
    force: bool


def output_options(command: Command, *, formats: Sequence[str] = FORMATS) -> Command:
    """Add --format, --output, --force and --debug, in that order; `formats` are what a terminal may be shown."""
    for option in reversed(
        (
            click.option("--format", type=click.Choice(formats), default="table", help="What is printed."),
            click.option(
                "-o",
                "--output",
                "files",
                metavar="FILE",
                type=click.Path(path_type=Path),
                multiple=True,
                help="Also write a file; its suffix picks the format: .md .csv .json .png .txt (may repeat).",
            ),
            click.option("--force", is_flag=True, help="Overwrite files that exist."),
            click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        )
    ):
        command = option(command)
    return command


def select_options(command: Command) -> Command:
    """Add --sort, --top, --where, --columns and --depth, in that order."""
    for option in reversed(
        (
            click.option("--sort", metavar="COLUMN", help="Order rows, largest first; + or - before it turns that."),
            click.option("--top", metavar="N", type=click.IntRange(min=1), help="Show the first N rows."),
            click.option(
                "--where",
                metavar="CONDITION",
                multiple=True,
                help="Show rows such as 'type=conv2d', 'peak_bytes>=100KiB', 'name~^features' (may repeat).",
            ),
            click.option("--columns", metavar="A,B,…", help="Show these columns, by their names in JSON."),
            click.option(
                "--depth", metavar="N", type=click.IntRange(min=1), help="Join rows below the Nth level of modules."
            ),
        )
    ):
        command = option(command)
    return command


def split_columns(text: str | None) -> list[str] | None:
    """Read the comma-separated columns.

    >>> split_columns("name, macs")
    ['name', 'macs']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def read_size(text: str, option: str) -> int:
    """Read a number of bytes such as 320KiB.

    >>> read_size("320KiB", "--ram")
    327680

    Raises:
        UsageError: it is not a size, or not above zero.
    """
    from memfit.errors import UsageError
    from memfit.units import parse_bytes

    try:
        nbytes = parse_bytes(text)
    except UsageError as error:
        raise UsageError(
            "this is not a size",
            where=option,
            received=repr(text),
            todo="write it as 320KiB, 24GiB or a number of bytes",
        ) from error
    if nbytes < 1:
        raise UsageError("a size must be at least one byte", where=option, received=repr(text), todo="write 320KiB")
    return nbytes


def deliver(result: Result, output: Output, *, also_written: Sequence[Path] = ()) -> None:
    """Write the files, print the result, and name the files on stderr.

    Files come first, so that a reader who closes the pipe early loses none.
    """
    from memfit import report
    from memfit.report.files import write

    for path in output.files:
        write(result, path, force=output.force)
    report.RENDERERS[output.format].render(result, sys.stdout)
    sys.stdout.flush()
    for path in (*output.files, *also_written):
        click.echo(f"memfit: wrote {path}", err=True)


@contextmanager
def busy(message: str) -> Iterator[Callable[[str], None]]:
    """Show that work is going on, on a terminal only; what is given says what is being done just now."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False).status(message) as status:
        yield lambda doing: status.update(f"{message}: {doing}")


def check_output(output: Output) -> None:
    """Refuse result files that could not be written, before any work is done."""
    if output.files:
        from memfit.report.files import check

        context = click.get_current_context(silent=True)
        check(output.files, force=output.force, command=context.info_name if context else None)
