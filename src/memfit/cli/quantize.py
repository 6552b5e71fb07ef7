"""`memfit quantize`: bits for every activation and weight, so that the network's peak fits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import (
    Output,
    Rows,
    check_output,
    data_options,
    deliver,
    given,
    model_options,
    output_options,
    read_callable,
    read_with,
    select_options,
    size_option,
)
from memfit.cli.progress import check_save, progress_bar
from memfit.cli.threads import wait_asleep
from memfit.errors import UsageError

MEMORY = ("mcunet", "ideal", "autograd", "tinytl")
STRATEGIES = ("exact", "greedy", "uniform")
ROUNDINGS = ("nearest", "learned")


def read_widths(text: str, option: str) -> list[int]:
    """Read widths in bits.

    >>> read_widths("4,8", "--bits")
    [4, 8]

    Raises:
        UsageError: something that is no whole number from 2 to 16.
    """
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = []
    if not widths or not all(2 <= width <= 16 for width in widths):
        raise UsageError(
            "these are not widths of 2 to 16 bits", where=option, received=repr(text), todo=f"write {option} 2,4,8,16"
        )
    return widths


@click.command("quantize", short_help="Choose bits for every layer until the network fits.")
@click.argument("source", metavar="SOURCE")
@size_option("--budget", required=True, help="The peak that is wanted, as 256KiB, under --memory.")
@click.option("--memory", type=click.Choice(MEMORY), default="mcunet", show_default=True, help="The memory model.")
@click.option(
    "--bits",
    metavar="N,N,…",
    default="2,4,8,16",
    show_default=True,
    callback=read_with(read_widths),
    help="Widths of an activation.",
)
@click.option(
    "--weights-bits",
    "weight_bits",
    metavar="N,N,…",
    callback=read_with(read_widths),
    help="Widths of a weight; 8, or with --max-flash those of --bits.",
)
@size_option("--max-flash", help="Flash that is wanted: model file and code, estimated for TFLM.")
@data_options
@click.option(
    "--ranges", metavar="FILE", type=click.Path(path_type=Path), help="Ranges that memfit calibrate --save kept."
)
@click.option(
    "--metric", metavar="NAME", help="accuracy, loss, sqnr, or FILE.py:CALLABLE; accuracy with labels, else sqnr."
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="exact",
    show_default=True,
    help="An integer programme, the largest first, or the same bits everywhere; the others are shown beside it.",
)
@click.option("--no-equalize", is_flag=True, help="Leave the channels of neighbouring layers as they are.")
@click.option("--no-correct", is_flag=True, help="Leave the shift that rounded weights give to channels' means.")
@click.option(
    "--rounding", type=click.Choice(ROUNDINGS), default="nearest", show_default=True, help="How weights are rounded."
)
@click.option(
    "--train",
    metavar="FILE.py:CALLABLE",
    callback=read_with(read_callable),
    help="Trains the rounded network, which it is given.",
)
@click.option("--time-limit", metavar="S", type=float, default=60.0, show_default=True, help="Of the programme, about.")
@partial(model_options, weights=True)
@click.option("--save", metavar="RECIPE.json", type=click.Path(path_type=Path), help="Keep the recipe.")
@select_options
@output_options
def command(
    *,
    source: str,
    no_equalize: bool,
    no_correct: bool,
    save: Path | None,
    rows: Rows,
    output: Output,
    **options: Any,
) -> None:
    """Choose bits for every layer of SOURCE until its peak fits a budget and as little as possible is lost.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, with random weights
    unless --weights gives others.
    """
    check_output(output)
    check_save(save, output, "a recipe is kept")

    wait_asleep()
    from memfit import api

    with progress_bar(source) as progress:
        whole = api.quantize(
            source,
            equalize=not no_equalize,
            correct=not no_correct,
            save=save,
            force=output.force,
            progress=progress,
            **given(options),
        )
    deliver(rows.of(whole), output, also_written=[save] if save else [])
