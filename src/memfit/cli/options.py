"""Options that every command shares, and what they do once a result is there."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click

from memfit.errors import UsageError

if TYPE_CHECKING:
    from memfit.analysis.result import Result

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = ("table", "md", "csv", "json")
"""Formats that a terminal can show; a test holds them against the renderers."""

COUNT = click.IntRange(min=1)


class Output(NamedTuple):
    """Where a result goes."""

    format: str
    files: tuple[Path, ...]
    force: bool


class Rows(NamedTuple):
    """Which rows and columns of a result are shown."""

    sort: str | None
    top: int | None
    where: tuple[str, ...]
    columns: str | None
    depth: int | None = None

    def of(self, whole: Result) -> Result:
        """Give the result with these rows and columns alone."""
        if not any(self) and self.columns is None:
            return whole
        from memfit.analysis.select import select

        return select(whole, **{**self._asdict(), "columns": split_columns(self.columns)})


def _add(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Add options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def _gathered(command: Command, name: str, kind: type[Output | Rows]) -> Command:
    """Let a command take some of its options as one record."""

    @functools.wraps(command)
    def gather(**given: Any) -> Any:
        fields = {field: given.pop(field) for field in kind._fields if field in given}
        return command(**{name: kind(**fields)}, **given)

    return cast("Command", gather)


def output_options(command: Command, *, formats: Sequence[str] = FORMATS) -> Command:
    """Add --format, --output, --force and --debug, which come as `output`.

    `formats` are what a terminal may be shown.
    """
    return _add(
        _gathered(command, "output", Output),
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


def select_options(command: Command, *, depth: bool = True) -> Command:
    """Add --sort, --top, --where, --columns and, where rows can be joined, --depth, which come as `rows`."""
    join = click.option("--depth", metavar="N", type=COUNT, help="Join rows below the Nth level of modules.")
    return _add(
        _gathered(command, "rows", Rows),
        click.option("--sort", metavar="COLUMN", help="Order rows, largest first; + or - before it turns that."),
        click.option("--top", metavar="N", type=COUNT, help="Show the first N rows."),
        click.option(
            "--where",
            metavar="CONDITION",
            multiple=True,
            help="Show rows such as 'type=conv2d', 'peak_bytes>=100KiB', 'name~^features' (may repeat).",
        ),
        click.option("--columns", metavar="A,B,…", help="Show these columns, by their names in JSON."),
        *([join] if depth else []),
    )


def model_options(command: Command, *, weights: bool = False) -> Command:
    """Add --input and --arg, and --weights where the model runs: what `memfit.api` calls inputs, args and weights."""
    held = click.option(
        "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
    )
    return _add(
        command,
        click.option(
            "--input",
            "inputs",
            metavar="SHAPE",
            multiple=True,
            callback=lambda _context, _option, shapes: list(shapes) or None,
            help="1x3x224x224, 1x128:int64 or ids=1x128:int64.",
        ),
        *([held] if weights else []),
        click.option(
            "--arg",
            "args",
            metavar="KEY=VALUE",
            multiple=True,
            callback=lambda _context, _option, texts: read_arguments(texts) or None,
            help="An argument of the model's constructor.",
        ),
    )


def data_options(command: Command) -> Command:
    """Add --data and what says which samples of it are taken, and how."""
    return _add(
        command,
        click.option(
            "--data", metavar="DATA", required=True, help="FILE.py:CALLABLE, a folder of images, a .npz, or random."
        ),
        click.option("--samples", metavar="N", type=COUNT, help="How many samples; all unless given, 32 of random."),
        click.option("--batch", metavar="N", type=COUNT, help="Samples that run at once; a loader's own, else 8."),
        click.option(
            "--seed",
            metavar="N",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of whatever is drawn: noise, samples, a search.",
        ),
        click.option(
            "--mean",
            metavar="R,G,B",
            callback=read_with(read_colours),
            help="Taken from the colours of images, 0 to 1; ImageNet's unless given.",
        ),
        click.option(
            "--std",
            metavar="R,G,B",
            callback=read_with(read_colours),
            help="What they are divided by; ImageNet's unless given.",
        ),
    )


def size_option(name: str, **more: Any) -> Callable[[Command], Command]:
    """Make an option that takes a number of bytes, such as 320KiB."""
    return click.option(name, metavar="SIZE", callback=read_with(read_size), **more)


def read_with(read: Callable[[str, str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make a callback that reads an option's text, which it is given with the option's name."""
    return lambda _, option, text: None if text is None else read(text, option.opts[0])


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given, so that the API's own defaults hold.

    >>> given({"samples": None, "seed": 0})
    {'seed': 0}
    """
    return {name: value for name, value in options.items() if value is not None}


def read_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read constructor arguments; a value that is no Python literal is text.

    >>> read_arguments(["width_mult=0.35", "norm=batch", "sizes=(1, 2)"])
    {'width_mult': 0.35, 'norm': 'batch', 'sizes': (1, 2)}

    Raises:
        UsageError: no key, or one given twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(
                "this is not a constructor's argument",
                where="--arg",
                received=repr(text),
                todo="write key=value, such as --arg width_mult=0.35",
            )
        if key in arguments:
            raise UsageError(
                "an argument is given twice", where="--arg", received=repr(text), todo=f"give {key} only once"
            )
        try:
            arguments[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            arguments[key] = value
    return arguments


def read_colours(text: str, option: str) -> list[float]:
    """Read one number for each colour.

    >>> read_colours("0.5,0.5,0.5", "--mean")
    [0.5, 0.5, 0.5]

    Raises:
        UsageError: something that is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "these are not numbers", where=option, received=repr(text), todo=f"write {option} 0.5,0.5,0.5"
        ) from None


def read_callable(text: str, option: str) -> str:
    """Refuse text that names no function of a Python file.

    >>> read_callable("train.py:tune", "--train")
    'train.py:tune'

    Raises:
        UsageError: it is not FILE.py:CALLABLE.
    """
    if ".py:" not in text:
        raise UsageError(
            "this names no function of a Python file",
            where=option,
            received=repr(text),
            todo=f"write {option} FILE.py:CALLABLE; it is given the changed module and trains it",
        )
    return text


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
