"""`memfit profile`: where the memory goes, row by row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from memfit.cli.options import Output, busy, check_output, deliver, output_options, select_options, split_columns
from memfit.errors import UsageError

MEMORY = ("eager", "ideal", "mcunet", "tinytl", "autograd", "cuda", "tensors", "tflm")
PER = ("layer", "block", "module", "op", "tensor")
DTYPES = ("fp32", "fp16", "bf16", "int8")
PHASES = ("prefill", "decode")
_COUNT = click.IntRange(min=1)
_BITS = click.IntRange(min=1, max=64)


@click.command("profile", short_help="Show where the memory goes, row by row.")
@click.argument("source", metavar="SOURCE")
@click.option("--input", "inputs", metavar="SHAPE", multiple=True, help="1x3x224x224, 1x128:int64 or ids=1x128:int64.")
@click.option("--per", type=click.Choice(PER), default="layer", show_default=True, help="What a row is.")
@click.option("--memory", type=click.Choice(MEMORY), help="The memory model; eager unless given, tflm for .tflite.")
@click.option("--training", is_flag=True, help="Profile forward, loss and backward.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="What runs it; no GPU is needed for cuda.")
@click.option("--capability", metavar="X.Y", help="The GPU's compute capability; 8.0 (A100) unless given.")
@click.option("--alloc-conf", metavar="TEXT", help="cuda: the allocator's settings, as in PYTORCH_ALLOC_CONF.")
@click.option("--autocast", type=click.Choice(("bf16", "fp16")), help="Run under autocast.")
@click.option("--dtype", type=click.Choice(DTYPES), help="The model's number format; fp32 unless given.")
@click.option("--batch", metavar="N", type=_COUNT, help="Replace the first dimension of every input.")
@click.option("--samples", metavar="N", type=_COUNT, help="Count the activations of so many samples.")
@click.option("--arg", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the model's constructor.")
@click.option("--no-fold", is_flag=True, help="One row per operation: fold no norm and no activation.")
@click.option("--blocks", metavar="REGEX", help="Which module paths are blocks.")
@click.option("--no-inplace-depthwise", is_flag=True, help="mcunet: depthwise convolutions get their own output.")
@click.option("--bits", metavar="N", type=_BITS, help="mcunet: bits of an activation; 8 unless given.")
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="Count the bits of memfit quantize.")
@click.option("--frozen-bits", metavar="N", type=_BITS, help="Bits of a frozen parameter, for the model's size.")
@click.option("--train-only", metavar="bias|norm|REGEX", help="Train these parameters, freeze the others.")
@click.option("--probe", is_flag=True, help="Run each distinct operation once, for workspaces without a rule.")
@click.option("--estimate", is_flag=True, help="Estimate operations that memfit does not know, and say so.")
@click.option("--threads", metavar="N", type=_COUNT, help="Threads that the CPU's workspaces are counted for.")
@click.option("--phase", type=click.Choice(PHASES), help="A language model's prompt, or its next token.")
@click.option("--context", metavar="N", type=_COUNT, help="Tokens of each sequence; up to 4096 unless given.")
@click.option("--budget", metavar="SIZE", help="With --phase: does it fit, and what context and batch do?")
@click.option(
    "--save-graph", metavar="FILE", type=click.Path(path_type=Path), help="Keep the captured graph: FILE.memfit.json."
)
@select_options
@output_options
def command(
    *,
    source: str,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    no_fold: bool,
    no_inplace_depthwise: bool,
    budget: str | None,
    save_graph: Path | None,
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
    """Show where the memory of SOURCE goes, row by row.

    SOURCE is torchvision:NAME, timm:NAME, hf:CONFIG.json, FILE.py:CALLABLE, a .pt2, .tflite or .onnx file
    or a saved .memfit.json graph.
    No weights are downloaded or allocated.
    """
    output = Output(format, files, force)
    _check_targets(output, save_graph)
    for option in ("blocks", "train_only"):
        _check_pattern(option, options[option])
    if options["per"] == "tensor" and options["memory"] is None:
        options["memory"] = "tensors"
    constructor = read_arguments(arguments)
    given = {name: value for name, value in options.items() if value is not None}
    if inputs:
        given["inputs"] = list(inputs)
    if save_graph is not None:
        given["save_graph"] = save_graph
    if budget is not None:
        from memfit.cli.train import read_budget

        given["budget"] = read_budget(budget)

    from memfit import api
    from memfit.analysis.select import select

    with busy(f"profiling {source}") as report:
        if budget is not None:
            given["progress"] = report
        whole = api.profile(
            source, args=constructor, fold=not no_fold, inplace_depthwise=not no_inplace_depthwise, **given
        )
        chosen = whole
        if sort or top or where or columns is not None or depth:
            chosen = select(whole, sort=sort, top=top, where=where, columns=split_columns(columns), depth=depth)
    deliver(chosen, output, also_written=[save_graph] if save_graph else [])


def read_arguments(texts: Iterable[str]) -> dict[str, Any]:
    """Read constructor arguments; a value that is no Python literal is text.

    >>> read_arguments(["width_mult=0.35", "norm=batch", "sizes=(1, 2)"])
    {'width_mult': 0.35, 'norm': 'batch', 'sizes': (1, 2)}

    Raises:
        UsageError: no key, or one given twice.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(
                "this is not a constructor's argument",
                where="--arg",
                received=repr(text),
                todo="write key=value, such as --arg width_mult=0.35",
            )
        if key in arguments:
            raise UsageError(
                "an argument is given twice", where="--arg", received=repr(text), todo=f"give {key} only once"
            )
        try:
            arguments[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            arguments[key] = value
    return arguments


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
