"""A module as a file: a program with its weights, which loads without the code that built it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memfit.errors import CaptureError, said
from memfit.files import write_bytes


def save_program(
    module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], path: Path, *, force: bool = False
) -> None:
    """Export a module with `torch.export` and write it as `.pt2`, whole or not at all.

    Args:
        module: in evaluation mode.
        call: positional and keyword arguments of a call; the program takes inputs of these shapes.
        path: of the file.
        force: overwrite a file that exists.

    Raises:
        CaptureError: `torch.export` cannot export it.
        OutputError: the file cannot be written.
    """
    args, kwargs = call
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(module.eval(), args, kwargs), buffer)
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot export this model: {said(error)}",
            where=str(path),
            received=type(module).__name__,
            todo="leave out --save and use memfit.prune from Python, whose result has the pruned module",
        ) from error
    write_bytes(buffer.getvalue(), path, force=force)
