"""`memfit prune`: take out channels until the network keeps its limits."""

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
from memfit.cli.progress import progress_bar
from memfit.errors import UsageError

MEMORY = ("mcunet", "ideal", "eager", "autograd", "tinytl")
IMPORTANCE = ("magnitude", "taylor", "bn-scale")
STRATEGIES = ("peak", "uniform")
_COUNT = click.IntRange(min=1)


@click.command("prune", short_help="Take out channels until the network keeps its limits.")
@click.argument("source", metavar="SOURCE")
@click.option("--budget", metavar="SIZE", help="The peak that is wanted, as 256KiB, under --memory.")
@click.option("--memory", type=click.Choice(MEMORY), default="mcunet", show_default=True, help="The memory model.")
@click.option("--max-flash", metavar="SIZE", help="Flash that is wanted: model file and code, estimated for TFLM.")
@click.option("--max-macs", metavar="N", type=_COUNT, help="Multiplications that are wanted.")
@click.option("--max-latency", metavar="MS", type=float, help="Milliseconds that are wanted, measured here.")
@click.option("--data", metavar="DATA", required=True, help="FILE.py:CALLABLE, a folder of images, a .npz, or random.")
@click.option("--samples", metavar="N", type=_COUNT, help="How many samples; all unless given, 32 of random.")
@click.option("--batch", metavar="N", type=_COUNT, help="Samples that run at once; a loader's own, else 8.")
@click.option("--importance", type=click.Choice(IMPORTANCE), default="magnitude", show_default=True)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="peak",
    show_default=True,
    help="Channels where the peak is, or the same share everywhere.",
)
@click.option("--fine-tune", metavar="FILE.py:CALLABLE", help="Trains the pruned module, which it is given.")
@click.option(
    "--metric", metavar="NAME", help="accuracy, loss, sqnr, or FILE.py:CALLABLE; accuracy with labels, else sqnr."
)
@click.option("--rounds", metavar="N", type=_COUNT, default=1, show_default=True, help="Of pruning and fine-tuning.")
@click.option("--min-channels", metavar="N", type=_COUNT, default=4, show_default=True, help="Kept in each layer.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--mean", metavar="R,G,B", help="Taken from the colours of images, 0 to 1; ImageNet's unless given.")
@click.option("--std", metavar="R,G,B", help="What they are divided by; ImageNet's unless given.")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A .safetensors or .pt file of tensors."
)
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option(
    "--save", metavar="PRUNED.pt2", type=click.Path(path_type=Path), help="Keep the pruned network as a program."
)
@select_options
@output_options
def command(
    *,
    source: str,
    budget: str | None,
    max_flash: str | None,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    mean: str | None,
    std: str | None,
    save: Path | None,
    sort: str | None,
    top: int | None,
    where: tuple[str, ...],
    columns: str | None,
    format: str,
    files: tuple[Path, ...],
    force: bool,
    **options: Any,
) -> None:
    """Take channels out of SOURCE until it keeps its limits, first where its peak is.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, with random weights
    unless --weights gives others.
    """
    output = Output(format, files, force)
    check_output(output)
    if save is not None:
        _check_save(save, output)
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    for option, size in (("budget", budget), ("max_flash", max_flash)):
        if size is not None:
            given[option] = read_size(size, f"--{option.replace('_', '-')}")
    for option, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[option] = read_colours(text, f"--{option}")
    if ".py:" not in given.get("fine_tune", ".py:"):
        raise UsageError(
            "this names no function of a Python file",
            where="--fine-tune",
            received=repr(given["fine_tune"]),
            todo="write FILE.py:CALLABLE; it is given the pruned module and trains it",
        )
    constructor = read_arguments(arguments)

    from memfit import api
    from memfit.analysis.select import select

    with progress_bar(source) as progress:
        whole = api.prune(source, args=constructor, save=save, force=force, progress=progress, **given)
    chosen = whole
    if sort or top or where or columns is not None:
        chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns))
    deliver(chosen, output, also_written=[save] if save else [])


# Channels of several layers have no sum, so rows cannot be joined.
command.params = [option for option in command.params if option.name != "depth"]


def _check_save(save: Path, output: Output) -> None:
    """Refuse a file that could not be written before any work is done."""
    from memfit.files import check_target

    if save.suffix.lower() != ".pt2":
        raise UsageError(
            "the pruned network is kept as a program of torch.export, which is named .pt2",
            where="--save",
            received=str(save),
            todo=f"name it {save.stem or 'pruned'}.pt2",
        )
    check_target(save, force=output.force)
