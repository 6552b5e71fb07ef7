"""Which parameters train: the others are frozen for a capture, and thawed again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from memfit.errors import UsageError


@contextmanager
def frozen(model: nn.Module, train_only: str | None) -> Iterator[None]:
    """Let only some parameters require a gradient.

    Raises:
        UsageError: a regular expression that is none, or a choice without any trainable parameter.
    """
    if train_only is None:
        yield
        return
    chosen = _chosen(model, train_only)
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, trains in before:
            parameter.requires_grad_(trains and id(parameter) in chosen)
        yield
    finally:
        for parameter, trains in before:
            parameter.requires_grad_(trains)


def _chosen(model: nn.Module, train_only: str) -> set[int]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if train_only == "bias":
        chosen = {id(p) for name, p in named if name.rpartition(".")[2] == "bias"}
    elif train_only == "norm":
        chosen = {id(p) for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(False)}
    else:
        try:
            pattern = re.compile(train_only)
        except re.error as error:
            raise UsageError(
                f"this is not a regular expression: {error}",
                where="--train-only",
                received=repr(train_only),
                todo="use bias, norm, or a regular expression that parameter names contain",
            ) from None
        chosen = {id(p) for name, p in named if pattern.search(name)}
    if not chosen & {id(p) for _, p in named}:
        names = ", ".join(name for name, _ in named[:3]) or "none"
        raise UsageError(
            "no trainable parameter is chosen",
            where="--train-only",
            received=repr(train_only),
            todo=f"use bias, norm, or a regular expression that names contain; the first names are {names}",
        )
    return chosen
