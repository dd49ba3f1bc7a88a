"""Entry point of `nnbuild`: run a command, print an error in one line, exit with its code."""

import atexit
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from flows.cli.stdout import checked_stdout, null_stream

_SIGNALLED = 128
_CTRL_C = _SIGNALLED + signal.SIGINT
_MAX_VALUE_CHARACTERS = 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; a mistake of the user prints one line on stderr."""
    codes: list[int] = []
    atexit.register(_end_process, codes)  # registered first, so it runs last
    # What we start must not import what happens to be in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Outside a command Ctrl-C ends the process at once, as it does any program. In an import
        # or at the interpreter's end Python would print a traceback instead.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_closed_streams()
    code = invoke(arguments)
    codes.append(code)
    if (code > _SIGNALLED and _is_scoring()) or _has_given_up_on_server():
        _end_process(codes)
    sys.exit(code)


def _end_process(codes: Sequence[int]) -> None:
    """End the process with the code of its command, without the end of the interpreter.

    That ends each daemon thread where it asks for Python's lock. In native code, such as that of
    pydantic, the thread aborts the process instead (FATAL: exception not rethrown).

    Args:
        codes: The exit code of the command; empty if it has none.
    """
    if codes:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(codes[-1])


def _is_scoring() -> bool:
    """Return whether a scoring stage is still running; a normal exit would wait for it."""
    from nnbuild.runtime.threads import STAGE

    return any(each.name == STAGE for each in threading.enumerate())


def _has_given_up_on_server() -> bool:
    """Return whether Prefect's server is gone; at exit Prefect would wait for it for 90 s."""
    module = sys.modules.get("flows.embedded_process")
    return module is not None and module.has_given_up_on_server()


def _open_closed_streams() -> None:
    """Open standard streams that lead nowhere if the process started without them (`2>&-`).

    Otherwise the next file that is opened becomes standard error, and receives our messages.
    """
    for stream in (0, 1, 2):
        try:
            os.fstat(stream)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    # Open for the rest of the process.
    sys.stdout, sys.stderr = sys.stdout or null_stream(), sys.stderr or null_stream()


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run a command in this process.

    Args:
        arguments: Words after `nnbuild`; those of this process if None.

    Returns:
        0 on success, 1 on a failed run, 2 on bad input or usage, 128 + the number of the signal
        when stopped.
    """
    from flows.cli.app import load_commands
    from nnbuild.errors import Caught
    from nnbuild.runtime.signals import request_to_stop

    app, code = load_commands(), 0
    with Caught() as caught:  # a user should see one line, whatever it is
        code = _exit_code_of(app, arguments)
    if caught.error is None:
        return code
    if request_to_stop(caught.error) is not None:
        return _print_message("stopped by Ctrl-C", _CTRL_C)
    return report_error(caught.error, _command_of(app, arguments))


def _exit_code_of(app: Any, arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; its own errors are raised."""
    import typer

    try:
        with _ctrl_c_raises(), checked_stdout():
            code = app.main(args=arguments, prog_name="nnbuild", standalone_mode=False)
    except typer.TyperException as error:
        return _print_message(_usage_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _CTRL_C
    except (BrokenPipeError, SystemExit) as error:  # Typer makes the second of the first
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        # So that the interpreter's own flush prints nothing.
        sys.stdout = null_stream()
        return 0
    if code == _CTRL_C:  # Typer catches some of the KeyboardInterrupts
        _print_message("stopped by Ctrl-C", code)
    return code if isinstance(code, int) else 0


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Make Ctrl-C raise `KeyboardInterrupt` in this block if it would end the process."""
    ends_at_once = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if ends_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ends_at_once:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command_of(app: Any, arguments: Sequence[str] | None) -> Any:
    """Return the command that the arguments begin with; None if there is none."""
    words = sys.argv[1:] if arguments is None else arguments
    return next((app.commands[each] for each in words if each in app.commands), None)


def report_error(error: Exception, command: Any = None) -> int:
    """Print an error in one line and return the exit code.

    Args:
        error: What a command raised.
        command: The command; its option for the setting that is invalid is appended.
    """
    from flows.cli.settings import option_of
    from nnbuild.errors import NnbuildError

    notes = [f"({note})" for note in getattr(error, "__notes__", ())]
    if isinstance(error, NnbuildError):
        setting = getattr(error, "setting", None)
        if command is not None and setting and (option := option_of(command, setting)):
            notes.insert(0, f"(option {option})")
        return _print_message(" ".join([str(error), *notes]), error.exit_code)
    message = f"{type(error).__name__}: {error}; this should not happen, please report it"
    notes = notes or [f"(traceback: {_save_traceback(error)})"]
    return _print_message(" ".join([message, *notes]), 1)


def _save_traceback(error: Exception) -> str:
    """Save the traceback in a file for a bug report and return the file's name."""
    from nnbuild.runtime.text import sanitize_lines

    with tempfile.NamedTemporaryFile("w", prefix="nnbuild-", suffix=".txt", delete=False) as file:
        file.write(sanitize_lines("".join(traceback.format_exception(error))) + "\n")
    return file.name


def _usage_message(error: Any) -> str:
    message = " ".join(error.format_message().split())
    if not message:  # no command was given, and the help was shown
        return ""
    message = message.replace("Value error, ", "")
    if isinstance(error.__cause__, ValueError) and hasattr(error.__cause__, "errors"):
        value = repr(error.__cause__.errors()[0]["input"])  # pydantic's message lacks it
        if len(value) <= _MAX_VALUE_CHARACTERS:
            message = message.replace("Input should", f"{value} should")
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path if context else 'nnbuild'} --help"


def _print_message(message: str, code: int) -> int:
    if message:
        from flows.cli.console import print_line
        from nnbuild.runtime.text import join_lines

        # What was printed before comes first, also if Ctrl-C interrupted it.
        with suppress(OSError):
            sys.stdout.flush()
        with suppress(OSError):  # nobody reads it: the exit code remains
            print_line(f"nnbuild: {join_lines(message)}", sys.stderr)
    return code


if __name__ == "__main__":
    main()
