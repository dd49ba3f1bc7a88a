"""The exceptions of nnbuild, as one tree.

    NnbuildError
    ├── InputError                  invalid input; no results were lost            exit code 2
    │   ├── ConfigError             unknown setting, or invalid value
    │   │   └── OutputError         output file that cannot be written
    │   ├── DataError               missing or damaged data source
    │   ├── ContractError           model that does not output logits
    │   ├── AlreadyScoredError      input that another job has just scored
    │   └── StoreError              store, disk or service that cannot be read or written
    │       ├── LockedError         run that another process is working on
    │       │   └── BeingScoredError    input that another job is scoring
    │       └── StoreGoneError      store that disappeared during a run
    ├── RunError                    run that failed permanently and is recorded    exit code 1
    │   ├── CheckError              data that failed a check
    │   ├── DivergedError           loss that became NaN or infinite
    │   └── PrunedError             trial that a sweep stopped early
    └── Interrupted                 run that a signal stopped; resumable          exit code 130, 143

A message is one line: what is wrong, the value, what was expected, what to do. It speaks of
settings and arguments; the command line adds the option, from the attribute `setting`.
"""

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Self


class NnbuildError(Exception):
    """Base class of all exceptions of nnbuild.

    Attributes:
        exit_code: Exit code of a command that raises the exception.
    """

    exit_code = 1


class InputError(NnbuildError):
    """Invalid input; the store is unchanged, unless a fitted run is recorded as failed.

    Attributes:
        setting: Name of the setting or argument that is invalid, such as `store`; None if the
            error concerns no single one.
        value: Its value.
    """

    exit_code = 2

    def __init__(self, message: str, *, setting: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.setting, self.value = setting, value


class ConfigError(InputError):
    """A setting is unknown, or its value is invalid."""


class OutputError(ConfigError):
    """An output file cannot be written."""


class DataError(InputError):
    """A data source is missing, damaged, or not of the expected kind."""


class ContractError(InputError):
    """A model, a loss or an array violates the logits contract."""


class StoreError(InputError):
    """The store, or a disk or service with the data, cannot be read or written; resumable."""


class LockedError(StoreError):
    """Another process is working on the run."""


class BeingScoredError(LockedError):
    """Another job is scoring the same input with the same model and options."""


class AlreadyScoredError(InputError):
    """Another job has scored the same input with the same model and options in the meantime.

    Attributes:
        score_id: ID of that job.
    """

    def __init__(self, message: str, score_id: str) -> None:
        super().__init__(message)
        self.score_id = score_id


class StoreGoneError(StoreError):
    """The store was deleted, moved or unmounted during a run; the run can be resumed."""


class RunError(NnbuildError):
    """The run failed permanently; it is recorded with status `failed`."""


class CheckError(RunError):
    """The data failed a hard check."""


class DivergedError(RunError):
    """The loss became NaN or infinite."""


class PrunedError(RunError):
    """A sweep stopped the run early: other trials were better at the same epoch."""


class Interrupted(NnbuildError):  # noqa: N818  (not an error: the run can be resumed)
    """A signal stopped the run after a checkpoint; it can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: object) -> str:
    """Return the message of an exception as one line."""
    return " ".join(str(error).split())


class Caught:
    """Context that catches any exception of its block and keeps it.

    It is for calls of other people's code, such as a converter or a server's client, that raise
    exceptions of any type. `KeyboardInterrupt` and `SystemExit` are not caught.

    Args:
        uncaught: Types of exceptions that are raised nevertheless.

    Attributes:
        error: The exception; None if there was none.
    """

    def __init__(self, *uncaught: type[Exception]) -> None:
        self._uncaught = uncaught
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, self._uncaught):
            return False
        self.error = error
        return True


_MAX_MESSAGE_LENGTH = 300
_TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Keras writes its messages with them


def raised(error: BaseException) -> str:
    """Describe an exception of the user's code in one line: type, message, file and line.

    Args:
        error: Exception with its traceback. The file is the innermost one outside of nnbuild,
            Python's library and installed packages; it is left out if there is none.
    """
    message = one_line(_TERMINAL_COLOURS.sub("", str(error)))
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = message[:_MAX_MESSAGE_LENGTH] + "…"
    description = f"{type(error).__name__}: {message}" if message else type(error).__name__
    libraries = map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    excluded = (Path(__file__).parent, *map(Path, libraries))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_absolute() and not any(path.is_relative_to(each) for each in excluded):
            return f"{description} ({path.name}, line {frame.lineno})"
    return description


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name.

    Args:
        name: The unknown name.
        known: The known names.

    Returns:
        `did you mean 'x'?` if there is a similar name, otherwise `expected one of …`.
    """
    names = sorted(known)
    similar = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {similar[0]!r}?" if similar else f"expected one of {', '.join(names)}"
