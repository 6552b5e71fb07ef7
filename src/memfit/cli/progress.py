"""What long work shows while it lasts, and where it is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memfit.cli.options import Output
from memfit.errors import UsageError


def check_save(save: Path | None, output: Output, what: str, suffix: str = ".json") -> None:
    """Refuse a file to keep something in that could not be written, before any work is done.

    Raises:
        UsageError: it has another suffix, or it is one of the report's files too.
        OutputError: as for `memfit.files.check_target`.
    """
    if save is None:
        return
    from memfit.files import check_target

    if save.suffix.lower() != suffix or save.name.lower().endswith(".memfit.json"):
        raise UsageError(
            f"{what} as {suffix}",
            where="--save",
            received=str(save),
            todo=f"name it {save.name.split('.')[0] or 'result'}{suffix}",
        )
    if save.resolve() in {path.resolve() for path in output.files}:
        raise UsageError("one file is named twice", where="--save", received=str(save), todo="give each its own name")
    check_target(save, force=output.force)


@contextmanager
def progress_bar(source: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a progress bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
        auto_refresh=False,  # its thread would take time from the model's
    )
    with bar:
        task = bar.add_task(source, total=None, count="")
        shown = ""
        last = 0.0

        def progress(what: str, done: int, of: int | None) -> None:
            nonlocal shown, last
            now = bar.get_time()
            if what == shown and now - last < 0.25 and done != of:
                return
            if what != shown:
                bar.reset(task, total=of)
            shown, last = what, now
            count = f"{done}/{of}" if of else f"{done}" if done else ""
            bar.update(task, description=f"{source}: {what}", total=of, completed=done, count=count, refresh=True)

        yield progress
