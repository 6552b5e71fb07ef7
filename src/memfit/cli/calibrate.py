"""`memfit calibrate`: the range of every layer's output, from real data, in constant memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import Output, check_output, deliver, output_options, select_options, split_columns
from memfit.cli.profile import read_arguments
from memfit.cli.progress import check_save, progress_bar
from memfit.errors import MissingExtra, UsageError

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")
_COUNT = click.IntRange(min=1)


@click.command("calibrate", short_help="Find the range of every layer's output, from real data.")
@click.argument("source", metavar="SOURCE")
@click.option("--data", metavar="DATA", required=True, help="FILE.py:CALLABLE, a folder of images, a .npz, or random.")
@click.option("--samples", metavar="N", type=_COUNT, help="How many samples; all unless given, 32 of random.")
@click.option("--method", type=click.Choice(METHODS), default="minmax", show_default=True, help="What a range is.")
@click.option("--bits", metavar="N", type=click.IntRange(2, 16), default=8, show_default=True, help="Of the grid.")
@click.option("--symmetric", is_flag=True, help="Put zero in the middle of every range.")
@click.option("--percentile", metavar="P", type=float, help="Where ranges of that method end; 99.99 unless given.")
@click.option("--per-channel", is_flag=True, help="Also find the range of each channel.")
@click.option("--batch", metavar="N", type=_COUNT, help="Samples that run at once; a loader's own, else 8.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of noise, choice.")
@click.option("--mean", metavar="R,G,B", help="Taken from the colours of images, 0 to 1; ImageNet's unless given.")
@click.option("--std", metavar="R,G,B", help="What they are divided by; ImageNet's unless given.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
)
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--save", metavar="RANGES.json", type=click.Path(path_type=Path), help="Keep the ranges.")
@select_options
@output_options
def command(
    *,
    source: str,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    mean: str | None,
    std: str | None,
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
    """Find the range of every layer's output over some data.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others. The samples are never kept.
    """
    output = Output(format, files, force)
    check_output(output)
    if find_spec("torch") is None:
        raise MissingExtra(
            "calibrating runs the model, which needs torch, and torch is not installed",
            where="memfit calibrate",
            received="no package torch",
            todo="pip install 'memfit[compress]'",
        )
    if save is not None:
        check_save(save, files, force)
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[option] = read_colours(text, f"--{option}")
    constructor = read_arguments(arguments)

    from memfit import api
    from memfit.analysis.select import select
    from memfit.compress.freed import keep_apart

    keep_apart()
    with progress_bar(source) as progress:
        whole = api.calibrate(source, args=constructor, save=save, progress=progress, **given)
    chosen = whole
    if sort or top or where or columns is not None or depth:
        chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(chosen, output, also_written=[save] if save else [])


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
