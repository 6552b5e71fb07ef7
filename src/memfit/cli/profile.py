"""`memfit profile`: where the memory goes, row by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import (
    COUNT,
    Output,
    Rows,
    busy,
    check_output,
    deliver,
    given,
    model_options,
    output_options,
    select_options,
)
from memfit.errors import UsageError

MEMORY = ("eager", "ideal", "mcunet", "tinytl", "autograd", "cuda", "tensors", "tflm")
PER = ("layer", "block", "module", "op", "tensor")
DTYPES = ("fp32", "fp16", "bf16", "int8")
PHASES = ("prefill", "decode")
_BITS = click.IntRange(min=1, max=64)


@click.command("profile", short_help="Show where the memory goes, row by row.")
@click.argument("source", metavar="SOURCE")
@click.option("--per", type=click.Choice(PER), default="layer", show_default=True, help="What a row is.")
@click.option("--memory", type=click.Choice(MEMORY), help="The memory model; eager unless given, tflm for .tflite.")
@click.option("--training", is_flag=True, help="Profile forward, loss and backward.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="What runs it; no GPU is needed for cuda.")
@click.option("--capability", metavar="X.Y", help="The GPU's compute capability; 8.0 (A100) unless given.")
@click.option("--alloc-conf", metavar="TEXT", help="cuda: the allocator's settings, as in PYTORCH_ALLOC_CONF.")
@click.option("--autocast", type=click.Choice(("bf16", "fp16")), help="Run under autocast.")
@click.option("--dtype", type=click.Choice(DTYPES), help="The model's number format; fp32 unless given.")
@click.option("--batch", metavar="N", type=COUNT, help="Replace the first dimension of every input.")
@click.option("--samples", metavar="N", type=COUNT, help="Count the activations of so many samples.")
@model_options
@click.option("--no-fold", is_flag=True, help="One row per operation: fold no norm and no activation.")
@click.option("--blocks", metavar="REGEX", help="Which module paths are blocks.")
@click.option("--no-inplace-depthwise", is_flag=True, help="mcunet: depthwise convolutions get their own output.")
@click.option("--bits", metavar="N", type=_BITS, help="mcunet: bits of an activation; 8 unless given.")
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="Count the bits of memfit quantize.")
@click.option("--frozen-bits", metavar="N", type=_BITS, help="Bits of a frozen parameter, for the model's size.")
@click.option("--train-only", metavar="bias|norm|REGEX", help="Train these parameters, freeze the others.")
@click.option("--probe", is_flag=True, help="Run each distinct operation once, for workspaces without a rule.")
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@click.option("--threads", metavar="N", type=COUNT, help="Threads that the CPU's workspaces are counted for.")
@click.option("--phase", type=click.Choice(PHASES), help="A language model's prompt, or its next token.")
@click.option("--context", metavar="N", type=COUNT, help="Tokens of each sequence; up to 4096 unless given.")
@click.option("--budget", metavar="SIZE", help="With --phase: does it fit, and what context and batch do?")
@click.option(
    "--save-graph", metavar="FILE", type=click.Path(path_type=Path), help="Keep the captured graph: FILE.memfit.json."
)
@select_options
@output_options
def command(
    *,
    source: str,
    no_fold: bool,
    no_inplace_depthwise: bool,
    budget: str | None,
    save_graph: Path | None,
    rows: Rows,
    output: Output,
    **options: Any,
) -> None:
    """Show where the memory of SOURCE goes, row by row.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json, FILE.py:CALLABLE, a .pt2, .tflite or .onnx file
    or a saved .memfit.json graph.
    No weights are downloaded or allocated.
    """
    _check_targets(output, save_graph)
    for option in ("blocks", "train_only"):
        _check_pattern(option, options[option])
    if options["per"] == "tensor" and options["memory"] is None:
        options["memory"] = "tensors"
    known = given(options)
    if save_graph is not None:
        known["save_graph"] = save_graph
    if budget is not None:
        from memfit.cli.train import read_budget

        known["budget"] = read_budget(budget)

    from memfit import api

    with busy(f"profiling {source}") as report:
        if budget is not None:
            known["progress"] = report
        whole = api.profile(source, fold=not no_fold, inplace_depthwise=not no_inplace_depthwise, **known)
    deliver(rows.of(whole), output, also_written=[save_graph] if save_graph else [])


def _check_targets(output: Output, save_graph: Path | None) -> None:
    """Refuse files that could not be written before any work is done."""
    check_output(output)
    if save_graph is not None:
        from memfit.files import check_target

        if not save_graph.name.endswith(".memfit.json"):
            raise UsageError(
                "a saved graph is named .memfit.json, by which memfit knows it again",
                where="--save-graph",
                received=str(save_graph),
                todo=f"name it {save_graph.name.split('.')[0] or 'graph'}.memfit.json",
            )
        check_target(save_graph, force=output.force)


def _check_pattern(option: str, pattern: str | None) -> None:
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"this is not a regular expression: {error}",
            where=f"--{option.replace('_', '-')}",
            received=repr(pattern),
            todo="escape the characters that stand for themselves with \\",
        ) from None
