"""Everything that nnbuild raises on purpose.

    NnbuildError
    ├── InputError                  what was given cannot be used: nothing was changed        exit 2
    │   ├── ConfigError             a setting that is unknown, ill-typed or out of bounds
    │   │   └── OutputError         a file that was asked for and cannot be written
    │   ├── DataError               a source that is missing, damaged or not what it claims
    │   ├── ContractError           a model that does not end in logits
    │   ├── AlreadyScoredError      an input that another job has scored meanwhile
    │   └── StoreError              a store that cannot be read or written
    │       ├── LockedError         a run that another process holds
    │       │   └── BeingScoredError    an input that another job is scoring
    │       └── StoreGoneError      a store that disappeared while a run was in progress
    ├── RunError                    the run began and failed for good: it is recorded          exit 1
    │   ├── CheckError              the data was read, and is not fit to train on
    │   ├── DivergedError           the loss stopped being a number
    │   └── PrunedError             a sweep gave the run up: others were better by then
    └── Interrupted                 a signal stopped the run: it can be resumed                exit 130, 143

A message says what was given, what was expected and how to mend it, on one line.
"""

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class NnbuildError(Exception):
    """Base of the family."""

    exit_code = 1


class InputError(NnbuildError):
    """What the user gave cannot be used; the store is as it was."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is unknown, ill-typed or out of bounds."""


class OutputError(ConfigError):
    """A file that the user asked for cannot be written."""


class DataError(InputError):
    """A data source is missing, damaged, or not what it claims to be."""


class ContractError(InputError):
    """A model, a loss or an array breaks the logits contract."""


class StoreError(InputError):
    """The store, or something in it, cannot be read or written."""


class LockedError(StoreError):
    """Another process holds the run."""


class BeingScoredError(LockedError):
    """Another job is scoring the same input with the same model and options."""


class AlreadyScoredError(InputError):
    """Another job has scored the same input with the same model and options meanwhile.

    Attributes:
        score_id: The job that has scored it.
    """

    def __init__(self, message: str, score_id: str) -> None:
        super().__init__(message)
        self.score_id = score_id


class StoreGoneError(StoreError):
    """The store was deleted, moved or unmounted while a run was in progress; the run waits."""


class RunError(NnbuildError):
    """The run began and failed for good; it is recorded with status `failed`."""


class CheckError(RunError):
    """The data was read, and a hard check says that it is not fit to train on."""


class DivergedError(RunError):
    """The loss became infinite or not a number."""


class PrunedError(RunError):
    """A sweep gave the run up before its end: other trials were better at the same epoch."""


class Interrupted(NnbuildError):  # noqa: N818  (it is no error: the run is whole and waits)
    """A signal stopped the run after a checkpoint; it can be resumed."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: object) -> str:
    """What an error of another library says, on one line."""
    return " ".join(str(error).split())


_MOST_CHARACTERS = 300
_TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # Keras writes its messages with them


def raised(error: BaseException) -> str:
    """Describe an exception of somebody else's code on one line: type, message, and file and line.

    Args:
        error: Exception with its traceback. The place is the innermost one in neither nnbuild, nor
            Python's library, nor an installed package; there may be none.
    """
    message = one_line(_TERMINAL_COLOURS.sub("", str(error)))
    if len(message) > _MOST_CHARACTERS:
        message = message[:_MOST_CHARACTERS] + "…"
    description = f"{type(error).__name__}: {message}" if message else type(error).__name__
    libraries = map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    others = (Path(__file__).parent, *map(Path, libraries))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_absolute() and not any(path.is_relative_to(each) for each in others):
            return f"{description} ({path.name}, line {frame.lineno})"
    return description


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    Args:
        name: what was given.
        known: the names that exist.

    Returns:
        `did you mean 'x'?` when one is near, otherwise `expected one of …`.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
