"""The `memfit` command: its subcommands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from memfit.errors import MemfitError, UsageError
from memfit.version import __version__

COMMANDS: dict[str, str] = {
    "profile": "memfit.cli.profile",
    "bench": "memfit.cli.bench",
    "train": "memfit.cli.train",
    "targets": "memfit.cli.targets",
    "plan": "memfit.cli.plan",
    "stream": "memfit.cli.stream",
    "quantize": "memfit.cli.quantize",
    "prune": "memfit.cli.prune",
    "check": "memfit.cli.check",
    "calibrate": "memfit.cli.calibrate",
    "sensitivity": "memfit.cli.sensitivity",
}
"""Every subcommand and the module whose `command` it is."""

DONE, INTERNAL, INTERRUPTED = 0, 3, 130


class _Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name]).command
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(
                "there is no such command",
                where="memfit",
                received=name,
                todo=f"{hint}the commands are {', '.join(COMMANDS)}",
            )
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="memfit %(version)s")
def cli() -> None:
    """See where a neural network's memory goes, layer by layer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code: 0 done, 2 bad input, 3 a fault of memfit's own, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show is no reason to stop
    try:
        with cli.make_context("memfit", given) as ctx:
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has all it wanted. What is left in the buffer must not fail again when Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except click.ClickException as error:
        return _report(_as_usage(error, given), debug=debug)
    except MemfitError as error:
        return _report(error, debug=debug)
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; run it again with --debug for the traceback"
        reason = " ".join(str(error).split()) or "no message"
        click.echo(f"memfit: error: a fault of memfit's own, {type(error).__name__}: {reason}{hint}", err=True)
        return INTERNAL
    return DONE


def run() -> NoReturn:
    """Be the command: run the process's own arguments and end it, at once.

    Taking PyTorch apart again at the end of a process costs a quarter of a second, and nothing is left to save by then.
    """
    code = main()
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError, OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _report(error: MemfitError, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"memfit: error: {error}", err=True)
    return error.exit_code


def _as_usage(error: click.ClickException, given: Sequence[str]) -> UsageError:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    where = ctx.command_path if ctx else "memfit"
    message = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(
        message[:1].lower() + message[1:], where=where, received=shlex.join(given), todo=f"see {where} --help"
    )


if __name__ == "__main__":
    run()
