"""Files that memfit writes: refused before any work is done, written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from memfit.errors import OutputError


def check_target(path: str | Path, *, force: bool) -> None:
    """Refuse a file that cannot or must not be written.

    Raises:
        OutputError: it exists and `force` is not set, it is a folder, or its own folder is missing or read-only.
    """
    path = Path(path)
    folder = path.resolve().parent
    if path.is_dir():
        raise OutputError("this is a folder", where="an output file", received=str(path), todo="name a file in it")
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


def write_whole(path: str | Path, fill: Callable[[IO[Any]], object], *, binary: bool = False, force: bool) -> None:
    """Let a function fill a file that takes its name when it is whole; a failure leaves what was there before.

    Raises:
        OutputError: as for `check_target`, or the disk refused.
    """
    check_target(path, force=force)
    target = Path(path).resolve()
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


def write_bytes(content: bytes, path: str | Path, *, force: bool = False) -> None:
    """Write bytes to a file that takes its name when it is whole.

    Raises:
        OutputError: as for `check_target`, or the disk refused.
    """
    write_whole(path, lambda stream: stream.write(content), binary=True, force=force)
