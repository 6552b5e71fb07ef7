"""Result files: refused before any work is done, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from memfit.analysis.result import Result
from memfit.errors import MissingExtra, UsageError
from memfit.files import check_target, write_whole
from memfit.report import RENDERERS, Renderer

_GRAPH = ".memfit.json"


def renderer_for(path: Path) -> Renderer:
    """Find the renderer that a file's suffix asks for.

    >>> renderer_for(Path("peaks.md")).suffix
    '.md'

    Raises:
        UsageError: no format has this suffix.
    """
    known = {entry.suffix: entry for entry in RENDERERS.values()}
    suffix = path.suffix.lower()
    if path.name.lower().endswith(_GRAPH):
        raise UsageError(
            f"{_GRAPH} is a saved graph, not a report",
            where="--output",
            received=str(path),
            todo="save the graph with --save-graph, or name the report differently",
        )
    if suffix not in known:
        raise UsageError(
            "the suffix picks the format, and this one is not known",
            where="--output",
            received=str(path),
            todo=f"use one of {_suffixes()}",
        )
    return known[suffix]


def _suffixes() -> str:
    """List the formats that every command has."""
    return " ".join(entry.suffix for entry in RENDERERS.values() if entry.only is None)


def check(paths: Iterable[Path], *, force: bool, command: str | None = None) -> None:
    """Refuse report files that could not be written, before the work that would fill them.

    Args:
        paths: the files.
        force: overwrite those that exist.
        command: whose results they are to show; None leaves that open.

    Raises:
        UsageError: an unknown suffix, one of another command's formats, or one file named twice.
        MissingExtra: the format needs a package that is not installed.
        OutputError: the file exists and `force` is not set, or its folder cannot be written to.
    """
    paths = list(paths)
    for path in paths:
        renderer = renderer_for(path)
        if renderer.needs is not None and find_spec(renderer.needs) is None:
            raise MissingExtra(
                f"a {renderer.suffix} needs {renderer.needs}, which is not installed",
                where="--output",
                received=str(path),
                todo=f"pip install 'memfit[{renderer.extra}]'",
            )
        if None not in (renderer.only, command) and renderer.only != command:
            raise UsageError(
                f"a {renderer.suffix} shows what memfit {renderer.only} finds",
                where="--output",
                received=f"{path}, of memfit {command}",
                todo=f"use one of {_suffixes()}",
            )
        check_target(path, force=force)
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(
                "one file is named twice", where="--output", received=str(path), todo="give each its own name"
            )


def write(result: Result, path: Path, *, force: bool) -> None:
    """Write one report in the format that its suffix picks; a failure leaves what was there before.

    Raises:
        OutputError: as for `check`, or the disk refused.
    """
    renderer = renderer_for(path)
    write_whole(path, lambda stream: renderer.render(result, stream), binary=renderer.binary, force=force)
