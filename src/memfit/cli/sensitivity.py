"""`memfit sensitivity`: what quantizing each layer costs, one layer at a time."""

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
    select_options,
)
from memfit.cli.progress import check_save, progress_bar

DIRECTIONS = ("quantize", "float", "both")
METHODS = ("exact", "taylor")
BACKENDS = ("loky", "ray")


@click.command("sensitivity", short_help="Measure what quantizing each layer costs, one layer at a time.")
@click.argument("source", metavar="SOURCE")
@data_options
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
@click.option("--jobs", metavar="N", type=COUNT, default=1, show_default=True, help="Processes.")
@click.option("--backend", type=click.Choice(BACKENDS), default="loky", show_default=True, help="Where they run.")
@partial(model_options, weights=True)
@click.option("--save", metavar="FILE.json", type=click.Path(path_type=Path), help="Keep the whole result.")
@select_options
@output_options
def command(*, source: str, save: Path | None, rows: Rows, output: Output, **options: Any) -> None:
    """Measure what quantizing each layer costs, one layer at a time, and explain the dips by the layers' roles.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others. A layer is a convolution or linear layer with its norm and activation:
    its weights and its output are rounded to --bits, and the network's output is compared with what it was.
    """
    check_output(output)
    check_save(save, output, "the result is kept")

    from memfit import api
    from memfit.compress.freed import keep_at_hand

    keep_at_hand()
    try:
        with progress_bar(source) as progress:
            whole = api.sensitivity(source, save=save, progress=progress, **given(options))
    except KeyboardInterrupt:
        store = options["store"]
        if store is not None and store.exists():
            click.echo(f"memfit: stopped; {store} keeps what is done, and the same command goes on", err=True)
        raise
    deliver(rows.of(whole), output, also_written=[save] if save else [])
