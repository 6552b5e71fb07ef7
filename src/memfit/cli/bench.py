"""`memfit bench`: how fast it is, row by row, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memfit.cli.options import Output, check_output, deliver, output_options, select_options, split_columns
from memfit.cli.profile import read_arguments
from memfit.cli.progress import check_save, progress_bar
from memfit.errors import UsageError

PER = ("model", "block", "layer", "op")
MODES = ("in-place", "isolated")
_COUNT = click.IntRange(min=1)


@click.command("bench", short_help="Measure how fast it is, row by row.")
@click.argument("source", metavar="SOURCE")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option("--per", type=click.Choice(PER), default="model", show_default=True, help="What a row is.")
@click.option("--mode", type=click.Choice(MODES), default="in-place", show_default=True, help="How rows are timed.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(("fp32", "fp16", "bf16")), help="Of weights and inputs.")
@click.option("--batch", metavar="N[,N…]", help="The first dimension of every input; several are compared.")
@click.option("--warmup", metavar="N", type=click.IntRange(min=0), default=25, show_default=True)
@click.option("--iterations", metavar="N", type=_COUNT, help="Timed iterations; 300 unless given.")
@click.option("--seconds", metavar="S", type=float, help="Stop when the median is sure to ±1 %, at most after that.")
@click.option("--channels-last", is_flag=True, help="Lay images out with their channels last.")
@click.option("--compile", is_flag=True, help="Time the model as torch.compile makes it.")
@click.option("--threads", metavar="N", type=_COUNT, help="Threads of the CPU.")
@click.option("--with-memory", is_flag=True, help="Measure the peak memory too, beside the predicted one.")
@click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
)
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--blocks", metavar="REGEX", help="Which module paths are blocks.")
@click.option("--save", metavar="RUN.json", type=click.Path(path_type=Path), help="Keep the run with its samples.")
@click.option("--against", metavar="RUN.json", type=click.Path(path_type=Path), help="Compare with a run kept before.")
@select_options
@output_options
def command(
    *,
    source: str,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    batch: str | None,
    save: Path | None,
    sort: str | None,
    top: int | None,
    where: tuple[str, ...],
    columns: str | None,
    depth: int | None,
    format: str,
    files: tuple[Path, ...],
    force: bool,
    **options: Any,
) -> None:
    """Measure how fast SOURCE is, row by row.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others.
    """
    output = Output(format, files, force)
    check_output(output)
    if save is not None:
        check_save(save, files, force, "a run is kept")
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    if batch is not None:
        given["batch"] = read_batches(batch)
    constructor = read_arguments(arguments)

    from memfit import api
    from memfit.analysis.select import select

    interrupted = False
    with progress_bar(source) as progress:
        whole = api.bench(source, args=constructor, save=save, progress=progress, **given)
        interrupted = any(note.startswith("interrupted") for note in whole.notes)
        chosen = whole
        if sort or top or where or columns is not None or depth:
            chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(chosen, output, also_written=[save] if save else [])
    if interrupted:
        raise click.exceptions.Exit(130)


def read_batches(text: str) -> list[int]:
    """Read one batch size, or several with commas between them.

    >>> read_batches("1,2,4")
    [1, 2, 4]

    Raises:
        UsageError: something else, or a size below one.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            "this is not a batch size of 1 or more, or several of them",
            where="--batch",
            received=repr(text),
            todo="write --batch 8, or --batch 1,2,4,8 to compare",
        )
    return [int(part) for part in parts]
