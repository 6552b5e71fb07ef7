"""`memfit train`: what one step of training needs on a GPU, without one."""

from __future__ import annotations

from typing import Any

import click

from memfit.cli.options import COUNT, Output, busy, check_output, deliver, given, model_options, output_options
from memfit.errors import UsageError
from memfit.units import parse_bytes


@click.command("train", short_help="Predict what a step of training needs on a GPU.")
@click.argument("source", metavar="SOURCE")
@click.option("--batch", metavar="N", type=COUNT, required=True, help="Samples in one forward pass.")
@click.option("--optimizer", metavar="NAME", default="adam", show_default=True, help="sgd, momentum, adam, adamw, …")
@click.option("--kernels", metavar="KIND", help="How the optimizer runs: foreach (default), fused or for-loop.")
@click.option("--device", type=click.Choice(("cuda", "cpu")), default="cuda", show_default=True)
@click.option("--capability", metavar="X.Y", help="The GPU's compute capability; 8.0 (A100) unless given.")
@click.option(
    "--budget",
    metavar="SIZE",
    callback=lambda _context, _option, text: None if text is None else read_budget(text),
    help="What the GPU has, as 24GiB or by its name: does it fit, and what would help?",
)
@click.option("--dtype", type=click.Choice(("fp32", "fp16", "bf16")), help="Of the weights; else the model's own.")
@click.option("--autocast", type=click.Choice(("bf16", "fp16")), help="Run forward and loss under autocast.")
@click.option("--accumulate", metavar="N", type=COUNT, default=1, help="Micro-batches for one step of the optimizer.")
@click.option("--checkpoint", metavar="none|auto|REGEX", default="none", help="Which modules backward computes again.")
@click.option("--train-only", metavar="bias|norm|REGEX", help="Train these parameters, freeze the others.")
@click.option("--keep-gradients", is_flag=True, help="zero_grad(set_to_none=False): gradients stay allocated.")
@click.option("--alloc-conf", metavar="TEXT", help="The allocator's settings, as in PYTORCH_ALLOC_CONF.")
@click.option("--cuda-context", metavar="SIZE", help="What the CUDA context takes; estimated unless given.")
@click.option("--no-advice", is_flag=True, help="Do not look for what would help.")
@model_options
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@output_options
def command(
    *,
    source: str,
    checkpoint: str,
    keep_gradients: bool,
    no_advice: bool,
    output: Output,
    **options: Any,
) -> None:
    """Predict what one step of training SOURCE needs on a GPU, on a machine without one.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json or FILE.py:CALLABLE. No weights are downloaded or allocated.
    """
    check_output(output)

    from memfit import api

    with busy(f"predicting {source}") as report:
        result = api.train(
            source,
            checkpoint=None if checkpoint == "none" else checkpoint,
            set_to_none=not keep_gradients,
            advice=not no_advice,
            progress=report,
            **given(options),
        )
    deliver(result, output)


def read_budget(text: str) -> int:
    """Read a number of bytes such as 24GiB, or the name of a GPU, which stands for the memory that its driver reports.

    >>> read_budget("12GiB"), read_budget("a100-80gb")
    (12884901888, 85899345920)

    Raises:
        UsageError: it is neither a size nor the name of a GPU, or not above zero.
    """
    try:
        nbytes = parse_bytes(text)
    except UsageError as error:
        from memfit.targets import load, lookup

        gpu = lookup(text)
        if gpu is None or gpu.kind != "gpu":
            raise UsageError(
                "this is neither a size nor the name of a GPU",
                where="--budget",
                received=repr(text),
                todo="write it as 24GiB, 16GB or a number, or as one of "
                + ", ".join(key for key, target in load().items() if target.kind == "gpu"),
            ) from error
        nbytes = gpu.reported_bytes or gpu.ram_bytes
    if nbytes < 1:
        raise UsageError(
            "the budget must be at least one byte", where="--budget", received=repr(text), todo="write it as 24GiB"
        )
    return nbytes
