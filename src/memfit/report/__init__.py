"""Renderers: each takes a result and a stream, and computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any, NamedTuple

from memfit.analysis.result import Result
from memfit.report import (
    bench,
    calibrate,
    check,
    csv,
    json,
    markdown,
    plan,
    png,
    prune,
    quantize,
    sensitivity,
    stream,
    table,
    targets,
    train,
)


class Renderer(NamedTuple):
    """One report format."""

    render: Callable[[Result, IO[Any]], None]
    suffix: str
    """The file name's ending that asks for it."""
    binary: bool = False
    """True where the stream is one of bytes, which no terminal shows."""
    needs: str | None = None
    """A package outside the core."""
    extra: str | None = None
    """The extra that brings it."""
    only: str | None = None
    """The one command whose results it shows."""


RENDERERS: dict[str, Renderer] = {
    "table": Renderer(table.render, ".txt"),
    "md": Renderer(markdown.render, ".md"),
    "csv": Renderer(csv.render, ".csv"),
    "json": Renderer(json.render, ".json"),
    "junit": Renderer(check.junit, ".xml", only="check"),
    "png": Renderer(png.render, ".png", binary=True, needs="matplotlib", extra="plots"),
}
"""Every report format by name; the command line and the files read it here."""

COMMANDS = (bench, calibrate, check, plan, prune, quantize, sensitivity, stream, targets, train)
"""Modules of the commands that speak and draw in their own way; to import one is to register it."""
