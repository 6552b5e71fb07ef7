"""`memfit sensitivity`: what quantizing each layer costs, one layer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memfit.cli.calibrate import read_colours
from memfit.cli.options import Output, check_output, deliver, output_options, select_options, split_columns
from memfit.cli.profile import read_arguments
from memfit.cli.progress import check_save, progress_bar

DIRECTIONS = ("quantize", "float", "both")
METHODS = ("exact", "taylor")
BACKENDS = ("loky", "ray")
_COUNT = click.IntRange(min=1)


@click.command("sensitivity", short_help="Measure what quantizing each layer costs, one layer at a time.")
@click.argument("source", metavar="SOURCE")
@click.option("--data", metavar="DATA", required=True, help="FILE.py:CALLABLE, a folder of images, a .npz, or random.")
@click.option("--samples", metavar="N", type=_COUNT, help="How many samples; all unless given, 32 of random.")
@click.option("--bits", metavar="N", type=click.IntRange(2, 16), default=8, show_default=True, help="Of the grids.")
@click.option(
    "--metric",
    metavar="NAME",
    default="sqnr",
    show_default=True,
    help="sqnr, cosine, loss, accuracy, FILE.py:CALLABLE.",
)
@click.option(
    "--direction",
    type=click.Choice(DIRECTIONS),
    default="quantize",
    show_default=True,
    help="Quantize one layer of the float network, or leave one float in the quantized network.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="exact",
    show_default=True,
    help="Measure each layer, or estimate all from one backward pass.",
)
@click.option("--ranges", metavar="RANGES.json", type=click.Path(path_type=Path), help="From memfit calibrate --save.")
@click.option("--per-channel", is_flag=True, help="Outputs too have a grid for each channel, as weights have.")
@click.option(
    "--store", metavar="SWEEP.sqlite", type=click.Path(path_type=Path), help="Keep what is done, go on from it."
)
@click.option("--jobs", metavar="N", type=_COUNT, default=1, show_default=True, help="Processes.")
@click.option("--backend", type=click.Choice(BACKENDS), default="loky", show_default=True, help="Where they run.")
@click.option("--batch", metavar="N", type=_COUNT, help="Samples that run at once; a loader's own, else 8.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of noise, choice.")
@click.option("--mean", metavar="R,G,B", help="Taken from the colours of images, 0 to 1; ImageNet's unless given.")
@click.option("--std", metavar="R,G,B", help="What they are divided by; ImageNet's unless given.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
)
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--save", metavar="FILE.json", type=click.Path(path_type=Path), help="Keep the whole result.")
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
    """Measure what quantizing each layer costs, one layer at a time, and explain the dips by the layers' roles.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others. A layer is a convolution or linear layer with its norm and activation:
    its weights and its output are rounded to --bits, and the network's output is compared with what it was.
    """
    output = Output(format, files, force)
    check_output(output)
    if save is not None:
        check_save(save, files, force, "the result is kept")
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[option] = read_colours(text, f"--{option}")
    constructor = read_arguments(arguments)

    from memfit import api
    from memfit.analysis.select import select

    try:
        with progress_bar(source) as progress:
            whole = api.sensitivity(source, args=constructor, save=save, progress=progress, **given)
    except KeyboardInterrupt:
        if "store" in given and given["store"].exists():
            click.echo(f"memfit: stopped; {given['store']} keeps what is done, and the same command goes on", err=True)
        raise
    chosen = whole
    if sort or top or where or columns is not None or depth:
        chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(chosen, output, also_written=[save] if save else [])
