"""`memfit bench`: how fast it is, row by row, and how sure that is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import (
    COUNT,
    Output,
    Rows,
    check_output,
    deliver,
    given,
    model_options,
    output_options,
    read_with,
    select_options,
)
from memfit.cli.progress import check_save, progress_bar
from memfit.errors import UsageError

PER = ("model", "block", "layer", "op")
MODES = ("in-place", "isolated")


def read_batches(text: str, option: str) -> list[int]:
    """Read one batch size, or several with commas between them.

    >>> read_batches("1,2,4", "--batch")
    [1, 2, 4]

    Raises:
        UsageError: something else, or a size below one.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            "this is not a batch size of 1 or more, or several of them",
            where=option,
            received=repr(text),
            todo=f"write {option} 8, or {option} 1,2,4,8 to compare",
        )
    return [int(part) for part in parts]


@click.command("bench", short_help="Measure how fast it is, row by row.")
@click.argument("source", metavar="SOURCE")
@click.option("--per", type=click.Choice(PER), default="model", show_default=True, help="What a row is.")
@click.option("--mode", type=click.Choice(MODES), default="in-place", show_default=True, help="How rows are timed.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(("fp32", "fp16", "bf16")), help="Of weights and inputs.")
@click.option(
    "--batch",
    metavar="N[,N…]",
    callback=read_with(read_batches),
    help="The first dimension of every input; several are compared.",
)
@click.option("--warmup", metavar="N", type=click.IntRange(min=0), default=25, show_default=True)
@click.option("--iterations", metavar="N", type=COUNT, help="Timed iterations; 300 unless given.")
@click.option("--seconds", metavar="S", type=float, help="Stop when the median is sure to ±1 %, at most after that.")
@click.option("--channels-last", is_flag=True, help="Lay images out with their channels last.")
@click.option("--compile", is_flag=True, help="Time the model as torch.compile makes it.")
@click.option("--threads", metavar="N", type=COUNT, help="Threads of the CPU.")
@click.option("--with-memory", is_flag=True, help="Measure the peak memory too, beside the predicted one.")
@partial(model_options, weights=True)
@click.option("--blocks", metavar="REGEX", help="Which module paths are blocks.")
@click.option("--save", metavar="RUN.json", type=click.Path(path_type=Path), help="Keep the run with its samples.")
@click.option("--against", metavar="RUN.json", type=click.Path(path_type=Path), help="Compare with a run kept before.")
@select_options
@output_options
def command(*, source: str, save: Path | None, rows: Rows, output: Output, **options: Any) -> None:
    """Measure how fast SOURCE is, row by row.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others.
    """
    check_output(output)
    check_save(save, output, "a run is kept")

    from memfit import api

    with progress_bar(source) as progress:
        whole = api.bench(source, save=save, progress=progress, **given(options))
    deliver(rows.of(whole), output, also_written=[save] if save else [])
    if any(note.startswith("interrupted") for note in whole.notes):
        raise click.exceptions.Exit(130)
