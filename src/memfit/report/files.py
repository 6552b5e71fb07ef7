"""Result files: refused before any work is done, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from memfit.analysis.result import Result
from memfit.errors import MissingExtra, OutputError, UsageError
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
            todo=f"use one of {' '.join(known)}",
        )
    return known[suffix]


def check(paths: Iterable[Path], *, force: bool) -> None:
    """Refuse report files that could not be written, before the work that would fill them.

    Raises:
        UsageError: an unknown suffix, or one file named twice.
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
        check_target(path, force=force)
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise UsageError(
                "one file is named twice", where="--output", received=str(path), todo="give each its own name"
            )


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a file that cannot or must not be written.

    Raises:
        OutputError: it exists and `force` is not set, it is a folder, or its own folder is missing or read-only.
    """
    folder = path.resolve().parent
    if path.is_dir():
        raise OutputError("this is a folder", received=str(path), todo="name a file in it")
    if not folder.is_dir():
        raise OutputError(
            "the folder of an output file does not exist", where=str(folder), received=str(path), todo="make it first"
        )
    if not os.access(folder, os.W_OK):
        raise OutputError(
            "the folder of an output file cannot be written to",
            where=str(folder),
            received=str(path),
            todo="choose another folder, or change its permissions",
        )
    if path.exists() and not force:
        raise OutputError(
            "an output file exists already, and memfit keeps it",
            where=str(path.resolve()),
            received=str(path),
            todo="choose another name, or overwrite it with --force",
        )


def write(result: Result, path: Path, *, force: bool) -> None:
    """Write one report in the format that its suffix picks; a failure leaves what was there before.

    Raises:
        OutputError: as for `check`, or the disk refused.
    """
    renderer = renderer_for(path)
    write_whole(path, lambda stream: renderer.render(result, stream), binary=renderer.binary, force=force)


def write_whole(path: Path, fill: Callable[[IO[Any]], None], *, binary: bool = False, force: bool) -> None:
    """Let a function fill a file that takes its name when it is whole; a failure leaves what was there before.

    Raises:
        OutputError: as for `check_target`, or the disk refused.
    """
    check_target(path, force=force)
    target = path.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if binary:
            with part.open("xb") as stream:
                fill(stream)
        else:
            with part.open("x", encoding="utf-8", newline="") as text:
                fill(text)
        if target.exists():
            check_target(path, force=force)
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        raise OutputError(
            "an output file could not be written",
            where=str(target),
            received=error.strerror or str(error),
            todo="free some space or choose another folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)
