"""`memfit calibrate`: the range of every layer's output, from real data, in constant memory."""

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
    select_options,
)
from memfit.cli.progress import check_save, progress_bar
from memfit.cli.threads import wait_asleep

METHODS = ("minmax", "moving-average", "percentile", "entropy", "mse")


@click.command("calibrate", short_help="Find the range of every layer's output, from real data.")
@click.argument("source", metavar="SOURCE")
@data_options
@click.option("--method", type=click.Choice(METHODS), default="minmax", show_default=True, help="What a range is.")
@click.option("--bits", metavar="N", type=click.IntRange(2, 16), default=8, show_default=True, help="Of the grid.")
@click.option("--symmetric", is_flag=True, help="Put zero in the middle of every range.")
@click.option("--percentile", metavar="P", type=float, help="Where ranges of that method end; 99.99 unless given.")
@click.option("--per-channel", is_flag=True, help="Also find the range of each channel.")
@partial(model_options, weights=True)
@click.option("--save", metavar="RANGES.json", type=click.Path(path_type=Path), help="Keep the ranges.")
@select_options
@output_options
def command(*, source: str, save: Path | None, rows: Rows, output: Output, **options: Any) -> None:
    """Find the range of every layer's output over some data.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. It really runs, in evaluation mode, with
    random weights unless --weights gives others. The samples are never kept.
    """
    check_output(output)
    check_save(save, output, "the ranges are kept")

    wait_asleep()
    from memfit import api
    from memfit.compress.freed import keep_apart

    keep_apart()
    with progress_bar(source) as progress:
        whole = api.calibrate(source, save=save, progress=progress, **given(options))
    deliver(rows.of(whole), output, also_written=[save] if save else [])
