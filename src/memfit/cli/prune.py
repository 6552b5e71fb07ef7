"""`memfit prune`: take out channels until the network keeps its limits."""

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

MEMORY = ("mcunet", "ideal", "eager", "autograd", "tinytl")
IMPORTANCE = ("magnitude", "taylor", "bn-scale")
STRATEGIES = ("peak", "uniform")


@click.command("prune", short_help="Take out channels until the network keeps its limits.")
@click.argument("source", metavar="SOURCE")
@size_option("--budget", help="The peak that is wanted, as 256KiB, under --memory.")
@click.option("--memory", type=click.Choice(MEMORY), default="mcunet", show_default=True, help="The memory model.")
@size_option("--max-flash", help="Flash that is wanted: model file and code, estimated for TFLM.")
@click.option("--max-macs", metavar="N", type=COUNT, help="Multiplications that are wanted.")
@click.option("--max-latency", metavar="MS", type=float, help="Milliseconds that are wanted, measured here.")
@data_options
@click.option("--importance", type=click.Choice(IMPORTANCE), default="magnitude", show_default=True)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="peak",
    show_default=True,
    help="Channels where the peak is, or the same share everywhere.",
)
@click.option(
    "--fine-tune",
    metavar="FILE.py:CALLABLE",
    callback=read_with(read_callable),
    help="Trains the pruned module, which it is given.",
)
@click.option(
    "--metric", metavar="NAME", help="accuracy, loss, sqnr, or FILE.py:CALLABLE; accuracy with labels, else sqnr."
)
@click.option("--rounds", metavar="N", type=COUNT, default=1, show_default=True, help="Of pruning and fine-tuning.")
@click.option("--min-channels", metavar="N", type=COUNT, default=4, show_default=True, help="Kept in each layer.")
@partial(model_options, weights=True)
@click.option(
    "--save", metavar="PRUNED.pt2", type=click.Path(path_type=Path), help="Keep the pruned network as a program."
)
@partial(select_options, depth=False)  # channels of several layers have no sum
@output_options
def command(*, source: str, save: Path | None, rows: Rows, output: Output, **options: Any) -> None:
    """Take channels out of SOURCE until it keeps its limits, first where its peak is.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, with random weights
    unless --weights gives others.
    """
    check_output(output)
    check_save(save, output, "the pruned network, a program of torch.export, is kept", ".pt2")

    if options["max_latency"] is None:
        wait_asleep()
    from memfit import api

    with progress_bar(source) as progress:
        whole = api.prune(source, save=save, force=output.force, progress=progress, **given(options))
    deliver(rows.of(whole), output, also_written=[save] if save else [])
