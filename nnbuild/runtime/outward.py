"""What is reported to the outside: it may fail in any way, and the run goes on."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nnbuild.errors import NnbuildError
from nnbuild.runtime.text import join_lines, sanitize

_LONGEST = 300


@contextmanager
def outward(what: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Turn any exception of this block into a warning: a report never decides how a run ends.

    `KeyboardInterrupt`, `SystemExit` and Prefect's signals are requests to stop, not failures of a
    report, and are passed on.

    Args:
        what: Name of the report, for the warning.
        warn: Receives the warning, one line without credentials. It may fail too.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (whatever it is)
        with suppress(Exception):
            warn(f"{what} failed: {describe(error)}; the run is not affected")


def describe(error: BaseException) -> str:
    """Return an exception as one line for a person, without credentials and control characters."""
    message, name = sanitize(join_lines(str(error)))[:_LONGEST], type(error).__name__
    if isinstance(error, NnbuildError):
        return message
    return f"{name}: {message}" if message else name


class Harmless:
    """Passes calls on to an object that shows progress, until the object fails for the first time.

    A terminal that is gone would fail at every step of a fit: one warning is enough.

    Args:
        display: Whose methods return nothing that matters.
        warn: As for `outward`.
    """

    def __init__(self, display: Any, warn: Callable[[str], object]) -> None:
        self._display, self._warn = display, warn
        self._failed = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if not self._failed:
                with outward("the display", self._give_up):
                    getattr(self._display, name)(*arguments, **options)

        return call

    def _give_up(self, warning: str) -> None:
        self._failed = True
        self._warn(warning)
