"""The command line: `nnbuild`."""

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALLED = 128
_CTRL_C = _SIGNALLED + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; a user's own mistake is one line on standard error."""
    # What we start must not import what happens to be in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Outside a command Ctrl-C ends the process at once, as it does any program. In an import
        # or at the interpreter's end Python would print a traceback instead.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_closed_streams()
    code = invoke(arguments)
    if code > _SIGNALLED and _is_inside_a_library():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _is_inside_a_library() -> bool:
    """Return whether a stage of scoring goes on, which the interpreter's end would wait for."""
    from nnbuild.scoring.prefetch import STAGE

    return any(each.name == STAGE for each in threading.enumerate())


def _open_closed_streams() -> None:
    """Give a process that was started without standard streams (`2>&-`) some that lead nowhere.

    Otherwise the next file that is opened becomes standard error, and receives our messages.
    """
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115  (for the whole process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115  (as above)


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 on success, 1 on a failed run, 2 on bad input or usage, 128 + the signal's number when stopped.
    """
    import typer

    from flows.signatures import load_app

    command = typer.main.get_command(load_app())
    try:
        with _ctrl_c_raises():
            code = command.main(args=arguments, prog_name="nnbuild", standalone_mode=False)
    except typer.TyperException as error:
        return _tell(_usage(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    except (BrokenPipeError, SystemExit) as error:  # Typer makes the second of the first
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (so that the interpreter's own flush is quiet)
        return 0
    except Exception as error:  # noqa: BLE001  (a user should see one line, whatever it is)
        return report(error)
    if code == _CTRL_C:  # Typer catches some of the KeyboardInterrupts
        _tell("stopped by Ctrl-C", code)
    return code if isinstance(code, int) else 0


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` in this block, if it would end the process otherwise."""
    ends_at_once = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if ends_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ends_at_once:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def report(error: Exception) -> int:
    """Print an error in one line; return the exit code."""
    from nnbuild.errors import NnbuildError

    notes = [f"({note})" for note in getattr(error, "__notes__", ())]
    if isinstance(error, NnbuildError):
        if (setting := getattr(error, "setting", None)) is not None:
            notes.insert(0, f"(option --{setting.replace('_', '-')})")
        return _tell(" ".join([str(error), *notes]), error.exit_code)
    message = f"{type(error).__name__}: {error}; this should not happen, please report it"
    notes = notes or [f"(its traceback is {_traceback_file(error)})"]
    return _tell(" ".join([message, *notes]), 1)


def _traceback_file(error: Exception) -> str:
    """Keep the traceback in a file for whoever fixes nnbuild; return the file's name."""
    from nnbuild.runtime.text import sanitize_lines

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
        from nnbuild.runtime.text import join_lines

        with suppress(OSError):  # nobody reads it: the code still tells
            print_line(f"nnbuild: {join_lines(message)}", sys.stderr)
    return code


if __name__ == "__main__":
    main()
