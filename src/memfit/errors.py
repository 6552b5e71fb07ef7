"""The one family of errors that memfit raises for what a user can mend.

Every message answers four questions: what failed, where, what was received, what to do.
"""

from __future__ import annotations

from importlib.util import find_spec


class MemfitError(Exception):
    """Base of every error that memfit raises on purpose; `exit_code` is what the command line returns.

    Args:
        what: what failed, one sentence without a full stop.
        where: file, operation, module path or option.
        received: what memfit was given or found.
        todo: what the reader can do about it.
    """

    exit_code = 2

    def __init__(
        self, what: str, *, where: str | None = None, received: str | None = None, todo: str | None = None
    ) -> None:
        self.what, self.where, self.received, self.todo = what, where, received, todo
        lines = [what]
        if where:
            lines.append(f"  where:    {where}")
        if received:
            lines.append(f"  received: {received}")
        if todo:
            lines.append(f"  to do:    {todo}")
        super().__init__("\n".join(lines))


def said(error: BaseException) -> str:
    """Name an exception and give the first line of what it says.

    >>> said(ValueError("too narrow\\nsee the manual"))
    'ValueError: too narrow'
    """
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


class UsageError(MemfitError):
    """An option, a shape or a name that cannot be understood."""


class SourceError(MemfitError):
    """A model source that cannot be found, read or built."""


class CaptureError(MemfitError):
    """A model that refused its input, or that cannot be captured."""


class DataDependentError(CaptureError):
    """Control flow that depends on values, which a capture without arithmetic does not have."""


class UnsupportedOp(MemfitError):
    """An operation that no table entry describes."""


class GraphError(MemfitError):
    """A graph that breaks a rule of its own language, or a graph file that cannot be read."""


class OutputError(MemfitError):
    """A result that cannot be written."""


class MissingExtra(MemfitError):
    """A command needs a package that is not installed."""


def require(package: str, extra: str, what: str, *, where: str) -> None:
    """Say which extra to install where a package is missing, before there is any work.

    Args:
        package: as it is imported.
        extra: of memfit, which has it.
        what: what needs it, and its name, as in `reading images needs Pillow`.
        where: the command or the option.

    Raises:
        MissingExtra: it is not installed.
    """
    if find_spec(package) is None:
        raise MissingExtra(
            f"{what}, which is not installed",
            where=where,
            received=f"no package {package}",
            todo=f"pip install 'memfit[{extra}]'",
        )


class InternalError(MemfitError):
    """A fault of memfit itself."""

    exit_code = 3
