"""`memfit quantize`: bits for every activation and weight, so that the network's peak fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memfit.cli.calibrate import read_colours
from memfit.cli.options import (
    Output,
    check_output,
    deliver,
    output_options,
    read_size,
    select_options,
    split_columns,
)
from memfit.cli.profile import read_arguments
from memfit.cli.progress import check_save, progress_bar
from memfit.errors import UsageError

MEMORY = ("mcunet", "ideal", "autograd", "tinytl")
STRATEGIES = ("exact", "greedy", "uniform")
ROUNDINGS = ("nearest", "learned")
_COUNT = click.IntRange(min=1)


@click.command("quantize", short_help="Choose bits for every layer until the network fits.")
@click.argument("source", metavar="SOURCE")
@click.option("--budget", metavar="SIZE", required=True, help="The peak that is wanted, as 256KiB, under --memory.")
@click.option("--memory", type=click.Choice(MEMORY), default="mcunet", show_default=True, help="The memory model.")
@click.option("--bits", metavar="N,N,…", default="2,4,8,16", show_default=True, help="Widths of an activation.")
@click.option("--weights-bits", metavar="N,N,…", help="Widths of a weight; 8, or with --max-flash those of --bits.")
@click.option("--max-flash", metavar="SIZE", help="Flash that is wanted: model file and code, estimated for TFLM.")
@click.option("--data", metavar="DATA", required=True, help="FILE.py:CALLABLE, a folder of images, a .npz, or random.")
@click.option("--samples", metavar="N", type=_COUNT, help="How many samples; all unless given, 32 of random.")
@click.option("--batch", metavar="N", type=_COUNT, help="Samples that run at once; a loader's own, else 8.")
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
@click.option("--train", metavar="FILE.py:CALLABLE", help="Trains the rounded network, which it is given.")
@click.option("--time-limit", metavar="S", type=float, default=60.0, show_default=True, help="Of the programme, about.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--mean", metavar="R,G,B", help="Taken from the colours of images, 0 to 1; ImageNet's unless given.")
@click.option("--std", metavar="R,G,B", help="What they are divided by; ImageNet's unless given.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
)
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--save", metavar="RECIPE.json", type=click.Path(path_type=Path), help="Keep the recipe.")
@select_options
@output_options
def command(
    *,
    source: str,
    budget: str,
    bits: str,
    weights_bits: str | None,
    max_flash: str | None,
    no_equalize: bool,
    no_correct: bool,
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
    """Choose bits for every layer of SOURCE until its peak fits a budget and as little as possible is lost.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, with random weights
    unless --weights gives others.
    """
    output = Output(format, files, force)
    check_output(output)
    if save is not None:
        check_save(save, files, force, "a recipe is kept")
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    given["budget"] = read_size(budget, "--budget")
    given["bits"] = read_widths(bits, "--bits")
    if weights_bits is not None:
        given["weight_bits"] = read_widths(weights_bits, "--weights-bits")
    if max_flash is not None:
        given["max_flash"] = read_size(max_flash, "--max-flash")
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[option] = read_colours(text, f"--{option}")
    if "train" in given and ".py:" not in given["train"]:
        raise UsageError(
            "this names no function of a Python file",
            where="--train",
            received=repr(given["train"]),
            todo="write FILE.py:CALLABLE; it is given the rounded network and trains it",
        )
    constructor = read_arguments(arguments)

    from memfit import api
    from memfit.analysis.select import select

    with progress_bar(source) as progress:
        whole = api.quantize(
            source, args=constructor, equalize=not no_equalize, correct=not no_correct, save=save, force=force,
            progress=progress, **given,
        )  # fmt: skip
    chosen = whole
    if sort or top or where or columns is not None or depth:
        chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(chosen, output, also_written=[save] if save else [])


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
