"""The command line: `nnbuild`."""

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer

from flows.app import app
from flows.signatures import (  # noqa: F401  (importing them adds their commands)
    champion,
    export,
    insight,
    run,
    score,
    serving,
    sweep,
    tables,
    upkeep,
)
from nnbuild.runtime.text import join_lines, sanitize_lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits with its code; the user's own mistakes are one line on standard error."""
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success, 1 on a failed run, 2 on bad input or usage, 128 + the signal's number when stopped.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="nnbuild", standalone_mode=False)
    except typer.TyperException as error:
        return _tell(_usage(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (so that the interpreter's own flush is quiet)
        return 0
    except Exception as error:  # noqa: BLE001  (a user should see one line, whatever it is)
        from nnbuild.errors import NnbuildError

        notes = [f"({note})" for note in getattr(error, "__notes__", ())]
        if isinstance(error, NnbuildError):
            return _tell(" ".join([str(error), *notes]), error.exit_code)
        told = f"{type(error).__name__}: {error}; this should not happen, please report it"
        return _tell(
            " ".join([told, *(notes or [f"(its traceback is {_traceback_file(error)})"])]), 1
        )
    return code if isinstance(code, int) else 0


def _traceback_file(error: Exception) -> str:
    """A file for whoever mends nnbuild; the user is told in one line."""
    with tempfile.NamedTemporaryFile("w", prefix="nnbuild-", suffix=".txt", delete=False) as file:
        file.write(sanitize_lines("".join(traceback.format_exception(error))) + "\n")
    return file.name


def _usage(error: Any) -> str:
    message = " ".join(error.format_message().split())
    if not message:  # no command was given, and the help was shown
        return ""
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path if context else 'nnbuild'} --help"


def _tell(message: str, code: int) -> int:
    if message:
        from flows.printing import print_line

        with suppress(OSError):  # nobody reads it: the code still tells
            print_line(f"nnbuild: {join_lines(message)}", sys.stderr)
    return code


if __name__ == "__main__":
    main()
